/* System V shared memory, semaphores and messages; POSIX message queues; terminals. */
#include "abi.h"

#include <mqueue.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <termios.h>

static void nothing(int signal) { (void)signal; }

static void shm_checks(void) {
    int id = shmget(IPC_PRIVATE, 5000, IPC_CREAT | 0600);
    struct shmid_ds info;
    ok("get", id);
    ok("stat", shmctl(id, IPC_STAT, &info));
    say("stat-is", "size %zu attached %lu mode %o creator %d", info.shm_segsz, info.shm_nattch, info.shm_perm.mode, info.shm_cpid == getpid());
    char *a = shmat(id, NULL, 0), *b = shmat(id, NULL, SHM_RDONLY);
    ok("at", a == (void *)-1 ? -1 : 0);
    strcpy(a, "shared");
    say("both-see", "%s", b);
    shmctl(id, IPC_STAT, &info);
    say("attached", "%lu", info.shm_nattch);
    CHILD("fork") {
        shmctl(id, IPC_STAT, &info);
        say("fork-attached", "%lu", info.shm_nattch);
        strcpy(a, "child");
    }
    say("child-wrote", "%s", a);
    ok("at-unaligned", shmat(id, (void *)0x10000001, 0) == (void *)-1 ? -1 : 0);
    ok("dt", shmdt(b));
    ok("dt-again", shmdt(b));
    ok("dt-inside", shmdt(a + 4096));
    ok("rmid", shmctl(id, IPC_RMID, NULL));
    shmctl(id, IPC_STAT, &info);
    say("rmid-mode", "%o", info.shm_perm.mode);
    say("rmid-still-there", "%s", a);
    ok("dt-last", shmdt(a));
    ok("gone", shmctl(id, IPC_STAT, &info));
    ok("key-absent", shmget(0x4321, 100, 0));
    ok("size-0", shmget(IPC_PRIVATE, 0, IPC_CREAT | 0600));
    id = shmget(0x4321, 100, IPC_CREAT | 0600);
    ok("excl", shmget(0x4321, 100, IPC_CREAT | IPC_EXCL | 0600));
    ok("larger", shmget(0x4321, 8192, 0));
    ok("smaller", shmget(0x4321, 10, 0));
    CHILD("user") {
        as_user();
        ok("user-get", shmget(0x4321, 10, 0600));
        ok("user-at", shmat(id, NULL, 0) == (void *)-1 ? -1 : 0);
        ok("user-rmid", shmctl(id, IPC_RMID, NULL));
    }
    shmctl(id, IPC_RMID, NULL);
}

static long semop1(int id, unsigned short number, short change, short flags) {
    struct sembuf one = {number, change, flags};
    return semop(id, &one, 1);
}

static void sem_checks(void) {
    int id = semget(IPC_PRIVATE, 3, IPC_CREAT | 0600);
    ok("get", id);
    val("value", semctl(id, 0, GETVAL));
    ok("up", semop1(id, 0, 2, 0));
    val("value-up", semctl(id, 0, GETVAL));
    ok("down-too-far", semop1(id, 0, -3, IPC_NOWAIT));
    ok("down", semop1(id, 0, -2, IPC_NOWAIT));
    ok("zero", semop1(id, 0, 0, IPC_NOWAIT));
    ok("setval", semctl(id, 1, SETVAL, 5));
    ok("zero-not", semop1(id, 1, 0, IPC_NOWAIT));
    ok("setval-negative", semctl(id, 1, SETVAL, -1));
    ok("setval-32768", semctl(id, 1, SETVAL, 32768));
    ok("up-overflow", semop1(id, 1, 32767, 0));
    ok("number-bad", semop1(id, 3, 1, 0));
    struct sembuf both[2] = {{0, 1, 0}, {2, -1, IPC_NOWAIT}};
    ok("all-or-none", semop(id, both, 2));
    val("all-or-none-value", semctl(id, 0, GETVAL));
    ok("ops-0", semop(id, both, 0));
    ok("ops-many", semop(id, both, 1000));
    unsigned short values[3] = {7, 8, 9}, got[3];
    ok("setall", semctl(id, 0, SETALL, values));
    ok("getall", semctl(id, 0, GETALL, got));
    say("getall-is", "%d %d %d", got[0], got[1], got[2]);
    yes("getpid", semctl(id, 0, GETPID) == getpid());
    CHILD("undo") { semop1(id, 0, -5, SEM_UNDO); }
    val("undone", semctl(id, 0, GETVAL));
    semctl(id, 2, SETVAL, 0);
    pid_t child = fork();
    if (!child) {
        ok("wait", semop1(id, 2, -1, 0));
        _exit(0);
    }
    settle(child);
    val("getncnt", semctl(id, 2, GETNCNT));
    semop1(id, 2, 1, 0);
    status("waiter", await(child, 20000));
    struct timespec brief = {0, 1000000};
    struct sembuf one = {2, -1, 0};
    ok("timed", semtimedop(id, &one, 1, &brief));
    child = fork();
    if (!child) {
        ok("wait-removed", semop1(id, 2, -1, 0));
        _exit(0);
    }
    settle(child);
    ok("rmid", semctl(id, 0, IPC_RMID));
    status("waiter-removed", await(child, 20000));
    ok("gone", semop1(id, 0, 1, 0));
    ok("nsems-0", semget(IPC_PRIVATE, 0, IPC_CREAT | 0600));
    ok("nsems-negative", semget(IPC_PRIVATE, -1, IPC_CREAT | 0600));
}

static void msg_checks(void) {
    struct {
        long type;
        char text[64];
    } m = {3, "three"};
    int id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
    ok("get", id);
    ok("send", msgsnd(id, &m, 5, 0));
    m.type = 1, strcpy(m.text, "one"), msgsnd(id, &m, 3, 0);
    m.type = 2, strcpy(m.text, "two"), msgsnd(id, &m, 3, 0);
    m.type = 0;
    ok("send-type-0", msgsnd(id, &m, 1, 0));
    m.type = 1;
    ok("send-huge", msgsnd(id, &m, 100000, 0));
    ok("send-negative", msgsnd(id, &m, (size_t)-1, 0));
    struct msqid_ds info;
    msgctl(id, IPC_STAT, &info);
    say("stat", "%lu messages %lu bytes", info.msg_qnum, info.__msg_cbytes);
    val("receive-type-2", msgrcv(id, &m, 64, 2, 0));
    val("receive-up-to-3", msgrcv(id, &m, 64, -3, 0));
    say("receive-up-to-3-is", "%ld", m.type);
    val("receive-too-big", msgrcv(id, &m, 2, 0, 0));
    val("receive-cut", msgrcv(id, &m, 2, 0, MSG_NOERROR));
    val("receive-none", msgrcv(id, &m, 2, 0, IPC_NOWAIT));
    val("receive-except", (m.type = 5, msgsnd(id, &m, 1, 0), msgrcv(id, &m, 64, 5, IPC_NOWAIT | MSG_EXCEPT)));
    val("receive-empty-message", (m.type = 6, msgsnd(id, &m, 0, 0), msgrcv(id, &m, 64, 6, IPC_NOWAIT)));
    pid_t child = fork();
    if (!child) {
        ok("wait-removed", msgrcv(id, &m, 64, 99, 0));
        _exit(0);
    }
    settle(child);
    ok("rmid", msgctl(id, IPC_RMID, NULL));
    status("waiter", await(child, 20000));
    ok("gone", msgsnd(id, &m, 1, 0));
}

static void mq_checks(void) {
    struct mq_attr attributes = {.mq_maxmsg = 2, .mq_msgsize = 16}, got;
    char text[32];
    unsigned priority = 9;
    struct timespec past = {1, 0}, bad = {0, -1};
    mq_unlink("/abi-q");
    ok("absent", mq_open("/abi-q", O_RDWR));
    mqd_t q = mq_open("/abi-q", O_RDWR | O_CREAT | O_EXCL, 0600, &attributes);
    ok("create", q);
    ok("excl", mq_open("/abi-q", O_RDWR | O_CREAT | O_EXCL, 0600, &attributes));
    ok("no-slash-raw", (long)syscall(SYS_mq_open, "/abi-q", O_RDWR, 0, NULL));
    ok("getattr", mq_getattr(q, &got));
    say("getattr-is", "%ld %ld %ld %#lx", got.mq_maxmsg, got.mq_msgsize, got.mq_curmsgs, got.mq_flags);
    ok("send-low", mq_send(q, "low", 3, 1));
    ok("send-high", mq_send(q, "high", 4, 5));
    ok("send-timed", mq_timedsend(q, "x", 1, 0, &past));
    ok("send-timed-bad", mq_timedsend(q, "x", 1, 0, &bad));
    ok("send-long", mq_send(q, text, 17, 0));
    ok("send-priority", mq_send(q, "x", 1, 32768));
    val("receive-high", mq_receive(q, text, sizeof text, &priority));
    say("receive-priority", "%u", priority);
    val("receive-short-buffer", mq_receive(q, text, 15, NULL));
    val("receive-low", mq_receive(q, text, sizeof text, NULL));
    val("receive-timed", mq_timedreceive(q, text, sizeof text, NULL, &past));
    got.mq_flags = O_NONBLOCK;
    ok("setattr", mq_setattr(q, &got, NULL));
    val("receive-nonblock", mq_receive(q, text, sizeof text, NULL));
    struct pollfd one = {q, POLLIN | POLLOUT, 0};
    poll(&one, 1, 0);
    say("poll", "%#x", one.revents);
    sigset_t set;
    siginfo_t info = {0};
    sigemptyset(&set), sigaddset(&set, SIGUSR1), sigprocmask(SIG_BLOCK, &set, NULL);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 8};
    ok("notify", mq_notify(q, &event));
    ok("notify-again", mq_notify(q, &event));
    mq_send(q, "z", 1, 0);
    struct timespec second = {5, 0};
    say("notified", "%s", signal_name(sigtimedwait(&set, &info, &second)));
    say("notified-info", "code %d value %d", info.si_code, info.si_value.sival_int);
    ok("read-fd", read(q, text, 5) < 0 ? -1 : 0);
    char state[128];
    ssize_t length = pread(q, state, sizeof state - 1, 0);
    say("read-state", "%.*s", (int)(length > 0 ? length - 1 : 0), state);
    ok("notify-none", mq_notify(q, &(struct sigevent){.sigev_notify = SIGEV_NONE}));
    length = pread(q, state, 24, 0);
    say("read-state-notify", "%.*s", (int)(length > 0 ? length : 0), state);
    mq_notify(q, NULL);
    ok("write-fd", write(q, text, 5) < 0 ? -1 : 0);
    ok("unlink", mq_unlink("/abi-q"));
    ok("unlink-again", mq_unlink("/abi-q"));
    ok("send-unlinked", mq_send(q, "y", 1, 0));
    ok("close", mq_close(q));
    ok("send-closed", mq_send(q, "y", 1, 0));
    attributes.mq_maxmsg = 0;
    ok("maxmsg-0", mq_open("/abi-z", O_RDWR | O_CREAT, 0600, &attributes));
}

static void tty_checks(void) {
    char text[64] = "";
    int master = posix_openpt(O_RDWR | O_NOCTTY), number = -1, unlocked = 0;
    ok("ptmx", master);
    val("tiocgptn", ioctl(master, TIOCGPTN, &number));
    char name[32];
    snprintf(name, sizeof name, "/dev/pts/%d", number);
    ok("slave-locked", open(name, O_RDWR | O_NOCTTY));
    ok("unlock", ioctl(master, TIOCSPTLCK, &unlocked));
    int slave = open(name, O_RDWR | O_NOCTTY);
    ok("slave", slave);
    val("isatty", isatty(slave));
    val("isatty-master", isatty(master));
    struct termios t;
    ok("tcgetattr", tcgetattr(slave, &t));
    say("termios", "i %#x o %#x c %#x l %#x", t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag);
    say("control", "%d %d %d %d %d %d %d", t.c_cc[VINTR], t.c_cc[VQUIT], t.c_cc[VERASE], t.c_cc[VKILL], t.c_cc[VEOF], t.c_cc[VMIN], t.c_cc[VTIME]);
    struct winsize size = {0};
    ioctl(slave, TIOCGWINSZ, &size);
    say("winsize", "%d %d", size.ws_row, size.ws_col);
    size = (struct winsize){24, 80, 0, 0};
    ok("set-winsize", ioctl(master, TIOCSWINSZ, &size));
    size = (struct winsize){0}, ioctl(slave, TIOCGWINSZ, &size);
    say("winsize-set", "%d %d", size.ws_row, size.ws_col);
    write(master, "line\n", 5);
    val("canonical-read", read(slave, text, sizeof text));
    val("echo", read(master, text, sizeof text));
    say("echo-text", "%d %d", text[4], text[5]);
    write(slave, "out\n", 4);
    val("output-crnl", read(master, text, sizeof text));
    fcntl(slave, F_SETFL, O_NONBLOCK);
    write(master, "part", 4);
    val("no-line-yet", read(slave, text, sizeof text));
    int queued = -1;
    ioctl(slave, FIONREAD, &queued);
    val("fionread-partial", queued);
    write(master, "\177x\n", 3);
    val("erase", read(slave, text, sizeof text));
    say("erase-text", "%.4s", text);
    write(master, "\4", 1);
    val("eof", read(slave, text, sizeof text));
    write(master, "kill me\25ok\n", 11);
    val("kill-line", read(slave, text, sizeof text));
    write(master, "abcdef\n", 7);
    val("short-read", read(slave, text, 3)), val("short-read-rest", read(slave, text, 30));
    cfmakeraw(&t);
    ok("raw", tcsetattr(slave, TCSANOW, &t));
    ok("flush", tcflush(master, TCIOFLUSH));
    fcntl(master, F_SETFL, O_NONBLOCK);
    while (read(master, text, sizeof text) > 0) {}
    write(master, "r", 1);
    struct pollfd one = {slave, POLLIN | POLLOUT, 0};
    poll(&one, 1, 20000);
    val("raw-read", read(slave, text, sizeof text));
    val("raw-no-echo", read(master, text, sizeof text));
    ok("tcsetpgrp-no-tty", tcsetpgrp(slave, getpgrp()));
    ok("tiocsctty", ioctl(slave, TIOCSCTTY, 0));
    yes("tcgetpgrp", tcgetpgrp(slave) == getpgrp());
    yes("tcgetsid", tcgetsid(slave) == getsid(0));
    ok("dev-tty", open("/dev/tty", O_RDWR));
    t.c_lflag |= ISIG | ICANON, t.c_iflag |= ICRNL;
    tcsetattr(slave, TCSANOW, &t);
    sigset_t set;
    struct timespec seconds = {5, 0};
    sigemptyset(&set), sigaddset(&set, SIGINT), sigaddset(&set, SIGWINCH), sigaddset(&set, SIGQUIT), sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGHUP, nothing), signal(SIGWINCH, nothing);
    write(master, "\3", 1);
    say("ctrl-c", "%s", signal_name(sigtimedwait(&set, NULL, &seconds)));
    write(master, "\34", 1);
    say("ctrl-backslash", "%s", signal_name(sigtimedwait(&set, NULL, &seconds)));
    size.ws_row = 50, ioctl(master, TIOCSWINSZ, &size);
    say("resize", "%s", signal_name(sigtimedwait(&set, NULL, &seconds)));
    ok("tiocsti", ioctl(slave, TIOCSTI, "s") < 0 && errno != EIO ? -1 : 0);
    ok("tcsetpgrp-bad", tcsetpgrp(slave, 0x3fffffff));
    pid_t child = fork();
    if (!child) {
        setpgid(0, 0);
        signal(SIGTTIN, SIG_DFL);
        fcntl(slave, F_SETFL, 0);
        read(slave, text, 1);
        _exit(0);
    }
    int s = 0;
    waitpid(child, &s, WUNTRACED);
    status("background-read", s);
    kill(child, SIGKILL), waitpid(child, NULL, 0);
    child = fork();
    if (!child) {
        setpgid(0, 0);
        signal(SIGTTOU, SIG_IGN);
        ok("background-tcsetpgrp-ignored", tcsetpgrp(slave, getpgrp()));
        signal(SIGTTIN, SIG_IGN);
        _exit(0);
    }
    waitpid(child, &s, 0);
    signal(SIGTTOU, SIG_IGN);
    tcsetpgrp(slave, getpgrp());
    close(slave), close(master);
    say("master-closed", "%s", signal_name(sigtimedwait(&set, NULL, &seconds)));
    ok("dev-tty-after", open("/dev/tty", O_RDWR));
    master = posix_openpt(O_RDWR | O_NOCTTY), grantpt(master), unlockpt(master);
    slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    close(slave);
    val("slave-closed-read", read(master, text, 1));
    one = (struct pollfd){master, POLLIN | POLLOUT, 0}, poll(&one, 1, 0);
    say("slave-closed-poll", "%#x", one.revents);
    slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    close(master);
    val("master-closed-read", read(slave, text, 1));
    val("master-closed-write", write(slave, text, 1));
    val("tcgetattr-closed", tcgetattr(slave, &t));
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"shm", shm_checks}, {"sem", sem_checks}, {"msg", msg_checks}, {"mq", mq_checks}, {"tty", tty_checks}, {0}};
    return run(argc, argv, groups);
}
