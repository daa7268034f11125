//! `x5c`: from a token's key to a trusted certificate.
//!
//! The first certificate's key must be the key that signed the token; from it a path leads by issuer and signature through
//! the others, in any order, to one of the trusted certificates. Every certificate on the path is valid at the time, and every
//! issuer may issue (basic constraints, key usage, path length; RFC 5280, 6.1, without policies and names). A trusted
//! certificate may itself be the first.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use thiserror::Error;
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};

use crate::jws::{JwsError, VerifyingKey};

/// Most certificates of a token.
pub const MAX_CERTIFICATES: usize = 8;
/// Most signatures that are checked for one path.
const MAX_CHECKS: usize = 32;

/// Why a chain was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ChainError {
    /// A certificate that cannot be read.
    #[error("a certificate cannot be read: {0}")]
    Certificate(String),
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

/// A parsed certificate.
#[derive(Debug, Clone)]
pub struct ParsedCertificate {
    certificate: Certificate,
    der: Vec<u8>,
    /// What is signed.
    signed: Vec<u8>,
    key: Option<VerifyingKey>,
}

impl ParsedCertificate {
    /// Reads DER.
    pub fn from_der(der: &[u8]) -> Result<Self, ChainError> {
        let wrong = |e: x509_cert::der::Error| ChainError::Certificate(e.to_string());
        let certificate = Certificate::from_der(der).map_err(wrong)?;
        // The bytes as they were signed; encoding anew would accept what is no DER.
        let signed = tbs(der).ok_or_else(|| ChainError::Certificate("no signed part".to_owned()))?;
        let spki = certificate.tbs_certificate.subject_public_key_info.to_der().map_err(wrong)?;
        let key = VerifyingKey::from_spki(&spki).ok();
        Ok(Self { certificate, der: der.to_vec(), signed, key })
    }

    /// Reads all certificates of a PEM text.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Self>, ChainError> {
        CertificateDer::pem_slice_iter(pem)
            .map(|der| {
                der.map_err(|e| ChainError::Certificate(e.to_string())).and_then(|der| Self::from_der(&der))
            })
            .collect()
    }

    /// DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Its key, when that is of a kind that signs tokens.
    pub fn key(&self) -> Option<&VerifyingKey> {
        self.key.as_ref()
    }

    fn subject(&self) -> String {
        self.certificate.tbs_certificate.subject.to_string().chars().take(128).collect()
    }

    fn check_time(&self, now: i64) -> Result<(), ChainError> {
        let validity = &self.certificate.tbs_certificate.validity;
        let (from, to) = (
            validity.not_before.to_unix_duration().as_secs(),
            validity.not_after.to_unix_duration().as_secs(),
        );
        if u64::try_from(now).is_ok_and(|now| (from..=to).contains(&now)) {
            return Ok(());
        }
        Err(ChainError::Time { subject: self.subject(), from, to, now })
    }

    /// Whether all critical extensions are known.
    fn is_understood(&self) -> bool {
        let known = ["2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.17"];
        let extensions = self.certificate.tbs_certificate.extensions.iter().flatten();
        extensions.filter(|e| e.critical).all(|e| known.contains(&e.extn_id.to_string().as_str()))
    }

    /// Whether it may issue, with `below` issuers between it and the first certificate.
    fn may_issue(&self, below: usize) -> bool {
        let tbs = &self.certificate.tbs_certificate;
        let Ok(Some((_, constraints))) = tbs.get::<BasicConstraints>() else { return false };
        let Ok(usage) = tbs.get::<KeyUsage>() else { return false };
        let length = constraints.path_len_constraint.is_none_or(|most| below <= usize::from(most));
        constraints.ca && length && usage.is_none_or(|(_, usage)| usage.key_cert_sign())
    }

    fn issued(&self, other: &Self) -> bool {
        let Some(key) = &self.key else { return false };
        let certificate = &other.certificate;
        let algorithm = &certificate.signature_algorithm;
        let Some(signature) = certificate.signature.as_bytes() else { return false };
        *algorithm == certificate.tbs_certificate.signature
            && key.verify_x509(&algorithm.oid.to_string(), &other.signed, signature).is_ok()
    }

    fn names_issuer(&self, issuer: &Self) -> bool {
        self.certificate.tbs_certificate.issuer == issuer.certificate.tbs_certificate.subject
    }
}

/// The first element of the outer sequence, with its header.
fn tbs(der: &[u8]) -> Option<Vec<u8>> {
    use x509_cert::der::{Reader as _, SliceReader, asn1::AnyRef};
    let outer = AnyRef::from_der(der).ok()?;
    let mut reader = SliceReader::new(outer.value()).ok()?;
    Some(reader.tlv_bytes().ok()?.to_vec())
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
        if self.trusted.iter().any(|one| one.der == from.der) {
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
