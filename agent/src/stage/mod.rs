//! The short-lived process that becomes a container's first process, or one started in it later.
//!
//! The agent runs many threads, so it must not run code of its own between `fork` and `execve`. It starts
//! its own program with `init` instead: a fresh process with one thread, whose standard input is a socket. Over it go
//! typed messages ([`message`]): the configuration and the descriptors for standard streams, then
//!
//! ```text
//! agent                outer (one thread)                  inner (in the new PID namespace)
//!   ── Config ───────────▶ joins cgroup and namespaces
//!   ◀─ MapIds ──────────── (only with a user namespace)
//!   ── IdsMapped ────────▶ forks ───────────────────────────▶
//!   ◀─ Forked{pid} ─────── exits
//!   ◀─ Ready (+ terminal) ─────────────────────────────────── mounts, pivots, is ready
//!   ── Start ────────────────────────────────────────────────▶ drops privileges, execve
//!   ◀─ end of stream: running                    or Failed{step, message} at any moment
//! ```
//!
//! Nothing of the configuration is trusted to be harmless: paths in the root file system are resolved with
//! `openat2(RESOLVE_IN_ROOT)`, so that a link in an image cannot lead out of it.

pub(crate) mod channel;
pub(crate) mod message;
mod privileges;
mod process;
mod rootfs;
pub(crate) mod users;

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use nix::sched::CloneFlags;
use nix::unistd::ForkResult;

use channel::Channel;
use message::{Config, FromAgent, FromStage, Kind};

/// Exit status of a stage that failed before `execve`.
pub(crate) const STAGE_FAILED: i32 = 125;

/// Entry of `kata-cc-agent init`; never returns to the agent's own code.
pub(crate) fn main() -> i32 {
    let mut channel = match Channel::from_stdin() {
        Ok(channel) => channel,
        Err(e) => {
            eprintln!("kata-cc-agent init: standard input is not the agent's socket: {e}");
            return STAGE_FAILED;
        }
    };
    match outer(&mut channel) {
        Ok(()) => 0,
        Err(e) => {
            let failed = FromStage::Failed { message: format!("{e:#}") };
            // The agent may be gone; then there is nobody to tell.
            let _ = channel.send(&failed, &[]);
            STAGE_FAILED
        }
    }
}

fn outer(channel: &mut Channel) -> Result<()> {
    let (message, fds) = channel.receive::<FromAgent>().context("receive configuration")?;
    let FromAgent::Config(config) = message else {
        bail!("expected the configuration first");
    };
    // SIGPIPE is ignored by the Rust runtime, and ignored signals survive execve.
    privileges::reset_signals().context("reset signals")?;
    process::set_oom_score(&config.process).context("set oom_score_adj")?;
    if let Some(path) = &config.cgroup {
        std::fs::write(path.join("cgroup.procs"), "0")
            .with_context(|| format!("join cgroup {}", path.display()))?;
    }
    match &config.kind {
        Kind::Create(create) => {
            for ns in &create.namespaces {
                let Some(path) = &ns.join else { continue };
                let file = std::fs::File::open(path)
                    .with_context(|| format!("open namespace {}", path.display()))?;
                nix::sched::setns(file.as_fd(), ns.flag())
                    .with_context(|| format!("join namespace {}", path.display()))?;
            }
            if create.unshare().contains(CloneFlags::CLONE_NEWUSER) {
                enter_user_namespace(channel).context("enter user namespace")?;
            }
            let pid = create.unshare() & CloneFlags::CLONE_NEWPID;
            nix::sched::unshare(pid).context("make PID namespace")?;
        }
        Kind::Exec(exec) => {
            let Some(target) = fds.last() else {
                bail!("exec needs the process descriptor of the container");
            };
            nix::sched::setns(target.as_fd(), CloneFlags::from_bits_retain(exec.namespaces))
                .context("join the container's namespaces")?;
        }
    }
    match crate::sys::fork_single_threaded().context("fork")? {
        ForkResult::Parent { child } => {
            channel.send(&FromStage::Forked { pid: child.as_raw() }, &[]).context("report the process")?;
            Ok(())
        }
        ForkResult::Child => {
            let Err(e) = inner(channel, *config, fds);
            let failed = FromStage::Failed { message: format!("{e:#}") };
            let _ = channel.send(&failed, &[]);
            end_now()
        }
    }
}

/// Ends the forked child: it must not return into its parent's code.
#[allow(clippy::exit)]
fn end_now() -> ! {
    std::process::exit(STAGE_FAILED)
}

fn enter_user_namespace(channel: &mut Channel) -> Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER)?;
    channel.send(&FromStage::MapIds { pid: nix::unistd::getpid().as_raw() }, &[])?;
    let (FromAgent::IdsMapped, _) = channel.receive::<FromAgent>()? else {
        bail!("expected the id mapping to be confirmed");
    };
    let zero = nix::unistd::Uid::from_raw(0);
    nix::unistd::setresgid(0.into(), 0.into(), 0.into())?;
    nix::unistd::setresuid(zero, zero, zero)?;
    Ok(())
}

fn inner(channel: &mut Channel, config: Config, fds: Vec<OwnedFd>) -> Result<std::convert::Infallible> {
    nix::unistd::setsid().context("start a session")?;
    let mut terminal = None;
    if let Kind::Create(create) = &config.kind {
        let rest = create.unshare() & !(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUSER)
            | CloneFlags::CLONE_NEWNS;
        nix::sched::unshare(rest).context("make namespaces")?;
        rootfs::enter(create, config.process.terminal)?;
    }
    let mut fds = fds.into_iter();
    if config.process.terminal {
        let master = process::open_terminal(&config.process).context("open a terminal")?;
        terminal = Some(master);
    } else {
        let (Some(stdin), Some(stdout), Some(stderr)) = (fds.next(), fds.next(), fds.next()) else {
            bail!("standard streams are missing");
        };
        // The socket is on descriptor 0 until here: the channel keeps its own copy.
        nix::unistd::dup2_stdin(&stdin).context("set stdin")?;
        nix::unistd::dup2_stdout(&stdout).context("set stdout")?;
        nix::unistd::dup2_stderr(&stderr).context("set stderr")?;
    }
    drop(fds);
    let plan = process::Plan::resolve(&config.process)?;
    channel
        .send(&FromStage::Ready, &terminal.iter().map(AsFd::as_fd).collect::<Vec<_>>())
        .context("report readiness")?;
    drop(terminal);
    let (FromAgent::Start, _) = channel.receive::<FromAgent>().context("wait for the start")? else {
        bail!("expected the start");
    };
    plan.run(&config.process)
}
