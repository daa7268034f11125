//! Kernel images: a plan or an error, never a panic, never a region outside of memory.
#![no_main]

use kata_cc_boot::{LaunchInput, LaunchPlan};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let input = LaunchInput {
        kernel: data,
        initramfs: None,
        cmdline: "quiet",
        memory_mib: 128,
        vcpus: 1,
        devices: 2,
        firmware: None,
    };
    if let Ok(plan) = LaunchPlan::new(&input) {
        for region in &plan.regions {
            assert!(region.gpa % 4096 == 0 && region.end() <= 128 << 20);
        }
    }
});
