//! What a stub asks of `/dev/kvm` (`include/uapi/linux/kvm.h`, `Documentation/virt/kvm/api.rst`), and the structures that go with it as bytes: they
//! lie in memory that a stub shares with the sentry.

const fn request(direction: u32, number: u32, size: u32) -> u32 {
    direction << 30 | size << 16 | 0xae << 8 | number
}

pub(super) const GET_API_VERSION: u32 = request(0, 0x00, 0);
pub(super) const CREATE_VM: u32 = request(0, 0x01, 0);
pub(super) const CHECK_EXTENSION: u32 = request(0, 0x03, 0);
pub(super) const GET_SUPPORTED_CPUID: u32 = request(3, 0x05, 8);
pub(super) const CREATE_VCPU: u32 = request(0, 0x41, 0);
pub(super) const SET_USER_MEMORY_REGION: u32 = request(1, 0x46, 32);
pub(super) const RUN: u32 = request(0, 0x80, 0);
pub(super) const GET_REGS: u32 = request(2, 0x81, 144);
pub(super) const SET_REGS: u32 = request(1, 0x82, 144);
pub(super) const GET_SREGS: u32 = request(2, 0x83, 312);
pub(super) const SET_SREGS: u32 = request(1, 0x84, 312);
pub(super) const INTERRUPT: u32 = request(1, 0x86, 4);
pub(super) const SET_MSRS: u32 = request(1, 0x89, 8);
pub(super) const SET_CPUID2: u32 = request(1, 0x90, 8);
pub(super) const GET_XSAVE: u32 = request(2, 0xa4, 4096);
pub(super) const SET_XSAVE: u32 = request(1, 0xa5, 4096);
pub(super) const SET_XCRS: u32 = request(1, 0xa7, 392);
pub(super) const SET_DEVICE_ATTR: u32 = request(1, 0xe1, 24);

/// All: no other passes a stub's filter.
pub(super) const ALL: &[u32] = &[
    RUN,
    INTERRUPT,
    GET_REGS,
    SET_REGS,
    GET_XSAVE,
    SET_XSAVE,
    SET_USER_MEMORY_REGION,
    CREATE_VM,
    CREATE_VCPU,
    SET_CPUID2,
    GET_SREGS,
    SET_SREGS,
    SET_XCRS,
    SET_MSRS,
    SET_DEVICE_ATTR,
    GET_SUPPORTED_CPUID,
    CHECK_EXTENSION,
    GET_API_VERSION,
];

/// The version that all kernels have.
pub(super) const API_VERSION: u64 = 12;

/// `KVM_CAP_NR_VCPUS` is what is advised; this is what there can be.
pub(super) const CAP_MAX_VCPUS: u64 = 66;
/// `KVM_CAP_NR_MEMSLOTS`.
pub(super) const CAP_NR_MEMSLOTS: u64 = 10;

/// In `struct kvm_run`: a processor that is to run comes back at once.
pub(super) const IMMEDIATE_EXIT: usize = 1;
/// Why it came back.
pub(super) const EXIT_REASON: usize = 8;
/// Whether interrupts are on: not in ring 0, always in ring 3.
pub(super) const IF_FLAG: usize = 13;

/// Where `rip` lies in `struct kvm_regs`, and bytes of it.
pub(super) const RIP: usize = 128;
pub(super) const REGS_SIZE: usize = 144;

/// Bytes of `struct kvm_sregs`, and where parts of it lie: eight segments, two tables, control registers.
pub(super) const SREGS_SIZE: usize = 312;
pub(super) const SEGMENT: usize = 24;
pub(super) const GDT: usize = 8 * SEGMENT;
pub(super) const CONTROL: usize = GDT + 32;
pub(super) const EFER: usize = CONTROL + 40;

/// Bytes of `struct kvm_xsave`.
pub(super) const XSAVE_SIZE: usize = 4096;

/// Bytes of `struct kvm_cpuid_entry2`, and of what precedes them.
pub(super) const CPUID_ENTRY: usize = 40;
pub(super) const CPUID_HEADER: usize = 8;

/// `struct kvm_segment`. `kind`: type, present, dpl, db, s, l, g.
pub(super) fn segment(base: u64, limit: u32, selector: u16, kind: [u8; 7]) -> [u8; SEGMENT] {
    let mut bytes = [0; SEGMENT];
    bytes[..8].copy_from_slice(&base.to_le_bytes());
    bytes[8..12].copy_from_slice(&limit.to_le_bytes());
    bytes[12..14].copy_from_slice(&selector.to_le_bytes());
    bytes[14..21].copy_from_slice(&kind);
    bytes
}

/// `struct kvm_userspace_memory_region`.
pub(super) fn region(slot: u32, guest: u64, size: u64, host: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(slot.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend([guest, size, host].iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

/// `struct kvm_msrs` with these registers.
pub(super) fn msrs(all: &[(u32, u64)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((all.len() as u64).to_le_bytes());
    for (index, value) in all {
        bytes.extend(u64::from(*index).to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes
}

/// `struct kvm_xcrs` with XCR0.
pub(super) fn xcrs(xcr0: u64) -> Vec<u8> {
    let mut bytes = vec![0; 392];
    bytes[..4].copy_from_slice(&1_u32.to_le_bytes());
    bytes[16..24].copy_from_slice(&xcr0.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(RUN, 0xae80);
        assert_eq!(SET_USER_MEMORY_REGION, 0x4020_ae46);
        assert_eq!(GET_SUPPORTED_CPUID, 0xc008_ae05);
        assert_eq!((GET_REGS, SET_REGS), (0x8090_ae81, 0x4090_ae82));
        assert_eq!((GET_SREGS, SET_SREGS), (0x8138_ae83, 0x4138_ae84));
        assert_eq!((GET_XSAVE, SET_XSAVE), (0x9000_aea4, 0x5000_aea5));
        assert_eq!((SET_XCRS, SET_DEVICE_ATTR), (0x4188_aea7, 0x4018_aee1));
    }
}
