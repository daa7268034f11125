//! Hosts made of files.

use std::collections::BTreeMap;

use serde_json::json;
use tempfile::TempDir;

use super::*;

/// A host that has everything; tests take things away.
struct Machine {
    root: TempDir,
    cpuid: BTreeMap<u32, [u32; 4]>,
    msr: BTreeMap<u32, u64>,
    probe: Value,
}

fn vendor(name: &[u8; 12]) -> [u32; 4] {
    let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
    [0x20, word(0), word(8), word(4)]
}

impl Machine {
    fn file(&self, path: &str, content: &str) {
        let file = self.root.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }

    fn without(&self, path: &str) {
        let path = self.root.path().join(path);
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
    }

    fn epyc() -> Self {
        let machine = Self {
            root: tempfile::tempdir().unwrap(),
            cpuid: BTreeMap::from([
                (0, vendor(b"AuthenticAMD")),
                (0x8000_0000, [0x8000_0028, 0, 0, 0]),
                // 509 identifiers, those from 100 on for SEV only
                (LEAF_ENCRYPTION, [0x1F, 51, 509, 100]),
            ]),
            msr: BTreeMap::from([
                (MSR_SYSCFG, 1 << 23 | 1 << 24),
                (MSR_RMP_BASE, 0x1000_0000),
                (MSR_RMP_END, 0x1FFF_FFFF),
            ]),
            probe: json!({"guest_memfd": true, "snp": {"vm_type": true, "features": "0x3f",
                "firmware": {"version": "1.55.8", "initialised": true, "rmp_initialised": true, "guests": 0,
                    "reported_tcb": "540000000000000a"}}}),
        };
        machine.file("proc/sys/kernel/osrelease", "6.12.10-amd64\n");
        machine.file("proc/cmdline", "root=/dev/sda1 quiet\n");
        machine.file("sys/module/kvm_amd/parameters/sev_snp", "Y\n");
        machine.file("sys/class/iommu/ivhd0/x", "");
        machine.file("dev/sev", "");
        machine.file("sys/fs/cgroup/misc.capacity", "sev 410\nsev_es 99\n");
        machine.file("sys/fs/cgroup/misc.current", "sev 0\nsev_es 7\n");
        machine
    }

    fn xeon() -> Self {
        let machine = Self {
            root: tempfile::tempdir().unwrap(),
            cpuid: BTreeMap::from([(0, vendor(b"GenuineIntel"))]),
            msr: BTreeMap::from([(MSR_KEYID_PARTITIONING, 64 << 32 | 63)]),
            probe: json!({"guest_memfd": true, "tdx": {"vm_type": true, "attributes": "0x50000000"}}),
        };
        machine.file("proc/sys/kernel/osrelease", "6.16.3\n");
        machine.file("proc/cpuinfo", "flags : fpu tdx_host_platform sgx\n");
        machine.file("sys/module/kvm_intel/parameters/tdx", "Y\n");
        machine.file("sys/devices/faux/tdx_host/version", "1.5.24\n");
        machine.file("dev/sgx_enclave", "");
        machine.file("run/tdx-qgs/qgs.socket", "");
        machine
    }

    fn findings(&self) -> Vec<Finding> {
        let host = Host {
            root: self.root.path().into(),
            cpuid: &|leaf| self.cpuid.get(&leaf).copied().unwrap_or_default(),
            msr: &|register| self.msr.get(&register).copied(),
            probe: self.probe.clone(),
        };
        host.findings()
    }

    /// What is not well, as (check, what was seen, advice).
    fn complaints(&self) -> Vec<(&'static str, String, String)> {
        let all = self.findings().into_iter();
        let bad = all.filter(|finding| finding.state != State::Ok && !finding.advice.is_empty());
        bad.map(|finding| (finding.check, finding.seen, finding.advice)).collect()
    }
}

fn seen(machine: &Machine, check: &str) -> String {
    machine.findings().into_iter().find(|finding| finding.check == check).unwrap().seen
}

#[test]
fn a_ready_epyc_has_nothing_to_change() {
    let machine = Machine::epyc();
    assert_eq!(machine.complaints(), []);
    assert_eq!(seen(&machine, "AMD SEV-SNP"), "the processor has it (C-bit 51)");
    assert_eq!(seen(&machine, "SNP memory table"), "256 MiB at 0x10000000");
    assert_eq!(seen(&machine, "SNP ASIDs"), "92 free of 99");
    assert_eq!(seen(&machine, "SNP firmware"), "version 1.55.8, reported TCB 540000000000000a");
}

#[test]
fn a_ready_xeon_has_nothing_to_change() {
    let machine = Machine::xeon();
    assert_eq!(machine.complaints(), []);
    assert_eq!(seen(&machine, "TDX module"), "loaded, version 1.5.24, attributes 0x50000000");
    assert_eq!(seen(&machine, "TDX keys"), "63 for guests; how many are in use is not told here");
    machine.file("sys/fs/cgroup/misc.capacity", "tdx 63\n");
    machine.file("sys/fs/cgroup/misc.current", "tdx 60\n");
    assert_eq!(seen(&machine, "TDX keys"), "3 free of 63");
}

/// Takes one thing away and expects one complaint, with a word of what was seen and one of the advice.
fn one(ready: fn() -> Machine, change: impl Fn(&mut Machine), check: &str, saw: &str, advises: &str) {
    let mut machine = ready();
    change(&mut machine);
    let complaints = machine.complaints();
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    let (seen_check, seen, advice) = &complaints[0];
    assert_eq!(*seen_check, check, "{complaints:?}");
    assert!(seen.contains(saw) && advice.contains(advises), "{complaints:?}");
}

#[test]
fn whatever_an_epyc_lacks_is_told_with_what_to_change() {
    let lacks =
        |change: fn(&mut Machine), check, saw, advises| one(Machine::epyc, change, check, saw, advises);
    lacks(|m| m.cpuid.get_mut(&LEAF_ENCRYPTION).unwrap()[0] = 0xF, "AMD SEV-SNP", "no SEV-SNP", "EPYC");
    lacks(|m| m.msr.clear(), "SNP memory table", "unknown", "modprobe msr");
    lacks(|m| _ = m.msr.insert(MSR_SYSCFG, 0), "SNP memory table", "encryption is off", "SMEE");
    lacks(|m| _ = m.msr.insert(MSR_SYSCFG, 1 << 23), "SNP memory table", "not enabled", "SEV-SNP support");
    lacks(|m| _ = m.msr.remove(&MSR_RMP_END), "SNP memory table", "no memory", "RMP");
    lacks(|m| m.file("proc/sys/kernel/osrelease", "6.1.0"), "SNP kernel", "6.1.0", "6.11");
    lacks(|m| m.without("sys/module/kvm_amd"), "SNP in KVM", "not loaded", "modprobe");
    lacks(
        |m| m.file("sys/module/kvm_amd/parameters/sev_snp", "N"),
        "SNP in KVM",
        "does not use",
        "sev_snp=1",
    );
    lacks(|m| m.probe["guest_memfd"] = json!(false), "SNP in KVM", "makes no", "GUEST_MEMFD");
    lacks(|m| m.without("dev/sev"), "SNP firmware", "no /dev/sev", "ccp");
    lacks(|m| m.probe["snp"]["firmware"] = Value::Null, "SNP firmware", "unknown", "root");
    lacks(|m| m.probe["snp"]["firmware"]["initialised"] = json!(false), "SNP firmware", "not init", "log");
    lacks(|m| m.probe["snp"]["firmware"]["version"] = json!("1.49.3"), "SNP firmware", "1.51", "newer");
    lacks(|m| m.cpuid.get_mut(&LEAF_ENCRYPTION).unwrap()[3] = 1, "SNP ASIDs", "none of 509", "ASID space");
    lacks(|m| m.file("sys/fs/cgroup/misc.current", "sev_es 99"), "SNP ASIDs", "none free", "stop guests");
    lacks(|m| m.without("sys/class/iommu/ivhd0"), "SNP IOMMU", "off", "IOMMU");
    lacks(|m| m.file("proc/cmdline", "iommu=pt"), "SNP IOMMU", "passthrough", "remove");
}

#[test]
fn whatever_a_xeon_lacks_is_told_with_what_to_change() {
    let lacks =
        |change: fn(&mut Machine), check, saw, advises| one(Machine::xeon, change, check, saw, advises);
    let no_flag = |m: &mut Machine| {
        m.file("proc/cpuinfo", "flags : fpu");
        m.msr.insert(MSR_KEYID_PARTITIONING, 63);
    };
    lacks(no_flag, "Intel TDX", "no keys", "TME-MT");
    lacks(|m| m.file("proc/sys/kernel/osrelease", "6.12.1"), "TDX kernel", "6.12.1", "6.16");
    lacks(|m| m.file("sys/module/kvm_intel/parameters/tdx", "N"), "TDX module", "does not use", "tdx=1");
    lacks(|m| m.probe["tdx"]["error"] = json!("EIO"), "TDX module", "does not answer: EIO", "load");
    lacks(|m| m.probe["tdx"]["vm_type"] = json!(false), "TDX module", "no TDs", "CONFIG_KVM_INTEL_TDX");
    lacks(|m| m.msr.clear(), "TDX keys", "unknown", "modprobe msr");
    lacks(|m| m.without("dev/sgx_enclave"), "TDX quoting", "sgx_enclave", "SGX");
    lacks(|m| m.without("run/tdx-qgs/qgs.socket"), "TDX quoting", "no socket", "qgsd");
}

#[test]
fn an_empty_host_is_no_panic() {
    let mut machine = Machine::epyc();
    machine.root = tempfile::tempdir().unwrap();
    (machine.cpuid, machine.msr, machine.probe) = Default::default();
    let complaints = machine.complaints();
    assert_eq!(complaints.len(), 2, "{complaints:?}");
}

#[test]
fn an_msr_is_read_at_its_number() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("dev/cpu/0")).unwrap();
    let file = std::fs::File::create(dir.path().join("dev/cpu/0/msr")).unwrap();
    file.write_all_at(&7u64.to_le_bytes(), MSR_SYSCFG.into()).unwrap();
    assert_eq!(read_msr(dir.path(), MSR_SYSCFG), Some(7));
    assert_eq!(read_msr(dir.path(), 0xD000_0000), None);
    assert_eq!(read_msr(Path::new("/nonexistent"), MSR_SYSCFG), None);
}
