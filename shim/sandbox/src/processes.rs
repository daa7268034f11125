//! Calls on containers and processes that exist: start, exec, signal, wait, streams, limits, counters.

use std::sync::PoisonError;

use kata_cc_agent_protocol::agent as wire;
use serde_json::{Value, json};

use crate::log::Source;
use crate::oci;
use crate::sandbox::{Output, Sandbox, SandboxError, context};

/// Bytes asked for at a time from a container's output.
const READ_SIZE: u32 = 64 << 10;

impl Sandbox {
    /// Start a container's init process.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn start_container(&self, container: &str) -> Result<(), SandboxError> {
        let request = wire::StartContainerRequest { container_id: container.into(), ..Default::default() };
        let started = self.call(self.agent.0.start_container(context(), self.sent(&request))).await;
        self.noted(|| format!("container {container} was not started"), started)?;
        self.record.stage("container-started", json!({"container": container}));
        self.log.add(Source::Shim, "info", &format!("container {container} is started"));
        Ok(())
    }

    /// Start another process in a container; `process` is an OCI process as JSON.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn exec(&self, container: &str, exec: &str, process: &Value) -> Result<(), SandboxError> {
        let mut request = wire::ExecProcessRequest::new();
        request.container_id = container.into();
        request.exec_id = exec.into();
        request.process = Some(oci::process(process)).into();
        let started = self.call(self.agent.0.exec_process(context(), self.sent(&request))).await;
        self.noted(|| format!("process {exec} was not started in container {container}"), started).map(drop)
    }

    /// Send a signal to a process; an empty `exec` means init.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn signal(&self, container: &str, exec: &str, signal: u32) -> Result<(), SandboxError> {
        let mut request = wire::SignalProcessRequest::new();
        request.container_id = container.into();
        request.exec_id = exec.into();
        request.signal = signal;
        self.call(self.agent.0.signal_process(context(), self.sent(&request))).await.map(drop)
    }

    /// Exit code (or 128 + signal) of a process, once it has ended.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn wait(&self, container: &str, exec: &str) -> Result<u32, SandboxError> {
        let mut request = wire::WaitProcessRequest::new();
        request.container_id = container.into();
        request.exec_id = process_id(container, exec);
        let answer = self.call(self.agent.0.wait_process(context(), self.sent(&request))).await?;
        let code = u32::try_from(answer.status).unwrap_or(255);
        if exec.is_empty() {
            self.record.stage("exited", json!({"container": container, "code": code}));
            self.log.add(Source::Shim, "info", &format!("container {container} has ended with code {code}"));
        }
        Ok(code)
    }

    /// Write to a process' standard input; gives how much was taken.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn write_stdin(&self, container: &str, exec: &str, data: &[u8]) -> Result<usize, SandboxError> {
        let mut request = wire::WriteStreamRequest::new();
        request.container_id = container.into();
        request.exec_id = process_id(container, exec);
        request.data = data.to_vec();
        let answer = self.call(self.agent.0.write_stdin(context(), self.sent(&request))).await?;
        Ok(answer.len as usize)
    }

    /// End of a process' standard input.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn close_stdin(&self, container: &str, exec: &str) -> Result<(), SandboxError> {
        let mut request = wire::CloseStdinRequest::new();
        request.container_id = container.into();
        request.exec_id = process_id(container, exec);
        self.call(self.agent.0.close_stdin(context(), self.sent(&request))).await.map(drop)
    }

    /// Read an output; empty at its end.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn read(&self, container: &str, exec: &str, output: Output) -> Result<Vec<u8>, SandboxError> {
        let mut request = wire::ReadStreamRequest::new();
        request.container_id = container.into();
        request.exec_id = process_id(container, exec);
        request.len = READ_SIZE;
        let answer = match output {
            Output::Stdout => self.call(self.agent.0.read_stdout(context(), self.sent(&request))).await,
            Output::Stderr => self.call(self.agent.0.read_stderr(context(), self.sent(&request))).await,
        };
        match answer {
            Ok(answer) => {
                if !answer.data.is_empty() {
                    let fields = json!({"container": container, "stream": if output == Output::Stdout { "stdout" } else { "stderr" }});
                    let Value::Object(fields) = fields else { return Ok(answer.data) };
                    let text = String::from_utf8_lossy(&answer.data);
                    self.log.add_fields(Source::Container, "info", text.trim_end_matches('\n'), fields);
                }
                Ok(answer.data)
            }
            Err(error @ SandboxError::Ended(_)) => Err(error),
            // The agent tells the end of a stream by no data, and keeps a process until its end was read: an error here,
            // "no such process" included, is output that is lost.
            error => self.noted(
                || format!("output of {} is lost", process_id(container, exec)),
                error.map(|_| Vec::new()),
            ),
        }
    }

    /// Set a terminal's size.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn resize(
        &self,
        container: &str,
        exec: &str,
        rows: u32,
        columns: u32,
    ) -> Result<(), SandboxError> {
        let mut request = wire::TtyWinResizeRequest::new();
        request.container_id = container.into();
        request.exec_id = process_id(container, exec);
        request.row = rows;
        request.column = columns;
        self.call(self.agent.0.tty_win_resize(context(), self.sent(&request))).await.map(drop)
    }

    /// Change a container's limits; `resources` is OCI's `LinuxResources` as JSON.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn update(&self, container: &str, resources: &Value) -> Result<(), SandboxError> {
        let mut request = wire::UpdateContainerRequest::new();
        request.container_id = container.into();
        request.resources = Some(oci::resources(resources)).into();
        let done = self.call(self.agent.0.update_container(context(), self.sent(&request))).await;
        self.noted(|| format!("container {container} was not updated"), done).map(drop)
    }

    /// A container's counters.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn stats(&self, container: &str) -> Result<wire::StatsContainerResponse, SandboxError> {
        let request = wire::StatsContainerRequest { container_id: container.into(), ..Default::default() };
        self.call(self.agent.0.stats_container(context(), self.sent(&request))).await
    }

    /// Freeze a container.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn pause(&self, container: &str) -> Result<(), SandboxError> {
        let request = wire::PauseContainerRequest { container_id: container.into(), ..Default::default() };
        let done = self.call(self.agent.0.pause_container(context(), self.sent(&request))).await;
        self.noted(|| format!("container {container} was not paused"), done).map(drop)
    }

    /// Let a frozen container go on.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn resume(&self, container: &str) -> Result<(), SandboxError> {
        let request = wire::ResumeContainerRequest { container_id: container.into(), ..Default::default() };
        let done = self.call(self.agent.0.resume_container(context(), self.sent(&request))).await;
        self.noted(|| format!("container {container} was not resumed"), done).map(drop)
    }

    /// Remove a container, ending it if it runs.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn remove_container(&self, container: &str) -> Result<(), SandboxError> {
        let request = wire::RemoveContainerRequest { container_id: container.into(), ..Default::default() };
        let removed = self.call(self.agent.0.remove_container(context(), self.sent(&request))).await;
        self.release_slot(container).await;
        self.noted(|| format!("container {container} was not removed"), removed)?;
        self.log.add(Source::Shim, "info", &format!("container {container} is removed"));
        Ok(())
    }

    /// Id of the next container that ran out of memory, as the guest says: it may name what there is not.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub async fn out_of_memory(&self) -> Result<String, SandboxError> {
        let answer =
            self.call(self.agent.0.get_oom_event(context(), &wire::GetOOMEventRequest::new())).await?;
        let containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        if containers.contains_key(&answer.container_id) {
            let told = format!("container {} ran out of memory", answer.container_id);
            self.log.add(Source::Shim, "warn", &told);
        }
        Ok(answer.container_id)
    }
}

/// The agent's name of a process: Kata calls init by its container's id.
fn process_id(container: &str, exec: &str) -> String {
    if exec.is_empty() { container.to_owned() } else { exec.to_owned() }
}
