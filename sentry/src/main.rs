//! `kata-cc-sentry`: runs programs on the user-space kernel.

mod attempt;

use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use kata_cc_sentry::defence::{self, Defence, Side, Strength};
use kata_cc_sentry::link::{self, Network, Opened};
use kata_cc_sentry::platform::systrap::Systrap;
use kata_cc_sentry::sandbox::{Command, Config, DEFAULT_PATH, Sandbox, SandboxError, open_root};
use kata_cc_sentry::syscalls;

/// A user-space kernel: programs of a container run on it instead of on the host's.
#[derive(Parser)]
#[command(name = "kata-cc-sentry", version)]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run one program in a sandbox of its own, with this terminal or these pipes as its input and output.
    ///
    /// Exits as the program does; 128 and the number of the signal that ended it; 127 when there is no such program, 126 when it cannot be
    /// run, 125 when the sandbox cannot be started.
    Do(Do),
    /// Print the table of system calls as Markdown.
    Syscalls,
    /// Print the table of calls that the sentry itself makes of the host, as Markdown.
    HostCalls,
}

#[derive(clap::Args)]
struct Do {
    /// Folder that becomes the root.
    #[arg(long, default_value = "/", value_name = "DIR")]
    rootfs: PathBuf,
    /// Refuse changes to the root instead of keeping them in memory until the end.
    #[arg(long)]
    read_only: bool,
    /// Most MiB of such changes.
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// Working folder in the sandbox.
    #[arg(long, default_value = "/", value_name = "DIR")]
    cwd: String,
    /// NAME=value of the environment; without any, PATH, HOME and TERM.
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// User and group, by number.
    #[arg(long, default_value = "0:0", value_name = "UID:GID", value_parser = user)]
    user: (u32, u32),
    /// Name of the machine.
    #[arg(long, default_value = "sandbox")]
    hostname: String,
    /// Network besides loopback: `none`; `host-veth=INTERFACE` takes over an interface with its addresses and routes, out of the network
    /// namespace `netns=PATH` or the caller's own; `tap=NAME,address=IP/BITS,gateway=IP` (also `mac=`, `mtu=`, `netns=`).
    #[arg(long, default_value = "none", value_name = "NETWORK")]
    network: Network,
    /// Go on where the host refuses a part of the sentry's defence, with a warning.
    #[arg(long)]
    allow_weak: bool,
    /// For debugging: no namespaces, no filter, all privileges of who runs this.
    #[arg(long, conflicts_with = "allow_weak")]
    no_defence: bool,
    /// For tests: the sentry makes this call of the host instead of running the program.
    #[arg(long, hide = true, value_name = "CALL")]
    try_call: Option<String>,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn user(text: &str) -> Result<(u32, u32), String> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number of a user or group"));
    Ok((number(user)?, number(group)?))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("KATA_CC_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let result = match arguments.command {
        Verb::Do(arguments) => run(arguments),
        Verb::Syscalls => {
            print!("{}", syscalls::markdown());
            Ok(0)
        }
        Verb::HostCalls => {
            print!("{}", defence::markdown());
            Ok(0)
        }
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("kata-cc-sentry: {error:#}");
            let code = error.downcast_ref::<SandboxError>().map_or(125, SandboxError::exit_code);
            ExitCode::from(code)
        }
    }
}

fn run(arguments: Do) -> anyhow::Result<u8> {
    let strength = match (arguments.no_defence, arguments.allow_weak) {
        (true, _) => Strength::Off,
        (false, true) => Strength::Weak,
        (false, false) => Strength::Full,
    };
    let opened = link::open(&arguments.network).context("cannot take the network over")?;
    let keep: Vec<_> = opened.iter().map(|opened| opened.fd.as_raw_fd()).collect();
    match Defence::begin(strength, &keep).context("cannot defend the sentry")? {
        Side::Outer(code) => Ok(code),
        Side::Sentry(defence) => serve(arguments, &defence, opened),
    }
}

/// What the sentry's process does.
fn serve(arguments: Do, defence: &Defence, opened: Option<Opened>) -> anyhow::Result<u8> {
    let root = defence.keep_root(open_root(&arguments.rootfs)?)?;
    let platform =
        Systrap::new().context("cannot start the systrap platform: the host refuses a stub process")?;
    let config = Config {
        writable: !arguments.read_only,
        memory: arguments.memory.map(|mib| mib << 20),
        hostname: arguments.hostname,
    };
    let sandbox = Sandbox::new(Box::new(platform), root, &config)?;
    let mut environment = arguments.env;
    if environment.is_empty() {
        environment = vec![format!("PATH={DEFAULT_PATH}"), "HOME=/root".to_owned()];
        environment.extend(std::env::var("TERM").map(|term| format!("TERM={term}")));
    }
    let command =
        Command { arguments: arguments.command, environment, folder: arguments.cwd, user: arguments.user };
    let streams = streams()?;
    defence.enter().context("cannot defend the sentry")?;
    if let Some(Opened { config, fd }) = opened {
        // Its thread is made after the defence, as all that serve guests are: so it has no privileges either.
        sandbox.kernel().net.attach(config, fd).context("cannot attach the network")?;
    }
    if let Some(call) = arguments.try_call {
        attempt::forbidden_call(&call)?;
        return Ok(0);
    }
    let task = sandbox.start(&command, streams)?;
    let status = task.group().wait_exited(None).context("the first process has no status")?;
    Ok(match status & 0x7f {
        0 => ((status >> 8) & 0xff) as u8,
        signal => 128 + signal as u8,
    })
}

/// Copies of this process' own streams.
fn streams() -> anyhow::Result<[OwnedFd; 3]> {
    let copy =
        |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().context("a standard stream is closed");
    let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    Ok([copy(input.as_fd())?, copy(output.as_fd())?, copy(errors.as_fd())?])
}
