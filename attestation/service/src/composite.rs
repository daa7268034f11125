//! Evidence of a guest together with that of its devices: one token with a submod for each.
//!
//! In the handshake the guest sends `additional_evidence`, the text of a JSON object from the name of a kind of device to its
//! evidence ([`with_devices`] reads it). The report data of the CPU's evidence is a hash over nonce, key *and that text*, so a
//! host cannot swap a device's evidence; the report data of a device's evidence is a hash over nonce and key alone.
//! The first piece is the CPU's; a device never stands for a guest. Every piece is verified before any is appraised, and one that
//! is refused refuses the whole: a guest cannot get a better verdict by sending less.
//!
//! Sources: Trustee `kbs/src/attestation/backend.rs`, `attestation-service/src/ear_token`.

use std::collections::BTreeMap;
use std::time::Instant;

use kata_cc_kbs_protocol::Tee;
use kata_cc_kbs_protocol::initdata::InitData;
use kata_cc_kbs_protocol::rcar::{RuntimeData, canonical};
use kata_cc_verifier::initdata;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::devices::{Class, Device, is_device};
use crate::ear::{Finding, Tier, TrustVector};
use crate::explain::Check;
use crate::service::{
    AttestationService, Binding, Evaluate, ExpectedInitData, ServiceError, Timings, Verdict,
};
use crate::verify::{Evidence, Reason, Refusal};

/// Most pieces of evidence in one evaluation.
pub const MAX_PIECES: usize = 16;
/// Most submods in one token: one piece of evidence may be of several devices.
pub const MAX_SUBMODS: usize = 64;

/// Why the evidence of devices cannot be read.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum CompositeError {
    /// Not the text of a JSON object.
    #[error(
        "additional_evidence is not the text of a JSON object from kinds of devices to their evidence: {0}"
    )]
    Form(String),
    /// A name that is none.
    #[error("additional_evidence holds evidence of {0:?}, which is no kind of device that is known")]
    Unknown(String),
    /// Evidence that stands for a guest.
    #[error(
        "additional_evidence holds evidence of {0}, which is no device: evidence of the CPU is primary_evidence"
    )]
    NotADevice(Tee),
    /// Too many.
    #[error("additional_evidence holds evidence of {0} kinds of devices, at most {most} are read", most = MAX_PIECES - 1)]
    TooMany(usize),
}

/// One part of a verdict.
#[derive(Debug, Clone)]
pub struct Submod {
    /// Class and index: `cpu0`, `gpu0`, `gpu1`.
    pub name: String,
    /// What made the evidence.
    pub tee: Tee,
    /// Class, which chose the policy.
    pub class: Class,
    /// Trust vector.
    pub vector: TrustVector,
    /// What did not match the reference values.
    pub findings: Vec<Finding>,
    /// Every comparison; those that failed first.
    pub explanation: Vec<Check>,
    /// Launch measurement, when there is one.
    pub measurement: Option<String>,
}

impl Verdict {
    /// Worst tier of all submods: a guest is no better than its worst device.
    pub fn status(&self) -> Tier {
        self.submods.iter().map(|submod| submod.vector.status()).max().unwrap_or(Tier::None)
    }
}

/// Members in the order of the text; a name that stands there twice is refused, as two readers may take different ones.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Entries;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries: Vec<(String, Value)> = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if entries.len() < MAX_PIECES && entries.iter().any(|(other, _)| *other == name) {
                        let name: String = name.chars().take(32).collect();
                        return Err(serde::de::Error::custom(format!("{name:?} stands there twice")));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// The CPU's evaluation and, behind it, those of the devices in `additional_evidence` (`""`: none), for
/// [`AttestationService::evaluate_all`]. The devices bind `runtime` by the same hash and are appraised under the same policy id.
/// The caller has bound `primary` to the same text ([`RuntimeData::canonical_primary`]).
///
/// # Errors
/// [`CompositeError`] when the text is not what it should be.
pub fn with_devices(
    primary: Evaluate,
    runtime: &RuntimeData,
    additional_evidence: &str,
) -> Result<Vec<Evaluate>, CompositeError> {
    if additional_evidence.is_empty() {
        return Ok(vec![primary]);
    }
    let Entries(entries) =
        serde_json::from_str(additional_evidence).map_err(|error| CompositeError::Form(error.to_string()))?;
    if entries.len() >= MAX_PIECES {
        return Err(CompositeError::TooMany(entries.len()));
    }
    let binding: Value = serde_json::from_slice(&runtime.canonical_device())
        .map_err(|error| CompositeError::Form(error.to_string()))?;
    let (hash, policy_id) = (primary.hash, primary.policy_id.clone());
    let mut all = vec![primary];
    for (name, evidence) in entries {
        let tee =
            Tee::from_name(&name).ok_or_else(|| CompositeError::Unknown(name.chars().take(32).collect()))?;
        if !is_device(tee) {
            return Err(CompositeError::NotADevice(tee));
        }
        all.push(Evaluate {
            tee,
            evidence,
            binding: Some(Binding::Structured(binding.clone())),
            hash,
            init_data: None,
            policy_id: policy_id.clone(),
        });
    }
    Ok(all)
}

/// A verified piece of evidence, before it is appraised.
struct Piece {
    tee: Tee,
    class: Class,
    policy_id: String,
    /// As policies and tokens see it.
    annotated: Value,
    measurement: Option<String>,
}

impl AttestationService {
    /// Verifies and appraises the evidence of a guest (the first request) and of its devices (the others); one token tells how
    /// good each is. An error means that the evidence as a whole proves nothing.
    pub async fn evaluate_all(&self, requests: &[Evaluate]) -> Result<Verdict, ServiceError> {
        check_order(requests)?;
        let now = crate::now();
        let current = self.current().await?;
        let start = Instant::now();
        let mut pieces = Vec::new();
        for request in requests {
            self.complete(request).await;
            pieces.extend(self.verify_piece(request, now)?);
        }
        if pieces.len() > MAX_SUBMODS {
            let why = format!("evidence is of {} devices, at most {MAX_SUBMODS} are read", pieces.len());
            return Err(Refusal::new(Reason::Malformed, why).into());
        }
        let verified = Instant::now();
        let mut counts: BTreeMap<Class, usize> = BTreeMap::new();
        let (mut submods, mut ears) = (Vec::new(), Map::new());
        for piece in pieces {
            let policy = format!("{}_{}", piece.policy_id, piece.class.name());
            let policy = current.policies.get(&policy).ok_or(ServiceError::PolicyId(policy))?;
            let appraisal = current.appraise(policy, &piece.annotated, now)?;
            let index = counts.entry(piece.class).or_default();
            let name = format!("{}{index}", piece.class.name());
            *index += 1;
            ears.insert(name.clone(), appraisal.submod(&piece.policy_id, piece.annotated));
            submods.push(Submod {
                name,
                tee: piece.tee,
                class: piece.class,
                vector: appraisal.vector,
                findings: appraisal.findings,
                explanation: appraisal.checks,
                measurement: piece.measurement,
            });
        }
        let Some(cpu) = submods.first().cloned() else {
            return Err(ServiceError::Request("there is no evidence".to_owned()));
        };
        let appraised = Instant::now();
        let token = self.broker().issue(&ears.into(), now)?;
        let timings = Timings {
            verify: verified.duration_since(start),
            appraise: appraised.duration_since(verified),
            issue: appraised.elapsed(),
        };
        Ok(Verdict {
            token,
            vector: cpu.vector,
            findings: cpu.findings,
            explanation: cpu.explanation,
            measurement: cpu.measurement,
            submods,
            timings,
        })
    }

    /// What a policy would see of evidence, verified now: the claims of the guest or of the first device.
    pub(crate) fn claims_of(&self, request: &Evaluate, now: i64) -> Result<Value, ServiceError> {
        let first = self.verify_piece(request, now)?.into_iter().next();
        Ok(first.map(|piece| piece.annotated).unwrap_or_default())
    }

    /// Fetches what the evidence lacks.
    pub(crate) async fn complete(&self, request: &Evaluate) {
        if let Some(endorser) = self.endorser() {
            endorser.complete(request.tee, &request.evidence).await;
        }
    }

    fn verify_piece(&self, request: &Evaluate, now: i64) -> Result<Vec<Piece>, ServiceError> {
        let report_data = request.binding.as_ref().map(|binding| match binding {
            Binding::Structured(value) => request.hash.digest(&canonical(value)),
            Binding::Raw(bytes) => request.hash.digest(bytes),
        });
        let (init_data, init_data_claims) = match &request.init_data {
            None => (None, None),
            Some(ExpectedInitData::Digest(digest)) => (Some(digest.clone()), None),
            Some(ExpectedInitData::Toml(text)) => {
                let parsed =
                    InitData::parse(text).map_err(|e| Refusal::new(Reason::InitData, e.to_string()))?;
                (Some(parsed.digest()), Some(initdata::claims(&parsed)))
            }
        };
        let evidence = Evidence {
            tee: request.tee,
            evidence: &request.evidence,
            report_data: report_data.as_deref(),
            init_data: init_data.as_deref(),
        };
        let verified = if is_device(request.tee) {
            self.devices().verify(&evidence, self.verifier().accepts_samples(), now)?
        } else {
            vec![Device { class: Class::Cpu, verified: self.verifier().verify(&evidence, now)? }]
        };
        let policy_id = if request.policy_id.is_empty() { "default" } else { &request.policy_id };
        let piece = |Device { class, verified }: Device| {
            let measurement = verified.claims.get("measurement").and_then(Value::as_str).map(str::to_owned);
            let mut annotated = json!({
                request.tee.name(): verified.claims,
                "report_data": verified.report_data,
            });
            // A device is started with no init-data.
            if class == Class::Cpu {
                annotated["init_data"] = verified.init_data.into();
            }
            if let Some(Binding::Structured(value)) = &request.binding {
                annotated["runtime_data_claims"] = value.clone();
            }
            if let Some(claims) = &init_data_claims {
                annotated["init_data_claims"] = claims.clone();
            }
            Piece { tee: request.tee, class, policy_id: policy_id.to_owned(), annotated, measurement }
        };
        Ok(verified.into_iter().map(piece).collect())
    }
}

/// The first is the CPU's, all others are of devices.
fn check_order(requests: &[Evaluate]) -> Result<(), ServiceError> {
    let fail = |why: String| Err(ServiceError::Request(why));
    let Some((first, others)) = requests.split_first() else {
        return fail("there is no evidence: at least one verification request is needed".to_owned());
    };
    if requests.len() > MAX_PIECES {
        return fail(format!("{} verification requests, at most {MAX_PIECES} are taken", requests.len()));
    }
    if is_device(first.tee) {
        let tee = first.tee;
        return fail(format!(
            "evidence of {tee} comes first: a device does not stand for a guest, put the CPU's first"
        ));
    }
    match others.iter().find(|request| !is_device(request.tee)) {
        None => Ok(()),
        Some(other) => fail(format!(
            "evidence of {} comes behind that of {}: only one CPU is evaluated, all others are devices",
            other.tee, first.tee
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{DeviceVerifier, Devices};
    use crate::jws::SigningKey;
    use crate::store::{Store, StoreKey};
    use crate::token::{TokenBroker, TokenVerifier};
    use crate::verify::{SampleVerifier, Verified};
    use kata_cc_kbs_protocol::base64_standard;
    use kata_cc_kbs_protocol::rcar::HashAlgorithm;

    async fn service(enabled: bool) -> AttestationService {
        let pem = SigningKey::generate_pem("ES256").unwrap();
        let key = SigningKey::from_pem(pem.as_bytes()).unwrap();
        let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
        let broker = TokenBroker::new(key, "test", 5);
        let service =
            AttestationService::new(store, Box::new(SampleVerifier { enabled }), broker).await.unwrap();
        let values =
            [("launch_digest", json!(["abcde"])), ("svn", json!(["1"])), ("device_svn", json!(["7"]))];
        let values = values.map(|(name, value)| (name.to_owned(), value)).into();
        service.set_reference_values(&values).await.unwrap();
        service
    }

    fn runtime() -> RuntimeData {
        serde_json::from_value(json!({"nonce": "bm9uY2U=", "tee-pubkey":
            {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "AA", "y": "BB"}}))
        .unwrap()
    }

    /// Sample evidence that binds what it should.
    fn sample(svn: &str, bound: &[u8]) -> Value {
        json!({"svn": svn, "report_data": base64_standard(&HashAlgorithm::Sha384.digest(bound))})
    }

    /// A guest's evaluation, whose evidence binds `bound` as additional evidence, with `sent` sent.
    fn guest(bound: &str, sent: &str) -> Evaluate {
        Evaluate {
            tee: Tee::Sample,
            evidence: sample("1", &runtime().canonical_primary(bound)),
            binding: serde_json::from_slice(&runtime().canonical_primary(sent)).ok().map(Binding::Structured),
            hash: HashAlgorithm::Sha384,
            init_data: None,
            policy_id: String::new(),
        }
    }

    fn device(svn: &str) -> String {
        json!({"sampledevice": sample(svn, &runtime().canonical_device())}).to_string()
    }

    fn refused(result: Result<Verdict, ServiceError>) -> Reason {
        match result {
            Err(ServiceError::Refused(refusal)) => refusal.reason,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_guest_and_its_device_share_one_token() {
        let service = service(true).await;
        let text = device("7");
        let all = with_devices(guest(&text, &text), &runtime(), &text).unwrap();
        let verdict = service.evaluate_all(&all).await.unwrap();
        let names: Vec<_> = verdict.submods.iter().map(|submod| submod.name.as_str()).collect();
        assert_eq!(names, ["cpu0", "gpu0"]);
        assert_eq!(verdict.vector.status(), Tier::Affirming, "{:?}", verdict.findings);
        assert_eq!(verdict.status(), Tier::Warning, "no better than the device");
        assert_eq!(verdict.submods[1].findings.len(), 1, "{:?}", verdict.submods[1].findings);
        let mut verifier = TokenVerifier::default();
        verifier.trust_jwks(&service.jwks());
        let submods = verifier.verify(&verdict.token, crate::now()).unwrap()["submods"].clone();
        assert_eq!(submods["gpu0"]["ear.veraison.annotated-evidence"]["sampledevice"], json!({"svn": "7"}));
        assert_eq!(submods["gpu0"]["ear.trustworthiness-vector"]["hardware"], 2);
        assert_eq!(
            submods["cpu0"]["ear.veraison.annotated-evidence"]["runtime_data_claims"]["additional-evidence"],
            text
        );
        // An old device, then a policy of the operator's own.
        let text = device("6");
        let all = with_devices(guest(&text, &text), &runtime(), &text).unwrap();
        let verdict = service.evaluate_all(&all).await.unwrap();
        assert_eq!(verdict.status(), Tier::Contraindicated);
        let findings = &verdict.submods[1].findings;
        assert!(findings.iter().any(|one| one.reference.as_deref() == Some("device_svn")), "{findings:?}");
        service.set_policy("default_gpu", "package policy\ntrust_claims := {\"hardware\": 2}").await.unwrap();
        assert_eq!(service.evaluate_all(&all).await.unwrap().status(), Tier::Affirming);
    }

    #[tokio::test]
    async fn a_swapped_or_left_out_device_is_refused() {
        let service = service(true).await;
        let (seven, six) = (device("7"), device("6"));
        let all = with_devices(guest(&seven, &six), &runtime(), &six).unwrap();
        assert_eq!(refused(service.evaluate_all(&all).await), Reason::ReportData, "swapped");
        let all = with_devices(guest(&seven, ""), &runtime(), "").unwrap();
        assert_eq!(refused(service.evaluate_all(&all).await), Reason::ReportData, "left out");
        // The device's evidence is of another exchange, although the guest vouches for the text.
        let replayed = json!({"sampledevice": sample("7", b"other")}).to_string();
        let all = with_devices(guest(&replayed, &replayed), &runtime(), &replayed).unwrap();
        assert_eq!(refused(service.evaluate_all(&all).await), Reason::ReportData, "replayed");
        let nvidia = json!({"nvidia": {"device_evidence_list": []}}).to_string();
        let all = with_devices(guest(&nvidia, &nvidia), &runtime(), &nvidia).unwrap();
        assert_eq!(refused(service.evaluate_all(&all).await), Reason::TeeNotSupported);
    }

    #[tokio::test]
    async fn the_order_is_one_cpu_then_devices() {
        let service = service(true).await;
        let cpu = guest("", "");
        let gpu = Evaluate { tee: Tee::Sampledevice, ..cpu.clone() };
        for (requests, why) in [
            (vec![], "no evidence"),
            (vec![gpu.clone(), cpu.clone()], "sampledevice comes first"),
            (vec![cpu.clone(), cpu.clone()], "only one CPU"),
            (vec![cpu; MAX_PIECES + 1], "17 verification requests"),
        ] {
            let error = service.evaluate_all(&requests).await.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    /// A verifier of an imagined accelerator, whose evidence is about several.
    struct Pair;

    impl DeviceVerifier for Pair {
        fn tee(&self) -> Tee {
            Tee::Nvidia
        }

        fn verify(&self, evidence: &Evidence<'_>, _: i64) -> Result<Vec<Device>, Refusal> {
            let count = evidence.evidence["count"].as_u64().unwrap_or(0);
            let verified =
                Verified { claims: json!({}), init_data: String::new(), report_data: String::new() };
            Ok((0..count).map(|_| Device { class: Class::Gpu, verified: verified.clone() }).collect())
        }
    }

    #[tokio::test]
    async fn a_plugged_verifier_makes_a_submod_of_each_device() {
        let mut devices = Devices::default();
        devices.plug(Box::new(Pair));
        let service = service(true).await.with_devices(devices);
        let evaluate = async |count: u64| {
            let text = json!({"nvidia": {"count": count}}).to_string();
            let all = with_devices(guest(&text, &text), &runtime(), &text).unwrap();
            service.evaluate_all(&all).await
        };
        let verdict = evaluate(2).await.unwrap();
        let names: Vec<_> = verdict.submods.iter().map(|submod| submod.name.as_str()).collect();
        assert_eq!(names, ["cpu0", "gpu0", "gpu1"]);
        assert_eq!(refused(evaluate(64).await), Reason::Malformed, "bounded");
    }

    #[test]
    fn additional_evidence_has_one_form() {
        let read = |text: &str| {
            with_devices(guest("", ""), &runtime(), text)
                .map(|all| all.len())
                .map_err(|error| error.to_string())
        };
        assert_eq!(read(""), Ok(1));
        assert_eq!(read("{}"), Ok(1));
        assert_eq!(read(r#"{"nvidia": {}, "sampledevice": {}}"#), Ok(3));
        let twice = read(r#"{"sampledevice": {"svn": "1"}, "sampledevice": {"svn": "2"}}"#);
        assert!(twice.unwrap_err().contains("\"sampledevice\" stands there twice"));
        assert!(read(r#"{"snp": {}}"#).unwrap_err().contains("evidence of snp, which is no device"));
        assert!(read(r#"{"toaster": {}}"#).unwrap_err().contains("\"toaster\", which is no kind"));
        for text in ["[]", "null", "x", "{\"nvidia\": {}", "{} {}", " "] {
            assert!(read(text).unwrap_err().contains("not the text of a JSON object"), "{text}");
        }
        let many: Map<String, Value> = (0..100_000).map(|n| (n.to_string(), Value::Null)).collect();
        assert!(read(&Value::Object(many).to_string()).unwrap_err().contains("100000 kinds"));
        let deep = format!("{{\"nvidia\": {}", "[".repeat(100_000));
        assert!(read(&deep).unwrap_err().contains("recursion limit"));
    }
}
