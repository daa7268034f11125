//! What is measured of a trust domain: the body of a quote, and `TDREPORT_STRUCT`, from which quotes are made.

use aws_lc_rs::digest::{SHA384, digest};

use crate::attributes::TdAttributes;
use kata_cc_bytes::{Cursor, Truncated};

/// Bytes of a body of TDX 1.0.
pub const TD10_LEN: usize = 584;

/// Bytes of a body of TDX 1.5.
pub const TD15_LEN: usize = 648;

/// Bytes of `TDREPORT_STRUCT`.
pub const TDREPORT_LEN: usize = 1024;

/// A SHA-384 digest, the size of each measurement register.
pub type Digest = [u8; 48];

/// Body of a quote (Quote library API, appendix "TD quote body"). All fields as they stand in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdReportBody {
    /// `TEE_TCB_SVN`: versions of the TDX module (components 0 and 1) and of what loads it.
    pub tee_tcb_svn: [u8; 16],
    /// Measurement of the TDX module.
    pub mr_seam: Digest,
    /// Its signer; zeros for Intel.
    pub mrsigner_seam: Digest,
    /// Its attributes; zeros.
    pub seam_attributes: [u8; 8],
    /// Attributes of the domain.
    pub td_attributes: [u8; 8],
    /// Processor features that the domain may use.
    pub xfam: [u8; 8],
    /// Measurement of what was loaded before the domain started.
    pub mr_td: Digest,
    /// Chosen by the host before the start: where the digest of the init-data is.
    pub mr_config_id: Digest,
    /// Chosen by the host.
    pub mr_owner: Digest,
    /// Chosen by the host.
    pub mr_owner_config: Digest,
    /// Registers that the domain extends while it runs.
    pub rtmr: [Digest; 4],
    /// Bytes of the guest's choice.
    pub report_data: [u8; 64],
    /// What TDX 1.5 adds.
    pub td15: Option<Td15>,
}

/// What TDX 1.5 adds to a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Td15 {
    /// `TEE_TCB_SVN_2`: the versions that run now, after an update without a restart of the domain.
    pub tee_tcb_svn2: [u8; 16],
    /// Measurement of the service domains bound to it.
    pub mr_servicetd: Digest,
}

impl TdReportBody {
    /// Reads a body of either length ([`TD10_LEN`], [`TD15_LEN`]); `None` for any other.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let td15 = match bytes.len() {
            TD10_LEN => false,
            TD15_LEN => true,
            _ => return None,
        };
        Self::parse(&mut Cursor::new(bytes), td15).ok()
    }

    /// Reads a body; one of TDX 1.5 if `td15`. Only the length can be wrong.
    pub(crate) fn parse(cursor: &mut Cursor<'_>, td15: bool) -> Result<Self, Truncated> {
        Ok(Self {
            tee_tcb_svn: cursor.array()?,
            mr_seam: cursor.array()?,
            mrsigner_seam: cursor.array()?,
            seam_attributes: cursor.array()?,
            td_attributes: cursor.array()?,
            xfam: cursor.array()?,
            mr_td: cursor.array()?,
            mr_config_id: cursor.array()?,
            mr_owner: cursor.array()?,
            mr_owner_config: cursor.array()?,
            rtmr: [cursor.array()?, cursor.array()?, cursor.array()?, cursor.array()?],
            report_data: cursor.array()?,
            td15: match td15 {
                true => Some(Td15 { tee_tcb_svn2: cursor.array()?, mr_servicetd: cursor.array()? }),
                false => None,
            },
        })
    }

    /// Writes the body, as it stands in a quote.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(TD15_LEN);
        out.extend(self.tee_tcb_svn);
        out.extend(self.mr_seam);
        out.extend(self.mrsigner_seam);
        out.extend(self.seam_attributes);
        out.extend(self.td_attributes);
        out.extend(self.xfam);
        out.extend(self.mr_td);
        out.extend(self.mr_config_id);
        out.extend(self.mr_owner);
        out.extend(self.mr_owner_config);
        out.extend(self.rtmr.concat());
        out.extend(self.report_data);
        if let Some(td15) = &self.td15 {
            out.extend(td15.tee_tcb_svn2);
            out.extend(td15.mr_servicetd);
        }
        out
    }

    /// The attributes, to be asked for bits.
    #[must_use]
    pub const fn attributes(&self) -> TdAttributes {
        TdAttributes::from_bytes(self.td_attributes)
    }
}

/// Bytes that are no `TDREPORT_STRUCT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TdReportError {
    /// Another length.
    #[error("TD report has {seen} bytes, expected {TDREPORT_LEN}")]
    Length {
        /// Bytes seen.
        seen: usize,
    },
    /// Of another TEE or a version that is not known.
    #[error("report type is {seen:02x?}, expected 81 00 00 or 81 00 01 (TDX)")]
    ReportType {
        /// Type, subtype, version and reserved byte.
        seen: [u8; 4],
    },
    /// The hash of a part does not match that part.
    #[error("hash of {part} in the TD report does not match it")]
    Hash {
        /// Which part.
        part: &'static str,
    },
}

/// The parts have fixed lengths that make up the whole, so this does not happen; it is passed on rather than a panic.
impl From<Truncated> for TdReportError {
    fn from(_: Truncated) -> Self {
        Self::Length { seen: 0 }
    }
}

/// `TDREPORT_STRUCT`: what the TDX module gives a guest. Only the same platform can check its MAC, so it proves
/// nothing elsewhere; a quote is made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdReport {
    /// 0, from TDX 1.5 on 1 where service domains are bound.
    pub version: u8,
    /// CPUSVN of the platform.
    pub cpu_svn: [u8; 16],
    /// What the quote made of it says.
    pub body: TdReportBody,
    /// MAC over the first 224 bytes with a key of this platform.
    pub mac: [u8; 32],
}

impl TdReport {
    /// Reads a report and checks that its two hashes match its parts.
    ///
    /// # Errors
    /// [`TdReportError`] says which rule the bytes break.
    pub fn parse(bytes: &[u8]) -> Result<Self, TdReportError> {
        if bytes.len() != TDREPORT_LEN {
            return Err(TdReportError::Length { seen: bytes.len() });
        }
        let mut cursor = Cursor::new(bytes);
        let mut mac_struct = Cursor::new(cursor.slice(256)?);
        let report_type: [u8; 4] = mac_struct.array()?;
        let [0x81, 0, version @ (0 | 1), 0] = report_type else {
            return Err(TdReportError::ReportType { seen: report_type });
        };
        mac_struct.slice(12)?;
        let cpu_svn = mac_struct.array()?;
        let (tcb_hash, info_hash): (Digest, Digest) = (mac_struct.array()?, mac_struct.array()?);
        let report_data = mac_struct.array()?;
        mac_struct.slice(32)?;
        let mac = mac_struct.array()?;
        let tcb_info = cursor.slice(239)?;
        cursor.slice(17)?;
        let td_info = cursor.rest();
        for (part, bytes, hash) in [("TEE_TCB_INFO", tcb_info, tcb_hash), ("TDINFO", td_info, info_hash)] {
            if digest(&SHA384, bytes).as_ref() != hash {
                return Err(TdReportError::Hash { part });
            }
        }
        let body = Self::body(&mut Cursor::new(tcb_info), &mut Cursor::new(td_info), report_data)?;
        Ok(Self { version, cpu_svn, body, mac })
    }

    fn body(
        tcb: &mut Cursor<'_>,
        info: &mut Cursor<'_>,
        report_data: [u8; 64],
    ) -> Result<TdReportBody, Truncated> {
        // Bits 16 and 17 say that the fields of TDX 1.5 are there.
        let td15 = tcb.u64()? & 0x3_0000 != 0;
        Ok(TdReportBody {
            tee_tcb_svn: tcb.array()?,
            mr_seam: tcb.array()?,
            mrsigner_seam: tcb.array()?,
            seam_attributes: tcb.array()?,
            td_attributes: info.array()?,
            xfam: info.array()?,
            mr_td: info.array()?,
            mr_config_id: info.array()?,
            mr_owner: info.array()?,
            mr_owner_config: info.array()?,
            rtmr: [info.array()?, info.array()?, info.array()?, info.array()?],
            report_data,
            td15: match td15 {
                true => Some(Td15 { tee_tcb_svn2: tcb.array()?, mr_servicetd: info.array()? }),
                false => None,
            },
        })
    }
}
