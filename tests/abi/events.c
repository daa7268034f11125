/* Waiting for many things: poll, select, epoll, eventfd, timerfd, signalfd, inotify. */
#include "abi.h"

#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

static int polled(int fd, short events) {
    struct pollfd one = {fd, events, 0};
    int got = poll(&one, 1, 0);
    return got < 0 ? -errno : one.revents;
}

static void nothing(int signal) { (void)signal; }

static void poll_checks(void) {
    int p[2], s[2];
    pipe(p), socketpair(AF_UNIX, SOCK_STREAM, 0, s);
    make_file("file", "x", 0600);
    int file = open("file", O_RDWR), dir = open(".", O_RDONLY), path = open("file", O_PATH), null = open("/dev/null", O_RDWR);
    const short all = POLLIN | POLLOUT | POLLPRI | POLLRDHUP | POLLRDNORM | POLLWRNORM | POLLRDBAND | POLLWRBAND;
    say("pipe-read-empty", "%#x", polled(p[0], all));
    say("pipe-write-empty", "%#x", polled(p[1], all));
    write(p[1], "x", 1);
    say("pipe-read", "%#x", polled(p[0], all));
    say("socket", "%#x", polled(s[0], all));
    write(s[1], "x", 1);
    say("socket-in", "%#x", polled(s[0], all));
    shutdown(s[1], SHUT_WR);
    say("socket-rdhup", "%#x", polled(s[0], all));
    say("socket-rdhup-unasked", "%#x", polled(s[0], POLLOUT));
    close(s[1]);
    say("socket-hup", "%#x", polled(s[0], all));
    say("file", "%#x", polled(file, all));
    say("dir", "%#x", polled(dir, all));
    say("path", "%#x", polled(path, all));
    say("dev-null", "%#x", polled(null, all));
    say("closed", "%#x", polled(99, all));
    say("negative", "%#x", polled(-1, all));
    say("nothing-asked", "%#x", polled(p[0], 0));
    val("zero-fds", poll(NULL, 0, 0));
    val("zero-fds-wait", poll(NULL, 0, 5));
    val("null", poll(NULL, 1, 0));
    val("too-many", poll(NULL, 100000, 0));
    struct pollfd two[3] = {{p[0], POLLIN, 77}, {99, POLLIN, 0}, {file, POLLOUT, 0}};
    val("count", poll(two, 3, -1));
    say("events-kept", "%d %d", two[0].fd, two[0].events);
    struct timespec bad = {0, 1000000000}, negative = {-1, 0}, soon = {0, 1000000};
    val("ppoll-nsec", ppoll(two, 1, &bad, NULL));
    val("ppoll-negative", ppoll(two, 1, &negative, NULL));
    val("ppoll-sigsetsize", syscall(SYS_ppoll, two, 1, &soon, &bad, 5));
    two[0].fd = -1;
    val("ppoll-times-out", ppoll(two, 1, &soon, NULL));
    fd_set r, w, x;
    FD_ZERO(&r);
    FD_ZERO(&w);
    FD_ZERO(&x);
    FD_SET(p[0], &r), FD_SET(p[1], &w), FD_SET(file, &r), FD_SET(file, &x);
    struct timeval now = {0, 0}, wrong = {0, -1}, large = {0, 2000000};
    val("select", select(64, &r, &w, &x, &now));
    say("select-sets", "%d %d %d %d", !!FD_ISSET(p[0], &r), !!FD_ISSET(p[1], &w), !!FD_ISSET(file, &r), !!FD_ISSET(file, &x));
    val("select-negative-n", select(-1, &r, NULL, NULL, &now));
    val("select-time-negative", select(0, NULL, NULL, NULL, &wrong));
    val("select-time-large", select(64, &r, NULL, NULL, &large));
    FD_ZERO(&r);
    FD_SET(99, &r);
    val("select-closed", select(100, &r, NULL, NULL, &now));
    val("select-closed-beyond-n", select(50, &r, NULL, NULL, &now));
    now.tv_usec = 2000;
    val("select-timeout", select(0, NULL, NULL, NULL, &now));
    say("select-timeout-left", "%ld %ld", (long)now.tv_sec, (long)now.tv_usec);
    val("select-bad-pointer", select(10, (fd_set *)8, NULL, NULL, &now));
    pid_t child = fork();
    if (!child) {
        struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
        sigaction(SIGUSR1, &action, NULL);
        val("interrupted-despite-restart", poll(NULL, 0, -1));
        val("ppoll-interrupted", ppoll(NULL, 0, NULL, NULL));
        val("select-interrupted", select(0, NULL, NULL, NULL, NULL));
        _exit(0);
    }
    for (int i = 0; i < 3; i++) settle(child), kill(child, SIGUSR1), pause_ms(20);
    status("interrupted-end", await(child, 20000));
    sigset_t block, none;
    sigemptyset(&none), sigemptyset(&block), sigaddset(&block, SIGUSR2);
    signal(SIGUSR2, nothing);
    sigprocmask(SIG_BLOCK, &block, NULL);
    raise(SIGUSR2);
    val("ppoll-mask-pending", ppoll(NULL, 0, NULL, &none));
    sigpending(&none);
    val("ppoll-mask-delivered", sigismember(&none, SIGUSR2));
}

/* What one epoll_wait gives, sorted by data. */
static void waited(const char *name, int epoll, int timeout) {
    struct epoll_event events[8];
    int count = epoll_wait(epoll, events, 8, timeout);
    char text[200] = "";
    for (int i = 0; i < count; i++)
        for (int j = i + 1; j < count; j++)
            if (events[j].data.u64 < events[i].data.u64) {
                struct epoll_event swap = events[i];
                events[i] = events[j], events[j] = swap;
            }
    for (int i = 0; i < count; i++) snprintf(text + strlen(text), 40, " %ld=%#x", (long)events[i].data.u64, events[i].events);
    if (count < 0) say(name, "%s", error_name(errno));
    else say(name, "%d%s", count, text);
}

static int control(int epoll, int op, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    return epoll_ctl(epoll, op, fd, &event);
}

static void epoll_checks(void) {
    ok("create-0", epoll_create(0));
    ok("create1-flags", epoll_create1(1));
    int e = epoll_create1(EPOLL_CLOEXEC), p[2], q[2], s[2];
    val("create1-getfd", fcntl(e, F_GETFD));
    pipe2(p, O_NONBLOCK), pipe2(q, O_NONBLOCK), socketpair(AF_UNIX, SOCK_STREAM, 0, s);
    make_file("file", "x", 0600);
    char text[64];
    waited("empty", e, 0);
    ok("add", control(e, EPOLL_CTL_ADD, p[0], EPOLLIN, 1));
    ok("add-again", control(e, EPOLL_CTL_ADD, p[0], EPOLLIN, 1));
    ok("add-dup", control(e, EPOLL_CTL_ADD, dup(p[0]), EPOLLIN, 2));
    ok("add-file", control(e, EPOLL_CTL_ADD, open("file", O_RDONLY), EPOLLIN, 3));
    ok("add-dir", control(e, EPOLL_CTL_ADD, open(".", O_RDONLY), EPOLLIN, 3));
    ok("add-self", control(e, EPOLL_CTL_ADD, e, EPOLLIN, 3));
    ok("add-bad", control(e, EPOLL_CTL_ADD, -1, EPOLLIN, 3));
    ok("add-bad-epoll", control(p[0], EPOLL_CTL_ADD, p[1], EPOLLIN, 3));
    ok("mod-absent", control(e, EPOLL_CTL_MOD, q[0], EPOLLIN, 3));
    ok("del-absent", control(e, EPOLL_CTL_DEL, q[0], EPOLLIN, 3));
    ok("op-bad", control(e, 9, q[0], EPOLLIN, 3));
    ok("add-null", epoll_ctl(e, EPOLL_CTL_ADD, q[0], NULL));
    waited("none-ready", e, 0);
    write(p[1], "xy", 2);
    waited("level", e, 0);
    waited("level-again", e, 0);
    ok("mod-edge", control(e, EPOLL_CTL_MOD, p[0], EPOLLIN | EPOLLET, 1));
    waited("edge", e, 0);
    waited("edge-again", e, 0);
    read(p[0], text, 1);
    waited("edge-after-read", e, 0);
    write(p[1], "z", 1);
    waited("edge-after-write", e, 0);
    control(e, EPOLL_CTL_MOD, p[0], EPOLLIN | EPOLLONESHOT, 1);
    waited("oneshot", e, 0);
    waited("oneshot-again", e, 0);
    control(e, EPOLL_CTL_MOD, p[0], EPOLLIN | EPOLLONESHOT, 5);
    waited("oneshot-rearmed", e, 0);
    ok("del-null-event", epoll_ctl(e, EPOLL_CTL_DEL, p[0], NULL));
    int f = epoll_create1(0);
    control(f, EPOLL_CTL_ADD, q[1], EPOLLOUT, 7), control(f, EPOLL_CTL_ADD, s[0], EPOLLIN | EPOLLOUT | EPOLLRDHUP, 8);
    waited("out", f, 0);
    close(s[1]);
    waited("peer-closed", f, 0);
    close(q[0]);
    waited("reader-closed", f, 0);
    close(q[1]);
    waited("closed-leaves", f, 0);
    struct epoll_event event;
    val("wait-0-max", epoll_wait(f, &event, 0, 0));
    val("wait-negative-max", epoll_wait(f, &event, -1, 0));
    val("wait-null", epoll_wait(f, NULL, 1, 0));
    val("wait-not-epoll", epoll_wait(p[0], &event, 1, 0));
    val("wait-bad", epoll_wait(-1, &event, 1, 0));
    val("wait-max-1", epoll_wait(f, &event, 1, 0));
    int outer = epoll_create1(0), inner = epoll_create1(0), third = epoll_create1(0);
    ok("nest", control(outer, EPOLL_CTL_ADD, inner, EPOLLIN, 9));
    ok("nest-loop", control(inner, EPOLL_CTL_ADD, outer, EPOLLIN, 9));
    ok("nest-third", control(third, EPOLL_CTL_ADD, outer, EPOLLIN, 9));
    waited("nest-empty", outer, 0);
    control(inner, EPOLL_CTL_ADD, p[0], EPOLLIN, 1);
    waited("nest-ready", outer, 0);
    say("epoll-polled", "%#x", polled(inner, POLLIN | POLLOUT));
    int g = epoll_create1(0);
    ok("exclusive", control(g, EPOLL_CTL_ADD, p[0], EPOLLIN | EPOLLEXCLUSIVE, 1));
    ok("exclusive-mod", control(g, EPOLL_CTL_MOD, p[0], EPOLLIN, 1));
    ok("exclusive-oneshot", control(g, EPOLL_CTL_ADD, p[1], EPOLLOUT | EPOLLEXCLUSIVE | EPOLLONESHOT, 1));
    ok("exclusive-epoll", control(g, EPOLL_CTL_ADD, inner, EPOLLIN | EPOLLEXCLUSIVE, 1));
    waited("exclusive-ready", g, 0);
    struct timespec wait = {0, 1000000}, bad = {0, -1};
    int h = epoll_create1(0);
    val("pwait2-timeout", syscall(SYS_epoll_pwait2, h, &event, 1, &wait, NULL, 0));
    val("pwait2-bad-time", syscall(SYS_epoll_pwait2, h, &event, 1, &bad, NULL, 0));
    val("pwait-sigsetsize", syscall(SYS_epoll_pwait, h, &event, 1, 0, &bad, 3));
    waited("timeout", h, 5);
    ok("zero-events", control(h, EPOLL_CTL_ADD, p[1], 0, 4));
    waited("zero-events-quiet", h, 0);
    close(p[0]);
    waited("zero-events-err", h, 0);
    /* a descriptor that is closed stays as long as a duplicate of it is open */
    int k = epoll_create1(0), r[2];
    pipe(r);
    int copy = dup(r[0]);
    control(k, EPOLL_CTL_ADD, r[0], EPOLLIN, 6);
    write(r[1], "x", 1), close(r[0]);
    waited("dup-keeps", k, 0);
    close(copy);
    waited("dup-closed", k, 0);
    struct gate go = gate();
    control(k, EPOLL_CTL_ADD, go.ends[0], EPOLLIN, 11);
    pid_t child = fork();
    if (!child) {
        waited("blocked", k, -1);
        _exit(0);
    }
    settle(child), gate_open(&go);
    status("blocked-end", await(child, 20000));
}

static void eventfd_checks(void) {
    uint64_t value = 0;
    int e = eventfd(3, EFD_NONBLOCK | EFD_CLOEXEC);
    say("flags", "%#x %d", fcntl(e, F_GETFL), fcntl(e, F_GETFD));
    val("read", read(e, &value, 8));
    val("read-is", (long)value);
    val("read-empty", read(e, &value, 8));
    value = 5;
    val("write", write(e, &value, 8)), write(e, &value, 8);
    val("read-16", read(e, &value, 16));
    val("read-sum", (long)value);
    val("read-short", read(e, &value, 7));
    val("write-short", write(e, &value, 7));
    value = UINT64_MAX;
    val("write-max", write(e, &value, 8));
    value = UINT64_MAX - 1;
    val("write-max-1", write(e, &value, 8));
    value = 1;
    val("write-overflow", write(e, &value, 8));
    say("poll-full", "%#x", polled(e, POLLIN | POLLOUT));
    read(e, &value, 8);
    say("poll-empty", "%#x", polled(e, POLLIN | POLLOUT));
    value = 0;
    val("write-0", write(e, &value, 8));
    say("poll-after-0", "%#x", polled(e, POLLIN | POLLOUT));
    int s = eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK);
    for (int i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof name, "semaphore-%d", i);
        val(name, read(s, &value, 8) < 0 ? -1 : (long)value);
    }
    ok("flags-bad", eventfd(0, 2));
    val("lseek", lseek(e, 0, SEEK_SET));
    val("pread", pread(e, &value, 8, 0));
    val("null", read(e, NULL, 8));
}

static void timerfd_checks(void) {
    uint64_t count = 0;
    struct itimerspec soon = {{0, 0}, {0, 1000000}}, old, bad = {{0, 0}, {0, 1000000000}}, far = {{7, 0}, {1000, 0}}, off = {{0, 0}, {0, 0}};
    int t = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    val("read-unarmed", read(t, &count, 8));
    ok("clock-bad", timerfd_create(77, 0));
    ok("clock-cpu", timerfd_create(CLOCK_PROCESS_CPUTIME_ID, 0));
    ok("clock-boottime", timerfd_create(CLOCK_BOOTTIME, 0));
    ok("flags-bad", timerfd_create(CLOCK_MONOTONIC, 1));
    ok("set-nsec", timerfd_settime(t, 0, &bad, NULL));
    ok("set-flags", timerfd_settime(t, 8, &soon, NULL));
    ok("set-null", timerfd_settime(t, 0, NULL, NULL));
    ok("set-not-timer", timerfd_settime(0, 0, &soon, NULL));
    ok("set-bad", timerfd_settime(-1, 0, &soon, NULL));
    ok("set-far", timerfd_settime(t, 0, &far, NULL));
    ok("gettime", timerfd_gettime(t, &old));
    say("gettime-is", "%ld.%ld %s", (long)old.it_interval.tv_sec, old.it_interval.tv_nsec, old.it_value.tv_sec >= 900 ? "far" : "near");
    ok("set-soon", timerfd_settime(t, 0, &soon, &old));
    say("set-old", "%ld %s", (long)old.it_interval.tv_sec, old.it_value.tv_sec >= 900 ? "far" : "near");
    struct pollfd one = {t, POLLIN, 0};
    val("poll", poll(&one, 1, 20000));
    val("read-short", read(t, &count, 4));
    val("read", read(t, &count, 8));
    val("read-count", (long)count);
    val("read-again", read(t, &count, 8));
    timerfd_gettime(t, &old);
    say("expired", "%ld %ld", (long)old.it_value.tv_sec, old.it_value.tv_nsec);
    soon.it_interval.tv_nsec = 1000000;
    timerfd_settime(t, 0, &soon, NULL);
    pause_ms(20);
    val("interval-read", read(t, &count, 8));
    yes("interval-many", count >= 10);
    timerfd_settime(t, 0, &off, NULL);
    val("disarmed-read", read(t, &count, 8));
    struct itimerspec past = {{0, 0}, {1, 0}};
    timerfd_settime(t, TFD_TIMER_ABSTIME, &past, NULL);
    poll(&one, 1, 20000);
    val("past-read", read(t, &count, 8));
    val("write", write(t, &count, 8));
    int r = timerfd_create(CLOCK_REALTIME, 0);
    ok("cancel-on-set", timerfd_settime(r, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &past, NULL));
    val("blocking-read", read(r, &count, 8));
    val("blocking-count", (long)count);
}

static void signalfd_checks(void) {
    sigset_t set;
    struct signalfd_siginfo info[3];
    sigemptyset(&set), sigaddset(&set, SIGUSR1), sigaddset(&set, SIGRTMIN + 1), sigaddset(&set, SIGKILL);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = (int)ok("create", signalfd(-1, &set, SFD_NONBLOCK));
    val("read-none", read(fd, info, sizeof info));
    say("poll-none", "%#x", polled(fd, POLLIN));
    raise(SIGUSR1), raise(SIGUSR1);
    union sigval value = {.sival_int = 42};
    sigqueue(getpid(), SIGRTMIN + 1, value), sigqueue(getpid(), SIGRTMIN + 1, value);
    say("poll", "%#x", polled(fd, POLLIN));
    val("read-short", read(fd, info, 100));
    val("read", read(fd, info, sizeof info));
    say("first", "%s code %d self %d", signal_name((int)info[0].ssi_signo), info[0].ssi_code, (pid_t)info[0].ssi_pid == getpid());
    say("second", "%s code %d int %d", signal_name((int)info[1].ssi_signo), info[1].ssi_code, info[1].ssi_int);
    say("third", "%s", signal_name((int)info[2].ssi_signo));
    val("read-empty", read(fd, info, sizeof info));
    ok("flags", signalfd(-1, &set, 1));
    ok("not-signalfd", signalfd(0, &set, 0));
    ok("bad-fd", signalfd(99, &set, 0));
    val("size", syscall(SYS_signalfd4, -1, &set, 4, 0));
    sigset_t other;
    sigemptyset(&other), sigaddset(&other, SIGUSR2);
    sigprocmask(SIG_BLOCK, &other, NULL);
    yes("change-same-fd", signalfd(fd, &other, 0) == fd);
    raise(SIGUSR1);
    val("changed-read", read(fd, info, sizeof info));
    raise(SIGUSR2);
    val("changed-read-2", read(fd, info, sizeof info));
    val("write", write(fd, info, 128));
}

static void inotify_read(const char *name, int fd, int first, int second) {
    char buffer[4096] __attribute__((aligned(8))), text[1000] = "";
    ssize_t got = read(fd, buffer, sizeof buffer);
    for (ssize_t at = 0; at < got;) {
        struct inotify_event *event = (struct inotify_event *)(buffer + at);
        snprintf(text + strlen(text), 80, " [%s %#x%s%s %s]", event->wd == first ? "1" : event->wd == second ? "2" : "?", event->mask,
                 event->len ? " " : "", event->len ? event->name : "", event->cookie ? "cookie" : "-");
        at += (ssize_t)sizeof *event + event->len;
    }
    if (got < 0) say(name, "%s", error_name(errno));
    else say(name, "%s", text + (text[0] == ' '));
}

static void inotify_checks(void) {
    int i = inotify_init1(IN_NONBLOCK);
    ok("flags", inotify_init1(1));
    mkdir("d", 0755), mkdir("e", 0755), make_file("d/f", "x", 0644);
    int d = inotify_add_watch(i, "d", IN_ALL_EVENTS), f = inotify_add_watch(i, "d/f", IN_ALL_EVENTS);
    say("watches", "%d %d", d, f);
    ok("add-absent", inotify_add_watch(i, "absent", IN_ALL_EVENTS));
    ok("add-0", inotify_add_watch(i, "d", 0));
    ok("add-onlydir", inotify_add_watch(i, "d/f", IN_ONLYDIR | IN_OPEN));
    ok("add-not-inotify", inotify_add_watch(0, "d", IN_OPEN));
    ok("add-mask-create-existing", inotify_add_watch(i, "d", IN_OPEN | IN_MASK_CREATE));
    ok("add-create-add", inotify_add_watch(i, "e", IN_OPEN | IN_MASK_CREATE | IN_MASK_ADD));
    val("add-same-wd", inotify_add_watch(i, "d", IN_ALL_EVENTS) == d);
    inotify_read("quiet", i, d, f);
    int fd = open("d/f", O_RDWR);
    inotify_read("open", i, d, f);
    char byte;
    read(fd, &byte, 1);
    inotify_read("read", i, d, f);
    write(fd, "yy", 2), write(fd, "zz", 2);
    inotify_read("write-merged", i, d, f);
    ftruncate(fd, 0);
    inotify_read("truncate", i, d, f);
    close(fd);
    inotify_read("close-write", i, d, f);
    close(open("d/f", O_RDONLY));
    inotify_read("close-nowrite", i, d, f);
    close(open("d/f", O_WRONLY | O_TRUNC));
    inotify_read("open-trunc", i, d, f);
    chmod("d/f", 0600);
    inotify_read("chmod", i, d, f);
    close(creat("d/new", 0600));
    inotify_read("creat", i, d, f);
    link("d/new", "d/hard"), symlink("x", "d/sym"), mkdir("d/sub", 0700), mkfifo("d/fifo", 0600);
    inotify_read("link-symlink-mkdir-fifo", i, d, f);
    rename("d/new", "d/newer");
    inotify_read("rename", i, d, f);
    rename("d/newer", "e/out");
    inotify_read("rename-out", i, d, f);
    rename("e/out", "d/in");
    inotify_read("rename-in", i, d, f);
    unlink("d/hard");
    inotify_read("unlink-hard", i, d, f);
    rmdir("d/sub");
    inotify_read("rmdir", i, d, f);
    unlink("d/f");
    inotify_read("unlink-watched", i, d, f);
    ok("rm-gone", inotify_rm_watch(i, f));
    ok("rm", inotify_rm_watch(i, d));
    inotify_read("rm-ignored", i, d, f);
    ok("rm-again", inotify_rm_watch(i, d));
    ok("rm-not-inotify", inotify_rm_watch(0, 1));
    int one = inotify_add_watch(i, "d", IN_CREATE | IN_ONESHOT);
    close(creat("d/a", 0600)), close(creat("d/b", 0600));
    inotify_read("oneshot", i, one, -1);
    int self = inotify_add_watch(i, "e", IN_DELETE_SELF | IN_MOVE_SELF);
    rename("e", "g");
    inotify_read("move-self", i, self, -1);
    rmdir("g");
    inotify_read("delete-self", i, self, -1);
    int x = inotify_add_watch(i, "d", IN_DELETE | IN_EXCL_UNLINK);
    unlink("d/a");
    int pending = 0;
    ok("fionread", ioctl(i, FIONREAD, &pending));
    val("fionread-is", pending);
    char tiny[16];
    val("read-tiny", read(i, tiny, sizeof tiny));
    inotify_read("delete", i, x, -1);
    say("poll-empty", "%#x", polled(i, POLLIN));
}

static long submit(aio_context_t context, struct iocb *one) {
    struct iocb *list[] = {one};
    return syscall(SYS_io_submit, context, 1L, list);
}

/* What came of a transfer. */
static void result(const char *name, aio_context_t context) {
    struct io_event event = {0};
    struct timespec second = {5, 0};
    long count = syscall(SYS_io_getevents, context, 1L, 1L, &event, &second);
    say(name, "%ld data %llu result %lld %lld", count, (unsigned long long)event.data, (long long)event.res, (long long)event.res2);
}

static void aio_checks(void) {
    aio_context_t context = 0, other = 7;
    ok("setup-none", syscall(SYS_io_setup, 0, &context));
    ok("setup-taken", syscall(SYS_io_setup, 8, &other));
    ok("setup-fault", syscall(SYS_io_setup, 8, NULL));
    ok("setup-absurd", syscall(SYS_io_setup, 0x7fffffff, &context));
    ok("setup", syscall(SYS_io_setup, 8, &context));
    yes("setup-number", context != 0);
    int file = open("f", O_RDWR | O_CREAT, 0600), wake = eventfd(0, EFD_NONBLOCK);
    char text[16] = "", more[16] = "";
    struct iocb write_one = {.aio_data = 1, .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = (unsigned)file,
                             .aio_buf = (uintptr_t) "hello", .aio_nbytes = 5, .aio_offset = 3,
                             .aio_flags = IOCB_FLAG_RESFD, .aio_resfd = (unsigned)wake};
    val("write", submit(context, &write_one));
    result("write-is", context);
    uint64_t woken = 0;
    val("wake", read(wake, &woken, 8));
    val("wake-is", (long)woken);
    struct iocb read_one = {.aio_data = 2, .aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (unsigned)file,
                            .aio_buf = (uintptr_t)text, .aio_nbytes = 16, .aio_offset = 1};
    val("read", submit(context, &read_one));
    result("read-is", context);
    say("read-text", "%s", text + 2);
    struct iovec parts[] = {{text, 4}, {more, 8}};
    struct iocb vector = {.aio_data = 3, .aio_lio_opcode = IOCB_CMD_PREADV, .aio_fildes = (unsigned)file,
                          .aio_buf = (uintptr_t)parts, .aio_nbytes = 2, .aio_offset = 3};
    struct iocb *both[] = {&read_one, &vector};
    val("two", syscall(SYS_io_submit, context, 2L, both));
    struct io_event events[4];
    struct timespec none = {0, 0};
    val("two-are", syscall(SYS_io_getevents, context, 2L, 4L, events, NULL));
    val("empty", syscall(SYS_io_getevents, context, 0L, 4L, events, NULL));
    val("empty-timeout", syscall(SYS_io_getevents, context, 1L, 4L, events, &none));
    val("more-than-room", syscall(SYS_io_getevents, context, 5L, 4L, events, NULL));
    struct iocb sync = {.aio_lio_opcode = IOCB_CMD_FSYNC, .aio_fildes = (unsigned)file};
    if (submit(context, &sync) == 1) result("fsync", context);
    struct iocb bad = read_one;
    bad.aio_fildes = 99;
    ok("bad-fd", submit(context, &bad));
    bad = read_one, bad.aio_lio_opcode = 77;
    ok("bad-operation", submit(context, &bad));
    bad = read_one, bad.aio_reserved2 = 1;
    ok("reserved", submit(context, &bad));
    bad = read_one, bad.aio_offset = -1;
    ok("bad-offset", submit(context, &bad));
    bad = read_one, bad.aio_flags = IOCB_FLAG_RESFD, bad.aio_resfd = (unsigned)file;
    ok("bad-wake", submit(context, &bad));
    int only = open("f", O_WRONLY);
    bad = read_one, bad.aio_fildes = (unsigned)only;
    ok("not-readable", submit(context, &bad));
    bad = read_one, bad.aio_buf = 8;
    long handed = submit(context, &bad);
    if (handed == 1) result("fault", context);
    else ok("fault", handed);
    ok("submit-none", syscall(SYS_io_submit, context, 0L, both));
    ok("submit-negative", syscall(SYS_io_submit, context, -1L, both));
    ok("submit-fault", syscall(SYS_io_submit, context, 1L, NULL));
    ok("cancel", syscall(SYS_io_cancel, context, &read_one, events));
    ok("destroy", syscall(SYS_io_destroy, context));
    ok("destroy-again", syscall(SYS_io_destroy, context));
    ok("submit-gone", submit(context, &read_one));
    ok("get-gone", syscall(SYS_io_getevents, context, 0L, 1L, events, &none));
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"poll", poll_checks}, {"epoll", epoll_checks}, {"eventfd", eventfd_checks},
                                           {"timerfd", timerfd_checks}, {"signalfd", signalfd_checks}, {"inotify", inotify_checks}, {"aio", aio_checks}, {0}};
    return run(argc, argv, groups);
}
