//! SEV hashes table: SHA-256 of kernel, initramfs and command line in a measured page, which OVMF (AmdSev
//! build) compares with what it loads from the host.
//!
//! Source: edk2 `OvmfPkg/AmdSev/BlobVerifierLibSevHashes`, QEMU `target/i386/sev.c`: a table of GUID, u16
//! length and data, three entries in fixed order, padded with zeros to 16 bytes.

use aws_lc_rs::digest::{SHA256, digest};

use crate::guid::Guid;
use crate::{FirmwareError, PAGE_SIZE};

const TABLE: Guid = Guid::new("9438d606-4f22-4cc9-b479-a793d411fd21");
const CMDLINE: Guid = Guid::new("97d02dd8-bd20-4c94-aa78-e7714d36ab2a");
const INITRD: Guid = Guid::new("44baf731-3a2f-4bd7-9af1-41e29169781d");
const KERNEL: Guid = Guid::new("4de79437-abd2-427f-b835-d5b172d2045b");

/// Header and three entries of 50 bytes.
const TABLE_LEN: usize = 168;
/// The same, padded to 16 bytes.
pub(crate) const PADDED_LEN: usize = 176;

/// What the guest's firmware has to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SevHashes {
    kernel: [u8; 32],
    initrd: [u8; 32],
    cmdline: [u8; 32],
}

impl SevHashes {
    /// Hashes of a kernel (the whole unchanged file), an initramfs (empty when there is none) and a command
    /// line, which is hashed with its final zero byte.
    #[must_use]
    pub fn new(kernel: &[u8], initrd: &[u8], cmdline: &str) -> Self {
        let mut terminated = cmdline.as_bytes().to_vec();
        terminated.push(0);
        Self { kernel: sha256(kernel), initrd: sha256(initrd), cmdline: sha256(&terminated) }
    }

    /// The table with its padding.
    #[must_use]
    pub(crate) fn to_table(self) -> [u8; PADDED_LEN] {
        let mut bytes = Vec::with_capacity(PADDED_LEN);
        bytes.extend(TABLE.to_bytes());
        bytes.extend((TABLE_LEN as u16).to_le_bytes());
        for (guid, hash) in [(CMDLINE, self.cmdline), (INITRD, self.initrd), (KERNEL, self.kernel)] {
            bytes.extend(guid.to_bytes());
            bytes.extend(50u16.to_le_bytes());
            bytes.extend(hash);
        }
        let mut table = [0; PADDED_LEN];
        table[..TABLE_LEN].copy_from_slice(&bytes);
        table
    }

    /// The page that holds the table where the firmware's hash block says.
    ///
    /// # Errors
    /// When the block has no room for it or crosses the page's end.
    pub fn to_page(&self, block_gpa: u64, block_size: u64) -> Result<[u8; PAGE_SIZE], FirmwareError> {
        let at = (block_gpa % PAGE_SIZE as u64) as usize;
        if block_size < PADDED_LEN as u64 || at + PADDED_LEN > PAGE_SIZE {
            return Err(FirmwareError::HashBlock { gpa: block_gpa, size: block_size });
        }
        let mut page = [0; PAGE_SIZE];
        page[at..at + PADDED_LEN].copy_from_slice(&self.to_table());
        Ok(page)
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}
