//! Intel TDX: `tdx` under Intel's built-in root, `sim-tdx` under a configured one, by the same code.
//!
//! Evidence is Trustee's: `{"quote": b64, "cc_eventlog": b64 | null}`. Checked are the quote (DCAP), report data,
//! init-data against `MRCONFIGID`, and, when there is an event log, that it leads to the quote's RTMRs. What is not:
//! whether measurements, attributes and the TCB status are *good*. That is for the attestation policy.
//!
//! Collateral is looked up ([`crate::TdxConfig`]), never fetched. A simulated platform may bring its own, as the
//! member `collateral` (a bundle): its signatures lead to the configured root as all others do. With hardware that
//! member is not looked at: old collateral must be nobody's choice but the operator's.
//!
//! Source: Trustee `deps/verifier/src/tdx`.

use std::sync::Arc;

use kata_cc_kbs_protocol::{Tee, from_base64_standard};
use kata_cc_tdx::{
    AnchorKind, Collateral, CollateralKey, EventLog, Options, Quote, TrustAnchor, TrustedCollateral,
    Verified, VerifyError, claims,
};
use kata_cc_x509::Certificate;
use serde::Deserialize;
use serde_json::Value;

use crate::{Evidence, Reason, Refusal, Verdict, VerifierConfig, binding};

/// Evidence as Trustee's `tdx` attester sends it.
#[derive(Debug, Deserialize)]
struct TdxEvidence {
    quote: String,
    #[serde(default)]
    cc_eventlog: Option<String>,
    /// Only of simulated platforms.
    #[serde(default)]
    collateral: Option<Value>,
}

impl TdxEvidence {
    fn parse(evidence: &Value) -> Result<Self, Refusal> {
        Self::deserialize(evidence).map_err(|error| Refusal::Malformed { what: error.to_string() })
    }

    fn quote(&self) -> Result<Vec<u8>, Refusal> {
        decode("quote", &self.quote)
    }

    fn event_log(&self) -> Result<Option<EventLog>, Refusal> {
        match self.cc_eventlog.as_deref() {
            None | Some("") => Ok(None),
            Some(text) => Ok(Some(EventLog::parse(&decode("cc_eventlog", text)?)?)),
        }
    }
}

fn decode(member: &str, text: &str) -> Result<Vec<u8>, Refusal> {
    from_base64_standard(text).ok_or_else(|| Refusal::Malformed { what: format!("{member} is not base64") })
}

/// What collateral evidence needs, so that it can be fetched before [`crate::verify()`]. Nothing is verified.
///
/// # Errors
/// [`Refusal`] when the evidence or its quote cannot be read.
pub fn collateral_key(evidence: &Value) -> Result<CollateralKey, Refusal> {
    key_of(&TdxEvidence::parse(evidence)?.quote()?)
}

fn key_of(quote: &[u8]) -> Result<CollateralKey, Refusal> {
    let quote = Quote::parse(quote, Options::at(0).trailing).map_err(VerifyError::Quote)?;
    Ok(CollateralKey::of(&quote)?)
}

pub(crate) fn verify(config: &VerifierConfig, input: &Evidence<'_>, now: u64) -> Result<Verdict, Refusal> {
    if input.tee == Tee::SimTdx && config.simulated_tdx_roots.is_empty() {
        return Err(Refusal::SimulatedNotConfigured { tee: input.tee });
    }
    let evidence = TdxEvidence::parse(input.evidence)?;
    let quote = evidence.quote()?;
    let verified = match input.tee {
        Tee::SimTdx => verify_simulated(config, &quote, evidence.collateral.as_ref(), now)?,
        _ => verify_quote(config, &quote, now)?,
    };
    let body = &verified.quote.body;
    if let Some(expected) = input.report_data {
        binding::check_report_data(&body.report_data, expected)?;
    }
    let init_data_claims = match &input.init_data {
        Some(expected) => expected.check("MRCONFIGID", &body.mr_config_id)?,
        None => None,
    };
    let log = evidence.event_log()?;
    if let Some(log) = &log {
        log.check(&body.rtmr)??;
    }
    // The label follows the anchor, not what the guest called itself.
    let tee = match verified.anchor {
        AnchorKind::Intel => Tee::Tdx,
        AnchorKind::Simulated => Tee::SimTdx,
    };
    Ok(Verdict {
        tee,
        claims: crate::claims::annotated(
            tee,
            claims::tee_claims(&verified, log.as_ref()),
            &body.report_data,
            &body.mr_config_id,
            init_data_claims,
        ),
        measurement: body.mr_td.to_vec(),
        report_data: body.report_data.to_vec(),
        init_data: body.mr_config_id.to_vec(),
    })
}

fn find(config: &VerifierConfig, key: &CollateralKey) -> Result<Arc<Collateral>, Refusal> {
    let source = config.tdx.collateral.as_ref();
    source.and_then(|source| source.find(key)).ok_or(Refusal::CollateralMissing { key: *key })
}

/// Verifies a quote of hardware: under Intel's root, with collateral that the configuration knows.
///
/// # Errors
/// [`Refusal`] says what was seen and what was expected.
pub fn verify_quote(config: &VerifierConfig, quote: &[u8], now: u64) -> Result<Verified, Refusal> {
    let collateral = find(config, &key_of(quote)?)?;
    under(config, &collateral, &TrustAnchor::Intel, quote, now)
}

fn under(
    config: &VerifierConfig,
    collateral: &Collateral,
    anchor: &TrustAnchor,
    quote: &[u8],
    now: u64,
) -> Result<Verified, Refusal> {
    let trusted = TrustedCollateral::new(collateral, anchor)?;
    let options = Options { expiry: config.tdx.settings.expiry(), ..Options::at(now) };
    Ok(kata_cc_tdx::verify(quote, &trusted, &options)?)
}

/// Tries each configured root. The refusal reported is that of the root that came furthest: any but a wrong root, if
/// there is one, as it is the one that helps.
fn verify_simulated(
    config: &VerifierConfig,
    quote: &[u8],
    own: Option<&Value>,
    now: u64,
) -> Result<Verified, Refusal> {
    let collateral = match own {
        Some(bundle) => Arc::new(Collateral::from_value(bundle).map_err(VerifyError::Collateral)?),
        None => find(config, &key_of(quote)?)?,
    };
    let mut refused = Refusal::SimulatedNotConfigured { tee: Tee::SimTdx };
    for root in &config.simulated_tdx_roots {
        match under(config, &collateral, &simulated(root), quote, now) {
            Ok(verified) => return Ok(verified),
            Err(error) => {
                if !matches!(refused.reason(), Reason::UntrustedRoot | Reason::SimulatedNotConfigured) {
                    continue;
                }
                refused = error;
            }
        }
    }
    Err(refused)
}

fn simulated(root: &Certificate) -> TrustAnchor {
    TrustAnchor::Simulated(Box::new(root.clone()))
}
