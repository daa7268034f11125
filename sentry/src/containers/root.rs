//! A container's tree of mounts, as a plan says (`config.md` and `config-linux.md` of the OCI runtime specification).
//!
//! Paths are walked in the container's own tree: a symbolic link of an image leads to somewhere in the image.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use super::failure::{failed, failure, invalid};
use super::passed::Passed;
use crate::container::{Container, ContainerConfig, Space};
use crate::control::message::{ContainerPlan, DevicePlan, Failure, FailureKind, MountKind, MountPlan};
use crate::error::Errno;
use crate::gofer::Client;
use crate::kernel::Kernel;
use crate::sync::lock;
use crate::task::ControlGroup;
use crate::vfs::cgroup::CgroupFs;
use crate::vfs::host::{HostFs, Sharing};
use crate::vfs::overlay::Overlay;
use crate::vfs::proc::Proc;
use crate::vfs::sys::Sysfs;
use crate::vfs::tmpfs::Tmpfs;
use crate::vfs::tty::DevPts;
use crate::vfs::{
    Caller, Content, Dentry, FileKind, FileSystem, Flags, Mount, MountFlags, NewNode, Place, Resolve, Tree,
    Walk, dev, device, names,
};

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
            // A checkpoint of one of them has to know.
            if let Some(memory) = (&*tree.tree().fs as &dyn Any).downcast_ref::<Tmpfs>() {
                memory.become_of_many();
            }
            return tree;
        }
        let tree = make();
        trees.insert(name.to_owned(), Arc::downgrade(&tree));
        tree
    }
}

/// A container's tree in the making.
struct Root<'a> {
    container: &'a Container,
    client: &'a Arc<Client>,
    kernel: &'a Arc<Kernel>,
    shared: &'a SharedMemory,
    group: &'a Arc<ControlGroup>,
    place: Place,
    caller: Caller,
}

/// Makes a container with all that is mounted in it.
pub(super) fn build(
    kernel: &Arc<Kernel>,
    shared: &SharedMemory,
    group: &Arc<ControlGroup>,
    plan: &ContainerPlan,
    passed: &mut Passed,
) -> Result<Arc<Container>, Failure> {
    let client = connect(plan, passed)?;
    let config = ContainerConfig {
        hostname: None,
        processes: if plan.own_processes { Space::Own } else { Space::Sandbox },
        names: Space::Sandbox,
        ipc: Space::Sandbox,
        network: Space::Sandbox,
    };
    let container = Container::new(kernel, open_root(plan, &client)?, &config);
    let container = container.map_err(|error| failure(FailureKind::Failed, &error.to_string()))?;
    let root = Root {
        container: &container,
        client: &client,
        kernel,
        shared,
        group,
        place: container.root(),
        caller: Caller::root(),
    };
    for mount in &plan.mounts {
        root.mount(mount).map_err(|failure| failure.about(&format!("mount {}", mount.at)))?;
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
    drop(root);
    Ok(container)
}

/// The way to the files of a container.
fn connect(plan: &ContainerPlan, passed: &mut Passed) -> Result<Arc<Client>, Failure> {
    let connected = Client::connect(passed.take(plan.files)?);
    connected.map_err(|error| failure(FailureKind::Failed, &format!("the gofer: {error}")))
}

fn open_root(plan: &ContainerPlan, client: &Arc<Client>) -> Result<Arc<Dentry>, Failure> {
    let direct = plan.overlay.is_none() && !plan.read_only;
    let host = HostFs::new(Arc::clone(client), 0, direct, Sharing::Exclusive);
    let host = host.map_err(|errno| failed("the root", errno))?;
    if host.root().kind() != FileKind::Folder {
        return Err(invalid("root.path: it is no folder"));
    }
    match plan.overlay {
        Some(limit) => Overlay::in_memory(vec![host.root()], limit)
            .map_err(|errno| failed("memory for changes of the root", errno)),
        None => Ok(Tree::of(Box::new(host))),
    }
}

impl Root<'_> {
    fn walk(&self, path: &str) -> Result<Walk<'_>, Errno> {
        Walk::new(&self.caller, &self.place, &self.place, path.as_bytes(), Resolve::default())
    }

    fn find(&self, path: &str) -> Result<Place, Errno> {
        self.walk(path)?.finish(true)
    }

    /// A folder of this path, which is made with those above it where it is not there.
    fn folder(&self, path: &str) -> Result<Place, Errno> {
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

    fn mount(&self, plan: &MountPlan) -> Result<(), Failure> {
        let fail = |errno| failed("", errno);
        let tree = self.tree(&plan.kind)?;
        let folder = tree.is_folder();
        let place = self.mount_point(&plan.at, folder).map_err(|errno| failed("its place", errno))?;
        let flags = MountFlags::from_bits_truncate(plan.flags);
        Mount::add(&place, tree, flags).map(drop).map_err(fail)
    }

    fn tree(&self, kind: &MountKind) -> Result<Arc<Dentry>, Failure> {
        let fail = |errno| failed("what is mounted", errno);
        Ok(match kind {
            MountKind::Host { export, writable } => {
                HostFs::tree(Arc::clone(self.client), *export, *writable, Sharing::Shared).map_err(fail)?
            }
            MountKind::Memory { limit, mode, uid, gid, shared } => {
                let make = || Tree::of(Box::new(Tmpfs::with_root(*limit, *mode, *uid, *gid)));
                match shared {
                    Some(name) => self.shared.of(name, make),
                    None => make(),
                }
            }
            MountKind::Proc => {
                Proc::of_namespace(self.kernel, &self.container.namespaces().pids_for_children)
            }
            MountKind::Sys => Sysfs::tree(),
            MountKind::Terminals => DevPts::tree(),
            MountKind::ControlGroup => CgroupFs::tree(self.kernel, self.group),
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

/// Whether an inode is the root of a `devpts`.
pub(super) fn terminals(root: &Place) -> Arc<Dentry> {
    let caller = Caller::root();
    let walk = Walk::new(&caller, root, root, b"/dev/pts", Resolve::default());
    let found = walk.and_then(|mut walk| walk.finish(true)).ok();
    let mounted = found.filter(|place| place.dentry.tree().fs.name() == "devpts");
    mounted.map_or_else(DevPts::tree, |place| Arc::clone(place.mount.root()))
}
