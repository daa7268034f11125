//! UNIX domain sockets (`man 7 unix`, `net/unix/af_unix.c`).
//!
//! A name in the file system is an inode of the kind `Socket` and nothing more: which socket is bound there is in [`Names`], by number of
//! file system and inode. The bound socket holds the place, so that the inode's number stays its own.
//!
//! Not there: urgent data (`MSG_OOB`: EOPNOTSUPP), `SO_PEEK_OFF`, `SO_PEERPIDFD` and `SO_PASSPIDFD` (ENOPROTOOPT).

mod connection;
mod datagram;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

pub(crate) use connection::Connection;
pub(crate) use datagram::Datagrams;

use super::address::{Address, UnixName};
use super::socket::{Context, Outgoing, Socket};
use super::{Net, lock};
use crate::error::Errno;
use crate::vfs::{Content, FileKind, Place, Resolve, Walk, access, names};

/// Where a name leads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// File system and inode.
    Inode(u64, u64),
    /// Abstract name.
    Abstract(Vec<u8>),
}

type Bounds = Mutex<HashMap<Key, Weak<dyn Socket>>>;

/// Bound UNIX sockets of a network.
#[derive(Default)]
pub(crate) struct Names {
    abstracts: Bounds,
    /// Those that are files are the same in all networks of the sandbox.
    files: Arc<Bounds>,
    next: AtomicU32,
}

impl Names {
    pub(crate) fn beside(&self) -> Self {
        Self { files: Arc::clone(&self.files), ..Self::default() }
    }

    fn of(&self, key: &Key) -> &Bounds {
        match key {
            Key::Abstract(_) => &self.abstracts,
            Key::Inode(..) => &self.files,
        }
    }

    fn find(&self, key: &Key) -> Option<Arc<dyn Socket>> {
        lock(self.of(key)).get(key).and_then(Weak::upgrade)
    }

    /// EADDRINUSE where it is somebody else's.
    fn claim(&self, key: &Key, socket: &Weak<dyn Socket>) -> Result<(), Errno> {
        let mut bound = lock(self.of(key));
        if bound.get(key).is_some_and(|socket| socket.strong_count() > 0) {
            return Err(Errno::EADDRINUSE);
        }
        bound.insert(key.clone(), Weak::clone(socket));
        Ok(())
    }

    fn release(&self, key: &Key) {
        let gone = lock(self.of(key)).remove(key);
        drop(gone);
    }
}

/// Name of a socket.
#[derive(Default)]
pub(crate) struct Named(Mutex<Option<Bound>>);

struct Bound {
    name: UnixName,
    /// `None` for what was accepted: its name is the listener's.
    key: Option<Key>,
    _place: Option<Place>,
}

impl Named {
    /// With another socket's name.
    fn like(name: UnixName) -> Self {
        let bound = (name != UnixName::Unnamed).then_some(Bound { name, key: None, _place: None });
        Self(Mutex::new(bound))
    }

    pub(crate) fn name(&self) -> UnixName {
        lock(&self.0).as_ref().map(|bound| bound.name.clone()).unwrap_or_default()
    }

    /// EINVAL where it has a name; EADDRINUSE; what making a file says.
    fn bind(&self, context: &Context, address: &Address, socket: &Weak<dyn Socket>) -> Result<(), Errno> {
        let Address::Unix(name) = address else { return Err(Errno::EINVAL) };
        let mut bound = lock(&self.0);
        if bound.is_some() {
            return if *name == UnixName::Unnamed { Ok(()) } else { Err(Errno::EINVAL) };
        }
        let names = &context.net.unix;
        *bound = Some(match name {
            UnixName::Unnamed => automatic(names, socket)?,
            UnixName::Abstract(text) => {
                let key = Key::Abstract(text.clone());
                names.claim(&key, socket)?;
                Bound { name: name.clone(), key: Some(key), _place: None }
            }
            UnixName::Path(path) => {
                let place = make_file(context, path)?;
                let key = key_of(&place)?;
                names.claim(&key, socket)?;
                Bound { name: name.clone(), key: Some(key), _place: Some(place) }
            }
        });
        Ok(())
    }

    /// Gives a socket that passes credentials a name before it sends (`unix_autobind`).
    fn bind_if_needed(&self, net: &Net, needed: bool, socket: &Weak<dyn Socket>) -> Result<(), Errno> {
        if needed {
            let mut bound = lock(&self.0);
            if bound.is_none() {
                *bound = Some(automatic(&net.unix, socket)?);
            }
        }
        Ok(())
    }

    /// The name is free again; it is still told.
    fn release(&self, net: &Net) {
        let (key, place) = match lock(&self.0).as_mut() {
            Some(bound) => (bound.key.take(), bound._place.take()),
            None => (None, None),
        };
        if let Some(key) = key {
            net.unix.release(&key);
        }
        drop(place);
    }
}

/// An abstract name of five hexadecimal digits.
fn automatic(names: &Names, socket: &Weak<dyn Socket>) -> Result<Bound, Errno> {
    for _ in 0..0x10_0000 {
        let number = names.next.fetch_add(1, Ordering::Relaxed) & 0xf_ffff;
        let text = format!("{number:05x}").into_bytes();
        let key = Key::Abstract(text.clone());
        if names.claim(&key, socket).is_ok() {
            return Ok(Bound { name: UnixName::Abstract(text), key: Some(key), _place: None });
        }
    }
    Err(Errno::ENOSPC)
}

fn make_file(context: &Context, path: &[u8]) -> Result<Place, Errno> {
    let mut walk = Walk::new(&context.caller, &context.root, &context.cwd, path, Resolve::empty())?;
    match names::create(&context.caller, &mut walk, Content::Socket, 0o777) {
        Err(Errno::EEXIST) => Err(Errno::EADDRINUSE),
        other => other,
    }
}

fn key_of(place: &Place) -> Result<Key, Errno> {
    let attributes = place.dentry.inode().attributes()?;
    Ok(Key::Inode(attributes.device, attributes.inode))
}

/// The socket of a name (`unix_find_other`).
///
/// # Errors
/// ECONNREFUSED where there is none; EACCES; what a walk says.
fn find(context: &Context, name: &UnixName) -> Result<Arc<dyn Socket>, Errno> {
    let key = match name {
        UnixName::Unnamed => return Err(Errno::EINVAL),
        UnixName::Abstract(text) => Key::Abstract(text.clone()),
        UnixName::Path(path) => {
            let mut walk = Walk::new(&context.caller, &context.root, &context.cwd, path, Resolve::empty())?;
            let place = walk.finish(true)?;
            let attributes = place.dentry.inode().attributes()?;
            access::check(&context.caller, &attributes, access::WRITE)?;
            if attributes.kind != FileKind::Socket {
                return Err(Errno::ECONNREFUSED);
            }
            Key::Inode(attributes.device, attributes.inode)
        }
    };
    context.net.unix.find(&key).ok_or(Errno::ECONNREFUSED)
}

/// A name as a receiver is told it: none for a socket without.
fn told(name: UnixName) -> Option<Address> {
    (name != UnixName::Unnamed).then_some(Address::Unix(name))
}

/// All bytes of a message.
///
/// # Errors
/// EFAULT.
pub(crate) fn gather(message: &mut Outgoing<'_>) -> Result<Vec<u8>, Errno> {
    let mut data = vec![0; message.source.left()];
    if message.source.take(&mut data) < data.len() {
        return Err(Errno::EFAULT);
    }
    Ok(data)
}

fn check(protocol: i32) -> Result<(), Errno> {
    if matches!(protocol, 0 | libc::AF_UNIX) { Ok(()) } else { Err(Errno::EPROTONOSUPPORT) }
}

/// A UNIX socket.
///
/// # Errors
/// EPROTONOSUPPORT, ESOCKTNOSUPPORT, ENOBUFS.
pub(crate) fn create(context: &Context, kind: i32, protocol: i32) -> Result<Arc<dyn Socket>, Errno> {
    check(protocol)?;
    Ok(match kind {
        libc::SOCK_STREAM | libc::SOCK_SEQPACKET => {
            Connection::new(&context.net, kind, context.identity(), UnixName::Unnamed)?
        }
        libc::SOCK_DGRAM | libc::SOCK_RAW => Datagrams::new(&context.net, context.identity())?,
        _ => return Err(Errno::ESOCKTNOSUPPORT),
    })
}

/// Two UNIX sockets, connected.
///
/// # Errors
/// As [`create`].
pub(crate) fn create_pair(
    context: &Context,
    kind: i32,
    protocol: i32,
) -> Result<[Arc<dyn Socket>; 2], Errno> {
    check(protocol)?;
    match kind {
        libc::SOCK_STREAM | libc::SOCK_SEQPACKET => {
            let [one, other] = Connection::pair(&context.net, kind, context.identity())?;
            Ok([one, other])
        }
        libc::SOCK_DGRAM | libc::SOCK_RAW => {
            let [one, other] = Datagrams::pair(&context.net, context.identity())?;
            Ok([one, other])
        }
        _ => Err(Errno::ESOCKTNOSUPPORT),
    }
}

#[cfg(test)]
mod tests;
