/* How long ago a message was received, by its sequence: a few moments at which everything below a sequence had been.
 *
 * Positions of queued messages are sequences alone, and a message's receive time is the wall clock's, which may be set. So the store thread
 * notes at each commit up to where the log was applied, with the broker's own time, and the checkpoint keeps these marks over restarts.
 * What is below a mark is at least as old as the mark, so nothing is ever taken for older than it is; it may be older by the distance of
 * two marks, AGE_MARKS_SHARE of the age asked for, and the time to a commit. Pure; owner: the checkpoint. */
#ifndef TIDEGATE_BROKER_DURABLE_AGE_MARKS_H
#define TIDEGATE_BROKER_DURABLE_AGE_MARKS_H

#include <stdint.h>

#include "common/bytes.h"
#include "common/err.h"

#define AGE_MARKS_MAX 64
#define AGE_MARKS_SHARE 32 /* marks within the age asked for */
#define AGE_MARKS_SIZE_MAX (16u * AGE_MARKS_MAX)

struct age_mark {
    uint64_t sequence; /* everything below it */
    int64_t steady_ns; /* had been received by then */
};

/* Zero-initialised is empty. Ascending by both. */
struct age_marks {
    struct age_mark marks[AGE_MARKS_MAX];
    uint32_t count;
};

/* Now everything below `sequence` has been received. Nothing is marked for a time to come: what is there of such is brought down to now. */
void age_marks_add(struct age_marks *marks, uint64_t sequence, int64_t now_steady_ns, int64_t age_max_ns);
/* Every sequence below the one returned was received by then; 0: of none that is known. Older marks are forgotten. */
uint64_t age_marks_reach(struct age_marks *marks, int64_t steady_ns);

/* Returns the bytes used. */
size_t age_marks_encode(uint8_t value_out[AGE_MARKS_SIZE_MAX], const struct age_marks *marks);
/* Returns 0 or ERR_CORRUPT. */
enum err age_marks_decode(struct age_marks *marks_out, struct span value) must_check;

#endif
