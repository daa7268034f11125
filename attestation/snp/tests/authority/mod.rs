//! An authority of the test: certificates, revocation lists and reports in AMD's form under a root of its own.
//!
//! AMD's revocation lists and reports of some versions are not published, so the test issues its own, with the same
//! algorithms and extensions. Keys are shorter, as RSA-4096 takes seconds to make.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PSS_SHA384, RsaKeyPair,
};
use kata_cc_snp::certs::{
    Certificate, OID_EC_PUBLIC_KEY, OID_P384, OID_RSA, OID_RSASSA_PSS, PSS_PARAMS, oid,
};
use kata_cc_snp::report::{CpuId, FirmwareVersion, SIGNATURE_ALGO_ECDSA_P384, SIGNED_LEN, Signature};
use kata_cc_snp::{Endorsements, GuestPolicy, KeyInfo, PlatformInfo, Report, Tcb, TrustAnchor, VekKind};
use x509_cert::crl::{CertificateList, RevokedCert, TbsCertList};
use x509_cert::der::asn1::{Any, BitString, Ia5String, Null, ObjectIdentifier, OctetString, UtcTime};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::BasicConstraints;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};
use x509_cert::{TbsCertificate, Version};

/// 2025-09-01.
pub const NOW: u64 = 1_756_684_800;
pub const DAY: u64 = 24 * 3600;

pub const ARK_SERIAL: u8 = 1;
pub const ASK_SERIAL: u8 = 2;

/// Who signs a list.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    Ark,
    Ask,
}

/// What a key and its reports are to be.
#[derive(Clone, Copy)]
pub struct Chip {
    pub kind: VekKind,
    pub version: u32,
    pub cpu: CpuId,
    pub tcb: Tcb,
    pub serial: u8,
}

impl Chip {
    pub const MILAN: Self = Self {
        kind: VekKind::Vcek,
        version: 3,
        cpu: CpuId { family: 0x19, model: 1, stepping: 1 },
        tcb: Tcb { fmc: None, bootloader: 4, tee: 0, snp: 24, microcode: 219 },
        serial: 0,
    };
    pub const TURIN: Self = Self {
        kind: VekKind::Vcek,
        version: 5,
        cpu: CpuId { family: 0x1A, model: 2, stepping: 1 },
        tcb: Tcb { fmc: Some(1), bootloader: 1, tee: 2, snp: 3, microcode: 71 },
        serial: 0,
    };
}

/// Root, intermediate and one chip.
pub struct Authority {
    pub ark: Certificate,
    pub ask: Certificate,
    pub vek: Certificate,
    ark_key: RsaKeyPair,
    ask_key: RsaKeyPair,
    key: EcdsaKeyPair,
    chip: Chip,
}

impl Authority {
    pub fn new(chip: Chip) -> Self {
        let (ark_key, ask_key) = (rsa(), rsa());
        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let ark = certificate(&ark_key, "ARK-Test", "ARK-Test", ARK_SERIAL, rsa_spki(&ark_key), authority());
        let ask = certificate(&ark_key, "ARK-Test", "SEV-Test", ASK_SERIAL, rsa_spki(&ask_key), authority());
        let extensions = vek_extensions(&chip);
        let vek = certificate(&ask_key, "SEV-Test", "SEV-VEK", chip.serial, ec_spki(&key), extensions);
        Self { ark, ask, vek, ark_key, ask_key, key, chip }
    }

    pub fn anchor(&self) -> TrustAnchor {
        TrustAnchor::Simulated(Box::new(self.ark.clone()))
    }

    pub fn endorsements(&self) -> Endorsements {
        Endorsements { vek: self.vek.der().to_vec(), ask: Some(self.ask.der().to_vec()), ark: None }
    }

    /// A list that is in force from a day before `NOW` until `until`.
    pub fn crl(&self, signer: Signer, serials: &[u8], until: u64) -> Vec<u8> {
        let (name, key) = match signer {
            Signer::Ark => ("ARK-Test", &self.ark_key),
            Signer::Ask => ("SEV-Test", &self.ask_key),
        };
        let revoked = serials.iter().map(|serial| RevokedCert {
            serial_number: SerialNumber::new(&[*serial]).unwrap(),
            revocation_date: time(NOW - DAY),
            crl_entry_extensions: None,
        });
        let tbs_cert_list = TbsCertList {
            version: Version::V2,
            signature: pss(),
            issuer: name_of(name),
            this_update: time(NOW - 2 * DAY),
            next_update: Some(time(until)),
            revoked_certificates: (!serials.is_empty()).then(|| revoked.collect()),
            crl_extensions: None,
        };
        let signature = sign(key, &tbs_cert_list.to_der().unwrap());
        CertificateList { tbs_cert_list, signature_algorithm: pss(), signature }.to_der().unwrap()
    }

    /// A report as firmware makes them, not yet signed.
    pub fn unsigned(&self) -> Report {
        let chip = &self.chip;
        let vlek = chip.kind == VekKind::Vlek;
        let current = Tcb { microcode: chip.tcb.microcode + 1, ..chip.tcb };
        Report {
            version: chip.version,
            guest_svn: 7,
            policy: GuestPolicy(0x3_0137),
            family_id: [1; 16],
            image_id: [2; 16],
            vmpl: 0,
            signature_algo: SIGNATURE_ALGO_ECDSA_P384,
            current_tcb: current,
            platform_info: PlatformInfo(0x25),
            key_info: KeyInfo(u32::from(vlek) << 2 | 1),
            report_data: [3; 64],
            measurement: [4; 48],
            host_data: [5; 32],
            id_key_digest: [6; 48],
            author_key_digest: [7; 48],
            report_id: [8; 32],
            report_id_ma: [0xFF; 32],
            reported_tcb: chip.tcb,
            cpuid: (chip.version > 2).then_some(chip.cpu),
            chip_id: if vlek { [0; 64] } else { self.chip_id() },
            committed_tcb: chip.tcb,
            current_version: FirmwareVersion { major: 1, minor: 55, build: 30 },
            committed_version: FirmwareVersion { major: 1, minor: 55, build: 29 },
            launch_tcb: chip.tcb,
            launch_mit_vector: (chip.version > 4).then_some(1),
            current_mit_vector: (chip.version > 4).then_some(3),
            signature: Signature::ZERO,
        }
    }

    /// Signs it, as it is.
    pub fn sign(&self, report: &Report) -> Vec<u8> {
        let mut bytes = report.to_bytes();
        self.sign_bytes(&mut bytes);
        bytes.to_vec()
    }

    pub fn sign_bytes(&self, bytes: &mut [u8]) {
        let made = self.key.sign(&SystemRandom::new(), &bytes[..SIGNED_LEN]).unwrap();
        let signature = Signature::from_fixed(made.as_ref().try_into().unwrap());
        bytes[SIGNED_LEN..SIGNED_LEN + 72].copy_from_slice(&signature.r);
        bytes[SIGNED_LEN + 72..SIGNED_LEN + 144].copy_from_slice(&signature.s);
    }

    fn chip_id(&self) -> [u8; 64] {
        let mut id = [0; 64];
        id[..hw_id(&self.chip).len()].copy_from_slice(&hw_id(&self.chip));
        id
    }
}

fn hw_id(chip: &Chip) -> Vec<u8> {
    vec![9; if chip.tcb.fmc.is_some() { 8 } else { 64 }]
}

fn rsa() -> RsaKeyPair {
    RsaKeyPair::generate(KeySize::Rsa2048).unwrap()
}

fn pss() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: OID_RSASSA_PSS, parameters: Some(Any::from_der(PSS_PARAMS).unwrap()) }
}

fn sign(key: &RsaKeyPair, message: &[u8]) -> BitString {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PSS_SHA384, &SystemRandom::new(), message, &mut signature).unwrap();
    BitString::from_bytes(&signature).unwrap()
}

fn name_of(common_name: &str) -> Name {
    format!("CN={common_name},O=kata-cc test").parse().unwrap()
}

fn time(seconds: u64) -> Time {
    Time::UtcTime(UtcTime::from_unix_duration(Duration::from_secs(seconds)).unwrap())
}

fn rsa_spki(key: &RsaKeyPair) -> SubjectPublicKeyInfoOwned {
    SubjectPublicKeyInfoOwned {
        algorithm: AlgorithmIdentifierOwned {
            oid: OID_RSA,
            parameters: Some(Any::encode_from(&Null).unwrap()),
        },
        subject_public_key: BitString::from_bytes(key.public_key().as_ref()).unwrap(),
    }
}

fn ec_spki(key: &EcdsaKeyPair) -> SubjectPublicKeyInfoOwned {
    let parameters = Some(Any::encode_from(&OID_P384).unwrap());
    SubjectPublicKeyInfoOwned {
        algorithm: AlgorithmIdentifierOwned { oid: OID_EC_PUBLIC_KEY, parameters },
        subject_public_key: BitString::from_bytes(key.public_key().as_ref()).unwrap(),
    }
}

fn extension(id: ObjectIdentifier, critical: bool, value: Vec<u8>) -> Extension {
    Extension { extn_id: id, critical, extn_value: OctetString::new(value).unwrap() }
}

fn authority() -> Vec<Extension> {
    let basic = BasicConstraints { ca: true, path_len_constraint: None };
    vec![extension(ObjectIdentifier::new_unwrap("2.5.29.19"), true, basic.to_der().unwrap())]
}

fn vek_extensions(chip: &Chip) -> Vec<Extension> {
    let ia5 = |text: &str| Ia5String::new(text).unwrap().to_der().unwrap();
    let number = |value: u8| value.to_der().unwrap();
    let tcb = &chip.tcb;
    let mut out = vec![
        extension(oid::STRUCT_VERSION, false, number(u8::from(tcb.fmc.is_some()))),
        extension(oid::PRODUCT_NAME, false, ia5("Test-B0")),
        extension(oid::BL_SPL, false, number(tcb.bootloader)),
        extension(oid::TEE_SPL, false, number(tcb.tee)),
        extension(oid::SNP_SPL, false, number(tcb.snp)),
        extension(oid::UCODE_SPL, false, number(tcb.microcode)),
    ];
    out.extend(tcb.fmc.map(|fmc| extension(oid::FMC_SPL, false, number(fmc))));
    out.push(match chip.kind {
        VekKind::Vcek => extension(oid::HW_ID, false, hw_id(chip)),
        VekKind::Vlek => extension(oid::CSP_ID, false, ia5("CN=provider.test")),
    });
    out
}

fn certificate(
    issuer_key: &RsaKeyPair,
    issuer: &str,
    subject: &str,
    serial: u8,
    key: SubjectPublicKeyInfoOwned,
    extensions: Vec<Extension>,
) -> Certificate {
    let tbs_certificate = TbsCertificate {
        version: Version::V3,
        serial_number: SerialNumber::new(&[serial]).unwrap(),
        signature: pss(),
        issuer: name_of(issuer),
        validity: Validity { not_before: time(NOW - 100 * DAY), not_after: time(NOW + 100 * DAY) },
        subject: name_of(subject),
        subject_public_key_info: key,
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: Some(extensions),
    };
    let signature = sign(issuer_key, &tbs_certificate.to_der().unwrap());
    let whole = x509_cert::Certificate { tbs_certificate, signature_algorithm: pss(), signature };
    Certificate::from_der(&whole.to_der().unwrap()).unwrap()
}
