//! The authority's key: from a file, or on the token of the plugin `pkcs11`. ECDSA on P-256 or P-384.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{self, SHA256, SHA384};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
};
use kata_cc_attestation_service::jws;
use kata_cc_attestation_service::store::{StoreError, read_secret, write_secret};
use kata_cc_kbs_pkcs11::{Answer, Bytes, KeyName, Operation};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;

use super::config::value;
use super::der;
use crate::plugins::PluginError;
use crate::plugins::pkcs11::{Token, token_error};
use crate::plugins::registry::SetupError;

/// Encoded contents of object identifiers (RFC 5480; RFC 5758).
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
}

/// Where the key is.
enum Place {
    File(EcdsaKeyPair),
    Token { token: Arc<Token>, key: KeyName },
}

/// The authority's key.
pub(crate) struct Signer {
    place: Place,
    curve: Curve,
    point: Vec<u8>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("curve", &self.curve).finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads the key, or makes it (P-256) when the file does not exist.
    pub(crate) fn from_file(path: &Path) -> Result<Self, SetupError> {
        let store = |e: StoreError| value(format!("key_path: {e}"));
        let pem = match read_secret(path) {
            Ok(pem) => pem,
            Err(StoreError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                let pem = jws::SigningKey::generate_pem("ES256").map_err(|e| value(e.to_string()))?;
                write_secret(path, pem.as_bytes())
                    .map_err(|source| store(StoreError::File { path: path.to_owned(), source }))?;
                pem.as_bytes().to_vec().into()
            }
            Err(other) => return Err(store(other)),
        };
        let unusable =
            || value(format!("key_path {}: expected PKCS#8 PEM of P-256 or P-384", path.display()));
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|_| unusable())?;
        let der = der.secret_pkcs8_der();
        let (key, curve) = match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der) {
            Ok(key) => (key, Curve::P256),
            Err(_) => {
                let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, der);
                (key.map_err(|_| unusable())?, Curve::P384)
            }
        };
        let point = key.public_key().as_ref().to_vec();
        Ok(Self { place: Place::File(key), curve, point })
    }

    /// The key `label` of the token.
    pub(crate) async fn from_token(token: Arc<Token>, label: &str) -> Result<Self, SetupError> {
        let key = KeyName::Label(label.to_owned());
        let answer = token.ask(Operation::PublicKey { key: key.clone() }).await;
        let failed = |why: String| value(format!("token_key_label {label:?}: {why}"));
        let Answer::EcKey { curve, point } = answer.map_err(|e| failed(e.to_string()))? else {
            return Err(failed("the helper gave an answer of another kind".to_owned()));
        };
        let curve = match curve.as_str() {
            "P-256" => Curve::P256,
            "P-384" => Curve::P384,
            other => return Err(failed(format!("curve {other}, expected P-256 or P-384"))),
        };
        Ok(Self { place: Place::Token { token, key }, curve, point: point.0 })
    }

    /// AlgorithmIdentifier of its signatures.
    pub(crate) fn algorithm(&self) -> Vec<u8> {
        let id = match self.curve {
            Curve::P256 => ECDSA_SHA256,
            Curve::P384 => ECDSA_SHA384,
        };
        der::sequence(&[&der::oid(id)])
    }

    /// SubjectPublicKeyInfo.
    pub(crate) fn public_key(&self) -> Vec<u8> {
        let curve = match self.curve {
            Curve::P256 => P256,
            Curve::P384 => P384,
        };
        let algorithm = der::sequence(&[&der::oid(EC_PUBLIC_KEY), &der::oid(curve)]);
        der::sequence(&[&algorithm, &der::bits(&self.point)])
    }

    /// Signs `body` and puts body, algorithm and signature together, as certificates and revocation lists are.
    pub(crate) async fn sign(&self, body: &[u8]) -> Result<Vec<u8>, PluginError> {
        let signature = match &self.place {
            Place::File(key) => {
                let signature = key.sign(&SystemRandom::new(), body);
                signature.map_err(|_| PluginError::Internal("signing failed".to_owned()))?.as_ref().to_vec()
            }
            Place::Token { token, key } => {
                let algorithm = match self.curve {
                    Curve::P256 => &SHA256,
                    Curve::P384 => &SHA384,
                };
                let digest = Bytes(digest::digest(algorithm, body).as_ref().to_vec());
                let answer = token.ask(Operation::Sign { key: key.clone(), digest }).await;
                match answer.map_err(token_error)? {
                    Answer::Public { bytes } => self.encode(&bytes.0)?,
                    _ => {
                        return Err(PluginError::Internal(
                            "the helper gave an answer of another kind".to_owned(),
                        ));
                    }
                }
            }
        };
        Ok(der::sequence(&[body, &self.algorithm(), &der::bits(&signature)]))
    }

    /// r and s, one after the other, as the SEQUENCE that X.509 wants (RFC 3279, 2.2.3).
    fn encode(&self, signature: &[u8]) -> Result<Vec<u8>, PluginError> {
        let length = match self.curve {
            Curve::P256 => 32,
            Curve::P384 => 48,
        };
        if signature.len() != 2 * length {
            let why = format!("a signature of {} bytes, expected {}", signature.len(), 2 * length);
            return Err(PluginError::upstream(
                "the token failed, the reason is in the log of the key broker",
                why,
            ));
        }
        let (r, s) = signature.split_at(length);
        Ok(der::sequence(&[&der::unsigned(r), &der::unsigned(s)]))
    }
}
