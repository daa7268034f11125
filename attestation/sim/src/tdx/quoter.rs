//! What signs quotes: the attestation key, certified by the platform, and what the host gives beside each quote.
//!
//! Files of a folder ([`Quoter::create`]): `root.pem`, `pck.pem` (chain of the platform's certificate), `qe-report.bin` (the quoting
//! enclave's report and the platform's signature of it), `attestation.key` (PKCS#8, mode 0600) and `collateral.json`. The other
//! private keys are dropped when it is made. Collateral is current as long as the certificates, other than Intel's:
//! nobody publishes new one.

use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use kata_cc_tdx::quote::{Header, QE_REPORT_LEN, QeReport};
use kata_cc_tdx::{Quote, TdReportBody};
use serde_json::Value;

use super::certs::{self, Authority, CERT_LIFE};
use super::{Key, QE_ATTRIBUTES, QE_MRSIGNER, QE_PROD_ID, QE_SVN, QuoteRequest, TdxPlatform};
use crate::SimError;
use crate::folder::{self, Folder};

/// Root that a verifier has to be told of.
pub const ROOT_FILE: &str = "root.pem";
const CHAIN_FILE: &str = "pck.pem";
const QE_FILE: &str = "qe-report.bin";
const KEY_FILE: &str = "attestation.key";
const COLLATERAL_FILE: &str = "collateral.json";

/// Bytes of an ECDSA P-256 signature in fixed form.
const SIGNATURE_LEN: usize = 64;

/// Signs quotes.
pub struct Quoter {
    attestation_key: Key,
    qe_report: QeReport,
    qe_report_signature: [u8; SIGNATURE_LEN],
    /// PEM, the platform's certificate first.
    certificates: Vec<u8>,
    /// What the host gives beside each quote; none of a platform that lives in memory.
    collateral: Option<Value>,
}

impl std::fmt::Debug for Quoter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quoter").field("collateral", &self.collateral.is_some()).finish_non_exhaustive()
    }
}

impl Quoter {
    /// Makes one in `dir`, which must not exist or be empty, issued at `now` (seconds since 1970).
    ///
    /// # Errors
    /// [`SimError`]; nothing is left behind then.
    pub fn create(dir: &Path, now: u64) -> Result<Self, SimError> {
        let pkcs8 = Key::generate_pkcs8()?;
        let platform = TdxPlatform::create_with(now, CERT_LIFE, Key::from_pkcs8(&pkcs8)?)?;
        let collateral = platform.collateral()?.to_value().to_string();
        let TdxPlatform { quoter, .. } = &platform;
        let qe_report = [&quoter.qe_report.bytes[..], &quoter.qe_report_signature].concat();
        folder::create(dir, |folder| {
            folder.write(ROOT_FILE, 0o644, platform.root_pem().as_bytes())?;
            folder.write(CHAIN_FILE, 0o644, &quoter.certificates)?;
            folder.write(QE_FILE, 0o644, &qe_report)?;
            folder.write(COLLATERAL_FILE, 0o644, collateral.as_bytes())?;
            folder.write(KEY_FILE, 0o600, &pkcs8)
        })?;
        Self::load(dir)
    }

    /// Loads one that was made before.
    ///
    /// # Errors
    /// [`SimError`] says which file is missing or wrong.
    pub fn load(dir: &Path) -> Result<Self, SimError> {
        let folder = Folder::at(dir);
        let pkcs8 = folder.read_key(KEY_FILE)?;
        let attestation_key =
            Key::from_pkcs8(&pkcs8).map_err(|_| SimError::Key { path: folder.path(KEY_FILE) })?;
        let malformed = |name: &str, why: String| SimError::Malformed { path: folder.path(name), why };
        let bytes = folder.read(QE_FILE)?;
        let (report, signature) = bytes
            .split_first_chunk::<QE_REPORT_LEN>()
            .and_then(|(report, rest)| Some((*report, <[u8; SIGNATURE_LEN]>::try_from(rest).ok()?)))
            .ok_or_else(|| {
                let expected = QE_REPORT_LEN + SIGNATURE_LEN;
                malformed(QE_FILE, format!("it has {} bytes, expected {expected}", bytes.len()))
            })?;
        let qe_report =
            QeReport::from_bytes(report).map_err(|error| malformed(QE_FILE, error.to_string()))?;
        let bound = digest(&SHA256, &bound_bytes(&attestation_key)?);
        if !qe_report.report_data.starts_with(bound.as_ref()) {
            return Err(SimError::Key { path: folder.path(KEY_FILE) });
        }
        let collateral = serde_json::from_slice(&folder.read(COLLATERAL_FILE)?)
            .map_err(|error| malformed(COLLATERAL_FILE, error.to_string()))?;
        Ok(Self {
            attestation_key,
            qe_report,
            qe_report_signature: signature,
            certificates: folder.read(CHAIN_FILE)?,
            collateral: Some(collateral),
        })
    }

    /// Loads the one in `dir`, or makes it when there is none.
    ///
    /// # Errors
    /// As [`Self::load`] and [`Self::create`].
    pub fn load_or_create(dir: &Path, now: u64) -> Result<Self, SimError> {
        if dir.join(KEY_FILE).exists() {
            return Self::load(dir);
        }
        match Self::create(dir, now) {
            // Another process was faster.
            Err(SimError::Exists { .. }) if dir.join(KEY_FILE).exists() => Self::load(dir),
            other => other,
        }
    }

    /// A key that the platform with this chain (its own certificate first) vouches for.
    pub(super) fn certified(
        attestation_key: Key,
        chain: &[&Authority],
        change: impl FnOnce(&mut [u8; QE_REPORT_LEN]),
    ) -> Result<Self, SimError> {
        let pck = chain.first().ok_or(SimError::Crypto { operation: "finding the platform's key" })?;
        let certificates = certs::pem_chain(chain).into_bytes();
        let (qe_report, qe_report_signature) = vouch(&attestation_key, pck, change)?;
        Ok(Self { attestation_key, qe_report, qe_report_signature, certificates, collateral: None })
    }

    /// The same key and chain, with another report of the quoting enclave.
    pub(super) fn certified_again(
        &self,
        pck: &Authority,
        change: impl FnOnce(&mut [u8; QE_REPORT_LEN]),
    ) -> Result<Signer<'_>, SimError> {
        let (qe_report, qe_report_signature) = vouch(&self.attestation_key, pck, change)?;
        Ok(Signer { quoter: self, qe_report, qe_report_signature })
    }

    /// What the host gives beside each quote: collateral in the evidence's form.
    #[must_use]
    pub const fn collateral(&self) -> Option<&Value> {
        self.collateral.as_ref()
    }

    /// A signed quote.
    ///
    /// # Errors
    /// [`SimError::QuoteVersion`] for versions other than 4 and 5, [`SimError::Crypto`] when signing fails.
    pub fn quote(&self, request: &QuoteRequest) -> Result<Vec<u8>, SimError> {
        if request.version != 4 && request.version != 5 {
            return Err(SimError::QuoteVersion { seen: request.version });
        }
        let header = Header { version: request.version, reserved: [0; 4], user_data: [0; 20] };
        self.sign(header, request.body())
    }

    pub(super) fn sign(&self, header: Header, body: TdReportBody) -> Result<Vec<u8>, SimError> {
        let (qe_report, qe_report_signature) = (self.qe_report.clone(), self.qe_report_signature);
        Signer { quoter: self, qe_report, qe_report_signature }.sign(header, body)
    }
}

/// A quoter with a report of the quoting enclave.
pub(super) struct Signer<'a> {
    quoter: &'a Quoter,
    qe_report: QeReport,
    qe_report_signature: [u8; SIGNATURE_LEN],
}

impl Signer<'_> {
    pub(super) fn sign(self, header: Header, body: TdReportBody) -> Result<Vec<u8>, SimError> {
        let key = &self.quoter.attestation_key;
        let signed = Quote::signed_bytes(&header, &body);
        let quote = Quote {
            signature: key.sign(&signed)?,
            qe_report_signature: self.qe_report_signature,
            certificates: self.quoter.certificates.clone(),
            header,
            body,
            signed,
            attestation_key: key.raw_point()?,
            qe_report: self.qe_report,
            qe_auth_data: qe_auth_data(),
        };
        Ok(quote.to_bytes())
    }
}

/// Bytes of the quoting enclave's choice, bound beside its key.
fn qe_auth_data() -> Vec<u8> {
    (0..32).collect()
}

/// What the quoting enclave's report is bound to: its key and the bytes of its choice.
fn bound_bytes(key: &Key) -> Result<Vec<u8>, SimError> {
    Ok([&key.raw_point()?[..], &qe_auth_data()].concat())
}

/// Report of the quoting enclave about its key, signed by the platform.
fn vouch(
    key: &Key,
    pck: &Authority,
    change: impl FnOnce(&mut [u8; QE_REPORT_LEN]),
) -> Result<(QeReport, [u8; SIGNATURE_LEN]), SimError> {
    let report = qe_report(&bound_bytes(key)?, change)?;
    let signature = pck.key().sign(&report.bytes)?;
    Ok((report, signature))
}

/// Report of the quoting enclave that vouches for `bound`.
fn qe_report(bound: &[u8], change: impl FnOnce(&mut [u8; QE_REPORT_LEN])) -> Result<QeReport, SimError> {
    let mut bytes = [0; QE_REPORT_LEN];
    let mut put = |offset: usize, part: &[u8]| {
        for (to, from) in bytes.iter_mut().skip(offset).zip(part) {
            *to = *from;
        }
    };
    put(48, &QE_ATTRIBUTES);
    put(64, b"simulated quoting enclave       ");
    put(128, &QE_MRSIGNER);
    put(256, &QE_PROD_ID.to_le_bytes());
    put(258, &QE_SVN.to_le_bytes());
    put(320, digest(&SHA256, bound).as_ref());
    change(&mut bytes);
    QeReport::from_bytes(bytes).map_err(|_| SimError::Crypto { operation: "writing the enclave's report" })
}
