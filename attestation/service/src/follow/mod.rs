//! Following a policy bundle: a folder or a reference in a registry says which attestation policies, reference values, keys of signers and (in
//! a key broker) which resource policy are in force.
//!
//! A bundle is taken whole or not at all: its signature, its parts and the cases beside them are checked first, then everything is put into
//! the store in one transaction, with what the audit log is told. What cannot be taken changes nothing, and status, metrics and log say so.
//! The bundle in force, and the last ones before it, are kept in the store: a restart needs no source, replicas agree, and an
//! earlier one can be pinned. What the bundle sets cannot be set otherwise meanwhile ([`Owned`]); what it does not name can.

mod apply;
mod checks;
mod config;
mod metrics;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kata_cc_policy_bundle::layout::Part;
use kata_cc_policy_bundle::{Bundle, BundleError, Fetched, Source};
use serde::Serialize;
use tokio::sync::Notify;
use tracing::{error, info, warn};

pub use self::checks::ServiceChecks;
pub use self::config::{PolicySourceConfig, PolicySourceError};
pub use self::metrics::FollowMetrics;
pub use self::state::Revision;
use self::state::Stored;
use crate::service::{AttestationService, ServiceError};
use crate::sources::TrustedSource;

/// Who puts a bundle in force, in versions and in the audit log.
pub const WHO: &str = "policy source";
/// `source.kind` of reference values that a bundle brought.
pub const KIND: &str = "bundle";

/// What the bundle in force sets, and nobody else therefore.
#[derive(Debug, Clone, Default)]
pub struct Owned {
    /// The bundle, for messages.
    title: String,
    /// Ids of attestation policies.
    policies: BTreeSet<String>,
    /// Names of reference values.
    references: BTreeSet<String>,
    /// Whether it sets the resource policy.
    resource_policy: bool,
    /// Keys that may sign reference values.
    pub(crate) trusted: Vec<TrustedSource>,
}

impl Owned {
    /// Of a bundle.
    fn of(bundle: &Bundle, has_resource_policy: bool) -> Result<Self, ServiceError> {
        let mut trusted = Vec::new();
        for key in &bundle.manifest().trust {
            let pem = bundle.files().get(&key.key).map(Vec::as_slice).unwrap_or_default();
            let parsed = crate::jws::VerifyingKey::from_pem(pem);
            trusted.push(TrustedSource {
                name: key.name.clone(),
                key: parsed.map_err(|why| ServiceError::Request(format!("{}: {why}", key.key)))?,
                names: key.names.clone(),
                subjects: key.subjects.clone(),
                builder: key.builder.clone(),
            });
        }
        Ok(Self {
            title: bundle.manifest().title(),
            policies: bundle.policies(Part::Attestation).map(|(id, _)| id.to_owned()).collect(),
            references: bundle.reference_values().into_keys().collect(),
            resource_policy: has_resource_policy && bundle.resource_policy().is_some(),
            trusted,
        })
    }

    fn refuse(&self, what: String) -> ServiceError {
        ServiceError::Owned { what, bundle: self.title.clone() }
    }
}

impl AttestationService {
    /// Refuses to set an attestation policy that the bundle in force sets.
    pub(crate) fn check_policy_free(&self, id: &str) -> Result<(), ServiceError> {
        let owned = self.owned.load();
        if owned.policies.contains(id) {
            Err(owned.refuse(format!("attestation policy {id}")))
        } else {
            Ok(())
        }
    }

    /// Refuses to set a reference value that the bundle in force sets.
    pub(crate) fn check_reference_free(&self, name: &str) -> Result<(), ServiceError> {
        let owned = self.owned.load();
        if owned.references.contains(name) {
            return Err(owned.refuse(format!("reference value {name}")));
        }
        Ok(())
    }

    /// Refuses to set the resource policy if the bundle in force does.
    ///
    /// # Errors
    /// [`ServiceError::Owned`].
    pub fn check_resource_policy_free(&self) -> Result<(), ServiceError> {
        let owned = self.owned.load();
        if owned.resource_policy { Err(owned.refuse("the resource policy".to_owned())) } else { Ok(()) }
    }
}

/// Where a key broker keeps its resource policy in the same store.
#[derive(Debug, Clone, Copy)]
pub struct ResourcePolicyPlace {
    /// Namespace.
    pub namespace: &'static str,
    /// Name.
    pub name: &'static str,
    /// What is in force when nobody set one.
    pub default: &'static str,
}

/// How it stands with a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Nothing was taken yet.
    Waiting,
    /// What the source has is in force.
    InForce,
    /// The source has something that cannot be taken, or cannot be read: the last good one stays.
    Failing,
    /// Somebody holds an earlier one in force.
    Pinned,
}

/// What is told of a source.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Always true: a bundle is followed.
    pub followed: bool,
    /// Where bundles come from.
    pub source: String,
    /// Whether they must be signed.
    pub signed: bool,
    /// How it stands.
    pub condition: Condition,
    /// What is in force.
    pub in_force: Option<Revision>,
    /// Digest that is held in force, whatever the source has.
    pub pinned: Option<String>,
    /// What the source has, where it could be read.
    pub offered: Option<Offered>,
    /// When the source was last looked at, RFC 3339.
    pub last_tried: Option<String>,
    /// Why what it has is not in force.
    pub last_error: Option<String>,
    /// Since when that is so, RFC 3339.
    pub failing_since: Option<String>,
    /// What can be pinned, the newest first.
    pub history: Vec<Revision>,
}

/// What a source has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Offered {
    /// Digest of the bundle.
    pub digest: String,
    /// What it is called.
    pub title: String,
    /// Its revision, where one is told.
    pub revision: Option<String>,
}

/// What the last looks found.
#[derive(Debug, Default)]
struct Looks {
    /// Digest that this process put in force, or found in force, last.
    taken: Option<String>,
    /// Digest of the source's bundle that was last thought about: not again until the source has another.
    considered: Option<String>,
    offered: Option<Offered>,
    tried: Option<String>,
    failed: Option<(String, String)>,
}

/// Follows one source.
#[derive(Debug)]
pub struct Follower {
    service: Arc<AttestationService>,
    source: Source,
    every: Duration,
    resource_policy: Option<ResourcePolicyPlace>,
    metrics: FollowMetrics,
    looks: Mutex<Looks>,
    /// Held while something is put in force.
    work: tokio::sync::Mutex<()>,
    wake: Notify,
}

impl Follower {
    /// Of a service. `resource_policy` where its host is a key broker.
    pub fn new(
        service: Arc<AttestationService>,
        source: Source,
        every: Duration,
        resource_policy: Option<ResourcePolicyPlace>,
        metrics: FollowMetrics,
    ) -> Self {
        Self {
            service,
            source,
            every,
            resource_policy,
            metrics,
            looks: Mutex::default(),
            work: tokio::sync::Mutex::default(),
            wake: Notify::new(),
        }
    }

    fn looks(&self) -> std::sync::MutexGuard<'_, Looks> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the service listens: takes up what was in force before the restart, then looks at the source. A source that fails
    /// keeps nobody from starting.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn start(&self) -> Result<(), ServiceError> {
        let stored = Stored::read(&self.service.state.store).await?;
        self.learn_or_tell(&stored).await;
        match &stored.in_force {
            Some(revision) => info!(
                source = %self.source, digest = revision.digest, title = revision.title, pinned = stored.pinned.is_some(),
                "policy bundle is in force from before"
            ),
            None => info!(source = %self.source, "policy bundle is followed, none was in force before"),
        }
        self.look().await;
        Ok(())
    }

    /// Whether what the source has now could be taken, for `--check`.
    ///
    /// # Errors
    /// Why not.
    pub async fn try_out(&self) -> Result<(), BundleError> {
        self.source.fetch().await?.bundle.demand(&ServiceChecks).map(drop)
    }

    /// Looks at once.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until it is time, or somebody [wakes](Self::wake) it, and looks once.
    pub async fn turn(&self) {
        tokio::select! {
            () = self.wake.notified() => {}
            () = tokio::time::sleep(self.every) => {}
        }
        self.look().await;
    }

    /// Takes up what is in force by the store: other replicas follow, pin and resume too.
    async fn learn(&self, stored: &Stored) -> Result<(), ServiceError> {
        self.metrics.pinned(stored.pinned.is_some());
        let Some(revision) = &stored.in_force else { return Ok(()) };
        if self.looks().taken.as_ref() == Some(&revision.digest) {
            return Ok(());
        }
        let bundle = stored.bundle(&self.service.state.store, &revision.digest).await?;
        self.service.owned.store(Arc::new(Owned::of(&bundle, self.resource_policy.is_some())?));
        self.looks().taken = Some(revision.digest.clone());
        self.metrics.in_force(&revision.applied_at);
        Ok(())
    }

    /// A kept bundle that cannot be read (any more) keeps no new one out: what it set is in force all the same.
    async fn learn_or_tell(&self, stored: &Stored) {
        if let Err(why) = self.learn(stored).await {
            error!(%why, "the policy bundle in force cannot be read from the store: what it sets can be changed by others until a new one comes");
        }
    }

    /// One look: fetches, checks, and puts in force what is new. Tells what came of it by status, metrics and log.
    pub async fn look(&self) {
        let _work = self.work.lock().await;
        let came = self.try_look().await;
        let now = crate::now_rfc3339();
        let mut looks = self.looks();
        looks.tried = Some(now.clone());
        match came {
            Ok(()) => {
                self.metrics.looked("ok");
                if looks.failed.take().is_some() {
                    info!(source = %self.source, "policy source is good again");
                }
            }
            Err(why) => {
                self.metrics.looked("failed");
                // The same failure at each look would drown what else is in the log.
                if looks.failed.as_ref().map(|(known, _)| known) != Some(&why) {
                    error!(source = %self.source, why, "policy source failed; what was in force stays so");
                }
                let since = looks.failed.take().map_or(now, |(_, since)| since);
                looks.failed = Some((why, since));
            }
        }
        self.metrics.failing(looks.failed.is_some());
    }

    async fn try_look(&self) -> Result<(), String> {
        let told = |error: ServiceError| error.to_string();
        let stored = Stored::read(&self.service.state.store).await.map_err(|error| told(error.into()))?;
        self.learn_or_tell(&stored).await;
        let fetched = self.source.fetch().await.map_err(|error| error.to_string())?;
        let Fetched { bundle, revision } = fetched;
        let offered = Offered {
            digest: bundle.digest().to_owned(),
            title: bundle.manifest().title(),
            revision: revision.clone(),
        };
        let fresh = {
            let mut looks = self.looks();
            looks.offered = Some(offered);
            // While one is pinned nothing is considered, so that whatever the source has then counts when it is followed again.
            if stored.pinned.is_some() {
                looks.considered = None;
                return Ok(());
            }
            let fresh = looks.considered.as_deref() != Some(bundle.digest());
            looks.considered = Some(bundle.digest().to_owned());
            fresh || looks.failed.is_some()
        };
        // What was taken from here before and is not in force now was replaced by a replica that sees something newer.
        if !fresh {
            return Ok(());
        }
        // Rego and regexes of somebody else: not on a thread that serves others.
        let checked = tokio::task::spawn_blocking(move || bundle.demand(&ServiceChecks).map(|_| bundle));
        let bundle = checked.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.put_in_force(&bundle, revision, None).await.map_err(told)
    }

    /// Puts a bundle in force, or (where somebody asks to `pin` it) holds it there.
    async fn put_in_force(
        &self,
        bundle: &Bundle,
        revision: Option<String>,
        pin: Option<&str>,
    ) -> Result<(), ServiceError> {
        let source = self.source.to_string();
        let applied = self.service.put_bundle(bundle, revision, &source, self.resource_policy, pin).await?;
        if let Some(revision) = applied {
            self.looks().taken = Some(bundle.digest().to_owned());
            self.metrics.in_force(&revision.applied_at);
            info!(
                source,
                digest = revision.digest,
                title = revision.title,
                revision = revision.revision,
                changes = revision.changes,
                "policy bundle is in force"
            );
        }
        Ok(())
    }

    /// Holds an earlier bundle in force until [`resume`](Self::resume): that of `digest`, else the one before the current.
    ///
    /// # Errors
    /// When it is not kept (any more), or is not taken now.
    pub async fn pin(&self, digest: Option<&str>, who: &str) -> Result<Status, ServiceError> {
        let _work = self.work.lock().await;
        let store = &self.service.state.store;
        let stored = Stored::read(store).await?;
        let revision = stored.choose(digest)?.clone();
        let bundle = stored.bundle(store, &revision.digest).await?;
        // It was good once; what checks may have become stricter.
        bundle.demand(&ServiceChecks).map_err(|error| ServiceError::Request(error.to_string()))?;
        warn!(digest = revision.digest, title = revision.title, who, "policy bundle is pinned");
        self.put_in_force(&bundle, revision.revision.clone(), Some(who)).await?;
        self.metrics.pinned(true);
        self.status().await
    }

    /// Follows the source again, from now on.
    ///
    /// # Errors
    /// When the store fails. A source that fails is told by the status.
    pub async fn resume(&self, who: &str) -> Result<Status, ServiceError> {
        {
            let _work = self.work.lock().await;
            self.service.unpin(who).await?;
            self.metrics.pinned(false);
            info!(source = %self.source, who, "policy source is followed again");
            // What it has counts as new, whatever was seen before.
            self.looks().considered = None;
        }
        self.look().await;
        self.status().await
    }

    /// What is told of it.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn status(&self) -> Result<Status, ServiceError> {
        let stored = Stored::read(&self.service.state.store).await?;
        let looks = self.looks();
        let condition = match (&stored.in_force, &looks.failed) {
            _ if stored.pinned.is_some() => Condition::Pinned,
            (_, Some(_)) => Condition::Failing,
            (None, None) => Condition::Waiting,
            (Some(_), None) => Condition::InForce,
        };
        Ok(Status {
            followed: true,
            source: self.source.to_string(),
            signed: self.source.is_signed(),
            condition,
            in_force: stored.in_force,
            pinned: stored.pinned,
            offered: looks.offered.clone(),
            last_tried: looks.tried.clone(),
            last_error: looks.failed.as_ref().map(|(why, _)| why.clone()),
            failing_since: looks.failed.as_ref().map(|(_, since)| since.clone()),
            history: stored.history,
        })
    }
}
