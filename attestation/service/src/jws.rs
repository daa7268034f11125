//! Signing and checking compact JWS (RFC 7515), no more of it than tokens need.
//!
//! Signs ES256, ES384 and EdDSA; checks those and RS256. The algorithm is a property of the key, never of the token: a
//! token whose header names another algorithm than its key's is refused, so there is no confusion of algorithms
//! (RFC 8725, 3.1). Claims are not judged here.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P256_SHA384_ASN1,
    ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING,
    ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey,
};
use kata_cc_kbs_protocol::{base64_url, from_base64_url};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};
use thiserror::Error;
use zeroize::Zeroizing;

/// Most bytes of a token that are read.
pub const MAX_TOKEN: usize = 128 << 10;

/// Why a key or token was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum JwsError {
    /// The key is in no form that is read.
    #[error("{0} is not a key that can be used: expected {1}")]
    Key(&'static str, &'static str),
    /// The token is not three parts of base64url with a JSON header.
    #[error("token is not a compact JWS: {0}")]
    Format(&'static str),
    /// The token was signed by a key that is not trusted.
    #[error("token is signed by a key that is not trusted")]
    UnknownKey,
    /// The header names another algorithm than the key's.
    #[error("token names the algorithm {seen:?}, its key is for {expected}")]
    Algorithm {
        /// What the header says.
        seen: String,
        /// What the key is for.
        expected: &'static str,
    },
    /// The signature is wrong.
    #[error("signature of the token is wrong")]
    Signature,
    /// The cryptographic library failed.
    #[error("signing failed")]
    Signing,
}

/// A private key that signs tokens.
pub enum SigningKey {
    /// P-256, ES256.
    Es256(EcdsaKeyPair),
    /// P-384, ES384.
    Es384(EcdsaKeyPair),
    /// Ed25519, EdDSA.
    EdDsa(Ed25519KeyPair),
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({}, ..)", self.algorithm())
    }
}

impl SigningKey {
    /// Makes a key for `ES256`, `ES384` or `EdDSA`; returns it as PKCS#8 PEM.
    pub fn generate_pem(algorithm: &str) -> Result<Zeroizing<String>, JwsError> {
        let random = SystemRandom::new();
        let document = match algorithm {
            "ES256" => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random),
            "ES384" => EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random),
            "EdDSA" => Ed25519KeyPair::generate_pkcs8v1(&random),
            _ => return Err(JwsError::Key("algorithm", "ES256, ES384 or EdDSA")),
        }
        .map_err(|_| JwsError::Signing)?;
        Ok(Zeroizing::new(pem("PRIVATE KEY", document.as_ref())))
    }

    /// Reads a PKCS#8 PEM; which algorithm follows from the key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, JwsError> {
        let unusable = JwsError::Key("private key", "PKCS#8 PEM of P-256, P-384 or Ed25519");
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| unusable.clone())?;
        let der = der.secret_pkcs8_der();
        if let Ok(key) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
            return Ok(Self::Es256(key));
        }
        if let Ok(key) = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, der) {
            return Ok(Self::Es384(key));
        }
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map(Self::EdDsa).map_err(|_| unusable)
    }

    /// Name of its algorithm.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Es256(_) => "ES256",
            Self::Es384(_) => "ES384",
            Self::EdDsa(_) => "EdDSA",
        }
    }

    /// Public half as a JWK with `alg` and `kid` (RFC 7638 thumbprint).
    pub fn jwk(&self) -> Value {
        let mut jwk = match self {
            Self::Es256(key) => ec_jwk("P-256", key.public_key().as_ref()),
            Self::Es384(key) => ec_jwk("P-384", key.public_key().as_ref()),
            Self::EdDsa(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": base64_url(key.public_key().as_ref())})
            }
        };
        // The thumbprint is over the required members only, which is all there is so far.
        let canonical = kata_cc_kbs_protocol::rcar::canonical(&jwk);
        let thumbprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &canonical);
        jwk["kid"] = json!(base64_url(thumbprint.as_ref()));
        jwk["alg"] = json!(self.algorithm());
        jwk
    }

    /// Public half as SPKI PEM.
    pub fn public_pem(&self) -> Result<String, JwsError> {
        use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
        let der: PublicKeyX509Der<'_> = match self {
            Self::Es256(key) | Self::Es384(key) => key.public_key().as_der(),
            Self::EdDsa(key) => key.public_key().as_der(),
        }
        .map_err(|_| JwsError::Signing)?;
        Ok(pem("PUBLIC KEY", der.as_ref()))
    }

    /// Signs `claims` under `header`; `alg` is added to the header.
    pub fn sign(&self, header: &Value, claims: &Value) -> Result<String, JwsError> {
        self.sign_encoded(&self.encode_header(header), claims)
    }

    /// A header with `alg`, in the form in which it stands in a token.
    pub fn encode_header(&self, header: &Value) -> String {
        let mut header = header.clone();
        header["alg"] = json!(self.algorithm());
        base64_url(header.to_string().as_bytes())
    }

    /// Signs `claims` under a header of [`SigningKey::encode_header`].
    pub fn sign_encoded(&self, header: &str, claims: &Value) -> Result<String, JwsError> {
        let message = format!("{header}.{}", base64_url(claims.to_string().as_bytes()));
        let signature = self.sign_bytes(message.as_bytes())?;
        Ok(format!("{message}.{}", base64_url(&signature)))
    }

    /// Signs bytes, in the form of [`SignatureForm::Fixed`].
    pub fn sign_bytes(&self, message: &[u8]) -> Result<Vec<u8>, JwsError> {
        let signature = match self {
            Self::Es256(key) | Self::Es384(key) => key.sign(&SystemRandom::new(), message),
            Self::EdDsa(key) => key.try_sign(message),
        };
        Ok(signature.map_err(|_| JwsError::Signing)?.as_ref().to_vec())
    }
}

fn ec_jwk(curve: &str, point: &[u8]) -> Value {
    // 0x04 || x || y
    let coordinates = point.get(1..).unwrap_or_default();
    let (x, y) = coordinates.split_at(coordinates.len() / 2);
    json!({"kty": "EC", "crv": curve, "x": base64_url(x), "y": base64_url(y)})
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = kata_cc_kbs_protocol::base64_standard(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PublicKey {
    /// Uncompressed point.
    Es256(Vec<u8>),
    Es384(Vec<u8>),
    /// Raw key.
    EdDsa(Vec<u8>),
    /// Big-endian, without leading zeros.
    Rs256 {
        n: Vec<u8>,
        e: Vec<u8>,
    },
}

/// Form of a signature that is no JWS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureForm {
    /// ECDSA as r || s of fixed length, as JWS has it.
    Fixed,
    /// ECDSA as DER, as X.509 and most signing tools have it.
    Der,
}

fn without_leading_zeros(mut bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    bytes
}

/// A public key that tokens are checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyingKey {
    key: PublicKey,
    kid: Option<String>,
}

impl VerifyingKey {
    /// Reads a JWK: EC P-256 or P-384, OKP Ed25519, or RSA.
    pub fn from_jwk(jwk: &Value) -> Result<Self, JwsError> {
        let unusable = || JwsError::Key("JWK", "EC P-256 or P-384, OKP Ed25519, or RSA");
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| text(name).and_then(from_base64_url);
        let point = |length: usize| -> Option<Vec<u8>> {
            let (x, y) = (bytes("x")?, bytes("y")?);
            (x.len() == length && y.len() == length).then(|| [&[4][..], &x, &y].concat())
        };
        let key = match (text("kty"), text("crv")) {
            (Some("EC"), Some("P-256")) => PublicKey::Es256(point(32).ok_or_else(unusable)?),
            (Some("EC"), Some("P-384")) => PublicKey::Es384(point(48).ok_or_else(unusable)?),
            (Some("OKP"), Some("Ed25519")) => PublicKey::EdDsa(bytes("x").ok_or_else(unusable)?),
            (Some("RSA"), _) => {
                let bytes = |name| bytes(name).map(without_leading_zeros).ok_or_else(unusable);
                PublicKey::Rs256 { n: bytes("n")?, e: bytes("e")? }
            }
            _ => return Err(unusable()),
        };
        Ok(Self { key, kid: text("kid").map(str::to_owned) })
    }

    /// Reads an SPKI PEM of a P-256, P-384, Ed25519 or RSA key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, JwsError> {
        let unusable = || JwsError::Key("public key", "SPKI PEM of EC, Ed25519 or RSA");
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| unusable())?;
        Self::from_spki(der.as_ref())
    }

    /// Reads a SubjectPublicKeyInfo (DER) of a P-256, P-384, Ed25519 or RSA key.
    pub fn from_spki(der: &[u8]) -> Result<Self, JwsError> {
        use x509_cert::der::Decode as _;
        use x509_cert::der::asn1::{ObjectIdentifier, UintRef};
        let unusable = || JwsError::Key("public key", "SPKI of EC P-256 or P-384, Ed25519 or RSA");
        let info = x509_cert::spki::SubjectPublicKeyInfoRef::from_der(der).map_err(|_| unusable())?;
        let bits = info.subject_public_key.as_bytes().ok_or_else(unusable)?;
        let curve = || info.algorithm.parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let point = |length: usize| {
            let point = (bits.len() == 2 * length + 1 && bits.first() == Some(&4)).then(|| bits.to_vec());
            point.ok_or_else(unusable)
        };
        // RFC 5480, RFC 8410, RFC 8017.
        let key = match info.algorithm.oid.to_string().as_str() {
            "1.2.840.10045.2.1" => match curve().map(|oid| oid.to_string()).as_deref() {
                Some("1.2.840.10045.3.1.7") => PublicKey::Es256(point(32)?),
                Some("1.3.132.0.34") => PublicKey::Es384(point(48)?),
                _ => return Err(unusable()),
            },
            "1.3.101.112" if bits.len() == 32 => PublicKey::EdDsa(bits.to_vec()),
            "1.2.840.113549.1.1.1" => {
                let sequence = x509_cert::der::asn1::SequenceOf::<UintRef<'_>, 2>::from_der(bits);
                let sequence = sequence.map_err(|_| unusable())?;
                let part =
                    |index| sequence.get(index).map(|part| without_leading_zeros(part.as_bytes().to_vec()));
                PublicKey::Rs256 { n: part(0).ok_or_else(unusable)?, e: part(1).ok_or_else(unusable)? }
            }
            _ => return Err(unusable()),
        };
        Ok(Self { key, kid: None })
    }

    /// `kid` of its JWK.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    fn algorithm(&self) -> &'static str {
        match self.key {
            PublicKey::Es256(_) => "ES256",
            PublicKey::Es384(_) => "ES384",
            PublicKey::EdDsa(_) => "EdDSA",
            PublicKey::Rs256 { .. } => "RS256",
        }
    }

    /// Whether both are the same public key, whatever their `kid`.
    pub fn same_key(&self, other: &Self) -> bool {
        self.key == other.key
    }

    /// Checks the signature of a token that was split before.
    pub fn verify(&self, token: &Unverified<'_>) -> Result<Value, JwsError> {
        let seen = token.header.get("alg").and_then(Value::as_str).unwrap_or("");
        if seen != self.algorithm() {
            return Err(JwsError::Algorithm {
                seen: seen.chars().take(32).collect(),
                expected: self.algorithm(),
            });
        }
        self.verify_bytes(token.message.as_bytes(), &token.signature, SignatureForm::Fixed)?;
        Ok(token.claims.clone())
    }

    /// Checks a signature over bytes, by the algorithm that the key is for (RSA: PKCS #1 v1.5 with SHA-256).
    pub fn verify_bytes(
        &self,
        message: &[u8],
        signature: &[u8],
        form: SignatureForm,
    ) -> Result<(), JwsError> {
        let fixed = form == SignatureForm::Fixed;
        match &self.key {
            PublicKey::Es256(key) => {
                let algorithm = if fixed { &ECDSA_P256_SHA256_FIXED } else { &ECDSA_P256_SHA256_ASN1 };
                UnparsedPublicKey::new(algorithm, key).verify(message, signature)
            }
            PublicKey::Es384(key) => {
                let algorithm = if fixed { &ECDSA_P384_SHA384_FIXED } else { &ECDSA_P384_SHA384_ASN1 };
                UnparsedPublicKey::new(algorithm, key).verify(message, signature)
            }
            PublicKey::EdDsa(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature),
            PublicKey::Rs256 { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
        }
        .map_err(|_| JwsError::Signature)
    }

    /// Checks a signature of X.509 with the algorithm `oid`, which must be one for this kind of key.
    pub(crate) fn verify_x509(&self, oid: &str, message: &[u8], signature: &[u8]) -> Result<(), JwsError> {
        // RFC 8017, RFC 5758, RFC 8410.
        match (&self.key, oid) {
            (PublicKey::Rs256 { .. }, "1.2.840.113549.1.1.11")
            | (PublicKey::Es256(_), "1.2.840.10045.4.3.2")
            | (PublicKey::Es384(_), "1.2.840.10045.4.3.3")
            | (PublicKey::EdDsa(_), "1.3.101.112") => {
                self.verify_bytes(message, signature, SignatureForm::Der)
            }
            (PublicKey::Rs256 { n, e }, "1.2.840.113549.1.1.12") => RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA384, message, signature)
                .map_err(|_| JwsError::Signature),
            (PublicKey::Rs256 { n, e }, "1.2.840.113549.1.1.13") => RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA512, message, signature)
                .map_err(|_| JwsError::Signature),
            // A P-384 certificate authority signs a P-256 leaf, and the other way round.
            (PublicKey::Es384(key), "1.2.840.10045.4.3.2") => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA256_ASN1, key)
                    .verify(message, signature)
                    .map_err(|_| JwsError::Signature)
            }
            (PublicKey::Es256(key), "1.2.840.10045.4.3.3") => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA384_ASN1, key)
                    .verify(message, signature)
                    .map_err(|_| JwsError::Signature)
            }
            _ => Err(JwsError::Signature),
        }
    }
}

/// A token that was split but not checked: nothing in it may be believed.
#[derive(Debug)]
pub struct Unverified<'a> {
    /// Header.
    pub header: Value,
    claims: Value,
    message: &'a str,
    signature: Vec<u8>,
}

impl<'a> Unverified<'a> {
    /// Claims, of which nothing may be believed; to show them.
    pub fn claims(&self) -> &Value {
        &self.claims
    }

    /// Splits a compact JWS.
    pub fn parse(token: &'a str) -> Result<Self, JwsError> {
        if token.len() > MAX_TOKEN {
            return Err(JwsError::Format("it is longer than 128 KiB"));
        }
        let (message, signature) = token.rsplit_once('.').ok_or(JwsError::Format("no signature"))?;
        let (header, claims) = message.split_once('.').ok_or(JwsError::Format("no claims"))?;
        let read = |part: &str| from_base64_url(part).and_then(|b| serde_json::from_slice::<Value>(&b).ok());
        let object = |value: Option<Value>| value.filter(Value::is_object);
        let header = object(read(header)).ok_or(JwsError::Format("the header is no JSON object"))?;
        if header.get("crit").is_some() {
            return Err(JwsError::Format("it has critical extensions"));
        }
        Ok(Self {
            header,
            claims: object(read(claims)).ok_or(JwsError::Format("the claims are no JSON object"))?,
            message,
            signature: from_base64_url(signature).ok_or(JwsError::Format("the signature is no base64url"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_and_checks_with_every_algorithm() {
        for algorithm in ["ES256", "ES384", "EdDSA"] {
            let pem = SigningKey::generate_pem(algorithm).unwrap();
            let key = SigningKey::from_pem(pem.as_bytes()).unwrap();
            assert_eq!(key.algorithm(), algorithm);
            let token = key.sign(&json!({"typ": "JWT"}), &json!({"a": 1})).unwrap();
            let parsed = Unverified::parse(&token).unwrap();
            let by_jwk = VerifyingKey::from_jwk(&key.jwk()).unwrap();
            let by_pem = VerifyingKey::from_pem(key.public_pem().unwrap().as_bytes()).unwrap();
            assert_eq!(by_jwk.verify(&parsed).unwrap(), json!({"a": 1}));
            assert_eq!(by_pem.verify(&parsed).unwrap(), json!({"a": 1}));
            let other =
                SigningKey::from_pem(SigningKey::generate_pem(algorithm).unwrap().as_bytes()).unwrap();
            let other = VerifyingKey::from_jwk(&other.jwk()).unwrap();
            assert_eq!(other.verify(&parsed), Err(JwsError::Signature));
        }
    }

    #[test]
    fn the_algorithm_belongs_to_the_key() {
        let key = SigningKey::from_pem(SigningKey::generate_pem("ES256").unwrap().as_bytes()).unwrap();
        let header = base64_url(br#"{"alg":"none"}"#);
        let token = format!("{header}.{}.", base64_url(b"{}"));
        let parsed = Unverified::parse(&token).unwrap();
        let verifying = VerifyingKey::from_jwk(&key.jwk()).unwrap();
        assert!(matches!(verifying.verify(&parsed), Err(JwsError::Algorithm { .. })));
    }

    #[test]
    fn damaged_tokens_are_refused() {
        for token in ["", "a", "a.b", "a.b.c", "e30.e30", "e30.W10.AA", "e30.e30.%"] {
            assert!(Unverified::parse(token).is_err(), "{token}");
        }
    }
}
