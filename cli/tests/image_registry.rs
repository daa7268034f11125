//! `kata-cc image unpack`, `sign`, `seal --push` and `chunks` against Debian's docker-registry; `kata-cc policy import`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Node, oci_layout};
use serde_json::{Value, json};

struct Registry {
    child: Child,
    host: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A registry with the image `team/app:1`; `None`, and said so, where a program is missing.
fn registry(node: &Node) -> Option<Registry> {
    for tool in ["docker-registry", "skopeo", "openssl"] {
        if !Path::new("/usr/bin").join(tool).exists() {
            println!("skipped: not installed: {tool}");
            return None;
        }
    }
    let registry = serve(node, "registry.yml", "");
    oci_layout(&node.path("plain"));
    let copied = Command::new("skopeo")
        .args(["copy", "-q", "--insecure-policy", "--dest-tls-verify=false"])
        .arg(format!("oci:{}", node.path("plain").display()))
        .arg(format!("docker://{}/team/app:1", registry.host))
        .status();
    assert!(copied.unwrap().success());
    Some(registry)
}

/// A registry of the node's storage, with more in its configuration.
fn serve(node: &Node, name: &str, more: &str) -> Registry {
    let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let storage = node.path("storage");
    let config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n{more}",
        storage.display()
    );
    let config = node.file(name, config);
    let mut command = Command::new("docker-registry");
    let command = command.args(["serve", &config]).stdout(Stdio::null()).stderr(Stdio::null());
    let registry = Registry { child: command.spawn().unwrap(), host };
    let begun = Instant::now();
    while TcpStream::connect(&registry.host).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the registry does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    registry
}

/// A key pair: the private key's file, and a policy that demands its signature.
fn signer(node: &Node, name: &str) -> (String, String) {
    let private = node.path(&format!("{name}.pem")).display().to_string();
    let public = node.path(&format!("{name}.pub")).display().to_string();
    let curve = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &private];
    for arguments in [&curve[..], &["pkey", "-in", &private, "-pubout", "-out", &public]] {
        assert!(Command::new("openssl").args(arguments).stderr(Stdio::null()).status().unwrap().success());
    }
    let requirement =
        json!({"type": "sigstoreSigned", "keyPath": public, "signedIdentity": {"type": "matchRepository"}});
    let policy = json!({"default": [requirement]}).to_string();
    (private, node.file(&format!("{name}.json"), policy))
}

#[test]
fn an_image_is_unpacked_as_a_guest_pulls_it_and_only_when_it_is_signed() {
    let node = Node::new();
    let Some(registry) = registry(&node) else { return };
    let image = format!("{}/team/app:1", registry.host);
    let at = ["--insecure-registry", registry.host.as_str()];
    let root = node.path("root").display().to_string();
    let unpacked = node.json(&[&["image", "unpack", &image, &root], &at[..]].concat());
    assert_eq!(unpacked["folder"], root.as_str());
    assert!(unpacked["bytes"].as_u64().unwrap() > 0 && unpacked["encrypted"] == false, "{unpacked}");
    assert!(Path::new(&root).is_dir());

    let (key, policy) = signer(&node, "ours");
    let (other, _) = signer(&node, "other");
    let second = node.path("second").display().to_string();
    let unpack = [&["image", "unpack", image.as_str(), &second, "--policy", &policy], &at[..]].concat();
    node.fails(&unpack, &["refused", "sigstoreSigned"]);
    node.ok(&[&["image", "sign", &image, "--key", &other], &at[..]].concat());
    node.fails(&unpack, &["refused", "sigstoreSigned"]);
    assert!(!Path::new(&second).exists());
    let signed = node.json(&[&["image", "sign", &image, "--key", &key], &at[..]].concat());
    assert_eq!(signed["signed"], unpacked["manifest_digest"]);
    node.ok(&unpack);
    assert!(Path::new(&second).exists());
    // nothing is left beside it
    let left = std::fs::read_dir(node.path("")).unwrap().flatten().map(|entry| entry.file_name());
    assert!(!left.into_iter().any(|name| name.to_string_lossy().starts_with(".kata-cc")));
    node.fails(&[&["image", "sign", &image, "--key", &policy], &at[..]].concat(), &["key"]);
}

/// Encrypts `team/app:1` to `team/app:enc`; gives that name, and the key as options name it.
fn encrypted(node: &Node, registry: &Registry) -> (String, String) {
    let (plain, sealed) =
        (format!("{}/team/app:1", registry.host), format!("{}/team/app:enc", registry.host));
    let (id, file) = ("kbs:///default/image-key/1", node.file("key", [7; 32]));
    let to = format!("docker://{sealed}");
    let encrypt = ["image", "encrypt", &plain, &to, "--key-id", id, "--key-file", &file];
    node.ok(&[&encrypt[..], &["--insecure-registry", &registry.host]].concat());
    (sealed, format!("{id}={file}"))
}

#[test]
fn an_encrypted_image_is_unpacked_with_its_key() {
    let node = Node::new();
    let Some(registry) = registry(&node) else { return };
    let at = ["--insecure-registry", registry.host.as_str()];
    let (sealed, named) = encrypted(&node, &registry);
    let root = node.path("root").display().to_string();
    let unpack = [&["image", "unpack", sealed.as_str(), &root], &at[..]].concat();
    node.fails(&unpack, &["encrypted", "no key opens it"]);
    let unpacked = node.json(&[&unpack[..], &["--key", &named]].concat());
    assert_eq!(unpacked["encrypted"], true);
}

#[test]
fn a_seal_is_put_beside_its_image_and_signed() {
    let node = Node::new();
    let Some(registry) = registry(&node) else { return };
    let image = format!("{}/team/app:1", registry.host);
    let at = ["--insecure-registry", registry.host.as_str()];
    let (key, policy) = signer(&node, "ours");
    let sealed = node.json(&[&["image", "seal", &image, "--push", "--sign-key", &key], &at[..]].concat());
    let referrer = sealed["referrer"].as_str().unwrap();
    assert!(referrer.starts_with(&format!("{}/team/app@sha256:", registry.host)), "{referrer}");
    // a referrer with a signature of its own; the image has none
    let verify =
        |name: &str| node.run(&[&["image", "verify", name, "--policy", &policy], &at[..]].concat()).code;
    assert_eq!((verify(referrer), verify(&image)), (0, 1));
    // a second seal of another image does not push the first one out of the list
    let list = sealed["seal"]["manifest"].as_str().unwrap().replace(':', "-");
    let manifest = |tag: &str| -> Value {
        let output = Command::new("skopeo")
            .args(["inspect", "--raw", "--tls-verify=false"])
            .arg(format!("docker://{}/team/app:{tag}", registry.host))
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let listed = manifest(&list);
    assert_eq!(listed["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(listed["manifests"][0]["artifactType"], "application/vnd.kata-cc.image.seal.v1+json");
    let layout = format!("oci:{}", node.path("plain").display());
    node.fails(&["image", "seal", &layout, "--push"], &["is in none"]);
    let usage = node.run(&["image", "seal", &layout, "--sign-key", &key]);
    assert!(usage.code == 2 && usage.stderr.contains("--push"), "{usage:?}");
}

#[test]
fn the_chunks_of_an_encrypted_image_are_listed_without_its_key() {
    let node = Node::new();
    let Some(registry) = registry(&node) else { return };
    let at = ["--insecure-registry", registry.host.as_str()];
    let (sealed, named) = encrypted(&node, &registry);
    let ((key, policy), list) = (signer(&node, "ours"), node.path("list.json").display().to_string());
    let chunks = [&["image", "chunks", sealed.as_str()], &at[..]].concat();
    let made = node.json(&[&chunks[..], &["--output", &list, "--push", "--sign-key", &key]].concat());
    let referrer = made["referrer"].as_str().unwrap();
    let verify = ["image", "verify", referrer, "--policy", &policy];
    assert_eq!(node.run(&[&verify, &at[..]].concat()).code, 0);
    let written: Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    assert_eq!(written["manifest"], made["manifest"]);
    let layers = written["layers"].as_array().unwrap();
    let count: usize = layers.iter().map(|layer| layer["chunks"].as_array().unwrap().len()).sum();
    assert_eq!(
        (made["chunks"].as_u64(), made["layers"].as_u64()),
        (Some(count as u64), Some(layers.len() as u64))
    );
    assert!(count > 0 && made["chunk_bytes"] == 1 << 20, "{made}");

    // who pulls as a guest does is not hindered by it
    node.ok(&[&["image", "sign", &sealed, "--key", &key], &at[..]].concat());
    let root = node.path("root").display().to_string();
    let unpack = ["image", "unpack", sealed.as_str(), &root, "--policy", &policy, "--key", &named];
    assert_eq!(node.json(&[&unpack, &at[..]].concat())["encrypted"], true);

    // Pinned, it counts without a policy; where it was another's, or is no pin, nothing is unpacked.
    let pin = node.path("pin.json").display().to_string();
    let made = node.json(&[&chunks[..], &["--output", &list, "--push", "--pin", &pin]].concat());
    let written: Value = serde_json::from_slice(&std::fs::read(&pin).unwrap()).unwrap();
    assert_eq!((&written["list"], &written["manifest"]), (&made["list"], &made["manifest"]));
    let root = node.path("pinned").display().to_string();
    let unpack =
        [&["image", "unpack", &sealed, &root, "--chunk-pin", &pin, "--key", &named], &at[..]].concat();
    assert_eq!(node.json(&unpack)["encrypted"], true);
    let mut other = written.clone();
    other["list"] = json!(format!("sha256:{}", "ab".repeat(32)));
    std::fs::write(&pin, other.to_string()).unwrap();
    std::fs::remove_dir_all(&root).unwrap();
    node.fails(&unpack, &["pins chunk list sha256:abab", made["list"].as_str().unwrap(), "--pin"]);
    std::fs::write(&pin, "{}").unwrap();
    node.fails(&unpack, &["pins no chunk list"]);

    let text = node.ok(&[&chunks[..], &["--output", &list, "--chunk-bytes", "65536"]].concat());
    assert!(text.contains("of 65536 bytes") && !text.contains("referrer"), "{text}");
    node.fails(
        &[&chunks[..], &["--output", &list, "--chunk-bytes", "65535"]].concat(),
        &["chunk_bytes", "65536"],
    );
    node.fails(
        &["image", "chunks", &format!("oci:{}", node.path("plain").display()), "--push"],
        &["is in none"],
    );
    for usage in [&[][..], &["--output", &list, "--sign-key", &key]] {
        let ran = node.run(&[&chunks[..], usage].concat());
        assert!(ran.code == 2 && ran.stderr.contains("--push"), "{ran:?}");
    }
}

#[test]
fn a_manifest_of_contrast_becomes_reference_values() {
    let node = Node::new();
    let manifest = json!({
        "Policies": {"ab".repeat(32): {"SANs": ["web"]}},
        "ReferenceValues": {"snp": [{"TrustedMeasurement": "cd".repeat(48), "MinimumTCB": {"SNPVersion": 24}}]},
    });
    let file = node.file("manifest.json", manifest.to_string());
    let ran = node.run(&["policy", "import", "--from", "contrast", &file]);
    let printed: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        printed,
        json!({"values": {"init_data": ["ab".repeat(32)], "snp_launch_measurement": ["cd".repeat(48)]}})
    );
    assert!(ran.stderr.contains("minimum_tcb.reported = { snp = 24 }"), "{ran:?}");
    let bad = node.file("bad.json", "{}");
    node.fails(&["policy", "import", "--from", "contrast", &bad], &["no manifest of Contrast"]);
}

#[test]
fn a_node_keeps_encrypted_layers_with_its_own_credentials_and_no_private_plain_image() {
    let node = Node::new();
    let Some(open) = registry(&node) else { return };
    encrypted(&node, &open);
    let password = Command::new("htpasswd").args(["-Bbn", "node", "wonder"]).output();
    let Ok(password) = password else { return println!("skipped: not installed: htpasswd") };
    let file = node.file("htpasswd", password.stdout);
    let closed =
        serve(&node, "closed.yml", &format!("auth:\n  htpasswd:\n    realm: test\n    path: {file}\n"));
    let host = closed.host.as_str();
    let [plain, sealed] = ["1", "enc"].map(|tag| format!("{host}/team/app:{tag}"));
    let configure = |more: &str| {
        node.file("config.toml", format!("[image]\ninsecure_registries = [{host:?}]\n{more}"));
    };
    let fails = |name: &str, what: &[&str]| node.fails(&["image", "seal", "--for-node", name], what);
    configure("");
    fails(&sealed, &["refuses access"]);
    let credentials = json!({"auths": {host: {"username": "node", "password": "wonder"}}});
    let credentials = node.file("auth.json", credentials.to_string());
    configure(&format!("seal_credentials = {credentials:?}\n"));
    let kept = node.json(&["image", "seal", "--for-node", &sealed]);
    assert_eq!(kept["kept"]["encrypted"], true, "{kept}");
    fails(&plain, &["none of its layers is encrypted"]);
    // As many bytes as the node has room for, and no more.
    std::fs::remove_dir_all(node.path("state/images")).unwrap();
    configure(&format!("seal_credentials = {credentials:?}\nsealed_bytes = 10\n"));
    fails(&sealed, &["at most", "of 10 are kept"]);
    node.file("auth.json", "wonder");
    let ran = node.run(&["image", "seal", "--for-node", &sealed]);
    assert!(ran.code == 1 && ran.stderr.contains("no docker configuration"), "{ran:?}");
    assert!(!ran.stderr.contains("wonder"), "a password was told: {ran:?}");
}
