//! `kata-cc evidence verify`: the verdict on a file, with what was compared and what to do.

use kata_cc_kbs_protocol::Tee;
use kata_cc_verifier::{Reason, Refusal};
use serde::Serialize;
use serde_json::Value;

use super::page::plain;
use super::references::Check;
use super::time::utc;
use crate::output::{Output, Tone, printable, table};

/// What is said of simulated evidence, in every form of output.
pub(in crate::commands) const SIMULATED: &str = "SIMULATED: no hardware vouches for this. The host owns the key that signed it and the guest's memory; it protects nothing";

/// Why evidence was refused.
#[derive(Debug, Serialize)]
pub(in crate::commands) struct Refused {
    reason: String,
    claim: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<String>,
    message: String,
    what_to_do: &'static str,
}

impl From<&Refusal> for Refused {
    fn from(refusal: &Refusal) -> Self {
        Self {
            reason: refusal.reason().name().to_owned(),
            claim: refusal.claim().to_owned(),
            seen: refusal.seen(),
            expected: refusal.expected(),
            message: refusal.to_string(),
            what_to_do: advice(refusal),
        }
    }
}

impl Refused {
    /// A refusal of this command's own.
    pub(in crate::commands) fn new(
        reason: &str,
        claim: &str,
        message: String,
        what_to_do: &'static str,
    ) -> Self {
        let (reason, claim) = (reason.to_owned(), claim.to_owned());
        Self { reason, claim, seen: None, expected: None, message, what_to_do }
    }
}

fn advice(refusal: &Refusal) -> &'static str {
    let message = refusal.to_string();
    match refusal.reason() {
        Reason::Malformed => "take the evidence again, whole, and check that it is of the TEE that is named",
        Reason::TeeNotSupported => "verify it with the software of its TEE",
        Reason::SimulatedNotConfigured => {
            "give the root of the simulated platform (its ark.pem) as --simulated-root, for tests only"
        }
        Reason::UntrustedRoot => {
            "hardware's evidence is believed under its maker's roots alone; if it is a simulated platform's, give --simulated-root FILE"
        }
        Reason::Signature if message.contains("missing") => {
            "give the certificates of this chip and firmware by --endorsements FILE or DIR"
        }
        Reason::Signature if message.contains("valid from") || message.contains("expired") => {
            "get current certificates and collateral, or give the time to judge at by --at"
        }
        Reason::Signature => {
            "the evidence was changed, or certificates are of another chip or firmware version: take it again, and its certificates with --endorsements"
        }
        Reason::ReportData => {
            "the evidence is of another exchange: do not use it, ask the guest for new evidence"
        }
        Reason::InitData => {
            "start the guest with the init-data that is expected, or expect what it was started with"
        }
        Reason::EventLog => {
            "take quote and event log again together: the log is of other measurements, or was changed"
        }
        Reason::Collateral => {
            "give current collateral of this platform by --endorsements (a bundle, or a folder with tcb_info.json and the others), or the time to judge at by --at"
        }
        Reason::Unacceptable => "evidence of this kind is never accepted: see the message for what to change",
    }
}

/// The whole answer.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    /// What the file is.
    pub(super) evidence: String,
    /// TEE that vouches for it, or is said to.
    pub(super) tee: Tee,
    /// No hardware behind it.
    pub(super) simulated: bool,
    /// `verified`, `verified-simulated` or `refused`.
    pub(super) verdict: &'static str,
    /// RFC 3339.
    pub(super) at: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) refusals: Vec<Refused>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) checks: Vec<Check>,
    /// What could have been checked and was not, and what was seen that is doubtful.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) claims: Option<Value>,
}

impl Answer {
    pub(super) fn new(evidence: String, tee: Tee, at: u64) -> Self {
        let simulated = is_simulated(tee);
        let warnings = if simulated { vec![SIMULATED.to_owned()] } else { Vec::new() };
        Self {
            evidence,
            tee,
            simulated,
            verdict: "refused",
            at: utc(at),
            refusals: Vec::new(),
            checks: Vec::new(),
            warnings,
            claims: None,
        }
    }

    /// Decide the verdict from what was found; gives the exit code.
    pub(super) fn conclude(&mut self) -> u8 {
        let good =
            self.refusals.is_empty() && self.claims.is_some() && self.checks.iter().all(|check| check.holds);
        self.verdict = match (good, self.simulated) {
            (true, false) => "verified",
            (true, true) => "verified-simulated",
            (false, _) => "refused",
        };
        u8::from(!good)
    }

    pub(super) fn text(&self, output: &Output) -> String {
        let mut text = format!("evidence  {}\ntee       {}\n", printable(&self.evidence), self.tee);
        let (word, tone) = match self.verdict {
            "verified" => ("verified".to_owned(), Tone::Good),
            "verified-simulated" => {
                (format!("{}: a simulated platform made it, and it proves nothing", self.tee), Tone::Doubtful)
            }
            _ => ("refused".to_owned(), Tone::Bad),
        };
        text += &format!("verdict   {}\nat        {}\n", output.paint(tone, &word), self.at);
        for warning in &self.warnings {
            text += &format!("{}   {}\n", output.paint(Tone::Doubtful, "warning"), printable(warning));
        }
        for refused in &self.refusals {
            text += &refusal_text(refused, output);
        }
        if !self.checks.is_empty() {
            text += "\nCompared\n";
            text += &checks_text(&self.checks);
        }
        for check in self.checks.iter().filter(|check| !check.holds) {
            text += &check_text(check, output);
        }
        if let Some(claims) = &self.claims {
            text += "\nClaims\n";
            let mut rows = Vec::new();
            flatten("", claims, &mut rows);
            text += &table_body(&rows);
        }
        text
    }
}

pub(in crate::commands) fn is_simulated(tee: Tee) -> bool {
    matches!(tee, Tee::SimSnp | Tee::SimTdx)
}

/// A refusal in full.
pub(in crate::commands) fn refusal_text(refused: &Refused, output: &Output) -> String {
    let head = format!("refused by {}: {}", refused.claim, refused.message);
    let mut text = format!("\n{}\n", output.paint(Tone::Bad, &printable(&head)));
    let parts = [
        ("reason", Some(refused.reason.as_str())),
        ("seen", refused.seen.as_deref()),
        ("expected", refused.expected.as_deref()),
        ("what to do", Some(refused.what_to_do)),
    ];
    for (name, value) in parts {
        if let Some(value) = value {
            text += &format!("  {name:<11} {}\n", printable(value));
        }
    }
    text
}

fn checks_text(checks: &[Check]) -> String {
    let row = |check: &Check| {
        let word = if check.holds { "ok" } else { "differs" };
        vec![format!("  {word}"), check.claim.clone(), printable(&check.by)]
    };
    table(&["  ", "claim", "by"], &checks.iter().map(row).collect::<Vec<_>>())
}

fn check_text(check: &Check, output: &Output) -> String {
    let head = format!("{} is not as expected by {}", check.claim, check.by);
    let mut text = format!("\n{}\n", output.paint(Tone::Bad, &printable(&head)));
    let expected = match &check.expected {
        Value::Array(all) if all.len() != 1 => format!("one of {}", plain(&check.expected)),
        other => plain(other),
    };
    let advice = check.what_to_do.as_deref().unwrap_or_default();
    for (name, value) in
        [("seen", plain(&check.seen)), ("expected", expected), ("what to do", advice.to_owned())]
    {
        text += &format!("  {name:<11} {}\n", printable(&value));
    }
    text
}

/// Claims as rows of path and value.
fn flatten(path: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, value, rows);
            }
        }
        Value::Array(values) if values.iter().any(Value::is_object) => {
            for (index, value) in values.iter().enumerate() {
                flatten(&format!("{path}[{index}]"), value, rows);
            }
        }
        other => rows.push(vec![format!("  {}", printable(path)), printable(&plain(other))]),
    }
}

fn table_body(rows: &[Vec<String>]) -> String {
    let text = table(&["", ""], rows);
    text.split_once('\n').map_or(String::new(), |(_, rows)| rows.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(tee: Tee) -> Answer {
        let mut answer = Answer::new("x".into(), tee, 0);
        answer.claims = Some(json!({"snp": {"a": 1, "b": [1, 2]}, "l": [{"x": true}]}));
        answer
    }

    #[test]
    fn the_verdict_needs_claims_and_no_difference() {
        let mut good = answer(Tee::Snp);
        assert_eq!((good.conclude(), good.verdict), (0, "verified"));
        let mut none = Answer::new("x".into(), Tee::Snp, 0);
        assert_eq!((none.conclude(), none.verdict), (1, "refused"));
        let mut differs = answer(Tee::Snp);
        differs.checks.push(Check {
            claim: "a".into(),
            seen: json!(1),
            expected: json!([2, 3]),
            holds: false,
            by: "snp_a".into(),
            what_to_do: Some("mend it".into()),
        });
        assert_eq!((differs.conclude(), differs.verdict), (1, "refused"));
        let text = differs.text(&Output::new(false));
        for words in [
            "a is not as expected by snp_a",
            "seen        1",
            "expected    one of 2, 3",
            "what to do  mend it",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(text.contains("  l[0].x  yes\n  snp.a   1\n  snp.b   1, 2\n"), "{text}");
    }

    #[test]
    fn simulated_evidence_is_never_called_verified() {
        let mut simulated = answer(Tee::SimSnp);
        assert_eq!((simulated.conclude(), simulated.verdict), (0, "verified-simulated"));
        let text = simulated.text(&Output::new(false));
        assert!(!text.contains("verdict   verified"), "{text}");
        assert!(text.contains("SIMULATED") && text.contains("proves nothing"), "{text}");
    }
}
