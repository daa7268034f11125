//! Why no evidence can be had, in words: what the kernel's and the firmware's numbers mean.

use kata_cc_snp::ReportError;
use kata_cc_snp::cert_table::CertTableError;

use crate::qgs::QgsError;
use crate::quote::QuoteError;
use crate::{TIMEOUT, Tee, sim};

/// No evidence can be had.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The guest does not run in a TEE.
    #[error("this guest runs in no TEE: there is nothing to attest")]
    NoTee,
    /// None of the ways to evidence of this TEE is there.
    #[error("this guest runs in {tee}, but there is no way to its evidence: {}", missing.join("; "))]
    NoInterface {
        /// The TEE.
        tee: Tee,
        /// Why, one sentence for each way.
        missing: Vec<String>,
    },
    /// The simulated security processor cannot be reached or broke off.
    #[error("cannot {action} the simulated security processor on vsock port {}: {source}", sim::PORT)]
    Sim {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The security processor refused the request.
    #[error("security processor refused the request with status {status:#x}: {}", firmware_status(*status))]
    Status {
        /// Status of the firmware ABI.
        status: u32,
    },
    /// The answer says it is longer than any answer is.
    #[error("answer says {what} has {seen} bytes, expected {expected}")]
    Length {
        /// Which part.
        what: &'static str,
        /// Length announced.
        seen: usize,
        /// Length or limit expected.
        expected: usize,
    },
    /// No answer within [`TIMEOUT`].
    #[error("no report within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The kernel's TSM interface failed.
    #[error("cannot {action} {path}: {source}{}", kernel_words(source))]
    Tsm {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The TSM interface belongs to another TEE.
    #[error("TSM reports come from '{seen}', expected '{expected}'")]
    Provider {
        /// Provider named.
        seen: String,
        /// Provider of the guest's TEE.
        expected: &'static str,
    },
    /// A privilege level that this guest cannot have a report for.
    #[error("report for privilege level {asked} was asked for, this guest can have {floor} to 3")]
    PrivilegeLevel {
        /// Level asked for.
        asked: u8,
        /// Lowest that the kernel allows.
        floor: u8,
    },
    /// Somebody else kept changing our request.
    #[error("TSM report was changed by another writer {attempts} times in a row")]
    Raced {
        /// How often it was tried.
        attempts: u32,
    },
    /// `/dev/sev-guest` failed.
    #[error(
        "cannot {action} /dev/sev-guest (firmware error {firmware:#x}: {}; VMM error {vmm}: {}): {source}",
        firmware_status(*firmware), vmm_status(*vmm)
    )]
    Device {
        /// What was tried.
        action: &'static str,
        /// Error of the firmware.
        firmware: u32,
        /// Error of the VMM.
        vmm: u32,
        /// Error of the system call.
        source: std::io::Error,
    },
    /// `/dev/tdx_guest` failed.
    #[error("cannot {action} /dev/tdx_guest: {source}{}", kernel_words(source))]
    TdxDevice {
        /// What was tried.
        action: &'static str,
        /// Error of the system call.
        source: std::io::Error,
    },
    /// The quote generation service was not reached or broke off.
    #[error("cannot {action} the quote generation service at {address}: {source}")]
    Qgs {
        /// What was tried.
        action: &'static str,
        /// Where it listens.
        address: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The quote generation service refused, or its answer is out of form.
    #[error(transparent)]
    QgsAnswer(#[from] QgsError),
    /// What came is not a quote.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// What came is not a report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The certificates beside the report are out of form.
    #[error(transparent)]
    Certificates(#[from] CertTableError),
    /// The report answers another request.
    #[error("report holds other report data than was asked for")]
    OtherReport,
    /// A task of ours broke off.
    #[error("the task that asks for a report ended early")]
    Task,
    /// The evidence cannot be written as JSON, or what came beside it is none.
    #[error("cannot write the evidence as JSON, or read what came beside it: {0}")]
    Json(#[from] serde_json::Error),
}

/// What a status of the SEV firmware means (56860, "Status Codes"; `include/uapi/linux/psp-sev.h`).
#[must_use]
pub const fn firmware_status(status: u32) -> &'static str {
    match status {
        0x00 => "success",
        0x01 => "platform state is invalid for this command",
        0x02 => "guest state is invalid for this command",
        0x03 => "platform configuration is invalid",
        0x04 => "a buffer is too small",
        0x05 => "platform is owned already",
        0x06 => "certificate is invalid",
        0x07 => "not allowed by the guest's policy",
        0x08 => "guest is inactive",
        0x09 => "address is invalid",
        0x0A => "signature does not verify",
        0x0B => "measurement does not match",
        0x0C => "ASID is owned already",
        0x0D => "ASID is invalid",
        0x0E => "WBINVD is required first",
        0x0F => "DF_FLUSH is required first",
        0x10 => "guest handle is invalid",
        0x11 => "command is not known",
        0x12 => "guest is active",
        0x13 => "hardware error that affects the platform but not its buffers",
        0x14 => "hardware error that makes the platform unsafe",
        0x15 => "feature is not supported",
        0x16 => "a parameter is invalid",
        0x17 => "firmware is out of a resource, ask again",
        0x18 => "integrity of secure data does not hold",
        0x19 => "page size is invalid",
        0x1A => "page state is invalid",
        0x1B => "metadata entry is invalid",
        0x1C => "page belongs to another guest",
        0x1D => "message counter would overflow: this guest's channel to the firmware is used up",
        0x1F => "exit ring buffer is full",
        0x20 => "RMP must be initialized again",
        0x21 => "guest SVN is lower than the committed one",
        0x22 => "version is lower than the committed one",
        0x23 => "platform must be shut down first",
        0x24 => "firmware update failed",
        0x25 => "firmware must be restored",
        0x26 => "RMP initialization failed",
        0x27 => "selected key is not available",
        u32::MAX => "firmware was not called",
        _ => "not a known status of the firmware",
    }
}

/// What an error of the VMM means (high half of `exitinfo2`; GHCB, SNP guest request).
#[must_use]
pub const fn vmm_status(status: u32) -> &'static str {
    match status {
        0 => "none",
        1 => "buffer for certificates is too small",
        2 => "host is busy, ask again",
        _ => "not a known error of the VMM",
    }
}

/// What an error of the TSM files means beyond the system's own words, with a leading colon; empty when there is no more to
/// say (`Documentation/ABI/testing/configfs-tsm-report`).
fn kernel_words(error: &std::io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EFBIG) => ": the host's answer is larger than the kernel passes on",
        Some(libc::EINVAL) => {
            ": report data must have 64 bytes and the privilege level be one of this guest's"
        }
        Some(libc::ENXIO) => ": no driver of a TEE is behind the interface",
        Some(libc::EIO) => ": the host's quote service or the firmware gave no answer",
        Some(libc::ETIMEDOUT) => ": the host did not answer in time",
        Some(libc::EBUSY) => ": another request is under way",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_with_words() {
        let refused = AttestError::Status { status: 0x16 }.to_string();
        assert!(refused.contains("0x16") && refused.contains("parameter is invalid"), "{refused}");
        let source = || std::io::Error::from_raw_os_error(libc::EIO);
        let device =
            AttestError::Device { action: "get a report from", firmware: 0x1D, vmm: 2, source: source() };
        let text = device.to_string();
        assert!(text.contains("counter would overflow") && text.contains("busy"), "{text}");
        let source = std::io::Error::from_raw_os_error(libc::EFBIG);
        let tsm = AttestError::Tsm { action: "read", path: "outblob".to_owned(), source }.to_string();
        assert!(tsm.contains("larger than the kernel passes on"), "{tsm}");
    }

    #[test]
    fn every_status_has_words() {
        for status in (0..=0x27).filter(|s| *s != 0x1E) {
            assert!(!firmware_status(status).contains("not a known"), "{status:#x}");
        }
        assert!(firmware_status(0x1E).contains("not a known"));
        assert!(firmware_status(0x1000).contains("not a known"));
    }
}
