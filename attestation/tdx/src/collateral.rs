//! Collateral: what Intel publishes about platforms, beside a quote. Read from one JSON bundle, or from the answers
//! of the provisioning certification service (PCS v4), one file each.
//!
//! The signatures of TCB info and QE identity cover the bytes as they were sent, so these are kept as text and never
//! written anew. Nothing here is verified: [`crate::TrustedCollateral`] does that.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::tcb::MAX_DOCUMENT;

/// Most bytes of a bundle or of one file.
pub const MAX_COLLATERAL: usize = 4 * 1024 * 1024;

/// Names of the files of the directory form, with the answer of the service that each holds.
pub mod files {
    /// Body of `/tdx/certification/v4/tcb`.
    pub const TCB_INFO: &str = "tcb_info.json";
    /// Its header `TCB-Info-Issuer-Chain`, decoded.
    pub const TCB_INFO_ISSUER_CHAIN: &str = "tcb_info_issuer_chain.pem";
    /// Body of `/tdx/certification/v4/qe/identity`.
    pub const QE_IDENTITY: &str = "qe_identity.json";
    /// Its header `SGX-Enclave-Identity-Issuer-Chain`, decoded.
    pub const QE_IDENTITY_ISSUER_CHAIN: &str = "qe_identity_issuer_chain.pem";
    /// Body of `/sgx/certification/v4/pckcrl`.
    pub const PCK_CRL: &str = "pck.crl";
    /// Its header `SGX-PCK-CRL-Issuer-Chain`, decoded.
    pub const PCK_CRL_ISSUER_CHAIN: &str = "pck_crl_issuer_chain.pem";
    /// The root's list of revoked certificates.
    pub const ROOT_CA_CRL: &str = "root_ca.crl";
}

/// Collateral that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollateralError {
    /// Longer than the limit.
    #[error("{what} has {seen} bytes, at most {limit} are taken")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// Bytes seen.
        seen: usize,
        /// Limit.
        limit: usize,
    },
    /// Not JSON of the right form.
    #[error("{what} cannot be read: {why}")]
    Json {
        /// Which part.
        what: &'static str,
        /// What the parser says.
        why: String,
    },
    /// Not hex where hex is due.
    #[error("{what} is not hex{}", if *.signature { " of 64 bytes" } else { "" })]
    Hex {
        /// Which part.
        what: &'static str,
        /// Whether it is a signature.
        signature: bool,
    },
    /// A file is not there.
    #[error("collateral lacks the file {name}")]
    Missing {
        /// Its name.
        name: &'static str,
    },
}

/// A signed document: the exact text, its signature (r and s, big-endian), the chain of the signer as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedDocument {
    /// As signed.
    pub text: String,
    /// ECDSA P-256 with SHA-256.
    pub signature: [u8; 64],
    /// PEM: signer, root.
    pub issuer_chain: Vec<u8>,
}

/// Collateral of one kind of platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collateral {
    /// TCB info.
    pub tcb_info: SignedDocument,
    /// Identity of the quoting enclave.
    pub qe_identity: SignedDocument,
    /// Revocation list of the root: DER or PEM.
    pub root_ca_crl: Vec<u8>,
    /// Revocation list of the authority that issued the PCK certificate: DER or PEM.
    pub pck_crl: Vec<u8>,
    /// PEM: that authority, root.
    pub pck_crl_issuer_chain: Vec<u8>,
}

/// The bundle: one JSON object of texts; lists and signatures in hex.
#[derive(Serialize, Deserialize)]
struct Bundle {
    pck_crl_issuer_chain: String,
    root_ca_crl: String,
    pck_crl: String,
    tcb_info_issuer_chain: String,
    tcb_info: String,
    tcb_info_signature: String,
    qe_identity_issuer_chain: String,
    qe_identity: String,
    qe_identity_signature: String,
}

#[derive(Deserialize)]
struct TcbInfoAnswer<'a> {
    #[serde(rename = "tcbInfo", borrow)]
    document: &'a RawValue,
    signature: String,
}

#[derive(Deserialize)]
struct QeIdentityAnswer<'a> {
    #[serde(rename = "enclaveIdentity", borrow)]
    document: &'a RawValue,
    signature: String,
}

fn limited(what: &'static str, bytes: &[u8], limit: usize) -> Result<(), CollateralError> {
    match bytes.len() {
        seen if seen > limit => Err(CollateralError::TooLong { what, seen, limit }),
        _ => Ok(()),
    }
}

fn parse<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, CollateralError> {
    serde_json::from_slice(bytes).map_err(|error| CollateralError::Json { what, why: error.to_string() })
}

fn signature(what: &'static str, text: &str) -> Result<[u8; 64], CollateralError> {
    let mut bytes = [0; 64];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| CollateralError::Hex { what, signature: true })?;
    Ok(bytes)
}

/// A list in hex, as caching services (PCCS) answer, or as it is.
fn revocation_list(what: &'static str, bytes: &[u8]) -> Result<Vec<u8>, CollateralError> {
    let text = bytes.trim_ascii();
    if !text.is_empty() && text.iter().all(u8::is_ascii_hexdigit) {
        return hex::decode(text).map_err(|_| CollateralError::Hex { what, signature: false });
    }
    Ok(bytes.to_vec())
}

impl SignedDocument {
    fn new(
        what: &'static str,
        text: &str,
        signature_hex: &str,
        issuer_chain: &[u8],
    ) -> Result<Self, CollateralError> {
        limited(what, text.as_bytes(), MAX_DOCUMENT)?;
        Ok(Self {
            text: text.to_owned(),
            signature: signature(what, signature_hex)?,
            issuer_chain: issuer_chain.to_vec(),
        })
    }
}

impl Collateral {
    /// Reads a bundle.
    ///
    /// # Errors
    /// [`CollateralError`] names the part that is wrong.
    pub fn from_bundle(bytes: &[u8]) -> Result<Self, CollateralError> {
        limited("collateral", bytes, MAX_COLLATERAL)?;
        Self::of(parse("collateral", bytes)?)
    }

    /// Reads a bundle that is a value already, for example a member of evidence.
    ///
    /// # Errors
    /// As [`Self::from_bundle`].
    pub fn from_value(value: &serde_json::Value) -> Result<Self, CollateralError> {
        let bundle = Bundle::deserialize(value)
            .map_err(|error| CollateralError::Json { what: "collateral", why: error.to_string() })?;
        Self::of(bundle)
    }

    fn of(bundle: Bundle) -> Result<Self, CollateralError> {
        let list = |what, text: &str| {
            limited(what, text.as_bytes(), MAX_COLLATERAL)?;
            hex::decode(text).map_err(|_| CollateralError::Hex { what, signature: false })
        };
        Ok(Self {
            tcb_info: SignedDocument::new(
                "TCB info",
                &bundle.tcb_info,
                &bundle.tcb_info_signature,
                bundle.tcb_info_issuer_chain.as_bytes(),
            )?,
            qe_identity: SignedDocument::new(
                "QE identity",
                &bundle.qe_identity,
                &bundle.qe_identity_signature,
                bundle.qe_identity_issuer_chain.as_bytes(),
            )?,
            root_ca_crl: list("root CRL", &bundle.root_ca_crl)?,
            pck_crl: list("PCK CRL", &bundle.pck_crl)?,
            pck_crl_issuer_chain: bundle.pck_crl_issuer_chain.into_bytes(),
        })
    }

    /// Reads the answers of the service, each from the file of its name ([`files`]).
    ///
    /// # Errors
    /// [`CollateralError`] names the file that is missing or wrong.
    pub fn from_files(mut read: impl FnMut(&str) -> Option<Vec<u8>>) -> Result<Self, CollateralError> {
        let mut read = |name: &'static str| {
            let bytes = read(name).ok_or(CollateralError::Missing { name })?;
            limited(name, &bytes, MAX_COLLATERAL)?;
            Ok(bytes)
        };
        let body = read(files::TCB_INFO)?;
        let tcb_info: TcbInfoAnswer<'_> = parse(files::TCB_INFO, &body)?;
        let tcb_info = SignedDocument::new(
            files::TCB_INFO,
            tcb_info.document.get(),
            &tcb_info.signature,
            &read(files::TCB_INFO_ISSUER_CHAIN)?,
        )?;
        let body = read(files::QE_IDENTITY)?;
        let qe_identity: QeIdentityAnswer<'_> = parse(files::QE_IDENTITY, &body)?;
        let qe_identity = SignedDocument::new(
            files::QE_IDENTITY,
            qe_identity.document.get(),
            &qe_identity.signature,
            &read(files::QE_IDENTITY_ISSUER_CHAIN)?,
        )?;
        Ok(Self {
            tcb_info,
            qe_identity,
            root_ca_crl: revocation_list(files::ROOT_CA_CRL, &read(files::ROOT_CA_CRL)?)?,
            pck_crl: revocation_list(files::PCK_CRL, &read(files::PCK_CRL)?)?,
            pck_crl_issuer_chain: read(files::PCK_CRL_ISSUER_CHAIN)?,
        })
    }

    /// The bundle as a value. Chains and lists that are no text are written as far as they are.
    #[must_use]
    pub fn to_value(&self) -> serde_json::Value {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let bundle = Bundle {
            pck_crl_issuer_chain: text(&self.pck_crl_issuer_chain),
            root_ca_crl: hex::encode(&self.root_ca_crl),
            pck_crl: hex::encode(&self.pck_crl),
            tcb_info_issuer_chain: text(&self.tcb_info.issuer_chain),
            tcb_info: self.tcb_info.text.clone(),
            tcb_info_signature: hex::encode(self.tcb_info.signature),
            qe_identity_issuer_chain: text(&self.qe_identity.issuer_chain),
            qe_identity: self.qe_identity.text.clone(),
            qe_identity_signature: hex::encode(self.qe_identity.signature),
        };
        serde_json::to_value(bundle).unwrap_or_default()
    }
}
