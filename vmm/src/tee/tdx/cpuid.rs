//! CPUID of a TD: INIT_VM takes only leaves and bits that the TDX module lets the host choose; all others are
//! fixed by the module, and stating them is an error.

use kvm_bindings::kvm_cpuid_entry2;

/// Of the guest's CPUID list, what may be chosen: the leaves that the capabilities name, cut to their bits.
#[must_use]
pub fn configurable(list: &[kvm_cpuid_entry2], capabilities: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    capabilities
        .iter()
        .map(|mask| {
            let wanted = list
                .iter()
                .find(|entry| (entry.function, entry.index) == (mask.function, mask.index))
                .copied()
                .unwrap_or_default();
            kvm_cpuid_entry2 {
                eax: wanted.eax & mask.eax,
                ebx: wanted.ebx & mask.ebx,
                ecx: wanted.ecx & mask.ecx,
                edx: wanted.edx & mask.edx,
                ..*mask
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_module_lets_choose_is_left() {
        let entry =
            |function, index, eax, ebx| kvm_cpuid_entry2 { function, index, eax, ebx, ..Default::default() };
        let list = [entry(1, 0, 0xFF, 0xFF), entry(4, 1, 3, 3), entry(9, 0, 1, 1)];
        let masks = [entry(1, 0, 0x0F, 0), entry(4, 1, 1, 2), entry(0x24, 0, 0xFF, 0)];
        assert_eq!(
            configurable(&list, &masks),
            [entry(1, 0, 0x0F, 0), entry(4, 1, 1, 2), entry(0x24, 0, 0, 0)]
        );
    }
}
