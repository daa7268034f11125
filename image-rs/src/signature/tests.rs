//! One signature against one requirement: every kind that is good, and every single thing that can be wrong with it.
#![allow(clippy::unwrap_used)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use serde_json::{Value, json};

use super::fetch::{Attached, Form};
use super::requirement::Requirement;
use super::test_utils::*;
use super::trust::{Image, Subject, Trust};
use super::{Named, NoMaterial, Policy, Reason};
use crate::digest::Digest;

const IMAGE: &str = "host.io/app:1";
const MANIFEST: &[u8] = b"the manifest";
const INDEX: &[u8] = b"the index that led to it";

fn digest(bytes: &[u8]) -> String {
    Digest::sha256(bytes).to_string()
}

/// The first requirement of a policy, asked about one signature of the image.
fn check(requirement: &Value, form: &Form) -> Result<(), Reason> {
    let policy = Policy::parse(policy(requirement).as_bytes()).unwrap();
    let named = Named::parse(IMAGE).unwrap();
    let subject = |bytes: &[u8]| Subject { digest: Digest::sha256(bytes), bytes: bytes.to_vec() };
    let subjects = [subject(MANIFEST), subject(INDEX)];
    let (_, requirements) = policy.requirements(&named);
    let Some(Requirement::Sigstore(wanted)) = requirements.first() else { panic!("no sigstoreSigned") };
    let trust = block_on(Trust::load(wanted, &NoMaterial)).unwrap();
    trust.check(&Image { named: &named, subjects: &subjects }, form)
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

fn word(requirement: &Value, form: &Form) -> &'static str {
    check(requirement, form).map_or_else(|reason| reason.word(), |()| "good")
}

fn attached(payload: Vec<u8>, signature: &[u8]) -> Attached {
    let signature = Some(STANDARD.encode(signature));
    Attached { payload, signature, certificate: None, chain: None, bundle: None }
}

fn keyed(key: &Key, payload: Vec<u8>) -> Attached {
    let signature = key.sign(&payload);
    attached(payload, &signature)
}

fn form(attached: Attached) -> Form {
    Form::Attached(Box::new(attached))
}

fn good_payload() -> Vec<u8> {
    payload(&digest(MANIFEST), "host.io/app")
}

#[test]
fn every_kind_of_key_verifies_its_own_and_no_others() {
    let kinds = [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519, &rcgen::PKCS_RSA_SHA256];
    let keys = kinds.into_iter().map(Key::of).chain([Key::new()]).collect::<Vec<_>>();
    for (one, key) in keys.iter().enumerate() {
        for (other, by) in keys.iter().enumerate() {
            let expected = if one == other { "good" } else { "wrong-key" };
            assert_eq!(word(&by_key(key, "matchRepository"), &form(keyed(by, good_payload()))), expected);
        }
    }
    // Several keys: any of them.
    let all: Vec<_> = keys.iter().map(Key::data).collect();
    let any =
        json!({"type": "sigstoreSigned", "keyDatas": all, "signedIdentity": {"type": "matchRepository"}});
    for key in &keys {
        assert_eq!(word(&any, &form(keyed(key, good_payload()))), "good");
    }
}

#[test]
fn a_signature_must_be_of_this_image_under_this_name() {
    let key = Key::new();
    let check = |payload: Vec<u8>, identity: &str| word(&by_key(&key, identity), &form(keyed(&key, payload)));
    assert_eq!(check(good_payload(), "matchRepository"), "good");
    assert_eq!(check(payload(&digest(INDEX), "host.io/app"), "matchRepository"), "good");
    assert_eq!(check(payload(&digest(MANIFEST), IMAGE), "matchRepoDigestOrExact"), "good");
    assert_eq!(check(payload(&digest(b"other"), IMAGE), "matchExact"), "other-digest");
    assert_eq!(check(good_payload(), "matchExact"), "wrong-identity");
    assert_eq!(check(payload(&digest(MANIFEST), "host.io/app:2"), "matchExact"), "wrong-identity");
    assert_eq!(check(payload(&digest(MANIFEST), "host.io/other"), "matchRepository"), "wrong-identity");
    assert_eq!(check(b"{}".to_vec(), "matchRepository"), "malformed");
}

#[test]
fn whatever_is_changed_is_refused() {
    let key = Key::new();
    let policy = by_key(&key, "matchRepository");
    let good = keyed(&key, good_payload());
    let signature = STANDARD.decode(good.signature.as_deref().unwrap()).unwrap();
    for at in 0..good.payload.len() {
        let mut changed = good_payload();
        changed[at] ^= 1;
        assert_eq!(word(&policy, &form(attached(changed, &signature))), "wrong-key", "{at}");
    }
    for at in 0..signature.len() {
        let mut changed = signature.clone();
        changed[at] ^= 1;
        assert_eq!(word(&policy, &form(attached(good_payload(), &changed))), "wrong-key", "{at}");
    }
    let mut without = keyed(&key, good_payload());
    without.signature = None;
    assert_eq!(word(&policy, &form(without)), "wrong-key");
    let mut broken = keyed(&key, good_payload());
    broken.signature = Some("%".to_owned());
    assert_eq!(word(&policy, &form(broken)), "malformed");
}

#[test]
fn a_key_with_a_log_needs_the_entry_of_this_very_signature() {
    let (key, log, other) = (Key::new(), Log::new(), Key::new());
    let mut policy = by_key(&key, "matchRepository");
    policy["rekorPublicKeyData"] = log.0.data().into();
    let signature = key.sign(&good_payload());
    let with = |bundle: Option<String>| {
        let mut one = attached(good_payload(), &signature);
        one.bundle = bundle;
        check(&policy, &form(one)).map_or_else(|reason| reason.to_string(), |()| "good".to_owned())
    };
    let entry = |body: &Value| with(Some(log.annotation(body, NOW)));
    assert_eq!(entry(&hashed(&good_payload(), &signature, &key.pem())), "good");
    assert!(with(None).starts_with("not logged: no log entry"), "{}", with(None));
    let by_another = Log(Key::new()).annotation(&hashed(&good_payload(), &signature, &key.pem()), NOW);
    assert!(with(Some(by_another)).starts_with("not logged: an entry that does not verify"));
    assert!(entry(&hashed(b"x", &signature, &key.pem())).contains("another payload"));
    assert!(entry(&hashed(&good_payload(), b"x", &key.pem())).contains("another signature"));
    assert!(entry(&hashed(&good_payload(), &signature, &other.pem())).contains("another signature"));
    let mut body = hashed(&good_payload(), &signature, &key.pem());
    body["kind"] = "intoto".into();
    assert!(entry(&body).contains("kind intoto"));
    // The time is under the log's signature.
    let text = log.annotation(&hashed(&good_payload(), &signature, &key.pem()), NOW);
    let moved = text.replace(&NOW.to_string(), &(NOW + 1).to_string());
    assert!(with(Some(moved)).starts_with("not logged"));
    assert!(with(Some("{}".to_owned())).contains("log entry cannot be read"));
    assert!(with(Some(text.replace("logIndex", "logindex"))).contains("log entry cannot be read"));
}

/// A keyless signature: whoever, logged when, by which certificate.
fn keyless(fulcio: &Fulcio, log: &Log, person: &Person, time: u64) -> Attached {
    let (key, pem, _) = fulcio.issue(person);
    let mut one = keyed(&key, good_payload());
    let signature = key.sign(&good_payload());
    one.signature = Some(STANDARD.encode(&signature));
    one.bundle = Some(log.annotation(&hashed(&good_payload(), &signature, &pem), time));
    one.certificate = Some(pem);
    one.chain = Some(fulcio.chain());
    one
}

#[test]
fn keyless_by_address_and_by_workflow() {
    let (fulcio, log) = (Fulcio::new(), Log::new());
    let check = |subject: &str, person: &Person| {
        let policy = by_fulcio(&fulcio, &log, subject, "matchRepository");
        word(&policy, &form(keyless(&fulcio, &log, person, NOW)))
    };
    assert_eq!(check(SUBJECT, &Person::default()), "good");
    assert_eq!(check("other@example.com", &Person::default()), "wrong-signer");
    for (issuer, old_issuer, expected) in [
        (Some(ISSUER), None, "good"),
        (None, Some(ISSUER), "good"),
        (Some("https://other"), None, "wrong-signer"),
        (Some(ISSUER), Some("https://other"), "malformed"),
        (None, None, "malformed"),
    ] {
        assert_eq!(check(SUBJECT, &Person { issuer, old_issuer, ..Person::default() }), expected);
    }
    let workflow = "https://git.example/team/app/.workflows/release.yml@refs/heads/main";
    let san = SanType::URI(workflow.try_into().unwrap());
    assert_eq!(check(workflow, &Person { san: san.clone(), ..Person::default() }), "good");
    assert_eq!(check(SUBJECT, &Person { san, ..Person::default() }), "wrong-signer");
    // An address that reads like a URI is no URI.
    let san = SanType::Rfc822Name(workflow.try_into().unwrap());
    assert_eq!(check(workflow, &Person { san, ..Person::default() }), "wrong-signer");
}

#[test]
fn a_certificate_must_be_good_when_it_was_logged() {
    let (fulcio, log) = (Fulcio::new(), Log::new());
    let policy = by_fulcio(&fulcio, &log, SUBJECT, "matchRepository");
    let at = |time: u64| check(&policy, &form(keyless(&fulcio, &log, &Person::default(), time)));
    at(NOW).map_err(|reason| reason.to_string()).unwrap();
    at(NOW + 600).unwrap();
    for time in [NOW + 601, NOW - 61] {
        let reason = at(time).unwrap_err();
        assert_eq!(reason.word(), "expired-certificate", "{reason}");
        assert!(reason.to_string().contains(&time.to_string()), "{reason}");
    }
    // Long after: the log's time counts, not today's. A root that was not valid then is none.
    let (old, person) = (Fulcio::valid(NOW + 10, NOW + 100), Person::default());
    let policy = by_fulcio(&old, &log, SUBJECT, "matchRepository");
    assert!(check(&policy, &form(keyless(&old, &log, &person, NOW))).is_err());
}

#[test]
fn a_certificate_must_lead_to_a_root_of_the_policy_and_may_sign() {
    let (fulcio, other, log) = (Fulcio::new(), Fulcio::new(), Log::new());
    let policy = by_fulcio(&fulcio, &log, SUBJECT, "matchRepository");
    let mut foreign = keyless(&other, &log, &Person::default(), NOW);
    assert_eq!(word(&policy, &form(keyless(&other, &log, &Person::default(), NOW))), "untrusted-certificate");
    foreign.chain = Some(fulcio.chain());
    assert_eq!(word(&policy, &form(foreign)), "untrusted-certificate");
    for usage in [None, Some(ExtendedKeyUsagePurpose::ServerAuth)] {
        let person = Person { usage, ..Person::default() };
        assert_eq!(word(&policy, &form(keyless(&fulcio, &log, &person, NOW))), "untrusted-certificate");
    }
    let changed = |change: &dyn Fn(&mut Attached)| {
        let mut one = keyless(&fulcio, &log, &Person::default(), NOW);
        change(&mut one);
        word(&policy, &form(one))
    };
    assert_eq!(changed(&|one| one.chain = None), "untrusted-certificate");
    assert_eq!(changed(&|one| one.bundle = None), "not-logged");
    assert_eq!(changed(&|one| one.certificate = None), "untrusted-certificate");
    assert_eq!(changed(&|one| one.certificate = Some("x".to_owned())), "malformed");
    let another = fulcio.issue(&Person::default()).1;
    assert_eq!(changed(&|one| one.certificate = Some(another.clone())), "not-logged");
    let twice = |one: &mut Attached| one.certificate = one.certificate.as_ref().map(|pem| pem.repeat(2));
    assert_eq!(changed(&twice), "malformed");
    let many = |one: &mut Attached| one.chain = one.chain.as_ref().map(|pem| pem.repeat(9));
    assert_eq!(changed(&many), "limit");
    // A signature that another key made, though log and certificate fit each other.
    let (_, pem, _) = fulcio.issue(&Person::default());
    let stranger = Key::new().sign(&good_payload());
    let mut one = attached(good_payload(), &stranger);
    one.bundle = Some(log.annotation(&hashed(&good_payload(), &stranger, &pem), NOW));
    (one.certificate, one.chain) = (Some(pem), Some(fulcio.chain()));
    assert_eq!(word(&policy, &form(one)), "wrong-key");
}

#[test]
fn bundles_over_a_statement() {
    let (key, log) = (Key::new(), Log::new());
    let hint = || json!({"publicKey": {"hint": "x"}});
    let policy = by_key(&key, "matchDigestOnly");
    let bundle = |payload: &[u8], by: &Key| Form::Bundle(envelope_bundle(payload, by, hint(), &[]));
    for subject in [MANIFEST, INDEX] {
        assert_eq!(word(&policy, &bundle(&statement(&digest(subject)), &key)), "good");
    }
    assert_eq!(word(&policy, &bundle(&statement(&digest(b"other")), &key)), "other-digest");
    assert_eq!(word(&policy, &bundle(&statement(&digest(MANIFEST)), &Key::new())), "wrong-key");
    // A bundle bears no name.
    let named = by_key(&key, "matchRepository");
    assert_eq!(word(&named, &bundle(&statement(&digest(MANIFEST)), &key)), "wrong-identity");
    let text = String::from_utf8(statement(&digest(MANIFEST))).unwrap();
    let with_name = text.replace(r#""digest":{"#, r#""name":"host.io/app","digest":{"#);
    assert_eq!(word(&named, &bundle(with_name.as_bytes(), &key)), "good");
    // Who may attest a scan does not thereby sign.
    let scan = text.replace("https://sigstore.dev/cosign/sign/v1", "https://example.com/scan/v1");
    assert_eq!(word(&policy, &bundle(scan.as_bytes(), &key)), "malformed");
    // With the log.
    let mut logged = policy.clone();
    logged["rekorPublicKeyData"] = log.0.data().into();
    let payload = statement(&digest(MANIFEST));
    assert_eq!(word(&logged, &bundle(&payload, &key)), "not-logged");
    // ECDSA signatures differ each time: the entry has to be of the one in the bundle.
    let made: Value = serde_json::from_slice(&envelope_bundle(&payload, &key, hint(), &[])).unwrap();
    let signature = STANDARD.decode(made["dsseEnvelope"]["signatures"][0]["sig"].as_str().unwrap()).unwrap();
    let with = |body: &Value, promise: bool| {
        let (mut made, mut entry) = (made.clone(), log.entry(body, NOW));
        if !promise {
            entry.as_object_mut().unwrap().remove("inclusionPromise");
        }
        made["verificationMaterial"]["tlogEntries"] = json!([entry]);
        Form::Bundle(made.to_string().into_bytes())
    };
    let body = enveloped(&payload, &signature, &key.pem());
    assert_eq!(word(&logged, &with(&body, true)), "good");
    assert_eq!(word(&logged, &with(&body, false)), "not-logged");
    assert_eq!(word(&logged, &with(&enveloped(b"x", &signature, &key.pem()), true)), "not-logged");
    assert_eq!(word(&logged, &with(&enveloped(&payload, b"x", &key.pem()), true)), "not-logged");
}

#[test]
fn keyless_bundles_and_bundles_over_the_manifest() {
    let (fulcio, log) = (Fulcio::new(), Log::new());
    let policy = by_fulcio(&fulcio, &log, SUBJECT, "matchDigestOnly");
    let make = |bytes: &[u8], logged: &[u8], person: &Person| {
        let (key, pem, der) = fulcio.issue(person);
        let signature = key.sign(bytes);
        let certificates = [der, fulcio.middle_der()].map(|der| json!({"rawBytes": STANDARD.encode(der)}));
        let entry = log.entry(&hashed(logged, &signature, &pem), NOW);
        let message = json!({"messageDigest": {"algorithm": "SHA2_256",
            "digest": STANDARD.encode(hex::decode(hash(bytes)).unwrap())}, "signature": STANDARD.encode(signature)});
        let bundle = json!({"mediaType": BUNDLE, "messageSignature": message, "verificationMaterial": {
            "x509CertificateChain": {"certificates": certificates}, "tlogEntries": [entry]}});
        Form::Bundle(bundle.to_string().into_bytes())
    };
    let person = Person::default();
    assert_eq!(word(&policy, &make(MANIFEST, MANIFEST, &person)), "good");
    assert_eq!(word(&policy, &make(INDEX, INDEX, &person)), "good");
    assert_eq!(word(&policy, &make(b"other", b"other", &person)), "other-digest");
    assert_eq!(word(&policy, &make(MANIFEST, b"other", &person)), "not-logged");
    let late = Person { to: NOW - 1, ..Person::default() };
    assert_eq!(word(&policy, &make(MANIFEST, MANIFEST, &late)), "expired-certificate");
    let strict = by_fulcio(&fulcio, &log, SUBJECT, "matchRepository");
    assert_eq!(word(&strict, &make(MANIFEST, MANIFEST, &person)), "wrong-identity");
    for bytes in [&b"{}"[..], b"", br#"{"mediaType":"x","verificationMaterial":{}}"#] {
        assert_eq!(word(&policy, &Form::Bundle(bytes.to_vec())), "malformed");
    }
}
