//! Mounts of a container: those that the manifest declares, and those that Kubernetes adds to each container.

use std::collections::BTreeMap;

use super::model::MountData;
use super::{Context, GenerateError};
use crate::manifest::{Container, Projected, Volume, VolumeSource};

/// Where the service account's token is mounted.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Where a container leaves its last words, unless it says otherwise.
const TERMINATION_LOG: &str = "/dev/termination-log";

fn plain(kind: &str, from: impl Into<String>) -> MountData {
    MountData {
        kind: kind.to_owned(),
        from: from.into(),
        volume: String::new(),
        path: String::new(),
        read_only: false,
        required: false,
        sub_path: false,
        memory: false,
        shared_propagation: false,
    }
}

/// All mounts by their place.
pub(super) fn mounts(
    context: &Context<'_>,
    container: &Container,
    image_volumes: &BTreeMap<String, serde_json::Value>,
) -> Result<BTreeMap<String, MountData>, GenerateError> {
    let mut all = BTreeMap::new();
    let log = container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG);
    all.insert(log.to_owned(), plain("files", "termination log"));
    for path in image_volumes.keys() {
        all.insert(clean(path), plain("image-volume", "volume of the image"));
    }
    if context.spec().automount_token != Some(false) {
        let token = MountData { read_only: true, ..plain("files", "service account token") };
        all.insert(TOKEN.to_owned(), token);
    }
    for mount in &container.mounts {
        let Some(volume) = context.spec().volumes.iter().find(|volume| volume.name == mount.volume) else {
            match context.workload.claim_templates.contains(&mount.volume) {
                true => {
                    let data = MountData {
                        volume: mount.volume.clone(),
                        required: true,
                        read_only: mount.read_only,
                        ..plain("claim", format!("claim template {}", mount.volume))
                    };
                    all.insert(clean(&mount.path), data);
                    continue;
                }
                false => {
                    let reason = format!("it mounts volume {:?}, which the pod does not have", mount.volume);
                    return Err(GenerateError::Contradiction { path: container.path.clone(), reason });
                }
            }
        };
        let data = MountData {
            required: true,
            sub_path: mount.sub_path,
            shared_propagation: mount.bidirectional,
            volume: volume.name.clone(),
            ..of_volume(volume)
        };
        let read_only = data.read_only || mount.read_only;
        all.insert(clean(&mount.path), MountData { read_only, ..data });
    }
    Ok(all)
}

/// What a mount of the volume is. Files that the kubelet writes are read-only whatever the mount says (`GetAttributes`).
fn of_volume(volume: &Volume) -> MountData {
    let files = |from: String| MountData { read_only: true, ..plain("files", from) };
    match &volume.source {
        VolumeSource::EmptyDir { memory } => MountData {
            memory: *memory,
            ..plain("scratch", if *memory { "emptyDir in memory" } else { "emptyDir" })
        },
        VolumeSource::ConfigMap(name) => files(format!("ConfigMap {name}")),
        VolumeSource::Secret(name) => files(format!("Secret {name}")),
        VolumeSource::DownwardApi => files("fields of the pod".to_owned()),
        VolumeSource::Projected(parts) => {
            let part = |part: &Projected| match part {
                Projected::Token => "service account token".to_owned(),
                Projected::ConfigMap(name) => format!("ConfigMap {name}"),
                Projected::Secret(name) => format!("Secret {name}"),
                Projected::DownwardApi => "fields of the pod".to_owned(),
                Projected::TrustBundle => "trust bundle".to_owned(),
            };
            files(parts.iter().map(part).collect::<Vec<_>>().join(", "))
        }
        VolumeSource::HostPath(path) => {
            MountData { path: path.clone(), ..plain("host", format!("path {path} of the host")) }
        }
        VolumeSource::Claim(name) => plain("claim", format!("claim {name}")),
        VolumeSource::Image(name) => files(format!("image {name}")),
        VolumeSource::Other(kind) => plain("claim", format!("{kind} volume")),
    }
}

/// Tells once for each volume what the policy cannot answer for.
pub(super) fn warnings(context: &Context<'_>) {
    for volume in &context.spec().volumes {
        let message = match &volume.source {
            VolumeSource::HostPath(path) => {
                format!("{path} of the host: the guest sees a copy, and the host chooses what is in it")
            }
            VolumeSource::Claim(name) => {
                format!(
                    "claim {name} is the host's disk: it reads and writes what is on it, unless it is encrypted in the guest"
                )
            }
            VolumeSource::Image(name) => {
                format!("image {name} is mounted by the host, which chooses what is in it")
            }
            VolumeSource::Other(kind) => {
                format!("a {kind} volume is the host's: it reads and writes what is on it")
            }
            VolumeSource::Secret(name) if in_clear(context, name) => {
                format!("Secret {name} is in clear: the host reads it and chooses what is in it; seal it")
            }
            _ => continue,
        };
        context.warn(&volume.path, message);
    }
}

fn in_clear(context: &Context<'_>, name: &str) -> bool {
    let secret = context.manifest.secrets.get(name);
    secret.is_some_and(|secret| secret.values().any(|value| !value.starts_with("sealed.")))
}

/// A path as runtimes give it to the guest: absolute, without a slash at the end.
fn clean(path: &str) -> String {
    let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    format!("/{}", parts.collect::<Vec<_>>().join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_clean() {
        for (path, cleaned) in [("/a/", "/a"), ("a//b", "/a/b"), ("/./a", "/a"), ("/", "/")] {
            assert_eq!(clean(path), cleaned);
        }
    }
}
