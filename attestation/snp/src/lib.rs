//! AMD SEV-SNP evidence: attestation reports and the certificates that endorse them.
//!
//! Purpose: parse and verify reports, and take apart and put together what travels with them. All
//! functions are pure: bytes, endorsements and the time go in, a typed value or a typed refusal
//! comes out. Fetching certificates (AMD's KDS) is the caller's business.
//!
//! Parts: [`report`] (the 1184-byte structure, versions 2 to 5), [`tcb`] (version vectors),
//! [`policy`] (bit fields), [`cert_table`] (GHCB 4.1.8.1), [`certs`] (X.509 as AMD issues it),
//! [`verify`] (chain, revocation, signature, TCB and chip id), [`ChainCache`] (unchanging certificates are verified
//! once), [`Requirements`] (what an owner demands, with all differences), [`id_block`] (what an owner signs before
//! launch), [`roots`] (AMD's public certificates), [`evidence`] (the JSON form that Trustee's `snp` attester sends).
//!
//! Sources: AMD 56860 (firmware ABI), 57230 (VCEK certificates), 56421 (GHCB).
//!
//! Simulated platforms go through the same code with another trust anchor; the verdict says which
//! anchor it was, and nothing here ever calls the one by the other's name.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod cache;
pub mod cert_table;
pub mod certs;
mod chain;
mod error;
pub mod evidence;
mod hex_bytes;
pub mod id_block;
pub mod policy;
mod product;
pub mod report;
pub mod requirements;
pub mod roots;
mod supply;
pub mod tcb;
pub mod verify;

pub use cache::{ChainCache, DEFAULT_CHAINS};
pub use cert_table::{CertKind, CertTable};
pub use hex_bytes::HexBytes;
pub use id_block::{IdAuth, IdBlock};
pub use policy::{GuestPolicy, KeyInfo, PlatformInfo, SigningKey};
pub use report::{REPORT_LEN, Report, ReportError, Reserved};
pub use requirements::{Difference, Requirements};
pub use supply::{EndorsementSource, Supply};
pub use tcb::{Tcb, TcbLayout};
pub use verify::{
    CrlStatus, Endorsements, Product, Revocation, TrustAnchor, VekKind, Verified, VerifiedChain, VerifyError,
    verify, verify_with,
};
