//! Vector state of a traced thread, in the form of XSAVE (`PTRACE_GETREGSET` with `NT_X86_XSTATE`).

use nix::unistd::Pid;

use crate::error::Errno;

/// `NT_X86_XSTATE` (`include/uapi/linux/elf.h`).
const XSTATE: usize = 0x202;

/// Most bytes that a processor has: AMX takes 8 KiB of it.
const MOST: usize = 16 << 10;

fn request(request: libc::c_uint, thread: Pid, state: &mut [u8]) -> Result<usize, Errno> {
    let mut part = libc::iovec { iov_base: state.as_mut_ptr().cast(), iov_len: state.len() };
    // SAFETY: the kernel reads or writes at most `iov_len` bytes of `state`, which is borrowed through the call, and sets `iov_len`.
    let done = unsafe { libc::ptrace(request, thread.as_raw(), XSTATE, &raw mut part) };
    Errno::result(done).map(|_| part.iov_len)
}

/// Its state.
pub(super) fn get(thread: Pid) -> Result<Vec<u8>, Errno> {
    let mut state = vec![0; MOST];
    let length = request(libc::PTRACE_GETREGSET, thread, &mut state)?;
    state.truncate(length);
    Ok(state)
}

/// Sets it. The kernel wants all of it, and says EINVAL to what is none.
pub(super) fn set(thread: Pid, state: &mut [u8]) -> Result<(), Errno> {
    request(libc::PTRACE_SETREGSET, thread, state).map(drop)
}
