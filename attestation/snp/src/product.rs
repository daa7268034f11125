//! Processor lines and how they are told apart.

use crate::certs::{Certificate, VekExtensions};
use crate::report::Report;

/// Processor lines that have a root of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Product {
    /// Third generation EPYC.
    Milan,
    /// Fourth generation EPYC: Genoa, Bergamo, Siena.
    Genoa,
    /// Fifth generation EPYC.
    Turin,
}

impl Product {
    /// All products known.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// From a processor's family and model (AMD 57230, CPUID to product).
    #[must_use]
    pub const fn from_cpuid(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0F) => Some(Self::Milan),
            (0x19, 0x10..=0x1F | 0xA0..=0xAF) => Some(Self::Genoa),
            (0x1A, 0x00..=0x1F) => Some(Self::Turin),
            _ => None,
        }
    }

    /// From the name in an endorsement key's certificate (`Milan-B0`, `Genoa`).
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let line = name.split('-').next().unwrap_or(name);
        Self::ALL.into_iter().find(|product| product.name() == line)
    }

    /// The product of a report: from its processor identification, in version 2 (which has none)
    /// from the endorsement key's certificate.
    #[must_use]
    pub fn of(report: &Report, vek: Option<&Certificate>) -> Option<Self> {
        match report.cpuid {
            Some(cpu) => Self::from_cpuid(cpu.family, cpu.model),
            None => Self::from_name(&VekExtensions::of(vek?).ok()?.product_name),
        }
    }

    /// Name as AMD's services write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }
}
