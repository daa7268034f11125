//! The keys of tokens: which one signs, which are published, how one takes the place of another.
//!
//! A rotation is one transaction of the store: the new key is published, the old one retired, the mark left for other replicas, and it is
//! on record. Only then the new key signs, so no token is of a key that is not in the store. A replica that meets a key it does not
//! know looks there at once ([`AttestationService::learn_key`]), so such a token is good everywhere from the beginning.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::{error, info, warn};

use crate::jws::{JwsError, SigningKey};
use crate::policies::recorded;
use crate::service::{AttestationService, ServiceError};
use crate::state::{KEY_NAMESPACE, Snapshot};
use crate::store::audit::Record;
use crate::store::{Change, read_secret, write_secret};
use crate::token::{LEEWAY, PublishedKey, TokenBroker, TokenError};

/// Seconds for which the key that signs is published at a time; it is published anew after half of that.
const PUBLISHED: i64 = 24 * 3600;
/// Between two looks into the store because of tokens of unknown keys: anybody can make such tokens up.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Who changed the key, when it was found in the key file.
const BY_FILE: &str = "key file";

/// Where the key that signs is kept.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// PKCS#8 PEM, mode 0600.
    pub path: PathBuf,
    /// Certificates for it (PEM), put into tokens as `x5c`.
    pub certificates: Option<PathBuf>,
}

/// When the store was last looked into because of an unknown key; held while it is.
#[derive(Debug, Default)]
pub(crate) struct KeyLooks(tokio::sync::Mutex<Option<Instant>>);

/// Reads the key that signs tokens, which must be its owner's alone, or makes one (mode 0600) when the file is absent.
pub fn signing_key(path: &Path, algorithm: &str) -> Result<SigningKey, ServiceError> {
    let fail = |why: String| failed(path, why);
    let fail_jws = |e: JwsError| fail(e.to_string());
    if !path.exists() {
        let pem = SigningKey::generate_pem(algorithm).map_err(fail_jws)?;
        write_secret(path, pem.as_bytes()).map_err(|e| fail(e.to_string()))?;
    }
    let pem = read_secret(path).map_err(|e| fail(e.to_string()))?;
    SigningKey::from_pem(&pem).map_err(fail_jws)
}

fn failed(path: &Path, why: String) -> ServiceError {
    ServiceError::SigningKey { path: path.display().to_string(), why }
}

impl AttestationService {
    /// Keeps the key that signs in a file: [`AttestationService::rotate_key`] writes there, [`AttestationService::reload`] reads it.
    ///
    /// # Errors
    /// When the certificates cannot be read or are for another key.
    pub async fn with_key_file(mut self, file: KeyFile) -> Result<Self, ServiceError> {
        self.key_file = Some(file);
        self.read_key_file().await?;
        Ok(self)
    }

    /// Checks a token of this service, also one that a retired key or another replica signed.
    ///
    /// # Errors
    /// Why it is not good.
    pub async fn verify_token(&self, token: &str, now: i64) -> Result<Value, TokenError> {
        match self.broker.verify(token, now) {
            Err(TokenError::Jws(JwsError::UnknownKey)) if self.learn_key(token, now).await => {
                self.broker.verify(token, now)
            }
            other => other,
        }
    }

    /// When a token names a key that is not known, looks whether another replica published it meanwhile. True when it is known now.
    /// However many such tokens come, the store is looked into ten times a second at most; who comes in between waits for the next look.
    pub async fn learn_key(&self, token: &str, now: i64) -> bool {
        if !self.broker.lacks_key(token, now) {
            return false;
        }
        let met = Instant::now();
        let mut looked = self.key_looks.0.lock().await;
        if looked.is_none_or(|at| at < met) {
            if let Some(at) = *looked {
                tokio::time::sleep_until((at + LOOK_EVERY).into()).await;
            }
            *looked = Some(Instant::now());
            match self.state.look().await {
                Ok(current) => self.publish(&current, now),
                Err(why) => warn!(%why, "keys of other replicas cannot be read"),
            }
        }
        drop(looked);
        !self.broker.lacks_key(token, now)
    }

    /// Reads the key file again. Another key in it retires the one that signed.
    pub(crate) async fn read_key_file(&self) -> Result<(), ServiceError> {
        let Some(file) = &self.key_file else { return Ok(()) };
        let fail = |why: String| failed(&file.path, why);
        let pem = read_secret(&file.path).map_err(|e| fail(e.to_string()))?;
        let key = SigningKey::from_pem(&pem).map_err(|e| fail(e.to_string()))?;
        let certificates = match &file.certificates {
            None => Vec::new(),
            Some(path) => std::fs::read(path).map_err(|e| fail(format!("{}: {e}", path.display())))?,
        };
        let (old, new) = (self.broker.signing_jwk(), key.jwk());
        let same = new.get("kid") == old.get("kid");
        if same && certificates.is_empty() {
            return Ok(());
        }
        // Before anything is stored: certificates of another key leave everything as it is.
        let signer = TokenBroker::signer(key, &certificates)?;
        if !same {
            // Of replicas that share the file the first one tells of it, or the one that rotated the key.
            let current = self.state.look().await?;
            let told = current.keys.iter().any(|key| key.kid() == kid(&new) && !key.retired);
            let record = rotation("take token key from its file", &new, &old, BY_FILE);
            self.put_keys(&new, &old, (!told).then_some(record)).await?;
        }
        self.broker.sign_with(signer);
        Ok(())
    }

    /// Signs with a new key from now on. The old one is published until what it signed has expired. `algorithm` is that of the
    /// old key when not given; `by` is who asks for it. Gives the new public key.
    ///
    /// # Errors
    /// When the key cannot be made or kept, or the rotation cannot be put on record; the old one then signs on.
    pub async fn rotate_key(&self, algorithm: Option<&str>, by: &str) -> Result<Value, ServiceError> {
        let _change = self.state.change().await;
        let old = self.broker.signing_jwk();
        let algorithm =
            algorithm.unwrap_or_else(|| old.get("alg").and_then(Value::as_str).unwrap_or("ES256"));
        let pem = SigningKey::generate_pem(algorithm).map_err(TokenError::from)?;
        let key = SigningKey::from_pem(pem.as_bytes()).map_err(TokenError::from)?;
        let jwk = key.jwk();
        let signer = TokenBroker::signer(key, b"")?;
        let staged = match &self.key_file {
            None => None,
            Some(file) if file.certificates.is_some() => {
                return Err(ServiceError::Request(
                    "the key has certificates: put a new key and new certificates into their files and send SIGHUP"
                        .to_owned(),
                ));
            }
            Some(file) => Some(Staged::write(&file.path, pem.as_bytes())?),
        };
        let record = rotation("rotate token key", &jwk, &old, by);
        self.put_keys(&jwk, &old, Some(record)).await?;
        if let Some(staged) = staged
            && let Err(why) = staged.put_in_place()
        {
            // The old key signs on; `publish_keys` takes its retirement back.
            let record = rotation("rotate token key", &jwk, &old, by).verdict("failed");
            let record = record.detail("why", why.to_string());
            if let Err(error) = self.state.store.audit().append(record).await {
                error!(%error, "a rotation of the token key that failed after it was recorded is not on record as failed");
            }
            self.publish_keys().await?;
            return Err(why);
        }
        self.broker.sign_with(signer);
        self.publish_keys().await?;
        info!(kid = kid(&jwk), by, "token key rotated");
        Ok(jwk)
    }

    /// Publishes a new key and retires the old one, with the record of it, in one transaction.
    async fn put_keys(&self, new: &Value, old: &Value, record: Option<Record>) -> Result<(), ServiceError> {
        let (new, old) = (self.signing(new), self.retired(old));
        let (new_bytes, old_bytes) = (stored(&new)?, stored(&old)?);
        let changes = vec![
            Change::put(KEY_NAMESPACE, new.kid(), &new_bytes),
            Change::put(KEY_NAMESPACE, old.kid(), &old_bytes),
        ];
        // Nothing is expected or removed here, so it is done when it does not fail.
        self.state.commit(changes, record.into_iter().collect()).await.map(|_| ())
    }

    fn signing(&self, jwk: &Value) -> PublishedKey {
        let until = crate::now() + PUBLISHED + self.broker.lifetime() + LEEWAY;
        PublishedKey { jwk: jwk.clone(), until, retired: false }
    }

    fn retired(&self, jwk: &Value) -> PublishedKey {
        let until = crate::now() + self.broker.lifetime() + LEEWAY;
        PublishedKey { jwk: jwk.clone(), until, retired: true }
    }

    /// Publishes the keys that are in the store, and puts ours there while it signs.
    pub(crate) async fn publish_keys(&self) -> Result<(), ServiceError> {
        let (now, current) = (crate::now(), self.state.current().await?);
        let ours = self.broker.signing_jwk();
        let known = current.keys.iter().find(|key| key.kid() == kid(&ours));
        if !known.is_some_and(|key| !key.retired && key.until > now + PUBLISHED / 2) {
            let key = self.signing(&ours);
            let bytes = stored(&key)?;
            let change = Change::put(KEY_NAMESPACE, key.kid(), &bytes);
            self.state.commit(vec![change], Vec::new()).await.map(|_| ())?;
        }
        let current = self.state.current().await?;
        for old in current.keys.iter().filter(|key| key.until <= now) {
            self.state.store.delete(KEY_NAMESPACE, old.kid()).await?;
        }
        self.publish(&current, now);
        Ok(())
    }

    fn publish(&self, current: &Snapshot, now: i64) {
        self.broker.publish(current.keys.iter().filter(|key| key.until > now).cloned().collect());
    }
}

fn kid(jwk: &Value) -> &str {
    jwk.get("kid").and_then(Value::as_str).unwrap_or_default()
}

fn stored(key: &PublishedKey) -> Result<Vec<u8>, ServiceError> {
    serde_json::to_vec(key).map_err(|e| ServiceError::Request(e.to_string()))
}

/// What the audit log is told of another key that signs.
fn rotation(action: &str, new: &Value, old: &Value, by: &str) -> Record {
    let algorithm = new.get("alg").and_then(Value::as_str).unwrap_or_default();
    recorded(action, kid(new), by).detail("algorithm", algorithm).detail("retired", kid(old))
}

/// A secret that stands beside the one whose place it is to take. It is removed unless it does.
struct Staged {
    path: PathBuf,
    beside: Option<PathBuf>,
}

impl Staged {
    fn write(path: &Path, secret: &[u8]) -> Result<Self, ServiceError> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".new-{}", uuid::Uuid::new_v4().simple()));
        let beside = PathBuf::from(name);
        write_secret(&beside, secret).map_err(|e| failed(path, e.to_string()))?;
        Ok(Self { path: path.to_owned(), beside: Some(beside) })
    }

    /// At once: a crash leaves one or the other.
    fn put_in_place(mut self) -> Result<(), ServiceError> {
        let Some(beside) = &self.beside else { return Ok(()) };
        std::fs::rename(beside, &self.path).map_err(|e| failed(&self.path, e.to_string()))?;
        self.beside = None;
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            let _ = std::fs::remove_file(beside);
        }
    }
}
