//! Sessions that replicas share: rows of PostgreSQL, each step one statement, so that of two replicas one wins.
//!
//! Bounds over all sessions are looked after by each replica at every [`EVERY`]th call, so they may be passed by that many rows times
//! the number of replicas; the bound of a peer is exact but for sessions opened at the same moment.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};

use super::{Answer, Attested, MAX_OPEN, MAX_TOKENS, Opening, PER_PEER, SessionError, SessionStore};
use crate::StoreError;
use crate::db::{Engine, Row, Tx, column, values};
use crate::key::{StoreKey, associated};

/// Calls between two looks at all sessions.
const EVERY: usize = 64;

/// Forgets what has expired; what another replica forgets at this moment is left to it, so that they never wait for one another.
const SWEEP: &str = "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE expires <= $1 \
                     FOR UPDATE SKIP LOCKED)";

const CHALLENGED: i64 = 0;
const ANSWERED: i64 = 1;
const ATTESTED: i64 = 2;

/// Sessions in PostgreSQL.
pub(crate) struct PostgresSessions {
    engine: Engine,
    key: StoreKey,
    opened: AtomicUsize,
    attested: AtomicUsize,
}

impl std::fmt::Debug for PostgresSessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PostgresSessions")
    }
}

/// What a session is called in the database: its id is a credential.
fn name(id: &str) -> Vec<u8> {
    digest(&SHA256, format!("kata-cc session id\0{id}").as_bytes()).as_ref().to_vec()
}

fn row_of(name: &[u8], affirming: bool) -> Vec<u8> {
    associated("session token", &[name, &[u8::from(affirming)]])
}

impl PostgresSessions {
    pub(crate) fn new(engine: Engine, key: StoreKey) -> Self {
        Self { engine, key, opened: AtomicUsize::new(0), attested: AtomicUsize::new(0) }
    }

    fn guest(
        &self,
        name: &[u8],
        row: &Row,
        token: usize,
        affirming: usize,
    ) -> Result<Attested, SessionError> {
        let affirming = row.int(affirming)? != 0;
        let token = self.key.unseal(&row_of(name, affirming), None, row.bytes(token)?);
        let token = token.and_then(|token| String::from_utf8(token.to_vec()).ok());
        let sealed = || StoreError::Sealed { namespace: "sessions".to_owned(), name: "token".to_owned() };
        Ok(Attested { token: token.ok_or_else(sealed)?, affirming })
    }

    /// Makes room among open sessions: first no peer keeps more than the others, then the oldest go.
    async fn shed(&self, now: i64) -> Result<(), StoreError> {
        let mut tx = self.engine.write().await?;
        if number(&mut tx, "SELECT count(*) FROM sessions WHERE state < 2").await? <= MAX_OPEN {
            return Ok(());
        }
        tx.execute(SWEEP, values![now]).await?;
        if number(&mut tx, "SELECT count(*) FROM sessions WHERE state < 2").await? > MAX_OPEN {
            let sql = "DELETE FROM sessions WHERE state < 2 AND id IN (SELECT id FROM (SELECT id, number, \
                       row_number() OVER (PARTITION BY peer ORDER BY number DESC) AS place FROM sessions \
                       WHERE state < 2) AS ranked ORDER BY place, number DESC OFFSET $1)";
            tx.execute(sql, values![column(MAX_OPEN as u64 / 8 * 7)]).await?;
        }
        tx.commit().await
    }

    /// Makes room for a token of `bytes`; false when there is none.
    async fn room_for_token(&self, bytes: usize, now: i64) -> Result<bool, StoreError> {
        const SUM: &str = "SELECT CAST(coalesce(sum(size), 0) AS BIGINT) FROM sessions WHERE state = 2";
        let mut tx = self.engine.write().await?;
        let fits = |sum: usize| sum.saturating_add(bytes) <= MAX_TOKENS;
        if fits(number(&mut tx, SUM).await?) {
            return Ok(true);
        }
        tx.execute(SWEEP, values![now]).await?;
        if !fits(number(&mut tx, SUM).await?) {
            tx.execute("DELETE FROM sessions WHERE state = 2 AND affirming = 0", vec![]).await?;
        }
        let fits = fits(number(&mut tx, SUM).await?);
        tx.commit().await?;
        Ok(fits)
    }
}

async fn number(tx: &mut Tx, sql: &'static str) -> Result<usize, StoreError> {
    let count = tx.row(sql, vec![]).await?.map(|row| row.count(0)).transpose()?;
    Ok(usize::try_from(count.unwrap_or(0)).unwrap_or(usize::MAX))
}

#[async_trait]
impl SessionStore for PostgresSessions {
    async fn open(&self, id: &str, opening: Opening, now: i64) -> Result<(), SessionError> {
        if self.opened.fetch_add(1, Ordering::Relaxed) % EVERY == EVERY - 1 {
            self.shed(now).await?;
        }
        let sql = "WITH surplus AS (DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE id IN \
                   (SELECT id FROM sessions WHERE peer = $2 AND state < 2 ORDER BY number DESC OFFSET $6) \
                   FOR UPDATE SKIP LOCKED)) \
                   INSERT INTO sessions (id, peer, context, nonce, expires, state, token, size, affirming) \
                   VALUES ($1, $2, $3, $4, $5, 0, ''::bytea, 0, 0) RETURNING number";
        let (peer, context, nonce) =
            (opening.peer.as_str(), opening.context.as_str(), opening.nonce.as_str());
        let surplus = column(PER_PEER as u64 - 1);
        self.engine.row(sql, values![name(id), peer, context, nonce, opening.expires, surplus]).await?;
        Ok(())
    }

    async fn take_nonce(&self, id: &str, nonce: &str, now: i64) -> Result<Answer, SessionError> {
        let name = name(id);
        // Of any number of replicas, one changes the row: the others wait for its lock and then find another state.
        let sql = "UPDATE sessions SET state = $1 WHERE id = $2 AND state = $3 AND nonce = $4 AND expires > $5 \
                   RETURNING context";
        let taken = values![ANSWERED, name.clone(), CHALLENGED, nonce, now];
        if let Some(row) = self.engine.row(sql, taken).await? {
            return Ok(Answer::Judge { context: row.text(0)? });
        }
        let sql = "SELECT state, nonce, token, affirming FROM sessions WHERE id = $1 AND expires > $2";
        let row = self.engine.row(sql, values![name.clone(), now]).await?.ok_or(SessionError::Unknown)?;
        match row.int(0)? {
            ATTESTED => Ok(Answer::Done(self.guest(&name, &row, 2, 3)?)),
            CHALLENGED => Err(SessionError::other_nonce(nonce, &row.text(1)?)),
            _ => Err(SessionError::Used),
        }
    }

    async fn attested(&self, id: &str, guest: Attested, now: i64) -> Result<(), SessionError> {
        let bytes = guest.token.len();
        if self.attested.fetch_add(1, Ordering::Relaxed).is_multiple_of(EVERY)
            && !self.room_for_token(bytes, now).await?
        {
            return Err(SessionError::Full);
        }
        let name = name(id);
        let token = self.key.seal(&row_of(&name, guest.affirming), guest.token.as_bytes())?;
        let sql = "UPDATE sessions SET state = $1, token = $2, size = $3, affirming = $4 \
                   WHERE id = $5 AND state = $6 AND expires > $7 RETURNING number";
        let size = column(bytes as u64);
        let row = values![ATTESTED, token, size, i64::from(guest.affirming), name, ANSWERED, now];
        self.engine.row(sql, row).await?.map(|_| ()).ok_or(SessionError::GivenUp)
    }

    async fn get(&self, id: &str, now: i64) -> Result<Option<Attested>, SessionError> {
        let name = name(id);
        let sql = "SELECT token, affirming FROM sessions WHERE id = $1 AND state = $2 AND expires > $3";
        let row = self.engine.row(sql, values![name.clone(), ATTESTED, now]).await?;
        row.map(|row| self.guest(&name, &row, 0, 1)).transpose()
    }

    async fn sweep(&self, now: i64) -> Result<usize, SessionError> {
        let mut tx = self.engine.write().await?;
        tx.execute(SWEEP, values![now]).await?;
        let left = number(&mut tx, "SELECT count(*) FROM sessions").await?;
        tx.commit().await?;
        Ok(left)
    }
}
