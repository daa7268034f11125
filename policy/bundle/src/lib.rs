//! Policy bundles: what agents, images, the attestation service and the key broker decide by, kept in one folder (of a Git repository), checked
//! as a whole, packed so that the same folder always gives the same bytes, signed, and carried as an OCI artifact.
//!
//! - [`layout`]: which files there are; [`manifest`]: `kata-cc-policy.yaml`; [`folder`]: reading a folder, with limits.
//! - [`archive`]: the one form in which it is packed; its SHA-256 is the bundle's [`Bundle::digest`], wherever it lies.
//! - [`check`]: whether every part is one that the services take, and whether the cases beside the policies come as they say.
//! - [`sign`]: signatures over the packed form; [`artifact`]: the same in a registry, with cosign's signatures.
//! - [`source`]: where a service takes bundles from, and what it demands of them.
//!
//! Nothing here puts anything in force: that is the attestation service's `follow`.

#![forbid(unsafe_code)]

pub mod archive;
pub mod artifact;
mod bundle;
mod cases;
pub mod check;
mod error;
pub mod folder;
pub mod layout;
pub mod manifest;
pub mod sign;
pub mod source;

pub use bundle::{Bundle, ReferenceFile};
pub use check::{Checks, Fault, Problem, Severity};
pub use error::BundleError;
pub use manifest::{Accepted, Manifest, TrustedKey};
pub use source::{Fetched, Source};

/// SHA-256 in hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    kata_cc_image::digest::Digest::sha256(bytes).hex().to_owned()
}
