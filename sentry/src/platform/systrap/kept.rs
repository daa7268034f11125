//! Replaced call sites of an address space that is saved and made anew: the table of slots as it is, and which sites lead there.
//!
//! The jumps themselves are in pages of the guest's, which are saved like all others. Both ends are the same build ([`crate::checkpoint`] sees to
//! it), so that code and numbers in slots mean the same.

use serde::{Deserialize, Serialize};

use super::patch::{Patches, SLOTS, SLOTS_SIZE};
use super::thread::StubThread;
use crate::error::Errno;
use crate::platform::Memory;

/// What is told.
#[derive(Serialize, Deserialize)]
struct Kept {
    patches: Patches,
    table: Vec<u8>,
}

/// Tells it, reading the table from the address space.
pub(super) fn tell(patches: &Patches, memory: &impl Memory) -> Result<Vec<u8>, Errno> {
    let size = patches.table_size().and_then(|size| usize::try_from(size).ok()).ok_or(Errno::EINVAL)?;
    let mut table = vec![0; size];
    if memory.read(SLOTS, &mut table) != size {
        return Err(Errno::EFAULT);
    }
    postcard::to_allocvec(&Kept { patches: patches.clone(), table }).map_err(|_| Errno::EINVAL)
}

impl StubThread {
    /// Takes it over, in an address space that has no table yet.
    pub(super) fn take_over(&mut self, kept: &[u8]) -> Result<(), Errno> {
        const READABLE: i32 = libc::PROT_READ | libc::PROT_EXEC;
        let Kept { patches, mut table } = postcard::from_bytes(kept).map_err(|_| Errno::EINVAL)?;
        let size = patches.table_size().ok_or(Errno::EINVAL)?;
        if table.len() as u64 != size {
            return Err(Errno::EINVAL);
        }
        if let Some(first) = table.first_chunk_mut() {
            // The one word that leads out of the table: it is never what somebody else says.
            *first = Patches::entry().to_le_bytes();
            self.map(SLOTS, SLOTS_SIZE, READABLE | libc::PROT_WRITE, libc::MAP_PRIVATE, None)?;
            if self.write(SLOTS, &table) != table.len() {
                return Err(Errno::EFAULT);
            }
            self.protect(SLOTS, SLOTS_SIZE, READABLE)?;
        }
        *self.stub.patches() = patches;
        Ok(())
    }
}
