//! Sealed secrets against the recorded ones of CoCo, and each way in which one can be wrong.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use async_trait::async_trait;
use kata_cc_guest_api::sealed::{
    self, Content, MAX_SEALED, Payload, ResourceSource, Sealed, SealedError, SigningKey, VerifyingKey,
};
use kata_cc_kbs_protocol::{ResourcePath, base64_url};
use proptest::prelude::*;
use serde_json::{Value, json};
use zeroize::Zeroizing;

fn vector(name: &str) -> Option<Vec<u8>> {
    kata_cc_test_vectors::read(&format!("coco/sealed/{name}"))
}

/// Gives every resource its own name as contents, and the signer's key where CoCo's vectors look for it.
struct Names(Vec<u8>);

#[async_trait]
impl ResourceSource for Names {
    async fn resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, String> {
        Ok(Zeroizing::new(match path.kind() {
            "signing-key" => self.0.clone(),
            _ => path.to_string().into_bytes(),
        }))
    }
}

#[tokio::test]
async fn the_recorded_secrets_have_their_verdicts() {
    let (Some(cases), Some(jwk)) = (vector("sealed.json"), vector("test-key.json")) else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("test-key"), &jwk).unwrap();
    let source = Names(jwk);
    let cases: Value = serde_json::from_slice(&cases).unwrap();
    let mut accepted = 0;
    for case in cases["secrets"].as_array().unwrap() {
        let text = case["sealed"].as_str().unwrap().as_bytes();
        let strict = sealed::Settings { credentials: dir.path().to_owned(), allow_unsigned: false };
        let opened = sealed::unseal(text, &strict, &source).await;
        match case["verdict_with_test-key"].as_str().unwrap() {
            "accept" => {
                accepted += 1;
                assert_eq!(opened.unwrap().as_slice(), b"one/2/trois");
            }
            _ => {
                let refused = opened.unwrap_err();
                let expected = match case["why"].as_str().unwrap() {
                    "signature" => matches!(refused, SealedError::Signature { .. }),
                    "must start with sealed." => matches!(refused, SealedError::Form(_)),
                    _ => refused == SealedError::Unsigned,
                };
                assert!(expected, "{}: {refused}", case["name"]);
            }
        }
        // Switched off, the old form opens too, as does one whose signature is wrong.
        let lax = sealed::Settings { allow_unsigned: true, ..strict };
        let opened = sealed::unseal(text, &lax, &source).await;
        assert_eq!(opened.is_ok(), case["name"] != "no prefix", "{}", case["name"]);
    }
    assert!(accepted > 0);
}

#[test]
fn payloads_are_cocos() {
    for name in ["vault-1.json", "vault-2.json", "envelope-1.json"] {
        let Some(bytes) = vector(name) else { return };
        let payload: Payload = serde_json::from_slice(&bytes).unwrap();
        let written = serde_json::to_value(&payload).unwrap();
        assert_eq!(written, serde_json::from_slice::<Value>(&bytes).unwrap(), "{name}");
    }
    for name in ["test-key.json", "test-key-2.json"] {
        let Some(bytes) = vector(name) else { return };
        VerifyingKey::from_jwk(&bytes).unwrap();
        let key = SigningKey::from_jwk(&bytes).unwrap();
        let sealed = Payload::vault(&"a/b/c".parse().unwrap()).seal("k", &key).unwrap();
        Sealed::parse(sealed.as_bytes()).unwrap().verified(&key.verifying()).unwrap();
    }
}

fn key() -> SigningKey {
    SigningKey::generate().unwrap()
}

#[tokio::test]
async fn other_providers_versions_and_names_are_refused() {
    let source = Names(Vec::new());
    let open = |change: fn(&mut Value)| {
        let mut payload = serde_json::to_value(Payload::vault(&"a/b/c".parse().unwrap())).unwrap();
        change(&mut payload);
        let payload: Payload = serde_json::from_value(payload).unwrap();
        let source = &source;
        async move { payload.open(source).await.map_err(|error| error.to_string()) }
    };
    assert_eq!(open(|_| ()).await.unwrap().as_slice(), b"a/b/c");
    assert!(open(|p| p["provider"] = json!("aliyun")).await.unwrap_err().contains("\"aliyun\""));
    assert!(open(|p| p["version"] = json!("0.2.0")).await.unwrap_err().contains("0.2.0"));
    assert!(open(|p| p["name"] = json!("kbs:///a/b")).await.unwrap_err().contains("kbs:///a/b"));
    let Some(bytes) = vector("envelope-1.json") else { return };
    let payload: Payload = serde_json::from_slice(&bytes).unwrap();
    assert!(matches!(payload.open(&source).await, Err(SealedError::Provider(_))));
}

#[test]
fn an_envelope_opens_with_its_key_alone() {
    let path: ResourcePath = "a/b/c".parse().unwrap();
    let secret = b"hunter2 \0 binary \xff";
    let Content::Envelope(envelope) = Payload::envelope(&path, &[7; 32], secret).unwrap().content else {
        panic!("no envelope");
    };
    assert_eq!(envelope.open(&[7; 32]).unwrap().as_slice(), secret);
    assert!(matches!(envelope.open(&[8; 32]), Err(SealedError::Open(_))));
    assert!(matches!(envelope.open(&[7; 31]), Err(SealedError::Resource { .. })));
    assert!(Payload::envelope(&path, &[7; 16], secret).is_err());
    let changed = |change: fn(&mut sealed::Envelope)| {
        let mut envelope = envelope.clone();
        change(&mut envelope);
        envelope.open(&[7; 32]).unwrap_err()
    };
    assert!(matches!(changed(|e| e.wrap_type = "A256CTR".to_owned()), SealedError::Cipher(_)));
    assert!(matches!(changed(|e| e.iv = "AAAA".to_owned()), SealedError::Form(_)));
    assert!(matches!(changed(|e| e.encrypted_key = "AAAA".to_owned()), SealedError::Form(_)));
    assert!(matches!(changed(|e| e.encrypted_data = "*".to_owned()), SealedError::Form(_)));
    assert!(matches!(changed(|e| e.encrypted_data = "AAAA".to_owned()), SealedError::Open(_)));
}

#[tokio::test]
async fn a_signers_key_is_a_resource_or_a_file_of_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let signer = key();
    let (private, public) = signer.to_jwks("owner").unwrap();
    assert!(!public.contains("\"d\"") && private.contains("\"d\""));
    assert!(SigningKey::from_jwk(public.as_bytes()).is_err());
    std::fs::create_dir(dir.path().join("keys")).unwrap();
    std::fs::write(dir.path().join("keys/owner"), &public).unwrap();
    std::fs::write(dir.path().join("outside"), &public).unwrap();
    let settings = sealed::Settings { credentials: dir.path().join("keys"), allow_unsigned: false };
    let source = Names(public.into_bytes());
    let payload = Payload::vault(&"a/b/c".parse().unwrap());
    for kid in ["owner", "kbs:///default/signing-key/x"] {
        let sealed = payload.seal(kid, &signer).unwrap() + "\n";
        sealed::unseal(sealed.as_bytes(), &settings, &source).await.unwrap();
    }
    for kid in [
        "",
        "../outside",
        "/etc/passwd",
        ".hidden",
        "absent",
        "file:///x",
        "kbs:///a/b",
        "a/b",
        "kbs:///a/b/c",
    ] {
        let sealed = payload.seal(kid, &signer).unwrap();
        let refused = sealed::unseal(sealed.as_bytes(), &settings, &source).await.unwrap_err();
        assert!(matches!(refused, SealedError::Key { .. }), "{kid}: {refused}");
    }
}

#[test]
fn what_is_not_signed_as_it_should_be_is_refused() {
    let with_header = |header: Value| {
        let text = format!("sealed.{}.e30.AAAA", base64_url(header.to_string().as_bytes()));
        Sealed::parse(text.as_bytes()).unwrap_err()
    };
    for alg in ["none", "HS256", "ES384", ""] {
        assert!(matches!(with_header(json!({"alg": alg, "kid": "k"})), SealedError::Algorithm(_)), "{alg}");
    }
    assert!(matches!(with_header(json!({"alg": "ES256"})), SealedError::Form(_)));
    assert!(matches!(
        with_header(json!({"alg": "ES256", "kid": "k", "crit": ["b64"]})),
        SealedError::Form(_)
    ));
    for text in
        ["sealed.", "sealed.a.b", "sealed.a.b.c.d", "sealed.*.e30.AAAA", "sealed.e30=.e30.AAAA", "\u{e9}"]
    {
        assert!(matches!(Sealed::parse(text.as_bytes()), Err(SealedError::Form(_))), "{text}");
    }
    assert!(matches!(Sealed::parse(b"sealed.\xff"), Err(SealedError::Form(_))));
    let long = format!("sealed.{}", "a".repeat(MAX_SEALED));
    assert!(matches!(Sealed::parse(long.as_bytes()), Err(SealedError::TooLong(_))));
    for jwk in [
        "{}",
        "[]",
        r#"{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}"#,
        r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#,
        r#"{"kty":"RSA","n":"AA","e":"AQAB"}"#,
    ] {
        assert!(VerifyingKey::from_jwk(jwk.as_bytes()).is_err(), "{jwk}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(sealed\\.)?[A-Za-z0-9_.-]{0,80}") {
        if let Ok(sealed) = Sealed::parse(text.as_bytes()) {
            let _ = sealed.unverified();
        }
    }

    #[test]
    fn every_changed_character_is_noticed(at in 7_usize..300, to in "[A-Za-z0-9_-]") {
        let key = key();
        let text = Payload::vault(&"default/secret/1".parse().unwrap()).seal("k", &key).unwrap();
        let mut changed = text.clone().into_bytes();
        let at = at % (changed.len() - 7) + 7;
        changed[at] = to.as_bytes()[0];
        prop_assume!(changed != text.as_bytes());
        let verified = Sealed::parse(&changed).and_then(|sealed| sealed.verified(&key.verifying()));
        prop_assert!(verified.is_err());
    }
}
