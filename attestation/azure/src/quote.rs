//! TPM quotes: `TPMS_ATTEST` of type `TPM_ST_ATTEST_QUOTE`, and the signature over it.
//!
//! | field, big-endian | |
//! |---|---|
//! | magic | `ff544347`: only a TPM makes what begins so and is signed by a restricted key |
//! | type | `8018` |
//! | qualifiedSigner | name of the key |
//! | extraData | the caller's nonce |
//! | clockInfo | clock, resetCount, restartCount, safe |
//! | firmwareVersion | |
//! | pcrSelect | which PCRs of which banks; here all 24 of SHA-256 |
//! | pcrDigest | SHA-256 over their values |
//!
//! Source: TPM 2.0 Library part 2, 10.12.8 (`TPMS_ATTEST`), 10.6 (`TPML_PCR_SELECTION`), 11.3 (`TPMT_SIGNATURE`).

use crate::hcl::AttestationKey;
use crate::pcr::Pcrs;
use kata_cc_bytes::{Cursor, Truncated};

/// Most bytes of a quote's message.
pub const MAX_MESSAGE: usize = 1024;
/// Most bytes of a signature.
pub const MAX_SIGNATURE: usize = 1024;
/// Most bytes of a nonce: the longest digest, a hash name, and what other attesters pad it to.
const MAX_EXTRA_DATA: usize = 66;
/// Most bytes of a TPM name: a hash name and the longest digest.
const MAX_NAME: usize = 66;

const TPM_GENERATED: u32 = 0xFF54_4347;
const TPM_ST_ATTEST_QUOTE: u16 = 0x8018;
const TPM_ALG_SHA256: u16 = 0x000B;
const TPM_ALG_RSASSA: u16 = 0x0014;

/// A quote that is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// Too long.
    #[error("TPM quote: {what} has {seen} bytes, at most {max} are read")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// Bytes seen.
        seen: usize,
        /// Most that are read.
        max: usize,
    },
    /// Ends before it should, or a part of it has an impossible length.
    #[error("TPM quote is truncated or out of form at its field {field}")]
    Truncated {
        /// Where.
        field: &'static str,
    },
    /// A field that has another value than it can have.
    #[error("TPM quote: {field} is {seen}, expected {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        seen: String,
        /// What it can be.
        expected: String,
    },
    /// Not signed by the attestation key.
    #[error("TPM quote's signature does not verify with the attestation key of the vTPM")]
    Signature,
    /// The PCR values are not those that were quoted.
    #[error("PCR values have the digest {seen}, expected {expected} as quoted by the TPM")]
    PcrDigest {
        /// Hex, over the values sent.
        seen: String,
        /// Hex, in the quote.
        expected: String,
    },
}

impl QuoteError {
    fn field(field: &'static str, seen: impl ToString, expected: impl ToString) -> Self {
        Self::Field { field, seen: seen.to_string(), expected: expected.to_string() }
    }
}

/// What a quote attests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attest {
    /// Name of the key that signed.
    pub qualified_signer: Vec<u8>,
    /// The caller's nonce.
    pub extra_data: Vec<u8>,
    /// Milliseconds that the TPM has been powered.
    pub clock: u64,
    /// TPM resets since it was made.
    pub reset_count: u32,
    /// Restarts since the last reset.
    pub restart_count: u32,
    /// Whether the clock never went back.
    pub safe: bool,
    /// Version of the TPM's firmware, as its maker counts.
    pub firmware_version: u64,
    /// Digest over the selected PCRs.
    pub pcr_digest: [u8; 32],
}

impl Attest {
    /// Parses the message; trailing bytes and any selection but all 24 PCRs of the SHA-256 bank are refused.
    ///
    /// # Errors
    /// [`QuoteError`] says which field is out of form.
    pub fn parse(message: &[u8]) -> Result<Self, QuoteError> {
        if message.len() > MAX_MESSAGE {
            return Err(QuoteError::TooLong { what: "the message", seen: message.len(), max: MAX_MESSAGE });
        }
        let at = |field| move |Truncated| QuoteError::Truncated { field };
        let mut cursor = Cursor::new(message);
        let magic = cursor.be32().map_err(at("magic"))?;
        if magic != TPM_GENERATED {
            return Err(QuoteError::field("magic", format!("{magic:08x}"), format!("{TPM_GENERATED:08x}")));
        }
        let kind = cursor.be16().map_err(at("type"))?;
        if kind != TPM_ST_ATTEST_QUOTE {
            let expected = format!("{TPM_ST_ATTEST_QUOTE:04x} (a quote)");
            return Err(QuoteError::field("type", format!("{kind:04x}"), expected));
        }
        let qualified_signer = sized(&mut cursor, MAX_NAME).map_err(at("qualifiedSigner"))?.to_vec();
        let extra_data = sized(&mut cursor, MAX_EXTRA_DATA).map_err(at("extraData"))?.to_vec();
        let clock = cursor.be64().map_err(at("clock"))?;
        let reset_count = cursor.be32().map_err(at("resetCount"))?;
        let restart_count = cursor.be32().map_err(at("restartCount"))?;
        let safe = match cursor.array::<1>().map_err(at("safe"))? {
            [0] => false,
            [1] => true,
            [other] => return Err(QuoteError::field("safe", other, "0 or 1")),
        };
        let firmware_version = cursor.be64().map_err(at("firmwareVersion"))?;
        check_selection(&mut cursor)?;
        let digest = sized(&mut cursor, 64).map_err(at("pcrDigest"))?;
        let pcr_digest = digest.try_into().map_err(|_| {
            QuoteError::field("pcrDigest", format!("{} bytes", digest.len()), "32 bytes (SHA-256)")
        })?;
        if !cursor.rest().is_empty() {
            return Err(QuoteError::field("rest", format!("{} bytes", cursor.rest().len()), "nothing"));
        }
        Ok(Self {
            qualified_signer,
            extra_data,
            clock,
            reset_count,
            restart_count,
            safe,
            firmware_version,
            pcr_digest,
        })
    }
}

/// TPM2B: a 16-bit length and as many bytes. More than `max` are no more than what is cut: neither is the structure.
fn sized<'a>(cursor: &mut Cursor<'a>, max: usize) -> Result<&'a [u8], Truncated> {
    let len = usize::from(cursor.be16()?);
    if len > max { Err(Truncated) } else { cursor.slice(len) }
}

/// The digest says nothing about a PCR that was not selected, so a quote that leaves one out vouches for none of the values sent.
fn check_selection(cursor: &mut Cursor<'_>) -> Result<(), QuoteError> {
    let at = |Truncated| QuoteError::Truncated { field: "pcrSelect" };
    let count = cursor.be32().map_err(at)?;
    if count != 1 {
        return Err(QuoteError::field("pcrSelect", format!("{count} banks"), "the SHA-256 bank alone"));
    }
    let bank = cursor.be16().map_err(at)?;
    let [len] = cursor.array::<1>().map_err(at)?;
    let bitmap = cursor.slice(usize::from(len)).map_err(at)?;
    if bank != TPM_ALG_SHA256 {
        let expected = format!("{TPM_ALG_SHA256:04x} (SHA-256)");
        return Err(QuoteError::field("pcrSelect's bank", format!("{bank:04x}"), expected));
    }
    if bitmap != [0xFF; 3] {
        return Err(QuoteError::field("pcrSelect's bitmap", hex::encode(bitmap), "ffffff (all 24 PCRs)"));
    }
    Ok(())
}

/// A quote as it travels: the message, its signature, and the values of the PCRs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmQuote {
    /// `TPMS_ATTEST`.
    pub message: Vec<u8>,
    /// RSASSA-PKCS1-v1_5 with SHA-256, big-endian.
    pub signature: Vec<u8>,
    /// Values of the SHA-256 bank.
    pub pcrs: Pcrs,
}

impl TpmQuote {
    /// Checks signature and PCR values; gives what was signed.
    ///
    /// # Errors
    /// [`QuoteError`].
    pub fn verify(&self, key: &AttestationKey) -> Result<Attest, QuoteError> {
        if self.signature.len() > MAX_SIGNATURE {
            let seen = self.signature.len();
            return Err(QuoteError::TooLong { what: "the signature", seen, max: MAX_SIGNATURE });
        }
        let attest = Attest::parse(&self.message)?;
        if !key.verifies(&self.message, &self.signature) {
            return Err(QuoteError::Signature);
        }
        let seen = self.pcrs.digest();
        if seen != attest.pcr_digest {
            let (seen, expected) = (hex::encode(seen), hex::encode(attest.pcr_digest));
            return Err(QuoteError::PcrDigest { seen, expected });
        }
        Ok(attest)
    }
}

/// Takes the signature out of a `TPMT_SIGNATURE` of scheme RSASSA with SHA-256, the form that plain TPM evidence has.
///
/// # Errors
/// [`QuoteError`] for another scheme or hash, and for trailing bytes.
pub fn rsassa_signature(bytes: &[u8]) -> Result<Vec<u8>, QuoteError> {
    let at = |Truncated| QuoteError::Truncated { field: "signature" };
    let mut cursor = Cursor::new(bytes);
    let (scheme, hash) = (cursor.be16().map_err(at)?, cursor.be16().map_err(at)?);
    if (scheme, hash) != (TPM_ALG_RSASSA, TPM_ALG_SHA256) {
        let seen = format!("{scheme:04x} with hash {hash:04x}");
        return Err(QuoteError::field("signature's scheme", seen, "0014 (RSASSA) with hash 000b (SHA-256)"));
    }
    let signature = sized(&mut cursor, MAX_SIGNATURE).map_err(at)?;
    if cursor.rest().is_empty() { Ok(signature.to_vec()) } else { Err(at(Truncated)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(extra: &[u8]) -> Vec<u8> {
        let mut out = vec![0xFF, 0x54, 0x43, 0x47, 0x80, 0x18, 0, 1, 7];
        out.extend(u16::try_from(extra.len()).unwrap().to_be_bytes());
        out.extend(extra);
        out.extend([0; 16]);
        out.push(1);
        out.extend([0; 8]);
        out.extend([0, 0, 0, 1, 0, 0x0B, 3, 0xFF, 0xFF, 0xFF, 0, 32]);
        out.extend([5; 32]);
        out
    }

    #[test]
    fn a_message_is_read_whole() {
        let attest = Attest::parse(&message(b"nonce")).unwrap();
        assert_eq!(
            (attest.extra_data.as_slice(), attest.pcr_digest, attest.safe),
            (&b"nonce"[..], [5; 32], true)
        );
        assert_eq!(attest.qualified_signer, [7]);
        for len in 0..message(b"nonce").len() {
            assert!(Attest::parse(&message(b"nonce")[..len]).is_err(), "{len}");
        }
        let mut long = message(b"");
        long.push(0);
        assert!(Attest::parse(&long).unwrap_err().to_string().contains("rest is 1 bytes"));
        assert!(matches!(Attest::parse(&[0; MAX_MESSAGE + 1]), Err(QuoteError::TooLong { .. })));
        assert!(Attest::parse(&message(&[0; 67])).unwrap_err().to_string().contains("extraData"));
    }

    #[test]
    fn what_is_no_quote_over_all_pcrs_is_refused() {
        let refused = |at: usize, byte: u8| {
            let mut bytes = message(b"");
            bytes[at] = byte;
            Attest::parse(&bytes).unwrap_err().to_string()
        };
        assert_eq!(refused(0, 0xFE), "TPM quote: magic is fe544347, expected ff544347");
        // A certification of a key, signed by the same restricted key.
        assert_eq!(refused(5, 0x17), "TPM quote: type is 8017, expected 8018 (a quote)");
        assert_eq!(refused(27, 2), "TPM quote: safe is 2, expected 0 or 1");
        let select = 36;
        assert!(refused(select + 3, 2).contains("2 banks"));
        assert!(refused(select + 5, 4).contains("bank is 0004"));
        assert!(refused(select + 8, 0xFE).contains("bitmap is fffeff"));
        assert!(refused(select + 6, 2).contains("bitmap is ffff,"));
    }

    #[test]
    fn a_marshalled_signature_names_its_scheme() {
        let mut bytes = vec![0, 0x14, 0, 0x0B, 0, 2, 1, 2];
        assert_eq!(rsassa_signature(&bytes).unwrap(), [1, 2]);
        bytes.push(0);
        assert!(rsassa_signature(&bytes).is_err(), "trailing byte");
        bytes[1] = 0x16;
        assert!(rsassa_signature(&bytes).unwrap_err().to_string().contains("0016 with hash 000b"));
        assert!(rsassa_signature(&[0, 0x14, 0, 0x0B, 0, 9, 1]).is_err());
    }
}
