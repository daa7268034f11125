//! The guest's key: answers of the key broker are encrypted to it.
//!
//! Made in the guest, never stored, forgotten with the client. P-256 by default, as Trustee's clients since 0.12.

use aws_lc_rs::agreement::{ECDH_P256, ECDH_P521, PrivateKey};
use aws_lc_rs::encoding::{
    AsBigEndian as _, AsDer as _, EcPrivateKeyBin, EcPublicKeyUncompressedBin, Pkcs8V1Der, PublicKeyX509Der,
};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use kata_cc_kbs_protocol::{TeePubKey, base64_standard, base64_url};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

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

impl KeyAlgorithm {
    /// Reads the name of a configuration; `None` for those that are not known (Trustee's experimental ML-KEM among them).
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "ECDH-ES+A256KW-P256" => Some(Self::EcdhP256),
            "ECDH-ES+A256KW-P521" => Some(Self::EcdhP521),
            "RSA-OAEP-256" => Some(Self::RsaOaep256),
            _ => None,
        }
    }
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

    /// Reads a PEM of a P-256, P-521 or RSA key: PKCS#8, or PKCS#1 for RSA, as Trustee's clients write it.
    pub fn from_pem(pem: &[u8]) -> Result<Self, ClientError> {
        let unusable =
            || ClientError::Config("key is no PEM (PKCS#8, PKCS#1) of P-256, P-521 or RSA".to_owned());
        let parsed = PrivateKeyDer::from_pem_slice(pem).map_err(|_| unusable())?;
        if let PrivateKeyDer::Pkcs1(inner) = &parsed {
            let whole = pkcs8(RSA_ALGORITHM, inner.secret_pkcs1_der());
            return Self::from_rsa(PrivateDecryptingKey::from_pkcs8(&whole).map_err(|_| unusable())?);
        }
        let der = parsed.secret_der();
        for algorithm in [&ECDH_P256, &ECDH_P521] {
            if let Ok(key) = PrivateKey::from_private_key_der(algorithm, der) {
                return Self::from_ec(key);
            }
        }
        Self::from_rsa(PrivateDecryptingKey::from_pkcs8(der).map_err(|_| unusable())?)
    }

    /// The private key as Trustee's clients hand it on with a token: PKCS#8 for EC, PKCS#1 for RSA.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, ClientError> {
        match &self.private {
            Private::Ec(private) => {
                let scalar: EcPrivateKeyBin<'_> =
                    private.as_be_bytes().map_err(|_| failed("encoding a private key"))?;
                let public = private.compute_public_key().map_err(|_| failed("computing a public key"))?;
                let point: EcPublicKeyUncompressedBin<'_> =
                    public.as_be_bytes().map_err(|_| failed("encoding a public key"))?;
                // RFC 5915 without the parameters, which stand in the algorithm.
                let bits = element_of(0xA1, &[&element_of(0x03, &[&[0], point.as_ref()])]);
                let inner = element_of(0x30, &[&[2, 1, 1], &element_of(0x04, &[scalar.as_ref()]), &bits]);
                let p256 = private.algorithm() == &ECDH_P256;
                let algorithm = if p256 { P256_ALGORITHM } else { P521_ALGORITHM };
                Ok(pem("PRIVATE KEY", &pkcs8(algorithm, &inner)))
            }
            Private::Rsa(private) => {
                let der: Pkcs8V1Der<'_> = private.as_der().map_err(|_| failed("encoding a private key"))?;
                let inner = pkcs1_within(der.as_ref()).ok_or_else(|| failed("encoding a private key"))?;
                Ok(pem("RSA PRIVATE KEY", inner))
            }
        }
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

/// `AlgorithmIdentifier` of RSA: rsaEncryption, NULL.
const RSA_ALGORITHM: &[u8] = &[0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
/// Of P-256: ecPublicKey, prime256v1.
const P256_ALGORITHM: &[u8] =
    &[0x30, 19, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
/// Of P-521: ecPublicKey, secp521r1.
const P521_ALGORITHM: &[u8] =
    &[0x30, 16, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 5, 0x2b, 0x81, 4, 0, 0x23];

/// A DER element around `parts`.
fn element_of(tag: u8, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Zeroizing::new(Vec::with_capacity(length + 6));
    out.push(tag);
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            // No key is longer than two bytes of length can say.
            let bytes = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
            out.push(0x82);
            out.extend_from_slice(&bytes);
        }
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    // DER: the shortest form of the length.
    if let [tag, 0x82, 0, low, ..] = *out.as_slice() {
        let shorter = Zeroizing::new([&[tag, 0x81, low][..], out.get(4..).unwrap_or_default()].concat());
        return shorter;
    }
    out
}

/// `PrivateKeyInfo` (RFC 5208) around a private key.
fn pkcs8(algorithm: &[u8], inner: &[u8]) -> Zeroizing<Vec<u8>> {
    element_of(0x30, &[&[2, 1, 0], algorithm, &element_of(0x04, &[inner])])
}

/// The PKCS#1 key within a PKCS#8 one.
fn pkcs1_within(der: &[u8]) -> Option<&[u8]> {
    let (_, whole, _) = element(der)?;
    let (_, _version, rest) = element(whole)?;
    let (_, _algorithm, rest) = element(rest)?;
    let (tag, inner, _) = element(rest)?;
    (tag == 0x04).then_some(inner)
}

fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    let text = Zeroizing::new(base64_standard(der));
    let mut out = Zeroizing::new(String::with_capacity(text.len() + text.len() / 32 + 64));
    out.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in text.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).unwrap_or_default());
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_pem() {
        for (algorithm, label) in [
            (KeyAlgorithm::EcdhP256, "-----BEGIN PRIVATE KEY-----\n"),
            (KeyAlgorithm::EcdhP521, "-----BEGIN PRIVATE KEY-----\n"),
            (KeyAlgorithm::RsaOaep256, "-----BEGIN RSA PRIVATE KEY-----\n"),
        ] {
            let key = TeeKey::generate(algorithm).unwrap();
            let pem = key.to_pem().unwrap();
            assert!(pem.starts_with(label), "{algorithm:?}");
            assert_eq!(TeeKey::from_pem(pem.as_bytes()).unwrap().public(), key.public(), "{algorithm:?}");
            assert!(!format!("{key:?}").contains(&pem[40..60]));
        }
        assert!(TeeKey::from_pem(b"nonsense").is_err());
    }

    #[test]
    fn names_are_trustees() {
        for (name, algorithm) in [
            ("ECDH-ES+A256KW-P256", KeyAlgorithm::EcdhP256),
            ("ECDH-ES+A256KW-P521", KeyAlgorithm::EcdhP521),
            ("RSA-OAEP-256", KeyAlgorithm::RsaOaep256),
        ] {
            assert_eq!(KeyAlgorithm::from_name(name), Some(algorithm));
        }
        assert_eq!(KeyAlgorithm::from_name("ML-KEM-768+A192KW"), None);
    }
}
