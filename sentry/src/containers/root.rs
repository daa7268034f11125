//! A container's tree of mounts, as a plan says (`config.md` and `config-linux.md` of the OCI runtime specification).
//!
//! Paths are walked in the container's own tree: a symbolic link of an image leads to somewhere in the image.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};

use super::failure::{failed, invalid};
use super::passed::Passed;
use crate::control::message::{ContainerPlan, DevicePlan, Failure, MountKind, MountPlan};
use crate::error::Errno;
use crate::kernel::Kernel;
use crate::sync::lock;
use crate::vfs::host::{HostFs, LocalTree, SingleFile};
use crate::vfs::overlay::Overlay;
use crate::vfs::proc::Proc;
use crate::vfs::sys::Sysfs;
use crate::vfs::tmpfs::Tmpfs;
use crate::vfs::tty::DevPts;
use crate::vfs::{
    Caller, Content, Dentry, FileSystem, Flags, Mount, MountFlags, NewNode, Place, Resolve, Tree, Walk, dev,
    device, names,
};

/// Bytes of a file that are copied into memory at most.
const COPY_MAX: usize = 4 << 20;

/// Memory that containers share by a name.
#[derive(Default)]
pub(super) struct SharedMemory {
    trees: Mutex<BTreeMap<String, Weak<Dentry>>>,
}

impl SharedMemory {
    /// That of a name, which is made by `make` where nobody has it.
    fn of(&self, name: &str, make: impl FnOnce() -> Arc<Dentry>) -> Arc<Dentry> {
        let mut trees = lock(&self.trees);
        trees.retain(|_, tree| tree.strong_count() > 0);
        if let Some(tree) = trees.get(name).and_then(Weak::upgrade) {
            return tree;
        }
        let tree = make();
        trees.insert(name.to_owned(), Arc::downgrade(&tree));
        tree
    }
}

/// A container's tree in the making.
pub(super) struct Root<'a> {
    kernel: &'a Arc<Kernel>,
    shared: &'a SharedMemory,
    place: Place,
    caller: Caller,
}

/// Builds the whole tree.
pub(super) fn build(
    kernel: &Arc<Kernel>,
    shared: &SharedMemory,
    plan: &ContainerPlan,
    passed: &mut Passed,
) -> Result<Place, Failure> {
    let place = open_root(plan, passed.take(plan.root)?)?;
    let root = Root { kernel, shared, place, caller: Caller::root() };
    for mount in &plan.mounts {
        root.mount(mount, passed).map_err(|failure| failure.about(&format!("mount {}", mount.at)))?;
    }
    root.devices(&plan.devices)?;
    for path in &plan.masked {
        root.mask(path).map_err(|errno| failed(&format!("masking {path}"), errno))?;
    }
    for path in &plan.read_only_paths {
        root.protect(path).map_err(|errno| failed(&format!("protecting {path}"), errno))?;
    }
    for (name, value) in &plan.settings {
        root.set(name, value)?;
    }
    if plan.read_only {
        let mount = &root.place.mount;
        mount.set_flags(mount.flags() | MountFlags::READ_ONLY);
    }
    Ok(root.place)
}

/// A tree of the host that is reached by this descriptor.
fn host_folder(folder: OwnedFd, exclusive: bool) -> Result<HostFs, Errno> {
    HostFs::new(Box::new(LocalTree::new(folder)), exclusive)
}

fn open_root(plan: &ContainerPlan, folder: OwnedFd) -> Result<Place, Failure> {
    let host = host_folder(folder, true).map_err(|errno| failed("the root", errno))?;
    let tree = match plan.overlay {
        Some(limit) => Overlay::in_memory(vec![host.root()], limit)
            .map_err(|errno| failed("memory for changes of the root", errno))?,
        None if plan.read_only => Tree::of(Box::new(host)),
        None => {
            return Err(invalid(
                "the root is to be changed on the host, which the sentry cannot do yet: set root.readonly, or leave changes in memory",
            ));
        }
    };
    Ok(Mount::namespace(tree).root_place())
}

impl Root<'_> {
    fn walk(&self, path: &str) -> Result<Walk<'_>, Errno> {
        Walk::new(&self.caller, &self.place, &self.place, path.as_bytes(), Resolve::default())
    }

    fn find(&self, path: &str) -> Result<Place, Errno> {
        self.walk(path)?.finish(true)
    }

    /// A folder of this path, which is made with those above it where it is not there.
    pub(super) fn folder(&self, path: &str) -> Result<Place, Errno> {
        make_folders(&self.caller, &self.place, path)
    }

    /// Where something that is a folder or a file is to be mounted.
    fn mount_point(&self, path: &str, folder: bool) -> Result<Place, Errno> {
        if folder {
            return self.folder(path);
        }
        let found = self.find(path);
        if found.as_ref().err() != Some(&Errno::ENOENT) {
            return found;
        }
        let above = path.trim_end_matches('/').rsplit_once('/').map_or("", |(above, _)| above);
        self.folder(above)?;
        let made = names::create(&self.caller, &mut self.walk(path)?, Content::Regular, 0o644);
        match made {
            Err(Errno::EEXIST) => self.find(path),
            made => made,
        }
    }

    fn mount(&self, plan: &MountPlan, passed: &mut Passed) -> Result<(), Failure> {
        let fail = |errno| failed("", errno);
        let tree = self.tree(&plan.kind, passed)?;
        let folder = tree.inode().kind() == crate::vfs::FileKind::Folder;
        let place = self.mount_point(&plan.at, folder).map_err(|errno| failed("its place", errno))?;
        let flags = MountFlags::from_bits_truncate(plan.flags);
        Mount::add(&place, tree, flags).map(drop).map_err(fail)
    }

    fn tree(&self, kind: &MountKind, passed: &mut Passed) -> Result<Arc<Dentry>, Failure> {
        let fail = |errno| failed("what is mounted", errno);
        Ok(match kind {
            MountKind::Folder { from, memory } => {
                let host = host_folder(passed.take(*from)?, false).map_err(fail)?;
                if *memory {
                    Overlay::in_memory(vec![host.root()], None).map_err(fail)?
                } else {
                    Tree::of(Box::new(host))
                }
            }
            MountKind::File { from, memory: false } => SingleFile::tree(passed.take(*from)?).map_err(fail)?,
            MountKind::File { from, memory: true } => copy(passed.take(*from)?)?,
            MountKind::Memory { limit, mode, uid, gid, shared } => {
                let make = || Tree::of(Box::new(Tmpfs::with_root(*limit, *mode, *uid, *gid)));
                match shared {
                    Some(name) => self.shared.of(name, make),
                    None => make(),
                }
            }
            MountKind::Proc => Proc::tree(self.kernel),
            MountKind::Sys => Sysfs::tree(),
            MountKind::Terminals => DevPts::tree(),
            MountKind::Empty => empty(),
        })
    }

    fn devices(&self, more: &[DevicePlan]) -> Result<(), Failure> {
        match self.folder("/dev").and_then(|place| {
            place.writable()?;
            dev::populate(&place.dentry)
        }) {
            // A root that cannot be changed has what it has.
            Ok(()) | Err(Errno::EROFS) => {}
            Err(errno) => return Err(failed("devices in /dev", errno)),
        }
        for plan in more {
            self.device(plan).map_err(|errno| failed(&format!("device {}", plan.at), errno))?;
        }
        Ok(())
    }

    fn device(&self, plan: &DevicePlan) -> Result<(), Errno> {
        let at = plan.at.trim_end_matches('/');
        let (above, name) = at.rsplit_once('/').ok_or(Errno::EINVAL)?;
        let folder = self.folder(above)?;
        folder.writable()?;
        let content = Content::CharDevice(device(plan.major, plan.minor));
        let new = NewNode { content, mode: plan.mode & 0o7777, uid: plan.uid, gid: plan.gid };
        match folder.dentry.create(name.as_bytes(), &new) {
            Ok(_) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Puts something empty over a path, if there is such a path.
    fn mask(&self, path: &str) -> Result<(), Errno> {
        let place = match self.find(path) {
            Ok(place) => place,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let tree = if place.dentry.is_folder() { empty() } else { null()? };
        Mount::add(&place, tree, MountFlags::READ_ONLY).map(drop)
    }

    /// Lets nothing below a path be changed by it, if there is such a path.
    fn protect(&self, path: &str) -> Result<(), Errno> {
        let place = match self.find(path) {
            Ok(place) => place,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        let mount = Mount::bind(&place, &place, true)?;
        mount.set_flags(mount.flags() | MountFlags::READ_ONLY);
        Ok(())
    }

    /// Changes a setting of the kernel. One that the sentry does not have is an error, as on Linux.
    fn set(&self, name: &str, value: &str) -> Result<(), Failure> {
        let proc = Mount::namespace(Proc::tree(self.kernel)).root_place();
        let path = format!("/sys/{}", name.replace('.', "/"));
        let write = || {
            let mut walk = Walk::new(&self.caller, &proc, &proc, path.as_bytes(), Resolve::default())?;
            let flags = Flags(libc::O_WRONLY.cast_unsigned());
            let file = crate::vfs::open::open(&self.caller, &mut walk, flags, 0)?;
            file.write(&self.caller, value.as_bytes())
        };
        match write() {
            Ok(_) => Ok(()),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Err(invalid(&format!(
                "linux.sysctl: the sentry has no setting {name} (its settings are in /proc/sys)"
            ))),
            Err(errno) => Err(invalid(&format!("linux.sysctl: {name} cannot be {value:?}: {errno}"))),
        }
    }
}

/// A folder of this path, which is made with those above it where it is not there.
pub(super) fn make_folders(caller: &Caller, root: &Place, path: &str) -> Result<Place, Errno> {
    let walk = |path: &str| Walk::new(caller, root, root, path.as_bytes(), Resolve::default());
    let mut so_far = String::from("/");
    let mut place = root.clone();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        so_far.push_str(name);
        place = match walk(&so_far)?.finish(true) {
            Ok(place) => place,
            Err(Errno::ENOENT) => match names::create(caller, &mut walk(&so_far)?, Content::Folder, 0o755) {
                // A symbolic link that leads nowhere has the name.
                Err(Errno::EEXIST) => return Err(Errno::ENOENT),
                made => made?,
            },
            Err(errno) => return Err(errno),
        };
        so_far.push('/');
    }
    Ok(place)
}

/// An empty folder, which cannot be changed where it is mounted read-only.
fn empty() -> Arc<Dentry> {
    Tree::of(Box::new(Tmpfs::with_root(Some(4096), 0o555, 0, 0)))
}

/// A file like `/dev/null`.
fn null() -> Result<Arc<Dentry>, Errno> {
    let memory = Tree::of(Box::new(Tmpfs::with_root(None, 0o755, 0, 0)));
    let content = Content::CharDevice(device(1, 3));
    memory.create(b"null", &NewNode { content, mode: 0o666, uid: 0, gid: 0 })
}

/// A copy of a file of the host in memory.
fn copy(file: OwnedFd) -> Result<Arc<Dentry>, Failure> {
    let single = SingleFile::tree(file).map_err(|errno| failed("the file", errno))?;
    let write = || -> Result<Arc<Dentry>, Errno> {
        let like = single.inode().attributes()?;
        let size = usize::try_from(like.size).ok().filter(|size| *size <= COPY_MAX).ok_or(Errno::EFBIG)?;
        let from = Arc::clone(single.inode()).open(Flags::READ, &Caller::root())?;
        let memory = Tree::of(Box::new(Tmpfs::with_root(None, 0o755, 0, 0)));
        let new = NewNode { content: Content::Regular, mode: like.mode, uid: like.uid, gid: like.gid };
        let made = memory.create(b"file", &new)?;
        let to = Arc::clone(Dentry::inode(&made)).open(Flags::READ_WRITE, &Caller::root())?;
        let mut bytes = vec![0; size];
        let (mut at, mut done) = (0, 0);
        while let Some(room) = bytes.get_mut(at..).filter(|room| !room.is_empty()) {
            match from.read(room, at as u64)? {
                0 => break,
                count => at += count,
            }
        }
        while let Some(rest) = bytes.get(done..at).filter(|rest| !rest.is_empty()) {
            done += to.write(rest, done as u64)?;
        }
        Ok(made)
    };
    write().map_err(|errno| match errno {
        Errno::EFBIG => invalid("the file is larger than 4 MiB and cannot be a copy in memory"),
        errno => failed("copying the file", errno),
    })
}

/// Whether an inode is the root of a `devpts`.
pub(super) fn terminals(root: &Place) -> Arc<Dentry> {
    let caller = Caller::root();
    let walk = Walk::new(&caller, root, root, b"/dev/pts", Resolve::default());
    let found = walk.and_then(|mut walk| walk.finish(true)).ok();
    let mounted = found.filter(|place| place.dentry.tree().fs.name() == "devpts");
    mounted.map_or_else(DevPts::tree, |place| Arc::clone(place.mount.root()))
}
