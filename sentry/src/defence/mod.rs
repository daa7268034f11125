//! What the sentry gives up before a guest runs, so that who takes it over from inside has little in hand.
//!
//! 1. [`Defence::begin`]: the command forks a process that is the sentry proper, in namespaces of its own ([`namespaces`], [`inner`]). It is
//!    number 1 of its namespace of processes: the host ends every stub with it, and it ends with the command that waits for it.
//! 2. The first stub is made by a thread without capabilities ([`drop_privileges`]), and is not under the sentry's filter but under its own.
//! 3. [`Defence::enter`]: the root becomes empty ([`rooms`]), capabilities go ([`privileges`]), and all threads come under a filter
//!    ([`filter`]) that knows the calls of a table ([`calls`]).
//!
//! A step that the host refuses is an error which names it, or a warning with [`Strength::Weak`].

mod calls;
mod filter;
mod inner;
mod namespaces;
mod privileges;
mod rooms;

use std::os::fd::{OwnedFd, RawFd};

use thiserror::Error;

pub use calls::{count, markdown};
pub use privileges::drop_privileges;

use crate::error::Errno;

/// Numbers of descriptors below it are the defence's own.
pub const KEPT: RawFd = 64;

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
    /// The sentry.
    Sentry(Defence),
}

impl Strength {
    /// Whether to go on after a step.
    fn judge(self, step: Result<(), Refused>) -> Result<bool, Refused> {
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
    /// Goes on in a process of its own. The caller has one thread, and needs nothing of what it has opened later but `keep`: descriptors
    /// with numbers from [`KEPT`] on.
    ///
    /// # Errors
    /// A step that the host refuses.
    pub fn begin(strength: Strength, keep: &[RawFd]) -> Result<Side, Refused> {
        if strength == Strength::Off {
            tracing::warn!("the defence is off: whoever breaks out of a guest has what this process has");
            return Ok(Side::Sentry(Self { strength, own_mounts: false }));
        }
        let own_mounts = namespaces::leave(strength)?;
        inner::fork(Self { strength, own_mounts }, keep)
    }

    /// The part that the new process does first.
    fn settle(&self, keep: &[RawFd]) -> Result<(), Refused> {
        privileges::plain_panics();
        self.strength.judge(privileges::close_inherited(keep))?;
        if self.own_mounts {
            self.strength.judge(rooms::make_private())?;
        }
        crate::outside::hold(rooms::processes()?, rooms::cpus()?);
        self.strength.judge(privileges::limit())?;
        Ok(())
    }

    /// The container's root as a tree of mounts of its own, which stays when all others go, and which nothing can change. Names of
    /// the host are not looked up by a working folder after this, and no stub was made before.
    ///
    /// # Errors
    /// A step that the host refuses.
    pub fn keep_root(&self, root: OwnedFd) -> Result<OwnedFd, Refused> {
        if !self.own_mounts {
            return Ok(root);
        }
        // Stubs are made after this; a working folder that is not the root would stay theirs when the root becomes empty.
        self.strength.judge(rooms::leave_folder())?;
        match rooms::detach(&root) {
            Ok(own) => Ok(own),
            Err(refused) => self.strength.judge(Err(refused)).map(|_| root),
        }
    }

    /// Gives up everything else. All files were opened, the platform was started, and no guest runs.
    ///
    /// # Errors
    /// A step that the host refuses.
    pub fn enter(&self) -> Result<(), Refused> {
        if self.strength == Strength::Off {
            return Ok(());
        }
        privileges::settle_heap();
        if self.own_mounts {
            self.strength.judge(rooms::empty_root())?;
        }
        self.strength.judge(drop_privileges())?;
        self.strength.judge(privileges::hide_memory())?;
        self.strength.judge(filter::install())?;
        Ok(())
    }
}
