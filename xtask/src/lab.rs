//! Decides where virtual machines run: here, or in the lab (`tests/lab`).

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::paths;
use crate::shell::{command, run, status, status_and_output_at_the_end, step};

/// Exit code of `tests/lab/lab run` when the emulated machine itself failed, whatever the command did.
const LAB_FAILED: i32 = 125;

/// Where virtual machines can run.
pub(crate) enum Host {
    /// This machine's own KVM runs an unmodified kernel.
    Native,
    /// Only the emulated machine's does.
    Lab,
}

/// Ask the VMM's probe, say the answer in one line, and prepare the lab when it is needed.
pub(crate) fn choose() -> anyhow::Result<Host> {
    let vmm = paths::binaries().join("kata-cc-vmm");
    let probe = Command::new(&vmm).arg("--probe").output();
    let probe = probe.with_context(|| format!("cannot start {}", vmm.display()))?;
    let answer: serde_json::Value = serde_json::from_slice(&probe.stdout).with_context(|| {
        format!("kata-cc-vmm --probe answered {:?}", String::from_utf8_lossy(&probe.stdout))
    })?;
    let reason = answer["reason"].as_str().unwrap_or("no reason given");
    if answer["usable"].as_bool() == Some(true) {
        step(&format!("virtual machines run natively: {reason}"));
        return Ok(Host::Native);
    }
    step(&format!("virtual machines run in the lab, since this machine's KVM cannot: {reason}"));
    run(&mut command(paths::root().join("tests/lab/lab"), &["setup"])).context("the lab was not set up")?;
    Ok(Host::Lab)
}

impl Host {
    /// Runs `program` to its end and gives its exit code; `quiet` keeps what it prints until it ended. An emulated machine that
    /// died under it (its emulator is not without faults) is told, with the end of its console, and started once more:
    /// that is no result of the program's.
    pub(crate) fn run(
        &self,
        program: &Path,
        arguments: &[&str],
        minutes: u32,
        quiet: bool,
    ) -> anyhow::Result<i32> {
        let once = || {
            let mut command = self.command(program, arguments, minutes);
            if quiet { status_and_output_at_the_end(&mut command) } else { status(&mut command) }
        };
        let code = once()?;
        if code != LAB_FAILED || matches!(self, Host::Native) {
            return Ok(code);
        }
        step("the emulated machine itself died, its console's end is above: once more, from the start");
        once()
    }

    /// A command that runs `program` on this host, as root, with at most `minutes`.
    pub(crate) fn command(&self, program: &Path, arguments: &[&str], minutes: u32) -> Command {
        let mut command = match self {
            Host::Native => command("timeout", &["--kill-after=10", &(minutes * 60).to_string()]),
            Host::Lab => {
                let mut lab =
                    command(paths::root().join("tests/lab/lab"), &["run", "--mem", "9G", "--timeout"]);
                let cache = paths::cache().to_string_lossy().into_owned();
                lab.args([&(minutes * 60).to_string(), "--share", &cache, "--"]);
                lab.env("KATA_CC_LAB", "1");
                lab
            }
        };
        command.arg(program).args(arguments);
        command.env("KATA_CC_BIN_DIR", paths::binaries()).env("KATA_CC_SHARE_DIR", paths::share());
        command.env("CARGO_TARGET_DIR", paths::target()).env("KATA_CC_MATERIAL", paths::material());
        command.env("KATA_CC_CONTAINERDS", paths::cache().join("containerd"));
        command
    }
}
