//! The ioctls of `/dev/sev-guest` and `/dev/tdx_guest` (`include/uapi/linux/sev-guest.h`, `tdx-guest.h`): the only unsafe
//! code of this crate.
//!
//! All structures are plain memory that the kernel reads and writes while the call lasts; the buffers
//! behind their addresses are borrowed for that long. Not yet run on hardware.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::AttestError;
use crate::quote::TD_REPORT_LEN;
use crate::sev_guest::{DeviceError, GuestDevice, RESPONSE_LEN};
use crate::tdx::TdDevice;

/// `SNP_GET_REPORT`, `_IOWR('S', 0, struct snp_guest_request_ioctl)`.
const SNP_GET_REPORT: libc::Ioctl = 0xC020_5300;

/// `SNP_GET_EXT_REPORT`, `_IOWR('S', 2, struct snp_guest_request_ioctl)`.
const SNP_GET_EXT_REPORT: libc::Ioctl = 0xC020_5302;

/// `TDX_CMD_GET_REPORT0`, `_IOWR('T', 1, struct tdx_report_req)`.
const TDX_CMD_GET_REPORT0: libc::Ioctl = 0xC440_5401;

/// `struct tdx_report_req`: report data in, TD report out.
#[repr(C)]
struct TdReportRequest {
    report_data: [u8; 64],
    report: [u8; TD_REPORT_LEN],
}

/// `struct snp_guest_request_ioctl`.
#[repr(C)]
struct GuestRequest {
    msg_version: u8,
    req_data: u64,
    resp_data: u64,
    exitinfo2: u64,
}

/// `struct snp_ext_report_req`.
#[repr(C)]
struct ExtendedRequest {
    data: [u8; 96],
    certs_address: u64,
    certs_len: u32,
}

const _: () = assert!(size_of::<GuestRequest>() == 32 && size_of::<ExtendedRequest>() == 112);
const _: () = assert!(size_of::<TdReportRequest>() == 0x440);

/// The opened `/dev/sev-guest`.
pub(crate) struct Device {
    file: File,
}

fn open(path: &Path) -> std::io::Result<File> {
    std::fs::OpenOptions::new().read(true).write(true).open(path)
}

impl Device {
    pub(crate) fn open(path: &Path) -> Result<Self, AttestError> {
        let file = open(path).map_err(|source| AttestError::Device {
            action: "open",
            firmware: 0,
            vmm: 0,
            source,
        })?;
        Ok(Self { file })
    }

    /// # Safety
    /// `request` must be the address of the structure that `number` demands, alive and not otherwise
    /// used during the call, and so must every address within it.
    unsafe fn call(
        &self,
        number: libc::Ioctl,
        request: u64,
        response: &mut [u8; RESPONSE_LEN],
    ) -> Result<(), DeviceError> {
        let mut arg = GuestRequest {
            msg_version: 1,
            req_data: request,
            resp_data: response.as_mut_ptr() as u64,
            exitinfo2: 0,
        };
        // SAFETY: the file is an open device; `arg` is a valid structure of the size encoded in `number`;
        // `resp_data` points to RESPONSE_LEN exclusive bytes, the length of the kernel's
        // `struct snp_report_resp`; `req_data` is as the caller promises.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), number, &raw mut arg) };
        if result == 0 {
            return Ok(());
        }
        let source = std::io::Error::last_os_error();
        Err(DeviceError {
            firmware: arg.exitinfo2 as u32,
            vmm: (arg.exitinfo2 >> 32) as u32,
            certs_len: 0,
            source,
        })
    }
}

impl GuestDevice for Device {
    fn report(&self, request: &[u8; 96], response: &mut [u8; RESPONSE_LEN]) -> Result<(), DeviceError> {
        // SAFETY: `struct snp_report_req` has 96 bytes, which the kernel only reads; borrowed during the call.
        unsafe { self.call(SNP_GET_REPORT, request.as_ptr() as u64, response) }
    }

    fn extended_report(
        &self,
        request: &[u8; 96],
        response: &mut [u8; RESPONSE_LEN],
        certificates: &mut [u8],
    ) -> Result<(), DeviceError> {
        let mut extended = ExtendedRequest {
            data: *request,
            certs_address: certificates.as_mut_ptr() as u64,
            // Never more than the 32 bits of the structure: the caller's limit is far below.
            certs_len: u32::try_from(certificates.len()).unwrap_or(0),
        };
        // SAFETY: `extended` is `struct snp_ext_report_req`, which the kernel reads and writes; it lives during
        // the call and `certs_address` points to exclusive bytes, as many as `certs_len` says (or more).
        let asked = unsafe { self.call(SNP_GET_EXT_REPORT, (&raw mut extended) as u64, response) };
        // The kernel puts the length that is needed in place of ours.
        asked.map_err(|error| DeviceError { certs_len: extended.certs_len as usize, ..error })
    }
}

/// The opened `/dev/tdx_guest`.
pub(crate) struct TdxDevice {
    file: File,
}

impl TdxDevice {
    pub(crate) fn open(path: &Path) -> Result<Self, AttestError> {
        let file = open(path).map_err(|source| AttestError::TdxDevice { action: "open", source })?;
        Ok(Self { file })
    }
}

impl TdDevice for TdxDevice {
    fn report(&self, report_data: &[u8; 64]) -> std::io::Result<Box<[u8; TD_REPORT_LEN]>> {
        let mut request = Box::new(TdReportRequest { report_data: *report_data, report: [0; TD_REPORT_LEN] });
        // SAFETY: the file is an open device; `request` is a valid, exclusive structure of the size encoded in the number,
        // which the kernel reads and writes during the call only.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), TDX_CMD_GET_REPORT0, &raw mut *request) };
        match result {
            0 => Ok(Box::new(request.report)),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}
