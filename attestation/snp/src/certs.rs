//! X.509 certificates as AMD issues them for SEV-SNP (AMD 57230, chapter 3).
//!
//! The general part is [`kata_cc_x509`]; here are AMD's extensions under 1.3.6.1.4.1.3704.1, of which the
//! hardware id is not DER in older certificates, and AMD's one signature algorithm.

use x509_cert::der::Decode;
use x509_cert::der::asn1::{Ia5String, ObjectIdentifier, OctetString};

pub use kata_cc_x509::{
    CertError, Certificate, MAX_CERT, MAX_CHAIN, OID_COMMON_NAME, OID_EC_PUBLIC_KEY, OID_P384, OID_RSA,
    OID_RSASSA_PSS, PSS_PARAMS, SignatureAlgorithm,
};

use crate::tcb::Tcb;

/// What AMD signs certificates and revocation lists with.
pub const AMD_SIGNATURE: SignatureAlgorithm = SignatureAlgorithm::RsaPssSha384;

/// AMD's extensions (57230, table "Certificate extensions"); none is critical.
pub mod oid {
    use super::ObjectIdentifier;

    /// Version of the extension set: 0, from Turin on 1.
    pub const STRUCT_VERSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.1");
    /// Product name, for example `Milan-B0`.
    pub const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
    /// Boot loader version.
    pub const BL_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
    /// TEE version.
    pub const TEE_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
    /// SNP firmware version.
    pub const SNP_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
    /// Microcode version.
    pub const UCODE_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
    /// FMC version, from Turin on.
    pub const FMC_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");
    /// Chip id (VCEK).
    pub const HW_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
    /// Provider id (VLEK).
    pub const CSP_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.5");
}

/// What AMD writes into the certificate of an endorsement key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VekExtensions {
    /// Version of the extension set.
    pub struct_version: u8,
    /// Product name as written.
    pub product_name: String,
    /// Versions the key was derived for.
    pub tcb: Tcb,
    /// Chip id: 64 bytes, from Turin on 8 (VCEK only).
    pub hw_id: Option<Vec<u8>>,
    /// Provider id (VLEK only).
    pub csp_id: Option<String>,
}

impl VekExtensions {
    /// AMD's extensions of an endorsement-key certificate.
    ///
    /// # Errors
    /// [`CertError`] when one is missing, doubled or malformed, or an unknown one is critical.
    pub fn of(certificate: &Certificate) -> Result<Self, CertError> {
        certificate.check_critical(&[])?;
        let struct_version = integer(certificate, "structVersion", oid::STRUCT_VERSION)?;
        let fmc = match certificate.extension("fmcSPL", oid::FMC_SPL)? {
            Some(_) => Some(integer(certificate, "fmcSPL", oid::FMC_SPL)?),
            None => None,
        };
        let tcb = Tcb {
            fmc,
            bootloader: integer(certificate, "blSPL", oid::BL_SPL)?,
            tee: integer(certificate, "teeSPL", oid::TEE_SPL)?,
            snp: integer(certificate, "snpSPL", oid::SNP_SPL)?,
            microcode: integer(certificate, "ucodeSPL", oid::UCODE_SPL)?,
        };
        let product_name = certificate
            .extension("productName1", oid::PRODUCT_NAME)?
            .ok_or(CertError::MissingExtension { name: "productName1", oid: oid::PRODUCT_NAME })
            .and_then(|value| ia5("productName1", value))?;
        let hw_id = certificate.extension("hwID", oid::HW_ID)?.map(hardware_id).transpose()?;
        let csp_id =
            certificate.extension("cspID", oid::CSP_ID)?.map(|value| ia5("cspID", value)).transpose()?;
        Ok(Self { struct_version, product_name, tcb, hw_id, csp_id })
    }
}

fn integer(certificate: &Certificate, name: &'static str, oid: ObjectIdentifier) -> Result<u8, CertError> {
    let value = certificate.extension(name, oid)?.ok_or(CertError::MissingExtension { name, oid })?;
    u8::from_der(value).map_err(|_| CertError::BadExtension { name })
}

/// The hardware id is raw in older certificates and an OCTET STRING in newer ones.
fn hardware_id(value: &[u8]) -> Result<Vec<u8>, CertError> {
    let raw = match value.len() {
        64 | 8 => value.to_vec(),
        _ => OctetString::from_der(value).map_err(|_| CertError::BadExtension { name: "hwID" })?.into_bytes(),
    };
    if raw.len() == 64 || raw.len() == 8 {
        return Ok(raw);
    }
    Err(CertError::BadExtension { name: "hwID" })
}

fn ia5(name: &'static str, value: &[u8]) -> Result<String, CertError> {
    Ia5String::from_der(value).map(|text| text.to_string()).map_err(|_| CertError::BadExtension { name })
}
