//! Certificates and revocation lists made here, signed with each algorithm, and Intel's real ones.
#![allow(clippy::unwrap_used, missing_docs)]

use std::str::FromStr as _;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair as _, RSA_PSS_SHA384, RsaKeyPair};
use kata_cc_x509::{
    AlgorithmError, CertError, Certificate, Crl, CrlError, MAX_CRL, OID_RSA, OID_RSASSA_PSS, PSS_PARAMS,
    SignatureAlgorithm,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use x509_cert::crl::{CertificateList, RevokedCert, TbsCertList};
use x509_cert::der::asn1::{Any, BitString, Null};
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::name::Name;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};
use x509_cert::{TbsCertificate, Version};

const P256: SignatureAlgorithm = SignatureAlgorithm::EcdsaP256Sha256;
const P384: SignatureAlgorithm = SignatureAlgorithm::EcdsaP384Sha384;
const PSS: SignatureAlgorithm = SignatureAlgorithm::RsaPssSha384;

/// Validity of what is made here: 2025-01-01 to 2025-02-01.
const START: u64 = 1_735_689_600;
const END: u64 = 1_738_368_000;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(algorithm: &'static rcgen::SignatureAlgorithm) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) =
        (rcgen::date_time_ymd(2025, 1, 1), rcgen::date_time_ymd(2025, 2, 1));
    CertifiedIssuer::self_signed(params, KeyPair::generate_for(algorithm).unwrap()).unwrap()
}

fn leaf(issuer: &Authority) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Leaf");
    params.serial_number = Some(SerialNumber::from(vec![7, 7]));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().to_vec()
}

fn crl_of(issuer: &Authority, revoked: &[u8]) -> Vec<u8> {
    let params = CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2025, 1, 1),
        next_update: rcgen::date_time_ymd(2025, 2, 1),
        crl_number: SerialNumber::from(vec![1, 2]),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(revoked.to_vec()),
            revocation_time: rcgen::date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).unwrap().der().to_vec()
}

#[test]
fn elliptic_curves_verify_each_their_own() {
    let kinds = [
        (P256, &rcgen::PKCS_ECDSA_P256_SHA256, P384, "P-384"),
        (P384, &rcgen::PKCS_ECDSA_P384_SHA384, P256, "P-256"),
    ];
    for (right, algorithm, wrong, wanted) in kinds {
        let issuer = authority(algorithm);
        let root = Certificate::from_der(issuer.der()).unwrap();
        let cert = Certificate::from_der(&leaf(&issuer)).unwrap();
        assert!(root.signed_by(&root, right).unwrap() && cert.signed_by(&root, right).unwrap());
        assert!(cert.names_issuer(&root) && !root.names_issuer(&cert));
        let other = Certificate::from_der(authority(algorithm).der()).unwrap();
        assert_eq!(cert.signed_by(&other, right), Ok(false), "the same name, another key");
        for refused in [wrong, PSS] {
            let error = cert.signed_by(&root, refused).unwrap_err();
            assert!(matches!(error, CertError::SignatureAlgorithm { .. }), "{error}");
        }
        let crl = Crl::from_der(&crl_of(&issuer, &[7, 7])).unwrap();
        assert_eq!(crl.signed_by(&root, right), Ok(true));
        assert_eq!(crl.signed_by(&other, right), Ok(false));
        let error = crl.signed_by(&root, wrong).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
        assert!(crl.names_issuer(&root) && crl.covers(&cert) && !crl.names_issuer(&cert));
        assert!(crl.revokes(cert.serial()) && !crl.revokes(&[7]) && !crl.revokes(root.serial()));
        assert_eq!((crl.number(), crl.len(), crl.is_empty()), (Some(0x102), 1, false));
    }
}

#[test]
fn roles_and_times_are_checked() {
    let issuer = authority(&rcgen::PKCS_ECDSA_P256_SHA256);
    let root = Certificate::from_der(issuer.der()).unwrap();
    let cert = Certificate::from_der(&leaf(&issuer)).unwrap();
    assert_eq!((root.check_authority(), cert.check_end_entity()), (Ok(()), Ok(())));
    assert_eq!(cert.check_authority(), Err(CertError::NotAuthority { subject: "Leaf".to_owned() }));
    assert_eq!(root.check_end_entity(), Err(CertError::NotEndEntity { subject: "Authority".to_owned() }));
    assert_eq!(cert.p256_public_key().unwrap().len(), 65);
    assert!(matches!(cert.p384_public_key(), Err(CertError::KeyAlgorithm { .. })));
    assert_eq!((root.not_before(), root.not_after()), (START, END));
    let crl = Crl::from_der(&crl_of(&issuer, &[1])).unwrap();
    assert_eq!((crl.this_update(), crl.next_update()), (START, END));
    for now in [START, END] {
        assert_eq!((root.check_validity(now), crl.check_validity(now)), (Ok(()), Ok(())));
    }
    for now in [START - 1, END + 1, u64::MAX] {
        assert!(matches!(root.check_validity(now), Err(CertError::Validity { .. })));
        let error = crl.check_validity(now).unwrap_err();
        assert!(
            error.to_string().starts_with("revocation list of Authority is valid from 2025-01-01"),
            "{error}"
        );
    }
}

#[test]
fn every_bit_of_a_signed_list_and_certificate_counts() {
    let issuer = authority(&rcgen::PKCS_ECDSA_P256_SHA256);
    let root = Certificate::from_der(issuer.der()).unwrap();
    let (list, cert) = (crl_of(&issuer, &[7, 7]), leaf(&issuer));
    for bit in 0..list.len() * 8 {
        let mut changed = list.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let accepted = Crl::from_der(&changed).is_ok_and(|crl| crl.signed_by(&root, P256) == Ok(true));
        assert!(!accepted, "bit {bit} of the list");
    }
    for bit in 0..cert.len() * 8 {
        let mut changed = cert.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let accepted =
            Certificate::from_der(&changed).is_ok_and(|cert| cert.signed_by(&root, P256) == Ok(true));
        assert!(!accepted, "bit {bit} of the certificate");
    }
    for len in 0..list.len() {
        assert!(Crl::from_der(&list[..len]).is_err(), "{len} bytes");
    }
    assert!(Crl::from_der(&[&list[..], &[0]].concat()).is_err(), "trailing byte");
}

fn pss_identifier() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned { oid: OID_RSASSA_PSS, parameters: Some(Any::from_der(PSS_PARAMS).unwrap()) }
}

fn at(seconds: u64) -> Time {
    let time = x509_cert::der::DateTime::from_unix_duration(std::time::Duration::from_secs(seconds)).unwrap();
    Time::UtcTime(x509_cert::der::asn1::UtcTime::from_date_time(time).unwrap())
}

fn sign_pss(key: &RsaKeyPair, bytes: &[u8]) -> BitString {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PSS_SHA384, &SystemRandom::new(), bytes, &mut signature).unwrap();
    BitString::from_bytes(&signature).unwrap()
}

/// AMD's form: RSASSA-PSS, serial number 0.
#[test]
fn lists_in_the_form_of_amd_verify() {
    let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let name = Name::from_str("CN=ARK").unwrap();
    let tbs = TbsCertificate {
        version: Version::V3,
        serial_number: x509_cert::serial_number::SerialNumber::from(0u8),
        signature: pss_identifier(),
        issuer: name.clone(),
        validity: Validity { not_before: at(START), not_after: at(END) },
        subject: name.clone(),
        subject_public_key_info: SubjectPublicKeyInfoOwned {
            algorithm: AlgorithmIdentifierOwned {
                oid: OID_RSA,
                parameters: Some(Any::encode_from(&Null).unwrap()),
            },
            subject_public_key: BitString::from_bytes(key.public_key().as_ref()).unwrap(),
        },
        issuer_unique_id: None,
        subject_unique_id: None,
        extensions: None,
    };
    let signature = sign_pss(&key, &tbs.to_der().unwrap());
    let root =
        x509_cert::Certificate { tbs_certificate: tbs, signature_algorithm: pss_identifier(), signature };
    let root = Certificate::from_der(&root.to_der().unwrap()).unwrap();
    assert_eq!((root.signed_by(&root, PSS), root.serial()), (Ok(true), &[0][..]));
    let mut tbs = TbsCertList {
        version: Version::V2,
        signature: pss_identifier(),
        issuer: name,
        this_update: at(START),
        next_update: Some(at(END)),
        revoked_certificates: Some(vec![RevokedCert {
            serial_number: x509_cert::serial_number::SerialNumber::from(0x10001u32),
            revocation_date: at(START),
            crl_entry_extensions: None,
        }]),
        crl_extensions: None,
    };
    let list = |tbs: &TbsCertList| {
        let signature = sign_pss(&key, &tbs.to_der().unwrap());
        CertificateList { tbs_cert_list: tbs.clone(), signature_algorithm: pss_identifier(), signature }
            .to_der()
            .unwrap()
    };
    let crl = Crl::from_der(&list(&tbs)).unwrap();
    assert_eq!(crl.signed_by(&root, PSS), Ok(true));
    assert!(crl.revokes(&[1, 0, 1]) && !crl.revokes(root.serial()));
    let error = crl.signed_by(&root, P256).unwrap_err();
    assert!(matches!(error, CrlError::Algorithm(AlgorithmError::Signature { .. })), "{error}");
    tbs.next_update = None;
    assert_eq!(Crl::from_der(&list(&tbs)), Err(CrlError::NoNextUpdate { issuer: "ARK".to_owned() }));
    tbs.next_update = Some(at(END));
    tbs.crl_extensions = Some(vec![x509_cert::ext::Extension {
        extn_id: kata_cc_x509::ObjectIdentifier::new_unwrap("2.5.29.27"),
        critical: true,
        extn_value: x509_cert::der::asn1::OctetString::new(vec![2, 1, 1]).unwrap(),
    }]);
    let error = Crl::from_der(&list(&tbs)).unwrap_err();
    assert!(matches!(error, CrlError::CriticalExtension { .. }), "a delta list is no whole one: {error}");
}

#[test]
fn oversized_and_foreign_input_is_refused() {
    assert_eq!(Crl::from_der(&vec![0; MAX_CRL + 1]), Err(CrlError::TooLong { seen: MAX_CRL + 1 }));
    assert!(matches!(Crl::from_der_or_pem(b""), Err(CrlError::Der(_))));
    assert!(matches!(Crl::from_der_or_pem(b"-----BEGIN X509 CRL-----\nA"), Err(CrlError::Pem { .. })));
    let issuer = authority(&rcgen::PKCS_ECDSA_P256_SHA256);
    assert!(Crl::from_der(issuer.der()).is_err(), "a certificate is no list");
    assert!(Certificate::from_der(&crl_of(&issuer, &[1])).is_err(), "a list is no certificate");
}

#[test]
fn intels_lists_verify() {
    let Some(dir) = kata_cc_test_vectors::path("tdx") else { return };
    let read = |path: &str| std::fs::read(dir.join(path)).unwrap();
    let root = Certificate::from_der(&read("certs/intel-sgx-root-ca.der")).unwrap();
    assert_eq!(root.signed_by(&root, P256), Ok(true));
    let chain =
        Certificate::chain_from_pem(&read("quotes/v5-gcollateral/collateral/pck_crl_issuer_chain.pem"))
            .unwrap();
    let crl = Crl::from_der_or_pem(&read("quotes/v5-gcollateral/collateral/pck.crl")).unwrap();
    assert_eq!(crl.signed_by(&chain[0], P256), Ok(true));
    assert_eq!(crl.signed_by(&root, P256), Ok(false));
    assert!(crl.names_issuer(&chain[0]) && !crl.is_empty() && crl.number().is_some());
    let of_root = Crl::from_der_or_pem(&read("quotes/v5-gcollateral/collateral/root_ca.crl")).unwrap();
    assert!(of_root.signed_by(&root, P256).unwrap() && of_root.covers(&chain[0]));
    assert!(!of_root.revokes(chain[0].serial()));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let _ = (Crl::from_der_or_pem(&bytes), Certificate::from_der_or_pem(&bytes));
    }
}
