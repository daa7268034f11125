//! `mounts`, `mountinfo`, `mountstats` (`fs/proc_namespace.c`; `man 5 proc_pid_mountinfo`).

use std::sync::Arc;

use super::super::{Caller, Mount, MountFlags, device_parts};
use super::process::View;
use crate::error::Errno;

type Read = Result<Vec<u8>, Errno>;

/// A mount as the process sees it.
struct Seen {
    mount: Arc<Mount>,
    parent: u64,
    path: Vec<u8>,
}

/// All mounts below the root of the process; those without a path from there are left out.
fn seen(view: &View) -> Result<Vec<Seen>, Errno> {
    let task = view.task.as_ref().ok_or(Errno::EINVAL)?;
    let root = task.fs().root();
    let all = task.namespaces().mounts.mounts();
    let path = |mount: &Arc<Mount>| {
        if Arc::ptr_eq(mount, &root.mount) {
            return Some(b"/".to_vec());
        }
        mount.root_place().path(&root)
    };
    let one = |mount: Arc<Mount>| {
        let path = path(&mount)?;
        let parent = mount.at().map_or(mount.id(), |at| at.mount.id());
        Some(Seen { mount, parent, path })
    };
    Ok(all.into_iter().filter_map(one).collect())
}

/// Escapes what would end a field (`mangle` in `fs/seq_file.c`).
fn escape(text: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => escaped.extend(format!("\\{byte:03o}").into_bytes()),
            other => escaped.push(*other),
        }
    }
    escaped
}

fn options(mount: &Mount) -> String {
    let flags = mount.flags();
    let mut text = if flags.contains(MountFlags::READ_ONLY) { "ro" } else { "rw" }.to_owned();
    for (flag, name) in [
        (MountFlags::NO_SUID, ",nosuid"),
        (MountFlags::NO_DEV, ",nodev"),
        (MountFlags::NO_EXEC, ",noexec"),
        (MountFlags::NO_ATIME, ",noatime"),
        (MountFlags::NO_DIR_ATIME, ",nodiratime"),
        (MountFlags::NO_SYMFOLLOW, ",nosymfollow"),
    ] {
        if flags.contains(flag) {
            text.push_str(name);
        }
    }
    if !flags.intersects(MountFlags::NO_ATIME | MountFlags::STRICT_ATIME) {
        text.push_str(",relatime");
    }
    text
}

/// Name of its file system, and whether that can be changed.
fn file_system(mount: &Mount) -> (&'static str, &'static str) {
    let fs = &mount.root().tree().fs;
    (fs.name(), if fs.read_only() { "ro" } else { "rw" })
}

fn lines(view: &View, line: impl Fn(&Seen) -> Vec<u8>) -> Read {
    Ok(seen(view)?.iter().map(line).collect::<Vec<_>>().concat())
}

/// `mounts`: device, place, type, options, and two numbers for old programs.
pub(super) fn mounts(view: &View, _: &Caller) -> Read {
    lines(view, |seen| {
        let (name, _) = file_system(&seen.mount);
        let rest = format!(" {name} {} 0 0\n", options(&seen.mount));
        [&escape(seen.mount.source()), b" ".as_slice(), &escape(&seen.path), rest.as_bytes()].concat()
    })
}

/// `mountinfo`: number, parent, device, root in the file system, place, options, nothing optional, type, source, options of the file
/// system.
pub(super) fn mountinfo(view: &View, _: &Caller) -> Read {
    lines(view, |seen| {
        let (name, access) = file_system(&seen.mount);
        let root = seen.mount.root();
        let device = root.inode().attributes().map_or(0, |attributes| attributes.device);
        let (major, minor) = device_parts(device);
        let head = format!("{} {} {major}:{minor} ", seen.mount.id(), seen.parent);
        let middle = format!(" {}{} - {name} ", options(&seen.mount), optional(&seen.mount));
        let tail = format!(" {access}\n");
        let inside = escape(&path_in(root));
        let source = escape(seen.mount.source());
        let path = escape(&seen.path);
        [head.as_bytes(), &inside, b" ", &path, middle.as_bytes(), &source, tail.as_bytes()].concat()
    })
}

/// How the mount shares what happens to it.
fn optional(mount: &Mount) -> String {
    let sharing = mount.propagation();
    let part =
        |name: &str, group: Option<u64>| group.map(|group| format!(" {name}:{group}")).unwrap_or_default();
    let unbindable = if sharing.unbindable { " unbindable" } else { "" };
    part("shared", sharing.shared) + &part("master", sharing.master) + unbindable
}

/// Path of a name in its file system; of a namespace's file, which.
fn path_in(dentry: &Arc<super::super::Dentry>) -> Vec<u8> {
    if let Some(namespace) = dentry.inode().downcast::<super::super::nsfs::NamespaceInode>() {
        return namespace.label().into_bytes();
    }
    let (mut names, mut at) = (Vec::new(), Arc::clone(dentry));
    while let Some(parent) = at.parent() {
        names.push(at.name());
        at = parent;
    }
    let path: Vec<u8> = names.iter().rev().flat_map(|name| [b"/".as_slice(), name].concat()).collect();
    if path.is_empty() { b"/".to_vec() } else { path }
}

/// `mountstats`.
pub(super) fn mountstats(view: &View, _: &Caller) -> Read {
    lines(view, |seen| {
        let (name, _) = file_system(&seen.mount);
        let source = String::from_utf8_lossy(seen.mount.source()).into_owned();
        let head = format!("device {source} mounted on ");
        let tail = format!(" with fstype {name}\n");
        [head.as_bytes(), &escape(&seen.path), tail.as_bytes()].concat()
    })
}
