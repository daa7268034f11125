//! Whole boots on SEV-SNP and TDX as the fakes keep them: the boot's own order of accepting, reading and giving back,
//! against the rules of the processors, under hosts that are honest and hosts that are not.

use core::arch::x86_64::CpuidResult;

use kata_cc_stage0_abi::PlatformKind;

use crate::boot::{Entry, boot};
use crate::boot_tests::Launch;
use crate::fake::{FakeMemory, FakePlatform};
use crate::platform::{BootBlock, Handover, Payload, PhysRange, Platform, PlatformError, Termination};
use crate::test_random::Random;
use crate::{snp, tdx};

/// The platform under test, and the book of the fake memory, which refuses access to what is not in its state.
struct Both<P> {
    tee: P,
    book: FakePlatform,
}

impl<P: Platform> Platform for Both<P> {
    fn init(&mut self, block: &BootBlock) -> Result<(), PlatformError> {
        self.tee.init(block)
    }

    fn accept(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        self.tee.accept(range)?;
        self.book.accept(range)
    }

    fn share(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        self.tee.share(range)?;
        self.book.share(range)
    }

    fn unshare(&mut self, range: PhysRange) -> Result<(), PlatformError> {
        self.tee.unshare(range)?;
        self.book.unshare(range)
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
        // The processor that the test runs on is what computes the hashes.
        self.book.cpuid(leaf, subleaf)
    }

    fn measured(&mut self, payload: Payload, sha256: &[u8; 32]) -> Result<(), PlatformError> {
        self.tee.measured(payload, sha256)
    }

    fn prepare_aps(&mut self, vcpus: u32) -> Result<(), PlatformError> {
        self.tee.prepare_aps(vcpus)
    }

    fn handover(&self) -> Handover {
        self.tee.handover()
    }

    fn leave(&mut self) -> Result<(), PlatformError> {
        self.tee.leave()
    }

    fn terminate(&self, why: Termination) -> ! {
        self.tee.terminate(why)
    }
}

fn launch(platform: PlatformKind) -> Launch {
    let mut launch = Launch::vmlinux();
    (launch.block.platform, launch.block.memory_bit, launch.block.vcpus) = (platform, 51, 2);
    launch
}

fn boot_on(tee: impl Platform, launch: &Launch) -> (Result<Entry, Termination>, FakeMemory) {
    boot_in(tee, launch, launch.memory())
}

/// The same in memory that the test has prepared.
pub(crate) fn boot_in(
    tee: impl Platform,
    launch: &Launch,
    mut memory: FakeMemory,
) -> (Result<Entry, Termination>, FakeMemory) {
    let book = FakePlatform::new(&memory, Handover::default());
    (boot(&mut Both { tee, book }, &mut memory, &launch.block), memory)
}

#[test]
fn boots_under_snp() {
    let (fake, pages) = (snp::platform_tests::fake(), snp::platform_tests::pages());
    let launch = launch(PlatformKind::Snp);
    let (result, memory) = boot_on(snp::platform_tests::snp(&fake, &pages), &launch);
    assert!(result.is_ok(), "{result:?}");
    assert!(memory.bytes(0x1F_0000, 0x8000).windows(4).any(|bytes| bytes == b"AMDE"), "the CC blob");
    assert!(
        fake.0.borrow().rmp.values().all(|entry| entry.assigned == entry.valid),
        "nothing is left half-way"
    );
    fake.assert_correct();
}

#[test]
fn boots_under_tdx() {
    let (fake, mut log) = (tdx::platform_tests::fake(), [0; 4096]);
    let launch = launch(PlatformKind::Tdx);
    let (result, memory) = boot_on(tdx::platform_tests::tdx(&fake, &mut log), &launch);
    assert!(result.is_ok(), "{result:?}");
    assert!(memory.bytes(0x1F_0000, 0x8000).windows(4).any(|bytes| bytes == b"CCEL"), "the table of the log");
    let rtmr = fake.0.borrow().rtmr;
    assert!(rtmr[..3].iter().all(|register| *register != [0; 48]) && rtmr[3] == [0; 48]);
    fake.assert_correct();
}

/// A host that lies now and then is found out, or has changed nothing: the boot ends in its entry or a number, and
/// the processor's notes stay empty.
#[test]
fn no_host_under_snp_makes_the_boot_go_wrong() {
    let launch = launch(PlatformKind::Snp);
    let (mut booted, mut refused) = (0, 0);
    for seed in 0..60 {
        let (fake, pages) = (snp::platform_tests::fake(), snp::platform_tests::pages());
        let (mut lies, mut sizes) = (Random::new(seed), Random::new(seed + 5000));
        let mut msr_lies = Random::new(seed + 9000);
        let odds = 3 + seed;
        fake.host(|host| {
            host.large = Box::new(move |_| sizes.below(2) == 0);
            host.at_a_time = 1 + seed;
            host.msr = Box::new(move |_, honest| match msr_lies.below(odds) {
                0 => honest ^ 1 << msr_lies.below(64),
                _ => honest,
            });
            host.exit = Box::new(move |_, answer| {
                let words = [&mut answer.info1, &mut answer.info2, &mut answer.header];
                let word = lies.below(3) as usize;
                if lies.below(odds) == 0
                    && let Some(word) = words.into_iter().nth(word)
                {
                    *word ^= 1 << lies.below(64);
                }
            });
        });
        match boot_on(snp::platform_tests::snp(&fake, &pages), &launch).0 {
            Ok(_) => booted += 1,
            Err(_) => refused += 1,
        }
        fake.assert_correct();
    }
    assert!(booted > 10 && refused > 10, "{booted} booted, {refused} refused");
}

#[test]
fn no_host_under_tdx_makes_the_boot_go_wrong() {
    let launch = launch(PlatformKind::Tdx);
    let (mut booted, mut refused) = (0, 0);
    for seed in 0..60 {
        let (fake, mut log) = (tdx::platform_tests::fake(), [0; 4096]);
        let (mut lies, mut sizes) = (Random::new(seed), Random::new(seed + 5000));
        fake.host(|host| {
            host.large = Box::new(move |page| page == 0 || sizes.below(2) == 0);
            host.at_a_time = 4096 * (1 + 20 * seed);
            host.map = Box::new(move |start, _, honest| match lies.below(30 + 4 * seed) {
                0 => (1 << lies.below(64), honest.1),
                1 => (1, start ^ 1 << lies.below(64)),
                _ => honest,
            });
        });
        match boot_on(tdx::platform_tests::tdx(&fake, &mut log), &launch).0 {
            Ok(_) => booted += 1,
            Err(_) => refused += 1,
        }
        let wrong = fake.0.borrow().wrong.clone();
        // "Done up to here", with nothing done: the guest then accepts what was never added, which its host can only
        // answer by not going on.
        assert!(wrong.iter().all(|note| note.ends_with("accepted while shared")), "{wrong:?}");
    }
    assert!(booted > 10 && refused > 10, "{booted} booted, {refused} refused");
}
