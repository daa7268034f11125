//! `signalfd` (`man 2 signalfd`; `fs/signalfd.c`): who reads takes signals that are pending for itself, whoever made the descriptor.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use super::sync::lock;
use super::{File, Flags, OpenFile};
use crate::error::Errno;
use crate::events::{Events, WaitQueue, Wake};
use crate::task::signal::SignalSet;
use crate::task::{Pid, Task, ThreadGroup, current};

/// Bytes of `struct signalfd_siginfo`.
const RECORD: usize = 128;

/// Hands news of a process' signals on to who waits for the file.
struct Bridge(Arc<WaitQueue>);

impl Wake for Bridge {
    fn wake(&self, events: Events) {
        self.0.notify(events);
    }
}

/// Signals as a file.
pub struct SignalFd {
    wanted: Mutex<SignalSet>,
    queue: Arc<WaitQueue>,
    /// Processes that have looked at it: after a `fork` there is more than one.
    bridges: Mutex<BTreeMap<Pid, Listener>>,
}

/// A process and what hears of its signals.
type Listener = (Weak<ThreadGroup>, Arc<dyn Wake>);

impl SignalFd {
    /// For these signals.
    #[must_use]
    pub fn open(task: &Task, wanted: SignalSet, nonblocking: bool) -> Arc<OpenFile> {
        let wait = if nonblocking { libc::O_NONBLOCK } else { 0 };
        let flags = Flags((libc::O_RDWR | wait).cast_unsigned());
        let file =
            Self { wanted: Mutex::new(SignalSet::EMPTY), queue: Arc::default(), bridges: Mutex::default() };
        file.set(wanted);
        file.listen(task);
        OpenFile::anonymous(Box::new(file), flags, "anon_inode:[signalfd]")
    }

    /// Changes the signals it is for.
    pub fn set(&self, wanted: SignalSet) {
        *lock(&self.wanted) = wanted.without(SignalSet::UNBLOCKABLE);
        self.queue.notify(Events::IN | Events::RDNORM);
    }

    /// What it takes.
    pub(crate) fn saved(&self) -> SignalSet {
        *lock(&self.wanted)
    }

    /// One that nobody has looked at yet: who does, listens.
    pub(crate) fn restored(wanted: SignalSet, flags: Flags) -> Arc<OpenFile> {
        let file =
            Self { wanted: Mutex::new(SignalSet::EMPTY), queue: Arc::default(), bridges: Mutex::default() };
        file.set(wanted);
        OpenFile::anonymous(Box::new(file), flags, "anon_inode:[signalfd]")
    }

    /// Hears of signals of a task's process from now on.
    fn listen(&self, task: &Task) {
        let group = task.group();
        let mut bridges = lock(&self.bridges);
        let known = bridges.get(&group.pid()).and_then(|(known, _)| known.upgrade());
        if known.is_some_and(|known| Arc::ptr_eq(&known, group)) {
            return;
        }
        bridges.retain(|_, (known, _)| known.strong_count() > 0);
        let bridge: Arc<dyn Wake> = Arc::new(Bridge(Arc::clone(&self.queue)));
        group.signal_events().add(Events::IN, &bridge);
        bridges.insert(group.pid(), (Arc::downgrade(group), bridge));
    }
}

impl File for SignalFd {
    fn transfers(&self) -> (bool, bool) {
        (true, false)
    }

    fn ignores_seek(&self) -> bool {
        true
    }

    fn read(&self, to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        if to.len() < RECORD {
            return Err(Errno::EINVAL);
        }
        let task = current().ok_or(Errno::EAGAIN)?;
        self.listen(&task);
        let wanted = *lock(&self.wanted);
        let mut count = 0usize;
        for place in to.chunks_exact_mut(RECORD) {
            let Some(info) = task.take_signal(wanted) else { break };
            place.copy_from_slice(&info.to_signalfd());
            count = count.saturating_add(RECORD);
        }
        if count == 0 { Err(Errno::EAGAIN) } else { Ok(count) }
    }

    fn ready(&self) -> Events {
        let Some(task) = current() else { return Events::empty() };
        self.listen(&task);
        let wanted = *lock(&self.wanted);
        if task.has_signal(wanted) { Events::IN | Events::RDNORM } else { Events::empty() }
    }

    fn queue(&self) -> Option<&WaitQueue> {
        if let Some(task) = current() {
            self.listen(&task);
        }
        Some(&self.queue)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::task::Serving;
    use crate::task::signal::SignalInfo;

    #[test]
    fn who_reads_takes_its_own_signals() {
        let kernel = Kernel::for_test();
        let (task, other) = (Task::for_test(&kernel), Task::for_test(&kernel));
        let usr1 = SignalSet::of(&[libc::SIGUSR1]);
        task.set_signal_mask(usr1);
        other.set_signal_mask(usr1);
        let serving = Serving::begin(&task);
        let file = SignalFd::open(&task, usr1, true);
        let mut bytes = [0; 300];
        assert_eq!(file.read(&mut bytes), Err(Errno::EAGAIN));
        other.group().send_signal(SignalInfo::user(libc::SIGUSR1, 7, 8)).unwrap();
        assert_eq!((file.read(&mut bytes), file.file().ready()), (Err(Errno::EAGAIN), Events::empty()));
        task.group().send_signal(SignalInfo::user(libc::SIGUSR1, 9, 8)).unwrap();
        assert_eq!(file.read(&mut bytes[..127]), Err(Errno::EINVAL));
        assert!(file.file().ready().contains(Events::IN));
        assert_eq!(file.read(&mut bytes), Ok(RECORD));
        assert_eq!((bytes[0], bytes[12]), (10, 9));
        drop(serving);
        let serving = Serving::begin(&other);
        assert_eq!(file.read(&mut bytes), Ok(RECORD));
        assert_eq!((bytes[0], bytes[12]), (10, 7));
        drop(serving);
    }
}
