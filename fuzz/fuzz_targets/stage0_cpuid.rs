//! CPUID pages of SEV-SNP guests: one that passes leaves nothing out that the guest relies upon.
#![no_main]

use kata_cc_stage0::exception::Frame;
use kata_cc_stage0::snp::cpuid::{CpuidTable, Registers};
use kata_cc_stage0::snp::vc::handle;
use libfuzzer_sys::fuzz_target;

const C_BIT: u8 = 51;
const CPUID: [u8; 2] = [0x0F, 0xA2];

fuzz_target!(|data: &[u8]| {
    // What is not given is zero, as in a page that a host filled in part.
    let mut page = [0; 4096];
    let length = data.len().min(page.len());
    page[..length].copy_from_slice(&data[..length]);
    let Ok(table) = CpuidTable::parse(&page) else { return };
    for entry in table.entries() {
        let mut frame =
            Frame { rax: entry.leaf.into(), rcx: entry.subleaf.into(), rip: u64::MAX, ..Frame::default() };
        assert_eq!(handle(&mut frame, 0x72, CPUID, &table), Ok(()));
        assert_eq!(frame.rip, 1);
    }
    let Ok(facts) = table.check(C_BIT) else { return };
    assert_eq!(facts.c_bit, C_BIT);
    assert!(facts.physical_bits <= C_BIT);
    let features = table.lookup(1, 0);
    assert_eq!(features.ecx >> 30, 0b11, "RDRAND and the hypervisor bit");
    assert_eq!(table.lookup(0x21, 0), Registers::default(), "not a TDX guest");
    let xsave = table.lookup(0xD, 0);
    for component in 2..32_u32 {
        let area = table.lookup(0xD, component);
        if xsave.eax >> component & 1 == 1 {
            assert!(area.eax > 0 && area.ebx >= 0x240 && area.eax + area.ebx <= xsave.ecx);
        }
    }
});
