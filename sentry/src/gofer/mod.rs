//! The gofer: a process that holds the host's files for a sentry, which can open none itself.
//!
//! It is the same program under another name ([`NAME`]), started before the sentry gives everything up. It sees the folders and files that it
//! exports and nothing else of the host, has the few capabilities that access to other users' files takes, and a filter of its own
//! ([`confine`]). It ends with the process that started it and with its sentry.
//!
//! | part | what it is |
//! |---|---|
//! | [`spawn`] | starts one for some [`Export`]s; the socket goes to the sentry |
//! | [`Client`] | the sentry's end: [`crate::vfs::host::HostFs`] asks by it |
//! | [`wire`], [`channel`] | messages; how they go, with descriptors |
//! | [`server`] | the gofer's end |
//! | [`program`], [`confine`] | its process, and what that gives up |
//!
//! **What crosses.** Names and attributes. A file that is opened comes back as a descriptor: reading, writing and mapping it concern
//! nobody else, and its pages are the host's page cache, which all containers share that map the same file. Descriptors of folders never
//! come: by those one could go up.
//!
//! **Who believes what.** Each end takes the other for one that somebody has taken over. The gofer looks at every field, and resolves names
//! below its exports only. The sentry takes from the gofer nothing but what files are: an answer that is none is EIO for ever.

mod channel;
mod client;
mod confine;
pub mod program;
mod server;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
pub(crate) mod wire;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub use client::{Client, ConnectError};
pub use confine::markdown;

use crate::defence::Strength;

/// What the program is called when it is to be a gofer.
pub const NAME: &str = "kata-cc-gofer";

/// Exports of one gofer at most.
pub const EXPORTS_MAX: usize = 256;

/// A folder or file of the host that a sandbox sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Where it is.
    pub path: PathBuf,
    /// Whether the sandbox may change it.
    pub writable: bool,
}

/// A gofer that was started.
#[derive(Debug)]
pub struct Gofer {
    /// Its process.
    pub child: Child,
    /// For its sentry ([`Client::connect`]), and for nobody else: the gofer ends when this is closed.
    pub socket: OwnedFd,
}

impl Export {
    /// As an argument of the program.
    fn argument(&self) -> OsString {
        let mut text = if self.writable { b"rw:".to_vec() } else { b"ro:".to_vec() };
        text.extend_from_slice(self.path.as_os_str().as_bytes());
        OsString::from_vec(text)
    }

    fn parse(argument: &OsString) -> Option<Self> {
        let bytes = argument.as_bytes();
        let (how, path) = bytes.split_at_checked(3)?;
        let writable = match how {
            b"ro:" => false,
            b"rw:" => true,
            _ => return None,
        };
        Some(Self { path: PathBuf::from(OsString::from_vec(path.to_vec())), writable })
    }
}

/// Starts one for these exports, which are asked for by their place in the list. `program` is the sentry's own, `/proc/self/exe` for itself.
/// The gofer ends with the thread that calls this.
///
/// # Errors
/// Of the host; more exports than [`EXPORTS_MAX`].
pub fn spawn(program: &Path, exports: &[Export], strength: Strength) -> std::io::Result<Gofer> {
    if exports.len() > EXPORTS_MAX {
        let text = format!("{} exports, and a gofer has at most {EXPORTS_MAX}", exports.len());
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, text));
    }
    let (ours, theirs) = channel::pair()?;
    let strength = match strength {
        Strength::Full => "full",
        Strength::Weak => "weak",
        Strength::Off => "off",
    };
    let mut command = Command::new(program);
    command.arg0(NAME).arg(strength).args(exports.iter().map(Export::argument));
    command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
    Ok(Gofer { child: command.spawn()?, socket: ours })
}

/// A gofer within this process, for tests: it is confined by nothing.
///
/// # Errors
/// Of the host.
pub fn within(root: OwnedFd, writable: bool) -> std::io::Result<OwnedFd> {
    let (ours, theirs) = channel::pair()?;
    let server = server::Server::within(vec![server::Root { fd: root, writable }])?;
    channel::Channel::new(theirs.try_clone()?).send(&program::ready(), None)?;
    std::thread::Builder::new().spawn(move || server.serve(theirs))?;
    Ok(ours)
}
