//! Images: their names, and what is asked of whoever knows their configurations.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// What an image says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Digest of the manifest for the guest's platform, `sha256:…`.
    pub digest: String,
    /// Its configuration.
    #[serde(default)]
    pub config: ImageConfig,
}

/// The part of an image's configuration that decides what runs (OCI image-spec, `config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// Program.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Arguments, or program and arguments.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Variables, `NAME=value`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// User, by name or number, with a group after a colon.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    /// Working folder.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// Paths that the runtime makes volumes for.
    #[serde(deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, Value>,
}

/// Null for what is absent, as Go's writers put it.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Why nobody knows an image.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum ResolveError {
    /// It is not in the map.
    #[error("image {0} is not in the image configurations that were given")]
    Unknown(String),
    /// The registry says why.
    #[error("image {image}: {reason}")]
    Registry {
        /// Reference.
        image: String,
        /// Why.
        reason: String,
    },
    /// The map is damaged.
    #[error(
        "the image configurations are not JSON of the form {{\"image\": {{\"digest\": \"sha256:…\", \"config\": {{…}}}}}}: {0}"
    )]
    Form(String),
}

/// Knows images by their names.
pub trait ImageResolver {
    /// What the image says of itself.
    ///
    /// # Errors
    /// When it cannot be found; the policy cannot be made then.
    fn resolve(&self, reference: &str) -> Result<ImageInfo, ResolveError>;
}

/// Images by their names, from a file: for tests, and where there is no registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageMap(BTreeMap<String, ImageInfo>);

impl ImageMap {
    /// Reads `{"<reference>": {"digest": "sha256:…", "config": {"Entrypoint": […], …}}}`.
    ///
    /// # Errors
    /// [`ResolveError::Form`].
    pub fn parse(text: &str) -> Result<Self, ResolveError> {
        let map: BTreeMap<String, ImageInfo> =
            serde_json::from_str(text).map_err(|e| ResolveError::Form(e.to_string()))?;
        if let Some((name, info)) = map.iter().find(|(_, info)| !is_digest(&info.digest)) {
            return Err(ResolveError::Form(format!("{name} has digest {:?}", info.digest)));
        }
        Ok(Self(map))
    }

    /// The map as a file's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(&self.0).unwrap_or_default() + "\n"
    }

    /// Adds an image.
    pub fn insert(&mut self, reference: &str, info: ImageInfo) {
        self.0.insert(reference.to_owned(), info);
    }
}

impl ImageResolver for ImageMap {
    fn resolve(&self, reference: &str) -> Result<ImageInfo, ResolveError> {
        let names = Reference::parse(reference).names();
        let found = self.0.get(reference).or_else(|| names.iter().find_map(|name| self.0.get(name)));
        found.cloned().ok_or_else(|| ResolveError::Unknown(reference.to_owned()))
    }
}

/// `sha256:` and 64 digits.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").or_else(|| text.strip_prefix("sha512:"));
    hex.is_some_and(|hex| {
        matches!(hex.len(), 64 | 128) && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// An image reference in its parts (`distribution/reference`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// As the manifest names the repository.
    short: String,
    /// With registry and `library/`.
    full: String,
    /// Tag.
    pub tag: Option<String>,
    /// Digest.
    pub digest: Option<String>,
}

impl Reference {
    /// Takes a reference apart; what is none stays whole.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.to_owned())),
            None => (text, None),
        };
        let colon = name.rfind(':').filter(|at| !name.get(*at..).unwrap_or_default().contains('/'));
        let (short, tag) = match colon {
            Some(at) => (&name[..at], name.get(at + 1..).map(str::to_owned)),
            None => (name, None),
        };
        let registry = short.split_once('/').map(|(first, _)| first);
        let has_registry = registry.is_some_and(|r| r.contains(['.', ':']) || r == "localhost");
        let full = match short {
            _ if has_registry => short.replacen("index.docker.io/", "docker.io/", 1),
            one if !one.contains('/') => format!("docker.io/library/{one}"),
            several => format!("docker.io/{several}"),
        };
        Self { short: short.to_owned(), full, tag, digest }
    }

    /// The ways in which runtimes write this reference.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names = BTreeSet::new();
        for repository in [&self.short, &self.full] {
            match (&self.tag, &self.digest) {
                (None, None) => {
                    names.insert(repository.clone());
                    names.insert(format!("{repository}:latest"));
                }
                (tag, digest) => {
                    if let (Some(tag), None) = (tag, digest) {
                        names.insert(format!("{repository}:{tag}"));
                    }
                    if let Some(digest) = digest {
                        names.insert(format!("{repository}@{digest}"));
                        let tag = tag.as_ref().map(|tag| format!("{repository}:{tag}@{digest}"));
                        names.extend(tag);
                    }
                }
            }
        }
        names.into_iter().collect()
    }

    /// The repository's full name with a digest: the name that cannot change its meaning.
    #[must_use]
    pub fn pinned(&self, digest: &str) -> [String; 2] {
        [format!("{}@{digest}", self.short), format!("{}@{digest}", self.full)]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn references_have_the_names_that_runtimes_give_them() {
        let names = |text: &str| Reference::parse(text).names().join(" ");
        assert_eq!(names("nginx:1.27"), "docker.io/library/nginx:1.27 nginx:1.27");
        assert_eq!(names("a/b"), "a/b a/b:latest docker.io/a/b docker.io/a/b:latest");
        assert_eq!(names("r.io:5000/a/b:t"), "r.io:5000/a/b:t");
        assert_eq!(names("localhost/a:t"), "localhost/a:t");
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(names(&format!("q.io/a:t@{digest}")), format!("q.io/a:t@{digest} q.io/a@{digest}"));
    }

    #[test]
    fn a_map_finds_an_image_by_any_of_its_names() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let text = format!(
            "{{\"docker.io/library/x:1\": {{\"digest\": \"{digest}\", \"config\": {{\"Cmd\": [\"x\"], \"Entrypoint\": null}}}}}}"
        );
        let map = ImageMap::parse(&text).unwrap();
        assert_eq!(map.resolve("x:1").unwrap().config.cmd, ["x"]);
        assert_eq!(map.resolve("x:2"), Err(ResolveError::Unknown("x:2".to_owned())));
        assert_eq!(ImageMap::parse(&map.to_text()).unwrap(), map);
        assert!(ImageMap::parse("{\"x\": {\"digest\": \"sha256:1\"}}").is_err());
        assert!(ImageMap::parse("[]").is_err());
    }
}
