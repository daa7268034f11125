//! The real binary as a user calls it: help, usage, errors, JSON, completions.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::process::{Command, Stdio};

use common::{Node, closed_port, minimal_kernel, oci_layout, stage0_image};

/// Every command, and options that its help must name.
const COMMANDS: &[(&[&str], &[&str])] = &[
    (
        &["run"],
        &["--tier", "--name", "--env", "--cpus", "--memory", "--init-data", "--config", "--tty", "IMAGE"],
    ),
    (&["doctor"], &["--json"]),
    (
        &["measure"],
        &[
            "--kernel",
            "--initramfs",
            "--cmdline-append",
            "--init-data",
            "--register",
            "--format",
            "--tee",
            "--explain",
        ],
    ),
    (&["measure", "diff"], &["<A>", "<B>"]),
    (&["image", "encrypt"], &["--key-id", "--key-file", "--require-tier", "--registry-ca", "--user"]),
    (&["image", "inspect"], &["--insecure-registry"]),
    (&["secret", "put"], &["--file", "--kbs", "--kbs-cert", "--admin-key"]),
    (&["secret", "get"], &["--kbs"]),
    (&["secret", "list"], &["--kbs"]),
    (&["secret", "rm"], &["--kbs"]),
    (&["secret", "seal", "vault"], &["--signing-kid", "--signing-jwk-path", "--resource-uri", "--provider"]),
    (&["secret", "seal", "envelope"], &["--signing-kid", "--key-id", "--key-file", "--file-path"]),
    (&["secret", "unseal"], &["--file-path", "--key-path", "--skip-verification", "--resource"]),
    (&["secret", "keygen"], &["--kid", "--output-dir"]),
    (&["policy", "set"], &["--file", "--id", "resource", "attestation"]),
    (&["policy", "show"], &["--id", "agent"]),
    (&["policy", "bundle", "build"], &["--output", "--revision", "--strict"]),
    (&["policy", "bundle", "sign"], &["--key", "--insecure-registry"]),
    (&["policy", "bundle", "verify"], &["--key", "<TARGET>"]),
    (&["policy", "bundle", "push"], &["--key", "--revision", "<REFERENCE>"]),
    (&["policy", "bundle", "pull"], &["--key", "--output"]),
    (&["policy", "bundle", "show"], &["<TARGET>"]),
    (&["policy", "status"], &["--key", "--strict", "--service", "--kbs", "--admin-key"]),
    (&["policy", "import"], &["--from", "contrast", "<FILE>"]),
    (&["image", "unpack"], &["--policy", "--key", "--registries", "<FOLDER>"]),
    (&["image", "sign"], &["--key", "<REFERENCE>"]),
    (&["image", "seal"], &["--push", "--sign-key", "--output"]),
    (&["policy", "rollback"], &["--to", "--resume", "--kbs"]),
    (&["token", "verify"], &["--jwks", "--cert", "--at", "--json"]),
    (&["token", "show"], &["--json"]),
    (&["evidence", "show"], &["--tee", "FILE"]),
    (
        &["evidence", "verify"],
        &[
            "--tee",
            "--endorsements",
            "--at",
            "--report-data",
            "--init-data",
            "--reference-values",
            "--require",
            "--simulated-root",
        ],
    ),
    (&["ps"], &["--running"]),
    (&["logs"], &["--all", "--follow"]),
    (
        &["explain"],
        &[
            "ID",
            "--token",
            "--jwks",
            "--cert",
            "--evidence",
            "--policy",
            "--reference-values",
            "--at",
            "--as",
            "--as-cert",
        ],
    ),
    (&["endorsements", "show"], &["<FILE|DIR>", "--at"]),
    (&["endorsements", "export"], &["--out", "--oci", "--config", "SOURCE"]),
    (&["completions"], &["bash", "zsh", "fish"]),
];

#[test]
fn help_of_every_command_names_its_options() {
    let node = Node::new();
    let all = node.ok(&["--help"]);
    for (command, options) in COMMANDS {
        assert!(all.contains(command[0]), "{command:?} is missing in {all}");
        let help = node.ok(&[*command, &["--help"]].concat());
        for option in *options {
            assert!(help.contains(option), "{option} is missing in the help of {command:?}: {help}");
        }
        assert!(!help.contains('\x1b'), "colour without a terminal: {help:?}");
    }
    assert_eq!(node.ok(&["--version"]), format!("kata-cc {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let node = Node::new();
    for arguments in [
        &[][..],
        &["no-such-command"],
        &["ps", "--no-such-option"],
        &["run"],
        &["run", "--tier", "none", "busybox"],
        &["run", "--cpus", "0", "busybox"],
        &["run", "--memory", "1.5G", "busybox"],
        &["image", "encrypt", "a", "b"],
        &[
            "image",
            "encrypt",
            "a",
            "b",
            "--key-id",
            "kbs:///a/b/c",
            "--key-file",
            "k",
            "--require-tier",
            "mars",
        ],
        &["logs"],
        &["explain"],
        &["explain", "x", "--token", "y"],
        &["explain", "--token", "x", "--evidence", "y"],
        &["explain", "--evidence", "x", "--jwks", "y"],
        &["explain", "x", "--policy", "y"],
        &["explain", "--token", "x", "--as", "http://127.0.0.1:1"],
        &["endorsements", "show"],
        &["endorsements", "export", "--out", "x"],
        &["endorsements", "export", "x"],
        &["measure", "--format", "xml"],
        &["policy", "set", "agent"],
        &["completions", "tcl"],
    ] {
        let ran = node.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{ran:?}");
        assert!(ran.stderr.contains("--help") || ran.stderr.contains("Usage"), "{ran:?}");
    }
}

#[test]
fn a_bad_run_says_what_was_seen() {
    let node = Node::new();
    node.fails(&["run", "UPPER CASE"], &["UPPER CASE", "no image reference", "NAME[:TAG]"]);
    node.fails(&["run", "--name", "../x", "busybox"], &["\"../x\"", "sandbox's id", "[A-Za-z0-9_.-]"]);
    node.fails(&["run", "--hostname", "a b", "busybox"], &["\"a b\"", "host name", "letters"]);
    node.fails(&["run", "--env", "=x", "busybox"], &["\"=x\"", "KEY=VALUE"]);
    node.fails(&["run", "--config", "/nonexistent.toml", "busybox"], &["/nonexistent.toml", "No such file"]);
    node.fails(&["run", "--init-data", "/nonexistent", "busybox"], &["cannot read /nonexistent"]);
    let bad = node.file("initdata.toml", "algorithm = sha256\n");
    node.fails(&["run", "--init-data", &bad, "busybox"], &["initdata.toml", "TOML", "line 1"]);
    let bad = node.file("initdata.toml", "algorithm = \"md5\"\nversion = \"0.1.0\"\n[data]\n");
    node.fails(&["run", "--init-data", &bad, "busybox"], &["initdata.toml", "\"md5\"", "sha256"]);
    std::fs::create_dir(node.path("run/taken")).unwrap();
    node.fails(&["run", "--name", "taken", "busybox"], &["taken", "choose another --name"]);
}

#[test]
fn a_confidential_run_without_a_tee_is_refused_and_recorded() {
    let node = Node::new();
    let arguments = ["run", "--name", "refused-1", "registry.invalid/x"];
    let ran = node.run(&arguments);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    let message = ran.stderr.lines().last().unwrap();
    for words in ["kata-cc: refused by tier", "class kata-cc cannot run", "`kata-cc doctor`", "simulated"] {
        assert!(message.contains(words), "{words} is missing in {ran:?}");
    }
    let ran = node.run(&[&["--json"], &arguments[..]].concat());
    assert_eq!(ran.code, 1, "{ran:?}");
    let lines = ran.stdout.lines().chain(ran.stderr.lines());
    let lines: Vec<serde_json::Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["stage"], &lines[1]["stage"]), (&"created".into(), &"refused".into()), "{ran:?}");
    assert!(lines[2]["error"].as_str().unwrap().contains("class kata-cc cannot run"), "{ran:?}");
    assert_eq!(node.json(&["explain", "refused-1"])["refusal"]["by"], "tier");
    assert!(!node.path("run/refused-1").exists(), "nothing is left");
}

#[test]
fn a_bad_configuration_is_refused_by_place_and_name() {
    let node = Node::new();
    let text = node.file("text.toml", "this is not TOML\n");
    node.fails(&["measure", "--config", &text], &["text.toml", "line 1, column "]);
    let unknown = node.file("unknown.toml", "[tee]\nsimulatd = \"sim-snp\"\n");
    node.fails(&["measure", "--config", &unknown], &["unknown.toml", "line 2", "simulatd", "simulated"]);
    let binary = node.file("binary.toml", [0xff, 0xfe]);
    node.fails(&["run", "--config", &binary, "busybox"], &["binary.toml", "UTF-8"]);
    let wrong = node.file("wrong.toml", "agent_timeout_s = \"long\"\n");
    node.fails(&["run", "--config", &wrong, "busybox"], &["wrong.toml", "line 1", "long"]);
}

#[test]
fn a_guest_that_cannot_be_measured_is_refused() {
    let node = Node::new();
    node.fails(&["measure"], &["vmlinux", "No such file", "KATA_CC_SHARE_DIR"]);
    node.file("share/stage0", stage0_image());
    let initramfs = node.file("initramfs", vec![7; 5000]);
    for (name, bytes) in [
        ("empty", vec![]),
        ("text", b"#!/bin/sh\n".to_vec()),
        ("elf", [b"\x7fELF".to_vec(), vec![0; 60]].concat()),
    ] {
        let kernel = node.file(name, bytes);
        let arguments = ["measure", "--kernel", &kernel, "--initramfs", &initramfs];
        node.fails(&arguments, &[name, "cannot be launched", "kernel"]);
    }
    let kernel = node.file("kernel", minimal_kernel());
    let bad = node.file("initdata.toml", "not = [toml");
    let measure = ["measure", "--kernel", &kernel, "--initramfs", &initramfs];
    node.fails(&[&measure[..], &["--init-data", &bad]].concat(), &["initdata.toml", "TOML", "line 1"]);
    node.fails(
        &["measure", "--kernel", &kernel, "--initramfs", "/nonexistent"],
        &["cannot read /nonexistent"],
    );
}

#[test]
fn what_is_launched_decides_the_digest() {
    let node = Node::new();
    let kernel = node.file("kernel", minimal_kernel());
    let initramfs = node.file("initramfs", vec![7; 5000]);
    node.file("share/stage0", stage0_image());
    let measure = |more: &[&str]| {
        node.json(&[&["measure", "--kernel", &kernel, "--initramfs", &initramfs], more].concat())
    };
    let digest = |more: &[&str]| measure(more)["launch_digest"].as_str().unwrap().to_owned();
    let first = digest(&[]);
    assert_eq!((first.len(), &first), (96, &digest(&[])), "the same guest has the same digest");
    for other in [&["--cpus", "3"][..], &["--cmdline-append", "x=1"]] {
        assert_ne!(first, digest(other), "{other:?}");
    }
    assert_eq!(first, digest(&["--memory", "3G"]), "memory is the host's to choose");
    // Init-data is no part of the digest; it has a field of its own.
    let data = node.file("initdata.toml", "algorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\n");
    let with_data = measure(&["--init-data", &data]);
    assert_eq!(with_data["launch_digest"], first.as_str());
    assert_ne!(with_data["host_data"], measure(&[])["host_data"]);
    let text = node.ok(&["measure", "--kernel", &kernel, "--initramfs", &initramfs]);
    assert!(text.contains(&first) && text.contains("protects nothing"), "{text}");
    let rvps = node.ok(&["measure", "--kernel", &kernel, "--initramfs", &initramfs, "--format", "rvps"]);
    assert!(serde_json::from_str::<serde_json::Value>(&rvps).is_ok(), "{rvps}");
}

#[test]
fn a_local_image_is_encrypted_and_looked_at() {
    let node = Node::new();
    oci_layout(&node.path("plain"));
    let (src, dst) =
        (format!("oci:{}", node.path("plain").display()), format!("oci:{}", node.path("sealed").display()));
    let key = node.path("image.key");
    let key = key.to_str().unwrap();
    let made = node.json(&[
        "image",
        "encrypt",
        &src,
        &dst,
        "--key-id",
        "kbs:///default/key/1",
        "--key-file",
        key,
        "--require-tier",
        "confidential",
    ]);
    assert_eq!((made["encrypted_layers"].as_u64(), &made["key_is_new"]), (Some(1), &true.into()), "{made}");
    assert_eq!(std::fs::read(key).unwrap().len(), 32);
    let plain = node.json(&["image", "inspect", &src]);
    assert_eq!(
        (&plain["encrypted"], &plain["required_tier"]),
        (&false.into(), &serde_json::Value::Null),
        "{plain}"
    );
    let sealed = node.json(&["image", "inspect", &dst]);
    assert_eq!(
        (&sealed["encrypted"], &sealed["required_tier"]),
        (&true.into(), &"confidential".into()),
        "{sealed}"
    );
    let text = node.ok(&["image", "inspect", &dst]);
    assert!(text.contains("kbs:///default/key/1") && text.contains("encrypted  yes"), "{text}");
    let again = ["image", "encrypt", &src, &dst, "--key-id", "kbs:///default/key/1", "--key-file", key];
    let text = node.ok(&again);
    assert!(text.contains("kata-cc secret put kbs:///default/key/1"), "{text}");
}

#[test]
fn a_bad_image_or_key_is_refused() {
    let node = Node::new();
    oci_layout(&node.path("plain"));
    let src = format!("oci:{}", node.path("plain").display());
    let key = node.file("short.key", [1; 31]);
    // A file where a folder would have to be.
    let dst = format!("oci:{key}/x");
    let encrypt = |src: &str, id: &str, key: &str| {
        ["image", "encrypt", src, &dst, "--key-id", id, "--key-file", key].map(str::to_owned)
    };
    let fails = |arguments: [String; 8], words: &[&str]| {
        node.fails(&arguments.each_ref().map(String::as_str), words);
    };
    fails(encrypt(&src, "kbs:///a/b/c", &key), &["short.key", "31 bytes", "32"]);
    let long = node.file("long.key", [1; 33]);
    fails(encrypt(&src, "kbs:///a/b/c", &long), &["long.key", "32 bytes"]);
    fails(encrypt(&src, "a/b/c", &key), &["--key-id", "\"a/b/c\"", "kbs:///repository/type/tag"]);
    fails(encrypt(&src, "kbs:///a/b", &key), &["kbs:///a/b", "repository"]);
    fails(encrypt(&src, "kbs:///a/b/c", "/nonexistent/key"), &["cannot write /nonexistent/key"]);
    let good = node.file("good.key", [1; 32]);
    fails(encrypt("no such reference", "kbs:///a/b/c", &good), &["no such reference", "no image reference"]);
    fails(encrypt(&src, "kbs:///a/b/c", &good), &["short.key/x"]);
    let (missing, made) = ("oci:/nonexistent/y", format!("oci:{}", node.path("made").display()));
    node.fails(
        &["image", "encrypt", missing, &made, "--key-id", "kbs:///a/b/c", "--key-file", &good],
        &["/nonexistent/y", "No such file"],
    );
    node.fails(&["image", "inspect", "UPPER"], &["UPPER", "no image reference"]);
    let image = format!("127.0.0.1:{}/x:y", closed_port());
    node.fails(&["image", "inspect", &image], &["127.0.0.1:", "refused"]);
    node.fails(&["image", "inspect", "oci:/nonexistent"], &["/nonexistent"]);
    node.fails(&["image", "inspect", "--registry-ca", "/nonexistent", &image], &["cannot read /nonexistent"]);
    node.fails(&["image", "inspect", "--user", "u", &image], &["KATA_CC_REGISTRY_PASSWORD"]);
}

#[test]
fn a_key_broker_that_is_not_there_or_not_named_is_told() {
    let node = Node::new();
    let url = format!("http://127.0.0.1:{}", closed_port());
    let secret = node.file("secret", "x");
    let policy = node.file("policy.rego", "package policy\n");
    let commands: [&[&str]; 7] = [
        &["secret", "list"],
        &["secret", "get", "a/b/c"],
        &["secret", "rm", "a/b/c"],
        &["secret", "put", "a/b/c", "--file", &secret],
        &["policy", "show", "resource"],
        &["policy", "show", "attestation"],
        &["policy", "set", "resource", "--file", &policy],
    ];
    for command in commands {
        node.fails(command, &["no key broker is named", "--kbs URL"]);
        node.fails(&[command, &["--kbs", &url]].concat(), &[&url, "was not reached"]);
        node.fails(&[command, &["--kbs", "ftp://x"]].concat(), &["https://HOST:PORT", "\"ftp://x\""]);
        node.fails(&[command, &["--kbs", "https://127.0.0.1:1"]].concat(), &["--kbs-cert FILE"]);
        let pem = ["--kbs", "https://127.0.0.1:1", "--kbs-cert", "/nonexistent.pem"];
        node.fails(&[command, &pem].concat(), &["cannot read /nonexistent.pem"]);
        let pem = ["--kbs", "https://127.0.0.1:1", "--kbs-cert", &secret];
        node.fails(&[command, &pem].concat(), &["certificate"]);
        let key = ["--kbs", &url, "--admin-key", &secret];
        node.fails(&[command, &key].concat(), &["secret", "key"]);
    }
    node.fails(&["secret", "get", "a/b", "--kbs", &url], &["a/b", "repository"]);
    node.fails(&["secret", "put", "a/b/c", "--kbs", &url], &["the secret is empty", "--file"]);
    node.fails(
        &["secret", "put", "a/b/c", "--kbs", &url, "--file", "/nonexistent"],
        &["cannot read /nonexistent"],
    );
    node.fails(&["policy", "set", "resource", "--kbs", &url], &["the policy is empty", "--file"]);
    let binary = node.file("binary.rego", [0xff]);
    node.fails(&["policy", "set", "resource", "--kbs", &url, "--file", &binary], &["not UTF-8"]);
    assert!(node.ok(&["policy", "show", "agent"]).contains("package agent_policy"));
    assert_eq!(node.json(&["policy", "show", "agent"])["default"], true);
}

#[test]
fn doctor_answers_in_both_forms() {
    let node = Node::new();
    // No guest image and no sentry: no tier can run.
    node.file("config.toml", "sentry = \"/nowhere/kata-cc-sentry\"");
    let (text, json) = (node.run(&["doctor"]), node.run(&["--json", "doctor"]));
    assert_eq!((text.code, json.code), (1, 1), "{text:?} {json:?}");
    assert!(
        text.stdout.contains("guest image") && text.stdout.contains("tiers that can run here: none"),
        "{text:?}"
    );
    let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(
        report["findings"].as_array().unwrap().iter().any(|one| one["check"] == "guest image"),
        "{report}"
    );
    assert!(!text.stdout.contains('\x1b'), "{text:?}");
}

#[test]
fn completions_are_scripts_of_their_shells() {
    let node = Node::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = node.ok(&["completions", shell]);
        for word in ["explain", "encrypt", "measure"] {
            assert!(script.contains(word), "{word} is missing for {shell}");
        }
    }
    let script = node.file("completions.bash", node.ok(&["completions", "bash"]));
    let checked = Command::new("bash").args(["-n", &script]).stdin(Stdio::null()).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
