//! `kata-cc measure` for hardware: digests of stage0 and OVMF launches, explanations, and what two launches differ in.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Node, minimal_kernel, stage0_image};
use kata_cc_erofs::verity::{self, BLOCK};
use serde_json::{Value, json};

/// A node with everything that is launched.
struct Files {
    node: Node,
    kernel: String,
    initramfs: String,
    firmware: String,
}

impl Files {
    fn new() -> Self {
        let node = Node::new();
        let kernel = node.file("kernel", minimal_kernel());
        let initramfs = node.file("initramfs", vec![7; 5000]);
        let firmware = node.file("stage0", stage0_image());
        Self { node, kernel, initramfs, firmware }
    }

    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let files = [
            "measure",
            "--kernel",
            &self.kernel,
            "--initramfs",
            &self.initramfs,
            "--firmware",
            &self.firmware,
        ];
        [&files[..], more].concat()
    }

    fn json(&self, more: &[&str]) -> Value {
        self.node.json(&self.arguments(more))
    }

    fn digest(&self, more: &[&str]) -> String {
        self.json(more)["launch_digest"].as_str().unwrap().to_owned()
    }
}

#[test]
fn each_tee_vcpu_count_and_processor_has_its_digest() {
    let files = Files::new();
    let snp = files.digest(&["--tee", "snp"]);
    assert_eq!((snp.len(), &snp), (96, &files.digest(&["--tee", "snp"])));
    let variants = [
        &[][..],
        &["--tee", "tdx"],
        &["--tee", "tdx", "--page-order", "two"],
        &["--tee", "snp", "--vcpus", "7"],
        &["--tee", "snp", "--cpu", "EPYC-Milan"],
        &["--tee", "snp", "--cpu", "EPYC-Genoa"],
        &["--tee", "snp", "--guest-features", "0x21"],
        &["--tee", "snp", "--memory-bit", "47"],
        &["--tee", "snp", "--cmdline-append", "x=1"],
    ];
    let mut seen = vec![snp.clone()];
    for variant in variants {
        let digest = files.digest(variant);
        assert!(!seen.contains(&digest), "{variant:?}");
        seen.push(digest);
    }
    // memory is the host's to choose
    assert_eq!(snp, files.digest(&["--tee", "snp", "--memory", "3G"]));
    assert_eq!(
        files.digest(&["--tee", "snp", "--cpu", "25/1/1"]),
        files.digest(&["--tee", "snp", "--cpu", "0xa00f11"])
    );
    let td = files.json(&["--tee", "tdx"]);
    assert_eq!((td["tier"].as_str(), td["host_data"].as_str().unwrap().len()), (Some("tdx"), 96));
    let text = files.node.ok(&files.arguments(&["--tee", "tdx"]));
    assert!(
        text.contains("MRTD") && text.contains("MRCONFIGID") && !text.contains("protects nothing"),
        "{text}"
    );
}

#[test]
fn an_explanation_lists_every_page_and_two_are_compared_to_the_byte() {
    let files = Files::new();
    let explain = |name: &str, more: &[&str]| {
        let answer = files.json(&[&["--tee", "snp", "--explain"], more].concat());
        let file = files.node.file(name, answer.to_string());
        (answer, file)
    };
    let (answer, a) = explain("a.json", &["--vcpus", "2", "--cpu", "EPYC-Milan"]);
    let steps = answer["explanation"]["steps"].as_array().unwrap();
    let kinds: Vec<_> = steps.iter().map(|step| step["kind"].as_str().unwrap()).collect();
    let normal = "normal";
    assert_eq!(kinds, [normal, normal, normal, normal, "zero", "zero", "secrets", "cpuid", "vmsa", "vmsa"]);
    assert_eq!(answer["explanation"]["digest"], answer["launch_digest"]);

    let (_, b) = explain("b.json", &["--vcpus", "2", "--cpu", "EPYC-Genoa", "--cmdline-append", "x=1"]);
    let ran = files.node.run(&["--json", "measure", "diff", &a, &b]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let difference: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(difference["same"], false);
    let all = difference["differences"].as_array().unwrap();
    assert_eq!(all.len(), 3, "{difference}");
    assert_eq!((&all[0]["section"], &all[0]["gpa"]), (&json!("boot block"), &json!("0x1ff000")));
    // the length of the command line
    assert_eq!(all[0]["first"]["offset"], "0x70");
    assert_eq!(all[1]["first"]["register"], "RDX (CPU family, model and stepping)");
    let text = files.node.run(&["measure", "diff", &a, &b]);
    assert!(text.stdout.contains("boot block at 0x1ff000: "), "{text:?}");
    assert!(
        text.stdout.contains("vmsa 1 at 0xfffffffff000: 2 bytes differ, the first at 0x310 (RDX"),
        "{text:?}"
    );
    let same = files.node.run(&["measure", "diff", &a, &a]);
    assert_eq!((same.code, same.stdout.lines().last()), (0, Some("no difference")), "{same:?}");

    let table = files.node.ok(&files.arguments(&["--tee", "snp", "--explain"]));
    assert!(table.contains("working memory") && table.contains(" pages\n"), "{table}");
}

#[test]
fn a_document_that_lies_is_refused() {
    let files = Files::new();
    let answer = files.json(&["--tee", "tdx", "--explain"]);
    let a = files.node.file("a.json", answer.to_string());
    let mut lie = answer;
    lie["explanation"]["digest"] = json!("00".repeat(48));
    let b = files.node.file("b.json", lie.to_string());
    files
        .node
        .fails(&["measure", "diff", &a, &b], &["b.json", "does not hold together", "the document says 0000"]);
    let c = files.node.file("c.json", "{}");
    files.node.fails(&["measure", "diff", &a, &c], &["c.json", "is not an explanation"]);
}

#[test]
fn a_root_image_is_measured_by_its_seal_which_is_held_to_its_blocks() {
    let files = Files::new();
    let (node, beside) = (&files.node, "root.json");
    let root = |byte: u8| {
        let blocks = vec![byte; 3 * BLOCK];
        let tree = verity::tree_of(&blocks);
        let seal = json!({"data_blocks": 3, "root_hash": hex::encode(tree.root)});
        node.file(beside, seal.to_string());
        (node.file("root.erofs", [blocks, tree.blocks.concat()].concat()), hex::encode(tree.root))
    };
    let measure = |image: &str| {
        let arguments =
            ["measure", "--kernel", &files.kernel, "--root", image, "--firmware", &files.firmware];
        [&arguments[..], &["--tee", "snp"]].concat().iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()
    };
    let words = |arguments: &[String]| arguments.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    let json = |arguments: &[String]| node.json(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let (image, hash) = root(1);
    let one = json(&measure(&image));
    let cmdline = one["cmdline"].as_str().unwrap();
    assert!(cmdline.contains(" root=/dev/dm-0 ") && cmdline.contains(&hash), "{cmdline}");
    assert_eq!(cmdline.matches("virtio_mmio.device=").count(), 13, "{cmdline}");
    assert_eq!((&one["root"], &one["initramfs"]), (&json!(image), &Value::Null));
    assert_ne!(
        one["launch_digest"],
        files.json(&["--tee", "snp"])["launch_digest"],
        "{}",
        words(&measure(&image))
    );
    let other = json(&measure(&root(2).0));
    assert_ne!(one["launch_digest"], other["launch_digest"]);

    // The seal of another image beside it, one that is cut off, none at all.
    let fails = |expected: &[&str]| {
        let arguments = measure(&image);
        node.fails(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    };
    node.file(beside, json!({"data_blocks": 3, "root_hash": hash}).to_string());
    fails(&["root.erofs", "root hash", &hash, "one of both was changed"]);
    node.file("root.erofs", vec![2; BLOCK]);
    fails(&["has 4096 bytes", "16384", "of one build"]);
    std::fs::remove_file(std::path::Path::new(&image).with_extension("json")).unwrap();
    fails(&["root.json", "./x image", "KATA_CC_SHARE_DIR"]);
    assert_eq!(node.run(&["measure", "--ovmf", "x", "--root", "y"]).code, 2);
}

#[test]
fn what_makes_no_sense_is_refused_with_advice() {
    let files = Files::new();
    let direct = ["measure", "--kernel", &files.kernel, "--initramfs", &files.initramfs];
    // Each has the node's own firmware where none is named.
    for more in [&["--tee", "snp"][..], &["--explain"], &["--cpu", "EPYC"]] {
        files.node.fails(&[&direct[..], more].concat(), &["share/stage0", "KATA_CC_SHARE_DIR"]);
    }
    let arguments = files.arguments(&["--tee", "tdx", "--cpu", "EPYC"]);
    files.node.fails(&arguments, &["leave --cpu out"]);
    let arguments = files.arguments(&["--tee", "snp", "--guest-features", "0x20"]);
    files.node.fails(&arguments, &["SNP active"]);
    let ovmf = files.node.file("ovmf.fd", vec![0; 8192]);
    files.node.fails(&["measure", "--tee", "snp", "--ovmf", &ovmf], &["ovmf.fd", "table of GUIDs"]);
    for wrong in
        [&["measure", "--cpu", "486"][..], &["measure", "--vcpus", "65"], &["measure", "--ovmf", "x"]]
    {
        assert_eq!(files.node.run(wrong).code, 2, "{wrong:?}");
    }
}

#[test]
fn ovmf_images_have_their_published_digests() {
    let Some(vectors) = kata_cc_test_vectors::path("snp/launch-digest") else { return };
    let node = Node::new();
    let image = vectors.join("ovmf_OvmfX64_suffix.bin");
    let measure = ["measure", "--tee", "snp", "--cpu", "EPYC-v4", "--guest-features", "0x21", "--ovmf"];
    let answer = node.json(&[&measure[..], &[image.to_str().unwrap()]].concat());
    assert_eq!(
        answer["launch_digest"],
        "28797ae0afaba4005a81e629acebfb59e6687949d6be44007cd5506823b0dd66f146aaae26ff291eed7b493d8a64c385"
    );
    let kernel = node.file("kernel", "");
    node.fails(&[&measure[..], &[image.to_str().unwrap(), "--kernel", &kernel]].concat(), &["AmdSev build"]);
    let image = vectors.join("ovmf_AmdSev_suffix.bin");
    let cmdline = ["--kernel", &kernel, "--cmdline", "console=ttyS0 loglevel=7"];
    let answer = node.json(&[&measure[..], &[image.to_str().unwrap()], &cmdline].concat());
    assert_eq!(
        answer["launch_digest"],
        "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977"
    );
    let image = kata_cc_test_vectors::path("tdx/mrtd/synthetic-a.fd").unwrap();
    let answer = node.json(&["measure", "--tee", "tdx", "--ovmf", image.to_str().unwrap()]);
    assert_eq!(
        answer["launch_digest"],
        "a6566f92fe975589e06596082824f36ee0639005082a3bc5db6d72210b8d11e9c6977f8d36e3115e39fcdcef3b03d675"
    );
}

/// The manifest of a pod says what `--cpus`, `--memory` and `--init-data` would.
#[test]
fn a_pods_manifest_gives_size_and_init_data() {
    let files = Files::new();
    let data = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n[data]\n\"a.toml\" = \"x\"\n";
    let annotation = kata_cc_kbs_protocol::initdata::to_annotation(data);
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: app\n  annotations:\n    \
         io.katacontainers.config.hypervisor.cc_init_data: {annotation}\nspec:\n  runtimeClassName: kata-cc\n  \
         containers:\n  - name: app\n    image: registry/app\n    resources: {{limits: {{cpu: 1500m, memory: 1Gi}}}}\n"
    );
    let pod = files.node.file("pod.yaml", &manifest);
    let data = files.node.file("initdata.toml", data);
    let by_pod = files.json(&["--tee", "snp", "--pod", &pod]);
    let by_hand = files.json(&["--tee", "snp", "--cpus", "1.5", "--memory", "1G", "--init-data", &data]);
    assert_eq!(by_pod, by_hand);
    assert_eq!(by_pod["vcpus"], 2);
    let runc = files.node.file("runc.yaml", manifest.replace("kata-cc", "runc"));
    files.node.fails(&files.arguments(&["--pod", &runc]), &["runtimeClassName is runc"]);
    let both = files.node.run(&files.arguments(&["--pod", &pod, "--cpus", "1"]));
    assert!(both.code == 2 && both.stderr.contains("--cpus"), "{}", both.stderr);
}

#[test]
fn a_message_is_signed_for_who_trusts_the_key() {
    use kata_cc_attestation_service::jws::{SigningKey, Unverified, VerifyingKey};

    let files = Files::new();
    let pem = SigningKey::generate_pem("EdDSA").unwrap();
    let public = SigningKey::from_pem(pem.as_bytes()).unwrap().public_pem().unwrap();
    let key = files.node.file("sign.key", pem.as_bytes());
    let message = files.json(&["--tee", "snp", "--sign-key", &key]);
    assert_eq!((&message["type"], &message["version"]), (&json!("signed"), &json!("0.1.0")));
    let payload = message["payload"].as_str().unwrap();
    let claims = VerifyingKey::from_pem(public.as_bytes())
        .unwrap()
        .verify(&Unverified::parse(payload).unwrap())
        .unwrap();
    let digest = files.digest(&["--tee", "snp"]);
    assert_eq!(claims["reference_values"]["snp_launch_measurement"], json!([digest]));
    assert!(claims["iat"].as_i64().unwrap() > 1_700_000_000);
    files.node.fails(&files.arguments(&["--sign-key", "/none"]), &["cannot read the key /none"]);
}
