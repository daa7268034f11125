//! What the REST and the gRPC interface have in common: the parts, and how requests are read.

use std::sync::Arc;
use std::time::Duration;

use kata_cc_kbs_protocol::rcar::HashAlgorithm;
use kata_cc_kbs_protocol::service::{InitDataInput, RuntimeDataInput};
use kata_cc_kbs_protocol::{Tee, from_base64_url};
use serde_json::Value;
use tracing::info;

use crate::challenge::{ChallengeError, Challenges};
use crate::follow::Follower;
use crate::gate::AdminGate;
use crate::metrics::Metrics;
use crate::problem::Problem;
use crate::service::{AttestationService, Binding, Evaluate, ExpectedInitData, ServiceError, Verdict};
use crate::sources::Sources;

/// The parts of a running service.
#[derive(Debug)]
pub struct Api {
    /// The service.
    pub service: Arc<AttestationService>,
    /// Who may change it.
    pub gate: AdminGate,
    /// Keys that may sign reference values, by the configuration; the policy bundle in force may name more.
    pub sources: arc_swap::ArcSwap<Sources>,
    /// The policy bundle's source, where one is followed.
    pub follower: std::sync::OnceLock<Arc<Follower>>,
    /// Nonces.
    pub challenges: Challenges,
    /// Metrics.
    pub metrics: Metrics,
    /// Address under which clients reach it, for the metadata; relative where it is not configured.
    pub public_url: Option<String>,
    /// Time of a request.
    pub request_time: Duration,
}

impl Api {
    /// With nobody trusted but who passes `gate`.
    ///
    /// # Errors
    /// When there are no random numbers, or the store fails.
    pub async fn new(service: Arc<AttestationService>, gate: AdminGate) -> Result<Self, ServiceError> {
        let challenges =
            Challenges::open(service.state.store.clone()).await.map_err(|error| match error {
                ChallengeError::Store(error) => ServiceError::Store(error),
                _ => ServiceError::Random,
            })?;
        Ok(Self {
            service,
            gate,
            sources: arc_swap::ArcSwap::default(),
            follower: std::sync::OnceLock::new(),
            challenges,
            metrics: Metrics::default(),
            public_url: None,
            request_time: Duration::from_secs(25),
        })
    }

    /// Keys that may sign reference values, of configuration and policy bundle.
    pub fn trusted_sources(&self) -> Arc<Sources> {
        let (own, owned) = (self.sources.load_full(), self.service.owned.load());
        if owned.trusted.is_empty() {
            return own;
        }
        let mut sources = Sources::clone(&own);
        sources.trusted.extend(owned.trusted.iter().cloned());
        Arc::new(sources)
    }

    /// The policy bundle's source.
    ///
    /// # Errors
    /// When none is followed.
    pub fn follower(&self) -> Result<&Arc<Follower>, ServiceError> {
        let none = || {
            ServiceError::NotFound("a policy source (section policy_source of the configuration)".to_owned())
        };
        self.follower.get().ok_or_else(none)
    }

    /// Who the administrator is that `token` (a bearer token) speaks for. Leaves a trace.
    ///
    /// # Errors
    /// When it speaks for none.
    pub fn admin(&self, token: Option<&str>, action: &'static str) -> Result<String, ServiceError> {
        match self.gate.check_token(token, crate::now()) {
            Ok(who) => {
                info!(action, who, "admin");
                Ok(who)
            }
            Err(why) => {
                info!(action, %why, "admin refused");
                Err(ServiceError::Admin(why))
            }
        }
    }

    /// Evaluates, counts and logs.
    ///
    /// # Errors
    /// Why the evidence was refused.
    pub async fn evaluate(&self, requests: &[Evaluate]) -> Result<Verdict, ServiceError> {
        let tee = requests.first().map_or(Tee::Sample, |request| request.tee);
        match self.service.evaluate_all(requests).await {
            Ok(verdict) => {
                self.metrics.verdict(tee, verdict.status().name(), verdict.timings);
                log(&verdict);
                Ok(verdict)
            }
            Err(error) => {
                self.metrics.refusal(tee, &error);
                let refusal = match &error {
                    ServiceError::Refused(refusal) => Some(refusal),
                    _ => None,
                };
                info!(
                    %tee, status = "refused", reason = refusal.map(|r| r.reason.name()),
                    claim = refusal.and_then(|r| r.claim.as_deref()), seen = refusal.and_then(|r| r.seen.as_deref()),
                    expected = refusal.and_then(|r| r.expected.as_deref()), %error,
                    what_to_do = refusal.map(|r| r.reason.what_to_do()), request_id = request_id(), "verdict"
                );
                Err(error)
            }
        }
    }
}

fn request_id() -> String {
    crate::problem::CURRENT_REQUEST.try_with(Clone::clone).unwrap_or_default()
}

/// One line for each submod, and one for each comparison that failed.
fn log(verdict: &Verdict) {
    let id = request_id();
    for submod in &verdict.submods {
        let (tee, submod_name) = (submod.tee, &submod.name);
        info!(
            %tee, submod = submod_name, status = submod.vector.status().name(), measurement = submod.measurement,
            request_id = id, failed = submod.findings.len(), checks = submod.explanation.len(), "verdict"
        );
        let failed = submod.explanation.iter().filter(|check| !check.ok);
        for check in failed.take(crate::ear::MAX_FINDINGS) {
            info!(
                %tee, submod = submod_name, rule = check.rule, claim = check.claim, seen = %check.seen,
                expected = %check.expected, policy = check.policy.id, policy_digest = check.policy.digest,
                reference = check.reference.as_ref().map(|r| r.name.as_str()),
                reference_state = check.reference.as_ref().map(|r| r.state.as_str()),
                reference_source = check.reference.as_ref().and_then(|r| r.source.as_ref()).map(ToString::to_string),
                what_to_do = check.what_to_do, request_id = id, "check failed"
            );
        }
    }
}

fn base64_url(field: &str, text: &str) -> Result<Vec<u8>, Problem> {
    from_base64_url(text)
        .ok_or_else(|| Problem::request(field, format!("{field} is not base64url without padding")))
}

/// Reads a policy that travels as base64url.
pub fn policy_text(encoded: &str) -> Result<String, Problem> {
    String::from_utf8(base64_url("policy", encoded)?)
        .map_err(|_| Problem::request("policy", "policy is not UTF-8 text"))
}

/// Reads evidence that travels as base64url of JSON.
pub fn evidence(encoded: &str) -> Result<Value, Problem> {
    serde_json::from_slice(&base64_url("evidence", encoded)?)
        .map_err(|e| Problem::request("evidence", format!("evidence is not JSON: {e}")))
}

/// Hash by its name; sha384 where there is none.
pub fn hash(name: Option<&str>) -> Result<HashAlgorithm, Problem> {
    match name.filter(|name| !name.is_empty()) {
        None => Ok(HashAlgorithm::Sha384),
        Some(name) => HashAlgorithm::from_name(name).ok_or_else(|| {
            let name: String = name.chars().take(32).collect();
            let why = format!("unknown hash {name:?}, known are sha256, sha384, sha512");
            Problem::request("runtime_data_hash_algorithm", why)
        }),
    }
}

/// What the report data has to bind.
pub fn binding(input: Option<&RuntimeDataInput>) -> Result<Option<Binding>, Problem> {
    Ok(match input {
        None => None,
        Some(RuntimeDataInput::Raw(text)) => Some(Binding::Raw(base64_url("runtime_data", text)?)),
        Some(RuntimeDataInput::Structured(value)) => Some(Binding::Structured(value.clone())),
    })
}

/// What the init-data field has to hold.
pub fn init_data(input: Option<&InitDataInput>) -> Result<Option<ExpectedInitData>, Problem> {
    Ok(match input {
        None => None,
        Some(InitDataInput::InitDataToml(text)) => Some(ExpectedInitData::Toml(text.clone())),
        Some(InitDataInput::InitDataDigest(text)) => {
            Some(ExpectedInitData::Digest(base64_url("init_data_digest", text)?))
        }
    })
}
