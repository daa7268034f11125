//! The machine as a whole.

use std::sync::Arc;

use super::Entry;
use super::processes::int;
use crate::call::Call;
use crate::error::{Errno, SysResult};
use crate::task::{capability, lock};

pub(super) const CALLS: &[Entry] = &[
    Entry::full(libc::SYS_uname, "uname", sys_uname),
    Entry::full(libc::SYS_sethostname, "sethostname", sys_sethostname),
    Entry::full(libc::SYS_setdomainname, "setdomainname", sys_setdomainname),
    Entry::partial(
        libc::SYS_sysinfo,
        "sysinfo",
        sys_sysinfo,
        "load is the host's, and memory without a bound of the container",
    ),
    Entry::full(libc::SYS_getrandom, "getrandom", sys_getrandom),
    Entry::partial(libc::SYS_syslog, "syslog", sys_syslog, "the log is empty"),
];

/// Bytes of each field of `struct utsname`, with its 0.
const FIELD: usize = 65;
/// The kernel that programs see.
const RELEASE: &[u8] = b"6.12.0";
const VERSION: &[u8] = b"#1 SMP PREEMPT_DYNAMIC";

fn sys_uname(call: &mut Call<'_>, [address, ..]: [u64; 6]) -> SysResult {
    let uts = lock(call.task.namespaces().names.uts()).clone();
    let fields: [&[u8]; 6] = [b"Linux", &uts.host, RELEASE, VERSION, b"x86_64", &uts.domain];
    let mut bytes = [0; FIELD * 6];
    for (place, field) in bytes.chunks_exact_mut(FIELD).zip(fields) {
        for (to, from) in place.iter_mut().take(FIELD - 1).zip(field) {
            *to = *from;
        }
    }
    call.write(address, &bytes)?;
    Ok(0)
}

fn read_name(call: &Call<'_>, address: u64, length: u64) -> Result<Vec<u8>, Errno> {
    let owner = Arc::clone(call.task.namespaces().names.owner());
    if !call.task.credentials().capable_in(&owner, capability::SYS_ADMIN) {
        return Err(Errno::EPERM);
    }
    let length = usize::try_from(int(length)).map_err(|_| Errno::EINVAL)?;
    if length >= FIELD {
        return Err(Errno::EINVAL);
    }
    let mut name = vec![0; length];
    call.read(address, &mut name)?;
    Ok(name)
}

fn sys_sethostname(call: &mut Call<'_>, [name, length, ..]: [u64; 6]) -> SysResult {
    let name = read_name(call, name, length)?;
    lock(call.task.namespaces().names.uts()).host = name;
    Ok(0)
}

fn sys_setdomainname(call: &mut Call<'_>, [name, length, ..]: [u64; 6]) -> SysResult {
    let name = read_name(call, name, length)?;
    lock(call.task.namespaces().names.uts()).domain = name;
    Ok(0)
}

fn sys_sysinfo(call: &mut Call<'_>, [address, ..]: [u64; 6]) -> SysResult {
    let host = nix::sys::sysinfo::sysinfo().map_err(|_| Errno::EIO)?;
    let (one, five, fifteen) = host.load_average();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a load is small and not below 0"
    )]
    let load = |load: f64| (load * 65_536.0) as u64;
    let mut bytes = [0; 112];
    let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(0, call.kernel.clocks.monotonic().as_secs());
    put(8, load(one));
    put(16, load(five));
    put(24, load(fifteen));
    let (mut total, mut free) = (host.ram_total(), host.ram_unused());
    if let Some((most, left)) = call.task.control_group().memory_left(&call.kernel.tasks)
        && most < total
    {
        (total, free) = (most, left.min(free));
    }
    put(32, total);
    put(40, free);
    let processes = u16::try_from(call.kernel.tasks.count()).unwrap_or(u16::MAX);
    bytes[80..82].copy_from_slice(&processes.to_le_bytes());
    // Units of memory: bytes.
    bytes[104..108].copy_from_slice(&1_u32.to_le_bytes());
    call.write(address, &bytes)?;
    Ok(0)
}

fn sys_getrandom(call: &mut Call<'_>, [address, length, flags, ..]: [u64; 6]) -> SysResult {
    const NONBLOCK: u64 = 1;
    const RANDOM: u64 = 2;
    const INSECURE: u64 = 4;
    /// `MAX_RW_COUNT`.
    const MOST: u64 = 0x7fff_f000;
    let flags = flags & u64::from(u32::MAX);
    if flags & !(NONBLOCK | RANDOM | INSECURE) != 0 || flags & (RANDOM | INSECURE) == RANDOM | INSECURE {
        return Err(Errno::EINVAL.into());
    }
    let length = length.min(MOST);
    call.check_range(address, length)?;
    let mut done = 0;
    let mut part = [0; 4096];
    while done < length {
        let size = usize::try_from(length - done).unwrap_or(usize::MAX).min(part.len());
        crate::random::fill(&mut part[..size])?;
        let at = address.checked_add(done).ok_or(Errno::EFAULT);
        let written = at.map(|at| call.thread.write(at, &part[..size]));
        match written {
            Ok(written) => done += written as u64,
            Err(errno) if done == 0 => return Err(errno.into()),
            Err(_) => break,
        }
        if written != Ok(size) {
            break;
        }
        // A long call lets signals through, as Linux does once a page is there.
        if call.task.signal_pending() {
            break;
        }
    }
    if done == 0 && length > 0 { Err(Errno::EFAULT.into()) } else { Ok(done) }
}

fn sys_syslog(call: &mut Call<'_>, [action, buffer, length, ..]: [u64; 6]) -> SysResult {
    const READ_ALL: i32 = 3;
    const SIZE_UNREAD: i32 = 9;
    const SIZE_BUFFER: i32 = 10;
    let action = int(action);
    let may = call.task.credentials().capable(capability::SYSLOG);
    if !may && ![READ_ALL, SIZE_BUFFER].contains(&action) {
        return Err(Errno::EPERM.into());
    }
    match action {
        0 | 1 | 5..=7 | SIZE_UNREAD => Ok(0),
        2..=4 if buffer == 0 || int(length) < 0 => Err(Errno::EINVAL.into()),
        2..=4 => Ok(0),
        8 if (1..=8).contains(&int(length)) => Ok(0),
        SIZE_BUFFER => Ok(1 << 17),
        _ => Err(Errno::EINVAL.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::task::Task;
    use crate::testing::{BASE, FlatThread};

    #[test]
    fn the_machine_has_its_names() {
        let kernel = Kernel::for_test();
        let task = Task::for_test(&kernel);
        let mut thread = FlatThread::new(8192);
        let mut call = Call { kernel: &kernel, task: &task, thread: &mut thread };
        call.write(BASE, b"pod-1").unwrap();
        assert_eq!(sys_sethostname(&mut call, [BASE, 5, 0, 0, 0, 0]), Ok(0));
        assert_eq!(sys_sethostname(&mut call, [BASE, 65, 0, 0, 0, 0]), Err(Errno::EINVAL.into()));
        assert_eq!(sys_uname(&mut call, [BASE, 0, 0, 0, 0, 0]), Ok(0));
        assert_eq!(call.read_text(BASE + 65, 65).unwrap(), b"pod-1");
        assert_eq!(call.read_text(BASE + 130, 65).unwrap(), b"6.12.0");
    }

    #[test]
    fn random_bytes_stop_where_memory_ends() {
        let kernel = Kernel::for_test();
        let task = Task::for_test(&kernel);
        let mut thread = FlatThread::new(8192);
        let mut call = Call { kernel: &kernel, task: &task, thread: &mut thread };
        assert_eq!(sys_getrandom(&mut call, [BASE, 64, 0, 0, 0, 0]), Ok(64));
        assert_ne!(call.read_array::<64>(BASE).unwrap(), [0; 64]);
        assert_eq!(sys_getrandom(&mut call, [BASE + 8190, 64, 0, 0, 0, 0]), Ok(2));
        assert_eq!(sys_getrandom(&mut call, [0, 64, 0, 0, 0, 0]), Err(Errno::EFAULT.into()));
        assert_eq!(sys_getrandom(&mut call, [BASE, 64, 6, 0, 0, 0]), Err(Errno::EINVAL.into()));
    }
}
