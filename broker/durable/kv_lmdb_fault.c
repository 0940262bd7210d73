#include "broker/durable/kv_lmdb_fault.h"

#include "common/check.h"
#include "common/file.h"
#include "common/logger.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The one map that is watched. The handler runs in the thread that touched it, on what was written before. */
static struct {
    uintptr_t begin, end; /* 0: none */
    struct sigaction before[2];
    char line[FILE_PATH_MAX + 256];
    size_t offset_at; /* in `line`: sixteen digits */
} watched;
static const int fault_signals[2] = {SIGBUS, SIGSEGV};

static void on_fault(int number, siginfo_t *info, void *context)
{
    uintptr_t at = (uintptr_t)info->si_addr;
    (void)context;
    if (at < watched.begin || at >= watched.end) { /* not ours: once more, for whoever had it before */
        (void)sigaction(number, &watched.before[number == SIGSEGV], NULL);
        return;
    }
    uintptr_t offset = at - watched.begin;
    for (size_t i = 16; i-- > 0; offset >>= 4)
        watched.line[watched.offset_at + i] = "0123456789abcdef"[offset & 15];
    size_t size = strlen(watched.line);
    (void)!write(logger_fd(), watched.line, size);
    _exit(EXIT_FAILURE);
}

void kv_lmdb_fault_catch(const char *path, uintptr_t begin, uintptr_t end)
{
    static const char zeros[] = "0000000000000000";
    CHECK(watched.begin == 0 && begin != 0 && begin < end);
    int head = snprintf(watched.line, sizeof watched.line, "ERROR %s: offset 0x", path);
    watched.offset_at = (size_t)head;
    (void)snprintf(watched.line + head, sizeof watched.line - (size_t)head,
                   "%s cannot be read: it was cut, the disk has failed, or a page is damaged; the broker ends. What was acknowledged is in "
                   "the log and here; see `tidegate-broker repair`\n",
                   zeros);
    watched.begin = begin;
    watched.end = end;
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    for (size_t i = 0; i < 2; i++)
        (void)sigaction(fault_signals[i], &action, &watched.before[i]);
}

void kv_lmdb_fault_forget(uintptr_t begin)
{
    if (begin == 0 || watched.begin != begin)
        return;
    for (size_t i = 0; i < 2; i++)
        (void)sigaction(fault_signals[i], &watched.before[i], NULL);
    watched.begin = watched.end = 0;
}
