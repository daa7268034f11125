//! TDX.
//!
//! Order (kernel documentation, `intel-tdx.rst`): capabilities, INIT_VM before any vCPU, per vCPU CPUID with
//! x2APIC and INIT_VCPU, INIT_MEM_REGION for each region of the start (adding a page and, when it is measured,
//! extending MRTD by it at once), FINALIZE_VM. Registers are the TDX module's.

mod cpuid;
mod launch;
pub mod quote;
pub mod vmcall;

pub use cpuid::configurable;
pub use launch::{TdxConfig, TdxTee};
