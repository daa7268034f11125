//! A measured first state, as KVM is told it. KVM makes the VMSA of these registers when the launch is finished;
//! a register that is not set here as the prediction has it would show as another digest.

use kata_cc_measurement::VmsaRegisters;
use kata_cc_measurement::vmsa::{EFER_SVME, Segment};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// `CR4.MCE`, which KVM adds to the VMSA from the host's own register.
const CR4_MCE: u64 = 1 << 6;

/// Fills in the registers that KVM takes from user space.
pub(super) fn kernel_registers(vmsa: &VmsaRegisters, sregs: &mut kvm_sregs) -> kvm_regs {
    (sregs.cs, sregs.ss) = (segment(vmsa.cs), segment(vmsa.ss));
    (sregs.ds, sregs.es) = (segment(vmsa.ds), segment(vmsa.es));
    (sregs.fs, sregs.gs) = (segment(vmsa.fs), segment(vmsa.gs));
    (sregs.tr, sregs.ldt) = (segment(vmsa.tr), segment(vmsa.ldtr));
    (sregs.gdt, sregs.idt) = (table(vmsa.gdtr), table(vmsa.idtr));
    (sregs.cr0, sregs.cr2, sregs.cr3) = (vmsa.cr0, vmsa.cr2, vmsa.cr3);
    // both are KVM's to set
    sregs.cr4 = vmsa.cr4 & !CR4_MCE;
    sregs.efer = vmsa.efer & !EFER_SVME;
    let [r8, r9, r10, r11, r12, r13, r14, r15] = vmsa.r8_15;
    kvm_regs {
        rax: vmsa.rax,
        rbx: vmsa.rbx,
        rcx: vmsa.rcx,
        rdx: vmsa.rdx,
        rsi: vmsa.rsi,
        rdi: vmsa.rdi,
        rsp: vmsa.rsp,
        rbp: vmsa.rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: vmsa.rip,
        rflags: vmsa.rflags,
    }
}

/// A segment register as KVM is told it.
pub(crate) fn segment(s: Segment) -> kvm_segment {
    let bit = |n: u16| (s.attributes >> n & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.attributes & 0xF) as u8,
        s: bit(4),
        dpl: (s.attributes >> 5 & 3) as u8,
        present: bit(7),
        avl: bit(8),
        l: bit(9),
        db: bit(10),
        g: bit(11),
        unusable: u8::from(bit(7) == 0),
        padding: 0,
    }
}

fn table(s: Segment) -> kvm_dtable {
    kvm_dtable { base: s.base, limit: s.limit as u16, padding: [0; 3] }
}
