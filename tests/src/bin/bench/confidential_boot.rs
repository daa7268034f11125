//! `confidential-boot`: what it costs to start by stage0. From the monitor's exec to the agent's API: entering the kernel directly;
//! by stage0 without a TEE; by stage0 under the simulated SEV-SNP, with the kernel of confidential guests, over that kernel entered
//! directly. The same root image, one vCPU, 256 MiB; runs alternate, so that a drift of the machine's speed hits all.
//!
//! Beside it what a security processor would have to measure, with its published cost as a line of its own: a model, since nothing
//! here has one. The peer of the bytes, and of the time to init where it can be started, is Debian's OVMF with QEMU.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use kata_cc_measurement::stage0::Stage0Launch;
use kata_cc_sim_tee::SimPlatform;
use kata_cc_stage0_abi::{BootBlock, KernelKind, PlatformKind, Sealed};
use kata_cc_vmm_api::TeeConfig;
use serde_json::{Value, json};

use crate::boot::{Boot, Guest, MEMORY_MIB, boot_ours, measure};
use crate::{Aim, compared};

const REPEATED: usize = 6;
/// Guests that are compared.
const GUESTS: usize = 6;
/// Starts by OVMF: each takes many times as long.
const REPEATED_OVMF: usize = 2;
/// More memory, for what must not grow with it.
const MUCH_MIB: u64 = 4096;
/// Milliseconds that a security processor of Milan takes for a page of 4 KiB (SEVeriFast, ASPLOS 2024: 0.25 ms a KiB).
const MS_PER_PAGE: f64 = 1.0;
const KIB: f64 = 1024.0;
const PAGE: f64 = 4096.0;

pub(crate) fn confidential_boot() -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("kata-cc-bench").tempdir_in("/run")?;
    let platform = dir.path().join("sim");
    SimPlatform::create(&platform)?;
    let sim = TeeConfig::SimSnp { platform, host_data: "00".repeat(32), policy: None };
    let stage0 = Guest { firmware: true, ..Guest::PLAIN };
    let guests = [
        Guest::PLAIN,
        stage0.clone(),
        Guest { tier: "sim-snp", kernel: "vmlinux-tee", tee: sim, ..stage0.clone() },
        Guest { memory_mib: MUCH_MIB, ..Guest::PLAIN },
        Guest { memory_mib: MUCH_MIB, ..stage0 },
        Guest { kernel: "vmlinux-tee", ..Guest::PLAIN },
    ];
    let mut boots: [Vec<Boot>; GUESTS] = std::array::from_fn(|_| Vec::new());
    for round in 0..=REPEATED {
        let mut ready = [0.0; GUESTS];
        // each round begins with another: what a start leaves behind must not fall on the same one always
        for n in (0..GUESTS).map(|n| (n + round) % GUESTS) {
            let boot = boot_ours(dir.path(), &guests[n]).with_context(|| format!("{:?}", guests[n]))?;
            ready[n] = boot.ready;
            // the first round warms the page cache
            if round > 0 {
                boots[n].push(boot);
            }
        }
        let [direct, stage0, sim_snp, much, stage0_much, tee_kernel] = ready;
        eprintln!(
            "round {round}: direct {direct:.3} s, stage0 {stage0:.3} s, sim-snp {sim_snp:.3} s, its kernel directly {tee_kernel:.3} s; \
             {MUCH_MIB} MiB: direct {much:.3} s, stage0 {stage0_much:.3} s"
        );
    }
    let ready = |n: usize| boots[n].iter().map(|boot| boot.ready).collect::<Vec<_>>();
    let direct = ready(0);
    let mut rows = vec![
        ratio(
            "exec to agent ready, by stage0",
            "s",
            &ready(1),
            &direct,
            "entering the kernel directly",
            1.25,
        ),
        ratio("the same, simulated SEV-SNP", "s", &ready(2), &ready(5), "entering its kernel directly", 1.25),
        growth(&boots),
    ];
    rows.extend(measured_bytes()?);
    rows.extend(ovmf(dir.path(), &boots[2]));
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}

/// `ours` over `peer`, with the most that is aimed at.
fn ratio(metric: &str, unit: &str, ours: &[f64], peer: &[f64], peer_name: &str, most: f64) -> Value {
    compared(metric, unit, (ours, peer), peer_name, Aim::Ratio(most))
}

/// What stage0 adds with much memory, over what it adds with little: round by round, since Linux itself takes longer with more.
fn growth(boots: &[Vec<Boot>; GUESTS]) -> Value {
    let added = |with: usize, without: usize| -> Vec<f64> {
        let pairs = boots[with].iter().zip(&boots[without]);
        pairs.map(|(with, without)| (with.init - without.init).max(0.0)).collect()
    };
    let little = format!("the same with {MEMORY_MIB} MiB");
    ratio(&format!("stage0's own part with {MUCH_MIB} MiB"), "s", &added(4, 3), &added(1, 0), &little, 1.25)
}

/// Bytes whose contents a security processor or a TDX module would measure, all pages that it would have to add, and a time for them.
fn measured_bytes() -> anyhow::Result<Vec<Value>> {
    let image = std::fs::read(kata_cc_tests::share().join("stage0"))?;
    let (for_snp, for_tdx) = (boot_block(PlatformKind::Snp), boot_block(PlatformKind::Tdx));
    let snp = Stage0Launch::new(&image, &for_snp)?.snp()?;
    let with_contents = snp.sections().iter().filter(|section| section.page_type.has_contents());
    let snp_contents: u64 = with_contents.map(|section| section.len).sum();
    let tdx = Stage0Launch::new(&image, &for_tdx)?.tdx()?;
    let tdx_contents: u64 =
        tdx.regions().iter().filter(|region| region.measured).map(|region| region.len).sum();
    let firmware = ovmf_image();
    let theirs = firmware.as_ref().and_then(|path| path.metadata().ok()).map(|data| data.len() as f64);
    let row = |metric: &str, unit: &str, ours: f64, theirs: Option<f64>, aim: Aim| {
        let ratio = theirs.map(|theirs| ours / theirs);
        let (target, met) = match aim {
            Aim::Ratio(most) => (format!("ratio <= {most}"), ratio.is_none_or(|ratio| ratio <= most)),
            Aim::Most(most) => (format!("<= {most} {unit}"), ours <= most),
        };
        json!({
            "metric": metric, "unit": unit, "ours": ours, "ours_min": ours, "peer": theirs, "peer_min": theirs,
            "peer_name": "OVMF (Debian)", "ratio": ratio, "target": target, "met": met, "repeated": 1,
        })
    };
    let kib = |bytes: f64| bytes / KIB;
    let cost = |bytes: f64| bytes / PAGE * MS_PER_PAGE;
    // zeros, secrets and CPUID too, at the price of pages that are hashed: more than they can cost
    let all = snp.page_count() as f64 * PAGE;
    Ok(vec![
        row("contents measured, SEV-SNP", "KiB", kib(snp_contents as f64), theirs.map(kib), Aim::Most(64.0)),
        row("contents measured, TDX", "KiB", kib(tdx_contents as f64), theirs.map(kib), Aim::Most(64.0)),
        row("pages added at launch, SEV-SNP", "KiB", kib(all), theirs.map(kib), Aim::Ratio(1.0)),
        row("MODEL: processor, all pages", "ms", cost(all), theirs.map(cost), Aim::Ratio(1.0)),
    ])
}

fn boot_block(platform: PlatformKind) -> BootBlock {
    let sealed = Sealed { length: 1, sha256: [0; 32] };
    BootBlock {
        platform,
        vcpus: 1,
        memory_bit: 51,
        acpi_devices: true,
        kernel_kind: KernelKind::Vmlinux,
        kernel: sealed,
        initramfs: None,
        command_line: sealed,
    }
}

/// Time to init by stage0 under the simulated TEE, over OVMF's; none where OVMF does not start here.
fn ovmf(dir: &Path, ours: &[Boot]) -> Option<Value> {
    let image = ovmf_image()?;
    if std::env::var_os("KATA_CC_LAB").is_some() {
        eprintln!("OVMF is no peer here: in the lab, the emulator of the machine ended when it was started");
        return None;
    }
    let mut theirs = Vec::new();
    for round in 0..REPEATED_OVMF {
        match boot_ovmf(dir, &image) {
            Ok(boot) => {
                eprintln!("round {round}: OVMF {:.3} s to init", boot.init);
                theirs.push(boot.init);
            }
            Err(error) => {
                eprintln!("OVMF is no peer here: {error:#}");
                return None;
            }
        }
    }
    let ours: Vec<f64> = ours.iter().map(|boot| boot.init).collect();
    Some(ratio("exec to init, simulated SEV-SNP", "s", &ours, &theirs, "OVMF with QEMU, no TEE", 1.0))
}

/// Debian's image, which `./x bench` puts into the cache.
fn ovmf_image() -> Option<PathBuf> {
    let folder = kata_cc_tests::share().parent()?.join("ovmf/usr/share/ovmf");
    Some(folder.join("OVMF.fd")).filter(|path| path.is_file())
}

/// The agent as an initramfs: the kernel has no driver for a disk that OVMF would have.
fn initramfs(dir: &Path) -> anyhow::Result<PathBuf> {
    let (root, archive) = (dir.join("initramfs.d"), dir.join("initramfs"));
    for folder in ["dev", "etc", "proc", "run", "sys", "tmp"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    let mut strip = Command::new("strip");
    strip
        .arg("--strip-all")
        .arg("-o")
        .arg(root.join("init"))
        .arg(kata_cc_tests::binaries().join("kata-cc-agent"));
    kata_cc_tests::process::run(&mut strip, 60)?.ok()?;
    kata_cc_tests::pack_initramfs(&root, &archive)?;
    Ok(archive)
}

fn boot_ovmf(dir: &Path, image: &Path) -> anyhow::Result<Boot> {
    let console = dir.join("console-ovmf");
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "q35,accel=kvm", "-cpu", "host", "-smp", "1", "-m", &MEMORY_MIB.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-bios"]).arg(image);
    command.arg("-kernel").arg(kata_cc_tests::share().join("bzImage"));
    command.arg("-initrd").arg(initramfs(dir)?);
    command.arg("-append").arg(kata_cc_vmm_api::command_line("vm"));
    command.arg("-serial").arg(format!("file:{}", console.display()));
    measure(&mut command, &console, dir)
}
