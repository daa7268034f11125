//! One certificate: structure, names, validity, authority, signature, extensions.

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{self, Decode, Encode, Reader, SliceReader};
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::name::Name;
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use crate::algorithm::{OID_P256, OID_P384, SignatureAlgorithm, ec_key};
use crate::error::CertError;

/// Most bytes of one certificate.
pub const MAX_CERT: usize = 16 * 1024;

/// Most certificates in one PEM bundle.
pub const MAX_CHAIN: usize = 8;

/// `commonName`.
pub const OID_COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

const OID_BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const OID_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");

/// A parsed certificate together with the bytes that its signature covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    tbs: Vec<u8>,
    inner: x509_cert::Certificate,
}

impl Certificate {
    /// Reads one DER certificate; trailing bytes are refused.
    ///
    /// # Errors
    /// [`CertError`] when the bytes are too many or malformed.
    pub fn from_der(bytes: &[u8]) -> Result<Self, CertError> {
        if bytes.len() > MAX_CERT {
            return Err(CertError::TooLong { seen: bytes.len() });
        }
        let inner = x509_cert::Certificate::from_der(bytes)?;
        Ok(Self { der: bytes.to_vec(), tbs: signed_part(bytes)?, inner })
    }

    /// Reads a DER certificate, or the first of a PEM bundle.
    ///
    /// # Errors
    /// As [`Self::from_der`] and [`Self::chain_from_pem`].
    pub fn from_der_or_pem(bytes: &[u8]) -> Result<Self, CertError> {
        Self::all_from_der_or_pem(bytes)?.into_iter().next().ok_or(CertError::Bundle { seen: 0 })
    }

    /// Reads one DER certificate, or all of a PEM bundle.
    ///
    /// # Errors
    /// As [`Self::from_der`] and [`Self::chain_from_pem`].
    pub fn all_from_der_or_pem(bytes: &[u8]) -> Result<Vec<Self>, CertError> {
        if bytes.starts_with(b"-----BEGIN") {
            return Self::chain_from_pem(bytes);
        }
        Self::from_der(bytes).map(|certificate| vec![certificate])
    }

    /// Reads a PEM bundle, in its order.
    ///
    /// # Errors
    /// [`CertError`] when it holds no certificate, too many, or a malformed one.
    pub fn chain_from_pem(bytes: &[u8]) -> Result<Vec<Self>, CertError> {
        if bytes.len() > MAX_CERT * MAX_CHAIN {
            return Err(CertError::TooLong { seen: bytes.len() });
        }
        // Text to bytes first, bytes to a certificate then: der 0.7 reads certificates out of PEM text as it goes, and
        // never ends where the text does and the length that DER announces does not.
        let mut chain = Vec::new();
        for der in CertificateDer::pem_slice_iter(bytes) {
            if chain.len() == MAX_CHAIN {
                return Err(CertError::Bundle { seen: MAX_CHAIN + 1 });
            }
            chain.push(Self::from_der(&der.map_err(|error| CertError::Pem { why: error.to_string() })?)?);
        }
        if chain.is_empty() {
            return Err(CertError::Bundle { seen: 0 });
        }
        Ok(chain)
    }

    /// The DER as it came.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Bytes of the serial number (big-endian, two's complement).
    #[must_use]
    pub fn serial(&self) -> &[u8] {
        self.inner.tbs_certificate.serial_number.as_bytes()
    }

    /// Common name of the subject, empty when there is none.
    #[must_use]
    pub fn subject_cn(&self) -> String {
        common_name(self.subject())
    }

    /// Common name of the issuer, empty when there is none.
    #[must_use]
    pub fn issuer_cn(&self) -> String {
        common_name(self.issuer())
    }

    /// True when `issuer`'s whole subject name is this certificate's issuer name.
    #[must_use]
    pub fn names_issuer(&self, issuer: &Self) -> bool {
        self.issuer() == issuer.subject()
    }

    pub(crate) const fn subject(&self) -> &Name {
        &self.inner.tbs_certificate.subject
    }

    pub(crate) const fn issuer(&self) -> &Name {
        &self.inner.tbs_certificate.issuer
    }

    pub(crate) const fn spki(&self) -> &SubjectPublicKeyInfoOwned {
        &self.inner.tbs_certificate.subject_public_key_info
    }

    /// The whole subject name, for messages.
    #[must_use]
    pub fn subject_text(&self) -> String {
        self.subject().to_string()
    }

    /// The public key structure in DER.
    ///
    /// # Errors
    /// [`CertError::Der`] when it cannot be encoded again.
    pub fn spki_der(&self) -> Result<Vec<u8>, CertError> {
        Ok(self.spki().to_der()?)
    }

    /// The bytes that its issuer signed, as they came.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        &self.tbs
    }

    /// What it was signed with, for verifiers that know more algorithms than [`SignatureAlgorithm`]: the algorithm's identifier and
    /// the signature. `None` when the two places that name the algorithm differ, or the signature is not whole bytes.
    #[must_use]
    pub fn signature(&self) -> Option<(ObjectIdentifier, &[u8])> {
        let (outer, inner) = (&self.inner.signature_algorithm, &self.inner.tbs_certificate.signature);
        let signature = self.inner.signature.as_bytes()?;
        (outer == inner).then_some((outer.oid, signature))
    }

    /// SHA-256 over the public key structure, in hex: what a root is pinned by and shown as.
    ///
    /// # Errors
    /// [`CertError::Der`] when the key cannot be encoded again.
    pub fn key_fingerprint(&self) -> Result<String, CertError> {
        Ok(hex::encode(digest(&SHA256, &self.spki().to_der()?)))
    }

    /// Object identifier of the public key's algorithm.
    #[must_use]
    pub const fn key_algorithm(&self) -> ObjectIdentifier {
        self.spki().algorithm.oid
    }

    /// The P-256 public key as an uncompressed point.
    ///
    /// # Errors
    /// [`CertError::KeyAlgorithm`] for any other key.
    pub fn p256_public_key(&self) -> Result<&[u8], CertError> {
        Ok(ec_key(self.spki(), OID_P256, "an elliptic-curve key on P-256")?)
    }

    /// The P-384 public key as an uncompressed point.
    ///
    /// # Errors
    /// [`CertError::KeyAlgorithm`] for any other key.
    pub fn p384_public_key(&self) -> Result<&[u8], CertError> {
        Ok(ec_key(self.spki(), OID_P384, "an elliptic-curve key on P-384")?)
    }

    /// Whether `issuer`'s key signed this certificate with `algorithm`. `Ok(false)` means a
    /// signature of the right form that does not verify.
    ///
    /// # Errors
    /// [`CertError`] when algorithm or key are of another kind.
    pub fn signed_by(&self, issuer: &Self, algorithm: SignatureAlgorithm) -> Result<bool, CertError> {
        let named = [&self.inner.signature_algorithm, &self.inner.tbs_certificate.signature];
        Ok(algorithm.verify(&self.tbs, &self.inner.signature, named, issuer.spki())?)
    }

    /// Start of the validity, in seconds since 1970.
    #[must_use]
    pub fn not_before(&self) -> u64 {
        self.inner.tbs_certificate.validity.not_before.to_unix_duration().as_secs()
    }

    /// End of the validity, in seconds since 1970.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.inner.tbs_certificate.validity.not_after.to_unix_duration().as_secs()
    }

    /// Refuses a certificate outside of its validity. `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`CertError::Validity`].
    pub fn check_validity(&self, now: u64) -> Result<(), CertError> {
        if (self.not_before()..=self.not_after()).contains(&now) {
            return Ok(());
        }
        let validity = &self.inner.tbs_certificate.validity;
        Err(CertError::Validity {
            not_before: validity.not_before.to_date_time().to_string(),
            not_after: validity.not_after.to_date_time().to_string(),
            now: time_text(now),
        })
    }

    /// Refuses a certificate that may not sign others.
    ///
    /// # Errors
    /// [`CertError::NotAuthority`], [`CertError::CriticalExtension`].
    pub fn check_authority(&self) -> Result<(), CertError> {
        self.check_critical(&[OID_BASIC_CONSTRAINTS, OID_KEY_USAGE])?;
        if self.signs_certificates()? {
            return Ok(());
        }
        Err(CertError::NotAuthority { subject: self.subject_cn() })
    }

    /// Refuses a certificate that is an authority's, or whose key may not sign data.
    ///
    /// # Errors
    /// [`CertError::NotEndEntity`], [`CertError::CriticalExtension`].
    pub fn check_end_entity(&self) -> Result<(), CertError> {
        self.check_critical(&[OID_BASIC_CONSTRAINTS, OID_KEY_USAGE])?;
        let usage = self.inner.tbs_certificate.get::<KeyUsage>()?;
        let signs = usage.is_none_or(|(_, usage)| usage.digital_signature());
        if !self.is_authority()? && signs {
            return Ok(());
        }
        Err(CertError::NotEndEntity { subject: self.subject_cn() })
    }

    /// Whether basic constraints and key usage let it sign certificates (RFC 5280, 4.2.1.9 and 4.2.1.3).
    ///
    /// # Errors
    /// [`CertError::Der`] when one of them cannot be read.
    pub fn signs_certificates(&self) -> Result<bool, CertError> {
        let usage = self.inner.tbs_certificate.get::<KeyUsage>()?;
        Ok(self.is_authority()? && usage.is_none_or(|(_, usage)| usage.key_cert_sign()))
    }

    /// How many issuers may stand between it and an end entity (RFC 5280, 4.2.1.9); any number when it does not say.
    ///
    /// # Errors
    /// [`CertError::Der`] when the extension cannot be read.
    pub fn path_length(&self) -> Result<Option<u8>, CertError> {
        let constraints = self.inner.tbs_certificate.get::<BasicConstraints>()?;
        Ok(constraints.and_then(|(_, basic)| basic.path_len_constraint))
    }

    fn is_authority(&self) -> Result<bool, CertError> {
        let constraints = self.inner.tbs_certificate.get::<BasicConstraints>()?;
        Ok(constraints.is_some_and(|(_, basic)| basic.ca))
    }

    /// Value of an extension; one that stands there twice is refused. `name` is for the message.
    ///
    /// # Errors
    /// [`CertError::BadExtension`].
    pub fn extension(&self, name: &'static str, oid: ObjectIdentifier) -> Result<Option<&[u8]>, CertError> {
        let all = self.inner.tbs_certificate.extensions.as_deref().unwrap_or_default();
        let mut found = all.iter().filter(|extension| extension.extn_id == oid);
        let first = found.next();
        if found.next().is_some() {
            return Err(CertError::BadExtension { name });
        }
        Ok(first.map(|extension| extension.extn_value.as_bytes()))
    }

    /// Refuses critical extensions other than `known`.
    ///
    /// # Errors
    /// [`CertError::CriticalExtension`] names the first.
    pub fn check_critical(&self, known: &[ObjectIdentifier]) -> Result<(), CertError> {
        let all = self.inner.tbs_certificate.extensions.as_deref().unwrap_or_default();
        match all.iter().find(|extension| extension.critical && !known.contains(&extension.extn_id)) {
            Some(extension) => Err(CertError::CriticalExtension { oid: extension.extn_id }),
            None => Ok(()),
        }
    }
}

/// The first of the three members of a certificate or revocation list. The signature covers the bytes
/// as they came, not what re-encoding would make of them.
pub(crate) fn signed_part(bytes: &[u8]) -> der::Result<Vec<u8>> {
    SliceReader::new(bytes)?.sequence(|fields| {
        let signed = fields.tlv_bytes()?.to_vec();
        fields.tlv_bytes()?;
        fields.tlv_bytes()?;
        Ok(signed)
    })
}

/// A time in seconds since 1970, for messages.
pub(crate) fn time_text(seconds: u64) -> String {
    der::DateTime::from_unix_duration(std::time::Duration::from_secs(seconds))
        .map_or_else(|_| format!("{seconds} s after 1970"), |time| time.to_string())
}

/// Common name in a distinguished name, empty when there is none.
pub(crate) fn common_name(name: &Name) -> String {
    name.0
        .iter()
        .flat_map(|rdn| rdn.0.iter())
        .find(|attribute| attribute.oid == OID_COMMON_NAME)
        .map(|attribute| String::from_utf8_lossy(attribute.value.value()).into_owned())
        .unwrap_or_default()
}
