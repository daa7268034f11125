//! Which tier protects a sandbox: one pure function, [`select`], and its exhaustive test.
//!
//! The rule that everything rests on: what asks for confidentiality gets it or fails. A class that names a tier
//! fails where the tier is missing; only `kata-cc-auto` may choose, and never below what the pod demands.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The runtime class, told by the handler's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Confidential, or not at all.
    KataCc,
    /// A plain KVM microVM, or not at all.
    KataCcVm,
    /// The user-space kernel, or not at all.
    KataCcSentry,
    /// The best of the node's order.
    KataCcAuto,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::KataCc, Self::KataCcVm, Self::KataCcSentry, Self::KataCcAuto];

    /// Name of the class, as in `runtimeClassName`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KataCc => "kata-cc",
            Self::KataCcVm => "kata-cc-vm",
            Self::KataCcSentry => "kata-cc-sentry",
            Self::KataCcAuto => "kata-cc-auto",
        }
    }

    /// From a program's name (`containerd-shim-kata-cc-vm-v2`) or a runtime type (`io.containerd.kata-cc-vm.v2`).
    #[must_use]
    pub fn from_program(name: &str) -> Option<Self> {
        let name = name.rsplit('/').next().unwrap_or(name);
        let inner = name
            .strip_prefix("containerd-shim-")
            .and_then(|rest| rest.strip_suffix("-v2"))
            .or_else(|| name.strip_prefix("io.containerd.").and_then(|rest| rest.strip_suffix(".v2")))
            .unwrap_or(name);
        Self::ALL.into_iter().find(|class| class.name() == inner)
    }
}

/// What protects a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// The simulated SEV-SNP: the same path under a throw-away root; it protects nothing.
    SimSnp,
    /// The simulated TDX: likewise.
    SimTdx,
    /// A plain KVM microVM.
    Vm,
    /// The user-space kernel.
    Sentry,
}

impl Tier {
    /// All of them, the strongest first.
    pub const ALL: [Self; 6] = [Self::Snp, Self::Tdx, Self::SimSnp, Self::SimTdx, Self::Vm, Self::Sentry];

    /// Name in logs, records and on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Snp => "snp",
            Self::Tdx => "tdx",
            Self::SimSnp => "sim-snp",
            Self::SimTdx => "sim-tdx",
            Self::Vm => "vm",
            Self::Sentry => "sentry",
        }
    }

    /// Whether the confidential path is taken: the guest trusts nothing of the host.
    #[must_use]
    pub fn is_confidential(self) -> bool {
        matches!(self, Self::Snp | Self::Tdx | Self::SimSnp | Self::SimTdx)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a tier can run on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// It can.
    Available,
    /// It cannot, and why.
    Missing(String),
}

impl Availability {
    fn reason(&self) -> Option<&str> {
        match self {
            Self::Available => None,
            Self::Missing(reason) => Some(reason),
        }
    }
}

/// What this node can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeAbility {
    /// A KVM that runs an unmodified kernel.
    pub kvm: Availability,
    /// SEV-SNP.
    pub snp: Availability,
    /// TDX.
    pub tdx: Availability,
    /// The simulated SEV-SNP; available only where the node's configuration names it.
    pub sim_snp: Availability,
    /// The simulated TDX; likewise.
    pub sim_tdx: Availability,
    /// The user-space kernel.
    pub sentry: Availability,
}

impl NodeAbility {
    fn of(&self, tier: Tier) -> Result<(), String> {
        let own = match tier {
            Tier::Snp => &self.snp,
            Tier::Tdx => &self.tdx,
            Tier::SimSnp => &self.sim_snp,
            Tier::SimTdx => &self.sim_tdx,
            Tier::Vm => &Availability::Available,
            Tier::Sentry => &self.sentry,
        };
        let machine = if tier == Tier::Sentry { &Availability::Available } else { &self.kvm };
        match own.reason().or(machine.reason()) {
            None => Ok(()),
            Some(reason) => Err(format!("{tier}: {reason}")),
        }
    }
}

/// What the pod itself asks for, whatever its class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Demand {
    /// It carries init-data.
    pub init_data: bool,
    /// It carries a sealed secret.
    pub sealed_secret: bool,
    /// Its image is encrypted.
    pub encrypted_image: bool,
}

impl Demand {
    /// What makes the pod confidential, in words.
    #[must_use]
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self { init_data: true, .. } => Some("the pod carries init-data"),
            Self { sealed_secret: true, .. } => Some("the pod carries a sealed secret"),
            Self { encrypted_image: true, .. } => Some("the image is encrypted"),
            _ => None,
        }
    }
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Selection {
    /// The tier.
    pub tier: Tier,
    /// Why this one.
    pub why: String,
}

/// No tier may be used.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[error("{reason}; {advice}")]
pub struct Refusal {
    /// What is wanted and what is missing.
    pub reason: String,
    /// What to do.
    pub advice: String,
}

/// Decide the tier. `order` is the node's order for `kata-cc-auto`.
///
/// # Errors
/// When the class's tier is missing, or is weaker than what the pod demands.
pub fn select(
    class: Class,
    node: &NodeAbility,
    demand: Demand,
    order: &[Tier],
) -> Result<Selection, Refusal> {
    let demanded = demand.reason();
    let candidates: Vec<Tier> = match class {
        Class::KataCc => vec![Tier::Snp, Tier::Tdx, Tier::SimSnp, Tier::SimTdx],
        Class::KataCcVm => vec![Tier::Vm],
        Class::KataCcSentry => vec![Tier::Sentry],
        Class::KataCcAuto => order.to_vec(),
    };
    if let Some(demanded) = demanded
        && !candidates.iter().any(|tier| tier.is_confidential())
    {
        return Err(Refusal {
            reason: format!("{demanded}, so it must be confidential, but class {} is not", class.name()),
            advice: "use runtime class kata-cc".into(),
        });
    }
    let mut missing = Vec::new();
    for tier in candidates {
        if demanded.is_some() && !tier.is_confidential() {
            missing.push(format!("{tier}: {} demands a confidential tier", demanded.unwrap_or_default()));
            continue;
        }
        match node.of(tier) {
            Ok(()) => {
                let passed =
                    if missing.is_empty() { String::new() } else { format!(" ({})", missing.join("; ")) };
                return Ok(Selection { tier, why: format!("class {} takes {tier}{passed}", class.name()) });
            }
            Err(reason) => missing.push(reason),
        }
    }
    Err(Refusal {
        reason: format!("class {} cannot run on this node: {}", class.name(), missing.join("; ")),
        advice: "`kata-cc doctor` says what to change; to try it without the hardware, set `[tee] simulated = \"sim-snp\"` \
                 in the node's configuration"
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ability(bits: u8) -> NodeAbility {
        let at = |bit: u8| {
            if bits & 1 << bit == 0 {
                Availability::Missing(format!("no {bit}"))
            } else {
                Availability::Available
            }
        };
        NodeAbility { kvm: at(0), snp: at(1), tdx: at(2), sim_snp: at(3), sim_tdx: at(4), sentry: at(5) }
    }

    fn demand(bits: u8) -> Demand {
        Demand { init_data: bits & 1 != 0, sealed_secret: bits & 2 != 0, encrypted_image: bits & 4 != 0 }
    }

    /// Orders that a configuration can name: all sequences of up to four tiers without repetition.
    fn orders() -> Vec<Vec<Tier>> {
        let mut orders = vec![Vec::new()];
        let mut last = orders.clone();
        for _ in 0..4 {
            let longer: Vec<Vec<Tier>> = last
                .iter()
                .flat_map(|order| {
                    let rest = Tier::ALL.into_iter().filter(move |tier| !order.contains(tier));
                    rest.map(move |tier| [order.as_slice(), &[tier]].concat())
                })
                .collect();
            orders.extend(longer.clone());
            last = longer;
        }
        orders
    }

    #[test]
    fn no_combination_downgrades() {
        let orders = orders();
        let mut seen = 0;
        for class in Class::ALL {
            for node in (0..64).map(ability) {
                for demand in (0..8).map(demand) {
                    for order in &orders {
                        seen += 1;
                        check(class, &node, demand, order);
                    }
                }
            }
        }
        assert_eq!(seen, 4 * 64 * 8 * (1 + 6 + 30 + 120 + 360));
    }

    fn check(class: Class, node: &NodeAbility, demand: Demand, order: &[Tier]) {
        let selected = select(class, node, demand, order);
        let must = class == Class::KataCc || demand.reason().is_some();
        let allowed = |tier: Tier| {
            node.of(tier).is_ok()
                && (!must || tier.is_confidential())
                && match class {
                    Class::KataCc => tier.is_confidential(),
                    Class::KataCcVm => tier == Tier::Vm,
                    Class::KataCcSentry => tier == Tier::Sentry,
                    Class::KataCcAuto => order.contains(&tier),
                }
        };
        match selected {
            Ok(selection) => {
                assert!(
                    allowed(selection.tier),
                    "{class:?} {node:?} {demand:?} {order:?} gave {selection:?}"
                );
                // never a weaker tier than an earlier candidate that was possible
                let candidates: &[Tier] = if class == Class::KataCc {
                    &[Tier::Snp, Tier::Tdx, Tier::SimSnp, Tier::SimTdx]
                } else {
                    order
                };
                if matches!(class, Class::KataCc | Class::KataCcAuto) {
                    let first = candidates.iter().copied().find(|tier| allowed(*tier));
                    assert_eq!(first, Some(selection.tier));
                }
            }
            Err(refusal) => {
                assert!(
                    !Tier::ALL.into_iter().any(allowed),
                    "{class:?} {node:?} {demand:?} {order:?} was refused"
                );
                assert!(!refusal.reason.is_empty() && !refusal.advice.is_empty());
            }
        }
    }

    #[test]
    fn classes_are_told_by_the_programs_name() {
        assert_eq!(Class::from_program("/usr/bin/containerd-shim-kata-cc-v2"), Some(Class::KataCc));
        assert_eq!(Class::from_program("containerd-shim-kata-cc-vm-v2"), Some(Class::KataCcVm));
        assert_eq!(Class::from_program("io.containerd.kata-cc-auto.v2"), Some(Class::KataCcAuto));
        assert_eq!(Class::from_program("containerd-shim-runc-v2"), None);
    }
}
