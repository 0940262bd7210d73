/* Who writes this log: a random broker id made with the data directory, and the epoch, which is counted up at each start.
 *
 * The epoch is synced before any record is written under it, so no two starts ever share one; (broker id, epoch, sequence) names a record
 * for ever. File `identity`, two slots. Owner: the broker's start. Thread: main. */
#ifndef TIDEGATE_COMMON_LOG_IDENTITY_H
#define TIDEGATE_COMMON_LOG_IDENTITY_H

#include "common/file.h"

struct log_identity {
    uint64_t broker_id; /* never 0 */
    uint32_t epoch;     /* the one of this start; 0 before the first */
    uint64_t start;     /* random per start: tells two starts of a cloned volume apart */
};

/* Read the identity of a log directory without changing it.
 * Returns 0, ERR_NOTFOUND (no file: a new directory), ERR_CORRUPT, ERR_VERSION, ERR_IO. */
must_check enum err log_identity_read(struct log_identity *identity_out, struct fs *fs, const char *dir);

/* Begin a start: make the identity when there is none (broker id random), count the epoch up beyond both the stored one and `epoch_seen`
 * (the greatest found in the log), draw a start number, write and sync. On success the epoch may be used.
 * create  false: ERR_CORRUPT when there is no identity (the log has segments, so the file was lost). */
must_check enum err log_identity_begin(struct log_identity *identity_out, struct fs *fs, const char *dir, uint32_t epoch_seen, bool create,
                                       struct errmsg *msg);

/* Write this very identity, whatever was there, synced: for a backup, a restore, a repair. Not while a broker runs here. */
must_check enum err log_identity_store(const struct log_identity *identity, struct fs *fs, const char *dir, struct errmsg *msg);

#endif
