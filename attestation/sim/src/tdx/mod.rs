//! A throw-away TDX platform in software: root, PCK chain, quoting enclave, and what Intel's service would publish
//! about it.
//!
//! Purpose: the whole path of TDX verification runs anywhere. Quotes have the real formats (versions 4 and 5) and
//! real signatures, collateral too, under a root that exists only here. The names in its certificates say so
//! (`Simulated SGX Root CA`), and a verifier accepts it only when that root is configured by hand, and then calls the
//! result `sim-tdx`. Nothing here protects memory, and no guest is measured: a quote says what it is asked to say.
//!
//! A platform lives in memory and its keys end with it.
//!
//! Sources: Quote library API (formats), PCK certificate profile, PCS API v4 (documents).

mod certs;
mod documents;
mod quoter;
pub mod service;

pub use quoter::{Quoter, ROOT_FILE};
pub use service::{TdxLaunch, TdxService};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
};
use kata_cc_tdx::quote::{Header, QE_REPORT_LEN};
use kata_cc_tdx::report::Td15;
use kata_cc_tdx::{Collateral, CollateralKey, PckCa, TdReportBody};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::SimError;

/// Name under which evidence of this platform travels; never `tdx`.
pub const TEE_NAME: &str = "sim-tdx";

/// Kind of platform that it claims to be; Intel has none of that name.
pub const FMSPC: [u8; 6] = *b"SimTDX";

/// Versions of the components that the PCK certificate names.
pub const COMPONENTS: [u8; 16] = [4, 4, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];

/// Version of the provisioning certification enclave.
pub const PCE_SVN: u16 = 13;

/// `TEE_TCB_SVN`: module TDX_01 of version 7, loaded by version 4.
pub const TEE_TCB_SVN: [u8; 16] = [7, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Version of the quoting enclave.
pub const QE_SVN: u16 = 6;

/// Signer of the quoting enclave.
pub const QE_MRSIGNER: [u8; 32] = *b"simulated quoting enclave signer";

/// Product id of the quoting enclave, as that of Intel's for TDX.
pub const QE_PROD_ID: u16 = 2;

/// Extended features that every simulated guest has: x87, SSE, AVX, AVX-512, PKRU, AMX (SDM volume 1, 13.1).
pub const XFAM: [u8; 8] = [0xE7, 0, 6, 0, 0, 0, 0, 0];

/// Attributes of the quoting enclave: initialised, 64 bit, provisioning key.
const QE_ATTRIBUTES: [u8; 16] = [0x15, 0, 0, 0, 0, 0, 0, 0, 0xE7, 0, 0, 0, 0, 0, 0, 0];

/// What a quote is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuoteRequest {
    /// 4 or 5.
    pub version: u16,
    /// `TEE_TCB_SVN`.
    pub tee_tcb_svn: [u8; 16],
    /// `TEE_TCB_SVN_2`: makes a body of TDX 1.5, which only version 5 has.
    pub tee_tcb_svn2: Option<[u8; 16]>,
    /// Attributes of the guest.
    pub td_attributes: [u8; 8],
    /// Measurement at launch.
    pub mr_td: [u8; 48],
    /// Where the digest of the init-data is.
    pub mr_config_id: [u8; 48],
    /// Registers.
    pub rtmr: [[u8; 48]; 4],
    /// Bytes of the guest's choice.
    pub report_data: [u8; 64],
}

impl Default for QuoteRequest {
    fn default() -> Self {
        Self {
            version: 4,
            tee_tcb_svn: TEE_TCB_SVN,
            tee_tcb_svn2: None,
            // SEPT_VE_DISABLE, as nearly all guests have.
            td_attributes: [0, 0, 0, 0x10, 0, 0, 0, 0],
            mr_td: [0; 48],
            mr_config_id: [0; 48],
            rtmr: [[0; 48]; 4],
            report_data: [0; 64],
        }
    }
}

impl QuoteRequest {
    fn body(&self) -> TdReportBody {
        TdReportBody {
            tee_tcb_svn: self.tee_tcb_svn,
            mr_seam: [0x5E; 48],
            mrsigner_seam: [0; 48],
            seam_attributes: [0; 8],
            td_attributes: self.td_attributes,
            xfam: XFAM,
            mr_td: self.mr_td,
            mr_config_id: self.mr_config_id,
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
            rtmr: self.rtmr,
            report_data: self.report_data,
            td15: self
                .tee_tcb_svn2
                .filter(|_| self.version == 5)
                .map(|tee_tcb_svn2| Td15 { tee_tcb_svn2, mr_servicetd: [0; 48] }),
        }
    }
}

/// A certificate that the platform's own lists can revoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// The platform's certification key.
    Pck,
    /// Its authority.
    PckCa,
    /// The signer of TCB info and QE identity.
    TcbSigning,
}

/// A P-256 key that signs in both forms: DER for certificates, fixed for quotes and documents.
struct Key {
    der: EcdsaKeyPair,
    fixed: EcdsaKeyPair,
}

impl Key {
    fn generate() -> Result<Self, SimError> {
        Self::from_pkcs8(&Self::generate_pkcs8()?)
    }

    fn generate_pkcs8() -> Result<Zeroizing<Vec<u8>>, SimError> {
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map(|pkcs8| Zeroizing::new(pkcs8.as_ref().to_vec()))
            .map_err(|_| SimError::Crypto { operation: "making a P-256 key" })
    }

    fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, SimError> {
        let load = |algorithm| EcdsaKeyPair::from_pkcs8(algorithm, pkcs8);
        match (load(&ECDSA_P256_SHA256_ASN1_SIGNING), load(&ECDSA_P256_SHA256_FIXED_SIGNING)) {
            (Ok(der), Ok(fixed)) => Ok(Self { der, fixed }),
            _ => Err(SimError::Crypto { operation: "loading a P-256 key" }),
        }
    }

    /// Uncompressed point.
    fn point(&self) -> &[u8] {
        self.fixed.public_key().as_ref()
    }

    /// The point as quotes hold it: without the byte that says "uncompressed".
    fn raw_point(&self) -> Result<[u8; 64], SimError> {
        let raw = self.point().get(1..).and_then(|point| point.try_into().ok());
        raw.ok_or(SimError::Crypto { operation: "reading the attestation key" })
    }

    fn sign_der(&self, bytes: &[u8]) -> Result<Vec<u8>, SimError> {
        self.der
            .sign(&SystemRandom::new(), bytes)
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| SimError::Crypto { operation: "signing a certificate" })
    }

    fn sign(&self, bytes: &[u8]) -> Result<[u8; 64], SimError> {
        self.fixed
            .sign(&SystemRandom::new(), bytes)
            .ok()
            .and_then(|signature| signature.as_ref().try_into().ok())
            .ok_or(SimError::Crypto { operation: "signing a quote" })
    }
}

/// A platform with its authorities.
pub struct TdxPlatform {
    root: certs::Authority,
    pck_ca: certs::Authority,
    tcb_signing: certs::Authority,
    pck: certs::Authority,
    quoter: Quoter,
    issued: u64,
    life: u64,
}

impl std::fmt::Debug for TdxPlatform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TdxPlatform").field("issued", &self.issued).finish_non_exhaustive()
    }
}

impl TdxPlatform {
    /// Makes a platform whose certificates and collateral are issued at `now` (seconds since 1970).
    ///
    /// # Errors
    /// [`SimError`] when the cryptographic library refuses, or a certificate cannot be encoded.
    pub fn create(now: u64) -> Result<Self, SimError> {
        Self::create_with(now, documents::LIFE, Key::generate()?)
    }

    /// A platform with an attestation key, whose collateral is current for `life` seconds.
    fn create_with(now: u64, life: u64, attestation_key: Key) -> Result<Self, SimError> {
        let certs::Issued { root, pck_ca, tcb_signing, pck } = certs::issue(now)?;
        let quoter = Quoter::certified(attestation_key, &[&pck, &pck_ca, &root], |_| ())?;
        Ok(Self { root, pck_ca, tcb_signing, pck, quoter, issued: now, life })
    }

    /// The root, to be configured where simulated evidence is to be accepted.
    #[must_use]
    pub fn root_pem(&self) -> String {
        certs::pem_chain(&[&self.root])
    }

    /// What a verifier looks its collateral up by.
    #[must_use]
    pub const fn collateral_key(&self) -> CollateralKey {
        CollateralKey { fmspc: FMSPC, ca: PckCa::Platform }
    }

    /// A signed quote.
    ///
    /// # Errors
    /// [`SimError::QuoteVersion`] for versions other than 4 and 5, [`SimError::Crypto`] when signing fails.
    pub fn quote(&self, request: &QuoteRequest) -> Result<Vec<u8>, SimError> {
        self.quoter.quote(request)
    }

    /// A signed quote of any header and body, also of what no module would measure.
    ///
    /// # Errors
    /// [`SimError::Crypto`] when signing fails.
    pub fn sign(&self, header: Header, body: TdReportBody) -> Result<Vec<u8>, SimError> {
        self.quoter.sign(header, body)
    }

    /// The same, with a report of the quoting enclave that was changed before the platform signed it.
    ///
    /// # Errors
    /// [`SimError::Crypto`] when signing fails.
    pub fn sign_with(
        &self,
        header: Header,
        body: TdReportBody,
        change: impl FnOnce(&mut [u8; QE_REPORT_LEN]),
    ) -> Result<Vec<u8>, SimError> {
        self.quoter.certified_again(&self.pck, change)?.sign(header, body)
    }

    /// TCB info in which this platform is up to date; to be changed for [`Self::collateral_of`].
    #[must_use]
    pub fn tcb_info(&self) -> Value {
        documents::tcb_info(self.issued, self.life)
    }

    /// Identity of the quoting enclave, up to date; to be changed for [`Self::collateral_of`].
    #[must_use]
    pub fn qe_identity(&self) -> Value {
        documents::qe_identity(self.issued, self.life)
    }

    /// Collateral of the platform: up to date, nothing revoked, current for 30 days.
    ///
    /// # Errors
    /// [`SimError`] when something cannot be encoded or signed.
    pub fn collateral(&self) -> Result<Collateral, SimError> {
        self.collateral_of(&self.tcb_info(), &self.qe_identity(), &[])
    }

    /// Collateral with other documents, and with certificates revoked.
    ///
    /// # Errors
    /// [`SimError`] when something cannot be encoded or signed.
    pub fn collateral_of(
        &self,
        tcb_info: &Value,
        qe_identity: &Value,
        revoked: &[Revoked],
    ) -> Result<Collateral, SimError> {
        let serial = |certificate: &Revoked| match certificate {
            Revoked::Pck => (true, self.pck.serial()),
            Revoked::PckCa => (false, self.pck_ca.serial()),
            Revoked::TcbSigning => (false, self.tcb_signing.serial()),
        };
        let of = |by_ca: bool| -> Vec<u8> {
            revoked.iter().map(serial).filter(|(ca, _)| *ca == by_ca).map(|(_, serial)| serial).collect()
        };
        let chain = certs::pem_chain(&[&self.tcb_signing, &self.root]);
        let document = |value: &Value| {
            let text = value.to_string();
            let signature = self.tcb_signing.key().sign(text.as_bytes())?;
            let issuer_chain = chain.clone().into_bytes();
            Ok::<_, SimError>(kata_cc_tdx::collateral::SignedDocument { text, signature, issuer_chain })
        };
        Ok(Collateral {
            tcb_info: document(tcb_info)?,
            qe_identity: document(qe_identity)?,
            root_ca_crl: self.root.revocation_list(&of(false), self.issued, self.life)?,
            pck_crl: self.pck_ca.revocation_list(&of(true), self.issued, self.life)?,
            pck_crl_issuer_chain: certs::pem_chain(&[&self.pck_ca, &self.root]).into_bytes(),
        })
    }
}
