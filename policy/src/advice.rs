//! What to do about a denial: the smallest change that would let the request pass, in the manifest and in the policy, and what it would open.
//!
//! Advice is for a person who then decides. Where the request looks like an attack there is advice all the same, with a warning.

use serde::Serialize;
use serde_json::{Value, json};

use crate::agent::Reason;

/// The smallest change for one reason.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Advice {
    /// In the manifest; `kata-cc policy gen` then makes the policy anew.
    pub manifest: String,
    /// In the policy itself: what belongs where in `policy_data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Edit>,
    /// What it would open, where it is more than it seems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub danger: Option<String>,
}

/// A change of `policy_data`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Edit {
    /// JSON pointer.
    pub place: String,
    /// What it has to be, or have.
    pub value: Value,
}

/// What to do about one reason of a generated policy's denial. `container` is the container's name, where it is known.
#[must_use]
pub fn advise(reason: &Reason, container: Option<&str>) -> Advice {
    let base = match container {
        Some("(sandbox)") => "/sandbox".to_owned(),
        Some(name) => format!("/containers/{name}"),
        None => "/containers/NAME".to_owned(),
    };
    let edit = |place: &str, value: Value| Some(Edit { place: format!("{base}/{place}"), value });
    let seen = reason.value.clone();
    let plain = |manifest: &str| Advice { manifest: manifest.to_owned(), policy: None, danger: None };
    match reason.rule.as_str() {
        "command" => Advice {
            policy: edit("args", seen.clone()),
            danger: shell(&seen).then(|| "a shell runs whatever the host puts behind it".to_owned()),
            ..plain("set the container's command and args")
        },
        "commands" => Advice {
            policy: edit("exec/-", json!({"args": seen, "for": "by hand"})),
            danger: shell(&seen)
                .then(|| "a shell in the container reads all that the container can read".to_owned()),
            ..plain("name it as a probe or lifecycle hook, or give `--allow-command`")
        },
        "environment" => environment(&seen, &base),
        "environment is whole" => Advice {
            danger: Some("a program without its settings may start with weaker ones".to_owned()),
            ..plain("take the variable out of the manifest; the node did not set it")
        },
        "folder" => Advice { policy: edit("cwd", seen), ..plain("set workingDir") },
        "image" => Advice {
            policy: edit("image/references/-", seen),
            ..plain("name the image as the pod does; after a new version make the policy anew")
        },
        "image digest" => Advice {
            policy: edit("image/digests/-", seen),
            danger: Some(
                "another image runs: make sure that the digest is one that you built or checked".to_owned(),
            ),
            ..plain(
                "make the policy anew: the tag names another image now; a digest in the manifest would keep it",
            )
        },
        "user" | "user of the image" | "groups of the image" | "users by number" => Advice {
            policy: match reason.field.rsplit('.').next() {
                Some("UID") => edit("user/uid", seen.clone()),
                Some("GID") => edit("user/gid", seen.clone()),
                _ => None,
            },
            danger: (seen == 0).then(|| "user 0 may change every file of the container".to_owned()),
            ..plain("set runAsUser, runAsGroup and supplementalGroups in the securityContext")
        },
        "capabilities" => Advice {
            policy: edit("capabilities/-", seen),
            danger: Some(
                "capabilities such as CAP_SYS_ADMIN lead out of the container into the guest".to_owned(),
            ),
            ..plain("add them under securityContext.capabilities.add")
        },
        "mounts" => mount(&seen, &base),
        "mounts are whole" => plain("take the mount out of the manifest; the node did not make it"),
        "devices" | "device rules" | "devices by annotation" => Advice {
            policy: edit("devices/-", seen),
            danger: Some("a device of the host's choice speaks to the guest's kernel".to_owned()),
            ..plain("name it with `--allow-device`, or as a volumeDevice")
        },
        "kernel parameters" => Advice {
            policy: Some(Edit {
                place: "/pod/sysctls".to_owned(),
                value: json!({sysctl(&reason.field): seen}),
            }),
            ..plain("set it under securityContext.sysctls of the pod")
        },
        "containers of the pod" => {
            plain("the container is not in the manifest that the policy was made of: add it there")
        }
        "namespace of the pod" => Advice {
            policy: Some(Edit { place: "/pod/namespace".to_owned(), value: seen }),
            ..plain("set metadata.namespace, or give `--namespace`")
        },
        "open requests" => plain("open it: `--allow logs`, `--allow stdin`, `--allow exec`"),
        "masked paths" | "read-only paths" => Advice {
            danger: Some("the container would see and change settings of the guest's kernel".to_owned()),
            ..plain("set procMount: Unmasked, or privileged")
        },
        "no new privileges" => Advice {
            policy: edit("no_new_privileges", false.into()),
            ..plain("set allowPrivilegeEscalation: true")
        },
        "read-only root" => Advice {
            policy: edit("read_only_root", false.into()),
            ..plain("set readOnlyRootFilesystem: false")
        },
        "shared processes" => Advice {
            policy: Some(Edit { place: "/pod/share_processes".to_owned(), value: true.into() }),
            ..plain("set shareProcessNamespace: true")
        },
        _ => Advice {
            danger: Some("no manifest asks for this: the host does, on its own".to_owned()),
            ..plain("find out why the node sends it")
        },
    }
}

fn environment(seen: &Value, base: &str) -> Advice {
    let entry = seen.as_str().unwrap_or_default();
    let name = entry.split('=').next().unwrap_or_default();
    let steers = [
        "LD_",
        "PATH",
        "BASH_ENV",
        "ENV",
        "IFS",
        "PYTHON",
        "PERL",
        "RUBY",
        "NODE_OPTIONS",
        "JAVA_TOOL_OPTIONS",
        "GCONV_PATH",
    ];
    let danger = steers.iter().any(|begin| name.starts_with(begin));
    Advice {
        manifest: format!("add {name} under env of the container"),
        policy: Some(Edit { place: format!("{base}/env"), value: json!({entry: "by hand"}) }),
        danger: danger.then(|| format!("{name} steers which code is loaded")),
    }
}

fn mount(seen: &Value, base: &str) -> Advice {
    let text = |key: &str| seen.get(key).and_then(Value::as_str).unwrap_or_default();
    let (path, source) = (text("destination"), text("source"));
    let copied = source.starts_with("/run/kata-containers/shared/containers/");
    let value = json!({path: {"kind": if copied { "files" } else { "scratch" }, "from": "by hand", "read_only": copied, "required": false}});
    let hides = ["/bin", "/sbin", "/lib", "/usr", "/etc/ld", "/"]
        .iter()
        .any(|begin| path == *begin || path.starts_with(&format!("{begin}/")) && *begin != "/");
    Advice {
        manifest: format!("add a volumeMount at {path}"),
        policy: Some(Edit { place: format!("{base}/mounts"), value }),
        danger: match (hides, copied) {
            (true, _) => {
                Some(format!("files of the host's choice would hide programs of the image at {path}"))
            }
            (_, true) => Some("the host chooses what is in these files".to_owned()),
            _ => None,
        },
    }
}

fn shell(args: &Value) -> bool {
    let program = args.get(0).and_then(Value::as_str).unwrap_or_default();
    ["sh", "bash", "ash", "dash", "zsh"].contains(&program.rsplit('/').next().unwrap_or_default())
}

fn sysctl(field: &str) -> String {
    field.split('"').nth(1).unwrap_or("NAME").to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn reason(rule: &str, field: &str, value: Value) -> Reason {
        Reason { rule: rule.to_owned(), field: field.to_owned(), value, allowed: None, advice: None }
    }

    #[test]
    fn dangerous_changes_are_told() {
        let of = |rule: &str, field: &str, value: Value| advise(&reason(rule, field, value), Some("web"));
        let shell = of("commands", "process.Args", json!(["/bin/sh"]));
        assert_eq!(shell.policy.unwrap().place, "/containers/web/exec/-");
        assert!(shell.danger.is_some());
        assert!(of("commands", "process.Args", json!(["pg_isready"])).danger.is_none());
        assert!(of("environment", "", json!("LD_PRELOAD=/x")).danger.unwrap().contains("LD_PRELOAD"));
        assert!(of("environment", "", json!("SHOP=1")).danger.is_none());
        let mount = of(
            "mounts",
            "",
            json!({"destination": "/usr/bin/x", "source": "/run/kata-containers/shared/containers/x"}),
        );
        assert!(mount.danger.unwrap().contains("hide"));
        let sysctl = of("kernel parameters", "OCI.Linux.Sysctl[\"net.core.somaxconn\"]", json!("1"));
        assert_eq!(sysctl.policy.unwrap().value, json!({"net.core.somaxconn": "1"}));
        assert!(of("no hooks", "", json!([])).danger.is_some());
    }
}
