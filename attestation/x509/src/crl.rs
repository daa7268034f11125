//! Certificate revocation lists (RFC 5280, chapter 5): whole lists of one issuer, no deltas.

use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use x509_cert::crl::CertificateList;
use x509_cert::der::asn1::{ObjectIdentifier, UintRef};
use x509_cert::der::{self, Decode};
use x509_cert::ext::Extension;

use crate::algorithm::SignatureAlgorithm;
use crate::certificate::{Certificate, common_name, signed_part, time_text};
use crate::error::AlgorithmError;

/// Most bytes of a revocation list: tens of thousands of entries.
pub const MAX_CRL: usize = 1024 * 1024;

const OID_CRL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.20");

/// A revocation list that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// Longer than the limit.
    #[error("revocation list has {seen} bytes, at most {MAX_CRL} are taken")]
    TooLong {
        /// Bytes seen.
        seen: usize,
    },
    /// Not DER or not a revocation list.
    #[error("revocation list is malformed: {0}")]
    Der(#[from] der::Error),
    /// Not PEM.
    #[error("PEM text of the revocation list is broken: {why}")]
    Pem {
        /// What is wrong.
        why: String,
    },
    /// Another algorithm or key than its issuer's.
    #[error("revocation list's {0}")]
    Algorithm(#[from] AlgorithmError),
    /// A critical extension this software does not know, for example that of a delta list.
    #[error("revocation list has an unknown critical extension {oid}")]
    CriticalExtension {
        /// Which.
        oid: ObjectIdentifier,
    },
    /// A list that does not say when the next one is due cannot be told from an old one.
    #[error("revocation list of {issuer} does not say when it ends (nextUpdate)")]
    NoNextUpdate {
        /// Common name.
        issuer: String,
    },
    /// Not yet or no longer valid.
    #[error("revocation list of {issuer} is valid from {this_update} to {next_update}, the time is {now}")]
    Validity {
        /// Common name.
        issuer: String,
        /// Start.
        this_update: String,
        /// End.
        next_update: String,
        /// Time of the check.
        now: String,
    },
}

/// A parsed revocation list together with the bytes that its signature covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crl {
    tbs: Vec<u8>,
    inner: CertificateList,
    next_update: u64,
    number: Option<u64>,
}

impl Crl {
    /// Reads one DER list; trailing bytes are refused.
    ///
    /// # Errors
    /// [`CrlError`] when the bytes are too many or malformed, an extension of the list or of an entry is
    /// critical, or the list does not say when it ends.
    pub fn from_der(bytes: &[u8]) -> Result<Self, CrlError> {
        if bytes.len() > MAX_CRL {
            return Err(CrlError::TooLong { seen: bytes.len() });
        }
        let inner = CertificateList::from_der(bytes)?;
        let list = &inner.tbs_cert_list;
        let of_list = list.crl_extensions.iter().flatten();
        let entries = list.revoked_certificates.as_deref().unwrap_or_default();
        let of_entries = entries.iter().flat_map(|entry| entry.crl_entry_extensions.iter().flatten());
        if let Some(unknown) = of_list.clone().chain(of_entries).find(|extension| extension.critical) {
            return Err(CrlError::CriticalExtension { oid: unknown.extn_id });
        }
        let Some(next_update) = list.next_update else {
            return Err(CrlError::NoNextUpdate { issuer: common_name(&list.issuer) });
        };
        let next_update = next_update.to_unix_duration().as_secs();
        let number = crl_number(of_list)?;
        Ok(Self { tbs: signed_part(bytes)?, next_update, number, inner })
    }

    /// Reads a list in DER or PEM.
    ///
    /// # Errors
    /// As [`Self::from_der`].
    pub fn from_der_or_pem(bytes: &[u8]) -> Result<Self, CrlError> {
        if bytes.len() > 2 * MAX_CRL {
            return Err(CrlError::TooLong { seen: bytes.len() });
        }
        if !bytes.starts_with(b"-----BEGIN") {
            return Self::from_der(bytes);
        }
        let der = CertificateRevocationListDer::from_pem_slice(bytes)
            .map_err(|error| CrlError::Pem { why: error.to_string() })?;
        Self::from_der(&der)
    }

    /// Common name of the issuer, empty when there is none.
    #[must_use]
    pub fn issuer_cn(&self) -> String {
        common_name(&self.inner.tbs_cert_list.issuer)
    }

    /// True when `issuer`'s whole subject name is this list's issuer name.
    #[must_use]
    pub fn names_issuer(&self, issuer: &Certificate) -> bool {
        self.inner.tbs_cert_list.issuer == *issuer.subject()
    }

    /// True when this list speaks about certificates of that one's issuer.
    #[must_use]
    pub fn covers(&self, certificate: &Certificate) -> bool {
        self.inner.tbs_cert_list.issuer == *certificate.issuer()
    }

    /// Whether `issuer`'s key signed this list with `algorithm`. `Ok(false)` means a signature of the right
    /// form that does not verify.
    ///
    /// # Errors
    /// [`CrlError::Algorithm`] when algorithm or key are of another kind.
    pub fn signed_by(&self, issuer: &Certificate, algorithm: SignatureAlgorithm) -> Result<bool, CrlError> {
        let named = [&self.inner.signature_algorithm, &self.inner.tbs_cert_list.signature];
        Ok(algorithm.verify(&self.tbs, &self.inner.signature, named, issuer.spki())?)
    }

    /// `thisUpdate`, in seconds since 1970.
    #[must_use]
    pub fn this_update(&self) -> u64 {
        self.inner.tbs_cert_list.this_update.to_unix_duration().as_secs()
    }

    /// `nextUpdate`, in seconds since 1970.
    #[must_use]
    pub const fn next_update(&self) -> u64 {
        self.next_update
    }

    /// Number of the list, if it has one.
    #[must_use]
    pub const fn number(&self) -> Option<u64> {
        self.number
    }

    /// Number of certificates revoked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.tbs_cert_list.revoked_certificates.as_deref().unwrap_or_default().len()
    }

    /// True when nothing is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses a list outside of its time. `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`CrlError::Validity`].
    pub fn check_validity(&self, now: u64) -> Result<(), CrlError> {
        if (self.this_update()..=self.next_update).contains(&now) {
            return Ok(());
        }
        Err(CrlError::Validity {
            issuer: self.issuer_cn(),
            this_update: time_text(self.this_update()),
            next_update: time_text(self.next_update),
            now: time_text(now),
        })
    }

    /// Whether the list has this serial number ([`Certificate::serial`]).
    #[must_use]
    pub fn revokes(&self, serial: &[u8]) -> bool {
        let entries = self.inner.tbs_cert_list.revoked_certificates.as_deref().unwrap_or_default();
        entries.iter().any(|entry| entry.serial_number.as_bytes() == serial)
    }
}

/// The list's number; one of more than 64 bits is left out, as nobody counts so far.
fn crl_number<'a>(mut extensions: impl Iterator<Item = &'a Extension>) -> Result<Option<u64>, CrlError> {
    let Some(extension) = extensions.find(|extension| extension.extn_id == OID_CRL_NUMBER) else {
        return Ok(None);
    };
    let number = UintRef::from_der(extension.extn_value.as_bytes())?;
    if number.as_bytes().len() > 8 {
        return Ok(None);
    }
    Ok(Some(number.as_bytes().iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))))
}
