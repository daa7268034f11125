//! `ps`, `logs` and `explain` of the real binary, over made-up records and logs in the form of `docs/design.md`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::process::Stdio;

use common::Node;
use serde_json::Value;

/// A confidential start that went well.
const GOOD: &str = r#"{"t":"2026-01-01T00:00:00.000000Z","stage":"created","detail":{"image":"registry.example/app:1","class":"kata-cc"}}
{"t":"2026-01-01T00:00:00.002000Z","stage":"tier","detail":{"tier":"sim-snp","why":"the node's configuration names it"}}
{"t":"2026-01-01T00:00:00.102000Z","stage":"measured","detail":{"launch_digest":"abcd"}}
{"t":"2026-01-01T00:00:00.202000Z","stage":"vmm-started","detail":{}}
{"t":"2026-01-01T00:00:01.202000Z","stage":"agent-ready","detail":{}}
{"t":"2026-01-01T00:00:01.302000Z","stage":"attested","detail":{"tee":"sim-snp","verdict":"affirming"}}
{"t":"2026-01-01T00:00:01.402000Z","stage":"key-released","detail":{"key_id":"kbs:///default/key/1"}}
{"t":"2026-01-01T00:00:02.402000Z","stage":"pulled","detail":{"image":"registry.example/app:1","digest":"sha256:11","layers":1,"bytes":42}}
{"t":"2026-01-01T00:00:02.502000Z","stage":"container-started","detail":{}}
{"t":"2026-01-01T00:00:09.000000Z","stage":"exited","detail":{"code":3}}
"#;

/// A start that the key broker refused, with a damaged line in the middle and words of a hostile guest.
const REFUSED: &str = concat!(
    r#"{"t":"2026-01-02T00:00:00.000000Z","stage":"created","detail":{"image":"evil\u001b]0;owned\u0007","class":"kata-cc"}}"#,
    "\n",
    r#"{"t":"2026-01-02T00:00:00.001000Z","stage":"tier","detail":{"tier":"sim-snp","why":"named"}}"#,
    "\n",
    "{\"t\":\"2026-01-02T00:00:00.002000Z\",\"stage\":\"meas\n",
    r#"{"t":"2026-01-02T00:00:01.000000Z","stage":"refused","detail":{"by":"key broker\u001b[31m","reason":"the launch digest is unknown\u009b2J","expected":"aaaa","seen":"bbbb\r","what_to_do":"kata-cc measure --register"}}"#,
    "\n",
    r#"{"t":"2026-01-02T00:00:01.001000Z","stage":"failed","detail":{"by":"agent","reason":"no image"}}"#,
    "\n",
);

const LOG: &str = concat!(
    r#"{"t":"2026-01-01T00:00:00Z","source":"shim","level":"info","msg":"starting"}"#,
    "\n",
    r#"{"t":"2026-01-01T00:00:01Z","source":"kernel","level":"info","msg":"Linux \u001b[2J6.12"}"#,
    "\n",
    r#"{"t":"2026-01-01T00:00:02Z","source":"container","level":"info","msg":"hello\tworld \u001b[31mred\u009b0m"}"#,
    "\n",
    "{\"t\":\"2026-01-01T00:00:03Z\",\"sour\n",
    r#"{"t":"2026-01-01T00:00:04Z","source":"agent","level":"error","msg":"bad","stage":"refused","what":"\u0007"}"#,
    "\n",
    r#"{"t":"2026-01-01T00:00:05Z","source":"container","level":"info","msg":"bye"}"#,
    "\n",
);

fn node() -> Node {
    let node = Node::new();
    node.sandbox("good-pod", GOOD, LOG);
    node.sandbox("bad-pod", REFUSED, LOG);
    node
}

/// No control character but line ends and, in text, tabs.
fn assert_inert(text: &str) {
    let bad = text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
    assert_eq!(bad, None, "{text:?}");
}

#[test]
fn ps_lists_the_newest_first() {
    let node = node();
    let text = node.ok(&["ps"]);
    assert_inert(&text);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("ID ") && lines.len() == 3, "{text}");
    assert!(lines[1].starts_with("bad-pod") && lines[1].contains("refused"), "{text}");
    assert!(lines[2].starts_with("good-pod") && lines[2].contains("exited (3)"), "{text}");
    assert!(lines[2].contains("sim-snp") && lines[2].contains("registry.example/app:1"), "{text}");
    let list = node.json(&["ps"]);
    assert_eq!((&list[0]["id"], &list[0]["state"]), (&"bad-pod".into(), &"refused".into()), "{list}");
    assert_eq!((&list[1]["exit_code"], &list[1]["verdict"]), (&3.into(), &"affirming".into()), "{list}");
    assert_eq!(Node::new().json(&["ps"]), Value::Array(Vec::new()));
}

#[test]
fn ps_running_asks_whether_the_monitor_lives() {
    let node = node();
    assert_eq!(node.ok(&["ps", "--running"]).lines().count(), 1);
    let pid = std::process::id();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start: u64 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    node.file("run/good-pod/leftovers.json", format!("{{\"monitor\":[{pid},{start}]}}"));
    let text = node.ok(&["ps", "--running"]);
    assert!(text.lines().count() == 2 && text.contains("running"), "{text}");
    // A number that no process has.
    node.file("run/good-pod/leftovers.json", "{\"monitor\":[4194305,1]}");
    assert_eq!(node.json(&["ps", "--running"]), Value::Array(Vec::new()));
    // Another process that has the number now.
    node.file("run/good-pod/leftovers.json", format!("{{\"monitor\":[{pid},{}]}}", start + 1));
    assert_eq!(node.json(&["ps", "--running"]), Value::Array(Vec::new()));
    node.file("run/good-pod/leftovers.json", "damaged");
    assert_eq!(node.json(&["ps", "--running"]), Value::Array(Vec::new()));
}

#[test]
fn logs_are_what_the_containers_printed_and_with_all_everything() {
    let node = node();
    let text = node.ok(&["logs", "good-pod"]);
    assert_inert(&text);
    assert_eq!(text, "hello\tworld \\u{1b}[31mred\\u{9b}0m\nbye\n");
    let all = node.ok(&["logs", "--all", "good-pod"]);
    assert_inert(&all);
    assert_eq!(all.lines().count(), 5, "the damaged line is passed over: {all}");
    assert!(all.contains("kernel    info  Linux \\u{1b}[2J6.12") && all.contains("what=\\u{7}"), "{all}");
    let json = node.ok(&["--json", "logs", "--all", "good-pod"]);
    assert_inert(&json);
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[2]["msg"], "hello\tworld \u{1b}[31mred\u{9b}0m", "the exact characters: {json}");
    assert_eq!(node.ok(&["logs", "--follow", "good-pod"]), text, "it has ended: following ends too");
}

#[test]
fn explain_tells_the_stages_and_why_it_was_refused() {
    let node = node();
    let good = node.ok(&["explain", "good-pod"]);
    for words in [
        "sim-snp is a simulated TEE: it protects nothing",
        "launch_digest=abcd",
        "+1000.0 ms",
        "exited with code 3",
    ] {
        assert!(good.contains(words), "{words} is missing in {good}");
    }
    let order: Vec<usize> =
        ["created", "tier ", "measured", "vmm-started", "agent-ready", "attested", "key-released", "pulled"]
            .iter()
            .map(|stage| {
                good.find(&format!("ms  {stage}")).unwrap_or_else(|| panic!("{stage} is missing in {good}"))
            })
            .collect();
    assert!(order.is_sorted(), "{good}");
    let bad = node.ok(&["explain", "bad-pod"]);
    assert_inert(&bad);
    for words in [
        "refused by key broker",
        "expected    aaaa",
        "seen        bbbb",
        "what to do  kata-cc measure --register",
    ] {
        assert!(bad.contains(words), "{words} is missing in {bad}");
    }
    let text = node.ok(&["--json", "explain", "bad-pod"]);
    assert_inert(&text);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["state"], json["stages"].as_array().unwrap().len()), (&"refused".into(), 4), "{json}");
    assert_eq!(json["refusal"]["reason"], "the launch digest is unknown\u{9b}2J");
    assert_eq!((&json["refusal"]["expected"], &json["stages"][0]["after_ms"]), (&"aaaa".into(), &0.0.into()));
}

#[test]
fn a_prefix_is_enough_when_it_means_one() {
    let node = node();
    node.sandbox("good-prod", GOOD, LOG);
    assert!(node.ok(&["explain", "b"]).starts_with("sandbox  bad-pod"));
    assert!(node.ok(&["explain", "good-po"]).starts_with("sandbox  good-pod"));
    for command in ["explain", "logs"] {
        node.fails(&[command, "good-p"], &["good-p", "good-pod", "good-prod", "give more"]);
        node.fails(&[command, "x"], &["no sandbox x", "kata-cc ps"]);
        node.fails(&[command, "../bad-pod"], &["\"../bad-pod\"", "[A-Za-z0-9_.-]"]);
    }
    std::fs::remove_file(node.path("state/sandboxes/bad-pod/log.jsonl")).unwrap();
    node.fails(&["logs", "bad"], &["bad-pod has no log", "log.jsonl"]);
    std::fs::remove_file(node.path("state/sandboxes/bad-pod/record.jsonl")).unwrap();
    node.fails(&["explain", "bad"], &["record of sandbox bad-pod cannot be read"]);
    assert_eq!(node.ok(&["ps"]).lines().count(), 3, "a folder without a record is passed over");
}

#[test]
fn bytes_that_are_no_text_hide_nothing_behind_them() {
    let node = Node::new();
    let (first, rest) = GOOD.split_at(GOOD.find('\n').unwrap() + 1);
    let record = [first.as_bytes(), b"\xff\xfe\n", rest.as_bytes()].concat();
    node.sandbox("torn", "", "");
    node.file("state/sandboxes/torn/record.jsonl", record);
    assert_eq!(node.json(&["explain", "torn"])["stages"].as_array().unwrap().len(), 10);
    let log = [b"\xff\xfe\n", LOG.as_bytes()].concat();
    node.file("state/sandboxes/torn/log.jsonl", log);
    assert!(node.ok(&["logs", "torn"]).ends_with("bye\n"));
}

#[test]
fn a_reader_that_goes_away_is_no_reason_to_panic() {
    let node = node();
    node.file("config.toml", "sentry = \"/nowhere/kata-cc-sentry\"");
    // More than a pipe holds.
    let long = LOG.repeat(2000);
    node.sandbox("long", GOOD, &long);
    let key = node.path("image.key").to_str().unwrap().to_owned();
    common::oci_layout(&node.path("plain"));
    let (src, dst) =
        (format!("oci:{}", node.path("plain").display()), format!("oci:{}", node.path("sealed").display()));
    let commands: [(&[&str], i32); 13] = [
        (&["ps"], 0),
        (&["--json", "ps"], 0),
        (&["logs", "long"], 0),
        (&["--json", "logs", "--all", "long"], 0),
        (&["explain", "good-pod"], 0),
        (&["--json", "explain", "good-pod"], 0),
        (&["doctor"], 1),
        (&["policy", "show", "agent"], 0),
        (&["completions", "bash"], 0),
        (&["image", "inspect", &src], 0),
        (&["image", "encrypt", &src, &dst, "--key-id", "kbs:///a/b/c", "--key-file", &key], 0),
        (&["--help"], 0),
        (&["no-such-command"], 2),
    ];
    for (arguments, code) in commands {
        // The reading ends are closed before anything is written.
        let mut command = node.command(arguments);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ran = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let told = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!told.contains("panicked"), "{arguments:?}: {told}");
        assert_eq!(ran.status.code(), Some(code), "{arguments:?}: {told}");
        // Also when it is standard error that nobody reads: a panic would be exit code 101.
        let mut command = node.command(arguments);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ran = command.stdout(Stdio::null()).stderr(writer).status().unwrap();
        assert_eq!(ran.code(), Some(code), "{arguments:?}");
    }
    let mut command = node.command(&["explain", "nobody"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(command.stderr(writer).status().unwrap().code(), Some(1));
}
