//! Every field of an SNP report, and its certificates.

use kata_cc_snp::certs::VekExtensions;
use kata_cc_snp::verify::Product;
use kata_cc_snp::{Report, SigningKey, Tcb};
use kata_cc_x509::{Certificate, Crl};
use serde_json::{Value, json};

use super::certificates::Blob;
use super::page::Section;
use super::time::utc;

fn tcb(tcb: &Tcb) -> Value {
    let mut value = json!({
        "bootloader": tcb.bootloader, "tee": tcb.tee, "snp": tcb.snp, "microcode": tcb.microcode,
    });
    if let Some(fmc) = tcb.fmc {
        value["fmc"] = fmc.into();
    }
    value
}

/// All fields of a report, in its order.
pub(super) fn report(report: &Report) -> Vec<Section> {
    let mut all = Section::new("report", "SNP report");
    let cpu =
        report.cpuid.map(|cpu| json!({"family": cpu.family, "model": cpu.model, "stepping": cpu.stepping}));
    let product = report.cpuid.and_then(|cpu| Product::from_cpuid(cpu.family, cpu.model));
    let product = product.map_or("not told by the report", Product::name);
    let vmpl = match report.vmpl {
        u32::MAX => "the host asked for it".to_owned(),
        0 => "most privileged level of the guest".to_owned(),
        level => format!("a less privileged level of the guest ({level})"),
    };
    all.row("version", report.version)
        .row("guest_svn", report.guest_svn)
        .noted("vmpl", report.vmpl, vmpl)
        .noted("cpuid", cpu.unwrap_or_default(), product)
        .bytes("measurement", &report.measurement)
        .bytes("report_data", &report.report_data)
        .noted(
            "host_data",
            hex::encode(report.host_data),
            "digest of the init-data, cut or padded to 32 bytes",
        )
        .bytes("family_id", &report.family_id)
        .bytes("image_id", &report.image_id)
        .bytes("id_key_digest", &report.id_key_digest)
        .bytes("author_key_digest", &report.author_key_digest)
        .bytes("report_id", &report.report_id)
        .bytes("report_id_ma", &report.report_id_ma)
        .bytes("chip_id", &report.chip_id)
        .row("launch_mit_vector", report.launch_mit_vector)
        .row("current_mit_vector", report.current_mit_vector);
    vec![all, policy(report), platform(report), firmware(report), signature(report)]
}

fn policy(report: &Report) -> Section {
    let policy = report.policy;
    let mut section = Section::new("policy", "Guest policy: what the host may do");
    section
        .row("value", format!("{:#x}", policy.0))
        .row("abi_minimum", format!("{}.{}", policy.abi_major(), policy.abi_minor()))
        .noted(
            "debug_allowed",
            policy.debug_allowed(),
            if policy.debug_allowed() { "the host can read and change the guest's memory" } else { "" },
        )
        .row("migration_agent_allowed", policy.migration_agent_allowed())
        .row("smt_allowed", policy.smt_allowed())
        .row("single_socket", policy.single_socket())
        .row("cxl_allowed", policy.cxl_allowed())
        .row("aes_256_xts_required", policy.aes_256_xts_required())
        .row("rapl_disabled_required", policy.rapl_disabled_required())
        .row("ciphertext_hiding_required", policy.ciphertext_hiding_required())
        .row("page_swap_disabled", policy.page_swap_disabled());
    section
}

fn platform(report: &Report) -> Section {
    let info = report.platform_info;
    let mut section = Section::new("platform", "Platform");
    section
        .row("value", format!("{:#x}", info.0))
        .row("smt_enabled", info.smt_enabled())
        .row("tsme_enabled", info.tsme_enabled())
        .row("ecc_enabled", info.ecc_enabled())
        .row("rapl_disabled", info.rapl_disabled())
        .row("ciphertext_hiding", info.ciphertext_hiding())
        .row("alias_check_complete", info.alias_check_complete())
        .row("tio_enabled", info.tio_enabled());
    section
}

fn firmware(report: &Report) -> Section {
    let mut section = Section::new("firmware", "Firmware");
    section
        .noted(
            "reported_tcb",
            tcb(&report.reported_tcb),
            "what the key was derived for; the host can lower it",
        )
        .row("current_tcb", tcb(&report.current_tcb))
        .noted("committed_tcb", tcb(&report.committed_tcb), "cannot be rolled back below")
        .row("launch_tcb", tcb(&report.launch_tcb))
        .row("current_version", report.current_version.to_string())
        .row("committed_version", report.committed_version.to_string());
    section
}

fn signature(report: &Report) -> Section {
    let key = report.key_info;
    let (name, note) = match key.signing_key() {
        SigningKey::Vcek => ("VCEK", "key of the chip"),
        SigningKey::Vlek => ("VLEK", "key of the cloud provider"),
        SigningKey::None => ("none", "nothing vouches for this report"),
        SigningKey::Reserved(_) => ("undefined", ""),
    };
    let mut section = Section::new("signature", "Signature (not checked by show)");
    section
        .row("algorithm", report.signature_algo)
        .row("key_info", format!("{:#x}", key.0))
        .noted("signing_key", name, note)
        .row("author_key_enabled", key.author_key_enabled())
        .row("chip_key_masked", key.chip_key_masked())
        .bytes("r", &report.signature.r)
        .bytes("s", &report.signature.s);
    section
}

/// Certificates in the order in which they came; what is none says why.
pub(super) fn certificates(blobs: &[(String, Vec<u8>)]) -> Vec<Section> {
    let numbered = blobs.iter().enumerate();
    numbered.map(|(index, (kind, bytes))| certificate(index, kind, bytes)).collect()
}

fn certificate(index: usize, kind: &str, bytes: &[u8]) -> Section {
    let mut section = Section::new(format!("certificate_{index}"), format!("Certificate {index}: {kind}"));
    section.row("kind", kind).row("bytes", bytes.len());
    match Blob::read(bytes) {
        Ok(Blob::Certificate(certificate)) => describe(&mut section, &certificate),
        Ok(Blob::Crl(crl, _)) => describe_crl(&mut section, &crl),
        Err(error) => {
            section.row("unreadable", format!("{error:#}"));
        }
    }
    section
}

fn describe(section: &mut Section, certificate: &Certificate) {
    section
        .row("subject", certificate.subject_cn())
        .row("issuer", certificate.issuer_cn())
        .row("not_before", utc(certificate.not_before()))
        .row("not_after", utc(certificate.not_after()))
        .row("key_sha256", certificate.key_fingerprint().unwrap_or_default());
    if let Ok(vek) = VekExtensions::of(certificate) {
        section.row("product", vek.product_name).row("tcb", tcb(&vek.tcb));
        if let Some(id) = vek.hw_id {
            section.row("hw_id", hex::encode(id));
        }
        if let Some(id) = vek.csp_id {
            section.row("csp_id", id);
        }
    }
}

fn describe_crl(section: &mut Section, crl: &Crl) {
    section
        .row("issuer", crl.issuer_cn())
        .row("this_update", utc(crl.this_update()))
        .row("revoked", crl.len());
}
