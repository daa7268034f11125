use super::*;
use crate::test_random::Random;

/// A page to be changed.
#[derive(Clone)]
pub(in crate::snp) struct Builder {
    pub(in crate::snp) entries: Vec<Entry>,
}

fn entry(leaf: u32, subleaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> Entry {
    Entry { leaf, subleaf, xcr0: 0, xss: 0, registers: Registers { eax, ebx, ecx, edx } }
}

/// What a VMM gives a guest on a processor of the Milan family, shortened to what is looked at.
pub(in crate::snp) fn milan() -> Builder {
    let xsave = |subleaf, registers| Entry { xcr0: 1, ..entry(LEAF_XSAVE, subleaf, registers) };
    let entries = vec![
        entry(0, 0, [0x10, 0x6874_7541, 0x444D_4163, 0x6974_6E65]),
        entry(
            1,
            0,
            [0x00A0_0F11, 0, FEATURES_ECX | FEATURE_AVX | FEATURE_RDRAND | FEATURE_HYPERVISOR, FEATURES_EDX],
        ),
        entry(7, 0, [0, FEATURE_SMEP_SMAP | FEATURE_SHA, 0, 0]),
        xsave(0, [0x207, 0x240, 0x988, 0]),
        xsave(1, [0xF, 0x240, 0x1800, 0]),
        entry(LEAF_XSAVE, 2, [0x100, 0x240, 0, 0]),
        entry(LEAF_XSAVE, 9, [8, 0x980, 0, 0]),
        entry(LEAF_XSAVE, 11, [0x10, 0, 1, 0]),
        entry(LEAF_XSAVE, 12, [0x18, 0, 1, 0]),
        entry(LEAF_HYPERVISOR, 0, [0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D]),
        entry(0x4000_0001, 0, [0x0100_7EFB, 0, 0, 0]),
        entry(LEAF_EXTENDED, 0, [0x8000_0021, 0x6874_7541, 0x444D_4163, 0x6974_6E65]),
        entry(LEAF_EXTENDED_SIGNATURE, 0, [0x00A0_0F11, 0, 0, FEATURES_EXTENDED_EDX]),
        entry(LEAF_ADDRESS_SIZES, 0, [0x3030, 0, 0, 0]),
        entry(LEAF_ENCRYPTION, 0, [0x1A, 51 | 1 << 6, 0, 0]),
    ];
    Builder { entries }
}

/// Genoa: as Milan, with AVX-512.
fn genoa() -> Builder {
    let mut page = milan();
    page.at(LEAF_XSAVE, 0).registers = Registers { eax: 0x2E7, ebx: 0x240, ecx: 0x988, edx: 0 };
    page.at(LEAF_XSAVE, 9).registers.ebx = 0x980;
    page.entries.extend([
        entry(LEAF_XSAVE, 5, [0x40, 0x340, 0, 0]),
        entry(LEAF_XSAVE, 6, [0x200, 0x380, 0, 0]),
        entry(LEAF_XSAVE, 7, [0x400, 0x580, 0, 0]),
    ]);
    page
}

impl Builder {
    fn at(&mut self, leaf: u32, subleaf: u32) -> &mut Entry {
        let found = self.entries.iter_mut().find(|entry| entry.leaf == leaf && entry.subleaf == subleaf);
        found.expect("entry")
    }

    fn without(mut self, leaf: u32) -> Self {
        self.entries.retain(|entry| entry.leaf != leaf);
        self
    }

    fn with(mut self, entry: Entry) -> Self {
        self.entries.push(entry);
        self
    }

    fn changed(mut self, leaf: u32, subleaf: u32, change: impl FnOnce(&mut Registers)) -> Self {
        change(&mut self.at(leaf, subleaf).registers);
        self
    }

    pub(in crate::snp) fn page(&self) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        page[..4].copy_from_slice(&(self.entries.len() as u32).to_le_bytes());
        for (slot, entry) in page[HEADER_SIZE..].chunks_exact_mut(ENTRY_SIZE).zip(&self.entries) {
            let Registers { eax, ebx, ecx, edx } = entry.registers;
            slot[..4].copy_from_slice(&entry.leaf.to_le_bytes());
            slot[4..8].copy_from_slice(&entry.subleaf.to_le_bytes());
            slot[8..16].copy_from_slice(&entry.xcr0.to_le_bytes());
            slot[16..24].copy_from_slice(&entry.xss.to_le_bytes());
            for (to, from) in slot[24..40].chunks_exact_mut(4).zip([eax, ebx, ecx, edx]) {
                to.copy_from_slice(&from.to_le_bytes());
            }
        }
        page
    }

    fn verdict(&self) -> Result<CpuidFacts, CpuidRefusal> {
        verdict(&self.page())
    }
}

fn verdict(page: &[u8; PAGE_SIZE]) -> Result<CpuidFacts, CpuidRefusal> {
    CpuidTable::parse(page)?.check(51)
}

fn raw(change: impl FnOnce(&mut [u8; PAGE_SIZE])) -> Result<CpuidFacts, CpuidRefusal> {
    let mut page = milan().page();
    change(&mut page);
    verdict(&page)
}

#[test]
fn pages_of_real_processors_pass() {
    assert_eq!(milan().verdict(), Ok(CpuidFacts { c_bit: 51, physical_bits: 48, sha: true }));
    assert_eq!(genoa().verdict(), Ok(CpuidFacts { c_bit: 51, physical_bits: 48, sha: true }));
    // 52 bits of which the C-bit takes one.
    let wide = milan().changed(LEAF_ADDRESS_SIZES, 0, |registers| registers.eax = 0x34);
    assert_eq!(wide.verdict().map(|facts| facts.physical_bits), Ok(51));
    let no_sha = milan().changed(7, 0, |registers| registers.ebx &= !FEATURE_SHA);
    assert_eq!(no_sha.verdict().map(|facts| facts.sha), Ok(false));
}

#[test]
fn count_is_limited() {
    assert_eq!(verdict(&[0; PAGE_SIZE]), Err(CpuidRefusal::Count(0)));
    assert_eq!(raw(|page| page[0] = 65), Err(CpuidRefusal::Count(65)));
    assert_eq!(raw(|page| page[..4].fill(0xFF)), Err(CpuidRefusal::Count(u32::MAX)));
}

#[test]
fn reserved_bytes_are_zero() {
    assert_eq!(raw(|page| page[4] = 1), Err(CpuidRefusal::Reserved));
    assert_eq!(raw(|page| page[15] = 1), Err(CpuidRefusal::Reserved));
    assert_eq!(raw(|page| page[HEADER_SIZE + 47] = 1), Err(CpuidRefusal::Reserved));
    assert_eq!(raw(|page| page[4095] = 1), Err(CpuidRefusal::Reserved), "behind the last entry");
    assert_eq!(raw(|page| page[0] -= 1), Err(CpuidRefusal::Reserved), "an entry that is not counted");
}

#[test]
fn leaves_lie_in_announced_ranges() {
    let refused = |page: Builder| page.verdict();
    assert_eq!(refused(milan().with(entry(0x11, 0, [0; 4]))), Err(CpuidRefusal::LeafOutOfRange(0x11)));
    let hypervisor = entry(0x4000_0002, 0, [0; 4]);
    assert_eq!(refused(milan().with(hypervisor)), Err(CpuidRefusal::LeafOutOfRange(0x4000_0002)));
    assert_eq!(
        refused(milan().with(entry(0xC000_0000, 0, [0; 4]))),
        Err(CpuidRefusal::LeafOutOfRange(0xC000_0000))
    );
    assert_eq!(refused(milan().without(LEAF_HYPERVISOR)), Err(CpuidRefusal::LeafOutOfRange(0x4000_0001)));
    let all = milan().changed(0, 0, |registers| registers.eax = u32::MAX);
    assert_eq!(refused(all), Err(CpuidRefusal::LeafOutOfRange(u32::MAX)), "a range without an end");
    let second = milan().changed(LEAF_HYPERVISOR, 0, |registers| registers.eax = 0x4000_0100);
    assert_eq!(
        refused(second),
        Err(CpuidRefusal::LeafOutOfRange(0x4000_0100)),
        "a second hypervisor's range"
    );
}

#[test]
fn no_question_has_two_answers() {
    assert_eq!(milan().with(entry(1, 0, [0; 4])).verdict(), Err(CpuidRefusal::Duplicate(1)));
    assert_eq!(
        milan().with(entry(LEAF_XSAVE, 2, [0; 4])).verdict(),
        Err(CpuidRefusal::Duplicate(LEAF_XSAVE))
    );
    let other_state = Entry { xcr0: 3, ..entry(LEAF_XSAVE, 0, [7, 0x240, 0x240, 0]) };
    assert_eq!(milan().with(other_state).verdict(), Err(CpuidRefusal::Duplicate(LEAF_XSAVE)));
    let all_on = Entry { xcr0: 0x207, ..entry(LEAF_XSAVE, 0, [0x207, 0x988, 0x988, 0]) };
    assert!(milan().with(all_on).verdict().is_ok(), "sizes for other states may stand beside");
}

#[test]
fn indices_stand_where_the_leaf_has_them() {
    // Linux ignores the subleaf here and would take whichever comes first.
    assert_eq!(milan().with(entry(1, 1, [0; 4])).verdict(), Err(CpuidRefusal::UnexpectedIndex(1)));
    let state = Entry { xcr0: 7, ..entry(LEAF_XSAVE, 3, [0; 4]) };
    assert_eq!(milan().with(state).verdict(), Err(CpuidRefusal::UnexpectedIndex(LEAF_XSAVE)));
    let state = Entry { xss: 1, ..entry(0x10, 0, [0; 4]) };
    assert_eq!(milan().with(state).verdict(), Err(CpuidRefusal::UnexpectedIndex(0x10)));
    let mut no_state = milan();
    no_state.at(LEAF_XSAVE, 0).xcr0 = 0;
    assert_eq!(no_state.verdict(), Err(CpuidRefusal::Missing(LEAF_XSAVE)));
}

#[test]
fn leaves_that_each_processor_has_are_there() {
    for leaf in [1, 7, LEAF_XSAVE, LEAF_EXTENDED_SIGNATURE, LEAF_ADDRESS_SIZES, LEAF_ENCRYPTION] {
        assert_eq!(milan().without(leaf).verdict(), Err(CpuidRefusal::Missing(leaf)), "{leaf:#x}");
    }
    assert_eq!(milan().without(0).verdict(), Err(CpuidRefusal::LeafOutOfRange(1)));
}

#[test]
fn no_other_machine_is_claimed() {
    let intel = milan().changed(0, 0, |registers| registers.ebx = 0x756E_6547);
    assert_eq!(intel.verdict(), Err(CpuidRefusal::Vendor));
    // `Microsoft Hv`: Linux would go over to Hyper-V's interfaces.
    let hyperv = milan().changed(LEAF_HYPERVISOR, 0, |registers| registers.ebx = 0x7263_694D);
    assert_eq!(hyperv.verdict(), Err(CpuidRefusal::Hypervisor));
    let tdx = milan().changed(0, 0, |registers| registers.eax = 0x21).with(entry(
        LEAF_TDX,
        0,
        [0, 0x65_746E49, 0x2020_2020, 0x5844_546C],
    ));
    assert_eq!(tdx.verdict(), Err(CpuidRefusal::ForeignTee));
}

#[test]
fn nothing_is_hidden_that_the_guest_needs() {
    let features = |change: fn(&mut Registers)| milan().changed(1, 0, change).verdict();
    assert_eq!(features(|registers| registers.ecx &= !FEATURE_HYPERVISOR), Err(CpuidRefusal::HypervisorBit));
    assert_eq!(features(|registers| registers.ecx &= !FEATURE_RDRAND), Err(CpuidRefusal::NoRdrand));
    assert_eq!(features(|registers| registers.ecx &= !(1 << 26)), Err(CpuidRefusal::Baseline(1)));
    assert_eq!(features(|registers| registers.edx &= !(1 << 26)), Err(CpuidRefusal::Baseline(1)));
    let no_smap = milan().changed(7, 0, |registers| registers.ebx &= !(1 << 20));
    assert_eq!(no_smap.verdict(), Err(CpuidRefusal::NoSupervisorProtection));
    let no_nx = milan().changed(LEAF_EXTENDED_SIGNATURE, 0, |registers| registers.edx &= !(1 << 20));
    assert_eq!(no_nx.verdict(), Err(CpuidRefusal::Baseline(LEAF_EXTENDED_SIGNATURE)));
}

#[test]
fn encryption_is_the_measured_one() {
    let change = |change: fn(&mut Registers)| milan().changed(LEAF_ENCRYPTION, 0, change).verdict();
    assert_eq!(change(|registers| registers.eax &= !(1 << 4)), Err(CpuidRefusal::NoEncryption));
    assert_eq!(change(|registers| registers.ebx = 47), Err(CpuidRefusal::CBit(47)));
    assert_eq!(change(|registers| registers.ebx = 0), Err(CpuidRefusal::CBit(0)));
    let narrow = milan().changed(LEAF_ADDRESS_SIZES, 0, |registers| registers.eax = 32);
    assert_eq!(narrow.verdict(), Err(CpuidRefusal::PhysicalBits(32)));
    let wide = milan().changed(LEAF_ADDRESS_SIZES, 0, |registers| registers.eax = 53);
    assert_eq!(wide.verdict(), Err(CpuidRefusal::PhysicalBits(53)));
}

#[test]
fn xsave_components_have_their_sizes() {
    let change = |subleaf, change: fn(&mut Registers)| genoa().changed(LEAF_XSAVE, subleaf, change).verdict();
    // A buffer smaller than what the processor writes.
    assert_eq!(change(2, |registers| registers.eax = 0x80), Err(CpuidRefusal::Xsave(2)));
    assert_eq!(change(7, |registers| registers.eax = 0x200), Err(CpuidRefusal::Xsave(7)));
    assert_eq!(change(12, |registers| registers.eax = 8), Err(CpuidRefusal::Xsave(12)));
    assert_eq!(
        change(0, |registers| registers.ecx = 0x500),
        Err(CpuidRefusal::Xsave(0)),
        "the whole too small"
    );
    assert_eq!(change(0, |registers| registers.ecx = u32::MAX), Err(CpuidRefusal::Xsave(0)));
    assert_eq!(change(0, |registers| registers.ebx = 0), Err(CpuidRefusal::Xsave(0)));
    assert_eq!(change(1, |registers| registers.ebx = 8), Err(CpuidRefusal::Xsave(0)));
    // Places.
    assert_eq!(
        change(2, |registers| registers.ebx = 0x100),
        Err(CpuidRefusal::Xsave(2)),
        "in the legacy region"
    );
    assert_eq!(change(9, |registers| registers.ebx = 0x600), Err(CpuidRefusal::Xsave(7)), "over another");
    assert_eq!(change(9, |registers| registers.ebx = u32::MAX - 4), Err(CpuidRefusal::Xsave(9)));
    assert_eq!(change(11, |registers| registers.ebx = 0x800), Err(CpuidRefusal::Xsave(11)));
}

#[test]
fn xsave_masks_and_components_agree() {
    let mask = |eax| genoa().changed(LEAF_XSAVE, 0, |registers| registers.eax = eax).verdict();
    assert_eq!(mask(0x2E4), Err(CpuidRefusal::Xsave(0)), "without x87 and SSE");
    assert_eq!(mask(0x267), Err(CpuidRefusal::Xsave(0)), "AVX-512 in part");
    assert_eq!(mask(0x2E3), Err(CpuidRefusal::Xsave(0)), "AVX-512 without AVX");
    assert_eq!(mask(0x2EF), Err(CpuidRefusal::Xsave(0)), "a component without an entry");
    assert_eq!(mask(0x0E7), Err(CpuidRefusal::Xsave(9)), "an entry without its component");
    let both = genoa().changed(LEAF_XSAVE, 1, |registers| registers.ecx |= 4);
    assert_eq!(both.verdict(), Err(CpuidRefusal::Xsave(0)), "user and supervisor state at once");
    let high = milan().with(entry(LEAF_XSAVE, 200, [8, 0x1000, 0, 0]));
    assert_eq!(high.verdict(), Err(CpuidRefusal::Xsave(200)));
}

#[test]
fn lookup_answers_like_the_processor() {
    let page = genoa().page();
    let table = CpuidTable::parse(&page).expect("page");
    assert_eq!(table.lookup(1, 77).eax, 0x00A0_0F11, "ECX counts for indexed leaves only");
    assert_eq!(table.lookup(7, 1), Registers::default());
    assert_eq!(table.lookup(LEAF_XSAVE, 0).ebx, 0x240);
    assert_eq!(table.lookup(0x9000_0000, 0), Registers::default());
}

#[test]
fn no_change_of_a_page_makes_it_panic_and_no_lie_about_the_c_bit_passes() {
    let mut random = Random::new(7);
    let base = genoa().page();
    let mut passed = 0;
    for _ in 0..20_000 {
        let mut page = base;
        for _ in 0..=random.below(3) {
            let at = random.below(16 + 18 * 48) as usize;
            page[at] = random.next() as u8;
        }
        if let Ok(facts) = verdict(&page) {
            passed += 1;
            assert_eq!(facts.c_bit, 51);
            let table = CpuidTable::parse(&page).expect("passed");
            assert_eq!(table.lookup(LEAF_XSAVE, 2).eax, 0x100, "a buffer of AVX's size");
            assert_ne!(table.lookup(1, 0).ecx & FEATURE_RDRAND, 0);
        }
    }
    assert!(passed > 0, "changes of features that nobody is harmed by pass");
}
