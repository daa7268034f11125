//! What the host tells its programs about the processor.

/// A value of this process' own auxiliary vector; 0 where it is not there.
pub(super) fn auxiliary(key: u64) -> u64 {
    // SAFETY: it takes a number and reads what the host gave this process.
    unsafe { libc::getauxval(key) }
}
