//! A certificate signing request (PKCS#10, RFC 2986): which key, proof that the caller has it, which names it asks for.
//!
//! Subject and other extensions of the request are not read: the certificate authority decides on them. A request to
//! become a certificate authority is refused.

use std::net::IpAddr;

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use thiserror::Error;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier, UintRef};
use x509_cert::der::{Decode as _, Encode as _, Reader as _, SliceReader};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, SubjectAltName};
use x509_cert::request::{CertReq, ExtensionReq};

/// Most bytes of a request, PEM or DER.
pub(crate) const MAX_CSR: usize = 16 << 10;
/// Most names in a request.
pub(crate) const MAX_NAMES: usize = 32;

const EXTENSION_REQUEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.14");
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const ECDSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4");
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const RSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const RSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");

/// Why a request was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum CsrError {
    /// Too large.
    #[error("the signing request has {0} bytes, at most {MAX_CSR} are read")]
    Large(usize),
    /// Not a request.
    #[error("the signing request is not understood ({0}): expected PKCS#10, as PEM or DER")]
    Form(&'static str),
    /// A key that is not certified.
    #[error(
        "the key of the signing request must be EC P-256, P-384 or P-521, RSA of 2048 to 8192 bits, or Ed25519"
    )]
    Key,
    /// A signature algorithm that does not go with the key.
    #[error("the signature algorithm {0} of the signing request does not go with its key")]
    Algorithm(String),
    /// The caller has not shown that it has the key.
    #[error("the signature of the signing request is wrong: the caller has not shown that it has the key")]
    Signature,
    /// A name of a kind that is not certified.
    #[error("the signing request asks for a name that is no DNS name, URI or IP address")]
    Name,
    /// Too many names.
    #[error("the signing request asks for {0} names, at most {MAX_NAMES} go")]
    Names(usize),
    /// It wants to issue certificates itself.
    #[error("the signing request asks for a certificate authority, only end entities are certified")]
    Authority,
}

/// A name that a certificate may carry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SanName {
    /// DNS name, lower case.
    Dns(String),
    /// URI.
    Uri(String),
    /// IP address.
    Ip(IpAddr),
}

impl std::fmt::Display for SanName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Uri(uri) => write!(f, "uri:{uri}"),
            Self::Ip(address) => write!(f, "ip:{address}"),
        }
    }
}

/// The key of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CsrKey {
    /// Curve as in JWK, uncompressed point.
    Ec {
        /// `P-256`, `P-384`, `P-521`.
        curve: &'static str,
        /// 4, x, y.
        point: Vec<u8>,
    },
    /// Modulus and exponent, big-endian without leading zeros.
    Rsa {
        /// Modulus.
        n: Vec<u8>,
        /// Exponent.
        e: Vec<u8>,
    },
    /// 32 bytes.
    Ed25519(Vec<u8>),
}

/// A request whose signature holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Csr {
    /// SubjectPublicKeyInfo, byte for byte.
    pub(crate) spki: Vec<u8>,
    /// The same, taken apart.
    pub(crate) key: CsrKey,
    /// Names that it asks for.
    pub(crate) names: Vec<SanName>,
}

impl Csr {
    /// Reads and checks a request, PEM or DER.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, CsrError> {
        if bytes.len() > MAX_CSR {
            return Err(CsrError::Large(bytes.len()));
        }
        let from_pem;
        let der = if bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
            let (label, der) =
                x509_cert::der::pem::decode_vec(bytes.trim_ascii()).map_err(|_| CsrError::Form("PEM"))?;
            if !matches!(label, "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
                return Err(CsrError::Form("PEM of something else"));
            }
            from_pem = der;
            &from_pem[..]
        } else {
            bytes
        };
        Self::from_der(der)
    }

    fn from_der(der: &[u8]) -> Result<Self, CsrError> {
        let request = CertReq::from_der(der).map_err(|_| CsrError::Form("DER"))?;
        let (info, spki) = raw(der).map_err(|_| CsrError::Form("DER"))?;
        let key = &request.info.public_key;
        let bits = key.subject_public_key.as_bytes().ok_or(CsrError::Key)?;
        let parameters =
            key.algorithm.parameters.as_ref().and_then(|p| ObjectIdentifier::try_from(AnyRef::from(p)).ok());
        let key = read_key(key.algorithm.oid, parameters, bits)?;
        let algorithm = algorithm(&key, request.algorithm.oid)
            .ok_or_else(|| CsrError::Algorithm(request.algorithm.oid.to_string()))?;
        let signature = request.signature.as_bytes().ok_or(CsrError::Signature)?;
        UnparsedPublicKey::new(algorithm, bits).verify(info, signature).map_err(|_| CsrError::Signature)?;
        let names = names(&request)?;
        Ok(Self { spki: spki.to_vec(), key, names })
    }
}

/// What is signed, and the key, as they stand in the request.
fn raw(der: &[u8]) -> x509_cert::der::Result<(&[u8], &[u8])> {
    let mut reader = SliceReader::new(der)?;
    let header = x509_cert::der::Header::decode(&mut reader)?;
    let mut contents = SliceReader::new(reader.read_slice(header.length)?)?;
    let info = contents.tlv_bytes()?;
    let mut reader = SliceReader::new(info)?;
    let header = x509_cert::der::Header::decode(&mut reader)?;
    let mut contents = SliceReader::new(reader.read_slice(header.length)?)?;
    // Version, subject.
    contents.tlv_bytes()?;
    contents.tlv_bytes()?;
    Ok((info, contents.tlv_bytes()?))
}

fn read_key(
    algorithm: ObjectIdentifier,
    parameters: Option<ObjectIdentifier>,
    bits: &[u8],
) -> Result<CsrKey, CsrError> {
    let point = |curve, length: usize| {
        let fine = bits.len() == 1 + 2 * length && bits.first() == Some(&4);
        fine.then(|| CsrKey::Ec { curve, point: bits.to_vec() }).ok_or(CsrError::Key)
    };
    match (algorithm, parameters) {
        (EC, Some(P256)) => point("P-256", 32),
        (EC, Some(P384)) => point("P-384", 48),
        (EC, Some(P521)) => point("P-521", 66),
        (ED25519, None) if bits.len() == 32 => Ok(CsrKey::Ed25519(bits.to_vec())),
        (RSA, None) => {
            let mut reader = SliceReader::new(bits).map_err(|_| CsrError::Key)?;
            let read = reader.sequence(|reader| {
                let n: UintRef<'_> = reader.decode()?;
                let e: UintRef<'_> = reader.decode()?;
                Ok((n.as_bytes().to_vec(), e.as_bytes().to_vec()))
            });
            let (n, e) = read.map_err(|_| CsrError::Key)?;
            if !reader.is_finished() || !(256..=1024).contains(&n.len()) || e.len() > 8 {
                return Err(CsrError::Key);
            }
            Ok(CsrKey::Rsa { n, e })
        }
        _ => Err(CsrError::Key),
    }
}

fn algorithm(key: &CsrKey, oid: ObjectIdentifier) -> Option<&'static dyn VerificationAlgorithm> {
    let curve = match key {
        CsrKey::Ec { curve, .. } => *curve,
        CsrKey::Rsa { .. } => "RSA",
        CsrKey::Ed25519(_) => "Ed25519",
    };
    Some(match (curve, oid) {
        ("P-256", ECDSA_SHA256) => &signature::ECDSA_P256_SHA256_ASN1,
        ("P-256", ECDSA_SHA384) => &signature::ECDSA_P256_SHA384_ASN1,
        ("P-384", ECDSA_SHA256) => &signature::ECDSA_P384_SHA256_ASN1,
        ("P-384", ECDSA_SHA384) => &signature::ECDSA_P384_SHA384_ASN1,
        ("P-521", ECDSA_SHA256) => &signature::ECDSA_P521_SHA256_ASN1,
        ("P-521", ECDSA_SHA384) => &signature::ECDSA_P521_SHA384_ASN1,
        ("P-521", ECDSA_SHA512) => &signature::ECDSA_P521_SHA512_ASN1,
        ("RSA", RSA_SHA256) => &signature::RSA_PKCS1_2048_8192_SHA256,
        ("RSA", RSA_SHA384) => &signature::RSA_PKCS1_2048_8192_SHA384,
        ("RSA", RSA_SHA512) => &signature::RSA_PKCS1_2048_8192_SHA512,
        ("Ed25519", ED25519) => &signature::ED25519,
        _ => return None,
    })
}

fn names(request: &CertReq) -> Result<Vec<SanName>, CsrError> {
    let form = |_| CsrError::Form("its extensions");
    let mut names = Vec::new();
    for attribute in request.info.attributes.iter().filter(|attribute| attribute.oid == EXTENSION_REQUEST) {
        for value in attribute.values.iter() {
            let extensions = ExtensionReq::from_der(&value.to_der().map_err(form)?).map_err(form)?;
            for extension in &extensions.0 {
                let value = extension.extn_value.as_bytes();
                if extension.extn_id == BASIC_CONSTRAINTS {
                    if BasicConstraints::from_der(value).map_err(form)?.ca {
                        return Err(CsrError::Authority);
                    }
                } else if extension.extn_id == SUBJECT_ALT_NAME {
                    for name in SubjectAltName::from_der(value).map_err(form)?.0 {
                        names.push(read_name(&name)?);
                    }
                }
            }
        }
    }
    if names.len() > MAX_NAMES {
        return Err(CsrError::Names(names.len()));
    }
    Ok(names)
}

fn read_name(name: &GeneralName) -> Result<SanName, CsrError> {
    match name {
        GeneralName::DnsName(name) => Ok(SanName::Dns(name.as_str().to_ascii_lowercase())),
        GeneralName::UniformResourceIdentifier(uri) => Ok(SanName::Uri(uri.as_str().to_owned())),
        GeneralName::IpAddress(bytes) => {
            let bytes = bytes.as_bytes();
            let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
            address.map(SanName::Ip).map_err(|_| CsrError::Name)
        }
        _ => Err(CsrError::Name),
    }
}
