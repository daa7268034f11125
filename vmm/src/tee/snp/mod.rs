//! SEV-SNP.
//!
//! Order (kernel documentation, "SNP guest launch"): INIT2 before any vCPU, LAUNCH_START with the policy, pages
//! by LAUNCH_UPDATE from memory that is backed by guest_memfd and set private, LAUNCH_FINISH, in which KVM
//! measures one VMSA per vCPU from the registers that were set.

pub mod certificates;
mod cpuid;
mod launch;
mod policy;
pub(crate) mod registers;

pub use cpuid::{CPUID_MAX, cpuid_page};
pub use launch::{SnpConfig, SnpTee};
pub use policy::check_policy;
