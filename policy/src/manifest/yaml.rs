//! YAML text to JSON values, with limits: a manifest may come from anybody, and a few lines of aliases can stand for gigabytes.

use serde_json::Value;

use super::error::ManifestError;

/// Largest text, in bytes. (Charts with all their CRDs stay below.)
pub const MAX_BYTES: usize = 8 << 20;
/// Most documents of a text.
pub const MAX_DOCUMENTS: usize = 1024;
/// Deepest nesting. A pod's own fields need 14 levels, a List of CronJobs 20.
pub const MAX_DEPTH: usize = 64;
/// Most scalars, sequences and mappings, with what aliases repeat.
const MAX_NODES: usize = 400_000;
/// Most aliases.
const MAX_ALIASES: usize = 1_000;

/// All documents of a text, without empty ones.
///
/// # Errors
/// See [`ManifestError`]; never panics, whatever the text.
pub fn documents(text: &str) -> Result<Vec<Value>, ManifestError> {
    if text.len() > MAX_BYTES {
        return Err(ManifestError::TooLarge(text.len()));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: MAX_DOCUMENTS,
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: MAX_NODES * 3,
            max_aliases: MAX_ALIASES,
            max_total_scalar_bytes: MAX_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_NODES,
        },
        // `namespace: n` is a name; fields of truth values take YAML 1.1's words as Kubernetes does
        strict_booleans: true,
        with_snippet: false,
    };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| ManifestError::Yaml(one_line(&error.to_string())))?;
    if documents.len() > MAX_DOCUMENTS {
        return Err(ManifestError::TooMany(documents.len()));
    }
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// The first 300 characters of a message, on one line.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn documents_are_read_and_empty_ones_left_out() {
        let read = documents("# a comment\n---\na: 1\n---\n---\nb: [x, 'y']\n...\n").unwrap();
        assert_eq!(read, [serde_json::json!({"a": 1}), serde_json::json!({"b": ["x", "y"]})]);
        assert!(documents("").unwrap().is_empty());
        assert_eq!(documents("{\"a\": true}").unwrap(), [serde_json::json!({"a": true})]);
    }

    #[test]
    fn bombs_are_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert!(matches!(documents(&bomb), Err(ManifestError::Yaml(_))));
        let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(matches!(documents(&deep), Err(ManifestError::Yaml(_))));
        let blocks: String = (0..2_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        assert!(matches!(documents(&blocks), Err(ManifestError::Yaml(_))));
        assert!(documents(&"---\na: 1\n".repeat(MAX_DOCUMENTS + 1)).is_err());
        assert_eq!(documents(&" ".repeat(MAX_BYTES + 1)), Err(ManifestError::TooLarge(MAX_BYTES + 1)));
        assert!(matches!(documents("a: 1\na: 2\n"), Err(ManifestError::Yaml(_))), "a key twice");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[\\PC\\n\\t :{}\\[\\]&*!|>'\"%@`#-]{0,300}") {
            let _ = documents(&text);
        }
    }
}
