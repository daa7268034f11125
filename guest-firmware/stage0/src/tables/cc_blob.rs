//! The CC blob of SNP: Linux, `arch/x86/include/asm/sev.h`, `struct cc_blob_sev_info`. It tells the guest
//! where secrets and CPUID page are; the kernel finds it through `setup_data` of type 7 and through the
//! boot parameters.

use crate::platform::layout::{CPUID, PAGE_SIZE, SECRETS};

/// "AMDE"
const MAGIC: u32 = 0x4544_4d41;
const VERSION: u16 = 1;
const SETUP_CC_BLOB: u32 = 7;
/// Bytes of the blob.
pub const BLOB: usize = 40;
/// Bytes of the node that leads to it: header and the blob's 32-bit address.
pub const NODE: usize = 20;

/// The blob.
#[must_use]
pub fn blob() -> [u8; BLOB] {
    let mut blob = [0; BLOB];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = blob.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &MAGIC.to_le_bytes());
    put(4, &VERSION.to_le_bytes());
    put(8, &SECRETS.to_le_bytes());
    put(16, &(PAGE_SIZE as u32).to_le_bytes());
    put(24, &CPUID.to_le_bytes());
    put(32, &(PAGE_SIZE as u32).to_le_bytes());
    blob
}

/// The `setup_data` node that leads to a blob; it is the last of its list.
#[must_use]
pub fn node(blob: u32) -> [u8; NODE] {
    let mut node = [0; NODE];
    let mut put = |at: usize, word: u32| {
        if let Some(place) = node.get_mut(at..at + 4) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    };
    put(8, SETUP_CC_BLOB);
    put(12, 4);
    put(16, blob);
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_kernel_reads_them() {
        let blob = blob();
        assert_eq!(&blob[..4], b"AMDE");
        assert_eq!(blob[8..16], 0x1F_D000_u64.to_le_bytes());
        assert_eq!(blob[16..20], 4096_u32.to_le_bytes());
        assert_eq!(blob[24..32], 0x1F_E000_u64.to_le_bytes());
        assert_eq!(blob[32..36], 4096_u32.to_le_bytes());
        let node = node(0x1F_0040);
        assert_eq!(node[..8], [0; 8], "the list ends");
        assert_eq!((node[8], node[12]), (7, 4));
        assert_eq!(node[16..20], 0x1F_0040_u32.to_le_bytes());
    }
}
