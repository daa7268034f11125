//! X.509 certificates and revocation lists as the makers of TEEs issue them.
//!
//! General-purpose verifiers stumble over these: AMD's certificates have serial number 0 and RSASSA-PSS
//! parameters, Intel's chains end in a root that is pinned by its key, and both carry what matters in
//! extensions of their own. So the rules are here: structure from `x509-cert`, signatures over the bytes as
//! they came, by aws-lc. Whoever verifies a chain names the one algorithm it has to be signed with
//! ([`SignatureAlgorithm`]): a certificate never chooses for itself.
//!
//! All functions are pure: bytes and the time go in, a typed value or a typed refusal comes out.
//!
//! Limits: [`MAX_CERT`] bytes for a certificate, [`MAX_CHAIN`] certificates in a PEM bundle, [`MAX_CRL`]
//! bytes for a revocation list.
//!
//! Sources: RFC 5280 (profile), RFC 4055 (RSASSA-PSS), RFC 5758 (ECDSA with SHA-2).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod algorithm;
mod certificate;
mod chain;
mod crl;
mod error;

pub use algorithm::{
    OID_EC_PUBLIC_KEY, OID_ECDSA_SHA256, OID_ECDSA_SHA384, OID_P256, OID_P384, OID_RSA, OID_RSASSA_PSS,
    PSS_PARAMS, SignatureAlgorithm,
};
pub use certificate::{Certificate, MAX_CERT, MAX_CHAIN, OID_COMMON_NAME};
pub use chain::{ChainError, check_link, check_root};
pub use crl::{Crl, CrlError, MAX_CRL};
pub use error::{AlgorithmError, CertError};
/// Object identifiers and DER, as this crate's interfaces use them.
pub use x509_cert::der;
pub use x509_cert::der::asn1::ObjectIdentifier;
