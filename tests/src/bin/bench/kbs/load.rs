//! A broker on a processor of its own, and guests that load it.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kata_cc_kbs_client::{AdminAuth, AdminClient, Endpoint, KeyAlgorithm, TeeKey};
use kata_cc_kbs_protocol::initdata::fit;
use kata_cc_kbs_protocol::rcar::HashAlgorithm;
use kata_cc_kbs_protocol::{Challenge, ResourcePath, RuntimeData};
use kata_cc_sim_tee::{ReportRequest, SimPlatform};
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::{CertTable, Report};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::steps::Steps;

const MEASUREMENT: [u8; 48] = [0xab; 48];
const RESOURCE: &str = "default/key/bench";

/// A running broker; ended when dropped.
pub(crate) struct Broker {
    child: std::sync::Mutex<Child>,
    port: u16,
    dir: tempfile::TempDir,
    platform: SimPlatform,
    table: CertTable,
    tls: TlsConnector,
}

impl Broker {
    /// Makes one that believes a simulated platform, lets its guests have a key, and starts it on processor 0.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("kata-cc-bench").tempdir()?;
        let platform = SimPlatform::create(&dir.path().join("sim"))?;
        let table = CertTable::parse(&platform.certificate_table())?;
        let port = kata_cc_tests::process::free_port()?;
        let folder = dir.path().join("kbs");
        let mut init = Command::new(kata_cc_tests::binaries().join("kbs"));
        init.arg("init").arg(&folder).args(["--socket", &format!("127.0.0.1:{port}")]);
        init.arg("--simulated").arg(dir.path().join("sim/ark.pem"));
        kata_cc_tests::process::run(&mut init, 60)?.ok().context("kbs init")?;
        // All guests of the load have one address; none is to be turned away when the disk makes them wait.
        let config = folder.join("kbs.toml");
        let text = std::fs::read_to_string(&config)?
            + "\n[limits]\nrequests_per_second = 0.0\nconnections_per_peer = 4096\n";
        std::fs::write(&config, text)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.join("tls.crt"))?)?;
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
        // Guests are new each time.
        config.resumption = rustls::client::Resumption::disabled();
        let child = std::sync::Mutex::new(spawn(&folder)?);
        let broker = Self { child, port, dir, platform, table, tls: TlsConnector::from(Arc::new(config)) };
        broker.ready().await?;
        broker.prepare().await?;
        Ok(broker)
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
            ensure!(start.elapsed() < Duration::from_secs(60), "the broker does not listen after 60 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn prepare(&self) -> anyhow::Result<()> {
        let folder = self.dir.path().join("kbs");
        let endpoint = Endpoint {
            url: format!("https://127.0.0.1:{}", self.port),
            certificates: vec![std::fs::read_to_string(folder.join("tls.crt"))?],
            proxy: None,
            timeout: Some(Duration::from_secs(60)),
        };
        let key = std::fs::read(folder.join("admin.key"))?;
        let admin = AdminClient::new(&endpoint, AdminAuth::from_key_pem(&key, "admin")?)?;
        let values = [("sim_snp_launch_measurement".to_owned(), json!([hex::encode(MEASUREMENT)]))];
        admin.set_reference_values(&values.into()).await?;
        admin.set_resource_policy("package policy\nallow := true\n").await?;
        admin.put_resource(&RESOURCE.parse::<ResourcePath>()?, &[7; 32]).await?;
        Ok(())
    }

    /// Ends it and starts it anew: it has no sessions then.
    pub(crate) async fn restart_fresh(&self) -> anyhow::Result<()> {
        {
            let mut child = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            child.kill()?;
            child.wait()?;
            *child = spawn(&self.dir.path().join("kbs"))?;
        }
        self.ready().await
    }

    fn proc(&self, file: &str) -> anyhow::Result<String> {
        let pid = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner).id();
        Ok(std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}")).join(file))?)
    }

    /// What it logged last.
    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("kbs/bench.log")).unwrap_or_default();
        let unusual = log.lines().filter(|line| !line.contains(" INFO "));
        let lines: Vec<&str> = unusual.chain(log.lines().rev().take(3)).collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Seconds of processor time that it has used.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = self.proc("stat")?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = [11, 12].iter().filter_map(|n| fields.get(*n)?.parse::<u64>().ok()).sum();
        // USER_HZ is 100 on every Linux that has this interface.
        Ok(ticks as f64 / 100.0)
    }

    /// Histograms of its steps so far.
    pub(crate) async fn steps(&self) -> anyhow::Result<Steps> {
        let text = Guest::connect(self).await?.call("GET", "/metrics", "").await?;
        Ok(Steps::parse(&String::from_utf8_lossy(&text)))
    }

    /// MiB that it holds in memory.
    pub(crate) fn resident_mib(&self) -> anyhow::Result<f64> {
        let status = self.proc("status")?;
        let line =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("there is no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024.0)
    }

    fn evidence(&self, report_data: &[u8]) -> anyhow::Result<Value> {
        let request = ReportRequest {
            report_data: fit(report_data),
            measurement: MEASUREMENT,
            ..ReportRequest::default()
        };
        let report = Report::parse(&self.platform.report(&request)?)?;
        Ok(serde_json::to_value(SnpEvidence::new(&report, &self.table))?)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn spawn(folder: &std::path::Path) -> anyhow::Result<Child> {
    let log = std::fs::File::create(folder.join("bench.log"))?;
    let mut command = Command::new("taskset");
    command
        .args(["-c", "0"])
        .arg(kata_cc_tests::binaries().join("kbs"))
        .arg("-c")
        .arg(folder.join("kbs.toml"));
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?)
}

/// A guest after its handshake.
pub(crate) struct Guest {
    connection: TlsStream<TcpStream>,
    cookie: String,
}

impl Guest {
    async fn connect(broker: &Broker) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", broker.port)).await?;
        stream.set_nodelay(true)?;
        let connection = broker.tls.connect(ServerName::try_from("127.0.0.1")?, stream).await?;
        Ok(Self { connection, cookie: String::new() })
    }

    /// A new connection, a new key, `/auth`, evidence, `/attest`.
    pub(crate) async fn attest(broker: &Broker) -> anyhow::Result<Self> {
        let mut guest = Self::connect(broker).await?;
        let request = json!({"version": "0.4.0", "tee": "sim-snp", "extra-params": ""});
        let challenge: Challenge =
            serde_json::from_slice(&guest.call("POST", "/kbs/v0/auth", &request.to_string()).await?)?;
        let key = TeeKey::generate(KeyAlgorithm::EcdhP256)?;
        let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey: key.public().clone() };
        let report_data = HashAlgorithm::Sha384.digest(&runtime_data.canonical_primary(""));
        let evidence = broker.evidence(&report_data)?;
        let body = json!({
            "runtime-data": runtime_data,
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        });
        guest.call("POST", "/kbs/v0/attest", &body.to_string()).await?;
        Ok(guest)
    }

    /// One exchange on its connection; anything but 200 is an error.
    async fn call(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<Vec<u8>> {
        let cookie =
            if self.cookie.is_empty() { String::new() } else { format!("Cookie: {}\r\n", self.cookie) };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{cookie}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.connection.write_all(request.as_bytes()).await?;
        // What the socket did not take at once waits in the TLS layer, which reading alone does not send.
        self.connection.flush().await?;
        let mut answer = Vec::with_capacity(8192);
        let (head, length) = loop {
            if self.connection.read_buf(&mut answer).await? == 0 {
                bail!("the broker closed the connection after {:?}", String::from_utf8_lossy(&answer));
            }
            let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            break (end + 4, length.context("no content-length")?.trim().parse::<usize>()?);
        };
        while answer.len() < head + length {
            ensure!(self.connection.read_buf(&mut answer).await? > 0, "the answer is cut off");
        }
        let text = String::from_utf8_lossy(&answer[..head]).into_owned();
        ensure!(
            text.starts_with("HTTP/1.1 200"),
            "{path}: {text}{}",
            String::from_utf8_lossy(&answer[head..])
        );
        let set = text.lines().find(|line| line.to_ascii_lowercase().starts_with("set-cookie:"));
        if let Some((_, value)) = set.and_then(|line| line.split_once(':')) {
            self.cookie = value.split(';').next().unwrap_or_default().trim().to_owned();
        }
        Ok(answer.split_off(head))
    }
}

/// `at_once` workers for `length`: how many pieces were done, and in how many seconds.
pub(crate) async fn closed<F, Fut, T>(
    at_once: usize,
    length: Duration,
    piece: F,
) -> anyhow::Result<(usize, f64)>
where
    F: Fn() -> Fut,
    Fut: Future<Output = anyhow::Result<T>>,
{
    let start = Instant::now();
    let done = AtomicUsize::new(0);
    let worker = async || -> anyhow::Result<()> {
        while start.elapsed() < length {
            piece().await?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    all((0..at_once).map(|_| worker())).await?;
    Ok((done.load(Ordering::Relaxed), start.elapsed().as_secs_f64()))
}

/// `at_once` workers until `count` pieces are done.
pub(crate) async fn times<F, Fut, T>(at_once: usize, count: usize, piece: F) -> anyhow::Result<()>
where
    F: Fn() -> Fut,
    Fut: Future<Output = anyhow::Result<T>>,
{
    let begun = AtomicUsize::new(0);
    let worker = async || -> anyhow::Result<()> {
        while begun.fetch_add(1, Ordering::Relaxed) < count {
            piece().await?;
        }
        Ok(())
    };
    all((0..at_once).map(|_| worker())).await.map(drop)
}

/// How often the rate of [`open`] follows the machine's speed.
const WINDOW: Duration = Duration::from_millis(500);

/// Pieces that are due whether earlier ones are done or not, as many as keep the broker's processor busy for `share` of the time; `cost` is
/// the processor time of one, in seconds, to begin with. Seconds from when each was due to its end, in the order of being due.
pub(crate) async fn open<F, Fut, T>(
    broker: &Broker,
    (share, mut cost): (f64, f64),
    length: Duration,
    piece: F,
) -> anyhow::Result<Vec<f64>>
where
    F: Fn() -> Fut,
    Fut: Future<Output = anyhow::Result<T>>,
{
    let one = async |number: usize, due: Instant| -> anyhow::Result<(usize, f64)> {
        piece().await?;
        Ok((number, due.elapsed().as_secs_f64()))
    };
    let (start, mut running, mut ended) = (Instant::now(), FuturesUnordered::new(), Vec::new());
    let (mut due, mut number) = (start, 0);
    let mut window = (start, broker.cpu_seconds()?, 0);
    while due < start + length {
        tokio::select! {
            biased;
            Some(done) = running.next() => {
                ended.push(done?);
                let pieces = ended.len() - window.2;
                if window.0.elapsed() >= WINDOW {
                    let cpu = broker.cpu_seconds()?;
                    cost = (cpu - window.1) / pieces as f64;
                    window = (Instant::now(), cpu, ended.len());
                }
            }
            () = tokio::time::sleep_until(due.into()) => {
                running.push(one(number, due));
                number += 1;
                due += Duration::from_secs_f64(cost / share);
            }
        }
    }
    while let Some(done) = running.next().await {
        ended.push(done?);
    }
    ended.sort_unstable_by_key(|(number, _)| *number);
    Ok(ended.into_iter().map(|(_, seconds)| seconds).collect())
}

/// Attested guests on connections that stay.
pub(crate) async fn readers(broker: &Broker, count: usize) -> anyhow::Result<Vec<Mutex<Guest>>> {
    let mut guests = Vec::new();
    for _ in 0..count {
        guests.push(Mutex::new(Guest::attest(broker).await?));
    }
    Ok(guests)
}

/// Has all of them read a resource again and again: how many were read, and in how many seconds.
pub(crate) async fn resources(readers: &[Mutex<Guest>], length: Duration) -> anyhow::Result<(usize, f64)> {
    let start = Instant::now();
    let done = AtomicUsize::new(0);
    let path = format!("/kbs/v0/resource/{RESOURCE}");
    let worker = async |guest: &Mutex<Guest>| -> anyhow::Result<()> {
        let mut guest = guest.lock().await;
        while start.elapsed() < length {
            guest.call("GET", &path, "").await?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    all(readers.iter().map(worker)).await?;
    Ok((done.load(Ordering::Relaxed), start.elapsed().as_secs_f64()))
}

/// Runs futures side by side on this task; the first error ends all.
async fn all<T>(
    futures: impl Iterator<Item = impl Future<Output = anyhow::Result<T>>>,
) -> anyhow::Result<Vec<T>> {
    futures::future::try_join_all(futures).await
}
