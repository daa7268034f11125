//! Manifest, index and configuration of an image, and the texts in them: all come from a registry.
#![no_main]

use kata_cc_image::crypto::{PUBOPTS, PublicOptions};
use kata_cc_image::digest::Digest;
use kata_cc_image::manifest::Document;
use kata_cc_image::media::LayerType;
use kata_cc_image::{Platform, parse_reference, required_tier};
use libfuzzer_sys::fuzz_target;
use oci_spec::image::ImageConfiguration;

fuzz_target!(|bytes: &[u8]| {
    let _ = serde_json::from_slice::<ImageConfiguration>(bytes);
    match Document::parse(bytes) {
        Ok(Document::Image(manifest)) => {
            for layer in &manifest.layers {
                let _ = (layer.digest(), LayerType::parse(&layer.media_type));
                if let Some(options) = layer.annotations.get(PUBOPTS) {
                    let _ = PublicOptions::from_annotation(options);
                }
            }
        }
        Ok(Document::Index(index)) => drop(index.select(&Platform::default())),
        Err(_) => {}
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = parse_reference(text);
    let _ = required_tier(Some(text), true);
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.as_str(), text);
    }
    if let Ok(kind) = LayerType::parse(text) {
        assert_eq!(LayerType::parse(&kind.oci_name()).ok(), Some(kind));
    }
});
