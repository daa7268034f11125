//! An explained verdict: its parts, every comparison, and how it is told.

use std::collections::BTreeMap;

use kata_cc_attestation_service::ear::Tier;
use kata_cc_attestation_service::explain::Check;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::commands::evidence::page::plain;
use crate::commands::evidence::verify::{Refused, refusal_text};
use crate::output::{Output, Tone, printable, table};

/// Most characters of a value in the table; it stands in full below when it differs, and in JSON.
const MAX_CELL: usize = 32;

/// One comparison, as the attestation service's API tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    /// Member of the trust vector that it decides.
    #[serde(default)]
    pub(super) rule: String,
    pub(super) claim: String,
    #[serde(default)]
    pub(super) seen: Value,
    #[serde(default)]
    pub(super) expected: Value,
    pub(super) ok: bool,
    /// `{name, state, source, expiration}`; of a token its name alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reference: Option<Value>,
    /// `{id, digest}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) policy: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) what_to_do: Option<String>,
}

impl From<&Check> for Row {
    fn from(check: &Check) -> Self {
        let json = |value: Result<Value, _>| -> Option<Value> { value.ok() };
        Self {
            rule: check.rule.clone(),
            claim: check.claim.clone(),
            seen: check.seen.clone(),
            expected: check.expected.clone(),
            ok: check.ok,
            reference: check.reference.as_ref().and_then(|reference| json(serde_json::to_value(reference))),
            policy: json(serde_json::to_value(check.policy.as_ref())),
            what_to_do: check.what_to_do.clone(),
        }
    }
}

/// One piece of evidence: the guest, or a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Part {
    /// What made the evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tee: Option<String>,
    /// `affirming`, `warning`, `contraindicated`, `none`.
    pub(super) status: String,
    #[serde(default)]
    pub(super) trustworthiness_vector: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) measurement: Option<String>,
    /// Every comparison that is known, those that failed first.
    pub(super) explanation: Vec<Row>,
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub(super) struct Explained {
    /// What was explained.
    pub(super) of: String,
    /// Whether signatures were checked here, or by the service that was asked, and hold.
    pub(super) verified: bool,
    /// Worst status of all parts; `refused` when the evidence or the token proves nothing.
    pub(super) status: String,
    /// When it was judged, RFC 3339.
    pub(super) at: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) refusals: Vec<Refused>,
    pub(super) submods: BTreeMap<String, Part>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) warnings: Vec<String>,
}

/// The tier that a word names; what is no such word is no trust.
pub(super) fn tier(word: &str) -> Tier {
    [Tier::None, Tier::Affirming, Tier::Warning, Tier::Contraindicated]
        .into_iter()
        .find(|tier| tier.name() == word)
        .unwrap_or(Tier::Contraindicated)
}

impl Explained {
    pub(super) fn new(of: String, at: String) -> Self {
        let (refusals, submods, warnings) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { of, verified: false, status: "refused".to_owned(), at, refusals, submods, warnings }
    }

    /// Takes the status from the parts. A part of which nothing is known makes the whole no better than that.
    pub(super) fn conclude(&mut self) {
        let tiers = || self.submods.values().map(|part| tier(&part.status));
        let worst = tiers().max().unwrap_or(Tier::None);
        let unknown = worst == Tier::Affirming && tiers().any(|tier| tier == Tier::None);
        self.status = if unknown { Tier::None } else { worst }.name().to_owned();
    }

    /// 0 only for what was verified and is affirming.
    pub(super) fn code(&self) -> u8 {
        let good = self.verified && self.refusals.is_empty() && self.status == Tier::Affirming.name();
        u8::from(!good)
    }

    pub(super) fn text(&self, output: &Output) -> String {
        let mut text = format!("explained  {}\n", printable(&self.of));
        let tone = match (self.code(), tier(&self.status)) {
            (0, _) => Tone::Good,
            (_, Tier::Affirming | Tier::None | Tier::Warning) => Tone::Doubtful,
            _ => Tone::Bad,
        };
        let status = match self.verified || self.status == "refused" {
            true => self.status.clone(),
            false => format!("{} by its own word", self.status),
        };
        text += &format!("verdict    {}\nat         {}\n", output.paint(tone, &printable(&status)), self.at);
        for warning in &self.warnings {
            text += &format!("{}    {}\n", output.paint(Tone::Doubtful, "warning"), printable(warning));
        }
        self.refusals.iter().for_each(|refused| text += &refusal_text(refused, output));
        for (name, part) in &self.submods {
            text += &part_text(name, part, output);
        }
        text
    }
}

fn part_text(name: &str, part: &Part, output: &Output) -> String {
    let tone = if tier(&part.status) == Tier::Affirming { Tone::Good } else { Tone::Bad };
    let tee = part.tee.as_deref().map(|tee| format!(" ({})", printable(tee))).unwrap_or_default();
    let mut text = format!("\n{}{tee}  {}\n", printable(name), output.paint(tone, &printable(&part.status)));
    if part.explanation.is_empty() {
        return text + "  nothing is said of what was compared\n";
    }
    let rows: Vec<_> = part.explanation.iter().map(cells).collect();
    text += &table(&["  ", "claim", "seen", "expected", "rule", "reference value"], &rows);
    for row in part.explanation.iter().filter(|row| !row.ok) {
        text += &failed_text(row, output);
    }
    text
}

fn cells(row: &Row) -> Vec<String> {
    let short = |text: String| {
        let text = printable(&text);
        match text.char_indices().nth(MAX_CELL) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        }
    };
    vec![
        if row.ok { "  ok" } else { "  differs" }.to_owned(),
        printable(&row.claim),
        short(plain(&row.seen)),
        short(expected(row)),
        printable(&row.rule),
        reference(row, false),
    ]
}

/// What failed, with nothing cut.
fn failed_text(row: &Row, output: &Output) -> String {
    let head = format!("{} is not as it should be", row.claim);
    let mut text = format!("\n{}\n", output.paint(Tone::Bad, &printable(&head)));
    let policy = row.policy.as_ref().map(|policy| {
        let of = |name: &str| policy.get(name).and_then(Value::as_str);
        let digest = of("digest").map(|digest| format!(" (SHA-256 {digest})")).unwrap_or_default();
        format!("{}{digest}", of("id").unwrap_or("unknown"))
    });
    let parts = [
        ("seen", Some(plain(&row.seen))),
        ("expected", Some(expected(row))),
        ("rule", Some(row.rule.clone()).filter(|rule| !rule.is_empty())),
        ("policy", policy),
        ("reference value", Some(reference(row, true)).filter(|text| !text.is_empty())),
        ("what to do", row.what_to_do.clone()),
    ];
    for (name, value) in parts {
        if let Some(value) = value {
            text += &format!("  {name:<16} {}\n", printable(&value));
        }
    }
    text
}

fn expected(row: &Row) -> String {
    match &row.expected {
        Value::Null if row.reference.is_some() => "a reference value, of which there is none".to_owned(),
        Value::Array(all) if all.len() != 1 => format!("one of {}", plain(&row.expected)),
        other => plain(other),
    }
}

/// Name of the reference value; with what is known of it in full.
fn reference(row: &Row, full: bool) -> String {
    let Some(reference) = &row.reference else { return String::new() };
    let of = |name: &str| reference.get(name).and_then(Value::as_str);
    let mut text = of("name").unwrap_or_default().to_owned();
    let state = of("state").filter(|state| full || *state != "valid");
    if let Some(state) = state {
        text += &format!(" ({state})");
    }
    if let Some(source) = reference.get("source").filter(|source| full && source.is_object()) {
        let of = |name: &str| source.get(name).and_then(Value::as_str);
        text += &format!(", from {}", of("kind").unwrap_or("unknown"));
        for (word, name) in [(" by ", "signer"), (": ", "detail")] {
            text += &of(name).map(|value| format!("{word}{value}")).unwrap_or_default();
        }
    }
    if full && let Some(end) = of("expiration") {
        text += &format!(", until {end}");
    }
    printable(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn part(status: &str, rows: Value) -> Part {
        serde_json::from_value(json!({"status": status, "explanation": rows})).unwrap()
    }

    fn explained(parts: &[(&str, Part)]) -> Explained {
        let mut explained = Explained::new("x".to_owned(), "now".to_owned());
        explained.submods = parts.iter().map(|(name, part)| ((*name).to_owned(), part.clone())).collect();
        explained.verified = true;
        explained.conclude();
        explained
    }

    #[test]
    fn only_what_is_verified_and_affirming_is_exit_code_0() {
        let good = part("affirming", json!([]));
        let mut all = explained(&[("cpu0", good.clone())]);
        assert_eq!((all.code(), all.status.as_str()), (0, "affirming"));
        all.verified = false;
        assert_eq!(all.code(), 1, "by its own word");
        assert!(all.text(&Output::new(false)).contains("affirming by its own word"));
        for status in ["warning", "contraindicated", "none", "a word of its own"] {
            let two = explained(&[("cpu0", good.clone()), ("gpu0", part(status, json!([])))]);
            assert_eq!(two.code(), 1, "{status}: a guest is no better than its worst device");
        }
        assert_eq!(explained(&[]).code(), 1, "nothing is said of anything");
    }

    #[test]
    fn a_failed_comparison_is_told_in_full() {
        let long = "ab".repeat(48);
        let rows = json!([
            {"rule": "executables", "claim": "measurement", "seen": long, "expected": ["cd", "ef"], "ok": false,
             "reference": {"name": "launch", "state": "expired", "source": {"kind": "signed", "signer": "release"},
                "expiration": "2025-01-01T00:00:00Z"},
             "policy": {"id": "default_cpu", "digest": "dd"}, "what_to_do": "register it"},
            {"rule": "hardware", "claim": "svn\u{1b}[2J", "seen": 8, "expected": null, "ok": false, "reference": {"name": "svn"}},
            {"rule": "configuration", "claim": "debug", "seen": false, "expected": false, "ok": true},
        ]);
        let text = explained(&[("cpu0", part("warning", rows))]).text(&Output::new(false));
        assert!(!text.contains('\u{1b}'), "{text:?}");
        for words in [
            "reference value\n",
            "  differs  measurement",
            "  ok       debug",
            "launch (expired)\n",
            &format!("  seen             {long}\n"),
            "  expected         one of cd, ef\n",
            "  rule             executables\n",
            "  policy           default_cpu (SHA-256 dd)\n",
            "  reference value  launch (expired), from signed by release, until 2025-01-01T00:00:00Z\n",
            "  what to do       register it\n",
            "a reference value, of which there is none",
        ] {
            assert!(text.contains(words), "{words:?} is missing in {text}");
        }
    }
}
