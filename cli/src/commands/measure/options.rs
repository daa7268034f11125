//! What `kata-cc measure` takes for hardware: which TEE, which processor, how many vCPUs.

use kata_cc_boot::PlatformKind;
use kata_cc_measurement::CpuSignature;
use kata_cc_measurement::ovmf::Monitor;
use kata_cc_measurement::tdx::PassOrder;
use kata_cc_sandbox::Tier;
use kata_cc_sandbox::config::Simulated;
use std::path::PathBuf;

/// C-bit of EPYC processors of the generations that have SNP.
const SNP_MEMORY_BIT: u32 = 51;
/// Shared bit of a TD with 48-bit guest addresses.
const TDX_MEMORY_BIT: u32 = 47;

/// Options for hardware.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Hardware")]
pub(crate) struct HardwareOptions {
    /// Foretell a launch on hardware instead of the simulated TEE.
    #[arg(long, value_enum)]
    pub(super) tee: Option<Tee>,
    /// Number of vCPUs; by the size without it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(super) vcpus: Option<u8>,
    /// Processor that an SNP launch is bound to: EPYC-Milan, 25/1/1 (family/model/stepping) or 0xa00f11.
    #[arg(long, value_name = "TYPE")]
    pub(super) cpu: Option<CpuSignature>,
    /// SEV_FEATURES of an SNP guest, in hex.
    #[arg(long, value_name = "HEX", default_value = "0x1", value_parser = hex_number)]
    pub(super) guest_features: u64,
    /// Address bit that marks memory as private (SNP) or shared (TDX); 51 for SNP and 47 for TDX without it.
    #[arg(long, value_name = "BIT", value_parser = clap::value_parser!(u32).range(47..=51))]
    memory_bit: Option<u32>,
    /// Order in which a TDX host adds and measures pages.
    #[arg(long, value_enum, default_value_t = Order::Single)]
    page_order: Order,
    /// XFAM of a TD, in hex: extended state up to AVX-512 and AMX; name less where the host has less.
    #[arg(long, value_name = "HEX", default_value = "0x602e7", value_parser = hex_number)]
    pub(super) xfam: u64,
    /// Firmware image of the OVMF family, launched by another monitor than ours.
    #[arg(long, value_name = "FILE", requires = "tee", conflicts_with = "register")]
    pub(super) ovmf: Option<PathBuf>,
    /// Command line that OVMF is given with the kernel, exactly.
    #[arg(long, value_name = "TEXT", requires = "ovmf", allow_hyphen_values = true)]
    pub(super) cmdline: Option<String>,
    /// Who launches OVMF under SNP.
    #[arg(long, value_enum, default_value_t = Vmm::Qemu, requires = "ovmf")]
    vmm: Vmm,
    /// List every measured page with its share in the digest.
    #[arg(long)]
    pub(super) explain: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Tee {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Order {
    /// Each page as it is added: mainline KVM.
    Single,
    /// All of a region first: older trees.
    Two,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Vmm {
    /// QEMU on KVM.
    Qemu,
    /// Amazon EC2.
    Ec2,
    /// Google Compute Engine.
    Gce,
}

impl HardwareOptions {
    /// Tier whose command line the guest has.
    /// `simulated` is the TEE without hardware.
    pub(super) const fn tier(&self, simulated: Simulated) -> Tier {
        match self.tee {
            None => simulated.tier(),
            Some(Tee::Snp) => Tier::Snp,
            Some(Tee::Tdx) => Tier::Tdx,
        }
    }

    /// Platform that the boot block names, and its memory bit.
    pub(super) fn platform(&self, simulated: Simulated) -> (PlatformKind, u32) {
        match self.tee {
            None if simulated == Simulated::SimTdx => (PlatformKind::SimTdx, 0),
            None => (PlatformKind::SimSnp, 0),
            Some(Tee::Snp) => (PlatformKind::Snp, self.memory_bit.unwrap_or(SNP_MEMORY_BIT)),
            Some(Tee::Tdx) => (PlatformKind::Tdx, self.memory_bit.unwrap_or(TDX_MEMORY_BIT)),
        }
    }

    pub(super) const fn order(&self) -> PassOrder {
        match self.page_order {
            Order::Single => PassOrder::Single,
            Order::Two => PassOrder::Two,
        }
    }

    pub(super) const fn monitor(&self) -> Monitor {
        match self.vmm {
            Vmm::Qemu => Monitor::Qemu,
            Vmm::Ec2 => Monitor::Ec2,
            Vmm::Gce => Monitor::Gce,
        }
    }
}

fn hex_number(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|_| format!("expected hex such as 0x1, seen {text:?}"))
}
