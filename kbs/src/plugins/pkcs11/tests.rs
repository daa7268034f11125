//! The plugin on a real token: SoftHSM in a folder of its own, through the real helper.
//!
//! The helper is a dynamic program that `./x test` builds (`KATA_CC_BIN_DIR`); without it these tests say so and skip.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kata_cc_attestation_service::store::{Store, StoreKey, write_secret};
use kata_cc_kbs_pkcs11::WrapAlgorithm;
use serde_json::json;

use super::*;
use crate::plugins::request::tests::request;

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "4711";

/// A token with an RSA key `rsa`, an AES key `aes` and an EC key `ec`.
pub(crate) struct SoftHsm {
    folder: tempfile::TempDir,
    helper: PathBuf,
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl SoftHsm {
    /// `None` where the helper was not built. In `./x test` it always is.
    pub(crate) fn new() -> Option<Self> {
        let Some(bin) = std::env::var_os("KATA_CC_BIN_DIR") else {
            let missing = "KATA_CC_BIN_DIR does not say where kata-cc-kbs-pkcs11 is (./x test builds it)";
            kata_cc_test_vectors::skip("pkcs11", missing);
            return None;
        };
        let helper = Path::new(&bin).join("kata-cc-kbs-pkcs11");
        assert!(helper.exists(), "{} is missing", helper.display());
        assert!(Path::new(MODULE).exists(), "{MODULE} is missing: install the package softhsm2");
        let folder = tempfile::tempdir().unwrap();
        let hsm = Self { folder, helper };
        let path = hsm.folder.path();
        std::fs::create_dir(path.join("tokens")).unwrap();
        std::fs::write(
            path.join("softhsm2.conf"),
            format!("directories.tokendir = {}\n", path.join("tokens").display()),
        )
        .unwrap();
        write_secret(&path.join("pin"), PIN.as_bytes()).unwrap();
        run(hsm.util().args(["--init-token", "--free", "--label", "test", "--so-pin", "12345678"]));
        let openssl = |name: &str, options: &[&str]| {
            run(Command::new("openssl").arg("genpkey").args(options).arg("-out").arg(path.join(name)));
        };
        openssl("rsa", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
        openssl("ec", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        std::fs::write(path.join("aes"), [7; 32]).unwrap();
        for (id, name) in [("01", "rsa"), ("02", "ec"), ("03", "aes")] {
            let mut import = hsm.util();
            import.args(["--import", name, "--token", "test", "--label", name, "--id", id]).current_dir(path);
            run(import.args((name == "aes").then_some("--aes")));
        }
        Some(hsm)
    }

    fn util(&self) -> Command {
        let mut command = Command::new("softhsm2-util");
        command.env("SOFTHSM2_CONF", self.folder.path().join("softhsm2.conf")).args(["--pin", PIN]);
        command
    }

    /// An entry of the configuration, with `more` in it.
    pub(crate) fn config(&self, more: &str) -> Pkcs11Config {
        let text = format!(
            "module = {MODULE:?}\ntoken_label = \"test\"\npin_file = \"pin\"\nhelper = {:?}\n{more}\n\
             [environment]\nSOFTHSM2_CONF = {:?}\n\
             [keys.rsa]\nalgorithm = \"RSA-OAEP\"\n[keys.aes]\nalgorithm = \"A256KW\"\nid = \"03\"\n\
             [keys.rsa256]\nlabel = \"rsa\"\nalgorithm = \"RSA-OAEP-256\"\n[keys.absent]\nalgorithm = \"RSA-OAEP\"\n",
            self.helper,
            self.folder.path().join("softhsm2.conf")
        );
        toml::from_str(&text).unwrap()
    }

    pub(crate) fn base(&self) -> &Path {
        self.folder.path()
    }

    async fn plugin(&self, config: Pkcs11Config) -> Pkcs11 {
        let token = open(&config, self.base()).await.unwrap();
        let store = Arc::new(Store::in_memory(StoreKey::ephemeral()).await.unwrap());
        let context = Context { base: self.base().to_owned(), store, token: None };
        Pkcs11::new(config, token, &context)
    }
}

async fn ask(plugin: &Pkcs11, method: Method, target: &str, body: &[u8]) -> Result<Vec<u8>, PluginError> {
    let request = request(method, target, body);
    plugin.validate_auth(&request)?;
    Ok(plugin.handle(&request, Caller::Admin { role: "test" }).await?.body.to_vec())
}

fn logged(error: PluginError) -> String {
    match error {
        PluginError::Upstream { logged, .. } => logged,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn secrets_are_wrapped_by_the_token_and_unwrapped_on_release() {
    let Some(hsm) = SoftHsm::new() else { return };
    let plugin = hsm.plugin(hsm.config("lookup_label = \"rsa\"\nrsa_mechanism = \"RsaPkcsTest\"")).await;
    for key in ["rsa", "aes"] {
        let target = format!("{key}/db-password");
        ask(&plugin, Method::POST, &target, b"a secret of mine").await.unwrap();
        let stored = plugin.store.get(NAMESPACE, &target).await.unwrap().unwrap();
        assert!(!stored.windows(8).any(|w| w == b"a secret"), "{key}");
        assert_eq!(ask(&plugin, Method::GET, &target, b"").await.unwrap(), b"a secret of mine");
        // A blob moved to another name or key is refused.
        plugin.store.put(NAMESPACE, &format!("{key}/other"), &stored).await.unwrap();
        let error = ask(&plugin, Method::GET, &format!("{key}/other"), b"").await.unwrap_err();
        assert!(error.to_string().contains("wrapped as"), "{error}");
        ask(&plugin, Method::DELETE, &target, b"").await.unwrap();
        for method in [Method::GET, Method::DELETE] {
            let error = ask(&plugin, method, &target, b"").await.unwrap_err();
            assert!(
                matches!(&error, PluginError::NotFound(why) if why.contains("does not exist")),
                "{error}"
            );
        }
    }
    // Trustee's two.
    let wrapped = ask(&plugin, Method::POST, "wrap-key", b"TEST").await.unwrap();
    assert_eq!(wrapped.len(), 256);
    assert_eq!(ask(&plugin, Method::GET, "wrap-key", &wrapped).await.unwrap(), b"TEST");
    for value in [&b"one"[..], b"two"] {
        ask(&plugin, Method::POST, "resource/default/test/1", value).await.unwrap();
        assert_eq!(ask(&plugin, Method::GET, "resource/default/test/1", b"").await.unwrap(), value);
    }
    // Random numbers of the token.
    let draw = async || match plugin.token.ask(Operation::Random { length: 32 }).await.unwrap() {
        Answer::Secret { bytes } => bytes.0.to_vec(),
        other => panic!("{other:?}"),
    };
    assert_ne!(draw().await, draw().await);
}

#[tokio::test]
async fn what_the_token_cannot_do_is_told() {
    let Some(hsm) = SoftHsm::new() else { return };
    let plugin = hsm.plugin(hsm.config("lookup_label = \"rsa\"\nrsa_mechanism = \"RsaPkcsTest\"")).await;
    let error = ask(&plugin, Method::POST, "absent/x", b"x").await.unwrap_err();
    assert_eq!(error.parts().0.as_u16(), 502);
    assert!(error.to_string().contains("does not have the key"), "{error}");
    assert!(logged(error).contains("\"absent\" on token \"test\""));
    // SoftHSM 2.6 has OAEP with SHA-1 only.
    let error = ask(&plugin, Method::POST, "rsa256/x", b"x").await.unwrap_err();
    assert!(error.to_string().contains("does not do the configured algorithm"), "{error}");
    assert!(logged(error).contains("RSA-OAEP-256"));
    let error = ask(&plugin, Method::GET, "wrap-key", &[9; 256]).await.unwrap_err();
    assert!(error.to_string().contains("cannot unwrap it"), "{error}");
    for (target, body, why) in [
        ("wrap-key", vec![0; MAX_WRAP + 1], "1 to 1024 bytes"),
        ("wrap-key", vec![], "1 to 1024 bytes"),
        ("resource/a/b/c", vec![], "1 to 65536 bytes"),
        ("resource/a/b/c", vec![0; MAX_SECRET + 1], "1 to 65536 bytes"),
        ("rsa/x?y=1", vec![1], "not known here"),
    ] {
        let error = ask(&plugin, Method::POST, target, &body).await.unwrap_err();
        assert!(matches!(&error, PluginError::BadRequest(told) if told.contains(why)), "{target}: {error}");
    }
    let error = ask(&plugin, Method::GET, "resource/a/b/absent", b"").await.unwrap_err();
    assert!(logged(error).contains("no secret \"a/b/absent\""));
    let error = ask(&plugin, Method::GET, "nokey/x", b"").await.unwrap_err();
    assert!(matches!(&error, PluginError::NotFound(why) if why.contains("no key \"nokey\"")), "{error}");
    for (method, target) in
        [(Method::PUT, "rsa/x"), (Method::DELETE, "wrap-key"), (Method::DELETE, "resource/a/b/c")]
    {
        let error = ask(&plugin, method, target, b"").await.unwrap_err();
        assert!(matches!(error, PluginError::Method { .. }), "{error}");
    }
    assert!(matches!(ask(&plugin, Method::GET, "a/b/c", b"").await, Err(PluginError::Path(_))));
    let off = hsm.plugin(hsm.config("")).await;
    let error = ask(&off, Method::POST, "wrap-key", b"x").await.unwrap_err();
    assert!(error.to_string().contains("wrap-key is off"), "{error}");
}

#[tokio::test]
async fn a_start_that_cannot_succeed_fails_with_its_reason() {
    let Some(hsm) = SoftHsm::new() else { return };
    let failed = async |config: &Pkcs11Config| open(config, hsm.base()).await.unwrap_err().to_string();
    let config = || hsm.config("");
    let why = failed(&Pkcs11Config { module: "/nowhere/module.so".into(), ..config() }).await;
    assert!(why.contains("module /nowhere/module.so"), "{why}");
    let why = failed(&Pkcs11Config { token_label: Some("other".to_owned()), ..config() }).await;
    assert!(why.contains("there is no token") && why.contains("label \"test\""), "{why}");
    let why = failed(&Pkcs11Config { helper: Some("/nowhere/helper".into()), ..config() }).await;
    assert!(why.contains("helper /nowhere/helper cannot be started"), "{why}");
    let why = failed(&Pkcs11Config { helper: Some("/bin/true".into()), ..config() }).await;
    assert!(why.contains("ended during the call"), "{why}");
    let why = failed(&Pkcs11Config { helper: Some("/bin/cat".into()), ..config() }).await;
    assert!(why.contains("answered nonsense"), "{why}");
    write_secret(&hsm.base().join("wrong"), b"0000").unwrap();
    let why = failed(&Pkcs11Config { pin_file: Some("wrong".into()), ..config() }).await;
    assert!(why.contains("refuses the PIN") && !why.contains("0000"), "{why}");
}

#[tokio::test]
async fn a_wrong_pin_is_tried_once() {
    let Some(hsm) = SoftHsm::new() else { return };
    write_secret(&hsm.base().join("wrong"), b"0000").unwrap();
    let config = Pkcs11Config { pin_file: Some("wrong".into()), ..hsm.config("") };
    let token = Token::closed(launch(&config, hsm.base()).unwrap());
    let error = token.ask(Operation::Random { length: 1 }).await.unwrap_err();
    assert!(matches!(&error, TokenError::Refused(e) if e.kind == ErrorKind::Pin), "{error}");
    let error = token.ask(Operation::Random { length: 1 }).await.unwrap_err();
    assert!(matches!(&error, TokenError::Locked(_)), "{error}");
    assert!(error.to_string().contains("could lock the token"), "{error}");
}

#[tokio::test]
async fn a_helper_that_is_killed_is_started_again() {
    let Some(hsm) = SoftHsm::new() else { return };
    let plugin = hsm.plugin(hsm.config("")).await;
    ask(&plugin, Method::POST, "aes/x", b"secret").await.unwrap();
    let kill = |signal: &str, pid: u32| run(Command::new("kill").args([signal, &pid.to_string()]));
    // Between two calls: nobody notices.
    kill("-KILL", plugin.token.pid().await.unwrap());
    while plugin.token.pid().await.is_some_and(is_alive) {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&plugin, Method::GET, "aes/x", b"").await.unwrap(), b"secret");
    // During a call: stopped, so that the call is under way for sure, then killed.
    let pid = plugin.token.pid().await.unwrap();
    kill("-STOP", pid);
    let (call, ()) = tokio::join!(ask(&plugin, Method::GET, "aes/x", b""), async {
        while !plugin.token.is_busy() {
            tokio::task::yield_now().await;
        }
        kill("-KILL", pid);
    });
    let error = call.unwrap_err();
    assert_eq!(error.parts().0.as_u16(), 502);
    assert!(error.to_string().contains("not reachable at the moment, try again"), "{error}");
    assert!(logged(error).contains("ended during the call"));
    assert_eq!(ask(&plugin, Method::GET, "aes/x", b"").await.unwrap(), b"secret");
    // One that hangs is ended when its time is over, and the next call has another.
    let slow = hsm.plugin(Pkcs11Config { operation_seconds: 1, ..hsm.config("") }).await;
    let pid = slow.token.pid().await.unwrap();
    kill("-STOP", pid);
    let error = slow.token.ask(Operation::Random { length: 1 }).await.unwrap_err();
    assert!(matches!(error, TokenError::Timeout(_)), "{error}");
    slow.token.ask(Operation::Random { length: 1 }).await.unwrap();
    assert_ne!(slow.token.pid().await, Some(pid));
}

/// Not even as a zombie that waits to be seen.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The first thread may be gone before the others are, and only then can the process be waited for.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads > 1 || stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[tokio::test]
async fn the_store_key_is_unwrapped_by_the_token() {
    let Some(hsm) = SoftHsm::new() else { return };
    let token = open(&hsm.config(""), hsm.base()).await.unwrap();
    let (database, key) = (hsm.base().join("kbs.db"), hsm.base().join("store.key"));
    let load = async |label: &str| store_key::load(&token, label, WrapAlgorithm::A256Kw, &key).await;
    let store = Store::open(&database, load("aes").await.unwrap()).await.unwrap();
    store.put("repository", "a/b/c", b"secret").await.unwrap();
    store.close().await;
    let text = std::fs::read_to_string(&key).unwrap();
    assert!(text.contains("encrypted_key"), "{text}");
    let store = Store::open(&database, load("aes").await.unwrap()).await.unwrap();
    assert_eq!(store.get("repository", "a/b/c").await.unwrap().unwrap().as_slice(), b"secret");
    store.close().await;
    let why = load("other").await.unwrap_err().to_string();
    assert!(why.contains("not as \"other/store-key\""), "{why}");
    // A file that was changed, and a token without the key.
    let mut changed: serde_json::Value = serde_json::from_str(&text).unwrap();
    changed["encrypted_key"] = json!(kata_cc_kbs_protocol::base64_url(&[1; 40]));
    std::fs::write(&key, changed.to_string()).unwrap();
    let why = load("aes").await.unwrap_err().to_string();
    assert!(why.contains("unwrapping with A256KW"), "{why}");
    std::fs::remove_file(&key).unwrap();
    let why = load("absent").await.unwrap_err().to_string();
    assert!(why.contains("there is no") && why.contains("\"absent\""), "{why}");
    assert!(!key.exists());
}
