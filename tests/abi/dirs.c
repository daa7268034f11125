/* Listing folders, extended attributes, locks. */
#include "abi.h"

#include <dirent.h>
#include <sys/file.h>
#include <sys/xattr.h>

struct entry {
    uint64_t ino;
    int64_t off;
    unsigned short reclen;
    unsigned char type;
    char name[];
};

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* All entries with their types, sorted. */
static void list(const char *name, int fd, size_t buffer_size) {
    char *names[512], *buffer = malloc(buffer_size), text[3000] = "";
    int count = 0;
    for (long got; (got = syscall(SYS_getdents64, fd, buffer, buffer_size)) > 0;)
        for (long at = 0; at < got;) {
            struct entry *entry = (struct entry *)(buffer + at);
            if (count < 512) asprintf(&names[count++], "%s/%d", entry->name, entry->type);
            at += entry->reclen;
        }
    qsort(names, (size_t)count, sizeof *names, by_name);
    for (int i = 0; i < count && i < 40; i++) {
        strcat(text, names[i]);
        strcat(text, " ");
    }
    say(name, "%d: %s", count, text);
    free(buffer);
}

static void getdents_checks(void) {
    mkdir("d", 0755), chdir("d");
    make_file("file", "x", 0600), mkdir("dir", 0755), symlink("file", "link"), mkfifo("fifo", 0600), mknod("sock", S_IFSOCK | 0600, 0);
    mknod("null", S_IFCHR | 0600, 0x103);
    int fd = open(".", O_RDONLY | O_DIRECTORY);
    char buffer[256];
    list("types", fd, 4096);
    val("at-end", syscall(SYS_getdents64, fd, buffer, sizeof buffer));
    lseek(fd, 0, SEEK_SET);
    list("again", fd, 4096);
    lseek(fd, 0, SEEK_SET);
    list("small-buffer", fd, 40);
    lseek(fd, 0, SEEK_SET);
    val("tiny", syscall(SYS_getdents64, fd, buffer, 10));
    val("zero", syscall(SYS_getdents64, fd, buffer, 0));
    val("null", syscall(SYS_getdents64, fd, NULL, 100));
    val("file", syscall(SYS_getdents64, open("file", O_RDONLY), buffer, 100));
    val("path-fd", syscall(SYS_getdents64, open(".", O_PATH), buffer, 100));
    val("bad", syscall(SYS_getdents64, -1, buffer, 100));
    mkdir("empty", 0755);
    list("empty", open("empty", O_RDONLY), 4096);
    mkdir("many", 0755);
    for (int i = 0; i < 300; i++) {
        snprintf(buffer, sizeof buffer, "many/entry%03d", i);
        close(creat(buffer, 0600));
    }
    list("many", open("many", O_RDONLY), 1000);
    mkdir("gone", 0755);
    int gone = open("gone", O_RDONLY);
    rmdir("gone");
    val("removed", syscall(SYS_getdents64, gone, buffer, sizeof buffer));
    DIR *dir = opendir("many");
    int seen = 0, removed = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        seen++;
        if (entry->d_name[0] == 'e') removed += !unlinkat(dirfd(dir), entry->d_name, 0);
    }
    say("remove-while-listing", "%d %d", seen, removed);
    list("then-empty", open("many", O_RDONLY), 1000);
    long offset = -1;
    dir = opendir(".");
    readdir(dir), readdir(dir), readdir(dir);
    offset = telldir(dir);
    char *third = strdup(readdir(dir)->d_name);
    readdir(dir);
    seekdir(dir, offset);
    yes("seekdir", !strcmp(third, readdir(dir)->d_name));
    struct stat st, self;
    stat(".", &st);
    rewinddir(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".")) yes("dot-ino", entry->d_ino == st.st_ino);
        if (!strcmp(entry->d_name, "file")) yes("file-ino", !stat("file", &self) && entry->d_ino == self.st_ino);
    }
}

static void xattr_checks(void) {
    make_file("file", "x", 0644), mkdir("dir", 0755), symlink("file", "link"), mkfifo("fifo", 0600);
    char value[64] = "";
    int fd = open("file", O_RDWR), path = open("file", O_PATH);
    val("set", setxattr("file", "user.a", "value", 5, 0));
    val("get", getxattr("file", "user.a", value, sizeof value));
    say("get-is", "%.5s", value);
    val("get-size", getxattr("file", "user.a", NULL, 0));
    val("get-small", getxattr("file", "user.a", value, 3));
    val("get-absent", getxattr("file", "user.none", value, sizeof value));
    val("create-existing", setxattr("file", "user.a", "w", 1, XATTR_CREATE));
    val("replace-absent", setxattr("file", "user.none", "w", 1, XATTR_REPLACE));
    val("replace", setxattr("file", "user.a", "w", 1, XATTR_REPLACE));
    val("flags-both", setxattr("file", "user.b", "w", 1, XATTR_REPLACE | XATTR_CREATE));
    val("flags-bad", setxattr("file", "user.b", "w", 1, 8));
    val("empty-value", setxattr("file", "user.empty", "", 0, 0));
    val("get-empty", getxattr("file", "user.empty", value, sizeof value));
    val("no-prefix", setxattr("file", "a", "w", 1, 0));
    val("bad-prefix", setxattr("file", "bad.a", "w", 1, 0));
    val("prefix-only", setxattr("file", "user.", "w", 1, 0));
    val("empty-name", setxattr("file", "", "w", 1, 0));
    char name[300] = "user.";
    memset(name + 5, 'n', 251);
    val("name-256", setxattr("file", name, "w", 1, 0));
    name[255] = 0;
    val("name-255", setxattr("file", name, "w", 1, 0));
    val("value-65537", setxattr("file", "user.big", calloc(1, 65537), 65537, 0));
    val("remove-255", removexattr("file", name));
    val("list-size", listxattr("file", NULL, 0));
    val("list-small", listxattr("file", value, 3));
    val("list", listxattr("file", value, sizeof value));
    val("remove", removexattr("file", "user.a"));
    val("remove-again", removexattr("file", "user.a"));
    val("symlink-l", lsetxattr("link", "user.a", "w", 1, 0));
    val("symlink-follow", setxattr("link", "user.via", "w", 1, 0));
    val("symlink-followed", getxattr("file", "user.via", value, 8));
    val("symlink-lget", lgetxattr("link", "user.via", value, 8));
    val("fifo", setxattr("fifo", "user.a", "w", 1, 0));
    val("dir", setxattr("dir", "user.a", "w", 1, 0));
    val("fset", fsetxattr(fd, "user.f", "w", 1, 0));
    val("fset-path", fsetxattr(path, "user.f", "w", 1, 0));
    val("fget-path", fgetxattr(path, "user.f", value, 8));
    val("flist-bad", flistxattr(-1, value, 8));
    val("fremove", fremovexattr(fd, "user.f"));
    val("trusted-root", setxattr("file", "trusted.a", "w", 1, 0));
    val("null-value", setxattr("file", "user.x", NULL, 1, 0));
    val("null-name", setxattr("file", NULL, "w", 1, 0));
    val("absent-file", getxattr("absent", "user.a", value, 8));
    CHILD("user") {
        make_file("readable", "x", 0644), setxattr("readable", "user.seen", "w", 1, 0);
        make_file("secret", "x", 0600), setxattr("secret", "user.seen", "w", 1, 0);
        as_user();
        val("user-get", getxattr("readable", "user.seen", value, 8));
        val("user-set", setxattr("readable", "user.mine", "w", 1, 0));
        val("user-get-secret", getxattr("secret", "user.seen", value, 8));
        val("user-trusted", setxattr("readable", "trusted.a", "w", 1, 0));
        val("user-trusted-get", getxattr("file", "trusted.a", value, 8));
    }
}

static struct flock lock_of(short type, off_t start, off_t length) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
}

/* Who holds the range, as a child of this process sees it. */
static void seen_by_child(const char *name, int command, short type, off_t start, off_t length) {
    CHILD(name) {
        int fd = open("file", O_RDWR);
        struct flock lock = lock_of(type, start, length);
        if (fcntl(fd, command, &lock)) ok(name, -1);
        else if (command == F_GETLK || command == F_OFD_GETLK)
            say(name, "type %d start %ld len %ld pid %s", lock.l_type, (long)lock.l_start, (long)lock.l_len,
                lock.l_type == F_UNLCK ? "-" : lock.l_pid == getppid() ? "parent" : lock.l_pid == -1 ? "-1" : "other");
        else say(name, "ok");
    }
}

static void posix_lock_checks(void) {
    make_file("file", "0123456789", 0644);
    int fd = open("file", O_RDWR), ro = open("file", O_RDONLY), wo = open("file", O_WRONLY);
    struct flock lock = lock_of(F_WRLCK, 2, 4);
    ok("set", fcntl(fd, F_SETLK, &lock));
    seen_by_child("getlk-inside", F_GETLK, F_RDLCK, 3, 1);
    seen_by_child("getlk-before", F_GETLK, F_WRLCK, 0, 2);
    seen_by_child("getlk-all", F_GETLK, F_WRLCK, 0, 0);
    seen_by_child("setlk-inside", F_SETLK, F_RDLCK, 3, 1);
    seen_by_child("setlk-after", F_SETLK, F_WRLCK, 6, 0);
    lock = lock_of(F_UNLCK, 3, 1);
    ok("split", fcntl(fd, F_SETLK, &lock));
    seen_by_child("split-first", F_GETLK, F_WRLCK, 0, 0);
    seen_by_child("split-gap", F_SETLK, F_WRLCK, 3, 1);
    seen_by_child("split-second", F_GETLK, F_WRLCK, 3, 0);
    lock = lock_of(F_RDLCK, 0, 0);
    ok("downgrade", fcntl(fd, F_SETLK, &lock));
    seen_by_child("downgrade-read", F_SETLK, F_RDLCK, 2, 4);
    seen_by_child("downgrade-write", F_SETLK, F_WRLCK, 2, 4);
    close(ro);
    seen_by_child("closed-another", F_SETLK, F_WRLCK, 0, 0);
    ro = open("file", O_RDONLY);
    lock = lock_of(F_WRLCK, 0, 1);
    ok("write-on-rdonly", fcntl(ro, F_SETLK, &lock));
    lock = lock_of(F_RDLCK, 0, 1);
    ok("read-on-wronly", fcntl(wo, F_SETLK, &lock));
    lock = lock_of(7, 0, 1);
    ok("type-bad", fcntl(fd, F_SETLK, &lock));
    lock = lock_of(F_RDLCK, -1, 1);
    ok("start-negative", fcntl(fd, F_SETLK, &lock));
    lock = lock_of(F_RDLCK, 5, -5);
    ok("len-negative", fcntl(fd, F_SETLK, &lock));
    seen_by_child("len-negative-seen", F_GETLK, F_WRLCK, 0, 0);
    lock = lock_of(F_RDLCK, 2, -5);
    ok("len-too-negative", fcntl(fd, F_SETLK, &lock));
    lock.l_whence = 9;
    ok("whence-bad", fcntl(fd, F_SETLK, &lock));
    lock = lock_of(F_RDLCK, LONG_MAX, 2);
    ok("overflow", fcntl(fd, F_SETLK, &lock));
    lock = lock_of(F_UNLCK, 0, 0);
    ok("getlk-unlck", fcntl(fd, F_GETLK, &lock));
    ok("null", fcntl(fd, F_SETLK, NULL));
    ok("unlock", fcntl(fd, F_SETLK, &lock));
    lock = lock_of(F_WRLCK, 0, 1);
    fcntl(fd, F_SETLK, &lock);
    struct gate held = gate();
    pid_t other = fork();
    if (!other) {
        lock = lock_of(F_WRLCK, 5, 1);
        fcntl(fd, F_SETLK, &lock);
        gate_open(&held);
        lock = lock_of(F_WRLCK, 0, 1);
        ok("wait-got", fcntl(fd, F_SETLKW, &lock));
        _exit(0);
    }
    gate_pass(&held), settle(other);
    lock = lock_of(F_WRLCK, 5, 1);
    ok("deadlock", fcntl(fd, F_SETLKW, &lock));
    lock = lock_of(F_UNLCK, 0, 0);
    fcntl(fd, F_SETLK, &lock);
    status("waiter", await(other, 20000));
}

static void ofd_lock_checks(void) {
    make_file("file", "0123456789", 0644);
    int fd = open("file", O_RDWR), second = open("file", O_RDWR), copy = dup(fd);
    struct flock lock = lock_of(F_WRLCK, 0, 5);
    ok("set", fcntl(fd, F_OFD_SETLK, &lock));
    ok("second", fcntl(second, F_OFD_SETLK, &lock));
    ok("dup-same", fcntl(copy, F_OFD_SETLK, &lock));
    ok("posix-conflict", fcntl(second, F_SETLK, &lock));
    seen_by_child("getlk", F_GETLK, F_WRLCK, 0, 0);
    seen_by_child("ofd-getlk", F_OFD_GETLK, F_WRLCK, 0, 0);
    lock.l_pid = 1;
    ok("pid-set", fcntl(fd, F_OFD_SETLK, &lock));
    lock.l_pid = 0;
    close(fd);
    ok("still-held", fcntl(second, F_OFD_SETLK, &lock));
    close(copy);
    ok("released", fcntl(second, F_OFD_SETLK, &lock));
    CHILD("fork-shares") { ok("inherited", fcntl(second, F_OFD_SETLK, &lock)); }
    ok("flock-ex", flock(second, LOCK_EX));
    int third = open("file", O_RDONLY);
    ok("flock-third", flock(third, LOCK_EX | LOCK_NB));
    ok("flock-third-sh", flock(third, LOCK_SH | LOCK_NB));
    ok("flock-down", flock(second, LOCK_SH));
    ok("flock-third-sh-2", flock(third, LOCK_SH | LOCK_NB));
    ok("flock-up", flock(second, LOCK_EX | LOCK_NB));
    ok("flock-third-un", flock(third, LOCK_UN));
    ok("flock-up-2", flock(second, LOCK_EX | LOCK_NB));
    CHILD("flock-child") { ok("flock-inherited", flock(second, LOCK_EX | LOCK_NB)); }
    ok("flock-bad", flock(second, 0));
    ok("flock-both", flock(second, LOCK_SH | LOCK_EX));
    ok("flock-fd", flock(-1, LOCK_SH));
    ok("flock-path", flock(open("file", O_PATH), LOCK_SH));
    ok("flock-dir", flock(open(".", O_RDONLY), LOCK_EX | LOCK_NB));
    int ends[2];
    pipe(ends);
    ok("flock-pipe", flock(ends[0], LOCK_EX | LOCK_NB));
    ok("flock-un-unheld", flock(third, LOCK_UN));
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {
        {"getdents", getdents_checks}, {"xattr", xattr_checks}, {"posix-lock", posix_lock_checks}, {"ofd-lock", ofd_lock_checks}, {0}};
    return run(argc, argv, groups);
}
