//! `image`: from a registry to a root folder, `kata-cc image unpack` beside `skopeo copy` and `umoci unpack`; time and the most memory that
//! a program took. The registry is Debian's, on the loopback, without TLS, for both; runs alternate. The image is made of Debian's
//! packages ([`debian`]), kept in the cache. All of it is in memory, where guests unpack their images too: on a disk, each run would wait for what the
//! one before it left to be written.

pub(crate) mod debian;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use kata_cc_tests::registry::{Registry, RegistryOptions};
use serde_json::{Value, json};

use crate::{Aim, compared};

const REPEATED: usize = 5;
/// Least bytes of the image, unpacked.
const LEAST_BYTES: u64 = 500_000_000;
/// Most of the peer's time that is aimed at: a third.
const MOST_TIME: f64 = 0.333;
/// Most memory that is aimed at, MiB.
const MOST_MIB: f64 = 64.0;

/// Bytes in memory for all that lies there at a time.
const ROOM: u64 = 4 << 30;

/// What one way took.
struct Taken {
    seconds: f64,
    /// The largest program's.
    peak_mib: f64,
}

pub(crate) fn image() -> anyhow::Result<()> {
    let cache = cache()?;
    let layout = debian::layout(&cache)?;
    let dir = tempfile::Builder::new().prefix("kata-cc-bench").tempdir_in(in_memory()?)?;
    let registry = Registry::start(&dir.path().join("registry"), &RegistryOptions::default())?;
    let source = format!("oci:{}:t", layout.display());
    let name = format!("{}/bench:1", registry.host);
    let copied = Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", &source])
        .arg(format!("docker://{name}"))
        .status()?;
    ensure!(copied.success(), "skopeo cannot copy the image to the registry");
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for round in 0..=REPEATED {
        let our = unpack_ours(dir.path(), &registry.host, &name)?;
        let peer = unpack_peers(dir.path(), &name)?;
        eprintln!(
            "round {round}: ours {:.2} s, {:.0} MiB; peer {:.2} s, {:.0} MiB",
            our.seconds, our.peak_mib, peer.seconds, peer.peak_mib
        );
        // the first warms the page cache
        if round > 0 {
            ours.push(our);
            peers.push(peer);
        }
    }
    let row = |metric: &str, unit: &str, pick: fn(&Taken) -> f64, aim: Aim| -> Value {
        let [ours, peer] = [&ours, &peers].map(|taken| taken.iter().map(pick).collect::<Vec<_>>());
        compared(metric, unit, (&ours, &peer), "skopeo copy + umoci unpack", aim)
    };
    let rows = [
        row("registry to root folder", "s", |taken| taken.seconds, Aim::Ratio(MOST_TIME)),
        row("most memory of a program", "MiB", |taken| taken.peak_mib, Aim::Most(MOST_MIB)),
    ];
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}

/// `kata-cc-bench image-layout`: makes the image where packages can be had, for benchmarks that run in the lab.
pub(crate) fn layout() -> anyhow::Result<()> {
    debian::layout(&cache()?).map(drop)
}

/// Where the image is kept.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    Ok(kata_cc_tests::share().parent().context("the share folder is in the cache")?.join("bench-image"))
}

/// A folder in memory with room for the registry, what skopeo copies, and one root folder.
fn in_memory() -> anyhow::Result<PathBuf> {
    let folder = PathBuf::from("/dev/shm");
    let system = nix::sys::statvfs::statvfs(&folder)?;
    let free = system.blocks_available() * system.fragment_size();
    ensure!(free >= ROOM, "{} has {} MiB free, {} are wanted", folder.display(), free >> 20, ROOM >> 20);
    Ok(folder)
}

fn unpack_ours(dir: &Path, host: &str, name: &str) -> anyhow::Result<Taken> {
    let root = dir.join("ours");
    let mut command = Command::new(kata_cc_tests::binaries().join("kata-cc"));
    command.args(["image", "unpack", "--insecure-registry", host, name]).arg(&root);
    let taken = measured(&command)?;
    ensure!(bytes_below(&root)? >= LEAST_BYTES, "the image is smaller than {LEAST_BYTES} bytes");
    std::fs::remove_dir_all(&root)?;
    Ok(taken)
}

fn unpack_peers(dir: &Path, name: &str) -> anyhow::Result<Taken> {
    let (layout, bundle) = (dir.join("layout"), dir.join("bundle"));
    let mut copy = Command::new("skopeo");
    copy.args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"]);
    copy.arg(format!("docker://{name}")).arg(format!("oci:{}:t", layout.display()));
    let mut unpack = Command::new("umoci");
    unpack.args(["unpack", "--image"]).arg(format!("{}:t", layout.display())).arg(&bundle);
    let (copy, unpack) = (measured(&copy)?, measured(&unpack)?);
    std::fs::remove_dir_all(&layout)?;
    std::fs::remove_dir_all(&bundle)?;
    Ok(Taken { seconds: copy.seconds + unpack.seconds, peak_mib: copy.peak_mib.max(unpack.peak_mib) })
}

/// Runs the command below a process of its own, whose children are that one alone.
fn measured(command: &Command) -> anyhow::Result<Taken> {
    let mut outer = Command::new(std::env::current_exe()?);
    outer.arg("peak").arg(command.get_program()).args(command.get_args());
    let output = outer.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{command:?} failed");
    let value: Value = serde_json::from_slice(&output.stdout).context("no figures")?;
    let number = |name: &str| value[name].as_f64().with_context(|| format!("no {name}"));
    Ok(Taken { seconds: number("seconds")?, peak_mib: number("peak_kib")? / 1024.0 })
}

/// `kata-cc-bench peak PROGRAM ARGUMENT...`: runs it and prints its time and the most memory that it took.
pub(crate) fn peak() -> anyhow::Result<()> {
    let mut words = std::env::args_os().skip(2);
    let program = words.next().context("peak needs a program")?;
    let start = Instant::now();
    let status = Command::new(program).args(words).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(status.success(), "{status}");
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
    println!("{}", json!({"seconds": seconds, "peak_kib": usage.max_rss()}));
    Ok(())
}

fn bytes_below(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.path().symlink_metadata()?;
        bytes += if data.is_dir() { bytes_below(&entry.path())? } else { data.len() };
    }
    Ok(bytes)
}
