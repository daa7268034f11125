//! Request, Challenge, Attestation, Response: the handshake and the errors.
//!
//! Source: kbs-types 0.18 and Trustee `kbs_attestation_protocol.md`. Two spellings meet here: members of
//! `tee-evidence` are written with underscores, all others with hyphens.
//!
//! The report data that evidence must carry is a hash over the canonical form (RFC 8785) of nonce, public key and
//! the text of the additional evidence: [`RuntimeData::canonical_primary`]. Members of the key that this type does not
//! know are dropped when it is parsed, on both sides, so a key with extra members does not verify.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A trusted execution environment as it is named on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tee {
    /// AMD SEV-SNP on hardware.
    Snp,
    /// Intel TDX on hardware.
    Tdx,
    /// SEV-SNP played by our VMM under a throw-away root. Protects nothing. Not known to Trustee.
    SimSnp,
    /// TDX quotes in the real format under a throw-away root. Protects nothing. Not known to Trustee.
    SimTdx,
    /// Trustee's sample: made-up evidence without any signature.
    Sample,
    /// SEV-SNP behind Azure's vTPM.
    AzSnpVtpm,
    /// TDX behind Azure's vTPM.
    AzTdxVtpm,
    /// Intel SGX.
    Sgx,
    /// Arm CCA.
    Cca,
    /// Hygon CSV.
    Csv,
    /// IBM Secure Execution.
    Se,
    /// Hygon DCU.
    Hygondcu,
    /// Nvidia GPU.
    Nvidia,
    /// Nvidia DPU.
    #[serde(alias = "nvidiadpu")]
    NvidiaDpu,
    /// TPM.
    Tpm,
    /// Trustee's sample device.
    Sampledevice,
}

impl Tee {
    /// Name on the wire, in tokens and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Snp => "snp",
            Self::Tdx => "tdx",
            Self::SimSnp => "sim-snp",
            Self::SimTdx => "sim-tdx",
            Self::Sample => "sample",
            Self::AzSnpVtpm => "az-snp-vtpm",
            Self::AzTdxVtpm => "az-tdx-vtpm",
            Self::Sgx => "sgx",
            Self::Cca => "cca",
            Self::Csv => "csv",
            Self::Se => "se",
            Self::Hygondcu => "hygondcu",
            Self::Nvidia => "nvidia",
            Self::NvidiaDpu => "nvidia-dpu",
            Self::Tpm => "tpm",
            Self::Sampledevice => "sampledevice",
        }
    }

    /// All of them, in the order of their names' use.
    pub const ALL: [Self; 15] = [
        Self::Snp,
        Self::Tdx,
        Self::AzSnpVtpm,
        Self::AzTdxVtpm,
        Self::SimSnp,
        Self::Sample,
        Self::Sgx,
        Self::Cca,
        Self::Csv,
        Self::Se,
        Self::Hygondcu,
        Self::Nvidia,
        Self::NvidiaDpu,
        Self::Tpm,
        Self::Sampledevice,
    ];

    /// All names, for a message.
    #[must_use]
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// The name back to the value; `None` when unknown.
    pub fn from_name(name: &str) -> Option<Self> {
        serde_json::from_value(Value::String(name.to_owned())).ok()
    }
}

impl std::fmt::Display for Tee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// `POST /auth`: who asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Request {
    /// Protocol version, [`crate::PROTOCOL_VERSION`].
    pub version: String,
    /// What the guest runs in.
    pub tee: Tee,
    /// Anything; `{"supported-hash-algorithms": [...]}` from newer clients, `""` from older ones.
    pub extra_params: Value,
}

/// Answer to [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Challenge {
    /// 32 random bytes in b64.
    pub nonce: String,
    /// `""`, or `{"selected-hash-algorithm": "sha512"}`.
    pub extra_params: Value,
}

/// Hash that binds the runtime data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384, used when nothing is said.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl HashAlgorithm {
    /// Reads the name, without regard to case.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "sha256" => Some(Self::Sha256),
            "sha384" => Some(Self::Sha384),
            "sha512" => Some(Self::Sha512),
            _ => None,
        }
    }

    /// Hashes `bytes`.
    pub fn digest(self, bytes: &[u8]) -> Vec<u8> {
        use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};
        let algorithm = match self {
            Self::Sha256 => &SHA256,
            Self::Sha384 => &SHA384,
            Self::Sha512 => &SHA512,
        };
        digest(algorithm, bytes).as_ref().to_vec()
    }
}

impl Challenge {
    /// Which hash the server selected: sha384 unless it names another.
    /// `Err` holds what was found when that is not a hash name we know.
    pub fn hash_algorithm(&self) -> Result<HashAlgorithm, String> {
        match self.extra_params.get("selected-hash-algorithm") {
            None => Ok(HashAlgorithm::Sha384),
            Some(Value::String(name)) => HashAlgorithm::from_name(name).ok_or_else(|| format!("{name:.32}")),
            Some(other) => Err(format!("{other:.32}")),
        }
    }
}

/// Public key of the guest, to which answers are encrypted. A JWK reduced to the members that are hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kty")]
pub enum TeePubKey {
    /// Elliptic curve key; `alg` is `ECDH-ES+A256KW`.
    EC {
        /// `P-256` or `P-521`.
        crv: String,
        /// Key management algorithm.
        alg: String,
        /// x, big-endian, fixed length, b64url.
        x: String,
        /// y, big-endian, fixed length, b64url.
        y: String,
    },
    /// RSA key; `alg` is `RSA-OAEP-256`.
    RSA {
        /// Key management algorithm.
        alg: String,
        /// Modulus, big-endian, b64url.
        n: String,
        /// Exponent, big-endian, b64url.
        e: String,
    },
}

/// Most characters of the modulus and of the exponent of an RSA key: 8192 bits.
const MAX_RSA_MEMBER: usize = 1366;

impl TeePubKey {
    /// Checks the lengths of its members: whoever attests chooses them, and they are kept.
    ///
    /// # Errors
    /// A sentence that says which one is wrong.
    pub fn check(&self) -> Result<(), String> {
        let wrong = |member: &str, seen: usize, expected: String| {
            Err(format!("member {member} of tee-pubkey has {seen} characters, expected {expected}"))
        };
        let name = |name: &str, text: &str| match text.len() {
            0..=32 => Ok(()),
            seen => wrong(name, seen, "at most 32".to_owned()),
        };
        match self {
            Self::EC { crv, alg, x, y } => {
                name("crv", crv)?;
                name("alg", alg)?;
                // Base64url without padding of a coordinate of fixed length.
                let length = match crv.as_str() {
                    "P-256" => 43,
                    "P-384" => 64,
                    "P-521" => 88,
                    other => return Err(format!("tee-pubkey is on the unknown curve {other:?}")),
                };
                for (member, text) in [("x", x), ("y", y)] {
                    if text.len() != length {
                        return wrong(member, text.len(), length.to_string());
                    }
                }
            }
            Self::RSA { alg, n, e } => {
                name("alg", alg)?;
                for (member, text) in [("n", n), ("e", e)] {
                    if text.len() > MAX_RSA_MEMBER {
                        return wrong(member, text.len(), format!("at most {MAX_RSA_MEMBER}"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// What the evidence binds: nonce and key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RuntimeData {
    /// The challenge's nonce, verbatim.
    pub nonce: String,
    /// Public key of the guest.
    pub tee_pubkey: TeePubKey,
}

impl RuntimeData {
    /// What the report data of the main evidence is the hash of. `additional_evidence` is the text exactly as it is
    /// sent, also when it is empty.
    pub fn canonical_primary(&self, additional_evidence: &str) -> Vec<u8> {
        canonical(&serde_json::json!({
            "additional-evidence": additional_evidence,
            "nonce": self.nonce,
            "tee-pubkey": self.tee_pubkey,
        }))
    }

    /// What the report data of a device's evidence is the hash of.
    pub fn canonical_device(&self) -> Vec<u8> {
        canonical(&serde_json::json!({"nonce": self.nonce, "tee-pubkey": self.tee_pubkey}))
    }
}

/// RFC 8785 form of a JSON value.
pub fn canonical(value: &Value) -> Vec<u8> {
    // Fails only for what a `Value` cannot hold: numbers that are not finite and keys that are not strings.
    serde_json_canonicalizer::to_vec(value).unwrap_or_default()
}

/// Init-data as it travels with the evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitDataBody {
    /// `toml`.
    pub format: String,
    /// The document, byte for byte.
    pub body: String,
}

/// Evidence of the guest and its devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompositeEvidence {
    /// Evidence of the CPU, in the TEE's own shape.
    pub primary_evidence: Value,
    /// `""`, or JSON text of an object from TEE name to evidence.
    pub additional_evidence: String,
}

/// `POST /attest`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attestation {
    /// Init-data, when the guest has any.
    #[serde(default)]
    pub init_data: Option<InitDataBody>,
    /// Nonce and key.
    pub runtime_data: RuntimeData,
    /// Evidence.
    pub tee_evidence: CompositeEvidence,
}

/// Answer to [`Attestation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttestationResponse {
    /// EAR token, a JWT.
    pub token: String,
}

/// Flattened JWE that carries a resource. Everything is b64url.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JweResponse {
    /// Protected header.
    pub protected: String,
    /// Content key, wrapped.
    pub encrypted_key: String,
    /// Additional authenticated data; never sent by servers known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aad: Option<String>,
    /// 12 bytes.
    pub iv: String,
    /// Resource, encrypted.
    pub ciphertext: String,
    /// 16 bytes.
    pub tag: String,
}

/// Body of every error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInformation {
    /// `https://github.com/confidential-containers/kbs/errors/<Name>`.
    #[serde(rename = "type")]
    pub error_type: String,
    /// What happened.
    pub detail: String,
}

impl ErrorInformation {
    /// Start of every error type.
    pub const TYPE_PREFIX: &str = "https://github.com/confidential-containers/kbs/errors/";

    /// Makes one from the bare name.
    pub fn new(name: &str, detail: impl Into<String>) -> Self {
        Self { error_type: format!("{}{name}", Self::TYPE_PREFIX), detail: detail.into() }
    }

    /// The name without the prefix, e.g. `PolicyDeny`.
    pub fn name(&self) -> &str {
        self.error_type.rsplit('/').next().unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_of_tees_are_those_of_the_wire() {
        for name in [
            "az-snp-vtpm",
            "az-tdx-vtpm",
            "nvidia",
            "sgx",
            "snp",
            "tdx",
            "cca",
            "csv",
            "se",
            "hygondcu",
            "nvidia-dpu",
            "tpm",
            "sample",
            "sampledevice",
            "sim-snp",
        ] {
            assert_eq!(Tee::from_name(name).map(Tee::name), Some(name));
        }
        assert_eq!(Tee::from_name("nvidiadpu"), Some(Tee::NvidiaDpu));
        assert_eq!(Tee::from_name("SNP"), None);
    }

    #[test]
    fn attest_body_has_the_documented_names() {
        let body = json!({
            "init-data": null,
            "runtime-data": {"nonce": "bm9uY2U=", "tee-pubkey":
                {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "AA", "y": "BB", "kid": "dropped"}},
            "tee-evidence": {"primary_evidence": {"svn": "1"}, "additional_evidence": ""}
        });
        let parsed: Attestation = serde_json::from_value(body).unwrap();
        let text = String::from_utf8(parsed.runtime_data.canonical_primary("")).unwrap();
        assert_eq!(
            text,
            r#"{"additional-evidence":"","nonce":"bm9uY2U=","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"AA","y":"BB"}}"#
        );
    }

    /// All six, also those that are no runtime data of a handshake: the value that Trustee states, and keys whose order by UTF-16
    /// differs from that by code points.
    #[test]
    fn canonical_forms_are_those_of_the_vectors() {
        let Some(bytes) = kata_cc_test_vectors::read("coco/runtime-data/cases.json") else { return };
        let cases: Vec<Value> = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(cases.len(), 6);
        let check = |value: &Value, form: &Value, digests: &Value, name: &Value| {
            let bytes = canonical(value);
            assert_eq!(String::from_utf8_lossy(&bytes), form.as_str().unwrap(), "{name}");
            for (hash, digest) in digests.as_object().unwrap() {
                let hash = HashAlgorithm::from_name(hash).unwrap();
                assert_eq!(hex::encode(hash.digest(&bytes)), digest.as_str().unwrap(), "{name}");
            }
            digests.as_object().unwrap().len()
        };
        let mut digests = 0;
        for case in &cases {
            let mut value = case["wire_runtime_data"].clone();
            digests += check(&value, &case["device_canonical"], &case["device"], &case["name"]);
            if let Some(form) = case.get("primary_canonical") {
                value["additional-evidence"] = case["additional_evidence"].clone();
                digests += check(&value, form, &case["primary"], &case["name"]);
            }
        }
        assert_eq!(digests, 4 * 6 + 2);
    }

    #[test]
    fn members_of_a_key_have_their_lengths() {
        let ec = |crv: &str, x: usize, y: usize| TeePubKey::EC {
            crv: crv.to_owned(),
            alg: "ECDH-ES+A256KW".to_owned(),
            x: "A".repeat(x),
            y: "A".repeat(y),
        };
        for (curve, length) in [("P-256", 43), ("P-384", 64), ("P-521", 88)] {
            ec(curve, length, length).check().unwrap();
            for (x, y) in [(length + 1, length), (length, length - 1), (0, 0), (1 << 20, length)] {
                let error = ec(curve, x, y).check().unwrap_err();
                assert!(error.contains(&format!("expected {length}")), "{error}");
            }
        }
        assert!(ec("P-1", 1, 1).check().is_err());
        assert!(ec(&"P".repeat(1 << 20), 1, 1).check().unwrap_err().len() < 100);
        let rsa = |n: usize, e: usize| TeePubKey::RSA {
            alg: "RSA-OAEP-256".to_owned(),
            n: "A".repeat(n),
            e: "A".repeat(e),
        };
        rsa(683, 4).check().unwrap();
        assert!(rsa(1367, 4).check().is_err() && rsa(683, 1 << 20).check().is_err());
    }

    #[test]
    fn challenge_selects_a_hash() {
        let challenge = |extra| Challenge { nonce: String::new(), extra_params: extra };
        assert_eq!(challenge(json!("")).hash_algorithm(), Ok(HashAlgorithm::Sha384));
        let named = challenge(json!({"selected-hash-algorithm": "SHA512"}));
        assert_eq!(named.hash_algorithm(), Ok(HashAlgorithm::Sha512));
        assert!(challenge(json!({"selected-hash-algorithm": "md5"})).hash_algorithm().is_err());
        assert!(challenge(json!({"selected-hash-algorithm": 1})).hash_algorithm().is_err());
    }
}
