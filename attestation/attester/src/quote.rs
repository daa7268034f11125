//! As much of a TDX quote and of a TD report as the guest itself looks at.
//!
//! The guest does not verify its own quote: it makes sure that what it passes on is whole and answers its request, so that a
//! host that cuts or swaps answers is told here and not as a riddle at the key broker. Layouts: Intel TDX DCAP quoting
//! library API, appendix 3 (quotes v4 and v5); TDX module ABI, `TDREPORT_STRUCT`.

use thiserror::Error;

/// Bytes of a TD report.
pub const TD_REPORT_LEN: usize = 1024;

/// Most bytes of a quote that are read. The kernel's buffer has 8 KiB, newer ones more; a DICE quote may be larger.
pub const MAX_QUOTE: usize = 128 << 10;

/// Header of a quote.
const HEADER: usize = 48;
/// `tee_type` of TDX.
const TDX: u32 = 0x81;
/// Body of TDX 1.0, which that of 1.5 begins with.
const BODY: usize = 584;
/// MRCONFIGID within the body.
const MR_CONFIG_ID: usize = 184;
/// Report data within the body.
const REPORT_DATA: usize = 520;

/// Why bytes are not a quote or a TD report.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum QuoteError {
    /// The bytes end within a part.
    #[error("quote is truncated: it ends at byte {len} within {part}")]
    Truncated {
        /// Bytes there are.
        len: usize,
        /// The part that is not whole.
        part: &'static str,
    },
    /// There is more than the quote.
    #[error("quote has {0} bytes after its end")]
    Trailing(usize),
    /// A version that is not known.
    #[error("quote has version {0}, known are 4 and 5")]
    Version(u16),
    /// Of another TEE.
    #[error("quote is of TEE type {0:#x}, expected 0x81 (TDX)")]
    TeeType(u32),
    /// A body that is not known.
    #[error("quote has a body of type {kind} with {size} bytes, known are 2 (584 bytes) and 3 (648 bytes)")]
    Body {
        /// Type named.
        kind: u16,
        /// Size named.
        size: u32,
    },
    /// Not a TD report.
    #[error("TD report has {seen} bytes and type {kind:#x}, expected 1024 and 0x81")]
    TdReport {
        /// Bytes there are.
        seen: usize,
        /// First byte: the TEE type.
        kind: u8,
    },
}

/// Where the parts of a quote are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quote<'a> {
    /// 4 or 5.
    pub version: u16,
    /// Body: 584 bytes, or 648 of TDX 1.5.
    pub body: &'a [u8],
    /// MRCONFIGID.
    pub mr_config_id: [u8; 48],
    /// Report data.
    pub report_data: [u8; 64],
}

impl<'a> Quote<'a> {
    /// Reads the outline of a quote: whole, nothing after it, of TDX. Signatures are not looked at.
    ///
    /// # Errors
    /// [`QuoteError`] says what is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, QuoteError> {
        let truncated = |part| QuoteError::Truncated { len: bytes.len(), part };
        let (header, rest) = bytes.split_at_checked(HEADER).ok_or_else(|| truncated("the header"))?;
        let version = u16_at(header, 0).ok_or_else(|| truncated("the header"))?;
        if !matches!(version, 4 | 5) {
            return Err(QuoteError::Version(version));
        }
        let tee_type = u32_at(header, 4).ok_or_else(|| truncated("the header"))?;
        if tee_type != TDX {
            return Err(QuoteError::TeeType(tee_type));
        }
        let (size, rest) = match version {
            4 => (BODY, rest),
            _ => {
                let (head, rest) = rest.split_at_checked(6).ok_or_else(|| truncated("the body's head"))?;
                let kind = u16_at(head, 0).ok_or_else(|| truncated("the body's head"))?;
                let size = u32_at(head, 2).ok_or_else(|| truncated("the body's head"))?;
                match (kind, size) {
                    (2, 584) => (BODY, rest),
                    (3, 648) => (648, rest),
                    _ => return Err(QuoteError::Body { kind, size }),
                }
            }
        };
        let (body, rest) = rest.split_at_checked(size).ok_or_else(|| truncated("the body"))?;
        let (length, rest) =
            rest.split_first_chunk::<4>().ok_or_else(|| truncated("the signature's length"))?;
        let length = u32::from_le_bytes(*length) as usize;
        match rest.len().checked_sub(length) {
            None => return Err(truncated("the signature data")),
            Some(0) => {}
            // The kernel's buffer is larger than the quote, and some pass it on whole.
            Some(_) if rest.iter().skip(length).all(|byte| *byte == 0) => {}
            Some(more) => return Err(QuoteError::Trailing(more)),
        }
        let mr_config_id = array_at(body, MR_CONFIG_ID).ok_or_else(|| truncated("the body"))?;
        let report_data = array_at(body, REPORT_DATA).ok_or_else(|| truncated("the body"))?;
        Ok(Self { version, body, mr_config_id, report_data })
    }
}

/// What of a TD report the guest reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TdReport {
    /// Bytes of the caller's choice.
    pub report_data: [u8; 64],
    /// What the host named at the launch: the digest of the init-data.
    pub mrconfigid: [u8; 48],
    /// Runtime measurement registers.
    pub rtmr: [[u8; 48]; 4],
}

impl TdReport {
    /// Reads a TD report.
    ///
    /// # Errors
    /// When it has not 1024 bytes or is of another type.
    pub fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        let kind = bytes.first().copied().unwrap_or(0);
        let wrong = || QuoteError::TdReport { seen: bytes.len(), kind };
        if bytes.len() != TD_REPORT_LEN || u32::from(kind) != TDX {
            return Err(wrong());
        }
        // REPORTMACSTRUCT: report data at 128. TDINFO at 512: attributes 8, XFAM 8, MRTD 48, MRCONFIGID 48, MROWNER 48,
        // MROWNERCONFIG 48, four RTMRs.
        let field = |at| array_at(bytes, at).ok_or_else(wrong);
        Ok(Self {
            report_data: array_at(bytes, 128).ok_or_else(wrong)?,
            mrconfigid: field(576)?,
            rtmr: [field(720)?, field(768)?, field(816)?, field(864)?],
        })
    }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}
