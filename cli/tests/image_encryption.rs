//! `kata-cc image encrypt`, `decrypt` and `keyprovider`: alone, with key providers behind gRPC, and called by skopeo.
//!
//! Debian 12's skopeo (1.9) knows no key providers: `KATA_CC_SKOPEO` names a newer one, as in image-rs' tests.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use common::{Node, oci_layout};
use kata_cc_grpc_protocol::keyprovider as wire;
use kata_cc_grpc_protocol::keyprovider::key_provider_service_server::{
    KeyProviderService, KeyProviderServiceServer,
};
use kata_cc_guest_api::keyprovider as protocol;
use kata_cc_guest_api::sealed::ResourceSource;
use kata_cc_kbs_protocol::{ResourcePath, base64_standard};
use serde_json::{Value, json};
use zeroize::Zeroizing;

const KEY_ID: &str = "kbs:///default/image-key/1";

/// A node with the layout `plain`; gives the names of two more.
fn place() -> (Node, String, String, String) {
    let node = Node::new();
    oci_layout(&node.path("plain"));
    let [plain, sealed, opened] =
        ["plain", "sealed", "opened"].map(|name| format!("oci:{}", node.path(name).display()));
    (node, plain, sealed, opened)
}

fn same(node: &Node, first: &str, second: &str) -> bool {
    let layer = |name: &str| {
        let read = |path: PathBuf| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
        let index = read(node.path(name).join("index.json"));
        let digest =
            index["manifests"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
        read(node.path(name).join("blobs/sha256").join(digest))["layers"].clone()
    };
    layer(first)[0]["digest"] == layer(second)[0]["digest"]
}

#[test]
fn an_image_is_encrypted_and_decrypted_with_a_key_file() {
    let (node, plain, sealed, opened) = place();
    let key = node.path("key").display().to_string();
    let by_key = ["--key-id", KEY_ID, "--key-file", &key];
    node.fails(&[&["image", "decrypt", &plain, &opened], &by_key[..]].concat(), &["key"]);
    let made = node.json(&[&["image", "encrypt", &plain, &sealed], &by_key[..]].concat());
    assert_eq!((&made["encrypted_layers"], &made["key_is_new"]), (&json!(1), &json!(true)));
    let made = node.json(&[&["image", "decrypt", &sealed, &opened], &by_key[..]].concat());
    assert_eq!((&made["decrypted_layers"], &made["unbound_layers"]), (&json!(1), &json!(0)));
    assert!(same(&node, "plain", "opened"));
    node.file("key", [9; 32]);
    node.fails(
        &[&["image", "decrypt", &sealed, &opened], &by_key[..]].concat(),
        &["layer 0", "does not open"],
    );
    node.fails(
        &[&["image", "encrypt", &plain, &sealed, "--layer", "1"], &by_key[..]].concat(),
        &["there is no layer 1"],
    );
    for (recipient, words) in [
        ("pgp:me", &["jwe:FILE, pkcs7:FILE"][..]),
        ("jwe:/nonexistent/key", &["cannot read"]),
        ("provider:other", &["OCICRYPT_KEYPROVIDER_CONFIG"]),
    ] {
        node.fails(&["image", "encrypt", &plain, &sealed, "--recipient", recipient], words);
    }
    let usage = node.run(&["image", "encrypt", &plain, &sealed]);
    assert!(usage.code == 2 && usage.stderr.contains("--key-id"), "{usage:?}");
}

/// Asks `kata-cc image keyprovider`; gives exit code, answer and complaints.
fn ask(node: &Node, arguments: &[&str], request: &Value) -> (i32, String, String) {
    let mut command = node.command(&[&["image", "keyprovider"], arguments].concat());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn wrap_request(parameters: &str) -> Value {
    json!({"op": "keywrap", "keywrapparams": {"optsdata": base64_standard(b"options"),
        "ec": {"Parameters": {"attestation-agent": [base64_standard(parameters.as_bytes())]}}}})
}

fn bytes(value: &Value) -> Vec<u8> {
    value.as_array().unwrap().iter().map(|n| u8::try_from(n.as_u64().unwrap()).unwrap()).collect()
}

#[test]
fn the_key_provider_wraps_into_cocos_packet_and_refuses_the_rest() {
    let node = Node::new();
    let file = node.file("key", [7; 32]);
    let named = format!("keypath={file}::keyid={KEY_ID}::algorithm=A256GCM");
    let (code, answer, why) = ask(&node, &[], &wrap_request(&named));
    assert_eq!(code, 0, "{why}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let packet = bytes(&answer["keywrapresults"]["annotation"]);
    assert_eq!(serde_json::from_slice::<Value>(&packet).unwrap()["kid"], KEY_ID);
    let unwrap = json!({"op": "keyunwrap", "keyunwrapparams": {"annotation": base64_standard(&packet)}});
    let key = format!("{KEY_ID}={file}");
    let (code, answer, why) = ask(&node, &["--key", &key], &unwrap);
    assert_eq!(code, 0, "{why}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(bytes(&answer["keyunwrapresults"]["optsdata"]), b"options");

    let short = node.file("short", [7; 31]);
    let other = node.file("other", [8; 32]);
    let other = format!("{KEY_ID}={other}");
    for (arguments, request, words) in [
        (&[][..], unwrap.clone(), "no file is named for it"),
        (&["--key", &other], unwrap.clone(), "does not open"),
        (&["--key", &key, "--register"], unwrap, "this request unwraps"),
        (&["--key", "nothing"], json!({}), "repository/type/tag=FILE"),
        (&[], json!({"op": "steal"}), "neither keywrap nor keyunwrap"),
        (&[], wrap_request(&format!("keyid={KEY_ID}")), "no file is named for it"),
        (&[], wrap_request(&format!("keyid={KEY_ID}::keypath={short}")), "31 bytes"),
        (&[], wrap_request(&format!("keyid=nowhere::keypath={file}")), "names no secret"),
        (&[], wrap_request(&format!("keypath={file}")), "no keyid"),
        (&[], wrap_request(&format!("keyid={KEY_ID}::algorithm=A256CTR")), "not A256GCM"),
    ] {
        let (code, answer, why) = ask(&node, arguments, &request);
        assert!(code == 1 && answer.is_empty() && why.contains(words), "{words}: {answer} {why}");
    }
}

/// Paths and bodies of requests.
type Came = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A server that takes resources; gives its address and what came.
fn broker(runtime: &tokio::runtime::Runtime) -> (String, Came) {
    let came = Came::default();
    let kept = Arc::clone(&came);
    let take = move |uri: axum::http::Uri, body: axum::body::Bytes| {
        kept.lock().unwrap().push((uri.path().to_owned(), body.to_vec()));
        async { "{}" }
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        axum::serve(listener, axum::Router::new().fallback(take)).await.unwrap();
    });
    (format!("http://{address}"), came)
}

#[test]
fn the_key_provider_registers_its_key() {
    let node = Node::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (url, came) = broker(&runtime);
    let file = node.file("key", [7; 32]);
    let request = wrap_request(&format!("keyid={KEY_ID}::keypath={file}"));
    let (code, _, why) = ask(&node, &["--register", "--kbs", &url], &request);
    assert_eq!(code, 0, "{why}");
    let came = came.lock().unwrap().clone();
    assert_eq!(came.len(), 1, "{came:?}");
    assert!(came[0].0.ends_with("/resource/default/image-key/1") && came[0].1 == [7; 32], "{came:?}");
    let (code, answer, why) = ask(&node, &["--register", "--kbs", "http://127.0.0.1:1"], &request);
    assert!(code == 1 && answer.is_empty() && why.contains("not put into the key broker"), "{why}");
}

/// The key broker's key, and the way to it by gRPC.
struct Keys;

#[async_trait::async_trait]
impl ResourceSource for Keys {
    async fn resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, String> {
        match path.to_string().as_str() {
            "default/image-key/1" => Ok(Zeroizing::new(vec![7; 32])),
            other => Err(format!("no {other} here")),
        }
    }
}

type Request = tonic::Request<wire::KeyProviderKeyWrapProtocolInput>;
type Answer = Result<tonic::Response<wire::KeyProviderKeyWrapProtocolOutput>, tonic::Status>;

fn answer(result: Result<Zeroizing<Vec<u8>>, protocol::KeyProviderError>) -> Answer {
    let bytes = result.map_err(|error| tonic::Status::internal(error.to_string()))?.to_vec();
    let output = wire::KeyProviderKeyWrapProtocolOutput { key_provider_key_wrap_protocol_output: bytes };
    Ok(tonic::Response::new(output))
}

#[tonic::async_trait]
impl KeyProviderService for Keys {
    async fn wrap_key(&self, request: Request) -> Answer {
        answer(protocol::wrap(&request.into_inner().key_provider_key_wrap_protocol_input, self).await)
    }

    async fn un_wrap_key(&self, request: Request) -> Answer {
        answer(protocol::unwrap(&request.into_inner().key_provider_key_wrap_protocol_input, self).await)
    }
}

#[test]
fn a_key_provider_behind_grpc_is_asked() {
    let (node, plain, sealed, opened) = place();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    runtime.spawn(
        tonic::transport::Server::builder().add_service(KeyProviderServiceServer::new(Keys)).serve(address),
    );
    for _ in 0..200 {
        if std::net::TcpStream::connect(address).is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let config = json!({"key-providers": {"attestation-agent": {"grpc": address.to_string()},
        "gone": {"grpc": "127.0.0.1:1"}, "secret": {"grpc": "h:1", "grpc-tls": {}}, "cdh": {"ttrpc": "unix:///x"}}});
    let config = node.file("providers.json", config.to_string());
    let run = |arguments: &[&str]| {
        let output = node.command(arguments).env("OCICRYPT_KEYPROVIDER_CONFIG", &config).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let encrypt = |recipient: &str| run(&["image", "encrypt", &plain, &sealed, "--recipient", recipient]);
    let (code, why) = encrypt(&format!("provider:attestation-agent:keyid={KEY_ID}"));
    assert_eq!(code, 0, "{why}");
    let (code, why) =
        run(&["image", "decrypt", &sealed, &opened, "--decryption-key", "provider:attestation-agent"]);
    assert_eq!(code, 0, "{why}");
    assert!(same(&node, "plain", "opened"));
    // The packet is one that guests open: the key of that name opens it here.
    let file = node.file("key", [7; 32]);
    node.ok(&["image", "decrypt", &sealed, &opened, "--key-id", KEY_ID, "--key-file", &file]);
    for (recipient, words) in [
        ("provider:attestation-agent:keyid=kbs:///default/image-key/2", "no default/image-key/2 here"),
        ("provider:gone", "127.0.0.1:1"),
        ("provider:secret", "gRPC over TLS, which is not supported"),
        ("provider:cdh", "ttrpc, which is not supported"),
        ("provider:other", "configured: attestation-agent, cdh, gone, secret"),
    ] {
        let (code, why) = encrypt(recipient);
        assert!(code == 1 && why.contains(words), "{words}: {why}");
    }
}

#[test]
fn skopeo_encrypts_for_guests_through_the_key_provider() {
    let (node, plain, sealed, opened) = place();
    let program = std::env::var_os("KATA_CC_SKOPEO").map_or_else(|| "/usr/bin/skopeo".into(), PathBuf::from);
    if !program.exists() {
        println!("skipped: {} is not installed", program.display());
        return;
    }
    let file = node.file("key", [7; 32]);
    let config = |arguments: &[&str]| {
        let arguments = [&["image", "keyprovider"], arguments].concat();
        let command = json!({"path": env!("CARGO_BIN_EXE_kata-cc"), "args": arguments});
        let config = json!({"key-providers": {"attestation-agent": {"cmd": command}}});
        node.file("providers.json", config.to_string())
    };
    let skopeo = |config: &str, arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["--insecure-policy", "copy", "-q"]).args(arguments);
        let output = command.env("OCICRYPT_KEYPROVIDER_CONFIG", config).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let recipient = format!("provider:attestation-agent:keypath={file}::keyid={KEY_ID}");
    let target = format!("{sealed}:t");
    let (done, why) = skopeo(&config(&[]), &["--encryption-key", &recipient, &plain, &target]);
    if why.contains("protocol not recognized") {
        println!(
            "skipped: {} knows no key providers; KATA_CC_SKOPEO can name a newer one",
            program.display()
        );
        return;
    }
    assert!(done, "{why}");
    let summary = node.json(&["image", "inspect", &target]);
    assert_eq!(summary["layers"][0]["recipients"][0]["key_id"], KEY_ID);
    let by_key = ["--key-id", KEY_ID, "--key-file", &file];
    let made = node.json(&[&["image", "decrypt", &target, &opened], &by_key[..]].concat());
    // skopeo does not say which image a layer belongs to.
    assert_eq!((&made["decrypted_layers"], &made["unbound_layers"]), (&json!(1), &json!(1)));
    std::fs::remove_dir_all(node.path("opened")).unwrap();

    // The other way: what we encrypt, skopeo opens through the provider.
    std::fs::remove_dir_all(node.path("sealed")).unwrap();
    node.ok(&[&["image", "encrypt", &plain, &target], &by_key[..]].concat());
    let open = ["--decryption-key", "provider:attestation-agent:x", &target, &opened];
    let (done, why) = skopeo(&config(&["--key", &format!("{KEY_ID}={file}")]), &open);
    assert!(done, "{why}");
    assert!(same(&node, "plain", "opened"));
    let other = node.file("other", [8; 32]);
    let (done, why) = skopeo(&config(&["--key", &format!("{KEY_ID}={other}")]), &open);
    assert!(!done && why.contains("does not open with this key"), "{why}");
}
