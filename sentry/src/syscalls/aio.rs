//! Linux' asynchronous input and output (`man 2 io_setup`, `io_submit`; `fs/aio.c`). A transfer is done when it is handed in.
//!
//! The number of a context is an address: C libraries look there for a ring of results, which they may take without a call (`struct aio_ring`).
//! Here it is a page of zeros, so that they find none and ask.

use std::sync::Arc;
use std::time::Instant;

use libc::{SYS_io_cancel, SYS_io_destroy, SYS_io_getevents, SYS_io_setup, SYS_io_submit};

use super::Entry;
use super::exec_rooms::limits;
use super::file_args::{Buffer, deadline, duration, file, uint};
use super::io::{At, check_flags, may_read, may_write, read_to, write_from, write_place};
use super::polling::with_mask;
use crate::aio::{CONTEXTS_MAX, Context, Event};
use crate::call::{Call, Unready};
use crate::error::{Errno, SysError, SysResult};
use crate::events::Events;
use crate::mm::{MapRequest, PAGE, Protection, Source};
use crate::task::lock;
use crate::vfs::OpenFile;
use crate::vfs::eventfd::EventFd;

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_io_setup, "io_setup", io_setup),
    Entry::full(SYS_io_destroy, "io_destroy", io_destroy),
    Entry::partial(
        SYS_io_submit,
        "io_submit",
        io_submit,
        "IOCB_CMD_POLL; transfers are done before it comes back",
    ),
    Entry::full(SYS_io_cancel, "io_cancel", io_cancel),
    Entry::full(SYS_io_getevents, "io_getevents", io_getevents),
    Entry::full(SYS_IO_PGETEVENTS, "io_pgetevents", io_pgetevents),
];

/// `fs.aio-max-nr`.
const EVENTS_MAX: u64 = 65_536;
/// More are none that make sense (`ioctx_alloc`).
const EVENTS_ABSURD: u64 = 0x1000_0000 / 32;
/// Which `libc` does not name.
const SYS_IO_PGETEVENTS: i64 = 333;
/// Bytes of `struct iocb`.
const IOCB: usize = 64;

fn io_setup(call: &mut Call<'_>, [count, address, ..]: [u64; 6]) -> SysResult {
    let count = u64::from(uint(count));
    if call.read_u64(address)? != 0 || count == 0 || count > EVENTS_ABSURD {
        return Err(Errno::EINVAL.into());
    }
    let space = call.task.space();
    if count > EVENTS_MAX || lock(space.asynchronous()).len() >= CONTEXTS_MAX {
        return Err(Errno::EAGAIN.into());
    }
    let request = MapRequest {
        address: 0,
        length: PAGE,
        protection: Protection::READ | Protection::WRITE,
        flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        source: Source::Anonymous,
    };
    let limits = limits(call);
    let number = space.map(call.thread, &request, &limits)?;
    // Twice as many as were asked for, as Linux has it.
    let most = usize::try_from(count.saturating_mul(2)).unwrap_or(usize::MAX);
    let before = lock(space.asynchronous()).insert(number, Arc::new(Context::new(most)));
    // The guest unmapped the page of one.
    before.into_iter().for_each(|context| context.close());
    if let Err(errno) = call.write(address, &number.to_le_bytes()) {
        forget(call, number)?;
        return Err(errno.into());
    }
    Ok(0)
}

fn forget(call: &mut Call<'_>, number: u64) -> Result<(), Errno> {
    let space = call.task.space();
    let context = lock(space.asynchronous()).remove(&number).ok_or(Errno::EINVAL)?;
    context.close();
    // What the guest did to the page is its own affair.
    let _ = space.unmap(call.thread, number, PAGE);
    Ok(())
}

fn io_destroy(call: &mut Call<'_>, [number, ..]: [u64; 6]) -> SysResult {
    forget(call, number)?;
    Ok(0)
}

fn context(call: &Call<'_>, number: u64) -> Result<Arc<Context>, Errno> {
    lock(call.task.space().asynchronous()).get(&number).cloned().ok_or(Errno::EINVAL)
}

/// What is to be done (`struct iocb`).
struct Control {
    data: u64,
    rw_flags: u32,
    operation: u16,
    fd: u64,
    buffer: u64,
    length: u64,
    offset: u64,
    reserved: u64,
    /// `IOCB_FLAG_*`.
    flags: u32,
    event_fd: u64,
}

impl Control {
    fn read(call: &Call<'_>, address: u64) -> Result<Self, Errno> {
        let bytes: [u8; IOCB] = call.read_array(address)?;
        let word = |at: usize| bytes.as_chunks::<8>().0.get(at).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let half = |at: usize| bytes.as_chunks::<4>().0.get(at).map_or(0, |bytes| u32::from_le_bytes(*bytes));
        Ok(Self {
            data: word(0),
            rw_flags: half(3),
            operation: (half(4) & 0xffff) as u16,
            fd: u64::from(half(5)),
            buffer: word(3),
            length: word(4),
            offset: word(5),
            reserved: word(6),
            flags: half(14),
            event_fd: u64::from(half(15)),
        })
    }
}

fn io_submit(call: &mut Call<'_>, [number, count, list, ..]: [u64; 6]) -> SysResult {
    let count = count.cast_signed();
    if count < 0 {
        return Err(Errno::EINVAL.into());
    }
    let context = context(call, number)?;
    let mut done = 0_u64;
    // More than it has room for it takes none of anyhow.
    for n in 0..count.cast_unsigned().min(EVENTS_MAX * 2) {
        let one = list.checked_add(n * 8).ok_or(Errno::EFAULT);
        let handed = one.and_then(|at| call.read_u64(at)).and_then(|iocb| submit(call, &context, iocb));
        match handed {
            Ok(()) => done += 1,
            Err(errno) if done == 0 => return Err(errno.into()),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// One transfer (`io_submit_one`): an error where it is none, else its result is kept.
fn submit(call: &mut Call<'_>, context: &Context, address: u64) -> Result<(), Errno> {
    const RESULT_FD: u32 = 1;
    let control = Control::read(call, address)?;
    if control.reserved != 0 || i64::try_from(control.length).is_err() {
        return Err(Errno::EINVAL);
    }
    if !context.has_room() {
        return Err(Errno::EAGAIN);
    }
    let open = file(call, control.fd)?;
    let told = match control.flags & RESULT_FD {
        0 => None,
        _ => {
            let told = file(call, control.event_fd)?;
            told.downcast::<EventFd>().ok_or(Errno::EINVAL)?;
            Some(told)
        }
    };
    // `KIOCB_KEY`.
    call.write(address.checked_add(8).ok_or(Errno::EFAULT)?, &0_u32.to_le_bytes())?;
    let result = match transfer(call, &open, &control)? {
        Ok(count) => count.cast_signed(),
        Err(SysError::Errno(errno)) => -i64::from(errno as i32),
        // The signal is delivered when the call comes back; nobody starts the transfer again.
        Err(_) => -i64::from(libc::EINTR),
    };
    context.put(Event { data: control.data, object: address, result });
    if let Some(told) = told {
        // One that is full is known to be ready.
        let _ = told.file().write(&1_u64.to_le_bytes(), 0);
    }
    Ok(())
}

/// Does it: an error where nothing was begun, else what came of it.
fn transfer(call: &mut Call<'_>, open: &Arc<OpenFile>, control: &Control) -> Result<SysResult, Errno> {
    const PREAD: u16 = 0;
    const PWRITE: u16 = 1;
    const FSYNC: u16 = 2;
    const FDSYNC: u16 = 3;
    const PREADV: u16 = 7;
    const PWRITEV: u16 = 8;
    match control.operation {
        PREAD | PWRITE | PREADV | PWRITEV => {}
        FSYNC | FDSYNC if control.buffer | control.offset | control.length != 0 || control.rw_flags != 0 => {
            return Err(Errno::EINVAL);
        }
        FSYNC | FDSYNC => return Ok(open.file().sync().map(|()| 0).map_err(SysError::from)),
        _ => return Err(Errno::EINVAL),
    }
    let writes = matches!(control.operation, PWRITE | PWRITEV);
    if writes { may_write(open) } else { may_read(open) }?;
    check_flags(open, control.rw_flags)?;
    let buffer = match control.operation {
        PREAD | PWRITE => Buffer::one(control.buffer, control.length)?,
        _ => Buffer::vector(call, control.buffer, control.length)?,
    };
    let place = match open.file().seekable() {
        true if control.offset.cast_signed() < 0 => return Err(Errno::EINVAL),
        true if writes => write_place(open, control.offset),
        true => At::Offset(control.offset),
        false => At::Position,
    };
    Ok(match writes {
        true => write_from(call, open, &buffer, place, false),
        false => read_to(call, open, &buffer, place, false),
    })
}

/// Nothing is under way that could be cancelled.
fn io_cancel(call: &mut Call<'_>, [number, address, ..]: [u64; 6]) -> SysResult {
    let key = call.read_u32(address.checked_add(8).ok_or(Errno::EFAULT)?)?;
    if key == 0 {
        context(call, number)?;
    }
    Err(Errno::EINVAL.into())
}

/// Waits for results.
fn get(call: &mut Call<'_>, [number, least, most, address]: [u64; 4], until: Option<Instant>) -> SysResult {
    let context = context(call, number)?;
    let (least, most) = (least.cast_signed(), most.cast_signed());
    if least < 0 || most < least {
        return Err(Errno::EINVAL.into());
    }
    let size = |count: i64| usize::try_from(count).unwrap_or(usize::MAX);
    let (least, most) = (size(least), size(most));
    let waited = call.block(&[(context.queue(), Events::IN)], until, |_| context.take(least, most));
    let events = match waited {
        Ok(taken) => taken?,
        // As many as there are.
        Err(unready) => match (unready, context.take(0, most).unwrap_or(Ok(Vec::new()))?) {
            (Unready::Interrupted, none) if none.is_empty() => return Err(Errno::EINTR.into()),
            (_, some) => some,
        },
    };
    let mut given = 0;
    for (event, n) in events.iter().zip(0_u64..) {
        let at = address.checked_add(n * 32);
        if at.and_then(|at| call.write(at, &event.bytes()).ok()).is_none() {
            break;
        }
        given += 1;
    }
    if given < events.len() {
        context.put_back(events.get(given..).unwrap_or_default());
        if given == 0 {
            return Err(Errno::EFAULT.into());
        }
    }
    Ok(given as u64)
}

fn io_getevents(call: &mut Call<'_>, [number, least, most, address, timeout, _]: [u64; 6]) -> SysResult {
    let until = deadline(duration(call, timeout)?);
    get(call, [number, least, most, address], until)
}

fn io_pgetevents(call: &mut Call<'_>, [number, least, most, address, timeout, mask]: [u64; 6]) -> SysResult {
    let until = deadline(duration(call, timeout)?);
    let (mask, size) = match mask {
        0 => (0, 0),
        _ => (call.read_u64(mask)?, call.read_u64(mask.wrapping_add(8))?),
    };
    with_mask(call, mask, size, |call| get(call, [number, least, most, address], until))
}
