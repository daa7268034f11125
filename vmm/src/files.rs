//! Kernel and initramfs files: mapped, not read, since most of the bytes are copied exactly once, from
//! the page cache into guest memory.
//!
//! A mapped file that is cut short meanwhile kills the process by SIGBUS. That is the host
//! administrator's doing and harms the one VM that was about to start. The firmware image of a TEE is read
//! instead: what is measured must be what is loaded, whatever happens to the file in between. Kernel and initramfs are
//! not measured but hashed by the firmware: where they changed, it refuses them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion};

use crate::digests::FileKey;
use crate::error::VmmError;

/// Largest kernel or initramfs.
const MAX_BYTES: u64 = 2 << 30;

/// Content of a file.
pub enum Content {
    /// Mapped read-only, and the file's key when it was opened.
    Mapped(MmapRegion<()>, FileKey),
    /// Read.
    Owned(Vec<u8>),
}

impl Content {
    /// Maps the file, or reads it when `stable` demands that later changes are not seen.
    ///
    /// # Errors
    /// When it is not a readable regular file of reasonable size.
    pub fn open(what: &str, path: &Path, stable: bool) -> Result<Self, VmmError> {
        let failed = |source| VmmError::File { what: what.into(), path: path.into(), source };
        let other = |reason: &str| failed(std::io::Error::other(reason.to_owned()));
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(other("not a regular file"));
        }
        let length = metadata.len();
        if length == 0 || length > MAX_BYTES {
            return Err(other("is empty or larger than 2 GiB"));
        }
        if stable {
            let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
            file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
            return Ok(Self::Owned(bytes));
        }
        let bytes = usize::try_from(length).map_err(|_| other("too large"))?;
        MmapRegionBuilder::new_with_bitmap(bytes, ())
            .with_file_offset(FileOffset::new(file, 0))
            .with_mmap_prot(libc::PROT_READ)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .build()
            .map(|map| Self::Mapped(map, FileKey::of(&metadata)))
            .map_err(|e| other(&e.to_string()))
    }

    /// What tells a mapped file from what it was at another time, unless it changed since it was opened.
    #[must_use]
    pub fn key(&self) -> Option<FileKey> {
        match self {
            Self::Owned(_) => None,
            Self::Mapped(map, key) => {
                let now = map.file_offset()?.file().metadata().ok()?;
                (FileKey::of(&now) == *key).then_some(*key)
            }
        }
    }

    /// The bytes.
    #[must_use]
    #[allow(unsafe_code)]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            // SAFETY: the mapping is private, readable, `size()` bytes long and lives as long as `self`;
            // nobody in this process writes to it.
            Self::Mapped(map, _) => unsafe { std::slice::from_raw_parts(map.as_ptr(), map.size()) },
        }
    }
}

/// Opens a block device's file. Never a FIFO or a folder, which would block or make no sense.
///
/// # Errors
/// What the system said.
pub fn open_block(path: &Path, read_only: bool) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options()
        .read(true)
        .write(!read_only)
        // a FIFO must not make us wait
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(file);
    }
    Err(std::io::Error::other("neither a regular file nor a block device"))
}

/// Largest console file. A FIFO has no such bound: whoever reads it decides what is kept.
const MAX_CONSOLE_BYTES: u64 = 64 << 20;

/// Opens the console's file for appending; a FIFO so that it never blocks, with or without a reader. A guest that prints
/// for ever fills no disk: of a regular file, what would come behind [`MAX_CONSOLE_BYTES`] is lost (and counted, as
/// `serial.lost_bytes`).
///
/// # Errors
/// What the system said.
pub fn open_console(path: &Path) -> std::io::Result<Box<dyn Write + Send>> {
    use std::os::unix::fs::OpenOptionsExt;
    let fifo = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_fifo());
    let file = File::options()
        .append(true)
        .read(fifo)
        .create(!fifo)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(Box::new(file));
    }
    Ok(Box::new(Bounded { left: MAX_CONSOLE_BYTES.saturating_sub(metadata.len()), to: file }))
}

/// Takes so many bytes, and then none.
struct Bounded<W> {
    left: u64,
    to: W,
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let fits = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let written = self.to.write(bytes.get(..fits).unwrap_or_default())?;
        self.left = self.left.saturating_sub(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_has_a_key_as_long_as_it_is_what_it_was() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("kernel");
        std::fs::write(&path, b"kernel").expect("written");
        let read = Content::open("kernel", &path, true).expect("read");
        assert_eq!((read.bytes(), read.key()), (&b"kernel"[..], None));
        let mapped = Content::open("kernel", &path, false).expect("mapped");
        let metadata = std::fs::metadata(&path).expect("there");
        assert_eq!((mapped.bytes(), mapped.key()), (&b"kernel"[..], Some(FileKey::of(&metadata))));
        std::fs::write(&path, b"longer than before").expect("written");
        assert_eq!(mapped.key(), None);
    }

    #[test]
    fn a_console_file_does_not_grow_without_end() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("console");
        let full = File::create(&path).expect("console");
        full.set_len(MAX_CONSOLE_BYTES - 3).expect("sized");
        let mut console = open_console(&path).expect("opened");
        assert_eq!(console.write(b"hello").expect("written"), 3);
        assert_eq!(console.write(b"lo").expect("no error"), 0, "the rest is lost");
        assert_eq!(full.metadata().expect("there").len(), MAX_CONSOLE_BYTES);
    }
}
