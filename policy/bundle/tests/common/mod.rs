//! A folder with a bundle, and checks that stand for the attestation service's.
#![allow(dead_code, reason = "each test uses some")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use kata_cc_policy_bundle::{Bundle, Checks, Fault, folder};
use serde_json::Value;

pub(crate) const RESOURCE: &str = "package policy\nimport rego.v1\ndefault allow := false\n\
    allow if { input.status == \"good\"; data[\"resource-path\"][0] == \"shop\" }\n";
pub(crate) const RESOURCE_CASES: &str = "cases:\n  - {name: shop, claims: {status: good}, resource: 'kbs:///shop/key/1', allow: true}\n  \
    - {name: bad, like: shop, set: {/status: bad}, deny: true}\n  - {name: other, like: shop, resource: 'kbs:///bank/key/1', deny: true}\n";

/// The files of a bundle with every part.
pub(crate) fn files() -> Vec<(&'static str, String)> {
    vec![
        (
            "kata-cc-policy.yaml",
            "format: 1\nname: shop\nversion: '1'\ntrust: [{name: ci, key: trust/ci.pem}]\n".to_owned(),
        ),
        ("agent/web.rego", "package agent_policy\nimport rego.v1\ndefault CreateContainerRequest := false\nCreateSandboxRequest if input.sandbox_id == \"s1\"\n".to_owned()),
        (
            "agent/web.test.yaml",
            "cases:\n  - {name: starts, request: CreateSandboxRequest, input: {sandbox_id: s1}, allow: true}\n  \
             - {name: other, like: starts, set: {/sandbox_id: s2}, deny: true}\n"
                .to_owned(),
        ),
        ("image/policy.json", r#"{"default": [{"type": "reject"}]}"#.to_owned()),
        ("attestation/default_cpu.rego", "package policy\ntrust_claims := {}\n".to_owned()),
        (
            "attestation/default_cpu.test.yaml",
            "cases:\n  - {name: one, claims: {a: 1}, status: affirming}\n".to_owned(),
        ),
        ("resource/policy.rego", RESOURCE.to_owned()),
        ("resource/policy.test.yaml", RESOURCE_CASES.to_owned()),
        ("reference-values/nodes.json", r#"{"values": {"launch": ["ab"]}, "expires": "2030-01-01T00:00:00Z"}"#.to_owned()),
        ("trust/ci.pem", "a key\n".to_owned()),
    ]
}

pub(crate) fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

pub(crate) fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files() {
        write(folder.path(), path, &text);
    }
    folder
}

pub(crate) fn bundle(root: &Path) -> Bundle {
    Bundle::from_files(folder::read(root).unwrap().files).unwrap()
}

/// Takes everything but what says that it is bad.
pub(crate) struct Easy;

fn refuse(text: &str) -> Result<(), Fault> {
    if text.contains("bad") { Err("it is bad".into()) } else { Ok(()) }
}

impl Checks for Easy {
    fn attestation_policy(&self, _: &str, text: &str) -> Result<(), Fault> {
        refuse(text)
    }
    fn appraise(
        &self,
        _: &str,
        _: &str,
        claims: &Value,
        _: &BTreeMap<String, Value>,
    ) -> Result<String, Fault> {
        Ok(if claims["a"] == 1 { "affirming" } else { "warning" }.to_owned())
    }
    fn reference_value(&self, _: &str, value: &Value, _: Option<&str>) -> Result<(), Fault> {
        refuse(&value.to_string())
    }
    fn trusted_key(&self, pem: &[u8]) -> Result<(), Fault> {
        refuse(&String::from_utf8_lossy(pem))
    }
}

/// A key pair, made by openssl: private and public file.
pub(crate) fn key_pair(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (private, public) = (folder.join(format!("{name}.key")), folder.join(format!("{name}.pub")));
    let run = |arguments: &[&str]| {
        let done = Command::new("openssl").args(arguments).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let (key, out) = (private.to_str().unwrap(), public.to_str().unwrap());
    run(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key]);
    run(&["pkey", "-in", key, "-pubout", "-out", out]);
    (private, public)
}
