//! Which files a bundle has. One level of folders, so that a ConfigMap or a projected volume can carry it.
//!
//! | file | what it is |
//! |---|---|
//! | `kata-cc-policy.yaml` | the manifest |
//! | `agent/<name>.rego` | agent policies, for the init-data of pods |
//! | `image/policy.json` | which signatures images must have (containers-policy.json(5)) |
//! | `attestation/<id>.rego` | attestation policies by id, e.g. `default_cpu` |
//! | `resource/policy.rego` | the key broker's resource policy |
//! | `reference-values/<name>.json` | reference values |
//! | `trust/<name>.pem` | public keys that may sign reference values, named in the manifest |
//! | `agent`, `attestation`, `resource`: `<name>.test.yaml` | cases beside the policy of that name |

use crate::BundleError;

/// The manifest.
pub const MANIFEST: &str = "kata-cc-policy.yaml";
/// A folder's signature, beside the manifest; no part of the bundle.
pub const SIGNATURE: &str = "kata-cc-policy.sig";
/// The resource policy.
pub const RESOURCE_POLICY: &str = "resource/policy.rego";
/// The image policy.
pub const IMAGE_POLICY: &str = "image/policy.json";
/// Most files.
pub const MAX_FILES: usize = 1024;
/// Most bytes of one file: what the policy engine takes.
pub const MAX_FILE: u64 = 1 << 20;
/// Most bytes of all files.
pub const MAX_TOTAL: u64 = 8 << 20;
/// Most bytes of a path: what a plain tar header holds.
pub const MAX_PATH: usize = 100;

/// The parts, each a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `agent`.
    Agent,
    /// `attestation`.
    Attestation,
    /// `image`.
    Image,
    /// `reference-values`.
    ReferenceValues,
    /// `resource`.
    Resource,
    /// `trust`.
    Trust,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Agent, Self::Attestation, Self::Image, Self::ReferenceValues, Self::Resource, Self::Trust];

    /// Name of its folder.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Attestation => "attestation",
            Self::Image => "image",
            Self::ReferenceValues => "reference-values",
            Self::Resource => "resource",
            Self::Trust => "trust",
        }
    }

    /// The part of a folder's name.
    #[must_use]
    pub fn of(folder: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.folder() == folder)
    }

    fn expected(self) -> &'static str {
        match self {
            Self::Agent => "agent/ holds NAME.rego and NAME.test.yaml",
            Self::Attestation => "attestation/ holds ID.rego and ID.test.yaml",
            Self::Image => "image/ holds policy.json",
            Self::ReferenceValues => "reference-values/ holds NAME.json",
            Self::Resource => "resource/ holds policy.rego and policy.test.yaml",
            Self::Trust => "trust/ holds NAME.pem",
        }
    }

    fn takes(self, stem: &str, ending: &str) -> bool {
        match self {
            Self::Agent | Self::Attestation => ["rego", "test.yaml"].contains(&ending),
            Self::Resource => stem == "policy" && ["rego", "test.yaml"].contains(&ending),
            Self::Image => stem == "policy" && ending == "json",
            Self::ReferenceValues => ending == "json",
            Self::Trust => ending == "pem",
        }
    }
}

/// Whether `path` has a place in a bundle.
///
/// # Errors
/// [`BundleError::Unknown`], with what could be there.
pub fn check_path(path: &str) -> Result<(), BundleError> {
    if path == MANIFEST {
        return Ok(());
    }
    let unknown = |expected| Err(BundleError::Unknown { path: path.chars().take(200).collect(), expected });
    let Some((part, name)) = path.split_once('/').and_then(|(folder, name)| Some((Part::of(folder)?, name)))
    else {
        return unknown(
            "known are kata-cc-policy.yaml and the folders agent, attestation, image, reference-values, resource, trust",
        );
    };
    let Some((stem, ending)) = name.split_once('.') else { return unknown(part.expected()) };
    let fits = !stem.is_empty()
        && stem.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        && part.takes(stem, ending);
    if !fits || path.len() > MAX_PATH {
        return unknown(part.expected());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn each_file_has_its_place() {
        for path in [
            "kata-cc-policy.yaml",
            "agent/web.rego",
            "agent/web.test.yaml",
            "attestation/default_cpu.rego",
            "image/policy.json",
            "reference-values/nodes-2.json",
            "resource/policy.rego",
            "resource/policy.test.yaml",
            "trust/ci.pem",
        ] {
            check_path(path).unwrap();
        }
        for path in [
            "atestation/default_cpu.rego",
            "agent/web.yaml",
            "agent/a/b.rego",
            "agent/../x.rego",
            "agent/.rego",
            "agent/web",
            "image/other.json",
            "resource/other.rego",
            "trust/ci.key",
            "/agent/web.rego",
            "agent/we b.rego",
            "x",
            "",
        ] {
            assert!(matches!(check_path(path), Err(BundleError::Unknown { .. })), "{path}");
        }
        let long = format!("agent/{}.rego", "x".repeat(MAX_PATH));
        assert!(check_path(&long).is_err());
    }
}
