//! Programs: ELF, scripts, and the first stack (`fs/binfmt_elf.c`, `fs/binfmt_script.c`, `fs/exec.c`).
//!
//! Two halves. [`prepare`] reads and checks: it follows `#!` lines, parses headers, and finds the interpreter, without any effect on the
//! caller. [`Prepared::load`] maps what was found into an empty address space and sets the registers; when it fails the program that was
//! to run cannot, and the old one is gone.
//!
//! Each program gets the vDSO ([`vdso`]).
//!
//! Parsing is of bytes alone ([`elf`], [`script`], [`stack`]) and never panics, whatever they are.

pub mod elf;
mod host;
mod map;
pub mod script;
pub mod stack;
#[cfg(test)]
mod tests;
pub mod vdso;

use std::sync::Arc;

pub use map::Identity;
pub use vdso::Vdso;

use crate::error::Errno;
use crate::mm::MappedFile;

/// How many programs may stand for one another (`exec_binprm`).
const MAX_DEPTH: usize = 5;
/// Longest single argument with its 0 (`MAX_ARG_STRLEN`).
pub const MAX_STRING: usize = 128 << 10;
/// Room that arguments always have (`ARG_MAX`).
const ARG_MIN: u64 = 128 << 10;
/// Most that they ever have: three quarters of the usual stack.
const ARG_MAX: u64 = 6 << 20;

/// A file that can be run; the file room implements it for its descriptions.
pub trait Program: MappedFile {
    /// Reads at an offset; fewer bytes at the end alone.
    ///
    /// # Errors
    /// What the file system says.
    fn read_at(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno>;

    /// Its owner and group where its set-id bits say that it runs as these, and its mount allows it.
    fn set_ids(&self) -> (Option<u32>, Option<u32>) {
        (None, None)
    }
}

/// Opens programs by name, as the caller.
pub trait Opener {
    /// Opens a file to run it.
    ///
    /// # Errors
    /// ENOENT, EACCES (not executable, not a regular file, `MS_NOEXEC`), ETXTBSY, and what a walk gives.
    fn open_program(&self, path: &[u8]) -> Result<Arc<dyn Program>, Errno>;
}

/// What a program is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Strings {
    /// `argv`.
    pub arguments: Vec<Vec<u8>>,
    /// `envp`.
    pub environment: Vec<Vec<u8>>,
}

impl Strings {
    /// How many bytes of strings and pointers there may be with a stack of this limit (`bprm_stack_limits`).
    #[must_use]
    pub fn room(stack: u64) -> u64 {
        (stack / 4).clamp(ARG_MIN, ARG_MAX)
    }

    /// # Errors
    /// E2BIG where there is too much of it.
    pub fn check(&self, stack: u64) -> Result<(), Errno> {
        let mut left = Self::room(stack);
        for text in self.arguments.iter().chain(&self.environment) {
            if text.len() >= MAX_STRING {
                return Err(Errno::E2BIG);
            }
            let used = text.len() as u64 + 1 + 8;
            left = left.checked_sub(used).ok_or(Errno::E2BIG)?;
        }
        Ok(())
    }
}

/// A program that was found to be one, with its interpreter.
pub struct Prepared {
    program: Arc<dyn Program>,
    image: elf::Image,
    interpreter: Option<(Arc<dyn Program>, elf::Image)>,
    strings: Strings,
    /// `AT_EXECFN`.
    name: Vec<u8>,
}

impl Prepared {
    /// The file that runs: the program itself, or the interpreter of a script.
    #[must_use]
    pub fn program(&self) -> &Arc<dyn Program> {
        &self.program
    }

    /// What the program is told, what scripts added included.
    #[must_use]
    pub fn strings(&self) -> &Strings {
        &self.strings
    }
}

/// Finds out how a file is run. `name` is what scripts are told they are called, and `AT_EXECFN`; `reachable` says whether an
/// interpreter could open that name (not where it is that of a descriptor that is closed by then).
///
/// # Errors
/// ENOEXEC (no program), ELOOP (scripts of scripts), E2BIG, ELIBBAD (no interpreter), ENOENT, EINVAL, and what opening and reading give.
pub fn prepare(
    opener: &dyn Opener,
    mut program: Arc<dyn Program>,
    name: &[u8],
    reachable: bool,
    mut strings: Strings,
    stack: u64,
) -> Result<Prepared, Errno> {
    if strings.arguments.is_empty() {
        // Since 5.18: no program is without a name.
        strings.arguments.push(Vec::new());
    }
    strings.check(stack)?;
    let mut told = name.to_vec();
    for _ in 0..=MAX_DEPTH {
        let mut head = [0; script::HEAD_BYTES];
        let read = read_full(program.as_ref(), &mut head, 0)?;
        if let Some(script) = script::parse(&head[..read])? {
            if !reachable {
                return Err(Errno::ENOENT);
            }
            let mut arguments = vec![script.interpreter.clone()];
            arguments.extend(script.argument);
            arguments.push(told);
            arguments.extend(strings.arguments.drain(..).skip(1));
            strings.arguments = arguments;
            strings.check(stack)?;
            program = opener.open_program(&script.interpreter)?;
            told = script.interpreter;
            continue;
        }
        let image = read_image(program.as_ref(), &head[..read], Errno::ENOEXEC)?;
        let interpreter = match &image.interpreter {
            None => None,
            Some(place) => Some(read_interpreter(opener, program.as_ref(), *place)?),
        };
        return Ok(Prepared { program, image, interpreter, strings, name: name.to_vec() });
    }
    Err(Errno::ELOOP)
}

/// Reads as much as there is, up to all of `to`.
fn read_full(program: &dyn Program, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < to.len() {
        let at = offset.checked_add(done as u64).ok_or(Errno::EINVAL)?;
        match program.read_at(&mut to[done..], at)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}

/// Reads all of `to`.
fn read_exact(program: &dyn Program, to: &mut [u8], offset: u64) -> Result<(), Errno> {
    if read_full(program, to, offset)? == to.len() { Ok(()) } else { Err(Errno::EIO) }
}

/// What the headers of a file say; `refused` where it is no program.
fn read_image(program: &dyn Program, head: &[u8], refused: Errno) -> Result<elf::Image, Errno> {
    let header = elf::Header::parse(head).ok_or(refused)?;
    let mut table = vec![0; header.table_bytes()];
    read_exact(program, &mut table, header.table_offset).map_err(|_| refused)?;
    elf::Image::parse(&header, &table)
}

fn read_interpreter(
    opener: &dyn Opener,
    program: &dyn Program,
    (offset, length): (u64, usize),
) -> Result<(Arc<dyn Program>, elf::Image), Errno> {
    let mut name = vec![0; length];
    read_exact(program, &mut name, offset)?;
    if name.pop() != Some(0) {
        return Err(Errno::ENOEXEC);
    }
    // A name ends at its first 0.
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let interpreter = opener.open_program(&name[..end])?;
    let mut head = [0; script::HEAD_BYTES];
    let read = read_full(interpreter.as_ref(), &mut head, 0)?;
    if read < elf::HEADER_BYTES {
        return Err(Errno::EIO);
    }
    let image = read_image(interpreter.as_ref(), &head[..read], Errno::ELIBBAD)?;
    Ok((interpreter, image))
}
