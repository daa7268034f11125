//! The state machine of sessions, by property: whatever is called in whatever order, in memory and in PostgreSQL, by one replica
//! or by two.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::Postgres;
use kata_cc_store::session::{Answer, Attested, MemorySessions, Opening, SessionError};
use kata_cc_store::{SessionStore, Store, StoreKey};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// What somebody calls. Small sets, so that calls meet.
#[derive(Debug, Clone)]
enum Call {
    Open { id: u8, nonce: u8, life: i64 },
    Take { id: u8, nonce: u8 },
    Attest { id: u8 },
    Get { id: u8 },
    Wait { seconds: i64 },
    Sweep,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = prop_oneof![
        3 => (0..4_u8, 0..3_u8, 1..40_i64).prop_map(|(id, nonce, life)| Call::Open { id, nonce, life }),
        5 => (0..5_u8, 0..3_u8).prop_map(|(id, nonce)| Call::Take { id, nonce }),
        4 => (0..5_u8).prop_map(|id| Call::Attest { id }),
        4 => (0..5_u8).prop_map(|id| Call::Get { id }),
        1 => (1..20_i64).prop_map(|seconds| Call::Wait { seconds }),
        1 => Just(Call::Sweep),
    ];
    prop::collection::vec(call, 1..60)
}

/// What the rules say, written down as simply as can be.
#[derive(Debug, Clone, PartialEq)]
enum Model {
    Challenged(String),
    Answered,
    Attested(String),
}

/// Runs calls against replicas in turn and compares with the model after each.
async fn run(replicas: &[Arc<dyn SessionStore>], run: usize, calls: &[Call]) {
    let mut now = 1000;
    let mut model: HashMap<u8, (Model, i64)> = HashMap::new();
    let mut opened = HashMap::new();
    for (step, call) in calls.iter().enumerate() {
        let store = &replicas[step % replicas.len()];
        // Ids are never used twice, so a session that is opened again is another one.
        let name =
            |opened: &HashMap<u8, usize>, id: &u8| format!("{run}-{id}-{}", opened.get(id).unwrap_or(&0));
        match call {
            Call::Open { id, nonce, life } => {
                *opened.entry(*id).or_default() += 1;
                let opening = Opening {
                    peer: format!("{run}"),
                    context: format!("context {id}"),
                    nonce: nonce.to_string(),
                    expires: now + life,
                };
                store.open(&name(&opened, id), opening, now).await.unwrap();
                model.insert(*id, (Model::Challenged(nonce.to_string()), now + life));
            }
            Call::Take { id, nonce } => {
                let answer = store.take_nonce(&name(&opened, id), &nonce.to_string(), now).await;
                let entry = model.get_mut(id).filter(|(_, expires)| *expires > now);
                match (entry, answer) {
                    (None, Err(SessionError::Unknown))
                    | (Some((Model::Answered, _)), Err(SessionError::Used)) => {}
                    (Some((Model::Attested(token), _)), Ok(Answer::Done(guest))) => {
                        assert_eq!(*token, guest.token);
                    }
                    (Some((Model::Challenged(expected), _)), Err(SessionError::OtherNonce { .. })) => {
                        assert_ne!(*expected, nonce.to_string());
                    }
                    (Some((state @ Model::Challenged(_), _)), Ok(Answer::Judge { context })) => {
                        assert_eq!(*state, Model::Challenged(nonce.to_string()));
                        assert_eq!(context, format!("context {id}"));
                        *state = Model::Answered;
                    }
                    (entry, answer) => panic!("step {step} {call:?}: {entry:?} but {answer:?}"),
                }
            }
            Call::Attest { id } => {
                let token = format!("token {run} {step}");
                let guest = Attested { token: token.clone(), affirming: step % 2 == 0 };
                let done = store.attested(&name(&opened, id), guest, now).await;
                match (model.get_mut(id), done) {
                    (Some((state @ Model::Answered, expires)), Ok(())) if *expires > now => {
                        *state = Model::Attested(token);
                    }
                    (Some((Model::Answered, expires)), Ok(())) => panic!("step {step}: expired {expires}"),
                    (entry, Err(SessionError::GivenUp)) => {
                        let due = matches!(entry, Some((Model::Answered, expires)) if *expires > now);
                        assert!(!due, "step {step}");
                    }
                    (entry, done) => panic!("step {step} {call:?}: {entry:?} but {done:?}"),
                }
            }
            Call::Get { id } => {
                let guest = store.get(&name(&opened, id), now).await.unwrap();
                let expected = match model.get(id) {
                    Some((Model::Attested(token), expires)) if *expires > now => Some(token.clone()),
                    _ => None,
                };
                assert_eq!(guest.map(|guest| guest.token), expected, "step {step} {call:?}");
            }
            Call::Wait { seconds } => now += seconds,
            Call::Sweep => {
                store.sweep(now).await.unwrap();
            }
        }
    }
}

#[test]
fn no_order_of_calls_attests_who_was_not_judged() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let number = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 500, failure_persistence: None, ..Config::default() });
    runner
        .run(&calls(), |calls| {
            number.set(number.get() + 1);
            let store: Arc<dyn SessionStore> = Arc::new(MemorySessions::default());
            runtime.block_on(run(&[store], number.get(), &calls));
            Ok(())
        })
        .unwrap();
}

#[test]
fn nor_over_two_replicas() {
    let Some(postgres) = Postgres::start() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let key = StoreKey::ephemeral();
    let open = || runtime.block_on(Store::postgres(&postgres.options(), key.clone())).unwrap();
    let stores = [open(), open()];
    let replicas = [stores[0].sessions(), stores[1].sessions()];
    let number = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    runner
        .run(&calls(), |calls| {
            number.set(number.get() + 1);
            runtime.block_on(run(&replicas, number.get(), &calls));
            Ok(())
        })
        .unwrap();
    runtime.block_on(async {
        stores[0].close().await;
        stores[1].close().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_send_a_nonce_one_is_judged() {
    let Some(postgres) = Postgres::start() else { return };
    let key = StoreKey::ephemeral();
    let (one, two) = (
        Store::postgres(&postgres.options(), key.clone()).await.unwrap(),
        Store::postgres(&postgres.options(), key).await.unwrap(),
    );
    let replicas = [one.sessions(), two.sessions()];
    for round in 0..20 {
        let id = format!("session {round}");
        let opening =
            Opening { peer: "p".to_owned(), context: "c".to_owned(), nonce: "n".to_owned(), expires: 100 };
        replicas[0].open(&id, opening, 0).await.unwrap();
        let tasks: Vec<_> = (0..12)
            .map(|n| {
                let (replica, id) = (Arc::clone(&replicas[n % 2]), id.clone());
                tokio::spawn(async move { replica.take_nonce(&id, "n", 1).await })
            })
            .collect();
        let mut judged = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(Answer::Judge { .. }) => judged += 1,
                Err(SessionError::Used) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(judged, 1);
    }
    // Neither ids nor tokens are in the database as they are.
    let guest = Attested { token: "token in clear".to_owned(), affirming: true };
    replicas[1].attested("session 0", guest.clone(), 1).await.unwrap();
    assert_eq!(replicas[0].get("session 0", 1).await.unwrap(), Some(guest));
    let rows = postgres.sql("kbs", "SELECT encode(id, 'escape'), encode(token, 'escape') FROM sessions");
    assert!(!rows.contains("session 0") && !rows.contains("token in clear"), "{rows}");
    // An edit of what a token is worth is found.
    postgres.sql("kbs", "UPDATE sessions SET affirming = 0");
    assert!(replicas[0].get("session 0", 1).await.is_err());
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn a_flood_hurts_only_its_sender_in_postgres_too() {
    use kata_cc_store::session::{MAX_OPEN, PER_PEER};
    let Some(postgres) = Postgres::start() else { return };
    let store = Store::postgres(&postgres.options(), StoreKey::ephemeral()).await.unwrap();
    let sessions = store.sessions();
    let opening = |peer: &str| Opening {
        peer: peer.to_owned(),
        context: String::new(),
        nonce: "n".to_owned(),
        expires: 100,
    };
    sessions.open("victim", opening("a"), 0).await.unwrap();
    for n in 0..PER_PEER + 50 {
        sessions.open(&format!("flood {n}"), opening("b"), 0).await.unwrap();
    }
    assert_eq!(sessions.sweep(1).await.unwrap(), PER_PEER + 1);
    assert!(matches!(sessions.take_nonce("flood 0", "n", 1).await, Err(SessionError::Unknown)));
    assert!(sessions.take_nonce(&format!("flood {}", PER_PEER + 49), "n", 1).await.is_ok());
    // From many addresses: made by hand, since making them one by one takes long.
    postgres.sql(
        "kbs",
        "INSERT INTO sessions (id, peer, context, nonce, expires, state, token, size, affirming) \
         SELECT int8send(n), 'many ' || n / 2, '', 'n', 100, 0, '', 0, 0 FROM generate_series(1, 70000) AS n",
    );
    for n in 0..64 {
        sessions.open(&format!("more {n}"), opening("c"), 0).await.unwrap();
    }
    assert!(sessions.sweep(1).await.unwrap() <= MAX_OPEN);
    assert!(matches!(sessions.take_nonce("victim", "n", 1).await, Ok(Answer::Judge { .. })));
    assert!(sessions.take_nonce("more 63", "n", 1).await.is_ok());
    // Tokens: what was not affirmed makes room, what was stays.
    postgres.sql(
        "kbs",
        "UPDATE sessions SET state = 2, size = 10000, affirming = 0 WHERE state = 0 AND nonce = 'n'",
    );
    sessions.open("good", opening("d"), 0).await.unwrap();
    sessions.take_nonce("good", "n", 1).await.unwrap();
    sessions.attested("good", Attested { token: "t".to_owned(), affirming: true }, 1).await.unwrap();
    assert!(sessions.sweep(1).await.unwrap() < 10);
    postgres.sql("kbs", &format!("UPDATE sessions SET size = {} WHERE state = 2", 256 << 20));
    let mut full = 0;
    for n in 0..64 {
        let id = format!("late {n}");
        sessions.open(&id, opening("d"), 0).await.unwrap();
        sessions.take_nonce(&id, "n", 1).await.unwrap();
        let kept = sessions.attested(&id, Attested { token: "t".to_owned(), affirming: true }, 1).await;
        full += usize::from(matches!(kept, Err(SessionError::Full)));
    }
    assert_eq!(full, 1, "of each 64 calls one looks at all sessions");
    store.close().await;
}
