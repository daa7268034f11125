//! The process of the host that is a sandbox: a virtual machine's monitor, or the sentry's.

use std::fs::File;
use std::process::{ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};

use tokio::process::{Child, Command};

use crate::process::{self, Netns};

/// A started monitor.
#[derive(Debug)]
pub(crate) struct Monitor {
    /// The process.
    pub(crate) child: Child,
    /// Its id.
    pub(crate) pid: u32,
    /// When it started, see [`process::start_time`].
    pub(crate) start: u64,
    /// What its exit means, in words.
    pub(crate) exit_reason: fn(ExitStatus) -> String,
}

/// Start it in a network namespace and in control groups, whose `cgroup.procs` are `doors`. It dies with this process.
pub(crate) fn start(
    mut command: Command,
    netns: Netns<'_>,
    doors: Vec<File>,
    exit_reason: fn(ExitStatus) -> String,
) -> std::io::Result<Monitor> {
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    process::enter(&mut command, netns, doors, true)?;
    let child = spawn_from_lasting_thread(command)?;
    let pid = child.id().unwrap_or_default();
    Ok(Monitor { child, pid, start: process::start_time(pid).unwrap_or_default(), exit_reason })
}

/// Spawn from a thread that lives as long as this process.
///
/// The monitor asks to be killed when its parent dies, and to the kernel the parent is the *thread* that forked
/// (prctl(2), `PR_SET_PDEATHSIG`): a pool thread that the runtime retires would take the monitor along.
fn spawn_from_lasting_thread(mut command: Command) -> std::io::Result<Child> {
    type Job = Box<dyn FnOnce() + Send>;
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("monitor-parent".into());
        // Without the thread the channel is closed, and the first spawn says so.
        let _ = thread.spawn(move || jobs.into_iter().for_each(|job| job()));
        sender
    });
    let runtime = tokio::runtime::Handle::current();
    let (answer, child) = mpsc::channel();
    let job = move || {
        let _inside = runtime.enter();
        let _ = answer.send(command.spawn());
    };
    let lost = |_| std::io::Error::other("the thread that starts monitors is gone");
    spawner
        .send(Box::new(job))
        .map_err(|_| std::io::Error::other("the thread that starts monitors is gone"))?;
    child.recv().map_err(lost)?
}
