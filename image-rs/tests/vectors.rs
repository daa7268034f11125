//! Encrypted layers made by skopeo with CoCo's key provider: real bytes of other people's programs.
#![allow(clippy::unwrap_used)]

use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_image::crypto::packet::Packet;
use kata_cc_image::crypto::{DecryptReader, KEYS_PROVIDER, PUBOPTS, PrivateOptions, PublicOptions};
use kata_cc_image::digest::Digest;
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn decode(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

#[test]
fn opens_the_layer_of_packets_json() {
    let Some(path) = kata_cc_test_vectors::path("images/ocicrypt") else { return };
    let packets = json(&path.join("packets.json"));
    let key = PrivateOptions::read(packets["private_options"].as_str().unwrap().as_bytes()).unwrap().key;
    let sealed = decode(&packets["ciphertext_b64"]);
    let source: Value = serde_json::from_str(packets["private_options"].as_str().unwrap()).unwrap();
    let open = |annotation: &str| {
        let options = PublicOptions::from_annotation(packets[annotation].as_str().unwrap()).unwrap();
        let mut plain = Vec::new();
        DecryptReader::new(sealed.as_slice(), &key, &options).unwrap().read_to_end(&mut plain).map(|_| plain)
    };
    let plain = open("pubopts_annotation").unwrap();
    assert_eq!(Digest::sha256(&plain).as_str(), source["digest"].as_str().unwrap());
    let error = open("pubopts_annotation_wrong_hmac").unwrap_err();
    assert!(error.to_string().contains("hmac"), "{error}");
}

#[test]
fn checks_the_hmac_of_skopeos_layers_and_reads_their_packets() {
    let Some(path) = kata_cc_test_vectors::path("images/ocicrypt") else { return };
    let manifest = json(&path.join("enc-aa/manifest.json"));
    let plain = json(&path.join("plain/manifest.json"));
    let message = json(&path.join("enc-aa/keyprovider-messages.json"));
    let options: Vec<u8> =
        serde_json::from_value(message["unwrap_output_rust"]["keyunwrapresults"]["optsdata"].clone())
            .unwrap();
    let PrivateOptions { key, config } = PrivateOptions::read(&options).unwrap();
    assert!(config.is_none(), "skopeo binds a layer to no image");
    let layer = &manifest["layers"][0];
    let packet = decode(&layer["annotations"][KEYS_PROVIDER]);
    assert_eq!(Packet::parse(&packet).unwrap().kid, "kbs:///default/image-key/1");
    let public = PublicOptions::from_annotation(layer["annotations"][PUBOPTS].as_str().unwrap()).unwrap();
    let sealed = std::fs::read(path.join("enc-aa/layer0.enc")).unwrap();
    let mut opened = Vec::new();
    DecryptReader::new(sealed.as_slice(), &key, &public).unwrap().read_to_end(&mut opened).unwrap();
    assert_eq!(Digest::sha256(&opened).as_str(), plain["layers"][0]["digest"].as_str().unwrap());
}

#[test]
fn opens_packets_of_both_versions_and_refuses_a_changed_one() {
    let Some(path) = kata_cc_test_vectors::path("images/ocicrypt") else { return };
    let vectors = json(&path.join("packets.json"));
    let key = hex::decode(vectors["kek_hex"].as_str().unwrap()).unwrap();
    let mut opened = 0;
    for case in vectors["cases"].as_array().unwrap() {
        let result = Packet::parse(case["packet"].to_string().as_bytes()).unwrap().unwrap(&key);
        let name = case["name"].as_str().unwrap();
        assert_eq!(result.is_ok(), !name.contains("changed"), "{name}");
        if let Ok(options) = result {
            assert_eq!(options.as_slice(), vectors["private_options"].as_str().unwrap().as_bytes());
            opened += 1;
        }
    }
    assert!(opened >= 2);
}

/// Packets of other tools' own tests. The key of the first was published; of the second only the form is known, and the key of the
/// first does not open it.
#[test]
fn reads_the_packets_of_other_tools() {
    let Some(path) = kata_cc_test_vectors::path("images/ocicrypt") else { return };
    let read = |name: &str| Packet::parse(&std::fs::read(path.join(name)).unwrap()).unwrap();
    let key = hex::decode("d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea").unwrap();
    let (sample, other) = (read("sample_kbc_annotation.json"), read("cdh-v1.json"));
    assert_eq!(sample.kid, "kbs:///default/key/1");
    let options = sample.unwrap(&key).unwrap();
    let options: Value = serde_json::from_slice(&options).unwrap();
    assert_eq!(options["symkey"], "1jL2jJV0Oyz2nmPkLtqulW6cKcpIUN5FpILcVnP5Uqs=");
    let digest = "sha256:18be1897f9402f27c8c0eba7c86e0c00f5656db62961b5949d55f9565c42c6e7";
    assert_eq!(options["digest"], digest);
    assert_eq!(other.kid, "kbs:///kbs:///default/key/1");
    assert!(other.unwrap(&key).is_err());
}

/// The whole way of an image that skopeo encrypted: key of the image, packet of each layer, layer. A layer that had not been compressed
/// was compressed before it was encrypted.
#[test]
fn opens_skopeos_layers_by_the_key_of_the_image() {
    let Some(path) = kata_cc_test_vectors::path("images/ocicrypt") else { return };
    let key = hex::decode("d1bd5bd5d8a43081d8f9aa7c970a8f2803018d3f2059e3783b9acebfa867ca80").unwrap();
    let manifest = json(&path.join("enc-aa/manifest.json"));
    for (number, sealed, plain) in
        [(0, "enc-aa/layer0.enc", "plain/layer0"), (1, "enc-aa/layer1.enc", "plain/layer1")]
    {
        let annotations = &manifest["layers"][number]["annotations"];
        let options = Packet::parse(&decode(&annotations[KEYS_PROVIDER])).unwrap().unwrap(&key).unwrap();
        let private = PrivateOptions::read(&options).unwrap();
        let public = PublicOptions::from_annotation(annotations[PUBOPTS].as_str().unwrap()).unwrap();
        let mut sealed = std::fs::read(path.join(sealed)).unwrap();
        let open = |sealed: &[u8]| {
            let mut opened = Vec::new();
            let mut reader = DecryptReader::new(sealed, &private.key, &public).unwrap();
            reader.read_to_end(&mut opened).map(|_| opened)
        };
        let mut opened = open(&sealed).unwrap();
        if number == 1 {
            let mut tar = Vec::new();
            flate2::read::GzDecoder::new(opened.as_slice()).read_to_end(&mut tar).unwrap();
            opened = tar;
        }
        assert_eq!(opened, std::fs::read(path.join(plain)).unwrap(), "{plain}");
        *sealed.last_mut().unwrap() ^= 1;
        assert!(open(&sealed).unwrap_err().to_string().contains("hmac"), "{plain}");
    }
}
