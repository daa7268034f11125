//! The guest as its containers see it: what is behind the guest API (REST on `127.0.0.1:8006`, ttrpc on unix sockets).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use kata_cc_attester as attester;
use kata_cc_guest_api::volume::Volume;
use kata_cc_guest_api::{
    Features, Guest, GuestApi, GuestError, Measured, Settings, Token, rest, rpc, sealed,
};
use kata_cc_kbs_client::ServiceClient;
use kata_cc_kbs_protocol::ResourcePath;
use serde_json::Value;
use tracing::info;
use zeroize::Zeroizing;

use crate::confidential::{self, Broker};
use crate::gate::Gate;
use crate::image::Images;
use crate::measure::Measurements;
use crate::volume::Volumes;

/// Keys of those who sign sealed secrets, by file name (CoCo's folder).
const CREDENTIALS: &str = "/run/confidential-containers/cdh/sealed-secret";

/// Files that hold keys of volumes: `[[credentials]]` puts them there.
const KEY_FILES: &str = "/run/confidential-containers/cdh";

const NO_BROKER: GuestError = GuestError::NotSetUp("the init-data names no key broker");

/// The guest.
struct Confidential {
    tee: attester::Tee,
    broker: Option<Broker>,
    service: Option<ServiceClient>,
    measurements: Arc<Measurements>,
    images: Arc<Images>,
    init_data_field: Vec<u8>,
    policy: Arc<Gate>,
    volumes: Arc<Volumes>,
}

impl Confidential {
    fn broker(&self) -> Result<&Broker, GuestError> {
        self.broker.as_ref().ok_or(NO_BROKER)
    }
}

fn failed(error: impl std::fmt::Display) -> GuestError {
    GuestError::Failed(error.to_string())
}

#[async_trait]
impl Guest for Confidential {
    fn tee(&self) -> &str {
        self.tee.name()
    }

    fn init_data_field(&self) -> Option<&[u8]> {
        Some(&self.init_data_field)
    }

    async fn evidence(&self, report_data: [u8; 64]) -> Result<Value, GuestError> {
        let measured = self.measurements.snapshot().await.map_err(failed)?;
        attester::evidence_with(self.tee, report_data, measured).await.map_err(failed)
    }

    async fn token(&self) -> Result<Token, GuestError> {
        let broker = self.broker()?;
        let token = broker.token().await.map_err(failed)?;
        Ok(Token { token, key_pem: broker.key_pem().map_err(failed)? })
    }

    async fn service_token(&self) -> Result<Zeroizing<String>, GuestError> {
        let missing = "aa.toml of the init-data names no attestation service, [token_configs.coco_as]";
        let service = self.service.as_ref().ok_or(GuestError::NotSetUp(missing))?;
        service.token().await.map_err(failed)
    }

    async fn pull_image(&self, image: &str, bundle: &Path) -> Result<String, GuestError> {
        self.images.pull_to(image, bundle).await.map_err(failed)
    }

    async fn resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, GuestError> {
        self.broker()?.resource(&path.uri()).await.map_err(failed)
    }

    async fn may_mount(&self, volume: &Volume) -> Result<(), GuestError> {
        self.policy.check_volume(&volume.question()).await.map_err(failed)
    }

    async fn secure_mount(&self, volume: &Volume, key: Option<Zeroizing<Vec<u8>>>) -> Result<(), GuestError> {
        let mounted = self.volumes.mount(volume.clone(), key, None).await;
        mounted.map_err(|error| {
            tracing::error!(stage = "refused", by = "volume", reason = %error, "volume not mounted");
            failed(error)
        })
    }

    async fn record(&self, event: &attester::measure::Event) -> Result<Measured, GuestError> {
        self.measurements.asked(event).await
    }
}

/// The API, and what keeps its sockets open.
#[derive(Debug)]
pub(crate) struct Served {
    /// For the agent itself.
    pub(crate) api: Arc<GuestApi>,
    _sockets: rpc::Running,
}

/// What the API is made of.
pub(crate) struct Parts {
    /// The guest's TEE.
    pub(crate) tee: attester::Tee,
    /// The key broker, where there is one.
    pub(crate) broker: Option<Broker>,
    /// The attestation service, where there is one.
    pub(crate) service: Option<ServiceClient>,
    /// Register and log.
    pub(crate) measurements: Arc<Measurements>,
    /// Images.
    pub(crate) images: Arc<Images>,
    /// Who is asked about volumes.
    pub(crate) policy: Arc<Gate>,
    /// Volumes.
    pub(crate) volumes: Arc<Volumes>,
}

/// Serves the API of a confidential guest, as far as it is switched on.
pub(crate) async fn start(
    settings: &confidential::Settings,
    features: Features,
    parts: Parts,
) -> Result<Served> {
    let init_data_field = settings.launched.clone();
    let Parts { tee, broker, service, measurements, images, policy, volumes } = parts;
    let guest = Confidential { tee, broker, service, measurements, images, init_data_field, policy, volumes };
    let sealed = sealed::Settings {
        credentials: PathBuf::from(CREDENTIALS),
        allow_unsigned: settings.cdh.skip_sealed_secret_verification,
    };
    let api =
        Arc::new(GuestApi::new(Arc::new(guest), Settings { features, sealed, key_files: KEY_FILES.into() }));
    let sockets = rpc::start(&api, Path::new(rpc::AA_SOCKET), Path::new(rpc::CDH_SOCKET))
        .await
        .context("serve the guest API on its sockets")?;
    if features.attestation || features.resource {
        let listener = crate::net::listen_on_loopback(rest::PORT).context("listen for the REST API")?;
        tokio::spawn(rest::serve(listener, Arc::clone(&api)));
    }
    info!(features = features.name(), "guest API is served");
    Ok(Served { api, _sockets: sockets })
}

/// Tells which ways to evidence there are, and why not the others.
pub(crate) fn log_probe(confidential: bool) {
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    for found in attester::probe(&cmdline, Path::new("/")) {
        match confidential {
            true => info!(way = %found, "evidence"),
            false => tracing::debug!(way = %found, "evidence"),
        }
    }
}
