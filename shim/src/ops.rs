//! What can be done to the processes of a container that exists.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kata_cc_agent_protocol::agent::StatsContainerResponse;
use oci_spec::runtime::{LinuxResources, Process};

use crate::alive::{alive, prompt};
use crate::cell::{Cell, Proc};
use crate::error::TaskError;
use crate::guest::{GuestError, Output};
use crate::machine::{Exit, Refusal, State};
use crate::pump::{self, Progress, Who};
use crate::stdio::{Opened, Streams};
use crate::tasks::end_code;

/// How long execs may report their own ends after init's, before they are told ended.
const EXECS: Duration = Duration::from_secs(3);
const SIGKILL: u32 = 9;

/// A process as `State` shows it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its state.
    pub state: State,
    /// Its streams.
    pub streams: Streams,
}

impl Cell {
    /// State and streams of a process.
    pub fn show(&self, exec: &str) -> Result<Shown, TaskError> {
        let inner = self.lock();
        let state = inner.machine.state(exec)?;
        let streams = inner.procs.get(exec).map(|process| process.streams.clone()).unwrap_or_default();
        Ok(Shown { state, streams })
    }

    /// Record an exec.
    pub fn add_exec(&self, exec: &str, streams: Streams, process: Process) -> Result<(), TaskError> {
        if !crate::flags::is_identifier(exec) {
            return Err(TaskError::Invalid(format!("exec id {exec:?} is not an identifier")));
        }
        self.try_apply(|inner| {
            let events = inner.machine.add_exec(exec)?;
            inner.procs.insert(exec.to_owned(), Proc::new(streams, None, Some(process)));
            Ok::<_, Refusal>(events)
        })?;
        Ok(())
    }

    /// Start init or an exec.
    pub async fn start(self: &Arc<Self>, exec: &str, namespace: &str) -> Result<(), TaskError> {
        let (streams, process, opened) = {
            let mut inner = self.lock();
            inner.machine.begin_start(exec)?;
            let kept = inner.procs.get_mut(exec).ok_or_else(|| Refusal::NotFound(exec.to_owned()))?;
            (kept.streams.clone(), kept.process.clone(), kept.opened.take())
        };
        let result = self.start_in_guest(exec, &streams, process, opened, namespace).await;
        match result {
            Ok(opened) => {
                self.apply(|machine| machine.started(exec));
                let cell = Arc::clone(self);
                let exec = exec.to_owned();
                tokio::spawn(async move { cell.follow(&exec, opened).await });
                Ok(())
            }
            Err(error) => {
                let at = SystemTime::now();
                let mut inner = self.lock();
                inner.machine.start_failed(exec, at);
                if let Some(process) = inner.procs.get(exec)
                    && let Ok(State::Stopped(exit)) = inner.machine.state(exec)
                {
                    process.exit.send_replace(Some(exit));
                }
                Err(error)
            }
        }
    }

    async fn start_in_guest(
        &self,
        exec: &str,
        streams: &Streams,
        process: Option<Process>,
        opened: Option<Opened>,
        namespace: &str,
    ) -> Result<Opened, TaskError> {
        let opened = match opened {
            Some(opened) => opened,
            None => streams.open(&self.id, namespace).await?,
        };
        match process {
            None => alive(&*self.pod, self.pod.start(&self.id)).await?,
            Some(process) => alive(&*self.pod, self.pod.exec(&self.id, exec, &process)).await?,
        }
        let size = self.lock().procs.get(exec).and_then(|process| process.size);
        if let Some((rows, columns)) = size {
            let _ = prompt(&*self.pod, self.pod.resize(&self.id, exec, rows, columns)).await;
        }
        Ok(opened)
    }

    /// Move a running process' data and report its end.
    async fn follow(&self, exec: &str, opened: Opened) {
        let who = Who { pod: Arc::clone(&self.pod), container: self.id.clone(), exec: exec.to_owned() };
        let (terminal, close) = {
            let inner = self.lock();
            let process = inner.procs.get(exec);
            let terminal = process.is_some_and(|process| process.streams.terminal);
            (terminal, process.map(|process| Arc::clone(&process.close_stdin)).unwrap_or_default())
        };
        let Opened { stdin, stdout, stderr, logger } = opened;
        let input = match stdin {
            Some(stdin) => Some(tokio::spawn(pump::input(who.clone(), stdin, close))),
            // Nobody will ever write: let a process that reads see the end.
            None if !terminal => {
                let _ = prompt(&*self.pod, self.pod.close_stdin(&self.id, exec)).await;
                None
            }
            None => None,
        };
        let progress = Arc::new(Progress::default());
        let mut outputs =
            vec![tokio::spawn(pump::output(who.clone(), Output::Stdout, stdout, Arc::clone(&progress)))];
        if !terminal {
            outputs.push(tokio::spawn(pump::output(
                who.clone(),
                Output::Stderr,
                stderr,
                Arc::clone(&progress),
            )));
        }
        let waited = alive(&*self.pod, self.pod.wait(&self.id, exec)).await;
        let at = SystemTime::now();
        pump::drain(outputs, &progress).await;
        if let Some(input) = input {
            input.abort();
        }
        if let Some(logger) = logger {
            tokio::spawn(logger.finish());
        }
        if exec.is_empty() {
            self.wait_for_execs().await;
        }
        self.apply(|machine| {
            let code = waited.unwrap_or_else(|error| {
                tracing::error!(container = self.id, exec, %error, "the process ended with its sandbox");
                end_code(machine)
            });
            machine.exited(exec, Exit { code, at })
        });
    }

    /// When init ends its namespace does; give the execs the time to say how they ended.
    async fn wait_for_execs(&self) {
        let running = self.lock().machine.running_execs();
        let ends = running.iter().filter_map(|exec| self.exit_of(exec)).map(|mut exit| async move {
            let _ = exit.wait_for(Option::is_some).await;
        });
        let _ = tokio::time::timeout(EXECS, futures::future::join_all(ends)).await;
    }

    /// The end of a process, once it has come.
    pub async fn wait(&self, exec: &str) -> Result<Exit, TaskError> {
        let mut exit = self.exit_of(exec).ok_or_else(|| Refusal::NotFound(exec.to_owned()))?;
        let end = exit.wait_for(Option::is_some).await.map(|end| *end);
        end.ok().flatten().ok_or_else(|| Refusal::NotFound(exec.to_owned()).into())
    }

    /// Send a signal; `all` means every process of the container.
    pub async fn kill(&self, exec: &str, signal: u32, all: bool) -> Result<(), TaskError> {
        if signal == 0 || signal > 64 {
            return Err(TaskError::Invalid(format!("signal {signal} does not exist")));
        }
        let state = {
            let inner = self.lock();
            inner.machine.may_signal(exec)?;
            inner.machine.state(exec)?
        };
        if exec.is_empty() && matches!(state, State::Created) {
            let _ = prompt(&*self.pod, self.pod.signal(&self.id, exec, signal)).await;
            let ends = matches!(signal, 1 | 2 | 3 | 6 | SIGKILL | 15);
            if ends {
                // Nothing has run yet that could handle it; removal ends the waiting process in the guest.
                self.apply(|machine| machine.exited("", Exit { code: 128 + signal, at: SystemTime::now() }));
            }
            return Ok(());
        }
        let sent = prompt(&*self.pod, self.pod.signal(&self.id, exec, signal)).await;
        if all && signal != SIGKILL {
            let execs = self.lock().machine.running_execs();
            for exec in execs {
                let _ = prompt(&*self.pod, self.pod.signal(&self.id, &exec, signal)).await;
            }
        }
        match sent {
            // It ended meanwhile; who follows it says how.
            Err(GuestError::NotFound(_)) => Err(Refusal::Finished.into()),
            Err(GuestError::Unavailable(reason)) => {
                tracing::debug!(container = self.id, reason, "nothing left to signal");
                Err(Refusal::Finished.into())
            }
            other => Ok(other?),
        }
    }

    /// Remove an exec that does not run; how it ended.
    pub fn delete_exec(&self, exec: &str) -> Result<Exit, TaskError> {
        let mut inner = self.lock();
        let exit = inner.machine.delete_exec(exec)?;
        let exit = exit.unwrap_or(Exit { code: 0, at: SystemTime::now() });
        if let Some(process) = inner.procs.remove(exec) {
            process.exit.send_replace(Some(exit));
        }
        Ok(exit)
    }

    /// Set the terminal's size, now or at the start.
    pub async fn resize(&self, exec: &str, rows: u32, columns: u32) -> Result<(), TaskError> {
        {
            let mut inner = self.lock();
            match inner.machine.state(exec)? {
                State::Stopped(_) => return Err(Refusal::Finished.into()),
                State::Created | State::Starting => {
                    if let Some(process) = inner.procs.get_mut(exec) {
                        process.size = Some((rows, columns));
                    }
                    return Ok(());
                }
                State::Running | State::Paused => (),
            }
        }
        Ok(prompt(&*self.pod, self.pod.resize(&self.id, exec, rows, columns)).await?)
    }

    /// containerd writes no more input.
    pub fn close_stdin(&self, exec: &str) -> Result<(), TaskError> {
        let inner = self.lock();
        inner.machine.state(exec)?;
        if let Some(process) = inner.procs.get(exec) {
            process.close_stdin.notify_one();
        }
        Ok(())
    }

    /// Freeze.
    pub async fn pause(&self) -> Result<(), TaskError> {
        self.lock().machine.may_pause()?;
        prompt(&*self.pod, self.pod.pause(&self.id)).await?;
        Ok(self.try_apply(|inner| inner.machine.paused())?)
    }

    /// Go on.
    pub async fn resume(&self) -> Result<(), TaskError> {
        self.lock().machine.may_resume()?;
        prompt(&*self.pod, self.pod.resume(&self.id)).await?;
        Ok(self.try_apply(|inner| inner.machine.resumed())?)
    }

    /// Change limits.
    pub async fn update(&self, resources: &LinuxResources) -> Result<(), TaskError> {
        Ok(prompt(&*self.pod, self.pod.update(&self.id, resources)).await?)
    }

    /// Counters.
    pub async fn stats(&self) -> Result<StatsContainerResponse, TaskError> {
        Ok(prompt(&*self.pod, self.pod.stats(&self.id)).await?)
    }
}
