/* Sockets: unix ones of all types with descriptors and credentials, and inet ones on the loopback. */
#include "abi.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct sockaddr_un at(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    return address;
}

static long bind_to(int fd, const char *path) {
    struct sockaddr_un address = at(path);
    return bind(fd, (struct sockaddr *)&address, sizeof address);
}

static long connect_to(int fd, const char *path) {
    struct sockaddr_un address = at(path);
    return connect(fd, (struct sockaddr *)&address, sizeof address);
}

static void stream_checks(void) {
    int l = socket(AF_UNIX, SOCK_STREAM, 0), c = socket(AF_UNIX, SOCK_STREAM, 0);
    char text[70000];
    ok("connect-absent", connect_to(c, "s"));
    ok("listen-unbound", listen(socket(AF_UNIX, SOCK_STREAM, 0), 1));
    ok("bind", bind_to(l, "s"));
    struct stat st;
    stat("s", &st);
    say("bind-mode", "%o", st.st_mode);
    ok("bind-again", bind_to(l, "t"));
    ok("bind-taken", bind_to(socket(AF_UNIX, SOCK_STREAM, 0), "s"));
    ok("connect-not-listening", connect_to(c, "s"));
    make_file("file", "x", 0600);
    ok("connect-file", connect_to(c, "file"));
    ok("accept-not-listening", accept(l, NULL, NULL));
    ok("listen", listen(l, 1));
    ok("connect", connect_to(c, "s"));
    ok("connect-again", connect_to(c, "s"));
    ok("connect-wrong-type", connect_to(socket(AF_UNIX, SOCK_DGRAM, 0), "s"));
    struct sockaddr_un address;
    socklen_t length = sizeof address;
    int a = accept4(l, (struct sockaddr *)&address, &length, SOCK_CLOEXEC | SOCK_NONBLOCK);
    say("accept-address", "len %d family %d fd %d fl %#x", length, address.sun_family, fcntl(a, F_GETFD), fcntl(a, F_GETFL));
    length = sizeof address, getsockname(l, (struct sockaddr *)&address, &length);
    say("sockname", "%d %s", length, address.sun_path);
    length = sizeof address, getpeername(c, (struct sockaddr *)&address, &length);
    say("peername", "%d %s", length, address.sun_path);
    length = 5, getpeername(c, (struct sockaddr *)&address, &length);
    val("peername-cut-length", length);
    val("send", send(c, "hello", 5, 0));
    val("peek", recv(a, text, 3, MSG_PEEK));
    val("recv", recv(a, text, 3, 0));
    val("recv-rest", recv(a, text, 10, 0));
    val("recv-empty", recv(a, text, 10, 0));
    val("recv-trunc-flag", (send(c, "abcdef", 6, 0), recv(a, text, 2, MSG_TRUNC)));
    val("recv-waitall", (send(c, "gh", 2, 0), recv(a, text, 6, MSG_WAITALL)));
    val("oob", send(c, "x", 1, MSG_OOB));
    recv(a, text, 10, 0);
    int queued = -1;
    send(c, "1234", 4, 0);
    ok("fionread", ioctl(a, FIONREAD, &queued));
    val("fionread-is", queued);
    val("sendto-connected", sendto(c, "x", 1, 0, (struct sockaddr *)&address, sizeof address));
    ok("shutdown-wr", shutdown(c, SHUT_WR));
    val("send-after-shutdown", send(c, "x", 1, MSG_NOSIGNAL));
    val("recv-before-eof", recv(a, text, 100, 0));
    val("recv-eof", recv(a, text, 100, 0));
    ok("shutdown-bad", shutdown(c, 5));
    ok("shutdown-unconnected", shutdown(socket(AF_UNIX, SOCK_STREAM, 0), SHUT_RD));
    val("other-way", send(a, "back", 4, 0));
    close(c);
    val("peer-closed-unread", recv(a, text, 10, 0));
    val("peer-closed-send", send(a, "x", 1, MSG_NOSIGNAL));
    ok("peername-closed", getpeername(a, (struct sockaddr *)&address, &length));
    int full[2] = {socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0)};
    ok("backlog-1", connect_to(full[0], "s"));
    ok("backlog-2", connect_to(full[1], "s"));
    ok("backlog-3", connect_to(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), "s"));
    close(l);
    ok("listener-closed-connect", connect_to(socket(AF_UNIX, SOCK_STREAM, 0), "s"));
    val("listener-closed-recv", recv(full[0], text, 1, 0));
    ok("unlink", unlink("s"));
    int abstract = socket(AF_UNIX, SOCK_STREAM, 0), other = socket(AF_UNIX, SOCK_STREAM, 0);
    address = (struct sockaddr_un){.sun_family = AF_UNIX, .sun_path = "\0abi-abstract"};
    ok("abstract-bind", bind(abstract, (struct sockaddr *)&address, 2 + 13));
    ok("abstract-taken", bind(other, (struct sockaddr *)&address, 2 + 13));
    ok("abstract-longer-free", bind(other, (struct sockaddr *)&address, 2 + 14));
    ok("abstract-listen", listen(abstract, 1));
    ok("abstract-connect", connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&address, 2 + 13));
    ok("abstract-connect-shorter", connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&address, 2 + 12));
    int automatic = socket(AF_UNIX, SOCK_DGRAM, 0);
    ok("autobind", bind(automatic, (struct sockaddr *)&address, 2));
    length = sizeof address, getsockname(automatic, (struct sockaddr *)&address, &length);
    say("autobind-name", "%d %d", length, address.sun_path[0]);
    ok("open-socket", open("file", O_RDONLY));
    CHILD("permission") {
        int p = socket(AF_UNIX, SOCK_STREAM, 0);
        bind_to(p, "private"), listen(p, 1), chmod("private", 0600);
        as_user();
        ok("connect-no-permission", connect_to(socket(AF_UNIX, SOCK_STREAM, 0), "private"));
        ok("bind-no-permission", bind_to(socket(AF_UNIX, SOCK_STREAM, 0), "mine"));
    }
}

static void datagram_checks(void) {
    for (int type = SOCK_DGRAM; type <= SOCK_SEQPACKET; type += SOCK_SEQPACKET - SOCK_DGRAM) {
        int s[2];
        char text[16], name[48];
        const char *kind = type == SOCK_DGRAM ? "dgram" : "seqpacket";
#define NAME(what) (snprintf(name, sizeof name, "%s-%s", kind, what), name)
        socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, s);
        send(s[0], "first", 5, 0), send(s[0], "second", 6, 0), send(s[0], "", 0, 0);
        val(NAME("short-read"), recv(s[1], text, 2, 0));
        val(NAME("trunc-length"), recv(s[1], text, 2, MSG_TRUNC));
        val(NAME("empty"), recv(s[1], text, 2, 0));
        val(NAME("none"), recv(s[1], text, 2, 0));
        send(s[0], "third", 5, 0);
        struct iovec v = {text, 2};
        struct msghdr message = {.msg_iov = &v, .msg_iovlen = 1};
        val(NAME("recvmsg"), recvmsg(s[1], &message, 0));
        say(NAME("recvmsg-flags"), "%#x", message.msg_flags);
        val(NAME("too-long"), send(s[0], calloc(1, 1 << 20), 1 << 20, 0));
        val(NAME("write-0"), write(s[0], "", 0));
        val(NAME("read-0"), read(s[1], text, 5));
        close(s[1]);
        val(NAME("peer-closed-send"), send(s[0], "x", 1, MSG_NOSIGNAL));
        val(NAME("peer-closed-recv"), recv(s[0], text, 1, 0));
    }
    int r = socket(AF_UNIX, SOCK_DGRAM, 0), w = socket(AF_UNIX, SOCK_DGRAM, 0);
    char text[32];
    bind_to(r, "r"), bind_to(w, "w");
    struct sockaddr_un to = at("r"), from;
    socklen_t length = sizeof from;
    val("sendto", sendto(w, "hi", 2, 0, (struct sockaddr *)&to, sizeof to));
    val("recvfrom", recvfrom(r, text, sizeof text, 0, (struct sockaddr *)&from, &length));
    say("recvfrom-who", "%d %s", length, from.sun_path);
    val("send-unconnected", send(w, "x", 1, 0));
    ok("connect", connect_to(w, "r"));
    val("send-connected", send(w, "x", 1, 0));
    ok("connect-r-to-w", connect_to(r, "w"));
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    ok("disconnect", connect(w, &none, sizeof none));
    val("send-disconnected", send(w, "x", 1, 0));
    ok("listen-dgram", listen(r, 1));
    ok("accept-dgram", accept(r, NULL, NULL));
    unlink("r"), to = at("r");
    val("sendto-unlinked", sendto(w, "x", 1, 0, (struct sockaddr *)&to, sizeof to));
    val("sendto-family", (to.sun_family = AF_INET, sendto(w, "x", 1, 0, (struct sockaddr *)&to, sizeof to)));
}

static void pass_checks(void) {
    int s[2], p[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, s), pipe(p);
    char byte = 'x', control[CMSG_SPACE(8 * sizeof(int))] = {0}, text[16] = "";
    struct iovec v = {&byte, 1};
    struct msghdr message = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(sizeof(int))};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
    memcpy(CMSG_DATA(c), &p[0], sizeof(int));
    val("rights-send", sendmsg(s[0], &message, 0));
    close(p[0]);
    write(p[1], "through", 7);
    memset(control, 0, sizeof control), message.msg_controllen = sizeof control;
    val("rights-recv", recvmsg(s[1], &message, MSG_CMSG_CLOEXEC));
    int got = *(int *)CMSG_DATA(CMSG_FIRSTHDR(&message));
    say("rights-got", "level %d type %d len %zu flags %#x cloexec %d", c->cmsg_level, c->cmsg_type, (size_t)c->cmsg_len, message.msg_flags & ~MSG_CMSG_CLOEXEC,
        fcntl(got, F_GETFD));
    val("rights-read", read(got, text, 15));
    int bad = 99;
    message.msg_controllen = CMSG_SPACE(sizeof(int));
    memcpy(CMSG_DATA(c), &bad, sizeof bad), c->cmsg_len = CMSG_LEN(sizeof(int));
    val("rights-bad-fd", sendmsg(s[0], &message, 0));
    c->cmsg_type = 77;
    val("control-type-bad", sendmsg(s[0], &message, 0));
    c->cmsg_type = SCM_RIGHTS, c->cmsg_len = 3;
    val("control-len-bad", sendmsg(s[0], &message, 0));
    c->cmsg_len = CMSG_LEN(sizeof(int)), memcpy(CMSG_DATA(c), &p[1], sizeof(int));
    sendmsg(s[0], &message, 0);
    message.msg_controllen = 0;
    val("rights-no-room", recvmsg(s[1], &message, 0));
    say("rights-no-room-flags", "%#x", message.msg_flags);
    int on = 1;
    ok("passcred", setsockopt(s[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on));
    write(s[0], "y", 1);
    memset(control, 0, sizeof control), message.msg_controllen = sizeof control;
    val("cred-recv", recvmsg(s[1], &message, 0));
    struct ucred *cred = (struct ucred *)CMSG_DATA(c);
    say("cred", "type %d pid %d uid %d gid %d", c->cmsg_type, cred->pid == getpid(), cred->uid, cred->gid);
    struct ucred claimed = {getpid(), 1234, 5678};
    *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_CREDENTIALS, .cmsg_len = CMSG_LEN(sizeof claimed)};
    memcpy(CMSG_DATA(c), &claimed, sizeof claimed), message.msg_controllen = CMSG_SPACE(sizeof claimed);
    val("cred-claim-root", sendmsg(s[0], &message, 0));
    message.msg_controllen = sizeof control, recvmsg(s[1], &message, 0);
    say("cred-claimed", "uid %d gid %d", cred->uid, cred->gid);
    CHILD("user") {
        as_user();
        *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_CREDENTIALS, .cmsg_len = CMSG_LEN(sizeof claimed)};
        memcpy(CMSG_DATA(c), &claimed, sizeof claimed), message.msg_controllen = CMSG_SPACE(sizeof claimed);
        val("cred-claim-user", sendmsg(s[0], &message, 0));
    }
    socklen_t length = sizeof claimed;
    ok("peercred", getsockopt(s[0], SOL_SOCKET, SO_PEERCRED, &claimed, &length));
    say("peercred-is", "%d %d %d", claimed.pid == getpid(), claimed.uid, claimed.gid);
    static const int options[] = {SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN, SO_ERROR, SO_REUSEADDR, SO_KEEPALIVE, SO_PASSCRED, SO_BROADCAST};
    for (unsigned i = 0; i < sizeof options / sizeof *options; i++) {
        int value = -1;
        char name[32];
        length = sizeof value;
        snprintf(name, sizeof name, "option-%d", options[i]);
        if (getsockopt(s[0], SOL_SOCKET, options[i], &value, &length)) ok(name, -1);
        else say(name, "%d length %d", value, length);
    }
    struct timeval limit = {0, 20000};
    ok("rcvtimeo", setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    val("rcvtimeo-recv", recv(s[0], text, 1, 0));
    limit.tv_usec = 2000000;
    ok("rcvtimeo-usec", setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit));
    ok("rcvtimeo-short", setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &limit, 4));
}

static struct sockaddr_in loopback(uint16_t port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static uint16_t port_of(int fd) {
    struct sockaddr_in address = {0};
    socklen_t length = sizeof address;
    getsockname(fd, (struct sockaddr *)&address, &length);
    return address.sin_port;
}

static void tcp_checks(void) {
    int l = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM, 0);
    char text[64];
    struct sockaddr_in address = loopback(0), name;
    ok("bind", bind(l, (struct sockaddr *)&address, sizeof address));
    yes("bind-port", port_of(l) != 0);
    ok("listen", listen(l, 5));
    address.sin_port = port_of(l);
    ok("bind-taken", bind(c, (struct sockaddr *)&address, sizeof address));
    ok("connect", connect(c, (struct sockaddr *)&address, sizeof address));
    ok("connect-again", connect(c, (struct sockaddr *)&address, sizeof address));
    socklen_t length = sizeof name;
    int a = accept(l, (struct sockaddr *)&name, &length);
    say("accept", "len %d family %d addr %x port-same %d", length, name.sin_family, ntohl(name.sin_addr.s_addr), name.sin_port == port_of(c));
    val("send", send(c, "hello", 5, 0));
    val("peek", recv(a, text, 10, MSG_PEEK));
    val("recv", recv(a, text, 10, 0));
    val("recv-dontwait", recv(a, text, 10, MSG_DONTWAIT));
    val("waitall", (send(c, "0123456789", 10, 0), recv(a, text, 10, MSG_WAITALL)));
    ok("shutdown-wr", shutdown(c, SHUT_WR));
    val("eof", recv(a, text, 10, 0));
    val("half-open", send(a, "back", 4, 0));
    val("half-open-recv", recv(c, text, 10, 0));
    val("after-shutdown", send(c, "x", 1, MSG_NOSIGNAL));
    struct pollfd one = {a, POLLIN | POLLOUT | POLLRDHUP, 0};
    poll(&one, 1, 0);
    say("poll-half", "%#x", one.revents);
    close(a);
    val("peer-closed", recv(c, text, 10, 0));
    close(c);
    c = socket(AF_INET, SOCK_STREAM, 0), connect(c, (struct sockaddr *)&address, sizeof address), a = accept(l, NULL, NULL);
    struct linger linger = {1, 0};
    ok("linger", setsockopt(c, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    close(c);
    one = (struct pollfd){a, POLLIN, 0}, poll(&one, 1, 20000);
    say("reset-poll", "%#x", one.revents);
    val("reset-recv", recv(a, text, 10, 0));
    val("reset-recv-again", recv(a, text, 10, 0));
    val("reset-send", send(a, "x", 1, MSG_NOSIGNAL));
    int n = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), error = -1;
    struct sockaddr_in closed = loopback(htons(9));
    ok("refused", connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&closed, sizeof closed));
    ok("nonblock", connect(n, (struct sockaddr *)&address, sizeof address));
    one = (struct pollfd){n, POLLOUT, 0}, poll(&one, 1, 20000);
    length = sizeof error, getsockopt(n, SOL_SOCKET, SO_ERROR, &error, &length);
    val("nonblock-error", error);
    ok("unspec-disconnect", connect(n, &(struct sockaddr){.sa_family = AF_UNSPEC}, sizeof(struct sockaddr)));
    ok("send-disconnected", send(n, "x", 1, MSG_NOSIGNAL));
    struct sockaddr_in foreign = loopback(0);
    foreign.sin_addr.s_addr = htonl(0xc0000201);
    ok("bind-foreign", bind(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&foreign, sizeof foreign));
    foreign.sin_port = htons(9);
    ok("no-route", connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&foreign, sizeof foreign));
    CHILD("user-port") {
        as_user();
        struct sockaddr_in low = loopback(htons(80));
        ok("user-bind-low", bind(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&low, sizeof low));
        ok("user-raw", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    }
    const int options[][2] = {{IPPROTO_TCP, TCP_NODELAY}, {IPPROTO_TCP, TCP_KEEPIDLE}, {IPPROTO_TCP, TCP_KEEPINTVL}, {IPPROTO_TCP, TCP_KEEPCNT},
                              {IPPROTO_TCP, TCP_USER_TIMEOUT}, {IPPROTO_TCP, TCP_CORK}, {IPPROTO_TCP, TCP_QUICKACK}, {IPPROTO_TCP, TCP_DEFER_ACCEPT},
                              {IPPROTO_IP, IP_TOS}, {IPPROTO_IP, IP_TTL}, {SOL_SOCKET, SO_REUSEADDR}, {SOL_SOCKET, SO_REUSEPORT}, {SOL_SOCKET, SO_KEEPALIVE},
                              {SOL_SOCKET, SO_OOBINLINE}, {SOL_SOCKET, SO_ACCEPTCONN}, {SOL_SOCKET, SO_PRIORITY}, {SOL_SOCKET, SO_RCVLOWAT}};
    for (unsigned i = 0; i < sizeof options / sizeof *options; i++) {
        int fresh = socket(AF_INET, SOCK_STREAM, 0), before = -1, after = -1, set = 3;
        char label[32];
        length = sizeof before, getsockopt(fresh, options[i][0], options[i][1], &before, &length);
        int result = setsockopt(fresh, options[i][0], options[i][1], &set, sizeof set), why = errno;
        length = sizeof after, getsockopt(fresh, options[i][0], options[i][1], &after, &length);
        snprintf(label, sizeof label, "option-%d-%d", options[i][0], options[i][1]);
        say(label, "%d %s %d", before, result ? error_name(why) : "ok", after);
        close(fresh);
    }
    int size = 10000, got = 0;
    setsockopt(n, SOL_SOCKET, SO_SNDBUF, &size, sizeof size), length = sizeof got, getsockopt(n, SOL_SOCKET, SO_SNDBUF, &got, &length);
    val("sndbuf-doubles", got);
    ok("send-family", socket(AF_INET, SOCK_SEQPACKET, 0));
}

static void udp_checks(void) {
    int a = socket(AF_INET, SOCK_DGRAM, 0), b = socket(AF_INET, SOCK_DGRAM, 0);
    char text[32];
    struct sockaddr_in address = loopback(0), from;
    socklen_t length = sizeof from;
    ok("bind", bind(a, (struct sockaddr *)&address, sizeof address));
    address.sin_port = port_of(a);
    val("sendto", sendto(b, "hello", 5, 0, (struct sockaddr *)&address, sizeof address));
    val("recvfrom", recvfrom(a, text, sizeof text, 0, (struct sockaddr *)&from, &length));
    say("from", "%d %x %d", length, ntohl(from.sin_addr.s_addr), from.sin_port == port_of(b));
    val("empty-send", sendto(b, "", 0, 0, (struct sockaddr *)&address, sizeof address));
    val("empty-recv", recv(a, text, 10, 0));
    val("send-unconnected", send(b, "x", 1, 0));
    ok("connect", connect(b, (struct sockaddr *)&address, sizeof address));
    val("send-cut", (send(b, "truncated", 9, 0), recv(a, text, 4, MSG_TRUNC)));
    val("too-long", send(b, calloc(1, 65508), 65508, 0));
    val("longest", send(b, calloc(1, 65507), 65507, 0));
    int queued = 0;
    ioctl(a, FIONREAD, &queued);
    val("fionread", queued);
    struct sockaddr_in closed = loopback(htons(9));
    int c = socket(AF_INET, SOCK_DGRAM, 0);
    connect(c, (struct sockaddr *)&closed, sizeof closed);
    val("closed-send", send(c, "x", 1, 0));
    struct pollfd one = {c, POLLIN, 0};
    poll(&one, 1, 20000);
    say("closed-poll", "%#x", one.revents);
    val("closed-recv", recv(c, text, 1, MSG_DONTWAIT));
    closed.sin_addr.s_addr = INADDR_BROADCAST;
    val("broadcast", sendto(a, "x", 1, 0, (struct sockaddr *)&closed, sizeof closed));
    val("port-0", sendto(a, "x", 1, 0, (struct sockaddr *)&(struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, 16));
    ok("listen", listen(a, 1));
    ok("shutdown-unconnected", shutdown(a, SHUT_RD));
    struct mmsghdr many[3] = {{{0}, 0}};
    struct iovec v[3] = {{text, 1}, {text, 2}, {text, 3}};
    for (int i = 0; i < 3; i++) many[i].msg_hdr.msg_iov = &v[i], many[i].msg_hdr.msg_iovlen = 1;
    val("sendmmsg", sendmmsg(b, many, 3, 0));
    say("sendmmsg-lengths", "%d %d %d", many[0].msg_len, many[1].msg_len, many[2].msg_len);
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"stream", stream_checks}, {"datagram", datagram_checks}, {"pass", pass_checks},
                                           {"tcp", tcp_checks}, {"udp", udp_checks}, {0}};
    return run(argc, argv, groups);
}
