//! Runs the real `kata-cc` away from this machine's own node: configuration, records and guest image are the test's.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test program uses a part; a test may panic"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A node of made-up files.
pub struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["state/sandboxes", "run", "share"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("config.toml"), "").unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Write a file; gives its path as text.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Write a sandbox's record and log.
    pub fn sandbox(&self, id: &str, record: &str, log: &str) {
        self.file(&format!("state/sandboxes/{id}/record.jsonl"), record);
        self.file(&format!("state/sandboxes/{id}/log.jsonl"), log);
        // The list is in the order of the folders' times.
        std::thread::sleep(std::time::Duration::from_millis(10));
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kata-cc"));
        command.args(arguments).stdin(Stdio::null()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("KATA_CC_CONFIG", self.path("config.toml"));
        command.env("KATA_CC_STATE_DIR", self.path("state"));
        command.env("KATA_CC_RUN_DIR", self.path("run"));
        command.env("KATA_CC_SHARE_DIR", self.path("share"));
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::new(arguments, &self.command(arguments).output().unwrap())
    }

    /// Run what must succeed; gives standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout
    }

    /// Run what must succeed with `--json`.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[&["--json"], arguments].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Run what must fail, as text and as JSON: exit code 1, nothing on standard output, one line that has `words`.
    pub fn fails(&self, arguments: &[&str], words: &[&str]) {
        let ran = self.run(arguments);
        let told: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("kata-cc: ")).collect();
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
        assert_eq!(ran.stderr.lines().last(), told.last().copied(), "the message is the last line: {ran:?}");
        let message = told.last().unwrap_or_else(|| panic!("no message: {ran:?}"));
        for word in words {
            assert!(message.contains(word), "{word:?} is missing in {ran:?}");
        }
        assert!(!ran.stderr.contains("panicked"), "{ran:?}");
        let ran = self.run(&[&["--json"], arguments].concat());
        let last = ran.stderr.lines().last().unwrap_or_default();
        let error: Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
        assert!(words.iter().all(|word| error["error"].as_str().unwrap().contains(word)), "{ran:?}");
        assert!(error["causes"].as_array().is_some_and(|causes| !causes.is_empty()), "{ran:?}");
    }
}

/// What a run gave.
#[derive(Debug)]
pub struct Ran {
    pub arguments: Vec<String>,
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    fn new(arguments: &[&str], output: &Output) -> Self {
        Self {
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout.clone()).unwrap(),
            stderr: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }
}

/// A port of this machine where nobody listens.
pub fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An OCI layout with one small layer, as `skopeo copy … oci:DIR` makes them.
pub fn oci_layout(dir: &Path) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let digest = |bytes: &[u8]| hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes));
    let put = |bytes: &[u8]| {
        let digest = digest(bytes);
        std::fs::write(blobs.join(&digest), bytes).unwrap();
        serde_json::json!({"digest": format!("sha256:{digest}"), "size": bytes.len()})
    };
    let layer_bytes = vec![0; 1024];
    let mut layer = put(&layer_bytes);
    layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar".into();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer_bytes))]}});
    let mut config = put(config.to_string().as_bytes());
    config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [layer]});
    let mut manifest = put(manifest.to_string().as_bytes());
    manifest["mediaType"] = "application/vnd.oci.image.manifest.v1+json".into();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// An ELF file for x86-64 with one loadable page of code at 16 MiB.
pub fn minimal_kernel() -> Vec<u8> {
    let mut elf = vec![0_u8; 0x1000];
    elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
    elf[16..24].copy_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    elf[24..32].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
    elf[52..60].copy_from_slice(&[64, 0, 56, 0, 1, 0, 64, 0]);
    elf[64..72].copy_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
    for (at, value) in
        [(72, 0x1000_u64), (80, 0x100_0000), (88, 0x100_0000), (96, 0x1000), (104, 0x1000), (112, 0x1000)]
    {
        elf[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    elf.extend(std::iter::repeat_n(0x90, 0x1000));
    elf
}

/// An image of stage0 as far as a launch looks at it: header, code that is not run, two pages of working memory.
pub fn stage0_image() -> Vec<u8> {
    let mut image = vec![0x90; 0x3000];
    image[16..24].copy_from_slice(b"KCCIMG0\0");
    for (at, value) in [(24, 1u32), (28, 0x3000), (32, 0x2000), (36, 0)] {
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    image
}
