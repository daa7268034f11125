//! Issuing and refusing, with requests that rcgen makes and OpenSSL's verdict on what comes out.

use std::path::Path;
use std::process::Command;

use kata_cc_attestation_service::store::{Store, StoreKey};
use kata_cc_kbs_protocol::base64_url;
use rcgen::{CertificateParams, IsCa, KeyPair, PublicKeyData as _, SanType};

use super::*;
use crate::plugins::pkcs11::tests::SoftHsm;
use crate::plugins::request::tests::request;

const DIGEST: [u8; 32] = [7; 32];
const NAMES: &str = "names = [\"dns:{/submods/cpu0/ear.veraison.annotated-evidence/init_data_claims/pod}.pods.example\", \
    \"uri:spiffe://td.example/{/submods/cpu0/ear.veraison.annotated-evidence/init_data_claims/pod}\"]\n";

async fn authority(folder: &Path, text: &str) -> Result<Ca, SetupError> {
    let store = Arc::new(Store::in_memory(StoreKey::ephemeral()).await.unwrap());
    let context = Context { base: folder.to_owned(), store, token: None };
    Ca::new(toml::from_str(text).unwrap(), &context).await
}

/// The key of a token for this key pair.
fn tee_key(key: &KeyPair) -> TeePubKey {
    let raw = key.public_key_raw();
    let (x, y) = raw[1..].split_at(raw.len() / 2);
    let crv = match x.len() {
        32 => "P-256",
        48 => "P-384",
        _ => "P-521",
    };
    TeePubKey::EC {
        crv: crv.to_owned(),
        alg: "ECDH-ES+A256KW".to_owned(),
        x: base64_url(x),
        y: base64_url(y),
    }
}

fn claims(tee: &str) -> Value {
    json!({"submods": {"cpu0": {"ear.status": "affirming", "ear.veraison.annotated-evidence": {
        tee: {"measurement": "00"},
        "init_data": "11",
        "init_data_claims": {"pod": "shop"},
        "runtime_data_claims": {},
    }}}})
}

fn csr(key: &KeyPair, names: &[&str]) -> Vec<u8> {
    let mut params = CertificateParams::default();
    for name in names {
        params.subject_alt_names.push(match name.split_once("//") {
            Some(_) => SanType::URI((*name).try_into().unwrap()),
            None => SanType::DnsName((*name).try_into().unwrap()),
        });
    }
    params.serialize_request(key).unwrap().pem().unwrap().into_bytes()
}

async fn post(
    ca: &Ca,
    target: &str,
    csr: &[u8],
    claims: &Value,
    key: &TeePubKey,
) -> Result<String, PluginError> {
    let request = request(Method::POST, target, csr);
    assert_eq!(ca.validate_auth(&request), Ok(Access::Guest));
    let response = ca.handle(&request, Caller::Guest { claims, claims_digest: &DIGEST, key }).await?;
    let event = response.event.unwrap();
    if event.action == "certificate-issued" {
        assert_eq!(event.details["tee"], json!(ca.evidence(claims, DIGEST).unwrap().tee));
    } else {
        assert_eq!((event.action, event.subject.len()), ("certificate-given-again", 32));
    }
    Ok(String::from_utf8(response.body.to_vec()).unwrap())
}

/// Asks with claims that were judged another time: another digest.
async fn post_anew(ca: &Ca, key: &KeyPair, claims: &Value, time: u8) -> Result<String, PluginError> {
    let request = request(Method::POST, "certificate", &csr(key, &[]));
    let caller = Caller::Guest { claims, claims_digest: &[time; 32], key: &tee_key(key) };
    let response = ca.handle(&request, caller).await?;
    Ok(String::from_utf8(response.body.to_vec()).unwrap())
}

/// What OpenSSL says: of the certificate in words, of its chain, and of the revocation list when there is one.
fn openssl(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn serial_of(folder: &Path) -> String {
    let (_, text) = openssl(folder, &["x509", "-in", "guest.pem", "-noout", "-serial"]);
    text.trim().split_once('=').unwrap().1.to_owned()
}

#[tokio::test]
async fn a_bound_key_is_certified_and_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let crl = "crl_url = \"https://kbs.example/kbs/v0/ca/crl\"\nmax_hours = 48\n";
    let ca = authority(path, &format!("{NAMES}{crl}")).await.unwrap();
    let key = KeyPair::generate().unwrap();
    let tee = tee_key(&key);
    let chain = post(&ca, "certificate", &csr(&key, &[]), &claims("snp"), &tee).await.unwrap();
    std::fs::write(path.join("guest.pem"), &chain).unwrap();
    let (fine, text) = openssl(path, &["verify", "-x509_strict", "-CAfile", "ca.crt", "guest.pem"]);
    assert!(fine, "{text}");
    let (_, text) = openssl(path, &["x509", "-in", "guest.pem", "-noout", "-text"]);
    for expected in [
        "OU = tee snp, CN = shop.pods.example",
        "DNS:shop.pods.example, URI:spiffe://td.example/shop",
        "CA:FALSE",
        "Digital Signature",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "URI:https://kbs.example/kbs/v0/ca/crl",
        "2.25.64040334696879011753045235901388398929",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    assert!(!text.contains("simulated"), "{text}");
    let (day, _) = openssl(path, &["x509", "-in", "guest.pem", "-noout", "-checkend", "86300"]);
    let (more, _) = openssl(path, &["x509", "-in", "guest.pem", "-noout", "-checkend", "86500"]);
    assert!(day && !more, "valid for other than a day");

    // The list, before and after.
    let list = async |ca: &Ca| {
        let response = ca.handle(&request(Method::GET, "crl", b""), Caller::Anyone).await.unwrap();
        assert_eq!(response.content_type, "application/pkix-crl");
        std::fs::write(path.join("list.pem"), pem("X509 CRL", &response.body)).unwrap();
        openssl(
            path,
            &[
                "verify",
                "-x509_strict",
                "-CAfile",
                "ca.crt",
                "-CRLfile",
                "list.pem",
                "-crl_check",
                "guest.pem",
            ],
        )
    };
    let (fine, text) = list(&ca).await;
    assert!(fine, "{text}");
    let serial = serial_of(path);
    let admin = Caller::Admin { role: "operator" };
    let body = json!({"serial": serial, "reason": "keyCompromise"}).to_string();
    let revoke = request(Method::POST, "revoke", body.as_bytes());
    assert_eq!(ca.validate_auth(&revoke), Ok(Access::Admin));
    let event = ca.handle(&revoke, admin).await.unwrap().event.unwrap();
    assert_eq!((event.action, event.subject), ("certificate-revoked", serial.to_lowercase()));
    let (fine, text) = list(&ca).await;
    assert!(!fine && text.contains("certificate revoked"), "{text}");
    let (_, text) = openssl(path, &["crl", "-in", "list.pem", "-noout", "-text"]);
    assert!(text.contains(&serial) && text.contains("Key Compromise"), "{text}");

    // What the administrator sees.
    let listed = ca.handle(&request(Method::GET, "certificates", b""), admin).await.unwrap().body;
    assert_eq!(
        serde_json::from_slice::<Value>(&listed).unwrap(),
        json!({"serials": [serial.to_lowercase()]})
    );
    let shown =
        ca.handle(&request(Method::GET, &format!("certificates/{serial}"), b""), admin).await.unwrap().body;
    let shown: Value = serde_json::from_slice(&shown).unwrap();
    assert_eq!((shown["tee"].as_str(), shown["revoked"].is_i64()), (Some("snp"), true));
    assert_eq!(shown["names"], json!(["dns:shop.pods.example", "uri:spiffe://td.example/shop"]));

    // Another certificate has another number, and the same key and certificate are there after a restart.
    post(&ca, "certificate?hours=48", &csr(&key, &["SHOP.pods.example"]), &claims("snp"), &tee)
        .await
        .unwrap();
    let again = authority(path, NAMES).await.unwrap();
    assert_eq!(again.authority.chain(), ca.authority.chain());
    let chain = post(&again, "certificate", &csr(&key, &[]), &claims("snp"), &tee).await.unwrap();
    std::fs::write(path.join("guest.pem"), &chain).unwrap();
    assert_ne!(serial_of(path), serial);
}

#[tokio::test]
async fn a_guest_has_so_many_certificates_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority(folder.path(), "per_guest = 2").await.unwrap();
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (tee, snp) = (tee_key(&key), claims("snp"));
    // What is refused takes no place.
    let bad = post(&ca, "certificate?hours=0", &csr(&key, &[]), &snp, &tee).await;
    assert!(matches!(bad, Err(PluginError::BadRequest(_))), "{bad:?}");
    post_anew(&ca, &key, &snp, 1).await.unwrap();
    // Attested again, with other claims, it is the same guest.
    let (one, two) = tokio::join!(post_anew(&ca, &key, &snp, 2), post_anew(&ca, &key, &snp, 3));
    let refused = [one, two].into_iter().find_map(Result::err).expect("three certificates of one guest");
    assert!(
        matches!(&refused, PluginError::Denied(why) if why.contains("2 certificates that are valid (per_guest")),
        "{refused}"
    );
    // Other guests are not kept from theirs, and when one ends there is a place again.
    post_anew(&ca, &other, &snp, 1).await.unwrap();
    assert!(post_anew(&ca, &key, &snp, 4).await.is_err());
    let guest = guest(&snp, "snp", &tee).unwrap();
    let (day, now) = (24 * 3600, now());
    assert_eq!(ca.records.place(&guest, 2, now + day - 60).await.unwrap(), None);
    assert!(ca.records.place(&guest, 2, now + day + 60).await.unwrap().is_some());
}

#[tokio::test]
async fn the_same_request_has_the_same_certificate_and_takes_one_place() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority(folder.path(), &format!("per_guest = 2\n{NAMES}")).await.unwrap();
    let key = KeyPair::generate().unwrap();
    let (tee, snp) = (tee_key(&key), claims("snp"));
    let ask = async |target: &str, names: &[&str]| post(&ca, target, &csr(&key, names), &snp, &tee).await;
    // The answer is lost, again and again; each request has a signature of its own (ECDSA).
    let first = ask("certificate", &[]).await.unwrap();
    for _ in 0..5 {
        assert_eq!(ask("certificate", &[]).await.unwrap(), first);
    }
    // By GET it is the same request.
    let der = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let by_get = request(Method::GET, &format!("certificate?csr={}", base64_url(&der)), b"");
    let caller = Caller::Guest { claims: &snp, claims_digest: &DIGEST, key: &tee };
    assert_eq!(ca.handle(&by_get, caller).await.unwrap().body.as_slice(), first.as_bytes());
    // Other names are another request. After these two there is no place for a third.
    let named = ask("certificate", &["shop.pods.example"]).await.unwrap();
    assert_ne!(named, first);
    assert!(ask("certificate?hours=1", &[]).await.unwrap_err().to_string().contains("per_guest"));
    assert_eq!(ask("certificate", &["shop.pods.example"]).await.unwrap(), named);
    // A revoked one is not given again, and keeps its place.
    std::fs::write(folder.path().join("guest.pem"), &first).unwrap();
    let body = json!({"serial": serial_of(folder.path())}).to_string();
    let revoke = request(Method::POST, "revoke", body.as_bytes());
    ca.handle(&revoke, Caller::Admin { role: "operator" }).await.unwrap();
    assert!(ask("certificate", &[]).await.unwrap_err().to_string().contains("per_guest"));
}

/// Requests that are there at the same time, at two replicas: one certificate, one place.
#[tokio::test]
async fn the_same_request_at_two_replicas_has_one_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let store = Arc::new(Store::open(&path.join("db"), StoreKey::ephemeral()).await.unwrap());
    let replica = async || {
        let context = Context { base: path.to_owned(), store: store.clone(), token: None };
        Ca::new(toml::from_str("per_guest = 8").unwrap(), &context).await.unwrap()
    };
    let (one, two) = (replica().await, replica().await);
    let key = KeyPair::generate().unwrap();
    let (tee, snp) = (tee_key(&key), claims("snp"));
    let ask = async |ca: &Ca| post(ca, "certificate", &csr(&key, &[]), &snp, &tee).await.unwrap();
    let (a, b, c, d) = tokio::join!(ask(&one), ask(&two), ask(&one), ask(&two));
    assert!(a == b && b == c && c == d);
    assert_eq!(one.records.serials(now(), 10).await.unwrap().len(), 1);
    // Of eight places seven are free.
    let guest = guest(&snp, "snp", &tee).unwrap();
    let mut free = 0;
    while one.records.place(&guest, 8, now()).await.unwrap().is_some() {
        free += 1;
    }
    assert_eq!(free, 7);
}

#[tokio::test]
async fn a_certificate_is_renewed_when_half_of_its_time_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority(folder.path(), "").await.unwrap();
    let answer = Answer {
        serial: "11".repeat(16),
        certificate_digest: String::new(),
        issued: 1000,
        end: 3000,
        certificate: String::new(),
    };
    assert!(ca.is_good(&answer, 1999).await.unwrap());
    assert!(!ca.is_good(&answer, 2000).await.unwrap());
    assert!(!ca.is_good(&answer, 4000).await.unwrap());
}

#[tokio::test]
async fn a_place_is_not_lost_when_its_certificate_was_never_made() {
    let store = Arc::new(Store::in_memory(StoreKey::ephemeral()).await.unwrap());
    let records = Records::new(store);
    let now = 1000;
    let place = records.place("guest", 1, now).await.unwrap().unwrap();
    assert_eq!(records.place("guest", 1, now + record::MAKING - 1).await.unwrap(), None);
    // The call ended in between, and nobody gave the place back.
    let again = records.place("guest", 1, now + record::MAKING).await.unwrap().unwrap();
    assert_eq!(place, again);
    records.hold(&again, 90_000).await.unwrap();
    assert_eq!(records.place("guest", 1, 89_999).await.unwrap(), None);
    records.free(&again).await.unwrap();
    let why = records.hold(&again, 90_000).await.unwrap_err().to_string();
    assert!(why.contains("was given back"), "{why}");
    assert!(records.place("guest", 1, now).await.unwrap().is_some());
}

/// What firmware names stays the same when the guest makes itself a new key.
#[tokio::test]
async fn a_new_key_of_a_guest_has_no_new_places() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority(folder.path(), "per_guest = 1").await.unwrap();
    let with = |tee: &str, id: &str| {
        let mut claims = claims(tee);
        claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"][tee]["report_id"] = json!(id);
        claims
    };
    let key = || KeyPair::generate().unwrap();
    let (one, other) = (with("snp", &"1a".repeat(32)), with("snp", &"2b".repeat(32)));
    let first = key();
    let chain = post_anew(&ca, &first, &one, 1).await.unwrap();
    let refused = post_anew(&ca, &key(), &one, 2).await.unwrap_err();
    assert!(refused.to_string().contains("per_guest"), "{refused}");
    assert_eq!(post_anew(&ca, &first, &one, 1).await.unwrap(), chain);
    post_anew(&ca, &key(), &other, 3).await.unwrap();
    // Without an id, or with one that is none, the key is what tells guests apart.
    for (number, id) in [&"00".repeat(32), "", "1a", "xyz"].into_iter().enumerate() {
        let nobody = with("snp", id);
        let number = u8::try_from(number).unwrap();
        post_anew(&ca, &key(), &nobody, 4 + number).await.unwrap();
        post_anew(&ca, &key(), &nobody, 4 + number).await.unwrap();
    }
}

#[tokio::test]
async fn guest_components_ask_by_get() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority(folder.path(), "").await.unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    let der = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    let request = request(Method::GET, &format!("certificate?csr={}&hours=1", base64_url(&der)), b"");
    assert_eq!((ca.validate_auth(&request), ca.needs_encryption(&request)), (Ok(Access::Guest), true));
    let caller = Caller::Guest { claims: &claims("tdx"), claims_digest: &DIGEST, key: &tee_key(&key) };
    let chain = ca.handle(&request, caller).await.unwrap().body;
    std::fs::write(folder.path().join("guest.pem"), &*chain).unwrap();
    let (fine, text) = openssl(folder.path(), &["verify", "-CAfile", "ca.crt", "guest.pem"]);
    assert!(fine, "{text}");
    // Without a name, the serial number is the name.
    let (_, text) = openssl(folder.path(), &["x509", "-in", "guest.pem", "-noout", "-subject"]);
    assert!(text.contains("OU = tee tdx") && text.contains("CN = guest "), "{text}");
}

#[tokio::test]
async fn a_simulated_tee_is_refused_unless_allowed_and_can_be_seen() {
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    for tee in ["sim-snp", "sample"] {
        let ca = authority(folder.path(), "").await.unwrap();
        let error =
            post(&ca, "certificate", &csr(&key, &[]), &claims(tee), &tee_key(&key)).await.unwrap_err();
        assert!(
            matches!(&error, PluginError::Denied(why) if why.contains(&format!("the evidence is {tee}"))),
            "{error}"
        );
        let ca = authority(folder.path(), "allow_simulated_tee = true").await.unwrap();
        let chain = post(&ca, "certificate", &csr(&key, &[]), &claims(tee), &tee_key(&key)).await.unwrap();
        std::fs::write(folder.path().join("guest.pem"), &chain).unwrap();
        let (_, text) = openssl(folder.path(), &["x509", "-in", "guest.pem", "-noout", "-text"]);
        let expected = format!("OU = tee {tee}, OU = \"simulated TEE, protects nothing\"");
        assert!(text.contains(&expected), "{text}");
    }
}

#[tokio::test]
async fn every_refusal_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority(folder.path(), NAMES).await.unwrap();
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (tee, snp) = (tee_key(&key), claims("snp"));
    let refuse = async |target: &str, csr: &[u8], claims: &Value| {
        post(&ca, target, csr, claims, &tee).await.unwrap_err()
    };
    // Another key than the evidence bound.
    let error = refuse("certificate", &csr(&other, &[]), &snp).await;
    assert_eq!(error.parts().0.as_u16(), 403);
    assert!(error.to_string().contains("only a key that was bound in evidence"), "{error}");
    // A name of somebody else.
    let error = refuse("certificate", &csr(&key, &["bank.pods.example"]), &snp).await;
    assert!(
        matches!(&error, PluginError::Denied(why) if why.contains("asks for dns:bank.pods.example; this guest may have: [dns:shop.pods.example")),
        "{error}"
    );
    // A claim that would break out of its place.
    let mut broken = snp.clone();
    broken["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["init_data_claims"]["pod"] = json!("a.b");
    assert!(matches!(refuse("certificate", &csr(&key, &[]), &broken).await, PluginError::Denied(_)));
    // No TEE, and two.
    let mut none = snp.clone();
    none["submods"]["cpu0"]["ear.veraison.annotated-evidence"] = json!({});
    assert!(refuse("certificate", &csr(&key, &[]), &none).await.to_string().contains("names 0 TEEs"));
    let mut two = snp.clone();
    two["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["tdx"] = json!({});
    assert!(refuse("certificate", &csr(&key, &[]), &two).await.to_string().contains("names 2 TEEs"));
    // Too long, and other members of the query.
    for target in ["certificate?hours=25", "certificate?hours=0", "certificate?hours=x"] {
        assert!(refuse(target, &csr(&key, &[]), &snp).await.to_string().contains("hours must be 1 to 24"));
    }
    assert!(refuse("certificate?days=1", &csr(&key, &[]), &snp).await.to_string().contains("not known here"));
    // A request that was changed after it was signed, one that is none, one that is too large, one for an authority.
    let pem_text = csr(&key, &["shop.pods.example"]);
    let (_, mut der) = x509_cert::der::pem::decode_vec(&pem_text).unwrap();
    let at = der.windows(4).position(|w| w == b"shop").unwrap();
    der[at] = b'x';
    let error = refuse("certificate", &der, &snp).await;
    assert!(error.to_string().contains("has not shown that it has the key"), "{error}");
    assert!(refuse("certificate", b"nonsense", &snp).await.to_string().contains("not understood (DER)"));
    assert!(refuse("certificate", b"", &snp).await.to_string().contains("not understood"));
    assert!(
        refuse("certificate", ca.authority.chain().as_bytes(), &snp)
            .await
            .to_string()
            .contains("PEM of something else")
    );
    assert!(
        refuse("certificate", &vec![0; csr::MAX_CSR + 1], &snp).await.to_string().contains("at most 16384")
    );
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let wants = params.serialize_request(&key).unwrap().der().to_vec();
    assert!(refuse("certificate", &wants, &snp).await.to_string().contains("only end entities"));
    // Paths, methods, serial numbers.
    for (method, target) in [(Method::DELETE, "certificate"), (Method::POST, "crl"), (Method::GET, "revoke")]
    {
        let error = ca.validate_auth(&request(method, target, b"")).unwrap_err();
        assert!(matches!(error, PluginError::Method { .. }), "{error}");
    }
    assert!(matches!(ca.validate_auth(&request(Method::GET, "x", b"")), Err(PluginError::Path(_))));
    let admin = Caller::Admin { role: "operator" };
    for (body, status) in [
        ("{}".to_owned(), 400),
        (json!({"serial": "12"}).to_string(), 400),
        (json!({"serial": "0".repeat(32), "reason": "colour"}).to_string(), 400),
        (json!({"serial": "0".repeat(32)}).to_string(), 404),
    ] {
        let error = ca.handle(&request(Method::POST, "revoke", body.as_bytes()), admin).await.unwrap_err();
        assert_eq!(error.parts().0.as_u16(), status, "{error}");
    }
}

#[tokio::test]
async fn a_key_whose_digest_is_in_the_runtime_data_is_certified() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority(folder.path(), "").await.unwrap();
    let tee = tee_key(&KeyPair::generate().unwrap());
    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let spki = key.subject_public_key_info();
        let mut claims = claims("snp");
        let runtime =
            &mut claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["runtime_data_claims"];
        runtime["certificate-key-sha256"] = json!(hex::encode(digest(&SHA256, &spki)));
        let chain = post(&ca, "certificate", &csr(&key, &[]), &claims, &tee).await.unwrap();
        std::fs::write(folder.path().join("guest.pem"), &chain).unwrap();
        let (fine, text) = openssl(folder.path(), &["verify", "-CAfile", "ca.crt", "guest.pem"]);
        assert!(fine, "{text}");
    }
}

#[tokio::test]
async fn rsa_keys_are_certified() {
    let folder = tempfile::tempdir().unwrap();
    let ca = authority(folder.path(), "").await.unwrap();
    let path = folder.path();
    let (fine, text) = openssl(
        path,
        &["req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "k", "-out", "csr", "-subj", "/CN=x"],
    );
    assert!(fine, "{text}");
    let csr = std::fs::read(path.join("csr")).unwrap();
    let CsrKey::Rsa { n, e } = Csr::read(&csr).unwrap().key else { panic!() };
    let tee = TeePubKey::RSA { alg: "RSA-OAEP-256".to_owned(), n: base64_url(&n), e: base64_url(&e) };
    let chain = post(&ca, "certificate", &csr, &claims("snp"), &tee).await.unwrap();
    std::fs::write(path.join("guest.pem"), &chain).unwrap();
    let (fine, text) = openssl(path, &["verify", "-x509_strict", "-CAfile", "ca.crt", "guest.pem"]);
    assert!(fine, "{text}");
}

#[tokio::test]
async fn an_authority_is_checked_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    authority(path, "").await.unwrap();
    let other = tempfile::tempdir().unwrap();
    authority(other.path(), "").await.unwrap();
    std::fs::copy(other.path().join("ca.crt"), path.join("ca.crt")).unwrap();
    let why = authority(path, "").await.unwrap_err().to_string();
    assert!(why.contains("not that of the configured key"), "{why}");
    // A certificate of that key that is no authority's.
    let key = KeyPair::from_pem(&std::fs::read_to_string(path.join("ca.key")).unwrap()).unwrap();
    let leaf = CertificateParams::new(vec!["x".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(path.join("ca.crt"), leaf.pem()).unwrap();
    let why = authority(path, "").await.unwrap_err().to_string();
    assert!(why.contains("not that of an authority"), "{why}");
    std::fs::write(path.join("ca.crt"), "nonsense").unwrap();
    assert!(authority(path, "").await.is_err());
    std::fs::set_permissions(path.join("ca.key"), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .unwrap();
    let why = authority(path, "").await.unwrap_err().to_string();
    assert!(why.contains("must not be readable by group or others"), "{why}");
    let why = authority(path, "token_key_label = \"ec\"").await.unwrap_err().to_string();
    assert!(why.contains("needs [[plugins]] name = \"pkcs11\""), "{why}");
    // One whose authority above is given too, and whose end bounds its certificates.
    let folder = tempfile::tempdir().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root_key = KeyPair::generate().unwrap();
    let root = rcgen::CertifiedIssuer::self_signed(root, root_key).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.distinguished_name.push(rcgen::DnType::CommonName, "intermediate");
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(2);
    let key = KeyPair::generate().unwrap();
    let own = params.signed_by(&key, &root).unwrap();
    std::fs::write(folder.path().join("ca.crt"), format!("{}{}", own.pem(), root.pem())).unwrap();
    kata_cc_attestation_service::store::write_secret(
        &folder.path().join("ca.key"),
        key.serialize_pem().as_bytes(),
    )
    .unwrap();
    let ca = authority(folder.path(), "").await.unwrap();
    let guest = KeyPair::generate().unwrap();
    let chain = post(&ca, "certificate", &csr(&guest, &[]), &claims("snp"), &tee_key(&guest)).await.unwrap();
    std::fs::write(folder.path().join("guest.pem"), &chain).unwrap();
    std::fs::write(folder.path().join("root.pem"), root.pem()).unwrap();
    let (fine, text) =
        openssl(folder.path(), &["verify", "-CAfile", "root.pem", "-untrusted", "guest.pem", "guest.pem"]);
    assert!(fine, "{text}");
    let (longer, _) = openssl(folder.path(), &["x509", "-in", "guest.pem", "-noout", "-checkend", "7300"]);
    assert!(!longer, "valid for longer than its authority");
}

#[tokio::test]
async fn the_authoritys_key_may_be_on_a_token() {
    let Some(hsm) = SoftHsm::new() else { return };
    let token = crate::plugins::pkcs11::open(&hsm.config(""), hsm.base()).await.unwrap();
    let store = Arc::new(Store::in_memory(StoreKey::ephemeral()).await.unwrap());
    let context = Context { base: hsm.base().to_owned(), store, token: Some(token) };
    let ca = Ca::new(toml::from_str("token_key_label = \"ec\"").unwrap(), &context).await.unwrap();
    let key = KeyPair::generate().unwrap();
    let chain = post(&ca, "certificate", &csr(&key, &[]), &claims("snp"), &tee_key(&key)).await.unwrap();
    std::fs::write(hsm.base().join("guest.pem"), &chain).unwrap();
    let (fine, text) = openssl(hsm.base(), &["verify", "-x509_strict", "-CAfile", "ca.crt", "guest.pem"]);
    assert!(fine, "{text}");
    let why = Ca::new(toml::from_str("token_key_label = \"absent\"").unwrap(), &context)
        .await
        .unwrap_err()
        .to_string();
    assert!(why.contains("\"absent\"") && why.contains("there is no"), "{why}");
}

#[tokio::test]
async fn records_are_removed_when_they_are_of_no_more_use() {
    let store = Arc::new(Store::in_memory(StoreKey::ephemeral()).await.unwrap());
    let records = Records::new(store.clone());
    let record = |serial: &str, end: i64| Record {
        serial: serial.to_owned(),
        names: Vec::new(),
        tee: "snp".to_owned(),
        simulated: false,
        status: "affirming".to_owned(),
        claims_digest: String::new(),
        certificate_digest: String::new(),
        // The last two were asked for by the same request, one after the other.
        request: if serial == "aa" { "first" } else { "same" }.to_owned(),
        issued: 0,
        end,
    };
    let answer = |serial: &str, end: i64| Answer {
        serial: serial.to_owned(),
        certificate_digest: String::new(),
        issued: 0,
        end,
        certificate: String::new(),
    };
    let revocation = |serial: &str| Revocation { serial: serial.to_owned(), at: 5, reason: 1 };
    for (serial, end) in [("aa", 100), ("bb", 200), ("cc", 300)] {
        let record = record(serial, end);
        let before = records.answer(&record.request).await.unwrap().map(|(stored, _)| stored);
        assert!(records.add(&record, &answer(serial, end), before.as_ref()).await.unwrap());
        // Who has not seen that one does not put another in its place.
        assert!(!records.add(&record, &answer("dd", end), before.as_ref()).await.unwrap());
        records.revoke(&record, &revocation(serial)).await.unwrap();
    }
    // Revoked twice, it keeps its time.
    records.revoke(&record("aa", 100), &Revocation { at: 9, ..revocation("aa") }).await.unwrap();
    assert_eq!(records.revocations().await.unwrap()[0].at, 5);
    assert_eq!(records.serials(150, 10).await.unwrap(), ["cc", "bb"]);
    assert_eq!(records.serials(150, 1).await.unwrap(), ["cc"]);
    records.prune(150, 250).await.unwrap();
    assert!(records.find("aa").await.is_err());
    records.find("bb").await.unwrap();
    assert_eq!(records.revocations().await.unwrap(), [revocation("cc")]);
    // What was given goes with its record, but not what a later request was given in its place.
    assert!(records.answer("first").await.unwrap().is_none());
    records.prune(250, 250).await.unwrap();
    assert_eq!(records.answer("same").await.unwrap().unwrap().1.serial, "cc");
    records.prune(350, 350).await.unwrap();
    assert!(records.answer("same").await.unwrap().is_none());
    // A record of before there were answers.
    let mut old = serde_json::to_value(record("ee", 400)).unwrap();
    old.as_object_mut().unwrap().remove("request");
    store.put("ca", "0000000400-ee", old.to_string().as_bytes()).await.unwrap();
    records.prune(450, 450).await.unwrap();
    assert!(records.find("ee").await.is_err());
}

#[test]
fn a_request_survives_no_change_of_a_byte() {
    let key = KeyPair::generate().unwrap();
    let der = CertificateParams::new(vec!["a.example".to_owned()]).unwrap().serialize_request(&key).unwrap();
    let der = der.der().to_vec();
    let good = Csr::read(&der).unwrap();
    assert_eq!(good.names, [SanName::Dns("a.example".to_owned())]);
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 1;
        assert_ne!(Csr::read(&changed).ok().as_ref(), Some(&good), "byte {at}");
    }
    for length in 0..der.len() {
        assert!(Csr::read(&der[..length]).is_err(), "{length} bytes");
    }
    assert!(Csr::read(&[der.clone(), vec![0]].concat()).is_err());
}
