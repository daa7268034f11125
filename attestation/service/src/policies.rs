//! Policies: set, get, list, delete, earlier versions, and dry runs. A change, its version and its record in the audit log are stored
//! together or not at all, and only if nobody else changed the policy since it was looked at: else it is looked at anew. So the newest
//! version is always the one in force.

use std::sync::Arc;
use std::time::Duration;

use kata_cc_policy::engine::Limits;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::appraisal::{self, MAX_ID, Policy, References};
use crate::references::{InForce, Record, Source};
use crate::service::{AttestationService, Evaluate, POLICY_NAMESPACE, ServiceError};
use crate::state::{Tries, digest};
use crate::store::audit::{Kind, Record as AuditRecord};
use crate::store::{Applied, Change};

/// Namespace of the versions of policies; names are `<id>/<version>`.
const VERSION_NAMESPACE: &str = "attestation_service_policy_version";
/// Namespace of the number of a policy's newest version. It says whether a policy was changed, also one that was set back to the same
/// text, or deleted and set again.
const NEWEST_NAMESPACE: &str = "attestation_service_policy_newest";
/// Versions of one policy that are kept.
pub const MAX_VERSIONS: usize = 50;
/// Most policies.
pub const MAX_POLICIES: usize = 256;
/// Time of a dry run: it is somebody's experiment.
const DRY_RUN: Duration = Duration::from_secs(2);

/// A policy as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyText {
    /// Id with the class.
    pub id: String,
    /// SHA-256 of the text in hexadecimal.
    pub digest: String,
    /// Whether it is the built-in one.
    pub default: bool,
    /// Rego text.
    pub policy: String,
}

/// A version of a policy, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// Version, growing with time: microseconds since 1970.
    pub version: i64,
    /// SHA-256 of the text in hexadecimal; empty where the policy was deleted.
    pub digest: String,
    /// Who set it.
    pub by: String,
    /// When, RFC 3339.
    pub at: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredVersion {
    #[serde(flatten)]
    about: PolicyVersion,
    policy: Option<String>,
}

/// What is stored of a policy when a change of it begins.
pub(crate) struct Read {
    pub(crate) text: Option<Zeroizing<Vec<u8>>>,
    newest: Option<Zeroizing<Vec<u8>>>,
}

/// A version that is about to be stored.
pub(crate) struct NextVersion {
    about: PolicyVersion,
    name: String,
    bytes: Vec<u8>,
    number: String,
    /// Names of those that are forgotten.
    surplus: Vec<String>,
}

impl NextVersion {
    /// The changes of the versions of `id`, if it is what was `read`.
    pub(crate) fn changes<'a>(&'a self, id: &'a str, read: &'a Read) -> Vec<Change<'a>> {
        let newest = read.newest.as_ref().map(|number| number.as_slice());
        let own = [
            Change::put(VERSION_NAMESPACE, &self.name, &self.bytes),
            Change::put(NEWEST_NAMESPACE, id, self.number.as_bytes()).expecting(newest),
        ];
        let surplus = self.surplus.iter().map(|name| Change::forget(VERSION_NAMESPACE, name));
        own.into_iter().chain(surplus).collect()
    }
}

/// What the audit log is told of a change.
pub(crate) fn recorded(action: &str, target: &str, by: &str) -> AuditRecord {
    AuditRecord::new(Kind::Admin).who(by).verdict("done").reason(action).resource(target, None)
}

/// What a dry run looks at.
#[derive(Debug)]
pub enum DryRunInput {
    /// Evidence, which is verified first.
    Evidence(Box<Evaluate>),
    /// Claims as a policy sees them (annotated evidence).
    Claims(Value),
}

/// A dry run: nothing is stored, no token is issued.
#[derive(Debug)]
pub struct DryRun {
    /// Text to try, else the stored policy `policy_id`.
    pub policy: Option<String>,
    /// Id, with the class.
    pub policy_id: String,
    /// What it is tried on.
    pub input: DryRunInput,
    /// Reference values to try it with, in place of those of the same names.
    pub reference_values: std::collections::BTreeMap<String, Value>,
}

pub(crate) fn check_id(id: &str) -> Result<(), ServiceError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(allowed) {
        return Err(ServiceError::PolicyId(id.chars().take(64).collect()));
    }
    Ok(())
}

fn unknown(id: &str) -> ServiceError {
    ServiceError::PolicyId(id.chars().take(64).collect())
}

fn version_name(id: &str, version: i64) -> String {
    format!("{id}/{version:020}")
}

impl AttestationService {
    /// Stores a policy after it compiled.
    pub async fn set_policy(&self, id: &str, text: &str) -> Result<(), ServiceError> {
        self.set_policy_by(id, text, "administrator").await.map(|_| ())
    }

    /// The same, remembering who did it. Gives the version.
    pub async fn set_policy_by(&self, id: &str, text: &str, by: &str) -> Result<PolicyVersion, ServiceError> {
        check_id(id)?;
        appraisal::compile(id, text)?;
        let _change = self.state.change().await;
        self.check_policy_free(id)?;
        let current = self.state.current().await?;
        if !current.policies.contains_key(id) && current.policies.len() >= MAX_POLICIES {
            return Err(ServiceError::Request(format!(
                "there are {MAX_POLICIES} policies: delete one first"
            )));
        }
        let mut tries = Tries::of("the policy");
        loop {
            let read = self.read_policy(id).await?;
            let next = self.next_version(id, &read, Some(text), by).await?;
            let mut changes = next.changes(id, &read);
            let there = read.text.as_ref().map(|text| text.as_slice());
            changes.push(Change::put(POLICY_NAMESPACE, id, text.as_bytes()).expecting(there));
            let record = recorded("set attestation policy", id, by).policy(text.as_bytes());
            if self.state.commit(changes, vec![record]).await? == Applied::Done {
                return Ok(next.about);
            }
            tries.again().await?;
        }
    }

    pub(crate) async fn read_policy(&self, id: &str) -> Result<Read, ServiceError> {
        let store = &self.state.store;
        Ok(Read {
            text: store.get(POLICY_NAMESPACE, id).await?,
            newest: store.get(NEWEST_NAMESPACE, id).await?,
        })
    }

    /// The version that a change makes, and those that are forgotten for it.
    pub(crate) async fn next_version(
        &self,
        id: &str,
        read: &Read,
        text: Option<&str>,
        by: &str,
    ) -> Result<NextVersion, ServiceError> {
        let mut kept = self.version_numbers(id).await?;
        let micros = time::OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000;
        let newest = read.newest.as_ref().and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
        let last = kept.last().copied().max(newest).unwrap_or(0);
        let version = i64::try_from(micros).unwrap_or(0).max(last.saturating_add(1));
        let about = PolicyVersion {
            version,
            digest: text.map(digest).unwrap_or_default(),
            by: by.to_owned(),
            at: crate::now_rfc3339(),
        };
        let stored = StoredVersion { about: about.clone(), policy: text.map(str::to_owned) };
        let bytes = serde_json::to_vec(&stored).map_err(|e| ServiceError::Request(e.to_string()))?;
        kept.push(version);
        let surplus = kept.len().saturating_sub(MAX_VERSIONS);
        let surplus = kept.into_iter().take(surplus).map(|old| version_name(id, old)).collect();
        Ok(NextVersion {
            about,
            name: version_name(id, version),
            bytes,
            number: version.to_string(),
            surplus,
        })
    }

    async fn version_numbers(&self, id: &str) -> Result<Vec<i64>, ServiceError> {
        let names = self.state.store.list(VERSION_NAMESPACE).await?;
        let of_id =
            names.iter().filter_map(|entry| entry.name.strip_prefix(id)?.strip_prefix('/')?.parse().ok());
        let mut versions: Vec<i64> = of_id.collect();
        versions.sort_unstable();
        Ok(versions)
    }

    async fn stored_version(&self, id: &str, version: i64) -> Result<Option<StoredVersion>, ServiceError> {
        let bytes = self.state.store.get(VERSION_NAMESPACE, &version_name(id, version)).await?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Versions of a policy, the newest first, also of one that was deleted.
    pub async fn policy_versions(&self, id: &str) -> Result<Vec<PolicyVersion>, ServiceError> {
        check_id(id)?;
        let mut versions = Vec::new();
        for number in self.version_numbers(id).await?.into_iter().rev() {
            versions.extend(self.stored_version(id, number).await?.map(|stored| stored.about));
        }
        if versions.is_empty() && !self.state.current().await?.policies.contains_key(id) {
            return Err(unknown(id));
        }
        Ok(versions)
    }

    /// Text of a version.
    pub async fn policy_version(&self, id: &str, version: i64) -> Result<PolicyText, ServiceError> {
        check_id(id)?;
        let stored = self.stored_version(id, version).await?;
        match stored.and_then(|stored| Some((stored.policy?, stored.about.digest))) {
            Some((policy, digest)) => Ok(PolicyText { id: id.to_owned(), digest, default: false, policy }),
            None => Err(ServiceError::NotFound(format!("version {version} of policy {id}"))),
        }
    }

    /// Text of a policy, and whether it is the built-in one.
    pub async fn policy(&self, id: &str) -> Result<(String, bool), ServiceError> {
        match self.state.store.get(POLICY_NAMESPACE, id).await? {
            Some(text) => Ok((String::from_utf8_lossy(&text).into_owned(), false)),
            None => {
                let built_in = appraisal::BUILT_IN.iter().find(|(name, _)| *name == id);
                built_in.map(|(_, text)| ((*text).to_owned(), true)).ok_or_else(|| unknown(id))
            }
        }
    }

    /// A policy with its digest.
    pub async fn policy_text(&self, id: &str) -> Result<PolicyText, ServiceError> {
        check_id(id)?;
        let (policy, default) = self.policy(id).await?;
        Ok(PolicyText { id: id.to_owned(), digest: digest(&policy), default, policy })
    }

    /// Removes a policy; the built-in one is then in force again, where there is one. Its versions stay.
    pub async fn delete_policy(&self, id: &str, by: &str) -> Result<(), ServiceError> {
        check_id(id)?;
        let _change = self.state.change().await;
        self.check_policy_free(id)?;
        let mut tries = Tries::of("the policy");
        loop {
            let read = self.read_policy(id).await?;
            let there = read.text.as_ref().ok_or_else(|| unknown(id))?;
            let next = self.next_version(id, &read, None, by).await?;
            let mut changes = next.changes(id, &read);
            changes.push(Change::remove(POLICY_NAMESPACE, id).expecting(Some(there)));
            let record = recorded("delete attestation policy", id, by);
            if self.state.commit(changes, vec![record]).await? == Applied::Done {
                return Ok(());
            }
            tries.again().await?;
        }
    }

    /// Ids of all policies.
    pub async fn policy_ids(&self) -> Vec<String> {
        match self.state.current().await {
            Ok(current) => current.policies.keys().cloned().collect(),
            Err(_) => Vec::new(),
        }
    }

    /// What a policy would make of evidence or claims. Changes nothing and issues nothing.
    pub async fn dry_run(&self, run: &DryRun) -> Result<Value, ServiceError> {
        let current = self.state.current().await?;
        let now = crate::now();
        let policy: Arc<Policy> = match &run.policy {
            Some(text) => {
                let limits = Limits { time: DRY_RUN, ..Limits::default() };
                Arc::new(appraisal::compile_within(&run.policy_id, text, &limits)?)
            }
            None => current.policies.get(&run.policy_id).cloned().ok_or_else(|| unknown(&run.policy_id))?,
        };
        let claims = match &run.input {
            DryRunInput::Claims(claims) => claims.clone(),
            DryRunInput::Evidence(evaluate) => {
                self.complete(evaluate).await;
                self.claims_of(evaluate, now)?
            }
        };
        let mut records = current.references.clone();
        for (name, value) in &run.reference_values {
            crate::references::check(name, value)?;
            let source = Source { kind: "dry-run".to_owned(), signer: None, detail: None, signed_at: None };
            records.insert(name.clone(), Record::new(name, value.clone(), None, source, "dry-run"));
        }
        // A policy may take its time, and other requests must not wait for it.
        let appraisal = tokio::task::spawn_blocking({
            let claims = claims.clone();
            move || {
                let in_force = InForce::at(&records, now);
                let references = References { records: &records, in_force: &in_force, now };
                appraisal::appraise(&policy, &claims, references)
            }
        });
        let appraisal =
            appraisal.await.map_err(|_| ServiceError::Request("the dry run was ended".to_owned()))??;
        Ok(json!({
            "status": appraisal.vector.status().name(),
            "trustworthiness_vector": appraisal.vector.to_json(),
            "explanation": appraisal.checks,
            "extensions": appraisal.extensions,
            "claims": claims,
        }))
    }
}
