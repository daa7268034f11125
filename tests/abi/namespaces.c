/* Namespaces: of processes, mounts, users, names, IPC, network; unshare, setns, clone3; chroot and pivot_root. */
#include "abi.h"

#include <linux/nsfs.h>
#include <mqueue.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/utsname.h>

#define ALL_FLAGS (CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWCGROUP)

struct clone3_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

static pid_t clone3(struct clone3_args *args, size_t size) { return syscall(SYS_clone3, args, size); }

static pid_t fork_into(uint64_t flags) {
    struct clone3_args args = {.flags = flags, .exit_signal = SIGCHLD};
    return clone3(&args, sizeof args);
}

static int pidfd_open(pid_t pid) { return syscall(SYS_pidfd_open, pid, 0); }

static int write_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd < 0) return -1;
    ssize_t done = write(fd, text, strlen(text));
    int error = errno;
    close(fd);
    errno = error;
    return done < 0 ? -1 : 0;
}

static const char *read_text(const char *path) {
    static char text[65536];
    int fd = open(path, O_RDONLY);
    if (fd < 0) return error_name(errno);
    size_t have = 0;
    ssize_t got;
    while ((got = read(fd, text + have, sizeof text - 1 - have)) > 0) have += got;
    text[have] = 0;
    close(fd);
    return text;
}

/* The rest of a line of a text, without the line's end. */
static const char *line_of(const char *path, const char *key) {
    static char line[512];
    const char *at = strstr(read_text(path), key);
    if (!at) return "none";
    at += strlen(key);
    snprintf(line, sizeof line, "%.*s", (int)strcspn(at, "\n"), at);
    return line;
}

static ino_t number_of(const char *path) {
    struct stat file;
    return stat(path, &file) ? 0 : file.st_ino;
}

/* Whether two links lead to the same namespace. */
static bool same(const char *one, const char *other) { return number_of(one) && number_of(one) == number_of(other); }

static void private_mounts(void) {
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) say("private", "%s", error_name(errno));
}

/* What mountinfo says of a mount: options and how it shares; groups by the order in which they are seen. */
static void tell_mount(const char *name, const char *path) {
    char real[PATH_MAX], key[PATH_MAX + 2], out[256] = "";
    if (!realpath(path, real)) {
        say(name, "%s", error_name(errno));
        return;
    }
    snprintf(key, sizeof key, " %s ", real);
    char *text = strdup(read_text("/proc/self/mountinfo")), *found = NULL;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        if (strstr(line, key)) found = line;
    if (!found) {
        say(name, "not there");
        return;
    }
    char *options = strstr(found, key) + strlen(key), *dash = strstr(options, " - ");
    char part[64];
    int used = 0;
    while (options < dash && sscanf(options, "%63s%n", part, &used) == 1 && options + used <= dash) {
        options += used;
        if (*options == ' ') options++;
        char *colon = strchr(part, ':');
        if (colon) *colon = 0;
        if (!strcmp(part, "-")) break;
        strcat(out, part);
        strcat(out, " ");
    }
    char type[64] = "", source[64] = "";
    sscanf(dash, " - %63s %63s", type, source);
    say(name, "%s| %s %s", out, type, source);
}

static void uts(void) {
    struct utsname names;
    sethostname("outer", 5);
    CHILD("unshare") {
        ok("unshare", unshare(CLONE_NEWUTS));
        ok("set", sethostname("inner", 5));
        ok("domain", setdomainname("realm", 5));
        uname(&names);
        say("names", "%s %s", names.nodename, names.domainname);
        say("sysctl", "%s", read_text("/proc/sys/kernel/hostname"));
        ok("write", write_text("/proc/sys/kernel/hostname", "written\n"));
        uname(&names);
        say("written", "%s", names.nodename);
        yes("other", !same("/proc/self/ns/uts", "/proc/1/ns/uts"));
    }
    uname(&names);
    say("outside", "%s", names.nodename);
    CHILD("user") {
        as_user();
        ok("as-user", unshare(CLONE_NEWUTS));
        ok("set-as-user", sethostname("no", 2));
        ok("unknown-flag", unshare(0x1));
        ok("unknown-high", unshare((int)0x80000001));
    }
}

static void ipc(void) {
    int id = msgget(0x1234, IPC_CREAT | 0600);
    yes("made", id >= 0);
    struct mq_attr size = {.mq_maxmsg = 1, .mq_msgsize = 8};
    mqd_t queue = mq_open("/abi-ns", O_CREAT | O_RDWR, 0600, &size);
    CHILD("unshare") {
        ok("unshare", unshare(CLONE_NEWIPC));
        val("find", msgget(0x1234, 0600));
        struct msqid_ds info;
        val("by-id", msgctl(id, IPC_STAT, &info));
        val("mq", mq_open("/abi-ns", O_RDWR));
        yes("own", msgget(0x1234, IPC_CREAT | 0600) >= 0);
        ok("old-queue", mq_send(queue, "x", 1, 0));
    }
    struct mq_attr now;
    mq_getattr(queue, &now);
    val("sent", now.mq_curmsgs);
    ok("rm", msgctl(id, IPC_RMID, NULL));
    mq_unlink("/abi-ns");
}

static void net(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "\0abi-ns"};
    socklen_t size = sizeof(sa_family_t) + 7;
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    ok("bind", bind(listener, (void *)&name, size));
    ok("listen", listen(listener, 1));
    struct sockaddr_un file = {.sun_family = AF_UNIX, .sun_path = "socket"};
    int of_file = socket(AF_UNIX, SOCK_STREAM, 0);
    ok("bind-file", bind(of_file, (void *)&file, sizeof file));
    listen(of_file, 1);
    CHILD("unshare") {
        int before = socket(AF_UNIX, SOCK_STREAM, 0);
        ok("unshare", unshare(CLONE_NEWNET));
        ok("abstract", connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&name, size));
        ok("by-old-socket", connect(before, (void *)&name, size));
        ok("file", connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&file, sizeof file));
        ok("same-name", bind(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&name, size));
        yes("other", !same("/proc/self/ns/net", "/proc/1/ns/net"));
    }
    close(listener), close(of_file), unlink("socket");
}

static void pid(void) {
    CHILD("clone") {
        pid_t child = fork_into(CLONE_NEWPID);
        if (!child) {
            say("self", "%d %d %d", getpid(), (int)syscall(SYS_gettid), getppid());
            say("group", "%d %d", getpgrp(), getsid(0));
            say("setsid", "%d %d", (int)setsid(), getpgrp());
            pid_t inner = fork();
            if (!inner) {
                say("second", "%d %d", getpid(), getppid());
                _exit(3);
            }
            int how;
            say("waited", "%d", waitpid(inner, &how, 0) == inner);
            status("how", how);
            say("inner-number", "%d", inner);
            ok("kill-outer", kill(inner + 1000, 0));
            ok("kill-all-none", kill(-1, 0));
            _exit(7);
        }
        int how;
        yes("waited-outside", waitpid(child, &how, 0) == child);
        status("how-outside", how);
    }
    CHILD("unshare") {
        yes("none-yet", number_of("/proc/self/ns/pid_for_children") == number_of("/proc/self/ns/pid"));
        ok("unshare", unshare(CLONE_NEWPID));
        yes("same-self", same("/proc/self/ns/pid", "/proc/1/ns/pid"));
        char link[64];
        val("empty-link", readlink("/proc/self/ns/pid_for_children", link, sizeof link) > 0 ? 1 : -1);
        ok("again", unshare(CLONE_NEWPID));
        struct clone3_args thread = {.flags = CLONE_THREAD | CLONE_SIGHAND | CLONE_VM};
        val("thread", clone3(&thread, sizeof thread));
        pid_t child = fork();
        if (!child) {
            say("first", "%d %d", getpid(), getppid());
            pause();
            _exit(0);
        }
        pid_t other = fork();
        if (!other) {
            say("next", "%d %d", getpid(), getppid());
            _exit(0);
        }
        await(other, 5000);
        kill(child, SIGTERM);
        pause_ms(50);
        val("term-ignored", waitpid(child, NULL, WNOHANG));
        kill(child, SIGKILL);
        status("killed", await(child, 5000));
        val("closed", fork());
    }
    CHILD("death") {
        struct gate ready = gate();
        pid_t init = fork_into(CLONE_NEWPID);
        if (!init) {
            for (int i = 0; i < 3; i++)
                if (!fork()) {
                    if (i == 2 && !fork()) {
                        gate_open(&ready);
                        pause();
                    }
                    pause();
                    _exit(0);
                }
            pause();
            _exit(0);
        }
        gate_pass(&ready);
        close(ready.ends[1]);
        kill(init, SIGKILL);
        status("init", await(init, 5000));
        char byte;
        /* All who held the other end are gone by the time that init is told of. */
        val("nobody-left", read(ready.ends[0], &byte, 1));
    }
}

static volatile int got, from, code;
static void note(int signal, siginfo_t *info, void *context) {
    (void)context;
    got = signal, from = info->si_pid, code = info->si_code;
}

static void pid_signals(void) {
    struct sigaction action = {.sa_sigaction = note, .sa_flags = SA_SIGINFO};
    CHILD("from-outside") {
        struct gate ready = gate(), done = gate();
        pid_t init = fork_into(CLONE_NEWPID);
        if (!init) {
            sigaction(SIGUSR1, &action, NULL);
            gate_open(&ready);
            gate_pass(&done);
            say("seen", "%s %d %d", signal_name(got), from, code);
            ok("kill-self", kill(1, SIGKILL));
            ok("term-self", kill(getpid(), SIGTERM));
            ok("raise-kill", raise(SIGKILL));
            say("alive", "%d", getpid());
            _exit(0);
        }
        gate_pass(&ready);
        ok("usr1", kill(init, SIGUSR1));
        ok("stop", kill(init, SIGSTOP));
        int how;
        waitpid(init, &how, WUNTRACED);
        status("stopped", how);
        kill(init, SIGCONT);
        gate_open(&done);
        status("end", await(init, 5000));
    }
    CHILD("child-tells") {
        sigaction(SIGCHLD, &action, NULL);
        pid_t init = fork_into(CLONE_NEWPID);
        if (!init) {
            struct gate done = gate();
            pid_t inner = fork();
            if (!inner) _exit(4);
            while (!got) pause_ms(1);
            say("inner-sigchld", "%d %d", from, code == CLD_EXITED);
            siginfo_t info;
            waitid(P_PID, inner, &info, WEXITED);
            say("waitid", "%d %d", info.si_pid, info.si_status);
            gate_open(&done);
            _exit(5);
        }
        while (!got) pause_ms(1);
        yes("outer-sigchld", from == init);
        status("outer", await(init, 5000));
    }
    CHILD("orphans") {
        pid_t init = fork_into(CLONE_NEWPID);
        if (!init) {
            struct gate gone = gate(), told = gate();
            pid_t middle = fork();
            if (!middle) {
                if (!fork()) {
                    gate_pass(&gone);
                    while (getppid() != 1) pause_ms(1);
                    say("orphan", "%d %d", getpid(), getppid());
                    gate_open(&told);
                    _exit(9);
                }
                _exit(0);
            }
            waitpid(middle, NULL, 0);
            gate_open(&gone);
            gate_pass(&told);
            int how;
            say("reaped", "%d", (int)waitpid(-1, &how, 0));
            status("orphan-end", how);
            _exit(0);
        }
        await(init, 5000);
    }
    CHILD("exec-kill-all") {
        pid_t init = fork_into(CLONE_NEWPID);
        if (!init) {
            struct gate ready[2] = {gate(), gate()};
            pid_t pids[2];
            for (int i = 0; i < 2; i++)
                if (!(pids[i] = fork())) {
                    gate_open(&ready[i]);
                    pause();
                    _exit(0);
                }
            gate_pass(&ready[0]), gate_pass(&ready[1]);
            ok("all", kill(-1, SIGTERM));
            status("one", await(pids[0], 5000));
            status("two", await(pids[1], 5000));
            _exit(0);
        }
        status("init", await(init, 5000));
    }
}

static void pid_proc(void) {
    CHILD("mounted") {
        private_mounts();
        // Whenever init mounts its own over it: these are the outer numbers.
        int outside = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        pid_t init = fork_into(CLONE_NEWPID);
        if (!init) {
            char link[64] = "";
            say("old-proc-self", "%zd", readlink("/proc/self", link, sizeof link - 1));
            ok("mount", mount("proc", "/proc", "proc", 0, NULL));
            memset(link, 0, sizeof link);
            readlink("/proc/self", link, sizeof link - 1);
            say("self", "%s", link);
            say("pid", "%s", line_of("/proc/self/status", "\nPid:"));
            say("ppid", "%s", line_of("/proc/self/status", "\nPPid:"));
            say("nspid", "%s", line_of("/proc/self/status", "\nNSpid:"));
            say("nspgid", "%s", line_of("/proc/self/status", "\nNSpgid:"));
            int number, parent, group, session;
            sscanf(read_text("/proc/self/stat"), "%d (%*[^)]) %*c %d %d %d", &number, &parent, &group, &session);
            say("stat", "%d %d %d %d", number, parent, group, session);
            say("two", "%d", access("/proc/2", F_OK));
            pid_t inner = fork_into(CLONE_NEWPID);
            if (!inner) {
                pause();
                _exit(0);
            }
            char path[64];
            snprintf(path, sizeof path, "/proc/%d/status", inner);
            say("inner", "%d", inner);
            say("inner-nspid", "%s", line_of(path, "\nNSpid:"));
            say("inner-ppid", "%s", line_of(path, "\nPPid:"));
            say("children", "%s", read_text("/proc/1/task/1/children"));
            kill(inner, SIGKILL);
            await(inner, 5000);
            ok("task", access("/proc/self/task/1", F_OK));
            _exit(0);
        }
        char path[64], lines[64];
        fchdir(outside);
        snprintf(path, sizeof path, "%d/status", init);
        snprintf(lines, sizeof lines, "%s", line_of(path, "\nNSpid:"));
        int outer = 0, inner = 0;
        sscanf(lines, "%d %d", &outer, &inner);
        yes("outside-nspid", outer == init && inner == 1);
        status("init", await(init, 5000));
    }
}

static void set_tid(void) {
    CHILD("numbers") {
        pid_t wanted[3] = {1, 0, 0};
        struct clone3_args args = {.flags = CLONE_NEWPID, .exit_signal = SIGCHLD, .set_tid = (uintptr_t)wanted, .set_tid_size = 1};
        wanted[0] = 2;
        val("first-not-1", clone3(&args, sizeof args));
        wanted[0] = 1;
        args.set_tid_size = 33;
        val("too-many", clone3(&args, sizeof args));
        args.set_tid_size = 0;
        val("none", clone3(&args, sizeof args));
        args.set_tid_size = 1, args.set_tid = 0;
        val("no-array", clone3(&args, sizeof args));
        args.set_tid = 8;
        val("bad-array", clone3(&args, sizeof args));
        args.set_tid = (uintptr_t)wanted;
        wanted[0] = 0;
        val("zero", clone3(&args, sizeof args));
        wanted[0] = -1;
        val("negative", clone3(&args, sizeof args));
        wanted[0] = 1;
        pid_t init = clone3(&args, sizeof args);
        if (!init) {
            pid_t forty[1] = {40};
            struct clone3_args more = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)forty, .set_tid_size = 1};
            pid_t inner = clone3(&more, sizeof more);
            if (!inner) {
                say("asked", "%d", getpid());
                pause();
                _exit(0);
            }
            settle(inner);
            say("returned", "%d", inner);
            val("taken", clone3(&more, sizeof more));
            kill(inner, SIGKILL);
            await(inner, 5000);
            pid_t next = fork();
            if (!next) _exit(0);
            say("next", "%d", next);
            await(next, 5000);
            _exit(0);
        }
        status("init", await(init, 5000));
    }
    CHILD("as-user") {
        as_user();
        pid_t wanted[1] = {4000};
        struct clone3_args args = {.exit_signal = SIGCHLD, .set_tid = (uintptr_t)wanted, .set_tid_size = 1};
        val("user", clone3(&args, sizeof args));
    }
}

static void setns_checks(void) {
    CHILD("by-file") {
        int mine = open("/proc/self/ns/uts", O_RDONLY | O_CLOEXEC);
        sethostname("before", 6);
        unshare(CLONE_NEWUTS);
        sethostname("after", 5);
        struct utsname names;
        ok("wrong-type", setns(mine, CLONE_NEWNET));
        ok("back", setns(mine, CLONE_NEWUTS));
        uname(&names);
        say("name", "%s", names.nodename);
        ok("any-type", setns(mine, 0));
        ok("bad-fd", setns(-1, 0));
        int file = open("/proc/self/status", O_RDONLY);
        ok("no-namespace", setns(file, 0));
        as_user();
        ok("as-user", setns(mine, CLONE_NEWUTS));
    }
    CHILD("by-pidfd") {
        struct gate ready = gate();
        sethostname("outer", 5);
        pid_t child = fork_into(ALL_FLAGS);
        if (!child) {
            sethostname("inner", 5);
            gate_open(&ready);
            pause();
            _exit(0);
        }
        gate_pass(&ready);
        int fd = pidfd_open(child);
        ok("no-flags", setns(fd, 0));
        ok("bad-flags", setns(fd, CLONE_VM));
        ok("enter", setns(fd, CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWCGROUP));
        struct utsname names;
        uname(&names);
        say("name-inside", "%s", names.nodename);
        pid_t inside = fork();
        if (!inside) {
            say("inside", "%d %d", getpid(), getppid());
            _exit(0);
        }
        await(inside, 5000);
        kill(child, SIGKILL);
        await(child, 5000);
        val("after-its-end", fork());
        ok("gone", setns(fd, CLONE_NEWUTS));
    }
    CHILD("pid-upwards") {
        int outer = open("/proc/self/ns/pid", O_RDONLY);
        pid_t init = fork_into(CLONE_NEWPID);
        if (!init) {
            ok("ancestor", setns(outer, CLONE_NEWPID));
            _exit(0);
        }
        await(init, 5000);
        ok("own", setns(outer, CLONE_NEWPID));
    }
    CHILD("mounts") {
        make_file("seen", "x", 0600);
        private_mounts();
        char here[PATH_MAX];
        getcwd(here, sizeof here);
        int inner = open("/proc/self/ns/mnt", O_RDONLY), outer = open("/proc/1/ns/mnt", O_RDONLY);
        mkdir("m", 0700);
        mount("t", "m", "tmpfs", 0, NULL);
        make_file("m/inside", "x", 0600);
        ok("leave", setns(outer, CLONE_NEWNS));
        char now[PATH_MAX];
        getcwd(now, sizeof now);
        say("cwd", "%s", now);
        chdir(here);
        ok("hidden", access("m/inside", F_OK));
        ok("return", setns(inner, CLONE_NEWNS));
        chdir(here);
        ok("there", access("m/inside", F_OK));
        umount("m");
        rmdir("m");
    }
    unlink("seen");
}

static void nsfs(void) {
    static const char *const names[] = {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[64], link[64] = "", label[64];
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        ssize_t length = readlink(path, link, sizeof link - 1);
        snprintf(label, sizeof label, "%s:[%lu]", names[i], (unsigned long)number_of(path));
        yes(names[i], length > 0 && !strcmp(link, label));
        int fd = open(path, O_RDONLY);
        snprintf(label, sizeof label, "%s-type", names[i]);
        say(label, "%x", ioctl(fd, NS_GET_NSTYPE));
        snprintf(label, sizeof label, "%s-write", names[i]);
        val(label, open(path, O_RDWR));
        close(fd);
    }
    int uts_fd = open("/proc/self/ns/uts", O_RDONLY), user_fd = open("/proc/self/ns/user", O_RDONLY);
    val("parent-of-uts", ioctl(uts_fd, NS_GET_PARENT));
    val("owner-uid-of-uts", ioctl(uts_fd, NS_GET_OWNER_UID, NULL));
    val("unknown", ioctl(uts_fd, 0xb7ff, 0));
    CHILD("pid-parent") {
        int outer = open("/proc/self/ns/pid", O_RDONLY);
        pid_t init = fork_into(CLONE_NEWPID);
        if (!init) {
            pause();
            _exit(0);
        }
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/ns/pid", init);
        int inner = open(path, O_RDONLY), parent = ioctl(inner, NS_GET_PARENT);
        struct stat one, other;
        fstat(outer, &one), fstat(parent, &other);
        yes("parent", parent >= 0 && one.st_ino == other.st_ino);
        kill(init, SIGKILL);
        await(init, 5000);
    }
    CHILD("user-parent") {
        unshare(CLONE_NEWUSER | CLONE_NEWUTS);
        int inner = open("/proc/self/ns/user", O_RDONLY), of_uts = open("/proc/self/ns/uts", O_RDONLY);
        val("above", ioctl(inner, NS_GET_PARENT));
        val("owner-above", ioctl(inner, NS_GET_USERNS));
        int owner = ioctl(of_uts, NS_GET_USERNS);
        struct stat one, other;
        fstat(inner, &one), fstat(owner, &other);
        yes("owner", owner >= 0 && one.st_ino == other.st_ino);
        uid_t uid = 7;
        ok("owner-uid", ioctl(inner, NS_GET_OWNER_UID, &uid));
        say("owner-is", "%d", uid);
    }
    close(user_fd), close(uts_fd);
    CHILD("bind") {
        private_mounts();
        make_file("file", "", 0600);
        unshare(CLONE_NEWUTS);
        sethostname("kept", 4);
        ok("bind", mount("/proc/self/ns/uts", "file", NULL, MS_BIND, NULL));
        int fd = open("file", O_RDONLY);
        unshare(CLONE_NEWUTS);
        sethostname("other", 5);
        ok("enter", setns(fd, CLONE_NEWUTS));
        struct utsname name;
        uname(&name);
        say("name", "%s", name.nodename);
        close(fd);
        ok("loop", mount("/proc/self/ns/mnt", "file", NULL, MS_BIND, NULL));
        ok("umount", umount("file"));
        unlink("file");
    }
}

static void users(void) {
    CHILD("unmapped") {
        as_user();
        val("owned-by-root", open("/proc/self/uid_map", O_WRONLY));
        prctl(PR_SET_DUMPABLE, 1);
        ok("unshare", unshare(CLONE_NEWUSER));
        say("ids", "%d %d %d %d", getuid(), geteuid(), getgid(), getegid());
        say("map", "[%s]", read_text("/proc/self/uid_map"));
        say("groups", "%s", read_text("/proc/self/setgroups"));
        ok("setuid", setuid(0));
        ok("setgroups", syscall(SYS_setgroups, 0, NULL));
        ok("other-user", write_text("/proc/self/uid_map", "0 0 1"));
        ok("two", write_text("/proc/self/uid_map", "0 1000 2"));
        ok("map-group", write_text("/proc/self/gid_map", "0 1000 1"));
        ok("map-user", write_text("/proc/self/uid_map", "0 1000 1"));
        ok("twice", write_text("/proc/self/uid_map", "0 1000 1"));
        ok("deny", write_text("/proc/self/setgroups", "deny"));
        ok("map-group-then", write_text("/proc/self/gid_map", "0 1000 1"));
        ok("allow", write_text("/proc/self/setgroups", "allow"));
        say("ids-then", "%d %d %d %d", getuid(), geteuid(), getgid(), getegid());
        say("map-then", "%s", read_text("/proc/self/uid_map"));
        say("status", "%s", line_of("/proc/self/status", "\nUid:"));
        ok("setgroups-then", syscall(SYS_setgroups, 0, NULL));
        ok("setuid-other", setuid(1));
        ok("setuid-zero", setuid(0));
        struct stat file;
        stat("/", &file);
        say("owner-of-root", "%d %d", file.st_uid, file.st_gid);
        ok("chown-other", chown("/", 0, 0));
        ok("hostname", sethostname("x", 1));
        ok("mount", mount("t", "/tmp", "tmpfs", 0, NULL));
        ok("more", unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET));
        ok("hostname-own", sethostname("x", 1));
        ok("mount-own", mount("t", "/tmp", "tmpfs", 0, "mode=777"));
        make_file("/tmp/own", "x", 0644);
        stat("/tmp/own", &file);
        say("owner-of-own", "%d %d", file.st_uid, file.st_gid);
        ok("mknod", mknod("/tmp/null", S_IFCHR | 0600, 259));
        ok("proc", mount("p", "/proc", "proc", 0, NULL));
        ok("chroot", chroot("/tmp"));
        ok("nested-in-chroot", unshare(CLONE_NEWUSER));
        ok("reboot-cap", syscall(SYS_settimeofday, NULL, NULL));
    }
    CHILD("range") {
        struct gate ready = gate(), mapped = gate();
        pid_t child = fork_into(CLONE_NEWUSER);
        if (!child) {
            gate_open(&ready);
            gate_pass(&mapped);
            say("range-ids", "%d %d", getuid(), getgid());
            say("uid-map", "%s", read_text("/proc/self/uid_map"));
            ok("setgid", setgid(5));
            ok("range-setgroups", syscall(SYS_setgroups, 2, (gid_t[]){1, 2}));
            gid_t list[4];
            int count = getgroups(4, list);
            say("range-groups", "%d %d %d", count, list[0], list[1]);
            ok("setgroups-unmapped", syscall(SYS_setgroups, 1, (gid_t[]){70000}));
            ok("setuid-unmapped", setuid(70000));
            ok("range-setuid", setuid(1000));
            say("then", "%d %d", getuid(), getgid());
            ok("lost", setuid(0));
            _exit(0);
        }
        gate_pass(&ready);
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/uid_map", child);
        static const char *const bad[] = {"", "0 0", "0 0 0", "a b c", "0 1 2\n1 8 1", "0 1 2\n5 2 1", "0 4294967295 1", "0 1 4294967295", "0 0 1 1"};
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            char name[32];
            snprintf(name, sizeof name, "bad-%zu", i);
            ok(name, write_text(path, bad[i]));
        }
        ok("range-map", write_text(path, "0 100000 1000\n1000 0 1001\n"));
        snprintf(path, sizeof path, "/proc/%d/gid_map", child);
        ok("gid-map", write_text(path, "0 100000 65536"));
        snprintf(path, sizeof path, "/proc/%d/status", child);
        say("seen", "%s", line_of(path, "\nUid:"));
        gate_open(&mapped);
        status("child", await(child, 5000));
    }
    CHILD("capabilities") {
        struct gate ready = gate();
        pid_t child = fork_into(CLONE_NEWUSER | CLONE_NEWUTS);
        if (!child) {
            gate_open(&ready);
            pause();
            _exit(0);
        }
        gate_pass(&ready);
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/ns/uts", child);
        int fd = open(path, O_RDONLY);
        ok("from-above", setns(fd, CLONE_NEWUTS));
        ok("set", sethostname("above", 5));
        snprintf(path, sizeof path, "/proc/%d/ns/user", child);
        int of_users = open(path, O_RDONLY);
        ok("enter", setns(of_users, CLONE_NEWUSER));
        ok("enter-again", setns(of_users, CLONE_NEWUSER));
        say("entered-ids", "%d", getuid());
        kill(child, SIGKILL);
        await(child, 5000);
    }
    CHILD("shared-fs") {
        ok("clone-fs", fork_into(CLONE_NEWUSER | CLONE_FS));
        ok("clone-thread", fork_into(CLONE_NEWUSER | CLONE_THREAD | CLONE_SIGHAND | CLONE_VM));
    }
}

static void user_files(void) {
    make_file("root-only", "secret", 0600);
    mkdir("open", 0777);
    chmod("open", 0777);
    CHILD("owner") {
        as_user();
        prctl(PR_SET_DUMPABLE, 1);
        unshare(CLONE_NEWUSER);
        write_text("/proc/self/setgroups", "deny");
        write_text("/proc/self/gid_map", "0 1000 1");
        write_text("/proc/self/uid_map", "0 1000 1");
        ok("no-override", open("root-only", O_RDONLY));
        ok("no-chmod", chmod("root-only", 0777));
        struct stat file;
        make_file("open/own", "x", 0);
        stat("open/own", &file);
        say("own", "%d %d", file.st_uid, file.st_gid);
        yes("override-own", open("open/own", O_RDWR) >= 0);
        ok("chown-unmapped", chown("open/own", 5, 5));
        ok("chown-same", chown("open/own", 0, 0));
        ok("setuid-bit", chmod("open/own", 04755));
        ok("access", access("open/own", R_OK | W_OK));
    }
    struct stat file;
    stat("open/own", &file);
    say("outside", "%d %d %o", file.st_uid, file.st_gid, file.st_mode);
    unlink("open/own"), rmdir("open"), unlink("root-only");
}

static void mounts(void) {
    CHILD("mount") {
        private_mounts();
        mkdir("a", 0700), mkdir("b", 0700);
        make_file("f", "file", 0600);
        ok("tmpfs", mount("src", "a", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=1m,mode=700"));
        tell_mount("tell", "a");
        ok("remount", mount(NULL, "a", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOATIME, NULL));
        tell_mount("remounted", "a");
        val("read-only", open("a/x", O_CREAT | O_WRONLY, 0600));
        ok("remount-no-root", mount(NULL, "b", NULL, MS_REMOUNT | MS_BIND, NULL));
        ok("bad-type", mount("x", "b", "nosuchfs", 0, NULL));
        ok("no-type", mount("x", "b", NULL, 0, NULL));
        ok("no-target", mount("x", "none", "tmpfs", 0, NULL));
        ok("on-file", mount("x", "f", "tmpfs", 0, NULL));
        ok("bad-option", mount("x", "b", "tmpfs", 0, "nosuch=1"));
        ok("bad-target", mount("x", (void *)8, "tmpfs", 0, NULL));
        ok("busy", chdir("a"));
        ok("umount-busy", umount("../a"));
        ok("umount-detach", umount2("../a", MNT_DETACH));
        make_file("left", "", 0600);
        chdir("/");
        ok("umount-none", umount("/tmp/nothing"));
        ok("umount-no-mount", umount("/abi"));
        ok("umount-flags", umount2("/abi", 0x100));
    }
    rmdir("a"), rmdir("b"), unlink("f");
    CHILD("bind") {
        private_mounts();
        mkdir("a", 0700), mkdir("b", 0700), mkdir("c", 0700);
        make_file("f", "file", 0600), make_file("g", "other", 0600);
        mount("t", "a", "tmpfs", 0, NULL);
        mkdir("a/in", 0700);
        mount("u", "a/in", "tmpfs", 0, NULL);
        make_file("a/in/deep", "x", 0600);
        ok("bind", mount("a", "b", NULL, MS_BIND, NULL));
        ok("not-deep", access("b/in/deep", F_OK));
        ok("rbind", mount("a", "c", NULL, MS_BIND | MS_REC, NULL));
        ok("deep", access("c/in/deep", F_OK));
        ok("file", mount("f", "g", NULL, MS_BIND, NULL));
        say("content", "%s", read_text("g"));
        ok("folder-on-file", mount("a", "f", NULL, MS_BIND, NULL));
        ok("file-on-folder", mount("f", "a", NULL, MS_BIND, NULL));
        ok("empty-source", mount("", "a", NULL, MS_BIND, NULL));
        ok("no-source", mount(NULL, "a", NULL, MS_BIND, NULL));
        ok("missing-source", mount("none", "a", NULL, MS_BIND, NULL));
        ok("ro", mount(NULL, "b", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
        val("ro-b", open("b/x", O_CREAT | O_WRONLY, 0600));
        yes("rw-a", open("a/x", O_CREAT | O_WRONLY, 0600) >= 0);
        ok("rmdir", rmdir("b"));
        ok("rename", rename("b", "d"));
        ok("unlink", unlink("g"));
        ok("umount-with-child", umount("c"));
        ok("detach-with-child", umount2("c", MNT_DETACH));
        ok("link-across", link("a/x", "b2"));
        ok("expire", umount2("b", MNT_EXPIRE));
        ok("expire-again", umount2("b", MNT_EXPIRE));
        ok("expire-detach", umount2("a", MNT_EXPIRE | MNT_DETACH));
        ok("nofollow", symlink("a", "l"));
        ok("umount-nofollow", umount2("l", UMOUNT_NOFOLLOW));
        ok("umount-follow", umount2("l", MNT_DETACH));
        umount("g");
        unlink("l");
    }
    rmdir("a"), rmdir("b"), rmdir("c"), unlink("f"), unlink("g");
    CHILD("move") {
        private_mounts();
        mkdir("a", 0700), mkdir("b", 0700);
        make_file("f", "", 0600);
        mount("t", "a", "tmpfs", 0, NULL);
        mkdir("a/in", 0700);
        ok("move", mount("a", "b", NULL, MS_MOVE, NULL));
        ok("moved", access("b/in", F_OK));
        ok("gone", access("a/in", F_OK));
        ok("into-itself", mount("b", "b/in", NULL, MS_MOVE, NULL));
        ok("no-mount", mount("a", "b", NULL, MS_MOVE, NULL));
        ok("move-on-file", mount("b", "f", NULL, MS_MOVE, NULL));
        ok("move-no-source", mount(NULL, "a", NULL, MS_MOVE, NULL));
        umount("b");
    }
    rmdir("a"), rmdir("b"), unlink("f");
    CHILD("user") {
        as_user();
        ok("mount-user", mount("t", "/tmp", "tmpfs", 0, NULL));
        ok("umount-user", umount("/tmp"));
        ok("bind-user", mount("/", "/tmp", NULL, MS_BIND, NULL));
        ok("unshare-user", unshare(CLONE_NEWNS));
        ok("pivot-user", syscall(SYS_pivot_root, "/", "/"));
        ok("chroot-user", chroot("/"));
    }
}

static void propagation(void) {
    CHILD("peers") {
        private_mounts();
        mkdir("a", 0700), mkdir("b", 0700), mkdir("c", 0700);
        mount("t", "a", "tmpfs", 0, NULL);
        mkdir("a/x", 0700), mkdir("a/y", 0700);
        tell_mount("private", "a");
        ok("share", mount(NULL, "a", NULL, MS_SHARED, NULL));
        tell_mount("shared", "a");
        mount("a", "b", NULL, MS_BIND, NULL);
        tell_mount("peer", "b");
        mount("a", "c", NULL, MS_BIND, NULL);
        ok("slave", mount(NULL, "c", NULL, MS_SLAVE, NULL));
        tell_mount("slave-told", "c");
        mount("u", "a/x", "tmpfs", 0, NULL);
        make_file("a/x/seen", "", 0600);
        ok("peer-sees", access("b/x/seen", F_OK));
        ok("slave-sees", access("c/x/seen", F_OK));
        tell_mount("inner-shared", "a/x");
        tell_mount("inner-slave", "c/x");
        mount("v", "c/y", "tmpfs", 0, NULL);
        make_file("c/y/own", "", 0600);
        ok("not-up", access("a/y/own", F_OK));
        ok("umount", umount("b/x"));
        ok("gone", access("a/x/seen", F_OK));
        ok("gone-slave", access("c/x/seen", F_OK));
        ok("slave-shared", mount(NULL, "c", NULL, MS_SHARED, NULL));
        tell_mount("slave-shared-told", "c");
        ok("two-kinds", mount(NULL, "a", NULL, MS_SHARED | MS_PRIVATE, NULL));
        ok("with-flags", mount(NULL, "a", NULL, MS_SHARED | MS_RDONLY, NULL));
        ok("no-mount", mount(NULL, "a/y", NULL, MS_SHARED, NULL));
        ok("move-out-of-shared", mount("u", "a/x", "tmpfs", 0, NULL));
        mkdir("d", 0700);
        ok("move", mount("a/x", "d", NULL, MS_MOVE, NULL));
        ok("unbindable", mount(NULL, "b", NULL, MS_UNBINDABLE, NULL));
        tell_mount("unbindable-told", "b");
        ok("bind-unbindable", mount("b", "d", NULL, MS_BIND, NULL));
        ok("private-again", mount(NULL, "a", NULL, MS_PRIVATE | MS_REC, NULL));
        tell_mount("left-slave", "c");
    }
    CHILD("namespaces") {
        private_mounts();
        mkdir("a", 0700);
        mount("t", "a", "tmpfs", 0, NULL);
        mount(NULL, "a", NULL, MS_SHARED, NULL);
        mkdir("a/x", 0700);
        struct gate ready = gate(), done = gate();
        pid_t child = fork_into(CLONE_NEWNS);
        if (!child) {
            gate_open(&ready);
            gate_pass(&done);
            ok("heard", access("a/x/seen", F_OK));
            tell_mount("of-child", "a/x");
            umount("a/x");
            _exit(0);
        }
        gate_pass(&ready);
        mount("u", "a/x", "tmpfs", 0, NULL);
        make_file("a/x/seen", "", 0600);
        gate_open(&done);
        await(child, 5000);
        ok("gone-outside", access("a/x/seen", F_OK));
        child = fork_into(CLONE_NEWNS | CLONE_NEWUSER);
        if (!child) {
            tell_mount("less-privileged", "a");
            ok("locked", umount("a"));
            ok("locked-remount", mount(NULL, "a", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
            _exit(0);
        }
        await(child, 5000);
        umount2("a", MNT_DETACH);
    }
    rmdir("a"), rmdir("b"), rmdir("c"), rmdir("d");
}

static void roots(void) {
    CHILD("pivot") {
        private_mounts();
        mkdir("new", 0755), mkdir("other", 0755);
        char here[PATH_MAX];
        getcwd(here, sizeof here);
        ok("no-mount", syscall(SYS_pivot_root, "new", "new"));
        mount("t", "new", "tmpfs", 0, NULL);
        mkdir("new/old", 0755), mkdir("new/dir", 0755);
        make_file("new/file", "", 0600);
        ok("not-below", syscall(SYS_pivot_root, "new", "other"));
        ok("no-folder", syscall(SYS_pivot_root, "new", "new/file"));
        ok("missing", syscall(SYS_pivot_root, "new", "new/none"));
        ok("no-root", syscall(SYS_pivot_root, "new/dir", "new/old"));
        ok("same-root", syscall(SYS_pivot_root, "/", "/tmp"));
        mount(NULL, "/", NULL, MS_SHARED, NULL);
        mount(NULL, "new", NULL, MS_SHARED, NULL);
        ok("shared", syscall(SYS_pivot_root, "new", "new/old"));
        mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL);
        chdir("/");
        char path[PATH_MAX + 8], old[PATH_MAX + 8];
        snprintf(path, sizeof path, "%s/new", here), snprintf(old, sizeof old, "%s/new/old", here);
        ok("pivot", syscall(SYS_pivot_root, path, old));
        char now[PATH_MAX];
        say("cwd", "%s", getcwd(now, sizeof now));
        ok("file", access("/file", F_OK));
        ok("old", access("/old/proc", F_OK));
        ok("umount-old", umount2("/old", MNT_DETACH));
        ok("old-gone", access("/old/proc", F_OK));
        ok("stacked", mount("u", "/dir", "tmpfs", 0, NULL));
        chdir("/dir");
        make_file("here", "", 0600);
        ok("pivot-dot", syscall(SYS_pivot_root, ".", "."));
        ok("detach-dot", umount2(".", MNT_DETACH));
        ok("here", access("/here", F_OK));
        ok("nothing-else", access("/file", F_OK));
    }
    rmdir("new"), rmdir("other");
    CHILD("chroot") {
        mkdir("root", 0755);
        make_file("root/in", "", 0600);
        make_file("plain", "", 0600);
        ok("chroot-file", chroot("plain"));
        ok("chroot-missing", chroot("none"));
        ok("bad", chroot((void *)8));
        int out = open(".", O_RDONLY);
        ok("chroot", chroot("root"));
        ok("in", access("/in", F_OK));
        ok("up", access("/../in", F_OK));
        char now[PATH_MAX];
        ssize_t length = syscall(SYS_getcwd, now, sizeof now);
        say("chroot-cwd", "%.*s", length > 0 ? 13 : 0, now);
        ok("back", fchdir(out));
        ok("outside", access("plain", F_OK));
        ok("out", chroot("."));
        ok("users", unshare(CLONE_NEWUSER));
    }
    unlink("root/in"), rmdir("root"), unlink("plain");
}

#ifndef MOVE_MOUNT_F_EMPTY_PATH
#define MOVE_MOUNT_F_EMPTY_PATH 4
#endif
struct attributes {
    uint64_t set, clear, propagation, users;
};

static void new_mounts(void) {
    CHILD("steps") {
        private_mounts();
        mkdir("a", 0700), mkdir("b", 0700);
        val("unknown", syscall(SYS_fsopen, "nosuchfs", 0));
        val("flags", syscall(SYS_fsopen, "tmpfs", 2));
        int fs = syscall(SYS_fsopen, "tmpfs", 1);
        yes("fsopen", fs >= 0);
        ok("source", syscall(SYS_fsconfig, fs, 1, "source", "named", 0));
        ok("source-again", syscall(SYS_fsconfig, fs, 1, "source", "named", 0));
        ok("size", syscall(SYS_fsconfig, fs, 1, "size", "1m", 0));
        ok("no-key", syscall(SYS_fsconfig, fs, 1, NULL, "x", 0));
        ok("no-value", syscall(SYS_fsconfig, fs, 1, "size", NULL, 0));
        ok("command", syscall(SYS_fsconfig, fs, 99, NULL, NULL, 0));
        val("too-early", syscall(SYS_fsmount, fs, 0, 0));
        ok("create", syscall(SYS_fsconfig, fs, 6, NULL, NULL, 0));
        val("bad-attribute", syscall(SYS_fsmount, fs, 0, 0x1000));
        int mounted = syscall(SYS_fsmount, fs, 1, 2 /* nosuid */ | 0x10 /* noatime */);
        yes("fsmount", mounted >= 0);
        val("again", syscall(SYS_fsmount, fs, 0, 0));
        ok("move", syscall(SYS_move_mount, mounted, "", AT_FDCWD, "a", MOVE_MOUNT_F_EMPTY_PATH));
        tell_mount("tell", "a");
        ok("move-flags", syscall(SYS_move_mount, mounted, "", AT_FDCWD, "b", 0x1000));
        ok("move-on", syscall(SYS_move_mount, mounted, "", AT_FDCWD, "b", MOVE_MOUNT_F_EMPTY_PATH));
        tell_mount("moved", "b");
        make_file("b/x", "", 0600);
        close(mounted), close(fs);
        ok("stays", access("b/x", F_OK));
        ok("umount", umount("b"));
    }
    CHILD("tree") {
        private_mounts();
        mount("t", "a", "tmpfs", 0, NULL);
        mkdir("a/in", 0700);
        mount("u", "a/in", "tmpfs", 0, NULL);
        make_file("a/in/deep", "", 0600);
        val("recursive-alone", syscall(SYS_open_tree, AT_FDCWD, "a", 0x8000));
        val("tree-flags", syscall(SYS_open_tree, AT_FDCWD, "a", 0x40000000));
        int path = syscall(SYS_open_tree, AT_FDCWD, "a", O_CLOEXEC);
        yes("as-path", path >= 0);
        int tree = syscall(SYS_open_tree, AT_FDCWD, "a", 1 | 0x8000 | O_CLOEXEC);
        yes("clone", tree >= 0);
        ok("deep", faccessat(tree, "in/deep", F_OK, 0));
        struct attributes change = {.set = 1};
        ok("set", syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | 0x8000, &change, sizeof change));
        val("read-only", openat(tree, "x", O_CREAT | O_WRONLY, 0600));
        val("read-only-deep", openat(tree, "in/x", O_CREAT | O_WRONLY, 0600));
        ok("attach", syscall(SYS_move_mount, tree, "", AT_FDCWD, "b", MOVE_MOUNT_F_EMPTY_PATH));
        close(tree);
        ok("attached", access("b/in/deep", F_OK));
        val("still-read-only", open("b/x", O_CREAT | O_WRONLY, 0600));
        change = (struct attributes){.clear = 1};
        ok("clear", syscall(SYS_mount_setattr, AT_FDCWD, "b", 0, &change, sizeof change));
        yes("writable", open("b/x", O_CREAT | O_WRONLY, 0600) >= 0);
        val("deep-read-only", open("b/in/x", O_CREAT | O_WRONLY, 0600));
        change = (struct attributes){.propagation = MS_SHARED};
        ok("share", syscall(SYS_mount_setattr, AT_FDCWD, "b", 0, &change, sizeof change));
        tell_mount("shared", "b");
        change = (struct attributes){.propagation = MS_SHARED | MS_PRIVATE};
        ok("two-kinds", syscall(SYS_mount_setattr, AT_FDCWD, "b", 0, &change, sizeof change));
        change = (struct attributes){.set = 0x10};
        ok("atime-uncleared", syscall(SYS_mount_setattr, AT_FDCWD, "b", 0, &change, sizeof change));
        change = (struct attributes){.set = 0x10, .clear = 0x70};
        ok("atime", syscall(SYS_mount_setattr, AT_FDCWD, "b", 0, &change, sizeof change));
        tell_mount("noatime", "b");
        change = (struct attributes){.set = 0x1000};
        ok("unknown-attribute", syscall(SYS_mount_setattr, AT_FDCWD, "b", 0, &change, sizeof change));
        ok("small", syscall(SYS_mount_setattr, AT_FDCWD, "b", 0, &change, 8));
        ok("large", syscall(SYS_mount_setattr, AT_FDCWD, "b", 0, &change, 8192));
        ok("no-root", syscall(SYS_mount_setattr, AT_FDCWD, "/abi", 0, &(struct attributes){.set = 1}, sizeof change));
        int lost = syscall(SYS_open_tree, AT_FDCWD, "a", 1);
        ok("seen", faccessat(lost, "in", F_OK, 0));
        close(lost);
        val("not-config", syscall(SYS_fsconfig, path, 6, NULL, NULL, 0));
        int picked = syscall(SYS_fspick, AT_FDCWD, "a", 0);
        yes("fspick", picked >= 0);
        val("fspick-no-root", syscall(SYS_fspick, AT_FDCWD, "a/in/..x", 0));
        umount2("a", MNT_DETACH), umount2("b", MNT_DETACH);
    }
    rmdir("a"), rmdir("b");
    CHILD("user") {
        as_user();
        val("fsopen-user", syscall(SYS_fsopen, "tmpfs", 0));
        val("open-tree-user", syscall(SYS_open_tree, AT_FDCWD, "/", 1));
        val("move-user", syscall(SYS_move_mount, AT_FDCWD, "/", AT_FDCWD, "/tmp", 0));
        struct attributes change = {.set = 1};
        val("setattr-user", syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, &change, sizeof change));
    }
}

/* How deep they go. */
static void depth(void) {
    CHILD("pid") {
        int levels = 0;
        struct gate told = gate();
        for (;;) {
            pid_t child = fork_into(CLONE_NEWPID);
            if (child < 0) {
                say("end", "%s after %d", error_name(errno), levels > 20 && levels <= 32);
                _exit(0);
            }
            if (child) {
                await(child, 20000);
                _exit(0);
            }
            levels++;
        }
        (void)told;
    }
    CHILD("user") {
        int levels = 0;
        for (;;) {
            if (unshare(CLONE_NEWUSER)) {
                say("users-end", "%s after %d", error_name(errno), levels > 20 && levels <= 33);
                break;
            }
            write_text("/proc/self/setgroups", "deny");
            if (write_text("/proc/self/uid_map", "0 0 1") || write_text("/proc/self/gid_map", "0 0 1")) {
                say("users-map", "%s", error_name(errno));
                break;
            }
            levels++;
        }
    }
}

static void sockets_between(void) {
    CHILD("credentials") {
        int pair[2];
        socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
        setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int));
        pid_t child = fork_into(CLONE_NEWPID);
        if (!child) {
            struct ucred peer;
            socklen_t size = sizeof peer;
            getsockopt(pair[1], SOL_SOCKET, SO_PEERCRED, &peer, &size);
            say("peer-inside", "%d %d", peer.pid, peer.uid);
            send(pair[1], "x", 1, 0);
            _exit(0);
        }
        char byte, control[CMSG_SPACE(sizeof(struct ucred))];
        struct iovec part = {&byte, 1};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        recvmsg(pair[0], &message, 0);
        struct ucred sender;
        memcpy(&sender, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof sender);
        yes("sender", sender.pid == child && sender.uid == 0);
        await(child, 5000);
    }
    CHILD("locks") {
        int fd = open("locked", O_CREAT | O_RDWR, 0600);
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
        fcntl(fd, F_SETLK, &lock);
        pid_t child = fork_into(CLONE_NEWPID);
        if (!child) {
            struct flock other = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
            fcntl(fd, F_GETLK, &other);
            say("holder", "%d", other.l_pid);
            _exit(0);
        }
        await(child, 5000);
        unlink("locked");
    }
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {
        {"uts", uts}, {"ns-ipc", ipc}, {"ns-net", net}, {"pid", pid}, {"pid-signals", pid_signals},
        {"pid-proc", pid_proc}, {"set-tid", set_tid}, {"setns", setns_checks}, {"nsfs", nsfs},
        {"users", users}, {"user-files", user_files}, {"mounts", mounts}, {"propagation", propagation},
        {"roots", roots}, {"new-mounts", new_mounts}, {"depth", depth}, {"between", sockets_between}, {NULL, NULL},
    };
    return run(argc, argv, groups);
}
