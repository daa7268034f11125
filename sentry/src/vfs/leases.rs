//! Leases of files (`F_SETLEASE`; `fs/locks.c`, `man 2 fcntl`): their holder is asked before somebody else opens or truncates the file, and
//! whoever wants to waits until it has let go, or until its time is over.
//!
//! Who breaks a lease counts as somebody who has the file open before it looks for leases ([`super::WriteAccess`]), and who takes one is
//! counted before it looks who has the file open.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::locks::FileLocks;
use super::sync::lock;
use super::{Flags, IoSignal, OpenFile, SignalOwner};
use crate::error::Errno;
use crate::events::Events;
use crate::task::Pid;

/// Leases that there are or that somebody is about to take: with none, nobody has to look.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Whether anybody has one, of whatever file.
#[must_use]
pub(crate) fn any() -> bool {
    COUNT.load(Ordering::SeqCst) > 0
}

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To hear of who writes (`F_RDLCK`).
    Read,
    /// To hear of who reads or writes (`F_WRLCK`).
    Write,
}

/// That a holder was asked, and until when it may think about it; `None` for as long as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Asked(Option<Instant>);

impl Asked {
    fn over(self, now: Instant) -> bool {
        self.0.is_some_and(|until| until <= now)
    }
}

/// A lease.
#[derive(Debug)]
pub struct Lease {
    /// The open file description that has it.
    description: u64,
    /// The process that took it.
    process: Pid,
    kind: Kind,
    /// The descriptor by which it was taken, which the signal tells.
    fd: i32,
    signal: Arc<Mutex<IoSignal>>,
    /// Asked to let go.
    release: Option<Asked>,
    /// Asked to be content with one for reading.
    downgrade: Option<Asked>,
}

impl Lease {
    /// One of an open file.
    #[must_use]
    pub fn new(open: &OpenFile, fd: i32, process: Pid, kind: Kind) -> Self {
        let (description, signal) = (open.id(), Arc::clone(open.io_signal()));
        Self { description, process, kind, fd, signal, release: None, downgrade: None }
    }

    /// What it is about to be (`target_leasetype`).
    fn target(&self) -> Option<Kind> {
        match (self.release, self.downgrade) {
            (Some(_), _) => None,
            (None, Some(_)) => Some(Kind::Read),
            (None, None) => Some(self.kind),
        }
    }

    fn conflicts(&self, writes: bool) -> bool {
        writes || self.kind == Kind::Write
    }

    /// As the holder wants it, or has to (`lease_modify`).
    fn change(&mut self, kind: Kind) {
        self.kind = kind;
        if kind == Kind::Read {
            self.downgrade = None;
        }
    }

    /// What goes with it: nobody is told any more.
    fn gone(&self) {
        let mut signal = lock(&self.signal);
        (signal.owner, signal.signal) = (SignalOwner::NOBODY, 0);
        drop(signal);
        COUNT.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Leases of a file.
#[derive(Default)]
pub struct Leases(Mutex<Vec<Lease>>);

impl Leases {
    /// Those of which the time is not over (`time_out_leases`).
    fn now(&self) -> MutexGuard<'_, Vec<Lease>> {
        let (mut leases, now) = (lock(&self.0), Instant::now());
        leases.retain_mut(|lease| {
            if lease.downgrade.is_some_and(|asked| asked.over(now)) {
                lease.change(Kind::Read);
            }
            let over = lease.release.is_some_and(|asked| asked.over(now));
            if over {
                lease.gone();
            }
            !over
        });
        leases
    }
}

/// A lease as `/proc/locks` tells it.
pub(super) struct Shown {
    pub(super) description: u64,
    pub(super) process: Pid,
    pub(super) breaking: bool,
    /// What it is about to be; `None` for nothing.
    pub(super) target: Option<Kind>,
}

impl FileLocks {
    /// Whether anybody has a lease: a quick look.
    #[must_use]
    pub fn leased(&self) -> bool {
        COUNT.load(Ordering::SeqCst) > 0
            && self.leases.get().is_some_and(|leases| !lock(&leases.0).is_empty())
    }

    /// Takes a lease or changes the one that the description has. `flags` are the description's.
    ///
    /// # Errors
    /// EAGAIN where others have the file open in a way that does not go with it, or a lease; EINVAL where there are to be no new ones.
    pub fn lease(&self, wanted: Lease, flags: Flags, enabled: bool) -> Result<(), Errno> {
        COUNT.fetch_add(1, Ordering::SeqCst);
        let taken = self.take(wanted, flags, enabled);
        if taken != Ok(true) {
            COUNT.fetch_sub(1, Ordering::SeqCst);
        }
        self.queue.notify(Events::CHANGED);
        taken.map(drop)
    }

    /// Whether it is a new one.
    fn take(&self, wanted: Lease, flags: Flags, enabled: bool) -> Result<bool, Errno> {
        let mut leases = self.leases.get_or_init(Box::default).now();
        let free = match wanted.kind {
            Kind::Read => self.writers.unwritten(),
            Kind::Write => self.writers.only(flags),
        };
        let own = |lease: &Lease| lease.description == wanted.description;
        let forbids = |lease: &Lease| !own(lease) && (wanted.kind == Kind::Write || lease.release.is_some());
        if !free || leases.iter().any(forbids) {
            return Err(Errno::EAGAIN);
        }
        if let Some(lease) = leases.iter_mut().find(|lease| own(lease)) {
            lease.change(wanted.kind);
            lease.fd = wanted.fd;
            return Ok(false);
        }
        if !enabled {
            return Err(Errno::EINVAL);
        }
        leases.push(wanted);
        Ok(true)
    }

    /// A description lets its lease go.
    ///
    /// # Errors
    /// EAGAIN where it has none.
    pub fn unlease(&self, description: u64) -> Result<(), Errno> {
        if !any() {
            return Err(Errno::EAGAIN);
        }
        let leases = self.leases.get().ok_or(Errno::EAGAIN)?;
        let mut list = leases.now();
        let at = list.iter().position(|lease| lease.description == description).ok_or(Errno::EAGAIN)?;
        list.swap_remove(at).gone();
        drop(list);
        self.queue.notify(Events::CHANGED);
        Ok(())
    }

    /// The lease that a description has, or is about to have (`F_GETLEASE`).
    #[must_use]
    pub fn lease_of(&self, description: u64) -> Option<Kind> {
        let leases = self.leases.get()?.now();
        leases.iter().find(|lease| lease.description == description)?.target()
    }

    /// Asks all holders to let somebody open the file, to write it or only to read it: those who were not asked before, with the
    /// descriptors they took their leases by (`__break_lease`).
    #[must_use]
    pub fn break_leases(&self, writes: bool, until: Option<Instant>) -> Vec<(IoSignal, i32)> {
        let Some(leases) = self.leases.get() else { return Vec::new() };
        let mut told = Vec::new();
        for lease in leases.now().iter_mut().filter(|lease| lease.conflicts(writes)) {
            let known = lease.release.is_some() || !writes && lease.downgrade.is_some();
            if known {
                continue;
            }
            *(if writes { &mut lease.release } else { &mut lease.downgrade }) = Some(Asked(until));
            told.push((*lock(&lease.signal), lease.fd));
        }
        told
    }

    /// Until when somebody who wants to open the file has to wait at most; `None` where nobody minds any more.
    #[must_use]
    pub fn lease_waits(&self, writes: bool) -> Option<Option<Instant>> {
        let leases = self.leases.get()?.now();
        let minding = leases.iter().filter(|lease| lease.conflicts(writes));
        let asked = minding.map(|lease| {
            let times = [lease.release, lease.downgrade];
            times.into_iter().flatten().filter_map(|Asked(until)| until).min()
        });
        asked.reduce(|one, other| [one, other].into_iter().flatten().min())
    }

    pub(super) fn shown_leases(&self) -> Vec<Shown> {
        let Some(leases) = self.leases.get() else { return Vec::new() };
        let shown = |lease: &Lease| Shown {
            description: lease.description,
            process: lease.process,
            breaking: lease.release.or(lease.downgrade).is_some(),
            target: lease.target(),
        };
        leases.now().iter().map(shown).collect()
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        // Descriptions of the file are gone before it is: there is none left but by a mistake.
        lock(&self.0).iter().for_each(Lease::gone);
    }
}
