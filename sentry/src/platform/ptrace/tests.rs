//! The platform with real stubs: guest code of a few bytes. Who traces a thread is the thread of the test.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;
use std::time::Duration;

use super::*;
use crate::platform::systrap::remote::Process;
use crate::platform::tests::{CALLS, DATA, for_platform, give_code, guest};
use crate::platform::{Memory, Trap};

static PLATFORM: LazyLock<Ptrace> = LazyLock::new(|| Ptrace::new().unwrap());

for_platform!(&*PLATFORM);

#[test]
fn a_thread_is_handed_to_another() {
    let mut thread = guest(&*PLATFORM, CALLS);
    assert_eq!(thread.resume(), Trap::Syscall { number: 39 });
    thread.regs().rax = 5;
    // Nobody else may ask anything of it as long as it was not let go of.
    let mut thread = std::thread::spawn(move || {
        assert_eq!(thread.resume(), Trap::Gone);
        thread
    })
    .join()
    .unwrap();
    thread.release();
    std::thread::spawn(move || {
        // A stop of its own: what it was does not matter any more.
        thread.release();
    })
    .join()
    .unwrap();
    let mut thread = guest(&*PLATFORM, CALLS);
    thread.release();
    std::thread::spawn(move || assert_eq!(thread.resume(), Trap::Syscall { number: 39 })).join().unwrap();
}

#[test]
fn a_process_that_is_killed_is_gone() {
    let mut thread = PLATFORM.first.lock().unwrap().fork_stub().unwrap();
    lock(&PLATFORM.first).release();
    give_code(&mut thread, &[0xeb, 0xfe]);
    let mut other = thread.spawn().unwrap();
    let running = std::thread::spawn(move || other.resume());
    std::thread::sleep(Duration::from_millis(20));
    nix::sys::signal::kill(thread.stub().pid(), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(running.join().unwrap(), Trap::Gone);
    assert_eq!(thread.resume(), Trap::Gone);
    assert_eq!(thread.read(DATA, &mut [0]), 0);
}

#[test]
fn a_call_by_the_stubs_own_code_is_the_guests() {
    let mut thread = guest(&*PLATFORM, CALLS);
    thread.regs().rip = layout::CODE + Code::linked().call;
    thread.regs().rax = 60;
    assert_eq!(thread.resume(), Trap::Syscall { number: 60 });
    assert!(matches!(thread.resume(), Trap::Fault { signal: libc::SIGTRAP, .. }));
}
