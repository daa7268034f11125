//! Podman with the runtime under test.

use std::process::Command;

use super::{Done, RUNTIME, World, finish};

/// A Podman with storage of its own.
pub(crate) struct Podman {
    pub(crate) world: World,
    /// Who makes control groups: `cgroupfs` or `systemd`.
    manager: &'static str,
}

impl Podman {
    pub(crate) fn new(manager: &'static str) -> Option<Self> {
        let there = Command::new("podman").arg("--version").output();
        if there.is_err() {
            kata_cc_test_vectors::skip("binaries", "there is no podman: install podman");
            return None;
        }
        let podman = Self { world: World::new()?, manager };
        let archive = podman.world.path("rootfs.tar");
        let bundle = podman.world.bundle("image", "true");
        let tar = Command::new("tar")
            .arg("-cf")
            .arg(&archive)
            .arg("-C")
            .arg(bundle.join("rootfs"))
            .arg(".")
            .status();
        assert!(tar.unwrap().success());
        podman.run(&["import", "--change", "ENV PATH=/bin", &archive.to_string_lossy(), "box"]).ok();
        Some(podman)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("podman");
        for (flag, name) in [("--root", "storage"), ("--runroot", "runroot"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(self.world.path(name));
        }
        command.args(["--storage-driver", "vfs", "--events-backend", "none"]);
        command.args(["--cgroup-manager", self.manager]);
        command.arg("--runtime").arg(RUNTIME).args(words);
        command.stdin(std::process::Stdio::null());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Done {
        finish(&mut self.command(words))
    }

    /// `run`, with what a machine without networks needs.
    pub(crate) fn container(&self, options: &[&str], command: &[&str]) -> Done {
        let fixed =
            ["run", "--network=none", "--log-driver=k8s-file", "--security-opt", "seccomp=unconfined"];
        self.run(&[&fixed, options, &["box"], command].concat())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.run(&["rm", "--all", "--force", "--time", "0"]);
    }
}
