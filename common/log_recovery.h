/* What the log holds after a stop: where it ends, and whether anything is wrong.
 *
 * Reads the segments in order from the oldest that anybody needs and stops at the first block that does not continue. That is a torn tail,
 * the normal trace of a crash, unless something proves that the log once was durable beyond: a later block's durable_before, the state
 * file, a cursor, a later segment's header, or the caller's checkpoint. Then it is corruption, and the place is reported. What is accepted
 * is synced before the function returns. Groups whose last block is missing at the end are void: they count for nothing.
 *
 * Changes nothing on disk. Thread: one; the directory must not be written meanwhile. */
#ifndef TIDEGATE_COMMON_LOG_RECOVERY_H
#define TIDEGATE_COMMON_LOG_RECOVERY_H

#include "common/file.h"
#include "common/log_block.h"

struct log_recovery_options {
    struct log_place checkpoint;     /* where the checkpoint would read again, generation 0: there is none */
    struct log_place checkpoint_end; /* what it has applied up to: the log once was durable up to there */
    struct log_place from;           /* read from this segment on; generation 0: from the oldest that a cursor or the state needs */
};

struct log_recovery {
    struct log_end end;             /* where the log ends; position.epoch is the last epoch that wrote, 0 when empty */
    struct log_position oldest;     /* first record that is still there; sequence equal to the end's when there is none */
    struct log_place oldest_place;  /* first block of the oldest segment, generation 0 when there is no segment */
    uint64_t broker_id;             /* of the last segment, 0 when empty */
    uint64_t last_generation;       /* of the last started segment, 0 when none */
    uint32_t epoch_max;             /* greatest epoch of any segment header */
    uint64_t segment_count;         /* read */
    uint64_t block_count;           /* accepted */
    uint64_t record_count;          /* accepted */
    uint64_t byte_count;            /* accepted */
    uint64_t torn_bytes;            /* from the end to the last trace of a block of the torn write, 0: a clean end */
    uint32_t void_group_count;      /* groups without their last block */
    bool corrupt;                   /* the function also returns ERR_CORRUPT */
    struct log_place corrupt_place; /* the first block that does not continue */
    struct log_place proof;         /* how far the log once was durable */
    char proof_by[96];              /* "state", "cursor.sink", "block 000...:4096", ... */
};

/* Scan the log in `dir`.
 * Returns 0 (also for an empty or new directory), ERR_CORRUPT (see recovery_out and msg: file and offset), ERR_VERSION, ERR_NOMEM, ERR_IO.
 */
must_check enum err log_recovery_run(struct log_recovery *recovery_out, struct fs *fs, const char *dir,
                                     const struct log_recovery_options *options, struct errmsg *msg);

#endif
