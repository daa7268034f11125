/* Processes: fork, vfork, clone, waiting in all ways, groups, sessions, stopping, orphans, pidfds, limits. */
#include "abi.h"

#include <linux/sched.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/times.h>

static pid_t born(int code) {
    pid_t child = fork();
    if (!child) _exit(code);
    return child;
}

static pid_t sleeping(void) {
    pid_t child = fork();
    if (!child)
        for (;;) pause();
    return child;
}

static void end(pid_t pid) { kill(pid, SIGKILL), waitpid(pid, NULL, 0); }

static void fork_checks(void) {
    const int codes[] = {0, 1, 127, 255, 256, 257, -1};
    for (unsigned i = 0; i < 7; i++) {
        char name[32];
        snprintf(name, sizeof name, "exit-%d", codes[i]);
        int s = 0;
        waitpid(born(codes[i]), &s, 0);
        status(name, s);
    }
    pid_t parent = getpid();
    int *shared = shared_page(), own = 1;
    pid_t child = fork();
    if (!child) {
        own = 2;
        say("child", "ppid %d pid-differs %d tid %d pgrp %d sid %d", getppid() == parent, getpid() != parent, gettid() == getpid(),
            getpgrp() == getpgid(parent), getsid(0) == getsid(parent));
        _exit(0);
    }
    waitpid(child, NULL, 0);
    val("memory-apart", own);
    child = vfork();
    if (!child) {
        *shared = 1;
        _exit(4);
    }
    val("vfork-ran-first", *shared);
    int s = 0;
    waitpid(child, &s, 0);
    status("vfork", s);
    alarm(100);
    CHILD("inherit") {
        val("alarm-not-inherited", alarm(0));
        struct rlimit limit;
        getrlimit(RLIMIT_NOFILE, &limit);
        val("rlimit-inherited", (long)limit.rlim_cur);
        val("times-zero", times(NULL) < 0);
    }
    yes("alarm-left", alarm(0) > 90);
    /* clone's flags */
    struct clone_args arguments = {.exit_signal = SIGCHLD};
    const struct {
        const char *name;
        uint64_t flags, exit_signal;
        size_t size;
    } tries[] = {{"plain", 0, SIGCHLD, 64}, {"no-signal", 0, 0, 64}, {"signal-65", 0, 65, 64}, {"thread-alone", CLONE_THREAD, 0, 64},
                 {"sighand-alone", CLONE_SIGHAND, SIGCHLD, 64}, {"thread-sighand", CLONE_THREAD | CLONE_SIGHAND, 0, 64},
                 {"fs-newns", CLONE_FS | CLONE_NEWNS, SIGCHLD, 64}, {"newuser-fs", CLONE_NEWUSER | CLONE_FS, SIGCHLD, 64},
                 {"clear-sighand-both", CLONE_SIGHAND | CLONE_VM | CLONE_CLEAR_SIGHAND, SIGCHLD, 64},
                 {"unknown", 1ULL << 40, SIGCHLD, 64}, {"size-small", 0, SIGCHLD, 63}, {"size-88", 0, SIGCHLD, 88},
                 {"size-huge", 0, SIGCHLD, 5000}, {"csignal-in-flags", SIGCHLD, 0, 64}, {"detached", CLONE_DETACHED, SIGCHLD, 64},
                 {"newpid-thread", CLONE_NEWPID | CLONE_THREAD | CLONE_SIGHAND | CLONE_VM, 0, 64},
                 {"pidfd-null", CLONE_PIDFD, SIGCHLD, 64}, {"parent-settid-null", CLONE_PARENT_SETTID, SIGCHLD, 64},
                 {"child-settid-null", CLONE_CHILD_SETTID, SIGCHLD, 64}};
    for (unsigned i = 0; i < sizeof tries / sizeof *tries; i++) {
        char name[48], room[5000] = {0};
        arguments.flags = tries[i].flags, arguments.exit_signal = tries[i].exit_signal;
        memcpy(room, &arguments, sizeof arguments);
        snprintf(name, sizeof name, "clone3-%s", tries[i].name);
        long got = syscall(SYS_clone3, room, tries[i].size);
        if (got == 0) _exit(0);
        ok(name, got);
        if (got > 0) waitpid((pid_t)got, NULL, __WALL);
    }
    int pidfd = -1, tid = 0;
    long got = syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, NULL, &pidfd, NULL, 0);
    if (got == 0) _exit(9);
    ok("clone-pidfd", got);
    siginfo_t info = {0};
    val("waitid-pidfd", waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED));
    say("waitid-pidfd-is", "%d %d", info.si_code, info.si_status);
    val("pidfd-flags", fcntl(pidfd, F_GETFD));
    ok("pidfd-signal-gone", (long)syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0));
    got = syscall(SYS_clone, CLONE_PARENT_SETTID | SIGCHLD, NULL, &tid, NULL, 0);
    if (got == 0) _exit(0);
    yes("clone-parent-settid", tid == got);
    waitpid((pid_t)got, NULL, 0);
    got = syscall(SYS_clone, CLONE_FILES | CLONE_FS | SIGCHLD, NULL, NULL, NULL, 0);
    if (got == 0) {
        umask(0123), dup2(0, 55), mkdir("d", 0755), chdir("d");
        _exit(0);
    }
    waitpid((pid_t)got, NULL, 0);
    char cwd[200] = "";
    getcwd(cwd, sizeof cwd);
    say("clone-files-fs", "fd %d umask %o cwd %s", fcntl(55, F_GETFD), umask(022), strrchr(cwd, '/'));
    signal(SIGUSR1, SIG_IGN);
    got = syscall(SYS_clone, SIGUSR1, NULL, NULL, NULL, 0);
    if (got == 0) _exit(6);
    ok("wait-other-signal", waitpid((pid_t)got, &s, 0));
    ok("wait-other-signal-clone", waitpid((pid_t)got, &s, __WCLONE));
}

static void wait_line(const char *name, idtype_t type, id_t id, int options, pid_t expected) {
    siginfo_t info;
    memset(&info, 0, sizeof info);
    int got = waitid(type, id, &info, options);
    if (got < 0) say(name, "%s", error_name(errno));
    else if (info.si_pid == 0) say(name, "nothing signo %d", info.si_signo);
    else say(name, "%s code %d status %d who %d", signal_name(info.si_signo), info.si_code, info.si_status, info.si_pid == expected);
}

static void wait_checks(void) {
    int s = 0;
    ok("none", wait(&s));
    ok("none-nohang", waitpid(-1, &s, WNOHANG));
    ok("absent", waitpid(0x3fffffff, &s, 0));
    ok("self", waitpid(getpid(), &s, 0));
    ok("options-bad", waitpid(-1, &s, 0x10));
    ok("group-absent", waitpid(-0x3fffffff, &s, 0));
    ok("int-min", waitpid(INT_MIN, &s, 0));
    wait_line("waitid-none", P_ALL, 0, WEXITED, 0);
    wait_line("waitid-no-options", P_ALL, 0, 0, 0);
    wait_line("waitid-nohang-only", P_ALL, 0, WNOHANG, 0);
    wait_line("waitid-type-bad", (idtype_t)9, 0, WEXITED, 0);
    wait_line("waitid-pid-0", P_PID, 0, WEXITED, 0);
    wait_line("waitid-pid-negative", P_PID, (id_t)-1, WEXITED, 0);
    wait_line("waitid-pidfd-bad", P_PIDFD, 99, WEXITED, 0);
    wait_line("waitid-pidfd-file", P_PIDFD, 0, WEXITED, 0);
    pid_t child = sleeping();
    val("nohang", waitpid(child, &s, WNOHANG));
    wait_line("waitid-nohang", P_PID, (id_t)child, WEXITED | WNOHANG, child);
    kill(child, SIGSTOP);
    yes("stopped", waitpid(child, &s, WUNTRACED) == child);
    status("stopped-status", s);
    val("stopped-once", waitpid(child, &s, WUNTRACED | WNOHANG));
    kill(child, SIGCONT);
    yes("continued", waitpid(child, &s, WCONTINUED) == child);
    status("continued-status", s);
    kill(child, SIGSTOP);
    wait_line("waitid-stopped-nowait", P_PID, (id_t)child, WSTOPPED | WNOWAIT, child);
    wait_line("waitid-stopped", P_PID, (id_t)child, WSTOPPED, child);
    kill(child, SIGCONT);
    wait_line("waitid-continued-nowait", P_ALL, 0, WCONTINUED | WNOWAIT, child);
    wait_line("waitid-continued", P_ALL, 0, WCONTINUED, child);
    wait_line("waitid-nothing-more", P_ALL, 0, WCONTINUED | WSTOPPED | WEXITED | WNOHANG, child);
    kill(child, SIGTERM);
    wait_line("waitid-killed-nowait", P_PID, (id_t)child, WEXITED | WNOWAIT, child);
    wait_line("waitid-killed-stopped-only", P_PID, (id_t)child, WSTOPPED | WNOHANG, child);
    val("zombie-kill-0", kill(child, 0));
    yes("zombie-getpgid", getpgid(child) == getpgrp());
    wait_line("waitid-killed", P_PID, (id_t)child, WEXITED, child);
    ok("reaped-kill", kill(child, 0));
    child = born(5);
    wait_line("waitid-exit", P_PGID, (id_t)getpgrp(), WEXITED, child);
    child = born(6);
    wait_line("waitid-pgid-0", P_PGID, 0, WEXITED, child);
    child = fork();
    if (!child) {
        setpgid(0, 0);
        _exit(8);
    }
    setpgid(child, child);
    ok("own-group-only", waitpid(0, &s, 0));
    yes("other-group", waitpid(-child, &s, 0) == child);
    status("other-group-status", s);
    struct rusage usage;
    memset(&usage, 0xff, sizeof usage);
    yes("wait4-usage", wait4(born(0), &s, 0, &usage) > 0 && usage.ru_utime.tv_sec == 0);
    val("wait-null", waitpid(born(0), NULL, 0) > 0);
    child = born(0);
    pause_ms(20);
    ok("status-bad-pointer", (long)syscall(SYS_wait4, child, 8L, 0, NULL));
    ok("status-bad-reaped", waitpid(child, &s, WNOHANG));
    child = born(0);
    ok("wclone-only", waitpid(child, &s, __WCLONE));
    yes("wall", waitpid(child, &s, __WALL) == child);
    child = sleeping();
    int pidfd = (int)ok("pidfd-open", (long)syscall(SYS_pidfd_open, child, 0));
    struct pollfd one = {pidfd, POLLIN, 0};
    val("pidfd-poll-alive", poll(&one, 1, 0));
    fcntl(pidfd, F_SETFL, O_NONBLOCK);
    wait_line("pidfd-nonblock", P_PIDFD, (id_t)pidfd, WEXITED, child);
    char folder[32];
    snprintf(folder, sizeof folder, "/proc/%d", child);
    int by_name = open(folder, O_RDONLY | O_DIRECTORY);
    ok("folder-signal", (long)syscall(SYS_pidfd_send_signal, by_name, 0, NULL, 0));
    ok("folder-getfd", (long)syscall(SYS_pidfd_getfd, by_name, 0, 0));
    close(by_name);
    by_name = open("/proc", O_RDONLY | O_DIRECTORY);
    ok("other-folder-signal", (long)syscall(SYS_pidfd_send_signal, by_name, 0, NULL, 0));
    close(by_name);
    ok("pidfd-signal", (long)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0));
    val("pidfd-poll-dead", poll(&one, 1, 20000));
    say("pidfd-revents", "%#x", one.revents);
    wait_line("pidfd-wait", P_PIDFD, (id_t)pidfd, WEXITED, child);
    ok("pidfd-open-absent", (long)syscall(SYS_pidfd_open, 0x3fffffff, 0));
    ok("pidfd-open-flags", (long)syscall(SYS_pidfd_open, getpid(), 1));
    ok("pidfd-open-0", (long)syscall(SYS_pidfd_open, 0, 0));
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    make_file("file", "via pidfd", 0600);
    int fd = open("file", O_RDONLY), got = (int)ok("pidfd-getfd", (long)syscall(SYS_pidfd_getfd, self, fd, 0));
    char text[16] = "";
    val("pidfd-getfd-read", read(got, text, 15));
    val("pidfd-getfd-cloexec", fcntl(got, F_GETFD));
    ok("pidfd-getfd-bad", (long)syscall(SYS_pidfd_getfd, self, 99, 0));
    ok("pidfd-getfd-flags", (long)syscall(SYS_pidfd_getfd, self, fd, 1));
    ok("pidfd-read", read(self, text, 1));
}

static void group_checks(void) {
    pid_t self = getpid();
    yes("leader", getpgrp() == self && getsid(0) == self);
    ok("setsid-leader", setsid());
    ok("setpgid-leader", setpgid(0, 0));
    ok("setpgid-negative", setpgid(0, -1));
    ok("setpgid-absent", setpgid(0x3fffffff, 0));
    ok("getpgid-absent", getpgid(0x3fffffff));
    ok("getsid-absent", getsid(0x3fffffff));
    ok("getpgid-negative", getpgid(-1));
    pid_t a = sleeping(), b = sleeping();
    ok("setpgid-child", setpgid(a, a));
    ok("setpgid-join", setpgid(b, a));
    yes("joined", getpgid(b) == a);
    ok("setpgid-no-group", setpgid(b, 0x3fffffff));
    ok("setpgid-back", setpgid(b, self));
    ok("setpgid-rejoin", setpgid(b, a));
    ok("kill-group", kill(-a, SIGTERM));
    int s = 0;
    waitpid(a, &s, 0);
    status("group-first", s);
    waitpid(b, &s, 0);
    status("group-second", s);
    ok("kill-group-gone", kill(-a, 0));
    struct gate ready = gate();
    pid_t c = fork();
    if (!c) {
        yes("setsid-child", setsid() == getpid());
        yes("setsid-child-pgrp", getpgrp() == getpid());
        gate_open(&ready);
        for (;;) pause();
    }
    gate_pass(&ready);
    ok("setpgid-other-session", setpgid(c, self));
    yes("getsid-other", getsid(c) == c);
    end(c);
    c = fork();
    if (!c) {
        char *arguments[] = {"processes", "--sleep", NULL};
        fcntl(ready.ends[1], F_SETFD, 0);
        char fd[16];
        snprintf(fd, sizeof fd, "GATE=%d", ready.ends[1]);
        execve("/proc/self/exe", arguments, (char *[]){fd, NULL});
        _exit(1);
    }
    gate_pass(&ready);
    ok("setpgid-after-exec", setpgid(c, c));
    end(c);
    /* orphans: to the nearest subreaper */
    CHILD("subreaper") {
        ok("set-subreaper", prctl(PR_SET_CHILD_SUBREAPER, 1));
        int is = 0;
        prctl(PR_GET_CHILD_SUBREAPER, &is);
        val("get-subreaper", is);
        struct gate orphaned = gate();
        pid_t me = getpid(), middle = fork();
        if (!middle) {
            if (fork() == 0) {
                prctl(PR_GET_CHILD_SUBREAPER, &is);
                val("subreaper-inherited", is);
                gate_pass(&orphaned);
                yes("orphan-parent", getppid() == me);
                _exit(11);
            }
            _exit(0);
        }
        waitpid(middle, NULL, 0);
        gate_open(&orphaned);
        yes("orphan-reaped", waitpid(-1, &s, 0) > 0);
        status("orphan-status", s);
    }
    CHILD("deathsig") {
        int signal = -1;
        ok("pdeathsig-set", prctl(PR_SET_PDEATHSIG, SIGUSR1));
        prctl(PR_GET_PDEATHSIG, &signal);
        say("pdeathsig-get", "%s", signal_name(signal));
        ok("pdeathsig-bad", prctl(PR_SET_PDEATHSIG, 65));
        CHILD("fork") {
            prctl(PR_GET_PDEATHSIG, &signal);
            val("pdeathsig-not-inherited", signal);
        }
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        struct gate armed = gate();
        pid_t middle = fork();
        if (!middle) {
            if (fork() == 0) {
                prctl(PR_SET_PDEATHSIG, SIGTERM);
                gate_open(&armed);
                for (;;) pause();
            }
            gate_pass(&armed);
            _exit(0);
        }
        waitpid(middle, NULL, 0);
        waitpid(-1, &s, 0);
        status("pdeathsig-death", s);
    }
    /* a group that becomes orphaned while one of it is stopped gets SIGHUP and SIGCONT */
    CHILD("orphaned-group") {
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        pid_t middle = fork();
        if (!middle) {
            setsid();
            pid_t inner = sleeping();
            setpgid(inner, inner);
            kill(inner, SIGSTOP);
            waitpid(inner, NULL, WUNTRACED);
            _exit(0);
        }
        waitpid(middle, NULL, 0);
        pid_t last = waitpid(-1, &s, 0);
        yes("orphaned-group-waited", last > 0);
        status("orphaned-group-stopped", s);
    }
}

static void limit_checks(void) {
    struct rlimit limit = {100, 100}, got;
    for (int resource = 0; resource < 18; resource++) {
        char name[32];
        snprintf(name, sizeof name, "getrlimit-%d", resource);
        ok(name, getrlimit((unsigned)resource, &got));
    }
    limit = (struct rlimit){200, 100};
    ok("soft-above-hard", setrlimit(RLIMIT_NOFILE, &limit));
    CHILD("user") {
        as_user();
        limit = (struct rlimit){10, 8192};
        ok("raise-hard-user", setrlimit(RLIMIT_NOFILE, &limit));
        ok("prlimit-root", (long)syscall(SYS_prlimit64, getppid(), RLIMIT_NOFILE, NULL, &got));
        limit = (struct rlimit){10, 20};
        ok("lower-hard", setrlimit(RLIMIT_NOFILE, &limit));
        limit = (struct rlimit){10, 30};
        ok("raise-again", setrlimit(RLIMIT_NOFILE, &limit));
    }
    CHILD("nofile") {
        limit = (struct rlimit){5, 4096};
        setrlimit(RLIMIT_NOFILE, &limit);
        val("nofile-dup", dup(0)), val("nofile-dup-2", dup(0)), val("nofile-dup-3", dup(0));
        val("nofile-dup2", dup2(0, 5));
    }
    CHILD("fsize-killed") {
        int fd = open("file", O_RDWR | O_CREAT, 0600);
        limit = (struct rlimit){100, RLIM_INFINITY};
        struct rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
        char text[200] = "";
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &limit);
        long cut = write(fd, text, 200), more = write(fd, text, 1), error = errno, grow = ftruncate(fd, 101), hole = fallocate(fd, 0, 0, 200);
        setrlimit(RLIMIT_FSIZE, &none);
        say("fsize", "%ld %ld %s %ld %ld", cut, more, error_name((int)error), grow, hole);
        signal(SIGXFSZ, SIG_DFL);
        setrlimit(RLIMIT_FSIZE, &limit);
        write(fd, text, 1);
    }
    CHILD("as") {
        limit = (struct rlimit){64 << 20, 64 << 20};
        setrlimit(RLIMIT_AS, &limit);
        okp("as-mmap", mmap(NULL, 128 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        okp("as-mmap-small", mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    }
    CHILD("data") {
        limit = (struct rlimit){16 << 20, 16 << 20};
        setrlimit(RLIMIT_DATA, &limit);
        okp("data-mmap-private", mmap(NULL, 32 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        okp("data-mmap-shared", mmap(NULL, 32 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
        char *start = sbrk(0);
        ok("data-brk", brk(start + (32 << 20)));
    }
    CHILD("stack") {
        limit = (struct rlimit){1 << 20, 1 << 20};
        setrlimit(RLIMIT_STACK, &limit);
        volatile char *deep = alloca(3 << 20);
        for (long at = (3 << 20) - 1; at >= 0; at -= PAGE) deep[at] = 1;
    }
    CHILD("cpu") {
        limit = (struct rlimit){1, 3};
        setrlimit(RLIMIT_CPU, &limit);
        for (;;) {}
    }
    CHILD("nproc") {
        limit = (struct rlimit){1, 1};
        setrlimit(RLIMIT_NPROC, &limit);
        setresuid(4322, 4322, 4322);
        pid_t child = fork();
        if (!child) _exit(0);
        ok("nproc-fork", child);
    }
    CHILD("memlock") {
        limit = (struct rlimit){2 * PAGE, 2 * PAGE};
        setrlimit(RLIMIT_MEMLOCK, &limit);
        as_user();
        char *m = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ok("memlock-within", mlock(m, 2 * PAGE));
        ok("memlock-over", mlock(m, 3 * PAGE));
        ok("memlock-all", mlockall(MCL_CURRENT));
    }
    ok("prlimit-absent", (long)syscall(SYS_prlimit64, 0x3fffffff, RLIMIT_NOFILE, NULL, &got));
    ok("prlimit-bad", (long)syscall(SYS_prlimit64, 0, 99, NULL, &got));
    ok("prlimit-null", (long)syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, NULL));
    ok("getpriority", (errno = 0, getpriority(PRIO_PROCESS, 0)) == -1 && errno ? -1 : 0);
    val("nice-raw", syscall(SYS_getpriority, PRIO_PROCESS, 0));
    CHILD("nice") {
        val("nice", nice(5));
        val("nice-max", nice(100));
        as_user();
        val("nice-down", nice(-1));
    }
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {
        {"fork", fork_checks}, {"wait", wait_checks}, {"group", group_checks}, {"limit", limit_checks}, {0}};
    if (argc == 2 && !strcmp(argv[1], "--sleep")) {
        write(atoi(getenv("GATE")), "x", 1);
        for (;;) pause();
    }
    return run(argc, argv, groups);
}
