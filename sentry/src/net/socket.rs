//! What a socket does, whatever its family, and a socket as an open file.

use std::any::Any;
use std::sync::Arc;

use super::address::Address;
use super::buffer::{Sink, Source};
use super::control::{ControlMessage, Rights};
use super::messages::Received;
use super::{Common, Identity, Net, inet, interfaces, lock, netlink, options, unix};
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::events::{Events, WaitQueue};
use crate::vfs::{Caller, File, Flags, OpenFile, Place};

/// `SIOCINQ`, which is `FIONREAD`.
const SIOCINQ: u32 = 0x541b;
/// `SIOCOUTQ`, which is `TIOCOUTQ`.
const SIOCOUTQ: u32 = 0x5411;
/// `SIOCATMARK`.
const SIOCATMARK: u32 = 0x8905;

/// Who calls, and where its paths begin.
pub(crate) struct Context {
    pub(crate) net: Arc<Net>,
    pub(crate) caller: Caller,
    pub(crate) root: Place,
    pub(crate) cwd: Place,
}

impl Context {
    pub(crate) fn identity(&self) -> Identity {
        Identity::new(self.caller.process, &self.caller.credentials)
    }

    pub(crate) fn capable(&self, capability: u32) -> bool {
        self.caller.credentials.capable_in(self.net.owner(), capability)
    }
}

/// A message to be sent.
pub(crate) struct Outgoing<'a> {
    pub(crate) source: &'a mut dyn Source,
    /// Who calls: `None` for a `write`, which has no address to look up.
    pub(crate) context: Option<&'a Context>,
    pub(crate) address: Option<Address>,
    /// Taken with the first byte.
    pub(crate) rights: Option<Rights>,
    /// Who sends it, as far as it was said or is known.
    pub(crate) sender: Identity,
    /// Control messages of the family.
    pub(crate) controls: Vec<ControlMessage>,
    /// `MSG_*`.
    pub(crate) flags: i32,
}

/// What `/proc/net` tells about a socket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Description {
    pub(crate) local: Option<Address>,
    pub(crate) peer: Option<Address>,
    /// `TCP_ESTABLISHED` (1) … of `include/net/tcp_states.h`.
    pub(crate) state: u8,
    pub(crate) listening: bool,
    pub(crate) unsent: usize,
    pub(crate) unread: usize,
}

/// How to receive.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Receive {
    /// `MSG_*`.
    pub(crate) flags: i32,
}

impl Receive {
    pub(crate) fn has(self, flag: i32) -> bool {
        self.flags & flag != 0
    }
}

/// A socket. Nothing waits.
#[allow(clippy::missing_errors_doc, reason = "errors are those of the system call of the same name")]
pub(crate) trait Socket: Any + Send + Sync {
    /// What every socket has.
    fn common(&self) -> &Arc<Common>;

    fn bind(&self, context: &Context, address: &Address) -> Result<(), Errno>;

    /// EINPROGRESS where it goes on by itself: [`connected`](Self::connected) then tells how it ends. EAGAIN where it has to be tried again once
    /// [`obstacle`](Self::obstacle) has news.
    fn connect(&self, context: &Context, address: &Address) -> Result<(), Errno>;

    /// How a connect that was in progress ended.
    fn connected(&self) -> Option<Result<(), Errno>> {
        Some(Ok(()))
    }

    fn listen(&self, context: &Context, backlog: i32) -> Result<(), Errno> {
        let _ = (context, backlog);
        Err(Errno::EOPNOTSUPP)
    }

    fn accept(&self) -> Result<Arc<dyn Socket>, Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn local(&self) -> Result<Address, Errno>;

    fn peer(&self) -> Result<Address, Errno>;

    /// Sends what it can at once: of a stream perhaps not all.
    fn send(&self, message: &mut Outgoing<'_>) -> Result<usize, Errno>;

    /// Receives what there is.
    fn receive(&self, sink: &mut dyn Sink, how: Receive) -> Result<Received, Errno>;

    /// `how` is `SHUT_RD`, `SHUT_WR` or `SHUT_RDWR`.
    fn shutdown(&self, how: i32) -> Result<(), Errno>;

    fn ready(&self) -> Events;

    /// Whose queue tells, besides its own, when sending or connecting there can be tried again.
    fn obstacle(&self, context: &Context, address: Option<&Address>) -> Option<Arc<Common>> {
        let _ = (context, address);
        None
    }

    /// Bytes that can be received at once (`SIOCINQ`).
    fn unread(&self) -> Result<usize, Errno>;

    /// Bytes that were sent and not received (`SIOCOUTQ`).
    fn unsent(&self) -> Result<usize, Errno> {
        Ok(0)
    }

    /// Whether it is at the mark of urgent data (`SIOCATMARK`).
    fn at_mark(&self) -> Result<bool, Errno> {
        Err(Errno::ENOTTY)
    }

    /// Options of other levels than `SOL_SOCKET`.
    fn option(&self, level: i32, name: i32, room: usize) -> Result<Vec<u8>, Errno> {
        let _ = (level, name, room);
        Err(Errno::EOPNOTSUPP)
    }

    fn set_option(&self, context: &Context, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
        let _ = (context, level, name, value);
        Err(Errno::EOPNOTSUPP)
    }

    /// An option of level `SOL_SOCKET` was set.
    fn options_changed(&self) {}

    /// Whether an EPIPE comes with a SIGPIPE.
    fn has_sigpipe(&self) -> bool {
        false
    }

    /// Whether what is received has no bounds of messages.
    fn is_stream(&self) -> bool {
        false
    }

    /// Who is at the other end, as it was when they were connected.
    fn peer_identity(&self) -> Option<Identity> {
        None
    }

    fn describe(&self) -> Description;

    /// Its last descriptor is closed.
    fn close(&self);
}

impl dyn Socket {
    /// As what it is in its family.
    pub(crate) fn downcast<T: Socket>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// EAFNOSUPPORT for no family (`AF_MAX`), then EINVAL for no type (`SOCK_MAX`).
fn check_kind(domain: i32, kind: i32) -> Result<(), Errno> {
    match (domain, kind) {
        (0..=45, 0..=10) => Ok(()),
        (0..=45, _) => Err(Errno::EINVAL),
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

/// A new socket (`man 2 socket`).
///
/// # Errors
/// EAFNOSUPPORT, EPROTONOSUPPORT, ESOCKTNOSUPPORT, EPROTOTYPE, EPERM, EINVAL, ENOBUFS.
pub(crate) fn create(
    context: &Context,
    [domain, kind, protocol]: [i32; 3],
) -> Result<Arc<dyn Socket>, Errno> {
    check_kind(domain, kind)?;
    let socket = match domain {
        libc::AF_UNIX => unix::create(context, kind, protocol)?,
        libc::AF_INET | libc::AF_INET6 => inet::create(context, [domain, kind, protocol])?,
        libc::AF_NETLINK => netlink::create(context, kind, protocol)?,
        libc::AF_PACKET if !context.capable(options::CAP_NET_RAW) => return Err(Errno::EPERM),
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    context.net.register(&socket);
    Ok(socket)
}

/// Two sockets that are connected (`man 2 socketpair`).
///
/// # Errors
/// As [`create`]; EOPNOTSUPP where the family has no such pairs.
pub(crate) fn create_pair(
    context: &Context,
    [domain, kind, protocol]: [i32; 3],
) -> Result<[Arc<dyn Socket>; 2], Errno> {
    if domain != libc::AF_UNIX {
        let one = create(context, [domain, kind, protocol])?;
        one.close();
        return Err(Errno::EOPNOTSUPP);
    }
    check_kind(domain, kind)?;
    let pair = unix::create_pair(context, kind, protocol)?;
    pair.iter().for_each(|socket| context.net.register(socket));
    Ok(pair)
}

/// A socket as an open file.
pub struct SocketFile {
    socket: Arc<dyn Socket>,
}

impl SocketFile {
    /// An open file of a socket; of `flags`, `O_NONBLOCK` matters.
    pub(crate) fn open(socket: Arc<dyn Socket>, nonblocking: bool) -> Arc<OpenFile> {
        let inode = Arc::clone(socket.common().inode());
        let wait = if nonblocking { libc::O_NONBLOCK } else { 0 };
        let flags = Flags((libc::O_RDWR | wait).cast_unsigned());
        OpenFile::nameless(inode, Box::new(Self { socket }), flags)
    }

    pub(crate) fn socket(&self) -> &Arc<dyn Socket> {
        &self.socket
    }

    /// What every socket has: its timeouts among them.
    #[must_use]
    pub fn common(&self) -> &Arc<Common> {
        self.socket.common()
    }

    /// Whether a write that gives EPIPE sends SIGPIPE, too.
    #[must_use]
    pub fn has_sigpipe(&self) -> bool {
        self.socket.has_sigpipe()
    }
}

impl File for SocketFile {
    fn read(&self, mut to: &mut [u8], _offset: u64) -> Result<usize, Errno> {
        if to.is_empty() {
            return Ok(0);
        }
        // Descriptors that come with it are closed: there is nobody to get them.
        self.socket.receive(&mut to, Receive::default()).map(|received| received.count)
    }

    fn write(&self, mut from: &[u8], _offset: u64) -> Result<usize, Errno> {
        let sender = self.socket.common().owner;
        let mut message = Outgoing {
            source: &mut from,
            context: None,
            address: None,
            rights: None,
            sender,
            controls: Vec::new(),
            flags: 0,
        };
        self.socket.send(&mut message)
    }

    fn ready(&self) -> Events {
        self.socket.ready()
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(self.socket.common().queue())
    }

    fn available(&self) -> Result<u64, Errno> {
        self.socket.unread().map(|count| count as u64)
    }

    fn control(&self, call: &mut Call<'_>, request: u32, argument: u64) -> SysResult {
        let number = match request {
            SIOCINQ => self.socket.unread()?,
            SIOCOUTQ => self.socket.unsent()?,
            SIOCATMARK => usize::from(self.socket.at_mark()?),
            _ => return Ok(interfaces::control(&self.common().net, call, request, argument)?),
        };
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        call.write(argument, &number.to_le_bytes())?;
        Ok(0)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.socket.close();
    }
}

/// `getsockopt` of any level.
pub(crate) fn option(socket: &dyn Socket, level: i32, name: i32, room: usize) -> Result<Vec<u8>, Errno> {
    if level != libc::SOL_SOCKET {
        return socket.option(level, name, room);
    }
    options::get(socket.common(), name, socket.describe().listening, socket.peer_identity())
}

/// `setsockopt` of any level.
pub(crate) fn set_option(
    socket: &dyn Socket,
    context: &Context,
    [level, name]: [i32; 2],
    value: &[u8],
) -> Result<(), Errno> {
    if level != libc::SOL_SOCKET {
        return socket.set_option(context, level, name, value);
    }
    options::set(socket.common(), name, value, context.capable(options::CAP_NET_ADMIN))?;
    socket.options_changed();
    Ok(())
}

/// Bytes that a stream that sends may have on their way.
pub(crate) fn send_buffer(common: &Common) -> usize {
    lock(&common.options).send_buffer
}
