//! Who is told by a signal that a file is ready: `F_SETOWN` and its kin (`fs/fcntl.c`, `man 2 fcntl`).

use super::file_args::int;
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::sync::lock;
use crate::vfs::{IoSignal, OpenFile, SignalOwner};

/// Sets the signal, 0 for SIGIO.
pub(super) const F_SETSIG: i32 = 10;
/// Which one it is.
pub(super) const F_GETSIG: i32 = 11;
/// Sets a thread, process or group.
pub(super) const F_SETOWN_EX: i32 = 15;
/// Which one it is.
pub(super) const F_GETOWN_EX: i32 = 16;

/// Those commands.
pub(super) fn fcntl(call: &Call<'_>, open: &OpenFile, command: i32, argument: u64) -> SysResult {
    let IoSignal { owner, signal, .. } = *lock(open.io_signal());
    let shown = |pid| if pid == 0 { 0 } else { call.task.shown(pid) };
    match command {
        libc::F_GETOWN => {
            let number = match owner {
                SignalOwner::Thread(pid) | SignalOwner::Process(pid) => shown(pid),
                SignalOwner::Group(pgid) => shown(pgid).wrapping_neg(),
            };
            return Ok(i64::from(number).cast_unsigned());
        }
        libc::F_SETOWN => {
            let number = int(argument);
            let group = number < 0;
            let number = number.checked_abs().ok_or(Errno::EINVAL)?;
            set(call, open, if group { SignalOwner::Group(number) } else { SignalOwner::Process(number) })?;
        }
        F_GETOWN_EX => {
            let (kind, number) = match owner {
                SignalOwner::Thread(pid) => (0, shown(pid)),
                SignalOwner::Process(pid) => (1, shown(pid)),
                SignalOwner::Group(pgid) => (2i32, shown(pgid)),
            };
            call.write(argument, &[kind.to_le_bytes(), number.to_le_bytes()].concat())?;
        }
        F_SETOWN_EX => {
            let kind = call.read_u32(argument)?;
            let number = call.read_u32(argument.wrapping_add(4))?.cast_signed();
            let owner = match kind {
                0 => SignalOwner::Thread(number),
                1 => SignalOwner::Process(number),
                2 => SignalOwner::Group(number),
                _ => return Err(Errno::EINVAL.into()),
            };
            set(call, open, owner)?;
        }
        F_SETSIG => {
            let wanted = i32::try_from(argument).ok().filter(|signal| *signal <= 64).ok_or(Errno::EINVAL)?;
            lock(open.io_signal()).signal = wanted;
        }
        _ => return Ok(i64::from(signal).cast_unsigned()),
    }
    Ok(0)
}

/// ESRCH where nobody has that number; 0 is nobody, and may always be set.
fn set(call: &Call<'_>, open: &OpenFile, owner: SignalOwner) -> Result<(), Errno> {
    let tasks = call.task.tasks();
    let named = |number| if number == 0 { Ok(0) } else { call.task.named(number).ok_or(Errno::ESRCH) };
    let owner = match owner {
        SignalOwner::Thread(pid) => SignalOwner::Thread(named(pid)?),
        SignalOwner::Process(pid) => SignalOwner::Process(named(pid)?),
        SignalOwner::Group(pgid) => SignalOwner::Group(named(pgid)?),
    };
    let there = match owner {
        nobody if nobody.is_nobody() => true,
        SignalOwner::Thread(pid) | SignalOwner::Process(pid) => tasks.find(pid).is_some(),
        SignalOwner::Group(pgid) => {
            let own = call.task.process_group();
            pgid == own || tasks.find_group(pgid).is_some()
        }
    };
    if !there {
        return Err(Errno::ESRCH);
    }
    lock(open.io_signal()).set_owner(owner, &call.task.credentials());
    Ok(())
}
