//! POSIX message queues (`man 7 mq_overview`; `ipc/mqueue.c`).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};

use super::Permissions;
use crate::error::Errno;
use crate::events::{Events, WaitQueue};
use crate::task::signal::{Payload, SignalInfo};
use crate::task::{Credentials, Pid, ThreadGroup, lock};
use crate::vfs::{File, Flags, OpenFile};

/// Queues of a sandbox (`fs.mqueue.queues_max`).
const QUEUES_MAX: usize = 256;
/// Bytes that all queues may hold (`RLIMIT_MSGQUEUE`).
const BYTES_MAX: u64 = 819_200;
/// What a message costs besides its text.
const OVERHEAD: u64 = 48 + 8;
/// Priorities are below (`MQ_PRIO_MAX`).
pub const PRIORITY_MAX: u32 = 32_768;
/// `SI_MESGQ`.
const SI_MESGQ: i32 = -3;

/// How many messages a queue holds, and how long each is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// `mq_maxmsg`.
    pub messages: u64,
    /// `mq_msgsize`.
    pub bytes: u64,
}

impl Default for Size {
    fn default() -> Self {
        Self { messages: 10, bytes: 8192 }
    }
}

impl Size {
    fn cost(self) -> u64 {
        self.messages.saturating_mul(self.bytes.saturating_add(OVERHEAD))
    }
}

struct Notice {
    process: Weak<ThreadGroup>,
    pid: Pid,
    signal: Option<(i32, u64)>,
}

struct State {
    /// By priority; the highest is the last.
    messages: BTreeMap<u32, VecDeque<Vec<u8>>>,
    count: u64,
    receivers: u32,
    notice: Option<Notice>,
}

/// A queue.
pub struct MessageQueue {
    size: Size,
    permissions: Permissions,
    state: Mutex<State>,
    queue: WaitQueue,
}

/// Queues by name.
#[derive(Default)]
pub struct Names(Mutex<BTreeMap<Vec<u8>, Arc<MessageQueue>>>);

impl Names {
    /// Whether there is any queue.
    pub(crate) fn any(&self) -> bool {
        !lock(&self.0).is_empty()
    }

    /// Opens or makes a queue (`mq_open`). `flags` are those of `open`; `mode` has the umask taken off.
    ///
    /// # Errors
    /// ENOENT, EEXIST, EACCES, EINVAL, ENOSPC, EMFILE.
    pub fn open(
        &self,
        name: &[u8],
        flags: Flags,
        mode: u32,
        size: Option<Size>,
        who: &Credentials,
    ) -> Result<Arc<OpenFile>, Errno> {
        check_name(name)?;
        let mut names = lock(&self.0);
        let queue = match names.get(name) {
            Some(_) if flags.has(libc::O_CREAT) && flags.has(libc::O_EXCL) => return Err(Errno::EEXIST),
            Some(queue) => {
                let read = if flags.readable() { 0o444 } else { 0 };
                let write = if flags.writable() { 0o222 } else { 0 };
                queue.permissions.check(who, read | write)?;
                Arc::clone(queue)
            }
            None if !flags.has(libc::O_CREAT) => return Err(Errno::ENOENT),
            None => {
                let size = size.unwrap_or_default();
                check_size(size, who)?;
                if names.len() >= QUEUES_MAX {
                    return Err(Errno::ENOSPC);
                }
                let used =
                    names.values().fold(size.cost(), |sum, queue| sum.saturating_add(queue.size.cost()));
                if used > BYTES_MAX {
                    return Err(Errno::EMFILE);
                }
                let permissions = Permissions::new(0, who, (mode & 0o777).cast_signed());
                let queue = Arc::new(MessageQueue::new(size, permissions));
                names.insert(name.to_vec(), Arc::clone(&queue));
                queue
            }
        };
        drop(names);
        let kept = Flags(flags.0 & (3 | libc::O_NONBLOCK.cast_unsigned()));
        Ok(OpenFile::anonymous(Box::new(MessageFile(queue)), kept, "mqueue"))
    }

    /// Takes a name away (`mq_unlink`).
    ///
    /// # Errors
    /// ENOENT, EACCES.
    pub fn unlink(&self, name: &[u8], who: &Credentials) -> Result<(), Errno> {
        check_name(name)?;
        let mut names = lock(&self.0);
        names.get(name).ok_or(Errno::ENOENT)?.permissions.check_owner(who).map_err(|_| Errno::EACCES)?;
        let gone = names.remove(name);
        drop(names);
        drop(gone);
        Ok(())
    }
}

fn check_name(name: &[u8]) -> Result<(), Errno> {
    match name {
        [] => Err(Errno::ENOENT),
        b"." | b".." => Err(Errno::EACCES),
        name if name.contains(&b'/') => Err(Errno::EACCES),
        name if name.len() > crate::vfs::NAME_MAX => Err(Errno::ENAMETOOLONG),
        _ => Ok(()),
    }
}

fn check_size(size: Size, who: &Credentials) -> Result<(), Errno> {
    let privileged = who.capable(crate::task::capability::SYS_RESOURCE);
    let (messages, bytes) = if privileged { (65_536, 16 << 20) } else { (10, 8192) };
    let fits = (1..=messages).contains(&size.messages) && (1..=bytes).contains(&size.bytes);
    if fits { Ok(()) } else { Err(Errno::EINVAL) }
}

impl MessageQueue {
    fn new(size: Size, permissions: Permissions) -> Self {
        let state = State { messages: BTreeMap::new(), count: 0, receivers: 0, notice: None };
        Self { size, permissions, state: Mutex::new(state), queue: WaitQueue::new() }
    }

    /// What it holds.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// Messages in it.
    #[must_use]
    pub fn count(&self) -> u64 {
        lock(&self.state).count
    }

    /// Puts a message in.
    ///
    /// # Errors
    /// EAGAIN where it is full.
    pub fn send(&self, priority: u32, text: &[u8], from: (Pid, u32)) -> Result<(), Errno> {
        let notice = {
            let mut state = lock(&self.state);
            if state.count >= self.size.messages {
                return Err(Errno::EAGAIN);
            }
            state.messages.entry(priority).or_default().push_back(text.to_vec());
            state.count = state.count.saturating_add(1);
            // Only who begins to have something is told, and only where nobody waits for it.
            if state.count == 1 && state.receivers == 0 { state.notice.take() } else { None }
        };
        self.queue.notify(Events::IN | Events::RDNORM);
        if let Some(Notice { process, signal: Some((signal, value)), .. }) = notice
            && let Some(process) = process.upgrade()
        {
            let payload = Payload::Queue { pid: from.0, uid: from.1, value };
            // Who ended, or has too many queued, hears nothing.
            let _ = process.send_signal(SignalInfo { signal, errno: 0, code: SI_MESGQ, payload });
        }
        Ok(())
    }

    /// Takes the oldest message of the highest priority.
    ///
    /// # Errors
    /// EAGAIN where there is none.
    pub fn receive(&self) -> Result<(u32, Vec<u8>), Errno> {
        let taken = {
            let mut state = lock(&self.state);
            let mut highest = state.messages.last_entry().ok_or(Errno::EAGAIN)?;
            let priority = *highest.key();
            let text = highest.get_mut().pop_front().ok_or(Errno::EAGAIN)?;
            if highest.get().is_empty() {
                highest.remove();
            }
            state.count = state.count.saturating_sub(1);
            (priority, text)
        };
        self.queue.notify(Events::OUT | Events::WRNORM);
        Ok(taken)
    }

    /// Somebody begins or ends to wait for a message.
    pub fn receiver(&self, begins: bool) {
        let mut state = lock(&self.state);
        let count = state.receivers;
        state.receivers = if begins { count.saturating_add(1) } else { count.saturating_sub(1) };
    }

    /// Asks for a signal, or with `None` for none any more (`mq_notify`).
    ///
    /// # Errors
    /// EBUSY where another process is to be told.
    pub fn notify(&self, group: &Arc<ThreadGroup>, wanted: Option<Option<(i32, u64)>>) -> Result<(), Errno> {
        let mut state = lock(&self.state);
        let living = |notice: &Notice| notice.process.upgrade().is_some_and(|g| g.exit_status().is_none());
        let owner = state.notice.as_ref().filter(|notice| living(notice)).map(|notice| notice.pid);
        match wanted {
            None if owner == Some(group.pid()) => state.notice = None,
            None => {}
            Some(_) if owner.is_some() => return Err(Errno::EBUSY),
            Some(signal) => {
                state.notice = Some(Notice { process: Arc::downgrade(group), pid: group.pid(), signal });
            }
        }
        Ok(())
    }
}

/// A queue as an open file.
pub struct MessageFile(pub Arc<MessageQueue>);

impl MessageQueue {
    /// What a read of its descriptor tells (`mqueue_read_file`): bytes that lie in it, and who is told of the first.
    fn status(&self) -> String {
        const SIGEV_NONE: i32 = 1;
        let state = lock(&self.state);
        let texts = state.messages.values().flatten().map(|text| text.len() as u64);
        let bytes = texts.fold(0, u64::saturating_add);
        let told = state.notice.as_ref().filter(|notice| notice.process.strong_count() > 0);
        let (notify, signal, pid) = match told {
            None => (0, 0, 0),
            Some(Notice { signal, pid, .. }) => {
                let shown = crate::task::current().map_or(*pid, |reader| reader.shown(*pid));
                (if signal.is_some() { 0 } else { SIGEV_NONE }, signal.map_or(0, |(signal, _)| signal), shown)
            }
        };
        format!("QSIZE:{bytes:<10} NOTIFY:{notify:<5} SIGNO:{signal:<5} NOTIFY_PID:{pid:<6}\n")
    }
}

impl File for MessageFile {
    fn read(&self, to: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let text = self.0.status();
        let rest = usize::try_from(offset).ok().and_then(|offset| text.as_bytes().get(offset..));
        let rest = rest.unwrap_or_default();
        let count = rest.len().min(to.len());
        for (to, from) in to.iter_mut().zip(rest) {
            *to = *from;
        }
        Ok(count)
    }

    fn transfers(&self) -> (bool, bool) {
        (true, false)
    }

    fn seekable(&self) -> bool {
        true
    }

    fn ready(&self) -> Events {
        let count = self.0.count();
        let mut ready = Events::empty();
        if count > 0 {
            ready |= Events::IN | Events::RDNORM;
        }
        if count < self.0.size.messages {
            ready |= Events::OUT | Events::WRNORM;
        }
        ready
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.0.queue)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_priority_comes_first() {
        let (names, root) = (Names::default(), Credentials::root());
        let create = Flags((libc::O_CREAT | libc::O_RDWR).cast_unsigned());
        let size = Size { messages: 3, bytes: 10 };
        assert_eq!(names.open(b"a/b", create, 0o600, None, &root).err(), Some(Errno::EACCES));
        assert_eq!(names.open(b"q", Flags::READ, 0, None, &root).err(), Some(Errno::ENOENT));
        let file = names.open(b"q", create, 0o600, Some(size), &root).unwrap();
        let queue = &file.downcast::<MessageFile>().unwrap().0;
        for (priority, text) in [(1, "one"), (5, "five"), (1, "uno")] {
            queue.send(priority, text.as_bytes(), (1, 0)).unwrap();
        }
        assert_eq!(queue.send(1, b"", (1, 0)), Err(Errno::EAGAIN));
        assert!(!file.file().ready().contains(Events::OUT));
        let mut text = [0; 64];
        let read = file.file().read(&mut text, 0).unwrap();
        let told = "QSIZE:10         NOTIFY:0     SIGNO:0     NOTIFY_PID:0     \n";
        assert_eq!(std::str::from_utf8(&text[..read]).unwrap(), told);
        assert_eq!(file.file().read(&mut text, told.len() as u64), Ok(0));
        assert_eq!(queue.receive(), Ok((5, b"five".to_vec())));
        assert_eq!(queue.receive(), Ok((1, b"one".to_vec())));
        assert_eq!(queue.receive(), Ok((1, b"uno".to_vec())));
        assert_eq!(queue.receive(), Err(Errno::EAGAIN));
        let large = Size { messages: 100, bytes: 8192 };
        assert_eq!(names.open(b"r", create, 0o600, Some(large), &root).err(), Some(Errno::EMFILE));
        names.unlink(b"q", &root).unwrap();
        assert_eq!(names.unlink(b"q", &root), Err(Errno::ENOENT));
    }
}
