/* Users, groups, capabilities, prctl; and clocks and timers. */
#include "abi.h"

#include <grp.h>
#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/times.h>

static void ids(const char *name, long result) {
    int error = errno;
    uid_t r, e, s;
    gid_t rg, eg, sg;
    getresuid(&r, &e, &s), getresgid(&rg, &eg, &sg);
    say(name, "%s %d %d %d / %d %d %d", result < 0 ? error_name(error) : "ok", r, e, s, rg, eg, sg);
}

static unsigned long long capabilities(char which) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data)) return 1;
    uint32_t low = which == 'e' ? data[0].effective : which == 'p' ? data[0].permitted : data[0].inheritable;
    return low;
}

static void capability_line(const char *name) {
    say(name, "e %d p %d i %d kill-e %d", capabilities('e') != 0, capabilities('p') != 0, capabilities('i') != 0,
        !!(capabilities('e') & (1U << CAP_KILL)));
}

static long set_capabilities(uint32_t effective, uint32_t permitted, uint32_t inheritable) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{effective, permitted, inheritable}, {0, 0, 0}};
    return syscall(SYS_capset, &header, data);
}

static void user_checks(void) {
    CHILD("setuid") {
        ids("root-setuid", setuid(1000));
        ids("user-setuid-back", setuid(0));
        capability_line("after-setuid");
    }
    CHILD("seteuid") {
        ids("seteuid", seteuid(1000));
        capability_line("after-seteuid");
        ids("seteuid-back", seteuid(0));
        capability_line("after-seteuid-back");
    }
    CHILD("setreuid") {
        ids("setreuid", setreuid(1000, 2000));
        ids("setreuid-swap", setreuid(2000, 1000));
        ids("setreuid-other", setreuid(3000, -1));
        ids("setreuid-none", setreuid(-1, -1));
    }
    CHILD("setresuid") {
        ids("setresuid", setresuid(1, 2, 3));
        ids("setresuid-rotate", setresuid(2, 3, 1));
        ids("setresuid-other", setresuid(4, -1, -1));
        ids("setresuid-partly", setresuid(-1, 1, -1));
    }
    CHILD("setgid") {
        ids("setgid", setgid(1000));
        ids("setegid", setegid(5));
        ids("setregid", setregid(6, 7));
        ids("setresgid", setresgid(8, 9, 10));
        setresuid(1000, 1000, 1000);
        ids("user-setgid-saved", setgid(10));
        ids("user-setgid-other", setgid(77));
        ids("user-setregid", setregid(9, 8));
    }
    CHILD("keepcaps") {
        ok("keepcaps", prctl(PR_SET_KEEPCAPS, 1));
        setresuid(1000, 1000, 1000);
        capability_line("keepcaps-line");
        ok("keepcaps-raise", set_capabilities(1U << CAP_KILL, 1U << CAP_KILL, 0));
        capability_line("keepcaps-raised");
        ok("keepcaps-raise-more", set_capabilities(1U << CAP_CHOWN, 1U << CAP_CHOWN, 0));
        ok("keepcaps-inheritable", set_capabilities(0, 1U << CAP_KILL, 1U << CAP_KILL));
        ok("ambient-raise", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
        val("ambient-is", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_KILL, 0, 0));
        ok("ambient-raise-not-permitted", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN, 0, 0));
        ok("ambient-clear", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
        ok("bounding-drop-user", prctl(PR_CAPBSET_DROP, CAP_CHOWN));
    }
    CHILD("drop") {
        val("bounding-read", prctl(PR_CAPBSET_READ, CAP_CHOWN));
        ok("bounding-drop", prctl(PR_CAPBSET_DROP, CAP_CHOWN));
        val("bounding-dropped", prctl(PR_CAPBSET_READ, CAP_CHOWN));
        val("bounding-64", prctl(PR_CAPBSET_READ, 64));
        make_file("file", "x", 0644);
        uint32_t had = (uint32_t)capabilities('p');
        ok("chown-with", chown("file", 5, 5));
        ok("capset-without-chown", set_capabilities(had & ~(1U << CAP_CHOWN), had & ~(1U << CAP_CHOWN), 0));
        ok("chown-without", chown("file", 6, 6));
        ok("capset-back", set_capabilities(had, had, 0));
        ok("capset-none", set_capabilities(0, 0, 0));
        make_file("secret", "x", 0600);
        ids("setuid-without", setuid(1000));
        ok("mknod-without", mknod("dev", S_IFCHR | 0600, 0x103));
        ok("chroot-without", chroot("."));
        ok("sethostname-without", sethostname("x", 1));
        ok("setgroups-without", setgroups(0, NULL));
        ok("nice-without", setpriority(PRIO_PROCESS, 0, -5));
    }
    CHILD("securebits") {
        ok("securebits", prctl(PR_SET_SECUREBITS, 1 << 2));
        val("securebits-get", prctl(PR_GET_SECUREBITS));
        setresuid(1000, 1000, 1000);
        capability_line("no-setuid-fixup");
    }
    struct __user_cap_header_struct header = {0x12345678, 0};
    struct __user_cap_data_struct data[2];
    ok("capget-version", (long)syscall(SYS_capget, &header, data));
    say("capget-version-told", "%#x", header.version);
    header.pid = -1;
    ok("capget-negative", (long)syscall(SYS_capget, &header, data));
    header = (struct __user_cap_header_struct){_LINUX_CAPABILITY_VERSION_3, 0x3fffffff};
    ok("capget-absent", (long)syscall(SYS_capget, &header, data));
    ok("capset-other", (header.pid = getppid(), (long)syscall(SYS_capset, &header, data)));
    ok("capget-v1", (header = (struct __user_cap_header_struct){_LINUX_CAPABILITY_VERSION_1, 0}, (long)syscall(SYS_capget, &header, data)));
    CHILD("groups") {
        gid_t list[5] = {7, 3, 9, 3, 1}, got[70000 / 4];
        ok("setgroups", setgroups(5, list));
        val("getgroups-0", getgroups(0, NULL));
        val("getgroups-small", getgroups(3, got));
        val("getgroups", getgroups(5, got));
        say("getgroups-sorted", "%d %d %d %d %d", got[0], got[1], got[2], got[3], got[4]);
        ok("setgroups-many", (long)syscall(SYS_setgroups, 65537, got));
        ok("getgroups-negative", getgroups(-1, got));
        as_user();
        ok("setgroups-user", setgroups(0, NULL));
    }
    CHILD("fsuid") {
        chmod(".", 0777);
        val("setfsuid", setfsuid(1000));
        val("setfsuid-was", setfsuid(-1));
        val("setfsgid", setfsgid(1000));
        struct stat st;
        close(creat("by-fsuid-2", 0600));
        say("fsuid-file", "%d %d", stat("by-fsuid-2", &st) ? -1 : (int)st.st_uid, (int)st.st_gid);
        seteuid(5);
        val("seteuid-sets-fsuid", setfsuid(-1));
    }
    CHILD("prctl") {
        char name[16];
        ok("dumpable-2", prctl(PR_SET_DUMPABLE, 2));
        ok("dumpable-0", prctl(PR_SET_DUMPABLE, 0));
        val("dumpable", prctl(PR_GET_DUMPABLE));
        ok("name-null", prctl(PR_SET_NAME, NULL));
        ok("name", prctl(PR_SET_NAME, "name"));
        prctl(PR_GET_NAME, name);
        say("name-is", "%s", name);
        ok("timerslack", prctl(PR_SET_TIMERSLACK, 12345));
        val("timerslack-is", prctl(PR_GET_TIMERSLACK));
        ok("nnp-args", prctl(PR_SET_NO_NEW_PRIVS, 1, 1, 0, 0));
        val("nnp", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
        val("seccomp", prctl(PR_GET_SECCOMP));
        ok("unknown", prctl(12345));
        val("tsc", prctl(PR_GET_TSC, NULL));
        ok("mce", prctl(PR_MCE_KILL_GET, 0, 0, 0, 0));
        ok("mm-map-size", prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, name, 0, 0));
    }
    CHILD("umask") {
        mode_t first = umask(07777), second = umask(0);
        say("umask", "%o %o %o", first, second, umask(022));
    }
    CHILD("host-name") {
        char text[80] = "";
        syscall(SYS_unshare, 0x04000000 /* CLONE_NEWUTS */);
        ok("sethostname", sethostname("name.of.test", 12));
        gethostname(text, sizeof text);
        say("hostname", "%s", text);
        memset(text, 'h', sizeof text);
        ok("sethostname-65", sethostname(text, 65));
        ok("sethostname-64", sethostname(text, 64));
        ok("sethostname-negative", (long)syscall(SYS_sethostname, text, -1));
        ok("setdomainname", setdomainname("d", 1));
        as_user();
        ok("sethostname-user", sethostname("x", 1));
    }
}

static volatile sig_atomic_t rings;
static void ring(int signal) { (void)signal, rings++; }

static void clock_checks(void) {
    struct timespec now, later, brief = {0, 2000000}, left = {9, 9}, past = {0, 0};
    const int clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, CLOCK_MONOTONIC_RAW,
                          CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME};
    for (int i = 0; i < 8; i++) {
        char name[32];
        snprintf(name, sizeof name, "clock-%d", clocks[i]);
        clock_gettime(clocks[i], &now), clock_gettime(clocks[i], &later);
        say(name, "order %d normal %d", later.tv_sec > now.tv_sec || (later.tv_sec == now.tv_sec && later.tv_nsec >= now.tv_nsec),
            now.tv_nsec >= 0 && now.tv_nsec < 1000000000);
        snprintf(name, sizeof name, "resolution-%d", clocks[i]);
        clock_getres(clocks[i], &now);
        say(name, "%s", now.tv_sec == 0 && now.tv_nsec == 1 ? "1ns" : now.tv_sec == 0 && now.tv_nsec <= 10000000 ? "tick" : "other");
    }
    yes("realtime-sane", time(NULL) > 1600000000);
    struct timeval tv;
    gettimeofday(&tv, NULL);
    yes("gettimeofday-agrees", labs(tv.tv_sec - time(NULL)) <= 1);
    yes("monotonic-advances", (clock_gettime(CLOCK_MONOTONIC, &now), pause_ms(5), clock_gettime(CLOCK_MONOTONIC, &later),
                               (later.tv_sec - now.tv_sec) * 1000000000L + later.tv_nsec - now.tv_nsec >= 5000000));
    ok("nanosleep", nanosleep(&brief, &left));
    say("nanosleep-left-untouched", "%ld %ld", left.tv_sec, left.tv_nsec);
    eno("absolute-past", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &past, NULL));
    eno("thread-clock", clock_nanosleep(CLOCK_THREAD_CPUTIME_ID, 0, &brief, NULL));
    CHILD("interrupted") {
        struct sigaction action = {.sa_handler = ring};
        sigaction(SIGALRM, &action, NULL);
        struct timespec minute = {60, 0};
        alarm(1);
        ok("interrupted", nanosleep(&minute, &left));
        yes("interrupted-left", left.tv_sec >= 50 && left.tv_sec <= 59);
        alarm(1);
        eno("interrupted-clock", clock_nanosleep(CLOCK_MONOTONIC, 0, &minute, &left));
        struct timespec end;
        clock_gettime(CLOCK_MONOTONIC, &end);
        end.tv_sec += 60, left = (struct timespec){7, 7};
        alarm(1);
        eno("interrupted-absolute", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, &left));
        say("interrupted-absolute-left", "%ld", (long)left.tv_sec);
    }
    signal(SIGALRM, ring), signal(SIGVTALRM, ring), signal(SIGPROF, ring);
    struct itimerval timer = {{0, 0}, {100, 0}}, old;
    ok("setitimer", setitimer(ITIMER_REAL, &timer, NULL));
    getitimer(ITIMER_REAL, &old);
    yes("getitimer", old.it_value.tv_sec >= 90 && old.it_value.tv_sec <= 100);
    yes("alarm-shares", alarm(0) >= 90);
    val("alarm-off", alarm(0));
    timer.it_value.tv_usec = 1000000;
    ok("setitimer-usec", setitimer(ITIMER_REAL, &timer, NULL));
    for (int which = ITIMER_VIRTUAL; which <= ITIMER_PROF; which++) {
        char name[32];
        rings = 0, timer = (struct itimerval){{0, 0}, {0, 10000}};
        setitimer(which, &timer, NULL);
        while (!rings) {}
        snprintf(name, sizeof name, "itimer-%d", which);
        val(name, rings);
    }
    struct sigevent none = {.sigev_notify = SIGEV_NONE}, odd = {.sigev_notify = 99}, bad = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = 99};
    timer_t id;
    struct itimerspec far = {{1, 0}, {1000, 0}}, seen, wrong = {{0, 0}, {0, -1}}, soon = {{0, 1000000}, {0, 1000000}};
    ok("timer-create", timer_create(CLOCK_MONOTONIC, &none, &id));
    ok("timer-settime", timer_settime(id, 0, &far, NULL));
    timer_gettime(id, &seen);
    say("timer-gettime", "%ld %d", (long)seen.it_interval.tv_sec, seen.it_value.tv_sec >= 990);
    ok("timer-settime-bad", timer_settime(id, 0, &wrong, NULL));
    val("timer-overrun", timer_getoverrun(id));
    ok("timer-delete", timer_delete(id));
    ok("timer-create-notify", timer_create(CLOCK_MONOTONIC, &odd, &id));
    ok("timer-create-signal", timer_create(CLOCK_MONOTONIC, &bad, &id));
    ok("timer-create-clock", timer_create(55, &none, &id));
    ok("timer-create-coarse", timer_create(CLOCK_MONOTONIC_COARSE, &none, &id));
    CHILD("overrun") {
        sigset_t set;
        siginfo_t info;
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
        sigemptyset(&set), sigaddset(&set, SIGUSR1), sigprocmask(SIG_BLOCK, &set, NULL);
        timer_create(CLOCK_MONOTONIC, &event, &id);
        timer_settime(id, 0, &soon, NULL);
        pause_ms(30);
        sigwaitinfo(&set, &info);
        yes("overrun-many", info.si_overrun >= 10);
        yes("overrun-asked", timer_getoverrun(id) >= 10);
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    yes("usage-moves", usage.ru_utime.tv_sec * 1000000 + usage.ru_utime.tv_usec + usage.ru_stime.tv_sec * 1000000 + usage.ru_stime.tv_usec >= 10000);
    struct tms spent;
    yes("times", times(&spent) != -1 && spent.tms_utime + spent.tms_stime > 0 && spent.tms_cutime >= 0);
    clockid_t other;
    eno("cpuclock-self", clock_getcpuclockid(0, &other));
    ok("cpuclock-read", clock_gettime(other, &now));
    eno("cpuclock-absent", clock_getcpuclockid(0x3fffffff, &other));
}

static void adjust_checks(void) {
    struct timex {
        unsigned modes;
        long rest[25];
    } clock = {0};
    yes("looks", syscall(SYS_adjtimex, &clock) >= 0);
    yes("tick", clock.rest[10] >= 9000 && clock.rest[10] <= 11000);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    yes("time", labs(clock.rest[8] - now.tv_sec) < 5);
    clock.modes = 0xa001;
    yes("offset-looks", syscall(SYS_adjtimex, &clock) >= 0);
    clock.modes = 0x8000;
    ok("no-single-shot", syscall(SYS_adjtimex, &clock));
    ok("fault", syscall(SYS_adjtimex, NULL));
    clock.modes = 0;
    yes("clock-looks", syscall(SYS_clock_adjtime, CLOCK_REALTIME, &clock) >= 0);
    ok("clock-monotonic", syscall(SYS_clock_adjtime, CLOCK_MONOTONIC, &clock));
    ok("clock-absent", syscall(SYS_clock_adjtime, 99, &clock));
    CHILD("user") {
        as_user();
        clock.modes = 1;
        ok("user-changes", syscall(SYS_adjtimex, &clock));
        clock.modes = 0;
        yes("user-looks", syscall(SYS_adjtimex, &clock) >= 0);
    }
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"user", user_checks}, {"clock", clock_checks}, {"adjust", adjust_checks}, {0}};
    return run(argc, argv, groups);
}
