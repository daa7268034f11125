//! Where signatures lie beside an image, and getting them.
//!
//! - cosign's and containers-image's place: a manifest under the tag `sha256-<hex>.sig`, whose layers are payloads with the signature as an
//!   annotation (cosign, `specs/SIGNATURE_SPEC.md`).
//! - OCI 1.1: referrers of the manifest (distribution-spec, "Listing Referrers"), or the tag `sha256-<hex>` where the registry has no such
//!   list. Their layers are payloads as above or Sigstore bundles.
//!
//! Everything here is untrusted. A signature that is too large, missing or broken is one that does not count ([`Form::Broken`]); only a
//! registry that fails is an error.

use std::collections::BTreeMap;

use oci_client::Reference;

use super::bundle::{BUNDLE, SIGNED};
use super::error::Reason;
use super::trust::Subject;
use crate::Limits;
use crate::digest::Digest;
use crate::manifest::{Descriptor, Document, Manifest};
use crate::referrers::{self, Referrer, Referrers, tag};
use crate::registry::{Registry, RegistryError};

const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const LOG_ENTRY: &str = "dev.sigstore.cosign/bundle";
const PREDICATE: &str = "dev.sigstore.bundle.predicateType";
/// Kinds of referrers that can be signatures. Some registries list the configuration's type in place of the artifact's.
const REFERRERS: [&str; 4] =
    [BUNDLE, "application/vnd.dev.cosign.artifact.sig.v1+json", "application/vnd.oci.empty.v1+json", ""];

/// A signature, and where it was found.
pub(super) struct Found {
    pub(super) place: String,
    pub(super) form: Form,
}

pub(super) enum Form {
    Attached(Box<Attached>),
    Bundle(Vec<u8>),
    Broken(Reason),
}

/// A payload and the annotations of its layer.
pub(super) struct Attached {
    pub(super) payload: Vec<u8>,
    pub(super) signature: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) chain: Option<String>,
    pub(super) bundle: Option<String>,
}

/// Gets the signatures of one image.
pub(super) struct Fetcher<'a> {
    registry: &'a Registry,
    reference: &'a Reference,
    limits: &'a Limits,
    found: Vec<Found>,
    /// Payloads by digest: signing again gives the same one.
    payloads: BTreeMap<String, Vec<u8>>,
}

/// Why the stream of a blob was left.
enum Stop {
    Registry(RegistryError),
    TooLong(u64),
}

impl From<RegistryError> for Stop {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

impl<'a> Fetcher<'a> {
    pub(super) fn new(registry: &'a Registry, reference: &'a Reference, limits: &'a Limits) -> Self {
        Self { registry, reference, limits, found: Vec::new(), payloads: BTreeMap::new() }
    }

    /// What was found so far.
    pub(super) fn found(&self) -> &[Found] {
        &self.found
    }

    /// Where signatures would be, for messages.
    pub(super) fn places(&self, subjects: &[Subject]) -> String {
        let tags: Vec<_> = subjects.iter().map(|one| tag(&one.digest, ".sig")).collect();
        let (host, repository) = (self.reference.registry(), self.reference.repository());
        format!("{host}/{repository}:{}, nor among the referrers", tags.join(" or :"))
    }

    /// Those under cosign's tags.
    pub(super) async fn tagged(&mut self, subjects: &[Subject]) -> Result<(), RegistryError> {
        for subject in subjects {
            let place = tag(&subject.digest, ".sig");
            let at = referrers::at_tag(self.reference, place.clone());
            if let Some(bytes) = self.manifest(&at).await? {
                self.manifest_layers(&place, &bytes).await?;
            }
        }
        Ok(())
    }

    /// Those among the referrers.
    pub(super) async fn referring(&mut self, subjects: &[Subject]) -> Result<(), RegistryError> {
        for subject in subjects {
            let max = self.limits.max_manifest_bytes;
            let listed = referrers::list(self.registry, self.reference, &subject.digest, max).await?;
            let Some(listed) = listed else { continue };
            let Ok(list) = serde_json::from_slice::<Referrers>(&listed) else {
                self.broken("list of referrers", Reason::malformed("list of referrers", "it is no index"));
                continue;
            };
            let fits = |one: &&Referrer| REFERRERS.contains(&one.artifact_type.as_str());
            let (max, seen) = (self.limits.max_signatures, list.manifests.iter().filter(fits).count());
            for referrer in list.manifests.iter().filter(fits).take(max) {
                self.referrer(referrer).await?;
            }
            if seen > max {
                let (max, seen) = (max as u64, seen as u64);
                self.broken("list of referrers", Reason::Limit { limit: "max_signatures", max, seen });
            }
        }
        Ok(())
    }

    async fn referrer(&mut self, referrer: &Referrer) -> Result<(), RegistryError> {
        let Ok(digest) = referrer.digest.parse::<Digest>() else {
            self.broken("referrer", Reason::malformed("list of referrers", "a digest in it is none"));
            return Ok(());
        };
        let at = self.reference.clone_with_digest(digest.to_string());
        match self.manifest(&at).await? {
            Some(bytes) => self.manifest_layers(&format!("referrer {digest}"), &bytes).await,
            None => Ok(()),
        }
    }

    /// A manifest, when there is one.
    async fn manifest(&self, at: &Reference) -> Result<Option<Vec<u8>>, RegistryError> {
        match self.registry.manifest(at, self.limits.max_manifest_bytes).await {
            Ok(raw) => Ok(Some(raw.bytes)),
            Err(RegistryError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn broken(&mut self, place: &str, reason: Reason) {
        self.found.push(Found { place: place.to_owned(), form: Form::Broken(reason) });
    }

    fn is_full(&self) -> bool {
        self.found.len() >= self.limits.max_signatures
    }

    async fn manifest_layers(&mut self, place: &str, bytes: &[u8]) -> Result<(), RegistryError> {
        let manifest: Manifest = match Document::parse(bytes) {
            Ok(Document::Image(manifest)) => manifest,
            Ok(Document::Index(_)) => {
                self.broken(place, Reason::malformed("manifest", "it is an index"));
                return Ok(());
            }
            Err(error) => {
                self.broken(place, Reason::malformed("manifest", error));
                return Ok(());
            }
        };
        // A hint of cosign's, and not under the signature: with it an attestation need not be fetched to be passed over.
        if manifest.annotations.get(PREDICATE).is_some_and(|kind| kind != SIGNED) {
            return Ok(());
        }
        for (number, layer) in manifest.layers.iter().enumerate() {
            if ![PAYLOAD, BUNDLE].contains(&layer.media_type.as_str()) {
                continue;
            }
            if self.is_full() {
                let max = self.limits.max_signatures as u64;
                self.broken(place, Reason::Limit { limit: "max_signatures", max, seen: max + 1 });
                return Ok(());
            }
            let form = self.layer(layer).await?;
            self.found.push(Found { place: format!("signature {number} of {place}"), form });
        }
        Ok(())
    }

    async fn layer(&mut self, layer: &Descriptor) -> Result<Form, RegistryError> {
        let bytes = match self.payloads.get(&layer.digest) {
            Some(bytes) => bytes.clone(),
            None => match self.blob(layer).await? {
                Ok(bytes) => {
                    self.payloads.insert(layer.digest.clone(), bytes.clone());
                    bytes
                }
                Err(reason) => return Ok(Form::Broken(reason)),
            },
        };
        if layer.media_type == BUNDLE {
            return Ok(Form::Bundle(bytes));
        }
        let annotation = |name: &str| layer.annotations.get(name).filter(|text| !text.is_empty()).cloned();
        Ok(Form::Attached(Box::new(Attached {
            payload: bytes,
            signature: annotation(SIGNATURE),
            certificate: annotation(CERTIFICATE),
            chain: annotation(CHAIN),
            bundle: annotation(LOG_ENTRY),
        })))
    }

    /// A blob, digest and size checked; or why it does not count.
    async fn blob(&self, descriptor: &Descriptor) -> Result<Result<Vec<u8>, Reason>, RegistryError> {
        let max = self.limits.max_signature_bytes;
        let too_long = |seen| Ok(Err(Reason::Limit { limit: "max_signature_bytes", max, seen }));
        let Ok(digest) = descriptor.digest() else {
            return Ok(Err(Reason::malformed("manifest", "the digest of its payload is none")));
        };
        if descriptor.size > max {
            return too_long(descriptor.size);
        }
        let mut bytes = Vec::new();
        let read = self.registry.blob::<Stop>(self.reference, &digest, async |piece| {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > max { Err(Stop::TooLong(bytes.len() as u64)) } else { Ok(()) }
        });
        match read.await {
            Ok(()) => {}
            Err(Stop::TooLong(seen)) => return too_long(seen),
            Err(Stop::Registry(RegistryError::NotFound { .. })) => {
                return Ok(Err(Reason::malformed("payload", "the registry does not have it")));
            }
            Err(Stop::Registry(error)) => return Err(error),
        }
        let seen = digest.of_same_kind(&bytes);
        if seen == digest {
            return Ok(Ok(bytes));
        }
        Ok(Err(Reason::malformed("payload", format!("it was changed: expected {digest}, got {seen}"))))
    }
}
