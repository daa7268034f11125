//! What the tests of the VMM share: its binary, a folder, a configuration.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kata_cc_vmm_api::VmConfig;

/// Longest wait for anything: the lab is some twenty times slower than a machine, and where other work takes that machine's
/// processors, starts of 258 s were seen that ended well.
pub const PATIENCE: Duration = Duration::from_secs(600);

pub fn vmm() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kata-cc-vmm"))
}

/// A folder for sockets: short, and never on a shared file system.
pub fn folder() -> tempfile::TempDir {
    let base = if Path::new("/run").is_dir() && nix::unistd::geteuid().is_root() { "/run" } else { "/tmp" };
    tempfile::Builder::new().prefix("kata-cc-vmm-test.").tempdir_in(base).expect("folder")
}

pub fn config(folder: &Path, kernel: &Path) -> VmConfig {
    serde_json::from_value(serde_json::json!({
        "id": "test",
        "vcpus": 1,
        "memory_mib": 128,
        "boot": {"kernel": kernel, "cmdline": "console=ttyS0 reboot=k panic=-1 quiet"},
        "console": folder.join("console"),
        "control_socket": folder.join("vmm.sock"),
    }))
    .expect("a valid configuration")
}

pub fn write_config(folder: &Path, config: &VmConfig) -> PathBuf {
    let path = folder.join("vm.json");
    std::fs::write(&path, serde_json::to_vec_pretty(config).expect("json")).expect("written");
    path
}

/// Kills what it holds when the test fails.
pub struct Running(pub Child);

impl Running {
    pub fn start(folder: &Path, config: &VmConfig) -> Self {
        let log = std::fs::File::create(folder.join("log")).expect("log");
        let child = vmm()
            .arg("--die-with-parent")
            .arg("--config")
            .arg(write_config(folder, config))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("vmm starts");
        Self(child)
    }

    pub fn exit_code(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().expect("wait") {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "the vmm did not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the file holds the text, and returns the file's content.
pub fn wait_for(path: &Path, text: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let content = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        if content.contains(text) {
            return content;
        }
        assert!(Instant::now() < deadline, "no {text:?} in {}:\n{content}", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Folder of the guest image and of stage0: `KATA_CC_SHARE_DIR`, or `share` of the build cache.
pub fn share() -> PathBuf {
    std::env::var_os("KATA_CC_SHARE_DIR").map_or_else(|| cache().join("share"), PathBuf::from)
}

/// Folder of what is dear to build.
pub fn cache() -> PathBuf {
    std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| std::env::home_dir().unwrap_or_default().join(".cache"), PathBuf::from)
        .join("kata-cc")
}

/// A guest kernel, from `KATA_CC_GUEST_KERNEL` (a folder) or the guest image: `vmlinux` and `bzImage` of plain guests, with `-tee`
/// behind of confidential ones.
pub fn kernel(file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("KATA_CC_GUEST_KERNEL").map_or_else(share, PathBuf::from);
    Some(folder.join(file)).filter(|path| path.is_file())
}

/// Why tests that need KVM must be skipped here, if so.
pub fn no_kvm() -> Option<String> {
    let output = vmm().arg("--probe").output().expect("probe runs");
    let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    (verdict["usable"] != true).then(|| verdict["reason"].to_string())
}
