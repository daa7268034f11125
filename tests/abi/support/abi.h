/* What every program of tests/abi shares: printing checks, names of errors and signals, groups and children with a time limit.
 *
 * A program is a list of groups. Each group runs in a child of its own, in an empty folder of its own that is its current one, in a
 * session of its own, with default signals, umask 022, no descriptors but 0 to 2, and known limits. A check is one line,
 * "group.name: result", which is the same on every correct kernel: no addresses, no ids, no times. */
#ifndef ABI_H
#define ABI_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct checks {
    const char *name;
    void (*run)(void);
};

/* Runs all groups, or those named on the command line; call it as the last thing of main. */
int run(int argc, char **argv, const struct checks *groups);

/* Prints one check. */
void say(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Prints "ok" or the name of errno; gives the result back. */
long ok(const char *name, long result);
/* Prints the result or the name of errno; gives the result back. */
long val(const char *name, long result);
/* As ok, of a mapping. */
void *okp(const char *name, void *result);
/* As ok, of a function that returns an errno. */
int eno(const char *name, int error);
/* Prints yes or no. */
void yes(const char *name, bool fact);
/* Prints a status of wait. */
void status(const char *name, int wait_status);

const char *error_name(int error);
const char *signal_name(int signal);

/* CHILD("name") { ... } runs the block in a child and waits for it; prints a line only when the child ends unexpectedly. */
#define CHILD(name) for (bool in_child_ = child_begin(name); in_child_; child_end())
bool child_begin(const char *name);
void child_end(void) __attribute__((noreturn));
/* Waits for a child; kills it and returns -1 when it takes longer than that. */
int await(pid_t pid, int milliseconds);
/* Waits until a process (or thread) sleeps. */
void settle(pid_t pid);
void pause_ms(int milliseconds);
/* In a child: become the ordinary user 1000 for good. */
void as_user(void);

/* A thing that one process waits for and another lets happen. */
struct gate {
    int ends[2];
};
struct gate gate(void);
void gate_open(struct gate *gate);
void gate_pass(struct gate *gate);

/* Makes a file with that content. */
void make_file(const char *path, const char *content, mode_t mode);
/* A page, and an unmapped one behind it. */
char *page_before_hole(void);
/* A page of memory that children share. */
void *shared_page(void);
void remove_tree(const char *path);
#define PAGE 4096L
#endif
