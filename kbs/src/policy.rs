//! The resource policy: who may have which resource.
//!
//! Rego, package `policy`; `data.policy.allow` must be true, anything else is a denial. `input` is the token's claims, `data`
//! is `{"plugin", "resource-path", "query"}`. Ours: texts in `data.policy.reasons` are told to the guest on a denial,
//! together with what the attestation policy found. A dry run evaluates in the same way and releases nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use kata_cc_attestation_service::ear::{FINDINGS, Finding};
use kata_cc_attestation_service::service::Mark;
use kata_cc_attestation_service::store::{Applied, Change, Store};
use kata_cc_kbs_protocol::admin::ResourcePolicyVerdict;
use kata_cc_policy::engine::{Document, EngineError, Limits, Program};
use kata_cc_store::Write;
use kata_cc_store::audit::Record;
use serde_json::{Value, json};
use tokio::sync::RwLock;

use crate::error::ApiError;

/// Namespace of the policy in the store.
pub(crate) const NAMESPACE: &str = "kbs";
/// Its name there.
pub(crate) const NAME: &str = "resource-policy";
/// The built-in one.
pub(crate) const DEFAULT: &str = include_str!("default_resource_policy.rego");
/// Most reasons in an answer.
const MAX_REASONS: usize = 8;

/// A compiled text, and which text that was.
#[derive(Debug)]
struct Compiled {
    program: Program,
    digest: String,
}

fn compile(text: &str) -> Result<Compiled, EngineError> {
    let program = Program::compile(NAME, text, &Limits::default())?;
    Ok(Compiled { program, digest: digest(text) })
}

/// SHA-256 of a policy's text in hex, by which logs name it.
fn digest(text: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the policy says, and why.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    /// Whether the guest may have it.
    pub(crate) allow: bool,
    /// A denial in words.
    pub(crate) explanation: String,
    /// Digest of the policy's text.
    pub(crate) digest: String,
    reasons: Vec<String>,
    prints: Vec<String>,
}

/// The policy in force.
pub(crate) struct ResourcePolicy {
    store: Store,
    program: RwLock<Arc<Compiled>>,
}

impl ResourcePolicy {
    /// Takes the stored policy, or the default one.
    pub(crate) async fn load(store: Store) -> Result<Self, ApiError> {
        let policy = Self { program: RwLock::new(Arc::new(compile(DEFAULT).map_err(parse)?)), store };
        policy.refresh().await?;
        Ok(policy)
    }

    /// Takes what another replica has set. A stored text was compiled before, so one that does not is an error of ours.
    pub(crate) async fn refresh(&self) -> Result<(), ApiError> {
        let (text, _) = self.text().await?;
        if self.program.read().await.digest != digest(&text) {
            let program = Arc::new(compile(&text).map_err(parse)?);
            *self.program.write().await = program;
        }
        Ok(())
    }

    /// Text, and whether it is the built-in one.
    pub(crate) async fn text(&self) -> Result<(String, bool), ApiError> {
        Ok(match self.store.get(NAMESPACE, NAME).await? {
            Some(text) => (String::from_utf8_lossy(&text).into_owned(), false),
            None => (DEFAULT.to_owned(), true),
        })
    }

    /// Whether a text could be set.
    pub(crate) fn compiles(&self, text: &str) -> Result<(), ApiError> {
        compile(text).map(drop).map_err(parse)
    }

    /// Replaces the policy, if it compiles, and puts `record` into the audit log; the older ones are kept as versions.
    pub(crate) async fn set(&self, text: &str, who: &str, record: Record) -> Result<(), ApiError> {
        let program = Arc::new(compile(text).map_err(parse)?);
        let mut current = self.program.write().await;
        let write = Write { value: text.as_bytes(), content_type: "text/x-rego", who };
        // Other replicas look at the one mark of the store, not at this policy.
        let mark = Mark::new()?;
        let changes = [Change::version(NAMESPACE, NAME, write), mark.change()];
        // Nothing is expected or removed: a version is added to whatever there is.
        let Applied::Done = self.store.apply(&changes, vec![record]).await? else {
            return Err(ApiError::Internal("the policy was not stored".to_owned()));
        };
        *current = program;
        Ok(())
    }

    /// Whether a guest with these claims may have `path` of `plugin`.
    pub(crate) async fn decide(
        &self,
        claims: &Document,
        plugin: &str,
        path: &[String],
        query: &BTreeMap<String, String>,
    ) -> Result<Decision, ApiError> {
        let program = Arc::clone(&*self.program.read().await);
        program.decide(claims, plugin, path, query)
    }

    /// What `text`, or the policy in force, would say.
    pub(crate) async fn dry_run(
        &self,
        text: Option<&str>,
        claims: &Value,
        plugin: &str,
        path: &[String],
        query: &BTreeMap<String, String>,
    ) -> Result<ResourcePolicyVerdict, ApiError> {
        let program = match text {
            Some(text) => Arc::new(compile(text).map_err(parse)?),
            None => Arc::clone(&*self.program.read().await),
        };
        // Here a policy that fails is the caller's.
        let decision =
            program.decide(&claims.clone().into(), plugin, path, query).map_err(|error| match error {
                ApiError::PolicyEngine(why) => ApiError::ParsePolicy(why),
                other => other,
            })?;
        Ok(ResourcePolicyVerdict {
            allow: decision.allow,
            explanation: decision.explanation,
            reasons: decision.reasons,
            prints: decision.prints,
            policy_digest: decision.digest,
        })
    }
}

impl Compiled {
    fn decide(
        &self,
        claims: &Document,
        plugin: &str,
        path: &[String],
        query: &BTreeMap<String, String>,
    ) -> Result<Decision, ApiError> {
        let data = json!({"plugin": plugin, "resource-path": path, "query": query}).into();
        let run = |rule: &str| self.program.evaluate_document(&format!("data.policy.{rule}"), claims, &data);
        let asked = run("allow").map_err(|e| ApiError::PolicyEngine(e.to_string()))?;
        let (allow, prints, digest) = (asked.is_true(), asked.prints, self.digest.clone());
        if allow {
            let explanation = format!("rule data.policy.allow of {NAME} holds for {}", uri(plugin, path));
            return Ok(Decision { allow, explanation, digest, reasons: Vec::new(), prints });
        }
        let reasons = run("reasons").ok().and_then(|evaluation| evaluation.value);
        let reasons = reasons.as_ref().and_then(Value::as_array).into_iter().flatten();
        let reasons = reasons.filter_map(Value::as_str).take(MAX_REASONS);
        let reasons: Vec<String> = reasons.map(|r| r.chars().take(300).collect()).collect();
        let explanation = explain(plugin, path, &claims.to_json(), &reasons);
        Ok(Decision { allow, explanation, digest, reasons, prints })
    }
}

fn parse(error: EngineError) -> ApiError {
    ApiError::ParsePolicy(error.to_string())
}

/// Address of what is asked for.
fn uri(plugin: &str, path: &[String]) -> String {
    let scheme = if plugin == "resource" { "kbs".to_owned() } else { format!("kbs+{plugin}") };
    format!("{scheme}:///{}", path.join("/"))
}

fn explain(plugin: &str, path: &[String], claims: &Value, reasons: &[String]) -> String {
    let mut parts = vec![format!("rule data.policy.allow of {NAME} does not hold for {}", uri(plugin, path))];
    parts.extend_from_slice(reasons);
    let cpu = &claims["submods"]["cpu0"];
    if let Some(status) = cpu["ear.status"].as_str() {
        parts.push(format!("the guest is {status}"));
    }
    let findings = cpu[FINDINGS].as_array().into_iter().flatten();
    let findings = findings.filter_map(|f| serde_json::from_value::<Finding>(f.clone()).ok());
    parts.extend(findings.take(MAX_REASONS).map(|f| f.to_string()));
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_attestation_service::store::StoreKey;
    use kata_cc_kbs_protocol::ResourcePath;

    async fn set(policy: &ResourcePolicy, text: &str) -> Result<(), ApiError> {
        policy.set(text, "me", Record::new(kata_cc_store::audit::Kind::Admin)).await
    }

    /// A guest that asks for a resource.
    async fn check(policy: &ResourcePolicy, claims: &Value, path: &ResourcePath) -> Result<(), ApiError> {
        let segments = path.segments().map(str::to_owned);
        let decision = policy.decide(&claims.clone().into(), "resource", &segments, &BTreeMap::new()).await?;
        if decision.allow {
            return Ok(());
        }
        Err(ApiError::PolicyDeny { why: decision.explanation, checks: Vec::new() })
    }

    fn claims(tee: &str, status: &str) -> Value {
        json!({"submods": {"cpu0": {"ear.status": status, "ear.veraison.annotated-evidence": {tee: {"x": 1}}}}})
    }

    #[tokio::test]
    async fn the_default_wants_real_and_affirming_evidence() {
        let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
        let policy = ResourcePolicy::load(store).await.unwrap();
        let path = ResourcePath::new("a", "b", "c").unwrap();
        check(&policy, &claims("snp", "affirming"), &path).await.unwrap();
        for (tee, status, expected) in [
            ("snp", "warning", "ear.status is warning"),
            ("sim-snp", "affirming", "the evidence is sim-snp"),
            ("sample", "affirming", "the evidence is sample"),
        ] {
            let error = check(&policy, &claims(tee, status), &path).await.unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("data.policy.allow"), "{error}");
        }
        assert!(check(&policy, &json!({}), &path).await.is_err());
        // No init-data at all, and init-data that the attestation policy does not know.
        let why = async |claims: &Value| check(&policy, claims, &path).await.unwrap_err().to_string();
        let mut none = claims("snp", "affirming");
        none["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["init_data"] = json!("0".repeat(64));
        assert!(why(&none).await.contains("launched without any"));
        let mut other = claims("snp", "warning");
        let cpu = &mut other["submods"]["cpu0"];
        cpu["ear.veraison.annotated-evidence"]["init_data"] = json!("ee");
        cpu[FINDINGS] =
            json!([{"claim": "init_data", "seen": "ee", "expected": ["1d"], "reference": "init_data"}]);
        assert!(
            why(&other).await.contains("init-data ee, which must be among the reference values init_data")
        );
    }

    #[tokio::test]
    async fn the_policy_of_the_documentation_binds_a_key_to_an_init_data() {
        let page = include_str!("../../docs/security.md");
        let (_, text) = page.split_once("```rego\n# resource policy\n").unwrap();
        let (text, _) = text.split_once("```").unwrap();
        let policy =
            ResourcePolicy::load(Store::in_memory(StoreKey::ephemeral()).await.unwrap()).await.unwrap();
        set(&policy, text).await.unwrap();
        let claims = |tee: &str, status: &str, init_data: &str| {
            let mut claims = claims(tee, status);
            claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["init_data"] = json!(init_data);
            claims
        };
        let key = ResourcePath::new("shop", "image-key", "1").unwrap();
        let owner = "0".repeat(64);
        check(&policy, &claims("snp", "affirming", &owner), &key).await.unwrap();
        let other = check(&policy, &claims("snp", "affirming", &"1".repeat(64)), &key).await.unwrap_err();
        assert!(other.to_string().contains("does not own this resource"), "{other}");
        assert!(check(&policy, &claims("snp", "warning", &owner), &key).await.is_err());
        assert!(check(&policy, &claims("sim-snp", "affirming", &owner), &key).await.is_err());
        let unowned = ResourcePath::new("shop", "image-key", "2").unwrap();
        assert!(check(&policy, &claims("snp", "affirming", &owner), &unowned).await.is_err());
    }

    #[tokio::test]
    async fn a_policy_is_stored_when_it_compiles() {
        let store = Store::in_memory(StoreKey::ephemeral()).await.unwrap();
        let policy = ResourcePolicy::load(store.clone()).await.unwrap();
        let path = ResourcePath::new("a", "b", "c").unwrap();
        assert!(set(&policy, "package policy\nallow if {").await.is_err());
        assert!(policy.text().await.unwrap().1);
        set(&policy, "package policy\nallow if data[\"resource-path\"][2] == \"c\"").await.unwrap();
        check(&policy, &json!({}), &path).await.unwrap();
        let again = ResourcePolicy::load(store).await.unwrap();
        check(&again, &json!({}), &path).await.unwrap();
        assert!(check(&again, &json!({}), &ResourcePath::new("a", "b", "d").unwrap()).await.is_err());
        // Trying changes nothing.
        let path_c = ["a", "b", "c"].map(str::to_owned);
        let text = "package policy\nallow if data.query.x == \"1\"\nreasons contains \"x is not 1\" if { print(\"hm\"); data.query.x != \"1\" }";
        let tried = async |text: Option<&str>, x: &str| {
            let query = BTreeMap::from([("x".to_owned(), x.to_owned())]);
            policy.dry_run(text, &json!({}), "resource", &path_c, &query).await
        };
        let verdict = tried(Some(text), "1").await.unwrap();
        assert!(verdict.allow && verdict.explanation.contains("holds for kbs:///a/b/c"), "{verdict:?}");
        let verdict = tried(Some(text), "2").await.unwrap();
        assert!(!verdict.allow && verdict.reasons == ["x is not 1"], "{verdict:?}");
        assert_eq!(verdict.policy_digest, digest(text));
        assert!(tried(None, "2").await.unwrap().allow);
        assert!(tried(Some("package policy\nallow if {"), "1").await.is_err());
        check(&policy, &json!({}), &path).await.unwrap();
        // A text "true" is not true.
        set(&policy, "package policy\nallow := \"true\"").await.unwrap();
        assert!(check(&policy, &json!({}), &path).await.is_err());
    }
}
