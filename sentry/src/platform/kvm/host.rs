//! What the host's `/dev/kvm` is like, asked once.

use crate::error::Errno;
use crate::platform::systrap::layout::{at, context_address};
use crate::platform::systrap::thread::StubThread;

use super::requests::{self, CPUID_ENTRY, CPUID_HEADER};
use super::tables::{CHUNK, FIRST_ROOM};

/// Most entries of CPUID that the host may tell.
const CPUID_ENTRIES: u32 = 256;

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
    /// Most slots of memory of a machine.
    pub(super) chunks: u64,
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
            chunks: slots.clamp(32, 1 << bits).min((1 << bits) / CHUNK),
            threads: usize::try_from(threads).unwrap_or(1).clamp(1, FIRST_ROOM),
            cpuid,
        })
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
