//! Against a server that plays Intel's PCS or a PCCS with recorded collateral; and bundles of all there is.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use axum::http::HeaderMap;
use axum::response::IntoResponse as _;
use common::*;
use kata_cc_endorsements::{Bundle, EndorsementsConfig, IntelTee, Item, PckCa, SourceError};
use kata_cc_snp::verify::{Product, VekKind};
use serde_json::Value;

const FMSPC: [u8; 6] = [0xB0, 0xC0, 0x6F, 0, 0, 0];

#[tokio::test]
async fn collateral_comes_whole_and_byte_for_byte() {
    let Some(json) = collateral() else { return };
    let served = json.clone();
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(move |_, path| pccs(&served, path)).await;
    let config = EndorsementsConfig { cache_dir: Some(folder.path().to_owned()), ..config(&server) };
    let endorser = endorser(&config);
    let got = endorser.collateral(IntelTee::Tdx, FMSPC, PckCa::Platform).await.unwrap();
    let again: Value = serde_json::from_str(&got.to_json().unwrap()).unwrap();
    assert_eq!(again, json);
    // Its nextUpdate is in the past and the service has nothing newer: not asked at every guest.
    endorser.collateral(IntelTee::Tdx, FMSPC, PckCa::Platform).await.unwrap();
    assert_eq!(server.hits(), 4);
    // And from the disk alone.
    let air_gapped = EndorsementsConfig { air_gapped: true, ..config };
    let cold = common::endorser(&air_gapped).collateral(IntelTee::Tdx, FMSPC, PckCa::Platform).await.unwrap();
    assert_eq!(cold, got);
    assert_eq!(server.hits(), 4);
}

#[tokio::test]
async fn a_real_quote_is_completed_looked_up_and_verified() {
    use kata_cc_kbs_protocol::{Tee, base64_standard};
    use kata_cc_tdx::{
        CollateralKey, CollateralSource as _, Options, Quote, Trailing, TrustAnchor, TrustedCollateral,
    };
    let Some(json) = collateral() else { return };
    let quote = kata_cc_test_vectors::read("tdx/quotes/v4-uptodate/quote.bin").unwrap();
    let server = Server::start(move |_, path| pccs(&json, path)).await;
    let endorser = endorser(&config(&server));
    let evidence = serde_json::json!({"quote": base64_standard(&quote), "cc_eventlog": null});
    let key = CollateralKey::of(&Quote::parse(&quote, Trailing::Zeros).unwrap()).unwrap();
    assert!(endorser.find(&key).is_none(), "a look-up fetches nothing");
    assert_eq!(endorser.complete(Tee::Tdx, &evidence).await, []);
    let found = endorser.find(&key).unwrap();
    assert!(std::sync::Arc::ptr_eq(&found, &endorser.find(&key).unwrap()), "taken apart once");
    let trusted = TrustedCollateral::new(&found, &TrustAnchor::Intel).unwrap();
    // 2025-07-01: within the collateral's time.
    kata_cc_tdx::verify(&quote, &trusted, &Options::at(1_751_328_000)).unwrap();
    assert_eq!(server.hits(), 4);
}

#[tokio::test]
async fn what_is_not_the_collateral_asked_for_is_refused() {
    let Some(json) = collateral() else { return };
    let tcb_info = Item::TcbInfo { tee: IntelTee::Tdx, fmspc: FMSPC };
    let chain = json["tcb_info_issuer_chain"].as_str().unwrap().to_owned();
    let body = |text: &str| format!("{{\"tcbInfo\":{text},\"signature\":\"00\"}}").into_bytes();
    let other = body(
        &json["tcb_info"]
            .as_str()
            .unwrap()
            .replace("B0C06F000000", "00906ED50000")
            .replace("b0c06f000000", "00906ed50000"),
    );
    let sgx = body(&json["tcb_info"].as_str().unwrap().replace("\"TDX\"", "\"SGX\""));
    let cases: Vec<(Option<String>, Vec<u8>, &str)> = vec![
        (None, other.clone(), "without the header"),
        (Some("%zz".to_owned()), other.clone(), "URL encoding"),
        (Some(encoded("no certificates")), other.clone(), "issuer chain"),
        (Some(encoded(&chain)), other, "expected B0C06F000000"),
        (Some(encoded(&chain)), sgx, "expected TDX"),
        (Some(encoded(&chain)), b"[]".to_vec(), "no member tcbInfo"),
        (Some(encoded(&chain)), b"<html>".to_vec(), "is no JSON"),
    ];
    for (chain, body, why) in cases {
        let server = Server::start(move |_, _| {
            let mut headers = HeaderMap::new();
            if let Some(chain) = &chain {
                headers.insert("TCB-Info-Issuer-Chain", chain.parse().unwrap());
            }
            (headers, body.clone()).into_response()
        })
        .await;
        let refused = endorser(&config(&server)).get(&tcb_info).await.unwrap_err();
        assert!(
            matches!(refused, SourceError::Unusable { .. }) && refused.to_string().contains(why),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn all_recorded_endorsements_make_a_bundle_for_a_site_without_a_network() {
    let Some(vectors) = kata_cc_test_vectors::path("") else { return };
    let mut bundle = Bundle::load(&vectors.join("snp")).unwrap();
    for part in ["v4-uptodate", "v5-gcollateral"] {
        for (item, document) in Bundle::load(&vectors.join("tdx/quotes").join(part)).unwrap().iter() {
            bundle.add(item.clone(), document.clone());
        }
    }
    let recorded = ["milan-v2-a", "milan-v2-b", "milan-v3-a", "genoa-v5", "turin-v5"]
        .map(|name| recorded(name).unwrap());
    for one in &recorded[..] {
        assert!(bundle.get(&one.item).is_some(), "{}", one.item);
    }
    for product in Product::ALL {
        for kind in [VekKind::Vcek, VekKind::Vlek] {
            assert!(bundle.get(&Item::SnpChain { kind, product }).is_some(), "{kind} {product:?}");
        }
    }
    assert!(bundle.collateral(IntelTee::Tdx, FMSPC, PckCa::Platform).is_some());

    let folder = tempfile::tempdir().unwrap();
    let (plain, oci) = (folder.path().join("plain"), folder.path().join("oci"));
    bundle.write_folder(&plain).unwrap();
    bundle.write_oci(&oci).unwrap();
    bundle.write_oci(&oci).unwrap_err();
    for form in [&plain, &oci] {
        let again = Bundle::load(form).unwrap();
        assert!(again.iter().eq(bundle.iter()), "{}", form.display());
        let config = EndorsementsConfig {
            offline_dir: Some(form.clone()),
            air_gapped: true,
            ..EndorsementsConfig::default()
        };
        let endorser = config.build().unwrap();
        for one in &recorded {
            assert_eq!(endorser.get(&one.item).await.unwrap().bytes, one.vcek);
        }
        endorser.collateral(IntelTee::Tdx, FMSPC, PckCa::Platform).await.unwrap();
    }
    a_changed_layout_is_refused(&oci);
}

fn a_changed_layout_is_refused(oci: &std::path::Path) {
    let largest = std::fs::read_dir(oci.join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
        .unwrap();
    let good = std::fs::read(&largest).unwrap();
    let mut changed = good.clone();
    changed[10] ^= 1;
    std::fs::write(&largest, changed).unwrap();
    assert!(Bundle::load(oci).unwrap_err().to_string().contains("has digest"));
    std::fs::write(&largest, good).unwrap();
    std::fs::write(oci.join("index.json"), br#"{"manifests":[]}"#).unwrap();
    assert!(Bundle::load(oci).unwrap_err().to_string().contains("names no artifact"));
    let traversal = r#"{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../../etc/passwd","size":1}]}"#;
    std::fs::write(oci.join("index.json"), traversal).unwrap();
    assert!(Bundle::load(oci).unwrap_err().to_string().contains("64 hex digits"));
}

#[test]
fn a_file_in_the_place_of_another_is_refused() {
    let Some(milan) = recorded("milan-v3-a") else { return };
    let genoa = recorded("genoa-v5").unwrap();
    let mut bundle = Bundle::default();
    let refused = bundle.add_file(&milan.item.path(), genoa.vcek).unwrap_err();
    assert!(refused.to_string().contains("is for chip"), "{refused}");
    bundle.add_file("notes.txt", b"hello".to_vec()).unwrap();
    assert!(bundle.is_empty() && bundle.skipped == ["notes.txt"]);
}

proptest::proptest! {
    #[test]
    fn any_file_is_added_skipped_or_refused(name in ".{0,40}", bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        let mut bundle = Bundle::default();
        let _ = bundle.add_file(&name, bytes.clone());
        let _ = kata_cc_endorsements::oci::check_manifest(&bytes);
    }
}
