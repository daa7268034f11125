//! The launch itself.

use std::collections::HashSet;

use kata_cc_measurement::snp::SnpLaunch;
use kata_cc_measurement::{PageType, VmsaRegisters};
use kata_cc_snp::id_block::{IdAuth, IdBlock};
use kata_cc_snp::policy::GuestPolicy;
use kvm_bindings::{
    CpuId, kvm_sev_init, kvm_sev_snp_launch_finish, kvm_sev_snp_launch_start, kvm_sev_snp_launch_update,
};

use super::cpuid::{cpuid_page, first_difference};
use super::policy::check_policy;
use super::registers::kernel_registers;
use crate::tee::abi::{SEV_VMSA_FEATURES, SNP_POLICY_BITS, VM_TYPE_SNP};
use crate::tee::ioctls::{Page, TeeIoctls};
use crate::tee::memory::{MapError, MemoryBook};
use crate::tee::pages::{Batch, batches, until_all_are_in};
use crate::tee::{Tee, TeeError, TeeKind, check_vm_type, enable_conversions, prepare_memory};

/// Only version of the GHCB protocol that SNP takes.
const GHCB_VERSION: u16 = 2;
/// Security processor: "invalid parameter".
const INVALID_PARAM: u64 = 0x16;

/// What a launch has besides its pages.
#[derive(Clone, Debug)]
pub struct SnpConfig {
    /// GUEST_POLICY.
    pub policy: GuestPolicy,
    /// Whether a policy that lets the host debug the guest is accepted.
    pub allow_debug: bool,
    /// SEV_FEATURES, SNP-active included.
    pub features: u64,
    /// HOST_DATA: digest of the init-data.
    pub host_data: [u8; 32],
    /// What the guest's owner signed.
    pub id: Option<(IdBlock, IdAuth)>,
    /// Reports are signed by the cloud's key (VLEK) only.
    pub vcek_disabled: bool,
    /// Whether the guest is to get certificates with its reports.
    pub certificates: bool,
    /// Ranges (start, bytes) that start shared.
    pub shared: Vec<(u64, u64)>,
}

impl SnpConfig {
    /// The usual launch: SMT allowed, no debugging, no ID block.
    #[must_use]
    pub const fn new(host_data: [u8; 32]) -> Self {
        Self {
            policy: GuestPolicy::DEFAULT,
            allow_debug: false,
            features: kata_cc_measurement::vmsa::SEV_FEATURE_SNP_ACTIVE,
            host_data,
            id: None,
            vcek_disabled: false,
            certificates: false,
            shared: Vec::new(),
        }
    }
}

/// A guest under SEV-SNP.
#[derive(Debug)]
pub struct SnpTee<'a> {
    config: SnpConfig,
    launch: SnpLaunch<'a>,
    /// First state of every vCPU.
    registers: VmsaRegisters,
    /// CPUID by vCPU.
    cpuid: Vec<CpuId>,
    certificates: bool,
}

impl<'a> SnpTee<'a> {
    /// A launch of these pages, vCPUs starting in this state with these CPUID lists (one per vCPU).
    #[must_use]
    pub const fn new(
        config: SnpConfig,
        launch: SnpLaunch<'a>,
        registers: VmsaRegisters,
        cpuid: Vec<CpuId>,
    ) -> Self {
        Self { config, launch, registers, cpuid, certificates: false }
    }

    /// Whether the kernel asks for certificates; older kernels answer with an empty table.
    #[must_use]
    pub const fn serves_certificates(&self) -> bool {
        self.certificates
    }

    fn check_id_block(&self) -> Result<(), TeeError> {
        let Some((block, auth)) = &self.config.id else {
            return Ok(());
        };
        auth.verify(block)?;
        let predicted = self.launch.digest();
        if block.launch_digest != predicted {
            return Err(TeeError::IdBlockDigest {
                stated: hex::encode(block.launch_digest),
                predicted: hex::encode(predicted),
            });
        }
        if block.policy != self.config.policy {
            let policy = self.config.policy.0;
            return Err(TeeError::IdBlockPolicy { stated: block.policy.0, policy });
        }
        Ok(())
    }

    /// What the host offers of what is asked for.
    fn check_host(&self, io: &dyn TeeIoctls) -> Result<(), TeeError> {
        check_vm_type(
            io,
            VM_TYPE_SNP,
            "VMs of type SNP",
            "run Linux 6.11 or later with kvm_amd.sev_snp=1 on an EPYC with SNP enabled in its firmware",
        )?;
        let supported =
            io.sev_attribute(SEV_VMSA_FEATURES).map_err(TeeError::refused("KVM_X86_SEV_VMSA_FEATURES"))?;
        let asked = self.requested_features();
        if asked & !supported != 0 {
            return Err(TeeError::Unsupported { field: "SEV_FEATURES", asked, supported });
        }
        // kernels that do not tell find out at LAUNCH_START
        if let Ok(supported) = io.sev_attribute(SNP_POLICY_BITS)
            && self.config.policy.0 & !supported != 0
        {
            return Err(TeeError::Unsupported { field: "policy", asked: self.config.policy.0, supported });
        }
        Ok(())
    }

    /// KVM sets SNP-active itself and refuses it when asked.
    const fn requested_features(&self) -> u64 {
        self.config.features & !kata_cc_measurement::vmsa::SEV_FEATURE_SNP_ACTIVE
    }

    fn load_batch(&self, io: &dyn TeeIoctls, batch: &mut Batch) -> Result<(), TeeError> {
        if batch.page_type != PageType::Cpuid {
            return update(io, batch);
        }
        let page = self.cpuid.first().map_or_else(|| cpuid_page(&[]), |list| cpuid_page(list.as_slice()))?;
        batch.pages = vec![page];
        match update(io, batch) {
            Err(TeeError::Refused { refusal, .. }) if refusal.firmware == INVALID_PARAM => {
                // the firmware wrote the values that it would accept back
                let corrected = batch.pages.first().and_then(|now| first_difference(&page, now));
                tracing::warn!(?corrected, "the security processor corrected the CPUID page");
                update(io, batch).map_err(|error| match (error, corrected) {
                    (TeeError::Refused { refusal, .. }, Some((leaf, index)))
                        if refusal.firmware == INVALID_PARAM =>
                    {
                        TeeError::Cpuid { leaf, index }
                    }
                    (error, _) => error,
                })
            }
            other => other,
        }
    }
}

/// LAUNCH_UPDATE until all of a batch is in.
fn update(io: &dyn TeeIoctls, batch: &mut Batch) -> Result<(), TeeError> {
    until_all_are_in("KVM_SEV_SNP_LAUNCH_UPDATE", batch.gpa, batch.len, |done| {
        let left = batch.len - done;
        let mut call = kvm_sev_snp_launch_update {
            gfn_start: (batch.gpa + done) / 4096,
            len: left,
            type_: batch.page_type as u8,
            ..Default::default()
        };
        let start = usize::try_from(done / 4096).unwrap_or(usize::MAX);
        let source: &mut [Page] = batch.pages.get_mut(start..).unwrap_or_default();
        let answer = io.snp_launch_update(&mut call, source);
        (left.saturating_sub(call.len), answer)
    })
}

impl Tee for SnpTee<'_> {
    fn kind(&self) -> TeeKind {
        TeeKind::Snp
    }

    fn vcpus(&self) -> Option<u32> {
        Some(self.launch.vcpus())
    }

    fn predicted(&self) -> Option<[u8; 48]> {
        Some(self.launch.digest())
    }

    fn prepare(&mut self, io: &dyn TeeIoctls, book: &mut MemoryBook) -> Result<(), TeeError> {
        check_policy(self.config.policy, self.config.allow_debug)?;
        self.check_id_block()?;
        self.check_host(io)?;
        enable_conversions(io)?;
        let init = kvm_sev_init {
            vmsa_features: self.requested_features(),
            ghcb_version: GHCB_VERSION,
            ..Default::default()
        };
        io.sev_init2(&init).map_err(TeeError::refused("KVM_SEV_INIT2"))?;
        let start = kvm_sev_snp_launch_start { policy: self.config.policy.0, ..Default::default() };
        io.snp_launch_start(&start).map_err(TeeError::refused("KVM_SEV_SNP_LAUNCH_START"))?;
        if self.config.certificates {
            self.certificates = io.snp_enable_req_certs().is_ok();
        }
        prepare_memory(io, book, &self.config.shared)?;
        self.check_pages(book)
    }

    fn start_vcpu(&mut self, io: &dyn TeeIoctls, vcpu: u32) -> Result<(), TeeError> {
        let list = self.cpuid.get(vcpu as usize).or_else(|| self.cpuid.first());
        if let Some(list) = list {
            io.set_cpuid(vcpu, list).map_err(TeeError::refused("KVM_SET_CPUID2"))?;
        }
        // later the state is the guest's
        io.set_reset_state(vcpu).map_err(TeeError::refused("KVM_SET_MSRS, KVM_SET_LAPIC"))?;
        let mut sregs = io.sregs(vcpu).map_err(TeeError::refused("KVM_GET_SREGS"))?;
        let regs = kernel_registers(&self.registers, &mut sregs);
        io.set_registers(vcpu, &sregs, &regs).map_err(TeeError::refused("KVM_SET_SREGS, KVM_SET_REGS"))
    }

    fn load(&mut self, io: &dyn TeeIoctls) -> Result<(), TeeError> {
        for mut batch in batches(self.launch.sections()) {
            self.load_batch(io, &mut batch)?;
        }
        Ok(())
    }

    fn finish(&mut self, io: &dyn TeeIoctls) -> Result<Option<[u8; 48]>, TeeError> {
        let pages = self.config.id.as_ref().map(|(block, auth)| (block.to_bytes(), auth.to_bytes()));
        let author = self.config.id.as_ref().is_some_and(|(_, auth)| auth.author.is_some());
        let finish = kvm_sev_snp_launch_finish {
            id_block_en: pages.is_some().into(),
            auth_key_en: author.into(),
            vcek_disabled: self.config.vcek_disabled.into(),
            host_data: self.config.host_data,
            ..Default::default()
        };
        io.snp_launch_finish(&finish, pages.as_ref().map(|(block, auth)| (block, auth)))
            .map_err(TeeError::refused("KVM_SEV_SNP_LAUNCH_FINISH"))?;
        Ok(Some(self.launch.digest()))
    }
}

impl SnpTee<'_> {
    /// The pages lie in private RAM, and none is given twice.
    fn check_pages(&self, book: &MemoryBook) -> Result<(), TeeError> {
        let mut seen = HashSet::new();
        for section in self.launch.sections().iter().filter(|s| s.page_type != PageType::Vmsa) {
            let (gpa, size) = (section.gpa, section.len);
            if !book.private().iter().any(|range| range.start <= gpa && gpa + size <= range.end) {
                return Err(MapError::NotRam { gpa, size }.into());
            }
            for page in (gpa..gpa + size).step_by(4096) {
                if !seen.insert(page) {
                    return Err(MapError::Twice { gpa: page }.into());
                }
            }
        }
        Ok(())
    }
}
