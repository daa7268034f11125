#include "abi.h"

#include <dirent.h>
#include <grp.h>
#include <linux/capability.h>
#include <stdarg.h>
#include <sys/prctl.h>

enum { GROUP_LIMIT = 100000, CHILD_LIMIT = 30000 };

static const char *group_name = "main";
/* The name of the last check, where the parent sees it too. */
static char *last_check;

const char *error_name(int error) {
    static char other[32];
    const char *name = strerrorname_np(error);
    if (error == EAGAIN) return "EAGAIN";
    if (error == EOPNOTSUPP) return "EOPNOTSUPP";
    if (name) return name;
    snprintf(other, sizeof other, "errno-%d", error);
    return other;
}

const char *signal_name(int signal) {
    static char names[4][32];
    static unsigned next;
    char *name = names[next++ % 4];
    const char *abbreviation = sigabbrev_np(signal);
    if (abbreviation) snprintf(name, 32, "SIG%s", abbreviation);
    else if (signal >= 32 && signal <= 64) snprintf(name, 32, "SIGRT%d", signal);
    else snprintf(name, 32, "signal-%d", signal);
    return name;
}

void say(const char *name, const char *format, ...) {
    char line[4096];
    int start = snprintf(line, 1024, "%s.%s: ", group_name, name);
    va_list arguments;
    va_start(arguments, format);
    int length = start + vsnprintf(line + start, sizeof line - 1 - (size_t)start, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2) length = (int)sizeof line - 2;
    for (int i = 0; i < length; i++)
        if (line[i] == '\n') line[i] = '|';
    if (last_check) snprintf(last_check, 256, "%s", name);
    line[length++] = '\n';
    for (int done = 0; done < length;) {
        ssize_t wrote = write(1, line + done, (size_t)(length - done));
        if (wrote < 0 && errno != EINTR) _exit(99);
        if (wrote > 0) done += (int)wrote;
    }
}

long ok(const char *name, long result) {
    int error = errno;
    say(name, "%s", result < 0 ? error_name(error) : "ok");
    errno = error;
    return result;
}

long val(const char *name, long result) {
    int error = errno;
    if (result == -1) say(name, "%s", error_name(error));
    else say(name, "%ld", result);
    errno = error;
    return result;
}

void *okp(const char *name, void *result) {
    ok(name, result == MAP_FAILED ? -1 : 0);
    return result;
}

int eno(const char *name, int error) {
    say(name, "%s", error ? error_name(error) : "ok");
    return error;
}

void yes(const char *name, bool fact) { say(name, "%s", fact ? "yes" : "no"); }

void status(const char *name, int s) {
    if (s == -1) say(name, "took too long");
    else if (WIFEXITED(s)) say(name, "exit %d", WEXITSTATUS(s));
    else if (WIFSIGNALED(s)) say(name, "killed %s", signal_name(WTERMSIG(s)));
    else if (WIFSTOPPED(s)) say(name, "stopped %s event %d", signal_name(WSTOPSIG(s)), s >> 16);
    else if (WIFCONTINUED(s)) say(name, "continued");
    else say(name, "status %#x", s);
}

void pause_ms(int milliseconds) {
    struct timespec rest = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    while (nanosleep(&rest, &rest) < 0 && errno == EINTR) {}
}

static long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int await(pid_t pid, int milliseconds) {
    long end = now_ms() + milliseconds;
    for (int round = 0;; round++) {
        int s = 0;
        pid_t got = waitpid(pid, &s, WNOHANG);
        if (got == pid) return s;
        if (got < 0 && errno != EINTR) return -1;
        if (now_ms() > end) break;
        if (round < 20) sched_yield();
        else usleep(round < 200 ? 200 : 5000);
    }
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return -1;
}

bool child_begin(const char *name) {
    pid_t pid = fork();
    if (pid == 0) return true;
    if (pid < 0) {
        ok(name, pid);
        return false;
    }
    int s = await(pid, CHILD_LIMIT);
    if (s != 0) status(name, s);
    return false;
}

void child_end(void) { _exit(0); }

void settle(pid_t pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    for (int round = 0, asleep = 0; round < 2000 && asleep < 3; round++) {
        char text[512] = "";
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) {
            pause_ms(50);
            return;
        }
        ssize_t length = read(fd, text, sizeof text - 1);
        close(fd);
        const char *state = length > 0 ? strrchr(text, ')') : NULL;
        if (state && (state[2] == 'Z' || state[2] == 'X')) return;
        asleep = state && state[2] == 'S' ? asleep + 1 : 0;
        usleep(1000);
    }
}

void as_user(void) {
    if (setgroups(0, NULL) || setresgid(1000, 1000, 1000) || setresuid(1000, 1000, 1000)) {
        say("as-user", "%s", error_name(errno));
        _exit(98);
    }
}

struct gate gate(void) {
    struct gate made;
    if (pipe2(made.ends, O_CLOEXEC)) _exit(97);
    return made;
}

void gate_open(struct gate *gate) {
    if (write(gate->ends[1], "x", 1) != 1) _exit(96);
}

void gate_pass(struct gate *gate) {
    char byte;
    while (read(gate->ends[0], &byte, 1) < 0 && errno == EINTR) {}
}

void make_file(const char *path, const char *content, mode_t mode) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    size_t length = strlen(content);
    if (fd < 0 || write(fd, content, length) != (ssize_t)length || fchmod(fd, mode)) say("make-file", "%s", error_name(errno));
    close(fd);
}

char *page_before_hole(void) {
    char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(pages + PAGE, PAGE);
    return pages;
}

void *shared_page(void) { return mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0); }

static void remove_at(int at, const char *name) {
    if (!unlinkat(at, name, 0)) return;
    fchmodat(at, name, 0700, 0);
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) remove_at(fd, entry->d_name);
    if (dir) closedir(dir);
    unlinkat(at, name, AT_REMOVEDIR);
}

void remove_tree(const char *path) { remove_at(AT_FDCWD, path); }

/* Root is not everywhere allowed to exceed limits: here, it never is. */
static void drop_sys_resource(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data)) return;
    prctl(PR_CAPBSET_DROP, CAP_SYS_RESOURCE);
    const uint32_t others = ~(1U << CAP_SYS_RESOURCE);
    data[0].effective &= others, data[0].permitted &= others, data[0].inheritable &= others;
    syscall(SYS_capset, &header, data);
}

/* The state that every group starts from. */
static void fresh_state(void) {
    setsid();
    umask(022);
    sigset_t none;
    sigemptyset(&none);
    for (int signal = 1; signal < 32; signal++) {
        struct sigaction action = {.sa_handler = SIG_DFL};
        if (signal != SIGKILL && signal != SIGSTOP) sigaction(signal, &action, NULL);
    }
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (syscall(SYS_close_range, 3, ~0U, 0))
        for (int fd = 3; fd < 1024; fd++) close(fd);
    const struct {
        int resource;
        rlim_t soft, hard;
    } limits[] = {{RLIMIT_CORE, 0, 0}, {RLIMIT_NOFILE, 1024, 4096}, {RLIMIT_STACK, 8 << 20, RLIM_INFINITY}};
    for (unsigned i = 0; i < 3; i++) {
        struct rlimit limit = {limits[i].soft, limits[i].hard};
        setrlimit(limits[i].resource, &limit);
    }
    drop_sys_resource();
    clearenv();
}

static void run_group(const struct checks *group, int number) {
    char folder[128];
    const char *base = getenv("ABI_DIR");
    snprintf(folder, sizeof folder, "%s/abi-%d-%d", base ? base : "/tmp", getpid(), number);
    group_name = group->name;
    if (mkdir(folder, 0755) || chmod(folder, 0755)) {
        ok("folder", -1);
        return;
    }
    /* ABI_INLINE: for a kernel that cannot fork yet */
    if (getenv("ABI_INLINE")) {
        if (!chdir(folder)) group->run();
        remove_tree(folder);
        return;
    }
    strcpy(last_check, "the start");
    pid_t pid = fork();
    if (pid == 0) {
        if (chdir(folder)) _exit(95);
        fresh_state();
        group->run();
        _exit(0);
    }
    int s = pid < 0 ? -1 : await(pid, GROUP_LIMIT);
    if (s == -1) say("group", "hung after %s", strdupa(last_check));
    else if (s != 0) status("group", s);
    /* whoever was left to process 1, should that be this one */
    while (waitpid(-1, NULL, WNOHANG) > 0) {}
    remove_tree(folder);
}

int run(int argc, char **argv, const struct checks *groups) {
    last_check = shared_page();
    for (int number = 0; groups[number].name; number++) {
        bool wanted = argc < 2;
        for (int i = 1; i < argc; i++) wanted |= !strcmp(argv[i], groups[number].name);
        if (wanted) run_group(&groups[number], number);
    }
    return 0;
}
