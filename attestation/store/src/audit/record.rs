//! What the audit log tells of one event. Records hold no secrets and no credentials.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::StoreError;

/// Most bytes of a member of a record; what is longer is cut.
const MAX_MEMBER: usize = 1024;
/// Most details of a record.
const MAX_DETAILS: usize = 16;
/// Name of the detail that says how many others there was no room for.
const LEFT_OUT: &str = "left_out";

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A challenge was given. Anybody can ask for one and it gives nothing away: records of it are for who wants them.
    Auth,
    /// Evidence was judged; `verdict` says how.
    Attest,
    /// A resource was given to a guest.
    Release,
    /// A resource was not given to a guest; `reason` says why.
    Refusal,
    /// An administrator did something, or was not let.
    Admin,
    /// Records that were archived were removed; `details` name the last of them.
    Prune,
    /// The service started.
    Start,
    /// The service stopped.
    Stop,
}

impl Kind {
    /// Its name in a record.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Attest => "attest",
            Self::Release => "release",
            Self::Refusal => "refusal",
            Self::Admin => "admin",
            Self::Prune => "prune",
            Self::Start => "start",
            Self::Stop => "stop",
        }
    }
}

/// A resource, and which version of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// `repository/type/tag`, or the name of a policy.
    pub id: String,
    /// Version; unknown for what does not exist.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version: Option<u64>,
}

/// One event. Members that do not apply are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When, RFC 3339 with milliseconds; set when the record is appended.
    pub time: String,
    /// What.
    pub kind: Kind,
    /// Label of the session: its id is a credential, so this is the beginning of a hash of it ([`session_label`]).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub session: Option<String>,
    /// Kind of TEE.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tee: Option<String>,
    /// What was decided, e.g. `affirming`, `denied`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verdict: Option<String>,
    /// SHA-256 of the claims as the token holds them (its payload), hex.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub claims: Option<String>,
    /// SHA-256 of the policy that decided, hex.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy: Option<String>,
    /// What it was about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub resource: Option<Resource>,
    /// Who did it: role or subject of an administrator, address of a peer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub who: Option<String>,
    /// What an administrator did, or why something was refused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// More, by name, e.g. the serial number of a certificate that was issued. Of more than 16 the last by name are left out, and
    /// `left_out` says how many.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub details: Option<BTreeMap<String, String>>,
}

impl Record {
    /// A record of an event of this kind.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            time: String::new(),
            kind,
            session: None,
            tee: None,
            verdict: None,
            claims: None,
            policy: None,
            resource: None,
            who: None,
            reason: None,
            details: None,
        }
    }

    /// Names the session by its label.
    #[must_use]
    pub fn session(mut self, id: &str) -> Self {
        self.session = Some(session_label(id));
        self
    }

    /// Names the kind of TEE.
    #[must_use]
    pub fn tee(mut self, tee: impl Into<String>) -> Self {
        self.tee = Some(tee.into());
        self
    }

    /// Says what was decided.
    #[must_use]
    pub fn verdict(mut self, verdict: impl Into<String>) -> Self {
        self.verdict = Some(verdict.into());
        self
    }

    /// Adds the digest of the claims, over which the decision was taken.
    #[must_use]
    pub fn claims(mut self, digest: &[u8; 32]) -> Self {
        self.claims = Some(hex::encode(digest));
        self
    }

    /// Adds the digest of the policy that decided.
    #[must_use]
    pub fn policy(mut self, text: &[u8]) -> Self {
        self.policy = Some(digest_hex(text));
        self
    }

    /// Names the resource. [`Store::put_version`](crate::Store::put_version) fills the version in.
    #[must_use]
    pub fn resource(mut self, id: impl Into<String>, version: Option<u64>) -> Self {
        self.resource = Some(Resource { id: id.into(), version });
        self
    }

    /// Says who did it.
    #[must_use]
    pub fn who(mut self, who: impl Into<String>) -> Self {
        self.who = Some(who.into());
        self
    }

    /// Says what was done, or why something was refused.
    #[must_use]
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Adds a detail.
    #[must_use]
    pub fn detail(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.details.get_or_insert_default().insert(name.into(), value.into());
        self
    }

    /// The canonical text (RFC 8785) that is stored and hashed, with `time` as its time.
    pub(crate) fn canonical(&self, time: &str) -> Result<String, StoreError> {
        let mut record = self.clone();
        record.time = time.to_owned();
        let texts = [
            &mut record.session,
            &mut record.tee,
            &mut record.verdict,
            &mut record.claims,
            &mut record.policy,
            &mut record.who,
            &mut record.reason,
        ];
        texts.into_iter().flatten().for_each(cut);
        if let Some(resource) = &mut record.resource {
            cut(&mut resource.id);
        }
        if let Some(details) = &mut record.details {
            let mut left_out = 0_usize;
            while details.len() > MAX_DETAILS {
                details.pop_last();
                left_out += 1;
            }
            details.values_mut().for_each(cut);
            if left_out > 0 {
                // One of that name would hide the count.
                left_out += usize::from(details.remove(LEFT_OUT).is_some());
                details.insert(LEFT_OUT.to_owned(), left_out.to_string());
            }
        }
        serde_json_canonicalizer::to_string(&record).map_err(|e| StoreError::AuditWrite(e.to_string()))
    }
}

/// Cuts a text to [`MAX_MEMBER`] bytes, and says so by an ellipsis.
fn cut(text: &mut String) {
    if text.len() > MAX_MEMBER {
        text.truncate(text.floor_char_boundary(MAX_MEMBER));
        text.push('…');
    }
}

/// The name of a session in audit log and messages: 16 hexadecimal digits of a hash of its id.
#[must_use]
pub fn session_label(id: &str) -> String {
    let mut label = digest_hex(format!("kata-cc session\0{id}").as_bytes());
    label.truncate(16);
    label
}

/// SHA-256 in hex.
#[must_use]
pub fn digest_hex(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(count: usize) -> BTreeMap<String, String> {
        let record = (0..count).fold(Record::new(Kind::Admin), |record, number| {
            record.detail(format!("detail-{number:02}"), number.to_string())
        });
        let text = record.canonical("2026-01-01T00:00:00.000Z").unwrap();
        serde_json::from_str::<Record>(&text).unwrap().details.unwrap_or_default()
    }

    #[test]
    fn details_that_are_left_out_are_counted() {
        assert!(stored(0).is_empty());
        let all = stored(MAX_DETAILS);
        assert_eq!((all.len(), all.get(LEFT_OUT)), (MAX_DETAILS, None));
        let some = stored(MAX_DETAILS + 5);
        assert_eq!((some.len(), some[LEFT_OUT].as_str()), (MAX_DETAILS + 1, "5"));
        assert_eq!(some["detail-15"], "15");
        assert_eq!(some.get("detail-16"), None);
    }

    #[test]
    fn a_detail_of_that_name_does_not_hide_the_count() {
        let record = (0..20)
            .fold(Record::new(Kind::Admin), |record, number| record.detail(format!("z-{number:02}"), "x"));
        let text = record.detail(LEFT_OUT, "none").canonical("").unwrap();
        let details = serde_json::from_str::<Record>(&text).unwrap().details.unwrap();
        // 15 of ours and the count: the one in its place and five others are not there.
        assert_eq!((details.len(), details[LEFT_OUT].as_str()), (MAX_DETAILS, "6"));
    }
}
