//! Init-data: the document that a guest is started with and that its launch measures.
//!
//! TOML with `algorithm` (sha256, sha384, sha512), `version` and a table `[data]` of texts; `aa.toml`, `cdh.toml` and
//! `policy.rego` are the known ones. Its digest is over the exact bytes, without any canonical form, and is cut or
//! padded with zeros at the end to the TEE's field ([`fit`]): 32 bytes of SNP `HOST_DATA`, 48 of TDX `MRCONFIGID`.
//!
//! Two carriers: the pod annotation `io.katacontainers.config.hypervisor.cc_init_data` is base64 of gzip
//! ([`to_annotation`]), the block device is `initdata`, a u64 little-endian length, gzip, zeros to a multiple of 512
//! ([`to_image`]). Source: kata-containers `docs/design`, guest-components. Unpacked size is limited to
//! [`MAX_DOCUMENT`], so a small image cannot expand without end.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{base64_standard, from_base64_standard};

/// Most bytes of the document.
pub const MAX_DOCUMENT: usize = 4 << 20;
/// First bytes of the block image.
pub const MAGIC: &[u8; 8] = b"initdata";
/// Pod annotation that carries init-data.
pub const ANNOTATION: &str = "io.katacontainers.config.hypervisor.cc_init_data";

/// Why init-data was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum InitDataError {
    /// More than [`MAX_DOCUMENT`].
    #[error("init-data has more than {MAX_DOCUMENT} bytes")]
    TooLarge,
    /// Not UTF-8.
    #[error("init-data is not UTF-8 text")]
    NotText,
    /// Not the expected TOML.
    #[error("init-data is not the expected TOML: {0}")]
    Toml(String),
    /// A hash that is not known.
    #[error("init-data names the algorithm {0:?}, known are sha256, sha384 and sha512")]
    Algorithm(String),
    /// A version that is not known.
    #[error("init-data has version {0:?}, only 0.1.0 is known")]
    Version(String),
    /// The image or annotation is damaged.
    #[error("init-data carrier is damaged: {0}")]
    Carrier(&'static str),
}

/// The hash that a document names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    fn implementation(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
        }
    }
}

#[derive(Deserialize)]
struct Document {
    algorithm: String,
    version: String,
    data: BTreeMap<String, String>,
}

/// A parsed document together with its exact text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitData {
    text: String,
    algorithm: Algorithm,
    data: BTreeMap<String, String>,
}

impl InitData {
    /// Parses the document.
    pub fn parse(text: &str) -> Result<Self, InitDataError> {
        if text.len() > MAX_DOCUMENT {
            return Err(InitDataError::TooLarge);
        }
        let document: Document =
            toml::from_str(text).map_err(|e| InitDataError::Toml(crate::toml_error(text, &e)))?;
        let cut = |text: &str| text.chars().take(32).collect::<String>();
        let algorithm = match document.algorithm.to_ascii_lowercase().replace('-', "").as_str() {
            "sha256" => Algorithm::Sha256,
            "sha384" => Algorithm::Sha384,
            "sha512" => Algorithm::Sha512,
            _ => return Err(InitDataError::Algorithm(cut(&document.algorithm))),
        };
        if document.version != "0.1.0" {
            return Err(InitDataError::Version(cut(&document.version)));
        }
        Ok(Self { text: text.to_owned(), algorithm, data: document.data })
    }

    /// Writes a document from its parts.
    pub fn build(algorithm: Algorithm, data: &BTreeMap<String, String>) -> Result<Self, InitDataError> {
        #[derive(Serialize)]
        struct Out<'a> {
            algorithm: Algorithm,
            version: &'static str,
            data: &'a BTreeMap<String, String>,
        }
        let text = toml::to_string(&Out { algorithm, version: "0.1.0", data })
            .map_err(|e| InitDataError::Toml(e.to_string()))?;
        Self::parse(&text)
    }

    /// The exact document.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The hash it names.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The table `[data]`.
    pub fn data(&self) -> &BTreeMap<String, String> {
        &self.data
    }

    /// One text of `[data]`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.data.get(name).map(String::as_str)
    }

    /// Digest over the exact bytes, by the hash that the document names.
    pub fn digest(&self) -> Vec<u8> {
        digest::digest(self.algorithm.implementation(), self.text.as_bytes()).as_ref().to_vec()
    }
}

/// Cuts a digest, or pads it with zeros at the end, to the length of the TEE's field.
pub fn fit<const N: usize>(digest: &[u8]) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(digest) {
        *to = *from;
    }
    field
}

/// Text of the pod annotation.
pub fn to_annotation(text: &str) -> String {
    base64_standard(&gzip(text.as_bytes()))
}

/// Document out of the pod annotation.
pub fn from_annotation(annotation: &str) -> Result<String, InitDataError> {
    let packed = from_base64_standard(annotation.trim())
        .ok_or(InitDataError::Carrier("the annotation is not base64"))?;
    gunzip(&packed)
}

/// Block image with the document.
pub fn to_image(text: &str) -> Vec<u8> {
    let packed = gzip(text.as_bytes());
    let mut image = Vec::with_capacity(packed.len() + 1024);
    image.extend_from_slice(MAGIC);
    image.extend_from_slice(&(packed.len() as u64).to_le_bytes());
    image.extend_from_slice(&packed);
    image.resize(image.len().next_multiple_of(512), 0);
    image
}

/// Document out of a block image; `None` when the image does not start with the magic (there is no init-data).
pub fn from_image(image: &[u8]) -> Result<Option<String>, InitDataError> {
    let Some(rest) = image.strip_prefix(MAGIC) else {
        return Ok(None);
    };
    let (length, rest) =
        rest.split_first_chunk::<8>().ok_or(InitDataError::Carrier("the image ends in its header"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let packed =
        rest.get(..length).ok_or(InitDataError::Carrier("the image is shorter than its header says"))?;
    gunzip(packed).map(Some)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    // Writing to memory does not fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

fn gunzip(packed: &[u8]) -> Result<String, InitDataError> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed)
        .take(MAX_DOCUMENT as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|_| InitDataError::Carrier("the contents are not gzip"))?;
    if bytes.len() > MAX_DOCUMENT {
        return Err(InitDataError::TooLarge);
    }
    String::from_utf8(bytes).map_err(|_| InitDataError::NotText)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn vectors_agree() {
        let Some(folder) = kata_cc_test_vectors::path("coco/initdata") else { return };
        for name in ["mini-sha256", "full-sha384"] {
            let text = std::fs::read_to_string(folder.join(format!("{name}.toml"))).unwrap();
            let expected: serde_json::Value =
                serde_json::from_slice(&std::fs::read(folder.join(format!("{name}.expected.json"))).unwrap())
                    .unwrap();
            let parsed = InitData::parse(&text).unwrap();
            assert_eq!(hex::encode(parsed.digest()), expected["digest_hex"]);
            assert_eq!(hex::encode(fit::<32>(&parsed.digest())), expected["snp_host_data"]);
            assert_eq!(hex::encode(fit::<48>(&parsed.digest())), expected["tdx_mrconfigid"]);
            let annotation = expected["cc_init_data_annotation"].as_str().unwrap();
            assert_eq!(from_annotation(annotation).unwrap(), text);
            let image = std::fs::read(folder.join(format!("{name}.img"))).unwrap();
            assert_eq!(from_image(&image).unwrap().as_deref(), Some(text.as_str()));
        }
        let image = std::fs::read(folder.join("kata-initdata.img")).unwrap();
        assert!(from_image(&image).unwrap().is_some());
    }

    #[test]
    fn invalid_vectors_are_refused() {
        let Some(folder) = kata_cc_test_vectors::path("coco/initdata") else { return };
        let cases: Vec<serde_json::Value> =
            serde_json::from_slice(&std::fs::read(folder.join("invalid.json")).unwrap()).unwrap();
        for case in cases {
            let parsed = InitData::parse(case["toml"].as_str().unwrap());
            assert!(parsed.is_err(), "{}: {parsed:?}", case["case"]);
        }
    }

    #[test]
    fn one_changed_byte_changes_the_digest() {
        let data = BTreeMap::from([("policy.rego".to_owned(), "package agent_policy\n".to_owned())]);
        let one = InitData::build(Algorithm::Sha256, &data).unwrap();
        let two = InitData::parse(&format!("{}\n", one.text())).unwrap();
        assert_eq!(one.data(), two.data());
        assert_ne!(one.digest(), two.digest());
        assert_eq!(one.get("policy.rego"), Some("package agent_policy\n"));
    }

    #[test]
    fn damaged_carriers_are_refused() {
        assert_eq!(from_image(&[0; 512]), Ok(None));
        assert!(from_image(MAGIC).is_err());
        let mut image = to_image("x");
        image[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(from_image(&image).is_err());
        let bomb = gzip(&vec![b' '; MAX_DOCUMENT + 1]);
        assert_eq!(gunzip(&bomb), Err(InitDataError::TooLarge));
        assert!(from_annotation("%").is_err());
    }

    proptest! {
        #[test]
        fn carriers_return_what_was_put_in(text in ".{0,400}") {
            prop_assert_eq!(from_image(&to_image(&text)).unwrap(), Some(text.clone()));
            prop_assert_eq!(from_annotation(&to_annotation(&text)).unwrap(), text);
        }

        #[test]
        fn images_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), magic: bool) {
            let mut image = if magic { MAGIC.to_vec() } else { Vec::new() };
            image.extend(bytes);
            let _ = from_image(&image);
        }

        #[test]
        fn documents_never_panic(text in ".{0,300}") {
            let _ = InitData::parse(&text);
        }
    }
}
