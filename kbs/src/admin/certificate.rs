//! Administrators who are known by their TLS certificate, which [`crate::server`] has checked against `client_ca`.

use rustls_pki_types::CertificateDer;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use crate::config::CertificateIdentity;

/// Most alternative names of a certificate that are looked at.
const MAX_NAMES: usize = 64;

/// Role and name of the holder of a certificate; `None` when it is nobody's that is known.
pub(crate) fn role(
    certificate: &CertificateDer<'_>,
    identities: &[CertificateIdentity],
) -> Option<(String, String)> {
    let certificate = x509_cert::Certificate::from_der(certificate).ok()?;
    let subject = certificate.tbs_certificate.subject.to_string();
    let names = alternative_names(&certificate);
    let found = identities.iter().find(|identity| match (&identity.subject, &identity.san) {
        (Some(expected), _) => *expected == subject,
        (None, Some(expected)) => names.contains(expected),
        (None, None) => false,
    })?;
    let name = found.san.clone().unwrap_or(subject);
    Some((found.role.clone(), name))
}

fn alternative_names(certificate: &x509_cert::Certificate) -> Vec<String> {
    let Ok(Some((_, names))) = certificate.tbs_certificate.get::<SubjectAltName>() else { return Vec::new() };
    let text = |name: &GeneralName| match name {
        GeneralName::UniformResourceIdentifier(uri) => Some(format!("URI:{}", uri.as_str())),
        GeneralName::DnsName(name) => Some(format!("DNS:{}", name.as_str())),
        GeneralName::Rfc822Name(mail) => Some(format!("EMAIL:{}", mail.as_str())),
        _ => None,
    };
    names.0.iter().take(MAX_NAMES).filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    #[test]
    fn the_whole_name_must_be_the_same() {
        let mut params = CertificateParams::new(vec!["ops.example".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "example");
        params.distinguished_name.push(DnType::CommonName, "alice");
        params.subject_alt_names.push(SanType::URI("spiffe://example/ops".try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        let by = |subject: Option<&str>, san: Option<&str>| {
            let identity = CertificateIdentity {
                subject: subject.map(str::to_owned),
                san: san.map(str::to_owned),
                role: "operator".to_owned(),
            };
            role(&der, &[identity]).map(|(role, name)| format!("{role} {name}"))
        };
        assert_eq!(by(Some("CN=alice,O=example"), None).as_deref(), Some("operator CN=alice,O=example"));
        assert_eq!(
            by(None, Some("URI:spiffe://example/ops")).as_deref(),
            Some("operator URI:spiffe://example/ops")
        );
        assert!(by(None, Some("DNS:ops.example")).is_some());
        for (subject, san) in [
            (Some("CN=alice"), None),
            (Some("CN=alice,O=example2"), None),
            (None, Some("URI:spiffe://example/op")),
            (None, Some("EMAIL:ops.example")),
            (None, None),
        ] {
            assert_eq!(by(subject, san), None);
        }
        assert!(role(&CertificateDer::from(vec![1, 2, 3]), &[]).is_none());
    }
}
