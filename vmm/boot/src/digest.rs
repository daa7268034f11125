//! Launch digest of a plan: every page of every region in order, then one VMSA per vCPU, as the SNP
//! firmware would measure the same launch.
//!
//! The chain over the pages is serial by its nature, but nearly all the work is hashing what the pages
//! contain: that is done on all processors first.

use kata_cc_measurement::{LaunchDigest, PAGE_SIZE, PageHash, PageType, VmsaRegisters, hash_page};

use crate::plan::{LaunchPlan, Measured, Region};

/// Pages that one thread hashes at least: below it, starting a thread costs more than it saves.
const PAGES_PER_THREAD: usize = 256;

impl LaunchPlan<'_> {
    /// SNP launch digest of this plan; `None` for a launch by stage0 that no SNP firmware, nor a simulated
    /// one, would measure.
    ///
    /// vCPUs other than the first are measured at reset with the CPUID signature 0, so that the digest
    /// does not depend on the host's processor; a VMM that launches on hardware sets RDX likewise.
    #[must_use]
    pub fn launch_digest(&self) -> Option<[u8; 48]> {
        match &self.measured {
            Measured::Regions => Some(self.digest_of_regions()),
            Measured::Stage0(launch) => launch.snp().ok().map(|launch| launch.digest()),
        }
    }

    fn digest_of_regions(&self) -> [u8; 48] {
        let mut digest = LaunchDigest::new();
        for region in &self.regions {
            let mut gpa = region.gpa;
            for hash in region_hashes(region) {
                digest.update_hashed(PageType::Normal, gpa, &hash);
                gpa += PAGE_SIZE as u64;
            }
        }
        digest.update_vmsa_page(&self.start.vmsa().to_page());
        let waiting = VmsaRegisters::reset(0xffff_fff0, 0, self.start.vmsa().sev_features);
        let waiting = waiting.to_page();
        for _ in 1..self.vcpus {
            digest.update_vmsa_page(&waiting);
        }
        digest.finish()
    }
}

/// Hashes of a region's pages, the last padded with zeros.
fn region_hashes(region: &Region<'_>) -> Vec<PageHash> {
    let pages = region.bytes.len().div_ceil(PAGE_SIZE);
    let threads = std::thread::available_parallelism()
        .map_or(1, std::num::NonZero::get)
        .min(pages / PAGES_PER_THREAD)
        .max(1);
    if threads == 1 {
        return hash_pages(&region.bytes);
    }
    let share = pages.div_ceil(threads) * PAGE_SIZE;
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            region.bytes.chunks(share).map(|part| (part, scope.spawn(move || hash_pages(part)))).collect();
        workers
            .into_iter()
            // a worker cannot panic; if it did, its share is hashed here
            .flat_map(|(part, worker)| worker.join().unwrap_or_else(|_| hash_pages(part)))
            .collect()
    })
}

fn hash_pages(bytes: &[u8]) -> Vec<PageHash> {
    let (pages, rest) = bytes.as_chunks::<PAGE_SIZE>();
    let mut hashes: Vec<_> = pages.iter().map(hash_page).collect();
    if !rest.is_empty() {
        let mut last = [0; PAGE_SIZE];
        last[..rest.len()].copy_from_slice(rest);
        hashes.push(hash_page(&last));
    }
    hashes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::start::StartState;
    use crate::{KernelFormat, Region};

    #[test]
    fn hashing_on_all_processors_gives_the_digest_of_doing_it_in_order() {
        let bytes: Vec<u8> = (0..5_000_001u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let plan = LaunchPlan {
            regions: vec![
                Region { name: "small", gpa: 0x7000, bytes: vec![1; 5].into() },
                Region { name: "large", gpa: 0x100_0000, bytes: bytes.into() },
            ],
            unmeasured: Vec::new(),
            measured: Measured::Regions,
            start: StartState::linux64(0x100_0000),
            vcpus: 2,
            cmdline: String::new(),
            format: KernelFormat::Vmlinux,
        };
        let mut serial = LaunchDigest::new();
        for region in &plan.regions {
            let mut padded = region.bytes.to_vec();
            padded.resize(padded.len().next_multiple_of(PAGE_SIZE), 0);
            serial.update_normal_region(region.gpa, &padded).expect("whole pages");
        }
        serial.update_vmsa_page(&plan.start.vmsa().to_page());
        serial.update_vmsa_page(&VmsaRegisters::reset(0xffff_fff0, 0, 1).to_page());
        assert_eq!(plan.launch_digest(), Some(serial.finish()));
    }
}
