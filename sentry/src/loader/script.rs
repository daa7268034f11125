//! Lines that name an interpreter (`fs/binfmt_script.c`).

use crate::error::Errno;

/// Bytes of a file that are looked at (`BINPRM_BUF_SIZE`).
pub const HEAD_BYTES: usize = 256;

/// What a `#!` line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Path of the interpreter.
    pub interpreter: Vec<u8>,
    /// Its one argument: all the rest of the line.
    pub argument: Option<Vec<u8>>,
}

fn blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Reads the first bytes of a file, of which it looks at [`HEAD_BYTES`]. `None` where it is no script.
///
/// # Errors
/// ENOEXEC where the line names nothing, or its interpreter does not fit.
pub fn parse(head: &[u8]) -> Result<Option<Script>, Errno> {
    let Some(line) = head.strip_prefix(b"#!") else { return Ok(None) };
    let line = &line[..line.len().min(HEAD_BYTES - 2)];
    let cut = head.len() >= HEAD_BYTES;
    let whole = line.iter().position(|byte| *byte == b'\n');
    let line = match whole {
        Some(end) => &line[..end],
        // The kernel keeps the last byte of its buffer for a 0.
        None if cut => &line[..HEAD_BYTES - 3],
        None => line,
    };
    // Text behind a 0 is not there.
    let ended = line.iter().position(|byte| *byte == 0);
    let line = &line[..ended.unwrap_or(line.len())];
    let start = line.iter().position(|byte| !blank(*byte)).ok_or(Errno::ENOEXEC)?;
    let line = &line[start..];
    let end = line.iter().position(|byte| blank(*byte));
    if end.is_none() && whole.is_none() && ended.is_none() && cut {
        return Err(Errno::ENOEXEC);
    }
    let (interpreter, rest) = line.split_at(end.unwrap_or(line.len()));
    let first = rest.iter().position(|byte| !blank(*byte));
    let last = rest.iter().rposition(|byte| !blank(*byte));
    let argument = match (first, last) {
        (Some(first), Some(last)) => Some(rest[first..=last].to_vec()),
        _ => None,
    };
    Ok(Some(Script { interpreter: interpreter.to_vec(), argument }))
}
