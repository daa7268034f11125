//! The guest's key: answers of the key broker are encrypted to it.
//!
//! Made in the guest, never stored, forgotten with the client. P-256 by default, as Trustee's clients since 0.12.

use aws_lc_rs::agreement::{ECDH_P256, ECDH_P521, PrivateKey};
use aws_lc_rs::encoding::{AsBigEndian as _, EcPublicKeyUncompressedBin};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use kata_cc_kbs_protocol::{TeePubKey, base64_url};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;

use crate::ClientError;

/// Kind of the guest's key. Names as in Trustee's client configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyAlgorithm {
    /// `ECDH-ES+A256KW-P256`.
    #[default]
    EcdhP256,
    /// `ECDH-ES+A256KW-P521`.
    EcdhP521,
    /// `RSA-OAEP-256`, 2048 bits.
    RsaOaep256,
}

pub(crate) enum Private {
    Ec(PrivateKey),
    Rsa(PrivateDecryptingKey),
}

/// A private key and its public half as it goes on the wire.
pub struct TeeKey {
    pub(crate) private: Private,
    public: TeePubKey,
}

impl std::fmt::Debug for TeeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TeeKey").field("public", &self.public).finish_non_exhaustive()
    }
}

fn failed(what: &str) -> ClientError {
    ClientError::Config(format!("{what} failed in the cryptographic library"))
}

impl TeeKey {
    /// Makes a key.
    pub fn generate(algorithm: KeyAlgorithm) -> Result<Self, ClientError> {
        let error = |_| failed("making a key");
        match algorithm {
            KeyAlgorithm::EcdhP256 => Self::from_ec(PrivateKey::generate(&ECDH_P256).map_err(error)?),
            KeyAlgorithm::EcdhP521 => Self::from_ec(PrivateKey::generate(&ECDH_P521).map_err(error)?),
            KeyAlgorithm::RsaOaep256 => {
                Self::from_rsa(PrivateDecryptingKey::generate(KeySize::Rsa2048).map_err(error)?)
            }
        }
    }

    /// Reads a PKCS#8 PEM of a P-256, P-521 or RSA key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, ClientError> {
        let unusable = || ClientError::Config("key is no PKCS#8 PEM of P-256, P-521 or RSA".to_owned());
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| unusable())?;
        let der = der.secret_pkcs8_der();
        for algorithm in [&ECDH_P256, &ECDH_P521] {
            if let Ok(key) = PrivateKey::from_private_key_der(algorithm, der) {
                return Self::from_ec(key);
            }
        }
        Self::from_rsa(PrivateDecryptingKey::from_pkcs8(der).map_err(|_| unusable())?)
    }

    fn from_ec(private: PrivateKey) -> Result<Self, ClientError> {
        let public = private.compute_public_key().map_err(|_| failed("computing a public key"))?;
        let point: EcPublicKeyUncompressedBin<'_> =
            public.as_be_bytes().map_err(|_| failed("encoding a public key"))?;
        let coordinates = point.as_ref().get(1..).unwrap_or_default();
        let (x, y) = coordinates.split_at(coordinates.len() / 2);
        let public = TeePubKey::EC {
            crv: if x.len() == 32 { "P-256" } else { "P-521" }.to_owned(),
            alg: "ECDH-ES+A256KW".to_owned(),
            x: base64_url(x),
            y: base64_url(y),
        };
        Ok(Self { private: Private::Ec(private), public })
    }

    fn from_rsa(private: PrivateDecryptingKey) -> Result<Self, ClientError> {
        use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
        let der: PublicKeyX509Der<'_> =
            private.public_key().as_der().map_err(|_| failed("encoding a public key"))?;
        let (n, e) = rsa_components(der.as_ref()).ok_or_else(|| failed("encoding a public key"))?;
        let public = TeePubKey::RSA { alg: "RSA-OAEP-256".to_owned(), n: base64_url(n), e: base64_url(e) };
        Ok(Self { private: Private::Rsa(private), public })
    }

    /// Public half.
    pub fn public(&self) -> &TeePubKey {
        &self.public
    }
}

/// One DER element: tag, contents, rest.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk::<2>()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if bytes.len() > 4 {
            return None;
        }
        (bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b)), rest)
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

/// Modulus and exponent out of an RSA `SubjectPublicKeyInfo`, without leading zeros.
fn rsa_components(spki: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_, spki, _) = element(spki)?;
    let (_, _algorithm, rest) = element(spki)?;
    let (_, bits, _) = element(rest)?;
    let (_, key, _) = element(bits.get(1..)?)?;
    let (_, n, rest) = element(key)?;
    let (_, e, _) = element(rest)?;
    Some((n.strip_prefix(&[0]).unwrap_or(n), e.strip_prefix(&[0]).unwrap_or(e)))
}
