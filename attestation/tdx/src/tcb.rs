//! TCB info (version 3) and QE identity (version 2), as Intel's provisioning certification service signs them, and
//! which of their levels a platform has (PCS documentation, "TCB evaluation").

use serde::Deserialize;
use serde::de::Error as _;

/// Most bytes of either document.
pub const MAX_DOCUMENT: usize = 512 * 1024;

/// Most levels of a list, module identities, and advisories of a level.
const MAX_ENTRIES: usize = 256;

/// Status of a level, and of a platform as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub enum TcbStatus {
    /// Nothing is left to do.
    UpToDate,
    /// Software has to be hardened.
    #[serde(rename = "SWHardeningNeeded")]
    SwHardeningNeeded,
    /// The platform's configuration has to change.
    ConfigurationNeeded,
    /// Both of the former.
    #[serde(rename = "ConfigurationAndSWHardeningNeeded")]
    ConfigurationAndSwHardeningNeeded,
    /// There are updates that mend known weaknesses.
    OutOfDate,
    /// The same, and the configuration has to change.
    OutOfDateConfigurationNeeded,
    /// The guest was launched with an older module than now runs: it should be started again. Computed, never signed.
    #[serde(skip)]
    TdRelaunchAdvised,
    /// The same, and the configuration has to change. Computed, never signed.
    #[serde(skip)]
    TdRelaunchAdvisedConfigurationNeeded,
    /// Not to be trusted.
    Revoked,
}

impl TcbStatus {
    /// Name as Intel and Trustee write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UpToDate => "UpToDate",
            Self::SwHardeningNeeded => "SWHardeningNeeded",
            Self::ConfigurationNeeded => "ConfigurationNeeded",
            Self::ConfigurationAndSwHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            Self::OutOfDate => "OutOfDate",
            Self::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            Self::TdRelaunchAdvised => "TDRelaunchAdvised",
            Self::TdRelaunchAdvisedConfigurationNeeded => "TDRelaunchAdvisedConfigurationNeeded",
            Self::Revoked => "Revoked",
        }
    }

    /// True when there are updates that are not there.
    #[must_use]
    pub const fn is_out_of_date(self) -> bool {
        matches!(self, Self::OutOfDate | Self::OutOfDateConfigurationNeeded)
    }

    /// True when the configuration has to change.
    #[must_use]
    pub const fn needs_configuration(self) -> bool {
        matches!(
            self,
            Self::ConfigurationNeeded
                | Self::ConfigurationAndSwHardeningNeeded
                | Self::OutOfDateConfigurationNeeded
                | Self::TdRelaunchAdvisedConfigurationNeeded
        )
    }

    /// The status of a platform of this status when one of its parts (module, QE) has another.
    #[must_use]
    pub const fn converge(self, part: Self) -> Self {
        match (self, part) {
            (Self::Revoked, _) | (_, Self::Revoked) => Self::Revoked,
            (_, part) if !part.is_out_of_date() => self,
            (platform, _) if platform.needs_configuration() => Self::OutOfDateConfigurationNeeded,
            _ => Self::OutOfDate,
        }
    }
}

impl std::fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A time of the documents (RFC 3339), in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        time::OffsetDateTime::parse(&text, &time::format_description::well_known::Rfc3339)
            .ok()
            .and_then(|time| u64::try_from(time.unix_timestamp()).ok())
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("{text:.40} is no time (RFC 3339, since 1970)")))
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = i64::try_from(self.0)
            .ok()
            .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
            .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok());
        match text {
            Some(text) => f.write_str(&text),
            None => write!(f, "{} s after 1970", self.0),
        }
    }
}

/// Bytes in hex, of either case.
pub(crate) fn hex_bytes<'de, D, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error>
where
    D: serde::Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    let mut bytes = [0; N];
    hex::decode_to_slice(&text, &mut bytes)
        .map_err(|_| D::Error::custom(format!("{text:.40} is not {} hex digits", 2 * N)))?;
    Ok(bytes)
}

fn limited<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    let entries = Vec::deserialize(deserializer)?;
    match entries.len() {
        0..=MAX_ENTRIES => Ok(entries),
        seen => Err(D::Error::custom(format!("list of {seen} entries, at most {MAX_ENTRIES} are taken"))),
    }
}

/// Version of one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Component {
    /// The version.
    pub svn: u8,
}

/// Versions that a level demands.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LevelTcb {
    /// Of the components that the PCK certificate names.
    pub sgxtcbcomponents: [Component; 16],
    /// Of the provisioning certification enclave.
    pub pcesvn: u16,
    /// Of the components that the quote names.
    pub tdxtcbcomponents: [Component; 16],
}

/// A level of the platform.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcbLevel {
    /// What it demands.
    pub tcb: LevelTcb,
    /// When it came to be.
    pub tcb_date: Timestamp,
    /// What it means.
    pub tcb_status: TcbStatus,
    /// Intel's advisories that concern it.
    #[serde(rename = "advisoryIDs", default, deserialize_with = "limited")]
    pub advisory_ids: Vec<String>,
}

/// Version that a level of an enclave or module demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct IsvTcb {
    /// Security version.
    pub isvsvn: u16,
}

/// A level of an enclave or of a module.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IsvLevel {
    /// What it demands.
    pub tcb: IsvTcb,
    /// When it came to be.
    pub tcb_date: Timestamp,
    /// What it means.
    pub tcb_status: TcbStatus,
    /// Intel's advisories that concern it.
    #[serde(rename = "advisoryIDs", default, deserialize_with = "limited")]
    pub advisory_ids: Vec<String>,
}

/// The first level whose version is not above `svn`.
pub(crate) fn isv_level(levels: &[IsvLevel], svn: u16) -> Option<&IsvLevel> {
    levels.iter().find(|level| level.tcb.isvsvn <= svn)
}

/// Identity of the first TDX module, which has no versions.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TdxModule {
    /// `MRSIGNERSEAM`.
    #[serde(deserialize_with = "hex_bytes")]
    pub mrsigner: [u8; 48],
    /// `SEAMATTRIBUTES`.
    #[serde(deserialize_with = "hex_bytes")]
    pub attributes: [u8; 8],
    /// Which bits of them are compared.
    #[serde(deserialize_with = "hex_bytes")]
    pub attributes_mask: [u8; 8],
}

/// Identity and levels of a major version of the TDX module.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TdxModuleIdentity {
    /// `TDX_01`, ...
    pub id: String,
    /// Whom it is signed by and what attributes it has.
    #[serde(flatten)]
    pub module: TdxModule,
    /// Newest first.
    #[serde(deserialize_with = "limited")]
    pub tcb_levels: Vec<IsvLevel>,
}

/// TCB info of one kind of platform.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcbInfo {
    /// `TDX`.
    pub id: String,
    /// 3.
    pub version: u32,
    /// When it was signed.
    pub issue_date: Timestamp,
    /// When the next is due.
    pub next_update: Timestamp,
    /// Kind of platform.
    #[serde(deserialize_with = "hex_bytes")]
    pub fmspc: [u8; 6],
    /// Provisioning certification enclave.
    #[serde(deserialize_with = "hex_bytes")]
    pub pce_id: [u8; 2],
    /// 0: component by component.
    pub tcb_type: u32,
    /// Number of the evaluation.
    pub tcb_evaluation_data_number: u32,
    /// The module without versions.
    pub tdx_module: TdxModule,
    /// Modules with versions.
    #[serde(default, deserialize_with = "limited")]
    pub tdx_module_identities: Vec<TdxModuleIdentity>,
    /// Newest first.
    #[serde(deserialize_with = "limited")]
    pub tcb_levels: Vec<TcbLevel>,
}

impl TcbInfo {
    /// The level of a platform: the first that demands no more than it has. Components 0 and 1 of the quote are the
    /// module's where that has versions of its own, and then not compared here.
    #[must_use]
    pub fn level(&self, components: &[u8; 16], pce_svn: u16, tee_tcb_svn: &[u8; 16]) -> Option<&TcbLevel> {
        let skipped = if module_version(tee_tcb_svn) > 0 { 2 } else { 0 };
        let has = |seen: &[u8; 16], demanded: &[Component; 16], skip| {
            seen.iter().zip(demanded).skip(skip).all(|(seen, demanded)| *seen >= demanded.svn)
        };
        self.tcb_levels.iter().find(|level| {
            has(components, &level.tcb.sgxtcbcomponents, 0)
                && pce_svn >= level.tcb.pcesvn
                && has(tee_tcb_svn, &level.tcb.tdxtcbcomponents, skipped)
        })
    }

    /// Identity of a major version of the module.
    #[must_use]
    pub fn module(&self, version: u8) -> Option<&TdxModuleIdentity> {
        let id = module_id(version);
        self.tdx_module_identities.iter().find(|identity| identity.id.eq_ignore_ascii_case(&id))
    }
}

/// Major version of the TDX module: 0 for the first, which has no versions.
pub(crate) const fn module_version(tee_tcb_svn: &[u8; 16]) -> u8 {
    tee_tcb_svn[1]
}

/// Name of a major version in the TCB info.
pub(crate) fn module_id(version: u8) -> String {
    format!("TDX_{version:02X}")
}

/// Identity of the quoting enclave.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QeIdentity {
    /// `TD_QE`.
    pub id: String,
    /// 2.
    pub version: u32,
    /// When it was signed.
    pub issue_date: Timestamp,
    /// When the next is due.
    pub next_update: Timestamp,
    /// Number of the evaluation.
    pub tcb_evaluation_data_number: u32,
    /// MISCSELECT. The bytes are those of memory.
    #[serde(deserialize_with = "hex_bytes")]
    pub miscselect: [u8; 4],
    /// Which bits of it are compared.
    #[serde(deserialize_with = "hex_bytes")]
    pub miscselect_mask: [u8; 4],
    /// ATTRIBUTES.
    #[serde(deserialize_with = "hex_bytes")]
    pub attributes: [u8; 16],
    /// Which bits of them are compared.
    #[serde(deserialize_with = "hex_bytes")]
    pub attributes_mask: [u8; 16],
    /// MRSIGNER.
    #[serde(deserialize_with = "hex_bytes")]
    pub mrsigner: [u8; 32],
    /// Product id.
    pub isvprodid: u16,
    /// Newest first.
    #[serde(deserialize_with = "limited")]
    pub tcb_levels: Vec<IsvLevel>,
}

/// Whether two byte strings agree in the bits of the mask.
pub(crate) fn agree<const N: usize>(seen: &[u8; N], expected: &[u8; N], mask: &[u8; N]) -> bool {
    seen.iter().zip(expected).zip(mask).all(|((seen, expected), mask)| seen & mask == expected & mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use TcbStatus::{
        ConfigurationAndSwHardeningNeeded, ConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded,
        Revoked, SwHardeningNeeded, UpToDate,
    };

    #[test]
    fn the_worse_part_decides() {
        let table = [
            (UpToDate, UpToDate, UpToDate),
            (SwHardeningNeeded, UpToDate, SwHardeningNeeded),
            (ConfigurationNeeded, UpToDate, ConfigurationNeeded),
            (OutOfDate, UpToDate, OutOfDate),
            (UpToDate, OutOfDate, OutOfDate),
            (SwHardeningNeeded, OutOfDate, OutOfDate),
            (ConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded),
            (ConfigurationAndSwHardeningNeeded, OutOfDate, OutOfDateConfigurationNeeded),
            (OutOfDate, OutOfDate, OutOfDate),
            (OutOfDateConfigurationNeeded, OutOfDate, OutOfDateConfigurationNeeded),
            (UpToDate, Revoked, Revoked),
            (Revoked, UpToDate, Revoked),
        ];
        for (platform, part, expected) in table {
            assert_eq!(platform.converge(part), expected, "{platform} and {part}");
        }
    }

    #[test]
    fn names_are_intels() {
        for name in ["UpToDate", "SWHardeningNeeded", "ConfigurationAndSWHardeningNeeded", "Revoked"] {
            let status: TcbStatus = serde_json::from_str(&format!("\"{name}\"")).unwrap();
            assert_eq!(status.to_string(), name);
        }
        assert!(serde_json::from_str::<TcbStatus>("\"TDRelaunchAdvised\"").is_err(), "never signed");
        assert!(serde_json::from_str::<TcbStatus>("\"Fine\"").is_err());
        assert_eq!(module_id(1), "TDX_01");
        let time: Timestamp = serde_json::from_str("\"2025-07-19T10:00:35Z\"").unwrap();
        assert_eq!((time.0, time.to_string().as_str()), (1_752_919_235, "2025-07-19T10:00:35Z"));
        assert!(serde_json::from_str::<Timestamp>("\"1969-01-01T00:00:00Z\"").is_err());
    }
}
