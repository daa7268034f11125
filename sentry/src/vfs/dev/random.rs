//! Randomness of the host.

use crate::error::Errno;

/// Fills with `getrandom`.
pub(super) fn fill(to: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    while let Some(left) = to.get_mut(done..).filter(|left| !left.is_empty()) {
        // SAFETY: pointer and length are those of one slice that is ours to write.
        let count = unsafe { libc::getrandom(left.as_mut_ptr().cast(), left.len(), 0) };
        done += usize::try_from(Errno::result(count)?).unwrap_or(0);
    }
    Ok(())
}
