//! The service as both the KBS and the servers offer it. Policies, reference values and keys are in [`crate::policies`],
//! [`crate::registry`] and [`crate::keys`].

use std::sync::Arc;
use std::time::Duration;

use kata_cc_endorsements::Endorser;
use kata_cc_kbs_protocol::Tee;
use kata_cc_kbs_protocol::rcar::HashAlgorithm;
use kata_cc_policy::engine::EngineError;
use serde_json::Value;
use thiserror::Error;

use crate::appraisal::{AppraisalError, MAX_ID};
use crate::composite::Submod;
use crate::devices::Devices;
use crate::ear::{Finding, TrustVector};
use crate::explain::Check;
use crate::follow::Owned;
use crate::keys::KeyLooks;
pub use crate::keys::{KeyFile, signing_key};
use crate::references::ReferenceError;
use crate::sources::SourceError;
use crate::state::{State, mark_change, new_mark};
use crate::store::{Change, Store, StoreError};
use crate::token::{TokenBroker, TokenError};
use crate::verify::{EvidenceVerifier, Refusal};

/// Namespace of attestation policies in the store.
pub const POLICY_NAMESPACE: &str = "attestation_service_policy";
/// Namespace of reference values in the store.
pub const REFERENCE_NAMESPACE: &str = "reference_value";

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
        "attestation policy {0:?} does not exist or is no name of 1 to {MAX_ID} letters, digits, _ and -"
    )]
    PolicyId(String),
    /// Something else that does not exist.
    #[error("{0} does not exist")]
    NotFound(String),
    /// A reference value was refused.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A message with reference values was refused.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Others changed the same, again and again.
    #[error(
        "{what} was changed by somebody else {tries} times while this change was made, so it was not made: look at what is there now, and repeat it"
    )]
    Conflict {
        /// What was to be changed.
        what: String,
        /// How often it was tried.
        tries: u32,
    },
    /// A policy bundle that is followed sets it.
    #[error(
        "{what} is set by the policy bundle {bundle}, which is followed here (policy_source): change it there, or hold an earlier bundle in force with `kata-cc policy rollback`"
    )]
    Owned {
        /// What was to be changed.
        what: String,
        /// The bundle.
        bundle: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The token could not be signed, or is not good.
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
    /// There are no random numbers.
    #[error("no random numbers")]
    Random,
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

/// What the steps of an evaluation took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Signatures, binding and claims.
    pub verify: Duration,
    /// The policy.
    pub appraise: Duration,
    /// Signing the token.
    pub issue: Duration,
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
    /// Every comparison, with its policy and reference value; those that failed first.
    pub explanation: Vec<Check>,
    /// Launch measurement, when the TEE has one.
    pub measurement: Option<String>,
    /// Each piece of evidence by itself, the CPU's first.
    pub submods: Vec<Submod>,
    /// Steps.
    pub timings: Timings,
}

/// The service.
pub struct AttestationService {
    pub(crate) state: State,
    verifier: Box<dyn EvidenceVerifier>,
    devices: Devices,
    endorser: Option<Arc<Endorser>>,
    pub(crate) broker: TokenBroker,
    pub(crate) key_file: Option<KeyFile>,
    pub(crate) key_looks: KeyLooks,
    /// Days after which reference values end when nobody says otherwise.
    default_days: Option<u32>,
    /// What the policy bundle in force sets.
    pub(crate) owned: arc_swap::ArcSwap<Owned>,
}

/// The mark that tells other replicas of a change, for whoever changes something in the same store by himself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark([u8; 16]);

impl Mark {
    /// A new one.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn new() -> Result<Self, ServiceError> {
        Ok(Self(new_mark()?))
    }

    /// Leaves it, for the transaction of the change.
    #[must_use]
    pub fn change(&self) -> Change<'_> {
        mark_change(&self.0)
    }
}

impl std::fmt::Debug for AttestationService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttestationService").field("broker", &self.broker).finish_non_exhaustive()
    }
}

impl AttestationService {
    /// Puts the parts together; policies that are in the store must compile.
    pub async fn new(
        store: Store,
        verifier: Box<dyn EvidenceVerifier>,
        broker: TokenBroker,
    ) -> Result<Self, ServiceError> {
        let state = State::new(store).await?;
        let service = Self {
            state,
            verifier,
            devices: Devices::default(),
            endorser: None,
            broker,
            key_file: None,
            key_looks: KeyLooks::default(),
            default_days: None,
            owned: arc_swap::ArcSwap::default(),
        };
        service.publish_keys().await?;
        Ok(service)
    }

    /// Lets reference values end after `days` when nobody says otherwise.
    #[must_use]
    pub fn with_default_days(mut self, days: Option<u32>) -> Self {
        self.default_days = days;
        self
    }

    /// When a reference value that is registered `now` ends, if nobody says otherwise.
    pub fn default_expiry(&self, now: i64) -> Option<i64> {
        self.default_days.map(|days| now + i64::from(days) * 86_400)
    }

    /// Verifies and appraises evidence; the verdict's token says how good it is. An error means that the evidence proves
    /// nothing.
    pub async fn evaluate(&self, request: &Evaluate) -> Result<Verdict, ServiceError> {
        self.evaluate_all(std::slice::from_ref(request)).await
    }

    /// Fetches what evidence lacks before it is verified. The verifier has to look things up in the same endorser.
    #[must_use]
    pub fn with_endorser(mut self, endorser: Option<Arc<Endorser>>) -> Self {
        self.endorser = endorser;
        self
    }

    pub(crate) fn endorser(&self) -> Option<&Endorser> {
        self.endorser.as_deref()
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

    pub(crate) async fn current(&self) -> Result<Arc<crate::state::Snapshot>, ServiceError> {
        self.state.current().await
    }

    pub(crate) fn verifier(&self) -> &dyn EvidenceVerifier {
        self.verifier.as_ref()
    }

    /// Keys that its tokens are checked with: the one that signs, and those that signed what has not expired.
    pub fn jwks(&self) -> Value {
        self.broker.jwks()
    }

    /// How tokens are made.
    pub fn broker(&self) -> &TokenBroker {
        &self.broker
    }

    /// Whether the store answers and what it holds is in force.
    ///
    /// # Errors
    /// Why not.
    pub async fn ready(&self) -> Result<(), ServiceError> {
        self.state.store.get("generation", "attestation").await?;
        self.state.current().await.map(|_| ())
    }

    /// Reads policies, reference values, published keys and the key file again.
    ///
    /// # Errors
    /// What could not be read. What was in force stays so.
    pub async fn reload(&self) -> Result<(), ServiceError> {
        let _change = self.state.change().await;
        self.state.reload().await?;
        self.read_key_file().await?;
        self.publish_keys().await
    }

    /// What has to be done from time to time, every few seconds: takes up keys that other replicas published or that are new in the
    /// shared key file, and publishes ours anew before that ends.
    ///
    /// # Errors
    /// What failed; the next time may succeed.
    pub async fn tend(&self) -> Result<(), ServiceError> {
        // A rotation that runs is not to be met halfway.
        let _change = self.state.change().await;
        self.state.current().await?;
        self.read_key_file().await?;
        self.publish_keys().await
    }

    /// How often policies, reference values and keys were read from the store. After [`tend`](Self::tend), another number than before
    /// says that somebody changed something there, or that a minute has passed: whoever keeps other things of the same store
    /// in memory, and leaves its [`Mark`] with their changes, reads them again then.
    pub fn readings(&self) -> u64 {
        self.state.readings()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ear::Tier;
    use crate::jws::{SigningKey, Unverified};
    use crate::store::StoreKey;
    use crate::token::TokenVerifier;
    use crate::verify::{Reason, SampleVerifier};
    use kata_cc_kbs_protocol::base64_standard;
    use serde_json::json;
    use std::collections::BTreeMap;

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

    /// Two replicas over one store: what one does is soon in force at the other.
    #[tokio::test]
    async fn replicas_follow_each_other() {
        let broker = || {
            let pem = SigningKey::generate_pem("ES256").unwrap();
            TokenBroker::new(SigningKey::from_pem(pem.as_bytes()).unwrap(), "test", 5)
        };
        let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
        let replica = async || {
            let verifier = Box::new(SampleVerifier { enabled: true });
            AttestationService::new(store.clone(), verifier, broker()).await.unwrap()
        };
        let (one, other) = (replica().await, replica().await);
        let bound = json!({"nonce": "n"});
        let status = async |service: &AttestationService| {
            service.evaluate(&request(&bound, &bound)).await.unwrap().vector.status()
        };
        assert_eq!(status(&other).await, Tier::Contraindicated);
        let values = [("svn", json!(["1"])), ("launch_digest", json!(["abcde"]))];
        let values = values.map(|(name, value)| (name.to_owned(), value)).into();
        one.set_reference_values(&values).await.unwrap();
        assert_eq!(status(&one).await, Tier::Affirming, "where it was set, it is in force at once");
        let follows = async |tier: Tier| {
            let end = std::time::Instant::now() + Duration::from_secs(60);
            while status(&other).await != tier {
                assert!(std::time::Instant::now() < end, "the other replica did not follow");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        follows(Tier::Affirming).await;
        one.set_policy("default_cpu", "package policy\ntrust_claims := {\"hardware\": 97}").await.unwrap();
        follows(Tier::Contraindicated).await;
    }
}
