//! Launches of OVMF images, as QEMU, EC2 and GCE make them: for the launch digests of guests that others
//! start, byte-exact with sev-snp-measure.
//!
//! Order (QEMU `hw/i386/pc_sysfw.c`, `target/i386/sev.c`): the image, the sections of its SEV metadata in
//! table order, one VMSA per vCPU.

use aws_lc_rs::digest::{SHA256, digest};

use crate::firmware::{Firmware, FirmwareError, SevSectionKind};
use crate::hashes::SevHashes;
use crate::snp::SnpLaunch;
use crate::vmsa::Segment;
use crate::{CpuSignature, DIGEST_LEN, PageType, VmsaRegisters};

/// Where QEMU and KVM start the boot vCPU.
const RESET_EIP: u32 = 0xFFFF_FFF0;
/// Signature that KVM puts into RDX when nobody sets CPUID before.
const SIGNATURE_UNSET: u64 = 0x600;
/// Most vCPUs of a launch, KVM's own limit.
const MAX_VCPUS: u32 = 1024;

/// Who launches: each fills in first states and pages in its own way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Monitor {
    /// QEMU on KVM.
    #[default]
    Qemu,
    /// Amazon EC2.
    Ec2,
    /// Google Compute Engine.
    Gce,
}

impl Monitor {
    /// First state of a vCPU that starts at `eip`.
    #[must_use]
    pub const fn registers(self, eip: u32, boot: bool, cpu: CpuSignature, features: u64) -> VmsaRegisters {
        let mut registers = VmsaRegisters::reset(eip, cpu.0, features);
        match self {
            Self::Qemu => return registers,
            Self::Ec2 => {
                if boot {
                    registers.cs.attributes = 0x9A;
                }
                registers.ss.attributes = 0x92;
                registers.tr = Segment { attributes: 0x83, ..registers.tr };
            }
            Self::Gce => registers.g_pat = 0x0007_0106,
        }
        registers.rdx = SIGNATURE_UNSET;
        registers.mxcsr = 0;
        registers.fcw = 0;
        registers
    }
}

/// A guest with OVMF.
#[derive(Clone, Copy, Debug)]
pub struct OvmfGuest<'a> {
    /// Firmware image.
    pub firmware: &'a Firmware<'a>,
    /// Digest of the image's pages, when only its end is at hand.
    pub image_digest: Option<[u8; DIGEST_LEN]>,
    /// Kernel, initramfs and command line, when they are given to the firmware by their hashes.
    pub hashes: Option<SevHashes>,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Processor that they are.
    pub cpu: CpuSignature,
    /// SEV_FEATURES.
    pub features: u64,
    /// Who launches.
    pub monitor: Monitor,
}

impl<'a> OvmfGuest<'a> {
    /// The SNP launch.
    ///
    /// # Errors
    /// When the image lacks what is asked for, or its metadata are broken.
    pub fn snp(&self) -> Result<SnpLaunch<'a>, FirmwareError> {
        let mut launch = match self.image_digest {
            Some(seed) => SnpLaunch::with_seed(seed),
            None => {
                let mut launch = SnpLaunch::new();
                launch.normal("firmware", self.firmware.gpa(), self.firmware.image())?;
                launch
            }
        };
        self.add_sections(&mut launch)?;
        for registers in self.vcpus()? {
            launch.vcpu(&registers);
        }
        Ok(launch)
    }

    fn add_sections(&self, launch: &mut SnpLaunch<'a>) -> Result<(), FirmwareError> {
        let sections = self.firmware.sev_sections()?;
        if self.hashes.is_some() && !sections.iter().any(|s| s.kind == SevSectionKind::KernelHashes) {
            return Err(FirmwareError::NoKernelHashes);
        }
        let memory = if self.monitor == Monitor::Gce { PageType::Unmeasured } else { PageType::Zero };
        // EC2 gives the CPUID page last
        let last = |kind| self.monitor == Monitor::Ec2 && kind == SevSectionKind::Cpuid;
        let (late, early): (Vec<_>, Vec<_>) = sections.into_iter().partition(|section| last(section.kind));
        for section in early.into_iter().chain(late) {
            let (name, page_type) = match section.kind {
                SevSectionKind::Memory => ("firmware memory", memory),
                SevSectionKind::SvsmCaa => ("svsm calling area", PageType::Zero),
                SevSectionKind::Secrets => ("secrets", PageType::Secrets),
                SevSectionKind::Cpuid => ("cpuid", PageType::Cpuid),
                SevSectionKind::KernelHashes => match &self.hashes {
                    Some(hashes) => {
                        let (gpa, size) = self.firmware.hash_block()?;
                        let page = hashes.to_page(gpa, size)?;
                        launch.normal("kernel hashes", section.gpa, page.to_vec())?;
                        continue;
                    }
                    None => ("no kernel hashes", PageType::Zero),
                },
            };
            launch.pages(name, page_type, section.gpa, section.size)?;
        }
        Ok(())
    }

    fn vcpus(&self) -> Result<Vec<VmsaRegisters>, FirmwareError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(FirmwareError::Vcpus(self.vcpus));
        }
        let others = if self.vcpus > 1 { self.firmware.ap_reset_eip()? } else { RESET_EIP };
        let registers = |eip, boot| self.monitor.registers(eip, boot, self.cpu, self.features);
        let boot = std::iter::once(registers(RESET_EIP, true));
        Ok(boot.chain((1..self.vcpus).map(|_| registers(others, false))).collect())
    }

    /// Launch digest of SEV, which has no measured vCPUs: SHA-256 over image and hashes table.
    #[must_use]
    pub fn sev_digest(&self) -> [u8; 32] {
        self.legacy_digest(&[])
    }

    /// Launch digest of SEV-ES: SHA-256 over image, hashes table and VMSAs.
    ///
    /// # Errors
    /// When the image does not say where the other vCPUs start.
    pub fn sev_es_digest(&self) -> Result<[u8; 32], FirmwareError> {
        let mut vcpus = self.vcpus()?;
        // SNP-active is no feature of an SEV-ES guest
        vcpus.iter_mut().for_each(|registers| registers.sev_features = 0);
        Ok(self.legacy_digest(&vcpus))
    }

    fn legacy_digest(&self, vcpus: &[VmsaRegisters]) -> [u8; 32] {
        let mut bytes = self.firmware.image().to_vec();
        bytes.extend(self.hashes.iter().flat_map(|hashes| hashes.to_table()));
        bytes.extend(vcpus.iter().flat_map(|registers| registers.to_page().to_vec()));
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, &bytes).as_ref());
        out
    }
}
