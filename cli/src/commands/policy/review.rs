//! `kata-cc policy lint|test|diff|explain|simulate`: an agent policy looked at before it is trusted, and after it denied something.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use kata_cc_policy::AgentPolicy;
use kata_cc_policy::advice::{Advice, advise};
use kata_cc_policy::diff::Effect;
use kata_cc_policy::generate::{PolicyData, data_of};
use kata_cc_policy::lint::Severity;
use kata_cc_policy::replay::{self, Answer, Request};
use kata_cc_sandbox::{paths, requests};
use serde::Serialize;
use serde_json::{Value, json};

use super::super::read_input;
use crate::output::{Output, Tone, printable};

/// Largest policy, in bytes: what the agent takes.
const MAX_POLICY: u64 = 16 << 20;
/// Largest recording.
const MAX_RECORDING: u64 = 256 << 20;
/// Longest value shown in text.
const SHOWN: usize = 300;

#[derive(Debug, clap::Args)]
pub(crate) struct LintArguments {
    /// Policy (Rego); `-` is standard input.
    policy: PathBuf,
    /// Fail on warnings as well.
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TestArguments {
    /// Policy (Rego).
    policy: PathBuf,
    /// Cases (YAML); beside the policy, `<policy>.test.yaml` without it.
    cases: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DiffArguments {
    /// Policy before.
    old: PathBuf,
    /// Policy after.
    new: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReplayArguments {
    /// Policy (Rego).
    policy: PathBuf,
    /// Requests, one JSON object a line: {"kind": "CreateContainerRequest", "request": {…}}; standard input without it.
    requests: Option<PathBuf>,
    /// Take what this sandbox of the node was asked, which it keeps with `record_requests = true` in the node's configuration.
    #[arg(long, value_name = "ID", conflicts_with = "requests")]
    sandbox: Option<String>,
}

fn text_of(file: &Path, most: u64) -> anyhow::Result<String> {
    let bytes = read_input(Some(file), most)?;
    String::from_utf8(bytes.to_vec()).with_context(|| format!("{} is not UTF-8 text", file.display()))
}

fn policy_of(file: &Path) -> anyhow::Result<(AgentPolicy, String)> {
    let text = text_of(file, MAX_POLICY)?;
    let policy = AgentPolicy::new(&file.display().to_string(), &text)?;
    Ok((policy, text))
}

/// A value on one line, shortened.
fn shown(value: &Value) -> String {
    let text = printable(&value.to_string());
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// Run `lint`.
pub(super) fn lint(arguments: &LintArguments, output: &Output) -> anyhow::Result<u8> {
    let text = text_of(&arguments.policy, MAX_POLICY)?;
    let found = kata_cc_policy::lint::lint(&arguments.policy.display().to_string(), &text)?;
    let least = if arguments.strict { Severity::Warning } else { Severity::Danger };
    let failed = found.iter().any(|finding| finding.severity >= least);
    if output.json {
        output.document(&json!({"passed": !failed, "findings": found}))?;
        return Ok(failed.into());
    }
    for finding in &found {
        let (tone, word) = match finding.severity {
            Severity::Danger => (Tone::Bad, "danger "),
            Severity::Warning => (Tone::Doubtful, "warning"),
            Severity::Note => (Tone::Quiet, "note   "),
        };
        let (place, check) = (printable(&finding.place), finding.check);
        output.text(&format!(
            "{} {place}: {} [{check}]\n",
            output.paint(tone, word),
            printable(&finding.message)
        ))?;
    }
    if found.is_empty() {
        output.text("nothing found\n")?;
    }
    Ok(failed.into())
}

/// Run `test`.
pub(super) fn test(arguments: &TestArguments, output: &Output) -> anyhow::Result<u8> {
    let (mut policy, _) = policy_of(&arguments.policy)?;
    let file = arguments.cases.clone().unwrap_or_else(|| arguments.policy.with_extension("test.yaml"));
    let cases = replay::cases(&text_of(&file, MAX_POLICY)?).with_context(|| format!("{}", file.display()))?;
    ensure!(!cases.is_empty(), "{} has no cases", file.display());
    let outcomes = replay::run(&mut policy, &cases);
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    if output.json {
        output.document(&json!({"passed": outcomes.len() - failed, "failed": failed, "cases": outcomes}))?;
        return Ok(u8::from(failed > 0));
    }
    for outcome in &outcomes {
        let word = if outcome.passed {
            output.paint(Tone::Good, "ok    ")
        } else {
            output.paint(Tone::Bad, "FAILED")
        };
        let mut line = format!("{word} {}", printable(&outcome.name));
        if !outcome.passed {
            let came = outcome.answer.denial.as_deref().map_or_else(|| "allowed".to_owned(), printable);
            line += &format!(": expected {}, seen: {came}", expected(&outcome.expected));
        }
        output.text(&(line + "\n"))?;
    }
    output.text(&format!("{} passed, {failed} failed\n", outcomes.len() - failed))?;
    Ok(u8::from(failed > 0))
}

fn expected(expected: &replay::Expected) -> String {
    match expected {
        replay::Expected::Allow => "allowed".to_owned(),
        replay::Expected::Deny(None) => "denied".to_owned(),
        replay::Expected::Deny(Some(rule)) => format!("denied by {:?}", printable(rule)),
    }
}

fn data(file: &Path) -> anyhow::Result<PolicyData> {
    data_of(&text_of(file, MAX_POLICY)?).with_context(|| {
        format!("{} is not a policy that kata-cc made: there is no policy_data to compare", file.display())
    })
}

/// Run `diff`.
pub(super) fn diff(arguments: &DiffArguments, output: &Output) -> anyhow::Result<u8> {
    let changes = kata_cc_policy::diff::diff(&data(&arguments.old)?, &data(&arguments.new)?);
    let wider = changes.iter().any(|change| change.effect != Effect::Narrower);
    if output.json {
        output.document(&json!({"allows_more": wider, "changes": changes}))?;
        return Ok(wider.into());
    }
    for change in &changes {
        let word = match change.effect {
            Effect::Wider => output.paint(Tone::Bad, "wider   "),
            Effect::Other => output.paint(Tone::Doubtful, "other   "),
            Effect::Narrower => output.paint(Tone::Good, "narrower"),
        };
        let place = change
            .container
            .as_ref()
            .map(|name| format!("container {name}"))
            .unwrap_or_else(|| "pod".to_owned());
        let field = if change.field.is_empty() { String::new() } else { format!(", {}", change.field) };
        output.text(&format!("{word} {}\n", printable(&format!("{place}{field}: {}", change.message))))?;
    }
    if changes.is_empty() {
        output.text("they allow the same\n")?;
    }
    Ok(wider.into())
}

fn recording(arguments: &ReplayArguments) -> anyhow::Result<Vec<Request>> {
    let kept = match &arguments.sandbox {
        Some(id) => {
            ensure!(paths::is_id(id), "{id:?} is no id of a sandbox");
            let file = requests::file_of(&paths::records(), id);
            ensure!(
                file.is_file(),
                "there is no {}: the node keeps what guests are asked with record_requests = true in its configuration, from the \
                 start of a sandbox on",
                file.display()
            );
            Some(file)
        }
        None => None,
    };
    let bytes = read_input(kept.as_deref().or(arguments.requests.as_deref()), MAX_RECORDING)?;
    let text = std::str::from_utf8(&bytes).context("the recording is not UTF-8 text")?;
    let requests = replay::recording(text)?;
    ensure!(!requests.is_empty(), "there are no requests in the recording");
    Ok(requests)
}

/// Run `simulate`.
pub(super) fn simulate(arguments: &ReplayArguments, output: &Output) -> anyhow::Result<u8> {
    let (mut policy, _) = policy_of(&arguments.policy)?;
    let mut denied = 0;
    let requests = recording(arguments)?;
    for (number, request) in requests.iter().enumerate() {
        let answer = replay::put(&mut policy, request);
        denied += usize::from(!answer.allowed);
        if output.json {
            output.line(&json!({"number": number + 1, "kind": request.kind, "allowed": answer.allowed, "denial": answer.denial, "reasons": answer.reasons}))?;
            continue;
        }
        let word = if answer.allowed {
            output.paint(Tone::Good, "allowed")
        } else {
            output.paint(Tone::Bad, "denied ")
        };
        let words = answer.denial.as_deref().unwrap_or(&request.kind);
        output.text(&format!("{word} {} {}\n", number + 1, printable(words)))?;
    }
    if !output.json {
        output.text(&format!("{} allowed, {denied} denied\n", requests.len() - denied))?;
    }
    Ok(u8::from(denied > 0))
}

/// Why one request was denied.
#[derive(Debug, Serialize)]
struct Explained {
    number: usize,
    kind: String,
    denial: Option<String>,
    reasons: Vec<WithAdvice>,
}

#[derive(Debug, Serialize)]
struct WithAdvice {
    #[serde(flatten)]
    reason: kata_cc_policy::agent::Reason,
    advice_for_it: Advice,
}

/// Run `explain`.
pub(super) fn explain(arguments: &ReplayArguments, output: &Output) -> anyhow::Result<u8> {
    let (mut policy, _) = policy_of(&arguments.policy)?;
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut explained = Vec::new();
    for (number, request) in recording(arguments)?.iter().enumerate() {
        let name = container_of(request, &mut names);
        let answer = replay::put(&mut policy, request);
        if !answer.allowed {
            explained.push(explanation(number + 1, request, answer, name.as_deref()));
        }
    }
    if output.json {
        output.document(&json!({"denied": explained}))?;
        return Ok(0);
    }
    for one in &explained {
        output.text(&format!(
            "{} {}: {}\n",
            one.number,
            output.paint(Tone::Bad, "denied"),
            printable(&one.kind)
        ))?;
        if one.reasons.is_empty() {
            output.text(&format!("  {}\n", printable(one.denial.as_deref().unwrap_or_default())))?;
        }
        for reason in &one.reasons {
            output.text(&describe(reason, output))?;
        }
    }
    if explained.is_empty() {
        output.text("no request is denied\n")?;
    }
    Ok(0)
}

/// The pod's name for the container that a request is about.
fn container_of(request: &Request, names: &mut BTreeMap<String, String>) -> Option<String> {
    let id = request.input.get("container_id")?.as_str()?;
    if let Some(annotations) = request.input.pointer("/OCI/Annotations") {
        let text = |key: &str| annotations.get(key).and_then(Value::as_str);
        let name = match text("io.kubernetes.cri.container-type") {
            Some("sandbox") => Some("(sandbox)"),
            _ => text("io.kubernetes.cri.container-name"),
        };
        names.extend(name.map(|name| (id.to_owned(), name.to_owned())));
    }
    names.get(id).cloned()
}

fn explanation(number: usize, request: &Request, answer: Answer, container: Option<&str>) -> Explained {
    let with = |reason: kata_cc_policy::agent::Reason| {
        let advice_for_it = advise(&reason, container);
        WithAdvice { reason, advice_for_it }
    };
    Explained {
        number,
        kind: request.kind.clone(),
        denial: answer.denial,
        reasons: answer.reasons.into_iter().map(with).collect(),
    }
}

fn describe(with: &WithAdvice, output: &Output) -> String {
    let WithAdvice { reason, advice_for_it: advice } = with;
    let mut lines = vec![
        format!("rule     {}", printable(&reason.rule)),
        format!("path     {}", printable(&reason.field)),
        format!("seen     {}", shown(&reason.value)),
    ];
    lines.extend(reason.allowed.as_ref().map(|allowed| format!("allowed  {}", shown(allowed))));
    lines.push(format!("change   {}", printable(&advice.manifest)));
    if let Some(edit) = &advice.policy {
        lines.push(format!("or       policy_data at {}: {}", printable(&edit.place), shown(&edit.value)));
    }
    if let Some(danger) = &advice.danger {
        lines.push(format!("{}  {}", output.paint(Tone::Bad, "danger "), printable(danger)));
    }
    lines.iter().map(|line| format!("  {line}\n")).collect::<String>() + "\n"
}
