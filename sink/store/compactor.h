/* The compactor's decisions and its merge: which neighbouring segments of a partition become one, and making that one.
 *
 * Tiered: segments of one time window at the same level, neighbours by flush number, are merged into one of the next level when enough of
 * them have gathered. With levels 0 (flush), 1, 2 and 3, each point is written at most 4 times (write amplification <= 4): nothing is ever
 * merged beyond COMPACTOR_LEVEL_MAX. Level 1 aims at chunks of 1024 rows, levels 2 and 3 at 4096. Only neighbours are merged, so the
 * segment with the greater flush numbers is always the later writer and wins.
 *
 * A window that is closed (the owner says so: no more flushes are expected for it) is finished by one last merge of all its segments that
 * are below the highest level. The manifest, deletion of inputs and the schedule are the owner's. Thread: any; compactor_merge blocks. */
#ifndef TIDEGATE_SINK_STORE_COMPACTOR_H
#define TIDEGATE_SINK_STORE_COMPACTOR_H

#include "common/err.h"
#include "sink/store/segment.h"

#define COMPACTOR_LEVEL_MAX 3

struct compactor_options {
    size_t fan_in[COMPACTOR_LEVEL_MAX]; /* segments of level n that make one of level n + 1; 2.. ; 0: the default (16) */
    uint64_t output_size_max;           /* no merge whose inputs sum to more bytes; 0: no bound */
};

/* What the plan looks at of one segment. */
struct compactor_input {
    uint64_t flush_first, flush_last;
    uint32_t level;
    int64_t window_ns;
    bool window_closed;
    uint64_t size; /* bytes */
};

struct compactor_plan {
    size_t count;   /* 0: nothing to do */
    size_t first;   /* inputs[first .. first + count) of the same window, as ordered by the plan */
    uint32_t level; /* of the output */
};

/* The next merge worth doing. inputs: reordered by (window, flush number); then the plan names a run of it. The run that is cheapest
 * (fewest bytes, lowest level) comes first. Call again after it is done. Segments that are being merged already must be left out by their
 * window. Pure. */
struct compactor_plan compactor_plan(struct compactor_input *inputs, size_t count, const struct compactor_options *options);

/* Rows of a chunk at this level. */
size_t compactor_rows_of_level(uint32_t level);

/* Merge `count` open segments (any order; ranks come from their flush numbers) into directory/name.
 * level     of the new segment, 1..COMPACTOR_LEVEL_MAX: the plan's.
 * info_out  of the new segment, may be NULL; flush range, partition, window and sources follow from the inputs.
 * A corrupt chunk in an input ends the merge with ERR_CORRUPT: compaction must not make a loss permanent.
 * Returns 0, ERR_INVALID (not the same partition or window, or flush ranges that overlap), ERR_CORRUPT, ERR_IO, ERR_NOSPACE, ERR_NOMEM. */
must_check enum err compactor_merge(struct segment *const *inputs, size_t count, struct fs *fs, const char *directory, const char *name,
                                    uint32_t level, struct segment_info *info_out, struct errmsg *msg);

#endif
