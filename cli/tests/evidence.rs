//! `kata-cc evidence` on recorded and simulated evidence: what is verified, what is refused and why, what cannot be read.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::process::Stdio;

use common::{Node, Ran};
use kata_cc_sim_tee::{ReportRequest, SimPlatform};
use kata_cc_snp::evidence::SnpEvidence;
use kata_cc_snp::{CertTable, Report};
use serde_json::Value;

/// Within the validity of all recorded certificates.
const THEN: &str = "2025-09-01";

fn vector(name: &str) -> Option<String> {
    Some(kata_cc_test_vectors::path(name)?.to_str().unwrap().to_owned())
}

/// `kata-cc evidence ARGUMENTS`, expecting an exit code; gives what it printed.
fn evidence(node: &Node, code: i32, arguments: &[&str]) -> Ran {
    let ran = node.run(&[&["evidence"], arguments].concat());
    assert_eq!(ran.code, code, "{ran:?}");
    assert!(!ran.stderr.contains("panicked") && !ran.stdout.contains('\x1b'), "{ran:?}");
    ran
}

fn json(node: &Node, code: i32, arguments: &[&str]) -> Value {
    let ran = evidence(node, code, &[&["--json"], arguments].concat());
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn has(text: &str, words: &[&str]) {
    for words in words {
        assert!(text.contains(words), "{words:?} is missing in {text}");
    }
}

#[test]
fn a_recorded_snp_report_is_shown_and_verified() {
    let Some(report) = vector("snp/reports/milan-v3-a/report.bin") else { return };
    let vcek = vector("snp/reports/milan-v3-a/vcek.der").unwrap();
    let node = Node::new();
    let shown = evidence(&node, 0, &["show", &report]).stdout;
    has(
        &shown,
        &[
            "nothing of this is verified",
            "Guest policy",
            "debug_allowed",
            "reported_tcb",
            "measurement",
            "Milan",
        ],
    );
    let shown = json(&node, 0, &["show", &report]);
    assert_eq!((&shown["tee"], &shown["verified"]), (&"snp".into(), &false.into()));
    assert_eq!(shown["report"]["measurement"].as_str().unwrap().len(), 96);
    let verify = ["verify", &report, "--endorsements", &vcek, "--at", THEN];
    let text = evidence(&node, 0, &verify).stdout;
    has(&text, &["verdict   verified\n", "snp.measurement", "warning", "--report-data"]);
    let answer = json(&node, 0, &verify);
    assert_eq!((&answer["verdict"], &answer["simulated"]), (&"verified".into(), &false.into()));
    // The folder with all certificates of the chip will do, and so will what the report itself says.
    let folder = vector("snp/reports/milan-v3-a").unwrap();
    let data = answer["claims"]["report_data"].as_str().unwrap();
    evidence(&node, 0, &["verify", &report, "--endorsements", &folder, "--at", THEN, "--report-data", data]);
}

#[test]
fn refusals_of_snp_name_the_reason() {
    let Some(report) = vector("snp/reports/milan-v3-a/report.bin") else { return };
    let vcek = vector("snp/reports/milan-v3-a/vcek.der").unwrap();
    let other = vector("snp/reports/milan-v2-a/vcek.der").unwrap();
    let old = vector("snp/reports/milan-v2-a/report.bin").unwrap();
    let node = Node::new();
    let refused =
        |arguments: &[&str]| json(&node, 1, &[&["verify"], arguments].concat())["refusals"][0].clone();
    let with = |vek: &str| ["--endorsements".to_owned(), vek.to_owned(), "--at".to_owned(), THEN.to_owned()];
    fn words(own: &[String]) -> Vec<&str> {
        own.iter().map(String::as_str).collect()
    }
    let good = with(&vcek);
    let missing = refused(&[&report, "--at", THEN]);
    has(missing["message"].as_str().unwrap(), &["missing"]);
    has(missing["what_to_do"].as_str().unwrap(), &["--endorsements"]);
    let expired = refused(&[&report, "--endorsements", &vcek, "--at", "2099-01-01"]);
    has(expired["message"].as_str().unwrap(), &["valid from", "2099"]);
    has(expired["what_to_do"].as_str().unwrap(), &["--at"]);
    assert_eq!(refused(&[&[report.as_str()], &words(&with(&other))[..]].concat())["reason"], "signature");
    let replayed = refused(&[&[report.as_str(), "--report-data", "00ff"], &words(&good)[..]].concat());
    assert_eq!((&replayed["reason"], &replayed["claim"]), (&"report-data".into(), &"report_data".into()));
    assert!(replayed["expected"].as_str().unwrap().starts_with("00ff00"));
    let other_init =
        refused(&[&[report.as_str(), "--init-data", &"ab".repeat(32)], &words(&good)[..]].concat());
    assert_eq!(other_init["reason"], "init-data");
    let version = refused(&[&[old.as_str()], &words(&with(&other))[..]].concat());
    has(version["message"].as_str().unwrap(), &["version is 2"]);
    // A byte changed.
    let mut bytes = std::fs::read(&report).unwrap();
    bytes[0x90] ^= 1;
    let changed = node.file("changed.bin", bytes);
    let text = evidence(&node, 1, &[&["verify", changed.as_str()], &words(&good)[..]].concat()).stdout;
    has(&text, &["verdict   refused", "refused by signature", "what to do"]);
    assert!(!text.contains("Claims"), "nothing is claimed for what is refused: {text}");
}

#[test]
fn references_and_requirements_are_compared() {
    let Some(report) = vector("snp/reports/milan-v3-a/report.bin") else { return };
    let vcek = vector("snp/reports/milan-v3-a/vcek.der").unwrap();
    let node = Node::new();
    let verify = |more: &[&str]| {
        let all = [&["verify", &report, "--endorsements", &vcek, "--at", THEN], more].concat();
        node.run(&[&["--json", "evidence"], &all[..]].concat())
    };
    let claims: Value = serde_json::from_str(&verify(&[]).stdout).unwrap();
    let snp = &claims["claims"]["snp"];
    let right = serde_json::json!({"snp_launch_measurement": [snp["measurement"]],
        "snp_snp_svn": snp["reported_tcb_snp"], "mr_td": ["x"]});
    let right = node.file("right.json", right.to_string());
    let wrong = node.file("wrong.json", r#"{"snp_launch_measurement": ["00", "11"]}"#);
    let none = node.file("none.json", r#"{"mr_td": ["x"]}"#);
    let answer = |ran: &Ran| -> Value { serde_json::from_str(&ran.stdout).unwrap() };
    let ran = verify(&[
        "--reference-values",
        &right,
        "--require",
        "policy_debug_allowed=false",
        "--require",
        "vmpl<=0",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(answer(&ran)["checks"].as_array().unwrap().len(), 4);
    has(&answer(&ran)["warnings"].to_string(), &["not for snp: mr_td"]);
    let ran = verify(&["--reference-values", &wrong]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let check = &answer(&ran)["checks"][0];
    assert_eq!((&check["claim"], &check["holds"]), (&"measurement".into(), &false.into()));
    assert_eq!((&check["seen"], &check["expected"]), (&snp["measurement"], &serde_json::json!(["00", "11"])));
    has(check["what_to_do"].as_str().unwrap(), &["kata-cc measure"]);
    let ran = verify(&["--reference-values", &none]);
    assert_eq!(ran.code, 1, "nothing was compared: {ran:?}");
    let ran = verify(&["--require", "reported_tcb_snp>=255"]);
    assert_eq!((ran.code, &answer(&ran)["verdict"]), (1, &"refused".into()), "{ran:?}");
    has(&answer(&ran)["checks"][0]["expected"].to_string(), &["at least 255"]);
}

#[test]
fn evidence_of_azure_is_shown_and_verified() {
    let Some(file) = vector("snp/evidence/az-snp-vtpm-evidence-v1.json") else { return };
    let node = Node::new();
    let shown = evidence(&node, 0, &["show", &file]).stdout;
    has(
        &shown,
        &[
            "TPM quote",
            "\"challenge\"",
            "of the values below",
            "pcr08",
            "HCL report",
            "secure_boot",
            "SNP report",
        ],
    );
    let challenge = hex::encode("challenge");
    let verify = ["verify", &file, "--at", THEN, "--report-data", &challenge, "--require", "tpm.pcr23=00"];
    let answer = json(&node, 1, &verify);
    assert_eq!(answer["tee"], "az-snp-vtpm");
    assert_eq!(answer["claims"]["report_data"], Value::from(challenge.clone()));
    let text = evidence(&node, 0, &verify[..6]).stdout;
    has(&text, &["verdict   verified\n", "az-snp-vtpm.tpm.pcr11", "az-snp-vtpm.measurement"]);
    let refused =
        json(&node, 1, &["verify", &file, "--at", THEN, "--report-data", &format!("{challenge}00")]);
    assert_eq!(refused["refusals"][0]["reason"], "report-data", "no padding");
    let hcl = vector("snp/evidence/az-snp-hcl-report.bin").unwrap();
    has(&evidence(&node, 0, &["show", &hcl]).stdout, &["HCL report", "version", "2"]);
    let alone = json(&node, 1, &["verify", &hcl]);
    has(alone["refusals"][0]["message"].as_str().unwrap(), &["proves nothing about now"]);
}

#[test]
fn endorsements_are_given_beside_evidence_of_azure() {
    let Some(file) = vector("snp/evidence/az-snp-vtpm-evidence-v1.json") else { return };
    let other = vector("snp/evidence/az-snp-vcek.pem").unwrap();
    let node = Node::new();
    let new: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let vcek = new["vcek"].as_str().unwrap().trim_end_matches('=');
    let vcek = node.file("vcek.der", kata_cc_kbs_protocol::from_base64_url(vcek).unwrap());
    let old = vector("snp/evidence/az-snp-vtpm-evidence-v0.json").unwrap();
    for (version, file) in [file, old].into_iter().enumerate() {
        let whole: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let mut without = whole.clone();
        without.as_object_mut().unwrap().remove("vcek");
        let mut wrong = whole.clone();
        wrong["vcek"] = if version == 0 { "MAA".into() } else { "no certificate".into() };
        let whole = node.file("whole.json", whole.to_string());
        let without = node.file("without.json", without.to_string());
        let wrong = node.file("wrong.json", wrong.to_string());
        let verify = |file: &str, code: i32, endorsements: &[&str]| {
            let mut arguments = vec!["verify", file, "--tee", "az-snp-vtpm", "--at", THEN];
            endorsements.iter().for_each(|one| arguments.extend(["--endorsements", one]));
            json(&node, code, &arguments)
        };
        for file in [&without, &wrong] {
            let refused = verify(file, 1, &[]);
            assert_eq!(refused["verdict"], "refused", "{refused}");
            assert_eq!(verify(file, 0, &[&vcek])["verdict"], "verified");
            // That of another chip is not taken for it.
            assert_eq!(verify(file, 1, &[&other])["verdict"], "refused");
        }
        assert_eq!(verify(&whole, 0, &[&other])["verdict"], "verified", "its own is");
    }
}

#[test]
fn a_tdx_quote_needs_current_collateral() {
    let Some(quote) = vector("tdx/quotes/v4-uptodate/quote.bin") else { return };
    let bundle = vector("tdx/quotes/v4-uptodate/collateral.json").unwrap();
    let node = Node::new();
    let shown = evidence(&node, 0, &["show", &quote]).stdout;
    has(&shown, &["Quote: what is attested", "mr_td", "septve_disable", "qe_mr_signer", "Intel SGX Root CA"]);
    let good = ["verify", &quote, "--endorsements", &bundle, "--at", "2025-07-01"];
    let text = evidence(&node, 0, &good).stdout;
    has(&text, &["tee       tdx", "verdict   verified\n", "tdx.tcb_status", "UpToDate"]);
    let answer = json(&node, 0, &good);
    let mr_td = answer["claims"]["tdx"]["quote"]["body"]["mr_td"].as_str().unwrap();
    let values = node.file("values.json", serde_json::json!({"mr_td": [mr_td]}).to_string());
    evidence(&node, 0, &[&good[..], &["--reference-values", &values]].concat());
    evidence(&node, 1, &[&good[..], &["--require", "tcb_status=OutOfDate"]].concat());
    let refused =
        |arguments: &[&str]| json(&node, 1, &[&["verify"], arguments].concat())["refusals"][0].clone();
    let none = refused(&[&quote, "--at", "2025-07-01"]);
    has(none["message"].as_str().unwrap(), &["no collateral", "B0C06F000000"]);
    let expired = refused(&[&quote, "--endorsements", &bundle, "--at", "2026-07-01"]);
    has(expired["message"].as_str().unwrap(), &["expired"]);
    let other = vector("tdx/quotes/v5-gcollateral/collateral").unwrap();
    assert_eq!(refused(&[&quote, "--endorsements", &other, "--at", "2026-02-20"])["reason"], "collateral");
    // A bit of what is attested.
    let mut bytes = std::fs::read(&quote).unwrap();
    bytes[200] ^= 1;
    let changed = node.file("changed.bin", bytes);
    let refused = refused(&[&changed, "--endorsements", &bundle, "--at", "2025-07-01"]);
    assert_eq!(refused["reason"], "signature", "{refused}");
}

#[test]
fn simulated_evidence_cannot_be_taken_for_real() {
    let node = Node::new();
    let platform = SimPlatform::create(&node.path("sim")).unwrap();
    let report = platform.report(&ReportRequest::default()).unwrap();
    let table = platform.certificate_table();
    let parsed = SnpEvidence::new(&Report::parse(&report).unwrap(), &CertTable::parse(&table).unwrap());
    let raw = node.file("report.bin", report);
    let with_table = node.file("extended.bin", [report.to_vec(), table.clone()].concat());
    let table = node.file("table.bin", &table);
    let as_json = node.file("evidence.json", serde_json::to_vec(&parsed).unwrap());
    let root = node.path("sim/ark.pem").to_str().unwrap().to_owned();
    let forms: [&[&str]; 3] = [&[&raw, "--endorsements", &table], &[&with_table], &[&as_json]];
    for form in forms {
        let text = evidence(&node, 0, &[&["verify"], form, &["--simulated-root", &root]].concat()).stdout;
        has(
            &text,
            &["tee       sim-snp", "SIMULATED", "protects nothing", "proves nothing", "sim-snp.measurement"],
        );
        assert!(!text.contains("verdict   verified"), "{text}");
        let answer = json(&node, 0, &[&["verify"], form, &["--simulated-root", &root]].concat());
        assert_eq!((&answer["verdict"], &answer["tee"]), (&"verified-simulated".into(), &"sim-snp".into()));
        assert_eq!(answer["simulated"], true);
        assert!(answer["claims"].get("snp").is_none());
        // As hardware it is refused, whether a root is there or not.
        for more in [&[][..], &["--tee", "snp", "--simulated-root", &root]] {
            let refused = json(&node, 1, &[&["verify"], form, more].concat());
            assert_eq!(refused["refusals"][0]["reason"], "untrusted-root", "{refused}");
            has(refused["refusals"][0]["what_to_do"].as_str().unwrap(), &["--simulated-root"]);
        }
    }
    let refused = json(&node, 1, &["verify", &as_json, "--tee", "sim-snp"]);
    assert_eq!(refused["refusals"][0]["reason"], "simulated-not-configured");
    // Another simulated platform's root, and a file that is no root.
    let other = SimPlatform::create(&node.path("other")).unwrap();
    let other = node.file("other.pem", other.ark_pem().unwrap());
    let refused = json(&node, 1, &["verify", &as_json, "--simulated-root", &other]);
    assert_eq!(refused["refusals"][0]["reason"], "untrusted-root");
    let ran = evidence(&node, 2, &["verify", &as_json, "--simulated-root", &raw]);
    has(&ran.stderr, &["is no root of a simulated platform"]);
}

#[test]
fn sample_evidence_is_refused() {
    let node = Node::new();
    let file = node.file("sample.json", r#"{"svn": "1", "report_data": "AA=="}"#);
    has(&evidence(&node, 0, &["show", &file]).stdout, &["anybody can make it up"]);
    let refused = json(&node, 1, &["verify", &file]);
    assert_eq!(refused["refusals"][0]["reason"], "sample-not-enabled");
}

#[test]
fn what_cannot_be_read_is_exit_code_2() {
    let node = Node::new();
    let elf = node.file("elf", b"\x7fELF\x02\x01\x01\0 and more");
    let empty = node.file("empty", b"");
    let json_text = node.file("other.json", r#"{"a": 1}"#);
    let broken = node.file("broken.json", r#"{"attestation_report": "#);
    let short = node.file("short.bin", [3, 0, 0, 0, 1]);
    let request = node.file("request.json", r#"{"primary_evidence": {}, "additional_evidence": ""}"#);
    let folder = node.path("state").to_str().unwrap().to_owned();
    let cases: [(&str, &[&str]); 9] = [
        (&elf, &["no evidence that is known", "7f454c46"]),
        (&empty, &["it is empty"]),
        (&json_text, &["its members (a)"]),
        (&broken, &["begins like JSON and is none"]),
        (&short, &["report has 5 bytes, expected 1184"]),
        (&request, &["primary_evidence alone"]),
        (&folder, &["cannot read", "directory"]),
        ("/nonexistent", &["cannot read /nonexistent"]),
        ("/dev/zero", &["more than 4194304 bytes"]),
    ];
    for (file, words) in cases {
        for verb in ["show", "verify"] {
            let ran = evidence(&node, 2, &[verb, file]);
            assert_eq!(ran.stdout, "", "{ran:?}");
            has(ran.stderr.lines().last().unwrap(), &[&["kata-cc: "], words].concat());
        }
        let ran = node.run(&["--json", "evidence", "verify", file]);
        assert!(serde_json::from_str::<Value>(ran.stderr.trim()).unwrap()["error"].is_string(), "{ran:?}");
    }
    let sample = node.file("sample.json", r#"{"svn": "1", "report_data": "AA=="}"#);
    for (option, value, words) in [
        ("--endorsements", elf.as_str(), "holds no endorsement"),
        ("--endorsements", "/nonexistent", "cannot read"),
        ("--endorsements", "/dev/zero", "more than 1048576 bytes"),
        ("--reference-values", &empty, "has no reference values"),
        ("--init-data", "no-such-file", "takes a file, or a digest"),
        ("--init-data", &json_text, "is no init-data"),
        ("--tee", "tdx", "it is evidence of sample"),
        ("--report-data", "xyz", "hex"),
        ("--at", "tomorrow", "2025-09-01T00:00:00Z"),
        ("--require", "x", "CLAIM=VALUE"),
        ("--tee", "mars", "possible values"),
    ] {
        let ran = evidence(&node, 2, &["verify", &sample, option, value]);
        has(&ran.stderr, &[words]);
    }
}

#[test]
fn evidence_is_read_from_standard_input() {
    let node = Node::new();
    let file = node.file("sample.json", r#"{"svn": "1", "report_data": "AA=="}"#);
    let mut command = node.command(&["evidence", "show", "-"]);
    let output = command.stdin(Stdio::from(std::fs::File::open(file).unwrap())).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    has(&String::from_utf8(output.stdout).unwrap(), &["sample"]);
}
