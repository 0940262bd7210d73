/* Threads for what computes for milliseconds: TLS handshakes, later password hashes. One job at a time each, at low priority.
 *
 * A loop that did a handshake itself would stand still for 3 to 8 ms; a storm of returning devices would stand it still for seconds. So
 * loops submit jobs and go on. The queue is bounded: when it is full submit says so and the caller stops accepting. A job whose deadline
 * has passed while it waited is not computed (its client has given up), but comes back all the same, marked expired.
 *
 * A job is owned by the pool from a successful submit until its `done` was called, on a pool thread; `done` hands it back to its loop.
 * Thread: any, but new and free. */
#ifndef TIDEGATE_BROKER_GUARD_CPU_POOL_H
#define TIDEGATE_BROKER_GUARD_CPU_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/clock.h"
#include "common/err.h"
#include "common/histogram.h"
#include "common/metrics.h"

struct cpu_job {
    struct cpu_job *next;
    void (*run)(struct cpu_job *job);                /* computes */
    void (*done)(struct cpu_job *job, bool expired); /* expired: run was not called */
    mono_ns deadline_ns;
    mono_ns queued_ns; /* set by submit */
    uint32_t bytes;    /* what it counts for in the queue's bytes */
};

struct cpu_pool_config {
    const char *thread_name; /* at most 13 characters, a number is appended */
    unsigned thread_count;   /* 1..64 */
    unsigned queue_max;      /* jobs */
    int nice;                /* 0..19 */
};

/* All written under the pool's lock. */
struct cpu_pool_stats {
    struct queue_stats queue;
    struct counter done, expired, refused;
    struct histogram wait_ns, run_ns;
};

struct cpu_pool;

enum err cpu_pool_new(struct cpu_pool **pool_out, const struct cpu_pool_config *config) must_check;
/* What still waits comes back as expired; running jobs are waited for. NULL is fine. */
void cpu_pool_free(struct cpu_pool *pool);

/* False: the queue is full, the job is still the caller's. */
bool cpu_pool_try_submit(struct cpu_pool *pool, struct cpu_job *job);

const struct cpu_pool_stats *cpu_pool_get_stats(const struct cpu_pool *pool);

#endif
