//! Answers of the quote generation service, which the host runs: a quote is taken out or the answer refused.
#![no_main]

use kata_cc_attester::qgs::{configured_port, framed, quote_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        assert_ne!(configured_port(text), Some(0));
    }
    let Ok(message) = framed(data) else { return };
    assert_eq!(message.len() + 4, data.len());
    if let Ok(quote) = quote_of(message) {
        assert!(message.ends_with(quote) && quote.len() + 24 <= message.len());
    }
});
