//! mount(8) option strings to flags, propagation and file-system data; also the agent's own mounts.
//!
//! Source: mount(8) "filesystem-independent mount options" and OCI runtime-spec `config.md`, mounts. Options that
//! are none of these go to the file system as they are.

use std::path::Path;

use nix::mount::{MsFlags, mount};

use crate::stage::message::Mount;

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
    for option in options.iter().flat_map(|o| o.as_ref().split(',')) {
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
        let seen = parse(&["rbind", "ro", "nosuid", "rprivate", "size=64k,mode=755"]);
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
        assert_eq!(seen.flags, flags.bits());
        assert_eq!(seen.propagation, [(MsFlags::MS_PRIVATE | MsFlags::MS_REC).bits()]);
        assert_eq!(seen.data, "size=64k,mode=755");
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
