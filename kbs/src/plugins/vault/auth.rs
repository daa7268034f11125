//! The broker's own token at the server: got, renewed when half of its life is over, got anew when it is refused.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::client::{Client, SecretText, VaultError, parse, read_token};
use super::config::AuthConfig;

/// Shortest time between two renewals.
const SHORTEST: Duration = Duration::from_secs(1);
/// How often it is looked whether there is something to renew, when nothing says when.
const IDLE: Duration = Duration::from_secs(60);

/// A token.
#[derive(Clone)]
struct Session {
    token: Zeroizing<String>,
    /// When it is to be renewed; `None` when it lives for ever or cannot be.
    renew: Option<Instant>,
    /// When it is over.
    end: Option<Instant>,
}

/// The broker's login.
pub(crate) struct Auth {
    client: Client,
    config: AuthConfig,
    base: PathBuf,
    session: Mutex<Option<Session>>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("config", &self.config).finish_non_exhaustive()
    }
}

/// `auth` of a login or renewal.
#[derive(Deserialize)]
struct Granted {
    client_token: SecretText,
    /// Seconds; 0 for ever.
    lease_duration: u64,
    renewable: bool,
}

#[derive(Deserialize)]
struct GrantedAnswer {
    auth: Granted,
}

#[derive(Deserialize)]
struct Lookup {
    data: LookupData,
}

#[derive(Deserialize)]
struct LookupData {
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

impl Session {
    fn new(token: Zeroizing<String>, seconds: u64, renewable: bool) -> Self {
        let now = Instant::now();
        let life = Duration::from_secs(seconds);
        let end = (seconds > 0).then(|| now + life);
        let renew = (seconds > 0 && renewable).then(|| now + (life / 2).max(SHORTEST));
        Self { token, renew, end }
    }
}

impl Auth {
    /// A login that renews itself in the background as long as it is there.
    pub(crate) fn new(client: Client, config: AuthConfig, base: &Path) -> Arc<Self> {
        let auth = Arc::new(Self { client, config, base: base.to_owned(), session: Mutex::default() });
        tokio::spawn(renew_for_ever(Arc::downgrade(&auth)));
        auth
    }

    /// Reads the files, so that one that is missing is told at the start.
    pub(crate) fn check(&self) -> Result<(), VaultError> {
        match &self.config {
            AuthConfig::Token { token_file } => drop(read_token(&self.base.join(token_file))?),
            AuthConfig::AppRole { role_id_file, secret_id_file, .. } => {
                drop(read_token(&self.base.join(role_id_file))?);
                drop(read_token(&self.base.join(secret_id_file))?);
            }
        }
        Ok(())
    }

    /// One call with the broker's token. A refused token is replaced, once.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let token = self.token(None).await?;
        let result = self.client.call(Some(&token), method.clone(), path, body).await;
        let refused = matches!(&result, Err(error) if error.status().is_some_and(|s| s.as_u16() == 403));
        if !refused {
            return result;
        }
        match self.token(Some(&token)).await {
            // Another token: perhaps it was the token.
            Ok(other) if other != token => self.client.call(Some(&other), method, path, body).await,
            _ => result,
        }
    }

    /// The token; another one when `refused` is the one that was refused.
    async fn token(&self, refused: Option<&str>) -> Result<Zeroizing<String>, VaultError> {
        let mut session = self.session.lock().await;
        if let Some(current) = session.as_ref() {
            let over = current.end.is_some_and(|end| end <= Instant::now());
            if !over && refused != Some(current.token.as_str()) {
                return Ok(current.token.clone());
            }
        }
        let new = self.login().await?;
        let token = new.token.clone();
        *session = Some(new);
        Ok(token)
    }

    async fn login(&self) -> Result<Session, VaultError> {
        match &self.config {
            AuthConfig::Token { token_file } => {
                let token = read_token(&self.base.join(token_file))?;
                let path = "auth/token/lookup-self";
                let answer = self.client.call(Some(&token), Method::GET, path, None).await?;
                let data = parse::<Lookup>(path, &answer)?.data;
                info!(ttl = data.ttl, renewable = data.renewable, "the broker's token at the vault is valid");
                Ok(Session::new(token, data.ttl, data.renewable))
            }
            AuthConfig::AppRole { role_id_file, secret_id_file, mount } => {
                let role_id = read_token(&self.base.join(role_id_file))?;
                let secret_id = read_token(&self.base.join(secret_id_file))?;
                let path = format!("auth/{mount}/login");
                let body = json!({"role_id": *role_id, "secret_id": *secret_id});
                let answer = self.client.call(None, Method::POST, &path, Some(&body)).await?;
                let granted = parse::<GrantedAnswer>(&path, &answer)?.auth;
                info!(ttl = granted.lease_duration, "logged in at the vault by AppRole");
                Ok(Session::new(granted.client_token.0, granted.lease_duration, granted.renewable))
            }
        }
    }

    /// Renews the token when it is time. Returns when it will be time again.
    async fn renew(&self) -> Instant {
        let mut session = self.session.lock().await;
        let Some(current) = session.as_ref() else { return Instant::now() + IDLE };
        match current.renew {
            None => return Instant::now() + IDLE,
            Some(when) if when > Instant::now() => return when,
            Some(_) => {}
        }
        let path = "auth/token/renew-self";
        let token = current.token.clone();
        let renewed = self.client.call(Some(&token), Method::POST, path, Some(&json!({}))).await;
        match renewed.and_then(|answer| Ok(parse::<GrantedAnswer>(path, &answer)?.auth)) {
            Ok(granted) => {
                let new = Session::new(token, granted.lease_duration, granted.renewable);
                let next = new.renew.unwrap_or_else(|| Instant::now() + IDLE);
                *session = Some(new);
                next
            }
            Err(error) => {
                // The token is good until its end; a login follows then, or when it is refused.
                warn!(%error, "the broker's token at the vault could not be renewed");
                let next = Instant::now() + SHORTEST * 10;
                if let Some(current) = session.as_mut() {
                    current.renew = Some(next);
                }
                next
            }
        }
    }
}

async fn renew_for_ever(auth: Weak<Auth>) {
    loop {
        let Some(auth) = auth.upgrade() else { return };
        let next = auth.renew().await;
        drop(auth);
        let pause = next.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(100), IDLE);
        // Not long, since a login in the meantime may want to be renewed sooner.
        tokio::time::sleep(pause.min(SHORTEST)).await;
    }
}
