//! What comes back, how it lies in a file, and how long it stays fresh.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kata_cc_snp::certs::Certificate;
use kata_cc_snp::verify::Product;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode as _;

use crate::item::{IntelTee, Item};

/// Most bytes of one document, issuer chain included. Intel's largest TCB infos have some 20 KiB; revocation lists grow.
pub const MAX_DOCUMENT: usize = 1024 * 1024;

/// Longest that a revocation list or collateral counts as fresh, whatever it says of itself.
const MAX_FRESH: Duration = Duration::from_secs(24 * 3600);

/// How long something counts as fresh that says of itself that it is not: the issuer has nothing newer.
const MIN_FRESH: Duration = Duration::from_secs(15 * 60);

/// Chains change once in years.
const CHAIN_FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// A document as its issuer sent it. Not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// DER, PEM or JSON, byte for byte.
    pub bytes: Vec<u8>,
    /// PEM of the certificates that signed it, where Intel's service sends them in a header.
    pub issuer_chain: Option<String>,
}

/// Form of a file that needs an issuer chain.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    issuer_chain: String,
    /// Text of a JSON body: its signature covers the bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// Hex of a DER body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body_hex: Option<String>,
}

impl Document {
    /// A document without issuer chain.
    #[must_use]
    pub const fn plain(bytes: Vec<u8>) -> Self {
        Self { bytes, issuer_chain: None }
    }

    /// Bytes that it takes in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() + self.issuer_chain.as_ref().map_or(0, String::len)
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The contents of the file at [`Item::path`].
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let Some(chain) = &self.issuer_chain else { return self.bytes.clone() };
        let (body, body_hex) = match std::str::from_utf8(&self.bytes) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(hex::encode(&self.bytes))),
        };
        let envelope = Envelope { issuer_chain: chain.clone(), body, body_hex };
        // Strings alone: this cannot fail, and an empty file is refused when it is read.
        serde_json::to_vec_pretty(&envelope).unwrap_or_default()
    }

    /// Reads the contents of a file at [`Item::path`].
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn from_file(item: &Item, bytes: Vec<u8>) -> Result<Self, String> {
        if bytes.len() > MAX_DOCUMENT * 2 {
            return Err(format!("has {} bytes, at most {} are taken", bytes.len(), MAX_DOCUMENT * 2));
        }
        let document = if item.has_issuer_chain() {
            let envelope: Envelope =
                serde_json::from_slice(&bytes).map_err(|error| format!("is no envelope: {error}"))?;
            let bytes = match (envelope.body, envelope.body_hex) {
                (Some(text), None) => text.into_bytes(),
                (None, Some(digits)) => {
                    hex::decode(digits).map_err(|error| format!("has a body_hex that is no hex: {error}"))?
                }
                _ => return Err("needs exactly one of body and body_hex".to_owned()),
            };
            Self { bytes, issuer_chain: Some(envelope.issuer_chain) }
        } else {
            Self::plain(bytes)
        };
        document.check(item)?;
        Ok(document)
    }

    /// Refuses what is plainly not the item. This is hygiene, not trust: signatures are the verifier's business.
    ///
    /// # Errors
    /// A sentence that says what was seen and expected.
    pub fn check(&self, item: &Item) -> Result<(), String> {
        if self.len() > MAX_DOCUMENT {
            return Err(format!("has {} bytes, at most {MAX_DOCUMENT} are taken", self.len()));
        }
        if item.has_issuer_chain() {
            let chain = self.issuer_chain.as_deref().unwrap_or_default();
            Certificate::chain_from_pem(chain.as_bytes())
                .map_err(|error| format!("has no usable issuer chain: {error}"))?;
        }
        match item {
            Item::Vcek { product, chip_id, tcb } => {
                let seen = self.vek()?;
                let named = Product::from_name(&seen.product_name);
                if named != Some(*product) {
                    return Err(format!("is for {}, expected {}", seen.product_name, product.name()));
                }
                if seen.hw_id.as_ref() != Some(chip_id) {
                    let seen = seen.hw_id.map_or_else(|| "none".to_owned(), hex::encode);
                    return Err(format!("is for chip {seen}, expected {}", hex::encode(chip_id)));
                }
                same_tcb(&seen.tcb, tcb)
            }
            Item::Vlek { tcb, .. } => {
                let seen = self.vek()?;
                if seen.csp_id.is_none() {
                    return Err("names no provider, so it is no VLEK".to_owned());
                }
                same_tcb(&seen.tcb, tcb)
            }
            Item::SnpChain { .. } => {
                let chain = Certificate::chain_from_pem(&self.bytes).map_err(|error| error.to_string())?;
                if chain.len() == 2 {
                    return Ok(());
                }
                Err(format!("has {} certificates, expected intermediate and root", chain.len()))
            }
            Item::SnpCrl { .. } | Item::PckCrl { .. } | Item::RootCrl => {
                CertificateList::from_der(&self.bytes)
                    .map(|_| ())
                    .map_err(|error| format!("is no revocation list: {error}"))
            }
            Item::TcbInfo { tee, fmspc } => {
                let info = self.json_member("tcbInfo")?;
                same_member(&info, "id", if *tee == IntelTee::Tdx { "TDX" } else { "SGX" })?;
                same_member(&info, "fmspc", &hex::encode_upper(fmspc))
            }
            Item::QeIdentity { tee } => {
                let identity = self.json_member("enclaveIdentity")?;
                same_member(&identity, "id", if *tee == IntelTee::Tdx { "TD_QE" } else { "QE" })
            }
        }
    }

    /// Until when it counts as fresh when it was got at `fetched`.
    #[must_use]
    pub fn fresh_until(&self, item: &Item, fetched: SystemTime) -> SystemTime {
        match item {
            // A certificate for a chip and its versions does not change; its end is the verifier's business.
            Item::Vcek { .. } | Item::Vlek { .. } => fetched + Duration::from_secs(365 * 24 * 3600),
            Item::SnpChain { .. } => fetched + CHAIN_FRESH,
            _ => {
                let next = self.next_update(item).unwrap_or(fetched);
                next.min(fetched + MAX_FRESH).max(fetched + MIN_FRESH)
            }
        }
    }

    /// When the issuer means to publish the next one.
    #[must_use]
    pub fn next_update(&self, item: &Item) -> Option<SystemTime> {
        match item {
            Item::SnpCrl { .. } | Item::PckCrl { .. } | Item::RootCrl => {
                let list = CertificateList::from_der(&self.bytes).ok()?;
                Some(UNIX_EPOCH + list.tbs_cert_list.next_update?.to_unix_duration())
            }
            Item::TcbInfo { .. } => json_next_update(&self.json_member("tcbInfo").ok()?),
            Item::QeIdentity { .. } => json_next_update(&self.json_member("enclaveIdentity").ok()?),
            _ => None,
        }
    }

    fn vek(&self) -> Result<kata_cc_snp::certs::VekExtensions, String> {
        let certificate = Certificate::from_der(&self.bytes).map_err(|error| error.to_string())?;
        kata_cc_snp::certs::VekExtensions::of(&certificate).map_err(|error| error.to_string())
    }

    fn json_member(&self, name: &str) -> Result<Value, String> {
        let mut body: Value =
            serde_json::from_slice(&self.bytes).map_err(|error| format!("is no JSON: {error}"))?;
        match body.get_mut(name) {
            Some(member) => Ok(member.take()),
            None => Err(format!("has no member {name}")),
        }
    }
}

fn same_tcb(seen: &kata_cc_snp::Tcb, expected: &kata_cc_snp::Tcb) -> Result<(), String> {
    if seen == expected { Ok(()) } else { Err(format!("is for versions ({seen}), expected ({expected})")) }
}

fn same_member(object: &Value, name: &str, expected: &str) -> Result<(), String> {
    let seen = object.get(name).and_then(Value::as_str).unwrap_or("nothing");
    if seen.eq_ignore_ascii_case(expected) {
        Ok(())
    } else {
        Err(format!("has {name} {seen}, expected {expected}"))
    }
}

fn json_next_update(object: &Value) -> Option<SystemTime> {
    let text = object.get("nextUpdate")?.as_str()?;
    OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from)
}
