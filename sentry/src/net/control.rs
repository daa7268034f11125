//! Control messages (`man 3 cmsg`): what guests send is parsed, what they receive is laid out; descriptors in flight.

use std::cell::RefCell;
use std::sync::Arc;

use super::{Budget, Identity};
use crate::error::Errno;
use crate::vfs::OpenFile;

/// Longest control data of a message (`net.core.optmem_max` of old, more than anybody needs).
pub(crate) const CONTROL_MAX: usize = 64 * 1024;
/// Most descriptors in a message (`SCM_MAX_FD`).
pub(crate) const RIGHTS_MAX: usize = 253;
/// `sizeof(struct cmsghdr)`.
const HEADER: usize = 16;
/// `SCM_CREDENTIALS`.
const CREDENTIALS: i32 = libc::SCM_CREDENTIALS;

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ControlMessage {
    /// `cmsg_level`.
    pub(crate) level: i32,
    /// `cmsg_type`.
    pub(crate) kind: i32,
    /// What comes after the header.
    pub(crate) data: Vec<u8>,
}

fn aligned(length: usize) -> usize {
    length.saturating_add(7) & !7
}

/// Takes control data apart.
///
/// # Errors
/// EINVAL where a length does not fit (`CMSG_OK` of `include/linux/socket.h`).
pub(crate) fn parse(mut bytes: &[u8]) -> Result<Vec<ControlMessage>, Errno> {
    let mut messages = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<HEADER>() {
        let (length, rest) = header.split_first_chunk::<8>().ok_or(Errno::EINVAL)?;
        let length = usize::try_from(u64::from_ne_bytes(*length)).map_err(|_| Errno::EINVAL)?;
        let data = bytes.get(HEADER..length).ok_or(Errno::EINVAL)?.to_vec();
        let number = |at: usize| rest.get(at..).and_then(<[u8]>::first_chunk).map(|b| i32::from_ne_bytes(*b));
        let level = number(0).ok_or(Errno::EINVAL)?;
        let kind = number(4).ok_or(Errno::EINVAL)?;
        messages.push(ControlMessage { level, kind, data });
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
    }
    Ok(messages)
}

/// What a message to be sent carries.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Numbers of descriptors.
    pub(crate) descriptors: Vec<i32>,
    /// Claimed identity.
    pub(crate) identity: Option<Identity>,
    /// Of other levels.
    pub(crate) others: Vec<ControlMessage>,
}

impl Sent {
    /// Sorts control messages out (`__scm_send` of `net/core/scm.c`).
    ///
    /// # Errors
    /// EINVAL.
    pub(crate) fn new(messages: Vec<ControlMessage>) -> Result<Self, Errno> {
        let mut sent = Self::default();
        for message in messages {
            match (message.level, message.kind) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    let numbers = message.data.chunks_exact(4);
                    sent.descriptors.extend(
                        numbers
                            .filter_map(|bytes| bytes.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))),
                    );
                    if sent.descriptors.len() > RIGHTS_MAX {
                        return Err(Errno::EINVAL);
                    }
                }
                (libc::SOL_SOCKET, CREDENTIALS) => {
                    sent.identity = Some(Identity::parse(&message.data).ok_or(Errno::EINVAL)?);
                }
                (libc::SOL_SOCKET, _) => return Err(Errno::EINVAL),
                _ => sent.others.push(message),
            }
        }
        Ok(sent)
    }
}

/// Lays control messages out in at most `room` bytes.
pub(crate) struct Layout {
    bytes: Vec<u8>,
    room: usize,
    /// Something did not fit: `MSG_CTRUNC`.
    pub(crate) truncated: bool,
}

impl Layout {
    pub(crate) fn new(room: usize) -> Self {
        Self { bytes: Vec::new(), room: room.min(CONTROL_MAX), truncated: false }
    }

    /// Bytes of data that the next message could have.
    pub(crate) fn left(&self) -> usize {
        self.room.saturating_sub(aligned(self.bytes.len())).saturating_sub(HEADER)
    }

    /// Adds a message, cut where it does not fit (`put_cmsg`).
    pub(crate) fn put(&mut self, level: i32, kind: i32, data: &[u8]) {
        let start = aligned(self.bytes.len());
        if self.room < start.saturating_add(HEADER) {
            self.truncated = true;
            return;
        }
        let count = data.len().min(self.left());
        self.truncated |= count < data.len();
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(&(HEADER.saturating_add(count) as u64).to_ne_bytes());
        self.bytes.extend_from_slice(&level.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(data.get(..count).unwrap_or_default());
    }

    /// All of it: what `msg_controllen` then counts, too.
    pub(crate) fn finish(mut self) -> (Vec<u8>, bool) {
        let end = aligned(self.bytes.len()).min(self.room);
        self.bytes.resize(end, 0);
        (self.bytes, self.truncated)
    }
}

/// Descriptors in flight.
pub(crate) struct Rights {
    files: Vec<Arc<OpenFile>>,
    budget: Arc<Budget>,
}

impl Rights {
    /// Puts files in flight.
    ///
    /// # Errors
    /// ETOOMANYREFS beyond the limit.
    pub(crate) fn new(files: Vec<Arc<OpenFile>>, budget: &Arc<Budget>) -> Result<Self, Errno> {
        if !budget.take(files.len()) {
            drop_later(files);
            return Err(Errno::ETOOMANYREFS);
        }
        Ok(Self { files, budget: Arc::clone(budget) })
    }

    /// The same once more, for `MSG_PEEK`: not in flight, but about to be given numbers.
    pub(crate) fn files(&self) -> Vec<Arc<OpenFile>> {
        self.files.clone()
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        self.budget.give(self.files.len());
        drop_later(std::mem::take(&mut self.files));
    }
}

thread_local! {
    static DROPPED: RefCell<Option<Vec<Arc<OpenFile>>>> = const { RefCell::new(None) };
}

/// Drops files; those that fall out of their queues by that are dropped after them, not within: how deep a guest can send sockets
/// through sockets is not how deep our stack is.
fn drop_later(files: Vec<Arc<OpenFile>>) {
    let first = DROPPED.try_with(|dropped| {
        let mut dropped = dropped.borrow_mut();
        match dropped.as_mut() {
            Some(waiting) => {
                waiting.extend(files);
                false
            }
            None => {
                *dropped = Some(files);
                true
            }
        }
    });
    if first != Ok(true) {
        return;
    }
    while let Some(file) = DROPPED.with(|dropped| dropped.borrow_mut().as_mut().and_then(Vec::pop)) {
        drop(file);
    }
    DROPPED.with(|dropped| *dropped.borrow_mut() = None);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_laid_out_can_be_parsed() {
        let mut layout = Layout::new(100);
        layout.put(1, 1, &[1, 2, 3, 4]);
        layout.put(0, 8, &[5; 12]);
        let (bytes, truncated) = layout.finish();
        assert_eq!((bytes.len(), truncated), (24 + 32, false));
        let expected = vec![
            ControlMessage { level: 1, kind: 1, data: vec![1, 2, 3, 4] },
            ControlMessage { level: 0, kind: 8, data: vec![5; 12] },
        ];
        assert_eq!(parse(&bytes), Ok(expected));
    }

    #[test]
    fn what_does_not_fit_is_cut() {
        let mut layout = Layout::new(20);
        layout.put(1, 1, &[1; 8]);
        layout.put(1, 1, &[1; 8]);
        let (bytes, truncated) = layout.finish();
        assert_eq!((bytes.len(), bytes.first(), truncated), (20, Some(&20), true));
    }

    #[test]
    fn lengths_that_do_not_fit() {
        for length in [0u64, 15, 25, u64::MAX] {
            let bytes = [length.to_ne_bytes(), [0; 8], [0; 8]].concat();
            assert_eq!(parse(&bytes), Err(Errno::EINVAL), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes).and_then(Sent::new);
        }
    }
}
