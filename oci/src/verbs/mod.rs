//! The verbs, a file each, and what they share.

mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod inside;
mod kill;
mod list;
mod pause;
mod ps;
mod run;
mod signal;
mod spec;
mod start;
mod update;

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::OwnedFd;

use clap::Parser;
use serde_json::Value;

use crate::arguments::{Arguments, Global, Mode, Rootless, Verb};
use crate::bundle;
use crate::cgroup::Driver;
use crate::error::{OciError, io};
use crate::keeper;
use crate::log::Log;
use crate::process::in_user_namespace;
use crate::store::{CONFIG, Folder, Store};

/// A failure of this runtime itself.
const FAILED: u8 = 1;
/// The same for `exec`, whose other codes are the program's.
const EXEC_FAILED: u8 = 255;

/// Descriptors that a process may have besides its streams: as many as the sentry takes.
const PRESERVED_MAX: u32 = 32;

/// What all verbs have.
#[derive(Debug)]
pub struct Context {
    store: Store,
    log: Log,
    driver: Driver,
    rootless: Rootless,
    network: Mode,
    weak: bool,
}

impl Context {
    fn new(global: Global) -> Self {
        Self {
            store: Store::new(global.root),
            log: Log { file: global.log, format: global.log_format, debug: global.debug },
            driver: if global.systemd_cgroup { Driver::Systemd } else { Driver::Cgroupfs },
            rootless: global.rootless,
            network: global.network,
            weak: global.allow_weak,
        }
    }

    /// Whether a container may be without control groups.
    fn may_lack_groups(&self) -> bool {
        match self.rootless {
            Rootless::True => true,
            Rootless::False => false,
            Rootless::Auto => !nix::unistd::geteuid().is_root() || in_user_namespace(),
        }
    }
}

/// Runs a command line, the program's name first; gives the exit code.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { FAILED } else { 0 };
        }
    };
    let context = Context::new(arguments.global);
    let (name, code) = match &arguments.verb {
        Verb::Create(_) => ("create failed: ", FAILED),
        Verb::Run(_) => ("run failed: ", FAILED),
        Verb::Exec(_) => ("exec failed: ", EXEC_FAILED),
        Verb::Checkpoint(_) => ("checkpoint failed: ", FAILED),
        Verb::Restore(_) => ("restore failed: ", FAILED),
        _ => ("", FAILED),
    };
    match run(&context, arguments.verb) {
        Ok(code) => code,
        Err(error) => {
            context.log.error(&format!("{name}{error}"));
            code
        }
    }
}

fn run(context: &Context, verb: Verb) -> Result<u8, OciError> {
    match verb {
        Verb::Create(arguments) => create::create(context, &arguments),
        Verb::Start(arguments) => start::start(context, &arguments.id),
        Verb::Run(arguments) => run::run(context, &arguments),
        Verb::Exec(arguments) => exec::exec(context, &arguments),
        Verb::Kill(arguments) => kill::kill(context, &arguments),
        Verb::Delete(arguments) => delete::delete(context, &arguments.id, arguments.force),
        Verb::State(arguments) => list::state(context, &arguments.id),
        Verb::List(arguments) => list::list(context, &arguments),
        Verb::Ps(arguments) => ps::ps(context, &arguments),
        Verb::Events(arguments) => events::events(context, &arguments),
        Verb::Pause(arguments) => pause::pause(context, &arguments.id),
        Verb::Resume(arguments) => pause::resume(context, &arguments.id),
        Verb::Update(arguments) => update::update(context, &arguments),
        Verb::Checkpoint(arguments) => checkpoint::checkpoint(context, &arguments),
        Verb::Restore(arguments) => checkpoint::restore(context, arguments),
        Verb::Spec(arguments) => spec::spec(&arguments),
        Verb::Features => print(&features::features()),
        Verb::Keep(arguments) => keeper::keep(&arguments),
    }
}

/// Writes to standard output; a reader that is gone is no failure.
fn say(text: &str) -> Result<u8, OciError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(io("cannot write to standard output")(error))
        }
        _ => Ok(0),
    }
}

/// Prints JSON for readers.
fn print(value: &impl serde::Serialize) -> Result<u8, OciError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| io("cannot print")(error.into()))?;
    say(&(text + "\n"))
}

/// The specification of a container as it was created.
fn kept_spec(folder: &Folder) -> Result<Value, OciError> {
    Ok(bundle::read_object(&folder.file(CONFIG))?.1)
}

/// Descriptors beyond the standard streams that a process is to have (`--preserve-fds`).
fn preserved(count: u32) -> Result<Vec<OwnedFd>, OciError> {
    if count > PRESERVED_MAX {
        let reason = format!("--preserve-fds {count}: at most {PRESERVED_MAX} descriptors are handed on");
        return Err(OciError::Usage(reason));
    }
    let numbers = (3..).take(count as usize);
    let copy = |number| {
        crate::spawn::copied(number).map_err(|error| {
            let reason = format!(
                "--preserve-fds {count}: descriptor {number} was not handed to this program: {error}"
            );
            OciError::Usage(reason)
        })
    };
    numbers.map(copy).collect()
}

/// Where the terminal of a process comes from: told by an engine, or the user's own.
fn check_terminal(terminal: bool, detached: bool, socket: bool) -> Result<(), OciError> {
    let reason = match (terminal, detached, socket) {
        (true, true, false) => {
            "cannot allocate tty if the runtime will detach without setting console socket: give --console-socket"
        }
        (_, false, true) | (false, true, true) => {
            "cannot use console socket if the runtime will not detach or allocate tty: leave --console-socket away"
        }
        _ => return Ok(()),
    };
    Err(OciError::Usage(reason.into()))
}

/// Writes the number of a process where an engine looks for it, in one step: the file is there with all of it, or not at all.
fn write_pid(file: Option<&std::path::Path>, pid: u32) -> Result<(), OciError> {
    let Some(file) = file else { return Ok(()) };
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let new = file.with_file_name(format!(".{name}"));
    let written = std::fs::write(&new, pid.to_string()).and_then(|()| std::fs::rename(&new, file));
    written.map_err(io(format!("cannot write {}", file.display())))
}
