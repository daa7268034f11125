//! Resource paths and URIs: what is accepted prints back to what it was.
#![no_main]

use kata_cc_kbs_protocol::{ResourcePath, ResourceUri};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(path) = text.parse::<ResourcePath>() {
        assert_eq!(path.to_string().parse::<ResourcePath>().as_ref(), Ok(&path));
        assert!(path.segments().iter().all(|s| !s.starts_with('.') && !s.contains('/')));
    }
    if let Ok(uri) = text.parse::<ResourceUri>() {
        assert_eq!(uri.to_string().parse::<ResourceUri>(), Ok(uri));
    }
});
