//! Intel TDX evidence: quotes, the collateral that vouches for them, and event logs.
//!
//! Purpose: parse and verify quotes, and take apart what travels with them. All functions are pure: bytes,
//! collateral and the time go in, a typed value or a typed refusal comes out. Fetching collateral is the caller's
//! business ([`CollateralSource`] is where a verifier looks it up).
//!
//! Parts: [`quote`] (versions 4 and 5), [`report`] (what is measured; `TDREPORT_STRUCT`), [`attributes`] (bit
//! fields), [`pck`] (Intel's certificate extension), [`collateral`] (bundle and files of the service), [`tcb`] (TCB
//! info, QE identity, levels), [`trust`] (chains and signatures of the collateral), [`mod@verify`] (a quote under trusted
//! collateral), [`roots`] (Intel's root), [`event_log`] and [`aael`] (what was measured at run time),
//! [`event_details`] and [`claims`] (names as Trustee's).
//!
//! Sources: Intel TDX module base architecture (348549), Quote library API (appendices 3 and 4), PCK certificate
//! profile, PCS API v4, TCG PC client platform firmware profile, UEFI 2.10.
//!
//! Simulated platforms go through the same code with another trust anchor; the verdict says which anchor it was, and
//! nothing here ever calls the one by the other's name.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod aael;
pub mod attributes;
pub mod claims;
pub mod collateral;
pub mod error;
pub mod event_details;
pub mod event_log;
pub mod pck;
pub mod quote;
pub mod report;
pub mod roots;
pub mod tcb;
pub mod trust;
pub mod verify;

use std::sync::Arc;

pub use collateral::{Collateral, CollateralError};
pub use error::{Blame, Item, Part, Role, VerifyError};
pub use event_log::{EventLog, EventLogError, ReplayError};
pub use pck::{PckCa, PckExtension};
pub use quote::{Quote, QuoteError, Trailing};
pub use report::{TdReport, TdReportBody, TdReportError};
pub use tcb::TcbStatus;
pub use trust::{AnchorKind, Expiry, TrustAnchor, TrustedCollateral};
pub use verify::{CollateralKey, Options, Verified, verify};

/// Where a verifier looks collateral up. A pure look-up: whoever implements it has fetched the collateral before.
pub trait CollateralSource: std::fmt::Debug + Send + Sync {
    /// Collateral of a kind of platform, if it is there.
    fn find(&self, key: &CollateralKey) -> Option<Arc<Collateral>>;
}

impl CollateralSource for std::collections::BTreeMap<CollateralKey, Arc<Collateral>> {
    fn find(&self, key: &CollateralKey) -> Option<Arc<Collateral>> {
        self.get(key).map(Arc::clone)
    }
}
