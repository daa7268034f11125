/* Leases of files, what breaks them and what does not; news of folders by signals; how locks are shown. */
#include "abi.h"

#include <sys/file.h>

enum { OTHER = 40 };

/* Signals are taken when they are asked for. */
static void hold_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGIO), sigaddset(&set, SIGUSR1), sigaddset(&set, SIGCHLD), sigaddset(&set, OTHER);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

/* Which signal has come, and what it tells; `fd` is the descriptor that it should tell. */
static void told(const char *name, int fd) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGIO), sigaddset(&set, SIGUSR1), sigaddset(&set, OTHER);
    siginfo_t info;
    memset(&info, 0, sizeof info);
    if (sigtimedwait(&set, &info, &(struct timespec){0, 0}) < 0) say(name, "nothing");
    else if (info.si_code == SI_KERNEL) say(name, "%s of the kernel", signal_name(info.si_signo));
    else say(name, "%s code %d band %#lx %s", signal_name(info.si_signo), info.si_code, (long)info.si_band, info.si_fd == fd ? "that fd" : "another fd");
}

/* A child that opens a file and ends with the errno. */
static pid_t opener(const char *path, int flags) {
    pid_t pid = fork();
    if (pid == 0) _exit(open(path, flags) < 0 ? errno : 0);
    return pid;
}

static void ended(const char *name, pid_t pid) {
    int s = await(pid, 20000);
    if (s != -1 && WIFEXITED(s)) say(name, "%s", WEXITSTATUS(s) ? error_name(WEXITSTATUS(s)) : "ok");
    else status(name, s);
}

static bool runs(pid_t pid) {
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0;
}

static void take_checks(void) {
    make_file("f", "text", 0644);
    int r = open("f", O_RDONLY), dir = open(".", O_RDONLY), path = open("f", O_PATH), null = open("/dev/null", O_RDONLY), ends[2];
    pipe(ends);
    val("none", fcntl(r, F_GETLEASE));
    val("unlock-none", fcntl(r, F_SETLEASE, F_UNLCK));
    val("bad-type", fcntl(r, F_SETLEASE, 3));
    val("negative-type", fcntl(r, F_SETLEASE, -1));
    val("dir", fcntl(dir, F_SETLEASE, F_RDLCK));
    val("dir-unlock", fcntl(dir, F_SETLEASE, F_UNLCK));
    val("dir-bad-type", fcntl(dir, F_SETLEASE, 9));
    val("dir-get", fcntl(dir, F_GETLEASE));
    val("pipe", fcntl(ends[0], F_SETLEASE, F_RDLCK));
    val("pipe-get", fcntl(ends[0], F_GETLEASE));
    val("null", fcntl(null, F_SETLEASE, F_RDLCK));
    val("path", fcntl(path, F_SETLEASE, F_RDLCK));
    val("path-get", fcntl(path, F_GETLEASE));
    val("closed", fcntl(900, F_SETLEASE, F_RDLCK));
    val("read", fcntl(r, F_SETLEASE, F_RDLCK));
    val("read-get", fcntl(r, F_GETLEASE));
    val("read-again", fcntl(r, F_SETLEASE, F_RDLCK));
    yes("owner", fcntl(r, F_GETOWN) == getpid());
    val("to-write", fcntl(r, F_SETLEASE, F_WRLCK));
    val("to-write-get", fcntl(r, F_GETLEASE));
    val("to-read", fcntl(r, F_SETLEASE, F_RDLCK));
    val("setsig", fcntl(r, F_SETSIG, OTHER));
    val("unlock", fcntl(r, F_SETLEASE, F_UNLCK));
    val("unlock-get", fcntl(r, F_GETLEASE));
    val("unlock-owner", fcntl(r, F_GETOWN));
    val("unlock-sig", fcntl(r, F_GETSIG));
    val("unlock-again", fcntl(r, F_SETLEASE, F_UNLCK));
    int other = open("f", O_RDONLY);
    val("two-readers", fcntl(r, F_SETLEASE, F_RDLCK));
    val("two-leases", fcntl(other, F_SETLEASE, F_RDLCK));
    val("two-to-write", fcntl(r, F_SETLEASE, F_WRLCK));
    val("two-one-gone", fcntl(other, F_SETLEASE, F_UNLCK));
    val("open-twice-write", fcntl(r, F_SETLEASE, F_WRLCK));
    close(other);
    val("open-once-write", fcntl(r, F_SETLEASE, F_WRLCK));
    val("write-unlock", fcntl(r, F_SETLEASE, F_UNLCK));
    int w = open("f", O_WRONLY);
    val("read-beside-writer", fcntl(r, F_SETLEASE, F_RDLCK));
    val("write-beside-writer", fcntl(r, F_SETLEASE, F_WRLCK));
    val("writer-read", fcntl(w, F_SETLEASE, F_RDLCK));
    val("writer-write-beside-reader", fcntl(w, F_SETLEASE, F_WRLCK));
    close(r), close(path);
    val("writer-write", fcntl(w, F_SETLEASE, F_WRLCK));
    val("writer-to-read", fcntl(w, F_SETLEASE, F_RDLCK));
    val("writer-get", fcntl(w, F_GETLEASE));
    close(w);
    int rw = open("f", O_RDWR);
    path = open("f", O_PATH);
    val("rdwr-write-beside-path", fcntl(rw, F_SETLEASE, F_WRLCK));
    val("rdwr-dup-get", fcntl(dup(rw), F_GETLEASE));
    val("ftruncate-own", ftruncate(rw, 2));
    val("rdwr-unlock", fcntl(rw, F_SETLEASE, F_UNLCK));
    int tmp = open(".", O_TMPFILE | O_RDWR, 0600);
    val("tmpfile-read", fcntl(tmp, F_SETLEASE, F_RDLCK));
    val("tmpfile-write", fcntl(tmp, F_SETLEASE, F_WRLCK));
    val("tmpfile-unlock", fcntl(tmp, F_SETLEASE, F_UNLCK));
    int none = open("f", O_ACCMODE);
    val("mode-3-read", fcntl(none, F_SETLEASE, F_RDLCK));
    close(rw), close(none);
    none = open("f", O_ACCMODE);
    val("mode-3-write", fcntl(none, F_SETLEASE, F_WRLCK));
    int mem = memfd_create("m", 0);
    val("memfd-read", fcntl(mem, F_SETLEASE, F_RDLCK));
    val("memfd-get", fcntl(mem, F_GETLEASE));
}

static void who_checks(void) {
    make_file("mine", "", 0666);
    make_file("theirs", "", 0666);
    chown("theirs", 1000, 1000);
    val("root-foreign", fcntl(open("theirs", O_RDONLY | O_CLOEXEC), F_SETLEASE, F_RDLCK));
    CHILD("user") {
        as_user();
        int mine = open("mine", O_RDONLY), theirs = open("theirs", O_RDONLY), dir = open(".", O_RDONLY);
        val("user-foreign", fcntl(mine, F_SETLEASE, F_RDLCK));
        val("user-foreign-unlock", fcntl(mine, F_SETLEASE, F_UNLCK));
        val("user-foreign-bad", fcntl(mine, F_SETLEASE, 7));
        val("user-foreign-get", fcntl(mine, F_GETLEASE));
        val("user-foreign-dir", fcntl(dir, F_SETLEASE, F_RDLCK));
        val("user-own", fcntl(theirs, F_SETLEASE, F_RDLCK));
    }
    CHILD("fsuid") {
        int theirs = open("theirs", O_RDONLY);
        seteuid(1000);
        val("euid-own", fcntl(theirs, F_SETLEASE, F_RDLCK));
        seteuid(0);
        val("root-again", fcntl(theirs, F_SETLEASE, F_UNLCK));
    }
}

/* What a lease does to others that come: `how` is the lease, `flags` are theirs. */
static void one_break(const char *what, int mine, int how, int flags) {
    char name[64];
#define NAME(part) (snprintf(name, sizeof name, "%s-" part, what), name)
    make_file("f", "text", 0755);
    int fd = open("f", mine | O_CLOEXEC);
    val(NAME("lease"), fcntl(fd, F_SETLEASE, how));
    pid_t pid = opener("f", flags | O_NONBLOCK);
    ended(NAME("nonblocking"), pid);
    val(NAME("get"), fcntl(fd, F_GETLEASE));
    told(NAME("told"), fd);
    pid = opener("f", flags | O_NONBLOCK);
    ended(NAME("again"), pid);
    told(NAME("told-again"), fd);
    pid = opener("f", flags);
    settle(pid);
    yes(NAME("waits"), runs(pid));
    val(NAME("to-read"), fcntl(fd, F_SETLEASE, F_RDLCK));
    settle(pid);
    yes(NAME("waits-for-read"), runs(pid));
    val(NAME("read-get"), fcntl(fd, F_GETLEASE));
    val(NAME("to-write"), fcntl(fd, F_SETLEASE, F_WRLCK));
    val(NAME("unlock"), fcntl(fd, F_SETLEASE, F_UNLCK));
    ended(NAME("opened"), pid);
    close(fd);
}

static void break_checks(void) {
    hold_signals();
    one_break("read-by-reader", O_RDONLY, F_RDLCK, O_RDONLY);
    one_break("read-by-writer", O_RDONLY, F_RDLCK, O_WRONLY);
    one_break("read-by-both", O_RDONLY, F_RDLCK, O_RDWR);
    one_break("read-by-trunc", O_RDONLY, F_RDLCK, O_RDONLY | O_TRUNC);
    one_break("write-by-reader", O_RDONLY, F_WRLCK, O_RDONLY);
    one_break("write-by-writer", O_RDONLY, F_WRLCK, O_WRONLY | O_TRUNC);
    one_break("rdwr-by-reader", O_RDWR, F_WRLCK, O_RDONLY);
    one_break("rdwr-by-creator", O_RDWR, F_WRLCK, O_RDWR | O_CREAT);
    one_break("write-by-mode-3", O_RDONLY, F_WRLCK, O_ACCMODE);
    one_break("write-by-path", O_RDONLY, F_WRLCK, O_PATH);
    one_break("write-by-excl", O_RDONLY, F_WRLCK, O_RDWR | O_CREAT | O_EXCL);
}

static void signal_checks(void) {
    hold_signals();
    make_file("f", "text", 0755);
    int fd = open("f", O_RDONLY | O_CLOEXEC);
    static const struct {
        const char *name;
        int signal;
    } kinds[] = {{"realtime", OTHER}, {"usr1", SIGUSR1}, {"io", SIGIO}};
    for (int i = 0; i < 3; i++) {
        fcntl(fd, F_SETLEASE, F_WRLCK);
        fcntl(fd, F_SETSIG, kinds[i].signal);
        ended(kinds[i].name, opener("f", O_RDONLY | O_NONBLOCK));
        char name[64];
        snprintf(name, sizeof name, "%s-told", kinds[i].name);
        told(name, fd);
        fcntl(fd, F_SETLEASE, F_UNLCK);
    }
    /* The descriptor it was taken by, whatever is used later. */
    int second = dup(fd);
    val("by-dup", fcntl(second, F_SETLEASE, F_WRLCK));
    fcntl(fd, F_SETSIG, OTHER);
    ended("dup", opener("f", O_RDONLY | O_NONBLOCK));
    told("dup-told", second);
    close(second);
    val("dup-closed-get", fcntl(fd, F_GETLEASE));
    fcntl(fd, F_SETLEASE, F_UNLCK);
    /* Somebody else is told: who was named first. */
    pid_t pid = fork();
    if (pid == 0) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGIO);
        int came = 0;
        sigwait(&set, &came);
        _exit(came);
    }
    settle(pid);
    fcntl(fd, F_SETOWN, pid);
    fcntl(fd, F_SETLEASE, F_WRLCK);
    yes("own-first", fcntl(fd, F_GETOWN) == pid);
    ended("own", opener("f", O_RDONLY | O_NONBLOCK));
    told("own-told", fd);
    int s = await(pid, 20000);
    say("own-child", "%s", s != -1 && WIFEXITED(s) ? signal_name(WEXITSTATUS(s)) : "nothing");
    fcntl(fd, F_SETLEASE, F_UNLCK);
    /* A process that does nothing about it is ended. */
    close(fd);
    pid = fork();
    if (pid == 0) {
        sigset_t set;
        sigfillset(&set);
        sigprocmask(SIG_UNBLOCK, &set, NULL);
        int own = open("f", O_RDONLY);
        if (fcntl(own, F_SETLEASE, F_WRLCK)) _exit(errno);
        for (;;) pause();
    }
    settle(pid);
    ended("ending", opener("f", O_RDONLY));
    status("ended-by", await(pid, 20000));
}

static void life_checks(void) {
    hold_signals();
    make_file("f", "text", 0755);
    int fd = open("f", O_RDONLY);
    val("lease", fcntl(fd, F_SETLEASE, F_WRLCK));
    /* A child has the same description: the lease stays until both have closed it. */
    struct gate go = gate();
    pid_t holder = fork();
    if (holder == 0) {
        gate_pass(&go);
        val("child-get", fcntl(fd, F_GETLEASE));
        _exit(0);
    }
    close(fd);
    pid_t pid = opener("f", O_RDONLY);
    settle(pid);
    yes("waits-for-child", runs(pid));
    gate_open(&go);
    status("child", await(holder, 20000));
    ended("opened", pid);
    /* Or a child lets it go for all. */
    fd = open("f", O_RDONLY);
    fcntl(fd, F_SETLEASE, F_RDLCK);
    CHILD("unlock") {
        val("child-unlock", fcntl(fd, F_SETLEASE, F_UNLCK));
    }
    val("unlocked-get", fcntl(fd, F_GETLEASE));
    /* One's own further opening breaks it, too. */
    fcntl(fd, F_SETLEASE, F_WRLCK);
    val("own-open", open("f", O_RDONLY | O_NONBLOCK));
    val("own-get", fcntl(fd, F_GETLEASE));
    told("own-told", fd);
    fcntl(fd, F_SETLEASE, F_UNLCK);
    /* A signal ends the wait. */
    fcntl(fd, F_SETLEASE, F_WRLCK);
    pid = opener("f", O_RDONLY);
    settle(pid);
    kill(pid, SIGTERM);
    status("killed", await(pid, 20000));
    val("killed-get", fcntl(fd, F_GETLEASE));
    close(fd);
    /* Two holders that read. */
    int one = open("f", O_RDONLY), two = open("f", O_RDONLY);
    fcntl(one, F_SETLEASE, F_RDLCK), fcntl(two, F_SETLEASE, F_RDLCK);
    pid = opener("f", O_WRONLY);
    settle(pid);
    val("one-get", fcntl(one, F_GETLEASE));
    val("two-get", fcntl(two, F_GETLEASE));
    val("third", fcntl(open("f", O_RDONLY | O_NONBLOCK), F_SETLEASE, F_RDLCK));
    fcntl(one, F_SETLEASE, F_UNLCK);
    settle(pid);
    yes("waits-for-second", runs(pid));
    fcntl(two, F_SETLEASE, F_UNLCK);
    ended("both-gone", pid);
}

static void other_checks(void) {
    hold_signals();
    make_file("f", "#!/absent\n", 0755);
    int fd = open("f", O_RDONLY | O_CLOEXEC);
    struct stat st;
    val("lease", fcntl(fd, F_SETLEASE, F_WRLCK));
    ok("stat", stat("f", &st));
    ok("chmod", chmod("f", 0700));
    ok("utimes", utimensat(AT_FDCWD, "f", NULL, 0));
    ok("link", link("f", "g"));
    ok("rename", rename("g", "h"));
    ok("unlink", unlink("h"));
    ok("access", access("f", R_OK));
    val("still", fcntl(fd, F_GETLEASE));
    told("told", fd);
    pid_t pid = fork();
    if (pid == 0) _exit(truncate("f", 3) ? errno : 0);
    settle(pid);
    yes("truncate-waits", runs(pid));
    val("truncate-get", fcntl(fd, F_GETLEASE));
    told("truncate-told", fd);
    fcntl(fd, F_SETLEASE, F_UNLCK);
    ended("truncated", pid);
    val("lease-again", fcntl(fd, F_SETLEASE, F_RDLCK));
    pid = fork();
    if (pid == 0) _exit(truncate("f", 1) ? errno : 0);
    settle(pid);
    yes("truncate-of-read-waits", runs(pid));
    fcntl(fd, F_SETLEASE, F_UNLCK);
    ended("truncated-again", pid);
    close(fd);
    make_file("f", "#!/absent\n", 0755);
    fd = open("f", O_RDONLY | O_CLOEXEC);
    fcntl(fd, F_SETLEASE, F_WRLCK);
    told("nothing-yet", fd);
    pid = fork();
    if (pid == 0) _exit(execl("f", "f", NULL) ? errno : 0);
    settle(pid);
    yes("exec-waits", runs(pid));
    val("exec-get", fcntl(fd, F_GETLEASE));
    told("exec-told", fd);
    fcntl(fd, F_SETLEASE, F_RDLCK);
    ended("exec", pid);
    val("exec-of-read", fcntl(fd, F_GETLEASE));
    pid = fork();
    if (pid == 0) _exit(execl("f", "f", NULL) ? errno : 0);
    ended("exec-beside-read", pid);
    close(fd);
    /* What runs has no lease for writing. */
    val("program", fcntl(open("/proc/self/exe", O_RDONLY), F_SETLEASE, F_WRLCK));
    val("program-read", fcntl(open("/proc/self/exe", O_RDONLY), F_SETLEASE, F_RDLCK));
    fd = open("f", O_RDWR | O_CLOEXEC);
    fcntl(fd, F_SETLEASE, F_WRLCK);
    pid = fork();
    if (pid == 0) _exit(execl("f", "f", NULL) ? errno : 0);
    settle(pid);
    yes("exec-of-written-waits", runs(pid));
    fcntl(fd, F_SETLEASE, F_UNLCK);
    ended("exec-of-written", pid);
}

/* Lines of a file in /proc about one inode, without numbers that differ; `from` is how they begin. */
static void lines_of(const char *name, const char *path, ino_t inode, const char *from) {
    char text[8192] = "", shown[1024] = "";
    int fd = open(path, O_RDONLY);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    text[length < 0 ? 0 : length] = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        char sort[32], how[32], mode[32], first[32], last[32], *start = strstr(line, ": ");
        unsigned long major, minor, found;
        int pid;
        if (strncmp(line, from, strlen(from)) || !start) continue;
        if (sscanf(start + 2, "%31s %31s %31s %d %lx:%lx:%lu %31s %31s", sort, how, mode, &pid, &major, &minor, &found, first, last) != 9) continue;
        if (found != inode) continue;
        size_t at = strlen(shown);
        snprintf(shown + at, sizeof shown - at, "[%.*s %s %s %s]", (int)(strstr(start + 2, mode) - start - 2) + (int)strlen(mode), start + 2, pid == getpid() ? "own" : pid == -1 ? "-1" : "other", first, last);
    }
    close(fd);
    say(name, "%s", shown);
}

static void shown_checks(void) {
    hold_signals();
    make_file("f", "text", 0755);
    struct stat st;
    stat("f", &st);
    int fd = open("f", O_RDWR);
    char info[64];
    snprintf(info, sizeof info, "/proc/self/fdinfo/%d", fd);
    lines_of("none", "/proc/locks", st.st_ino, "");
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 3, .l_len = 4};
    fcntl(fd, F_SETLK, &lock);
    lines_of("posix", "/proc/locks", st.st_ino, "");
    lines_of("posix-fdinfo", info, st.st_ino, "lock:\t");
    lock.l_len = 0, lock.l_type = F_RDLCK, lock.l_start = 0;
    fcntl(fd, F_SETLK, &lock);
    lines_of("posix-to-end", "/proc/locks", st.st_ino, "");
    lock.l_type = F_UNLCK;
    fcntl(fd, F_SETLK, &lock);
    lock.l_type = F_RDLCK, lock.l_start = 5;
    fcntl(fd, F_OFD_SETLK, &lock);
    lines_of("ofd", "/proc/locks", st.st_ino, "");
    lines_of("ofd-fdinfo", info, st.st_ino, "lock:\t");
    lock.l_type = F_UNLCK;
    fcntl(fd, F_OFD_SETLK, &lock);
    flock(fd, LOCK_SH);
    lines_of("flock-shared", "/proc/locks", st.st_ino, "");
    flock(fd, LOCK_EX);
    lines_of("flock", "/proc/locks", st.st_ino, "");
    lines_of("flock-fdinfo", info, st.st_ino, "lock:\t");
    flock(fd, LOCK_UN);
    fcntl(fd, F_SETLEASE, F_WRLCK);
    lines_of("lease", "/proc/locks", st.st_ino, "");
    lines_of("lease-fdinfo", info, st.st_ino, "lock:\t");
    ended("reader", opener("f", O_RDONLY | O_NONBLOCK));
    lines_of("lease-downgraded", "/proc/locks", st.st_ino, "");
    ended("writer", opener("f", O_RDWR | O_NONBLOCK));
    lines_of("lease-breaking", "/proc/locks", st.st_ino, "");
    fcntl(fd, F_SETLEASE, F_UNLCK);
    lines_of("gone", "/proc/locks", st.st_ino, "");
}

/* A folder whose news come by a realtime signal, which is queued: how many have come. */
static void news(const char *name, int fd) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, OTHER);
    siginfo_t info;
    int count = 0, alike = 0;
    while (sigtimedwait(&set, &info, &(struct timespec){0, 0}) > 0) {
        count++;
        alike += info.si_fd == fd && info.si_code == 3 && info.si_band == 0x441;
    }
    say(name, "%d %d", count, alike);
}

static void notify_checks(void) {
    hold_signals();
    mkdir("d", 0755), mkdir("e", 0755), mkdir("d/sub", 0755);
    make_file("d/f", "text", 0644);
    int d = open("d", O_RDONLY | O_CLOEXEC), f = open("d/f", O_RDWR | O_CLOEXEC);
    val("file", fcntl(f, F_NOTIFY, DN_MODIFY));
    val("file-0", fcntl(f, F_NOTIFY, 0));
    val("path", fcntl(open("d", O_PATH), F_NOTIFY, DN_MODIFY));
    val("closed", fcntl(900, F_NOTIFY, DN_MODIFY));
    val("only-multishot", fcntl(d, F_NOTIFY, DN_MULTISHOT));
    val("unknown-bit", fcntl(d, F_NOTIFY, 0x40));
    val("once", fcntl(d, F_NOTIFY, DN_MODIFY));
    yes("owner", fcntl(d, F_GETOWN) == getpid());
    pwrite(f, "1", 1, 0);
    told("once-told", d);
    pwrite(f, "2", 1, 0);
    told("once-over", d);
    val("setsig", fcntl(d, F_SETSIG, OTHER));
    static const struct {
        const char *name;
        long what;
    } kinds[] = {{"access", DN_ACCESS}, {"modify", DN_MODIFY}, {"create", DN_CREATE}, {"delete", DN_DELETE}, {"rename", DN_RENAME}, {"attrib", DN_ATTRIB}};
    for (int i = 0; i < 6; i++) {
        char name[64], byte;
        val(kinds[i].name, fcntl(d, F_NOTIFY, kinds[i].what | (long)DN_MULTISHOT));
#define AFTER(part, doing) (void)(doing), snprintf(name, sizeof name, "%s-" part, kinds[i].name), news(name, d)
        AFTER("read", pread(f, &byte, 1, 0));
        AFTER("write", pwrite(f, "3", 1, 0));
        AFTER("write-nothing", pwrite(f, "", 0, 0));
        AFTER("truncate", truncate("d/f", 2));
        AFTER("ftruncate", ftruncate(f, 1));
        AFTER("creat", close(open("d/n", O_CREAT | O_RDWR, 0644)));
        AFTER("open-trunc", close(open("d/n", O_TRUNC | O_RDWR)));
        AFTER("mkdir", mkdir("d/m", 0755));
        AFTER("mkfifo", mkfifo("d/p", 0644));
        AFTER("symlink", symlink("f", "d/s"));
        AFTER("link", link("d/f", "d/l"));
        AFTER("rename", rename("d/n", "d/o"));
        AFTER("rename-over", rename("d/o", "d/l"));
        AFTER("out", rename("d/l", "e/l"));
        AFTER("in", rename("e/l", "d/l"));
        AFTER("chmod", chmod("d/l", 0600));
        AFTER("chown", chown("d/l", 1, 1));
        AFTER("utimes", utimensat(AT_FDCWD, "d/l", NULL, 0));
        AFTER("chmod-self", chmod("d", 0700));
        AFTER("deeper", close(open("d/sub/x", O_CREAT | O_RDWR, 0600)));
        AFTER("unlink", (unlink("d/l"), unlink("d/p"), unlink("d/s"), unlink("d/sub/x")));
        AFTER("rmdir", rmdir("d/m"));
        AFTER("stat", access("d/f", R_OK));
        fcntl(d, F_NOTIFY, 0);
        AFTER("when-off", pwrite(f, "4", 1, 0));
    }
    /* More of it is added; another description has its own. */
    fcntl(d, F_NOTIFY, DN_MODIFY | DN_MULTISHOT), fcntl(d, F_NOTIFY, DN_CREATE);
    pwrite(f, "5", 1, 0), mkdir("d/m", 0755);
    news("added", d);
    int other = open("d", O_RDONLY | O_CLOEXEC);
    val("second", fcntl(other, F_NOTIFY, DN_DELETE));
    rmdir("d/m");
    told("second-told", other);
    news("second-not-first", d);
    /* A copy of the descriptor that is closed takes it away, as with locks. */
    int copy = dup(d);
    val("by-copy", fcntl(copy, F_NOTIFY, DN_MODIFY | DN_MULTISHOT));
    pwrite(f, "6", 1, 0);
    news("by-copy-told", copy);
    close(copy);
    pwrite(f, "7", 1, 0);
    news("copy-closed", copy);
    fcntl(d, F_NOTIFY, DN_MODIFY | DN_MULTISHOT);
    CHILD("child") {
        close(d);
        pwrite(f, "8", 1, 0);
        news("child-told", d);
    }
    news("child-did", d);
    close(d);
    pwrite(f, "9", 1, 0);
    news("closed-all", d);
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"take", take_checks},   {"who", who_checks},     {"break", break_checks}, {"signal", signal_checks},
                                           {"life", life_checks},   {"other", other_checks}, {"shown", shown_checks}, {"notify", notify_checks}, {0}};
    return run(argc, argv, groups);
}
