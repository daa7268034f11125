//! A guest of a simulated TDX platform against the real `kbs` over TLS: the quote, its event log and collateral as they are sent, the run
//! that works, and those that must not, each with its reason.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use common::{Server, init};
use kata_cc_kbs_client::{ClientError, EvidenceProvider};
use kata_cc_kbs_protocol::initdata::fit;
use kata_cc_kbs_protocol::{ResourcePath, Tee, base64_standard};
use kata_cc_sim_tee::tdx::{QuoteRequest, TdxPlatform};
use serde_json::{Value, json};

const SECRET: &[u8] = b"for a trust domain only";

const POLICY: &str = r#"package policy
import rego.v1
default allow := false
allow if {
    input.submods.cpu0["ear.status"] == "affirming"
    input.submods.cpu0["ear.veraison.annotated-evidence"]["sim-tdx"]
}
"#;

/// A trust domain whose host gives it collateral.
#[derive(Clone)]
struct TrustDomain {
    platform: Arc<TdxPlatform>,
    mr_td: [u8; 48],
    /// Of what it started.
    rtmr: [[u8; 48]; 4],
    tee: Tee,
    /// Changes the quote before it is sent.
    tamper: fn(&mut Vec<u8>),
    collateral: bool,
}

#[async_trait]
impl EvidenceProvider for TrustDomain {
    fn tee(&self) -> Tee {
        self.tee
    }

    async fn evidence(&self, report_data: &[u8]) -> Result<Value, String> {
        let request = QuoteRequest {
            mr_td: self.mr_td,
            rtmr: self.rtmr,
            report_data: fit(report_data),
            ..QuoteRequest::default()
        };
        let mut quote = self.platform.quote(&request).map_err(|e| e.to_string())?;
        (self.tamper)(&mut quote);
        let mut evidence = json!({"quote": base64_standard(&quote), "cc_eventlog": null});
        if self.collateral {
            evidence["collateral"] = self.platform.collateral().map_err(|e| e.to_string())?.to_value();
        }
        Ok(evidence)
    }
}

#[tokio::test]
async fn a_trust_domain_gets_its_key_and_every_other_is_refused_for_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let now = kata_cc_attestation_service::now().unsigned_abs() - 1;
    let platform = Arc::new(TdxPlatform::create(now).unwrap());
    let root = folder.path().join("root.pem");
    std::fs::write(&root, platform.root_pem()).unwrap();
    let dir = folder.path().join("kbs");
    init(&dir, &["--simulated", root.to_str().unwrap()]);
    let server = Server::start(&dir);
    let admin = server.admin(&dir);
    let path: ResourcePath = "kbs:///default/key/1".parse().unwrap();
    admin.put_resource(&path, SECRET).await.unwrap();
    admin.set_resource_policy(POLICY).await.unwrap();
    let good = TrustDomain {
        platform,
        mr_td: [8; 48],
        rtmr: [[0; 48], [1; 48], [2; 48], [0; 48]],
        tee: Tee::SimTdx,
        tamper: |_| {},
        collateral: true,
    };
    let ask = async |guest: TrustDomain| server.client(guest, None).get_resource(&path).await;
    let told = async |guest: TrustDomain| ask(guest).await.unwrap_err();

    // Good evidence of something that nobody registered.
    let error = told(good.clone()).await;
    let expected = format!("mr_td {} cannot be judged: no reference value", hex::encode([8; 48]));
    assert!(matches!(&error, ClientError::Denied { detail, .. } if detail.contains(&expected)), "{error}");
    let default = QuoteRequest::default();
    let values = BTreeMap::from([
        ("sim_mr_td".to_owned(), json!([hex::encode([8; 48])])),
        ("rtmr_1".to_owned(), json!([hex::encode([1; 48])])),
        ("rtmr_2".to_owned(), json!([hex::encode([2; 48])])),
        ("xfam".to_owned(), json!(["e700060000000000"])),
        ("init_data".to_owned(), json!([hex::encode(default.mr_config_id)])),
    ]);
    admin.set_reference_values(&values).await.unwrap();
    assert_eq!(ask(good.clone()).await.unwrap().as_slice(), SECRET);

    // Another kernel; another firmware.
    for guest in [
        TrustDomain { rtmr: [[0; 48], [9; 48], [2; 48], [0; 48]], ..good.clone() },
        TrustDomain { mr_td: [9; 48], ..good.clone() },
    ] {
        let error = told(guest).await;
        assert!(matches!(&error, ClientError::Denied { .. }), "{error}");
    }
    // A bit of what is signed; the same quote as that of hardware; another platform; no collateral at hand.
    let other = Arc::new(TdxPlatform::create(now).unwrap());
    for (guest, part) in [
        (TrustDomain { tamper: |quote| quote[200] ^= 1, ..good.clone() }, "signature"),
        (TrustDomain { tee: Tee::Tdx, ..good.clone() }, "collateral"),
        (TrustDomain { platform: other, ..good.clone() }, "root"),
        (TrustDomain { collateral: false, ..good.clone() }, "collateral"),
    ] {
        let error = told(guest).await;
        assert!(
            matches!(&error, ClientError::Attestation { detail, .. } if detail.contains(part)),
            "{part}: {error}"
        );
    }
    let (code, log) = server.stop();
    assert_eq!(code, Some(0));
    assert!(log.contains("sim-tdx") && !log.contains("trust domain only"), "{log}");
}
