//! Mounting in steps: `open_tree`, `move_mount`, `fsopen`, `fsconfig`, `fsmount`, `fspick`, `mount_setattr` (`fs/fsopen.c`, `fs/namespace.c`).

use std::sync::{Arc, Mutex};

use super::Entry;
use super::file_args::{caller, int, uint, walk_of};
use super::file_systems::Kind;
use super::mounts::{entitled, may_show, own};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::sync::lock;
use crate::vfs::mount::Sharing;
use crate::vfs::{Caller, Dentry, File, Flags, Mount, MountFlags, OpenFile, Place, Resolve};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(libc::SYS_open_tree, "open_tree", open_tree),
    Entry::partial(
        libc::SYS_move_mount,
        "move_mount",
        move_mount,
        "MOVE_MOUNT_SET_GROUP, MOVE_MOUNT_BENEATH",
    ),
    Entry::partial(libc::SYS_fsopen, "fsopen", fsopen, "file systems but tmpfs, ramfs, proc, sysfs, devpts"),
    Entry::partial(libc::SYS_fsconfig, "fsconfig", fsconfig, "parameters that are no flags or texts"),
    Entry::full(libc::SYS_fsmount, "fsmount", fsmount),
    Entry::partial(libc::SYS_fspick, "fspick", fspick, "options of the file system but ro and rw"),
    Entry::partial(libc::SYS_mount_setattr, "mount_setattr", mount_setattr, "MOUNT_ATTR_IDMAP"),
];

/// `AT_RECURSIVE`.
const RECURSIVE: i32 = 0x8000;
/// `MAX_PATH` of a parameter's name and text.
const TEXT_MAX: usize = 256;
/// Bytes of all parameters of one file system.
const OPTIONS_MAX: usize = 4096;

/// A tree of mounts that is nowhere yet; it is taken apart when nobody put it anywhere.
struct DetachedTree(Arc<Mount>);

impl File for DetachedTree {}

impl Drop for DetachedTree {
    fn drop(&mut self) {
        Mount::dissolve(&self.0);
    }
}

/// What a file system that is being made is at.
enum State {
    /// Parameters are collected.
    Parameters { options: Vec<u8>, source: Option<Vec<u8>>, read_only: bool },
    /// It is there.
    Made { root: Arc<Dentry>, source: Vec<u8>, read_only: bool },
    /// It could not be made.
    Failed,
    /// It was mounted.
    Mounted,
    /// One that is mounted, of which parameters are changed.
    Picked { mount: Arc<Mount>, read_only: Option<bool> },
}

/// A file system that is being made (`struct fs_context`).
struct FileSystemContext {
    kind: Option<Kind>,
    state: Mutex<State>,
}

impl File for FileSystemContext {
    fn read(&self, _to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        // Of messages there are none.
        Err(Errno::ENODATA)
    }
}

fn insert(call: &Call<'_>, file: Arc<OpenFile>, close_on_exec: bool) -> SysResult {
    Ok(u64::from(call.task.files().insert(file, close_on_exec)?.cast_unsigned()))
}

fn context(kind: Option<Kind>, state: State) -> Arc<OpenFile> {
    let file = FileSystemContext { kind, state: Mutex::new(state) };
    OpenFile::anonymous(Box::new(file), Flags(libc::O_RDWR.cast_unsigned()), "anon_inode:[fscontext]")
}

/// A place; with an empty path, where that is allowed, the one that a descriptor stands for.
fn find(
    call: &Call<'_>,
    caller: &Caller,
    (directory, path): (u64, u64),
    empty: bool,
    follow: bool,
) -> Result<Place, Errno> {
    let path = call.read_path(path)?;
    if path.is_empty() && empty {
        if int(directory) == libc::AT_FDCWD {
            return Ok(call.task.fs().cwd());
        }
        return call.task.files().find(int(directory))?.place().cloned().ok_or(Errno::EINVAL);
    }
    walk_of(call, caller, directory, &path, Resolve::empty())?.finish(follow)
}

fn detached(call: &Call<'_>, tree: Arc<Mount>, close_on_exec: bool) -> SysResult {
    let place = tree.root_place();
    let path_only = Flags(libc::O_PATH.cast_unsigned());
    insert(call, OpenFile::new(place, Box::new(DetachedTree(tree)), path_only), close_on_exec)
}

fn open_tree(call: &mut Call<'_>, [directory, path, flags, ..]: [u64; 6]) -> SysResult {
    const CLONE: i32 = 1;
    let flags = int(flags);
    let known = CLONE
        | libc::O_CLOEXEC
        | RECURSIVE
        | libc::AT_EMPTY_PATH
        | libc::AT_NO_AUTOMOUNT
        | libc::AT_SYMLINK_NOFOLLOW;
    if flags & !known != 0 || flags & RECURSIVE != 0 && flags & CLONE == 0 {
        return Err(Errno::EINVAL.into());
    }
    if flags & CLONE != 0 {
        entitled(call)?;
    }
    let caller = caller(call);
    let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
    let place = find(call, &caller, (directory, path), flags & libc::AT_EMPTY_PATH != 0, follow)?;
    let close_on_exec = flags & libc::O_CLOEXEC != 0;
    if flags & CLONE == 0 {
        let flags = Flags(libc::O_PATH.cast_unsigned());
        return insert(call, OpenFile::path_only(place, flags), close_on_exec);
    }
    may_show(call, &place)?;
    let tree = Mount::copy_of(&place, flags & RECURSIVE != 0)?;
    detached(call, tree, close_on_exec)
}

fn move_mount(call: &mut Call<'_>, [from_fd, from, to_fd, to, flags, _]: [u64; 6]) -> SysResult {
    const FROM_SYMLINKS: u32 = 1;
    const FROM_EMPTY: u32 = 4;
    const TO_SYMLINKS: u32 = 0x10;
    const TO_EMPTY: u32 = 0x40;
    const KNOWN: u32 = 0x77;
    let flags = uint(flags);
    entitled(call)?;
    if flags & !KNOWN != 0 {
        return Err(Errno::EINVAL.into());
    }
    let caller = caller(call);
    let has = |flag: u32| flags & flag != 0;
    let from = find(call, &caller, (from_fd, from), has(FROM_EMPTY), has(FROM_SYMLINKS))?;
    let to = find(call, &caller, (to_fd, to), has(TO_EMPTY), has(TO_SYMLINKS))?;
    own(call, &to.mount)?;
    if !from.is_root_of_mount() {
        return Err(Errno::EINVAL.into());
    }
    if from.mount.in_namespace().is_some() {
        own(call, &from.mount)?;
        Mount::move_to(&from.mount, &to)?;
        return Ok(0);
    }
    // A tree that is nowhere, from its top.
    if from.mount.at().is_some() {
        return Err(Errno::EINVAL.into());
    }
    if from.dentry.is_folder() != to.dentry.is_folder() {
        return Err(Errno::EINVAL.into());
    }
    Mount::place(&from.mount, &to)?;
    Ok(0)
}

fn fsopen(call: &mut Call<'_>, [name, flags, ..]: [u64; 6]) -> SysResult {
    const CLOEXEC: u32 = 1;
    entitled(call)?;
    if uint(flags) & !CLOEXEC != 0 {
        return Err(Errno::EINVAL.into());
    }
    let kind = Kind::named(&call.read_text(name, TEXT_MAX).map_err(|_| Errno::EFAULT)?)?;
    let state = State::Parameters { options: Vec::new(), source: None, read_only: false };
    insert(call, context(Some(kind), state), uint(flags) & CLOEXEC != 0)
}

fn fspick(call: &mut Call<'_>, [directory, path, flags, ..]: [u64; 6]) -> SysResult {
    const CLOEXEC: u32 = 1;
    const NOFOLLOW: u32 = 2;
    const EMPTY: u32 = 8;
    let flags = uint(flags);
    entitled(call)?;
    if flags & !0xf != 0 {
        return Err(Errno::EINVAL.into());
    }
    let caller = caller(call);
    let place = find(call, &caller, (directory, path), flags & EMPTY != 0, flags & NOFOLLOW == 0)?;
    if !place.is_root_of_mount() {
        return Err(Errno::EINVAL.into());
    }
    own(call, &place.mount)?;
    let state = State::Picked { mount: place.mount, read_only: None };
    insert(call, context(None, state), flags & CLOEXEC != 0)
}

/// What `fsconfig` does.
mod command {
    pub(super) const SET_FLAG: u32 = 0;
    pub(super) const SET_STRING: u32 = 1;
    pub(super) const SET_BINARY: u32 = 2;
    pub(super) const SET_PATH: u32 = 3;
    pub(super) const SET_PATH_EMPTY: u32 = 4;
    pub(super) const SET_FD: u32 = 5;
    pub(super) const CREATE: u32 = 6;
    pub(super) const RECONFIGURE: u32 = 7;
    pub(super) const CREATE_EXCL: u32 = 8;
}

fn fsconfig(call: &mut Call<'_>, [fd, command, key, value, aux, _]: [u64; 6]) -> SysResult {
    let command = uint(command);
    if int(fd) < 0 {
        return Err(Errno::EINVAL.into());
    }
    let (with_key, with_value, auxiliary) = (key != 0, value != 0, int(aux));
    let valid = match command {
        command::SET_FLAG => with_key && !with_value && auxiliary == 0,
        command::SET_STRING => with_key && with_value && auxiliary == 0,
        command::SET_BINARY => with_key && with_value && (1..=1 << 20).contains(&auxiliary),
        command::SET_PATH | command::SET_PATH_EMPTY => with_key && with_value,
        command::SET_FD => with_key && !with_value && auxiliary >= 0,
        command::CREATE | command::CREATE_EXCL | command::RECONFIGURE => {
            !with_key && !with_value && auxiliary == 0
        }
        _ => return Err(Errno::EOPNOTSUPP.into()),
    };
    if !valid {
        return Err(Errno::EINVAL.into());
    }
    let file = call.task.files().get(int(fd))?;
    let context = file.downcast::<FileSystemContext>().ok_or(Errno::EINVAL)?;
    let text = |at: u64| {
        call.read_text(at, TEXT_MAX).map_err(|errno| match errno {
            Errno::ENAMETOOLONG => Errno::EINVAL,
            other => other,
        })
    };
    match command {
        command::SET_FLAG => set(context, &text(key)?, None)?,
        command::SET_STRING => set(context, &text(key)?, Some(&text(value)?))?,
        command::CREATE | command::CREATE_EXCL => create(call, context)?,
        command::RECONFIGURE => reconfigure(context)?,
        _ => return Err(Errno::EINVAL.into()),
    }
    Ok(0)
}

/// One parameter. Read-only and its opposite are known to all file systems.
fn set(context: &FileSystemContext, key: &[u8], value: Option<&[u8]>) -> Result<(), Errno> {
    let mut state = lock(&context.state);
    let wants = match (key, value) {
        (b"ro", None) => Some(true),
        (b"rw", None) => Some(false),
        _ => None,
    };
    match &mut *state {
        State::Picked { read_only, .. } => {
            *read_only = Some(wants.ok_or(Errno::EINVAL)?);
            Ok(())
        }
        State::Parameters { options, source, read_only } => {
            if let Some(wants) = wants {
                *read_only = wants;
                return Ok(());
            }
            if key == b"source" {
                let value = value.filter(|_| source.is_none()).ok_or(Errno::EINVAL)?;
                *source = Some(value.to_vec());
                return Ok(());
            }
            if options.len() > OPTIONS_MAX || key.contains(&b',') || key.contains(&b'=') {
                return Err(Errno::EINVAL);
            }
            options.push(b',');
            options.extend_from_slice(key);
            if let Some(value) = value {
                options.push(b'=');
                options.extend_from_slice(value);
            }
            Ok(())
        }
        _ => Err(Errno::EBUSY),
    }
}

fn create(call: &Call<'_>, context: &FileSystemContext) -> Result<(), Errno> {
    let kind = context.kind.ok_or(Errno::EBUSY)?;
    entitled(call)?;
    let mut state = lock(&context.state);
    let State::Parameters { options, source, read_only } = &*state else { return Err(Errno::EBUSY) };
    let made = kind.make(call, &Caller::of(call.task), options);
    *state = match &made {
        Ok(root) => State::Made {
            root: Arc::clone(root),
            source: source.clone().unwrap_or_else(|| b"none".to_vec()),
            read_only: *read_only,
        },
        Err(_) => State::Failed,
    };
    made.map(drop)
}

fn reconfigure(context: &FileSystemContext) -> Result<(), Errno> {
    let state = lock(&context.state);
    let State::Picked { mount, read_only } = &*state else { return Err(Errno::EBUSY) };
    let mut flags = mount.flags();
    flags.set(MountFlags::READ_ONLY, read_only.unwrap_or_else(|| flags.contains(MountFlags::READ_ONLY)));
    mount.change_flags(flags)
}

/// `MOUNT_ATTR_*`.
mod attribute {
    pub(super) const ATIME: u64 = 0x70;
    pub(super) const NOATIME: u64 = 0x10;
    pub(super) const STRICTATIME: u64 = 0x20;
    pub(super) const IDMAP: u64 = 0x10_0000;
    pub(super) const ALL: u64 = 0x1 | 0x2 | 0x4 | 0x8 | ATIME | 0x80 | 0x20_0000;
}

/// Flags of a mount for attributes but those of the last read.
fn plain(attributes: u64) -> MountFlags {
    let pairs = [
        (0x1, MountFlags::READ_ONLY),
        (0x2, MountFlags::NO_SUID),
        (0x4, MountFlags::NO_DEV),
        (0x8, MountFlags::NO_EXEC),
        (0x80, MountFlags::NO_DIR_ATIME),
        (0x20_0000, MountFlags::NO_SYMFOLLOW),
    ];
    let set = pairs.into_iter().filter(|(bit, _)| attributes & bit != 0);
    set.fold(MountFlags::empty(), |flags, (_, flag)| flags | flag)
}

/// Those of the last read.
fn of_atime(attributes: u64) -> Result<MountFlags, Errno> {
    match attributes & attribute::ATIME {
        0 => Ok(MountFlags::empty()),
        attribute::NOATIME => Ok(MountFlags::NO_ATIME),
        attribute::STRICTATIME => Ok(MountFlags::STRICT_ATIME),
        _ => Err(Errno::EINVAL),
    }
}

fn fsmount(call: &mut Call<'_>, [fd, flags, attributes, ..]: [u64; 6]) -> SysResult {
    const CLOEXEC: u32 = 1;
    entitled(call)?;
    if uint(flags) & !CLOEXEC != 0 || u64::from(uint(attributes)) & !attribute::ALL != 0 {
        return Err(Errno::EINVAL.into());
    }
    let attributes = u64::from(uint(attributes));
    let mut wanted = plain(attributes) | of_atime(attributes)?;
    let file = call.task.files().get(int(fd))?;
    let context = file.downcast::<FileSystemContext>().ok_or(Errno::EINVAL)?;
    let mut state = lock(&context.state);
    let (root, source, read_only) = match &*state {
        State::Made { root, source, read_only } => (root, source, read_only),
        State::Parameters { .. } | State::Failed => return Err(Errno::EINVAL.into()),
        State::Mounted | State::Picked { .. } => return Err(Errno::EBUSY.into()),
    };
    wanted.set(MountFlags::READ_ONLY, *read_only || wanted.contains(MountFlags::READ_ONLY));
    let mounts = Arc::clone(&call.task.namespaces().mounts);
    if context.kind.is_some_and(|kind| kind.reveals(&mounts, wanted)) {
        return Err(Errno::EPERM.into());
    }
    let mount = Mount::detached(Arc::clone(root), wanted, source.clone())?;
    *state = State::Mounted;
    drop(state);
    detached(call, mount, uint(flags) & CLOEXEC != 0)
}

/// What `mount_setattr` is told (`struct mount_attr`).
struct Change {
    set: u64,
    clear: u64,
    sharing: Option<Sharing>,
}

impl Change {
    fn read(call: &Call<'_>, address: u64, size: u64) -> Result<Self, Errno> {
        const SIZE: u64 = 32;
        if size > 4096 {
            return Err(Errno::E2BIG);
        }
        if size < SIZE {
            return Err(Errno::EINVAL);
        }
        let [set, clear, propagation, _] = [0, 8, 16, 24]
            .map(|at| call.read_u64(address.wrapping_add(at)))
            .map(|word| word.unwrap_or(u64::MAX));
        call.read_u64(address.wrapping_add(24))?;
        let mut rest = vec![0; usize::try_from(size - SIZE).map_err(|_| Errno::E2BIG)?];
        call.read(address.wrapping_add(SIZE), &mut rest)?;
        if rest.iter().any(|byte| *byte != 0) {
            return Err(Errno::E2BIG);
        }
        let sharing = match propagation {
            0 => None,
            libc::MS_SHARED => Some(Sharing::Shared),
            libc::MS_PRIVATE => Some(Sharing::Private),
            libc::MS_SLAVE => Some(Sharing::Slave),
            libc::MS_UNBINDABLE => Some(Sharing::Unbindable),
            _ => return Err(Errno::EINVAL),
        };
        let change = Self { set, clear, sharing };
        change.check()?;
        Ok(change)
    }

    /// `build_mount_kattr`.
    fn check(&self) -> Result<(), Errno> {
        let known = attribute::ALL | attribute::IDMAP;
        if (self.set | self.clear) & !known != 0 || (self.set | self.clear) & attribute::IDMAP != 0 {
            return Err(Errno::EINVAL);
        }
        // What is noted of the last read is one of several: it is cleared as a whole, or not at all.
        match self.clear & attribute::ATIME {
            0 if self.set & attribute::ATIME != 0 => Err(Errno::EINVAL),
            0 | attribute::ATIME => of_atime(self.set).map(drop),
            _ => Err(Errno::EINVAL),
        }
    }

    fn of(&self, flags: MountFlags) -> MountFlags {
        let mut new = (flags - plain(self.clear & !self.set)) | plain(self.set);
        if self.clear & attribute::ATIME != 0 {
            new.remove(MountFlags::NO_ATIME | MountFlags::STRICT_ATIME);
            new |= of_atime(self.set).unwrap_or_default();
        }
        new
    }
}

fn mount_setattr(call: &mut Call<'_>, [directory, path, flags, attributes, size, _]: [u64; 6]) -> SysResult {
    let flags = int(flags);
    let known = libc::AT_EMPTY_PATH | RECURSIVE | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    if flags & !known != 0 {
        return Err(Errno::EINVAL.into());
    }
    if size > 4096 {
        return Err(Errno::E2BIG.into());
    }
    if size < 32 {
        return Err(Errno::EINVAL.into());
    }
    entitled(call)?;
    let change = Change::read(call, attributes, size)?;
    if change.set == 0 && change.clear == 0 && change.sharing.is_none() {
        return Ok(0);
    }
    let caller = caller(call);
    let follow = flags & libc::AT_SYMLINK_NOFOLLOW == 0;
    let place = find(call, &caller, (directory, path), flags & libc::AT_EMPTY_PATH != 0, follow)?;
    if !place.is_root_of_mount() {
        return Err(Errno::EINVAL.into());
    }
    if place.mount.in_namespace().is_some() {
        own(call, &place.mount)?;
    }
    let recursive = flags & RECURSIVE != 0;
    let all = if recursive { place.mount.all() } else { vec![Arc::clone(&place.mount)] };
    // All of them, or none.
    if all.iter().any(|mount| !change.of(mount.flags()).contains(mount.locked_flags())) {
        return Err(Errno::EPERM.into());
    }
    for mount in &all {
        mount.change_flags(change.of(mount.flags()))?;
    }
    if let Some(sharing) = change.sharing {
        Mount::share(&place.mount, sharing, recursive);
    }
    Ok(0)
}
