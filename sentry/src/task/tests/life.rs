//! Beginning, end, and waiting.

use super::*;

#[test]
fn a_parent_learns_how_its_child_ended_and_only_once() {
    let status = run_first(|cpu| {
        let child = cpu.fork(|cpu| cpu.exit(7));
        assert_eq!(child, 2);
        assert_eq!(cpu.wait(child, 0), (2, 7 << 8));
        assert_eq!(cpu.wait(-1, 0).0, -i64::from(libc::ECHILD));
        cpu.sys(libc::SYS_exit_group, &[3]);
    });
    assert_eq!(status, 3 << 8);
}

#[test]
fn a_signal_ends_a_child_and_is_its_status() {
    run_first(|cpu| {
        for (signal, core, wanted) in [(15, false, 15), (9, false, 9), (6, false, 6), (6, true, 6 | 0x80)] {
            if core {
                let limit = cpu.write(BASE, &[0xff; 16]);
                assert_eq!(cpu.sys(libc::SYS_setrlimit, &[4, limit]), 0);
            }
            let child = cpu.fork(|cpu| {
                cpu.pause();
            });
            assert_eq!(cpu.wait(child, libc::WNOHANG).0, 0);
            assert_eq!(cpu.kill(child, signal), 0);
            assert_eq!(cpu.wait(child, 0), (child, wanted));
        }
    });
}

#[test]
fn stops_and_going_on_are_told_to_the_parent() {
    run_first(|cpu| {
        cpu.handle(libc::SIGCHLD, 0x1000_0000);
        let child = cpu.fork(|cpu| {
            cpu.pause();
        });
        assert_eq!(cpu.kill(child, libc::SIGSTOP), 0);
        assert_eq!(cpu.wait(child, libc::WUNTRACED), (child, libc::SIGSTOP << 8 | 0x7f));
        assert_eq!(cpu.wait(child, libc::WUNTRACED | libc::WNOHANG).0, 0, "it is told once");
        assert_eq!(cpu.kill(child, libc::SIGTERM), 0);
        assert_eq!(cpu.wait(child, libc::WNOHANG).0, 0, "a stopped process takes no signal");
        assert_eq!(cpu.kill(child, libc::SIGCONT), 0);
        let seen = cpu.wait(child, libc::WCONTINUED);
        assert!(seen == (child, 0xffff) || seen == (child, libc::SIGTERM), "{seen:?}");
        if seen.1 == 0xffff {
            assert_eq!(cpu.wait(child, 0), (child, libc::SIGTERM));
        }
        assert!(cpu.handled().len() >= 2);
    });
}

#[test]
fn orphans_go_to_the_first_process_or_to_a_subreaper() {
    run_first(|cpu| {
        // The grandchild lives until its parent is gone.
        let child = cpu.fork(|cpu| {
            cpu.fork(|cpu| {
                while cpu.sys(libc::SYS_getppid, &[]) != 1 {
                    cpu.sys(libc::SYS_sched_yield, &[]);
                }
                cpu.exit(5);
            });
            cpu.exit(4);
        });
        assert_eq!(cpu.wait(child, 0), (child, 4 << 8));
        assert_eq!(cpu.wait(-1, 0).1, 5 << 8);
        let child = cpu.fork(|cpu| {
            assert_eq!(cpu.sys(libc::SYS_prctl, &[libc::PR_SET_CHILD_SUBREAPER.into(), 1]), 0);
            let child = cpu.fork(|cpu| {
                cpu.fork(|cpu| cpu.exit(6));
            });
            assert_eq!(cpu.wait(child, 0), (child, 0));
            assert_eq!(cpu.wait(-1, 0).1, 6 << 8);
            cpu.exit(1);
        });
        assert_eq!(cpu.wait(child, 0), (child, 1 << 8));
    });
}

#[test]
fn the_end_of_the_first_process_is_the_end_of_all() {
    let kernel = Kernel::for_test();
    let status = run_in(&kernel, |cpu| {
        for _ in 0..3 {
            cpu.fork(|cpu| {
                cpu.pause();
            });
        }
    });
    assert_eq!(status, 0);
    let until = Instant::now() + Duration::from_secs(10);
    while kernel.tasks.count() > 0 && Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!((kernel.tasks.count(), kernel.tasks.processes()), (0, Vec::new()));
}

const THREAD: i64 = 0x1_0f00;
const CLEAR: i64 = 0x20_0000;
const SET: i64 = 0x100_0000;

#[test]
fn threads_share_a_number_and_end_with_their_process() {
    run_first(|cpu| {
        let child = cpu.fork(|cpu| {
            let own = cpu.pid();
            let thread = cpu.clone(THREAD | SET | CLEAR, move |cpu| {
                assert_eq!((cpu.pid(), cpu.sys(libc::SYS_gettid, &[])), (own, own + 1));
                cpu.exit(0);
            });
            assert_eq!(thread, own + 1);
            while cpu.read(BASE + 512) != 0 {
                std::thread::yield_now();
            }
            for _ in 0..3 {
                cpu.clone(THREAD, |cpu| {
                    cpu.pause();
                });
            }
            cpu.sys(libc::SYS_exit_group, &[9]);
        });
        assert_eq!(cpu.wait(child, 0), (child, 9 << 8));
    });
}

#[test]
fn a_process_outlives_its_first_thread() {
    run_first(|cpu| {
        let child = cpu.fork(|cpu| {
            cpu.clone(THREAD, |cpu| {
                let time = cpu.write(BASE + 64, &[[0; 8], 20_000_000_u64.to_le_bytes()].concat());
                cpu.sys(libc::SYS_nanosleep, &[time, 0]);
                cpu.exit(2);
            });
            cpu.exit(1);
        });
        assert_eq!(cpu.wait(child, libc::WNOHANG).0, 0);
        assert_eq!(cpu.wait(child, 0), (child, 2 << 8), "the status is the last thread's");
    });
}

#[test]
fn flags_of_clone_need_each_other() {
    run_first(|cpu| {
        let einval = -i64::from(libc::EINVAL);
        for flags in [0x1_0000, 0x1_0800, 0x800, 0x2_0200, 0x2001_0900, 0x1000_0200] {
            assert_eq!(cpu.clone(flags, |_| {}), einval, "{flags:#x}");
        }
    });
}

#[test]
fn the_caller_of_vfork_waits_for_the_childs_end() {
    run_first(|cpu| {
        let child = cpu.clone(0x4100 | 17, |cpu| {
            std::thread::sleep(Duration::from_millis(20));
            cpu.write(BASE + 1024, &[1]);
            cpu.exit(0);
        });
        assert_eq!(cpu.read(BASE + 1024) & 0xff, 1);
        assert_eq!(cpu.wait(child, 0), (child, 0));
    });
}

#[test]
fn tasks_are_bounded() {
    let kernel = Kernel::with_tasks_for_test(4);
    run_in(&kernel, |cpu| {
        for _ in 0..3 {
            assert!(cpu.fork(|cpu| assert_ne!(cpu.pause(), 0)) > 0);
        }
        assert_eq!(cpu.fork(|_| {}), -i64::from(libc::EAGAIN));
        assert_eq!(cpu.kill(-1, libc::SIGKILL), 0);
        assert!(cpu.wait(-1, 0).0 > 0);
    });
}

#[test]
fn children_of_who_ignores_them_are_gone_at_once() {
    run_first(|cpu| {
        cpu.action(libc::SIGCHLD, SigAction { handler: 1, ..SigAction::default() });
        cpu.fork(|cpu| cpu.exit(0));
        assert_eq!(cpu.wait(-1, 0).0, -i64::from(libc::ECHILD));
    });
}

#[test]
fn waitid_can_look_without_taking() {
    run_first(|cpu| {
        let child = cpu.fork(|cpu| cpu.exit(3));
        let info = BASE + 128;
        let waitid =
            |options: i32| cpu.sys(libc::SYS_waitid, &[1, child, info.cast_signed(), options.into(), 0]);
        assert_eq!(waitid(libc::WEXITED | libc::WNOWAIT), 0);
        assert_eq!((cpu.read(info), cpu.read(info + 8), cpu.read(info + 12 + 12)), (17, 1, 3));
        assert_eq!(waitid(libc::WEXITED), 0);
        assert_eq!(waitid(libc::WEXITED), -i64::from(libc::ECHILD));
        assert_eq!(waitid(libc::WNOHANG), -i64::from(libc::EINVAL));
    });
}

#[test]
fn groups_and_sessions_have_their_rules() {
    run_first(|cpu| {
        let eperm = -i64::from(libc::EPERM);
        assert_eq!(cpu.sys(libc::SYS_setsid, &[]), eperm, "it leads one already");
        let child = cpu.fork(|cpu| {
            assert_eq!(cpu.sys(libc::SYS_getpgrp, &[]), 1);
            assert_eq!(cpu.sys(libc::SYS_setpgid, &[0, 0]), 0);
            assert_eq!(cpu.sys(libc::SYS_setsid, &[]), -i64::from(libc::EPERM), "it leads a group");
            assert_eq!(cpu.sys(libc::SYS_setpgid, &[0, 1]), 0);
            assert_eq!(cpu.sys(libc::SYS_setsid, &[]), cpu.pid());
            assert_eq!(cpu.sys(libc::SYS_getsid, &[0]), cpu.pid());
            cpu.pause();
        });
        while cpu.sys(libc::SYS_getsid, &[child]) != child {
            std::thread::yield_now();
        }
        assert_eq!(cpu.sys(libc::SYS_setpgid, &[child, 0]), eperm, "another session");
        assert_eq!(cpu.kill(-child, libc::SIGTERM), 0);
        assert_eq!(cpu.wait(child, 0), (child, 15));
    });
}

#[test]
fn execve_ends_other_threads_and_takes_the_number_of_the_process() {
    let kernel = Kernel::for_test();
    let second = Arc::clone(&kernel);
    run_in(&kernel, move |cpu| {
        let first_of_child = cpu.fork(move |cpu| {
            let own = cpu.pid();
            cpu.handle(libc::SIGUSR1, 0);
            cpu.clone(THREAD, move |cpu| {
                let tid = cpu.sys(libc::SYS_gettid, &[]);
                let task = second.tasks.find(i32::try_from(tid).unwrap()).unwrap();
                assert!(task.begin_exec(true).unwrap());
                task.finish_exec(b"program", (*task.credentials()).clone(), || ());
                assert_eq!(task.action(libc::SIGUSR1), SigAction::default());
                assert_eq!((cpu.sys(libc::SYS_gettid, &[]), task.comm()), (own, b"program".to_vec()));
                cpu.exit(8);
            });
            cpu.pause();
        });
        assert_eq!(cpu.wait(first_of_child, 0), (first_of_child, 8 << 8));
    });
}
