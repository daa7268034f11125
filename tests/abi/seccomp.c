/* Filters of system calls: strict, programs, what they return, who has them. */
#include "abi.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RET(value) BPF_STMT(BPF_RET | BPF_K, value)

static long seccomp(unsigned operation, unsigned flags, void *arguments) { return syscall(SYS_seccomp, operation, flags, arguments); }

static long install(unsigned flags, struct sock_filter *code, unsigned short length) {
    struct sock_fprog program = {length, code};
    return seccomp(SECCOMP_SET_MODE_FILTER, flags, &program);
}

/* One call, by its number, comes to this; all others are let through. */
static long on_call(unsigned flags, unsigned number, unsigned action) {
    struct sock_filter code[] = {LOAD(nr), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), RET(action), RET(SECCOMP_RET_ALLOW)};
    return install(flags, code, 4);
}

static void no_new(void) { prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }

static const char *line_of_status(const char *key) {
    static char text[8192];
    int fd = open("/proc/self/status", O_RDONLY);
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    text[got > 0 ? got : 0] = 0;
    char *at = strstr(text, key);
    if (!at) return "none";
    at += strlen(key);
    at[strcspn(at, "\n")] = 0;
    return at;
}

static void arguments(void) {
    CHILD("operations") {
        val("unknown", seccomp(99, 0, NULL));
        val("strict-flags", seccomp(SECCOMP_SET_MODE_STRICT, 1, NULL));
        val("strict-arguments", seccomp(SECCOMP_SET_MODE_STRICT, 0, "x"));
        unsigned known[] = {SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD, SECCOMP_RET_TRAP, SECCOMP_RET_ERRNO, SECCOMP_RET_LOG, SECCOMP_RET_ALLOW, 0x1234};
        for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
            char name[32];
            snprintf(name, sizeof name, "action-%x", known[i]);
            val(name, seccomp(SECCOMP_GET_ACTION_AVAIL, 0, &known[i]));
        }
        val("action-flags", seccomp(SECCOMP_GET_ACTION_AVAIL, 1, &known[0]));
        val("action-bad", seccomp(SECCOMP_GET_ACTION_AVAIL, 0, (void *)8));
        val("filter-flags", on_call(0x8000, 1, 0));
        val("filter-bad", seccomp(SECCOMP_SET_MODE_FILTER, 0, (void *)8));
        val("mode", prctl(PR_GET_SECCOMP));
        val("prctl-mode", prctl(PR_SET_SECCOMP, 3, NULL));
    }
    CHILD("programs") {
        no_new();
        struct sock_filter ret = RET(SECCOMP_RET_ALLOW);
        struct sock_filter bad[][2] = {
            {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 2), ret}, {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 64), ret},
            {BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 0), ret}, {BPF_STMT(BPF_ALU | BPF_DIV | BPF_K, 0), ret},
            {BPF_STMT(BPF_ALU | BPF_MOD | BPF_K, 2), ret}, {BPF_STMT(BPF_ALU | BPF_LSH | BPF_K, 32), ret},
            {BPF_STMT(BPF_LD | BPF_MEM, 0), ret}, {BPF_STMT(BPF_ST, 16), ret}, {BPF_JUMP(BPF_JMP | BPF_JA, 1, 0, 0), ret},
            {BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0), ret}, {ret, LOAD(nr)}, {{0xffff, 0, 0, 0}, ret},
            {BPF_STMT(BPF_LD | BPF_W | BPF_IND, 0), ret},
        };
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            char name[32];
            snprintf(name, sizeof name, "bad-%zu", i);
            val(name, install(0, bad[i], 2));
        }
        val("empty", install(0, &ret, 0));
        val("too-long", install(0, &ret, 4097));
        val("bad-address", install(0, (void *)8, 1));
        val("good", install(0, &ret, 1));
        struct sock_filter sums[] = {LOAD(args[0]), BPF_STMT(BPF_ALU | BPF_ADD | BPF_K, 3), BPF_STMT(BPF_ST, 0), BPF_STMT(BPF_LDX | BPF_MEM, 0),
                                     BPF_STMT(BPF_MISC | BPF_TXA, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1003, 0, 1), RET(SECCOMP_RET_ERRNO | 55), RET(SECCOMP_RET_ALLOW)};
        val("sums", install(0, sums, 8));
        val("matching-argument", close(1000));
        val("other-argument", close(1001));
    }
    CHILD("privilege") {
        as_user();
        val("user", on_call(0, SYS_getppid, SECCOMP_RET_ALLOW));
        val("prctl-user", prctl(PR_SET_SECCOMP, 2, NULL));
        no_new();
        val("user-no-new", on_call(0, SYS_getppid, SECCOMP_RET_ALLOW));
    }
}

static volatile int trapped_call, trapped_code, trapped_errno, trapped_arch;
static volatile long trapped_rax;
static void on_trap(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    trapped_call = info->si_syscall, trapped_code = info->si_code, trapped_errno = info->si_errno, trapped_arch = info->si_arch == AUDIT_ARCH_X86_64;
}

static void verdicts(void) {
    CHILD("errno") {
        no_new();
        /* Calls that were made often may take another way into the kernel. */
        for (int i = 0; i < 100; i++) getpid(), getuid(), syscall(SYS_getppid);
        val("install", on_call(0, SYS_getpid, SECCOMP_RET_ERRNO | EDOM));
        val("getpid", getpid());
        val("by-number", syscall(SYS_getpid));
        yes("other", getppid() > 0);
        val("getuid", getuid());
        val("more", on_call(0, SYS_getuid, SECCOMP_RET_ERRNO | 0xffff));
        long raw;
        __asm__ volatile("syscall" : "=a"(raw) : "a"(SYS_getuid) : "rcx", "r11", "memory");
        say("largest", "%ld", raw);
        val("zero", on_call(0, SYS_getgid, SECCOMP_RET_ERRNO));
        val("getgid", getgid());
        say("mode", "%ld", (long)prctl(PR_GET_SECCOMP));
        say("status", "%s", line_of_status("\nSeccomp:"));
        say("filters", "%s", line_of_status("\nSeccomp_filters:"));
        pid_t child = fork();
        if (!child) {
            val("inherited", getpid());
            _exit(0);
        }
        await(child, 5000);
    }
    CHILD("trap") {
        no_new();
        struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
        sigaction(SIGSYS, &action, NULL);
        on_call(0, SYS_getppid, SECCOMP_RET_TRAP | 77);
        trapped_rax = syscall(SYS_getppid);
        say("seen", "%d %d %d %d", trapped_call == SYS_getppid, trapped_code, trapped_errno, trapped_arch);
        say("rax", "%d", trapped_rax == SYS_getppid);
        sigset_t set;
        sigemptyset(&set), sigaddset(&set, SIGSYS);
        sigprocmask(SIG_BLOCK, &set, NULL);
        pid_t child = fork();
        if (!child) {
            syscall(SYS_getppid);
            _exit(0);
        }
        status("blocked", await(child, 5000));
    }
    static const struct {
        const char *name;
        unsigned action;
    } ends[] = {{"kill-process", SECCOMP_RET_KILL_PROCESS}, {"kill-thread", SECCOMP_RET_KILL_THREAD}, {"trap-default", SECCOMP_RET_TRAP}, {"unknown", 0x12340000}};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        pid_t child = fork();
        if (!child) {
            no_new();
            on_call(0, SYS_getppid, ends[i].action);
            syscall(SYS_getppid);
            _exit(1);
        }
        status(ends[i].name, await(child, 5000));
    }
    CHILD("precedence") {
        no_new();
        on_call(0, SYS_getppid, SECCOMP_RET_ERRNO | 1);
        on_call(0, SYS_getppid, SECCOMP_RET_LOG);
        val("errno-before-log", syscall(SYS_getppid));
        on_call(0, SYS_getppid, SECCOMP_RET_ERRNO | 2);
        val("newest", syscall(SYS_getppid));
        on_call(0, SYS_getppid, SECCOMP_RET_TRACE);
        val("errno-before-trace", syscall(SYS_getppid));
        on_call(0, SYS_getsid, SECCOMP_RET_TRACE);
        val("trace", syscall(SYS_getsid, 0));
    }
    CHILD("strict") {
        pid_t child = fork();
        if (!child) {
            ok("strict", prctl(PR_SET_SECCOMP, 1));
            const char text[] = "verdicts.written: yes\n";
            write(1, text, sizeof text - 1);
            syscall(SYS_exit, 5);
        }
        status("exit", await(child, 5000));
        child = fork();
        if (!child) {
            seccomp(SECCOMP_SET_MODE_STRICT, 0, NULL);
            getpid();
            _exit(0);
        }
        status("other-call", await(child, 5000));
    }
}

static struct gate ready, done;
static pid_t other_tid;
static void *other_thread(void *filter) {
    other_tid = syscall(SYS_gettid);
    if (filter) {
        no_new();
        on_call(0, SYS_getegid, SECCOMP_RET_ERRNO | 9);
    }
    gate_open(&ready);
    gate_pass(&done);
    long value = syscall(SYS_getppid);
    return (void *)(value < 0 ? (long)errno : 0L);
}

static void threads(void) {
    for (int own = 0; own < 2; own++) CHILD("sync") {
        ready = gate(), done = gate();
        pthread_t thread;
        pthread_create(&thread, NULL, other_thread, own ? "" : NULL);
        gate_pass(&ready);
        no_new();
        long result = on_call(SECCOMP_FILTER_FLAG_TSYNC, SYS_getppid, SECCOMP_RET_ERRNO | 33);
        say(own ? "diverged" : "synced", "%s", result == 0 ? "ok" : result == other_tid ? "that thread" : "?");
        if (own) val("as-esrch", on_call(SECCOMP_FILTER_FLAG_TSYNC | 16, SYS_getppid, SECCOMP_RET_ERRNO | 33));
        gate_open(&done);
        void *value;
        pthread_join(thread, &value);
        say(own ? "not-there" : "there", "%ld", (long)value);
    }
    CHILD("alone") {
        ready = gate(), done = gate();
        pthread_t thread;
        pthread_create(&thread, NULL, other_thread, NULL);
        gate_pass(&ready);
        no_new();
        on_call(0, SYS_getppid, SECCOMP_RET_ERRNO | 33);
        gate_open(&done);
        void *value;
        pthread_join(thread, &value);
        say("other-thread", "%ld", (long)value);
        val("own", syscall(SYS_getppid));
    }
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"arguments", arguments}, {"verdicts", verdicts}, {"seccomp-threads", threads}, {NULL, NULL}};
    return run(argc, argv, groups);
}
