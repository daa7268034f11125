/* Signals: dispositions, masks, order, what a handler is told, restarting, waiting for them. */
#include "abi.h"

#include <linux/futex.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <ucontext.h>

static char order[256];
static volatile sig_atomic_t count;
static siginfo_t told;
static volatile bool on_alternate, blocked_self, blocked_other;
static char alternate[65536] __attribute__((aligned(16)));

static void record(int signal) {
    snprintf(order + strlen(order), 20, "%s ", signal_name(signal));
    count++;
}

static void informed(int signal, siginfo_t *info, void *context) {
    char here;
    (void)signal, (void)context;
    told = *info;
    on_alternate = &here >= alternate && &here < alternate + sizeof alternate;
    sigset_t now;
    sigprocmask(SIG_SETMASK, NULL, &now);
    blocked_self = sigismember(&now, signal), blocked_other = sigismember(&now, SIGUSR2);
    count++;
}

static void install(int signal, void (*handler)(int), int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigaction(signal, &action, NULL);
}

static void install_informed(int signal, int flags, int also) {
    struct sigaction action = {.sa_sigaction = informed, .sa_flags = SA_SIGINFO | flags};
    if (also) sigaddset(&action.sa_mask, also);
    sigaction(signal, &action, NULL);
}

static void mask(int how, int signal) {
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, signal);
    sigprocmask(how, &set, NULL);
}

static void default_checks(void) {
    for (int signal = 1; signal <= 64; signal++) {
        if (signal == 32 || signal == 33) continue;
        char name[32];
        pid_t child = fork();
        if (!child) {
            raise(signal);
            _exit(7);
        }
        int s = 0;
        waitpid(child, &s, WUNTRACED);
        snprintf(name, sizeof name, "default-%s", signal_name(signal));
        status(name, s);
        if (WIFSTOPPED(s)) kill(child, SIGKILL), waitpid(child, &s, 0);
    }
}

static void action_checks(void) {
    struct sigaction old, action = {.sa_handler = record, .sa_flags = SA_RESTART | SA_NODEFER};
    ok("kill-catch", sigaction(SIGKILL, &action, NULL));
    ok("kill-ignore", signal(SIGKILL, SIG_IGN) == SIG_ERR ? -1 : 0);
    ok("stop-catch", sigaction(SIGSTOP, &action, NULL));
    ok("kill-query", sigaction(SIGKILL, NULL, &old));
    ok("zero", (long)syscall(SYS_rt_sigaction, 0, NULL, NULL, 8));
    ok("65", (long)syscall(SYS_rt_sigaction, 65, NULL, NULL, 8));
    ok("size", (long)syscall(SYS_rt_sigaction, SIGUSR1, NULL, NULL, 4));
    ok("bad-pointer", (long)syscall(SYS_rt_sigaction, SIGUSR1, 8L, NULL, 8));
    sigaddset(&action.sa_mask, SIGKILL), sigaddset(&action.sa_mask, SIGUSR2);
    ok("set", sigaction(SIGUSR1, &action, NULL));
    sigaction(SIGUSR1, NULL, &old);
    say("get", "%s flags %#x mask-kill %d mask-usr2 %d", old.sa_handler == record ? "same" : "other", old.sa_flags & ~0x04000000,
        sigismember(&old.sa_mask, SIGKILL), sigismember(&old.sa_mask, SIGUSR2));
    install(SIGUSR1, record, SA_RESETHAND);
    raise(SIGUSR1);
    sigaction(SIGUSR1, NULL, &old);
    yes("resethand", old.sa_handler == SIG_DFL);
    order[0] = 0, count = 0;
    install(SIGUSR1, record, 0), install(SIGUSR2, record, 0);
    install_informed(SIGHUP, 0, SIGUSR2);
    raise(SIGHUP);
    say("mask-in-handler", "self %d other %d", blocked_self, blocked_other);
    install_informed(SIGHUP, SA_NODEFER, 0);
    raise(SIGHUP);
    say("mask-nodefer", "self %d other %d", blocked_self, blocked_other);
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate}, was;
    install_informed(SIGHUP, SA_ONSTACK, 0);
    raise(SIGHUP);
    yes("onstack-without", on_alternate);
    ok("altstack", sigaltstack(&stack, NULL));
    raise(SIGHUP);
    yes("onstack", on_alternate);
    install_informed(SIGHUP, 0, 0);
    raise(SIGHUP);
    yes("not-onstack", on_alternate);
    sigaltstack(NULL, &was);
    say("altstack-get", "%d %zu %#x", was.ss_sp == alternate, was.ss_size, was.ss_flags);
    stack.ss_size = 100;
    ok("altstack-small", sigaltstack(&stack, NULL));
    stack.ss_flags = 8, stack.ss_size = sizeof alternate;
    ok("altstack-flags", sigaltstack(&stack, NULL));
    stack.ss_flags = SS_DISABLE;
    ok("altstack-disable", sigaltstack(&stack, NULL));
    sigaltstack(NULL, &was);
    say("altstack-disabled", "%#x", was.ss_flags);
    stack.ss_flags = (int)(1U << 31);
    ok("altstack-autodisarm", sigaltstack(&stack, NULL));
    CHILD("exec-resets") { say("fork-keeps", "%s", (sigaction(SIGUSR1, NULL, &old), old.sa_handler == record) ? "handler" : "other"); }
    ok("raise-0", raise(0));
    ok("kill-self-0", kill(getpid(), 0));
    ok("kill-absent", kill(0x3fffffff, 0));
    ok("kill-absent-group", kill(-0x3fffffff, 0));
    ok("kill-65", kill(getpid(), 65));
    ok("kill-negative", kill(getpid(), -1));
    ok("tgkill-wrong-group", (long)syscall(SYS_tgkill, 0x3fffffff, gettid(), 0));
    ok("tgkill-0", (long)syscall(SYS_tgkill, 0, gettid(), 0));
    ok("tkill-0", (long)syscall(SYS_tkill, 0, 0));
    ok("kill-0-group", kill(0, 0));
    CHILD("user") {
        as_user();
        ok("user-kill-parent", kill(getppid(), 0));
        ok("user-kill-self", kill(getpid(), 0));
    }
}

static void order_checks(void) {
    sigset_t all, pending, before;
    union sigval value = {.sival_int = 7};
    sigfillset(&all), sigdelset(&all, SIGALRM);
    sigprocmask(SIG_SETMASK, &all, &before);
    for (int signal = 1; signal <= 64; signal++)
        if (signal != SIGKILL && signal != SIGSTOP && signal != 32 && signal != 33) install(signal, record, 0);
    raise(SIGUSR2), raise(SIGUSR1), raise(SIGUSR1), raise(SIGHUP);
    sigqueue(getpid(), SIGRTMIN + 3, value), sigqueue(getpid(), SIGRTMIN + 1, value), sigqueue(getpid(), SIGRTMIN + 3, value);
    sigpending(&pending);
    say("pending", "%d %d %d %d", sigismember(&pending, SIGUSR1), sigismember(&pending, SIGHUP), sigismember(&pending, SIGRTMIN + 3),
        sigismember(&pending, SIGTERM));
    sigset_t wait;
    siginfo_t info;
    struct timespec zero = {0, 0};
    sigemptyset(&wait), sigaddset(&wait, SIGRTMIN + 3), sigaddset(&wait, SIGUSR2), sigaddset(&wait, SIGRTMIN + 1);
    for (int i = 0; i < 5; i++) {
        char name[32];
        snprintf(name, sizeof name, "sigtimedwait-%d", i);
        int got = sigtimedwait(&wait, &info, &zero);
        if (got < 0) ok(name, -1);
        else say(name, "%s code %d value %d", signal_name(got), info.si_code, info.si_code == SI_QUEUE ? info.si_value.sival_int : 0);
    }
    sigqueue(getpid(), SIGRTMIN + 5, value), sigqueue(getpid(), SIGRTMIN + 4, value), raise(SIGTERM), raise(SIGSEGV);
    order[0] = 0;
    sigprocmask(SIG_SETMASK, &before, NULL);
    say("delivered", "%s", order);
    order[0] = 0;
    /* each handler starts before the one before it has run: lowest last to be entered, first to run */
    sigprocmask(SIG_SETMASK, &all, NULL);
    install(SIGUSR1, SIG_IGN, 0);
    raise(SIGUSR1);
    sigpending(&pending);
    say("ignored-blocked-pending", "%d", sigismember(&pending, SIGUSR1));
    raise(SIGUSR2);
    install(SIGUSR2, SIG_IGN, 0);
    sigpending(&pending);
    say("ignore-drops-pending", "%d", sigismember(&pending, SIGUSR2));
    install(SIGCHLD, SIG_DFL, 0);
    raise(SIGCONT), raise(SIGTSTP);
    sigpending(&pending);
    say("stop-drops-cont", "%d %d", sigismember(&pending, SIGCONT), sigismember(&pending, SIGTSTP));
    raise(SIGCONT);
    sigpending(&pending);
    say("cont-drops-stop", "%d %d", sigismember(&pending, SIGCONT), sigismember(&pending, SIGTSTP));
    CHILD("fork-pending") {
        sigpending(&pending);
        say("child-pending", "%d", sigismember(&pending, SIGCONT));
    }
    struct timespec bad = {0, -1};
    ok("sigtimedwait-bad-time", sigtimedwait(&wait, &info, &bad));
    ok("sigtimedwait-size", (long)syscall(SYS_rt_sigtimedwait, &wait, &info, &zero, 4));
    ok("sigprocmask-how", (long)syscall(SYS_rt_sigprocmask, 3, &wait, NULL, 8));
    ok("sigprocmask-size", (long)syscall(SYS_rt_sigprocmask, 0, &wait, NULL, 16));
    sigprocmask(SIG_SETMASK, NULL, &pending);
    say("kill-never-blocked", "%d %d", sigismember(&pending, SIGKILL), sigismember(&pending, SIGSTOP));
}

static void told_line(const char *name) {
    const char *who = told.si_pid == getpid() ? "self" : told.si_pid == 0 ? "0" : "other";
    say(name, "%s code %d errno %d pid %s uid %d", signal_name(told.si_signo), told.si_code, told.si_errno, who, told.si_uid);
}

static void info_checks(void) {
    union sigval value = {.sival_int = 1234};
    install_informed(SIGUSR1, 0, 0), install_informed(SIGRTMIN, 0, 0), install_informed(SIGCHLD, 0, 0), install_informed(SIGALRM, 0, 0);
    kill(getpid(), SIGUSR1);
    told_line("kill");
    raise(SIGUSR1);
    told_line("raise");
    sigqueue(getpid(), SIGRTMIN, value);
    told_line("sigqueue");
    val("sigqueue-value", told.si_value.sival_int);
    siginfo_t made = {.si_signo = SIGUSR1, .si_code = SI_USER};
    ok("rt-sigqueueinfo-user-self", (long)syscall(SYS_rt_sigqueueinfo, getpid(), SIGUSR1, &made));
    CHILD("other") { ok("rt-sigqueueinfo-user-other", (long)syscall(SYS_rt_sigqueueinfo, getppid(), SIGUSR1, &made)); }
    made.si_code = -77;
    ok("rt-sigqueueinfo-own-code", (long)syscall(SYS_rt_sigqueueinfo, getpid(), SIGUSR1, &made));
    val("own-code", told.si_code);
    count = 0;
    pid_t child = fork();
    if (!child) _exit(3);
    while (!count) pause_ms(1);
    say("sigchld-exit", "%s code %d status %d pid %d", signal_name(told.si_signo), told.si_code, told.si_status, told.si_pid == child);
    waitpid(child, NULL, 0);
    count = 0, child = fork();
    if (!child) raise(SIGKILL);
    while (!count) pause_ms(1);
    say("sigchld-killed", "code %d status %d", told.si_code, told.si_status);
    waitpid(child, NULL, 0);
    count = 0, child = fork();
    if (!child) raise(SIGSTOP), _exit(0);
    while (!count) pause_ms(1);
    say("sigchld-stopped", "code %d status %d", told.si_code, told.si_status);
    count = 0, kill(child, SIGCONT);
    while (!count) pause_ms(1);
    while (waitpid(child, NULL, 0) < 0) {}
    struct sigaction nocldstop = {.sa_sigaction = informed, .sa_flags = SA_SIGINFO | SA_NOCLDSTOP};
    sigaction(SIGCHLD, &nocldstop, NULL);
    count = 0, child = fork();
    if (!child) raise(SIGSTOP), _exit(0);
    waitpid(child, NULL, WUNTRACED);
    val("nocldstop", count);
    kill(child, SIGKILL);
    while (waitpid(child, NULL, 0) < 0) {}
    val("nocldstop-death", count);
    struct itimerval timer = {{0, 0}, {0, 1000}};
    count = 0, setitimer(ITIMER_REAL, &timer, NULL);
    while (!count) pause_ms(1);
    told_line("itimer");
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 5};
    timer_t id;
    timer_create(CLOCK_MONOTONIC, &event, &id);
    struct itimerspec soon = {{0, 0}, {0, 1000000}};
    count = 0, timer_settime(id, 0, &soon, NULL);
    while (!count) pause_ms(1);
    say("timer", "%s code %d overrun %d value %d", signal_name(told.si_signo), told.si_code, told.si_overrun, told.si_value.sival_int);
    struct sigaction ignore = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};
    sigaction(SIGCHLD, &ignore, NULL);
    child = fork();
    if (!child) _exit(0);
    ok("nocldwait", waitpid(child, NULL, 0));
    signal(SIGCHLD, SIG_IGN);
    child = fork();
    if (!child) _exit(0);
    ok("sigchld-ignored", waitpid(child, NULL, 0));
}

/* A call that waits, in a child that is then sent SIGUSR1 with these flags, and later let go. */
enum waiting { READ, NANOSLEEP, FUTEX, FUTEX_TIMED, WAITPID, RECV, RECV_TIMED, POLL, SUSPEND, PAUSE, ACCEPT, WRITE, LAST };

static void interrupted(enum waiting what, bool restart) {
    static const char *const names[] = {"read", "nanosleep", "futex", "futex-timed", "waitpid", "recv", "recv-timed", "poll",
                                        "sigsuspend", "pause", "accept", "write"};
    char name[48], text[70000];
    snprintf(name, sizeof name, "%s-%s", names[what], restart ? "restart" : "plain");
    int p[2], s[2];
    uint32_t *word = shared_page();
    pipe(p), socketpair(AF_UNIX, SOCK_STREAM, 0, s);
    if (what == WRITE) write(p[1], text, 65536);
    pid_t child = fork();
    if (!child) {
        install(SIGUSR1, record, restart ? SA_RESTART : 0);
        struct timespec rest = {60, 0}, minute = {60, 0};
        struct timeval limit = {60, 0};
        sigset_t none;
        sigemptyset(&none);
        long result = 0;
        if (what == READ) result = read(p[0], text, 1);
        if (what == NANOSLEEP) result = nanosleep(&rest, &rest);
        if (what == FUTEX) result = syscall(SYS_futex, word, FUTEX_WAIT, 0, NULL, NULL, 0);
        if (what == FUTEX_TIMED) result = syscall(SYS_futex, word, FUTEX_WAIT, 0, &minute, NULL, 0);
        if (what == RECV_TIMED) setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        if (what == RECV || what == RECV_TIMED) result = recv(s[0], text, 1, 0);
        if (what == POLL) result = poll(NULL, 0, 60000);
        if (what == SUSPEND) result = sigsuspend(&none);
        if (what == PAUSE) result = pause();
        if (what == WRITE) result = write(p[1], text, 100);
        if (what == WAITPID) {
            pid_t grandchild = fork();
            if (!grandchild) {
                read(p[0], text, 1);
                _exit(0);
            }
            result = waitpid(grandchild, NULL, 0) == grandchild ? 0 : -1;
            if (result) kill(grandchild, SIGKILL);
        }
        if (what == ACCEPT) {
            int listener = socket(AF_UNIX, SOCK_STREAM, 0);
            struct sockaddr address = {.sa_family = AF_UNIX};
            bind(listener, &address, sizeof(sa_family_t)), listen(listener, 1);
            result = accept(listener, NULL, NULL);
        }
        int error = errno;
        say(name, "%s handled %d", result < 0 ? error_name(error) : "completed", count);
        _exit(0);
    }
    settle(child);
    kill(child, SIGUSR1);
    if (restart) {
        pause_ms(20), settle(child);
        if (what == WRITE) read(p[0], text, sizeof text);
        else write(p[1], "x", 1), write(s[1], "x", 1);
        *word = 1;
        syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
    }
    int s_ = await(child, 20000);
    if (s_) status(name, s_);
}

static void restart_checks(void) {
    for (enum waiting what = READ; what < LAST; what++) {
        interrupted(what, false);
        if (what != ACCEPT) interrupted(what, true);
    }
    CHILD("sigsuspend-mask") {
        install(SIGUSR1, record, 0), install(SIGUSR2, record, 0);
        mask(SIG_BLOCK, SIGUSR1), mask(SIG_BLOCK, SIGUSR2);
        raise(SIGUSR2), raise(SIGUSR1);
        sigset_t only;
        sigfillset(&only), sigdelset(&only, SIGUSR1);
        order[0] = 0;
        ok("sigsuspend", sigsuspend(&only));
        say("sigsuspend-delivered", "%s", order);
        sigprocmask(SIG_SETMASK, NULL, &only);
        say("sigsuspend-restored", "%d", sigismember(&only, SIGUSR1));
    }
    CHILD("sigwait-blocking") {
        mask(SIG_BLOCK, SIGALRM);
        alarm(1);
        sigset_t set;
        int got = 0;
        sigemptyset(&set), sigaddset(&set, SIGALRM);
        sigwait(&set, &got);
        say("sigwait", "%s", signal_name(got));
        struct timespec brief = {0, 2000000};
        ok("sigtimedwait-timeout", sigtimedwait(&set, NULL, &brief));
    }
    CHILD("siglimit") {
        struct rlimit limit = {2, 2};
        union sigval value = {0};
        setrlimit(RLIMIT_SIGPENDING, &limit);
        setresuid(4321, 4321, 4321);
        mask(SIG_BLOCK, SIGRTMIN);
        for (int i = 0; i < 4; i++) {
            char name[32];
            snprintf(name, sizeof name, "sigpending-limit-%d", i);
            ok(name, sigqueue(getpid(), SIGRTMIN, value));
        }
    }
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"default", default_checks}, {"action", action_checks}, {"order", order_checks},
                                           {"info", info_checks}, {"restart", restart_checks}, {0}};
    return run(argc, argv, groups);
}
