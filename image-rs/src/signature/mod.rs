//! Signatures of images: whether those that an image has are those that a policy demands.
//!
//! The policy is a `policy.json` of containers-image ([`Policy`]), read strictly; its keys stand in it or are fetched by
//! [`KeyMaterial`], in a guest from the key broker. Signatures are cosign's, under its tag or as OCI referrers, keyed or by certificates of
//! Fulcio with the log's signed timestamp (`docs/image-signatures.md` says which forms, and what each refusal means). Nobody is asked
//! but the registry: roots and the log's keys are pinned by the policy, and no clock is read.
//!
//! All requirements of the one scope that holds must be met, each by any one signature. A signature counts when it names the digest of the
//! manifest that is pulled, as in containers-image, or that of the index through which the reference led to it, as in cosign: the signed
//! index names the manifest by digest, and which of its entries is taken is decided here.
//!
//! Not supported, and refused by name: `signedBy` (OpenPGP needs a second crypto stack), `pki` (needs a clock that a guest can trust).

mod bundle;
mod certificate;
mod error;
mod fetch;
mod identity;
mod json;
mod key;
mod material;
mod payload;
mod policy;
mod rekor;
mod requirement;
mod trust;

#[cfg(test)]
mod test_utils;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use oci_client::Reference;
use serde::Serialize;

pub use self::bundle::{Bundle, Statement};
pub use self::error::{PolicyError, Reason, Refusal, Rejected, SignatureError};
use self::fetch::{Fetcher, Found};
pub use self::identity::{Named, SignedIdentity};
pub use self::material::{BrokerMaterial, FileMaterial, KeyMaterial, MaterialError, NoMaterial};
pub use self::payload::SimpleSigning;
pub use self::policy::{MAX_POLICY, Policy, Scope};
pub use self::rekor::Entry;
pub use self::requirement::{Requirement, SigstoreSigned};
pub(crate) use self::trust::Subject;
use self::trust::{Image, Trust};
use crate::Limits;
use crate::digest::Digest;
use crate::registry::{Registry, RegistryError};

/// A policy, and where its keys come from.
#[derive(Clone)]
pub struct SignaturePolicy {
    policy: Policy,
    material: Arc<dyn KeyMaterial>,
}

impl fmt::Debug for SignaturePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignaturePolicy").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// Whether `signature` over `message` is by the public key `pem`, of one of the kinds that images' signatures are by.
///
/// # Errors
/// Why the key cannot be used.
pub fn verifies(pem: &[u8], message: &[u8], signature: &[u8]) -> Result<bool, String> {
    Ok(key::PublicKey::from_pem(pem)?.verifies(message, signature))
}

/// An image that the policy lets pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The scope of the policy that holds for it.
    pub scope: String,
    /// The signature that satisfied each requirement: where it was found. Empty when the scope demands none.
    pub signatures: Vec<String>,
}

impl SignaturePolicy {
    /// Reads a policy. Its keys are fetched when an image comes under a scope that names them.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn new(text: &[u8], material: Arc<dyn KeyMaterial>) -> Result<Self, PolicyError> {
        Ok(Self { policy: Policy::parse(text)?, material })
    }

    /// Checks the signatures of an artifact that is no image: its manifest, whose digest was checked.
    ///
    /// # Errors
    /// See [`SignatureError`].
    pub async fn verify_artifact(
        &self,
        registry: &Registry,
        limits: &Limits,
        reference: &Reference,
        digest: &Digest,
        manifest: &[u8],
    ) -> Result<Verified, SignatureError> {
        let subject = Subject { digest: digest.clone(), bytes: manifest.to_vec() };
        self.check(registry, limits, reference, &[subject]).await
    }

    /// Checks the signatures of an image: `subjects` are its manifest and, where there was one, its index.
    pub(crate) async fn check(
        &self,
        registry: &Registry,
        limits: &Limits,
        reference: &Reference,
        subjects: &[Subject],
    ) -> Result<Verified, SignatureError> {
        let named = Named::of(reference);
        let (scope, requirements) = self.policy.requirements(&named);
        let case = Case { reference, scope: scope.to_string(), requirements, subjects };
        let trusts = case.trusts(&*self.material).await?;
        if trusts.is_empty() {
            return Ok(Verified { scope: case.scope, signatures: Vec::new() });
        }
        let image = Image { named: &named, subjects };
        let failed = |source| SignatureError::Registry { image: reference.to_string(), source };
        let mut fetcher = Fetcher::new(registry, reference, limits);
        fetcher.tagged(subjects).await.map_err(failed)?;
        if let Ok(verified) = case.judge(&trusts, &image, &fetcher) {
            return Ok(verified);
        }
        fetcher.referring(subjects).await.map_err(failed)?;
        case.judge(&trusts, &image, &fetcher)
    }
}

/// Gets all signatures of the manifests with these digests, and judges none.
pub(crate) async fn fetch_signatures(
    registry: &Registry,
    limits: &Limits,
    reference: &Reference,
    digests: impl IntoIterator<Item = &Digest>,
) -> Result<(), RegistryError> {
    let subject = |digest: &Digest| Subject { digest: digest.clone(), bytes: Vec::new() };
    let subjects: Vec<_> = digests.into_iter().map(subject).collect();
    let mut fetcher = Fetcher::new(registry, reference, limits);
    fetcher.tagged(&subjects).await?;
    fetcher.referring(&subjects).await
}

/// One image under one scope.
struct Case<'a> {
    reference: &'a Reference,
    scope: String,
    requirements: &'a [Requirement],
    subjects: &'a [Subject],
}

impl Case<'_> {
    fn refusal(&self, requirement: usize, reasons: Vec<Rejected>) -> SignatureError {
        let digest = self.subjects.first().map(|one| one.digest.to_string());
        SignatureError::Refused(Box::new(Refusal {
            image: self.reference.to_string(),
            digest: digest.unwrap_or_default(),
            scope: self.scope.clone(),
            requirement,
            kind: self.requirements.get(requirement).map_or("", Requirement::kind),
            reasons,
        }))
    }

    /// The requirements that signatures can meet, by number, with their keys; refused when there is one that nothing meets.
    async fn trusts(&self, material: &dyn KeyMaterial) -> Result<Vec<(usize, Trust)>, SignatureError> {
        let mut trusts = Vec::new();
        for (number, requirement) in self.requirements.iter().enumerate() {
            let refuse =
                |reason| Err(self.refusal(number, vec![Rejected { signature: String::new(), reason }]));
            match requirement {
                Requirement::AcceptAnything => {}
                Requirement::Reject => return refuse(Reason::ScopeRejects),
                Requirement::SignedBy => {
                    let why = "OpenPGP signatures need a crypto library besides the one that the guest has";
                    return refuse(Reason::Unsupported { name: "signedBy", why });
                }
                Requirement::SignedByPki => {
                    let why = "whether such a certificate has expired is a question of time, and a guest has no trusted clock";
                    return refuse(Reason::Unsupported { name: "sigstoreSigned with pki", why });
                }
                Requirement::Sigstore(wanted) => {
                    let trust = Trust::load(wanted, material).await.map_err(|(name, why, what_to_do)| {
                        let (image, scope) = (self.reference.to_string(), self.scope.clone());
                        SignatureError::Material { image, scope, name, why, what_to_do }
                    })?;
                    trusts.push((number, trust));
                }
            }
        }
        Ok(trusts)
    }

    /// Every requirement needs one signature; which, is told.
    fn judge(
        &self,
        trusts: &[(usize, Trust)],
        image: &Image<'_>,
        fetcher: &Fetcher<'_>,
    ) -> Result<Verified, SignatureError> {
        let mut signatures = Vec::new();
        for (number, trust) in trusts {
            let mut reasons = Vec::new();
            let good = fetcher.found().iter().find(|Found { place, form }| match trust.check(image, form) {
                Ok(()) => true,
                Err(reason) => {
                    reasons.push(Rejected { signature: place.clone(), reason });
                    false
                }
            });
            let Some(good) = good else {
                if reasons.is_empty() {
                    let reason = Reason::Unsigned { looked_at: fetcher.places(self.subjects) };
                    reasons.push(Rejected { signature: String::new(), reason });
                }
                return Err(self.refusal(*number, reasons));
            };
            signatures.push(good.place.clone());
        }
        Ok(Verified { scope: self.scope.clone(), signatures })
    }
}
