//! What this service takes, for whoever checks a bundle before it is followed.

use std::collections::BTreeMap;

use kata_cc_policy_bundle::{Checks, Fault};
use serde_json::Value;

use crate::appraisal::{self, References};
use crate::jws::VerifyingKey;
use crate::policies::check_id;
use crate::references::{self, InForce, Record, Source};

/// The checks of this service.
#[derive(Debug, Clone, Copy)]
pub struct ServiceChecks;

impl Checks for ServiceChecks {
    fn attestation_policy(&self, id: &str, text: &str) -> Result<(), Fault> {
        check_id(id)?;
        let policy = appraisal::compile(id, text)?;
        // It compiles, and every guest would come out as `none`.
        if !policy.judges() {
            return Err("it has no rule data.policy.trust_claims, so it trusts nobody".into());
        }
        Ok(())
    }

    fn appraise(
        &self,
        id: &str,
        text: &str,
        claims: &Value,
        references: &BTreeMap<String, Value>,
    ) -> Result<String, Fault> {
        let policy = appraisal::compile(id, text)?;
        let now = crate::now();
        let record = |(name, value): (&String, &Value)| {
            let source = Source { kind: "case".to_owned(), signer: None, detail: None, signed_at: None };
            (name.clone(), Record::new(name, value.clone(), None, source, "case"))
        };
        let records: BTreeMap<_, _> = references.iter().map(record).collect();
        let in_force = InForce::at(&records, now);
        let references = References { records: &records, in_force: &in_force, now };
        Ok(appraisal::appraise(&policy, claims, references)?.vector.status().name().to_owned())
    }

    fn reference_value(&self, name: &str, value: &Value, expires: Option<&str>) -> Result<(), Fault> {
        references::check(name, value)?;
        expires.map(references::parse_time).transpose()?;
        Ok(())
    }

    fn trusted_key(&self, pem: &[u8]) -> Result<(), Fault> {
        Ok(VerifyingKey::from_pem(pem).map(drop)?)
    }
}
