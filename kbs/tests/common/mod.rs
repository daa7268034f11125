//! A real `kbs` on loopback, and guests of a simulated platform.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by several test programs; a test may panic"
)]

pub mod client;
pub mod load;
pub mod raw;
pub mod records;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use kata_cc_kbs_client::{AdminAuth, AdminClient, Endpoint, EvidenceProvider, KbsClient, KbsConfig};
use kata_cc_kbs_protocol::Tee;
use kata_cc_kbs_protocol::initdata::fit;
use kata_cc_sim_tee::{ReportRequest, SimPlatform};
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::{CertTable, Report};
use serde_json::Value;

/// A running key broker; ended when dropped.
pub struct Server {
    child: Child,
    pub endpoint: Endpoint,
    pub log: Arc<Mutex<Vec<String>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

/// Runs `kbs init` in `dir`, with `extra` arguments.
pub fn init(dir: &Path, extra: &[&str]) {
    let status = Command::new(env!("CARGO_BIN_EXE_kbs"))
        .arg("init")
        .arg(dir)
        .args(["--socket", "127.0.0.1:0"])
        .args(extra)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

impl Server {
    /// Starts on the configuration that [`init`] made.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[])
    }

    /// The same with these variables.
    pub fn start_with(dir: &Path, variables: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kbs"))
            .arg("-c")
            .arg(dir.join("kbs.toml"))
            .env_remove("RUST_LOG")
            .env_remove("NOTIFY_SOCKET")
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut address = None;
        for line in lines.by_ref() {
            let line = line.unwrap();
            let found =
                line.split("address=").nth(1).and_then(|rest| rest.split(' ').next()).map(str::to_owned);
            log.lock().unwrap().push(line);
            if found.is_some() {
                address = found;
                break;
            }
        }
        let address = address.unwrap_or_else(|| panic!("kbs did not start: {:?}", log.lock().unwrap()));
        let copy = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                copy.lock().unwrap().push(line);
            }
        });
        let tls = std::fs::read_to_string(dir.join("tls.crt"));
        let endpoint = Endpoint {
            url: format!("{}://{address}", if tls.is_ok() { "https" } else { "http" }),
            certificates: tls.into_iter().collect(),
            proxy: None,
            timeout: Some(Duration::from_secs(120)),
        };
        Self { child, endpoint, log, reader: Some(reader) }
    }

    /// The operator whose key [`init`] made.
    pub fn admin(&self, dir: &Path) -> AdminClient {
        let key = std::fs::read(dir.join("admin.key")).unwrap();
        AdminClient::new(&self.endpoint, AdminAuth::from_key_pem(&key, "admin").unwrap()).unwrap()
    }

    /// A guest.
    pub fn guest(&self, evidence: Guest, init_data: Option<&str>) -> KbsClient {
        self.client(evidence, init_data)
    }

    /// A guest of any kind.
    pub fn client(&self, evidence: impl EvidenceProvider + 'static, init_data: Option<&str>) -> KbsClient {
        let config = KbsConfig {
            endpoint: self.endpoint.clone(),
            init_data: init_data.map(str::to_owned),
            ..KbsConfig::default()
        };
        KbsClient::new(config, Arc::new(evidence)).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it read its configuration anew, and waits until it says what came of it.
    pub fn reload(&self) -> String {
        let before = self.log.lock().unwrap().len();
        let told = Command::new("kill").arg("-HUP").arg(self.child.id().to_string()).status().unwrap();
        assert!(told.success());
        for _ in 0..1200 {
            std::thread::sleep(Duration::from_millis(50));
            let log = self.log.lock().unwrap();
            let said = log.iter().skip(before).find(|line| {
                line.contains("configuration was taken into use")
                    || line.contains("configuration was refused")
            });
            if let Some(line) = said {
                return line.clone();
            }
        }
        panic!("nothing came of SIGHUP: {:?}", self.log.lock().unwrap());
    }

    /// Asks it to end, as systemd does; returns its exit code and everything it logged.
    pub fn stop(mut self) -> (Option<i32>, String) {
        let killed = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
        let code = self.child.wait().unwrap().code();
        self.reader.take().unwrap().join().unwrap();
        let log = self.log.lock().unwrap().join("\n");
        (code, log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails when it has ended already, which is the usual case.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a guest's evidence looks like.
#[derive(Clone)]
pub struct Guest {
    pub platform: Arc<SimPlatform>,
    pub measurement: [u8; 48],
    pub host_data: [u8; 32],
    pub tee: Tee,
    /// Changes the evidence before it is sent.
    pub tamper: fn(Value) -> Value,
    /// Evidence of another exchange, sent instead.
    pub replay: Option<Value>,
    /// The last evidence made.
    pub last: Arc<Mutex<Option<Value>>>,
}

impl Guest {
    pub fn new(platform: &Arc<SimPlatform>, measurement: u8) -> Self {
        Self {
            platform: Arc::clone(platform),
            measurement: [measurement; 48],
            host_data: [0; 32],
            tee: Tee::SimSnp,
            tamper: |evidence| evidence,
            replay: None,
            last: Arc::default(),
        }
    }

    fn report(&self, report_data: &[u8]) -> Value {
        let request = ReportRequest {
            report_data: fit(report_data),
            measurement: self.measurement,
            host_data: self.host_data,
            ..ReportRequest::default()
        };
        let report = Report::parse(&self.platform.report(&request).unwrap()).unwrap();
        let table = CertTable::parse(&self.platform.certificate_table()).unwrap();
        serde_json::to_value(SnpEvidence::new(&report, &table)).unwrap()
    }
}

#[async_trait]
impl EvidenceProvider for Guest {
    fn tee(&self) -> Tee {
        self.tee
    }

    async fn evidence(&self, report_data: &[u8]) -> Result<Value, String> {
        if let Some(evidence) = &self.replay {
            return Ok(evidence.clone());
        }
        let evidence = (self.tamper)(self.report(report_data));
        *self.last.lock().unwrap() = Some(evidence.clone());
        Ok(evidence)
    }
}
