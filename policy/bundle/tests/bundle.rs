//! Folders, archives, checks and signatures over them.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test may panic")]

mod common;

use std::os::unix::fs::symlink;
use std::process::Command;

use common::{Easy, bundle, files, folder, key_pair, write};
use kata_cc_policy_bundle::layout::{MAX_FILE, Part, SIGNATURE};
use kata_cc_policy_bundle::sign::{Signer, verify};
use kata_cc_policy_bundle::source::from_folder;
use kata_cc_policy_bundle::{Bundle, BundleError, Severity, archive, folder as reading};

#[test]
fn one_folder_has_one_archive_wherever_and_whenever_it_is_made() {
    let (one, other) = (folder(), tempfile::tempdir().unwrap());
    for (path, text) in files().into_iter().rev() {
        write(other.path(), path, &text);
    }
    let (one, other) = (bundle(one.path()), bundle(other.path()));
    assert_eq!(one.digest(), other.digest());
    let again = Bundle::from_archive(one.archive()).unwrap();
    assert_eq!(again, one);
    assert_eq!(one.policies(Part::Attestation).map(|(id, _)| id).collect::<Vec<_>>(), ["default_cpu"]);
    assert_eq!(one.reference_values()["launch"], serde_json::json!(["ab"]));
    // GNU tar reads it, and sees neither time nor owner.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), one.archive()).unwrap();
    let listed = Command::new("tar").args(["--utc", "-tvf"]).arg(file.path()).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().count(), files().len());
    assert!(
        listed.lines().all(|line| line.starts_with("-rw-r--r-- 0/0") && line.contains("1970-01-01")),
        "{listed}"
    );
}

/// Fuzzing begins with archives that `kata-cc policy bundle build` made: one that is refused would reach little.
#[test]
fn the_seeds_of_the_fuzz_target_are_bundles() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/policy_bundle");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(seeds).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "tar") {
            let bundle = Bundle::from_archive(&std::fs::read(&path).unwrap());
            names.push(
                bundle.unwrap_or_else(|error| panic!("{}: {error}", path.display())).manifest().title(),
            );
        }
    }
    names.sort();
    assert_eq!(names, ["shop 1", "small", "trust v1.2"]);
}

#[test]
fn an_archive_in_another_form_is_refused() {
    let folder = folder();
    let good = bundle(folder.path());
    let why = |bytes: &[u8]| Bundle::from_archive(bytes).unwrap_err().to_string();
    // Something behind the end, which tar does not look at.
    let mut longer = good.archive().to_vec();
    longer.extend_from_slice(&[1; 512]);
    assert!(why(&longer).contains("byte for byte"), "{}", why(&longer));
    assert!(why(&good.archive()[..700]).contains("archive"));
    // GNU tar's own archive of the same folder.
    let made =
        Command::new("tar").args(["-cf", "-", "kata-cc-policy.yaml"]).current_dir(folder.path()).output();
    assert!(why(&made.unwrap().stdout).contains("byte for byte"));
    // A file twice: two readers could see two bundles.
    let mut tar = tar_with(&[
        ("kata-cc-policy.yaml", "format: 1\nname: a\n"),
        ("kata-cc-policy.yaml", "format: 1\nname: b\n"),
    ]);
    assert!(why(&tar).contains("byte for byte"));
    tar = tar_with(&[("../x", "1")]);
    assert!(why(&tar).contains("no place"), "{}", why(&tar));
    assert!(matches!(Bundle::from_archive(&tar_with(&[])), Err(BundleError::NoManifest)));
}

/// A tar that our packing would not make.
fn tar_with(files: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, text) in files {
        let one = archive::pack(&[("agent/a.rego".to_owned(), text.as_bytes().to_vec())].into()).unwrap();
        let mut header = one[..512].to_vec();
        header[..100].fill(0);
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend(header);
        out.extend(text.as_bytes());
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

#[test]
fn what_has_no_place_is_told_or_refused() {
    let folder = folder();
    write(folder.path(), "README.md", "hello");
    write(folder.path(), ".git/config", "x");
    write(folder.path(), "deploy/argo.yaml", "x");
    let read = reading::read(folder.path()).unwrap();
    assert_eq!(read.others, ["README.md", "deploy"]);
    assert_eq!(read.files.len(), files().len());
    write(folder.path(), "agent/web.regoo", "x");
    let told = reading::read(folder.path()).unwrap_err().to_string();
    assert!(told.contains("agent/web.regoo has no place") && told.contains("NAME.rego"), "{told}");
    std::fs::remove_file(folder.path().join("agent/web.regoo")).unwrap();
    std::fs::remove_file(folder.path().join("kata-cc-policy.yaml")).unwrap();
    assert!(matches!(reading::read(folder.path()), Err(BundleError::NoManifest)));
}

#[test]
fn links_that_lead_out_are_refused_and_those_of_a_configmap_followed() {
    let folder = folder();
    let outside = tempfile::NamedTempFile::new().unwrap();
    symlink(outside.path(), folder.path().join("agent/out.rego")).unwrap();
    let told = reading::read(folder.path()).unwrap_err();
    assert!(matches!(&told, BundleError::LeadsOut(path) if path == "agent/out.rego"), "{told}");
    std::fs::remove_file(folder.path().join("agent/out.rego")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::remove_dir_all(folder.path().join("image")).unwrap();
    symlink(elsewhere.path(), folder.path().join("image")).unwrap();
    assert!(matches!(reading::read(folder.path()), Err(BundleError::LeadsOut(_))));

    // A projected volume: everything is behind one link, which is exchanged.
    let volume = tempfile::tempdir().unwrap();
    for (path, text) in files() {
        write(&volume.path().join("..2026_11_27"), path, &text);
    }
    symlink("..2026_11_27", volume.path().join("..data")).unwrap();
    for name in
        ["kata-cc-policy.yaml", "agent", "attestation", "image", "resource", "reference-values", "trust"]
    {
        symlink(format!("..data/{name}"), volume.path().join(name)).unwrap();
    }
    let other = common::folder();
    assert_eq!(bundle(volume.path()).digest(), bundle(other.path()).digest());
}

#[test]
fn sizes_and_kinds_have_limits() {
    let folder = folder();
    let path = folder.path().join("agent/big.rego");
    std::fs::File::create(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
    assert!(matches!(reading::read(folder.path()), Err(BundleError::FileTooLarge { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert!(matches!(reading::read(folder.path()), Err(BundleError::Kind(_))));
    std::fs::remove_file(&path).unwrap();
    for number in 0..9 {
        let path = folder.path().join(format!("agent/f{number}.rego"));
        std::fs::File::create(path).unwrap().set_len(MAX_FILE).unwrap();
    }
    assert!(matches!(reading::read(folder.path()), Err(BundleError::TooLarge)));
}

/// Problems of a bundle with one file put or (for an empty text) taken away.
fn problems(path: &str, text: &str) -> Vec<String> {
    let folder = folder();
    if text.is_empty() {
        std::fs::remove_file(folder.path().join(path)).unwrap();
    } else {
        write(folder.path(), path, text);
    }
    let bundle = match reading::read(folder.path()).and_then(|read| Bundle::from_files(read.files)) {
        Ok(bundle) => bundle,
        Err(error) => return vec![error.to_string()],
    };
    let problems = bundle.check(&Easy);
    let errors: Vec<String> =
        problems.iter().filter(|one| one.severity == Severity::Error).map(ToString::to_string).collect();
    assert_eq!(bundle.demand(&Easy).is_err(), !errors.is_empty());
    errors
}

#[test]
fn a_good_bundle_has_no_problems() {
    assert_eq!(bundle(folder().path()).check(&Easy), []);
}

#[test]
fn each_part_is_checked_by_what_uses_it() {
    for (path, text, told) in [
        ("agent/web.rego", "package agent_policy\nx if {", "agent/web.rego: "),
        (
            "agent/web.rego",
            "package agent_policy\nimport rego.v1\nExecProcessRequest := true\nCreateSandboxRequest if input.sandbox_id == \"s1\"",
            "always-true",
        ),
        (
            "agent/web.test.yaml",
            "cases: [{name: x, request: CreateSandboxRequest, input: {sandbox_id: s2}, allow: true}]",
            "case \"x\" came otherwise",
        ),
        ("agent/web.test.yaml", "cases: []", "no cases"),
        ("agent/web.rego", "", "there is no agent/web.rego to test"),
        ("image/policy.json", r#"{"default": []}"#, "image/policy.json: "),
        ("attestation/default_cpu.rego", "bad", "it is bad"),
        (
            "attestation/default_cpu.test.yaml",
            "cases: [{name: y, claims: {a: 2}, status: affirming}]",
            "expected affirming, seen warning",
        ),
        (
            "attestation/default_cpu.test.yaml",
            "cases: [{name: y, claims: {a: 2}, allow: true}]",
            "are of the resource policy",
        ),
        ("resource/policy.rego", "package policy\nallow if {", "resource/policy.rego: "),
        ("resource/policy.rego", "package policy\ndeny := true", "no rule data.policy.allow"),
        ("resource/policy.rego", "package policy\nallow := true", "expected denied, seen allowed"),
        (
            "resource/policy.test.yaml",
            "cases: [{name: z, claims: {}, resource: 'http://a', allow: true}]",
            "is no kbs:///",
        ),
        ("resource/policy.test.yaml", "cases: [{name: z, like: y, deny: true}]", "no case \"y\" before it"),
        ("resource/policy.test.yaml", "cases: [{name: z, claims: {}, colour: 1}]", "unknown field `colour`"),
        ("reference-values/nodes.json", r#"{"values": {"launch": "bad"}}"#, "it is bad"),
        ("reference-values/nodes.json", r#"{"launch": "ab"}"#, "unknown field `launch`"),
        (
            "reference-values/more.json",
            r#"{"values": {"launch": "ab"}}"#,
            "is set in reference-values/more.json already",
        ),
        ("trust/ci.pem", "bad", "it is bad"),
        ("trust/ci.pem", "", "trust/ci.pem, which is not there"),
        ("trust/other.pem", "k", "no trust[] of kata-cc-policy.yaml names it"),
        ("kata-cc-policy.yaml", "format: 1\nname: shop", "no trust[] of kata-cc-policy.yaml names it"),
    ] {
        let problems = problems(path, text);
        assert!(problems.iter().any(|one| one.contains(told)), "{path}, {text}: {told}: {problems:?}");
    }
}

#[test]
fn a_dangerous_finding_can_be_accepted_with_a_reason() {
    let open = "package agent_policy\nimport rego.v1\nExecProcessRequest := true\nCreateSandboxRequest if input.sandbox_id == \"s1\"";
    let folder = folder();
    write(folder.path(), "agent/web.rego", open);
    let manifest = |file: &str| {
        format!(
            "format: 1\nname: shop\ntrust: [{{name: ci, key: trust/ci.pem}}]\naccept: [{{file: {file}, check: always-true, why: test bed}}]"
        )
    };
    write(folder.path(), "kata-cc-policy.yaml", &manifest("agent/web.rego"));
    let told = bundle(folder.path()).demand(&Easy).unwrap();
    assert!(told.iter().all(|one| one.message.starts_with("accepted: ")) && !told.is_empty(), "{told:?}");
    write(folder.path(), "kata-cc-policy.yaml", &manifest("agent/other.rego"));
    let refused = bundle(folder.path()).demand(&Easy).unwrap_err().to_string();
    assert!(refused.contains("always-true"), "{refused}");
}

#[test]
fn a_folder_is_signed_as_cosign_signs_blobs() {
    let (folder, keys) = (folder(), tempfile::tempdir().unwrap());
    let (private, public) = key_pair(keys.path(), "one");
    let (_, stranger) = key_pair(keys.path(), "two");
    let (public_pem, stranger) = (std::fs::read(&public).unwrap(), std::fs::read(stranger).unwrap());
    let unsigned = from_folder(folder.path(), Some(&public_pem)).unwrap_err();
    assert!(matches!(unsigned, BundleError::Unsigned(..)), "{unsigned}");
    let packed = bundle(folder.path());
    let signature =
        Signer::from_pem(&std::fs::read(private).unwrap()).unwrap().sign(packed.archive()).unwrap();
    write(folder.path(), SIGNATURE, &format!("{signature}\n"));
    assert_eq!(from_folder(folder.path(), Some(&public_pem)).unwrap().bundle.digest(), packed.digest());
    let other = from_folder(folder.path(), Some(&stranger)).unwrap_err().to_string();
    assert!(other.contains("by another key"), "{other}");
    // What openssl (as cosign) verifies: the archive as it lies in a file, signature in DER.
    let at = |name: &str| keys.path().join(name);
    std::fs::write(at("a.tar"), packed.archive()).unwrap();
    std::fs::write(at("a.sig"), &signature).unwrap();
    let run = |arguments: &[&std::ffi::OsStr]| Command::new("openssl").args(arguments).output().unwrap();
    let (sig, der, tar) = (at("a.sig"), at("a.der"), at("a.tar"));
    run(&[
        "base64".as_ref(),
        "-d".as_ref(),
        "-A".as_ref(),
        "-in".as_ref(),
        sig.as_ref(),
        "-out".as_ref(),
        der.as_ref(),
    ]);
    let done = run(&[
        "dgst".as_ref(),
        "-sha256".as_ref(),
        "-verify".as_ref(),
        public.as_ref(),
        "-signature".as_ref(),
        der.as_ref(),
        tar.as_ref(),
    ]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    // One changed byte.
    write(folder.path(), "image/policy.json", r#"{"default": [{"type": "insecureAcceptAnything"}]}"#);
    let changed = from_folder(folder.path(), Some(&public_pem)).unwrap_err().to_string();
    assert!(changed.contains("over something else"), "{changed}");
    assert!(verify("x", b"", b"$", &public_pem).unwrap_err().to_string().contains("base64"));
    assert!(matches!(Signer::from_pem(&public_pem), Err(BundleError::Key(_))));
    let cosign = b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAA==\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n";
    assert!(Signer::from_pem(cosign).unwrap_err().to_string().contains("encrypted"));
}
