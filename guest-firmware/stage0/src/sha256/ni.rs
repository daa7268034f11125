//! The compression function by the SHA extensions: Intel SDM volume 2, SHA256RNDS2, SHA256MSG1,
//! SHA256MSG2. The only unsafe code of the hash: intrinsics, and unaligned loads from arrays that are
//! large enough.

use core::arch::x86_64::*;

use super::{BLOCK, K};

const LEAF1_ECX_SSSE3: u32 = 1 << 9;
const LEAF1_ECX_SSE41: u32 = 1 << 19;
const LEAF7_EBX_SHA: u32 = 1 << 29;

/// Proof that the processor has what [`ShaExtensions::compress`] uses.
#[derive(Clone, Copy, Debug)]
pub struct ShaExtensions(());

impl ShaExtensions {
    pub(super) fn detect(mut cpuid: impl FnMut(u32, u32) -> CpuidResult) -> Option<Self> {
        if cpuid(0, 0).eax < 7 {
            return None;
        }
        let sse = LEAF1_ECX_SSSE3 | LEAF1_ECX_SSE41;
        let there = cpuid(1, 0).ecx & sse == sse && cpuid(7, 0).ebx & LEAF7_EBX_SHA != 0;
        there.then_some(Self(()))
    }

    pub(super) fn compress(self, state: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
        // SAFETY: a value of this type is only made when CPUID lists SHA, SSSE3 and SSE4.1. A host that
        // lies in CPUID causes an invalid-opcode exception, which ends the guest.
        unsafe { compress(state, blocks) }
    }
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn compress(state: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
    let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    // SAFETY: eight words are two vectors; loads need no alignment.
    let (low, high) = unsafe {
        let words = state.as_ptr().cast::<__m128i>();
        (_mm_loadu_si128(words), _mm_loadu_si128(words.add(1)))
    };
    // the instructions want ABEF and CDGH
    let badc = _mm_shuffle_epi32::<0xb1>(low);
    let hgfe = _mm_shuffle_epi32::<0x1b>(high);
    let mut abef = _mm_alignr_epi8::<8>(badc, hgfe);
    let mut cdgh = _mm_blend_epi16::<0xf0>(hgfe, badc);

    for block in blocks {
        let (abef_before, cdgh_before) = (abef, cdgh);
        let load = |index| {
            // SAFETY: a block is four vectors; loads need no alignment.
            let loaded = unsafe { _mm_loadu_si128(block.as_ptr().cast::<__m128i>().add(index)) };
            _mm_shuffle_epi8(loaded, big_endian)
        };
        // by name and not by index: an index would keep them in memory
        let (mut w0, mut w1, mut w2, mut w3) = (load(0), load(1), load(2), load(3));
        for (sixteen, constants) in K.as_chunks::<16>().0.iter().enumerate() {
            let [k0, k1, k2, k3] = constants.as_chunks::<4>().0 else { break };
            if sixteen > 0 {
                w0 = schedule(w0, w1, w2, w3);
                w1 = schedule(w1, w2, w3, w0);
                w2 = schedule(w2, w3, w0, w1);
                w3 = schedule(w3, w0, w1, w2);
            }
            (abef, cdgh) = rounds((abef, cdgh), w0, k0);
            (abef, cdgh) = rounds((abef, cdgh), w1, k1);
            (abef, cdgh) = rounds((abef, cdgh), w2, k2);
            (abef, cdgh) = rounds((abef, cdgh), w3, k3);
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }

    let feba = _mm_shuffle_epi32::<0x1b>(abef);
    let dchg = _mm_shuffle_epi32::<0xb1>(cdgh);
    // SAFETY: as for the loads.
    unsafe {
        let words = state.as_mut_ptr().cast::<__m128i>();
        _mm_storeu_si128(words, _mm_blend_epi16::<0xf0>(feba, dchg));
        _mm_storeu_si128(words.add(1), _mm_alignr_epi8::<8>(dchg, feba));
    }
}

/// Four rounds: FIPS 180-4, section 6.2.2, step 3.
#[target_feature(enable = "sha,sse2")]
#[inline]
fn rounds((abef, cdgh): (__m128i, __m128i), words: __m128i, constants: &[u32; 4]) -> (__m128i, __m128i) {
    // SAFETY: four words are one vector; loads need no alignment.
    let sum = _mm_add_epi32(words, unsafe { _mm_loadu_si128(constants.as_ptr().cast()) });
    let cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
    (_mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32::<0x0e>(sum)), cdgh)
}

/// The four words of the schedule after sixteen: FIPS 180-4, section 6.2.2, step 1.
#[target_feature(enable = "sha,sse2,ssse3")]
#[inline]
fn schedule(w0: __m128i, w1: __m128i, w2: __m128i, w3: __m128i) -> __m128i {
    let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8::<4>(w3, w2));
    _mm_sha256msg2_epu32(sum, w3)
}
