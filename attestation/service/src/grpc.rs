//! gRPC interface: Trustee's `attestation` and `reference` services, and gRPC's health checks.
//!
//! As with Trustee, every failure is status ABORTED with the text of the error (health: what its protocol says); a missing or wrong
//! administrator's token is UNAUTHENTICATED. The token is in the metadata `authorization`. Messages are limited to [`MAX_BODY`].

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use kata_cc_causes::causes;
use kata_cc_grpc_protocol::attestation::attestation_service_server::{
    AttestationService as Attestation, AttestationServiceServer,
};
use kata_cc_grpc_protocol::attestation::individual_attestation_request::{InitData, RuntimeData};
use kata_cc_grpc_protocol::attestation::{
    AttestationRequest, AttestationResponse, ChallengeRequest, ChallengeResponse,
    IndividualAttestationRequest, SetPolicyRequest, SetPolicyResponse,
};
use kata_cc_grpc_protocol::health::health_check_response::ServingStatus;
use kata_cc_grpc_protocol::health::health_server::{Health, HealthServer};
use kata_cc_grpc_protocol::health::{HealthCheckRequest, HealthCheckResponse};
use kata_cc_grpc_protocol::reference::reference_value_provider_service_server::{
    ReferenceValueProviderService, ReferenceValueProviderServiceServer,
};
use kata_cc_grpc_protocol::reference::{
    ReferenceValueQueryRequest, ReferenceValueQueryResponse, ReferenceValueRegisterRequest,
    ReferenceValueRegisterResponse,
};
use kata_cc_kbs_protocol::service::{InitDataInput, RuntimeDataInput};
use kata_cc_kbs_protocol::{MAX_BODY, Tee};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::api::{self, Api};
use crate::problem::Problem;
use crate::service::{Evaluate, ServiceError};

/// Services of the port, by their full names.
const SERVICES: [&str; 3] = ["", "attestation.AttestationService", "reference.ReferenceValueProviderService"];

/// The three services.
#[derive(Debug, Clone)]
pub struct Grpc {
    api: Arc<Api>,
}

/// All services, to be served.
pub fn services(api: Arc<Api>) -> tonic::service::Routes {
    let grpc = Grpc { api };
    let limit = MAX_BODY;
    tonic::service::Routes::new(AttestationServiceServer::new(grpc.clone()).max_decoding_message_size(limit))
        .add_service(ReferenceValueProviderServiceServer::new(grpc.clone()).max_decoding_message_size(limit))
        .add_service(HealthServer::new(grpc).max_decoding_message_size(4096))
}

fn aborted(error: &ServiceError) -> Status {
    match error {
        ServiceError::Admin(_) | ServiceError::Source(crate::sources::SourceError::Unsigned(_)) => {
            Status::unauthenticated(error.to_string())
        }
        // A status is a header of the answer.
        _ => Status::aborted(causes(error).chars().take(2000).collect::<String>()),
    }
}

fn refused(problem: Problem) -> Status {
    Status::aborted(problem.detail)
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    crate::gate::bearer_of(metadata.get("authorization")?.to_str().ok()?)
}

impl Grpc {
    async fn timed<T>(
        &self,
        method: &'static str,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let start = std::time::Instant::now();
        let id = uuid::Uuid::new_v4().simple().to_string();
        let work = crate::problem::CURRENT_REQUEST.scope(id, work);
        let answer = match tokio::time::timeout(self.api.request_time, work).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("the request took too long")),
        };
        let code = answer.as_ref().err().map_or(0, |status| status.code() as u16);
        self.api.metrics.request(method, code, start.elapsed());
        answer.map(Response::new)
    }
}

fn evaluation(one: &IndividualAttestationRequest, policy_id: String) -> Result<Evaluate, Problem> {
    let tee: Tee = serde_json::from_value(serde_json::Value::String(one.tee.clone()))
        .map_err(|e| Problem::request("tee", format!("tee: {e}")))?;
    let runtime_data = match &one.runtime_data {
        None => None,
        Some(RuntimeData::RawRuntimeData(text)) => Some(RuntimeDataInput::Raw(text.clone())),
        Some(RuntimeData::StructuredRuntimeData(text)) => {
            let value = serde_json::from_str(text).map_err(|e| {
                Problem::request(
                    "structured_runtime_data",
                    format!("structured_runtime_data is not JSON: {e}"),
                )
            })?;
            Some(RuntimeDataInput::Structured(value))
        }
    };
    let init_data = match &one.init_data {
        None => None,
        Some(InitData::InitDataDigest(text)) => Some(InitDataInput::InitDataDigest(text.clone())),
        Some(InitData::InitDataToml(text)) => Some(InitDataInput::InitDataToml(text.clone())),
    };
    Ok(Evaluate {
        tee,
        evidence: api::evidence(&one.evidence)?,
        binding: api::binding(runtime_data.as_ref())?,
        hash: api::hash(Some(&one.runtime_data_hash_algorithm))?,
        init_data: api::init_data(init_data.as_ref())?,
        policy_id,
    })
}

#[tonic::async_trait]
impl Attestation for Grpc {
    async fn attestation_evaluate(
        &self,
        request: Request<AttestationRequest>,
    ) -> Result<Response<AttestationResponse>, Status> {
        let request = request.into_inner();
        let work = async {
            let policy_id = request.policy_ids.first().map_or("", String::as_str);
            let pieces: Vec<_> = request
                .verification_requests
                .iter()
                .map(|one| evaluation(one, policy_id.to_owned()))
                .collect::<Result<_, _>>()
                .map_err(refused)?;
            let verdict = self.api.evaluate(&pieces).await.map_err(|e| aborted(&e))?;
            Ok(AttestationResponse { attestation_token: verdict.token })
        };
        self.timed("AttestationEvaluate", work).await
    }

    async fn set_attestation_policy(
        &self,
        request: Request<SetPolicyRequest>,
    ) -> Result<Response<SetPolicyResponse>, Status> {
        let work = async {
            let who = self.api.admin(bearer(request.metadata()), "set_policy").map_err(|e| aborted(&e))?;
            let policy = request.get_ref();
            let text = api::policy_text(&policy.policy).map_err(refused)?;
            self.api.service.set_policy_by(&policy.policy_id, &text, &who).await.map_err(|e| aborted(&e))?;
            Ok(SetPolicyResponse {})
        };
        self.timed("SetAttestationPolicy", work).await
    }

    async fn get_attestation_challenge(
        &self,
        request: Request<ChallengeRequest>,
    ) -> Result<Response<ChallengeResponse>, Status> {
        let work = async {
            if !request.get_ref().inner.contains_key("tee") {
                return Err(Status::aborted("the request names no tee"));
            }
            let (attestation_challenge, _) =
                self.api.challenges.give(crate::now()).map_err(|e| Status::aborted(e.to_string()))?;
            Ok(ChallengeResponse { attestation_challenge })
        };
        self.timed("GetAttestationChallenge", work).await
    }
}

#[tonic::async_trait]
impl ReferenceValueProviderService for Grpc {
    async fn query_reference_value(
        &self,
        request: Request<ReferenceValueQueryRequest>,
    ) -> Result<Response<ReferenceValueQueryResponse>, Status> {
        let work = async {
            let values = self.api.service.reference_values().await.map_err(|e| aborted(&e))?;
            let value = values.get(&request.get_ref().reference_value_id);
            Ok(ReferenceValueQueryResponse { reference_value_results: value.map(ToString::to_string) })
        };
        self.timed("QueryReferenceValue", work).await
    }

    async fn register_reference_value(
        &self,
        request: Request<ReferenceValueRegisterRequest>,
    ) -> Result<Response<ReferenceValueRegisterResponse>, Status> {
        let work = async {
            let message = request.get_ref().message.as_bytes();
            let signed = serde_json::from_slice::<serde_json::Value>(message)
                .is_ok_and(|message| message["type"] == "signed");
            let who = if signed {
                None
            } else {
                let who = self.api.admin(bearer(request.metadata()), "set_reference_values");
                Some(who.map_err(|e| aborted(&e))?)
            };
            let (service, now) = (&self.api.service, crate::now());
            let registration = self
                .api
                .trusted_sources()
                .read(message, who.as_deref(), service.default_expiry(now), now)
                .map_err(|e| aborted(&e.into()))?;
            service.register(&registration).await.map_err(|e| aborted(&e))?;
            Ok(ReferenceValueRegisterResponse {})
        };
        self.timed("RegisterReferenceValue", work).await
    }
}

#[tonic::async_trait]
impl Health for Grpc {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !SERVICES.contains(&request.get_ref().service.as_str()) {
            return Err(Status::not_found("there is no such service"));
        }
        let status = match self.api.service.ready().await {
            Ok(()) => ServingStatus::Serving,
            Err(_) => ServingStatus::NotServing,
        };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        // A stream that never ends would hold its connection at the end of the service; who asks often is told as much.
        drop(request);
        Err(Status::unimplemented("only Check is offered"))
    }
}
