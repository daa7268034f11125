//! Names of images, and whether the name in a signature is the one that was asked for.
//!
//! Source: containers-policy.json(5), `signedIdentity`. Names are compared in their full form (`docker.io/library/busybox`, also where a
//! signer wrote `index.docker.io`). A reference with tag and digest counts by its digest: that is what is pulled.

use oci_client::Reference;

use super::error::PolicyError;
use super::json::{Json, cut};

const HUB: &str = "docker.io";

/// An image's name in full form, with what stands behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Host, port and repository.
    pub(super) name: String,
    /// `:tag`, `@digest`, both, or nothing: nothing is added.
    pub(super) rest: String,
}

impl Named {
    /// The image that a pull is about.
    #[must_use]
    pub fn of(reference: &Reference) -> Self {
        let name = full(&format!("{}/{}", reference.registry(), reference.repository()));
        let rest = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => format!("@{digest}"),
            (None, tag) => format!(":{}", tag.unwrap_or("latest")),
        };
        Self { name, rest }
    }

    /// Reads a name as users and signers write it; `None` when it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // The grammar is the library's; what it adds (the tag `latest`) must not be, since it would not have been signed.
        text.parse::<Reference>().ok()?;
        // A port has a slash behind it; the first colon or @ after the last slash begins tag or digest.
        let start = text.rfind('/').map_or(0, |slash| slash + 1);
        let end = text.get(start..)?.find([':', '@']).map_or(text.len(), |at| start + at);
        Some(Self { name: full(text.get(..end)?), rest: text.get(end..)?.to_owned() })
    }

    /// Whether only the repository is named.
    fn is_name_only(&self) -> bool {
        self.rest.is_empty()
    }

    fn has_tag(&self) -> bool {
        self.rest.starts_with(':')
    }

    fn text(&self) -> String {
        format!("{}{}", self.name, self.rest)
    }

    /// Scopes of a policy that hold for this image, the most specific first.
    pub(super) fn scopes(&self) -> Vec<String> {
        let mut scopes = vec![self.text()];
        let mut name = self.name.as_str();
        scopes.push(name.to_owned());
        while let Some((shorter, _)) = name.rsplit_once('/') {
            scopes.push(shorter.to_owned());
            name = shorter;
        }
        let mut host = name.split(':').next().unwrap_or(name);
        while let Some((_, parent)) = host.split_once('.') {
            scopes.push(format!("*.{parent}"));
            host = parent;
        }
        scopes
    }
}

/// Whether the first part of a name is a registry's host, by Docker's rule.
fn is_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// The full form of a name without tag and digest.
fn full(name: &str) -> String {
    let (host, path) = match name.split_once('/') {
        Some((host, path)) if is_host(host) => (host, path),
        _ => (HUB, name),
    };
    let host = if host == "index.docker.io" { HUB } else { host };
    let library = if host == HUB && !path.contains('/') { "library/" } else { "" };
    format!("{host}/{library}{path}")
}

/// Which name a signature has to bear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignedIdentity {
    /// The very name asked for.
    MatchExact,
    /// The name asked for when it has a tag, any tag of its repository when it has a digest.
    MatchRepoDigestOrExact,
    /// Any tag of the repository asked for.
    MatchRepository,
    /// This very name.
    ExactReference(Named),
    /// Any tag of this repository.
    ExactRepository(Named),
    /// As the second, after one prefix was put in place of another.
    Remap {
        /// In front of the name asked for.
        prefix: String,
        /// In front of the name signed.
        signed: String,
    },
    /// kata-cc's own: whatever the name; only the digest counts. Sigstore bundles bear no name.
    MatchDigestOnly,
}

const TYPES: &str = "matchExact, matchRepoDigestOrExact, matchRepository, exactReference, exactRepository, remapIdentity or matchDigestOnly";

impl SignedIdentity {
    /// Reads `signedIdentity`.
    pub(super) fn read(value: Json, path: &str) -> Result<Self, PolicyError> {
        let mut members = value.object(path)?;
        let kind = members.needed_text("type")?;
        let (identity, known) = match kind.as_str() {
            "matchExact" => (Self::MatchExact, "type"),
            "matchRepoDigestOrExact" => (Self::MatchRepoDigestOrExact, "type"),
            "matchRepository" => (Self::MatchRepository, "type"),
            "matchDigestOnly" => (Self::MatchDigestOnly, "type"),
            "exactReference" => {
                let text = members.needed_text("dockerReference")?;
                let named = Named::parse(&text).filter(|named| !named.is_name_only());
                let expected = "an image's name with tag or digest";
                let fault = || PolicyError::at(&members.path("dockerReference"), &cut(&text), expected);
                (Self::ExactReference(named.ok_or_else(fault)?), "type and dockerReference")
            }
            "exactRepository" => {
                let text = members.needed_text("dockerRepository")?;
                let named = Named::parse(&text).filter(Named::is_name_only);
                let expected = "a repository without tag and digest";
                let fault = || PolicyError::at(&members.path("dockerRepository"), &cut(&text), expected);
                (Self::ExactRepository(named.ok_or_else(fault)?), "type and dockerRepository")
            }
            "remapIdentity" => {
                let mut prefix = |name: &str| {
                    let text = members.needed_text(name)?;
                    let expected = "host[:port], or host[:port]/path, without tag and digest";
                    if is_prefix(&text) {
                        Ok(text)
                    } else {
                        Err(PolicyError::at(&members.path(name), &cut(&text), expected))
                    }
                };
                let (prefix, signed) = (prefix("prefix")?, prefix("signedPrefix")?);
                (Self::Remap { prefix, signed }, "type, prefix and signedPrefix")
            }
            other => return Err(PolicyError::at(&members.path("type"), &cut(other), TYPES)),
        };
        members.finish(known)?;
        Ok(identity)
    }

    /// Whether a signature that bears the name `signed` holds for `image`; else what was expected.
    ///
    /// # Errors
    /// The expected name, in words.
    pub fn check(&self, image: &Named, signed: Option<&str>) -> Result<(), String> {
        let signed = signed.and_then(Named::parse);
        let repository = |want: &Named| match &signed {
            Some(signed) if signed.name == want.name => Ok(()),
            _ => Err(format!("{} with any tag or none", want.name)),
        };
        let exact = |want: &Named| match &signed {
            Some(signed) if !want.is_name_only() && signed == want => Ok(()),
            _ => Err(want.text()),
        };
        match self {
            Self::MatchDigestOnly => Ok(()),
            Self::MatchExact => exact(image),
            Self::ExactReference(want) => exact(want),
            Self::MatchRepository => repository(image),
            Self::ExactRepository(want) => repository(want),
            Self::MatchRepoDigestOrExact => digest_or_exact(image, signed.as_ref()),
            Self::Remap { prefix, signed: by } => {
                let fault = || format!("a name that {} can be with {by} in place of {prefix}", image.name);
                digest_or_exact(&remap(image, prefix, by).ok_or_else(fault)?, signed.as_ref())
            }
        }
    }
}

fn digest_or_exact(image: &Named, signed: Option<&Named>) -> Result<(), String> {
    let tagged = image.has_tag();
    match signed {
        Some(signed) if tagged && signed == image => Ok(()),
        Some(signed) if !tagged && !signed.is_name_only() && signed.name == image.name => Ok(()),
        _ if tagged => Err(image.text()),
        _ => Err(format!("{} with any tag", image.name)),
    }
}

/// Whether a text can stand in front of a name in full form.
fn is_prefix(text: &str) -> bool {
    let host = text.split('/').next().unwrap_or_default();
    // Completed to a name, it has to be one whose parts are the prefix's own.
    let name = if text.contains('/') { text.to_owned() } else { format!("{text}/x") };
    let named = Named::parse(&name);
    is_host(host) && named.is_some_and(|named| named.is_name_only() && (named.name == name || host == HUB))
}

/// The name with `by` in place of `prefix`; as it is when it does not begin so.
fn remap(image: &Named, prefix: &str, by: &str) -> Option<Named> {
    let suffix = image.name.strip_prefix(prefix);
    let Some(suffix) = suffix.filter(|suffix| suffix.is_empty() || suffix.starts_with('/')) else {
        return Some(image.clone());
    };
    Named::parse(&format!("{by}{suffix}{}", image.rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::registry::parse_reference;

    fn named(text: &str) -> Named {
        Named::parse(text).unwrap()
    }

    #[test]
    fn names_in_full_form() {
        let digest = format!("@sha256:{}", "0".repeat(64));
        for (text, name, rest) in [
            ("busybox", "docker.io/library/busybox", ""),
            ("index.docker.io/busybox:1", "docker.io/library/busybox", ":1"),
            ("index.docker.io/team/app", "docker.io/team/app", ""),
            ("team/app:1", "docker.io/team/app", ":1"),
            ("localhost/app", "localhost/app", ""),
            ("host:5000/app", "host:5000/app", ""),
            ("host:5000/team/app:v1", "host:5000/team/app", ":v1"),
            (&format!("host:5000/app{digest}"), "host:5000/app", &digest),
            (&format!("host.io/app:1{digest}"), "host.io/app", &format!(":1{digest}")),
        ] {
            assert_eq!(named(text), Named { name: name.to_owned(), rest: rest.to_owned() }, "{text}");
        }
        for text in ["", "UPPER/Case", "host/app:", "host/app@x", "a b", "host//app"] {
            assert_eq!(Named::parse(text), None, "{text}");
        }
        let image = |text: &str| Named::of(&parse_reference(text).unwrap());
        assert_eq!(image("busybox"), named("docker.io/library/busybox:latest"));
        assert_eq!(image(&format!("host.io/app:1{digest}")), named(&format!("host.io/app{digest}")));
    }

    #[test]
    fn scopes_from_the_most_specific() {
        assert_eq!(
            named("a.b.example.com:5000/ns/app:1").scopes(),
            [
                "a.b.example.com:5000/ns/app:1",
                "a.b.example.com:5000/ns/app",
                "a.b.example.com:5000/ns",
                "a.b.example.com:5000",
                "*.b.example.com",
                "*.example.com",
                "*.com",
            ]
        );
    }

    fn identity(text: &str) -> Result<SignedIdentity, PolicyError> {
        SignedIdentity::read(Json::parse(text.as_bytes()).unwrap(), "id")
    }

    #[test]
    fn every_kind_of_identity() {
        let digest = format!("host.io/app@sha256:{}", "0".repeat(64));
        let mirror = r#"{"type":"remapIdentity","prefix":"host.io","signedPrefix":"vendor.io/up"}"#;
        let table: &[(&str, &str, &str, bool)] = &[
            (r#"{"type":"matchExact"}"#, "host.io/app:1", "host.io/app:1", true),
            (r#"{"type":"matchExact"}"#, "host.io/app:1", "host.io/app:2", false),
            (r#"{"type":"matchExact"}"#, "host.io/app:1", "host.io/app", false),
            (r#"{"type":"matchExact"}"#, &digest, "host.io/app:1", false),
            (r#"{"type":"matchRepoDigestOrExact"}"#, "host.io/app:1", "host.io/app:1", true),
            (r#"{"type":"matchRepoDigestOrExact"}"#, "host.io/app:1", "host.io/app", false),
            (r#"{"type":"matchRepoDigestOrExact"}"#, "host.io/app:1", "host.io/app:2", false),
            (r#"{"type":"matchRepoDigestOrExact"}"#, &digest, "host.io/app:1", true),
            (r#"{"type":"matchRepoDigestOrExact"}"#, &digest, "host.io/app", false),
            (r#"{"type":"matchRepoDigestOrExact"}"#, &digest, "host.io/other:1", false),
            (r#"{"type":"matchRepository"}"#, "host.io/app:1", "host.io/app", true),
            (r#"{"type":"matchRepository"}"#, "host.io/app:1", "host.io/app/x", false),
            (r#"{"type":"matchRepository"}"#, "host.io/app:1", "", false),
            (r#"{"type":"exactReference","dockerReference":"v.io/a:2"}"#, "host.io/app:1", "v.io/a:2", true),
            (r#"{"type":"exactReference","dockerReference":"v.io/a:2"}"#, "host.io/app:1", "v.io/a:1", false),
            (r#"{"type":"exactRepository","dockerRepository":"v.io/a"}"#, "host.io/app:1", "v.io/a:7", true),
            (
                r#"{"type":"exactRepository","dockerRepository":"v.io/a"}"#,
                "host.io/app:1",
                "host.io/app:1",
                false,
            ),
            (mirror, "host.io/app:1", "vendor.io/up/app:1", true),
            (mirror, "host.io/app:1", "host.io/app:1", false),
            (mirror, "host.iox/app:1", "host.iox/app:1", true),
            (mirror, &digest, "vendor.io/up/app:9", true),
            (r#"{"type":"matchDigestOnly"}"#, "host.io/app:1", "anything", true),
        ];
        for (policy, image, signed, good) in table {
            let checked = identity(policy).unwrap().check(&named(image), Some(signed));
            assert_eq!(checked.is_ok(), *good, "{policy} {image} {signed}: {checked:?}");
            assert!(*good || identity(policy).unwrap().check(&named(image), None).is_err());
        }
    }

    #[test]
    fn a_malformed_identity_is_refused_with_its_path() {
        for (text, path) in [
            ("[]", "id"),
            ("{}", "id.type"),
            (r#"{"type":"any"}"#, "id.type"),
            (r#"{"type":"matchExact","prefix":"x"}"#, "id.prefix"),
            (r#"{"type":"exactReference","dockerReference":"host.io/app"}"#, "id.dockerReference"),
            (r#"{"type":"exactRepository","dockerRepository":"host.io/app:1"}"#, "id.dockerRepository"),
            (r#"{"type":"remapIdentity","prefix":"host.io/app:1","signedPrefix":"x.io"}"#, "id.prefix"),
            (r#"{"type":"remapIdentity","prefix":"host.io","signedPrefix":"busybox"}"#, "id.signedPrefix"),
            (r#"{"type":"remapIdentity","prefix":"host.io"}"#, "id.signedPrefix"),
        ] {
            let error = identity(text).unwrap_err().to_string();
            assert!(error.contains(&format!("at {path}:")), "{text}: {error}");
        }
    }
}
