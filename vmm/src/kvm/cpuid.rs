//! What the guest is told of its processor: KVM's list of what it supports, with the topology of this
//! VM in place of the host's, and without what a guest must not have. Sources: Intel SDM volume 2,
//! CPUID; AMD APM volume 3, appendix E; `docs/cpu_templates` of Firecracker for which leaves matter.
//!
//! Topology: one package, one thread per core. Nested virtualisation is off: it is KVM code with a
//! history, and no container needs it.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const VMX: u32 = 1 << 5;
const PDCM: u32 = 1 << 15;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const HTT: u32 = 1 << 28;
const SVM: u32 = 1 << 2;
const WAITPKG: u32 = 1 << 5;
const TURBO: u32 = 1 << 1;
const ENERGY_BIAS: u32 = 1 << 3;
/// Leaf of encrypted memory (APM volume 3, appendix E.4.17).
const MEMORY_ENCRYPTION: u32 = 0x8000_001F;

/// Takes the leaf of encrypted memory out of the list of a guest without private memory: KVM has it there for guests of
/// any kind, and whoever finds SEV in it reads an MSR (SEV_STATUS) that KVM gives to SEV guests only. stage0 does, to
/// refuse a boot block that names no TEE in one.
pub fn without_encryption(cpuid: &mut CpuId) {
    cpuid.retain(|entry| entry.function != MEMORY_ENCRYPTION);
}

/// Makes KVM's list that of vCPU `id` of `count`.
pub fn normalise(cpuid: &mut CpuId, id: u8, count: u8, tsc_deadline: bool) {
    let intel = vendor_is_intel(cpuid.as_slice());
    // 0xb is rebuilt below; 0x1f is the same in other words
    cpuid.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    for entry in cpuid.as_mut_slice() {
        adapt(entry, id, count, tsc_deadline);
        if intel && entry.function == 4 {
            adapt_intel_cache(entry, count);
        }
    }
    for level in topology(id, count) {
        // the list has room: two entries at least were for the host's topology or unused
        if cpuid.push(level).is_err() {
            tracing::warn!("cpuid list is full: no topology leaf");
        }
    }
}

fn adapt(entry: &mut kvm_cpuid_entry2, id: u8, count: u8, tsc_deadline: bool) {
    let (id, count) = (u32::from(id), u32::from(count));
    match entry.function {
        1 => {
            let threads = count.next_power_of_two();
            entry.ebx = entry.ebx & 0xff00 | id << 24 | threads << 16;
            entry.ecx = entry.ecx & !(VMX | PDCM | TSC_DEADLINE) | HYPERVISOR;
            if tsc_deadline {
                entry.ecx |= TSC_DEADLINE;
            }
            entry.edx &= !HTT;
            if count > 1 {
                entry.edx |= HTT;
            }
        }
        6 => {
            entry.eax &= !TURBO;
            entry.ecx &= !ENERGY_BIAS;
        }
        7 if entry.index == 0 => entry.ecx &= !WAITPKG,
        // no performance counters
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => entry.ecx &= !SVM,
        0x8000_0008 => entry.ecx = (count - 1) | id_bits(count) << 12,
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // each core has its caches to itself but the last level
        0x8000_001d => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level == 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
        }
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

fn adapt_intel_cache(entry: &mut kvm_cpuid_entry2, count: u8) {
    if entry.eax & 0x1f == 0 {
        return;
    }
    let cores = u32::from(count).next_power_of_two() - 1;
    let level = entry.eax >> 5 & 7;
    let sharing = if level == 3 { cores } else { 0 };
    entry.eax = entry.eax & 0x3fff | sharing << 14 | cores.min(0x3f) << 26;
}

/// Leaf 0xb: threads, then cores.
fn topology(id: u8, count: u8) -> [kvm_cpuid_entry2; 3] {
    let (id, count) = (u32::from(id), u32::from(count));
    let level = |index: u32, kind: u32, shift, threads| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: threads,
        ecx: index | (kind << 8),
        edx: id,
        ..Default::default()
    };
    [level(0, 1, 0, 1), level(1, 2, id_bits(count), count), level(2, 0, 0, 0)]
}

/// Bits that tell the vCPUs apart.
const fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn vendor_is_intel(entries: &[kvm_cpuid_entry2]) -> bool {
    entries.iter().any(|entry| entry.function == 0 && entry.ebx == u32::from_le_bytes(*b"Genu"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u32, u32, [u32; 4])]) -> CpuId {
        let entries: Vec<_> = entries
            .iter()
            .map(|&(function, index, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
                function,
                index,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            })
            .collect();
        CpuId::from_entries(&entries).expect("few entries")
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found = cpuid.as_slice().iter().find(|e| e.function == function && e.index == index);
        *found.expect("entry")
    }

    #[test]
    fn topology_is_that_of_the_vm() {
        let mut cpuid = list(&[(1, 0, [0, 0xffff_08ff, VMX, 0]), (0xb, 0, [9, 9, 9, 9])]);
        normalise(&mut cpuid, 2, 3, true);
        let one = find(&cpuid, 1, 0);
        assert_eq!(one.ebx, 2 << 24 | 4 << 16 | 0x0800);
        assert_eq!(one.ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(one.edx, HTT);
        let cores = find(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, 2));
    }

    #[test]
    fn a_guest_without_private_memory_finds_no_sev() {
        let mut cpuid = list(&[(0x8000_001e, 0, [1; 4]), (0x8000_001f, 0, [0x1f, 51, 9, 9])]);
        without_encryption(&mut cpuid);
        assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, 1);
        assert_eq!(cpuid.as_slice().len(), 1);
    }

    #[test]
    fn no_nested_virtualisation_and_no_counters() {
        let mut cpuid = list(&[
            (0x8000_0001, 0, [0, 0, SVM | 1, 0]),
            (0x8000_000a, 0, [1, 2, 3, 4]),
            (0xa, 0, [7, 7, 7, 7]),
        ]);
        normalise(&mut cpuid, 0, 1, false);
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx, 1);
        assert_eq!(find(&cpuid, 0x8000_000a, 0).eax, 0);
        assert_eq!(find(&cpuid, 0xa, 0).eax, 0);
    }
}
