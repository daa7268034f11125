//! A monitor whose containers run has little to do, and lets go of the code that only its start needed: the host counts a page of the program for
//! whoever maps it, and a fault maps its neighbours too (64 KiB: `fault_around_bytes`).

use std::ffi::{c_int, c_void};
use std::time::Duration;

/// How long after a container's start: whoever starts one may have more to ask.
const QUIET: Duration = Duration::from_millis(200);

/// Lets go in a while.
pub(super) fn rest_later() {
    tokio::spawn(async {
        tokio::time::sleep(QUIET).await;
        let let_go = let_go_of_the_program();
        tracing::trace!(bytes = let_go, "pages of the program are no longer mapped, until they are used");
    });
}

/// Unmaps the pages of the program itself that nobody can have written, and tells how many bytes it looked at. What is used again is found in the host's page cache.
fn let_go_of_the_program() -> usize {
    let mut bytes = 0_usize;
    // SAFETY: the function below is of the type that is called, and gets the counter that outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(of_the_program), (&raw mut bytes).cast()) };
    bytes
}

/// `dl_iterate_phdr(3)`: the first is the program, and no other is wanted.
unsafe extern "C" fn of_the_program(info: *mut libc::dl_phdr_info, _: usize, bytes: *mut c_void) -> c_int {
    // SAFETY: the C library tells of a loaded program, whose headers stay where they are.
    let (base, headers) = unsafe {
        ((*info).dlpi_addr, std::slice::from_raw_parts((*info).dlpi_phdr, (*info).dlpi_phnum.into()))
    };
    // A segment that is written while it is loaded, and protected thereafter, has PF_W too.
    for segment in
        headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0)
    {
        let (start, end) = whole_pages(base + segment.p_vaddr, segment.p_filesz);
        let length = end.saturating_sub(start) as usize;
        // SAFETY: private pages of a file that this process has not written show the file's, now and when they are mapped again. (A debugger's breakpoints are
        // written, and lost.)
        let let_go = unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
        if let_go == 0 {
            // SAFETY: it is the counter of the caller.
            unsafe { *bytes.cast::<usize>() += length };
        }
    }
    1
}

/// The pages that lie in these bytes as a whole.
fn whole_pages(start: u64, bytes: u64) -> (u64, u64) {
    const PAGE: u64 = 4096;
    (start.next_multiple_of(PAGE), (start + bytes) & !(PAGE - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_are_let_go_of() {
        assert_eq!(whole_pages(0x1000, 0x2fff), (0x1000, 0x3000));
        assert_eq!(whole_pages(0x1001, 0x3000), (0x2000, 0x4000));
        let (start, end) = whole_pages(0x1001, 0x100);
        assert!(end < start);
    }

    /// KiB of the program's code that this process maps.
    fn code() -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.contains("r-xp"));
        let rss = lines.find(|line| line.starts_with("Rss:")).unwrap();
        rss.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn code_is_unmapped_and_runs_on() {
        let before = code();
        let bytes = let_go_of_the_program();
        let after = code();
        assert!(bytes > 1 << 20, "{bytes} bytes");
        assert!(after < before, "{before} KiB, then {after}");
    }
}
