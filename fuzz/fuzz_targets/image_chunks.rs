//! The chunk list of an image, from a registry, and what pins one: what is accepted reads back as it is written, and has a hash for each chunk of each layer.
#![no_main]

use kata_cc_image::Limits;
use kata_cc_image::chunks::{ChunkList, ChunkPin};
use kata_cc_image::digest::Digest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(pin) = std::str::from_utf8(bytes).ok().and_then(|text| ChunkPin::parse(text).ok()) {
        let text = String::from_utf8(pin.to_json().expect("text and numbers")).expect("text");
        assert_eq!(ChunkPin::parse(&text).expect("as written"), pin);
    }
    let limits = Limits::default();
    let Ok(list) = ChunkList::parse(bytes, &limits) else { return };
    let text = list.to_json().expect("text and numbers");
    assert_eq!(ChunkList::parse(&text, &limits).expect("as written"), list);
    let image: Vec<(&Digest, u64)> =
        list.layers().iter().map(|layer| (layer.digest(), layer.size())).collect();
    for layer in list.layers() {
        assert_eq!(layer.chunks().len() as u64, layer.size().div_ceil(list.chunk_bytes()));
    }
    assert_eq!(*ChunkPin::of(&list).expect("text and numbers").list(), Digest::sha256(&text));
    list.fits(list.manifest(), &image).expect("its own image");
    assert!(list.fits(&Digest::sha256(bytes), &image).is_err());
});
