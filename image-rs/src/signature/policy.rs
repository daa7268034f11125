//! The policy: which signatures an image must have, by where it comes from.
//!
//! Source: containers-policy.json(5). `default` must be there. Only the scopes of the transport `docker` (registries) are looked up; those
//! of other transports are read, and so checked, since one file serves several programs. All requirements of a scope must hold.

use std::collections::BTreeMap;
use std::fmt;

use super::error::PolicyError;
use super::identity::Named;
use super::json::{Json, cut};
use super::requirement::Requirement;

/// Most bytes of a policy.
pub const MAX_POLICY: usize = 1 << 20;

/// A signature policy.
#[derive(Debug, Clone)]
pub struct Policy {
    default: Vec<Requirement>,
    docker: BTreeMap<String, Vec<Requirement>>,
}

/// The part of a policy that holds for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// `default`.
    Default,
    /// A scope of `transports.docker`; the empty one is that transport's default.
    Docker(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Docker(scope) => write!(f, "transports.docker[{scope:?}]"),
        }
    }
}

impl Policy {
    /// Reads a `policy.json`.
    ///
    /// # Errors
    /// See [`PolicyError`]: whatever is unknown, twice or missing.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        if bytes.len() > MAX_POLICY {
            return Err(PolicyError::TooLong { seen: bytes.len(), max: MAX_POLICY });
        }
        let mut members = Json::parse(bytes)?.object("")?;
        let default = members.take("default").ok_or_else(|| {
            PolicyError::at(
                "default",
                "nothing",
                r#"a list of requirements, for instance [{"type":"reject"}]"#,
            )
        })?;
        let default = Requirement::read_all(default, "default")?;
        let mut docker = BTreeMap::new();
        if let Some(transports) = members.take("transports") {
            for (transport, scopes) in transports.object("transports")?.rest() {
                let read =
                    read_scopes(scopes, &format!("transports.{}", cut(&transport)), transport == "docker")?;
                if transport == "docker" {
                    docker = read;
                }
            }
        }
        members.finish("default and transports")?;
        Ok(Self { default, docker })
    }

    /// The requirements for an image: those of the most specific scope, and no others.
    #[must_use]
    pub fn requirements(&self, image: &Named) -> (Scope, &[Requirement]) {
        let mut scopes = image.scopes();
        scopes.push(String::new());
        let found = scopes.into_iter().find_map(|scope| {
            let requirements = self.docker.get(&scope)?;
            Some((Scope::Docker(scope), requirements.as_slice()))
        });
        found.unwrap_or((Scope::Default, &self.default))
    }
}

fn read_scopes(
    scopes: Json,
    path: &str,
    registries: bool,
) -> Result<BTreeMap<String, Vec<Requirement>>, PolicyError> {
    let read = |(scope, requirements): (String, Json)| {
        let path = format!("{path}[{:?}]", cut(&scope));
        let pattern = scope.strip_prefix("*.").unwrap_or(&scope);
        if registries && (pattern.contains('*') || (scope.starts_with("*.") && pattern.contains(['/', ':'])))
        {
            return Err(PolicyError::at(&path, "a pattern", "host[:port][/path][:tag|@digest], or *.domain"));
        }
        Ok((scope, Requirement::read_all(requirements, &path)?))
    };
    scopes.object(path)?.rest().into_iter().map(read).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn scope(policy: &str, image: &str) -> String {
        let policy = Policy::parse(policy.as_bytes()).unwrap();
        policy.requirements(&Named::parse(image).unwrap()).0.to_string()
    }

    #[test]
    fn the_most_specific_scope_wins() {
        let scopes = [
            "host.example.com:5000/team/app:1",
            "host.example.com:5000/team/app",
            "host.example.com:5000/team",
            "host.example.com:5000",
            "*.example.com",
            "*.com",
            "",
        ];
        for first in 0..=scopes.len() {
            let listed: Vec<_> =
                scopes[first..].iter().map(|s| format!(r#""{s}":[{{"type":"reject"}}]"#)).collect();
            let policy = format!(
                r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{{}}}}}}}"#,
                listed.join(",")
            );
            let wanted =
                scopes.get(first).map_or("default".to_owned(), |s| format!("transports.docker[{s:?}]"));
            assert_eq!(scope(&policy, "host.example.com:5000/team/app:1"), wanted);
        }
        let other = r#"{"default":[{"type":"reject"}],"transports":{"docker":{"host.io/te":[{"type":"reject"}]},
            "docker-daemon":{"":[{"type":"insecureAcceptAnything"}]}}}"#;
        assert_eq!(scope(other, "host.io/team/app:1"), "default");
    }

    #[test]
    fn what_is_unknown_or_missing_is_refused_with_its_path() {
        for (text, path) in [
            ("{}", "default"),
            (r#"{"default":[]}"#, "default"),
            (r#"{"default":{}}"#, "default"),
            (r#"{"default":[{"type":"reject"}],"more":1}"#, "more"),
            (r#"{"default":[{"type":"reject","x":1}]}"#, "default[0].x"),
            (r#"{"default":[{"type":"reject"},{"type":"odd"}]}"#, "default[1].type"),
            (r#"{"default":[{"type":"reject"}],"transports":[]}"#, "transports"),
            (
                r#"{"default":[{"type":"reject"}],"transports":{"docker":{"a*.io":[{"type":"reject"}]}}}"#,
                r#"transports.docker["a*.io"]"#,
            ),
            (
                r#"{"default":[{"type":"reject"}],"transports":{"dir":{"/x":[{"type":"reject","y":1}]}}}"#,
                r#"transports.dir["/x"][0].y"#,
            ),
        ] {
            let error = Policy::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(&format!("at {path}:")), "{text}: {error}");
        }
        let twice = br#"{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}"#;
        assert!(matches!(Policy::parse(twice).unwrap_err(), PolicyError::Json { .. }));
        assert!(matches!(
            Policy::parse(&vec![b' '; MAX_POLICY + 1]).unwrap_err(),
            PolicyError::TooLong { .. }
        ));
    }
}
