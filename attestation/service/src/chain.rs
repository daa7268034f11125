//! `x5c`: from a token's key to a trusted certificate.
//!
//! The first certificate's key must be the key that signed the token; from it a path leads by issuer and signature through
//! the others, in any order, to one of the trusted certificates. Every certificate on the path is valid at the time, and every
//! issuer may issue (basic constraints, key usage, path length; RFC 5280, 6.1, without policies and names). A trusted
//! certificate may itself be the first.

use kata_cc_x509::{CertError, Certificate, ObjectIdentifier};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use thiserror::Error;

use crate::jws::{JwsError, VerifyingKey};

/// Most certificates of a token.
pub const MAX_CERTIFICATES: usize = 8;
/// Most signatures that are checked for one path.
const MAX_CHECKS: usize = 32;
/// Extensions that may be critical: basic constraints, key usage, extended key usage, subject's alternative names.
const UNDERSTOOD: [ObjectIdentifier; 4] = [
    ObjectIdentifier::new_unwrap("2.5.29.19"),
    ObjectIdentifier::new_unwrap("2.5.29.15"),
    ObjectIdentifier::new_unwrap("2.5.29.37"),
    ObjectIdentifier::new_unwrap("2.5.29.17"),
];

/// Why a chain was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ChainError {
    /// A certificate that cannot be read.
    #[error("a certificate cannot be read: {0}")]
    Certificate(#[from] CertError),
    /// Text that holds none.
    #[error("a certificate of x5c is not base64")]
    Base64,
    /// Too many of them.
    #[error("{0} certificates, at most {MAX_CERTIFICATES} are read")]
    TooMany(usize),
    /// None at all.
    #[error("there is no certificate")]
    None,
    /// The first certificate is for another key.
    #[error("the first certificate of x5c is for another key than the one in the header")]
    OtherKey,
    /// Not valid at the time.
    #[error("certificate {subject:?} is valid from {from} to {to}, not at {now} (seconds since 1970)")]
    Time {
        /// Whose.
        subject: String,
        /// From.
        from: u64,
        /// To.
        to: u64,
        /// The time.
        now: i64,
    },
    /// No way to a trusted certificate.
    #[error("no chain of signatures leads from {0:?} to a trusted certificate")]
    NoPath(String),
    /// The key of the first certificate is of no kind that signs tokens.
    #[error(transparent)]
    Key(#[from] JwsError),
}

/// A certificate, and its key where that signs tokens.
#[derive(Debug, Clone)]
pub struct ParsedCertificate {
    certificate: Certificate,
    key: Option<VerifyingKey>,
}

impl ParsedCertificate {
    /// Reads DER.
    pub fn from_der(der: &[u8]) -> Result<Self, ChainError> {
        let certificate = Certificate::from_der(der)?;
        let key = VerifyingKey::from_spki(&certificate.spki_der()?).ok();
        Ok(Self { certificate, key })
    }

    /// Reads all certificates of a PEM text; trusted ones may be more than a chain has.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Self>, ChainError> {
        CertificateDer::pem_slice_iter(pem)
            .map(|der| Self::from_der(&der.map_err(|error| CertError::Pem { why: error.to_string() })?))
            .collect()
    }

    /// DER.
    pub fn der(&self) -> &[u8] {
        self.certificate.der()
    }

    /// Its key, when that is of a kind that signs tokens.
    pub fn key(&self) -> Option<&VerifyingKey> {
        self.key.as_ref()
    }

    fn subject(&self) -> String {
        self.certificate.subject_text().chars().take(128).collect()
    }

    fn check_time(&self, now: i64) -> Result<(), ChainError> {
        let (from, to) = (self.certificate.not_before(), self.certificate.not_after());
        if u64::try_from(now).is_ok_and(|now| (from..=to).contains(&now)) {
            return Ok(());
        }
        Err(ChainError::Time { subject: self.subject(), from, to, now })
    }

    fn is_understood(&self) -> bool {
        self.certificate.check_critical(&UNDERSTOOD).is_ok()
    }

    /// Whether it may issue, with `below` issuers between it and the first certificate.
    fn may_issue(&self, below: usize) -> bool {
        let length = self.certificate.path_length();
        length.is_ok_and(|most| most.is_none_or(|most| below <= usize::from(most)))
            && self.certificate.signs_certificates().is_ok_and(|signs| signs)
    }

    fn issued(&self, other: &Self) -> bool {
        let (Some(key), Some((algorithm, signature))) = (&self.key, other.certificate.signature()) else {
            return false;
        };
        key.verify_x509(&algorithm.to_string(), other.certificate.signed_bytes(), signature).is_ok()
    }

    fn names_issuer(&self, issuer: &Self) -> bool {
        self.certificate.names_issuer(&issuer.certificate)
    }
}

/// Checks that `given` (the `x5c`, first certificate first) leads to one of `trusted` at `now`, and gives the key of the first.
pub fn verify(
    given: &[ParsedCertificate],
    trusted: &[ParsedCertificate],
    now: i64,
) -> Result<VerifyingKey, ChainError> {
    let leaf = given.first().ok_or(ChainError::None)?;
    if given.len() > MAX_CERTIFICATES {
        return Err(ChainError::TooMany(given.len()));
    }
    leaf.check_time(now)?;
    let mut search = Search { given, trusted, now, checks: 0, late: None };
    if leaf.is_understood() && search.leads(leaf, &mut Vec::new()) {
        return Ok(leaf
            .key
            .clone()
            .ok_or(JwsError::Key("certificate", "EC P-256 or P-384, Ed25519 or RSA"))?);
    }
    Err(search.late.unwrap_or_else(|| ChainError::NoPath(leaf.subject())))
}

struct Search<'a> {
    given: &'a [ParsedCertificate],
    trusted: &'a [ParsedCertificate],
    now: i64,
    checks: usize,
    /// A certificate that would have led there at another time.
    late: Option<ChainError>,
}

impl<'a> Search<'a> {
    fn leads(&mut self, from: &'a ParsedCertificate, path: &mut Vec<&'a [u8]>) -> bool {
        if self.trusted.iter().any(|one| one.der() == from.der()) {
            return true;
        }
        if path.len() >= MAX_CERTIFICATES || path.contains(&from.der()) {
            return false;
        }
        path.push(from.der());
        let (given, trusted) = (self.given, self.trusted);
        for issuer in trusted.iter().chain(given) {
            let fits =
                from.names_issuer(issuer) && issuer.is_understood() && issuer.may_issue(path.len() - 1);
            if !fits || self.checks >= MAX_CHECKS {
                continue;
            }
            self.checks += 1;
            if !issuer.issued(from) {
                continue;
            }
            if let Err(late) = issuer.check_time(self.now) {
                self.late = Some(late);
                continue;
            }
            if self.leads(issuer, path) {
                return true;
            }
        }
        path.pop();
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_refused() {
        assert!(matches!(ParsedCertificate::from_der(b"x"), Err(ChainError::Certificate(_))));
        assert!(ParsedCertificate::all_from_pem(b"nothing").unwrap().is_empty());
        assert!(matches!(verify(&[], &[], 0), Err(ChainError::None)));
    }
}
