//! The same launch in memory that holds something else before: the host chooses what is in memory that the guest accepts
//! (SNP), and without a TEE in all of it. What the guest gets must not depend on it.

use kata_cc_stage0_abi::PlatformKind;

use crate::boot::{Entry, boot};
use crate::boot_tests::{ENTRY, Launch};
use crate::fake::{FakeMemory, FakePlatform, State};
use crate::places::LOW_MEMORY_END;
use crate::platform::{Payload, Platform, Termination, layout};
use crate::tee_boot_tests::boot_in;
use crate::test_random::Random;
use crate::{snp, tdx};

const MIB: u64 = 1 << 20;

/// What is in memory before, page after page.
type Fill = Box<dyn FnMut(&mut [u8])>;

fn fills() -> [Fill; 3] {
    let mut random = Random::new(1);
    let scramble = move |page: &mut [u8]| {
        for word in page.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
    };
    [Box::new(|page| page.fill(0)), Box::new(|page| page.fill(0xA5)), Box::new(scramble)]
}

/// A boot, as far as it can be compared with another.
struct Booted {
    result: Result<Entry, Termination>,
    before: Vec<u8>,
    memory: FakeMemory,
    measured: Vec<Payload>,
}

impl Booted {
    fn new(launch: &Launch, mut fill: Fill) -> Self {
        let mut memory = launch.memory_over(&mut fill);
        let before = memory.private.clone();
        let mut platform = FakePlatform::new(&memory, launch.handover);
        let result = boot(&mut platform, &mut memory, &launch.block);
        Self { result, before, memory, measured: platform.measured }
    }

    fn on(tee: impl Platform, launch: &Launch, mut fill: Fill) -> Self {
        let memory = launch.memory_over(&mut fill);
        let before = memory.private.clone();
        let (result, memory) = boot_in(tee, launch, memory);
        Self { result, before, memory, measured: Vec::new() }
    }

    fn pages(&self) -> Vec<State> {
        self.memory.pages.borrow().clone()
    }

    fn u32_at(&self, at: u64) -> u64 {
        u32::from_le_bytes(*self.memory.bytes(at, 4).first_chunk().expect("four")).into()
    }

    /// All that the guest is told of or finds where it looks: low memory with boot parameters and command line, MP table, all
    /// tables, the kernel with the memory that its file does not fill, the initramfs.
    fn given(&self, lazy: bool) -> Vec<(u64, &[u8])> {
        let tables = (layout::TABLES, layout::TABLES_END - layout::TABLES);
        let kernel = [(ENTRY, 4096), (ENTRY + 3 * MIB, 2 * MIB)];
        let initramfs = (self.u32_at(0x7000 + 0x218), self.u32_at(0x7000 + 0x21c));
        let mut all = vec![(0, LOW_MEMORY_END), (0xF_0000, layout::PAGE_SIZE), tables, initramfs];
        all.extend(kernel);
        all.extend(lazy.then_some((layout::UNACCEPTED, layout::PAGE_SIZE)));
        all.into_iter().map(|(start, length)| (start, self.memory.bytes(start, length))).collect()
    }
}

/// Where two boots differ stage0 never wrote: one has what was there before, and so has the other.
fn assert_untouched(one: &Booted, other: &Booted) {
    let pages = |booted: &Booted, number: usize| {
        let page = number * 4096..(number + 1) * 4096;
        (booted.memory.private[page.clone()].to_vec(), booted.before[page].to_vec())
    };
    for number in 0..one.before.len() / 4096 {
        let ((mine, mine_before), (theirs, theirs_before)) = (pages(one, number), pages(other, number));
        if mine == mine_before && theirs == theirs_before {
            continue;
        }
        let carried = |at: &usize| {
            let untouched = mine[*at] == mine_before[*at] && theirs[*at] == theirs_before[*at];
            mine[*at] != theirs[*at] && !untouched
        };
        let wrong = (0..4096).find(carried).map(|at| format!("{:#x}", number * 4096 + at));
        assert_eq!(wrong, None, "depends on what was in memory");
    }
}

fn assert_same(boots: &[Booted], lazy: bool, what: &str) {
    let (first, others) = boots.split_first().expect("boots");
    assert!(first.result.is_ok(), "{what}: {:?}", first.result);
    for other in others {
        assert_eq!((first.result, &first.measured), (other.result, &other.measured), "{what}");
        assert!(first.pages() == other.pages(), "{what}: other pages are private");
        for (mine, theirs) in first.given(lazy).into_iter().zip(other.given(lazy)) {
            assert!(mine == theirs, "{what}: {:#x} depends on what was in memory", mine.0);
        }
        assert_untouched(first, other);
    }
}

#[test]
fn what_was_in_memory_does_not_reach_the_guest() {
    for (lazy, acpi) in [(true, true), (false, false)] {
        let mut launch = Launch::vmlinux();
        (launch.handover.lazy_memory, launch.handover.cc_blob, launch.block.acpi_devices) =
            (lazy, lazy, acpi);
        let boots: Vec<_> = fills().into_iter().map(|fill| Booted::new(&launch, fill)).collect();
        assert_same(&boots, lazy, "vmlinux");
    }
    // its parts lie elsewhere: what it gets is compared by what stage0 wrote
    let [one, other, _] = fills().map(|fill| Booted::new(&Launch::bzimage(), fill));
    assert!(one.result.is_ok() && one.result == other.result);
    assert_untouched(&one, &other);
}

#[test]
fn nor_on_a_tee() {
    let mut launch = Launch::vmlinux();
    (launch.block.platform, launch.block.memory_bit, launch.block.vcpus) = (PlatformKind::Snp, 51, 2);
    let [zeros, ones, _] = fills();
    let boots = [zeros, ones].map(|fill| {
        let (fake, pages) = (snp::platform_tests::fake(), snp::platform_tests::pages());
        Booted::on(snp::platform_tests::snp(&fake, &pages), &launch, fill)
    });
    assert_same(&boots, true, "SNP");
    // the table names the event log by its address, which is the test's
    let mut log = [0; 4096];
    launch.block.platform = PlatformKind::Tdx;
    let [zeros, ones, _] = fills();
    let boots = [zeros, ones].map(|fill| {
        log.fill(0);
        let fake = tdx::platform_tests::fake();
        Booted::on(tdx::platform_tests::tdx(&fake, &mut log), &launch, fill)
    });
    assert_same(&boots, true, "TDX");
}

/// The comparison itself: a byte that is carried from memory to the guest is found.
#[test]
#[should_panic(expected = "depends on what was in memory")]
fn a_byte_that_is_carried_over_is_found() {
    let launch = Launch::vmlinux();
    let [zeros, ones, _] = fills();
    let boots = [zeros, ones].map(|fill| {
        let mut booted = Booted::new(&launch, fill);
        booted.memory.private[0x9000] = booted.before[0x2345];
        booted
    });
    assert_same(&boots, true, "spoilt");
}
