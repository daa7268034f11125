//! What can go wrong, by who has to act; the exit code follows from the variant.

use std::path::PathBuf;

use kata_cc_boot::PlanError;
use kata_cc_vmm_api::exit;

/// Why the VMM did not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The configuration was refused.
    #[error("configuration: {0}")]
    Config(#[from] crate::config::ConfigError),
    /// Kernel, initramfs or command line were refused.
    #[error("boot: {0}")]
    Plan(#[from] PlanError),
    /// A file that the configuration names cannot be used.
    #[error("{what} {path}: {source}", path = path.display())]
    File {
        /// What it is for.
        what: String,
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A device cannot be made.
    #[error("device {device}: {reason}")]
    Device {
        /// Its name in the configuration.
        device: String,
        /// What the device said.
        reason: String,
    },
    /// The confidential launch did not happen.
    #[error("confidential launch: {0}")]
    Tee(#[from] crate::tee::TeeError),
    /// What stage0 shall be launched with does not hold together.
    #[error("firmware: {0}")]
    Stage0(#[from] kata_cc_measurement::stage0::Stage0Error),
    /// A TEE without stage0.
    #[error("boot.firmware: a guest under a TEE starts by stage0: give its image")]
    NoFirmware,
    /// The simulated TEE cannot be set up.
    #[error("simulated tee: {0}")]
    SimTee(String),
    /// KVM is missing, too old or refused.
    #[error("kvm: {what}: {source}")]
    Kvm {
        /// What was asked.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// KVM lacks something.
    #[error("kvm lacks {0}: a Linux 5.10 or later host is needed")]
    KvmLacks(&'static str),
    /// Guest memory cannot be had or written.
    #[error("guest memory: {0}")]
    Memory(String),
    /// Something of the operating system's failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl VmmError {
    /// Exit code of the process.
    #[must_use]
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::Config(_)
            | Self::Plan(_)
            | Self::File { .. }
            | Self::Device { .. }
            | Self::Stage0(_)
            | Self::NoFirmware
            | Self::SimTee(_) => exit::BAD_CONFIG,
            Self::Kvm { .. } | Self::KvmLacks(_) => exit::NO_KVM,
            Self::Tee(error) => error.exit_code(),
            Self::Memory(_) | Self::System { .. } => exit::FAILED,
        }
    }

    /// For `map_err` of KVM calls.
    pub(crate) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }

    /// For `map_err` of system calls.
    pub fn system<E: Into<std::io::Error>>(what: &'static str) -> impl Fn(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}
