//! What goes on record: verdicts, releases, refusals, and what administrators do. The log itself: [`kata_cc_store::audit`].
//!
//! Records are written before the answer that they tell of; when that fails, the answer is not given. Claims and policies stand in them
//! as digests, sessions as labels (their ids are credentials).

use std::time::Instant;

use kata_cc_attestation_service::serve::Peer;
use kata_cc_attestation_service::service::Verdict;
use kata_cc_kbs_protocol::Tee;
use kata_cc_store::StoreError;
use kata_cc_store::audit::{Kind, Record};
use serde_json::Value;

use crate::admin::Administrator;
use crate::api::Caller;
use crate::error::ApiError;
use crate::plugins::PluginEvent;
use crate::state::Kbs;
use crate::tokens;

/// Appends a record.
async fn append(kbs: &Kbs, record: Record) -> Result<(), StoreError> {
    kbs.metrics.timed("audit", kbs.store.audit().append(record)).await.map(drop)
}

/// Evidence was judged.
pub(crate) async fn attested(
    kbs: &Kbs,
    session: &str,
    tee: Tee,
    verdict: Result<&Verdict, &ApiError>,
) -> Result<(), StoreError> {
    let record = Record::new(Kind::Attest).session(session).tee(tee.name());
    append(
        kbs,
        match verdict {
            Ok(verdict) => with_policies(record, verdict)
                .verdict(verdict.status().name())
                .claims(&tokens::claims_digest(&verdict.token)),
            Err(error) => record.verdict("refused").reason(error.to_string()),
        },
    )
    .await
}

/// A record with the digest of the policy that judged the CPU; those of devices, where they are others, as details.
fn with_policies(mut record: Record, verdict: &Verdict) -> Record {
    for submod in &verdict.submods {
        let Some(check) = submod.explanation.first() else { continue };
        let digest = check.policy.digest.as_str();
        match &record.policy {
            None => record.policy = Some(digest.to_owned()),
            Some(first) if first == digest => {}
            Some(_) => record = record.detail(format!("policy of {}", submod.name), digest),
        }
    }
    record
}

/// Somebody was turned away who is nobody yet: no session, no good nonce, no good token. Anybody can make such records, so
/// of one address there is one a minute; all are counted.
pub(crate) async fn turned_away(
    kbs: &Kbs,
    peer: Peer,
    step: &str,
    session: Option<&str>,
    error: &ApiError,
) -> Result<(), StoreError> {
    kbs.metrics.count("turned-away", error.name());
    if kbs.strangers.take(peer, Instant::now()).is_err() {
        return Ok(());
    }
    let record = Record::new(Kind::Refusal).verdict("refused").who(peer.to_string());
    let record = record.reason(format!("{step}: {error}"));
    append(kbs, session.into_iter().fold(record, Record::session)).await
}

fn guest(kind: Kind, caller: &Caller, policy: &str, resource: &str, version: Option<u64>) -> Record {
    let mut record = Record::new(kind)
        .verdict(caller.status())
        .claims(&caller.token.claims_digest)
        .resource(resource, version);
    record.policy = Some(policy.to_owned());
    match &caller.session {
        Some(session) => record.session(session),
        None => record,
    }
}

/// A resource, or what a plugin makes, is given to a guest.
pub(crate) async fn released(
    kbs: &Kbs,
    caller: &Caller,
    policy: &str,
    resource: &str,
    version: Option<u64>,
) -> Result<(), StoreError> {
    append(kbs, guest(Kind::Release, caller, policy, resource, version)).await
}

/// The same, with what a plugin has to say about it.
pub(crate) async fn released_by_plugin(
    kbs: &Kbs,
    caller: &Caller,
    policy: &str,
    resource: &str,
    event: Option<&PluginEvent>,
) -> Result<(), StoreError> {
    append(kbs, with_event(guest(Kind::Release, caller, policy, resource, None), event)).await
}

/// A plugin did what an administrator [asked](asked) of it. When this record is missing after that one, it is not known whether it was
/// done: the service ended between the two.
pub(crate) async fn done_by_plugin(
    kbs: &Kbs,
    administrator: &Administrator,
    action: &str,
    target: &str,
    event: Option<&PluginEvent>,
) -> Result<(), StoreError> {
    append(kbs, with_event(admin(administrator, action, target), event)).await
}

/// A plugin did not do what an administrator asked of it.
pub(crate) async fn failed_in_plugin(
    kbs: &Kbs,
    administrator: &Administrator,
    action: &str,
    target: &str,
    why: &str,
) -> Result<(), StoreError> {
    let record = admin(administrator, action, target).verdict("failed");
    append(kbs, record.reason(format!("{action}: {why}"))).await
}

/// A record with a plugin's event as its details.
fn with_event(mut record: Record, event: Option<&PluginEvent>) -> Record {
    let Some(event) = event else { return record };
    for (name, value) in event.details.as_object().into_iter().flatten() {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            Value::Array(all) => all.iter().map(text).collect::<Vec<_>>().join(" "),
            other => other.to_string(),
        };
        record = record.detail(name, text);
    }
    record.detail("event", event.action).detail("subject", &event.subject)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A guest is refused.
pub(crate) async fn refused(
    kbs: &Kbs,
    caller: &Caller,
    policy: &str,
    resource: &str,
    why: &str,
) -> Result<(), StoreError> {
    append(kbs, guest(Kind::Refusal, caller, policy, resource, None).reason(why)).await
}

/// What an administrator is about to do, for the transaction that does it.
pub(crate) fn admin(administrator: &Administrator, action: &str, target: &str) -> Record {
    Record::new(Kind::Admin)
        .who(administrator.to_string())
        .verdict("done")
        .reason(action)
        .resource(target, None)
}

/// An administrator asks for something whose change cannot carry the record with it: on record before it is done.
pub(crate) async fn asked(
    kbs: &Kbs,
    administrator: &Administrator,
    action: &str,
    target: &str,
) -> Result<(), StoreError> {
    append(kbs, admin(administrator, action, target).verdict("asked")).await
}

/// Somebody who is no administrator, or not the right one, was not let.
pub(crate) async fn not_let(kbs: &Kbs, action: &str, target: &str, why: &ApiError) -> Result<(), StoreError> {
    let record = Record::new(Kind::Admin).verdict("refused").resource(target, None);
    append(kbs, record.reason(format!("{action}: {why}"))).await
}

/// The service begins or ends.
pub(crate) async fn mark(kbs: &Kbs, kind: Kind) -> Result<(), StoreError> {
    append(kbs, Record::new(kind)).await
}
