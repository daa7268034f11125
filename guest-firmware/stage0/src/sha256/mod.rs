//! SHA-256: FIPS 180-4, sections 4.1.2, 5.1.1, 6.2. With the processor's SHA extensions where CPUID has
//! them, else in portable code; both give the same state for the same blocks.

#[allow(unsafe_code, reason = "intrinsics of the SHA extensions")]
mod ni;
mod portable;

use core::arch::x86_64::CpuidResult;

pub use ni::ShaExtensions;

const BLOCK: usize = 64;

const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

#[rustfmt::skip]
const K: [u32; 64] = [
    0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
    0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
    0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
    0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
    0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
    0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
    0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
    0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
];

/// How blocks are compressed.
#[derive(Clone, Copy, Debug)]
pub enum Engine {
    /// In portable code.
    Portable,
    /// By the SHA extensions.
    Extensions(ShaExtensions),
}

impl Engine {
    /// The fastest that the processor has, by what CPUID says.
    pub fn choose(cpuid: impl FnMut(u32, u32) -> CpuidResult) -> Self {
        ShaExtensions::detect(cpuid).map_or(Self::Portable, Self::Extensions)
    }

    fn compress(self, state: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
        match self {
            Self::Portable => portable::compress(state, blocks),
            Self::Extensions(extensions) => extensions.compress(state, blocks),
        }
    }
}

/// A running hash.
#[derive(Clone, Debug)]
pub struct Sha256 {
    engine: Engine,
    state: [u32; 8],
    length: u64,
    rest: [u8; BLOCK],
}

impl Sha256 {
    /// Begins.
    #[must_use]
    pub const fn new(engine: Engine) -> Self {
        Self { engine, state: INITIAL, length: 0, rest: [0; BLOCK] }
    }

    /// Adds bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let filled = (self.length % BLOCK as u64) as usize;
        // no guest has 2^61 bytes
        self.length = self.length.wrapping_add(bytes.len() as u64);
        if filled > 0 {
            let room = self.rest.get_mut(filled..).unwrap_or_default();
            let taken = room.len().min(bytes.len());
            let (now, later) = bytes.split_at(taken);
            for (to, from) in room.iter_mut().zip(now) {
                *to = *from;
            }
            bytes = later;
            if filled + taken < BLOCK {
                return;
            }
            let block = self.rest;
            self.engine.compress(&mut self.state, &[block]);
        }
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        self.engine.compress(&mut self.state, blocks);
        for (to, from) in self.rest.iter_mut().zip(rest) {
            *to = *from;
        }
    }

    /// Ends.
    #[must_use]
    pub fn finish(mut self) -> [u8; 32] {
        let bits = self.length.wrapping_mul(8).to_be_bytes();
        let filled = (self.length % BLOCK as u64) as usize;
        // one bit, zeros, and the length in the last 8 bytes of a block
        let zeros = if filled < 56 { 55 - filled } else { 119 - filled };
        self.update(&[0x80]);
        let padding = [0; BLOCK];
        self.update(padding.get(..zeros).unwrap_or_default());
        self.update(&bits);
        let mut digest = [0; 32];
        for (to, word) in digest.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *to = word.to_be_bytes();
        }
        digest
    }
}

/// Compares without telling by its time where the two differ.
#[must_use]
pub fn equal(one: &[u8; 32], other: &[u8; 32]) -> bool {
    let difference = one.iter().zip(other).fold(0, |all, (a, b)| all | (a ^ b));
    // keeps the compiler from leaving the loop early
    core::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digest: [u8; 32]) -> String {
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn native() -> Engine {
        Engine::choose(std::arch::x86_64::__cpuid_count)
    }

    fn hash(engine: Engine, bytes: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new(engine);
        hash.update(bytes);
        hash.finish()
    }

    /// Not random, but as good as: xorshift.
    fn noise(length: usize, mut seed: u64) -> Vec<u8> {
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn published_vectors() {
        // FIPS 180-4 examples and NIST's "one million a"
        for engine in [Engine::Portable, native()] {
            let of = |bytes: &[u8]| hex(hash(engine, bytes));
            assert_eq!(of(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
            assert_eq!(of(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
            assert_eq!(
                of(b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
            );
            assert_eq!(
                of(&vec![b'a'; 1_000_000]),
                "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
            );
        }
    }

    #[test]
    fn both_engines_agree_on_every_length_and_split() {
        let native = native();
        for length in 0..300 {
            let bytes = noise(length, length as u64 + 1);
            let whole = hash(Engine::Portable, &bytes);
            assert_eq!(hash(native, &bytes), whole, "{length}");
            let (one, two) = bytes.split_at(length * 3 / 7);
            for engine in [Engine::Portable, native] {
                let mut parts = Sha256::new(engine);
                parts.update(one);
                parts.update(two);
                assert_eq!(parts.finish(), whole, "{length}");
            }
        }
        for seed in 1..50 {
            let bytes = noise(10_000 + seed * 13, seed as u64 * 0x9e37_79b9);
            assert_eq!(hash(native, &bytes), hash(Engine::Portable, &bytes));
        }
    }

    #[test]
    fn extensions_are_chosen_by_cpuid_alone() {
        let with = |sha: u32, sse: u32| {
            Engine::choose(move |leaf, _| match leaf {
                0 => CpuidResult { eax: 7, ebx: 0, ecx: 0, edx: 0 },
                1 => CpuidResult { eax: 0, ebx: 0, ecx: sse, edx: 0 },
                _ => CpuidResult { eax: 0, ebx: sha, ecx: 0, edx: 0 },
            })
        };
        assert!(matches!(with(1 << 29, 1 << 9 | 1 << 19), Engine::Extensions(_)));
        assert!(matches!(with(1 << 29, 1 << 9), Engine::Portable));
        assert!(matches!(with(0, u32::MAX), Engine::Portable));
        let old = Engine::choose(|_, _| CpuidResult { eax: 6, ebx: u32::MAX, ecx: u32::MAX, edx: 0 });
        assert!(matches!(old, Engine::Portable), "leaf 7 is beyond the last");
    }

    #[test]
    fn every_bit_counts_in_a_comparison() {
        let digest = hash(Engine::Portable, b"x");
        assert!(equal(&digest, &digest));
        for bit in 0..256 {
            let mut other = digest;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!equal(&digest, &other), "{bit}");
        }
    }
}
