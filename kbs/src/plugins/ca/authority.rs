//! The certificate authority itself: its certificate, and the certificates and revocation lists that it signs (RFC 5280).

use std::net::IpAddr;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use x509_cert::Certificate;
use x509_cert::der::Encode as _;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, SubjectKeyIdentifier};

use super::config::{CaConfig, Usage, value};
use super::csr::{Csr, CsrKey, SanName};
use super::der;
use super::signer::Signer;
use crate::plugins::PluginError;
use crate::plugins::registry::SetupError;

/// 2.25.64040334696879011753045235901388398929 (a UUID, ITU-T X.667): which evidence a certificate rests on.
///
/// `SEQUENCE { version INTEGER (1), tee UTF8String, status UTF8String, simulated BOOLEAN, claimsDigest OCTET STRING }`; the digest is
/// SHA-256 over the claims of the token as they are in it ([`crate::tokens::claims_digest`]).
const EVIDENCE: &[u8] = &[
    0x69, 0xe0, 0xad, 0xdc, 0x91, 0xcc, 0xce, 0xca, 0xab, 0xed, 0xb9, 0xef, 0xd0, 0xce, 0xa0, 0xb2, 0xf6,
    0xc2, 0x51,
];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ORGANIZATIONAL_UNIT: &[u8] = &[0x55, 0x04, 0x0b];
const SUBJECT_KEY: &[u8] = &[0x55, 0x1d, 0x0e];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const CRL_NUMBER: &[u8] = &[0x55, 0x1d, 0x14];
const REASON_CODE: &[u8] = &[0x55, 0x1d, 0x15];
const CRL_DISTRIBUTION: &[u8] = &[0x55, 0x1d, 0x1f];
const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 0x23];
const EXTENDED_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];

/// Bits of key usage (RFC 5280, 4.2.1.3), first one highest.
const DIGITAL_SIGNATURE: u8 = 0b1000_0000;
const KEY_ENCIPHERMENT: u8 = 0b0010_0000;
const CERTIFICATE_AND_CRL_SIGN: u8 = 0b0000_0110;
/// Seconds that a certificate is valid before it was made, for clocks that are behind.
const BEHIND: i64 = 300;

/// What a certificate says of the guest's evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// Name of the TEE, e.g. `snp`, `sim-snp`.
    pub(crate) tee: String,
    /// `ear.status`.
    pub(crate) status: String,
    /// Whether it protects nothing.
    pub(crate) simulated: bool,
    /// SHA-256 over the claims.
    pub(crate) claims_digest: [u8; 32],
}

/// What is to be certified.
#[derive(Debug)]
pub(crate) struct Leaf<'a> {
    pub(crate) csr: &'a Csr,
    pub(crate) names: &'a [SanName],
    pub(crate) evidence: &'a Evidence,
    /// Seconds since 1970.
    pub(crate) now: i64,
    /// Seconds since 1970.
    pub(crate) end: i64,
}

/// A revoked certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Revoked {
    pub(crate) serial: Vec<u8>,
    /// Seconds since 1970.
    pub(crate) at: i64,
    /// RFC 5280, 5.3.1.
    pub(crate) reason: u8,
}

/// The authority.
#[derive(Debug)]
pub(crate) struct Authority {
    signer: Signer,
    /// Subject of its certificate, DER: issuer of all that it signs, byte for byte.
    name: Vec<u8>,
    key_id: Vec<u8>,
    /// Seconds since 1970.
    end: i64,
    /// PEM, its own certificate first.
    chain: String,
}

fn common_name(text: &str) -> Vec<u8> {
    der::set_of_one(&der::sequence(&[&der::oid(COMMON_NAME), &der::utf8(text)]))
}

fn unit(text: &str) -> Vec<u8> {
    der::set_of_one(&der::sequence(&[&der::oid(ORGANIZATIONAL_UNIT), &der::utf8(text)]))
}

/// First 160 bits of a SHA-256 over the key (RFC 7093, 2, method 4).
fn key_id(spki: &[u8]) -> Vec<u8> {
    digest(&SHA256, spki).as_ref().iter().take(20).copied().collect()
}

/// 128 random bits, of which the highest is 0 and the next 1, so that all have the same length.
pub(crate) fn serial() -> Result<Vec<u8>, PluginError> {
    let mut serial = vec![0; 16];
    rand::fill(&mut serial).map_err(|_| PluginError::Internal("no random numbers".to_owned()))?;
    if let Some(first) = serial.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(serial)
}

fn time(seconds: i64) -> Result<Vec<u8>, PluginError> {
    der::time(seconds).ok_or_else(|| PluginError::Internal(format!("{seconds} is no time")))
}

impl Authority {
    /// Reads the certificate, or makes it when the file does not exist.
    pub(crate) async fn load(
        config: &CaConfig,
        signer: Signer,
        path: &Path,
        now: i64,
    ) -> Result<Self, SetupError> {
        let failed = |why: String| value(format!("certificate_path {}: {why}", path.display()));
        let chain = match std::fs::read_to_string(path) {
            Ok(chain) => chain,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let certificate =
                    self_signed(config, &signer, now).await.map_err(|e| failed(e.to_string()))?;
                let chain = pem("CERTIFICATE", &certificate);
                std::fs::write(path, &chain).map_err(|e| failed(e.to_string()))?;
                chain
            }
            Err(e) => return Err(failed(e.to_string())),
        };
        let all = Certificate::load_pem_chain(chain.as_bytes())
            .map_err(|e| failed(format!("PEM of certificates: {e}")))?;
        let own = all.first().ok_or_else(|| failed("it holds no certificate".to_owned()))?;
        let tbs = &own.tbs_certificate;
        let encode = |e: x509_cert::der::Error| failed(e.to_string());
        let spki = tbs.subject_public_key_info.to_der().map_err(encode)?;
        if spki != signer.public_key() {
            return Err(failed("the first certificate is not that of the configured key".to_owned()));
        }
        let constraints = tbs.get::<BasicConstraints>().map_err(encode)?;
        if !constraints.is_some_and(|(_, constraints)| constraints.ca) {
            return Err(failed(
                "the first certificate is not that of an authority (basicConstraints)".to_owned(),
            ));
        }
        let usage = tbs.get::<KeyUsage>().map_err(encode)?;
        if usage.is_some_and(|(_, usage)| !usage.key_cert_sign() || !usage.crl_sign()) {
            return Err(failed(
                "its key usage must allow signing certificates and revocation lists".to_owned(),
            ));
        }
        let end = i64::try_from(tbs.validity.not_after.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
        if end <= now {
            return Err(failed("it has expired".to_owned()));
        }
        let subject_key = tbs.get::<SubjectKeyIdentifier>().map_err(encode)?;
        let key_id = subject_key.map_or_else(|| key_id(&spki), |(_, id)| id.0.as_bytes().to_vec());
        let name = tbs.subject.to_der().map_err(encode)?;
        Ok(Self { signer, name, key_id, end, chain })
    }

    /// The chain, PEM, its own certificate first.
    pub(crate) fn chain(&self) -> &str {
        &self.chain
    }

    /// End of its own certificate, in seconds since 1970.
    pub(crate) fn end(&self) -> i64 {
        self.end
    }

    /// Signs a guest's certificate.
    pub(crate) async fn issue(
        &self,
        config: &CaConfig,
        serial: &[u8],
        leaf: &Leaf<'_>,
    ) -> Result<Vec<u8>, PluginError> {
        let mut extensions = Vec::new();
        let usage = match leaf.csr.key {
            CsrKey::Rsa { .. } => DIGITAL_SIGNATURE | KEY_ENCIPHERMENT,
            CsrKey::Ec { .. } | CsrKey::Ed25519(_) => DIGITAL_SIGNATURE,
        };
        extensions.push(der::extension(BASIC_CONSTRAINTS, true, &der::sequence(&[])));
        extensions.push(der::extension(KEY_USAGE, true, &der::named_bits(usage)));
        let usages: Vec<Vec<u8>> = config
            .usages
            .iter()
            .map(|usage| der::oid(if *usage == Usage::Server { SERVER_AUTH } else { CLIENT_AUTH }))
            .collect();
        extensions.push(der::extension(EXTENDED_USAGE, false, &der::sequence(&[&usages.concat()])));
        extensions.push(der::extension(SUBJECT_KEY, false, &der::octets(&key_id(&leaf.csr.spki))));
        extensions.push(self.authority_key());
        if !leaf.names.is_empty() {
            let names: Vec<Vec<u8>> = leaf.names.iter().map(general_name).collect();
            extensions.push(der::extension(SUBJECT_ALT_NAME, false, &der::sequence(&[&names.concat()])));
        }
        if let Some(url) = &config.crl_url {
            // DistributionPoint { [0] distributionPoint { [0] fullName { [6] URI } } }
            let uri = der::implicit(6, url.as_bytes());
            let point = der::sequence(&[&der::explicit(0, &der::explicit(0, &uri))]);
            extensions.push(der::extension(CRL_DISTRIBUTION, false, &der::sequence(&[&point])));
        }
        extensions.push(der::extension(EVIDENCE, false, &evidence(leaf.evidence)));
        let validity = der::sequence(&[&time(leaf.now - BEHIND)?, &time(leaf.end)?]);
        let body = der::sequence(&[
            &der::explicit(0, &der::unsigned(&[2])),
            &der::unsigned(serial),
            &self.signer.algorithm(),
            &self.name,
            &validity,
            &subject(leaf, serial),
            &leaf.csr.spki,
            &der::explicit(3, &der::sequence(&[&extensions.concat()])),
        ]);
        self.signer.sign(&body).await
    }

    /// Signs a revocation list.
    pub(crate) async fn revocation_list(
        &self,
        revoked: &[Revoked],
        number: u64,
        now: i64,
        next: i64,
    ) -> Result<Vec<u8>, PluginError> {
        let mut entries = Vec::new();
        for entry in revoked {
            let reason = der::extension(REASON_CODE, false, &der::tlv(0x0a, &[entry.reason]));
            let extensions = der::sequence(&[&reason]);
            entries.push(der::sequence(&[&der::unsigned(&entry.serial), &time(entry.at)?, &extensions]));
        }
        // The list is left out when it is empty (RFC 5280, 5.1.2.6).
        let entries = if entries.is_empty() { Vec::new() } else { der::sequence(&[&entries.concat()]) };
        let number = der::extension(CRL_NUMBER, false, &der::unsigned(&number.to_be_bytes()));
        let extensions = der::explicit(0, &der::sequence(&[&self.authority_key(), &number]));
        let body = der::sequence(&[
            &der::unsigned(&[1]),
            &self.signer.algorithm(),
            &self.name,
            &time(now)?,
            &time(next)?,
            &entries,
            &extensions,
        ]);
        self.signer.sign(&body).await
    }

    fn authority_key(&self) -> Vec<u8> {
        der::extension(AUTHORITY_KEY, false, &der::sequence(&[&der::implicit(0, &self.key_id)]))
    }
}

async fn self_signed(config: &CaConfig, signer: &Signer, now: i64) -> Result<Vec<u8>, PluginError> {
    let spki = signer.public_key();
    let name = der::sequence(&[&common_name(&config.common_name)]);
    let end = now.saturating_add(i64::from(config.authority_days) * 86400);
    let authority = der::sequence(&[&der::boolean(true), &der::unsigned(&[])]);
    let extensions = [
        der::extension(BASIC_CONSTRAINTS, true, &authority),
        der::extension(KEY_USAGE, true, &der::named_bits(CERTIFICATE_AND_CRL_SIGN)),
        der::extension(SUBJECT_KEY, false, &der::octets(&key_id(&spki))),
    ];
    let body = der::sequence(&[
        &der::explicit(0, &der::unsigned(&[2])),
        &der::unsigned(&serial()?),
        &signer.algorithm(),
        &name,
        &der::sequence(&[&time(now - BEHIND)?, &time(end)?]),
        &name,
        &spki,
        &der::explicit(3, &der::sequence(&[&extensions.concat()])),
    ]);
    signer.sign(&body).await
}

/// Common name: the first DNS name that fits, else the serial number. Units: the TEE, in words that cannot be passed over.
fn subject(leaf: &Leaf<'_>, serial: &[u8]) -> Vec<u8> {
    let dns = leaf.names.iter().find_map(|name| match name {
        SanName::Dns(name) if name.len() <= 64 => Some(name.clone()),
        _ => None,
    });
    let name = dns.unwrap_or_else(|| format!("guest {}", hex::encode(serial)));
    let mut parts = vec![unit(&format!("tee {}", leaf.evidence.tee))];
    if leaf.evidence.simulated {
        parts.push(unit("simulated TEE, protects nothing"));
    }
    parts.push(common_name(&name));
    der::sequence(&[&parts.concat()])
}

fn evidence(evidence: &Evidence) -> Vec<u8> {
    der::sequence(&[
        &der::unsigned(&[1]),
        &der::utf8(&evidence.tee),
        &der::utf8(&evidence.status),
        &der::boolean(evidence.simulated),
        &der::octets(&evidence.claims_digest),
    ])
}

fn general_name(name: &SanName) -> Vec<u8> {
    match name {
        SanName::Dns(name) => der::implicit(2, name.as_bytes()),
        SanName::Uri(uri) => der::implicit(6, uri.as_bytes()),
        SanName::Ip(IpAddr::V4(address)) => der::implicit(7, &address.octets()),
        SanName::Ip(IpAddr::V6(address)) => der::implicit(7, &address.octets()),
    }
}

/// PEM (RFC 7468).
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = kata_cc_kbs_protocol::base64_standard(der);
    let lines: Vec<String> =
        text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
