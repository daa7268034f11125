//! Sessions as the handshake knows them. Where they are, and their bounds: [`kata_cc_store::session`].

use std::sync::Arc;

use kata_cc_attestation_service::serve::Peer;
use kata_cc_kbs_protocol::Tee;
pub(crate) use kata_cc_store::session::{Attested, SessionError};
use kata_cc_store::session::{Opening, SessionStore};

/// What `/attest` finds under a cookie.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Judge the evidence, which must bind the nonce that was just taken.
    Judge { tee: Tee },
    /// It was judged before; this is the token.
    Done(String),
}

/// All sessions, shared with other replicas where the store is.
#[derive(Debug)]
pub(crate) struct Sessions {
    store: Arc<dyn SessionStore>,
}

impl Sessions {
    pub(crate) fn new(store: Arc<dyn SessionStore>) -> Self {
        Self { store }
    }

    /// Opens a session.
    pub(crate) async fn open(
        &self,
        id: &str,
        peer: Peer,
        tee: Tee,
        nonce: &str,
        (now, expires): (i64, i64),
    ) -> Result<(), SessionError> {
        let opening =
            Opening { peer: peer.to_string(), context: tee.to_string(), nonce: nonce.to_owned(), expires };
        self.store.open(id, opening, now).await
    }

    /// Takes the challenge for judging `nonce`. The error says why there is nothing to judge.
    pub(crate) async fn answer(&self, id: &str, nonce: &str, now: i64) -> Result<Answer, SessionError> {
        use kata_cc_store::session::Answer as Taken;
        Ok(match self.store.take_nonce(id, nonce, now).await? {
            // It was a TEE when it was stored, so it is one now, unless replicas are of different versions.
            Taken::Judge { context } => Answer::Judge { tee: tee(&context).ok_or(SessionError::GivenUp)? },
            Taken::Done(guest) => Answer::Done(guest.token),
        })
    }

    /// Marks a session as attested. The error says why it cannot be kept.
    pub(crate) async fn attested(&self, id: &str, attested: Attested, now: i64) -> Result<(), SessionError> {
        self.store.attested(id, attested, now).await
    }

    /// The guest of an attested session.
    pub(crate) async fn guest(&self, id: &str, now: i64) -> Result<Option<Attested>, SessionError> {
        self.store.get(id, now).await
    }

    /// Forgets what has expired; returns how many are left.
    pub(crate) async fn sweep(&self, now: i64) -> Result<usize, SessionError> {
        self.store.sweep(now).await
    }
}

fn tee(name: &str) -> Option<Tee> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}
