//! Random numbers of the host.

use crate::random::fill;

/// A number of pages below `bound`, in bytes; 0 where the host has no random numbers.
#[must_use]
pub fn pages_below(bound: u64) -> u64 {
    let mut bytes = [0; 8];
    let pages = bound / super::PAGE;
    if pages == 0 || fill(&mut bytes).is_err() {
        return 0;
    }
    u64::from_le_bytes(bytes) % pages * super::PAGE
}
