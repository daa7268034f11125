//! Processor models of AMD, by the CPUID signature that a vCPU finds in RDX at reset.
//!
//! Source: CPUID leaf 1, EAX (AMD APM volume 3, appendix E.3.2); names as QEMU has them. The signature is
//! part of each measured VMSA, so the model changes the launch digest.

use std::fmt;
use std::str::FromStr;

/// CPUID leaf 1, EAX: family, model and stepping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CpuSignature(pub u32);

/// Names and signatures. Revisions of a model (`-v2`) have the model's signature.
const MODELS: [(&str, u8, u8, u8); 5] = [
    ("EPYC", 23, 1, 2),
    ("EPYC-Rome", 23, 49, 0),
    ("EPYC-Milan", 25, 1, 1),
    ("EPYC-Genoa", 25, 17, 0),
    ("EPYC-Turin", 26, 0, 0),
];

/// A processor that is not known or not written as expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}: give one of EPYC, EPYC-Rome, EPYC-Milan, EPYC-Genoa, EPYC-Turin, family/model/stepping (25/1/1) or a signature (0xa00f11)"
)]
pub struct UnknownCpu(String);

impl CpuSignature {
    /// From family, model and stepping as people write them: those of 16 and more go into the extended
    /// fields.
    #[must_use]
    pub const fn new(family: u8, model: u8, stepping: u8) -> Self {
        let (base, extended) = if family > 15 { (15, family - 15) } else { (family, 0) };
        Self(
            (extended as u32) << 20
                | ((model >> 4) as u32) << 16
                | (base as u32) << 8
                | ((model & 15) as u32) << 4
                | (stepping & 15) as u32,
        )
    }

    /// Family, model and stepping.
    #[must_use]
    pub const fn parts(self) -> (u32, u32, u32) {
        let base = self.0 >> 8 & 15;
        let family = if base == 15 { base + (self.0 >> 20 & 0xff) } else { base };
        (family, (self.0 >> 16 & 15) << 4 | self.0 >> 4 & 15, self.0 & 15)
    }
}

impl fmt::Display for CpuSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (family, model, stepping) = self.parts();
        write!(f, "{:#x} (family {family}, model {model}, stepping {stepping})", self.0)
    }
}

impl FromStr for CpuSignature {
    type Err = UnknownCpu;

    fn from_str(text: &str) -> Result<Self, UnknownCpu> {
        let unknown = || UnknownCpu(text.to_owned());
        if let Some(digits) = text.strip_prefix("0x") {
            return u32::from_str_radix(digits, 16).map(Self).map_err(|_| unknown());
        }
        if text.contains('/') {
            let parts: Vec<u8> =
                text.split('/').map(str::parse).collect::<Result<_, _>>().map_err(|_| unknown())?;
            return match parts[..] {
                [family, model, stepping] if stepping < 16 => Ok(Self::new(family, model, stepping)),
                _ => Err(unknown()),
            };
        }
        let name =
            text.rsplit_once("-v").filter(|(_, v)| v.parse::<u8>().is_ok()).map_or(text, |(name, _)| name);
        MODELS
            .iter()
            .find(|(model, ..)| model.eq_ignore_ascii_case(name))
            .map(|&(_, family, model, stepping)| Self::new(family, model, stepping))
            .ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_their_known_signatures() {
        for (text, signature) in [
            ("EPYC-v4", 0x800F12),
            ("EPYC-Rome", 0x830F10),
            ("epyc-milan-v2", 0xA00F11),
            ("EPYC-Genoa", 0xA10F10),
            ("EPYC-Turin", 0xB00F00),
            ("25/1/1", 0xA00F11),
            ("0xa00f11", 0xA00F11),
            ("6/15/1", 0x6F1),
        ] {
            assert_eq!(text.parse(), Ok(CpuSignature(signature)), "{text}");
        }
        assert_eq!(CpuSignature(0xA10F10).parts(), (25, 17, 0));
    }

    #[test]
    fn others_are_refused_with_what_can_be_given() {
        for text in ["EPYC-Venice", "25/1", "25/1/16", "25/1/1/1", "0xzz", "", "300/1/1"] {
            let error = text.parse::<CpuSignature>().unwrap_err().to_string();
            assert!(error.contains("EPYC-Milan"), "{error}");
        }
    }
}
