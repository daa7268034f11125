/* Programs: arguments, environment and auxiliary vector, scripts, errors, what survives, no_new_privs. */
#include "abi.h"

#include <elf.h>
#include <sys/auxv.h>
#include <sys/prctl.h>

static char *self = "/proc/self/exe";

static void nothing(int signal) { (void)signal; }

/* Runs a program to its end. */
static void ran(const char *name, const char *path, char **arguments, char **environment) {
    pid_t child = fork();
    if (!child) {
        execve(path, arguments, environment);
        ok(name, -1);
        _exit(0);
    }
    int s = await(child, 20000);
    if (s) status(name, s);
}

static void copy_self(const char *path, mode_t mode) {
    int in = open(self, O_RDONLY), out = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0700);
    char buffer[65536];
    for (ssize_t got; (got = read(in, buffer, sizeof buffer)) > 0;) write(out, buffer, (size_t)got);
    fchmod(out, mode);
    close(out), close(in);
}

static void argument_checks(void) {
    ran("plain", self, (char *[]){"exec", "--show", "plain", "one", "", "three words", NULL}, (char *[]){"A=1", "B=", "no-equals", NULL});
    ran("no-environment", self, (char *[]){"exec", "--show", "no-environment", NULL}, (char *[]){NULL});
    ran("null-environment", self, (char *[]){"exec", "--show", "null-environment", NULL}, NULL);
    ran("auxv", self, (char *[]){"some-name", "--auxv", NULL}, (char *[]){NULL});
    ran("cloexec", self, (char *[]){"exec", "--state", "defaults", NULL}, (char *[]){NULL});
    CHILD("state") {
        int kept = open("/dev/null", O_RDONLY), closed = open("/dev/null", O_RDONLY | O_CLOEXEC);
        dup2(kept, 50), dup3(closed, 51, O_CLOEXEC);
        signal(SIGUSR1, SIG_IGN), signal(SIGUSR2, nothing);
        sigset_t set;
        sigemptyset(&set), sigaddset(&set, SIGTERM);
        sigprocmask(SIG_BLOCK, &set, NULL);
        raise(SIGTERM);
        umask(077), nice(3), prctl(PR_SET_NAME, "before"), prctl(PR_SET_PDEATHSIG, SIGHUP), prctl(PR_SET_KEEPCAPS, 1), prctl(PR_SET_DUMPABLE, 0);
        alarm(100);
        stack_t stack = {.ss_sp = mmap(NULL, 65536, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), .ss_size = 65536};
        sigaltstack(&stack, NULL);
        execve(self, (char *[]){"exec", "--state", "changed", NULL}, (char *[]){NULL});
    }
    char *big = malloc(200000);
    memset(big, 'a', 131072), big[131071] = 0;
    ran("string-131071", self, (char *[]){"exec", "--count", "string-131071", big, NULL}, (char *[]){NULL});
    big[131071] = 'a', big[131072] = 0;
    ran("string-131072", self, (char *[]){"exec", "--count", "string-131072", big, NULL}, (char *[]){NULL});
    static char *many[200000];
    for (int i = 0; i < 199999; i++) many[i] = "0123456789";
    many[0] = "exec", many[1] = "--count", many[2] = "too-many";
    ran("too-many", self, many, (char *[]){NULL});
    many[20000] = NULL;
    ran("many", self, (many[2] = "many", many), (char *[]){NULL});
    CHILD("argc-0") {
        execve(self, (char *[]){NULL}, (char *[]){"SHOW=1", NULL});
        ok("argc-0", -1);
    }
    ran("bad-argument", self, (char *[]){"exec", (char *)8, NULL}, (char *[]){NULL});
    ran("bad-argv", self, (char **)8, (char *[]){NULL});
}

static void error_checks(void) {
    char *arguments[] = {"x", "--exit", NULL}, *environment[] = {NULL};
    mkdir("dir", 0755), symlink("loop", "loop"), mkfifo("fifo", 0755);
    make_file("text", "just text\n", 0755), make_file("empty", "", 0755), make_file("noexec", "#!/bin/sh\n", 0644);
    make_file("elf", "\177ELF", 0755), make_file("short", "\177ELF\2\1\1", 0755);
    ran("absent", "absent", arguments, environment);
    ran("directory", "dir", arguments, environment);
    ran("not-executable", "noexec", arguments, environment);
    ran("text", "text", arguments, environment);
    ran("empty", "empty", arguments, environment);
    ran("elf-magic-only", "elf", arguments, environment);
    ran("elf-short", "short", arguments, environment);
    ran("loop", "loop", arguments, environment);
    ran("fifo", "fifo", arguments, environment);
    ran("device", "/dev/null", arguments, environment);
    ran("empty-path", "", arguments, environment);
    ran("null-path", NULL, arguments, environment);
    ran("in-file", "text/x", arguments, environment);
    copy_self("copy", 0755), copy_self("other-machine", 0755), copy_self("no-loads", 0755), copy_self("bad-interp", 0755), copy_self("writing", 0755);
    Elf64_Ehdr header;
    int fd = open("other-machine", O_RDWR);
    pread(fd, &header, sizeof header, 0);
    header.e_machine = EM_AARCH64;
    pwrite(fd, &header, sizeof header, 0), close(fd);
    ran("other-machine", "other-machine", arguments, environment);
    header.e_machine = EM_X86_64, header.e_phentsize = 7;
    fd = open("no-loads", O_RDWR), pwrite(fd, &header, sizeof header, 0), close(fd);
    ran("phentsize", "no-loads", arguments, environment);
    header.e_phentsize = sizeof(Elf64_Phdr), header.e_type = ET_REL;
    fd = open("no-loads", O_RDWR), pwrite(fd, &header, sizeof header, 0), close(fd);
    ran("relocatable", "no-loads", arguments, environment);
    ran("copy", "copy", arguments, environment);
    fd = open("writing", O_RDWR);
    ran("being-written", "writing", arguments, environment);
    close(fd);
    ok("write-running", open("/proc/self/exe", O_WRONLY));
    CHILD("user") {
        copy_self("root-only", 0700), chmod("root-only", 0700), copy_self("x-only", 0711);
        as_user();
        ran("user-root-only", "root-only", arguments, environment);
        ran("user-x-only", "x-only", arguments, environment);
    }
    int path = open("copy", O_PATH | O_CLOEXEC), dir = open(".", O_RDONLY), script = open("script", O_RDWR | O_CREAT, 0755);
    dprintf(script, "#!%s/copy --exit\n", getcwd((char[300]){0}, 300));
    close(script);
    struct {
        const char *name;
        int at;
        const char *path;
        int flags;
    } tries[] = {{"execveat", dir, "copy", 0}, {"execveat-empty", path, "", AT_EMPTY_PATH}, {"execveat-empty-unflagged", path, "", 0},
                 {"execveat-bad", -1, "copy", 0}, {"execveat-flags", dir, "copy", 1}, {"execveat-not-dir", path, "copy", 0},
                 {"execveat-script", dir, "script", 0}};
    symlink("copy", "link");
    for (unsigned i = 0; i < sizeof tries / sizeof *tries; i++) {
        pid_t child = fork();
        if (!child) {
            syscall(SYS_execveat, tries[i].at, tries[i].path, arguments, environment, tries[i].flags);
            ok(tries[i].name, -1);
            _exit(0);
        }
        int s = await(child, 20000);
        if (s) status(tries[i].name, s);
    }
    CHILD("nofollow") {
        syscall(SYS_execveat, dir, "link", arguments, environment, AT_SYMLINK_NOFOLLOW);
        ok("execveat-nofollow-link", -1);
    }
}

static void script_checks(void) {
    char text[600], here[300];
    getcwd(here, sizeof here);
    copy_self("show", 0755);
    const struct {
        const char *name, *line;
    } scripts[] = {{"argument", "#!./show --show\n"}, {"no-argument", "#!./show\n"}, {"spaces", "#!  ./show   --show   \n"},
                   {"two-arguments", "#!./show --show two\n"}, {"tab", "#!\t./show\t--show\n"}, {"absent", "#!./missing\n"}, {"nothing", "#!\n"},
                   {"blanks", "#!   \n"}, {"directory", "#!/\n"}, {"no-newline", "#!./show --show"}, {"carriage", "#!./show\r\n"}, {"loop", "#!./loop\n"}};
    for (unsigned i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        make_file(scripts[i].name, scripts[i].line, 0755);
        char path[64];
        snprintf(path, sizeof path, "./%s", scripts[i].name);
        ran(scripts[i].name, path, (char *[]){"zeroth", "first", NULL}, (char *[]){NULL});
    }
    for (int depth = 1; depth <= 6; depth++) {
        char name[32];
        snprintf(text, sizeof text, depth == 1 ? "#!./show --show\n" : "#!./deep%d\n", depth - 1);
        snprintf(name, sizeof name, "./deep%d", depth);
        make_file(name, text, 0755);
        ran(name + 2, name, (char *[]){"zeroth", NULL}, (char *[]){NULL});
    }
    for (int length = 254; length <= 258; length++) {
        char name[32];
        memset(text, 'x', sizeof text);
        memcpy(text, "#!./show --show ", 16);
        text[length] = '\n', text[length + 1] = 0;
        snprintf(name, sizeof name, "line-%d", length);
        make_file(name, text, 0755);
        ran(name, name, (char *[]){"zeroth", NULL}, (char *[]){NULL});
    }
}

static void privilege_checks(void) {
    copy_self("suid", 0755), chown("suid", 2000, 2001), chmod("suid", 06755);
    char *arguments[] = {"suid", "--ids", "suid-as-user", NULL}, *environment[] = {NULL};
    CHILD("user") {
        as_user();
        ran("suid-as-user", "./suid", arguments, environment);
        arguments[2] = "suid-no-new-privs";
        ok("no-new-privs", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        ok("no-new-privs-unset", prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
        ran("suid-no-new-privs", "./suid", arguments, environment);
    }
    arguments[2] = "suid-as-root";
    ran("suid-as-root", "./suid", arguments, environment);
    chmod("suid", 02755);
    CHILD("sgid") {
        as_user();
        ran("sgid", "./suid", (char *[]){"suid", "--ids", "sgid", NULL}, environment);
    }
    chmod("suid", 02745);
    CHILD("sgid-no-x") {
        as_user();
        ran("sgid-no-x", "./suid", (char *[]){"suid", "--ids", "sgid-no-x", NULL}, environment);
    }
    chown("suid", 0, 0), chmod("suid", 04755);
    CHILD("to-root") {
        as_user();
        ran("suid-root", "./suid", (char *[]){"suid", "--ids", "suid-root", NULL}, environment);
    }
    CHILD("effective-kept") {
        setresuid(1000, 0, 0);
        ran("effective-kept", self, (char *[]){"x", "--ids", "effective-kept", NULL}, environment);
    }
}

static int state(const char *name) {
    char text[64], key[64];
    sigset_t set;
    struct sigaction action;
    stack_t stack;
    int signal = 0;
#define STATE(what, ...) (snprintf(key, sizeof key, "%s-%s", name, what), say(key, __VA_ARGS__))
    STATE("fds", "%d %d", fcntl(50, F_GETFD), fcntl(51, F_GETFD));
    sigprocmask(SIG_SETMASK, NULL, &set);
    STATE("mask", "%d", sigismember(&set, SIGTERM));
    sigpending(&set);
    STATE("pending", "%d", sigismember(&set, SIGTERM));
    sigaction(SIGUSR1, NULL, &action);
    STATE("ignored", "%d", action.sa_handler == SIG_IGN);
    sigaction(SIGUSR2, NULL, &action);
    STATE("handler", "%d", action.sa_handler == SIG_DFL);
    STATE("umask", "%o", umask(0));
    STATE("nice", "%d", getpriority(PRIO_PROCESS, 0));
    prctl(PR_GET_NAME, text);
    STATE("name", "%s", text);
    prctl(PR_GET_PDEATHSIG, &signal);
    STATE("pdeathsig", "%d", signal);
    STATE("keepcaps", "%d", prctl(PR_GET_KEEPCAPS));
    STATE("dumpable", "%d", prctl(PR_GET_DUMPABLE));
    STATE("alarm", "%d", alarm(0) > 50);
    sigaltstack(NULL, &stack);
    STATE("altstack", "%#x", stack.ss_flags);
    return 0;
}

static int auxv(int argc, char **argv) {
    say("auxv-pagesz", "%ld", getauxval(AT_PAGESZ));
    say("auxv-clktck", "%ld", getauxval(AT_CLKTCK));
    say("auxv-ids", "%ld %ld %ld %ld", getauxval(AT_UID), getauxval(AT_EUID), getauxval(AT_GID), getauxval(AT_EGID));
    say("auxv-secure", "%ld", getauxval(AT_SECURE));
    yes("auxv-random", getauxval(AT_RANDOM) != 0);
    say("auxv-execfn", "%s", (char *)getauxval(AT_EXECFN));
    say("auxv-platform", "%s", (char *)getauxval(AT_PLATFORM));
    say("auxv-phent", "%ld", getauxval(AT_PHENT));
    yes("auxv-phnum", getauxval(AT_PHNUM) > 3);
    say("auxv-base", "%ld", getauxval(AT_BASE));
    yes("auxv-vdso", getauxval(AT_SYSINFO_EHDR) != 0);
    yes("auxv-entry", getauxval(AT_ENTRY) != 0);
    yes("stack-order", (uintptr_t)argv > (uintptr_t)&argc && argv[argc] == NULL && (char *)getauxval(AT_EXECFN) > argv[0]);
    yes("stack-aligned", ((uintptr_t)argv - 8) % 16 == 0);
    return 0;
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {
        {"arguments", argument_checks}, {"errors", error_checks}, {"script", script_checks}, {"privilege", privilege_checks}, {0}};
    if (argc < 2 || strncmp(argv[1], "--", 2)) {
        if (getenv("SHOW")) return say("argc-0", "%d %s", argc, argv[0]), 0;
        if (argc >= 1 && strstr(argv[0], "show")) return say("script-without", "%d %s", argc, argv[1] ? argv[1] : ""), 0;
        return run(argc, argv, groups);
    }
    if (!strcmp(argv[1], "--exit")) return 33;
    if (!strcmp(argv[1], "--auxv")) return auxv(argc, argv);
    if (!strcmp(argv[1], "--state")) return state(argv[2]);
    if (!strcmp(argv[1], "--count")) return say(argv[2], "%d", argc), 0;
    if (!strcmp(argv[1], "--ids")) {
        uid_t r, e, s;
        getresuid(&r, &e, &s);
        gid_t rg, eg, sg;
        getresgid(&rg, &eg, &sg);
        return say(argv[2], "%d %d %d / %d %d %d secure %ld", r, e, s, rg, eg, sg, getauxval(AT_SECURE)), 0;
    }
    /* --show NAME ARGS: as a script's interpreter, the script is the name */
    char text[2000] = "";
    for (int i = 0; i < argc; i++) snprintf(text + strlen(text), 600, "[%.500s]", argv[i]);
    for (int i = 0; environ[i]; i++) snprintf(text + strlen(text), 100, "{%s}", environ[i]);
    const char *name = !strncmp(argv[argc - 1], "./", 2) ? argv[argc - 1] : argv[2] ? argv[2] : "none";
    say(strncmp(name, "./", 2) ? name : name + 2, "%s", text);
    return 0;
}
