//! Who may call what: roles with built-in lists, and Trustee's regular expressions.
//!
//! The built-in lists name methods too, since reading and writing share paths; Trustee's expressions see the path only.
//!
//! | list | may |
//! |---|---|
//! | `auditor` | read everything that is no secret: listings, histories, policies, reference values, the audit log |
//! | `operator` | write and delete resources, see their listings and histories; reference values |
//! | `policy-editor` | read, try out and set policies; see reference values |
//! | `admin` | everything |

use axum::http::Method;
use regex::Regex;

use crate::config::{Admin, BuiltinAcl, ConfigError};

/// Largest compiled expression in bytes.
const MAX_REGEX: usize = 1 << 20;

/// One rule of a built-in list: methods, and a path in which a last `*` stands for any rest and others for one segment.
type Rule = (&'static [&'static str], &'static str);

const READ: &[&str] = &["GET"];
const AUDITOR: &[Rule] = &[
    (READ, "/kbs/v0/admin/*"),
    (READ, "/kbs/v0/resource-policy"),
    (READ, "/kbs/v0/resource-policy/text"),
    (READ, "/kbs/v0/attestation-policy/*"),
    (READ, "/kbs/v0/reference-value"),
    (READ, "/kbs/v0/reference-value/*"),
];
const OPERATOR: &[Rule] = &[
    (&["POST", "DELETE"], "/kbs/v0/resource/*"),
    (READ, "/kbs/v0/admin/resources"),
    (READ, "/kbs/v0/admin/resources/*"),
    (&["GET", "POST"], "/kbs/v0/reference-value"),
    (&["GET", "DELETE"], "/kbs/v0/reference-value/*"),
    (&["GET", "POST"], "/kbs/v0/admin/attestation/reference-values"),
    (&["GET", "POST", "DELETE"], "/kbs/v0/admin/attestation/reference-values/*"),
    (&["POST"], "/kbs/v0/admin/attestation/explain"),
];
const POLICY_EDITOR: &[Rule] = &[
    (&["GET", "POST"], "/kbs/v0/resource-policy"),
    (READ, "/kbs/v0/resource-policy/text"),
    (&["POST"], "/kbs/v0/attestation-policy"),
    (READ, "/kbs/v0/attestation-policy/*"),
    (&["GET", "POST"], "/kbs/v0/admin/resource-policy/*"),
    (READ, "/kbs/v0/admin/attestation/policies"),
    (&["GET", "PUT", "DELETE"], "/kbs/v0/admin/attestation/policies/*"),
    (&["POST"], "/kbs/v0/admin/attestation/policies/dry-run"),
    (&["POST"], "/kbs/v0/admin/attestation/explain"),
    (READ, "/kbs/v0/admin/attestation/reference-values"),
    (READ, "/kbs/v0/admin/attestation/reference-values/*"),
    (READ, "/kbs/v0/reference-value"),
    (READ, "/kbs/v0/reference-value/*"),
];
const ADMIN: &[Rule] = &[(&["GET", "POST", "PUT", "DELETE"], "/kbs/*")];

impl BuiltinAcl {
    const fn rules(self) -> &'static [Rule] {
        match self {
            Self::Auditor => AUDITOR,
            Self::Operator => OPERATOR,
            Self::PolicyEditor => POLICY_EDITOR,
            Self::Admin => ADMIN,
        }
    }

    fn allows(self, method: &Method, path: &str) -> bool {
        self.rules().iter().any(|(methods, pattern)| {
            methods.contains(&method.as_str())
                && match pattern.strip_suffix('*') {
                    Some(start) => path.strip_prefix(start).is_some_and(|rest| !rest.is_empty()),
                    None => path == *pattern,
                }
        })
    }
}

/// What all roles may call.
#[derive(Debug)]
pub(crate) struct Roles {
    expressions: Vec<(String, Regex)>,
    builtin: Vec<(String, BuiltinAcl)>,
}

impl Roles {
    /// Compiles the rules.
    pub(crate) fn new(admin: &Admin) -> Result<Self, ConfigError> {
        let mut expressions = Vec::new();
        for acl in &admin.authorization.regex_acl.acls {
            let text = &acl.allowed_endpoints;
            let inner = text.strip_prefix('^').filter(|rest| rest.starts_with("/kbs"));
            let Some(inner) = inner.and_then(|rest| rest.strip_suffix('$')) else {
                return Err(ConfigError::Value(format!(
                    "allowed_endpoints {text:?} must start with ^/kbs and end with $"
                )));
            };
            // Alternation binds weaker than the anchors: without the group `^/kbs/a|.*$` would allow everything.
            let regex = regex::RegexBuilder::new(&format!("^(?:{inner})$")).size_limit(MAX_REGEX).build();
            let regex = regex.map_err(|e| ConfigError::Value(format!("{text}: {e}")))?;
            expressions.push((acl.role.clone(), regex));
        }
        let builtin = admin.authorization.roles.iter().map(|role| (role.role.clone(), role.acl)).collect();
        Ok(Self { expressions, builtin })
    }

    /// Whether nobody may anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.expressions.is_empty() && self.builtin.is_empty()
    }

    /// Whether a role may call `path`. A query is no part of it: no rule reads one, so it could only make another path look like
    /// an allowed one.
    pub(crate) fn allow(&self, role: &str, method: &Method, path: &str) -> bool {
        self.expressions.iter().any(|(name, regex)| name == role && regex.is_match(path))
            || self.builtin.iter().any(|(name, acl)| name == role && acl.allows(method, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_has_what_it_needs_and_no_more() {
        let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
        use BuiltinAcl::{Admin, Auditor, Operator, PolicyEditor};
        for (method, path, allowed) in [
            (&post, "/kbs/v0/resource/a/b/c", &[Operator, Admin][..]),
            (&delete, "/kbs/v0/resource/a/b/c", &[Operator, Admin]),
            (&get, "/kbs/v0/admin/resources", &[Auditor, Operator, Admin]),
            (&get, "/kbs/v0/admin/resources/a/b/c/history", &[Auditor, Operator, Admin]),
            (&get, "/kbs/v0/admin/audit", &[Auditor, Admin]),
            (&post, "/kbs/v0/resource-policy", &[PolicyEditor, Admin]),
            (&get, "/kbs/v0/resource-policy/text", &[Auditor, PolicyEditor, Admin]),
            (&post, "/kbs/v0/admin/resource-policy/dry-run", &[PolicyEditor, Admin]),
            (&post, "/kbs/v0/attestation-policy", &[PolicyEditor, Admin]),
            (&post, "/kbs/v0/reference-value", &[Operator, Admin]),
            (&get, "/kbs/v0/reference-value/x", &[Auditor, Operator, PolicyEditor, Admin]),
            (&delete, "/kbs/v0/reference-value/x", &[Operator, Admin]),
            (&get, "/kbs/v0/resource/", &[Admin]),
            (&post, "/kbs/v0/pkcs11/x", &[Admin]),
            (&get, "/metrics", &[]),
        ] {
            for acl in [Auditor, Operator, PolicyEditor, Admin] {
                assert_eq!(acl.allows(method, path), allowed.contains(&acl), "{acl:?} {method} {path}");
            }
        }
        // An auditor changes nothing, wherever.
        assert!(Auditor.rules().iter().all(|(methods, _)| methods == &["GET"]));
    }
}
