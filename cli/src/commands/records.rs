//! Records of sandboxes as the commands show them: found by a prefix of their id, and what is to be told of one.
//!
//! What a guest wrote into its record is untrusted: it reaches a terminal only through
//! [`printable`](crate::output::printable).

use std::path::PathBuf;

use anyhow::Context;
use kata_cc_sandbox::paths;
use kata_cc_sandbox::record::{self, Stage};
use serde::Serialize;
use serde_json::Value;

/// The id that a prefix means.
pub(super) fn find(prefix: &str) -> anyhow::Result<String> {
    pick(prefix, &record::list(&paths::records()))
}

fn pick(prefix: &str, ids: &[String]) -> anyhow::Result<String> {
    anyhow::ensure!(
        paths::is_id(prefix),
        "{prefix:?} cannot be a sandbox's id: 1 to 128 characters of [A-Za-z0-9_.-]"
    );
    if ids.iter().any(|id| id == prefix) {
        return Ok(prefix.to_owned());
    }
    let found: Vec<&str> = ids.iter().map(String::as_str).filter(|id| id.starts_with(prefix)).collect();
    match found.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => anyhow::bail!("there is no sandbox {prefix}: `kata-cc ps` lists them"),
        many => anyhow::bail!("{prefix} may mean any of {}: give more of the id", many.join(", ")),
    }
}

/// Folder of a record.
pub(super) fn dir(id: &str) -> PathBuf {
    paths::records().join(id)
}

/// Why a sandbox did not come to run, or stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Refusal {
    /// `refused` or `failed`.
    pub(super) stage: String,
    /// Who said no.
    pub(super) by: String,
    /// Why.
    pub(super) reason: String,
    /// What was expected; empty when nothing was compared.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) expected: String,
    /// What was seen instead.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) seen: String,
    /// What to do.
    pub(super) advice: String,
}

/// What a record tells.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Summary {
    pub(super) id: String,
    /// `running`, `refused`, `failed`, `exited`, `ended`.
    pub(super) state: &'static str,
    pub(super) started: String,
    pub(super) image: Option<String>,
    pub(super) class: Option<String>,
    pub(super) tier: Option<String>,
    pub(super) why: Option<String>,
    pub(super) launch_digest: Option<String>,
    pub(super) verdict: Option<String>,
    pub(super) exit_code: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refusal: Option<Refusal>,
}

impl Summary {
    /// Of one sandbox.
    pub(super) fn read(id: &str) -> anyhow::Result<(Self, Vec<Stage>)> {
        let stages =
            record::read(&dir(id)).with_context(|| format!("the record of sandbox {id} cannot be read"))?;
        Ok((Self::new(id, &stages, is_running(id)), stages))
    }

    fn new(id: &str, stages: &[Stage], running: bool) -> Self {
        let of = |stage: &str| stages.iter().rev().find(|line| line.stage == stage).map(|line| &line.detail);
        let text = |stage: &str, key: &str| of(stage).and_then(|detail| plain(&detail[key]));
        let exit_code = of("exited").and_then(|detail| detail["code"].as_u64());
        let refusal = refusal(stages);
        let state = match (&refusal, exit_code) {
            _ if running => "running",
            (Some(refusal), None) if refusal.stage == "refused" => "refused",
            (Some(_), None) => "failed",
            (_, Some(_)) => "exited",
            (None, None) => "ended",
        };
        Self {
            id: id.to_owned(),
            state,
            started: stages.first().map(|line| line.t.clone()).unwrap_or_default(),
            image: text("created", "image").or_else(|| text("pulled", "image")),
            class: text("created", "class"),
            tier: text("tier", "tier"),
            why: text("tier", "why"),
            launch_digest: text("measured", "launch_digest"),
            verdict: text("attested", "verdict"),
            exit_code,
            refusal,
        }
    }
}

/// A JSON value as a person reads it; none for null.
pub(super) fn plain(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Whether the sandbox's monitor is alive.
pub(super) fn is_running(id: &str) -> bool {
    let Ok(bytes) = std::fs::read(paths::run_dir().join(id).join("leftovers.json")) else { return false };
    let left: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    // Number and start of the monitor: numbers come round again.
    let (pid, start) = (left["monitor"][0].as_u64(), left["monitor"][1].as_u64());
    let found = pid.and_then(|pid| kata_cc_oci::process::start_time(u32::try_from(pid).ok()?));
    found.is_some() && found == start
}

/// What stopped a start: of several refusals, the one that the others follow from.
///
/// A key broker's no makes the image's no makes the agent's no; the first knows what differed. A refusal also explains
/// more than the failure that comes of it.
pub(super) fn refusal(stages: &[Stage]) -> Option<Refusal> {
    let of = |stage: &'static str| stages.iter().filter(move |line| line.stage == stage);
    let started = stages.iter().any(|line| line.stage == "container-started");
    // After the start a denied request is an incident, not the end.
    let refused = of("refused").next().filter(|_| !started);
    let stage = refused.or_else(|| of("failed").next())?;
    let text = |keys: &[&str]| keys.iter().find_map(|key| plain(&stage.detail[*key])).unwrap_or_default();
    let advice = text(&["advice", "what_to_do"]);
    Some(Refusal {
        stage: stage.stage.clone(),
        by: Some(text(&["by"])).filter(|by| !by.is_empty()).unwrap_or_else(|| "unknown".into()),
        reason: text(&["reason", "msg", "message"]),
        expected: text(&["expected"]),
        seen: text(&["seen"]),
        advice: if advice.is_empty() {
            "`kata-cc logs --all` shows what happened before".into()
        } else {
            advice
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stage(stage: &str, detail: Value) -> Stage {
        Stage { t: "2026-01-01T00:00:00.000000Z".into(), stage: stage.into(), detail, guest: false }
    }

    #[test]
    fn a_prefix_must_mean_one_sandbox() {
        let ids: Vec<String> = ["abc", "abd", "x", "xy"].map(str::to_owned).into();
        assert_eq!(pick("abc", &ids).unwrap(), "abc");
        assert_eq!(pick("x", &ids).unwrap(), "x", "a whole id is not a prefix");
        assert!(pick("ab", &ids).unwrap_err().to_string().contains("abc, abd"));
        assert!(pick("q", &ids).unwrap_err().to_string().contains("no sandbox q"));
        assert!(pick("../x", &ids).is_err() && pick("", &ids).is_err());
    }

    #[test]
    fn the_first_refusal_is_the_cause() {
        let stages = [
            stage("tier", json!({"tier": "sim-snp"})),
            stage(
                "refused",
                json!({"by": "key broker", "reason": "measurement", "expected": "aa", "seen": "bb", "what_to_do": "register"}),
            ),
            stage("refused", json!({"by": "image", "reason": "no key"})),
            stage("failed", json!({"by": "agent", "reason": "no image"})),
        ];
        let refusal = refusal(&stages).unwrap();
        assert_eq!(
            (refusal.by.as_str(), refusal.expected.as_str(), refusal.seen.as_str()),
            ("key broker", "aa", "bb")
        );
        assert_eq!(refusal.advice, "register");
        let summary = Summary::new("x", &stages, false);
        assert_eq!((summary.state, summary.tier.as_deref()), ("refused", Some("sim-snp")));
    }

    #[test]
    fn a_denied_request_of_a_running_container_is_not_its_end() {
        let stages = [
            stage("container-started", json!({})),
            stage("refused", json!({"by": "agent policy"})),
            stage("exited", json!({"code": 3})),
        ];
        assert_eq!(refusal(&stages), None);
        let summary = Summary::new("x", &stages, false);
        assert_eq!((summary.state, summary.exit_code), ("exited", Some(3)));
    }
}
