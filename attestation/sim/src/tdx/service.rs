//! The simulated TDX module and quoting service as a function: the guest's request in, the answer out.
//!
//! One exchange per vsock connection on port 1027 (`docs/design.md`). Request: 96 bytes, 64 of data, u32 operation, 28 zero.
//! Answer: u32 status (as [`crate::service`]), u32 length, u32 length of the collateral, then both; little-endian.
//!
//! | operation | data | answer |
//! |---|---|---|
//! | 0 | report data | quote, and collateral in the evidence's form (JSON) |
//! | 1 | zeros | RTMR0 to RTMR3, 48 bytes each |
//! | 0x12, 0x13 | digest (48), zeros | RTMR2 or RTMR3 is extended by it; its new value |
//!
//! RTMR0 and RTMR1 are the firmware's, as Linux has it. The simulated firmware extends no register: they start as zeros,
//! and kernel, initramfs and command line stand in MRTD by their hashes alone.

use std::sync::{Arc, Mutex, PoisonError};

use super::{QuoteRequest, Quoter};
use crate::SimError;
use crate::service::{REQUEST_LEN, STATUS_INVALID_PARAM, STATUS_OK, STATUS_PLATFORM, answer, refusal};

/// A quote is asked for.
pub const QUOTE: u32 = 0;
/// The registers are asked for.
pub const READ_REGISTERS: u32 = 1;
/// RTMR0 is to be extended; the others follow.
pub const EXTEND: u32 = 0x10;

/// Registers that a guest extends itself.
const AT_RUN_TIME: std::ops::RangeInclusive<u32> = 2..=3;

/// Bytes of a register.
const REGISTER: usize = 48;

/// What the monitor launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TdxLaunch {
    /// MRTD.
    pub mr_td: [u8; REGISTER],
    /// MRCONFIGID (digest of the init-data, padded with zeros).
    pub mr_config_id: [u8; REGISTER],
}

/// Answers one guest.
#[derive(Debug)]
pub struct TdxService {
    quoter: Arc<Quoter>,
    launch: TdxLaunch,
    collateral: Vec<u8>,
    registers: Mutex<[[u8; REGISTER]; 4]>,
}

impl TdxService {
    /// A service for the guest that was launched so.
    #[must_use]
    pub fn new(quoter: Arc<Quoter>, launch: TdxLaunch) -> Self {
        let collateral = quoter.collateral().map(ToString::to_string).unwrap_or_default().into_bytes();
        Self { quoter, launch, collateral, registers: Mutex::new([[0; REGISTER]; 4]) }
    }

    /// The answer to a request of [`REQUEST_LEN`] bytes; anything else is refused by its status.
    #[must_use]
    pub fn respond(&self, request: &[u8]) -> Vec<u8> {
        let Some((data, operation)) = parse(request) else { return refusal(STATUS_INVALID_PARAM) };
        match operation {
            QUOTE => match self.quote(data) {
                Ok(quote) => answer(STATUS_OK, &quote, &self.collateral),
                Err(_) => refusal(STATUS_PLATFORM),
            },
            READ_REGISTERS if data == [0; 64] => answer(STATUS_OK, self.registers().as_flattened(), &[]),
            _ => match operation.checked_sub(EXTEND).filter(|index| AT_RUN_TIME.contains(index)) {
                Some(index) => self.extend(index as usize, &data),
                None => refusal(STATUS_INVALID_PARAM),
            },
        }
    }

    fn registers(&self) -> std::sync::MutexGuard<'_, [[u8; REGISTER]; 4]> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn quote(&self, report_data: [u8; 64]) -> Result<Vec<u8>, SimError> {
        let TdxLaunch { mr_td, mr_config_id } = self.launch;
        let rtmr = *self.registers();
        self.quoter.quote(&QuoteRequest { mr_td, mr_config_id, rtmr, report_data, ..Default::default() })
    }

    /// TDG.MR.RTMR.EXTEND: the register becomes SHA-384 of its value and the digest.
    fn extend(&self, index: usize, data: &[u8; 64]) -> Vec<u8> {
        let (digest, rest) = data.split_at(REGISTER);
        let mut registers = self.registers();
        let Some(register) = registers.get_mut(index).filter(|_| rest.iter().all(|byte| *byte == 0)) else {
            return refusal(STATUS_INVALID_PARAM);
        };
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA384);
        context.update(register);
        context.update(digest);
        register.copy_from_slice(context.finish().as_ref());
        answer(STATUS_OK, register, &[])
    }
}

fn parse(request: &[u8]) -> Option<([u8; 64], u32)> {
    let request: &[u8; REQUEST_LEN] = request.try_into().ok()?;
    let (data, rest) = request.split_first_chunk::<64>()?;
    let (operation, reserved) = rest.split_first_chunk::<4>()?;
    reserved.iter().all(|byte| *byte == 0).then(|| (*data, u32::from_le_bytes(*operation)))
}
