/* box ROOT PROGRAM ARGS...: runs a program of tests/abi on this machine's kernel where it can hurt nothing.
 *
 * In mount, pid, uts, ipc and net namespaces of its own, with a tmpfs as the root: what is in ROOT is copied to it. The program is
 * process 2; process 1 gathers orphans, and ends with the program or when whoever started it ends. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

static void need(int result, const char *what) {
    if (result >= 0) return;
    fprintf(stderr, "box: %s: %s\n", what, strerror(errno));
    exit(125);
}

static void device(const char *path, int major, int minor) {
    need(mknod(path, S_IFCHR | 0666, makedev(major, minor)), path);
    need(chmod(path, 0666), path);
}

static void build_root(const char *from) {
    need(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "mounts made private");
    need(mount("root", "/mnt", "tmpfs", 0, "mode=0755,size=1g"), "tmpfs");
    char command[8192];
    snprintf(command, sizeof command, "exec cp -a '%s/.' /mnt/", from);
    need(system(command) == 0 ? 0 : -1, "copy of the root");
    need(chdir("/mnt"), "/mnt");
    mkdir("proc", 0755), mkdir("dev", 0755), mkdir("sys", 0755), mkdir("tmp", 01777);
    need(chmod("tmp", 01777), "/tmp");
    need(mount("tmp", "tmp", "tmpfs", 0, "mode=1777,size=1g"), "/tmp");
    need(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "/proc");
    need(mount("dev", "dev", "tmpfs", MS_NOSUID, "mode=0755"), "/dev");
    device("dev/null", 1, 3), device("dev/zero", 1, 5), device("dev/full", 1, 7), device("dev/random", 1, 8);
    device("dev/urandom", 1, 9), device("dev/tty", 5, 0);
    mkdir("dev/pts", 0755), mkdir("dev/shm", 01777);
    need(mount("pts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"), "/dev/pts");
    need(symlink("pts/ptmx", "dev/ptmx"), "/dev/ptmx");
    need(mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777"), "/dev/shm");
    mkdir("old", 0700);
    need((int)syscall(155 /* pivot_root */, ".", "old"), "pivot_root");
    need(umount2("/old", MNT_DETACH), "the old root");
    rmdir("/old");
    need(chdir("/"), "/");
}

static void loopback_up(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    need(ioctl(fd, SIOCSIFFLAGS, &request), "loopback");
    close(fd);
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fputs("usage: box ROOT PROGRAM ARGS...\n", stderr);
        return 125;
    }
    need(unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET), "namespaces (root is needed)");
    pid_t first = fork();
    need(first, "fork");
    int status = 0;
    if (first > 0) {
        while (waitpid(first, &status, 0) < 0 && errno == EINTR) {}
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    build_root(argv[1]);
    loopback_up();
    need(sethostname("abi", 3), "host name");
    pid_t program = fork();
    need(program, "fork");
    if (program == 0) {
        close(0);
        need(open("/dev/null", O_RDWR), "/dev/null");
        execv(argv[2], argv + 2);
        need(-1, argv[2]);
    }
    for (;;) {
        pid_t ended = wait(&status);
        if (ended == program) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (ended < 0 && errno != EINTR) return 125;
    }
}
