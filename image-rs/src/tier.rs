//! Which tier an image demands, and whether the running one is strong enough. Pure.
//!
//! Source: `docs/design.md`. The annotation `dev.kata-cc.required-tier` of the manifest names `confidential`, `snp` or `tdx`; an
//! encrypted layer demands `confidential` by itself. A simulated TEE protects nothing: it counts as `confidential` only
//! where the (measured) init-data allows it, and never as `snp`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Manifest annotation that names the tier.
pub const REQUIRED_TIER: &str = "dev.kata-cc.required-tier";

/// What an image can demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequiredTier {
    /// Any confidential guest.
    Confidential,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

/// Where the image is about to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunningTier {
    /// No confidential guest: a plain microVM, or the host itself.
    None,
    /// A simulated TEE.
    Simulated {
        /// Its name, e.g. `sim-snp`.
        tee: &'static str,
        /// Whether the init-data says `allow_simulated_tee = true`.
        allowed: bool,
    },
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

/// Why the tier check refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TierError {
    /// The annotation's value has no meaning.
    #[error("annotation dev.kata-cc.required-tier says {0:?}; known are confidential, snp, tdx")]
    Unknown(String),
    /// The running tier is weaker than demanded, or another one.
    #[error(
        "the image demands tier {required}, this guest is {actual}; run it under a runtime class of tier {required}"
    )]
    TooWeak {
        /// What the image demands.
        required: RequiredTier,
        /// Where it was about to run.
        actual: RunningTier,
    },
}

impl fmt::Display for RequiredTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Confidential => "confidential",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
        })
    }
}

impl fmt::Display for RunningTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Simulated { tee, allowed: true } => {
                return write!(f, "{tee} (allowed by init-data as confidential)");
            }
            Self::Simulated { tee, allowed: false } => {
                return write!(f, "{tee} (not allowed by init-data)");
            }
            Self::None => "not confidential",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
        })
    }
}

impl FromStr for RequiredTier {
    type Err = TierError;

    fn from_str(text: &str) -> Result<Self, TierError> {
        match text {
            "confidential" => Ok(Self::Confidential),
            "snp" => Ok(Self::Snp),
            "tdx" => Ok(Self::Tdx),
            _ => Err(TierError::Unknown(text.chars().take(64).collect())),
        }
    }
}

/// The tier an image demands, from its annotation and whether any layer is encrypted.
///
/// # Errors
/// When the annotation's value is unknown: a demand that is not understood is not met.
pub fn required_tier(annotation: Option<&str>, encrypted: bool) -> Result<Option<RequiredTier>, TierError> {
    match annotation {
        Some(text) => text.parse().map(Some),
        None if encrypted => Ok(Some(RequiredTier::Confidential)),
        None => Ok(None),
    }
}

/// Whether `actual` meets `required`.
///
/// # Errors
/// [`TierError::TooWeak`] when it does not.
pub fn check_tier(required: Option<RequiredTier>, actual: RunningTier) -> Result<(), TierError> {
    let Some(required) = required else {
        return Ok(());
    };
    let met = match (required, actual) {
        (_, RunningTier::None | RunningTier::Simulated { allowed: false, .. }) => false,
        (RequiredTier::Confidential, _) => true,
        (RequiredTier::Snp, actual) => actual == RunningTier::Snp,
        (RequiredTier::Tdx, actual) => actual == RunningTier::Tdx,
    };
    if met { Ok(()) } else { Err(TierError::TooWeak { required, actual }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIM: RunningTier = RunningTier::Simulated { tee: "sim-snp", allowed: true };
    const SIM_NOT: RunningTier = RunningTier::Simulated { tee: "sim-snp", allowed: false };
    const ACTUAL: [RunningTier; 5] = [RunningTier::None, SIM_NOT, SIM, RunningTier::Snp, RunningTier::Tdx];

    #[test]
    fn every_pair_of_demand_and_tier() {
        let table = [
            (None, [true, true, true, true, true]),
            (Some(RequiredTier::Confidential), [false, false, true, true, true]),
            (Some(RequiredTier::Snp), [false, false, false, true, false]),
            (Some(RequiredTier::Tdx), [false, false, false, false, true]),
        ];
        for (required, row) in table {
            for (actual, met) in ACTUAL.into_iter().zip(row) {
                let result = check_tier(required, actual);
                assert_eq!(result.is_ok(), met, "{required:?} on {actual:?}");
                if let Err(error) = result {
                    assert!(matches!(error, TierError::TooWeak { .. }));
                }
            }
        }
    }

    #[test]
    fn every_source_of_a_demand() {
        assert_eq!(required_tier(None, false), Ok(None));
        assert_eq!(required_tier(None, true), Ok(Some(RequiredTier::Confidential)));
        for (text, tier) in [
            ("confidential", RequiredTier::Confidential),
            ("snp", RequiredTier::Snp),
            ("tdx", RequiredTier::Tdx),
        ] {
            for encrypted in [false, true] {
                assert_eq!(required_tier(Some(text), encrypted), Ok(Some(tier)));
            }
        }
        for text in ["", "SNP", "none", "sim-snp"] {
            assert_eq!(required_tier(Some(text), false), Err(TierError::Unknown(text.to_owned())));
        }
    }
}
