//! The attestation report: 1184 bytes, versions 2 to 5 (firmware ABI, ATTESTATION_REPORT).
//!
//! [`Report::parse`] reads untrusted bytes with a cursor and refuses other lengths and versions,
//! undefined signing keys, unknown processor families and, unless told otherwise, reserved bytes
//! that are not zero. Parsing says nothing about truth: that is [`crate::verify`]'s part.
//! [`Report::to_bytes`] is the inverse, used by the simulated platform and for evidence that came
//! as JSON. Nothing is lost between the two but non-zero reserved bytes.

use crate::policy::{GuestPolicy, KeyInfo, PlatformInfo, SigningKey};
use crate::tcb::{Tcb, TcbLayout};
use kata_cc_bytes::{Cursor, Truncated};

/// Oldest version of the structure that is read (firmware 1.51).
pub const OLDEST_VERSION: u32 = 2;

/// Newest version of the structure that is read (firmware 1.58).
pub const NEWEST_VERSION: u32 = 5;

/// Bytes of a report.
pub const REPORT_LEN: usize = 0x4A0;

/// Bytes at the start of a report that its signature covers.
pub const SIGNED_LEN: usize = 0x2A0;

/// ECDSA P-384 with SHA-384, the one signature algorithm defined.
pub const SIGNATURE_ALGO_ECDSA_P384: u32 = 1;

/// Bytes that are not an attestation report this version of the software understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// A report has exactly one length.
    #[error("report has {seen} bytes, expected {REPORT_LEN}")]
    Length {
        /// Bytes seen.
        seen: usize,
    },
    /// The structure's version is older than any that was ever current.
    #[error("report version is {seen}, known are {OLDEST_VERSION} to {NEWEST_VERSION}")]
    Version {
        /// Version seen.
        seen: u32,
    },
    /// The firmware writes a newer structure than this software knows: what its new fields mean is unknown.
    #[error("report version is {seen}, newer than the newest known, {NEWEST_VERSION}: update this verifier")]
    NewerVersion {
        /// Version seen.
        seen: u32,
    },
    /// The processor family has no known TCB layout.
    #[error("report names processor family {family:#x}, supported are 0x19 and later")]
    Family {
        /// Family seen.
        family: u8,
    },
    /// The signing key selector has an undefined value.
    #[error("report's signing key selector is {seen}, defined are 0 (VCEK), 1 (VLEK) and 7 (none)")]
    SigningKeySelector {
        /// Selector seen.
        seen: u8,
    },
    /// Reserved bytes carry data.
    #[error("reserved bytes of the report at {section} are not zero")]
    ReservedNotZero {
        /// Where.
        section: &'static str,
    },
    /// A version 3 or later report without processor identification (only in JSON forms).
    #[error("report version {version} needs the field {field}")]
    MissingField {
        /// Version of the report.
        version: u32,
        /// Which field.
        field: &'static str,
    },
}

impl From<Truncated> for ReportError {
    fn from(_: Truncated) -> Self {
        // Cannot happen: the length is checked first. Kept as a refusal rather than a panic.
        Self::Length { seen: 0 }
    }
}

/// What to do with reserved bytes that are not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// Refuse them.
    MustBeZero,
    /// Accept them (firmware newer than this software).
    Ignore,
}

/// Processor identification of version 3 and later (family and model combined with the extended ones).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CpuId {
    /// 0x19 Milan and Genoa, 0x1A Turin.
    pub family: u8,
    /// Model.
    pub model: u8,
    /// Stepping.
    pub stepping: u8,
}

/// Version of the SNP firmware.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct FirmwareVersion {
    /// Major.
    pub major: u8,
    /// Minor.
    pub minor: u8,
    /// Build.
    pub build: u8,
}

impl std::fmt::Display for FirmwareVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.build)
    }
}

/// A signature as the report stores it: both numbers little-endian, padded with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// R.
    pub r: [u8; 72],
    /// S.
    pub s: [u8; 72],
}

impl Signature {
    /// No signature yet.
    pub const ZERO: Self = Self { r: [0; 72], s: [0; 72] };

    /// From the 96 bytes big-endian `r || s` that cryptographic libraries make.
    #[must_use]
    pub fn from_fixed(fixed: &[u8; 96]) -> Self {
        let mut out = Self::ZERO;
        let (r, s) = fixed.split_at(48);
        for (to, from) in out.r.iter_mut().zip(r.iter().rev()) {
            *to = *from;
        }
        for (to, from) in out.s.iter_mut().zip(s.iter().rev()) {
            *to = *from;
        }
        out
    }

    /// The 96 bytes big-endian `r || s`; `None` when a number is longer than 384 bits.
    #[must_use]
    pub fn to_fixed(&self) -> Option<[u8; 96]> {
        let (r, r_pad) = self.r.split_at(48);
        let (s, s_pad) = self.s.split_at(48);
        if r_pad.iter().chain(s_pad).any(|byte| *byte != 0) {
            return None;
        }
        let mut out = [0; 96];
        for (to, from) in out.iter_mut().zip(r.iter().rev().chain(s.iter().rev())) {
            *to = *from;
        }
        Some(out)
    }
}

/// A parsed report. Field meanings: firmware ABI, table "ATTESTATION_REPORT".
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields carry the ABI's names")]
pub struct Report {
    pub version: u32,
    pub guest_svn: u32,
    pub policy: GuestPolicy,
    pub family_id: [u8; 16],
    pub image_id: [u8; 16],
    /// Privilege level the report was asked from; `u32::MAX` when the host asked.
    pub vmpl: u32,
    pub signature_algo: u32,
    pub current_tcb: Tcb,
    pub platform_info: PlatformInfo,
    pub key_info: KeyInfo,
    pub report_data: [u8; 64],
    pub measurement: [u8; 48],
    pub host_data: [u8; 32],
    pub id_key_digest: [u8; 48],
    pub author_key_digest: [u8; 48],
    pub report_id: [u8; 32],
    pub report_id_ma: [u8; 32],
    pub reported_tcb: Tcb,
    /// From version 3 on.
    pub cpuid: Option<CpuId>,
    pub chip_id: [u8; 64],
    pub committed_tcb: Tcb,
    pub current_version: FirmwareVersion,
    pub committed_version: FirmwareVersion,
    pub launch_tcb: Tcb,
    /// From version 5 on.
    pub launch_mit_vector: Option<u64>,
    /// From version 5 on.
    pub current_mit_vector: Option<u64>,
    pub signature: Signature,
}

impl Report {
    /// Reads a report and refuses reserved bytes that are not zero.
    ///
    /// # Errors
    /// [`ReportError`] says which rule the bytes break.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        Self::parse_with(bytes, Reserved::MustBeZero)
    }

    /// Reads a report.
    ///
    /// # Errors
    /// [`ReportError`] says which rule the bytes break.
    pub fn parse_with(bytes: &[u8], reserved: Reserved) -> Result<Self, ReportError> {
        if bytes.len() != REPORT_LEN {
            return Err(ReportError::Length { seen: bytes.len() });
        }
        let layout = layout_of(bytes)?;
        let mut cursor = Cursor::new(bytes);
        let c = &mut cursor;
        let mut checks = ReservedChecks { reserved, failed: None };
        let mut tcb_clean = true;

        let version = c.u32()?;
        let guest_svn = c.u32()?;
        let policy = GuestPolicy(c.u64()?);
        let family_id = c.array()?;
        let image_id = c.array()?;
        let vmpl = c.u32()?;
        let signature_algo = c.u32()?;
        let current_tcb = Tcb::read(c, layout, &mut tcb_clean)?;
        let platform_info = PlatformInfo(c.u64()?);
        let key_bits = c.u32()?;
        if key_bits & !KeyInfo::KNOWN_BITS != 0 {
            checks.fail("0x48");
        }
        let key_info = KeyInfo(key_bits & KeyInfo::KNOWN_BITS);
        checks.zero("0x4c", c.slice(4)?);
        let report_data = c.array()?;
        let measurement = c.array()?;
        let host_data = c.array()?;
        let id_key_digest = c.array()?;
        let author_key_digest = c.array()?;
        let report_id = c.array()?;
        let report_id_ma = c.array()?;
        let reported_tcb = Tcb::read(c, layout, &mut tcb_clean)?;
        let [family, model, stepping] = c.array()?;
        let cpuid = (version >= 3).then_some(CpuId { family, model, stepping });
        if cpuid.is_none() {
            checks.zero("0x188", &[family, model, stepping]);
        }
        checks.zero("0x18b", c.slice(21)?);
        let chip_id = c.array()?;
        let committed_tcb = Tcb::read(c, layout, &mut tcb_clean)?;
        let current_version = read_firmware_version(c)?;
        checks.zero("0x1eb", c.slice(1)?);
        let committed_version = read_firmware_version(c)?;
        checks.zero("0x1ef", c.slice(1)?);
        let launch_tcb = Tcb::read(c, layout, &mut tcb_clean)?;
        let (launch_mit, current_mit) = (c.u64()?, c.u64()?);
        let has_vectors = version >= 5;
        if !has_vectors && launch_mit | current_mit != 0 {
            checks.fail("0x1f8");
        }
        checks.zero("0x208", c.slice(152)?);
        let signature = Signature { r: c.array()?, s: c.array()? };
        checks.zero("0x330", c.slice(368)?);
        if !tcb_clean {
            checks.fail("a TCB version");
        }
        checks.finish()?;
        if let SigningKey::Reserved(seen) = key_info.signing_key() {
            return Err(ReportError::SigningKeySelector { seen });
        }
        Ok(Self {
            version,
            guest_svn,
            policy,
            family_id,
            image_id,
            vmpl,
            signature_algo,
            current_tcb,
            platform_info,
            key_info,
            report_data,
            measurement,
            host_data,
            id_key_digest,
            author_key_digest,
            report_id,
            report_id_ma,
            reported_tcb,
            cpuid,
            chip_id,
            committed_tcb,
            current_version,
            committed_version,
            launch_tcb,
            launch_mit_vector: has_vectors.then_some(launch_mit),
            current_mit_vector: has_vectors.then_some(current_mit),
            signature,
        })
    }

    /// The report's bytes, with zeros in every reserved place.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; REPORT_LEN] {
        let mut bytes = Vec::with_capacity(REPORT_LEN);
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.guest_svn.to_le_bytes());
        bytes.extend(self.policy.0.to_le_bytes());
        bytes.extend(self.family_id);
        bytes.extend(self.image_id);
        bytes.extend(self.vmpl.to_le_bytes());
        bytes.extend(self.signature_algo.to_le_bytes());
        bytes.extend(self.current_tcb.to_bytes());
        bytes.extend(self.platform_info.0.to_le_bytes());
        bytes.extend(self.key_info.0.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.report_data);
        bytes.extend(self.measurement);
        bytes.extend(self.host_data);
        bytes.extend(self.id_key_digest);
        bytes.extend(self.author_key_digest);
        bytes.extend(self.report_id);
        bytes.extend(self.report_id_ma);
        bytes.extend(self.reported_tcb.to_bytes());
        bytes.extend(self.cpuid.map_or([0; 3], |cpu| [cpu.family, cpu.model, cpu.stepping]));
        bytes.extend([0; 21]);
        bytes.extend(self.chip_id);
        bytes.extend(self.committed_tcb.to_bytes());
        for version in [self.current_version, self.committed_version] {
            bytes.extend([version.build, version.minor, version.major, 0]);
        }
        bytes.extend(self.launch_tcb.to_bytes());
        bytes.extend(self.launch_mit_vector.unwrap_or(0).to_le_bytes());
        bytes.extend(self.current_mit_vector.unwrap_or(0).to_le_bytes());
        bytes.extend([0; 152]);
        bytes.extend(self.signature.r);
        bytes.extend(self.signature.s);
        let mut out = [0; REPORT_LEN];
        // What follows the signature is reserved: zero.
        out[..bytes.len()].copy_from_slice(&bytes);
        out
    }
}

/// The TCB layout follows from the version and the processor family, which stand in the middle.
fn layout_of(bytes: &[u8]) -> Result<TcbLayout, ReportError> {
    let mut cursor = Cursor::new(bytes);
    let version = cursor.u32()?;
    match version {
        OLDEST_VERSION => Ok(TcbLayout::Family19),
        3..=NEWEST_VERSION => {
            cursor.slice(0x188 - 4)?;
            match cursor.u8()? {
                0x19 => Ok(TcbLayout::Family19),
                0x1A.. => Ok(TcbLayout::Family1A),
                family => Err(ReportError::Family { family }),
            }
        }
        seen if seen > NEWEST_VERSION => Err(ReportError::NewerVersion { seen }),
        seen => Err(ReportError::Version { seen }),
    }
}

fn read_firmware_version(cursor: &mut Cursor<'_>) -> Result<FirmwareVersion, Truncated> {
    let [build, minor, major] = cursor.array()?;
    Ok(FirmwareVersion { major, minor, build })
}

/// Remembers the first reserved place that carries data.
struct ReservedChecks {
    reserved: Reserved,
    failed: Option<&'static str>,
}

impl ReservedChecks {
    fn zero(&mut self, section: &'static str, bytes: &[u8]) {
        if bytes.iter().any(|byte| *byte != 0) {
            self.fail(section);
        }
    }

    fn fail(&mut self, section: &'static str) {
        if self.reserved == Reserved::MustBeZero && self.failed.is_none() {
            self.failed = Some(section);
        }
    }

    fn finish(self) -> Result<(), ReportError> {
        self.failed.map_or(Ok(()), |section| Err(ReportError::ReservedNotZero { section }))
    }
}
