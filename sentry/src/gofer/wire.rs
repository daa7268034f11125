//! What goes between the sentry and its gofer: one message for a request, one or more for its answer (`man 7 unix`, SOCK_SEQPACKET).
//!
//! All numbers are little-endian. Names are 1 to 255 bytes without `/` and 0, and never `.` or `..`: a message with another one is none.
//! Whoever reads a message looks at every byte of it and refuses what is left over.

use kata_cc_bytes::{Cursor, Truncated};

use crate::error::Errno;
use crate::vfs::{
    AttributeChange, Attributes, DirEntry, FileKind, NAME_MAX, RenameMode, Timestamp, XattrMode,
};

/// Most bytes of one message.
pub(super) const MESSAGE_MAX: usize = 64 << 10;
/// Most names that one request walks along.
pub(crate) const NAMES_MAX: usize = 32;
/// Most bytes of all these names, each counted with a slash: less than a path of the host's may have.
pub(crate) const PATH_MAX: usize = 2048;
/// Most bytes of a link's target (`PATH_MAX` without its 0).
pub(super) const TARGET_MAX: usize = 4095;
/// Most bytes of an extended attribute's value, and of all their names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`), less what is around them.
pub(super) const XATTR_MAX: usize = MESSAGE_MAX - 1024;
/// Most handles that are given back at once.
pub(super) const CLOSE_MAX: usize = 512;

/// A message that is none: whoever sent it is broken or has been taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

impl From<Truncated> for Malformed {
    fn from(_: Truncated) -> Self {
        Self
    }
}

/// Stands for a file that the gofer holds. 0 is none.
pub(crate) type Handle = u64;

/// What a walk is to give besides attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Nothing,
    Handle,
    Open(Access),
    /// A descriptor to read it, where it is a regular file.
    Peek,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// And read.
    Write,
}

/// A file and names to walk along from there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) handle: Handle,
    pub(crate) names: Vec<Vec<u8>>,
}

impl At {
    /// The file itself.
    pub(crate) fn handle(handle: Handle) -> Self {
        Self { handle, names: Vec::new() }
    }
}

/// A file to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) kind: FileKind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u64,
    pub(crate) target: Vec<u8>,
}

/// What the sentry asks for.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// A handle of an exported file, by its place in the list.
    Attach(u32),
    /// Another connection.
    Connect,
    /// Without an answer.
    Close(Vec<Handle>),
    Walk(At, Want),
    /// Names of a folder; with `attributes`, as many as there may be, also what their files are like.
    List {
        at: At,
        attributes: u32,
    },
    Status(Handle),
    Sync(Handle),
    Xattr(At, Vec<u8>),
    Xattrs(At),
    Create {
        folder: Handle,
        name: Vec<u8>,
        made: Made,
    },
    /// A regular file without a name.
    Temporary {
        folder: Handle,
        made: Made,
    },
    Link {
        folder: Handle,
        name: Vec<u8>,
        file: Handle,
    },
    Unlink {
        folder: Handle,
        name: Vec<u8>,
        as_folder: bool,
    },
    Rename {
        folder: Handle,
        name: Vec<u8>,
        to: Handle,
        to_name: Vec<u8>,
        mode: RenameMode,
    },
    Change(Handle, AttributeChange),
    SetXattr {
        at: Handle,
        name: Vec<u8>,
        value: Vec<u8>,
        mode: XattrMode,
    },
    RemoveXattr(Handle, Vec<u8>),
}

/// A file as the gofer tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) handle: Handle,
    /// With the host's number of the file system.
    pub(crate) attributes: Attributes,
    /// Of a symbolic link.
    pub(crate) target: Vec<u8>,
}

/// A name of a folder; with what it stands for where that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) entry: DirEntry,
    pub(crate) found: Option<Found>,
}

/// Writes messages.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// A length and so many bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(bytes);
        self
    }

    fn at(&mut self, at: &At) -> &mut Self {
        self.u64(at.handle).u8(u8::try_from(at.names.len()).unwrap_or(u8::MAX));
        for name in &at.names {
            self.bytes(name);
        }
        self
    }

    fn made(&mut self, made: &Made) -> &mut Self {
        self.u8(made.kind as u8).u32(made.mode).u32(made.uid).u32(made.gid).u64(made.rdev).bytes(&made.target)
    }

    fn stamp(&mut self, stamp: Option<Timestamp>) -> &mut Self {
        match stamp {
            Some(stamp) => self.u8(1).u64(stamp.seconds.cast_unsigned()).u32(stamp.nanoseconds),
            None => self.u8(0),
        }
    }

    fn number(&mut self, number: Option<u64>) -> &mut Self {
        match number {
            Some(number) => self.u8(1).u64(number),
            None => self.u8(0),
        }
    }

    fn change(&mut self, change: &AttributeChange) -> &mut Self {
        self.number(change.mode.map(u64::from)).number(change.uid.map(u64::from));
        self.number(change.gid.map(u64::from)).number(change.size);
        self.stamp(change.accessed).stamp(change.modified)
    }

    fn attributes(&mut self, a: &Attributes) -> &mut Self {
        self.u64(a.device).u64(a.inode).u8(a.kind as u8).u32(a.mode).u32(a.links).u32(a.uid).u32(a.gid);
        self.u64(a.rdev).u64(a.size).u64(a.blocks).u32(a.block_size);
        self.stamp(Some(a.accessed)).stamp(Some(a.modified)).stamp(Some(a.changed)).stamp(a.created)
    }

    pub(crate) fn found(&mut self, found: &Found) -> &mut Self {
        self.u64(found.handle).attributes(&found.attributes).bytes(&found.target)
    }

    pub(crate) fn listed(&mut self, listed: &Listed) -> &mut Self {
        self.bytes(&listed.entry.name).u64(listed.entry.inode).u8(listed.entry.kind as u8);
        match &listed.found {
            Some(found) => self.u8(1).found(found),
            None => self.u8(0),
        }
    }
}

/// Reads messages.
pub(crate) struct Reader<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(Cursor::new(bytes))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.0.u8()?)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(self.0.u32()?)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(self.0.u64()?)
    }

    pub(crate) fn bytes(&mut self, most: usize) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
        if length > most { Err(Malformed) } else { Ok(self.0.slice(length)?) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.rest().is_empty()
    }

    /// Nothing is left.
    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn name(&mut self) -> Result<Vec<u8>, Malformed> {
        let name = self.bytes(NAME_MAX)?;
        let plain = !name.is_empty() && name != b"." && name != b"..";
        if plain && !name.contains(&b'/') && !name.contains(&0) { Ok(name.to_vec()) } else { Err(Malformed) }
    }

    /// Name of an extended attribute.
    fn attribute(&mut self) -> Result<Vec<u8>, Malformed> {
        let name = self.bytes(NAME_MAX)?;
        if name.is_empty() || name.contains(&0) { Err(Malformed) } else { Ok(name.to_vec()) }
    }

    fn at(&mut self) -> Result<At, Malformed> {
        let (handle, count) = (self.u64()?, usize::from(self.u8()?));
        if count > NAMES_MAX {
            return Err(Malformed);
        }
        let names = (0..count).map(|_| self.name()).collect::<Result<Vec<_>, _>>()?;
        let bytes: usize = names.iter().map(|name| name.len() + 1).sum();
        if bytes > PATH_MAX { Err(Malformed) } else { Ok(At { handle, names }) }
    }

    fn kind(&mut self) -> Result<FileKind, Malformed> {
        FileKind::from_mode(u32::from(self.u8()?) << 12).ok_or(Malformed)
    }

    fn made(&mut self) -> Result<Made, Malformed> {
        let (kind, mode, uid, gid) = (self.kind()?, self.u32()?, self.u32()?, self.u32()?);
        let (rdev, target) = (self.u64()?, self.bytes(TARGET_MAX)?.to_vec());
        let has_target = kind == FileKind::Symlink;
        if mode > 0o7777 || target.is_empty() == has_target || target.contains(&0) {
            return Err(Malformed);
        }
        Ok(Made { kind, mode, uid, gid, rdev, target })
    }

    fn stamp(&mut self) -> Result<Option<Timestamp>, Malformed> {
        if !self.flag()? {
            return Ok(None);
        }
        let (seconds, nanoseconds) = (self.u64()?.cast_signed(), self.u32()?);
        if nanoseconds < 1_000_000_000 {
            Ok(Some(Timestamp { seconds, nanoseconds }))
        } else {
            Err(Malformed)
        }
    }

    fn number(&mut self) -> Result<Option<u64>, Malformed> {
        self.flag()?.then(|| self.u64()).transpose()
    }

    fn small(&mut self) -> Result<Option<u32>, Malformed> {
        self.number()?.map(|number| u32::try_from(number).map_err(|_| Malformed)).transpose()
    }

    fn change(&mut self) -> Result<AttributeChange, Malformed> {
        let (mode, uid, gid, size) = (self.small()?, self.small()?, self.small()?, self.number()?);
        let (accessed, modified) = (self.stamp()?, self.stamp()?);
        let fits =
            mode.is_none_or(|mode| mode <= 0o7777) && size.is_none_or(|size| i64::try_from(size).is_ok());
        if fits { Ok(AttributeChange { mode, uid, gid, size, accessed, modified }) } else { Err(Malformed) }
    }

    fn attributes(&mut self) -> Result<Attributes, Malformed> {
        let (device, inode, kind) = (self.u64()?, self.u64()?, self.kind()?);
        let (mode, links, uid, gid) = (self.u32()?, self.u32()?, self.u32()?, self.u32()?);
        let (rdev, size, blocks, block_size) = (self.u64()?, self.u64()?, self.u64()?, self.u32()?);
        let mut stamp = || self.stamp()?.ok_or(Malformed);
        let (accessed, modified, changed) = (stamp()?, stamp()?, stamp()?);
        let created = self.stamp()?;
        if mode > 0o7777 || i64::try_from(size).is_err() || i64::try_from(blocks).is_err() {
            return Err(Malformed);
        }
        Ok(Attributes {
            device,
            inode,
            kind,
            mode,
            links,
            uid,
            gid,
            rdev,
            size,
            blocks,
            block_size,
            accessed,
            modified,
            changed,
            created,
        })
    }

    pub(crate) fn found(&mut self) -> Result<Found, Malformed> {
        let (handle, attributes) = (self.u64()?, self.attributes()?);
        let target = self.bytes(TARGET_MAX)?.to_vec();
        let has_target = attributes.kind == FileKind::Symlink;
        if (!target.is_empty() && !has_target) || target.contains(&0) {
            return Err(Malformed);
        }
        Ok(Found { handle, attributes, target })
    }

    pub(crate) fn listed(&mut self) -> Result<Listed, Malformed> {
        let entry = DirEntry { name: self.name()?, inode: self.u64()?, kind: self.kind()? };
        let found = self.flag()?.then(|| self.found()).transpose()?;
        Ok(Listed { entry, found })
    }
}

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Writer(Vec::with_capacity(128));
        match self {
            Self::Attach(number) => to.u8(0).u32(*number),
            Self::Connect => to.u8(1),
            Self::Close(handles) => {
                to.u8(2).u32(u32::try_from(handles.len()).unwrap_or(u32::MAX));
                handles.iter().fold(&mut to, |to, handle| to.u64(*handle))
            }
            Self::Walk(at, want) => {
                let want = match want {
                    Want::Nothing => 0,
                    Want::Handle => 1,
                    Want::Open(Access::Read) => 2,
                    Want::Open(Access::Write) => 3,
                    Want::Peek => 4,
                };
                to.u8(3).at(at).u8(want)
            }
            Self::List { at, attributes } => to.u8(4).at(at).u32(*attributes),
            Self::Status(handle) => to.u8(5).u64(*handle),
            Self::Sync(handle) => to.u8(6).u64(*handle),
            Self::Xattr(at, name) => to.u8(7).at(at).bytes(name),
            Self::Xattrs(at) => to.u8(8).at(at),
            Self::Create { folder, name, made } => to.u8(9).u64(*folder).bytes(name).made(made),
            Self::Temporary { folder, made } => to.u8(10).u64(*folder).made(made),
            Self::Link { folder, name, file } => to.u8(11).u64(*folder).bytes(name).u64(*file),
            Self::Unlink { folder, name, as_folder } => {
                to.u8(12).u64(*folder).bytes(name).u8(u8::from(*as_folder))
            }
            Self::Rename { folder, name, to: there, to_name, mode } => {
                let mode = match mode {
                    RenameMode::Replace => 0,
                    RenameMode::Keep => 1,
                    RenameMode::Exchange => 2,
                };
                to.u8(13).u64(*folder).bytes(name).u64(*there).bytes(to_name).u8(mode)
            }
            Self::Change(handle, change) => to.u8(14).u64(*handle).change(change),
            Self::SetXattr { at, name, value, mode } => {
                let mode = match mode {
                    XattrMode::Any => 0,
                    XattrMode::Create => 1,
                    XattrMode::Replace => 2,
                };
                to.u8(15).u64(*at).bytes(name).bytes(value).u8(mode)
            }
            Self::RemoveXattr(at, name) => to.u8(16).u64(*at).bytes(name),
        };
        to.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let request = match from.u8()? {
            0 => Self::Attach(from.u32()?),
            1 => Self::Connect,
            2 => {
                let count = usize::try_from(from.u32()?).map_err(|_| Malformed)?;
                if count > CLOSE_MAX {
                    return Err(Malformed);
                }
                Self::Close((0..count).map(|_| from.u64()).collect::<Result<_, _>>()?)
            }
            3 => {
                let at = from.at()?;
                let want = match from.u8()? {
                    0 => Want::Nothing,
                    1 => Want::Handle,
                    2 => Want::Open(Access::Read),
                    3 => Want::Open(Access::Write),
                    4 => Want::Peek,
                    _ => return Err(Malformed),
                };
                Self::Walk(at, want)
            }
            4 => Self::List { at: from.at()?, attributes: from.u32()? },
            5 => Self::Status(from.u64()?),
            6 => Self::Sync(from.u64()?),
            7 => Self::Xattr(from.at()?, from.attribute()?),
            8 => Self::Xattrs(from.at()?),
            change => Self::decode_change(change, &mut from)?,
        };
        from.end()?;
        Ok(request)
    }

    fn decode_change(number: u8, from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(match number {
            9 => Self::Create { folder: from.u64()?, name: from.name()?, made: from.made()? },
            10 => Self::Temporary { folder: from.u64()?, made: from.made()? },
            11 => Self::Link { folder: from.u64()?, name: from.name()?, file: from.u64()? },
            12 => Self::Unlink { folder: from.u64()?, name: from.name()?, as_folder: from.flag()? },
            13 => {
                let (folder, name, to, to_name) = (from.u64()?, from.name()?, from.u64()?, from.name()?);
                let mode = match from.u8()? {
                    0 => RenameMode::Replace,
                    1 => RenameMode::Keep,
                    2 => RenameMode::Exchange,
                    _ => return Err(Malformed),
                };
                Self::Rename { folder, name, to, to_name, mode }
            }
            14 => Self::Change(from.u64()?, from.change()?),
            15 => {
                let (at, name, value) = (from.u64()?, from.attribute()?, from.bytes(XATTR_MAX)?.to_vec());
                let mode = match from.u8()? {
                    0 => XattrMode::Any,
                    1 => XattrMode::Create,
                    2 => XattrMode::Replace,
                    _ => return Err(Malformed),
                };
                Self::SetXattr { at, name, value, mode }
            }
            16 => Self::RemoveXattr(from.u64()?, from.attribute()?),
            _ => return Err(Malformed),
        })
    }
}

/// The beginning of an answer: that it is one, or an errno.
pub(crate) fn failure(errno: Errno) -> Vec<u8> {
    let mut to = Writer::default();
    to.u8(1).u32((errno as i32).unsigned_abs());
    to.0
}

/// Reads the beginning of an answer. An errno that no program expects counts as none.
pub(crate) fn outcome(from: &mut Reader<'_>) -> Result<Result<(), Errno>, Malformed> {
    match from.u8()? {
        0 => Ok(Ok(())),
        1 => {
            let number = i32::try_from(from.u32()?).map_err(|_| Malformed)?;
            let errno = Errno::from_raw(number);
            from.end()?;
            if errno == Errno::UnknownErrno { Err(Malformed) } else { Ok(Err(errno)) }
        }
        _ => Err(Malformed),
    }
}
