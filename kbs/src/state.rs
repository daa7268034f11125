//! Everything that the handlers share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use kata_cc_attestation_service::api::Api;
use kata_cc_attestation_service::follow::{Follower, ResourcePolicyPlace};
use kata_cc_attestation_service::rest;
use kata_cc_attestation_service::service::{AttestationService, KeyFile, signing_key};
use kata_cc_attestation_service::token::{TokenBroker, TokenError, TokenVerifier};
use kata_cc_attestation_service::verify::{SampleVerifier, Verifiers};
use kata_cc_endorsements::Endorser;
use kata_cc_store::Store;
use serde_json::Value;
use tracing::warn;

use crate::admin::AdminGate;
use crate::config::{AuthorizationMode, Config};
use crate::error::ApiError;
use crate::limits::{Budget, Rate};
use crate::metrics::Metrics;
use crate::plugins::Plugins;
use crate::plugins::registry::{Context, open_token};
use crate::policy::{self, ResourcePolicy};
use crate::reload::Settings;
use crate::session::Sessions;
use crate::storage;
use crate::tokens::{KnownToken, KnownTokens};

/// Shared state.
pub(crate) struct Kbs {
    pub(crate) store: Store,
    pub(crate) service: Arc<AttestationService>,
    /// Its interface, for administrators.
    pub(crate) attestation: axum::Router,
    /// Its parts, among them whose keys may sign reference values.
    pub(crate) attestation_api: Arc<Api>,
    pub(crate) policy: ResourcePolicy,
    pub(crate) sessions: Sessions,
    /// Tokens that were shown lately.
    known: KnownTokens,
    /// Keys of others whose tokens are trusted.
    pub(crate) tokens: TokenVerifier,
    pub(crate) gate: ArcSwap<AdminGate>,
    pub(crate) metrics: Metrics,
    pub(crate) plugins: Plugins,
    /// What a reload may change.
    pub(crate) settings: ArcSwap<Settings>,
    /// Requests that each peer may make.
    pub(crate) requests: Budget,
    /// Refused administrators that each peer may have.
    pub(crate) failures: Budget,
    /// Records of an address in whose name nobody attested.
    pub(crate) strangers: Budget,
    /// Whether the process is about to end.
    pub(crate) draining: AtomicBool,
    /// Seconds that a session lives.
    pub(crate) session_seconds: i64,
    /// JSON pointers to the guest's key in a token.
    pub(crate) key_paths: Vec<String>,
    /// Most bytes of a request.
    pub(crate) max_request: usize,
}

/// Where Trustee's tokens, of all ages, name the guest's key.
const KEY_PATHS: [&str; 5] = [
    "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey",
    "/tdx/attester_runtime_data/tee-pubkey",
    "/tdx/attester_user_data/tee-pubkey",
    "/customized_claims/runtime_data/tee-pubkey",
    "/tee-pubkey",
];

impl Kbs {
    /// The policy bundle's source, where one is followed.
    pub(crate) fn follower(&self) -> Option<&Arc<Follower>> {
        self.attestation_api.follower.get()
    }

    /// Takes up a resource policy that the policy source has put into the store.
    pub(crate) async fn take_resource_policy(&self) {
        if let Err(why) = self.policy.refresh().await {
            warn!(%why, "the stored resource policy cannot be taken into use, the one before stays");
        }
    }

    /// Claims of an attestation token: of ours, also where another replica or a key that was retired signed it, or of one that a
    /// trusted key set vouches for.
    fn check_token(&self, token: &str, now: i64) -> Result<Value, TokenError> {
        let own = self.service.broker().verify(token, now);
        own.or_else(|own| self.tokens.verify(token, now).map_err(|_| own))
    }

    /// The same; when nobody vouches for the key of the token, after a look whether another replica published it a moment ago.
    pub(crate) async fn verify_token(&self, token: &str, now: i64) -> Result<Value, TokenError> {
        match self.check_token(token, now) {
            Err(_) if self.service.learn_key(token, now).await => self.check_token(token, now),
            known => known,
        }
    }

    /// A token that is good, read; remembered until it expires or the keys change.
    pub(crate) async fn known_token(&self, token: &str, now: i64) -> Result<Arc<KnownToken>, ApiError> {
        match self.read_token(token, now) {
            Err(_) if self.service.learn_key(token, now).await => self.read_token(token, now),
            read => read,
        }
    }

    fn read_token(&self, token: &str, now: i64) -> Result<Arc<KnownToken>, ApiError> {
        let keys = self.service.broker().key_set(now);
        self.known.get(token, now, keys, || {
            let claims = self.check_token(token, now).map_err(|e| ApiError::TokenVerifier(e.to_string()))?;
            KnownToken::new(token, claims, &self.key_paths)
        })
    }

    /// Opens store and keys, compiles policies.
    pub(crate) async fn new(config: &Config) -> anyhow::Result<Arc<Self>> {
        let token = open_token(&config.plugins, &config.base).await?;
        let store = storage::open_by(config, token.as_deref()).await?;
        let broker = &config.attestation_service.attestation_token_broker;
        let signer = &broker.signer;
        let key = signing_key(&config.path(&signer.key_path), &signer.algorithm)?;
        let broker = TokenBroker::new(key, &broker.issuer_name, broker.duration_min);
        let endorser = endorser(config)?;
        let verifiers = verifiers(config, endorser.clone())?;
        let key_file = KeyFile { path: config.path(&signer.key_path), certificates: None };
        let service = AttestationService::new(store.clone(), Box::new(verifiers), broker)
            .await?
            .with_endorser(endorser)
            .with_default_days(config.attestation_service.reference_values.default_days)
            .with_key_file(key_file)
            .await?;
        let service = Arc::new(service);
        // Who may call it is decided here, by our own gate.
        let mut api =
            Api::new(Arc::clone(&service), kata_cc_attestation_service::gate::AdminGate::closed()).await?;
        api.sources.store(Arc::new(config.attestation_service.reference_values.sources(&config.base)?));
        api.public_url.clone_from(&config.http_server.public_url);
        let api = Arc::new(api);
        let mut tokens = TokenVerifier::default();
        for uri in &config.attestation_token.trusted_jwk_sets {
            let set = serde_json::from_slice(&config.read_uri(uri)?)?;
            anyhow::ensure!(tokens.trust_jwks(&set) > 0, "{uri} holds no key that can be used");
        }
        if config.admin.authorization_mode == AuthorizationMode::InsecureAllowAll {
            warn!(
                "everybody who reaches this key broker is administrator: [admin] authorization_mode is InsecureAllowAll"
            );
        }
        let extra = config.attestation_token.extra_teekey_paths.iter().cloned();
        let metrics = Metrics::new();
        let context = Context { base: config.base.clone(), store: Arc::new(store.clone()), token };
        let plugins = Plugins::load(&config.plugins, &context, metrics.plugins.clone()).await?;
        follow(config, &api, &metrics)?;
        Ok(Arc::new(Self {
            policy: ResourcePolicy::load(store.clone()).await?,
            gate: ArcSwap::from_pointee(AdminGate::new(config)?),
            settings: ArcSwap::from_pointee(Settings::of(config)),
            requests: Budget::new(config.limits.requests()),
            failures: Budget::new(config.limits.failures()),
            strangers: Budget::new(Rate { per_second: 1.0 / 60.0, burst: 1.0 }),
            draining: AtomicBool::new(false),
            sessions: Sessions::new(store.sessions()),
            known: KnownTokens::default(),
            metrics,
            plugins,
            session_seconds: i64::from(config.attestation_service.timeout) * 60,
            key_paths: extra.chain(KEY_PATHS.map(str::to_owned)).collect(),
            max_request: (config.http_server.payload_request_size as usize) << 20,
            tokens,
            attestation: rest::router(Arc::clone(&api)),
            attestation_api: api,
            service,
            store,
        }))
    }
}

/// Gives the interface the policy bundle's source, where one is configured.
fn follow(config: &Config, api: &Api, metrics: &Metrics) -> anyhow::Result<()> {
    let Some(followed) = &config.policy_source else { return Ok(()) };
    let source = followed.source(&config.base)?;
    if !source.is_signed() {
        warn!(%source, "the policy source is not signed: whoever can write there decides who gets secrets");
    }
    let place =
        ResourcePolicyPlace { namespace: policy::NAMESPACE, name: policy::NAME, default: policy::DEFAULT };
    let service = Arc::clone(&api.service);
    let follower =
        Follower::new(service, source, followed.every(), Some(place), metrics.policy_source.clone());
    // Nobody else sets it.
    let _ = api.follower.set(Arc::new(follower));
    Ok(())
}

fn endorser(config: &Config) -> anyhow::Result<Option<Arc<Endorser>>> {
    let Some(endorsements) = &config.endorsements else { return Ok(None) };
    Ok(Some(Arc::new(endorsements.clone().resolve(&config.base).build()?)))
}

fn verifiers(config: &Config, endorser: Option<Arc<Endorser>>) -> anyhow::Result<Verifiers> {
    let attestation = &config.attestation;
    let mut verifier =
        kata_cc_verifier::VerifierConfig { max_vmpl: attestation.max_vmpl, ..Default::default() };
    verifier.snp.settings = attestation.snp.clone();
    verifier.tdx.settings = attestation.tdx.clone();
    verifier.snp.endorsements = endorser.clone().map(|endorser| endorser as _);
    verifier.tdx.collateral = endorser.map(|endorser| endorser as _);
    if let Some(simulated) = &attestation.simulated {
        let path = config.path(&simulated.trust_anchor);
        let anchor = std::fs::read(&path)
            .map_err(|e| anyhow::anyhow!("simulated trust anchor {} cannot be read: {e}", path.display()))?;
        verifier
            .add_simulated_roots(&anchor)
            .map_err(|e| anyhow::anyhow!("simulated trust anchor {}: {e}", path.display()))?;
        warn!(anchor = %path.display(), "simulated evidence is accepted: it protects nothing");
    }
    if attestation.allow_sample {
        warn!("sample evidence is accepted: anybody can make it up");
    }
    Ok(Verifiers { config: verifier, sample: SampleVerifier { enabled: attestation.allow_sample } })
}
