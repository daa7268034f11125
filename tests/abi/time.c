/* One time, whichever way it is asked for: by the vDSO, by a system call, by what waits for it. */
#include "abi.h"

#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/auxv.h>
#include <sys/sysinfo.h>
#include <sys/timerfd.h>

#define SECOND 1000000000LL
#define LENGTH(list) (sizeof(list) / sizeof *(list))

static const int clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME,
                             CLOCK_TAI};

static long long of(struct timespec time) { return time.tv_sec * SECOND + time.tv_nsec; }

static struct timespec time_of(long long nanoseconds) { return (struct timespec){nanoseconds / SECOND, nanoseconds % SECOND}; }

static long long by_vdso(int clock) {
    struct timespec time = {0, 0};
    clock_gettime(clock, &time);
    return of(time);
}

static long long by_call(int clock) {
    struct timespec time = {0, 0};
    syscall(SYS_clock_gettime, clock, &time);
    return of(time);
}

static long turns_back(int clock, int rounds) {
    long back = 0;
    for (long long last = 0; rounds > 0; rounds--) {
        long long first = by_vdso(clock), second = by_call(clock), third = by_vdso(clock);
        back += first < last || second < first || third < second;
        last = third;
    }
    return back;
}

static void both_ways(void) {
    for (size_t i = 0; i < LENGTH(clocks); i++) {
        char name[32];
        snprintf(name, sizeof name, "turns-back-%d", clocks[i]);
        val(name, turns_back(clocks[i], 2000));
        struct timespec vdso = {7, 7}, call = {8, 8};
        snprintf(name, sizeof name, "resolution-%d", clocks[i]);
        say(name, "%d %d %d", clock_getres(clocks[i], &vdso), (int)syscall(SYS_clock_getres, clocks[i], &call), of(vdso) == of(call));
    }
    const int none[] = {10, 12, 99, -1, INT_MIN, INT_MAX};
    for (size_t i = 0; i < LENGTH(none); i++) {
        char name[32];
        struct timespec time;
        snprintf(name, sizeof name, "none-%d", none[i]);
        ok(name, clock_gettime(none[i], &time));
        snprintf(name, sizeof name, "none-res-%d", none[i]);
        ok(name, clock_getres(none[i], &time));
    }
    ok("resolution-null", clock_getres(CLOCK_MONOTONIC, NULL));
    struct timeval tv;
    int back = 0;
    for (int round = 0; round < 1000; round++) {
        long long before = by_vdso(CLOCK_REALTIME) / 1000;
        gettimeofday(&tv, NULL);
        long long now = tv.tv_sec * 1000000LL + tv.tv_usec;
        syscall(SYS_gettimeofday, &tv, NULL);
        back += now < before || tv.tv_sec * 1000000LL + tv.tv_usec < now;
    }
    val("gettimeofday-turns-back", back);
    time_t told;
    yes("time", time(&told) == told && labs(told - (long)syscall(SYS_time, NULL)) <= 1);
    unsigned cpu = 99999, node = 99999;
    yes("getcpu", getcpu(&cpu, &node) == 0 && cpu < 4096 && node < 1024);
    yes("cpu-time", by_vdso(CLOCK_PROCESS_CPUTIME_ID) > 0 && by_vdso(CLOCK_THREAD_CPUTIME_ID) > 0);
    yes("boottime-not-behind", by_vdso(CLOCK_MONOTONIC) <= by_vdso(CLOCK_BOOTTIME));
}

static _Atomic long long latest;
static _Atomic long behind;

static void *look(void *odd) {
    for (int round = 0; round < 20000; round++) {
        long long seen = latest, now = (round & 15) == 0 && odd ? by_call(CLOCK_MONOTONIC) : by_vdso(CLOCK_MONOTONIC);
        behind += now < seen;
        while (seen < now && !__atomic_compare_exchange_n(&latest, &seen, now, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
    }
    return NULL;
}

static void threads_agree(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, look, i & 1 ? &latest : NULL);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    val("behind", behind);
}

/* Whoever waits until a time sees that time, and not long after. */
static void waited(const char *name, int clock, long long until, long result) {
    long long now = by_vdso(clock);
    say(name, "%s %s", result == 0 ? "ok" : error_name(errno), now < until ? "early" : now < until + 20 * SECOND ? "in time" : "late");
}

static void waits_agree(void) {
    const int kinds[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME};
    for (size_t i = 0; i < LENGTH(kinds); i++) {
        char name[32];
        long long until = by_vdso(kinds[i]) + 5000000;
        struct timespec time = time_of(until);
        snprintf(name, sizeof name, "sleep-%d", kinds[i]);
        waited(name, kinds[i], until, clock_nanosleep(kinds[i], TIMER_ABSTIME, &time, NULL));
        int timer = timerfd_create(kinds[i], 0);
        until = by_vdso(kinds[i]) + 5000000;
        struct itimerspec setting = {{0, 0}, time_of(until)}, left = {{9, 9}, {9, 9}};
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &setting, NULL);
        snprintf(name, sizeof name, "timerfd-left-%d", kinds[i]);
        timerfd_gettime(timer, &left);
        yes(name, of(left.it_value) <= 5000000);
        uint64_t count = 0;
        snprintf(name, sizeof name, "timerfd-%d", kinds[i]);
        waited(name, kinds[i], until, read(timer, &count, 8) == 8 ? 0 : -1);
        close(timer);
        timer_t id;
        struct sigevent none = {.sigev_notify = SIGEV_NONE};
        timer_create(kinds[i], &none, &id);
        setting.it_value = time_of(by_vdso(kinds[i]) + 100 * SECOND);
        timer_settime(id, TIMER_ABSTIME, &setting, NULL);
        timer_gettime(id, &left);
        snprintf(name, sizeof name, "timer-left-%d", kinds[i]);
        yes(name, left.it_value.tv_sec >= 80 && left.it_value.tv_sec <= 100);
        timer_delete(id);
    }
    const int futexes[] = {FUTEX_WAIT_BITSET, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME};
    for (int i = 0; i < 2; i++) {
        int word = 0, clock = i ? CLOCK_REALTIME : CLOCK_MONOTONIC;
        long long until = by_vdso(clock) + 5000000;
        struct timespec time = time_of(until);
        long result = syscall(SYS_futex, &word, futexes[i] | FUTEX_PRIVATE_FLAG, 0, &time, NULL, FUTEX_BITSET_MATCH_ANY);
        waited(i ? "futex-real" : "futex", clock, until, result);
    }
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition;
    pthread_condattr_t kind;
    pthread_condattr_init(&kind), pthread_condattr_setclock(&kind, CLOCK_MONOTONIC), pthread_cond_init(&condition, &kind);
    long long until = by_vdso(CLOCK_MONOTONIC) + 5000000;
    struct timespec time = time_of(until);
    pthread_mutex_lock(&mutex);
    errno = pthread_cond_timedwait(&condition, &mutex, &time);
    waited("condition", CLOCK_MONOTONIC, until, errno ? -1 : 0);
}

static double number_in(const char *path, const char *before) {
    static char text[65536];
    int file = open(path, O_RDONLY);
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    text[size < 0 ? 0 : size] = 0;
    char *at = strstr(text, before);
    return at ? atof(at + strlen(before)) : -1;
}

static void the_machine_agrees(void) {
    double up = by_vdso(CLOCK_BOOTTIME) / 1e9, real = by_vdso(CLOCK_REALTIME) / 1e9;
    struct sysinfo info;
    sysinfo(&info);
    double told = number_in("/proc/uptime", ""), began = number_in("/proc/stat", "btime ");
    yes("uptime", told > up - 0.1 && told < up + 10);
    yes("sysinfo", info.uptime >= (long)up - 1 && info.uptime < up + 10);
    yes("began", began > real - up - 3 && began < real - up + 3);
    long long before = by_vdso(CLOCK_BOOTTIME) / 10000000;
    pid_t child = fork();
    if (child == 0) pause(), _exit(0);
    long long after = by_vdso(CLOCK_BOOTTIME) / 10000000, started = -1;
    char path[32], text[1024] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", child);
    int file = open(path, O_RDONLY);
    read(file, text, sizeof text - 1), close(file);
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
    if (at) started = atoll(at);
    yes("started", started >= before - 1 && started <= after + 1);
    kill(child, SIGKILL), waitpid(child, NULL, 0);
}

static sigjmp_buf out;
static volatile sig_atomic_t caught;
static void catch(int signal) { caught = signal, siglongjmp(out, 1); }

/* Where a line of /proc/self/maps that ends so begins. */
static char *mapped(const char *name) {
    static char text[65536];
    int file = open("/proc/self/maps", O_RDONLY);
    ssize_t size = 0, part;
    while ((part = read(file, text + size, sizeof text - 1 - size)) > 0) size += part;
    close(file);
    text[size] = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
        if (strlen(line) > strlen(name) && !strcmp(line + strlen(line) - strlen(name), name)) return (char *)strtoul(line, NULL, 16);
    return NULL;
}

static void its_pages(void) {
    char *code = mapped("[vdso]"), *data = mapped("[vvar]");
    yes("header", code != NULL && code == (char *)getauxval(AT_SYSINFO_EHDR) && !memcmp(code, "\177ELF", 4));
    yes("data", data != NULL && data < code);
    signal(SIGSEGV, catch), signal(SIGBUS, catch);
    char *places[] = {data, code};
    const char *names[] = {"write-data", "write-code"};
    for (int i = 0; i < 2; i++) {
        caught = 0;
        if (sigsetjmp(out, 1) == 0) *(volatile char *)places[i] = 1;
        say(names[i], "%s", signal_name(caught));
    }
    signal(SIGSEGV, SIG_DFL), signal(SIGBUS, SIG_DFL);
    ok("protect-data", mprotect(data, PAGE, PROT_READ | PROT_WRITE));
    int memory = open("/proc/self/mem", O_RDWR);
    char head[4] = "";
    val("mem-read-code", pread(memory, head, 4, (off_t)(uintptr_t)code));
    say("mem-head", "%.3s", head + 1);
    struct iovec here = {head, 4}, there = {code, 4};
    val("process-read-code", process_vm_readv(getpid(), &here, 1, &there, 1, 0));
    okp("grow", mremap(data, PAGE, 64 * PAGE, MREMAP_MAYMOVE));
    CHILD("gone") {
        munmap(code, PAGE);
        yes("call-goes-on", by_call(CLOCK_MONOTONIC) > 0);
    }
    long long before = by_vdso(CLOCK_MONOTONIC);
    CHILD("forked") { yes("fork-goes-on", by_vdso(CLOCK_MONOTONIC) >= before && turns_back(CLOCK_MONOTONIC, 100) == 0); }
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"ways", both_ways},           {"threads", threads_agree}, {"waits", waits_agree},
                                           {"machine", the_machine_agrees}, {"pages", its_pages},       {0}};
    return run(argc, argv, groups);
}
