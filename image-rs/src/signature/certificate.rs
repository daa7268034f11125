//! Certificates of Fulcio: short-lived, for whoever logged in, and good only at the time that the log says.
//!
//! The chain is built by rustls-webpki, to the roots of the policy and to no others, with the extended key usage "code signing", at the time
//! of the log entry. Roots must be valid then too, as in containers-image. The identity is an address (rfc822Name) or, when the policy's
//! `subjectEmail` has `://` in it, a URI: the workflow that ran. The login service stands in Fulcio's extension 57264.1.8 (DER), or
//! in the older 57264.1.1 (plain text); where both are there they must agree.
//!
//! Signed certificate timestamps are not checked, as in containers-image: the Rekor entry that is demanded holds the whole certificate,
//! which says what an SCT would, and when.

use std::time::Duration;

use kata_cc_x509::{Certificate, ObjectIdentifier};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, Error, KeyUsage, anchor_from_trusted_cert};
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::Utf8StringRef;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{ExtendedKeyUsage, SubjectAltName};

use super::error::Reason;
use super::json::cut;
use super::key::PublicKey;

const OID_SAN: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const OID_ISSUER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57264.1.8");
const OID_ISSUER_OLD: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57264.1.1");
const OID_EKU: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
/// `id-kp-codeSigning`.
const OID_CODE_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.3");
/// The same as in DER.
const CODE_SIGNING: &[u8] = &[43, 6, 1, 5, 5, 7, 3, 3];

/// Who may sign, as a policy names them.
#[derive(Debug)]
pub(super) struct Fulcio {
    pub(super) roots: Vec<Certificate>,
    pub(super) issuer: String,
    pub(super) subject: String,
}

/// A certificate as it came with a signature, and what came with it: not believed yet.
pub(super) struct Presented {
    pub(super) leaf: CertificateDer<'static>,
    pub(super) chain: Vec<CertificateDer<'static>>,
}

fn malformed(why: impl std::fmt::Display) -> Reason {
    Reason::malformed("certificate", why)
}

impl Presented {
    /// Reads cosign's annotations: one certificate, and a chain that may be missing.
    pub(super) fn from_pem(leaf: &str, chain: Option<&str>) -> Result<Self, Reason> {
        let mut leaves = pem(leaf)?;
        match (leaves.pop(), leaves.is_empty()) {
            (Some(leaf), true) => Ok(Self { leaf, chain: chain.map(pem).transpose()?.unwrap_or_default() }),
            _ => Err(malformed("expected exactly one certificate")),
        }
    }
}

fn pem(text: &str) -> Result<Vec<CertificateDer<'static>>, Reason> {
    let limit = kata_cc_x509::MAX_CERT * kata_cc_x509::MAX_CHAIN;
    if text.len() > limit {
        return Err(Reason::Limit { limit: "certificate bytes", max: limit as u64, seen: text.len() as u64 });
    }
    let all: Vec<_> =
        CertificateDer::pem_slice_iter(text.as_bytes()).take(kata_cc_x509::MAX_CHAIN + 1).collect();
    if all.len() > kata_cc_x509::MAX_CHAIN {
        let (max, seen) = (kata_cc_x509::MAX_CHAIN as u64, all.len() as u64);
        return Err(Reason::Limit { limit: "certificates of a chain", max, seen });
    }
    all.into_iter().collect::<Result<_, _>>().map_err(malformed)
}

impl Fulcio {
    /// The key of a certificate that is good at `time` (seconds since 1970) and made for the identity of the policy.
    pub(super) fn key(&self, presented: &Presented, time: u64) -> Result<PublicKey, Reason> {
        self.check_chain(presented, time)?;
        let leaf = Certificate::from_der(&presented.leaf).map_err(malformed)?;
        if !signs_code(&leaf)? {
            let seen = "its extended key usage is not code signing".to_owned();
            return Err(Reason::UntrustedCertificate { seen, expected: "may sign code".to_owned() });
        }
        let issuer = issuer(&leaf)?;
        if issuer != self.issuer {
            let (seen, expected) = (cut(&issuer), self.issuer.clone());
            return Err(Reason::WrongSigner { field: "oidcIssuer", seen, expected });
        }
        let subjects = subjects(&leaf, self.subject.contains("://"))?;
        if !subjects.contains(&self.subject) {
            let seen =
                if subjects.is_empty() { "none of that kind".to_owned() } else { cut(&subjects.join(", ")) };
            return Err(Reason::WrongSigner { field: "subject", seen, expected: self.subject.clone() });
        }
        PublicKey::from_der(&leaf.spki_der().map_err(malformed)?).map_err(malformed)
    }

    fn check_chain(&self, presented: &Presented, time: u64) -> Result<(), Reason> {
        let valid: Vec<_> = self.roots.iter().filter(|root| root.check_validity(time).is_ok()).collect();
        let ders: Vec<_> = valid.iter().map(|root| CertificateDer::from(root.der())).collect();
        let anchors =
            ders.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>().map_err(malformed)?;
        let leaf = EndEntityCert::try_from(&presented.leaf).map_err(malformed)?;
        let at = UnixTime::since_unix_epoch(Duration::from_secs(time));
        // An authority that says what for must say this; the certificate itself has to say it (checked below).
        let usage = KeyUsage::required_if_present(CODE_SIGNING);
        let path =
            leaf.verify_for_usage(ALL_VERIFICATION_ALGS, &anchors, &presented.chain, at, usage, None, None);
        match path {
            Ok(_) => Ok(()),
            Err(Error::CertExpired { not_after, .. }) => Err(Reason::ExpiredCertificate {
                seen: time,
                expected: format!("before {}", not_after.as_secs()),
            }),
            Err(Error::CertNotValidYet { not_before, .. }) => Err(Reason::ExpiredCertificate {
                seen: time,
                expected: format!("after {}", not_before.as_secs()),
            }),
            Err(error) => {
                Err(Reason::UntrustedCertificate { seen: format!("{error:?}"), expected: self.roots(time) })
            }
        }
    }

    /// The roots, for messages.
    fn roots(&self, time: u64) -> String {
        let one = |root: &Certificate| {
            let out_of_date =
                if root.check_validity(time).is_ok() { "" } else { " (not valid at the log's time)" };
            format!("{:?}{out_of_date}", cut(&root.subject_text()))
        };
        let names: Vec<_> = self.roots.iter().map(one).collect();
        format!("leads to {}", names.join(" or "))
    }
}

fn signs_code(leaf: &Certificate) -> Result<bool, Reason> {
    let Some(der) = leaf.extension("extKeyUsage", OID_EKU).map_err(malformed)? else { return Ok(false) };
    Ok(ExtendedKeyUsage::from_der(der).map_err(malformed)?.0.contains(&OID_CODE_SIGNING))
}

/// The login service that Fulcio saw.
fn issuer(leaf: &Certificate) -> Result<String, Reason> {
    let new = leaf.extension("Fulcio issuer", OID_ISSUER).map_err(malformed)?;
    let old = leaf.extension("Fulcio issuer", OID_ISSUER_OLD).map_err(malformed)?;
    let new = new.map(|der| Utf8StringRef::from_der(der).map(|text| text.to_string()));
    let new = new.transpose().map_err(malformed)?;
    let old = old.map(|bytes| String::from_utf8(bytes.to_vec())).transpose().map_err(malformed)?;
    match (new, old) {
        (Some(new), Some(old)) if new != old => Err(malformed("it names two issuers")),
        (Some(issuer), _) | (None, Some(issuer)) => Ok(issuer),
        (None, None) => Err(malformed("it names no OIDC issuer; Fulcio's certificates do")),
    }
}

/// Addresses, or URIs, that the certificate is for.
fn subjects(leaf: &Certificate, uris: bool) -> Result<Vec<String>, Reason> {
    let Some(der) = leaf.extension("subjectAltName", OID_SAN).map_err(malformed)? else {
        return Ok(Vec::new());
    };
    let names = SubjectAltName::from_der(der).map_err(malformed)?;
    let one = |name: &GeneralName| match name {
        GeneralName::Rfc822Name(address) if !uris => Some(address.to_string()),
        GeneralName::UniformResourceIdentifier(uri) if uris => Some(uri.to_string()),
        _ => None,
    };
    Ok(names.0.iter().filter_map(one).collect())
}
