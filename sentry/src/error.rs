//! How a system call ends when it does not succeed.

pub use nix::errno::Errno;

/// Why a system call gives the guest no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SysError {
    /// The guest sees `-errno`.
    Errno(Errno),
    /// A signal came while the call waited.
    Interrupted(Restart),
    /// The call has set the registers itself (`execve`, `rt_sigreturn`): they are left alone.
    RegistersSet,
    /// The calling thread ends (`exit`).
    Exit,
}

/// What an interrupted call does once the signal has been handled (`include/linux/errno.h` of Linux, 512 to 516).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// ERESTARTSYS: made again where no handler ran or the handler was set with `SA_RESTART`, else EINTR.
    IfAsked,
    /// ERESTARTNOINTR: made again whatever the handler.
    Always,
    /// ERESTARTNOHAND: made again only where no handler ran, else EINTR.
    WithoutHandler,
    /// ERESTART_RESTARTBLOCK: where no handler ran it goes on as the task's restart block says (`Task::set_restart`), else EINTR.
    Block,
}

impl From<Errno> for SysError {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// What a system call gives back: the value of `rax`.
pub type SysResult = Result<u64, SysError>;
