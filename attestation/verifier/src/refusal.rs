//! Why evidence was refused: typed, with claim, seen and expected where values were compared.
//!
//! Everything in a refusal may be shown to the guest and logged; nothing in it is secret.

use kata_cc_azure_vtpm::VtpmError;
use kata_cc_kbs_protocol::Tee;
use kata_cc_kbs_protocol::initdata::InitDataError;
use kata_cc_snp::VerifyError;
use kata_cc_snp::verify::{Blame, Role};
use kata_cc_tdx::{CollateralKey, EventLogError, ReplayError};
use kata_cc_x509::ChainError;

use crate::azure;

/// TEEs that have a verifier here.
const SUPPORTED: &str = "snp, tdx, az-snp-vtpm, az-tdx-vtpm, sim-snp and sim-tdx";

/// Kinds of refusal with stable names, for logs, metrics and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The evidence cannot be parsed.
    Malformed,
    /// No verifier for this TEE.
    TeeNotSupported,
    /// Simulated evidence, but no simulated root is configured.
    SimulatedNotConfigured,
    /// Signed under a root that is not trusted.
    UntrustedRoot,
    /// A certificate or the signature over the evidence is wrong.
    Signature,
    /// The report data is not the hash of this nonce and key.
    ReportData,
    /// The init-data is not what the guest was launched with.
    InitData,
    /// The event log does not lead to the measured registers.
    EventLog,
    /// What the maker publishes about the platform is missing, expired or unusable: for the operator to mend.
    Collateral,
    /// A kind of report that is never accepted.
    Unacceptable,
}

impl Reason {
    /// Stable name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TeeNotSupported => "tee-not-supported",
            Self::SimulatedNotConfigured => "simulated-not-configured",
            Self::UntrustedRoot => "untrusted-root",
            Self::Signature => "signature",
            Self::ReportData => "report-data",
            Self::InitData => "init-data",
            Self::EventLog => "event-log",
            Self::Collateral => "collateral",
            Self::Unacceptable => "unacceptable",
        }
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Evidence of a TEE that has no verifier here.
    #[error("no verifier for evidence of '{tee}', there are those for {SUPPORTED}")]
    TeeNotSupported {
        /// TEE named.
        tee: Tee,
    },
    /// Simulated evidence where only hardware is trusted.
    #[error(
        "simulated evidence but no simulated root configured: {tee} protects nothing, configure the root of the simulated platform only for tests"
    )]
    SimulatedNotConfigured {
        /// TEE named.
        tee: Tee,
    },
    /// Not evidence in Trustee's form.
    #[error("evidence is malformed: {what}")]
    Malformed {
        /// What the parser says.
        what: String,
    },
    /// Version 2 reports do not name their processor and are no longer accepted.
    #[error("report version is {seen}, expected 3 to 5: update the platform's SNP firmware")]
    ReportVersion {
        /// Version seen.
        seen: u32,
    },
    /// No root is known for the processor.
    #[error("report names processor family/model {seen}, expected one of Milan, Genoa or Turin")]
    UnknownProduct {
        /// Family and model seen.
        seen: String,
    },
    /// Chain, signature or their binding.
    #[error(transparent)]
    Snp(VerifyError),
    /// What came through a vTPM does not hold together.
    #[error(transparent)]
    Vtpm(#[from] VtpmError),
    /// The field takes the digest as it is, so it has to be of its length.
    #[error(
        "init-data has a digest of {seen} bytes, {field} holds one of 32: give init-data whose algorithm is sha256"
    )]
    InitDataAlgorithm {
        /// The TEE's name of the field.
        field: &'static str,
        /// Bytes of the digest.
        seen: usize,
    },
    /// Quote, collateral or their binding.
    #[error(transparent)]
    Tdx(#[from] kata_cc_tdx::VerifyError),
    /// Nobody has fetched the collateral of this kind of platform.
    #[error("no collateral for {key}: fetch it, or give it as files")]
    CollateralMissing {
        /// What is needed.
        key: CollateralKey,
    },
    /// The event log cannot be read.
    #[error(transparent)]
    EventLog(#[from] EventLogError),
    /// The event log is that of other measurements.
    #[error("{0}: the event log was changed, or is of another guest")]
    Replay(#[from] ReplayError),
    /// What an SNP guest's agent recorded is not what it says that it leads to.
    #[error(
        "runtime_measurements has the value {seen}, its event log leads to {expected}: the log was edited, cut or mixed up on its way"
    )]
    RuntimeMeasurements {
        /// Hex of the value beside the log.
        seen: String,
        /// Hex of what the log leads to.
        expected: String,
    },
    /// The report was asked for from a less trusted level of the guest.
    #[error("report comes from VMPL {seen}, expected at most {expected}")]
    Vmpl {
        /// Level seen.
        seen: u32,
        /// Highest level accepted.
        expected: u32,
    },
    /// Verified, but not as the configuration demands.
    #[error("report is not as demanded: {}", listed(.differences))]
    Requirements {
        /// All differences, never empty.
        differences: Vec<kata_cc_snp::Difference>,
    },
    /// Another nonce or key than this exchange's.
    #[error("report data is {seen}, expected {expected}: the evidence was made for another nonce or key")]
    ReportData {
        /// Hex of the field.
        seen: String,
        /// Hex of what it should be.
        expected: String,
    },
    /// The guest was launched with other init-data.
    #[error("{field} is {seen}, expected {expected}: the guest was launched with other init-data")]
    InitData {
        /// The TEE's name of the field.
        field: &'static str,
        /// Hex of the field.
        seen: String,
        /// Hex of what it should be.
        expected: String,
    },
    /// The init-data document is not one.
    #[error("init-data cannot be read: {0}")]
    InitDataDocument(#[from] InitDataError),
}

impl From<VerifyError> for Refusal {
    fn from(error: VerifyError) -> Self {
        Self::Snp(error)
    }
}

impl Refusal {
    /// The kind.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::TeeNotSupported { .. } => Reason::TeeNotSupported,
            Self::SimulatedNotConfigured { .. } => Reason::SimulatedNotConfigured,
            Self::Malformed { .. } | Self::EventLog(_) => Reason::Malformed,
            Self::Replay(_) | Self::RuntimeMeasurements { .. } => Reason::EventLog,
            Self::CollateralMissing { .. } => Reason::Collateral,
            Self::Tdx(error) => tdx_reason(error),
            Self::Vtpm(error) => azure::reason(error),
            Self::ReportVersion { .. }
            | Self::UnknownProduct { .. }
            | Self::Vmpl { .. }
            | Self::Requirements { .. } => Reason::Unacceptable,
            Self::Snp(error) => snp_reason(error),
            Self::ReportData { .. } => Reason::ReportData,
            Self::InitData { .. } | Self::InitDataDocument(_) | Self::InitDataAlgorithm { .. } => {
                Reason::InitData
            }
        }
    }

    /// Name of the claim that was compared.
    #[must_use]
    pub fn claim(&self) -> &'static str {
        match self {
            Self::TeeNotSupported { .. } | Self::SimulatedNotConfigured { .. } => "tee",
            Self::CollateralMissing { .. } => "collateral",
            Self::EventLog(_) | Self::Replay(_) => "uefi_event_logs",
            Self::RuntimeMeasurements { .. } => "runtime_measurements",
            Self::Tdx(error) => tdx_claim(error),
            Self::Malformed { .. } => "evidence",
            Self::ReportVersion { .. } => "version",
            Self::UnknownProduct { .. } => "cpuid",
            Self::Vmpl { .. } => "vmpl",
            Self::Requirements { differences } => {
                differences.first().map_or("attestation_report", |difference| difference.claim)
            }
            Self::ReportData { .. } => "report_data",
            Self::InitData { .. } | Self::InitDataDocument(_) | Self::InitDataAlgorithm { .. } => "init_data",
            Self::Vtpm(error) => azure::claim(error),
            Self::Snp(error) => match error {
                VerifyError::Report(_) => "attestation_report",
                VerifyError::Unsigned | VerifyError::SigningKey { .. } => "key_info",
                VerifyError::SignatureAlgorithm { .. } => "sig_algo",
                VerifyError::Signature { .. } => "signature",
                VerifyError::Product { .. } => "cpuid",
                VerifyError::Tcb { .. } => "reported_tcb",
                VerifyError::ChipId { .. } => "chip_id",
                VerifyError::NotCommitted { .. } => "committed_tcb",
                _ => "cert_chain",
            },
        }
    }

    /// What was seen, where values were compared.
    #[must_use]
    pub fn seen(&self) -> Option<String> {
        self.compared().map(|(seen, _)| seen)
    }

    /// What was expected, where values were compared.
    #[must_use]
    pub fn expected(&self) -> Option<String> {
        self.compared().map(|(_, expected)| expected)
    }

    fn compared(&self) -> Option<(String, String)> {
        Some(match self {
            Self::TeeNotSupported { tee } => (tee.to_string(), SUPPORTED.to_owned()),
            Self::SimulatedNotConfigured { tee } => {
                (tee.to_string(), tee.name().trim_start_matches("sim-").to_owned())
            }
            Self::Replay(error) => (hex::encode(error.seen), hex::encode(error.expected)),
            Self::CollateralMissing { .. } | Self::EventLog(_) => return None,
            Self::Tdx(error) => return error.compared(),
            Self::ReportVersion { seen } => (seen.to_string(), "3 to 5".to_owned()),
            Self::UnknownProduct { seen } => (seen.clone(), "Milan, Genoa or Turin".to_owned()),
            Self::Vmpl { seen, expected } => (seen.to_string(), format!("at most {expected}")),
            Self::ReportData { seen, expected }
            | Self::RuntimeMeasurements { seen, expected }
            | Self::InitData { seen, expected, .. } => (seen.clone(), expected.clone()),
            Self::InitDataAlgorithm { seen, .. } => (format!("{seen} bytes"), "32 bytes".to_owned()),
            Self::Vtpm(error) => return azure::compared(error),
            Self::Requirements { differences } => {
                let first = differences.first()?;
                (first.seen.clone(), first.expected.clone())
            }
            Self::Malformed { .. } | Self::InitDataDocument(_) => return None,
            Self::Snp(error) => match error {
                VerifyError::Chain(error) => return error.compared(),
                VerifyError::ChipId { seen, expected } => (seen.clone(), expected.clone()),
                VerifyError::Product { seen, expected } => (seen.clone(), (*expected).to_owned()),
                VerifyError::NotCommitted { current, committed, .. } => {
                    (current.clone(), format!("at least {committed}"))
                }
                VerifyError::Tcb { seen, expected } => (seen.to_string(), expected.to_string()),
                VerifyError::SigningKey { seen, expected } => (format!("{seen:?}"), expected.to_string()),
                VerifyError::SignatureAlgorithm { seen } => (seen.to_string(), "1".to_owned()),
                _ => return None,
            },
        })
    }
}

fn listed(differences: &[kata_cc_snp::Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A chain that ends elsewhere is told from one that is broken or a report that was changed.
const fn snp_reason(error: &VerifyError) -> Reason {
    match error {
        VerifyError::Chain(
            ChainError::Root { .. }
            | ChainError::Issuer { role: Role::Ark | Role::Ask, .. }
            | ChainError::Signature { role: Role::Ark | Role::Ask, .. },
        ) => Reason::UntrustedRoot,
        VerifyError::Report(_) => Reason::Malformed,
        _ => match error.blame() {
            Blame::Report => Reason::Unacceptable,
            Blame::Endorsements | Blame::Binding => Reason::Signature,
        },
    }
}

const fn tdx_reason(error: &kata_cc_tdx::VerifyError) -> Reason {
    match error.blame() {
        kata_cc_tdx::Blame::Quote => Reason::Malformed,
        kata_cc_tdx::Blame::Root => Reason::UntrustedRoot,
        kata_cc_tdx::Blame::Signature => Reason::Signature,
        kata_cc_tdx::Blame::Collateral => Reason::Collateral,
        kata_cc_tdx::Blame::Platform => Reason::Unacceptable,
    }
}

const fn tdx_claim(error: &kata_cc_tdx::VerifyError) -> &'static str {
    use kata_cc_tdx::VerifyError as Error;
    match error {
        Error::Quote(_) => "quote",
        Error::QuoteSignature | Error::QeReportSignature | Error::QeBinding { .. } => "signature",
        Error::OtherPlatform { .. } => "fmspc",
        Error::NoTcbLevel { .. } | Error::TcbRevoked { .. } | Error::Identity { .. } => "tcb_status",
        Error::Expired { .. } | Error::NotYetValid { .. } => "collateral_expiration_status",
        Error::Collateral(_)
        | Error::Crl { .. }
        | Error::CrlIssuer { .. }
        | Error::CollateralSignature { .. }
        | Error::CollateralKind { .. } => "collateral",
        _ => "cert_chain",
    }
}
