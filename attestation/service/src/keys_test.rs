//! Keys of tokens: rotation is one change, on record, and its tokens are good at every replica at once.

use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt as _;
use serde_json::{Value, json};

use crate::audit_test::records;
use crate::jws::{JwsError, SigningKey};
use crate::keys::{KeyFile, signing_key};
use crate::service::{AttestationService, ServiceError};
use crate::store::{Store, StoreKey};
use crate::token::{TokenBroker, TokenError};
use crate::verify::SampleVerifier;

async fn with(store: &Store, key: SigningKey) -> AttestationService {
    let verifier = Box::new(SampleVerifier { enabled: true });
    AttestationService::new(store.clone(), verifier, TokenBroker::new(key, "test", 5)).await.unwrap()
}

fn key() -> SigningKey {
    SigningKey::from_pem(SigningKey::generate_pem("ES256").unwrap().as_bytes()).unwrap()
}

async fn store() -> Store {
    Store::in_memory(StoreKey::ephemeral()).await.unwrap()
}

fn token(service: &AttestationService) -> String {
    service.broker().issue(&json!({"cpu0": {}}), crate::now()).unwrap()
}

fn signing(service: &AttestationService) -> Value {
    service.jwks()["keys"][0]["kid"].clone()
}

#[tokio::test]
async fn a_rotation_is_good_at_every_replica_at_once_and_on_record() {
    let store = store().await;
    let (one, other) = (with(&store, key()).await, with(&store, key()).await);
    let (before, old) = (token(&one), signing(&one));
    // Both have looked at the store just now, so nothing but the unknown key makes the other one look.
    other.reload().await.unwrap();
    let readings = other.readings();
    let new = one.rotate_key(Some("EdDSA"), "anna").await.unwrap();
    let after = token(&one);
    assert!(other.broker().lacks_key(&after, crate::now()), "it has not followed by itself");
    other.verify_token(&after, crate::now()).await.unwrap();
    assert_eq!(other.readings(), readings + 1);
    for token in [&before, &after] {
        one.verify_token(token, crate::now()).await.unwrap();
        other.verify_token(token, crate::now()).await.unwrap();
    }
    assert_eq!(other.jwks()["keys"].as_array().unwrap().len(), 3);
    // What the retired key signed has expired by then.
    let late = crate::now() + 10 * 60;
    let error = other.verify_token(&before, late).await.unwrap_err();
    assert_eq!(error, TokenError::Jws(JwsError::UnknownKey));
    let records = records(&store).await;
    assert_eq!(records.len(), 1, "{records:#?}");
    let record = &records[0];
    assert_eq!(
        (&record["kind"], &record["verdict"], &record["who"]),
        (&json!("admin"), &json!("done"), &json!("anna"))
    );
    assert_eq!((&record["reason"], &record["resource"]["id"]), (&json!("rotate token key"), &new["kid"]));
    assert_eq!(record["details"], json!({"algorithm": "EdDSA", "retired": old}));
    store.audit().verify(None).await.unwrap();
}

/// Whoever makes tokens up does not make a replica read the store all the time, nor keep others from theirs.
#[tokio::test]
async fn unknown_keys_are_looked_for_now_and_then() {
    let store = store().await;
    let (one, other) = (with(&store, key()).await, Arc::new(with(&store, key()).await));
    let forged = TokenBroker::new(key(), "test", 5).issue(&json!({}), crate::now()).unwrap();
    let begin = Instant::now();
    let flood: Vec<_> = (0..200)
        .map(|_| {
            let (other, forged) = (Arc::clone(&other), forged.clone());
            tokio::spawn(async move { other.verify_token(&forged, crate::now()).await })
        })
        .collect();
    one.rotate_key(None, "anna").await.unwrap();
    let good = token(&one);
    other.verify_token(&good, crate::now()).await.unwrap();
    for one in flood {
        assert_eq!(one.await.unwrap(), Err(TokenError::Jws(JwsError::UnknownKey)));
    }
    // They share looks: one by one, they would have taken 20 seconds.
    assert!(begin.elapsed().as_secs() < 10, "{:?}", begin.elapsed());
    let readings = other.readings();
    other.verify_token(&forged, crate::now()).await.unwrap_err();
    assert_eq!(other.readings(), readings, "nothing was changed, so but for the mark nothing is read");
    // One after the other, they wait for their turn.
    let begin = Instant::now();
    for _ in 0..3 {
        other.verify_token(&forged, crate::now()).await.unwrap_err();
    }
    assert!(begin.elapsed().as_millis() >= 250, "{:?}", begin.elapsed());
    // A good one of a known key does not wait.
    other.verify_token(&good, crate::now()).await.unwrap();
}

/// Everything of a rotation or nothing: when it cannot be recorded, the old key signs on, at its place in the file too.
#[tokio::test]
async fn without_a_record_there_is_no_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path, StoreKey::ephemeral()).await.unwrap();
    let keys = tempfile::tempdir().unwrap();
    let file = KeyFile { path: keys.path().join("token.key"), certificates: None };
    let service = with(&store, signing_key(&file.path, "ES256").unwrap()).await;
    let service = service.with_key_file(file.clone()).await.unwrap();
    let old = signing(&service);
    store.audit().append(crate::policies::recorded("x", "y", "anna")).await.unwrap();
    let published = store.all("token_key").await.unwrap();
    let pool = sqlx::SqlitePool::connect(path.to_str().unwrap()).await.unwrap();
    sqlx::query("DELETE FROM audit").execute(&pool).await.unwrap();
    sqlx::query("UPDATE store_state SET audit_seq = 0").execute(&pool).await.unwrap();
    let error = service.rotate_key(None, "anna").await.unwrap_err();
    assert!(matches!(error, ServiceError::Store(_)), "{error}");
    assert_eq!(signing(&service), old);
    assert_eq!(store.all("token_key").await.unwrap(), published);
    assert_eq!(signing_key(&file.path, "ES256").unwrap().jwk()["kid"], old);
    assert_eq!(std::fs::read_dir(keys.path()).unwrap().count(), 1, "nothing is left beside it");
    // Another key in the file is not taken either.
    std::fs::remove_file(&file.path).unwrap();
    signing_key(&file.path, "ES256").unwrap();
    assert!(matches!(service.tend().await, Err(ServiceError::Store(_))));
    assert_eq!(signing(&service), old);
}

/// The store has it, the file has not: the old key signs on, is published as before, and the failure is on record.
#[tokio::test]
async fn a_key_that_cannot_be_kept_does_not_sign() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token.key");
    let store = store().await;
    let service = with(&store, signing_key(&path, "ES256").unwrap()).await;
    let file = KeyFile { path: path.clone(), certificates: None };
    let service = service.with_key_file(file).await.unwrap();
    let old = signing(&service);
    // In between somebody puts a folder there, in whose place no file can be put.
    let there = path.clone();
    *service.state.interruption.lock().await = Some(Box::new(move || {
        let _ = std::fs::remove_file(&there);
        let _ = std::fs::create_dir_all(there.join("x"));
        async {}.boxed()
    }));
    let error = service.rotate_key(None, "anna").await.unwrap_err();
    assert!(matches!(error, ServiceError::SigningKey { .. }), "{error}");
    assert_eq!(signing(&service), old);
    let known = store.all("token_key").await.unwrap();
    let known = known.iter().map(|(_, bytes)| serde_json::from_slice::<Value>(bytes).unwrap());
    let ours = known.into_iter().find(|known| known["jwk"]["kid"] == old).unwrap();
    assert_eq!(ours["retired"], false, "{ours}");
    let verdicts: Vec<_> = records(&store).await.iter().map(|record| record["verdict"].clone()).collect();
    assert_eq!(verdicts, ["done", "failed"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[tokio::test]
async fn the_key_file_is_replaced_whole_and_stays_ours() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token.key");
    let store = store().await;
    let file = KeyFile { path: path.clone(), certificates: None };
    let service = with(&store, signing_key(&path, "ES256").unwrap()).await;
    let service = service.with_key_file(file.clone()).await.unwrap();
    let follower = with(&store, signing_key(&path, "ES256").unwrap()).await;
    let follower = follower.with_key_file(file).await.unwrap();
    let old = signing(&service);
    let new = service.rotate_key(Some("EdDSA"), "anna").await.unwrap();
    assert_eq!(signing(&service), new["kid"]);
    assert_ne!(new["kid"], old);
    assert_eq!(signing_key(&path, "ES256").unwrap().jwk()["kid"], new["kid"]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    // Who shares the file follows, and does not tell of it again.
    follower.tend().await.unwrap();
    assert_eq!(signing(&follower), new["kid"]);
    assert_eq!(records(&store).await.len(), 1);
    // A file that cannot be used changes nothing.
    std::fs::write(&path, "damaged").unwrap();
    assert!(matches!(service.reload().await, Err(ServiceError::SigningKey { .. })));
    assert_eq!(signing(&service), new["kid"]);
    // A key that somebody put into the file is taken, and on record.
    std::fs::remove_file(&path).unwrap();
    let put = signing_key(&path, "ES256").unwrap().jwk();
    service.reload().await.unwrap();
    follower.reload().await.unwrap();
    assert_eq!((&signing(&service), &signing(&follower)), (&put["kid"], &put["kid"]));
    let records = records(&store).await;
    assert_eq!(records.len(), 2, "{records:#?}");
    assert_eq!((&records[1]["who"], &records[1]["resource"]["id"]), (&json!("key file"), &put["kid"]));
    assert_eq!(records[1]["details"]["retired"], new["kid"]);
}

#[test]
fn a_signing_key_that_others_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token.key");
    signing_key(&path, "ES256").unwrap();
    signing_key(&path, "ES256").unwrap();
    for mode in [0o640, 0o604, 0o666] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = signing_key(&path, "ES256").unwrap_err().to_string();
        assert!(error.contains(&format!("{mode:o}")) && error.contains("chmod 600"), "{error}");
    }
}
