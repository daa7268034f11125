//! Guest side of attestation: which TEE is this, evidence from it, and measurements of what was started since.
//!
//! [`Tee::detect`] tells the simulated TEE by the kernel's command line (which is measured) and a real
//! one by probing for it ([`mod@probe`] tells which ways are there, and why not the others); [`evidence`] asks it for a report
//! that holds 64 bytes of the caller's choice, and gives Trustee's JSON form. [`init_data_field`] reads the measured init-data
//! digest, for the guest's check of its own init-data. [`measure`] keeps the log of what runs.
//!
//! Ways to evidence, in this order: Linux' `configfs` TSM reports ([`tsm`]); the devices `/dev/sev-guest` ([`sev_guest`]) and
//! `/dev/tdx_guest` ([`tdx`], with Intel's quote generation service, [`qgs`]); simulated, one exchange on vsock CID 2 port
//! 1027 ([`sim`], [`sim_tdx`]), where the command line says so. All answers come from outside
//! of the guest's trust until verified: they are read with limits, have a time limit, and a report that does
//! not hold the caller's bytes is refused.
//!
//! Status: the hardware paths are tested against fakes of configfs, ioctls and service that give recorded evidence; not yet run
//! on hardware.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod error;
mod ioctl;
pub mod measure;
pub mod probe;
pub mod qgs;
pub mod quote;
pub mod sev_guest;
pub mod sim;
pub mod sim_tdx;
pub mod tdx;
pub mod tsm;

use std::path::Path;
use std::time::Duration;

pub use error::{AttestError, firmware_status, vmm_status};
pub use probe::probe;

use kata_cc_kbs_protocol::base64_standard;
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::{CertTable, Report};
use measure::{Digest, LogError, RuntimeLog};
use quote::Quote;

/// Evidence in Trustee's form: SNP `{"attestation_report": …, "cert_chain": …}`, TDX `{"quote": …, "cc_eventlog": …}`.
pub type EvidenceJson = serde_json::Value;

/// Parameter of the kernel's command line that names a simulated TEE.
pub const CMDLINE_PARAMETER: &str = "kata_cc.tee";

/// Member of SNP evidence that holds the log of a [`measure::SoftwareRegister`]. Trustee ignores it.
pub const RUNTIME_MEMBER: &str = "runtime_measurements";

/// How long to wait for a report. Generous: in an emulated machine everything takes its time.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// SNP's device, from the root.
pub(crate) const SEV_DEVICE: &str = "dev/sev-guest";

/// Bytes of the caller's choice in the report behind [`init_data_field`].
const SELF_CHECK: &[u8; 64] = b"kata-cc init-data self check: not bound to any nonce nor any key";

/// The TEE that this guest runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tee {
    /// SEV-SNP simulated by the VMM: protects nothing.
    SimSnp,
    /// TDX simulated by the VMM: protects nothing.
    SimTdx,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
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
        match Self::named(cmdline) {
            Some("sim-snp") => return Self::SimSnp,
            Some("sim-tdx") => return Self::SimTdx,
            Some(other) => tracing::warn!(tee = other, "command line names an unknown TEE, probing instead"),
            None => {}
        }
        if root.join(SEV_DEVICE).exists() {
            Self::Snp
        } else if tdx::device(root).exists() {
            Self::Tdx
        } else {
            Self::None
        }
    }

    /// The name that the command line gives.
    pub(crate) fn named(cmdline: &str) -> Option<&str> {
        let words = cmdline.split_ascii_whitespace();
        words.filter_map(|word| word.strip_prefix(CMDLINE_PARAMETER)?.strip_prefix('=')).next_back()
    }

    /// Name in evidence, tokens and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SimSnp => "sim-snp",
            Self::SimTdx => "sim-tdx",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
            Self::None => "none",
        }
    }

    /// The TEE as the key broker's protocol names it.
    #[must_use]
    pub const fn protocol(self) -> Option<kata_cc_kbs_protocol::Tee> {
        match self {
            Self::SimSnp => Some(kata_cc_kbs_protocol::Tee::SimSnp),
            Self::SimTdx => Some(kata_cc_kbs_protocol::Tee::SimTdx),
            Self::Snp => Some(kata_cc_kbs_protocol::Tee::Snp),
            Self::Tdx => Some(kata_cc_kbs_protocol::Tee::Tdx),
            Self::None => None,
        }
    }
}

impl std::fmt::Display for Tee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A report and what the host supplied beside it, as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawReport {
    /// 1184 bytes.
    pub report: Vec<u8>,
    /// Certificate table (GHCB 4.1.8.1), may be empty.
    pub certificates: Vec<u8>,
}

/// The state of a runtime log at the time of an evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSnapshot {
    hardware: bool,
    register: u32,
    value: Digest,
    log: Vec<u8>,
}

impl LogSnapshot {
    /// Takes it.
    ///
    /// # Errors
    /// When the register cannot be read.
    pub fn take(log: &RuntimeLog) -> Result<Self, LogError> {
        let (hardware, register, value) = (log.is_hardware(), log.register(), log.value()?);
        Ok(Self { hardware, register, value, log: log.bytes().to_vec() })
    }
}

/// Evidence that holds `report_data`.
///
/// # Errors
/// [`AttestError`] says which step failed.
pub async fn evidence(tee: Tee, report_data: [u8; 64]) -> Result<EvidenceJson, AttestError> {
    evidence_with(tee, report_data, None).await
}

/// As [`evidence`], with what was measured at run time: in the event log of TDX, in a member of its own
/// ([`RUNTIME_MEMBER`]) where a register is kept in software ([`measure`] says what that proves).
///
/// # Errors
/// [`AttestError`] says which step failed.
pub async fn evidence_with(
    tee: Tee,
    report_data: [u8; 64],
    measured: Option<LogSnapshot>,
) -> Result<EvidenceJson, AttestError> {
    if tee == Tee::Tdx {
        let quote = in_time(tdx_quote(report_data)).await?;
        let log = match measured.filter(|snapshot| snapshot.hardware) {
            Some(snapshot) => Some(snapshot.log),
            None => tdx::firmware_log(Path::new("/")).map_err(|source| AttestError::Tsm {
                action: "read",
                path: format!("/{}", tdx::CCEL),
                source,
            })?,
        };
        return Ok(tdx::evidence_json(&quote, log.as_deref()));
    }
    if tee == Tee::SimTdx {
        let quote = in_time(sim_tdx::quote(&report_data)).await?;
        let log = measured.filter(|snapshot| snapshot.hardware).map(|snapshot| snapshot.log);
        return Ok(quote.evidence_json(log.as_deref()));
    }
    let raw = raw_report(tee, report_data).await?;
    snp_evidence(&raw, &report_data, measured.as_ref())
}

/// SNP evidence from what an interface gave.
///
/// # Errors
/// When the report is none, answers another request, or its certificates are out of form.
pub fn snp_evidence(
    raw: &RawReport,
    report_data: &[u8; 64],
    measured: Option<&LogSnapshot>,
) -> Result<EvidenceJson, AttestError> {
    let report = checked(raw, report_data)?;
    let table = CertTable::parse(&raw.certificates)?;
    let mut evidence = serde_json::to_value(SnpEvidence::new(&report, &table))?;
    if let (Some(members), Some(snapshot)) = (evidence.as_object_mut(), measured) {
        let measured = serde_json::json!({
            "kept_by": "agent",
            "algorithm": "sha384",
            "register": snapshot.register,
            "value": hex::encode(snapshot.value),
            "cc_eventlog": base64_standard(&snapshot.log),
        });
        members.insert(RUNTIME_MEMBER.to_owned(), measured);
    }
    Ok(evidence)
}

/// The field of this guest's launch that holds the digest of its init-data: `HOST_DATA` of SNP (32 bytes), `MRCONFIGID` of
/// TDX (48 bytes).
///
/// # Errors
/// [`AttestError`] says which step failed.
pub async fn init_data_field(tee: Tee) -> Result<Vec<u8>, AttestError> {
    if tee == Tee::Tdx {
        // From the TDX module itself: a quote comes from the host, and nobody has verified it here.
        let report = blocking(|| {
            let device = ioctl::TdxDevice::open(&tdx::device(Path::new("/")))?;
            tdx::td_report(&device, SELF_CHECK)
        });
        return Ok(in_time(report).await?.1.mrconfigid.to_vec());
    }
    if tee == Tee::SimTdx {
        let answer = in_time(sim_tdx::quote(SELF_CHECK)).await?;
        return Ok(Quote::parse(&answer.quote)?.mr_config_id.to_vec());
    }
    let raw = raw_report(tee, *SELF_CHECK).await?;
    Ok(checked(&raw, SELF_CHECK)?.host_data.to_vec())
}

async fn in_time<T>(asked: impl Future<Output = Result<T, AttestError>>) -> Result<T, AttestError> {
    tokio::time::timeout(TIMEOUT, asked).await.map_err(|_| AttestError::Timeout)?
}

/// The kernel's interfaces block while the firmware works.
async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, AttestError> + Send + 'static,
) -> Result<T, AttestError> {
    tokio::task::spawn_blocking(ask).await.map_err(|_| AttestError::Task)?
}

async fn raw_report(tee: Tee, report_data: [u8; 64]) -> Result<RawReport, AttestError> {
    in_time(async {
        match tee {
            Tee::None | Tee::Tdx | Tee::SimTdx => Err(AttestError::NoTee),
            Tee::SimSnp => sim::report(&report_data).await,
            Tee::Snp => blocking(move || snp_report(Path::new("/"), &report_data)).await,
        }
    })
    .await
}

/// Whether an interface is not there at all, so that the next one is the way; anything else is an answer, and final.
const fn is_absent(error: &AttestError) -> bool {
    match error {
        AttestError::Tsm { action, .. } => matches!(action.as_bytes(), b"make"),
        AttestError::Provider { .. } => true,
        _ => false,
    }
}

/// configfs where the kernel has it (6.7 and later, `configfs` mounted), else the device.
fn snp_report(root: &Path, report_data: &[u8; 64]) -> Result<RawReport, AttestError> {
    let mut missing = Vec::new();
    let tsm = root.join(tsm::REPORT_DIR);
    if tsm.is_dir() {
        match tsm::report(&tsm::Configfs::new(tsm), report_data) {
            Err(error) if is_absent(&error) => missing.push(error.to_string()),
            other => return other,
        }
    } else {
        missing.push(format!("there is no /{}", tsm::REPORT_DIR));
    }
    match ioctl::Device::open(&root.join(SEV_DEVICE)) {
        Ok(device) => sev_guest::report(&device, report_data, sev_guest::PAUSE),
        Err(error) => {
            missing.push(error.to_string());
            Err(AttestError::NoInterface { tee: Tee::Snp, missing })
        }
    }
}

/// configfs, else the device's TD report and the quote generation service.
async fn tdx_quote(report_data: [u8; 64]) -> Result<Vec<u8>, AttestError> {
    let root = Path::new("/");
    let mut missing = Vec::new();
    let dir = root.join(tsm::REPORT_DIR);
    if dir.is_dir() {
        let asked = blocking(move || tdx::quote_by_tsm(&tsm::Configfs::new(dir), &report_data)).await;
        match asked {
            Err(error) if is_absent(&error) => missing.push(error.to_string()),
            other => return other,
        }
    } else {
        missing.push(format!("there is no /{}", tsm::REPORT_DIR));
    }
    let Some(port) = tdx::qgs_port(root) else {
        missing.push(format!("/{} names no port of a quote generation service", tdx::QGS_CONFIG));
        return Err(AttestError::NoInterface { tee: Tee::Tdx, missing });
    };
    let report = blocking(move || {
        let device = ioctl::TdxDevice::open(&tdx::device(Path::new("/")))?;
        tdx::td_report(&device, &report_data)
    });
    let (bytes, _) = report.await?;
    tdx::quote_by_qgs(&bytes, &report_data, port).await
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
        std::fs::write(root.path().join("dev/tdx_guest"), b"").expect("file");
        assert_eq!(detect("console=ttyS0"), Tee::Tdx);
        std::fs::write(root.path().join("dev/sev-guest"), b"").expect("file");
        assert_eq!(detect("console=ttyS0"), Tee::Snp);
        assert_eq!(detect("kata_cc.tee=sim-snp"), Tee::SimSnp);
        assert_eq!(detect("kata_cc.tee=sim-tdx"), Tee::SimTdx);
        for tee in [Tee::SimSnp, Tee::SimTdx, Tee::Snp, Tee::Tdx] {
            assert_eq!(tee.protocol().map(kata_cc_kbs_protocol::Tee::name), Some(tee.name()));
        }
    }

    #[tokio::test]
    async fn without_a_tee_there_is_no_evidence() {
        assert!(matches!(evidence(Tee::None, [0; 64]).await, Err(AttestError::NoTee)));
        assert!(matches!(init_data_field(Tee::None).await, Err(AttestError::NoTee)));
    }

    #[test]
    fn without_an_interface_each_has_its_reason() {
        let root = tempfile::tempdir().expect("temporary folder");
        let refused = snp_report(root.path(), &[0; 64]).expect_err("nothing there").to_string();
        assert!(refused.contains("tsm/report") && refused.contains("/dev/sev-guest"), "{refused}");
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
