//! `prctl` and `personality`: what a task says about itself.

use super::Entry;
use super::processes::int;
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::task::{Credentials, TIMER_SLACK, capability, securebits};

pub(super) const CALLS: &[Entry] = &[
    Entry::partial(libc::SYS_prctl, "prctl", sys_prctl, "speculation, tagged addresses, timing by TSC"),
    Entry::partial(libc::SYS_personality, "personality", sys_personality, "it is kept and has no effect"),
];

const PR_SET_MM: i32 = 35;
const PR_SET_MM_MAP_SIZE: i32 = 15;
/// Bytes of `struct prctl_mm_map`: eleven addresses, one of the vector, its size and a descriptor.
const MM_MAP_SIZE: u32 = 104;
const PR_GET_TSC: i32 = 25;
const PR_SET_TSC: i32 = 26;
/// The time stamp counter can be read: it always can.
const PR_TSC_ENABLE: i32 = 1;
const PR_SET_SECUREBITS: i32 = 28;
const PR_GET_SECUREBITS: i32 = 27;

fn sys_prctl(call: &mut Call<'_>, [option, a, b, c, d, _]: [u64; 6]) -> SysResult {
    let task = call.task;
    let unused = |used: usize| {
        if [a, b, c, d][used..].iter().all(|value| *value == 0) { Ok(()) } else { Err(Errno::EINVAL) }
    };
    match int(option) {
        libc::PR_SET_PDEATHSIG => {
            let signal = i32::try_from(a).map_err(|_| Errno::EINVAL)?;
            if signal != 0 && !crate::task::signal::is_signal(signal) {
                return Err(Errno::EINVAL.into());
            }
            task.set_parent_death_signal(signal);
        }
        libc::PR_GET_PDEATHSIG => call.write(a, &task.parent_death_signal().to_le_bytes())?,
        libc::PR_GET_DUMPABLE => return Ok(task.group().dumpable().into()),
        libc::PR_SET_DUMPABLE => match a {
            0 | 1 => task.group().set_dumpable(u32::from(a == 1)),
            _ => return Err(Errno::EINVAL.into()),
        },
        libc::PR_SET_NAME => {
            let name = read_name(call, a)?;
            task.set_comm(&name);
        }
        libc::PR_GET_NAME => {
            let mut name = [0; 16];
            for (to, from) in name.iter_mut().zip(task.comm()) {
                *to = from;
            }
            call.write(a, &name)?;
        }
        libc::PR_SET_TIMERSLACK => {
            task.set_timer_slack(if int(a) <= 0 { TIMER_SLACK } else { a });
        }
        libc::PR_GET_TIMERSLACK => return Ok(task.timer_slack()),
        libc::PR_SET_CHILD_SUBREAPER => task.group().set_subreaper(a != 0),
        libc::PR_GET_CHILD_SUBREAPER => {
            call.write(a, &i32::from(task.group().is_subreaper()).to_le_bytes())?;
        }
        libc::PR_SET_THP_DISABLE => {
            unused(1)?;
            task.set_huge_pages_disabled(a != 0);
        }
        libc::PR_GET_THP_DISABLE => {
            unused(0)?;
            return Ok(task.huge_pages_disabled().into());
        }
        libc::PR_GET_TID_ADDRESS => call.write(a, &task.clear_child_tid().to_le_bytes())?,
        libc::PR_GET_TIMING => return Ok(0),
        libc::PR_SET_TIMING if a == 0 => {}
        libc::PR_MCE_KILL_GET => return Ok(2),
        libc::PR_GET_SECCOMP => return Ok(super::seccomp::mode(call)),
        libc::PR_SET_SECCOMP => return super::seccomp::by_prctl(call, a, b),
        libc::PR_SET_PTRACER => {}
        PR_GET_TSC => call.write(a, &PR_TSC_ENABLE.to_le_bytes())?,
        PR_SET_TSC if int(a) == PR_TSC_ENABLE => {}
        PR_SET_MM if int(a) == PR_SET_MM_MAP_SIZE && d == 0 => call.write(b, &MM_MAP_SIZE.to_le_bytes())?,
        PR_SET_MM => return Err(Errno::EPERM.into()),
        option => return of_credentials(call, option, [a, b, c, d]),
    }
    Ok(0)
}

/// A name of at most 15 bytes; a longer one is cut off and not refused.
fn read_name(call: &Call<'_>, address: u64) -> Result<Vec<u8>, Errno> {
    match call.read_text(address, 16) {
        Err(Errno::ENAMETOOLONG) => call.read_array::<15>(address).map(Vec::from),
        name => name,
    }
}

fn of_credentials(call: &Call<'_>, option: i32, [a, b, c, d]: [u64; 4]) -> SysResult {
    let who = call.task.credentials();
    let change = |new: Credentials| call.task.set_credentials(new);
    match option {
        libc::PR_SET_NO_NEW_PRIVS if (a, b, c, d) == (1, 0, 0, 0) => {
            change(Credentials { no_new_privileges: true, ..(*who).clone() });
        }
        libc::PR_GET_NO_NEW_PRIVS if (a, b, c, d) == (0, 0, 0, 0) => return Ok(who.no_new_privileges.into()),
        libc::PR_GET_KEEPCAPS => return Ok((who.securebits & securebits::KEEP_CAPS != 0).into()),
        libc::PR_SET_KEEPCAPS => change(keep_capabilities(&who, a)?),
        PR_GET_SECUREBITS => return Ok(who.securebits.into()),
        PR_SET_SECUREBITS => change(with_securebits(&who, a)?),
        libc::PR_CAPBSET_READ => {
            let capability = number_of_capability(a)?;
            return Ok(who.bounding.has(capability).into());
        }
        libc::PR_CAPBSET_DROP => {
            if !who.capable_here(capability::SETPCAP) {
                return Err(Errno::EPERM.into());
            }
            let mut new = (*who).clone();
            new.bounding.0 &= !(1 << number_of_capability(a)?);
            change(new);
        }
        libc::PR_CAP_AMBIENT => return ambient(call, &who, [a, b, c, d]),
        _ => return Err(Errno::EINVAL.into()),
    }
    Ok(0)
}

fn number_of_capability(number: u64) -> Result<u32, Errno> {
    u32::try_from(number).ok().filter(|number| *number <= capability::LAST).ok_or(Errno::EINVAL)
}

fn keep_capabilities(who: &Credentials, keep: u64) -> Result<Credentials, Errno> {
    if keep > 1 {
        return Err(Errno::EINVAL);
    }
    if who.securebits & (securebits::KEEP_CAPS << 1) != 0 {
        return Err(Errno::EPERM);
    }
    let mut new = who.clone();
    new.securebits &= !securebits::KEEP_CAPS;
    if keep == 1 {
        new.securebits |= securebits::KEEP_CAPS;
    }
    Ok(new)
}

/// A bit with its lock set stays as it is, and no lock is ever opened.
fn with_securebits(who: &Credentials, wanted: u64) -> Result<Credentials, Errno> {
    let wanted = u32::try_from(wanted).map_err(|_| Errno::EPERM)?;
    let locks = who.securebits & securebits::LOCKS;
    let changes_locked = (locks >> 1) & (who.securebits ^ wanted) != 0;
    let opens_lock = locks & !wanted != 0;
    let unknown = wanted & !(securebits::ALL | securebits::LOCKS) != 0;
    if changes_locked || opens_lock || unknown || !who.capable_here(capability::SETPCAP) {
        return Err(Errno::EPERM);
    }
    Ok(Credentials { securebits: wanted, ..who.clone() })
}

fn ambient(call: &Call<'_>, who: &Credentials, [operation, number, c, d]: [u64; 4]) -> SysResult {
    const IS_SET: u64 = 1;
    const RAISE: u64 = 2;
    const LOWER: u64 = 3;
    const CLEAR_ALL: u64 = 4;
    if c != 0 || d != 0 {
        return Err(Errno::EINVAL.into());
    }
    let mut new = who.clone();
    if operation == CLEAR_ALL {
        if number != 0 {
            return Err(Errno::EINVAL.into());
        }
        new.ambient.0 = 0;
        call.task.set_credentials(new);
        return Ok(0);
    }
    let capability = number_of_capability(number)?;
    match operation {
        IS_SET => return Ok(who.ambient.has(capability).into()),
        RAISE => {
            let may = who.permitted.has(capability)
                && who.inheritable.has(capability)
                && who.securebits & securebits::NO_CAP_AMBIENT_RAISE == 0;
            if !may {
                return Err(Errno::EPERM.into());
            }
            new.ambient.0 |= 1 << capability;
        }
        LOWER => new.ambient.0 &= !(1 << capability),
        _ => return Err(Errno::EINVAL.into()),
    }
    call.task.set_credentials(new);
    Ok(0)
}

fn sys_personality(call: &mut Call<'_>, [wanted, ..]: [u64; 6]) -> SysResult {
    let wanted = int(wanted).cast_unsigned();
    let old = call.task.personality();
    if wanted != u32::MAX {
        call.task.set_personality(wanted);
    }
    Ok(old.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::task::Task;
    use crate::testing::{BASE, FlatThread};

    #[test]
    fn names_are_cut_off_at_15_bytes() {
        let kernel = Kernel::for_test();
        let task = Task::for_test(&kernel);
        let mut thread = FlatThread::new(4096);
        let mut call = Call { kernel: &kernel, task: &task, thread: &mut thread };
        call.write(BASE, b"a name that is too long\0").unwrap();
        let prctl = |call: &mut Call<'_>, option: i32, a, b| {
            sys_prctl(call, [option.unsigned_abs().into(), a, b, 0, 0, 0])
        };
        assert_eq!(prctl(&mut call, libc::PR_SET_NAME, BASE, 0), Ok(0));
        assert_eq!(task.comm(), b"a name that is ");
        assert_eq!(prctl(&mut call, libc::PR_GET_NAME, BASE + 64, 0), Ok(0));
        assert_eq!(&call.read_array::<16>(BASE + 64).unwrap(), b"a name that is \0");
        assert_eq!(prctl(&mut call, libc::PR_CAPBSET_READ, 41, 0), Err(Errno::EINVAL.into()));
        assert_eq!(prctl(&mut call, libc::PR_CAP_AMBIENT, 2, 10), Err(Errno::EPERM.into()));
        assert_eq!(prctl(&mut call, libc::PR_SET_NO_NEW_PRIVS, 1, 0), Ok(0));
        assert_eq!(prctl(&mut call, libc::PR_GET_NO_NEW_PRIVS, 0, 0), Ok(1));
        assert_eq!(prctl(&mut call, 9999, 0, 0), Err(Errno::EINVAL.into()));
    }

    #[test]
    fn locked_securebits_stay() {
        let locked = with_securebits(&Credentials::root(), 0b11).unwrap();
        assert_eq!(with_securebits(&locked, 0b10), Err(Errno::EPERM));
        assert_eq!(with_securebits(&locked, 0b01), Err(Errno::EPERM));
        assert_eq!(with_securebits(&locked, 0b1_0011).unwrap().securebits, 0b1_0011);
    }
}
