//! Open files of a process by number.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::OpenFile;
use super::inotify;
use super::locks::Owner;
use super::sync::lock;
use crate::error::Errno;

/// `RLIMIT_NOFILE` unless somebody sets another.
const LIMIT: u32 = 1024 * 1024;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Open files of a process, by number.
pub struct FdTable {
    id: u64,
    inner: Mutex<Inner>,
}

#[derive(Clone, Default)]
struct Inner {
    slots: Vec<Option<Slot>>,
    /// Below it every number is taken.
    lowest: usize,
    limit: u32,
}

#[derive(Clone)]
struct Slot {
    file: Arc<OpenFile>,
    close_on_exec: bool,
}

impl Default for FdTable {
    fn default() -> Self {
        Self::from_inner(Inner { limit: LIMIT, ..Inner::default() })
    }
}

fn index(fd: i32) -> Result<usize, Errno> {
    usize::try_from(fd).map_err(|_| Errno::EBADF)
}

impl Inner {
    /// Puts a file at the lowest free number from `from` on.
    fn insert(&mut self, slot: Slot, from: usize) -> Result<i32, Errno> {
        let mut at = from.max(self.lowest);
        while self.slots.get(at).is_some_and(Option::is_some) {
            at = at.saturating_add(1);
        }
        if at >= self.limit as usize {
            return Err(Errno::EMFILE);
        }
        if from <= self.lowest {
            self.lowest = at.saturating_add(1);
        }
        self.put(at, slot);
        i32::try_from(at).map_err(|_| Errno::EMFILE)
    }

    fn put(&mut self, at: usize, slot: Slot) -> Option<Slot> {
        if at >= self.slots.len() {
            self.slots.resize(at.saturating_add(1), None);
        }
        self.slots.get_mut(at).and_then(|place| place.replace(slot))
    }

    fn take(&mut self, at: usize) -> Option<Slot> {
        let slot = self.slots.get_mut(at)?.take()?;
        self.lowest = self.lowest.min(at);
        Some(slot)
    }
}

impl FdTable {
    fn from_inner(inner: Inner) -> Self {
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), inner: Mutex::new(inner) }
    }

    /// Who owns POSIX record locks that are set by way of this table.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner::Process(self.id)
    }

    /// A copy with the same open files (`fork`, `unshare(CLONE_FILES)`).
    #[must_use]
    pub fn copy(&self) -> Self {
        Self::from_inner(lock(&self.inner).clone())
    }

    /// `RLIMIT_NOFILE`: numbers are below it.
    pub fn set_limit(&self, limit: u32) {
        lock(&self.inner).limit = limit.min(LIMIT);
    }

    /// Numbers are below it.
    #[must_use]
    pub fn limit(&self) -> u32 {
        lock(&self.inner).limit
    }

    /// The open file of this number.
    ///
    /// # Errors
    /// EBADF.
    pub fn find(&self, fd: i32) -> Result<Arc<OpenFile>, Errno> {
        let inner = lock(&self.inner);
        let slot = inner.slots.get(index(fd)?).and_then(Option::as_ref);
        slot.map(|slot| Arc::clone(&slot.file)).ok_or(Errno::EBADF)
    }

    /// The open file of this number, unless it is `O_PATH`.
    ///
    /// # Errors
    /// EBADF.
    pub fn get(&self, fd: i32) -> Result<Arc<OpenFile>, Errno> {
        let file = self.find(fd)?;
        if file.flags().path() { Err(Errno::EBADF) } else { Ok(file) }
    }

    /// Gives a file the lowest free number.
    ///
    /// # Errors
    /// EMFILE.
    pub fn insert(&self, file: Arc<OpenFile>, close_on_exec: bool) -> Result<i32, Errno> {
        self.insert_from(file, close_on_exec, 0)
    }

    /// Gives a file the lowest free number from `from` on (`F_DUPFD`).
    ///
    /// # Errors
    /// EINVAL where `from` is not below the limit; EMFILE.
    pub fn insert_from(&self, file: Arc<OpenFile>, close_on_exec: bool, from: u64) -> Result<i32, Errno> {
        let mut inner = lock(&self.inner);
        if from != 0 && from >= u64::from(inner.limit) {
            return Err(Errno::EINVAL);
        }
        inner.insert(Slot { file, close_on_exec }, usize::try_from(from).map_err(|_| Errno::EINVAL)?)
    }

    /// Gives two files numbers, or neither.
    ///
    /// # Errors
    /// EMFILE.
    pub fn insert_two(&self, files: [Arc<OpenFile>; 2], close_on_exec: bool) -> Result<[i32; 2], Errno> {
        let [first, second] = files;
        let mut inner = lock(&self.inner);
        let one = inner.insert(Slot { file: first, close_on_exec }, 0)?;
        match inner.insert(Slot { file: second, close_on_exec }, 0) {
            Ok(two) => Ok([one, two]),
            Err(errno) => {
                let taken = index(one).ok().and_then(|one| inner.take(one));
                drop(inner);
                drop(taken);
                Err(errno)
            }
        }
    }

    /// Gives a file this number in place of what has it (`dup2`).
    ///
    /// # Errors
    /// EBADF where the number is not below the limit.
    pub fn replace(&self, fd: i32, file: Arc<OpenFile>, close_on_exec: bool) -> Result<(), Errno> {
        let at = index(fd)?;
        let before = {
            let mut inner = lock(&self.inner);
            if at >= inner.limit as usize {
                return Err(Errno::EBADF);
            }
            inner.put(at, Slot { file, close_on_exec })
        };
        if let Some(slot) = before {
            self.closed(&slot);
        }
        Ok(())
    }

    /// Takes a file away.
    ///
    /// # Errors
    /// EBADF.
    pub fn close(&self, fd: i32) -> Result<(), Errno> {
        let slot = lock(&self.inner).take(index(fd)?).ok_or(Errno::EBADF)?;
        self.closed(&slot);
        Ok(())
    }

    /// Takes away, or marks to be taken away at an `execve`, all from `first` to `last`.
    pub fn close_range(&self, first: u32, last: u32, mark: bool) {
        let mut taken = Vec::new();
        {
            let mut inner = lock(&self.inner);
            let end = inner.slots.len().min((last as usize).saturating_add(1));
            for at in first as usize..end {
                if !mark {
                    taken.extend(inner.take(at));
                } else if let Some(slot) = inner.slots.get_mut(at).and_then(Option::as_mut) {
                    slot.close_on_exec = true;
                }
            }
        }
        taken.iter().for_each(|slot| self.closed(slot));
    }

    /// What an `execve` does.
    pub fn close_on_exec(&self) {
        let mut taken = Vec::new();
        {
            let mut inner = lock(&self.inner);
            for at in 0..inner.slots.len() {
                if inner.slots.get(at).and_then(Option::as_ref).is_some_and(|slot| slot.close_on_exec) {
                    taken.extend(inner.take(at));
                }
            }
        }
        taken.iter().for_each(|slot| self.closed(slot));
    }

    /// Whether an `execve` closes it.
    ///
    /// # Errors
    /// EBADF.
    pub fn is_close_on_exec(&self, fd: i32) -> Result<bool, Errno> {
        let inner = lock(&self.inner);
        let slot = inner.slots.get(index(fd)?).and_then(Option::as_ref);
        slot.map(|slot| slot.close_on_exec).ok_or(Errno::EBADF)
    }

    /// Says whether an `execve` closes it.
    ///
    /// # Errors
    /// EBADF.
    pub fn set_close_on_exec(&self, fd: i32, close: bool) -> Result<(), Errno> {
        let mut inner = lock(&self.inner);
        let slot = inner.slots.get_mut(index(fd)?).and_then(Option::as_mut).ok_or(Errno::EBADF)?;
        slot.close_on_exec = close;
        Ok(())
    }

    /// All numbers with their files (`/proc/self/fd`).
    #[must_use]
    pub fn all(&self) -> Vec<(i32, Arc<OpenFile>)> {
        let inner = lock(&self.inner);
        let slots = inner.slots.iter().enumerate();
        slots
            .filter_map(|(at, slot)| Some((i32::try_from(at).ok()?, Arc::clone(&slot.as_ref()?.file))))
            .collect()
    }

    /// A process that closes any of its descriptors of a file loses its POSIX locks of that file, and the news of a folder that it has by it.
    fn closed(&self, slot: &Slot) {
        inotify::unwatch_folder(&slot.file, self.owner());
        if let Some(locks) = slot.file.inode().locks() {
            locks.release(self.owner());
        }
    }
}

impl Drop for FdTable {
    fn drop(&mut self) {
        let slots = std::mem::take(&mut lock(&self.inner).slots);
        slots.iter().flatten().for_each(|slot| self.closed(slot));
    }
}
