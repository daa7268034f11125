//! Random bytes of the host, which the sentry has from nowhere else.

use crate::error::Errno;

/// A random number.
///
/// # Errors
/// As [`fill`].
pub(crate) fn number() -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    fill(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Fills `to` with random bytes.
///
/// # Errors
/// What the host says; it never does once it has booted.
pub(crate) fn fill(to: &mut [u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < to.len() {
        let rest = &mut to[done..];
        // SAFETY: the host writes at most `rest.len()` bytes to `rest`, which is borrowed for writing.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => done += got.min(rest.len()),
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => return Err(Errno::last()),
        }
    }
    Ok(())
}
