//! Where a resource is: `kbs:///repository/type/tag`, and the same as a path of the HTTP API.
//!
//! Each segment matches `[a-zA-Z0-9_-][a-zA-Z0-9_.-]*` (Trustee), is at most [`MAX_SEGMENT`] bytes, and so can be
//! neither `.` nor `..` nor hold a slash. URIs: `kbs[+plugin]://[host[:port]]/a/b/c[?query]`; only the plugin
//! `resource` (said by plain `kbs`) is understood here.

use std::str::FromStr;

use thiserror::Error;

/// Most bytes of one segment of a path.
pub const MAX_SEGMENT: usize = 255;
/// Most bytes of a URI.
pub const MAX_URI: usize = 1024;

/// Why a resource path or URI was refused.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ResourceError {
    /// The text is not three segments.
    #[error("resource path has {0} segments, exactly 3 are needed: repository/type/tag")]
    Segments(usize),
    /// A segment is empty, too long or has a character that is not allowed.
    #[error(
        "{which} in a resource path must be 1 to {MAX_SEGMENT} of [a-zA-Z0-9_.-] and not start with a dot, seen {seen:?}"
    )]
    Segment {
        /// `repository`, `type` or `tag`.
        which: &'static str,
        /// What was there, cut.
        seen: String,
    },
    /// The text is not a `kbs` URI.
    #[error("not a resource URI, expected kbs:///repository/type/tag, seen {0:?}")]
    NotAUri(String),
    /// The URI names a plugin that is not `resource`.
    #[error("resource URI names the plugin {0:?}, only resource is known")]
    Plugin(String),
    /// The URI is longer than [`MAX_URI`].
    #[error("resource URI has {0} bytes, at most {MAX_URI} are read")]
    TooLong(usize),
}

/// `repository/type/tag`, checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourcePath {
    repository: String,
    kind: String,
    tag: String,
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

fn segment(which: &'static str, text: &str) -> Result<String, ResourceError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let fine =
        !text.is_empty() && text.len() <= MAX_SEGMENT && !text.starts_with('.') && text.bytes().all(allowed);
    if fine { Ok(text.to_owned()) } else { Err(ResourceError::Segment { which, seen: cut(text) }) }
}

impl ResourcePath {
    /// Checks the three segments.
    pub fn new(repository: &str, kind: &str, tag: &str) -> Result<Self, ResourceError> {
        Ok(Self {
            repository: segment("repository", repository)?,
            kind: segment("type", kind)?,
            tag: segment("tag", tag)?,
        })
    }

    /// First segment.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Second segment.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Third segment.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The three, as policies see them.
    pub fn segments(&self) -> [&str; 3] {
        [&self.repository, &self.kind, &self.tag]
    }

    /// `kbs:///repository/type/tag`.
    pub fn uri(&self) -> String {
        format!("kbs:///{self}")
    }
}

impl std::fmt::Display for ResourcePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.repository, self.kind, self.tag)
    }
}

impl FromStr for ResourcePath {
    type Err = ResourceError;

    /// Reads `repository/type/tag` or the same with `kbs:///` in front.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("kbs:") || text.starts_with("kbs+") {
            return text.parse::<ResourceUri>().map(|uri| uri.path);
        }
        if text.len() > MAX_URI {
            return Err(ResourceError::TooLong(text.len()));
        }
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [repository, kind, tag] => Self::new(repository, kind, tag),
            other => Err(ResourceError::Segments(other.len())),
        }
    }
}

/// A resource URI.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ResourceUri {
    /// `host[:port]` of another key broker; usually empty, which means the configured one.
    pub host: Option<String>,
    /// Which resource.
    pub path: ResourcePath,
    /// What follows a `?`, verbatim.
    pub query: Option<String>,
}

impl FromStr for ResourceUri {
    type Err = ResourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_URI {
            return Err(ResourceError::TooLong(text.len()));
        }
        let not_a_uri = || ResourceError::NotAUri(cut(text));
        let (scheme, rest) = text.split_once("://").ok_or_else(not_a_uri)?;
        match scheme.split_once('+') {
            None if scheme == "kbs" => {}
            Some(("kbs", "resource")) => {}
            Some(("kbs", plugin)) => return Err(ResourceError::Plugin(cut(plugin))),
            _ => return Err(not_a_uri()),
        }
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query.to_owned())),
            None => (rest, None),
        };
        let (host, path) = rest.split_once('/').ok_or_else(not_a_uri)?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
        if !host.bytes().all(allowed) {
            return Err(not_a_uri());
        }
        let parts: Vec<&str> = path.split('/').collect();
        let path = match parts.as_slice() {
            [repository, kind, tag] => ResourcePath::new(repository, kind, tag)?,
            other => return Err(ResourceError::Segments(other.len())),
        };
        let host = (!host.is_empty()).then(|| host.to_owned());
        Ok(Self { host, path, query })
    }
}

impl std::fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "kbs://{}/{}", self.host.as_deref().unwrap_or(""), self.path)?;
        match &self.query {
            Some(query) => write!(f, "?{query}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_documented_forms() {
        for text in ["kbs:///default/key/1", "kbs+resource:///default/key/1", "default/key/1"] {
            assert_eq!(text.parse::<ResourcePath>().unwrap().to_string(), "default/key/1");
        }
        let uri: ResourceUri = "kbs://kbs.example:8443/a/b_c/d.e-f?x=1".parse().unwrap();
        assert_eq!(uri.host.as_deref(), Some("kbs.example:8443"));
        assert_eq!(uri.query.as_deref(), Some("x=1"));
        assert_eq!(uri.to_string(), "kbs://kbs.example:8443/a/b_c/d.e-f?x=1");
    }

    #[test]
    fn refuses_what_is_not_a_path() {
        for text in [
            "",
            "/",
            "a/b",
            "a/b/c/d",
            "/a/b/c",
            "a//c",
            "a/../c",
            "a/b/.c",
            "a/b/c d",
            "a/b/c%2f",
            "kbs://a/b/c",
            "kbs+pkcs11:///a/b/c",
            "http:///a/b/c",
            "kbs://h@x/a/b/c",
            "a/b/\u{e9}",
            "kbs:/a/b/c",
        ] {
            assert!(text.parse::<ResourcePath>().is_err(), "{text}");
        }
        assert!(format!("a/b/{}", "x".repeat(256)).parse::<ResourcePath>().is_err());
        assert!(format!("kbs:///a/b/c?{}", "x".repeat(2000)).parse::<ResourceUri>().is_err());
    }

    proptest! {
        #[test]
        fn never_panics_and_what_parses_prints_back(text in ".{0,80}") {
            if let Ok(path) = text.parse::<ResourcePath>() {
                prop_assert_eq!(path.uri().parse::<ResourcePath>().unwrap(), path);
            }
        }

        #[test]
        fn every_valid_path_round_trips(text in "[a-z0-9_-][a-z0-9_.-]{0,8}/[A-Z_-][a-z.]{0,8}/[a-z0-9][a-z0-9_.-]{0,8}") {
            let path: ResourcePath = text.parse().unwrap();
            prop_assert_eq!(path.to_string(), text);
        }
    }
}
