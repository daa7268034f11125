//! Chunk lists that the init-data pins: they count although nobody signed them, and no other does in their place.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/place.rs"]
mod place;
#[path = "../src/signature/test_utils.rs"]
mod sign;

use std::sync::Arc;

use kata_cc_image::chunks::{CHUNK_BYTES, ChunkPins, PinnedListError};
use kata_cc_image::digest::Digest;
use kata_cc_image::{ClientConfig, PullError};
use place::{Answered, GZIP, Place, ZSTD};
use serde_json::{Value, json};

/// Digest of a list's document.
fn digest(list: &Value) -> Digest {
    Digest::sha256(list.to_string().as_bytes())
}

/// Settings without a signature policy, in which `list` is pinned for the image of `place`.
async fn pinned(place: &Place, list: &Digest) -> ClientConfig {
    let pin = json!({"version": 1, "manifest": place.resolve("1").await.1, "list": list.as_str()});
    let chunk_pins = ChunkPins::parse(&[pin.to_string()]).unwrap();
    ClientConfig { chunk_pins, signatures: None, ..place.config() }
}

async fn refused(place: &Place, config: ClientConfig) -> (PinnedListError, String) {
    let out = tempfile::tempdir().unwrap();
    let error = place.pull(config, "1", out.path()).await.unwrap_err();
    let text = error.to_string();
    let PullError::PinnedChunks { why, .. } = error else { panic!("{text}") };
    (why, text)
}

#[tokio::test]
async fn a_pinned_list_needs_no_signature_and_stands_before_a_signed_one() {
    for (kind, encrypted) in [(GZIP, true), (ZSTD, false)] {
        let Some(place) = Place::start(kind, encrypted).await else { return };
        let list = place.list("1").await;
        place.attach("1", &list).await;
        let without = ClientConfig { signatures: None, ..place.config() };
        assert!(!place.streams(without).await, "nobody vouches for it");
        let with = pinned(&place, &digest(&list)).await;
        assert!(place.streams(with.clone()).await, "pinned");
        // Its signer's newest list has other hashes.
        let mut other = list.clone();
        other["layers"][0]["chunks"][1] = json!("ab".repeat(32));
        place.attach_signed("1", &other).await;
        let signatures = place.config().signatures;
        assert!(place.streams(ClientConfig { signatures, ..with }).await, "the pinned one counts");
        let out = tempfile::tempdir().unwrap();
        let error = place.pull(place.config(), "1", out.path()).await.unwrap_err();
        assert!(matches!(error, PullError::Chunk { .. }), "{error}");
    }
}

#[tokio::test]
async fn another_list_in_the_place_of_the_pinned_one_is_refused_by_name() {
    let Some(place) = Place::start(GZIP, true).await else { return };
    let list = place.list("1").await;
    place.attach("1", &list).await;
    let other = place.list_of("1", CHUNK_BYTES / 2).await;

    // Other bytes under its name.
    let (path, bytes) = (format!("/v2/test/blobs/{}", digest(&list)), other.to_string().into_bytes());
    let between = move |request: &str, mut answer: Answered| {
        if request.contains(&path) {
            answer.body = bytes.clone();
        }
        answer.into()
    };
    let config = place.through(pinned(&place, &digest(&list)).await, Arc::new(between));
    let (why, text) = refused(&place, config).await;
    assert!(matches!(why, PinnedListError::Changed { .. }), "{text}");
    let manifest = place.resolve("1").await.1;
    for part in [digest(&list).as_str(), digest(&other).as_str(), &manifest, "serves"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    // It is not there, another one is.
    let (why, text) = refused(&place, pinned(&place, &digest(&other)).await).await;
    assert!(matches!(why, PinnedListError::Other { .. }), "{text}");
    for part in [digest(&list).as_str(), digest(&other).as_str(), "image chunks --pin"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    // It is there, and of another image.
    let mut unfit = list.clone();
    unfit["manifest"] = json!(Digest::sha256(b"other").as_str());
    place.attach("1", &unfit).await;
    let (why, text) = refused(&place, pinned(&place, &digest(&unfit)).await).await;
    assert!(matches!(why, PinnedListError::Unfit(_)), "{text}");
}

#[tokio::test]
async fn without_the_pinned_list_layers_wait() {
    let Some(place) = Place::start(GZIP, true).await else { return };
    assert!(!place.streams(pinned(&place, &Digest::sha256(b"gone")).await).await);
}

/// A layer that would be read at once is held to the pinned list, too.
#[tokio::test]
async fn a_plain_layer_is_held_to_the_pinned_list() {
    let Some(place) = Place::start(GZIP, false).await else { return };
    let list = place.list("1").await;
    place.attach("1", &list).await;
    let path = place.layer_path("1").await;
    let between = move |request: &str, mut answer: Answered| {
        if request.contains(&path) {
            answer.body[3 << 19] ^= 1;
        }
        answer.into()
    };
    let config = place.through(pinned(&place, &digest(&list)).await, Arc::new(between));
    let out = tempfile::tempdir().unwrap();
    let error = place.pull(config, "1", out.path()).await.unwrap_err();
    let PullError::Chunk { layer: 0, source } = &error else { panic!("{error}") };
    assert_eq!(source.chunk.number, 1);
}
