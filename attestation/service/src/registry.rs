//! Reference values in the store: register, query, list, expire, delete. A change and its records in the audit log are stored together or
//! not at all, and only if what it was decided on is still what is stored: else it is decided anew.

use std::collections::BTreeMap;

use serde_json::Value;
use tracing::info;
use zeroize::Zeroizing;

use crate::policies::recorded;
use crate::references::{self, MAX_NAMES, Record, ReferenceError, Source, format_time};
use crate::service::{AttestationService, REFERENCE_NAMESPACE, ServiceError};
use crate::state::{Tries, digest};
use crate::store::audit::Record as AuditRecord;
use crate::store::{Applied, Change};

/// Namespace of what was deleted: name to time, so that an older signed message does not bring it back.
pub(crate) const DELETED_NAMESPACE: &str = "reference_value_deleted";

/// What becomes of values that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They are replaced.
    Replace,
    /// The new ones are added to them.
    Add,
}

/// Values to register.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// Name to a value or an array of values.
    pub values: BTreeMap<String, Value>,
    /// When they end, seconds since 1970.
    pub expires: Option<i64>,
    /// Where they come from.
    pub source: Source,
    /// What becomes of those that are there.
    pub mode: Mode,
    /// Who registers them.
    pub by: String,
}

impl AttestationService {
    /// Registers values, all or (when one is refused) none. Gives the records.
    pub async fn register(&self, registration: &Registration) -> Result<Vec<Record>, ServiceError> {
        let _change = self.state.change().await;
        for name in registration.values.keys() {
            self.check_reference_free(name)?;
        }
        let mut tries = Tries::of("a reference value");
        loop {
            if let Some(records) = self.try_register(registration).await? {
                for record in &records {
                    let (name, by) = (&record.name, &record.registered_by);
                    info!(name, source = %record.source, by, "reference value registered");
                }
                return Ok(records);
            }
            tries.again().await?;
        }
    }

    /// Registers values by what is stored now; `None` when that changed meanwhile.
    async fn try_register(&self, registration: &Registration) -> Result<Option<Vec<Record>>, ServiceError> {
        let there: BTreeMap<_, _> = self.state.store.all(REFERENCE_NAMESPACE).await?.into_iter().collect();
        let new = registration.values.keys().filter(|name| !there.contains_key(*name)).count();
        if there.len() + new > MAX_NAMES {
            return Err(ReferenceError::TooMany(there.len() + new).into());
        }
        let mut records = Vec::new();
        let mut deleted = BTreeMap::new();
        for (name, value) in &registration.values {
            let known = there.get(name).map(|bytes| Record::from_stored(name, bytes));
            if let Some(signed) = registration.source.signed_at {
                let mark = self.state.store.get(DELETED_NAMESPACE, name).await?;
                check_order(name, known.as_ref(), mark.as_ref().map(|mark| mark.as_slice()), signed)?;
                deleted.insert(name.as_str(), mark);
            }
            let value = match registration.mode {
                Mode::Replace => value.clone(),
                // What has ended is not revived by something that is added to it.
                Mode::Add => {
                    let known = known.filter(|record| !record.is_expired(crate::now()));
                    references::union(known.as_ref().map(|record| &record.value), value)
                }
            };
            references::check(name, &value)?;
            let source = registration.source.clone();
            records.push(Record::new(name, value, registration.expires, source, &registration.by));
        }
        let stored = records.iter().map(stored).collect::<Result<Vec<_>, _>>()?;
        let mut changes = Vec::new();
        for (record, bytes) in records.iter().zip(&stored) {
            let read = slice(there.get(&record.name));
            changes.push(Change::put(REFERENCE_NAMESPACE, &record.name, bytes).expecting(read));
        }
        for (name, mark) in &deleted {
            changes.push(Change::unchanged(DELETED_NAMESPACE, name, slice(mark.as_ref())));
        }
        let told = records.iter().map(|record| told("set reference value", record, &registration.by));
        let applied = self.state.commit(changes, told.collect()).await?;
        Ok((applied == Applied::Done).then_some(records))
    }

    /// All reference values that are in force.
    pub async fn reference_values(&self) -> Result<BTreeMap<String, Value>, ServiceError> {
        let (current, now) = (self.state.current().await?, crate::now());
        let valid = current.references.values().filter(|record| !record.is_expired(now));
        Ok(valid.map(|record| (record.name.clone(), record.value.clone())).collect())
    }

    /// All records, also those that have ended.
    pub async fn reference_records(&self) -> Result<Vec<Record>, ServiceError> {
        Ok(self.state.current().await?.references.values().cloned().collect())
    }

    /// One record.
    pub async fn reference_record(&self, name: &str) -> Result<Record, ServiceError> {
        let current = self.state.current().await?;
        current.references.get(name).cloned().ok_or_else(|| not_found(name))
    }

    /// Stores reference values; each replaces the older one of its name.
    pub async fn set_reference_values(&self, values: &BTreeMap<String, Value>) -> Result<(), ServiceError> {
        self.set_reference_values_by(values, "administrator").await
    }

    /// The same, remembering who did it.
    pub async fn set_reference_values_by(
        &self,
        values: &BTreeMap<String, Value>,
        by: &str,
    ) -> Result<(), ServiceError> {
        let registration = Registration {
            values: values.clone(),
            expires: self.default_expiry(crate::now()),
            source: Source::administrator(),
            mode: Mode::Replace,
            by: by.to_owned(),
        };
        self.register(&registration).await.map(|_| ())
    }

    /// Lets a value end at `at` (seconds since 1970), or never.
    pub async fn expire_reference_value(
        &self,
        name: &str,
        at: Option<i64>,
        by: &str,
    ) -> Result<Record, ServiceError> {
        let _change = self.state.change().await;
        self.check_reference_free(name)?;
        let mut tries = Tries::of("the reference value");
        loop {
            if let Some(record) = self.try_expire(name, at, by).await? {
                info!(name, expiration = record.expiration, by, "expiration of a reference value changed");
                return Ok(record);
            }
            tries.again().await?;
        }
    }

    /// Changes the end of the value that is stored now; `None` when that changed meanwhile.
    async fn try_expire(
        &self,
        name: &str,
        at: Option<i64>,
        by: &str,
    ) -> Result<Option<Record>, ServiceError> {
        let read = self.state.store.get(REFERENCE_NAMESPACE, name).await?.ok_or_else(|| not_found(name))?;
        let mut record = Record::from_stored(name, &read);
        record.expiration = at.map(format_time);
        let bytes = stored(&record)?;
        let change = Change::put(REFERENCE_NAMESPACE, name, &bytes).expecting(Some(&read));
        let told = told("change expiration of reference value", &record, by);
        let applied = self.state.commit(vec![change], vec![told]).await?;
        Ok((applied == Applied::Done).then_some(record))
    }

    /// Removes a reference value; false when there was none.
    pub async fn delete_reference_value(&self, name: &str, by: &str) -> Result<bool, ServiceError> {
        let _change = self.state.change().await;
        self.check_reference_free(name)?;
        let now = crate::now().to_string();
        // When there is none, the mark of an earlier deletion stays: it keeps older signed messages out.
        let changes = vec![
            Change::put(DELETED_NAMESPACE, name, now.as_bytes()),
            Change::remove(REFERENCE_NAMESPACE, name),
        ];
        let applied = self.state.commit(changes, vec![recorded("delete reference value", name, by)]).await?;
        // A deletion depends on nothing that was read: whatever the value is, it goes.
        let was = applied == Applied::Done;
        if was {
            info!(name, by, "reference value deleted");
        }
        Ok(was)
    }
}

/// A signed message must be younger than what it changes: whoever has old messages could else bring old values back.
fn check_order(
    name: &str,
    known: Option<&Record>,
    deleted: Option<&[u8]>,
    signed: i64,
) -> Result<(), ServiceError> {
    let set = known.map(|record| {
        let registered = references::parse_time(&record.registered_at).unwrap_or(0);
        record.source.signed_at.unwrap_or(registered)
    });
    let deleted = deleted.and_then(|text| std::str::from_utf8(text).ok()?.parse::<i64>().ok());
    match set.max(deleted) {
        Some(newer) if newer > signed || deleted.is_some_and(|deleted| deleted >= signed) => {
            Err(ReferenceError::Replay {
                name: name.to_owned(),
                newer: format_time(newer),
                signed: format_time(signed),
            }
            .into())
        }
        _ => Ok(()),
    }
}

/// A value that was read, for the change that depends on it.
fn slice(value: Option<&Zeroizing<Vec<u8>>>) -> Option<&[u8]> {
    value.map(|value| value.as_slice())
}

pub(crate) fn stored(record: &Record) -> Result<Vec<u8>, ServiceError> {
    serde_json::to_vec(record).map_err(|e| ServiceError::Request(e.to_string()))
}

/// What the audit log is told of a value: the value itself may be large, so its digest, and where it came from.
pub(crate) fn told(action: &str, record: &Record, by: &str) -> AuditRecord {
    let mut told = recorded(action, &record.name, by)
        .detail("value", digest(&record.value.to_string()))
        .detail("source", record.source.to_string());
    if let Some(end) = &record.expiration {
        told = told.detail("expiration", end);
    }
    told
}

fn not_found(name: &str) -> ServiceError {
    ServiceError::NotFound(format!("reference value {:?}", name.chars().take(64).collect::<String>()))
}
