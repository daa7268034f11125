//! Chunk lists of images in Debian's docker-registry: with one that is signed, layers are decrypted while they come; any other counts for nothing.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/place.rs"]
mod place;
#[path = "../src/signature/test_utils.rs"]
mod sign;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Answer, noise};
use kata_cc_image::chunks::{CHUNK_BYTES, CHUNKS_TYPE, ChunkListError, Had};
use kata_cc_image::crypto::{KEYS_PREFIX, PUBOPTS};
use kata_cc_image::digest::Digest;
use kata_cc_image::{
    ClientConfig, Companions, Documents, ImageClient, Limits, NoKeys, PullError, PullTarget,
    collect_documents, keep_layers,
};
use place::{Answered, GZIP, Place, ZSTD, unfinished};
use serde_json::{Value, json};
use sign::Key;

#[tokio::test]
async fn with_a_signed_list_a_layer_is_decrypted_while_it_comes() {
    for (kind, encrypted) in [(GZIP, true), (ZSTD, true), (ZSTD, false)] {
        let Some(place) = Place::start(kind, encrypted).await else { return };
        assert!(!place.streams(place.config()).await, "without a list it waits");
        place.attach_signed("1", &place.list("1").await).await;
        let out = tempfile::tempdir().unwrap();
        let dir = out.path().to_owned();
        let until_unpacked = move || {
            let deadline = Instant::now() + Duration::from_secs(20);
            while unfinished(&dir, "etc/first").is_none() {
                assert!(Instant::now() < deadline, "nothing is unpacked before all of the layer came");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(!dir.join("rootfs").exists(), "not visible under its name");
        };
        // less is fetched ahead than a chunk has: nobody waits for the other
        let limits = Limits { max_ahead_bytes: 10_000, ..Limits::default() };
        let config = place.halting(ClientConfig { limits, ..place.config() }, until_unpacked).await;
        let image = place.pull(config, "1", out.path()).await.unwrap();
        assert_eq!(image.encrypted, encrypted);
        assert!(std::fs::read(image.rootfs.join("big")).unwrap() == noise(3 << 20));
    }
}

#[tokio::test]
async fn a_list_that_is_not_signed_or_not_of_this_image_counts_for_nothing() {
    let Some(place) = Place::start(GZIP, true).await else { return };
    let list = place.list("1").await;
    place.attach("1", &list).await;
    assert!(!place.streams(place.config()).await, "nobody signed it");

    let mut other = list.clone();
    other["manifest"] = json!(Digest::sha256(b"other").to_string());
    place.attach_signed("1", &other).await;
    assert!(!place.streams(place.config()).await, "of another manifest");

    // as many chunks, another size
    let mut size = list.clone();
    size["layers"][0]["size"] = json!(size["layers"][0]["size"].as_u64().unwrap() - 1);
    place.attach_signed("1", &size).await;
    assert!(!place.streams(place.config()).await, "of another size");

    let mut form = list.clone();
    form["layers"][0]["chunks"].as_array_mut().unwrap().pop();
    place.attach_signed("1", &form).await;
    assert!(!place.streams(place.config()).await, "too few chunks");

    // its own text, so that it is another referrer than the one of nobody
    let mut by_another = list.clone();
    by_another["chunk_bytes"] = json!(CHUNK_BYTES - 1);
    let referrer = place.attach("1", &by_another).await;
    place.sign(&referrer, &Key::new()).await;
    assert!(!place.streams(place.config()).await, "by another key");
    // what made the difference: the signature
    place.sign(&referrer, &place.key).await;
    // (CHUNK_BYTES - 1 is within bounds, and the hashes are those of other pieces)
    let out = tempfile::tempdir().unwrap();
    let error = place.pull(place.config(), "1", out.path()).await.unwrap_err();
    assert!(matches!(error, PullError::Chunk { layer: 0, .. }), "{error}");

    // without a policy nobody can be believed
    let open = ClientConfig { signatures: None, ..place.config() };
    assert!(!place.streams(open).await, "no policy");
}

/// Somebody who changes a byte and then says nothing more: the pull ends all the same.
#[tokio::test]
async fn a_changed_chunk_is_refused_by_name_before_anything_after_it_comes() {
    let Some(place) = Place::start(GZIP, true).await else { return };
    place.attach_signed("1", &place.list("1").await).await;
    let path = place.layer_path("1").await;
    let (told, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let between = move |request: &str, mut answer: Answered| {
        if !request.contains(&path) {
            return answer.into();
        }
        answer.body[3 << 19] ^= 1;
        let wait = wait.clone();
        Answer::from(answer).pause((2 << 20) + 10, move || {
            let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(20));
        })
    };
    let config = place.through(place.config(), Arc::new(between));
    let out = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    let error = place.pull(config, "1", out.path()).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(15), "the pull waited for more");
    told.send(()).unwrap();
    let PullError::Chunk { layer: 0, source: wrong } = &error else { panic!("{error}") };
    let chunk = wrong.chunk;
    assert_eq!((chunk.number, chunk.first, chunk.last), (1, 1 << 20, (2 << 20) - 1));
    let [tried] = wrong.tried.0.as_slice() else { panic!("{error}") };
    let Had::Other(seen) = tried.had else { panic!("{error}") };
    let list = place.list("1").await;
    let expected = format!("sha256:{}", list["layers"][0]["chunks"][1].as_str().unwrap());
    let text = error.to_string();
    for part in ["layer 0", "chunk 1 (bytes 1048576 to 2097151)", &expected, &seen.to_string()] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_ne!(seen.to_string(), expected);
}

/// The list says when a chunk may be read; digest and HMAC still say whether the image is one.
#[tokio::test]
async fn a_list_does_not_stand_in_for_digest_and_hmac() {
    let Some(place) = Place::start(GZIP, true).await else { return };
    let (manifest, _) = place.resolve("1").await;
    // A signer who lists other bytes than the manifest names.
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    let mut blob = std::fs::read(place.server.blob(digest)).unwrap();
    blob[3 << 19] ^= 1;
    let mut list = place.list("1").await;
    let chunk = &blob[1 << 20..2 << 20];
    list["layers"][0]["chunks"][1] = json!(Digest::sha256(chunk).hex());
    place.attach_signed("1", &list).await;
    let path = place.layer_path("1").await;
    let between = move |request: &str, mut answer: Answered| {
        if request.contains(&path) {
            answer.body = blob.clone();
        }
        answer.into()
    };
    let config = place.through(place.config(), Arc::new(between));
    let out = tempfile::tempdir().unwrap();
    let error = place.pull(config, "1", out.path()).await.unwrap_err();
    assert!(matches!(error, PullError::LayerDigest { layer: 0, .. }), "{error}");

    // Right bytes, and another HMAC than the key's owner gave.
    let mut other = manifest.clone();
    let options = &mut other["layers"][0]["annotations"][PUBOPTS];
    let mut public: Value =
        serde_json::from_slice(&STANDARD.decode(options.as_str().unwrap()).unwrap()).unwrap();
    public["hmac"] = json!(STANDARD.encode([9; 32]));
    *options = json!(STANDARD.encode(public.to_string()));
    assert!(
        other["layers"][0]["annotations"]
            .as_object()
            .unwrap()
            .keys()
            .any(|name| name.starts_with(KEYS_PREFIX))
    );
    let digest = place.manifest("2", &other).await;
    place.sign(&digest, &place.key).await;
    place.attach_signed("2", &place.list("2").await).await;
    let out = tempfile::tempdir().unwrap();
    let error = place.pull(place.config(), "2", out.path()).await.unwrap_err();
    assert!(matches!(error, PullError::Decrypt { layer: 0, .. }), "{error}");
}

#[tokio::test]
async fn a_registry_that_gives_no_referrers_is_pulled_from_all_the_same() {
    let Some(place) = Place::start(ZSTD, false).await else { return };
    let digest = place.resolve("1").await.1;
    let (asked, tag) = (Arc::new(Mutex::new(0)), format!("manifests/{} ", digest.replace(':', "-")));
    let between = {
        let asked = asked.clone();
        move |request: &str, answer: Answered| {
            if request.contains("/referrers/") || request.contains(&tag) {
                *asked.lock().unwrap() += 1;
                return Answer::new(500, "application/json", b"{}".to_vec());
            }
            answer.into()
        }
    };
    let config = place.through(place.config(), Arc::new(between));
    let out = tempfile::tempdir().unwrap();
    place.pull(config, "1", out.path()).await.unwrap();
    assert!(*asked.lock().unwrap() >= 4, "it was asked, and again");
}

#[tokio::test]
async fn a_list_is_made_without_a_key_of_what_the_manifest_names_alone() {
    let Some(place) = Place::start(GZIP, true).await else { return };
    let (manifest, digest) = place.resolve("1").await;
    let list = place.list("1").await;
    let layer = &manifest["layers"][0];
    assert_eq!(list["manifest"], digest.as_str());
    assert_eq!(
        (&list["layers"][0]["digest"], &list["layers"][0]["size"]),
        (&layer["digest"], &layer["size"])
    );
    let blob = std::fs::read(place.server.blob(layer["digest"].as_str().unwrap())).unwrap();
    let expected: Vec<_> = blob.chunks(1 << 20).map(|chunk| json!(Digest::sha256(chunk).hex())).collect();
    assert_eq!(list["layers"][0]["chunks"], json!(expected));
    let client = ImageClient::new(place.config()).unwrap();
    let error = client.chunk_list(&place.name(), 1000, &|_| {}).await.unwrap_err();
    assert!(
        matches!(error, PullError::ChunkList(ChunkListError::Member { member: "chunk_bytes", .. })),
        "{error}"
    );
    // a list that guests would find too long is not made
    let limits = Limits { max_config_bytes: 300, ..Limits::default() };
    let client = ImageClient::new(ClientConfig { limits, ..place.config() }).unwrap();
    let error = client.chunk_list(&place.name(), CHUNK_BYTES, &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("length"), "{error}");
    let between = |request: &str, mut answer: Answered| {
        if request.contains("/blobs/") {
            answer.body[5] ^= 1;
        }
        answer.into()
    };
    let client = ImageClient::new(place.through(place.config(), Arc::new(between))).unwrap();
    let error = client.chunk_list(&place.name(), CHUNK_BYTES, &|_| {}).await.unwrap_err();
    assert!(matches!(error, PullError::LayerDigest { layer: 0, .. }), "{error}");
    let out = tempfile::tempdir().unwrap();
    let target = PullTarget { work_dir: out.path().join("work"), rootfs_dir: out.path().join("rootfs") };
    let client = ImageClient::new(place.config()).unwrap();
    assert!(client.pull(&place.name(), &target, &NoKeys, &|_| {}).await.is_err());
}

/// The node's copy takes the place of the registry for the layer, and is believed as little.
#[tokio::test]
async fn a_kept_layer_is_read_from_the_nodes_file_and_held_to_the_list_and_the_digest() {
    let Some(place) = Place::start(GZIP, true).await else { return };
    let node = tempfile::tempdir().unwrap();
    let path = node.path().join("kept");
    // Made without a key.
    let mut file = std::fs::File::create(&path).unwrap();
    let kept = keep_layers(&place.name(), &place.config(), 1 << 30, &mut file).await.unwrap();
    assert_eq!(kept.manifest_digest.to_string(), place.resolve("1").await.1);
    let offered = async || {
        let mut documents = collect_documents(&place.name(), &place.config(), &[CHUNKS_TYPE]).await.unwrap();
        kept.note(&mut documents);
        let documents = Documents::parse(&documents.to_json().unwrap()).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        ClientConfig { companions: Companions::offered(documents, Some(file)), ..place.config() }
    };
    let unlisted = offered().await;
    place.attach_signed("1", &place.list("1").await).await;
    let listed = offered().await;
    let digest = place.resolve("1").await.0["layers"][0]["digest"].as_str().unwrap().to_owned();
    let (blob, aside) = (place.server.blob(&digest), node.path().join("aside"));
    std::fs::rename(&blob, &aside).unwrap();
    let pull = async |config: &ClientConfig| {
        let out = tempfile::tempdir().unwrap();
        let pulled = place.pull(config.clone(), "1", out.path()).await;
        pulled.map(|image| std::fs::read(image.rootfs.join("big")).unwrap() == noise(3 << 20))
    };
    assert!(pull(&listed).await.unwrap() && pull(&unlisted).await.unwrap());
    assert!(pull(&place.config()).await.is_err(), "the registry has it no more");

    let good = std::fs::read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[3 << 19] ^= 1;
    std::fs::write(&path, flipped).unwrap();
    let error = pull(&listed).await.unwrap_err();
    assert!(matches!(&error, PullError::Chunk { layer: 0, source } if source.chunk.number == 1), "{error}");
    for part in
        ["the node's copy sent one with the hash sha256:", &format!("registry {} has no", place.server.host)]
    {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    let error = pull(&unlisted).await.unwrap_err();
    assert!(matches!(error, PullError::LayerDigest { layer: 0, .. }), "{error}");

    // The registry has it again: it is asked for the chunk that the node's file has wrong.
    std::fs::rename(&aside, &blob).unwrap();
    assert!(pull(&listed).await.unwrap());
    std::fs::rename(&blob, &aside).unwrap();

    // A file that ends too soon: the rest is the registry's, who now has it.
    std::fs::write(&path, &good[..2 << 20]).unwrap();
    assert!(matches!(pull(&listed).await.unwrap_err(), PullError::Registry(_)));
    std::fs::rename(&aside, &blob).unwrap();
    assert!(pull(&listed).await.unwrap());
}
