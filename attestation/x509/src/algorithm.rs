//! The signature algorithms that makers of TEEs use, each with its one exact form.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PSS_2048_8192_SHA384, UnparsedPublicKey,
    VerificationAlgorithm,
};
use x509_cert::der::Encode;
use x509_cert::der::asn1::{BitString, ObjectIdentifier};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use crate::error::AlgorithmError;

/// `id-RSASSA-PSS`.
pub const OID_RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
/// `id-ecPublicKey`.
pub const OID_EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
/// `prime256v1` (P-256).
pub const OID_P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
/// `secp384r1` (P-384).
pub const OID_P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
/// `rsaEncryption`.
pub const OID_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// `ecdsa-with-SHA256`.
pub const OID_ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
/// `ecdsa-with-SHA384`.
pub const OID_ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");

/// `RSASSA-PSS-params` {SHA-384, MGF1 SHA-384, salt 48}, the DER that AMD writes in VEKs.
pub const PSS_PARAMS: &[u8] = b"\x30\x34\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
\xa2\x03\x02\x01\x30";

/// The same with the trailer field written out, as in ARK, ASK and ASVK.
const PSS_PARAMS_WITH_TRAILER: &[u8] = b"\x30\x39\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
\xa2\x03\x02\x01\x30\xa3\x03\x02\x01\x01";

/// What a certificate or a revocation list has to be signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureAlgorithm {
    /// RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes (AMD).
    RsaPssSha384,
    /// ECDSA on P-256 with SHA-256 (Intel).
    EcdsaP256Sha256,
    /// ECDSA on P-384 with SHA-384.
    EcdsaP384Sha384,
}

impl SignatureAlgorithm {
    /// Name for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RsaPssSha384 => "RSASSA-PSS with SHA-384 and salt 48",
            Self::EcdsaP256Sha256 => "ECDSA on P-256 with SHA-256",
            Self::EcdsaP384Sha384 => "ECDSA on P-384 with SHA-384",
        }
    }

    /// Verifies a signature over `signed`: both places that name the algorithm name this one, and the key
    /// is of its kind. `Ok(false)` means a signature of the right form that does not verify.
    pub(crate) fn verify(
        self,
        signed: &[u8],
        signature: &BitString,
        named: [&AlgorithmIdentifierOwned; 2],
        key: &SubjectPublicKeyInfoOwned,
    ) -> Result<bool, AlgorithmError> {
        let [outer, inner] = named;
        self.check_identifier(outer)?;
        self.check_identifier(inner)?;
        if outer != inner {
            return Err(AlgorithmError::Differ);
        }
        let key = self.public_key(key)?;
        // A signature is whole bytes; one that claims unused bits is not what was signed.
        let Some(signature) = signature.as_bytes() else { return Ok(false) };
        Ok(UnparsedPublicKey::new(self.implementation(), key).verify(signed, signature).is_ok())
    }

    fn implementation(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::RsaPssSha384 => &RSA_PSS_2048_8192_SHA384,
            Self::EcdsaP256Sha256 => &ECDSA_P256_SHA256_ASN1,
            Self::EcdsaP384Sha384 => &ECDSA_P384_SHA384_ASN1,
        }
    }

    fn check_identifier(self, named: &AlgorithmIdentifierOwned) -> Result<(), AlgorithmError> {
        let parameters = named.parameters.as_ref().map(Encode::to_der).transpose()?;
        let right = match self {
            Self::RsaPssSha384 => {
                let parameters = parameters.as_deref();
                named.oid == OID_RSASSA_PSS
                    && (parameters == Some(PSS_PARAMS) || parameters == Some(PSS_PARAMS_WITH_TRAILER))
            }
            Self::EcdsaP256Sha256 => named.oid == OID_ECDSA_SHA256 && parameters.is_none(),
            Self::EcdsaP384Sha384 => named.oid == OID_ECDSA_SHA384 && parameters.is_none(),
        };
        if right {
            return Ok(());
        }
        Err(AlgorithmError::Signature { seen: named.oid, expected: self.name() })
    }

    fn public_key(self, key: &SubjectPublicKeyInfoOwned) -> Result<&[u8], AlgorithmError> {
        match self {
            Self::RsaPssSha384 => rsa_key(key),
            Self::EcdsaP256Sha256 => ec_key(key, OID_P256, "an elliptic-curve key on P-256"),
            Self::EcdsaP384Sha384 => ec_key(key, OID_P384, "an elliptic-curve key on P-384"),
        }
    }
}

fn rsa_key(key: &SubjectPublicKeyInfoOwned) -> Result<&[u8], AlgorithmError> {
    let seen = key.algorithm.oid;
    if seen != OID_RSA && seen != OID_RSASSA_PSS {
        return Err(AlgorithmError::Key { seen, expected: "an RSA key" });
    }
    Ok(key.subject_public_key.raw_bytes())
}

/// The point of an elliptic-curve key on `curve`.
pub(crate) fn ec_key<'a>(
    key: &'a SubjectPublicKeyInfoOwned,
    curve: ObjectIdentifier,
    expected: &'static str,
) -> Result<&'a [u8], AlgorithmError> {
    let named = key.algorithm.parameters.as_ref().and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
    if key.algorithm.oid != OID_EC_PUBLIC_KEY || named != Some(curve) {
        return Err(AlgorithmError::Key { seen: named.unwrap_or(key.algorithm.oid), expected });
    }
    Ok(key.subject_public_key.raw_bytes())
}
