/* Pipes and FIFOs: capacity, PIPE_BUF, ends of file, SIGPIPE, waiting, splice, tee and vmsplice. */
#include "abi.h"

#include <poll.h>
#include <sys/ioctl.h>

static volatile sig_atomic_t seen;
static void note(int signal) { seen = signal; }

static void pipe_checks(void) {
    int p[2];
    char text[PAGE], big[3 * PAGE];
    memset(big, 'b', sizeof big);
    pipe2(p, O_NONBLOCK);
    val("read-empty", read(p[0], text, 1));
    val("size", fcntl(p[1], F_GETPIPE_SZ));
    long total = 0, got;
    while ((got = write(p[1], big, PAGE)) > 0) total += got;
    say("filled", "%ld %s", total, error_name(errno));
    val("write-1-full", write(p[1], "x", 1));
    val("read-1", read(p[0], text, 1));
    val("write-1-after-1", write(p[1], "x", 1));
    val("read-page", read(p[0], text, PAGE - 1));
    val("write-page", write(p[1], big, PAGE));
    val("write-more-than-page", write(p[1], big, PAGE + 1));
    read(p[0], text, PAGE);
    val("write-partial", write(p[1], big, 3 * PAGE));
    int unread = 0;
    ok("fionread", ioctl(p[0], FIONREAD, &unread));
    val("fionread-is", unread);
    ok("shrink-full", fcntl(p[1], F_SETPIPE_SZ, 4096));
    while (read(p[0], text, sizeof text) > 0) {}
    val("shrink", fcntl(p[1], F_SETPIPE_SZ, 4096));
    val("shrink-rounds", fcntl(p[1], F_SETPIPE_SZ, 5000));
    val("shrink-0", fcntl(p[1], F_SETPIPE_SZ, 0));
    val("grow", fcntl(p[1], F_SETPIPE_SZ, 1 << 20));
    CHILD("user-grow") {
        as_user();
        val("grow-user", fcntl(p[1], F_SETPIPE_SZ, 1 << 21));
    }
    val("write-big", write(p[1], "abc", 3));
    val("wrong-end-read", read(p[1], text, 1));
    val("wrong-end-write", write(p[0], text, 1));
    val("zero-write", write(p[1], text, 0));
    val("zero-read", read(p[0], text, 0));
    val("null-read", read(p[0], NULL, 1));
    val("after-null-read", read(p[0], text, 10));
    close(p[1]);
    val("eof", read(p[0], text, 1));
    val("eof-again", read(p[0], text, 1));
    struct pollfd poll_ = {p[0], POLLIN, 0};
    poll(&poll_, 1, 0);
    say("eof-poll", "%#x", poll_.revents);
    pipe(p);
    write(p[1], "left", 4);
    close(p[1]);
    val("left-then-eof", read(p[0], text, 10));
    val("left-then-eof-2", read(p[0], text, 10));
    pipe(p);
    close(p[0]);
    signal(SIGPIPE, note);
    val("epipe", write(p[1], "x", 1));
    say("sigpipe", "%s", signal_name(seen));
    signal(SIGPIPE, SIG_IGN);
    val("epipe-ignored", write(p[1], "x", 1));
    val("epipe-zero", write(p[1], "x", 0));
    poll_ = (struct pollfd){p[1], POLLOUT, 0};
    poll(&poll_, 1, 0);
    say("epipe-poll", "%#x", poll_.revents);
    CHILD("sigpipe-kills") {
        signal(SIGPIPE, SIG_DFL);
        write(p[1], "x", 1);
    }
    struct stat st;
    pipe(p);
    fstat(p[0], &st);
    say("stat", "%o links %ld size %ld", st.st_mode, (long)st.st_nlink, (long)st.st_size);
    char name[64], target[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", p[0]);
    ssize_t length = readlink(name, target, sizeof target - 1);
    target[length > 0 ? length : 0] = 0;
    say("proc-name", "%.6s", target);
    close((int)ok("reopen-by-proc", open(name, O_WRONLY)));
    /* a blocked reader is woken by a writer, a blocked writer by a reader */
    pid_t child = fork();
    if (!child) {
        close(p[1]);
        val("blocked-read", read(p[0], text, 10));
        _exit(0);
    }
    settle(child);
    write(p[1], "hello", 5);
    status("blocked-reader", await(child, 20000));
    child = fork();
    if (!child) {
        close(p[1]);
        val("blocked-read-eof", read(p[0], text, 10));
        _exit(0);
    }
    settle(child);
    close(p[1]);
    status("blocked-eof-reader", await(child, 20000));
    pipe(p);
    child = fork();
    if (!child) {
        for (total = 0; total < 70000; total += got)
            if ((got = write(p[1], big, 5000)) < 0) break;
        val("blocked-write-total", total);
        _exit(0);
    }
    settle(child);
    for (total = 0; total < 70000; total += got) got = read(p[0], text, sizeof text);
    val("blocked-writer-read", total);
    status("blocked-writer", await(child, 20000));
    pipe(p);
    child = fork();
    if (!child) {
        close(p[0]);
        signal(SIGPIPE, SIG_IGN);
        char *much = calloc(1, 200000);
        val("reader-goes-partial", write(p[1], much, 200000));
        _exit(0);
    }
    settle(child);
    close(p[0]);
    status("reader-goes", await(child, 20000));
    val("packet-pipe", pipe2(p, O_DIRECT));
    write(p[1], "one", 3), write(p[1], "three", 5);
    val("packet-1", read(p[0], text, 100));
    val("packet-short", read(p[0], text, 2));
    fcntl(p[0], F_SETFL, O_NONBLOCK);
    val("packet-rest-lost", read(p[0], text, 100));
}

static void fifo_checks(void) {
    char text[16];
    mkfifo("f", 0600);
    ok("exists", mkfifo("f", 0600));
    ok("wronly-nonblock-alone", open("f", O_WRONLY | O_NONBLOCK));
    int r = (int)ok("rdonly-nonblock-alone", open("f", O_RDONLY | O_NONBLOCK));
    val("read-no-writer", read(r, text, 1));
    struct pollfd poll_ = {r, POLLIN, 0};
    poll(&poll_, 1, 0);
    say("poll-no-writer-ever", "%#x", poll_.revents);
    int w = (int)ok("wronly-with-reader", open("f", O_WRONLY | O_NONBLOCK));
    val("read-writer-empty", read(r, text, 1));
    write(w, "x", 1);
    val("read", read(r, text, 5));
    close(w);
    val("read-writer-gone", read(r, text, 1));
    poll(&poll_, 1, 0);
    say("poll-writer-gone", "%#x", poll_.revents);
    close(r);
    int rw = (int)ok("rdwr-alone", open("f", O_RDWR));
    val("rdwr-write", write(rw, "abc", 3));
    val("rdwr-read", read(rw, text, 5));
    val("lseek", lseek(rw, 0, SEEK_SET));
    val("ftruncate", ftruncate(rw, 0));
    ok("truncate", truncate("f", 0));
    close((int)ok("open-trunc", open("f", O_RDWR | O_TRUNC | O_NONBLOCK)));
    close(rw);
    pid_t child = fork();
    if (!child) {
        int fd = open("f", O_WRONLY);
        val("blocked-open-write", write(fd, "late", 4));
        _exit(0);
    }
    settle(child);
    r = (int)ok("open-meets", open("f", O_RDONLY));
    val("open-meets-read", read(r, text, 10));
    status("open-writer", await(child, 20000));
    val("open-meets-eof", read(r, text, 10));
    struct sigaction action = {.sa_handler = note};
    sigaction(SIGALRM, &action, NULL);
    close(r);
    child = fork();
    if (!child) {
        seen = 0;
        ok("open-interrupted", open("f", O_RDONLY));
        _exit(0);
    }
    settle(child);
    kill(child, SIGALRM);
    status("open-interrupted-end", await(child, 20000));
    ok("dev-fd", open("/proc/self/fd/0", O_RDONLY));
}

static void splice_checks(void) {
    int p[2], q[2], full[2];
    char text[PAGE];
    pipe2(p, O_NONBLOCK), pipe2(q, O_NONBLOCK), pipe2(full, O_NONBLOCK);
    while (write(full[1], "xxxxxxxxxxxxxxxx", 16) > 0) {}
    make_file("file", "0123456789", 0600);
    int fd = open("file", O_RDWR), app = open("file", O_WRONLY | O_APPEND), dir = open(".", O_RDONLY);
    loff_t at = 2;
    val("file-to-pipe", splice(fd, NULL, p[1], NULL, 4, 0));
    val("file-moved", lseek(fd, 0, SEEK_CUR));
    val("file-to-pipe-offset", splice(fd, &at, p[1], NULL, 100, 0));
    val("file-to-pipe-offset-is", at);
    val("file-at-end", splice(fd, &at, p[1], NULL, 100, 0));
    val("pipe-to-pipe", splice(p[0], NULL, q[1], NULL, 5, 0));
    val("pipe-to-pipe-rest", splice(p[0], NULL, q[1], NULL, 100, 0));
    val("pipe-empty", splice(p[0], NULL, q[1], NULL, 100, 0));
    val("pipe-to-full", splice(q[0], NULL, full[1], NULL, 10, SPLICE_F_NONBLOCK));
    at = 20;
    val("pipe-to-file", splice(q[0], NULL, fd, &at, 3, 0));
    val("pipe-to-append", splice(q[0], NULL, app, NULL, 3, 0));
    val("pipe-offset", splice(q[0], &at, fd, NULL, 3, 0));
    val("file-to-file", splice(fd, NULL, fd, NULL, 3, 0));
    val("same-pipe", splice(q[0], NULL, q[1], NULL, 3, 0));
    val("wrong-end", splice(q[1], NULL, p[1], NULL, 3, 0));
    val("flags", splice(q[0], NULL, p[1], NULL, 3, 0x100));
    val("len-0", splice(q[0], NULL, p[1], NULL, 0, 0));
    val("dir", splice(dir, NULL, p[1], NULL, 3, 0));
    val("bad", splice(-1, NULL, p[1], NULL, 3, 0));
    at = -1;
    val("negative-offset", splice(fd, &at, p[1], NULL, 3, 0));
    while (read(p[0], text, sizeof text) > 0) {}
    while (read(q[0], text, sizeof text) > 0) {}
    write(p[1], "tee-text", 8);
    val("tee", tee(p[0], q[1], 3, 0));
    val("tee-all", tee(p[0], q[1], 100, 0));
    val("tee-left", read(p[0], text, 100));
    val("tee-made", read(q[0], text, 100));
    say("tee-text", "%.11s", text);
    val("tee-empty", tee(p[0], q[1], 100, SPLICE_F_NONBLOCK));
    val("tee-file", tee(fd, q[1], 1, 0));
    val("tee-same", tee(p[0], p[1], 1, 0));
    val("tee-flags", tee(p[0], q[1], 1, 0x100));
    close(p[1]);
    val("tee-eof", tee(p[0], q[1], 1, 0));
    val("splice-eof", splice(p[0], NULL, q[1], NULL, 1, 0));
    struct iovec v[2] = {{"ab", 2}, {"cde", 3}};
    val("vmsplice", vmsplice(q[1], v, 2, 0));
    val("vmsplice-read", read(q[0], text, 100));
    say("vmsplice-text", "%.5s", text);
    val("vmsplice-file", vmsplice(fd, v, 2, 0));
    val("vmsplice-flags", vmsplice(q[1], v, 2, 0x100));
    val("vmsplice-0", vmsplice(q[1], v, 0, 0));
    write(q[1], "in", 2);
    struct iovec in = {text, 10};
    val("vmsplice-from", vmsplice(q[0], &in, 1, 0));
    close(q[0]);
    signal(SIGPIPE, note);
    seen = 0;
    at = 0;
    val("splice-broken", splice(fd, &at, q[1], NULL, 3, 0));
    say("splice-broken-signal", "%s", signal_name(seen));
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"pipe", pipe_checks}, {"fifo", fifo_checks}, {"splice", splice_checks}, {0}};
    return run(argc, argv, groups);
}
