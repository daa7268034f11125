//! Issues the certificates and revocation lists of a simulated TDX platform, in the form of Intel's: P-256, the same
//! extensions, other names.

use std::time::Duration;

use kata_cc_tdx::pck::oid;
use kata_cc_x509::{OID_EC_PUBLIC_KEY, OID_ECDSA_SHA256, OID_P256};
use x509_cert::crl::{CertificateList, RevokedCert, TbsCertList};
use x509_cert::der::asn1::{Any, BitString, ObjectIdentifier, OctetString, UtcTime};
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{self, Encode, EncodePem, Tag};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, KeyUsages};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};
use x509_cert::{Certificate, TbsCertificate, Version};

use super::{COMPONENTS, FMSPC, Key, PCE_SVN};
use crate::SimError;

const OID_BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const OID_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const OID_CRL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.20");

/// Seven years, as a PCK certificate.
pub(super) const CERT_LIFE: u64 = 7 * 365 * 24 * 3600;

/// A certificate and its key; of the platform itself, too.
pub(super) struct Authority {
    certificate: Certificate,
    key: Key,
    serial: u8,
}

pub(super) struct Issued {
    pub(super) root: Authority,
    pub(super) pck_ca: Authority,
    pub(super) tcb_signing: Authority,
    pub(super) pck: Authority,
}

/// Issues all certificates at `now` (seconds since 1970).
pub(super) fn issue(now: u64) -> Result<Issued, SimError> {
    let key = Key::generate()?;
    let name = name("Simulated SGX Root CA")?;
    let certificate = certificate(&key, &name, &name, 1, now, ca(1)?, &key)?;
    let root = Authority { certificate, key, serial: 1 };
    let pck_ca = root.issue("Simulated SGX PCK Platform CA", 2, now, ca(0)?)?;
    let tcb_signing = root.issue("Simulated SGX TCB Signing", 3, now, leaf()?)?;
    let mut extensions = leaf()?;
    extensions.push(extension(oid::SGX, false, sgx_extension()?)?);
    let pck = pck_ca.issue("Simulated SGX PCK Certificate", 4, now, extensions)?;
    Ok(Issued { root, pck_ca, tcb_signing, pck })
}

/// PEM of several certificates.
pub(super) fn pem_chain(chain: &[&Authority]) -> String {
    // Encoding what was encoded before cannot fail.
    chain.iter().filter_map(|authority| authority.certificate.to_pem(LineEnding::LF).ok()).collect()
}

impl Authority {
    pub(super) const fn key(&self) -> &Key {
        &self.key
    }

    pub(super) const fn serial(&self) -> u8 {
        self.serial
    }

    fn issue(
        &self,
        subject: &str,
        serial: u8,
        now: u64,
        extensions: Vec<Extension>,
    ) -> Result<Self, SimError> {
        let key = Key::generate()?;
        let issuer = &self.certificate.tbs_certificate.subject;
        let certificate = certificate(&key, &name(subject)?, issuer, serial, now, extensions, &self.key)?;
        Ok(Self { certificate, key, serial })
    }

    /// The list of this authority, current for `life` seconds, DER.
    pub(super) fn revocation_list(&self, serials: &[u8], now: u64, life: u64) -> Result<Vec<u8>, SimError> {
        let revoked = serials
            .iter()
            .map(|serial| {
                Ok(RevokedCert {
                    serial_number: SerialNumber::new(&[*serial])?,
                    revocation_date: time(now)?,
                    crl_entry_extensions: None,
                })
            })
            .collect::<Result<Vec<_>, SimError>>()?;
        let tbs_cert_list = TbsCertList {
            version: Version::V2,
            signature: algorithm(),
            issuer: self.certificate.tbs_certificate.subject.clone(),
            this_update: time(now)?,
            next_update: Some(time(now + life)?),
            revoked_certificates: (!revoked.is_empty()).then_some(revoked),
            crl_extensions: Some(vec![extension(OID_CRL_NUMBER, false, 1u8.to_der()?)?]),
        };
        let signature = BitString::from_bytes(&self.key.sign_der(&tbs_cert_list.to_der()?)?)?;
        Ok(CertificateList { tbs_cert_list, signature_algorithm: algorithm(), signature }.to_der()?)
    }
}

fn certificate(
    key: &Key,
    subject: &Name,
    issuer: &Name,
    serial: u8,
    now: u64,
    extensions: Vec<Extension>,
    signer: &Key,
) -> Result<Certificate, SimError> {
    let tbs_certificate = TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::new(&[serial])?,
        signature: algorithm(),
        issuer: issuer.clone(),
        validity: Validity { not_before: time(now)?, not_after: time(now + CERT_LIFE)? },
        subject: subject.clone(),
        subject_public_key_info: SubjectPublicKeyInfoOwned {
            algorithm: AlgorithmIdentifierOwned {
                oid: OID_EC_PUBLIC_KEY,
                parameters: Some(Any::encode_from(&OID_P256)?),
            },
            subject_public_key: BitString::from_bytes(key.point())?,
        },
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(extensions),
    };
    let signature = BitString::from_bytes(&signer.sign_der(&tbs_certificate.to_der()?)?)?;
    Ok(Certificate { tbs_certificate, signature_algorithm: algorithm(), signature })
}

const fn algorithm() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: OID_ECDSA_SHA256, parameters: None }
}

fn name(common_name: &str) -> Result<Name, SimError> {
    Ok(format!("CN={common_name},O=kata-cc simulated platform (no hardware),OU=Test").parse()?)
}

fn time(seconds: u64) -> Result<Time, SimError> {
    Ok(Time::UtcTime(UtcTime::from_unix_duration(Duration::from_secs(seconds))?))
}

fn extension(id: ObjectIdentifier, critical: bool, value: Vec<u8>) -> Result<Extension, SimError> {
    Ok(Extension { extn_id: id, critical, extn_value: OctetString::new(value)? })
}

fn ca(path_len: u8) -> Result<Vec<Extension>, SimError> {
    let basic = BasicConstraints { ca: true, path_len_constraint: Some(path_len) };
    let usage = KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign);
    Ok(vec![
        extension(OID_KEY_USAGE, true, usage.to_der()?)?,
        extension(OID_BASIC_CONSTRAINTS, true, basic.to_der()?)?,
    ])
}

fn leaf() -> Result<Vec<Extension>, SimError> {
    let basic = BasicConstraints { ca: false, path_len_constraint: None };
    let usage = KeyUsage(KeyUsages::DigitalSignature | KeyUsages::NonRepudiation);
    Ok(vec![
        extension(OID_KEY_USAGE, true, usage.to_der()?)?,
        extension(OID_BASIC_CONSTRAINTS, true, basic.to_der()?)?,
    ])
}

/// A sequence of encoded members.
fn sequence(members: &[Vec<u8>]) -> Result<Vec<u8>, SimError> {
    Ok(Any::new(Tag::Sequence, members.concat())?.to_der()?)
}

fn pair(id: ObjectIdentifier, value: Vec<u8>) -> Result<Vec<u8>, SimError> {
    sequence(&[id.to_der()?, value])
}

fn octets(bytes: &[u8]) -> Result<Vec<u8>, SimError> {
    Ok(OctetString::new(bytes)?.to_der()?)
}

fn below(id: ObjectIdentifier, arc: u32) -> Result<ObjectIdentifier, SimError> {
    Ok(id.push_arc(arc).map_err(der::Error::from)?)
}

/// Intel's extension of a PCK certificate.
fn sgx_extension() -> Result<Vec<u8>, SimError> {
    let mut tcb = Vec::new();
    for (arc, svn) in (1..).zip(COMPONENTS) {
        tcb.push(pair(below(oid::TCB, arc)?, svn.to_der()?)?);
    }
    tcb.push(pair(below(oid::TCB, 17)?, PCE_SVN.to_der()?)?);
    tcb.push(pair(below(oid::TCB, 18)?, octets(&COMPONENTS)?)?);
    let mut configuration = Vec::new();
    for (arc, flag) in [(1, true), (2, true), (3, true)] {
        configuration.push(pair(below(oid::CONFIGURATION, arc)?, flag.to_der()?)?);
    }
    sequence(&[
        pair(oid::PPID, octets(b"simulated PPID..")?)?,
        pair(oid::TCB, sequence(&tcb)?)?,
        pair(oid::PCE_ID, octets(&[0, 0])?)?,
        pair(oid::FMSPC, octets(&FMSPC)?)?,
        pair(oid::SGX_TYPE, Any::new(Tag::Enumerated, [1])?.to_der()?)?,
        pair(oid::PLATFORM_INSTANCE, octets(b"simulated inst..")?)?,
        pair(oid::CONFIGURATION, sequence(&configuration)?)?,
    ])
}
