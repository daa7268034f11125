//! Sessions as the handshake knows them. Where they are, and their bounds: [`kata_cc_store::session`].

use std::sync::Arc;

use kata_cc_attestation_service::serve::Peer;
use kata_cc_kbs_protocol::{ProtocolVersion, Tee};
pub(crate) use kata_cc_store::session::SessionError;
use kata_cc_store::session::{Attested, Opening, SessionStore};
use serde::{Deserialize, Serialize};

/// What a session remembers of its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Context {
    /// What the guest says it runs in.
    pub(crate) tee: Tee,
    /// What it speaks.
    pub(crate) version: ProtocolVersion,
    /// The challenge.
    pub(crate) nonce: String,
}

/// What a session is taken by where the client does not send the nonce back: protocols before 0.4.0. The nonce itself is bound by
/// the evidence all the same. No challenge is this text, so a body of 0.4.0 that names it meets only sessions of old versions, whose
/// shape it does not have.
const NOT_SENT: &str = "not sent by this version";

/// A guest as a session keeps it: its token behind the version that it speaks.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Guest {
    /// What it speaks.
    pub(crate) version: ProtocolVersion,
    /// Its token, which also names its key.
    pub(crate) token: String,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("version", &self.version).finish_non_exhaustive()
    }
}

impl Guest {
    fn keep(&self, affirming: bool) -> Attested {
        Attested { token: format!("{} {}", self.version, self.token), affirming }
    }

    /// The guest that [`Guest::keep`] kept.
    fn of(kept: &Attested) -> Result<Self, SessionError> {
        let parts = kept.token.split_once(' ').and_then(|(version, token)| {
            let version = ProtocolVersion::negotiate(version, &ProtocolVersion::ALL).ok()?;
            Some(Self { version, token: token.to_owned() })
        });
        // It could be read when it was stored, so it can now, unless replicas are of different versions.
        parts.ok_or(SessionError::GivenUp)
    }
}

/// What `/attest` finds under a cookie.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Judge the evidence, which must bind the nonce that was just taken.
    Judge(Context),
    /// It was judged before; this is the guest.
    Done(Guest),
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

    /// Opens a session that ends at the second of the pair; the first is now.
    pub(crate) async fn open(
        &self,
        id: &str,
        peer: Peer,
        context: &Context,
        (now, expires): (i64, i64),
    ) -> Result<(), SessionError> {
        let nonce = if context.version.has_runtime_data() { &context.nonce } else { NOT_SENT };
        let opening = Opening {
            peer: peer.to_string(),
            context: serde_json::to_string(context).unwrap_or_default(),
            nonce: nonce.to_owned(),
            expires,
        };
        self.store.open(id, opening, now).await
    }

    /// Takes the challenge for judging evidence; `nonce` is what the body names, where its version does. The error says why there is
    /// nothing to judge.
    pub(crate) async fn take(&self, id: &str, nonce: Option<&str>, now: i64) -> Result<Answer, SessionError> {
        use kata_cc_store::session::Answer as Taken;
        Ok(match self.store.take_nonce(id, nonce.unwrap_or(NOT_SENT), now).await? {
            Taken::Judge { context } => {
                Answer::Judge(serde_json::from_str(&context).map_err(|_| SessionError::GivenUp)?)
            }
            Taken::Done(kept) => Answer::Done(Guest::of(&kept)?),
        })
    }

    /// Marks a session as attested. The error says why it cannot be kept.
    pub(crate) async fn attested(
        &self,
        id: &str,
        guest: &Guest,
        affirming: bool,
        now: i64,
    ) -> Result<(), SessionError> {
        self.store.attested(id, guest.keep(affirming), now).await
    }

    /// The guest of an attested session.
    pub(crate) async fn guest(&self, id: &str, now: i64) -> Result<Option<Guest>, SessionError> {
        self.store.get(id, now).await?.as_ref().map(Guest::of).transpose()
    }

    /// Forgets what has expired; returns how many are left.
    pub(crate) async fn sweep(&self, now: i64) -> Result<usize, SessionError> {
        self.store.sweep(now).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_kept_with_its_version() {
        for version in ProtocolVersion::ALL {
            let guest = Guest { version, token: "a.b.c".to_owned() };
            assert_eq!(Guest::of(&guest.keep(true)).unwrap(), guest);
            assert!(!format!("{guest:?}").contains("a.b.c"));
        }
        assert!(Guest::of(&Attested { token: "a.b.c".to_owned(), affirming: true }).is_err());
    }
}
