//! `node-cache`: a confidential pod (simulated SEV-SNP) whose image comes from the node's sealed copy, beside the same pod that pulls it: time
//! to the first output, bytes on the loopback (registry and key broker are there), and the monitor's memory. The image is that of `image`
//! as far as its first three layers: 250 MB packed, of Debian's packages. Runs alternate.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kata_cc_tests::pki::Pki;
use kata_cc_tests::process::run;
use kata_cc_tests::world::{self, Tampering, World};
use serde_json::{Value, json};

use crate::image::{cache, debian};
use crate::{Aim, compared};

const REPEATED: usize = 3;
/// Layers of the image of `image`.
const LAYERS: usize = 3;
/// Most of the time without the copy that is aimed at: a fifth.
const MOST_TIME: f64 = 0.2;
/// Most of the bytes: questions to the key broker, and none to the registry.
const MOST_BYTES: f64 = 0.01;
const WORD: &str = "first-output";

/// What one pod took.
struct Taken {
    seconds: f64,
    kib: f64,
    peak_mib: f64,
}

pub(crate) fn node_cache() -> anyhow::Result<()> {
    let material = world::material();
    world::prepare(&material)?;
    let dir = tempfile::Builder::new().prefix("kata-cc-bench").tempdir_in("/run")?;
    let world = World::start(&material, dir.path())?;
    let image = push(&world)?;
    let seal = dir.path().join("seal.json");
    let mut command = world.kata_cc(&Tampering::default())?;
    command.args(["image", "seal", &image, "--seal"]).arg(&seal);
    command.arg("--registry-ca").arg(Pki::at(&material).ca);
    run(&mut command, 600)?.ok().context("image seal")?;
    let without = Tampering { image: Some(image), ..Default::default() };
    let with = Tampering { seals: vec![seal], ..without.clone() };
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for round in 0..REPEATED {
        let peer = pod(&world, &format!("pulled-{round}"), &without)?;
        let our = pod(&world, &format!("copy-{round}"), &with)?;
        eprintln!(
            "round {round}: from the copy {:.1} s, {:.0} KiB, {:.0} MiB; pulled {:.1} s, {:.0} KiB, {:.0} MiB",
            our.seconds, our.kib, our.peak_mib, peer.seconds, peer.kib, peer.peak_mib
        );
        ours.push(our);
        peers.push(peer);
    }
    let row = |metric: &str, unit: &str, pick: fn(&Taken) -> f64, most: f64| -> Value {
        let [ours, peer] = [&ours, &peers].map(|taken| taken.iter().map(pick).collect::<Vec<_>>());
        compared(metric, unit, (&ours, &peer), "the same pod, which pulls its image", Aim::Ratio(most))
    };
    let rows = [
        row("pod to first output", "s", |taken| taken.seconds, MOST_TIME),
        row("bytes on the loopback", "KiB", |taken| taken.kib, MOST_BYTES),
        row("most memory of the monitor (PSS)", "MiB", |taken| taken.peak_mib, 1.0),
    ];
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}

/// Puts the image into the registry; gives its name, by its digest.
fn push(world: &World) -> anyhow::Result<String> {
    let whole = debian::layout(&cache()?)?;
    let blob = |digest: &str| whole.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let read = |path: &Path| -> anyhow::Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let digest_of = |value: &Value| value["digest"].as_str().unwrap_or_default().to_owned();
    let index = read(&whole.join("index.json"))?;
    let mut manifest = read(&blob(&digest_of(&index["manifests"][0])))?;
    let mut config = read(&blob(&digest_of(&manifest["config"])))?;
    for list in [&mut manifest["layers"], &mut config["rootfs"]["diff_ids"]] {
        list.as_array_mut().context("the image has layers")?.truncate(LAYERS);
    }
    if let Some(history) = config.as_object_mut() {
        history.remove("history");
    }
    // What the guest's own policy lets run: the image's program.
    config["config"] = json!({"Cmd": ["/bin/echo", WORD], "Env": ["PATH=/usr/bin:/bin"]});
    let layout = world.dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let from = blob(&digest_of(layer));
        std::os::unix::fs::symlink(&from, blobs.join(from.file_name().context("a blob has a name")?))?;
    }
    let put = |kind: &str, value: &Value| -> anyhow::Result<Value> {
        let bytes = value.to_string().into_bytes();
        let digest = kata_cc_tests::image::sha256(&bytes);
        std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), &bytes)?;
        Ok(json!({"mediaType": kind, "digest": digest, "size": bytes.len()}))
    };
    manifest["config"] = put("application/vnd.oci.image.config.v1+json", &config)?;
    let mut entry = put("application/vnd.oci.image.manifest.v1+json", &manifest)?;
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "t"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(layout.join("index.json"), index.to_string())?;
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--quiet", "--insecure-policy", &format!("oci:{}:t", layout.display())]);
    skopeo.arg(format!("docker://{}/bench:1", world.registry.host));
    skopeo.env("SSL_CERT_FILE", Pki::at(&world.material).ca);
    run(&mut skopeo, 600)?.ok().context("skopeo copy")?;
    Ok(format!("{}/bench@{}", world.registry.host, digest_of(&index["manifests"][0])))
}

fn pod(world: &World, name: &str, guest: &Tampering) -> anyhow::Result<Taken> {
    let mut command = world.run_command(name, guest, &[])?;
    let before = loopback_bytes()?;
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let ended = AtomicBool::new(false);
    let output = child.stdout.take().context("piped")?;
    let (seconds, peak_kib) = std::thread::scope(|scope| {
        let sampling = scope.spawn(|| peak_of_monitors(&ended));
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line);
        let seconds = start.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        let peak = sampling.join().unwrap_or_default();
        read.map(|_| (line.contains(WORD).then_some(seconds), peak))
    })?;
    let mut said = String::new();
    child.stderr.take().context("piped")?.read_to_string(&mut said)?;
    ensure!(child.wait()?.success(), "{name} failed:\n{said}");
    let seconds = seconds.with_context(|| format!("{name} did not say {WORD}"))?;
    Ok(Taken { seconds, kib: (loopback_bytes()? - before) / 1024.0, peak_mib: peak_kib / 1024.0 })
}

/// Bytes that the loopback has carried.
fn loopback_bytes() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/net/dev")?;
    let line =
        text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("there is no loopback")?;
    Ok(line.split_whitespace().next().context("no bytes")?.parse()?)
}

/// Most KiB (PSS) that the monitors had together.
fn peak_of_monitors(ended: &AtomicBool) -> f64 {
    let mut most = 0.0_f64;
    while !ended.load(Ordering::Relaxed) {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let monitors = entries.filter(|entry| {
            std::fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "kata-cc-vmm")
        });
        let pss = |path: PathBuf| -> Option<f64> {
            let text = std::fs::read_to_string(path.join("smaps_rollup")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
            line.trim().trim_end_matches("kB").trim().parse().ok()
        };
        most = most.max(monitors.filter_map(|entry| pss(entry.path())).sum());
        std::thread::sleep(Duration::from_millis(500));
    }
    most
}
