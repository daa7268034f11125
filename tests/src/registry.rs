//! Debian's docker-registry on loopback.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::pki::Pki;
use crate::process::{self, Daemon};

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    /// Its address: `localhost:PORT` under TLS, `127.0.0.1:PORT` in the clear.
    pub host: String,
    /// Folder that holds the blobs.
    pub storage: PathBuf,
    daemon: Option<Daemon>,
}

/// How a registry is offered.
#[derive(Debug, Default)]
pub struct RegistryOptions<'a> {
    /// TLS with this certificate; in the clear without.
    pub tls: Option<&'a Pki>,
    /// Ask for this user and password (HTTP Basic).
    pub basic: Option<(&'a str, &'a str)>,
}

impl Registry {
    /// Start one that keeps everything under `dir`.
    pub fn start(dir: &Path, options: &RegistryOptions<'_>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let port = process::free_port()?;
        let storage = dir.join("storage");
        let mut config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n",
            storage.display()
        );
        if let Some(pki) = options.tls {
            write!(
                config,
                "  tls:\n    certificate: {}\n    key: {}\n",
                pki.certificate.display(),
                pki.key.display()
            )?;
        }
        if let Some((user, password)) = options.basic {
            let line = process::run(Command::new("htpasswd").args(["-Bbn", user, password]), 30)?.ok()?;
            let path = dir.join("htpasswd");
            std::fs::write(&path, line.stdout)?;
            write!(config, "auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display())?;
        }
        let path = dir.join("registry.yml");
        std::fs::write(&path, config)?;
        let mut daemon =
            Daemon::start("registry", dir, Command::new("docker-registry").arg("serve").arg(&path))?;
        daemon.wait_until(60, || process::accepts(port))?;
        let name = if options.tls.is_some() { "localhost" } else { "127.0.0.1" };
        Ok(Self { host: format!("{name}:{port}"), storage, daemon: Some(daemon) })
    }

    /// Ends it; its folder stays.
    pub fn stop(&mut self) {
        self.daemon = None;
    }

    /// The file of a blob, `sha256:…`.
    #[must_use]
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let prefix = &hex[..2.min(hex.len())];
        self.storage.join("docker/registry/v2/blobs/sha256").join(prefix).join(hex).join("data")
    }
}
