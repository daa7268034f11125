//! The sentry's `kvm` platform where a `/dev/kvm` runs machines: programs of this machine's own root, their calls answered by the sentry.

use std::process::Command;

use anyhow::ensure;
use kata_cc_tests::process::run;
use kata_cc_tests::{binaries, machines_run_here};

/// Seconds for one program: a machine in the lab is slow.
const LIMIT: u64 = 300;

/// What a program says on the platform, with the sentry's whole defence.
fn said(program: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(binaries().join("kata-cc-sentry"));
    command.args(["do", "--platform", "kvm", "--read-only", "--"]).args(program);
    Ok(run(&mut command, LIMIT)?.ok()?.stdout)
}

#[test]
fn it_is_told_that_the_platform_runs() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    let mut command = Command::new(binaries().join("kata-cc-sentry"));
    let told = run(command.args(["platforms", "--json"]), LIMIT)?.ok()?.stdout;
    ensure!(told.contains(r#"{"name":"kvm","available":true,"reason":null}"#), "{told}");
    Ok(())
}

#[test]
fn programs_run_in_machines_of_the_sentry() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    ensure!(said(&["/bin/echo", "hello"])? == "hello\n");
    ensure!(said(&["/bin/uname", "-r"])? == "6.12.0\n", "not the sentry's kernel");
    let pipeline = "seq 1 2000 | grep 7 | sort -rn | head -n 3; (exit 3); echo $?; x=$(echo sub); echo $x";
    ensure!(said(&["/bin/sh", "-c", pipeline])? == "1997\n1987\n1979\n3\nsub\n");
    // A signal's handler, and a child that one kills.
    let signals = "trap 'echo caught' USR1; kill -USR1 $$; sleep 100 & kill $!; wait $!; echo $?";
    ensure!(said(&["/bin/sh", "-c", signals])? == "caught\n143\n");
    Ok(())
}

#[test]
fn threads_share_a_machine() -> anyhow::Result<()> {
    const SCRIPT: &str = "
import hashlib, os, threading
found = [None] * 8
def work(n):
    found[n] = hashlib.sha256(bytes([n]) * 300000).hexdigest()
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert found == [hashlib.sha256(bytes([n]) * 300000).hexdigest() for n in range(8)]
child = os.fork()
if child == 0:
    os._exit(len(set(found)))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 1.5 * 3)
";
    if !machines_run_here() || !std::path::Path::new("/usr/bin/python3").exists() {
        return Ok(());
    }
    ensure!(said(&["/usr/bin/python3", "-c", SCRIPT])? == "8 4.5\n");
    Ok(())
}
