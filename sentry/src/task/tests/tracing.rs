//! Tracers and tracees.

use super::*;

const TRACEME: i64 = 0;
const PEEKDATA: i64 = 2;
const POKEDATA: i64 = 5;
const CONT: i64 = 7;
const GETREGS: i64 = 12;
const SETREGS: i64 = 13;
const ATTACH: i64 = 16;
const DETACH: i64 = 17;
const SYSCALL: i64 = 24;
const SETOPTIONS: i64 = 0x4200;
const GETEVENTMSG: i64 = 0x4201;
const SEIZE: i64 = 0x4206;
const INTERRUPT: i64 = 0x4207;
const ALL: i32 = 0x4000_0000;
/// Where requests leave what they give.
const PLACE: u64 = BASE + 1024;

impl Cpu {
    fn trace(&self, request: i64, pid: i64, address: i64, data: i64) -> i64 {
        self.sys(libc::SYS_ptrace, &[request, pid, address, data])
    }

    fn word(&self, address: u64) -> u64 {
        u64::from(self.read(address)) | u64::from(self.read(address + 4)) << 32
    }

    /// A child that its parent traces, and that stopped itself.
    fn traced(&self, program: impl FnOnce(&Cpu) + Send + 'static) -> i64 {
        let child = self.fork(|cpu| {
            assert_eq!(cpu.trace(TRACEME, 0, 0, 0), 0);
            let own = cpu.pid();
            cpu.kill(own, libc::SIGSTOP);
            program(cpu);
        });
        assert_eq!(self.wait(child, 0), (child, libc::SIGSTOP << 8 | 0x7f));
        child
    }
}

/// The status of a stop.
fn stop(signal: i32, event: i32) -> i32 {
    event << 16 | signal << 8 | 0x7f
}

#[test]
fn a_tracer_sees_and_changes_calls() {
    run_first(|cpu| {
        let child = cpu.traced(|cpu| {
            let got = cpu.sys(libc::SYS_getppid, &[]);
            cpu.exit(if got == 4711 { 1 } else { 2 });
        });
        assert_eq!(cpu.trace(SETOPTIONS, child, 0, 1), 0);
        assert_eq!(cpu.trace(SYSCALL, child, 0, 0), 0);
        assert_eq!(cpu.wait(child, 0), (child, stop(libc::SIGTRAP | 0x80, 0)));
        assert_eq!(cpu.trace(GETREGS, child, 0, PLACE.cast_signed()), 0);
        let (rax, called) = (PLACE + 10 * 8, PLACE + 15 * 8);
        assert_eq!(cpu.word(called), libc::SYS_getppid.unsigned_abs());
        assert_eq!(cpu.word(rax).cast_signed(), -i64::from(libc::ENOSYS));
        // No call, and a result of the tracer's own.
        cpu.write(called, &(-1_i64).to_le_bytes());
        cpu.write(rax, &4711_i64.to_le_bytes());
        assert_eq!(cpu.trace(SETREGS, child, 0, PLACE.cast_signed()), 0);
        assert_eq!(cpu.trace(CONT, child, 0, 0), 0);
        assert_eq!(cpu.wait(child, 0), (child, 1 << 8));
    });
}

#[test]
fn a_tracer_decides_about_signals() {
    run_first(|cpu| {
        for (given, wanted) in [(0, 5 << 8), (libc::SIGTERM, libc::SIGTERM), (libc::SIGUSR1, libc::SIGUSR1)] {
            let child = cpu.traced(|cpu| {
                let own = cpu.pid();
                cpu.kill(own, libc::SIGUSR1);
                cpu.exit(5);
            });
            assert_eq!(cpu.trace(CONT, child, 0, 0), 0);
            assert_eq!(cpu.wait(child, 0), (child, stop(libc::SIGUSR1, 0)));
            assert_eq!(cpu.trace(CONT, child, 0, 65), -i64::from(libc::EIO));
            assert_eq!(cpu.trace(CONT, child, 0, given.into()), 0);
            assert_eq!(cpu.wait(child, 0), (child, wanted));
        }
    });
}

#[test]
fn memory_of_a_tracee_is_read_and_written() {
    run_first(|cpu| {
        let child = cpu.traced(|cpu| {
            let seen = cpu.read(PLACE);
            cpu.exit(seen.into());
        });
        assert_eq!(cpu.trace(POKEDATA, child, PLACE.cast_signed(), 9), 0);
        assert_eq!(cpu.word(PLACE), 0, "its own is another one");
        assert_eq!(cpu.trace(PEEKDATA, child, PLACE.cast_signed(), PLACE.cast_signed() + 8), 0);
        assert_eq!(cpu.word(PLACE + 8), 9);
        assert_eq!(cpu.trace(PEEKDATA, child, 8, PLACE.cast_signed()), -i64::from(libc::EIO));
        assert_eq!(cpu.trace(CONT, child, 0, 0), 0);
        assert_eq!(cpu.wait(child, 0), (child, 9 << 8));
    });
}

#[test]
fn children_of_a_tracee_are_traced_and_events_told() {
    run_first(|cpu| {
        let child = cpu.traced(|cpu| {
            cpu.fork(|cpu| cpu.exit(4));
            cpu.wait(-1, 0);
            cpu.exit(3);
        });
        // PTRACE_O_TRACEFORK and PTRACE_O_TRACEEXIT.
        assert_eq!(cpu.trace(SETOPTIONS, child, 0, 2 | 0x40), 0);
        assert_eq!(cpu.trace(CONT, child, 0, 0), 0);
        assert_eq!(cpu.wait(child, 0), (child, stop(libc::SIGTRAP, 1)));
        assert_eq!(cpu.trace(GETEVENTMSG, child, 0, PLACE.cast_signed()), 0);
        let other = i64::from(cpu.read(PLACE));
        assert_eq!(cpu.wait(other, ALL), (other, stop(libc::SIGSTOP, 0)));
        assert_eq!(cpu.trace(CONT, child, 0, 0), 0);
        assert_eq!(cpu.trace(CONT, other, 0, 0), 0);
        assert_eq!(cpu.wait(other, ALL), (other, stop(libc::SIGTRAP, 6)));
        assert_eq!(cpu.trace(GETEVENTMSG, other, 0, PLACE.cast_signed()), 0);
        assert_eq!(cpu.read(PLACE), 4 << 8);
        assert_eq!(cpu.trace(CONT, other, 0, 0), 0);
        assert_eq!(cpu.wait(other, ALL), (other, 4 << 8), "the tracer hears of the end first");
        assert_eq!(cpu.wait(child, 0), (child, stop(libc::SIGCHLD, 0)), "then its parent");
        assert_eq!(cpu.trace(CONT, child, 0, 0), 0);
        assert_eq!(cpu.wait(child, 0), (child, stop(libc::SIGTRAP, 6)));
        assert_eq!(cpu.trace(CONT, child, 0, 0), 0);
        assert_eq!(cpu.wait(child, 0), (child, 3 << 8));
    });
}

#[test]
fn who_waits_is_attached_to_interrupted_and_let_go() {
    run_first(|cpu| {
        let child = cpu.fork(|cpu| {
            cpu.pause();
        });
        let own = cpu.pid();
        assert_eq!(cpu.trace(ATTACH, own, 0, 0), -i64::from(libc::EPERM));
        assert_eq!(cpu.trace(CONT, child, 0, 0), -i64::from(libc::ESRCH), "not traced yet");
        assert_eq!(cpu.trace(ATTACH, child, 0, 0), 0);
        assert_eq!(cpu.wait(child, 0), (child, stop(libc::SIGSTOP, 0)));
        assert_eq!(cpu.trace(INTERRUPT, child, 0, 0), -i64::from(libc::EIO), "it was not seized");
        assert_eq!(cpu.trace(DETACH, child, 0, 0), 0);
        assert_eq!(cpu.trace(SEIZE, child, 0, 1 << 30), -i64::from(libc::EIO));
        assert_eq!(cpu.trace(SEIZE, child, 0, 0), 0);
        assert_eq!(cpu.wait(child, libc::WNOHANG), (0, stop(libc::SIGSTOP, 0)), "nothing is told");
        assert_eq!(cpu.trace(INTERRUPT, child, 0, 0), 0);
        assert_eq!(cpu.wait(child, 0), (child, stop(libc::SIGTRAP, 128)));
        assert_eq!(cpu.kill(child, libc::SIGKILL), 0, "nothing holds that up");
        assert_eq!(cpu.wait(child, 0), (child, libc::SIGKILL));
    });
}

#[test]
fn what_a_tracer_leaves_goes_on_or_ends_with_it() {
    run_first(|cpu| {
        // PTRACE_O_EXITKILL.
        for (options, ends) in [(0, false), (1 << 20, true)] {
            let child = cpu.fork(|cpu| {
                cpu.pause();
            });
            let tracer = cpu.fork(move |cpu| {
                assert_eq!(cpu.trace(SEIZE, child, 0, options), 0);
                cpu.exit(0);
            });
            assert_eq!(cpu.wait(tracer, 0), (tracer, 0));
            if !ends {
                assert_eq!(cpu.wait(child, libc::WNOHANG).0, 0);
                cpu.kill(child, libc::SIGKILL);
            }
            assert_eq!(cpu.wait(child, 0), (child, libc::SIGKILL));
        }
    });
}

/// Between what a set-id program's credentials rest on and the program, nobody of the old user becomes its tracer.
#[test]
fn nobody_attaches_while_a_program_becomes_somebody_else() {
    let kernel = Kernel::for_test();
    let of = Arc::clone(&kernel);
    run_in(&kernel, move |cpu| {
        let child = cpu.fork(move |cpu| {
            assert_eq!(cpu.sys(libc::SYS_setresuid, &[1000, 1000, 1000]), 0);
            assert_eq!(cpu.sys(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE.into(), 1]), 0);
            let sleeper = || cpu.fork(|cpu| _ = cpu.pause());
            let task = |pid: i64| of.tasks.find(i32::try_from(pid).unwrap()).unwrap();
            let root = Credentials { euid: 0, ..(*task(cpu.pid()).credentials()).clone() };
            // Somebody attaches when the credentials were made, and they have to be made again.
            let (pid, eagain) = (sleeper(), -i64::from(libc::EAGAIN));
            let covered = task(pid).tracer_covers();
            assert!(covered);
            assert_eq!(cpu.trace(SEIZE, pid, 0, 0), 0);
            assert!(!task(pid).begin_exec(covered).unwrap());
            assert!(!task(pid).tracer_covers() && task(pid).begin_exec(false).unwrap());
            cpu.kill(pid, libc::SIGKILL);
            // From there on nobody does, until it is somebody else.
            let pid = sleeper();
            assert!(task(pid).begin_exec(true).unwrap());
            assert_eq!(cpu.trace(SEIZE, pid, 0, 0), eagain);
            let eperm = -i64::from(libc::EPERM);
            task(pid).finish_exec(b"su", root.clone(), || assert_eq!(cpu.trace(SEIZE, pid, 0, 0), eperm));
            assert_eq!(cpu.trace(SEIZE, pid, 0, 0), eperm);
            cpu.kill(pid, libc::SIGKILL);
            // One that stays who it is can be attached to again.
            let pid = sleeper();
            assert!(task(pid).begin_exec(true).unwrap());
            let same = (*task(pid).credentials()).clone();
            task(pid).finish_exec(b"ls", same, || assert_eq!(cpu.trace(SEIZE, pid, 0, 0), eagain));
            assert_eq!(cpu.trace(SEIZE, pid, 0, 0), 0);
            cpu.kill(pid, libc::SIGKILL);
            cpu.exit(7);
        });
        assert_eq!(cpu.wait(child, 0), (child, 7 << 8));
    });
}

#[test]
fn a_tracer_that_waits_for_its_tracee_can_be_killed() {
    let kernel = Kernel::for_test();
    let of = Arc::clone(&kernel);
    run_in(&kernel, move |cpu| {
        let (begun, begins) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (told, tells) = std::sync::mpsc::channel();
        let tracer = cpu.fork(move |cpu| {
            let tracee = cpu.traced(|cpu| _ = cpu.pause());
            let task = |pid: i64| of.tasks.find(i32::try_from(pid).unwrap()).unwrap();
            let _serving = Serving::begin(&task(cpu.pid()));
            let job = move |_: &mut dyn Thread| {
                begun.send(tracee).unwrap();
                // A stub that does not answer.
                let _ = released.recv();
            };
            told.send(task(tracee).ask_tracee(job)).unwrap();
        });
        let tracee = begins.recv().unwrap();
        assert!(tells.recv_timeout(Duration::from_millis(50)).is_err());
        cpu.kill(tracer, libc::SIGKILL);
        assert_eq!(tells.recv_timeout(Duration::from_secs(20)), Ok(Err(Errno::EINTR)));
        assert_eq!(cpu.wait(tracer, 0), (tracer, libc::SIGKILL));
        release.send(()).unwrap();
        cpu.kill(tracee, libc::SIGKILL);
    });
}
