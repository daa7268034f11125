//! Every field of what came through a vTPM.

use anyhow::Context;
use kata_cc_azure_vtpm::{Attest, AzureEvidence, HclReport, TpmQuote, VariableData};
use serde_json::Value;

use super::page::Section;

/// The HCL report without the hardware's report in it.
pub(super) fn hcl(hcl: &HclReport) -> anyhow::Result<Vec<Section>> {
    let mut section = Section::new("hcl", "HCL report");
    section.row("hardware", hcl.hardware().name()).noted(
        "variable_data_sha256",
        hex::encode(hcl.variable_data_digest()),
        "bound by the hardware's report data",
    );
    let variable = VariableData::parse(hcl.variable_data())?;
    section.noted(
        "attestation_key_modulus",
        hex::encode(variable.attestation_key.modulus()),
        "RSA key that signs the vTPM's quotes",
    );
    if let Some(user_data) = &variable.user_data {
        section.bytes("user_data", user_data);
    }
    let mut vm = Section::new("vm_configuration", "Virtual machine, as its firmware says");
    for (name, known) in [
        ("console-enabled", "console_enabled"),
        ("secure-boot", "secure_boot"),
        ("tpm-enabled", "tpm_enabled"),
        ("tpm-persisted", "tpm_persisted"),
        ("root-cert-thumbprint", "root_cert_thumbprint"),
        ("vmUniqueId", "vm_unique_id"),
    ] {
        if let Some(value) = variable.vm_configuration.get(name) {
            vm.row(known, value.clone());
        }
    }
    Ok(vec![section, vm])
}

/// The vTPM's quote with the PCR values.
pub(super) fn quote(quote: &TpmQuote) -> anyhow::Result<Vec<Section>> {
    let attest = Attest::parse(&quote.message)?;
    let mut section = Section::new("tpm_quote", "TPM quote (its signature is not checked by show)");
    let nonce = match std::str::from_utf8(&attest.extra_data) {
        Ok(text) if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()) => format!("\"{text}\""),
        _ => String::new(),
    };
    section
        .noted("nonce", hex::encode(&attest.extra_data), nonce)
        .row("qualified_signer", hex::encode(&attest.qualified_signer))
        .noted("clock_ms", attest.clock, if attest.safe { "" } else { "may have gone back" })
        .row("reset_count", attest.reset_count)
        .row("restart_count", attest.restart_count)
        .row("firmware_version", format!("{:#x}", attest.firmware_version));
    let matches = quote.pcrs.digest() == attest.pcr_digest;
    section
        .noted(
            "pcr_digest",
            hex::encode(attest.pcr_digest),
            if matches { "of the values below" } else { "NOT that of the values below" },
        )
        .row("signature", hex::encode(&quote.signature));
    let mut pcrs = Section::new("pcrs", "PCRs (SHA-256)");
    for (name, value) in PCR_NAMES.iter().zip(quote.pcrs.values()) {
        let note = match *name {
            "pcr08" => "init-data: SHA-256 of 32 zero bytes and its digest",
            _ if *value == [0; 32] => "zeros",
            _ => "",
        };
        pcrs.noted(name, hex::encode(value), note);
    }
    Ok(vec![section, pcrs])
}

const PCR_NAMES: [&str; 24] = [
    "pcr00", "pcr01", "pcr02", "pcr03", "pcr04", "pcr05", "pcr06", "pcr07", "pcr08", "pcr09", "pcr10",
    "pcr11", "pcr12", "pcr13", "pcr14", "pcr15", "pcr16", "pcr17", "pcr18", "pcr19", "pcr20", "pcr21",
    "pcr22", "pcr23",
];

/// Trustee's JSON, decoded.
pub(super) fn decode(
    hardware: kata_cc_azure_vtpm::Hardware,
    value: &Value,
) -> anyhow::Result<(AzureEvidence, HclReport)> {
    let evidence = AzureEvidence::from_json(hardware, value)?;
    let hcl = HclReport::parse(&evidence.hcl_report).context("the member with the HCL report")?;
    Ok((evidence, hcl))
}
