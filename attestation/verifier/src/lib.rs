//! Verifies attestation evidence: evidence, what it has to bind, trust anchors and the time go in; a verdict
//! with claims, or a refusal that names claim, seen and expected, comes out. Pure: no files, no network.
//!
//! Covered: `snp` and `tdx` (hardware, AMD's and Intel's built-in roots), `sim-snp` and `sim-tdx` (simulated
//! platforms), through the same code. A simulated root is never built in: without one in [`VerifierConfig`],
//! simulated evidence is refused, and its claims stand under `sim-snp` or `sim-tdx`, never under the hardware's
//! name.
//!
//! What is checked here: chain and signature, versions (report version 2 of SNP by configuration only), VMPL of SNP, event
//! log of TDX, a guest's own log of SNP against its own value (nothing binds it, and its claims say so), report data ([`binding`]), init-data against `HOST_DATA`, `MRCONFIGID` or PCR 8 ([`initdata`]), and whatever
//! [`SnpSettings`] demands. Else whether measurements, policy bits and TCB are *good* is for the attestation policy, which sees
//! them as claims
//! ([`claims`]).
//!
//! Sources: Trustee `deps/verifier/src/{snp,tdx}`, their evidence and claims by name; SNP firmware ABI; Intel's DCAP.
#![forbid(unsafe_code)]

mod azure;
pub mod binding;
pub mod claims;
pub mod initdata;
mod refusal;
mod runtime;
pub mod snp;
mod snp_claims;
pub mod tdx;

use std::sync::Arc;

use kata_cc_kbs_protocol::Tee;
use kata_cc_tdx::{CollateralSource, Expiry};
use kata_cc_x509::{CertError, Certificate};
use serde_json::Value;

pub use initdata::ExpectedInitData;
pub use refusal::{Reason, Refusal};
pub use snp::{SnpConfig, SnpSettings};

/// Most simulated roots of either kind that can be configured.
pub const MAX_SIMULATED_ROOTS: usize = 16;

/// What the verifier trusts and demands.
#[derive(Clone, Debug, Default)]
pub struct VerifierConfig {
    /// Roots of simulated SNP platforms. Empty unless somebody put one there by hand.
    pub simulated_roots: Vec<Certificate>,
    /// Roots of simulated TDX platforms. Empty unless somebody put one there by hand.
    pub simulated_tdx_roots: Vec<Certificate>,
    /// What TDX needs.
    pub tdx: TdxConfig,
    /// Highest VMPL that a report may come from; 0 unless an SVSM is expected.
    pub max_vmpl: u32,
    /// What SNP needs.
    pub snp: SnpConfig,
}

/// What the verifier of TDX needs.
#[derive(Clone, Debug, Default)]
pub struct TdxConfig {
    /// Where collateral is looked up. Without it, no quote of hardware verifies.
    pub collateral: Option<Arc<dyn CollateralSource>>,
    /// What an administrator may set.
    pub settings: TdxSettings,
}

/// The part of [`TdxConfig`] that stands in a configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TdxSettings {
    /// Collateral that has expired does not refuse a quote, but is a claim (`collateral_expiration_status`) for the policy to judge.
    pub allow_expired_collateral: bool,
}

impl TdxSettings {
    fn expiry(&self) -> Expiry {
        if self.allow_expired_collateral { Expiry::Published } else { Expiry::Refused }
    }
}

impl VerifierConfig {
    /// Adds roots of simulated platforms (one as DER, or all of a PEM bundle), at most [`MAX_SIMULATED_ROOTS`] of each kind. Its key tells
    /// of which kind it is, as with the makers' own roots: RSA of SNP, P-256 of TDX.
    ///
    /// # Errors
    /// [`CertError`] when it is no certificate, may not sign others, or is one too many.
    pub fn add_simulated_roots(&mut self, bytes: &[u8]) -> Result<(), CertError> {
        for root in Certificate::all_from_der_or_pem(bytes)? {
            root.check_authority()?;
            let known = match root.p256_public_key() {
                Ok(_) => &mut self.simulated_tdx_roots,
                Err(_) => &mut self.simulated_roots,
            };
            if known.len() >= MAX_SIMULATED_ROOTS {
                return Err(CertError::Bundle { seen: known.len() + 1 });
            }
            known.push(root);
        }
        Ok(())
    }
}

/// One piece of evidence and what it has to bind.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// TEE that it claims to be from.
    pub tee: Tee,
    /// Trustee's JSON form.
    pub evidence: &'a Value,
    /// Digest that the report data has to hold, before padding to 64 bytes. `None`: not checked.
    pub report_data: Option<&'a [u8]>,
    /// Init-data that the guest has to be launched with. `None`: not checked.
    pub init_data: Option<ExpectedInitData<'a>>,
}

/// Verified evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// TEE that vouches for it; `SimSnp` or `SimTdx` exactly when the anchor was a simulated root.
    pub tee: Tee,
    /// Claims as a policy sees them: a member named after the TEE, `report_data`, `init_data`, and
    /// `init_data_claims` when the document was given.
    pub claims: Value,
    /// Launch digest: `MEASUREMENT` of SNP, `MRTD` of TDX.
    pub measurement: Vec<u8>,
    /// What the guest had signed: the whole field, padding included.
    pub report_data: Vec<u8>,
    /// The field where the init-data's digest is: `HOST_DATA` of SNP, `MRCONFIGID` of TDX.
    pub init_data: Vec<u8>,
}

impl Verdict {
    /// The claims under the TEE's name.
    #[must_use]
    pub fn tee_claims(&self) -> &Value {
        self.claims.get(self.tee.name()).unwrap_or(&Value::Null)
    }
}

/// Verifies evidence at `now` (seconds since 1970).
///
/// # Errors
/// [`Refusal`] says what was seen and what was expected.
pub fn verify(config: &VerifierConfig, input: &Evidence<'_>, now: u64) -> Result<Verdict, Refusal> {
    match input.tee {
        Tee::Snp | Tee::SimSnp => snp::verify(config, input, now),
        Tee::AzSnpVtpm | Tee::AzTdxVtpm => azure::verify(config, input, now),
        Tee::Tdx | Tee::SimTdx => tdx::verify(config, input, now),
        tee => Err(Refusal::TeeNotSupported { tee }),
    }
}
