//! Chunk lists of images in Debian's docker-registry: with one that is signed, layers are decrypted while they come; any other counts for nothing.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../src/signature/test_utils.rs"]
mod sign;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Answer, Guard, Image, Liar, RegistryServer, gzip, layer, missing, noise};
use kata_cc_image::chunks::{CHUNK_BYTES, CHUNKS_TYPE, ChunkListError};
use kata_cc_image::crypto::{KEYS_PREFIX, PUBOPTS};
use kata_cc_image::digest::Digest;
use kata_cc_image::manifest::Descriptor;
use kata_cc_image::signature::NoMaterial;
use kata_cc_image::{
    ClientConfig, Companions, Documents, EncryptOptions, HeldKeys, ImageClient, Limits, NoKeys, Progress,
    PullError, PullTarget, PulledImage, Registries, Registry, RegistryRule, Retry, SignaturePolicy, attach,
    collect_documents, encrypt_image, keep_layers, parse_reference,
};
use serde_json::{Value, json};
use sign::Key;
use zeroize::Zeroizing;

const KEY_ID: &str = "kbs:///default/image-key/1";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A layer of a bit more than three chunks, first and last file small.
fn archive() -> Vec<u8> {
    layer(&[("etc/first", b"1"), ("big", &noise(3 << 20)), ("etc/last", b"2")])
}

/// A registry with an image of one layer, `test:1`, signed with a key.
struct Place {
    server: RegistryServer,
    registry: Registry,
    key: Key,
}

/// What lies between the registry and the guest: gives the answer to a request for the layer, or the registry's own.
type Between = Arc<dyn Fn(&str, Answered) -> Answer + Send + Sync>;

/// The registry's answer.
struct Answered {
    status: u16,
    kind: String,
    body: Vec<u8>,
}

impl From<Answered> for Answer {
    fn from(answer: Answered) -> Self {
        Self::new(answer.status, &answer.kind, answer.body)
    }
}

impl Place {
    async fn start(kind: &str, encrypted: bool) -> Option<Self> {
        if missing(&["docker-registry"]) {
            return None;
        }
        let server = RegistryServer::start(Guard::Open);
        let client =
            ClientConfig { insecure_registries: vec![server.host.clone()], ..ClientConfig::default() };
        let place = Self { registry: Registry::new(client.registry()).unwrap(), server, key: Key::new() };
        let archive = archive();
        let packed =
            if kind == ZSTD { zstd::encode_all(archive.as_slice(), 1).unwrap() } else { gzip(&archive) };
        let image = Image::new(&[(kind, packed, &archive)]);
        if encrypted {
            let dir = tempfile::tempdir().unwrap();
            image.layout(&dir.path().join("plain"));
            let mut options = EncryptOptions::new(KEY_ID, Zeroizing::new(vec![7; 32]));
            options.client = client;
            let from = format!("oci:{}:t", dir.path().join("plain").display());
            encrypt_image(&from, &format!("docker://{}", place.name()), &options).await.unwrap();
        } else {
            for (_, bytes) in &image.blobs {
                place.blob("x", bytes).await;
            }
            place.manifest("1", &image.manifest).await;
        }
        let digest = place.resolve("1").await.1;
        place.sign(&digest, &place.key).await;
        Some(place)
    }

    /// The image, as everybody names it.
    fn name(&self) -> String {
        format!("{}/test:1", self.server.host)
    }

    async fn resolve(&self, tag: &str) -> (Value, String) {
        let at = parse_reference(&format!("{}/test:{tag}", self.server.host)).unwrap();
        let raw = self.registry.manifest(&at, 1 << 20).await.unwrap();
        (serde_json::from_slice(&raw.bytes).unwrap(), raw.digest.to_string())
    }

    async fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let digest = self.registry.push_bytes(&parse_reference(&self.name()).unwrap(), bytes).await.unwrap();
        json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    }

    async fn manifest(&self, tag: &str, document: &Value) -> String {
        let at = parse_reference(&format!("{}/test:{tag}", self.server.host)).unwrap();
        let bytes = document.to_string().into_bytes();
        let digest = Digest::sha256(&bytes).to_string();
        self.registry.push_manifest(&at, bytes, MANIFEST).await.unwrap();
        digest
    }

    /// Signs `digest` as cosign does.
    async fn sign(&self, digest: &str, key: &Key) {
        let payload = sign::payload(digest, &format!("{}/test", self.server.host));
        let mut layer = self.blob("application/vnd.dev.cosign.simplesigning.v1+json", &payload).await;
        layer["annotations"] =
            json!({"dev.cosignproject.cosign/signature": STANDARD.encode(key.sign(&payload))});
        let config = self.blob("application/vnd.oci.image.config.v1+json", b"{}").await;
        let signature =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        self.manifest(&format!("{}.sig", digest.replace(':', "-")), &signature).await;
    }

    fn config(&self) -> ClientConfig {
        let policy = sign::policy(&sign::by_key(&self.key, "matchRepository"));
        ClientConfig {
            insecure_registries: vec![self.server.host.clone()],
            retry: Retry { first_wait: Duration::from_millis(1), ..Retry::default() },
            signatures: Some(Arc::new(
                SignaturePolicy::new(policy.as_bytes(), Arc::new(NoMaterial)).unwrap(),
            )),
            ..ClientConfig::default()
        }
    }

    /// The chunk list of the image under `tag`.
    async fn list(&self, tag: &str) -> Value {
        let client = ImageClient::new(self.config()).unwrap();
        let name = format!("{}/test:{tag}", self.server.host);
        let list = client.chunk_list(&name, CHUNK_BYTES, &|_| {}).await.unwrap();
        serde_json::from_slice(&list.to_json().unwrap()).unwrap()
    }

    /// Puts a list beside the image under `tag`; gives the referrer.
    async fn attach(&self, tag: &str, list: &Value) -> String {
        let subject = Descriptor {
            media_type: MANIFEST.to_owned(),
            digest: self.resolve(tag).await.1,
            size: 1,
            annotations: Default::default(),
            platform: None,
        };
        let at = parse_reference(&self.name()).unwrap();
        let document = list.to_string().into_bytes();
        attach(&self.registry, &at, &subject, CHUNKS_TYPE, &document).await.unwrap().to_string()
    }

    /// The same, signed.
    async fn attach_signed(&self, tag: &str, list: &Value) {
        let referrer = self.attach(tag, list).await;
        self.sign(&referrer, &self.key).await;
    }

    /// Settings by which the image is reached through somebody between.
    fn through(&self, config: ClientConfig, between: Between) -> ClientConfig {
        let host = self.server.host.clone();
        let liar = Liar::start(move |request| between(request, ask(&host, request)));
        let rule = RegistryRule {
            prefix: Some(self.server.host.clone()),
            location: Some(liar.host),
            insecure: true,
            ..RegistryRule::default()
        };
        ClientConfig { registries: Registries { registry: vec![rule] }, ..config }
    }

    /// The path under which the layer of the image under `tag` is asked for.
    async fn layer_path(&self, tag: &str) -> String {
        format!("/v2/test/blobs/{}", self.resolve(tag).await.0["layers"][0]["digest"].as_str().unwrap())
    }

    /// Somebody who sends 2.5 MiB of the layer, and the rest when `go` says so.
    async fn halting(&self, config: ClientConfig, go: impl Fn() + Send + Sync + 'static) -> ClientConfig {
        let (path, go) = (self.layer_path("1").await, Arc::new(go));
        let between = move |request: &str, answer: Answered| {
            let go = go.clone();
            match request.contains(&path) {
                true => Answer::from(answer).pause(5 << 19, move || go()),
                false => answer.into(),
            }
        };
        self.through(config, Arc::new(between))
    }

    async fn pull(&self, config: ClientConfig, tag: &str, dir: &Path) -> Result<PulledImage, PullError> {
        let target = PullTarget { work_dir: dir.join("work"), rootfs_dir: dir.join("rootfs") };
        let mut keys = HeldKeys::default();
        keys.by_id.insert(KEY_ID.to_owned(), Zeroizing::new(vec![7; 32]));
        let name = format!("{}/test:{tag}", self.server.host);
        let pulled = ImageClient::new(config)?.pull(&name, &target, &keys, &|_: Progress| {}).await;
        assert_eq!(target.rootfs_dir.exists(), pulled.is_ok());
        assert!(pulled.is_ok() || unfinished(dir, "etc/first").is_none(), "nothing is left");
        pulled
    }

    /// Pulls through a registry that halts, and says whether something was unpacked meanwhile.
    async fn streams(&self, config: ClientConfig) -> bool {
        let out = tempfile::tempdir().unwrap();
        let (dir, seen) = (out.path().to_owned(), Arc::new(Mutex::new(false)));
        let config = {
            let seen = seen.clone();
            let look = move || {
                std::thread::sleep(Duration::from_millis(400));
                *seen.lock().unwrap() = unfinished(&dir, "etc/first").is_some();
            };
            self.halting(config, look).await
        };
        let image = self.pull(config, "1", out.path()).await.unwrap();
        assert_eq!(std::fs::read(image.rootfs.join("etc/last")).unwrap(), b"2");
        *seen.lock().unwrap()
    }
}

/// What the registry says.
fn ask(host: &str, request: &str) -> Answered {
    let mut stream = TcpStream::connect(host).unwrap();
    // HTTP 1.0: the answer ends with the connection.
    stream.write_all(request.replacen("HTTP/1.1", "HTTP/1.0", 1).as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let kind =
        head.lines().find_map(|line| line.strip_prefix("Content-Type: ")).unwrap_or_default().to_owned();
    Answered { status, kind, body: bytes.split_off(end + 4) }
}

/// The unfinished root folder's file `name`, when it is there.
fn unfinished(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    entries
        .map(|entry| entry.path().join(name))
        .find(|path| path.is_file() && !path.starts_with(dir.join("rootfs")))
}

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
    assert_eq!((wrong.chunk, wrong.first, wrong.last), (1, 1 << 20, (2 << 20) - 1));
    let list = place.list("1").await;
    let expected = format!("sha256:{}", list["layers"][0]["chunks"][1].as_str().unwrap());
    let text = error.to_string();
    for part in ["layer 0", "chunk 1 (bytes 1048576 to 2097151)", &expected, &wrong.seen.to_string()] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_ne!(wrong.seen.to_string(), expected);
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
    assert!(matches!(&error, PullError::Chunk { layer: 0, source } if source.chunk == 1), "{error}");
    let error = pull(&unlisted).await.unwrap_err();
    assert!(matches!(error, PullError::LayerDigest { layer: 0, .. }), "{error}");

    // A file that ends too soon: the rest is the registry's, who now has it.
    std::fs::write(&path, &good[..2 << 20]).unwrap();
    assert!(matches!(pull(&listed).await.unwrap_err(), PullError::Registry(_)));
    std::fs::rename(&aside, &blob).unwrap();
    assert!(pull(&listed).await.unwrap());
}
