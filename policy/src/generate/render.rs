//! The policy's text, and the document out of a text.

use std::fmt::Write as _;

use super::model::{ContainerData, PolicyData};

/// The rules, by subject; each file goes into every policy.
const RULES: [&str; 5] = [
    include_str!("rules/requests.rego"),
    include_str!("rules/containers.rego"),
    include_str!("rules/processes.rego"),
    include_str!("rules/mounts.rego"),
    include_str!("rules/others.rego"),
];

/// The rules of every policy.
#[must_use]
pub fn rules() -> String {
    RULES.join("\n")
}

/// What stands between the summary and the document.
const HEAD: &str = "package agent_policy\n\nimport rego.v1\n\npolicy_data := ";

/// The text of a policy.
#[must_use]
pub fn render(data: &PolicyData) -> String {
    let document = serde_json::to_string_pretty(data).unwrap_or_default();
    format!("{}{HEAD}{document}\n\n{}", summary(data), rules())
}

/// Whether a policy's text is made of comments, a document of the form that the rules read, and exactly the rules of this version.
#[must_use]
pub fn is_generated(text: &str) -> bool {
    let Some((document, place)) = crate::constants::document(text, "policy_data") else { return false };
    let (Some(before), Some(after)) = (text.get(..place.start), text.get(place.end..)) else { return false };
    let Some(comments) = before.strip_suffix(HEAD) else { return false };
    let has_form = || {
        let data = serde_json::from_value::<PolicyData>(document.clone()).ok();
        data.and_then(|data| serde_json::to_value(data).ok()) == Some(document.clone())
    };
    comments.lines().all(|line| line.starts_with('#') && !line.contains(char::is_control))
        && after.strip_prefix("\n\n") == Some(rules().as_str())
        && has_form()
}

/// Names of the requests that the rules know.
pub fn requests() -> impl Iterator<Item = &'static str> {
    let lines = RULES.iter().flat_map(|text| text.lines());
    lines.filter_map(|line| line.strip_prefix("default ")?.split(' ').next())
}

/// The document of a policy's text, when it is one that was generated here.
#[must_use]
pub fn data_of(text: &str) -> Option<PolicyData> {
    let (document, _) = crate::constants::document(text, "policy_data")?;
    serde_json::from_value(document).ok()
}

/// Words of a manifest in a comment: quoted, so that no line ends where its writer wants.
fn quoted(words: &[String]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" ")
}

/// What the policy allows, in comments.
fn summary(data: &PolicyData) -> String {
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "# {words}");
    };
    line(format_args!(
        "Agent policy of {:?}, made by kata-cc from its manifest (rules {}).",
        data.pod.workload, data.version
    ));
    line(format_args!(
        "Change the manifest and make it anew, or change policy_data below and review it with `kata-cc policy lint`."
    ));
    line(format_args!(""));
    for (name, container) in &data.containers {
        for words in describe(name, container) {
            line(format_args!("{words}"));
        }
    }
    let open = &data.open;
    let opened: Vec<&str> = [
        ("exec", open.exec),
        ("logs", open.logs),
        ("stdin", open.stdin),
        ("copy", open.copy),
        ("metrics", open.metrics),
        ("pause", open.pause),
    ]
    .into_iter()
    .filter_map(|(name, open)| open.then_some(name))
    .collect();
    let opened = if opened.is_empty() { "nothing".to_owned() } else { opened.join(", ") };
    line(format_args!("open besides: {opened}"));
    text
}

fn describe(name: &str, container: &ContainerData) -> Vec<String> {
    let mut lines = vec![format!("{} {name:?}", container.kind)];
    let mut row = |what: &str, words: String| lines.push(format!("  {what:<8} {words}"));
    row("image", container.image.digests.join(" "));
    row("runs", quoted(&container.args));
    let user = |id: Option<u32>| id.map_or_else(|| "of the image".to_owned(), |id| id.to_string());
    row("as", format!("user {}, group {}", user(container.user.uid), user(container.user.gid)));
    let later: Vec<&str> = container.env_at_run_time.keys().map(String::as_str).collect();
    row("with", format!("{} variables, and from the running pod: {:?}", container.env.len(), later));
    for (path, mount) in &container.mounts {
        let only = if mount.read_only { ", read-only" } else { "" };
        row("mounts", format!("{path:?} {} ({:?}){only}", mount.kind, mount.from));
    }
    for command in &container.exec {
        row("lets in", format!("{} ({})", quoted(&command.args), command.purpose));
    }
    if container.privileged {
        row("!", "privileged: all rights of the guest".to_owned());
    }
    lines.push(String::new());
    lines
}
