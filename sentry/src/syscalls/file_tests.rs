//! Calls on files as a guest makes them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Errno, Restart, SysError};
use crate::testing::{BASE, Guest};
use crate::vfs::{FdTable, FsContext};

const CWD: u64 = libc::AT_FDCWD as u64;

fn guest() -> Guest {
    Guest::new(1 << 20, FsContext::default())
}

fn errno(errno: Errno) -> Result<u64, SysError> {
    Err(errno.into())
}

#[test]
fn files_are_made_written_found_and_removed() {
    let mut guest = guest();
    let (folder, file) = (guest.text("/folder"), guest.text("/folder/file"));
    assert_eq!(guest.call(libc::SYS_mkdir, &[folder, 0o777]), Ok(0));
    let flags = (libc::O_CREAT | libc::O_RDWR | libc::O_CLOEXEC) as u64;
    assert_eq!(guest.call(libc::SYS_open, &[file, flags, 0o666]), Ok(0));
    let text = guest.put(b"hello world");
    assert_eq!(guest.call(libc::SYS_write, &[0, text, 11]), Ok(11));
    assert_eq!(guest.call(libc::SYS_lseek, &[0, (-5i64).cast_unsigned(), 1]), Ok(6));
    let to = guest.put(&[0; 64]);
    assert_eq!(guest.call(libc::SYS_read, &[0, to, 64]), Ok(5));
    assert_eq!(guest.bytes(to, 5), b"world");
    let parts = [to, 4, to + 8, 3].map(u64::to_le_bytes).concat();
    let parts = guest.put(&parts);
    assert_eq!(guest.call(libc::SYS_preadv, &[0, parts, 2, 1]), Ok(7));
    assert_eq!((guest.bytes(to, 4), guest.bytes(to + 8, 3)), (b"ello".to_vec(), b" wo".to_vec()));
    let status = guest.put(&[0; 256]);
    assert_eq!(guest.call(libc::SYS_fstat, &[0, status]), Ok(0));
    let mode = u32::from_le_bytes(guest.bytes(status + 24, 4).try_into().unwrap());
    let size = u64::from_le_bytes(guest.bytes(status + 48, 8).try_into().unwrap());
    assert_eq!((mode, size), (0o100_644, 11));
    assert_eq!(guest.call(libc::SYS_statx, &[CWD, file, 0, 0x7ff, status]), Ok(0));
    assert_eq!(guest.bytes(status + 40, 8), 11u64.to_le_bytes());
    let fd = guest.call(libc::SYS_open, &[folder, libc::O_DIRECTORY as u64]).unwrap();
    let length = guest.call(libc::SYS_getdents64, &[fd, status, 256]).unwrap();
    let entries = guest.bytes(status, length as usize);
    assert_eq!(length, 24 + 24 + 24);
    assert_eq!(&entries[48 + 19..48 + 23], b"file");
    assert_eq!(guest.call(libc::SYS_getdents64, &[fd, status, 256]), Ok(0));
    assert_eq!(guest.call(libc::SYS_rmdir, &[folder]), errno(Errno::ENOTEMPTY));
    assert_eq!(guest.call(libc::SYS_unlink, &[file]), Ok(0));
    assert_eq!(guest.call(libc::SYS_chdir, &[folder]), Ok(0));
    assert_eq!(guest.call(libc::SYS_getcwd, &[to, 64]), Ok(8));
    assert_eq!(guest.call(libc::SYS_rmdir, &[folder]), Ok(0));
    assert_eq!(guest.call(libc::SYS_getcwd, &[to, 64]), errno(Errno::ENOENT));
    assert_eq!(guest.call(libc::SYS_read, &[0, 8, 64]), Ok(0));
    assert_eq!(guest.call(libc::SYS_pread64, &[0, 8, 64, 0]), errno(Errno::EFAULT));
    assert_eq!(guest.call(libc::SYS_close, &[0]), Ok(0));
    assert_eq!(guest.call(libc::SYS_close, &[0]), errno(Errno::EBADF));
}

#[test]
fn openat2_stays_where_it_is_told() {
    let mut guest = guest();
    for path in ["/in", "/in/deep", "/out"] {
        let path = guest.text(path);
        guest.call(libc::SYS_mkdir, &[path, 0o755]).unwrap();
    }
    for (text, path) in [("../../out", "/in/deep/up"), ("/out", "/in/top"), ("deep", "/in/fine")] {
        let (text, path) = (guest.text(text), guest.text(path));
        guest.call(libc::SYS_symlink, &[text, path]).unwrap();
    }
    let path = guest.text("/in");
    let fd = guest.call(libc::SYS_open, &[path, libc::O_PATH as u64]).unwrap();
    let mut open = |path: &str, resolve: u64| {
        let how = [0, 0, resolve].map(u64::to_le_bytes).concat();
        let (how, path) = (guest.put(&how), guest.text(path));
        guest.call(libc::SYS_openat2, &[fd, path, how, 24]).map(|_| 0)
    };
    const BENEATH: u64 = 8;
    const IN_ROOT: u64 = 16;
    const NO_SYMLINKS: u64 = 4;
    assert_eq!(open("deep/up", BENEATH), errno(Errno::EXDEV));
    assert_eq!(open("top", BENEATH), errno(Errno::EXDEV));
    assert_eq!(open("/in", BENEATH), errno(Errno::EXDEV));
    assert_eq!(open("deep/../deep", BENEATH), Ok(0));
    assert_eq!(open("fine", BENEATH), Ok(0));
    assert_eq!(open("fine", NO_SYMLINKS), errno(Errno::ELOOP));
    assert_eq!(open("deep/up", IN_ROOT), errno(Errno::ENOENT));
    assert_eq!(open("/../../deep", IN_ROOT), Ok(0));
    assert_eq!(open("deep", BENEATH | IN_ROOT), errno(Errno::EINVAL));
    assert_eq!(open("deep/../../out", 0), Ok(0));
}

#[test]
fn links_that_lead_in_a_ring_end() {
    let mut guest = guest();
    let (one, other) = (guest.text("/one"), guest.text("/other"));
    assert_eq!(guest.call(libc::SYS_symlink, &[one, other]), Ok(0));
    assert_eq!(guest.call(libc::SYS_symlink, &[other, one]), Ok(0));
    assert_eq!(guest.call(libc::SYS_open, &[one, 0]), errno(Errno::ELOOP));
    let to = guest.put(&[0; 64]);
    assert_eq!(guest.call(libc::SYS_readlink, &[one, to, 64]), Ok(6));
    assert_eq!(guest.call(libc::SYS_stat, &[one, to]), errno(Errno::ELOOP));
}

#[test]
fn a_writer_waits_until_all_is_read() {
    let mut guest = guest();
    let fds = guest.put(&[0; 8]);
    assert_eq!(guest.call(libc::SYS_pipe, &[fds]), Ok(0));
    let files = guest.task.files().copy();
    files.close(1).unwrap();
    let reader = std::thread::spawn(move || {
        let mut guest = Guest::with_files(1 << 20, files, FsContext::default());
        let mut all = 0;
        loop {
            match guest.call(libc::SYS_read, &[0, BASE, 70_000]).unwrap() {
                0 => return all,
                count => all += count,
            }
        }
    });
    assert_eq!(guest.call(libc::SYS_write, &[1, BASE, 500_000]), Ok(500_000));
    assert_eq!(guest.call(libc::SYS_close, &[1]), Ok(0));
    assert_eq!(reader.join().unwrap(), 500_000);
    drop(guest);
}

#[test]
fn poll_and_epoll_see_a_pipe() {
    let mut guest = guest();
    let fds = guest.put(&[0; 8]);
    assert_eq!(guest.call(libc::SYS_pipe2, &[fds, libc::O_NONBLOCK as u64]), Ok(0));
    let epoll = guest.call(libc::SYS_epoll_create1, &[0]).unwrap();
    let event = guest.put(&[&1u32.to_le_bytes()[..], &77u64.to_le_bytes()].concat());
    assert_eq!(guest.call(libc::SYS_epoll_ctl, &[epoll, 1, 0, event]), Ok(0));
    let events = guest.put(&[0; 24]);
    let before = Instant::now();
    assert_eq!(guest.call(libc::SYS_epoll_wait, &[epoll, events, 2, 20]), Ok(0));
    assert!(before.elapsed() >= Duration::from_millis(20));
    let polled = guest.put(&[[0, 0, 0, 0, 1, 0, 0, 0], [9, 0, 0, 0, 1, 0, 0, 0]].concat());
    assert_eq!(guest.call(libc::SYS_poll, &[polled, 1, 0]), Ok(0));
    assert_eq!(guest.call(libc::SYS_read, &[0, BASE, 1]), errno(Errno::EAGAIN));
    assert_eq!(guest.call(libc::SYS_write, &[1, BASE, 1]), Ok(1));
    assert_eq!(guest.call(libc::SYS_poll, &[polled, 2, u64::MAX]), Ok(2));
    assert_eq!(guest.bytes(polled + 6, 1), [1]);
    assert_eq!(guest.bytes(polled + 14, 1), [0x20]);
    assert_eq!(guest.call(libc::SYS_epoll_wait, &[epoll, events, 2, u64::MAX]), Ok(1));
    assert_eq!(guest.bytes(events + 4, 8), 77u64.to_le_bytes());
    let (reads, time) = (guest.put(&[1, 0, 0, 0, 0, 0, 0, 0]), guest.put(&[0; 16]));
    assert_eq!(guest.call(libc::SYS_select, &[1, reads, 0, 0, time]), Ok(1));
    assert_eq!(guest.call(libc::SYS_close, &[0]), Ok(0));
    assert_eq!(guest.call(libc::SYS_write, &[1, BASE, 1]), errno(Errno::EPIPE));
    let _ = SysError::Interrupted(Restart::IfAsked);
}

#[test]
fn record_locks_are_of_processes_and_go_with_any_descriptor() {
    let mut guest = guest();
    let path = guest.text("/file");
    let flags = (libc::O_CREAT | libc::O_RDWR) as u64;
    assert_eq!(guest.call(libc::SYS_open, &[path, flags, 0o600]), Ok(0));
    let mut record = [0; 32];
    record[0] = libc::F_WRLCK as u8;
    record[16] = 10;
    let record = guest.put(&record);
    assert_eq!(guest.call(libc::SYS_fcntl, &[0, libc::F_SETLK as u64, record]), Ok(0));
    let files: FdTable = guest.task.files().copy();
    let mut other = Guest::with_files(4096, files, FsContext::default());
    let theirs = other.put(&guest.bytes(record, 32));
    assert_eq!(other.call(libc::SYS_fcntl, &[0, libc::F_SETLK as u64, theirs]), errno(Errno::EAGAIN));
    assert_eq!(other.call(libc::SYS_fcntl, &[0, libc::F_GETLK as u64, theirs]), Ok(0));
    assert_eq!(other.bytes(theirs + 24, 4), 1u32.to_le_bytes());
    assert_eq!(guest.call(libc::SYS_dup, &[0]), Ok(1));
    assert_eq!(guest.call(libc::SYS_close, &[1]), Ok(0));
    let theirs = other.put(&guest.bytes(record, 32));
    assert_eq!(other.call(libc::SYS_fcntl, &[0, libc::F_SETLKW as u64, theirs]), Ok(0));
    assert_eq!(guest.call(libc::SYS_flock, &[0, (libc::LOCK_EX | libc::LOCK_NB) as u64]), Ok(0));
    assert!(Arc::ptr_eq(&guest.task.files().get(0).unwrap(), &other.task.files().get(0).unwrap()));
}

#[test]
fn mounts_hide_and_show() {
    let mut guest = guest();
    let (folder, file) = (guest.text("/m"), guest.text("/m/file"));
    let kind = guest.text("tmpfs");
    let options = guest.text("size=64k,mode=700");
    let create = (libc::O_CREAT | libc::O_RDWR) as u64;
    assert_eq!(guest.call(libc::SYS_mkdir, &[folder, 0o755]), Ok(0));
    assert_eq!(guest.call(libc::SYS_mount, &[kind, folder, kind, libc::MS_NOEXEC, options]), Ok(0));
    assert_eq!(guest.call(libc::SYS_open, &[file, create, 0o600]), Ok(0));
    assert_eq!(guest.call(libc::SYS_rmdir, &[folder]), errno(Errno::EBUSY));
    assert_eq!(guest.call(libc::SYS_write, &[0, BASE, 100_000]), Ok(65_536));
    assert_eq!(guest.call(libc::SYS_umount2, &[folder, 0]), errno(Errno::EBUSY));
    let bound = guest.text("/bound");
    assert_eq!(guest.call(libc::SYS_mkdir, &[bound, 0o755]), Ok(0));
    assert_eq!(guest.call(libc::SYS_mount, &[folder, bound, 0, libc::MS_BIND, 0]), Ok(0));
    let through = guest.text("/bound/file");
    assert_eq!(guest.call(libc::SYS_access, &[through, 4]), Ok(0));
    let back = guest.text("/bound/../m/file");
    assert_eq!(guest.call(libc::SYS_access, &[back, 4]), Ok(0));
    let read_only = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
    assert_eq!(guest.call(libc::SYS_mount, &[0, bound, 0, read_only, 0]), Ok(0));
    assert_eq!(guest.call(libc::SYS_unlink, &[through]), errno(Errno::EROFS));
    assert_eq!(guest.call(libc::SYS_umount2, &[bound, 0]), Ok(0));
    assert_eq!(guest.call(libc::SYS_close, &[0]), Ok(0));
    assert_eq!(guest.call(libc::SYS_umount2, &[folder, 0]), Ok(0));
    assert_eq!(guest.call(libc::SYS_access, &[file, 0]), errno(Errno::ENOENT));
}

#[test]
fn bytes_go_from_file_to_file() {
    let mut guest = guest();
    let path = guest.text("/file");
    let create = (libc::O_CREAT | libc::O_RDWR) as u64;
    assert_eq!(guest.call(libc::SYS_open, &[path, create, 0o600]), Ok(0));
    let text = guest.put(b"some text");
    assert_eq!(guest.call(libc::SYS_write, &[0, text, 9]), Ok(9));
    let fds = guest.put(&[0; 8]);
    assert_eq!(guest.call(libc::SYS_pipe, &[fds]), Ok(0));
    let at = guest.put(&5u64.to_le_bytes());
    assert_eq!(guest.call(libc::SYS_sendfile, &[2, 0, at, 100]), Ok(4));
    assert_eq!(guest.bytes(at, 8), 9u64.to_le_bytes());
    let more = guest.put(&[0; 8]);
    assert_eq!(guest.call(libc::SYS_pipe, &[more]), Ok(0));
    assert_eq!(guest.call(libc::SYS_tee, &[1, 4, 100, 0]), Ok(4));
    assert_eq!(guest.call(libc::SYS_splice, &[1, 0, 0, 0, 100, 0]), Ok(4));
    assert_eq!(guest.call(libc::SYS_pread64, &[0, text, 13, 0]), Ok(13));
    assert_eq!(guest.bytes(text, 13), b"some texttext");
    assert_eq!(guest.call(libc::SYS_read, &[3, text, 9]), Ok(4));
    let offsets = guest.put(&[0u64.to_le_bytes(), 20u64.to_le_bytes()].concat());
    let arguments = [0, offsets, 0, offsets + 8, 4, 0];
    assert_eq!(guest.call(libc::SYS_copy_file_range, &arguments), Ok(4));
    assert_eq!(guest.call(libc::SYS_lseek, &[0, 0, 2]), Ok(24));
}

#[test]
fn attributes_with_names() {
    let mut guest = guest();
    let path = guest.text("/");
    let (name, value) = (guest.text("user.color"), guest.put(b"blue"));
    assert_eq!(guest.call(libc::SYS_setxattr, &[path, name, value, 4, 0]), Ok(0));
    assert_eq!(guest.call(libc::SYS_setxattr, &[path, name, value, 4, 1]), errno(Errno::EEXIST));
    assert_eq!(guest.call(libc::SYS_getxattr, &[path, name, 0, 0]), Ok(4));
    assert_eq!(guest.call(libc::SYS_getxattr, &[path, name, value, 2]), errno(Errno::ERANGE));
    assert_eq!(guest.call(libc::SYS_listxattr, &[path, 0, 0]), Ok(11));
    assert_eq!(guest.call(libc::SYS_removexattr, &[path, name]), Ok(0));
    assert_eq!(guest.call(libc::SYS_getxattr, &[path, name, 0, 0]), errno(Errno::ENODATA));
}

#[test]
fn what_the_guest_has_no_memory_for_is_read_again() {
    let mut guest = guest();
    let (path, text, ends) = (guest.text("/file"), guest.put(b"abc"), guest.put(&[0; 8]));
    let flags = (libc::O_CREAT | libc::O_RDWR) as u64;
    assert_eq!(guest.call(libc::SYS_open, &[path, flags, 0o666]), Ok(0));
    assert_eq!(guest.call(libc::SYS_pwrite64, &[0, text, 3, 0]), Ok(3));
    assert_eq!(guest.call(libc::SYS_read, &[0, 8, 3]), errno(Errno::EFAULT));
    assert_eq!(guest.call(libc::SYS_lseek, &[0, 0, 1]), Ok(0));
    assert_eq!(guest.call(libc::SYS_pipe2, &[ends, 0]), Ok(0));
    assert_eq!(guest.call(libc::SYS_write, &[2, text, 3]), Ok(3));
    assert_eq!(guest.call(libc::SYS_read, &[1, 8, 2]), errno(Errno::EFAULT));
    assert_eq!(guest.call(libc::SYS_read, &[1, text, 10]), Ok(3));
}

#[test]
fn ranges_are_checked_in_the_order_of_linux() {
    let mut guest = guest();
    let (path, text) = (guest.text("/file"), guest.put(b"abc"));
    let flags = (libc::O_CREAT | libc::O_RDWR) as u64;
    assert_eq!(guest.call(libc::SYS_open, &[path, flags, 0o666]), Ok(0));
    let (most, minus) = (i64::MAX.cast_unsigned(), u64::MAX);
    assert_eq!(guest.call(libc::SYS_read, &[0, text, minus]), errno(Errno::EFAULT));
    assert_eq!(guest.call(libc::SYS_pread64, &[0, text, 1, most]), errno(Errno::EINVAL));
    assert_eq!(guest.call(libc::SYS_pwrite64, &[0, text, 1, most]), errno(Errno::EINVAL));
    assert_eq!(guest.call(libc::SYS_pwrite64, &[0, text, 1, minus]), errno(Errno::EINVAL));
    assert_eq!(guest.call(libc::SYS_lseek, &[0, most, 0]), Ok(most));
    assert_eq!(guest.call(libc::SYS_lseek, &[0, 1, 1]), errno(Errno::EINVAL));
    let huge = [text, most, text, most].map(u64::to_le_bytes).concat();
    let huge = guest.put(&huge);
    assert_eq!(guest.call(libc::SYS_writev, &[0, huge, 2]), errno(Errno::EFAULT));
    assert_eq!(guest.call(libc::SYS_writev, &[0, huge, 0]), Ok(0));
}

#[test]
fn a_rename_can_leave_a_whiteout() {
    let mut guest = guest();
    let (old, new, status) = (guest.text("/old"), guest.text("/new"), guest.put(&[0; 256]));
    assert_eq!(guest.call(libc::SYS_mkdir, &[old, 0o755]), Ok(0));
    let rename = |flags: u32| [CWD, old, CWD, new, u64::from(flags)];
    let (whiteout, exchange) = (libc::RENAME_WHITEOUT, libc::RENAME_EXCHANGE);
    assert_eq!(guest.call(libc::SYS_renameat2, &rename(whiteout | exchange)), errno(Errno::EINVAL));
    assert_eq!(guest.call(libc::SYS_renameat2, &rename(whiteout)), Ok(0));
    assert_eq!(guest.call(libc::SYS_stat, &[old, status]), Ok(0));
    assert_eq!(guest.bytes(status + 24, 4), 0o020_000u32.to_le_bytes());
    assert_eq!(guest.bytes(status + 40, 8), [0; 8]);
    assert_eq!(guest.call(libc::SYS_rmdir, &[new]), Ok(0));
}

#[test]
fn a_file_without_a_name_may_never_get_one() {
    let mut guest = guest();
    let (folder, name, empty) = (guest.text("/"), guest.text("/name"), guest.text(""));
    let flags = (libc::O_TMPFILE | libc::O_RDWR) as u64;
    assert_eq!(guest.call(libc::SYS_open, &[folder, flags | libc::O_EXCL as u64, 0o600]), Ok(0));
    assert_eq!(guest.call(libc::SYS_open, &[folder, flags, 0o600]), Ok(1));
    let link = |fd| [fd, empty, CWD, name, libc::AT_EMPTY_PATH as u64];
    assert_eq!(guest.call(libc::SYS_linkat, &link(0)), errno(Errno::ENOENT));
    assert_eq!(guest.call(libc::SYS_linkat, &link(1)), Ok(0));
    let alone = (libc::O_TMPFILE & !libc::O_DIRECTORY | libc::O_RDWR) as u64;
    assert_eq!(guest.call(libc::SYS_open, &[folder, alone, 0o600]), errno(Errno::EINVAL));
}
