//! Where a node keeps things; `docs/design.md` has the table. Each folder can be moved by an environment variable.

use std::path::{Path, PathBuf};

fn dir(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map_or_else(|| default.into(), PathBuf::from)
}

/// Run-time folders of sandboxes: `KATA_CC_RUN_DIR`, or `/run/kata-cc`.
#[must_use]
pub fn run_dir() -> PathBuf {
    dir("KATA_CC_RUN_DIR", "/run/kata-cc")
}

/// What is kept after a sandbox's end: `KATA_CC_STATE_DIR`, or `/var/lib/kata-cc`.
#[must_use]
pub fn state_dir() -> PathBuf {
    dir("KATA_CC_STATE_DIR", "/var/lib/kata-cc")
}

/// Guest image: `KATA_CC_SHARE_DIR`, or `/usr/share/kata-cc`.
#[must_use]
pub fn share_dir() -> PathBuf {
    dir("KATA_CC_SHARE_DIR", "/usr/share/kata-cc")
}

/// Node configuration: `KATA_CC_CONFIG`, or `/etc/kata-cc/config.toml`.
#[must_use]
pub fn config_file() -> PathBuf {
    dir("KATA_CC_CONFIG", "/etc/kata-cc/config.toml")
}

/// Throw-away platform of the simulated TEE.
#[must_use]
pub fn sim_platform() -> PathBuf {
    state_dir().join("sim")
}

/// Digests of kernels and initramfs, which the monitor keeps.
#[must_use]
pub fn digests() -> PathBuf {
    state_dir().join("digests")
}

/// Disks of sandboxes, a folder each.
#[must_use]
pub fn disks() -> PathBuf {
    state_dir().join("disks")
}

/// Records of sandboxes, one folder each.
#[must_use]
pub fn records() -> PathBuf {
    state_dir().join("sandboxes")
}

/// One of our programs: beside the running one, else found in `PATH` by whoever starts it.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(|dir| dir.join(name));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| name.into())
}

/// The file of a program: the path as it is, or along `PATH` where it is a bare name.
#[must_use]
pub fn find(program: &Path) -> Option<PathBuf> {
    let usable = |path: &Path| path.is_file().then(|| path.to_owned());
    if program.components().count() > 1 {
        return usable(program);
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).find_map(|folder| usable(&folder.join(program)))
}

/// Whether a text can name a sandbox: 1 to 128 characters of `[A-Za-z0-9_.-]`, not starting with a dot.
#[must_use]
pub fn is_id(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// Longest path of a Unix socket, with its final zero (`sockaddr_un`).
pub(crate) const SOCKET_PATH_MAX: usize = 107;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{find, is_id};

    #[test]
    fn programs_are_found_by_path_and_by_name() {
        assert!(find(Path::new("sh")).is_some() && find(Path::new("/bin/sh")).is_some());
        assert!(find(Path::new("/bin")).is_none() && find(Path::new("kata-cc-no-such-program")).is_none());
    }

    #[test]
    fn ids_cannot_leave_their_folder() {
        for good in ["a", "pod-1_x.y", &"x".repeat(128)] {
            assert!(is_id(good), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(!is_id(bad), "{bad}");
        }
    }
}
