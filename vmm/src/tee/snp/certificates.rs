//! Certificates for extended guest requests: the guest asks for them together with a report, KVM passes the
//! question on (`KVM_EXIT_SNP_REQ_CERTS`).
//!
//! The table is that of GHCB 4.1.8.1, made by the operator or by `kata-cc-snp`. It is no secret and proves
//! nothing by itself: whoever verifies the report verifies the chain.

use crate::tee::TeeError;
use crate::tee::abi::SnpReqCerts;
use crate::tee::ioctls::TeeIoctls;
use crate::tee::memory::{MapError, MemoryBook};

/// Serves the exit: writes the table into the guest's shared memory, or says how many pages it needs.
///
/// # Errors
/// When the guest names memory that the host must not write; the request is answered with `EIO` then.
pub fn serve(
    request: &mut SnpReqCerts,
    table: &[u8],
    io: &dyn TeeIoctls,
    book: &MemoryBook,
) -> Result<(), TeeError> {
    let needed = table.len().div_ceil(4096) as u64;
    if request.npages < needed {
        request.npages = needed;
        request.ret = libc::ENOSPC as u64;
        return Ok(());
    }
    let written = write(request.gpa, table, io, book);
    request.ret = if written.is_ok() { 0 } else { libc::EIO as u64 };
    written
}

fn write(gpa: u64, table: &[u8], io: &dyn TeeIoctls, book: &MemoryBook) -> Result<(), TeeError> {
    if !gpa.is_multiple_of(4096) {
        return Err(MapError::NotPages { gpa, size: table.len() as u64 }.into());
    }
    book.check_shared(gpa, table.len() as u64)?;
    io.write_shared(gpa, table).map_err(TeeError::refused("writing certificates"))
}
