//! Sessions: what is remembered between challenge, evidence and resource.
//!
//! In memory: a restart means that guests attest again, which they do by themselves. A nonce is taken by the first `/attest` that
//! names it, whatever comes of it: evidence cannot be tried twice.
//!
//! Anybody may open sessions, so what is open must not push out others' work. Sessions that nobody attested in are counted by
//! [`Peer`]: one has at most [`PER_PEER`], its own oldest makes room, and when there are [`MAX_OPEN`] in all, the oldest of the
//! peers that have most. Attested sessions are never pushed out by those. They hold a token each, so bytes of tokens are counted:
//! over [`MAX_TOKENS`] those that were not affirmed go first (anybody with a machine of that kind can make them), then
//! new ones are refused.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};


/// Most sessions, of all peers, in which nobody attested.
const MAX_OPEN: usize = 65_536;
/// Most of one peer: a node's guests share one address.
const PER_PEER: usize = 1024;
/// Most bytes of tokens.
const MAX_TOKENS: usize = 256 << 20;

/// A session that is opened.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    /// Who asked.
    pub(crate) peer: String,
    /// What the answer is judged by.
    pub(crate) context: String,
    /// The challenge.
    pub(crate) nonce: String,
    /// When the session ends.
    pub(crate) expires: i64,
}

type Peer = String;

/// An attested guest.
#[derive(Debug, Clone)]
pub(crate) struct Attested {
    /// Its token, which also names its key.
    pub(crate) token: String,
    /// Whether it is what the reference values say.
    pub(crate) affirming: bool,
}

#[derive(Debug, Clone)]
enum State {
    /// A challenge is out.
    Challenged { nonce: String },
    /// The challenge was answered; the answer is being judged or was refused.
    Answered,
    /// The evidence was good.
    Attested(Attested),
}

#[derive(Debug, Clone)]
struct Session {
    peer: Peer,
    context: String,
    expires: i64,
    state: State,
}

/// What `/attest` finds under a cookie.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Judge the evidence, which must bind the nonce that was just taken.
    Judge { context: String },
    /// It was judged before; this is the token.
    Done(Attested),
}

#[derive(Debug, Default)]
struct Table {
    sessions: HashMap<String, Session>,
    /// Sessions in which nobody attested, of each peer, the oldest first.
    open: HashMap<Peer, VecDeque<String>>,
    opened: usize,
    /// Bytes of tokens.
    tokens: usize,
}

impl Table {
    fn insert(&mut self, id: &str, session: Session) {
        self.remove(id);
        match &session.state {
            State::Attested(attested) => self.tokens += attested.token.len(),
            State::Challenged { .. } | State::Answered => {
                self.open.entry(session.peer.clone()).or_default().push_back(id.to_owned());
                self.opened += 1;
            }
        }
        self.sessions.insert(id.to_owned(), session);
    }

    fn remove(&mut self, id: &str) {
        let Some(session) = self.sessions.remove(id) else { return };
        match session.state {
            State::Attested(attested) => self.tokens -= attested.token.len(),
            State::Challenged { .. } | State::Answered => {
                let Some(queue) = self.open.get_mut(&session.peer) else { return };
                let before = queue.len();
                queue.retain(|known| known != id);
                self.opened -= before - queue.len();
                if queue.is_empty() {
                    self.open.remove(&session.peer);
                }
            }
        }
    }

    fn sweep(&mut self, now: i64) {
        let gone = |(id, session): (&String, &Session)| (session.expires <= now).then(|| id.clone());
        let gone: Vec<String> = self.sessions.iter().filter_map(gone).collect();
        gone.iter().for_each(|id| self.remove(id));
    }

    /// Removes the oldest open session of `peer`.
    fn drop_oldest(&mut self, peer: &Peer) {
        if let Some(id) = self.open.get(peer).and_then(|queue| queue.front().cloned()) {
            self.remove(&id);
        }
    }

    /// Makes room for one more open session of `peer`.
    fn room(&mut self, peer: &Peer, now: i64) {
        if self.open.get(peer).is_some_and(|queue| queue.len() >= PER_PEER) {
            self.drop_oldest(peer);
        }
        if self.opened >= MAX_OPEN {
            self.sweep(now);
        }
        if self.opened >= MAX_OPEN {
            self.shed(MAX_OPEN / 8 * 7);
        }
    }

    /// Leaves at most `target` open sessions: first no peer keeps more than the others, then the oldest go. Many at once, since
    /// looking at all of them takes long.
    fn shed(&mut self, target: usize) {
        let kept = |level: usize| self.open.values().map(|queue| queue.len().min(level)).sum::<usize>();
        let (mut level, mut above) = (1, PER_PEER + 1);
        while above - level > 1 {
            let middle = level.midpoint(above);
            *(if kept(middle) <= target { &mut level } else { &mut above }) = middle;
        }
        let surplus = |queue: &VecDeque<String>| queue.len().saturating_sub(level);
        let gone: Vec<String> =
            self.open.values().flat_map(|queue| queue.iter().take(surplus(queue)).cloned()).collect();
        gone.iter().for_each(|id| self.remove(id));
        let oldest = |id: &String| self.sessions.get(id).map_or(0, |session| session.expires);
        let mut fronts: Vec<(i64, String)> =
            self.open.values().filter_map(|queue| queue.front()).map(|id| (oldest(id), id.clone())).collect();
        fronts.sort_unstable();
        let surplus = self.opened.saturating_sub(target);
        fronts.iter().take(surplus).for_each(|(_, id)| self.remove(id));
    }

    /// Makes room for a token of `bytes`; false when there is none.
    fn room_for_token(&mut self, bytes: usize, now: i64) -> bool {
        if self.tokens + bytes > MAX_TOKENS {
            self.sweep(now);
        }
        if self.tokens + bytes > MAX_TOKENS {
            let poor = |session: &Session| matches!(&session.state, State::Attested(a) if !a.affirming);
            let poor = self.sessions.iter().filter(|(_, session)| poor(session));
            let poor: Vec<String> = poor.map(|(id, _)| id.clone()).collect();
            poor.iter().for_each(|id| self.remove(id));
        }
        self.tokens + bytes <= MAX_TOKENS
    }
}

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    table: Mutex<Table>,
}

impl Sessions {
    fn with<R>(&self, work: impl FnOnce(&mut Table) -> R) -> R {
        // A panic while the lock is held would leave counts that are off by one: no reason to stop serving.
        work(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens a session.
    pub(crate) async fn open(&self, id: &str, opening: Opening, now: i64) -> Result<(), String> {
        self.with(|table| {
            table.room(&opening.peer, now);
            let Opening { peer, context, nonce, expires } = opening;
            table.insert(id, Session { peer, context, expires, state: State::Challenged { nonce } });
        });
        Ok(())
    }

    /// Takes the challenge for judging `nonce`. The error says why there is nothing to judge.
    pub(crate) async fn take_nonce(&self, id: &str, nonce: &str, now: i64) -> Result<Answer, String> {
        self.with(|table| {
            let session = table.sessions.get_mut(id).filter(|s| s.expires > now);
            let session = session.ok_or("the session is unknown or has expired, ask for a new challenge")?;
            match &session.state {
                State::Attested(attested) => return Ok(Answer::Done(attested.clone())),
                State::Answered => {
                    return Err("the nonce was used before: replayed evidence is refused".to_owned());
                }
                State::Challenged { nonce: expected } if expected != nonce => {
                    return Err(format!(
                        "the nonce is not the one of this session: seen {:?}, expected {expected:?} (replayed evidence?)",
                        nonce.chars().take(64).collect::<String>()
                    ));
                }
                State::Challenged { .. } => {}
            }
            session.state = State::Answered;
            Ok(Answer::Judge { context: session.context.clone() })
        })
    }

    /// Marks a session as attested. The error says why it cannot be kept.
    pub(crate) async fn attested(&self, id: &str, attested: Attested, now: i64) -> Result<(), String> {
        self.with(|table| {
            let Some(mut session) = table.sessions.get(id).cloned() else {
                return Err("the session was given up, ask for a new challenge".to_owned());
            };
            if !table.room_for_token(attested.token.len(), now) {
                return Err("the key broker holds as many tokens as it can, try later".to_owned());
            }
            session.state = State::Attested(attested);
            table.insert(id, session);
            Ok(())
        })
    }

    /// The guest of an attested session.
    pub(crate) async fn get(&self, id: &str, now: i64) -> Result<Option<Attested>, String> {
        Ok(self.with(|table| match table.sessions.get(id) {
            Some(Session { state: State::Attested(attested), expires, .. }) if *expires > now => {
                Some(attested.clone())
            }
            _ => None,
        }))
    }

    /// Forgets what has expired; returns how many are left.
    pub(crate) async fn sweep(&self, now: i64) -> Result<usize, String> {
        Ok(self.with(|table| {
            table.sweep(now);
            table.sessions.len()
        }))
    }
}

