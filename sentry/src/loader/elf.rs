//! Headers of ELF files for x86-64 (System V ABI, `fs/binfmt_elf.c`): bytes in, a plan out.

use crate::error::Errno;
use crate::mm::{Protection, TASK_SIZE, page_down, page_up};

/// Bytes of the file's header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a program header.
pub const PROGRAM_HEADER_BYTES: usize = 56;
/// Most bytes of all program headers (a page, as Linux has it).
const MAX_TABLE: usize = 4096;
/// Longest name of an interpreter with its 0 (`PATH_MAX`).
const MAX_NAME: u64 = 4096;
/// Largest alignment that is kept.
const MAX_ALIGNMENT: u64 = 2 << 20;

const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_GNU_STACK: u32 = 0x6474_e551;

/// What the file's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whether it runs wherever it is put (`ET_DYN`).
    pub moves: bool,
    /// First instruction.
    pub entry: u64,
    /// Where in the file the program headers are.
    pub table_offset: u64,
    /// How many there are.
    pub table_entries: u16,
}

/// A part of the file that is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Address of its first byte, before the program is moved.
    pub address: u64,
    /// Where in the file it begins.
    pub offset: u64,
    /// Bytes from the file.
    pub file_bytes: u64,
    /// Bytes in memory; those that the file has not are 0.
    pub memory_bytes: u64,
    /// What can be done there.
    pub protection: Protection,
}

impl Segment {
    /// First address behind it. It was checked that there is one.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.address.saturating_add(self.memory_bytes)
    }
}

/// What is to be mapped of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Whether it runs wherever it is put.
    pub moves: bool,
    /// First instruction, before it is moved.
    pub entry: u64,
    /// Its parts, in the order of their addresses.
    pub segments: Vec<Segment>,
    /// Where in the file the interpreter's name is, and how long with its 0.
    pub interpreter: Option<(u64, usize)>,
    /// Whether code may run on the stack.
    pub executable_stack: bool,
    /// To a multiple of this it is moved.
    pub alignment: u64,
    /// Where in memory its program headers are (0 where they are not), and how many.
    pub table: (u64, u16),
}

/// Numbers at fixed places.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
}

impl Header {
    /// Reads the first bytes of a file. `None` where it is no program for this machine.
    #[must_use]
    pub fn parse(head: &[u8]) -> Option<Self> {
        let bytes = Bytes(head.get(..HEADER_BYTES)?);
        // 64 bits, low bytes first.
        if !head.starts_with(b"\x7fELF\x02\x01") || bytes.u16(18)? != EM_X86_64 {
            return None;
        }
        let moves = match bytes.u16(16)? {
            ET_EXEC => false,
            ET_DYN => true,
            _ => return None,
        };
        let header = Self {
            moves,
            entry: bytes.u64(24)?,
            table_offset: bytes.u64(32)?,
            table_entries: bytes.u16(56)?,
        };
        let size_fits = usize::from(bytes.u16(54)?) == PROGRAM_HEADER_BYTES;
        let some = header.table_entries > 0 && header.table_bytes() <= MAX_TABLE;
        (size_fits && some && header.table_offset <= i64::MAX.unsigned_abs()).then_some(header)
    }

    /// Bytes of the program headers.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        usize::from(self.table_entries) * PROGRAM_HEADER_BYTES
    }
}

impl Image {
    /// Reads the program headers.
    ///
    /// # Errors
    /// ENOEXEC (the interpreter's name), EINVAL (no segments, segments out of order, over each other, larger than memory or not where
    /// their pages are in the file), ENOMEM (behind the last address).
    pub fn parse(header: &Header, table: &[u8]) -> Result<Self, Errno> {
        let mut image = Self {
            moves: header.moves,
            entry: header.entry,
            segments: Vec::new(),
            interpreter: None,
            executable_stack: false,
            alignment: crate::mm::PAGE,
            table: (0, header.table_entries),
        };
        let rows = table.chunks_exact(PROGRAM_HEADER_BYTES).take(usize::from(header.table_entries));
        for row in rows {
            image.row(header, &Bytes(row)).unwrap_or(Err(Errno::ENOEXEC))?;
        }
        if image.segments.is_empty() {
            return Err(Errno::EINVAL);
        }
        Ok(image)
    }

    /// Takes one program header in; `None` where it has not all its bytes.
    fn row(&mut self, header: &Header, row: &Bytes<'_>) -> Option<Result<(), Errno>> {
        let flags = row.u32(4)?;
        let (offset, address) = (row.u64(8)?, row.u64(16)?);
        let (file_bytes, memory_bytes) = (row.u64(32)?, row.u64(40)?);
        match row.u32(0)? {
            PT_INTERP if self.interpreter.is_none() => {
                let length = usize::try_from(file_bytes).ok()?;
                if !(2..=MAX_NAME).contains(&file_bytes) || offset > i64::MAX.unsigned_abs() {
                    return Some(Err(Errno::ENOEXEC));
                }
                self.interpreter = Some((offset, length));
            }
            PT_GNU_STACK => self.executable_stack = flags & 1 != 0,
            // What takes no room is not there.
            PT_LOAD if memory_bytes == 0 && file_bytes == 0 => {}
            PT_LOAD => {
                let protection = protection(flags);
                let segment = Segment { address, offset, file_bytes, memory_bytes, protection };
                if let Err(errno) = self.check(&segment) {
                    return Some(Err(errno));
                }
                let alignment = row.u64(48)?;
                if alignment.is_power_of_two() {
                    self.alignment = self.alignment.max(alignment.min(MAX_ALIGNMENT));
                }
                let inside = header.table_offset.checked_sub(offset).filter(|inside| *inside < file_bytes);
                if let (0, Some(inside)) = (self.table.0, inside) {
                    self.table.0 = address.saturating_add(inside);
                }
                self.segments.push(segment);
            }
            _ => {}
        }
        Some(Ok(()))
    }

    fn check(&self, segment: &Segment) -> Result<(), Errno> {
        let Segment { address, offset, file_bytes, memory_bytes, .. } = *segment;
        if file_bytes > memory_bytes || memory_bytes > TASK_SIZE {
            return Err(Errno::EINVAL);
        }
        let end = address.checked_add(memory_bytes).and_then(page_up).ok_or(Errno::ENOMEM)?;
        if end > TASK_SIZE {
            return Err(Errno::ENOMEM);
        }
        let aligned = address % crate::mm::PAGE == offset % crate::mm::PAGE;
        let in_file = offset.checked_add(file_bytes).is_some_and(|end| end <= i64::MAX.unsigned_abs());
        if file_bytes > 0 && !(aligned && in_file) {
            return Err(Errno::EINVAL);
        }
        // In order, as the ABI asks for; two may have a page in common.
        if self.segments.last().is_some_and(|last| address < last.end()) {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// The pages of all segments.
    #[must_use]
    pub fn pages(&self) -> std::ops::Range<u64> {
        let start = self.segments.first().map_or(0, |segment| page_down(segment.address));
        let end = self.segments.last().and_then(|segment| page_up(segment.end())).unwrap_or(start);
        start..end
    }
}

fn protection(flags: u32) -> Protection {
    let mut protection = Protection::empty();
    protection.set(Protection::EXEC, flags & 1 != 0);
    protection.set(Protection::WRITE, flags & 2 != 0);
    protection.set(Protection::READ, flags & 4 != 0);
    protection
}

/// Reads a whole file: for fuzzing, and for files that are in memory.
///
/// # Errors
/// As [`Image::parse`]; ENOEXEC where it is no program for this machine.
pub fn parse(file: &[u8]) -> Result<Image, Errno> {
    let header = Header::parse(file).ok_or(Errno::ENOEXEC)?;
    let start = usize::try_from(header.table_offset).map_err(|_| Errno::ENOEXEC)?;
    let end = start.checked_add(header.table_bytes()).ok_or(Errno::ENOEXEC)?;
    Image::parse(&header, file.get(start..end).ok_or(Errno::ENOEXEC)?)
}
