//! The attestation service: evidence in, a signed attestation result out.
//!
//! - [`verify`]: evidence to claims (the verifiers themselves are `kata-cc-verifier`, pure).
//! - [`appraisal`]: claims to a trust vector, by a Rego policy and reference values.
//! - [`ear`]: the attestation result.
//! - [`jws`], [`token`]: signing and checking it.
//! - [`store`]: what is remembered, sealed.
//! - [`service`]: all of it together; the KBS links this in, `attestation-service` serves it over REST ([`rest`]).
//! - [`serve`]: the listening side, of the KBS too; [`gate`]: who may change policies and reference values.
//!
//! Wire and names follow Trustee's attestation service. Simulated and sample evidence is accepted only where it is
//! configured, and is labelled in every result.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod appraisal;
pub mod ear;
pub mod gate;
pub mod jws;
pub mod rest;
pub mod serve;
pub mod service;
pub mod store {
    //! The store, which is a crate of its own.
    pub use kata_cc_store::*;
}
#[cfg(test)]
pub(crate) mod test_utils;
pub mod token;
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
