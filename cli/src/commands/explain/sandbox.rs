//! `kata-cc explain SANDBOX`: how a sandbox started. Each stage with its time since the start and what it took, the tier and why,
//! the verdict, and for a refusal who refused, what was expected and what was seen.

use kata_cc_sandbox::record::Stage;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::commands::records::{self, Summary};
use crate::output::{Output, Tone, printable};

/// A stage with its times.
#[derive(Debug, PartialEq, Serialize)]
struct Timed<'a> {
    /// Milliseconds since the first stage.
    after_ms: Option<f64>,
    /// Milliseconds since the stage before.
    took_ms: Option<f64>,
    #[serde(flatten)]
    stage: &'a Stage,
}

#[derive(Serialize)]
struct Explanation<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    stages: Vec<Timed<'a>>,
}

/// Print the explanation. Exit code 0 whatever became of the sandbox: the question was answered.
pub(super) fn explain(id: &str, output: &Output) -> anyhow::Result<u8> {
    let id = records::find(id)?;
    let (summary, stages) = Summary::read(&id)?;
    let explanation = Explanation { summary: &summary, stages: timed(&stages) };
    if output.json {
        output.document(&explanation)?;
    } else {
        output.text(&text(&explanation, output))?;
    }
    Ok(0)
}

/// Times relative to the first stage and to the one before; none where a time cannot be read.
fn timed(stages: &[Stage]) -> Vec<Timed<'_>> {
    let time = |stage: &Stage| OffsetDateTime::parse(&stage.t, &Rfc3339).ok();
    let since = |from: Option<OffsetDateTime>, to: Option<OffsetDateTime>| {
        Some((to? - from?).as_seconds_f64() * 1000.0).map(|ms| (ms * 1000.0).round() / 1000.0)
    };
    let start = stages.first().and_then(time);
    let mut before = start;
    let mut all = Vec::new();
    for stage in stages {
        let now = time(stage);
        all.push(Timed { after_ms: since(start, now), took_ms: since(before, now), stage });
        before = now.or(before);
    }
    all
}

fn text(explanation: &Explanation<'_>, output: &Output) -> String {
    let summary = explanation.summary;
    let mut lines = vec![format!("sandbox  {}", summary.id)];
    let mut field = |name: &str, value: &Option<String>| {
        if let Some(value) = value {
            lines.push(format!("{name:<8} {}", printable(value)));
        }
    };
    field("image", &summary.image);
    field("class", &summary.class);
    field("tier", &summary.tier);
    field("why", &summary.why);
    field("digest", &summary.launch_digest);
    field("verdict", &summary.verdict);
    if let Some(tee @ ("sim-snp" | "sim-tdx")) = summary.tier.as_deref() {
        lines.push(format!("note     {tee} is a simulated TEE: it protects nothing"));
    }
    lines.push(String::new());
    for timed in &explanation.stages {
        let number = |ms: Option<f64>| ms.map_or_else(|| "?".into(), |ms| format!("{ms:.1}"));
        let tone = match timed.stage.stage.as_str() {
            "refused" | "failed" => Some(Tone::Bad),
            "attested" | "key-released" => Some(Tone::Good),
            _ => None,
        };
        let name = format!("{:<18}", printable(&timed.stage.stage));
        let name = tone.map_or_else(|| name.clone(), |tone| output.paint(tone, &name));
        let line = format!(
            "{:>10} ms {:>+10} ms  {name} {}{}",
            number(timed.after_ms),
            format!("+{}", number(timed.took_ms)),
            details(timed.stage),
            if timed.stage.guest { "  (the guest says)" } else { "" },
        );
        lines.push(line.trim_end().to_owned());
    }
    lines.push(String::new());
    match (&summary.refusal, summary.exit_code) {
        (Some(refusal), _) if summary.state != "running" => {
            lines.push(output.paint(Tone::Bad, &format!("{} by {}", refusal.stage, printable(&refusal.by))));
            let parts = [
                ("reason", &refusal.reason),
                ("expected", &refusal.expected),
                ("seen", &refusal.seen),
                ("what to do", &refusal.advice),
            ];
            for (name, value) in parts.into_iter().filter(|(_, value)| !value.is_empty()) {
                lines.push(format!("  {name:<11} {}", printable(value)));
            }
        }
        (_, Some(code)) if summary.state == "exited" => lines.push(format!("exited with code {code}")),
        _ => lines.push(summary.state.to_owned()),
    }
    lines.join("\n") + "\n"
}

/// Detail of a stage on its line; a refusal's is told below the timeline.
fn details(stage: &Stage) -> String {
    let Value::Object(fields) = &stage.detail else { return String::new() };
    let told_below = matches!(stage.stage.as_str(), "refused" | "failed");
    let parts: Vec<String> = fields
        .iter()
        .filter(|(key, _)| {
            if told_below {
                matches!(key.as_str(), "by" | "reason")
            } else {
                !matches!(key.as_str(), "why" | "msg" | "message" | "target")
            }
        })
        .filter_map(|(key, value)| Some(format!("{key}={}", records::plain(value)?)))
        .collect();
    printable(&parts.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_relative_to_the_start_and_to_the_stage_before() {
        let stage = |t: &str, stage: &str| Stage {
            t: t.into(),
            stage: stage.into(),
            detail: json!({}),
            guest: false,
        };
        let stages = [
            stage("2026-01-01T00:00:00.000000Z", "created"),
            stage("2026-01-01T00:00:00.002500Z", "tier"),
            stage("nonsense", "measured"),
            stage("2026-01-01T00:00:01.000000Z", "agent-ready"),
        ];
        let times: Vec<_> = timed(&stages).iter().map(|timed| (timed.after_ms, timed.took_ms)).collect();
        assert_eq!(
            times,
            [(Some(0.0), Some(0.0)), (Some(2.5), Some(2.5)), (None, None), (Some(1000.0), Some(997.5)),]
        );
    }
}
