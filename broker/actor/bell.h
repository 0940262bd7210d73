/* How a thread without an event loop sleeps until it is called or a time has passed: an eventfd.
 *
 * bell_ring() is the wake of a ring_waker; a ring before the wait is not lost. Owner: the sleeping thread; bell_ring from any. */
#ifndef TIDEGATE_BROKER_ACTOR_BELL_H
#define TIDEGATE_BROKER_ACTOR_BELL_H

#include <stdint.h>

#include "common/err.h"

struct bell {
    int fd;
};

enum err bell_init(struct bell *bell) must_check;
void bell_deinit(struct bell *bell);
/* Thread: any. arg is the bell: fits exchange_set_wake(). */
void bell_ring(void *bell);
/* Wait until rung, at most timeout_ns (INT64_MAX: for ever; 0: only clear it). */
void bell_wait(struct bell *bell, int64_t timeout_ns);

#endif
