//! The first stack of a program (System V ABI for AMD64, section 3.4.1; `create_elf_tables`).

use std::ops::Range;

use super::Strings;
use crate::error::Errno;
use crate::mm;

/// Random bytes that a program gets (`AT_RANDOM`).
pub const RANDOM_BYTES: usize = 16;
/// Name of the machine (`AT_PLATFORM`).
const PLATFORM: &[u8] = b"x86_64";
/// `AT_RANDOM`, `AT_EXECFN`, `AT_PLATFORM`: pointers into the stack itself.
const AT_RANDOM: u64 = 25;
const AT_EXECFN: u64 = 31;
const AT_PLATFORM: u64 = 15;

/// What the stack is made of.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// Arguments and environment.
    pub strings: &'a Strings,
    /// Name of the program.
    pub name: &'a [u8],
    /// For `AT_RANDOM`.
    pub random: [u8; RANDOM_BYTES],
    /// The auxiliary vector, without what points into the stack and without its end.
    pub auxiliary: &'a [(u64, u64)],
}

/// A stack as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// The stack pointer: where the bytes begin. A multiple of 16.
    pub pointer: u64,
    /// All up to the stack's end.
    pub bytes: Vec<u8>,
    /// Where the strings and the auxiliary vector are.
    pub places: mm::Strings,
}

/// Takes bytes from the top down.
struct Down {
    at: u64,
    /// Pieces, the highest first.
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Down {
    fn push(&mut self, bytes: Vec<u8>) -> Result<u64, Errno> {
        self.at = self.at.checked_sub(bytes.len() as u64).ok_or(Errno::E2BIG)?;
        self.pieces.push((self.at, bytes));
        Ok(self.at)
    }

    /// Strings with their 0, the first lowest: where all of them are, and each.
    fn strings(&mut self, strings: &[Vec<u8>]) -> Result<(Range<u64>, Vec<u64>), Errno> {
        let mut bytes = Vec::new();
        let mut offsets = Vec::with_capacity(strings.len());
        for text in strings {
            offsets.push(bytes.len() as u64);
            bytes.extend_from_slice(text);
            bytes.push(0);
        }
        let end = self.at;
        let start = self.push(bytes)?;
        Ok((start..end, offsets.into_iter().map(|offset| start + offset).collect()))
    }
}

/// Lays a stack out whose end is `top`.
///
/// # Errors
/// E2BIG where there is no room below `top`.
pub fn build(top: u64, contents: &Contents<'_>) -> Result<Stack, Errno> {
    let mut down = Down { at: top, pieces: Vec::new() };
    down.push(vec![0; 8])?;
    let name = down.push([contents.name, &[0]].concat())?;
    let (environment, environment_pointers) = down.strings(&contents.strings.environment)?;
    let (arguments, argument_pointers) = down.strings(&contents.strings.arguments)?;
    let platform = down.push([PLATFORM, &[0]].concat())?;
    let random = down.push(contents.random.to_vec())?;
    let mut words = vec![argument_pointers.len() as u64];
    words.extend(argument_pointers);
    words.push(0);
    words.extend(environment_pointers);
    words.push(0);
    let auxiliary_at = words.len() as u64 * 8;
    let own = [(AT_RANDOM, random), (AT_EXECFN, name), (AT_PLATFORM, platform), (0, 0)];
    for (key, value) in contents.auxiliary.iter().copied().chain(own) {
        words.extend([key, value]);
    }
    let length = words.len() as u64 * 8;
    let pointer = down.at.checked_sub(length).ok_or(Errno::E2BIG)? & !15;
    let mut bytes = vec![0; usize::try_from(top - pointer).map_err(|_| Errno::E2BIG)?];
    let table: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    down.pieces.push((pointer, table));
    for (at, piece) in down.pieces {
        let start = (at - pointer) as usize;
        bytes[start..start + piece.len()].copy_from_slice(&piece);
    }
    let auxiliary = pointer + auxiliary_at..pointer + length;
    Ok(Stack { pointer, bytes, places: mm::Strings { arguments, environment, auxiliary } })
}
