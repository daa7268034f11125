//! The HCL report: what Azure's firmware keeps in NV index `0x01400001` of the vTPM.
//!
//! | offset | size | field, little-endian |
//! |---|---|---|
//! | 0 | 4 | `HCLA` |
//! | 4 | 4 | version of the header: 1 or 2 |
//! | 8 | 4 | bytes used, from the start to the end of the variable data |
//! | 12 | 4 | kind of request: 2, attestation |
//! | 16 | 16 | status and reserved: zero |
//! | 32 | 1184 | the hardware's report: SNP's, or a TD report of 1024 bytes |
//! | 1216 | 4 | bytes of this structure with the variable data |
//! | 1220 | 4 | its version: 1 |
//! | 1224 | 4 | kind of the hardware's report: 2 SNP, 4 TDX |
//! | 1228 | 4 | hash in the report data: 1, SHA-256 |
//! | 1232 | 4 | bytes of the variable data |
//! | 1236 | | variable data: JSON; after it zeros |
//!
//! The TD report is proof only on the machine that made it; elsewhere the quote made from it is, and nothing is read
//! from the TD report here.
//!
//! Source: recorded reports; the same fields in Microsoft's guest attestation clients.

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kata_cc_snp::{REPORT_LEN, Report, ReportError};
use serde::Deserialize;
use serde_json::Value;

use crate::pcr::sha256;
use kata_cc_bytes::{Cursor, Truncated};

/// Bytes that the NV index has.
pub const HCL_REPORT_LEN: usize = 2600;
/// Most bytes that are read; newer firmware may use a larger index.
pub const MAX_HCL_REPORT: usize = 16 << 10;
/// First bytes.
pub const MAGIC: &[u8; 4] = b"HCLA";
/// Offset of the hardware's report.
pub const HARDWARE_REPORT_OFFSET: usize = 32;

const REQUEST_DATA_LEN: u32 = 20;
const REQUEST_ATTESTATION: u32 = 2;
const HASH_SHA256: u32 = 1;
/// `kid` of the key that signs quotes.
const ATTESTATION_KEY: &str = "HCLAkPub";
/// Most keys in the variable data.
const MAX_KEYS: usize = 16;
/// Bytes of an RSA modulus that are taken: 2048 to 4096 bits.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=512;
/// Most bytes of a public exponent.
const MAX_EXPONENT: usize = 4;

/// Processor that the guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hardware {
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

impl Hardware {
    /// Name in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Snp => "SNP",
            Self::Tdx => "TDX",
        }
    }
}

/// An HCL report that is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HclError {
    /// Too short or too long.
    #[error("HCL report has {seen} bytes, expected {HCL_REPORT_LEN} (at most {MAX_HCL_REPORT} are read)")]
    Length {
        /// Bytes seen.
        seen: usize,
    },
    /// A field that has another value than it can have.
    #[error("HCL report: {field} is {seen}, expected {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        seen: String,
        /// What it can be.
        expected: String,
    },
    /// The variable data is not the JSON expected.
    #[error("variable data of the HCL report: {what}")]
    VariableData {
        /// What is wrong.
        what: String,
    },
    /// The hardware did not vouch for this variable data.
    #[error(
        "report data of the hardware's report is {seen}, expected {expected}, the SHA-256 of the variable data: the hardware did not vouch for this vTPM"
    )]
    ReportData {
        /// Hex of its first 32 bytes.
        seen: String,
        /// Hex of the variable data's digest.
        expected: String,
    },
    /// The report that should be SNP's is none.
    #[error("HCL report holds no SNP report: {0}")]
    SnpReport(#[from] ReportError),
}

impl HclError {
    fn field(field: &'static str, seen: impl ToString, expected: impl ToString) -> Self {
        Self::Field { field, seen: seen.to_string(), expected: expected.to_string() }
    }
}

/// A parsed HCL report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HclReport {
    hardware: Hardware,
    hardware_report: Vec<u8>,
    variable_data: Vec<u8>,
}

impl HclReport {
    /// Parses the bytes of the NV index.
    ///
    /// # Errors
    /// [`HclError`] says which field is out of form.
    pub fn parse(bytes: &[u8]) -> Result<Self, HclError> {
        let short = HclError::Length { seen: bytes.len() };
        if bytes.len() > MAX_HCL_REPORT {
            return Err(short);
        }
        let mut cursor = Cursor::new(bytes);
        let used = parse_header(&mut cursor).map_err(|Truncated| short.clone())??;
        let hardware_report = cursor.slice(REPORT_LEN).map_err(|Truncated| short.clone())?;
        let (hardware, len) = parse_request_data(&mut cursor).map_err(|Truncated| short.clone())??;
        let variable_data = usize::try_from(len).ok().and_then(|len| cursor.slice(len).ok()).ok_or(short)?;
        // What follows is read by nobody; all of it is zero, so that no byte of the report is free to be anything.
        let end = bytes.len() - cursor.rest().len();
        if usize::try_from(used) != Ok(end) {
            return Err(HclError::field("bytes used", used, end));
        }
        if let Some(at) = cursor.rest().iter().position(|byte| *byte != 0) {
            return Err(HclError::field("padding", format!("not zero at byte {}", end + at), "zeros"));
        }
        Ok(Self {
            hardware,
            hardware_report: hardware_report.to_vec(),
            variable_data: variable_data.to_vec(),
        })
    }

    /// Processor that its hardware report is of.
    #[must_use]
    pub const fn hardware(&self) -> Hardware {
        self.hardware
    }

    /// The variable data, byte for byte.
    #[must_use]
    pub fn variable_data(&self) -> &[u8] {
        &self.variable_data
    }

    /// SHA-256 over the variable data.
    #[must_use]
    pub fn variable_data_digest(&self) -> [u8; 32] {
        sha256(&self.variable_data)
    }

    /// Refuses a report of other hardware.
    ///
    /// # Errors
    /// [`HclError::Field`].
    pub fn check_hardware(&self, expected: Hardware) -> Result<(), HclError> {
        if self.hardware == expected {
            return Ok(());
        }
        Err(HclError::field("kind of the hardware's report", self.hardware.name(), expected.name()))
    }

    /// Bytes of the SNP report inside, as the processor signed them.
    ///
    /// # Errors
    /// [`HclError::Field`] on other hardware, [`HclError::SnpReport`] when the bytes are no report.
    pub fn snp_report(&self) -> Result<(&[u8], Report), HclError> {
        self.check_hardware(Hardware::Snp)?;
        Ok((&self.hardware_report, Report::parse(&self.hardware_report)?))
    }

    /// Whether the hardware vouches for the variable data: report data\[0..32\] is its SHA-256.
    ///
    /// # Errors
    /// [`HclError::ReportData`].
    pub fn check_report_data(&self, report_data: &[u8; 64]) -> Result<(), HclError> {
        let expected = self.variable_data_digest();
        let seen = report_data.first_chunk::<32>();
        if seen == Some(&expected) {
            return Ok(());
        }
        let seen = hex::encode(seen.unwrap_or(&[0; 32]));
        Err(HclError::ReportData { seen, expected: hex::encode(expected) })
    }
}

/// Gives the bytes used.
fn parse_header(cursor: &mut Cursor<'_>) -> Result<Result<u32, HclError>, Truncated> {
    let (magic, version) = (cursor.array::<4>()?, cursor.u32()?);
    let (used, request) = (cursor.u32()?, cursor.u32()?);
    let reserved = cursor.array::<16>()?;
    Ok(if magic != *MAGIC {
        Err(HclError::field("signature", hex::encode(magic), hex::encode(MAGIC)))
    } else if !(1..=2).contains(&version) {
        Err(HclError::field("version", version, "1 or 2"))
    } else if request != REQUEST_ATTESTATION {
        Err(HclError::field("kind of request", request, REQUEST_ATTESTATION))
    } else if reserved != [0; 16] {
        Err(HclError::field("status and reserved", hex::encode(reserved), "zeros"))
    } else {
        Ok(used)
    })
}

/// Gives the hardware and the length of the variable data.
fn parse_request_data(cursor: &mut Cursor<'_>) -> Result<Result<(Hardware, u32), HclError>, Truncated> {
    let (size, version) = (cursor.u32()?, cursor.u32()?);
    let (kind, hash, len) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
    let hardware = match kind {
        2 => Hardware::Snp,
        4 => Hardware::Tdx,
        _ => {
            return Ok(Err(HclError::field("kind of the hardware's report", kind, "2 (SNP) or 4 (TDX)")));
        }
    };
    Ok(if version != 1 {
        Err(HclError::field("version of the request data", version, 1))
    } else if hash != HASH_SHA256 {
        Err(HclError::field("hash in the report data", hash, "1 (SHA-256)"))
    } else if len.checked_add(REQUEST_DATA_LEN) != Some(size) {
        Err(HclError::field("size of the request data", size, format!("{len} + {REQUEST_DATA_LEN}")))
    } else {
        Ok((hardware, len))
    })
}

/// Public key of the vTPM's attestation key; RSA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttestationKey {
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl AttestationKey {
    /// From big-endian numbers.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(modulus: Vec<u8>, exponent: Vec<u8>) -> Result<Self, String> {
        if !MODULUS.contains(&modulus.len()) || modulus.first() == Some(&0) {
            return Err(format!("its modulus has {} bytes, expected 2048 to 4096 bits", modulus.len()));
        }
        if exponent.is_empty() || exponent.len() > MAX_EXPONENT {
            return Err(format!("its exponent has {} bytes, expected 1 to {MAX_EXPONENT}", exponent.len()));
        }
        Ok(Self { modulus, exponent })
    }

    /// The modulus, big-endian.
    #[must_use]
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// Whether this key made the RSASSA-PKCS1-v1_5 signature with SHA-256.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = RsaPublicKeyComponents { n: &self.modulus, e: &self.exponent };
        key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
    }
}

/// What the variable data says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VariableData {
    /// Key that the vTPM signs quotes with.
    pub attestation_key: AttestationKey,
    /// 64 bytes that the guest chose when the report was made; zeros until it does.
    pub user_data: Option<Vec<u8>>,
    /// How the virtual machine is set up, by the firmware's names: numbers, texts and flags.
    pub vm_configuration: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
struct VariableDataJson {
    keys: Vec<KeyJson>,
    #[serde(rename = "user-data")]
    user_data: Option<String>,
    #[serde(rename = "vm-configuration", default)]
    vm_configuration: serde_json::Map<String, Value>,
}

#[derive(Deserialize)]
struct KeyJson {
    kid: String,
    kty: String,
    #[serde(default)]
    key_ops: Vec<String>,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
}

impl VariableData {
    /// Parses the JSON text.
    ///
    /// # Errors
    /// [`HclError::VariableData`] says what is missing or out of form.
    pub fn parse(bytes: &[u8]) -> Result<Self, HclError> {
        let fail = |what: String| HclError::VariableData { what };
        let json: VariableDataJson =
            serde_json::from_slice(bytes).map_err(|error| fail(format!("not the expected JSON: {error}")))?;
        if json.keys.len() > MAX_KEYS {
            return Err(fail(format!("{} keys, at most {MAX_KEYS} are read", json.keys.len())));
        }
        let mut named = json.keys.iter().filter(|key| key.kid == ATTESTATION_KEY);
        let key = match (named.next(), named.next()) {
            (Some(key), None) => key,
            (None, _) => return Err(fail(format!("there is no key {ATTESTATION_KEY}"))),
            (Some(_), Some(_)) => return Err(fail(format!("there are several keys {ATTESTATION_KEY}"))),
        };
        let of_key = |why: String| fail(format!("key {ATTESTATION_KEY}: {why}"));
        if key.kty != "RSA" {
            return Err(of_key(format!("its type is {:?}, expected \"RSA\"", key.kty)));
        }
        if key.key_ops != ["sign"] {
            return Err(of_key(format!("its operations are {:?}, expected [\"sign\"]", key.key_ops)));
        }
        let number = |name: &str, text: &str| {
            URL_SAFE_NO_PAD.decode(text).map_err(|_| of_key(format!("its member {name} is no base64url")))
        };
        let attestation_key =
            AttestationKey::new(number("n", &key.n)?, number("e", &key.e)?).map_err(of_key)?;
        let user_data = json.user_data.map(|text| {
            let bytes = hex::decode(&text).ok().filter(|bytes| bytes.len() == 64);
            bytes.ok_or_else(|| fail("user-data is not 64 bytes in hex".to_owned()))
        });
        Ok(Self {
            attestation_key,
            user_data: user_data.transpose()?,
            vm_configuration: json.vm_configuration,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report as the firmware writes it, around any bytes.
    fn report(variable: &[u8]) -> Vec<u8> {
        let len = u32::try_from(variable.len()).unwrap();
        let mut out = MAGIC.to_vec();
        for number in [1, 32 + 1184 + 20 + len, 2, 0, 0, 0, 0] {
            out.extend(u32::to_le_bytes(number));
        }
        out.extend([0; REPORT_LEN]);
        for number in [20 + len, 1, 4, 1, len] {
            out.extend(u32::to_le_bytes(number));
        }
        out.extend(variable);
        out.resize(HCL_REPORT_LEN, 0);
        out
    }

    fn refused(change: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut bytes = report(b"{}");
        change(&mut bytes);
        HclReport::parse(&bytes).unwrap_err().to_string()
    }

    #[test]
    fn each_field_has_the_one_value_it_can_have() {
        let parsed = HclReport::parse(&report(b"{}")).unwrap();
        assert_eq!((parsed.hardware(), parsed.variable_data()), (Hardware::Tdx, &b"{}"[..]));
        assert_eq!(refused(|b| b[0] = b'X'), "HCL report: signature is 58434c41, expected 48434c41");
        assert_eq!(refused(|b| b[4] = 3), "HCL report: version is 3, expected 1 or 2");
        assert_eq!(refused(|b| b[8] = 0), "HCL report: bytes used is 1024, expected 1238");
        assert_eq!(refused(|b| b[12] = 1), "HCL report: kind of request is 1, expected 2");
        assert!(refused(|b| b[31] = 1).contains("status and reserved"));
        assert_eq!(refused(|b| b[1216] = 0), "HCL report: size of the request data is 0, expected 2 + 20");
        assert_eq!(refused(|b| b[1220] = 2), "HCL report: version of the request data is 2, expected 1");
        assert!(refused(|b| b[1224] = 3).contains("is 3, expected 2 (SNP) or 4 (TDX)"));
        assert!(refused(|b| b[1228] = 2).contains("hash in the report data is 2"));
        assert!(refused(|b| b[2599] = 1).contains("padding is not zero at byte 2599"));
        assert!(refused(|b| b.truncate(1237)).contains("1237 bytes"));
        assert!(refused(|b| b.clear()).contains("0 bytes"));
        assert!(refused(|b| b.resize(MAX_HCL_REPORT + 1, 0)).contains("16385 bytes"));
        // A length beyond all memory is only a length.
        assert!(refused(|b| b[1232..1236].fill(0xFF)).contains("size of the request data"));
        let huge = refused(|b| {
            b[1216..1220].copy_from_slice(&(u32::MAX).to_le_bytes());
            b[1232..1236].copy_from_slice(&(u32::MAX - 20).to_le_bytes());
        });
        assert!(huge.contains("2600 bytes"), "{huge}");
    }

    #[test]
    fn the_wrong_hardware_is_told() {
        let parsed = HclReport::parse(&report(b"{}")).unwrap();
        let error = parsed.snp_report().unwrap_err().to_string();
        assert_eq!(error, "HCL report: kind of the hardware's report is TDX, expected SNP");
    }

    #[test]
    fn the_variable_data_is_bound_by_its_hash() {
        let parsed = HclReport::parse(&report(b"{}")).unwrap();
        let mut report_data = [0; 64];
        report_data[..32].copy_from_slice(&sha256(b"{}"));
        parsed.check_report_data(&report_data).unwrap();
        report_data[31] ^= 1;
        let error = parsed.check_report_data(&report_data).unwrap_err().to_string();
        assert!(error.contains("did not vouch"), "{error}");
    }

    #[test]
    fn the_key_must_be_one_rsa_key_for_signing() {
        let n = URL_SAFE_NO_PAD.encode([0x80; 256]);
        let key = |changes: Value| {
            let mut key = serde_json::json!({"kid": "HCLAkPub", "kty": "RSA", "key_ops": ["sign"], "n": n, "e": "AQAB"});
            for (name, value) in changes.as_object().unwrap() {
                key[name.as_str()] = value.clone();
            }
            key
        };
        let parse = |keys: Vec<Value>| {
            VariableData::parse(serde_json::json!({"keys": keys}).to_string().as_bytes())
                .map_err(|error| error.to_string())
        };
        let none = || serde_json::json!({});
        assert_eq!(parse(vec![key(none())]).unwrap().attestation_key.modulus(), [0x80; 256]);
        assert!(parse(vec![]).unwrap_err().contains("no key HCLAkPub"));
        assert!(parse(vec![key(none()), key(none())]).unwrap_err().contains("several keys"));
        assert!(parse(vec![key(none()); 17]).unwrap_err().contains("17 keys"));
        for (changes, why) in [
            (serde_json::json!({"kid": "HCLEkPub"}), "no key HCLAkPub"),
            (serde_json::json!({"kty": "EC"}), "its type is \"EC\""),
            (serde_json::json!({"key_ops": ["encrypt"]}), "its operations are"),
            (serde_json::json!({"key_ops": ["sign", "encrypt"]}), "its operations are"),
            (serde_json::json!({"n": "!"}), "member n is no base64url"),
            (serde_json::json!({"n": "AQAB"}), "its modulus has 3 bytes"),
            (serde_json::json!({"e": ""}), "its exponent has 0 bytes"),
            (serde_json::json!({"e": "AQABAQAB"}), "its exponent has 6 bytes"),
        ] {
            let error = parse(vec![key(changes)]).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        for text in ["", "[]", "{\"keys\": 1}", "{\"keys\": [], \"user-data\": 1}"] {
            assert!(VariableData::parse(text.as_bytes()).is_err(), "{text}");
        }
        let text = serde_json::json!({"keys": [key(none())], "user-data": "00"}).to_string();
        let error = VariableData::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("user-data is not 64 bytes"), "{error}");
    }
}
