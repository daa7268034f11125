//! The step from evidence to claims: which verifiers exist, and how a refusal is told.
//!
//! The signature chain, the report data and the init-data are checked here; whether the claims are *good* is the
//! policy's business ([`crate::appraisal`]). Every refusal has a stable [`Reason`], so that whoever reads it can tell a
//! replayed nonce from a report under another root.

use kata_cc_kbs_protocol::Tee;
use serde::Serialize;
use serde_json::Value;

/// Why evidence was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The evidence cannot be parsed.
    Malformed,
    /// No verifier for this TEE.
    TeeNotSupported,
    /// Simulated evidence, but no simulated trust anchor is configured.
    SimulatedNotConfigured,
    /// Sample evidence, but it is not enabled.
    SampleNotEnabled,
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
    /// What the maker publishes about the platform is missing, expired or unusable.
    Collateral,
    /// The report is of a kind that is never accepted (version, VMPL, ...).
    Unacceptable,
    /// The service itself failed.
    Internal,
}

impl Reason {
    /// Stable name, for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TeeNotSupported => "tee-not-supported",
            Self::SimulatedNotConfigured => "simulated-not-configured",
            Self::SampleNotEnabled => "sample-not-enabled",
            Self::UntrustedRoot => "untrusted-root",
            Self::Signature => "signature",
            Self::ReportData => "report-data",
            Self::InitData => "init-data",
            Self::EventLog => "event-log",
            Self::Collateral => "collateral",
            Self::Unacceptable => "unacceptable",
            Self::Internal => "internal",
        }
    }

    /// What to do about it, for whoever runs the guest or the service.
    pub fn what_to_do(self) -> &'static str {
        match self {
            Self::Malformed => {
                "have the guest send its evidence again, whole, in the form of the TEE that it names"
            }
            Self::TeeNotSupported => "use a service that verifies this TEE",
            Self::SimulatedNotConfigured => {
                "configure the root of the simulated platform, for tests only: its evidence proves nothing"
            }
            Self::SampleNotEnabled => "run the guest in a TEE; sample evidence is for trying out clients",
            Self::UntrustedRoot => {
                "hardware's evidence is believed under its maker's roots alone; a simulated platform's root must be configured"
            }
            Self::Signature => {
                "have the host supply the certificates of this chip and firmware, or configure [endorsements]; if they are there, the evidence was changed"
            }
            Self::ReportData => "attest anew: this evidence was made for another nonce or key",
            Self::InitData => {
                "start the guest with the init-data that it sends, or have it send what it was started with"
            }
            Self::EventLog => {
                "have the guest send quote and event log of the same moment: the log is of other measurements, or was changed"
            }
            Self::Collateral => "configure a source of current collateral in [endorsements]",
            Self::Unacceptable => {
                "evidence of this kind is never accepted: see the message for what to change"
            }
            Self::Internal => "look into the service's log",
        }
    }
}

/// A refusal: what was compared, what was seen and what was expected. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Kind.
    pub reason: Reason,
    /// Whole sentence.
    pub message: String,
    /// Claim that differed, if one did.
    pub claim: Option<String>,
    /// Its value.
    pub seen: Option<String>,
    /// What it should have been.
    pub expected: Option<String>,
}

impl Refusal {
    /// A refusal without a claim that differs.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), claim: None, seen: None, expected: None }
    }

    /// A refusal because a claim differs.
    pub fn differs(reason: Reason, claim: &str, seen: String, expected: String, why: &str) -> Self {
        Self {
            reason,
            message: format!("{claim} differs: seen {seen}, expected {expected} ({why})"),
            claim: Some(claim.to_owned()),
            seen: Some(seen),
            expected: Some(expected),
        }
    }
}

/// One piece of evidence and what it must bind.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// What made it.
    pub tee: Tee,
    /// In the TEE's own shape.
    pub evidence: &'a Value,
    /// Hash that its report data must hold (before padding to the field); unchecked when `None`.
    pub report_data: Option<&'a [u8]>,
    /// Digest that its init-data field must hold (before fitting it to the field); unchecked when `None`.
    pub init_data: Option<&'a [u8]>,
}

/// What verified evidence says.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// Claims, for the member named after the TEE.
    pub claims: Value,
    /// Text form of the measured init-data field.
    pub init_data: String,
    /// Text form of the report data.
    pub report_data: String,
}

/// Verifies evidence. Pure: no network, no files.
pub trait EvidenceVerifier: Send + Sync {
    /// Checks `evidence` at `now` (seconds since 1970).
    fn verify(&self, evidence: &Evidence<'_>, now: i64) -> Result<Verified, Refusal>;

    /// Whether sample evidence, which proves nothing, is enabled; it is for devices too.
    fn accepts_samples(&self) -> bool {
        false
    }
}

/// Trustee's sample TEE: evidence that anybody can make up. For trying out clients.
#[derive(Debug, Clone, Copy)]
pub struct SampleVerifier {
    /// Whether it is enabled at all.
    pub enabled: bool,
}

impl EvidenceVerifier for SampleVerifier {
    fn verify(&self, evidence: &Evidence<'_>, _now: i64) -> Result<Verified, Refusal> {
        use kata_cc_kbs_protocol::{base64_standard, from_base64_standard};
        if !self.enabled {
            return Err(Refusal::new(
                Reason::SampleNotEnabled,
                "sample evidence proves nothing and is not enabled ([attestation] allow_sample = true enables it)",
            ));
        }
        let text = |name: &str| evidence.evidence.get(name).and_then(Value::as_str);
        let (Some(svn), Some(report_data)) = (text("svn"), text("report_data")) else {
            return Err(Refusal::new(
                Reason::Malformed,
                "sample evidence needs the texts svn and report_data",
            ));
        };
        let seen = from_base64_standard(report_data).ok_or_else(|| {
            Refusal::new(Reason::Malformed, "report_data of the sample evidence is not base64")
        })?;
        if let Some(expected) = evidence.report_data
            && seen != expected
        {
            let (seen, expected) = (hex::encode(seen), hex::encode(expected));
            let why = "another nonce or key";
            return Err(Refusal::differs(Reason::ReportData, "report_data", seen, expected, why));
        }
        let init_data = base64_standard(evidence.init_data.unwrap_or_default());
        let claims = serde_json::json!({
            "svn": svn, "report_data": report_data, "launch_digest": "abcde",
            "platform_version": {"major": 1, "minor": 4}, "debug": false, "init_data": init_data,
        });
        Ok(Verified { claims, init_data, report_data: report_data.to_owned() })
    }

    fn accepts_samples(&self) -> bool {
        self.enabled
    }
}

/// The verifiers of `kata-cc-verifier`, and the sample one.
#[derive(Debug, Clone)]
pub struct Verifiers {
    /// Trust anchors of the real ones.
    pub config: kata_cc_verifier::VerifierConfig,
    /// Sample evidence.
    pub sample: SampleVerifier,
}

impl From<kata_cc_verifier::Refusal> for Refusal {
    fn from(refusal: kata_cc_verifier::Refusal) -> Self {
        use kata_cc_verifier::Reason as Kind;
        let reason = match refusal.reason() {
            Kind::Malformed => Reason::Malformed,
            Kind::TeeNotSupported => Reason::TeeNotSupported,
            Kind::SimulatedNotConfigured => Reason::SimulatedNotConfigured,
            Kind::UntrustedRoot => Reason::UntrustedRoot,
            Kind::Signature => Reason::Signature,
            Kind::ReportData => Reason::ReportData,
            Kind::InitData => Reason::InitData,
            Kind::EventLog => Reason::EventLog,
            Kind::Collateral => Reason::Collateral,
            Kind::Unacceptable => Reason::Unacceptable,
        };
        Self {
            reason,
            claim: Some(refusal.claim().to_owned()),
            seen: refusal.seen(),
            expected: refusal.expected(),
            message: refusal.to_string(),
        }
    }
}

impl EvidenceVerifier for Verifiers {
    fn verify(&self, evidence: &Evidence<'_>, now: i64) -> Result<Verified, Refusal> {
        if evidence.tee == Tee::Sample {
            return self.sample.verify(evidence, now);
        }
        let input = kata_cc_verifier::Evidence {
            tee: evidence.tee,
            evidence: evidence.evidence,
            report_data: evidence.report_data,
            init_data: evidence.init_data.map(kata_cc_verifier::ExpectedInitData::Digest),
        };
        let verdict = kata_cc_verifier::verify(&self.config, &input, now.unsigned_abs())?;
        // The claims stand under the label that the trust anchor gave, and policies look there: a guest that
        // called itself something else must not appear under that name.
        if verdict.tee != evidence.tee {
            return Err(Refusal::differs(
                Reason::UntrustedRoot,
                "tee",
                verdict.tee.to_string(),
                evidence.tee.to_string(),
                "the evidence is of another kind than the request said",
            ));
        }
        let text = |name: &str| verdict.claims.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        Ok(Verified {
            claims: verdict.tee_claims().clone(),
            init_data: text("init_data"),
            report_data: text("report_data"),
        })
    }

    fn accepts_samples(&self) -> bool {
        self.sample.enabled
    }
}
