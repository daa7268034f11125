//! Waiting for several files: `poll`, `select`, `epoll`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libc::{
    SYS_epoll_create, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_epoll_wait,
    SYS_poll, SYS_ppoll, SYS_pselect6, SYS_select,
};

use super::Entry;
use super::file_args::{deadline, duration, file, int, or_eintr, uint};
use crate::call::{Call, Unready};
use crate::error::{Errno, Restart, SysError, SysResult};
use crate::events::{Events, WaitQueue};
use crate::task::signal::SignalSet;
use crate::vfs::OpenFile;
use crate::vfs::epoll::{Change, Epoll};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_poll, "poll", poll),
    Entry::full(SYS_ppoll, "ppoll", ppoll),
    Entry::full(SYS_select, "select", select),
    Entry::full(SYS_pselect6, "pselect6", pselect6),
    Entry::full(SYS_epoll_create, "epoll_create", epoll_create),
    Entry::full(SYS_epoll_create1, "epoll_create1", epoll_create1),
    Entry::full(SYS_epoll_ctl, "epoll_ctl", epoll_ctl),
    Entry::full(SYS_epoll_wait, "epoll_wait", epoll_wait),
    Entry::full(SYS_epoll_pwait, "epoll_pwait", epoll_pwait),
    Entry::full(SYS_epoll_pwait2, "epoll_pwait2", epoll_pwait2),
];

/// Waits with another signal mask.
pub(super) fn with_mask(
    call: &mut Call<'_>,
    mask: u64,
    size: u64,
    wait: impl FnOnce(&mut Call<'_>) -> SysResult,
) -> SysResult {
    if mask == 0 {
        return wait(call);
    }
    if size != 8 {
        return Err(Errno::EINVAL.into());
    }
    let mask = SignalSet(call.read_u64(mask)?);
    let task = Arc::clone(call.task);
    task.with_temporary_mask(mask, || wait(call))
}

/// A file that is looked at: `None` when the number is no open file, or is to be skipped.
struct Watched {
    file: Option<Arc<OpenFile>>,
    wanted: Events,
}

impl Watched {
    fn now(&self) -> Events {
        match &self.file {
            Some(file) => file.file().ready() & (self.wanted | Events::ERR | Events::HUP | Events::NVAL),
            None => Events::empty(),
        }
    }
}

/// Waits until `attempt` gives something. The deadline gives `None`.
fn watch<T>(
    call: &mut Call<'_>,
    watched: &[Watched],
    until: Option<Instant>,
    attempt: impl Fn(&[Watched]) -> Option<T>,
) -> Result<Option<T>, SysError> {
    let queues: Vec<(&WaitQueue, Events)> = watched
        .iter()
        .filter_map(|watched| Some((watched.file.as_ref()?.file().queue()?, watched.wanted)))
        .collect();
    match call.block(&queues, until, |_| attempt(watched)) {
        Ok(value) => Ok(Some(value)),
        Err(Unready::TimedOut) => Ok(None),
        Err(Unready::Interrupted) => Err(SysError::Interrupted(Restart::WithoutHandler)),
    }
}

fn do_poll(call: &mut Call<'_>, address: u64, count: u64, until: Option<Instant>) -> SysResult {
    let files = call.task.files();
    let count = uint(count);
    if count > files.limit() {
        return Err(Errno::EINVAL.into());
    }
    let mut bytes = vec![0; (count as usize).saturating_mul(8)];
    call.check_range(address, u64::from(count).saturating_mul(8))?;
    call.read_early(address, &mut bytes)?;
    let mut watched = Vec::with_capacity(count as usize);
    let mut wrong = Vec::with_capacity(count as usize);
    for [a, b, c, d, e, f, ..] in bytes.as_chunks::<8>().0 {
        let fd = i32::from_le_bytes([*a, *b, *c, *d]);
        let wanted = Events::from_bits_truncate(u32::from(u16::from_le_bytes([*e, *f])));
        let file = if fd < 0 { None } else { files.get(fd).ok() };
        wrong.push(fd >= 0 && file.is_none());
        watched.push(Watched { file, wanted });
    }
    let look = |watched: &[Watched]| {
        let each = watched.iter().zip(&wrong);
        let now: Vec<_> =
            each.map(|(watched, wrong)| if *wrong { Events::NVAL } else { watched.now() }).collect();
        now.iter().any(|events| !events.is_empty()).then_some(now)
    };
    let now = watch(call, &watched, until, look)?.unwrap_or_else(|| vec![Events::empty(); watched.len()]);
    for (record, now) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(&now) {
        record[6..].copy_from_slice(&((now.bits() & 0xffff) as u16).to_le_bytes());
    }
    call.write(address, &bytes)?;
    Ok(now.iter().filter(|events| !events.is_empty()).count() as u64)
}

/// A time to wait in milliseconds; negative for ever.
fn milliseconds(argument: u64) -> Option<Duration> {
    u64::try_from(int(argument)).ok().map(Duration::from_millis)
}

fn poll(call: &mut Call<'_>, [address, count, timeout, ..]: [u64; 6]) -> SysResult {
    do_poll(call, address, count, deadline(milliseconds(timeout)))
}

/// Tells the guest how much of its time is left, as Linux does where it can.
fn tell_left(call: &Call<'_>, address: u64, until: Option<Instant>, units: u32) {
    let Some(until) = until.filter(|_| address != 0) else { return };
    let left = until.saturating_duration_since(Instant::now());
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&left.as_secs().to_le_bytes());
    bytes[8..].copy_from_slice(&u64::from(left.subsec_nanos() / units).to_le_bytes());
    let _ = call.write(address, &bytes);
}

fn ppoll(call: &mut Call<'_>, [address, count, timeout, mask, size, _]: [u64; 6]) -> SysResult {
    let until = deadline(duration(call, timeout)?);
    let result = with_mask(call, mask, size, |call| do_poll(call, address, count, until));
    tell_left(call, timeout, until, 1);
    result
}

const READABLE: Events =
    Events::IN.union(Events::RDNORM).union(Events::HUP).union(Events::ERR).union(Events::RDHUP);
const WRITABLE: Events = Events::OUT.union(Events::WRNORM).union(Events::ERR);

/// One of the three sets of `select`, with what it waits for.
struct Set {
    address: u64,
    bits: Vec<u8>,
    wanted: Events,
}

impl Set {
    fn read(call: &Call<'_>, address: u64, count: usize, wanted: Events) -> Result<Self, Errno> {
        let mut bits = vec![0; if address == 0 { 0 } else { count.div_ceil(64).saturating_mul(8) }];
        call.read(address, &mut bits)?;
        Ok(Self { address, bits, wanted })
    }

    fn has(&self, fd: usize) -> bool {
        self.bits.get(fd / 8).is_some_and(|byte| byte & (1 << (fd % 8)) != 0)
    }

    fn put(&mut self, fd: usize) {
        if let Some(byte) = self.bits.get_mut(fd / 8) {
            *byte |= 1 << (fd % 8);
        }
    }
}

fn do_select(call: &mut Call<'_>, count: u64, sets: [u64; 3], until: Option<Instant>) -> SysResult {
    let files = call.task.files();
    let count = usize::try_from(int(count)).map_err(|_| Errno::EINVAL)?.min(files.limit() as usize);
    let mut sets = [
        Set::read(call, sets[0], count, READABLE)?,
        Set::read(call, sets[1], count, WRITABLE)?,
        Set::read(call, sets[2], count, Events::PRI)?,
    ];
    let (mut numbers, mut watched) = (Vec::new(), Vec::new());
    for fd in 0..count {
        let wanted = sets.iter().filter(|set| set.has(fd)).fold(Events::empty(), |all, set| all | set.wanted);
        if !wanted.is_empty() {
            let file = files.get(i32::try_from(fd).map_err(|_| Errno::EBADF)?)?;
            numbers.push(fd);
            watched.push(Watched { file: Some(file), wanted });
        }
    }
    let wants = |fd: usize, now: Events| sets.iter().any(|set| set.has(fd) && now.intersects(set.wanted));
    let look = |watched: &[Watched]| {
        let each = numbers.iter().zip(watched.iter().map(Watched::now));
        let now: Vec<_> = each.map(|(fd, now)| (*fd, now)).filter(|(fd, now)| wants(*fd, *now)).collect();
        (!now.is_empty()).then_some(now)
    };
    let now = watch(call, &watched, until, look)?.unwrap_or_default();
    let mut ready = 0u64;
    for set in &mut sets {
        let mut shown = Set { address: set.address, bits: vec![0; set.bits.len()], wanted: set.wanted };
        for (fd, events) in &now {
            if set.has(*fd) && events.intersects(set.wanted) {
                shown.put(*fd);
                ready = ready.saturating_add(1);
            }
        }
        call.write(shown.address, &shown.bits)?;
    }
    Ok(ready)
}

fn select(call: &mut Call<'_>, [count, reads, writes, others, timeout, _]: [u64; 6]) -> SysResult {
    let wait = if timeout == 0 {
        None
    } else {
        let (seconds, micros) = (call.read_u64(timeout)?, call.read_u64(timeout.wrapping_add(8))?);
        if seconds.cast_signed() < 0 || micros.cast_signed() < 0 {
            return Err(Errno::EINVAL.into());
        }
        Some(Duration::from_secs(seconds).saturating_add(Duration::from_micros(micros)))
    };
    let until = deadline(wait);
    let result = do_select(call, count, [reads, writes, others], until);
    tell_left(call, timeout, until, 1000);
    result
}

fn pselect6(call: &mut Call<'_>, [count, reads, writes, others, timeout, mask]: [u64; 6]) -> SysResult {
    let until = deadline(duration(call, timeout)?);
    let (mask, size) = match mask {
        0 => (0, 8),
        _ => (call.read_u64(mask)?, call.read_u64(mask.wrapping_add(8))?),
    };
    let sets = [reads, writes, others];
    let result = with_mask(call, mask, size, |call| do_select(call, count, sets, until));
    tell_left(call, timeout, until, 1);
    result
}

fn epoll_create1(call: &mut Call<'_>, [flags, ..]: [u64; 6]) -> SysResult {
    if int(flags) & !libc::EPOLL_CLOEXEC != 0 {
        return Err(Errno::EINVAL.into());
    }
    let fd = call.task.files().insert(Epoll::open(), int(flags) != 0)?;
    Ok(u64::from(fd.cast_unsigned()))
}

fn epoll_create(call: &mut Call<'_>, [size, ..]: [u64; 6]) -> SysResult {
    if int(size) <= 0 {
        return Err(Errno::EINVAL.into());
    }
    epoll_create1(call, [0; 6])
}

fn epoll_ctl(call: &mut Call<'_>, [epoll, operation, fd, event, ..]: [u64; 6]) -> SysResult {
    let operation = int(operation);
    let (events, data) = if operation == libc::EPOLL_CTL_DEL {
        (0, 0)
    } else {
        let [a, b, c, d, data @ ..]: [u8; 12] = call.read_array_early(event)?;
        (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(data))
    };
    let list = file(call, epoll)?;
    let watched = file(call, fd)?;
    if watched.file().queue().is_none() {
        return Err(Errno::EPERM.into());
    }
    let epoll = list.downcast::<Epoll>().ok_or(Errno::EINVAL)?;
    if list.id() == watched.id() {
        return Err(Errno::EINVAL.into());
    }
    let change = match operation {
        libc::EPOLL_CTL_ADD => Change::Add(events, data),
        libc::EPOLL_CTL_MOD => Change::Modify(events, data),
        libc::EPOLL_CTL_DEL => Change::Delete,
        _ => return Err(Errno::EINVAL.into()),
    };
    epoll.change(int(fd), &watched, change)?;
    Ok(0)
}

/// Events that one wait gives at most; Linux allows more than anybody has room for.
const EVENTS_MAX: usize = 65_536;

fn do_epoll_wait(call: &mut Call<'_>, [fd, to, most, ..]: [u64; 6], until: Option<Instant>) -> SysResult {
    let open = file(call, fd)?;
    let most = int(most);
    // EP_MAX_EVENTS: as many as an `int` can count the bytes of.
    let most = usize::try_from(most).ok().filter(|most| (1..=i32::MAX as usize / 12).contains(most));
    let most = most.ok_or(Errno::EINVAL)?;
    call.check_range(to, (most as u64).saturating_mul(12))?;
    let epoll = open.downcast::<Epoll>().ok_or(Errno::EINVAL)?;
    let queue = open.file().queue().ok_or(Errno::EINVAL)?;
    let collect = |_: &mut Call<'_>| {
        let found = epoll.collect(most.min(EVENTS_MAX));
        (!found.is_empty()).then_some(found)
    };
    let found = match call.block(&[(queue, Events::IN)], until, collect) {
        Ok(found) => found,
        Err(Unready::TimedOut) => return Ok(0),
        Err(unready) => return Err(or_eintr(unready)),
    };
    let mut bytes = Vec::with_capacity(found.len().saturating_mul(12));
    for (events, data) in &found {
        bytes.extend(events.bits().to_le_bytes());
        bytes.extend(data.to_le_bytes());
    }
    call.write(to, &bytes)?;
    Ok(found.len() as u64)
}

fn epoll_wait(call: &mut Call<'_>, arguments: [u64; 6]) -> SysResult {
    do_epoll_wait(call, arguments, deadline(milliseconds(arguments[3])))
}

fn epoll_pwait(call: &mut Call<'_>, arguments: [u64; 6]) -> SysResult {
    let [_, _, _, timeout, mask, size] = arguments;
    let until = deadline(milliseconds(timeout));
    with_mask(call, mask, size, |call| do_epoll_wait(call, arguments, until))
}

fn epoll_pwait2(call: &mut Call<'_>, arguments: [u64; 6]) -> SysResult {
    let [_, _, _, timeout, mask, size] = arguments;
    let until = deadline(duration(call, timeout)?);
    with_mask(call, mask, size, |call| do_epoll_wait(call, arguments, until))
}
