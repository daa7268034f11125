//! Where things lie in the guest: Kata's paths.

use std::path::{Path, PathBuf};

/// Everything of containers.
pub(crate) const BASE: &str = "/run/kata-containers";
/// Files that the host copies in.
pub(crate) const SHARED: &str = "/run/kata-containers/shared/containers";
/// Pulled images.
pub(crate) const IMAGES: &str = "/run/kata-containers/image";
/// DNS configuration of the sandbox.
pub(crate) const RESOLV_CONF: &str = "/run/kata-containers/sandbox/resolv.conf";
/// Namespaces that outlive containers.
pub(crate) const NAMESPACES: &str = "/run/sandbox-ns";
/// The policy in the guest's root.
pub(crate) const DEFAULT_POLICY: &str = "/etc/kata-cc/default-policy.rego";
/// The policy for a guest without a TEE, in the guest's root.
pub(crate) const PLAIN_POLICY: &str = "/etc/kata-cc/plain-policy.rego";

/// Bundle of a container.
pub(crate) fn bundle(id: &str) -> PathBuf {
    Path::new(BASE).join(id)
}
