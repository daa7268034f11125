//! Texts of which parts are known when the policy is made and parts only when the pod runs, and `$(NAME)` in them.
//!
//! Expansion is Kubernetes' (`third_party/forked/golang/expansion`): `$(NAME)` is replaced where NAME is known and stays as it is
//! otherwise, `$$` is one `$`, anything else after `$` stays.

use std::collections::BTreeMap;

use super::model::Matcher;

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Known.
    Text(String),
    /// Known when the pod runs.
    Later(Matcher),
}

/// A text of pieces; no two texts follow each other, and none is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Text(Vec<Piece>);

impl Text {
    /// All known.
    pub(super) fn known(text: impl Into<String>) -> Self {
        let mut all = Self::default();
        all.push_text(&text.into());
        all
    }

    /// Known later.
    pub(super) fn later(matcher: Matcher) -> Self {
        match matcher.exactly {
            Some(value) => Self::known(value),
            None => Self(vec![Piece::Later(matcher)]),
        }
    }

    fn push_text(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Text(last)) => last.push_str(text),
            _ => self.0.push(Piece::Text(text.to_owned())),
        }
    }

    fn push(&mut self, other: &Self) {
        for piece in &other.0 {
            match piece {
                Piece::Text(text) => self.push_text(text),
                later => self.0.push(later.clone()),
            }
        }
    }

    /// The text, when all of it is known.
    pub(super) fn as_known(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// What values are right.
    pub(super) fn matcher(&self) -> Matcher {
        match self.0.as_slice() {
            [] => Matcher::exactly(""),
            [Piece::Text(text)] => Matcher::exactly(text),
            [Piece::Later(matcher)] => matcher.clone(),
            [Piece::Text(begin), Piece::Later(Matcher { begins: None, is: Some(is), from, .. })]
                if is != "any" =>
            {
                Matcher { begins: Some(begin.clone()), ..Matcher::of(is, from.clone()) }
            }
            pieces if pieces.iter().any(|piece| matches!(piece, Piece::Later(m) if m.is_any())) => {
                Matcher::of("any", self.sources())
            }
            pieces => {
                let middle: String = pieces.iter().map(expression).collect();
                Matcher { matches: Some(format!("^{middle}$")), from: self.sources(), ..Matcher::default() }
            }
        }
    }

    /// Where the pieces come from that are known later.
    fn sources(&self) -> String {
        let later = self.0.iter().filter_map(|piece| match piece {
            Piece::Later(matcher) => Some(matcher.from.as_str()),
            Piece::Text(_) => None,
        });
        later.collect::<Vec<_>>().join(", ")
    }
}

/// A piece as a regular expression.
fn expression(piece: &Piece) -> String {
    let matcher = match piece {
        Piece::Text(text) => return escape(text),
        Piece::Later(matcher) => matcher,
    };
    if let Some(matches) = &matcher.matches {
        return matches.trim_start_matches('^').trim_end_matches('$').to_owned();
    }
    let characters = match matcher.is.as_deref() {
        Some("ip") => "[0-9A-Fa-f:.,]{0,253}",
        Some("number") => "[0-9]{0,253}",
        Some("name") => "[a-z0-9.-]{0,253}",
        Some("id") => "[0-9A-Fa-f-]{0,253}",
        Some("word") => "[A-Za-z0-9+_.-]{0,253}",
        _ => "",
    };
    format!("{}{characters}", escape(matcher.begins.as_deref().unwrap_or_default()))
}

fn escape(text: &str) -> String {
    let special = |c: char| {
        matches!(c, '.' | '+' | '*' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '^' | '$' | '\\')
    };
    let each = |c: char| if special(c) { format!("\\{c}") } else { c.to_string() };
    text.chars().map(each).collect()
}

/// Replaces `$(NAME)` by the values of `known`.
pub(super) fn expand(text: &str, known: &BTreeMap<String, Text>) -> Text {
    let mut out = Text::default();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_text(before);
        rest = if let Some(after) = after.strip_prefix('$') {
            out.push_text("$");
            after
        } else if let Some((name, after)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            match known.get(name) {
                Some(value) => out.push(value),
                None => out.push_text(&format!("$({name})")),
            }
            after
        } else {
            out.push_text("$");
            after
        };
    }
    out.push_text(rest);
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn names_are_expanded_as_kubernetes_does() {
        let known = BTreeMap::from([
            ("A".to_owned(), Text::known("1")),
            ("B".to_owned(), Text::known("$(A)")),
            ("IP".to_owned(), Text::later(Matcher::of("ip", "status.podIP"))),
        ]);
        for (text, expanded) in [
            ("$(A)-$(A)", "1-1"),
            ("$$(A)", "$(A)"),
            ("$(C) $(", "$(C) $("),
            ("$A $", "$A $"),
            ("$(B)", "$(A)"),
            ("$$$(A)", "$1"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &known).as_known(), Some(expanded), "{text}");
        }
        let mixed = expand("http://$(IP):80/", &known);
        assert_eq!(mixed.as_known(), None);
        assert_eq!(mixed.matcher().matches.unwrap(), r"^http://[0-9A-Fa-f:.,]{0,253}:80/$");
        let begun = expand("ip=$(IP)", &known).matcher();
        assert_eq!((begun.begins.as_deref(), begun.is.as_deref()), (Some("ip="), Some("ip")));
    }
}
