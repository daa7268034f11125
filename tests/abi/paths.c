/* Names: walking, links, rename in all its cases, permissions as another user, the *at calls, openat2, statx. */
#include "abi.h"

#include <linux/openat2.h>

static long openat2_(int at, const char *path, uint64_t flags, uint64_t resolve) {
    struct open_how how = {.flags = flags, .resolve = resolve};
    return syscall(SYS_openat2, at, path, &how, sizeof how);
}

static void walk_checks(void) {
    struct stat st;
    char text[PATH_MAX + 64];
    make_file("file", "x", 0644);
    mkdir("dir", 0755), mkdir("dir/sub", 0755);
    symlink("dir", "todir"), symlink("file", "tofile"), symlink("loop", "loop"), symlink("b", "a"), symlink("a", "b");
    symlink("absent", "dangling"), symlink("/", "toroot"), symlink("../file", "dir/up"), symlink("todir/", "slashed");
    const char *names[] = {"file", "file/", "file/.", "file/..", "file/x", "dir", "dir/", "dir/.", "dir/..", "dir//sub", "dir/./sub",
                           "dir/../file", "absent", "absent/", "absent/x", "absent/..", "todir", "todir/", "todir/sub", "tofile",
                           "tofile/", "loop", "a", "b/x", "dangling", "dangling/", "toroot", "toroot/tmp", "dir/up", "slashed",
                           "todir/..", "", ".", "..", "./", "//", "/", "/..", "/../..", "/.//."};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        char name[128];
        snprintf(name, sizeof name, "stat(%s)", names[i]);
        ok(name, stat(names[i], &st));
        snprintf(name, sizeof name, "lstat(%s)", names[i]);
        if (!lstat(names[i], &st)) say(name, "ok %o", st.st_mode & S_IFMT);
        else ok(name, -1);
    }
    for (int length = 254; length <= 257; length++) {
        char name[32];
        memset(text, 'n', (size_t)length);
        text[length] = 0;
        snprintf(name, sizeof name, "creat-%d", length);
        ok(name, creat(text, 0600));
    }
    for (int length = 4094; length <= 4097; length++) {
        char name[32];
        for (int i = 0; i < length; i++) text[i] = i % 2 ? '/' : '.';
        text[length] = 0;
        snprintf(name, sizeof name, "path-%d", length);
        ok(name, access(text, F_OK));
    }
    char previous[16] = "file", next[16];
    for (int i = 1; i <= 41; i++) {
        snprintf(next, sizeof next, "chain%d", i);
        symlink(previous, next);
        strcpy(previous, next);
    }
    ok("chain-40", access("chain40", F_OK));
    ok("chain-41", access("chain41", F_OK));
    val("readlink", readlink("tofile", text, sizeof text));
    val("readlink-cut", readlink("tofile", text, 2));
    val("readlink-0", readlink("tofile", text, 0));
    val("readlink-file", readlink("file", text, 10));
    val("readlink-dir", readlink("dir", text, 10));
    val("readlink-slash", readlink("todir/", text, 10));
    val("readlink-absent", readlink("absent", text, 10));
    val("readlink-null", readlink("tofile", NULL, 10));
    ok("symlink-existing", symlink("x", "file"));
    ok("symlink-empty", symlink("", "s"));
    ok("symlink-slash", symlink("x", "news/"));
    ok("symlink-in-absent", symlink("x", "absent/y"));
    memset(text, 'n', 4096), text[4096] = 0;
    ok("symlink-4096", symlink(text, "s4096"));
    text[4095] = 0;
    ok("symlink-4095", symlink(text, "s4095"));
    ok("chdir-file", chdir("file"));
    ok("chdir-absent", chdir("absent"));
    ok("chdir-link", chdir("todir"));
    char *cwd = getcwd(text, sizeof text);
    say("cwd-real", "%s", cwd ? strrchr(cwd, '/') : "none");
    ok("getcwd-small", getcwd(text, 2) ? 0 : -1);
    val("getcwd-length-is", syscall(SYS_getcwd, text, sizeof text) == (long)strlen(text) + 1);
    rmdir("../dir/sub");
    mkdir("gone", 0755), chdir("gone"), rmdir("../gone");
    ok("gone-getcwd", getcwd(text, sizeof text) ? 0 : -1);
    ok("gone-creat", creat("x", 0600));
    ok("gone-stat-dot", stat(".", &st));
    say("gone-links", "%ld", (long)st.st_nlink);
    ok("gone-dotdot", access("..", F_OK));
    ok("gone-mkdir", mkdir("x", 0700));
}

/* Makes the pair of things of two kinds and renames one to the other. */
static void rename_one(const char *from, const char *to, unsigned flags) {
    remove_tree("r"), mkdir("r", 0755), chdir("r");
    make_file("file", "1", 0600), make_file("file2", "2", 0600), mkdir("empty", 0755), mkdir("empty2", 0755);
    mkdir("full", 0755), make_file("full/in", "x", 0600), mkdir("full2", 0755), make_file("full2/in", "x", 0600);
    symlink("file", "link"), symlink("empty", "linkdir"), link("file", "hard"), mkfifo("fifo", 0600);
    char name[96];
    snprintf(name, sizeof name, "rename(%s,%s,%u)", from, to, flags);
    long result = syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
    int error = errno;
    struct stat st;
    if (result) say(name, "%s", error_name(error));
    else say(name, "ok from:%s to:%o", lstat(from, &st) ? "gone" : "there", lstat(to, &st) ? 0 : st.st_mode & S_IFMT);
    chdir("..");
}

static void rename_checks(void) {
    const char *kinds[] = {"file", "empty", "full", "link", "absent"};
    const char *targets[] = {"file2", "empty2", "full2", "linkdir", "new", "fifo"};
    for (int f = 0; f < 5; f++)
        for (int t = 0; t < 6; t++)
            for (unsigned flags = 0; flags < 3; flags++) rename_one(kinds[f], targets[t], flags);
    const char *odd[][2] = {{"file", "file"}, {"file", "hard"}, {"empty", "empty"}, {"empty", "empty/in"}, {"full", "full/in/x"},
                            {"full", "full/deeper"}, {"file", "new/"}, {"empty", "new/"}, {"file/", "new"}, {"empty/", "new"},
                            {"file", "file2/"}, {"file", "absent/x"}, {"file", "file2/x"}, {".", "new"}, {"empty", "."}, {"..", "new"},
                            {"file", ".."}, {"", "new"}, {"file", ""}, {"/", "new"}, {"full/in", "in"}, {"full/.", "x"},
                            {"full/in", "full"}, {"link/", "new"}, {"linkdir/", "new"}};
    for (unsigned i = 0; i < sizeof odd / sizeof *odd; i++) rename_one(odd[i][0], odd[i][1], 0);
    rename_one("file", "new", 3), rename_one("file", "new", 4), rename_one("file", "new", 8), rename_one("full", "full/in", 2);
}

static void link_checks(void) {
    struct stat st;
    make_file("file", "x", 0644);
    mkdir("dir", 0755), symlink("file", "sym"), symlink("absent", "dangling");
    ok("link", link("file", "hard"));
    stat("file", &st);
    val("links", (long)st.st_nlink);
    ok("link-existing", link("file", "hard"));
    ok("link-dir", link("dir", "hd"));
    ok("link-absent", link("absent", "ha"));
    ok("link-slash", link("file/", "hs"));
    ok("link-symlink", link("sym", "hardsym"));
    lstat("hardsym", &st);
    yes("link-symlink-is-symlink", S_ISLNK(st.st_mode));
    ok("link-follow", linkat(AT_FDCWD, "sym", AT_FDCWD, "followed", AT_SYMLINK_FOLLOW));
    lstat("followed", &st);
    yes("link-follow-is-file", S_ISREG(st.st_mode));
    ok("link-follow-dangling", linkat(AT_FDCWD, "dangling", AT_FDCWD, "fd", AT_SYMLINK_FOLLOW));
    ok("link-flags", linkat(AT_FDCWD, "file", AT_FDCWD, "ff", 1));
    ok("link-to-dangling", link("file", "dangling"));
    ok("unlink", unlink("hard"));
    ok("unlink-again", unlink("hard"));
    ok("unlink-dir", unlink("dir"));
    ok("unlink-slash", unlink("file/"));
    ok("unlink-dot", unlink("."));
    ok("unlinkat-flags", unlinkat(AT_FDCWD, "file", 1));
    ok("unlinkat-removedir-file", unlinkat(AT_FDCWD, "file", AT_REMOVEDIR));
    ok("unlinkat-removedir", unlinkat(AT_FDCWD, "dir", AT_REMOVEDIR));
    mkdir("dir", 0755);
    make_file("dir/x", "x", 0600);
    ok("rmdir-full", rmdir("dir"));
    ok("rmdir-file", rmdir("file"));
    ok("rmdir-dot", rmdir("dir/."));
    ok("rmdir-dotdot", rmdir("dir/.."));
    symlink("dir", "todir");
    ok("rmdir-symlink", rmdir("todir"));
    ok("rmdir-symlink-slash", rmdir("todir/"));
    ok("rmdir-root", rmdir("/"));
    ok("rmdir-absent", rmdir("absent"));
    ok("mkdir-existing", mkdir("dir", 0755));
    ok("mkdir-file", mkdir("file", 0755));
    ok("mkdir-slash", mkdir("new/", 0755));
    ok("mkdir-dangling", mkdir("dangling", 0755));
    ok("mkdir-dot", mkdir(".", 0755));
    ok("mkdir-root", mkdir("/", 0755));
    ok("mkdir-in-file", mkdir("file/x", 0755));
    mkdir("sticky", 07777);
    stat("sticky", &st);
    say("mkdir-mode", "%o", st.st_mode & 07777);
    chmod("dir", 02755), chown("dir", 0, 77);
    mkdir("dir/in", 0755);
    stat("dir/in", &st);
    say("sgid-inherited", "%o %d", st.st_mode & 07777, st.st_gid);
    make_file("dir/infile", "x", 0644);
    stat("dir/infile", &st);
    say("sgid-file", "%o %d", st.st_mode & 07777, st.st_gid);
    stat("dir", &st);
    say("dir-links", "%ld", (long)st.st_nlink);
    int fd = open("file", O_RDONLY);
    unlink("file"), unlink("followed");
    fstat(fd, &st);
    val("unlinked-links", (long)st.st_nlink);
    ok("unlinked-linkat", linkat(fd, "", AT_FDCWD, "again", AT_EMPTY_PATH));
    ok("mknod-fifo", mknod("f", S_IFIFO | 0600, 0));
    ok("mknod-sock", mknod("s", S_IFSOCK | 0600, 0));
    ok("mknod-reg", mknod("r", S_IFREG | 0600, 0));
    ok("mknod-0", mknod("z", 0600, 0));
    ok("mknod-dir", mknod("d", S_IFDIR | 0600, 0));
    ok("mknod-lnk", mknod("l", S_IFLNK | 0600, 0));
    ok("mknod-bad", mknod("b", 0170000, 0));
    ok("open-sock", open("s", O_RDONLY));
    ok("open-sock-path", open("s", O_PATH));
}

static void permission_checks(void) {
    chmod(".", 0755);
    mkdir("sticky", 0777), chmod("sticky", 01777), mkdir("closed", 0700), mkdir("open", 0777), chmod("open", 0777);
    mkdir("noexec", 0644), mkdir("noread", 0711);
    make_file("sticky/roots", "x", 0666), make_file("closed/x", "x", 0644), make_file("open/roots", "x", 0644);
    make_file("noexec/x", "x", 0644), make_file("noread/x", "x", 0644), make_file("exec", "x", 0755), make_file("suid", "x", 06755);
    make_file("group", "x", 0060), chown("group", 0, 2000), make_file("mine", "x", 0600), chown("mine", 1000, 1000);
    make_file("forbidden", "x", 0077), chown("forbidden", 1000, 1000), make_file("none", "x", 0);
    struct stat st;
    ok("root-access-w", access("none", W_OK));
    ok("root-access-x-none", access("none", X_OK));
    ok("root-access-x-exec", access("exec", X_OK));
    ok("access-mode-bad", access("exec", 8));
    ok("chown-suid", chown("suid", 1, 1));
    stat("suid", &st);
    say("chown-clears-suid", "%o", st.st_mode & 07777);
    CHILD("user") {
        as_user();
        ok("sticky-unlink", unlink("sticky/roots"));
        ok("sticky-rename", rename("sticky/roots", "sticky/other"));
        make_file("sticky/own", "x", 0600);
        ok("sticky-unlink-own", unlink("sticky/own"));
        ok("open-unlink-roots", unlink("open/roots"));
        ok("closed-stat", access("closed/x", F_OK));
        ok("closed-open", open("closed", O_RDONLY));
        ok("closed-chdir", chdir("closed"));
        ok("noexec-stat", access("noexec/x", F_OK));
        ok("noexec-list", open("noexec", O_RDONLY));
        ok("noread-stat", access("noread/x", F_OK));
        ok("noread-list", open("noread", O_RDONLY));
        ok("group-read", open("group", O_RDONLY));
        ok("forbidden-own", open("forbidden", O_RDONLY));
        ok("chmod-roots", chmod("exec", 0777));
        ok("chmod-own", chmod("mine", 04755));
        ok("chown-own-other", chown("mine", 0, -1));
        ok("chown-own-group", chown("mine", -1, 2000));
        ok("chown-own-same", chown("mine", 1000, 1000));
        stat("mine", &st);
        say("chown-own-mode", "%o", st.st_mode & 07777);
        ok("utimes-roots", utimensat(AT_FDCWD, "exec", NULL, 0));
        struct timespec times[2] = {{1, 0}, {2, 0}};
        ok("utimes-roots-set", utimensat(AT_FDCWD, "exec", times, 0));
        ok("utimes-own", utimensat(AT_FDCWD, "mine", times, 0));
        ok("truncate-roots", truncate("exec", 0));
        ok("link-roots", link("exec", "open/hard"));
        ok("mknod-device", mknod("open/dev", S_IFCHR | 0600, 0x103));
        ok("mknod-fifo", mknod("open/fifo", S_IFIFO | 0600, 0));
        ok("chroot", chroot("."));
        ok("mkdir-in-roots", mkdir("new", 0700));
        ok("rename-from-roots", rename("exec", "open/exec"));
        int fd = open("open/sg", O_CREAT | O_RDWR, 0600);
        chmod("open/sg", 06777);
        write(fd, "x", 1);
        stat("open/sg", &st);
        say("write-clears-suid", "%o", st.st_mode & 07777);
    }
    CHILD("group-user") {
        gid_t groups[] = {2000};
        syscall(SYS_setgroups, 1, groups);
        setresgid(1000, 1000, 1000);
        setresuid(1000, 1000, 1000);
        ok("supplementary-read", open("group", O_RDWR));
        ok("chgrp-supplementary", chown("mine", -1, 2000));
        ok("chgrp-other", chown("mine", -1, 3000));
    }
    CHILD("access-real") {
        setresuid(1000, 0, 0);
        ok("access-by-real", access("none", R_OK));
        ok("faccessat-eaccess", (long)syscall(SYS_faccessat2, AT_FDCWD, "none", R_OK, AT_EACCESS));
        ok("open-by-effective", open("none", O_RDONLY));
    }
}

static void at_checks(void) {
    make_file("file", "x", 0644);
    mkdir("dir", 0755), make_file("dir/in", "x", 0644), symlink("dir", "todir"), symlink("in", "dir/ln"), symlink("/", "dir/abs");
    symlink("..", "dir/up");
    int dir = open("dir", O_RDONLY | O_DIRECTORY), path = open("dir", O_PATH), file = open("file", O_RDONLY);
    struct stat st;
    ok("openat-dir", openat(dir, "in", O_RDONLY));
    ok("openat-path", openat(path, "in", O_RDONLY));
    ok("openat-file", openat(file, "in", O_RDONLY));
    ok("openat-bad", openat(-1, "in", O_RDONLY));
    ok("openat-bad-absolute", openat(-1, "/", O_RDONLY));
    ok("fstatat-empty", fstatat(file, "", &st, AT_EMPTY_PATH));
    ok("fstatat-empty-unflagged", fstatat(file, "", &st, 0));
    ok("fstatat-empty-cwd", fstatat(AT_FDCWD, "", &st, AT_EMPTY_PATH));
    ok("fstatat-flags", fstatat(dir, "in", &st, 0x8000));
    fstatat(dir, "ln", &st, AT_SYMLINK_NOFOLLOW);
    yes("fstatat-nofollow", S_ISLNK(st.st_mode));
    ok("mkdirat", mkdirat(dir, "new", 0755));
    ok("renameat", renameat(dir, "new", AT_FDCWD, "moved"));
    ok("faccessat-nofollow", (long)syscall(SYS_faccessat2, dir, "ln", F_OK, AT_SYMLINK_NOFOLLOW));
    ok("faccessat2-flags", (long)syscall(SYS_faccessat2, dir, "ln", F_OK, 1));
    ok("fchmodat2-nofollow", (long)syscall(452, dir, "ln", 0600, AT_SYMLINK_NOFOLLOW));
    ok("fchmodat2-flags", (long)syscall(452, dir, "in", 0600, 1));
    ok("fchownat-empty", fchownat(file, "", 5, 6, AT_EMPTY_PATH));
    fstat(file, &st);
    say("fchownat-is", "%d %d", st.st_uid, st.st_gid);
    ok("fchdir", fchdir(path));
    ok("fchdir-file", fchdir(file));
    chdir("..");
    struct timespec times[2] = {{1000, 1}, {2000, 999999999}};
    ok("utimensat", utimensat(dir, "in", times, 0));
    fstatat(dir, "in", &st, 0);
    say("utimensat-is", "%ld.%ld %ld.%ld", st.st_atim.tv_sec, st.st_atim.tv_nsec, st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    times[0].tv_nsec = UTIME_OMIT, times[1].tv_nsec = UTIME_OMIT;
    ok("utimensat-omit", utimensat(dir, "absent", times, 0));
    times[0].tv_nsec = 1000000000;
    ok("utimensat-nsec", utimensat(dir, "in", times, 0));
    ok("futimens", futimens(file, NULL));
    const struct {
        const char *name, *path;
        uint64_t flags, resolve;
    } how[] = {{"plain", "in", 0, 0}, {"beneath", "in", 0, RESOLVE_BENEATH}, {"beneath-up", "../file", 0, RESOLVE_BENEATH},
               {"beneath-abs", "/tmp", 0, RESOLVE_BENEATH}, {"beneath-link-abs", "abs", 0, RESOLVE_BENEATH},
               {"beneath-link-up", "up/file", 0, RESOLVE_BENEATH}, {"beneath-dotdot-in", "../dir/in", 0, RESOLVE_BENEATH},
               {"in-root-up", "../in", 0, RESOLVE_IN_ROOT}, {"in-root-abs", "/in", 0, RESOLVE_IN_ROOT},
               {"in-root-link-abs", "abs/in", 0, RESOLVE_IN_ROOT}, {"no-symlinks", "ln", 0, RESOLVE_NO_SYMLINKS},
               {"no-symlinks-file", "in", 0, RESOLVE_NO_SYMLINKS}, {"no-symlinks-path", "ln", O_PATH | O_NOFOLLOW, RESOLVE_NO_SYMLINKS},
               {"no-xdev", "in", 0, RESOLVE_NO_XDEV}, {"no-xdev-proc", "/proc/self", 0, RESOLVE_NO_XDEV},
               {"no-magic", "/proc/self/exe", 0, RESOLVE_NO_MAGICLINKS}, {"no-magic-plain", "ln", 0, RESOLVE_NO_MAGICLINKS},
               {"both-roots", "in", 0, RESOLVE_BENEATH | RESOLVE_IN_ROOT}, {"unknown-resolve", "in", 0, 0x100},
               {"unknown-flag", "in", 1ULL << 40, 0}, {"unknown-flag-32", "in", 1 << 23, 0}, {"creat-directory", "n", O_CREAT | O_DIRECTORY, 0}};
    for (unsigned i = 0; i < sizeof how / sizeof *how; i++) {
        char name[64];
        snprintf(name, sizeof name, "openat2-%s", how[i].name);
        ok(name, openat2_(dir, how[i].path, how[i].flags, how[i].resolve));
    }
    struct open_how mode = {.mode = 0600}, creat = {.flags = O_CREAT | O_WRONLY, .mode = 010000};
    ok("openat2-mode-no-creat", (long)syscall(SYS_openat2, dir, "in", &mode, sizeof mode));
    ok("openat2-mode-high", (long)syscall(SYS_openat2, dir, "n2", &creat, sizeof creat));
    ok("openat2-size-small", (long)syscall(SYS_openat2, dir, "in", &mode, 8));
    ok("openat2-size-large-null", (long)syscall(SYS_openat2, dir, "in", NULL, 20000));
    char larger[64] = {0};
    ok("openat2-larger-zero", (long)syscall(SYS_openat2, dir, "in", larger, 64));
    larger[63] = 1;
    ok("openat2-larger-nonzero", (long)syscall(SYS_openat2, dir, "in", larger, 64));
}

static void statx_checks(void) {
    struct statx sx;
    make_file("file", "hello", 0640);
    symlink("file", "link");
    ok("file", statx(AT_FDCWD, "file", 0, STATX_BASIC_STATS, &sx));
    say("fields", "mode %o size %ld links %u uid %u gid %u mask %#x", sx.stx_mode, (long)sx.stx_size, sx.stx_nlink, sx.stx_uid, sx.stx_gid,
        sx.stx_mask & STATX_BASIC_STATS);
    yes("rdev-zero", sx.stx_rdev_major == 0 && sx.stx_rdev_minor == 0);
    ok("nofollow", statx(AT_FDCWD, "link", AT_SYMLINK_NOFOLLOW, STATX_TYPE, &sx));
    say("nofollow-type", "%o size %ld", sx.stx_mode & S_IFMT, (long)sx.stx_size);
    ok("empty", statx(1, "", AT_EMPTY_PATH, STATX_TYPE, &sx));
    ok("null-path", statx(AT_FDCWD, NULL, 0, STATX_TYPE, &sx));
    ok("null-path-empty", statx(AT_FDCWD, NULL, AT_EMPTY_PATH, STATX_TYPE, &sx));
    ok("reserved", statx(AT_FDCWD, "file", 0, STATX__RESERVED, &sx));
    ok("flags", statx(AT_FDCWD, "file", 1, STATX_TYPE, &sx));
    ok("sync-both", statx(AT_FDCWD, "file", AT_STATX_FORCE_SYNC | AT_STATX_DONT_SYNC, STATX_TYPE, &sx));
    ok("dont-sync", statx(AT_FDCWD, "file", AT_STATX_DONT_SYNC, STATX_TYPE, &sx));
    ok("null-buffer", statx(AT_FDCWD, "file", 0, STATX_TYPE, NULL));
    ok("dev-null", statx(AT_FDCWD, "/dev/null", 0, STATX_BASIC_STATS, &sx));
    say("dev-null-rdev", "%u:%u %o", sx.stx_rdev_major, sx.stx_rdev_minor, sx.stx_mode);
    struct stat before, after;
    stat("file", &before), pause_ms(30), chmod("file", 0600), stat("file", &after);
    yes("chmod-ctime", after.st_ctim.tv_sec > before.st_ctim.tv_sec || after.st_ctim.tv_nsec != before.st_ctim.tv_nsec);
    yes("chmod-mtime-same", after.st_mtim.tv_nsec == before.st_mtim.tv_nsec);
    stat(".", &before), pause_ms(30), creat("new", 0600), stat(".", &after);
    yes("creat-dir-mtime", after.st_mtim.tv_sec > before.st_mtim.tv_sec || after.st_mtim.tv_nsec != before.st_mtim.tv_nsec);
    stat("file", &before), pause_ms(30), link("file", "hard"), stat("file", &after);
    yes("link-ctime", after.st_ctim.tv_sec > before.st_ctim.tv_sec || after.st_ctim.tv_nsec != before.st_ctim.tv_nsec);
    int fd = open("file", O_WRONLY);
    stat("file", &before), pause_ms(30), write(fd, "x", 1), stat("file", &after);
    yes("write-mtime", after.st_mtim.tv_sec > before.st_mtim.tv_sec || after.st_mtim.tv_nsec != before.st_mtim.tv_nsec);
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"walk", walk_checks}, {"rename", rename_checks}, {"link", link_checks},
                                           {"perm", permission_checks}, {"at", at_checks}, {"statx", statx_checks}, {0}};
    return run(argc, argv, groups);
}
