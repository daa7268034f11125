//! Can KVM here run an unmodified kernel? Found out by trying, not by name: a tiny guest in 64-bit kernel
//! mode uses SSE, `lock cmpxchg16b`, MSRs, paging and descriptor tables, then counts to two million,
//! all within a time limit. Some hosts offer a `/dev/kvm` that emulates kernel-mode code instruction by
//! instruction: there one of these fails or the counting takes seconds.
//!
//! The guest goes the way of every guest: an ELF image, a launch plan, a vCPU at the 64-bit entry.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kata_cc_boot::{LaunchInput, LaunchPlan};
use kvm_ioctls::{VcpuExit, VcpuFd};
use serde::Serialize;

use crate::error::VmmError;
use crate::kvm::{Machine, start};
use crate::tee::TeeKind;
use crate::threads::{self, Gate, Go};
use crate::{memory, vm};

/// Far more than an emulated machine with nested virtualisation needs.
const TIME_LIMIT: Duration = Duration::from_secs(3);
/// The guest tells its progress here.
const PORT: u16 = 0xf4;
const LOAD_ADDRESS: u64 = 0x10_0000;
const LAST_STAGE: u8 = 6;

/// What the guest does after it has told stage `n`, `STAGES[n - 1]`.
const STAGES: [&str; 5] = [
    "sse instructions in kernel mode",
    "lock cmpxchg16b in kernel mode",
    "reading and writing msrs",
    "reloading page tables and descriptor tables",
    "counting to two million",
];

/// The guest, position-independent. The source is in the comments; assembled by GNU as.
const CODE: &[u8] = &[
    0xb0, 0x01, 0xe6, 0xf4, // mov al, 1; out PORT, al
    0x0f, 0x20, 0xc0, 0x83, 0xe0, 0xfb, 0x83, 0xc8, 0x02, 0x0f, 0x22, 0xc0, // CR0: EM off, MP on
    0x0f, 0x20, 0xe0, 0x0d, 0x00, 0x06, 0x00, 0x00, 0x0f, 0x22, 0xe0, // CR4: OSFXSR, OSXMMEXCPT
    0x66, 0x0f, 0xef, 0xc0, // pxor xmm0, xmm0
    0xf3, 0x0f, 0x6f, 0x0d, 0xb9, 0x00, 0x00, 0x00, // movdqu xmm1, [data]
    0x66, 0x0f, 0xd4, 0xc1, // paddq xmm0, xmm1
    0xf3, 0x0f, 0x7f, 0x05, 0xad, 0x00, 0x00, 0x00, // movdqu [data], xmm0
    0x0f, 0x29, 0x05, 0xa6, 0x00, 0x00, 0x00, // movaps [data], xmm0
    0xb0, 0x02, 0xe6, 0xf4, // stage 2
    0x31, 0xc0, 0x31, 0xd2, 0xbb, 0x05, 0x00, 0x00, 0x00, 0x31, 0xc9, // rdx:rax 0, rcx:rbx 5
    0xf0, 0x48, 0x0f, 0xc7, 0x0d, 0x8e, 0x00, 0x00, 0x00, // lock cmpxchg16b [data], equal
    0xf0, 0x48, 0x0f, 0xc7, 0x0d, 0x85, 0x00, 0x00, 0x00, // the same, not equal
    0xb0, 0x03, 0xe6, 0xf4, // stage 3
    0xb9, 0x1b, 0x00, 0x00, 0x00, 0x0f, 0x32, // rdmsr APIC_BASE
    0xb9, 0x77, 0x02, 0x00, 0x00, 0x0f, 0x32, 0x0f, 0x30, // rdmsr, wrmsr PAT
    0xb9, 0xff, 0x02, 0x00, 0x00, 0x0f, 0x32, // rdmsr MTRR_DEF_TYPE
    0xb9, 0xa0, 0x01, 0x00, 0x00, 0x0f, 0x32, 0x0f, 0x30, // rdmsr, wrmsr MISC_ENABLE
    0xb9, 0x02, 0x01, 0x00, 0xc0, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x31, 0xd2, 0x0f,
    0x30, // wrmsr KERNEL_GS_BASE
    0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8, // swapgs, twice
    0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x0f, 0x30, // rdmsr, wrmsr EFER
    0xb9, 0x10, 0x00, 0x00, 0x00, 0x0f, 0x32, // rdmsr TSC
    0xb0, 0x04, 0xe6, 0xf4, // stage 4
    0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, // mov rax, cr3; mov cr3, rax
    0x0f, 0x01, 0x3d, 0x2c, 0x00, 0x00, 0x00, // invlpg [data]
    0x0f, 0x01, 0x05, 0x25, 0x00, 0x00, 0x00, // sgdt [data]
    0x0f, 0x01, 0x15, 0x1e, 0x00, 0x00, 0x00, // lgdt [data]
    0x0f, 0x01, 0x0d, 0x17, 0x00, 0x00, 0x00, // sidt [data]
    0xb0, 0x05, 0xe6, 0xf4, // stage 5
    0xb9, 0x80, 0x84, 0x1e, 0x00, 0xff, 0xc9, 0x75, 0xfc, // mov ecx, 2000000; dec ecx; jnz
    0xb0, 0x06, 0xe6, 0xf4, // done
    0xf4, // hlt
    0x0f, 0x1f, 0x44, 0x00, 0x00, // to 16 bytes
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // data
];

/// What the probe found.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// Whether VMs can be run here.
    pub usable: bool,
    /// Why, or why not.
    pub reason: String,
    /// How long the guest took.
    pub millis: u64,
}

/// Runs the guest.
#[must_use]
pub fn probe() -> Verdict {
    let begin = Instant::now();
    let result = run_guest();
    let (usable, reason) = match result {
        Ok(()) => (true, "a test guest ran as it should".to_owned()),
        Err(reason) => (false, reason),
    };
    Verdict { usable, reason, millis: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX) }
}

fn run_guest() -> Result<(), String> {
    let text = |error: VmmError| error.to_string();
    threads::install_wake_signal().map_err(|e| e.to_string())?;
    let image = image();
    let plan = LaunchPlan::new(&LaunchInput {
        kernel: &image,
        initramfs: None,
        cmdline: "",
        memory_mib: 64,
        vcpus: 1,
        devices: 0,
        firmware: None,
    })
    .map_err(|e| e.to_string())?;
    let ram = memory::create(64).map_err(text)?;
    let machine = Machine::create(TeeKind::None, ram.clone()).map_err(text)?;
    memory::load(&ram, &plan.regions).map_err(text)?;
    let vcpu = machine.single_vcpu().map_err(text)?;
    start::set_registers(&vcpu, &plan.start).map_err(text)?;

    let gate = Arc::new(Gate::default());
    let own_gate = Arc::clone(&gate);
    let (told, progress) = mpsc::channel();
    let handle = std::thread::Builder::new()
        .name("vcpu0".into())
        .spawn(move || {
            let mut vcpu = vcpu;
            let end = run_vcpu(&mut vcpu, &own_gate, &told);
            let _ = told.send(Progress::End(end));
            own_gate.leave();
        })
        .map_err(|e| e.to_string())?;
    gate.add(handle);
    let verdict = watch(&progress);
    gate.stop();
    verdict
}

enum Progress {
    Stage(u8),
    End(String),
}

fn run_vcpu(vcpu: &mut VcpuFd, gate: &Gate, told: &mpsc::Sender<Progress>) -> String {
    while gate.pass() != Go::Stop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, &[stage])) => {
                let _ = told.send(Progress::Stage(stage));
                if stage == LAST_STAGE {
                    break;
                }
            }
            Ok(VcpuExit::Shutdown) => return "triple fault".into(),
            Ok(VcpuExit::InternalError) => return "kvm cannot emulate an instruction".into(),
            Ok(other) => return format!("unexpected exit {other:?}"),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(e) => return e.to_string(),
        }
    }
    String::new()
}

fn watch(progress: &mpsc::Receiver<Progress>) -> Result<(), String> {
    let deadline = Instant::now() + TIME_LIMIT;
    let mut stage = 0;
    let doing = |stage: u8| {
        let index = usize::from(stage).saturating_sub(1);
        STAGES.get(index).copied().unwrap_or("entering the guest")
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match progress.recv_timeout(left) {
            Ok(Progress::Stage(LAST_STAGE)) => return Ok(()),
            Ok(Progress::Stage(n)) => stage = n,
            Ok(Progress::End(reason)) => {
                return Err(format!("a test guest died by {reason} at: {}", doing(stage)));
            }
            Err(_) => {
                return Err(format!(
                    "a test guest took more than {} s at: {}",
                    TIME_LIMIT.as_secs(),
                    doing(stage)
                ));
            }
        }
    }
}

/// The guest's code as the smallest ELF image.
fn image() -> Vec<u8> {
    const HEADERS: usize = 64 + 56;
    let mut image = Vec::with_capacity(HEADERS + CODE.len());
    image.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image.extend_from_slice(&2u16.to_le_bytes());
    image.extend_from_slice(&62u16.to_le_bytes());
    image.extend_from_slice(&1u32.to_le_bytes());
    image.extend_from_slice(&LOAD_ADDRESS.to_le_bytes());
    image.extend_from_slice(&64u64.to_le_bytes());
    image.extend_from_slice(&0u64.to_le_bytes());
    image.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        image.extend_from_slice(&half.to_le_bytes());
    }
    image.extend_from_slice(&1u32.to_le_bytes());
    image.extend_from_slice(&7u32.to_le_bytes());
    let size = CODE.len() as u64;
    for word in [HEADERS as u64, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 4096] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    image.extend_from_slice(CODE);
    image
}

/// Exit code for a verdict.
#[must_use]
pub fn exit_code(verdict: &Verdict) -> i32 {
    if verdict.usable { kata_cc_vmm_api::exit::OK } else { vm::Outcome::KvmFault(String::new()).exit_code() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_is_a_valid_kernel() {
        assert_eq!(CODE.len(), 240);
        let image = image();
        let kernel = kata_cc_boot::Kernel::parse(&image).expect("valid");
        assert_eq!(kernel.entry, LOAD_ADDRESS);
        assert_eq!(kernel.segments, [(LOAD_ADDRESS, CODE)]);
    }
}
