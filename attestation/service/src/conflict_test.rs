//! Replicas that change the same at the same time: nobody's change is undone, whoever comes too late decides anew on what is there,
//! and is told when that never ends. On both databases.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt as _;
use serde_json::{Value, json};

use crate::database::Postgres;
use crate::jws::SigningKey;
use crate::problem::Problem;
use crate::references::{ReferenceError, Source};
use crate::registry::{Mode, Registration};
use crate::service::{AttestationService, ServiceError};
use crate::state::Interruption;
use crate::store::{Store, StoreKey};
use crate::token::TokenBroker;
use crate::verify::SampleVerifier;

const POLICIES: [&str; 2] = [
    "package policy\ntrust_claims := {\"hardware\": 2}",
    "package policy\ntrust_claims := {\"hardware\": 97}",
];

async fn service(store: &Store) -> Arc<AttestationService> {
    let key = SigningKey::from_pem(SigningKey::generate_pem("ES256").unwrap().as_bytes()).unwrap();
    let verifier = Box::new(SampleVerifier { enabled: true });
    let broker = TokenBroker::new(key, "test", 5);
    Arc::new(AttestationService::new(store.clone(), verifier, broker).await.unwrap())
}

async fn records(store: &Store) -> u64 {
    store.audit().checkpoint().await.unwrap().seq
}

/// Two services over one store: of a file, or of PostgreSQL where each has connections of its own.
struct Pair {
    one: Arc<AttestationService>,
    other: Arc<AttestationService>,
    store: Store,
}

impl Pair {
    /// Before the next change of `one` is stored, `work` of the other is done; once, or before every change.
    async fn between<F>(&self, every: bool, work: impl Fn(Arc<AttestationService>, u64) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (other, mut calls) = (Arc::clone(&self.other), 0);
        let interruption: Interruption = Box::new(move || {
            calls += 1;
            if calls > 1 && !every { async {}.boxed() } else { work(Arc::clone(&other), calls).boxed() }
        });
        *self.one.state.interruption.lock().await = Some(interruption);
    }

    async fn value(&self, name: &str) -> Value {
        // What was refused reads nothing into memory.
        self.one.state.look().await.unwrap();
        self.one.reference_values().await.unwrap().get(name).cloned().unwrap_or_default()
    }
}

fn add(name: &str, value: &str) -> Registration {
    Registration {
        values: BTreeMap::from([(name.to_owned(), json!([value]))]),
        expires: None,
        source: Source::administrator(),
        mode: Mode::Add,
        by: "anna".to_owned(),
    }
}

fn signed(name: &str, value: &str, at: i64) -> Registration {
    let source = Source {
        kind: "signed".to_owned(),
        signer: Some("release".to_owned()),
        detail: None,
        signed_at: Some(at),
    };
    Registration { source, mode: Mode::Replace, ..add(name, value) }
}

async fn what_is_added_is_added_to_what_is_there(pair: &Pair) {
    pair.one.register(&add("added", "first")).await.unwrap();
    let before = records(&pair.store).await;
    pair.between(false, |other, _| async move {
        other.register(&add("added", "theirs")).await.unwrap();
    })
    .await;
    pair.one.register(&add("added", "ours")).await.unwrap();
    assert_eq!(pair.value("added").await, json!(["first", "theirs", "ours"]));
    assert_eq!(records(&pair.store).await, before + 2, "what was tried in vain is not on record");
}

async fn what_is_deleted_stays_deleted(pair: &Pair) {
    let now = crate::now();
    pair.one.register(&signed("deleted", "old", now - 100)).await.unwrap();
    // The message is younger than the value, and older than the deletion that came in between.
    pair.between(false, |other, _| async move {
        assert!(other.delete_reference_value("deleted", "bert").await.unwrap());
    })
    .await;
    let error = pair.one.register(&signed("deleted", "new", now - 50)).await.unwrap_err();
    assert!(matches!(error, ServiceError::Reference(ReferenceError::Replay { .. })), "{error}");
    assert_eq!(pair.value("deleted").await, Value::Null);
    // Nor does a change of its end bring it back.
    pair.one.register(&add("deleted", "x")).await.unwrap();
    pair.between(false, |other, _| async move {
        assert!(other.delete_reference_value("deleted", "bert").await.unwrap());
    })
    .await;
    let error = pair.one.expire_reference_value("deleted", None, "anna").await.unwrap_err();
    assert!(matches!(error, ServiceError::NotFound(_)), "{error}");
    assert_eq!(pair.value("deleted").await, Value::Null);
}

async fn an_older_message_does_not_undo_a_newer_one(pair: &Pair) {
    let now = crate::now();
    let newer = signed("older", "newer", now + 20);
    pair.between(false, move |other, _| {
        let newer = newer.clone();
        async move {
            other.register(&newer).await.unwrap();
        }
    })
    .await;
    let error = pair.one.register(&signed("older", "older", now + 10)).await.unwrap_err();
    assert!(matches!(error, ServiceError::Reference(ReferenceError::Replay { .. })), "{error}");
    assert_eq!(pair.value("older").await, json!(["newer"]));
}

async fn the_newest_version_of_a_policy_is_in_force(pair: &Pair) {
    let before = records(&pair.store).await;
    pair.between(false, |other, _| async move {
        other.set_policy_by("mine_cpu", POLICIES[0], "bert").await.unwrap();
    })
    .await;
    pair.one.set_policy_by("mine_cpu", POLICIES[1], "anna").await.unwrap();
    assert_eq!(records(&pair.store).await, before + 2);
    let agree = async |text: Option<&str>, by: &[&str]| {
        let versions = pair.one.policy_versions("mine_cpu").await.unwrap();
        let seen: Vec<_> = versions.iter().map(|version| version.by.as_str()).collect();
        assert_eq!(seen, by);
        let newest = pair.one.policy("mine_cpu").await.ok().map(|(text, _)| text);
        assert_eq!(newest.as_deref(), text);
        let digest = text.map(crate::state::digest).unwrap_or_default();
        assert_eq!(versions[0].digest, digest, "the newest version is the one in force");
    };
    agree(Some(POLICIES[1]), &["anna", "bert"]).await;
    // Deleted and set back to the very same text in between: that is a change too.
    pair.between(false, |other, _| async move {
        other.delete_policy("mine_cpu", "bert").await.unwrap();
        other.set_policy_by("mine_cpu", POLICIES[1], "bert").await.unwrap();
    })
    .await;
    pair.one.set_policy_by("mine_cpu", POLICIES[0], "anna").await.unwrap();
    agree(Some(POLICIES[0]), &["anna", "bert", "bert", "anna", "bert"]).await;
    // Who deletes what somebody else has deleted is told that there is nothing.
    pair.between(false, |other, _| async move {
        other.delete_policy("mine_cpu", "bert").await.unwrap();
    })
    .await;
    assert!(matches!(pair.one.delete_policy("mine_cpu", "anna").await, Err(ServiceError::PolicyId(_))));
    agree(None, &["bert", "anna", "bert", "bert", "anna", "bert"]).await;
}

async fn who_never_gets_through_is_told(pair: &Pair) {
    let before = records(&pair.store).await;
    pair.between(true, |other, call| async move {
        other.register(&add("never", &format!("theirs-{call}"))).await.unwrap();
    })
    .await;
    let error = pair.one.register(&add("never", "ours")).await.unwrap_err();
    assert!(matches!(error, ServiceError::Conflict { tries: 8, .. }), "{error}");
    let problem = Problem::from(error);
    assert_eq!((problem.status, problem.reason.as_str()), (409, "conflict"));
    assert!(problem.detail.contains("repeat it"), "{}", problem.detail);
    assert_eq!(records(&pair.store).await, before + 8, "the other's, and none of ours");
    let there = pair.value("never").await.to_string();
    assert!(there.contains("theirs-8") && !there.contains("ours"), "{there}");
    pair.between(true, |other, call| async move {
        other.set_policy_by("mine_cpu", POLICIES[usize::from(call % 2 == 0)], "bert").await.unwrap();
    })
    .await;
    let error = pair.one.set_policy_by("mine_cpu", POLICIES[0], "anna").await.unwrap_err();
    assert!(matches!(error, ServiceError::Conflict { .. }), "{error}");
    *pair.one.state.interruption.lock().await = None;
    pair.one.set_policy_by("mine_cpu", POLICIES[0], "anna").await.unwrap();
}

/// Without anybody holding the moment: many additions of both, all of which must be there.
async fn nothing_is_lost_in_a_crowd(pair: &Pair) {
    let run = |service: &Arc<AttestationService>, who: &'static str| {
        let service = Arc::clone(service);
        tokio::spawn(async move {
            for number in 0..20 {
                service.register(&add("crowd", &format!("{who}-{number:02}"))).await.unwrap();
            }
        })
    };
    let (one, other) = (run(&pair.one, "one"), run(&pair.other, "other"));
    one.await.unwrap();
    other.await.unwrap();
    assert_eq!(pair.value("crowd").await.as_array().unwrap().len(), 40);
    pair.store.audit().verify(None).await.unwrap();
}

async fn all(pair: &Pair) {
    what_is_added_is_added_to_what_is_there(pair).await;
    what_is_deleted_stays_deleted(pair).await;
    an_older_message_does_not_undo_a_newer_one(pair).await;
    the_newest_version_of_a_policy_is_in_force(pair).await;
    who_never_gets_through_is_told(pair).await;
    nothing_is_lost_in_a_crowd(pair).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_do_not_undo_one_another() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("db"), StoreKey::ephemeral()).await.unwrap();
    all(&Pair { one: service(&store).await, other: service(&store).await, store }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_do_not_undo_one_another_on_postgres() {
    let Some(postgres) = Postgres::start() else { return };
    let key = StoreKey::ephemeral();
    let store = Store::postgres(&postgres.options(), key.clone()).await.unwrap();
    let theirs = Store::postgres(&postgres.options(), key).await.unwrap();
    all(&Pair { one: service(&store).await, other: service(&theirs).await, store }).await;
}
