//! A bundle: `config.json`, read with limits and checked before anything is made.
//!
//! What is refused here could not be had in the sentry and would be missed by the program; what would not be missed (labels of the host's
//! security modules, the propagation of mounts) is passed over.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

use crate::wire;

/// Largest `config.json`.
const MOST: u64 = 16 << 20;

/// Why a bundle is refused.
#[derive(Debug, Error)]
pub enum BundleError {
    /// There is no file.
    #[error("JSON specification file config.json not found in {0}; `spec` writes one")]
    NoFile(PathBuf),
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the host says.
        source: std::io::Error,
    },
    /// It is too large.
    #[error("{0} has more than {MOST} bytes")]
    Large(PathBuf),
    /// It is not JSON, or not an object.
    #[error("{path} is not a specification: {reason}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A field is not as it must be.
    #[error("invalid specification: {field}: {reason}")]
    Field {
        /// Which.
        field: String,
        /// What it must be.
        reason: String,
    },
    /// There is no root file system.
    #[error("invalid rootfs: {path}: {reason}")]
    Root {
        /// Where it should be.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A checked bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Its absolute path.
    pub path: PathBuf,
    /// Absolute path of its root file system.
    pub rootfs: PathBuf,
    /// Its file as it is.
    pub text: Vec<u8>,
    /// The same, read.
    pub spec: Value,
}

fn field(field: impl Into<String>, reason: impl Into<String>) -> BundleError {
    BundleError::Field { field: field.into(), reason: reason.into() }
}

/// A JSON object of a file.
///
/// # Errors
/// See [`BundleError`].
pub fn read_object(path: &Path) -> Result<(Vec<u8>, Value), BundleError> {
    let failed = |source| BundleError::Read { path: path.to_owned(), source };
    let mut text = Vec::new();
    File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut text)).map_err(failed)?;
    if text.len() as u64 > MOST {
        return Err(BundleError::Large(path.to_owned()));
    }
    parse_object(path, &text).map(|value| (text, value))
}

fn parse_object(path: &Path, text: &[u8]) -> Result<Value, BundleError> {
    let parse = |reason: String| BundleError::Parse { path: path.to_owned(), reason };
    let value: Value = serde_json::from_slice(text).map_err(|error| parse(error.to_string()))?;
    if !value.is_object() {
        return Err(parse("it is no JSON object".into()));
    }
    Ok(value)
}

impl Bundle {
    /// Reads and checks one.
    ///
    /// # Errors
    /// See [`BundleError`].
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        let file = path.join("config.json");
        let (text, mut spec) = match read_object(&file) {
            Err(BundleError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Err(BundleError::NoFile(path.to_owned()));
            }
            other => other?,
        };
        let path =
            path.canonicalize().map_err(|source| BundleError::Read { path: path.to_owned(), source })?;
        check(&spec)?;
        let rootfs = rootfs(&path, &spec)?;
        make_sources_absolute(&path, &mut spec);
        Ok(Self { path, rootfs, text, spec })
    }

    /// The annotations.
    #[must_use]
    pub fn annotations(&self) -> BTreeMap<String, String> {
        wire::map(&self.spec, "annotations").into_iter().collect()
    }

    /// Whether the first process has a terminal.
    #[must_use]
    pub fn terminal(&self) -> bool {
        self.spec["process"]["terminal"].as_bool().unwrap_or_default()
    }
}

/// The root is a folder of the host: absolute, or within the bundle.
fn rootfs(bundle: &Path, spec: &Value) -> Result<PathBuf, BundleError> {
    let path = spec["root"]["path"].as_str().filter(|path| !path.is_empty());
    let path = bundle.join(path.ok_or_else(|| field("root.path", "it must be set"))?);
    let wrong = |reason: String| BundleError::Root { path: path.clone(), reason };
    let real = path.canonicalize().map_err(|error| wrong(error.to_string()))?;
    if !real.is_dir() {
        return Err(wrong("it is not a folder".into()));
    }
    Ok(real)
}

/// Sources of bind mounts may be named from the bundle on (runtime-spec, config.md "Mounts").
fn make_sources_absolute(bundle: &Path, spec: &mut Value) {
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        let converted = wire::mount(mount);
        if wire::is_bind(&converted) && !converted.source.is_empty() {
            mount["source"] = Value::String(bundle.join(&converted.source).to_string_lossy().into_owned());
        }
    }
}

fn check(spec: &Value) -> Result<(), BundleError> {
    let version = spec["ociVersion"].as_str().unwrap_or_default();
    if version.split('.').next() != Some("1") {
        let reason = format!("{version:?} is not understood; versions 1.x of the specification are");
        return Err(field("ociVersion", reason));
    }
    check_process(&spec["process"], "process")?;
    for (index, mount) in wire::list(spec, "mounts").iter().enumerate() {
        let destination = mount["destination"].as_str().unwrap_or_default();
        if !destination.starts_with('/') {
            let reason = format!("destination {destination:?} must be an absolute path");
            return Err(field(format!("mounts[{index}]"), reason));
        }
    }
    for kind in ["windows", "solaris", "vm", "zos"] {
        if spec[kind].is_object() {
            return Err(field(kind, "this is a runtime for Linux"));
        }
    }
    let linux = &spec["linux"];
    for (name, why) in [
        ("intelRdt", "caches are the host's, and the sentry's threads come and go"),
        ("timeOffsets", "there are no namespaces of time in the sentry"),
    ] {
        let set = linux[name].as_object().is_some_and(|object| !object.is_empty());
        if set {
            return Err(field(format!("linux.{name}"), why));
        }
    }
    if linux["seccomp"]["listenerPath"].as_str().is_some_and(|path| !path.is_empty()) {
        let reason = "calls of the sentry's programs cannot be handed to a listener on the host";
        return Err(field("linux.seccomp.listenerPath", reason));
    }
    check_limits(&linux["resources"])
}

/// Checks an OCI process; `name` is what it is called in errors.
///
/// # Errors
/// [`BundleError::Field`].
pub fn check_process(process: &Value, name: &str) -> Result<(), BundleError> {
    let at = |of: &str| format!("{name}.{of}");
    if !process.is_object() {
        return Err(field(name, "it must be set"));
    }
    let args = wire::list(process, "args");
    if args.is_empty() || args.iter().any(|word| !word.is_string()) {
        return Err(field(at("args"), "args must not be empty, and must be texts"));
    }
    let cwd = process["cwd"].as_str().unwrap_or_default();
    if !cwd.starts_with('/') {
        return Err(field(at("cwd"), format!("Cwd must be an absolute path, and is {cwd:?}")));
    }
    for id in ["uid", "gid"] {
        let value = &process["user"][id];
        if !value.is_null() && value.as_u64().is_none_or(|number| number >= u64::from(u32::MAX)) {
            return Err(field(at(&format!("user.{id}")), format!("{value} is not the number of one")));
        }
    }
    for entry in wire::list(process, "env") {
        if !entry.as_str().is_some_and(|entry| entry.contains('=')) {
            return Err(field(at("env"), format!("{entry} is not NAME=value")));
        }
    }
    Ok(())
}

fn check_limits(resources: &Value) -> Result<(), BundleError> {
    let pids = &resources["pids"]["limit"];
    if !pids.is_null() && pids.as_i64().is_none() {
        return Err(field("linux.resources.pids.limit", format!("{pids} is not a number")));
    }
    let memory = &resources["memory"];
    let (limit, swap) = (memory["limit"].as_i64(), memory["swap"].as_i64());
    if let (Some(limit @ 1..), Some(swap @ 1..)) = (limit, swap)
        && swap < limit
    {
        let reason = format!("memory+swap limit {swap} must not be below the memory limit {limit}");
        return Err(field("linux.resources.memory.swap", reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Value {
        json!({"ociVersion": "1.0.2-dev", "process": {"args": ["sh"], "cwd": "/", "env": ["A=b"], "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"}, "mounts": [{"destination": "/x", "type": "bind", "source": "y"},
            {"destination": "/proc", "type": "proc", "source": "proc"}]})
    }

    fn open(spec: &Value) -> Result<Bundle, BundleError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        std::fs::write(dir.path().join("config.json"), spec.to_string()).unwrap();
        let bundle = Bundle::open(dir.path())?;
        assert_eq!(bundle.rootfs, dir.path().canonicalize().unwrap().join("rootfs"));
        assert_eq!(bundle.spec["mounts"][0]["source"], bundle.path.join("y").to_str().unwrap());
        assert_eq!(bundle.spec["mounts"][1]["source"], "proc");
        Ok(bundle)
    }

    #[test]
    fn a_good_one_is_read_with_absolute_paths() {
        assert!(!open(&good()).unwrap().terminal());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |pointer: &str, value: Value| {
            let mut spec = good();
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            let mut at = &mut spec;
            for part in parent.split('/').filter(|part| !part.is_empty()) {
                at = &mut at[part];
            }
            at[name] = value;
            open(&spec).unwrap_err().to_string()
        };
        for (pointer, value, expected) in [
            ("/ociVersion", json!("2.0.0"), "ociVersion: \"2.0.0\""),
            ("/process", json!(null), "process: it must be set"),
            ("/process/args", json!([]), "args must not be empty"),
            ("/process/args", json!([1]), "args must not be empty"),
            ("/process/cwd", json!("x"), "Cwd must be an absolute path"),
            ("/process/env", json!(["x"]), "process.env: \"x\" is not NAME=value"),
            ("/process/user/uid", json!(-1), "process.user.uid: -1"),
            ("/mounts", json!([{"destination": "x"}]), "mounts[0]: destination \"x\""),
            ("/root/path", json!(""), "root.path: it must be set"),
            ("/root/path", json!("nowhere"), "invalid rootfs: "),
            ("/root/path", json!("config.json"), "it is not a folder"),
            ("/windows", json!({}), "windows: "),
            ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt: "),
            ("/linux/seccomp/listenerPath", json!("/x"), "linux.seccomp.listenerPath: "),
            ("/linux/resources/pids", json!({"limit": "x"}), "pids.limit"),
            ("/linux/resources/memory", json!({"limit": 10, "swap": 5}), "memory.swap: memory+swap limit 5"),
        ] {
            let error = with(pointer, value);
            assert!(error.contains(expected), "{pointer}: {error}");
        }
    }

    #[test]
    fn files_that_are_none_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = || Bundle::open(dir.path()).unwrap_err().to_string();
        assert!(error().starts_with("JSON specification file config.json not found"));
        for (text, expected) in [("{", "EOF"), ("[]", "no JSON object"), ("", "EOF"), ("\u{1}", "line 1")] {
            std::fs::write(dir.path().join("config.json"), text).unwrap();
            assert!(error().contains(expected), "{}", error());
        }
        let file = File::create(dir.path().join("config.json")).unwrap();
        file.set_len(MOST + 1).unwrap();
        assert!(error().contains("more than"), "{}", error());
    }
}
