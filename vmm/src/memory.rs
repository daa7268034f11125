//! Guest memory: made of anonymous pages that the host fills in as the guest touches them.
//!
//! Huge pages are asked for (the host's administrator may forbid them): loading a kernel of 13 MiB and the
//! guest's first touch of its memory then cost dozens of faults instead of thousands. Nothing of it
//! enters a core dump.

use kata_cc_boot::{Region, layout};
use kata_cc_devices::{GuestRam, Memory};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use crate::error::VmmError;

/// Reserves the guest's memory; nothing is touched.
///
/// # Errors
/// When the host has no address space for it.
pub fn create(memory_mib: u64) -> Result<Memory, VmmError> {
    let mut ranges = Vec::new();
    for (start, bytes) in layout::memory_ranges(memory_mib) {
        let bytes = usize::try_from(bytes).map_err(|e| VmmError::Memory(e.to_string()))?;
        ranges.push((GuestAddress(start), bytes));
    }
    let ram = GuestRam::from_ranges(&ranges)
        .map_err(|e| VmmError::Memory(format!("{memory_mib} MiB cannot be mapped: {e}")))?;
    advise(&ram);
    Ok(Memory::new(ram))
}

/// Advice only: a host without huge pages runs the guest as well.
#[allow(unsafe_code)]
fn advise(ram: &GuestRam) {
    let Ok(bytes) = ram.iter().map(|region| usize::try_from(region.len())).collect::<Result<Vec<_>, _>>()
    else {
        return;
    };
    for (region, bytes) in ram.iter().zip(bytes) {
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
            // SAFETY: the range is one whole private mapping of ours; neither advice changes its content.
            if unsafe { libc::madvise(region.as_ptr().cast(), bytes, advice) } != 0 {
                let error = std::io::Error::last_os_error();
                tracing::debug!(advice, %error, "advice on guest memory refused");
            }
        }
    }
}

/// Writes regions of a plan; the rest of each last page is zero, as fresh memory is.
///
/// # Errors
/// When a region is not within memory, which a plan made for this memory size never is.
pub fn load(memory: &Memory, regions: &[Region<'_>]) -> Result<(), VmmError> {
    let ram = memory.memory();
    for region in regions {
        ram.write_slice(&region.bytes, GuestAddress(region.gpa))
            .map_err(|e| VmmError::Memory(format!("{} at {:#x}: {e}", region.name, region.gpa)))?;
    }
    Ok(())
}
