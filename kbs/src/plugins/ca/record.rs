//! What is remembered of each certificate, in the broker's store.
//!
//! A record's name is the end of the certificate (ten digits, seconds since 1970) and its serial number, so that what is over is
//! found without reading it, and is removed when it is of no more use.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::plugins::blobs::Put;
use crate::plugins::{BlobStore, PluginError};

/// Namespace of records.
const NAMESPACE: &str = "ca";
/// Namespace of revoked ones.
const REVOKED: &str = "ca-revoked";
/// Namespace of the places that guests have for certificates.
const PLACES: &str = "ca-place";
/// Namespace of the certificates themselves, by the digest of what was asked for.
const ANSWERS: &str = "ca-answer";
/// Seconds that a place is held for a certificate that is being made: longer than any call of a plugin may take, so that a place is not
/// lost when the call ends in between.
pub(super) const MAKING: i64 = 600;

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Serial number, hexadecimal.
    pub(crate) serial: String,
    /// Names in it.
    pub(crate) names: Vec<String>,
    /// TEE of the guest.
    pub(crate) tee: String,
    /// Whether it is simulated.
    pub(crate) simulated: bool,
    /// `ear.status`.
    pub(crate) status: String,
    /// SHA-256 over the claims, hexadecimal.
    pub(crate) claims_digest: String,
    /// SHA-256 over the certificate, hexadecimal.
    pub(crate) certificate_digest: String,
    /// SHA-256 over what was asked for, hexadecimal; empty in records of older versions.
    #[serde(default)]
    pub(crate) request: String,
    /// Seconds since 1970.
    pub(crate) issued: i64,
    /// Seconds since 1970.
    pub(crate) end: i64,
}

/// A certificate as it was given to a guest, for who asks for the same again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Serial number, hexadecimal.
    pub(crate) serial: String,
    /// SHA-256 over the certificate, hexadecimal.
    pub(crate) certificate_digest: String,
    /// Seconds since 1970.
    pub(crate) issued: i64,
    /// Seconds since 1970.
    pub(crate) end: i64,
    /// DER, base64.
    pub(crate) certificate: String,
}

/// An answer as it is stored.
pub(crate) type Stored = Zeroizing<Vec<u8>>;

/// A revocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Revocation {
    /// Serial number, hexadecimal.
    pub(crate) serial: String,
    /// Seconds since 1970.
    pub(crate) at: i64,
    /// RFC 5280, 5.3.1.
    pub(crate) reason: u8,
}

/// The records.
#[derive(Debug)]
pub(crate) struct Records {
    store: Arc<dyn BlobStore>,
}

fn name(end: i64, serial: &str) -> String {
    format!("{:010}-{serial}", end.max(0))
}

fn end_of(name: &str) -> Option<i64> {
    name.split_once('-')?.0.parse().ok()
}

fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8], name: &str) -> Result<T, PluginError> {
    serde_json::from_slice(bytes).map_err(|e| PluginError::Internal(format!("record {name}: {e}")))
}

impl Records {
    pub(crate) fn new(store: Arc<dyn BlobStore>) -> Self {
        Self { store }
    }

    async fn put<T: Serialize + Sync>(
        &self,
        namespace: &str,
        name: &str,
        value: &T,
    ) -> Result<(), PluginError> {
        let bytes = serde_json::to_vec(value).map_err(|e| PluginError::Internal(e.to_string()))?;
        self.store.put(namespace, name, &bytes).await
    }

    /// Takes one of the `most` places of a guest for a certificate that is being made; its name, or `None` when all are taken. Each
    /// place is taken once, whichever replica is asked. It is free again after [`MAKING`] seconds unless it is [held](Self::hold).
    pub(crate) async fn place(
        &self,
        guest: &str,
        most: u32,
        now: i64,
    ) -> Result<Option<String>, PluginError> {
        for place in 0..most {
            let name = format!("{guest}/{place}");
            if self.store.take_once(PLACES, &name, now.saturating_add(MAKING), now).await? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Holds a place until a certificate's `end`.
    pub(crate) async fn hold(&self, place: &str, end: i64) -> Result<(), PluginError> {
        if self.store.keep_once(PLACES, place, end).await? {
            return Ok(());
        }
        Err(PluginError::Internal(format!("place {place} was given back while its certificate was made")))
    }

    /// Gives a place back when there is no certificate after all.
    pub(crate) async fn free(&self, place: &str) -> Result<(), PluginError> {
        self.store.give_back(PLACES, place).await
    }

    /// Remembers a certificate, both for who revokes it and for who asks for the same again. False, and it is not remembered, when
    /// another than `before` was remembered for the same request meanwhile.
    pub(crate) async fn add(
        &self,
        record: &Record,
        answer: &Answer,
        before: Option<&Stored>,
    ) -> Result<bool, PluginError> {
        let bytes = |e: serde_json::Error| PluginError::Internal(e.to_string());
        let (told, given) =
            (serde_json::to_vec(record).map_err(bytes)?, serde_json::to_vec(answer).map_err(bytes)?);
        let name = name(record.end, &record.serial);
        let expected = Some(before.map(|before| before.as_slice()));
        let puts = [
            Put { namespace: NAMESPACE, name: &name, value: &told, expected: None },
            Put { namespace: ANSWERS, name: &record.request, value: &given, expected },
        ];
        self.store.put_all(&puts).await
    }

    /// What was given for a request, as it is stored.
    pub(crate) async fn answer(&self, request: &str) -> Result<Option<(Stored, Answer)>, PluginError> {
        let Some(stored) = self.store.get(ANSWERS, request).await? else { return Ok(None) };
        let answer = read(&stored, request)?;
        Ok(Some((stored, answer)))
    }

    /// Whether a certificate was revoked.
    pub(crate) async fn is_revoked(&self, end: i64, serial: &str) -> Result<bool, PluginError> {
        Ok(self.store.get(REVOKED, &name(end, serial)).await?.is_some())
    }

    /// The certificate of a serial number.
    pub(crate) async fn find(&self, serial: &str) -> Result<Record, PluginError> {
        let names = self.store.names(NAMESPACE).await?;
        let found = names.into_iter().find(|name| name.split_once('-').is_some_and(|(_, s)| s == serial));
        let missing = || PluginError::NotFound(format!("no certificate of serial number {serial} is known"));
        let name = found.ok_or_else(missing)?;
        let bytes = self.store.get(NAMESPACE, &name).await?.ok_or_else(missing)?;
        read(&bytes, &name)
    }

    /// Serial numbers of certificates that are not over, at most `most`, those that end last first.
    pub(crate) async fn serials(&self, now: i64, most: usize) -> Result<Vec<String>, PluginError> {
        let names = self.store.names(NAMESPACE).await?;
        let live = names.iter().rev().filter(|name| end_of(name).is_some_and(|end| end > now));
        Ok(live.filter_map(|name| Some(name.split_once('-')?.1.to_owned())).take(most).collect())
    }

    /// Revokes a certificate. One that is revoked already keeps its time.
    pub(crate) async fn revoke(&self, record: &Record, revocation: &Revocation) -> Result<(), PluginError> {
        let name = name(record.end, &record.serial);
        if self.store.get(REVOKED, &name).await?.is_some() {
            return Ok(());
        }
        self.put(REVOKED, &name, revocation).await
    }

    /// All revocations.
    pub(crate) async fn revocations(&self) -> Result<Vec<Revocation>, PluginError> {
        let mut all = Vec::new();
        for name in self.store.names(REVOKED).await? {
            if let Some(bytes) = self.store.get(REVOKED, &name).await? {
                all.push(read(&bytes, &name)?);
            }
        }
        Ok(all)
    }

    /// Removes records of certificates that were over before `records`, and revocations of those over before `revocations`.
    pub(crate) async fn prune(&self, records: i64, revocations: i64) -> Result<(), PluginError> {
        for (namespace, before) in [(NAMESPACE, records), (REVOKED, revocations)] {
            for name in self.store.names(namespace).await? {
                if end_of(&name).is_none_or(|end| end >= before) {
                    break;
                }
                if namespace == NAMESPACE {
                    self.forget_answer(&name).await?;
                }
                self.store.delete(namespace, &name).await?;
            }
        }
        Ok(())
    }

    /// Removes the certificate of a record, unless a later one has its place.
    async fn forget_answer(&self, name: &str) -> Result<(), PluginError> {
        let Some(bytes) = self.store.get(NAMESPACE, name).await? else { return Ok(()) };
        let record: Record = read(&bytes, name)?;
        if let Some((_, answer)) = self.answer(&record.request).await?
            && answer.serial == record.serial
        {
            self.store.delete(ANSWERS, &record.request).await?;
        }
        Ok(())
    }
}
