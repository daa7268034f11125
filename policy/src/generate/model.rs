//! What a generated policy says: the document `policy_data`, as a reviewer reads it and as the rules read it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of the document and of the rules that read it.
pub const VERSION: u32 = 1;

/// The document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyData {
    /// [`VERSION`].
    pub version: u32,
    /// The pod.
    pub pod: PodData,
    /// Requests that are open besides what a pod needs.
    pub open: Open,
    /// The pod's own container (pause).
    pub sandbox: ContainerData,
    /// Containers by name.
    pub containers: BTreeMap<String, ContainerData>,
    /// Encrypted volumes that programs in the guest may open.
    #[serde(default)]
    pub secure_mounts: Vec<SecureMount>,
}

/// What holds for the whole pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodData {
    /// Kind and name in the manifest.
    pub workload: String,
    /// Namespace; any where the manifest names none.
    pub namespace: Option<String>,
    /// Host name.
    pub hostname: Matcher,
    /// Containers see each other's processes.
    pub share_processes: bool,
    /// Containers have a user namespace.
    pub user_namespace: bool,
    /// Variables of all services of the namespace, not of the cluster's API alone.
    pub service_variables: bool,
    /// Kernel parameters.
    pub sysctls: BTreeMap<String, String>,
}

/// Requests that a pod does not need to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Open {
    /// Any command in any container, with its streams (`kubectl exec`).
    pub exec: bool,
    /// Output of programs (`kubectl logs`).
    pub logs: bool,
    /// Standard input of containers that ask for it (`kubectl attach`).
    pub stdin: bool,
    /// `tar` in any container, with its streams (`kubectl cp`).
    pub copy: bool,
    /// Figures of the guest and its volumes.
    pub metrics: bool,
    /// Stopping and going on.
    pub pause: bool,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerData {
    /// `container`, `init`, `sidecar`, `ephemeral` or `sandbox`.
    pub kind: String,
    /// Its image.
    pub image: ImageData,
    /// Program and arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Those that only the running pod knows, by their number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub args_at_run_time: BTreeMap<String, Matcher>,
    /// Working folder.
    #[serde(default)]
    pub cwd: String,
    /// Variables as `NAME=value`, and where each comes from.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Variables whose values only the running pod knows, by name.
    #[serde(default)]
    pub env_at_run_time: BTreeMap<String, Matcher>,
    /// The image's, of names that the pod gives another value: a runtime may leave them before the pod's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_overridden: Vec<String>,
    /// User and groups.
    pub user: UserData,
    /// Capabilities at most.
    pub capabilities: Vec<String>,
    /// All rights of the guest.
    pub privileged: bool,
    /// Paths of the kernel are neither hidden nor read-only.
    pub unmasked: bool,
    /// The root must be read-only.
    pub read_only_root: bool,
    /// No set-user-id programs.
    pub no_new_privileges: bool,
    /// Mounts by their place.
    #[serde(default)]
    pub mounts: BTreeMap<String, MountData>,
    /// Device nodes.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Commands that may be run in it.
    #[serde(default)]
    pub exec: Vec<ExecData>,
    /// Standard input is asked for.
    #[serde(default)]
    pub stdin: bool,
    /// A terminal is asked for.
    #[serde(default)]
    pub terminal: bool,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageData {
    /// Names by which the host may ask for it.
    pub references: Vec<String>,
    /// Digests of its manifest.
    pub digests: Vec<String>,
}

/// User and groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserData {
    /// Number; that of the image when null, which the guest looks up in the image's own files.
    pub uid: Option<u32>,
    /// Group, likewise.
    pub gid: Option<u32>,
    /// Group 0 as well: the group is that of the image's `user:group`, of which Kubernetes hands on the user alone
    /// (`getImageUser` in kuberuntime's helpers.go), and a runtime takes group 0 for a user that the image's files do not know.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gid_or_zero: bool,
    /// Groups besides; those of the image's user are allowed as well.
    pub groups: Vec<u32>,
    /// Never user 0.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_root: bool,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountData {
    /// `files` (copied in by the host), `scratch` (made in the guest), `claim` (a disk of the host's), `host` (a path of the host),
    /// `image-volume`.
    pub kind: String,
    /// Where it comes from, in words.
    pub from: String,
    /// Name of the pod's volume.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub volume: String,
    /// Path of the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// It must be read-only.
    pub read_only: bool,
    /// It must be there.
    pub required: bool,
    /// A folder of the volume.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sub_path: bool,
    /// In memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub memory: bool,
    /// Mounts go both ways.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared_propagation: bool,
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExecData {
    /// Program and arguments.
    pub args: Vec<String>,
    /// What for.
    #[serde(rename = "for")]
    pub purpose: String,
}

/// An encrypted volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecureMount {
    /// Resource of the key broker with its key.
    pub key: String,
    /// Where it is mounted.
    pub mount_point: String,
}

/// Which values are right, where only the running pod knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Matcher {
    /// Where the value comes from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// This one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exactly: Option<String>,
    /// It begins so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begins: Option<String>,
    /// What the rest is made of: `ip`, `number`, `name`, `id`, `word`, `any`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is: Option<String>,
    /// A regular expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matches: Option<String>,
}

impl Matcher {
    /// One value.
    #[must_use]
    pub fn exactly(value: impl Into<String>) -> Self {
        Self { exactly: Some(value.into()), ..Self::default() }
    }

    /// Any value of these characters.
    #[must_use]
    pub fn of(is: &str, from: impl Into<String>) -> Self {
        Self { is: Some(is.to_owned()), from: from.into(), ..Self::default() }
    }

    /// Whether the host may choose any text.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.is.as_deref() == Some("any")
    }
}

impl std::fmt::Display for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.exactly, &self.begins, &self.is, &self.matches) {
            (Some(value), ..) => write!(f, "{value:?}"),
            (_, Some(begin), is, _) => write!(f, "{begin:?} and {}", is.as_deref().unwrap_or("nothing")),
            (.., Some(is), _) => write!(f, "any {is}"),
            (.., Some(matches)) => write!(f, "/{matches}/"),
            _ => write!(f, "nothing"),
        }
    }
}
