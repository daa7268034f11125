//! `kata-cc-vmm`: runs one microVM and ends with it. Log lines are JSON on stderr; exit codes are those
//! of `kata_cc_vmm_api::exit`.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use kata_cc_vmm::control::ControlSocket;
use kata_cc_vmm::error::VmmError;
use kata_cc_vmm::vm::{Outcome, Vm};
use kata_cc_vmm::{config, probe};
use kata_cc_vmm_api::{VmConfig, exit};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Runs one microVM.
#[derive(Parser)]
#[command(version, about, long_about = None)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["config", "probe", "probe_tee"]))]
struct Arguments {
    /// Configuration of the VM: JSON, or TOML when the name ends in .toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only check the configuration; start nothing
    #[arg(long, requires = "config")]
    check: bool,
    /// Find out by a tiny guest whether KVM can run VMs here; prints JSON
    #[arg(long)]
    probe: bool,
    /// Find out what KVM and the firmware offer for confidential VMs; prints JSON
    #[arg(long)]
    probe_tee: bool,
    /// Die when the parent process dies
    #[arg(long)]
    die_with_parent: bool,
    /// Least level of log lines: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: tracing::Level,
}

fn main() -> ExitCode {
    let begin = Instant::now();
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_max_level(arguments.log_level)
        // a log whose reader is gone must not take the guest down with it
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .init();
    let code = if arguments.probe {
        run_probe()
    } else if arguments.probe_tee {
        run_tee_probe()
    } else {
        match run(&arguments, begin) {
            Ok(code) => code,
            Err(error) => {
                tracing::error!("{error}");
                error.exit_code()
            }
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[allow(clippy::print_stdout, reason = "the verdict is the output")]
fn run_probe() -> i32 {
    let verdict = probe::probe();
    println!("{}", serde_json::json!(verdict));
    probe::exit_code(&verdict)
}

#[allow(clippy::print_stdout, reason = "the answer is the output")]
fn run_tee_probe() -> i32 {
    match kata_cc_vmm::tee::probe::probe() {
        Ok(answer) => {
            println!("{}", serde_json::json!(answer));
            exit::OK
        }
        Err(refusal) => {
            tracing::error!("kvm: {refusal}");
            exit::NO_KVM
        }
    }
}

fn run(arguments: &Arguments, begin: Instant) -> Result<i32, VmmError> {
    if arguments.die_with_parent {
        die_with_parent()?;
    }
    let Some(path) = &arguments.config else {
        return Ok(exit::BAD_CONFIG);
    };
    let config = config::load(path)?;
    if arguments.check {
        return Ok(exit::OK);
    }
    // sockets and consoles are for this user only
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    // before any thread starts, so that all inherit the mask
    let signals = block_signals()?;
    run_vm(&config, &signals, begin)
}

fn run_vm(config: &VmConfig, signals: &SignalFd, begin: Instant) -> Result<i32, VmmError> {
    let socket = ControlSocket::bind(&config.control_socket)?;
    let vm = Arc::new(Vm::create(config)?);
    let stop = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .map(Arc::new)
        .map_err(VmmError::system("eventfd"))?;
    let control = socket.serve(Arc::clone(&vm), Arc::clone(&stop))?;
    let state = vm.state();
    if config.tee.is_simulated() {
        tracing::warn!(
            tee = state.tee,
            launch_digest = state.launch_digest,
            "the tee is simulated: it protects nothing"
        );
    }
    let micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
    tracing::info!(id = config.id, tee = state.tee, micros, "vcpus start");
    vm.resume().map_err(|e| VmmError::System { what: "start", source: std::io::Error::other(e) })?;

    let outcome = wait(&vm, signals)?;
    match &outcome {
        Outcome::Stopped | Outcome::GuestShutdown | Outcome::GuestReset => {
            tracing::info!(?outcome, "vm ended");
        }
        Outcome::GuestFault(_) | Outcome::KvmFault(_) | Outcome::Failed(_) => {
            tracing::error!(?outcome, "vm ended");
        }
    }
    let _ = stop.write(1);
    if control.join().is_err() {
        tracing::error!("the control thread panicked");
    }
    vm.shut_down();
    Ok(outcome.exit_code())
}

/// Waits for the VM's end or for a signal that asks for it.
fn wait(vm: &Vm, signals: &SignalFd) -> Result<Outcome, VmmError> {
    loop {
        let mut fds = [
            PollFd::new(vm.end().event().as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::Error::EINTR) => continue,
            other => other.map_err(VmmError::system("poll"))?,
        };
        if let Some(outcome) = vm.end().outcome() {
            return Ok(outcome);
        }
        if let Ok(Some(signal)) = signals.read_signal() {
            tracing::info!(signal = signal.ssi_signo, "asked to stop");
            return Ok(Outcome::Stopped);
        }
    }
}

fn block_signals() -> Result<SignalFd, VmmError> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().map_err(VmmError::system("signal mask"))?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(VmmError::system("signalfd"))
}

/// The kernel sends SIGKILL when the parent is gone; a parent that is gone already is noticed here.
fn die_with_parent() -> Result<(), VmmError> {
    let parent = nix::unistd::getppid();
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(VmmError::system("parent death signal"))?;
    if nix::unistd::getppid() != parent {
        return Err(VmmError::System {
            what: "parent",
            source: std::io::Error::other("died during the start"),
        });
    }
    Ok(())
}
