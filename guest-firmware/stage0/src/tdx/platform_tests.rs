//! The whole of the TDX side against a module that keeps a secure EPT and hosts that lie.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kata_cc_stage0_abi::{KernelKind, Sealed};

use super::fake::{Fake, Host, Page, SHARED};
use super::*;
use crate::exception::Frame;
use crate::private_pages::BookError;
use crate::test_random::Random;

const MIB: u64 = 1 << 20;
const MAILBOX: u64 = 0x12_0000;
const WORKING: (u64, u64) = (0x10_0000, 0x13_0000);
/// Bytes of the log's first event.
const LOG_HEADER: usize = 65;

fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::new(start, end).expect("range")
}

pub(crate) fn fake() -> Fake {
    Fake::new(&[WORKING, (layout::BOOT_BLOCK, layout::RESERVED_END)])
}

fn block() -> BootBlock {
    BootBlock {
        platform: PlatformKind::Tdx,
        vcpus: 2,
        memory_bit: 51,
        acpi_devices: false,
        kernel_kind: KernelKind::BzImage,
        kernel: Sealed { length: 1, sha256: [0; 32] },
        initramfs: None,
        command_line: Sealed { length: 1, sha256: [0; 32] },
    }
}

pub(crate) fn tdx<'a>(fake: &'a Fake, log: &'a mut [u8]) -> Tdx<'a, Fake> {
    Tdx::new(fake, log, range(WORKING.0, WORKING.1), range(MAILBOX, MAILBOX + 4096)).expect("places")
}

fn ready<'a>(fake: &'a Fake, log: &'a mut [u8], hostile: impl FnOnce(&mut Host)) -> Tdx<'a, Fake> {
    let mut tdx = tdx(fake, log);
    tdx.init(&block()).expect("honest");
    fake.host(hostile);
    tdx
}

fn begin(hostile: impl FnOnce(&mut Host)) -> Result<(), Error> {
    let fake = fake();
    fake.host(hostile);
    let result = tdx(&fake, &mut [0; 4096]).begin(&block());
    assert_eq!(fake.0.borrow().host_calls, 0);
    result
}

fn accept_under(map: impl FnMut(u64, u64, (u64, u64)) -> (u64, u64) + 'static) -> Result<(), Error> {
    let (fake, mut log) = (fake(), [0; 4096]);
    let mut tdx = ready(&fake, &mut log, |host| host.map = Box::new(map));
    let result = tdx.make_private(range(16 * MIB, 20 * MIB));
    if result.is_err() {
        assert!(fake.page(16 * MIB) != Page::Accepted, "no page is accepted after a refused answer");
    }
    fake.assert_correct();
    result
}

#[test]
fn a_launch_from_begin_to_end() {
    let (fake, mut log) = (fake(), [0; 4096]);
    let mut tdx = tdx(&fake, &mut log);
    tdx.init(&block()).expect("init");
    tdx.accept(range(16 * MIB, 64 * MIB)).expect("accept");
    assert_eq!(fake.0.borrow().large_accepts, 24);
    tdx.accept(range(2 * MIB + 4096, 5 * MIB)).expect("ragged");
    tdx.unshare(range(64 * MIB, 66 * MIB)).expect("unshare what was shared at launch");
    tdx.share(range(20 * MIB, 20 * MIB + 8192)).expect("share");
    assert!(fake.page(20 * MIB) == Page::Shared && fake.page(20 * MIB + 8192) == Page::Accepted);
    tdx.unshare(range(20 * MIB, 20 * MIB + 8192)).expect("and back");
    tdx.measured(Payload::Kernel, &[1; 32]).expect("kernel");
    tdx.prepare_aps(2).expect("mailbox");
    let handover = tdx.handover();
    assert_eq!(handover.ap_mailbox, Some(MAILBOX));
    assert!(handover.lazy_memory && !handover.cc_blob);
    assert_eq!(handover.event_log.map(|(_, length)| length), Some(4096));
    assert_eq!(tdx.cpuid(7, 0).eax, 7);
    tdx.leave().expect("leave");
    fake.assert_correct();
}

#[test]
fn small_pages_where_the_host_has_no_large_one() {
    let (fake, mut log) = (fake(), [0; 4096]);
    let mut tdx = ready(&fake, &mut log, |host| host.large = Box::new(|page| page == 4 * MIB));
    tdx.accept(range(2 * MIB, 8 * MIB)).expect("accept");
    assert_eq!(fake.0.borrow().large_accepts, 1);
    assert!((2 * MIB..8 * MIB).step_by(4096).all(|page| fake.page(page) == Page::Accepted));
    fake.assert_correct();
}

#[test]
fn what_the_module_tells_is_checked() {
    let other = BootBlock { platform: PlatformKind::Snp, ..block() };
    assert_eq!(tdx(&fake(), &mut [0; 4096]).begin(&other), Err(Error::Platform));
    assert_eq!(begin(|host| host.info.rcx = 46), Err(Error::AddressWidth(46)));
    assert_eq!(begin(|host| host.info.rcx = 48), Err(Error::SharedBit(47)), "another than the measured one");
    assert_eq!(begin(|host| host.info.rdx = 0), Err(Error::PageExceptions(0)));
    assert_eq!(begin(|host| host.info.r9 = 1), Err(Error::NotFirst(1)));
    assert_eq!(begin(|host| host.info.r8 = 1 | 2 << 32), Err(Error::Vcpus(1)), "fewer than measured");
    assert_eq!(begin(|host| host.info.r8 = 3 | 3 << 32), Err(Error::Vcpus(3)), "more than measured");
    let refused =
        |leaf| begin(move |host| host.status = Box::new(move |called| if called == leaf { 9 } else { 0 }));
    assert_eq!(refused(1), Err(Error::Module { leaf: 1, status: 9 }));
    assert_eq!(refused(2), Err(Error::Module { leaf: 2, status: 9 }));
}

#[test]
fn nothing_is_accepted_twice() {
    let (fake, mut log) = (fake(), [0; 4096]);
    let mut tdx = ready(&fake, &mut log, |_| ());
    tdx.accept(range(16 * MIB, 18 * MIB)).expect("first");
    let calls = fake.0.borrow().host_calls;
    for again in [range(16 * MIB, 18 * MIB), range(17 * MIB, 19 * MIB), range(MAILBOX, MAILBOX + 4096)] {
        assert_eq!(tdx.make_private(again), Err(Error::Book(BookError::AlreadyPrivate)));
    }
    assert_eq!(tdx.make_shared(range(32 * MIB, 34 * MIB)), Err(Error::Book(BookError::NotPrivate)));
    assert_eq!(tdx.make_shared(range(MAILBOX, MAILBOX + 4096)), Err(Error::Range(MAILBOX)));
    assert_eq!(tdx.make_private(range(4096 * MIB, 4098 * MIB)), Err(Error::Range(4096 * MIB)), "not mapped");
    assert_eq!(fake.0.borrow().host_calls, calls, "the host was not asked");
    fake.assert_correct();
}

#[test]
fn a_page_that_was_accepted_already_is_fatal() {
    for large in [true, false] {
        let (fake, mut log) = (fake(), [0; 4096]);
        let mut tdx = ready(&fake, &mut log, |host| {
            host.large = Box::new(move |_| large);
            host.replay = Box::new(|page| page == 17 * MIB);
        });
        assert_eq!(tdx.accept(range(16 * MIB, 18 * MIB)), Err(PlatformError::AlreadyValidated));
        assert!(fake.page(17 * MIB + 4096) != Page::Accepted, "nothing after it was accepted");
    }
}

#[test]
fn a_module_that_refuses_ends_the_launch() {
    for leaf in [0, 6] {
        let (fake, mut log) = (fake(), [0; 4096]);
        let mut tdx =
            ready(&fake, &mut log, |host| host.status = Box::new(move |called| u64::from(called == leaf)));
        assert_eq!(tdx.make_private(range(16 * MIB, 18 * MIB)), Err(Error::Module { leaf, status: 1 }));
    }
    // A small page cannot be of the wrong size.
    let (fake, mut log) = (fake(), [0; 4096]);
    let mut tdx = ready(&fake, &mut log, |host| {
        host.status = Box::new(|leaf| if leaf == 6 { 0xC000_0B0B << 32 } else { 0 });
    });
    let expected = Error::Module { leaf: 6, status: 0xC000_0B0B << 32 };
    assert_eq!(tdx.make_private(range(16 * MIB, 18 * MIB)), Err(expected));
}

#[test]
fn the_answer_to_a_mapping_is_checked() {
    assert_eq!(accept_under(|_, _, honest| honest), Ok(()));
    for refusal in [1 << 63, (1 << 63) + 1, (1 << 63) + 2, 2, 77] {
        assert_eq!(accept_under(move |_, _, _| (refusal, 0)), Err(Error::MapGpa(refusal)));
    }
    let retry_at = |next: u64| accept_under(move |_, _, _| (1, next));
    for next in [0, 16 * MIB - 4096, 20 * MIB, u64::MAX, 17 * MIB + 1, SHARED + 17 * MIB] {
        assert_eq!(retry_at(next), Err(Error::MapGpaCursor(next)), "{next:#x}");
    }
    assert_eq!(retry_at(16 * MIB), Err(Error::MapGpaStalled), "never comes to an end");
    let mut first = true;
    let back =
        move |start, _, _| (1, if std::mem::take(&mut first) { start + 2 * MIB } else { start - 4096 });
    assert_eq!(accept_under(back), Err(Error::MapGpaCursor(18 * MIB - 4096)), "backwards");
}

#[test]
fn a_host_that_does_it_bit_by_bit_is_served() {
    let (fake, mut log) = (fake(), [0; 4096]);
    let mut tdx = ready(&fake, &mut log, |host| host.at_a_time = 64 * 4096);
    tdx.accept(range(16 * MIB, 20 * MIB)).expect("accept");
    tdx.share(range(16 * MIB, 20 * MIB)).expect("share");
    assert!((16 * MIB..20 * MIB).step_by(4096).all(|page| fake.page(page) == Page::Shared));
    assert_eq!(fake.0.borrow().host_calls, 32);
    fake.assert_correct();
}

#[test]
fn sharing_tells_apart_who_failed() {
    let (fake, mut log) = (fake(), [0; 4096]);
    let mut tdx = ready(&fake, &mut log, |_| ());
    tdx.accept(range(16 * MIB, 18 * MIB)).expect("accept");
    fake.host(|host| host.map = Box::new(|_, _, _| (1 << 63, 0)));
    assert_eq!(tdx.share(range(16 * MIB, 18 * MIB)), Err(PlatformError::ShareFailed));
    assert_eq!(tdx.accept(range(18 * MIB, 20 * MIB)), Err(PlatformError::AcceptFailed));
}

#[test]
fn nothing_works_before_init() {
    let (fake, mut log) = (fake(), [0; 4096]);
    let mut tdx = tdx(&fake, &mut log);
    assert_eq!(tdx.make_private(range(16 * MIB, 18 * MIB)), Err(Error::NotReady));
    assert_eq!(tdx.make_shared(range(WORKING.0, WORKING.1)), Err(Error::NotReady));
}

#[test]
fn the_mailbox_lies_in_working_memory_and_names_nobody() {
    let fake = fake();
    let mut log = [0; 4096];
    let new = |mailbox| Tdx::new(&fake, &mut [0; 4096], range(WORKING.0, WORKING.1), mailbox).map(drop);
    assert_eq!(new(range(16 * MIB, 16 * MIB + 4096)), Err(Error::Range(16 * MIB)));
    assert_eq!(new(range(MAILBOX, MAILBOX + 8192)), Err(Error::Range(MAILBOX)));
    let mut tdx = ready(&fake, &mut log, |_| ());
    tdx.prepare_aps(1).expect("alone");
    assert_eq!(tdx.handover().ap_mailbox, None);
    assert_eq!(fake.0.borrow().private.len(), 512);
    assert!(fake.0.borrow().private.values().all(|word| *word == 0));
}

/// The log, read by a reader of its own, leads to the registers.
#[test]
fn the_log_leads_to_the_registers() {
    let (fake, mut log) = (fake(), [0xFF; 4096]);
    let mut tdx = ready(&fake, &mut log, |_| ());
    for (payload, hash) in [(Payload::Kernel, 1), (Payload::Initramfs, 2), (Payload::CommandLine, 3)] {
        tdx.measured(payload, &[hash; 32]).expect("room");
    }
    let mut rtmr = [[0; 48]; 4];
    let mut events = Vec::new();
    let word = |at: usize| u32::from_le_bytes(log[at..at + 4].try_into().expect("word"));
    let mut at = LOG_HEADER;
    while word(at) != 0 {
        let (register, kind, digests) = (word(at) as usize - 1, word(at + 4), word(at + 8));
        assert_eq!((kind, digests, word(at + 12) & 0xFFFF), (6, 1, 0xC));
        let digest = &log[at + 14..at + 62];
        let length = word(at + 62) as usize;
        let data = &log[at + 66..at + 66 + length];
        assert_eq!(digest, sha384::sha384(data), "digest of the data");
        rtmr[register] = sha384::sha384(&[&rtmr[register], digest].concat());
        events.push((register, data[8..].to_vec()));
        at += 66 + length;
    }
    assert_eq!(rtmr, fake.0.borrow().rtmr);
    assert_eq!(events.iter().map(|(register, _)| *register).collect::<Vec<_>>(), [0, 1, 2, 2]);
    assert_eq!(events[0].1, block().to_page().expect("block")[..152]);
    assert_eq!(events[3].1, format!("kata-cc command line sha256:{}", "03".repeat(32)).into_bytes());
    assert!(log[at..].iter().all(|byte| *byte == 0), "zeros end it");
}

#[test]
fn a_log_without_room_is_refused_before_anything_is_measured() {
    let fake = fake();
    let mut log = [0; LOG_HEADER + 66 + 160];
    let mut tdx = ready(&fake, &mut log, |_| ());
    let before = fake.0.borrow().rtmr;
    assert_eq!(tdx.measured(Payload::Kernel, &[1; 32]), Err(PlatformError::EventLog));
    assert_eq!(fake.0.borrow().rtmr, before);
    let places = (range(WORKING.0, WORKING.1), range(MAILBOX, MAILBOX + 4096));
    assert_eq!(Tdx::new(&fake, &mut [0; LOG_HEADER - 1], places.0, places.1).map(drop), Err(Error::LogFull));
}

#[test]
fn a_termination_carries_number_and_name_and_never_returns() {
    let fake = fake();
    let mut log = [0; 4096];
    let tdx = tdx(&fake, &mut log);
    let halted = catch_unwind(AssertUnwindSafe(|| tdx.terminate(Termination::KernelHash)));
    assert!(halted.is_err(), "only the fake's halt ends it");
    let registers = fake.0.borrow().fatal.expect("told");
    assert_eq!((registers.r11, registers.r12), (0x1_0003, 0x20));
    assert_eq!([registers.r14, registers.r15].map(u64::to_le_bytes).concat(), *b"KernelHash\0\0\0\0\0\0");
}

#[test]
fn exceptions_are_answered_with_zeros_or_not_at_all() {
    let fake = fake();
    let frame = Frame { rax: 0x4000_0000, rbx: 1, rcx: 2, rdx: 3, rip: 0x1000 };
    let handle = |reason, instruction| {
        fake.host(|host| host.exit_reason = reason);
        let mut answered = frame;
        let result = ve::handle(&fake, &mut answered, instruction);
        if result.is_err() {
            assert_eq!(answered, frame, "nothing was changed");
        }
        result.map(|()| answered)
    };
    assert_eq!(handle(10, [0x0F, 0xA2]), Ok(Frame { rip: 0x1002, ..Frame::default() }));
    assert_eq!(handle(10, [0xF3, 0x90]), Err(Termination::UnexpectedException), "no CPUID stands there");
    assert_eq!(handle(48, [0x0F, 0xA2]), Err(Termination::ValidationFailed));
    for reason in (0..80).filter(|reason| ![10, 48].contains(reason)) {
        assert_eq!(handle(reason, [0x0F, 0xA2]), Err(Termination::UnexpectedException), "{reason}");
    }
    fake.host(|host| host.status = Box::new(|_| 1));
    assert_eq!(ve::handle(&fake, &mut frame.clone(), [0x0F, 0xA2]), Err(Termination::TdxModule));
}

/// Under any mixture of lies, stage0 either does what it was asked or says that it did not, and never does what the
/// module's notes call wrong.
#[test]
fn no_host_makes_stage0_do_what_it_must_not() {
    for seed in 0..400 {
        let (fake, mut log) = (fake(), [0; 4096]);
        let mut random = Random::new(seed);
        let (mut lies, odds) = (Random::new(seed + 9999), 2 + random.below(30));
        let at_a_time = 4096 * (1 + random.below(600));
        let mut tdx = ready(&fake, &mut log, |host| {
            host.at_a_time = at_a_time;
            host.large = Box::new(|page| !(page / (2 * MIB)).is_multiple_of(3));
            host.map = Box::new(move |start, size, honest| match lies.below(odds) {
                0 => (1 << lies.below(64), honest.1),
                // Says less than was done, or that something outside was.
                1 if honest.0 == 1 => (1, start + 4096 * lies.below(size / 4096 + 3)),
                _ => honest,
            });
        });
        for _ in 0..20 {
            let start = 16 * MIB + random.below(2048) * 4096;
            let range = range(start, start + 4096 * (1 + random.below(1200)));
            let private = random.below(2) == 0;
            match if private { tdx.make_private(range) } else { tdx.make_shared(range) } {
                Ok(()) if private => {
                    let mut pages = (range.start()..range.end()).step_by(4096);
                    assert!(pages.all(|page| fake.page(page) == Page::Accepted));
                }
                Ok(()) | Err(Error::Book(_)) => {}
                // The boot ends at the first refusal.
                Err(_) => break,
            }
        }
        let wrong = fake.0.borrow().wrong.clone();
        // A host that says to have mapped what it did not takes the memory away; nothing else can go wrong.
        assert!(wrong.iter().all(|note| note.ends_with("accepted while shared")), "{wrong:?}");
    }
}
