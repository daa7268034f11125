//! Evaluate, policies, reference values, keys: what both the KBS and the REST server offer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kata_cc_endorsements::Endorser;
use kata_cc_kbs_protocol::Tee;
use kata_cc_kbs_protocol::rcar::HashAlgorithm;
use kata_cc_policy::engine::{EngineError, Program};
use serde_json::Value;
use thiserror::Error;
use tokio::sync::RwLock;

use crate::appraisal::{self, AppraisalError};
use crate::composite::Submod;
use crate::devices::Devices;
use crate::ear::{Finding, TrustVector};
use crate::jws::{JwsError, SigningKey};
use crate::store::{Store, StoreError, read_secret, write_secret};
use crate::token::{TokenBroker, TokenError};
use crate::verify::{EvidenceVerifier, Refusal};

/// Namespace of attestation policies in the store.
pub const POLICY_NAMESPACE: &str = "attestation_service_policy";
/// Namespace of reference values in the store.
pub const REFERENCE_NAMESPACE: &str = "reference_value";
/// Most characters of a policy id or of the name of a reference value.
const MAX_NAME: usize = 255;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The evidence was refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The policy failed.
    #[error(transparent)]
    Appraisal(#[from] AppraisalError),
    /// A policy text was refused.
    #[error(transparent)]
    Policy(#[from] EngineError),
    /// A policy id that is not allowed or does not exist.
    #[error(
        "attestation policy {0:?} does not exist or is no name of 1 to {MAX_NAME} letters, digits, _ and -"
    )]
    PolicyId(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The token could not be signed.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The signing key could not be read or made.
    #[error("token signing key {path} cannot be used: {why}")]
    SigningKey {
        /// File.
        path: String,
        /// Why.
        why: String,
    },
    /// The caller is no administrator.
    #[error("admin access denied: {0}")]
    Admin(String),
    /// The request asks for something that is not allowed.
    #[error("{0}")]
    Request(String),
}

/// What the report data of the evidence must be the hash of.
#[derive(Debug, Clone, PartialEq)]
pub enum Binding {
    /// JSON, hashed in canonical form and published as `runtime_data_claims`.
    Structured(Value),
    /// Bytes, hashed as they are.
    Raw(Vec<u8>),
}

/// What the init-data field of the evidence must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpectedInitData {
    /// The document, whose contents are published as `init_data_claims`.
    Toml(String),
    /// Its digest.
    Digest(Vec<u8>),
}

/// One evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluate {
    /// What made the evidence.
    pub tee: Tee,
    /// Evidence in the TEE's own shape.
    pub evidence: Value,
    /// What it binds; unchecked when `None`.
    pub binding: Option<Binding>,
    /// Hash of the binding.
    pub hash: HashAlgorithm,
    /// Expected init-data; unchecked when `None`.
    pub init_data: Option<ExpectedInitData>,
    /// Policy id without class; `default` when empty.
    pub policy_id: String,
}

/// An attestation result.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// EAR, signed.
    pub token: String,
    /// Trust vector of the CPU; [`Verdict::status`] is that of everything.
    pub vector: TrustVector,
    /// What did not match the reference values.
    pub findings: Vec<Finding>,
    /// Launch measurement, when the TEE has one.
    pub measurement: Option<String>,
    /// Each piece of evidence by itself, the CPU's first.
    pub submods: Vec<Submod>,
}

/// The service.
pub struct AttestationService {
    store: Store,
    verifier: Box<dyn EvidenceVerifier>,
    devices: Devices,
    broker: TokenBroker,
    endorser: Option<Arc<Endorser>>,
    programs: RwLock<BTreeMap<String, Arc<Program>>>,
}

impl std::fmt::Debug for AttestationService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttestationService").field("broker", &self.broker).finish_non_exhaustive()
    }
}

/// Reads the key that signs tokens, which must be its owner's alone, or makes one (mode 0600) when the file is absent.
pub fn signing_key(path: &Path, algorithm: &str) -> Result<SigningKey, ServiceError> {
    let fail = |why: String| ServiceError::SigningKey { path: path.display().to_string(), why };
    let fail_jws = |e: JwsError| fail(e.to_string());
    if !path.exists() {
        let pem = SigningKey::generate_pem(algorithm).map_err(fail_jws)?;
        write_secret(path, pem.as_bytes()).map_err(|e| fail(e.to_string()))?;
    }
    let pem = read_secret(path).map_err(|e| fail(e.to_string()))?;
    SigningKey::from_pem(&pem).map_err(fail_jws)
}

impl AttestationService {
    /// Puts the parts together; policies that are in the store must compile.
    pub async fn new(
        store: Store,
        verifier: Box<dyn EvidenceVerifier>,
        broker: TokenBroker,
    ) -> Result<Self, ServiceError> {
        let mut programs = BTreeMap::new();
        for (id, text) in appraisal::BUILT_IN {
            programs.insert(id.to_owned(), Arc::new(appraisal::compile(id, text)?));
        }
        for (id, text) in store.all(POLICY_NAMESPACE).await? {
            let program = appraisal::compile(&id, &String::from_utf8_lossy(&text))?;
            programs.insert(id, Arc::new(program));
        }
        Ok(Self {
            store,
            verifier,
            devices: Devices::default(),
            broker,
            endorser: None,
            programs: RwLock::new(programs),
        })
    }

    /// Fetches what evidence lacks before it is verified. The verifier has to look things up in the same endorser.
    #[must_use]
    pub fn with_endorser(mut self, endorser: Option<Arc<Endorser>>) -> Self {
        self.endorser = endorser;
        self
    }

    /// Verifies and appraises evidence; the verdict's token says how good it is. An error means that the evidence proves
    /// nothing.
    pub async fn evaluate(&self, request: &Evaluate) -> Result<Verdict, ServiceError> {
        self.evaluate_all(std::slice::from_ref(request)).await
    }

    /// Verifiers of devices beside those built in.
    #[must_use]
    pub fn with_devices(mut self, devices: Devices) -> Self {
        self.devices = devices;
        self
    }

    pub(crate) fn devices(&self) -> &Devices {
        &self.devices
    }

    pub(crate) fn verifier(&self) -> &dyn EvidenceVerifier {
        self.verifier.as_ref()
    }

    pub(crate) fn endorser(&self) -> Option<&Endorser> {
        self.endorser.as_deref()
    }

    pub(crate) fn broker(&self) -> &TokenBroker {
        &self.broker
    }

    pub(crate) async fn program(&self, id: &str) -> Option<Arc<Program>> {
        self.programs.read().await.get(id).cloned()
    }

    /// Stores a policy after it compiled.
    pub async fn set_policy(&self, id: &str, text: &str) -> Result<(), ServiceError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if id.is_empty() || id.len() > MAX_NAME || !id.bytes().all(allowed) {
            return Err(ServiceError::PolicyId(id.chars().take(64).collect()));
        }
        let program = appraisal::compile(id, text)?;
        let mut programs = self.programs.write().await;
        self.store.put(POLICY_NAMESPACE, id, text.as_bytes()).await?;
        programs.insert(id.to_owned(), Arc::new(program));
        Ok(())
    }

    /// Text of a policy, and whether it is the built-in one.
    pub async fn policy(&self, id: &str) -> Result<(String, bool), ServiceError> {
        match self.store.get(POLICY_NAMESPACE, id).await? {
            Some(text) => Ok((String::from_utf8_lossy(&text).into_owned(), false)),
            None => {
                let built_in = appraisal::BUILT_IN.iter().find(|(name, _)| *name == id);
                let text = built_in.map(|(_, text)| (*text).to_owned());
                text.map(|text| (text, true))
                    .ok_or_else(|| ServiceError::PolicyId(id.chars().take(64).collect()))
            }
        }
    }

    /// Ids of all policies.
    pub async fn policy_ids(&self) -> Vec<String> {
        self.programs.read().await.keys().cloned().collect()
    }

    /// All reference values.
    pub async fn reference_values(&self) -> Result<BTreeMap<String, Value>, ServiceError> {
        let all = self.store.all(REFERENCE_NAMESPACE).await?;
        let read = |(name, bytes): (String, zeroize::Zeroizing<Vec<u8>>)| {
            (name, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
        };
        Ok(all.into_iter().map(read).collect())
    }

    /// Stores reference values; each replaces the older one of its name.
    pub async fn set_reference_values(&self, values: &BTreeMap<String, Value>) -> Result<(), ServiceError> {
        for (name, value) in values {
            self.store.put(REFERENCE_NAMESPACE, name, value.to_string().as_bytes()).await?;
        }
        Ok(())
    }

    /// Removes a reference value; false when there was none.
    pub async fn delete_reference_value(&self, name: &str) -> Result<bool, ServiceError> {
        Ok(self.store.delete(REFERENCE_NAMESPACE, name).await?)
    }

    /// Keys that its tokens are checked with.
    pub fn jwks(&self) -> Value {
        self.broker.jwks()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ear::Tier;
    use crate::jws::Unverified;
    use crate::store::StoreKey;
    use crate::token::TokenVerifier;
    use crate::verify::{Reason, SampleVerifier};
    use kata_cc_kbs_protocol::base64_standard;
    use serde_json::json;

    async fn service(enabled: bool) -> AttestationService {
        let pem = SigningKey::generate_pem("ES256").unwrap();
        let key = SigningKey::from_pem(pem.as_bytes()).unwrap();
        let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
        let broker = TokenBroker::new(key, "test", 5);
        AttestationService::new(store, Box::new(SampleVerifier { enabled }), broker).await.unwrap()
    }

    fn request(bound: &Value, sent: &Value) -> Evaluate {
        let digest = HashAlgorithm::Sha384.digest(&kata_cc_kbs_protocol::rcar::canonical(bound));
        Evaluate {
            tee: Tee::Sample,
            evidence: json!({"svn": "1", "report_data": base64_standard(&digest)}),
            binding: Some(Binding::Structured(sent.clone())),
            hash: HashAlgorithm::Sha384,
            init_data: Some(ExpectedInitData::Toml(
                "algorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\n\"aa.toml\" = \"x = 1\"\n\"policy.rego\" = \"package agent_policy\\npolicy_data := {\\\"a\\\": 1}\"\n".to_owned(),
            )),
            policy_id: String::new(),
        }
    }

    #[tokio::test]
    async fn sample_evidence_becomes_a_token() {
        let service = service(true).await;
        let bound = json!({"nonce": "n"});
        let values = BTreeMap::from([
            ("launch_digest".to_owned(), json!(["abcde"])),
            ("svn".to_owned(), json!(["1"])),
        ]);
        service.set_reference_values(&values).await.unwrap();
        let verdict = service.evaluate(&request(&bound, &bound)).await.unwrap();
        assert_eq!(verdict.vector.status(), Tier::Affirming, "{:?}", verdict.findings);
        let mut verifier = TokenVerifier::default();
        verifier.trust_jwks(&service.jwks());
        let claims = verifier.verify(&verdict.token, crate::now()).unwrap();
        let evidence = &claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"];
        assert_eq!(evidence["sample"]["svn"], "1");
        assert_eq!(
            evidence["init_data_claims"],
            json!({"aa.toml": {"x": 1}, "agent_policy_claims": {"a": 1}})
        );
        assert_eq!(evidence["runtime_data_claims"], bound);
        let header = Unverified::parse(&verdict.token).unwrap().header;
        assert_eq!((&header["typ"], &header["alg"]), (&json!("JWT"), &json!("ES256")));
    }

    #[test]
    fn a_signing_key_that_others_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token.key");
        signing_key(&path, "ES256").unwrap();
        signing_key(&path, "ES256").unwrap();
        for mode in [0o640, 0o604, 0o666] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = signing_key(&path, "ES256").unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:o}")) && error.contains("chmod 600"), "{error}");
        }
    }

    #[tokio::test]
    async fn refusals_have_reasons() {
        let reason = |result: Result<Verdict, ServiceError>| match result {
            Err(ServiceError::Refused(refusal)) => refusal.reason,
            other => panic!("{other:?}"),
        };
        let (one, two) = (json!({"nonce": "1"}), json!({"nonce": "2"}));
        let refused = service(false).await.evaluate(&request(&one, &one)).await;
        assert_eq!(reason(refused), Reason::SampleNotEnabled);
        let service = service(true).await;
        assert_eq!(reason(service.evaluate(&request(&one, &two)).await), Reason::ReportData);
        let mut broken = request(&one, &one);
        broken.init_data = Some(ExpectedInitData::Toml("x".to_owned()));
        assert_eq!(reason(service.evaluate(&broken).await), Reason::InitData);
        let mut other = request(&one, &one);
        other.policy_id = "missing".to_owned();
        assert!(matches!(service.evaluate(&other).await, Err(ServiceError::PolicyId(_))));
    }

    #[tokio::test]
    async fn policies_must_compile() {
        let service = service(true).await;
        assert!(service.set_policy("default_cpu", "package policy\nx if {").await.is_err());
        assert!(service.set_policy("../x", "package policy").await.is_err());
        assert!(service.policy("default_cpu").await.unwrap().1);
        let text = "package policy\ntrust_claims := {\"hardware\": 2}";
        service.set_policy("default_cpu", text).await.unwrap();
        assert_eq!(service.policy("default_cpu").await.unwrap(), (text.to_owned(), false));
        let bound = json!({});
        let verdict = service.evaluate(&request(&bound, &bound)).await.unwrap();
        assert_eq!(verdict.vector.status(), Tier::Affirming);
    }
}
