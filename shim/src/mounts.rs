//! The root file system that containerd's snapshotter describes: mounting it on `<bundle>/rootfs` and back.
//!
//! The server has its own mount namespace (see `crate::daemon`), a slave of the host's: what it mounts is seen by
//! itself and the VMM only, and is gone with them, whatever happens.

use std::path::{Path, PathBuf};

use kata_cc_containerd_protocol::mount::Mount;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use thiserror::Error;

/// The kernel takes one page of options.
const LONGEST: usize = 4000;

/// Why the root file system could not be mounted.
#[derive(Debug, Error)]
pub enum MountError {
    /// The target folder is missing and cannot be made.
    #[error("cannot make {0}: {1}")]
    Target(PathBuf, std::io::Error),
    /// mount(2) failed.
    #[error("cannot mount {kind} {from:?} on {target} with options {options:?}: {error}")]
    Mount {
        /// File system type.
        kind: String,
        /// Source.
        from: String,
        /// Where to.
        target: PathBuf,
        /// Options as given.
        options: Vec<String>,
        /// The kernel's answer.
        error: Errno,
    },
}

/// Mount all of them, in order, on `target`. After a failure nothing stays mounted.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<(), MountError> {
    std::fs::create_dir_all(target).map_err(|error| MountError::Target(target.to_owned(), error))?;
    for one in mounts {
        if let Err(error) = mount_one(one, target) {
            unmount_all(target);
            return Err(error);
        }
    }
    Ok(())
}

fn mount_one(one: &Mount, target: &Path) -> Result<(), MountError> {
    let parsed = Options::parse(&one.options);
    let failed = |error| MountError::Mount {
        kind: one.type_.clone(),
        from: one.source.clone(),
        target: target.to_owned(),
        options: one.options.clone(),
        error,
    };
    let (data, _kept_open) = shorten(&parsed.data);
    let bind = parsed.flags.contains(MsFlags::MS_BIND) || one.type_ == "bind";
    let first = if bind { parsed.flags | MsFlags::MS_BIND } else { parsed.flags };
    let data = Some(data.as_str()).filter(|data| !data.is_empty() && !bind);
    mount(Some(one.source.as_str()), target, Some(one.type_.as_str()), first, data).map_err(failed)?;
    // A bind mount takes flags such as read-only in a second step only.
    if bind && parsed.flags.intersects(!(MsFlags::MS_BIND | MsFlags::MS_REC)) {
        let again = first | MsFlags::MS_REMOUNT;
        mount(None::<&str>, target, None::<&str>, again, None::<&str>).map_err(failed)?;
    }
    Ok(())
}

/// Unmount everything on `target`; nothing mounted there is fine.
pub fn unmount_all(target: &Path) {
    // Bounded: no sane stack of mounts is deeper.
    for _ in 0..32 {
        if umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_err() {
            return;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MsFlags,
    data: String,
}

impl Options {
    fn parse(options: &[String]) -> Self {
        let mut flags = MsFlags::empty();
        let mut data = Vec::new();
        for option in options {
            let (set, clear) = match option.as_str() {
                "ro" => (MsFlags::MS_RDONLY, MsFlags::empty()),
                "rw" => (MsFlags::empty(), MsFlags::MS_RDONLY),
                "bind" => (MsFlags::MS_BIND, MsFlags::empty()),
                "rbind" => (MsFlags::MS_BIND | MsFlags::MS_REC, MsFlags::empty()),
                "nosuid" => (MsFlags::MS_NOSUID, MsFlags::empty()),
                "suid" => (MsFlags::empty(), MsFlags::MS_NOSUID),
                "nodev" => (MsFlags::MS_NODEV, MsFlags::empty()),
                "dev" => (MsFlags::empty(), MsFlags::MS_NODEV),
                "noexec" => (MsFlags::MS_NOEXEC, MsFlags::empty()),
                "exec" => (MsFlags::empty(), MsFlags::MS_NOEXEC),
                "noatime" => (MsFlags::MS_NOATIME, MsFlags::empty()),
                "relatime" => (MsFlags::MS_RELATIME, MsFlags::empty()),
                "sync" => (MsFlags::MS_SYNCHRONOUS, MsFlags::empty()),
                "defaults" | "async" => (MsFlags::empty(), MsFlags::empty()),
                // tells Kata's shim to pull in the guest; no file system knows it
                kata if kata.starts_with("io.katacontainers.volume=") => continue,
                other => {
                    data.push(other);
                    continue;
                }
            };
            flags = (flags - clear) | set;
        }
        Self { flags, data: data.join(",") }
    }
}

/// Overlay options of an image with many layers exceed the page that the kernel takes: name the snapshots' common
/// folder through a descriptor, which must stay open until the mount is made.
fn shorten(data: &str) -> (String, Option<std::fs::File>) {
    use std::os::fd::AsRawFd;
    let unchanged = || (data.to_owned(), None);
    if data.len() <= LONGEST {
        return unchanged();
    }
    let Some(lower) = data.split(',').find_map(|option| option.strip_prefix("lowerdir=")) else {
        return unchanged();
    };
    let Some(common) = common_folder(lower) else { return unchanged() };
    let Ok(folder) = std::fs::File::open(&common) else { return unchanged() };
    let short = format!("/proc/self/fd/{}/", folder.as_raw_fd());
    (data.replace(&common, &short), Some(folder))
}

/// The longest folder, with its last slash, that all the layers lie in.
fn common_folder(lower: &str) -> Option<String> {
    let mut layers = lower.split(':');
    let first = layers.next()?;
    let mut common = &first[..=first.rfind('/')?];
    for layer in layers {
        while !layer.starts_with(common) {
            let parent = common.strip_suffix('/')?;
            common = &parent[..=parent.rfind('/')?];
        }
    }
    (common.len() > 1).then(|| common.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_are_split_into_flags_and_data() {
        let options =
            Options::parse(&words("ro nosuid rw workdir=/w upperdir=/u io.katacontainers.volume=e30="));
        assert_eq!(options.flags, MsFlags::MS_NOSUID);
        assert_eq!(options.data, "workdir=/w,upperdir=/u");
        assert_eq!(
            Options::parse(&words("rbind ro")).flags,
            MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY
        );
    }

    #[test]
    fn many_layers_are_named_through_a_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = folder.path().join("io.containerd.snapshotter.v1.overlayfs/snapshots");
        std::fs::create_dir_all(&snapshots).unwrap();
        let lower: Vec<String> = (0..120).map(|n| format!("{}/{n}/fs", snapshots.display())).collect();
        let data = format!("workdir=/w,lowerdir={}", lower.join(":"));
        let (short, open) = shorten(&data);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&open.unwrap());
        assert!(short.len() < LONGEST, "{}", short.len());
        assert!(
            short
                .starts_with(&format!("workdir=/w,lowerdir=/proc/self/fd/{fd}/0/fs:/proc/self/fd/{fd}/1/fs"))
        );
        assert_eq!(shorten("lowerdir=/a:/b").0, "lowerdir=/a:/b");
    }

    #[test]
    fn a_failed_mount_names_everything() {
        let folder = tempfile::tempdir().unwrap();
        let one = Mount { type_: "nosuchfs".into(), source: "none".into(), ..Mount::default() };
        let error = mount_all(&[one], &folder.path().join("rootfs")).unwrap_err().to_string();
        assert!(error.contains("nosuchfs"), "{error}");
    }
}
