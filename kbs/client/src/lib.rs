//! Clients of the key broker.
//!
//! - [`KbsClient`]: for guests. Runs the handshake (request, challenge, attestation, response) with an ephemeral key,
//!   then fetches resources, which arrive encrypted to that key.
//! - [`ServiceClient`]: for guests that have an attestation service of their own; tokens alone.
//! - [`AdminClient`]: for operators. Resources, policies, reference values.
//!
//! What passes (no connection, 429, 502 to 504) is tried again with growing, jittered pauses until a deadline
//! ([`RetryPolicy`]); what does not is told at once. A token is kept until shortly before its end ([`KbsClient::token`]), and
//! of many calls at once one attests for all.
//!
//! Both speak Trustee's protocol 0.4.0 and read its errors; our server's status codes say more (403, 404), Trustee's
//! answer nearly everything with 401. TLS trusts exactly the certificates that are given: a guest must not believe a
//! host's certificate store, nor its clock. Resources are `Zeroizing` and never logged.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod admin;
mod http;
pub mod jwe;
mod key;
mod rcar;
mod retry;
mod service;

pub use admin::{AdminAuth, AdminClient, AuditedService};
pub use http::Endpoint;
pub use key::{KeyAlgorithm, TeeKey};
pub use rcar::{Attested, EvidenceProvider, GuestEvidence, KbsClient, KbsConfig};
pub use retry::RetryPolicy;
pub use service::{ServiceClient, explain_evidence};

use std::time::Duration;

use thiserror::Error;

/// Why a call to the key broker failed.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ClientError {
    /// The client is configured wrongly.
    #[error("key broker client cannot be set up: {0}")]
    Config(String),
    /// The key broker was not reached.
    #[error("key broker {url} was not reached: {why}")]
    Transport {
        /// Its address.
        url: String,
        /// What failed.
        why: String,
    },
    /// The guest has no evidence.
    #[error("no evidence for the key broker: {0}")]
    Evidence(String),
    /// The key broker refused the guest's evidence, or its request for a challenge.
    #[error("attestation was refused by the key broker: {detail}")]
    Attestation {
        /// HTTP status.
        status: u16,
        /// Name of the error, e.g. `AttestationError`.
        name: String,
        /// Its text.
        detail: String,
    },
    /// The key broker speaks another version of the protocol.
    #[error(
        "key broker speaks another protocol version than {} (Trustee takes exactly one: update this guest's image or the key broker): {detail}",
        kata_cc_kbs_protocol::PROTOCOL_VERSION
    )]
    Version {
        /// Its text.
        detail: String,
    },
    /// The key broker, or something before it, has no room for now, and had none until the deadline.
    #[error("key broker is busy, it answers {status} to {what}: {detail}")]
    Busy {
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// Its text.
        detail: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// The policy does not let this guest have the resource.
    #[error("key broker denies {what}: {detail}")]
    Denied {
        /// What was asked for.
        what: String,
        /// Its text.
        detail: String,
    },
    /// The resource does not exist.
    #[error("key broker has no {what}: {detail}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// Its text.
        detail: String,
    },
    /// Another error answer.
    #[error("key broker answered {status} {name} to {what}: {detail}")]
    Refused {
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// Name of the error.
        name: String,
        /// Its text.
        detail: String,
    },
    /// The answer is not what the protocol says.
    #[error("key broker's answer to {what} is not understood: {why}")]
    Protocol {
        /// What was asked for.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The attestation service gave no token.
    #[error("attestation service {url} gave no token: {why}")]
    Service {
        /// Its address.
        url: String,
        /// Why not.
        why: String,
    },
    /// The answer cannot be decrypted.
    #[error("resource cannot be decrypted: {0}")]
    Decrypt(#[from] jwe::JweError),
}
