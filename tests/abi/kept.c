/* What is told of a path after something changed, when it was asked for many times before: nothing that was kept may be told again. Each change is made
 * by the process itself, by a thread of it, and by another process. */
#include "abi.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

/* So often that all that speeds a call up is in place, and a little more. */
enum { OFTEN = 60 };

struct change {
    const char *name;
    /* Makes what is there before, in an empty folder that has a folder `d`. */
    void (*before)(void);
    void (*make)(void);
};

static int changed_fd = -1;

/* Everything that a path is asked, as text. */
static void ask(const char *path, char *text, size_t room) {
    struct stat st;
    struct statx stx;
    char target[64];
    size_t used = 0;
#define ADD(...) (used += (size_t)snprintf(text + used, used < room ? room - used : 0, __VA_ARGS__))
    if (stat(path, &st) == 0) ADD("%o links %ld size %ld uid %d", st.st_mode, (long)(S_ISDIR(st.st_mode) ? -1 : (long)st.st_nlink), S_ISDIR(st.st_mode) ? -1L : (long)st.st_size, st.st_uid);
    else ADD("%s", error_name(errno));
    if (lstat(path, &st) == 0) ADD(", l %o", st.st_mode & S_IFMT);
    else ADD(", l %s", error_name(errno));
    if (syscall(SYS_statx, AT_FDCWD, path, 0, STATX_BASIC_STATS, &stx) == 0) ADD(", x %o mtime %ld", stx.stx_mode, stx.stx_mtime.tv_sec < 1000000 ? (long)stx.stx_mtime.tv_sec : -1L);
    else ADD(", x %s", error_name(errno));
    ADD(", r %s", access(path, R_OK) ? error_name(errno) : "ok");
    ADD(", x %s", faccessat(AT_FDCWD, path, X_OK, 0) ? error_name(errno) : "ok");
    ssize_t length = readlink(path, target, sizeof target);
    if (length >= 0) ADD(", to %.*s", (int)length, target);
    else ADD(", to %s", error_name(errno));
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    if (fd >= 0) ADD(", open"), close(fd);
    else ADD(", open %s", error_name(errno));
#undef ADD
}

static const char *const PATHS[] = {"d/p", "d/../d/p", "link/p", "d", "other", "d/p/below"};
enum { PATHS_COUNT = sizeof PATHS / sizeof *PATHS };

static void *make_in_thread(void *make) {
    (*(void (**)(void))make)();
    return NULL;
}

static void check(const struct change *change, const char *by) {
    char name[96], text[512];
    snprintf(name, sizeof name, "%s-%s", change->name, by);
    mkdir(name, 0755);
    if (chdir(name)) return;
    mkdir("d", 0755), symlink("d", "link");
    change->before();
    for (int i = 0; i < OFTEN; i++)
        for (int p = 0; p < PATHS_COUNT; p++) ask(PATHS[p], text, sizeof text);
    if (!strcmp(by, "thread")) {
        pthread_t thread;
        pthread_create(&thread, NULL, make_in_thread, (void *)&change->make);
        pthread_join(thread, NULL);
    } else if (!strcmp(by, "process")) {
        pid_t pid = fork();
        if (pid == 0) change->make(), _exit(0);
        await(pid, 20000);
    } else {
        change->make();
    }
    for (int p = 0; p < PATHS_COUNT; p++) {
        char path[160];
        /* Twice: what is asked for anew may be kept again. */
        for (int i = 0; i < 3; i++) ask(PATHS[p], text, sizeof text);
        snprintf(path, sizeof path, "%s %s", name, PATHS[p]);
        say(path, "%s", text);
    }
    if (changed_fd >= 0) close(changed_fd), changed_fd = -1;
}

static void nothing(void) {}
static void a_file(void) { make_file("d/p", "text", 0644); }
static void an_open_file(void) { a_file(), changed_fd = open("d/p", O_RDWR); }
static void two_files(void) { a_file(), make_file("other", "other text", 0600); }
static void a_link(void) { symlink("../other", "d/p"), make_file("other", "x", 0644); }
static void a_folder(void) { mkdir("d/p", 0755), make_file("d/p/below", "x", 0644); }

static void writes(void) { write(changed_fd, "longer text", 11); }
static void writes_vector(void) { struct iovec v = {"0123456789", 10}; pwritev(changed_fd, &v, 1, 5); }
static void cuts_open(void) { ftruncate(changed_fd, 1); }
static void allocates(void) { fallocate(changed_fd, 0, 0, 9000); }
static void changes_mode_open(void) { fchmod(changed_fd, 0755); }
static void stamps_open(void) { struct timespec t[2] = {{7, 0}, {8, 0}}; futimens(changed_fd, t); }
static void copies(void) { int from = open("/etc/passwd", O_RDONLY); off_t at = 0; if (from < 0) from = open("d", O_RDONLY); lseek(changed_fd, 0, SEEK_SET), syscall(SYS_sendfile, changed_fd, changed_fd, &at, 2UL), close(from); }
static void cuts(void) { truncate("d/p", 2); }
static void opens_cut(void) { close(open("d/p", O_WRONLY | O_TRUNC)); }
static void opens_new(void) { close(open("d/p", O_WRONLY | O_CREAT, 0640)); }
static void opens_new_to_read(void) { close(open("d/p", O_RDONLY | O_CREAT, 0640)); }
static void opens_new_2(void) { uint64_t how[3] = {O_WRONLY | O_CREAT, 0600, 0}; close((int)syscall(SYS_openat2, AT_FDCWD, "d/p", how, sizeof how)); }
static void creates(void) { close(creat("other", 0644)); }
static void changes_mode(void) { chmod("d/p", 0711); }
static void changes_owner(void) { chown("d/p", 12, 34); }
static void changes_owner_of_folder(void) { chown("d", 12, 34); }
static void changes_mode_of_folder(void) { chmod("d", 0700); }
static void stamps(void) { struct timespec t[2] = {{5, 0}, {6, 0}}; utimensat(AT_FDCWD, "d/p", t, 0); }
static void unlinks(void) { unlink("d/p"); }
static void unlinks_at(void) { int d = open("d", O_RDONLY); unlinkat(d, "p", 0), close(d); }
static void removes(void) { unlink("d/p/below"), rmdir("d/p"); }
static void renames(void) { rename("d/p", "other"); }
static void renames_onto(void) { rename("other", "d/p"); }
static void exchanges(void) { renameat2(AT_FDCWD, "other", AT_FDCWD, "d/p", RENAME_EXCHANGE); }
static void renames_folder(void) { rename("d", "e"); }
static void links(void) { link("d/p", "d/q"); }
static void links_there(void) { link("other", "d/p"); }
static void makes_link(void) { symlink("../other", "d/p"); }
static void makes_folder(void) { mkdir("d/p", 0700); }
static void makes_fifo(void) { mkfifo("d/p", 0600); }
static void makes_node(void) { mknod("d/p", S_IFREG | 0604, 0); }
static void turns_link(void) { unlink("link"), symlink(".", "link"); }
static void turns_target(void) { unlink("d/p"), symlink("../absent", "d/p"); }
static void binds(void) {
    struct sockaddr_un to = {AF_UNIX, "d/p"};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    bind(fd, (struct sockaddr *)&to, sizeof to), close(fd);
}
static void goes_down(void) { chdir("d"); }
static void goes_down_open(void) { int d = open("d", O_RDONLY); fchdir(d), close(d); }
static void goes_up(void) { chdir(".."); }

static void change_checks(void) {
    static const struct change changes[] = {
        {"none", a_file, nothing}, {"none-there", nothing, nothing}, {"none-link", a_link, nothing}, {"none-folder", a_folder, nothing},
        {"write", an_open_file, writes}, {"pwritev", an_open_file, writes_vector}, {"ftruncate", an_open_file, cuts_open},
        {"fallocate", an_open_file, allocates}, {"fchmod", an_open_file, changes_mode_open}, {"futimens", an_open_file, stamps_open},
        {"sendfile", an_open_file, copies}, {"truncate", a_file, cuts}, {"open-trunc", a_file, opens_cut}, {"open-creat", nothing, opens_new},
        {"open-creat-read", nothing, opens_new_to_read}, {"openat2-creat", nothing, opens_new_2}, {"creat", nothing, creates},
        {"creat-target", a_link, creates}, {"chmod", a_file, changes_mode}, {"chown", a_file, changes_owner},
        {"chown-folder", a_file, changes_owner_of_folder}, {"chmod-folder", a_file, changes_mode_of_folder}, {"utimensat", a_file, stamps},
        {"unlink", a_file, unlinks}, {"unlinkat", a_file, unlinks_at}, {"rmdir", a_folder, removes}, {"rename", a_file, renames},
        {"rename-onto", two_files, renames_onto}, {"rename-there", creates, renames_onto}, {"exchange", two_files, exchanges},
        {"rename-folder", a_file, renames_folder}, {"link", a_file, links}, {"link-there", creates, links_there},
        {"symlink", nothing, makes_link}, {"symlink-target", creates, makes_link}, {"mkdir", nothing, makes_folder},
        {"mkfifo", nothing, makes_fifo}, {"mknod", nothing, makes_node}, {"turn-link", a_file, turns_link}, {"turn-target", a_link, turns_target},
        {"bind", nothing, binds}, {"chdir", a_file, goes_down}, {"fchdir", a_file, goes_down_open}, {"chdir-up", a_file, goes_up},
    };
    int home = open(".", O_RDONLY);
    for (unsigned i = 0; i < sizeof changes / sizeof *changes; i++) {
        check(&changes[i], "self"), fchdir(home);
        check(&changes[i], "thread"), fchdir(home);
        check(&changes[i], "process"), fchdir(home);
    }
}

static void often(const char *path) {
    char text[512];
    for (int i = 0; i < OFTEN; i++) ask(path, text, sizeof text);
}

static void told(const char *name, const char *path) {
    char text[512];
    for (int i = 0; i < 3; i++) ask(path, text, sizeof text);
    say(name, "%s", text);
}

/* One thread alone has other rights, and what it was told is not told to the next one in its place. */
static void *as_other(void *name) {
    syscall(SYS_setresuid, -1, 1000, -1);
    often("d/p");
    told(name, "d/p");
    return NULL;
}

static void *as_root(void *name) {
    often("d/p");
    told(name, "d/p");
    return NULL;
}

static void right_checks(void) {
    mkdir("d", 0700), make_file("d/p", "text", 0600);
    often("d/p");
    pthread_t thread;
    pthread_create(&thread, NULL, as_other, "thread-other"), pthread_join(thread, NULL);
    told("main-after-other", "d/p");
    pthread_create(&thread, NULL, as_root, "thread-root"), pthread_join(thread, NULL);
    pthread_create(&thread, NULL, as_other, "thread-other-again"), pthread_join(thread, NULL);
    CHILD("effective") {
        often("d/p");
        seteuid(1000);
        told("seteuid", "d/p");
        seteuid(0);
        told("seteuid-back", "d/p");
        setfsuid(1000);
        told("setfsuid", "d/p");
        setfsuid(0);
        /* access() asks for the real user. */
        setresuid(1000, 0, 0);
        told("real", "d/p");
    }
    CHILD("capabilities") {
        often("d/p");
        struct { uint32_t version; int pid; } head = {0x20080522, 0};
        struct { uint32_t effective, permitted, inheritable; } data[2];
        syscall(SYS_capget, &head, data);
        setfsuid(1000);
        often("d/p");
        data[0].effective |= 6; /* CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH */
        syscall(SYS_capset, &head, data);
        told("capset", "d/p");
    }
}

/* The memory is shared, the folder is not. */
static int goes_down_alone(void *unused) {
    (void)unused;
    chdir("d");
    often("p"), often("d/p");
    told("own-folder", "p"), told("own-folder-above", "d/p");
    return 0;
}

static void *goes_down_unshared(void *unused) {
    unshare(CLONE_FS), chdir("d");
    often("p");
    return unused;
}

static void *looks_once(void *name) {
    char text[512];
    ask("p", text, sizeof text);
    say(name, "%s", text);
    return NULL;
}

static void place_checks(void) {
    static char stack[65536] __attribute__((aligned(16)));
    mkdir("d", 0755), make_file("d/p", "text", 0644);
    often("d/p"), often("p");
    pid_t pid = clone(goes_down_alone, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
    await(pid, 20000);
    told("after-own-folder", "d/p"), told("after-own-folder-below", "p");
    /* A thread with a folder of its own, and then another one, perhaps in its place. */
    pthread_t thread;
    for (int i = 0; i < 3; i++) {
        pthread_create(&thread, NULL, goes_down_unshared, NULL), pthread_join(thread, NULL);
        static const char *const names[] = {"after-unshared-0", "after-unshared-1", "after-unshared-2"};
        pthread_create(&thread, NULL, looks_once, (void *)names[i]), pthread_join(thread, NULL);
    }
    CHILD("chroot") {
        often("/d/p");
        chroot(".");
        told("chroot", "/d/p");
    }
    CHILD("mounts") {
        unshare(CLONE_NEWNS), mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
        often("d/p");
        ok("mount", mount("none", "d", "tmpfs", 0, NULL));
        told("mounted", "d/p");
        often("d/p"), make_file("d/p", "longer text", 0640);
        told("mounted-made", "d/p");
        often("d/p");
        ok("umount", umount("d"));
        told("unmounted", "d/p");
        often("d/p");
        ok("bind", mount("d", "d", NULL, MS_BIND, NULL));
        ok("remount", mount(NULL, "d", NULL, MS_BIND | MS_REMOUNT | MS_NOEXEC | MS_RDONLY, NULL));
        told("read-only", "d/p");
        yes("not-writable", access("d/p", W_OK) != 0 && errno == EROFS);
    }
    CHILD("users") {
        often("d/p");
        ok("new-users", unshare(CLONE_NEWUSER));
        told("no-users", "d/p");
    }
}

/* Paths at their limits, and texts at the end of a page. */
static void path_checks(void) {
    char text[512], path[300];
    mkdir("d", 0755), make_file("d/p", "text", 0644);
    for (int length = 180; length <= 200; length++) {
        char name[32];
        memset(path, '/', sizeof path);
        memcpy(path, "./d", 3), path[length - 1] = 'p', path[length] = 0;
        often(path);
        snprintf(name, sizeof name, "length-%d", length), told(name, path);
        unlink("d/p");
        snprintf(name, sizeof name, "length-%d-unlinked", length), told(name, path);
        make_file("d/p", "text", 0644);
    }
    char *end = page_before_hole() + PAGE;
    for (int length = 1; length <= 17; length++) {
        char name[32];
        char *at = end - length;
        /* What the last path left behind this one does not belong to it. */
        ask("d/p0123456789abcdefghijkl", text, sizeof text);
        memset(at, '/', (size_t)length), at[0] = '.', at[length - 1] = 0;
        for (int i = 0; i < OFTEN; i++) ask(at, text, sizeof text);
        snprintf(name, sizeof name, "page-end-%d", length), told(name, at);
        at[length - 1] = '/';
        snprintf(name, sizeof name, "page-end-%d-open", length), told(name, at);
    }
    struct stat st;
    for (int i = 0; i < OFTEN; i++) stat("d/p", &st);
    memcpy(end - 2, "d/", 2);
    ok("page-end-cut", stat(end - 2, &st));
    ok("page-end-whole", stat("d/p", &st));
    struct stat *room = (struct stat *)(end - sizeof(struct stat));
    for (int i = 0; i < OFTEN; i++) stat("d/p", room);
    yes("buffer-at-end", stat("d/p", room) == 0 && room->st_size == 4);
    ok("buffer-over-end", stat("d/p", (struct stat *)((char *)room + 8)));
    ok("buffer-null", stat("d/p", NULL));
    ok("buffer-odd", stat("d/p", (struct stat *)-4096L));
    int d = open("d", O_RDONLY), other = open("/", O_RDONLY);
    for (int i = 0; i < OFTEN; i++) fstatat(d, "p", &st, 0);
    dup2(other, d);
    ok("other-descriptor", fstatat(d, "p", &st, 0));
    for (int i = 0; i < OFTEN; i++) fstatat(AT_FDCWD, "d/p", &st, 0), fstatat(AT_FDCWD, "d/p", &st, AT_SYMLINK_NOFOLLOW);
    ok("other-flags", fstatat(AT_FDCWD, "d/p", &st, 0x40000000));
    for (int i = 0; i < OFTEN; i++) readlink("/proc/self", text, sizeof text);
    CHILD("self") {
        ssize_t length = readlink("/proc/self", text, sizeof text);
        text[length > 0 ? length : 0] = 0;
        yes("proc-self", atoi(text) == getpid());
    }
}

/* A filter judges each call, also where it lets some through by what else they say. */
static void filter_checks(void) {
    struct stat st, *refused = (struct stat *)shared_page();
    make_file("f", "text", 0644);
    for (int i = 0; i < OFTEN; i++) stat("f", &st), access("f", R_OK);
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_access, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_newfstatat, 0, 2),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(uintptr_t)refused, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV),
    };
    struct sock_fprog program = {.len = 7, .filter = code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    ok("filter", prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    ok("access", access("f", R_OK));
    for (int i = 0; i < OFTEN; i++) stat("f", &st);
    ok("stat", stat("f", &st));
    ok("stat-refused-there", stat("f", refused));
}

static void time_checks(void) {
    struct stat before, after;
    char byte;
    make_file("f", "text", 0644);
    int fd = open("f", O_RDONLY);
    pause_ms(30);
    for (int i = 0; i < OFTEN; i++) stat("f", &before);
    read(fd, &byte, 1);
    stat("f", &after);
    yes("read-stamps", after.st_atim.tv_sec * 1000000000 + after.st_atim.tv_nsec > before.st_atim.tv_sec * 1000000000 + before.st_atim.tv_nsec);
    int out = open("f", O_WRONLY);
    for (int i = 0; i < OFTEN; i++) stat("f", &before);
    pause_ms(30);
    write(out, "x", 1);
    stat("f", &after);
    yes("write-stamps", after.st_mtim.tv_sec * 1000000000 + after.st_mtim.tv_nsec > before.st_mtim.tv_sec * 1000000000 + before.st_mtim.tv_nsec);
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {
        {"change", change_checks}, {"right", right_checks}, {"place", place_checks}, {"path", path_checks}, {"filter", filter_checks}, {"time", time_checks}, {NULL, NULL},
    };
    return run(argc, argv, groups);
}
