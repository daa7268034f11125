//! The whole way: a program in a container asks REST, the guest attests to a real `kbs` with evidence of a simulated platform,
//! and gets its secrets. The key broker is the binary of this build; where it was not built the test says so and skips.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kata_cc_attester::measure::{Asker, Event, RuntimeLog, SoftwareRegister, tcg};
use kata_cc_attester::{LogSnapshot, RawReport, snp_evidence};
use kata_cc_guest_api::sealed::{Payload, SigningKey};
use kata_cc_guest_api::{Features, Guest, GuestApi, GuestError, Measured, Settings, Token, rest};
use kata_cc_kbs_client::{AdminAuth, AdminClient, Endpoint, EvidenceProvider, KbsClient, KbsConfig, TeeKey};
use kata_cc_kbs_protocol::initdata::fit;
use kata_cc_kbs_protocol::{ResourcePath, Tee};
use kata_cc_sim_tee::{ReportRequest, SimPlatform};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

const SECRET: &[u8] = b"a secret that no log may show";

const POLICY: &str = r#"package policy
import rego.v1
default allow := false
allow if {
    input.submods.cpu0["ear.status"] == "affirming"
    data["resource-path"][0] == "default"
}
"#;

/// `kbs` beside the test programs.
fn program() -> Option<PathBuf> {
    let here = std::env::current_exe().unwrap();
    let program = here.parent()?.parent()?.join("kbs");
    if !program.exists() {
        let missing = format!("there is no {} (cargo build --release -p kata-cc-kbs)", program.display());
        kata_cc_test_vectors::skip("binaries", &missing);
        return None;
    }
    Some(program)
}

/// A running key broker; ended when dropped.
struct Broker {
    child: Child,
    endpoint: Endpoint,
    /// Kept open: a server that cannot write its log would end.
    _log: std::thread::JoinHandle<()>,
}

impl Broker {
    fn start(program: &Path, dir: &Path, ark: &Path) -> Self {
        let made = Command::new(program)
            .arg("init")
            .arg(dir)
            .args(["--socket", "127.0.0.1:0", "--simulated"])
            .arg(ark)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        let mut child = Command::new(program)
            .arg("-c")
            .arg(dir.join("kbs.toml"))
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.split("address=").nth(1)?.split(' ').next().map(str::to_owned));
        let Some(address) = address else {
            let _ = (child.kill(), child.wait());
            panic!("kbs did not start");
        };
        let log = std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let endpoint = Endpoint {
            url: format!("https://{address}"),
            certificates: vec![std::fs::read_to_string(dir.join("tls.crt")).unwrap()],
            proxy: None,
            timeout: Some(Duration::from_secs(120)),
        };
        Self { child, endpoint, _log: log }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Evidence of a simulated launch, with the log of what was measured since.
struct Evidence {
    platform: SimPlatform,
    log: Arc<Mutex<RuntimeLog>>,
}

#[async_trait]
impl EvidenceProvider for Evidence {
    fn tee(&self) -> Tee {
        Tee::SimSnp
    }

    async fn evidence(&self, report_data: &[u8]) -> Result<Value, String> {
        let report_data: [u8; 64] = fit(report_data);
        let request = ReportRequest { report_data, measurement: [1; 48], ..ReportRequest::default() };
        let report = self.platform.report(&request).map_err(|e| e.to_string())?.to_vec();
        let raw = RawReport { report, certificates: self.platform.certificate_table() };
        let snapshot = LogSnapshot::take(&*self.log.lock().await).map_err(|e| e.to_string())?;
        snp_evidence(&raw, &report_data, Some(&snapshot)).map_err(|e| e.to_string())
    }
}

struct Attested {
    client: KbsClient,
    evidence: Arc<Evidence>,
}

#[async_trait]
impl Guest for Attested {
    fn tee(&self) -> &'static str {
        "sim-snp"
    }

    async fn evidence(&self, report_data: [u8; 64]) -> Result<Value, GuestError> {
        self.evidence.evidence(&report_data).await.map_err(GuestError::Failed)
    }

    async fn token(&self) -> Result<Token, GuestError> {
        let failed = |error: kata_cc_kbs_client::ClientError| GuestError::Failed(error.to_string());
        let token = self.client.token().await.map_err(failed)?;
        Ok(Token { token, key_pem: self.client.key().to_pem().map_err(failed)? })
    }

    async fn resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, GuestError> {
        self.client.get_resource(path).await.map_err(|error| GuestError::Failed(error.to_string()))
    }

    async fn record(&self, event: &Event) -> Result<Measured, GuestError> {
        let recorded = self.evidence.log.lock().await.record(event, Asker::Api);
        recorded.map(|_| Measured::Recorded).map_err(|error| GuestError::Failed(error.to_string()))
    }
}

async fn http(address: &str, request: &str) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let status = String::from_utf8_lossy(&answer[..end]).split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer[end + 4..].to_vec())
}

async fn get(address: &str, target: &str) -> (u16, Vec<u8>) {
    http(address, &format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_its_secrets_after_attestation() {
    let Some(program) = program() else { return };
    let folder = tempfile::tempdir().unwrap();
    let platform = SimPlatform::create(&folder.path().join("sim")).unwrap();
    let ark = folder.path().join("ark.pem");
    std::fs::write(&ark, platform.ark_pem().unwrap()).unwrap();
    let dir = folder.path().join("kbs");
    let broker = Broker::start(&program, &dir, &ark);

    let admin_key = std::fs::read(dir.join("admin.key")).unwrap();
    let admin = AdminAuth::from_key_pem(&admin_key, "admin").unwrap();
    let admin = AdminClient::new(&broker.endpoint, admin).unwrap();
    let signer = SigningKey::generate().unwrap();
    let path = |text: &str| text.parse::<ResourcePath>().unwrap();
    let public = signer.to_jwks("owner").unwrap().1;
    admin.put_resource(&path("default/secret/1"), SECRET).await.unwrap();
    admin.put_resource(&path("default/kek/1"), &[7; 32]).await.unwrap();
    admin.put_resource(&path("default/signing/owner"), public.as_bytes()).await.unwrap();
    admin.put_resource(&path("other/secret/1"), b"of another").await.unwrap();
    admin.set_resource_policy(POLICY).await.unwrap();
    let values = BTreeMap::from([
        ("sim_snp_launch_measurement".to_owned(), json!([hex::encode([1; 48])])),
        ("init_data".to_owned(), json!([hex::encode([0; 32])])),
    ]);
    admin.set_reference_values(&values).await.unwrap();

    let log = RuntimeLog::open(&folder.path().join("log"), None, |log| {
        Ok(Box::new(SoftwareRegister::new(17, tcg::replay(log, 17)?)))
    });
    let evidence = Arc::new(Evidence { platform, log: Arc::new(Mutex::new(log.unwrap())) });
    let config = KbsConfig { endpoint: broker.endpoint.clone(), ..KbsConfig::default() };
    let client = KbsClient::new(config, evidence.clone()).unwrap();
    let guest = Arc::new(Attested { client, evidence });
    let settings = Settings { features: Features::ALL, ..Settings::new(folder.path().join("none")) };
    let api = Arc::new(GuestApi::new(guest, settings));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(rest::serve(listener, Arc::clone(&api)));

    let (status, body) = get(&address, "/cdh/resource/default/secret/1").await;
    assert_eq!((status, body.as_slice()), (200, SECRET));
    let (status, body) = get(&address, "/cdh/resource/other/secret/1").await;
    let refused = String::from_utf8(body).unwrap();
    assert!(status == 500 && refused.contains("denies kbs:///other/secret/1"), "{status} {refused}");
    let (status, body) = get(&address, "/cdh/resource/default/secret/2").await;
    let refused = String::from_utf8(body).unwrap();
    assert!(status == 500 && refused.contains("has no kbs:///default/secret/2"), "{status} {refused}");

    // Token and key belong together, and the token is kept.
    let (status, body) = get(&address, "/aa/token?token_type=kbs").await;
    assert_eq!(status, 200);
    let token: Value = serde_json::from_slice(&body).unwrap();
    TeeKey::from_pem(token["tee_keypair"].as_str().unwrap().as_bytes()).unwrap();
    let (_, again) = get(&address, "/aa/token?token_type=kbs").await;
    assert_eq!(serde_json::from_slice::<Value>(&again).unwrap()["token"], token["token"]);

    // An event that a container asked for is in the evidence that follows.
    let event = r#"{"domain":"example.com","operation":"start","content":"x"}"#;
    let request =
        format!("POST /aa/aael HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{event}", event.len());
    assert_eq!(http(&address, &request).await.0, 200);
    let (status, body) = get(&address, "/aa/evidence?runtime_data=nonce").await;
    let evidence: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &evidence["attestation_report"]["report_data"][0]), (200, &json!(b'n')));
    let log = evidence["runtime_measurements"]["cc_eventlog"].as_str().unwrap();
    let log = kata_cc_kbs_protocol::from_base64_standard(log).unwrap();
    let value = hex::encode(tcg::replay(&log, 17).unwrap());
    assert_eq!(evidence["runtime_measurements"]["value"], value);

    // Sealed secrets, whose signer's key is in the key broker too.
    let kid = "kbs:///default/signing/owner";
    let vault = Payload::vault(&path("default/secret/1")).seal(kid, &signer).unwrap();
    assert_eq!(api.unseal(vault.as_bytes()).await.unwrap().as_slice(), SECRET);
    let envelope = Payload::envelope(&path("default/kek/1"), &[7; 32], b"hunter2").unwrap();
    let envelope = envelope.seal(kid, &signer).unwrap();
    assert_eq!(api.unseal(envelope.as_bytes()).await.unwrap().as_slice(), b"hunter2");
    let denied = Payload::vault(&path("other/secret/1")).seal(kid, &signer).unwrap();
    let refused = api.unseal(denied.as_bytes()).await.unwrap_err().to_string();
    assert!(refused.contains("kbs:///other/secret/1") && refused.contains("denies"), "{refused}");
}
