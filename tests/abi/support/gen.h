/* Generated checks: a table of system calls, and for each argument a kind, which is a list of values at the edges. */
#ifndef GEN_H
#define GEN_H
#include "abi.h"

/* One value of an argument: how it is written in the name of the check, and what it is. */
struct value {
    const char *name;
    long value;
};

/* What values an argument takes. A kind that has to be made in the child names its values and makes them by number. */
struct kind {
    const struct value *values;
    int count;
    long (*make)(int number);
};

enum { BY_VALUE = 1, AS_USER = 2 };

struct call {
    const char *name;
    long number;
    /* At most that many checks. */
    int limit;
    /* BY_VALUE: the result is printed, not only that it is none; AS_USER: as user 1000. */
    int how;
    const struct kind *arguments[6];
};

/* Runs every call of the table, which ends with an entry that has no name. */
void generate(const struct call *calls);

/* For switch-like lists: KIND(flags, {"0", 0}, {"X", X}). */
#define KIND(name, ...)                               \
    static const struct value name##_values[] = {__VA_ARGS__}; \
    static const struct kind name = {name##_values, sizeof name##_values / sizeof *name##_values, NULL}
#define V(constant) {#constant, (long)(constant)}

/* Descriptors: bad ones, and one of each sort. The folders of AT are there as AT_DIR. */
extern const struct kind FD, AT;
/* Names, good and bad; names of an extended attribute. */
extern const struct kind PATH, NEWPATH, XNAME;
/* Memory to be read, and to be written to; it holds zeros. */
extern const struct kind IN, OUT;
/* Lengths, small numbers, offsets. */
extern const struct kind LENGTH, SMALL, OFFSET;
/* One timespec (old or new), one timeval, one itimerspec. */
extern const struct kind TIME, ITIME;
/* A set of signals, and its size. */
extern const struct kind SIGSET, SIGSIZE;
/* Signals, processes, users. */
extern const struct kind SIGNAL, PID, USER;
/* Modes of files. */
extern const struct kind MODE;
/* iovecs, and how many. */
extern const struct kind IOV, IOVCOUNT;
/* Pages of memory: 16 of them are mapped. */
extern const struct kind PAGES;
/* Socket addresses to be read; where the length of one is kept. */
extern const struct kind ADDRESS, LENGTH_AT;
#endif
