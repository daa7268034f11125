//! The `-info` action (containerd ≥ 1.7): name, version and abilities of the runtime.

use anyhow::Context;
use kata_cc_containerd_protocol::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde_json::json;

/// The bytes to print.
pub fn info(runtime: &str) -> anyhow::Result<Vec<u8>> {
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "poststop"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "cgroup": {"v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
        },
    });
    let features = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features".to_owned(),
        value: serde_json::to_vec(&features)?,
        ..Any::default()
    };
    let version =
        RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..RuntimeVersion::default() };
    RuntimeInfo {
        name: runtime.to_owned(),
        version: MessageField::some(version),
        features: MessageField::some(features),
        ..RuntimeInfo::default()
    }
    .write_to_bytes()
    .context("cannot encode the answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_name_version_and_features() {
        let info = RuntimeInfo::parse_from_bytes(&info("io.containerd.kata-cc.v2").unwrap()).unwrap();
        assert_eq!(info.name, "io.containerd.kata-cc.v2");
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
        assert!(serde_json::from_slice::<serde_json::Value>(&info.features.value).is_ok());
    }
}
