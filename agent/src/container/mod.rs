//! Containers: one [`Container`] holds its first process, further ones, cgroup and bundle.

pub(crate) mod cgroup;
pub(crate) mod devices;
pub(crate) mod process;
pub(crate) mod seccomp;
pub(crate) mod spec;
pub(crate) mod stream;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kata_cc_agent_protocol::oci;
use tokio::sync::{Mutex, mpsc};
use tracing::{info, warn};

use cgroup::Cgroup;
use process::Process;

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its name.
    pub(crate) id: String,
    /// Limits and statistics.
    pub(crate) cgroup: Option<Cgroup>,
    /// First process.
    pub(crate) init: Arc<Process>,
    /// Further processes by exec id.
    pub(crate) execs: Mutex<HashMap<String, Arc<Process>>>,
    /// `Linux` part of its configuration: an exec gets the same seccomp profile.
    pub(crate) linux: oci::Linux,
    /// Folder removed with it.
    pub(crate) bundle: PathBuf,
    /// Mount points of storages it holds.
    pub(crate) storages: Vec<String>,
    /// StartContainer was called.
    pub(crate) started: AtomicBool,
    /// Out-of-memory kills already told.
    pub(crate) oom_told: AtomicU64,
}

impl Container {
    /// The process `exec_id` names: "" and the container's own id are the first one.
    pub(crate) async fn process(&self, exec_id: &str) -> Option<Arc<Process>> {
        if exec_id.is_empty() || exec_id == self.id {
            return Some(Arc::clone(&self.init));
        }
        self.execs.lock().await.get(exec_id).cloned()
    }

    /// Tells once for each out-of-memory kill since the last time.
    pub(crate) fn report_oom(&self, events: &mpsc::Sender<String>) {
        let Some(cgroup) = &self.cgroup else { return };
        let now = cgroup.oom_kills();
        let before = self.oom_told.fetch_max(now, Ordering::SeqCst);
        if now > before {
            info!(container = self.id, kills = now - before, "out of memory");
            // A full queue means nobody asks; the newest event is then lost, not the agent's memory.
            if events.try_send(self.id.clone()).is_err() {
                warn!(container = self.id, "out-of-memory event dropped: nobody collects them");
            }
        }
    }

    /// Watches the out-of-memory counter until the container ends.
    pub(crate) fn watch_oom(self: &Arc<Self>, events: mpsc::Sender<String>) {
        let Some(cgroup) = self.cgroup.clone() else { return };
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let watch = match Watch::new(&cgroup.memory_events()) {
                Ok(watch) => watch,
                Err(e) => {
                    warn!(container = this.id, error = %e, "out-of-memory events cannot be watched");
                    return;
                }
            };
            loop {
                tokio::select! {
                    changed = watch.changed() => if changed.is_err() { return },
                    _ = this.init.wait() => {
                        this.report_oom(&events);
                        return;
                    }
                }
                this.report_oom(&events);
            }
        });
    }

    /// Ends all processes and removes cgroup and bundle.
    pub(crate) async fn destroy(&self) {
        if self.init.exit_code().is_none() {
            // Either is enough; a cgroup reaches what left the PID namespace by nesting.
            if let Some(Err(e)) = self.cgroup.as_ref().map(Cgroup::kill) {
                warn!(container = self.id, error = %e, "kill by cgroup failed");
            }
            if let Err(e) = self.init.signal(libc::SIGKILL) {
                warn!(container = self.id, error = %e, "kill failed");
            }
            self.init.wait().await;
        }
        if let Some(cgroup) = &self.cgroup {
            // Execs in a shared PID namespace outlive the first process.
            let _ = cgroup.kill();
            cgroup.remove().await;
        }
    }
}

/// An inotify watch on one file, for the runtime.
struct Watch(tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>);

impl Watch {
    fn new(path: &std::path::Path) -> std::io::Result<Self> {
        use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(path, AddWatchFlags::IN_MODIFY)?;
        let fd = std::os::fd::AsFd::as_fd(&inotify).try_clone_to_owned()?;
        Ok(Self(crate::sys::watch(fd)?))
    }

    async fn changed(&self) -> std::io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            // What happened is of no interest: there is one file and one kind of event.
            let mut events = [0; 4096];
            if let Ok(result) = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut events)?)) {
                return result.map(drop);
            }
        }
    }
}

/// Marks a container as started; false when it was before.
pub(crate) fn mark_started(container: &Container) -> bool {
    !container.started.swap(true, Ordering::SeqCst)
}
