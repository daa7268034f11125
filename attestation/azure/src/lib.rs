//! Evidence of confidential guests on Azure, whose reports come through a virtual TPM: parse, verify. Pure.
//!
//! There the guest does not ask its processor for a report. Firmware at the most privileged level (the host
//! compatibility layer, HCL) did so once when the guest started, and keeps the report in the vTPM that it runs. The report
//! binds, by hash, a JSON text (the *variable data*) with the public key that this vTPM signs quotes with. A quote
//! then binds the nonce of an exchange and the 24 PCRs. So the chain is:
//!
//! ```text
//! processor's key ─signs─▶ SNP report or TDX quote ─report data[0..32] = SHA-256─▶ variable data
//!   ─names─▶ attestation key (HCLAkPub) ─signs─▶ TPM quote ─▶ nonce, digest over the PCRs ─▶ PCR values
//! ```
//!
//! Here are all links but the first; that one is of `kata-cc-snp` and `kata-cc-tdx`, and `kata-cc-verifier` puts both together.
//!
//! Parts: [`hcl`] (the HCL report and the variable data), [`quote`] (TPM quotes), [`evidence`] (the JSON forms that
//! Trustee's `az-snp-vtpm` and `az-tdx-vtpm` attesters send), [`pcr`] (PCR values and the rule for init-data).
//!
//! Sources: TPM 2.0 Library part 2 (structures); Trustee and guest-components (evidence); recorded evidence.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod evidence;
pub mod hcl;
pub mod pcr;
pub mod quote;

pub use evidence::{AzureEvidence, EvidenceError, HardwareEvidence};
pub use hcl::{AttestationKey, Hardware, HclError, HclReport, VariableData};
pub use pcr::{INIT_DATA_PCR, PCR_COUNT, Pcrs};
pub use quote::{Attest, QuoteError, TpmQuote};

/// Why what came through a vTPM is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VtpmError {
    /// Not evidence in Trustee's form.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// The HCL report.
    #[error(transparent)]
    Hcl(#[from] HclError),
    /// The TPM quote.
    #[error(transparent)]
    Quote(#[from] QuoteError),
}

/// Evidence whose links from the variable data on were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtpm {
    /// The HCL report; its hardware report is not verified here.
    pub hcl: HclReport,
    /// What the variable data says.
    pub variable: VariableData,
    /// What the vTPM signed.
    pub attest: Attest,
    /// PCR values, which the quote covers.
    pub pcrs: Pcrs,
}

impl Vtpm {
    /// Checks the vTPM's part of evidence: the HCL report is of the hardware asked for, and the key in its variable data signed
    /// the quote, which covers all 24 PCRs. The caller has to verify the hardware's report, and to compare
    /// its report data ([`HclReport::check_report_data`]), before any of this means something.
    ///
    /// # Errors
    /// [`VtpmError`] names the link that broke.
    pub fn check(evidence: &AzureEvidence) -> Result<Self, VtpmError> {
        let hcl = HclReport::parse(&evidence.hcl_report)?;
        hcl.check_hardware(evidence.hardware.kind())?;
        let variable = VariableData::parse(hcl.variable_data())?;
        let attest = evidence.quote.verify(&variable.attestation_key)?;
        Ok(Self { hcl, variable, attest, pcrs: evidence.quote.pcrs.clone() })
    }
}
