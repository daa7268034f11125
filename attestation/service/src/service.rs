//! Evaluate, and keys: what both the KBS and the servers offer. Policies and reference values are in [`crate::policies`] and
//! [`crate::registry`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kata_cc_endorsements::Endorser;
use kata_cc_kbs_protocol::Tee;
use kata_cc_kbs_protocol::rcar::HashAlgorithm;
use kata_cc_policy::engine::EngineError;
use serde_json::Value;
use thiserror::Error;
use tracing::info;

use crate::appraisal::{AppraisalError, MAX_ID};
use crate::composite::Submod;
use crate::devices::Devices;
use crate::ear::{Finding, TrustVector};
use crate::explain::Check;
use crate::jws::{JwsError, SigningKey};
use crate::references::ReferenceError;
use crate::sources::SourceError;
use crate::state::{KEY_NAMESPACE, State, mark_change, new_mark};
use crate::store::{Change, Store, StoreError, read_secret, write_secret};
use crate::token::{LEEWAY, PublishedKey, TokenBroker, TokenError};
use crate::verify::{EvidenceVerifier, Refusal};

/// Namespace of attestation policies in the store.
pub const POLICY_NAMESPACE: &str = "attestation_service_policy";
/// Namespace of reference values in the store.
pub const REFERENCE_NAMESPACE: &str = "reference_value";
/// Seconds for which the key that signs is published at a time; it is published anew after half of that.
const PUBLISHED: i64 = 24 * 3600;

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
    broker: TokenBroker,
    key_file: Option<KeyFile>,
    /// Days after which reference values end when nobody says otherwise.
    default_days: Option<u32>,
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

/// Where the key that signs is kept.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// PKCS#8 PEM, mode 0600.
    pub path: PathBuf,
    /// Certificates for it (PEM), put into tokens as `x5c`.
    pub certificates: Option<PathBuf>,
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
        let state = State::new(store).await?;
        let service = Self {
            state,
            verifier,
            devices: Devices::default(),
            endorser: None,
            broker,
            key_file: None,
            default_days: None,
        };
        service.publish_keys().await?;
        Ok(service)
    }

    /// Keeps the key that signs in a file: [`AttestationService::rotate_key`] writes there, [`AttestationService::reload`] reads it.
    ///
    /// # Errors
    /// When the certificates cannot be read or are for another key.
    pub async fn with_key_file(mut self, file: KeyFile) -> Result<Self, ServiceError> {
        self.key_file = Some(file);
        self.read_key_file().await?;
        Ok(self)
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

    /// Checks a token of this service, also one that a retired key or another replica signed.
    ///
    /// # Errors
    /// Why it is not good.
    pub fn verify_token(&self, token: &str, now: i64) -> Result<Value, TokenError> {
        self.broker.verify(token, now)
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

    /// Reads the key file again. Another key in it retires the one that signed.
    async fn read_key_file(&self) -> Result<(), ServiceError> {
        let Some(file) = &self.key_file else { return Ok(()) };
        let fail = |why: String| ServiceError::SigningKey { path: file.path.display().to_string(), why };
        let pem = read_secret(&file.path).map_err(|e| fail(e.to_string()))?;
        let key = SigningKey::from_pem(&pem).map_err(|e| fail(e.to_string()))?;
        let certificates = match &file.certificates {
            None => Vec::new(),
            Some(path) => std::fs::read(path).map_err(|e| fail(format!("{}: {e}", path.display())))?,
        };
        let old = self.broker.signing_jwk();
        let same = key.jwk().get("kid") == old.get("kid");
        if same && certificates.is_empty() {
            return Ok(());
        }
        if !same {
            self.retire(old).await?;
        }
        Ok(self.broker.replace(key, &certificates)?)
    }

    /// Signs with a new key from now on. The old one is published until what it signed has expired. `algorithm` is that of the
    /// old key when not given. Gives the new public key.
    ///
    /// # Errors
    /// When the key cannot be made or kept; the old one then signs on.
    pub async fn rotate_key(&self, algorithm: Option<&str>) -> Result<Value, ServiceError> {
        let _change = self.state.change().await;
        let old = self.broker.signing_jwk();
        let algorithm =
            algorithm.unwrap_or_else(|| old.get("alg").and_then(Value::as_str).unwrap_or("ES256"));
        let pem = SigningKey::generate_pem(algorithm).map_err(TokenError::from)?;
        let key = SigningKey::from_pem(pem.as_bytes()).map_err(TokenError::from)?;
        let jwk = key.jwk();
        if let Some(file) = &self.key_file {
            if file.certificates.is_some() {
                return Err(ServiceError::Request(
                    "the key has certificates: put a new key and new certificates into their files and send SIGHUP"
                        .to_owned(),
                ));
            }
            replace_secret(&file.path, pem.as_bytes())?;
        }
        // Published before it signs, so that no token is of a key that others do not know yet.
        self.put_key(jwk.clone(), false, PUBLISHED).await?;
        self.retire(old).await?;
        self.broker.replace(key, b"")?;
        self.state.commit(Vec::new(), Vec::new()).await?;
        self.publish_keys().await?;
        let kid = jwk.get("kid").and_then(Value::as_str);
        info!(kid, "token key rotated");
        Ok(jwk)
    }

    async fn retire(&self, jwk: Value) -> Result<(), ServiceError> {
        self.put_key(jwk, true, self.broker.lifetime() + LEEWAY).await
    }

    async fn put_key(&self, jwk: Value, retired: bool, seconds: i64) -> Result<(), ServiceError> {
        let key = PublishedKey { jwk, until: crate::now() + seconds, retired };
        let bytes = serde_json::to_vec(&key).map_err(|e| ServiceError::Request(e.to_string()))?;
        Ok(self.state.store.put(KEY_NAMESPACE, key.kid(), &bytes).await?)
    }

    /// Publishes the keys that are in the store, and puts ours there while it signs.
    async fn publish_keys(&self) -> Result<(), ServiceError> {
        let (now, current) = (crate::now(), self.state.current().await?);
        let ours = self.broker.signing_jwk();
        let kid = ours.get("kid").and_then(Value::as_str).unwrap_or_default().to_owned();
        let known = current.keys.iter().find(|key| key.kid() == kid);
        if !known.is_some_and(|key| !key.retired && key.until > now + PUBLISHED / 2) {
            self.put_key(ours, false, PUBLISHED + self.broker.lifetime() + LEEWAY).await?;
            self.state.commit(Vec::new(), Vec::new()).await?;
        }
        let current = self.state.current().await?;
        for old in current.keys.iter().filter(|key| key.until <= now) {
            self.state.store.delete(KEY_NAMESPACE, old.kid()).await?;
        }
        self.broker.publish(current.keys.iter().filter(|key| key.until > now).cloned().collect());
        Ok(())
    }
}

/// Writes a secret beside the old one and puts it in its place at once: a crash leaves one or the other.
fn replace_secret(path: &Path, secret: &[u8]) -> Result<(), ServiceError> {
    let fail = |why: String| ServiceError::SigningKey { path: path.display().to_string(), why };
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", uuid::Uuid::new_v4().simple()));
    let beside = PathBuf::from(name);
    write_secret(&beside, secret).map_err(|e| fail(e.to_string()))?;
    std::fs::rename(&beside, path).map_err(|e| {
        let _ = std::fs::remove_file(&beside);
        fail(e.to_string())
    })
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
        // Each trusts what the other signed, and what it signed before its key was rotated.
        let before = one.evaluate(&request(&bound, &bound)).await.unwrap().token;
        one.rotate_key(None).await.unwrap();
        let after = one.evaluate(&request(&bound, &bound)).await.unwrap().token;
        other.reload().await.unwrap();
        for token in [&before, &after] {
            one.verify_token(token, crate::now()).unwrap();
            other.verify_token(token, crate::now()).unwrap();
        }
        assert_eq!(other.jwks()["keys"].as_array().unwrap().len(), 3);
        let late = crate::now() + 10 * 60;
        assert!(matches!(other.verify_token(&before, late), Err(TokenError::Jws(JwsError::UnknownKey))));
    }

    #[tokio::test]
    async fn the_key_file_is_replaced_whole_and_stays_ours() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token.key");
        let key = signing_key(&path, "ES256").unwrap();
        let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
        let verifier = Box::new(SampleVerifier { enabled: true });
        let broker = TokenBroker::new(key, "test", 5);
        let service = AttestationService::new(store, verifier, broker).await.unwrap();
        let file = KeyFile { path: path.clone(), certificates: None };
        let service = service.with_key_file(file).await.unwrap();
        let old = service.jwks()["keys"][0]["kid"].clone();
        let new = service.rotate_key(Some("EdDSA")).await.unwrap();
        assert_eq!(service.jwks()["keys"][0]["kid"], new["kid"]);
        assert_ne!(new["kid"], old);
        assert_eq!(signing_key(&path, "ES256").unwrap().jwk()["kid"], new["kid"]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        // A file that cannot be used changes nothing.
        std::fs::write(&path, "damaged").unwrap();
        assert!(matches!(service.reload().await, Err(ServiceError::SigningKey { .. })));
        assert_eq!(service.jwks()["keys"][0]["kid"], new["kid"]);
    }
}
