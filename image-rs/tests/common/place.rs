//! A registry with an image of one layer, and somebody between it and the guest.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_image::chunks::{CHUNK_BYTES, CHUNKS_TYPE};
use kata_cc_image::digest::Digest;
use kata_cc_image::manifest::Descriptor;
use kata_cc_image::signature::NoMaterial;
use kata_cc_image::{
    ClientConfig, EncryptOptions, HeldKeys, ImageClient, Mirror, Progress, PullError, PullTarget,
    PulledImage, Registries, Registry, RegistryRule, Retry, SignaturePolicy, attach, encrypt_image,
    parse_reference,
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::common::{Answer, Guard, Image, Liar, RegistryServer, gzip, layer, missing, noise};
use crate::sign::{self, Key};

pub const KEY_ID: &str = "kbs:///default/image-key/1";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A layer of a bit more than three chunks, first and last file small.
pub fn archive() -> Vec<u8> {
    layer(&[("etc/first", b"1"), ("big", &noise(3 << 20)), ("etc/last", b"2")])
}

/// A registry with an image of one layer, `test:1`, signed with a key.
pub struct Place {
    pub server: RegistryServer,
    pub registry: Registry,
    pub key: Key,
}

/// What lies between the registry and the guest: gives the answer to a request for the layer, or the registry's own.
pub type Between = Arc<dyn Fn(&str, Answered) -> Answer + Send + Sync>;

/// The registry's answer.
pub struct Answered {
    pub status: u16,
    pub kind: String,
    pub body: Vec<u8>,
    /// `Content-Range`, where it sends a part.
    pub range: Option<String>,
}

impl From<Answered> for Answer {
    fn from(answer: Answered) -> Self {
        let told = Self::new(answer.status, &answer.kind, answer.body);
        match answer.range {
            Some(range) => told.header("content-range", &range),
            None => told,
        }
    }
}

impl Place {
    pub async fn start(kind: &str, encrypted: bool) -> Option<Self> {
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
    pub fn name(&self) -> String {
        format!("{}/test:1", self.server.host)
    }

    pub async fn resolve(&self, tag: &str) -> (Value, String) {
        let at = parse_reference(&format!("{}/test:{tag}", self.server.host)).unwrap();
        let raw = self.registry.manifest(&at, 1 << 20).await.unwrap();
        (serde_json::from_slice(&raw.bytes).unwrap(), raw.digest.to_string())
    }

    pub async fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let digest = self.registry.push_bytes(&parse_reference(&self.name()).unwrap(), bytes).await.unwrap();
        json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    }

    pub async fn manifest(&self, tag: &str, document: &Value) -> String {
        let at = parse_reference(&format!("{}/test:{tag}", self.server.host)).unwrap();
        let bytes = document.to_string().into_bytes();
        let digest = Digest::sha256(&bytes).to_string();
        self.registry.push_manifest(&at, bytes, MANIFEST).await.unwrap();
        digest
    }

    /// Signs `digest` as cosign does.
    pub async fn sign(&self, digest: &str, key: &Key) {
        let payload = sign::payload(digest, &format!("{}/test", self.server.host));
        let mut layer = self.blob("application/vnd.dev.cosign.simplesigning.v1+json", &payload).await;
        layer["annotations"] =
            json!({"dev.cosignproject.cosign/signature": STANDARD.encode(key.sign(&payload))});
        let config = self.blob("application/vnd.oci.image.config.v1+json", b"{}").await;
        let signature =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        self.manifest(&format!("{}.sig", digest.replace(':', "-")), &signature).await;
    }

    pub fn config(&self) -> ClientConfig {
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
    pub async fn list(&self, tag: &str) -> Value {
        self.list_of(tag, CHUNK_BYTES).await
    }

    /// The same, with chunks of another length.
    pub async fn list_of(&self, tag: &str, chunk_bytes: u64) -> Value {
        let client = ImageClient::new(self.config()).unwrap();
        let name = format!("{}/test:{tag}", self.server.host);
        let list = client.chunk_list(&name, chunk_bytes, &|_| {}).await.unwrap();
        serde_json::from_slice(&list.to_json().unwrap()).unwrap()
    }

    /// Puts a list beside the image under `tag`; gives the referrer.
    pub async fn attach(&self, tag: &str, list: &Value) -> String {
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
    pub async fn attach_signed(&self, tag: &str, list: &Value) {
        let referrer = self.attach(tag, list).await;
        self.sign(&referrer, &self.key).await;
    }

    /// Settings by which the image is reached through somebody between.
    pub fn through(&self, config: ClientConfig, between: Between) -> ClientConfig {
        self.mirrored(config, between, None)
    }

    /// Somebody between the registry and the guest; gives the host.
    fn between(&self, between: Between) -> String {
        let host = self.server.host.clone();
        Liar::start(move |request| between(request, ask(&host, request))).host
    }

    /// Settings by which the image is reached at `registry`'s and, before it, at `mirror`'s.
    pub fn mirrored(
        &self,
        config: ClientConfig,
        registry: Between,
        mirror: impl Into<Option<Between>>,
    ) -> ClientConfig {
        let mirror = mirror.into().map(|mirror| Mirror {
            location: self.between(mirror),
            insecure: true,
            ..Mirror::default()
        });
        let rule = RegistryRule {
            prefix: Some(self.server.host.clone()),
            location: Some(self.between(registry)),
            insecure: true,
            mirror: mirror.into_iter().collect(),
            ..RegistryRule::default()
        };
        ClientConfig { registries: Registries { registry: vec![rule] }, ..config }
    }

    /// The path under which the layer of the image under `tag` is asked for.
    pub async fn layer_path(&self, tag: &str) -> String {
        format!("/v2/test/blobs/{}", self.resolve(tag).await.0["layers"][0]["digest"].as_str().unwrap())
    }

    /// Somebody who sends 2.5 MiB of the layer, and the rest when `go` says so.
    pub async fn halting(&self, config: ClientConfig, go: impl Fn() + Send + Sync + 'static) -> ClientConfig {
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

    pub async fn pull(&self, config: ClientConfig, tag: &str, dir: &Path) -> Result<PulledImage, PullError> {
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
    pub async fn streams(&self, config: ClientConfig) -> bool {
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
pub fn ask(host: &str, request: &str) -> Answered {
    let mut stream = TcpStream::connect(host).unwrap();
    // HTTP 1.0: the answer ends with the connection.
    stream.write_all(request.replacen("HTTP/1.1", "HTTP/1.0", 1).as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let header = |name| head.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    let kind = header("Content-Type: ").unwrap_or_default();
    Answered { status, kind, body: bytes.split_off(end + 4), range: header("Content-Range: ") }
}

/// The unfinished root folder's file `name`, when it is there.
pub fn unfinished(dir: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    entries
        .map(|entry| entry.path().join(name))
        .find(|path| path.is_file() && !path.starts_with(dir.join("rootfs")))
}
