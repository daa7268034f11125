//! The agent API of this tier: names, codes and texts are those of the in-guest agent, so that whoever drives one drives the other.
//!
//! What belongs to virtual machines (hot-plug, swap, iptables, the memory agent, files that are copied into a guest, a policy inside of it)
//! answers UNIMPLEMENTED with the name of the method.

use std::sync::Arc;

use async_trait::async_trait;
use kata_cc_agent_protocol::agent as api;
use kata_cc_agent_protocol::agent_ttrpc::AgentService;
use kata_cc_agent_protocol::health::health_check_response::ServingStatus;
use kata_cc_agent_protocol::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use kata_cc_agent_protocol::health_ttrpc::Health;
use kata_cc_agent_protocol::{csi, types};
use kata_cc_sentry::control::message::{FailureKind, Usage};
use protobuf::well_known_types::empty::Empty;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;

use super::link::CallError;
use super::table::TableError;
use super::work::{Monitor, WorkError};

/// Version of the agent API, as Kata numbers it.
const API_VERSION: &str = "0.0.1";

type Answered<T> = ttrpc::Result<T>;

/// The services.
pub(crate) struct Service(pub(crate) Arc<Monitor>);

fn code(code: Code, message: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}

fn refused(error: WorkError) -> ttrpc::Error {
    tracing::warn!(%error, "a request failed");
    let kind = match &error {
        WorkError::Table(TableError::NoContainer(_) | TableError::Id(_)) | WorkError::Spec(_) => {
            Code::INVALID_ARGUMENT
        }
        WorkError::Table(TableError::NoProcess { .. }) => Code::NOT_FOUND,
        WorkError::Table(TableError::Exists(_)) => Code::ALREADY_EXISTS,
        WorkError::Table(TableError::Full(..)) => Code::RESOURCE_EXHAUSTED,
        WorkError::Direct(_) => Code::FAILED_PRECONDITION,
        WorkError::NoTerminal | WorkError::Call(CallError::Gone(_)) => Code::UNAVAILABLE,
        _ => match error.failure() {
            Some(FailureKind::Invalid) => Code::INVALID_ARGUMENT,
            Some(FailureKind::Missing) => Code::NOT_FOUND,
            Some(FailureKind::Full) => Code::RESOURCE_EXHAUSTED,
            _ => Code::INTERNAL,
        },
    };
    code(kind, error.to_string())
}

fn absent<T>(method: &str) -> Answered<T> {
    Err(code(
        Code::UNIMPLEMENTED,
        format!("{method} is not there: the sandbox is a sentry and no virtual machine"),
    ))
}

/// Runs `work` in a task of its own: a caller that goes away leaves nothing half done.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, WorkError>> + Send + 'static,
) -> Answered<T> {
    let joined = tokio::spawn(work).await;
    joined.map_err(|error| code(Code::INTERNAL, error.to_string()))?.map_err(refused)
}

fn empty() -> Answered<Empty> {
    Ok(Empty::new())
}

#[async_trait]
impl Health for Service {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> Answered<HealthCheckResponse> {
        let mut answer = HealthCheckResponse::new();
        answer.status = ServingStatus::SERVING.into();
        Ok(answer)
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> Answered<VersionCheckResponse> {
        let mut answer = VersionCheckResponse::new();
        answer.grpc_version = API_VERSION.to_owned();
        answer.agent_version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(answer)
    }
}

#[async_trait]
impl AgentService for Service {
    async fn create_sandbox(&self, _: &TtrpcContext, r: api::CreateSandboxRequest) -> Answered<Empty> {
        if !r.storages.is_empty() {
            tracing::info!(
                "storages of a sandbox are passed over: paths of the host are named by containers"
            );
        }
        let host = Some(r.hostname).filter(|name| !name.is_empty());
        if host.as_ref().is_some_and(|name| name.len() > 64) {
            return Err(code(Code::INVALID_ARGUMENT, "hostname: is longer than 64 bytes".to_owned()));
        }
        self.0.name(host, None).await.map_err(refused)?;
        empty()
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: api::DestroySandboxRequest) -> Answered<Empty> {
        self.0.destroyed.notify_one();
        empty()
    }

    async fn create_container(&self, _: &TtrpcContext, r: api::CreateContainerRequest) -> Answered<Empty> {
        let monitor = Arc::clone(&self.0);
        to_its_end(async move { monitor.create(&r).await }).await?;
        empty()
    }

    async fn start_container(&self, _: &TtrpcContext, r: api::StartContainerRequest) -> Answered<Empty> {
        self.0.start(&r.container_id).await.map_err(refused)?;
        empty()
    }

    async fn remove_container(&self, _: &TtrpcContext, r: api::RemoveContainerRequest) -> Answered<Empty> {
        let monitor = Arc::clone(&self.0);
        let seconds = r.timeout;
        let removal = to_its_end(async move { monitor.remove(&r.container_id).await });
        if seconds == 0 {
            removal.await?;
        } else {
            let late = || code(Code::DEADLINE_EXCEEDED, "ETIME: container not removed in time".to_owned());
            let limit = std::time::Duration::from_secs(seconds.into());
            tokio::time::timeout(limit, removal).await.map_err(|_| late())??;
        }
        empty()
    }

    async fn exec_process(&self, _: &TtrpcContext, r: api::ExecProcessRequest) -> Answered<Empty> {
        let monitor = Arc::clone(&self.0);
        to_its_end(async move { monitor.exec(&r).await }).await?;
        empty()
    }

    async fn signal_process(&self, _: &TtrpcContext, r: api::SignalProcessRequest) -> Answered<Empty> {
        let signal = i32::try_from(r.signal).ok().filter(|signal| (0..=64).contains(signal));
        let none = || code(Code::INVALID_ARGUMENT, format!("signal {} does not exist", r.signal));
        let signal = signal.ok_or_else(none)?;
        self.0.signal(&r.container_id, &r.exec_id, signal).await.map_err(refused)?;
        empty()
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        r: api::WaitProcessRequest,
    ) -> Answered<api::WaitProcessResponse> {
        let mut answer = api::WaitProcessResponse::new();
        answer.status = self.0.wait(&r.container_id, &r.exec_id).await.map_err(refused)?;
        Ok(answer)
    }

    async fn update_container(&self, _: &TtrpcContext, r: api::UpdateContainerRequest) -> Answered<Empty> {
        self.0.update(&r).await.map_err(refused)?;
        empty()
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        r: api::StatsContainerRequest,
    ) -> Answered<api::StatsContainerResponse> {
        let usage = self.0.usage(&r.container_id).await.map_err(refused)?;
        Ok(stats(&usage))
    }

    async fn pause_container(&self, _: &TtrpcContext, r: api::PauseContainerRequest) -> Answered<Empty> {
        self.0.freeze(&r.container_id, true).await.map_err(refused)?;
        empty()
    }

    async fn resume_container(&self, _: &TtrpcContext, r: api::ResumeContainerRequest) -> Answered<Empty> {
        self.0.freeze(&r.container_id, false).await.map_err(refused)?;
        empty()
    }

    async fn write_stdin(
        &self,
        _: &TtrpcContext,
        r: api::WriteStreamRequest,
    ) -> Answered<api::WriteStreamResponse> {
        let done = if r.data.is_empty() {
            // Kata's rule: its runtime never calls CloseStdin.
            self.0.close_input(&r.container_id, &r.exec_id).await
        } else {
            self.0.write(&r.container_id, &r.exec_id, &r.data).await
        };
        done.map_err(refused)?;
        let mut answer = api::WriteStreamResponse::new();
        answer.len = u32::try_from(r.data.len()).unwrap_or(u32::MAX);
        Ok(answer)
    }

    async fn read_stdout(
        &self,
        _: &TtrpcContext,
        r: api::ReadStreamRequest,
    ) -> Answered<api::ReadStreamResponse> {
        self.read(&r, false).await
    }

    async fn read_stderr(
        &self,
        _: &TtrpcContext,
        r: api::ReadStreamRequest,
    ) -> Answered<api::ReadStreamResponse> {
        self.read(&r, true).await
    }

    async fn close_stdin(&self, _: &TtrpcContext, r: api::CloseStdinRequest) -> Answered<Empty> {
        self.0.close_input(&r.container_id, &r.exec_id).await.map_err(refused)?;
        empty()
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, r: api::TtyWinResizeRequest) -> Answered<Empty> {
        self.0.resize(&r.container_id, &r.exec_id, r.row, r.column).await.map_err(refused)?;
        empty()
    }

    async fn list_interfaces(
        &self,
        _: &TtrpcContext,
        _: api::ListInterfacesRequest,
    ) -> Answered<api::Interfaces> {
        let mut answer = api::Interfaces::new();
        answer.Interfaces = self.0.interfaces().await;
        Ok(answer)
    }

    async fn list_routes(&self, _: &TtrpcContext, _: api::ListRoutesRequest) -> Answered<api::Routes> {
        Ok(self.routes().await)
    }

    async fn get_metrics(&self, _: &TtrpcContext, _: api::GetMetricsRequest) -> Answered<api::Metrics> {
        let mut answer = api::Metrics::new();
        let containers = self.0.table.count();
        answer.metrics =
            format!("# TYPE kata_sentry_containers gauge\nkata_sentry_containers {containers}\n");
        Ok(answer)
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        _: api::GuestDetailsRequest,
    ) -> Answered<api::GuestDetailsResponse> {
        let mut answer = api::GuestDetailsResponse::new();
        let details = answer.agent_details.mut_or_insert_default();
        details.version = env!("CARGO_PKG_VERSION").to_owned();
        details.extra_features = vec!["sentry".to_owned()];
        Ok(answer)
    }

    async fn get_diagnostic_data(
        &self,
        _: &TtrpcContext,
        r: api::GetDiagnosticDataRequest,
    ) -> Answered<api::GetDiagnosticDataResponse> {
        if r.log_type != "processes" {
            return absent(&format!("GetDiagnosticData of {:?}", r.log_type));
        }
        let mut answer = api::GetDiagnosticDataResponse::new();
        answer.data = self.0.processes(&r.container_id).await.map_err(refused)?;
        Ok(answer)
    }

    async fn online_cpu_mem(&self, _: &TtrpcContext, _: api::OnlineCPUMemRequest) -> Answered<Empty> {
        // Processors and memory are the host's: all there is, is online.
        empty()
    }

    async fn reseed_random_dev(&self, _: &TtrpcContext, _: api::ReseedRandomDevRequest) -> Answered<Empty> {
        // Random bytes are the host's.
        empty()
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: api::GetOOMEventRequest) -> Answered<api::OOMEvent> {
        let gone = tokio::select! {
            // What was told before the end is told.
            biased;
            Some(container_id) = self.0.memory_of_host.next() => {
                return Ok(api::OOMEvent { container_id, ..Default::default() });
            }
            reason = self.0.link.ended() => reason,
        };
        Err(refused(WorkError::Call(CallError::Gone(gone))))
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &TtrpcContext,
        _: api::UpdateEphemeralMountsRequest,
    ) -> Answered<Empty> {
        absent("UpdateEphemeralMounts")
    }

    async fn remove_stale_virtiofs_share_mounts(
        &self,
        _: &TtrpcContext,
        _: api::RemoveStaleVirtiofsShareMountsRequest,
    ) -> Answered<Empty> {
        absent("RemoveStaleVirtiofsShareMounts")
    }

    async fn update_interface(
        &self,
        _: &TtrpcContext,
        r: api::UpdateInterfaceRequest,
    ) -> Answered<types::Interface> {
        let wanted = r.interface.into_option().unwrap_or_default();
        self.0.update_interface(&wanted).await.map_err(refused)?;
        Ok(wanted)
    }

    async fn update_routes(&self, _: &TtrpcContext, r: api::UpdateRoutesRequest) -> Answered<api::Routes> {
        let wanted = r.routes.into_option().unwrap_or_default().Routes;
        self.0.update_routes(&wanted).await.map_err(refused)?;
        Ok(self.routes().await)
    }

    async fn add_arp_neighbors(&self, _: &TtrpcContext, r: api::AddARPNeighborsRequest) -> Answered<Empty> {
        let wanted = r.neighbors.into_option().unwrap_or_default().ARPNeighbors;
        self.0.add_neighbours(&wanted).await.map_err(refused)?;
        empty()
    }

    async fn get_ip_tables(
        &self,
        _: &TtrpcContext,
        _: api::GetIPTablesRequest,
    ) -> Answered<api::GetIPTablesResponse> {
        absent("GetIPTables")
    }

    async fn set_ip_tables(
        &self,
        _: &TtrpcContext,
        _: api::SetIPTablesRequest,
    ) -> Answered<api::SetIPTablesResponse> {
        absent("SetIPTables")
    }

    async fn mem_agent_memcg_set(&self, _: &TtrpcContext, _: api::MemAgentMemcgConfig) -> Answered<Empty> {
        absent("MemAgentMemcgSet")
    }

    async fn mem_agent_compact_set(
        &self,
        _: &TtrpcContext,
        _: api::MemAgentCompactConfig,
    ) -> Answered<Empty> {
        absent("MemAgentCompactSet")
    }

    async fn mem_hotplug_by_probe(
        &self,
        _: &TtrpcContext,
        _: api::MemHotplugByProbeRequest,
    ) -> Answered<Empty> {
        absent("MemHotplugByProbe")
    }

    async fn set_guest_date_time(
        &self,
        _: &TtrpcContext,
        _: api::SetGuestDateTimeRequest,
    ) -> Answered<Empty> {
        absent("SetGuestDateTime")
    }

    async fn copy_file(&self, _: &TtrpcContext, _: api::CopyFileRequest) -> Answered<Empty> {
        absent("CopyFile")
    }

    async fn add_swap(&self, _: &TtrpcContext, _: api::AddSwapRequest) -> Answered<Empty> {
        absent("AddSwap")
    }

    async fn add_swap_path(&self, _: &TtrpcContext, _: api::AddSwapPathRequest) -> Answered<Empty> {
        absent("AddSwapPath")
    }

    async fn get_volume_stats(
        &self,
        _: &TtrpcContext,
        _: api::VolumeStatsRequest,
    ) -> Answered<csi::VolumeStatsResponse> {
        absent("GetVolumeStats")
    }

    async fn resize_volume(&self, _: &TtrpcContext, _: api::ResizeVolumeRequest) -> Answered<Empty> {
        absent("ResizeVolume")
    }

    async fn set_policy(&self, _: &TtrpcContext, _: api::SetPolicyRequest) -> Answered<Empty> {
        absent("SetPolicy")
    }
}

impl Service {
    async fn routes(&self) -> api::Routes {
        let mut answer = api::Routes::new();
        answer.Routes = self.0.routes().await;
        answer
    }

    async fn read(&self, r: &api::ReadStreamRequest, errors: bool) -> Answered<api::ReadStreamResponse> {
        let mut answer = api::ReadStreamResponse::new();
        let read = self.0.read(&r.container_id, &r.exec_id, errors, r.len).await;
        answer.data = read.map_err(refused)?;
        Ok(answer)
    }
}

fn stats(usage: &Usage) -> api::StatsContainerResponse {
    let mut answer = api::StatsContainerResponse::new();
    let group = answer.cgroup_stats.mut_or_insert_default();
    let cpu = group.cpu_stats.mut_or_insert_default().cpu_usage.mut_or_insert_default();
    cpu.total_usage = usage.user.saturating_add(usage.system);
    cpu.usage_in_usermode = usage.user;
    cpu.usage_in_kernelmode = usage.system;
    group.memory_stats.mut_or_insert_default().usage.mut_or_insert_default().usage = usage.memory;
    let pids = group.pids_stats.mut_or_insert_default();
    pids.current = usage.tasks;
    pids.limit = usage.most_tasks.unwrap_or(0);
    answer
}
