//! Signing and checking compact JWS (RFC 7515), no more of it than tokens need.
//!
//! Signs ES256, ES384 and EdDSA; checks those and RS256. The algorithm is a property of the key, never of the token: a
//! token whose header names another algorithm than its key's is refused, so there is no confusion of algorithms
//! (RFC 8725, 3.1). Claims are not judged here.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED,
    ECDSA_P384_SHA384_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
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
        let mut header = header.clone();
        header["alg"] = json!(self.algorithm());
        let encode = |value: &Value| base64_url(value.to_string().as_bytes());
        let message = format!("{}.{}", encode(&header), encode(claims));
        let random = SystemRandom::new();
        let signature = match self {
            Self::Es256(key) | Self::Es384(key) => key.sign(&random, message.as_bytes()),
            Self::EdDsa(key) => key.try_sign(message.as_bytes()),
        }
        .map_err(|_| JwsError::Signing)?;
        Ok(format!("{message}.{}", base64_url(signature.as_ref())))
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
    /// Uncompressed point or SPKI.
    Es256(Vec<u8>),
    Es384(Vec<u8>),
    /// Raw key or SPKI.
    EdDsa(Vec<u8>),
    Rs256 {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// SPKI.
    Rs256Spki(Vec<u8>),
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
                PublicKey::Rs256 { n: bytes("n").ok_or_else(unusable)?, e: bytes("e").ok_or_else(unusable)? }
            }
            _ => return Err(unusable()),
        };
        Ok(Self { key, kid: text("kid").map(str::to_owned) })
    }

    /// Reads an SPKI PEM of a P-256, P-384, Ed25519 or RSA key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, JwsError> {
        let unusable = || JwsError::Key("public key", "SPKI PEM of EC, Ed25519 or RSA");
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| unusable())?;
        let contains = |oid: &[u8]| der.as_ref().windows(oid.len()).take(32).any(|w| w == oid);
        // Object identifiers of RFC 5480, RFC 8410, RFC 8017, DER contents.
        let key = if contains(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]) {
            PublicKey::Es256(der.as_ref().to_vec())
        } else if contains(&[0x2b, 0x81, 0x04, 0x00, 0x22]) {
            PublicKey::Es384(der.as_ref().to_vec())
        } else if contains(&[0x2b, 0x65, 0x70]) {
            PublicKey::EdDsa(der.as_ref().to_vec())
        } else if contains(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01]) {
            PublicKey::Rs256Spki(der.as_ref().to_vec())
        } else {
            return Err(unusable());
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
            PublicKey::Rs256 { .. } | PublicKey::Rs256Spki(_) => "RS256",
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
        let (message, signature) = (token.message.as_bytes(), &token.signature[..]);
        match &self.key {
            PublicKey::Es256(key) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(message, signature)
            }
            PublicKey::Es384(key) => {
                UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key).verify(message, signature)
            }
            PublicKey::EdDsa(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature),
            PublicKey::Rs256 { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            PublicKey::Rs256Spki(key) => {
                UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key).verify(message, signature)
            }
        }
        .map_err(|_| JwsError::Signature)?;
        Ok(token.claims.clone())
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
