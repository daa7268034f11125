//! Which names a guest may have: templates of the configuration, filled from its claims.
//!
//! `dns:{/submods/cpu0/.../init_data_claims/name}.pods.example`: what stands in braces is a JSON pointer (RFC 6901) into the claims.
//! A template whose claim is not there gives no name. A claim can put no dot into a DNS name and no slash into a URI, unless it
//! is the whole of the name.

use std::net::IpAddr;

use serde_json::Value;
use thiserror::Error;

use super::csr::SanName;

/// Most bytes of a name.
const MAX_NAME: usize = 253;
/// Most bytes of a URI.
const MAX_URI: usize = 1024;

/// Why there is no name.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum SanError {
    /// A template that means nothing.
    #[error(
        "san template {0:?}: expected dns:, uri: or ip: and JSON pointers in braces, e.g. dns:{{/a/b}}.example"
    )]
    Template(String),
    /// A claim that makes no name.
    #[error("the claim {pointer} is {seen:?}, which cannot be in a {kind} name")]
    Claim {
        /// Which claim.
        pointer: String,
        /// What it is, cut.
        seen: String,
        /// `dns`, `uri` or `ip`.
        kind: &'static str,
    },
    /// A name that is none.
    #[error("{0:?} is no name of its kind")]
    Name(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dns,
    Uri,
    Ip,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Uri => "uri",
            Self::Ip => "ip",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Pointer(String),
}

/// A template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    kind: Kind,
    parts: Vec<Part>,
}

impl Template {
    /// Reads a template.
    pub(crate) fn parse(text: &str) -> Result<Self, SanError> {
        let bad = || SanError::Template(text.chars().take(200).collect());
        let (kind, mut rest) = match text.split_once(':') {
            Some(("dns", rest)) => (Kind::Dns, rest),
            Some(("uri", rest)) => (Kind::Uri, rest),
            Some(("ip", rest)) => (Kind::Ip, rest),
            _ => return Err(bad()),
        };
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let (before, after) = rest.split_once('{').unwrap_or((rest, ""));
            if before.contains('}') {
                return Err(bad());
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            if before.len() == rest.len() {
                break;
            }
            let (pointer, after) = after.split_once('}').ok_or_else(bad)?;
            if !pointer.starts_with('/') {
                return Err(bad());
            }
            parts.push(Part::Pointer(pointer.to_owned()));
            rest = after;
        }
        let template = Self { kind, parts };
        // A template without claims must be a name as it stands.
        if template.parts.is_empty() {
            return Err(bad());
        }
        if !template.parts.iter().any(|part| matches!(part, Part::Pointer(_))) {
            template.render(&Value::Null)?;
        }
        Ok(template)
    }

    /// The name for these claims; `None` when one of them is not there.
    pub(crate) fn render(&self, claims: &Value) -> Result<Option<SanName>, SanError> {
        let whole = self.parts.len() == 1;
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Pointer(pointer) => {
                    let value = match claims.pointer(pointer) {
                        None | Some(Value::Null) => return Ok(None),
                        Some(Value::String(value)) => value.clone(),
                        Some(Value::Number(value)) => value.to_string(),
                        Some(other) => return Err(self.refuse(pointer, &other.to_string())),
                    };
                    if !whole && !self.is_part(&value) {
                        return Err(self.refuse(pointer, &value));
                    }
                    text.push_str(&value);
                }
            }
        }
        name(self.kind, &text).map(Some).ok_or_else(|| SanError::Name(text.chars().take(200).collect()))
    }

    fn refuse(&self, pointer: &str, seen: &str) -> SanError {
        let seen = seen.chars().take(64).collect();
        SanError::Claim { pointer: pointer.to_owned(), seen, kind: self.kind.name() }
    }

    /// Whether a claim may be a part of a name, next to text of the template.
    fn is_part(&self, value: &str) -> bool {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        match self.kind {
            Kind::Dns => !value.is_empty() && value.bytes().all(plain),
            Kind::Uri => {
                let fine = |b: u8| plain(b) || matches!(b, b'.' | b'_' | b'~');
                !value.is_empty() && !matches!(value, "." | "..") && value.bytes().all(fine)
            }
            Kind::Ip => false,
        }
    }
}

fn name(kind: Kind, text: &str) -> Option<SanName> {
    match kind {
        Kind::Dns => is_dns(text).then(|| SanName::Dns(text.to_ascii_lowercase())),
        Kind::Uri => is_uri(text).then(|| SanName::Uri(text.to_owned())),
        Kind::Ip => text.parse::<IpAddr>().ok().map(SanName::Ip),
    }
}

/// Letters, digits and hyphens (RFC 1123); no wildcard.
fn is_dns(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.len() <= MAX_NAME && text.split('.').all(label)
}

/// A scheme and something of the characters of RFC 3986.
fn is_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let scheme_fine = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&b);
    scheme_fine && !rest.is_empty() && text.len() <= MAX_URI && rest.bytes().all(fine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn render(template: &str, claims: &Value) -> Result<Option<String>, SanError> {
        Ok(Template::parse(template)?.render(claims)?.map(|name| name.to_string()))
    }

    #[test]
    fn names_come_from_claims() {
        let claims =
            json!({"name": "Shop-1", "n": 7, "host": "a.b.example", "ip": "10.0.0.1", "bad": "a.b", "o": {}});
        for (template, expected) in [
            ("dns:{/name}.pods.example", Some("dns:shop-1.pods.example")),
            ("dns:pod-{/n}.example", Some("dns:pod-7.example")),
            ("dns:{/host}", Some("dns:a.b.example")),
            ("uri:spiffe://td.example/{/name}/{/n}", Some("uri:spiffe://td.example/Shop-1/7")),
            ("ip:{/ip}", Some("ip:10.0.0.1")),
            ("dns:fixed.example", Some("dns:fixed.example")),
            ("dns:{/absent}.example", None),
        ] {
            assert_eq!(render(template, &claims).unwrap().as_deref(), expected, "{template}");
        }
        for template in ["dns:{/bad}.example", "dns:{/o}.example", "ip:10.0.0.{/n}"] {
            assert!(matches!(render(template, &claims), Err(SanError::Claim { .. })), "{template}");
        }
        assert!(matches!(render("ip:{/name}", &claims), Err(SanError::Name(_))));
    }

    #[test]
    fn templates_that_mean_nothing_are_refused() {
        for template in [
            "",
            "dns:",
            "x:y",
            "dns:{name}",
            "dns:{/a",
            "dns:a}b",
            "dns:*.example",
            "uri:nothing",
            "ip:1.2.3",
        ] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
    }

    proptest! {
        #[test]
        fn a_claim_never_leaves_its_place(value in ".{0,24}") {
            let claims = json!({"v": value});
            if let Ok(Some(SanName::Dns(name))) = Template::parse("dns:{/v}.pods.example").unwrap().render(&claims) {
                prop_assert!(name.ends_with(".pods.example") && name.matches('.').count() == 2, "{name}");
            }
            if let Ok(Some(SanName::Uri(uri))) = Template::parse("uri:spiffe://d/{/v}/x").unwrap().render(&claims) {
                prop_assert!(uri.ends_with("/x") && uri.matches('/').count() == 4, "{uri}");
            }
        }
    }
}
