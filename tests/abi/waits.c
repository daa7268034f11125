/* Threads of one process that wait for each other by private futexes, when the calls were made so often that all that speeds them up is in place:
 * wake-ups, time-outs beside waits without, signals, stops, CPU time, ends. */
#include "abi.h"

#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { OFTEN = 60, MOST = 12 };

static long futex(int *word, int operation, int value, unsigned long timeout, int *second, int third) {
    return syscall(SYS_futex, word, operation, value, timeout, second, third);
}

static int none;

/* Calls that change nothing, so often that their site is fast. */
static void often(void) {
    for (int i = 0; i < OFTEN; i++) futex(&none, FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0), futex(&none, FUTEX_WAIT_PRIVATE, 1, 0, NULL, 0);
}

/* One who waits once, as told, and notes what came of it. */
struct waiter {
    pthread_t thread;
    int *word;
    int operation, bits;
    bool timed;
    volatile pid_t tid;
    volatile long result;
    volatile int error;
    volatile bool done;
};

static void *waits(void *argument) {
    struct waiter *waiter = argument;
    struct timespec far = {1000, 0}, *timeout = waiter->timed ? &far : NULL;
    if (waiter->timed && (waiter->operation & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET) clock_gettime(CLOCK_MONOTONIC, &far), far.tv_sec += 1000;
    waiter->tid = (pid_t)syscall(SYS_gettid);
    waiter->result = futex(waiter->word, waiter->operation, 0, (unsigned long)timeout, NULL, waiter->bits);
    waiter->error = errno;
    waiter->done = true;
    return NULL;
}

static struct waiter all[MOST];

/* Starts so many who wait for that word, every second one with a time-out if `mixed`, and waits until they sleep. */
static void start(int first, int count, int *word, int operation, int mixed) {
    for (int i = first; i < first + count; i++) {
        all[i] = (struct waiter){.word = word, .operation = operation, .bits = -1, .timed = mixed && i % 2};
        pthread_create(&all[i].thread, NULL, waits, &all[i]);
        while (!all[i].tid) sched_yield();
        settle(all[i].tid);
    }
}

static int done(int first, int count) {
    int ended = 0;
    for (int i = first; i < first + count; i++) ended += all[i].done;
    return ended;
}

/* Until so many have ended. */
static void ended(const char *name, int first, int count, int expected) {
    for (int i = 0; i < 2000 && done(first, count) < expected; i++) pause_ms(1);
    pause_ms(5);
    val(name, done(first, count));
}

static void end(int first, int count) {
    for (int i = first; i < first + count; i++) {
        while (!all[i].done) futex(all[i].word, FUTEX_WAKE, MOST, 0, NULL, 0), futex(all[i].word, FUTEX_WAKE_PRIVATE, MOST, 0, NULL, 0), sched_yield();
        pthread_join(all[i].thread, NULL);
    }
}

static void wake_checks(void) {
    int one = 0, two = 0;
    often();
    for (int mixed = 0; mixed < 2; mixed++) {
        char name[64];
#define NAME(text) (snprintf(name, sizeof name, text "%s", mixed ? "-mixed" : ""), name)
        start(0, 5, &one, FUTEX_WAIT_PRIVATE, mixed);
        val(NAME("wake-other-word"), futex(&two, FUTEX_WAKE_PRIVATE, 9, 0, NULL, 0));
        val(NAME("wake-shared"), futex(&one, FUTEX_WAKE, 9, 0, NULL, 0));
        val(NAME("wake-2"), futex(&one, FUTEX_WAKE_PRIVATE, 2, 0, NULL, 0));
        ended(NAME("ended-2"), 0, 5, 2);
        val(NAME("wake-0"), futex(&one, FUTEX_WAKE_PRIVATE, 0, 0, NULL, 0));
        ended(NAME("ended-0"), 0, 5, 3);
        val(NAME("wake-negative"), futex(&one, FUTEX_WAKE_PRIVATE, -1, 0, NULL, 0));
        ended(NAME("ended-negative"), 0, 5, 4);
        val(NAME("wake-rest"), futex(&one, FUTEX_WAKE_PRIVATE, INT_MAX, 0, NULL, 0));
        end(0, 5);
        val(NAME("result"), all[0].result);
        val(NAME("result-last"), all[4].result);
        val(NAME("wake-none"), futex(&one, FUTEX_WAKE_PRIVATE, INT_MAX, 0, NULL, 0));
        start(0, 4, &one, FUTEX_WAIT_BITSET_PRIVATE, mixed);
        val(NAME("bitset-0"), futex(&one, FUTEX_WAKE_BITSET_PRIVATE, 9, 0, NULL, 0));
        val(NAME("bitset-1"), futex(&one, FUTEX_WAKE_BITSET_PRIVATE, 1, 0, NULL, 1));
        val(NAME("bitset-all"), futex(&one, FUTEX_WAKE_BITSET_PRIVATE, 9, 0, NULL, 0x10));
        end(0, 4);
        for (int i = 0; i < 4; i++) {
            all[i] = (struct waiter){.word = &one, .operation = FUTEX_WAIT_BITSET_PRIVATE, .bits = 1 << i, .timed = mixed && i % 2};
            pthread_create(&all[i].thread, NULL, waits, &all[i]);
            while (!all[i].tid) sched_yield();
            settle(all[i].tid);
        }
        val(NAME("bits-2-4"), futex(&one, FUTEX_WAKE_BITSET_PRIVATE, 9, 0, NULL, 6));
        ended(NAME("bits-ended"), 0, 4, 2);
        yes(NAME("bits-right"), all[1].done && all[2].done);
        val(NAME("bits-none"), futex(&one, FUTEX_WAKE_BITSET_PRIVATE, 9, 0, NULL, 6));
        end(0, 4);
        start(0, 6, &one, FUTEX_WAIT_PRIVATE, mixed);
        val(NAME("requeue-other-value"), futex(&one, FUTEX_CMP_REQUEUE_PRIVATE, 1, 2, &two, 7));
        val(NAME("requeue"), futex(&one, FUTEX_CMP_REQUEUE_PRIVATE, 1, 2, &two, 0));
        ended(NAME("requeue-ended"), 0, 6, 1);
        val(NAME("requeue-there"), futex(&two, FUTEX_WAKE_PRIVATE, 9, 0, NULL, 0));
        val(NAME("requeue-left"), futex(&one, FUTEX_REQUEUE_PRIVATE, 0, 9, &two, 0));
        val(NAME("requeue-left-none"), futex(&one, FUTEX_WAKE_PRIVATE, 9, 0, NULL, 0));
        val(NAME("requeue-left-there"), futex(&two, FUTEX_WAKE_PRIVATE, 9, 0, NULL, 0));
        end(0, 6);
        start(0, 3, &one, FUTEX_WAIT_PRIVATE, mixed), start(3, 3, &two, FUTEX_WAIT_PRIVATE, mixed);
        val(NAME("wake-op"), futex(&one, FUTEX_WAKE_OP_PRIVATE, 2, 1, &two, FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_EQ, 0)));
        val(NAME("wake-op-word"), two);
        ended(NAME("wake-op-ended"), 0, 6, 3);
        val(NAME("wake-op-no"), futex(&one, FUTEX_WAKE_OP_PRIVATE, 9, 9, &two, FUTEX_OP(FUTEX_OP_SET, 0, FUTEX_OP_CMP_EQ, 0)));
        ended(NAME("wake-op-no-ended"), 0, 6, 4);
        end(0, 6);
        start(0, 2, &one, FUTEX_WAIT, mixed), start(2, 2, &one, FUTEX_WAIT_PRIVATE, mixed);
        val(NAME("private-of-both"), futex(&one, FUTEX_WAKE_PRIVATE, 9, 0, NULL, 0));
        val(NAME("shared-of-both"), futex(&one, FUTEX_WAKE, 9, 0, NULL, 0));
        end(0, 4);
    }
#undef NAME
}

static void refusal_checks(void) {
    char *edge = page_before_hole() + PAGE;
    often();
    val("value", futex(&none, FUTEX_WAIT_PRIVATE, 5, 0, NULL, 0));
    val("bitset-0", futex(&none, FUTEX_WAIT_BITSET_PRIVATE, 0, 0, NULL, 0));
    val("odd", futex((int *)((char *)&none + 1), FUTEX_WAIT_PRIVATE, 0, 0, NULL, 0));
    val("odd-wake", futex((int *)((char *)&none + 2), FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0));
    val("hole", futex((int *)edge, FUTEX_WAIT_PRIVATE, 0, 0, NULL, 0));
    val("hole-wake", futex((int *)edge, FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0));
    val("null", futex(NULL, FUTEX_WAIT_PRIVATE, 0, 0, NULL, 0));
    val("kernel", futex((int *)-4096L, FUTEX_WAIT_PRIVATE, 0, 0, NULL, 0));
    val("kernel-wake", futex((int *)-4096L, FUTEX_WAKE_PRIVATE, 0, 0, NULL, 0));
    val("last", futex((int *)(edge - 4), FUTEX_WAIT_PRIVATE, 1, 0, NULL, 0));
    val("realtime-wait", futex(&none, FUTEX_WAIT_PRIVATE | FUTEX_CLOCK_REALTIME, 5, 0, NULL, 0));
    val("realtime-wake", futex(&none, FUTEX_WAKE_PRIVATE | FUTEX_CLOCK_REALTIME, 5, 0, NULL, 0));
    val("realtime-bitset", futex(&none, FUTEX_WAIT_BITSET_PRIVATE | FUTEX_CLOCK_REALTIME, 5, 0, NULL, 1));
    val("timeout-bad", futex(&none, FUTEX_WAIT_PRIVATE, 0, 1, NULL, 0));
    struct timespec soon = {0, 3000000}, wrong = {0, 1000000000};
    val("timeout", futex(&none, FUTEX_WAIT_PRIVATE, 0, (unsigned long)&soon, NULL, 0));
    val("timeout-wrong", futex(&none, FUTEX_WAIT_PRIVATE, 0, (unsigned long)&wrong, NULL, 0));
    val("operation", futex(&none, 99 | FUTEX_PRIVATE_FLAG, 0, 0, NULL, 0));
}

static volatile int handled;
static void handler(int signal) { (void)signal, handled++; }

static void signal_checks(void) {
    int word = 0;
    often();
    for (int restart = 0; restart < 2; restart++) {
        char name[64];
#define NAME(text) (snprintf(name, sizeof name, text "%s", restart ? "-restart" : ""), name)
        struct sigaction action = {.sa_handler = handler, .sa_flags = restart ? SA_RESTART : 0};
        sigaction(SIGUSR1, &action, NULL);
        handled = 0;
        start(0, 1, &word, FUTEX_WAIT_PRIVATE, 0);
        for (int i = 1; i <= 3; i++) {
            if (all[0].done) break;
            pthread_kill(all[0].thread, SIGUSR1);
            for (int n = 0; n < 2000 && handled < i; n++) pause_ms(1);
            if (restart) settle(all[0].tid);
        }
        val(NAME("handled"), handled);
        if (restart) val(NAME("woken"), futex(&word, FUTEX_WAKE_PRIVATE, 9, 0, NULL, 0));
        ended(NAME("ended"), 0, 1, 1);
        errno = all[0].error;
        val(NAME("result"), all[0].result);
        end(0, 1);
#undef NAME
    }
    /* Many at once, at moments that nobody chooses: none is lost. */
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    handled = 0;
    start(0, 1, &word, FUTEX_WAIT_PRIVATE, 0);
    for (int i = 1; i <= 300; i++) {
        pthread_kill(all[0].thread, SIGUSR1);
        for (int n = 0; n < 5000 && handled < i; n++) n % 50 ? sched_yield() : (pause_ms(1), 0);
    }
    val("all-handled", handled);
    settle(all[0].tid);
    val("woken-after-all", futex(&word, FUTEX_WAKE_PRIVATE, 9, 0, NULL, 0));
    end(0, 1);
    CHILD("default") {
        start(0, 2, &word, FUTEX_WAIT_PRIVATE, 0);
        signal(SIGUSR2, SIG_IGN);
        pthread_kill(all[0].thread, SIGUSR2);
        settle(all[0].tid);
        val("ignored", done(0, 2));
    }
}

static double seconds(clockid_t clock) {
    struct timespec time = {0, 0};
    clock_gettime(clock, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void time_checks(void) {
    int word = 0;
    often();
    signal(SIGPROF, handler), signal(SIGVTALRM, handler);
    struct itimerval soon = {{0, 0}, {0, 200000}};
    handled = 0;
    double before = seconds(CLOCK_PROCESS_CPUTIME_ID);
    start(0, 3, &word, FUTEX_WAIT_PRIVATE, 0);
    setitimer(ITIMER_PROF, &soon, NULL), setitimer(ITIMER_VIRTUAL, &soon, NULL);
    pause_ms(400);
    clockid_t clock;
    pthread_getcpuclockid(all[0].thread, &clock);
    yes("thread-time", seconds(clock) < 0.15);
    yes("process-time", seconds(CLOCK_PROCESS_CPUTIME_ID) - before < 0.15);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    yes("usage", usage.ru_utime.tv_sec == 0 && usage.ru_utime.tv_usec < 300000);
    val("timers", handled);
    futex(&word, FUTEX_WAKE_PRIVATE, 9, 0, NULL, 0);
    end(0, 3);
    yes("process-time-after", seconds(CLOCK_PROCESS_CPUTIME_ID) - before < 0.2);
}

static int shared_word;

static int wakes_parent(void *unused) {
    (void)unused;
    shared_word = 1;
    return futex(&shared_word, FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0) == 1 ? 0 : 1;
}

static int waits_for_parent(void *unused) {
    (void)unused;
    while (__atomic_load_n(&shared_word, __ATOMIC_SEQ_CST) == 0) futex(&shared_word, FUTEX_WAIT_PRIVATE, 0, 0, NULL, 0);
    return 7;
}

static void process_checks(void) {
    static char stack[65536] __attribute__((aligned(16)));
    int word = 0, state;
    often();
    /* Processes that share memory wait for each other, too. */
    start(0, 1, &shared_word, FUTEX_WAIT_PRIVATE, 0);
    pid_t pid = clone(wakes_parent, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
    status("child-wakes", await(pid, 20000));
    ended("child-woke", 0, 1, 1);
    end(0, 1);
    shared_word = 0;
    pid = clone(waits_for_parent, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
    settle(pid);
    __atomic_store_n(&shared_word, 1, __ATOMIC_SEQ_CST);
    val("parent-wakes", futex(&shared_word, FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0));
    status("parent-woke", await(pid, 20000));
    /* One who has a copy of the memory does not. */
    start(0, 2, &word, FUTEX_WAIT_PRIVATE, 1);
    CHILD("copy") { val("copy-wakes", futex(&word, FUTEX_WAKE_PRIVATE, 9, 0, NULL, 0)); }
    val("copy-woke", done(0, 2));
    end(0, 2);
    pid = fork();
    if (pid == 0) {
        start(0, 3, &word, FUTEX_WAIT_PRIVATE, 1);
        _exit(3);
    }
    status("exit-while-others-wait", await(pid, 20000));
    pid = fork();
    if (pid == 0) {
        start(0, 3, &word, FUTEX_WAIT_PRIVATE, 0);
        futex(&word, FUTEX_WAIT_PRIVATE, 0, 0, NULL, 0);
        _exit(3);
    }
    settle(pid), pause_ms(20);
    kill(pid, SIGSTOP);
    waitpid(pid, &state, WUNTRACED);
    status("stopped", state);
    kill(pid, SIGCONT);
    waitpid(pid, &state, WCONTINUED);
    status("continued", state);
    pause_ms(20), settle(pid);
    kill(pid, SIGKILL);
    status("killed", await(pid, 20000));
    pid = fork();
    if (pid == 0) {
        start(0, 2, &word, FUTEX_WAIT_PRIVATE, 0);
        execl("/abi/waits", "waits", "none-of-the-groups", NULL);
        _exit(3);
    }
    yes("exec-while-others-wait", await(pid, 20000) != -1);
    pid = fork();
    if (pid == 0) {
        int *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        start(0, 1, page, FUTEX_WAIT_PRIVATE, 0);
        munmap(page, 4096);
        val("wake-unmapped", futex(page, FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0));
        _exit(done(0, 1) > 1);
    }
    status("unmapped", await(pid, 20000));
}

static void *waits_on(void *semaphore) {
    while (sem_wait(semaphore)) {}
    return NULL;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int items, taken;

static void *takes(void *unused) {
    for (;;) {
        pthread_mutex_lock(&lock);
        while (items == 0) pthread_cond_wait(&changed, &lock);
        int last = items == -1;
        if (!last) items--, taken++;
        pthread_mutex_unlock(&lock);
        if (last) return unused;
    }
}

static void library_checks(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, takes, NULL);
    for (int i = 0; i < 20000; i++) {
        pthread_mutex_lock(&lock), items++, pthread_mutex_unlock(&lock);
        i % 3 ? pthread_cond_signal(&changed) : pthread_cond_broadcast(&changed);
    }
    for (;;) {
        pthread_mutex_lock(&lock);
        int left = items;
        if (left == 0) items = -1;
        pthread_mutex_unlock(&lock);
        if (left == 0) break;
        sched_yield();
    }
    pthread_cond_broadcast(&changed);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    val("taken", taken);
    sem_t semaphore;
    sem_init(&semaphore, 0, 0);
    for (int round = 0; round < 40; round++) {
        pthread_create(&threads[0], NULL, waits_on, &semaphore);
        sem_post(&semaphore), pthread_join(threads[0], NULL);
    }
    pthread_create(&threads[0], NULL, waits_on, &semaphore);
    pause_ms(20);
    void *result;
    eno("cancel", pthread_cancel(threads[0]));
    pthread_join(threads[0], &result);
    yes("cancelled", result == PTHREAD_CANCELED);
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, 1);
    yes("barrier", pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD);
}

/* A filter that refuses futex(), once its call was made often: by the thread itself, and by another one for all. */
static int refuse_futex(unsigned flags) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_futex, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static volatile int filtered;

static void *refuses_for_all(void *unused) {
    filtered = refuse_futex(SECCOMP_FILTER_FLAG_TSYNC) ? -1 : 1;
    for (;;) pause();
    return unused;
}

static void filter_checks(void) {
    CHILD("own") {
        often();
        val("before", futex(&none, FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0));
        ok("filter", refuse_futex(0));
        val("wake", futex(&none, FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0));
        val("wait", futex(&none, FUTEX_WAIT_PRIVATE, 1, 0, NULL, 0));
        often();
        val("wake-later", futex(&none, FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0));
    }
    CHILD("all") {
        pthread_t thread;
        often();
        pthread_create(&thread, NULL, refuses_for_all, NULL);
        while (!filtered) futex(&none, FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0);
        val("wake-by-all", futex(&none, FUTEX_WAKE_PRIVATE, 1, 0, NULL, 0));
        val("filtered", filtered);
        _exit(0);
    }
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {
        {"wake", wake_checks}, {"refusal", refusal_checks}, {"signal", signal_checks}, {"time", time_checks},
        {"process", process_checks}, {"filter", filter_checks}, {"library", library_checks}, {NULL, NULL},
    };
    return run(argc, argv, groups);
}
