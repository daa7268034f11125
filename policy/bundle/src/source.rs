//! Where a service takes bundles from: a folder, which somebody else keeps up to date, or a reference in a registry; and what it demands of them.

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kata_cc_image::Registry;
use kata_cc_image::signature::{NoMaterial, SignaturePolicy};
use serde_json::json;

use crate::layout::SIGNATURE;
use crate::{Bundle, BundleError, artifact, folder, sign};

/// A source.
#[derive(Debug)]
pub enum Source {
    /// A folder: a Git checkout, a mounted ConfigMap.
    Folder {
        /// Which.
        path: PathBuf,
        /// Key (PEM) that its signature must be by; without one whoever can write there decides.
        key: Option<Vec<u8>>,
    },
    /// A reference in a registry.
    Reference {
        /// Which.
        reference: String,
        /// Whose signature it must have.
        signed: Arc<SignaturePolicy>,
        /// The client.
        registry: Arc<Registry>,
    },
}

/// What a source gave.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The bundle, signature checked where there must be one.
    pub bundle: Bundle,
    /// What whoever published it calls it: the revision of the artifact, or the version in the manifest.
    pub revision: Option<String>,
}

/// The demand that an artifact is signed by a key (PEM), in the repository that it is taken from.
///
/// # Errors
/// When the key cannot be used.
pub fn signed_by(key: &[u8]) -> Result<SignaturePolicy, BundleError> {
    // What the policy would find at each look is to be told at the start.
    kata_cc_image::signature::verifies(key, b"", b"")
        .map_err(|why| BundleError::Key(format!("the public key cannot be used: {why}")))?;
    let policy = json!({"default": [{"type": "sigstoreSigned", "keyData": STANDARD.encode(key),
        "signedIdentity": {"type": "matchRepository"}}]});
    SignaturePolicy::new(policy.to_string().as_bytes(), Arc::new(NoMaterial))
        .map_err(|error| BundleError::Key(error.to_string()))
}

impl Source {
    /// Whether what it has must be signed.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        match self {
            Self::Folder { key, .. } => key.is_some(),
            Self::Reference { .. } => true,
        }
    }

    /// Looks what is there.
    ///
    /// # Errors
    /// Why there is no bundle that counts.
    pub async fn fetch(&self) -> Result<Fetched, BundleError> {
        // Both on a thread of their own: reading files waits for a disk, and the future of a pull borrows across asynchronous closures,
        // which the compiler does not let be sent between threads.
        let work: Box<dyn FnOnce() -> Result<Fetched, BundleError> + Send> = match self {
            Self::Folder { path, key } => {
                let (path, key) = (path.clone(), key.clone());
                Box::new(move || from_folder(&path, key.as_deref()))
            }
            Self::Reference { reference, signed, registry } => {
                let (reference, runtime) = (reference.clone(), tokio::runtime::Handle::current());
                let (signed, registry) = (Arc::clone(signed), Arc::clone(registry));
                Box::new(move || {
                    let pulled = runtime.block_on(artifact::pull(&registry, &reference, Some(&signed)))?;
                    let revision = pulled.revision.or_else(|| pulled.bundle.manifest().version.clone());
                    Ok(Fetched { revision, bundle: pulled.bundle })
                })
            }
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| BundleError::Archive(error.to_string()))?
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder { path, .. } => write!(f, "{}", path.display()),
            Self::Reference { reference, .. } => f.write_str(reference),
        }
    }
}

/// Reads a folder; with a key, its signature must be there and good.
///
/// # Errors
/// See [`BundleError`].
pub fn from_folder(path: &std::path::Path, key: Option<&[u8]>) -> Result<Fetched, BundleError> {
    let folder = folder::read(path)?;
    let bundle = Bundle::from_files(folder.files)?;
    if let Some(key) = key {
        let named = path.display().to_string();
        let signature =
            folder.signature.ok_or_else(|| BundleError::Unsigned(named.clone(), SIGNATURE.to_owned()))?;
        sign::verify(&named, bundle.archive(), &signature, key)?;
    }
    Ok(Fetched { revision: bundle.manifest().version.clone(), bundle })
}
