//! What is known about a file (`man 7 inode`).

/// What a file is. The numbers are those of `S_IFMT`, shifted down by 12: also what `getdents` tells (`DT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A named pipe.
    Fifo = 1,
    /// A character device.
    CharDevice = 2,
    /// A folder.
    Folder = 4,
    /// A block device.
    BlockDevice = 6,
    /// A regular file.
    Regular = 8,
    /// A symbolic link.
    Symlink = 10,
    /// A socket.
    Socket = 12,
}

impl FileKind {
    /// Its bits of `st_mode`.
    #[must_use]
    pub fn mode_bits(self) -> u32 {
        (self as u32) << 12
    }

    /// What `d_type` says.
    #[must_use]
    pub fn entry_type(self) -> u8 {
        self as u8
    }

    /// Of a mode with `S_IFMT` bits.
    #[must_use]
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match (mode >> 12) & 0xf {
            1 => Self::Fifo,
            2 => Self::CharDevice,
            4 => Self::Folder,
            6 => Self::BlockDevice,
            8 => Self::Regular,
            10 => Self::Symlink,
            12 => Self::Socket,
            _ => return None,
        })
    }
}

/// A moment of real time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Since 1970.
    pub seconds: i64,
    /// Below 1 000 000 000.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// By the host's coarse clock, which is what Linux stamps files with.
    #[must_use]
    pub fn now() -> Self {
        match nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME_COARSE) {
            Ok(time) => {
                Self { seconds: time.tv_sec(), nanoseconds: u32::try_from(time.tv_nsec()).unwrap_or(0) }
            }
            Err(_) => Self::default(),
        }
    }
}

/// What `stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Number of its file system.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// What it is.
    pub kind: FileKind,
    /// Permissions, with the set-user-id, set-group-id and sticky bits.
    pub mode: u32,
    /// Names it has.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Which device it stands for.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// Units of 512 bytes in use.
    pub blocks: u64,
    /// A good size for reading and writing.
    pub block_size: u32,
    /// Last read.
    pub accessed: Timestamp,
    /// Contents last changed.
    pub modified: Timestamp,
    /// Contents or attributes last changed.
    pub changed: Timestamp,
    /// When it came to be, if that is known.
    pub created: Option<Timestamp>,
}

impl Attributes {
    /// `st_mode`.
    #[must_use]
    pub fn full_mode(&self) -> u32 {
        self.kind.mode_bits() | self.mode
    }
}

/// New values for some attributes. Whoever is asked for it has been found entitled to it.
#[derive(Debug, Clone, Copy, Default)]
pub struct AttributeChange {
    /// Permissions with set-id and sticky bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
    /// Last read.
    pub accessed: Option<Timestamp>,
    /// Contents last changed.
    pub modified: Option<Timestamp>,
}

/// A device number as `stat` tells it (`include/linux/kdev_t.h`, `new_encode_dev` widened as glibc's `makedev`).
#[must_use]
pub fn device(major: u32, minor: u32) -> u64 {
    nix::sys::stat::makedev(u64::from(major), u64::from(minor))
}

/// Major and minor number of a device.
#[must_use]
pub fn device_parts(device: u64) -> (u32, u32) {
    let part = |number: u64| u32::try_from(number).unwrap_or(0);
    (part(nix::sys::stat::major(device)), part(nix::sys::stat::minor(device)))
}
