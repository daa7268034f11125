//! `execve` and `execveat` (`fs/exec.c`).
//!
//! The new program gets an address space of its own, a fresh one of the platform, and is put there as a whole before the old one goes: so
//! whatever can fail leaves the caller as it was. Only then the other threads end, and the task goes on as the new guest thread.

use std::sync::Arc;

use super::{Entry, exec_rooms as rooms};
use crate::call::Call;
use crate::error::{Errno, SysError, SysResult};
use crate::loader::{self, Identity, MAX_STRING, Opener, Program, Strings};
use crate::mm::{AddressSpace, Limits, futex};
use crate::platform::Thread;
use crate::task::Credentials;

pub(super) const CALLS: &[Entry] =
    &[Entry::full(libc::SYS_execve, "execve", execve), Entry::full(libc::SYS_execveat, "execveat", execveat)];

/// Opens interpreters as the caller.
struct AsCaller<'a, 'b>(&'a Call<'b>);

impl Opener for AsCaller<'_, '_> {
    fn open_program(&self, path: &[u8]) -> Result<Arc<dyn Program>, Errno> {
        rooms::open_program(self.0, libc::AT_FDCWD, path, 0).map_err(|error| match error {
            SysError::Errno(errno) => errno,
            // Somebody has a lease of it, and a signal came first.
            _ => Errno::EINTR,
        })
    }
}

fn execve(call: &mut Call<'_>, [path, arguments, environment, ..]: [u64; 6]) -> SysResult {
    execute(call, libc::AT_FDCWD, path, (arguments, environment), 0)
}

fn execveat(call: &mut Call<'_>, [directory, path, arguments, environment, flags, _]: [u64; 6]) -> SysResult {
    let flags = (flags as u32).cast_signed();
    if flags & !(libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL.into());
    }
    execute(call, (directory as u32).cast_signed(), path, (arguments, environment), flags)
}

/// Reads a vector of strings, of which there may be `room` bytes with their pointers. No vector is an empty one.
fn read_strings(call: &Call<'_>, address: u64, room: &mut u64) -> Result<Vec<Vec<u8>>, Errno> {
    let mut strings = Vec::new();
    let mut at = address;
    while at != 0 {
        let pointer = call.read_u64(at)?;
        if pointer == 0 {
            break;
        }
        let text = call.read_text(pointer, MAX_STRING).map_err(|errno| match errno {
            Errno::ENAMETOOLONG => Errno::E2BIG,
            other => other,
        })?;
        *room = room.checked_sub(text.len() as u64 + 1 + 8).ok_or(Errno::E2BIG)?;
        strings.push(text);
        at = at.checked_add(8).ok_or(Errno::EFAULT)?;
    }
    Ok(strings)
}

/// What the program is called, and whether that name leads to it once it runs.
fn name_of(call: &Call<'_>, directory: i32, path: &[u8]) -> (Vec<u8>, bool) {
    if directory == libc::AT_FDCWD || path.starts_with(b"/") {
        return (path.to_vec(), true);
    }
    let mut name = format!("/dev/fd/{directory}").into_bytes();
    if !path.is_empty() {
        name.push(b'/');
        name.extend_from_slice(path);
    }
    (name, !rooms::closes_at_exec(call, directory))
}

fn execute(
    call: &mut Call<'_>,
    directory: i32,
    path: u64,
    (arguments, environment): (u64, u64),
    flags: i32,
) -> SysResult {
    let path = call.read_path(path)?;
    if path.is_empty() && flags & libc::AT_EMPTY_PATH == 0 {
        return Err(Errno::ENOENT.into());
    }
    let limits = rooms::limits(call);
    let program = rooms::open_program(call, directory, &path, flags)?;
    let mut room = Strings::room(limits.stack);
    let arguments = read_strings(call, arguments, &mut room)?;
    let environment = read_strings(call, environment, &mut room)?;
    let (name, reachable) = name_of(call, directory, &path);
    let strings = Strings { arguments, environment };
    let prepared = loader::prepare(&AsCaller(call), program, &name, reachable, strings, limits.stack)?;

    // From the end of this on there is no way back.
    let task = (call.task.pid(), call.task.own_number(), call.task.pid_namespace().meta().number());
    let old_space = call.task.space();
    let (space, thread, credentials) = loop {
        let loaded = load(call, &prepared, &limits)?;
        if rooms::begin(call, loaded.covered)? {
            break (loaded.space, loaded.thread, loaded.credentials);
        }
    };
    futex::exit_robust_list(&old_space, call.thread, task);
    let base = path.rsplit(|byte| *byte == b'/').next().unwrap_or(&path);
    let comm = if base.is_empty() { name.rsplit(|byte| *byte == b'/').next().unwrap_or(&name) } else { base };
    rooms::finish(call, space, thread, comm, credentials);
    Err(SysError::RegistersSet)
}

/// A program in an address space of its own.
struct Loaded {
    space: AddressSpace,
    thread: Box<dyn Thread>,
    credentials: Credentials,
    covered: bool,
}

/// Loads it, for who the task will be.
fn load(call: &Call<'_>, prepared: &loader::Prepared, limits: &Limits) -> Result<Loaded, Errno> {
    let old = call.task.credentials();
    let (credentials, covered) = rooms::credentials_after(call, prepared.program().as_ref());
    let identity = Identity {
        uid: credentials.user_ns.shown_uid(credentials.uid),
        euid: credentials.user_ns.shown_uid(credentials.euid),
        gid: credentials.user_ns.shown_gid(credentials.gid),
        egid: credentials.user_ns.shown_gid(credentials.egid),
        secure: credentials.euid != old.uid || credentials.egid != old.gid,
        vdso: call.kernel.vdso(),
    };
    let mut thread = call.kernel.platform.new_address_space()?;
    let space = AddressSpace::new(
        call.kernel.platform.guest_range(),
        limits.stack,
        Some(thread.remote()),
        Arc::clone(call.task.space().futexes()),
    );
    prepared.load(&space, thread.as_mut(), limits, &identity)?;
    Ok(Loaded { space, thread, credentials, covered })
}
