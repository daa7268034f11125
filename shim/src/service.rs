//! The ttrpc face: Task v2 and v3 with one implementation, since they differ in the package's name only.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kata_cc_containerd_protocol::runc_options::ProcessDetails;
use kata_cc_containerd_protocol::task_types::{ProcessInfo, Status};
use kata_cc_containerd_protocol::{task_v2_ttrpc, task_v3 as api, task_v3_ttrpc};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::{EnumOrUnknown, Message, MessageField};
use ttrpc::r#async::TtrpcContext;

use crate::error::TaskError;
use crate::events::timestamp;
use crate::machine::State;
use crate::stats;
use crate::stdio::Streams;
use crate::tasks::{Create, Tasks};

/// Both services on one server.
#[must_use]
pub fn register(server: ttrpc::r#async::Server, tasks: &Arc<Tasks>) -> ttrpc::r#async::Server {
    let service = Arc::new(Service(Arc::clone(tasks)));
    server
        .register_service(task_v2_ttrpc::create_task(service.clone()))
        .register_service(task_v3_ttrpc::create_task(service))
}

struct Service(Arc<Tasks>);

macro_rules! task_service {
    ($version:ident: $($method:ident => $call:ident($request:ty) -> $answer:ty;)*) => {
        #[async_trait]
        impl $version::Task for Service {
            async fn create(
                &self,
                context: &TtrpcContext,
                request: api::CreateTaskRequest,
            ) -> ttrpc::Result<api::CreateTaskResponse> {
                Ok(self.do_create(context, request).await?)
            }
            $(async fn $method(&self, _context: &TtrpcContext, request: $request) -> ttrpc::Result<$answer> {
                Ok(self.$call(request).await?)
            })*
        }
    };
}

macro_rules! both_services {
    ($($rest:tt)*) => {
        task_service!(task_v2_ttrpc: $($rest)*);
        task_service!(task_v3_ttrpc: $($rest)*);
    };
}

both_services! {
    state => do_state(api::StateRequest) -> api::StateResponse;
    start => do_start(api::StartRequest) -> api::StartResponse;
    delete => do_delete(api::DeleteRequest) -> api::DeleteResponse;
    pids => do_pids(api::PidsRequest) -> api::PidsResponse;
    pause => do_pause(api::PauseRequest) -> Empty;
    resume => do_resume(api::ResumeRequest) -> Empty;
    checkpoint => do_checkpoint(api::CheckpointTaskRequest) -> Empty;
    kill => do_kill(api::KillRequest) -> Empty;
    exec => do_exec(api::ExecProcessRequest) -> Empty;
    resize_pty => do_resize(api::ResizePtyRequest) -> Empty;
    close_io => do_close(api::CloseIORequest) -> Empty;
    update => do_update(api::UpdateTaskRequest) -> Empty;
    wait => do_wait(api::WaitRequest) -> api::WaitResponse;
    stats => do_stats(api::StatsRequest) -> api::StatsResponse;
    connect => do_connect(api::ConnectRequest) -> api::ConnectResponse;
    shutdown => do_shutdown(api::ShutdownRequest) -> Empty;
}

/// How long the caller waits, less what an answer needs to reach it in time: one that is told why asks no more than one that is not.
fn patience(context: &TtrpcContext) -> Option<Duration> {
    let limit = Duration::from_nanos(u64::try_from(context.timeout_nano).ok().filter(|nanos| *nanos > 0)?);
    Some(limit.saturating_sub((limit / 10).min(Duration::from_secs(2))))
}

impl Service {
    async fn do_state(&self, request: api::StateRequest) -> Result<api::StateResponse, TaskError> {
        let cell = self.0.cell(&request.id)?;
        let shown = cell.show(&request.exec_id)?;
        let (status, exit) = match shown.state {
            State::Created | State::Starting => (Status::CREATED, None),
            State::Running => (Status::RUNNING, None),
            State::Paused => (Status::PAUSED, None),
            State::Stopped(exit) => (Status::STOPPED, Some(exit)),
        };
        Ok(api::StateResponse {
            id: request.id,
            bundle: cell.bundle.display().to_string(),
            pid: cell.pod.pid(),
            status: EnumOrUnknown::new(status),
            stdin: shown.streams.stdin,
            stdout: shown.streams.stdout,
            stderr: shown.streams.stderr,
            terminal: shown.streams.terminal,
            exit_status: exit.map(|exit| exit.code).unwrap_or_default(),
            exited_at: exit.map(|exit| timestamp(exit.at)).into(),
            exec_id: request.exec_id,
            ..Default::default()
        })
    }

    async fn do_create(
        &self,
        context: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> Result<api::CreateTaskResponse, TaskError> {
        if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
            return Err(TaskError::Unsupported("restoring a checkpoint"));
        }
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let create =
            Create { id: request.id, bundle: request.bundle.into(), rootfs: request.rootfs, streams };
        let pid = self.0.create(create, patience(context)).await?;
        Ok(api::CreateTaskResponse { pid, ..Default::default() })
    }

    async fn do_start(&self, request: api::StartRequest) -> Result<api::StartResponse, TaskError> {
        let cell = self.0.cell(&request.id)?;
        let pid = cell.pod.pid();
        let namespace = self.0.namespace.clone();
        // in a task of its own: a caller that goes away must not leave a process half started
        let started = tokio::spawn(async move { cell.start(&request.exec_id, &namespace).await });
        started.await.map_err(|error| TaskError::Internal(error.to_string()))??;
        Ok(api::StartResponse { pid, ..Default::default() })
    }

    async fn do_delete(&self, request: api::DeleteRequest) -> Result<api::DeleteResponse, TaskError> {
        let (pid, exit) = if request.exec_id.is_empty() {
            self.0.delete(&request.id).await?
        } else {
            let cell = self.0.cell(&request.id)?;
            (cell.pod.pid(), cell.delete_exec(&request.exec_id)?)
        };
        Ok(api::DeleteResponse {
            pid,
            exit_status: exit.code,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn do_pids(&self, request: api::PidsRequest) -> Result<api::PidsResponse, TaskError> {
        let cell = self.0.cell(&request.id)?;
        let pid = cell.pod.pid();
        let mut processes = vec![ProcessInfo { pid, ..Default::default() }];
        for exec_id in cell.lock().machine.running_execs() {
            let details = ProcessDetails { exec_id, ..Default::default() };
            let info = Any {
                type_url: "containerd.runc.v1.ProcessDetails".to_owned(),
                value: details.write_to_bytes().unwrap_or_default(),
                ..Any::default()
            };
            processes.push(ProcessInfo { pid, info: MessageField::some(info), ..Default::default() });
        }
        Ok(api::PidsResponse { processes, ..Default::default() })
    }

    async fn do_pause(&self, request: api::PauseRequest) -> Result<Empty, TaskError> {
        self.0.cell(&request.id)?.pause().await?;
        Ok(Empty::new())
    }

    async fn do_resume(&self, request: api::ResumeRequest) -> Result<Empty, TaskError> {
        self.0.cell(&request.id)?.resume().await?;
        Ok(Empty::new())
    }

    async fn do_checkpoint(&self, _: api::CheckpointTaskRequest) -> Result<Empty, TaskError> {
        Err(TaskError::Unsupported("checkpoint"))
    }

    async fn do_kill(&self, request: api::KillRequest) -> Result<Empty, TaskError> {
        self.0.cell(&request.id)?.kill(&request.exec_id, request.signal, request.all).await?;
        Ok(Empty::new())
    }

    async fn do_exec(&self, request: api::ExecProcessRequest) -> Result<Empty, TaskError> {
        let cell = self.0.cell(&request.id)?;
        let process = serde_json::from_slice(&request.spec.value)
            .map_err(|error| TaskError::Invalid(format!("process specification of exec: {error}")))?;
        let streams = Streams {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        cell.add_exec(&request.exec_id, streams, process)?;
        Ok(Empty::new())
    }

    async fn do_resize(&self, request: api::ResizePtyRequest) -> Result<Empty, TaskError> {
        self.0.cell(&request.id)?.resize(&request.exec_id, request.height, request.width).await?;
        Ok(Empty::new())
    }

    async fn do_close(&self, request: api::CloseIORequest) -> Result<Empty, TaskError> {
        if request.stdin {
            self.0.cell(&request.id)?.close_stdin(&request.exec_id)?;
        }
        Ok(Empty::new())
    }

    async fn do_update(&self, request: api::UpdateTaskRequest) -> Result<Empty, TaskError> {
        let resources = serde_json::from_slice(&request.resources.value)
            .map_err(|error| TaskError::Invalid(format!("resources: {error}")))?;
        self.0.cell(&request.id)?.update(&resources).await?;
        Ok(Empty::new())
    }

    async fn do_wait(&self, request: api::WaitRequest) -> Result<api::WaitResponse, TaskError> {
        let exit = self.0.cell(&request.id)?.wait(&request.exec_id).await?;
        Ok(api::WaitResponse {
            exit_status: exit.code,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn do_stats(&self, request: api::StatsRequest) -> Result<api::StatsResponse, TaskError> {
        let cell = self.0.cell(&request.id)?;
        let counters = cell.stats().await?;
        let saw_oom = cell.lock().machine.saw_oom();
        let stats = MessageField::some(stats::metrics(&counters, saw_oom));
        Ok(api::StatsResponse { stats, ..Default::default() })
    }

    async fn do_connect(&self, request: api::ConnectRequest) -> Result<api::ConnectResponse, TaskError> {
        let task_pid = match self.0.cell(&request.id) {
            Ok(cell) => cell.pod.pid(),
            Err(_) => self.0.pid().await,
        };
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn do_shutdown(&self, request: api::ShutdownRequest) -> Result<Empty, TaskError> {
        self.0.shutdown(&request.id).await;
        Ok(Empty::new())
    }
}
