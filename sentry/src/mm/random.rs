//! Random numbers of the host.

use crate::error::Errno;

/// Fills `to` with random bytes (`man 2 getrandom`).
///
/// # Errors
/// What the host says; a short answer is asked for again.
pub fn fill(to: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < to.len() {
        let rest = &mut to[done..];
        // SAFETY: pointer and length are those of a slice that is ours to write.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => done += got,
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => return Err(Errno::last()),
        }
    }
    Ok(())
}

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
