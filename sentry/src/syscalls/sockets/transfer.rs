//! Sending and receiving.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::file_args::COUNT_MAX;
use super::{Target, int, read_address_bytes, wait, write_address};
use crate::call::Call;
use crate::error::{Errno, SysError, SysResult};
use crate::events::Events;
use crate::net::address::{ADDRESS_MAX, Address};
use crate::net::control::{self, ControlMessage, Layout, Rights, Sent};
use crate::net::message::{Cursor, GuestSink, GuestSource, HEADER_MANY, Header, PARTS_MAX};
use crate::net::messages::Received;
use crate::net::{Context, Identity, Outgoing, Receive, lock, send_sigpipe};
use crate::platform::{Memory, Thread};
use crate::task::Task;
use crate::task::namespaces::INVALID;

/// `CAP_SETGID`, `CAP_SETUID`, `CAP_SYS_ADMIN`.
const CAPABILITIES: [u32; 3] = [6, 7, 21];

/// A guest's memory for the bytes of a message: what was fetched with the call is not fetched again, and what the guest can surely write is
/// written when it goes on.
struct Early<'a>(&'a dyn Thread);

impl Memory for Early<'_> {
    fn read(&self, address: u64, to: &mut [u8]) -> usize {
        self.0.read_early(address, to)
    }

    fn write(&self, address: u64, from: &[u8]) -> usize {
        let late = self.0.says_writable(address, from.len()) && self.0.write_late(address, from);
        if late { from.len() } else { self.0.write(address, from) }
    }
}

/// Where the bytes are, to whom they go, and what goes with them.
struct Sending {
    cursor: Cursor,
    address: Option<Address>,
    rights: Option<Rights>,
    sender: Identity,
    controls: Vec<ControlMessage>,
    flags: i32,
}

/// An address to send to, as far as the socket cares: one with a connection does not look at what it says. Without bytes it is none.
fn to_address(call: &Call<'_>, target: &Target, address: u64, length: u64) -> Result<Option<Address>, Errno> {
    let bytes = read_address_bytes(call, address, length)?;
    let common = target.socket.common();
    match (common.domain, common.kind) {
        _ if bytes.is_empty() => Ok(None),
        (libc::AF_UNIX, libc::SOCK_STREAM) => Ok(Some(Address::Unspecified)),
        (_, libc::SOCK_STREAM | libc::SOCK_SEQPACKET) => Ok(None),
        (domain, _) => Address::parse(domain, &bytes).map(Some),
    }
}

/// The bytes of `sendto` and `recvfrom`, which are looked at before the descriptor is (`import_ubuf`).
fn bytes_at(call: &Call<'_>, address: u64, length: u64) -> Result<Cursor, Errno> {
    call.check_range(address, length.min(COUNT_MAX))?;
    Ok(Cursor::one(address, length))
}

/// `write` and `writev`: one message of all parts.
pub(in crate::syscalls) fn write(
    call: &mut Call<'_>,
    target: &Target,
    parts: &[(u64, u64)],
    nowait: bool,
) -> SysResult {
    let context = target.context(call);
    let sending = Sending {
        cursor: Cursor::of_parts(parts),
        address: None,
        rights: None,
        sender: context.identity(),
        controls: Vec::new(),
        flags: if nowait { libc::MSG_DONTWAIT } else { 0 },
    };
    send(call, target, &context, sending)
}

/// `read` and `readv`: one message into all parts. Without room nothing is asked of the socket (`sock_read_iter`). Descriptors that come
/// with the bytes are closed: there is nobody to get them.
pub(in crate::syscalls) fn read(
    call: &mut Call<'_>,
    target: &Target,
    parts: &[(u64, u64)],
    nowait: bool,
) -> SysResult {
    let mut cursor = Cursor::of_parts(parts);
    if cursor.left() == 0 {
        return Ok(0);
    }
    let flags = if nowait { libc::MSG_DONTWAIT } else { 0 };
    Ok(receive(call, target, &mut cursor, flags)?.count as u64)
}

/// Sends all, or what can be sent, and SIGPIPE where that is due.
fn send(call: &mut Call<'_>, target: &Target, context: &Context, mut sending: Sending) -> SysResult {
    let flags = sending.flags;
    let waits = !target.nonblocking() && flags & libc::MSG_DONTWAIT == 0;
    let [_, timeout] = target.socket.common().timeouts();
    let total = sending.cursor.left();
    let address = sending.address.clone();
    let mut sent = 0usize;
    let attempt = |call: &mut Call<'_>| {
        loop {
            let mut source = GuestSource { memory: &Early(&*call.thread), cursor: &mut sending.cursor };
            let mut message = Outgoing {
                source: &mut source,
                context: Some(context),
                address: sending.address.clone(),
                rights: sending.rights.take(),
                sender: sending.sender,
                controls: std::mem::take(&mut sending.controls),
                flags,
            };
            let result = target.socket.send(&mut message);
            sending.rights = message.rights.take();
            sending.controls = std::mem::take(&mut message.controls);
            match result {
                Ok(count) => {
                    sent = sent.saturating_add(count);
                    if sent >= total || !target.socket.is_stream() {
                        return Some(Ok(sent));
                    }
                }
                Err(Errno::EAGAIN) if waits => return None,
                Err(_) if sent > 0 => return Some(Ok(sent)),
                Err(errno) => return Some(Err(errno)),
            }
        }
    };
    match wait(call, target, address.as_ref(), (Events::OUT, timeout), attempt) {
        Ok(Ok(count)) => Ok(count as u64),
        Ok(Err(errno)) => {
            if errno == Errno::EPIPE && flags & libc::MSG_NOSIGNAL == 0 && target.socket.has_sigpipe() {
                send_sigpipe(call);
            }
            Err(errno.into())
        }
        Err(_) if sent > 0 => Ok(sent as u64),
        Err(error) => Err(error),
    }
}

pub(super) fn sendto(call: &mut Call<'_>, [fd, from, length, flags, address, size]: [u64; 6]) -> SysResult {
    let cursor = bytes_at(call, from, length)?;
    let target = Target::find(call, fd)?;
    let address = if address == 0 { None } else { to_address(call, &target, address, size)? };
    let context = target.context(call);
    let sending = Sending {
        cursor,
        address,
        rights: None,
        sender: context.identity(),
        controls: Vec::new(),
        flags: int(flags),
    };
    send(call, &target, &context, sending)
}

/// Who a message is from, as somebody says, if they may say so (`scm_check_creds`).
///
/// # Errors
/// EPERM; EINVAL and ESRCH for numbers of nobody.
fn may_claim(task: &Task, claimed: Identity) -> Result<Identity, Errno> {
    let who = task.credentials();
    let [set_group, set_user, administrator] = CAPABILITIES;
    let uid = who.user_ns.uid(claimed.uid);
    let gid = who.user_ns.gid(claimed.gid);
    if uid == INVALID || gid == INVALID {
        return Err(Errno::EINVAL);
    }
    let own = task.shown(task.group().pid());
    let allowed = (claimed.pid == own || who.capable_in(task.pid_namespace().owner(), administrator))
        && ([who.uid, who.euid, who.suid].contains(&uid) || who.capable_here(set_user))
        && ([who.gid, who.egid, who.sgid].contains(&gid) || who.capable_here(set_group));
    if !allowed {
        return Err(Errno::EPERM);
    }
    let pid = task.named(claimed.pid).ok_or(Errno::ESRCH)?;
    Ok(Identity { pid, uid, gid })
}

/// Control data of a message: files, who sends it, and the rest.
fn read_control(call: &Call<'_>, context: &Context, header: &Header) -> Result<Attached, Errno> {
    let mut result = Attached { rights: None, sender: context.identity(), controls: Vec::new() };
    if header.control == 0 || header.control_length == 0 {
        return Ok(result);
    }
    let sent = Sent::new(control::parse(&header.read_control(&*call.thread)?)?)?;
    if let Some(claimed) = sent.identity {
        result.sender = may_claim(call.task, claimed)?;
    }
    if !sent.descriptors.is_empty() {
        let table = call.task.files();
        let files: Result<Vec<_>, _> = sent.descriptors.iter().map(|fd| table.get(*fd)).collect();
        result.rights = Some(Rights::new(files?, &context.net.flight)?);
    }
    result.controls = sent.others;
    Ok(result)
}

/// What control data come to.
struct Attached {
    rights: Option<Rights>,
    sender: Identity,
    controls: Vec<ControlMessage>,
}

fn send_message(call: &mut Call<'_>, target: &Target, at: u64, flags: i32) -> SysResult {
    let (header, cursor) = Header::read(&Early(&*call.thread), at)?;
    let address = if header.name == 0 || header.name_length == 0 {
        None
    } else {
        to_address(call, target, header.name, u64::from(header.name_length).min(ADDRESS_MAX as u64))?
    };
    let context = target.context(call);
    let Attached { rights, sender, controls } = read_control(call, &context, &header)?;
    let rights = rights.filter(|_| target.socket.common().domain == libc::AF_UNIX);
    send(call, target, &context, Sending { cursor, address, rights, sender, controls, flags })
}

pub(super) fn sendmsg(call: &mut Call<'_>, [fd, at, flags, ..]: [u64; 6]) -> SysResult {
    let target = Target::find(call, fd)?;
    send_message(call, &target, at, int(flags))
}

pub(super) fn sendmmsg(call: &mut Call<'_>, [fd, at, count, flags, ..]: [u64; 6]) -> SysResult {
    let target = Target::find(call, fd)?;
    let count = (count & 0xffff_ffff).min(PARTS_MAX as u64);
    let mut done = 0u64;
    while done < count {
        let header = at.checked_add(done.saturating_mul(HEADER_MANY)).ok_or(Errno::EFAULT)?;
        let result = send_message(call, &target, header, int(flags)).and_then(|sent| {
            let length = u32::try_from(sent).unwrap_or(u32::MAX);
            call.write(header.saturating_add(56), &length.to_le_bytes())?;
            Ok(())
        });
        match result {
            Ok(()) => done = done.saturating_add(1),
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Adds what was received to what was before, in the same call.
fn merge(all: &mut Received, more: Received) {
    all.count = all.count.saturating_add(more.count);
    all.whole = all.whole.saturating_add(more.whole);
    all.flags |= more.flags;
    all.boundary |= more.boundary;
    all.from = all.from.take().or(more.from);
    all.sender = all.sender.or(more.sender);
    all.rights = all.rights.take().or(more.rights);
    all.peeked.extend(more.peeked);
    all.controls.extend(more.controls);
}

/// Receives: of a stream at least as much as `SO_RCVLOWAT` or `MSG_WAITALL` say, unless it ends.
fn receive(
    call: &mut Call<'_>,
    target: &Target,
    cursor: &mut Cursor,
    flags: i32,
) -> Result<Received, SysError> {
    let common = target.socket.common();
    let waits = !target.nonblocking() && flags & (libc::MSG_DONTWAIT | libc::MSG_ERRQUEUE) == 0;
    let how = Receive { flags: if waits { flags } else { flags | libc::MSG_DONTWAIT } };
    let [timeout, _] = common.timeouts();
    let low = usize::try_from(lock(&common.options).low_water).unwrap_or(1);
    let once = !target.socket.is_stream() || flags & (libc::MSG_PEEK | libc::MSG_OOB) != 0;
    let wanted = if flags & libc::MSG_WAITALL != 0 { cursor.left() } else { low.min(cursor.left()) };
    let mut all: Option<Received> = None;
    let attempt = |call: &mut Call<'_>| {
        loop {
            let mut sink = GuestSink { memory: &Early(&*call.thread), cursor };
            match target.socket.receive(&mut sink, how) {
                Ok(received) => {
                    let over = once || received.count == 0 || received.boundary;
                    let all = all.get_or_insert_default();
                    merge(all, received);
                    if over || all.count >= wanted {
                        return Some(Ok(()));
                    }
                }
                Err(Errno::EAGAIN) if waits => return None,
                Err(errno) if all.is_some() => {
                    if !matches!(errno, Errno::EAGAIN | Errno::EFAULT) {
                        target.socket.common().fail(errno);
                    }
                    return Some(Ok(()));
                }
                Err(errno) => return Some(Err(errno)),
            }
        }
    };
    let result = wait(call, target, None, (Events::IN, timeout), attempt);
    match (result, all) {
        (Ok(Ok(())), Some(all)) | (Err(_), Some(all)) => Ok(all),
        (Ok(Err(errno)), _) => Err(errno.into()),
        (Err(error), None) => Err(error),
        (Ok(Ok(())), None) => Ok(Received::default()),
    }
}

/// What the call gives back.
fn length(target: &Target, received: &Received, flags: i32) -> u64 {
    let whole = flags & libc::MSG_TRUNC != 0 && !target.socket.is_stream();
    (if whole { received.whole } else { received.count }) as u64
}

pub(super) fn recvfrom(call: &mut Call<'_>, [fd, to, length_, flags, address, size]: [u64; 6]) -> SysResult {
    let mut cursor = bytes_at(call, to, length_)?;
    let target = Target::find(call, fd)?;
    let flags = int(flags);
    let received = receive(call, &target, &mut cursor, flags)?;
    if address != 0 {
        let told = received.from.as_ref().map(Address::bytes).unwrap_or_default();
        write_address(call, address, size, &told)?;
    }
    Ok(length(&target, &received, flags))
}

/// Lays out what comes with a message; descriptors get numbers only as far as there is room to tell them.
fn layout(
    call: &Call<'_>,
    target: &Target,
    room: usize,
    received: &mut Received,
    flags: i32,
) -> (Vec<u8>, bool) {
    let mut layout = Layout::new(room);
    for control in &received.controls {
        layout.put(control.level, control.kind, &control.data);
    }
    if lock(&target.socket.common().options).pass_credentials {
        let sender = received.sender.unwrap_or(Identity::NOBODY);
        layout.put(libc::SOL_SOCKET, libc::SCM_CREDENTIALS, &sender.bytes());
    }
    let files = match received.rights.take() {
        Some(rights) => rights.files(),
        None => std::mem::take(&mut received.peeked),
    };
    if !files.is_empty() {
        let table = call.task.files();
        let on_exec = flags & libc::MSG_CMSG_CLOEXEC != 0;
        let most = layout.left() / 4;
        let told = files.iter().take(most).map_while(|file| table.insert(Arc::clone(file), on_exec).ok());
        let numbers: Vec<u8> = told.flat_map(i32::to_le_bytes).collect();
        layout.truncated |= numbers.len() / 4 < files.len();
        if !numbers.is_empty() {
            layout.put(libc::SOL_SOCKET, libc::SCM_RIGHTS, &numbers);
        }
    }
    layout.finish()
}

fn receive_message(call: &mut Call<'_>, target: &Target, at: u64, flags: i32) -> SysResult {
    let (header, mut cursor) = Header::read(&Early(&*call.thread), at)?;
    let mut received = receive(call, target, &mut cursor, flags)?;
    if header.name != 0 {
        let told = received.from.as_ref().map(Address::bytes).unwrap_or_default();
        write_address(call, header.name, at.saturating_add(8), &told)?;
    }
    let room = if header.control == 0 { 0 } else { header.control_length };
    let (bytes, truncated) = layout(call, target, room, &mut received, flags);
    call.write(header.control, &bytes).or_else(|errno| if bytes.is_empty() { Ok(()) } else { Err(errno) })?;
    call.write(at.saturating_add(40), &(bytes.len() as u64).to_le_bytes())?;
    let mut told = received.flags | flags & libc::MSG_CMSG_CLOEXEC;
    if truncated {
        told |= libc::MSG_CTRUNC;
    }
    call.write(at.saturating_add(48), &told.to_le_bytes())?;
    Ok(length(target, &received, flags))
}

pub(super) fn recvmsg(call: &mut Call<'_>, [fd, at, flags, ..]: [u64; 6]) -> SysResult {
    let target = Target::find(call, fd)?;
    receive_message(call, &target, at, int(flags))
}

/// `struct timespec`.
fn read_timeout(call: &Call<'_>, at: u64) -> Result<Option<Duration>, Errno> {
    if at == 0 {
        return Ok(None);
    }
    let seconds = u64::try_from(call.read_u64(at)?.cast_signed()).map_err(|_| Errno::EINVAL)?;
    let nanos = call.read_u64(at.checked_add(8).ok_or(Errno::EFAULT)?)?;
    let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000).ok_or(Errno::EINVAL)?;
    Ok(Some(Duration::new(seconds, nanos)))
}

pub(super) fn recvmmsg(call: &mut Call<'_>, [fd, at, count, flags, timeout, _]: [u64; 6]) -> SysResult {
    let deadline = read_timeout(call, timeout)?.map(|time| (Instant::now(), time));
    let target = Target::find(call, fd)?;
    // Unlike for others, an error of before is told first.
    target.socket.common().take_error()?;
    let count = (count & 0xffff_ffff).min(PARTS_MAX as u64);
    let mut flags = int(flags);
    let mut done = 0u64;
    while done < count {
        let header = at.checked_add(done.saturating_mul(HEADER_MANY)).ok_or(Errno::EFAULT)?;
        let result =
            receive_message(call, &target, header, flags & !libc::MSG_WAITFORONE).and_then(|length| {
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                call.write(header.saturating_add(56), &length.to_le_bytes())?;
                Ok(())
            });
        match result {
            Ok(()) => done = done.saturating_add(1),
            Err(error) if done == 0 => return Err(error),
            Err(SysError::Errno(errno)) if !matches!(errno, Errno::EAGAIN | Errno::EINTR | Errno::EFAULT) => {
                target.socket.common().fail(errno);
                break;
            }
            Err(_) => break,
        }
        if flags & libc::MSG_WAITFORONE != 0 {
            flags |= libc::MSG_DONTWAIT;
        }
        if deadline.is_some_and(|(start, time)| start.elapsed() >= time) {
            break;
        }
    }
    if let Some((start, time)) = deadline {
        let left = time.saturating_sub(start.elapsed());
        let parts = [left.as_secs().to_le_bytes(), u64::from(left.subsec_nanos()).to_le_bytes()];
        call.write(timeout, &parts.concat())?;
    }
    Ok(done)
}
