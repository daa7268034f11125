//! The simulated security processor as a function: the guest's request in, the answer out.
//!
//! One exchange per vsock connection on port 1027 (`docs/design.md`). Request: the 96 bytes of
//! `struct snp_report_req` (64 report data, u32 VMPL, 28 zero). Answer: u32 status (0 ok, 0x16
//! invalid parameter), u32 report length, u32 certificate-table length, then both; little-endian.
//!
//! The guest is untrusted here: whatever it sends, it gets a report about its own launch or a
//! status. What is reported about the launch comes from the monitor alone ([`SimLaunch`]).

use std::sync::Arc;

use kata_cc_snp::GuestPolicy;

use crate::{ReportRequest, SimPlatform, fill_random};

/// Bytes of a request.
pub const REQUEST_LEN: usize = 96;

/// Bytes of an answer before report and certificates.
pub const RESPONSE_HEADER_LEN: usize = 12;

/// The request was answered.
pub const STATUS_OK: u32 = 0;

/// The request is out of form (firmware ABI, INVALID_PARAM).
pub const STATUS_INVALID_PARAM: u32 = 0x16;

/// The platform failed (firmware ABI, HWERROR_PLATFORM).
pub const STATUS_PLATFORM: u32 = 0x13;

/// What the monitor launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimLaunch {
    /// Launch digest.
    pub measurement: [u8; 48],
    /// Host data (digest of the init-data).
    pub host_data: [u8; 32],
    /// Guest policy.
    pub policy: u64,
    /// Instance id; drawn by [`SimLaunch::new`].
    pub report_id: [u8; 32],
}

impl SimLaunch {
    /// A launch under the usual policy, with an instance id of its own.
    ///
    /// # Errors
    /// When no random bytes can be had.
    pub fn new(measurement: [u8; 48], host_data: [u8; 32]) -> Result<Self, crate::SimError> {
        let mut report_id = [0; 32];
        fill_random(&mut report_id)?;
        Ok(Self { measurement, host_data, policy: GuestPolicy::DEFAULT.0, report_id })
    }
}

/// Answers one guest.
#[derive(Clone, Debug)]
pub struct SimService {
    platform: Arc<SimPlatform>,
    launch: SimLaunch,
    certificates: Arc<[u8]>,
}

impl SimService {
    /// A service for the guest that was launched so.
    #[must_use]
    pub fn new(platform: Arc<SimPlatform>, launch: SimLaunch) -> Self {
        let certificates = platform.certificate_table().into();
        Self { platform, launch, certificates }
    }

    /// The answer to a request of [`REQUEST_LEN`] bytes; anything else is refused by its status.
    #[must_use]
    pub fn respond(&self, request: &[u8]) -> Vec<u8> {
        let Some((report_data, vmpl)) = parse(request) else { return refusal(STATUS_INVALID_PARAM) };
        let asked = ReportRequest {
            report_data,
            vmpl,
            measurement: self.launch.measurement,
            host_data: self.launch.host_data,
            policy: self.launch.policy,
            report_id: self.launch.report_id,
            guest_svn: 0,
        };
        let Ok(report) = self.platform.report(&asked) else { return refusal(STATUS_PLATFORM) };
        answer(STATUS_OK, &report, &self.certificates)
    }
}

fn parse(request: &[u8]) -> Option<([u8; 64], u32)> {
    let (report_data, rest) = request.split_first_chunk::<64>()?;
    let (vmpl, reserved) = rest.split_first_chunk::<4>()?;
    let vmpl = u32::from_le_bytes(*vmpl);
    let well_formed = reserved.len() == 28 && reserved.iter().all(|byte| *byte == 0) && vmpl <= 3;
    well_formed.then_some((*report_data, vmpl))
}

/// An answer with its two parts.
pub(crate) fn answer(status: u32, first: &[u8], second: &[u8]) -> Vec<u8> {
    let mut out = status.to_le_bytes().to_vec();
    out.extend((first.len() as u32).to_le_bytes());
    out.extend((second.len() as u32).to_le_bytes());
    out.extend(first);
    out.extend(second);
    out
}

pub(crate) fn refusal(status: u32) -> Vec<u8> {
    answer(status, &[], &[])
}
