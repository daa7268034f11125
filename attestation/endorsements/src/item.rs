//! What can be asked for, and where it lies in a folder.
//!
//! One layout for the offline folder, the cache and the OCI artifact (`docs/endorsements.md`). Certificates of chips
//! stand where Trustee's offline store has them.

use std::fmt;

use kata_cc_snp::Tcb;
use kata_cc_snp::verify::{Product, VekKind};
pub use kata_cc_tdx::PckCa;
use serde::{Deserialize, Serialize};

/// Which of Intel's TEEs collateral is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntelTee {
    /// TDX.
    Tdx,
    /// SGX.
    Sgx,
}

impl IntelTee {
    /// Name in addresses and file names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tdx => "tdx",
            Self::Sgx => "sgx",
        }
    }
}

/// One document.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// Certificate of a chip's key at a TCB.
    Vcek {
        /// Processor line.
        product: Product,
        /// Chip id as the KDS takes it: 64 bytes, from Turin on 8.
        chip_id: Vec<u8>,
        /// Versions the key is derived for.
        tcb: Tcb,
    },
    /// Certificate of a provider's key at a TCB. The KDS does not hand these out, a folder may have one.
    Vlek {
        /// Processor line.
        product: Product,
        /// Versions the key is derived for.
        tcb: Tcb,
    },
    /// Intermediate and root, PEM.
    SnpChain {
        /// Whose intermediate.
        kind: VekKind,
        /// Processor line.
        product: Product,
    },
    /// Revocation list, DER.
    SnpCrl {
        /// Whose intermediate.
        kind: VekKind,
        /// Processor line.
        product: Product,
    },
    /// TCB info, JSON with issuer chain.
    TcbInfo {
        /// For which TEE.
        tee: IntelTee,
        /// Platform.
        fmspc: [u8; 6],
    },
    /// Identity of the quoting enclave, JSON with issuer chain.
    QeIdentity {
        /// For which TEE.
        tee: IntelTee,
    },
    /// Revocation list of PCK certificates, DER with issuer chain.
    PckCrl {
        /// Which issuer's.
        ca: PckCa,
    },
    /// Revocation list of Intel's root, DER.
    RootCrl,
}

impl Item {
    /// Path below a folder, without `..` and always with `/`.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::Vcek { chip_id, tcb, .. } => {
                format!("vcek/{}/{}_vcek.der", hex::encode(chip_id), tcb_name(tcb))
            }
            Self::Vlek { product, tcb } => format!("vlek/{}/{}_vlek.der", product.name(), tcb_name(tcb)),
            Self::SnpChain { kind, product } => format!("chain/{}-{}.pem", vek_name(*kind), product.name()),
            Self::SnpCrl { kind, product } => format!("crl/{}-{}.crl", vek_name(*kind), product.name()),
            Self::TcbInfo { tee, fmspc } => {
                format!("intel/{}-tcb-{}.json", tee.name(), hex::encode_upper(fmspc))
            }
            Self::QeIdentity { tee } => format!("intel/{}-qe-identity.json", tee.name()),
            Self::PckCrl { ca } => format!("intel/pck-crl-{}.json", ca.name()),
            Self::RootCrl => "intel/root-ca.crl".to_owned(),
        }
    }

    /// The item whose path it is.
    #[must_use]
    pub fn from_path(path: &str) -> Option<Self> {
        let (folder, name) = path.split_once('/')?;
        match folder {
            "vcek" => {
                let (chip, file) = name.split_once('/')?;
                let chip_id = hex::decode(chip).ok().filter(|id| matches!(id.len(), 8 | 64))?;
                let tcb = parse_tcb_name(file.strip_suffix("_vcek.der")?)?;
                // Which processor line a chip is of does not stand in the path; only Turin's ids are short.
                let product = if chip_id.len() == 8 { Product::Turin } else { Product::Milan };
                Some(Self::Vcek { product, chip_id, tcb })
            }
            "vlek" => {
                let (product, file) = name.split_once('/')?;
                let tcb = parse_tcb_name(file.strip_suffix("_vlek.der")?)?;
                Some(Self::Vlek { product: product_of(product)?, tcb })
            }
            "chain" | "crl" => {
                let (stem, chain) = match folder {
                    "chain" => (name.strip_suffix(".pem")?, true),
                    _ => (name.strip_suffix(".crl")?, false),
                };
                let (kind, product) = stem.split_once('-')?;
                let kind = match kind {
                    "vcek" => VekKind::Vcek,
                    "vlek" => VekKind::Vlek,
                    _ => return None,
                };
                let product = product_of(product)?;
                Some(if chain { Self::SnpChain { kind, product } } else { Self::SnpCrl { kind, product } })
            }
            "intel" => intel_from_name(name),
            _ => None,
        }
    }

    /// Whether the answer of Intel's service has an issuer chain in a header.
    #[must_use]
    pub const fn has_issuer_chain(&self) -> bool {
        matches!(self, Self::TcbInfo { .. } | Self::QeIdentity { .. } | Self::PckCrl { .. })
    }

    /// Whether it is AMD's.
    #[must_use]
    pub const fn is_amd(&self) -> bool {
        matches!(self, Self::Vcek { .. } | Self::Vlek { .. } | Self::SnpChain { .. } | Self::SnpCrl { .. })
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vcek { product, chip_id, tcb } => {
                let id = hex::encode(chip_id);
                let short = id.get(..16).unwrap_or(&id);
                write!(f, "VCEK of {} chip {short}… for ({tcb})", product.name())
            }
            Self::Vlek { product, tcb } => write!(f, "VLEK of {} for ({tcb})", product.name()),
            Self::SnpChain { kind, product } => write!(f, "{kind} chain of {}", product.name()),
            Self::SnpCrl { kind, product } => write!(f, "{kind} revocation list of {}", product.name()),
            Self::TcbInfo { tee, fmspc } => {
                write!(f, "{} TCB info of FMSPC {}", tee.name(), hex::encode_upper(fmspc))
            }
            Self::QeIdentity { tee } => write!(f, "{} QE identity", tee.name()),
            Self::PckCrl { ca } => write!(f, "PCK revocation list of the {} CA", ca.name()),
            Self::RootCrl => f.write_str("revocation list of Intel's root"),
        }
    }
}

/// Name of a kind in addresses and file names.
pub(crate) const fn vek_name(kind: VekKind) -> &'static str {
    match kind {
        VekKind::Vcek => "vcek",
        VekKind::Vlek => "vlek",
    }
}

fn product_of(name: &str) -> Option<Product> {
    Product::ALL.into_iter().find(|product| product.name() == name)
}

fn tcb_name(tcb: &Tcb) -> String {
    let fmc = tcb.fmc.map(|fmc| format!("_fmc{fmc:02}")).unwrap_or_default();
    format!("bl{:02}_tee{:02}_snp{:02}_ucode{:02}{fmc}", tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode)
}

fn parse_tcb_name(name: &str) -> Option<Tcb> {
    let mut tcb = Tcb::default();
    let mut parts = name.split('_');
    let mut part = |prefix: &str| parts.next()?.strip_prefix(prefix)?.parse::<u8>().ok();
    tcb.bootloader = part("bl")?;
    tcb.tee = part("tee")?;
    tcb.snp = part("snp")?;
    tcb.microcode = part("ucode")?;
    tcb.fmc = part("fmc");
    (tcb_name(&tcb) == name).then_some(tcb)
}

fn intel_from_name(name: &str) -> Option<Item> {
    if name == "root-ca.crl" {
        return Some(Item::RootCrl);
    }
    let stem = name.strip_suffix(".json")?;
    if let Some(ca) = stem.strip_prefix("pck-crl-") {
        let ca = [PckCa::Platform, PckCa::Processor].into_iter().find(|known| known.name() == ca)?;
        return Some(Item::PckCrl { ca });
    }
    let (tee, rest) = stem.split_once('-')?;
    let tee = [IntelTee::Tdx, IntelTee::Sgx].into_iter().find(|known| known.name() == tee)?;
    if rest == "qe-identity" {
        return Some(Item::QeIdentity { tee });
    }
    let fmspc = hex::decode(rest.strip_prefix("tcb-")?).ok()?.try_into().ok()?;
    Some(Item::TcbInfo { tee, fmspc })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_documented_and_read_back() {
        let tcb = Tcb { fmc: None, bootloader: 4, tee: 0, snp: 24, microcode: 219 };
        let turin = Tcb { fmc: Some(1), ..tcb };
        let (kind, product) = (VekKind::Vlek, Product::Genoa);
        for (item, path) in [
            (
                Item::Vcek { product: Product::Milan, chip_id: vec![0xAB; 64], tcb },
                format!("vcek/{}/bl04_tee00_snp24_ucode219_vcek.der", "ab".repeat(64)),
            ),
            (
                Item::Vcek { product: Product::Turin, chip_id: vec![1; 8], tcb: turin },
                "vcek/0101010101010101/bl04_tee00_snp24_ucode219_fmc01_vcek.der".to_owned(),
            ),
            (Item::Vlek { product, tcb }, "vlek/Genoa/bl04_tee00_snp24_ucode219_vlek.der".to_owned()),
            (Item::SnpChain { kind, product }, "chain/vlek-Genoa.pem".to_owned()),
            (Item::SnpCrl { kind, product }, "crl/vlek-Genoa.crl".to_owned()),
            (
                Item::TcbInfo { tee: IntelTee::Tdx, fmspc: [0xB0, 0xC0, 0x6F, 0, 0, 0] },
                "intel/tdx-tcb-B0C06F000000.json".to_owned(),
            ),
            (Item::QeIdentity { tee: IntelTee::Sgx }, "intel/sgx-qe-identity.json".to_owned()),
            (Item::PckCrl { ca: PckCa::Platform }, "intel/pck-crl-platform.json".to_owned()),
            (Item::RootCrl, "intel/root-ca.crl".to_owned()),
        ] {
            assert_eq!(item.path(), path);
            assert_eq!(Item::from_path(&path), Some(item));
        }
        for other in
            ["", "vcek/00/vcek.der", "vcek/../x_vcek.der", "chain/vcek-Rome.pem", "intel/tdx-tcb-00.json"]
        {
            assert_eq!(Item::from_path(other), None, "{other}");
        }
    }
}
