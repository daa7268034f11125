//! Sessions of one process: a restart means that guests attest again, which they do by themselves.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use super::{Answer, Attested, MAX_OPEN, MAX_TOKENS, Opening, PER_PEER, SessionError, SessionStore};

#[derive(Debug, Clone)]
enum State {
    /// A challenge is out.
    Challenged { nonce: String, context: String },
    /// The challenge was answered; the answer is being judged or was refused.
    Answered,
    /// The evidence was good.
    Attested(Attested),
}

#[derive(Debug, Clone)]
struct Session {
    peer: String,
    expires: i64,
    state: State,
}

#[derive(Debug, Default)]
struct Table {
    sessions: HashMap<String, Session>,
    /// Sessions in which nobody attested, of each peer, the oldest first.
    open: HashMap<String, VecDeque<String>>,
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
    fn drop_oldest(&mut self, peer: &str) {
        if let Some(id) = self.open.get(peer).and_then(|queue| queue.front().cloned()) {
            self.remove(&id);
        }
    }

    /// Makes room for one more open session of `peer`.
    fn room(&mut self, peer: &str, now: i64) {
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

/// Sessions of this process.
#[derive(Debug, Default)]
pub struct MemorySessions {
    table: Mutex<Table>,
}

impl MemorySessions {
    fn with<R>(&self, work: impl FnOnce(&mut Table) -> R) -> R {
        // A panic while the lock is held would leave counts that are off by one: no reason to stop serving.
        work(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl SessionStore for MemorySessions {
    async fn open(&self, id: &str, opening: Opening, now: i64) -> Result<(), SessionError> {
        self.with(|table| {
            table.room(&opening.peer, now);
            let state = State::Challenged { nonce: opening.nonce, context: opening.context };
            table.insert(id, Session { peer: opening.peer, expires: opening.expires, state });
        });
        Ok(())
    }

    async fn take_nonce(&self, id: &str, nonce: &str, now: i64) -> Result<Answer, SessionError> {
        self.with(|table| {
            let session = table.sessions.get_mut(id).filter(|s| s.expires > now);
            let session = session.ok_or(SessionError::Unknown)?;
            let context = match &session.state {
                State::Attested(attested) => return Ok(Answer::Done(attested.clone())),
                State::Answered => return Err(SessionError::Used),
                State::Challenged { nonce: expected, .. } if expected != nonce => {
                    return Err(SessionError::other_nonce(nonce, expected));
                }
                State::Challenged { context, .. } => context.clone(),
            };
            session.state = State::Answered;
            Ok(Answer::Judge { context })
        })
    }

    async fn attested(&self, id: &str, guest: Attested, now: i64) -> Result<(), SessionError> {
        self.with(|table| {
            let session = table.sessions.get(id).filter(|s| s.expires > now);
            let session = session.filter(|s| matches!(s.state, State::Answered));
            let Some(mut session) = session.cloned() else { return Err(SessionError::GivenUp) };
            if !table.room_for_token(guest.token.len(), now) {
                return Err(SessionError::Full);
            }
            session.state = State::Attested(guest);
            table.insert(id, session);
            Ok(())
        })
    }

    async fn get(&self, id: &str, now: i64) -> Result<Option<Attested>, SessionError> {
        Ok(self.with(|table| match table.sessions.get(id) {
            Some(Session { state: State::Attested(attested), expires, .. }) if *expires > now => {
                Some(attested.clone())
            }
            _ => None,
        }))
    }

    async fn sweep(&self, now: i64) -> Result<usize, SessionError> {
        Ok(self.with(|table| {
            table.sweep(now);
            table.sessions.len()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attested(token: &str, affirming: bool) -> Attested {
        Attested { token: token.to_owned(), affirming }
    }

    async fn open(sessions: &MemorySessions, id: &str, from: usize) {
        let opening = Opening {
            peer: from.to_string(),
            context: "sim-snp".to_owned(),
            nonce: "n".to_owned(),
            expires: 100,
        };
        sessions.open(id, opening, 0).await.unwrap();
    }

    async fn judged(sessions: &MemorySessions, id: &str) -> bool {
        matches!(sessions.take_nonce(id, "n", 1).await, Ok(Answer::Judge { .. }))
    }

    async fn attest(sessions: &MemorySessions, id: &str, guest: Attested) -> Result<(), SessionError> {
        assert!(judged(sessions, id).await);
        sessions.attested(id, guest, 1).await
    }

    #[tokio::test]
    async fn a_nonce_is_good_once() {
        let sessions = MemorySessions::default();
        open(&sessions, "s", 1).await;
        let take = async |id: &str, nonce: &str, now| sessions.take_nonce(id, nonce, now).await;
        assert!(take("s", "other", 1).await.unwrap_err().to_string().contains("not the one"));
        // Nobody is attested whose challenge was not taken.
        assert!(matches!(sessions.attested("s", attested("t", true), 1).await, Err(SessionError::GivenUp)));
        assert!(judged(&sessions, "s").await);
        assert!(matches!(take("s", "n", 1).await, Err(SessionError::Used)));
        assert!(sessions.get("s", 1).await.unwrap().is_none());
        sessions.attested("s", attested("t", true), 1).await.unwrap();
        assert!(matches!(take("s", "n", 1).await, Ok(Answer::Done(guest)) if guest.token == "t"));
        assert!(sessions.attested("s", attested("u", true), 1).await.is_err());
        assert!(sessions.get("s", 99).await.unwrap().is_some());
        assert!(sessions.get("s", 100).await.unwrap().is_none());
        assert!(matches!(take("s", "n", 100).await, Err(SessionError::Unknown)));
        assert!(matches!(take("x", "n", 1).await, Err(SessionError::Unknown)));
        assert_eq!(sessions.sweep(100).await.unwrap(), 0);
        sessions.with(|table| assert_eq!((table.opened, table.tokens, table.open.len()), (0, 0, 0)));
    }

    /// All with the same expiry, as whoever asks quickly gets it.
    #[tokio::test]
    async fn a_flood_of_challenges_hurts_only_its_sender() {
        let sessions = MemorySessions::default();
        open(&sessions, "victim", 1).await;
        open(&sessions, "attested", 2).await;
        attest(&sessions, "attested", attested("t", false)).await.unwrap();
        for n in 0..70_000 {
            open(&sessions, &n.to_string(), 3).await;
        }
        assert_eq!(sessions.sweep(1).await.unwrap(), PER_PEER + 2);
        assert!(judged(&sessions, "victim").await);
        assert!(sessions.get("attested", 1).await.unwrap().is_some());
        assert!(judged(&sessions, "69999").await);
        // From many addresses.
        open(&sessions, "victim 2", 1).await;
        for n in 0..140_000 {
            open(&sessions, &format!("many {n}"), 10 + n / 2).await;
        }
        assert!(sessions.sweep(1).await.unwrap() <= MAX_OPEN + 1);
        assert!(judged(&sessions, "many 139999").await);
        assert!(judged(&sessions, "victim 2").await);
        assert!(sessions.get("attested", 1).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn tokens_are_bounded_and_the_affirmed_stay() {
        let sessions = MemorySessions::default();
        let token = "x".repeat(1 << 20);
        open(&sessions, "good", 1).await;
        attest(&sessions, "good", attested(&token, true)).await.unwrap();
        for n in 0..1000 {
            open(&sessions, &n.to_string(), 2).await;
            attest(&sessions, &n.to_string(), attested(&token, false)).await.unwrap();
            sessions.with(|table| assert!(table.tokens <= MAX_TOKENS));
        }
        assert!(sessions.get("good", 1).await.unwrap().is_some());
        for n in 1..256 {
            let id = format!("good {n}");
            open(&sessions, &id, 1).await;
            attest(&sessions, &id, attested(&token, true)).await.unwrap();
        }
        open(&sessions, "full", 1).await;
        let full = attest(&sessions, "full", attested(&token, true)).await;
        assert!(matches!(full, Err(SessionError::Full)));
        assert!(sessions.get("good", 1).await.unwrap().is_some());
    }
}
