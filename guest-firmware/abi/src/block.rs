//! The boot block: the one measured page that differs from launch to launch. It binds the payloads that
//! arrive unmeasured to the launch digest, and tells stage0 on which platform it runs.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `KCCSTG0\0` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | platform: 0 plain, 1 sim-snp, 2 snp, 3 sim-tdx, 4 tdx |
//! | 16 | 4 | vCPUs |
//! | 20 | 4 | position of the address bit that marks private (SNP) or shared (TDX) memory; 0: none |
//! | 24 | 4 | flags: bit 0, the guest finds its devices by ACPI instead of the command line |
//! | 28 | 4 | kind of kernel: 1 bzImage, 2 vmlinux |
//! | 32 | 40 | kernel: length, SHA-256 |
//! | 72 | 40 | initramfs: length, SHA-256; all zero: none |
//! | 112 | 40 | command line, devices' words included, without a final zero: length, SHA-256 |
//! | 152 | 3944 | zero |

use core::fmt;

use crate::cursor::{Page, put};
use crate::layout::{COMMAND_LINE_MAX, MAX_VCPUS};

const MAGIC: [u8; 8] = *b"KCCSTG0\0";
const VERSION: u32 = 1;
const ACPI_DEVICES: u32 = 1;
const KERNEL: usize = 32;
const INITRAMFS: usize = 72;
const COMMAND_LINE: usize = 112;
const END: usize = 152;

/// Most bytes of a kernel file.
pub(crate) const KERNEL_MAX: u64 = 512 << 20;
/// Most bytes of an initramfs.
pub(crate) const INITRAMFS_MAX: u64 = 2 << 30;

/// Which platform stage0 runs on. Measured: a host that lies about it gets another digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PlatformKind {
    /// No TEE.
    Plain = 0,
    /// Simulated SEV-SNP: no TEE either, but the launch is measured as SNP's.
    SimSnp = 1,
    /// SEV-SNP.
    Snp = 2,
    /// Simulated TDX.
    SimTdx = 3,
    /// TDX.
    Tdx = 4,
}

impl PlatformKind {
    const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Plain),
            1 => Some(Self::SimSnp),
            2 => Some(Self::Snp),
            3 => Some(Self::SimTdx),
            4 => Some(Self::Tdx),
            _ => None,
        }
    }

    /// Whether it encrypts memory and so needs the bit that tells private from shared.
    #[must_use]
    pub const fn has_memory_bit(self) -> bool {
        matches!(self, Self::Snp | Self::Tdx)
    }
}

/// Format of the kernel file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum KernelKind {
    /// `bzImage`.
    BzImage = 1,
    /// ELF `vmlinux`.
    Vmlinux = 2,
}

/// A payload as the launch digest covers it: by length and hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Bytes.
    pub length: u64,
    /// SHA-256 of these bytes.
    pub sha256: [u8; 32],
}

/// The measured description of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootBlock {
    /// Platform.
    pub platform: PlatformKind,
    /// vCPUs, all of which the guest is told of.
    pub vcpus: u32,
    /// Position of the address bit that marks private (SNP) or shared (TDX) memory; 0 elsewhere.
    pub memory_bit: u32,
    /// Whether the guest finds its devices by ACPI: stage0 then takes their words out of the command line and makes a DSDT of
    /// them. For kernels that set up interrupts by ACPI, as all do that know a TEE.
    pub acpi_devices: bool,
    /// Format of the kernel.
    pub kernel_kind: KernelKind,
    /// Kernel file as it is on disk.
    pub kernel: Sealed,
    /// Initramfs; `None`: no initramfs.
    pub initramfs: Option<Sealed>,
    /// Command line with the devices' words, without a final zero.
    pub command_line: Sealed,
}

/// Why a boot block was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootBlockError {
    /// The page does not begin with the magic.
    Magic,
    /// Another version.
    Version,
    /// Unknown platform.
    Platform,
    /// No vCPU or more than [`MAX_VCPUS`].
    Vcpus,
    /// A memory bit where there is none, none where there must be one, or one outside of 47 … 51.
    MemoryBit,
    /// A flag.
    Flags,
    /// Unknown format of kernel.
    KernelKind,
    /// The kernel is empty or too large.
    KernelLength,
    /// The initramfs is too large, or empty but has a hash.
    InitramfsLength,
    /// The command line is too long.
    CommandLineLength,
    /// A reserved byte is not zero.
    Reserved,
}

impl fmt::Display for BootBlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Magic => "boot block does not begin with its magic",
            Self::Version => "boot block has another version",
            Self::Platform => "boot block names an unknown platform",
            Self::Vcpus => "boot block has no vCPU or too many",
            Self::MemoryBit => "boot block has a wrong private or shared bit for its platform",
            Self::Flags => "boot block has an unknown flag",
            Self::KernelKind => "boot block names an unknown format of kernel",
            Self::KernelLength => "boot block has a kernel of impossible length",
            Self::InitramfsLength => "boot block has an initramfs of impossible length",
            Self::CommandLineLength => "boot block has a command line of impossible length",
            Self::Reserved => "boot block has a reserved byte that is not zero",
        })
    }
}

impl core::error::Error for BootBlockError {}

impl BootBlock {
    /// The page as it is measured.
    ///
    /// # Errors
    /// When stage0 would refuse it.
    pub fn to_page(&self) -> Result<[u8; 4096], BootBlockError> {
        self.check()?;
        let mut page = [0; 4096];
        put(&mut page, 0, &MAGIC);
        put(&mut page, 8, &VERSION.to_le_bytes());
        put(&mut page, 12, &(self.platform as u32).to_le_bytes());
        put(&mut page, 16, &self.vcpus.to_le_bytes());
        put(&mut page, 20, &self.memory_bit.to_le_bytes());
        put(&mut page, 24, &(if self.acpi_devices { ACPI_DEVICES } else { 0 }).to_le_bytes());
        put(&mut page, 28, &(self.kernel_kind as u32).to_le_bytes());
        let mut seal = |offset, sealed: &Sealed| {
            put(&mut page, offset, &sealed.length.to_le_bytes());
            put(&mut page, offset + 8, &sealed.sha256);
        };
        seal(KERNEL, &self.kernel);
        seal(INITRAMFS, &self.initramfs.unwrap_or_default());
        seal(COMMAND_LINE, &self.command_line);
        Ok(page)
    }

    /// Reads the page.
    ///
    /// # Errors
    /// When a field has a value it cannot have.
    pub fn parse(page: &[u8; 4096]) -> Result<Self, BootBlockError> {
        let page = Page(page);
        if page.array(0) != MAGIC {
            return Err(BootBlockError::Magic);
        }
        if page.u32(8) != VERSION {
            return Err(BootBlockError::Version);
        }
        let platform = PlatformKind::from_number(page.u32(12)).ok_or(BootBlockError::Platform)?;
        let flags = page.u32(24);
        if flags & !ACPI_DEVICES != 0 {
            return Err(BootBlockError::Flags);
        }
        let kernel_kind = match page.u32(28) {
            1 => KernelKind::BzImage,
            2 => KernelKind::Vmlinux,
            _ => return Err(BootBlockError::KernelKind),
        };
        let sealed = |offset| Sealed { length: page.u64(offset), sha256: page.array(offset + 8) };
        let initramfs = sealed(INITRAMFS);
        let block = Self {
            platform,
            vcpus: page.u32(16),
            memory_bit: page.u32(20),
            acpi_devices: flags & ACPI_DEVICES != 0,
            kernel_kind,
            kernel: sealed(KERNEL),
            initramfs: (initramfs != Sealed::default()).then_some(initramfs),
            command_line: sealed(COMMAND_LINE),
        };
        block.check()?;
        match page.first_nonzero(END) {
            None => Ok(block),
            Some(_) => Err(BootBlockError::Reserved),
        }
    }

    fn check(&self) -> Result<(), BootBlockError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(BootBlockError::Vcpus);
        }
        let bit_is_right = match self.platform.has_memory_bit() {
            true => (47..=51).contains(&self.memory_bit),
            false => self.memory_bit == 0,
        };
        if !bit_is_right {
            return Err(BootBlockError::MemoryBit);
        }
        if !(1..=KERNEL_MAX).contains(&self.kernel.length) {
            return Err(BootBlockError::KernelLength);
        }
        if self.initramfs.is_some_and(|initramfs| !(1..=INITRAMFS_MAX).contains(&initramfs.length)) {
            return Err(BootBlockError::InitramfsLength);
        }
        if self.command_line.length > COMMAND_LINE_MAX {
            return Err(BootBlockError::CommandLineLength);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block() -> BootBlock {
        let sealed = |length, byte| Sealed { length, sha256: [byte; 32] };
        BootBlock {
            platform: PlatformKind::Snp,
            vcpus: 4,
            memory_bit: 51,
            acpi_devices: false,
            kernel_kind: KernelKind::Vmlinux,
            kernel: sealed(10_000_000, 1),
            initramfs: Some(sealed(5, 2)),
            command_line: sealed(17, 3),
        }
    }

    fn refused(change: impl FnOnce(&mut [u8; 4096])) -> Result<BootBlock, BootBlockError> {
        let mut page = block().to_page().expect("valid");
        change(&mut page);
        BootBlock::parse(&page)
    }

    #[test]
    fn is_read_as_it_was_written() {
        let without = BootBlock { initramfs: None, platform: PlatformKind::Plain, memory_bit: 0, ..block() };
        let simulated = BootBlock { platform: PlatformKind::SimTdx, memory_bit: 0, ..block() };
        let by_acpi = BootBlock { acpi_devices: true, ..block() };
        for block in [block(), without, simulated, by_acpi] {
            assert_eq!(BootBlock::parse(&block.to_page().expect("valid")), Ok(block));
        }
    }

    #[test]
    fn fields_are_where_the_table_says() {
        let page = block().to_page().expect("valid");
        assert_eq!(&page[..8], b"KCCSTG0\0");
        assert_eq!(page[8..32], [1, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 51, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(page[32..40], 10_000_000_u64.to_le_bytes());
        assert_eq!((page[40], page[71], page[72], page[80]), (1, 1, 5, 2));
        assert_eq!((page[112], page[120], page[151]), (17, 3, 3));
        assert!(page[152..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn refuses_another_magic_version_platform_flag_or_kernel() {
        assert_eq!(refused(|page| page[7] = 1), Err(BootBlockError::Magic));
        assert_eq!(refused(|page| page[8] = 2), Err(BootBlockError::Version));
        assert_eq!(refused(|page| page[12] = 5), Err(BootBlockError::Platform));
        assert_eq!(refused(|page| page[27] = 0x80), Err(BootBlockError::Flags));
        assert_eq!(refused(|page| page[24] = 2), Err(BootBlockError::Flags));
        assert_eq!(refused(|page| page[24] = 1), Ok(BootBlock { acpi_devices: true, ..block() }));
        assert_eq!(refused(|page| page[28] = 0), Err(BootBlockError::KernelKind));
        assert_eq!(refused(|page| page[28] = 3), Err(BootBlockError::KernelKind));
    }

    #[test]
    fn refuses_numbers_out_of_range() {
        assert_eq!(refused(|page| page[16] = 0), Err(BootBlockError::Vcpus));
        assert_eq!(refused(|page| page[16] = 65), Err(BootBlockError::Vcpus));
        assert_eq!(refused(|page| page[20] = 0), Err(BootBlockError::MemoryBit));
        assert_eq!(refused(|page| page[20] = 46), Err(BootBlockError::MemoryBit));
        assert_eq!(refused(|page| page[20] = 52), Err(BootBlockError::MemoryBit));
        assert_eq!(refused(|page| page[12] = 0), Err(BootBlockError::MemoryBit));
        assert_eq!(refused(|page| page[32..40].fill(0)), Err(BootBlockError::KernelLength));
        assert_eq!(refused(|page| page[32..40].fill(0xff)), Err(BootBlockError::KernelLength));
        assert_eq!(refused(|page| page[72] = 0), Err(BootBlockError::InitramfsLength));
        assert_eq!(refused(|page| page[72..80].fill(0xff)), Err(BootBlockError::InitramfsLength));
        assert_eq!(refused(|page| page[113] = 8), Err(BootBlockError::CommandLineLength));
    }

    #[test]
    fn refuses_each_reserved_byte_that_is_not_zero() {
        for offset in 152..4096 {
            assert_eq!(refused(|page| page[offset] = 1), Err(BootBlockError::Reserved), "{offset}");
        }
    }

    #[test]
    fn is_not_written_when_it_would_be_refused() {
        assert_eq!(BootBlock { vcpus: 0, ..block() }.to_page(), Err(BootBlockError::Vcpus));
        let plain = BootBlock { platform: PlatformKind::Plain, ..block() };
        assert_eq!(plain.to_page(), Err(BootBlockError::MemoryBit));
    }
}
