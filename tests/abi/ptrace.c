/* ptrace: who may trace whom, stops for calls, signals, steps and events, memory and registers of tracees, waiting for them. */
#include "abi.h"

#include <dirent.h>
#include <elf.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif

struct call_info {
    uint8_t op, pad[3];
    uint32_t arch;
    uint64_t ip, sp;
    union {
        struct {
            uint64_t nr, args[6];
        } entry;
        struct {
            int64_t rval;
            uint8_t is_error;
        } exit;
        struct {
            uint64_t nr, args[6];
            uint32_t ret_data;
        } seccomp;
    };
};

static long trace(unsigned request, pid_t pid, unsigned long address, unsigned long data) {
    return syscall(SYS_ptrace, (long)request, (long)pid, address, data);
}
#define AT(x) ((unsigned long)(x))

/* What wait tells of a tracee, in words. */
static int stopped(const char *name, pid_t pid) {
    int s = -1;
    alarm(20);
    pid_t got = waitpid(pid, &s, __WALL);
    alarm(0);
    if (got != pid) say(name, "waited for %s: %s", got < 0 ? "nobody" : "another one", error_name(errno));
    else if (WIFSTOPPED(s)) say(name, "stopped by %s%s event %d", signal_name(WSTOPSIG(s) & 0x7f), WSTOPSIG(s) & 0x80 ? " of a call" : "", s >> 16);
    else status(name, s);
    return s;
}

static int quietly(pid_t pid) {
    int s = -1;
    waitpid(pid, &s, __WALL);
    return s;
}

/* A child that is traced and waits with SIGSTOP before it does what is asked. */
static pid_t traced(void (*what)(void)) {
    pid_t child = fork();
    if (!child) {
        trace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        what();
        _exit(7);
    }
    quietly(child);
    return child;
}

static pid_t sleeping(void) {
    pid_t child = fork();
    if (!child)
        for (;;) pause();
    settle(child);
    return child;
}

static void end(pid_t pid) {
    kill(pid, SIGKILL);
    int s;
    while (waitpid(pid, &s, __WALL) == pid && !WIFEXITED(s) && !WIFSIGNALED(s)) {}
}

static long number_of(pid_t pid, const char *key) {
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *file = fopen(path, "r");
    long found = -1;
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, key, strlen(key))) found = atol(line + strlen(key));
    if (file) fclose(file);
    return found;
}

static void nothing(void) {}
static void three_calls(void) {
    syscall(SYS_getppid);
    syscall(SYS_close, 77);
    syscall(SYS_getuid);
}

static void rights(void) {
    ok("nobody", trace(PTRACE_ATTACH, 0x3ffffff0, 0, 0));
    ok("self", trace(PTRACE_ATTACH, getpid(), 0, 0));
    ok("cont-not-mine", trace(PTRACE_CONT, getppid(), 0, 0));
    ok("unknown-request", trace(0x7777, getpid(), 0, 0));
    pid_t child = sleeping();
    ok("peek-untraced", trace(PTRACE_PEEKDATA, child, AT(&child), AT(&child)));
    ok("seize-address", trace(PTRACE_SEIZE, child, 8, 0));
    ok("seize-options", trace(PTRACE_SEIZE, child, 0, 1UL << 30));
    ok("attach", trace(PTRACE_ATTACH, child, 0, 0));
    stopped("attach-stop", child);
    ok("attach-again", trace(PTRACE_ATTACH, child, 0, 0));
    val("tracer-is-me", number_of(child, "TracerPid:") == getpid());
    ok("cont-bad-signal", trace(PTRACE_CONT, child, 0, 65));
    ok("listen-attached", trace(PTRACE_LISTEN, child, 0, 0));
    ok("interrupt-attached", trace(PTRACE_INTERRUPT, child, 0, 0));
    ok("options-unknown", trace(PTRACE_SETOPTIONS, child, 0, 1 << 12));
    ok("detach", trace(PTRACE_DETACH, child, 0, 0));
    val("tracer-after", number_of(child, "TracerPid:"));
    ok("peek-detached", trace(PTRACE_PEEKDATA, child, AT(&child), AT(&child)));
    end(child);
    CHILD("traceme-twice") {
        ok("traceme", trace(PTRACE_TRACEME, 0, 0, 0));
        ok("traceme-again", trace(PTRACE_TRACEME, 0, 0, 0));
    }
    child = sleeping();
    CHILD("other-user") {
        as_user();
        ok("attach-root", trace(PTRACE_ATTACH, child, 0, 0));
        ok("seize-root", trace(PTRACE_SEIZE, child, 0, 0));
        struct iovec here = {&child, 4}, there = {&child, 4};
        ok("read-root", process_vm_readv(child, &here, 1, &there, 1, 0) < 0 ? -1 : 0);
        /* who changed users is not dumpable, nor are its children */
        prctl(PR_SET_DUMPABLE, 1);
        pid_t own = sleeping();
        if (ok("attach-own", trace(PTRACE_ATTACH, own, 0, 0)) == 0) quietly(own);
        end(own);
        own = fork();
        if (!own) {
            prctl(PR_SET_DUMPABLE, 0);
            for (;;) pause();
        }
        settle(own);
        ok("attach-not-dumpable", trace(PTRACE_ATTACH, own, 0, 0));
        end(own);
    }
    end(child);
}

static void calls(void) {
    pid_t child = traced(three_calls);
    ok("options", trace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD));
    for (int at = 0; at < 6; at++) {
        char name[40];
        trace(PTRACE_SYSCALL, child, 0, 0);
        snprintf(name, sizeof name, "stop-%d", at);
        stopped(name, child);
        struct call_info info = {0};
        long size = trace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, AT(&info));
        struct user_regs_struct regs;
        trace(PTRACE_GETREGS, child, 0, AT(&regs));
        snprintf(name, sizeof name, "info-%d", at);
        if (at % 2 == 0)
            say(name, "size %ld op %d nr %lu arg %lu rax %ld orig %ld arch %x ip %d", size, info.op, info.entry.nr, info.entry.nr == SYS_close ? info.entry.args[0] : 0,
                (long)regs.rax, (long)regs.orig_rax, info.arch, info.ip == regs.rip);
        else
            say(name, "size %ld op %d value %s error %d same %d sp %d", size, info.op, info.exit.rval < 0 ? error_name(-info.exit.rval) : "is good",
                info.exit.is_error, info.exit.rval == (long)regs.rax, info.sp == regs.rsp);
        unsigned long message = 99;
        trace(PTRACE_GETEVENTMSG, child, 0, AT(&message));
        snprintf(name, sizeof name, "message-%d", at);
        val(name, message);
        siginfo_t si;
        trace(PTRACE_GETSIGINFO, child, 0, AT(&si));
        snprintf(name, sizeof name, "siginfo-%d", at);
        say(name, "%s code %d", signal_name(si.si_signo), si.si_code);
    }
    trace(PTRACE_CONT, child, 0, 0);
    stopped("end", child);

    /* without PTRACE_O_TRACESYSGOOD */
    child = traced(three_calls);
    trace(PTRACE_SYSCALL, child, 0, 0);
    stopped("bare", child);
    struct call_info info;
    val("bare-size", trace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, AT(&info)));
    val("bare-op", info.op);
    end(child);
}

static void does_getppid(void) {
    long got = syscall(SYS_getppid);
    _exit(got == 4711 ? 1 : got == -EPERM || errno == EPERM ? 2 : got == getpid() ? 3 : 4);
}

static void changes(void) {
    struct user_regs_struct regs;
    /* another call in its place */
    pid_t child = traced(does_getppid);
    trace(PTRACE_SYSCALL, child, 0, 0), quietly(child);
    trace(PTRACE_GETREGS, child, 0, AT(&regs));
    regs.orig_rax = SYS_getpid;
    ok("set-number", trace(PTRACE_SETREGS, child, 0, AT(&regs)));
    trace(PTRACE_CONT, child, 0, 0);
    stopped("other-call", child);
    /* no call at all, and a result */
    child = traced(does_getppid);
    trace(PTRACE_SYSCALL, child, 0, 0), quietly(child);
    trace(PTRACE_GETREGS, child, 0, AT(&regs));
    regs.orig_rax = -1, regs.rax = 4711;
    trace(PTRACE_SETREGS, child, 0, AT(&regs));
    trace(PTRACE_CONT, child, 0, 0);
    stopped("no-call", child);
    /* another result */
    child = traced(does_getppid);
    trace(PTRACE_SYSCALL, child, 0, 0), quietly(child);
    trace(PTRACE_SYSCALL, child, 0, 0), quietly(child);
    ok("poke-rax", trace(PTRACE_POKEUSER, child, offsetof(struct user, regs.rax), (unsigned long)-EPERM));
    trace(PTRACE_CONT, child, 0, 0);
    stopped("other-result", child);
    /* emulated */
    child = traced(does_getppid);
    trace(31, child, 0, 0);
    stopped("emulated", child);
    trace(PTRACE_POKEUSER, child, offsetof(struct user, regs.rax), 4711);
    trace(PTRACE_CONT, child, 0, 0);
    stopped("emulated-end", child);
    /* a signal by way of a stop for a call */
    child = traced(does_getppid);
    trace(PTRACE_SYSCALL, child, 0, 0), quietly(child);
    trace(PTRACE_SYSCALL, child, 0, SIGUSR1);
    stopped("call-with-signal", child);
    trace(PTRACE_CONT, child, 0, 0);
    stopped("its-signal", child);
    trace(PTRACE_CONT, child, 0, SIGUSR1);
    stopped("its-end", child);
}

static int handled;
static void handler(int number) { handled = number; }
static void raises(void) {
    signal(SIGUSR1, handler), signal(SIGUSR2, handler), signal(SIGCHLD, SIG_IGN);
    raise(SIGUSR1);
    int first = handled;
    raise(SIGCHLD);
    _exit(first == SIGUSR1 ? 1 : first == SIGUSR2 ? 2 : 3);
}

static void signals_checks(void) {
    pid_t child = traced(raises);
    trace(PTRACE_CONT, child, 0, 0);
    stopped("stop", child);
    siginfo_t si;
    ok("getsiginfo", trace(PTRACE_GETSIGINFO, child, 0, AT(&si)));
    say("siginfo", "%s code %d from itself %d", signal_name(si.si_signo), si.si_code, si.si_pid == child);
    trace(PTRACE_CONT, child, 0, SIGUSR1);
    stopped("ignored-is-told", child);
    trace(PTRACE_CONT, child, 0, SIGCHLD);
    stopped("as-it-is", child);

    child = traced(raises);
    trace(PTRACE_CONT, child, 0, 0), quietly(child);
    trace(PTRACE_CONT, child, 0, SIGUSR2), quietly(child);
    trace(PTRACE_CONT, child, 0, 0);
    stopped("another-one", child);

    child = traced(raises);
    trace(PTRACE_CONT, child, 0, 0), quietly(child);
    trace(PTRACE_CONT, child, 0, 0), quietly(child);
    trace(PTRACE_CONT, child, 0, 0);
    stopped("none", child);

    child = traced(raises);
    trace(PTRACE_CONT, child, 0, 0), quietly(child);
    trace(PTRACE_CONT, child, 0, SIGTERM);
    stopped("deadly", child);

    /* kept for later, and looked at */
    child = traced(raises);
    uint64_t mask = 1UL << (SIGUSR1 - 1), before = 1;
    ok("getsigmask", trace(PTRACE_GETSIGMASK, child, 8, AT(&before)));
    val("mask", (long)before);
    ok("mask-size", trace(PTRACE_GETSIGMASK, child, 4, AT(&before)));
    ok("setsigmask", trace(PTRACE_SETSIGMASK, child, 8, AT(&mask)));
    kill(child, SIGUSR1);
    struct {
        uint64_t off;
        uint32_t flags;
        int32_t nr;
    } peek = {0, 1, 4};
    siginfo_t all[4];
    val("peek-shared", trace(PTRACE_PEEKSIGINFO, child, AT(&peek), AT(all)));
    say("peeked", "%s code %d", signal_name(all[0].si_signo), all[0].si_code);
    peek.flags = 0;
    val("peek-own", trace(PTRACE_PEEKSIGINFO, child, AT(&peek), AT(all)));
    peek.flags = 4;
    val("peek-flags", trace(PTRACE_PEEKSIGINFO, child, AT(&peek), AT(all)));
    end(child);

    child = traced(nothing);
    ok("kill", trace(PTRACE_KILL, child, 0, 0));
    stopped("killed", child);
}

static const char constant[16] = "read-only text";
static volatile long variable = 5;
static void reads_constant(void) { _exit(constant[0] == 'R' ? 1 : variable == 6 ? 2 : 3); }

static void memory_checks(void) {
    pid_t child = traced(reads_constant);
    long word = 0;
    ok("peek", trace(PTRACE_PEEKDATA, child, AT(&variable), AT(&word)));
    val("peeked", word);
    ok("peek-hole", trace(PTRACE_PEEKDATA, child, 8, AT(&word)));
    ok("poke-hole", trace(PTRACE_POKEDATA, child, 8, 1));
    ok("poke", trace(PTRACE_POKEDATA, child, AT(&variable), 6));
    val("own-stays", variable);
    trace(PTRACE_PEEKTEXT, child, AT(constant), AT(&word));
    word = (word & ~0xffL) | 'R';
    ok("poke-constant", trace(PTRACE_POKETEXT, child, AT(constant), word));
    val("own-constant", constant[0]);
    trace(PTRACE_PEEKTEXT, child, AT(reads_constant), AT(&word));
    yes("text-is-mine", !memcmp(&word, (void *)reads_constant, 8));
    ok("poke-text", trace(PTRACE_POKETEXT, child, AT(reads_constant), word));
    trace(PTRACE_CONT, child, 0, 0);
    stopped("seen", child);

    /* by /proc/PID/mem and process_vm */
    child = traced(reads_constant);
    char path[64], got[16] = "";
    snprintf(path, sizeof path, "/proc/%d/mem", child);
    int fd = open(path, O_RDWR);
    yes("mem-opened", fd >= 0);
    val("mem-read", pread(fd, got, 15, (long)constant));
    say("mem-text", "%s", got);
    val("mem-write", pwrite(fd, "R", 1, (long)constant));
    struct iovec here = {got, 1}, there = {(void *)constant, 1};
    val("vm-read", process_vm_readv(child, &here, 1, &there, 1, 0));
    val("vm-read-is", got[0]);
    val("vm-write-constant", process_vm_writev(child, &here, 1, &there, 1, 0));
    close(fd);
    trace(PTRACE_CONT, child, 0, 0);
    stopped("mem-seen", child);
}

static void loops(void) {
    register long many __asm__("r12") = 0x1234;
    __asm__ volatile("movq $0x77, %%r13\n movq $3, %%r14\n int3\n nop\n" : "+r"(many)::"r13", "r14");
    _exit((int)many);
}
static void in_floats(void) {
    double half = 0.5;
    __asm__ volatile("movsd %0, %%xmm5\n int3\n movsd %%xmm5, %0" : "+m"(half)::"xmm5");
    _exit(half == 2.5 ? 1 : 2);
}

static void registers_checks(void) {
    pid_t child = traced(loops);
    trace(PTRACE_CONT, child, 0, 0);
    stopped("int3", child);
    siginfo_t si;
    trace(PTRACE_GETSIGINFO, child, 0, AT(&si));
    say("int3-info", "%s code %d", signal_name(si.si_signo), si.si_code);
    struct user_regs_struct regs, other;
    ok("getregs", trace(PTRACE_GETREGS, child, 0, AT(&regs)));
    say("regs", "%llx %llx %llx cs %llx ss %llx orig %lld", regs.r12, regs.r13, regs.r14, regs.cs, regs.ss, (long long)regs.orig_rax);
    unsigned char code = 0;
    long word = 0;
    trace(PTRACE_PEEKTEXT, child, regs.rip - 1, AT(&word));
    code = word & 0xff;
    say("behind-int3", "%x", code);
    struct iovec set = {&other, sizeof other};
    ok("getregset", trace(PTRACE_GETREGSET, child, NT_PRSTATUS, AT(&set)));
    say("regset", "%zu same %d", set.iov_len, !memcmp(&regs, &other, sizeof regs));
    set.iov_len = 17;
    ok("regset-odd", trace(PTRACE_GETREGSET, child, NT_PRSTATUS, AT(&set)));
    set.iov_len = 16;
    ok("regset-part", trace(PTRACE_GETREGSET, child, NT_PRSTATUS, AT(&set)));
    set.iov_len = 1 << 20;
    ok("regset-unknown", trace(PTRACE_GETREGSET, child, 0x7777, AT(&set)));
    unsigned long user = 0;
    ok("peekuser", trace(PTRACE_PEEKUSER, child, offsetof(struct user, regs.r13), AT(&user)));
    val("peekuser-is", user);
    ok("peekuser-odd", trace(PTRACE_PEEKUSER, child, 3, AT(&user)));
    ok("peekuser-end", trace(PTRACE_PEEKUSER, child, sizeof(struct user), AT(&user)));
    ok("pokeuser-cs", trace(PTRACE_POKEUSER, child, offsetof(struct user, regs.cs), 0));
    ok("pokeuser-between", trace(PTRACE_POKEUSER, child, offsetof(struct user, u_tsize), 0));
    ok("peek-debug", trace(PTRACE_PEEKUSER, child, offsetof(struct user, u_debugreg[7]), AT(&user)));
    val("debug", user);
    regs.r12 = 42;
    ok("setregs", trace(PTRACE_SETREGS, child, 0, AT(&regs)));
    trace(PTRACE_CONT, child, 0, 0);
    stopped("by-register", child);

    child = traced(in_floats);
    trace(PTRACE_CONT, child, 0, 0), quietly(child);
    struct user_fpregs_struct floats;
    ok("getfpregs", trace(PTRACE_GETFPREGS, child, 0, AT(&floats)));
    double *xmm5 = (double *)&floats.xmm_space[20];
    say("xmm5", "%g", *xmm5);
    *xmm5 = 1.5;
    ok("setfpregs", trace(PTRACE_SETFPREGS, child, 0, AT(&floats)));
    static char vector[16384];
    set = (struct iovec){vector, sizeof vector};
    ok("xstate", trace(PTRACE_GETREGSET, child, NT_X86_XSTATE, AT(&set)));
    yes("xstate-size", set.iov_len >= 576);
    say("xstate-xmm5", "%g", *(double *)(vector + 160 + 80));
    yes("xstate-features", (vector[464] & 3) == 3);
    *(double *)(vector + 160 + 80) = 2.5;
    ok("set-xstate", trace(PTRACE_SETREGSET, child, NT_X86_XSTATE, AT(&set)));
    trace(PTRACE_CONT, child, 0, 0);
    stopped("by-vector", child);
}

static void steps_through(void) {
    __asm__ volatile("int3\n nop\n nop\n movl $39, %%eax\n syscall\n nop\n pushq $1\n popq %%rcx\n" ::: "rax", "rcx", "r11");
    raise(SIGUSR1);
}

static void steps(void) {
    pid_t child = traced(steps_through);
    trace(PTRACE_CONT, child, 0, 0), quietly(child);
    struct user_regs_struct regs;
    trace(PTRACE_GETREGS, child, 0, AT(&regs));
    unsigned long before = regs.rip;
    for (int at = 0; at < 7; at++) {
        char name[32];
        trace(PTRACE_SINGLESTEP, child, 0, 0);
        snprintf(name, sizeof name, "step-%d", at);
        stopped(name, child);
        siginfo_t si;
        trace(PTRACE_GETSIGINFO, child, 0, AT(&si));
        trace(PTRACE_GETREGS, child, 0, AT(&regs));
        snprintf(name, sizeof name, "behind-%d", at);
        say(name, "%lld code %d trap flag %d", (long long)(regs.rip - before), si.si_code, (regs.eflags >> 8 & 1) != 0);
        before = regs.rip;
    }
    int many = 0, s = 0;
    do {
        trace(PTRACE_SINGLESTEP, child, 0, 0);
        s = quietly(child);
    } while (++many < 5000 && WIFSTOPPED(s) && WSTOPSIG(s) == SIGTRAP);
    say("until-signal", "%s", WIFSTOPPED(s) ? signal_name(WSTOPSIG(s)) : "an end");
    end(child);

    /* a handler's first instruction */
    child = traced(raises);
    trace(PTRACE_CONT, child, 0, 0), quietly(child);
    trace(PTRACE_SINGLESTEP, child, 0, SIGUSR1);
    stopped("into-handler", child);
    trace(PTRACE_GETREGS, child, 0, AT(&regs));
    yes("at-handler", regs.rip == AT(handler));
    trace(PTRACE_CONT, child, 0, 0), quietly(child);
    trace(PTRACE_CONT, child, 0, 0);
    stopped("handled", child);
}

static void forks(void) {
    pid_t child = fork();
    if (!child) _exit(5);
    waitpid(child, NULL, 0);
    _exit(6);
}
static void vforks(void) {
    if (!vfork()) _exit(5);
    wait(NULL);
    _exit(6);
}
static void *thread_of(void *unused) {
    (void)unused;
    return NULL;
}
static void threads_too(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, thread_of, NULL);
    pthread_join(thread, NULL);
    /* until it is gone wholly */
    for (int many = 2; many > 1;) {
        DIR *tasks = opendir("/proc/self/task");
        if (!tasks) break;
        many = 0;
        for (struct dirent *entry; (entry = readdir(tasks));) many += entry->d_name[0] != '.';
        closedir(tasks);
    }
    _exit(6);
}
static void executes(void) {
    char *arguments[] = {"/abi/ptrace", "no-such-group", NULL};
    execv("/proc/self/exe", arguments);
    _exit(9);
}

static void one_event(const char *name, void (*what)(void), int seize) {
    char text[64];
    pid_t child;
    unsigned long all = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEVFORKDONE | PTRACE_O_TRACEEXIT | PTRACE_O_TRACEEXEC |
                        PTRACE_O_EXITKILL;
    if (seize) {
        struct gate go = gate();
        child = fork();
        if (!child) {
            gate_pass(&go);
            what();
            _exit(7);
        }
        trace(PTRACE_SEIZE, child, 0, all);
        gate_open(&go);
    } else {
        child = traced(what);
        trace(PTRACE_SETOPTIONS, child, 0, all);
        trace(PTRACE_CONT, child, 0, 0);
    }
    /* the stops of the first one, those of the other one, in order of each */
    pid_t other = 0;
    int count[2] = {0, 0};
    for (;;) {
        int s;
        alarm(20);
        pid_t got = waitpid(-1, &s, __WALL);
        alarm(0);
        if (got < 0) break;
        int which = got != child;
        snprintf(text, sizeof text, "%s-%s-%d", name, which ? "new" : "first", count[which]++);
        if (!WIFSTOPPED(s)) {
            status(text, s);
            continue;
        }
        int event = s >> 16;
        unsigned long message = 0;
        trace(PTRACE_GETEVENTMSG, got, 0, AT(&message));
        if (!which && event >= PTRACE_EVENT_FORK && event <= PTRACE_EVENT_CLONE) other = message;
        say(text, "%s event %d message %s", signal_name(WSTOPSIG(s) & 0x7f), event,
            event == PTRACE_EVENT_EXIT ? (message == 0x500 ? "exit 5" : message == 0x600 ? "exit 6" : message == 0 ? "exit 0" : "another exit")
            : event == PTRACE_EVENT_EXEC ? (message == (unsigned long)child ? "same" : "other")
            : event && event != PTRACE_EVENT_STOP ? (message == (unsigned long)other ? "the new one" : "what") : "-");
        int pass = event == 0 && WSTOPSIG(s) != SIGSTOP && WSTOPSIG(s) != SIGTRAP ? WSTOPSIG(s) : 0;
        trace(PTRACE_CONT, got, 0, pass);
    }
}

static void events(void) {
    one_event("fork", forks, 0);
    one_event("vfork", vforks, 0);
    one_event("clone", threads_too, 0);
    one_event("seized-fork", forks, 1);
    one_event("seized-clone", threads_too, 1);
    /* without the option a program is told by SIGTRAP */
    pid_t child = traced(executes);
    trace(PTRACE_CONT, child, 0, 0);
    stopped("exec-bare", child);
    trace(PTRACE_CONT, child, 0, SIGKILL);
    stopped("exec-bare-end", child);
    child = traced(executes);
    trace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACEEXEC | PTRACE_O_TRACESYSGOOD);
    trace(PTRACE_CONT, child, 0, 0);
    stopped("exec", child);
    trace(PTRACE_SYSCALL, child, 0, 0);
    stopped("exec-returns", child);
    struct user_regs_struct regs;
    trace(PTRACE_GETREGS, child, 0, AT(&regs));
    say("exec-regs", "rax %lld orig %lld", (long long)regs.rax, (long long)regs.orig_rax);
    end(child);
    CHILD("seccomp-event") {
        child = fork();
        if (!child) {
            trace(PTRACE_TRACEME, 0, 0, 0);
            raise(SIGSTOP);
            struct sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                                         BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE | 77),
                                         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
            struct sock_fprog program = {4, code};
            prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
            does_getppid();
        }
        quietly(child);
        trace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESECCOMP);
        trace(PTRACE_CONT, child, 0, 0);
        stopped("seccomp", child);
        unsigned long message = 0;
        trace(PTRACE_GETEVENTMSG, child, 0, AT(&message));
        val("seccomp-message", message);
        struct call_info info;
        val("seccomp-size", trace(PTRACE_GET_SYSCALL_INFO, child, sizeof info, AT(&info)));
        say("seccomp-info", "op %d nr %lu data %u", info.op, info.seccomp.nr, info.seccomp.ret_data);
        trace(PTRACE_GETREGS, child, 0, AT(&regs));
        regs.orig_rax = SYS_getpid;
        trace(PTRACE_SETREGS, child, 0, AT(&regs));
        trace(PTRACE_CONT, child, 0, 0);
        stopped("seccomp-other-call", child);
    }
}

static void seized(void) {
    pid_t child = sleeping();
    ok("seize", trace(PTRACE_SEIZE, child, 0, PTRACE_O_TRACESYSGOOD));
    int s;
    val("no-stop", waitpid(child, &s, WNOHANG | __WALL));
    ok("cont-running", trace(PTRACE_CONT, child, 0, 0));
    ok("interrupt", trace(PTRACE_INTERRUPT, child, 0, 0));
    stopped("interrupted", child);
    struct user_regs_struct regs;
    trace(PTRACE_GETREGS, child, 0, AT(&regs));
    say("in-call", "orig %lld rax %lld", (long long)regs.orig_rax, (long long)regs.rax);
    siginfo_t si;
    trace(PTRACE_GETSIGINFO, child, 0, AT(&si));
    say("info", "%s code %x", signal_name(si.si_signo), si.si_code);
    trace(PTRACE_CONT, child, 0, 0);
    settle(child);
    yes("goes-on-waiting", waitpid(child, &s, WNOHANG | __WALL) == 0);
    /* a stop of the process */
    kill(child, SIGSTOP);
    stopped("stop-signal", child);
    trace(PTRACE_CONT, child, 0, SIGSTOP);
    stopped("stopped", child);
    ok("listen", trace(PTRACE_LISTEN, child, 0, 0));
    ok("peek-listening", trace(PTRACE_GETREGS, child, 0, AT(&regs)));
    kill(child, SIGCONT);
    stopped("continues", child);
    trace(PTRACE_CONT, child, 0, 0);
    stopped("sigcont", child);
    trace(PTRACE_CONT, child, 0, SIGCONT);
    settle(child);
    trace(PTRACE_INTERRUPT, child, 0, 0);
    stopped("again", child);
    trace(PTRACE_CONT, child, 0, 0);
    kill(child, SIGUSR1);
    stopped("last", child);
    ok("detach", trace(PTRACE_DETACH, child, 0, SIGTERM));
    stopped("detached-with", child);

    /* by PTRACE_ATTACH */
    child = sleeping();
    trace(PTRACE_ATTACH, child, 0, 0), quietly(child);
    trace(PTRACE_CONT, child, 0, 0);
    kill(child, SIGTSTP);
    stopped("tstp", child);
    trace(PTRACE_CONT, child, 0, SIGSTOP);
    stopped("group-stop", child);
    val("group-stop-info", trace(PTRACE_GETSIGINFO, child, 0, AT(&si)));
    trace(PTRACE_DETACH, child, 0, 0);
    s = 0;
    val("parent-hears", waitpid(child, &s, WUNTRACED) == child);
    status("parent-status", s);
    end(child);

    /* one that is stopped already */
    child = sleeping();
    kill(child, SIGSTOP);
    waitpid(child, &s, WUNTRACED);
    trace(PTRACE_ATTACH, child, 0, 0);
    stopped("attach-stopped", child);
    end(child);
}

static void waits(void) {
    pid_t child = traced(nothing);
    siginfo_t si;
    trace(PTRACE_CONT, child, 0, 0);
    memset(&si, 0, sizeof si);
    ok("waitid", waitid(P_PID, child, &si, WEXITED | WNOWAIT));
    say("end", "code %d status %d", si.si_code, si.si_status);
    ok("waitid-again", waitid(P_PID, child, &si, WEXITED));
    ok("gone", waitid(P_PID, child, &si, WEXITED));
    child = fork();
    if (!child) {
        trace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        _exit(1);
    }
    ok("trapped", waitid(P_PID, child, &si, WSTOPPED | WNOWAIT));
    say("trap", "code %d status %d", si.si_code, si.si_status);
    val("trap-again", waitpid(child, NULL, 0) == child);
    val("trap-once", waitpid(child, NULL, WNOHANG));
    end(child);
    /* the tracer hears of the end before the parent does */
    struct gate attached = gate(), go = gate();
    pid_t target = sleeping();
    pid_t tracer = fork();
    if (!tracer) {
        trace(PTRACE_SEIZE, target, 0, 0);
        gate_open(&attached);
        gate_pass(&go);
        int s;
        _exit(waitpid(target, &s, __WALL) == target && WIFSIGNALED(s) ? 3 : 4);
    }
    gate_pass(&attached);
    val("tracer", number_of(target, "TracerPid:") == tracer);
    kill(target, SIGKILL);
    pause_ms(50);
    val("parent-waits", waitpid(target, NULL, WNOHANG));
    gate_open(&go);
    int s;
    waitpid(target, &s, 0);
    status("parent-hears", s);
    waitpid(tracer, &s, 0);
    status("tracer-heard", s);
    /* what becomes of tracees of one that ends */
    target = sleeping();
    tracer = fork();
    if (!tracer) {
        trace(PTRACE_SEIZE, target, 0, 0);
        _exit(0);
    }
    waitpid(tracer, &s, 0);
    val("let-go", number_of(target, "TracerPid:"));
    end(target);
    target = sleeping();
    tracer = fork();
    if (!tracer) {
        trace(PTRACE_SEIZE, target, 0, PTRACE_O_EXITKILL);
        _exit(0);
    }
    waitpid(tracer, &s, 0);
    waitpid(target, &s, 0);
    status("exitkill", s);
    /* SIGCHLD */
    signal(SIGCHLD, handler);
    handled = 0;
    child = traced(nothing);
    val("sigchld", handled == SIGCHLD);
    signal(SIGCHLD, SIG_DFL);
    end(child);
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {
        {"rights", rights}, {"calls", calls},  {"changes", changes}, {"signals", signals_checks}, {"memory", memory_checks}, {"registers", registers_checks},
        {"steps", steps},   {"events", events}, {"seized", seized},  {"waits", waits},            {NULL, NULL},
    };
    return run(argc, argv, groups);
}
