//! What the sentry gives up before a guest runs, so that who takes it over from inside has little in hand.
//!
//! 1. [`Defence::begin`]: the command forks a process that is the sentry proper, in namespaces of its own ([`namespaces`], [`inner`]). It is
//!    number 1 of its namespace of processes: the host ends every stub with it, and it ends with the command that waits for it. With
//!    [`Defence::begin_served`] that command stays in the host's namespaces as the *monitor*, and a socket leads from one to the other.
//! 2. The first stub is made by a thread without capabilities ([`drop_privileges`]), and is not under the sentry's filter but under its own.
//! 3. [`Defence::enter`]: the root becomes empty ([`rooms`]), capabilities go ([`privileges`]), and all threads come under a filter
//!    ([`filter`]) that knows the calls of a table ([`calls`]).
//!
//! A step that the host refuses is an error which names it, or a warning with [`Strength::Weak`].

pub(crate) mod calls;
pub(crate) mod filter;
mod inner;
pub(crate) mod namespaces;
pub(crate) mod privileges;
pub(crate) mod rooms;

use std::os::fd::OwnedFd;

use thiserror::Error;

pub use calls::{count, markdown};
pub use inner::SentryProcess;
pub use privileges::drop_privileges;

use crate::error::Errno;
use crate::platform::Kind;

/// How much of it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strength {
    /// All, or nothing runs.
    Full,
    /// What the host lets be.
    Weak,
    /// Nothing: for debugging.
    Off,
}

/// A step that the host refuses.
#[derive(Debug, Error)]
#[error("{step}: {errno}; {way_out}")]
pub struct Refused {
    /// What was to be done.
    pub step: &'static str,
    /// What the host says.
    pub errno: Errno,
    /// What could be done about it.
    pub way_out: &'static str,
}

/// A process that the sentry relies on.
#[derive(Debug, Clone, Copy)]
pub struct Helper {
    /// Its number.
    pub pid: u32,
    /// What it is, for the message when it ends.
    pub what: &'static str,
}

/// The sentry's defence, between its two halves.
#[derive(Debug)]
pub struct Defence {
    strength: Strength,
    /// Whether the tree of mounts is its own.
    own_mounts: bool,
}

/// Who goes on after [`Defence::begin`].
#[derive(Debug)]
pub enum Side {
    /// The process that waited for the sentry, which ended like this.
    Outer(u8),
    /// The sentry, with the descriptors that it was to keep.
    Sentry(Defence, Vec<OwnedFd>),
}

/// Who goes on after [`Defence::begin_served`].
#[derive(Debug)]
pub enum Served {
    /// The process that opens files and answers clients, with its end of the socket.
    Monitor(SentryProcess, OwnedFd),
    /// The sentry, with its end.
    Sentry(Defence, OwnedFd),
}

impl Strength {
    /// Whether to go on after a step.
    pub(crate) fn judge(self, step: Result<(), Refused>) -> Result<bool, Refused> {
        match step {
            Ok(()) => Ok(true),
            Err(refused) if self == Self::Full => Err(refused),
            Err(refused) => {
                tracing::warn!("the defence lacks a step: {refused}");
                Ok(false)
            }
        }
    }
}

impl Defence {
    /// Goes on in a process of its own. The caller has one thread and has opened nothing that it needs later but what is `kept` for the
    /// sentry. `helpers` are processes of the caller without which the sentry is of no use: when one ends, the sentry is ended.
    ///
    /// # Errors
    /// A step that the host refuses.
    pub fn begin(strength: Strength, kept: Vec<OwnedFd>, helpers: &[Helper]) -> Result<Side, Refused> {
        if strength == Strength::Off {
            tracing::warn!("the defence is off: whoever breaks out of a guest has what this process has");
            return Ok(Side::Sentry(Self { strength, own_mounts: false }, kept));
        }
        inner::fork(strength, kept, helpers)
    }

    /// Goes on in two processes, the second of which is the sentry. The caller has one thread and has opened nothing that it needs later in
    /// the second. With `network` it is to take interfaces over later, and keeps the capabilities for that.
    ///
    /// # Errors
    /// A step that the host refuses.
    pub fn begin_served(strength: Strength, network: bool) -> Result<Served, Refused> {
        if strength == Strength::Off {
            tracing::warn!("the defence is off: whoever breaks out of a guest has what this process has");
        }
        inner::fork_served(strength, network)
    }

    /// The part that the new process does first. It keeps some descriptors.
    fn settle(strength: Strength, kept: &mut [OwnedFd]) -> Result<Self, Refused> {
        privileges::plain_panics();
        if strength == Strength::Off {
            return Ok(Self { strength, own_mounts: false });
        }
        let own_mounts = namespaces::leave(strength, false)?;
        strength.judge(privileges::close_inherited(kept))?;
        if own_mounts {
            strength.judge(rooms::make_private())?;
        }
        crate::outside::hold(rooms::processes()?, rooms::cpus()?);
        // Stubs are made after this; a working folder that is not the root would stay theirs when the root becomes empty.
        strength.judge(rooms::leave_folder())?;
        strength.judge(privileges::limit())?;
        Ok(Self { strength, own_mounts })
    }

    /// Gives up everything else. All files were opened, the platform was started, and no guest runs.
    ///
    /// # Errors
    /// A step that the host refuses.
    pub fn enter(&self, platform: Kind) -> Result<(), Refused> {
        if self.strength == Strength::Off {
            return Ok(());
        }
        privileges::settle_heap();
        if self.own_mounts {
            self.strength.judge(rooms::empty_root())?;
        }
        self.strength.judge(drop_privileges())?;
        self.strength.judge(privileges::hide_memory())?;
        self.strength.judge(filter::install(platform))?;
        Ok(())
    }
}
