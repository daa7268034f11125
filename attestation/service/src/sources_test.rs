//! Messages: which are taken, which are refused and why.

use super::*;
use crate::jws::SigningKey;
use kata_cc_kbs_protocol::{base64_standard, base64_url};

const NOW: i64 = 1_800_000_000;

fn key(algorithm: &str) -> SigningKey {
    SigningKey::from_pem(SigningKey::generate_pem(algorithm).unwrap().as_bytes()).unwrap()
}

fn trusting(key: &SigningKey) -> Sources {
    let trusted = TrustedSource {
        name: "release".to_owned(),
        key: VerifyingKey::from_pem(key.public_pem().unwrap().as_bytes()).unwrap(),
        names: Vec::new(),
        subjects: BTreeMap::from([("vmlinux".to_owned(), "kernel".to_owned())]),
        builder: Some("https://builder.example/1".to_owned()),
    };
    Sources { trusted: vec![trusted] }
}

fn message(kind: &str, payload: &str) -> Vec<u8> {
    json!({"version": "0.1.0", "type": kind, "payload": payload}).to_string().into_bytes()
}

fn read(sources: &Sources, message: &[u8], admin: Option<&str>) -> Result<Registration, SourceError> {
    sources.read(message, admin, Some(NOW + 5), NOW)
}

#[test]
fn vectors() {
    let Some(folder) = kata_cc_test_vectors::path("coco/rvps") else { return };
    let none = Sources::default();
    for name in ["sample-message.json", "sample-message-no-version.json"] {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        let values = read(&none, &bytes, Some("me")).unwrap().values;
        assert_eq!(values["snp_bootloader"], json!([4, 10]), "{name}");
        assert_eq!(values["snp_smt_enabled"], json!(true));
        assert_eq!(values["empty"], json!([]));
        assert!(matches!(read(&none, &bytes, None), Err(SourceError::Unsigned(_))), "{name}");
    }
    let cases: Vec<Value> =
        serde_json::from_slice(&std::fs::read(folder.join("invalid.json")).unwrap()).unwrap();
    for case in cases {
        let refused = read(&none, case["message"].as_str().unwrap().as_bytes(), Some("me"));
        assert!(refused.is_err(), "{}", case["case"]);
    }
}

#[test]
fn a_signed_message_needs_no_administrator_but_a_trusted_key() {
    for algorithm in ["EdDSA", "ES256", "ES384"] {
        let (ours, theirs) = (key(algorithm), key(algorithm));
        let sources = trusting(&ours);
        let claims = json!({"iat": NOW - 1, "exp": NOW + 1, "iss": "ci", "expiration": "2030-01-01T00:00:00Z",
            "reference_values": {"svn": [1, 2]}});
        let sign =
            |key: &SigningKey, claims: &Value| message("signed", &key.sign(&json!({}), claims).unwrap());
        let taken = read(&sources, &sign(&ours, &claims), None).unwrap();
        assert_eq!(taken.values["svn"], json!([1, 2]));
        assert_eq!(taken.expires, Some(1_893_456_000));
        assert_eq!((taken.by.as_str(), taken.source.signed_at), ("release", Some(NOW - 1)));
        let why = |claims: Value| read(&sources, &sign(&ours, &claims), None).unwrap_err().to_string();
        assert!(why(json!({"iat": NOW, "exp": NOW, "reference_values": {}})).contains("until"));
        assert!(why(json!({"iat": NOW + 1000, "reference_values": {}})).contains("future"));
        assert!(why(json!({"reference_values": {}})).contains("iat"));
        assert!(why(json!({"iat": NOW, "reference_values": {}, "colour": 1})).contains("colour"));
        let forged = read(&sources, &sign(&theirs, &claims), None);
        assert!(matches!(forged, Err(SourceError::Signature(_))), "{forged:?}");
        // An administrator makes a forged message no better.
        assert!(read(&sources, &sign(&theirs, &claims), Some("me")).is_err());
        assert_eq!(read(&Sources::default(), &sign(&ours, &claims), None), Err(SourceError::NoKeys));
        let mut bound = sources.clone();
        bound.trusted[0].names = vec!["tcb".to_owned()];
        let refused = read(&bound, &sign(&ours, &claims), None);
        assert!(matches!(refused, Err(SourceError::NotAllowed { .. })), "{refused:?}");
    }
}

#[test]
fn manifests_of_measure() {
    let manifest = |tier: &str, digest: &str| {
        let text = json!({"tier": tier, "launch_digest": digest, "host_data": "ab".repeat(32), "vcpus": 1,
            "memory_mib": 2048, "cmdline": "quiet", "kernel": "/k", "initramfs": "/i"});
        message("manifest", &base64_standard(text.to_string().as_bytes()))
    };
    let none = Sources::default();
    let taken = read(&none, &manifest("sim-snp", &"CD".repeat(48)), Some("me")).unwrap();
    assert_eq!(taken.mode, Mode::Add);
    assert_eq!(taken.values["sim_snp_launch_measurement"], json!(["cd".repeat(48)]));
    assert_eq!(taken.values["init_data"], json!(["ab".repeat(32)]));
    assert_eq!(taken.source.detail.as_deref(), Some("sim-snp /k"));
    for bad in [manifest("vm", &"cd".repeat(48)), manifest("snp", "cd"), manifest("snp", &"xy".repeat(48))] {
        assert!(matches!(read(&none, &bad, Some("me")), Err(SourceError::Payload { .. })));
    }
    assert!(matches!(read(&none, &manifest("snp", &"cd".repeat(48)), None), Err(SourceError::Unsigned(_))));
}

/// The example of the DSSE specification (protocol.md): its pre-authentication encoding.
#[test]
fn the_envelope_is_encoded_as_specified() {
    let encoded = pre_authentication("http://example.com/HelloWorld", b"hello world");
    assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
}

fn statement(name: &str, digest: &str, builder: &str) -> Value {
    json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1",
        "subject": [{"name": "other", "digest": {"sha256": "00"}}, {"name": name, "digest": {"sha256": digest}}],
        "predicate": {"buildDefinition": {}, "runDetails": {"builder": {"id": builder}}}})
}

fn envelope(key: &SigningKey, statement: &Value) -> Vec<u8> {
    // A compact JWS signs other bytes, so the raw signature is made by signing what DSSE says.
    let payload = statement.to_string();
    let signature = key.sign_bytes(&pre_authentication(IN_TOTO, payload.as_bytes())).unwrap();
    let envelope = json!({"payloadType": IN_TOTO, "payload": base64_standard(payload.as_bytes()),
        "signatures": [{"keyid": "x", "sig": base64_standard(b"other")}, {"sig": base64_standard(&signature)}]});
    message("in-toto", &base64_standard(envelope.to_string().as_bytes()))
}

#[test]
fn provenance_of_a_trusted_builder() {
    const BUILDER: &str = "https://builder.example/1";
    for algorithm in ["EdDSA", "ES256", "ES384"] {
        let (ours, theirs) = (key(algorithm), key(algorithm));
        let sources = trusting(&ours);
        let digest = "AB".repeat(32);
        let good = envelope(&ours, &statement("vmlinux", &digest, BUILDER));
        let taken = read(&sources, &good, Some("me")).unwrap();
        assert_eq!(taken.values, BTreeMap::from([("kernel".to_owned(), json!(["ab".repeat(32)]))]));
        assert_eq!((taken.by.as_str(), taken.mode), ("me", Mode::Add));
        assert_eq!(taken.source.detail.as_deref(), Some(BUILDER));
        let why = |key: &SigningKey, statement: Value| {
            read(&sources, &envelope(key, &statement), Some("me")).unwrap_err().to_string()
        };
        assert!(why(&theirs, statement("vmlinux", &digest, BUILDER)).contains("no signature"));
        assert!(why(&ours, statement("vmlinux", &digest, "https://elsewhere")).contains("builder"));
        assert!(why(&ours, statement("initrd", &digest, BUILDER)).contains("initrd"));
        assert!(why(&ours, statement("vmlinux", "no hex", BUILDER)).contains("digest"));
        let mut other = statement("vmlinux", &digest, BUILDER);
        other["predicateType"] = json!("https://example.com/vuln");
        assert!(why(&ours, other).contains("no SLSA provenance"));
        let mut no_statement = statement("vmlinux", &digest, BUILDER);
        no_statement["_type"] = json!("https://example.com/x");
        assert!(why(&ours, no_statement).contains("no in-toto statement"));
        assert!(matches!(read(&sources, &good, None), Err(SourceError::Unsigned(_))));
    }
}

#[test]
fn what_is_no_message_is_refused() {
    let sources = trusting(&key("EdDSA"));
    for payload in ["", "%", &base64_standard(b"{}"), &base64_url(b"[]"), "a.b.c"] {
        for kind in ["sample", "manifest", "signed", "in-toto", "swid", "corim", ""] {
            // An empty object is a sample message without values.
            let fine = kind == "sample" && payload == base64_standard(b"{}");
            assert_eq!(read(&sources, &message(kind, payload), Some("me")).is_ok(), fine, "{kind} {payload}");
        }
    }
    assert!(read(&sources, b"[]", Some("me")).is_err());
    assert!(read(&sources, &[0xff; 8], Some("me")).is_err());
}

proptest::proptest! {
    #[test]
    fn no_message_panics(kind in "sample|manifest|signed|in-toto|x", payload: Vec<u8>, text: String) {
        let sources = trusting(&key("EdDSA"));
        let _ = read(&sources, &message(&kind, &base64_standard(&payload)), Some("me"));
        let _ = read(&sources, &message(&kind, &text), Some("me"));
        let _ = read(&sources, &payload, Some("me"));
    }
}
