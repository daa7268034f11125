//! Why the SNP side of stage0 does not go on, in more detail than the number that the host is given.

use super::cpuid::CpuidRefusal;
use super::secrets::SecretsRefusal;
use crate::platform::PlatformError;
use crate::private_pages::BookError;

/// Why a launch under SEV-SNP ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// SEV_STATUS does not say SEV, SEV-ES and SEV-SNP
    NotSnp(u64),
    /// a SEV feature is on that neither stage0 nor Linux knows how to run under
    SevFeatures(u64),
    /// the processor does not run at privilege level 0
    NotVmpl0(u32),
    /// the boot block names another platform
    Platform,
    /// the host answered by the GHCB MSR with another code than the one that belongs to the request
    MsrResponse {
        /// The code that belongs to the request.
        expected: u16,
        /// What was read.
        value: u64,
    },
    /// the host does not speak version 2 of the GHCB protocol
    Protocol {
        /// Lowest version that the host speaks.
        min: u16,
        /// Highest version that the host speaks.
        max: u16,
    },
    /// the host names another C-bit than the measured one
    CBit(u8),
    /// the host lacks SNP
    HypervisorFeatures(u64),
    /// the host registered another page as GHCB
    GhcbAddress(u64),
    /// the host refused the change of a page by MSR
    PageStateMsr(u32),
    /// the host refused a page state change
    PageState(u64),
    /// the cursor of a page state change went backwards or beyond the end, or its header was changed
    PageStateCursor(u64),
    /// the host came back from a page state change again and again without having done anything
    PageStateStalled,
    /// more steps than a page state change takes, or none
    BatchSize(usize),
    /// the host did not understand a GHCB exit, or asked for an exception
    GhcbExit {
        /// SW_EXITINFO1.
        info1: u64,
        /// SW_EXITINFO2.
        info2: u64,
    },
    /// PVALIDATE failed
    Pvalidate {
        /// The page.
        page: u64,
        /// EAX.
        status: u32,
    },
    /// a page was valid before stage0 validated it, or no longer when stage0 gave it up: the host exchanged it
    DoubleValidation(u64),
    /// RMPADJUST failed
    Rmpadjust(u32),
    /// the range is not within the memory that stage0 has mapped
    Range(u64),
    /// the book of private pages
    Book(BookError),
    /// the CPUID page
    Cpuid(CpuidRefusal),
    /// the secrets page
    Secrets(SecretsRefusal),
    /// the host does not start further vCPUs, and the boot block has them
    NoApCreation,
    /// called before `init`
    NotReady,
}

impl From<BookError> for Error {
    fn from(error: BookError) -> Self {
        Self::Book(error)
    }
}

impl From<CpuidRefusal> for Error {
    fn from(error: CpuidRefusal) -> Self {
        Self::Cpuid(error)
    }
}

impl From<SecretsRefusal> for Error {
    fn from(error: SecretsRefusal) -> Self {
        Self::Secrets(error)
    }
}

impl From<Error> for PlatformError {
    fn from(error: Error) -> Self {
        match error {
            Error::NotSnp(_) | Error::NotVmpl0(_) | Error::Platform => Self::PlatformMismatch,
            Error::SevFeatures(_) => Self::CpuidUnsupported,
            Error::Protocol { .. } | Error::MsrResponse { .. } | Error::GhcbAddress(_) => Self::GhcbProtocol,
            Error::HypervisorFeatures(_) | Error::GhcbExit { .. } => Self::HostCallFailed,
            Error::CBit(_) | Error::Cpuid(CpuidRefusal::CBit(_)) => Self::MemoryBitMismatch,
            Error::PageStateMsr(_)
            | Error::PageState(_)
            | Error::PageStateCursor(_)
            | Error::PageStateStalled => Self::AcceptFailed,
            Error::DoubleValidation(_) | Error::Book(BookError::AlreadyPrivate) => Self::AlreadyValidated,
            Error::Pvalidate { .. }
            | Error::Range(_)
            | Error::BatchSize(_)
            | Error::Book(BookError::NotPrivate | BookError::Full)
            | Error::NotReady => Self::ValidationFailed,
            Error::Cpuid(_) => Self::CpuidPage,
            Error::Secrets(_) => Self::SecretsPage,
            Error::Rmpadjust(_) | Error::NoApCreation => Self::ApStart,
        }
    }
}
