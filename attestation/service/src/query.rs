//! Queries of our own paths, read strictly: the key broker's too.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use axum::extract::Query;
use axum::http::Uri;
use thiserror::Error;

/// A query that is not understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("parameter {name}: {why}")]
pub struct QueryError {
    /// Parameter, or `query` for the query as a whole.
    pub name: &'static str,
    /// What is wrong with it.
    pub why: String,
}

/// The query of a request; a parameter that is there twice is refused.
///
/// # Errors
/// What is not understood.
pub fn read(uri: &Uri) -> Result<BTreeMap<String, String>, QueryError> {
    let refuse = |why: String| QueryError { name: "query", why };
    let Query(pairs) =
        Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|e| refuse(e.body_text()))?;
    let mut query = BTreeMap::new();
    for (name, value) in pairs {
        let name: String = name.chars().take(64).collect();
        if query.insert(name.clone(), value).is_some() {
            return Err(refuse(format!("{name:?} is there twice")));
        }
    }
    Ok(query)
}

/// A number of a query.
///
/// # Errors
/// When it is none of `range`.
pub fn number(
    query: &BTreeMap<String, String>,
    name: &'static str,
    range: RangeInclusive<u64>,
) -> Result<Option<u64>, QueryError> {
    let Some(text) = query.get(name) else { return Ok(None) };
    match text.parse::<u64>() {
        Ok(number) if range.contains(&number) => Ok(Some(number)),
        _ => {
            let seen: String = text.chars().take(32).collect();
            let why = format!("{seen:?} is no number from {} to {}", range.start(), range.end());
            Err(QueryError { name, why })
        }
    }
}

/// Refuses parameters that our own paths do not know.
///
/// # Errors
/// When there is one.
pub fn only(query: &BTreeMap<String, String>, known: &[&str]) -> Result<(), QueryError> {
    match query.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let why = format!("parameter {name:?} is not known here, known are: {}", known.join(", "));
            Err(QueryError { name: "query", why })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_strictly() {
        let query = |text: &str| read(&text.parse().unwrap());
        let good = query("/x?version=3&a=b%20c").unwrap();
        assert_eq!(good["a"], "b c");
        assert_eq!(number(&good, "version", 1..=9).unwrap(), Some(3));
        assert_eq!(number(&good, "limit", 1..=9).unwrap(), None);
        assert!(number(&good, "version", 4..=9).unwrap_err().to_string().contains("no number from 4 to 9"));
        assert!(number(&query("/x?version=-1").unwrap(), "version", 0..=9).is_err());
        assert!(query("/x?a=1&a=2").unwrap_err().to_string().contains("twice"));
        assert!(only(&good, &["version", "a"]).is_ok());
        assert!(only(&good, &["version"]).unwrap_err().to_string().contains("\"a\" is not known here"));
        assert!(query("/x").unwrap().is_empty());
    }
}
