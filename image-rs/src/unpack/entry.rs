//! Walks the blocks of a tar archive: one [`Entry`] at a time, extended headers folded in.
//!
//! Known forms: V7, ustar, PAX (local records; global ones are skipped), GNU (long names, base-256 numbers, sparse). The `tar`
//! crate decodes the single header block. Memory is bounded by `max_entry_header` and the sparse map's bound.

use std::io::{self, Read};

use tar::Header;

use super::acl::{self, Acl};
use super::pax::{self, Pax};
use super::sparse::{self, MAX_PIECES, SparseMap};
use super::{UnpackError, show};
use crate::Limits;

const BLOCK: u64 = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of an earlier file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A folder.
    Dir,
    /// A named pipe.
    Fifo,
}

/// One entry, without its data.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its path as written.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Modification time: seconds, nanoseconds.
    pub mtime: (i64, u32),
    /// Access time, where given.
    pub atime: Option<(i64, u32)>,
    /// Device numbers.
    pub device: (u32, u32),
    /// Extended attributes, access control lists among them.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Access control lists that name users or groups by names, which stand for no number here.
    pub acls_of_names: u64,
    /// Size of the file.
    pub size: u64,
    /// Where the data goes in a sparse file.
    pub sparse: Option<SparseMap>,
}

/// Reads a tar archive as a stream.
pub struct TarStream<R> {
    inner: R,
    at: u64,
    left: u64,
    padding: u64,
    ended: bool,
    max_header: u64,
}

impl<R: Read> TarStream<R> {
    /// Begins at the first block of `inner`.
    pub fn new(inner: R, limits: &Limits) -> Self {
        Self { inner, at: 0, left: 0, padding: 0, ended: false, max_header: limits.max_entry_header }
    }

    /// The stream below.
    pub fn into_inner(self) -> R {
        self.inner
    }

    fn bad(&self, why: &'static str) -> UnpackError {
        UnpackError::Malformed { at: self.at, why }
    }

    /// The next entry, or `None` at the end. Data of the one before that was not read is skipped.
    ///
    /// # Errors
    /// When the archive is broken or a bound is exceeded.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut pax = Pax::default();
        let mut long_name = None;
        let mut long_link = None;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.entry_size().map_err(|_| self.bad("an entry's size is no number"))?;
            match header.as_bytes()[156] {
                b'g' => self.expect(size)?,
                b'x' => {
                    let at = self.at;
                    pax = pax::parse(&self.extension(size)?, at)?;
                }
                b'L' => long_name = Some(self.name_extension(size)?),
                b'K' => long_link = Some(self.name_extension(size)?),
                _ => return self.entry(&header, pax, long_name, long_link).map(Some),
            }
        }
    }

    /// Reads on in the data of the entry last given.
    ///
    /// # Errors
    /// When the stream fails or ends too early.
    pub fn read_data(&mut self, out: &mut [u8]) -> Result<usize, UnpackError> {
        let want = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut out[..want]).map_err(UnpackError::Read)?;
        if count == 0 {
            return Err(self.bad("the archive ends within a file"));
        }
        self.left -= count as u64;
        self.at += count as u64;
        Ok(count)
    }

    fn expect(&mut self, size: u64) -> Result<(), UnpackError> {
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        if size > i64::MAX as u64 {
            return Err(self.bad("an entry's size is beyond all files"));
        }
        Ok(())
    }

    fn skip(&mut self) -> Result<(), UnpackError> {
        let count = self.left + self.padding;
        if count == 0 {
            return Ok(());
        }
        let copied =
            io::copy(&mut (&mut self.inner).take(count), &mut io::sink()).map_err(UnpackError::Read)?;
        self.at += copied;
        if copied < self.left {
            return Err(self.bad("the archive ends within a file"));
        }
        self.left = 0;
        self.padding = 0;
        Ok(())
    }

    fn header(&mut self) -> Result<Option<Header>, UnpackError> {
        if self.ended {
            return Ok(None);
        }
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut have = 0;
        while have < block.len() {
            let count = self.inner.read(&mut block[have..]).map_err(UnpackError::Read)?;
            if count == 0 {
                break;
            }
            have += count;
        }
        if have == 0 {
            self.ended = true;
            return Ok(None);
        }
        if have < block.len() {
            return Err(self.bad("the archive ends within a header"));
        }
        if block.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(index, byte)| if (148..156).contains(&index) { 32 } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(self.bad("a header's checksum is wrong"));
        }
        self.at += BLOCK;
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        if size > self.max_header {
            return Err(UnpackError::Limit { limit: "max_entry_header", max: self.max_header });
        }
        self.expect(size)?;
        let mut data =
            vec![0; usize::try_from(size).map_err(|_| self.bad("an extended header is too long"))?];
        let mut have = 0;
        while have < data.len() {
            have += self.read_data(&mut data[have..])?;
        }
        Ok(data)
    }

    fn name_extension(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        let mut name = self.extension(size)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn entry(
        &mut self,
        header: &Header,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, UnpackError> {
        let sparse_name = pax.sparse_name.clone();
        let path = sparse_name
            .or_else(|| pax.path.clone())
            .or(long_name)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax
            .link
            .clone()
            .or(long_link)
            .or_else(|| header.link_name_bytes().map(|bytes| bytes.into_owned()))
            .unwrap_or_default();
        let kind = match header.as_bytes()[156] {
            // V7 has no type for folders: the name says it.
            0 if path.ends_with(b"/") => Kind::Dir,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => {
                return Err(UnpackError::EntryType { path: show(&path), kind: other.into() });
            }
        };
        // A field left blank stands for 0, as in Go's archive/tar.
        let number = |range: std::ops::Range<usize>, result: io::Result<u64>, why| {
            let blank = header.as_bytes()[range].iter().all(|byte| matches!(byte, 0 | b' '));
            if blank { Ok(0) } else { result.map_err(|_| UnpackError::Malformed { at: self.at, why }) }
        };
        let mode = number(100..108, header.mode().map(u64::from), "a mode is no number")?;
        let mut entry = Entry {
            kind,
            path,
            link,
            mode: u32::try_from(mode & 0o7777).unwrap_or(0),
            uid: match pax.uid {
                Some(uid) => uid,
                None => number(108..116, header.uid(), "an owner is no number")?,
            },
            gid: match pax.gid {
                Some(gid) => gid,
                None => number(116..124, header.gid(), "a group is no number")?,
            },
            // Times before 1970 are in base 256, as two's complement (GNU). One that is no number is not worth a refusal.
            mtime: pax.mtime.unwrap_or_else(|| (header.mtime().unwrap_or(0).cast_signed(), 0)),
            atime: pax.atime,
            device: (
                header.device_major().ok().flatten().unwrap_or(0),
                header.device_minor().ok().flatten().unwrap_or(0),
            ),
            xattrs: pax.xattrs.clone(),
            acls_of_names: 0,
            size: 0,
            sparse: None,
        };
        self.acls(&pax, &mut entry)?;
        if kind == Kind::File {
            let stored = match pax.size {
                Some(size) => size,
                None => header.entry_size().map_err(|_| self.bad("an entry's size is no number"))?,
            };
            self.file(header, &pax, stored, &mut entry)?;
        } else {
            // Other kinds carry no data, whatever their size says (as Go's archive/tar has it).
            self.expect(0)?;
        }
        Ok(entry)
    }

    /// Turns access control lists into the attributes that hold them, where those are not given themselves.
    fn acls(&self, pax: &Pax, entry: &mut Entry) -> Result<(), UnpackError> {
        for (text, name) in [
            (&pax.acl_access, &b"system.posix_acl_access"[..]),
            (&pax.acl_default, b"system.posix_acl_default"),
        ] {
            let Some(text) = text else { continue };
            if entry.xattrs.iter().any(|(given, _)| given == name) {
                continue;
            }
            match acl::read(text).ok_or_else(|| self.bad("an access control list is out of form"))? {
                Acl::Bytes(bytes) => entry.xattrs.push((name.to_vec(), bytes)),
                Acl::ModeOnly => {}
                Acl::Names => entry.acls_of_names += 1,
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        header: &Header,
        pax: &Pax,
        stored: u64,
        entry: &mut Entry,
    ) -> Result<(), UnpackError> {
        let at = self.at;
        entry.size = stored;
        if header.as_bytes()[156] == b'S' {
            let (pieces, size) = self.gnu_map(header)?;
            entry.sparse = Some(SparseMap::checked(pieces, size, stored, at)?);
            entry.size = size;
            return self.expect(stored);
        }
        self.expect(stored)?;
        let size = pax.sparse_size.unwrap_or(0);
        if pax.sparse_major == Some(1) && pax.sparse_minor == Some(0) {
            let (pieces, taken) = sparse::read_v1(&mut self.inner, stored, at)?;
            self.at += taken;
            self.left -= taken;
            entry.sparse = Some(SparseMap::checked(pieces, size, stored - taken, at)?);
            entry.size = size;
        } else if pax.sparse_major.is_none_or(|major| major == 0) && pax.sparse {
            let pieces = sparse::pairs(&pax.sparse_map, at)?;
            entry.sparse = Some(SparseMap::checked(pieces, size, stored, at)?);
            entry.size = size;
        } else if pax.sparse || pax.sparse_major.is_some() {
            return Err(self.bad("a sparse file of unknown form"));
        }
        Ok(())
    }

    /// The map in a GNU header and in the blocks that follow it.
    fn gnu_map(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64), UnpackError> {
        let at = self.at;
        let bad = |why| UnpackError::Malformed { at, why };
        let gnu = header.as_gnu().ok_or(bad("a sparse file without a GNU header"))?;
        let size = gnu.real_size().map_err(|_| bad("a sparse file's size is no number"))?;
        let mut pieces = Vec::new();
        let mut push = |piece: &tar::GnuSparseHeader| -> Result<(), UnpackError> {
            if piece.is_empty() {
                return Ok(());
            }
            let offset = piece.offset().map_err(|_| bad("a sparse map holds no number"))?;
            let length = piece.length().map_err(|_| bad("a sparse map holds no number"))?;
            if pieces.len() >= MAX_PIECES {
                return Err(bad("a sparse map has too many pieces"));
            }
            pieces.push((offset, length));
            Ok(())
        };
        for piece in &gnu.sparse {
            push(piece)?;
        }
        let mut more = gnu.is_extended();
        let mut extension = tar::GnuExtSparseHeader::new();
        while more {
            self.inner.read_exact(extension.as_mut_bytes()).map_err(UnpackError::Read)?;
            self.at += BLOCK;
            for piece in extension.sparse() {
                push(piece)?;
            }
            more = extension.is_extended();
        }
        Ok((pieces, size))
    }
}
