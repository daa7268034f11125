//! Where things are in guest-physical memory when a launch by stage0 begins.
//!
//! | address | what | kind of launch page |
//! |---|---|---|
//! | `0x10_0000` | image, then its working memory (stack, page tables) | Normal, then Zero |
//! | `0x1D_0000` … `0x1F_7FFF` | free: stage0 builds tables that Linux keeps there | none |
//! | `0x1F_8000` … `0x1F_BFFF` | command line | none: shared |
//! | `0x1F_C000` | boot info | none: shared |
//! | `0x1F_D000` | secrets (SNP) | Secrets |
//! | `0x1F_E000` | CPUID (SNP) | Cpuid |
//! | `0x1F_F000` | boot block | Normal |
//! | `0xFFFF_F000` | reset page (TDX): a jump to the entry | Normal |
//!
//! Kernel and initramfs lie in shared memory where the boot info says. All that stage0 has for itself is
//! in the second MiB, which the guest's memory map reserves as a whole.

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes of a large page: the unit in which RAM beyond what the boot needs is accepted.
pub const LARGE_PAGE: u64 = 2 << 20;

/// First byte of the image; also its entry, in 32-bit protected mode without paging.
pub const IMAGE: u64 = 0x10_0000;
/// The image and its working memory end here at the latest.
pub const IMAGE_LIMIT: u64 = UNACCEPTED;
/// Bitmap of memory that the guest has to accept, with its header; enough for nearly 2 TiB.
pub const UNACCEPTED: u64 = 0x1D_0000;
/// Tables that stage0 builds and the guest keeps: ACPI, EFI, CC blob.
pub const TABLES: u64 = 0x1F_0000;
/// End of [`TABLES`].
pub const TABLES_END: u64 = 0x1F_8000;
/// Command line, shared, not terminated; its length is in the boot block.
pub const COMMAND_LINE: u64 = 0x1F_8000;
/// Most bytes of a command line without a final zero: `COMMAND_LINE_SIZE` of x86 Linux is 2048 with it.
pub const COMMAND_LINE_MAX: u64 = 2047;
/// Boot info, shared.
pub const BOOT_INFO: u64 = 0x1F_C000;
/// End of the shared pages of command line and boot info, the first of which is [`COMMAND_LINE`].
pub const SHARED_END: u64 = SECRETS;
/// Secrets page of SNP.
pub const SECRETS: u64 = 0x1F_D000;
/// CPUID page of SNP.
pub const CPUID: u64 = 0x1F_E000;
/// Boot block.
pub const BOOT_BLOCK: u64 = 0x1F_F000;
/// End of what stage0 has for itself.
pub const RESERVED_END: u64 = 0x20_0000;
/// Page whose last 16 bytes a TDX vCPU executes first.
pub const RESET_PAGE: u64 = 0xFFFF_F000;
/// Content of the 16 bytes at `0xFFFF_FFF0`: `mov edi, IMAGE; jmp edi`. EDI is not among the registers
/// that the TDX module hands values over in.
pub const RESET_CODE: [u8; 7] = [0xbf, 0x00, 0x00, 0x10, 0x00, 0xff, 0xe7];

/// Everything measured together must not be larger: image, boot block, secrets and CPUID page, reset
/// page. Zero pages count by their number only: the processor does not read them.
pub const MEASURED_MAX: u64 = 64 << 10;

/// Start of the hole without RAM below 4 GiB.
pub const MMIO_HOLE: u64 = 3 << 30;
/// End of that hole.
pub const MMIO_HOLE_END: u64 = 4 << 30;
/// No RAM may lie at or above it: the lowest bit that marks memory as private or shared is bit 47.
pub const RAM_END: u64 = 1 << 46;
/// Most vCPUs.
pub const MAX_VCPUS: u32 = 64;

/// Without a TEE, a 32-bit write of a [`Termination`](crate::Termination)'s number to this port ends the
/// guest.
pub const TERMINATION_PORT: u16 = 0x4C0;

const _: () = assert!(IMAGE + MEASURED_MAX <= IMAGE_LIMIT);
const _: () = assert!(COMMAND_LINE + COMMAND_LINE_MAX <= BOOT_INFO);
const _: () = assert!(BOOT_INFO + PAGE_SIZE == SHARED_END);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reset_code_jumps_to_the_image() {
        // bf imm32: mov edi, imm32; ff e7: jmp edi (Intel SDM volume 2)
        assert_eq!(RESET_CODE[0], 0xbf);
        assert_eq!(RESET_CODE[1..5], (IMAGE as u32).to_le_bytes());
        assert_eq!(RESET_CODE[5..], [0xff, 0xe7]);
    }
}
