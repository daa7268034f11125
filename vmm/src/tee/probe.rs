//! What only the kernel's own calls tell about confidential VMs on this host, for `kata-cc doctor`: which types
//! of VM KVM makes, what they may have, and the security processor's firmware.
//!
//! It starts nothing and changes nothing: a VM of each type is created and closed.

use std::fs::File;

use kata_cc_devices::{GuestRam, Memory};
use kvm_bindings::{KVM_CAP_GUEST_MEMFD, KVM_CAP_VM_TYPES};
use serde::Serialize;
use vm_memory::GuestAddress;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use super::abi::{SEV_VMSA_FEATURES, SNP_POLICY_BITS, TdxCapabilities, VM_TYPE_SNP, VM_TYPE_TDX};
use super::ioctls::{Refusal, TeeIoctls};
use super::kernel::KernelIoctls;

/// Security processor's command "SNP_PLATFORM_STATUS" (`include/uapi/linux/psp-sev.h`).
const SNP_PLATFORM_STATUS: u32 = 9;

#[allow(missing_docs, reason = "a number of the kernel's calls, made by a macro")]
mod calls {
    use vmm_sys_util::ioctl_iowr_nr;

    ioctl_iowr_nr!(SEV_ISSUE_CMD, 'S' as u32, 0, super::SevIssueCommand);
}

/// `struct sev_issue_cmd`.
#[repr(C, packed)]
#[derive(Debug, Default, Clone, Copy)]
pub struct SevIssueCommand {
    command: u32,
    data: u64,
    error: u32,
}

/// `struct sev_user_data_snp_status`.
#[repr(C, packed)]
#[derive(Debug, Default, Clone, Copy)]
struct SnpStatus {
    api_major: u8,
    api_minor: u8,
    state: u8,
    is_rmp_initialised: u8,
    build: u32,
    flags: u32,
    guests: u32,
    current_tcb: u64,
    reported_tcb: u64,
}

const _: () = assert!(size_of::<SevIssueCommand>() == 16 && size_of::<SnpStatus>() == 32);

/// Firmware of the security processor.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct SnpFirmware {
    /// ABI version and build, `1.55.8`.
    pub version: String,
    /// Whether SNP is initialised.
    pub initialised: bool,
    /// Whether the table of page owners is.
    pub rmp_initialised: bool,
    /// Guests that it knows.
    pub guests: u32,
    /// TCB version that reports state, in hex.
    pub reported_tcb: String,
}

/// What KVM offers for SNP.
#[derive(Debug, Serialize)]
pub struct SnpAnswer {
    /// Whether KVM makes VMs of this type.
    pub vm_type: bool,
    /// SEV_FEATURES that a guest may have, in hex.
    pub features: Option<String>,
    /// Policy bits that the kernel accepts, in hex; older kernels do not tell.
    pub policy_bits: Option<String>,
    /// Firmware.
    pub firmware: Option<SnpFirmware>,
    /// Why the firmware did not answer.
    pub firmware_error: Option<String>,
}

/// What KVM offers for TDX.
#[derive(Debug, Serialize)]
pub struct TdxAnswer {
    /// Whether KVM makes VMs of this type.
    pub vm_type: bool,
    /// ATTRIBUTES that a TD may have, in hex.
    pub attributes: Option<String>,
    /// XFAM bits that a TD may have, in hex.
    pub xfam: Option<String>,
    /// Why the TDX module did not answer.
    pub error: Option<String>,
}

/// The answer.
#[derive(Debug, Serialize)]
pub struct TeeAnswer {
    /// Whether KVM keeps private memory (guest_memfd).
    pub guest_memfd: bool,
    /// SNP.
    pub snp: SnpAnswer,
    /// TDX.
    pub tdx: TdxAnswer,
}

/// Asks the kernel.
///
/// # Errors
/// When there is no KVM at all.
pub fn probe() -> Result<TeeAnswer, Refusal> {
    let plain = KernelIoctls::open(0, memory()?)?;
    let types = plain.capability(KVM_CAP_VM_TYPES);
    let hex = |value: u64| format!("{value:#x}");
    let firmware = snp_firmware();
    let snp = SnpAnswer {
        vm_type: types >> VM_TYPE_SNP & 1 == 1,
        features: plain.sev_attribute(SEV_VMSA_FEATURES).ok().map(hex),
        policy_bits: plain.sev_attribute(SNP_POLICY_BITS).ok().map(hex),
        firmware_error: firmware.as_ref().err().cloned(),
        firmware: firmware.ok(),
    };
    let tdx = match types >> VM_TYPE_TDX & 1 == 1 {
        true => tdx_answer(),
        false => TdxAnswer { vm_type: false, attributes: None, xfam: None, error: None },
    };
    Ok(TeeAnswer { guest_memfd: plain.capability(KVM_CAP_GUEST_MEMFD) != 0, snp, tdx })
}

fn memory() -> Result<Memory, Refusal> {
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), 4096)]);
    ram.map(Memory::new).map_err(|_| Refusal::kernel(libc::ENOMEM))
}

fn tdx_answer() -> TdxAnswer {
    let ask = || -> Result<_, Refusal> {
        let mut capabilities = TdxCapabilities::with_room(super::abi::CPUID_ENTRIES as u32);
        KernelIoctls::open(VM_TYPE_TDX, memory()?)?.tdx_capabilities(&mut capabilities)?;
        Ok((capabilities.supported_attrs, capabilities.supported_xfam))
    };
    match ask() {
        Ok((attributes, xfam)) => TdxAnswer {
            vm_type: true,
            attributes: Some(format!("{attributes:#x}")),
            xfam: Some(format!("{xfam:#x}")),
            error: None,
        },
        Err(refusal) => {
            TdxAnswer { vm_type: true, attributes: None, xfam: None, error: Some(refusal.to_string()) }
        }
    }
}

/// Asks the security processor through `/dev/sev`; unprivileged users may.
#[allow(unsafe_code)]
fn snp_firmware() -> Result<SnpFirmware, String> {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/sev")
        .map_err(|error| format!("/dev/sev: {error}"))?;
    let mut status = SnpStatus::default();
    let mut call = SevIssueCommand {
        command: SNP_PLATFORM_STATUS,
        data: std::ptr::from_mut(&mut status) as u64,
        error: 0,
    };
    // SAFETY: the kernel writes the 32 bytes of `status` and `call.error`; both live until it returns.
    let result = unsafe { ioctl_with_mut_ref(&device, calls::SEV_ISSUE_CMD(), &mut call) };
    if result != 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        return Err(Refusal { errno, firmware: u64::from(call.error) }.to_string());
    }
    Ok(describe(&status))
}

fn describe(status: &SnpStatus) -> SnpFirmware {
    let (build, guests, tcb) = (status.build, status.guests, status.reported_tcb);
    SnpFirmware {
        version: format!("{}.{}.{build}", status.api_major, status.api_minor),
        initialised: status.state == 1,
        rmp_initialised: status.is_rmp_initialised & 1 == 1,
        guests,
        reported_tcb: format!("{tcb:016x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_as_the_kernel_lays_it_out() {
        assert_eq!(calls::SEV_ISSUE_CMD(), 0xC010_5300);
        let status = SnpStatus {
            api_major: 1,
            api_minor: 55,
            state: 1,
            is_rmp_initialised: 1,
            build: 8,
            guests: 3,
            reported_tcb: 0x5400_0000_0000_000A,
            ..SnpStatus::default()
        };
        assert_eq!(
            describe(&status),
            SnpFirmware {
                version: "1.55.8".into(),
                initialised: true,
                rmp_initialised: true,
                guests: 3,
                reported_tcb: "540000000000000a".into(),
            }
        );
    }
}
