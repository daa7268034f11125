//! System calls of sockets (`man 2 socket` and those that it names): arguments in guest memory, descriptors, and waiting.

mod transfer;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Entry;
use crate::call::{Call, Unready};
use crate::error::{Errno, SysError, SysResult};
use crate::events::Events;
use crate::net::address::{ADDRESS_MAX, Address};
use crate::net::{Context, Socket, SocketFile, create, create_pair, option, set_option};
use crate::vfs::{Caller, OpenFile};

/// Longest value of an option that is read.
const OPTION_MAX: usize = 64 * 1024;

/// All calls of this family.
pub(super) const CALLS: &[Entry] = &[
    Entry::partial(libc::SYS_socket, "socket", socket, "AF_PACKET, AF_VSOCK, AF_ALG"),
    Entry::full(libc::SYS_socketpair, "socketpair", socketpair),
    Entry::full(libc::SYS_bind, "bind", bind),
    Entry::full(libc::SYS_listen, "listen", listen),
    Entry::full(libc::SYS_accept, "accept", accept),
    Entry::full(libc::SYS_accept4, "accept4", accept4),
    Entry::full(libc::SYS_connect, "connect", connect),
    Entry::full(libc::SYS_getsockname, "getsockname", getsockname),
    Entry::full(libc::SYS_getpeername, "getpeername", getpeername),
    Entry::full(libc::SYS_shutdown, "shutdown", shutdown),
    Entry::partial(libc::SYS_setsockopt, "setsockopt", setsockopt, "filters, multicast sources, pidfds"),
    Entry::partial(libc::SYS_getsockopt, "getsockopt", getsockopt, "filters, multicast sources, pidfds"),
    Entry::full(libc::SYS_sendto, "sendto", transfer::sendto),
    Entry::full(libc::SYS_recvfrom, "recvfrom", transfer::recvfrom),
    Entry::full(libc::SYS_sendmsg, "sendmsg", transfer::sendmsg),
    Entry::partial(libc::SYS_recvmsg, "recvmsg", transfer::recvmsg, "MSG_ERRQUEUE is always empty"),
    Entry::full(libc::SYS_sendmmsg, "sendmmsg", transfer::sendmmsg),
    Entry::full(libc::SYS_recvmmsg, "recvmmsg", transfer::recvmmsg),
];

/// An argument that is an `int`.
fn int(argument: u64) -> i32 {
    let [a, b, c, d, ..] = argument.to_le_bytes();
    i32::from_le_bytes([a, b, c, d])
}

fn context(call: &Call<'_>) -> Context {
    let fs = call.task.fs();
    Context {
        net: Arc::clone(call.task.namespaces().net.net()),
        caller: Caller {
            credentials: call.task.credentials(),
            process: call.task.group().pid(),
            umask: fs.umask(),
        },
        root: fs.root(),
        cwd: fs.cwd(),
    }
}

pub(super) use transfer::{read, write};

/// A descriptor that is a socket.
pub(super) struct Target {
    file: Arc<OpenFile>,
    socket: Arc<dyn Socket>,
}

impl Target {
    /// Who calls, with the network of the socket, wherever the caller is by now.
    fn context(&self, call: &Call<'_>) -> Context {
        Context { net: Arc::clone(&self.socket.common().net), ..context(call) }
    }

    /// EBADF; ENOTSOCK.
    fn find(call: &Call<'_>, fd: u64) -> Result<Self, Errno> {
        Self::of(&call.task.files().get(int(fd))?).ok_or(Errno::ENOTSOCK)
    }

    /// `None` where the file is no socket.
    pub(super) fn of(file: &Arc<OpenFile>) -> Option<Self> {
        let socket = Arc::clone(file.downcast::<SocketFile>()?.socket());
        Some(Self { file: Arc::clone(file), socket })
    }

    fn nonblocking(&self) -> bool {
        self.file.flags().nonblocking()
    }
}

/// Waits on a socket, and perhaps on another that is in its way. The deadline is EAGAIN; a signal restarts the call unless there is a
/// deadline (`sock_intr_errno`).
fn wait<T>(
    call: &mut Call<'_>,
    target: &Target,
    obstacle: Option<&Address>,
    (events, timeout): (Events, Option<Duration>),
    mut attempt: impl FnMut(&mut Call<'_>) -> Option<T>,
) -> Result<T, SysError> {
    if let Some(value) = attempt(call) {
        return Ok(value);
    }
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let other = if events.contains(Events::OUT) {
        target.socket.obstacle(&target.context(call), obstacle)
    } else {
        None
    };
    let own = target.socket.common();
    let mut queues = vec![(own.queue(), events | Events::RDHUP)];
    queues.extend(other.iter().map(|other| (other.queue(), Events::OUT | Events::HUP)));
    call.block(&queues, deadline, attempt).map_err(|unready| match unready {
        Unready::Interrupted if timeout.is_some() => Errno::EINTR.into(),
        unready => unready.into(),
    })
}

/// An address argument, which is read whatever becomes of it (`move_addr_to_kernel`).
fn read_address_bytes(call: &Call<'_>, address: u64, length: u64) -> Result<Vec<u8>, Errno> {
    let length = usize::try_from(int(length)).map_err(|_| Errno::EINVAL)?;
    if length > ADDRESS_MAX {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; length];
    call.read(address, &mut bytes)?;
    Ok(bytes)
}

/// An address argument of a call that needs one.
fn read_address(call: &Call<'_>, domain: i32, address: u64, length: u64) -> Result<Address, Errno> {
    Address::parse(domain, &read_address_bytes(call, address, length)?)
}

/// Tells an address: as much as there is room for, and how long it is (`move_addr_to_user`).
fn write_address(call: &Call<'_>, address: u64, length: u64, told: &[u8]) -> Result<(), Errno> {
    let room = call.read_u32(length)?.cast_signed();
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    call.write(address, told.get(..room).unwrap_or(told))?;
    call.write(length, &u32::try_from(told.len()).unwrap_or(0).to_le_bytes())
}

/// The kind of a socket and its flags: close on exec, non-blocking.
fn kind_and_flags(argument: u64) -> Result<(i32, bool, bool), Errno> {
    let kind = int(argument);
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    if kind & !(0xf | flags) != 0 {
        return Err(Errno::EINVAL);
    }
    Ok((kind & 0xf, kind & libc::SOCK_CLOEXEC != 0, kind & libc::SOCK_NONBLOCK != 0))
}

fn socket(call: &mut Call<'_>, [domain, kind, protocol, ..]: [u64; 6]) -> SysResult {
    let (kind, on_exec, nonblocking) = kind_and_flags(kind)?;
    let socket = create(&context(call), [int(domain), kind, int(protocol)])?;
    let fd = call.task.files().insert(SocketFile::open(socket, nonblocking), on_exec)?;
    Ok(fd.unsigned_abs().into())
}

fn socketpair(call: &mut Call<'_>, [domain, kind, protocol, to, ..]: [u64; 6]) -> SysResult {
    let (kind, on_exec, nonblocking) = kind_and_flags(kind)?;
    // Linux tells the numbers before there are any sockets.
    call.write(to, &[0; 8])?;
    let pair = create_pair(&context(call), [int(domain), kind, int(protocol)])?;
    let files = call.task.files();
    let fds = files.insert_two(pair.map(|socket| SocketFile::open(socket, nonblocking)), on_exec)?;
    if let Err(errno) = call.write(to, &fds.map(i32::to_le_bytes).concat()) {
        for fd in fds {
            files.close(fd)?;
        }
        return Err(errno.into());
    }
    Ok(0)
}

fn bind(call: &mut Call<'_>, [fd, address, length, ..]: [u64; 6]) -> SysResult {
    let target = Target::find(call, fd)?;
    let address = read_address(call, target.socket.common().domain, address, length)?;
    target.socket.bind(&target.context(call), &address)?;
    Ok(0)
}

fn listen(call: &mut Call<'_>, [fd, backlog, ..]: [u64; 6]) -> SysResult {
    let target = Target::find(call, fd)?;
    target.socket.listen(&target.context(call), int(backlog))?;
    Ok(0)
}

fn connect(call: &mut Call<'_>, [fd, address, length, ..]: [u64; 6]) -> SysResult {
    let target = Target::find(call, fd)?;
    let address = read_address(call, target.socket.common().domain, address, length)?;
    let [_, timeout] = target.socket.common().timeouts();
    let context = target.context(call);
    let how = (Events::OUT, timeout);
    match target.socket.connect(&context, &address) {
        Ok(()) => Ok(0),
        Err(errno) if target.nonblocking() => Err(errno.into()),
        Err(Errno::EINPROGRESS | Errno::EALREADY) => {
            let result = wait(call, &target, None, how, |_| target.socket.connected());
            match result {
                Ok(result) => Ok(result.map(|()| 0)?),
                Err(SysError::Errno(Errno::EAGAIN)) => Err(Errno::EINPROGRESS.into()),
                Err(error) => Err(error),
            }
        }
        Err(Errno::EAGAIN) => {
            let result = wait(call, &target, Some(&address), how, |_| {
                Some(target.socket.connect(&context, &address)).filter(|result| *result != Err(Errno::EAGAIN))
            });
            Ok(result?.map(|()| 0)?)
        }
        Err(errno) => Err(errno.into()),
    }
}

fn accept(call: &mut Call<'_>, [fd, address, length, ..]: [u64; 6]) -> SysResult {
    accept4(call, [fd, address, length, 0, 0, 0])
}

fn accept4(call: &mut Call<'_>, [fd, address, length, flags, ..]: [u64; 6]) -> SysResult {
    let flags = int(flags);
    call.task.files().get(int(fd))?;
    if flags & !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let target = Target::find(call, fd)?;
    let [timeout, _] = target.socket.common().timeouts();
    let nonblocking = target.nonblocking();
    let accepted = wait(call, &target, None, (Events::IN, timeout), |_| match target.socket.accept() {
        Err(Errno::EAGAIN) if !nonblocking => None,
        result => Some(result),
    })??;
    let peer = accepted.peer();
    let file = SocketFile::open(accepted, flags & libc::SOCK_NONBLOCK != 0);
    if address != 0 {
        let peer = peer.map_err(|_| Errno::ECONNABORTED)?;
        write_address(call, address, length, &peer.bytes())?;
    }
    let fd = call.task.files().insert(file, flags & libc::SOCK_CLOEXEC != 0)?;
    Ok(fd.unsigned_abs().into())
}

fn getsockname(call: &mut Call<'_>, [fd, address, length, ..]: [u64; 6]) -> SysResult {
    let told = Target::find(call, fd)?.socket.local()?;
    write_address(call, address, length, &told.bytes())?;
    Ok(0)
}

fn getpeername(call: &mut Call<'_>, [fd, address, length, ..]: [u64; 6]) -> SysResult {
    let told = Target::find(call, fd)?.socket.peer()?;
    write_address(call, address, length, &told.bytes())?;
    Ok(0)
}

fn shutdown(call: &mut Call<'_>, [fd, how, ..]: [u64; 6]) -> SysResult {
    let target = Target::find(call, fd)?;
    let how = int(how);
    if !(libc::SHUT_RD..=libc::SHUT_RDWR).contains(&how) {
        return Err(Errno::EINVAL.into());
    }
    target.socket.shutdown(how)?;
    Ok(0)
}

fn setsockopt(call: &mut Call<'_>, [fd, level, name, value, length, _]: [u64; 6]) -> SysResult {
    let target = Target::find(call, fd)?;
    let length = usize::try_from(int(length)).map_err(|_| Errno::EINVAL)?;
    let (level, name) = (int(level), int(name));
    check_level(&target, level, Errno::ENOPROTOOPT)?;
    let short = level == libc::SOL_SOCKET && name != libc::SO_BINDTODEVICE && length < 4;
    if length > OPTION_MAX || short {
        return Err(Errno::EINVAL.into());
    }
    let mut bytes = vec![0; length];
    // An option reads as much as it needs of what is said to be there: most of them an `int`.
    let there = call.thread.read(value, &mut bytes);
    if there < length.min(4) {
        return Err(Errno::EFAULT.into());
    }
    bytes.truncate(there);
    set_option(target.socket.as_ref(), &target.context(call), [level, name], &bytes)?;
    Ok(0)
}

/// The error of a level that a socket has no options of, before any argument is looked at; `other` is what IPv4 says (`do_ip_getsockopt`,
/// `ip_setsockopt`, `ipv6_setsockopt`; sockets of unix have no options at all).
fn check_level(target: &Target, level: i32, other: Errno) -> Result<(), Errno> {
    let common = target.socket.common();
    let wide = common.domain == libc::AF_INET6;
    let known = match level {
        libc::IPPROTO_TCP => common.kind == libc::SOCK_STREAM,
        libc::IPPROTO_UDP => common.kind == libc::SOCK_DGRAM,
        libc::IPPROTO_IPV6 | libc::IPPROTO_ICMPV6 => wide,
        libc::IPPROTO_IP | libc::IPPROTO_ICMP | libc::IPPROTO_RAW => true,
        _ => false,
    };
    match common.domain {
        _ if level == libc::SOL_SOCKET => Ok(()),
        libc::AF_UNIX => Err(Errno::EOPNOTSUPP),
        libc::AF_INET if !known => Err(other),
        libc::AF_INET6 if !known => Err(Errno::ENOPROTOOPT),
        _ => Ok(()),
    }
}

fn getsockopt(call: &mut Call<'_>, [fd, level, name, value, length, _]: [u64; 6]) -> SysResult {
    let target = Target::find(call, fd)?;
    check_level(&target, int(level), Errno::EOPNOTSUPP)?;
    let room = call.read_u32(length)?.cast_signed();
    let room = usize::try_from(room).map_err(|_| Errno::EINVAL)?;
    let told = option(target.socket.as_ref(), int(level), int(name), room)?;
    let told = told.get(..room).unwrap_or(&told);
    call.write(value, told)?;
    call.write(length, &u32::try_from(told.len()).unwrap_or(0).to_le_bytes())?;
    Ok(0)
}

#[cfg(test)]
mod tests;
