//! Keys that sign sealed secrets: P-256, as JWK (RFC 7517, 7518).

use aws_lc_rs::encoding::{AsBigEndian as _, EcPrivateKeyBin};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use kata_cc_kbs_protocol::{base64_url, from_base64_url};
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::{Zeroize, Zeroizing};

use super::SealedError;

/// Bytes of a coordinate and of a private key.
const LENGTH: usize = 32;

/// The members that matter; others are passed over.
#[derive(Serialize, Deserialize)]
struct Jwk {
    kty: String,
    crv: String,
    x: String,
    y: String,
    d: Option<String>,
}

impl Drop for Jwk {
    fn drop(&mut self) {
        self.d.zeroize();
    }
}

impl Jwk {
    fn parse(json: &[u8]) -> Result<Self, &'static str> {
        let jwk: Self = serde_json::from_slice(json).map_err(|_| "it is no JWK of an elliptic curve key")?;
        match (jwk.kty.as_str(), jwk.crv.as_str()) {
            ("EC", "P-256") => Ok(jwk),
            _ => Err("it is not a key of the curve P-256"),
        }
    }

    /// Uncompressed point.
    fn point(&self) -> Result<Vec<u8>, &'static str> {
        let coordinate = |text: &str| {
            from_base64_url(text).filter(|c| c.len() == LENGTH).ok_or("a coordinate has not 32 bytes")
        };
        Ok([&[4][..], &coordinate(&self.x)?, &coordinate(&self.y)?].concat())
    }
}

/// Public key.
#[derive(Debug, Clone)]
pub struct VerifyingKey(Vec<u8>);

impl VerifyingKey {
    /// Reads a JWK; a private part is not looked at.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn from_jwk(json: &[u8]) -> Result<Self, &'static str> {
        Jwk::parse(json)?.point().map(Self)
    }

    pub(super) fn verifies(&self, bytes: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.0).verify(bytes, signature).is_ok()
    }
}

/// Private key.
pub struct SigningKey(EcdsaKeyPair);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(..)")
    }
}

impl SigningKey {
    /// Makes a key.
    ///
    /// # Errors
    /// When the library fails.
    pub fn generate() -> Result<Self, SealedError> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map(Self)
            .map_err(|_| SealedError::Library("making a key"))
    }

    /// Reads a JWK with its private part.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn from_jwk(json: &[u8]) -> Result<Self, &'static str> {
        let jwk = Jwk::parse(json)?;
        let point = jwk.point()?;
        let secret = jwk.d.as_deref().ok_or("it has no private part")?;
        let secret = Zeroizing::new(from_base64_url(secret).ok_or("its private part is no base64url")?);
        EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_FIXED_SIGNING, &secret, &point)
            .map(Self)
            .map_err(|_| "its private part does not fit its public part")
    }

    /// Both parts as JWK: private, public.
    ///
    /// # Errors
    /// When the library fails.
    pub fn to_jwks(&self, kid: &str) -> Result<(Zeroizing<String>, String), SealedError> {
        let point = self.0.public_key().as_ref().get(1..).unwrap_or_default();
        let (x, y) = point.split_at(point.len() / 2);
        let mut jwk = json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid,
            "x": base64_url(x), "y": base64_url(y),
        });
        let public = jwk.to_string();
        let secret: EcPrivateKeyBin<'_> =
            self.0.private_key().as_be_bytes().map_err(|_| SealedError::Library("encoding a key"))?;
        if let Some(members) = jwk.as_object_mut() {
            members.insert("d".to_owned(), base64_url(secret.as_ref()).into());
        }
        let private = String::from_utf8(crate::api::zeroized(jwk).to_vec());
        Ok((Zeroizing::new(private.unwrap_or_default()), public))
    }

    /// Public part.
    #[must_use]
    pub fn verifying(&self) -> VerifyingKey {
        VerifyingKey(self.0.public_key().as_ref().to_vec())
    }

    pub(super) fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, SealedError> {
        let signature = self.0.sign(&SystemRandom::new(), bytes);
        signature.map(|s| s.as_ref().to_vec()).map_err(|_| SealedError::Library("signing"))
    }
}
