//! A request to a plugin: method, path, query and body, checked before anything else looks at them.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::Query;
use axum::http::{Method, Uri};
use kata_cc_kbs_protocol::resource::MAX_SEGMENT;

use super::PluginError;

/// Most segments of a path after the plugin's name.
const MAX_SEGMENTS: usize = 16;
/// Most members of a query.
const MAX_QUERY: usize = 32;
/// Most bytes of a query. A certificate signing request or a wrapped key may be in it.
const MAX_QUERY_BYTES: usize = 32 << 10;

/// A request, as plugins and the resource policy see it.
#[derive(Debug, Clone)]
pub(crate) struct PluginRequest {
    /// Method.
    pub(crate) method: Method,
    /// Segments after the plugin's name, at least one. Each as a segment of a resource path: `[a-zA-Z0-9_-][a-zA-Z0-9_.-]*`.
    pub(crate) path: Vec<String>,
    /// Query, each name once.
    pub(crate) query: BTreeMap<String, String>,
    /// Body.
    pub(crate) body: Bytes,
}

impl PluginRequest {
    /// Checks path (what follows the plugin's name) and query.
    pub(crate) fn new(method: Method, path: &str, uri: &Uri, body: Bytes) -> Result<Self, PluginError> {
        let path = segments(path)?;
        let query = query(uri)?;
        Ok(Self { method, path, query, body })
    }

    /// The segments, to match on.
    pub(crate) fn segments(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }

    /// The path as one text.
    pub(crate) fn joined(&self) -> String {
        self.path.join("/")
    }

    /// Refuses members of the query that are not among `known`, so that a misspelt one is not passed over.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), PluginError> {
        match self.query.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => Err(PluginError::BadRequest(format!(
                "query member {:?} is not known here, known are: {}",
                cut(name),
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ))),
        }
    }
}

/// The first characters of what a caller sent, for an error.
pub(crate) fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

fn segments(path: &str) -> Result<Vec<String>, PluginError> {
    let parts: Vec<&str> = path.split('/').collect();
    if parts.len() > MAX_SEGMENTS {
        return Err(PluginError::Path(format!("{} segments, at most {MAX_SEGMENTS} go", parts.len())));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    for part in &parts {
        let fine = !part.is_empty()
            && part.len() <= MAX_SEGMENT
            && !part.starts_with('.')
            && part.bytes().all(allowed);
        if !fine {
            return Err(PluginError::Path(format!(
                "a segment must be 1 to {MAX_SEGMENT} of [a-zA-Z0-9_.-] and not start with a dot, seen {:?}",
                cut(part)
            )));
        }
    }
    Ok(parts.into_iter().map(str::to_owned).collect())
}

fn query(uri: &Uri) -> Result<BTreeMap<String, String>, PluginError> {
    let length = uri.query().unwrap_or("").len();
    if length > MAX_QUERY_BYTES {
        let why = format!("the query has {length} bytes, at most {MAX_QUERY_BYTES} go");
        return Err(PluginError::BadRequest(why));
    }
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|e| PluginError::BadRequest(format!("the query is not understood: {e}")))?;
    if pairs.len() > MAX_QUERY {
        let why = format!("the query has {} members, at most {MAX_QUERY} go", pairs.len());
        return Err(PluginError::BadRequest(why));
    }
    let mut query = BTreeMap::new();
    for (name, value) in pairs.0 {
        if query.contains_key(&name) {
            // Policy and plugin must not see different ones.
            return Err(PluginError::BadRequest(format!("query member {:?} is there twice", cut(&name))));
        }
        query.insert(name, value);
    }
    Ok(query)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A request without a body, from the text after the plugin's name.
    pub(crate) fn request(method: Method, target: &str, body: &[u8]) -> PluginRequest {
        let uri: Uri = format!("/kbs/v0/x/{target}").parse().unwrap();
        let path = uri.path().strip_prefix("/kbs/v0/x/").unwrap().to_owned();
        PluginRequest::new(method, &path, &uri, Bytes::copy_from_slice(body)).unwrap()
    }

    #[test]
    fn reads_path_and_query() {
        let request = request(Method::GET, "a/b-c/d.e_f?x=1&y=a%20b", b"z");
        assert_eq!(request.segments(), ["a", "b-c", "d.e_f"]);
        assert_eq!((request.query["x"].as_str(), request.query["y"].as_str()), ("1", "a b"));
        request.only(&["x", "y"]).unwrap();
        let error = request.only(&["x"]).unwrap_err().to_string();
        assert!(error.contains("\"y\" is not known here"), "{error}");
    }

    #[test]
    fn refuses_what_could_be_read_in_two_ways() {
        let uri: Uri = "/kbs/v0/x/a?x=1&x=2".parse().unwrap();
        let error = PluginRequest::new(Method::GET, "a", &uri, Bytes::new()).unwrap_err();
        assert!(error.to_string().contains("there twice"), "{error}");
        let none = Uri::from_static("/");
        for path in ["", "a//b", "a/", "/a", "../a", "a/.b", "a%2fb", "a b", "é", "a/\0"] {
            let error = PluginRequest::new(Method::GET, path, &none, Bytes::new()).unwrap_err();
            assert!(matches!(error, PluginError::Path(_)), "{path}: {error}");
        }
        let deep = "a/".repeat(16) + "a";
        assert!(PluginRequest::new(Method::GET, &deep, &none, Bytes::new()).is_err());
        let long: Uri = format!("/?x={}", "y".repeat(MAX_QUERY_BYTES)).parse().unwrap();
        assert!(PluginRequest::new(Method::GET, "a", &long, Bytes::new()).is_err());
        let many: Uri =
            format!("/?{}", (0..33).map(|i| format!("x{i}=1&")).collect::<String>()).parse().unwrap();
        assert!(PluginRequest::new(Method::GET, "a", &many, Bytes::new()).is_err());
    }
}
