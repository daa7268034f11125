//! What a process does about each signal, and a thread's other stack.

use super::{Default, SIGNALS, SignalSet, default_action, is_signal};
use crate::error::Errno;

/// `SIG_DFL`.
pub(super) const SIG_DFL: u64 = 0;
/// `SIG_IGN`.
pub(super) const SIG_IGN: u64 = 1;
/// `SA_RESTORER` (`arch/x86/include/uapi/asm/signal.h`).
pub(super) const SA_RESTORER: u64 = 0x0400_0000;
/// `SA_ONSTACK`.
pub(super) const SA_ONSTACK: u64 = 0x0800_0000;
/// `SA_RESTART`.
pub(super) const SA_RESTART: u64 = 0x1000_0000;
/// `SA_NODEFER`.
pub(super) const SA_NODEFER: u64 = 0x4000_0000;
/// `SA_RESETHAND`.
pub(super) const SA_RESETHAND: u64 = 0x8000_0000;
/// `SA_NOCLDSTOP`.
pub(super) const SA_NOCLDSTOP: u64 = 1;
/// `SA_NOCLDWAIT`.
pub(super) const SA_NOCLDWAIT: u64 = 2;
/// `SA_SIGINFO`.
pub(super) const SA_SIGINFO: u64 = 4;
/// `SA_EXPOSE_TAGBITS`.
const SA_EXPOSE_TAGBITS: u64 = 0x800;
/// `UAPI_SA_FLAGS` and `SA_RESTORER`: other bits are cleared, so that a program can find out what is known (`SA_UNSUPPORTED`).
const KNOWN_FLAGS: u64 = SA_NOCLDSTOP
    | SA_NOCLDWAIT
    | SA_SIGINFO
    | SA_ONSTACK
    | SA_RESTART
    | SA_NODEFER
    | SA_RESETHAND
    | SA_EXPOSE_TAGBITS
    | SA_RESTORER;

/// `struct kernel_sigaction`: 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, std::default::Default)]
pub struct SigAction {
    /// [`SIG_DFL`], [`SIG_IGN`] or an address.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: u64,
    /// Blocked while it runs.
    pub mask: SignalSet,
}

impl SigAction {
    /// Bytes in a program's memory.
    pub const SIZE: usize = 32;

    /// Out of a program's memory.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let number = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        Self { handler: number(0), flags: number(8), restorer: number(16), mask: SignalSet(number(24)) }
    }

    /// For a program's memory.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        for (at, value) in [self.handler, self.flags, self.restorer, self.mask.0].into_iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}

/// What a process does about each signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actions([SigAction; SIGNALS as usize]);

impl std::default::Default for Actions {
    fn default() -> Self {
        Self([SigAction::default(); SIGNALS as usize])
    }
}

impl Actions {
    /// What is done about `signal`; the default where there is no such signal.
    #[must_use]
    pub fn of(&self, signal: i32) -> SigAction {
        Self::place(signal).map_or_else(SigAction::default, |at| self.0[at])
    }

    fn place(signal: i32) -> Option<usize> {
        if is_signal(signal) { usize::try_from(signal - 1).ok() } else { None }
    }

    /// `rt_sigaction`.
    ///
    /// # Errors
    /// EINVAL for no signal, and for SIGKILL and SIGSTOP.
    pub fn set(&mut self, signal: i32, action: SigAction) -> Result<(), Errno> {
        let at = Self::place(signal).ok_or(Errno::EINVAL)?;
        if SignalSet::UNBLOCKABLE.has(signal) {
            return Err(Errno::EINVAL);
        }
        let mask = action.mask.without(SignalSet::UNBLOCKABLE);
        self.0[at] = SigAction { flags: action.flags & KNOWN_FLAGS, mask, ..action };
        Ok(())
    }

    /// Back to the default.
    pub fn reset(&mut self, signal: i32) {
        if let Some(at) = Self::place(signal) {
            self.0[at].handler = SIG_DFL;
        }
    }

    /// Whether nothing comes of `signal`.
    #[must_use]
    pub fn ignores(&self, signal: i32) -> bool {
        match self.of(signal).handler {
            SIG_IGN => true,
            SIG_DFL => default_action(signal) == Default::Ignore,
            _ => false,
        }
    }

    /// Whether `signal` runs no handler and is not ignored on purpose.
    #[must_use]
    pub fn is_default(&self, signal: i32) -> bool {
        self.of(signal).handler == SIG_DFL
    }

    /// After `execve` (`flush_signal_handlers`): what is ignored stays so, handlers are gone.
    pub fn reset_for_exec(&mut self) {
        for action in &mut self.0 {
            let handler = if action.handler == SIG_IGN { SIG_IGN } else { SIG_DFL };
            *action = SigAction { handler, ..SigAction::default() };
        }
    }

    /// `CLONE_CLEAR_SIGHAND`.
    pub fn clear_handlers(&mut self) {
        self.reset_for_exec();
    }
}

/// `SS_ONSTACK`.
pub(super) const SS_ONSTACK: u32 = 1;
/// `SS_DISABLE`.
pub(super) const SS_DISABLE: u32 = 2;
/// `SS_AUTODISARM`.
pub const SS_AUTODISARM: u32 = 1 << 31;
/// `MINSIGSTKSZ`.
const SMALLEST: u64 = 2048;

/// A thread's other stack (`man 2 sigaltstack`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AltStack {
    /// Lowest byte.
    pub address: u64,
    /// Bytes; 0 for none.
    pub size: u64,
    /// `SS_DISABLE`, `SS_AUTODISARM`.
    pub flags: u32,
}

impl AltStack {
    /// Bytes of `stack_t`.
    pub const SIZE: usize = 24;

    /// Whether `rsp` is on it by its place alone (`__on_sig_stack`): above the lowest byte, up to the end.
    #[must_use]
    pub fn contains(&self, rsp: u64) -> bool {
        rsp > self.address && rsp - self.address <= self.size
    }

    /// Whether a thread with this `rsp` runs on it (`on_sig_stack`).
    #[must_use]
    pub fn in_use(&self, rsp: u64) -> bool {
        self.flags & SS_AUTODISARM == 0 && self.contains(rsp)
    }

    /// What `sigaltstack` says of it (`sas_ss_flags`).
    #[must_use]
    pub fn state(&self, rsp: u64) -> u32 {
        if self.size == 0 {
            SS_DISABLE
        } else if self.in_use(rsp) {
            SS_ONSTACK
        } else {
            0
        }
    }

    /// As `stack_t`, with these flags.
    #[must_use]
    pub fn to_bytes(&self, flags: u32) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&flags.to_le_bytes());
        bytes[16..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    /// What `sigaltstack` sets for this `stack_t` (`do_sigaltstack`).
    ///
    /// # Errors
    /// EPERM while the present one is in use, EINVAL for flags, ENOMEM for a stack too small.
    pub fn change(&self, bytes: &[u8; Self::SIZE], rsp: u64) -> Result<Self, Errno> {
        let eight = |at: usize| {
            let mut part = [0; 8];
            part.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(part)
        };
        // The upper half of the word with the flags is padding.
        let (address, flags, size) = (eight(0), (eight(8) & u64::from(u32::MAX)) as u32, eight(16));
        if self.in_use(rsp) {
            return Err(Errno::EPERM);
        }
        let mode = flags & !SS_AUTODISARM;
        if matches!(mode, 0 | SS_ONSTACK | SS_DISABLE)
            && (self.address, self.size, self.flags) == (address, size, flags)
        {
            return Ok(*self);
        }
        match mode {
            SS_DISABLE => Ok(Self { address: 0, size: 0, flags }),
            0 | SS_ONSTACK if size < SMALLEST => Err(Errno::ENOMEM),
            0 | SS_ONSTACK => Ok(Self { address, size, flags }),
            _ => Err(Errno::EINVAL),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn kill_and_stop_are_nobodys_to_handle() {
        let mut actions = Actions::default();
        let handler = SigAction { handler: 0x1000, mask: SignalSet::ALL, ..SigAction::default() };
        for signal in [libc::SIGKILL, libc::SIGSTOP, 0, 65, -3] {
            assert_eq!(actions.set(signal, handler), Err(Errno::EINVAL));
        }
        actions.set(libc::SIGTERM, handler).unwrap();
        assert_eq!(actions.of(libc::SIGTERM).mask, SignalSet::ALL.without(SignalSet::UNBLOCKABLE));
    }

    #[test]
    fn execve_keeps_what_is_ignored() {
        let mut actions = Actions::default();
        actions.set(libc::SIGTERM, SigAction { handler: 0x1000, ..SigAction::default() }).unwrap();
        actions.set(libc::SIGHUP, SigAction { handler: SIG_IGN, ..SigAction::default() }).unwrap();
        actions.reset_for_exec();
        assert!(actions.ignores(libc::SIGHUP));
        assert!(actions.is_default(libc::SIGTERM));
    }

    #[test]
    fn the_other_stack_has_its_rules() {
        let none = AltStack::default();
        let wanted = AltStack { address: 0x1000, size: 0x2000, flags: 0 };
        let set = none.change(&wanted.to_bytes(0), 0).unwrap();
        assert_eq!(set, wanted);
        assert_eq!((set.state(0x1000), set.state(0x1001), set.state(0x3000)), (0, SS_ONSTACK, SS_ONSTACK));
        assert_eq!(set.change(&wanted.to_bytes(0), 0x2000), Err(Errno::EPERM));
        assert_eq!(none.change(&wanted.to_bytes(4), 0), Err(Errno::EINVAL));
        let small = AltStack { size: 2047, ..wanted };
        assert_eq!(none.change(&small.to_bytes(0), 0), Err(Errno::ENOMEM));
    }
}
