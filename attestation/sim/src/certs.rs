//! Issues the certificates of a simulated platform, in the form of AMD's (57230, chapter 3).
//!
//! Same algorithms, same extensions, same place of the hardware id; other names. They are put
//! together field by field, because serial number 0 and PSS parameters are beyond what
//! certificate builders offer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PSS_SHA384, RsaKeyPair,
};
use kata_cc_snp::Tcb;
use kata_cc_snp::certs::{OID_EC_PUBLIC_KEY, OID_P384, OID_RSA, OID_RSASSA_PSS, PSS_PARAMS, oid};
use x509_cert::der::asn1::{Any, BitString, Ia5String, Null, ObjectIdentifier, OctetString, UtcTime};
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{Decode, Encode, EncodePem};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};
use x509_cert::{Certificate, TbsCertificate, Version};
use zeroize::Zeroizing;

use crate::SimError;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Five years: longer than any throw-away platform is of use.
const LIFE: Duration = Duration::from_secs(5 * 365 * 24 * 3600);

const OID_BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const OID_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");

/// What [`issue`] makes: DER certificates and the one key that is kept.
pub(crate) struct Issued {
    pub(crate) ark: Vec<u8>,
    pub(crate) ask: Vec<u8>,
    pub(crate) vcek: Vec<u8>,
    pub(crate) vcek_key: Zeroizing<Vec<u8>>,
}

/// Issues a whole chain. The keys of root and intermediate end with this function.
pub(crate) fn issue(chip_id: &[u8; 64], tcb: &Tcb) -> Result<Issued, SimError> {
    let ark_key = rsa_key()?;
    let ask_key = rsa_key()?;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &SystemRandom::new())
        .map_err(|_| SimError::Crypto { operation: "making a P-384 key" })?;
    let vcek_key = Zeroizing::new(pkcs8.as_ref().to_vec());
    let vcek = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &vcek_key)
        .map_err(|_| SimError::Crypto { operation: "loading a P-384 key" })?;

    let (ark_name, ask_name) = (name("ARK-Simulated")?, name("SEV-Simulated")?);
    let ark = Fields {
        serial: 1,
        issuer: &ark_name,
        subject: ark_name.clone(),
        key: rsa_spki(&ark_key)?,
        extensions: authority_extensions(None)?,
    };
    let ask = Fields {
        serial: 2,
        issuer: &ark_name,
        subject: ask_name.clone(),
        key: rsa_spki(&ask_key)?,
        extensions: authority_extensions(Some(0))?,
    };
    let vcek = Fields {
        serial: 0,
        issuer: &ask_name,
        subject: name("SEV-VCEK-Simulated")?,
        key: ec_spki(&vcek)?,
        extensions: vcek_extensions(chip_id, tcb)?,
    };
    Ok(Issued { ark: ark.sign(&ark_key)?, ask: ask.sign(&ark_key)?, vcek: vcek.sign(&ask_key)?, vcek_key })
}

/// PEM of a DER certificate.
pub(crate) fn pem(der: &[u8]) -> Result<String, SimError> {
    Ok(Certificate::from_der(der)?.to_pem(LineEnding::LF)?)
}

fn rsa_key() -> Result<RsaKeyPair, SimError> {
    RsaKeyPair::generate(KeySize::Rsa4096)
        .map_err(|_| SimError::Crypto { operation: "making an RSA-4096 key" })
}

fn name(common_name: &str) -> Result<Name, SimError> {
    Ok(format!("CN={common_name},O=kata-cc simulated platform (no hardware),OU=Test").parse()?)
}

fn rsa_spki(key: &RsaKeyPair) -> Result<SubjectPublicKeyInfoOwned, SimError> {
    Ok(SubjectPublicKeyInfoOwned {
        algorithm: AlgorithmIdentifierOwned { oid: OID_RSA, parameters: Some(Any::encode_from(&Null)?) },
        subject_public_key: BitString::from_bytes(key.public_key().as_ref())?,
    })
}

fn ec_spki(key: &EcdsaKeyPair) -> Result<SubjectPublicKeyInfoOwned, SimError> {
    Ok(SubjectPublicKeyInfoOwned {
        algorithm: AlgorithmIdentifierOwned {
            oid: OID_EC_PUBLIC_KEY,
            parameters: Some(Any::encode_from(&OID_P384)?),
        },
        subject_public_key: BitString::from_bytes(key.public_key().as_ref())?,
    })
}

fn extension(id: ObjectIdentifier, critical: bool, value: Vec<u8>) -> Result<Extension, SimError> {
    Ok(Extension { extn_id: id, critical, extn_value: OctetString::new(value)? })
}

fn authority_extensions(path_len: Option<u8>) -> Result<Vec<Extension>, SimError> {
    let basic = BasicConstraints { ca: true, path_len_constraint: path_len };
    let usage = KeyUsage(KeyUsages::KeyCertSign.into());
    Ok(vec![
        extension(OID_KEY_USAGE, true, usage.to_der()?)?,
        extension(OID_BASIC_CONSTRAINTS, true, basic.to_der()?)?,
    ])
}

fn vcek_extensions(chip_id: &[u8; 64], tcb: &Tcb) -> Result<Vec<Extension>, SimError> {
    let mut out = vec![
        extension(oid::STRUCT_VERSION, false, 0u8.to_der()?)?,
        extension(oid::PRODUCT_NAME, false, Ia5String::new("Simulated")?.to_der()?)?,
    ];
    if let Some(fmc) = tcb.fmc {
        out.push(extension(oid::FMC_SPL, false, fmc.to_der()?)?);
    }
    for (id, value) in [
        (oid::BL_SPL, tcb.bootloader),
        (oid::TEE_SPL, tcb.tee),
        (oid::SNP_SPL, tcb.snp),
        (oid::UCODE_SPL, tcb.microcode),
    ] {
        out.push(extension(id, false, value.to_der()?)?);
    }
    // Raw, not DER: as in the certificates AMD issues for Milan and Genoa.
    out.push(extension(oid::HW_ID, false, chip_id.to_vec())?);
    Ok(out)
}

/// What distinguishes the three certificates.
struct Fields<'a> {
    serial: u8,
    issuer: &'a Name,
    subject: Name,
    key: SubjectPublicKeyInfoOwned,
    extensions: Vec<Extension>,
}

impl Fields<'_> {
    fn sign(self, issuer_key: &RsaKeyPair) -> Result<Vec<u8>, SimError> {
        let algorithm =
            AlgorithmIdentifierOwned { oid: OID_RSASSA_PSS, parameters: Some(Any::from_der(PSS_PARAMS)?) };
        let tbs_certificate = TbsCertificate {
            version: Version::V3,
            serial_number: SerialNumber::new(&[self.serial])?,
            signature: algorithm.clone(),
            issuer: self.issuer.clone(),
            validity: validity()?,
            subject: self.subject,
            subject_public_key_info: self.key,
            issuer_unique_id: None,
            subject_unique_id: None,
            extensions: Some(self.extensions),
        };
        let tbs = tbs_certificate.to_der()?;
        let mut signature = vec![0; issuer_key.public_modulus_len()];
        issuer_key
            .sign(&RSA_PSS_SHA384, &SystemRandom::new(), &tbs, &mut signature)
            .map_err(|_| SimError::Crypto { operation: "signing a certificate" })?;
        let certificate = Certificate {
            tbs_certificate,
            signature_algorithm: algorithm,
            signature: BitString::from_bytes(&signature)?,
        };
        Ok(certificate.to_der()?)
    }
}

/// From a day ago (guests' clocks may lag) for [`LIFE`].
fn validity() -> Result<Validity, SimError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let whole = |time: Duration| Duration::from_secs(time.as_secs());
    Ok(Validity {
        not_before: Time::UtcTime(UtcTime::from_unix_duration(whole(now.saturating_sub(DAY)))?),
        not_after: Time::UtcTime(UtcTime::from_unix_duration(whole(now + LIFE))?),
    })
}
