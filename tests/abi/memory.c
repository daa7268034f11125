/* Address spaces: mapping, protecting, moving, advising, faults, sharing, copy on write. */
#include "abi.h"

#include <setjmp.h>

static sigjmp_buf back;
static volatile int fault_signal, fault_code;
static char *volatile fault_address;

static void fault(int signal, siginfo_t *info, void *context) {
    (void)context;
    fault_signal = signal, fault_code = info->si_code, fault_address = info->si_addr;
    siglongjmp(back, 1);
}

static const char *code_name(int signal, int code) {
    if (signal == SIGSEGV) return code == SEGV_MAPERR ? "MAPERR" : code == SEGV_ACCERR ? "ACCERR" : code == SI_KERNEL ? "KERNEL" : "?";
    if (signal == SIGBUS) return code == BUS_ADRERR ? "ADRERR" : code == BUS_ADRALN ? "ADRALN" : "?";
    if (signal == SIGFPE) return code == FPE_INTDIV ? "INTDIV" : "?";
    if (signal == SIGILL) return code == ILL_ILLOPN ? "ILLOPN" : "?";
    if (signal == SIGTRAP) return code == SI_KERNEL ? "KERNEL" : code == TRAP_BRKPT ? "BRKPT" : "?";
    return "?";
}

/* What the access does: 'r', 'w' or 'x' at an address. */
static void touch(const char *name, char *address, char how) {
    struct sigaction action = {.sa_sigaction = fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL), sigaction(SIGBUS, &action, NULL);
    if (sigsetjmp(back, 1)) {
        long distance = fault_address - address;
        say(name, "%s %s address %s", signal_name(fault_signal), code_name(fault_signal, fault_code),
            distance == 0 ? "exact" : fault_address == NULL ? "null" : "other");
        return;
    }
    if (how == 'r') (void)*(volatile char *)address;
    if (how == 'w') *(volatile char *)address = 'w';
    if (how == 'x') ((void (*)(void))address)();
    say(name, "fine");
}

static char *map(size_t length, int protection) { return mmap(NULL, length, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }

static void mmap_checks(void) {
    const int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;
    make_file("file", "content", 0600);
    int fd = open("file", O_RDWR), ro = open("file", O_RDONLY), wo = open("file", O_WRONLY), app = open("file", O_RDWR | O_APPEND), p[2];
    pipe(p);
    okp("anon", mmap(NULL, PAGE, rw, anon, -1, 0));
    okp("len-0", mmap(NULL, 0, rw, anon, -1, 0));
    okp("len-max", mmap(NULL, SIZE_MAX, rw, anon, -1, 0));
    okp("len-huge", mmap(NULL, 1UL << 47, PROT_NONE, anon | MAP_NORESERVE, -1, 0));
    okp("no-type", mmap(NULL, PAGE, rw, MAP_ANONYMOUS, -1, 0));
    okp("both-types", mmap(NULL, PAGE, rw, MAP_ANONYMOUS | MAP_SHARED | MAP_PRIVATE, -1, 0));
    okp("shared-validate-unknown", mmap(NULL, PAGE, rw, MAP_SHARED_VALIDATE | (1 << 23), fd, 0));
    okp("shared-unknown", mmap(NULL, PAGE, rw, MAP_SHARED | (1 << 23), fd, 0));
    okp("bad-fd", mmap(NULL, PAGE, rw, MAP_PRIVATE, -1, 0));
    okp("anon-with-fd", mmap(NULL, PAGE, rw, anon, 99, 0));
    okp("offset-unaligned", mmap(NULL, PAGE, rw, MAP_PRIVATE, fd, 1));
    okp("anon-offset-unaligned", mmap(NULL, PAGE, rw, anon, -1, 1));
    okp("offset-negative", mmap(NULL, PAGE, rw, MAP_PRIVATE, fd, -PAGE));
    okp("ro-shared-write", mmap(NULL, PAGE, rw, MAP_SHARED, ro, 0));
    okp("ro-private-write", mmap(NULL, PAGE, rw, MAP_PRIVATE, ro, 0));
    okp("ro-shared-read", mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ro, 0));
    okp("wo", mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, wo, 0));
    okp("append-shared", mmap(NULL, PAGE, rw, MAP_SHARED, app, 0));
    okp("pipe", mmap(NULL, PAGE, rw, MAP_SHARED, p[0], 0));
    okp("dir", mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, open(".", O_RDONLY), 0));
    okp("path", mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, open("file", O_PATH), 0));
    okp("fixed-unaligned", mmap((void *)(uintptr_t)0x10001, PAGE, rw, anon | MAP_FIXED, -1, 0));
    okp("fixed-kernel", mmap((void *)(uintptr_t)0xffff800000000000, PAGE, rw, anon | MAP_FIXED, -1, 0));
    okp("prot-unknown", mmap(NULL, PAGE, rw | 0x100, anon, -1, 0));
    char *three = map(3 * PAGE, rw);
    okp("fixed-noreplace-taken", mmap(three + PAGE, PAGE, rw, anon | MAP_FIXED_NOREPLACE, -1, 0));
    munmap(three + PAGE, PAGE);
    yes("fixed-noreplace-free", mmap(three + PAGE, PAGE, rw, anon | MAP_FIXED_NOREPLACE, -1, 0) == three + PAGE);
    munmap(three + PAGE, PAGE);
    yes("hint-free", mmap(three + PAGE, PAGE, rw, anon, -1, 0) == three + PAGE);
    yes("hint-taken-elsewhere", mmap(three + PAGE, PAGE, rw, anon, -1, 0) != three + PAGE);
    yes("hint-unaligned-rounds", (munmap(three + PAGE, PAGE), mmap(three + PAGE + 5, PAGE, rw, anon, -1, 0)) == three + PAGE);
    three[0] = 'a';
    yes("fixed-replaces", mmap(three, PAGE, rw, anon | MAP_FIXED, -1, 0) == three && three[0] == 0);
    okp("populate", mmap(NULL, 4 * PAGE, rw, anon | MAP_POPULATE, -1, 0));
    yes("32bit", (uintptr_t)mmap(NULL, PAGE, rw, anon | MAP_32BIT, -1, 0) < 1UL << 31);
    okp("growsdown", mmap(NULL, PAGE, rw, anon | MAP_GROWSDOWN, -1, 0));
    okp("stack-flag", mmap(NULL, PAGE, rw, anon | MAP_STACK | MAP_NORESERVE, -1, 0));
    okp("zero-device", mmap(NULL, PAGE, rw, MAP_PRIVATE, open("/dev/zero", O_RDWR), 0));
    okp("null-device", mmap(NULL, PAGE, rw, MAP_PRIVATE, open("/dev/null", O_RDWR), 0));
    ok("munmap", munmap(three, 3 * PAGE));
    ok("munmap-again", munmap(three, 3 * PAGE));
    ok("munmap-unaligned", munmap(three + 1, PAGE));
    ok("munmap-0", munmap(three, 0));
    ok("munmap-kernel", munmap((void *)(uintptr_t)0xffff800000000000, PAGE));
    ok("munmap-len-unaligned", munmap(map(PAGE, rw), 1));
    char *five = map(5 * PAGE, rw);
    ok("munmap-middle", munmap(five + 2 * PAGE, PAGE));
    touch("munmap-middle-hole", five + 2 * PAGE, 'r');
    touch("munmap-middle-after", five + 3 * PAGE, 'w');
    char *start = sbrk(0);
    yes("brk-grow", brk(start + 10 * PAGE) == 0 && sbrk(0) == start + 10 * PAGE);
    touch("brk-use", start + 9 * PAGE, 'w');
    yes("brk-shrink", brk(start) == 0 && sbrk(0) == start);
    touch("brk-after-shrink", (char *)(((uintptr_t)start + PAGE - 1) / PAGE * PAGE) + 9 * PAGE, 'r');
    yes("brk-raw-0", (char *)syscall(SYS_brk, 0) == start);
    yes("brk-raw-low", (char *)syscall(SYS_brk, 1) == start);
    yes("brk-raw-kernel", (char *)syscall(SYS_brk, -1) == start);
}

static void protect_checks(void) {
    const int rw = PROT_READ | PROT_WRITE;
    char *m = map(4 * PAGE, rw);
    touch("rw-write", m, 'w');
    ok("ro", mprotect(m, PAGE, PROT_READ));
    touch("ro-read", m, 'r'), touch("ro-write", m + 5, 'w');
    ok("none", mprotect(m, PAGE, PROT_NONE));
    touch("none-read", m + 9, 'r');
    touch("neighbour", m + PAGE, 'w');
    ok("rw-again", mprotect(m, PAGE, rw));
    yes("content-kept", m[0] == 'w');
    ok("unaligned", mprotect(m + 1, PAGE, rw));
    ok("len-0", mprotect(m, 0, rw));
    ok("len-rounds", mprotect(m, 1, PROT_READ));
    ok("len-max", mprotect(m, SIZE_MAX, rw));
    ok("prot-unknown", mprotect(m, PAGE, 0x40));
    munmap(m + 2 * PAGE, PAGE);
    ok("over-hole", mprotect(m, 4 * PAGE, PROT_READ));
    touch("over-hole-before", m + PAGE, 'w');
    touch("over-hole-after", m + 3 * PAGE, 'w');
    ok("unmapped", mprotect(m + 2 * PAGE, PAGE, rw));
    ok("growsdown-flag", mprotect(m, PAGE, rw | PROT_GROWSDOWN));
    make_file("file", "content", 0600);
    char *shared_ro = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, open("file", O_RDONLY), 0);
    ok("shared-ro-to-rw", mprotect(shared_ro, PAGE, rw));
    char *private_ro = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, open("file", O_RDONLY), 0);
    ok("private-ro-to-rw", mprotect(private_ro, PAGE, rw));
    char *code = map(PAGE, rw);
    code[0] = (char)0xc3;
    touch("execute-rw", code, 'x');
    mprotect(code, PAGE, PROT_READ | PROT_EXEC);
    touch("execute-rx", code, 'x');
    touch("write-rx", code, 'w');
    touch("execute-unmapped", page_before_hole() + PAGE, 'x');
    touch("null-read", NULL, 'r');
    touch("null-write", (char *)8, 'w');
    touch("kernel-read", (char *)(uintptr_t)0xffffffff81000000, 'r');
    touch("noncanonical-read", (char *)(uintptr_t)0x800000000000000, 'r');
    char *beyond = mmap(NULL, 2 * PAGE, rw, MAP_SHARED, open("file", O_RDWR), 0);
    touch("file-page", beyond + 100, 'w');
    touch("beyond-end", beyond + PAGE + 3, 'r');
    CHILD("div-0") {
        volatile int zero = 0;
        struct sigaction action = {.sa_sigaction = fault, .sa_flags = SA_SIGINFO};
        sigaction(SIGFPE, &action, NULL), sigaction(SIGILL, &action, NULL), sigaction(SIGTRAP, &action, NULL);
        if (!sigsetjmp(back, 1)) zero = 100 / zero;
        say("divide", "%s %s", signal_name(fault_signal), code_name(fault_signal, fault_code));
        if (!sigsetjmp(back, 1)) __asm__ volatile("ud2");
        say("ud2", "%s %s", signal_name(fault_signal), code_name(fault_signal, fault_code));
        if (!sigsetjmp(back, 1)) __asm__ volatile("int3");
        say("int3", "%s %s", signal_name(fault_signal), code_name(fault_signal, fault_code));
        sigaction(SIGSEGV, &action, NULL);
        if (!sigsetjmp(back, 1)) __asm__ volatile("hlt");
        say("hlt", "%s %s", signal_name(fault_signal), code_name(fault_signal, fault_code));
    }
    CHILD("blocked-fault-kills") {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_BLOCK, &all, NULL);
        signal(SIGSEGV, SIG_IGN);
        *(volatile int *)8 = 1;
    }
    CHILD("stack-overflow") {
        char *volatile deep = alloca(64 << 20);
        deep[0] = 1;
    }
    CHILD("stack-grows") {
        volatile char *deep = alloca(6 << 20);
        for (long at = (6 << 20) - 1; at >= 0; at -= PAGE) deep[at] = 1;
        say("stack-6-mib", "fine");
    }
}

static void remap_checks(void) {
    const int rw = PROT_READ | PROT_WRITE;
    char *m = map(8 * PAGE, rw);
    m[0] = 'a', m[PAGE] = 'b', m[7 * PAGE] = 'h';
    yes("shrink", mremap(m, 8 * PAGE, 4 * PAGE, 0) == m);
    touch("shrink-tail", m + 4 * PAGE, 'r');
    yes("grow-in-place", mremap(m, 4 * PAGE, 8 * PAGE, 0) == m);
    touch("grow-zero", m + 7 * PAGE, 'r');
    yes("grown-is-zero", m[7 * PAGE] == 0);
    mprotect(m + 4 * PAGE, PAGE, PROT_READ);
    okp("grow-blocked", mremap(m, PAGE, 2 * PAGE, 0));
    char *n = okp("grow-move", mremap(m, PAGE, 16 * PAGE, MREMAP_MAYMOVE));
    yes("grow-moved", n != m && n[0] == 'a');
    touch("moved-from", m, 'r');
    char *target = map(4 * PAGE, rw);
    target[PAGE] = 't';
    yes("fixed", mremap(n, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target) == target && target[0] == 'a' && target[PAGE] == 0);
    okp("fixed-without-move", mremap(target, PAGE, PAGE, MREMAP_FIXED, m));
    okp("fixed-overlap", mremap(target, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target + PAGE));
    okp("fixed-unaligned", mremap(target, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, n + 1));
    okp("unaligned", mremap(target + 1, PAGE, PAGE, 0));
    okp("new-0", mremap(target, PAGE, 0, 0));
    okp("old-0-private", mremap(target, 0, PAGE, MREMAP_MAYMOVE));
    okp("unmapped", mremap(page_before_hole() + PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE));
    okp("flags", mremap(target, PAGE, PAGE, 8));
    okp("over-two-areas", mremap(m + 3 * PAGE, 2 * PAGE, 3 * PAGE, MREMAP_MAYMOVE));
    okp("new-max", mremap(target, PAGE, SIZE_MAX, MREMAP_MAYMOVE));
    target[0] = 'd';
    char *d = okp("dontunmap", mremap(target, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP));
    yes("dontunmap-old-zero", d != MAP_FAILED && d[0] == 'd' && target[0] == 0);
    okp("dontunmap-resize", mremap(d, PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP));
    char *shared = shared_page();
    shared[0] = 's';
    char *twice = okp("old-0-shared", mremap(shared, 0, PAGE, MREMAP_MAYMOVE));
    yes("old-0-is-second-view", twice != MAP_FAILED && twice[0] == 's' && (shared[1] = 'x', twice[1] == 'x'));
    make_file("file", "0123", 0600);
    int fd = open("file", O_RDWR);
    ftruncate(fd, 3 * PAGE);
    pwrite(fd, "third", 5, 2 * PAGE);
    char *f = mmap(NULL, PAGE, rw, MAP_SHARED, fd, 0);
    f = okp("file-grow", mremap(f, PAGE, 3 * PAGE, MREMAP_MAYMOVE));
    say("file-grown", "%.4s %.5s", f, f + 2 * PAGE);
}

static void advise_checks(void) {
    const int rw = PROT_READ | PROT_WRITE;
    char *m = map(4 * PAGE, rw);
    unsigned char resident[8];
    memset(m, 'a', 4 * PAGE);
    const int advices[] = {MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP, MADV_DODUMP,
                           MADV_WIPEONFORK, MADV_KEEPONFORK, MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE, 5, 7, 26, 99, -1};
    for (unsigned i = 0; i < sizeof advices / sizeof *advices; i++) {
        char name[32];
        snprintf(name, sizeof name, "advice-%d", advices[i]);
        ok(name, madvise(m, PAGE, advices[i]));
    }
    ok("dontneed", madvise(m, PAGE, MADV_DONTNEED));
    say("dontneed-zero", "%d %c", m[0], m[PAGE]);
    ok("free", madvise(m + PAGE, PAGE, MADV_FREE));
    m[PAGE] = 'f';
    yes("free-written-kept", m[PAGE] == 'f');
    ok("unaligned", madvise(m + 1, PAGE, MADV_DONTNEED));
    ok("len-0", madvise(m, 0, MADV_DONTNEED));
    ok("len-max", madvise(m, SIZE_MAX, MADV_DONTNEED));
    ok("kernel", madvise((void *)(uintptr_t)0xffff800000000000, PAGE, MADV_DONTNEED));
    munmap(m + 2 * PAGE, PAGE);
    ok("over-hole", madvise(m, 4 * PAGE, MADV_DONTNEED));
    yes("over-hole-applied", m[3 * PAGE] == 0);
    char *n = map(3 * PAGE, rw);
    n[PAGE] = 1;
    ok("mincore", mincore(n, 3 * PAGE, resident));
    say("mincore-is", "%d %d %d", resident[0] & 1, resident[1] & 1, resident[2] & 1);
    ok("mincore-unaligned", mincore(n + 1, PAGE, resident));
    ok("mincore-null", mincore(n, PAGE, NULL));
    ok("mincore-unmapped", mincore(m, 4 * PAGE, resident));
    ok("msync", msync(n, PAGE, MS_SYNC));
    ok("msync-both", msync(n, PAGE, MS_SYNC | MS_ASYNC));
    ok("msync-unmapped", msync(m, 4 * PAGE, MS_SYNC));
    ok("msync-unaligned", msync(n + 1, PAGE, MS_SYNC));
    ok("msync-flags", msync(n, PAGE, 8));
    ok("mlock", mlock(n, PAGE));
    ok("msync-invalidate-locked", msync(n, PAGE, MS_INVALIDATE));
    ok("mlock-unmapped", mlock(m, 4 * PAGE));
    ok("munlock", munlock(n, PAGE));
    ok("mlock2-onfault", mlock2(n, PAGE, MLOCK_ONFAULT));
    ok("mlock2-flags", mlock2(n, PAGE, 8));
    ok("mlockall-0", mlockall(0));
    ok("mlockall-onfault", mlockall(MCL_ONFAULT));
    ok("munlockall", munlockall());
    CHILD("fork-advice") {
        char *dont = map(PAGE, rw), *wipe = map(PAGE, rw);
        *dont = *wipe = 'x';
        madvise(dont, PAGE, MADV_DONTFORK), madvise(wipe, PAGE, MADV_WIPEONFORK);
        CHILD("inner") {
            touch("dontfork-child", dont, 'r');
            say("wipeonfork-child", "%d", *wipe);
        }
        say("wipeonfork-parent", "%c", *wipe);
    }
    CHILD("exec-memory") {
        char *local = map(PAGE, rw), *remote = map(PAGE, rw);
        strcpy(remote, "remote");
        struct iovec l = {local, 6}, r = {remote, 6}, hole = {page_before_hole() + PAGE - 2, 6};
        val("process-vm-readv", process_vm_readv(getpid(), &l, 1, &r, 1, 0));
        val("process-vm-readv-partial", process_vm_readv(getpid(), &l, 1, &hole, 1, 0));
        val("process-vm-readv-flags", process_vm_readv(getpid(), &l, 1, &r, 1, 1));
        val("process-vm-writev-absent", process_vm_writev(0x3fffffff, &l, 1, &r, 1, 0));
    }
}

static void share_checks(void) {
    const int rw = PROT_READ | PROT_WRITE;
    char text[PAGE];
    make_file("file", "0123456789", 0600);
    int fd = open("file", O_RDWR);
    char *shared = mmap(NULL, PAGE, rw, MAP_SHARED, fd, 0), *private = mmap(NULL, PAGE, rw, MAP_PRIVATE, fd, 0);
    say("both-see", "%.4s %.4s", shared, private);
    pwrite(fd, "AB", 2, 0);
    say("write-seen", "%.4s %.4s", shared, private);
    shared[2] = 'C';
    pread(fd, text, 4, 0);
    say("store-seen", "%.4s", text);
    private[3] = 'p';
    pread(fd, text, 4, 0);
    say("private-unseen", "%.4s %.4s", text, shared);
    pwrite(fd, "Z", 1, 0);
    say("private-is-apart", "%.4s", private);
    say("tail-zero", "%d", shared[100]);
    shared[100] = 't';
    struct stat st;
    fstat(fd, &st);
    val("size-unchanged", st.st_size);
    ftruncate(fd, 200);
    pread(fd, text, 1, 100);
    say("tail-after-grow", "%d", text[0]);
    ftruncate(fd, 0);
    touch("truncated-read", shared, 'r');
    touch("truncated-private-copied", private, 'r');
    ftruncate(fd, 10);
    say("regrown", "%d", shared[0]);
    close(fd), unlink("file");
    shared[0] = 'k';
    say("unlinked-usable", "%c", shared[0]);
    char *anon = shared_page(), *cow = map(PAGE, rw);
    *cow = 'p';
    CHILD("child") {
        *anon = 'c', *cow = 'c', shared[1] = 'c';
        say("child-cow", "%c", *cow);
    }
    say("after-child", "%c %c %c", *anon, *cow, shared[1]);
    int memory = memfd_create("m", MFD_ALLOW_SEALING);
    ftruncate(memory, PAGE);
    char *mapped = mmap(NULL, PAGE, rw, MAP_SHARED, memory, 0);
    ok("seal-write-mapped", fcntl(memory, F_ADD_SEALS, F_SEAL_WRITE));
    ok("seal-future", fcntl(memory, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
    touch("seal-future-old-map", mapped, 'w');
    okp("seal-future-new-map", mmap(NULL, PAGE, rw, MAP_SHARED, memory, 0));
    munmap(mapped, PAGE);
    ok("seal-write", fcntl(memory, F_ADD_SEALS, F_SEAL_WRITE));
    val("seal-write-write", pwrite(memory, "x", 1, 0));
    okp("seal-write-map-private", mmap(NULL, PAGE, rw, MAP_PRIVATE, memory, 0));
    okp("seal-write-map-ro", mmap(NULL, PAGE, PROT_READ, MAP_SHARED, memory, 0));
    ok("seal-grow", fcntl(memory, F_ADD_SEALS, F_SEAL_GROW));
    ok("seal-grow-truncate", ftruncate(memory, 2 * PAGE));
    ok("seal-shrink-before", ftruncate(memory, 1));
    ok("seal-shrink", fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK));
    ok("seal-shrink-truncate", ftruncate(memory, 0));
    ok("seal-seal", fcntl(memory, F_ADD_SEALS, F_SEAL_SEAL));
    ok("seal-after", fcntl(memory, F_ADD_SEALS, F_SEAL_GROW));
    say("seals", "%#x", fcntl(memory, F_GET_SEALS));
    ok("seal-bad", fcntl(memfd_create("n", MFD_ALLOW_SEALING), F_ADD_SEALS, 0x1000));
    int plain = memfd_create("plain", 0);
    say("plain-seals", "%#x", fcntl(plain, F_GET_SEALS));
    ok("plain-add", fcntl(plain, F_ADD_SEALS, F_SEAL_GROW));
    ok("file-get-seals", fcntl(0, F_GET_SEALS));
    ok("memfd-flags", memfd_create("x", 0x100));
    memset(text, 'n', 300), text[250] = 0;
    ok("memfd-name-250", memfd_create(text, 0));
    text[249] = 0;
    ok("memfd-name-249", memfd_create(text, 0));
    fstat(plain, &st);
    say("memfd-stat", "%o links %ld", st.st_mode, (long)st.st_nlink);
    snprintf(text, sizeof text, "/proc/self/fd/%d", plain);
    char target[64] = "";
    readlink(text, target, sizeof target - 1);
    say("memfd-link", "%s", target);
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"mmap", mmap_checks}, {"protect", protect_checks}, {"remap", remap_checks},
                                           {"advise", advise_checks}, {"share", share_checks}, {0}};
    return run(argc, argv, groups);
}
