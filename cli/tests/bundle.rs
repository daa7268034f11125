//! `kata-cc policy bundle`: built, signed and verified from a folder.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

mod common;

use std::path::Path;
use std::process::Command;

use common::Node;

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn a_folder_is_built_signed_and_verified() {
    let (node, folder) = (Node::new(), tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name).display().to_string();
    let root = folder.path().join("policies");
    write(&root, "kata-cc-policy.yaml", "format: 1\nname: shop\nversion: '1'\n");
    write(
        &root,
        "attestation/default_cpu.rego",
        "package policy\nimport rego.v1\ntrust_claims := {\"hardware\": 2}\n",
    );
    write(&root, "attestation/default_cpu.test.yaml", "cases: [{name: a, claims: {}, status: affirming}]\n");
    write(&root, "README.md", "hello");
    let policies = at("policies");
    let built = node.json(&["policy", "bundle", "build", &policies, "-o", &at("a.tar")]);
    assert_eq!((&built["passed"], &built["name"]), (&true.into(), &"shop".into()));
    node.ok(&["policy", "bundle", "build", &policies, "-o", &at("b.tar")]);
    assert_eq!(std::fs::read(at("a.tar")).unwrap(), std::fs::read(at("b.tar")).unwrap());
    node.ok(&[
        "policy",
        "bundle",
        "build",
        &policies,
        "-o",
        &format!("oci:{}", at("layout")),
        "--revision",
        "c0ffee",
    ]);
    assert!(std::fs::read_to_string(at("layout/index.json")).unwrap().contains("\"1\""));
    assert_eq!(node.json(&["policy", "bundle", "show", &at("a.tar")])["digest"], built["digest"]);

    for (name, out) in [("genpkey", "one"), ("genpkey", "two")] {
        let key = at(&format!("{out}.key"));
        let made = Command::new("openssl")
            .args([name, "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &key])
            .output();
        assert!(made.unwrap().status.success());
        let made = Command::new("openssl")
            .args(["pkey", "-in", &key, "-pubout", "-out", &at(&format!("{out}.pub"))])
            .output();
        assert!(made.unwrap().status.success());
    }
    for target in [&policies, &at("a.tar")] {
        let unsigned = node.run(&["policy", "bundle", "verify", target, "--key", &at("one.pub")]);
        assert!(unsigned.code == 1 && unsigned.stderr.contains("is not signed"), "{unsigned:?}");
        node.ok(&["policy", "bundle", "sign", target, "--key", &at("one.key")]);
        assert_eq!(
            node.json(&["policy", "bundle", "verify", target, "--key", &at("one.pub")])["signed"],
            true
        );
        let other = node.run(&["policy", "bundle", "verify", target, "--key", &at("two.pub")]);
        assert!(other.code == 1 && other.stderr.contains("by another key"), "{other:?}");
        let none = node.run(&["policy", "bundle", "verify", target, "--key", &at("none.pub")]);
        assert_eq!(none.code, 2, "{none:?}");
    }
    // A case that does not come as it says.
    write(&root, "attestation/default_cpu.test.yaml", "cases: [{name: a, claims: {}, status: warning}]\n");
    let refused = node.run(&["policy", "bundle", "build", &policies, "-o", &at("c.tar")]);
    assert!(refused.code == 1 && refused.stdout.contains("expected warning, seen affirming"), "{refused:?}");
    assert!(!folder.path().join("c.tar").exists());
    let gone = node.run(&["policy", "bundle", "build", &at("nowhere")]);
    assert_eq!(gone.code, 2, "{gone:?}");
    let away = node.run(&[
        "policy",
        "bundle",
        "pull",
        "127.0.0.1:1/a:1",
        "-o",
        &at("d.tar"),
        "--insecure-registry",
        "127.0.0.1:1",
    ]);
    assert_eq!(away.code, 2, "{away:?}");
}
