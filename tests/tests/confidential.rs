//! The confidential path, end to end, with the real programs: an encrypted image runs after attestation, and in no
//! other case; while it runs, neither its key nor its plaintext is anywhere on the host.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kata_cc_tests::containerd::{self, CONFIDENTIAL, Containerd};
use kata_cc_tests::image::MARKER;
use kata_cc_tests::pki::Pki;
use kata_cc_tests::search::{self, Patterns};
use kata_cc_tests::traces::Traces;
use kata_cc_tests::world::{Tampering, World, material};
use kata_cc_tests::{machines_run_here, refusals};

/// Keys and certificates are slow to make where the tests run: `./x test` makes them before.
/// What a guest's program is in the tests that search the host while it runs.
const READING: [&str; 3] = ["sh", "-c", "sha256sum /secret.txt; echo reading-done; exec sleep 600"];

/// The guest's default policy, and [`READING`] beside the image's own program.
fn reading_policy() -> String {
    let own = include_str!("../../agent/policy/default.rego");
    format!("{own}\nprograms contains {READING:?}\n")
}

fn world(name: &str, agent_policy: Option<&str>) -> anyhow::Result<World> {
    World::of_test_with(name, agent_policy, "sim-snp")
}

fn nothing_is_left(world: &World, before: &Traces) {
    let left = before.left_after_a_minute(&world.dir);
    assert!(left.is_empty(), "left behind: {left:#?}");
}

#[test]
fn the_encrypted_image_runs_after_attestation_and_in_no_other_case() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    let mut world = world("refusals", None)?;
    let before = Traces::take(&world.dir);
    let good = world.run("attested", &Tampering::default(), &[])?;
    ensure!(good.code == 0 && good.stdout.contains(MARKER), "the attested run failed:\n{}", good.text());
    let explained = world.kata_cc(&Tampering::default())?.args(["explain", "attested"]).output()?;
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    for stage in ["sim-snp", "measured", "attested", "key-released", "pulled", "container-started"] {
        assert!(explained.contains(stage), "explain does not tell {stage}:\n{explained}");
    }
    let mut failures = Vec::new();
    for (number, case) in refusals::cases().iter().enumerate() {
        let outcome = case.run(&mut world, &format!("refused-{number}"))?;
        println!("{}: {}", case.name, outcome.reason);
        if !outcome.as_expected {
            failures
                .push(format!("{}: expected one of {:?}, seen:\n{}", case.name, case.expected, outcome.text));
        }
        nothing_is_left(&world, &before);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    // and after all of it, the run that works still does
    let again = world.run("again", &Tampering::default(), &[])?;
    ensure!(again.code == 0, "the last run failed:\n{}", again.text());
    std::fs::remove_dir_all(&world.dir)?;
    Ok(())
}

/// The same under simulated TDX: MRTD and registers are foretold, a quote opens the key, and what was changed opens none.
#[test]
fn the_encrypted_image_runs_under_simulated_tdx() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    let world = World::of_test_with("tdx", None, "sim-tdx")?;
    let before = Traces::take(&world.dir);
    let good = world.run("attested", &Tampering::default(), &[])?;
    ensure!(good.code == 0 && good.stdout.contains(MARKER), "the attested run failed:\n{}", good.text());
    let explained = world.kata_cc(&Tampering::default())?.args(["explain", "attested"]).output()?;
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    for stage in ["sim-tdx is a simulated TEE", "measured", "attested", "key-released", "container-started"] {
        assert!(explained.contains(stage), "explain does not tell {stage}:\n{explained}");
    }
    for (name, tampering, part) in [
        (
            "cmdline",
            Tampering { cmdline: Some("more=words".into()), ..Default::default() },
            "is not among the reference values sim_mr_td",
        ),
        ("root", Tampering { platform: Some(material().join("other-sim")), ..Default::default() }, "root"),
    ] {
        let refused = world.run(name, &tampering, &[])?;
        ensure!(refused.code != 0 && !refused.stdout.contains(MARKER), "{name} ran:\n{}", refused.text());
        ensure!(refused.text().contains(part), "{name}: expected {part:?}, seen:\n{}", refused.text());
    }
    nothing_is_left(&world, &before);
    std::fs::remove_dir_all(&world.dir)?;
    Ok(())
}

/// What a search found outside of the guest, and in its RAM.
struct Search {
    outside: Vec<String>,
    inside: Vec<String>,
}

impl Search {
    fn judge(&self) {
        assert!(self.outside.is_empty(), "found outside of the guest: {:#?}", self.outside);
        let seen = self.inside.iter().any(|place| place.contains("marker"));
        assert!(seen, "the search finds nothing even in the guest's RAM: it proves nothing");
    }
}

/// Every file of this world, of the node and of containerd; the memory of the monitor outside of the guest's RAM, and of
/// `processes`.
fn search_the_host(
    world: &World,
    patterns: &Patterns,
    processes: &[u32],
    folders: &[&Path],
) -> anyhow::Result<Search> {
    let (mut outside, mut inside) = (Vec::new(), Vec::new());
    let monitors = search::processes("kata-cc-vmm");
    ensure!(monitors.len() == 1, "monitors: {monitors:?}");
    let mut searched = patterns.in_process(monitors[0], true, &mut outside)?;
    for pid in processes {
        searched += patterns.in_process(*pid, false, &mut outside)?;
    }
    // The user's own copy of the key; what the image was made of lies outside of these folders.
    let own = [world.key_file()];
    let node = [world.dir.as_path(), "/var/lib/kata-cc".as_ref(), "/var/lib/containerd".as_ref()];
    for dir in node.into_iter().chain(folders.iter().copied()) {
        searched += patterns.in_files(dir, &own, &mut outside);
    }
    println!("searched {} MiB of files and memory", searched >> 20);
    patterns.in_process(monitors[0], false, &mut inside)?;
    Ok(Search { outside, inside })
}

/// What a node that pulls images itself would hold: the encrypted layers.
fn fetch_into_the_content_store(containerd: &Containerd, world: &World) -> anyhow::Result<()> {
    let hosts = containerd.folder().join("hosts");
    let host = &world.registry.host;
    std::fs::create_dir_all(hosts.join(host))?;
    // Without it `localhost` would mean plain HTTP.
    let ca = Pki::at(&material()).ca;
    let text = format!("[host.\"https://{host}\"]\nca = \"{}\"\n", ca.display());
    std::fs::write(hosts.join(host).join("hosts.toml"), text)?;
    containerd.ctr(&["content", "fetch", "--hosts-dir", &hosts.to_string_lossy(), &world.image])?.ok()?;
    Ok(())
}

/// The encrypted image through containerd: it holds the encrypted layers in its content store, the guest pulls and decrypts
/// them itself.
#[test]
fn containerd_runs_the_encrypted_image_and_learns_nothing() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    let world = world("containerd", Some(&reading_policy()))?;
    let patterns = Patterns::new(MARKER, &std::fs::read(world.key_file())?);
    let containerd = Containerd::start_empty(&world.config(&Tampering::default()))?;
    fetch_into_the_content_store(&containerd, &world)?;
    let before = Traces::take(containerd.folder());
    let empty = containerd.folder().join("empty");
    std::fs::create_dir(&empty)?;
    let (image, empty) = (format!("dev.kata-cc.image={}", world.image), empty.to_string_lossy());
    let detach = ["run", "--detach", "--runtime", CONFIDENTIAL, "--rootfs", "--annotation"];
    let words = [&detach[..], &[&image, &empty, "secret"], &READING].concat();
    let started = containerd.ctr(&words)?;
    ensure!(started.code == 0, "{}\n{}", started.text(), containerd.log());
    let start = Instant::now();
    while !containerd.log().contains("reading-done") {
        ensure!(start.elapsed() < Duration::from_secs(240), "no output:\n{}", containerd.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    let stages = containerd.stages("secret");
    for stage in ["measured", "attested", "key-released", "pulled", "container-started"] {
        assert!(stages.iter().any(|seen| seen == stage), "{stage} is not in {stages:?}");
    }
    let processes = [containerd.shim_pid("secret")?, containerd.pid()];
    let outcome = search_the_host(&world, &patterns, &processes, &[containerd.folder()])?;
    containerd.remove("secret")?;
    outcome.judge();
    containerd::nothing_left(&containerd, &before);
    std::fs::remove_dir_all(&world.dir)?;
    Ok(())
}

#[test]
fn neither_key_nor_plaintext_is_on_the_host_while_the_container_runs() -> anyhow::Result<()> {
    if !machines_run_here() {
        return Ok(());
    }
    let world = world("search", Some(&reading_policy()))?;
    let before = Traces::take(&world.dir);
    let key = std::fs::read(world.key_file())?;
    let patterns = Patterns::new(MARKER, &key);
    let mut command = world.run_command("searched", &Tampering::default(), &READING)?;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let log = world.state_dir().join("sandboxes/searched/log.jsonl");
    let start = Instant::now();
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    while !read().contains("reading-done") {
        ensure!(child.try_wait()?.is_none(), "the container did not run:\n{}", read());
        ensure!(start.elapsed() < Duration::from_secs(240), "the container did not start:\n{}", read());
        std::thread::sleep(Duration::from_millis(200));
    }

    let outcome = search_the_host(&world, &patterns, &[child.id()], &[])?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    let start = Instant::now();
    while child.try_wait().context("kata-cc run")?.is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    outcome.judge();
    nothing_is_left(&world, &before);
    std::fs::remove_dir_all(&world.dir)?;
    Ok(())
}
