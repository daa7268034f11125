//! Sessions: what is remembered between challenge, evidence and resource.
//!
//! A session is challenged, then answered, then attested, and never goes back: [`take_nonce`](SessionStore::take_nonce) is the one
//! way from the first to the second state and succeeds once, whichever replica is asked, whatever comes of the evidence: it
//! cannot be tried twice. [`attested`](SessionStore::attested) is the one way from the second to the third.
//!
//! Anybody may open sessions, so what is open must not push out others' work. Sessions that nobody attested in are counted by peer:
//! one has at most [`PER_PEER`], its own oldest makes room, and when there are [`MAX_OPEN`] in all, the oldest of the
//! peers that have most. Who has so many addresses that each peer has one session (an IPv6 /48 holds as many /64 networks) pushes out the
//! oldest, but has to open an eighth less than [`MAX_OPEN`] connections first, which at the rate of TLS handshakes of one processor is
//! half a minute: longer than a guest takes between challenge and evidence. Attested sessions are never pushed out by those. They hold a token each, so bytes of tokens are counted:
//! over [`MAX_TOKENS`] those that were not affirmed go first (anybody with a machine of that kind can make them), then
//! new ones are refused.

mod memory;
mod postgres;

use async_trait::async_trait;
use thiserror::Error;

pub use memory::MemorySessions;
pub(crate) use postgres::PostgresSessions;

use crate::StoreError;

/// Most sessions, of all peers, in which nobody attested.
pub const MAX_OPEN: usize = 65_536;
/// Most of one peer: a node's guests share one address.
pub const PER_PEER: usize = 1024;
/// Most bytes of tokens.
pub const MAX_TOKENS: usize = 256 << 20;

/// A session that is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Who asked, as peers are counted.
    pub peer: String,
    /// What the service wants to know when the challenge is answered, e.g. the kind of TEE and the version of the protocol.
    pub context: String,
    /// The challenge.
    pub nonce: String,
    /// When the session ends, seconds since the epoch.
    pub expires: i64,
}

/// An attested guest.
#[derive(Clone, PartialEq, Eq)]
pub struct Attested {
    /// Its token, which also names its key.
    pub token: String,
    /// Whether it is what the reference values say.
    pub affirming: bool,
}

impl std::fmt::Debug for Attested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attested").field("affirming", &self.affirming).finish_non_exhaustive()
    }
}

/// What is found under a session's id when evidence comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Judge the evidence, which must bind the nonce that was just taken.
    Judge {
        /// What was given when the session was opened.
        context: String,
    },
    /// It was judged before; this is the guest.
    Done(Attested),
}

/// Why a session does not serve.
#[derive(Debug, Error)]
pub enum SessionError {
    /// There is none (any more).
    #[error("the session is unknown or has expired, ask for a new challenge")]
    Unknown,
    /// Evidence was sent for it before.
    #[error("the nonce was used before: replayed evidence is refused")]
    Used,
    /// Evidence for another challenge.
    #[error(
        "the nonce is not the one of this session: seen {seen:?}, expected {expected:?} (replayed evidence?)"
    )]
    OtherNonce {
        /// Nonce of the evidence, its beginning.
        seen: String,
        /// Nonce of the session.
        expected: String,
    },
    /// It made room for others, has expired, or its challenge was not answered.
    #[error("the session was given up, ask for a new challenge")]
    GivenUp,
    /// There is no room for its token.
    #[error("the key broker holds as many tokens as it can, try later")]
    Full,
    /// The store failed: not the guest's fault.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SessionError {
    fn other_nonce(seen: &str, expected: &str) -> Self {
        Self::OtherNonce { seen: seen.chars().take(64).collect(), expected: expected.to_owned() }
    }
}

/// Sessions, of one process or of all replicas. `now` is in seconds since the epoch.
#[async_trait]
pub trait SessionStore: std::fmt::Debug + Send + Sync {
    /// Opens a session; `id` is new and not to be guessed.
    async fn open(&self, id: &str, opening: Opening, now: i64) -> Result<(), SessionError>;

    /// Takes the challenge for judging `nonce`, once. The error says why there is nothing to judge.
    async fn take_nonce(&self, id: &str, nonce: &str, now: i64) -> Result<Answer, SessionError>;

    /// Marks a session, whose challenge was taken, as attested.
    async fn attested(&self, id: &str, guest: Attested, now: i64) -> Result<(), SessionError>;

    /// The guest of an attested session.
    async fn get(&self, id: &str, now: i64) -> Result<Option<Attested>, SessionError>;

    /// Forgets what has expired; returns how many are left.
    async fn sweep(&self, now: i64) -> Result<usize, SessionError>;
}
