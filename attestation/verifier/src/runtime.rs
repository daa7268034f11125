//! `runtime_measurements` of SNP evidence: what the guest's agent recorded since the launch, and the register that it keeps in software.
//!
//! SNP has no register for run time, so nothing in the report binds this. It is the word of the measured agent, and reached the verifier
//! beside the report: the claims say so (`bound: false`). What can be held is that value and log belong together; a log that was
//! edited, cut or mixed up on its way is refused.
//!
//! The form is ours (`docs/guest-api.md`); Trustee ignores the member.

use kata_cc_kbs_protocol::from_base64_standard;
use kata_cc_tdx::{EventLog, event_details};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Refusal;

/// Member of the evidence, and claim.
pub(crate) const MEMBER: &str = "runtime_measurements";

/// Most that a register's number may be: it is a PCR's (`init_pcr` of the agent, 17 unless set).
const MAX_REGISTER: u32 = 23;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuntimeMeasurements {
    kept_by: String,
    algorithm: String,
    register: u32,
    /// Hex.
    value: String,
    /// TCG event log, base64.
    cc_eventlog: String,
}

/// The claim, when the evidence has the member.
///
/// # Errors
/// [`Refusal`] when it is out of form, or its log does not lead to its value.
pub(crate) fn claim(evidence: &Value) -> Result<Option<Value>, Refusal> {
    let Some(member) = evidence.get(MEMBER) else { return Ok(None) };
    let malformed = |what: &dyn std::fmt::Display| Refusal::Malformed { what: format!("{MEMBER}: {what}") };
    let told = RuntimeMeasurements::deserialize(member).map_err(|error| malformed(&error))?;
    if told.kept_by != "agent" || told.algorithm != "sha384" || told.register > MAX_REGISTER {
        return Err(malformed(&"kept_by, algorithm and register must be agent, sha384 and 0 to 23"));
    }
    let log =
        from_base64_standard(&told.cc_eventlog).ok_or_else(|| malformed(&"cc_eventlog is not base64"))?;
    let log = EventLog::parse(&log)?;
    // There is one register: an event of another would stand there and be measured nowhere.
    if let Some(event) = log.events.iter().find(|event| event.register != told.register) {
        return Err(malformed(&format_args!("its log has an event of register {}", event.register)));
    }
    let value = hex::encode(log.replay_register(told.register)?);
    if value != told.value {
        return Err(Refusal::RuntimeMeasurements { seen: told.value, expected: value });
    }
    let events: Vec<Value> = log.events.iter().map(event_details::claim).collect();
    Ok(Some(json!({
        "bound": false,
        "kept_by": told.kept_by,
        "value": value,
        "uefi_event_logs": events,
    })))
}
