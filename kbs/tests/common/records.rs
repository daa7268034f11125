//! What an exported audit log tells, sorted by what it is about.

use std::collections::HashMap;

use kata_cc_store::audit::digest_hex;
use serde_json::Value;

use super::load::policy;

/// The records of one export.
#[derive(Debug, Default)]
pub struct Records {
    /// How often each resource was released.
    pub releases: HashMap<String, u64>,
    /// Versions of each resource, in the order in which they were written.
    pub writes: HashMap<String, Vec<u64>>,
    /// Digests of the resource policies, in the order in which they were set.
    pub policies: Vec<String>,
    /// How often evidence of each session was accepted, by the session's label.
    pub attested: HashMap<String, u64>,
}

impl Records {
    /// Reads an export; whether it is whole is not looked at.
    pub fn of(export: &str) -> Self {
        let mut all = Self::default();
        for line in export.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let record = &line["record"];
            let text = |member: &Value| member.as_str().unwrap_or_default().to_owned();
            let name = text(&record["resource"]["id"]);
            match (record["kind"].as_str(), record["reason"].as_str()) {
                (Some("release"), _) => *all.releases.entry(name).or_default() += 1,
                (Some("attest"), _) if record["verdict"] != "refused" => {
                    *all.attested.entry(text(&record["session"])).or_default() += 1;
                }
                (Some("admin"), Some("write resource")) if record["verdict"] == "done" => {
                    all.writes.entry(name).or_default().push(record["resource"]["version"].as_u64().unwrap());
                }
                (Some("admin"), Some("set resource policy")) if record["verdict"] == "done" => {
                    all.policies.push(text(&record["policy"]));
                }
                _ => {}
            }
        }
        all
    }

    /// Versions of a resource: from 1 on, each once, in order. Returns how many there are.
    pub fn versions_without_gaps(&self, name: &str) -> u64 {
        let versions = self.writes.get(name).map_or(&[][..], Vec::as_slice);
        let expected: Vec<u64> = (1..=versions.len() as u64).collect();
        assert_eq!(versions, expected, "{name}: versions on record");
        versions.len() as u64
    }

    /// Numbers of the policies of the load that were set, in order. `sent` is the last that can be there.
    pub fn policy_numbers(&self, sent: u64) -> Vec<u64> {
        let numbers: HashMap<String, u64> =
            (1..=sent).map(|n| (digest_hex(policy(n).as_bytes()), n)).collect();
        self.policies.iter().filter_map(|digest| numbers.get(digest).copied()).collect()
    }
}
