//! Pulls from Debian's docker-registry and exchanges encrypted images with Debian's skopeo.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::sync::{Arc, Mutex};

use common::{Answer, Guard, Image, Liar, RegistryServer, gzip, key_pair, layer, missing, run};
use kata_cc_image::crypto::CryptoError;
use kata_cc_image::digest::Digest;
use kata_cc_image::{
    BrokerKeys, ClientConfig, DockerAuth, DockerAuthConfig, EncryptOptions, HeldKeys, ImageClient, KeyError,
    KeyProvider, Limits, NoKeys, Progress, PullError, PullTarget, PulledImage, Recipient, RegistryError,
    RequiredTier, RunningTier, SecretSource, TierError, encrypt_image, inspect,
};
use serde_json::json;
use zeroize::Zeroizing;

const KEY_ID: &str = "kbs:///default/image-key/1";

async fn pull(
    config: &ClientConfig,
    reference: &str,
    keys: &dyn KeyProvider,
    dir: &Path,
) -> Result<PulledImage, PullError> {
    let target = PullTarget { work_dir: dir.join("work"), rootfs_dir: dir.join("rootfs") };
    let result = ImageClient::new(config.clone())?.pull(reference, &target, keys, &|_: Progress| {}).await;
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let only_work = left.iter().all(|name| name == "work" || (result.is_ok() && name == "rootfs"));
    assert!(only_work, "left behind: {left:?}");
    if let Ok(mut entries) = std::fs::read_dir(dir.join("work")) {
        assert!(entries.next().is_none(), "the work folder is not empty");
    }
    result
}

fn plain(host: &str) -> ClientConfig {
    ClientConfig { insecure_registries: vec![host.to_owned()], ..ClientConfig::default() }
}

fn held(key: u8) -> HeldKeys {
    let mut keys = HeldKeys::default();
    keys.by_id.insert(KEY_ID.to_owned(), Zeroizing::new(vec![key; 32]));
    keys
}

fn check_sample(rootfs: &Path) {
    let read = |name: &str| std::fs::read_to_string(rootfs.join(name)).ok();
    assert_eq!(read("etc/hello").as_deref(), Some("secret-marker"));
    assert_eq!(read("etc/new").as_deref(), Some("new"));
    assert_eq!(read("etc/gone"), None);
    assert_eq!(read("old/a"), None);
    assert_eq!(read("old/b").as_deref(), Some("2"));
}

/// Puts the sample into the registry with skopeo; gives its reference.
fn push_sample(server: &RegistryServer, dir: &Path, extra: &[&str]) -> String {
    Image::sample().layout(&dir.join("layout"));
    let from = format!("oci:{}:t", dir.join("layout").display());
    let to = format!("docker://{}/test:1", server.host);
    run("skopeo", &[&["copy", "-q", "--dest-tls-verify=false"], extra, &[&from, &to]].concat());
    format!("{}/test:1", server.host)
}

/// Puts the sample into the registry, encrypted by us.
async fn push_encrypted(server: &RegistryServer, dir: &Path, tier: Option<RequiredTier>) -> String {
    Image::sample().layout(&dir.join("layout"));
    let mut options = EncryptOptions::new(KEY_ID, Zeroizing::new(vec![7; 32]));
    options.client = plain(&server.host);
    options.required_tier = tier;
    let from = format!("oci:{}:t", dir.join("layout").display());
    let made = encrypt_image(&from, &format!("docker://{}/test:enc", server.host), &options).await.unwrap();
    assert_eq!((made.layers, made.encrypted_layers), (2, 2));
    format!("{}/test@{}", server.host, made.manifest_digest)
}

#[tokio::test]
async fn pulls_over_plain_loopback() {
    if missing(&["docker-registry", "skopeo"]) {
        return;
    }
    let server = RegistryServer::start(Guard::Open);
    let dir = tempfile::tempdir().unwrap();
    let reference = push_sample(&server, dir.path(), &[]);
    let out = tempfile::tempdir().unwrap();
    let image = pull(&plain(&server.host), &reference, &NoKeys, out.path()).await.unwrap();
    check_sample(&image.rootfs);
    assert!(!image.encrypted);
    assert_eq!(image.layers.len(), 2);
    // The same by digest.
    let out = tempfile::tempdir().unwrap();
    let by_digest = format!("{}/test@{}", server.host, image.manifest_digest);
    pull(&plain(&server.host), &by_digest, &NoKeys, out.path()).await.unwrap();
}

#[tokio::test]
async fn speaks_plain_http_only_where_told() {
    if missing(&["docker-registry"]) {
        return;
    }
    let server = RegistryServer::start(Guard::Open);
    let out = tempfile::tempdir().unwrap();
    let error = pull(&ClientConfig::default(), &format!("{}/test:1", server.host), &NoKeys, out.path())
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::Registry(RegistryError::Transport { .. })), "{error}");
}

#[tokio::test]
async fn pulls_over_tls_and_refuses_an_unknown_authority() {
    if missing(&["docker-registry", "skopeo", "openssl"]) {
        return;
    }
    let server = RegistryServer::start(Guard::Tls);
    let dir = tempfile::tempdir().unwrap();
    let reference = push_sample(&server, dir.path(), &[]);
    let config = ClientConfig { extra_roots_pem: vec![server.ca()], ..ClientConfig::default() };
    let out = tempfile::tempdir().unwrap();
    check_sample(&pull(&config, &reference, &NoKeys, out.path()).await.unwrap().rootfs);
    let out = tempfile::tempdir().unwrap();
    let error = pull(&ClientConfig::default(), &reference, &NoKeys, out.path()).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
}

fn with_password(host: &str, password: &str) -> ClientConfig {
    let auth = DockerAuth {
        username: Some("alice".to_owned()),
        password: Some(password.to_owned()),
        ..DockerAuth::default()
    };
    ClientConfig { auth: Some(DockerAuthConfig { auths: [(host.to_owned(), auth)].into() }), ..plain(host) }
}

async fn guarded(guard: Guard) {
    let server = RegistryServer::start(guard);
    let dir = tempfile::tempdir().unwrap();
    let reference = push_sample(&server, dir.path(), &["--dest-creds", "alice:wonder"]);
    let out = tempfile::tempdir().unwrap();
    check_sample(
        &pull(&with_password(&server.host, "wonder"), &reference, &NoKeys, out.path()).await.unwrap().rootfs,
    );
    for config in [with_password(&server.host, "wrong"), plain(&server.host)] {
        let out = tempfile::tempdir().unwrap();
        let error = pull(&config, &reference, &NoKeys, out.path()).await.unwrap_err();
        assert!(matches!(error, PullError::Registry(RegistryError::Unauthorized { .. })), "{error}");
        assert!(!error.to_string().contains("wonder"));
    }
}

#[tokio::test]
async fn basic_authentication() {
    if !missing(&["docker-registry", "skopeo", "htpasswd"]) {
        guarded(Guard::Basic).await;
    }
}

#[tokio::test]
async fn bearer_authentication() {
    if !missing(&["docker-registry", "skopeo", "openssl"]) {
        guarded(Guard::Bearer).await;
    }
}

#[tokio::test]
async fn encrypts_and_pulls_with_the_brokers_key() {
    if missing(&["docker-registry"]) {
        return;
    }
    let server = RegistryServer::start(Guard::Open);
    let dir = tempfile::tempdir().unwrap();
    let reference = push_encrypted(&server, dir.path(), None).await;
    let config = plain(&server.host);
    let summary = inspect(&reference, &config).await.unwrap();
    assert!(summary.encrypted);
    assert_eq!(summary.required_tier.as_deref(), Some("confidential"));
    assert_eq!(summary.layers[1].recipients[0].key_id.as_deref(), Some(KEY_ID));

    let out = tempfile::tempdir().unwrap();
    let image = pull(&config, &reference, &held(7), out.path()).await.unwrap();
    check_sample(&image.rootfs);
    assert!(image.encrypted);
    assert_eq!(image.required_tier, Some(RequiredTier::Confidential));

    let refused = async |keys: &dyn KeyProvider| {
        let out = tempfile::tempdir().unwrap();
        pull(&config, &reference, keys, out.path()).await.unwrap_err()
    };
    // No key at all, another key under the name, another name.
    let error = refused(&NoKeys).await;
    assert!(matches!(error, PullError::Encrypted { layer: 0, .. }), "{error}");
    let error = refused(&held(8)).await;
    assert!(
        matches!(error, PullError::Key { source: KeyError::Crypto(CryptoError::Unwrap { .. }), .. }),
        "{error}"
    );
    let error = refused(&HeldKeys::default()).await;
    assert!(matches!(error, PullError::Encrypted { .. }) && error.to_string().contains(KEY_ID), "{error}");
}

/// A key broker that gives one key of two.
struct OneOfTwo {
    asked: Arc<Mutex<Vec<String>>>,
    given: Option<&'static str>,
}

#[async_trait::async_trait]
impl SecretSource for OneOfTwo {
    async fn get(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
        self.asked.lock().unwrap().push(uri.to_owned());
        match self.given == Some(uri) {
            true => Ok(Zeroizing::new(vec![9; 32])),
            false => Err(format!("{uri} is denied").into()),
        }
    }
}

#[tokio::test]
async fn a_key_that_is_refused_does_not_keep_another_from_being_asked_for() {
    const OTHER: &str = "kbs:///default/key/other";
    if missing(&["docker-registry"]) {
        return;
    }
    let (server, dir) = (RegistryServer::start(Guard::Open), tempfile::tempdir().unwrap());
    Image::sample().layout(&dir.path().join("layout"));
    let recipient =
        |id: &str, byte| Recipient::Broker { key_id: id.to_owned(), key: Zeroizing::new(vec![byte; 32]) };
    let third = "kbs:///default/key/third";
    let ids = [(KEY_ID, 7), (OTHER, 9)].into_iter().chain([(third, 7); 5]);
    let mut options = EncryptOptions::for_recipients(ids.map(|(id, byte)| recipient(id, byte)).collect());
    options.client = plain(&server.host);
    let (from, to) =
        (format!("oci:{}:t", dir.path().join("layout").display()), format!("{}/test:two", server.host));
    encrypt_image(&from, &format!("docker://{to}"), &options).await.unwrap();
    let asked = Arc::default();
    let pull_two = async |given| {
        let keys = BrokerKeys(OneOfTwo { asked: Arc::clone(&asked), given });
        let work = tempfile::tempdir().unwrap();
        pull(&plain(&server.host), &to, &keys, work.path()).await
    };
    pull_two(Some(OTHER)).await.unwrap();
    assert!(asked.lock().unwrap().iter().any(|uri| uri == KEY_ID), "the first one was asked for");
    asked.lock().unwrap().clear();
    let text = pull_two(None).await.unwrap_err().to_string();
    for words in [
        format!("{KEY_ID} is denied"),
        format!("{OTHER} is denied"),
        "; 3 more were not asked for".to_owned(),
    ] {
        assert!(text.contains(&words), "{text}");
    }
    let of_a_layer = [KEY_ID, OTHER, third, third];
    assert!(asked.lock().unwrap().chunks(4).all(|layer| layer == of_a_layer), "{:?}", asked.lock().unwrap());
}

#[tokio::test]
async fn refuses_a_layer_tampered_with() {
    if missing(&["docker-registry"]) {
        return;
    }
    let server = RegistryServer::start(Guard::Open);
    let dir = tempfile::tempdir().unwrap();
    let reference = push_encrypted(&server, dir.path(), None).await;
    let config = plain(&server.host);
    let summary = inspect(&reference, &config).await.unwrap();
    let blob = server.blob(&summary.layers[1].digest);
    let mut data = std::fs::read(&blob).unwrap();
    data[20] ^= 1;
    std::fs::write(&blob, data).unwrap();
    let out = tempfile::tempdir().unwrap();
    let error = pull(&config, &reference, &held(7), out.path()).await.unwrap_err();
    assert!(matches!(error, PullError::LayerDigest { layer: 1, .. }), "{error}");
}

#[tokio::test]
async fn refuses_a_layer_cut_short_or_grown() {
    let sample = Image::sample();
    for (change, size) in [(-1i64, false), (1, true)] {
        let mut image = Image { manifest: sample.manifest.clone(), blobs: sample.blobs.clone() };
        let data = &mut image.blobs[1].1;
        if change < 0 {
            data.pop();
        } else {
            data.push(0);
        }
        let liar = image.serve();
        let out = tempfile::tempdir().unwrap();
        let error = pull(&plain(&liar.host), &format!("{}/test:1", liar.host), &NoKeys, out.path())
            .await
            .unwrap_err();
        if size {
            assert!(matches!(error, PullError::LayerSize { layer: 0, .. }), "{error}");
        } else {
            assert!(matches!(error, PullError::LayerDigest { layer: 0, .. }), "{error}");
        }
    }
}

/// A registry that changes a layer and writes fitting digests into a fitting manifest is found out by the HMAC.
#[tokio::test]
async fn refuses_ciphertext_changed_together_with_its_manifest() {
    let dir = tempfile::tempdir().unwrap();
    Image::sample().layout(&dir.path().join("layout"));
    let to = format!("oci:{}:e", dir.path().join("enc").display());
    let from = format!("oci:{}:t", dir.path().join("layout").display());
    let options = EncryptOptions::new(KEY_ID, Zeroizing::new(vec![7; 32]));
    let made = encrypt_image(&from, &to, &options).await.unwrap();
    let blobs = dir.path().join("enc/blobs/sha256");
    let read = |digest: &str| std::fs::read(blobs.join(digest.strip_prefix("sha256:").unwrap())).unwrap();
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&read(made.manifest_digest.as_str())).unwrap();
    let mut image = Image { manifest: json!(null), blobs: Vec::new() };
    let config = manifest["config"]["digest"].as_str().unwrap().to_owned();
    image.blobs.push((config.parse().unwrap(), read(&config)));
    for number in 0..2 {
        let mut data = read(manifest["layers"][number]["digest"].as_str().unwrap());
        if number == 1 {
            data[30] ^= 4;
        }
        let digest = Digest::sha256(&data);
        manifest["layers"][number]["digest"] = json!(digest.as_str());
        image.blobs.push((digest, data));
    }
    image.manifest = manifest;
    let liar = image.serve();
    let out = tempfile::tempdir().unwrap();
    let error =
        pull(&plain(&liar.host), &format!("{}/test:1", liar.host), &held(7), out.path()).await.unwrap_err();
    assert!(matches!(error, PullError::Decrypt { layer: 1, source: CryptoError::Hmac }), "{error}");
}

#[tokio::test]
async fn refuses_another_manifest_for_the_digest() {
    let wanted = Digest::sha256(b"the real manifest");
    let liar = Image::sample().serve();
    let out = tempfile::tempdir().unwrap();
    let reference = format!("{}/test@{wanted}", liar.host);
    let error = pull(&plain(&liar.host), &reference, &NoKeys, out.path()).await.unwrap_err();
    let PullError::Registry(RegistryError::ManifestDigest { expected, seen }) = &error else {
        panic!("{error}");
    };
    assert_eq!(*expected, wanted);
    assert_ne!(*seen, wanted);
}

#[tokio::test]
async fn refuses_another_manifest_in_the_registrys_storage() {
    if missing(&["docker-registry", "skopeo"]) {
        return;
    }
    let server = RegistryServer::start(Guard::Open);
    let dir = tempfile::tempdir().unwrap();
    let reference = push_encrypted(&server, dir.path(), None).await;
    let digest = reference.split_once('@').unwrap().1;
    let path = server.blob(digest);
    let text = std::fs::read_to_string(&path).unwrap().replace("\"schemaVersion\":2", "\"schemaVersion\": 2");
    std::fs::write(&path, text).unwrap();
    let out = tempfile::tempdir().unwrap();
    // Which of the two notices first depends on the registry's version: either way there is no image.
    let error = pull(&plain(&server.host), &reference, &held(7), out.path()).await.unwrap_err();
    assert!(matches!(error, PullError::Registry(_)), "{error}");
}

#[tokio::test]
async fn refuses_a_tier_weaker_than_demanded() {
    if missing(&["docker-registry"]) {
        return;
    }
    let server = RegistryServer::start(Guard::Open);
    let dir = tempfile::tempdir().unwrap();
    let reference = push_encrypted(&server, dir.path(), Some(RequiredTier::Snp)).await;
    for (actual, good) in [
        (RunningTier::None, false),
        (RunningTier::Simulated { tee: "sim-snp", allowed: true }, false),
        (RunningTier::Tdx, false),
        (RunningTier::Snp, true),
    ] {
        let config = ClientConfig { running_tier: Some(actual), ..plain(&server.host) };
        let out = tempfile::tempdir().unwrap();
        match pull(&config, &reference, &held(7), out.path()).await {
            Ok(_) => assert!(good, "{actual}"),
            Err(error) => {
                assert!(
                    !good && matches!(error, PullError::Tier(TierError::TooWeak { .. })),
                    "{actual}: {error}"
                );
            }
        }
    }
}

#[tokio::test]
async fn decrypts_what_skopeo_encrypts() {
    if missing(&["docker-registry", "skopeo", "openssl"]) {
        return;
    }
    let server = RegistryServer::start(Guard::Open);
    for kind in ["rsa", "ec"] {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = key_pair(dir.path(), kind);
        let recipient = format!("jwe:{}", public.display());
        let reference = push_sample(&server, dir.path(), &["--encryption-key", &recipient]);
        let mut keys = HeldKeys::default();
        keys.private_pem.push(Zeroizing::new(std::fs::read(&private).unwrap()));
        // skopeo does not say which image a layer belongs to: nothing but the pin vouches for what stands beside it.
        let out = tempfile::tempdir().unwrap();
        let error = pull(&plain(&server.host), &reference, &keys, out.path()).await.unwrap_err();
        let PullError::Unbound { layer: 0, suggestion } = error else { panic!("{error}") };
        let pinned = ClientConfig { allowed: Some(vec![suggestion]), ..plain(&server.host) };
        let out = tempfile::tempdir().unwrap();
        let image = pull(&pinned, &reference, &keys, out.path()).await.unwrap();
        assert!(image.encrypted);
        check_sample(&image.rootfs);
        // Another key pair does not open it.
        let (other, _) = key_pair(dir.path(), if kind == "rsa" { "ec" } else { "rsa" });
        keys.private_pem = vec![Zeroizing::new(std::fs::read(other).unwrap())];
        let out = tempfile::tempdir().unwrap();
        let error = pull(&plain(&server.host), &reference, &keys, out.path()).await.unwrap_err();
        assert!(matches!(error, PullError::Encrypted { .. }), "{error}");
    }
}

#[tokio::test]
async fn skopeo_decrypts_what_we_encrypt() {
    if missing(&["skopeo", "openssl"]) {
        return;
    }
    for kind in ["rsa", "ec"] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let (private, public) = key_pair(dir.path(), kind);
        let image = Image::sample();
        image.layout(&dir.path().join("layout"));
        let mut options = EncryptOptions::new(KEY_ID, Zeroizing::new(vec![7; 32]));
        options.recipients.push(Recipient::Jwe(std::fs::read(&public).unwrap()));
        // Through an archive, so that both forms of layout are read by skopeo.
        let archive = format!("oci-archive:{}:e", at("enc.tar"));
        encrypt_image(&format!("oci:{}:t", at("layout")), &archive, &options).await.unwrap();
        let key = private.display().to_string();
        run("skopeo", &["copy", "-q", "--decryption-key", &key, &archive, &format!("oci:{}:d", at("dec"))]);
        for (digest, data) in &image.blobs[1..] {
            let decrypted = std::fs::read(dir.path().join("dec/blobs/sha256").join(digest.hex())).unwrap();
            assert_eq!(&decrypted, data, "{kind}");
        }
    }
}

#[tokio::test]
async fn chooses_from_an_index_and_checks_the_choice() {
    let image = Image::sample();
    let manifest = image.manifest.to_string().into_bytes();
    let digest = Digest::sha256(&manifest);
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.as_str(), "size": manifest.len(),
         "platform": {"os": "linux", "architecture": "amd64"}}]});
    for honest in [true, false] {
        let (index, manifest, blobs) = (index.to_string(), manifest.clone(), image.blobs.clone());
        let liar = Liar::start(move |request| {
            let path = request.split(' ').nth(1).unwrap_or_default();
            if path.ends_with("/manifests/1") {
                return Answer::new(
                    200,
                    "application/vnd.oci.image.index.v1+json",
                    index.clone().into_bytes(),
                );
            }
            if path.contains("/manifests/") {
                let mut body = manifest.clone();
                if !honest {
                    body.push(b' ');
                }
                return Answer::new(200, "application/vnd.oci.image.manifest.v1+json", body);
            }
            match blobs.iter().find(|(digest, _)| path.ends_with(digest.as_str())) {
                Some((_, data)) => Answer::new(200, "x/y", data.clone()),
                None => Answer::new(200, "x/y", Vec::new()),
            }
        });
        let out = tempfile::tempdir().unwrap();
        match pull(&plain(&liar.host), &format!("{}/test:1", liar.host), &NoKeys, out.path()).await {
            Ok(image) => {
                assert!(honest);
                assert_eq!(image.manifest_digest, digest);
                assert!(image.index_digest.is_some());
            }
            Err(error) => {
                let other = matches!(error, PullError::Registry(RegistryError::ManifestDigest { .. }));
                assert!(!honest && other, "{error}");
            }
        }
    }
}

async fn refuse(image: Image, limits: Limits) -> PullError {
    let liar = image.serve();
    let config = ClientConfig { limits, ..plain(&liar.host) };
    let out = tempfile::tempdir().unwrap();
    pull(&config, &format!("{}/test:1", liar.host), &NoKeys, out.path()).await.unwrap_err()
}

#[tokio::test]
async fn refuses_foreign_and_unknown_layers() {
    let plain = layer(&[("a", b"b")]);
    for kind in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+lz4",
    ] {
        let error = refuse(Image::new(&[(kind, gzip(&plain), &plain)]), Limits::default()).await;
        assert!(matches!(error, PullError::Media { layer: 0, .. }), "{error}");
    }
}

#[tokio::test]
async fn refuses_bombs_by_ratio_bytes_files_and_layers() {
    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    let zeros = vec![0; 4 << 20];
    let plain = layer(&[("a", &zeros)]);
    let image = || Image::new(&[(GZIP, gzip(&plain), &plain)]);
    let error =
        refuse(image(), Limits { ratio_from_bytes: 1 << 20, max_ratio: 10, ..Limits::default() }).await;
    assert!(matches!(error, PullError::Bomb { layer: 0, .. }), "{error}");
    let error = refuse(image(), Limits { max_unpacked_bytes: 1 << 20, ..Limits::default() }).await;
    assert!(error.to_string().contains("max_unpacked_bytes"), "{error}");
    let error = refuse(Image::sample(), Limits { max_files: 2, ..Limits::default() }).await;
    assert!(error.to_string().contains("max_files"), "{error}");
    let error = refuse(Image::sample(), Limits { max_layers: 1, ..Limits::default() }).await;
    assert!(matches!(error, PullError::Limit { limit: "max_layers", .. }), "{error}");
    let error = refuse(Image::sample(), Limits { max_blob_bytes: 10, ..Limits::default() }).await;
    assert!(matches!(error, PullError::Limit { limit: "max_blob_bytes", .. }), "{error}");
    let error = refuse(Image::sample(), Limits { max_manifest_bytes: 10, ..Limits::default() }).await;
    assert!(matches!(error, PullError::Registry(RegistryError::TooLarge { .. })), "{error}");
    let error = refuse(Image::sample(), Limits { max_config_bytes: 10, ..Limits::default() }).await;
    assert!(matches!(error, PullError::Limit { limit: "max_config_bytes", .. }), "{error}");
}

#[tokio::test]
async fn refuses_a_layer_the_configuration_does_not_name() {
    let (plain, other) = (layer(&[("a", b"b")]), layer(&[("a", b"c")]));
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let error = refuse(Image::new(&[(kind, plain, &other)]), Limits::default()).await;
    assert!(matches!(error, PullError::DiffId { layer: 0, .. }), "{error}");
    let mut image = Image::sample();
    image.manifest["layers"].as_array_mut().unwrap().pop();
    assert!(matches!(refuse(image, Limits::default()).await, PullError::Config(_)));
}

/// Measures: `cargo nextest run --release -p kata-cc-image --run-ignored only --no-capture measure`.
#[tokio::test]
#[ignore = "a measurement, not a check"]
async fn measure_throughput() {
    let dir = tempfile::tempdir().unwrap();
    let mut data = vec![0; 100 << 20];
    aws_lc_rs::rand::fill(&mut data).unwrap();
    let tar = layer(&[("data", &data)]);
    for (name, kind, encrypted) in [
        ("tar", "application/vnd.oci.image.layer.v1.tar", false),
        ("gzip", "application/vnd.oci.image.layer.v1.tar+gzip", false),
        ("gzip encrypted", "application/vnd.oci.image.layer.v1.tar+gzip", true),
    ] {
        let server = RegistryServer::start(Guard::Open);
        let blob = if name == "tar" { tar.clone() } else { gzip(&tar) };
        let layout = dir.path().join("layout");
        Image::new(&[(kind, blob, &tar)]).layout(&layout);
        let from = format!("oci:{}:t", layout.display());
        let to = format!("docker://{}/test:1", server.host);
        if encrypted {
            let mut options = EncryptOptions::new(KEY_ID, Zeroizing::new(vec![7; 32]));
            options.client = plain(&server.host);
            encrypt_image(&from, &to, &options).await.unwrap();
        } else {
            run("skopeo", &["copy", "-q", "--dest-tls-verify=false", &from, &to]);
        }
        std::fs::remove_dir_all(&layout).unwrap();
        let out = tempfile::tempdir().unwrap();
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        let memory = |name: &str| {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            status.lines().find(|line| line.starts_with(name)).unwrap().to_owned()
        };
        let before = memory("VmRSS");
        let begin = std::time::Instant::now();
        pull(&plain(&server.host), &format!("{}/test:1", server.host), &held(7), out.path()).await.unwrap();
        let seconds = begin.elapsed().as_secs_f64();
        println!("{name}: {:.0} MB/s, {before}, {}", 104.9 / seconds, memory("VmHWM"));
    }
}
