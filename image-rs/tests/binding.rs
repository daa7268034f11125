//! A registry that shows the genuine encrypted layers in a manifest of its own must not have them opened for its program.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use common::{Image, gzip, layer};
use kata_cc_image::digest::Digest;
use kata_cc_image::{
    ClientConfig, EncryptOptions, HeldKeys, ImageClient, KeyError, KeyPacket, KeyProvider, LayerSelection,
    Progress, PullError, PullTarget, PulledImage, encrypt_image,
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

const KEY_ID: &str = "kbs:///default/image-key/1";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The key broker's key, and how often it was asked for.
struct Counted(HeldKeys, AtomicUsize);

impl Counted {
    fn new() -> Self {
        let mut keys = HeldKeys::default();
        keys.by_id.insert(KEY_ID.to_owned(), Zeroizing::new(vec![7; 32]));
        Self(keys, AtomicUsize::new(0))
    }
}

#[async_trait]
impl KeyProvider for Counted {
    async fn unwrap_key(&self, packet: &KeyPacket) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.unwrap_key(packet).await
    }
}

/// The sample, encrypted as `kata-cc image encrypt` does.
async fn encrypted(dir: &Path, layers: LayerSelection) -> Image {
    Image::sample().layout(&dir.join("layout"));
    let mut options = EncryptOptions::new(KEY_ID, Zeroizing::new(vec![7; 32]));
    options.layers = layers;
    let from = format!("oci:{}:t", dir.join("layout").display());
    let to = format!("oci:{}:e", dir.join("enc").display());
    let made = encrypt_image(&from, &to, &options).await.unwrap();
    let read = |digest: &str| {
        std::fs::read(dir.join("enc/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())).unwrap()
    };
    let manifest: Value = serde_json::from_slice(&read(made.manifest_digest.as_str())).unwrap();
    let mut blobs = Vec::new();
    for descriptor in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
        let digest = descriptor["digest"].as_str().unwrap();
        blobs.push((digest.parse().unwrap(), read(digest)));
    }
    Image { manifest, blobs }
}

fn config(image: &Image) -> Value {
    let digest = image.manifest["config"]["digest"].as_str().unwrap();
    let (_, bytes) = image.blobs.iter().find(|(known, _)| known.as_str() == digest).unwrap();
    serde_json::from_slice(bytes).unwrap()
}

fn descriptor(kind: &str, data: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": Digest::sha256(data).to_string(), "size": data.len()})
}

fn set_config(image: &mut Image, config: &Value) {
    let bytes = config.to_string().into_bytes();
    image.manifest["config"] = descriptor("application/vnd.oci.image.config.v1+json", &bytes);
    image.blobs.push((Digest::sha256(&bytes), bytes));
}

/// A layer of the registry's own, plain.
fn evil() -> (Vec<u8>, Vec<u8>) {
    let plain = layer(&[("bin/sh", b"print the secret")]);
    (gzip(&plain), plain)
}

struct Outcome {
    result: Result<PulledImage, PullError>,
    asked: usize,
    downloaded: usize,
    _out: tempfile::TempDir,
}

/// Pulls from a server of `image`; `allowed` gets the server's `host/repository`.
async fn pull(image: Image, allowed: impl FnOnce(&str) -> Option<Vec<String>>) -> Outcome {
    let liar = image.serve();
    let repository = format!("{}/test", liar.host);
    let settings = ClientConfig {
        insecure_registries: vec![liar.host.clone()],
        allowed: allowed(&repository),
        ..ClientConfig::default()
    };
    let out = tempfile::tempdir().unwrap();
    let target = PullTarget { work_dir: out.path().join("work"), rootfs_dir: out.path().join("rootfs") };
    let keys = Counted::new();
    let downloads = Mutex::new(0);
    let progress = |progress: Progress| {
        if matches!(progress, Progress::Downloaded { .. } | Progress::Unpacked { .. }) {
            *downloads.lock().unwrap() += 1;
        }
    };
    let client = ImageClient::new(settings).unwrap();
    let result = client.pull(&format!("{repository}:1"), &target, &keys, &progress).await;
    assert_eq!(result.is_ok(), target.rootfs_dir.exists());
    let downloaded = *downloads.lock().unwrap();
    Outcome { result, asked: keys.1.load(Ordering::SeqCst), downloaded, _out: out }
}

fn refused_as_another_image(outcome: &Outcome) {
    let error = outcome.result.as_ref().unwrap_err();
    assert!(matches!(error, PullError::OtherImage { .. }), "{error}");
    assert_eq!(outcome.downloaded, 0, "a layer was fetched or unpacked");
}

#[tokio::test]
async fn the_genuine_image_is_pulled() {
    let dir = tempfile::tempdir().unwrap();
    let image = encrypted(dir.path(), LayerSelection::All).await;
    let outcome = pull(image, |_| None).await;
    let pulled = outcome.result.unwrap();
    assert_eq!(std::fs::read(pulled.rootfs.join("etc/hello")).unwrap(), b"secret-marker");
}

#[tokio::test]
async fn a_plain_layer_on_top_with_a_fitting_configuration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = encrypted(dir.path(), LayerSelection::All).await;
    let (blob, plain) = evil();
    image.manifest["layers"].as_array_mut().unwrap().push(descriptor(GZIP, &blob));
    image.blobs.push((Digest::sha256(&blob), blob));
    let mut own = config(&image);
    own["rootfs"]["diff_ids"].as_array_mut().unwrap().push(json!(Digest::sha256(&plain).as_str()));
    set_config(&mut image, &own);
    refused_as_another_image(&pull(image, |_| None).await);
}

#[tokio::test]
async fn another_program_or_environment_is_refused() {
    for (name, value) in [("Entrypoint", json!(["cat", "/etc/hello"])), ("Env", json!(["LD_PRELOAD=/x.so"]))]
    {
        let dir = tempfile::tempdir().unwrap();
        let mut image = encrypted(dir.path(), LayerSelection::All).await;
        let mut own = config(&image);
        own["config"][name] = value;
        set_config(&mut image, &own);
        refused_as_another_image(&pull(image, |_| None).await);
    }
}

#[tokio::test]
async fn a_layer_left_out_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = encrypted(dir.path(), LayerSelection::All).await;
    image.manifest["layers"].as_array_mut().unwrap().pop();
    let mut own = config(&image);
    own["rootfs"]["diff_ids"].as_array_mut().unwrap().pop();
    set_config(&mut image, &own);
    refused_as_another_image(&pull(image, |_| None).await);
}

/// With the genuine configuration, plain layers are held by their diff ids, and there can be no more of them.
#[tokio::test]
async fn plain_layers_are_held_by_the_bound_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = encrypted(dir.path(), LayerSelection::Only(vec![0])).await;
    let (blob, _) = evil();
    image.manifest["layers"][1] = descriptor(GZIP, &blob);
    image.blobs.push((Digest::sha256(&blob), blob));
    let error = pull(image, |_| None).await.result.unwrap_err();
    assert!(matches!(error, PullError::DiffId { layer: 1, .. }), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let mut image = encrypted(dir.path(), LayerSelection::Only(vec![0])).await;
    let (blob, _) = evil();
    image.manifest["layers"].as_array_mut().unwrap().push(descriptor(GZIP, &blob));
    image.blobs.push((Digest::sha256(&blob), blob));
    let outcome = pull(image, |_| None).await;
    let error = outcome.result.unwrap_err();
    assert!(matches!(error, PullError::Config(_)), "{error}");
    assert_eq!(outcome.asked, 0);
}

#[tokio::test]
async fn an_image_that_is_not_listed_is_refused_before_any_key_is_asked_for() {
    let other = Digest::sha256(b"other");
    let dir = tempfile::tempdir().unwrap();
    for image in [encrypted(dir.path(), LayerSelection::All).await, Image::sample()] {
        let digest = Digest::sha256(image.manifest.to_string().as_bytes());
        for list in [vec![], vec![format!("@{other}")]] {
            let copy = Image { manifest: image.manifest.clone(), blobs: image.blobs.clone() };
            let prefix = |name: &str| list.iter().map(|rest| format!("{name}{rest}")).collect();
            let outcome = pull(copy, |name| Some(prefix(name))).await;
            let error = outcome.result.unwrap_err();
            assert!(matches!(error, PullError::NotAllowed { .. }), "{error}");
            assert!(error.to_string().contains(digest.as_str()), "{error}");
            assert_eq!((outcome.asked, outcome.downloaded), (0, 0));
        }
        pull(image, |name| Some(vec![format!("{name}@{digest}")])).await.result.unwrap();
    }
}

#[tokio::test]
async fn no_key_is_asked_for_before_the_configuration_is_known_and_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let liar = encrypted(dir.path(), LayerSelection::All).await.serve();
    let settings = ClientConfig { insecure_registries: vec![liar.host.clone()], ..ClientConfig::default() };
    let client = ImageClient::new(settings).unwrap();
    let (keys, nothing) = (Counted::new(), |_: Progress| {});
    let examined = client.examine(&format!("{}/test:1", liar.host), &nothing).await.unwrap();
    assert!(examined.is_encrypted() && examined.config.config().is_some());
    assert_eq!(keys.1.load(Ordering::SeqCst), 0);
    let target = PullTarget { work_dir: dir.path().join("work"), rootfs_dir: dir.path().join("rootfs") };
    let digest = examined.manifest_digest.clone();
    let pulled = client.fetch(examined, &target, &keys, &nothing).await.unwrap();
    assert_eq!((pulled.manifest_digest, keys.1.load(Ordering::SeqCst) > 0), (digest, true));
}
