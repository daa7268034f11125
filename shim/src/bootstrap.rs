//! What `start` reads from stdin and answers on stdout, for every containerd from 1.6 on.
//!
//! | containerd | stdin | answer |
//! |---|---|---|
//! | 1.6, 1.7, 2.0–2.2 | options `Any`, or nothing | plain `unix://…` (2.x then speaks task v2 to us) |
//! | ≥ 2.3 | `BootstrapParams` | `BootstrapResult`, version 3 |
//!
//! Nothing in the environment tells 1.7 (which refuses version 3) from 2.0 (which takes it), so everything below 2.3
//! gets the plain address. A legacy options `Any` also parses as `BootstrapParams` (its type url falls into the field
//! of the instance id), so the sign of 2.3 is that id and namespace equal those of the command line.

use kata_cc_containerd_protocol::bootstrap::{BootstrapParams, BootstrapResult};
use kata_cc_containerd_protocol::runc_options::Options as RuncOptions;
use kata_cc_containerd_protocol::runtime_options::Options as RuntimeOptions;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use thiserror::Error;

/// containerd's own limit for what it writes to a shim's stdin.
pub const MAX_INPUT: usize = 10 << 20;

/// Why stdin was refused.
#[derive(Debug, Error)]
pub enum BootstrapError {
    /// More than containerd would ever write.
    #[error("stdin holds more than {MAX_INPUT} bytes")]
    TooLong,
    /// Neither `BootstrapParams` nor an `Any`.
    #[error("stdin is neither bootstrap parameters nor options: {0}")]
    Garbage(protobuf::Error),
}

/// What containerd told on stdin.
#[derive(Debug, Default, PartialEq)]
pub struct Input {
    /// Whether this is containerd 2.3 or newer, which takes a `BootstrapResult`.
    pub modern: bool,
    /// The runtime's options.
    pub options: Options,
    /// Folder for sockets in place of `/run/containerd/s`.
    pub socket_dir: Option<String>,
    /// Address for events.
    pub ttrpc_address: Option<String>,
    /// Whether a verbose log is wanted.
    pub debug: bool,
}

/// The part of the options that means something to this shim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Path of a node configuration to use in place of the default.
    pub config_path: Option<String>,
    /// The whole configuration (TOML), when no path is given.
    pub config_body: Option<Vec<u8>>,
    /// cgroup that the server is moved to.
    pub shim_cgroup: Option<String>,
}

impl Input {
    /// Interpret stdin given the command line's id and namespace.
    pub fn parse(bytes: &[u8], id: &str, namespace: &str) -> Result<Self, BootstrapError> {
        if bytes.len() > MAX_INPUT {
            return Err(BootstrapError::TooLong);
        }
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        if let Ok(params) = BootstrapParams::parse_from_bytes(bytes)
            && params.instance_id == id
            && params.namespace == namespace
        {
            let options = params.extensions.iter().filter_map(|extension| extension.value.as_ref());
            let options = options.map(Options::from_any).find(|options| *options != Options::default());
            return Ok(Self {
                modern: true,
                options: options.unwrap_or_default(),
                socket_dir: params.socket_dir.filter(|dir| dir.starts_with('/')),
                ttrpc_address: Some(params.containerd_ttrpc_address).filter(|address| !address.is_empty()),
                debug: params.log_level.value() < 0,
            });
        }
        let any = Any::parse_from_bytes(bytes).map_err(BootstrapError::Garbage)?;
        Ok(Self { options: Options::from_any(&any), ..Self::default() })
    }
}

impl Options {
    /// Read options of either kind; any other kind (another runtime's) means nothing to us.
    #[must_use]
    pub fn from_any(any: &Any) -> Self {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "runtimeoptions.v1.Options" | "cri.runtimeoptions.v1.Options" => {
                let options = RuntimeOptions::parse_from_bytes(&any.value).unwrap_or_default();
                Self {
                    config_path: some(options.config_path),
                    config_body: Some(options.config_body).filter(|body| !body.is_empty()),
                    shim_cgroup: None,
                }
            }
            "containerd.runc.v1.Options" => {
                let options = RuncOptions::parse_from_bytes(&any.value).unwrap_or_default();
                Self { shim_cgroup: some(options.shim_cgroup), ..Self::default() }
            }
            _ => Self::default(),
        }
    }
}

/// The bytes that `start` prints.
pub fn answer(address: &str, modern: bool) -> Result<Vec<u8>, protobuf::Error> {
    if !modern {
        return Ok(address.as_bytes().to_vec());
    }
    BootstrapResult {
        version: 3,
        address: address.to_owned(),
        protocol: "ttrpc".to_owned(),
        ..BootstrapResult::default()
    }
    .write_to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_cc_containerd_protocol::bootstrap::Extension;

    fn options_any(type_url: &str) -> Any {
        let options =
            RuntimeOptions { config_path: "/etc/kata-cc/node.toml".into(), ..RuntimeOptions::default() };
        Any { type_url: type_url.into(), value: options.write_to_bytes().unwrap(), ..Any::default() }
    }

    #[test]
    fn containerd_1_6_and_1_7_and_2_0_get_the_plain_address() {
        // 1.6: nothing on stdin; 1.6 with options: bare type url; 1.7 and 2.0: prefixed type url
        for input in [
            Vec::new(),
            options_any("runtimeoptions.v1.Options").write_to_bytes().unwrap(),
            options_any("type.googleapis.com/runtimeoptions.v1.Options").write_to_bytes().unwrap(),
        ] {
            let parsed = Input::parse(&input, "c1", "default").unwrap();
            assert!(!parsed.modern);
            assert_eq!(parsed.options.config_path.is_some(), !input.is_empty());
            assert_eq!(answer("unix:///run/s/1", parsed.modern).unwrap(), b"unix:///run/s/1");
        }
    }

    #[test]
    fn containerd_2_3_gets_a_bootstrap_result() {
        let params = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            containerd_ttrpc_address: "/run/containerd/containerd.sock.ttrpc".into(),
            socket_dir: Some("/run/c/s".into()),
            extensions: vec![Extension {
                value: Some(options_any("runtimeoptions.v1.Options")).into(),
                ..Extension::default()
            }],
            ..BootstrapParams::default()
        };
        let parsed = Input::parse(&params.write_to_bytes().unwrap(), "c1", "default").unwrap();
        assert!(parsed.modern);
        assert_eq!(parsed.socket_dir.as_deref(), Some("/run/c/s"));
        assert_eq!(parsed.options.config_path.as_deref(), Some("/etc/kata-cc/node.toml"));
        let bytes = answer("unix:///run/s/1", true).unwrap();
        let result = BootstrapResult::parse_from_bytes(&bytes).unwrap();
        assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
        assert_eq!(result.address, "unix:///run/s/1");
    }

    #[test]
    fn parameters_of_another_task_are_not_taken_for_ours() {
        let params = BootstrapParams {
            instance_id: "c2".into(),
            namespace: "default".into(),
            ..BootstrapParams::default()
        };
        assert!(!Input::parse(&params.write_to_bytes().unwrap(), "c1", "default").unwrap().modern);
    }

    #[test]
    fn runc_options_carry_the_shims_cgroup() {
        let options = RuncOptions { shim_cgroup: "/shims".into(), ..RuncOptions::default() };
        let any = Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        };
        assert_eq!(Options::from_any(&any).shim_cgroup.as_deref(), Some("/shims"));
    }

    #[test]
    fn too_long_and_garbage_are_refused() {
        assert!(matches!(Input::parse(&vec![0; MAX_INPUT + 1], "a", "b"), Err(BootstrapError::TooLong)));
        assert!(matches!(Input::parse(&[0xff; 9], "a", "b"), Err(BootstrapError::Garbage(_))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = Input::parse(&bytes, "c1", "default");
        }
    }
}
