//! Sessions: what is remembered between challenge, evidence and resource.
//!
//! In memory: a restart means that guests attest again, which they do by themselves. At most [`MAX_SESSIONS`] are kept; when
//! that many are open, the ones nearest their end make room, so that requests without end cannot exhaust memory.
//! A nonce is taken by the first `/attest` that names it, whatever comes of it: evidence cannot be tried twice.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use kata_cc_kbs_protocol::Tee;

/// Most sessions at a time.
const MAX_SESSIONS: usize = 65_536;

/// An attested guest.
#[derive(Debug, Clone)]
pub(crate) struct Attested {
    /// Its token, which also names its key.
    pub(crate) token: String,
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
    tee: Tee,
    expires: i64,
    state: State,
}

/// What `/attest` finds under a cookie.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Judge the evidence, which must bind the nonce that was just taken.
    Judge { tee: Tee },
    /// It was judged before; this is the token.
    Done(String),
}

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    sessions: Mutex<HashMap<String, Session>>,
}

impl Sessions {
    fn with<R>(&self, work: impl FnOnce(&mut HashMap<String, Session>) -> R) -> R {
        // A panic while the lock is held leaves a map that is whole: each call is one insertion or removal.
        work(&mut self.sessions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens a session.
    pub(crate) fn open(&self, id: &str, tee: Tee, nonce: &str, now: i64, expires: i64) {
        self.with(|sessions| {
            if sessions.len() >= MAX_SESSIONS {
                sessions.retain(|_, session| session.expires > now);
            }
            if sessions.len() >= MAX_SESSIONS {
                let mut ends: Vec<i64> = sessions.values().map(|s| s.expires).collect();
                let (_, cut, _) = ends.select_nth_unstable(MAX_SESSIONS / 8);
                let cut = *cut;
                sessions.retain(|_, session| session.expires > cut);
            }
            let state = State::Challenged { nonce: nonce.to_owned() };
            sessions.insert(id.to_owned(), Session { tee, expires, state });
        });
    }

    /// Takes the challenge for judging `nonce`. The error says why there is nothing to judge.
    pub(crate) fn answer(&self, id: &str, nonce: &str, now: i64) -> Result<Answer, String> {
        self.with(|sessions| {
            let session = sessions.get_mut(id).filter(|s| s.expires > now);
            let session = session.ok_or("the session is unknown or has expired, ask for a new challenge")?;
            match &session.state {
                State::Attested(attested) => return Ok(Answer::Done(attested.token.clone())),
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
            Ok(Answer::Judge { tee: session.tee })
        })
    }

    /// Marks a session as attested.
    pub(crate) fn attested(&self, id: &str, attested: Attested) {
        self.with(|sessions| {
            if let Some(session) = sessions.get_mut(id) {
                session.state = State::Attested(attested);
            }
        });
    }

    /// The guest of an attested session.
    pub(crate) fn guest(&self, id: &str, now: i64) -> Option<Attested> {
        self.with(|sessions| match sessions.get(id) {
            Some(Session { state: State::Attested(attested), expires, .. }) if *expires > now => {
                Some(attested.clone())
            }
            _ => None,
        })
    }

    /// Forgets what has expired; returns how many are left.
    pub(crate) fn sweep(&self, now: i64) -> usize {
        self.with(|sessions| {
            sessions.retain(|_, session| session.expires > now);
            sessions.len()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attested() -> Attested {
        Attested { token: "t".to_owned() }
    }

    #[test]
    fn a_nonce_is_good_once() {
        let sessions = Sessions::default();
        sessions.open("s", Tee::SimSnp, "n", 0, 100);
        assert!(sessions.answer("s", "other", 1).unwrap_err().contains("not the one"));
        assert!(matches!(sessions.answer("s", "n", 1), Ok(Answer::Judge { .. })));
        assert!(sessions.answer("s", "n", 1).unwrap_err().contains("used before"));
        assert!(sessions.guest("s", 1).is_none());
        sessions.attested("s", attested());
        assert!(matches!(sessions.answer("s", "n", 1), Ok(Answer::Done(token)) if token == "t"));
        assert!(sessions.guest("s", 99).is_some());
        assert!(sessions.guest("s", 100).is_none());
        assert!(sessions.answer("s", "n", 100).unwrap_err().contains("expired"));
        assert!(sessions.answer("x", "n", 1).unwrap_err().contains("unknown"));
        assert_eq!(sessions.sweep(100), 0);
    }

    #[test]
    fn there_is_a_limit() {
        let sessions = Sessions::default();
        for n in 0..MAX_SESSIONS as i64 + 10 {
            sessions.open(&n.to_string(), Tee::Snp, "n", 0, 100 + n);
        }
        assert!(sessions.sweep(0) <= MAX_SESSIONS);
        assert!(sessions.answer(&(MAX_SESSIONS + 9).to_string(), "n", 0).is_ok());
    }
}
