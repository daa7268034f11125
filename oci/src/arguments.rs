//! The command line: runc's verbs and flags.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::log::Format;

/// As engines want to read it.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.0.2");

/// An OCI runtime whose containers run on the sentry, a kernel in user space.
#[derive(Debug, Parser)]
#[command(name = "kata-cc-runc", version = VERSION, max_term_width = 100)]
pub struct Arguments {
    /// Options of all verbs.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of all verbs.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Log more.
    #[arg(long)]
    pub debug: bool,
    /// Log file; standard error without.
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// How lines of the log look.
    #[arg(long, value_enum, default_value_t)]
    pub log_format: Format,
    /// Folder of the containers' states; /run/kata-cc-oci without, or $XDG_RUNTIME_DIR/kata-cc-oci for users other than root.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Taken and not used: there is no criu.
    #[arg(long, value_name = "PATH", hide = true)]
    pub criu: Option<PathBuf>,
    /// Let systemd make the control group; cgroupsPath is then SLICE:PREFIX:NAME.
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Go on without control groups where they may not be made.
    #[arg(long, value_enum, default_value_t, num_args = 0..=1, default_missing_value = "true")]
    pub rootless: Rootless,
    /// What containers have of the network namespace that their bundle names: `sandbox`, all its interfaces, or `none`, loopback alone.
    #[arg(long, value_name = "MODE", default_value = "sandbox", value_parser = mode)]
    pub network: Mode,
    /// Start also where the host refuses a part of the sentry's defence.
    #[arg(long)]
    pub allow_weak: bool,
}

/// What containers have of their network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Its interfaces.
    Sandbox,
    /// Loopback alone.
    None,
}

fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "sandbox" => Ok(Mode::Sandbox),
        "none" => Ok(Mode::None),
        "host" => Err("a sentry has given up the calls of the host that its network would need (docs/sentry.md, \"Network\"): \
                       sandbox or none is possible"
            .into()),
        _ => Err("sandbox or none is possible".into()),
    }
}

/// Whether control groups may be missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Rootless {
    /// They may.
    True,
    /// They must be there.
    False,
    /// They may for users other than root.
    #[default]
    Auto,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a container; its program waits for `start`.
    Create(Create),
    /// Run the program of a created container.
    Start(Id),
    /// Create a container, start it, and wait for its end.
    Run(Run),
    /// Run another process in a container.
    Exec(Exec),
    /// Send a signal to the first process of a container.
    Kill(Kill),
    /// Take away a container that has ended.
    Delete(Delete),
    /// Print the state of a container as JSON.
    State(Id),
    /// List the containers of the root.
    List(List),
    /// List the processes of a container.
    Ps(Ps),
    /// Print what a container uses, and when it is out of memory.
    Events(Events),
    /// Freeze the processes of a container.
    Pause(Id),
    /// Let them go on.
    Resume(Id),
    /// Change the limits of a container.
    Update(Box<Update>),
    /// Keep a running container in files.
    Checkpoint(Checkpoint),
    /// Make a running container of such files.
    Restore(Restore),
    /// Write a new config.json.
    Spec(Spec),
    /// Print what this runtime can do as JSON.
    Features,
    /// For itself: stand for a process of a sandbox.
    #[command(hide = true)]
    Keep(Keep),
}

/// A container's id.
#[derive(Debug, Args)]
pub struct Id {
    /// The container.
    #[arg(value_name = "ID")]
    pub id: String,
}

/// What `create` and `run` have in common.
#[derive(Debug, Args)]
pub struct Create {
    /// Folder with config.json.
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Unix socket that gets the master of the container's terminal.
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File for the process' number.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Taken and without meaning: the root is the sentry's own.
    #[arg(long)]
    pub no_pivot: bool,
    /// Taken and without meaning: the sentry has no keyrings of the host.
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Hand this many descriptors from 3 on to the container.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// The image that it is made of; none but `restore` says so.
    #[arg(skip)]
    pub image: Option<PathBuf>,
    /// The container.
    #[arg(value_name = "ID")]
    pub id: String,
}

/// `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// As for `create`.
    #[command(flatten)]
    pub create: Create,
    /// Do not wait for its end.
    #[arg(long, short)]
    pub detach: bool,
    /// Keep what is left of it after its end.
    #[arg(long)]
    pub keep: bool,
    /// Taken and without meaning: nothing of the container is reparented.
    #[arg(long)]
    pub no_subreaper: bool,
}

/// `exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// Unix socket that gets the master of the process' terminal.
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Working folder in the container.
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// NAME=value of the environment.
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Give it a terminal.
    #[arg(long, short)]
    pub tty: bool,
    /// User and group by number.
    #[arg(long, short, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// A further group by number.
    #[arg(long, short = 'g', value_name = "GID", value_delimiter = ',')]
    pub additional_gids: Vec<u32>,
    /// File with an OCI process as JSON, in place of all that.
    #[arg(long, short, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Do not wait for its end.
    #[arg(long, short)]
    pub detach: bool,
    /// File for the process' number.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Taken and without meaning: labels of the host mean nothing in the sentry.
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// Likewise.
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// No program gives it more privileges.
    #[arg(long)]
    pub no_new_privs: bool,
    /// A further capability.
    #[arg(long, short, value_name = "CAP", value_delimiter = ',')]
    pub cap: Vec<String>,
    /// Hand this many descriptors from 3 on to it.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// A control group below the container's.
    #[arg(long, value_name = "GROUP")]
    pub cgroup: Vec<String>,
    /// Also in a container that is frozen.
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container, then the program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "ID COMMAND")]
    pub words: Vec<String>,
}

/// `kill`.
#[derive(Debug, Args)]
pub struct Kill {
    /// To all processes of the container.
    #[arg(long, short)]
    pub all: bool,
    /// The container.
    #[arg(value_name = "ID")]
    pub id: String,
    /// The signal, by name or number.
    #[arg(value_name = "SIGNAL", default_value = "TERM", allow_hyphen_values = true)]
    pub signal: String,
}

/// `delete`.
#[derive(Debug, Args)]
pub struct Delete {
    /// Kill it first where it still runs.
    #[arg(long, short)]
    pub force: bool,
    /// The container.
    #[arg(value_name = "ID")]
    pub id: String,
}

/// How lists look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Columns.
    #[default]
    Table,
    /// JSON.
    Json,
}

/// `list`.
#[derive(Debug, Args)]
pub struct List {
    /// How it looks.
    #[arg(long, short, value_enum, default_value_t)]
    pub format: Form,
    /// Ids alone.
    #[arg(long, short)]
    pub quiet: bool,
}

/// `ps`.
#[derive(Debug, Args)]
pub struct Ps {
    /// The sentry's processes as columns, or the numbers of the host's as JSON.
    #[arg(long, short, value_enum, default_value_t)]
    pub format: Form,
    /// The container.
    #[arg(value_name = "ID")]
    pub id: String,
    /// Options of ps(1): taken and not used.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    pub options: Vec<String>,
}

/// `events`.
#[derive(Debug, Args)]
pub struct Events {
    /// How often, as in `5s` or `1m`.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub interval: String,
    /// Once.
    #[arg(long)]
    pub stats: bool,
    /// The container.
    #[arg(value_name = "ID")]
    pub id: String,
}

/// `update`.
#[derive(Debug, Args)]
#[allow(missing_docs, reason = "named as the fields of the runtime specification")]
pub struct Update {
    /// File with an OCI LinuxResources as JSON, `-` for standard input; all other options are then not looked at.
    #[arg(long, short, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    #[arg(long, value_name = "USEC")]
    pub cpu_period: Option<u64>,
    #[arg(long, value_name = "USEC", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    #[arg(long, value_name = "N")]
    pub cpu_share: Option<u64>,
    #[arg(long, value_name = "USEC")]
    pub cpu_rt_period: Option<u64>,
    #[arg(long, value_name = "USEC", allow_negative_numbers = true)]
    pub cpu_rt_runtime: Option<i64>,
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory: Option<i64>,
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_reservation: Option<i64>,
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_swap: Option<i64>,
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, hide = true)]
    pub kernel_memory: Option<i64>,
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, hide = true)]
    pub kernel_memory_tcp: Option<i64>,
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    #[arg(long, hide = true)]
    pub l3_cache_schema: Option<String>,
    #[arg(long, hide = true)]
    pub mem_bw_schema: Option<String>,
    /// The container.
    #[arg(value_name = "ID")]
    pub id: String,
}

/// `checkpoint`. What the sentry always does, or cannot need, is taken and passed over; what it does not do is refused.
#[derive(Debug, Args)]
pub struct Checkpoint {
    /// Folder of the image; it is made where it is not there.
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Let the container go on afterwards.
    #[arg(long)]
    pub leave_running: bool,
    /// Of CRIU; without effect.
    #[command(flatten)]
    pub criu: Criu,
    /// Save memory alone (refused).
    #[arg(long, hide = true)]
    pub pre_dump: bool,
    /// The folder of a checkpoint before (refused).
    #[arg(long, value_name = "DIR", hide = true)]
    pub parent_path: Option<PathBuf>,
    /// Another machine for the memory (refused).
    #[arg(long, value_name = "ADDRESS", hide = true)]
    pub page_server: Option<String>,
    /// A descriptor to tell that memory can be fetched (refused).
    #[arg(long, value_name = "FD", hide = true)]
    pub status_fd: Option<u32>,
    /// The container.
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Options of CRIU that engines give, and that change nothing here.
#[derive(Clone, Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "flags of runc")]
#[allow(missing_docs, reason = "named as runc names them")]
pub struct Criu {
    #[arg(long, value_name = "DIR", hide = true)]
    pub work_path: Option<PathBuf>,
    #[arg(long, hide = true)]
    pub tcp_established: bool,
    #[arg(long, hide = true)]
    pub tcp_skip_in_flight: bool,
    #[arg(long, hide = true)]
    pub ext_unix_sk: bool,
    #[arg(long, hide = true)]
    pub shell_job: bool,
    #[arg(long, hide = true)]
    pub file_locks: bool,
    #[arg(long, hide = true)]
    pub auto_dedup: bool,
    #[arg(long, value_name = "MODE", hide = true)]
    pub manage_cgroups_mode: Option<String>,
    #[arg(long, value_name = "NAMESPACE", hide = true)]
    pub empty_ns: Vec<String>,
    #[arg(long, hide = true)]
    pub lazy_pages: bool,
}

/// `restore`: `run` of an image.
#[derive(Debug, Args)]
pub struct Restore {
    /// As for a container that is made.
    #[command(flatten)]
    pub create: Create,
    /// Folder of the image.
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Return when it runs.
    #[arg(long, short)]
    pub detach: bool,
    /// Accepted; without effect.
    #[arg(long, hide = true)]
    pub no_subreaper: bool,
    /// Of CRIU; without effect.
    #[command(flatten)]
    pub criu: Criu,
}

/// `spec`.
#[derive(Debug, Args)]
pub struct Spec {
    /// Where to write it; the working folder without.
    #[arg(long, short, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// For users other than root.
    #[arg(long, action = ArgAction::SetTrue)]
    pub rootless: bool,
}

/// `keep`.
#[derive(Debug, Args)]
pub struct Keep {
    /// Folder of the sandbox' state.
    #[arg(long)]
    pub folder: PathBuf,
    /// The container.
    #[arg(long)]
    pub container: String,
    /// The process; the first one without.
    #[arg(long, default_value = "")]
    pub exec: String,
    /// Descriptor that ends or gets a byte when the process is there: without a byte there will be none.
    #[arg(long)]
    pub go: i32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    /// As go-runc (containerd's shim), conmon (Podman, CRI-O) and buildah call a runtime.
    #[test]
    fn engines_lines_are_understood() {
        for line in [
            "runc --root /r --log /l --log-format json --systemd-cgroup create --bundle /b --pid-file /p --console-socket /c --no-pivot --no-new-keyring id",
            "runc --root /r --log /l --log-format json start id",
            "runc --root /r exec --process /p --console-socket /c --detach --pid-file /f id",
            "runc exec -t --cwd / -e A=b --env C=d -u 1:2 --cap CAP_KILL --preserve-fds 2 id sh -c ls",
            "runc --root /r kill --all id 9",
            "runc kill id SIGTERM",
            "runc delete --force id",
            "runc --rootless=true state id",
            "runc --rootless auto list --format json -q",
            "runc ps --format json id",
            "runc ps id -ef",
            "runc events --stats --interval 1s id",
            "runc update --resources - id",
            "runc update --memory -1 --cpu-quota -1 --pids-limit 5 id",
            "runc run -d --keep --no-subreaper -b /b id",
            "runc checkpoint --image-path /i --leave-running id",
            "runc spec --rootless -b /b",
            "runc features",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in ["runc", "runc create", "runc frob id", "runc create --frob id", "runc exec"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let Verb::Exec(exec) = parse("runc exec -d id ls -l --tty").unwrap().verb else { panic!() };
        assert!(exec.detach && !exec.tty);
        assert_eq!(exec.words, ["id", "ls", "-l", "--tty"]);
    }
}
