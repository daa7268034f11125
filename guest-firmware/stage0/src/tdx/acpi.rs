//! What only TDX guests find in their ACPI tables: the table that names the event log, and the structure in the MADT
//! that names the mailbox of the other vCPUs.

/// Bytes of [`ccel`].
pub const CCEL_SIZE: usize = 56;
/// Bytes of [`wakeup`].
pub const WAKEUP_SIZE: usize = 16;

/// CCEL: type of confidential guest.
const CC_TYPE_TDX: u8 = 2;
/// MADT: multiprocessor wake-up structure.
const MADT_WAKEUP: u8 = 0x10;

fn fields<const N: usize>(parts: &[(usize, &[u8])]) -> [u8; N] {
    let mut table = [0; N];
    for (offset, bytes) in parts {
        for (to, from) in table.iter_mut().skip(*offset).zip(*bytes) {
            *to = *from;
        }
    }
    table
}

/// The CCEL table (ACPI 6.5 section 5.2.34): where the event log is, and how much memory is set aside for it.
#[must_use]
pub fn ccel(log: u64, length: u64) -> [u8; CCEL_SIZE] {
    let mut table: [u8; CCEL_SIZE] = fields(&[
        (0, b"CCEL"),
        (4, &(CCEL_SIZE as u32).to_le_bytes()),
        (8, &[1]), // revision
        (10, b"KATACC"),
        (16, b"STAGE0  "),
        (24, &1_u32.to_le_bytes()),
        (28, b"KACC"),
        (32, &1_u32.to_le_bytes()),
        (36, &[CC_TYPE_TDX]),
        (40, &length.to_le_bytes()),
        (48, &log.to_le_bytes()),
    ]);
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = table.get_mut(9) {
        *checksum = sum.wrapping_neg();
    }
    table
}

/// The multiprocessor wake-up structure of the MADT (ACPI 6.4 section 5.2.12.19).
#[must_use]
pub fn wakeup(mailbox: u64) -> [u8; WAKEUP_SIZE] {
    fields(&[(0, &[MADT_WAKEUP, WAKEUP_SIZE as u8]), (8, &mailbox.to_le_bytes())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ccel_table_names_the_log() {
        let table = ccel(0x1F_4000, 0x1000);
        assert_eq!(table[..8], *b"CCEL\x38\0\0\0");
        assert_eq!(table[36..40], [2, 0, 0, 0]);
        assert_eq!(table[40..48], 0x1000_u64.to_le_bytes());
        assert_eq!(table[48..], 0x1F_4000_u64.to_le_bytes());
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
    }

    #[test]
    fn the_wakeup_structure_names_the_mailbox() {
        let structure = wakeup(0x12_3000);
        assert_eq!(structure[..8], [0x10, 16, 0, 0, 0, 0, 0, 0]);
        assert_eq!(structure[8..], 0x12_3000_u64.to_le_bytes());
    }
}
