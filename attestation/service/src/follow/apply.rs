//! Putting a bundle in force: one transaction with every policy and value that differs, what the audit log is told of each, the state and the
//! bundle itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kata_cc_policy_bundle::Bundle;
use kata_cc_policy_bundle::layout::Part;
use zeroize::Zeroizing;

use super::state::{ARCHIVE_NAMESPACE, MAX_HISTORY, NAME, NAMESPACE, Stored};
use super::{KIND, Owned, ResourcePolicyPlace, Revision, WHO};
use crate::policies::{MAX_POLICIES, NextVersion, Read, recorded};
use crate::references::{MAX_NAMES, Record, ReferenceError, Source, parse_time};
use crate::registry::{DELETED_NAMESPACE, stored as bytes_of, told};
use crate::service::{AttestationService, POLICY_NAMESPACE, REFERENCE_NAMESPACE, ServiceError};
use crate::state::{Tries, digest};
use crate::store::audit::Record as AuditRecord;
use crate::store::{Applied, Change, Write};

/// A policy that is set or (without a text) deleted.
struct PolicyChange {
    id: String,
    text: Option<String>,
    read: Read,
    next: NextVersion,
}

/// A reference value that is set or (without a record) deleted.
struct ValueChange {
    name: String,
    read: Option<Zeroizing<Vec<u8>>>,
    new: Option<(Record, Vec<u8>)>,
}

/// The resource policy's new text.
struct ResourceChange<'a> {
    place: ResourcePolicyPlace,
    text: &'a str,
    read: Option<Zeroizing<Vec<u8>>>,
}

/// Everything that one bundle changes, as of one reading of the store.
struct Plan<'a> {
    policies: Vec<PolicyChange>,
    values: Vec<ValueChange>,
    resource: Option<ResourceChange<'a>>,
    /// Now in seconds since 1970, as the marks of deletions have it.
    now: String,
}

impl AttestationService {
    /// Puts a bundle in force; with a `pin` (who asks for it) it is held there. Gives the revision, or none when it was in force already and nothing differed.
    pub(super) async fn put_bundle(
        &self,
        bundle: &Bundle,
        revision: Option<String>,
        source: &str,
        resource: Option<ResourcePolicyPlace>,
        pin: Option<&str>,
    ) -> Result<Option<Revision>, ServiceError> {
        let owned = Arc::new(Owned::of(bundle, resource.is_some())?);
        // Held until it is known what the bundle owns: a change that was asked for meanwhile is judged by that.
        let _change = self.state.change().await;
        let mut tries = Tries::of("what the policy bundle sets");
        loop {
            let stored = Stored::read(&self.state.store).await?;
            if pin.is_none() && stored.pinned.is_some() {
                // Another replica was told to hold one since the source was looked at.
                return Ok(None);
            }
            let plan = self.plan(bundle, &stored, resource).await?;
            let same = stored.in_force.as_ref().is_some_and(|one| one.digest == bundle.digest());
            if same && pin.is_none() && plan.is_empty() {
                self.owned.store(owned);
                return Ok(None);
            }
            let new = Revision {
                digest: bundle.digest().to_owned(),
                title: bundle.manifest().title(),
                revision: revision.clone(),
                source: source.to_owned(),
                applied_at: crate::now_rfc3339(),
                changes: plan.len(),
            };
            if self.commit_plan(bundle, &plan, &stored, &new, pin).await? == Applied::Done {
                self.owned.store(owned);
                return Ok(Some(new));
            }
            tries.again().await?;
        }
    }

    /// Lets the source decide again.
    pub(super) async fn unpin(&self, who: &str) -> Result<(), ServiceError> {
        let _change = self.state.change().await;
        let mut tries = Tries::of("the policy source");
        loop {
            let mut stored = Stored::read(&self.state.store).await?;
            let Some(pinned) = stored.pinned.take() else { return Ok(()) };
            let bytes = serde_json::to_vec(&stored).map_err(|e| ServiceError::Request(e.to_string()))?;
            let change = Change::put(NAMESPACE, NAME, &bytes).expecting(stored.bytes.as_deref());
            let record = recorded("resume policy source", &pinned, who);
            if self.state.commit(vec![change], vec![record]).await? == Applied::Done {
                return Ok(());
            }
            tries.again().await?;
        }
    }

    async fn commit_plan(
        &self,
        bundle: &Bundle,
        plan: &Plan<'_>,
        stored: &Stored,
        new: &Revision,
        pin: Option<&str>,
    ) -> Result<Applied, ServiceError> {
        let mut next = stored.clone();
        next.in_force = Some(new.clone());
        if pin.is_some() {
            next.pinned = Some(new.digest.clone());
        } else {
            // What Git went back to is the newest again; what is pinned keeps its place among those that can be.
            next.history.retain(|one| one.digest != new.digest);
        }
        if !next.history.iter().any(|one| one.digest == new.digest) {
            next.history.insert(0, new.clone());
        }
        let surplus = next.history.split_off(next.history.len().min(MAX_HISTORY));
        let state = serde_json::to_vec(&next).map_err(|e| ServiceError::Request(e.to_string()))?;
        let mut changes = Vec::new();
        let mut records = Vec::new();
        plan.write(&mut changes, &mut records);
        let action = if pin.is_some() { "pin policy bundle" } else { "apply policy bundle" };
        let mut record = recorded(action, &new.title, pin.unwrap_or(WHO))
            .detail("bundle", new.digest.clone())
            .detail("source", new.source.clone());
        if let Some(revision) = &new.revision {
            record = record.detail("revision", revision.clone());
        }
        records.push(record);
        changes.push(Change::put(NAMESPACE, NAME, &state).expecting(stored.bytes.as_deref()));
        changes.push(Change::put(ARCHIVE_NAMESPACE, &new.digest, bundle.archive()));
        changes.extend(surplus.iter().map(|one| Change::forget(ARCHIVE_NAMESPACE, &one.digest)));
        self.state.commit(changes, records).await
    }

    /// What differs from the bundle.
    async fn plan<'a>(
        &self,
        bundle: &'a Bundle,
        stored: &Stored,
        resource: Option<ResourcePolicyPlace>,
    ) -> Result<Plan<'a>, ServiceError> {
        let store = &self.state.store;
        // What the one before set and this one does not is taken away. Without it nothing is known to be ours but values.
        let before = match &stored.in_force {
            Some(revision) => stored.bundle(store, &revision.digest).await.ok(),
            None => None,
        };
        let resource = match resource {
            Some(place) => {
                let text = match (bundle.resource_policy(), &before) {
                    (Some(text), _) => Some(text),
                    (None, Some(before)) => before.resource_policy().map(|_| place.default),
                    (None, None) => None,
                };
                let read = store.get(place.namespace, place.name).await?;
                text.filter(|text| read.as_ref().map(|read| read.as_slice()) != Some(text.as_bytes()))
                    .map(|text| ResourceChange { place, text, read })
            }
            None => None,
        };
        Ok(Plan {
            policies: self.plan_policies(bundle, before.as_ref()).await?,
            values: self.plan_values(bundle, before.as_ref()).await?,
            resource,
            now: crate::now().to_string(),
        })
    }

    async fn plan_policies(
        &self,
        bundle: &Bundle,
        before: Option<&Bundle>,
    ) -> Result<Vec<PolicyChange>, ServiceError> {
        let wanted: BTreeMap<&str, &str> = bundle.policies(Part::Attestation).collect();
        let gone = before.into_iter().flat_map(|before| before.policies(Part::Attestation));
        let gone = gone.filter(|(id, _)| !wanted.contains_key(id)).map(|(id, _)| (id, None));
        let set = wanted.iter().map(|(id, text)| (*id, Some(*text)));
        let known = self.policy_ids().await;
        let new = wanted.keys().filter(|id| !known.iter().any(|known| known == *id)).count();
        if known.len() + new > MAX_POLICIES {
            return Err(ServiceError::Request(format!("there would be more than {MAX_POLICIES} policies")));
        }
        let mut changes = Vec::new();
        for (id, text) in set.chain(gone) {
            let read = self.read_policy(id).await?;
            if read.text.as_ref().map(|text| text.as_slice()) == text.map(str::as_bytes) {
                continue;
            }
            let next = self.next_version(id, &read, text, WHO).await?;
            changes.push(PolicyChange { id: id.to_owned(), text: text.map(str::to_owned), read, next });
        }
        Ok(changes)
    }

    async fn plan_values(
        &self,
        bundle: &Bundle,
        before: Option<&Bundle>,
    ) -> Result<Vec<ValueChange>, ServiceError> {
        let mut there: BTreeMap<_, _> =
            self.state.store.all(REFERENCE_NAMESPACE).await?.into_iter().collect();
        let mut changes = Vec::new();
        let mut wanted = BTreeSet::new();
        for (path, file) in bundle.references() {
            let expires = file.expires.as_deref().map(parse_time).transpose()?;
            for (name, value) in &file.values {
                wanted.insert(name.clone());
                let read = there.remove(name);
                let known = read.as_ref().map(|bytes| Record::from_stored(name, bytes));
                let same = known.is_some_and(|known| {
                    known.value == *value && known.expires() == expires && known.source.kind == KIND
                });
                if same {
                    continue;
                }
                let detail =
                    Some(format!("{} {path}", bundle.manifest().title()).chars().take(256).collect());
                let source = Source { kind: KIND.to_owned(), signer: None, detail, signed_at: None };
                let record = Record::new(name, value.clone(), expires, source, WHO);
                let bytes = bytes_of(&record)?;
                changes.push(ValueChange { name: name.clone(), read, new: Some((record, bytes)) });
            }
        }
        if there.len() + wanted.len() > MAX_NAMES {
            return Err(ReferenceError::TooMany(there.len() + wanted.len()).into());
        }
        let set_before: BTreeSet<String> =
            before.map(|before| before.reference_values().into_keys().collect()).unwrap_or_default();
        for (name, read) in there {
            let ours = Record::from_stored(&name, &read).source.kind == KIND;
            if ours || set_before.contains(&name) {
                changes.push(ValueChange { name, read: Some(read), new: None });
            }
        }
        Ok(changes)
    }
}

impl Plan<'_> {
    fn len(&self) -> usize {
        self.policies.len() + self.values.len() + usize::from(self.resource.is_some())
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn write<'b>(&'b self, changes: &mut Vec<Change<'b>>, records: &mut Vec<AuditRecord>) {
        // First of all: the store gives the number of the first version to the first record.
        if let Some(ResourceChange { place, text, read }) = &self.resource {
            let write = Write { value: text.as_bytes(), content_type: "text/x-rego", who: WHO };
            let change = Change::version(place.namespace, place.name, write);
            changes.push(change.expecting(read.as_ref().map(|read| read.as_slice())));
            records.push(recorded("set resource policy", place.name, WHO).policy(text.as_bytes()));
        }
        for PolicyChange { id, text, read, next } in &self.policies {
            changes.extend(next.changes(id, read));
            let there = read.text.as_ref().map(|text| text.as_slice());
            match text {
                Some(text) => {
                    changes.push(Change::put(POLICY_NAMESPACE, id, text.as_bytes()).expecting(there));
                    records.push(recorded("set attestation policy", id, WHO).policy(text.as_bytes()));
                }
                None => {
                    changes.push(Change::forget(POLICY_NAMESPACE, id).expecting(there));
                    records.push(recorded("delete attestation policy", id, WHO));
                }
            }
        }
        for ValueChange { name, read, new } in &self.values {
            let there = read.as_ref().map(|read| read.as_slice());
            match new {
                Some((record, bytes)) => {
                    changes.push(Change::put(REFERENCE_NAMESPACE, name, bytes).expecting(there));
                    records.push(told("set reference value", record, WHO));
                }
                None => {
                    changes.push(Change::forget(REFERENCE_NAMESPACE, name).expecting(there));
                    records.push(
                        recorded("delete reference value", name, WHO)
                            .detail("value", digest(&String::from_utf8_lossy(there.unwrap_or_default()))),
                    );
                }
            }
        }
        // An older signed message must not bring back what the bundle took away.
        let gone = self.values.iter().filter(|value| value.new.is_none());
        changes.extend(gone.map(|value| Change::put(DELETED_NAMESPACE, &value.name, self.now.as_bytes())));
    }
}
