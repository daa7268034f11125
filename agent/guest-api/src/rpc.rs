//! ttrpc for programs made for CoCo: the attestation agent's service on one socket, the confidential data hub's on another.
//!
//! The sockets are root's (folders 0700, sockets 0600) and lie in the guest's own `/run`: a container sees them only when its
//! guest's policy lets them be mounted. Errors have CoCo's form: code INTERNAL and `[CDH] [ERROR]: …`.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use kata_cc_guest_protocol::attestation_agent::{self as aa, RuntimeMeasurementResult};
use kata_cc_guest_protocol::attestation_agent_ttrpc::{
    AttestationAgentService, create_attestation_agent_service,
};
use kata_cc_guest_protocol::keyprovider_ttrpc::{KeyProviderService, create_key_provider_service};
use kata_cc_guest_protocol::{api, api_ttrpc, keyprovider};
use ttrpc::r#async::{Server, TtrpcContext};

use crate::api::{ApiError, GuestApi};
use crate::guest::Measured;

/// Socket of the attestation agent.
pub const AA_SOCKET: &str = "/run/confidential-containers/attestation-agent/attestation-agent.sock";
/// Socket of the confidential data hub.
pub const CDH_SOCKET: &str = "/run/confidential-containers/cdh.sock";

type Result<T> = ttrpc::Result<T>;

fn failed(code: ttrpc::Code, message: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}

/// Code of an error, CoCo's INTERNAL for all but the limits, which say that they pass.
fn code(error: &ApiError) -> ttrpc::Code {
    match error {
        ApiError::Busy => ttrpc::Code::RESOURCE_EXHAUSTED,
        _ => ttrpc::Code::INTERNAL,
    }
}

fn by_aa(error: ApiError) -> ttrpc::Error {
    failed(code(&error), format!("[ERROR:attestation-agent] {error}"))
}

fn by_cdh(error: ApiError) -> ttrpc::Error {
    failed(code(&error), format!("[CDH] [ERROR]: {error}"))
}

struct Services(Arc<GuestApi>);

#[async_trait]
impl AttestationAgentService for Services {
    async fn get_evidence(
        &self,
        _: &TtrpcContext,
        request: aa::GetEvidenceRequest,
    ) -> Result<aa::GetEvidenceResponse> {
        let mut answer = aa::GetEvidenceResponse::new();
        answer.Evidence = self.0.evidence(&request.RuntimeData).await.map_err(by_aa)?;
        Ok(answer)
    }

    async fn get_additional_evidence(
        &self,
        _: &TtrpcContext,
        request: aa::GetAdditionalEvidenceRequest,
    ) -> Result<aa::GetEvidenceResponse> {
        let mut answer = aa::GetEvidenceResponse::new();
        answer.Evidence = self.0.additional_evidence(&request.RuntimeData).await.map_err(by_aa)?;
        Ok(answer)
    }

    async fn get_token(
        &self,
        _: &TtrpcContext,
        request: aa::GetTokenRequest,
    ) -> Result<aa::GetTokenResponse> {
        let mut answer = aa::GetTokenResponse::new();
        answer.Token = self.0.token(&request.TokenType).await.map_err(by_aa)?.to_vec();
        Ok(answer)
    }

    async fn extend_runtime_measurement(
        &self,
        _: &TtrpcContext,
        request: aa::ExtendRuntimeMeasurementRequest,
    ) -> Result<aa::ExtendRuntimeMeasurementResponse> {
        let (domain, operation, content) = (&request.Domain, &request.Operation, &request.Content);
        // There is one register for what happens at run time: another could not be kept apart in the log.
        if request.RegisterIndex.is_some_and(|index| index != 17) {
            let why = "register index: events go to PCR 17 (RTMR3 on TDX) alone";
            return Err(by_aa(ApiError::Unsupported(why)));
        }
        let recorded = self.0.record(domain, operation, content).await.map_err(by_aa)?;
        let mut answer = aa::ExtendRuntimeMeasurementResponse::new();
        let result = match recorded {
            Measured::Recorded => RuntimeMeasurementResult::OK,
            Measured::NotSupported => RuntimeMeasurementResult::NOT_SUPPORTED,
            Measured::NotEnabled => RuntimeMeasurementResult::NOT_ENABLED,
        };
        answer.Result = result.into();
        Ok(answer)
    }

    async fn bind_init_data(
        &self,
        _: &TtrpcContext,
        request: aa::BindInitDataRequest,
    ) -> Result<aa::BindInitDataResponse> {
        self.0.bind_init_data(&request.Digest).map_err(by_aa)?;
        Ok(aa::BindInitDataResponse::new())
    }

    async fn get_tee_type(
        &self,
        _: &TtrpcContext,
        _: aa::GetTeeTypeRequest,
    ) -> Result<aa::GetTeeTypeResponse> {
        let mut answer = aa::GetTeeTypeResponse::new();
        answer.tee = self.0.tee().to_owned();
        Ok(answer)
    }

    async fn get_additional_tees(
        &self,
        _: &TtrpcContext,
        _: aa::GetAdditionalTeesRequest,
    ) -> Result<aa::GetAdditionalTeesResponse> {
        let mut answer = aa::GetAdditionalTeesResponse::new();
        answer.additional_tees = self.0.additional_tees();
        Ok(answer)
    }
}

#[async_trait]
impl api_ttrpc::SealedSecretService for Services {
    async fn unseal_secret(
        &self,
        _: &TtrpcContext,
        request: api::UnsealSecretInput,
    ) -> Result<api::UnsealSecretOutput> {
        let mut answer = api::UnsealSecretOutput::new();
        answer.plaintext = self.0.unseal(&request.secret).await.map_err(by_cdh)?.to_vec();
        Ok(answer)
    }
}

#[async_trait]
impl api_ttrpc::GetResourceService for Services {
    async fn get_resource(
        &self,
        _: &TtrpcContext,
        request: api::GetResourceRequest,
    ) -> Result<api::GetResourceResponse> {
        let mut answer = api::GetResourceResponse::new();
        answer.Resource = self.0.resource(&request.ResourcePath).await.map_err(by_cdh)?.to_vec();
        Ok(answer)
    }
}

#[async_trait]
impl api_ttrpc::SecureMountService for Services {
    async fn secure_mount(
        &self,
        _: &TtrpcContext,
        request: api::SecureMountRequest,
    ) -> Result<api::SecureMountResponse> {
        let (kind, options) = (&request.volume_type, &request.options);
        let mounted = self.0.secure_mount(kind, options, &request.flags, &request.mount_point).await;
        mounted.map_err(by_cdh)?;
        Ok(api::SecureMountResponse::new())
    }
}

#[async_trait]
impl api_ttrpc::ImagePullService for Services {
    async fn pull_image(
        &self,
        _: &TtrpcContext,
        request: api::ImagePullRequest,
    ) -> Result<api::ImagePullResponse> {
        let mut answer = api::ImagePullResponse::new();
        let (image, bundle) = (&request.image_url, &request.bundle_path);
        answer.manifest_digest = self.0.pull_image(image, bundle).await.map_err(by_cdh)?;
        Ok(answer)
    }
}

type KeyInput = keyprovider::KeyProviderKeyWrapProtocolInput;
type KeyOutput = keyprovider::KeyProviderKeyWrapProtocolOutput;

#[async_trait]
impl KeyProviderService for Services {
    async fn wrap_key(&self, _: &TtrpcContext, request: KeyInput) -> Result<KeyOutput> {
        let mut answer = KeyOutput::new();
        let input = &request.KeyProviderKeyWrapProtocolInput;
        answer.KeyProviderKeyWrapProtocolOutput = self.0.wrap_key(input).await.map_err(by_cdh)?.to_vec();
        Ok(answer)
    }

    async fn un_wrap_key(&self, _: &TtrpcContext, request: KeyInput) -> Result<KeyOutput> {
        let mut answer = KeyOutput::new();
        let input = &request.KeyProviderKeyWrapProtocolInput;
        answer.KeyProviderKeyWrapProtocolOutput = self.0.unwrap_key(input).await.map_err(by_cdh)?.to_vec();
        Ok(answer)
    }
}

/// Makes the folder of a socket and removes what a former process left there.
fn address(socket: &Path) -> io::Result<String> {
    if let Some(folder) = socket.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let text = socket.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(format!("unix://{text}"))
}

/// The servers: to be kept for as long as they are to answer.
pub struct Running {
    _servers: Vec<Server>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Running(..)")
    }
}

/// Serves what is switched on: the attestation agent on `aa`, the confidential data hub on `cdh`.
///
/// # Errors
/// When a socket cannot be made.
pub async fn start(api: &Arc<GuestApi>, aa: &Path, cdh: &Path) -> io::Result<Running> {
    let services = || Arc::new(Services(Arc::clone(api)));
    let mut servers = Vec::new();
    if api.features().attestation {
        let server = Server::new().register_service(create_attestation_agent_service(services()));
        servers.push((server, aa));
    }
    if api.features().resource {
        let server = Server::new()
            .register_service(api_ttrpc::create_sealed_secret_service(services()))
            .register_service(api_ttrpc::create_get_resource_service(services()))
            .register_service(api_ttrpc::create_secure_mount_service(services()))
            .register_service(api_ttrpc::create_image_pull_service(services()))
            .register_service(create_key_provider_service(services()));
        servers.push((server, cdh));
    }
    let mut running = Vec::new();
    for (server, socket) in servers {
        let other = |error: ttrpc::Error| io::Error::other(error.to_string());
        let mut server = server.bind(&address(socket)?).map_err(other)?;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
        server.start().await.map_err(other)?;
        running.push(server);
    }
    Ok(Running { _servers: running })
}
