//! Asking the host by netlink (`man 7 rtnetlink`): dumps, and requests that are acknowledged.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

use crate::error::Errno;

const HEADER: usize = 16;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Most bytes of an answer that is taken.
const ANSWER: usize = 16 << 20;

/// Who carries out changes of interfaces.
pub(super) trait Changes {
    /// A change.
    fn change(&mut self, kind: u16, body: &[u8]) -> Result<(), Errno>;

    /// Something that is made.
    fn make(&mut self, kind: u16, body: &[u8]) -> Result<(), Errno>;
}

/// A netlink socket.
pub(super) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

impl Netlink {
    pub(super) fn open() -> Result<Self, Errno> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self { fd, sequence: 0 })
    }

    fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER.saturating_add(body.len())).map_err(|_| Errno::EMSGSIZE)?;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(body);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()).map(drop)
    }

    /// Messages that answer, by kind and body.
    fn answers(&mut self) -> Result<Vec<(u16, Vec<u8>)>, Errno> {
        let mut all = Vec::new();
        let mut taken = 0_usize;
        let mut buffer = vec![0; 128 * 1024];
        while taken < ANSWER {
            let count = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            taken = taken.saturating_add(count);
            let mut rest = buffer.get(..count).unwrap_or_default();
            while let Some(length) = number(rest, 0).map(u32::from_ne_bytes) {
                let length = usize::try_from(length).map_err(|_| Errno::EBADMSG)?;
                let kind = u16::from_ne_bytes(number(rest, 4).ok_or(Errno::EBADMSG)?);
                let body = rest.get(HEADER..length).ok_or(Errno::EBADMSG)?;
                match kind {
                    DONE => return Ok(all),
                    ERROR => {
                        let errno = i32::from_ne_bytes(number(body, 0).ok_or(Errno::EBADMSG)?);
                        return if errno == 0 {
                            Ok(all)
                        } else {
                            Err(Errno::from_raw(errno.saturating_neg()))
                        };
                    }
                    _ => all.push((kind, body.to_vec())),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
        Err(Errno::EMSGSIZE)
    }

    /// Everything of a kind (`RTM_GET*`).
    pub(super) fn dump(&mut self, kind: u16, body: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
        self.request(kind, DUMP, body)?;
        Ok(self.answers()?.into_iter().map(|(_, body)| body).collect())
    }
}

impl Changes for Netlink {
    fn change(&mut self, kind: u16, body: &[u8]) -> Result<(), Errno> {
        self.request(kind, ACK, body)?;
        self.answers().map(drop)
    }

    fn make(&mut self, kind: u16, body: &[u8]) -> Result<(), Errno> {
        self.request(kind, ACK | CREATE, body)?;
        self.answers().map(drop)
    }
}

/// A socket that hears of interfaces and addresses of this thread's network namespace that come, change and go.
///
/// # Errors
/// The host gives none.
pub fn news() -> Result<OwnedFd, Errno> {
    // `include/uapi/linux/rtnetlink.h`: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
    const GROUPS: u32 = 0x1 | 0x10 | 0x100;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    Ok(fd)
}

/// Adds an attribute to a message.
pub(super) fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let Ok(length) = u16::try_from(value.len().saturating_add(4)) else { return };
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Attributes after a header of so many bytes, by kind.
pub(super) fn attributes(body: &[u8], header: usize) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    let mut rest = body.get(header..).unwrap_or_default();
    while let (Some(length), Some(kind)) = (number(rest, 0), number(rest, 2)) {
        let length = usize::from(u16::from_ne_bytes(length));
        let Some(value) = rest.get(4..length) else { break };
        all.push((u16::from_ne_bytes(kind) & 0x3fff, value));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}
