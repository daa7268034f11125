//! Init-data: the block image comes from the host, the document from whoever wrote the pod.
#![no_main]

use kata_cc_kbs_protocol::initdata::{InitData, from_annotation, from_image};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(document)) = from_image(bytes) {
        let _ = InitData::parse(&document);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = from_annotation(text);
        let _ = InitData::parse(text);
    }
});
