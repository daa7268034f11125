//! `./x bench NAME`: each benchmark is a program of `kata-cc-tests` that measures ours and a peer in the same
//! run, on the host where virtual machines can run. It prints JSON rows; the table and the file
//! `target/bench/NAME.json` are made here.

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::shell::{command, output, run, step};
use crate::{binaries, guest_image, lab, paths, tiers};

/// Name, what it measures, whether it needs a virtual machine.
const BENCHMARKS: &[(&str, &str, bool)] = &[
    ("boot", "VMM exec to guest init and agent ready, memory beyond guest RAM; peer: QEMU microvm", true),
    (
        "confidential-boot",
        "the same by stage0, plain and simulated SEV-SNP, and what is measured; peers: the kernel entered directly, OVMF",
        true,
    ),
    (
        "image",
        "an image of 500 MB from a registry to a root folder, and the memory for it; peer: skopeo copy and umoci unpack",
        false,
    ),
    (
        "kbs",
        "handshakes and resources a second on one core, latency, memory; peer: the bare signatures",
        false,
    ),
    (
        "node-cache",
        "a confidential pod with the node's sealed copy of its image: time to first output, bytes, memory; peer: the pod that pulls",
        true,
    ),
    (
        "tiers",
        "runc, runsc (systrap, ptrace) and the sentry, interleaved, some 40 figures; --list, --quick, --metrics, --runtimes, --rounds",
        false,
    ),
    ("snp", "verification of one SEV-SNP report; peer: the bare signature checks that it needs", false),
];

/// One measured figure.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// What was measured.
    metric: String,
    /// Unit of `ours` and `peer`.
    unit: String,
    /// Median of ours.
    ours: f64,
    /// Smallest of ours.
    ours_min: f64,
    /// Median of the peer; none when there is nothing to compare with.
    peer: Option<f64>,
    /// Smallest of the peer.
    peer_min: Option<f64>,
    /// Who the peer is, with its version.
    peer_name: String,
    /// `ours / peer` of the medians.
    ratio: Option<f64>,
    /// What is aimed at, in words (`ratio <= 1.0`).
    target: String,
    /// Whether the target was met.
    met: bool,
    /// How often each was measured.
    repeated: u32,
}

/// Run one benchmark, or list them.
pub(crate) fn bench(name: Option<&str>, options: &[String]) -> anyhow::Result<()> {
    let Some(name) = name else {
        for (name, what, _) in BENCHMARKS {
            println!("{name:<18} {what}");
        }
        return Ok(());
    };
    let Some((_, _, needs_machine)) = BENCHMARKS.iter().find(|(known, _, _)| *known == name) else {
        bail!("there is no benchmark {name:?}: `./x bench` lists them");
    };
    if name == "tiers" {
        return tiers::bench(options);
    }
    ensure!(options.is_empty(), "benchmark {name} has no options");
    binaries::build()?;
    let host = if *needs_machine {
        guest_image::build()?;
        lab::choose()?
    } else {
        lab::Host::Native
    };
    if name == "confidential-boot" {
        ovmf()?;
    }
    let program = paths::binaries().join("kata-cc-bench");
    if name == "node-cache" {
        // the lab has no packages
        run(command(&program, &["image-layout"]).env("KATA_CC_SHARE_DIR", paths::share()))?;
    }
    step(&format!("measuring {name}"));
    let printed = output(&mut host.command(&program, &[name], 45))?;
    let rows: Vec<Row> = serde_json::from_str(&printed).context("the benchmark printed no rows")?;
    print_table(&rows);
    let path = paths::root().join("target/bench").join(format!("{name}.json"));
    std::fs::create_dir_all(path.parent().expect("has a parent"))?;
    std::fs::write(&path, serde_json::to_vec_pretty(&rows)?)?;
    println!("written to {}", path.display());
    let missed: Vec<&str> = rows.iter().filter(|row| !row.met).map(|row| row.metric.as_str()).collect();
    ensure!(missed.is_empty(), "not met: {}", missed.join(", "));
    Ok(())
}

/// Debian's OVMF, a peer, in the cache; nothing is installed.
fn ovmf() -> anyhow::Result<()> {
    let folder = paths::cache().join("ovmf");
    if folder.join("usr/share/ovmf/OVMF.fd").is_file() {
        return Ok(());
    }
    step("fetching Debian's OVMF, a peer of this benchmark");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    run(command("apt-get", &["download", "ovmf"]).current_dir(&folder))?;
    run(command("sh", &["-c", "dpkg-deb -x ovmf_*.deb . && rm ovmf_*.deb"]).current_dir(&folder))
}

fn print_table(rows: &[Row]) {
    println!(
        "{:<34} {:>6} {:>12} {:>12} {:>7}  {:<16} met",
        "metric", "unit", "ours", "peer", "ratio", "target"
    );
    for row in rows {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        println!(
            "{:<34} {:>6} {:>12.3} {:>12} {:>7}  {:<16} {}",
            row.metric,
            row.unit,
            row.ours,
            number(row.peer),
            number(row.ratio),
            row.target,
            if row.met { "yes" } else { "NO" }
        );
    }
    if let Some(row) = rows.first() {
        println!("medians of {} runs; peer: {}", row.repeated, row.peer_name);
    }
}
