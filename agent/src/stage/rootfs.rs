//! The container's view of the file system: mounts, devices, `pivot_root`, masked and read-only paths.
//!
//! Every path inside the root file system is opened with `openat2(RESOLVE_IN_ROOT)` and mounted on through
//! `/proc/self/fd`, so neither a symbolic link in the image nor one made by another container can lead a mount
//! out of the root. Destinations that do not exist are made, one component at a time, the same way.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag};

use super::message::{Create, DeviceNode, Mount};

const NONE: Option<&str> = None;
/// Links every container expects in `/dev`.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];
/// Nodes every container has (OCI runtime-spec, config-linux, default devices).
const NODES: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Builds the file system view and makes it the root.
pub(crate) fn enter(create: &Create, terminal: bool) -> Result<()> {
    let propagation = match create.propagation {
        0 => MsFlags::MS_SLAVE | MsFlags::MS_REC,
        bits => MsFlags::from_bits_retain(bits),
    };
    mount(NONE, "/", NONE, propagation, NONE).context("set mount propagation")?;
    let rootfs = create.rootfs.as_path();
    mount(Some(rootfs), rootfs, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
        .with_context(|| format!("bind {}", rootfs.display()))?;
    // pivot_root refuses a shared parent; the bind above may have inherited sharing.
    mount(NONE, rootfs, NONE, MsFlags::MS_PRIVATE, NONE).context("make the root private")?;
    let root = open_root(rootfs)?;
    for entry in &create.mounts {
        mount_one(&root, entry)
            .with_context(|| format!("mount {} ({}) on {}", entry.source, entry.fstype, entry.destination))?;
    }
    devices(&root, create).context("make devices")?;
    pivot(rootfs).context("change root")?;
    finish(create, terminal)
}

fn open_root(path: &Path) -> Result<OwnedFd> {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .with_context(|| format!("open {}", path.display()))
}

fn open_in(root: &OwnedFd, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    let path = path.trim_start_matches('/');
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, if path.is_empty() { "." } else { path }, how)
}

/// Opens a folder in the root, making what is missing.
fn make_folder(root: &OwnedFd, path: &str) -> Result<OwnedFd> {
    let mut walked = String::new();
    let mut folder = open_in(root, "", OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
        if part == ".." {
            bail!("{path} has a parent component");
        }
        walked.push('/');
        walked.push_str(part);
        let open = || open_in(root, &walked, OFlag::O_PATH | OFlag::O_DIRECTORY);
        folder = match open() {
            Err(Errno::ENOENT) => {
                match nix::sys::stat::mkdirat(&folder, part, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(e) => return Err(e).with_context(|| format!("make {walked}")),
                }
                open().with_context(|| format!("open {walked}"))?
            }
            other => other.with_context(|| format!("open {walked}"))?,
        };
    }
    Ok(folder)
}

/// Opens a file in the root as a mount target, making an empty one when it is missing.
fn make_file(root: &OwnedFd, path: &str) -> Result<OwnedFd> {
    match open_in(root, path, OFlag::O_PATH) {
        Err(Errno::ENOENT) => {}
        other => return other.with_context(|| format!("open {path}")),
    }
    let (parent, name) = split(path)?;
    let parent = make_folder(root, parent)?;
    match nix::fcntl::openat(
        &parent,
        name,
        OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW,
        Mode::from_bits_truncate(0o644),
    ) {
        Ok(_) | Err(Errno::EEXIST) => {}
        Err(e) => return Err(e).with_context(|| format!("make {path}")),
    }
    open_in(root, path, OFlag::O_PATH).with_context(|| format!("open {path}"))
}

fn split(path: &str) -> Result<(&str, &str)> {
    let path = path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name.is_empty() || name == ".." || name == "." {
        bail!("{path:?} names no file");
    }
    Ok((parent, name))
}

fn proc_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens what is to be bound. Below Kata's folder no link is followed: the host copies links in, containers make them in
/// volumes, and either could stand for any file of the guest.
fn open_source(source: &str) -> Result<OwnedFd> {
    let resolve = match Path::new(source).starts_with(crate::paths::BASE) {
        true => ResolveFlag::RESOLVE_NO_SYMLINKS,
        false => ResolveFlag::empty(),
    };
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
    openat2(nix::fcntl::AT_FDCWD, source, how).with_context(|| format!("open {source}"))
}

fn mount_one(root: &OwnedFd, entry: &Mount) -> Result<()> {
    let flags = MsFlags::from_bits_retain(entry.flags);
    let bind = flags.contains(MsFlags::MS_BIND);
    let source = if bind { Some(open_source(&entry.source)?) } else { None };
    let source = source.as_ref();
    let is_file = match source {
        Some(fd) => !fs::metadata(proc_path(fd))?.is_dir(),
        None => false,
    };
    let target =
        if is_file { make_file(root, &entry.destination)? } else { make_folder(root, &entry.destination)? };
    let data = Some(entry.data.as_str()).filter(|d| !d.is_empty());
    let target_path = proc_path(&target);
    if let Some(source) = source {
        let only = MsFlags::MS_BIND | (flags & MsFlags::MS_REC);
        mount(Some(proc_path(source).as_str()), target_path.as_str(), NONE, only, NONE)?;
    } else {
        let (fstype, source) = match entry.fstype.as_str() {
            "cgroup" => ("cgroup2", "cgroup"),
            other => (other, entry.source.as_str()),
        };
        // A mount below a fresh /proc must not be tricked into another file system.
        mount(Some(source), target_path.as_str(), Some(fstype), flags, data)?;
    }
    // The descriptor still refers to what lies under the new mount: open again.
    let rest = flags & !(MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_SILENT);
    if bind && !rest.is_empty() {
        let mounted = open_in(root, &entry.destination, OFlag::O_PATH)?;
        remount_bind(&proc_path(&mounted), rest)?;
    }
    for propagation in &entry.propagation {
        let mounted = open_in(root, &entry.destination, OFlag::O_PATH)?;
        let flags = MsFlags::from_bits_retain(*propagation);
        mount(NONE, proc_path(&mounted).as_str(), NONE, flags, NONE).context("set propagation")?;
    }
    Ok(())
}

/// Adds flags to a bind mount; flags that are locked on from outside are kept.
fn remount_bind(path: &str, flags: MsFlags) -> Result<()> {
    let base = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags;
    if mount(NONE, path, NONE, base, NONE).is_ok() {
        return Ok(());
    }
    let present = nix::sys::statvfs::statvfs(path)?.flags().bits();
    let locked = MsFlags::from_bits_truncate(present as u64)
        & (MsFlags::MS_RDONLY
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV
            | MsFlags::MS_NOEXEC
            | MsFlags::MS_NOATIME
            | MsFlags::MS_NODIRATIME
            | MsFlags::MS_RELATIME);
    mount(NONE, path, NONE, base | locked, NONE).context("remount with flags")
}

fn devices(root: &OwnedFd, create: &Create) -> Result<()> {
    let dev = make_folder(root, "/dev")?;
    let standard = NODES.map(|(path, major, minor)| DeviceNode {
        path: path.to_owned(),
        kind: 'c',
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 0,
    });
    for node in standard.iter().chain(&create.devices) {
        device(root, node).with_context(|| format!("make {}", node.path))?;
    }
    for (target, name) in LINKS {
        match nix::unistd::symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EEXIST | Errno::EROFS) => {}
            Err(e) => return Err(e).with_context(|| format!("link /dev/{name}")),
        }
    }
    let pts = create.mounts.iter().any(|m| m.destination.trim_end_matches('/') == "/dev/pts");
    if pts {
        // An image may bring a node here; the container must use its own instance of devpts.
        let _ = nix::unistd::unlinkat(&dev, "ptmx", nix::unistd::UnlinkatFlags::NoRemoveDir);
        match nix::unistd::symlinkat("pts/ptmx", &dev, "ptmx") {
            Ok(()) | Err(Errno::EEXIST | Errno::EROFS) => {}
            Err(e) => return Err(e).context("link /dev/ptmx"),
        }
    }
    Ok(())
}

fn device(root: &OwnedFd, node: &DeviceNode) -> Result<()> {
    let kind = match node.kind {
        'b' => SFlag::S_IFBLK,
        'c' | 'u' => SFlag::S_IFCHR,
        'p' => SFlag::S_IFIFO,
        other => bail!("unknown device type {other:?}"),
    };
    let number = nix::sys::stat::makedev(node.major, node.minor);
    let mode = Mode::from_bits_truncate(node.mode & 0o7777);
    let (parent, name) = split(&node.path)?;
    let parent = make_folder(root, parent)?;
    match nix::sys::stat::mknodat(&parent, name, kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            let stat = nix::sys::stat::fstatat(&parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if stat.st_mode & SFlag::S_IFMT.bits() == kind.bits() && stat.st_rdev == number {
                return Ok(());
            }
            nix::unistd::unlinkat(&parent, name, nix::unistd::UnlinkatFlags::NoRemoveDir)
                .context("replace what the image has there")?;
            nix::sys::stat::mknodat(&parent, name, kind, mode, number)?;
        }
        // In a user namespace nodes cannot be made: bind the guest's own.
        Err(Errno::EPERM) => {
            let target = make_file(root, &node.path)?;
            return mount(
                Some(node.path.as_str()),
                proc_path(&target).as_str(),
                NONE,
                MsFlags::MS_BIND,
                NONE,
            )
            .context("bind the guest's node");
        }
        Err(e) => return Err(e.into()),
    }
    // mknod is subject to the umask.
    nix::sys::stat::fchmodat(&parent, name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)?;
    nix::unistd::fchownat(
        &parent,
        name,
        Some(node.uid.into()),
        Some(node.gid.into()),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    Ok(())
}

fn pivot(rootfs: &Path) -> Result<()> {
    nix::unistd::chdir(rootfs)?;
    // The old root is put on top of the new one and taken away again: no folder for it is needed. The first root
    // of a machine (of an initramfs) cannot be pivoted away from: the agent moves off it at its start (see pid1).
    nix::unistd::pivot_root(".", ".").context("pivot_root")?;
    mount(NONE, ".", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE)?;
    umount2(".", MntFlags::MNT_DETACH).context("detach the old root")?;
    nix::unistd::chdir("/")?;
    Ok(())
}

fn finish(create: &Create, terminal: bool) -> Result<()> {
    if terminal && !Path::new("/dev/pts").is_dir() {
        bail!("a terminal was asked for and the container has no /dev/pts");
    }
    if let Some(name) = &create.hostname {
        nix::unistd::sethostname(name).with_context(|| format!("set host name {name:?}"))?;
    }
    for (name, value) in &create.sysctls {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::write(&path, value).with_context(|| format!("set {path} to {value:?}"))?;
    }
    for path in &create.readonly_paths {
        match mount(Some(path.as_str()), path.as_str(), NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE) {
            Ok(()) => {
                remount_bind(path, MsFlags::MS_RDONLY).with_context(|| format!("make {path} read-only"))?
            }
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(e).with_context(|| format!("bind {path}")),
        }
    }
    for path in &create.masked {
        mask(path).with_context(|| format!("mask {path}"))?;
    }
    if create.readonly {
        remount_bind("/", MsFlags::MS_RDONLY).context("make the root read-only")?;
    }
    Ok(())
}

fn mask(path: &str) -> Result<()> {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    if meta.is_dir() {
        let flags = MsFlags::MS_RDONLY;
        mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some("size=0k,nr_inodes=1"))?;
    } else {
        mount(Some("/dev/null"), path, NONE, MsFlags::MS_BIND, NONE)?;
    }
    Ok(())
}
