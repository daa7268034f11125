//! The attestation service: evidence in, a signed attestation result out.
//!
//! - [`verify`]: evidence to claims (the verifiers themselves are `kata-cc-verifier`, pure).
//! - [`appraisal`]: claims to a trust vector, by a Rego policy and reference values; [`explain`]: why.
//! - [`composite`], [`devices`]: evidence of devices beside the CPU's.
//! - [`references`]: reference values; [`sources`]: the messages that bring them.
//! - [`ear`]: the attestation result.
//! - [`jws`], [`token`], [`chain`]: signing and checking it.
//! - [`follow`]: a policy bundle that says which of them are in force.
//! - [`store`]: what is remembered, sealed.
//! - [`service`], with [`policies`], [`registry`] and the keys of tokens: all of it together; the KBS links this in, `attestation-service` serves it
//!   over REST ([`rest`]) and gRPC ([`grpc`]).
//! - [`serve`], [`query`], [`audit_export`]: the listening side, of the KBS too; [`gate`]: who may change policies and reference values.
//!
//! Wire and names follow Trustee's attestation service. Simulated and sample evidence is accepted only where it is
//! configured, and is labelled in every result.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod api;
pub mod appraisal;
pub mod audit_export;
#[cfg(test)]
mod audit_test;
pub mod chain;
pub mod challenge;
pub mod composite;
#[cfg(test)]
mod conflict_test;
#[cfg(test)]
#[path = "../../store/tests/common/mod.rs"]
mod database;
pub mod devices;
pub mod ear;
pub mod explain;
pub mod follow;
pub mod gate;
pub mod grpc;
pub mod jws;
mod kept;
mod keys;
#[cfg(test)]
mod keys_test;
pub mod metrics;
pub mod policies;
pub mod problem;
pub mod query;
pub mod references;
pub mod registry;
pub mod rest;
pub mod serve;
pub mod service;
pub mod sources;
mod state;
pub mod store {
    //! The store, which is a crate of its own.
    pub use kata_cc_store::*;
}
pub mod token;
pub mod trusted;
pub mod verify;

/// Seconds since 1970; 0 on a clock before that.
pub fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp().max(0)
}

/// Now in RFC 3339, whole seconds.
pub fn now_rfc3339() -> String {
    let now = time::OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(0).unwrap_or(now);
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
