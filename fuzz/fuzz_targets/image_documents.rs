//! Reads arbitrary bytes as the small documents behind a sealed image, and as the end of such a file: nothing may panic, and what is read
//! is written the same again.
#![no_main]

use std::io::Cursor;

use kata_cc_image::Documents;
use kata_cc_sealed_image::documents;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(read) = Documents::parse(data) {
        let text = read.to_json().expect("text");
        assert_eq!(Documents::parse(&text).expect("as written"), read);
    }
    let mut file = Cursor::new(data.to_vec());
    if let Ok(Some(found)) = documents::read(&mut file, 1 << 16) {
        assert!(found.len() <= data.len());
    }
    let mut file = Cursor::new(vec![0; 4096]);
    documents::append(&mut file, data).expect("in memory");
    assert_eq!(documents::read(&mut file, data.len()).expect("in memory").as_deref(), Some(data));
});
