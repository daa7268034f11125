//! The platform with real machines: guest code of a few bytes. Nothing is tried where the host cannot run them, unless `KATA_CC_SENTRY_KVM` says that
//! it must.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::machine::LEAST_CHUNKS;
use super::*;
use crate::platform::tests::{CALLS, DATA, TEXT, give_code, guest, of_every_platform};

static PLATFORM: LazyLock<Option<Kvm>> = LazyLock::new(of_its_own);

/// One that nobody else has.
fn of_its_own() -> Option<Kvm> {
    let made = Kvm::new();
    let must = std::env::var_os("KATA_CC_SENTRY_KVM").is_some();
    if must { Some(made.unwrap()) } else { made.ok() }
}

/// Those of every platform.
macro_rules! where_it_runs {
    ($($name:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                if let Some(platform) = &*PLATFORM {
                    crate::platform::tests::$name(platform);
                }
            }
        )+
    };
}

of_every_platform!(where_it_runs);

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// `mov (%rdi), %eax; syscall`
const LOAD: &[u8] = &[0x8b, 0x07, 0x0f, 0x05];

/// `mov %eax, (%rdi); syscall`
const STORE: &[u8] = &[0x89, 0x07, 0x0f, 0x05];

const ELSEWHERE: u64 = 0x7000_0000;

/// Runs the guest's code once more, with this address.
fn again(thread: &mut dyn Thread, address: u64) -> Trap {
    (thread.regs().rip, thread.regs().rdi, thread.regs().rax) = (TEXT, address, 5);
    thread.resume()
}

fn map(thread: &mut dyn Thread, address: u64, length: u64, protection: i32, flags: i32) {
    let call = MemoryCall::Map { address, length, protection, flags, file: None };
    assert_eq!(thread.change_memory(&call), Ok(address));
}

/// Signal, code and address.
fn fault(trap: Trap) -> (i32, i32, u64) {
    let Trap::Fault { signal, code, address, .. } = trap else { panic!("{trap:?}") };
    (signal, code, address)
}

#[test]
fn what_was_taken_away_is_missed() {
    let Some(platform) = &*PLATFORM else { return };
    let mut thread = guest(platform, STORE);
    map(&mut *thread, ELSEWHERE, 0x3000, READ_WRITE, libc::MAP_PRIVATE);
    let at = ELSEWHERE + 0x1010;
    assert_eq!(again(&mut *thread, at), Trap::Syscall { number: 5 });
    let protect = MemoryCall::Protect { address: ELSEWHERE, length: 0x3000, protection: libc::PROT_READ };
    assert_eq!(thread.change_memory(&protect), Ok(0));
    assert_eq!(fault(again(&mut *thread, at)), (libc::SIGSEGV, 2, at));
    let unmap = MemoryCall::Unmap { address: ELSEWHERE, length: 0x3000 };
    assert_eq!(thread.change_memory(&unmap), Ok(0));
    assert_eq!(fault(again(&mut *thread, at)), (libc::SIGSEGV, 1, at));
    // And what comes in its place is there.
    map(&mut *thread, ELSEWHERE, 0x3000, READ_WRITE, libc::MAP_PRIVATE);
    assert_eq!(again(&mut *thread, at), Trap::Syscall { number: 5 });
    let mut word = [0; 4];
    assert_eq!(thread.read(at, &mut word), 4);
    assert_eq!(word, 5_u32.to_le_bytes());
}

#[test]
fn what_may_not_be_run_any_more_is_not() {
    let Some(platform) = &*PLATFORM else { return };
    let mut thread = guest(platform, CALLS);
    let mut other = thread.spawn().unwrap();
    assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
    assert_eq!(other.resume(), Trap::Syscall { number: 39 });
    let protect = MemoryCall::Protect { address: TEXT, length: 0x1000, protection: READ_WRITE };
    assert_eq!(thread.change_memory(&protect), Ok(0));
    for thread in [thread, other] {
        let mut thread = thread;
        assert_eq!(fault(thread.resume()), (libc::SIGSEGV, 2, TEXT + 7));
    }
}

#[test]
fn a_thread_that_runs_learns_that_pages_may_not_be_run() {
    let Some(platform) = &*PLATFORM else { return };
    let mut thread = guest(platform, &[0xeb, 0xfe]);
    let mut other = thread.spawn().unwrap();
    let running = std::thread::spawn(move || other.resume());
    std::thread::sleep(std::time::Duration::from_millis(500));
    let protect = MemoryCall::Protect { address: TEXT, length: 0x1000, protection: READ_WRITE };
    assert_eq!(thread.change_memory(&protect), Ok(0));
    assert_eq!(fault(running.join().unwrap()), (libc::SIGSEGV, 2, TEXT));
}

#[test]
fn a_file_ends_where_it_ends() {
    let Some(platform) = &*PLATFORM else { return };
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x2000).unwrap();
    let mut thread = guest(platform, LOAD);
    let call = MemoryCall::Map {
        address: ELSEWHERE,
        length: 0x3000,
        protection: READ_WRITE,
        flags: libc::MAP_SHARED,
        file: Some((file.as_fd(), 0)),
    };
    assert_eq!(thread.change_memory(&call), Ok(ELSEWHERE));
    assert_eq!(again(&mut *thread, ELSEWHERE + 0x1000), Trap::Syscall { number: 0 });
    assert_eq!(fault(again(&mut *thread, ELSEWHERE + 0x2000)), (libc::SIGBUS, 2, ELSEWHERE + 0x2000));
    file.set_len(0x1000).unwrap();
    assert_eq!(fault(again(&mut *thread, ELSEWHERE + 0x1000)), (libc::SIGBUS, 2, ELSEWHERE + 0x1000));
    assert_eq!(again(&mut *thread, ELSEWHERE), Trap::Syscall { number: 0 });
}

#[test]
fn a_stack_grows() {
    let Some(platform) = &*PLATFORM else { return };
    let mut thread = guest(platform, STORE);
    let flags = libc::MAP_PRIVATE | libc::MAP_GROWSDOWN;
    map(&mut *thread, ELSEWHERE, 0x1000, READ_WRITE, flags);
    for page in 0..4 {
        let at = ELSEWHERE - page * 0x1000;
        assert_eq!(again(&mut *thread, at), Trap::Syscall { number: 5 });
    }
    assert_eq!(fault(again(&mut *thread, DATA + 0x1000)), (libc::SIGSEGV, 1, DATA + 0x1000));
}

#[test]
fn whole_regions_are_there_at_once() {
    let Some(platform) = &*PLATFORM else { return };
    let mut thread = guest(platform, STORE);
    map(&mut *thread, ELSEWHERE, 8 << 20, READ_WRITE, libc::MAP_PRIVATE);
    for page in (0..8 << 20).step_by(0x5_5000) {
        assert_eq!(again(&mut *thread, ELSEWHERE + page), Trap::Syscall { number: 5 });
    }
    // A page of one has another protection now.
    let protect = MemoryCall::Protect { address: ELSEWHERE + (4 << 20), length: 0x1000, protection: 0 };
    assert_eq!(thread.change_memory(&protect), Ok(0));
    let at = ELSEWHERE + (4 << 20) + 8;
    assert_eq!(fault(again(&mut *thread, at)), (libc::SIGSEGV, 2, at));
    assert_eq!(again(&mut *thread, at + 0x1000), Trap::Syscall { number: 5 });
}

#[test]
fn the_shims_memory_is_not_the_guests() {
    let Some(platform) = &*PLATFORM else { return };
    let mut thread = guest(platform, LOAD);
    for place in [layout::CODE, layout::CONTEXTS + 0xe000, layout::CONTEXTS + 0xd000, u64::MAX - 7] {
        assert_eq!(fault(again(&mut *thread, place)).0, libc::SIGSEGV, "{place:#x}");
    }
    // hlt; cli; mov %cr3, %rax; lgdt (%rdi); wrmsr
    let privileged: [&[u8]; 5] = [&[0xf4], &[0xfa], &[0x0f, 0x20, 0xd8], &[0x0f, 0x01, 0x17], &[0x0f, 0x30]];
    for code in privileged {
        assert_eq!(thread.write(TEXT, code), code.len());
        assert_eq!(fault(again(&mut *thread, DATA)), (libc::SIGSEGV, libc::SI_KERNEL, 0), "{code:x?}");
    }
    // int $32; under `kvm_pvm` it is no instruction.
    assert_eq!(thread.write(TEXT, &[0xcd, 32]), 2);
    assert!(matches!(fault(again(&mut *thread, DATA)).0, libc::SIGSEGV | libc::SIGILL));
}

/// Addresses that a page table of each level has at the same place, a gigabyte apart, hold what was stored there and nothing else, also when
/// tables were thrown away and the same were used in another order: a host with tables of its own must hear of it.
#[test]
fn tables_that_were_thrown_away_lead_nowhere() {
    let Some(platform) = &*PLATFORM else { return };
    let mut thread = guest(platform, STORE);
    map(&mut *thread, ELSEWHERE, 0x1000, READ_WRITE | libc::PROT_EXEC, libc::MAP_PRIVATE);
    let places: Vec<_> = (3..9).map(|gigabyte| (gigabyte << 30) + 0x1000).collect();
    for place in &places {
        map(&mut *thread, *place, 0x1000, READ_WRITE, libc::MAP_PRIVATE);
    }
    for round in 0..4 {
        // Another order each time.
        for n in 0..places.len() {
            let n = (n * 5 + round) % places.len();
            (thread.regs().rip, thread.regs().rdi, thread.regs().rax) =
                (TEXT, places[n], (100 * round + n) as u64);
            assert_eq!(thread.resume(), Trap::Syscall { number: (100 * round + n) as u64 });
        }
        for (n, place) in places.iter().enumerate() {
            let mut word = [0; 4];
            assert_eq!(thread.read(*place, &mut word), 4);
            assert_eq!(u32::from_le_bytes(word), (100 * round + n) as u32, "{round} {place:#x}");
        }
        for protection in [READ_WRITE, READ_WRITE | libc::PROT_EXEC] {
            let protect = MemoryCall::Protect { address: ELSEWHERE, length: 0x1000, protection };
            assert_eq!(thread.change_memory(&protect), Ok(0));
        }
    }
}

#[test]
fn gigabytes_take_turns_for_slots() {
    let Some(platform) = &*PLATFORM else { return };
    let most = platform.host.most_chunks();
    assert!((LEAST_CHUNKS..=512).contains(&most), "{most}");
    let mut thread = platform.address_space().unwrap();
    give_code(&mut thread, STORE);
    let places: Vec<_> = (1..most + 8).map(|gigabyte| gigabyte << 30).collect();
    for place in &places {
        map(&mut thread, *place, 0x1000, READ_WRITE, libc::MAP_PRIVATE);
    }
    for place in places.iter().chain(places.iter().rev()) {
        let number = place >> 30;
        (thread.regs().rip, thread.regs().rdi, thread.regs().rax) = (TEXT, *place, number);
        assert_eq!(thread.resume(), Trap::Syscall { number });
        assert!(thread.machine.chunks() as u64 <= most, "{}", thread.machine.chunks());
    }
    for place in places {
        let mut word = [0; 4];
        assert_eq!(thread.read(place, &mut word), 4);
        assert_eq!(u64::from(u32::from_le_bytes(word)), place >> 30);
    }
}

#[test]
fn where_the_host_has_no_slot_the_guest_gets_a_signal() {
    let Some(mut platform) = of_its_own() else { return };
    Arc::get_mut(&mut platform.host).unwrap().set_chunks(1);
    let mut thread = platform.address_space().unwrap();
    give_code(&mut thread, LOAD);
    map(&mut thread, ELSEWHERE, 0x1000, READ_WRITE, libc::MAP_PRIVATE);
    assert_eq!(again(&mut thread, DATA), Trap::Syscall { number: 0 });
    for _ in 0..3 {
        assert_eq!(fault(again(&mut thread, ELSEWHERE + 8)), (libc::SIGBUS, 2, ELSEWHERE + 8));
    }
    // It goes on with what it has.
    assert_eq!(again(&mut thread, DATA), Trap::Syscall { number: 0 });
}

/// Counts what is told.
struct Counter(Arc<AtomicUsize>);

impl tracing::Subscriber for Counter {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn machines_that_break_are_told_of_once() {
    let Some(platform) = of_its_own() else { return };
    let told = Arc::new(AtomicUsize::new(0));
    tracing::subscriber::with_default(Counter(Arc::clone(&told)), || {
        for _ in 0..5 {
            let mut thread = platform.address_space().unwrap();
            give_code(&mut thread, CALLS);
            assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
            let (processor, _) = thread.machine.processor(&thread.stub).unwrap();
            thread.stub.call(libc::SYS_close, [processor, 0, 0, 0, 0, 0]).unwrap();
            assert_eq!(thread.resume(), Trap::Gone);
        }
    });
    assert_eq!(told.load(Ordering::SeqCst), 1);
}

#[test]
fn the_base_of_gs_is_the_childrens_too() {
    // wrgsbase %rdi; syscall; rdgsbase %rax; syscall
    const CODE: &[u8] = &[0xf3, 0x48, 0x0f, 0xae, 0xdf, 0x0f, 0x05, 0xf3, 0x48, 0x0f, 0xae, 0xc8, 0x0f, 0x05];
    let Some(platform) = &*PLATFORM else { return };
    let mut thread = guest(platform, CODE);
    let none = thread.spawn().unwrap();
    (thread.regs().rdi, thread.regs().rax) = (0x1234_5000, 1);
    assert_eq!(thread.resume(), Trap::Syscall { number: 1 });
    let mut sibling = thread.spawn().unwrap();
    let grandchild = sibling.spawn().unwrap();
    let child = thread.fork().unwrap();
    for mut one in [thread, sibling, grandchild, child] {
        assert_eq!(one.resume(), Trap::Syscall { number: 0x1234_5000 });
    }
    // One that was there before, whatever thread had its context.
    let mut none = none;
    none.regs().rip = TEXT + 7;
    assert_eq!(none.resume(), Trap::Syscall { number: 0 });
}
