/* Generated checks of calls on memory, processes, signals, identity and limits. */
#include "gen.h"

#include <linux/futex.h>
#include <sys/prctl.h>

KIND(none, {"NULL", 0});
KIND(lengths, {"4096", 4096}, {"0", 0}, {"1", 1}, {"65536", 65536}, {"-1", -1}, {"LONG_MIN", LONG_MIN});
KIND(protections, {"RW", 3}, {"0", 0}, {"R", 1}, {"X", 4}, {"RWX", 7}, {"0x40", 0x40}, {"GROWSDOWN", 0x01000000}, {"-1", -1});
KIND(map_flags, {"PRIVATE|ANON", 0x22}, {"SHARED|ANON", 0x21}, {"PRIVATE", 2}, {"SHARED", 1}, {"FIXED|PRIVATE|ANON", 0x32},
     {"NOREPLACE|PRIVATE|ANON", 0x100022}, {"0", 0}, {"VALIDATE", 3}, {"GROWSDOWN", 0x122}, {"32BIT", 0x62});
KIND(offsets, {"0", 0}, {"1", 1}, {"4096", 4096}, {"-4096", -4096}, {"LONG_MIN", LONG_MIN});
KIND(remap_flags, {"0", 0}, {"MAYMOVE", 1}, {"FIXED", 2}, {"MAYMOVE|FIXED", 3}, {"DONTUNMAP", 5}, {"8", 8}, {"-1", -1});
KIND(advice, {"DONTNEED", 4}, {"NORMAL", 0}, {"WILLNEED", 3}, {"FREE", 8}, {"REMOVE", 9}, {"DONTFORK", 10}, {"WIPEONFORK", 18}, {"COLD", 20},
     {"POPULATE_READ", 22}, {"POPULATE_WRITE", 23}, {"7", 7}, {"-1", -1});
KIND(sync_flags, {"SYNC", 4}, {"0", 0}, {"ASYNC", 1}, {"INVALIDATE", 2}, {"5", 5}, {"8", 8});
KIND(memfd_flags, {"0", 0}, {"CLOEXEC", 1}, {"SEALING", 2}, {"NOEXEC", 8}, {"EXEC", 16}, {"24", 24}, {"0x100", 0x100});
KIND(mlock_flags, {"0", 0}, {"ONFAULT", 1}, {"2", 2}, {"-1", -1});

static void memory_calls(void) {
    static const struct call calls[] = {{"mmap", SYS_mmap, 110, 0, {&PAGES, &lengths, &protections, &map_flags, &FD, &offsets}},
                                        {"munmap", SYS_munmap, 42, 0, {&PAGES, &lengths}},
                                        {"mprotect", SYS_mprotect, 60, 0, {&PAGES, &lengths, &protections}},
                                        {"mremap", SYS_mremap, 80, 0, {&PAGES, &lengths, &lengths, &remap_flags, &PAGES}},
                                        {"madvise", SYS_madvise, 70, 0, {&PAGES, &lengths, &advice}},
                                        {"mincore", SYS_mincore, 40, 0, {&PAGES, &lengths, &OUT}},
                                        {"msync", SYS_msync, 45, 0, {&PAGES, &lengths, &sync_flags}},
                                        {"mlock", SYS_mlock, 30, 0, {&PAGES, &lengths}},
                                        {"mlock2", SYS_mlock2, 30, 0, {&PAGES, &lengths, &mlock_flags}},
                                        {"munlock", SYS_munlock, 30, 0, {&PAGES, &lengths}},
                                        {"memfd_create", SYS_memfd_create, 40, 0, {&PATH, &memfd_flags}},
                                        {"process_vm_readv", SYS_process_vm_readv, 40, BY_VALUE, {&PID, &IOV, &IOVCOUNT, &IOV, &IOVCOUNT, &none}},
                                        {0}};
    generate(calls);
}

KIND(wait_options, {"WNOHANG", 1}, {"WNOHANG|WUNTRACED", 3}, {"WNOHANG|WCONTINUED", 9}, {"WNOHANG|0x10", 0x11}, {"WNOHANG|WALL", 0x40000001},
     {"-1", -1});
KIND(waitid_options, {"WEXITED|WNOHANG", 5}, {"WNOHANG", 1}, {"WSTOPPED|WNOHANG", 3}, {"WNOWAIT|WEXITED|WNOHANG", 0x1000005},
     {"0x10000|WNOHANG|WEXITED", 0x10005});
KIND(waitid_types, {"P_ALL", 0}, {"P_PID", 1}, {"P_PGID", 2}, {"P_PIDFD", 3}, {"4", 4}, {"-1", -1});
KIND(resources, {"NOFILE", RLIMIT_NOFILE}, {"STACK", RLIMIT_STACK}, {"CORE", RLIMIT_CORE}, {"15", 15}, {"16", 16}, {"-1", -1});
KIND(usage_who, {"SELF", 0}, {"CHILDREN", -1}, {"THREAD", 1}, {"2", 2}, {"-2", -2});
KIND(priority_which, {"PROCESS", 0}, {"PGRP", 1}, {"USER", 2}, {"3", 3}, {"-1", -1});
KIND(priorities, {"0", 0}, {"5", 5}, {"100", 100}, {"-5", -5}, {"-100", -100});
KIND(policies, {"OTHER", 0}, {"FIFO", 1}, {"RR", 2}, {"BATCH", 3}, {"4", 4}, {"IDLE", 5}, {"7", 7}, {"-1", -1});
/* A process that may be signalled: never anybody else's. */
static long target_make(int number) {
    const long values[] = {getpid(), 0, 0x3fffffff, -0x3fffffff, INT_MIN, -(1 << 30)};
    return values[number];
}
static const struct value target_names[] = {{"self", 0}, {"0", 0}, {"absent", 0}, {"-absent", 0}, {"INT_MIN", 0}, {"-2^30", 0}};
static const struct kind TARGET = {target_names, 6, target_make};
KIND(prctl_options, V(PR_GET_PDEATHSIG), V(PR_SET_PDEATHSIG), V(PR_GET_DUMPABLE), V(PR_SET_DUMPABLE), V(PR_GET_KEEPCAPS),
     V(PR_SET_KEEPCAPS), V(PR_SET_NAME), V(PR_GET_NAME), V(PR_CAPBSET_READ), V(PR_GET_SECUREBITS), V(PR_GET_TIMERSLACK),
     V(PR_SET_NO_NEW_PRIVS), V(PR_GET_NO_NEW_PRIVS), V(PR_GET_TID_ADDRESS), V(PR_SET_CHILD_SUBREAPER), V(PR_CAP_AMBIENT), V(PR_GET_THP_DISABLE),
     V(PR_SET_TIMING), V(PR_GET_TIMING), {"9999", 9999}, {"-1", -1});
KIND(prctl_values, {"0", 0}, {"1", 1}, {"9", 9}, {"64", 64}, {"8", 8}, {"-1", -1});
KIND(arch_codes, {"GET_FS", 0x1003}, {"GET_GS", 0x1004}, {"SET_GS", 0x1001}, {"0", 0}, {"-1", -1});
KIND(unshare_flags, {"0", 0}, {"FS", 0x200}, {"FILES", 0x400}, {"SYSVSEM", 0x40000}, {"NEWNS", 0x20000}, {"NEWUTS", 0x4000000}, {"THREAD", 0x10000},
     {"VM", 0x100}, {"SIGHAND", 0x800}, {"1", 1}, {"-1", -1});
KIND(futex_operations, {"WAKE", 1}, {"WAIT", 0}, {"FD", 2}, {"REQUEUE", 3}, {"CMP_REQUEUE", 4}, {"WAKE_OP", 5}, {"TRYLOCK_PI", 8},
     {"UNLOCK_PI", 7}, {"WAIT_BITSET", 9}, {"WAKE_BITSET", 10}, {"99", 99}, {"WAKE|PRIVATE", 0x81}, {"WAKE|REALTIME", 0x101}, {"-1", -1});
KIND(futex_values, {"1", 1}, {"0", 0}, {"-1", -1});
/* No futex waits for ever here: the time is always there, or wrong. */
static long brief_make(int number) {
    static struct timespec values[3] = {{0, 1000}, {0, 1000000000}, {-1, 0}};
    return number == 3 ? 8 : (long)&values[number];
}
static const struct value brief_names[] = {{"1us", 0}, {"nsec-1e9", 0}, {"sec-1", 0}, {"8", 0}};
static const struct kind BRIEF = {brief_names, 4, brief_make};
KIND(mask_how, {"BLOCK", 0}, {"UNBLOCK", 1}, {"SETMASK", 2}, {"3", 3}, {"-1", -1});
KIND(pidfd_flags, {"0", 0}, V(O_NONBLOCK), {"1", 1}, {"-1", -1});
KIND(personas, {"GET", 0xffffffff}, {"0", 0}, {"ADDR_NO_RANDOMIZE", 0x40000});
KIND(robust_sizes, {"24", 24}, {"0", 0}, {"23", 23});

static void process_calls(void) {
    static const struct call calls[] = {{"kill", SYS_kill, 42, 0, {&TARGET, &SIGNAL}},
                                        {"kill-user", SYS_kill, 42, AS_USER, {&TARGET, &SIGNAL}},
                                        {"tgkill", SYS_tgkill, 50, 0, {&TARGET, &TARGET, &SIGNAL}},
                                        {"tkill", SYS_tkill, 42, 0, {&TARGET, &SIGNAL}},
                                        {"rt_sigqueueinfo", SYS_rt_sigqueueinfo, 40, 0, {&TARGET, &SIGNAL, &IN}},
                                        {"rt_tgsigqueueinfo", SYS_rt_tgsigqueueinfo, 40, 0, {&TARGET, &TARGET, &SIGNAL, &IN}},
                                        {"wait4", SYS_wait4, 40, 0, {&TARGET, &OUT, &wait_options, &OUT}},
                                        {"waitid", SYS_waitid, 50, 0, {&waitid_types, &TARGET, &OUT, &waitid_options, &none}},
                                        {"setpgid", SYS_setpgid, 36, 0, {&TARGET, &TARGET}},
                                        {"getpgid", SYS_getpgid, 8, 0, {&TARGET}},
                                        {"getsid", SYS_getsid, 8, 0, {&TARGET}},
                                        {"getrlimit", SYS_getrlimit, 36, 0, {&resources, &OUT}},
                                        {"setrlimit", SYS_setrlimit, 36, 0, {&resources, &IN}},
                                        {"prlimit64", SYS_prlimit64, 40, 0, {&TARGET, &resources, &none, &OUT}},
                                        {"getrusage", SYS_getrusage, 30, 0, {&usage_who, &OUT}},
                                        {"getpriority", SYS_getpriority, 30, BY_VALUE, {&priority_which, &TARGET}},
                                        {"setpriority", SYS_setpriority, 40, 0, {&priority_which, &TARGET, &priorities}},
                                        {"setpriority-user", SYS_setpriority, 40, AS_USER, {&priority_which, &TARGET, &priorities}},
                                        {"sched_getscheduler", SYS_sched_getscheduler, 8, BY_VALUE, {&TARGET}},
                                        {"sched_getparam", SYS_sched_getparam, 30, 0, {&TARGET, &OUT}},
                                        {"sched_setscheduler", SYS_sched_setscheduler, 40, 0, {&TARGET, &policies, &IN}},
                                        {"sched_get_priority_max", SYS_sched_get_priority_max, 8, BY_VALUE, {&policies}},
                                        {"sched_get_priority_min", SYS_sched_get_priority_min, 8, BY_VALUE, {&policies}},
                                        {"sched_rr_get_interval", SYS_sched_rr_get_interval, 24, 0, {&TARGET, &OUT}},
                                        {"sched_setaffinity", SYS_sched_setaffinity, 36, 0, {&TARGET, &lengths, &IN}},
                                        {"prctl", SYS_prctl, 110, 0, {&prctl_options, &prctl_values}},
                                        {"arch_prctl", SYS_arch_prctl, 30, 0, {&arch_codes, &OUT}},
                                        {"unshare", SYS_unshare, 12, 0, {&unshare_flags}},
                                        {"unshare-user", SYS_unshare, 12, AS_USER, {&unshare_flags}},
                                        {"personality", SYS_personality, 4, 0, {&personas}},
                                        {"pidfd_open", SYS_pidfd_open, 24, 0, {&TARGET, &pidfd_flags}},
                                        {"pidfd_send_signal", SYS_pidfd_send_signal, 40, 0, {&FD, &SIGNAL, &none, &pidfd_flags}},
                                        {"futex", SYS_futex, 90, 0, {&OUT, &futex_operations, &futex_values, &BRIEF, &OUT, &futex_values}},
                                        {"set_robust_list", SYS_set_robust_list, 16, 0, {&OUT, &robust_sizes}},
                                        {"get_robust_list", SYS_get_robust_list, 40, 0, {&TARGET, &OUT, &OUT}},
                                        {"execve", SYS_execve, 45, 0, {&PATH, &IN, &IN}},
                                        {"execveat", SYS_execveat, 45, 0, {&AT, &PATH, &none, &none, &prctl_values}},
                                        {0}};
    generate(calls);
}

static void signal_calls(void) {
    static const struct call calls[] = {{"rt_sigaction", SYS_rt_sigaction, 60, 0, {&SIGNAL, &none, &OUT, &SIGSIZE}},
                                        {"rt_sigaction-set", SYS_rt_sigaction, 30, 0, {&SIGNAL, &IN, &none, &SIGSIZE}},
                                        {"rt_sigprocmask", SYS_rt_sigprocmask, 60, 0, {&mask_how, &SIGSET, &OUT, &SIGSIZE}},
                                        {"rt_sigpending", SYS_rt_sigpending, 32, 0, {&OUT, &SIGSIZE}},
                                        {"rt_sigtimedwait", SYS_rt_sigtimedwait, 50, 0, {&SIGSET, &OUT, &BRIEF, &SIGSIZE}},
                                        {"sigaltstack", SYS_sigaltstack, 40, 0, {&IN, &OUT}},
                                        {0}};
    generate(calls);
}

static void identity_calls(void) {
    static const struct call calls[] = {{"setuid", SYS_setuid, 8, 0, {&USER}},
                                        {"setuid-user", SYS_setuid, 8, AS_USER, {&USER}},
                                        {"setgid", SYS_setgid, 8, 0, {&USER}},
                                        {"setgid-user", SYS_setgid, 8, AS_USER, {&USER}},
                                        {"setreuid", SYS_setreuid, 25, 0, {&USER, &USER}},
                                        {"setreuid-user", SYS_setreuid, 25, AS_USER, {&USER, &USER}},
                                        {"setregid", SYS_setregid, 25, 0, {&USER, &USER}},
                                        {"setregid-user", SYS_setregid, 25, AS_USER, {&USER, &USER}},
                                        {"setresuid", SYS_setresuid, 125, 0, {&USER, &USER, &USER}},
                                        {"setresuid-user", SYS_setresuid, 125, AS_USER, {&USER, &USER, &USER}},
                                        {"setresgid", SYS_setresgid, 60, 0, {&USER, &USER, &USER}},
                                        {"setresgid-user", SYS_setresgid, 60, AS_USER, {&USER, &USER, &USER}},
                                        {"setfsuid", SYS_setfsuid, 8, BY_VALUE, {&USER}},
                                        {"setfsuid-user", SYS_setfsuid, 8, BY_VALUE | AS_USER, {&USER}},
                                        {"setfsgid", SYS_setfsgid, 8, BY_VALUE, {&USER}},
                                        {"getresuid", SYS_getresuid, 30, 0, {&OUT, &OUT, &OUT}},
                                        {"getgroups", SYS_getgroups, 40, 0, {&SMALL, &OUT}},
                                        {"setgroups", SYS_setgroups, 40, 0, {&SMALL, &IN}},
                                        {"setgroups-user", SYS_setgroups, 20, AS_USER, {&SMALL, &IN}},
                                        {"capget", SYS_capget, 40, 0, {&OUT, &OUT}},
                                        {"capset", SYS_capset, 40, 0, {&OUT, &IN}},
                                        {0}};
    generate(calls);
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"gen-memory", memory_calls}, {"gen-process", process_calls}, {"gen-signal", signal_calls},
                                           {"gen-identity", identity_calls}, {0}};
    return run(argc, argv, groups);
}
