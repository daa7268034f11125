//! The agent's ttrpc services: every call passes the policy, then goes to the part that does the work.
//!
//! Names, numbers, codes and texts are Kata's (4.1). Calls that make no sense in this guest (hot-plug, iptables,
//! memory agent, swap) are answered UNIMPLEMENTED by the generated defaults — after the policy check they would
//! fail anyway, and before it they reveal nothing but that.

pub(crate) mod copy;
mod errors;
pub(crate) mod metrics;
mod misc;

use std::sync::Arc;

use async_trait::async_trait;
use kata_cc_agent_protocol::agent as api;
use kata_cc_agent_protocol::agent_ttrpc::AgentService;
use kata_cc_agent_protocol::health::health_check_response::ServingStatus;
use kata_cc_agent_protocol::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use kata_cc_agent_protocol::health_ttrpc::Health;
use kata_cc_agent_protocol::{csi, types};
use protobuf::MessageDyn;
use protobuf::well_known_types::empty::Empty;
use tokio::sync::Notify;
use ttrpc::r#async::TtrpcContext;

use crate::gate::Gate;
use crate::image::Images;
use crate::net::Network;
use crate::sandbox::{Sandbox, SandboxError};
use errors::{Answer, code, from_sandbox, internal};
use kata_cc_policy::{AgentPolicy, Denial};

/// Version of the agent API, as Kata numbers it.
const API_VERSION: &str = "0.0.1";

/// Everything the calls need.
#[derive(Debug)]
pub(crate) struct Service {
    sandbox: Arc<Sandbox>,
    policy: Arc<Gate>,
    images: Arc<Images>,
    network: Network,
    /// Rung by DestroySandbox.
    pub(crate) ended: Arc<Notify>,
}

impl Service {
    /// Puts the parts together.
    pub(crate) fn new(sandbox: Sandbox, policy: Arc<Gate>, images: Arc<Images>, network: Network) -> Self {
        Self { sandbox: Arc::new(sandbox), policy, images, network, ended: Arc::default() }
    }

    async fn allow(&self, request: &dyn MessageDyn) -> ttrpc::Result<()> {
        denied(self.policy.check_message(request).await)
    }

    async fn allow_as(&self, name: &str, input: &serde_json::Value) -> ttrpc::Result<()> {
        denied(self.policy.check(name, input).await)
    }
}

fn denied(answer: Result<(), Denial>) -> ttrpc::Result<()> {
    answer.map_err(|denial| code(ttrpc::Code::PERMISSION_DENIED, denial.to_string()))
}

/// Runs `work` in a task of its own: a caller that goes away leaves nothing half done.
async fn to_its_end(
    work: impl Future<Output = Result<(), SandboxError>> + Send + 'static,
) -> ttrpc::Result<()> {
    tokio::spawn(work).await.map_err(internal)?.map_err(from_sandbox)
}

fn empty() -> Answer<Empty> {
    Ok(Empty::new())
}

#[async_trait]
impl Health for Service {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> Answer<HealthCheckResponse> {
        let mut answer = HealthCheckResponse::new();
        answer.status = ServingStatus::SERVING.into();
        Ok(answer)
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> Answer<VersionCheckResponse> {
        let mut answer = VersionCheckResponse::new();
        answer.grpc_version = API_VERSION.to_owned();
        answer.agent_version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(answer)
    }
}

#[async_trait]
impl AgentService for Service {
    async fn create_sandbox(&self, _: &TtrpcContext, r: api::CreateSandboxRequest) -> Answer<Empty> {
        self.allow(&r).await?;
        self.sandbox.create(&r).await.map_err(from_sandbox)?;
        empty()
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, r: api::DestroySandboxRequest) -> Answer<Empty> {
        self.allow(&r).await?;
        self.sandbox.destroy().await;
        self.ended.notify_one();
        empty()
    }

    async fn create_container(&self, _: &TtrpcContext, r: api::CreateContainerRequest) -> Answer<Empty> {
        let (sandbox, images, policy) = (self.sandbox.clone(), self.images.clone(), self.policy.clone());
        to_its_end(async move { sandbox.create_container(r, &images, &policy).await }).await?;
        empty()
    }

    async fn start_container(&self, _: &TtrpcContext, r: api::StartContainerRequest) -> Answer<Empty> {
        self.allow(&r).await?;
        let started = self.sandbox.start_container(&r.container_id).await;
        started.map_err(from_sandbox)?;
        empty()
    }

    async fn remove_container(&self, _: &TtrpcContext, r: api::RemoveContainerRequest) -> Answer<Empty> {
        let (sandbox, policy) = (self.sandbox.clone(), self.policy.clone());
        let seconds = r.timeout;
        // It goes on when the time is over: the policy may have forgotten the container.
        let removal = to_its_end(async move { sandbox.remove_container(&r, &policy).await });
        match seconds {
            0 => removal.await?,
            seconds => {
                let in_time = tokio::time::timeout(std::time::Duration::from_secs(seconds.into()), removal);
                let late = || {
                    code(ttrpc::Code::DEADLINE_EXCEEDED, "ETIME: container not removed in time".to_owned())
                };
                in_time.await.map_err(|_| late())??;
            }
        }
        empty()
    }

    async fn exec_process(&self, _: &TtrpcContext, r: api::ExecProcessRequest) -> Answer<Empty> {
        // Looked up first: what is allowed for a container is done in that one, or in none.
        let container = self.sandbox.container(&r.container_id).await;
        self.allow(&r).await?;
        self.sandbox.exec(container.map_err(from_sandbox)?, r).await.map_err(from_sandbox)?;
        empty()
    }

    async fn signal_process(&self, _: &TtrpcContext, r: api::SignalProcessRequest) -> Answer<Empty> {
        self.allow(&r).await?;
        let found = self.sandbox.process(&r.container_id, &r.exec_id).await;
        let (container, process) = found.map_err(from_sandbox)?;
        let signal = i32::try_from(r.signal).ok().filter(|s| (0..=64).contains(s)).ok_or_else(|| {
            code(ttrpc::Code::INVALID_ARGUMENT, format!("signal {} does not exist", r.signal))
        })?;
        let is_init = Arc::ptr_eq(&process, &container.init);
        if r.exec_id.is_empty()
            && signal == libc::SIGKILL
            && let Some(cgroup) = &container.cgroup
        {
            // The kernel kills all of it at once: nothing can fork its way out, no freezing needed.
            cgroup.kill().map_err(internal)?;
            return empty();
        }
        // The kernel drops a signal without a handler for the first process of a PID namespace.
        let sent = if is_init && signal == libc::SIGTERM && !process.catches(signal) {
            libc::SIGKILL
        } else {
            signal
        };
        process.signal(sent).map_err(internal)?;
        empty()
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        r: api::WaitProcessRequest,
    ) -> Answer<api::WaitProcessResponse> {
        self.allow(&r).await?;
        let status = self.sandbox.wait(&r.container_id, &r.exec_id).await;
        let mut answer = api::WaitProcessResponse::new();
        answer.status = status.map_err(from_sandbox)?;
        Ok(answer)
    }

    async fn update_container(&self, _: &TtrpcContext, r: api::UpdateContainerRequest) -> Answer<Empty> {
        let container = self.sandbox.container(&r.container_id).await;
        self.allow(&r).await?;
        let container = container.map_err(from_sandbox)?;
        if let (Some(cgroup), Some(resources)) = (&container.cgroup, r.resources.as_ref()) {
            cgroup.apply(resources).map_err(internal)?;
        }
        empty()
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        r: api::StatsContainerRequest,
    ) -> Answer<api::StatsContainerResponse> {
        self.allow(&r).await?;
        let container = self.sandbox.container(&r.container_id).await.map_err(from_sandbox)?;
        let mut answer = api::StatsContainerResponse::new();
        if let Some(cgroup) = &container.cgroup {
            answer.cgroup_stats = Some(cgroup.stats()).into();
        }
        answer.network_stats = metrics::network_stats();
        Ok(answer)
    }

    async fn pause_container(&self, _: &TtrpcContext, r: api::PauseContainerRequest) -> Answer<Empty> {
        self.allow(&r).await?;
        self.freeze(&r.container_id, true).await
    }

    async fn resume_container(&self, _: &TtrpcContext, r: api::ResumeContainerRequest) -> Answer<Empty> {
        self.allow(&r).await?;
        self.freeze(&r.container_id, false).await
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        r: api::WriteStreamRequest,
    ) -> Answer<api::WriteStreamResponse> {
        self.allow(&r).await?;
        let found = self.sandbox.process(&r.container_id, &r.exec_id).await;
        let (_, process) = found.map_err(from_sandbox)?;
        if r.data.is_empty() {
            // Kata's rule, runtime-rs never calls CloseStdin.
            process.close_stdin().await;
        } else {
            process.write_stdin(&r.data).await.map_err(internal)?;
        }
        let mut answer = api::WriteStreamResponse::new();
        answer.len = u32::try_from(r.data.len()).unwrap_or(u32::MAX);
        Ok(answer)
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        r: api::ReadStreamRequest,
    ) -> Answer<api::ReadStreamResponse> {
        self.read(r, false).await
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        r: api::ReadStreamRequest,
    ) -> Answer<api::ReadStreamResponse> {
        self.read(r, true).await
    }

    async fn close_stdin(&self, _: &TtrpcContext, r: api::CloseStdinRequest) -> Answer<Empty> {
        self.allow(&r).await?;
        let found = self.sandbox.process(&r.container_id, &r.exec_id).await;
        found.map_err(from_sandbox)?.1.close_stdin().await;
        empty()
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, r: api::TtyWinResizeRequest) -> Answer<Empty> {
        self.allow(&r).await?;
        let found = self.sandbox.process(&r.container_id, &r.exec_id).await;
        let (_, process) = found.map_err(from_sandbox)?;
        let clip = |v: u32| u16::try_from(v).unwrap_or(u16::MAX);
        match process.resize(clip(r.row), clip(r.column)) {
            Some(done) => done.map_err(internal)?,
            None => return Err(code(ttrpc::Code::UNAVAILABLE, "no tty".to_owned())),
        }
        empty()
    }

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        r: api::UpdateInterfaceRequest,
    ) -> Answer<types::Interface> {
        self.allow(&r).await?;
        let wanted = r.interface.into_option().unwrap_or_default();
        self.network.update_interface(&wanted).await.map_err(internal)?;
        Ok(wanted)
    }

    async fn update_routes(&self, _: &TtrpcContext, r: api::UpdateRoutesRequest) -> Answer<api::Routes> {
        self.allow(&r).await?;
        let wanted = r.routes.into_option().unwrap_or_default().Routes;
        self.network.update_routes(&wanted).await.map_err(internal)?;
        self.routes().await
    }

    async fn list_interfaces(
        &self,
        _: &TtrpcContext,
        r: api::ListInterfacesRequest,
    ) -> Answer<api::Interfaces> {
        self.allow(&r).await?;
        let mut answer = api::Interfaces::new();
        answer.Interfaces = self.network.interfaces().await.map_err(internal)?;
        Ok(answer)
    }

    async fn list_routes(&self, _: &TtrpcContext, r: api::ListRoutesRequest) -> Answer<api::Routes> {
        self.allow(&r).await?;
        self.routes().await
    }

    async fn add_arp_neighbors(&self, _: &TtrpcContext, r: api::AddARPNeighborsRequest) -> Answer<Empty> {
        self.allow(&r).await?;
        let neighbors = r.neighbors.into_option().unwrap_or_default().ARPNeighbors;
        self.network.add_neighbors(&neighbors).await.map_err(internal)?;
        empty()
    }

    async fn get_metrics(&self, _: &TtrpcContext, r: api::GetMetricsRequest) -> Answer<api::Metrics> {
        self.allow(&r).await?;
        let mut answer = api::Metrics::new();
        answer.metrics = metrics::prometheus();
        Ok(answer)
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        r: api::GuestDetailsRequest,
    ) -> Answer<api::GuestDetailsResponse> {
        self.allow(&r).await?;
        Ok(misc::guest_details(&r))
    }

    async fn online_cpu_mem(&self, _: &TtrpcContext, r: api::OnlineCPUMemRequest) -> Answer<Empty> {
        self.allow(&r).await?;
        // The VM has its final size from the start: all there is, is online.
        misc::online_cpus();
        empty()
    }

    async fn reseed_random_dev(&self, _: &TtrpcContext, r: api::ReseedRandomDevRequest) -> Answer<Empty> {
        self.allow(&r).await?;
        if r.data.is_empty() {
            return Err(code(ttrpc::Code::INVALID_ARGUMENT, "no random data".to_owned()));
        }
        crate::sys::reseed_random(&r.data).map_err(internal)?;
        empty()
    }

    async fn set_guest_date_time(&self, _: &TtrpcContext, r: api::SetGuestDateTimeRequest) -> Answer<Empty> {
        self.allow(&r).await?;
        misc::set_time(r.Sec, r.Usec).map_err(internal)?;
        empty()
    }

    async fn copy_file(&self, _: &TtrpcContext, r: api::CopyFileRequest) -> Answer<Empty> {
        self.allow_as("CopyFileRequest", &kata_cc_agent_protocol::json::copy_file(&r)).await?;
        let copied =
            tokio::task::spawn_blocking(move || copy::copy(std::path::Path::new(crate::paths::SHARED), &r));
        copied.await.map_err(internal)?.map_err(internal)?;
        empty()
    }

    async fn get_oom_event(&self, _: &TtrpcContext, r: api::GetOOMEventRequest) -> Answer<api::OOMEvent> {
        self.allow(&r).await?;
        let mut answer = api::OOMEvent::new();
        answer.container_id = self
            .sandbox
            .next_oom()
            .await
            .ok_or_else(|| code(ttrpc::Code::INTERNAL, "the sandbox is gone".to_owned()))?;
        Ok(answer)
    }

    async fn get_volume_stats(
        &self,
        _: &TtrpcContext,
        r: api::VolumeStatsRequest,
    ) -> Answer<csi::VolumeStatsResponse> {
        self.allow(&r).await?;
        misc::volume_stats(&r.volume_guest_path).map_err(internal)
    }

    async fn set_policy(&self, _: &TtrpcContext, r: api::SetPolicyRequest) -> Answer<Empty> {
        self.allow(&r).await?;
        let next = AgentPolicy::new("SetPolicy", &r.policy)
            .map_err(|e| code(ttrpc::Code::INVALID_ARGUMENT, e.to_string()))?;
        self.policy.replace(next).await;
        tracing::info!("policy replaced by the host, as the former policy allows");
        empty()
    }
}

impl Service {
    async fn freeze(&self, id: &str, frozen: bool) -> Answer<Empty> {
        let container = self.sandbox.container(id).await.map_err(from_sandbox)?;
        match &container.cgroup {
            Some(cgroup) => cgroup.freeze(frozen).await.map_err(internal)?,
            None => return Err(code(ttrpc::Code::UNAVAILABLE, "no cgroup v2 here".to_owned())),
        }
        empty()
    }

    async fn read(&self, r: api::ReadStreamRequest, stderr: bool) -> Answer<api::ReadStreamResponse> {
        let found = self.sandbox.process(&r.container_id, &r.exec_id).await;
        let (_, process) = found.map_err(from_sandbox)?;
        let most = usize::try_from(r.len).unwrap_or(usize::MAX);
        let data = match stderr {
            true => process.read_stderr(most).await,
            false => process.read_stdout(most).await,
        };
        let mut answer = api::ReadStreamResponse::new();
        let data = data.map_err(internal)?;
        // Kata's rule: what policy withholds looks like no output; the data was read, so the program does not block.
        if !data.is_empty() && self.allow(&r).await.is_ok() {
            answer.data = data;
        }
        Ok(answer)
    }

    async fn routes(&self) -> Answer<api::Routes> {
        let mut answer = api::Routes::new();
        answer.Routes = self.network.routes().await.map_err(internal)?;
        Ok(answer)
    }
}
