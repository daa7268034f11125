//! Signatures of images in Debian's docker-registry: which are good, and why each other is refused before a layer is fetched.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../src/signature/test_utils.rs"]
mod sign;

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Answer, Guard, Image, Liar, RegistryServer, missing, run};
use kata_cc_image::digest::Digest;
use kata_cc_image::signature::{BrokerMaterial, KeyMaterial, NoMaterial};
use kata_cc_image::{
    ClientConfig, Companions, Documents, ImageClient, Limits, NoKeys, PullError, PullTarget, Registry,
    RegistryConfig, SecretSource, SignatureError, SignaturePolicy, attach, collect_documents,
    parse_reference,
};
use serde_json::{Value, json};
use sign::*;
use zeroize::Zeroizing;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// A registry, and how to put things there.
struct Place {
    server: RegistryServer,
    registry: Registry,
}

impl Place {
    fn start() -> Option<Self> {
        if missing(&["docker-registry"]) {
            return None;
        }
        let server = RegistryServer::start(Guard::Open);
        let config = RegistryConfig { insecure_registries: vec![server.host.clone()], ..Default::default() };
        Some(Self { registry: Registry::new(config).unwrap(), server })
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.server.host)
    }

    async fn blob(&self, repository: &str, media: &str, bytes: &[u8]) -> Value {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let (at, digest) = (parse_reference(&self.name(repository)).unwrap(), Digest::sha256(bytes));
        self.registry.push_blob(&at, &digest, file.path(), bytes.len() as u64).await.unwrap();
        json!({"mediaType": media, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// Puts a manifest under `repository:tag`; gives its digest.
    async fn manifest(&self, at: &str, document: &Value) -> String {
        let bytes = document.to_string().into_bytes();
        let digest = Digest::sha256(&bytes).to_string();
        let media = document["mediaType"].as_str().unwrap();
        self.registry.push_manifest(&parse_reference(&self.name(at)).unwrap(), bytes, media).await.unwrap();
        digest
    }

    /// The sample image; `mark` makes it another one.
    async fn image(&self, repository: &str, mark: &str) -> String {
        let mut image = Image::sample();
        for (_, bytes) in &image.blobs {
            self.blob(repository, "x", bytes).await;
        }
        image.manifest["annotations"] = json!({"mark": mark});
        self.manifest(&format!("{repository}:1"), &image.manifest).await
    }

    /// Layers put beside an image under a tag.
    async fn attach(&self, repository: &str, tag: &str, layers: &[Value]) -> String {
        let config = self.blob(repository, "application/vnd.oci.image.config.v1+json", b"{}").await;
        let document = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.manifest(&format!("{repository}:{tag}"), &document).await
    }

    /// A layer of a signature.
    async fn layer(&self, repository: &str, payload: &[u8], annotations: Value) -> Value {
        let mut layer = self.blob(repository, PAYLOAD, payload).await;
        layer["annotations"] = annotations;
        layer
    }

    /// Signs `digest` as `identity` with a key, as cosign does.
    async fn sign(&self, repository: &str, digest: &str, identity: &str, key: &Key) {
        let payload = payload(digest, &self.name(identity));
        let annotations = json!({"dev.cosignproject.cosign/signature": STANDARD.encode(key.sign(&payload))});
        let layer = self.layer(repository, &payload, annotations).await;
        self.attach(repository, &signature_tag(digest), &[layer]).await;
    }

    fn config(&self, policy: &str, material: Arc<dyn KeyMaterial>) -> ClientConfig {
        let policy = SignaturePolicy::new(policy.as_bytes(), material).unwrap();
        ClientConfig {
            insecure_registries: vec![self.server.host.clone()],
            signatures: Some(Arc::new(policy)),
            ..ClientConfig::default()
        }
    }

    /// Pulls under one requirement: `good`, or the words of the refusal.
    async fn pull(&self, image: &str, requirement: &Value) -> String {
        let config = self.config(&policy(requirement), Arc::new(NoMaterial));
        match pull(&self.name(image), config).await {
            Ok(()) => "good".to_owned(),
            Err(error) => words(&error),
        }
    }
}

fn signature_tag(digest: &str) -> String {
    format!("{}.sig", digest.replace(':', "-"))
}

async fn pull(image: &str, config: ClientConfig) -> Result<(), PullError> {
    let dir = tempfile::tempdir().unwrap();
    let target = PullTarget { work_dir: dir.path().join("work"), rootfs_dir: dir.path().join("rootfs") };
    let pulled = ImageClient::new(config)?.pull(image, &target, &NoKeys, &|_| {}).await;
    assert_eq!(target.rootfs_dir.exists(), pulled.is_ok());
    pulled.map(drop)
}

fn words(error: &PullError) -> String {
    let PullError::Signature(SignatureError::Refused(refusal)) = error else { panic!("{error}") };
    let text = error.to_string();
    for part in [&refusal.image, &refusal.digest, &refusal.scope] {
        assert!(!part.is_empty() && text.contains(part.as_str()), "{text}");
    }
    for rejected in &refusal.reasons {
        assert!(text.contains(rejected.reason.what_to_do()), "{text}");
    }
    refusal.reasons.iter().map(|one| one.reason.word()).collect::<Vec<_>>().join(" ")
}

/// What one client collected is all that another one needs of an image that is named by its digest, signatures and what refers to the
/// image included; and it is believed no more than a registry.
#[tokio::test]
async fn collected_documents_take_the_registrys_place() {
    const KIND: &str = "application/vnd.example.note";
    let Some(place) = Place::start() else { return };
    let (key, other) = (Key::new(), Key::new());
    let digest = place.image("test", "a").await;
    place.sign("test", &digest, "test", &key).await;
    let pinned = place.name(&format!("test@{digest}"));
    let (at, open) = (
        parse_reference(&pinned).unwrap(),
        ClientConfig { insecure_registries: vec![place.server.host.clone()], ..ClientConfig::default() },
    );
    let (_, raw, _) = ImageClient::new(open.clone()).unwrap().resolve(&at).await.unwrap();
    let subject =
        serde_json::from_value(json!({"mediaType": MANIFEST, "digest": digest, "size": raw.bytes.len()}));
    let note = attach(&place.registry, &at, &subject.unwrap(), KIND, b"a note").await.unwrap();
    place.sign("test", note.as_str(), "test", &key).await;
    let before = collect_documents(&place.name("test:1"), &open, &[KIND]).await.unwrap();
    let collected = Documents::parse(&before.to_json().unwrap()).unwrap();
    let by = |key: &Key, companions| ClientConfig {
        companions,
        ..place.config(&policy(&by_key(key, "matchRepository")), Arc::new(NoMaterial))
    };
    let offered = || Companions::offered(collected.clone(), None);
    let good = ImageClient::new(by(&key, offered())).unwrap();
    let [wrong_key, by_tag, without] = [
        (by(&other, offered()), pinned.clone()),
        (by(&key, offered()), place.name("test:1")),
        (by(&key, Companions::None), pinned.clone()),
    ];
    drop(place);

    let image = good.examine(&pinned, &|_| {}).await.unwrap();
    assert_eq!(image.manifest_digest.as_str(), digest);
    assert_eq!(good.signed_documents(&image, KIND).await.unwrap(), [b"a note"]);
    let examine = async |(config, name): (ClientConfig, String)| {
        ImageClient::new(config).unwrap().examine(&name, &|_| {}).await.err().unwrap()
    };
    assert_eq!(words(&examine(wrong_key).await), "wrong-key");
    // which image a tag names is for the registry to say, and it is gone
    for asked in [by_tag, without] {
        assert!(matches!(examine(asked).await, PullError::Registry(_)));
    }
}

#[tokio::test]
async fn signed_by_a_key() {
    let Some(place) = Place::start() else { return };
    let (key, other) = (Key::new(), Key::new());
    let digest = place.image("test", "a").await;
    let policy = by_key(&key, "matchRepository");
    assert_eq!(place.pull("test:1", &policy).await, "unsigned");
    place.sign("test", &digest, "test", &other).await;
    assert_eq!(place.pull("test:1", &policy).await, "wrong-key");
    place.sign("test", &digest, "test", &key).await;
    assert_eq!(place.pull("test:1", &policy).await, "good");
    assert_eq!(place.pull(&format!("test@{digest}"), &policy).await, "good");
    // cosign names the repository alone, and the default wants a tag.
    assert_eq!(place.pull("test:1", &by_key(&key, "matchRepoDigestOrExact")).await, "wrong-identity");
    place.sign("test", &digest, "test:1", &key).await;
    assert_eq!(place.pull("test:1", &by_key(&key, "matchRepoDigestOrExact")).await, "good");
    place.sign("test", &digest, "other", &key).await;
    assert_eq!(place.pull("test:1", &policy).await, "wrong-identity");
    // Any one of several signatures.
    let mut layers = Vec::new();
    for by in [&other, &key] {
        let payload = payload(&digest, &place.name("test"));
        let annotations = json!({"dev.cosignproject.cosign/signature": STANDARD.encode(by.sign(&payload))});
        layers.push(place.layer("test", &payload, annotations).await);
    }
    place.attach("test", &signature_tag(&digest), &layers).await;
    assert_eq!(place.pull("test:1", &policy).await, "good");
    // All requirements.
    let config = |second: &Key| {
        let both = json!([policy, by_key(second, "matchRepository")]);
        let text = json!({"default": both}).to_string();
        place.config(&text, Arc::new(NoMaterial))
    };
    pull(&place.name("test:1"), config(&other)).await.unwrap();
    let error = pull(&place.name("test:1"), config(&Key::new())).await.unwrap_err();
    assert_eq!(words(&error), "wrong-key wrong-key");
    assert!(error.to_string().contains("scope default, requirement 1 (sigstoreSigned)"), "{error}");
}

#[tokio::test]
async fn refused_before_anything_else_is_fetched() {
    let Some(place) = Place::start() else { return };
    place.image("test", "a").await;
    for (digest, _) in &Image::sample().blobs {
        std::fs::remove_file(place.server.blob(digest.as_str())).unwrap();
    }
    assert_eq!(place.pull("test:1", &by_key(&Key::new(), "matchRepository")).await, "unsigned");
    assert_eq!(place.pull("test:1", &json!({"type": "reject"})).await, "scope-rejects");
    let signed_by = json!({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k.gpg"});
    assert_eq!(place.pull("test:1", &signed_by).await, "unsupported");
    let pki = json!({"type": "sigstoreSigned", "pki": {"caRootsPath": "/ca"}});
    assert_eq!(place.pull("test:1", &pki).await, "unsupported");
}

#[tokio::test]
async fn mirrored_and_tampered() {
    let Some(place) = Place::start() else { return };
    let key = Key::new();
    let digest = place.image("vendor/app", "a").await;
    place.sign("vendor/app", &digest, "vendor/app:1", &key).await;
    // A true mirror: the same digest, the signature copied with it.
    assert_eq!(place.image("mirror/app", "a").await, digest);
    assert_eq!(place.pull("mirror/app:1", &by_key(&key, "matchRepository")).await, "unsigned");
    place.sign("mirror/app", &digest, "vendor/app:1", &key).await;
    assert_eq!(place.pull("mirror/app:1", &by_key(&key, "matchRepository")).await, "wrong-identity");
    let mut exact = by_key(&key, "exactRepository");
    exact["signedIdentity"]["dockerRepository"] = place.name("vendor/app").into();
    assert_eq!(place.pull("mirror/app:1", &exact).await, "good");
    let mut remap = by_key(&key, "remapIdentity");
    remap["signedIdentity"]["prefix"] = place.name("mirror").into();
    remap["signedIdentity"]["signedPrefix"] = place.name("vendor").into();
    assert_eq!(place.pull("mirror/app:1", &remap).await, "good");
    // Mirrored in another form, and the old signature put beside it.
    let changed = place.image("mirror/app", "changed on the way").await;
    assert_ne!(changed, digest);
    let payload = payload(&digest, &place.name("vendor/app:1"));
    let annotations = json!({"dev.cosignproject.cosign/signature": STANDARD.encode(key.sign(&payload))});
    let layer = place.layer("mirror/app", &payload, annotations.clone()).await;
    place.attach("mirror/app", &signature_tag(&changed), &[layer]).await;
    assert_eq!(place.pull("mirror/app:1", &exact).await, "other-digest");
    // Re-signed by whoever mirrors.
    place.sign("mirror/app", &changed, "vendor/app:1", &Key::new()).await;
    assert_eq!(place.pull("mirror/app:1", &exact).await, "wrong-key");
    // The payload changed, with its descriptor, and without.
    let text = String::from_utf8(payload.clone()).unwrap().replace(&digest, &changed);
    let layer = place.layer("mirror/app", text.as_bytes(), annotations).await;
    place.attach("mirror/app", &signature_tag(&changed), std::slice::from_ref(&layer)).await;
    assert_eq!(place.pull("mirror/app:1", &exact).await, "wrong-key");
    std::fs::write(place.server.blob(layer["digest"].as_str().unwrap()), &payload).unwrap();
    assert_eq!(place.pull("mirror/app:1", &exact).await, "malformed");
}

#[tokio::test]
async fn an_index_or_the_manifest_of_the_platform() {
    let Some(place) = Place::start() else { return };
    let key = Key::new();
    let policy = by_key(&key, "matchRepository");
    let manifest = place.image("test", "a").await;
    let size = {
        let reference = parse_reference(&place.name(&format!("test@{manifest}"))).unwrap();
        place.registry.manifest(&reference, 1 << 20).await.unwrap().bytes.len()
    };
    let platform = json!({"os": "linux", "architecture": "amd64"});
    let entry = json!({"mediaType": MANIFEST, "digest": manifest, "size": size, "platform": platform});
    let document = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    let index = place.manifest("test:multi", &document).await;
    assert_eq!(place.pull("test:multi", &policy).await, "unsigned");
    place.sign("test", &index, "test", &key).await;
    assert_eq!(place.pull("test:multi", &policy).await, "good");
    assert_eq!(place.pull(&format!("test@{index}"), &policy).await, "good");
    // By its own digest nothing leads from the index to it.
    assert_eq!(place.pull(&format!("test@{manifest}"), &policy).await, "unsigned");
    place.sign("test", &manifest, "test", &key).await;
    assert_eq!(place.pull(&format!("test@{manifest}"), &policy).await, "good");
}

#[tokio::test]
async fn keyless() {
    let Some(place) = Place::start() else { return };
    let (fulcio, log) = (Fulcio::new(), Log::new());
    let digest = place.image("test", "a").await;
    let policy = by_fulcio(&fulcio, &log, SUBJECT, "matchRepository");
    let sign = async |fulcio: &Fulcio, log: &Log, person: Person, time: u64| {
        let (key, pem, _) = fulcio.issue(&person);
        let payload = payload(&digest, &place.name("test"));
        let signature = key.sign(&payload);
        let annotations = json!({
            "dev.cosignproject.cosign/signature": STANDARD.encode(&signature),
            "dev.sigstore.cosign/bundle": log.annotation(&hashed(&payload, &signature, &pem), time),
            "dev.sigstore.cosign/certificate": pem, "dev.sigstore.cosign/chain": fulcio.chain()});
        let layer = place.layer("test", &payload, annotations).await;
        place.attach("test", &signature_tag(&digest), &[layer]).await;
        place.pull("test:1", &policy).await
    };
    assert_eq!(sign(&fulcio, &log, Person::default(), NOW).await, "good");
    assert_eq!(sign(&fulcio, &log, Person::default(), NOW + 3600).await, "expired-certificate");
    assert_eq!(sign(&fulcio, &Log::new(), Person::default(), NOW).await, "not-logged");
    assert_eq!(sign(&Fulcio::new(), &log, Person::default(), NOW).await, "untrusted-certificate");
    let issuer = Some("https://other.example");
    let other = Person { issuer, old_issuer: issuer, ..Person::default() };
    assert_eq!(sign(&fulcio, &log, other, NOW).await, "wrong-signer");
}

/// One bundle, as a referrer under the tag that stands in for the list.
#[tokio::test]
async fn bundles_by_the_tag_of_referrers() {
    let Some(place) = Place::start() else { return };
    let key = Key::new();
    let digest = place.image("test", "a").await;
    let bundle = envelope_bundle(&statement(&digest), &key, json!({"publicKey": {"hint": "x"}}), &[]);
    let layer = place.blob("test", BUNDLE, &bundle).await;
    let referrer = place.attach("test", "referrer", &[layer]).await;
    let entry = json!({"mediaType": MANIFEST, "digest": referrer, "size": 1, "artifactType": BUNDLE});
    let list = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    place.manifest(&format!("test:{}", digest.replace(':', "-")), &list).await;
    assert_eq!(place.pull("test:1", &by_key(&key, "matchDigestOnly")).await, "good");
    assert_eq!(place.pull("test:1", &by_key(&key, "matchRepository")).await, "wrong-identity");
    assert_eq!(place.pull("test:1", &by_key(&Key::new(), "matchDigestOnly")).await, "wrong-key");
}

/// The same by the list itself, which Debian's registry does not have.
#[tokio::test]
async fn bundles_by_the_list_of_referrers() {
    let key = Key::new();
    let image = Image::sample();
    let digest = Digest::sha256(image.manifest.to_string().as_bytes()).to_string();
    let bundle = envelope_bundle(&statement(&digest), &key, json!({"publicKey": {"hint": "x"}}), &[]);
    let describe = |media: &str, bytes: &[u8]| json!({"mediaType": media, "digest": Digest::sha256(bytes).to_string(), "size": bytes.len()});
    let referrer = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": describe("application/vnd.oci.empty.v1+json", b"{}"),
        "layers": [describe(BUNDLE, &bundle)]});
    let mut scan = referrer.clone();
    scan["annotations"] = json!({"dev.sigstore.bundle.predicateType": "https://example.com/scan/v1"});
    let listed = |artifact: &str, referrer: &Value| {
        let mut entry = describe(MANIFEST, referrer.to_string().as_bytes());
        entry["artifactType"] = artifact.into();
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).to_string()
    };
    for (artifact, referrer, expected) in [
        (BUNDLE, &referrer, "good"),
        ("application/spdx+json", &referrer, "unsigned"),
        (BUNDLE, &scan, "unsigned"),
    ] {
        let (list, referrer, bundle, digest) =
            (listed(artifact, referrer), referrer.to_string(), bundle.clone(), digest.clone());
        let (blobs, manifest) = (image.blobs.clone(), image.manifest.to_string());
        let server = Liar::start(move |request| {
            let path = request.split(' ').nth(1).unwrap_or_default();
            let found = [
                (format!("/referrers/{digest}"), list.as_bytes()),
                (format!("/manifests/{}", Digest::sha256(referrer.as_bytes())), referrer.as_bytes()),
                ("/manifests/1".to_owned(), manifest.as_bytes()),
                (format!("/blobs/{}", Digest::sha256(&bundle)), &bundle),
            ];
            let found =
                found.into_iter().find(|(end, _)| path.ends_with(end)).map(|(_, bytes)| bytes.to_vec());
            let blob =
                || blobs.iter().find(|(digest, _)| path.ends_with(digest.as_str())).map(|(_, b)| b.clone());
            match found.or_else(blob) {
                Some(bytes) => Answer::new(200, MANIFEST, bytes),
                None => {
                    Answer::new(if path == "/v2/" { 200 } else { 404 }, "application/json", b"{}".to_vec())
                }
            }
        });
        let text = policy(&by_key(&key, "matchDigestOnly"));
        let signatures = Some(Arc::new(SignaturePolicy::new(text.as_bytes(), Arc::new(NoMaterial)).unwrap()));
        let config =
            ClientConfig { insecure_registries: vec![server.host.clone()], signatures, ..Default::default() };
        let pulled = pull(&format!("{}/test:1", server.host), config).await;
        assert_eq!(pulled.map_or_else(|error| words(&error), |()| "good".to_owned()), expected);
    }
}

/// A key broker with one public key.
struct Broker(Vec<u8>);

#[async_trait]
impl SecretSource for Broker {
    async fn get(&self, uri: &str) -> Result<Zeroizing<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
        match uri {
            "kbs:///default/cosign-public-key/test" => Ok(Zeroizing::new(self.0.clone())),
            _ => Err("no such resource".into()),
        }
    }
}

#[tokio::test]
async fn keys_of_the_key_broker() {
    let Some(place) = Place::start() else { return };
    let key = Key::new();
    let digest = place.image("test", "a").await;
    place.sign("test", &digest, "test", &key).await;
    let broker = || Arc::new(BrokerMaterial(Broker(key.pem().into_bytes())));
    let with = |path: &str| {
        let wanted =
            json!({"type": "sigstoreSigned", "keyPath": path, "signedIdentity": {"type": "matchRepository"}});
        place.config(&policy(&wanted), broker())
    };
    pull(&place.name("test:1"), with("kbs:///default/cosign-public-key/test")).await.unwrap();
    for (path, why) in
        [("kbs:///default/other/key", "no such resource"), ("/etc/cosign.pub", "not read here")]
    {
        let error = pull(&place.name("test:1"), with(path)).await.unwrap_err();
        assert!(matches!(&error, PullError::Signature(SignatureError::Material { .. })), "{error}");
        assert!(error.to_string().contains(why) && error.to_string().contains(path), "{error}");
    }
    // A key that is none: fail closed, whatever the image.
    let none = Arc::new(BrokerMaterial(Broker(b"no key".to_vec())));
    let wanted = json!({"type": "sigstoreSigned", "keyPath": "kbs:///default/cosign-public-key/test"});
    let error = pull(&place.name("test:1"), place.config(&policy(&wanted), none)).await.unwrap_err();
    assert!(error.to_string().contains("holds no PEM text"), "{error}");
    // A scope without keys asks for none.
    let open = json!({"default": [wanted], "transports": {"docker": {place.server.host.clone(): [{"type": "insecureAcceptAnything"}]}}});
    pull(&place.name("test:1"), place.config(&open.to_string(), Arc::new(NoMaterial))).await.unwrap();
}

#[tokio::test]
async fn too_many_and_too_large() {
    let Some(place) = Place::start() else { return };
    let key = Key::new();
    let digest = place.image("test", "a").await;
    let wanted = policy(&by_key(&key, "matchRepository"));
    let payload = payload(&digest, &place.name("test"));
    let layer = |by: &Key| json!({"dev.cosignproject.cosign/signature": STANDARD.encode(by.sign(&payload))});
    let bad = place.layer("test", &payload, layer(&Key::new())).await;
    let good = place.layer("test", &payload, layer(&key)).await;
    place.attach("test", &signature_tag(&digest), &[bad.clone(), bad, good]).await;
    let limited = |limits: Limits| ClientConfig { limits, ..place.config(&wanted, Arc::new(NoMaterial)) };
    pull(&place.name("test:1"), limited(Limits { max_signatures: 3, ..Limits::default() })).await.unwrap();
    let error = pull(&place.name("test:1"), limited(Limits { max_signatures: 2, ..Limits::default() })).await;
    assert_eq!(words(&error.unwrap_err()), "wrong-key wrong-key limit");
    let error =
        pull(&place.name("test:1"), limited(Limits { max_signature_bytes: 10, ..Limits::default() })).await;
    assert_eq!(words(&error.unwrap_err()), "limit limit limit");
}

/// On P-384 cosign 2 signs with SHA-256, which the tests' own keys do not.
#[tokio::test]
async fn p384_with_sha256() {
    if missing(&["openssl"]) {
        return;
    }
    let Some(place) = Place::start() else { return };
    let digest = place.image("test", "a").await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"];
    run("openssl", &[&["genpkey", "-out", &at("key")], &curve[..]].concat());
    run("openssl", &["pkey", "-in", &at("key"), "-pubout", "-out", &at("pub")]);
    let payload = payload(&digest, &place.name("test"));
    std::fs::write(at("payload"), &payload).unwrap();
    for (hash, expected) in [("-sha256", "good"), ("-sha384", "good"), ("-sha512", "wrong-key")] {
        run("openssl", &["dgst", hash, "-sign", &at("key"), "-out", &at("signature"), &at("payload")]);
        let signature = STANDARD.encode(std::fs::read(at("signature")).unwrap());
        let annotations = json!({"dev.cosignproject.cosign/signature": signature});
        let layer = place.layer("test", &payload, annotations).await;
        place.attach("test", &signature_tag(&digest), &[layer]).await;
        let key = STANDARD.encode(std::fs::read(at("pub")).unwrap());
        let identity = json!({"type": "matchRepository"});
        let wanted = json!({"type": "sigstoreSigned", "keyData": key, "signedIdentity": identity});
        assert_eq!(place.pull("test:1", &wanted).await, expected, "{hash}");
    }
}

/// A registry that fails says nothing about signatures: neither "unsigned", nor good.
#[tokio::test]
async fn a_registry_that_fails_is_no_unsigned_image() {
    let manifest = Image::sample().manifest.to_string();
    for broken in [".sig", "/referrers/"] {
        let manifest = manifest.clone();
        let server = Liar::start(move |request| {
            let path = request.split(' ').nth(1).unwrap_or_default();
            let status = match path {
                "/v2/" => 200,
                path if path.ends_with("/manifests/1") => {
                    return Answer::new(200, MANIFEST, manifest.clone().into());
                }
                path if path.contains(broken) => 500,
                _ => 404,
            };
            Answer::new(status, "application/json", b"{}".to_vec())
        });
        let text = policy(&by_key(&Key::new(), "matchRepository"));
        let signatures = Some(Arc::new(SignaturePolicy::new(text.as_bytes(), Arc::new(NoMaterial)).unwrap()));
        let config =
            ClientConfig { insecure_registries: vec![server.host.clone()], signatures, ..Default::default() };
        let error = pull(&format!("{}/test:1", server.host), config).await.unwrap_err();
        assert!(matches!(error, PullError::Signature(SignatureError::Registry { .. })), "{error}");
        assert!(error.to_string().contains("status 500"), "{error}");
    }
}

const DOCUMENT: &str = "application/vnd.example.document.v1+json";

/// Documents beside the image `test:1` that count under `policy`.
async fn documents(place: &Place, policy: &str) -> Vec<String> {
    let client = ImageClient::new(place.config(policy, Arc::new(NoMaterial))).unwrap();
    let image = client.examine(&place.name("test:1"), &|_| {}).await.unwrap();
    let found = client.signed_documents(&image, DOCUMENT).await.unwrap();
    found.into_iter().map(|document| String::from_utf8(document).unwrap()).collect()
}

#[tokio::test]
async fn a_document_beside_an_image_counts_when_it_is_signed_as_the_image_must_be() {
    let Some(place) = Place::start() else { return };
    let (key, other) = (Key::new(), Key::new());
    let (image, another) = (place.image("test", "a").await, place.image("test", "b").await);
    place
        .manifest("test:1", &{
            let mut manifest = Image::sample().manifest;
            manifest["annotations"] = json!({"mark": "a"});
            manifest
        })
        .await;
    place.sign("test", &image, "test", &key).await;
    let by_key = policy(&by_key(&key, "matchRepository"));
    assert!(documents(&place, &by_key).await.is_empty());
    let at = parse_reference(&place.name("test:1")).unwrap();
    let subject = |digest: &str| kata_cc_image::manifest::Descriptor {
        media_type: MANIFEST.to_owned(),
        digest: digest.to_owned(),
        size: 1,
        annotations: Default::default(),
        platform: None,
    };
    let attach = async |subject_digest: &str, kind: &str, text: &str| {
        let subject = subject(subject_digest);
        let made = kata_cc_image::attach(&place.registry, &at, &subject, kind, text.as_bytes()).await;
        made.unwrap().to_string()
    };
    let good = attach(&image, DOCUMENT, "good").await;
    assert!(documents(&place, &by_key).await.is_empty(), "nobody signed it");
    place.sign("test", &good, "test", &other).await;
    assert!(documents(&place, &by_key).await.is_empty(), "another key");
    place.sign("test", &good, "test", &key).await;
    assert_eq!(documents(&place, &by_key).await, ["good"]);
    // of another image, or of another type, put into the list of this one: signed, and still not counted
    let foreign = attach(&another, DOCUMENT, "foreign").await;
    let typed = attach(&image, "application/x", "typed").await;
    for digest in [&foreign, &typed] {
        place.sign("test", digest, "test", &key).await;
    }
    let entry =
        |digest: &str| json!({"mediaType": MANIFEST, "digest": digest, "size": 1, "artifactType": DOCUMENT});
    let list = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry(&foreign), entry(&typed), entry(&good)]});
    place.manifest(&format!("test:{}", image.replace(':', "-")), &list).await;
    assert_eq!(documents(&place, &by_key).await, ["good"]);
    // a policy that lets anything pass vouches for nothing
    assert!(documents(&place, &policy(&json!({"type": "insecureAcceptAnything"}))).await.is_empty());
    // its bytes changed in the registry
    std::fs::write(place.server.blob(Digest::sha256(b"good").as_str()), b"evil").unwrap();
    assert!(documents(&place, &by_key).await.is_empty());
}
