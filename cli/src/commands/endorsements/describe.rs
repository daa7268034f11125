//! What a set of documents holds, in words and as JSON. Nothing of it is verified.

use kata_cc_endorsements::{Bundle, Document, IntelTee, Item};
use kata_cc_snp::Tcb;
use kata_cc_x509::{Certificate, Crl};
use serde::Serialize;
use serde_json::Value;

use crate::commands::evidence::time;
use crate::output::{Output, Tone};

/// One document.
#[derive(Debug, Serialize)]
pub(super) struct Described {
    /// Where it lies in the folder layout.
    path: String,
    /// `vcek`, `vlek`, `snp-chain`, `snp-crl`, `tcb-info`, `qe-identity`, `pck-crl`, `root-crl`.
    kind: &'static str,
    /// In words.
    what: String,
    /// Processor line of AMD's.
    #[serde(skip_serializing_if = "Option::is_none")]
    product: Option<&'static str>,
    /// Hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    chip_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tcb: Option<Tcb>,
    /// Kind of platform of Intel's, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    fmspc: Option<String>,
    /// TEE of Intel's.
    #[serde(skip_serializing_if = "Option::is_none")]
    tee: Option<&'static str>,
    bytes: usize,
    /// Validity of certificates, or when the issuer published it and means to publish the next; RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    /// `current`, `expired`, `not-yet-valid`, `unknown`.
    state: &'static str,
}

/// All documents, as of `now`.
pub(super) fn all(bundle: &Bundle, now: u64) -> Vec<Described> {
    bundle.iter().map(|(item, document)| Described::of(item, document, now)).collect()
}

impl Described {
    fn of(item: &Item, document: &Document, now: u64) -> Self {
        let dates = dates(item, document);
        let state = match dates {
            None => "unknown",
            Some((from, _)) if now < from => "not-yet-valid",
            Some((_, until)) if now > until => "expired",
            Some(_) => "current",
        };
        let mut described = Self {
            path: item.path(),
            kind: "",
            what: item.to_string(),
            product: None,
            chip_id: None,
            tcb: None,
            fmspc: None,
            tee: None,
            bytes: document.len(),
            from: dates.map(|(from, _)| time::utc(from)),
            until: dates.map(|(_, until)| time::utc(until)),
            state,
        };
        described.kind = match item {
            Item::Vcek { product, chip_id, tcb } => {
                described.chip_id = Some(hex::encode(chip_id));
                (described.product, described.tcb) = (Some(product.name()), Some(*tcb));
                "vcek"
            }
            Item::Vlek { product, tcb } => {
                (described.product, described.tcb) = (Some(product.name()), Some(*tcb));
                "vlek"
            }
            Item::SnpChain { product, .. } => {
                described.product = Some(product.name());
                "snp-chain"
            }
            Item::SnpCrl { product, .. } => {
                described.product = Some(product.name());
                "snp-crl"
            }
            Item::TcbInfo { tee, fmspc } => {
                (described.tee, described.fmspc) = (Some(tee.name()), Some(hex::encode_upper(fmspc)));
                "tcb-info"
            }
            Item::QeIdentity { tee } => {
                described.tee = Some(IntelTee::name(*tee));
                "qe-identity"
            }
            Item::PckCrl { .. } => "pck-crl",
            Item::RootCrl => "root-crl",
        };
        described
    }
}

/// From when to when a document holds, seconds since 1970.
fn dates(item: &Item, document: &Document) -> Option<(u64, u64)> {
    match item {
        Item::Vcek { .. } | Item::Vlek { .. } => {
            let certificate = Certificate::from_der_or_pem(&document.bytes).ok()?;
            Some((certificate.not_before(), certificate.not_after()))
        }
        Item::SnpChain { .. } => {
            let chain = Certificate::chain_from_pem(&document.bytes).ok()?;
            let from = chain.iter().map(Certificate::not_before).max()?;
            Some((from, chain.iter().map(Certificate::not_after).min()?))
        }
        Item::SnpCrl { .. } | Item::PckCrl { .. } | Item::RootCrl => {
            let list = Crl::from_der_or_pem(&document.bytes).ok()?;
            Some((list.this_update(), list.next_update()))
        }
        Item::TcbInfo { .. } | Item::QeIdentity { .. } => {
            let body: Value = serde_json::from_slice(&document.bytes).ok()?;
            let signed = body.get("tcbInfo").or_else(|| body.get("enclaveIdentity"))?;
            let date = |name: &str| time::parse(signed.get(name)?.as_str()?).ok();
            Some((date("issueDate")?, date("nextUpdate")?))
        }
    }
}

/// For people: a block for each document.
pub(super) fn text(documents: &[Described], output: &Output) -> String {
    let mut text = String::new();
    for one in documents {
        let (tone, state) = match one.state {
            "current" => (Tone::Good, "current"),
            "expired" => (Tone::Bad, "expired"),
            other => (Tone::Doubtful, other),
        };
        text += &format!("{}\n  {}\n", one.path, one.what);
        if let Some(chip) = &one.chip_id {
            text += &format!("  chip    {chip}\n");
        }
        let dates = one.from.as_deref().zip(one.until.as_deref());
        let dates = dates.map_or_else(|| "unknown".to_owned(), |(from, until)| format!("{from} to {until}"));
        text += &format!("  valid   {dates} ({})\n", output.paint(tone, state));
    }
    text
}
