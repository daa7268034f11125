//! A kernel image, told apart by its content and taken apart. The image is untrusted: every field is
//! checked against the file and against [`crate::layout`] before it is used.

use crate::{bzimage, elf, layout};

/// Largest kernel file that is looked at.
pub(crate) const MAX_KERNEL_BYTES: usize = 512 << 20;

/// Which kind of image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFormat {
    /// ELF `vmlinux`.
    Vmlinux,
    /// `bzImage`, which unpacks itself.
    BzImage,
}

/// Why a kernel image was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// Neither format's magic was found.
    #[error("kernel is neither an ELF vmlinux nor a bzImage: give one of these")]
    UnknownFormat,
    /// The file is larger than any kernel.
    #[error("kernel file has {0} bytes, more than 512 MiB: is this a kernel?")]
    TooLarge(usize),
    /// A header or segment lies beyond the end of the file.
    #[error("kernel file ends before its {what}: it is truncated")]
    Truncated {
        /// What was to be read.
        what: &'static str,
    },
    /// A header field has a value that no bootable x86-64 kernel has.
    #[error("kernel header field {field} is {value:#x}: not a bootable x86-64 kernel")]
    BadField {
        /// Its name in the format's document.
        field: &'static str,
        /// What it was.
        value: u64,
    },
    /// A segment starts within a page; what is measured are whole pages.
    #[error("kernel segment at {address:#x} does not start at a page boundary")]
    Unaligned {
        /// Its physical address.
        address: u64,
    },
    /// A segment lies outside of where kernels may lie.
    #[error("kernel segment at {address:#x} of {bytes:#x} bytes is outside of 1 MiB to 1 GiB")]
    OutOfRange {
        /// Its physical address.
        address: u64,
        /// Its length in memory.
        bytes: u64,
    },
    /// Two segments share a page.
    #[error("kernel segment at {address:#x} overlaps another")]
    Overlap {
        /// Physical address of the later one.
        address: u64,
    },
    /// The entry point is not within what the file fills.
    #[error("kernel entry point {0:#x} is outside of its segments")]
    EntryOutside(u64),
    /// A bzImage without a 64-bit entry point.
    #[error("bzImage has no 64-bit entry point: build it for x86-64, version 3.8 or later")]
    No64BitEntry,
}

/// What a kernel image demands of the launch.
#[derive(Debug)]
pub struct Kernel<'a> {
    /// Its format.
    pub format: KernelFormat,
    /// Parts that are loaded: page-aligned address and content, ascending, in different pages.
    pub segments: Vec<(u64, &'a [u8])>,
    /// Physical address of the first instruction.
    pub entry: u64,
    /// First byte after all that the kernel uses before it looks at the memory map.
    pub end: u64,
    /// Setup header to copy into the boot parameters, from offset 0x1f1 on (bzImage only).
    pub setup_header: Option<&'a [u8]>,
    /// Longest command line, with its final zero.
    pub cmdline_max: usize,
    /// Highest address that the initramfs may use.
    pub initramfs_max: u64,
}

impl<'a> Kernel<'a> {
    /// Takes the image apart.
    ///
    /// # Errors
    /// When it is not a well-formed x86-64 kernel that fits the layout.
    pub fn parse(file: &'a [u8]) -> Result<Self, KernelError> {
        if file.len() > MAX_KERNEL_BYTES {
            return Err(KernelError::TooLarge(file.len()));
        }
        if file.starts_with(&elf::MAGIC) {
            elf::parse(file)
        } else if bzimage::looks_like(file) {
            bzimage::parse(file)
        } else {
            Err(KernelError::UnknownFormat)
        }
    }
}

/// Checks that a part lies where kernels may lie and gives its end.
pub(crate) fn check_range(address: u64, bytes: u64) -> Result<u64, KernelError> {
    address
        .checked_add(bytes)
        .filter(|end| address >= layout::HIGH_RAM && *end <= layout::IDENTITY_MAP_END)
        .ok_or(KernelError::OutOfRange { address, bytes })
}

/// Little-endian fields of a file, never beyond its end.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub(crate) file: &'a [u8],
    pub(crate) what: &'static str,
}

impl<'a> Fields<'a> {
    pub(crate) fn bytes(&self, offset: u64, len: u64) -> Result<&'a [u8], KernelError> {
        let truncated = KernelError::Truncated { what: self.what };
        let end = offset.checked_add(len).ok_or(truncated)?;
        let (start, end) =
            (usize::try_from(offset).map_err(|_| truncated)?, usize::try_from(end).map_err(|_| truncated)?);
        self.file.get(start..end).ok_or(truncated)
    }

    fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N], KernelError> {
        self.bytes(offset, N as u64)?.try_into().map_err(|_| KernelError::Truncated { what: self.what })
    }

    pub(crate) fn u8(&self, offset: u64) -> Result<u8, KernelError> {
        Ok(u8::from_le_bytes(self.array(offset)?))
    }

    pub(crate) fn u16(&self, offset: u64) -> Result<u16, KernelError> {
        Ok(u16::from_le_bytes(self.array(offset)?))
    }

    pub(crate) fn u32(&self, offset: u64) -> Result<u32, KernelError> {
        Ok(u32::from_le_bytes(self.array(offset)?))
    }

    pub(crate) fn u64(&self, offset: u64) -> Result<u64, KernelError> {
        Ok(u64::from_le_bytes(self.array(offset)?))
    }
}
