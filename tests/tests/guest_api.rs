//! The guest API in a booted, attested guest: what a container gets at `127.0.0.1:8006`, and sealed secrets in its environment and
//! files; that a secret which does not open keeps the container from starting; that a guest without a TEE serves nothing; and
//! that no key is asked for an image that the agent policy refuses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use kata_cc_tests::containerd::{CONFIDENTIAL, Containerd, VM};
use kata_cc_tests::image::MARKER;
use kata_cc_tests::machines_run_here;
use kata_cc_tests::pki::Pki;
use kata_cc_tests::process::{Finished, run};
use kata_cc_tests::world::{self, Tampering, World, material};
use serde_json::Value;

/// What the key broker keeps for the containers.
const PASSWORD: &str = "hunter2-of-the-vault";
const ENVELOPE: &str = "the envelope's own secret";

/// What the container does: one line `name=value` for each thing that it got. Its output is logged: secrets are shown in another
/// form, so that the logs can be searched for what the guest itself may have let out.
const SCRIPT: &str = r#"
api=http://127.0.0.1:8006
get() { echo "$1=$(wget -q -O - "$api$2" | base64 | tr -d '\n')"; }
get info /info
get resource /cdh/resource/default/key/name
get token '/aa/token?token_type=kbs'
get evidence '/aa/evidence?runtime_data=of-the-container'
echo "missing=$(wget -O - $api/cdh/resource/default/key/none 2>&1 | tr -d '\n')"
echo "service=$(wget -O - "$api/aa/token?token_type=coco_as" 2>&1 | tr -d '\n')"
echo "vault=$(printf %s "$VAULT" | base64)"
echo "envelope=$(printf %s "$ENVELOPE" | base64)"
echo "file=$(base64 /etc/app/password)"
echo "plain=$(cat /etc/app/user)"
echo "sockets=$(ls /run/confidential-containers 2>&1)"
echo "own=$(ls /secret.txt)"
"#;

/// A world whose key broker keeps what the containers ask for, and the init-data of a pod that may ask.
struct Bench {
    world: World,
    containerd: Containerd,
    init_data: String,
    resource: Vec<u8>,
}

impl Bench {
    fn start(name: &str) -> anyhow::Result<Self> {
        let world = World::of_test(name)?;
        let containerd = Containerd::start(&world.config(&Tampering::default()))?;
        let resource: Vec<u8> = (0..=255).rev().collect();
        let bench = Self { init_data: init_data(&world)?, world, containerd, resource };
        bench.put("default/key/name", &bench.resource)?;
        bench.put("app/password/1", PASSWORD.as_bytes())?;
        bench.put("app/kek/1", &[7; 32])?;
        bench.cli(&["secret", "keygen", "--kid", "owner", "--output-dir", &bench.at("")])?;
        bench.cli(&["secret", "put", "app/signing/owner", "--file", &bench.at("owner-public.json")])?;
        let file = bench.at("init-data.toml");
        std::fs::write(&file, &bench.init_data)?;
        let measured = bench.cli(&["--json", "measure", "--register", "--init-data", &file])?;
        let measured: Value = serde_json::from_str(&measured.stdout)?;
        let digest = measured["host_data"].as_str().context("measure gave no host_data")?;
        bench.world.set_resource_policy(&bench.world.resource_policy(digest))?;
        Ok(bench)
    }

    fn end(self) -> anyhow::Result<()> {
        let dir = self.world.dir.clone();
        drop(self);
        std::fs::remove_dir_all(dir).context("the world's folder")
    }

    fn at(&self, name: &str) -> String {
        self.world.dir.join(name).to_string_lossy().into_owned()
    }

    fn cli(&self, words: &[&str]) -> anyhow::Result<Finished> {
        run(self.world.kata_cc(&Tampering::default())?.args(words), 120)?.ok()
    }

    fn put(&self, path: &str, contents: &[u8]) -> anyhow::Result<()> {
        let file = self.at("secret");
        std::fs::write(&file, contents)?;
        self.cli(&["secret", "put", path, "--file", &file]).map(drop)
    }

    /// A sealed secret signed by the owner, whose key the guest has of its `[[credentials]]`.
    fn seal(&self, words: &[&str]) -> anyhow::Result<String> {
        let key = self.at("owner-private.json");
        let signer = ["--signing-kid", "owner", "--signing-jwk-path", &key];
        let sealed = self.cli(&[&["secret", "seal"][..], words, &signer].concat())?;
        Ok(sealed.stdout.trim().to_owned())
    }

    fn vault(&self) -> anyhow::Result<String> {
        self.seal(&["vault", "--resource-uri", "kbs:///app/password/1"])
    }

    fn envelope(&self) -> anyhow::Result<String> {
        let (key, secret) = (self.at("kek"), self.at("plain"));
        std::fs::write(&key, [7; 32])?;
        std::fs::write(&secret, ENVELOPE)?;
        self.seal(&["envelope", "--key-id", "kbs:///app/kek/1", "--key-file", &key, "--file-path", &secret])
    }

    /// Runs the encrypted image's shell in an attested guest of this pod's init-data.
    fn attested(&self, id: &str, env: &[String], volume: &Path, script: &str) -> anyhow::Result<Finished> {
        let empty = self.at(&format!("empty-{id}"));
        std::fs::create_dir(&empty)?;
        let image = format!("dev.kata-cc.image={}", self.world.image);
        let data = kata_cc_kbs_protocol::initdata::to_annotation(&self.init_data);
        let data = format!("{}={data}", kata_cc_kbs_protocol::initdata::ANNOTATION);
        let mount = format!("type=bind,src={},dst=/etc/app,options=rbind:ro", volume.display());
        let head = ["run", "--rm", "--runtime", CONFIDENTIAL, "--rootfs", "--mount", &mount];
        let mut words = [&head[..], &["--annotation", &image, "--annotation", &data]].concat();
        words.extend(env.iter().flat_map(|entry| ["--env", entry.as_str()]));
        words.extend([empty.as_str(), id, "sh", "-c", script]);
        self.containerd.ctr(&words)
    }

    /// How often the key broker released the key of the image's layers, by its audit log.
    fn releases(&self) -> anyhow::Result<usize> {
        let mut kbs = std::process::Command::new(kata_cc_tests::binaries().join("kbs"));
        kbs.arg("-c").arg(self.world.kbs.dir.join("kbs.toml")).args(["audit", "export"]);
        let log = run(&mut kbs, 60)?.ok()?.stdout;
        Ok(log.lines().filter(|line| line.contains(world::KEY_PATH)).count())
    }
}

/// The pod's own init-data: the node's, and what this test wants beside it.
fn init_data(world: &World) -> anyhow::Result<String> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
    let (kbs, certificate) = (&world.kbs.url, read(&world.kbs.dir.join("tls.crt"))?);
    let registry = read(&Pki::at(&material()).ca)?;
    // The host may choose the program, and put files at the place of the secret.
    let policy = include_str!("../../agent/policy/exec.rego");
    Ok(format!(
        r#"version = "0.1.0"
algorithm = "sha256"
[data]
"aa.toml" = '''
[token_configs.kbs]
url = "{kbs}"
cert = """
{certificate}"""
'''
"cdh.toml" = '''
[kbc]
name = "cc_kbc"
url = "{kbs}"
kbs_cert = """
{certificate}"""
[image]
extra_root_certificates = ["""
{registry}"""]
insecure_registries = []
allow_simulated_tee = true
[guest_api]
features = "all"
[[credentials]]
path = "/run/confidential-containers/cdh/sealed-secret/owner"
resource_uri = "kbs:///app/signing/owner"
'''
"policy.rego" = '''
{policy}
bind_place(mount) if mount.destination == "/etc/app"
'''
"#
    ))
}

/// The script's lines.
fn answers(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name, value.trim())).collect()
}

fn decoded(answers: &BTreeMap<&str, &str>, name: &str) -> anyhow::Result<Vec<u8>> {
    let text = answers.get(name).with_context(|| format!("no {name} in {answers:?}"))?;
    kata_cc_kbs_protocol::from_base64_standard(text).with_context(|| format!("{name}: {text:?}"))
}

fn volume(bench: &Bench, name: &str, password: &str) -> anyhow::Result<PathBuf> {
    let volume = bench.world.dir.join(name);
    std::fs::create_dir(&volume)?;
    std::fs::write(volume.join("password"), password)?;
    std::fs::write(volume.join("user"), "app")?;
    Ok(volume)
}

#[test]
fn containers_of_an_attested_guest_get_what_is_theirs() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    let bench = Bench::start("guest-api")?;
    a_container_asks_and_is_answered(&bench)?;
    a_secret_that_does_not_open_fails_the_container(&bench)?;
    a_guest_without_a_tee_serves_nothing(&bench)?;
    bench.end()
}

fn a_container_asks_and_is_answered(bench: &Bench) -> anyhow::Result<()> {
    let volume = volume(bench, "volume", &bench.vault()?)?;
    let env = [format!("VAULT={}", bench.vault()?), format!("ENVELOPE={}", bench.envelope()?)];
    let done = bench.attested("asks", &env, &volume, SCRIPT)?;
    ensure!(done.code == 0, "{}\n{}", done.text(), bench.containerd.log());
    let answers = answers(&done.stdout);
    println!("{:?}", answers.keys());

    let info: Value = serde_json::from_slice(&decoded(&answers, "info")?)?;
    assert_eq!((&info["tee"], &info["feature"]), (&"sim-snp".into(), &"all".into()), "{info}");
    assert_eq!(decoded(&answers, "resource")?, bench.resource);
    let none = answers["missing"];
    assert!(none.contains("500"), "{none}");
    let none = answers["service"];
    assert!(none.contains("500") || none.contains("501"), "{none}");

    // The token: by the service's keys alone, without asking anybody.
    let token: Value = serde_json::from_slice(&decoded(&answers, "token")?)?;
    assert!(token["tee_keypair"].as_str().is_some_and(|pem| pem.contains("PRIVATE KEY")));
    let (file, keys) = (bench.at("token"), bench.at("jwks.json"));
    std::fs::write(&file, token["token"].as_str().context("no token")?)?;
    std::fs::write(&keys, bench.world.kbs.get("/.well-known/jwks.json")?)?;
    bench.cli(&["token", "verify", &file, "--jwks", &keys])?;

    let evidence: Value = serde_json::from_slice(&decoded(&answers, "evidence")?)?;
    let field = evidence["attestation_report"]["report_data"].as_array().context("no report data")?;
    let field: Vec<u8> = field.iter().filter_map(|n| u8::try_from(n.as_u64()?).ok()).collect();
    assert!(field.starts_with(b"of-the-container\0") && field.len() == 64, "{field:?}");

    for (name, secret) in [("vault", PASSWORD), ("envelope", ENVELOPE), ("file", PASSWORD)] {
        assert_eq!(String::from_utf8(decoded(&answers, name)?)?, secret, "{name}");
    }
    assert_eq!(answers["plain"], "app");
    // The host's copy stays sealed, and the sockets are the guest's own.
    assert!(std::fs::read_to_string(volume.join("password"))?.starts_with("sealed."));
    assert!(answers["sockets"].contains("No such file"), "{}", answers["sockets"]);
    assert_eq!(answers["own"], "/secret.txt");
    let log = bench.containerd.log();
    assert!(!log.contains(PASSWORD) && !log.contains(ENVELOPE), "a log tells a secret");
    Ok(())
}

fn a_secret_that_does_not_open_fails_the_container(bench: &Bench) -> anyhow::Result<()> {
    let volume = volume(bench, "volume-refused", "nothing sealed")?;
    let sealed = bench.vault()?;
    let (signed, signature) = sealed.rsplit_once('.').context("no JWS")?;
    // The first character carries whole bits, unlike the last.
    let other = if signature.starts_with('A') { 'B' } else { 'A' };
    let env = [format!("PASSWORD={signed}.{other}{}", signature.get(1..).unwrap_or_default())];
    let refused = bench.attested("forged", &env, &volume, "echo started")?;
    let text = refused.text();
    assert!(refused.code != 0 && !text.contains("started"), "{text}");
    for words in ["environment variable PASSWORD", "signature does not verify"] {
        assert!(text.contains(words), "{words} is not in {text}");
    }
    Ok(())
}

fn a_guest_without_a_tee_serves_nothing(bench: &Bench) -> anyhow::Result<()> {
    let script = "wget -O - http://127.0.0.1:8006/info 2>&1; echo ended=$?";
    let done = bench.containerd.run(VM, "plain", &[], &["sh", "-c", script])?;
    let text = done.text();
    assert!(done.code == 0 && text.contains("refused") && text.contains("ended=1"), "{text}");
    // There is nothing to open a sealed secret with, so a pod that has one is refused there.
    let secret = format!("SECRET={}", bench.vault()?);
    let refused = bench.containerd.run(VM, "plain-sealed", &["--env", &secret], &["echo", "started"])?;
    let text = refused.text();
    assert!(refused.code != 0 && text.contains("carries a sealed secret"), "{text}");
    Ok(())
}

#[test]
fn no_key_is_asked_for_an_image_that_may_not_run() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    let bench = Bench::start("before-keys")?;
    let node = &bench.world;
    node.set_resource_policy(&node.resource_policy(&node.measured.1))?;
    let before = bench.releases()?;
    // The node's default agent policy lets the image's own program run alone.
    let refused = node.run("may-not-run", &Tampering::default(), &["cat", "/etc/passwd"])?;
    let text = refused.text();
    assert!(refused.code != 0 && text.contains("RunImageRequest is blocked by policy"), "{text}");
    assert_eq!(bench.releases()?, before, "a key was released for it: {text}");
    let good = node.run("may-run", &Tampering::default(), &[])?;
    assert!(good.code == 0 && good.stdout.contains(MARKER), "{}", good.text());
    assert!(bench.releases()? > before, "the audit log does not tell of releases: the test proves nothing");
    bench.end()
}
