//! What a pod's manifest says about its launch: the limits that its VM is sized by, and its init-data.
//!
//! Read is what decides the launch and nothing else; a manifest may be a Pod or something that makes pods. Sizes are those that
//! the kubelet tells the runtime: of all containers together, unlimited when one of them is (Kubernetes,
//! `ResourceConfigForPod`), an init container counting by itself.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use kata_cc_kbs_protocol::initdata::ANNOTATION;
use kata_cc_sandbox::initdata::{self, Prepared};
use kata_cc_sandbox::sizing::Limits;
use serde::Deserialize;

use crate::commands::read_text;

/// Classes whose pods may be confidential.
const CLASSES: [&str; 2] = ["kata-cc", "kata-cc-auto"];

/// What decides a pod's launch.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) limits: Limits,
    /// None: the node's own.
    pub(super) init_data: Option<Prepared>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Of a pod, or of what makes pods.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    runtime_class_name: Option<String>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    template: Option<Template>,
    job_template: Option<JobTemplate>,
}

#[derive(Debug, Deserialize)]
struct Template {
    #[serde(default)]
    metadata: Metadata,
    spec: Box<Spec>,
}

#[derive(Debug, Deserialize)]
struct JobTemplate {
    spec: Box<Spec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    resources: Resources,
    restart_policy: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resources {
    limits: BTreeMap<String, Quantity>,
}

/// A quantity as a manifest writes it: with or without quotes.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Quantity {
    Whole(u64),
    Fraction(f64),
    Text(String),
}

/// Reads a manifest.
///
/// # Errors
/// When it is none, asks for a class that is not confidential, or its init-data is damaged.
pub(super) fn read(path: &Path) -> anyhow::Result<Pod> {
    of(&read_text(path)?).with_context(|| format!("{}", path.display()))
}

fn of(text: &str) -> anyhow::Result<Pod> {
    let manifest: Manifest = serde_saphyr::from_str(text).context("it is not one Kubernetes manifest")?;
    let (metadata, spec) = pod_of(manifest)?;
    let class = spec.runtime_class_name.as_deref().unwrap_or("none");
    ensure!(
        CLASSES.contains(&class),
        "the pod's runtimeClassName is {class}: nothing vouches for such a pod, name one of {}",
        CLASSES.join(", ")
    );
    let annotations = metadata.annotations.into_iter().collect();
    let init_data = initdata::of_pod(&annotations).with_context(|| format!("annotation {ANNOTATION}"))?;
    let limits = Limits {
        cpu_millis: together(&spec, "cpu")?.map(|thousandths| thousandths.max(1)),
        memory_bytes: together(&spec, "memory")?.map(|thousandths| thousandths.div_ceil(1000)),
    };
    Ok(Pod { limits, init_data })
}

/// The pod of a manifest, or of its template.
fn pod_of(manifest: Manifest) -> anyhow::Result<(Metadata, Spec)> {
    let Manifest { kind, metadata, spec } = manifest;
    let template = match kind.as_str() {
        "Pod" => return Ok((metadata, spec)),
        "CronJob" => spec.job_template.and_then(|job| job.spec.template),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job" | "ReplicationController" => {
            spec.template
        }
        other => bail!("a {other} makes no pods: give a Pod, or what makes pods"),
    };
    let Template { metadata, spec } =
        template.with_context(|| format!("the {kind} has no template of a pod"))?;
    Ok((metadata, *spec))
}

/// Thousandths of a resource that all containers have together; none when one of them has no limit.
fn together(spec: &Spec, resource: &str) -> anyhow::Result<Option<u64>> {
    ensure!(!spec.containers.is_empty(), "the pod has no containers");
    let limit = |container: &Container| -> anyhow::Result<Option<u64>> {
        let Some(quantity) = container.resources.limits.get(resource) else { return Ok(None) };
        thousandths(quantity).map(Some).with_context(|| format!("limit of {resource} {quantity:?}"))
    };
    let (mut running, mut starting) = (Some(0_u64), Some(0_u64));
    let add = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
    for container in &spec.init_containers {
        // one that is restarted runs beside all that come after it
        if container.restart_policy.as_deref() == Some("Always") {
            running = add(running, limit(container)?);
        } else {
            let alone = add(running, limit(container)?);
            starting = starting.zip(alone).map(|(a, b)| a.max(b));
        }
    }
    for container in &spec.containers {
        running = add(running, limit(container)?);
    }
    Ok(running.zip(starting).map(|(running, starting)| running.max(starting)))
}

/// Thousandths of a quantity (Kubernetes, `resource.Quantity`), rounded up.
fn thousandths(quantity: &Quantity) -> anyhow::Result<u64> {
    let text = match quantity {
        Quantity::Whole(number) => {
            return number.checked_mul(1000).context("it is more than any machine has");
        }
        Quantity::Fraction(number) => number.to_string(),
        Quantity::Text(text) => text.clone(),
    };
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u128 = match unit {
        "m" => 1,
        "" => 1000,
        "k" => 1000 * 1000,
        "M" => 1000 * 1000_u128.pow(2),
        "G" => 1000 * 1000_u128.pow(3),
        "T" => 1000 * 1000_u128.pow(4),
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        _ => bail!("its unit {unit:?} is not known: m, k, M, G, T, Ki, Mi, Gi, Ti"),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.len() <= 18 && part.bytes().all(|byte| byte.is_ascii_digit());
    ensure!(
        digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty()),
        "it is no number"
    );
    let value = |part: &str| if part.is_empty() { Ok(0) } else { part.parse::<u128>() };
    let scale = 10_u128.pow(fraction.len() as u32);
    let total = value(whole)? * factor + (value(fraction)? * factor).div_ceil(scale);
    u64::try_from(total).context("it is more than any machine has")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(containers: &str) -> anyhow::Result<Pod> {
        of(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  runtimeClassName: kata-cc\n{containers}"
        ))
    }

    #[test]
    fn limits_of_all_containers_count_together() {
        let both = pod(concat!(
            "  containers:\n",
            "  - {name: a, image: x, resources: {limits: {cpu: 500m, memory: 256Mi}}}\n",
            "  - {name: b, image: y, resources: {limits: {cpu: 1, memory: 1G}}}\n",
        ));
        let limits = both.unwrap().limits;
        assert_eq!(
            limits,
            Limits { cpu_millis: Some(1500), memory_bytes: Some((256 << 20) + 1_000_000_000) }
        );
        // one without a limit makes the pod unlimited
        let one = pod("  containers:\n  - {resources: {limits: {cpu: '2', memory: 1Gi}}}\n  - {name: b}\n");
        assert_eq!(one.unwrap().limits, Limits::default());
        // an init container runs alone, but beside those that are restarted
        let init = pod(concat!(
            "  initContainers:\n",
            "  - {restartPolicy: Always, resources: {limits: {memory: 100}}}\n",
            "  - {resources: {limits: {memory: 5000}}}\n",
            "  containers:\n  - {resources: {limits: {memory: 200}}}\n",
        ));
        assert_eq!(init.unwrap().limits.memory_bytes, Some(5100));
    }

    #[test]
    fn init_data_is_that_of_the_annotation() {
        let document = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"a.toml\" = \"x\"\n";
        let annotation = kata_cc_kbs_protocol::initdata::to_annotation(document);
        let text = format!(
            "kind: Deployment\nspec:\n  template:\n    metadata:\n      annotations:\n        {ANNOTATION}: {annotation}\n    \
             spec:\n      runtimeClassName: kata-cc\n      containers: [{{name: a}}]\n"
        );
        let found = of(&text).unwrap().init_data.unwrap();
        assert_eq!(found.digest, initdata::from_text(document).unwrap().digest);
        let damaged = text.replace(&annotation, "bm90IGd6aXA=");
        assert!(format!("{:#}", of(&damaged).unwrap_err()).contains(ANNOTATION));
    }

    #[test]
    fn what_is_no_confidential_pod_is_refused_by_reason() {
        let refused = |text: &str| format!("{:#}", of(text).unwrap_err());
        assert!(refused("kind: Pod\nspec: {containers: [{name: a}]}\n").contains("runtimeClassName is none"));
        let runc = "kind: Pod\nspec: {runtimeClassName: runc, containers: [{name: a}]}\n";
        assert!(refused(runc).contains("runtimeClassName is runc"));
        assert!(refused("kind: Service\nspec: {}\n").contains("makes no pods"));
        assert!(refused("kind: Deployment\nspec: {}\n").contains("no template"));
        assert!(refused("kind: Pod\nspec: {runtimeClassName: kata-cc}\n").contains("no containers"));
        assert!(refused("{").contains("not one Kubernetes manifest"));
        let two = "kind: Pod\nspec: {}\n---\nkind: Pod\nspec: {}\n";
        assert!(refused(two).contains("not one Kubernetes manifest"));
        let cpu = |limit: &str| {
            format!(
                "{:#}",
                pod(&format!("  containers:\n  - {{resources: {{limits: {{cpu: {limit}}}}}}}\n"))
                    .unwrap_err()
            )
        };
        assert!(cpu("1x").contains("unit \"x\""));
        assert!(cpu("-1").contains("limit of cpu"));
        assert!(cpu("'99999999999999999999'").contains("limit of cpu"));
    }

    #[test]
    fn quantities_are_read_as_kubernetes_does() {
        let of = |text: &str| thousandths(&Quantity::Text(text.to_owned())).unwrap();
        for (text, value) in [
            ("1", 1000),
            ("0.5", 500),
            (".5", 500),
            ("100m", 100),
            ("1k", 1_000_000),
            ("1Ki", 1_024_000),
            ("1.5Gi", 1_610_612_736_000),
            ("0.0001", 1),
        ] {
            assert_eq!(of(text), value, "{text}");
        }
        assert_eq!(thousandths(&Quantity::Fraction(1.5)).unwrap(), 1500);
    }
}
