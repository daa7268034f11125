//! The server: one process per pod, started by `start` with the listening socket as its standard input.

use std::fs::OpenOptions;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::events::Publisher;
use crate::flags::Flags;
use crate::guest::Launcher;
use crate::service;
use crate::socket;
use crate::tasks::Tasks;

/// How long after the last answer the connection stays, so that the answer is read.
const GOODBYE: Duration = Duration::from_millis(50);

/// What must happen while the process has one thread only: a mount namespace of its own, so that root file systems
/// are unmounted by the kernel whatever ends the server, and the listener off the standard input.
///
/// Mounts of the host (volumes, network namespaces) keep arriving; ours do not leave.
pub fn prepare() -> anyhow::Result<UnixListener> {
    let listener = socket::inherited()?;
    let null = OpenOptions::new().read(true).open("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stdin(&null).context("cannot replace the standard input")?;
    let private = unshare(CloneFlags::CLONE_NEWNS).and_then(|()| {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
    });
    if let Err(error) = private {
        // No rights: root file systems are then unmounted by us, or by `delete`.
        tracing::warn!(%error, "no mount namespace of its own");
    }
    Ok(listener)
}

/// Serve until containerd shuts the last container's server down, or a signal says so.
pub async fn serve(flags: &Flags, listener: UnixListener, launcher: Arc<dyn Launcher>) -> anyhow::Result<()> {
    let events = std::env::var("TTRPC_ADDRESS").ok().filter(|address| !address.is_empty());
    if events.is_none() {
        tracing::info!("TTRPC_ADDRESS is not set: events go to the log only");
    }
    let publisher = Publisher::start(flags.namespace.clone(), events);
    let tasks = Tasks::new(flags.namespace.clone(), flags.id.clone(), launcher, publisher);
    let listener = Listener::try_from(listener).context("cannot use the listening socket")?;
    let mut server = service::register(Server::new(), &tasks).add_listener(listener);
    server.start().await.context("cannot serve")?;
    // A bundle that is gone already reads as a path that does not exist.
    if let Ok(bundle) = std::fs::read_link("/proc/self/cwd") {
        tokio::spawn(Arc::clone(&tasks).watch_bundle(bundle));
    }
    tracing::info!(pid = std::process::id(), "serving");

    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        () = tasks.finished() => (),
        _ = terminate.recv() => {
            tracing::warn!("told to end");
            tasks.stop_pod().await;
        }
    }
    tasks.flush().await;
    if let Some(path) = &flags.socket {
        socket::remove(Path::new(path));
    }
    tokio::time::sleep(GOODBYE).await;
    Ok(())
}
