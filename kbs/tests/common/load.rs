//! What the tests that kill key brokers share: a configuration, values that tell who wrote them, chance that can be repeated.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use kata_cc_kbs_client::AdminClient;
use kata_cc_sim_tee::SimPlatform;

use super::{Server, init};

/// Lets every guest of the simulated platform have what is in `default`.
pub const POLICY: &str = r#"package policy
import rego.v1
default allow := false
allow if {
    input.submods.cpu0["ear.veraison.annotated-evidence"]["sim-snp"]
    data["resource-path"][0] == "default"
}
"#;

/// Makes a folder of a key broker on plain HTTP, with `extra` at the end of its configuration in place of its storage.
pub fn configure(dir: &Path, platform: &SimPlatform, storage: &str) {
    let ark = dir.join("ark.pem");
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(&ark, platform.ark_pem().unwrap()).unwrap();
    init(dir, &["--simulated", ark.to_str().unwrap()]);
    std::fs::remove_file(dir.join("tls.crt")).unwrap();
    let path = dir.join("kbs.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let tls = "private_key = \"tls.key\"\ncertificate = \"tls.crt\"\n";
    let sqlite = "[storage_backend]\nstorage_type = \"Sqlite\"\n";
    assert!(text.contains(tls) && text.contains(sqlite), "{text}");
    let limits = "[limits]\nrequests_per_second = 0\n";
    let text = text.replace(tls, "insecure_http = true\n").replace(sqlite, &format!("{storage}\n{limits}"));
    std::fs::write(&path, text).unwrap();
}

/// Sets the policy under which the tests read.
pub async fn open_to_guests(admin: &AdminClient) {
    admin.set_resource_policy(POLICY).await.unwrap();
}

/// The same policy as its number `n`: all of them mean the same, and none has the bytes of another.
pub fn policy(n: u64) -> String {
    format!("{POLICY}# {n}\n")
}

/// What one writer knows: which of its numbers are known to be done, in order, and the last that was sent.
#[derive(Debug, Default, Clone)]
pub struct Written {
    /// Those that were acknowledged, or were found to be done after the connection had been lost.
    pub done: Vec<u64>,
    /// The last that was sent, and how often any was.
    pub sent: u64,
}

impl Written {
    /// The last that is known to be done.
    pub fn last(&self) -> u64 {
        self.done.last().copied().unwrap_or(0)
    }

    /// The number that is sent next.
    pub fn next(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }

    /// Notes which number was found: the last that is known to be done, or one that was under way.
    pub fn found(&mut self, n: u64) {
        if n > self.last() {
            self.done.push(n);
        }
    }
}

/// What a run depends on. The same seed gives the same run, as far as it depends on it.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// From `KATA_CC_SEED`, or from the clock; printed either way.
    pub fn new() -> Self {
        let given = std::env::var("KATA_CC_SEED").ok().and_then(|text| text.parse().ok());
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let seed = given.unwrap_or_else(|| u64::try_from(clock.as_nanos() & u128::from(u64::MAX)).unwrap());
        println!("seed {seed}: KATA_CC_SEED={seed} repeats this run");
        Self(seed)
    }

    /// A number below `end` (splitmix64).
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// The value that `writer` writes as its number `n`: bytes by which it can be told from all others, and from a part of itself.
pub fn value(writer: &str, n: u64) -> Vec<u8> {
    let mut block = digest(&SHA256, format!("{writer} {n}").as_bytes());
    let mut bytes = Vec::new();
    for _ in 0..=n % 128 {
        bytes.extend_from_slice(block.as_ref());
        block = digest(&SHA256, block.as_ref());
    }
    bytes
}

/// A platform whose guests the tests play. Making one takes seconds.
pub fn platform(dir: &Path) -> Arc<SimPlatform> {
    Arc::new(SimPlatform::create(&dir.join("sim")).unwrap())
}

/// Everything that a server logged so far.
pub fn logged(server: &Server) -> String {
    server.log.lock().unwrap().join("\n")
}
