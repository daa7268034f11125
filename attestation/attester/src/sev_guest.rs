//! Reports through `/dev/sev-guest`, for kernels without the TSM interface.
//!
//! The extended request brings the certificates that the host supplies. Where they need more room than was offered the kernel
//! says how much, and it is asked once more; where that does not help (more than the kernel passes on) the plain
//! request brings the report alone. A busy host is asked again, with growing pauses.
//! `include/uapi/linux/sev-guest.h`: the answer has 4000 bytes, u32 status, u32 report size, 24
//! reserved, then the report.
//!
//! The ioctl itself is behind [`GuestDevice`], so that this logic is tested against a fake. Not yet run
//! on hardware.

use std::time::Duration;

use kata_cc_snp::REPORT_LEN;
use kata_cc_snp::cert_table::MAX_TABLE;

use crate::sim::request as report_request;
use crate::{AttestError, RawReport};

/// Bytes of `struct snp_report_resp`.
pub const RESPONSE_LEN: usize = 4000;

/// Bytes offered for certificates at first: what the kernel passes on today (`SEV_FW_BLOB_MAX_SIZE`).
pub const CERTS_LEN: usize = 0x4000;

/// The room for certificates is in whole pages.
const PAGE: usize = 4096;

/// Error of the VMM: the buffer for certificates is too small.
pub const VMM_INVALID_LEN: u32 = 1;

/// Error of the VMM: ask again.
pub const VMM_BUSY: u32 = 2;

/// How often a busy host is asked.
const ATTEMPTS: u32 = 6;

/// Pause before a busy host is asked again; doubled each time.
pub const PAUSE: Duration = Duration::from_millis(200);

/// Why a request failed, in the terms of `exitinfo2`.
#[derive(Debug)]
pub struct DeviceError {
    /// Error of the firmware.
    pub firmware: u32,
    /// Error of the VMM.
    pub vmm: u32,
    /// Bytes that the certificates need, when the VMM says that they have too little room.
    pub certs_len: usize,
    /// Error of the system call.
    pub source: std::io::Error,
}

impl DeviceError {
    /// Whether the same request may do another time.
    fn is_busy(&self) -> bool {
        self.vmm == VMM_BUSY
            || matches!(self.source.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::EBUSY))
    }

    fn told(self) -> AttestError {
        let (firmware, vmm) = (self.firmware, self.vmm);
        AttestError::Device { action: "get a report from", firmware, vmm, source: self.source }
    }
}

/// The two requests that are needed of the device.
pub trait GuestDevice {
    /// `SNP_GET_REPORT`: fills in the answer.
    ///
    /// # Errors
    /// [`DeviceError`] as the kernel says.
    fn report(&self, request: &[u8; 96], response: &mut [u8; RESPONSE_LEN]) -> Result<(), DeviceError>;

    /// `SNP_GET_EXT_REPORT`: fills in the answer and the certificate table.
    ///
    /// # Errors
    /// [`DeviceError`] as the kernel says.
    fn extended_report(
        &self,
        request: &[u8; 96],
        response: &mut [u8; RESPONSE_LEN],
        certificates: &mut [u8],
    ) -> Result<(), DeviceError>;
}

/// A report that holds `report_data`. `pause` is how long a busy host is left alone at first.
///
/// # Errors
/// [`AttestError`] says which step failed.
pub fn report<D: GuestDevice>(
    device: &D,
    report_data: &[u8; 64],
    pause: Duration,
) -> Result<RawReport, AttestError> {
    let request = report_request(report_data, 0);
    let mut response = Box::new([0; RESPONSE_LEN]);
    let mut certificates = vec![0; CERTS_LEN];
    let mut extended =
        patiently(pause, || device.extended_report(&request, &mut response, &mut certificates));
    if let Err(error) = &extended
        && error.vmm == VMM_INVALID_LEN
        && (certificates.len() + 1..=MAX_TABLE).contains(&error.certs_len)
    {
        certificates = vec![0; error.certs_len.next_multiple_of(PAGE)];
        extended = patiently(pause, || device.extended_report(&request, &mut response, &mut certificates));
    }
    match extended {
        Ok(()) => {}
        Err(error) if error.vmm == VMM_INVALID_LEN || certificates.len() > CERTS_LEN => {
            tracing::debug!(needed = error.certs_len, "the host's certificates are too large: report alone");
            patiently(pause, || device.report(&request, &mut response)).map_err(DeviceError::told)?;
            certificates.clear();
        }
        Err(error) => return Err(error.told()),
    }
    Ok(RawReport { report: report_of(&response)?, certificates })
}

/// Asks again while the host is busy.
fn patiently(pause: Duration, mut ask: impl FnMut() -> Result<(), DeviceError>) -> Result<(), DeviceError> {
    let mut pause = pause;
    for _ in 1..ATTEMPTS {
        match ask() {
            Err(error) if error.is_busy() => {
                std::thread::sleep(pause);
                pause = pause.saturating_mul(2);
            }
            other => return other,
        }
    }
    ask()
}

/// The report within the answer.
fn report_of(response: &[u8; RESPONSE_LEN]) -> Result<Vec<u8>, AttestError> {
    let (status, rest) = response.split_first_chunk::<4>().ok_or(AttestError::NoTee)?;
    let (len, rest) = rest.split_first_chunk::<4>().ok_or(AttestError::NoTee)?;
    let (status, len) = (u32::from_le_bytes(*status), u32::from_le_bytes(*len) as usize);
    if status != 0 {
        return Err(AttestError::Status { status });
    }
    let wrong = AttestError::Length { what: "the report", seen: len, expected: REPORT_LEN };
    if len != REPORT_LEN {
        return Err(wrong);
    }
    rest.get(24..24 + REPORT_LEN).map(<[u8]>::to_vec).ok_or(wrong)
}
