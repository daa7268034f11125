//! Turns the entries of one layer into files.
//!
//! What an entry asks for is told by the rules (`super::rules`). Order of the metadata matters: ownership first (it clears set-user-id bits and capabilities), then mode, then extended
//! attributes, then times; times of folders last of all, since filling them changes them: those of folders that the layer
//! does not name are put back as they were, those of folders it implies are zero. Whiteouts act on lower
//! layers only (image-spec, `layer.md`): what this layer made is known by device and inode and survives them.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, makedev, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};

use super::entry::{Entry, Kind, TarStream};
use super::root::{self, FileId, Implied, Root, name, write_error};
use super::rules::{self, Step};
use super::{Budget, UnpackError, show};

const PIECE: usize = 128 << 10;
const HOLE: usize = 4096;
/// Folders deeper than this are not walked when they are to be removed.
const MAX_REMOVE_DEPTH: usize = 512;

/// What to do with the owners an archive names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Set them (needs root).
    Preserve,
    /// Leave all files to the caller; device nodes are left out. For inspection and fuzzing without root.
    Caller,
}

/// What applying one layer did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LayerStats {
    /// Entries applied.
    pub entries: u64,
    /// Bytes of file data, holes included.
    pub bytes: u64,
    /// Extended attributes the file system cannot hold, which were left out.
    pub attributes_left_out: u64,
}

/// Applies the layer `archive` onto `root`, and reads it to its end.
///
/// # Errors
/// See [`UnpackError`]. What was applied until then stays; the caller throws the whole root away.
pub fn apply(
    archive: impl Read,
    root: &Path,
    owner: Owner,
    budget: &mut Budget,
) -> Result<LayerStats, UnpackError> {
    let mut stream = TarStream::new(archive, budget.limits());
    let mut applier = Applier {
        root: Root::open(root)?,
        owner,
        budget,
        made: HashSet::new(),
        folders: Vec::new(),
        noted: Vec::new(),
        seen: HashSet::new(),
        inherited: HashSet::new(),
        inherits: false,
        last: None,
        stats: LayerStats::default(),
        buffer: vec![0; PIECE],
    };
    while let Some(entry) = stream.next_entry()? {
        applier.budget.take_file()?;
        applier.entry(&mut stream, &entry)?;
        applier.stats.entries += 1;
    }
    applier.finish()?;
    let mut rest = stream.into_inner();
    loop {
        let count = rest.read(&mut applier.buffer).map_err(UnpackError::Read)?;
        if count == 0 {
            return Ok(applier.stats);
        }
        applier.budget.take_bytes(count as u64)?;
    }
}

struct Applier<'a> {
    root: Root,
    owner: Owner,
    budget: &'a mut Budget,
    made: HashSet<FileId>,
    /// Folders that the layer names, and their times there.
    folders: Vec<(Vec<u8>, TimeSpec, TimeSpec)>,
    /// Folders in which the layer changes something, and their times before; those made for it begin with zero.
    noted: Vec<(Vec<u8>, (TimeSpec, TimeSpec), FileId)>,
    seen: HashSet<FileId>,
    /// Folders with a default access control list, which the kernel hands down to what is made in them.
    inherited: HashSet<FileId>,
    /// Whether the folder `last` is one of them.
    inherits: bool,
    last: Option<Rc<OwnedFd>>,
    stats: LayerStats,
    buffer: Vec<u8>,
}

/// Where an entry goes.
struct Place<'p> {
    parent: Rc<OwnedFd>,
    name: &'p OsStr,
    path: &'p [u8],
}

impl Place<'_> {
    /// A path for calls that know no descriptors: the parent is named by its descriptor, the last component is not followed
    /// (`lsetxattr`).
    fn path_of(&self) -> PathBuf {
        descriptor(&self.parent).join(self.name)
    }
}

fn descriptor(folder: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(".")
}

const DEFAULT_LIST: &str = "system.posix_acl_default";

/// Whether files made in the folder get an access control list from it.
fn has_default_list(folder: &OwnedFd) -> bool {
    xattr::get(descriptor(folder), DEFAULT_LIST).is_ok_and(|list| list.is_some())
}

/// Takes all extended attributes away but the label that a security module gave. What cannot be taken away is the system's.
fn clear_attributes(path: &Path) {
    let Ok(names) = xattr::list(path) else { return };
    for name in names.filter(|name| name != "security.selinux") {
        let _ = xattr::remove(path, &name);
    }
}

impl Applier<'_> {
    fn entry(&mut self, stream: &mut TarStream<impl Read>, entry: &Entry) -> Result<(), UnpackError> {
        match rules::step(entry, self.budget.limits())? {
            Step::Nothing => Ok(()),
            Step::Root => {
                let place = Place { parent: self.root.fd(), name: OsStr::new("."), path: &entry.path };
                clear_attributes(&place.path_of());
                self.metadata(entry, &place)
            }
            Step::Opaque { folder } => {
                let fail = write_error("applying the whiteout", &entry.path);
                self.root.forget();
                let folder = self.folder(&folder)?;
                // A descriptor opened as O_PATH cannot be listed.
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let folder = openat(&folder, ".", flags, Mode::empty()).map_err(&fail)?;
                root::clear(&folder, &self.made, MAX_REMOVE_DEPTH).map_err(&fail)?;
                Ok(())
            }
            Step::Whiteout { folder, name: hidden } => {
                let fail = write_error("applying the whiteout", &entry.path);
                self.root.forget();
                let folder = self.folder(&folder)?;
                root::remove(&folder, name(hidden), &self.made, MAX_REMOVE_DEPTH).map_err(&fail)?;
                Ok(())
            }
            Step::Make { folder, name: last } => {
                let place = Place { parent: self.folder(&folder)?, name: name(last), path: &entry.path };
                let made = self.make_way(&place, entry.kind)?;
                if made {
                    self.make(stream, entry, &place)?;
                }
                if entry.kind == Kind::HardLink {
                    return Ok(());
                }
                // A folder's attributes are replaced like all that describes it; what is new has those that its folder hands down.
                if !made || self.inherits {
                    clear_attributes(&place.path_of());
                }
                self.metadata(entry, &place)
            }
        }
    }

    /// A folder in which something will change, made where it is missing. Its times are noted when they are not known yet: what an archive
    /// does not name keeps them.
    fn folder(&mut self, components: &[&[u8]]) -> Result<Rc<OwnedFd>, UnpackError> {
        let folder = self.root.folder(components, true)?;
        for implied in self.root.take_implied() {
            self.implied(implied)?;
        }
        if self.last.as_ref().is_some_and(|last| Rc::ptr_eq(last, &folder)) {
            return Ok(folder);
        }
        let path = components.join(&b'/');
        let stat = fstat(&*folder).map_err(write_error("reading", &path))?;
        let id = root::id(&stat);
        if self.note(path, &stat) && has_default_list(&folder) {
            self.inherited.insert(id);
        }
        self.inherits = self.inherited.contains(&id);
        self.last = Some(Rc::clone(&folder));
        Ok(folder)
    }

    /// Notes the times of a folder; tells whether it was not known.
    fn note(&mut self, path: Vec<u8>, stat: &FileStat) -> bool {
        let new = self.seen.insert(root::id(stat));
        if new {
            let times = (
                TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
                TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
            );
            self.noted.push((path, times, root::id(stat)));
        }
        new
    }

    /// Gives a folder that no layer names what such folders have: mode 755, no times, and no list of the folder it stands in.
    fn implied(&mut self, implied: Implied) -> Result<(), UnpackError> {
        let Implied { path, folder, above: (above, before) } = implied;
        self.note(above, &before);
        let fail = write_error("making", &path);
        clear_attributes(&descriptor(&folder));
        let mode = Mode::from_bits_truncate(0o755);
        fchmodat(&*folder, ".", mode, FchmodatFlags::FollowSymlink).map_err(&fail)?;
        let id = root::id(&fstat(&*folder).map_err(&fail)?);
        self.seen.insert(id);
        self.noted.push((path, (TimeSpec::new(0, 0), TimeSpec::new(0, 0)), id));
        Ok(())
    }

    /// Removes what stands at the place; tells whether something has to be made there (a folder stays a folder).
    fn make_way(&mut self, place: &Place<'_>, kind: Kind) -> Result<bool, UnpackError> {
        let fail = write_error("replacing", place.path);
        let Some(stat) = root::stat(&place.parent, place.name).map_err(&fail)? else {
            return Ok(true);
        };
        if root::is_dir(&stat) && kind == Kind::Dir {
            return Ok(false);
        }
        self.root.forget();
        root::remove(&place.parent, place.name, &HashSet::new(), MAX_REMOVE_DEPTH).map_err(&fail)?;
        Ok(true)
    }

    fn make(
        &mut self,
        stream: &mut TarStream<impl Read>,
        entry: &Entry,
        place: &Place<'_>,
    ) -> Result<(), UnpackError> {
        let fail = write_error("making", place.path);
        let secret = Mode::from_bits_truncate(0o600);
        match entry.kind {
            Kind::File => return self.file(stream, entry, place),
            Kind::HardLink => return self.hard_link(entry, place),
            Kind::Dir => mkdirat(&place.parent, place.name, Mode::from_bits_truncate(0o700)).map_err(fail)?,
            Kind::Symlink => {
                symlinkat(name(&entry.link), &place.parent, place.name).map_err(fail)?;
            }
            Kind::Fifo => mknodat(&place.parent, place.name, SFlag::S_IFIFO, secret, 0).map_err(fail)?,
            Kind::Char | Kind::Block => {
                if self.owner == Owner::Caller {
                    return Ok(());
                }
                let kind = if entry.kind == Kind::Char { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
                let device = makedev(entry.device.0.into(), entry.device.1.into());
                mknodat(&place.parent, place.name, kind, secret, device).map_err(fail)?;
            }
        }
        self.root.forget();
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, place: &Place<'_>) -> Result<(), UnpackError> {
        let refuse =
            |why: String| UnpackError::HardLink { path: show(&entry.path), target: show(&entry.link), why };
        let parts = rules::components(&entry.link, self.budget.limits())?;
        let Some((last, parents)) = parts.split_last() else {
            return Err(refuse("its target is the root".to_owned()));
        };
        let parent = self.root.folder(parents, false).map_err(|error| refuse(error.to_string()))?;
        match root::stat(&parent, name(last)) {
            Ok(Some(stat)) if root::is_dir(&stat) => return Err(refuse("its target is a folder".to_owned())),
            Ok(Some(stat)) => {
                self.made.insert(root::id(&stat));
            }
            Ok(None) => return Err(refuse("its target is not there".to_owned())),
            Err(errno) => return Err(refuse(errno.desc().to_owned())),
        }
        linkat(&parent, name(last), &place.parent, place.name, AtFlags::empty())
            .map_err(|errno| refuse(errno.desc().to_owned()))
    }

    fn file(
        &mut self,
        stream: &mut TarStream<impl Read>,
        entry: &Entry,
        place: &Place<'_>,
    ) -> Result<(), UnpackError> {
        self.budget.take_bytes(entry.size)?;
        self.stats.bytes += entry.size;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&place.parent, place.name, flags, Mode::from_bits_truncate(0o600))
            .map_err(write_error("making", place.path))?;
        let mut file = File::from(fd);
        let fail = |source| UnpackError::Write { doing: "writing", path: show(place.path), source };
        match &entry.sparse {
            None => self.copy(stream, &mut file, entry.size, place)?,
            Some(map) => {
                for (offset, length) in &map.pieces {
                    file.seek(SeekFrom::Start(*offset)).map_err(fail)?;
                    self.copy(stream, &mut file, *length, place)?;
                }
            }
        }
        file.set_len(entry.size).map_err(fail)
    }

    /// Copies `left` bytes of data; blocks of zeros become holes.
    fn copy(
        &mut self,
        stream: &mut TarStream<impl Read>,
        file: &mut File,
        mut left: u64,
        place: &Place<'_>,
    ) -> Result<(), UnpackError> {
        let fail = |source| UnpackError::Write { doing: "writing", path: show(place.path), source };
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let mut have = 0;
            while have < want {
                let count = stream.read_data(&mut self.buffer[have..want])?;
                if count == 0 {
                    return Err(UnpackError::Malformed {
                        at: 0,
                        why: "a file has less data than its size says",
                    });
                }
                have += count;
            }
            let piece = &self.buffer[..want];
            if want >= HOLE && piece.iter().all(|byte| *byte == 0) {
                file.seek_relative(i64::try_from(want).unwrap_or(0)).map_err(fail)?;
            } else {
                file.write_all(piece).map_err(fail)?;
            }
            left -= want as u64;
        }
        Ok(())
    }

    fn metadata(&mut self, entry: &Entry, place: &Place<'_>) -> Result<(), UnpackError> {
        if self.owner == Owner::Caller && matches!(entry.kind, Kind::Char | Kind::Block) {
            return Ok(());
        }
        let fail = |doing| write_error(doing, place.path);
        let parent: &OwnedFd = &place.parent;
        if self.owner == Owner::Preserve {
            let (uid, gid) = rules::owner(entry)?;
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            fchownat(parent, place.name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(fail("setting the owner of"))?;
        }
        if entry.kind != Kind::Symlink {
            let mode = Mode::from_bits_truncate(entry.mode);
            fchmodat(parent, place.name, mode, FchmodatFlags::FollowSymlink)
                .map_err(fail("setting the mode of"))?;
        }
        self.attributes(entry, place)?;
        let stat = root::stat(parent, place.name).map_err(fail("reading"))?;
        if let Some(stat) = stat {
            self.made.insert(root::id(&stat));
            if entry.kind == Kind::Dir {
                let lists = entry.xattrs.iter().any(|(name, _)| name == DEFAULT_LIST.as_bytes());
                let id = root::id(&stat);
                let _ = if lists { self.inherited.insert(id) } else { self.inherited.remove(&id) };
            }
        }
        let mtime = TimeSpec::new(entry.mtime.0, entry.mtime.1.into());
        let atime = entry.atime.map_or(mtime, |(seconds, nanos)| TimeSpec::new(seconds, nanos.into()));
        if entry.kind == Kind::Dir {
            self.folders.push((entry.path.clone(), atime, mtime));
            return Ok(());
        }
        utimensat(parent, place.name, &atime, &mtime, UtimensatFlags::NoFollowSymlink)
            .map_err(fail("setting the times of"))
    }

    fn attributes(&mut self, entry: &Entry, place: &Place<'_>) -> Result<(), UnpackError> {
        self.stats.attributes_left_out += entry.acls_of_names;
        for (key, value) in &entry.xattrs {
            if let Err(source) = xattr::set(place.path_of(), name(key), value) {
                let code = source.raw_os_error().map(Errno::from_raw);
                let cannot_hold = matches!(code, Some(Errno::EOPNOTSUPP));
                let needs_root = code == Some(Errno::EPERM)
                    && (self.owner == Owner::Caller || entry.kind == Kind::Symlink);
                if !cannot_hold && !needs_root {
                    return Err(UnpackError::Write {
                        doing: "setting an extended attribute of",
                        path: show(place.path),
                        source,
                    });
                }
                self.stats.attributes_left_out += 1;
                // Without names: the layer may have been an encrypted one, and the host keeps the log.
                tracing::warn!("the file system cannot hold an extended attribute; left out");
            }
        }
        Ok(())
    }

    /// Sets the times of folders: first of those that this layer only changed something in, then of those it names, the last
    /// made first.
    fn finish(&mut self) -> Result<(), UnpackError> {
        self.root.forget();
        for (path, (atime, mtime), id) in std::mem::take(&mut self.noted) {
            self.set_times(&path, Some(id), &atime, &mtime)?;
        }
        for (path, atime, mtime) in std::mem::take(&mut self.folders).iter().rev() {
            self.set_times(path, None, atime, mtime)?;
        }
        Ok(())
    }

    /// Sets the times of the folder `path`, when it is there still, and the one of that `id`.
    fn set_times(
        &mut self,
        path: &[u8],
        id: Option<FileId>,
        atime: &TimeSpec,
        mtime: &TimeSpec,
    ) -> Result<(), UnpackError> {
        let parts = rules::components(path, self.budget.limits())?;
        // A later entry may have put something else here.
        let Ok(folder) = self.root.folder(&parts, false) else { return Ok(()) };
        let fail = write_error("setting the times of", path);
        if id.is_some() && id != Some(root::id(&fstat(&*folder).map_err(&fail)?)) {
            return Ok(());
        }
        utimensat(&*folder, ".", atime, mtime, UtimensatFlags::NoFollowSymlink).map_err(fail)
    }
}
