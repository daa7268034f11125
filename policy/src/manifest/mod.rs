//! Kubernetes manifests, as far as they decide what runs in a guest.
//!
//! Read are pods and what makes pods (Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job, CronJob), Lists of these, and
//! the ConfigMaps, Secrets and PersistentVolumeClaims beside them, in any number of documents. Other kinds are passed over. A field that
//! is not known is a warning with its path; a value of a wrong type is an error; no text makes the reader panic, and its size is
//! limited ([`yaml`]). Field meanings: Kubernetes API reference, core/v1 and apps/v1.

mod container;
mod error;
mod fields;
mod pod;
mod volume;
pub mod yaml;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

pub use container::{Container, EnvFrom, EnvSource, EnvVar, ExecCommand, Mount};
pub use error::{ManifestError, Warning};
use fields::{Fields, Warnings};
pub use pod::{PodSpec, Security};
pub use volume::{Projected, Volume, VolumeSource};

/// What a manifest holds.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    /// Pods and what makes pods, in order.
    pub workloads: Vec<Workload>,
    /// ConfigMaps by name.
    pub config_maps: BTreeMap<String, BTreeMap<String, String>>,
    /// Secrets by name; values that are no text are left out, their keys stand in [`Manifest::binary_keys`].
    pub secrets: BTreeMap<String, BTreeMap<String, String>>,
    /// `name/key` of values of ConfigMaps and Secrets that are no text: no environment variable can hold them.
    pub binary_keys: Vec<String>,
    /// What should be known and stops nothing.
    pub warnings: Vec<Warning>,
}

/// What a pod is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodName {
    /// The name is in the manifest.
    Exactly(String),
    /// A controller adds to it: letters, digits and dashes.
    Begins(String),
    /// A StatefulSet adds the pod's number.
    Numbered(String),
}

/// A pod, or the template of one.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Kind and name, `Deployment/web`.
    pub title: String,
    /// Document of the text it stands in, from 0, empty ones not counted.
    pub document: usize,
    /// Keys and indexes from the document to the pod (which has `metadata` and `spec`).
    pub place: Vec<String>,
    /// Name of the pods.
    pub pod_name: PodName,
    /// Namespace, where the manifest names one.
    pub namespace: Option<String>,
    /// Labels of the pods.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pods.
    pub annotations: BTreeMap<String, String>,
    /// Names of a StatefulSet's claim templates, which are volumes of its pods.
    pub claim_templates: Vec<String>,
    /// The pods' specification.
    pub spec: PodSpec,
}

impl Manifest {
    /// Reads a text: YAML of any number of documents, or JSON.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn read(text: &str) -> Result<Self, ManifestError> {
        let documents = yaml::documents(text)?;
        let warnings = Warnings::default();
        let mut manifest = Self::default();
        for (number, document) in documents.iter().enumerate() {
            manifest.object(document, &format!("document {number}"), (number, &[]), &warnings)?;
        }
        manifest.warnings = warnings.take();
        manifest.warnings.sort();
        manifest.warnings.dedup();
        Ok(manifest)
    }

    fn object(
        &mut self,
        value: &Value,
        path: &str,
        (document, place): (usize, &[String]),
        warnings: &Warnings,
    ) -> Result<(), ManifestError> {
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let path = if kind.is_empty() { format!("{path}: ") } else { format!("{kind}/{name}: ") };
        let fields = Fields::of(value, path.clone(), warnings)?;
        fields.needed("kind")?;
        match kind.as_str() {
            "List" | "PodList" | "DeploymentList" => {
                let items = value.get("items").and_then(Value::as_array);
                for (i, item) in items.into_iter().flatten().enumerate() {
                    if item.get("kind").and_then(Value::as_str) == Some("List") {
                        return Err(ManifestError::Invalid {
                            path,
                            reason: "a List in a List is not read".to_owned(),
                        });
                    }
                    let mut place = place.to_vec();
                    place.extend(["items".to_owned(), i.to_string()]);
                    self.object(item, &format!("{path}items[{i}]"), (document, &place), warnings)?;
                }
                Ok(())
            }
            "ConfigMap" | "Secret" => self.keys(&kind, name, &fields),
            kind => match template_of(kind) {
                Some(steps) => {
                    let workload = workload((kind, name), value, &fields, steps)?;
                    let mut place = place.to_vec();
                    place.extend(steps.iter().map(|step| (*step).to_owned()));
                    self.workloads.push(Workload { document, place, ..workload });
                    Ok(())
                }
                // services, roles and the like decide nothing in a guest
                None => Ok(()),
            },
        }
    }

    fn keys(&mut self, kind: &str, name: String, fields: &Fields<'_>) -> Result<(), ManifestError> {
        let mut values = BTreeMap::new();
        let data = fields.map_of_texts("data")?;
        if kind == "ConfigMap" {
            values.extend(data);
            let binary = fields.map_of_texts("binaryData")?;
            self.binary_keys.extend(binary.into_keys().map(|key| format!("{name}/{key}")));
            self.config_maps.insert(name, values);
            return Ok(());
        }
        for (key, encoded) in data {
            let packed: String = encoded.split_whitespace().collect();
            let bytes = STANDARD.decode(packed).map_err(|_| ManifestError::Invalid {
                path: fields.at(&format!("data.{key}")),
                reason: "the value is not base64".to_owned(),
            })?;
            match String::from_utf8(bytes) {
                Ok(text) => drop(values.insert(key, text)),
                Err(_) => self.binary_keys.push(format!("{name}/{key}")),
            }
        }
        values.extend(fields.map_of_texts("stringData")?);
        for (key, value) in &values {
            if !value.starts_with("sealed.") {
                fields.warn(
                    key,
                    "the Secret is in clear: whoever has the manifest or the node reads it, and the host may change it; seal it \
                     (`kata-cc secret seal`) or have the guest fetch it from the key broker",
                );
            }
        }
        self.secrets.insert(name, values);
        Ok(())
    }
}

/// Where the pod of a kind stands; none for kinds that make no pods.
fn template_of(kind: &str) -> Option<&'static [&'static str]> {
    match kind {
        "Pod" => Some(&[]),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some(&["spec", "template"])
        }
        "CronJob" => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

fn workload(
    (kind, name): (&str, String),
    value: &Value,
    fields: &Fields<'_>,
    steps: &[&str],
) -> Result<Workload, ManifestError> {
    let metadata = fields.object("metadata")?;
    let namespace = metadata.text("namespace")?;
    let generated = metadata.text("generateName")?;
    let mut template = value;
    for step in steps {
        template = template.get(step).unwrap_or(&Value::Null);
    }
    let path = steps.iter().fold(fields.path().to_owned(), |path, step| match path.ends_with(": ") {
        true => format!("{path}{step}"),
        false => format!("{path}.{step}"),
    });
    if template.is_null() {
        return Err(ManifestError::Missing { path });
    }
    let pod = Fields::of(template, path, fields.warnings())?;
    let meta = pod.object("metadata")?;
    let spec = pod.maybe("spec")?.ok_or_else(|| ManifestError::Missing { path: pod.at("spec") })?;
    let pod_name = match (kind, name.as_str(), generated) {
        ("Pod", "", Some(begin)) => PodName::Begins(begin),
        ("Pod", "", None) => return Err(ManifestError::Missing { path: metadata.at("name") }),
        ("Pod", name, _) => PodName::Exactly(name.to_owned()),
        ("StatefulSet", name, _) => PodName::Numbered(format!("{name}-")),
        (_, "", Some(begin)) => PodName::Begins(begin),
        (_, name, _) => PodName::Begins(format!("{name}-")),
    };
    Ok(Workload {
        title: format!("{kind}/{}", if name.is_empty() { "?" } else { &name }),
        document: 0,
        place: Vec::new(),
        pod_name,
        namespace,
        labels: meta.map_of_texts("labels")?,
        annotations: meta.map_of_texts("annotations")?,
        claim_templates: claim_templates(fields)?,
        spec: PodSpec::read(spec)?,
    })
}

fn claim_templates(fields: &Fields<'_>) -> Result<Vec<String>, ManifestError> {
    if fields.text("kind")?.as_deref() != Some("StatefulSet") {
        return Ok(Vec::new());
    }
    let templates = fields.object("spec")?.objects("volumeClaimTemplates")?;
    let name = |template: &Fields<'_>| template.object("metadata")?.needed("name");
    templates.iter().map(name).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn pods_are_found_wherever_they_are_made() {
        let spec = "{containers: [{name: a, image: x}]}";
        let text = format!(
            "kind: Pod\nmetadata: {{name: p, namespace: n}}\nspec: {spec}\n---\n\
             kind: StatefulSet\nmetadata: {{name: s}}\nspec: {{template: {{metadata: {{labels: {{l: v}}}}, spec: {spec}}}}}\n---\n\
             kind: List\nitems:\n- kind: CronJob\n  metadata: {{name: c}}\n  spec: {{jobTemplate: {{spec: {{template: {{spec: {spec}}}}}}}}}\n\
             - kind: Service\n  metadata: {{name: x}}\n- kind: ConfigMap\n  metadata: {{name: m}}\n  data: {{k: v}}\n"
        );
        let manifest = Manifest::read(&text).unwrap();
        let titles: Vec<_> = manifest.workloads.iter().map(|w| (w.title.as_str(), w.document)).collect();
        assert_eq!(titles, [("Pod/p", 0), ("StatefulSet/s", 1), ("CronJob/c", 2)]);
        assert_eq!(manifest.workloads[0].namespace.as_deref(), Some("n"));
        assert_eq!(manifest.workloads[1].pod_name, PodName::Numbered("s-".to_owned()));
        assert_eq!(manifest.workloads[1].labels["l"], "v");
        assert_eq!(manifest.workloads[2].place, ["items", "0", "spec", "jobTemplate", "spec", "template"]);
        assert_eq!(manifest.config_maps["m"]["k"], "v");
        assert_eq!(manifest.warnings, []);
    }

    #[test]
    fn an_unknown_field_is_a_warning_with_its_path() {
        let text = "kind: Deployment\nmetadata: {name: web}\nspec: {template: {spec: {dnsPolicy: Default, newField: 1, \
                    containers: [{name: a, image: x, ports: [], newer: {x: 1}}]}}}\n";
        let warnings = Manifest::read(text).unwrap().warnings;
        let paths: Vec<&str> = warnings.iter().map(|w| w.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "Deployment/web: spec.template.spec.containers[0].newer",
                "Deployment/web: spec.template.spec.newField"
            ]
        );
    }

    #[test]
    fn secrets_in_clear_are_told_and_sealed_ones_are_not() {
        let text = "kind: Secret\nmetadata: {name: s}\ndata: {a: aGVsbG8=, b: /w==}\nstringData: {c: sealed.x.y.z}\n";
        let manifest = Manifest::read(text).unwrap();
        assert_eq!(manifest.secrets["s"]["a"], "hello");
        assert_eq!(manifest.binary_keys, ["s/b"]);
        assert_eq!(manifest.warnings.len(), 1);
        assert_eq!(manifest.warnings[0].path, "Secret/s: a");
        assert!(Manifest::read("kind: Secret\nmetadata: {name: s}\ndata: {a: '%'}\n").is_err());
    }

    #[test]
    fn what_is_no_manifest_is_refused_by_reason() {
        let refused = |text: &str| Manifest::read(text).unwrap_err().to_string();
        assert!(refused("a: 1").contains("kind is missing"));
        assert!(refused("- 1").contains("expected an object"));
        assert!(refused("kind: Deployment\nspec: {}").contains("spec.template is missing"));
        assert!(refused("kind: Pod\nmetadata: {name: a}").contains("spec is missing"));
        assert!(refused("kind: Pod\nspec: {containers: [{name: a, image: b}]}").contains("name is missing"));
        assert!(refused("kind: List\nitems: [{kind: List}]").contains("List in a List"));
    }
}
