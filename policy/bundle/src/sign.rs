//! Signatures by a key, in the two forms that cosign has: over the packed bundle itself (`cosign verify-blob`), and over the digest of its manifest in
//! a registry (`cosign verify`, "simple signing").
//!
//! Signed is with ECDSA on P-256 and SHA-256, cosign's own kind. Verified is with every kind of key that images' signatures are.
//! Source: cosign, `specs/SIGNATURE_SPEC.md`.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_image::signature::verifies;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;

use crate::BundleError;

/// A private key.
pub struct Signer(EcdsaKeyPair);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({:02x?}…)", self.0.public_key().as_ref().get(1..5).unwrap_or_default())
    }
}

impl Signer {
    /// Reads a PKCS#8 PEM of an ECDSA P-256 key.
    ///
    /// # Errors
    /// When it is none. cosign's own private keys are encrypted in a form of its own, which is said.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BundleError> {
        if pem.windows(9).any(|part| part == b"ENCRYPTED") {
            let why = "the private key is encrypted, which is not read here: `openssl pkcs8 -topk8 -nocrypt` writes it in the clear (cosign's own form can be read by cosign alone; `cosign import-key-pair` takes keys of openssl)";
            return Err(BundleError::Key(why.to_owned()));
        }
        let unusable = || {
            let why = "the private key is no PKCS#8 PEM of ECDSA P-256: `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` makes one";
            BundleError::Key(why.to_owned())
        };
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| unusable())?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_pkcs8_der());
        Ok(Self(key.map_err(|_| unusable())?))
    }

    /// Signs a message: base64 of an ASN.1 signature.
    ///
    /// # Errors
    /// When the key fails.
    pub fn sign(&self, message: &[u8]) -> Result<String, BundleError> {
        let signature = self.0.sign(&SystemRandom::new(), message);
        let signature =
            signature.map_err(|_| BundleError::Key("the private key does not sign".to_owned()))?;
        Ok(STANDARD.encode(signature.as_ref()))
    }
}

/// Whether `signature` (base64) over `message` is by the key `public` (PEM).
///
/// # Errors
/// [`BundleError::Signature`] or [`BundleError::Key`].
pub fn verify(what: &str, message: &[u8], signature: &[u8], public: &[u8]) -> Result<(), BundleError> {
    let wrong = |why: String| BundleError::Signature { what: what.to_owned(), why };
    let text = std::str::from_utf8(signature).map_err(|_| wrong("it is not base64".to_owned()))?;
    let signature =
        STANDARD.decode(text.trim()).map_err(|error| wrong(format!("it is not base64: {error}")))?;
    match verifies(public, message, &signature) {
        Err(why) => Err(BundleError::Key(format!("the public key cannot be used: {why}"))),
        Ok(false) => Err(wrong("it is by another key, or over something else".to_owned())),
        Ok(true) => Ok(()),
    }
}

/// The payload that says that the manifest `digest` belongs to `reference`.
#[must_use]
pub fn payload(reference: &str, digest: &str) -> Vec<u8> {
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": reference},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    payload.to_string().into_bytes()
}
