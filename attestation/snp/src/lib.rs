//! AMD SEV-SNP evidence: attestation reports and the certificates that endorse them.
//!
//! Purpose: parse and verify reports, and take apart and put together what travels with them. All
//! functions are pure: bytes, endorsements and the time go in, a typed value or a typed refusal
//! comes out. Fetching certificates (AMD's KDS) is the caller's business.
//!
//! Parts: [`report`] (the 1184-byte structure, versions 2 to 5), [`tcb`] (version vectors),
//! [`policy`] (bit fields), [`cert_table`] (GHCB 4.1.8.1), [`certs`] (X.509 as AMD issues it),
//! [`verify`] (chain, signature, TCB and chip id), [`roots`] (AMD's public certificates),
//! [`evidence`] (the JSON form that Trustee's `snp` attester sends).
//!
//! Sources: AMD 56860 (firmware ABI), 57230 (VCEK certificates), 56421 (GHCB).
//!
//! Simulated platforms go through the same code with another trust anchor; the verdict says which
//! anchor it was, and nothing here ever calls the one by the other's name.
#![forbid(unsafe_code)]

pub mod cert_table;
pub mod certs;
mod cursor;
pub mod evidence;
pub mod policy;
pub mod report;
pub mod roots;
pub mod tcb;
pub mod verify;

pub use cert_table::{CertKind, CertTable};
pub use policy::{GuestPolicy, KeyInfo, PlatformInfo, SigningKey};
pub use report::{REPORT_LEN, Report, ReportError, Reserved};
pub use tcb::{Tcb, TcbLayout};
pub use verify::{Endorsements, Product, TrustAnchor, Verified, VerifyError, verify};
