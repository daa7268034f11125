//! Encrypted images exchanged with skopeo: certificates (PKCS#7), recipients of several kinds, single layers, key providers.
//!
//! Debian 12's skopeo (1.9) knows JWE and PKCS#7; key providers came later. `KATA_CC_SKOPEO` names another one. No skopeo opens PKCS#7: its
//! command line has no way to name the certificate that ocicrypt wants, so that direction is held to the form of skopeo's own envelopes.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Image, key_pair, missing, run};
use kata_cc_image::crypto::{KEYS_JWE, KEYS_PKCS7, KEYS_PROVIDER, pkcs7};
use kata_cc_image::provider::{CommandProvider, NamedProvider};
use kata_cc_image::{
    ClientConfig, DecryptError, DecryptOptions, EncryptError, EncryptOptions, HeldKeys, KeyProvider,
    LayerSelection, Recipient, decrypt_image, encrypt_image, inspect,
};
use serde_json::Value;
use zeroize::Zeroizing;

const KEY_ID: &str = "kbs:///default/image-key/1";

/// The skopeo to speak with.
fn skopeo() -> String {
    std::env::var("KATA_CC_SKOPEO").unwrap_or_else(|_| "/usr/bin/skopeo".to_owned())
}

/// A folder with the sample as the layout `plain`, tag `t`.
struct Place {
    dir: tempfile::TempDir,
    image: Image,
}

impl Place {
    fn new() -> Self {
        let (dir, image) = (tempfile::tempdir().unwrap(), Image::sample());
        image.layout(&dir.path().join("plain"));
        Self { dir, image }
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn oci(&self, name: &str) -> String {
        format!("oci:{}:t", self.at(name))
    }

    /// A key and a certificate of it.
    fn certificate(&self, name: &str) -> (Zeroizing<Vec<u8>>, String) {
        let (key, certificate) = (self.at(&format!("{name}.key")), self.at(&format!("{name}.pem")));
        let subject = format!("/CN={name}");
        let made = ["req", "-x509", "-days", "2", "-nodes", "-newkey", "rsa:2048", "-subj", &subject];
        run("openssl", &[&made[..], &["-keyout", &key, "-out", &certificate]].concat());
        (Zeroizing::new(std::fs::read(key).unwrap()), certificate)
    }

    fn manifest(&self, name: &str) -> Value {
        let read = |path: PathBuf| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
        let index = read(self.dir.path().join(name).join("index.json"));
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        read(self.dir.path().join(name).join("blobs/sha256").join(digest.trim_start_matches("sha256:")))
    }

    /// The packets of an annotation of a layer.
    fn packets(&self, name: &str, layer: usize, annotation: &str) -> Vec<Vec<u8>> {
        let manifest = self.manifest(name);
        let text = manifest["layers"][layer]["annotations"][annotation].as_str().unwrap_or_default();
        text.split(',').filter(|part| !part.is_empty()).map(|part| STANDARD.decode(part).unwrap()).collect()
    }

    /// Decrypts the layout `from` with these keys into `plain-again`, and compares it with the sample.
    async fn opens(&self, from: &str, keys: Vec<Box<dyn KeyProvider>>) -> Result<usize, DecryptError> {
        let _ = std::fs::remove_dir_all(self.at("plain-again"));
        let made = self.decrypt(from, "plain-again", keys, LayerSelection::All).await?;
        let manifest = self.manifest("plain-again");
        for (number, (digest, _)) in self.image.blobs[1..].iter().enumerate() {
            assert_eq!(manifest["layers"][number]["digest"], digest.as_str(), "{from}");
            let blob = Path::new(&self.at("plain-again")).join("blobs/sha256").join(digest.hex());
            assert_eq!(std::fs::read(blob).unwrap(), self.image.blobs[1 + number].1);
        }
        assert!(!manifest.to_string().contains("image.enc."), "{manifest}");
        Ok(made)
    }

    async fn decrypt(
        &self,
        from: &str,
        to: &str,
        keys: Vec<Box<dyn KeyProvider>>,
        layers: LayerSelection,
    ) -> Result<usize, DecryptError> {
        let options = DecryptOptions { keys, layers, client: ClientConfig::default() };
        Ok(decrypt_image(&self.oci(from), &self.oci(to), &options).await?.decrypted_layers)
    }
}

fn private(key: &[u8]) -> Vec<Box<dyn KeyProvider>> {
    let mut keys = HeldKeys::default();
    keys.add_private_pem(Zeroizing::new(key.to_vec())).unwrap();
    vec![Box::new(keys)]
}

fn broker(key: u8) -> Vec<Box<dyn KeyProvider>> {
    let mut keys = HeldKeys::default();
    keys.by_id.insert(KEY_ID.to_owned(), Zeroizing::new(vec![key; 32]));
    vec![Box::new(keys)]
}

fn for_broker() -> Recipient {
    Recipient::Broker { key_id: KEY_ID.to_owned(), key: Zeroizing::new(vec![7; 32]) }
}

/// Tags and lengths of an envelope down to its keys, without what is random in it.
fn skeleton(packet: &[u8]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("packet");
    std::fs::write(&file, packet).unwrap();
    let text = run("openssl", &["asn1parse", "-inform", "DER", "-in", &file.display().to_string()]);
    text.lines().map(|line| line.split("[HEX DUMP]").next().unwrap().trim_end().to_owned()).collect()
}

#[tokio::test]
async fn envelopes_of_skopeo_open_and_ours_have_their_form() {
    if missing(&["skopeo", "openssl"]) {
        return;
    }
    let place = Place::new();
    let (first, second, other) =
        (place.certificate("first"), place.certificate("second"), place.certificate("other"));
    let [one, two] = [&first.1, &second.1].map(|file| format!("pkcs7:{file}"));
    let to = place.oci("theirs");
    run(
        &skopeo(),
        &["copy", "-q", "--encryption-key", &one, "--encryption-key", &two, &place.oci("plain"), &to],
    );
    for key in [&first.0, &second.0] {
        assert_eq!(place.opens("theirs", private(key)).await.unwrap(), 2);
    }
    let refused = place.opens("theirs", private(&other.0)).await.unwrap_err();
    assert!(matches!(refused, DecryptError::Key { layer: 0, .. }), "{refused}");

    let theirs = &place.packets("theirs", 0, KEYS_PKCS7)[0];
    let options = pkcs7::open(theirs, &first.0).unwrap();
    let files = [&first.1, &second.1].map(|file| std::fs::read(file).unwrap());
    let ours = pkcs7::seal(&options, &[&files[0], &files[1]]).unwrap();
    // Recipients stand sorted in ours (DER), which by the serial numbers may be the other order.
    let (mut ours, mut theirs) = (skeleton(&ours), skeleton(theirs));
    let numbers = |lines: &mut Vec<String>| {
        lines.iter_mut().for_each(|line| *line = line.split_once(':').unwrap().1.to_owned());
        lines.sort();
    };
    numbers(&mut ours);
    numbers(&mut theirs);
    assert_eq!(ours, theirs);
}

#[tokio::test]
async fn recipients_of_all_kinds_open_one_image() {
    if missing(&["skopeo", "openssl"]) {
        return;
    }
    let place = Place::new();
    let (first, second) = (place.certificate("first"), place.certificate("second"));
    let (rsa, rsa_public) = key_pair(place.dir.path(), "rsa");
    let (rsa, rsa_public) = (std::fs::read(rsa).unwrap(), std::fs::read(rsa_public).unwrap());
    let (ec, ec_public) = key_pair(place.dir.path(), "ec");
    let options = EncryptOptions::for_recipients(vec![
        for_broker(),
        Recipient::Jwe(rsa_public),
        Recipient::Jwe(std::fs::read(ec_public).unwrap()),
        Recipient::Pkcs7(std::fs::read(&first.1).unwrap()),
        Recipient::Pkcs7(std::fs::read(&second.1).unwrap()),
    ]);
    encrypt_image(&place.oci("plain"), &place.oci("ours"), &options).await.unwrap();
    for (annotation, count) in [(KEYS_PROVIDER, 1), (KEYS_JWE, 2), (KEYS_PKCS7, 1)] {
        assert_eq!(place.packets("ours", 1, annotation).len(), count, "{annotation}");
    }
    let ec_key = std::fs::read(&ec).unwrap();
    for keys in [broker(7), private(&rsa), private(&ec_key), private(&first.0), private(&second.0)] {
        assert_eq!(place.opens("ours", keys).await.unwrap(), 2);
    }
    assert!(matches!(place.opens("ours", broker(8)).await, Err(DecryptError::Key { .. })));
    // skopeo finds its way among the kinds, too.
    let args = ["copy", "-q", "--decryption-key", &ec.display().to_string()];
    run(&skopeo(), &[&args[..], &[&place.oci("ours"), &place.oci("skopeo")]].concat());
    for (digest, data) in &place.image.blobs[1..] {
        let blob = Path::new(&place.at("skopeo")).join("blobs/sha256").join(digest.hex());
        assert_eq!(&std::fs::read(blob).unwrap(), data);
    }
    let summary = inspect(&place.oci("ours"), &ClientConfig::default()).await.unwrap();
    let kinds: Vec<_> = summary.layers[0].recipients.iter().map(|one| one.scheme.as_str()).collect();
    assert_eq!(kinds, ["jwe", "jwe", "pkcs7", "provider.attestation-agent"]);
}

#[tokio::test]
async fn single_layers_are_encrypted_and_decrypted() {
    if missing(&["skopeo", "openssl"]) {
        return;
    }
    let place = Place::new();
    let (key, public) = key_pair(place.dir.path(), "rsa");
    let mut options =
        EncryptOptions::for_recipients(vec![for_broker(), Recipient::Jwe(std::fs::read(&public).unwrap())]);
    options.layers = LayerSelection::Only(vec![-1]);
    encrypt_image(&place.oci("plain"), &place.oci("top"), &options).await.unwrap();
    let encrypted = |name: &str| -> Vec<bool> {
        let manifest = place.manifest(name);
        let layers = manifest["layers"].as_array().unwrap();
        layers.iter().map(|layer| layer["mediaType"].as_str().unwrap().ends_with("+encrypted")).collect()
    };
    assert_eq!(encrypted("top"), [false, true]);
    assert_eq!(place.opens("top", broker(7)).await.unwrap(), 1);
    let args = ["copy", "-q", "--decryption-key", &key.display().to_string()];
    run(&skopeo(), &[&args[..], &[&place.oci("top"), &place.oci("skopeo")]].concat());
    assert_eq!(encrypted("skopeo"), [false, false]);
    // skopeo encrypts the lowest layer, the other one is left as it is.
    let recipient = format!("jwe:{}", public.display());
    let args = ["copy", "-q", "--encryption-key", &recipient, "--encrypt-layer", "0"];
    run(&skopeo(), &[&args[..], &[&place.oci("plain"), &place.oci("low")]].concat());
    assert_eq!(encrypted("low"), [true, false]);
    assert_eq!(place.opens("low", private(&std::fs::read(&key).unwrap())).await.unwrap(), 1);
    // One of two decrypted, and what cannot be.
    options.layers = LayerSelection::All;
    encrypt_image(&place.oci("plain"), &place.oci("both"), &options).await.unwrap();
    place.decrypt("both", "half", broker(7), LayerSelection::Only(vec![0])).await.unwrap();
    assert_eq!(encrypted("half"), [false, true]);
    let again = place.decrypt("half", "x", broker(7), LayerSelection::Only(vec![0])).await.unwrap_err();
    assert!(again.to_string().contains("layer 0 is not encrypted"), "{again}");
    let none = place.decrypt("half", "x", broker(7), LayerSelection::Only(vec![2])).await.unwrap_err();
    assert!(none.to_string().contains("no layer 2"), "{none}");
}

/// Changes the manifest of a layout, digests and all.
fn change(dir: &Path, edit: impl FnOnce(&mut Value)) {
    let read = |path: &Path| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
    let mut index = read(&dir.join("index.json"));
    let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let mut manifest = read(&dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:")));
    edit(&mut manifest);
    let bytes = manifest.to_string().into_bytes();
    let digest = kata_cc_image::digest::Digest::sha256(&bytes);
    std::fs::write(dir.join("blobs/sha256").join(digest.hex()), &bytes).unwrap();
    index["manifests"][0]["digest"] = digest.as_str().into();
    index["manifests"][0]["size"] = bytes.len().into();
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

#[tokio::test]
async fn layers_changed_or_of_another_image_leave_no_image() {
    let place = Place::new();
    let options = || EncryptOptions::for_recipients(vec![for_broker()]);
    encrypt_image(&place.oci("plain"), &place.oci("first"), &options()).await.unwrap();
    let top = place.manifest("first")["layers"][1].clone();

    // The top layer beside another configuration.
    let other = common::layer(&[("a", b"b")]);
    let (_, data) = &place.image.blobs[2];
    let plain = zstd::decode_all(data.as_slice()).unwrap();
    let kinds = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+zstd"];
    let image = Image::new(&[(kinds[0], other.clone(), &other), (kinds[1], data.clone(), &plain)]);
    image.layout(&place.dir.path().join("moved"));
    let blob = |name: &str| {
        let digest = top["digest"].as_str().unwrap().trim_start_matches("sha256:");
        place.dir.path().join(name).join("blobs/sha256").join(digest)
    };
    std::fs::copy(blob("first"), blob("moved")).unwrap();
    change(&place.dir.path().join("moved"), |manifest| manifest["layers"][1] = top.clone());
    let error = place.decrypt("moved", "out", broker(7), LayerSelection::All).await.unwrap_err();
    assert!(matches!(error, DecryptError::OtherImage { layer: 1, .. }), "{error}");

    // Ciphertext changed together with its digest.
    let mut bytes = std::fs::read(blob("first")).unwrap();
    bytes[30] ^= 4;
    let digest = kata_cc_image::digest::Digest::sha256(&bytes);
    std::fs::write(place.dir.path().join("first/blobs/sha256").join(digest.hex()), &bytes).unwrap();
    change(&place.dir.path().join("first"), |manifest| {
        manifest["layers"][1]["digest"] = digest.as_str().into()
    });
    let error = place.decrypt("first", "out", broker(7), LayerSelection::All).await.unwrap_err();
    assert!(matches!(error, DecryptError::Crypto { layer: 1, .. }), "{error}");
    assert!(error.to_string().contains("hmac"), "{error}");
    assert!(!place.dir.path().join("out/index.json").exists());

    // A configuration that names another archive for the layer.
    let image = Image::new(&[(kinds[0], other.clone(), &plain)]);
    image.layout(&place.dir.path().join("plain2"));
    encrypt_image(&place.oci("plain2"), &place.oci("wrong"), &options()).await.unwrap();
    let error = place.decrypt("wrong", "out", broker(7), LayerSelection::All).await.unwrap_err();
    assert!(matches!(error, DecryptError::DiffId { layer: 0, .. }), "{error}");
}

#[tokio::test]
async fn recipients_that_cannot_be_are_refused() {
    let place = Place::new();
    let refused = async |recipients: Vec<Recipient>| {
        let options = EncryptOptions::for_recipients(recipients);
        encrypt_image(&place.oci("plain"), &place.oci("out"), &options).await.unwrap_err()
    };
    let error = refused(Vec::new()).await;
    assert!(matches!(error, EncryptError::Options(_)) && error.to_string().contains("nobody"), "{error}");
    let short = Recipient::Broker { key_id: KEY_ID.to_owned(), key: Zeroizing::new(vec![7; 31]) };
    assert!(refused(vec![short]).await.to_string().contains("31 bytes"));
    let nowhere = Recipient::Broker { key_id: "key".to_owned(), key: Zeroizing::new(vec![7; 32]) };
    assert!(refused(vec![nowhere]).await.to_string().contains("not of the form"));
    assert!(matches!(
        refused(vec![Recipient::Pkcs7(b"no certificate".to_vec())]).await,
        EncryptError::Crypto(_)
    ));
    assert!(matches!(refused(vec![Recipient::Jwe(b"no key".to_vec())]).await, EncryptError::Crypto(_)));
    let exchange = Arc::new(CommandProvider { path: "/bin/false".to_owned(), args: Vec::new() });
    let failing = NamedProvider { name: "p".to_owned(), parameters: String::new(), exchange };
    assert!(matches!(refused(vec![Recipient::Provider(failing)]).await, EncryptError::Provider(_)));
    assert!(!place.dir.path().join("out/index.json").exists());
}

/// A provider that "wraps" by turning bytes over: Python, as somebody else would write one.
const PROVIDER: &str = r#"
import base64, json, sys
request = json.load(sys.stdin)
turn = lambda text: base64.b64encode(bytes(b ^ 255 for b in base64.b64decode(text))).decode()
if request["op"] == "keywrap":
    assert base64.b64decode(request["keywrapparams"]["ec"]["Parameters"]["turn"][0]) == b"for me"
    print(json.dumps({"keywrapresults": {"annotation": turn(request["keywrapparams"]["optsdata"])}}))
else:
    print(json.dumps({"keyunwrapresults": {"optsdata": turn(request["keyunwrapparams"]["annotation"])}}))
"#;

/// A skopeo that knows key providers, or none.
fn skopeo_with_providers(config: &Path) -> Option<PathBuf> {
    let program = PathBuf::from(skopeo());
    let known = Command::new(&program)
        .args(["copy", "--encryption-key", "provider:turn:x", "oci:/nonexistent:t", "oci:/nonexistent-too:t"])
        .env("OCICRYPT_KEYPROVIDER_CONFIG", config)
        .output();
    let known = known
        .is_ok_and(|output| !String::from_utf8_lossy(&output.stderr).contains("protocol not recognized"));
    if !known {
        println!(
            "skipped: {} knows no key providers; KATA_CC_SKOPEO can name a newer one",
            program.display()
        );
    }
    known.then_some(program)
}

#[tokio::test]
async fn a_provider_of_others_serves_us_and_skopeo_alike() {
    if missing(&["python3"]) {
        return;
    }
    let place = Place::new();
    std::fs::write(place.at("provider.py"), PROVIDER).unwrap();
    let exchange =
        CommandProvider { path: "/usr/bin/python3".to_owned(), args: vec![place.at("provider.py")] };
    let provider = NamedProvider {
        name: "turn".to_owned(),
        parameters: "for me".to_owned(),
        exchange: Arc::new(exchange),
    };
    let options = EncryptOptions::for_recipients(vec![for_broker(), Recipient::Provider(provider.clone())]);
    encrypt_image(&place.oci("plain"), &place.oci("ours"), &options).await.unwrap();
    let by_provider = || -> Vec<Box<dyn KeyProvider>> { vec![Box::new(provider.clone())] };
    assert_eq!(place.opens("ours", by_provider()).await.unwrap(), 2);
    assert_eq!(place.opens("ours", broker(7)).await.unwrap(), 2);

    let config = place.dir.path().join("config.json");
    let json = serde_json::json!({"key-providers": {"turn": {"cmd": {"path": "/usr/bin/python3", "args": [place.at("provider.py")]}}}});
    std::fs::write(&config, json.to_string()).unwrap();
    let Some(program) = skopeo_with_providers(&config) else { return };
    let skopeo = |args: &[&str]| {
        let output = Command::new(&program)
            .args(["--insecure-policy", "copy", "-q"])
            .args(args)
            .env("OCICRYPT_KEYPROVIDER_CONFIG", &config)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    skopeo(&["--encryption-key", "provider:turn:for me", &place.oci("plain"), &place.oci("theirs")]);
    assert_eq!(place.opens("theirs", by_provider()).await.unwrap(), 2);
    skopeo(&["--decryption-key", "provider:turn:x", &place.oci("ours"), &place.oci("again")]);
    for (digest, data) in &place.image.blobs[1..] {
        let blob = Path::new(&place.at("again")).join("blobs/sha256").join(digest.hex());
        assert_eq!(&std::fs::read(blob).unwrap(), data);
    }
}
