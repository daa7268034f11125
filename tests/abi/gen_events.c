/* Generated checks of calls that wait, of clocks, sockets and System V IPC. */
#include "gen.h"

#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/socket.h>

KIND(none, {"NULL", 0});
KIND(zero, {"0", 0});
KIND(counts, {"1", 1}, {"0", 0}, {"-1", -1}, {"100000", 100000}, {"INT_MAX", INT_MAX});
KIND(flags, {"0", 0}, {"CLOEXEC", 0x80000}, {"NONBLOCK", 0x800}, {"1", 1}, {"2", 2}, {"-1", -1});
KIND(epoll_operations, {"ADD", 1}, {"DEL", 2}, {"MOD", 3}, {"0", 0}, {"4", 4}, {"-1", -1});
KIND(clocks, {"REALTIME", 0}, {"MONOTONIC", 1}, {"PROCESS_CPU", 2}, {"THREAD_CPU", 3}, {"RAW", 4}, {"REALTIME_COARSE", 5},
     {"MONOTONIC_COARSE", 6}, {"BOOTTIME", 7}, {"ALARM", 8}, {"10", 10}, {"99", 99}, {"-1", -1}, {"INT_MIN", INT_MIN});
KIND(time_flags, {"0", 0}, {"ABSTIME", 1}, {"2", 2}, {"3", 3}, {"4", 4});
KIND(timers, {"0", 0}, {"-1", -1}, {"99", 99});
KIND(itimers, {"REAL", 0}, {"VIRTUAL", 1}, {"PROF", 2}, {"3", 3}, {"-1", -1});
KIND(random_flags, {"0", 0}, {"NONBLOCK", 1}, {"RANDOM", 2}, {"INSECURE", 4}, {"6", 6}, {"8", 8});
/* No sleep for ever. */
static long brief_make(int number) {
    static struct timespec values[4] = {{0, 1000}, {0, 1000000000}, {-1, 0}, {0, -1}};
    return number == 4 ? 8 : number == 5 ? 0 : (long)&values[number];
}
static const struct value brief_names[] = {{"1us", 0}, {"nsec-1e9", 0}, {"sec-1", 0}, {"nsec-1", 0}, {"8", 0}, {"NULL", 0}};
static const struct kind SLEEP = {brief_names, 6, brief_make}, BRIEF = {brief_names, 5, brief_make};

/* A timeval: microseconds. */
static long brief_us_make(int number) {
    static struct timeval values[3] = {{0, 1000}, {-1, 0}, {0, -1}};
    return number == 3 ? 8 : (long)&values[number];
}
static const struct value brief_us_names[] = {{"1ms", 0}, {"sec-1", 0}, {"usec-1", 0}, {"8", 0}};
static const struct kind BRIEF_US = {brief_us_names, 4, brief_us_make};
/* Clocks that go on while a process sleeps. */
KIND(sleep_clocks, {"REALTIME", 0}, {"MONOTONIC", 1}, {"THREAD_CPU", 3}, {"RAW", 4}, {"REALTIME_COARSE", 5}, {"BOOTTIME", 7}, {"10", 10},
     {"99", 99}, {"-1", -1});

static void event_calls(void) {
    static const struct call calls[] = {{"poll", SYS_poll, 30, 0, {&OUT, &counts, &zero}},
                                        {"ppoll", SYS_ppoll, 40, 0, {&OUT, &counts, &BRIEF, &SIGSET, &SIGSIZE}},
                                        {"select", SYS_select, 40, 0, {&counts, &OUT, &OUT, &OUT, &BRIEF_US}},
                                        {"pselect6", SYS_pselect6, 40, 0, {&counts, &OUT, &OUT, &OUT, &BRIEF, &none}},
                                        {"epoll_create", SYS_epoll_create, 5, 0, {&counts}},
                                        {"epoll_create1", SYS_epoll_create1, 6, 0, {&flags}},
                                        {"epoll_ctl", SYS_epoll_ctl, 90, 0, {&FD, &epoll_operations, &FD, &IN}},
                                        {"epoll_wait", SYS_epoll_wait, 45, 0, {&FD, &OUT, &counts, &zero}},
                                        {"epoll_pwait2", SYS_epoll_pwait2, 45, 0, {&FD, &OUT, &counts, &BRIEF, &SIGSET, &SIGSIZE}},
                                        {"eventfd2", SYS_eventfd2, 30, 0, {&counts, &flags}},
                                        {"timerfd_create", SYS_timerfd_create, 50, 0, {&clocks, &flags}},
                                        {"timerfd_settime", SYS_timerfd_settime, 50, 0, {&FD, &time_flags, &ITIME, &OUT}},
                                        {"timerfd_gettime", SYS_timerfd_gettime, 30, 0, {&FD, &OUT}},
                                        {"signalfd4", SYS_signalfd4, 60, 0, {&FD, &SIGSET, &SIGSIZE, &flags}},
                                        {"inotify_init1", SYS_inotify_init1, 6, 0, {&flags}},
                                        {"inotify_rm_watch", SYS_inotify_rm_watch, 30, 0, {&FD, &counts}},
                                        {"pipe2", SYS_pipe2, 40, 0, {&OUT, &flags}},
                                        {0}};
    generate(calls);
}

static void clock_calls(void) {
    static const struct call calls[] = {{"clock_gettime", SYS_clock_gettime, 60, 0, {&clocks, &OUT}},
                                        {"clock_getres", SYS_clock_getres, 60, 0, {&clocks, &OUT}},
                                        {"clock_nanosleep", SYS_clock_nanosleep, 90, 0, {&sleep_clocks, &time_flags, &SLEEP, &OUT}},
                                        {"nanosleep", SYS_nanosleep, 40, 0, {&SLEEP, &OUT}},
                                        {"gettimeofday", SYS_gettimeofday, 60, 0, {&OUT, &OUT}},
                                        {"time", SYS_time, 8, 0, {&OUT}},
                                        {"times", SYS_times, 8, 0, {&OUT}},
                                        {"timer_create", SYS_timer_create, 70, 0, {&clocks, &none, &OUT}},
                                        {"timer_settime", SYS_timer_settime, 30, 0, {&timers, &time_flags, &ITIME, &OUT}},
                                        {"timer_gettime", SYS_timer_gettime, 16, 0, {&timers, &OUT}},
                                        {"timer_delete", SYS_timer_delete, 3, 0, {&timers}},
                                        {"timer_getoverrun", SYS_timer_getoverrun, 3, 0, {&timers}},
                                        {"getitimer", SYS_getitimer, 40, 0, {&itimers, &OUT}},
                                        {"setitimer", SYS_setitimer, 45, 0, {&itimers, &ITIME, &OUT}},
                                        {"alarm", SYS_alarm, 5, BY_VALUE, {&counts}},
                                        {"getrandom", SYS_getrandom, 40, 0, {&OUT, &counts, &random_flags}},
                                        {"uname", SYS_uname, 8, 0, {&OUT}},
                                        {"sysinfo", SYS_sysinfo, 8, 0, {&OUT}},
                                        {"getcpu", SYS_getcpu, 40, 0, {&OUT, &OUT, &none}},
                                        {0}};
    generate(calls);
}

KIND(domains, {"UNIX", AF_UNIX}, {"INET", AF_INET}, {"INET6", AF_INET6}, {"UNSPEC", 0}, {"99", 99}, {"-1", -1});
KIND(types, {"STREAM", SOCK_STREAM}, {"DGRAM", SOCK_DGRAM}, {"SEQPACKET", SOCK_SEQPACKET}, {"STREAM|NONBLOCK", 0x801}, {"STREAM|CLOEXEC", 0x80001},
     {"0", 0}, {"15", 15}, {"-1", -1}, {"0x101", 0x101});
KIND(protocols, {"0", 0}, {"TCP", 6}, {"UDP", 17}, {"1", 1}, {"255", 255}, {"-1", -1});
/* Sockets of each sort, and what is none. */
static long socket_make(int number) {
    int pair[2];
    switch (number) {
    case 0: return socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), pair[0];
    case 1: return socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    case 2: return socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    case 3: return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair), pair[0];
    case 4: return socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    case 5: return socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    case 6: pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0); return listen(pair[0], 1), pair[0];
    case 7: return socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
    case 8: return -1;
    case 9: return open("file", O_RDWR);
    default: return 200;
    }
}
static const struct value socket_names[] = {{"pair", 0}, {"unix-stream", 0}, {"unix-dgram", 0}, {"seqpacket", 0}, {"tcp", 0}, {"udp", 0},
                                            {"tcp-listening", 0}, {"tcp6", 0}, {"-1", 0}, {"file", 0}, {"closed", 0}};
static const struct kind SOCKET = {socket_names, 11, socket_make};
KIND(address_lengths, {"16", 16}, {"0", 0}, {"2", 2}, {"1", 1}, {"28", 28}, {"110", 110}, {"200", 200}, {"-1", -1});
KIND(message_flags, {"NOSIGNAL", 0x4000}, {"DONTWAIT", 0x4040}, {"OOB", 0x4001}, {"PEEK", 0x4002}, {"TRUNC", 0x4020});
KIND(shut_how, {"RD", 0}, {"WR", 1}, {"RDWR", 2}, {"3", 3}, {"-1", -1});
KIND(levels, {"SOCKET", 1}, {"IP", 0}, {"TCP", 6}, {"IPV6", 41}, {"99", 99}, {"-1", -1});
KIND(options, {"1", 1}, {"2", 2}, {"3", 3}, {"4", 4}, {"6", 6}, {"7", 7}, {"9", 9}, {"10", 10}, {"13", 13}, {"16", 16}, {"17", 17}, {"30", 30},
     {"38", 38}, {"999", 999}, {"-1", -1});
KIND(option_lengths, {"4", 4}, {"0", 0}, {"1", 1}, {"8", 8}, {"16", 16}, {"-1", -1});

static void socket_calls(void) {
    static const struct call calls[] = {{"socket", SYS_socket, 110, 0, {&domains, &types, &protocols}},
                                        {"socketpair", SYS_socketpair, 70, 0, {&domains, &types, &protocols, &OUT}},
                                        {"bind", SYS_bind, 80, 0, {&SOCKET, &ADDRESS, &address_lengths}},
                                        {"connect", SYS_connect, 80, 0, {&SOCKET, &ADDRESS, &address_lengths}},
                                        {"listen", SYS_listen, 40, 0, {&SOCKET, &counts}},
                                        {"accept4", SYS_accept4, 60, 0, {&SOCKET, &OUT, &LENGTH_AT, &flags}},
                                        {"getsockname", SYS_getsockname, 50, 0, {&SOCKET, &OUT, &LENGTH_AT}},
                                        {"getpeername", SYS_getpeername, 50, 0, {&SOCKET, &OUT, &LENGTH_AT}},
                                        {"sendto", SYS_sendto, 80, BY_VALUE, {&SOCKET, &IN, &LENGTH, &message_flags, &ADDRESS, &address_lengths}},
                                        {"recvfrom", SYS_recvfrom, 60, BY_VALUE, {&SOCKET, &OUT, &LENGTH, &message_flags, &none, &none}},
                                        {"sendmsg", SYS_sendmsg, 50, BY_VALUE, {&SOCKET, &IN, &message_flags}},
                                        {"recvmsg", SYS_recvmsg, 50, BY_VALUE, {&SOCKET, &OUT, &message_flags}},
                                        {"sendmmsg", SYS_sendmmsg, 45, BY_VALUE, {&SOCKET, &OUT, &counts, &message_flags}},
                                        {"recvmmsg", SYS_recvmmsg, 45, BY_VALUE, {&SOCKET, &OUT, &counts, &message_flags, &BRIEF}},
                                        {"shutdown", SYS_shutdown, 55, 0, {&SOCKET, &shut_how}},
                                        {"getsockopt", SYS_getsockopt, 110, 0, {&SOCKET, &levels, &options, &OUT, &LENGTH_AT}},
                                        {"setsockopt", SYS_setsockopt, 110, 0, {&SOCKET, &levels, &options, &IN, &option_lengths}},
                                        {0}};
    generate(calls);
}

KIND(keys, {"PRIVATE", IPC_PRIVATE}, {"0x77", 0x77}, {"-1", -1});
KIND(ipc_flags, {"CREAT|0600", IPC_CREAT | 0600}, {"0", 0}, {"CREAT|EXCL|0600", IPC_CREAT | IPC_EXCL | 0600}, {"EXCL", IPC_EXCL});
KIND(ids, {"absent", 0x7ffffff0}, {"-1", -1}, {"INT_MIN", INT_MIN});
KIND(commands, {"IPC_STAT", IPC_STAT}, {"IPC_RMID", IPC_RMID}, {"IPC_SET", IPC_SET}, {"GETVAL", 12}, {"99", 99}, {"-1", -1});
KIND(mq_flags, {"CREAT|RDWR", O_CREAT | O_RDWR}, {"RDONLY", O_RDONLY}, {"CREAT|EXCL", O_CREAT | O_EXCL}, {"3", 3});
KIND(mq_lengths, {"16", 16}, {"0", 0}, {"8192", 8192}, {"-1", -1});
KIND(mq_priorities, {"0", 0}, {"32767", 32767}, {"32768", 32768}, {"-1", -1});

static void ipc_calls(void) {
    static const struct call calls[] = {{"shmget", SYS_shmget, 40, 0, {&keys, &LENGTH, &ipc_flags}},
                                        {"shmat", SYS_shmat, 20, 0, {&ids, &none, &counts}},
                                        {"shmdt", SYS_shmdt, 8, 0, {&PAGES}},
                                        {"shmctl", SYS_shmctl, 20, 0, {&ids, &commands, &none}},
                                        {"semget", SYS_semget, 40, 0, {&keys, &SMALL, &ipc_flags}},
                                        {"semop", SYS_semop, 40, 0, {&ids, &IN, &counts}},
                                        {"semctl", SYS_semctl, 30, 0, {&ids, &counts, &commands, &none}},
                                        {"msgget", SYS_msgget, 12, 0, {&keys, &ipc_flags}},
                                        {"msgsnd", SYS_msgsnd, 40, 0, {&ids, &IN, &LENGTH, &zero}},
                                        {"msgrcv", SYS_msgrcv, 40, 0, {&ids, &OUT, &LENGTH, &counts, &zero}},
                                        {"msgctl", SYS_msgctl, 20, 0, {&ids, &commands, &none}},
                                        {"mq_open", SYS_mq_open, 60, 0, {&NEWPATH, &mq_flags, &MODE, &none}},
                                        {"mq_unlink", SYS_mq_unlink, 20, 0, {&PATH}},
                                        {"mq_timedsend", SYS_mq_timedsend, 45, 0, {&FD, &IN, &mq_lengths, &mq_priorities, &BRIEF}},
                                        {"mq_timedreceive", SYS_mq_timedreceive, 45, 0, {&FD, &OUT, &mq_lengths, &OUT, &BRIEF}},
                                        {"mq_notify", SYS_mq_notify, 24, 0, {&FD, &none}},
                                        {"mq_getsetattr", SYS_mq_getsetattr, 40, 0, {&FD, &IN, &OUT}},
                                        {0}};
    generate(calls);
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"gen-event", event_calls}, {"gen-clock", clock_calls}, {"gen-socket", socket_calls},
                                           {"gen-ipc", ipc_calls}, {0}};
    return run(argc, argv, groups);
}
