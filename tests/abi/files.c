/* Open files: flags and errors of open, offsets, reading and writing at the edges, descriptors, sizes. */
#include "abi.h"

#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>

static long size_of(int fd) {
    struct stat st;
    return fstat(fd, &st) ? -1 : st.st_size;
}

static unsigned sum_of(const unsigned char *bytes, long length) {
    unsigned sum = 1;
    for (long n = 0; n < length; n++)
        sum = sum * 31 + bytes[n];
    return sum;
}

/* Many bytes at a time, of a file that is not written: this program. */
static void large_read_checks(void) {
    enum { LARGE = 256 * 1024, PAGE_SIZE = 4096 };
    int fd = open("/proc/self/exe", O_RDONLY);
    long size = size_of(fd);
    unsigned char *room = mmap(NULL, 2 * LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    yes("large-enough", size > LARGE);
    val("large-read", read(fd, room, LARGE));
    unsigned whole = sum_of(room, LARGE);
    val("large-moved", lseek(fd, 0, SEEK_CUR));
    val("large-pread", pread(fd, room + 1, LARGE, 0));
    yes("large-pread-same", sum_of(room + 1, LARGE) == whole);
    val("large-not-moved", lseek(fd, 0, SEEK_CUR));
    struct iovec one = {room, LARGE}, two[] = {{room, LARGE / 2}, {room + LARGE / 2, LARGE / 2}};
    val("large-preadv-one", preadv(fd, &one, 1, 0));
    yes("large-preadv-one-same", sum_of(room, LARGE) == whole);
    memset(room, 0, LARGE);
    val("large-preadv-two", preadv(fd, two, 2, 0));
    yes("large-preadv-two-same", sum_of(room, LARGE) == whole);
    yes("large-to-the-end", pread(fd, room, 2 * LARGE, size - LARGE / 2) == LARGE / 2);
    val("large-at-the-end", pread(fd, room, LARGE, size));
    val("large-beyond-the-end", pread(fd, room, LARGE, size + 7));
    /* Memory ends on the way, or is not there at all. */
    munmap(room + LARGE / 2, LARGE / 2);
    lseek(fd, 5, SEEK_SET);
    val("large-partly", read(fd, room, LARGE));
    val("large-partly-moved", lseek(fd, 0, SEEK_CUR));
    val("large-fault", read(fd, room + LARGE / 2, LARGE));
    val("large-fault-not-moved", lseek(fd, 0, SEEK_CUR));
    mprotect(room, PAGE_SIZE, PROT_READ);
    val("large-read-only", pread(fd, room, LARGE / 2, 0));
    val("large-write-only", ({ /* EBADF */
        int other = open("large", O_WRONLY | O_CREAT, 0600);
        ftruncate(other, LARGE);
        read(other, room, LARGE);
    }));
    munmap(room, 2 * LARGE);
    close(fd);
}

static void open_checks(void) {
    make_file("file", "content", 0644);
    mkdir("dir", 0755);
    symlink("file", "link");
    symlink("absent", "dangling");
    ok("absent", open("absent", O_RDONLY));
    ok("creat-excl-existing", open("file", O_CREAT | O_EXCL | O_WRONLY, 0600));
    ok("excl-dangling", open("dangling", O_CREAT | O_EXCL | O_WRONLY, 0600));
    ok("creat-through-dangling", open("dangling", O_CREAT | O_WRONLY, 0600));
    ok("creat-through-dangling-made", access("absent", F_OK));
    ok("dir-write", open("dir", O_WRONLY));
    ok("dir-rdwr", open("dir", O_RDWR));
    ok("dir-read", open("dir", O_RDONLY));
    ok("dir-creat", open("dir", O_RDONLY | O_CREAT, 0600));
    ok("dir-directory-creat", open("newdir", O_RDONLY | O_CREAT | O_DIRECTORY, 0600));
    ok("dir-trunc", open("dir", O_RDONLY | O_TRUNC));
    ok("file-directory", open("file", O_RDONLY | O_DIRECTORY));
    ok("nofollow-link", open("link", O_RDONLY | O_NOFOLLOW));
    ok("nofollow-directory-link", open("link", O_RDONLY | O_NOFOLLOW | O_DIRECTORY));
    int fd = (int)ok("path-nofollow-link", open("link", O_PATH | O_NOFOLLOW));
    struct stat st;
    ok("path-fstat", fstat(fd, &st));
    yes("path-is-link", S_ISLNK(st.st_mode));
    char text[64] = "";
    val("path-readlinkat-empty", readlinkat(fd, "", text, sizeof text));
    val("path-read", read(fd, text, 1));
    val("path-fchmod", fchmod(fd, 0600));
    val("path-getfl-path", (fcntl(fd, F_GETFL) & O_PATH) != 0);
    ok("path-dup", dup(fd));
    ok("path-ioctl", ioctl(fd, FIONREAD, text));
    ok("slash-file", open("file/", O_RDONLY));
    ok("slash-creat", open("newfile/", O_RDWR | O_CREAT, 0600));
    ok("empty", open("", O_RDONLY));
    ok("accmode-3", open("file", O_ACCMODE));
    ok("tmpfile-rdonly", open(".", O_TMPFILE | O_RDONLY, 0600));
    ok("tmpfile-file", open("file", O_TMPFILE | O_RDWR, 0600));
    fd = (int)ok("tmpfile", open(".", O_TMPFILE | O_RDWR, 0640));
    fstat(fd, &st);
    say("tmpfile-mode-links", "%o %ld", st.st_mode & 07777, (long)st.st_nlink);
    ok("tmpfile-linkat-empty", linkat(fd, "", AT_FDCWD, "linked", AT_EMPTY_PATH));
    ok("tmpfile-linked", access("linked", F_OK));
    fd = (int)ok("tmpfile-excl", open(".", O_TMPFILE | O_RDWR | O_EXCL, 0640));
    ok("tmpfile-excl-linkat", linkat(fd, "", AT_FDCWD, "linked2", AT_EMPTY_PATH));
    ok("mode-mask", fd = open("masked", O_CREAT | O_WRONLY, 07777));
    fstat(fd, &st);
    say("mode-masked", "%o", st.st_mode & 07777);
    fd = (int)ok("creat-mode-0", open("mode0", O_CREAT | O_RDWR, 0));
    val("creat-mode-0-write", write(fd, "x", 1));
    val("trunc-rdonly", open("mode0", O_RDONLY | O_TRUNC));
    val("trunc-rdonly-size", size_of(fd));
    for (unsigned bit = 0; bit < 32; bit++) {
        char name[32];
        snprintf(name, sizeof name, "flag-bit-%u", bit);
        int got = open("file", (int)(1U << bit), 0600);
        if (got < 0) ok(name, got);
        else say(name, "ok getfl %#x getfd %d", fcntl(got, F_GETFL) & ~(O_ACCMODE | 0100000), fcntl(got, F_GETFD));
        if (got >= 0) close(got);
    }
    CHILD("user") {
        make_file("private", "x", 0600);
        make_file("readable", "x", 0644);
        make_file("sgid", "x", 02755);
        as_user();
        ok("user-private", open("private", O_RDONLY));
        ok("user-write-readable", open("readable", O_WRONLY));
        ok("user-read-readable", open("readable", O_RDONLY));
        ok("user-creat-in-roots", open("mine", O_CREAT | O_WRONLY, 0600));
        ok("user-noatime-not-owner", open("readable", O_RDONLY | O_NOATIME));
        ok("user-path-private", open("private", O_PATH));
        ok("user-tmpfile-roots", open(".", O_TMPFILE | O_RDWR, 0600));
    }
}

static void offset_checks(void) {
    int fd = open("file", O_RDWR | O_CREAT, 0600);
    char text[32] = "";
    val("write", write(fd, "0123456789", 10));
    val("read-at-end", read(fd, text, 4));
    val("lseek-set", lseek(fd, 3, SEEK_SET));
    val("read", read(fd, text, 4));
    say("read-text", "%.4s", text);
    val("cur", lseek(fd, 0, SEEK_CUR));
    val("end", lseek(fd, -2, SEEK_END));
    val("read-short", read(fd, text, 10));
    val("before-start", lseek(fd, -11, SEEK_END));
    val("negative", lseek(fd, -1, SEEK_SET));
    val("whence-5", lseek(fd, 0, 5));
    val("whence-negative", lseek(fd, 0, -1));
    val("beyond-end", lseek(fd, 100, SEEK_SET));
    val("read-beyond-end", read(fd, text, 1));
    val("write-beyond-end", write(fd, "x", 1));
    val("size", size_of(fd));
    val("pread-hole", pread(fd, text, 1, 50));
    say("hole-byte", "%d", text[0]);
    val("pread-negative", pread(fd, text, 1, -1));
    val("pwrite-negative", pwrite(fd, text, 1, -1));
    val("pread-end", pread(fd, text, 32, 99));
    val("cur-unmoved", lseek(fd, 0, SEEK_CUR));
    val("pwrite", pwrite(fd, "AB", 2, 200));
    val("cur-unmoved-2", lseek(fd, 0, SEEK_CUR));
    val("lseek-max", lseek(fd, LONG_MAX, SEEK_SET) < 0 ? -1 : 0);
    val("lseek-cur-overflow", lseek(fd, LONG_MAX, SEEK_CUR) < 0 ? -1 : 0);
    val("pwrite-max", pwrite(fd, "x", 1, LONG_MAX));
    int copy = dup(fd);
    lseek(fd, 7, SEEK_SET);
    val("dup-shares-offset", lseek(copy, 0, SEEK_CUR));
    int other = open("file", O_RDWR);
    val("open-own-offset", lseek(other, 0, SEEK_CUR));
    CHILD("fork") { lseek(fd, 5, SEEK_SET); }
    val("fork-shares-offset", lseek(fd, 0, SEEK_CUR));
    int app = open("file", O_WRONLY | O_APPEND);
    val("append-start", lseek(app, 0, SEEK_CUR));
    val("append-write", write(app, "end", 3));
    val("append-cur", lseek(app, 0, SEEK_CUR));
    lseek(app, 0, SEEK_SET);
    val("append-pwrite", pwrite(app, "z", 1, 0));
    val("append-pwrite-size", size_of(app));
    val("append-read", read(app, text, 1));
    val("rdonly-write", write(open("file", O_RDONLY), "x", 1));
    int ends[2];
    pipe(ends);
    val("pipe-lseek", lseek(ends[0], 0, SEEK_SET));
    val("pipe-pread", pread(ends[0], text, 1, 0));
    val("pipe-pwrite", pwrite(ends[1], text, 1, 0));
    int dir = open(".", O_RDONLY);
    val("dir-read", read(dir, text, 1));
    val("dir-pread", pread(dir, text, 1, 0));
    val("dir-seek", lseek(dir, 0, SEEK_SET));
    val("dir-write", write(dir, text, 1));
    val("write-0", write(fd, NULL, 0));
    val("read-0", read(fd, NULL, 0));
    val("read-0-wronly", read(app, NULL, 0));
    val("write-null", write(fd, NULL, 1));
    val("read-null", pread(fd, NULL, 1, 0));
    char *edge = page_before_hole();
    lseek(fd, 0, SEEK_SET);
    val("read-into-edge", read(fd, edge + PAGE - 4, 10));
    val("read-into-edge-offset", lseek(fd, 0, SEEK_CUR));
    val("write-from-edge", pwrite(fd, edge + PAGE - 4, 10, 0));
    val("read-len-negative", read(fd, text, (size_t)-1));
    val("size-max-offset", pread(fd, text, 1, LONG_MAX));
}

static void vector_checks(void) {
    int fd = open("file", O_RDWR | O_CREAT, 0600);
    char a[8] = "abc", b[8] = "defg", c[16] = "";
    struct iovec v[3] = {{a, 3}, {NULL, 0}, {b, 4}};
    val("writev", writev(fd, v, 3));
    val("writev-0", writev(fd, v, 0));
    val("writev-negative", writev(fd, v, -1));
    val("writev-1024", writev(fd, NULL, 1025));
    val("writev-null", writev(fd, NULL, 1));
    struct iovec many[1024];
    for (int i = 0; i < 1024; i++) many[i] = (struct iovec){a, 1};
    val("writev-iov-max", writev(fd, many, 1024));
    struct iovec huge[2] = {{a, SSIZE_MAX}, {b, SSIZE_MAX}};
    val("writev-overflow", writev(fd, huge, 2) < 0 ? -1 : 0);
    struct iovec negative[1] = {{a, (size_t)-1}};
    val("writev-len-negative", writev(fd, negative, 1));
    struct iovec bad[2] = {{a, 3}, {NULL, 3}};
    val("pwritev-second-bad", pwritev(fd, bad, 2, 0));
    bad[0].iov_base = NULL;
    val("pwritev-first-bad", pwritev(fd, bad, 2, 0));
    struct iovec in[2] = {{c, 2}, {c + 4, 4}};
    val("preadv", preadv(fd, in, 2, 1));
    say("preadv-text", "%.2s %.4s", c, c + 4);
    val("preadv-negative", preadv(fd, in, 2, -1));
    lseek(fd, 2, SEEK_SET);
    val("preadv2-cur", preadv2(fd, in, 2, -1, 0));
    val("preadv2-cur-moved", lseek(fd, 0, SEEK_CUR));
    val("preadv2-bad-flag", preadv2(fd, in, 2, 0, 0x40000000));
    val("pwritev2-append", pwritev2(fd, v, 1, 0, RWF_APPEND));
    val("pwritev2-append-size", size_of(fd));
    val("pwritev2-dsync", pwritev2(fd, v, 1, 0, RWF_DSYNC));
    val("preadv2-hipri", preadv2(fd, in, 2, 0, RWF_HIPRI));
    int ends[2];
    pipe(ends);
    val("pipe-writev", writev(ends[1], v, 3));
    val("pipe-readv", readv(ends[0], in, 2));
    val("pipe-preadv", preadv(ends[0], in, 2, 0));
    val("pipe-preadv2-nowait", preadv2(ends[0], in, 1, -1, RWF_NOWAIT));
    val("pipe-preadv2-nowait-empty", preadv2(ends[0], in, 2, -1, RWF_NOWAIT));
}

static void descriptor_checks(void) {
    int fd = open("file", O_RDWR | O_CREAT, 0600);
    say("lowest", "%d", fd);
    val("dup", dup(fd));
    val("dup-bad", dup(-1));
    val("dup2-same", dup2(fd, fd));
    val("dup2-bad-same", dup2(99, 99));
    val("dup2", dup2(fd, 20));
    val("dup2-limit", dup2(fd, 1024));
    val("dup2-negative", dup2(fd, -1));
    val("dup3-same", dup3(fd, fd, 0));
    val("dup3-cloexec", dup3(fd, 21, O_CLOEXEC));
    val("dup3-cloexec-getfd", fcntl(21, F_GETFD));
    val("dup3-flags", dup3(fd, 21, O_NONBLOCK));
    val("dupfd", fcntl(fd, F_DUPFD, 30));
    val("dupfd-taken", fcntl(fd, F_DUPFD, 30));
    val("dupfd-cloexec", fcntl(fd, F_DUPFD_CLOEXEC, 30));
    val("dupfd-cloexec-getfd", fcntl(32, F_GETFD));
    val("dupfd-negative", fcntl(fd, F_DUPFD, -1));
    val("dupfd-limit", fcntl(fd, F_DUPFD, 1024));
    val("setfd", fcntl(fd, F_SETFD, 0xff));
    val("getfd", fcntl(fd, F_GETFD));
    say("getfl", "%#x", fcntl(fd, F_GETFL) & ~0100000);
    val("setfl", fcntl(fd, F_SETFL, O_APPEND | O_NONBLOCK | O_TRUNC | O_WRONLY));
    say("setfl-getfl", "%#x", fcntl(fd, F_GETFL) & ~0100000);
    val("setfl-noatime", fcntl(fd, F_SETFL, O_NOATIME));
    val("fcntl-unknown", fcntl(fd, 9999, 0));
    val("fcntl-bad", fcntl(-1, F_GETFD));
    val("getown", fcntl(fd, F_GETOWN));
    val("setown-self", fcntl(fd, F_SETOWN, getpid()));
    yes("getown-self", fcntl(fd, F_GETOWN) == getpid());
    val("setown-absent", fcntl(fd, F_SETOWN, 0x3fffffff));
    val("getsig", fcntl(fd, F_GETSIG));
    val("setsig-bad", fcntl(fd, F_SETSIG, 65));
    val("getpipe-sz-file", fcntl(fd, F_GETPIPE_SZ));
    val("getlease", fcntl(fd, F_GETLEASE));
    val("close", close(fd));
    val("close-again", close(fd));
    val("close-range-order", (long)syscall(SYS_close_range, 5, 4, 0));
    val("close-range-flag", (long)syscall(SYS_close_range, 3, 4, 1));
    val("close-range-cloexec", (long)syscall(SYS_close_range, 30, 40, CLOSE_RANGE_CLOEXEC));
    val("close-range-cloexec-30", fcntl(30, F_GETFD));
    val("close-range", (long)syscall(SYS_close_range, 20, ~0U, 0));
    val("close-range-20", fcntl(20, F_GETFD));
    int ends[2];
    val("pipe2-flags", pipe2(ends, O_CLOEXEC | O_APPEND));
    val("pipe2", pipe2(ends, O_CLOEXEC | O_NONBLOCK));
    say("pipe2-ends", "%#x %#x %d", fcntl(ends[0], F_GETFL), fcntl(ends[1], F_GETFL), fcntl(ends[0], F_GETFD));
    val("pipe-null", pipe(NULL));
    int count = 0;
    while (dup(0) >= 0) count++;
    say("emfile", "%s", error_name(errno));
    val("emfile-open", open("file", O_RDONLY));
    val("emfile-pipe", pipe(ends));
    say("emfile-all", "%d", fcntl(1023, F_GETFD));
    long on = 1;
    val("fionbio", ioctl(0, FIONBIO, &on));
    val("fioclex", ioctl(0, FIOCLEX));
    val("fioclex-getfd", fcntl(0, F_GETFD));
    val("fionclex", ioctl(0, FIONCLEX));
    val("ioctl-unknown", ioctl(0, 0xdead, 0));
    int file = dup2(1, 100) >= 0 ? (close(101), open("file", O_RDWR)) : -1;
    write(file, "12345", 5);
    lseek(file, 2, SEEK_SET);
    int available = -1;
    val("fionread", ioctl(file, FIONREAD, &available));
    val("fionread-is", available);
    val("fionread-null", ioctl(file, FIONREAD, NULL));
    val("tcgets-file", ioctl(file, 0x5401, NULL));
}

static void size_checks(void) {
    int fd = open("file", O_RDWR | O_CREAT, 0600), ro = open("file", O_RDONLY);
    val("ftruncate", ftruncate(fd, 10000));
    val("size", size_of(fd));
    val("shrink", ftruncate(fd, 5));
    val("shrink-size", size_of(fd));
    val("negative", ftruncate(fd, -1));
    val("rdonly", ftruncate(ro, 1));
    val("max", ftruncate(fd, LONG_MAX));
    ftruncate(fd, 5);
    int ends[2];
    pipe(ends);
    val("pipe", ftruncate(ends[1], 0));
    val("path", truncate("file", 7));
    val("path-absent", truncate("absent", 7));
    val("path-dir", truncate(".", 7));
    val("path-negative", truncate("file", -7));
    val("dir-fd", ftruncate(open(".", O_RDONLY), 0));
    pwrite(fd, "abcdefg", 7, 0);
    ftruncate(fd, 3), ftruncate(fd, 6);
    char text[8] = "";
    pread(fd, text, 6, 0);
    say("zeros-after-shrink", "%.3s %d %d %d", text, text[3], text[4], text[5]);
    val("fallocate", fallocate(fd, 0, 0, 3 * PAGE));
    val("fallocate-size", size_of(fd));
    val("fallocate-keep", fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 8 * PAGE));
    val("fallocate-keep-size", size_of(fd));
    val("fallocate-0", fallocate(fd, 0, 0, 0));
    val("fallocate-negative", fallocate(fd, 0, -1, 1));
    val("fallocate-len-negative", fallocate(fd, 0, 0, -1));
    val("fallocate-overflow", fallocate(fd, 0, LONG_MAX, 1));
    val("fallocate-punch-no-keep", fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 1));
    val("fallocate-bad-mode", fallocate(fd, 0x4000, 0, 1));
    val("fallocate-rdonly", fallocate(ro, 0, 0, 1));
    val("fallocate-pipe", fallocate(ends[1], 0, 0, 1));
    val("fallocate-dir", fallocate(open(".", O_RDONLY), 0, 0, 1));
    pwrite(fd, "xyz", 3, PAGE);
    val("punch", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE));
    pread(fd, text, 3, PAGE);
    say("punched", "%d %d %d", text[0], text[1], text[2]);
    val("posix-fallocate", posix_fallocate(fd, 0, 5 * PAGE));
    val("posix-fallocate-size", size_of(fd));
    int sparse = open("sparse", O_RDWR | O_CREAT, 0600);
    ftruncate(sparse, 1 << 20);
    pwrite(sparse, "d", 1, 1 << 18);
    yes("data-near", lseek(sparse, 0, SEEK_DATA) <= 1 << 18);
    val("hole-start", lseek(sparse, 0, SEEK_HOLE));
    yes("hole-after-data", lseek(sparse, 1 << 18, SEEK_HOLE) > 1 << 18);
    val("data-none", lseek(sparse, (1 << 20) - 1, SEEK_DATA));
    val("data-beyond", lseek(sparse, 1 << 20, SEEK_DATA));
    val("hole-beyond", lseek(sparse, 1 << 20, SEEK_HOLE));
    val("data-negative", lseek(sparse, -1, SEEK_DATA));
    struct stat st;
    fstat(sparse, &st);
    yes("sparse-blocks-few", st.st_blocks * 512 < 1 << 20);
    val("fsync", fsync(fd));
    val("fsync-pipe", fsync(ends[0]));
    val("fdatasync", fdatasync(fd));
    val("fadvise", posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
    val("fadvise-bad", posix_fadvise(fd, 0, 0, 99));
    val("fadvise-pipe", posix_fadvise(ends[0], 0, 0, 0));
}

static void copy_checks(void) {
    make_file("from", "0123456789", 0600);
    int in = open("from", O_RDONLY), out = open("to", O_RDWR | O_CREAT, 0600), app = open("to", O_WRONLY | O_APPEND);
    off_t at = 4;
    val("sendfile", sendfile(out, in, NULL, 3));
    val("sendfile-moved", lseek(in, 0, SEEK_CUR));
    val("sendfile-offset", sendfile(out, in, &at, 100));
    val("sendfile-offset-now", at);
    val("sendfile-offset-unmoved", lseek(in, 0, SEEK_CUR));
    at = -1;
    val("sendfile-negative", sendfile(out, in, &at, 1));
    val("sendfile-append", sendfile(app, in, NULL, 1));
    val("sendfile-to-rdonly", sendfile(in, out, NULL, 1));
    int ends[2];
    pipe(ends);
    val("sendfile-to-pipe", sendfile(ends[1], in, NULL, 2));
    val("sendfile-from-pipe", sendfile(out, ends[0], NULL, 2));
    loff_t a = 0, b = 20;
    val("copy", copy_file_range(in, &a, out, &b, 5, 0));
    say("copy-offsets", "%ld %ld", (long)a, (long)b);
    val("copy-at-end", copy_file_range(in, (a = 10, &a), out, &b, 5, 0));
    val("copy-flags", copy_file_range(in, &a, out, &b, 5, 1));
    val("copy-same-overlap", copy_file_range(out, (a = 0, &a), out, (b = 2, &b), 5, 0));
    val("copy-append", copy_file_range(in, (a = 0, &a), app, NULL, 5, 0));
    val("copy-pipe", copy_file_range(ends[0], NULL, out, NULL, 5, 0));
    val("copy-dir", copy_file_range(open(".", O_RDONLY), NULL, out, NULL, 5, 0));
    val("copy-rdonly-out", copy_file_range(in, NULL, in, NULL, 0, 0));
    int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDWR), full = open("/dev/full", O_RDWR);
    char text[16] = "................";
    val("null-read", read(null, text, 4));
    val("null-write", write(null, text, 4));
    val("zero-read", read(zero, text, 4));
    say("zero-bytes", "%d %d %d %d", text[0], text[1], text[2], text[3]);
    val("full-write", write(full, text, 4));
    val("full-read", read(full, text, 4));
    val("null-seek", lseek(null, 100, SEEK_SET));
    val("null-truncate", ftruncate(null, 0));
    val("null-open-trunc", open("/dev/null", O_WRONLY | O_TRUNC | O_CREAT, 0600) < 0 ? -1 : 0);
    val("urandom-read", read(open("/dev/urandom", O_RDONLY), text, 16));
    val("tty-without", open("/dev/tty", O_RDWR));
    struct stat st;
    stat("/dev/null", &st);
    say("null-rdev", "%o %lx", st.st_mode, (long)st.st_rdev);
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"open", open_checks},       {"offset", offset_checks}, {"vector", vector_checks},
                                          {"fd", descriptor_checks}, {"size", size_checks},     {"copy", copy_checks},
                                          {"large", large_read_checks}, {0}};
    return run(argc, argv, groups);
}
