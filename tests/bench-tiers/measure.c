// What a kernel costs a program: prints lines of `name value`, each value the median of some rounds. One static program for all of `./x bench tiers`.
//
//   measure first | sleep | up | syscalls | memory | files | process | network [quick]
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int rounds = 9;
static double scale = 1;

static void die(const char *what) {
    fprintf(stderr, "measure: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static int order(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Median of the time of one of `times` calls of `work`, in units of `unit` ns.
static void report(const char *name, long times, double unit, void (*work)(long)) {
    double all[16];
    times = times * scale < 1 ? 1 : times * scale;
    work(times / 10 + 1);
    for (int i = 0; i < rounds; i++) {
        double begin = now();
        work(times);
        all[i] = (now() - begin) / times / unit;
    }
    qsort(all, rounds, sizeof all[0], order);
    printf("%s %.3f\n", name, all[rounds / 2]);
    fflush(stdout);
}

// Calls.

static void do_getpid(long n) { while (n--) getpid(); }
static void do_getppid(long n) { while (n--) getppid(); }
static void do_clock(long n) {
    struct timespec t;
    while (n--) clock_gettime(CLOCK_MONOTONIC, &t);
}
static void do_clock_trapped(long n) {
    struct timespec t;
    while (n--) syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
}
// The number comes by way of a register from elsewhere, so that nobody can tell from the code which call it is.
static void do_in_register(long n) {
    volatile long number = SYS_getppid;
    long kept = number, result;
    while (n--) __asm__ volatile("mov %1, %%rax\n\tsyscall" : "=&a"(result) : "r"(kept) : "rcx", "r11", "memory");
}
static int null_fd;
static void do_write_null(long n) { while (n--) if (write(null_fd, "x", 1) != 1) die("write"); }
static void handler(int signal) { (void)signal; }
static void do_raise(long n) { while (n--) raise(SIGUSR1); }

static void syscalls(void) {
    report("getpid", 20000, 1, do_getpid);
    report("getppid", 20000, 1, do_getppid);
    report("number_in_register", 5000, 1, do_in_register);
    report("clock_vdso", 200000, 1, do_clock);
    report("clock_trapped", 5000, 1, do_clock_trapped);
    if ((null_fd = open("/dev/null", O_WRONLY)) < 0) die("/dev/null");
    report("write_null", 20000, 1, do_write_null);
    signal(SIGUSR1, handler);
    report("signal", 2000, 1, do_raise);
}

// Memory.

static void do_mmap(long n) {
    while (n--) {
        char *p = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || munmap(p, 16384)) die("mmap");
    }
}
static void do_fault(long n) {
    size_t size = n * 4096UL;
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) die("mmap");
    madvise(p, size, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < size; i += 4096) p[i] = 1;
    munmap(p, size);
}
static void do_file_fault(long n) {
    int fd = open("/opt/bench/large", O_RDONLY);
    size_t size = n * 4096UL;
    volatile char *p = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (fd < 0 || p == MAP_FAILED) die("large");
    for (size_t i = 0; i < size; i += 4096) (void)p[i];
    munmap((void *)p, size);
    close(fd);
}

static void memory(void) {
    report("mmap_munmap", 2000, 1, do_mmap);
    report("page_fault", 8192, 1, do_fault);
    report("page_fault_file", 8192, 1, do_file_fault);
}

// Files.

static void do_open(long n) {
    char bytes[4096];
    while (n--) {
        int fd = open("/opt/bench/1k", O_RDONLY);
        if (fd < 0 || read(fd, bytes, sizeof bytes) != 1024) die("1k");
        close(fd);
    }
}
static void do_stat(long n) {
    struct stat s;
    while (n--) if (stat("/opt/bench/1k", &s)) die("stat");
}
static void do_stat_missing(long n) {
    struct stat s;
    while (n--) if (!stat("/opt/bench/none", &s)) die("stat");
}
static int large;
static void do_pread(long n) {
    char bytes[4096];
    for (long i = 0; i < n; i++) if (pread(large, bytes, 4096, (i * 7919L % 16384) * 4096) != 4096) die("pread");
}
static void do_create(long n) {
    while (n--) {
        int fd = open("/tmp/made", O_CREAT | O_WRONLY | O_TRUNC, 0600);
        if (fd < 0 || write(fd, "x", 1) != 1 || close(fd) || unlink("/tmp/made")) die("create");
    }
}

static void files(void) {
    report("open_read_close", 2000, 1, do_open);
    report("stat", 4000, 1, do_stat);
    report("stat_missing", 4000, 1, do_stat_missing);
    report("create_write_unlink", 1000, 1, do_create);
    if ((large = open("/opt/bench/large", O_RDONLY)) < 0) die("large");
    report("pread_4k", 4000, 1, do_pread);
    static char bytes[1 << 18];
    double all[16];
    for (int i = 0; i < rounds; i++) {
        double begin = now();
        long got, total = 0;
        lseek(large, 0, SEEK_SET);
        while ((got = read(large, bytes, sizeof bytes)) > 0) total += got;
        all[i] = total / 1048576.0 / ((now() - begin) / 1e9);
    }
    qsort(all, rounds, sizeof all[0], order);
    printf("read_sequential %.3f\n", all[rounds / 2]);
}

// Processes, threads, and what wakes them.

static void wait_for(pid_t pid) {
    int status;
    if (waitpid(pid, &status, 0) != pid || status) die("child");
}
static void do_fork(long n) {
    while (n--) {
        pid_t pid = fork();
        if (pid < 0) die("fork");
        if (!pid) {
            execl("/bin/true", "true", NULL);
            _exit(1);
        }
        wait_for(pid);
    }
}
static void do_vfork(long n) {
    while (n--) {
        pid_t pid = vfork();
        if (pid < 0) die("vfork");
        if (!pid) {
            execl("/bin/true", "true", NULL);
            _exit(1);
        }
        wait_for(pid);
    }
}
static void *nothing(void *x) { return x; }
static void do_thread(long n) {
    while (n--) {
        pthread_t t;
        if (pthread_create(&t, NULL, nothing, NULL)) die("thread");
        pthread_join(t, NULL);
    }
}

static int ping[2], pong[2];
static void *echo(void *x) {
    char c;
    while (read(ping[0], &c, 1) == 1 && write(pong[1], &c, 1) == 1) {}
    return x;
}
static void do_round_trip(long n) {
    char c = 'x';
    while (n--) if (write(ping[1], &c, 1) != 1 || read(pong[0], &c, 1) != 1) die("round trip");
}
// With another process at the other end.
static void with_echo(const char *name, long times) {
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (!pid) {
        close(ping[1]);
        echo(NULL);
        _exit(0);
    }
    report(name, times, 1000, do_round_trip);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    for (int i = 0; i < 2; i++) close(ping[i]), close(pong[i]);
}

static unsigned turn;
static void futex_wait_for(unsigned wanted) {
    unsigned seen;
    while ((seen = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) != wanted)
        syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}
static void futex_give(unsigned to) {
    __atomic_store_n(&turn, to, __ATOMIC_RELEASE);
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}
static void *futex_other(void *x) {
    long n = (long)x;
    while (n--) {
        futex_wait_for(1);
        futex_give(0);
    }
    return NULL;
}
static void do_futex(long n) {
    pthread_t t;
    if (pthread_create(&t, NULL, futex_other, (void *)n)) die("thread");
    while (n--) {
        futex_give(1);
        futex_wait_for(0);
    }
    pthread_join(t, NULL);
}

static void process(void) {
    report("fork_exec", 40, 1000, do_fork);
    report("vfork_exec", 40, 1000, do_vfork);
    report("thread", 200, 1000, do_thread);
    report("futex_round_trip", 1000, 1000, do_futex);
    if (pipe(ping) || pipe(pong)) die("pipe");
    with_echo("pipe_round_trip", 1000);
    int a[2], b[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, a) || socketpair(AF_UNIX, SOCK_STREAM, 0, b)) die("socketpair");
    ping[0] = a[0], ping[1] = a[1], pong[0] = b[0], pong[1] = b[1];
    with_echo("unix_round_trip", 1000);
}

// Loopback of a new network namespace is down, in some sandboxes. Whoever has it up already may refuse.
static void up(void) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0) die("socket");
    ioctl(fd, SIOCSIFFLAGS, &request);
    close(fd);
}

static void network(void) {
    up();
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof to;
    int listener = socket(AF_INET, SOCK_STREAM, 0), a = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&to, length) || listen(listener, 1) ||
        getsockname(listener, (struct sockaddr *)&to, &length) || connect(a, (struct sockaddr *)&to, length))
        die("connect");
    int b = accept(listener, NULL, NULL);
    ping[0] = pong[1] = b, ping[1] = pong[0] = a;
    with_echo("tcp_round_trip", 1000);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (argc > 2) rounds = 3, scale = 0.2;
    if (!strcmp(what, "first") || !strcmp(what, "sleep")) {
        if (write(1, "!", 1) != 1) return 1;
        if (*what == 's') for (;;) pause();
        return 0;
    }
    if (!strcmp(what, "up")) up();
    else if (!strcmp(what, "syscalls")) syscalls();
    else if (!strcmp(what, "memory")) memory();
    else if (!strcmp(what, "files")) files();
    else if (!strcmp(what, "process")) process();
    else if (!strcmp(what, "network")) network();
    else return 2;
    return 0;
}
