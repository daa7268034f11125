//! What every platform does, with real guest code of a few bytes.

use std::os::fd::AsFd;
use std::time::Duration;

use super::{MemoryCall, Platform, Thread, Trap};
use crate::error::Errno;

pub(super) const TEXT: u64 = 0x40_0000;
pub(super) const DATA: u64 = 0x50_0000;
const RWX: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;

/// First addresses that a guest does not have, and some of a stub's own.
const CODE: u64 = super::systrap::layout::CODE;
const CONTEXTS: u64 = super::systrap::layout::CONTEXTS;

/// An address space with `code` at `TEXT` and a page of data.
pub(super) fn guest(platform: &dyn Platform, code: &[u8]) -> Box<dyn Thread> {
    let mut thread = platform.new_address_space().unwrap();
    give_code(&mut *thread, code);
    thread
}

pub(super) fn give_code(thread: &mut dyn Thread, code: &[u8]) {
    for address in [TEXT, DATA] {
        let call = MemoryCall::Map {
            address,
            length: 0x1000,
            protection: RWX,
            flags: libc::MAP_PRIVATE,
            file: None,
        };
        assert_eq!(thread.change_memory(&call), Ok(address));
    }
    assert_eq!(thread.write(TEXT, code), code.len());
    thread.regs().rip = TEXT;
    thread.regs().rsp = DATA + 0x1000;
}

/// `mov $39, %eax; syscall; syscall; jmp .`
pub(super) const CALLS: &[u8] = &[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x0f, 0x05, 0xeb, 0xfe];

/// `movq %rdi, %xmm3; mov $39, %eax; syscall; movq %xmm3, %rax; syscall`
const VECTOR: &[u8] =
    &[0x66, 0x48, 0x0f, 0x6e, 0xdf, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x66, 0x48, 0x0f, 0x7e, 0xd8, 0x0f, 0x05];

pub(super) fn a_call_stops_and_goes_on_with_its_value(platform: &dyn Platform) {
    let mut thread = guest(platform, CALLS);
    thread.regs().rdi = 7;
    assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
    assert_eq!(thread.regs().rip, TEXT + 7);
    assert_eq!(thread.regs().arguments()[0], 7);
    thread.regs().rax = 0x1234_5678_9abc;
    assert_eq!(thread.resume(), Trap::Syscall { number: 0x1234_5678_9abc });
    assert_eq!(thread.regs().rip, TEXT + 9);
}

pub(super) fn running_code_is_interrupted(platform: &dyn Platform) {
    let mut thread = guest(platform, &[0xeb, 0xfe]);
    let interrupt = thread.interrupt();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        interrupt.interrupt();
    });
    assert_eq!(thread.resume(), Trap::Interrupted);
    other.join().unwrap();
    assert_eq!(thread.regs().rip, TEXT);
    // Asked before it runs: it does not run.
    thread.interrupt().interrupt();
    assert_eq!(thread.resume(), Trap::Interrupted);
}

pub(super) fn faults_are_told(platform: &dyn Platform) {
    // mov (%rdi), %eax
    let mut thread = guest(platform, &[0x8b, 0x07]);
    thread.regs().rdi = 0x666_000;
    let Trap::Fault { signal, code, address, .. } = thread.resume() else { panic!() };
    assert_eq!((signal, code, address), (libc::SIGSEGV, 1, 0x666_000));
    // A rip that is no address is the guest's fault, not the stub's.
    let mut thread = guest(platform, &[]);
    thread.regs().rip = 0x8000_0000_0000_0000;
    let Trap::Fault { signal, .. } = thread.resume() else { panic!() };
    assert_eq!(signal, libc::SIGSEGV);
    // ud2
    let mut thread = guest(platform, &[0x0f, 0x0b]);
    assert!(matches!(thread.resume(), Trap::Fault { signal: libc::SIGILL, .. }));
}

pub(super) fn memory_is_read_and_written_up_to_where_it_ends(platform: &dyn Platform) {
    let mut thread = guest(platform, CALLS);
    for stopped in [false, true] {
        if stopped {
            assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
        }
        assert_eq!(thread.write(DATA + 0xffe, b"abcd"), 2);
        let mut bytes = [0; 4];
        assert_eq!(thread.read(DATA + 0xffe, &mut bytes), 2);
        assert_eq!(&bytes[..2], b"ab");
        assert_eq!(thread.read(0, &mut bytes), 0);
        assert_eq!(thread.read(u64::MAX - 1, &mut bytes), 0);
        assert_eq!(thread.read(CODE, &mut bytes), 0);
        assert_eq!(thread.write(CONTEXTS, &bytes), 0);
        assert_eq!(thread.remote().write(CODE - 2, &bytes), 0);
        assert_eq!(thread.remote().read(DATA + 0xffe, &mut bytes), 2);
        let mut large = vec![0; 100_000];
        assert_eq!(thread.read(DATA, &mut large), 0x1000);
    }
}

pub(super) fn memory_is_changed_as_the_host_would(platform: &dyn Platform) {
    let mut thread = guest(platform, CALLS);
    let protect = MemoryCall::Protect { address: DATA, length: 0x1000, protection: libc::PROT_READ };
    assert_eq!(thread.change_memory(&protect), Ok(0));
    assert_eq!(thread.write(DATA, b"x"), 0);
    let unmap = MemoryCall::Unmap { address: DATA, length: 0x1000 };
    assert_eq!(thread.change_memory(&unmap), Ok(0));
    assert_eq!(thread.read(DATA, &mut [0]), 0);
    let bad = MemoryCall::Unmap { address: DATA + 1, length: 0x1000 };
    assert_eq!(thread.change_memory(&bad), Err(Errno::EINVAL));
}

pub(super) fn a_file_is_mapped(platform: &dyn Platform) {
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"contents of a file").unwrap();
    let mut thread = guest(platform, CALLS);
    let map = MemoryCall::Map {
        address: 0x70_0000,
        length: 0x1000,
        protection: libc::PROT_READ,
        flags: libc::MAP_PRIVATE,
        file: Some((file.as_fd(), 0)),
    };
    assert_eq!(thread.change_memory(&map), Ok(0x70_0000));
    let mut bytes = [0; 8];
    assert_eq!(thread.read(0x70_0000, &mut bytes), 8);
    assert_eq!(&bytes, b"contents");
}

pub(super) fn words_are_swapped_atomically(platform: &dyn Platform) {
    let mut thread = guest(platform, CALLS);
    assert_eq!(thread.compare_exchange(DATA, 0, 5), Ok(0));
    assert_eq!(thread.compare_exchange(DATA, 0, 6), Ok(5));
    assert_eq!(thread.compare_exchange(0x666_000, 0, 6), Err(Errno::EFAULT));
}

pub(super) fn a_fork_has_memory_and_registers_of_its_own(platform: &dyn Platform) {
    for stopped in [false, true] {
        let mut thread = guest(platform, CALLS);
        if stopped {
            assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
        }
        assert_eq!(thread.write(DATA, b"parent"), 6);
        let mut child = thread.fork().unwrap();
        assert_eq!(child.write(DATA, b"child!"), 6);
        let mut bytes = [0; 6];
        assert_eq!(thread.read(DATA, &mut bytes), 6);
        assert_eq!(&bytes, b"parent");
        assert_eq!(child.regs().rip, thread.regs().rip);
        child.regs().rax = 1;
        let number = if stopped { 1 } else { 39 };
        assert_eq!(child.resume(), Trap::Syscall { number });
        let grandchild = child.fork().unwrap();
        drop(child);
        assert_eq!(grandchild.read(DATA, &mut bytes), 6);
        assert_eq!(&bytes, b"child!");
        thread.regs().rax = 2;
        assert_eq!(thread.resume(), Trap::Syscall { number: if stopped { 2 } else { 39 } });
    }
}

pub(super) fn threads_share_memory(platform: &dyn Platform) {
    let mut thread = guest(platform, CALLS);
    assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
    let mut threads: Vec<_> = (0..8).map(|_| thread.spawn().unwrap()).collect();
    for (n, one) in threads.iter_mut().enumerate() {
        one.regs().rax = n as u64;
        assert_eq!(one.resume(), Trap::Syscall { number: n as u64 });
        assert_eq!(one.write(DATA + n as u64, &[n as u8]), 1);
    }
    let mut bytes = [0; 8];
    assert_eq!(thread.read(DATA, &mut bytes), 8);
    assert_eq!(bytes, [0, 1, 2, 3, 4, 5, 6, 7]);
    threads.clear();
    assert_eq!(thread.read(DATA, &mut bytes), 8);
}

pub(super) fn vector_registers_live_through_calls_forks_and_threads(platform: &dyn Platform) {
    let mut thread = guest(platform, VECTOR);
    thread.regs().rdi = 0xabcd;
    assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
    let state = thread.vector_state().unwrap();
    // xmm3 in the form of FXSAVE.
    assert_eq!(state[160 + 48..160 + 50], [0xcd, 0xab]);
    let mut child = thread.fork().unwrap();
    let mut sibling = thread.spawn().unwrap();
    let mut other = state.clone();
    other[160 + 48] = 0x11;
    sibling.set_vector_state(&other).unwrap();
    assert_eq!(child.resume(), Trap::Syscall { number: 0xabcd });
    assert_eq!(sibling.resume(), Trap::Syscall { number: 0xab11 });
    thread.set_vector_state(&other).unwrap();
    assert_eq!(thread.resume(), Trap::Syscall { number: 0xab11 });
    assert_eq!(sibling.vector_state().unwrap()[160 + 48], 0x11);
}

pub(super) fn thread_local_storage_has_its_base(platform: &dyn Platform) {
    // mov %fs:8, %rax; syscall
    let mut thread = guest(platform, &[0x64, 0x48, 0x8b, 0x04, 0x25, 8, 0, 0, 0, 0x0f, 0x05]);
    assert_eq!(thread.write(DATA + 8, &77_u64.to_le_bytes()), 8);
    *thread.fs_base() = DATA;
    assert_eq!(thread.resume(), Trap::Syscall { number: 77 });
    assert_eq!(*thread.fs_base(), DATA);
    assert_eq!(*thread.spawn().unwrap().fs_base(), DATA);
}

pub(super) fn one_instruction_is_run(platform: &dyn Platform) {
    // nop; mov (%rdi), %ebx; mov $39, %eax; syscall; nop
    let code = [0x90, 0x8b, 0x1f, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x90];
    let mut thread = guest(platform, &code);
    thread.regs().rdi = DATA;
    assert_eq!(thread.write(DATA, &[7]), 1);
    let mut step = |behind: u64| {
        let trap = thread.step();
        assert_eq!((thread.regs().rip, thread.regs().eflags & 0x100), (TEXT + behind, 0), "{trap:?}");
        trap
    };
    for behind in [1, 3, 8] {
        assert!(matches!(step(behind), Trap::Fault { signal: libc::SIGTRAP, code: 2, .. }), "{behind}");
    }
    assert_eq!(step(10), Trap::Syscall { number: 39 });
    assert!(matches!(step(11), Trap::Fault { signal: libc::SIGTRAP, code: 2, .. }));
    assert_eq!(thread.regs().rbx, 7);
    // As one goes on, all of it is run.
    thread.regs().rip = TEXT;
    assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
    // What faults has not been run.
    (thread.regs().rip, thread.regs().rdi) = (TEXT + 1, 0x666_000);
    assert!(matches!(thread.step(), Trap::Fault { signal: libc::SIGSEGV, address: 0x666_000, .. }));
    assert_eq!((thread.regs().rip, thread.regs().eflags & 0x100), (TEXT + 1, 0));
    // Who is stopped before runs nothing.
    thread.interrupt().interrupt();
    assert_eq!((thread.step(), thread.regs().rip), (Trap::Interrupted, TEXT + 1));
}

pub(super) fn the_hosts_vdso_is_there_and_its_calls_are_the_guests(platform: &dyn Platform) {
    let host = platform.host_vdso().unwrap();
    let code = host.code();
    // Not where the sentry has its own, which says something of its stack.
    assert_eq!(host.range().start, super::host_vdso::PLACE, "the host does not let it be moved");
    let thread = guest(platform, CALLS);
    let mut magic = [0; 4];
    // Not through the thread's own memory, which is the guest's range: by the guest's code.
    assert_eq!(thread.read(code.start, &mut magic), 0);
    // mov (%rdi), %eax; syscall
    let mut thread = guest(platform, &[0x8b, 0x07, 0x0f, 0x05]);
    thread.regs().rdi = code.start;
    assert_eq!(thread.resume(), Trap::Syscall { number: u64::from(u32::from_le_bytes(*b"\x7fELF")) });
    assert_eq!(thread.called_from(), TEXT + 4);
    // It shows the time: call *%rdx; syscall
    let mut thread = guest(platform, &[0xff, 0xd2, 0x0f, 0x05]);
    let [clock] = host.functions(["__vdso_clock_gettime"]);
    *thread.regs() = super::Regs { rdi: 1, rsi: DATA, rdx: clock.unwrap(), rip: TEXT, ..*thread.regs() };
    assert_eq!(thread.resume(), Trap::Syscall { number: 0 });
    let mut bytes = [0; 8];
    assert_eq!(thread.read(DATA, &mut bytes), 8);
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    assert!((0..60).contains(&(now.tv_sec() - i64::from_le_bytes(bytes))));
    // A call out of it is told to be from there, also after all registers were looked at.
    let place = host.bytes().windows(2).position(|two| two == [0x0f, 0x05]).unwrap() as u64 + code.start;
    for all in [false, true] {
        let mut thread = guest(platform, &[]);
        (thread.regs().rip, thread.regs().rax) = (place, 228);
        assert_eq!(thread.resume(), Trap::Syscall { number: 228 });
        if all {
            thread.forget_early();
        }
        assert_eq!(thread.called_from(), place + 2);
    }
}

/// Hands the names of the tests above to the macro `each`, behind what else it is to get.
macro_rules! of_every_platform {
    ($each:ident $($with:tt)*) => {
        $each!($($with)*
            a_call_stops_and_goes_on_with_its_value,
            running_code_is_interrupted,
            faults_are_told,
            memory_is_read_and_written_up_to_where_it_ends,
            memory_is_changed_as_the_host_would,
            a_file_is_mapped,
            words_are_swapped_atomically,
            a_fork_has_memory_and_registers_of_its_own,
            threads_share_memory,
            vector_registers_live_through_calls_forks_and_threads,
            thread_local_storage_has_its_base,
            one_instruction_is_run,
            the_hosts_vdso_is_there_and_its_calls_are_the_guests);
    };
}
pub(super) use of_every_platform;

/// All of these for one platform: an expression of type `&dyn Platform`.
macro_rules! for_platform {
    ($platform:expr) => {
        $crate::platform::tests::of_every_platform!(for_platform $platform =>);
    };
    ($platform:expr => $($name:ident),+) => {
        $(
            #[test]
            fn $name() {
                $crate::platform::tests::$name($platform);
            }
        )+
    };
}
pub(super) use for_platform;
