//! Mappings that are put off until something needs them, so that one hand-over makes them all: those of a program that is loaded.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::layout::{at, op};
use super::thread::{StubThread, result};
use crate::error::Errno;
use crate::platform::MemoryCall;

/// A mapping as the stub makes it: what [`at::MAPS`] says.
#[derive(Clone, Copy)]
pub(super) struct Mapping([u64; 6]);

impl Mapping {
    /// In place of what is there, of a file (by its place among those that come with it) from an offset on, or of memory of its own.
    pub(super) fn new(
        (address, length): (u64, u64),
        protection: i32,
        flags: i32,
        file: Option<(usize, u64)>,
    ) -> Self {
        let own = if file.is_none() { libc::MAP_ANONYMOUS } else { 0 };
        let flags = (flags | libc::MAP_FIXED | own).cast_unsigned();
        let (file, offset) = file.map_or((u64::MAX, 0), |(file, offset)| (file as u64, offset));
        Self([address, length, u64::from(protection.cast_unsigned()), u64::from(flags), offset, file])
    }
}

/// What is put off.
#[derive(Default)]
pub(super) struct PutOff {
    /// Whether mappings are.
    gathers: Cell<bool>,
    mappings: RefCell<Vec<Mapping>>,
    /// The files of them, each once.
    files: RefCell<Vec<Arc<OwnedFd>>>,
}

impl PutOff {
    fn is_empty(&self) -> bool {
        self.mappings.borrow().is_empty()
    }

    fn is_full(&self) -> bool {
        self.mappings.borrow().len() == at::MAPS_COUNT || self.files.borrow().len() == at::FILES_COUNT
    }

    /// Which of the files it is.
    fn file(&self, file: &Arc<OwnedFd>) -> usize {
        let mut files = self.files.borrow_mut();
        files.iter().position(|known| Arc::ptr_eq(known, file)).unwrap_or_else(|| {
            files.push(Arc::clone(file));
            files.len() - 1
        })
    }
}

impl StubThread {
    /// Puts mappings off from now on, or makes what was put off.
    pub(super) fn gather_mappings(&self, gather: bool) -> Result<(), Errno> {
        self.put_off.gathers.set(gather);
        if gather { Ok(()) } else { self.make_mappings() }
    }

    /// Puts a mapping off. `None` where it has to be made now.
    pub(super) fn put_off_mapping(
        &self,
        call: &MemoryCall<'_>,
        kept: Option<&Arc<OwnedFd>>,
    ) -> Result<Option<u64>, Errno> {
        let MemoryCall::Map { address, length, protection, flags, file } = *call else { return Ok(None) };
        if !self.put_off.gathers.get() || file.is_some() != kept.is_some() {
            return Ok(None);
        }
        if self.put_off.is_full() {
            self.make_mappings()?;
        }
        let file = file.zip(kept).map(|((_, offset), kept)| (self.put_off.file(kept), offset));
        let mapping = Mapping::new((address, length), protection, flags, file);
        self.put_off.mappings.borrow_mut().push(mapping);
        Ok(Some(address))
    }

    /// Makes what was put off. Where one of them cannot be made, the guest is of no use, and ended.
    pub(super) fn make_mappings(&self) -> Result<(), Errno> {
        if self.put_off.is_empty() {
            return Ok(());
        }
        let (mappings, files) = (self.put_off.mappings.take(), self.put_off.files.take());
        let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        let made = self.map_all(&mappings, &files);
        if made.is_err() {
            self.stub.kill();
        }
        made.map(drop)
    }

    /// Has the stub make mappings, one at least, of these files. The address of the last.
    pub(super) fn map_all(&self, mappings: &[Mapping], files: &[BorrowedFd<'_>]) -> Result<u64, Errno> {
        self.make_mappings()?;
        let ask = |[socket, header, flags]: [u64; 3]| {
            for (place, mapping) in (at::WINDOW + at::MAPS..).step_by(48).zip(mappings) {
                for (n, word) in mapping.0.iter().enumerate() {
                    self.context.store(place + 8 * n, *word);
                }
            }
            let counts = [files.len() as u64, mappings.len() as u64];
            result(self.ask(op::MAP, &[socket, header, flags, counts[0], counts[1]])?)
        };
        if files.is_empty() { ask([0; 3]) } else { self.give(files, ask) }
    }
}
