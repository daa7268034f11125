//! Container images in a place that trusts neither the registry nor the network: pull, verify, decrypt, unpack.
//!
//! [`ImageClient::pull`] turns a reference into a root folder. Digests of manifest, configuration, layers and unpacked layers
//! are all checked; encrypted layers (ocicrypt) are decrypted with keys a [`KeyProvider`] opens, in the guest through the key
//! broker ([`BrokerKeys`]). `encrypt` makes such images, `decrypt` makes plain ones of them for who has the keys, `provider` lets programs of others
//! wrap keys, `inspect` tells what one is, `scratch` gives the guest
//! encrypted space to unpack onto.
//!
//! Which image an encrypted layer belongs to stands beside its wrapped key, and the guest may be told the only images that it
//! pulls (`pins`): a registry cannot put a layer or a program of its own beside layers that the guest opens.
//!
//! Which signatures an image must have says a policy ([`signature`]), checked before anything of the image is believed. Its signer may list the
//! hashes of the layers' chunks ([`chunks`]): then encrypted layers are decrypted while they still come.
//!
//! Limits: Linux images of OCI or Docker schema 2 form. What an encrypted image's layers hold is secret; its configuration and
//! manifest are not.

#![deny(unsafe_code)]

pub mod chunks;
pub mod crypto;
mod decrypt;
pub mod digest;
mod documents;
pub mod encrypt;
mod error;
pub mod inspect;
mod kept;
pub mod keys;
mod layer;
mod layers;
mod limits;
pub mod manifest;
pub mod media;
mod pins;
pub mod provider;
mod pull;
mod read_ahead;
mod referrers;
pub mod registry;
pub mod scratch;
pub mod signature;
mod store;
pub mod tier;
pub mod unpack;

pub use decrypt::{DecryptError, DecryptOptions, DecryptedImage, decrypt_image};
pub use documents::{Companions, Documents, DocumentsError, MAX_DOCUMENTS, collect_documents};
pub use encrypt::{EncryptError, EncryptOptions, EncryptedImage, LayerSelection, Recipient, encrypt_image};
pub use error::PullError;
pub use inspect::{Summary, inspect};
pub use kept::{KeptLayers, keep_layers};
pub use keys::{
    BrokerKeys, HeldKeys, KeyError, KeyPacket, KeyProvider, NoKeys, OpenError, SecretSource, open_any,
};
pub use layer::decompress;
pub use layers::{FetchedImage, LayersError, fetch_layers};
pub use limits::Limits;
pub use manifest::Platform;
pub use oci_spec::image::ImageConfiguration;
pub use pull::{
    ClientConfig, ExaminedImage, ImageClient, LayerInfo, OnProgress, Progress, PullTarget, PulledImage,
};
pub use referrers::attach;
pub use registry::{
    DockerAuth, DockerAuthConfig, Mirror, PullFromMirror, Registries, Registry, RegistryConfig,
    RegistryError, RegistryRule, Retry, parse_reference,
};
pub use scratch::{Scratch, ScratchError};
pub use signature::{SignatureError, SignaturePolicy, Verified};
pub use store::StoreError;
pub use tier::{RequiredTier, RunningTier, TierError, check_tier, required_tier};
