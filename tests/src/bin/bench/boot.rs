//! `boot`: from the monitor's exec to the guest's init, to the agent's API being served, with the same
//! kernel, root image and command line, one vCPU and 256 MiB; and the monitor's memory beyond the guest's. The peer is
//! `qemu-system-x86_64 -M microvm`. Both write the guest's console to a file in which the agent's two lines are
//! waited for. Runs alternate, so that a drift of the machine's speed hits both.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kata_cc_vmm_api::{BlockConfig, BootConfig, TeeConfig, VmConfig, VsockConfig};
use serde_json::Value;

use crate::{Aim, compared};

const REPEATED: usize = 10;
/// Longest wait for one start. Where other work took the processors, starts of 258 s were seen in the lab that ended well.
const PATIENCE: Duration = Duration::from_secs(600);
pub(crate) const MEMORY_MIB: u64 = 256;
/// More than a guest of these benchmarks touches.
const SWEPT_BYTES: usize = 256 << 20;
/// What the agent prints as soon as it runs, and when it serves its API.
const INIT_LINE: &str = "agent started";
const READY_LINE: &str = "agent ready";

/// One boot: seconds to init, seconds to ready, KiB of the monitor beyond guest memory.
pub(crate) struct Boot {
    pub(crate) init: f64,
    pub(crate) ready: f64,
    overhead_kib: f64,
}

pub(crate) fn boot() -> anyhow::Result<()> {
    let _ = Command::new("modprobe").arg("vhost_vsock").stdout(Stdio::null()).status();
    let dir = tempfile::Builder::new().prefix("kata-cc-bench").tempdir_in("/run")?;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for round in 0..=REPEATED {
        let (our, peer) = (boot_ours(dir.path(), &Guest::PLAIN)?, boot_qemu(dir.path())?);
        eprintln!("round {round}: ours {:.3} s, peer {:.3} s to init", our.init, peer.init);
        // the first warms the page cache
        if round > 0 {
            ours.push(our);
            peers.push(peer);
        }
    }
    let version = Command::new("qemu-system-x86_64").arg("--version").output()?;
    let version = String::from_utf8_lossy(&version.stdout);
    let peer_name = format!("{} -M microvm", version.lines().next().unwrap_or("QEMU"));
    let row = |metric: &str, unit: &str, pick: fn(&Boot) -> f64, most: f64| -> Value {
        let [ours, peer] = [&ours, &peers].map(|boots| boots.iter().map(pick).collect::<Vec<_>>());
        compared(metric, unit, (&ours, &peer), &peer_name, Aim::Ratio(most))
    };
    let rows = [
        row("exec to guest init", "s", |boot| boot.init, 1.0),
        row("exec to agent ready", "s", |boot| boot.ready, 1.0),
        row("monitor memory beyond guest RAM", "KiB", |boot| boot.overhead_kib, 0.5),
    ];
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}

/// What is booted, and how.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// Tier whose command line it has.
    pub(crate) tier: &'static str,
    /// File of the guest image.
    pub(crate) kernel: &'static str,
    /// Whether it starts by stage0.
    pub(crate) firmware: bool,
    pub(crate) tee: TeeConfig,
    pub(crate) memory_mib: u64,
}

impl Guest {
    /// A plain microVM that enters its kernel directly.
    pub(crate) const PLAIN: Self =
        Self { tier: "vm", kernel: "vmlinux", firmware: false, tee: TeeConfig::None, memory_mib: MEMORY_MIB };
}

fn root_image() -> PathBuf {
    kata_cc_tests::share().join("root.erofs")
}

/// The command line of a tier, with the root on the only disk; verified where the tier is confidential.
fn command_line(tier: &str) -> anyhow::Result<String> {
    let seal = if tier == "vm" { None } else { Some(kata_cc_tests::root_seal(&kata_cc_tests::share())?) };
    let root = kata_cc_vmm_api::root_words("/dev/vda", seal.as_ref());
    Ok(format!("{} {root}", kata_cc_vmm_api::command_line(tier)))
}

/// Boots one of ours in a folder that it has to itself.
pub(crate) fn boot_ours(dir: &Path, guest: &Guest) -> anyhow::Result<Boot> {
    let console = dir.join("console-ours");
    let config = VmConfig {
        id: "bench".into(),
        vcpus: 1,
        memory_mib: guest.memory_mib,
        boot: BootConfig {
            kernel: kata_cc_tests::share().join(guest.kernel),
            initramfs: None,
            cmdline: command_line(guest.tier)?,
            firmware: guest.firmware.then(|| kata_cc_tests::share().join("stage0")),
            // as a node has it: files are hashed at the first start, which is not counted
            digest_cache: guest.firmware.then(|| dir.join("digests")),
        },
        tee: guest.tee.clone(),
        console: Some(console.clone()),
        control_socket: dir.join("control"),
        block: vec![BlockConfig { id: "root".into(), path: Some(root_image()), read_only: true }],
        net: Vec::new(),
        vsock: Some(VsockConfig { cid: 3, uds: dir.join("vsock") }),
        rng: true,
    };
    let path = dir.join("vmm.json");
    std::fs::write(&path, serde_json::to_vec(&config)?)?;
    let mut command = Command::new(kata_cc_tests::binaries().join("kata-cc-vmm"));
    command.arg("--config").arg(&path);
    measure(&mut command, &console, dir)
}

fn boot_qemu(dir: &Path) -> anyhow::Result<Boot> {
    let console = dir.join("console-qemu");
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-M",
        "microvm,acpi=off,isa-serial=on",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-smp",
        "1",
        "-m",
    ]);
    command.arg(MEMORY_MIB.to_string()).args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command.arg("-kernel").arg(kata_cc_tests::share().join("vmlinux"));
    command.arg("-append").arg(command_line("vm")?);
    let drive = format!("id=root,if=none,format=raw,readonly=on,file={}", root_image().display());
    command.args(["-drive", &drive, "-device", "virtio-blk-device,drive=root"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.args(["-device", "virtio-rng-device"]);
    if Path::new("/dev/vhost-vsock").exists() {
        command.args(["-device", "vhost-vsock-device,guest-cid=3"]);
    }
    measure(&mut command, &console, dir)
}

/// Writes over memory that the last guest has left.
///
/// Where an emulator runs the machine, a page that held a guest's code is slow to write to until the code that was translated from it is
/// forgotten. Without this a start pays for what ran before it: a second or more of two, by the memory that it happens to be given
/// (same exits, same page faults), which no figure of this bench is about.
fn sweep() {
    drop(std::hint::black_box(vec![1_u8; SWEPT_BYTES]));
}

/// Start, wait for both lines on the console, read the memory, end it.
pub(crate) fn measure(command: &mut Command, console: &Path, dir: &Path) -> anyhow::Result<Boot> {
    let _ = std::fs::remove_file(console);
    let log: PathBuf = dir.join("monitor.log");
    let errors = std::fs::File::create(&log)?;
    sweep();
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn()?;
    let mut init = None;
    let result = loop {
        let text = std::fs::read(console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        if init.is_none() && text.contains(INIT_LINE) {
            init = Some(start.elapsed().as_secs_f64());
        }
        if text.contains(READY_LINE) {
            let ready = start.elapsed().as_secs_f64();
            let overhead_kib = memory_beyond_guest(child.id());
            break overhead_kib.map(|overhead_kib| Boot { init: init.unwrap_or(ready), ready, overhead_kib });
        }
        if let Some(status) = child.try_wait()? {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("{command:?} ended with {status} before the agent was ready:\n{log}\n{text}");
        }
        if start.elapsed() > PATIENCE {
            break Err(anyhow::anyhow!("the agent was not ready after {PATIENCE:?}:\n{text}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let _ = child.kill();
    let _ = child.wait();
    for left in ["control", "vsock"] {
        let _ = std::fs::remove_file(dir.join(left));
    }
    result
}

/// Resident KiB of a process outside the one mapping that is the guest's memory (the largest).
fn memory_beyond_guest(pid: u32) -> anyhow::Result<f64> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).context("cannot read smaps")?;
    let field = |line: &str, name: &str| -> Option<f64> {
        line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let (mut total, mut size) = (0.0, 0.0);
    for line in smaps.lines() {
        if let Some(kib) = field(line, "Size:") {
            size = kib;
        } else if let Some(kib) = field(line, "Rss:")
            && size < (MEMORY_MIB * 1024) as f64 * 0.9
        {
            total += kib;
        }
    }
    Ok(total)
}
