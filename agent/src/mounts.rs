//! mount(8) option strings to flags, propagation and file-system data; also the agent's own mounts.
//!
//! Source: mount(8) "filesystem-independent mount options" and OCI runtime-spec `config.md`, mounts. Options that
//! are none of these go to the file system as they are.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, mkdirat};
use thiserror::Error;

use crate::stage::message::Mount;

/// Why a mount of an OCI configuration or a storage's option is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum OptionError {
    /// A policy compares whole options: what hides a second one behind a comma is not taken apart.
    #[error("mount option {0:?} has a comma: give one option at a time")]
    Comma(String),
    /// An option that turns a mount into another operation than its type says.
    #[error("mount option {option:?} does not go with type {kind:?}")]
    Operation {
        /// The option.
        option: String,
        /// Type of the mount, or driver of the storage.
        kind: String,
    },
}

/// Types of a mount whose options may say that it is a bind mount.
const BIND_TYPES: [&str; 3] = ["bind", "none", ""];

/// Refuses options that [`parse`] would read otherwise than a policy, which sees them as they are.
pub(crate) fn check_options(kind: &str, options: &[String]) -> Result<(), OptionError> {
    for option in options {
        if option.contains(',') {
            return Err(OptionError::Comma(option.clone()));
        }
        let bind = matches!(option.as_str(), "bind" | "rbind") && !BIND_TYPES.contains(&kind);
        if bind || matches!(option.as_str(), "remount" | "move") {
            return Err(OptionError::Operation { option: option.clone(), kind: kind.to_owned() });
        }
    }
    Ok(())
}

const SET: [(&str, MsFlags); 14] = [
    ("ro", MsFlags::MS_RDONLY),
    ("nosuid", MsFlags::MS_NOSUID),
    ("nodev", MsFlags::MS_NODEV),
    ("noexec", MsFlags::MS_NOEXEC),
    ("sync", MsFlags::MS_SYNCHRONOUS),
    ("dirsync", MsFlags::MS_DIRSYNC),
    ("remount", MsFlags::MS_REMOUNT),
    ("mand", MsFlags::MS_MANDLOCK),
    ("noatime", MsFlags::MS_NOATIME),
    ("nodiratime", MsFlags::MS_NODIRATIME),
    ("relatime", MsFlags::MS_RELATIME),
    ("strictatime", MsFlags::MS_STRICTATIME),
    ("silent", MsFlags::MS_SILENT),
    ("iversion", MsFlags::MS_I_VERSION),
];
const CLEAR: [(&str, MsFlags); 12] = [
    ("rw", MsFlags::MS_RDONLY),
    ("suid", MsFlags::MS_NOSUID),
    ("dev", MsFlags::MS_NODEV),
    ("exec", MsFlags::MS_NOEXEC),
    ("async", MsFlags::MS_SYNCHRONOUS),
    ("nomand", MsFlags::MS_MANDLOCK),
    ("atime", MsFlags::MS_NOATIME),
    ("diratime", MsFlags::MS_NODIRATIME),
    ("norelatime", MsFlags::MS_RELATIME),
    ("nostrictatime", MsFlags::MS_STRICTATIME),
    ("loud", MsFlags::MS_SILENT),
    ("noiversion", MsFlags::MS_I_VERSION),
];

/// What option strings mean.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Mount flags.
    pub(crate) flags: u64,
    /// Propagation changes, to be made one by one after the mount.
    pub(crate) propagation: Vec<u64>,
    /// The rest, joined by commas.
    pub(crate) data: String,
}

/// Takes options apart.
pub(crate) fn parse<S: AsRef<str>>(options: &[S]) -> Options {
    let mut flags = MsFlags::empty();
    let mut propagation = Vec::new();
    let mut data: Vec<&str> = Vec::new();
    for option in options.iter().map(AsRef::as_ref) {
        if let Some((_, flag)) = SET.iter().find(|(name, _)| *name == option) {
            flags |= *flag;
        } else if let Some((_, flag)) = CLEAR.iter().find(|(name, _)| *name == option) {
            flags &= !*flag;
        } else if let Some(flag) = propagation_flag(option) {
            propagation.push(flag);
        } else {
            match option {
                "bind" => flags |= MsFlags::MS_BIND,
                "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
                // Not options but markers of tools; SELinux is not in the guest.
                "" | "defaults" | "tmpcopyup" | "nofail" => {}
                o if o.starts_with("x-") || o.starts_with("X-") => {}
                o if o.starts_with("io.katacontainers.") => {}
                other => data.push(other),
            }
        }
    }
    Options { flags: flags.bits(), propagation, data: data.join(",") }
}

/// `shared`, `rslave` and so on.
pub(crate) fn propagation_flag(option: &str) -> Option<u64> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(name) => (name, MsFlags::MS_REC),
        None => (option, MsFlags::empty()),
    };
    let flag = match name {
        "shared" => MsFlags::MS_SHARED,
        "slave" => MsFlags::MS_SLAVE,
        "private" => MsFlags::MS_PRIVATE,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        _ => return None,
    };
    Some((flag | recursive).bits())
}

/// A mount of an OCI configuration.
pub(crate) fn from_oci(m: &kata_cc_agent_protocol::oci::Mount) -> Mount {
    let mut options = parse(&m.options);
    if m.type_ == "bind" {
        options.flags |= MsFlags::MS_BIND.bits();
    }
    Mount {
        destination: m.destination.clone(),
        source: m.source.clone(),
        fstype: m.type_.clone(),
        flags: options.flags,
        propagation: options.propagation,
        data: options.data,
    }
}

/// Makes the folder `path` below `base` and opens it as a mount point. No symbolic link is followed on the way: a
/// container may have put one into a volume, an image into its root.
pub(crate) fn make_point(base: &Path, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how =
        OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    std::fs::create_dir_all(base)?;
    let mut folder = open(base, flags, Mode::empty())?;
    for part in path.strip_prefix(base).map_err(io::Error::other)?.components() {
        let Component::Normal(name) = part else {
            return Err(io::Error::other("a mount point has plain components only"));
        };
        folder = match openat2(&folder, name, how) {
            Err(Errno::ENOENT) => {
                match mkdirat(&folder, name, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(e) => return Err(e.into()),
                }
                openat2(&folder, name, how)?
            }
            other => other?,
        };
    }
    Ok(folder)
}

/// The path by which the kernel mounts on, or reaches, what a descriptor stands for.
pub(crate) fn by_descriptor(fd: &OwnedFd) -> std::path::PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// Mounts in the guest's own view; makes the mount point.
pub(crate) fn mount_at<S: AsRef<str>>(
    source: &str,
    target: &Path,
    fstype: &str,
    options: &[S],
) -> std::io::Result<()> {
    let parsed = parse(options);
    let flags = MsFlags::from_bits_retain(parsed.flags);
    let file = flags.contains(MsFlags::MS_BIND) && std::fs::metadata(source).is_ok_and(|m| !m.is_dir());
    if file {
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::OpenOptions::new().create(true).append(true).open(target)?;
    } else {
        std::fs::create_dir_all(target)?;
    }
    let data = Some(parsed.data.as_str()).filter(|d| !d.is_empty());
    mount(Some(source), target, Some(fstype), flags, data)?;
    let readonly_bind = flags.contains(MsFlags::MS_BIND) && flags.contains(MsFlags::MS_RDONLY);
    if readonly_bind {
        let again = flags | MsFlags::MS_REMOUNT;
        mount(None::<&str>, target, None::<&str>, again, None::<&str>)?;
    }
    for propagation in parsed.propagation {
        let flags = MsFlags::from_bits_retain(propagation);
        mount(None::<&str>, target, None::<&str>, flags, None::<&str>)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sorted_into_flags_and_data() {
        let seen = parse(&["rbind", "ro", "nosuid", "rprivate", "size=64k", "mode=755"]);
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
        assert_eq!(seen.flags, flags.bits());
        assert_eq!(seen.propagation, [(MsFlags::MS_PRIVATE | MsFlags::MS_REC).bits()]);
        assert_eq!(seen.data, "size=64k,mode=755");
    }

    #[test]
    fn an_option_means_the_same_to_policy_and_kernel() {
        let check = |kind: &str, option: &str| check_options(kind, &[option.to_owned()]);
        for (kind, option) in [
            ("tmpfs", "ro,bind"),
            ("tmpfs", "rbind"),
            ("proc", "bind"),
            ("bind", "ro,rbind"),
            ("tmpfs", "remount"),
        ] {
            assert!(check(kind, option).is_err(), "{kind} {option}");
        }
        for (kind, option) in [("bind", "rbind"), ("", "bind"), ("none", "rbind"), ("tmpfs", "size=64k")] {
            assert_eq!(check(kind, option), Ok(()));
        }
        // And nothing behind a comma is an option for whoever forgets to check.
        assert_eq!(parse(&["ro,rbind"]).flags, 0);
    }

    #[test]
    fn a_mount_point_is_not_made_through_a_link() {
        let base = std::env::temp_dir().join(format!("kata-cc-point-{}", std::process::id()));
        std::fs::create_dir_all(base.join("volume")).unwrap();
        std::os::unix::fs::symlink("/tmp", base.join("volume/link")).unwrap();
        assert!(make_point(&base, &base.join("volume/link/x")).is_err());
        assert!(make_point(&base, &base.join("volume/link")).is_err());
        assert!(make_point(&base, Path::new("/etc")).is_err());
        make_point(&base, &base.join("volume/a/b")).unwrap();
        assert!(base.join("volume/a/b").is_dir());
        std::fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn later_options_win() {
        assert_eq!(parse(&["ro", "rw"]).flags, 0);
        assert_eq!(parse(&["noexec", "exec", "nodev"]).flags, MsFlags::MS_NODEV.bits());
    }

    #[test]
    fn relatime_is_no_recursive_option() {
        assert_eq!(parse(&["relatime"]).flags, MsFlags::MS_RELATIME.bits());
        assert_eq!(propagation_flag("ro"), None);
    }
}
