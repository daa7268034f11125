#include "gen.h"

#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>

enum { CALL_LIMIT = 10000 };

/* The last 64 bytes before an unmapped page. */
static char *edge;
static char *readonly;
static char *good;
static char *sixteen_pages;

#define COUNT(list) ((int)(sizeof list / sizeof *list))
#define MADE(name, ...)                                      \
    static const struct value name##_names[] = {__VA_ARGS__}; \
    static long name##_make(int number);                     \
    const struct kind name = {name##_names, COUNT(name##_names), name##_make}; \
    static long name##_make(int number)
#define FIXED(name, ...)                                     \
    static const struct value name##_names[] = {__VA_ARGS__}; \
    const struct kind name = {name##_names, COUNT(name##_names), NULL}

/* The first value of each kind is a good one: it is what the others are tried with. */
MADE(FD, {"file", 0}, {"-1", 0}, {"closed", 0}, {"huge", 0}, {"dir", 0}, {"path", 0}, {"rdonly", 0}, {"wronly", 0}, {"pipe-r", 0},
     {"pipe-w", 0}, {"socket", 0}, {"epoll", 0}, {"eventfd", 0}, {"timerfd", 0}, {"inotify", 0}) {
    int p[2];
    switch (number) {
    case 1: return -1;
    case 2: return 200;
    case 3: return INT_MAX;
    case 4: return open(".", O_RDONLY | O_DIRECTORY);
    case 5: return open("file", O_PATH);
    case 6: return open("file", O_RDONLY);
    case 7: return open("file", O_WRONLY);
    case 8: return pipe2(p, O_NONBLOCK), write(p[1], "piped", 5), p[0];
    case 9: return pipe2(p, O_NONBLOCK), p[1];
    case 10: return socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, p), write(p[1], "sock", 4), p[0];
    case 11: return epoll_create1(0);
    case 12: return eventfd(1, EFD_NONBLOCK);
    case 13: return timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    case 14: return inotify_init1(IN_NONBLOCK);
    default: return open("file", O_RDWR);
    }
}

MADE(AT, {"CWD", 0}, {"-1", 0}, {"dir", 0}, {"file", 0}, {"path-dir", 0}) {
    const long values[] = {AT_FDCWD, -1, open("dir", O_RDONLY), open("file", O_RDONLY), open("dir", O_PATH)};
    return values[number];
}

static char *at_edge(const char *text, size_t length) { return memcpy(edge + PAGE - length, text, length); }

static long path_make(int number, const char *first) {
    static char long_name[5000];
    memset(long_name, 'l', sizeof long_name - 1);
    switch (number) {
    case 1: return 0;
    case 2: return (long)0xffff800000001000;
    case 3: return (long)"";
    case 4: return (long)memset(edge, 'u', PAGE);
    case 5: return (long)at_edge("file", 5);
    case 6: return long_name[256] = 0, (long)long_name;
    case 7: return (long)long_name;
    case 8: return (long)"/";
    case 9: return (long)"dir";
    case 10: return (long)"file/";
    case 11: return (long)"dir/";
    case 12: return (long)"file/x";
    case 13: return (long)"absent/x";
    case 14: return (long)"link";
    case 15: return (long)"loop";
    case 16: return (long)"dangling";
    case 17: return (long)(strcmp(first, "file") ? "file" : "absent");
    case 18: return (long)"fifo";
    case 19: return (long)"..";
    default: return (long)first;
    }
}

#define PATH_NAMES                                                                                                                  \
    {"NULL", 0}, {"kernel", 0}, {"empty", 0}, {"page-unended", 0}, {"before-hole", 0}, {"name-256", 0}, {"path-4999", 0}, {"/", 0}, \
        {"dir", 0}, {"file/", 0}, {"dir/", 0}, {"file/x", 0}, {"absent/x", 0}, {"link", 0}, {"loop", 0}, {"dangling", 0}
MADE(PATH, {"file", 0}, PATH_NAMES, {"absent", 0}, {"fifo", 0}, {"..", 0}) { return path_make(number, "file"); }
MADE(NEWPATH, {"new", 0}, PATH_NAMES, {"file", 0}, {"fifo", 0}, {"..", 0}) { return path_make(number, "new"); }
MADE(XNAME, {"user.a", 0}, {"NULL", 0}, {"empty", 0}, {"user.b", 0}, {"none", 0}, {"user.", 0}, {"trusted.x", 0}, {"security.x", 0},
     {"system.x", 0}) {
    const char *const values[] = {"user.a", NULL, "", "user.b", "none", "user.", "trusted.x", "security.x", "system.x"};
    return (long)values[number];
}

static long memory_make(int number) {
    const long values[] = {(long)good, 0, 8, (long)edge + PAGE - 8, (long)edge + PAGE, (long)0xffff800000001000, -1};
    return number == 7 ? (long)readonly : values[number];
}
MADE(IN, {"good", 0}, {"NULL", 0}, {"8", 0}, {"8-before-hole", 0}, {"hole", 0}, {"kernel", 0}, {"-1", 0}) { return memory_make(number); }
MADE(OUT, {"good", 0}, {"NULL", 0}, {"8", 0}, {"8-before-hole", 0}, {"hole", 0}, {"kernel", 0}, {"-1", 0}, {"readonly", 0}) {
    return memory_make(number);
}

FIXED(LENGTH, {"16", 16}, {"0", 0}, {"1", 1}, {"4096", 4096}, {"-1", -1}, {"INT_MAX", INT_MAX}, {"INT_MIN", INT_MIN},
      {"LONG_MIN", LONG_MIN});
FIXED(SMALL, {"1", 1}, {"0", 0}, {"-1", -1}, {"2", 2}, {"100000", 100000}, {"INT_MAX", INT_MAX}, {"INT_MIN", INT_MIN});
FIXED(OFFSET, {"0", 0}, {"3", 3}, {"4096", 4096}, {"-1", -1}, {"LONG_MAX", LONG_MAX}, {"LONG_MIN", LONG_MIN}, {"1<<40", 1L << 40});

MADE(TIME, {"1us", 0}, {"NULL", 0}, {"8", 0}, {"nsec-1e9", 0}, {"nsec-1", 0}, {"sec-1", 0}, {"zero", 0}, {"hole", 0}) {
    static struct timespec times[8][2];
    const struct timespec values[] = {{0, 1000}, {0, 0}, {0, 0}, {0, 1000000000}, {0, -1}, {-1, 0}, {0, 0}};
    if (number == 1 || number == 2) return number == 1 ? 0 : 8;
    if (number == 7) return (long)edge + PAGE - 8;
    times[number][0] = times[number][1] = values[number];
    return (long)times[number];
}
MADE(ITIME, {"far", 0}, {"NULL", 0}, {"8", 0}, {"value-nsec-1e9", 0}, {"interval-nsec-1e9", 0}, {"value-sec-1", 0}, {"zero", 0}, {"hole", 0}) {
    static struct itimerspec times[8];
    const struct itimerspec values[] = {{{1000, 0}, {1000, 0}}, {{0, 0}, {0, 0}}, {{0, 0}, {0, 0}}, {{0, 0}, {0, 1000000000}},
                                        {{0, 1000000000}, {1, 0}}, {{0, 0}, {-1, 0}}, {{0, 0}, {0, 0}}};
    if (number == 1 || number == 2) return number == 1 ? 0 : 8;
    if (number == 7) return (long)edge + PAGE - 8;
    times[number] = values[number];
    return (long)&times[number];
}
MADE(SIGSET, {"usr1", 0}, {"NULL", 0}, {"8", 0}, {"hole", 0}, {"none", 0}, {"all", 0}) {
    static uint64_t sets[6] = {1ULL << (SIGUSR1 - 1), 0, 0, 0, 0, ~0ULL};
    const long values[] = {(long)&sets[0], 0, 8, (long)edge + PAGE - 4, (long)&sets[4], (long)&sets[5]};
    return values[number];
}
FIXED(SIGSIZE, {"8", 8}, {"0", 0}, {"4", 4}, {"128", 128});
FIXED(SIGNAL, {"0", 0}, {"SIGCONT", SIGCONT}, {"SIGURG", SIGURG}, {"64", 64}, {"65", 65}, {"-1", -1}, {"SIGTERM", SIGTERM});
MADE(PID, {"self", 0}, {"0", 0}, {"absent", 0}, {"-absent", 0}, {"parent", 0}, {"INT_MIN", 0}, {"INT_MAX", 0}, {"-2^30", 0}) {
    const long values[] = {getpid(), 0, 0x3fffffff, -0x3fffffff, getppid(), INT_MIN, INT_MAX, -(1 << 30)};
    return values[number];
}
FIXED(USER, {"0", 0}, {"-1", -1}, {"1000", 1000}, {"1", 1}, {"-2", -2});
FIXED(MODE, {"0600", 0600}, {"0", 0}, {"07777", 07777}, {"S_IFREG|0600", S_IFREG | 0600}, {"S_IFDIR|0700", S_IFDIR | 0700}, {"-1", -1});

MADE(IOV, {"two", 0}, {"NULL", 0}, {"8", 0}, {"hole", 0}, {"base-NULL", 0}, {"second-bad", 0}, {"len-0", 0}, {"len-1", 0}) {
    static struct iovec vectors[8][2];
    struct iovec fine = {good, 3}, other = {good + 100, 4}, bad = {NULL, 3}, empty = {NULL, 0}, negative = {good, (size_t)-1};
    const struct iovec values[8][2] = {{fine, other}, {fine, fine}, {fine, fine}, {fine, fine}, {bad, bad}, {fine, bad}, {empty, empty},
                                       {negative, fine}};
    if (number == 1 || number == 2) return number == 1 ? 0 : 8;
    if (number == 3) return (long)edge + PAGE - 8;
    memcpy(vectors[number], values[number], sizeof values[number]);
    return (long)vectors[number];
}
FIXED(IOVCOUNT, {"2", 2}, {"0", 0}, {"1", 1}, {"-1", -1}, {"1025", 1025}, {"INT_MAX", INT_MAX});
MADE(PAGES, {"page", 0}, {"page+1", 0}, {"NULL", 0}, {"hole", 0}, {"kernel", 0}, {"-4096", 0}, {"readonly", 0}) {
    const long values[] = {(long)sixteen_pages, (long)sixteen_pages + 1, 0, (long)edge + PAGE, (long)0xffff800000001000, -4096, (long)readonly};
    return values[number];
}
MADE(ADDRESS, {"unix", 0}, {"NULL", 0}, {"8", 0}, {"inet", 0}, {"inet6", 0}, {"unspec", 0}, {"family-99", 0}, {"hole", 0}) {
    static struct sockaddr_un un = {.sun_family = AF_UNIX, .sun_path = "sock"};
    static struct sockaddr_in in = {.sin_family = AF_INET};
    static struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
    static struct sockaddr unspec = {.sa_family = AF_UNSPEC}, odd = {.sa_family = 99};
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK), in.sin_port = htons(1);
    in6.sin6_addr = in6addr_loopback, in6.sin6_port = htons(1);
    const long values[] = {(long)&un, 0, 8, (long)&in, (long)&in6, (long)&unspec, (long)&odd, (long)edge + PAGE - 2};
    return values[number];
}
MADE(LENGTH_AT, {"16", 0}, {"NULL", 0}, {"8", 0}, {"0", 0}, {"-1", 0}, {"200", 0}, {"readonly", 0}) {
    static int lengths[7] = {16, 0, 0, 0, -1, 200, 0};
    if (number == 1 || number == 2) return number == 1 ? 0 : 8;
    return number == 6 ? (long)readonly : (long)&lengths[number];
}

static char *sixteen_before_hole(int protection) {
    char *pages = mmap(NULL, 17 * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(pages + 16 * PAGE, PAGE);
    return pages;
}

/* What a call finds: an empty root with one thing of each sort. */
static void prepare(void) {
    mkdir("fresh", 0777);
    chmod("fresh", 0777);
    if (chdir("fresh") || (geteuid() == 0 && chroot("."))) {
        say("prepare", "%s", error_name(errno));
        _exit(90);
    }
    make_file("file", "0123456789", 0666), mkdir("dir", 0777), make_file("dir/inner", "x", 0666), mkfifo("fifo", 0666);
    dup2(open("fifo", O_RDWR), 150), close(3); /* so that nobody waits for the other end */
    symlink("file", "link"), symlink("loop", "loop"), symlink("absent", "dangling");
    setpgid(0, 0);
    good = sixteen_before_hole(PROT_READ | PROT_WRITE);
    sixteen_pages = sixteen_before_hole(PROT_READ | PROT_WRITE);
    readonly = sixteen_before_hole(PROT_READ);
    edge = mmap(NULL, 40 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(edge + PAGE, 39 * PAGE);
}

static void one(const struct call *call, const int *picked) {
    char name[512];
    int length = snprintf(name, sizeof name, "%s(", call->name), arguments = 0;
    for (; arguments < 6 && call->arguments[arguments]; arguments++)
        length += snprintf(name + length, sizeof name - (size_t)length, "%s%s", arguments ? "," : "",
                           call->arguments[arguments]->values[picked[arguments]].name);
    snprintf(name + length, sizeof name - (size_t)length, ")");
    pid_t child = fork();
    if (!child) {
        prepare();
        if (call->how & AS_USER) as_user();
        long a[6] = {0};
        for (int i = 0; i < arguments; i++) {
            const struct kind *kind = call->arguments[i];
            a[i] = kind->make ? kind->make(picked[i]) : kind->values[picked[i]].value;
        }
        errno = 0;
        long result = syscall(call->number, a[0], a[1], a[2], a[3], a[4], a[5]);
        (call->how & BY_VALUE ? val : ok)(name, result);
        _exit(0);
    }
    int s = child < 0 ? -1 : await(child, CALL_LIMIT);
    if (s) status(name, s);
    remove_tree("fresh");
}

/* All combinations when they are few; else every value of each argument with good ones for the rest, then some of the other
 * combinations, always the same ones. */
static void combinations(const struct call *call) {
    int counts[6] = {1, 1, 1, 1, 1, 1}, picked[6] = {0}, made = 0;
    long total = 1;
    for (int i = 0; i < 6 && call->arguments[i]; i++) total *= counts[i] = call->arguments[i]->count;
    if (total <= call->limit) {
        for (long number = 0; number < total; number++) {
            long rest = number;
            for (int i = 0; i < 6; i++) picked[i] = (int)(rest % counts[i]), rest /= counts[i];
            one(call, picked);
        }
        return;
    }
    char *done = calloc((size_t)total, 1);
    unsigned seed = 12345;
    for (const char *at = call->name; *at; at++) seed = seed * 31 + (unsigned char)*at;
    for (int i = -1; i < 6; i++)
        for (int value = i < 0 ? 0 : 1; value < (i < 0 ? 1 : counts[i]); value++) {
            memset(picked, 0, sizeof picked);
            long place = 0, scale = 1;
            if (i >= 0) picked[i] = value;
            for (int k = 0; k < 6; k++) place += picked[k] * scale, scale *= counts[k];
            done[place] = 1;
            one(call, picked);
            made++;
        }
    for (int tries = 0; made < call->limit && tries < 100 * call->limit; tries++) {
        long place = 0, scale = 1;
        for (int k = 0; k < 6; k++) {
            seed = seed * 1103515245 + 12345;
            picked[k] = (int)((seed >> 16) % (unsigned)counts[k]);
            place += picked[k] * scale, scale *= counts[k];
        }
        if (done[place]) continue;
        done[place] = 1;
        one(call, picked);
        made++;
    }
    free(done);
}

void generate(const struct call *calls) {
    for (; calls->name; calls++) combinations(calls);
}
