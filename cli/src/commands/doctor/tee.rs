//! What `kata-cc doctor` says of SEV-SNP and TDX: what this host has, what is missing, what to change.
//!
//! Sources: AMD APM volume 3, E.4.17 (CPUID `Fn8000_001F`) and PPR (SYSCFG, RMP MSRs); Linux
//! `Documentation/virt/kvm/x86/amd-memory-encryption.rst`, `arch/x86/tdx.rst`,
//! `Documentation/admin-guide/cgroup-v2.rst` (misc controller).
//!
//! Everything is read: files below a root folder, CPUID, MSRs (`/dev/cpu/0/msr`, for root with the `msr`
//! module), and the VMM's answer to `--probe-tee`. What cannot be read is said to be unknown, never assumed.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Finding, State, found, lacking};

/// SYSCFG: bit 23 memory encryption on, bit 24 SNP on.
const MSR_SYSCFG: u32 = 0xC001_0010;
const MSR_RMP_BASE: u32 = 0xC001_0132;
const MSR_RMP_END: u32 = 0xC001_0133;
/// IA32_MKTME_KEYID_PARTITIONING: number of private (TDX) keys in bits 63:32.
const MSR_KEYID_PARTITIONING: u32 = 0x87;

/// CPUID leaf with the encryption features of AMD.
const LEAF_ENCRYPTION: u32 = 0x8000_001F;

/// What is looked at.
pub(super) struct Host<'a> {
    /// Folder that stands for `/`.
    pub(super) root: PathBuf,
    /// CPUID of this processor, by leaf.
    pub(super) cpuid: &'a dyn Fn(u32) -> [u32; 4],
    /// An MSR, when it can be read.
    pub(super) msr: &'a dyn Fn(u32) -> Option<u64>,
    /// Answer of the VMM's probe; null when it gave none.
    pub(super) probe: Value,
}

/// An MSR of the first processor through its device file, in which the offset is the register's number.
pub(super) fn read_msr(root: &Path, register: u32) -> Option<u64> {
    let file = std::fs::File::open(root.join("dev/cpu/0/msr")).ok()?;
    let mut value = [0; 8];
    file.read_exact_at(&mut value, register.into()).ok()?;
    Some(u64::from_le_bytes(value))
}

impl Host<'_> {
    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.root.join(path)).unwrap_or_default().trim().to_owned()
    }

    fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    fn enabled(&self, parameter: &str) -> bool {
        matches!(self.text(parameter).as_str(), "Y" | "1")
    }

    /// Version of the kernel as (major, minor).
    fn kernel(&self) -> (u32, u32) {
        let text = self.text("proc/sys/kernel/osrelease");
        let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }

    fn vendor(&self) -> String {
        let [_, b, c, d] = (self.cpuid)(0);
        [b, d, c].iter().flat_map(|word| word.to_le_bytes()).map(char::from).collect()
    }

    /// A line of the misc controller: (in use, capacity).
    fn misc(&self, name: &str) -> (Option<u64>, Option<u64>) {
        let value = |file: &str| {
            let text = self.text(&format!("sys/fs/cgroup/{file}"));
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.trim().parse().ok())
        };
        (value("misc.current"), value("misc.capacity"))
    }

    /// All findings on both.
    pub(super) fn findings(&self) -> Vec<Finding> {
        match self.vendor().as_str() {
            "AuthenticAMD" => {
                let mut all = self.snp();
                all.push(lacking("Intel TDX", State::Warning, "an AMD processor", ""));
                all
            }
            "GenuineIntel" => {
                let mut all = vec![lacking("AMD SEV-SNP", State::Warning, "an Intel processor", "")];
                all.extend(self.tdx());
                all
            }
            _ => ["AMD SEV-SNP", "Intel TDX"]
                .map(|check| lacking(check, State::Warning, "neither an AMD nor an Intel processor", NEITHER))
                .into(),
        }
    }

    fn snp(&self) -> Vec<Finding> {
        let [eax, ebx, asids, sev_only] = if (self.cpuid)(0x8000_0000)[0] >= LEAF_ENCRYPTION {
            (self.cpuid)(LEAF_ENCRYPTION)
        } else {
            [0; 4]
        };
        if eax >> 4 & 1 == 0 {
            let advice = "a 3rd generation EPYC or later; inside a virtual machine the host must pass SNP on, and \
                          none does";
            return vec![lacking("AMD SEV-SNP", State::Warning, "the processor has no SEV-SNP", advice)];
        }
        let mut all = vec![found("AMD SEV-SNP", format!("the processor has it (C-bit {})", ebx & 0x3F))];
        all.push(self.snp_memory());
        all.push(self.kernel_for("SNP kernel", (6, 11), "SEV-SNP guests"));
        all.push(self.snp_kvm());
        all.push(self.snp_firmware());
        all.push(self.snp_asids(asids, sev_only));
        all.push(self.snp_iommu());
        all
    }

    /// Memory encryption, SNP and the table of page owners (RMP) are turned on by the firmware's settings.
    fn snp_memory(&self) -> Finding {
        const CHECK: &str = "SNP memory table";
        let Some(syscfg) = (self.msr)(MSR_SYSCFG) else {
            let seen = "unknown: the MSRs cannot be read";
            return lacking(CHECK, State::Warning, seen, "modprobe msr, and run this as root");
        };
        if syscfg >> 23 & 1 == 0 {
            let advice = "firmware settings: SMEE (Secure Memory Encryption) enabled";
            return lacking(CHECK, State::Missing, "memory encryption is off", advice);
        }
        if syscfg >> 24 & 1 == 0 {
            let advice = "firmware settings: SEV-SNP support and SNP memory (RMP table) coverage enabled";
            return lacking(CHECK, State::Missing, "SNP is not enabled in the processor (SYSCFG)", advice);
        }
        let (base, end) = ((self.msr)(MSR_RMP_BASE).unwrap_or(0), (self.msr)(MSR_RMP_END).unwrap_or(0));
        if base == 0 || end <= base {
            let advice = "firmware settings: SNP memory (RMP table) coverage for all memory";
            return lacking(CHECK, State::Missing, "no memory is reserved for the table", advice);
        }
        found(CHECK, format!("{} MiB at {base:#x}", (end - base + 1) >> 20))
    }

    fn kernel_for(&self, check: &'static str, least: (u32, u32), what: &str) -> Finding {
        let version = self.text("proc/sys/kernel/osrelease");
        if self.kernel() >= least {
            return found(check, version);
        }
        let advice = format!("{what} need Linux {}.{} or later", least.0, least.1);
        lacking(check, State::Missing, version, advice)
    }

    fn snp_kvm(&self) -> Finding {
        const CHECK: &str = "SNP in KVM";
        if !self.exists("sys/module/kvm_amd") {
            return lacking(CHECK, State::Missing, "kvm_amd is not loaded", "modprobe kvm_amd");
        }
        if !self.enabled("sys/module/kvm_amd/parameters/sev_snp") {
            let advice =
                "kvm_amd.sev=1 kvm_amd.sev_es=1 kvm_amd.sev_snp=1; the kernel's log says why it stays off";
            return lacking(CHECK, State::Missing, "kvm_amd does not use SEV-SNP", advice);
        }
        match self.probe["snp"]["vm_type"].as_bool() {
            Some(true) if self.probe["guest_memfd"] == true => {
                let features = self.probe["snp"]["features"].as_str().unwrap_or("unknown");
                found(CHECK, format!("makes SNP guests (guest features {features})"))
            }
            Some(_) => {
                let advice = "a kernel with CONFIG_KVM_AMD_SEV and CONFIG_KVM_GUEST_MEMFD";
                lacking(CHECK, State::Missing, "KVM makes no SNP guests", advice)
            }
            None => lacking(
                CHECK,
                State::Warning,
                "unknown: the VMM's probe gave no answer",
                "install kata-cc-vmm",
            ),
        }
    }

    fn snp_firmware(&self) -> Finding {
        const CHECK: &str = "SNP firmware";
        if !self.exists("dev/sev") {
            let advice =
                "modprobe ccp; without it the security processor is disabled in the firmware's settings";
            return lacking(CHECK, State::Missing, "there is no /dev/sev", advice);
        }
        let firmware = &self.probe["snp"]["firmware"];
        let Some(version) = firmware["version"].as_str() else {
            let reason = self.probe["snp"]["firmware_error"].as_str().unwrap_or("no answer");
            let advice = "run this as root or as a member of the group that owns /dev/sev";
            return lacking(CHECK, State::Warning, format!("unknown: {reason}"), advice);
        };
        let tcb = firmware["reported_tcb"].as_str().unwrap_or("unknown");
        let seen = format!("version {version}, reported TCB {tcb}");
        if firmware["initialised"] != true || firmware["rmp_initialised"] != true {
            let advice = "the kernel's log says why SNP was not initialised (look for SEV-SNP and ccp)";
            return lacking(CHECK, State::Missing, format!("{seen}: SNP is not initialised"), advice);
        }
        // versions below have known holes that reports do not show apart from the TCB
        let parts: Vec<u32> = version.split('.').map(|part| part.parse().unwrap_or(0)).collect();
        if parts.as_slice() < &[1, 51] {
            let advice = "install newer firmware (amd/ in linux-firmware, or of the machine's maker)";
            return lacking(CHECK, State::Warning, format!("{seen}: older than 1.51"), advice);
        }
        found(CHECK, seen)
    }

    /// Each guest needs an address-space identifier below the first that is kept for plain SEV.
    fn snp_asids(&self, asids: u32, sev_only: u32) -> Finding {
        const CHECK: &str = "SNP ASIDs";
        let usable = u64::from(sev_only.min(asids.saturating_add(1)).saturating_sub(1));
        let advice = "firmware settings: SEV-ES/SNP ASID space limit above 1 (it splits the identifiers)";
        if usable == 0 {
            let seen = format!("none of {asids} is for SNP guests");
            return lacking(CHECK, State::Missing, seen, advice);
        }
        match self.misc("sev_es") {
            (Some(used), Some(capacity)) if used >= capacity => {
                let seen = format!("none free: {used} of {capacity} in use");
                lacking(
                    CHECK,
                    State::Missing,
                    seen,
                    "stop guests, or raise the firmware's SEV-ES ASID space limit",
                )
            }
            (Some(used), Some(capacity)) => found(CHECK, format!("{} free of {capacity}", capacity - used)),
            _ => found(CHECK, format!("{usable} for SNP guests; how many are in use is not told here")),
        }
    }

    fn snp_iommu(&self) -> Finding {
        const CHECK: &str = "SNP IOMMU";
        let cmdline = self.text("proc/cmdline");
        let word = |wanted: &str| cmdline.split_whitespace().any(|word| word == wanted);
        let active =
            std::fs::read_dir(self.root.join("sys/class/iommu")).is_ok_and(|mut dir| dir.next().is_some());
        if word("iommu=off") || word("amd_iommu=off") || !active {
            let advice =
                "enable the IOMMU in the firmware's settings and remove iommu=off from the command line";
            return lacking(CHECK, State::Missing, "off", advice);
        }
        if word("iommu=pt") || word("iommu.passthrough=1") {
            let advice = "remove it from the host's command line: the kernel then keeps SNP off";
            return lacking(CHECK, State::Missing, "passthrough by default (iommu=pt)", advice);
        }
        found(CHECK, "on")
    }

    fn tdx(&self) -> Vec<Finding> {
        const CHECK: &str = "Intel TDX";
        let flags = self.text("proc/cpuinfo");
        let keys = (self.msr)(MSR_KEYID_PARTITIONING).map(|value| value >> 32);
        let flagged = flags.split_whitespace().any(|flag| flag == "tdx_host_platform");
        if !flagged && keys.unwrap_or(0) == 0 {
            let advice = "a 5th generation Xeon or later (4th at some clouds), with TME-MT, SEAM and TDX enabled in \
                          the firmware's settings";
            let seen = match keys {
                Some(_) => "the firmware gives no keys to TDX",
                None => "the processor (or this kernel) does not offer TDX",
            };
            return vec![lacking(CHECK, State::Warning, seen, advice)];
        }
        let seen = keys.map_or_else(
            || "the platform has it".to_owned(),
            |keys| format!("the platform has it, {keys} keys"),
        );
        vec![
            found(CHECK, seen),
            self.kernel_for("TDX kernel", (6, 16), "TDX guests"),
            self.tdx_kvm(),
            self.tdx_keys(keys),
            self.tdx_quoting(),
        ]
    }

    fn tdx_kvm(&self) -> Finding {
        const CHECK: &str = "TDX module";
        if !self.enabled("sys/module/kvm_intel/parameters/tdx") {
            let advice = "kvm_intel.tdx=1; the kernel's log (virt/tdx) says why it stays off";
            return lacking(CHECK, State::Missing, "kvm_intel does not use TDX", advice);
        }
        let tdx = &self.probe["tdx"];
        if let Some(error) = tdx["error"].as_str() {
            let advice = "load the TDX module (firmware update or /boot/efi/EFI/TDX); see the kernel's log";
            return lacking(CHECK, State::Missing, format!("it does not answer: {error}"), advice);
        }
        let version = self.text("sys/devices/faux/tdx_host/version");
        let version = if version.is_empty() {
            "version not told by this kernel".into()
        } else {
            format!("version {version}")
        };
        match tdx["vm_type"].as_bool() {
            Some(true) => {
                let attributes = tdx["attributes"].as_str().unwrap_or("unknown");
                found(CHECK, format!("loaded, {version}, attributes {attributes}"))
            }
            Some(false) => {
                let advice = "a kernel with CONFIG_KVM_INTEL_TDX and CONFIG_KVM_GUEST_MEMFD";
                lacking(CHECK, State::Missing, "KVM makes no TDs", advice)
            }
            None => lacking(
                CHECK,
                State::Warning,
                "unknown: the VMM's probe gave no answer",
                "install kata-cc-vmm",
            ),
        }
    }

    fn tdx_keys(&self, keys: Option<u64>) -> Finding {
        const CHECK: &str = "TDX keys";
        match (self.misc("tdx"), keys) {
            ((Some(used), Some(capacity)), _) if used >= capacity => {
                let seen = format!("none free: {used} of {capacity} in use");
                lacking(
                    CHECK,
                    State::Missing,
                    seen,
                    "stop guests, or give TDX more keys in the firmware's settings",
                )
            }
            ((Some(used), Some(capacity)), _) => {
                found(CHECK, format!("{} free of {capacity}", capacity - used))
            }
            // one key is the TDX module's own
            (_, Some(keys)) if keys > 1 => {
                found(CHECK, format!("{} for guests; how many are in use is not told here", keys - 1))
            }
            _ => lacking(
                CHECK,
                State::Warning,
                "unknown: the MSRs cannot be read",
                "modprobe msr, and run this as root",
            ),
        }
    }

    /// Without SGX and its service a TD runs, but nobody can be shown what it is.
    fn tdx_quoting(&self) -> Finding {
        const CHECK: &str = "TDX quoting";
        if !self.exists("dev/sgx_enclave") {
            let advice = "enable SGX in the firmware's settings: quotes are signed by an SGX enclave";
            return lacking(CHECK, State::Missing, "there is no /dev/sgx_enclave", advice);
        }
        if self.exists("var/run/tdx-qgs/qgs.socket") || self.exists("run/tdx-qgs/qgs.socket") {
            return found(CHECK, "the quoting service listens on its socket");
        }
        let advice = "start the quoting service (qgsd of Intel's DCAP), or name its vsock port";
        lacking(CHECK, State::Warning, "no socket of the quoting service", advice)
    }
}

const NEITHER: &str = "an EPYC (3rd generation or later) or a Xeon (5th generation or later)";

#[cfg(test)]
mod tests;
