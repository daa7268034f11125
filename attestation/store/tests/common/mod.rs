//! A real PostgreSQL in a folder of its own, for as long as a test runs.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by several test programs; a test may panic"
)]

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kata_cc_store::PostgresOptions;

/// Folder of the programs, newest version first; `None` when PostgreSQL is not installed.
fn programs() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists() && bin.join("postgres").exists())
        .collect();
    found.sort();
    found.pop()
}

/// A running database server; ended when dropped, also by a panic.
pub struct Postgres {
    folder: tempfile::TempDir,
    server: Option<Child>,
    bin: PathBuf,
    /// Where it listens besides its Unix socket, for connections by TLS and with a password only.
    tcp: Option<u16>,
}

/// User and group `nobody`.
const NOBODY: u32 = 65534;

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// A command as a user who is not root, which PostgreSQL refuses to run as.
fn unprivileged(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    let user = format!("{NOBODY}");
    command.args([format!("--reuid={user}"), format!("--regid={user}")]);
    command.args(["--clear-groups", "--inh-caps=-all"]).arg(program);
    command
}

impl Postgres {
    /// Starts a server that listens on a Unix socket only; `None` (and a line that says so) when it is not installed.
    pub fn start() -> Option<Self> {
        Self::start_with(None)
    }

    /// The same, which also listens on a port of 127.0.0.1: there it has this certificate and key (PEM), and lets in who comes by
    /// TLS and with a password.
    pub fn start_tls(certificate: &str, key: &str) -> Option<Self> {
        Self::start_with(Some((certificate, key)))
    }

    fn start_with(tls: Option<(&str, &str)>) -> Option<Self> {
        let Some(bin) = programs() else {
            kata_cc_test_vectors::skip(
                "postgres",
                "PostgreSQL is not installed (apt-get install postgresql)",
            );
            return None;
        };
        // Not below a folder that the unprivileged user may not enter.
        let folder = tempfile::Builder::new().prefix("kata-cc-pg-").tempdir_in("/tmp").unwrap();
        if is_root() {
            std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let data = folder.path().join("data");
        let made = unprivileged(&bin.join("initdb"))
            .args(["-A", "trust", "-U", "kbs", "-E", "UTF8", "--no-locale", "--no-sync", "-D"])
            .arg(&data)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut postgres = Self { folder, server: None, bin, tcp: None };
        if let Some((certificate, key)) = tls {
            postgres.prepare_tls(certificate, key);
        }
        postgres.run();
        postgres.sql("postgres", "CREATE DATABASE kbs");
        Some(postgres)
    }

    fn prepare_tls(&mut self, certificate: &str, key: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let data = self.folder.path().join("data");
        // Of the user who owns the folder already.
        let rules = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = data.join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            if is_root() {
                std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        self.tcp = Some(free.local_addr().unwrap().port());
    }

    fn port(&self) -> u16 {
        self.tcp.unwrap_or(5432)
    }

    fn run(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let server = unprivileged(&self.bin.join("postgres"))
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .arg("-k")
            .arg(self.folder.path())
            .args(["-c", "max_connections=100", "-c", "shared_buffers=32MB"])
            .args(match self.tcp {
                None => ["-c", "listen_addresses="].as_slice(),
                Some(_) => &["-c", "listen_addresses=127.0.0.1", "-c", "ssl=on"],
            })
            .args(["-p", &self.port().to_string()])
            .current_dir(self.folder.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.server = Some(server);
        let begin = Instant::now();
        while !self.psql("postgres", "SELECT 1").status.success() {
            assert!(begin.elapsed() < Duration::from_secs(120), "{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Its folder: data files are below `data`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn psql(&self, db: &str, statement: &str) -> std::process::Output {
        Command::new(self.bin.join("psql"))
            .args(["-X", "-q", "-A", "-t", "-U", "kbs", "-v", "ON_ERROR_STOP=1", "-d", db, "-c", statement])
            .args(["-p", &self.port().to_string()])
            .arg("-h")
            .arg(self.folder.path())
            .output()
            .unwrap()
    }

    /// Runs a statement, as whoever has got at the database would; returns what it answers.
    pub fn sql(&self, db: &str, statement: &str) -> String {
        let output = self.psql(db, statement);
        assert!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Port of 127.0.0.1 where it is reached by TLS.
    pub fn tcp_port(&self) -> u16 {
        self.tcp.unwrap()
    }

    /// How the store reaches it.
    pub fn options(&self) -> PostgresOptions {
        PostgresOptions {
            host: self.folder.path().to_str().unwrap().to_owned(),
            port: self.port(),
            connections: 8,
            ..PostgresOptions::default()
        }
    }

    /// Stops it at once, as a crash does: the children of the server end with it.
    fn stop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        // SIGQUIT, immediate shutdown: the postmaster ends its children; SIGKILL would leave them.
        let _ = Command::new("kill").arg("-QUIT").arg(server.id().to_string()).status();
        let _ = server.wait();
    }

    /// A crash and a new start.
    pub fn crash_and_restart(&mut self) {
        self.stop();
        self.run();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The forms in which `secret` could stand somewhere: as it is, in hex, in base64.
pub fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let hex = hex::encode(secret);
    let mut forms = vec![secret.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
    for skip in 0..3 {
        // Whatever stands before it, one of three alignments holds it; the last characters depend on what follows.
        for text in [STANDARD_NO_PAD.encode(&secret[skip..]), URL_SAFE_NO_PAD.encode(&secret[skip..])] {
            forms.push(text.as_bytes()[..text.len() - 3].to_vec());
        }
    }
    forms
}

/// Whether `bytes` hold `secret` in any form.
pub fn holds(bytes: &[u8], secret: &[u8]) -> bool {
    forms(secret).iter().any(|form| bytes.windows(form.len()).any(|w| w == form.as_slice()))
}

/// All files below `folder` that can be read, which sockets cannot, with what is in them.
pub fn each_file_below(folder: &Path, mut see: impl FnMut(&Path, &[u8])) {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if let Ok(bytes) = std::fs::read(&path) {
                see(&path, &bytes);
            }
        }
    }
}

/// No file below `folder` holds `secret` in any form.
pub fn assert_not_below(folder: &Path, secret: &[u8]) {
    let mut files = 0;
    each_file_below(folder, |path, bytes| {
        files += 1;
        assert!(!holds(bytes, secret), "{} holds a secret", path.display());
    });
    assert!(files > 0);
}
