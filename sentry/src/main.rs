//! `kata-cc-sentry`: runs programs on the user-space kernel.

mod attempt;
mod confinement;
mod monitor;
mod platforms;
mod volume;

use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};
use confinement::Confinement;
use kata_cc_sentry::defence::{self, Defence, Helper, Side, Strength};
use kata_cc_sentry::gofer::{self, Client, Export, Gofer};
use kata_cc_sentry::link::{self, Network, Opened};
use kata_cc_sentry::net::stack::LinkConfig;
use kata_cc_sentry::sandbox::{Changes, Command, Config, DEFAULT_PATH, Sandbox, SandboxError};
use kata_cc_sentry::vfs::erofs::Erofs;
use kata_cc_sentry::vfs::host::{HostFs, Sharing};
use kata_cc_sentry::vfs::{FileSystem, MountFlags};
use kata_cc_sentry::{say, syscalls};
use volume::Volume;

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
    Do(Box<Do>),
    /// Be a sandbox whose containers are made and driven by the agent API.
    ///
    /// Ends with 0 when it is asked to (DestroySandbox, SIGTERM), 125 when it cannot start, 70 when the sentry is lost.
    Serve(Box<monitor::Serve>),
    /// Say which platforms run here, and why others do not.
    Platforms(Platforms),
    /// Print the table of system calls as Markdown.
    Syscalls,
    /// Print the table of calls that the sentry itself makes of the host, as Markdown.
    HostCalls,
    /// Print the tables of calls that a gofer makes of the host, as Markdown.
    GoferCalls,
}

#[derive(clap::Args)]
struct Do {
    /// Folder that becomes the root.
    #[arg(long, default_value = "/", value_name = "DIR")]
    rootfs: PathBuf,
    /// EROFS image that becomes the root, instead of a folder.
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["rootfs", "overlay"])]
    erofs: Option<PathBuf>,
    /// Refuse changes to the root instead of keeping them in memory until the end.
    #[arg(long)]
    read_only: bool,
    /// Where changes to the root go: `memory`, until the end, or `none`: to the folder itself.
    #[arg(long, value_enum, default_value = "memory", conflicts_with = "read_only")]
    overlay: OverlayMode,
    /// A folder or file of the host that the sandbox sees at DST and, without `ro`, can change. Without `exclusive` others can change it, too.
    #[arg(long, short, value_name = "SRC:DST[:ro,exclusive]", value_parser = volume::parse)]
    volume: Vec<Volume>,
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
    /// Network besides loopback: `none`; `sandbox`, all interfaces of the caller's network namespace (`sandbox,seize`: also where other processes use it); `host-veth=INTERFACE` takes over an interface with its addresses and routes, out of the network
    /// namespace `netns=PATH` or the caller's own; `tap=NAME,address=IP/BITS,gateway=IP` (also `mac=`, `mtu=`, `netns=`).
    #[arg(long, default_value = "none", value_name = "NETWORK")]
    network: Network,
    #[command(flatten)]
    confinement: Confinement,
    /// For tests: the sentry makes this call of the host instead of running the program.
    #[arg(long, hide = true, value_name = "CALL")]
    try_call: Option<String>,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OverlayMode {
    Memory,
    None,
}

#[derive(clap::Args)]
struct Platforms {
    /// As JSON: a list of name, available, reason.
    #[arg(long)]
    json: bool,
}

fn user(text: &str) -> Result<(u32, u32), String> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no number of a user or group"));
    Ok((number(user)?, number(group)?))
}

/// What is logged where nobody says: of a sandbox also which calls its guests miss, for `kata-cc explain --calls`.
fn default_log(verb: &Verb) -> &'static str {
    if matches!(verb, Verb::Serve(_)) { "warn,kata_cc_sentry::calls=info" } else { "warn" }
}

fn main() -> ExitCode {
    if gofer::program::is_meant() {
        return gofer::program::run();
    }
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("KATA_CC_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default_log(&arguments.command)));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let result = match arguments.command {
        Verb::Do(arguments) => run(*arguments),
        Verb::Serve(options) => monitor::run(*options),
        Verb::Platforms(arguments) => platforms::print(arguments.json).map(|()| 0),
        Verb::Syscalls => {
            print!("{}", syscalls::markdown());
            Ok(0)
        }
        Verb::HostCalls => {
            print!("{}", defence::markdown());
            Ok(0)
        }
        Verb::GoferCalls => {
            print!("{}", gofer::markdown());
            Ok(0)
        }
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say::line(format_args!("kata-cc-sentry: {error:#}"));
            let code = error.downcast_ref::<SandboxError>().map_or(125, SandboxError::exit_code);
            ExitCode::from(code)
        }
    }
}

fn run(arguments: Do) -> anyhow::Result<u8> {
    let strength = arguments.confinement.strength();
    let mut kept = Vec::new();
    let opened = link::open(&arguments.network).context("cannot take the network over")?;
    let attach = |Opened { config, fd }| {
        kept.push(fd);
        config
    };
    let network: Vec<LinkConfig> = opened.into_iter().map(attach).collect();
    if let Some(path) = &arguments.erofs {
        let image = std::fs::File::open(path).with_context(|| format!("image {}", path.display()))?;
        kept.push(image.into());
    }
    let exports = exports(&arguments);
    if exports.is_empty() {
        return go_on(arguments, network, strength, (kept, &[]));
    }
    let Gofer { child, socket } = gofer::spawn(Path::new("/proc/self/exe"), &exports, strength)
        .context("cannot start the gofer, which holds files for the sentry")?;
    let helper = Helper { pid: child.id(), what: "the gofer, which holds the sandbox's files," };
    kept.push(socket);
    go_on(arguments, network, strength, (kept, &[helper]))
}

/// Goes on in two processes: one that waits, and the sentry.
fn go_on(
    arguments: Do,
    network: Vec<LinkConfig>,
    strength: Strength,
    (kept, helpers): (Vec<OwnedFd>, &[Helper]),
) -> anyhow::Result<u8> {
    match Defence::begin(strength, kept, helpers).context("cannot defend the sentry")? {
        Side::Outer(code) => Ok(code),
        Side::Sentry(defence, kept) => serve(arguments, network, &defence, kept),
    }
}

/// What the gofer is to show: the root, unless it is an image, then the volumes.
fn exports(arguments: &Do) -> Vec<Export> {
    let writable = arguments.overlay == OverlayMode::None;
    let root = Export { path: arguments.rootfs.clone(), writable };
    let of = |volume: &Volume| Export { path: volume.source.clone(), writable: volume.writable };
    let root = arguments.erofs.is_none().then_some(root);
    root.into_iter().chain(arguments.volume.iter().map(of)).collect()
}

/// The file system of the root.
fn root(
    arguments: &Do,
    image: Option<OwnedFd>,
    client: Option<&Arc<Client>>,
) -> anyhow::Result<Box<dyn FileSystem>> {
    if let (Some(image), Some(path)) = (image, &arguments.erofs) {
        let image = Erofs::new(image).with_context(|| format!("image {}", path.display()))?;
        return Ok(Box::new(image));
    }
    let client = client.context("the way to the gofer is lost")?;
    let direct = arguments.overlay == OverlayMode::None;
    let root = HostFs::new(Arc::clone(client), 0, direct, Sharing::Exclusive);
    Ok(Box::new(root.context("reading the root")?))
}

/// What the sentry's process does.
fn serve(
    arguments: Do,
    network: Vec<LinkConfig>,
    defence: &Defence,
    kept: Vec<OwnedFd>,
) -> anyhow::Result<u8> {
    let platform = arguments.confinement.start_platform()?;
    let mut kept = kept.into_iter();
    let network: Vec<(LinkConfig, OwnedFd)> = network.into_iter().zip(kept.by_ref()).collect();
    let image = if arguments.erofs.is_some() { kept.next() } else { None };
    let client = kept.next().map(Client::connect).transpose()?;
    let memory = arguments.memory.map(|mib| mib << 20);
    let direct = arguments.read_only || arguments.overlay == OverlayMode::None;
    let changes = if direct { Changes::Direct } else { Changes::InMemory(memory) };
    let config = Config { changes, hostname: arguments.hostname.clone() };
    let sandbox = Sandbox::new(platform, root(&arguments, image, client.as_ref())?, &config)?;
    let first = u32::from(arguments.erofs.is_none());
    for (export, volume) in (first..).zip(&arguments.volume) {
        let client = Arc::clone(client.as_ref().context("the way to the gofer is lost")?);
        let tree = HostFs::tree(client, export, volume.writable, volume.sharing)
            .with_context(|| format!("volume {}", volume.source.display()))?;
        let flags = if volume.writable { MountFlags::default() } else { MountFlags::READ_ONLY };
        sandbox.mount(&volume.destination, tree, flags | MountFlags::NO_DEV)?;
    }
    let mut environment = arguments.env;
    if environment.is_empty() {
        environment = vec![format!("PATH={DEFAULT_PATH}"), "HOME=/root".to_owned()];
        environment.extend(std::env::var("TERM").map(|term| format!("TERM={term}")));
    }
    let command =
        Command { arguments: arguments.command, environment, folder: arguments.cwd, user: arguments.user };
    let streams = streams()?;
    defence.enter(arguments.confinement.platform).context("cannot defend the sentry")?;
    for (config, fd) in network {
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
