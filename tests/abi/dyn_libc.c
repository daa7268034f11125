/* What a program linked to the shared C library does before main and by it: the dynamic loader, thread-local storage, name lookups. */
#include "abi.h"

#include <dlfcn.h>
#include <elf.h>
#include <ifaddrs.h>
#include <link.h>
#include <locale.h>
#include <netdb.h>
#include <pthread.h>
#include <pwd.h>
#include <spawn.h>
#include <sys/auxv.h>
#include <sys/ipc.h>
#include <sys/socket.h>

static _Thread_local int local = 5;
static int constructed;
__attribute__((constructor)) static void construct(void) { constructed = 1; }

static int count_object(struct dl_phdr_info *info, size_t size, void *seen) {
    (void)size;
    *(int *)seen += info->dlpi_phnum > 0;
    return 0;
}

static void *change_local(void *nothing) {
    (void)nothing;
    local++;
    return (void *)(long)local;
}

static void loader_checks(void) {
    int objects = 0;
    yes("constructed", constructed == 1);
    dl_iterate_phdr(count_object, &objects);
    yes("objects", objects >= 3);
    yes("base", getauxval(AT_BASE) != 0);
    void *self = dlopen(NULL, RTLD_NOW);
    yes("dlopen-self", self != NULL);
    yes("dlsym", dlsym(self, "getpid") != NULL);
    yes("dlopen-absent", dlopen("libabsent.so", RTLD_NOW) == NULL);
    pthread_t threads[3];
    void *results[3];
    for (int i = 0; i < 3; i++) pthread_create(&threads[i], NULL, change_local, NULL);
    for (int i = 0; i < 3; i++) pthread_join(threads[i], &results[i]);
    say("thread-local", "%d %ld %ld %ld", local, (long)results[0], (long)results[1], (long)results[2]);
    struct timespec now;
    yes("vdso-clock", clock_gettime(CLOCK_MONOTONIC, &now) == 0 && time(NULL) > 1600000000);
    Dl_info info;
    yes("dladdr", dladdr((void *)(uintptr_t)loader_checks, &info) != 0);
}

static void library_checks(void) {
    char text[64] = "";
    FILE *file = fopen("file", "w+");
    say("stdio", "%d %d", fprintf(file, "number %d\n", 42), fflush(file));
    rewind(file);
    fgets(text, sizeof text, file);
    say("fgets", "%s", text);
    fclose(file);
    say("popen", "%s", popen("true", "r") ? "ok" : error_name(errno));
    int s = system("exit 3");
    status("system-without-shell", s);
    pid_t child;
    char *arguments[] = {"dyn", "--exit", NULL};
    eno("spawn", posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, (char *[]){NULL}));
    waitpid(child, &s, 0);
    status("spawn-status", s);
    eno("spawn-absent", posix_spawn(&child, "/absent", NULL, NULL, arguments, (char *[]){NULL}));
    struct passwd *root = getpwuid(0);
    say("getpwuid", "%s", root ? root->pw_name : "none");
    say("setlocale", "%s", setlocale(LC_ALL, "C") ? "C" : "none");
    char name[] = "temporaryXXXXXX";
    ok("mkstemp", mkstemp(name));
    say("realpath", "%s", realpath("./../.", NULL) ? "ok" : error_name(errno));
    yes("sysconf", sysconf(_SC_NPROCESSORS_ONLN) >= 1 && sysconf(_SC_PAGESIZE) == 4096 && sysconf(_SC_CLK_TCK) == 100);
    say("open-max", "%ld", sysconf(_SC_OPEN_MAX));
    yes("phys-pages", sysconf(_SC_PHYS_PAGES) > 1000);
    struct ifaddrs *all = NULL;
    ok("getifaddrs", getifaddrs(&all));
    int loopbacks = 0;
    for (struct ifaddrs *at = all; at; at = at->ifa_next) loopbacks += at->ifa_addr && at->ifa_addr->sa_family == AF_INET && !strcmp(at->ifa_name, "lo");
    val("loopbacks", loopbacks);
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST}, *found = NULL;
    val("getaddrinfo-numeric", getaddrinfo("127.0.0.1", "80", &hints, &found));
    char *big = malloc(64 << 20);
    memset(big, 1, 64 << 20);
    big = realloc(big, 128 << 20);
    yes("malloc-realloc", big && big[(64 << 20) - 1] == 1);
    free(big);
    void *many[1000];
    for (int i = 0; i < 1000; i++) many[i] = malloc((size_t)i * 37 + 1);
    for (int i = 0; i < 1000; i += 2) free(many[i]);
    yes("malloc-many", many[999] != NULL);
    CHILD("abort") { abort(); }
    CHILD("stdio-after-fork") {
        printf("%s", "");
        fflush(stdout);
        exit(0);
    }
}

int main(int argc, char **argv) {
    static const struct checks groups[] = {{"loader", loader_checks}, {"library", library_checks}, {0}};
    if (argc == 2 && !strcmp(argv[1], "--exit")) return 12;
    return run(argc, argv, groups);
}
