//! Reading the two bodies that anybody may send: of `/auth` and of `/attest`, in all versions of the protocol.
//!
//! A version's shape is fixed, so members that it does not have are refused ([`crate::strict`]). In `tee-pubkey` that is
//! more than tidiness: client and server hash the key, each as it knows it, so a member that one of them drops makes evidence
//! that cannot be verified, and Trustee's "report data differs" does not say why.

use serde_json::Value;

use crate::rcar::{
    Attestation, CompositeEvidence, InitDataBody, Request, RuntimeData, Tee, TeePubKey, canonical,
};
use crate::strict::{BodyError, Members, kind, parse};

/// `POST /attest` of protocols 0.1.1 and 0.2.0. The nonce is not in it: it is the session's.
#[derive(Debug, Clone, PartialEq)]
pub struct LegacyAttestation {
    /// Key of the guest.
    pub tee_pubkey: TeePubKey,
    /// Evidence of the CPU, in the TEE's own shape.
    pub tee_evidence: Value,
    /// Init-data. Not in Trustee's clients of that time; ours may send it.
    pub init_data: Option<InitDataBody>,
}

/// `POST /attest`, in the shape that was sent.
#[derive(Debug, Clone, PartialEq)]
pub enum AttestBody {
    /// Protocol 0.4.0.
    Current(Attestation),
    /// Protocols 0.1.1 and 0.2.0.
    Legacy(LegacyAttestation),
}

/// Reads the body of `/auth`. The version is only read here, not judged ([`crate::ProtocolVersion::negotiate`]).
///
/// # Errors
/// [`BodyError`] with the member that is wrong.
pub fn request(bytes: &[u8]) -> Result<Request, BodyError> {
    let mut members = Members::of("", parse(bytes)?)?;
    let version = members.text("version")?;
    let tee = members.text("tee")?;
    let extra_params = members.required("extra-params")?;
    members.end()?;
    let tee = Tee::from_name(&tee).ok_or_else(|| {
        let seen: String = tee.chars().take(32).collect();
        BodyError::value("tee", format!("{seen:?} is no TEE that is known, known are {}", Tee::names()))
    })?;
    Ok(Request { version, tee, extra_params })
}

/// Reads the body of `/attest`; which shape it has is seen from its members.
///
/// # Errors
/// [`BodyError`] with the member that is wrong.
pub fn attestation(bytes: &[u8]) -> Result<AttestBody, BodyError> {
    let mut members = Members::of("", parse(bytes)?)?;
    if members.has("tee-pubkey") && !members.has("runtime-data") {
        return legacy(members).map(AttestBody::Legacy);
    }
    let init_data = init_data(&mut members)?;
    let mut runtime = Members::of("runtime-data", members.required("runtime-data")?)?;
    let nonce = runtime.text("nonce")?;
    let tee_pubkey = key("runtime-data.tee-pubkey", runtime.required("tee-pubkey")?)?;
    runtime.end()?;
    let mut evidence = Members::of("tee-evidence", members.required("tee-evidence")?)?;
    let primary_evidence = evidence.required("primary_evidence")?;
    let additional_evidence = evidence.text("additional_evidence")?;
    evidence.end()?;
    members.end()?;
    Ok(AttestBody::Current(Attestation {
        init_data,
        runtime_data: RuntimeData { nonce, tee_pubkey },
        tee_evidence: CompositeEvidence { primary_evidence, additional_evidence },
    }))
}

fn legacy(mut members: Members) -> Result<LegacyAttestation, BodyError> {
    let tee_pubkey = key("tee-pubkey", members.required("tee-pubkey")?)?;
    // The text holds JSON; clients of v0.13 send that JSON itself.
    let tee_evidence = match members.required("tee-evidence")? {
        Value::String(text) => parse(text.as_bytes())
            .map_err(|e| BodyError::value("tee-evidence", format!("its text holds no evidence: {e}")))?,
        object @ Value::Object(_) => object,
        other => {
            let why = format!("expected a text that holds JSON, seen {}", kind(&other));
            return Err(BodyError::value("tee-evidence", why));
        }
    };
    let init_data = init_data(&mut members)?;
    members.end()?;
    Ok(LegacyAttestation { tee_pubkey, tee_evidence, init_data })
}

fn init_data(members: &mut Members) -> Result<Option<InitDataBody>, BodyError> {
    let Some(value) = members.optional("init-data") else { return Ok(None) };
    let mut init_data = Members::of("init-data", value)?;
    let (format, body) = (init_data.text("format")?, init_data.text("body")?);
    init_data.end()?;
    if format != "toml" {
        let seen: String = format.chars().take(32).collect();
        return Err(BodyError::value("init-data.format", format!("{seen:?}, only \"toml\" is known")));
    }
    Ok(Some(InitDataBody { format, body }))
}

fn key(path: &'static str, value: Value) -> Result<TeePubKey, BodyError> {
    let mut members = Members::of(path, value)?;
    let kty = members.text("kty")?;
    let key = match kty.as_str() {
        "EC" => TeePubKey::EC {
            crv: members.text("crv")?,
            alg: members.text("alg")?,
            x: members.text("x")?,
            y: members.text("y")?,
        },
        "RSA" => TeePubKey::RSA { alg: members.text("alg")?, n: members.text("n")?, e: members.text("e")? },
        other => {
            let seen: String = other.chars().take(32).collect();
            return Err(BodyError::value(&members.path("kty"), format!("{seen:?}, known are EC and RSA")));
        }
    };
    members.end()?;
    key.check().map_err(|why| BodyError::value(path, why))?;
    Ok(key)
}

impl LegacyAttestation {
    /// What the report data of the evidence is the hash of: nonce and key. The clients serialised with sorted keys, which for these
    /// members is the canonical form.
    #[must_use]
    pub fn canonical(&self, nonce: &str) -> Vec<u8> {
        canonical(&serde_json::json!({"nonce": nonce, "tee-pubkey": self.tee_pubkey}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn ec() -> Value {
        json!({"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "A".repeat(43), "y": "B".repeat(43)})
    }

    fn current() -> Value {
        json!({
            "init-data": null,
            "runtime-data": {"nonce": "bm9uY2U=", "tee-pubkey": ec()},
            "tee-evidence": {"primary_evidence": {"svn": "1"}, "additional_evidence": ""}
        })
    }

    fn why(body: &Value) -> String {
        attestation(body.to_string().as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn every_version_has_its_shape() {
        let AttestBody::Current(read) = attestation(current().to_string().as_bytes()).unwrap() else {
            panic!()
        };
        assert_eq!(read.runtime_data.nonce, "bm9uY2U=");
        assert_eq!(serde_json::to_value(&read).unwrap(), current());
        for evidence in [json!("{\"svn\":\"1\"}"), json!({"svn": "1"})] {
            let body = json!({"tee-pubkey": ec(), "tee-evidence": evidence}).to_string();
            let AttestBody::Legacy(read) = attestation(body.as_bytes()).unwrap() else { panic!() };
            assert_eq!(read.tee_evidence, json!({"svn": "1"}));
            let canonical = String::from_utf8(read.canonical("bm9uY2U=")).unwrap();
            assert!(
                canonical.starts_with(r#"{"nonce":"bm9uY2U=","tee-pubkey":{"alg":"ECDH-ES+A256KW","crv""#),
                "{canonical}"
            );
        }
    }

    #[test]
    fn refusals_name_the_member() {
        let with = |path: &[&str], value: Value| {
            let mut body = current();
            let mut at = &mut body;
            for name in path {
                at = &mut at[*name];
            }
            *at = value;
            why(&body)
        };
        for (path, value, expected) in [
            (&["extra"][..], json!(1), "member extra is not known here"),
            (
                &["runtime-data", "tee-pubkey", "kid"],
                json!("k"),
                "runtime-data.tee-pubkey.kid is not known here, known are kty, crv, alg, x, y",
            ),
            (&["runtime-data", "nonce"], json!(1), "runtime-data.nonce is not understood: expected a text"),
            (&["runtime-data", "tee-pubkey", "kty"], json!("AKP"), "known are EC and RSA"),
            (&["runtime-data", "tee-pubkey", "x"], json!("A"), "member x of tee-pubkey has 1 characters"),
            (&["tee-evidence", "additional_evidence"], Value::Null, "tee-evidence.additional_evidence"),
            (&["tee-evidence"], json!("{}"), "member tee-evidence is not understood: expected an object"),
            (&["init-data"], json!({"format": "json", "body": "{}"}), "only \"toml\" is known"),
            (&["init-data"], json!("x"), "member init-data is not understood"),
        ] {
            let error = with(path, value);
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(why(&json!({})), "member runtime-data is missing");
        assert!(
            why(&json!({"tee-pubkey": ec(), "tee-evidence": "x"})).contains("its text holds no evidence")
        );
        assert!(why(&json!({"tee-pubkey": ec(), "tee-evidence": 1})).contains("seen a number"));
        // Both shapes at once are neither.
        let mut both = current();
        both["tee-pubkey"] = ec();
        assert!(why(&both).contains("member tee-pubkey is not known here"));
    }

    #[test]
    fn auth_bodies() {
        let read = |body: Value| request(body.to_string().as_bytes());
        let good = json!({"version": "0.4.0", "tee": "snp", "extra-params": ""});
        assert_eq!(read(good.clone()).unwrap().tee, Tee::Snp);
        let why = |name: &str, value: Option<Value>| {
            let mut body = good.clone();
            match value {
                Some(value) => body[name] = value,
                None => drop(body.as_object_mut().unwrap().remove(name)),
            }
            read(body).unwrap_err().to_string()
        };
        assert_eq!(why("version", None), "member version is missing");
        assert_eq!(why("extra-params", None), "member extra-params is missing");
        assert!(
            why("tee", Some(json!("enclave")))
                .contains("\"enclave\" is no TEE that is known, known are snp, tdx")
        );
        assert!(why("tee", Some(json!(3))).contains("expected a text"));
        assert!(why("workload_id", Some(json!("x"))).contains("workload_id is not known here"));
        assert!(why("tee", Some(json!("x".repeat(1 << 20)))).len() < 400);
    }

    #[test]
    fn vectors() {
        let Some(folder) = kata_cc_test_vectors::path("coco/runtime-data") else { return };
        let cases: Vec<Value> =
            serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        let handshakes = || cases.iter().filter(|case| case["wire_runtime_data"]["tee-pubkey"].is_object());
        assert_eq!(handshakes().count(), 4, "the others are read beside `canonical`");
        for case in handshakes() {
            let runtime = &case["wire_runtime_data"];
            let body = json!({"tee-pubkey": runtime["tee-pubkey"], "tee-evidence": "{}"}).to_string();
            let AttestBody::Legacy(read) = attestation(body.as_bytes()).unwrap() else { panic!() };
            let canonical = String::from_utf8(read.canonical(runtime["nonce"].as_str().unwrap())).unwrap();
            assert_eq!(canonical, case["device_canonical"].as_str().unwrap(), "{}", case["name"]);
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (request(&bytes), attestation(&bytes));
        }

        /// Any member of a good body, replaced by anything: read, or refused with a short text.
        #[test]
        fn damaged_bodies_are_told_shortly(at in 0usize..400, with in any::<u8>()) {
            let mut bytes = current().to_string().into_bytes();
            let at = at % bytes.len();
            bytes[at] = with;
            if let Err(error) = attestation(&bytes) {
                prop_assert!(error.to_string().len() < 400, "{}", error);
            }
        }
    }
}
