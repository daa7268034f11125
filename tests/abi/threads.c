/* Threads: raw clone and pthreads, futexes with their errors, robust lists, the end of a leader. */
#include "abi.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/rseq.h>

static long futex(uint32_t *word, int operation, uint32_t value, const struct timespec *limit, uint32_t *other, uint32_t third) {
    return syscall(SYS_futex, word, operation, value, limit, other, third);
}

static int *shared_number;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void *add(void *times) {
    for (long i = 0; i < (long)times; i++) {
        pthread_mutex_lock(&mutex);
        ++*shared_number;
        pthread_mutex_unlock(&mutex);
    }
    return (void *)7;
}

static void *its_ids(void *parent_tid) {
    say("thread-ids", "pid-same %d tid-other %d", getpid() != gettid(), gettid() != (pid_t)(long)parent_tid);
    return NULL;
}

static void *own_signal_mask(void *nothing) {
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    return nothing;
}

static volatile pid_t handled_by;
static void who(int signal) {
    (void)signal;
    handled_by = gettid();
}
static volatile int stop_waiting;
static volatile pid_t waiter_tid;
static void *wait_here(void *nothing) {
    waiter_tid = gettid();
    while (!stop_waiting) usleep(500);
    return nothing;
}

static void pthread_checks(void) {
    int number = 0;
    shared_number = &number;
    pthread_t threads[8], one;
    for (int i = 0; i < 8; i++) pthread_create(&threads[i], NULL, add, (void *)1000);
    void *result = NULL;
    for (int i = 0; i < 8; i++) pthread_join(threads[i], &result);
    say("mutex", "%d %ld", number, (long)result);
    pthread_create(&one, NULL, its_ids, (void *)(long)gettid());
    pthread_join(one, NULL);
    pthread_create(&one, NULL, own_signal_mask, NULL);
    pthread_join(one, NULL);
    sigset_t mine;
    sigprocmask(SIG_SETMASK, NULL, &mine);
    val("mask-per-thread", sigismember(&mine, SIGUSR1));
    signal(SIGUSR2, who);
    pthread_create(&one, NULL, wait_here, NULL);
    while (!waiter_tid) usleep(200);
    pthread_kill(one, SIGUSR2);
    while (!handled_by) usleep(200);
    yes("directed-signal", handled_by == waiter_tid);
    handled_by = 0;
    syscall(SYS_tgkill, getpid(), waiter_tid, SIGUSR2);
    while (!handled_by) usleep(200);
    yes("tgkill-thread", handled_by == waiter_tid);
    handled_by = 0;
    sigset_t block;
    sigemptyset(&block), sigaddset(&block, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &block, NULL);
    kill(getpid(), SIGUSR2);
    while (!handled_by) usleep(200);
    yes("process-signal-to-unblocked", handled_by == waiter_tid);
    ok("kill-tid", kill(waiter_tid, 0));
    ok("getpgid-tid", getpgid(waiter_tid) > 0 ? 0 : -1);
    ok("waitpid-thread", waitpid(waiter_tid, NULL, __WALL));
    ok("setpgid-thread", setpgid(waiter_tid, 0));
    ok("unshare-vm-threaded", (long)syscall(SYS_unshare, CLONE_VM));
    ok("unshare-thread-threaded", (long)syscall(SYS_unshare, CLONE_THREAD));
    ok("unshare-newpid-threaded", (long)syscall(SYS_unshare, CLONE_NEWUSER));
    char name[32] = "", path[64];
    prctl(PR_SET_NAME, "a-name-longer-than-15");
    prctl(PR_GET_NAME, name);
    say("name-cut", "%s", name);
    snprintf(path, sizeof path, "/proc/self/task/%d/comm", waiter_tid);
    int fd = open(path, O_RDWR);
    val("comm-write", write(fd, "other", 5));
    memset(name, 0, sizeof name), pread(fd, name, 31, 0);
    say("comm-read", "%s", name);
    stop_waiting = 1;
    pthread_join(one, NULL);
    ok("tid-gone", (long)syscall(SYS_tgkill, getpid(), waiter_tid, 0));
    pthread_barrier_t barrier;
    eno("barrier", pthread_barrier_init(&barrier, NULL, 1));
    yes("barrier-serial", pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD);
    pthread_mutexattr_t attributes;
    pthread_mutex_t *m = shared_page();
    pthread_mutexattr_init(&attributes), pthread_mutexattr_setpshared(&attributes, 1), pthread_mutexattr_setrobust(&attributes, 1);
    pthread_mutex_init(m, &attributes);
    CHILD("dies-holding") { pthread_mutex_lock(m); }
    eno("robust-owner-dead", pthread_mutex_lock(m));
    eno("robust-consistent", pthread_mutex_consistent(m));
    eno("robust-unlock", pthread_mutex_unlock(m));
    eno("robust-again", pthread_mutex_trylock(m));
    pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT), pthread_mutexattr_setrobust(&attributes, 0);
    pthread_mutex_init(m, &attributes);
    eno("pi-lock", pthread_mutex_lock(m));
    eno("pi-trylock-held", pthread_mutex_trylock(m));
    eno("pi-unlock", pthread_mutex_unlock(m));
    pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
    struct timespec past = {1, 0};
    pthread_mutex_lock(&mutex);
    eno("cond-timed-past", pthread_cond_timedwait(&condition, &mutex, &past));
    pthread_mutex_unlock(&mutex);
}

static void futex_checks(void) {
    uint32_t *word = shared_page(), *other = word + 1, private = 0;
    struct timespec brief = {0, 1000000}, bad = {0, 1000000000}, negative = {-1, 0}, past = {1, 0};
    ok("wait-differs", futex(word, FUTEX_WAIT, 1, NULL, NULL, 0));
    ok("wait-times-out", futex(word, FUTEX_WAIT, 0, &brief, NULL, 0));
    ok("wait-nsec", futex(word, FUTEX_WAIT, 0, &bad, NULL, 0));
    ok("wait-negative", futex(word, FUTEX_WAIT, 0, &negative, NULL, 0));
    ok("wait-differs-bad-time", futex(word, FUTEX_WAIT, 1, &bad, NULL, 0));
    ok("wait-unaligned", futex((uint32_t *)((char *)word + 1), FUTEX_WAIT, 0, &brief, NULL, 0));
    ok("wait-null", futex(NULL, FUTEX_WAIT, 0, &brief, NULL, 0));
    ok("wait-hole", futex((uint32_t *)(page_before_hole() + PAGE), FUTEX_WAIT, 0, &brief, NULL, 0));
    ok("wait-private-hole", futex((uint32_t *)(page_before_hole() + PAGE), FUTEX_WAIT_PRIVATE, 0, &brief, NULL, 0));
    val("wake-none", futex(word, FUTEX_WAKE, 1, NULL, NULL, 0));
    val("wake-null", futex(NULL, FUTEX_WAKE, 1, NULL, NULL, 0));
    val("wake-private-null", futex(NULL, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0));
    val("wake-unaligned", futex((uint32_t *)((char *)word + 2), FUTEX_WAKE, 1, NULL, NULL, 0));
    ok("bitset-0", futex(word, FUTEX_WAIT_BITSET, 0, &past, NULL, 0));
    ok("bitset-past", futex(word, FUTEX_WAIT_BITSET, 0, &past, NULL, ~0U));
    ok("bitset-past-realtime", futex(word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, &past, NULL, ~0U));
    ok("wait-realtime", futex(word, FUTEX_WAIT | FUTEX_CLOCK_REALTIME, 0, &brief, NULL, 0));
    ok("wake-realtime", futex(word, FUTEX_WAKE | FUTEX_CLOCK_REALTIME, 1, NULL, NULL, 0));
    ok("wake-bitset-0", futex(word, FUTEX_WAKE_BITSET, 1, NULL, NULL, 0));
    ok("unknown", futex(word, 77, 0, NULL, NULL, 0));
    ok("fd", futex(word, FUTEX_FD, 0, NULL, NULL, 0));
    ok("requeue-negative", futex(word, FUTEX_REQUEUE, 1, (void *)-1L, other, 0));
    ok("cmp-requeue-differs", futex(word, FUTEX_CMP_REQUEUE, 1, (void *)1L, other, 5));
    val("cmp-requeue-none", futex(word, FUTEX_CMP_REQUEUE, 1, (void *)1L, other, 0));
    val("wake-op", futex(word, FUTEX_WAKE_OP, 1, (void *)1L, other, FUTEX_OP(FUTEX_OP_ADD, 5, FUTEX_OP_CMP_EQ, 0)));
    val("wake-op-did", *other);
    ok("wake-op-bad", futex(word, FUTEX_WAKE_OP, 1, (void *)1L, other, FUTEX_OP(7, 5, FUTEX_OP_CMP_EQ, 0)));
    ok("lock-pi", futex(&private, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
    yes("lock-pi-word", private == (uint32_t)gettid());
    ok("lock-pi-again", futex(&private, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
    ok("trylock-pi-again", futex(&private, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0));
    ok("unlock-pi", futex(&private, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
    ok("unlock-pi-again", futex(&private, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
    private = 0x3fffffff;
    ok("lock-pi-dead-owner", futex(&private, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
    *word = 0;
    pid_t children[3];
    for (int i = 0; i < 3; i++) {
        children[i] = fork();
        if (!children[i]) _exit(futex(word, FUTEX_WAIT, 0, NULL, NULL, 0) == 0 ? 0 : 1);
        settle(children[i]);
    }
    val("wake-1-of-3", futex(word, FUTEX_WAKE, 1, NULL, NULL, 0));
    *other = 0;
    val("requeue-1-1", futex(word, FUTEX_CMP_REQUEUE, 0, (void *)1L, other, 0));
    val("wake-requeued", futex(other, FUTEX_WAKE, 5, NULL, NULL, 0));
    val("wake-rest", futex(word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0));
    for (int i = 0; i < 3; i++) {
        char name[16];
        snprintf(name, sizeof name, "waiter-%d", i);
        status(name, await(children[i], 20000));
    }
    children[0] = fork();
    if (!children[0]) {
        prctl(PR_SET_NAME, "bitset");
        _exit(futex(word, FUTEX_WAIT_BITSET, 0, NULL, NULL, 6) == 0 ? 0 : 1);
    }
    settle(children[0]);
    val("wake-bitset-other", futex(word, FUTEX_WAKE_BITSET, 5, NULL, NULL, 1));
    val("wake-bitset-shared", futex(word, FUTEX_WAKE_BITSET, 5, NULL, NULL, 4));
    status("bitset-waiter", await(children[0], 20000));
    /* a private operation does not meet a shared wait */
    children[0] = fork();
    if (!children[0]) _exit(futex(word, FUTEX_WAIT, 0, NULL, NULL, 0) == 0 ? 0 : 1);
    settle(children[0]);
    val("private-wake-of-shared", futex(word, FUTEX_WAKE_PRIVATE, 5, NULL, NULL, 0));
    val("shared-wake", futex(word, FUTEX_WAKE, 5, NULL, NULL, 0));
    status("shared-waiter", await(children[0], 20000));
    struct {
        uint64_t value, address;
        uint32_t flags, reserved;
    } vector[2] = {{1, (uint64_t)(uintptr_t)word, 2, 0}, {0, (uint64_t)(uintptr_t)other, 2, 0}};
    struct timespec wake = {0, 0};
    ok("waitv-differs", (long)syscall(449, vector, 2, 0, &wake, CLOCK_MONOTONIC));
    vector[0].value = 0;
    ok("waitv-past", (long)syscall(449, vector, 2, 0, &wake, CLOCK_MONOTONIC));
    ok("waitv-0", (long)syscall(449, vector, 0, 0, &wake, CLOCK_MONOTONIC));
    ok("waitv-129", (long)syscall(449, vector, 129, 0, &wake, CLOCK_MONOTONIC));
    ok("waitv-flags", (long)syscall(449, vector, 2, 1, &wake, CLOCK_MONOTONIC));
}

static char stacks[4][65536] __attribute__((aligned(16)));
static volatile int ran;
static uint32_t cleared = 1;

static int raw_thread(void *code) {
    ran = (int)(long)code;
    syscall(SYS_exit, (int)(long)code);
    return 0;
}

static int exits_group(void *code) {
    syscall(SYS_exit_group, (int)(long)code);
    return 0;
}

static int execs(void *nothing) {
    (void)nothing;
    char *arguments[] = {"threads", "--execed", NULL}, *environment[] = {NULL};
    execve("/proc/self/exe", arguments, environment);
    return 1;
}

enum { THREAD = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM };

static void raw_checks(void) {
    pid_t tid = clone(raw_thread, stacks[0] + 65536, THREAD | CLONE_CHILD_CLEARTID, (void *)3L, NULL, NULL, &cleared);
    ok("clone-thread", tid);
    while (cleared) futex(&cleared, FUTEX_WAIT, 1, NULL, NULL, 0);
    val("cleartid", cleared);
    val("ran", ran);
    yes("set-tid-address", syscall(SYS_set_tid_address, &cleared) == gettid());
    CHILD("leader-exits") {
        /* the process stays until its last thread ends, and has the code of exit_group */
        pid_t child = fork();
        if (!child) {
            int slow(void *);
            clone(slow, stacks[1] + 65536, THREAD, NULL);
            syscall(SYS_exit, 9);
        }
        int s = 0;
        yes("leader-waited", waitpid(child, &s, 0) == child);
        status("leader-status", s);
        child = fork();
        if (!child) {
            clone(exits_group, stacks[1] + 65536, THREAD, (void *)5L);
            for (;;) pause();
        }
        waitpid(child, &s, 0);
        status("exit-group-of-thread", s);
        child = fork();
        if (!child) {
            clone(execs, stacks[1] + 65536, THREAD, NULL);
            for (;;) pause();
        }
        waitpid(child, &s, 0);
        status("exec-of-thread", s);
        child = fork();
        if (!child) {
            int faults(void *);
            clone(faults, stacks[2] + 65536, THREAD, NULL);
            for (;;) pause();
        }
        waitpid(child, &s, 0);
        status("fault-of-thread", s);
    }
    CHILD("vm-process") {
        ran = 0;
        pid_t child = clone(raw_thread, stacks[0] + 65536, CLONE_VM | SIGCHLD, (void *)4L);
        int s = 0;
        waitpid(child, &s, 0);
        status("clone-vm-status", s);
        val("clone-vm-shares", ran);
        child = clone(raw_thread, stacks[0] + 65536, CLONE_VM | CLONE_VFORK | SIGCHLD, (void *)6L);
        val("clone-vfork-ran", ran);
        waitpid(child, &s, 0);
        status("clone-vfork-status", s);
        child = clone(raw_thread, stacks[0] + 65536, CLONE_PARENT | SIGCHLD, (void *)2L);
        ok("clone-parent-wait", waitpid(child, &s, 0));
    }
    waitpid(-1, NULL, WNOHANG);
    struct {
        void *next;
        long offset;
        void *pending;
    } head = {&head, 0, NULL}, *got = NULL;
    size_t size = 0;
    ok("robust-size", (long)syscall(SYS_set_robust_list, &head, 23));
    ok("robust-set", (long)syscall(SYS_set_robust_list, &head, 24));
    ok("robust-get", (long)syscall(SYS_get_robust_list, 0, &got, &size));
    say("robust-is", "%d %zu", (void *)got == (void *)&head, size);
    uint32_t *word = shared_page();
    CHILD("robust-dies") {
        struct {
            void *next;
            uint32_t pad[1];
        } *lock = (void *)(word + 16);
        struct {
            void *next;
            long offset;
            void *pending;
        } list = {lock, -64, NULL};
        lock->next = &list;
        word[0] = (uint32_t)gettid();
        syscall(SYS_set_robust_list, &list, 24);
    }
    say("robust-word", "%#x", word[0] & 0xc0000000);
}

int slow(void *nothing) {
    (void)nothing;
    pause_ms(50);
    syscall(SYS_exit, 4);
    return 0;
}

int faults(void *nothing) {
    (void)nothing;
    *(volatile int *)8 = 1;
    return 0;
}

#define RSEQ_SIGNATURE 0x53053053

/* What the kernel knows of a thread's restartable sequences (struct rseq, as far as all kernels have it). */
struct sequence {
    uint32_t cpu_id_start, cpu_id;
    uint64_t section;
    uint32_t flags, rest[3];
} __attribute__((aligned(32)));

static long register_sequence(struct sequence *area, unsigned length, int flags, uint32_t signature) {
    return syscall(SYS_rseq, area, length, flags, signature);
}

/* Goes round in a section for ever, until it is restarted. */
static int restarted(struct sequence *area) {
    int restarted = 0;
    __asm__ volatile(
        ".pushsection abi_rseq, \"aw\"\n"
        ".balign 32\n"
        "3: .long 0, 0\n"
        ".quad 1f, 2f - 1f, 4f\n"
        ".popsection\n"
        "leaq 3b(%%rip), %%rax\n"
        "movq %%rax, 8(%1)\n"
        "1: pause\n"
        "jmp 1b\n"
        "2: jmp 5f\n"
        ".byte 0x0f, 0xb9, 0x3d\n"
        ".long 0x53053053\n"
        "4: movl $1, %0\n"
        "5:\n"
        : "+r"(restarted)
        : "r"(area)
        : "rax", "memory");
    return restarted;
}

static volatile int rang;

static void ring(int signal) {
    (void)signal;
    rang = 1;
}

static void rseq_checks(void) {
    CHILD("sections") {
        static struct sequence area, other;
        /* The C library's, where it has one. */
        struct sequence *first = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
        yes("library", __rseq_size > 0);
        if (__rseq_size > 0) {
            yes("library-cpu", first->cpu_id < 4096);
            ok("library-gone", register_sequence(first, 32, 1, RSEQ_SIGNATURE));
        }
        ok("none-to-take", register_sequence(&area, 32, 1, RSEQ_SIGNATURE));
        ok("length", register_sequence(&area, 31, 0, RSEQ_SIGNATURE));
        ok("flags", register_sequence(&area, 32, 2, RSEQ_SIGNATURE));
        ok("unaligned", register_sequence((void *)((char *)&area + 4), 32, 0, RSEQ_SIGNATURE));
        area.cpu_id = 0xffffffff;
        ok("register", register_sequence(&area, 32, 0, RSEQ_SIGNATURE));
        yes("cpu", area.cpu_id < 4096 && area.cpu_id_start == area.cpu_id);
        ok("again", register_sequence(&area, 32, 0, RSEQ_SIGNATURE));
        ok("other", register_sequence(&other, 32, 0, RSEQ_SIGNATURE));
        ok("other-signature", register_sequence(&area, 32, 0, 7));
        ok("take-other", register_sequence(&other, 32, 1, RSEQ_SIGNATURE));
        signal(SIGALRM, ring);
        struct itimerval soon = {.it_value = {0, 20000}};
        setitimer(ITIMER_REAL, &soon, NULL);
        int times = 0;
        while (!rang) times += restarted(&area);
        yes("restarted", times > 0 && area.section == 0);
        pid_t child = fork();
        if (child == 0) _exit(register_sequence(&area, 32, 0, RSEQ_SIGNATURE) < 0 && errno == EBUSY ? 3 : 4);
        int s = 0;
        waitpid(child, &s, 0);
        status("fork-has-it", s);
        ok("take", register_sequence(&area, 32, 1, RSEQ_SIGNATURE));
        yes("gone", area.cpu_id == 0xffffffff);
    }
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"pthread", pthread_checks}, {"futex", futex_checks}, {"raw", raw_checks}, {"rseq", rseq_checks}, {0}};
    if (argc == 2 && !strcmp(argv[1], "--execed")) return getpid() == gettid() ? 21 : 22;
    return run(argc, argv, groups);
}
