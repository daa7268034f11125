//! The guest API for real: REST and ttrpc servers on loopback and unix sockets of their own, asked by a plain HTTP client and by
//! ttrpc clients. The guest behind it holds its secrets in memory; `kbs.rs` puts a real key broker in its place.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use kata_cc_attester::measure::Event;
use kata_cc_guest_api::sealed::{Payload, SigningKey};
use kata_cc_guest_api::volume::Volume;
use kata_cc_guest_api::{
    Features, Guest, GuestApi, GuestError, Measured, RateLimit, Settings, Token, rest, rpc,
};
use kata_cc_guest_protocol::api_ttrpc::{
    GetResourceServiceClient, ImagePullServiceClient, SealedSecretServiceClient, SecureMountServiceClient,
};
use kata_cc_guest_protocol::attestation_agent::{self as aa, RuntimeMeasurementResult};
use kata_cc_guest_protocol::attestation_agent_ttrpc::AttestationAgentServiceClient;
use kata_cc_guest_protocol::keyprovider_ttrpc::KeyProviderServiceClient;
use kata_cc_guest_protocol::{api, keyprovider};
use kata_cc_kbs_protocol::{ResourcePath, base64_standard};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use zeroize::Zeroizing;

#[derive(Default)]
struct Fake {
    recorded: Mutex<Vec<String>>,
    mounted: Mutex<Vec<(Volume, Option<Vec<u8>>)>>,
    jwk: String,
}

#[async_trait]
impl Guest for Fake {
    fn tee(&self) -> &'static str {
        "sim-snp"
    }

    fn init_data_field(&self) -> Option<&[u8]> {
        Some(&[7; 32])
    }

    async fn evidence(&self, report_data: [u8; 64]) -> Result<Value, GuestError> {
        Ok(json!({"bound": base64_standard(&report_data)}))
    }

    async fn token(&self) -> Result<Token, GuestError> {
        let (token, key_pem) = ("h.p.s".to_owned(), "PEM".to_owned());
        Ok(Token { token: Zeroizing::new(token), key_pem: Zeroizing::new(key_pem) })
    }

    async fn service_token(&self) -> Result<Zeroizing<String>, GuestError> {
        Ok(Zeroizing::new("of.the.service".to_owned()))
    }

    async fn pull_image(&self, image: &str, bundle: &Path) -> Result<String, GuestError> {
        match image {
            "registry/image:1" => Ok(format!("sha256:of {image} below {}", bundle.display())),
            other => Err(GuestError::Failed(format!("image {other} was not pulled"))),
        }
    }

    async fn resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, GuestError> {
        match path.to_string().as_str() {
            "default/key/1" => Ok(Zeroizing::new(vec![7; 32])),
            "default/signing/owner" => Ok(Zeroizing::new(self.jwk.clone().into_bytes())),
            other => Err(GuestError::Failed(format!("key broker denies kbs:///{other}"))),
        }
    }

    async fn may_mount(&self, volume: &Volume) -> Result<(), GuestError> {
        match volume.mount_point.as_str() {
            "/denied" => Err(GuestError::Failed("the policy denies it".to_owned())),
            _ => Ok(()),
        }
    }

    async fn secure_mount(&self, volume: &Volume, key: Option<Zeroizing<Vec<u8>>>) -> Result<(), GuestError> {
        self.mounted.lock().unwrap().push((volume.clone(), key.map(|key| key.to_vec())));
        Ok(())
    }

    async fn record(&self, event: &Event) -> Result<Measured, GuestError> {
        self.recorded.lock().unwrap().push(event.text());
        Ok(Measured::Recorded)
    }
}

/// One request over a connection of its own: status, content type, body.
async fn http(address: &str, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that has seen enough closes, and what it did not read is lost: its answer counts.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) =
        text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {request:?}: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let kind = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-type: ").map(str::to_owned));
    (status, kind.unwrap_or_default(), body.to_owned())
}

async fn get(address: &str, target: &str) -> (u16, String, String) {
    http(address, &format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

async fn post(address: &str, target: &str, body: &str) -> (u16, String, String) {
    let length = body.len();
    http(address, &format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}"))
        .await
}

async fn rest_server(api: GuestApi) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(rest::serve(listener, Arc::new(api)));
    address
}

fn settings(features: &str) -> Settings {
    let features = Features::from_name(features).unwrap();
    Settings { features, ..Settings::new("/nonexistent".into()) }
}

#[tokio::test]
async fn rest_answers_as_coco_does() {
    let guest = Arc::new(Fake::default());
    let address = rest_server(GuestApi::new(guest.clone(), settings("all"))).await;
    let (status, kind, body) = get(&address, "/info").await;
    let info: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, kind.as_str()), (200, "application/json"));
    assert_eq!((&info["tee"], &info["feature"]), (&json!("sim-snp"), &json!("all")));
    assert!(info["version"].is_string() && info.get("additional_tees").is_none());

    let (status, kind, body) = get(&address, "/aa/token?token_type=kbs").await;
    assert_eq!((status, kind.as_str()), (200, "application/octet-stream"));
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap(),
        json!({"token": "h.p.s", "tee_keypair": "PEM"})
    );
    let (status, _, body) = get(&address, "/aa/token?token_type=coco_as").await;
    assert_eq!((status, body.as_str()), (200, "of.the.service"));
    let (status, _, body) = get(&address, "/aa/token?token_type=other").await;
    assert!(status == 500 && body.contains("kbs and coco_as"), "{status} {body}");

    let bound = |text: &[u8]| {
        let field: Vec<u8> = text.iter().copied().chain(std::iter::repeat(0)).take(64).collect();
        json!({"bound": base64_standard(&field)}).to_string()
    };
    let (status, kind, body) = get(&address, "/aa/evidence?runtime_data=a%20b+c").await;
    assert_eq!((status, kind.as_str(), body), (200, "application/octet-stream", bound(b"a b c")));
    for encoded in ["_-8=", "_-8"] {
        let (_, _, body) =
            get(&address, &format!("/aa/evidence?encoding=base64&runtime_data={encoded}")).await;
        assert_eq!(body, bound(&[255, 239]));
    }
    assert_eq!(get(&address, "/aa/additional-evidence?runtime_data=x").await.0, 200);

    let (status, kind, body) = get(&address, "/cdh/resource/default/key/1").await;
    assert_eq!((status, kind.as_str(), body.as_bytes()), (200, "application/octet-stream", &[7; 32][..]));
    let (status, _, body) = get(&address, "/cdh/resource/default/key/2").await;
    assert_eq!((status, body.as_str()), (500, "key broker denies kbs:///default/key/2"));

    let event = r#"{"domain":"example.com","operation":"start","content":"a b"}"#;
    assert_eq!(post(&address, "/aa/aael", event).await.2, r#"{"result":"OK"}"#);
    assert_eq!(*guest.recorded.lock().unwrap(), ["example.com start a b"]);
}

#[tokio::test]
async fn rest_refuses_what_is_out_of_form() {
    let address = rest_server(GuestApi::new(Arc::new(Fake::default()), settings("all"))).await;
    let long = "x".repeat(65);
    for target in [
        "/aa/token",
        "/aa/evidence",
        "/aa/evidence?runtime_data=x&encoding=base32",
        "/aa/evidence?encoding=base64&runtime_data=*",
        "/cdh/resource/a/b",
        "/cdh/resource/../b/c",
        "/cdh/resource/kbs:///default/key/1",
        &format!("/aa/evidence?runtime_data={long}"),
    ] {
        let (status, _, body) = get(&address, target).await;
        assert_eq!((status, body.as_str()), (400, "BAD REQUEST"), "{target}");
    }
    for target in ["/", "/aa", "/aa/other", "/cdh/other", "/cdh/resource", "/other/x"] {
        let (status, _, body) = get(&address, target).await;
        assert_eq!((status, body.as_str()), (404, "URL NOT FOUND"), "{target}");
    }
    for target in ["/info", "/aa/token?token_type=kbs", "/cdh/resource/default/key/1"] {
        let (status, _, body) = post(&address, target, "").await;
        assert_eq!((status, body.as_str()), (405, "Method Not Allowed"), "{target}");
    }
    assert_eq!(get(&address, "/aa/aael").await.0, 405);
    for body in [
        "",
        "{",
        "[]",
        r#"{"domain":"a","operation":"b"}"#,
        r#"{"domain":"a b","operation":"b","content":""}"#,
    ] {
        assert_eq!(post(&address, "/aa/aael", body).await.0, 400, "{body}");
    }
    let line = r#"{"domain":"a","operation":"b","content":"x\ny"}"#;
    assert_eq!(post(&address, "/aa/aael", line).await.0, 400);
    assert_eq!(post(&address, "/aa/aael", &" ".repeat(40 << 10)).await.0, 413);
    let head = format!("GET /info HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20 << 10));
    assert_eq!(http(&address, &head).await.0, 431);
    assert_eq!(http(&address, "nonsense\r\n\r\n").await.0, 400);
}

#[tokio::test]
async fn what_is_switched_off_is_not_served() {
    let server = |features| rest_server(GuestApi::new(Arc::new(Fake::default()), settings(features)));
    let address = server("resource").await;
    for target in ["/aa/token?token_type=kbs", "/aa/evidence", "/aa/other"] {
        let (status, _, body) = get(&address, target).await;
        assert_eq!((status, body.as_str()), (404, "Attestation Feature Not Enabled"), "{target}");
    }
    assert_eq!(post(&address, "/aa/aael", "{}").await.2, "Attestation Feature Not Enabled");
    assert_eq!(get(&address, "/cdh/resource/default/key/1").await.0, 200);
    assert!(!get(&address, "/info").await.2.contains("sim-snp"));
    let address = server("attestation").await;
    let (status, _, body) = get(&address, "/cdh/resource/default/key/1").await;
    assert_eq!((status, body.as_str()), (404, "Resource Feature Not Enabled"));
    assert_eq!(get(&address, "/aa/evidence?runtime_data=x").await.0, 200);
}

#[tokio::test]
async fn calls_are_limited() {
    let limits = (RateLimit::new(5, 1), RateLimit::new(2, 1));
    let api = GuestApi::with_limits(Arc::new(Fake::default()), settings("all"), limits.0, limits.1);
    let address = rest_server(api).await;
    let mut seen = Vec::new();
    for _ in 0..12 {
        seen.push(get(&address, "/aa/evidence?runtime_data=x").await.0);
    }
    assert_eq!(seen[..2], [200, 200]);
    assert!(seen.contains(&429), "{seen:?}");
}

struct Sockets {
    dir: tempfile::TempDir,
    _running: rpc::Running,
}

impl Sockets {
    async fn start(guest: Fake, features: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let api = Arc::new(GuestApi::new(Arc::new(guest), settings(features)));
        let (aa, cdh) = (dir.path().join("aa/aa.sock"), dir.path().join("cdh.sock"));
        std::fs::write(&cdh, "left by a former process").unwrap();
        let running = rpc::start(&api, &aa, &cdh).await.unwrap();
        Self { dir, _running: running }
    }

    async fn client(&self, name: &str) -> ttrpc::r#async::Client {
        ttrpc::r#async::Client::connect(&format!("unix://{}", self.path(name).display())).await.unwrap()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(std::time::Duration::from_secs(60))
}

fn told(error: ttrpc::Error) -> (ttrpc::Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        other => panic!("{other}"),
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_attestation_agent_answers_over_ttrpc() {
    let sockets = Sockets::start(Fake::default(), "all").await;
    assert_eq!((mode(&sockets.path("aa")), mode(&sockets.path("aa/aa.sock"))), (0o700, 0o600));
    let client = AttestationAgentServiceClient::new(sockets.client("aa/aa.sock").await);
    assert_eq!(client.get_tee_type(context(), &aa::GetTeeTypeRequest::new()).await.unwrap().tee, "sim-snp");
    let tees = client.get_additional_tees(context(), &aa::GetAdditionalTeesRequest::new()).await.unwrap();
    assert!(tees.additional_tees.is_empty());

    let mut request = aa::GetEvidenceRequest::new();
    request.RuntimeData = vec![5; 48];
    let evidence = client.get_evidence(context(), &request).await.unwrap().Evidence;
    let field = [&[5; 48][..], &[0; 16]].concat();
    assert_eq!(serde_json::from_slice::<Value>(&evidence).unwrap()["bound"], base64_standard(&field));
    request.RuntimeData = vec![5; 65];
    let (code, message) = told(client.get_evidence(context(), &request).await.unwrap_err());
    assert!(code == ttrpc::Code::INTERNAL && message.contains("65 bytes"), "{message}");
    let mut request = aa::GetAdditionalEvidenceRequest::new();
    request.RuntimeData = vec![5];
    assert!(client.get_additional_evidence(context(), &request).await.unwrap().Evidence.is_empty());

    let mut request = aa::GetTokenRequest::new();
    request.TokenType = "kbs".to_owned();
    let token = client.get_token(context(), &request).await.unwrap().Token;
    assert_eq!(serde_json::from_slice::<Value>(&token).unwrap()["token"], "h.p.s");

    let mut request = aa::ExtendRuntimeMeasurementRequest::new();
    request.Domain = "example.com".to_owned();
    request.Operation = "start".to_owned();
    let answer = client.extend_runtime_measurement(context(), &request).await.unwrap();
    assert_eq!(answer.Result.enum_value(), Ok(RuntimeMeasurementResult::OK));
    request.RegisterIndex = Some(3);
    let (_, message) = told(client.extend_runtime_measurement(context(), &request).await.unwrap_err());
    assert!(message.contains("register index"), "{message}");

    let mut request = aa::BindInitDataRequest::new();
    request.Digest = vec![7; 32];
    client.bind_init_data(context(), &request).await.unwrap();
    request.Digest = vec![8; 32];
    let (_, message) = told(client.bind_init_data(context(), &request).await.unwrap_err());
    assert!(message.contains("other init-data"), "{message}");
}

#[tokio::test]
async fn the_confidential_data_hub_answers_over_ttrpc() {
    let key = SigningKey::generate().unwrap();
    let jwk = key.to_jwks("owner").unwrap().1;
    let sockets = Sockets::start(Fake { jwk, ..Fake::default() }, "all").await;
    let client = sockets.client("cdh.sock").await;

    let resources = GetResourceServiceClient::new(client.clone());
    let mut request = api::GetResourceRequest::new();
    // Kata's agent writes the scheme before an absolute path.
    for path in ["kbs:///default/key/1", "default/key/1"] {
        request.ResourcePath = path.to_owned();
        assert_eq!(resources.get_resource(context(), &request).await.unwrap().Resource, [7; 32], "{path}");
    }
    request.ResourcePath = "kbs:///other/key/1".to_owned();
    let (code, message) = told(resources.get_resource(context(), &request).await.unwrap_err());
    assert_eq!(code, ttrpc::Code::INTERNAL);
    assert_eq!(message, "[CDH] [ERROR]: key broker denies kbs:///other/key/1");

    let secrets = SealedSecretServiceClient::new(client.clone());
    let path: ResourcePath = "default/key/1".parse().unwrap();
    let kid = "kbs:///default/signing/owner";
    let vault = Payload::vault(&path).seal(kid, &key).unwrap();
    let envelope = Payload::envelope(&path, &[7; 32], b"hunter2").unwrap().seal(kid, &key).unwrap();
    let unseal = |text: String| {
        let mut request = api::UnsealSecretInput::new();
        request.secret = text.into_bytes();
        let secrets = secrets.clone();
        async move { secrets.unseal_secret(context(), &request).await.map(|answer| answer.plaintext) }
    };
    assert_eq!(unseal(vault.clone()).await.unwrap(), [7; 32]);
    assert_eq!(unseal(envelope).await.unwrap(), b"hunter2");
    let other = SigningKey::generate().unwrap();
    let forged = Payload::vault(&path).seal(kid, &other).unwrap();
    let (_, message) = told(unseal(forged).await.unwrap_err());
    assert!(
        message.starts_with("[CDH] [ERROR]: ") && message.contains("signature does not verify"),
        "{message}"
    );

    let mut request = keyprovider::KeyProviderKeyWrapProtocolInput::new();
    let parameters =
        base64_standard(b"provider:attestation-agent:keyid=kbs:///default/key/1::algorithm=A256GCM");
    let ec = json!({"Parameters": {"attestation-agent": [parameters]}});
    let wrap = json!({"op": "keywrap", "keywrapparams": {"ec": ec, "optsdata": base64_standard(b"options")}});
    request.KeyProviderKeyWrapProtocolInput = wrap.to_string().into_bytes();
    let keys = KeyProviderServiceClient::new(client.clone());
    let wrapped = keys.wrap_key(context(), &request).await.unwrap().KeyProviderKeyWrapProtocolOutput;
    let wrapped: Value = serde_json::from_slice(&wrapped).unwrap();
    let annotation: Vec<u8> =
        serde_json::from_value(wrapped["keywrapresults"]["annotation"].clone()).unwrap();
    let unwrap = json!({"op": "keyunwrap", "keyunwrapparams": {"annotation": base64_standard(&annotation)}});
    request.KeyProviderKeyWrapProtocolInput = unwrap.to_string().into_bytes();
    let opened = keys.un_wrap_key(context(), &request).await.unwrap().KeyProviderKeyWrapProtocolOutput;
    let opened: Value = serde_json::from_slice(&opened).unwrap();
    let options: Vec<u8> = serde_json::from_value(opened["keyunwrapresults"]["optsdata"].clone()).unwrap();
    assert_eq!(options, b"options");

    let images = ImagePullServiceClient::new(client);
    let mut request = api::ImagePullRequest::new();
    request.image_url = "registry/image:1".to_owned();
    request.bundle_path = "/run/kata-containers/c1/images".to_owned();
    let digest = images.pull_image(context(), &request).await.unwrap().manifest_digest;
    assert_eq!(digest, "sha256:of registry/image:1 below /run/kata-containers/c1/images");
    request.image_url = "registry/other:1".to_owned();
    let (_, message) = told(images.pull_image(context(), &request).await.unwrap_err());
    assert_eq!(message, "[CDH] [ERROR]: image registry/other:1 was not pulled");
}

#[tokio::test]
async fn a_volume_is_mounted_with_its_key_from_wherever_it_comes() {
    let key = SigningKey::generate().unwrap();
    let jwk = key.to_jwks("owner").unwrap().1;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("disk");
    std::fs::write(&file, "of a file").unwrap();
    let guest = Arc::new(Fake { jwk, ..Fake::default() });
    let limits = (RateLimit::new(99, 99), RateLimit::new(99, 99));
    let mut settings = settings("resource");
    settings.key_files = dir.path().to_owned();
    let api = Arc::new(GuestApi::with_limits(guest.clone(), settings, limits.0, limits.1));
    let (aa, cdh) = (dir.path().join("aa.sock"), dir.path().join("cdh.sock"));
    let _running = rpc::start(&api, &aa, &cdh).await.unwrap();
    let client = ttrpc::r#async::Client::connect(&format!("unix://{}", cdh.display())).await.unwrap();
    let mounts = SecureMountServiceClient::new(client);

    let mut request = api::SecureMountRequest::new();
    request.volume_type = "block-device".to_owned();
    request.mount_point = "/somewhere".to_owned();
    let pairs = [("deviceId", "254:48"), ("sourceType", "encrypted"), ("encryptionType", "luks2")];
    request.options = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    request.options.insert("targetType".to_owned(), "fileSystem".to_owned());
    let path: ResourcePath = "default/key/1".parse().unwrap();
    let sealed = Payload::vault(&path).seal("kbs:///default/signing/owner", &key).unwrap();
    for (source, expected) in [
        (sealed.clone(), vec![7; 32]),
        ("kbs:///default/key/1".to_owned(), vec![7; 32]),
        (format!("file://{}", file.display()), b"of a file".to_vec()),
    ] {
        request.options.insert("key".to_owned(), source);
        mounts.secure_mount(context(), &request).await.unwrap();
        let (volume, key) = guest.mounted.lock().unwrap().pop().unwrap();
        assert_eq!((volume.device.to_string().as_str(), key), ("254:48", Some(expected)));
    }
    for (source, reason) in [
        ("kbs:///other/key/1", "[CDH] [ERROR]: key broker denies kbs:///other/key/1"),
        ("file:///etc/shadow", "[CDH] [ERROR]: key file /etc/shadow: files with keys are taken from below"),
        ("sealed.not.a.secret", "[CDH] [ERROR]: sealed secret"),
    ] {
        request.options.insert("key".to_owned(), source.to_owned());
        let (code, message) = told(mounts.secure_mount(context(), &request).await.unwrap_err());
        assert!(code == ttrpc::Code::INTERNAL && message.starts_with(reason), "{message}");
    }
    request.options.insert("dataIntegrity".to_owned(), "true".to_owned());
    let (_, message) = told(mounts.secure_mount(context(), &request).await.unwrap_err());
    assert!(message.contains("option dataIntegrity"), "{message}");
    request.options.remove("dataIntegrity");
    // Before the key is fetched.
    request.mount_point = "/denied".to_owned();
    let (_, message) = told(mounts.secure_mount(context(), &request).await.unwrap_err());
    assert_eq!(message, "[CDH] [ERROR]: the policy denies it");
    assert!(guest.mounted.lock().unwrap().is_empty());
}

#[tokio::test]
async fn sockets_of_what_is_switched_off_are_not_there() {
    let sockets = Sockets::start(Fake::default(), "attestation").await;
    assert!(sockets.path("aa/aa.sock").exists());
    let stale = std::fs::metadata(sockets.path("cdh.sock")).unwrap();
    assert!(stale.is_file(), "nobody listens there");
}
