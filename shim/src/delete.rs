//! The `delete` action: clean up after a server that died or cannot be reached.
//!
//! containerd runs it in any bundle of the pod, so only `-id` and `-bundle` count. For a pod's first container the
//! whole sandbox is taken down: server, VMM, run-time folder, network devices, socket. For a member only its own
//! mount goes, since the pod may be alive and well.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use kata_cc_containerd_protocol::task_v3::DeleteResponse;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protobuf::{Message, MessageField};

use crate::events::timestamp;
use crate::flags::Flags;
use crate::grouping::{self, Kind};
use crate::machine::KILLED_EXIT;
use crate::start::{ADDRESS_FILE, PID_FILE, annotations};
use crate::{mounts, socket};

/// Do it; the bytes to print. `take_down` removes what a sandbox left on the host.
pub fn delete(flags: &Flags, take_down: impl FnOnce(&str) -> anyhow::Result<()>) -> anyhow::Result<Vec<u8>> {
    let bundle = match &flags.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().context("cannot tell the bundle")?,
    };
    let group = grouping::group(&flags.id, &annotations(&bundle).unwrap_or_default());
    let pid = read_pid(&bundle);
    if group.kind != Kind::Member {
        if let Some(pid) = pid {
            end_server(pid, &flags.id);
        }
        if let Err(error) = take_down(&group.id) {
            // stderr is for warnings: what could be removed is removed, and containerd goes on
            eprintln!("sandbox {}: {error:#}", group.id);
        }
        remove_socket(&bundle);
    }
    mounts::unmount_all(&bundle.join("rootfs"));
    let answer = DeleteResponse {
        pid: pid.unwrap_or_default(),
        exit_status: KILLED_EXIT,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..DeleteResponse::default()
    };
    Ok(answer.write_to_bytes()?)
}

fn read_pid(bundle: &Path) -> Option<u32> {
    std::fs::read_to_string(bundle.join(PID_FILE)).ok()?.trim().parse().ok()
}

/// Kill the server if that process id is still its, and wait for its end: the VMM ends with it.
fn end_server(pid: u32, id: &str) {
    let Ok(raw) = i32::try_from(pid) else { return };
    if !is_server(pid, id) {
        return;
    }
    let _ = kill(Pid::from_raw(raw), Signal::SIGKILL);
    let start = Instant::now();
    while is_server(pid, id) && start.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the process runs this program for that id (a zombie has no command line).
fn is_server(pid: u32, id: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let ours =
        words.first().is_some_and(|name| String::from_utf8_lossy(name).contains("containerd-shim-kata-cc"));
    ours && words.windows(2).any(|pair| pair == [b"-id", id.as_bytes()])
}

fn remove_socket(bundle: &Path) {
    let address = std::fs::read_to_string(bundle.join(ADDRESS_FILE)).unwrap_or_default();
    if let Some(path) =
        address.trim().strip_prefix("unix://").map(PathBuf::from).filter(|path| path.is_absolute())
    {
        socket::remove(&path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::Action;

    fn flags(bundle: &Path) -> Flags {
        Flags {
            action: Action::Delete,
            id: "c1".into(),
            namespace: "n".into(),
            bundle: Some(bundle.into()),
            ..Flags::default()
        }
    }

    #[test]
    fn a_single_container_takes_its_sandbox_and_socket_down() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        std::fs::write(&socket, "").unwrap();
        std::fs::write(folder.path().join(ADDRESS_FILE), format!("unix://{}", socket.display())).unwrap();
        // A process id that is now another program's must not be killed: this test's own.
        std::fs::write(folder.path().join(PID_FILE), std::process::id().to_string()).unwrap();
        let mut taken = Vec::new();
        let bytes = delete(&flags(folder.path()), |id| {
            taken.push(id.to_owned());
            Ok(())
        });
        let answer = DeleteResponse::parse_from_bytes(&bytes.unwrap()).unwrap();
        assert_eq!(taken, ["c1"]);
        assert!(!socket.exists());
        assert_eq!((answer.exit_status, answer.pid), (137, std::process::id()));
        assert!(answer.exited_at.seconds > 0);
    }

    #[test]
    fn a_member_leaves_the_sandbox_alone() {
        let folder = tempfile::tempdir().unwrap();
        let config = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#;
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        delete(&flags(folder.path()), |_| panic!("the sandbox is another's")).unwrap();
    }

    #[test]
    fn what_cannot_be_removed_does_not_stop_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        assert!(delete(&flags(folder.path()), |_| anyhow::bail!("busy")).is_ok());
    }
}
