//! What the host's `/dev/kvm` is like, asked once.

use std::sync::atomic::{AtomicBool, Ordering};

use super::told::Told;
use crate::error::Errno;
use crate::platform::systrap::layout::{at, context_address};
use crate::platform::systrap::thread::StubThread;

use super::requests::{self, CPUID_ENTRY, CPUID_HEADER};
use super::tables::{CHUNK, FIRST_ROOM};

/// Most entries of CPUID that the host may tell.
const CPUID_ENTRIES: u32 = 256;

/// Most gigabytes of a guest that have a slot of memory at a time: each takes the host some KiB...
const MOST_CHUNKS: u64 = 512;

/// ...and 2.5 MiB where it notes for each page who leads to it, since it has tables of its own.
const MOST_REMEMBERED: u64 = 32;

/// XCR0: x87, SSE, AVX, MPX, AVX-512. What a guest may have of it is what the host tells.
const VECTORS: u64 = 0xff;

// CR4: PAE, OSFXSR, OSXMMEXCPT and OSXSAVE always; what is there of UMIP, FSGSBASE, SMEP, SMAP.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18;
const UMIP: u64 = 1 << 11;
const FSGSBASE: u64 = 1 << 16;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;

/// The host's `/dev/kvm`.
pub(super) struct Host {
    /// The descriptor that every stub has of it.
    pub(super) device: u64,
    /// `struct kvm_cpuid2` with what a guest may have.
    pub(super) cpuid: Vec<u8>,
    /// Vector state that guests have.
    pub(super) xcr0: u64,
    /// Bytes of it, in the form of XSAVE.
    pub(super) vector_size: usize,
    /// CR4 of guests.
    pub(super) cr4: u64,
    /// Most gigabytes that have a slot of memory in a machine, as far as the host says.
    chunks: u64,
    /// It keeps tables of its own, made of a guest's.
    remembers: AtomicBool,
    told: Told,
    /// Most threads of a machine.
    pub(super) threads: usize,
}

/// A request of the stub's on one of its descriptors, with a number for argument.
pub(super) fn ask(stub: &StubThread, descriptor: u64, request: u32, argument: u64) -> Result<u64, Errno> {
    let call = || stub.call(libc::SYS_ioctl, [descriptor, u64::from(request), argument, 0, 0, 0]);
    match call() {
        // A signal that was meant for a guest that runs. Two in a row do not come.
        Err(Errno::EINTR) if request != requests::RUN => call(),
        other => other,
    }
}

/// The same, with bytes in memory: what they are afterwards, as many.
pub(super) fn ask_with(
    stub: &StubThread,
    descriptor: u64,
    request: u32,
    bytes: &mut [u8],
) -> Result<u64, Errno> {
    if bytes.len() > at::WINDOW_SIZE {
        return Err(Errno::E2BIG);
    }
    stub.context.write(at::WINDOW, bytes);
    let given = ask(stub, descriptor, request, context_address(stub.slot) + at::WINDOW as u64)?;
    stub.context.read(at::WINDOW, bytes);
    Ok(given)
}

impl Host {
    /// Asks by a stub that has the device by this descriptor.
    ///
    /// # Errors
    /// ENOSYS where it is not what this platform needs; what the host says.
    pub(super) fn new(stub: &StubThread, device: u64) -> Result<Self, Errno> {
        if ask(stub, device, requests::GET_API_VERSION, 0)? != requests::API_VERSION {
            return Err(Errno::ENOSYS);
        }
        let mut cpuid = vec![0; CPUID_HEADER + CPUID_ENTRY * CPUID_ENTRIES as usize];
        cpuid[..4].copy_from_slice(&CPUID_ENTRIES.to_le_bytes());
        ask_with(stub, device, requests::GET_SUPPORTED_CPUID, &mut cpuid)?;
        let entries = Entries(&cpuid);
        let xcr0 = u64::from(entries.get(0xd, 0).map_or(3, |leaf| leaf[0])) & VECTORS | 3;
        let vector_size = (2..8)
            .filter(|n| xcr0 & 1 << n != 0)
            .filter_map(|n| entries.get(0xd, n))
            .map(|leaf| leaf[0].saturating_add(leaf[1]) as usize)
            .fold(576, usize::max);
        let features = entries.get(7, 0).unwrap_or_default();
        let flag = |word: u32, bit: u32, flag: u64| if word >> bit & 1 == 0 { 0 } else { flag };
        let cr4 = CR4
            | flag(features[1], 0, FSGSBASE)
            | flag(features[1], 7, SMEP)
            | flag(features[1], 20, SMAP)
            | flag(features[2], 2, UMIP);
        let bits = entries.get(0x8000_0008, 0).map_or(36, |leaf| leaf[0] & 0xff).clamp(36, 48);
        let slots = ask(stub, device, requests::CHECK_EXTENSION, requests::CAP_NR_MEMSLOTS)?;
        let threads = ask(stub, device, requests::CHECK_EXTENSION, requests::CAP_MAX_VCPUS)?;
        Ok(Self {
            device,
            xcr0,
            vector_size: vector_size.min(requests::XSAVE_SIZE),
            cr4,
            // Besides there are the stub's own, and one that comes and goes.
            chunks: slots.clamp(32, 1 << 20).min((1 << bits) / CHUNK) - 2,
            remembers: AtomicBool::new(false),
            told: Told::default(),
            threads: usize::try_from(threads).unwrap_or(1).clamp(1, FIRST_ROOM),
            cpuid,
        })
    }
}

impl Host {
    /// Whether the host's kernel has page tables of its own in the place of a guest's, where the processor cannot follow two of them, and
    /// goes on by those when a guest's are changed from outside. It hears of what a guest itself writes there, and of slots.
    pub(super) fn remembers(&self) -> bool {
        self.remembers.load(Ordering::Relaxed)
    }

    /// What was found out about that.
    pub(super) fn set_remembers(&self) {
        self.remembers.store(true, Ordering::Relaxed);
    }

    /// Most gigabytes of a guest that have a slot of memory at a time.
    pub(super) fn most_chunks(&self) -> u64 {
        self.chunks.min(if self.remembers() { MOST_REMEMBERED } else { MOST_CHUNKS })
    }

    /// The number of a slot that none of them has.
    pub(super) fn spare_slot(&self) -> u64 {
        self.chunks + 1
    }

    /// Tells the operator, once for each reason, of what a machine does not do; `reason`: for which it came out.
    pub(super) fn warn(&self, reason: Option<u8>, error: Errno, what: &'static str) {
        if self.told.is_new((what, reason, error)) {
            let reason = reason.map_or_else(String::new, |reason| format!(" for reason {reason}"));
            tracing::warn!("the host's /dev/kvm gave up{reason} ({error}): {what} (told once)");
        }
    }

    /// Lets machines have so many at a time.
    #[cfg(test)]
    pub(super) fn set_chunks(&mut self, chunks: u64) {
        self.chunks = chunks;
    }
}

/// The entries of a `struct kvm_cpuid2`.
struct Entries<'a>(&'a [u8]);

impl Entries<'_> {
    /// `eax`, `ebx`, `ecx`, `edx` of a leaf.
    fn get(&self, function: u32, index: u32) -> Option<[u32; 4]> {
        let word = |bytes: &[u8], n: usize| {
            bytes.get(4 * n..4 * n + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        let count = word(self.0, 0) as usize;
        let mut entries = self.0.get(CPUID_HEADER..)?.chunks_exact(CPUID_ENTRY).take(count);
        let found = entries.find(|entry| word(entry, 0) == function && word(entry, 1) == index)?;
        Some(std::array::from_fn(|n| word(found, 3 + n)))
    }
}
