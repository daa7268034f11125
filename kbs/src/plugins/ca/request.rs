//! What a guest asks for: which requests are the same, and which are of the same guest.

use aws_lc_rs::digest::{SHA256, digest};
use kata_cc_kbs_protocol::TeePubKey;
use kata_cc_kbs_protocol::rcar::canonical;
use serde_json::{Value, json};

use super::authority::Evidence;
use super::csr::{Csr, SanName};
use crate::plugins::PluginError;

/// Everything that the certificate depends on, but for time and chance.
#[derive(Debug)]
pub(super) struct Request<'a> {
    /// Key of the guest's token.
    pub(super) key: &'a TeePubKey,
    pub(super) csr: &'a Csr,
    pub(super) names: &'a [SanName],
    pub(super) hours: u32,
    /// With the digest of the claims: evidence that was judged anew is another request.
    pub(super) evidence: &'a Evidence,
    /// PEM of the authority, which may have a new key after a restart.
    pub(super) chain: &'a str,
}

impl Request<'_> {
    /// The same for requests that are to have the same certificate, hexadecimal.
    pub(super) fn digest(&self) -> Result<String, PluginError> {
        let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        let asked = json!({
            "guest": key_of(self.key)?,
            "key": sha256(&self.csr.spki),
            "names": names,
            "hours": self.hours,
            "tee": self.evidence.tee,
            "status": self.evidence.status,
            "claims": hex::encode(self.evidence.claims_digest),
            "authority": sha256(self.chain.as_bytes()),
        });
        Ok(sha256(&canonical(&asked)))
    }
}

/// By what the certificates of a guest are counted, hexadecimal: the id that the processor's firmware gave it (SEV-SNP's REPORT_ID,
/// which stays the same for the guest's life), so that new keys give it no new places; where the evidence has none, the key of its token.
pub(super) fn guest(claims: &Value, tee: &str, key: &TeePubKey) -> Result<String, PluginError> {
    let evidence =
        claims.pointer("/submods/cpu0/ear.veraison.annotated-evidence").and_then(|all| all.get(tee));
    let id = evidence.and_then(|evidence| evidence.get("report_id")).and_then(Value::as_str);
    // All zero: nobody gave one.
    let id = id.and_then(|id| hex::decode(id).ok()).filter(|id| id.len() == 32 && id.iter().any(|b| *b != 0));
    Ok(match id {
        Some(id) => sha256(&[tee.as_bytes(), b"\0report_id\0", &id].concat()),
        None => sha256(&canonical(&key_of(key)?)),
    })
}

fn key_of(key: &TeePubKey) -> Result<Value, PluginError> {
    serde_json::to_value(key).map_err(|e| PluginError::Internal(e.to_string()))
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}
