//! A key broker that follows a signed policy bundle in a registry, and what `kata-cc policy status` and `rollback` tell and do about it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kata_cc_tests::binaries;
use kata_cc_tests::kbs::Kbs;
use kata_cc_tests::process::{Finished, run};
use kata_cc_tests::registry::{Registry, RegistryOptions};

/// The services, and the Git checkout of whoever changes policies.
struct Place {
    folder: tempfile::TempDir,
    registry: Registry,
    kbs: Kbs,
}

impl Place {
    fn start() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("kct-gitops-").tempdir_in("/run")?;
        let registry = Registry::start(&folder.path().join("registry"), &RegistryOptions::default())?;
        let kbs = Kbs::start(&folder.path().join("kbs"), None)?;
        let place = Self { folder, registry, kbs };
        let (private, public) = (place.path("policy.key"), place.path("policy.pub"));
        let make = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &private];
        run(Command::new("openssl").args(make), 30)?.ok()?;
        run(Command::new("openssl").args(["pkey", "-pubout", "-in", &private, "-out", &public]), 30)?.ok()?;
        Ok(place)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn reference(&self) -> String {
        format!("{}/team/policy:main", self.registry.host)
    }

    /// `kata-cc` with an administrator's means.
    fn kata_cc(&self, words: &[&str]) -> anyhow::Result<Finished> {
        let mut command = Command::new(binaries().join("kata-cc"));
        command.args(words).env("KATA_CC_KBS", &self.kbs.url);
        command.env("KATA_CC_KBS_CERT", self.kbs.dir.join("tls.crt"));
        command.env("KATA_CC_KBS_ADMIN_KEY", self.kbs.dir.join("admin.key"));
        run(&mut command, 120)
    }

    /// Commits a resource policy, and has it pushed as a bundle.
    fn push(&self, version: &str, policy: &str) -> anyhow::Result<Finished> {
        let folder = self.folder.path().join("policies");
        std::fs::create_dir_all(folder.join("resource"))?;
        std::fs::write(
            folder.join("kata-cc-policy.yaml"),
            format!("format: 1\nname: shop\nversion: \"{version}\"\n"),
        )?;
        std::fs::write(folder.join("resource/policy.rego"), policy)?;
        let key = self.path("policy.key");
        let host = &self.registry.host;
        let folder = folder.display().to_string();
        let push = ["policy", "bundle", "push", &folder, &self.reference(), "--key", &key];
        self.kata_cc(&[&push, &["--insecure-registry", host][..]].concat())
    }

    /// Waits until `policy status` against the checkout has this exit code and these words.
    fn status(&self, code: i32, parts: &[&str]) -> anyhow::Result<()> {
        let folder = self.path("policies");
        let begun = Instant::now();
        loop {
            let told = self.kata_cc(&["policy", "status", &folder])?;
            let text = told.text();
            if told.code == code && parts.iter().all(|part| text.contains(part)) {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < Duration::from_secs(240),
                "expected exit code {code} and {parts:?}: {text}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The resource policy that the key broker decides by.
    fn runs(&self) -> anyhow::Result<String> {
        Ok(self.kata_cc(&["policy", "show", "resource"])?.ok()?.stdout)
    }
}

fn policy(comment: &str, decision: bool) -> String {
    format!("# {comment}\npackage policy\nimport rego.v1\ndefault allow := {decision}\n")
}

#[test]
fn a_key_broker_follows_its_bundle_keeps_the_last_good_one_and_goes_back() -> anyhow::Result<()> {
    let mut place = Place::start()?;
    place.push("1", &policy("the first", false))?.ok().context("bundle push")?;
    let config = place.kbs.dir.join("kbs.toml");
    follow(&config, &place)?;
    place.kbs.restart()?;
    place.status(0, &["in-force"])?;
    ensure!(place.runs()?.contains("the first"), "{}", place.runs()?);

    // What it names nobody else sets.
    let other = place.path("other.rego");
    std::fs::write(&other, policy("by hand", true))?;
    let refused = place.kata_cc(&["policy", "set", "resource", "--file", &other])?;
    ensure!(
        refused.code != 0 && refused.text().contains("is set by the policy bundle"),
        "set by hand: {}",
        refused.text()
    );

    // Drift: the checkout is ahead of the registry; then the key broker takes it.
    let checkout = place.folder.path().join("policies/resource/policy.rego");
    std::fs::write(&checkout, policy("the second", true))?;
    place.status(1, &["differs resource policy"])?;
    place.push("2", &policy("the second", true))?.ok()?;
    place.status(0, &["in-force"])?;
    ensure!(place.runs()?.contains("the second"), "{}", place.runs()?);

    // A bundle of another's key is not taken; the last good one stays, and the status says why.
    let stranger = place.path("stranger.key");
    let make = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &stranger];
    run(Command::new("openssl").args(make), 30)?.ok()?;
    std::fs::copy(&stranger, place.path("policy.key"))?;
    place.push("3", &policy("by a stranger", true))?.ok()?;
    place.status(1, &["condition failing", "sign", "differs resource policy"])?;
    ensure!(place.runs()?.contains("the second"), "{}", place.runs()?);

    // Back to the first, also over a restart, and on again.
    place.kata_cc(&["policy", "rollback"])?.ok().context("rollback")?;
    ensure!(place.runs()?.contains("the first"), "{}", place.runs()?);
    place.kbs.restart()?;
    ensure!(place.runs()?.contains("the first"), "after a restart: {}", place.runs()?);
    place.kata_cc(&["policy", "rollback", "--resume"])?.ok().context("resume")?;
    Ok(())
}

fn follow(config: &Path, place: &Place) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(config)?;
    let section = format!(
        "\n[policy_source]\nreference = {:?}\npublic_key = {:?}\npoll_seconds = 5\ninsecure_registries = [{:?}]\n",
        place.reference(),
        place.path("policy.pub"),
        place.registry.host
    );
    Ok(std::fs::write(config, text + &section)?)
}
