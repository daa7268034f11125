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
