//! How the boot reaches guest memory.

/// Guest-physical memory below 4 GiB, as private and as shared memory.
///
/// Whoever calls has made sure that the memory is there: private memory was accepted, shared memory is
/// where the layout or a checked boot info says.
pub trait GuestMemory {
    /// Reads shared memory, each byte once, into memory that the host cannot reach.
    fn read_shared(&mut self, from: u64, into: &mut [u8]);

    /// Copies shared memory into private memory, each byte once.
    fn copy_in(&mut self, shared: u64, private: u64, length: u64);

    /// Overwrites shared memory with zeros.
    fn wipe_shared(&mut self, from: u64, length: u64);

    /// Private memory as bytes.
    fn private(&mut self, start: u64, length: u64) -> &mut [u8];

    /// Copies private memory; the two places do not overlap.
    fn copy_private(&mut self, from: u64, to: u64, length: u64);

    /// Overwrites private memory with zeros.
    fn wipe(&mut self, start: u64, length: u64) {
        self.private(start, length).fill(0);
    }
}
