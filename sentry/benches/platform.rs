//! What each hop of a platform costs: `cargo bench --profile release -p kata-cc-sentry`. Medians in nanoseconds.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark may panic, and prints")]

use std::time::Instant;

use kata_cc_sentry::platform::systrap::Systrap;
use kata_cc_sentry::platform::{MemoryCall, Platform, Thread, Trap};

const TEXT: u64 = 0x40_0000;
const DATA: u64 = 0x50_0000;

/// Median of the times of `rounds`, each divided by `times`.
fn measure(name: &str, rounds: usize, times: u32, mut work: impl FnMut()) {
    let mut all: Vec<u128> = (0..rounds)
        .map(|_| {
            let begin = Instant::now();
            for _ in 0..times {
                work();
            }
            begin.elapsed().as_nanos() / u128::from(times)
        })
        .collect();
    all.sort_unstable();
    println!("{name:<40} {:>10} ns", all[rounds / 2]);
}

fn map(thread: &mut dyn Thread, address: u64) {
    let call = MemoryCall::Map {
        address,
        length: 0x1000,
        protection: libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        flags: libc::MAP_PRIVATE,
        file: None,
    };
    thread.change_memory(&call).unwrap();
}

fn main() {
    let platform = Systrap::new().unwrap();
    let mut thread = platform.new_address_space().unwrap();
    map(&mut *thread, TEXT);
    map(&mut *thread, DATA);
    // 1: mov $39, %eax; syscall; jmp 1b
    assert_eq!(thread.write(TEXT, &[0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]), 9);
    thread.regs().rip = TEXT;
    measure("host's getppid", 101, 1000, || {
        std::hint::black_box(nix::unistd::getppid());
    });
    measure("call that traps by SIGSYS", 101, 1000, || {
        assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
    });
    for _ in 0..10 {
        thread.regs().rip = TEXT;
        thread.resume();
        if thread.replaceable().is_some() {
            thread.replace(libc::PROT_READ | libc::PROT_EXEC).unwrap();
        }
    }
    measure("call from a replaced site", 101, 1000, || {
        assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
    });
    let mut bytes = vec![0; 32 << 10];
    for size in [64, 4096, 32 << 10] {
        measure(&format!("read {size} bytes by the stub"), 101, 100, || {
            assert_eq!(thread.read(DATA, &mut bytes[..size.min(4096)]), size.min(4096));
        });
        measure(&format!("read {size} bytes by the host"), 101, 100, || {
            assert_eq!(thread.remote().read(DATA, &mut bytes[..size.min(4096)]), size.min(4096));
        });
    }
    measure("mmap and munmap", 101, 100, || {
        map(&mut *thread, 0x60_0000);
        thread.change_memory(&MemoryCall::Unmap { address: 0x60_0000, length: 0x1000 }).unwrap();
    });
    measure("spawn and end of a thread", 51, 10, || drop(thread.spawn().unwrap()));
    measure("fork and end of an address space", 51, 10, || drop(thread.fork().unwrap()));
    measure("new address space and its end", 51, 10, || drop(platform.new_address_space().unwrap()));
}
