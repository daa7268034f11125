//! The platform with real stubs: guest code of a few bytes.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;
use std::time::Duration;

use super::remote::Process;
use super::*;
use crate::platform::tests::{CALLS, DATA, TEXT, for_platform, give_code};
use crate::platform::{Memory, MemoryCall, Regs, Trap};

/// One for all tests: each is a copy of the test program that waits.
pub(super) static PLATFORM: LazyLock<Systrap> = LazyLock::new(|| Systrap::new().unwrap());

for_platform!(&*PLATFORM);

/// An address space with `code` at `TEXT` and a page of data.
fn guest(code: &[u8]) -> Box<dyn Thread> {
    crate::platform::tests::guest(&*PLATFORM, code)
}

/// `1: movq %rdi, %xmm3; mov $39, %eax; syscall; movq %xmm3, %rsi; jmp 1b`
const LOOP: &[u8] =
    &[0x66, 0x48, 0x0f, 0x6e, 0xdf, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x66, 0x48, 0x0f, 0x7e, 0xde, 0xeb, 0xed];

/// A guest whose call has been replaced.
fn replaced() -> Box<dyn Thread> {
    let mut thread = guest(LOOP);
    let protect = MemoryCall::Protect { address: TEXT, length: 0x1000, protection: RX };
    thread.change_memory(&protect).unwrap();
    let mut places = Vec::new();
    for _ in 0..2 * patch::HITS {
        assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
        if let Some(place) = thread.replaceable() {
            thread.replace(RX).unwrap();
            places.push(place);
        }
    }
    assert_eq!(places, [TEXT + 5]);
    // No flag of the guest's may stop the stub itself: trap, nested task, interrupts off.
    thread.regs().eflags = 0x100 | 0x4000;
    assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
    thread
}

pub(super) const RX: i32 = libc::PROT_READ | libc::PROT_EXEC;

#[test]
fn a_replaced_call_is_the_same_call() {
    let mut thread = replaced();
    let flags = |thread: &mut dyn Thread| thread.regs().eflags & 0xcd5;
    let all = Regs {
        r8: 8,
        r9: 9,
        r10: 10,
        r12: 12,
        r13: 13,
        r14: 14,
        r15: 15,
        rdi: 16,
        rsi: 17,
        rbp: 18,
        rbx: 19,
        rdx: 20,
        rsp: 0x123_4567,
        rip: TEXT,
        eflags: 0x200 | 0x8d5,
        ..Regs::default()
    };
    *thread.regs() = all;
    *thread.fs_base() = DATA;
    assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
    let expected = Regs { rax: 39, rip: TEXT + 12, rcx: TEXT + 12, r11: thread.regs().r11, ..all };
    assert_eq!(flags(&mut *thread), 0x8d5);
    let seen = Regs { eflags: all.eflags, ..*thread.regs() };
    assert_eq!(seen, expected);
    assert_eq!(*thread.fs_base(), DATA);
    assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
    assert_eq!(thread.regs().rsi, 16);
    let mut bytes = [0; 7];
    assert_eq!(thread.read(TEXT + 5, &mut bytes), 7);
    assert_eq!(bytes[..3], [0xff, 0x24, 0x25]);
    assert_eq!(thread.write(TEXT, &[0]), 0);
}

#[test]
fn a_call_is_made_again_where_its_instruction_was() {
    let mut thread = replaced();
    thread.regs().rip -= 2;
    thread.regs().rax = 77;
    assert_eq!(thread.resume(), Trap::Syscall { number: 77 });
    assert_eq!(thread.regs().rip, TEXT + 12);
}

#[test]
fn replaced_calls_live_through_forks_threads_and_signals() {
    let mut thread = replaced();
    thread.regs().rdi = 0x4321;
    let mut child = thread.fork().unwrap();
    let mut sibling = thread.spawn().unwrap();
    for one in [&mut thread, &mut child, &mut sibling] {
        for _ in 0..3 {
            assert_eq!(one.resume(), Trap::Syscall { number: 39 });
            assert_eq!(one.regs().rip, TEXT + 12);
        }
        assert_eq!(one.regs().rsi, 0x4321);
        let state = one.vector_state().unwrap();
        assert_eq!(state[160 + 48..160 + 50], [0x21, 0x43]);
        one.set_vector_state(&state).unwrap();
    }
    let interrupt = sibling.interrupt();
    sibling.regs().rip = TEXT + 17;
    assert_eq!(sibling.resume(), Trap::Syscall { number: 39 });
    interrupt.interrupt();
    assert_eq!(sibling.resume(), Trap::Interrupted);
    assert_eq!(sibling.resume(), Trap::Syscall { number: 39 });
}

/// `mov $39, %eax; syscall; mov %rax, %rsi; mov $40, %eax; syscall; jmp -21`
const TWO_CALLS: &[u8] =
    &[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x48, 0x89, 0xc6, 0xb8, 40, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xed];

#[test]
fn a_call_is_answered_without_a_stop() {
    let mut thread = guest(TWO_CALLS);
    thread.set_answers(&[(102, 5), (39, 4711), (1, 2)]);
    for _ in 0..patch::HITS {
        assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
        if thread.replaceable().is_some() {
            thread.replace(RX | libc::PROT_WRITE).unwrap();
        }
        assert_eq!(thread.resume(), Trap::Syscall { number: 40 });
    }
    let mut child = thread.fork().unwrap();
    child.interrupt().set_answer(39, 4712);
    let mut sibling = thread.spawn().unwrap();
    for (one, value) in [(&mut thread, 4711), (&mut child, 4712), (&mut sibling, 4711)] {
        assert_eq!(one.resume(), Trap::Syscall { number: 40 });
        assert_eq!(one.regs().rsi, value);
    }
}

/// Threads that run through a site while it is replaced make the same calls as before, wherever in a quadword it begins.
#[test]
fn a_site_is_replaced_under_running_threads() {
    for place in 0..8 {
        replaced_under_threads(TEXT + 0x100 - 5 + place);
    }
}

fn replaced_under_threads(at: u64) {
    let mut first = guest(LOOP);
    let protect = MemoryCall::Protect { address: TEXT, length: 0x1000, protection: RX };
    first.change_memory(&protect).unwrap();
    let open = MemoryCall::Protect { address: TEXT, length: 0x1000, protection: RX | libc::PROT_WRITE };
    first.change_memory(&open).unwrap();
    assert_eq!(first.write(at, LOOP), LOOP.len());
    first.change_memory(&protect).unwrap();
    first.regs().rip = at;
    let others: Vec<_> = (0..3)
        .map(|n| {
            let mut thread = first.spawn().unwrap();
            thread.regs().rdi = n;
            std::thread::spawn(move || {
                for _ in 0..2_000 {
                    assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
                    assert_eq!(thread.regs().rip, at + 12);
                }
                assert_eq!(thread.regs().rsi, n);
            })
        })
        .collect();
    for _ in 0..patch::HITS {
        assert_eq!(first.resume(), Trap::Syscall { number: 39 });
    }
    while first.replaceable().is_none() {
        assert_eq!(first.resume(), Trap::Syscall { number: 39 });
    }
    first.replace(RX).unwrap();
    for other in others {
        other.join().unwrap();
    }
    let mut bytes = [0; 7];
    assert_eq!(first.read(at + 5, &mut bytes), 7);
    assert_eq!(bytes[..3], [0xff, 0x24, 0x25]);
}

/// Interrupts that come at any moment are never lost, and never change what the guest computes.
#[test]
fn interrupts_at_any_moment() {
    let mut thread = replaced();
    thread.regs().rdi = 5;
    let interrupt = thread.interrupt();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stop = Arc::clone(&done);
    let other = std::thread::spawn(move || {
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            interrupt.interrupt();
            std::thread::sleep(Duration::from_micros(50));
        }
    });
    let (mut calls, mut interrupts) = (0, 0);
    // So many may be done before the other thread first has a processor.
    let begin = std::time::Instant::now();
    while calls < 20_000 || interrupts == 0 && begin.elapsed() < Duration::from_secs(30) {
        match thread.resume() {
            Trap::Syscall { number: 39 } => calls += 1,
            Trap::Interrupted => interrupts += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((thread.regs().rdi, thread.regs().rsi), (5, 5));
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    other.join().unwrap();
    assert!(interrupts > 0);
}

#[test]
fn a_guest_that_destroys_its_stub_is_gone_and_nobody_else() {
    let mut witness = guest(CALLS);
    // What the guest can reach: its contexts. It overwrites its own with ones and then calls.
    // mov $-1, %rax; rep stosq; jmp to an address in the stub's code (exit_group's place is not known: run into it from its start)
    let mut thread = guest(&[0x48, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xf3, 0x48, 0xab, 0x0f, 0x05]);
    thread.regs().rdi = layout::CONTEXTS;
    thread.regs().rcx = 0x100;
    // Whatever it says, it says of itself; no answer is a panic, and no wait without an end.
    let _ = thread.resume();
    drop(thread);
    // It jumps to the stub's beginning, which unmaps all of the guest's memory, with no context.
    let mut thread = guest(&[]);
    thread.regs().rip = layout::CODE;
    let trap = thread.resume();
    assert!(matches!(trap, Trap::Gone | Trap::Fault { .. }), "{trap:?}");
    assert_eq!(witness.resume(), Trap::Syscall { number: 39 });
}

#[test]
fn a_stub_that_is_killed_is_gone() {
    let mut thread = PLATFORM.spare.take().unwrap();
    give_code(&mut thread, &[0xeb, 0xfe]);
    let mut other = thread.spawn().unwrap();
    let running = std::thread::spawn(move || other.resume());
    std::thread::sleep(Duration::from_millis(20));
    nix::sys::signal::kill(thread.stub().pid(), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(running.join().unwrap(), Trap::Gone);
    assert_eq!(thread.resume(), Trap::Gone);
    assert_eq!(thread.read(DATA, &mut [0]), 0);
}

/// `mov $4, %eax; syscall; jmp -9`: `stat`, with what `rdi` points to.
const STAT: &[u8] = &[0xb8, 4, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];

#[test]
fn what_a_call_points_to_comes_with_it() {
    let mut thread = guest(STAT);
    assert_eq!(thread.write(DATA + 0xffa, b"/etc\0!"), 6);
    thread.regs().rdi = DATA + 0xffa;
    assert_eq!(thread.resume(), Trap::Syscall { number: 4 });
    // What was there at the call, and no byte more than was fetched.
    assert_eq!(thread.remote().write(DATA + 0xffa, b"/usr"), 4);
    let mut bytes = [0; 6];
    assert_eq!(thread.read_early(DATA + 0xffa, &mut bytes), 6);
    assert_eq!(&bytes, b"/etc\0!");
    assert_eq!(thread.read_early(DATA + 0xffb, &mut bytes), 5);
    assert_eq!(thread.read(DATA + 0xffa, &mut bytes), 6);
    assert_eq!(&bytes, b"/usr\0!");
    // What cannot be fetched is not.
    for bad in [0, 0x666_000, u64::MAX - 3, layout::CODE, layout::CONTEXTS + layout::at::STAGE as u64] {
        thread.regs().rdi = bad;
        thread.regs().rip = TEXT;
        assert_eq!(thread.resume(), Trap::Syscall { number: 4 });
        assert_eq!(thread.arguments()[0], bad);
        assert_eq!(thread.read_early(bad, &mut bytes), 0, "{bad:#x}");
    }
}

#[test]
fn bytes_are_written_before_the_guest_goes_on() {
    // mov $4, %eax; syscall; mov (%rsi), %rdi; syscall
    let mut thread = guest(&[0xb8, 4, 0, 0, 0, 0x0f, 0x05, 0x48, 0x8b, 0x3e, 0x0f, 0x05]);
    thread.regs().rsi = DATA + 8;
    for seen_before in [false, true] {
        assert_eq!(thread.resume(), Trap::Syscall { number: 4 });
        assert!(thread.write_late(DATA + 8, b"abcdefgh"));
        assert!(!thread.write_late(DATA + 16, b"only one"));
        thread.set_result(5);
        if seen_before {
            let mut bytes = [0; 8];
            assert_eq!(thread.read(DATA + 8, &mut bytes), 8);
            assert_eq!(&bytes, b"abcdefgh");
        }
        assert_eq!(thread.resume(), Trap::Syscall { number: 5 });
        assert_eq!(thread.arguments()[0], u64::from_le_bytes(*b"abcdefgh"));
        thread.regs().rip = TEXT;
    }
    assert!(!thread.write_late(layout::CODE - 4, b"abcdefgh"));
    assert!(!thread.write_late(u64::MAX - 2, b"abcdefgh"));
    assert!(!thread.write_late(DATA, &[0; layout::at::LATE_SIZE + 1]));
}

#[test]
fn a_call_whose_bytes_cannot_be_written_fails() {
    let efault = (-i64::from(libc::EFAULT)).cast_unsigned();
    for looked_at in [false, true] {
        let mut thread = guest(CALLS);
        assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
        assert!(thread.write_late(DATA + 0xffe, b"abcd"));
        thread.set_result(4);
        if looked_at {
            assert_eq!(thread.regs().rax, efault);
        }
        assert_eq!(thread.resume(), Trap::Syscall { number: efault });
    }
}

#[test]
fn a_guest_says_where_it_can_write() {
    // mov $0, %eax; syscall; jmp -9: `read`
    let mut thread = guest(&[0xb8, 0, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]);
    let mut says = |address: u64, length: u64| {
        *thread.regs() = Regs { rip: TEXT, rsi: address, rdx: length, ..*thread.regs() };
        assert_eq!(thread.resume(), Trap::Syscall { number: 0 });
        thread.says_writable(address, usize::try_from(length).unwrap())
    };
    assert!(says(DATA, 0x1000));
    assert!(!says(DATA, 0x1001));
    assert!(!says(DATA + 1, 0x1000));
    assert!(!says(0x666_000, 8) && !says(0, 8) && !says(DATA, 0));
    assert!(!says(layout::CONTEXTS + 0x100, 8));
    assert!(!says(u64::MAX - 4, 8));
}

#[test]
fn a_file_is_read_by_the_guests_own_thread() {
    use std::io::Write;
    use std::os::fd::AsFd;

    let mut file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..0x3000u32).map(|n| n.to_le_bytes()[1]).collect();
    file.write_all(&bytes).unwrap();
    let mut thread = guest(CALLS);
    let mut read = |address: u64, length: usize, offset: u64| {
        let count = thread.read_file(address, length, file.as_fd(), offset);
        let mut seen = vec![0; *count.as_ref().unwrap_or(&0)];
        assert_eq!(thread.read(address, &mut seen), seen.len());
        count.map(|_| seen)
    };
    assert_eq!(read(DATA + 8, 0x800, 0x1001).unwrap(), bytes[0x1001..0x1801]);
    // Up to the end of the file, of the memory, and not at all.
    assert_eq!(read(DATA, 0x1000, 0x2fff).unwrap(), bytes[0x2fff..]);
    assert_eq!(read(DATA + 0x800, 0x2000, 0).unwrap(), bytes[..0x800]);
    assert!(read(DATA, 0x1000, 0x3000).unwrap().is_empty());
    for bad in [0x666_000, layout::CODE - 8, layout::CODE, layout::CONTEXTS, u64::MAX - 4] {
        assert_eq!(read(bad, 0x100, 0), Err(Errno::EFAULT), "{bad:#x}");
    }
    assert_eq!(read(DATA, 0x100, u64::MAX), Err(Errno::EINVAL));
    assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
}

/// A stub that kept them would have no numbers left.
#[test]
fn no_descriptor_is_left_of_a_file_that_was_read() {
    use std::os::fd::AsFd;

    let file = tempfile::tempfile().unwrap();
    let mut thread = PLATFORM.spare.take().unwrap();
    give_code(&mut thread, CALLS);
    let number = |thread: &StubThread| {
        let [number] = thread.give_files([file.as_fd()]).unwrap();
        thread.call(libc::SYS_close, [number, 0, 0, 0, 0, 0]).unwrap();
        number
    };
    let before = number(&thread);
    for offset in [0, u64::MAX] {
        let _ = thread.read_file(DATA, 8, file.as_fd(), offset);
        let _ = thread.read_file(0x666_000, 8, file.as_fd(), offset);
    }
    assert_eq!(number(&thread), before);
}

/// A guest can take its stub's thread away from it, so that it never answers: under a lock it may not, and else not when it is to end.
#[test]
fn a_stub_that_does_not_answer_is_ended() {
    use nix::sys::signal::{Signal, kill};

    let stopped = || {
        let mut thread = PLATFORM.spare.take().unwrap();
        give_code(&mut thread, CALLS);
        kill(thread.stub.pid(), Signal::SIGSTOP).unwrap();
        thread
    };
    let mut thread = stopped();
    assert_eq!(thread.swap(DATA, 0, 1), Err(Errno::EFAULT));
    assert!(thread.stub.is_dead());
    assert_eq!(thread.resume(), Trap::Gone);

    let thread = stopped();
    let (pid, interrupt) = (thread.stub.pid(), thread.interrupt());
    let asked =
        std::thread::spawn(move || (thread.call(libc::SYS_munmap, [DATA, 0x1000, 0, 0, 0, 0]), thread));
    std::thread::sleep(Duration::from_secs(5));
    assert!(!asked.is_finished(), "as long as it may go on, it may take its time");
    kill(pid, Signal::SIGCONT).unwrap();
    let (answer, thread) = asked.join().unwrap();
    assert_eq!(answer, Ok(0));
    kill(pid, Signal::SIGSTOP).unwrap();
    interrupt.ends();
    assert_eq!(thread.call(libc::SYS_munmap, [DATA, 0x1000, 0, 0, 0, 0]), Err(Errno::EFAULT));
    assert!(thread.stub.is_dead());
}

/// The same of one that is compared.
#[test]
fn a_comparison_is_replaced_under_running_threads() {
    for place in 0..8 {
        let at = TEXT + 0x100 - 5 + place;
        let mut first = guest(&[0x90; 0x200]);
        assert_eq!(first.write(at, COMPARES), COMPARES.len());
        let protect = MemoryCall::Protect { address: TEXT, length: 0x1000, protection: RX };
        first.change_memory(&protect).unwrap();
        *first.regs() = Regs { rip: at, rdi: 9, ..*first.regs() };
        let others: Vec<_> = (20..23)
            .map(|number| {
                let mut thread = first.spawn().unwrap();
                thread.regs().rdi = number;
                std::thread::spawn(move || {
                    for n in 0..2_000u64 {
                        assert_eq!(thread.resume(), Trap::Syscall { number });
                        assert!(n == 0 || thread.regs().rsi & 0xff == n % 2, "{number} {n}");
                        // An error every other time.
                        thread.set_result(if n % 2 == 0 { (-5i64).cast_unsigned() } else { 5 });
                    }
                })
            })
            .collect();
        while first.replaceable().is_none() {
            assert_eq!(first.resume(), Trap::Syscall { number: 9 });
        }
        first.replace(RX).unwrap();
        for other in others {
            other.join().unwrap();
        }
        let mut bytes = [0; 2];
        assert_eq!(first.read(at + 5, &mut bytes), 2);
        assert_eq!(bytes, [0xff, 0x24], "{place}");
    }
}

/// `1: movq %rdi, %rax; syscall; cmp $-4095, %rax; setae %sil; jmp 1b`
const COMPARES: &[u8] = &[
    0x48, 0x89, 0xf8, 0x90, 0x90, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0x40, 0x0f, 0x93, 0xc6,
    0xeb, 0xed,
];

#[test]
fn a_call_that_is_compared_is_replaced_with_its_comparison() {
    for threads in [false, true] {
        let mut thread = guest(COMPARES);
        let sibling = threads.then(|| thread.spawn().unwrap());
        let protect = MemoryCall::Protect { address: TEXT, length: 0x1000, protection: RX };
        thread.change_memory(&protect).unwrap();
        thread.regs().rdi = 77;
        let mut places = 0;
        for _ in 0..2 * patch::HITS {
            assert_eq!(thread.resume(), Trap::Syscall { number: 77 });
            if thread.replaceable().is_some() {
                thread.replace(RX).unwrap();
                places += 1;
            }
        }
        // Also where the site's first four bytes lie in two quadwords, and running threads could meet half of a change.
        assert_eq!(places, 1);
        let mut site = [0; 8];
        assert_eq!(thread.read(TEXT + 5, &mut site), 8);
        assert_eq!(site[..3], [0xff, 0x24, 0xe5], "{site:x?}");
        for (value, above) in [(0, 0), (5, 0), (-1_i64, 1), (-4095, 1), (-4096, 0)] {
            thread.set_result(value.cast_unsigned());
            assert_eq!(thread.resume(), Trap::Syscall { number: 77 });
            assert_eq!(thread.arguments()[1] & 0xff, above, "{value}");
        }
        // Who comes back to where the comparison was, from before the change, or jumps there, finds it made.
        thread.regs().rip = TEXT + 7;
        thread.set_result((-7_i64).cast_unsigned());
        assert_eq!(thread.resume(), Trap::Syscall { number: 77 });
        assert_eq!(thread.arguments()[1] & 0xff, 1);
        // The call is made again where its instruction is now.
        thread.regs().rip -= 2;
        thread.regs().rax = 78;
        assert_eq!(thread.resume(), Trap::Syscall { number: 78 });
        thread.set_result(0);
        assert_eq!(thread.resume(), Trap::Syscall { number: 77 });
        drop(sibling);
    }
}

#[test]
fn a_number_in_a_register_is_answered_too() {
    let mut thread = guest(COMPARES);
    thread.set_answers(&[(39, 4711)]);
    let protect = MemoryCall::Protect { address: TEXT, length: 0x1000, protection: RX };
    thread.change_memory(&protect).unwrap();
    thread.regs().rdi = 1000;
    for _ in 0..patch::HITS {
        assert_eq!(thread.resume(), Trap::Syscall { number: 1000 });
        if thread.replaceable().is_some() {
            thread.replace(RX).unwrap();
        }
    }
    // Answered ever again, until somebody stops it.
    thread.regs().rdi = 39;
    let interrupt = thread.interrupt();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        interrupt.interrupt();
    });
    assert_eq!(thread.resume(), Trap::Interrupted);
    other.join().unwrap();
    thread.stop_answering().unwrap();
    for _ in 0..2 {
        // An interrupt may be told twice.
        let trap = match thread.resume() {
            Trap::Interrupted => thread.resume(),
            other => other,
        };
        assert_eq!(trap, Trap::Syscall { number: 39 });
    }
}

#[test]
fn contexts_of_threads_that_ended_are_used_again() {
    let mut thread = guest(CALLS);
    for _ in 0..3 * layout::MAX_THREADS {
        drop(thread.spawn().unwrap());
    }
}

/// What comes of a `fork` whose stub says that the new process has this number.
fn fork_that_says(number: u64) -> Result<Box<dyn Thread>, Errno> {
    use hostile::{Answer, Hostile};
    // its start, the two files that it gets, the fork; all well
    let answers = [0, 0, number, 0, 0, 0, 0, 0].map(Answer::done);
    Hostile::new(answers.to_vec()).unwrap().thread().fork()
}

/// By the number of a new process the sentry reads and writes memory, and kills: a guest must not choose it.
#[test]
fn a_forked_process_is_a_child_and_the_guests_own() {
    let own = nix::unistd::getpid().as_raw();
    let thread = nix::unistd::gettid().as_raw();
    assert_ne!(own, thread, "tests run in threads of their own");
    for number in [0, 1, own, thread, i32::MAX] {
        let refused = fork_that_says(u64::try_from(number).unwrap());
        assert_eq!(refused.err(), Some(Errno::EFAULT), "{number}");
    }
    // A child of the sentry's, but not that guest's. It lives on.
    let mut other = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    let mut taken = fork_that_says(u64::from(other.id())).unwrap();
    assert_eq!(taken.remote().read(DATA, &mut [0]), 0);
    assert_eq!(taken.resume(), Trap::Gone);
    drop(taken);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(other.try_wait().unwrap(), None);
    other.kill().unwrap();
    other.wait().unwrap();
}
