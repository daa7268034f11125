//! The real binary with real programs: those of the machine that the tests run on, its root being the sandbox's.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The longest that one program may take.
const LIMIT: Duration = Duration::from_secs(60);

fn sentry(options: &[&str], command: &[&str]) -> Output {
    let arguments = [options, &["--"], command].concat();
    let mut started = support::sentry_do(&arguments);
    support::within(LIMIT, &format!("{command:?}"), started.env("KATA_CC_LOG", "warn"))
}

/// Output of a program that succeeds and complains of nothing.
fn run(command: &[&str]) -> String {
    let output = sentry(&[], command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn shell(script: &str) -> String {
    run(&["/bin/bash", "-c", script])
}

#[test]
fn a_program_runs_on_our_kernel() {
    assert_eq!(run(&["/bin/echo", "hello", "world"]), "hello world\n");
    // The host's kernel would say its own release.
    assert_eq!(run(&["/bin/uname", "-r"]), "6.12.0\n");
    assert_eq!(run(&["uname", "-n"]), "sandbox\n");
}

#[test]
fn the_end_of_the_program_is_the_end_of_ours() {
    let code = |options: &[&str], command: &[&str]| sentry(options, command).status.code();
    assert_eq!(code(&[], &["/bin/sh", "-c", "exit 7"]), Some(7));
    assert_eq!(code(&[], &["/bin/sh", "-c", "/bin/sh -c 'kill -9 $$'; exit $?"]), Some(137));
    assert_eq!(code(&[], &["/no/such/program"]), Some(127));
    assert_eq!(code(&[], &["/etc/passwd"]), Some(126));
    assert_eq!(code(&["--rootfs", "/no/such/folder"], &["/bin/true"]), Some(125));
    assert_eq!(code(&["--rootfs", "/etc/passwd"], &["/bin/true"]), Some(125));
    let missing = sentry(&[], &["/no/such/program"]);
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(text.contains("/no/such/program") && text.contains("ENOENT"), "{text}");
}

#[test]
fn a_shell_has_its_pipes_jobs_and_signals() {
    assert_eq!(shell("for i in 1 2 3; do echo $i; done | tac | tr -d '\\n'"), "321");
    assert_eq!(shell("x=$(seq 1 1000 | tail -1); echo $((x + 1))"), "1001\n");
    assert_eq!(shell("sleep 100 & kill -TERM $!; wait $!; echo $?"), "143\n");
    assert_eq!(shell("trap 'echo caught' USR1; kill -USR1 $$; echo after"), "caught\nafter\n");
    assert_eq!(shell("yes | head -100000 | wc -l"), "100000\n");
    assert_eq!(shell("(exit 3); echo $?; false || echo or"), "3\nor\n");
}

#[test]
fn changes_stay_in_the_sandbox() {
    let name = format!("kata-cc-sentry-test-{}", std::process::id());
    let script =
        format!("echo changed > /etc/{name} && cat /etc/{name} && rm /etc/passwd && test ! -e /etc/passwd");
    assert_eq!(shell(&script), "changed\n");
    assert!(!std::path::Path::new("/etc").join(&name).exists());
    assert!(std::path::Path::new("/etc/passwd").exists());
    let refused = sentry(&["--read-only"], &["/bin/sh", "-c", &format!("echo x > /etc/{name}")]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("Read-only file system"), "{text}");
}

#[test]
fn a_user_without_privileges_has_none() {
    let output = sentry(&["--user", "65534:65534"], &["/bin/bash", "-c", "id -u; id -g; cat /etc/shadow"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "65534\n65534\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Permission denied"));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn nothing_of_the_host_is_within_reach() {
    // A process of the host, by its number.
    let outside = std::process::id().to_string();
    assert_eq!(shell(&format!("kill -0 {outside} 2>/dev/null || echo no such process")), "no such process\n");
    assert_eq!(shell("echo $$ $PPID"), "1 0\n");
}

#[test]
fn files_are_what_they_are_on_linux() {
    let script = "cd /tmp; mkdir -p a/b; echo x > a/f; ln -s f a/g; ln a/f a/h; cat a/g; stat -c %h a/f; mv a/f a/b/; \
                  cat a/h; test -e a/g || echo dangling; find . | sort | tr '\\n' ' '; rm -r a; ls | wc -l";
    assert_eq!(shell(script), "x\n2\nx\ndangling\n. ./a ./a/b ./a/b/f ./a/g ./a/h 0\n");
    let script = "cd /tmp; head -c 3000000 /dev/urandom > a; cp a b; cmp a b && truncate -s 10 b && stat -c %s b; \
                  dd if=/dev/zero of=c bs=1 seek=9999999 count=1 status=none; stat -c '%s %b' c | awk '{print $1, $2 < 100}'";
    assert_eq!(shell(script), "10\n10000000 1\n");
}

/// Programs with threads, timers and many files, where the machine has them.
#[test]
fn larger_programs_run() {
    if std::path::Path::new("/usr/bin/python3").exists() {
        let script = "import threading, time, subprocess, signal, sqlite3\n\
            r = []\n\
            def f(n): time.sleep(0.01 * n); r.append(n)\n\
            t = [threading.Thread(target=f, args=(i,)) for i in range(5)]\n\
            [x.start() for x in t]; [x.join() for x in t]; print(sorted(r))\n\
            print(subprocess.check_output(['echo', 'sub']))\n\
            signal.signal(signal.SIGALRM, lambda *a: print('alarm'))\n\
            signal.setitimer(signal.ITIMER_REAL, 0.02); time.sleep(0.1)\n\
            c = sqlite3.connect('/tmp/x.db'); c.execute('create table t(a)')\n\
            c.executemany('insert into t values(?)', [(i,) for i in range(1000)]); c.commit()\n\
            print(c.execute('select sum(a) from t').fetchone())\n";
        assert_eq!(
            run(&["/usr/bin/python3", "-c", script]),
            "[0, 1, 2, 3, 4]\nb'sub\\n'\nalarm\n(499500,)\n"
        );
    }
    if std::path::Path::new("/usr/bin/gcc").exists() {
        let script = "cd /tmp; printf '#include <stdio.h>\\nint main(){puts(\"built\");}' > a.c; gcc -O1 -o a a.c && ./a";
        assert_eq!(shell(script), "built\n");
    }
}

/// Killing the sentry ends all that it runs: no stub outlives it.
#[test]
fn guests_have_namespaces() {
    let ps = run(&["unshare", "-pfm", "--mount-proc", "sh", "-c", "echo $$; ls -d /proc/[0-9]* | wc -l"]);
    // The shell, and `ls`; `wc` may be there already.
    assert!(ps == "1\n2\n" || ps == "1\n3\n", "{ps}");
    let id = sentry(
        &["--user", "1000:1000"],
        &["unshare", "-Ur", "sh", "-c", "id -u; id -g; cat /proc/self/uid_map"],
    );
    let text = String::from_utf8_lossy(&id.stdout).into_owned();
    let words: Vec<_> = text.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "0", "1000", "1"], "{id:?}");
    let shell_in =
        |options: &str, script: &str| shell(&format!("unshare {options} sh -c '{script}'; uname -n"));
    assert_eq!(shell_in("-u", "hostname inner; uname -n"), "inner\nsandbox\n");
    assert_eq!(shell_in("-m", "mount -t tmpfs none /mnt && touch /mnt/x && ls /mnt; exit"), "x\nsandbox\n");
    assert_eq!(shell("unshare -m true; ls /mnt/x 2>/dev/null; echo none"), "none\n");
    let entered = "unshare -u sleep 100 & sleep 0.3; nsenter -u -t $! hostname inner; nsenter -u -t $! uname -n; kill $!";
    assert_eq!(shell(entered), "inner\n");
    let changed = "mkdir -p /r/usr && mount --bind /usr /r/usr && ln -s usr/bin usr/lib usr/lib64 /r/ && chroot /r /bin/sh -c 'echo /*'";
    assert_eq!(shell(changed), "/bin /lib /lib64 /usr\n");
}

#[test]
fn nothing_is_left_when_the_sentry_is_killed() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry"))
        .args(["do", "--", "/bin/bash", "-c", "sleep 1000 & echo ready; wait"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    assert_eq!(&line, b"ready\n");
    // The command waits for the sentry, whose children the stubs are, and for its gofer, which has none.
    let mut ours = children_of(child.id());
    assert_eq!(ours.len(), 2, "{ours:?}");
    let stubs: Vec<_> = ours.iter().flat_map(|pid| children_of(*pid)).collect();
    assert!(!stubs.is_empty());
    ours.extend(stubs);
    child.kill().unwrap();
    child.wait().unwrap();
    let begin = Instant::now();
    while ours.iter().any(|pid| is_running(*pid)) {
        assert!(begin.elapsed() < Duration::from_secs(10), "{ours:?} outlive the sentry");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn stat(pid: u32) -> Option<(char, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit(')').next()?.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn children_of(parent: u32) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| stat(*pid).is_some_and(|(_, of)| of == parent)).collect()
}

fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// The page of the documentation is that of the table.
#[test]
fn the_documentation_lists_the_calls_that_are_there() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sentry-syscalls.md");
    let page = std::fs::read_to_string(page).unwrap();
    let table = Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry")).arg("syscalls").output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(
        page.ends_with(&table),
        "docs/sentry-syscalls.md is not what `kata-cc-sentry syscalls` prints: write it anew"
    );
}

/// The same programs where each call stops the stub for its tracer.
#[test]
fn programs_run_by_ptrace() {
    for script in [
        "echo one | tr a-z A-Z",
        "for n in 1 2 3; do /bin/true & done; wait; echo done",
        "trap 'echo caught' USR1; kill -USR1 $$; sh -c 'kill -9 $$'; echo $?",
        // One write each: `print` writes a line and its end apart, and threads come between.
        "python3 -c 'import os, threading; [threading.Thread(target=os.write, args=(1, b\"%d\\n\" % n)).start() for n in range(3)]' | sort",
        "vfork_of_sh=$(sh -c 'exec 3</etc/passwd; head -c 4 <&3'); echo $vfork_of_sh",
    ] {
        let output = sentry(&["--platform", "ptrace"], &["sh", "-c", script]);
        let native = Command::new("sh").args(["-c", script]).output().unwrap();
        assert_eq!(
            (output.status.code(), String::from_utf8_lossy(&output.stdout)),
            (native.status.code(), String::from_utf8_lossy(&native.stdout)),
            "{script}: {output:?}"
        );
    }
}

#[test]
fn platforms_are_told() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry")).args(["platforms", "--json"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for name in ["systrap", "ptrace"] {
        let row = format!("{{\"name\":\"{name}\",\"available\":true,\"reason\":null}}");
        assert!(text.contains(&row), "{text}");
    }
    // Whether it runs is this machine's: it is tried and told.
    assert!(text.contains("{\"name\":\"kvm\",\"available\":"), "{text}");
}
