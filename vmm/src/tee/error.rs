//! Why a confidential launch did not happen, by who has to act.

use kata_cc_snp::id_block::IdBlockError;
use kata_cc_vmm_api::exit;

use super::ioctls::Refusal;
use super::memory::MapError;

/// Why a confidential launch did not happen.
#[derive(Debug, thiserror::Error)]
pub enum TeeError {
    /// The host lacks something.
    #[error("this host's KVM lacks {what}: {change}")]
    Lacks {
        /// What is missing.
        what: &'static str,
        /// What to change.
        change: &'static str,
    },
    /// The kernel or the hardware refused a call.
    #[error("{call}: {refusal}")]
    Refused {
        /// Which call.
        call: &'static str,
        /// What was said.
        #[source]
        refusal: Refusal,
    },
    /// The kernel keeps asking to try again.
    #[error("{call} made no progress in {attempts} attempts at guest address {gpa:#x}")]
    NoProgress {
        /// Which call.
        call: &'static str,
        /// Where it stands.
        gpa: u64,
        /// How often it was tried.
        attempts: u32,
    },
    /// A policy that is refused before anything is started.
    #[error("policy {policy:#x}: {reason}")]
    Policy {
        /// The policy.
        policy: u64,
        /// Why it is refused.
        reason: &'static str,
    },
    /// Bits that this host cannot give.
    #[error("{field} {asked:#x} has bits that this host does not support (it supports {supported:#x})")]
    Unsupported {
        /// Which field.
        field: &'static str,
        /// What was asked for.
        asked: u64,
        /// What could be had.
        supported: u64,
    },
    /// The CPUID page was refused twice.
    #[error(
        "the security processor refuses the CPUID page: leaf {leaf:#x} index {index:#x} is not allowed as given"
    )]
    Cpuid {
        /// First leaf that it changed.
        leaf: u32,
        /// Its index.
        index: u32,
    },
    /// More CPUID leaves than fit.
    #[error("{seen} CPUID leaves: {most} fit")]
    CpuidCount {
        /// How many there are.
        seen: usize,
        /// How many fit.
        most: usize,
    },
    /// The ID block was signed for another launch.
    #[error("ID block is for launch digest {stated}, this launch has {predicted}: sign one for this launch")]
    IdBlockDigest {
        /// Digest in the block.
        stated: String,
        /// Digest of this launch.
        predicted: String,
    },
    /// The ID block was signed for another policy.
    #[error("ID block is for policy {stated:#x}, this launch has {policy:#x}")]
    IdBlockPolicy {
        /// Policy in the block.
        stated: u64,
        /// Policy of this launch.
        policy: u64,
    },
    /// The ID block does not hold together.
    #[error(transparent)]
    IdBlock(#[from] IdBlockError),
    /// Number of vCPUs that the description of the launch does not fit.
    #[error("{vcpus} vCPUs, but {measured} are measured")]
    Vcpus {
        /// vCPUs asked for.
        vcpus: u32,
        /// vCPUs of the description.
        measured: u32,
    },
    /// Memory that is not where the launch needs it, or is private where it must be shared.
    #[error(transparent)]
    Memory(#[from] MapError),
}

impl TeeError {
    /// Exit code of the process: what the host cannot do is told apart from what the configuration asks for.
    #[must_use]
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::Lacks { .. }
            | Self::Refused { .. }
            | Self::NoProgress { .. }
            | Self::Unsupported { .. } => exit::NO_KVM,
            _ => exit::BAD_CONFIG,
        }
    }

    /// For `map_err`.
    pub(crate) fn refused(call: &'static str) -> impl Fn(Refusal) -> Self {
        move |refusal| Self::Refused { call, refusal }
    }
}
