//! Netlink sockets (`man 7 netlink`): `NETLINK_ROUTE`, which answers about interfaces, and `NETLINK_KOBJECT_UEVENT`, where nothing ever comes.

mod route;
mod tell;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::address::Address;
use super::buffer::Sink;
use super::messages::{Inbox, Message, Received, Room};
use super::options::told;
use super::socket::{Context, Description, Outgoing, Receive, Socket};
use super::unix::gather;
use super::{Common, Identity, Net, lock};
use crate::error::Errno;
use crate::events::Events;

/// `SOL_NETLINK`.
const LEVEL: i32 = 270;

/// Ports in use, with their protocols.
#[derive(Default)]
pub(crate) struct Ports(Mutex<BTreeSet<(i32, u32)>>);

impl Ports {
    /// This port, or for 0 the process' number or any other.
    fn claim(&self, protocol: i32, wanted: u32, process: u32) -> Result<u32, Errno> {
        let mut ports = lock(&self.0);
        if wanted != 0 {
            return if ports.insert((protocol, wanted)) { Ok(wanted) } else { Err(Errno::EADDRINUSE) };
        }
        let others = (0..u32::MAX / 2).map(|offset| u32::MAX - 4096 - offset);
        let mut candidates = std::iter::once(process).chain(others).filter(|port| *port != 0);
        candidates.find(|port| ports.insert((protocol, *port))).ok_or(Errno::EADDRINUSE)
    }

    fn release(&self, protocol: i32, port: u32) {
        lock(&self.0).remove(&(protocol, port));
    }
}

/// A netlink socket.
pub(crate) struct Netlink {
    common: Arc<Common>,
    inbox: Inbox,
    /// Its port, 0 until it has one; its groups; the port that it is connected to.
    names: Mutex<(u32, u32, Option<u32>)>,
}

/// A netlink socket.
///
/// # Errors
/// ESOCKTNOSUPPORT, EPROTONOSUPPORT, ENOBUFS.
pub(crate) fn create(context: &Context, kind: i32, protocol: i32) -> Result<Arc<dyn Socket>, Errno> {
    if !matches!(kind, libc::SOCK_RAW | libc::SOCK_DGRAM) {
        return Err(Errno::ESOCKTNOSUPPORT);
    }
    if !matches!(protocol, libc::NETLINK_ROUTE | libc::NETLINK_KOBJECT_UEVENT) {
        return Err(Errno::EPROTONOSUPPORT);
    }
    let common = Common::new(&context.net, [libc::AF_NETLINK, kind, protocol], context.identity())?;
    Ok(Arc::new(Netlink { common, inbox: Inbox::new(&context.net.bytes), names: Mutex::default() }))
}

impl Netlink {
    fn bound(&self, wanted: u32) -> Result<u32, Errno> {
        let mut names = lock(&self.names);
        if names.0 == 0 {
            let process = self.common.owner.pid.cast_unsigned();
            names.0 = self.common.net.netlink.claim(self.common.protocol, wanted, process)?;
        } else if wanted != 0 && wanted != names.0 {
            return Err(Errno::EINVAL);
        }
        Ok(names.0)
    }

    fn answer(&self, data: &[u8], port: u32) -> Result<(), Errno> {
        let net: &Net = &self.common.net;
        let bytes = lock(&self.common.options).receive_buffer;
        for data in route::answers(net, data, port) {
            let message = Message {
                data,
                from: Some(Address::Netlink(0, 0)),
                sender: Identity::default(),
                ..Message::default()
            };
            let room = Room { messages: usize::MAX, bytes };
            if let Err((errno, _)) = self.inbox.put(message, room) {
                self.common.fail(Errno::ENOBUFS);
                return Err(if errno == Errno::EAGAIN { Errno::ENOBUFS } else { errno });
            }
        }
        self.common.notify(Events::IN | Events::RDNORM);
        Ok(())
    }
}

impl Socket for Netlink {
    fn common(&self) -> &Arc<Common> {
        &self.common
    }

    fn bind(&self, _context: &Context, address: &Address) -> Result<(), Errno> {
        let Address::Netlink(port, groups) = address else { return Err(Errno::EINVAL) };
        self.bound(*port)?;
        lock(&self.names).1 = *groups;
        Ok(())
    }

    fn connect(&self, _context: &Context, address: &Address) -> Result<(), Errno> {
        match address {
            Address::Unspecified => lock(&self.names).2 = None,
            Address::Netlink(port, _) => {
                self.bound(0)?;
                lock(&self.names).2 = Some(*port);
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn local(&self) -> Result<Address, Errno> {
        let names = lock(&self.names);
        Ok(Address::Netlink(names.0, names.1))
    }

    fn peer(&self) -> Result<Address, Errno> {
        Ok(Address::Netlink(lock(&self.names).2.unwrap_or(0), 0))
    }

    fn send(&self, message: &mut Outgoing<'_>) -> Result<usize, Errno> {
        if message.flags & libc::MSG_OOB != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let to = match &message.address {
            None => lock(&self.names).2.unwrap_or(0),
            Some(Address::Netlink(port, _)) => *port,
            Some(_) => return Err(Errno::EINVAL),
        };
        let limit = lock(&self.common.options).send_buffer.saturating_sub(32);
        if message.source.left() > limit {
            return Err(Errno::EMSGSIZE);
        }
        let port = self.bound(0)?;
        // Only the kernel listens.
        if to != 0 || self.common.protocol != libc::NETLINK_ROUTE {
            return Err(Errno::ECONNREFUSED);
        }
        let data = gather(message)?;
        self.answer(&data, port)?;
        Ok(data.len())
    }

    fn receive(&self, sink: &mut dyn Sink, how: Receive) -> Result<Received, Errno> {
        if how.has(libc::MSG_OOB) {
            return Err(Errno::EOPNOTSUPP);
        }
        self.common.take_error()?;
        self.inbox.take(sink, how.has(libc::MSG_PEEK))
    }

    fn shutdown(&self, _how: i32) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn ready(&self) -> Events {
        let mut ready = Events::OUT | Events::WRNORM;
        if self.common.has_error() {
            ready |= Events::ERR;
        }
        if self.inbox.status().2 > 0 { ready | Events::IN | Events::RDNORM } else { ready }
    }

    fn unread(&self) -> Result<usize, Errno> {
        Ok(self.inbox.status().0.unwrap_or(0))
    }

    fn option(&self, level: i32, name: i32, _room: usize) -> Result<Vec<u8>, Errno> {
        match (level, name) {
            (LEVEL, 3..=5 | 8 | 10..=12) => {
                Ok(told(lock(&self.common.options).stored(level, name).unwrap_or(0)))
            }
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn set_option(&self, _context: &Context, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
        let number = super::options::number(value)?;
        match (level, name) {
            // Membership in groups where nothing is ever said.
            (LEVEL, 1 | 2) => Ok(()),
            (LEVEL, 3..=5 | 8 | 10..=12) => {
                lock(&self.common.options).store(level, name, i32::from(number != 0));
                Ok(())
            }
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn describe(&self) -> Description {
        let names = lock(&self.names);
        let local = Some(Address::Netlink(names.0, names.1));
        Description { local, state: 7, unread: self.inbox.status().1, ..Description::default() }
    }

    fn close(&self) {
        let port = std::mem::take(&mut lock(&self.names).0);
        if port != 0 {
            self.common.net.netlink.release(self.common.protocol, port);
        }
        self.inbox.clear(true);
    }
}
