//! Wire types of the key broker: what Trustee's KBS, attestation service and reference value provider say.
//!
//! Types, names, encodings and the limits of parsing; no I/O and no decisions. The shapes follow Trustee's
//! protocol 0.4.0 (`kbs_attestation_protocol.md`, kbs-types 0.18), so that its clients work with our server and
//! ours with its server; of 0.1.1 and 0.2.0 what differs ([`version`]). Members that we add are optional and say so.
//!
//! Encodings: `b64` is the standard alphabet with padding ([`base64_standard`]), `b64url` the URL alphabet without
//! ([`base64_url`]). A nonce is b64; JWK, JWE and policies are b64url.
//!
//! - [`rcar`]: request, challenge, attestation, response.
//! - [`version`]: which versions there are. [`bodies`]: reading what anybody may send, [`strict`]ly.
//! - [`resource`] is the address `kbs:///repository/type/tag`.
//! - [`admin`]: policies, reference values, listings.
//! - [`service`]: REST types of the attestation service.
//! - [`jwe`]: how both ends derive the key that wraps a resource's key.
//! - [`initdata`]: the measured document that a guest is started with.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod admin;
pub mod bodies;
pub mod initdata;
pub mod jwe;
pub mod rcar;
pub mod resource;
pub mod service;
pub mod strict;
pub mod version;

pub use rcar::{
    Attestation, AttestationResponse, Challenge, CompositeEvidence, ErrorInformation, InitDataBody,
    JweResponse, Request, RuntimeData, Tee, TeePubKey,
};
pub use resource::{ResourcePath, ResourceUri};
pub use version::ProtocolVersion;

use base64::Engine as _;

/// The newest protocol version, which our clients speak; servers know [`ProtocolVersion::ALL`].
pub const PROTOCOL_VERSION: &str = "0.4.0";

/// Prefix of every path of the key broker.
pub const PATH_PREFIX: &str = "/kbs/v0";

/// Name of the session cookie.
pub const SESSION_COOKIE: &str = "kbs-session-id";

/// Most bytes of a request or answer body that are read.
pub const MAX_BODY: usize = 2 << 20;

/// Place and message of a TOML error on one line, for logs and terminals; its own form draws over several.
pub fn toml_error(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().lines().map(str::trim).collect::<Vec<_>>().join(", ");
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return message };
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}: {message}")
}

/// b64: standard alphabet with padding.
pub fn base64_standard(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Reads b64 (standard alphabet with padding); `None` when it is anything else.
pub fn from_base64_standard(text: &str) -> Option<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// b64url: URL alphabet without padding.
pub fn base64_url(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads b64url (URL alphabet without padding); `None` when it is anything else.
pub fn from_base64_url(text: &str) -> Option<Vec<u8>> {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok()
}
