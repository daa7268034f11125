//! Where endorsements come from: AMD's certificates and revocation lists, Intel's collateral.
//!
//! Purpose: evidence often comes without what its verification needs. This crate gets it, in this order: the evidence
//! itself (the caller's business), a cache in memory and on disk, an offline folder or OCI layout, AMD's KDS and
//! Intel's PCS or a PCCS over HTTP. Nothing here verifies trust: what comes out is input of the pure verifiers, and a
//! wrong document costs no more than a refusal there. What is plainly not what was asked for (a certificate of another
//! chip, a web page) is refused here, so that it is neither kept nor handed on.
//!
//! Parts: [`Item`] (what can be asked for, and its place in a folder), [`Document`] (what comes back), [`Source`] (one
//! place), [`Endorser`] (all places, one request at a time for each item, failures remembered for a while),
//! [`Bundle`] (import and export, for sites without a network), [`EndorsementsConfig`] (the `[endorsements]` section).
//!
//! Limits: [`MAX_DOCUMENT`] for each document; caches are bounded in entries and bytes; every wait has an end.
//!
//! Sources: AMD 57230 chapter 4 (KDS), Intel PCS API v4, OCI image layout 1.1.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod bundle;
mod cache;
mod config;
mod document;
mod endorser;
mod http;
mod item;
mod kds;
mod lookup;
pub mod oci;
mod offline;
mod pcs;
mod source;

pub use bundle::{Bundle, BundleError, MAX_BUNDLE_BYTES, MAX_BUNDLE_FILES, pem};
pub use config::{ConfigError, EndorsementsConfig, KdsConfig, PcsConfig};
pub use document::{Document, MAX_DOCUMENT};
pub use endorser::{Collateral, Endorser, SnpNeed, SnpSupply, vek_item};
pub use http::{HttpLimits, HttpSource, Retry};
pub use item::{IntelTee, Item, PckCa};
pub use kds::Kds;
pub use offline::Folder;
pub use pcs::Pcs;
pub use source::{Source, SourceError};
