/* Admission: how many may come in, per listener and for the whole process. GCRA ("virtual scheduling") in one atomic word each.
 *
 * A bucket remembers the theoretical arrival time (TAT) of the next event if all came at exactly the rate. An event at `now` moves it to
 * max(TAT, now) + interval; it is on time when that lies at most burst * interval after now. One that is not on time may be *deferred*: it
 * takes its place in the schedule all the same and is told when its turn comes, so deferred events do not compete again and none starves.
 * One that would wait longer than it may is *rejected* and takes nothing.
 *
 * All shards share a bucket; the word is changed by compare-and-swap, so the sum admitted is exact whatever the number of threads. Pure:
 * time is an argument (mono ns). Thread: any, but init. */
#ifndef TIDEGATE_BROKER_GUARD_ADMISSION_H
#define TIDEGATE_BROKER_GUARD_ADMISSION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define ADMISSION_UNLIMITED 0

struct admission_bucket {
    _Atomic int64_t tat_ns;
    int64_t interval_ns;                           /* between two events at the rate; 0 = no limit */
    int64_t tolerance_ns;                          /* burst * interval */
    _Atomic uint64_t admitted, deferred, rejected; /* verdicts; what was given back stays counted */
};

enum admission_verdict { ADMISSION_ADMIT, ADMISSION_DEFER, ADMISSION_REJECT };

/* rate_per_s  events per second, ADMISSION_UNLIMITED for none, at most 10^9.
 * burst       events that may come at once after a quiet time, >= 1. */
void admission_init(struct admission_bucket *bucket, uint64_t rate_per_s, uint64_t burst);

static inline bool admission_is_limited(const struct admission_bucket *bucket) { return bucket->interval_ns != 0; }

/* Ask for one event.
 * until_out     ADMIT: now. DEFER: when it may go on (its place is taken). REJECT: when one would be on time again.
 * defer_max_ns  how long it may be made to wait; 0: never. */
enum admission_verdict admission_take(struct admission_bucket *bucket, int64_t *until_out, int64_t now_ns, int64_t defer_max_ns);

/* The same of two buckets at once (a listener's and the process's); the later time counts, and a rejection by one takes nothing from the
 * other. */
enum admission_verdict admission_take_both(struct admission_bucket *first, struct admission_bucket *second, int64_t *until_out,
                                           int64_t now_ns, int64_t defer_max_ns);

/* Return what was taken (the event did not happen). */
void admission_give_back(struct admission_bucket *bucket);

#endif
