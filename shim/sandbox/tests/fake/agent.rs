//! Stands in for the guest's agent, in the test's own process: notes what it is asked, and at a chosen moment kills the
//! monitor and never answers, as a guest whose monitor dies does.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use kata_cc_agent_protocol::agent as api;
use kata_cc_agent_protocol::agent_ttrpc::{AgentService, create_agent_service};
use kata_cc_agent_protocol::health::{CheckRequest, HealthCheckResponse};
use kata_cc_agent_protocol::health_ttrpc::{Health, create_health};
use kata_cc_agent_protocol::types;
use protobuf::well_known_types::empty::Empty;
use ttrpc::Result;
use ttrpc::r#async::{Server, TtrpcContext};

use super::World;

/// A moment of a start, named by the call that the agent gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Health,
    CreateSandbox,
    CreateContainer,
    StartContainer,
    Wait,
}

/// What a read of an output answers.
#[derive(Clone, Debug)]
pub(crate) enum Read {
    Data(&'static str),
    Error(ttrpc::Code, &'static str),
}

#[derive(Debug, Default)]
pub(crate) struct Agent {
    /// When the monitor is killed.
    pub(crate) kill: Option<At>,
    pub(crate) interfaces: Mutex<Vec<types::Interface>>,
    pub(crate) copied: Mutex<Vec<api::CopyFileRequest>>,
    /// Answers of coming reads; then the end.
    pub(crate) reads: Mutex<Vec<Read>>,
}

impl Agent {
    /// Serve at the world's socket until the server is dropped.
    pub(crate) async fn serve(self: &Arc<Self>) -> Server {
        let agent: Arc<dyn AgentService + Send + Sync> = Arc::new(Service(Arc::clone(self)));
        let health: Arc<dyn Health + Send + Sync> = Arc::new(Service(Arc::clone(self)));
        let mut server = Server::new()
            .bind(&format!("unix://{}", World::agent().display()))
            .unwrap()
            .register_service(create_agent_service(agent))
            .register_service(create_health(health));
        server.start().await.unwrap();
        server
    }
}

struct Service(Arc<Agent>);

impl Service {
    async fn reached(&self, at: At) {
        if self.0.kill == Some(at) {
            World::kill_monitor();
            std::future::pending::<()>().await;
        }
    }

    fn read(&self) -> Result<api::ReadStreamResponse> {
        let mut reads = self.0.reads.lock().unwrap();
        let mut answer = api::ReadStreamResponse::new();
        if !reads.is_empty() {
            match reads.remove(0) {
                Read::Data(text) => answer.data = text.into(),
                Read::Error(code, text) => {
                    return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, text.to_owned())));
                }
            }
        }
        Ok(answer)
    }
}

#[async_trait]
impl Health for Service {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> Result<HealthCheckResponse> {
        self.reached(At::Health).await;
        Ok(HealthCheckResponse::new())
    }
}

#[async_trait]
impl AgentService for Service {
    async fn create_sandbox(&self, _: &TtrpcContext, _: api::CreateSandboxRequest) -> Result<Empty> {
        self.reached(At::CreateSandbox).await;
        Ok(Empty::new())
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: api::DestroySandboxRequest) -> Result<Empty> {
        Ok(Empty::new())
    }

    async fn create_container(&self, _: &TtrpcContext, _: api::CreateContainerRequest) -> Result<Empty> {
        self.reached(At::CreateContainer).await;
        Ok(Empty::new())
    }

    async fn start_container(&self, _: &TtrpcContext, _: api::StartContainerRequest) -> Result<Empty> {
        self.reached(At::StartContainer).await;
        Ok(Empty::new())
    }

    async fn remove_container(&self, _: &TtrpcContext, _: api::RemoveContainerRequest) -> Result<Empty> {
        Ok(Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        _: api::WaitProcessRequest,
    ) -> Result<api::WaitProcessResponse> {
        self.reached(At::Wait).await;
        Ok(api::WaitProcessResponse::new())
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        _: api::ReadStreamRequest,
    ) -> Result<api::ReadStreamResponse> {
        self.read()
    }

    async fn copy_file(&self, _: &TtrpcContext, request: api::CopyFileRequest) -> Result<Empty> {
        self.0.copied.lock().unwrap().push(request);
        Ok(Empty::new())
    }

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        request: api::UpdateInterfaceRequest,
    ) -> Result<types::Interface> {
        let interface = request.interface.unwrap_or_default();
        self.0.interfaces.lock().unwrap().push(interface.clone());
        Ok(interface)
    }

    async fn update_routes(&self, _: &TtrpcContext, _: api::UpdateRoutesRequest) -> Result<api::Routes> {
        Ok(api::Routes::new())
    }
}
