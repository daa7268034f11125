//! Guests on Azure, whose evidence comes through a vTPM: `az-snp-vtpm`, `az-tdx-vtpm`.
//!
//! Checked besides the vTPM's own links ([`kata_cc_azure_vtpm`]): the processor's report, that its report data is the hash of the
//! variable data, VMPL 0, that the quote's nonce is the digest expected (exactly, without padding), and that PCR 8 was extended
//! once with the init-data's digest, which has to be a SHA-256. Evidence of version 2 also has to hold the digest of the
//! exchange in the `user-data` of the variable data. SNP reports of version 2 are accepted here, as Azure still makes them.
//!
//! Claims are named as Trustee names them, and as with it all values of `az-snp-vtpm` are texts, the measurement in base64.
//!
//! Source: Trustee `deps/verifier/src/az_snp_vtpm`, `az_tdx_vtpm`.

use kata_cc_azure_vtpm::{
    AzureEvidence, Hardware, HardwareEvidence, HclError, INIT_DATA_PCR, QuoteError, Vtpm, VtpmError, pcr,
};
use kata_cc_kbs_protocol::{Tee, base64_standard};
use kata_cc_snp::{Endorsements, Verified};
use serde_json::{Map, Value, json};

use crate::{Evidence, Reason, Refusal, Verdict, VerifierConfig, claims, snp, tdx};

/// Name of the init-data's field in messages.
const PCR_NAME: &str = "PCR 8";

pub(crate) fn verify(config: &VerifierConfig, input: &Evidence<'_>, now: u64) -> Result<Verdict, Refusal> {
    let hardware = if input.tee == Tee::AzTdxVtpm { Hardware::Tdx } else { Hardware::Snp };
    let evidence = AzureEvidence::from_json(hardware, input.evidence)
        .map_err(|error| Refusal::Malformed { what: error.to_string() })?;
    let vtpm = Vtpm::check(&evidence).map_err(Refusal::Vtpm)?;
    let (mut tee_claims, measurement) = match &evidence.hardware {
        HardwareEvidence::Vcek(vcek) => verify_snp(config, &vtpm, vcek, now)?,
        HardwareEvidence::TdQuote(quote) => verify_tdx(config, &vtpm, quote, now)?,
    };
    if let Some(expected) = input.report_data {
        check_nonce(&vtpm, &evidence, expected)?;
    }
    let init_data_claims = match &input.init_data {
        Some(expected) => {
            let (digest, claims) = expected.digest()?;
            check_init_data(&vtpm, &digest)?;
            claims
        }
        None => None,
    };
    add_vtpm_claims(&mut tee_claims, evidence.version, &vtpm);
    let (report_data, init_data) = (vtpm.attest.extra_data, *vtpm.pcrs.init_data());
    Ok(Verdict {
        tee: input.tee,
        claims: claims::annotated(input.tee, tee_claims.into(), &report_data, &init_data, init_data_claims),
        measurement,
        report_data,
        init_data: init_data.to_vec(),
    })
}

fn verify_snp(
    config: &VerifierConfig,
    vtpm: &Vtpm,
    vcek: &[u8],
    now: u64,
) -> Result<(Map<String, Value>, Vec<u8>), Refusal> {
    let (bytes, report) = vtpm.hcl.snp_report().map_err(|error| Refusal::Vtpm(error.into()))?;
    let given = Endorsements { vek: vcek.to_vec(), ask: None, ark: None };
    let verified = snp::verify_report(config, &report, bytes, given, None, now)?;
    vtpm.hcl.check_report_data(&report.report_data).map_err(|error| Refusal::Vtpm(error.into()))?;
    // The firmware that keeps the vTPM runs there; whoever made a report elsewhere could have chosen the key in it.
    if report.vmpl != 0 {
        return Err(Refusal::Vmpl { seen: report.vmpl, expected: 0 });
    }
    let differences = config.snp.settings.requirements.check(&verified);
    if !differences.is_empty() {
        return Err(Refusal::Requirements { differences });
    }
    Ok((snp_claims(&verified), report.measurement.to_vec()))
}

fn verify_tdx(
    config: &VerifierConfig,
    vtpm: &Vtpm,
    quote: &[u8],
    now: u64,
) -> Result<(Map<String, Value>, Vec<u8>), Refusal> {
    let verified = tdx::verify_quote(config, quote, now)?;
    let body = &verified.quote.body;
    vtpm.hcl.check_report_data(&body.report_data).map_err(|error| Refusal::Vtpm(error.into()))?;
    let claims = match kata_cc_tdx::claims::tee_claims(&verified, None) {
        Value::Object(claims) => claims,
        _ => Map::new(),
    };
    Ok((claims, body.mr_td.to_vec()))
}

/// As the report's other claims, but as texts, and the measurement in base64.
fn snp_claims(verified: &Verified) -> Map<String, Value> {
    let mut out = Map::new();
    if let Value::Object(all) = claims::snp_verified(verified) {
        for (name, value) in all {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            out.insert(name, text.into());
        }
    }
    out.insert("measurement".to_owned(), base64_standard(&verified.report.measurement).into());
    out
}

/// No padding: what is quoted is the digest itself.
fn check_nonce(vtpm: &Vtpm, evidence: &AzureEvidence, expected: &[u8]) -> Result<(), Refusal> {
    let differs =
        |seen: &[u8]| Refusal::ReportData { seen: hex::encode(seen), expected: hex::encode(expected) };
    if vtpm.attest.extra_data != expected {
        return Err(differs(&vtpm.attest.extra_data));
    }
    if evidence.version < 2 {
        return Ok(());
    }
    let user_data = vtpm.variable.user_data.as_deref().unwrap_or_default();
    if user_data.starts_with(expected) { Ok(()) } else { Err(differs(user_data)) }
}

fn check_init_data(vtpm: &Vtpm, digest: &[u8]) -> Result<(), Refusal> {
    let digest: &[u8; 32] =
        digest.try_into().map_err(|_| Refusal::InitDataAlgorithm { field: PCR_NAME, seen: digest.len() })?;
    let (seen, expected) = (vtpm.pcrs.init_data(), pcr::extended_once(digest));
    if *seen == expected {
        return Ok(());
    }
    Err(Refusal::InitData { field: PCR_NAME, seen: hex::encode(seen), expected: hex::encode(expected) })
}

/// `tpm` as Trustee publishes it; `hcl` is an addition.
fn add_vtpm_claims(claims: &mut Map<String, Value>, version: u8, vtpm: &Vtpm) {
    let values = vtpm.pcrs.values().iter().enumerate();
    let pcrs: Map<String, Value> =
        values.map(|(index, value)| (format!("pcr{index:02}"), hex::encode(value).into())).collect();
    claims.insert("tpm".to_owned(), pcrs.into());
    let mut hcl = Map::new();
    hcl.insert("evidence_version".to_owned(), json!(version));
    if let Some(user_data) = &vtpm.variable.user_data {
        hcl.insert("user_data".to_owned(), hex::encode(user_data).into());
    }
    for (name, claim) in [
        ("console-enabled", "console_enabled"),
        ("secure-boot", "secure_boot"),
        ("tpm-enabled", "tpm_enabled"),
        ("tpm-persisted", "tpm_persisted"),
    ] {
        if let Some(Value::Bool(value)) = vtpm.variable.vm_configuration.get(name) {
            hcl.insert(claim.to_owned(), json!(value));
        }
    }
    if let Some(Value::String(id)) = vtpm.variable.vm_configuration.get("vmUniqueId") {
        hcl.insert("vm_unique_id".to_owned(), id.as_str().into());
    }
    claims.insert("hcl".to_owned(), hcl.into());
}

const _: () = assert!(INIT_DATA_PCR == 8, "PCR_NAME names it");

/// Kind of a refusal.
pub(crate) const fn reason(error: &VtpmError) -> Reason {
    match error {
        VtpmError::Quote(QuoteError::Signature | QuoteError::PcrDigest { .. })
        | VtpmError::Hcl(HclError::ReportData { .. }) => Reason::Signature,
        _ => Reason::Malformed,
    }
}

/// Claim that a refusal is about.
pub(crate) const fn claim(error: &VtpmError) -> &'static str {
    match error {
        VtpmError::Evidence(_) => "evidence",
        VtpmError::Hcl(_) => "hcl_report",
        VtpmError::Quote(QuoteError::PcrDigest { .. }) => "tpm",
        VtpmError::Quote(_) => "tpm_quote",
    }
}

/// What was seen and expected.
pub(crate) fn compared(error: &VtpmError) -> Option<(String, String)> {
    match error {
        VtpmError::Hcl(HclError::ReportData { seen, expected } | HclError::Field { seen, expected, .. })
        | VtpmError::Quote(
            QuoteError::PcrDigest { seen, expected } | QuoteError::Field { seen, expected, .. },
        ) => Some((seen.clone(), expected.clone())),
        _ => None,
    }
}
