//! Reports through `/dev/sev-guest`, for kernels without the TSM interface.
//!
//! The extended request brings the certificates that the host supplies; where it fails because of them
//! (the host has none, or more than the kernel passes on), the plain request brings the report alone.
//! `include/uapi/linux/sev-guest.h`: the answer has 4000 bytes, u32 status, u32 report size, 24
//! reserved, then the report.
//!
//! The ioctl itself is behind [`GuestDevice`], so that this logic is tested against a fake. Not yet run
//! on hardware.

use kata_cc_snp::REPORT_LEN;

use crate::sim::report_request;
use crate::{AttestError, RawReport};

/// Bytes of `struct snp_report_resp`.
pub const RESPONSE_LEN: usize = 4000;

/// Most bytes of certificates that the kernel passes on (`SEV_FW_BLOB_MAX_SIZE`).
pub const CERTS_LEN: usize = 0x4000;

/// Error of the VMM: the buffer for certificates is too small.
pub const VMM_INVALID_LEN: u32 = 1;

/// Why a request failed, in the terms of `exitinfo2`.
#[derive(Debug)]
pub struct DeviceError {
    /// Error of the firmware.
    pub firmware: u32,
    /// Error of the VMM.
    pub vmm: u32,
    /// Error of the system call.
    pub source: std::io::Error,
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
        certificates: &mut [u8; CERTS_LEN],
    ) -> Result<(), DeviceError>;
}

/// A report that holds `report_data`.
pub(crate) fn report<D: GuestDevice>(device: &D, report_data: &[u8; 64]) -> Result<RawReport, AttestError> {
    let request = report_request(report_data, 0);
    let mut response = Box::new([0; RESPONSE_LEN]);
    let mut certificates = Box::new([0; CERTS_LEN]);
    let failed = |error: DeviceError| AttestError::Device {
        action: "get a report from",
        firmware: error.firmware,
        vmm: error.vmm,
        source: error.source,
    };
    let certificates = match device.extended_report(&request, &mut response, &mut certificates) {
        Ok(()) => certificates.to_vec(),
        Err(error) if error.vmm == VMM_INVALID_LEN => {
            device.report(&request, &mut response).map_err(failed)?;
            Vec::new()
        }
        Err(error) => return Err(failed(error)),
    };
    Ok(RawReport { report: report_of(&response)?, certificates })
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        certificates: Result<u8, u32>,
        status: u32,
        len: u32,
    }

    impl GuestDevice for Fake {
        fn report(&self, request: &[u8; 96], response: &mut [u8; RESPONSE_LEN]) -> Result<(), DeviceError> {
            response[..4].copy_from_slice(&self.status.to_le_bytes());
            response[4..8].copy_from_slice(&self.len.to_le_bytes());
            response[32 + 0x50..32 + 0x90].copy_from_slice(&request[..64]);
            Ok(())
        }

        fn extended_report(
            &self,
            request: &[u8; 96],
            response: &mut [u8; RESPONSE_LEN],
            certificates: &mut [u8; CERTS_LEN],
        ) -> Result<(), DeviceError> {
            let byte = self.certificates.map_err(|vmm| DeviceError {
                firmware: 0,
                vmm,
                source: std::io::ErrorKind::Other.into(),
            })?;
            certificates.fill(byte);
            self.report(request, response)
        }
    }

    const GOOD: Fake = Fake { certificates: Ok(5), status: 0, len: 1184 };

    #[test]
    fn report_and_certificates_are_taken_from_the_answer() {
        let raw = report(&GOOD, &[6; 64]).expect("report");
        assert_eq!((raw.report.len(), raw.certificates.len()), (REPORT_LEN, CERTS_LEN));
        assert_eq!(raw.report[0x50..0x90], [6; 64]);
    }

    #[test]
    fn certificates_that_do_not_fit_are_left_out() {
        let raw = report(&Fake { certificates: Err(VMM_INVALID_LEN), ..GOOD }, &[6; 64]).expect("report");
        assert!(raw.certificates.is_empty());
        let refused = report(&Fake { certificates: Err(2), ..GOOD }, &[6; 64]);
        assert!(matches!(refused, Err(AttestError::Device { vmm: 2, .. })));
    }

    #[test]
    fn refusals_and_wrong_lengths_are_told() {
        let refused = report(&Fake { status: 0x16, ..GOOD }, &[6; 64]);
        assert!(matches!(refused, Err(AttestError::Status { status: 0x16 })));
        for len in [0, 1183, 1185, u32::MAX] {
            let refused = report(&Fake { len, ..GOOD }, &[6; 64]);
            assert!(matches!(refused, Err(AttestError::Length { .. })), "{len}");
        }
    }
}
