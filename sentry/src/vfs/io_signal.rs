//! Who is told by a signal of what happens to an open file: `F_SETOWN` and `F_SETSIG` (`struct fown_struct`, `fs/fcntl.c`).

use crate::task::Credentials;

/// Who is told when a file is ready (`struct f_owner_ex` of `fcntl`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalOwner {
    /// A thread.
    Thread(i32),
    /// A process; 0 for nobody.
    Process(i32),
    /// A process group.
    Group(i32),
}

impl SignalOwner {
    /// Nobody.
    pub const NOBODY: Self = Self::Process(0);

    /// Whether it is nobody.
    #[must_use]
    pub fn is_nobody(self) -> bool {
        matches!(self, Self::Thread(0) | Self::Process(0) | Self::Group(0))
    }
}

/// Who is told, by which signal, and in whose name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoSignal {
    /// Who.
    pub owner: SignalOwner,
    /// The signal; 0 for SIGIO, which then tells nothing more.
    pub signal: i32,
    /// The user who said so: a signal reaches only whom that one may send one.
    pub uid: u32,
    /// The same, as what counted.
    pub euid: u32,
}

impl Default for IoSignal {
    fn default() -> Self {
        Self { owner: SignalOwner::NOBODY, signal: 0, uid: 0, euid: 0 }
    }
}

impl IoSignal {
    /// `F_SETOWN_EX`, by somebody (`f_modown`).
    pub fn set_owner(&mut self, owner: SignalOwner, by: &Credentials) {
        self.owner = owner;
        if !owner.is_nobody() {
            (self.uid, self.euid) = (by.uid, by.euid);
        }
    }

    /// The process that asks to be told, unless somebody is already.
    pub fn set_owner_if_none(&mut self, process: i32, by: &Credentials) {
        if self.owner.is_nobody() {
            self.set_owner(SignalOwner::Process(process), by);
        }
    }
}
