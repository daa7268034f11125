//! The resource policy: who may have which resource.
//!
//! Rego, package `policy`; `data.policy.allow` must be true, anything else is a denial. `input` is the token's claims, `data`
//! is `{"plugin", "resource-path", "query"}`. Ours: texts in `data.policy.reasons` are told to the guest on a denial,
//! together with what the attestation policy found.

use std::collections::BTreeMap;
use std::sync::Arc;

use kata_cc_attestation_service::ear::{FINDINGS, Finding};
use kata_cc_attestation_service::store::Store;
use kata_cc_policy::engine::{EngineError, Limits, Program};
use serde_json::{Value, json};
use tokio::sync::RwLock;

use crate::error::ApiError;

/// Namespace of the policy in the store.
const NAMESPACE: &str = "kbs";
/// Its name there.
pub(crate) const NAME: &str = "resource-policy";
/// The built-in one.
pub(crate) const DEFAULT: &str = include_str!("default_resource_policy.rego");
/// Most reasons in an answer.
const MAX_REASONS: usize = 8;

fn compile(text: &str) -> Result<Program, EngineError> {
    Program::compile(NAME, text, &Limits::default())
}

/// The policy in force.
pub(crate) struct ResourcePolicy {
    store: Store,
    program: RwLock<Arc<Program>>,
}

impl ResourcePolicy {
    /// Takes the stored policy, or the default one.
    pub(crate) async fn load(store: Store) -> Result<Self, ApiError> {
        let policy = Self { program: RwLock::new(Arc::new(compile(DEFAULT).map_err(parse)?)), store };
        let (text, default) = policy.text().await?;
        if !default {
            *policy.program.write().await = Arc::new(compile(&text).map_err(parse)?);
        }
        Ok(policy)
    }

    /// Text, and whether it is the built-in one.
    pub(crate) async fn text(&self) -> Result<(String, bool), ApiError> {
        Ok(match self.store.get(NAMESPACE, NAME).await? {
            Some(text) => (String::from_utf8_lossy(&text).into_owned(), false),
            None => (DEFAULT.to_owned(), true),
        })
    }

    /// Replaces the policy, if it compiles.
    pub(crate) async fn set(&self, text: &str) -> Result<(), ApiError> {
        let program = compile(text).map_err(parse)?;
        let mut current = self.program.write().await;
        self.store.put(NAMESPACE, NAME, text.as_bytes()).await?;
        *current = Arc::new(program);
        Ok(())
    }

    /// Whether a guest with these claims may have `path` of `plugin`. A denial says why.
    pub(crate) async fn check(
        &self,
        claims: &Value,
        plugin: &str,
        path: &[String],
        query: &BTreeMap<String, String>,
    ) -> Result<(), ApiError> {
        let program = Arc::clone(&*self.program.read().await);
        let data = json!({"plugin": plugin, "resource-path": path, "query": query});
        let run = |rule: &str| program.evaluate(&format!("data.policy.{rule}"), claims, &data);
        let allow = run("allow").map_err(|e| ApiError::PolicyEngine(e.to_string()))?;
        if allow.is_true() {
            return Ok(());
        }
        let reasons = run("reasons").ok().and_then(|e| e.value);
        Err(ApiError::PolicyDeny(explain(plugin, path, claims, reasons.as_ref())))
    }
}

fn parse(error: EngineError) -> ApiError {
    ApiError::ParsePolicy(error.to_string())
}

fn explain(plugin: &str, path: &[String], claims: &Value, reasons: Option<&Value>) -> String {
    let scheme = if plugin == "resource" { "kbs".to_owned() } else { format!("kbs+{plugin}") };
    let uri = format!("{scheme}:///{}", path.join("/"));
    let mut parts = vec![format!("rule data.policy.allow of {NAME} does not hold for {uri}")];
    let reasons = reasons.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    parts.extend(reasons.take(MAX_REASONS).map(|r| r.chars().take(300).collect()));
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

    /// A guest that asks for a resource.
    async fn check(policy: &ResourcePolicy, claims: &Value, path: &ResourcePath) -> Result<(), ApiError> {
        policy.check(claims, "resource", &path.segments().map(str::to_owned), &BTreeMap::new()).await
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
        policy.set(text).await.unwrap();
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
        assert!(policy.set("package policy\nallow if {").await.is_err());
        assert!(policy.text().await.unwrap().1);
        policy.set("package policy\nallow if data[\"resource-path\"][2] == \"c\"").await.unwrap();
        check(&policy, &json!({}), &path).await.unwrap();
        let again = ResourcePolicy::load(store).await.unwrap();
        check(&again, &json!({}), &path).await.unwrap();
        assert!(check(&again, &json!({}), &ResourcePath::new("a", "b", "d").unwrap()).await.is_err());
        // A text "true" is not true.
        policy.set("package policy\nallow := \"true\"").await.unwrap();
        assert!(check(&policy, &json!({}), &path).await.is_err());
    }
}
