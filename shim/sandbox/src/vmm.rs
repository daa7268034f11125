//! Runs the monitor of one sandbox and speaks to its control socket.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kata_cc_vmm_api::{ControlReply, ControlRequest, VmConfig, exit};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::monitor::{self, Monitor};
use crate::process::Netns;

/// How long the monitor may take to answer on its control socket.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(20);

/// Start the monitor in a network namespace, and in the control groups of `doors`.
pub(crate) fn start(
    program: &Path,
    config: &VmConfig,
    dir: &Path,
    netns: &Path,
    doors: Vec<File>,
) -> std::io::Result<Monitor> {
    let file = dir.join("vmm.json");
    std::fs::write(&file, serde_json::to_vec_pretty(config)?)?;
    let mut command = Command::new(program);
    command.arg("--config").arg(&file).arg("--die-with-parent");
    monitor::start(command, Netns::Of(netns), doors, exit_reason)
}

/// One question to the control socket.
pub(crate) async fn ask(dir: &Path, request: &ControlRequest) -> std::io::Result<ControlReply> {
    let exchange = async {
        let mut stream = UnixStream::connect(control_socket(dir)).await?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await?;
        Ok(serde_json::from_str(&answer)?)
    };
    match tokio::time::timeout(CONTROL_TIMEOUT, exchange).await {
        Ok(reply) => reply,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

/// The control socket of a run-time folder.
pub(crate) fn control_socket(dir: &Path) -> PathBuf {
    dir.join("vmm.sock")
}

/// What an exit of the monitor means, in words.
pub(crate) fn exit_reason(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    if let Some(signal) = status.signal() {
        return format!("the virtual machine monitor was killed by signal {signal}");
    }
    match status.code().unwrap_or(exit::FAILED) {
        exit::OK => "the guest shut down".into(),
        exit::BAD_CONFIG => "the virtual machine monitor refused its configuration".into(),
        exit::GUEST_RESET => "the guest reset itself (its kernel or its agent failed)".into(),
        exit::NO_KVM => "KVM is missing or cannot run the guest: see `kata-cc doctor`".into(),
        exit::GUEST_FAULT => "the guest broke a device's contract and was stopped".into(),
        code => format!("the virtual machine monitor failed with exit code {code}"),
    }
}
