/* Crash points: named places at which a test build can be told to die, as if the power switch of the process were there.
 *
 *     CRASH_POINT("log_written");
 *
 * In ordinary builds the macro is nothing. Built with -DTIDEGATE_CRASH_POINTS the process looks at two variables of its environment:
 *   CRASH_POINT_AT=NAME:COUNT   at the COUNT-th passing of NAME (1: the first) it kills itself with SIGKILL: no handler, no flush
 *   CRASH_POINT_LIST=1          each place says "crash point NAME COUNT" on standard error at passings 1, 2, 4, 8, ...
 * A name stands at one place of the source only (each place counts for itself). tests/crash has the campaign. Thread: any. */
#ifndef TIDEGATE_COMMON_CRASH_POINT_H
#define TIDEGATE_COMMON_CRASH_POINT_H

#include <stdint.h>

struct crash_point {
    const char *name;
    uint64_t passed; /* atomic */
};

void crash_point_pass(struct crash_point *point);

#ifdef TIDEGATE_CRASH_POINTS
#define CRASH_POINT(name_)                                                                                                                 \
    do {                                                                                                                                   \
        static struct crash_point crash_point_here = {(name_), 0};                                                                         \
        crash_point_pass(&crash_point_here);                                                                                               \
    } while (0)
#else
#define CRASH_POINT(name_) ((void)0)
#endif

#endif
