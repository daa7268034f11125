//! Writes an annotation into the manifest of a pod where it stands, leaving comments, order and layout of the text as they are.
//!
//! Worked on is the text, by lines and their indentation; a YAML writer would lose what a person put there. Only what is usual is understood:
//! mappings in block form down to `metadata`, which itself and `annotations` may be in flow form on one line. Whatever was understood,
//! the result is read again and compared with the original: it differs in that annotation and in nothing else, or nothing is
//! written.

use serde_json::{Map, Value};
use thiserror::Error;

use crate::manifest::{ManifestError, Workload, yaml};

/// Why a text was not changed.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum AnnotateError {
    /// It is no manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its form is not one that can be changed line by line.
    #[error("{title}: the annotation cannot be written in place ({reason}); add it by hand")]
    Form {
        /// Workload.
        title: String,
        /// What is in the way.
        reason: &'static str,
    },
}

/// The text with `key: value` among the annotations of the workload's pods.
///
/// # Errors
/// When it is written in a way that cannot be changed in place.
pub fn annotate(text: &str, workload: &Workload, key: &str, value: &str) -> Result<String, AnnotateError> {
    let form = |reason| AnnotateError::Form { title: workload.title.clone(), reason };
    let before = yaml::documents(text)?;
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    if let Some(last) = lines.last_mut()
        && !last.ends_with('\n')
    {
        last.push('\n');
    }
    let pod = find_pod(&lines, workload).map_err(form)?;
    edit(&mut lines, &pod, key, value).map_err(form)?;
    let after = lines.concat();
    let mut expected = before;
    let place = expected.get_mut(workload.document).and_then(|document| descend(document, &workload.place));
    let place =
        place.and_then(Value::as_object_mut).ok_or_else(|| form("the pod is not where it was read"))?;
    set(place, key, value);
    match yaml::documents(&after) {
        Ok(read) if read == expected => Ok(after),
        _ => Err(form("the text is laid out in a way that is not understood")),
    }
}

fn descend<'a>(document: &'a mut Value, place: &[String]) -> Option<&'a mut Value> {
    place.iter().try_fold(document, |value, step| match value {
        Value::Array(items) => items.get_mut(step.parse::<usize>().ok()?),
        other => other.get_mut(step),
    })
}

fn set(pod: &mut Map<String, Value>, key: &str, value: &str) {
    let metadata = pod.entry("metadata").or_insert(Value::Null);
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    let Some(metadata) = metadata.as_object_mut() else { return };
    let annotations = metadata.entry("annotations").or_insert(Value::Null);
    if annotations.is_null() {
        *annotations = Value::Object(Map::new());
    }
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(key.to_owned(), value.into());
    }
}

/// A mapping in block form: its lines, and how far its keys are indented.
#[derive(Debug, Clone)]
struct Block {
    lines: std::ops::Range<usize>,
    indent: usize,
}

/// A key of a mapping.
struct Entry {
    line: usize,
    /// Where on the line the value begins.
    column: usize,
    /// Lines that belong to the key, with its own.
    lines: std::ops::Range<usize>,
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn is_content(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#') && !line.starts_with('%')
}

/// The lines of each document that holds anything.
fn documents(lines: &[String]) -> Vec<std::ops::Range<usize>> {
    let mut all = Vec::new();
    let mut start = 0;
    let ends = |line: &str| line.starts_with("---") || line.starts_with("...");
    for (number, line) in lines.iter().enumerate() {
        if ends(line) {
            all.push(start..number);
            start = number + 1;
        }
    }
    all.push(start..lines.len());
    all.retain(|range| lines.get(range.clone()).into_iter().flatten().any(|line| is_content(line)));
    all
}

fn find_pod(lines: &[String], workload: &Workload) -> Result<Block, &'static str> {
    let document = documents(lines).get(workload.document).cloned().ok_or("its document is not found")?;
    // a line like `--- {a: b}` holds content that is not seen here; the comparison at the end finds that
    let mut masked = lines.to_vec();
    let mut block = block_in(&masked, document, 0).ok_or("its document is not in block form")?;
    for step in &workload.place {
        let body = match step.parse::<usize>() {
            Ok(number) => item(&mut masked, &block, number).ok_or("an item of its list is not found")?,
            Err(_) => {
                let entry =
                    entry(&masked, &block, step).ok_or("a key on the way to the pod is not in block form")?;
                let rest = value_text(&masked, &entry);
                if !rest.is_empty() {
                    return Err("a mapping on the way to the pod is in flow form");
                }
                entry.line + 1..entry.lines.end
            }
        };
        block = block_in(&masked, body, 0).ok_or("a mapping on the way to the pod is empty")?;
    }
    Ok(block)
}

/// The mapping or list whose first line is the first with content.
fn block_in(lines: &[String], range: std::ops::Range<usize>, least: usize) -> Option<Block> {
    let first = range.clone().find(|number| is_content(&lines[*number]))?;
    let indent = indent_of(&lines[first]);
    (indent >= least).then_some(Block { lines: range, indent })
}

/// The text after a key's colon, without a comment.
fn value_text<'a>(lines: &'a [String], entry: &Entry) -> &'a str {
    let rest = lines[entry.line].get(entry.column..).unwrap_or_default();
    let rest = rest.split(" #").next().unwrap_or_default().trim();
    if rest.starts_with('#') { "" } else { rest }
}

fn entry(lines: &[String], block: &Block, key: &str) -> Option<Entry> {
    let mut found: Option<(usize, usize)> = None;
    for number in block.lines.clone() {
        let line = &lines[number];
        if !is_content(line) || indent_of(line) > block.indent {
            continue;
        }
        let content = line.get(block.indent..).unwrap_or_default();
        if let Some((line, column)) = found {
            // a list may stand at its key's own indentation
            if content.starts_with("- ") || content.trim_end() == "-" {
                continue;
            }
            return Some(Entry { line, column, lines: line..number });
        }
        for written in [key.to_owned(), format!("\"{key}\""), format!("'{key}'")] {
            if let Some(rest) = content.strip_prefix(&written)
                && let Some(rest) = rest.trim_start_matches(' ').strip_prefix(':')
                && (rest.starts_with([' ', '\n', '\r']) || rest.is_empty())
            {
                found = Some((number, line.len() - rest.len()));
            }
        }
    }
    found.map(|(line, column)| Entry { line, column, lines: line..block.lines.end })
}

/// The lines of an item of a list, its dash made a space.
fn item(lines: &mut [String], block: &Block, number: usize) -> Option<std::ops::Range<usize>> {
    let is_item = |line: &str| {
        is_content(line)
            && indent_of(line) == block.indent
            && line.get(block.indent..).is_some_and(|c| c.starts_with("- "))
    };
    let starts: Vec<usize> = block.lines.clone().filter(|n| is_item(&lines[*n])).collect();
    let start = *starts.get(number)?;
    let end = starts.get(number + 1).copied().unwrap_or(block.lines.end);
    lines[start].replace_range(block.indent..=block.indent, " ");
    Some(start..end)
}

/// Puts the annotation in.
fn edit(lines: &mut Vec<String>, pod: &Block, key: &str, value: &str) -> Result<(), &'static str> {
    let space = " ".repeat(pod.indent);
    let Some(metadata) = entry(lines, pod, "metadata") else {
        let spec = entry(lines, pod, "spec").ok_or("the pod has no spec in block form")?;
        if indent_of(&lines[spec.line]) != pod.indent {
            return Err("the pod begins on the line of a list item");
        }
        let new = format!("{space}metadata:\n{space}  annotations:\n{space}    {key}: {value}\n");
        lines.insert(spec.line, new);
        return Ok(());
    };
    let rest = value_text(lines, &metadata).to_owned();
    if rest.starts_with('{') {
        return in_flow_metadata(lines, &metadata, key, value);
    }
    if !rest.is_empty() {
        return Err("its metadata are neither in block nor in flow form");
    }
    let Some(block) = block_in(lines, metadata.line + 1..metadata.lines.end, pod.indent + 1) else {
        let new = format!("{space}  annotations:\n{space}    {key}: {value}\n");
        lines.insert(metadata.line + 1, new);
        return Ok(());
    };
    let space = " ".repeat(block.indent);
    let Some(annotations) = entry(lines, &block, "annotations") else {
        lines.insert(metadata.line + 1, format!("{space}annotations:\n{space}  {key}: {value}\n"));
        return Ok(());
    };
    let rest = value_text(lines, &annotations).to_owned();
    if rest.starts_with('{') {
        return in_flow(lines, annotations.line, annotations.column, key, value);
    }
    if !rest.is_empty() {
        return Err("its annotations are neither in block nor in flow form");
    }
    match block_in(lines, annotations.line + 1..annotations.lines.end, block.indent + 1) {
        None => lines.insert(annotations.line + 1, format!("{space}  {key}: {value}\n")),
        Some(inner) => match entry(lines, &inner, key) {
            None => {
                let space = " ".repeat(inner.indent);
                lines.insert(annotations.line + 1, format!("{space}{key}: {value}\n"));
            }
            Some(old) => {
                // comments and empty lines after it are the next one's
                let last = old.lines.clone().rev().find(|n| is_content(&lines[*n])).unwrap_or(old.line);
                let space = " ".repeat(inner.indent);
                lines.splice(old.line..=last, [format!("{space}{key}: {value}\n")]);
            }
        },
    }
    Ok(())
}

/// `metadata: {…}` on one line.
fn in_flow_metadata(
    lines: &mut [String],
    metadata: &Entry,
    key: &str,
    value: &str,
) -> Result<(), &'static str> {
    let line = lines.get_mut(metadata.line).ok_or("its metadata are not found")?;
    let open =
        line.get(metadata.column..).and_then(|rest| rest.find('{')).ok_or("its metadata are not found")?;
    let at = metadata.column + open + 1;
    let rest = line.get(at..).unwrap_or_default();
    if let Some(inside) = rest.find("annotations:") {
        let column = at + inside + "annotations:".len();
        return in_flow(lines, metadata.line, column, key, value);
    }
    let comma = if rest.trim_start().starts_with('}') { "" } else { ", " };
    line.insert_str(at, &format!("annotations: {{{key}: \"{value}\"}}{comma}"));
    Ok(())
}

/// `annotations: {…}` on one line.
fn in_flow(
    lines: &mut [String],
    line: usize,
    column: usize,
    key: &str,
    value: &str,
) -> Result<(), &'static str> {
    let line = lines.get_mut(line).ok_or("its annotations are not found")?;
    let open =
        line.get(column..).and_then(|rest| rest.find('{')).ok_or("its annotations are not in flow form")?;
    let at = column + open + 1;
    let rest = line.get(at..).unwrap_or_default().to_owned();
    if let Some(found) = rest.find(key) {
        let after = rest.get(found..).unwrap_or_default();
        let colon = after.find(": ").ok_or("an annotation in flow form is not understood")?;
        let end = after
            .get(colon..)
            .and_then(|v| v.find([',', '}']))
            .ok_or("its annotations go over several lines")?;
        line.replace_range(at + found + colon + 2..at + found + colon + end, &format!("\"{value}\""));
        return Ok(());
    }
    let comma = if rest.trim_start().starts_with('}') { "" } else { ", " };
    line.insert_str(at, &format!("{key}: \"{value}\"{comma}"));
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    const KEY: &str = "io.katacontainers.config.hypervisor.cc_init_data";

    fn written(text: &str, number: usize) -> Result<String, AnnotateError> {
        let manifest = Manifest::read(text).unwrap();
        annotate(text, &manifest.workloads[number], KEY, "H4sI+/AA==")
    }

    /// What was put in.
    fn added(before: &str, number: usize) -> Vec<String> {
        let after = written(before, number).unwrap();
        let again = Manifest::read(&after).unwrap();
        assert_eq!(again.workloads[number].annotations[KEY], "H4sI+/AA==", "{after}");
        let twice = annotate(&after, &again.workloads[number], KEY, "H4sI+/AA==").unwrap();
        assert_eq!(twice, after, "writing it again changes nothing");
        let old: Vec<&str> = before.lines().collect();
        after.lines().filter(|line| !old.contains(line)).map(str::to_owned).collect()
    }

    #[test]
    fn comments_and_layout_stay() {
        let text = "# head\nkind: Deployment\nmetadata:\n  name: web   # its name\n  annotations:\n    a: b\nspec:\n\n    template:\n      \
                    metadata:\n        # of the pods\n        labels: {app: web}\n      spec:\n        containers:\n        - name: a\n          image: x\n";
        assert_eq!(added(text, 0), ["        annotations:", &format!("          {KEY}: H4sI+/AA==")]);
        let text = "kind: Pod\nmetadata:\n  name: p\n  annotations:\n    # first\n    z: \"1\"\nspec: {containers: [{name: a, image: x}]}";
        assert_eq!(added(text, 0), [format!("    {KEY}: H4sI+/AA==")]);
        let text = format!(
            "kind: Pod\nmetadata:\n  annotations:\n    {KEY}: >-\n      abc\n      def\n    # next\n    z: y\n  name: p\nspec: {{containers: [{{name: a, image: x}}]}}\n"
        );
        let after = written(&text, 0).unwrap();
        assert!(after.contains(&format!("{KEY}: H4sI+/AA==\n    # next\n    z: y\n")), "{after}");
    }

    #[test]
    fn flow_form_and_lists_are_understood_where_they_are_usual() {
        let spec = "spec: {containers: [{name: a, image: x}]}";
        for text in [
            format!("kind: Pod\nmetadata: {{name: p}}\n{spec}\n"),
            format!("kind: Pod\nmetadata: {{name: p, annotations: {{}}}}\n{spec}\n"),
            format!("kind: Pod\nmetadata: {{annotations: {{a: b}}, name: p}}\n{spec}\n"),
            format!("kind: Pod\nmetadata:\n  name: p\n  annotations: {{}} # none\n{spec}\n"),
            format!("kind: Pod\nmetadata:\n  name: p\n  annotations:\n{spec}\n"),
            format!("kind: Job\nmetadata: {{name: j}}\nspec:\n  template:\n    {spec}\n"),
            format!("---\n# nothing\n---\nkind: Service\n---\nkind: Pod\nmetadata:\n  name: p\n{spec}\n"),
        ] {
            added(&text, 0);
        }
        let list = format!(
            "kind: List\nitems:\n- kind: Service\n  metadata: {{name: s}}\n- kind: Pod\n  metadata:\n    name: p\n  {spec}\n- metadata: {{name: q}}\n  kind: Pod\n  {spec}\n"
        );
        assert_eq!(added(&list, 0).len(), 2);
        added(&list, 1);
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        for text in [
            "{kind: Pod, metadata: {name: p}, spec: {containers: [{name: a, image: x}]}}\n",
            "kind: Job\nmetadata: {name: j}\nspec: {template: {spec: {containers: [{name: a, image: x}]}}}\n",
            "kind: Pod\nmetadata: {name: p,\n  labels: {}}\nspec: &s\n  containers: [{name: a, image: x}]\nx: *s\n",
        ] {
            let refused = written(text, 0);
            assert!(refused.is_err() || Manifest::read(&refused.unwrap()).is_ok(), "{text}");
        }
        assert!(
            written("{kind: Pod, metadata: {name: p}, spec: {containers: [{name: a, image: x}]}}\n", 0)
                .is_err()
        );
    }
}
