//! Which image this is: what keeps a registry from running its own program over layers that the guest opens.
//!
//! Manifest and digests come from the registry, and so prove only that they fit each other: a registry can put the genuine
//! encrypted layers, a plain layer and a configuration of its own into one manifest. Two things say otherwise, and one of
//! them must hold for every encrypted layer:
//!
//! - Beside the wrapped key stands the digest of the image configuration that the layer was encrypted for (authenticated as
//!   the key is). The configuration names every layer by its diff id, in order, and program, environment and user.
//! - The measured init-data lists the images that the guest may pull ([`Allowed`]). It then holds for every image.
//!
//! Limit of the first: it does not tell an image from an older one of the same key. Who must forbid that lists the digest.

use oci_client::Reference;

use crate::digest::Digest;
use crate::error::PullError;
use crate::registry::{RegistryError, parse_reference};

/// Most entries that an error quotes.
const QUOTED: usize = 8;

/// Images that may be pulled, each by repository and digest.
#[derive(Debug, Clone)]
pub(crate) struct Allowed(Vec<(String, Digest)>);

/// An image reference and what it led to.
pub(crate) struct Resolved<'a> {
    pub(crate) reference: &'a Reference,
    pub(crate) manifest: &'a Digest,
    pub(crate) index: Option<&'a Digest>,
}

fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

impl Allowed {
    /// Reads `host/repository@sha256:…`, a list of them; one without digest is refused, since a tag pins nothing.
    pub(crate) fn parse(list: &[String]) -> Result<Self, RegistryError> {
        let entry = |text: &String| {
            let wrong = |why: String| RegistryError::Reference {
                reference: text.chars().take(300).collect(),
                why: format!("{why} (an allowed image is named host/repository@sha256:…)"),
            };
            let reference = parse_reference(text)?;
            let digest = reference.digest().ok_or_else(|| wrong("it has no digest".to_owned()))?;
            Ok((repository(&reference), digest.parse().map_err(|e| wrong(format!("{e}")))?))
        };
        list.iter().map(entry).collect::<Result<_, RegistryError>>().map(Self)
    }

    /// Whether the image is listed, by its manifest's or its index's digest.
    pub(crate) fn check(&self, image: &Resolved<'_>) -> Result<(), PullError> {
        let from = repository(image.reference);
        let listed = |digest: &Digest| self.0.iter().any(|(name, known)| *name == from && known == digest);
        if listed(image.manifest) || image.index.is_some_and(listed) {
            return Ok(());
        }
        let mut quoted: Vec<_> =
            self.0.iter().take(QUOTED).map(|(name, digest)| format!("{name}@{digest}")).collect();
        if self.0.len() > QUOTED {
            quoted.push(format!("and {} more", self.0.len() - QUOTED));
        }
        let allowed = if quoted.is_empty() { "none".to_owned() } else { quoted.join(", ") };
        Err(PullError::NotAllowed { image: image.reference.to_string(), allowed, suggestion: image.pin() })
    }
}

impl Resolved<'_> {
    /// The entry of a list that pins this image.
    fn pin(&self) -> String {
        format!("{}@{}", repository(self.reference), self.index.unwrap_or(self.manifest))
    }

    /// Whether encrypted layer `layer`, encrypted for the configuration `bound`, belongs to this image.
    pub(crate) fn check_bound(
        &self,
        layer: usize,
        bound: Option<&Digest>,
        config: &Digest,
    ) -> Result<(), PullError> {
        match bound {
            None => Err(PullError::Unbound { layer, suggestion: self.pin() }),
            Some(bound) if bound != config => {
                Err(PullError::OtherImage { layer, expected: bound.clone(), seen: config.clone() })
            }
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_allowed_by_repository_and_digest() {
        let (manifest, index) = (Digest::sha256(b"manifest"), Digest::sha256(b"index"));
        let list = |text: String| Allowed::parse(&[text]).unwrap();
        let reference = parse_reference("host:5000/team/app:1").unwrap();
        let image = Resolved { reference: &reference, manifest: &manifest, index: Some(&index) };
        for digest in [&manifest, &index] {
            list(format!("host:5000/team/app@{digest}")).check(&image).unwrap();
            list(format!("docker://host:5000/team/app:2@{digest}")).check(&image).unwrap();
        }
        for other in [
            format!("host:5000/team/other@{manifest}"),
            format!("host:5001/team/app@{manifest}"),
            format!("host:5000/team/app@{}", Digest::sha256(b"x")),
        ] {
            let error = list(other.clone()).check(&image).unwrap_err().to_string();
            assert!(error.contains(&other), "{error}");
            assert!(error.contains(&format!("list it as host:5000/team/app@{index}")), "{error}");
        }
        let error = Allowed::parse(&[]).unwrap().check(&image).unwrap_err().to_string();
        assert!(error.contains("allows (none)"), "{error}");
    }

    #[test]
    fn a_tag_pins_nothing() {
        for text in ["host:5000/team/app:1", "host:5000/team/app", "", "@sha256:00"] {
            assert!(Allowed::parse(&[text.to_owned()]).is_err(), "{text}");
        }
    }
}
