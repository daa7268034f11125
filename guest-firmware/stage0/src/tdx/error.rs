//! Why the TDX side of stage0 does not go on, in more detail than the number that the host is given.

use crate::platform::PlatformError;
use crate::private_pages::BookError;

/// Why a launch under TDX ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// the boot block names another platform
    Platform,
    /// the TDX module refused a call
    Module {
        /// TDG leaf.
        leaf: u64,
        /// RAX.
        status: u64,
    },
    /// the width of guest physical addresses is neither 48 nor 52
    AddressWidth(u64),
    /// the shared bit is not the measured one
    SharedBit(u64),
    /// the host could have accesses to taken pages raise #VE in the guest (attribute SEPT_VE_DISABLE is off)
    PageExceptions(u64),
    /// this vCPU is not the first
    NotFirst(u64),
    /// another number of vCPUs than the measured one
    Vcpus(u64),
    /// the host refused to map memory as private or as shared
    MapGpa(u64),
    /// the host has the mapping go on at a place that does not lie before it
    MapGpaCursor(u64),
    /// the host came back from a mapping again and again without having done anything
    MapGpaStalled,
    /// a page was accepted before stage0 accepted it
    AlreadyAccepted(u64),
    /// the range is not within the memory that stage0 has mapped
    Range(u64),
    /// the book of private pages
    Book(BookError),
    /// the event log has no room
    LogFull,
    /// called before `init`
    NotReady,
}

impl From<BookError> for Error {
    fn from(error: BookError) -> Self {
        Self::Book(error)
    }
}

impl From<Error> for PlatformError {
    fn from(error: Error) -> Self {
        match error {
            Error::Platform => Self::PlatformMismatch,
            Error::Module { .. } => Self::TdxModule,
            Error::AddressWidth(_) | Error::SharedBit(_) => Self::MemoryBitMismatch,
            Error::PageExceptions(_) => Self::CpuidUnsupported,
            Error::NotFirst(_) | Error::Vcpus(_) => Self::ApStart,
            Error::MapGpa(_) | Error::MapGpaCursor(_) | Error::MapGpaStalled => Self::AcceptFailed,
            Error::AlreadyAccepted(_) | Error::Book(BookError::AlreadyPrivate) => Self::AlreadyValidated,
            Error::Range(_) | Error::Book(BookError::NotPrivate | BookError::Full) | Error::NotReady => {
                Self::ValidationFailed
            }
            Error::LogFull => Self::EventLog,
        }
    }
}
