//! Variables of a container: the image's, of whole ConfigMaps, the pod's own; each known now or when the pod runs.
//!
//! Order and precedence are the kubelet's (`makeEnvironmentVariables`): `envFrom` in order, then `env` in order, each over what came
//! before; the runtime then puts all over the image's own.

use std::collections::BTreeMap;

use super::model::Matcher;
use super::value::{Text, expand};
use super::{Context, GenerateError};
use crate::manifest::{Container, EnvFrom, EnvSource, PodName};

/// A container's variables.
#[derive(Debug, Default)]
pub(super) struct Environment {
    /// Name to value and where it comes from, of the pod and the image.
    pub(super) all: BTreeMap<String, (Text, String)>,
    /// What `$(NAME)` in commands stands for: the pod's alone.
    pub(super) pod: BTreeMap<String, Text>,
}

impl Environment {
    /// `NAME=value` of those that are known, with where they come from.
    pub(super) fn known(&self) -> BTreeMap<String, String> {
        let known = self.all.iter().filter_map(|(name, (value, from))| {
            Some((format!("{name}={}", value.as_known()?), from.clone()))
        });
        known.collect()
    }

    /// Those that only the running pod knows.
    pub(super) fn at_run_time(&self) -> BTreeMap<String, Matcher> {
        let later = self.all.iter().filter(|(_, (value, _))| value.as_known().is_none());
        later.map(|(name, (value, _))| (name.clone(), value.matcher())).collect()
    }

    /// Entries of the image in whose place another one stands.
    pub(super) fn overridden(&self, image: &[String]) -> Vec<String> {
        let over = |entry: &&String| {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            self.all.get(name).is_some_and(|(text, _)| text.as_known() != Some(value))
        };
        image.iter().filter(over).cloned().collect()
    }
}

/// Gathers a container's variables.
pub(super) fn environment(
    context: &Context<'_>,
    container: &Container,
    image: &[String],
) -> Result<Environment, GenerateError> {
    let mut env = Environment::default();
    for entry in image {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        env.all.insert(name.to_owned(), (Text::known(value), "image".to_owned()));
    }
    // The kubelet knows these while it expands; their values are the cluster's.
    for name in [
        "KUBERNETES_SERVICE_HOST",
        "KUBERNETES_SERVICE_PORT",
        "KUBERNETES_SERVICE_PORT_HTTPS",
        "KUBERNETES_PORT",
    ] {
        let is = if name.ends_with("PORT") || name.ends_with("HTTPS") { "word" } else { "ip" };
        env.pod.insert(name.to_owned(), Text::later(Matcher::of(is, "service kubernetes")));
    }
    for (number, from) in container.env_from.iter().enumerate() {
        whole(context, &mut env, from, &format!("{}.envFrom[{number}]", container.path))?;
    }
    for (number, variable) in container.env.iter().enumerate() {
        let path = format!("{}.env[{number}]", container.path);
        let Some((value, from)) = value_of(context, container, &env, &variable.source, &path)? else {
            continue;
        };
        env.pod.insert(variable.name.clone(), value.clone());
        env.all.insert(variable.name.clone(), (value, from));
    }
    Ok(env)
}

/// All keys of a ConfigMap or Secret.
fn whole(
    context: &Context<'_>,
    env: &mut Environment,
    from: &EnvFrom,
    path: &str,
) -> Result<(), GenerateError> {
    let (kind, objects) = match from.secret {
        true => ("Secret", &context.manifest.secrets),
        false => ("ConfigMap", &context.manifest.config_maps),
    };
    let Some(object) = objects.get(&from.name) else {
        if from.optional {
            context.warn(
                path,
                format!("optional {kind} {} is not in the manifest: its variables are denied", from.name),
            );
            return Ok(());
        }
        return Err(GenerateError::Absent { path: path.to_owned(), kind, name: from.name.clone() });
    };
    for (key, value) in object {
        let name = format!("{}{key}", from.prefix);
        // what is no name of a variable the kubelet leaves out (until 1.30; later all but `=`)
        if name.is_empty() || name.contains(['=', '\0']) {
            continue;
        }
        let source = format!("{kind} {}, key {key}", from.name);
        let text = match from.secret && !value.starts_with("sealed.") {
            true => Text::later(Matcher::of("any", &source)),
            false => Text::known(value),
        };
        env.pod.insert(name.clone(), text.clone());
        env.all.insert(name, (text, source));
    }
    Ok(())
}

/// A value and where it comes from; none when it is optional and absent.
fn value_of(
    context: &Context<'_>,
    container: &Container,
    env: &Environment,
    source: &EnvSource,
    path: &str,
) -> Result<Option<(Text, String)>, GenerateError> {
    Ok(Some(match source {
        EnvSource::Value(text) => (expand(text, &env.pod), "pod".to_owned()),
        EnvSource::ConfigMap { name, key, optional } => {
            let from = format!("ConfigMap {name}, key {key}");
            match context.manifest.config_maps.get(name) {
                Some(map) => match map.get(key) {
                    Some(value) => (Text::known(value), from),
                    None if *optional => return Ok(None),
                    None => {
                        let (kind, name) = ("ConfigMap", format!("{name} with key {key}"));
                        return Err(GenerateError::Absent { path: path.to_owned(), kind, name });
                    }
                },
                None => {
                    context.warn(
                        path,
                        format!("ConfigMap {name} is not in the manifest: the host chooses the value"),
                    );
                    (Text::later(Matcher::of("any", &from)), from)
                }
            }
        }
        EnvSource::Secret { name, key, .. } => {
            let from = format!("Secret {name}, key {key}");
            let value = context.manifest.secrets.get(name).and_then(|secret| secret.get(key));
            match value {
                Some(sealed) if sealed.starts_with("sealed.") => (Text::known(sealed), from),
                Some(_) => (Text::later(Matcher::of("any", &from)), from),
                None => {
                    context.warn(
                        path,
                        format!("Secret {name} is not in the manifest: the host knows and chooses the value, unless it is sealed"),
                    );
                    (Text::later(Matcher::of("any", &from)), from)
                }
            }
        }
        EnvSource::Field(field) => (field_value(context, field, path), format!("field {field}")),
        EnvSource::Resource { container: other, resource, divisor } => {
            let of = other
                .as_ref()
                .and_then(|n| context.spec().all_containers().map(|(_, c)| c).find(|c| c.name == *n));
            let value = resource_value(of.unwrap_or(container), resource, divisor.as_deref());
            let from = format!("resource {resource}");
            match value {
                Some(number) => (Text::known(number.to_string()), from),
                // without a limit it is the node's
                None => (Text::later(Matcher::of("number", &from)), from),
            }
        }
    }))
}

/// A field of the pod (API reference, EnvVarSource).
fn field_value(context: &Context<'_>, field: &str, path: &str) -> Text {
    let workload = context.workload;
    let from = format!("field {field}");
    let key = |prefix: &str| {
        let rest = field.strip_prefix(prefix)?.strip_suffix(']')?;
        Some(rest.trim_matches(['\'', '"']).to_owned())
    };
    let later = |is: &str| Text::later(Matcher::of(is, &from));
    match field {
        "metadata.name" => Text::later(Matcher { from, ..pod_name(&workload.pod_name) }),
        "metadata.namespace" => workload.namespace.as_deref().map_or_else(|| later("name"), Text::known),
        "metadata.uid" => later("id"),
        "spec.nodeName" => context.spec().node.as_deref().map_or_else(|| later("name"), Text::known),
        "spec.serviceAccountName" => {
            Text::known(context.spec().service_account.as_deref().unwrap_or("default"))
        }
        "status.podIP" | "status.podIPs" | "status.hostIP" | "status.hostIPs" => later("ip"),
        _ => {
            let label = key("metadata.labels[").map(|key| workload.labels.get(&key));
            let annotation = key("metadata.annotations[").map(|key| workload.annotations.get(&key));
            match label.or(annotation) {
                Some(Some(value)) => Text::known(value),
                // a controller may add labels
                Some(None) => later("word"),
                None => {
                    context
                        .warn(path, format!("field {field} is not known here: the host chooses the value"));
                    later("any")
                }
            }
        }
    }
}

/// What a pod may be called.
pub(super) fn pod_name(name: &PodName) -> Matcher {
    // Kubernetes cuts the part before its own at 58 characters, a ReplicaSet's before that
    let cut = |begin: &str| begin.chars().take(47).collect::<String>();
    match name {
        PodName::Exactly(name) => Matcher::exactly(name),
        PodName::Begins(begin) => Matcher { begins: Some(cut(begin)), ..Matcher::of("name", "pod") },
        PodName::Numbered(begin) => Matcher { begins: Some(begin.clone()), ..Matcher::of("number", "pod") },
    }
}

/// A resource in units of the divisor, rounded up; none when the container has no such limit.
fn resource_value(container: &Container, resource: &str, divisor: Option<&str>) -> Option<u128> {
    let (kind, name) = resource.split_once('.')?;
    let quantity = match kind {
        "limits" => container.limits.get(name)?,
        "requests" => container.requests.get(name).or_else(|| container.limits.get(name))?,
        _ => return None,
    };
    let divisor = match divisor {
        None | Some("0" | "") => "1",
        Some(divisor) => divisor,
    };
    let divisor = thousandths(divisor).filter(|divisor| *divisor > 0)?;
    Some(thousandths(quantity)?.div_ceil(divisor))
}

/// A quantity in thousandths (Kubernetes `resource.Quantity`), rounded up.
fn thousandths(text: &str) -> Option<u128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor: u128 = match unit {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() > 18 || fraction.len() > 9 {
        return None;
    }
    let value = |part: &str| if part.is_empty() { Some(0) } else { part.parse::<u128>().ok() };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    Some(value(whole)?.checked_mul(factor)? + value(fraction)?.checked_mul(factor)?.div_ceil(scale))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn resources_are_numbers_of_their_divisor_rounded_up() {
        let limits = [("cpu", "1500m"), ("memory", "128Mi")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let container = Container { limits: BTreeMap::from(limits), ..Container::default() };
        let value = |resource: &str, divisor| resource_value(&container, resource, divisor);
        assert_eq!(value("limits.cpu", None), Some(2));
        assert_eq!(value("limits.cpu", Some("1m")), Some(1500));
        assert_eq!(value("limits.memory", Some("1Mi")), Some(128));
        assert_eq!(value("requests.memory", None), Some(128 << 20));
        assert_eq!(value("limits.ephemeral-storage", None), None);
        for bad in ["1x", "1.1.1", "99999999999999999999"] {
            assert_eq!(thousandths(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_of_pods_are_cut_as_kubernetes_does() {
        let long = PodName::Begins(format!("{}-", "a".repeat(60)));
        assert_eq!(pod_name(&long).begins.unwrap().len(), 47);
        assert_eq!(pod_name(&PodName::Numbered("db-".to_owned())).is.as_deref(), Some("number"));
    }
}
