//! TDX quotes from anywhere: parsed or refused, and what was parsed is written as it was read.
#![no_main]

use kata_cc_tdx::{CollateralKey, Quote, TdReport, Trailing, claims};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = TdReport::parse(data);
    let Ok(quote) = Quote::parse(data, Trailing::Zeros) else { return };
    let written = quote.to_bytes();
    assert_eq!(written, data[..written.len()]);
    assert!(data[written.len()..].iter().all(|byte| *byte == 0));
    assert_eq!(Quote::signed_bytes(&quote.header, &quote.body), quote.signed);
    let _ = (CollateralKey::of(&quote), claims::quote_claims(&quote, None));
});
