//! Public keys of signers and of the log, and what each kind verifies with.
//!
//! The kinds and hashes are those that cosign verifies images with: ECDSA on P-256 and RSA (PKCS #1 v1.5) with SHA-256, Ed25519, and on
//! P-384 both SHA-256 (cosign before version 3) and SHA-384 (since). RSASSA-PSS is none of cosign's and has no place here. A signature
//! never chooses: the key's kind does.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use kata_cc_x509::{OID_EC_PUBLIC_KEY, OID_P256, OID_P384, OID_RSA, ObjectIdentifier};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use x509_cert::der::Decode as _;
use x509_cert::spki::SubjectPublicKeyInfoRef;

use crate::digest::Digest;

const OID_ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// Most bytes of a key file or of a file of certificates.
pub(super) const MAX_KEY: usize = 64 << 10;

type Algorithms = &'static [&'static dyn VerificationAlgorithm];

static P256: Algorithms = &[&ECDSA_P256_SHA256_ASN1];
static P384: Algorithms = &[&ECDSA_P384_SHA384_ASN1, &ECDSA_P384_SHA256_ASN1];
static RSA: Algorithms = &[&RSA_PKCS1_2048_8192_SHA256];
static ED: Algorithms = &[&ED25519];

/// A public key.
#[derive(Clone)]
pub(super) struct PublicKey {
    der: Vec<u8>,
    raw: Vec<u8>,
    algorithms: Algorithms,
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint())
    }
}

impl PublicKey {
    /// Reads PEM text with one `PUBLIC KEY`.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        if pem.len() > MAX_KEY {
            return Err(format!("it has {} bytes, at most {MAX_KEY} are read", pem.len()));
        }
        let mut keys = SubjectPublicKeyInfoDer::pem_slice_iter(pem);
        let first = keys.next().ok_or("it holds no PEM text of a PUBLIC KEY")?;
        let first = first.map_err(|error| format!("its PEM text is broken: {error}"))?;
        if keys.next().is_some() {
            return Err("it holds several keys; name each by itself".to_owned());
        }
        Self::from_der(&first)
    }

    /// Reads a SubjectPublicKeyInfo.
    pub(super) fn from_der(der: &[u8]) -> Result<Self, String> {
        let info = SubjectPublicKeyInfoRef::from_der(der)
            .map_err(|error| format!("it is no public key: {error}"))?;
        let algorithms = algorithms(&info)?;
        let raw = info.subject_public_key.as_bytes().ok_or("its key is no whole bytes")?.to_vec();
        Ok(Self { der: der.to_vec(), raw, algorithms })
    }

    pub(super) fn der(&self) -> &[u8] {
        &self.der
    }

    /// Whether this key made `signature` over `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let one = |algorithm: &&'static dyn VerificationAlgorithm| {
            UnparsedPublicKey::new(*algorithm, &self.raw).verify(message, signature).is_ok()
        };
        self.algorithms.iter().any(one)
    }

    /// SHA-256 over the key, for messages.
    pub(super) fn fingerprint(&self) -> String {
        Digest::sha256(&self.der).to_string()
    }
}

fn algorithms(info: &SubjectPublicKeyInfoRef<'_>) -> Result<Algorithms, String> {
    let oid = info.algorithm.oid;
    let curve = info.algorithm.parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
    match curve {
        _ if oid == OID_RSA => Ok(RSA),
        _ if oid == OID_ED25519 => Ok(ED),
        Some(curve) if oid == OID_EC_PUBLIC_KEY && curve == OID_P256 => Ok(P256),
        Some(curve) if oid == OID_EC_PUBLIC_KEY && curve == OID_P384 => Ok(P384),
        curve => {
            let kind = curve.unwrap_or(oid);
            Err(format!("a key of kind {kind} is not known; known are ECDSA P-256 and P-384, RSA, Ed25519"))
        }
    }
}

/// The names of keys, for messages.
pub(super) fn names(keys: &[PublicKey]) -> String {
    let names: Vec<_> = keys.iter().take(8).map(|key| format!("key {}", key.fingerprint())).collect();
    let more = if keys.len() > 8 { " and others" } else { "" };
    format!("{}{more}", names.join(" or "))
}
