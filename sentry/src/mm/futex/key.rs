//! Which words are the same word.

use super::super::{AddressSpace, AreaFlags, Backing, FileIdentity, TASK_SIZE};
use crate::error::Errno;

/// A word of guest memory, the same wherever it is mapped (`union futex_key`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Of one address space.
    Private {
        /// [`AddressSpace::id`].
        space: u64,
        /// Where.
        address: u64,
        /// Named without `FUTEX_PRIVATE_FLAG`: those two do not meet.
        shared: bool,
    },
    /// In a file.
    File {
        /// Which.
        file: FileIdentity,
        /// Where in it.
        offset: u64,
    },
    /// In memory that is shared with children.
    Shared {
        /// Which.
        id: u64,
        /// Where in it.
        offset: u64,
    },
}

impl Key {
    /// The word at `address`; `private` where the caller says that no other address space is meant.
    ///
    /// # Errors
    /// EINVAL (not aligned), EFAULT (not a guest's address; not mapped, where that matters).
    pub fn of(space: &AddressSpace, address: u64, private: bool) -> Result<Self, Errno> {
        if !address.is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        if address > TASK_SIZE - 4 {
            return Err(Errno::EFAULT);
        }
        let within = |shared| Self::Private { space: space.id(), address, shared };
        if private {
            return Ok(within(false));
        }
        let area = space.area_at(address).ok_or(Errno::EFAULT)?;
        if !area.flags.contains(AreaFlags::SHARED) {
            return Ok(within(true));
        }
        let inside = address - area.start;
        Ok(match area.backing {
            Backing::File { file, offset } => {
                Self::File { file: file.identity(), offset: offset.saturating_add(inside) }
            }
            Backing::SharedAnonymous { id, offset } => {
                Self::Shared { id, offset: offset.saturating_add(inside) }
            }
            Backing::Anonymous | Backing::Special(_) => within(true),
        })
    }
}
