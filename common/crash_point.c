#include "common/crash_point.h"

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* "NAME:COUNT"; a variable that is not understood must not look like a run that survived. */
static bool crash_point_is_told(const char *name, uint64_t count)
{
    const char *at = getenv("CRASH_POINT_AT");
    if (!at)
        return false;
    const char *colon = strrchr(at, ':');
    char *end = NULL;
    unsigned long long wanted = colon ? strtoull(colon + 1, &end, 10) : 0;
    if (wanted == 0 || *end != 0) {
        (void)fprintf(stderr, "CRASH_POINT_AT=%s: must be NAME:COUNT, COUNT at least 1\n", at);
        abort();
    }
    size_t size = (size_t)(colon - at);
    return strlen(name) == size && memcmp(name, at, size) == 0 && count == wanted;
}

void crash_point_pass(struct crash_point *point)
{
    uint64_t count = __atomic_add_fetch(&point->passed, 1, __ATOMIC_RELAXED);
    if ((count & (count - 1)) == 0 && getenv("CRASH_POINT_LIST"))
        (void)fprintf(stderr, "crash point %s %llu\n", point->name, (unsigned long long)count);
    if (!crash_point_is_told(point->name, count))
        return;
    (void)kill(getpid(), SIGKILL);
    for (;;)
        (void)pause();
}
