//! Launch plan: which bytes start at which guest address, in which state each vCPU starts, and the
//! command line. A pure function of its input, so that the VMM (which writes the plan into guest
//! memory) and `kata-cc measure` (which only hashes it) cannot disagree.
//!
//! Boot protocol: Linux's 64-bit entry (kernel documentation, `arch/x86/boot.rst`, "64-bit boot
//! protocol"), for `vmlinux` (ELF, entered where its header says) as for `bzImage` (entered 0x200
//! after its load address). It is the one protocol that an SNP guest's first VMSA can enter without
//! firmware; PVH would add a second path through a note that the image controls (GHSA-52h2-m2cf-9jh6)
//! and gain nothing, so notes are not read at all.
//!
//! With the guest firmware stage0 ([`Firmware`]) only the firmware and a page of hashes are measured, and
//! stage0 does for the guest what is described here; see the module `stage0`.
//!
//! No ACPI: an MP table tells the kernel of vCPUs and interrupts, `virtio_mmio.device=` words of the
//! devices. Both are measured; tables written in AML would be code.
//!
//! Why not linux-loader's loaders: they write into guest memory as they parse. Here the bytes must
//! exist before there is a guest, in one order, page by page, since that order is what is measured.
//!
//! Limits: see the constants of [`layout`]; everything the plan places lies in the first GiB but the
//! initramfs, which lies below 3 GiB.
#![forbid(unsafe_code)]

mod bzimage;
mod cmdline;
mod elf;
mod kernel;
pub mod layout;
mod mptable;
mod params;
mod plan;
mod stage0;
mod start;

pub use cmdline::CmdlineError;
pub use kata_cc_stage0_abi::layout::TERMINATION_PORT;
pub use kata_cc_stage0_abi::{PlatformKind, Termination};
pub use kernel::{Kernel, KernelError, KernelFormat};
pub use plan::{LaunchInput, LaunchPlan, PlanError, Region};
pub use stage0::{Firmware, FirmwareError, Hashes, sha256};
pub use start::{DescriptorTable, Segment, StartState};
