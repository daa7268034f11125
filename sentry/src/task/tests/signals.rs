//! Delivery, interruption, masks.

use super::*;

const RESTART: u64 = 0x1000_0000;

/// Forks a child that sends `signal` to the first process after a while and ends.
fn send_later(cpu: &Cpu, signal: i32) -> i64 {
    cpu.fork(move |cpu| {
        std::thread::sleep(Duration::from_millis(100));
        cpu.kill(1, signal);
        std::thread::sleep(Duration::from_millis(50));
        cpu.exit(0);
    })
}

#[test]
fn an_interrupted_call_is_made_again_where_the_handler_says_so() {
    run_first(|cpu| {
        cpu.handle(libc::SIGUSR1, 0);
        let child = send_later(cpu, libc::SIGUSR1);
        assert_eq!(cpu.wait(child, 0).0, -i64::from(libc::EINTR));
        assert_eq!(cpu.handled(), [libc::SIGUSR1]);
        assert_eq!(cpu.wait(child, 0), (child, 0));
        cpu.handle(libc::SIGUSR1, RESTART);
        let child = send_later(cpu, libc::SIGUSR1);
        assert_eq!(cpu.wait(child, 0), (child, 0), "made again");
        assert_eq!(cpu.handled(), [libc::SIGUSR1]);
        // Never made again, whatever the handler says.
        let child = send_later(cpu, libc::SIGUSR1);
        assert_eq!(cpu.pause(), -i64::from(libc::EINTR));
        assert_eq!(cpu.wait(child, 0), (child, 0));
    });
}

#[test]
fn a_sleep_goes_on_after_a_stop() {
    run_first(|cpu| {
        let child = cpu.fork(|cpu| {
            let time = cpu.write(BASE + 64, &[[0; 8], 60_000_000_u64.to_le_bytes()].concat());
            let start = Instant::now();
            assert_eq!(cpu.sys(libc::SYS_nanosleep, &[time, 0]), 0);
            assert!(start.elapsed() >= Duration::from_millis(60));
            cpu.exit(1);
        });
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(cpu.kill(child, libc::SIGSTOP), 0);
        assert_eq!(cpu.wait(child, libc::WUNTRACED).0, child);
        assert_eq!(cpu.kill(child, libc::SIGCONT), 0);
        assert_eq!(cpu.wait(child, 0), (child, 1 << 8));
    });
}

#[test]
fn blocked_signals_wait_and_come_in_order() {
    run_first(|cpu| {
        let signals = [libc::SIGTERM, libc::SIGUSR1, libc::SIGHUP, 40];
        for signal in signals {
            cpu.handle(signal, 0);
        }
        cpu.mask(libc::SIG_BLOCK, &signals);
        for signal in [40, libc::SIGTERM, libc::SIGUSR1, 40, libc::SIGHUP, libc::SIGTERM] {
            assert_eq!(cpu.kill(1, signal), 0);
        }
        assert_eq!(cpu.sys(libc::SYS_rt_sigpending, &[BASE.cast_signed(), 8]), 0);
        assert_eq!(u64::from(cpu.read(BASE)), SignalSet::of(&signals).0 & 0xffff_ffff);
        assert_eq!(cpu.handled(), Vec::<i32>::new());
        cpu.mask(libc::SIG_UNBLOCK, &signals);
        // Frames are made for the lowest number first, and the one that is made last runs first.
        assert_eq!(cpu.handled(), [40, 40, 15, 10, 1]);
    });
}

#[test]
fn sigsuspend_takes_what_it_lets_through_and_puts_the_mask_back() {
    run_first(|cpu| {
        cpu.handle(libc::SIGUSR1, 0);
        cpu.mask(libc::SIG_BLOCK, &[libc::SIGUSR1, libc::SIGUSR2]);
        cpu.kill(1, libc::SIGUSR1);
        let set = cpu.write(BASE + 32, &[0; 8]);
        assert_eq!(cpu.sys(libc::SYS_rt_sigsuspend, &[set, 8]), -i64::from(libc::EINTR));
        assert_eq!(cpu.handled(), [libc::SIGUSR1]);
        cpu.sys(libc::SYS_rt_sigprocmask, &[0, 0, BASE.cast_signed(), 8]);
        assert_eq!(u64::from(cpu.read(BASE)), SignalSet::of(&[libc::SIGUSR1, libc::SIGUSR2]).0);
    });
}

#[test]
fn the_first_process_dies_of_nothing_that_it_does_not_handle() {
    let status = run_first(|cpu| {
        for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGSTOP, libc::SIGHUP] {
            assert_eq!(cpu.kill(1, signal), 0);
        }
        cpu.exit(4);
    });
    assert_eq!(status, 4 << 8);
}

#[test]
fn who_is_outside_can_end_the_first_process() {
    let kernel = Kernel::for_test();
    let tasks = Arc::clone(&kernel.tasks);
    let killer = std::thread::spawn(move || {
        while tasks.find_group(1).is_none() {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(10));
        tasks.find_group(1).unwrap().send_from_outside(libc::SIGKILL).unwrap();
    });
    assert_eq!(run_in(&kernel, |cpu| assert_ne!(cpu.pause(), 0)), libc::SIGKILL);
    killer.join().unwrap();
}

#[test]
fn guest_code_that_makes_no_call_is_interrupted() {
    run_first(|cpu| {
        let child = cpu.fork(|cpu| {
            while cpu.go.try_recv().is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        assert_eq!(cpu.kill(child, libc::SIGKILL), 0);
        assert_eq!(cpu.wait(child, 0), (child, 9));
    });
}

#[test]
fn signal_0_asks_and_others_may_not_be_reached() {
    run_first(|cpu| {
        assert_eq!(cpu.kill(1, 0), 0);
        assert_eq!(cpu.kill(77, 0), -i64::from(libc::ESRCH));
        assert_eq!(cpu.kill(1, 65), -i64::from(libc::EINVAL));
        let child = cpu.fork(|cpu| {
            assert_eq!(cpu.sys(libc::SYS_setuid, &[1000]), 0);
            assert_eq!(cpu.kill(1, libc::SIGTERM), -i64::from(libc::EPERM));
            assert_eq!(cpu.kill(1, libc::SIGCONT), 0, "the same session");
            cpu.exit(1);
        });
        assert_eq!(cpu.wait(child, 0), (child, 1 << 8));
    });
}

#[test]
fn a_death_of_a_parent_is_told_to_who_asked() {
    run_first(|cpu| {
        cpu.fork(|cpu| {
            let child = cpu.fork(|cpu| {
                assert_eq!(cpu.sys(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG.into(), 15]), 0);
                // It stands still until its parent saw that it asked.
                cpu.kill(cpu.pid(), libc::SIGSTOP);
                cpu.pause();
            });
            assert_eq!(cpu.wait(child, libc::WUNTRACED).0, child);
            assert_eq!(cpu.kill(child, libc::SIGCONT), 0);
        });
        let mut seen = [cpu.wait(-1, 0).1, cpu.wait(-1, 0).1];
        seen.sort_unstable();
        assert_eq!(seen, [0, 15]);
    });
}

#[test]
fn too_many_queued_signals_are_refused() {
    run_first(|cpu| {
        let limit = cpu.write(BASE, &[3_u64.to_le_bytes(), 3_u64.to_le_bytes()].concat());
        assert_eq!(cpu.sys(libc::SYS_setrlimit, &[11, limit]), 0);
        cpu.mask(libc::SIG_BLOCK, &[40]);
        let mut info = [0; 128];
        info[8..12].copy_from_slice(&(-1_i32).to_le_bytes());
        let info = cpu.write(BASE + 2048, &info);
        let queue = || cpu.sys(libc::SYS_rt_sigqueueinfo, &[1, 40, info]);
        assert_eq!([queue(), queue(), queue(), queue()], [0, 0, 0, -i64::from(libc::EAGAIN)]);
    });
}

#[test]
fn calls_that_are_not_there_are_told_so() {
    run_first(|cpu| {
        for number in [335, 469, 470, 100_000, -1] {
            assert_eq!(cpu.sys(number, &[]), -i64::from(libc::ENOSYS));
        }
    });
}
