//! Where an image is asked for: mirrors first, then its registry.
//!
//! Source: containers-registries.conf(5), format 2, as far as it speaks of `[[registry]]` and its mirrors. Whatever place an
//! image comes from, its name stays the one that was asked for: lists of allowed images and signature policies look at that,
//! and a mirror is believed nothing but the bytes that have the right digest.

use oci_client::Reference;
use serde::Deserialize;

use super::RegistryError;

/// What is said of registries: the file `registries.conf`. Settings that concern other programs are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Registries {
    /// One entry for each prefix; the longest that fits counts.
    #[serde(default)]
    pub registry: Vec<RegistryRule>,
}

/// What is said of the images under a prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RegistryRule {
    /// `host[:port][/path]`, or `*.domain`; the location, where it is absent.
    #[serde(default)]
    pub prefix: Option<String>,
    /// Where these images lie in truth; the prefix, where it is absent.
    #[serde(default)]
    pub location: Option<String>,
    /// Plain HTTP.
    #[serde(default)]
    pub insecure: bool,
    /// No image of it is pulled.
    #[serde(default)]
    pub blocked: bool,
    /// Mirrors are asked for images by digest only.
    #[serde(default)]
    pub mirror_by_digest_only: bool,
    /// In the order in which they are asked.
    #[serde(default)]
    pub mirror: Vec<Mirror>,
}

/// Another place of the same images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mirror {
    /// What stands in place of the prefix.
    pub location: String,
    /// Plain HTTP.
    #[serde(default)]
    pub insecure: bool,
    /// Which references it is asked for.
    #[serde(default)]
    pub pull_from_mirror: PullFromMirror,
}

/// For which references a mirror is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullFromMirror {
    /// Any.
    #[default]
    All,
    /// Those with a digest.
    DigestOnly,
    /// Those with a tag alone.
    TagOnly,
}

/// One place to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host, with its port where it has one.
    pub(super) host: String,
    /// Repository there.
    pub(super) repository: String,
    /// Whether plain HTTP is spoken.
    pub(super) insecure: bool,
}

impl Endpoint {
    /// The address of `path` below the repository.
    pub(super) fn url(&self, path: &str) -> String {
        let scheme = if self.insecure { "http" } else { "https" };
        format!("{scheme}://{}/v2/{}/{path}", self.host, self.repository)
    }

    /// The repository there as a reference.
    pub(super) fn reference(&self) -> Reference {
        Reference::with_tag(self.host.clone(), self.repository.clone(), "latest".to_owned())
    }

    /// From `host[:port]/repository`.
    fn parse(place: &str, insecure: bool) -> Option<Self> {
        let (host, repository) = place.split_once('/')?;
        let good = !host.is_empty() && !repository.is_empty();
        // The name of Docker's registry is not the name of a host that serves it.
        let host = if host == "docker.io" { "index.docker.io" } else { host };
        good.then(|| Self { host: host.to_owned(), repository: repository.to_owned(), insecure })
    }
}

impl RegistryRule {
    /// What is left of the name `host/repository` behind the prefix, and how long that is; `None` when it does not fit.
    fn rest<'n>(&self, name: &'n str) -> Option<(usize, &'n str)> {
        let prefix = self.prefix.as_deref().or(self.location.as_deref())?;
        if let Some(domain) = prefix.strip_prefix("*.") {
            let host = name.split(['/', ':']).next().unwrap_or(name);
            let inner = host.strip_suffix(domain)?.strip_suffix('.')?;
            return (!inner.is_empty()).then_some((domain.len(), name));
        }
        let rest = name.strip_prefix(prefix)?;
        (rest.is_empty() || rest.starts_with('/')).then_some((prefix.len(), rest))
    }

    fn is_wildcard(&self) -> bool {
        self.prefix.as_deref().is_some_and(|prefix| prefix.starts_with("*."))
    }
}

impl Registries {
    /// Reads the text of a `registries.conf`, format 2.
    ///
    /// # Errors
    /// In words: where it is no TOML, has a setting of registries that is not known, or makes no sense.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rules: Self = toml::from_str(text).map_err(|error| format!("registries.conf: {error}"))?;
        rules.check().map_err(|why| format!("registries.conf: {why}"))?;
        Ok(rules)
    }

    /// Whether the settings make sense; where they do not, the reason.
    ///
    /// # Errors
    /// A rule without a name, a wildcard that is given another location, a location that is an address.
    pub fn check(&self) -> Result<(), String> {
        for rule in &self.registry {
            let name = rule.prefix.as_deref().or(rule.location.as_deref());
            let name = name.ok_or("a [[registry]] has neither prefix nor location")?;
            if rule.is_wildcard() && (rule.location.is_some() || !rule.mirror.is_empty()) {
                return Err(format!("[[registry]] {name}: a prefix with * takes no location and no mirror"));
            }
            let places = rule.mirror.iter().map(|mirror| mirror.location.as_str());
            for place in rule.location.as_deref().into_iter().chain(places).chain([name]) {
                if place.is_empty() || place.contains("://") || place.ends_with('/') {
                    return Err(format!(
                        "[[registry]] {name}: {place:?} is not of the form host[:port][/path]"
                    ));
                }
            }
        }
        Ok(())
    }

    /// The places to ask for `reference`, in their order. `insecure` lists hosts spoken to in plain HTTP besides.
    pub(super) fn endpoints(
        &self,
        reference: &Reference,
        insecure: &[String],
    ) -> Result<Vec<Endpoint>, RegistryError> {
        let name = format!("{}/{}", reference.registry(), reference.repository());
        let plain = |place: &str, said: bool| {
            said || insecure.iter().any(|host| place.split('/').next() == Some(host.as_str()))
        };
        let fits = self.registry.iter().filter_map(|rule| Some((rule.rest(&name)?, rule)));
        let Some(((_, rest), rule)) = fits.max_by_key(|((length, _), _)| *length) else {
            return Ok(Endpoint::parse(&name, plain(&name, false)).into_iter().collect());
        };
        if rule.blocked {
            return Err(RegistryError::Blocked { reference: reference.to_string() });
        }
        let by_digest = reference.digest().is_some();
        let asked = |mirror: &&Mirror| match mirror.pull_from_mirror {
            PullFromMirror::All => by_digest || !rule.mirror_by_digest_only,
            PullFromMirror::DigestOnly => by_digest,
            PullFromMirror::TagOnly => !by_digest,
        };
        let mirrors = rule.mirror.iter().filter(asked).map(|mirror| {
            let place = format!("{}{rest}", mirror.location);
            Endpoint::parse(&place, plain(&place, mirror.insecure))
        });
        let itself = match rule.location.as_deref().filter(|_| !rule.is_wildcard()) {
            Some(location) => format!("{location}{rest}"),
            None => name.clone(),
        };
        let itself = Endpoint::parse(&itself, plain(&itself, rule.insecure));
        Ok(mirrors.chain([itself]).flatten().collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Registries {
        Registries::parse(text).unwrap()
    }

    fn places(rules: &Registries, reference: &str) -> Vec<String> {
        let reference = reference.parse().unwrap();
        let found = rules.endpoints(&reference, &["plain:80".to_owned()]).unwrap();
        found.iter().map(|place| place.url("x")).collect()
    }

    const MIRRORS: &str = r#"
        unqualified-search-registries = ["docker.io"]
        [[registry]]
        prefix = "docker.io"
        location = "docker.io"
        [[registry.mirror]]
        location = "mirror:5000/hub"
        insecure = true
        [[registry.mirror]]
        location = "plain:80"
        pull-from-mirror = "digest-only"
        [[registry]]
        prefix = "docker.io/library/nginx"
        location = "web:443/nginx"
        [[registry]]
        prefix = "*.evil.org"
        blocked = true"#;

    #[test]
    fn mirrors_come_before_the_registry_itself_and_the_longest_prefix_counts() {
        let rules = rules(MIRRORS);
        assert_eq!(
            places(&rules, "redis:7"),
            ["http://mirror:5000/v2/hub/library/redis/x", "https://index.docker.io/v2/library/redis/x"]
        );
        let digest = format!("docker.io/library/redis@sha256:{}", "a".repeat(64));
        assert_eq!(places(&rules, &digest)[1], "http://plain:80/v2/library/redis/x");
        assert_eq!(places(&rules, "nginx:1"), ["https://web:443/v2/nginx/x"]);
        // a prefix ends at a component
        assert_eq!(places(&rules, "nginx2:1").len(), 2);
        assert_eq!(places(&rules, "quay.io/a/b:1"), ["https://quay.io/v2/a/b/x"]);
        assert_eq!(places(&rules, "plain:80/a:1"), ["http://plain:80/v2/a/x"]);
    }

    #[test]
    fn what_is_blocked_is_asked_for_nowhere() {
        let reference = "a.evil.org/b:1".parse().unwrap();
        let error = rules(MIRRORS).endpoints(&reference, &[]).unwrap_err();
        assert!(matches!(error, RegistryError::Blocked { .. }), "{error}");
        assert_eq!(places(&rules(MIRRORS), "evil.org/b:1").len(), 1);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_with_the_reason() {
        for (text, why) in [
            ("[[registry]]", "neither prefix nor location"),
            ("[[registry]]\nprefix = '*.a.org'\nlocation = 'b'", "takes no location"),
            ("[[registry]]\nprefix = 'a'\n[[registry.mirror]]\nlocation = 'https://b'", "https://b"),
            ("[[registry]]\nprefx = 'a'", "prefx"),
        ] {
            let error = Registries::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
