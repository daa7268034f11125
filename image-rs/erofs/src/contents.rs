//! Contents of files: whole blocks go out as they come, short ends wait for their inodes.

use std::collections::BTreeMap;
use std::io::Write;

use crate::inode::INODE;
use crate::metadata::{BLOCK, MAX_INLINE, block_number, pad};
use crate::tree::Content;
use crate::{ErofsError, xattr};

/// Bytes of short ends that are kept in memory; the ends of later files get blocks of their own.
const MAX_TAILS: usize = 32 << 20;

/// Where contents are written.
#[derive(Debug)]
pub struct Contents<W> {
    output: W,
    next_block: u64,
    tails: Vec<u8>,
}

impl<W: Write> Contents<W> {
    /// Begins at a block.
    pub const fn new(output: W, first_block: u64) -> Self {
        Self { output, next_block: first_block, tails: Vec::new() }
    }

    /// Begins a file of that size and with these extended attributes, beside which its end may lie.
    ///
    /// # Errors
    /// [`ErofsError::TooLarge`], [`ErofsError::Attribute`].
    pub fn file(
        &mut self,
        size: u64,
        xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<FileWriter<'_, W>, ErofsError> {
        let short = (size % BLOCK as u64) as usize;
        let fits = INODE + xattr::bytes(xattrs)?.len() + short <= BLOCK;
        let inline = fits && short > 0 && short <= MAX_INLINE && self.tails.len() + short <= MAX_TAILS;
        let in_blocks = if inline { size - short as u64 } else { size };
        let first_block = if in_blocks == 0 { 0 } else { block_number(self.next_block)? };
        let content = Content { size, first_block, inline: inline.then_some(self.tails.len()) };
        Ok(FileWriter { contents: self, content, in_blocks, at: 0 })
    }

    /// The writer below, the block after the last, and the short ends.
    pub(crate) fn finish(self) -> Result<(W, u32, Vec<u8>), ErofsError> {
        Ok((self.output, block_number(self.next_block)?, self.tails))
    }
}

/// One file's contents on their way.
#[derive(Debug)]
pub struct FileWriter<'a, W> {
    contents: &'a mut Contents<W>,
    content: Content,
    /// Bytes of it that lie in blocks of their own.
    in_blocks: u64,
    at: u64,
}

impl<W: Write> FileWriter<'_, W> {
    /// The next bytes.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ErofsError> {
        let left = usize::try_from(self.in_blocks.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let (blocks, tail) = bytes.split_at(bytes.len().min(left));
        self.contents.output.write_all(blocks)?;
        if self.content.inline.is_some() {
            self.contents.tails.extend_from_slice(tail);
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Zeros up to there.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn zeros_until(&mut self, offset: u64) -> Result<(), ErofsError> {
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        while self.at < offset {
            let count = (offset - self.at).min(BLOCK as u64);
            self.write(&ZEROS[..count as usize])?;
        }
        Ok(())
    }

    /// What the inode has to say of it.
    ///
    /// # Errors
    /// When its end cannot be written.
    pub fn finish(mut self) -> Result<Content, ErofsError> {
        self.zeros_until(self.content.size)?;
        let mut at = self.in_blocks;
        let end = self.in_blocks.next_multiple_of(BLOCK as u64);
        pad(&mut self.contents.output, &mut at, end)?;
        self.contents.next_block += end / BLOCK as u64;
        Ok(self.content)
    }
}
