/* Generated checks of calls on open files and on names. */
#include "gen.h"

#include <sys/file.h>

KIND(open_flags, V(O_RDONLY), V(O_WRONLY), V(O_RDWR), V(O_CREAT), V(O_CREAT | O_EXCL), V(O_TRUNC), V(O_DIRECTORY), V(O_NOFOLLOW),
     V(O_PATH), V(O_RDWR | O_TMPFILE), V(O_RDWR | O_NONBLOCK), V(O_APPEND | O_WRONLY), V(-1));
KIND(whence, V(SEEK_SET), V(SEEK_CUR), V(SEEK_END), V(SEEK_DATA), V(SEEK_HOLE), {"9", 9}, {"-1", -1});
KIND(fcntl_commands, V(F_GETFD), V(F_SETFD), V(F_GETFL), V(F_SETFL), V(F_GETOWN), V(F_GETSIG), V(F_GETLEASE), V(F_GETPIPE_SZ),
     V(F_GET_SEALS), V(F_ADD_SEALS), {"F_GET_RW_HINT", 1035}, {"77", 77}, {"-1", -1});
KIND(fcntl_values, {"0", 0}, {"1", 1}, {"O_NONBLOCK", O_NONBLOCK}, {"-1", -1});
KIND(fallocate_modes, {"0", 0}, V(FALLOC_FL_KEEP_SIZE), V(FALLOC_FL_PUNCH_HOLE), {"PUNCH|KEEP", 3}, {"COLLAPSE", 8}, {"ZERO", 16},
     {"INSERT", 32}, {"-1", -1});
KIND(space, {"16", 16}, {"0", 0}, {"4096", 4096}, {"-1", -1}, {"LONG_MIN", LONG_MIN});
KIND(flock_operations, V(LOCK_SH), V(LOCK_EX), V(LOCK_UN), V(LOCK_SH | LOCK_NB), V(LOCK_EX | LOCK_NB), {"0", 0}, {"-1", -1}, {"3", 3});
KIND(ioctls, {"FIONREAD", 0x541b}, {"FIONBIO", 0x5421}, {"FIOCLEX", 0x5451}, {"FIOASYNC", 0x5452}, {"TCGETS", 0x5401},
     {"TIOCGWINSZ", 0x5413}, {"FIGETBSZ", 2}, {"0", 0}, {"-1", -1});
KIND(advice, {"0", 0}, {"4", 4}, {"9", 9}, {"-1", -1});
KIND(sync_flags, {"0", 0}, {"7", 7}, {"8", 8});
KIND(zero_flags, {"0", 0}, {"1", 1}, {"-1", -1});
KIND(none, {"NULL", 0});
KIND(splice_flags, {"0", 0}, {"NONBLOCK", 2}, {"-1", -1});
KIND(range_flags, {"0", 0}, V(CLOSE_RANGE_CLOEXEC), V(CLOSE_RANGE_UNSHARE), {"1", 1}, {"-1", -1});
KIND(fds, {"3", 3}, {"100", 100}, {"-1", -1}, {"INT_MAX", INT_MAX});
KIND(dup_flags, {"0", 0}, V(O_CLOEXEC), {"1", 1}, {"-1", -1});
KIND(rw_flags, {"0", 0}, V(RWF_NOWAIT), V(RWF_APPEND), V(RWF_DSYNC), {"-1", -1});

static void open_calls(void) {
    static const struct call calls[] = {{"open", SYS_open, 60, 0, {&PATH, &open_flags, &MODE}},
                                        {"open-user", SYS_open, 35, AS_USER, {&PATH, &open_flags, &MODE}},
                                        {"openat", SYS_openat, 55, 0, {&AT, &PATH, &open_flags, &MODE}},
                                        {"creat", SYS_creat, 28, 0, {&NEWPATH, &MODE}},
                                        {"close", SYS_close, 20, 0, {&FD}},
                                        {"close_range", SYS_close_range, 16, 0, {&fds, &fds, &range_flags}},
                                        {"dup", SYS_dup, 20, BY_VALUE, {&FD}},
                                        {"dup2", SYS_dup2, 20, 0, {&FD, &fds}},
                                        {"dup3", SYS_dup3, 24, 0, {&FD, &fds, &dup_flags}},
                                        {"fcntl", SYS_fcntl, 60, 0, {&FD, &fcntl_commands, &fcntl_values}},
                                        {"ioctl", SYS_ioctl, 60, 0, {&FD, &ioctls, &OUT}},
                                        {"flock", SYS_flock, 30, 0, {&FD, &flock_operations}},
                                        {0}};
    generate(calls);
}

static void data_calls(void) {
    static const struct call calls[] = {{"read", SYS_read, 50, BY_VALUE, {&FD, &OUT, &LENGTH}},
                                        {"write", SYS_write, 50, BY_VALUE, {&FD, &IN, &LENGTH}},
                                        {"pread64", SYS_pread64, 50, BY_VALUE, {&FD, &OUT, &LENGTH, &OFFSET}},
                                        {"pwrite64", SYS_pwrite64, 50, BY_VALUE, {&FD, &IN, &LENGTH, &OFFSET}},
                                        {"readv", SYS_readv, 45, BY_VALUE, {&FD, &IOV, &IOVCOUNT}},
                                        {"writev", SYS_writev, 45, BY_VALUE, {&FD, &IOV, &IOVCOUNT}},
                                        {"preadv", SYS_preadv, 40, BY_VALUE, {&FD, &IOV, &IOVCOUNT, &OFFSET}},
                                        {"preadv2", SYS_preadv2, 40, BY_VALUE, {&FD, &IOV, &IOVCOUNT, &OFFSET, &none, &rw_flags}},
                                        {"pwritev2", SYS_pwritev2, 40, BY_VALUE, {&FD, &IOV, &IOVCOUNT, &OFFSET, &none, &rw_flags}},
                                        {"lseek", SYS_lseek, 45, BY_VALUE, {&FD, &OFFSET, &whence}},
                                        {"ftruncate", SYS_ftruncate, 30, 0, {&FD, &OFFSET}},
                                        {"fallocate", SYS_fallocate, 45, 0, {&FD, &fallocate_modes, &OFFSET, &space}},
                                        {"fsync", SYS_fsync, 16, 0, {&FD}},
                                        {"fdatasync", SYS_fdatasync, 16, 0, {&FD}},
                                        {"sync_file_range", SYS_sync_file_range, 30, 0, {&FD, &OFFSET, &LENGTH, &sync_flags}},
                                        {"readahead", SYS_readahead, 25, 0, {&FD, &OFFSET, &LENGTH}},
                                        {"fadvise64", SYS_fadvise64, 25, 0, {&FD, &OFFSET, &LENGTH, &advice}},
                                        {"sendfile", SYS_sendfile, 50, BY_VALUE, {&FD, &FD, &OUT, &LENGTH}},
                                        {"copy_file_range", SYS_copy_file_range, 50, BY_VALUE, {&FD, &OUT, &FD, &none, &LENGTH, &zero_flags}},
                                        {"splice", SYS_splice, 60, BY_VALUE, {&FD, &none, &FD, &none, &LENGTH, &splice_flags}},
                                        {"tee", SYS_tee, 40, BY_VALUE, {&FD, &FD, &LENGTH, &splice_flags}},
                                        {"vmsplice", SYS_vmsplice, 30, BY_VALUE, {&FD, &IOV, &IOVCOUNT, &splice_flags}},
                                        {"getdents64", SYS_getdents64, 35, 0, {&FD, &OUT, &LENGTH}},
                                        {0}};
    generate(calls);
}

KIND(access_modes, {"F_OK", 0}, {"R_OK", 4}, {"W_OK", 2}, {"X_OK", 1}, {"8", 8}, {"-1", -1});
KIND(access_flags, {"0", 0}, {"EACCESS", 0x200}, {"NOFOLLOW", 0x100}, {"EMPTY", 0x1000}, {"1", 1});
KIND(stat_flags, {"0", 0}, {"NOFOLLOW", 0x100}, {"EMPTY", 0x1000}, {"NO_AUTOMOUNT", 0x800}, {"1", 1}, {"-1", -1});
KIND(statx_flags, {"0", 0}, {"NOFOLLOW", 0x100}, {"EMPTY", 0x1000}, {"FORCE_SYNC", 0x2000}, {"both-sync", 0x6000}, {"1", 1}, {"-1", -1});
KIND(statx_masks, {"BASIC", 0x7ff}, {"0", 0}, {"RESERVED", 0x80000000}, {"-1", -1});
KIND(unlink_flags, {"0", 0}, {"REMOVEDIR", 0x200}, {"1", 1}, {"-1", -1});
KIND(link_flags, {"0", 0}, {"FOLLOW", 0x400}, {"EMPTY", 0x1000}, {"1", 1});
KIND(rename_flags, {"0", 0}, {"NOREPLACE", 1}, {"EXCHANGE", 2}, {"both", 3}, {"WHITEOUT", 4}, {"8", 8});
KIND(node_modes, {"S_IFREG", S_IFREG | 0600}, {"0600", 0600}, {"S_IFIFO", S_IFIFO | 0600}, {"S_IFSOCK", S_IFSOCK | 0600},
     {"S_IFDIR", S_IFDIR | 0600}, {"S_IFLNK", S_IFLNK | 0600}, {"-1", -1});
KIND(xattr_flags, {"0", 0}, {"CREATE", 1}, {"REPLACE", 2}, {"3", 3}, {"4", 4});
KIND(watch_masks, {"ALL", 0xfff}, {"0", 0}, {"ONLYDIR", 0x01000001}, {"DONT_FOLLOW", 0x02000001}, {"CREATE|ADD", 0x30000001}, {"-1", -1});

static void name_calls(void) {
    static const struct call calls[] = {{"stat", SYS_stat, 30, 0, {&PATH, &OUT}},
                                        {"lstat", SYS_lstat, 28, 0, {&PATH, &OUT}},
                                        {"fstat", SYS_fstat, 28, 0, {&FD, &OUT}},
                                        {"newfstatat", SYS_newfstatat, 50, 0, {&AT, &PATH, &OUT, &stat_flags}},
                                        {"statx", SYS_statx, 55, 0, {&AT, &PATH, &statx_flags, &statx_masks, &OUT}},
                                        {"statfs", SYS_statfs, 28, 0, {&PATH, &OUT}},
                                        {"fstatfs", SYS_fstatfs, 24, 0, {&FD, &OUT}},
                                        {"access", SYS_access, 40, 0, {&PATH, &access_modes}},
                                        {"access-user", SYS_access, 30, AS_USER, {&PATH, &access_modes}},
                                        {"faccessat2", SYS_faccessat2, 45, 0, {&AT, &PATH, &access_modes, &access_flags}},
                                        {"mkdir", SYS_mkdir, 28, 0, {&NEWPATH, &MODE}},
                                        {"mkdirat", SYS_mkdirat, 32, 0, {&AT, &NEWPATH, &MODE}},
                                        {"rmdir", SYS_rmdir, 20, 0, {&PATH}},
                                        {"unlink", SYS_unlink, 20, 0, {&PATH}},
                                        {"unlinkat", SYS_unlinkat, 40, 0, {&AT, &PATH, &unlink_flags}},
                                        {"rename", SYS_rename, 80, 0, {&PATH, &NEWPATH}},
                                        {"renameat2", SYS_renameat2, 70, 0, {&AT, &PATH, &AT, &NEWPATH, &rename_flags}},
                                        {"link", SYS_link, 60, 0, {&PATH, &NEWPATH}},
                                        {"linkat", SYS_linkat, 60, 0, {&AT, &PATH, &AT, &NEWPATH, &link_flags}},
                                        {"symlink", SYS_symlink, 50, 0, {&PATH, &NEWPATH}},
                                        {"symlinkat", SYS_symlinkat, 40, 0, {&PATH, &AT, &NEWPATH}},
                                        {"readlink", SYS_readlink, 40, BY_VALUE, {&PATH, &OUT, &LENGTH}},
                                        {"readlinkat", SYS_readlinkat, 40, BY_VALUE, {&AT, &PATH, &OUT, &LENGTH}},
                                        {"chmod", SYS_chmod, 28, 0, {&PATH, &MODE}},
                                        {"fchmod", SYS_fchmod, 24, 0, {&FD, &MODE}},
                                        {"fchmodat", SYS_fchmodat, 32, 0, {&AT, &PATH, &MODE}},
                                        {"chown", SYS_chown, 32, 0, {&PATH, &USER, &USER}},
                                        {"chown-user", SYS_chown, 28, AS_USER, {&PATH, &USER, &USER}},
                                        {"fchown", SYS_fchown, 28, 0, {&FD, &USER, &USER}},
                                        {"fchownat", SYS_fchownat, 45, 0, {&AT, &PATH, &USER, &USER, &stat_flags}},
                                        {"utimensat", SYS_utimensat, 50, 0, {&AT, &PATH, &TIME, &stat_flags}},
                                        {"chdir", SYS_chdir, 20, 0, {&PATH}},
                                        {"fchdir", SYS_fchdir, 16, 0, {&FD}},
                                        {"chroot", SYS_chroot, 20, 0, {&PATH}},
                                        {"chroot-user", SYS_chroot, 20, AS_USER, {&PATH}},
                                        {"truncate", SYS_truncate, 32, 0, {&PATH, &OFFSET}},
                                        {"mknod", SYS_mknod, 34, 0, {&NEWPATH, &node_modes, &none}},
                                        {"mknodat", SYS_mknodat, 36, 0, {&AT, &NEWPATH, &node_modes, &none}},
                                        {"getcwd", SYS_getcwd, 24, BY_VALUE, {&OUT, &LENGTH}},
                                        {"setxattr", SYS_setxattr, 55, 0, {&PATH, &XNAME, &IN, &LENGTH, &xattr_flags}},
                                        {"getxattr", SYS_getxattr, 40, BY_VALUE, {&PATH, &XNAME, &OUT, &LENGTH}},
                                        {"fgetxattr", SYS_fgetxattr, 35, BY_VALUE, {&FD, &XNAME, &OUT, &LENGTH}},
                                        {"listxattr", SYS_listxattr, 32, BY_VALUE, {&PATH, &OUT, &LENGTH}},
                                        {"removexattr", SYS_removexattr, 30, 0, {&PATH, &XNAME}},
                                        {"inotify_add_watch", SYS_inotify_add_watch, 40, 0, {&FD, &PATH, &watch_masks}},
                                        {0}};
    generate(calls);
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"gen-open", open_calls}, {"gen-data", data_calls}, {"gen-name", name_calls}, {0}};
    return run(argc, argv, groups);
}
