//! Every file among the vectors is read by a test, or it is written here why not.
//!
//! New vectors without a test are told here, and fail where `KATA_CC_REQUIRE` names `all-vectors`. A table fails that names what is not there any
//! more: a file, a test, or a test that does not name the file.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A file, or what begins with the part before the star; a test that reads it; the words by which it does.
type Used = (&'static str, &'static str, &'static str);

const USED: &[Used] = &[
    ("coco/aael/events.json", "attestation/attester/tests/measure.rs", "coco/aael/events.json"),
    ("coco/ear/ar4si-tiers.json", "attestation/service/src/ear.rs", "ar4si-tiers.json"),
    (
        "coco/ear/example.token.json",
        "attestation/service/tests/sample_schema.rs",
        "coco/ear/example.token.json",
    ),
    ("coco/ear/jwks-cert-chain.pem", "attestation/service/src/token.rs", "jwks-cert-chain.pem"),
    ("coco/ear/jwks-expected-jwks.json", "attestation/service/src/token.rs", "jwks-expected-jwks.json"),
    ("coco/ear/jwks-signing-key.pem", "attestation/service/src/token.rs", "jwks-signing-key.pem"),
    ("coco/ear/tokens.json", "attestation/service/src/token.rs", "tokens.json"),
    ("coco/ear/veraison-key.jwk", "attestation/service/src/token.rs", "veraison-key.jwk"),
    ("coco/ear/veraison-testJWT.jwt", "attestation/service/src/token.rs", "veraison-testJWT.jwt"),
    ("coco/ear/veraison-testJWT_JWK.jwt", "attestation/service/src/token.rs", "veraison-testJWT_JWK.jwt"),
    (
        "coco/evidence/as-rest-request-sgx.json",
        "attestation/service/tests/binary.rs",
        "as-rest-request-sgx.json",
    ),
    ("coco/evidence/sample.json", "attestation/service/tests/sample_schema.rs", "coco/evidence/sample.json"),
    ("coco/evidence/tpm_evidence.json", "attestation/verifier/tests/verdicts.rs", "tpm_evidence.json"),
    (
        "coco/initdata/claims-full-sha384.json",
        "attestation/verifier/tests/verdicts.rs",
        "claims-full-sha384.json",
    ),
    ("coco/initdata/full-sha384.*", "protocols/kbs/src/initdata.rs", "\"full-sha384\""),
    ("coco/initdata/mini-sha256.*", "protocols/kbs/src/initdata.rs", "\"mini-sha256\""),
    ("coco/initdata/invalid.json", "protocols/kbs/src/initdata.rs", "invalid.json"),
    ("coco/initdata/kata-initdata.img", "protocols/kbs/src/initdata.rs", "kata-initdata.img"),
    ("coco/jwe/cases.json", "kbs/client/src/jwe.rs", "coco/jwe/cases.json"),
    ("coco/runtime-data/cases.json", "protocols/kbs/src/rcar.rs", "coco/runtime-data/cases.json"),
    ("coco/rvps/invalid.json", "kbs/tests/wire.rs", "invalid.json"),
    ("coco/rvps/sample-message.json", "kbs/tests/wire.rs", "sample-message.json"),
    ("coco/rvps/sample-message-no-version.json", "kbs/tests/wire.rs", "sample-message-no-version.json"),
    ("coco/rvps/unsigned-example-corim.cbor", "kbs/tests/wire.rs", "unsigned-example-corim.cbor"),
    ("coco/sealed/envelope-1.json", "agent/guest-api/tests/sealed.rs", "envelope-1.json"),
    ("coco/sealed/sealed.json", "agent/guest-api/tests/sealed.rs", "sealed.json"),
    ("coco/sealed/test-key.json", "agent/guest-api/tests/sealed.rs", "test-key.json"),
    ("coco/sealed/test-key-2.json", "agent/guest-api/tests/sealed.rs", "test-key-2.json"),
    ("coco/sealed/vault-1.json", "agent/guest-api/tests/sealed.rs", "vault-1.json"),
    ("coco/sealed/vault-2.json", "agent/guest-api/tests/sealed.rs", "vault-2.json"),
    ("coco/token-jwk/scenario01-*", "attestation/service/src/token.rs", "(\"01\", "),
    ("coco/token-jwk/scenario02-*", "attestation/service/src/token.rs", "(\"02\", "),
    ("coco/token-jwk/scenario03-*", "attestation/service/src/token.rs", "(\"03\", "),
    ("coco/token-jwk/scenario05-*", "attestation/service/src/token.rs", "(\"05\", "),
    ("coco/token-jwk/scenario07-*", "attestation/service/src/token.rs", "(\"07\", "),
    ("images/ocicrypt/cdh-v1.json", "image-rs/tests/vectors.rs", "cdh-v1.json"),
    (
        "images/ocicrypt/enc-aa/keyprovider-messages.json",
        "image-rs/tests/vectors.rs",
        "keyprovider-messages.json",
    ),
    ("images/ocicrypt/enc-aa/layer0.enc", "image-rs/tests/vectors.rs", "layer0.enc"),
    ("images/ocicrypt/enc-aa/layer1.enc", "image-rs/tests/vectors.rs", "layer1.enc"),
    ("images/ocicrypt/enc-aa/manifest.json", "image-rs/tests/vectors.rs", "enc-aa/manifest.json"),
    ("images/ocicrypt/packets.json", "image-rs/tests/vectors.rs", "packets.json"),
    ("images/ocicrypt/plain/layer0", "image-rs/tests/vectors.rs", "plain/layer0"),
    ("images/ocicrypt/plain/layer1", "image-rs/tests/vectors.rs", "plain/layer1"),
    ("images/ocicrypt/plain/manifest.json", "image-rs/tests/vectors.rs", "plain/manifest.json"),
    ("images/ocicrypt/sample_kbc_annotation.json", "image-rs/tests/vectors.rs", "sample_kbc_annotation.json"),
    ("sgx/occlum-quote-v3.bin", "attestation/tdx/tests/vectors.rs", "occlum-quote-v3.bin"),
    ("snp/certs/genoa-*", "attestation/snp/tests/vectors.rs", "{lower}-{name}.pem"),
    ("snp/certs/milan-*", "attestation/snp/tests/vectors.rs", "{lower}-{name}.pem"),
    ("snp/certs/turin-*", "attestation/snp/tests/vectors.rs", "{lower}-{name}.pem"),
    ("snp/evidence/az-snp-hcl-report.bin", "attestation/azure/tests/vectors.rs", "az-snp-hcl-report.bin"),
    ("snp/evidence/az-snp-tpm-quote.bin", "attestation/azure/tests/vectors.rs", "az-snp-tpm-quote.bin"),
    ("snp/evidence/az-snp-vcek.pem", "cli/tests/evidence.rs", "az-snp-vcek.pem"),
    (
        "snp/evidence/az-snp-vtpm-evidence-v0.json",
        "attestation/azure/tests/vectors.rs",
        "az-snp-vtpm-evidence-v0.json",
    ),
    (
        "snp/evidence/az-snp-vtpm-evidence-v1.json",
        "attestation/azure/tests/vectors.rs",
        "az-snp-vtpm-evidence-v1.json",
    ),
    (
        "snp/evidence/coco-snp-evidence-v3.json",
        "attestation/verifier/tests/verdicts.rs",
        "coco-snp-evidence-v3.json",
    ),
    ("snp/id-block/auth_block.bin", "attestation/snp/tests/id_block.rs", "auth_block.bin"),
    ("snp/id-block/auth_sig.bin", "attestation/snp/tests/id_block.rs", "auth_sig.bin"),
    ("snp/id-block/author_key.pem", "attestation/snp/tests/id_block.rs", "author_key.pem"),
    ("snp/id-block/expected.json", "attestation/snp/tests/id_block.rs", "expected.json"),
    ("snp/id-block/id_key.pem", "attestation/snp/tests/id_block.rs", "id_key.pem"),
    ("snp/id-block/id_sig.bin", "attestation/snp/tests/id_block.rs", "id_sig.bin"),
    ("snp/launch-digest/cases.json", "attestation/measurement/tests/vectors.rs", "cases.json"),
    (
        "snp/launch-digest/ovmf_AmdSev_suffix.bin",
        "attestation/measurement/tests/firmware.rs",
        "ovmf_AmdSev_suffix.bin",
    ),
    (
        "snp/launch-digest/ovmf_OvmfX64_suffix.bin",
        "attestation/measurement/tests/firmware.rs",
        "ovmf_OvmfX64_suffix.bin",
    ),
    ("snp/reports/genoa-v5/*", "attestation/snp/tests/vectors.rs", "\"genoa-v5\""),
    ("snp/reports/milan-v2-a/expected.json", "attestation/snp/tests/vectors.rs", "\"milan-v2-a\""),
    ("snp/reports/milan-v2-a/report.bin", "attestation/snp/tests/vectors.rs", "\"milan-v2-a\""),
    ("snp/reports/milan-v2-a/vcek.der", "attestation/snp/tests/vectors.rs", "\"milan-v2-a\""),
    ("snp/reports/milan-v2-a/vcek-bad-legacy.der", "attestation/snp/tests/vectors.rs", "vcek-bad-legacy.der"),
    ("snp/reports/milan-v2-a/vcek-bad-new.der", "attestation/snp/tests/vectors.rs", "vcek-bad-new.der"),
    ("snp/reports/milan-v2-b/*", "attestation/snp/tests/vectors.rs", "\"milan-v2-b\""),
    ("snp/reports/milan-v3-a/*", "attestation/snp/tests/vectors.rs", "\"milan-v3-a\""),
    ("snp/reports/milan-v3-vlek/*", "attestation/snp/tests/vectors.rs", "\"milan-v3-vlek\""),
    ("snp/reports/turin-v5/*", "attestation/snp/tests/vectors.rs", "\"turin-v5\""),
    ("tdx/certs/intel-sgx-root-ca.der", "attestation/x509/tests/signatures.rs", "intel-sgx-root-ca.der"),
    ("tdx/eventlogs/ccel-a.*", "attestation/tdx/tests/event_logs.rs", "\"ccel-a\""),
    ("tdx/eventlogs/ccel-aael-alibaba.*", "attestation/tdx/tests/event_logs.rs", "\"ccel-aael-alibaba\""),
    ("tdx/eventlogs/ccel-gcp-cos113.bin", "attestation/tdx/tests/event_logs.rs", "ccel-gcp-cos113.bin"),
    (
        "tdx/eventlogs/ccel-gcp-cos113.acpi-table.bin",
        "guest-firmware/stage0/src/tables/acpi.rs",
        "ccel-gcp-cos113.acpi-table.bin",
    ),
    ("tdx/eventlogs/ccel-grub.*", "attestation/tdx/tests/event_logs.rs", "\"ccel-grub\""),
    ("tdx/eventlogs/ccel-ovmf.*", "attestation/tdx/tests/event_logs.rs", "\"ccel-ovmf\""),
    (
        "tdx/evidence/az-tdx-vtpm-evidence-v1.json",
        "attestation/azure/tests/vectors.rs",
        "az-tdx-vtpm-evidence-v1.json",
    ),
    ("tdx/mrtd/OVMF.inteltdx.fd.xz", "attestation/measurement/tests/vectors.rs", "OVMF.inteltdx.fd.xz"),
    ("tdx/mrtd/synthetic-a.fd", "attestation/measurement/tests/vectors.rs", "synthetic-a.fd"),
    ("tdx/qgs/get-quote-req.bin", "attestation/attester/tests/kernel.rs", "get-quote-req.bin"),
    ("tdx/qgs/get-quote-resp-error.bin", "attestation/attester/tests/kernel.rs", "get-quote-resp-error.bin"),
    ("tdx/quotes/sgx-v3/collateral.json", "attestation/tdx/tests/vectors.rs", "tdx/quotes/sgx-v3"),
    ("tdx/quotes/sgx-v3/quote.bin", "attestation/tdx/tests/vectors.rs", "tdx/quotes/sgx-v3"),
    ("tdx/quotes/v4-a/expected-claims.json", "attestation/tdx/tests/vectors.rs", "expected-claims.json"),
    ("tdx/quotes/v4-a/expected.json", "attestation/tdx/tests/common/mod.rs", "\"v4-a\""),
    ("tdx/quotes/v4-a/quote.bin", "attestation/tdx/tests/common/mod.rs", "\"v4-a\""),
    ("tdx/quotes/v4-gcp-cos113/expected.json", "attestation/tdx/tests/common/mod.rs", "\"v4-gcp-cos113\""),
    ("tdx/quotes/v4-gcp-cos113/nonce.bin", "attestation/tdx/tests/vectors.rs", "nonce.bin"),
    ("tdx/quotes/v4-gcp-cos113/quote.bin", "attestation/tdx/tests/common/mod.rs", "\"v4-gcp-cos113\""),
    ("tdx/quotes/v4-uptodate/*", "attestation/tdx/tests/common/mod.rs", "\"v4-uptodate\""),
    ("tdx/quotes/v5-gcollateral/*", "attestation/tdx/tests/common/mod.rs", "\"v5-gcollateral\""),
    ("tdx/quotes/v5-no-tcb-level/*", "attestation/tdx/tests/common/mod.rs", "\"v5-no-tcb-level\""),
    ("tdx/quotes/v5-td15/*", "attestation/tdx/tests/common/mod.rs", "\"v5-td15\""),
    ("tdx/tdreport/report-a.bin", "attestation/tdx/tests/vectors.rs", "report-a.bin"),
];

/// A file, or what begins with the part before the star, and why no test reads it.
const EXCUSED: &[(&str, &str)] = &[
    ("README.md", "says what the files are"),
    ("images/cosign/*", "the order on images: signatures of images are not built yet"),
    ("images/gpg/*", "the order on images: signatures of images are not built yet"),
    ("images/policy/*", "the order on images: signatures of images are not built yet"),
    (
        "images/ocicrypt/offline-*",
        "the order on images: keys and resources from a file of the guest are not built",
    ),
    ("tdx/quotes/sgx-v3/expected.json", "fields of an enclave's quote, which is refused before it is read"),
];

fn matches(pattern: &str, file: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => file.starts_with(beginning),
        None => file == pattern,
    }
}

fn files(root: &Path) -> Vec<String> {
    let (mut folders, mut files) = (vec![PathBuf::new()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else {
                files.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

#[test]
fn every_vector_is_read_by_a_test_or_excused() {
    let Some(root) = kata_cc_test_vectors::path("") else { return };
    let files = files(&root);
    let patterns =
        || USED.iter().map(|(pattern, ..)| *pattern).chain(EXCUSED.iter().map(|(pattern, _)| *pattern));
    let unknown: Vec<&String> =
        files.iter().filter(|file| !patterns().any(|one| matches(one, file))).collect();
    // They are not ours, and new ones no fault of this checkout.
    if !unknown.is_empty() {
        println!("no test reads these, and none is excused: {unknown:#?}");
        assert!(!kata_cc_test_vectors::requires("all-vectors"), "vectors without a test, see above");
    }
    let both = |file: &&String| {
        let used = USED.iter().any(|(pattern, ..)| matches(pattern, file));
        used && EXCUSED.iter().any(|(pattern, _)| matches(pattern, file))
    };
    let twice: Vec<&String> = files.iter().filter(both).collect();
    assert!(twice.is_empty(), "read and excused: {twice:#?}");
    let gone: Vec<&str> = patterns().filter(|one| !files.iter().any(|file| matches(one, file))).collect();
    assert!(gone.is_empty(), "the table names what is not there: {gone:#?}");
}

#[test]
fn the_tests_of_the_table_name_what_they_read() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut once = BTreeSet::new();
    for (pattern, source, words) in USED {
        let text = std::fs::read_to_string(checkout.join(source))
            .unwrap_or_else(|error| panic!("{source}: {error}"));
        assert!(text.contains(words), "{source} does not say {words:?}: it does not read {pattern}");
        assert!(once.insert(pattern), "{pattern} is there twice");
    }
    assert!(EXCUSED.iter().all(|(pattern, why)| once.insert(pattern) && !why.is_empty()));
}
