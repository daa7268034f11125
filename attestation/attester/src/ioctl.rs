//! The ioctls of `/dev/sev-guest` (`include/uapi/linux/sev-guest.h`): the only unsafe code of this crate.
//!
//! All three structures are plain memory that the kernel reads and writes while the call lasts; the buffers
//! behind their addresses are borrowed for that long. Not yet run on hardware.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use crate::AttestError;
use crate::sev_guest::{CERTS_LEN, DeviceError, GuestDevice, RESPONSE_LEN};

/// `SNP_GET_REPORT`, `_IOWR('S', 0, struct snp_guest_request_ioctl)`.
const SNP_GET_REPORT: libc::Ioctl = 0xC020_5300;

/// `SNP_GET_EXT_REPORT`, `_IOWR('S', 2, struct snp_guest_request_ioctl)`.
const SNP_GET_EXT_REPORT: libc::Ioctl = 0xC020_5302;

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

/// The opened device.
pub(crate) struct Device {
    file: File,
}

impl Device {
    pub(crate) fn open() -> Result<Self, AttestError> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/sev-guest")
            .map_err(|source| AttestError::Device { action: "open", firmware: 0, vmm: 0, source })?;
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
        Err(DeviceError { firmware: arg.exitinfo2 as u32, vmm: (arg.exitinfo2 >> 32) as u32, source })
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
        certificates: &mut [u8; CERTS_LEN],
    ) -> Result<(), DeviceError> {
        let mut extended = ExtendedRequest {
            data: *request,
            certs_address: certificates.as_mut_ptr() as u64,
            certs_len: CERTS_LEN as u32,
        };
        // SAFETY: `extended` is `struct snp_ext_report_req`, which the kernel reads and writes; it lives during
        // the call and `certs_address` points to CERTS_LEN exclusive bytes, as `certs_len` says.
        unsafe { self.call(SNP_GET_EXT_REPORT, (&raw mut extended) as u64, response) }
    }
}
