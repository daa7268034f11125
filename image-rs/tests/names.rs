//! What an encrypted layer holds is not told by errors: they go to the host's log.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Guard, Image, RegistryServer, gzip, layer, missing};
use kata_cc_image::{
    ClientConfig, EncryptOptions, HeldKeys, ImageClient, Limits, NoKeys, Progress, PullError, PullTarget,
    encrypt_image,
};
use zeroize::Zeroizing;

const KEY_ID: &str = "kbs:///default/image-key/1";
const NAME: &str = "a-name-that-says-much";

/// An image whose one layer cannot be unpacked because of an entry called [`NAME`].
fn broken() -> Image {
    let archive = layer(&[(NAME, b"1"), (&format!("{NAME}/below"), b"2")]);
    Image::new(&[("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&archive), &archive)])
}

async fn reason(config: &ClientConfig, reference: &str, keys: &HeldKeys) -> String {
    let out = tempfile::tempdir().unwrap();
    let target = PullTarget { work_dir: out.path().join("work"), rootfs_dir: out.path().join("rootfs") };
    let client = ImageClient::new(config.clone()).unwrap();
    let error = client.pull(reference, &target, keys, &|_: Progress| {}).await.unwrap_err();
    assert!(matches!(error, PullError::Unpack { layer: 0, .. }), "{error}");
    let mut text = format!("{error} {error:?}");
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        text.push_str(&format!(" {next} {next:?}"));
        cause = next.source();
    }
    text
}

#[tokio::test]
async fn a_plain_layers_error_names_the_entry() {
    let liar = broken().serve();
    let config = ClientConfig { insecure_registries: vec![liar.host.clone()], ..ClientConfig::default() };
    let out = tempfile::tempdir().unwrap();
    let target = PullTarget { work_dir: out.path().join("work"), rootfs_dir: out.path().join("rootfs") };
    let client = ImageClient::new(ClientConfig { limits: Limits::default(), ..config }).unwrap();
    let pulled = client.pull(&format!("{}/test:1", liar.host), &target, &NoKeys, &|_: Progress| {}).await;
    assert!(pulled.unwrap_err().to_string().contains(NAME));
}

#[tokio::test]
async fn an_encrypted_layers_error_does_not() {
    if missing(&["docker-registry"]) {
        return;
    }
    let server = RegistryServer::start(Guard::Open);
    let dir = tempfile::tempdir().unwrap();
    broken().layout(&dir.path().join("layout"));
    let mut options = EncryptOptions::new(KEY_ID, Zeroizing::new(vec![7; 32]));
    options.client =
        ClientConfig { insecure_registries: vec![server.host.clone()], ..ClientConfig::default() };
    let from = format!("oci:{}:t", dir.path().join("layout").display());
    let to = format!("docker://{}/test:enc", server.host);
    let made = encrypt_image(&from, &to, &options).await.unwrap();
    let mut keys = HeldKeys::default();
    keys.by_id.insert(KEY_ID.to_owned(), Zeroizing::new(vec![7; 32]));
    let reference = format!("{}/test@{}", server.host, made.manifest_digest);
    let text = reason(&options.client, &reference, &keys).await;
    assert!(!text.contains(NAME) && text.contains("encrypted layer"), "{text}");
}
