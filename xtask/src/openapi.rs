//! Services against their own OpenAPI documents: schemathesis calls every operation with what the document allows and with what it
//! does not, against the real binary. It looks for answers of 5xx, for answers that the document does not know, and for hangs.
//!
//! schemathesis comes from PyPI into a virtual environment in the cache. Where it cannot be had (a machine without network), nothing is
//! checked, and that is said loudly; where `KATA_CC_REQUIRE` names it, as in CI, that is a failure.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kata_cc_test_vectors::REQUIRE;
use serde_json::{Value, json};

use crate::paths;
use crate::shell::{command, run, status, step};

/// Version that is installed.
const SCHEMATHESIS: &str = "4.32.5";
/// Calls of each operation in each of its phases.
const EXAMPLES: &str = "40";
/// Seconds that an answer may take; more is a hang.
const TIMEOUT: &str = "20";
/// What is looked for. Whether each wrong request is refused is tested elsewhere: bodies that the document calls wrong are often right
/// enough (a version is negotiated, a TEE is refused by its verifier).
const CHECKS: &str =
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";

/// A service that is checked.
pub(crate) struct Service {
    /// Its name, for messages.
    pub(crate) name: &'static str,
    /// Name of its binary.
    pub(crate) binary: &'static str,
    /// Writes what it needs into a folder, and gives its arguments. It must listen on 127.0.0.1:0 without TLS, let everybody
    /// administrate or take the token of [`Service::headers`], and log `address=127.0.0.1:PORT`.
    pub(crate) prepare: fn(&Path) -> anyhow::Result<Vec<String>>,
    /// Headers of every call, as `Name: value`.
    pub(crate) headers: fn(&Path) -> anyhow::Result<Vec<String>>,
}

/// All of them.
const SERVICES: [Service; 2] = [
    Service { name: "key broker", binary: "kbs", prepare: key_broker, headers: none },
    Service {
        name: "attestation service",
        binary: "attestation-service",
        prepare: attestation_service,
        headers: administrator,
    },
];

/// File with the administrator's private key, PKCS#8 DER.
const ADMIN_KEY: &str = "admin.key";
/// Its public half, PEM.
const ADMIN_PUBLIC: &str = "admin.pem";
/// DER of an Ed25519 SubjectPublicKeyInfo (RFC 8410) before the key itself.
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Seconds that the administrator's token is good: longer than any run.
const TOKEN_SECONDS: u64 = 4 * 3600;

fn none(_: &Path) -> anyhow::Result<Vec<String>> {
    Ok(Vec::new())
}

fn key_broker(folder: &Path) -> anyhow::Result<Vec<String>> {
    let config = folder.join("kbs.toml");
    // Limits off: this is a flood by one address.
    let text = "[http_server]\nsockets = [\"127.0.0.1:0\"]\ninsecure_http = true\n\
        [attestation]\nallow_sample = true\n[storage_backend]\nstorage_type = \"Memory\"\n\
        [admin]\nauthorization_mode = \"InsecureAllowAll\"\n[limits]\nrequests_per_second = 0.0\n";
    write(&config, text.as_bytes())?;
    Ok(vec!["-c".to_owned(), config.to_string_lossy().into_owned()])
}

/// Makes an administrator's key, without whose token most of the interface answers 401 only.
fn attestation_service(folder: &Path) -> anyhow::Result<Vec<String>> {
    let key = Ed25519KeyPair::generate().context("no random numbers")?;
    let private = key.to_pkcs8v1().context("the administrator's key cannot be written")?;
    write(&folder.join(ADMIN_KEY), private.as_ref())?;
    let public = STANDARD.encode([&ED25519_SPKI, key.public_key().as_ref()].concat());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{public}\n-----END PUBLIC KEY-----\n");
    write(&folder.join(ADMIN_PUBLIC), pem.as_bytes())?;
    let work = folder.join("work").to_string_lossy().into_owned();
    Ok(["-s", "127.0.0.1:0", "--admin-key", ADMIN_PUBLIC, "-w", &work].map(str::to_owned).to_vec())
}

/// The token that `attestation/service/src/gate.rs` asks for: a JWT of the key, with an end and the role.
fn administrator(folder: &Path) -> anyhow::Result<Vec<String>> {
    let path = folder.join(ADMIN_KEY);
    let private = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&private)
        .map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let (header, claims) =
        (json!({"alg": "EdDSA", "typ": "JWT"}), json!({"role": "admin", "exp": now + TOKEN_SECONDS}));
    let message = format!("{}.{}", part(&header), part(&claims));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(message.as_bytes()));
    Ok(vec![format!("Authorization: Bearer {message}.{signature}")])
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// A process that ends with us.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Checks all services.
pub(crate) fn check() -> anyhow::Result<()> {
    let Some(schemathesis) = install()? else { return Ok(()) };
    for service in &SERVICES {
        step(&format!("schemathesis: {}", service.name));
        let folder = paths::target().join("openapi").join(service.binary);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            _ => {}
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        check_one(service, &schemathesis, &folder)
            .with_context(|| format!("{} was found wrong", service.name))?;
    }
    Ok(())
}

/// The program, or `None` where it cannot be had.
fn install() -> anyhow::Result<Option<PathBuf>> {
    let venv = paths::cache().join("tools").join(format!("schemathesis-{SCHEMATHESIS}"));
    let program = venv.join("bin/schemathesis");
    let works = Command::new(&program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if works.is_ok_and(|status| status.success()) {
        return Ok(Some(program));
    }
    step("installing schemathesis (once, cached)");
    let folder = venv.to_string_lossy();
    let package = format!("schemathesis=={SCHEMATHESIS}");
    let made = status(&mut command("python3", &["-m", "venv", "--clear", &folder]));
    let pip = venv.join("bin/pip");
    let arguments = ["install", "--quiet", "--disable-pip-version-check", &package];
    if made.is_ok_and(|code| code == 0) && status(&mut command(&pip, &arguments)).is_ok_and(|code| code == 0)
    {
        return Ok(Some(program));
    }
    missing(kata_cc_test_vectors::requires("schemathesis")).map(|()| None)
}

/// What happens where it cannot be had.
fn missing(required: bool) -> anyhow::Result<()> {
    let what = format!(
        "schemathesis {SCHEMATHESIS} cannot be had from PyPI: the OpenAPI documents were NOT checked against the services"
    );
    if required {
        bail!("{what} ({REQUIRE} names schemathesis)");
    }
    let line = "*".repeat(what.len() + 6);
    println!("{line}\n** {what} **\n{line}");
    Ok(())
}

fn check_one(service: &Service, schemathesis: &Path, folder: &Path) -> anyhow::Result<()> {
    let arguments = (service.prepare)(folder)?;
    let binary = paths::binaries().join(service.binary);
    let mut child = Command::new(&binary)
        .args(&arguments)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let log = child.stderr.take().context("the service has no standard error")?;
    let mut running = Running(child);
    let mut lines = BufReader::new(log).lines();
    let mut told = Vec::new();
    let address = loop {
        let Some(line) = lines.next().transpose()? else {
            bail!("it did not start:\n{}", told.join("\n"));
        };
        let found =
            line.split("address=").nth(1).and_then(|rest| rest.split([' ', '"']).next()).map(str::to_owned);
        told.push(line);
        if let Some(address) = found {
            break address;
        }
    };
    // Its log must be read, or it would stand still; what it says last is of use when something was found.
    let reader = std::thread::spawn(move || {
        let mut last = std::collections::VecDeque::new();
        for line in lines.map_while(Result::ok) {
            if last.len() == 200 {
                last.pop_front();
            }
            last.push_back(line);
        }
        last
    });
    let url = format!("http://{address}");
    let mut check = command(schemathesis, &["run", &format!("{url}/openapi.json"), "--url", &url]);
    check.args(["--checks", CHECKS, "--max-examples", EXAMPLES, "--request-timeout", TIMEOUT]);
    // The same calls each time, and nothing left behind.
    // One worker: two threads that parse Python at a time end with "AST constructor recursion depth mismatch" now and then (CPython 3.11 keeps
    // the depth for all of them in one place).
    check.args(["--seed", "1", "--generation-database", "none", "--no-color", "--workers", "1"]);
    for header in (service.headers)(folder)? {
        check.args(["--header", &header]);
    }
    let checked = run(check.current_dir(folder));
    let alive = running.0.try_wait()?.is_none();
    drop(running);
    let last = reader.join().unwrap_or_default();
    let panicked = last.iter().any(|line| line.contains("panicked"));
    if checked.is_err() || !alive || panicked {
        println!("the last lines of its log:\n{}", Vec::from(last).join("\n"));
    }
    if !alive {
        bail!("the service ended under it");
    }
    if panicked {
        bail!("the service panicked");
    }
    checked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_schemathesis_nothing_passes_that_demands_it() {
        assert!(missing(false).is_ok());
        let error = missing(true).unwrap_err().to_string();
        assert!(error.contains("NOT checked") && error.contains("KATA_CC_REQUIRE"), "{error}");
    }
}
