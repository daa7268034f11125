//! X.509 certificates as AMD issues them for SEV-SNP (AMD 57230, chapter 3).
//!
//! Their peculiarities: serial number 0, RSASSA-PSS signatures (SHA-384, MGF1 SHA-384, salt 48) by
//! 4096-bit keys, AMD's own extensions under 1.3.6.1.4.1.3704.1, of which the hardware id is not
//! DER in older certificates. General-purpose verifiers stumble over one or the other, so the rules
//! are here: structure from `x509-cert`, signatures over the bytes as they came, by aws-lc.
//!
//! Limits: [`MAX_CERT`] bytes for a certificate, [`MAX_CHAIN`] certificates in a PEM bundle.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA384, UnparsedPublicKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_cert::der::asn1::{Ia5String, ObjectIdentifier, OctetString};
use x509_cert::der::{self, Decode, Encode, Reader, SliceReader};
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::name::Name;
use x509_cert::spki::AlgorithmIdentifierOwned;

use crate::tcb::Tcb;

/// Most bytes of one certificate.
pub const MAX_CERT: usize = 16 * 1024;

/// Most certificates in one PEM bundle.
pub const MAX_CHAIN: usize = 8;

/// `id-RSASSA-PSS`.
pub const OID_RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
/// `id-ecPublicKey`.
pub const OID_EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// `secp384r1`.
pub const OID_P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
/// `rsaEncryption`.
pub const OID_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// `commonName`.
pub const OID_COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

const OID_BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const OID_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");

/// AMD's extensions (57230, table "Certificate extensions"); none is critical.
pub mod oid {
    use super::ObjectIdentifier;

    /// Version of the extension set: 0, from Turin on 1.
    pub const STRUCT_VERSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.1");
    /// Product name, for example `Milan-B0`.
    pub const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
    /// Boot loader version.
    pub const BL_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
    /// TEE version.
    pub const TEE_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
    /// SNP firmware version.
    pub const SNP_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
    /// Microcode version.
    pub const UCODE_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
    /// FMC version, from Turin on.
    pub const FMC_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");
    /// Chip id (VCEK).
    pub const HW_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
    /// Provider id (VLEK).
    pub const CSP_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.5");
}

/// `RSASSA-PSS-params` {SHA-384, MGF1 SHA-384, salt 48}, the DER that AMD writes in VEKs.
pub const PSS_PARAMS: &[u8] = b"\x30\x34\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
\xa2\x03\x02\x01\x30";

/// The same with the trailer field written out, as in ARK, ASK and ASVK.
const PSS_PARAMS_WITH_TRAILER: &[u8] = b"\x30\x39\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
\xa2\x03\x02\x01\x30\xa3\x03\x02\x01\x01";

/// A certificate that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// Longer than any certificate AMD issues.
    #[error("certificate has {seen} bytes, at most {MAX_CERT} are taken")]
    TooLong {
        /// Bytes seen.
        seen: usize,
    },
    /// Not DER or not a certificate.
    #[error("certificate is malformed: {0}")]
    Der(#[from] der::Error),
    /// Not PEM.
    #[error("PEM text of the certificate is broken: {why}")]
    Pem {
        /// What is wrong.
        why: String,
    },
    /// No or too many certificates in a PEM bundle.
    #[error("PEM bundle has {seen} certificates, expected 1 to {MAX_CHAIN}")]
    Bundle {
        /// Certificates seen.
        seen: usize,
    },
    /// Signed by an algorithm that AMD does not use.
    #[error("certificate's signature algorithm is {seen}, expected RSASSA-PSS with SHA-384 and salt 48")]
    SignatureAlgorithm {
        /// Object identifier seen.
        seen: ObjectIdentifier,
    },
    /// The two places that name the signature algorithm differ.
    #[error("certificate names two different signature algorithms")]
    AlgorithmsDiffer,
    /// The key is not of the kind needed.
    #[error("certificate's key is {seen}, expected {expected}")]
    KeyAlgorithm {
        /// Object identifier seen.
        seen: ObjectIdentifier,
        /// What is needed.
        expected: &'static str,
    },
    /// An intermediate or root that may not sign certificates.
    #[error("certificate of {subject} may not sign certificates")]
    NotAuthority {
        /// Common name.
        subject: String,
    },
    /// A critical extension this software does not know.
    #[error("certificate has an unknown critical extension {oid}")]
    CriticalExtension {
        /// Which.
        oid: ObjectIdentifier,
    },
    /// Not yet or no longer valid.
    #[error("certificate is valid from {not_before} to {not_after}, the time is {now}")]
    Validity {
        /// Start.
        not_before: String,
        /// End.
        not_after: String,
        /// Time of the check.
        now: String,
    },
    /// A VEK without an extension that every VEK has.
    #[error("certificate lacks the extension {name} ({oid})")]
    MissingExtension {
        /// AMD's name of it.
        name: &'static str,
        /// Its identifier.
        oid: ObjectIdentifier,
    },
    /// An extension with a value out of form.
    #[error("extension {name} of the certificate has a malformed value")]
    BadExtension {
        /// AMD's name of it.
        name: &'static str,
    },
}

/// A parsed certificate together with the bytes that its signature covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    tbs: Vec<u8>,
    inner: x509_cert::Certificate,
}

/// What AMD writes into the certificate of an endorsement key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VekExtensions {
    /// Version of the extension set.
    pub struct_version: u8,
    /// Product name as written.
    pub product_name: String,
    /// Versions the key was derived for.
    pub tcb: Tcb,
    /// Chip id: 64 bytes, from Turin on 8 (VCEK only).
    pub hw_id: Option<Vec<u8>>,
    /// Provider id (VLEK only).
    pub csp_id: Option<String>,
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
        let mut reader = SliceReader::new(bytes)?;
        // The signature covers the bytes as they came, not what re-encoding would make of them.
        let tbs = reader.sequence(|fields| {
            let tbs = fields.tlv_bytes()?.to_vec();
            fields.tlv_bytes()?;
            fields.tlv_bytes()?;
            Ok(tbs)
        })?;
        Ok(Self { der: bytes.to_vec(), tbs, inner })
    }

    /// Reads a DER certificate, or the first of a PEM bundle.
    ///
    /// # Errors
    /// As [`Self::from_der`] and [`Self::chain_from_pem`].
    pub fn from_der_or_pem(bytes: &[u8]) -> Result<Self, CertError> {
        if bytes.starts_with(b"-----BEGIN") {
            let chain = Self::chain_from_pem(bytes)?;
            return chain.into_iter().next().ok_or(CertError::Bundle { seen: 0 });
        }
        Self::from_der(bytes)
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

    /// Common name of the subject, empty when there is none.
    #[must_use]
    pub fn subject_cn(&self) -> String {
        common_name(&self.inner.tbs_certificate.subject)
    }

    /// Common name of the issuer, empty when there is none.
    #[must_use]
    pub fn issuer_cn(&self) -> String {
        common_name(&self.inner.tbs_certificate.issuer)
    }

    /// True when `issuer`'s whole subject name is this certificate's issuer name.
    #[must_use]
    pub fn names_issuer(&self, issuer: &Self) -> bool {
        self.inner.tbs_certificate.issuer == issuer.inner.tbs_certificate.subject
    }

    /// SHA-256 over the public key structure, in hex: what a root is pinned by and shown as.
    ///
    /// # Errors
    /// [`CertError::Der`] when the key cannot be encoded again.
    pub fn key_fingerprint(&self) -> Result<String, CertError> {
        let spki = self.inner.tbs_certificate.subject_public_key_info.to_der()?;
        Ok(hex::encode(digest(&SHA256, &spki)))
    }

    /// The P-384 public key as an uncompressed point.
    ///
    /// # Errors
    /// [`CertError::KeyAlgorithm`] for any other key.
    pub fn p384_public_key(&self) -> Result<&[u8], CertError> {
        let spki = &self.inner.tbs_certificate.subject_public_key_info;
        let curve =
            spki.algorithm.parameters.as_ref().and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        if spki.algorithm.oid != OID_EC_PUBLIC_KEY || curve != Some(OID_P384) {
            return Err(CertError::KeyAlgorithm {
                seen: curve.unwrap_or(spki.algorithm.oid),
                expected: "an elliptic-curve key on P-384",
            });
        }
        Ok(spki.subject_public_key.raw_bytes())
    }

    /// Whether `issuer`'s key signed this certificate, by AMD's one algorithm. `Ok(false)` means a
    /// signature of the right form that does not verify.
    ///
    /// # Errors
    /// [`CertError`] when algorithm or key are not those AMD uses.
    pub fn signed_by(&self, issuer: &Self) -> Result<bool, CertError> {
        check_pss(&self.inner.signature_algorithm)?;
        check_pss(&self.inner.tbs_certificate.signature)?;
        if self.inner.signature_algorithm != self.inner.tbs_certificate.signature {
            return Err(CertError::AlgorithmsDiffer);
        }
        let spki = &issuer.inner.tbs_certificate.subject_public_key_info;
        if spki.algorithm.oid != OID_RSA && spki.algorithm.oid != OID_RSASSA_PSS {
            return Err(CertError::KeyAlgorithm { seen: spki.algorithm.oid, expected: "an RSA key" });
        }
        let key = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, spki.subject_public_key.raw_bytes());
        Ok(key.verify(&self.tbs, self.inner.signature.raw_bytes()).is_ok())
    }

    /// Refuses a certificate outside of its validity. `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`CertError::Validity`].
    pub fn check_validity(&self, now: u64) -> Result<(), CertError> {
        let validity = &self.inner.tbs_certificate.validity;
        let (start, end) = (
            validity.not_before.to_unix_duration().as_secs(),
            validity.not_after.to_unix_duration().as_secs(),
        );
        if (start..=end).contains(&now) {
            return Ok(());
        }
        Err(CertError::Validity {
            not_before: validity.not_before.to_date_time().to_string(),
            not_after: validity.not_after.to_date_time().to_string(),
            now: der::DateTime::from_unix_duration(std::time::Duration::from_secs(now))
                .map_or_else(|_| format!("{now} s after 1970"), |time| time.to_string()),
        })
    }

    /// Refuses a certificate that may not sign others.
    ///
    /// # Errors
    /// [`CertError::NotAuthority`], [`CertError::CriticalExtension`].
    pub fn check_authority(&self) -> Result<(), CertError> {
        self.check_critical(&[OID_BASIC_CONSTRAINTS, OID_KEY_USAGE])?;
        let tbs = &self.inner.tbs_certificate;
        let constraints = tbs.get::<BasicConstraints>()?;
        let usage = tbs.get::<KeyUsage>()?;
        let authority = constraints.is_some_and(|(_, basic)| basic.ca);
        let signs = usage.is_none_or(|(_, usage)| usage.key_cert_sign());
        if authority && signs {
            return Ok(());
        }
        Err(CertError::NotAuthority { subject: self.subject_cn() })
    }

    /// AMD's extensions of an endorsement-key certificate.
    ///
    /// # Errors
    /// [`CertError`] when one is missing, doubled or malformed, or an unknown one is critical.
    pub fn vek_extensions(&self) -> Result<VekExtensions, CertError> {
        self.check_critical(&[])?;
        let struct_version = self.integer("structVersion", oid::STRUCT_VERSION)?;
        let fmc = match self.extension("fmcSPL", oid::FMC_SPL)? {
            Some(_) => Some(self.integer("fmcSPL", oid::FMC_SPL)?),
            None => None,
        };
        let tcb = Tcb {
            fmc,
            bootloader: self.integer("blSPL", oid::BL_SPL)?,
            tee: self.integer("teeSPL", oid::TEE_SPL)?,
            snp: self.integer("snpSPL", oid::SNP_SPL)?,
            microcode: self.integer("ucodeSPL", oid::UCODE_SPL)?,
        };
        let product_name = self
            .extension("productName1", oid::PRODUCT_NAME)?
            .ok_or(CertError::MissingExtension { name: "productName1", oid: oid::PRODUCT_NAME })
            .and_then(|value| ia5("productName1", value))?;
        let hw_id = self.extension("hwID", oid::HW_ID)?.map(hardware_id).transpose()?;
        let csp_id = self.extension("cspID", oid::CSP_ID)?.map(|value| ia5("cspID", value)).transpose()?;
        Ok(VekExtensions { struct_version, product_name, tcb, hw_id, csp_id })
    }

    /// Value of an extension; one that stands there twice is refused.
    fn extension(&self, name: &'static str, oid: ObjectIdentifier) -> Result<Option<&[u8]>, CertError> {
        let all = self.inner.tbs_certificate.extensions.as_deref().unwrap_or_default();
        let mut found = all.iter().filter(|extension| extension.extn_id == oid);
        let first = found.next();
        if found.next().is_some() {
            return Err(CertError::BadExtension { name });
        }
        Ok(first.map(|extension| extension.extn_value.as_bytes()))
    }

    fn integer(&self, name: &'static str, oid: ObjectIdentifier) -> Result<u8, CertError> {
        let value = self.extension(name, oid)?.ok_or(CertError::MissingExtension { name, oid })?;
        u8::from_der(value).map_err(|_| CertError::BadExtension { name })
    }

    fn check_critical(&self, known: &[ObjectIdentifier]) -> Result<(), CertError> {
        let all = self.inner.tbs_certificate.extensions.as_deref().unwrap_or_default();
        match all.iter().find(|extension| extension.critical && !known.contains(&extension.extn_id)) {
            Some(extension) => Err(CertError::CriticalExtension { oid: extension.extn_id }),
            None => Ok(()),
        }
    }
}

/// The hardware id is raw in older certificates and an OCTET STRING in newer ones.
fn hardware_id(value: &[u8]) -> Result<Vec<u8>, CertError> {
    let raw = match value.len() {
        64 | 8 => value.to_vec(),
        _ => OctetString::from_der(value).map_err(|_| CertError::BadExtension { name: "hwID" })?.into_bytes(),
    };
    if raw.len() == 64 || raw.len() == 8 {
        return Ok(raw);
    }
    Err(CertError::BadExtension { name: "hwID" })
}

fn ia5(name: &'static str, value: &[u8]) -> Result<String, CertError> {
    Ia5String::from_der(value).map(|text| text.to_string()).map_err(|_| CertError::BadExtension { name })
}

fn check_pss(algorithm: &AlgorithmIdentifierOwned) -> Result<(), CertError> {
    let refused = CertError::SignatureAlgorithm { seen: algorithm.oid };
    if algorithm.oid != OID_RSASSA_PSS {
        return Err(refused);
    }
    let params = algorithm.parameters.as_ref().map(Encode::to_der).transpose()?.unwrap_or_default();
    if params == PSS_PARAMS || params == PSS_PARAMS_WITH_TRAILER { Ok(()) } else { Err(refused) }
}

fn common_name(name: &Name) -> String {
    name.0
        .iter()
        .flat_map(|rdn| rdn.0.iter())
        .find(|attribute| attribute.oid == OID_COMMON_NAME)
        .map(|attribute| String::from_utf8_lossy(attribute.value.value()).into_owned())
        .unwrap_or_default()
}
