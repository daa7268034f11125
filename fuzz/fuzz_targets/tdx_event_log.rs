//! Event logs of a guest's firmware: parsed or refused, replayed, and told as claims.
#![no_main]

use kata_cc_tdx::aael::RuntimeEvent;
use kata_cc_tdx::{EventLog, event_details};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(log) = EventLog::parse(data) else { return };
    if let Ok(registers) = log.replay() {
        assert_eq!(log.check(&registers), Ok(Ok(())));
    }
    for event in &log.events {
        let _ = event_details::claim(event);
        if let Some(runtime) = RuntimeEvent::of(event) {
            assert_eq!(runtime.data(), event.data);
        }
    }
});
