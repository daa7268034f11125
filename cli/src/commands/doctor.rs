//! `kata-cc doctor`: what this machine can do, why, and what to change.
//!
//! It looks, and starts nothing but the VMM's probes (a tiny guest with a time limit, and questions to KVM) and `true` on the sentry. Exit code 0 when at
//! least one tier can run.

mod tee;

use std::path::{Path, PathBuf};
use std::process::Command;

use kata_cc_sandbox::config::{ConfigError, Simulated};
use kata_cc_sandbox::tier::Availability;
use kata_cc_sandbox::{NodeConfig, RootImage};
use serde::Serialize;

use crate::output::{Output, Tone};

/// One finding.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was looked at.
    check: &'static str,
    /// `ok`, `warning` or `missing`.
    state: State,
    /// What was seen.
    seen: String,
    /// What to do about it; empty when all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warning,
    Missing,
}

/// Which tiers can run, and all findings.
#[derive(Debug, Serialize)]
struct Report {
    /// Tiers that can run here.
    tiers: Vec<&'static str>,
    findings: Vec<Finding>,
}

/// Print the report.
pub(crate) fn doctor(output: &Output) -> anyhow::Result<u8> {
    let report = report();
    if output.json {
        output.document(&report)?;
    } else {
        for finding in &report.findings {
            let (tone, mark) = match finding.state {
                State::Ok => (Tone::Good, "ok     "),
                State::Warning => (Tone::Doubtful, "warning"),
                State::Missing => (Tone::Bad, "missing"),
            };
            let mark = output.paint(tone, mark);
            output.text(&format!("{mark} {:<22} {}\n", finding.check, finding.seen))?;
            if !finding.advice.is_empty() {
                output.text(&format!("{:31}{}\n", "", output.paint(Tone::Quiet, &finding.advice)))?;
            }
        }
        let tiers = if report.tiers.is_empty() { "none".into() } else { report.tiers.join(", ") };
        output.text(&format!("tiers that can run here: {tiers}\n"))?;
    }
    Ok(u8::from(report.tiers.is_empty()))
}

fn report() -> Report {
    // With the same file and the same rules as a start: what is said here is what a pod will see.
    let (config, configuration) = configuration(NodeConfig::load());
    let kvm = kvm(&config);
    let (image, root) = (guest_image(), root_image(&config));
    let simulated = simulated_tee(&config);
    let machines = [&configuration, &kvm, &image, &root].iter().all(|finding| finding.state == State::Ok);
    let mut tiers = Vec::new();
    if machines {
        tiers.push("vm");
        if let (State::Ok, Some(tee)) = (&simulated.state, config.tee.simulated) {
            tiers.push(tee.tier().name());
        }
    }
    let sentry = sentry(&config);
    if configuration.state == State::Ok && sentry.state == State::Ok {
        tiers.push("sentry");
    }
    let mut findings = vec![processor(), configuration, kvm];
    findings.extend(hardware_tee(&config));
    findings.extend([simulated, image, root, sentry, cgroups(), tun(), erofs(), containerd()]);
    Report { tiers, findings }
}

fn found(check: &'static str, seen: impl Into<String>) -> Finding {
    Finding { check, state: State::Ok, seen: seen.into(), advice: String::new() }
}

fn lacking(check: &'static str, state: State, seen: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { check, state, seen: seen.into(), advice: advice.into() }
}

/// The node's configuration; without one that can be read nothing starts, and the rest is told by the defaults.
fn configuration(loaded: Result<NodeConfig, ConfigError>) -> (NodeConfig, Finding) {
    const CHECK: &str = "node configuration";
    let file = kata_cc_sandbox::paths::config_file();
    match loaded {
        Ok(config) if file.exists() => (config, found(CHECK, file.display().to_string())),
        Ok(config) => (config, found(CHECK, format!("there is no {}: the defaults", file.display()))),
        Err(error) => {
            let advice =
                "correct the file, or name another by KATA_CC_CONFIG: no sandbox starts with this one";
            (NodeConfig::default(), lacking(CHECK, State::Missing, error.to_string(), advice))
        }
    }
}

fn processor() -> Finding {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    found("processor", model.trim_start_matches([' ', '\t', ':']))
}

/// Run the VMM's probe: `/dev/kvm` being there does not mean that it runs an unmodified kernel.
fn kvm(config: &NodeConfig) -> Finding {
    const CHECK: &str = "KVM";
    if !Path::new("/dev/kvm").exists() {
        let advice =
            "load kvm_amd or kvm_intel, or enable virtualisation in the firmware; ./x uses the lab instead";
        return lacking(CHECK, State::Missing, "there is no /dev/kvm", advice);
    }
    let vmm = config.vmm();
    let Ok(probe) = Command::new(&vmm).arg("--probe").output() else {
        return lacking(
            CHECK,
            State::Missing,
            format!("{} cannot be started", vmm.display()),
            "install kata-cc-vmm",
        );
    };
    let answer: serde_json::Value = serde_json::from_slice(&probe.stdout).unwrap_or_default();
    let reason = answer["reason"].as_str().unwrap_or("the probe gave no reason").to_owned();
    if answer["usable"] == true {
        return found(CHECK, reason);
    }
    lacking(
        CHECK,
        State::Missing,
        reason,
        "this machine's KVM cannot run an unmodified kernel: use another, or the lab (tests/lab)",
    )
}

/// SEV-SNP and TDX. Pods do not start under them yet: what is found here starts no tier.
fn hardware_tee(config: &NodeConfig) -> Vec<Finding> {
    let root = PathBuf::from("/");
    let probe = Command::new(config.vmm()).arg("--probe-tee").output();
    let probe = probe.ok().and_then(|probe| serde_json::from_slice(&probe.stdout).ok());
    let cpuid = |leaf| {
        let answer = std::arch::x86_64::__cpuid(leaf);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    };
    let msr = |register| tee::read_msr(&root, register);
    let host = tee::Host { root: root.clone(), cpuid: &cpuid, msr: &msr, probe: probe.unwrap_or_default() };
    host.findings()
}

/// By the rule of a start: the configuration must name the simulated TEE, and its platform must be there.
fn simulated_tee(config: &NodeConfig) -> Finding {
    const CHECK: &str = "simulated TEE";
    let ability = config.ability();
    let (dir, available) = match config.tee.simulated {
        Some(Simulated::SimTdx) => (config.sim_tdx_platform(), ability.sim_tdx),
        Some(Simulated::SimSnp) | None => (config.sim_platform(), ability.sim_snp),
    };
    match available {
        Availability::Available => {
            found(CHECK, format!("throw-away platform in {} (protects nothing)", dir.display()))
        }
        Availability::Missing(reason) => {
            let advice = if config.tee.simulated.is_none() {
                "[tee] simulated = \"sim-snp\" (or \"sim-tdx\") names it, for trying things out; never on a node with real secrets"
            } else {
                "kata-cc measure --create-sim-platform makes one, for trying things out"
            };
            lacking(CHECK, State::Warning, reason, advice)
        }
    }
}

/// Run a program on the sentry: it needs no device, but a host may forbid a step of its defence, which it then names.
fn sentry(config: &NodeConfig) -> Finding {
    const CHECK: &str = "sentry";
    if let Availability::Missing(reason) = config.ability().sentry {
        return lacking(
            CHECK,
            State::Missing,
            reason,
            "install kata-cc-sentry, or name it by `sentry` in the node's configuration",
        );
    }
    let program = config.sentry();
    let mut command = Command::new(&program);
    command.args(["do", "--read-only", "--", "/bin/true"]).stdin(std::process::Stdio::null());
    let (seen, advice) = match command.output() {
        Ok(output) if output.status.success() => {
            let others = platforms(&program).map(|told| format!("; {told}")).unwrap_or_default();
            return found(CHECK, format!("{} runs programs (systrap){others}", program.display()));
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            (
                format!("{}: {}", output.status, crate::output::printable(last)),
                "the message names the step that this host forbids, and what to change",
            )
        }
        Err(error) => (format!("{}: {error}", program.display()), "install kata-cc-sentry of this release"),
    };
    lacking(CHECK, State::Missing, seen, advice)
}

/// What the sentry says of its platforms other than the default one, each of which it tries.
fn platforms(program: &Path) -> Option<String> {
    let output = Command::new(program)
        .args(["platforms", "--json"])
        .stdin(std::process::Stdio::null())
        .output()
        .ok()?;
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).ok()?;
    let tell = |row: &serde_json::Value| {
        let name = row["name"].as_str()?;
        match row["reason"].as_str() {
            _ if name == "systrap" => None,
            None => Some(format!("{} runs, too", crate::output::printable(name))),
            Some(why) => {
                Some(format!("not {}: {}", crate::output::printable(name), crate::output::printable(why)))
            }
        }
    };
    let told: Vec<_> = rows.iter().filter_map(tell).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

fn guest_image() -> Finding {
    const CHECK: &str = "guest image";
    let dir = kata_cc_sandbox::paths::share_dir();
    let manifest = dir.join("manifest.json");
    let Ok(text) = std::fs::read(&manifest) else {
        return lacking(
            CHECK,
            State::Missing,
            format!("{} cannot be read", manifest.display()),
            "./x image builds the guest image; KATA_CC_SHARE_DIR names its folder",
        );
    };
    let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    for part in ["kernel", "tee_kernel", "root", "root_seal", "stage0"] {
        let file = dir.join(manifest[part]["file"].as_str().unwrap_or(part));
        let digest = std::fs::read(&file).map(|bytes| sha256(&bytes)).unwrap_or_default();
        if Some(digest.as_str()) != manifest[part]["sha256"].as_str() {
            return lacking(
                CHECK,
                State::Missing,
                format!("{} is not what manifest.json names", file.display()),
                "build the guest image again: ./x image",
            );
        }
    }
    found(CHECK, format!("{} (matches its manifest)", dir.display()))
}

/// What this node's guests start from, held to its seal: the configuration may name another than the guest image's.
fn root_image(config: &NodeConfig) -> Finding {
    const CHECK: &str = "root image";
    let verified = RootImage::of(config).and_then(|root| match root {
        Some(root) => root.verify().map(|()| Some(root)),
        None => Ok(None),
    });
    match (verified, &config.initramfs) {
        (Ok(Some(root)), _) => {
            found(CHECK, format!("{} (root hash {})", root.image.display(), root.seal.root_hash))
        }
        (Ok(None), Some(initramfs)) if initramfs.is_file() => {
            found(CHECK, format!("none: the initramfs {}", initramfs.display()))
        }
        (Ok(None), initramfs) => {
            let named = initramfs.as_deref().unwrap_or(Path::new("")).display();
            lacking(CHECK, State::Missing, format!("there is no initramfs {named}"), NAMED)
        }
        (Err(error), _) => lacking(CHECK, State::Missing, error.to_string(), NAMED),
    }
}

const NAMED: &str =
    "correct `root` or `initramfs` in the node's configuration, or build the guest image again: ./x image";

fn sha256(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

fn cgroups() -> Finding {
    const CHECK: &str = "cgroup v2";
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return found(CHECK, "mounted on /sys/fs/cgroup");
    }
    lacking(
        CHECK,
        State::Warning,
        "not mounted on /sys/fs/cgroup",
        "boot with systemd.unified_cgroup_hierarchy=1; without it the host cannot bound the VMM",
    )
}

fn tun() -> Finding {
    if Path::new("/dev/net/tun").exists() {
        return found("tap devices", "/dev/net/tun");
    }
    lacking(
        "tap devices",
        State::Warning,
        "there is no /dev/net/tun",
        "modprobe tun; without it containers have no network of the pod",
    )
}

fn erofs() -> Finding {
    match find("mkfs.erofs") {
        Some(path) => found("mkfs.erofs", path.display().to_string()),
        None => lacking(
            "mkfs.erofs",
            State::Warning,
            "not found",
            "install erofs-utils: plain microVMs get their root file system by it",
        ),
    }
}

fn containerd() -> Finding {
    let version = Command::new("containerd").arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    match version {
        Ok(version) if !version.is_empty() => found("containerd", version),
        _ => lacking(
            "containerd",
            State::Warning,
            "not found",
            "kata-cc run works without it; Kubernetes does not",
        ),
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NodeConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        NodeConfig::read(&file)
    }

    #[test]
    fn the_simulated_tee_is_looked_for_where_the_configuration_says_and_only_if_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let platform = format!("[tee]\nplatform = {:?}\n", dir.path());
        let named = format!("{platform}simulated = \"sim-snp\"\n");

        let finding = simulated_tee(&read(&named).unwrap());
        assert_eq!(finding.state, State::Warning);
        assert!(finding.seen.contains(&dir.path().display().to_string()), "{finding:?}");
        assert!(finding.advice.contains("--create-sim-platform"), "{finding:?}");

        std::fs::write(dir.path().join("ark.pem"), "").unwrap();
        assert_eq!(simulated_tee(&read(&named).unwrap()).state, State::Ok);

        let finding = simulated_tee(&read(&platform).unwrap());
        assert_eq!(finding.state, State::Warning, "a platform alone starts nothing");
        assert!(finding.advice.contains("[tee] simulated"), "{finding:?}");
    }

    #[test]
    fn the_root_image_that_the_configuration_names_is_held_to_its_seal() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("own.erofs");
        let named = || root_image(&read(&format!("root = {image:?}\n")).unwrap());
        assert!(named().seen.contains("own.json"), "{:?}", named());
        let blocks = vec![7; 3 * 4096];
        let tree = kata_cc_sealed_image::verity::tree_of(&blocks);
        let seal = serde_json::json!({"data_blocks": 3, "root_hash": hex::encode(tree.root)});
        std::fs::write(dir.path().join("own.json"), seal.to_string()).unwrap();
        let mut whole = [blocks, tree.blocks.concat()].concat();
        std::fs::write(&image, &whole).unwrap();
        assert_eq!(named().state, State::Ok, "{:?}", named());
        whole[4100] ^= 1;
        std::fs::write(&image, &whole).unwrap();
        let finding = named();
        assert!(finding.state == State::Missing && finding.seen.contains("root hash"), "{finding:?}");

        let initramfs = dir.path().join("initramfs");
        let named = || root_image(&read(&format!("initramfs = {initramfs:?}\n")).unwrap());
        assert_eq!(named().state, State::Missing);
        std::fs::write(&initramfs, "x").unwrap();
        assert_eq!(named().state, State::Ok);
    }

    #[test]
    fn the_sentry_is_tried_and_its_reason_told() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("sentry");
        let finding = || sentry(&read(&format!("sentry = {program:?}\n")).unwrap());
        assert!(
            finding().state == State::Missing && finding().seen.contains("there is no"),
            "{:?}",
            finding()
        );
        let script = |text: &str| {
            std::fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        };
        script("echo one >&2; echo 'a step: EPERM' >&2; exit 125");
        assert!(
            finding().state == State::Missing && finding().seen.ends_with("a step: EPERM"),
            "{:?}",
            finding()
        );
        script("test \"$1 $2 $3 $4\" = 'do --read-only -- /bin/true'");
        assert_eq!(finding().state, State::Ok, "{:?}", finding());
        assert!(finding().seen.ends_with("(systrap)"), "{:?}", finding());
        script(
            "test $1 = do || echo '[{\"name\":\"systrap\",\"available\":true,\"reason\":null},\
             {\"name\":\"ptrace\",\"available\":true,\"reason\":null},\
             {\"name\":\"kvm\",\"available\":false,\"reason\":\"there is none\"}]'",
        );
        assert!(
            finding().seen.ends_with("(systrap); ptrace runs, too; not kvm: there is none"),
            "{:?}",
            finding()
        );
    }

    #[test]
    fn a_configuration_that_is_refused_is_told_by_its_error() {
        let (_, finding) = configuration(read("[tee]\nsimulatd = \"sim-snp\"\n"));
        assert_eq!(finding.state, State::Missing);
        assert!(finding.seen.contains("simulatd"), "{finding:?}");
    }
}
