//! A guest of a simulated platform against the real `kbs` over TLS: the run that works, and each one that must not,
//! with its reason. One test, because making a platform takes seconds.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Guest, Server, init};
use kata_cc_kbs_client::ClientError;
use kata_cc_kbs_protocol::initdata::{Algorithm, InitData, fit};
use kata_cc_kbs_protocol::{ResourcePath, Tee};
use kata_cc_sim_tee::SimPlatform;
use serde_json::json;

const SECRET: &[u8] = b"layer key, never in clear on disk";

const POLICY: &str = r#"package policy
import rego.v1
default allow := false
allow if {
    input.submods.cpu0["ear.status"] == "affirming"
    input.submods.cpu0["ear.veraison.annotated-evidence"]["sim-snp"]
    data["resource-path"][0] == "default"
}
"#;

async fn refused(server: &Server, guest: Guest, init_data: Option<&str>, path: &ResourcePath) -> ClientError {
    server.guest(guest, init_data).get_resource(path).await.unwrap_err()
}

#[tokio::test]
async fn a_guest_gets_its_key_and_every_other_is_refused_for_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let platform = Arc::new(SimPlatform::create(&folder.path().join("sim")).unwrap());
    let other = Arc::new(SimPlatform::create(&folder.path().join("other")).unwrap());
    let ark = folder.path().join("ark-given.pem");
    std::fs::write(&ark, platform.ark_pem().unwrap()).unwrap();
    let dir = folder.path().join("kbs");
    init(&dir, &["--simulated", ark.to_str().unwrap()]);
    let server = Server::start(&dir);
    let admin = server.admin(&dir);

    let path: ResourcePath = "kbs:///default/key/1".parse().unwrap();
    admin.put_resource(&path, SECRET).await.unwrap();
    let listed = admin.resource_metadata(&path).await.unwrap();
    assert_eq!((listed.path.as_str(), listed.size), ("default/key/1", SECRET.len() as u64));
    let data = BTreeMap::from([("policy.rego".to_owned(), "package agent_policy".to_owned())]);
    let init_data = InitData::build(Algorithm::Sha256, &data).unwrap();
    let host_data: [u8; 32] = fit(&init_data.digest());
    let values = BTreeMap::from([
        ("sim_snp_launch_measurement".to_owned(), json!([hex::encode([1; 48])])),
        ("init_data".to_owned(), json!([hex::encode(host_data)])),
    ]);
    admin.set_reference_values(&values).await.unwrap();
    assert_eq!(admin.reference_values().await.unwrap(), values);
    let good = Guest { host_data, ..Guest::new(&platform, 1) };

    // The default policy denies simulated evidence, however good.
    let error = refused(&server, good.clone(), Some(init_data.text()), &path).await;
    assert!(matches!(&error, ClientError::Denied { detail, .. } if detail.contains("sim-snp")), "{error}");

    assert!(admin.resource_policy().await.unwrap().default);
    admin.set_resource_policy(POLICY).await.unwrap();
    assert_eq!(admin.resource_policy().await.unwrap().policy, POLICY);

    // The run that works, several keys over one attestation, in parallel.
    let client = server.guest(good.clone(), Some(init_data.text()));
    assert_eq!(client.get_resource(&path).await.unwrap().as_slice(), SECRET);
    let (one, two) = tokio::join!(client.get_resource(&path), client.get_resource(&path));
    assert_eq!((one.unwrap().as_slice(), two.unwrap().as_slice()), (SECRET, SECRET));

    // Another measurement.
    let error =
        refused(&server, Guest { measurement: [2; 48], ..good.clone() }, Some(init_data.text()), &path).await;
    let expected = format!(
        "measurement {} is not among the reference values sim_snp_launch_measurement",
        hex::encode([2; 48])
    );
    assert!(matches!(&error, ClientError::Denied { detail, .. } if detail.contains(&expected)), "{error}");

    // Init-data that the host wrote and launched the guest with: all of the evidence is right, but nobody registered it.
    let data =
        BTreeMap::from([("policy.rego".to_owned(), "package agent_policy\ndefault X := true".to_owned())]);
    let hosts = InitData::build(Algorithm::Sha256, &data).unwrap();
    for (launched, text) in [(fit(&hosts.digest()), Some(hosts.text())), ([0; 32], None)] {
        let guest = Guest { host_data: launched, ..good.clone() };
        let error = refused(&server, guest, text, &path).await;
        let expected =
            format!("init_data {} is not among the reference values init_data", hex::encode(launched));
        assert!(
            matches!(&error, ClientError::Denied { detail, .. } if detail.contains(&expected)),
            "{error}"
        );
    }

    // Other init-data than the guest was launched with.
    let changed = format!("{} ", init_data.text());
    let error = refused(&server, good.clone(), Some(&changed), &path).await;
    let expected = "the guest was launched with other init-data";
    assert!(
        matches!(&error, ClientError::Attestation { detail, .. } if detail.contains(expected)),
        "{error}"
    );

    // Evidence of another exchange.
    let replay = good.last.lock().unwrap().clone();
    let error = refused(&server, Guest { replay, ..good.clone() }, Some(init_data.text()), &path).await;
    let expected = "made for another nonce or key";
    assert!(
        matches!(&error, ClientError::Attestation { detail, .. } if detail.contains(expected)),
        "{error}"
    );

    // A report under another root.
    let error =
        refused(&server, Guest { platform: other, ..good.clone() }, Some(init_data.text()), &path).await;
    assert!(matches!(&error, ClientError::Attestation { detail, .. } if detail.contains("root")), "{error}");

    // One byte of the report changed after it was signed.
    let tamper = |mut evidence: serde_json::Value| {
        evidence["attestation_report"]["measurement"][0] = json!(9);
        evidence
    };
    let error = refused(&server, Guest { tamper, ..good.clone() }, Some(init_data.text()), &path).await;
    assert!(
        matches!(&error, ClientError::Attestation { detail, .. } if detail.contains("signature")),
        "{error}"
    );

    // Simulated evidence that calls itself hardware.
    let error =
        refused(&server, Guest { tee: Tee::Snp, ..good.clone() }, Some(init_data.text()), &path).await;
    assert!(matches!(&error, ClientError::Attestation { .. }), "{error}");

    // The policy denies; the key id is unknown.
    let elsewhere: ResourcePath = "kbs:///other/key/1".parse().unwrap();
    admin.put_resource(&elsewhere, b"x").await.unwrap();
    let error = client.get_resource(&elsewhere).await.unwrap_err();
    let expected = "rule data.policy.allow of resource-policy does not hold for kbs:///other/key/1";
    assert!(matches!(&error, ClientError::Denied { detail, .. } if detail.contains(expected)), "{error}");
    let unknown: ResourcePath = "kbs:///default/key/2".parse().unwrap();
    let error = client.get_resource(&unknown).await.unwrap_err();
    let expected = "resource kbs:///default/key/2 does not exist";
    assert!(
        matches!(&error, ClientError::NotFound { detail, .. } if detail.starts_with(expected)),
        "{error}"
    );

    let (code, log) = server.stop();
    assert_eq!(code, Some(0));
    for expected in [
        "reason=\"untrusted-root\"",
        "reason=\"report-data\"",
        "reason=\"init-data\"",
        "verdict=\"released\"",
        "verdict=\"denied\"",
    ] {
        assert!(log.contains(expected), "{expected} is not in the log:\n{log}");
    }
    let secret = String::from_utf8_lossy(SECRET);
    assert!(!log.contains(secret.as_ref()));
    for file in std::fs::read_dir(&dir).unwrap() {
        let file = file.unwrap().path();
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|w| w == SECRET), "{}", file.display());
    }

    // After a restart all is still there, and the guest attests again by itself.
    let server = Server::start(&dir);
    let client = server.guest(good.clone(), Some(init_data.text()));
    assert_eq!(client.get_resource(&path).await.unwrap().as_slice(), SECRET);
    server.admin(&dir).delete_resource(&path).await.unwrap();
    assert!(matches!(client.get_resource(&path).await, Err(ClientError::NotFound { .. })));
    server.stop();

    // A key broker that was not told of the simulated root.
    let strict = folder.path().join("strict");
    init(&strict, &[]);
    let server = Server::start(&strict);
    let error = refused(&server, good, Some(init_data.text()), &path).await;
    let expected = "no simulated root configured";
    assert!(
        matches!(&error, ClientError::Attestation { detail, .. } if detail.contains(expected)),
        "{error}"
    );
}
