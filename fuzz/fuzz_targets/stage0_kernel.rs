//! Kernel files as the guest firmware takes them apart: refused, or parts that lie within the file and apart from the
//! firmware, in order, below 1 GiB.
#![no_main]

use kata_cc_stage0::kernel::Kernel;
use kata_cc_stage0_abi::KernelKind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for kind in [KernelKind::BzImage, KernelKind::Vmlinux] {
        let Ok(kernel) = Kernel::parse(data, kind) else { continue };
        let mut last = 2 << 20;
        for segment in kernel.segments() {
            assert!(segment.address >= last && segment.content <= segment.memory);
            assert!(segment.offset + segment.content <= data.len() as u64);
            last = segment.address + segment.memory;
        }
        assert!(last <= kernel.end && kernel.end <= 1 << 30);
        assert!(kernel.start <= kernel.entry && kernel.entry < kernel.end);
    }
});
