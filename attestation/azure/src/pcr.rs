//! PCR values of a vTPM's SHA-256 bank, and the rule by which one of them holds the init-data.

use aws_lc_rs::digest::{Context, SHA256};

/// PCRs of a TPM, all of which a quote has to cover.
pub const PCR_COUNT: usize = 24;

/// PCR that is extended once, from zeros, with the digest of the init-data (guest-components).
pub const INIT_DATA_PCR: usize = 8;

/// Values of all PCRs in the SHA-256 bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pcrs([[u8; 32]; PCR_COUNT]);

impl Pcrs {
    /// From values in their order.
    #[must_use]
    pub const fn new(values: [[u8; 32]; PCR_COUNT]) -> Self {
        Self(values)
    }

    /// From as many values as somebody sent; `None` unless there are 24.
    #[must_use]
    pub fn from_slice(values: &[[u8; 32]]) -> Option<Self> {
        values.try_into().ok().map(Self)
    }

    /// The values in their order.
    #[must_use]
    pub const fn values(&self) -> &[[u8; 32]; PCR_COUNT] {
        &self.0
    }

    /// What a quote over all of them holds: SHA-256 over the values in their order (TPM 2.0 part 3, `TPM2_Quote`).
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        sha256(self.0.as_flattened())
    }

    /// Where the init-data's digest is.
    #[must_use]
    pub const fn init_data(&self) -> &[u8; 32] {
        &self.0[INIT_DATA_PCR]
    }
}

/// Value of a PCR that was zero and was extended once: SHA-256 over 32 zero bytes and the digest.
#[must_use]
pub fn extended_once(digest: &[u8; 32]) -> [u8; 32] {
    let mut input = [0; 64];
    input[32..].copy_from_slice(digest);
    sha256(&input)
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pcr_is_extended_from_zeros() {
        // SHA-256 of 64 zero bytes.
        let expected = "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b";
        assert_eq!(hex::encode(extended_once(&[0; 32])), expected);
    }

    #[test]
    fn there_are_24_pcrs_or_none() {
        assert!(Pcrs::from_slice(&[[0; 32]; 23]).is_none());
        assert!(Pcrs::from_slice(&[[0; 32]; 25]).is_none());
        let mut values = [[0; 32]; 24];
        values[8] = [8; 32];
        assert_eq!(Pcrs::from_slice(&values).unwrap().init_data(), &[8; 32]);
    }
}
