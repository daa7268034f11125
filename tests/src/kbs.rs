//! The real key broker on loopback, with TLS, made by `kbs init`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};

use crate::process::{self, Daemon, run};

/// A running key broker.
#[derive(Debug)]
pub struct Kbs {
    /// `https://localhost:PORT`.
    pub url: String,
    /// Its folder: `tls.crt`, `admin.key`, `kbs.toml`.
    pub dir: PathBuf,
    port: u16,
    daemon: Option<Daemon>,
}

impl Kbs {
    /// Make one in `dir` that believes the simulated root `ark`, or none, and start it.
    pub fn start(dir: &Path, ark: Option<&Path>) -> anyhow::Result<Self> {
        let port = process::free_port()?;
        let mut init = Command::new(crate::binaries().join("kbs"));
        init.arg("init").arg(dir).args(["--socket", &format!("127.0.0.1:{port}"), "--name", "localhost"]);
        if let Some(ark) = ark {
            init.arg("--simulated").arg(ark);
        }
        run(&mut init, 60)?.ok().context("kbs init")?;
        let mut kbs =
            Self { url: format!("https://localhost:{port}"), dir: dir.to_owned(), port, daemon: None };
        kbs.restart()?;
        Ok(kbs)
    }

    /// Stop it and start it again, with its folder as it is.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.daemon = None;
        let mut command = Command::new(crate::binaries().join("kbs"));
        command.arg("-c").arg(self.dir.join("kbs.toml"));
        let mut daemon = Daemon::start("kbs", &self.dir, &mut command)?;
        let port = self.port;
        daemon.wait_until(60, || process::accepts(port))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Body of what it serves without authentication, e.g. its keys.
    pub fn get(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.dir.join("tls.crt"))?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = rustls::ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
        let mut stream = rustls::StreamOwned::new(tls, TcpStream::connect(("127.0.0.1", self.port))?);
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            // Its end is told by the connection's, with a farewell or without.
            Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => return Err(error.into()),
            _ => {}
        }
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("no answer")?;
        let (head, body) = answer.split_at(end + 4);
        let head = String::from_utf8_lossy(head);
        ensure!(head.split(' ').nth(1) == Some("200"), "{path}: {head}");
        Ok(body.to_vec())
    }

    /// `host:port`, for the egress allow-list.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    /// All it has printed since its last start.
    #[must_use]
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }
}
