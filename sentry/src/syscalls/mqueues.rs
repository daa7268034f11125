//! POSIX message queues.

use std::sync::Arc;
use std::time::Instant;

use libc::{
    SYS_mq_getsetattr, SYS_mq_notify, SYS_mq_open, SYS_mq_timedreceive, SYS_mq_timedsend, SYS_mq_unlink,
};

use super::Entry;
use super::clocks::read_timespec;
use super::file_args::{file, uint};
use crate::call::{Call, Unready};
use crate::error::{Errno, SysError, SysResult};
use crate::events::Events;
use crate::ipc::{MessageFile, MessageQueue, PRIORITY_MAX, Size};
use crate::task::signal::is_signal;
use crate::vfs::{Flags, OpenFile};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_mq_open, "mq_open", mq_open),
    Entry::full(SYS_mq_unlink, "mq_unlink", mq_unlink),
    Entry::full(SYS_mq_timedsend, "mq_timedsend", mq_timedsend),
    Entry::full(SYS_mq_timedreceive, "mq_timedreceive", mq_timedreceive),
    Entry::partial(SYS_mq_notify, "mq_notify", mq_notify, "SIGEV_THREAD"),
    Entry::full(SYS_mq_getsetattr, "mq_getsetattr", mq_getsetattr),
];

fn mq_open(call: &mut Call<'_>, [name, flags, mode, attributes, ..]: [u64; 6]) -> SysResult {
    let name = call.read_path(name)?;
    let flags = Flags(uint(flags));
    let size = if attributes != 0 && flags.has(libc::O_CREAT) {
        let messages = call.read_u64(attributes.wrapping_add(8))?;
        Some(Size { messages, bytes: call.read_u64(attributes.wrapping_add(16))? })
    } else {
        None
    };
    let mode = uint(mode) & !call.task.fs().umask();
    let who = call.task.credentials();
    let open = call.task.namespaces().ipc.ipc().names.open(&name, flags, mode, size, &who)?;
    let fd = call.task.files().insert(open, flags.has(libc::O_CLOEXEC))?;
    Ok(u64::from(fd.cast_unsigned()))
}

fn mq_unlink(call: &mut Call<'_>, [name, ..]: [u64; 6]) -> SysResult {
    let name = call.read_path(name)?;
    call.task.namespaces().ipc.ipc().names.unlink(&name, &call.task.credentials())?;
    Ok(0)
}

/// The queue of a descriptor.
fn queue(call: &Call<'_>, fd: u64) -> Result<(Arc<OpenFile>, Arc<MessageQueue>), Errno> {
    let open = file(call, fd)?;
    let queue = Arc::clone(&open.downcast::<MessageFile>().ok_or(Errno::EBADF)?.0);
    Ok((open, queue))
}

/// Until when a call waits: a moment of real time, or for ever.
fn until(call: &Call<'_>, address: u64) -> Result<Option<Instant>, Errno> {
    if address == 0 {
        return Ok(None);
    }
    let moment = read_timespec(call, address)?;
    Ok(Some(call.kernel.clocks.instant_of_realtime(moment)))
}

fn wait<T>(
    call: &mut Call<'_>,
    open: &OpenFile,
    (events, until): (Events, Option<Instant>),
    attempt: impl Fn() -> Result<T, Errno>,
) -> Result<T, SysError> {
    match attempt() {
        Err(Errno::EAGAIN) if !open.flags().nonblocking() => {}
        done => return Ok(done?),
    }
    let queue = open.file().queue().ok_or(Errno::EBADF)?;
    let result = call.block(&[(queue, events)], until, |_| match attempt() {
        Err(Errno::EAGAIN) => None,
        done => Some(done),
    });
    match result {
        Ok(done) => Ok(done?),
        Err(Unready::TimedOut) => Err(Errno::ETIMEDOUT.into()),
        Err(unready) => Err(unready.into()),
    }
}

fn mq_timedsend(call: &mut Call<'_>, [fd, address, size, priority, timeout, _]: [u64; 6]) -> SysResult {
    let priority = uint(priority);
    if priority >= PRIORITY_MAX {
        return Err(Errno::EINVAL.into());
    }
    let until = until(call, timeout)?;
    let (open, queue) = queue(call, fd)?;
    if !open.flags().writable() {
        return Err(Errno::EBADF.into());
    }
    if size > queue.size().bytes {
        return Err(Errno::EMSGSIZE.into());
    }
    let mut text = vec![0; usize::try_from(size).map_err(|_| Errno::EMSGSIZE)?];
    call.read(address, &mut text)?;
    let from = (call.task.group().pid(), call.task.credentials().uid);
    wait(call, &open, (Events::OUT, until), || queue.send(priority, &text, from))?;
    Ok(0)
}

fn mq_timedreceive(call: &mut Call<'_>, [fd, address, size, priority, timeout, _]: [u64; 6]) -> SysResult {
    let until = until(call, timeout)?;
    let (open, queue) = queue(call, fd)?;
    if !open.flags().readable() {
        return Err(Errno::EBADF.into());
    }
    if size < queue.size().bytes {
        return Err(Errno::EMSGSIZE.into());
    }
    queue.receiver(true);
    let taken = wait(call, &open, (Events::IN, until), || queue.receive());
    queue.receiver(false);
    let (of, text) = taken?;
    if priority != 0 {
        call.write(priority, &of.to_le_bytes())?;
    }
    call.write(address, &text)?;
    Ok(text.len() as u64)
}

fn mq_notify(call: &mut Call<'_>, [fd, event, ..]: [u64; 6]) -> SysResult {
    const SIGEV_SIGNAL: i32 = 0;
    const SIGEV_NONE: i32 = 1;
    let wanted = if event == 0 {
        None
    } else {
        let value = call.read_u64(event)?;
        let signal = call.read_u32(event.wrapping_add(8))?.cast_signed();
        match call.read_u32(event.wrapping_add(12))?.cast_signed() {
            SIGEV_NONE => Some(None),
            SIGEV_SIGNAL if is_signal(signal) => Some(Some((signal, value))),
            _ => return Err(Errno::EINVAL.into()),
        }
    };
    let (_, queue) = queue(call, fd)?;
    queue.notify(call.task.group(), wanted)?;
    Ok(0)
}

fn mq_getsetattr(call: &mut Call<'_>, [fd, new, old, ..]: [u64; 6]) -> SysResult {
    let nonblock = libc::O_NONBLOCK.cast_unsigned();
    let flags = if new == 0 { None } else { Some(call.read_u64(new)?) };
    if flags.is_some_and(|flags| flags & !u64::from(nonblock) != 0) {
        return Err(Errno::EINVAL.into());
    }
    let (open, queue) = queue(call, fd)?;
    let before = open.flags().0;
    if let Some(flags) = flags {
        open.set_flags(if flags == 0 { before & !nonblock } else { before | nonblock });
    }
    if old != 0 {
        let size = queue.size();
        let words = [u64::from(before & nonblock), size.messages, size.bytes, queue.count(), 0, 0, 0, 0];
        call.write(old, &words.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<_>>())?;
    }
    Ok(0)
}
