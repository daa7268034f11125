//! A log of one event measured at run time, as the guest's agent keeps it.

use kata_cc_kbs_protocol::base64_standard;
use kata_cc_tdx::aael::RuntimeEvent;
use kata_cc_tdx::event_log::extend;
use serde_json::{Value, json};

/// The log, and what it leads to in its register (RTMR3, index 4).
pub(crate) fn log() -> (Vec<u8>, [u8; 48]) {
    let mut spec = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02\x01\0\0\0\x0C\0\x30\0\0".to_vec();
    let mut log = [&[0, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20], &(spec.len() as u32).to_le_bytes()].concat();
    log.append(&mut spec);
    let event = RuntimeEvent::new("test", "PullImage", "{\"image\":\"shop\"}").unwrap();
    log.extend(event.entry());
    (log, extend(&[0; 48], &event.digest()))
}

/// The member of SNP evidence that holds it.
#[allow(dead_code, reason = "each test program uses a part")]
pub(crate) fn member() -> Value {
    let (log, value) = log();
    json!({"kept_by": "agent", "algorithm": "sha384", "register": 4, "value": hex::encode(value),
        "cc_eventlog": base64_standard(&log)})
}
