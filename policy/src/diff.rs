//! Two generated policies in words: which container, which field, and whether the second lets the host do more or less.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use serde::Serialize;
use serde_json::Value;

use crate::generate::{ContainerData, PolicyData};

/// What a change does to what the host may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// More is allowed.
    Wider,
    /// Something else is allowed.
    Other,
    /// Less is allowed.
    Narrower,
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Change {
    /// What it does.
    pub effect: Effect,
    /// Container; none for what holds for the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Field of the policy's document.
    pub field: String,
    /// In words.
    pub message: String,
}

/// The changes from `old` to `new`, the widening ones first.
#[must_use]
pub fn diff(old: &PolicyData, new: &PolicyData) -> Vec<Change> {
    let mut changes = Changes { container: None, all: Vec::new() };
    open(old, new, &mut changes);
    pod(old, new, &mut changes);
    changes.container = Some("(sandbox)".to_owned());
    container(&old.sandbox, &new.sandbox, &mut changes);
    for name in keys(&old.containers, &new.containers) {
        changes.container = Some(name.clone());
        match (old.containers.get(&name), new.containers.get(&name)) {
            (Some(old), Some(new)) => container(old, new, &mut changes),
            (Some(_), None) => changes.add(Effect::Narrower, "", "the container may not run any more"),
            (None, Some(new)) => {
                changes.add(
                    Effect::Wider,
                    "",
                    format!("a container more: it runs {:?} of {}", new.args, new.image.digests.join(" ")),
                );
            }
            (None, None) => {}
        }
    }
    changes.all.sort();
    changes.all
}

struct Changes {
    container: Option<String>,
    all: Vec<Change>,
}

impl Changes {
    fn add(&mut self, effect: Effect, field: &str, message: impl Into<String>) {
        self.all.push(Change {
            effect,
            container: self.container.clone(),
            field: field.to_owned(),
            message: message.into(),
        });
    }

    /// A value that is another one.
    fn value<T: PartialEq + Debug>(&mut self, field: &str, old: &T, new: &T) {
        if old != new {
            self.add(Effect::Other, field, format!("{new:?} in place of {old:?}"));
        }
    }

    /// A demand on the host: when it is dropped, more is allowed.
    fn demand(&mut self, field: &str, old: bool, new: bool) {
        match (old, new) {
            (true, false) => self.add(Effect::Wider, field, "it is not demanded any more"),
            (false, true) => self.add(Effect::Narrower, field, "it is demanded now"),
            _ => {}
        }
    }

    /// A right: when it is given, more is allowed.
    fn right(&mut self, field: &str, old: bool, new: bool) {
        match (old, new) {
            (false, true) => self.add(Effect::Wider, field, "it is open now"),
            (true, false) => self.add(Effect::Narrower, field, "it is closed now"),
            _ => {}
        }
    }

    /// A list of what is allowed.
    fn list<T: Ord + Debug + Clone>(&mut self, field: &str, old: &[T], new: &[T]) {
        let (old, new): (BTreeSet<&T>, BTreeSet<&T>) = (old.iter().collect(), new.iter().collect());
        for item in new.difference(&old) {
            self.add(Effect::Wider, field, format!("{item:?} is allowed now"));
        }
        for item in old.difference(&new) {
            self.add(Effect::Narrower, field, format!("{item:?} is not allowed any more"));
        }
    }
}

fn keys<T>(old: &BTreeMap<String, T>, new: &BTreeMap<String, T>) -> BTreeSet<String> {
    old.keys().chain(new.keys()).cloned().collect()
}

fn open(old: &PolicyData, new: &PolicyData, changes: &mut Changes) {
    let flags = |data: &PolicyData| match serde_json::to_value(&data.open) {
        Ok(Value::Object(flags)) => flags,
        _ => serde_json::Map::new(),
    };
    let (before, after) = (flags(old), flags(new));
    for (name, now) in &after {
        let was = before.get(name).and_then(Value::as_bool).unwrap_or_default();
        changes.right(&format!("open.{name}"), was, now.as_bool().unwrap_or_default());
    }
    let keys = |data: &PolicyData| -> Vec<String> {
        data.secure_mounts.iter().map(|one| format!("{} at {}", one.key, one.mount_point)).collect()
    };
    changes.list("secure_mounts", &keys(old), &keys(new));
}

fn pod(old: &PolicyData, new: &PolicyData, changes: &mut Changes) {
    let (old, new) = (&old.pod, &new.pod);
    match (&old.namespace, &new.namespace) {
        (Some(_), None) => changes.add(Effect::Wider, "pod.namespace", "any namespace"),
        (None, Some(name)) => changes.add(Effect::Narrower, "pod.namespace", format!("only {name:?}")),
        (old, new) => changes.value("pod.namespace", old, new),
    }
    if old.hostname != new.hostname {
        changes.add(Effect::Other, "pod.hostname", format!("{} in place of {}", new.hostname, old.hostname));
    }
    changes.right("pod.share_processes", old.share_processes, new.share_processes);
    changes.right("pod.user_namespace", old.user_namespace, new.user_namespace);
    changes.right("pod.service_variables", old.service_variables, new.service_variables);
    let pairs =
        |map: &BTreeMap<String, String>| map.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>();
    changes.list("pod.sysctls", &pairs(&old.sysctls), &pairs(&new.sysctls));
}

fn container(old: &ContainerData, new: &ContainerData, changes: &mut Changes) {
    changes.value("kind", &old.kind, &new.kind);
    changes.value("args", &old.args, &new.args);
    changes.value("cwd", &old.cwd, &new.cwd);
    if old.image.digests != new.image.digests {
        changes.add(
            Effect::Other,
            "image",
            format!("{} in place of {}", new.image.digests.join(" "), old.image.digests.join(" ")),
        );
    }
    let names = |data: &ContainerData| -> Vec<String> {
        data.image.references.iter().filter(|name| !name.contains('@')).cloned().collect()
    };
    changes.list("image.references", &names(old), &names(new));
    environment(old, new, changes);
    user(old, new, changes);
    changes.list("capabilities", &old.capabilities, &new.capabilities);
    changes.right("privileged", old.privileged, new.privileged);
    changes.right("unmasked", old.unmasked, new.unmasked);
    changes.demand("read_only_root", old.read_only_root, new.read_only_root);
    changes.demand("no_new_privileges", old.no_new_privileges, new.no_new_privileges);
    changes.list("devices", &old.devices, &new.devices);
    let commands = |data: &ContainerData| data.exec.iter().map(|one| one.args.clone()).collect::<Vec<_>>();
    changes.list("exec", &commands(old), &commands(new));
    changes.right("stdin", old.stdin, new.stdin);
    changes.right("terminal", old.terminal, new.terminal);
    mounts(old, new, changes);
}

fn environment(old: &ContainerData, new: &ContainerData, changes: &mut Changes) {
    let named = |data: &ContainerData| -> BTreeMap<String, String> {
        let pair =
            |entry: &String| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        data.env.keys().filter_map(pair).collect()
    };
    let (before, after) = (named(old), named(new));
    let late_keys = keys(&old.env_at_run_time, &new.env_at_run_time);
    for name in keys(&before, &after).union(&late_keys) {
        let field = format!("env[{name:?}]");
        let was = (before.get(name), old.env_at_run_time.get(name));
        let is = (after.get(name), new.env_at_run_time.get(name));
        match (was, is) {
            (was, is) if was == is => {}
            ((None, None), (Some(value), _)) => {
                changes.add(Effect::Other, &field, format!("it is {value:?} now, and was not set"))
            }
            ((Some(value), _), (None, None)) => {
                changes.add(Effect::Other, &field, format!("it is not set any more, and was {value:?}"))
            }
            ((Some(_), _), (None, Some(matcher))) => {
                changes.add(Effect::Wider, &field, format!("{matcher}, in place of one value"))
            }
            ((None, Some(_)), (Some(value), _)) => {
                changes.add(Effect::Narrower, &field, format!("{value:?} alone"))
            }
            ((Some(old), _), (Some(new), _)) => changes.value(&field, old, new),
            ((_, old), (_, Some(new))) => {
                let effect = match old {
                    Some(old) if old.is_any() => Effect::Narrower,
                    _ if new.is_any() => Effect::Wider,
                    _ => Effect::Other,
                };
                changes.add(effect, &field, format!("{new} is allowed now"));
            }
            ((_, Some(_)), (None, None)) => {
                changes.add(Effect::Narrower, &field, "it may not be set any more")
            }
            ((None, None), (None, None)) => {}
        }
    }
}

fn user(old: &ContainerData, new: &ContainerData, changes: &mut Changes) {
    for (field, old, new) in
        [("user.uid", old.user.uid, new.user.uid), ("user.gid", old.user.gid, new.user.gid)]
    {
        let words = |id: Option<u32>| id.map_or_else(|| "the image's".to_owned(), |id| id.to_string());
        if old != new {
            let effect = if new == Some(0) { Effect::Wider } else { Effect::Other };
            changes.add(effect, field, format!("{} in place of {}", words(new), words(old)));
        }
    }
    changes.demand("user.gid_or_zero", !old.user.gid_or_zero, !new.user.gid_or_zero);
    changes.list("user.groups", &old.user.groups, &new.user.groups);
    changes.demand("user.not_root", old.user.not_root, new.user.not_root);
}

fn mounts(old: &ContainerData, new: &ContainerData, changes: &mut Changes) {
    for path in keys(&old.mounts, &new.mounts) {
        let field = format!("mounts[{path:?}]");
        match (old.mounts.get(&path), new.mounts.get(&path)) {
            (None, Some(mount)) => {
                changes.add(Effect::Wider, &field, format!("a mount more: {} ({})", mount.kind, mount.from))
            }
            (Some(mount), None) => changes.add(
                Effect::Narrower,
                &field,
                format!("no mount any more; it was {} ({})", mount.kind, mount.from),
            ),
            (Some(old), Some(new)) => {
                changes.demand(&format!("{field}.read_only"), old.read_only, new.read_only);
                changes.demand(&format!("{field}.required"), old.required, new.required);
                if (&old.kind, &old.from, &old.path) != (&new.kind, &new.from, &new.path) {
                    let effect = match (old.kind.as_str(), new.kind.as_str()) {
                        ("scratch", "files" | "claim" | "host") => Effect::Wider,
                        ("files" | "claim" | "host", "scratch") => Effect::Narrower,
                        _ => Effect::Other,
                    };
                    changes.add(
                        effect,
                        &field,
                        format!("{} ({}) in place of {} ({})", new.kind, new.from, old.kind, old.from),
                    );
                }
            }
            (None, None) => {}
        }
    }
}
