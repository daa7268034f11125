//! The guest as its containers see it: what is behind the guest API (REST on `127.0.0.1:8006`, ttrpc on unix sockets).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use kata_cc_attester as attester;
use kata_cc_guest_api::{
    Features, Guest, GuestApi, GuestError, Measured, Settings, Token, rest, rpc, sealed,
};
use kata_cc_kbs_protocol::ResourcePath;
use serde_json::Value;
use tracing::info;
use zeroize::Zeroizing;

use crate::confidential::{self, Broker};
use crate::measure::Measurements;

/// Keys of those who sign sealed secrets, by file name (CoCo's folder).
const CREDENTIALS: &str = "/run/confidential-containers/cdh/sealed-secret";

const NO_BROKER: GuestError = GuestError::NotSetUp("the init-data names no key broker");

/// The guest.
struct Confidential {
    tee: attester::Tee,
    broker: Option<Broker>,
    measurements: Arc<Measurements>,
    init_data_field: Vec<u8>,
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

    async fn resource(&self, path: &ResourcePath) -> Result<Zeroizing<Vec<u8>>, GuestError> {
        self.broker()?.resource(&path.uri()).await.map_err(failed)
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

/// Serves the API of a confidential guest, as far as it is switched on.
pub(crate) async fn start(
    settings: &confidential::Settings,
    features: Features,
    tee: attester::Tee,
    broker: Option<Broker>,
    measurements: Arc<Measurements>,
) -> Result<Served> {
    let init_data_field = settings.launched.clone();
    let guest = Confidential { tee, broker, measurements, init_data_field };
    let sealed = sealed::Settings {
        credentials: PathBuf::from(CREDENTIALS),
        allow_unsigned: settings.cdh.skip_sealed_secret_verification,
    };
    let api = Arc::new(GuestApi::new(Arc::new(guest), Settings { features, sealed }));
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
