//! TDX run-time measurement registers: replay of an event log, and the values that a launch will have.
//!
//! Source: TDX module, TDG.MR.RTMR.EXTEND: `RTMR := SHA-384(RTMR || data)`, 48 bytes of data, zero at start.
//! Which register an event goes to stands in the log as a PCR-like index (UEFI 2.10, 38.4.1): 0 is MRTD,
//! 1 to 4 are RTMR0 to RTMR3.

use crate::{DIGEST_LEN, sha384};

/// Number of registers.
pub const RTMR_COUNT: usize = 4;
/// Type of events that are in the log and in no register (TCG PFP, EV_NO_ACTION).
const NO_ACTION: u32 = 3;

/// What cannot be extended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RtmrError {
    /// No such register.
    #[error("RTMR{0} does not exist: there are 0 to 3")]
    NoRegister(usize),
    /// An event for MRTD or beyond the registers.
    #[error("event log index {0} is none of the run-time registers (1 to 4)")]
    LogIndex(u32),
}

/// The four registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rtmrs([Register; RTMR_COUNT]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Register([u8; DIGEST_LEN]);

impl Default for Register {
    fn default() -> Self {
        Self([0; DIGEST_LEN])
    }
}

impl Rtmrs {
    /// All zero, as a TD starts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Extends a register by a digest.
    ///
    /// # Errors
    /// When there is no such register.
    pub fn extend(&mut self, register: usize, digest: &[u8; DIGEST_LEN]) -> Result<(), RtmrError> {
        let Register(value) = self.0.get_mut(register).ok_or(RtmrError::NoRegister(register))?;
        let mut input = [0; 2 * DIGEST_LEN];
        input[..DIGEST_LEN].copy_from_slice(value);
        input[DIGEST_LEN..].copy_from_slice(digest);
        *value = sha384(&input);
        Ok(())
    }

    /// Extends a register by the SHA-384 of some data.
    ///
    /// # Errors
    /// When there is no such register.
    pub fn extend_data(&mut self, register: usize, data: &[u8]) -> Result<(), RtmrError> {
        self.extend(register, &sha384(data))
    }

    /// Extends by an event of a log: its index, its type, its SHA-384 digest.
    ///
    /// # Errors
    /// When the index names no run-time register.
    pub fn replay(
        &mut self,
        index: u32,
        event_type: u32,
        digest: &[u8; DIGEST_LEN],
    ) -> Result<(), RtmrError> {
        if event_type == NO_ACTION {
            return Ok(());
        }
        match index {
            1..=4 => self.extend(index as usize - 1, digest),
            _ => Err(RtmrError::LogIndex(index)),
        }
    }

    /// Values, RTMR0 first.
    #[must_use]
    pub fn values(&self) -> [[u8; DIGEST_LEN]; RTMR_COUNT] {
        self.0.map(|Register(value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_registers_that_exist() {
        let mut registers = Rtmrs::new();
        assert_eq!(registers.extend(4, &[0; 48]), Err(RtmrError::NoRegister(4)));
        assert_eq!(registers.replay(0, 1, &[0; 48]), Err(RtmrError::LogIndex(0)));
        assert_eq!(registers.replay(5, 1, &[0; 48]), Err(RtmrError::LogIndex(5)));
        registers.replay(9, NO_ACTION, &[1; 48]).expect("in no register");
        assert_eq!(registers, Rtmrs::new());
    }
}
