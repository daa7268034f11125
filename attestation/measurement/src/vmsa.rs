//! VMSA: the 4 KiB page that holds a vCPU's registers at its first instruction.
//!
//! A measured page: any register that the host would change at start changes the launch digest.
//! Layout: AMD64 APM volume 2, appendix B, table B-4 ("VMSA layout, state save area for SEV-ES"),
//! as KVM fills it in from the vCPU's registers. All that is not named here is zero.
//!
//! [`VmsaRegisters::reset`] is the state of a vCPU at reset under KVM and QEMU, [`VmsaRegisters::flat32`] that
//! of our own firmware; other start states (64-bit direct boot) are made from [`VmsaRegisters::cleared`] by setting the public fields.

use crate::PAGE_SIZE;

/// `SEV_FEATURES` bit 0: the guest is SNP-active. KVM always sets it for SNP.
pub const SEV_FEATURE_SNP_ACTIVE: u64 = 1;

/// `EFER.SVME`: has to be set in every SEV-ES or SNP VMSA.
pub const EFER_SVME: u64 = 0x1000;

/// Page attribute table after reset.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// A segment register as the VMSA stores it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Attributes in VMCB form (type, S, DPL, P in bits 7:0; AVL, L, D/B, G in bits 11:8).
    pub attributes: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Linear base address.
    pub base: u64,
}

impl Segment {
    /// A segment from its four fields.
    #[must_use]
    pub const fn new(selector: u16, attributes: u16, limit: u32, base: u64) -> Self {
        Self { selector, attributes, limit, base }
    }
}

/// Registers of a vCPU at its first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields carry the architecture's register names")]
pub struct VmsaRegisters {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    /// Privilege level of the guest context (VMPL) and of the code (CPL).
    pub vmpl: u8,
    pub cpl: u8,
    pub efer: u64,
    pub xss: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub dr6: u64,
    pub dr7: u64,
    pub rflags: u64,
    pub rip: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    /// R8 … R15.
    pub r8_15: [u64; 8],
    pub g_pat: u64,
    pub sev_features: u64,
    pub xcr0: u64,
    pub mxcsr: u32,
    /// x87 control word.
    pub fcw: u16,
}

impl VmsaRegisters {
    /// Everything zero but what each VMSA needs: `EFER.SVME`, SNP active, PAT, XCR0, MXCSR, x87
    /// control word, debug registers and the always-one bit of RFLAGS at their reset values.
    #[must_use]
    pub const fn cleared() -> Self {
        const NULL: Segment = Segment::new(0, 0, 0, 0);
        Self {
            es: NULL,
            cs: NULL,
            ss: NULL,
            ds: NULL,
            fs: NULL,
            gs: NULL,
            gdtr: NULL,
            ldtr: NULL,
            idtr: NULL,
            tr: NULL,
            vmpl: 0,
            cpl: 0,
            efer: EFER_SVME,
            xss: 0,
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            dr6: 0xFFFF_0FF0,
            dr7: 0x400,
            rflags: 2,
            rip: 0,
            rax: 0,
            rbx: 0,
            rcx: 0,
            rdx: 0,
            rsi: 0,
            rdi: 0,
            rbp: 0,
            rsp: 0,
            r8_15: [0; 8],
            g_pat: PAT_RESET,
            sev_features: SEV_FEATURE_SNP_ACTIVE,
            xcr0: 1,
            mxcsr: 0x1F80,
            fcw: 0x37F,
        }
    }

    /// State at reset under KVM and QEMU, starting at `eip` in real mode (`0xFFFF_FFF0` for the boot
    /// vCPU), with the CPUID signature (leaf 1, EAX) in RDX.
    #[must_use]
    pub const fn reset(eip: u32, cpu_signature: u32, sev_features: u64) -> Self {
        const DATA: Segment = Segment::new(0, 0x93, 0xFFFF, 0);
        const TABLE: Segment = Segment::new(0, 0, 0xFFFF, 0);
        Self {
            es: DATA,
            cs: Segment::new(0xF000, 0x9B, 0xFFFF, (eip & 0xFFFF_0000) as u64),
            ss: DATA,
            ds: DATA,
            fs: DATA,
            gs: DATA,
            gdtr: TABLE,
            ldtr: Segment::new(0, 0x82, 0xFFFF, 0),
            idtr: TABLE,
            tr: Segment::new(0, 0x8B, 0xFFFF, 0),
            cr0: 0x10,
            cr4: 0x40,
            rip: (eip & 0xFFFF) as u64,
            rdx: cpu_signature as u64,
            sev_features,
            ..Self::cleared()
        }
    }

    /// 32-bit protected mode without paging, flat segments, at `entry`: how stage0 starts on every vCPU. The
    /// rest is as at reset; KVM adds CR4.MCE and EFER.SVME to what a VMM sets, and so they are here.
    #[must_use]
    pub const fn flat32(entry: u32, cpu_signature: u32, sev_features: u64) -> Self {
        const CODE: Segment = Segment::new(8, 0xC9B, 0xFFFF_FFFF, 0);
        const DATA: Segment = Segment::new(16, 0xC93, 0xFFFF_FFFF, 0);
        /// Empty: an event that the host injects before stage0 has tables, or at a vCPU that waits, ends the guest.
        const NONE: Segment = Segment::new(0, 0, 0, 0);
        Self {
            gdtr: NONE,
            idtr: NONE,
            cs: CODE,
            ds: DATA,
            es: DATA,
            fs: DATA,
            gs: DATA,
            ss: DATA,
            cr0: 0x11,
            rip: entry as u64,
            ..Self::reset(entry, cpu_signature, sev_features)
        }
    }

    /// The page as it is measured.
    #[must_use]
    pub fn to_page(&self) -> Box<[u8; PAGE_SIZE]> {
        let mut page = Page(Box::new([0; PAGE_SIZE]));
        let segments =
            [self.es, self.cs, self.ss, self.ds, self.fs, self.gs, self.gdtr, self.ldtr, self.idtr, self.tr];
        for (index, segment) in segments.iter().enumerate() {
            page.segment(index * 0x10, segment);
        }
        page.put(0xCA, &[self.vmpl, self.cpl]);
        for (offset, value) in [
            (0xD0, self.efer),
            (0x140, self.xss),
            (0x148, self.cr4),
            (0x150, self.cr3),
            (0x158, self.cr0),
            (0x160, self.dr7),
            (0x168, self.dr6),
            (0x170, self.rflags),
            (0x178, self.rip),
            (0x1D8, self.rsp),
            (0x1F8, self.rax),
            (0x240, self.cr2),
            (0x268, self.g_pat),
            (0x308, self.rcx),
            (0x310, self.rdx),
            (0x318, self.rbx),
            (0x328, self.rbp),
            (0x330, self.rsi),
            (0x338, self.rdi),
            (0x3B0, self.sev_features),
            (0x3E8, self.xcr0),
        ] {
            page.put(offset, &value.to_le_bytes());
        }
        for (index, value) in self.r8_15.iter().enumerate() {
            page.put(0x340 + index * 8, &value.to_le_bytes());
        }
        page.put(0x408, &self.mxcsr.to_le_bytes());
        page.put(0x410, &self.fcw.to_le_bytes());
        page.0
    }
}

/// Offset, bytes and name of each field that [`VmsaRegisters`] fills in.
const FIELDS: [(usize, usize, &str); 35] = [
    (0x00, 16, "ES"),
    (0x10, 16, "CS"),
    (0x20, 16, "SS"),
    (0x30, 16, "DS"),
    (0x40, 16, "FS"),
    (0x50, 16, "GS"),
    (0x60, 16, "GDTR"),
    (0x70, 16, "LDTR"),
    (0x80, 16, "IDTR"),
    (0x90, 16, "TR"),
    (0xCA, 1, "VMPL"),
    (0xCB, 1, "CPL"),
    (0xD0, 8, "EFER"),
    (0x140, 8, "XSS"),
    (0x148, 8, "CR4"),
    (0x150, 8, "CR3"),
    (0x158, 8, "CR0"),
    (0x160, 8, "DR7"),
    (0x168, 8, "DR6"),
    (0x170, 8, "RFLAGS"),
    (0x178, 8, "RIP"),
    (0x1D8, 8, "RSP"),
    (0x1F8, 8, "RAX"),
    (0x240, 8, "CR2"),
    (0x268, 8, "G_PAT"),
    (0x308, 8, "RCX"),
    (0x310, 8, "RDX (CPU family, model and stepping)"),
    (0x318, 8, "RBX"),
    (0x328, 8, "RBP"),
    (0x330, 8, "RSI"),
    (0x338, 8, "RDI"),
    (0x340, 64, "R8 to R15"),
    (0x3B0, 8, "SEV_FEATURES"),
    (0x3E8, 8, "XCR0"),
    (0x408, 10, "MXCSR and x87 control word"),
];

/// The register that a byte of a VMSA belongs to.
#[must_use]
pub fn register_at(offset: usize) -> Option<&'static str> {
    FIELDS.iter().find(|(start, len, _)| (*start..start + len).contains(&offset)).map(|(.., name)| *name)
}

/// The page being filled in; offsets are constants of this file, all below 0x420.
struct Page(Box<[u8; PAGE_SIZE]>);

impl Page {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn segment(&mut self, offset: usize, segment: &Segment) {
        self.put(offset, &segment.selector.to_le_bytes());
        self.put(offset + 2, &segment.attributes.to_le_bytes());
        self.put(offset + 4, &segment.limit.to_le_bytes());
        self.put(offset + 8, &segment.base.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_sit_at_the_documented_offsets() {
        let registers = VmsaRegisters {
            rsi: 0x1122_3344_5566_7788,
            r8_15: [1, 2, 3, 4, 5, 6, 7, 0xF],
            cpl: 3,
            ..VmsaRegisters::reset(0xFFFF_FFF0, 0x00A0_0F11, 0x21)
        };
        let page = registers.to_page();
        let u64_at =
            |offset: usize| u64::from_le_bytes(page[offset..offset + 8].try_into().expect("8 bytes"));
        assert_eq!(&page[0x10..0x20], &[0x00, 0xF0, 0x9B, 0, 0xFF, 0xFF, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0, 0, 0]);
        assert_eq!(page[0xCB], 3);
        assert_eq!(u64_at(0x178), 0xFFF0);
        assert_eq!(u64_at(0x310), 0x00A0_0F11);
        assert_eq!(u64_at(0x330), 0x1122_3344_5566_7788);
        assert_eq!(u64_at(0x378), 0xF);
        assert_eq!(u64_at(0x3B0), 0x21);
        assert_eq!(register_at(0x17F), Some("RIP"));
        assert_eq!(register_at(0x180), None);
        assert!(page[0x412..].iter().all(|byte| *byte == 0));
    }
}
