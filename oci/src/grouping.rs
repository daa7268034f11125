//! What a container is to its pod, read from the annotations of its `config.json`.
//!
//! Kubernetes (containerd's CRI, CRI-O) marks the sandbox container and says for every other which sandbox it
//! belongs to. `io.containerd.runc.v2.group` groups without Kubernetes. A container without any of them is a pod
//! of its own. One shim, and one virtual machine, serves one group.

use std::collections::HashMap;

use crate::store::is_identifier;

const CRI_TYPE: &str = "io.kubernetes.cri.container-type";
const CRI_SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
const CRIO_TYPE: &str = "io.kubernetes.cri-o.ContainerType";
const CRIO_SANDBOX: &str = "io.kubernetes.cri-o.SandboxID";
const GROUP: &str = "io.containerd.runc.v2.group";

/// Annotations that name the container's image, the most specific first. The last is for `ctr` and `nerdctl`, which
/// write none of the others.
const IMAGE: [&str; 4] = [
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri-o.ImageName",
    "dev.kata-cc.image",
    "nerdctl/image-name",
];

/// What a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A pod of its own.
    Single,
    /// The sandbox (pause) container of a pod.
    Sandbox,
    /// A container of a pod that has a sandbox container, or of an explicit group.
    Member,
}

/// Which pod a container belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The pod's id: the id of its first container, or the explicit group's name.
    pub id: String,
    /// What the container is in it.
    pub kind: Kind,
}

/// Tell the group of container `id`.
///
/// A group name that is no identifier is ignored: it becomes part of a path.
#[must_use]
pub fn group(id: &str, annotations: &HashMap<String, String>) -> Group {
    let get = |key: &str| annotations.get(key).map(String::as_str).filter(|value| is_identifier(value));
    let kind = get(CRI_TYPE).or_else(|| get(CRIO_TYPE));
    if kind == Some("sandbox") {
        return Group { id: id.to_owned(), kind: Kind::Sandbox };
    }
    let sandbox = get(CRI_SANDBOX).or_else(|| get(CRIO_SANDBOX)).or_else(|| get(GROUP));
    match sandbox {
        Some(sandbox) if sandbox != id => Group { id: sandbox.to_owned(), kind: Kind::Member },
        _ => Group { id: id.to_owned(), kind: Kind::Single },
    }
}

/// The reference of the container's image, when an annotation tells it.
#[must_use]
pub fn image(annotations: &HashMap<String, String>) -> Option<&str> {
    IMAGE.iter().find_map(|key| annotations.get(*key)).map(String::as_str).filter(|image| !image.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_container_alone_is_a_pod_of_its_own() {
        assert_eq!(group("a", &of(&[])), Group { id: "a".into(), kind: Kind::Single });
    }

    #[test]
    fn kubernetes_sandboxes_and_members() {
        let sandbox = of(&[(CRI_TYPE, "sandbox"), (CRI_SANDBOX, "s")]);
        assert_eq!(group("s", &sandbox), Group { id: "s".into(), kind: Kind::Sandbox });
        let member = of(&[(CRI_TYPE, "container"), (CRI_SANDBOX, "s")]);
        assert_eq!(group("c", &member), Group { id: "s".into(), kind: Kind::Member });
        let crio = of(&[(CRIO_TYPE, "container"), (CRIO_SANDBOX, "s")]);
        assert_eq!(group("c", &crio), Group { id: "s".into(), kind: Kind::Member });
        assert_eq!(group("s", &of(&[(CRIO_TYPE, "sandbox")])).kind, Kind::Sandbox);
    }

    #[test]
    fn explicit_groups() {
        assert_eq!(group("c", &of(&[(GROUP, "g")])), Group { id: "g".into(), kind: Kind::Member });
        assert_eq!(group("g", &of(&[(GROUP, "g")])).kind, Kind::Single);
    }

    #[test]
    fn a_group_that_is_a_path_is_ignored() {
        assert_eq!(
            group("c", &of(&[(CRI_SANDBOX, "../../etc")])),
            Group { id: "c".into(), kind: Kind::Single }
        );
    }

    #[test]
    fn the_image_is_found_in_kubernetes_crio_and_ctr_annotations() {
        for key in IMAGE {
            assert_eq!(image(&of(&[(key, "registry/app:1")])), Some("registry/app:1"));
        }
        assert_eq!(image(&of(&[(IMAGE[2], "")])), None);
    }
}
