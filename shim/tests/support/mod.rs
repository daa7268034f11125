//! A guest of plain memory: containers "run" until they are signalled or told to exit, their output is what was
//! written to their input.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use kata_cc_agent_protocol::agent::StatsContainerResponse;
use kata_cc_sandbox::Pull;
use kata_cc_shim::guest::{ContainerRequest, GuestError, Launcher, Output, Pod, PodRequest};
use oci_spec::runtime::{LinuxResources, Process};
use tokio::sync::{Notify, watch};

#[derive(Default)]
struct Proc {
    exit: watch::Sender<Option<u32>>,
    data: Mutex<Vec<u8>>,
    closed: watch::Sender<bool>,
    moved: Notify,
}

/// The fake sandbox.
pub(crate) struct FakePod {
    procs: Mutex<HashMap<(String, String), Arc<Proc>>>,
    ended: watch::Sender<Option<String>>,
    ooms: tokio::sync::Mutex<tokio::sync::mpsc::Receiver<String>>,
    oom: tokio::sync::mpsc::Sender<String>,
    /// How often it was stopped.
    pub(crate) stops: Mutex<u32>,
}

impl FakePod {
    /// A running one.
    pub(crate) fn new() -> Arc<Self> {
        let (oom, ooms) = tokio::sync::mpsc::channel(8);
        Arc::new(Self {
            procs: Mutex::default(),
            ended: watch::Sender::new(None),
            ooms: ooms.into(),
            oom,
            stops: Mutex::default(),
        })
    }

    /// The machine dies.
    pub(crate) fn die(&self, reason: &str) {
        self.ended.send_replace(Some(reason.to_owned()));
    }

    /// The guest's kernel kills for want of memory.
    pub(crate) fn out_of_memory_in(&self, container: &str) {
        self.oom.try_send(container.to_owned()).unwrap();
    }

    /// The same, as soon as the last report was heard.
    pub(crate) async fn out_of_memory_again(&self, container: &str) {
        self.oom.send(container.to_owned()).await.unwrap();
    }

    /// A process ends by itself.
    pub(crate) fn exit(&self, container: &str, exec: &str, code: u32) {
        self.proc(container, exec).unwrap().exit.send_replace(Some(code));
    }

    fn proc(&self, container: &str, exec: &str) -> Result<Arc<Proc>, GuestError> {
        let procs = self.procs.lock().unwrap();
        let key = (container.to_owned(), exec.to_owned());
        procs.get(&key).cloned().ok_or_else(|| GuestError::NotFound(format!("no process {key:?}")))
    }

    fn add(&self, container: &str, exec: &str) {
        self.procs.lock().unwrap().insert((container.to_owned(), exec.to_owned()), Arc::default());
    }
}

/// Hands the same pod out, or fails.
pub(crate) struct FakeLauncher(pub(crate) Result<Arc<FakePod>, GuestError>);

#[async_trait]
impl Launcher for FakeLauncher {
    async fn launch(&self, _: PodRequest) -> Result<Arc<dyn Pod>, GuestError> {
        Ok(self.0.clone()?)
    }
}

#[async_trait]
impl Pod for FakePod {
    fn pid(&self) -> u32 {
        4242
    }
    fn uses_host_rootfs(&self) -> bool {
        false
    }
    async fn ended(&self) -> String {
        self.ended.subscribe().wait_for(Option::is_some).await.unwrap().clone().unwrap()
    }
    async fn create(&self, request: &ContainerRequest) -> Result<(), GuestError> {
        match request.image.as_deref() {
            Some("hangs") => std::future::pending().await,
            Some("denied") => Err(GuestError::Denied("rule AllowImages: denied".into())),
            _ => {
                self.add(&request.id, "");
                Ok(())
            }
        }
    }
    fn pull(&self, image: &str) -> Option<Pull> {
        (image == "hangs").then_some(Pull { bytes: 41, of: 100, seconds: 10 })
    }
    async fn start(&self, container: &str) -> Result<(), GuestError> {
        self.proc(container, "").map(drop)
    }
    async fn exec(&self, container: &str, exec: &str, process: &Process) -> Result<(), GuestError> {
        if process.args().as_deref() == Some(&["/nowhere".to_owned()]) {
            return Err(GuestError::Other("no such file".into()));
        }
        self.add(container, exec);
        Ok(())
    }
    async fn signal(&self, container: &str, exec: &str, signal: u32) -> Result<(), GuestError> {
        self.proc(container, exec)?.exit.send_replace(Some(128 + signal));
        Ok(())
    }
    async fn wait(&self, container: &str, exec: &str) -> Result<u32, GuestError> {
        let mut exit = self.proc(container, exec)?.exit.subscribe();
        let code = exit.wait_for(Option::is_some).await.unwrap().unwrap();
        Ok(code)
    }
    async fn write_stdin(&self, container: &str, exec: &str, data: &[u8]) -> Result<usize, GuestError> {
        let proc = self.proc(container, exec)?;
        // takes little at a time, as a pipe may
        let taken = data.len().min(1000);
        proc.data.lock().unwrap().extend_from_slice(&data[..taken]);
        proc.moved.notify_one();
        Ok(taken)
    }
    async fn close_stdin(&self, container: &str, exec: &str) -> Result<(), GuestError> {
        let proc = self.proc(container, exec)?;
        proc.closed.send_replace(true);
        proc.moved.notify_one();
        Ok(())
    }
    async fn read(&self, container: &str, exec: &str, output: Output) -> Result<Vec<u8>, GuestError> {
        let proc = self.proc(container, exec)?;
        if output == Output::Stderr {
            return Ok(Vec::new());
        }
        let mut exit = proc.exit.subscribe();
        loop {
            let data = std::mem::take(&mut *proc.data.lock().unwrap());
            if !data.is_empty() || *proc.closed.borrow() || exit.borrow().is_some() {
                return Ok(data);
            }
            tokio::select! {
                () = proc.moved.notified() => (),
                _ = exit.wait_for(Option::is_some) => (),
            }
        }
    }
    async fn resize(&self, container: &str, exec: &str, _: u32, _: u32) -> Result<(), GuestError> {
        self.proc(container, exec).map(drop)
    }
    async fn update(&self, container: &str, _: &LinuxResources) -> Result<(), GuestError> {
        self.proc(container, "").map(drop)
    }
    async fn stats(&self, container: &str) -> Result<StatsContainerResponse, GuestError> {
        self.proc(container, "").map(|_| StatsContainerResponse::new())
    }
    async fn pause(&self, container: &str) -> Result<(), GuestError> {
        self.proc(container, "").map(drop)
    }
    async fn resume(&self, container: &str) -> Result<(), GuestError> {
        self.proc(container, "").map(drop)
    }
    async fn remove(&self, container: &str) -> Result<(), GuestError> {
        self.procs.lock().unwrap().retain(|(id, _), _| id != container);
        Ok(())
    }
    async fn out_of_memory(&self) -> Result<String, GuestError> {
        self.ooms.lock().await.recv().await.ok_or_else(|| GuestError::Unavailable("gone".into()))
    }
    async fn stop(&self) {
        *self.stops.lock().unwrap() += 1;
        self.die("stopped");
    }
}
