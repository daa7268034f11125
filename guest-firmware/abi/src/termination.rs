//! The numbers with which stage0 gives up, and their words. A number fits into the reason code of a GHCB
//! termination request (8 bits), and never changes its meaning: a VMM may report an older image.

use core::fmt;

use crate::block::BootBlockError;
use crate::info::BootInfoError;

/// The set of stage0's numbers in a termination request of the GHCB MSR protocol (bits 15:12); 0 is the specification's, 1 is Linux's.
pub const REASON_SET: u64 = 2;

macro_rules! terminations {
    ($($number:literal $name:ident $words:literal,)*) => {
        /// Why stage0 refused to boot.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "the words of each, in the same line of the table, say it")]
        pub enum Termination {
            $($name = $number,)*
        }

        impl Termination {
            /// Every one there is, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The one with that number.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// What happened, for the operator of the host.
            #[must_use]
            pub const fn words(self) -> &'static str {
                match self {
                    $(Self::$name => $words,)*
                }
            }

            /// Its name, as tests and documents call it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

terminations! {
    // the measured page
    0x01 BootBlockMagic "the boot block is not one",
    0x02 BootBlockVersion "the boot block has another version than the image",
    0x03 BootBlockPlatform "the boot block names an unknown platform",
    0x04 BootBlockVcpus "the boot block has no vCPU or too many",
    0x05 BootBlockMemoryBit "the boot block has a wrong private or shared bit for its platform",
    0x06 BootBlockFlags "the boot block has an unknown flag",
    0x07 BootBlockKernelKind "the boot block names an unknown format of kernel",
    0x08 BootBlockKernelLength "the boot block has a kernel of impossible length",
    0x09 BootBlockInitramfsLength "the boot block has an initramfs of impossible length",
    0x0A BootBlockCommandLineLength "the boot block has a command line of impossible length",
    0x0B BootBlockReserved "the boot block has a reserved byte that is not zero",
    // the host's word about places
    0x10 BootInfoMagic "the boot info is not one",
    0x11 BootInfoVersion "the boot info has another version than the image",
    0x12 BootInfoRangeCount "the boot info has no range of memory or too many",
    0x13 BootInfoRangeBounds "the boot info has a range of memory with impossible bounds",
    0x14 BootInfoRangeOrder "the boot info has ranges of memory that overlap or are out of order",
    0x15 BootInfoRangeInHole "the boot info has a range of memory where devices are",
    0x16 BootInfoFirstRange "the boot info does not have the first 2 MiB of memory",
    0x17 BootInfoPayloadAlignment "the boot info has a payload that is not aligned to 2 MiB",
    0x18 BootInfoReserved "the boot info has a reserved byte that is not zero",
    0x19 PayloadOutsideMemory "a payload does not lie within memory below 3 GiB",
    0x1A PayloadInReservedMemory "a payload lies over the firmware's own memory",
    0x1B PayloadsOverlap "kernel and initramfs overlap",
    0x1C InitramfsMismatch "the boot info has an initramfs and the boot block has none, or the other way round",
    0x1D OutOfMemory "kernel, initramfs and their private copies do not fit into memory",
    // the payloads
    0x20 KernelHash "the kernel is not the measured one",
    0x21 InitramfsHash "the initramfs is not the measured one",
    0x22 CommandLineHash "the command line is not the measured one",
    0x23 KernelFormat "the kernel is not of the format that the boot block names",
    0x24 KernelHeader "the kernel's header is malformed or asks for what stage0 does not do",
    0x25 KernelSegments "the kernel's segments lie where they must not",
    0x26 CommandLineTooLong "the command line is longer than this kernel takes",
    0x27 KernelPlace "the memory where the kernel must lie is not free",
    0x28 CommandLineDevice "the command line has a device in a form that stage0 does not know, or too many",
    // memory
    0x30 AcceptFailed "the host did not make memory private",
    0x31 ShareFailed "the host did not make memory shared",
    0x32 AlreadyValidated "memory was validated twice: the host maps one page at two addresses, or replays",
    0x33 ValidationFailed "the processor refused to validate memory",
    // the TEE's own
    0x40 CpuidPage "the CPUID page contradicts the processor or lacks a leaf",
    0x41 CpuidUnsupported "the processor lacks what the firmware needs",
    0x42 GhcbProtocol "the host does not speak the GHCB protocol of this firmware",
    0x43 HostCallFailed "the host refused a call of the firmware",
    0x44 UnexpectedException "an exception that no part of the firmware expects",
    0x45 TdxModule "the TDX module refused a call of the firmware",
    0x46 SecretsPage "the secrets page has another version than the firmware knows",
    0x47 MemoryBitMismatch "the processor's private or shared bit is not the boot block's",
    0x48 PlatformMismatch "the image does not run on the platform that the boot block names",
    0x49 EventLog "the event log has no room",
    0x4A ApStart "the other vCPUs could not be made ready",
    0x4B UnnamedTee "the boot block names no TEE, or a simulated one, and the processor is in a real one",
    // the firmware's own
    0x50 TablesTooLarge "the firmware's tables do not fit into their place",
    0x51 Panic "the firmware failed by a fault of its own",
}

impl Termination {
    /// Its number.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Termination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stage0 refused to boot: {} ({}, {:#04x})", self.words(), self.name(), self.code())
    }
}

impl core::error::Error for Termination {}

impl From<BootBlockError> for Termination {
    fn from(error: BootBlockError) -> Self {
        match error {
            BootBlockError::Magic => Self::BootBlockMagic,
            BootBlockError::Version => Self::BootBlockVersion,
            BootBlockError::Platform => Self::BootBlockPlatform,
            BootBlockError::Vcpus => Self::BootBlockVcpus,
            BootBlockError::MemoryBit => Self::BootBlockMemoryBit,
            BootBlockError::Flags => Self::BootBlockFlags,
            BootBlockError::KernelKind => Self::BootBlockKernelKind,
            BootBlockError::KernelLength => Self::BootBlockKernelLength,
            BootBlockError::InitramfsLength => Self::BootBlockInitramfsLength,
            BootBlockError::CommandLineLength => Self::BootBlockCommandLineLength,
            BootBlockError::Reserved => Self::BootBlockReserved,
        }
    }
}

impl From<BootInfoError> for Termination {
    fn from(error: BootInfoError) -> Self {
        match error {
            BootInfoError::Magic => Self::BootInfoMagic,
            BootInfoError::Version => Self::BootInfoVersion,
            BootInfoError::RangeCount => Self::BootInfoRangeCount,
            BootInfoError::RangeBounds => Self::BootInfoRangeBounds,
            BootInfoError::RangeOrder => Self::BootInfoRangeOrder,
            BootInfoError::RangeInHole => Self::BootInfoRangeInHole,
            BootInfoError::FirstRange => Self::BootInfoFirstRange,
            BootInfoError::PayloadAlignment => Self::BootInfoPayloadAlignment,
            BootInfoError::Reserved => Self::BootInfoReserved,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    #[test]
    fn a_code_is_read_back() {
        for code in 0..=u8::MAX {
            if let Some(termination) = Termination::from_code(code) {
                assert_eq!(termination.code(), code);
                assert!(Termination::ALL.contains(&termination));
            }
        }
        assert_eq!(Termination::from_code(0), None, "zero is what a VMM sees when nothing was written");
    }

    #[test]
    fn numbers_ascend_and_words_differ() {
        for pair in Termination::ALL.windows(2) {
            assert!(pair[0].code() < pair[1].code());
        }
        for (index, one) in Termination::ALL.iter().enumerate() {
            assert!(Termination::ALL[index + 1..].iter().all(|other| other.words() != one.words()));
        }
    }

    #[test]
    fn the_document_lists_every_one() {
        let document = include_str!("../../../docs/stage0.md");
        let rows: std::vec::Vec<_> = document.lines().filter(|line| line.starts_with("| `0x")).collect();
        let expected = Termination::ALL
            .iter()
            .map(|one| std::format!("| `0x{:02X}` | `{}` | {} |", one.code(), one.name(), one.words()));
        assert_eq!(rows, expected.collect::<std::vec::Vec<_>>());
    }

    #[test]
    fn is_reported_in_words_with_name_and_number() {
        assert_eq!(
            Termination::KernelHash.to_string(),
            "stage0 refused to boot: the kernel is not the measured one (KernelHash, 0x20)"
        );
    }
}
