//! Endorsements that do not come with the evidence.

use std::sync::Arc;

use crate::product::Product;
use crate::report::Report;

/// What was found for a report; nothing of it is verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supply {
    /// VCEK or VLEK (DER or PEM), for evidence that brings none.
    pub vek: Option<Arc<[u8]>>,
    /// ASK or ASVK (DER or PEM), for evidence that brings none.
    pub ask: Option<Arc<[u8]>>,
    /// Revocation list of the root (DER or PEM). It goes before one of the host, who may keep an old one.
    pub crl: Option<Arc<[u8]>>,
}

/// Where a verifier looks endorsements up. A pure look-up: whoever implements it has fetched them before.
pub trait EndorsementSource: std::fmt::Debug + Send + Sync {
    /// What is there for a report of a processor line.
    fn find(&self, report: &Report, product: Product) -> Supply;
}
