//! Evidence as Trustee's `az-snp-vtpm` and `az-tdx-vtpm` attesters send it, in all versions.
//!
//! - Version 0 has no member `version`; byte strings are arrays of numbers, the VCEK is PEM, and for SNP the members are `quote` and `report`.
//! - Versions 1 and 2: `tpm_quote` in hex, `hcl_report` and `vcek` (DER) or `td_quote` in base64url, with padding or without.
//!
//! Version 2 has the form of version 1; its guest also has the digest of the exchange written into the variable data
//! (`user-data`) before the hardware makes its report.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use kata_cc_snp::evidence::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::hcl::{Hardware, MAX_HCL_REPORT};
use crate::pcr::{PCR_COUNT, Pcrs};
use crate::quote::{MAX_MESSAGE, MAX_SIGNATURE, TpmQuote};

/// Most bytes of a VCEK (a PEM bundle with its chain has 7 KiB).
pub const MAX_VCEK: usize = 64 << 10;
/// Most bytes of a TDX quote.
pub const MAX_TD_QUOTE: usize = 64 << 10;

/// The real guest pads, other writers do not.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Evidence that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// A version that is not known.
    #[error("evidence of a vTPM has version {seen}, expected 0 (no such member), 1 or 2")]
    Version {
        /// What stands there.
        seen: String,
    },
    /// A member is missing or of another type.
    #[error("evidence of a vTPM, version {version}: {what}")]
    Form {
        /// Version that it says it has.
        version: u8,
        /// What the parser says.
        what: String,
    },
    /// A member holds no text of the encoding expected.
    #[error("evidence of a vTPM: {member} is not {expected}")]
    Encoding {
        /// Which.
        member: &'static str,
        /// Encoding.
        expected: &'static str,
    },
    /// A member is too long.
    #[error("evidence of a vTPM: {member} has {seen} bytes, at most {max} are read")]
    TooLong {
        /// Which.
        member: &'static str,
        /// Bytes seen.
        seen: usize,
        /// Most that are read.
        max: usize,
    },
    /// Not all PCRs are there.
    #[error("evidence of a vTPM has {seen} PCR values, expected {PCR_COUNT}")]
    PcrCount {
        /// Values seen.
        seen: usize,
    },
}

/// What the processor vouches with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HardwareEvidence {
    /// Certificate of the endorsement key, DER or PEM; the report is in the HCL report.
    Vcek(Vec<u8>),
    /// TDX quote over the TD report in the HCL report.
    TdQuote(Vec<u8>),
}

impl HardwareEvidence {
    /// The processor.
    #[must_use]
    pub const fn kind(&self) -> Hardware {
        match self {
            Self::Vcek(_) => Hardware::Snp,
            Self::TdQuote(_) => Hardware::Tdx,
        }
    }
}

/// Evidence of a guest with a vTPM, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AzureEvidence {
    /// 0, 1 or 2.
    pub version: u8,
    /// The vTPM's quote.
    pub quote: TpmQuote,
    /// The HCL report, as the NV index holds it.
    pub hcl_report: Vec<u8>,
    /// What the processor vouches with.
    pub hardware: HardwareEvidence,
}

#[derive(Deserialize)]
struct QuoteNumbers {
    signature: Vec<u8>,
    message: Vec<u8>,
    pcrs: Vec<Bytes<32>>,
}

#[derive(Deserialize)]
struct SnpNumbers {
    quote: QuoteNumbers,
    report: Vec<u8>,
    vcek: String,
}

#[derive(Deserialize)]
struct TdxNumbers {
    tpm_quote: QuoteNumbers,
    hcl_report: Vec<u8>,
    td_quote: Vec<u8>,
}

#[derive(Deserialize)]
struct QuoteText {
    signature: String,
    message: String,
    pcrs: Vec<String>,
}

#[derive(Deserialize)]
struct SnpText {
    tpm_quote: QuoteText,
    hcl_report: String,
    vcek: String,
}

#[derive(Deserialize)]
struct TdxText {
    tpm_quote: QuoteText,
    hcl_report: String,
    td_quote: String,
}

impl AzureEvidence {
    /// Reads evidence of a guest on this hardware.
    ///
    /// # Errors
    /// [`EvidenceError`] says which member is out of form.
    pub fn from_json(hardware: Hardware, value: &Value) -> Result<Self, EvidenceError> {
        let version = version(value)?;
        let (quote, hcl_report, hardware) = match (version, hardware) {
            (0, Hardware::Snp) => {
                let read: SnpNumbers = form(version, value)?;
                limit("vcek", read.vcek.len(), MAX_VCEK)?;
                (numbers(read.quote)?, read.report, HardwareEvidence::Vcek(read.vcek.into_bytes()))
            }
            (0, Hardware::Tdx) => {
                let read: TdxNumbers = form(version, value)?;
                limit("td_quote", read.td_quote.len(), MAX_TD_QUOTE)?;
                (numbers(read.tpm_quote)?, read.hcl_report, HardwareEvidence::TdQuote(read.td_quote))
            }
            (_, Hardware::Snp) => {
                let read: SnpText = form(version, value)?;
                let vcek = base64url("vcek", &read.vcek, MAX_VCEK)?;
                let report = base64url("hcl_report", &read.hcl_report, MAX_HCL_REPORT)?;
                (texts(&read.tpm_quote)?, report, HardwareEvidence::Vcek(vcek))
            }
            (_, Hardware::Tdx) => {
                let read: TdxText = form(version, value)?;
                let quote = base64url("td_quote", &read.td_quote, MAX_TD_QUOTE)?;
                let report = base64url("hcl_report", &read.hcl_report, MAX_HCL_REPORT)?;
                (texts(&read.tpm_quote)?, report, HardwareEvidence::TdQuote(quote))
            }
        };
        limit("hcl_report", hcl_report.len(), MAX_HCL_REPORT)?;
        Ok(Self { version, quote, hcl_report, hardware })
    }

    /// The hardware that evidence is of, by its members; `None` when it is no evidence of a vTPM.
    #[must_use]
    pub fn hardware_of(value: &Value) -> Option<Hardware> {
        let has = |name: &str| value.get(name).is_some();
        match (has("vcek"), has("td_quote")) {
            (true, false) if has("hcl_report") || has("report") => Some(Hardware::Snp),
            (false, true) if has("hcl_report") => Some(Hardware::Tdx),
            _ => None,
        }
    }
}

fn version(value: &Value) -> Result<u8, EvidenceError> {
    match value.get("version") {
        None => Ok(0),
        Some(Value::Number(number)) if number.as_u64() == Some(1) => Ok(1),
        Some(Value::Number(number)) if number.as_u64() == Some(2) => Ok(2),
        Some(other) => Err(EvidenceError::Version { seen: other.to_string().chars().take(32).collect() }),
    }
}

fn form<T: DeserializeOwned>(version: u8, value: &Value) -> Result<T, EvidenceError> {
    T::deserialize(value).map_err(|error| EvidenceError::Form { version, what: error.to_string() })
}

fn limit(member: &'static str, seen: usize, max: usize) -> Result<(), EvidenceError> {
    if seen > max { Err(EvidenceError::TooLong { member, seen, max }) } else { Ok(()) }
}

fn base64url(member: &'static str, text: &str, max: usize) -> Result<Vec<u8>, EvidenceError> {
    if text.len() / 4 > max / 3 + 1 {
        return Err(EvidenceError::TooLong { member, seen: text.len() / 4 * 3, max });
    }
    let bytes =
        BASE64URL.decode(text).map_err(|_| EvidenceError::Encoding { member, expected: "base64url" })?;
    limit(member, bytes.len(), max)?;
    Ok(bytes)
}

fn hex_text(member: &'static str, text: &str, max: usize) -> Result<Vec<u8>, EvidenceError> {
    limit(member, text.len() / 2, max)?;
    hex::decode(text).map_err(|_| EvidenceError::Encoding { member, expected: "hex" })
}

fn numbers(quote: QuoteNumbers) -> Result<TpmQuote, EvidenceError> {
    limit("message", quote.message.len(), MAX_MESSAGE)?;
    limit("signature", quote.signature.len(), MAX_SIGNATURE)?;
    let values: Vec<[u8; 32]> = quote.pcrs.iter().map(|value| value.0).collect();
    let pcrs = Pcrs::from_slice(&values).ok_or(EvidenceError::PcrCount { seen: values.len() })?;
    Ok(TpmQuote { message: quote.message, signature: quote.signature, pcrs })
}

fn texts(quote: &QuoteText) -> Result<TpmQuote, EvidenceError> {
    Ok(TpmQuote {
        message: hex_text("message", &quote.message, MAX_MESSAGE)?,
        signature: hex_text("signature", &quote.signature, MAX_SIGNATURE)?,
        pcrs: pcr_texts(&quote.pcrs)?,
    })
}

fn pcr_texts(texts: &[String]) -> Result<Pcrs, EvidenceError> {
    if texts.len() != PCR_COUNT {
        return Err(EvidenceError::PcrCount { seen: texts.len() });
    }
    let refused = EvidenceError::Encoding { member: "pcrs", expected: "32 bytes in hex" };
    let value = |text: &String| hex::decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    let values: Option<Vec<[u8; 32]>> = texts.iter().map(value).collect();
    values.and_then(|values| Pcrs::from_slice(&values)).ok_or(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn evidence() -> Value {
        json!({"version": 1, "tpm_quote": {"signature": "00", "message": "01", "pcrs": vec!["00".repeat(32); 24]},
            "hcl_report": "AQ==", "vcek": "Ag"})
    }

    fn refused(pointer: &str, value: Value) -> String {
        let mut changed = evidence();
        *changed.pointer_mut(pointer).unwrap() = value;
        AzureEvidence::from_json(Hardware::Snp, &changed).unwrap_err().to_string()
    }

    #[test]
    fn base64url_is_read_with_padding_and_without() {
        let read = AzureEvidence::from_json(Hardware::Snp, &evidence()).unwrap();
        assert_eq!((read.hcl_report, read.hardware), (vec![1], HardwareEvidence::Vcek(vec![2])));
        assert_eq!(read.quote.signature, [0]);
    }

    #[test]
    fn what_is_out_of_form_is_named() {
        assert!(refused("/version", json!(3)).contains("version 3, expected 0"));
        assert!(refused("/version", json!("1")).contains("version \"1\""));
        assert!(refused("/version", json!(1.0)).contains("version 1.0"));
        assert!(refused("/version", json!("x".repeat(1 << 20))).len() < 200);
        assert!(refused("/hcl_report", json!("+/==")).contains("hcl_report is not base64url"));
        assert!(refused("/hcl_report", json!([1])).contains("version 1: invalid type"));
        assert!(refused("/vcek", json!("A".repeat(100_000))).contains("vcek has 75000 bytes"));
        assert!(refused("/tpm_quote/message", json!("0")).contains("message is not hex"));
        assert!(refused("/tpm_quote/message", json!("0".repeat(4096))).contains("message has 2048 bytes"));
        assert!(refused("/tpm_quote/signature", json!("0".repeat(4096))).contains("signature has"));
        assert!(refused("/tpm_quote/pcrs", json!([])).contains("0 PCR values, expected 24"));
        assert!(refused("/tpm_quote/pcrs/3", json!("00")).contains("pcrs is not 32 bytes in hex"));
        assert!(refused("/tpm_quote", json!(null)).contains("version 1"));
        let error = AzureEvidence::from_json(Hardware::Tdx, &evidence()).unwrap_err().to_string();
        assert!(error.contains("td_quote"), "{error}");
        assert!(AzureEvidence::from_json(Hardware::Snp, &json!([])).is_err());
    }

    #[test]
    fn evidence_is_told_by_its_members() {
        assert_eq!(AzureEvidence::hardware_of(&evidence()), Some(Hardware::Snp));
        assert_eq!(
            AzureEvidence::hardware_of(&json!({"hcl_report": [], "td_quote": []})),
            Some(Hardware::Tdx)
        );
        assert_eq!(AzureEvidence::hardware_of(&json!({"quote": "x"})), None);
        assert_eq!(AzureEvidence::hardware_of(&json!(1)), None);
    }
}
