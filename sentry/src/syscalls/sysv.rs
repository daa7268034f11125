//! System V IPC.

use std::sync::Arc;
use std::time::Instant;

use libc::{
    IPC_CREAT, IPC_NOWAIT, IPC_RMID, IPC_SET, IPC_STAT, SYS_msgctl, SYS_msgget, SYS_msgrcv, SYS_msgsnd,
    SYS_semctl, SYS_semget, SYS_semop, SYS_semtimedop, SYS_shmat, SYS_shmctl, SYS_shmdt, SYS_shmget,
};

use super::Entry;
use super::exec_rooms::limits;
use super::file_args::{duration, int, or_eintr};
use crate::call::{Call, Unready};
use crate::error::{Errno, Restart, SysError, SysResult};
use crate::events::Events;
use crate::ipc::{
    Ipc, MESSAGE_MAX, OBJECTS_MAX, Object as _, Operation, Outcome, Queue, Segment, Select, SemaphoreSet,
};
use crate::mm::{Backing, MapRequest, Protection, Source, page_up};

/// The family.
pub(super) const CALLS: &[Entry] = &[
    Entry::full(SYS_semget, "semget", semget),
    Entry::full(SYS_semop, "semop", semop),
    Entry::full(SYS_semtimedop, "semtimedop", semtimedop),
    Entry::full(SYS_semctl, "semctl", semctl),
    Entry::full(SYS_msgget, "msgget", msgget),
    Entry::full(SYS_msgsnd, "msgsnd", msgsnd),
    Entry::partial(SYS_msgrcv, "msgrcv", msgrcv, "MSG_COPY"),
    Entry::full(SYS_msgctl, "msgctl", msgctl),
    Entry::partial(SYS_shmget, "shmget", shmget, "SHM_HUGETLB"),
    Entry::partial(SYS_shmat, "shmat", shmat, "SHM_REMAP"),
    Entry::full(SYS_shmdt, "shmdt", shmdt),
    Entry::partial(SYS_shmctl, "shmctl", shmctl, "SHM_LOCK and SHM_UNLOCK do nothing"),
];

const IPC_INFO: i32 = 3;
/// Permissions that reading and changing ask for.
const READ: u32 = 0o444;
const WRITE: u32 = 0o222;

fn ipc(call: &Call<'_>) -> Arc<Ipc> {
    Arc::clone(call.task.namespaces().ipc.ipc())
}

fn number(id: i32) -> SysResult {
    Ok(u64::from(id.unsigned_abs()))
}

fn words(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn semget(call: &mut Call<'_>, [key, count, flags, ..]: [u64; 6]) -> SysResult {
    let count = usize::try_from(int(count)).map_err(|_| Errno::EINVAL)?;
    let who = call.task.credentials();
    let fits = |set: &SemaphoreSet| if count > set.count() { Err(Errno::EINVAL) } else { Ok(()) };
    let make = |permissions| SemaphoreSet::new(permissions, count);
    number(ipc(call).semaphores.get((int(key), int(flags)), &who, fits, make)?)
}

fn read_operations(call: &Call<'_>, address: u64, count: u64) -> Result<Vec<Operation>, Errno> {
    /// Most operations of a call (`SEMOPM`).
    const MOST: u64 = 500;
    let count = count & u64::from(u32::MAX);
    if count == 0 {
        return Err(Errno::EINVAL);
    }
    if count > MOST {
        return Err(Errno::E2BIG);
    }
    let mut bytes = vec![0; usize::try_from(count).map_err(|_| Errno::E2BIG)?.saturating_mul(6)];
    call.read(address, &mut bytes)?;
    let operations = bytes.as_chunks::<6>().0.iter().map(|[a, b, c, d, e, f]| {
        let flags = i32::from(u16::from_le_bytes([*e, *f]));
        Operation {
            number: u16::from_le_bytes([*a, *b]),
            change: i16::from_le_bytes([*c, *d]),
            nowait: flags & IPC_NOWAIT != 0,
            undo: flags & libc::SEM_UNDO != 0,
        }
    });
    Ok(operations.collect())
}

fn operate(call: &mut Call<'_>, id: u64, operations: &[Operation], until: Option<Instant>) -> SysResult {
    let set = ipc(call).semaphores.find(int(id))?;
    let changes = operations.iter().any(|operation| operation.change != 0);
    let process = call.task.group().pid();
    set.permissions().check(&call.task.credentials(), if changes { WRITE } else { READ })?;
    let Outcome::Wait(first) = set.operate(process, operations)? else { return Ok(0) };
    set.wait(first, true);
    let result =
        call.block(&[(set.queue(), Events::CHANGED)], until, |_| match set.operate(process, operations) {
            Ok(Outcome::Wait(_)) => None,
            Ok(Outcome::Done) => Some(Ok(0)),
            Err(errno) => Some(Err(errno)),
        });
    set.wait(first, false);
    match result {
        Ok(done) => Ok(done?),
        // It is never made again (`man 7 signal`).
        Err(Unready::Interrupted) => Err(Errno::EINTR.into()),
        Err(Unready::TimedOut) => Err(Errno::EAGAIN.into()),
    }
}

fn semtimedop(call: &mut Call<'_>, [id, address, count, timeout, ..]: [u64; 6]) -> SysResult {
    let until = duration(call, timeout)?.and_then(|wait| Instant::now().checked_add(wait));
    let operations = read_operations(call, address, count)?;
    operate(call, id, &operations, until)
}

fn semop(call: &mut Call<'_>, [id, address, count, ..]: [u64; 6]) -> SysResult {
    semtimedop(call, [id, address, count, 0, 0, 0])
}

fn semctl(call: &mut Call<'_>, [id, at, command, argument, ..]: [u64; 6]) -> SysResult {
    const GETPID: i32 = 11;
    const SEM_STAT: i32 = 18;
    const SEM_INFO: i32 = 19;
    const SEM_STAT_ANY: i32 = 20;
    let (id, command) = (int(id), int(command));
    let who = call.task.credentials();
    let ipc = ipc(call);
    let semaphores = &ipc.semaphores;
    match command {
        IPC_INFO | SEM_INFO => {
            let all = semaphores.all();
            let most = i32::try_from(OBJECTS_MAX).unwrap_or(i32::MAX);
            let mut info = [most, most, 32_000, i32::MAX, 32_000, 32_000, 500, 500, 20, 32_767];
            if command == SEM_INFO {
                let count = all.iter().fold(0usize, |sum, set| sum.saturating_add(set.count()));
                info[8] = i32::try_from(all.len()).unwrap_or(i32::MAX);
                info[9] = i32::try_from(count).unwrap_or(i32::MAX);
            }
            call.write(argument, &words(&info))?;
            return Ok(semaphores.highest());
        }
        SEM_STAT | SEM_STAT_ANY => {
            let (id, set) = semaphores.at(id)?;
            if command == SEM_STAT {
                set.permissions().check(&who, READ)?;
            }
            call.write(argument, &set.to_bytes(id))?;
            return number(id);
        }
        _ => {}
    }
    let set = semaphores.find(id)?;
    match command {
        IPC_RMID => {
            set.permissions().check_owner(&who)?;
            semaphores.remove(id)?.removed();
        }
        IPC_SET => {
            let bytes = call.read_array(argument)?;
            set.permissions().check_owner(&who)?;
            set.change(|permissions| permissions.set(&bytes))?;
        }
        IPC_STAT => {
            set.permissions().check(&who, READ)?;
            call.write(argument, &set.to_bytes(id))?;
        }
        GETPID..=17 => return values(call, &set, int(at), command, argument),
        _ => return Err(Errno::EINVAL.into()),
    }
    Ok(0)
}

/// What `semctl` does with values.
fn values(call: &mut Call<'_>, set: &SemaphoreSet, at: i32, command: i32, argument: u64) -> SysResult {
    let (who, process) = (call.task.credentials(), call.task.group().pid());
    set.permissions().check(&who, if matches!(command, 16 | 17) { WRITE } else { READ })?;
    let count = set.count();
    let at = usize::try_from(at).ok().filter(|at| *at < count || matches!(command, 13 | 17));
    let at = at.ok_or(Errno::EINVAL)?;
    let short = u16::try_from(at).unwrap_or(u16::MAX);
    match command {
        11 => number(call.task.shown(set.process(at).ok_or(Errno::EINVAL)?)),
        12 => number(set.values().get(at).copied().ok_or(Errno::EINVAL)?),
        13 => {
            let all = set.values().into_iter().map(|value| u16::try_from(value).unwrap_or(0));
            call.write(argument, &all.flat_map(u16::to_le_bytes).collect::<Vec<_>>())?;
            Ok(0)
        }
        14 => Ok(set.waiting(short, false)),
        15 => Ok(set.waiting(short, true)),
        16 => Ok(set.set(at, &[int(argument)], process).map(|()| 0)?),
        17 => {
            let mut bytes = vec![0; count.saturating_mul(2)];
            call.read(argument, &mut bytes)?;
            let all: Vec<i32> =
                bytes.as_chunks::<2>().0.iter().map(|two| i32::from(u16::from_le_bytes(*two))).collect();
            Ok(set.set(0, &all, process).map(|()| 0)?)
        }
        _ => Err(Errno::EINVAL.into()),
    }
}

fn msgget(call: &mut Call<'_>, [key, flags, ..]: [u64; 6]) -> SysResult {
    let who = call.task.credentials();
    let make = |permissions| Ok(Queue::new(permissions));
    number(ipc(call).messages.get((int(key), int(flags)), &who, |_| Ok(()), make)?)
}

/// Tries until the queue has a message or room; `again` says that it has not.
fn wait<T>(
    call: &mut Call<'_>,
    queue: &Queue,
    (again, nowait): (Errno, bool),
    attempt: impl Fn() -> Result<T, Errno>,
) -> Result<T, SysError> {
    match attempt() {
        Err(errno) if errno == again && !nowait => {}
        done => return Ok(done?),
    }
    let result = call.block(&[(queue.queue(), Events::CHANGED)], None, |_| match attempt() {
        Err(errno) if errno == again => None,
        done => Some(done),
    });
    match result {
        Ok(done) => Ok(done?),
        Err(Unready::Interrupted) => Err(SysError::Interrupted(Restart::WithoutHandler)),
        Err(unready) => Err(or_eintr(unready)),
    }
}

fn msgsnd(call: &mut Call<'_>, [id, address, size, flags, ..]: [u64; 6]) -> SysResult {
    let kind = call.read_u64(address)?.cast_signed();
    let size = usize::try_from(size).ok().filter(|size| *size <= MESSAGE_MAX).ok_or(Errno::EINVAL)?;
    if int(id) < 0 || kind < 1 {
        return Err(Errno::EINVAL.into());
    }
    let mut text = vec![0; size];
    call.read(address.checked_add(8).ok_or(Errno::EFAULT)?, &mut text)?;
    let queue = ipc(call).messages.find(int(id))?;
    queue.permissions().check(&call.task.credentials(), WRITE)?;
    let process = call.task.group().pid();
    let nowait = int(flags) & IPC_NOWAIT != 0;
    wait(call, &queue, (Errno::EAGAIN, nowait), || queue.send(process, kind, &text))?;
    Ok(0)
}

fn msgrcv(call: &mut Call<'_>, [id, address, size, kind, flags, _]: [u64; 6]) -> SysResult {
    const MSG_NOERROR: i32 = 0o10000;
    const MSG_EXCEPT: i32 = 0o20000;
    const MSG_COPY: i32 = 0o40000;
    let (flags, kind) = (int(flags), kind.cast_signed());
    if int(id) < 0 || size.cast_signed() < 0 {
        return Err(Errno::EINVAL.into());
    }
    if flags & MSG_COPY != 0 {
        return Err(Errno::ENOSYS.into());
    }
    let select = match kind {
        0 => Select::Any,
        i64::MIN => Select::Lowest(i64::MAX),
        kind if kind < 0 => Select::Lowest(-kind),
        kind if flags & MSG_EXCEPT != 0 => Select::Except(kind),
        kind => Select::Type(kind),
    };
    let most = usize::try_from(size).unwrap_or(usize::MAX);
    let queue = ipc(call).messages.find(int(id))?;
    queue.permissions().check(&call.task.credentials(), READ)?;
    let process = call.task.group().pid();
    let (nowait, cut) = (flags & IPC_NOWAIT != 0, flags & MSG_NOERROR != 0);
    let attempt = || queue.receive(process, select, most, cut);
    let (kind, text) = wait(call, &queue, (Errno::ENOMSG, nowait), attempt)?;
    call.write(address, &kind.to_le_bytes())?;
    call.write(address.checked_add(8).ok_or(Errno::EFAULT)?, &text)?;
    Ok(text.len() as u64)
}

fn msgctl(call: &mut Call<'_>, [id, command, argument, ..]: [u64; 6]) -> SysResult {
    const MSG_STAT: i32 = 11;
    const MSG_INFO: i32 = 12;
    const MSG_STAT_ANY: i32 = 13;
    let (id, command) = (int(id), int(command));
    let who = call.task.credentials();
    let ipc = ipc(call);
    let messages = &ipc.messages;
    match command {
        IPC_INFO | MSG_INFO => {
            let count = i32::try_from(messages.all().len()).unwrap_or(i32::MAX);
            let pool = if command == MSG_INFO { count } else { 512_000 };
            let info = [pool, 0, 8192, 16_384, 4096, 16, 0, 0xffff];
            call.write(argument, &words(&info))?;
            return Ok(messages.highest());
        }
        MSG_STAT | MSG_STAT_ANY => {
            let (id, queue) = messages.at(id)?;
            if command == MSG_STAT {
                queue.permissions().check(&who, READ)?;
            }
            call.write(argument, &queue.to_bytes(id))?;
            return number(id);
        }
        _ => {}
    }
    let queue = messages.find(id)?;
    match command {
        IPC_RMID => {
            queue.permissions().check_owner(&who)?;
            messages.remove(id)?.removed();
        }
        IPC_SET => {
            let bytes: [u8; 120] = call.read_array(argument)?;
            queue.permissions().check_owner(&who)?;
            let permissions = bytes.first_chunk().ok_or(Errno::EINVAL)?;
            let limit = bytes.get(88..).and_then(|rest| rest.first_chunk()).ok_or(Errno::EINVAL)?;
            queue.change(&who, permissions, u64::from_le_bytes(*limit))?;
        }
        IPC_STAT => {
            queue.permissions().check(&who, READ)?;
            call.write(argument, &queue.to_bytes(id))?;
        }
        _ => return Err(Errno::EINVAL.into()),
    }
    Ok(0)
}

fn shmget(call: &mut Call<'_>, [key, size, flags, ..]: [u64; 6]) -> SysResult {
    const SHM_HUGETLB: i32 = 0o4000;
    if int(flags) & SHM_HUGETLB != 0 && int(flags) & IPC_CREAT != 0 {
        return Err(Errno::ENOMEM.into());
    }
    let (who, process) = (call.task.credentials(), call.task.group().pid());
    let ipc = ipc(call);
    let memory = &ipc.memory;
    memory.purge(Segment::is_gone);
    let fits = |segment: &Segment| if size > segment.size() { Err(Errno::EINVAL) } else { Ok(()) };
    let make = |permissions| Segment::new(permissions, size, process);
    number(memory.get((int(key), int(flags)), &who, fits, make)?)
}

fn shmat(call: &mut Call<'_>, [id, address, flags, ..]: [u64; 6]) -> SysResult {
    let flags = int(flags);
    let segment = ipc(call).memory.find(int(id))?;
    let fixed = address != 0;
    let address = match address % 4096 {
        0 => address,
        rest if flags & libc::SHM_RND != 0 => address - rest,
        _ => return Err(Errno::EINVAL.into()),
    };
    let read_only = flags & libc::SHM_RDONLY != 0;
    let execute = flags & libc::SHM_EXEC != 0;
    let wanted = READ | if read_only { 0 } else { WRITE } | if execute { 0o111 } else { 0 };
    segment.permissions().check(&call.task.credentials(), wanted)?;
    let mut protection = Protection::READ;
    protection.set(Protection::WRITE, !read_only);
    protection.set(Protection::EXEC, execute);
    let place = match (fixed, flags & libc::SHM_REMAP != 0) {
        (true, true) => libc::MAP_FIXED,
        (true, false) => libc::MAP_FIXED_NOREPLACE,
        (false, true) => return Err(Errno::EINVAL.into()),
        (false, false) => 0,
    };
    let attachment = segment.attach(call.task.group().pid(), !read_only);
    let request = MapRequest {
        address,
        length: segment.size(),
        protection,
        flags: libc::MAP_SHARED | place,
        source: Source::File(attachment, 0),
    };
    let limits = limits(call);
    match call.task.space().map(call.thread, &request, &limits) {
        Err(Errno::EEXIST) => Err(Errno::EINVAL.into()),
        done => Ok(done?),
    }
}

fn shmdt(call: &mut Call<'_>, [address, ..]: [u64; 6]) -> SysResult {
    let space = call.task.space();
    let area = space.area_at(address).filter(|area| area.start == address).ok_or(Errno::EINVAL)?;
    let Backing::File { file, offset: 0 } = &area.backing else { return Err(Errno::EINVAL.into()) };
    let all = ipc(call).memory.all();
    let segment = all.iter().find(|segment| segment.has(file)).map(Arc::clone).ok_or(Errno::EINVAL)?;
    space.unmap(call.thread, address, page_up(segment.size()).ok_or(Errno::EINVAL)?)?;
    segment.detached(call.task.group().pid());
    drop((area, all));
    drop(segment);
    ipc(call).memory.purge(Segment::is_gone);
    Ok(0)
}

fn shmctl(call: &mut Call<'_>, [id, command, argument, ..]: [u64; 6]) -> SysResult {
    const SHM_STAT: i32 = 13;
    const SHM_INFO: i32 = 14;
    const SHM_STAT_ANY: i32 = 15;
    let (id, command) = (int(id), int(command));
    let who = call.task.credentials();
    let ipc = ipc(call);
    let memory = &ipc.memory;
    memory.purge(Segment::is_gone);
    match command {
        IPC_INFO => {
            let info = [u64::MAX >> 8, 1, 4096, 4096, u64::MAX >> 8, 0, 0, 0, 0];
            call.write(argument, &info.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<_>>())?;
            return Ok(memory.highest());
        }
        SHM_INFO => {
            let all = memory.all();
            let pages =
                all.iter().fold(0u64, |sum, segment| sum.saturating_add(segment.size().div_ceil(4096)));
            let info = [all.len() as u64, pages, pages, 0, 0, 0];
            call.write(argument, &info.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<_>>())?;
            return Ok(memory.highest());
        }
        SHM_STAT | SHM_STAT_ANY => {
            let (id, segment) = memory.at(id)?;
            if command == SHM_STAT {
                segment.permissions().check(&who, READ)?;
            }
            call.write(argument, &segment.to_bytes(id))?;
            return number(id);
        }
        _ => {}
    }
    let segment = memory.find(id)?;
    match command {
        IPC_RMID => {
            segment.permissions().check_owner(&who)?;
            segment.condemn();
            drop(segment);
            memory.purge(Segment::is_gone);
        }
        IPC_SET => {
            let bytes = call.read_array(argument)?;
            segment.permissions().check_owner(&who)?;
            segment.change(|permissions| permissions.set(&bytes))?;
        }
        IPC_STAT => {
            segment.permissions().check(&who, READ)?;
            call.write(argument, &segment.to_bytes(id))?;
        }
        libc::SHM_LOCK | libc::SHM_UNLOCK => {
            segment.permissions().check_owner(&who)?;
        }
        _ => return Err(Errno::EINVAL.into()),
    }
    Ok(0)
}
