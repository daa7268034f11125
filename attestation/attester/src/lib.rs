//! Guest side of attestation: which TEE is this, and evidence from it.
//!
//! [`Tee::detect`] tells the simulated TEE by the kernel's command line (which is measured) and a real
//! one by probing for it; [`evidence`] asks it for a report that holds 64 bytes of the caller's choice, and
//! gives Trustee's JSON form. [`report_host_data`] reads the measured init-data digest, for the guest's
//! check of its own init-data.
//!
//! Ways to a report: simulated, one exchange on vsock CID 2 port 1027 ([`sim`]); hardware, Linux'
//! `configfs` TSM reports ([`tsm`]), else `/dev/sev-guest` ([`sev_guest`]). All answers come from outside
//! of the guest's trust until verified: they are read with limits, have a time limit, and a report that does
//! not hold the caller's bytes is refused.
//!
//! Status: the hardware paths are tested against fakes of configfs and of the ioctl; not yet run on
//! hardware.
#![deny(unsafe_code)]

mod ioctl;
pub mod sev_guest;
pub mod sim;
pub mod tsm;

use std::path::Path;
use std::time::Duration;

use kata_cc_snp::cert_table::CertTableError;
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::{CertTable, Report, ReportError};

/// Evidence in Trustee's form: `{"attestation_report": …, "cert_chain": …}`.
pub type EvidenceJson = serde_json::Value;

/// Parameter of the kernel's command line that names a simulated TEE.
pub const CMDLINE_PARAMETER: &str = "kata_cc.tee";

/// How long to wait for a report. Generous: in an emulated machine everything takes its time.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of the caller's choice in the report behind [`report_host_data`].
const SELF_CHECK: &[u8; 64] = b"kata-cc init-data self check: not bound to any nonce nor any key";

/// The TEE that this guest runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tee {
    /// SEV-SNP simulated by the VMM: protects nothing.
    SimSnp,
    /// AMD SEV-SNP.
    Snp,
    /// None: nothing can be attested.
    None,
}

impl Tee {
    /// Finds out. `cmdline` is the text of `/proc/cmdline`.
    #[must_use]
    pub fn detect(cmdline: &str) -> Self {
        Self::detect_in(cmdline, Path::new("/"))
    }

    /// As [`Self::detect`], with `/dev` and `/sys` under `root`.
    #[must_use]
    pub fn detect_in(cmdline: &str, root: &Path) -> Self {
        let named = cmdline
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix(CMDLINE_PARAMETER)?.strip_prefix('='))
            .next_back();
        match named {
            Some("sim-snp") => return Self::SimSnp,
            Some(other) => tracing::warn!(tee = other, "command line names an unknown TEE, probing instead"),
            None => {}
        }
        if root.join("dev/sev-guest").exists() { Self::Snp } else { Self::None }
    }

    /// Name in evidence, tokens and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SimSnp => "sim-snp",
            Self::Snp => "snp",
            Self::None => "none",
        }
    }

    /// The TEE as the key broker's protocol names it.
    #[must_use]
    pub const fn protocol(self) -> Option<kata_cc_kbs_protocol::Tee> {
        match self {
            Self::SimSnp => Some(kata_cc_kbs_protocol::Tee::SimSnp),
            Self::Snp => Some(kata_cc_kbs_protocol::Tee::Snp),
            Self::None => None,
        }
    }
}

impl std::fmt::Display for Tee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// No evidence can be had.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The guest does not run in a TEE.
    #[error("this guest runs in no TEE: there is nothing to attest")]
    NoTee,
    /// The simulated security processor cannot be reached or broke off.
    #[error("cannot {action} the simulated security processor on vsock port {}: {source}", sim::PORT)]
    Sim {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The security processor refused the request.
    #[error("security processor refused the request with status {status:#x} (0x16 is an invalid parameter)")]
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
    #[error("cannot {action} {path}: {source}")]
    Tsm {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The TSM interface belongs to another TEE.
    #[error("TSM reports come from '{seen}', expected 'sev_guest'")]
    Provider {
        /// Provider named.
        seen: String,
    },
    /// Somebody else kept changing our request.
    #[error("TSM report was changed by another writer {attempts} times in a row")]
    Raced {
        /// How often it was tried.
        attempts: u32,
    },
    /// `/dev/sev-guest` failed.
    #[error("cannot {action} /dev/sev-guest (firmware error {firmware:#x}, VMM error {vmm}): {source}")]
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
    /// The evidence cannot be written as JSON.
    #[error("cannot write the evidence: {0}")]
    Json(#[from] serde_json::Error),
}

/// A report and what the host supplied beside it, as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawReport {
    /// 1184 bytes.
    pub report: Vec<u8>,
    /// Certificate table (GHCB 4.1.8.1), may be empty.
    pub certificates: Vec<u8>,
}

/// Evidence that holds `report_data`.
///
/// # Errors
/// [`AttestError`] says which step failed.
pub async fn evidence(tee: Tee, report_data: [u8; 64]) -> Result<EvidenceJson, AttestError> {
    let raw = raw_report(tee, report_data).await?;
    let report = checked(&raw, &report_data)?;
    let table = CertTable::parse(&raw.certificates)?;
    Ok(serde_json::to_value(SnpEvidence::new(&report, &table))?)
}

/// `HOST_DATA` of this guest's launch: where the digest of its init-data is.
///
/// # Errors
/// [`AttestError`] says which step failed.
pub async fn report_host_data(tee: Tee) -> Result<[u8; 32], AttestError> {
    let raw = raw_report(tee, *SELF_CHECK).await?;
    Ok(checked(&raw, SELF_CHECK)?.host_data)
}

async fn raw_report(tee: Tee, report_data: [u8; 64]) -> Result<RawReport, AttestError> {
    let asked = async {
        match tee {
            Tee::None => Err(AttestError::NoTee),
            Tee::SimSnp => sim::report(&report_data).await,
            // The kernel's interfaces block while the firmware works.
            Tee::Snp => tokio::task::spawn_blocking(move || hardware_report(Path::new("/"), &report_data))
                .await
                .map_err(|_| AttestError::Task)?,
        }
    };
    tokio::time::timeout(TIMEOUT, asked).await.map_err(|_| AttestError::Timeout)?
}

/// configfs where the kernel has it (6.7 and later, `configfs` mounted), else the device.
fn hardware_report(root: &Path, report_data: &[u8; 64]) -> Result<RawReport, AttestError> {
    let tsm = root.join(tsm::REPORT_DIR);
    if tsm.is_dir() {
        return tsm::report(&tsm::Configfs::new(tsm), report_data);
    }
    sev_guest::report(&ioctl::Device::open()?, report_data)
}

/// Parses a report and makes sure that it answers our request.
fn checked(raw: &RawReport, report_data: &[u8; 64]) -> Result<Report, AttestError> {
    let report = Report::parse(&raw.report)?;
    if report.report_data != *report_data {
        return Err(AttestError::OtherReport);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tee_comes_from_the_command_line_or_from_probing() {
        let root = tempfile::tempdir().expect("temporary folder");
        let detect = |cmdline: &str| Tee::detect_in(cmdline, root.path());
        assert_eq!(detect("console=ttyS0 kata_cc.tee=sim-snp quiet"), Tee::SimSnp);
        assert_eq!(detect("console=ttyS0"), Tee::None);
        assert_eq!(detect("kata_cc.tee=other xkata_cc.tee=sim-snp"), Tee::None);
        std::fs::create_dir(root.path().join("dev")).expect("folder");
        std::fs::write(root.path().join("dev/sev-guest"), b"").expect("file");
        assert_eq!(detect("console=ttyS0"), Tee::Snp);
        assert_eq!(detect("kata_cc.tee=sim-snp"), Tee::SimSnp);
        assert_eq!(Tee::SimSnp.protocol().map(kata_cc_kbs_protocol::Tee::name), Some(Tee::SimSnp.name()));
        assert_eq!(Tee::Snp.protocol().map(kata_cc_kbs_protocol::Tee::name), Some(Tee::Snp.name()));
    }

    #[tokio::test]
    async fn without_a_tee_there_is_no_evidence() {
        assert!(matches!(evidence(Tee::None, [0; 64]).await, Err(AttestError::NoTee)));
        assert!(matches!(report_host_data(Tee::None).await, Err(AttestError::NoTee)));
    }

    #[test]
    fn a_report_for_another_request_is_refused() {
        let mut report = vec![0; 1184];
        report[0] = 2;
        let raw = RawReport { report, certificates: Vec::new() };
        assert!(checked(&raw, &[0; 64]).is_ok());
        assert!(matches!(checked(&raw, &[1; 64]), Err(AttestError::OtherReport)));
    }
}
