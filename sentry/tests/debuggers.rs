//! Real `strace` and `gdb` in the sandbox, which is the machine's own files: what a tracer needs of `ptrace` as a whole. Where one of them is not
//! installed (or no gcc), its tests say so and pass.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and tells what it skips")]

mod support;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::Duration;

/// The longest that one program may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Those that run everywhere, and `kvm` where it does and `KATA_CC_SENTRY_KVM` asks for it (docs/open-findings.md).
static PLATFORMS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let told =
        Command::new(env!("CARGO_BIN_EXE_kata-cc-sentry")).args(["platforms", "--json"]).output().unwrap();
    let asked = std::env::var_os("KATA_CC_SENTRY_KVM").is_some();
    let kvm = asked && String::from_utf8_lossy(&told.stdout).contains(r#"{"name":"kvm","available":true"#);
    if !kvm {
        eprintln!(
            "SKIPPED: the platform kvm, which does not run here or was not asked for (KATA_CC_SENTRY_KVM=1)"
        );
    }
    let names = ["systrap", "ptrace", "kvm"];
    names[..if kvm { 3 } else { 2 }].to_vec()
});

/// Whether these programs are there; else it is said that the test is skipped.
fn have(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|name| !PathBuf::from("/usr/bin").join(name).exists());
    if let Some(name) = missing {
        eprintln!("SKIPPED: there is no /usr/bin/{name} on this machine (apt-get install {name})");
    }
    missing.is_none()
}

fn sentry(platform: &str, script: &str) -> Output {
    let arguments = ["--platform", platform, "--", "/bin/bash", "-c", script];
    let mut command = support::sentry_do(&arguments);
    support::within(LIMIT, script, command.env("KATA_CC_LOG", "error").env("DEBUGINFOD_URLS", ""))
}

/// What a script prints on all platforms, which must be the same lines.
fn shell(script: &str, check: impl Fn(&str)) {
    for platform in &*PLATFORMS {
        let output = sentry(platform, script);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{platform}: {script}: {output:?}");
        let printed = String::from_utf8_lossy(&output.stdout);
        eprintln!("{platform}: {script}\n{printed}{errors}");
        check(&printed);
    }
}

/// All of these lines, in this order, among others.
fn has_lines(printed: &str, wanted: &[&str]) {
    let mut lines = printed.lines();
    for want in wanted {
        assert!(lines.any(|line| line.contains(want)), "no {want:?} in its place in:\n{printed}");
    }
}

#[test]
fn strace_tells_calls_and_ends() {
    if !have(&["strace"]) {
        return;
    }
    shell("strace -o /tmp/s cat /etc/hostname >/dev/null; echo $?; tail -n 3 /tmp/s", |printed| {
        has_lines(printed, &["0", "close(2)", "exit_group(0)", "+++ exited with 0 +++"]);
    });
    shell("strace -o /tmp/s sh -c 'exit 5'; echo code $?; tail -n 1 /tmp/s", |printed| {
        has_lines(printed, &["code 5", "+++ exited with 5 +++"]);
    });
    shell("strace -o /tmp/s sh -c 'kill -TERM $$' || echo code $?; cat /tmp/s", |printed| {
        has_lines(
            printed,
            &["code 143", "kill(", "--- SIGTERM {si_signo=SIGTERM", "+++ killed by SIGTERM +++"],
        );
    });
}

#[test]
fn strace_follows_a_pipeline_and_counts() {
    if !have(&["strace"]) {
        return;
    }
    let script = "strace -f -o /tmp/s sh -c 'seq 1 2000 | tac | head -n 1; true'
        grep -c 'execve.* = 0' /tmp/s; grep -c '+++ exited with 0 +++' /tmp/s; grep -o 'execve(\"[^\"]*' /tmp/s | sort";
    shell(script, |printed| {
        has_lines(printed, &["2000", "4"]);
        assert!(["/seq", "/tac", "/head"].iter().all(|name| printed.contains(name)), "{printed}");
    });
    shell("strace -f -c -o /tmp/s sh -c 'true; (true); ls / >/dev/null'; cat /tmp/s", |printed| {
        assert!(
            ["execve", "total", "mmap", "usecs/call"].iter().all(|word| printed.contains(word)),
            "{printed}"
        );
    });
}

#[test]
fn strace_attaches_and_lets_go() {
    if !have(&["strace"]) {
        return;
    }
    let script = "(while :; do sleep 0.05; done) & victim=$!
        strace -f -o /tmp/s -p $victim 2>/tmp/e & tracer=$!
        until grep -q execve /tmp/s 2>/dev/null; do sleep 0.05; done
        grep -c TracerPid:.$tracer /proc/$victim/status
        kill -INT $tracer; wait $tracer; cat /tmp/e
        grep TracerPid /proc/$victim/status; kill $victim; wait $victim; echo ended $?";
    shell(script, |printed| {
        has_lines(printed, &["1", "attached", "detached", "TracerPid:\t0", "ended 143"]);
    });
}

const PROGRAM: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static volatile long counter;
static double half = 0.5;
static int inner(int depth) { counter += depth; return depth + 1; }
static int outer(int depth) { return inner(depth) * 2; }
static void *thread(void *unused) { counter += 100; return unused; }
int main(int argc, char **argv) {
    if (argc > 1) for (;;) { outer(1); usleep(10000); }
    int sum = 0;
    for (int at = 0; at < 3; at++) sum += outer(at);
    pthread_t other;
    pthread_create(&other, 0, thread, 0);
    pthread_join(other, 0);
    printf("sum %d half %g\n", sum, half * 2);
    return (int)counter - 100;
}
"#;

/// A script that has the program above as `/tmp/program`, and runs gdb by these commands.
fn gdb(arguments: &str, commands: &[&str]) -> String {
    let commands: String = commands.iter().map(|command| format!(" -ex '{command}'")).collect();
    format!(
        "cat >/tmp/program.c <<'END'\n{PROGRAM}\nEND\ngcc -g -O0 -pthread -o /tmp/program /tmp/program.c && cd /tmp || exit 1
        {arguments}
        gdb -nx -batch -iex 'set debuginfod enabled off' -iex 'set auto-load off'{commands} 2>&1; true"
    )
}

#[test]
fn gdb_breaks_steps_and_looks() {
    if !have(&["gdb", "gcc"]) {
        return;
    }
    let commands = [
        "file /tmp/program",
        "break inner",
        "run",
        "bt",
        "print counter",
        "finish",
        "step",
        "next",
        "continue",
        "print depth",
        "set var depth = 40",
        "stepi",
        "info registers rip",
        "p $xmm0",
        "delete",
        "continue",
    ];
    shell(&gdb("", &commands), |printed| {
        let wanted = [
            "Breakpoint 1, inner (depth=0)",
            "#0  inner (depth=0)",
            "in outer (depth=0)",
            "in main (argc=1",
            "$1 = 0",
            "Value returned is",
            "Breakpoint 1, inner (depth=1)",
            "Breakpoint 1, inner (depth=2)",
            "$3 = 2",
            "rip ",
            "v4_float",
            "sum 88 half 1",
            "exited with code 051",
        ];
        has_lines(printed, &wanted);
    });
}

/// Its pages are the guest's: symbols are found in them, breakpoints set, and stacks unwound within.
#[test]
fn gdb_looks_into_the_vdso() {
    if !have(&["gdb", "gcc"]) {
        return;
    }
    let program = "#include <time.h>\n#include <stdio.h>
        int main(void) { struct timespec now; clock_gettime(CLOCK_MONOTONIC, &now); puts(now.tv_sec ? \"read\" : \"\"); return 0; }";
    let commands = [
        "file /tmp/clock",
        "break main",
        "run",
        "break __vdso_clock_gettime",
        "continue",
        "x/4xb (char *)$pc",
        "bt",
        // Into the part that has a frame.
        "stepi 10",
        "info symbol $pc",
        "bt",
        "delete",
        "finish",
        "continue",
    ];
    let commands: String = commands.iter().map(|command| format!(" -ex '{command}'")).collect();
    let script = format!(
        "cat >/tmp/clock.c <<'END'\n{program}\nEND\ngcc -g -O0 -o /tmp/clock /tmp/clock.c && cd /tmp || exit 1
        gdb -nx -batch -iex 'set debuginfod enabled off' -iex 'set auto-load off'{commands} 2>&1; true"
    );
    shell(&script, |printed| {
        let wanted = [
            "Breakpoint 1, main ()",
            "in clock_gettime ()",
            "0xf3\t0x0f\t0x1e\t0xfa",
            "#0 ",
            "in main ()",
            "clock_gettime + ",
            "in clock_gettime ()",
            "in main ()",
            "read",
            "exited normally",
        ];
        has_lines(printed, &wanted);
        assert!(!printed.contains("Can't read pathname"), "{printed}");
    });
}

#[test]
fn gdb_watches_a_variable() {
    if !have(&["gdb", "gcc"]) {
        return;
    }
    let commands = [
        "file /tmp/program",
        "set can-use-hw-watchpoints 0",
        "break outer if depth == 2",
        "run",
        "watch counter",
        "continue",
        "delete",
        "continue",
    ];
    shell(&gdb("", &commands), |printed| {
        let wanted =
            ["Breakpoint 1, outer (depth=2)", "Watchpoint 2: counter", "Old value = 1", "New value = 3"];
        has_lines(printed, &wanted);
        has_lines(printed, &["sum 12 half 1", "exited with code 03"]);
    });
}

#[test]
fn gdb_attaches_calls_and_detaches() {
    if !have(&["gdb", "gcc"]) {
        return;
    }
    let commands = [
        "attach $(cat /tmp/number)",
        "info threads",
        "bt",
        "break inner",
        "continue",
        "delete",
        "print inner(7)",
        "print half = 8",
        "detach",
    ];
    let script = gdb("/tmp/program forever & echo $! >/tmp/number", &commands)
        .replace("-ex 'attach $(cat /tmp/number)'", "-p $(cat /tmp/number)");
    let script = format!("{script}\nkill $(cat /tmp/number); wait $(cat /tmp/number); echo ended $?");
    shell(&script, |printed| {
        let wanted =
            ["in main (argc=2", "Breakpoint 1, inner (depth=1)", "= 8", "$2 = 8", "detached", "ended 143"];
        has_lines(printed, &wanted);
    });
}

#[test]
fn gdb_follows_threads_and_children() {
    if !have(&["gdb", "gcc"]) {
        return;
    }
    let commands = ["file /tmp/program", "break thread", "run", "info threads", "bt 1", "continue"];
    shell(&gdb("", &commands), |printed| {
        has_lines(printed, &["hit Breakpoint 1, thread (", "* 2", "#0  thread (", "exited with code 03"]);
    });
    let commands = [
        "set follow-fork-mode child",
        "set detach-on-fork on",
        "catch exec",
        "run -c \"/bin/echo from the child; exit 4\"",
        "continue",
        "continue",
    ];
    shell(&gdb("", &[&["file /bin/sh"][..], &commands[..]].concat()), |printed| {
        has_lines(printed, &["Catchpoint 1 (exec'd", "from the child"]);
    });
}
