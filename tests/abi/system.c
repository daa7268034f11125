/* What the kernel tells of itself: uname, sysinfo, procfs. Values differ, so that shapes are printed. */
#include "abi.h"

#include <dirent.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/statfs.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

static char *content(const char *path) {
    static char text[65536];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t total = 0, got = -1;
    while (fd >= 0 && total < (ssize_t)sizeof text - 1 && (got = read(fd, text + total, sizeof text - 1 - (size_t)total)) > 0) total += got;
    if (fd >= 0) close(fd);
    text[total] = 0;
    return text;
}

static int lines_of(const char *text) {
    int lines = 0;
    for (; *text; text++) lines += *text == '\n';
    return lines;
}

static void kernel_checks(void) {
    struct utsname name;
    uname(&name);
    say("uname", "%s %s", name.sysname, name.machine);
    int major = 0, minor = 0;
    int parts = sscanf(name.release, "%d.%d", &major, &minor);
    say("release", "%d parts, major %s", parts, major >= 4 ? "4 or later" : "old");
    struct sysinfo info;
    ok("sysinfo", sysinfo(&info));
    say("sysinfo-shape", "uptime %d total %d free %d procs %d unit %d", info.uptime > 0, info.totalram > 0, info.freeram <= info.totalram,
        info.procs > 0, info.mem_unit > 0);
    cpu_set_t set;
    CPU_ZERO(&set);
    yes("affinity", sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) >= 1);
    yes("affinity-matches-conf", CPU_COUNT(&set) <= sysconf(_SC_NPROCESSORS_CONF));
    unsigned cpu = 999, node = 999;
    yes("getcpu", !getcpu(&cpu, &node) && CPU_ISSET(cpu, &set));
    val("affinity-short", syscall(SYS_sched_getaffinity, 0, 4, &set));
    struct statfs fs;
    ok("statfs-proc", statfs("/proc", &fs));
    say("statfs-proc-type", "%lx", (long)fs.f_type);
    ok("statfs-tmp", statfs(".", &fs));
    say("statfs-tmp-shape", "name %ld bsize %d free %d", (long)fs.f_namelen, fs.f_bsize >= 512, fs.f_bfree <= fs.f_blocks);
    ok("statfs-pts", statfs("/dev/pts", &fs));
    say("statfs-pts-type", "%lx", (long)fs.f_type);
    char random[16] = {0}, zero[16] = {0};
    val("getrandom", syscall(SYS_getrandom, random, 16, 0));
    yes("getrandom-random", memcmp(random, zero, 16) != 0);
    val("getrandom-flags", syscall(SYS_getrandom, random, 16, 8));
    const char *all[] = {"meminfo", "cpuinfo", "uptime", "version", "filesystems", "mounts", "stat", "loadavg", "self/stat", "self/status",
                         "self/maps", "self/cmdline", "self/limits", "self/mountinfo", "self/comm", "self/statm", "self/mounts", "self/environ",
                         "self/auxv", "self/cgroup", "self/oom_score_adj", "self/uid_map", "self/smaps", "self/io", "self/wchan", "self/personality",
                         "sys/kernel/hostname", "sys/kernel/ostype", "sys/kernel/osrelease", "sys/kernel/pid_max", "sys/kernel/random/uuid",
                         "sys/kernel/random/boot_id", "sys/kernel/cap_last_cap", "sys/kernel/shmmax", "sys/kernel/msgmax", "sys/kernel/sem",
                         "sys/kernel/randomize_va_space", "sys/vm/overcommit_memory", "sys/vm/mmap_min_addr", "sys/vm/max_map_count",
                         "sys/fs/file-max", "sys/fs/nr_open", "sys/fs/pipe-max-size", "sys/fs/inotify/max_user_watches",
                         "sys/net/core/somaxconn", "sys/net/ipv4/ip_local_port_range", "sys/net/ipv4/tcp_sack", "net/dev", "net/tcp", "net/udp",
                         "net/unix", "net/route", "sys/fs/mqueue/msg_max", "self/net/dev", "thread-self/stat", "self/timerslack_ns", "cgroups",
                         "self/task", "self/fd", "self/fdinfo", "self/ns", "self/exe", "self/cwd", "self/root", "absent", "1/stat", "0/stat",
                         "self/ns/net", "self/ns/pid", "self/ns/mnt", "self/ns/uts", "self/ns/ipc", "self/ns/user", "self/ns/cgroup"};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        char path[128];
        struct stat st;
        snprintf(path, sizeof path, "/proc/%s", all[i]);
        if (lstat(path, &st)) {
            ok(path, -1);
            continue;
        }
        bool text = S_ISREG(st.st_mode) && content(path)[0] != 0;
        say(path, "%o size %ld content %d", st.st_mode, S_ISREG(st.st_mode) ? (long)st.st_size : 0L, text);
    }
    say("ostype", "%s", content("/proc/sys/kernel/ostype"));
    yes("osrelease-is-uname", !strncmp(content("/proc/sys/kernel/osrelease"), name.release, strlen(name.release)));
    yes("hostname-is-uname", !strncmp(content("/proc/sys/kernel/hostname"), name.nodename, strlen(name.nodename)));
    yes("version-starts", !strncmp(content("/proc/version"), "Linux version ", 14));
    const char *memory[] = {"MemTotal:", "MemFree:", "MemAvailable:", "Buffers:", "Cached:", "SwapTotal:", "Shmem:"};
    char *text = content("/proc/meminfo");
    for (int i = 0; i < 7; i++) {
        char label[32];
        snprintf(label, sizeof label, "meminfo-%.*s", (int)strlen(memory[i]) - 1, memory[i]);
        yes(label, strstr(text, memory[i]) != NULL);
    }
    text = content("/proc/cpuinfo");
    int processors = 0;
    for (char *at = text; (at = strstr(at, "processor\t:")); at++) processors++;
    yes("cpuinfo-processors", processors == sysconf(_SC_NPROCESSORS_ONLN));
    yes("cpuinfo-flags", strstr(text, "\nflags\t\t:") != NULL);
    double up = 0, idle = 0;
    val("uptime-fields", sscanf(content("/proc/uptime"), "%lf %lf", &up, &idle));
    int running, processes, last;
    double a, b, c;
    val("loadavg-fields", sscanf(content("/proc/loadavg"), "%lf %lf %lf %d/%d %d", &a, &b, &c, &running, &processes, &last));
    text = content("/proc/stat");
    yes("stat-cpu", !strncmp(text, "cpu ", 4) && strstr(text, "\ncpu0 ") && strstr(text, "\nbtime ") && strstr(text, "\nctxt "));
    text = content("/proc/filesystems");
    yes("filesystems", strstr(text, "nodev\tproc\n") && strstr(text, "nodev\ttmpfs\n"));
    yes("mounts-proc", strstr(content("/proc/mounts"), " /proc proc ") != NULL);
}

static void self_checks(void) {
    char *text = content("/proc/self/stat"), *end = strrchr(text, ')');
    int pid = 0, ppid = 0, group = 0, session = 0, tty = 0, foreground = 0;
    char state = 0;
    sscanf(text, "%d", &pid);
    sscanf(end + 1, " %c %d %d %d %d %d", &state, &ppid, &group, &session, &tty, &foreground);
    say("stat", "pid %d ppid %d pgrp %d sid %d state %c tty %d fg %d", pid == getpid(), ppid == getppid(), group == getpgrp(), session == getsid(0), state, tty, foreground);
    int fields = 2;
    for (char *at = end + 1; *at; at++) fields += *at == ' ';
    val("stat-fields", fields);
    prctl(PR_SET_NAME, "a) b (c");
    yes("stat-comm", strstr(content("/proc/self/stat"), " (a) b (c) ") != NULL);
    text = content("/proc/self/status");
    const char *keys[] = {"Name", "Umask", "State", "Tgid", "Ngid", "Pid", "PPid", "TracerPid", "Uid", "Gid", "FDSize", "Groups", "VmPeak", "VmSize", "VmRSS",
                          "VmData", "VmStk", "VmExe", "Threads", "SigQ", "SigPnd", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd",
                          "CapAmb", "NoNewPrivs", "Seccomp", "Cpus_allowed", "Mems_allowed", "voluntary_ctxt_switches"};
    for (unsigned i = 0; i < sizeof keys / sizeof *keys; i++) {
        char key[48], label[48];
        snprintf(key, sizeof key, "\n%s:\t", keys[i]), snprintf(label, sizeof label, "status-%s", keys[i]);
        yes(label, strstr(text, i ? key : key + 1) != NULL);
    }
    signal(SIGUSR1, SIG_IGN);
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGTERM), sigprocmask(SIG_BLOCK, &set, NULL), raise(SIGTERM);
    text = content("/proc/self/status");
    const char *signals[] = {"SigBlk", "SigIgn", "ShdPnd", "SigPnd", "Threads", "Uid", "Umask", "NoNewPrivs", "State"};
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++) {
        char *at = strstr(text, signals[i]), label[48];
        snprintf(label, sizeof label, "status-%s-is", signals[i]);
        say(label, "%.*s", at ? (int)strcspn(at, "\n") : 0, at ? at : "");
    }
    char target[300] = "", here[300] = "";
    readlink("/proc/self/exe", target, sizeof target - 1);
    say("exe", "%s", strrchr(target, '/'));
    memset(target, 0, sizeof target), readlink("/proc/self/cwd", target, sizeof target - 1), getcwd(here, sizeof here);
    yes("cwd", !strcmp(target, here));
    memset(target, 0, sizeof target), readlink("/proc/self/root", target, sizeof target - 1);
    say("root", "%s", target);
    memset(target, 0, sizeof target), readlink("/proc/self", target, sizeof target - 1);
    yes("self", atoi(target) == getpid());
    text = content("/proc/self/cmdline");
    say("cmdline", "%s", strrchr(text, '/') ? strrchr(text, '/') : text);
    mkdir("sub", 0755);
    make_file("file", "0123456789", 0600);
    int fd = open("file", O_RDWR | O_APPEND | O_CLOEXEC);
    lseek(fd, 4, SEEK_SET);
    snprintf(target, sizeof target, "/proc/self/fdinfo/%d", fd);
    text = content(target);
    long position = -1, flags = -1;
    int fields_read = sscanf(text, "pos:\t%ld\nflags:\t%lo", &position, &flags);
    say("fdinfo", "%d pos %ld flags %lo", fields_read, position, flags & ~0100000L);
    snprintf(target, sizeof target, "/proc/self/fd/%d", fd);
    memset(here, 0, sizeof here), readlink(target, here, sizeof here - 1);
    say("fd-link", "%s", strrchr(here, '/'));
    struct stat st, other;
    lstat(target, &st);
    say("fd-link-mode", "%o size %ld", st.st_mode, (long)st.st_size);
    ok("fd-stat", stat(target, &st));
    yes("fd-stat-same", !fstat(fd, &other) && st.st_ino == other.st_ino);
    int again = open(target, O_RDONLY);
    val("fd-reopen-own-offset", lseek(again, 0, SEEK_CUR));
    unlink("file");
    memset(here, 0, sizeof here), readlink(target, here, sizeof here - 1);
    say("fd-link-deleted", "%s", strrchr(here, '/'));
    ok("fd-reopen-deleted", open(target, O_RDONLY));
    ok("fd-absent", open("/proc/self/fd/999", O_RDONLY));
    ok("fd-unlink", unlink(target));
    ok("fd-creat", creat("/proc/self/fd/500", 0600));
    ok("proc-mkdir", mkdir("/proc/new", 0755));
    ok("proc-unlink", unlink("/proc/version"));
    ok("proc-write-version", open("/proc/version", O_WRONLY) < 0 ? -1 : 0);
    DIR *dir = opendir("/proc/self/fd");
    int count = 0;
    for (struct dirent *entry; (entry = readdir(dir));) count += entry->d_name[0] != '.';
    val("fd-count", count);
    closedir(dir), dir = opendir("/proc/self/task");
    count = 0;
    for (struct dirent *entry; (entry = readdir(dir));) count += entry->d_name[0] != '.' ? atoi(entry->d_name) == getpid() ? 1 : 100 : 0;
    val("task-count", count);
    closedir(dir), dir = opendir("/proc");
    count = 0;
    for (struct dirent *entry; (entry = readdir(dir));) count += atoi(entry->d_name) == getpid();
    val("listed", count);
    text = content("/proc/self/limits");
    say("limits", "%d lines %.5s", lines_of(text), text);
    char *files = strstr(text, "Max open files");
    long soft = 0, hard = 0;
    if (files) sscanf(files + 14, "%ld %ld", &soft, &hard);
    say("limits-files", "%ld %ld", soft, hard);
    char *page = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), line[80];
    mprotect(page + PAGE, PAGE, PROT_READ);
    snprintf(line, sizeof line, "%lx-%lx r--p 00000000 00:00 0", (unsigned long)page + PAGE, (unsigned long)page + 2 * PAGE);
    yes("maps-line", strstr(content("/proc/self/maps"), line) != NULL);
    text = content("/proc/self/maps");
    yes("maps-stack", strstr(text, "[stack]\n") != NULL), yes("maps-heap", (sbrk(4096), strstr(content("/proc/self/maps"), "[heap]\n")) != NULL);
    yes("maps-vdso", strstr(text, "[vdso]\n") != NULL), yes("maps-exe", strstr(text, "/system\n") != NULL);
    int memory = open("/proc/self/mem", O_RDWR);
    page[0] = 'm';
    char byte = 0;
    val("mem-read", pread(memory, &byte, 1, (off_t)(uintptr_t)page));
    val("mem-write", pwrite(memory, "n", 1, (off_t)(uintptr_t)page));
    say("mem", "%c %c", byte, page[0]);
    val("mem-hole", pread(memory, &byte, 1, 8));
    make_file("sub/x", "x", 0600);
    int set_score = open("/proc/self/oom_score_adj", O_RDWR);
    val("oom-write", write(set_score, "500\n", 4));
    say("oom", "%s", content("/proc/self/oom_score_adj"));
    val("oom-bad", pwrite(set_score, "5000\n", 5, 0));
    val("comm-write", write(open("/proc/self/comm", O_WRONLY), "renamed", 7));
    say("comm", "%s", content("/proc/self/comm"));
    pid_t child = fork();
    if (!child) _exit(0);
    siginfo_t info;
    waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT);
    snprintf(target, sizeof target, "/proc/%d/stat", child);
    end = strrchr(content(target), ')');
    say("zombie-state", "%c", end ? end[2] : '?');
    snprintf(target, sizeof target, "/proc/%d/cmdline", child);
    say("zombie-cmdline", "%zu", strlen(content(target)));
    snprintf(target, sizeof target, "/proc/%d/exe", child);
    ok("zombie-exe", readlink(target, here, sizeof here));
    int held = open((snprintf(target, sizeof target, "/proc/%d/status", child), target), O_RDONLY);
    waitpid(child, NULL, 0);
    val("reaped-read", read(held, here, 10));
    ok("reaped-open", open(target, O_RDONLY));
    CHILD("user") {
        as_user();
        ok("user-parent-environ", open((snprintf(target, sizeof target, "/proc/%d/environ", getppid()), target), O_RDONLY));
        ok("user-parent-status", open((snprintf(target, sizeof target, "/proc/%d/status", getppid()), target), O_RDONLY));
        ok("user-parent-fd", open((snprintf(target, sizeof target, "/proc/%d/fd", getppid()), target), O_RDONLY));
        ok("user-parent-exe", readlink((snprintf(target, sizeof target, "/proc/%d/exe", getppid()), target), here, 10));
        ok("user-sysctl-write", open("/proc/sys/kernel/hostname", O_WRONLY));
    }
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"kernel", kernel_checks}, {"self", self_checks}, {0}};
    return run(argc, argv, groups);
}
