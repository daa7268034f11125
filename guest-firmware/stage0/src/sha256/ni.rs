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
        let mut words = [_mm_setzero_si128(); 4];
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: a block is four vectors; loads need no alignment.
            let loaded = unsafe { _mm_loadu_si128(block.as_ptr().cast::<__m128i>().add(index)) };
            *word = _mm_shuffle_epi8(loaded, big_endian);
        }
        for (four, constants) in K.as_chunks::<4>().0.iter().enumerate() {
            if four >= 4 {
                let [w0, w1, w2, w3] = words;
                let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8::<4>(w3, w2));
                words = [w1, w2, w3, _mm_sha256msg2_epu32(sum, w3)];
            }
            let word = words[four.min(3)];
            // SAFETY: four words are one vector; loads need no alignment.
            let k = unsafe { _mm_loadu_si128(constants.as_ptr().cast()) };
            let sum = _mm_add_epi32(word, k);
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32::<0x0e>(sum));
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
