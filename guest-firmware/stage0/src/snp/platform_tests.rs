//! The whole of the SNP side against a processor that keeps an RMP and hosts that lie.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use kata_cc_stage0_abi::{KernelKind, Sealed};

use super::cpuid::CpuidRefusal;
use super::cpuid::tests::milan;
use super::fake::{Exit, Fake, Host};
use super::secrets::SecretsRefusal;
use super::*;
use crate::private_pages::BookError;
use crate::test_random::Random;

const MIB: u64 = 1 << 20;
const GHCB: u64 = 0x12_0000;
const WORKING: (u64, u64) = (0x10_0000, 0x13_0000);

fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::new(start, end).expect("range")
}

pub(crate) fn fake() -> Fake {
    let pages = [layout::SECRETS, layout::CPUID, layout::BOOT_BLOCK].map(|page| (page, page + 4096));
    Fake::new(&[WORKING, pages[0], pages[1], pages[2]])
}

fn block() -> BootBlock {
    BootBlock {
        platform: PlatformKind::Snp,
        vcpus: 2,
        memory_bit: 51,
        acpi_devices: false,
        kernel_kind: KernelKind::BzImage,
        kernel: Sealed { length: 1, sha256: [0; 32] },
        initramfs: None,
        command_line: Sealed { length: 1, sha256: [0; 32] },
    }
}

pub(crate) struct Pages {
    cpuid: [u8; 4096],
    secrets: [u8; 4096],
}

pub(crate) fn pages() -> Pages {
    let mut secrets = [0; 4096];
    secrets[0] = 3;
    secrets[0x20..0xA0].fill(7);
    Pages { cpuid: milan().page(), secrets }
}

pub(crate) fn snp<'a>(fake: &'a Fake, pages: &'a Pages) -> Snp<'a, Fake> {
    Snp::new(fake, &pages.cpuid, &pages.secrets, range(WORKING.0, WORKING.1), range(GHCB, GHCB + 4096))
        .expect("pages")
}

/// Against an honest host up to here, then against another.
fn ready<'a>(fake: &'a Fake, pages: &'a Pages, hostile: impl FnOnce(&mut Host)) -> Snp<'a, Fake> {
    let mut snp = snp(fake, pages);
    snp.init(&block()).expect("honest");
    fake.host(hostile);
    snp
}

/// How `init` ends under such a host.
fn begin(hostile: impl FnOnce(&mut Host)) -> Result<(), Error> {
    let (fake, pages) = (fake(), pages());
    fake.host(hostile);
    let result = snp(&fake, &pages).begin(&block());
    fake.assert_correct();
    result
}

fn msr_lie(request_code: u64, lie: u64) -> impl FnOnce(&mut Host) {
    move |host| {
        host.msr = Box::new(move |request, honest| if request & 0xFFF == request_code { lie } else { honest })
    }
}

#[test]
fn a_launch_from_begin_to_end() {
    let (fake, pages) = (fake(), pages());
    let mut snp = snp(&fake, &pages);
    snp.init(&block()).expect("init");
    snp.accept(range(16 * MIB, 64 * MIB)).expect("accept");
    assert_eq!(fake.0.borrow().large_validations, 24);
    snp.accept(range(2 * MIB + 4096, 5 * MIB)).expect("ragged");
    snp.unshare(range(64 * MIB, 66 * MIB)).expect("unshare what was shared at launch");
    snp.share(range(20 * MIB, 20 * MIB + 8192)).expect("share");
    assert!(!fake.valid(20 * MIB) && !fake.assigned(20 * MIB) && fake.valid(20 * MIB + 8192));
    snp.unshare(range(20 * MIB, 20 * MIB + 8192)).expect("and back");
    snp.prepare_aps(2).expect("AP creation");
    assert_eq!(snp.handover(), Handover { cc_blob: true, lazy_memory: true, ..Handover::default() });
    assert_eq!(snp.cpuid(0, 0).ebx, 0x6874_7541);
    snp.leave().expect("leave");
    assert!(fake.valid(GHCB), "the GHCB page is private again");
    assert!(
        (GHCB..GHCB + 4096).step_by(8).all(|word| fake.0.borrow().private.get(&word) == Some(&0)),
        "and empty"
    );
    fake.assert_correct();
}

#[test]
fn one_gigabyte_takes_three_page_state_changes() {
    let (fake, pages) = (fake(), pages());
    let mut snp = ready(&fake, &pages, |_| ());
    let before = fake.0.borrow().exits;
    snp.accept(range(1024 * MIB, 2048 * MIB)).expect("accept");
    assert_eq!(fake.0.borrow().exits - before, 3, "512 large pages, 253 at a time");
    fake.assert_correct();
}

#[test]
fn small_pages_where_the_host_has_no_large_one() {
    let (fake, pages) = (fake(), pages());
    let mut snp = ready(&fake, &pages, |host| host.large = Box::new(|page| page == 4 * MIB));
    snp.accept(range(2 * MIB, 8 * MIB)).expect("accept");
    assert_eq!(fake.0.borrow().large_validations, 1);
    assert!((2 * MIB..8 * MIB).step_by(4096).all(|page| fake.valid(page)));
    snp.share(range(2 * MIB, 8 * MIB)).expect("share");
    assert!((2 * MIB..8 * MIB).step_by(4096).all(|page| !fake.valid(page) && !fake.assigned(page)));
    fake.assert_correct();
}

#[test]
fn another_platform_is_refused() {
    let (fake, pages) = (fake(), pages());
    let other = BootBlock { platform: PlatformKind::Tdx, ..block() };
    assert_eq!(snp(&fake, &pages).init(&other), Err(PlatformError::PlatformMismatch));
    assert_eq!(fake.0.borrow().exits, 0, "before the host is asked anything");
}

#[test]
fn sev_status_is_checked() {
    assert_eq!(begin(|host| host.status = 0), Err(Error::NotSnp(0)));
    assert_eq!(begin(|host| host.status = 0b011), Err(Error::NotSnp(0b011)));
    for bit in [3, 4, 5, 6, 10, 12, 13, 14, 15, 16, 18, 23, 40, 63] {
        assert_eq!(
            begin(move |host| host.status |= 1 << bit),
            Err(Error::SevFeatures(1 << bit)),
            "bit {bit}"
        );
    }
    assert_eq!(begin(|host| host.status |= STATUS_HARMLESS), Ok(()));
}

#[test]
fn protocol_version_is_checked() {
    let versions = |max: u64, min: u64| max << 48 | min << 32 | 51 << 24 | 1;
    assert_eq!(begin(msr_lie(2, versions(1, 1))), Err(Error::Protocol { min: 1, max: 1 }));
    assert_eq!(begin(msr_lie(2, versions(9, 3))), Err(Error::Protocol { min: 3, max: 9 }));
    assert_eq!(begin(msr_lie(2, versions(1, 3))), Err(Error::Protocol { min: 3, max: 1 }));
    assert_eq!(begin(msr_lie(2, 2 << 48 | 1 << 32 | 47 << 24 | 1)), Err(Error::CBit(47)));
}

#[test]
fn each_wrong_answer_to_an_msr_request_is_refused() {
    let answers = [(0x002, 0x001), (0x012, 0x013), (0x014, 0x015), (0x080, 0x081)];
    for (request, expected) in answers {
        for code in (0..0x200).filter(|code| *code != u64::from(expected)) {
            let value = 0b11 << 12 | code;
            assert_eq!(
                begin(msr_lie(request, value)),
                Err(Error::MsrResponse { expected, value }),
                "{request:#x}"
            );
        }
    }
}

#[test]
fn features_and_registration_are_checked() {
    assert_eq!(begin(msr_lie(0x080, 0b10 << 12 | 0x081)), Err(Error::HypervisorFeatures(0b10)));
    assert_eq!(begin(msr_lie(0x012, 0x66_0000 | 0x013)), Err(Error::GhcbAddress(0x66_0000)));
    assert_eq!(begin(msr_lie(0x014, 7 << 32 | 0x015)), Err(Error::PageStateMsr(7)));
    assert_eq!(begin(msr_lie(0x014, 1 << 12 | 0x015)), Err(Error::PageStateMsr(0)), "reserved bits");
}

#[test]
fn privilege_level_is_checked() {
    assert_eq!(begin(|host| host.vmpl = 1), Err(Error::NotVmpl0(2)));
}

#[test]
fn forged_pages_are_refused_before_the_host_is_asked() {
    let fake = fake();
    let mut forged = pages();
    forged.cpuid[0] = 200;
    assert_eq!(snp(&fake, &forged).begin(&block()), Err(Error::Cpuid(CpuidRefusal::Count(200))));
    let mut forged = pages();
    forged.secrets[0] = 0;
    assert_eq!(snp(&fake, &forged).begin(&block()), Err(Error::Secrets(SecretsRefusal::Version(0))));
    let pages = pages();
    let other_bit = BootBlock { memory_bit: 47, ..block() };
    assert_eq!(snp(&fake, &pages).init(&other_bit), Err(PlatformError::MemoryBitMismatch));
    assert_eq!(fake.0.borrow().exits, 0);
}

#[test]
fn ap_creation_must_be_offered_when_it_is_needed() {
    let (fake, pages) = (fake(), pages());
    fake.host(msr_lie(0x080, 0b01 << 12 | 0x081));
    let mut snp = snp(&fake, &pages);
    snp.init(&block()).expect("init");
    assert_eq!(snp.prepare_aps(1), Ok(()));
    assert_eq!(snp.prepare_aps(2), Err(PlatformError::ApStart));
}

#[test]
fn nothing_is_accepted_twice() {
    let (fake, pages) = (fake(), pages());
    let mut snp = ready(&fake, &pages, |_| ());
    snp.accept(range(16 * MIB, 18 * MIB)).expect("first");
    let exits = fake.0.borrow().exits;
    for again in
        [range(16 * MIB, 18 * MIB), range(17 * MIB, 19 * MIB), range(layout::CPUID, layout::BOOT_BLOCK)]
    {
        assert_eq!(snp.make_private(again), Err(Error::Book(BookError::AlreadyPrivate)));
    }
    assert_eq!(snp.make_private(range(GHCB, GHCB + 4096)), Err(Error::Range(GHCB)));
    assert_eq!(snp.make_shared(range(32 * MIB, 34 * MIB)), Err(Error::Book(BookError::NotPrivate)));
    assert_eq!(snp.make_private(range(4096 * MIB, 4098 * MIB)), Err(Error::Range(4096 * MIB)), "not mapped");
    assert_eq!(fake.0.borrow().exits, exits, "the host was not asked");
    fake.assert_correct();
}

#[test]
fn a_page_that_was_valid_already_is_fatal() {
    let (fake, pages) = (fake(), pages());
    let mut snp = ready(&fake, &pages, |host| host.replay = Box::new(|page| page == 17 * MIB + 4096));
    assert_eq!(snp.make_private(range(16 * MIB, 20 * MIB)), Err(Error::DoubleValidation(16 * MIB)));
    let fake = self::fake();
    let mut snp = ready(&fake, &pages, |_| ());
    fake.host(|host| {
        host.large = Box::new(|_| false);
        host.replay = Box::new(|page| page == 33 * MIB);
    });
    assert_eq!(snp.accept(range(32 * MIB, 36 * MIB)), Err(PlatformError::AlreadyValidated));
    assert!(!fake.valid(33 * MIB + 4096), "nothing after it was validated");
}

fn accept_under(exit: impl FnMut(Exit, &mut Exit) + 'static) -> Result<(), Error> {
    let (fake, pages) = (fake(), pages());
    let mut snp = ready(&fake, &pages, |host| host.exit = Box::new(exit));
    let result = snp.make_private(range(16 * MIB, 20 * MIB));
    if result.is_err() {
        assert!(!fake.valid(16 * MIB), "no page is validated after a refused answer");
    }
    fake.assert_correct();
    result
}

#[test]
fn the_answer_to_a_page_state_change_is_checked() {
    assert_eq!(accept_under(|_, _| ()), Ok(()));
    for info1 in [1, 2, 3, 0xFFFF_FFFF] {
        let expected = Error::GhcbExit { info1, info2: 0 };
        assert_eq!(accept_under(move |_, answer| answer.info1 = info1), Err(expected));
    }
    assert_eq!(accept_under(|_, answer| answer.info2 = 1 << 32), Err(Error::PageState(1 << 32)));
    assert_eq!(accept_under(|_, answer| answer.info2 = 1), Err(Error::PageState(1)));
}

#[test]
fn the_cursor_of_a_page_state_change_is_checked() {
    let header = |header: u64| move |_: Exit, answer: &mut Exit| answer.header = header;
    // Two entries: end is 1, done is 2.
    assert_eq!(accept_under(header(1 << 16 | 3)), Err(Error::PageStateCursor(1 << 16 | 3)), "beyond the end");
    assert_eq!(accept_under(header(2)), Err(Error::PageStateCursor(2)), "another end");
    assert_eq!(accept_under(header(5 << 16 | 2)), Err(Error::PageStateCursor(5 << 16 | 2)));
    let reserved = 1 << 32 | 1 << 16 | 2;
    assert_eq!(accept_under(header(reserved)), Err(Error::PageStateCursor(reserved)), "reserved");
    let back = Cell::new(1);
    let backwards = move |_: Exit, answer: &mut Exit| answer.header = 1 << 16 | back.replace(0);
    assert_eq!(accept_under(backwards), Err(Error::PageStateCursor(1 << 16)), "backwards");
    assert_eq!(accept_under(header(1 << 16)), Err(Error::PageStateStalled), "never comes to an end");
}

#[test]
fn a_host_that_does_it_bit_by_bit_is_served() {
    let (fake, pages) = (fake(), pages());
    let mut snp = ready(&fake, &pages, |host| host.at_a_time = 1);
    snp.accept(range(16 * MIB, 16 * MIB + 300 * 4096)).expect("accept");
    fake.assert_correct();
}

#[test]
fn sharing_tells_apart_who_failed() {
    let (fake, pages) = (fake(), pages());
    let mut snp = ready(&fake, &pages, |_| ());
    snp.accept(range(16 * MIB, 18 * MIB)).expect("accept");
    fake.host(|host| host.exit = Box::new(|_, answer| answer.info2 = 9));
    assert_eq!(snp.share(range(16 * MIB, 18 * MIB)), Err(PlatformError::ShareFailed));
    assert_eq!(snp.accept(range(18 * MIB, 20 * MIB)), Err(PlatformError::AcceptFailed));
}

#[test]
fn nothing_works_before_init_or_after_leave() {
    let (fake, pages) = (fake(), pages());
    let mut snp = snp(&fake, &pages);
    assert_eq!(snp.make_private(range(16 * MIB, 18 * MIB)), Err(Error::NotReady));
    assert_eq!(snp.prepare_aps(1), Err(PlatformError::ValidationFailed));
    assert_eq!(snp.cpuid(0, 0).eax, 0);
    snp.init(&block()).expect("init");
    snp.leave().expect("leave");
    assert_eq!(snp.make_private(range(16 * MIB, 18 * MIB)), Err(Error::NotReady));
    assert_eq!(snp.close_ghcb(), Err(Error::NotReady));
    fake.assert_correct();
}

#[test]
fn the_ghcb_page_lies_in_working_memory() {
    let (fake, pages) = (fake(), pages());
    let new =
        |ghcb| Snp::new(&fake, &pages.cpuid, &pages.secrets, range(WORKING.0, WORKING.1), ghcb).map(drop);
    assert_eq!(new(range(16 * MIB, 16 * MIB + 4096)), Err(Error::Range(16 * MIB)));
    assert_eq!(new(range(GHCB, GHCB + 8192)), Err(Error::Range(GHCB)));
}

#[test]
fn a_termination_carries_number_and_set_and_never_returns() {
    let (fake, pages) = (fake(), pages());
    let seen = Rc::new(Cell::new(0));
    let note = Rc::clone(&seen);
    fake.host(|host| {
        host.msr = Box::new(move |request, honest| {
            note.set(request);
            honest
        });
    });
    let snp = snp(&fake, &pages);
    let halted = catch_unwind(AssertUnwindSafe(|| snp.terminate(Termination::KernelHash)));
    assert!(halted.is_err(), "only the fake's halt ends it");
    assert_eq!(seen.get(), 0x20 << 16 | 0x2 << 12 | 0x100);
}

#[test]
fn an_ap_starts_from_a_page_that_the_guest_made() {
    let (fake, pages) = (fake(), pages());
    let snp = ready(&fake, &pages, |_| ());
    let ghcb = snp.host_page().expect("ready");
    let state = ap::ApState { entry: 0x10_0000, sev_features: 1, signature: 0x00A0_0F11 };
    ap::create(&fake, &ghcb, 3, 0x12_1000, &state).expect("AP");
    assert_eq!(fake.0.borrow().aps, [(3 << 32 | 1, 0x12_1000, 1)]);
    let word = |offset: u64| fake.0.borrow().private.get(&(0x12_1000 + offset)).copied();
    assert_eq!(word(0x178), Some(0x10_0000), "RIP");
    assert_eq!(word(0x10), Some(0xFFFF_FFFF_0C9B_0008), "CS");
    assert_eq!(word(0x158), Some(0x11), "CR0 without paging");
    assert_eq!(word(0x150), Some(0), "CR3");
    assert_eq!(word(0x3B0), Some(1), "SEV features");
    fake.assert_correct();
}

#[test]
fn an_ap_that_does_not_start_leaves_no_state_page() {
    let (fake, pages) = (fake(), pages());
    let state = ap::ApState { entry: 0x10_0000, sev_features: 1, signature: 0 };
    let snp =
        ready(&fake, &pages, |host| host.exit = Box::new(|_, answer| (answer.info1, answer.info2) = (2, 5)));
    let ghcb = snp.host_page().expect("ready");
    let refused = ap::create(&fake, &ghcb, 3, 0x12_1000, &state);
    assert_eq!(refused, Err(Error::GhcbExit { info1: 2, info2: 5 }));
    assert!(!fake.0.borrow().rmp[&0x12_1000].vmsa);
    assert_eq!(ap::create(&fake, &ghcb, 3, 0x12_1001, &state), Err(Error::Range(0x12_1001)));
    assert_eq!(ap::create(&fake, &ghcb, 3, 2 * MIB, &state), Err(Error::Range(2 * MIB)));
    fake.host(|host| host.vmpl = 1);
    assert_eq!(ap::create(&fake, &ghcb, 3, 0x12_1000, &state), Err(Error::Rmpadjust(2)));
}

/// Under any mixture of lies, stage0 either does what it was asked or says that it did not, and never does what the
/// processor's notes call wrong.
#[test]
fn no_host_makes_stage0_do_what_it_must_not() {
    for seed in 0..400 {
        let (fake, pages) = (fake(), pages());
        let mut random = Random::new(seed);
        let (mut lies, odds) = (Random::new(seed + 9999), 2 + random.below(30));
        let at_a_time = 1 + random.below(253);
        let mut sizes = Random::new(seed + 777);
        let mut snp = ready(&fake, &pages, |host| {
            host.at_a_time = at_a_time;
            host.large = Box::new(move |_| sizes.below(3) > 0);
            host.exit = Box::new(move |_, answer| {
                if lies.below(odds) == 0 {
                    let word = 1 << lies.below(64);
                    match lies.below(3) {
                        0 => answer.info1 ^= word,
                        1 => answer.info2 ^= word,
                        _ => answer.header ^= word,
                    }
                }
            });
        });
        for _ in 0..20 {
            let start = 16 * MIB + random.below(2048) * 4096;
            let range = range(start, start + 4096 * (1 + random.below(1200)));
            let private = random.below(2) == 0;
            let result = if private { snp.make_private(range) } else { snp.make_shared(range) };
            match result {
                Ok(()) => {
                    let pages = (range.start()..range.end()).step_by(4096);
                    pages.for_each(|page| assert_eq!(fake.valid(page), private, "{page:#x}"));
                }
                Err(Error::Book(_)) => {}
                // The boot ends at the first refusal.
                Err(_) => break,
            }
        }
        fake.assert_correct();
    }
}
