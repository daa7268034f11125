//! What the APIs need of the guest.

use std::path::Path;

use async_trait::async_trait;
use kata_cc_attester::measure::Event;
use kata_cc_kbs_protocol::ResourcePath;
use serde_json::Value;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::volume::Volume;

/// Why the guest cannot do something.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum GuestError {
    /// The guest was not set up for it.
    #[error("not set up in this guest: {0}")]
    NotSetUp(&'static str),
    /// What was given is out of form.
    #[error("{0}")]
    Input(String),
    /// It was tried and refused, or failed.
    #[error("{0}")]
    Failed(String),
}

/// A token and the key to which the key broker encrypts for its holder.
pub struct Token {
    /// The JWT.
    pub token: Zeroizing<String>,
    /// PEM of the private key.
    pub key_pem: Zeroizing<String>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// It is in register and log.
    Recorded,
    /// This guest's TEE, or its kernel, has no such register.
    NotSupported,
    /// The guest's configuration does not ask for runtime measurements.
    NotEnabled,
}

impl Measured {
    /// Name of the result in the attestation agent's protocol.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Recorded => "OK",
            Self::NotSupported => "NOT_SUPPORTED",
            Self::NotEnabled => "NOT_ENABLED",
        }
    }
}

/// The guest, as the APIs see it.
#[async_trait]
pub trait Guest: Send + Sync + 'static {
    /// Name of its TEE.
    fn tee(&self) -> &str;

    /// Names of the TEEs of its devices.
    fn additional_tees(&self) -> Vec<String> {
        Vec::new()
    }

    /// The field of the launch that holds the digest of the init-data; `None` when it is not known.
    fn init_data_field(&self) -> Option<&[u8]> {
        None
    }

    /// Evidence that holds `report_data`.
    async fn evidence(&self, report_data: [u8; 64]) -> Result<Value, GuestError>;

    /// Evidence of devices that holds `report_data`: an object from TEE name to evidence.
    async fn additional_evidence(&self, report_data: [u8; 64]) -> Result<Option<Value>, GuestError> {
        let _ = report_data;
        Ok(None)
    }

    /// The key broker's token.
    async fn token(&self) -> Result<Token, GuestError>;

    /// A token of the attestation service (`coco_as`), where there is one.
    async fn service_token(&self) -> Result<Zeroizing<String>, GuestError> {
        Err(GuestError::NotSetUp(
            "aa.toml of the init-data names no attestation service, [token_configs.coco_as]",
        ))
    }

    /// Pulls an image to the folder `rootfs` below `bundle`; gives the digest of its manifest.
    async fn pull_image(&self, image: &str, bundle: &Path) -> Result<String, GuestError> {
        let _ = (image, bundle);
        Err(GuestError::NotSetUp("images"))
    }

    /// Whether the agent policy lets a volume be mounted.
    async fn may_mount(&self, volume: &Volume) -> Result<(), GuestError> {
        let _ = volume;
        Err(GuestError::NotSetUp("volumes"))
    }

    /// Opens or makes a volume, with `key` or a random one, and puts it to its place. [`Self::may_mount`] was asked.
    async fn secure_mount(&self, volume: &Volume, key: Option<Zeroizing<Vec<u8>>>) -> Result<(), GuestError> {
        let _ = (volume, key);
        Err(GuestError::NotSetUp("volumes"))
    }

    /// A resource of the key broker.
    async fn resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, GuestError>;

    /// Records an event that somebody in the guest asks for.
    async fn record(&self, event: &Event) -> Result<Measured, GuestError>;
}
