//! Quotes of versions 4 and 5 (Quote library API, appendix "Quote format"): strict, with limits.
//!
//! A quote is header, body and signature data; the first two are signed by the attestation key, which the quoting
//! enclave (QE) made. The signature data carries that key, the report of the QE that vouches for it, and the chain of
//! the platform's certification key (PCK), which signed that report.

use crate::report::{TD10_LEN, TD15_LEN, TdReportBody};
use kata_cc_bytes::{Cursor, Truncated};

/// Most bytes of a quote, padding included; real ones have about 5 KiB, in buffers of 8 KiB and more.
pub const MAX_QUOTE: usize = 128 * 1024;

/// Bytes of the header.
pub const HEADER_LEN: usize = 48;

/// `tee_type` of TDX.
pub const TEE_TYPE_TDX: u32 = 0x81;

/// ECDSA on P-256 with SHA-256, the one kind of attestation key that exists.
pub const KEY_TYPE_ECDSA_P256: u16 = 2;

/// Intel's quoting enclaves.
pub const INTEL_QE_VENDOR: [u8; 16] = *b"\x93\x9a\x72\x33\xf7\x9c\x4c\xa9\x94\x0a\x0d\xb3\x95\x7f\x06\x07";

/// Bytes of an SGX report body, the form in which the QE vouches for the attestation key.
pub const QE_REPORT_LEN: usize = 384;

/// Certification data that is a PEM chain: PCK, intermediate, root.
const CERT_TYPE_PCK_CHAIN: u16 = 5;

/// Certification data that is the QE's report, its signature, and certification data of its own.
const CERT_TYPE_QE_REPORT: u16 = 6;

/// Body types of version 5.
const BODY_SGX: u16 = 1;
const BODY_TD10: u16 = 2;
const BODY_TD15: u16 = 3;

/// Whether zeros may follow the signature data: some stacks hand out their whole buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trailing {
    /// Nothing may follow.
    Refused,
    /// Zeros may follow.
    Zeros,
}

/// Bytes that are no TDX quote, or none that is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// Longer than the limit.
    #[error("quote has {seen} bytes, at most {MAX_QUOTE} are taken")]
    TooLong {
        /// Bytes seen.
        seen: usize,
    },
    /// Ends too early.
    #[error("quote ends within its {part}")]
    Truncated {
        /// The part that is not whole.
        part: &'static str,
    },
    /// A version without a parser here.
    #[error("quote version is {seen}, expected 4 or 5")]
    Version {
        /// Version seen.
        seen: u16,
    },
    /// A quote of an SGX enclave.
    #[error("quote (version {version}) is of an SGX enclave, expected one of a TDX guest")]
    Sgx {
        /// Its version.
        version: u16,
    },
    /// A quote of another kind of TEE.
    #[error("TEE type of the quote is {seen:#x}, expected 0x81 (TDX)")]
    TeeType {
        /// Number seen.
        seen: u32,
    },
    /// Another kind of attestation key.
    #[error("attestation key type of the quote is {seen}, expected 2 (ECDSA P-256)")]
    KeyType {
        /// Number seen.
        seen: u16,
    },
    /// Another maker's quoting enclave.
    #[error("vendor of the quoting enclave is {seen}, expected 939a7233f79c4ca9940a0db3957f0607 (Intel)")]
    Vendor {
        /// Hex of the id.
        seen: String,
    },
    /// A body that is not known.
    #[error("body type of the quote is {seen}, expected 2 (TD 1.0) or 3 (TD 1.5)")]
    BodyType {
        /// Number seen.
        seen: u16,
    },
    /// A body whose length is not that of its type.
    #[error("body of the quote is {seen} bytes long, expected {expected}")]
    BodySize {
        /// Length named.
        seen: u32,
        /// Length of the type.
        expected: usize,
    },
    /// Certification data of a kind that TDX does not have.
    #[error("certification data of the quote is of type {seen}, expected {expected}")]
    CertificationType {
        /// Number seen.
        seen: u16,
        /// Number needed.
        expected: u16,
    },
    /// A part is longer than what it holds.
    #[error("{part} of the quote has {seen} bytes left over")]
    LeftOver {
        /// Which part.
        part: &'static str,
        /// How many.
        seen: usize,
    },
    /// Something follows that is not padding.
    #[error("{seen} bytes follow the quote{}", if *.zeros { " (zeros, which are not accepted here)" } else { ", and they are not zeros" })]
    Trailing {
        /// How many.
        seen: usize,
        /// Whether all are zero.
        zeros: bool,
    },
}

fn within(part: &'static str) -> impl Fn(Truncated) -> QuoteError {
    move |Truncated| QuoteError::Truncated { part }
}

/// Header of a quote; fields as they stand in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 4 or 5.
    pub version: u16,
    /// Reserved.
    pub reserved: [u8; 4],
    /// The first 16 bytes are the platform's id at the QE.
    pub user_data: [u8; 20],
}

/// SGX report of the quoting enclave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QeReport {
    /// As signed.
    pub bytes: [u8; QE_REPORT_LEN],
    /// CPUSVN.
    pub cpu_svn: [u8; 16],
    /// MISCSELECT.
    pub misc_select: [u8; 4],
    /// ATTRIBUTES.
    pub attributes: [u8; 16],
    /// Measurement of the enclave.
    pub mr_enclave: [u8; 32],
    /// Its signer.
    pub mr_signer: [u8; 32],
    /// Its product id.
    pub isv_prod_id: u16,
    /// Its security version.
    pub isv_svn: u16,
    /// What it vouches for.
    pub report_data: [u8; 64],
}

impl QeReport {
    /// Reads a report.
    ///
    /// # Errors
    /// Never: any bytes of this length are one. The error is passed on rather than a panic.
    pub fn from_bytes(bytes: [u8; QE_REPORT_LEN]) -> Result<Self, QuoteError> {
        Self::parse(bytes).map_err(within("report of the quoting enclave"))
    }

    fn parse(bytes: [u8; QE_REPORT_LEN]) -> Result<Self, Truncated> {
        let mut cursor = Cursor::new(&bytes);
        let (cpu_svn, misc_select) = (cursor.array()?, cursor.array()?);
        cursor.slice(28)?;
        let (attributes, mr_enclave) = (cursor.array()?, cursor.array()?);
        cursor.slice(32)?;
        let mr_signer = cursor.array()?;
        cursor.slice(96)?;
        let (isv_prod_id, isv_svn) = (cursor.u16()?, cursor.u16()?);
        cursor.slice(60)?;
        let report_data = cursor.array()?;
        Ok(Self {
            bytes,
            cpu_svn,
            misc_select,
            attributes,
            mr_enclave,
            mr_signer,
            isv_prod_id,
            isv_svn,
            report_data,
        })
    }
}

/// A parsed quote. Nothing in it is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Header.
    pub header: Header,
    /// What is attested.
    pub body: TdReportBody,
    /// Header and body, as signed.
    pub signed: Vec<u8>,
    /// Signature over them: r and s, each big-endian.
    pub signature: [u8; 64],
    /// Public attestation key: x and y, each big-endian.
    pub attestation_key: [u8; 64],
    /// The QE vouches for that key.
    pub qe_report: QeReport,
    /// Signature of the PCK over the QE's report: r and s.
    pub qe_report_signature: [u8; 64],
    /// What the QE hashed together with the attestation key.
    pub qe_auth_data: Vec<u8>,
    /// PEM of PCK, intermediate and root.
    pub certificates: Vec<u8>,
}

impl Quote {
    /// Reads a quote.
    ///
    /// # Errors
    /// [`QuoteError`] says which rule the bytes break.
    pub fn parse(bytes: &[u8], trailing: Trailing) -> Result<Self, QuoteError> {
        if bytes.len() > MAX_QUOTE {
            return Err(QuoteError::TooLong { seen: bytes.len() });
        }
        let mut cursor = Cursor::new(bytes);
        let header = parse_header(&mut cursor)?;
        let body = parse_body(&mut cursor, header.version)?;
        let signed = bytes.get(..bytes.len() - cursor.rest().len()).unwrap_or_default().to_vec();
        let in_length = within("length of the signature data");
        let length = cursor.u32().map_err(in_length)?;
        let data = cursor.slice(length as usize).map_err(within("signature data"))?;
        check_trailing(cursor.rest(), trailing)?;
        let mut data = Cursor::new(data);
        let signature = data.array().map_err(within("signature"))?;
        let attestation_key = data.array().map_err(within("attestation key"))?;
        let mut vouching = certification(&mut data, CERT_TYPE_QE_REPORT, "signature data")?;
        let in_report = within("report of the quoting enclave");
        let qe_report = vouching.array().and_then(QeReport::parse).map_err(in_report)?;
        let qe_report_signature =
            vouching.array().map_err(within("signature of the quoting enclave's report"))?;
        let in_auth = within("authentication data");
        let auth_length = vouching.u16().map_err(&in_auth)?;
        let qe_auth_data = vouching.slice(auth_length.into()).map_err(&in_auth)?.to_vec();
        let chain = certification(&mut vouching, CERT_TYPE_PCK_CHAIN, "certification data")?;
        Ok(Self {
            header,
            body,
            signed,
            signature,
            attestation_key,
            qe_report,
            qe_report_signature,
            qe_auth_data,
            certificates: chain.rest().to_vec(),
        })
    }

    /// Type and size of the body as version 5 writes them; `None` in version 4, which has only one type.
    #[must_use]
    pub const fn body_type(&self) -> Option<(u16, u32)> {
        match (self.header.version, &self.body.td15) {
            (5, None) => Some((BODY_TD10, TD10_LEN as u32)),
            (5, Some(_)) => Some((BODY_TD15, TD15_LEN as u32)),
            _ => None,
        }
    }

    /// Header and body as bytes, of version 4 (only for a body of TDX 1.0) or 5: what gets signed.
    #[must_use]
    pub fn signed_bytes(header: &Header, body: &TdReportBody) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + 6 + TD15_LEN);
        out.extend(header.version.to_le_bytes());
        out.extend(KEY_TYPE_ECDSA_P256.to_le_bytes());
        out.extend(TEE_TYPE_TDX.to_le_bytes());
        out.extend(header.reserved);
        out.extend(INTEL_QE_VENDOR);
        out.extend(header.user_data);
        let bytes = body.to_bytes();
        if header.version == 5 {
            let kind = if body.td15.is_some() { BODY_TD15 } else { BODY_TD10 };
            out.extend(kind.to_le_bytes());
            out.extend((bytes.len() as u32).to_le_bytes());
        }
        out.extend(bytes);
        out
    }

    /// Writes the quote: the signed part, then the signature data.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut chain = CERT_TYPE_PCK_CHAIN.to_le_bytes().to_vec();
        chain.extend((self.certificates.len() as u32).to_le_bytes());
        chain.extend(&self.certificates);
        let mut vouching = self.qe_report.bytes.to_vec();
        vouching.extend(self.qe_report_signature);
        vouching.extend((self.qe_auth_data.len() as u16).to_le_bytes());
        vouching.extend(&self.qe_auth_data);
        vouching.extend(chain);
        let mut data = self.signature.to_vec();
        data.extend(self.attestation_key);
        data.extend(CERT_TYPE_QE_REPORT.to_le_bytes());
        data.extend((vouching.len() as u32).to_le_bytes());
        data.extend(vouching);
        let mut out = self.signed.clone();
        out.extend((data.len() as u32).to_le_bytes());
        out.extend(data);
        out
    }
}

fn parse_header(cursor: &mut Cursor<'_>) -> Result<Header, QuoteError> {
    let mut header = Cursor::new(cursor.slice(HEADER_LEN).map_err(within("header"))?);
    let at_end = within("header");
    let (version, key_type) = (header.u16().map_err(&at_end)?, header.u16().map_err(&at_end)?);
    let tee_type = header.u32().map_err(&at_end)?;
    // Version 3 exists for SGX only, and has no TEE type.
    if version == 3 {
        return Err(QuoteError::Sgx { version });
    }
    if version != 4 && version != 5 {
        return Err(QuoteError::Version { seen: version });
    }
    match tee_type {
        TEE_TYPE_TDX => {}
        0 => return Err(QuoteError::Sgx { version }),
        seen => return Err(QuoteError::TeeType { seen }),
    }
    if key_type != KEY_TYPE_ECDSA_P256 {
        return Err(QuoteError::KeyType { seen: key_type });
    }
    let reserved = header.array().map_err(&at_end)?;
    let vendor: [u8; 16] = header.array().map_err(&at_end)?;
    if vendor != INTEL_QE_VENDOR {
        return Err(QuoteError::Vendor { seen: hex::encode(vendor) });
    }
    Ok(Header { version, reserved, user_data: header.array().map_err(&at_end)? })
}

fn parse_body(cursor: &mut Cursor<'_>, version: u16) -> Result<TdReportBody, QuoteError> {
    let at_end = within("body");
    let mut td15 = false;
    if version == 5 {
        let kind = cursor.u16().map_err(&at_end)?;
        let size = cursor.u32().map_err(&at_end)?;
        let expected = match kind {
            BODY_TD10 => TD10_LEN,
            BODY_TD15 => TD15_LEN,
            BODY_SGX => return Err(QuoteError::Sgx { version }),
            seen => return Err(QuoteError::BodyType { seen }),
        };
        if size as usize != expected {
            return Err(QuoteError::BodySize { seen: size, expected });
        }
        td15 = kind == BODY_TD15;
    }
    TdReportBody::parse(cursor, td15).map_err(at_end)
}

/// Certification data: type, length, bytes. It is the last thing in what holds it.
fn certification<'a>(
    cursor: &mut Cursor<'a>,
    expected: u16,
    holder: &'static str,
) -> Result<Cursor<'a>, QuoteError> {
    let at_end = within("certification data");
    let seen = cursor.u16().map_err(&at_end)?;
    if seen != expected {
        return Err(QuoteError::CertificationType { seen, expected });
    }
    let length = cursor.u32().map_err(&at_end)?;
    let data = cursor.slice(length as usize).map_err(at_end)?;
    match cursor.rest().len() {
        0 => Ok(Cursor::new(data)),
        seen => Err(QuoteError::LeftOver { part: holder, seen }),
    }
}

fn check_trailing(rest: &[u8], trailing: Trailing) -> Result<(), QuoteError> {
    let zeros = rest.iter().all(|byte| *byte == 0);
    if rest.is_empty() || (zeros && trailing == Trailing::Zeros) {
        return Ok(());
    }
    Err(QuoteError::Trailing { seen: rest.len(), zeros })
}
