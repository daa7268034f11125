//! The real key broker on loopback, with TLS, made by `kbs init`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

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
