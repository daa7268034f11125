//! Between evidence and the pure verifiers: [`Endorser::complete`] fetches what evidence lacks, before the verification;
//! during it the verifiers look up what is there, without waiting.

use std::sync::Arc;

use kata_cc_kbs_protocol::Tee;
use kata_cc_snp::certs::Certificate;
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::verify::{Product, VekKind};
use kata_cc_snp::{EndorsementSource, Report, SigningKey, Supply};
use serde::Deserialize as _;
use serde_json::Value;
use tracing::debug;

use crate::endorser::{Endorser, SnpNeed, vek_item};
use crate::item::Item;
use crate::source::SourceError;

impl Endorser {
    /// Fetches what a piece of evidence lacks for its verification. What cannot be had is no error here: the verifier
    /// says what is missing, and the problems returned say why.
    ///
    /// Evidence that cannot be read has no needs; the verifier refuses it.
    pub async fn complete(&self, tee: Tee, evidence: &Value) -> Vec<SourceError> {
        let problems = match tee {
            Tee::Snp => self.complete_snp(evidence).await,
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
