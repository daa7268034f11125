//! The text of a policy: its size, its dialect, and where in it an error is.

use super::{EngineError, Limits};

/// Whether a text that is not v1 may be read as v0. Not when it uses a v1 keyword that it does not import: v0 takes
/// `allow if { ... }` for a rule `allow` without a body, which always holds, so a typing error in a v1 policy would
/// open what the policy guards.
pub(super) fn may_be_v0(text: &str) -> bool {
    let lines = || text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    let imported = |word: &str| {
        lines().any(|line| {
            line.strip_prefix("import ").map(str::trim).is_some_and(|path| {
                path == "future.keywords" || path.strip_prefix("future.keywords.") == Some(word)
            })
        })
    };
    let uses = |word: &str| {
        lines().filter(|line| !line.starts_with("import ")).any(|line| {
            line.match_indices(word).any(|(start, _)| {
                let part_of_name = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
                let before = line[..start].chars().next_back();
                let rest = &line[start + word.len()..];
                let is_word =
                    !before.is_some_and(part_of_name) && !rest.chars().next().is_some_and(part_of_name);
                // `contains(a, b)` is a function of both dialects.
                is_word && !(word == "contains" && rest.trim_start().starts_with('('))
            })
        })
    };
    ["if", "contains", "every"].iter().all(|word| imported(word) || !uses(word))
        && !lines().any(|line| line == "import rego.v1")
}

pub(crate) fn check_size(name: &str, text: &str, limits: &Limits) -> Result<(), EngineError> {
    let too_large =
        |what, seen, limit| Err(EngineError::TooLarge { name: name.to_owned(), what, seen, limit });
    if text.len() > limits.bytes {
        return too_large("bytes", text.len(), limits.bytes);
    }
    let lines = text.lines().count();
    if lines > limits.lines {
        return too_large("lines", lines, limits.lines);
    }
    let columns = text.lines().map(str::len).max().unwrap_or(0);
    if columns > limits.columns {
        return too_large("columns", columns, limits.columns);
    }
    Ok(())
}

/// Takes line, column and the last sentence out of the interpreter's picture of an error
/// (`--> file:3:7`, source line, caret, `error: ...`).
pub(super) fn locate(text: &str) -> (Option<u32>, Option<u32>, String) {
    let mut position = (None, None);
    let mut message = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        if let Some(place) = line.strip_prefix("--> ") {
            let mut parts = place.rsplitn(3, ':');
            let column = parts.next().and_then(|c| c.parse().ok());
            let row = parts.next().and_then(|l| l.parse().ok());
            position = (row, column);
        } else if let Some(rest) = line.strip_prefix("error: ") {
            message.push(rest.to_owned());
        }
    }
    let message = if message.is_empty() {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    } else {
        message.join("; ")
    };
    (position.0, position.1, message)
}
