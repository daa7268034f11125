//! The gofer's process. Its socket is its standard input; what it has to say goes to its standard error.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use nix::fcntl::{FcntlArg, fcntl};

use super::channel::Channel;
use super::client::{TEXT_MAX, VERSION};
use super::server::{End, Server};
use super::wire::Writer;
use super::{Export, NAME, confine};
use crate::defence::Strength;
use crate::error::Errno;
use crate::say;

/// Whether the program is to be a gofer: that is told by its name.
#[must_use]
pub fn is_meant() -> bool {
    std::env::args_os().next().is_some_and(|name| name == NAME)
}

/// First message of a gofer that is ready.
pub(super) fn ready() -> Vec<u8> {
    let mut message = Writer::default();
    message.u8(0).u32(VERSION);
    message.0
}

fn refusal(text: &str) -> Vec<u8> {
    let text = text.as_bytes();
    let mut message = Writer::default();
    message.u8(1).bytes(text.get(..TEXT_MAX).unwrap_or(text));
    message.0
}

fn parse(arguments: &[OsString]) -> Option<(Strength, Vec<Export>)> {
    let (strength, exports) = arguments.split_first()?;
    let strength = match strength.to_str()? {
        "full" => Strength::Full,
        "weak" => Strength::Weak,
        "off" => Strength::Off,
        _ => return None,
    };
    Some((strength, exports.iter().map(Export::parse).collect::<Option<_>>()?))
}

/// Serves until the sentry is gone.
#[must_use]
pub fn run() -> ExitCode {
    if let Ok(name) = std::ffi::CString::new(NAME) {
        // Only for who looks at processes.
        let _ = nix::sys::prctl::set_name(&name);
    }
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Some((strength, exports)) = parse(&arguments) else {
        say::line(format_args!("{NAME}: kata-cc-sentry starts it by itself; it is of no use by hand"));
        return ExitCode::from(2);
    };
    let socket = match take_socket() {
        Ok(socket) => socket,
        Err(errno) => {
            say::line(format_args!("{NAME}: standard input is no socket of a sentry: {errno}"));
            return ExitCode::from(2);
        }
    };
    if let Err(refused) = crate::defence::privileges::close_all_but(socket.as_raw_fd()) {
        say::line(format_args!("{NAME}: {refused}"));
        return ExitCode::FAILURE;
    }
    let first = |message: &[u8]| match socket.try_clone() {
        Ok(socket) => Channel::new(socket).send(message, None),
        Err(_) => Err(Errno::EMFILE),
    };
    let server = match confine::enter(&exports, strength) {
        Ok(confined) => Server::new(confined.roots, confined.descriptors),
        Err(error) => {
            let _ = first(&refusal(&error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    if first(&ready()).is_err() {
        return ExitCode::FAILURE;
    }
    drop(exports);
    connection_ended(&server.serve(socket));
    ExitCode::SUCCESS
}

/// Standard input under another number.
fn take_socket() -> Result<OwnedFd, Errno> {
    // SAFETY: nothing else in this process uses standard input, and it is gone when this ends.
    let input = unsafe { OwnedFd::from_raw_fd(libc::STDIN_FILENO) };
    nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(input.as_raw_fd())?;
    let socket = fcntl(&input, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: the kernel has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

#[allow(clippy::exit, reason = "all connections end with the one that shows what the sentry has become")]
/// A connection is of no more use: the sentry has ended, or is to end.
pub(super) fn connection_ended(end: &End) {
    match end {
        End::Closed | End::Failed(Errno::EPIPE | Errno::ECONNRESET) => {}
        End::Malformed => {
            say::line(format_args!(
                "{NAME}: the sentry asks for what is no request: has it been taken over? It ends"
            ));
            std::process::exit(1);
        }
        End::Failed(errno) => {
            say::line(format_args!("{NAME}: {errno}: it ends"));
            std::process::exit(1);
        }
    }
}
