//! Between evidence and the pure verifiers: [`Endorser::complete`] fetches what evidence lacks, before the verification;
//! during it the verifiers look up what is there, without waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kata_cc_kbs_protocol::{Tee, from_base64_standard};
use kata_cc_snp::certs::Certificate;
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::verify::{Product, VekKind};
use kata_cc_snp::{EndorsementSource, Report, SigningKey, Supply};
use kata_cc_tdx::{CollateralKey, CollateralSource, Quote, Trailing};
use serde::Deserialize as _;
use serde_json::Value;
use tracing::debug;

use crate::endorser::{Collateral, Endorser, SnpNeed, vek_item};
use crate::item::{IntelTee, Item};
use crate::source::SourceError;

/// Most platforms whose collateral is kept taken apart; a site has few kinds of them.
const MAX_PARSED: usize = 64;

impl Endorser {
    /// Fetches what a piece of evidence lacks for its verification. What cannot be had is no error here: the verifier
    /// says what is missing, and the problems returned say why.
    ///
    /// Evidence that cannot be read has no needs; the verifier refuses it.
    pub async fn complete(&self, tee: Tee, evidence: &Value) -> Vec<SourceError> {
        let problems = match tee {
            Tee::Snp => self.complete_snp(evidence).await,
            Tee::Tdx => self.complete_tdx(evidence).await,
            _ => Vec::new(),
        };
        for problem in &problems {
            debug!(%tee, %problem, "endorsement cannot be had");
        }
        problems
    }

    async fn complete_snp(&self, evidence: &Value) -> Vec<SourceError> {
        let Ok(evidence) = SnpEvidence::deserialize(evidence) else { return Vec::new() };
        let Ok(report) = evidence.attestation_report.to_report() else { return Vec::new() };
        let given = evidence.endorsements();
        let need = SnpNeed {
            report: &report,
            product: Product::of(&report, Certificate::from_der_or_pem(&given.vek).ok().as_ref()),
            has_vek: !given.vek.is_empty(),
            has_ask: given.ask.is_some(),
        };
        self.snp(&need).await.problems
    }

    async fn complete_tdx(&self, evidence: &Value) -> Vec<SourceError> {
        let quote = evidence.get("quote").and_then(Value::as_str).and_then(from_base64_standard);
        // Padding after a quote is the verifier's concern.
        let quote = quote.and_then(|bytes| Quote::parse(&bytes, Trailing::Zeros).ok());
        let Some(key) = quote.and_then(|quote| CollateralKey::of(&quote).ok()) else { return Vec::new() };
        self.collateral(IntelTee::Tdx, key.fmspc, key.ca).await.err().into_iter().collect()
    }

    /// All collateral of a platform that is in memory.
    fn collateral_in_memory(&self, key: &CollateralKey) -> Option<Collateral> {
        let tee = IntelTee::Tdx;
        Some(Collateral {
            tcb_info: self.in_memory(&Item::TcbInfo { tee, fmspc: key.fmspc })?,
            qe_identity: self.in_memory(&Item::QeIdentity { tee })?,
            pck_crl: self.in_memory(&Item::PckCrl { ca: key.ca })?,
            root_crl: self.in_memory(&Item::RootCrl)?.bytes,
        })
    }
}

/// Collateral that was taken apart for a verifier, by platform, so that this is done once for each that comes.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    by_key: Mutex<HashMap<CollateralKey, (Collateral, Arc<kata_cc_tdx::Collateral>)>>,
}

impl Parsed {
    fn get(&self, key: &CollateralKey, collateral: Collateral) -> Option<Arc<kata_cc_tdx::Collateral>> {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, parsed)) = by_key.get(key)
            && *known == collateral
        {
            return Some(Arc::clone(parsed));
        }
        let json = collateral.to_json().ok()?;
        let parsed = Arc::new(kata_cc_tdx::Collateral::from_bundle(json.as_bytes()).ok()?);
        if by_key.len() >= MAX_PARSED {
            by_key.clear();
        }
        by_key.insert(*key, (collateral, Arc::clone(&parsed)));
        Some(parsed)
    }
}

impl CollateralSource for Endorser {
    fn find(&self, key: &CollateralKey) -> Option<Arc<kata_cc_tdx::Collateral>> {
        self.parsed.get(key, self.collateral_in_memory(key)?)
    }
}

impl EndorsementSource for Endorser {
    fn find(&self, report: &Report, product: Product) -> Supply {
        let kind = match report.key_info.signing_key() {
            SigningKey::Vlek => VekKind::Vlek,
            _ => VekKind::Vcek,
        };
        let bytes = |item: &Item| self.in_memory(item).map(|document| Arc::from(document.bytes));
        Supply {
            vek: vek_item(report, product, kind).as_ref().and_then(bytes),
            ask: bytes(&Item::SnpChain { kind, product }),
            crl: bytes(&Item::SnpCrl { kind, product }),
        }
    }
}
