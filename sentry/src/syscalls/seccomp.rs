//! `seccomp` (`man 2 seccomp`; `kernel/seccomp.c`).

use super::Entry;
use super::file_args::uint;
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::platform::ANSWERED;
use crate::task::Task;
use crate::task::seccomp::{Instruction, LENGTH_MAX, Program, action};

/// The family.
pub(super) const CALLS: &[Entry] = &[Entry::partial(
    libc::SYS_seccomp,
    "seccomp",
    seccomp,
    "listeners (SECCOMP_FILTER_FLAG_NEW_LISTENER): SECCOMP_RET_USER_NOTIF is ENOSYS",
)];

const TSYNC: u32 = 1;
const LOG: u32 = 2;
const SPEC_ALLOW: u32 = 4;
const TSYNC_ESRCH: u32 = 16;

fn seccomp(call: &mut Call<'_>, [operation, flags, arguments, ..]: [u64; 6]) -> SysResult {
    const SET_MODE_STRICT: u32 = 0;
    const SET_MODE_FILTER: u32 = 1;
    const GET_ACTION_AVAIL: u32 = 2;
    const GET_NOTIF_SIZES: u32 = 3;
    let flags = uint(flags);
    match uint(operation) {
        SET_MODE_STRICT if flags != 0 || arguments != 0 => Err(Errno::EINVAL.into()),
        SET_MODE_STRICT => strict(call),
        SET_MODE_FILTER => filter(call, flags, arguments),
        GET_ACTION_AVAIL | GET_NOTIF_SIZES if flags != 0 => Err(Errno::EINVAL.into()),
        GET_ACTION_AVAIL => {
            let known = [
                action::KILL_PROCESS,
                action::KILL_THREAD,
                action::TRAP,
                action::ERRNO,
                action::TRACE,
                action::LOG,
                action::ALLOW,
            ];
            let wanted = call.read_u32(arguments)?;
            if known.contains(&wanted) { Ok(0) } else { Err(Errno::EOPNOTSUPP.into()) }
        }
        GET_NOTIF_SIZES => {
            let sizes = [80u16, 24, 64].map(u16::to_le_bytes).concat();
            call.write(arguments, &sizes)?;
            Ok(0)
        }
        _ => Err(Errno::EINVAL.into()),
    }
}

/// `PR_SET_SECCOMP`.
pub(super) fn by_prctl(call: &mut Call<'_>, mode: u64, arguments: u64) -> SysResult {
    match mode {
        1 => strict(call),
        2 => filter(call, 0, arguments),
        _ => Err(Errno::EINVAL.into()),
    }
}

fn strict(call: &mut Call<'_>) -> SysResult {
    call.thread.stop_answering()?;
    call.task.filter_strictly()?;
    Ok(0)
}

fn filter(call: &mut Call<'_>, flags: u32, arguments: u64) -> SysResult {
    if flags & !(TSYNC | LOG | SPEC_ALLOW | TSYNC_ESRCH) != 0 {
        return Err(Errno::EINVAL.into());
    }
    let head: [u8; 16] = call.read_array(arguments)?;
    let count = usize::from(u16::from_le_bytes([head[0], head[1]]));
    let [_, _, _, _, _, _, _, _, address @ ..] = head;
    let address = u64::from_le_bytes(address);
    if count == 0 || count > LENGTH_MAX {
        return Err(Errno::EINVAL.into());
    }
    if !Task::may_filter(&call.task.credentials()) {
        return Err(Errno::EACCES.into());
    }
    let mut bytes = vec![0; count * 8];
    call.read(address, &mut bytes)?;
    let instructions: Vec<_> =
        bytes.as_chunks::<8>().0.iter().copied().map(Instruction::from_bytes).collect();
    let program = Program::new(&instructions)?;
    let answered = ANSWERED.iter().filter_map(|call| u32::try_from(*call).ok());
    if answered.into_iter().any(|call| program.run_blind(call) != Some(action::ALLOW)) {
        // From here on every call of this address space comes to the sentry.
        call.thread.stop_answering()?;
    }
    match call.task.add_filter(program, flags & TSYNC != 0)? {
        None => {
            call.thread.let_by_itself(call.task.does_by_itself());
            Ok(0)
        }
        Some(_) if flags & TSYNC_ESRCH != 0 => Err(Errno::ESRCH.into()),
        Some(other) => Ok(u64::from(call.task.shown(other).cast_unsigned())),
    }
}

/// `PR_GET_SECCOMP`.
pub(super) fn mode(call: &Call<'_>) -> u64 {
    u64::from(call.task.filters().mode())
}
