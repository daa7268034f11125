//! Every field of a TDX quote, what its event log says, and its certificates.

use anyhow::Context;
use kata_cc_kbs_protocol::from_base64_standard;
use kata_cc_tdx::{EventLog, Quote, Trailing, claims};
use kata_cc_x509::Certificate;
use serde_json::{Map, Value};

use super::page::Section;
use super::show_snp;

/// Trustee's JSON.
pub(super) fn evidence(value: &Value) -> anyhow::Result<Vec<Section>> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let bytes = text("quote").and_then(from_base64_standard).context("its member quote is no base64")?;
    let log = match text("cc_eventlog") {
        None => None,
        Some(log) => {
            let bytes = from_base64_standard(log).context("its member cc_eventlog is no base64")?;
            Some(EventLog::parse(&bytes)?)
        }
    };
    let mut sections = quote(&bytes)?;
    if let Some(log) = log {
        sections.push(event_log(&log, &Quote::parse(&bytes, Trailing::Zeros)?));
    }
    Ok(sections)
}

/// A quote.
pub(super) fn quote(bytes: &[u8]) -> anyhow::Result<Vec<Section>> {
    let quote = Quote::parse(bytes, Trailing::Zeros)?;
    let all = claims::quote_claims(&quote, None);
    let members = |path: &str| {
        let value = all.get("quote").and_then(|quote| quote.get(path)).or_else(|| all.get(path));
        value.and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let mut sections = vec![
        section("header", "Quote: header", &members("header")),
        section("body", "Quote: what is attested (bytes as they stand in memory)", &members("body")),
        section("td_attributes", "Attributes of the trust domain", &members("td_attributes")),
        signature(&quote),
    ];
    match Certificate::chain_from_pem(&quote.certificates) {
        Ok(chain) => {
            let blobs = chain.iter().map(|certificate| ("PCK chain".to_owned(), certificate.der().to_vec()));
            sections.extend(show_snp::certificates(&blobs.collect::<Vec<_>>()));
        }
        Err(error) => {
            let mut broken = Section::new("certificates", "Certificates");
            broken.row("unreadable", error.to_string());
            sections.push(broken);
        }
    }
    Ok(sections)
}

fn section(key: &str, title: &str, members: &Map<String, Value>) -> Section {
    let mut section = Section::new(key, title);
    for (name, value) in members {
        let note = match (name.as_str(), value) {
            ("mr_config_id", _) => "digest of the init-data, cut or padded to 48 bytes",
            ("debug" | "untrusted", Value::Bool(true)) => "the host can read and change the domain's memory",
            _ => "",
        };
        section.noted(name.as_str(), value.clone(), note);
    }
    section
}

fn signature(quote: &Quote) -> Section {
    let qe = &quote.qe_report;
    let mut section = Section::new("signature", "Signature and quoting enclave (not checked by show)");
    section
        .bytes("signature", &quote.signature)
        .bytes("attestation_key", &quote.attestation_key)
        .bytes("qe_mr_enclave", &qe.mr_enclave)
        .bytes("qe_mr_signer", &qe.mr_signer)
        .row("qe_isv_prod_id", qe.isv_prod_id)
        .row("qe_isv_svn", qe.isv_svn)
        .bytes("qe_cpu_svn", &qe.cpu_svn)
        .bytes("qe_misc_select", &qe.misc_select)
        .bytes("qe_attributes", &qe.attributes)
        .bytes("qe_report_data", &qe.report_data)
        .bytes("qe_report_signature", &quote.qe_report_signature)
        .bytes("qe_auth_data", &quote.qe_auth_data);
    section
}

fn event_log(log: &EventLog, quote: &Quote) -> Section {
    let mut section = Section::new("event_log", "Event log");
    section.row("events", log.events.len());
    match log.check(&quote.body.rtmr) {
        Ok(Ok(())) => section.noted("replay", "matches", "its digests give the RTMRs of the quote"),
        Ok(Err(error)) => section.row("replay", error.to_string()),
        Err(error) => section.row("replay", error.to_string()),
    };
    section
}
