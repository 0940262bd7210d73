/* Which commit of a damaged checkpoint a repair copies, and what of it can be read.
 *
 * The file holds the newest commit and the one before (kv_snapshot.h). Only a commit whose position can be read is of use: what came after
 * it is replayed from the log. The newest one is taken, unless more of the older one is whole and the log still continues it. A commit that
 * neither meta page leads to is looked for when they lead nowhere. Thread: main. */
#ifndef TIDEGATE_BROKER_OPS_CHECKPOINT_SOURCE_H
#define TIDEGATE_BROKER_OPS_CHECKPOINT_SOURCE_H

#include "broker/durable/kv_snapshot.h"
#include "broker/ops/checkpoint_look.h"

#define CHECKPOINT_SOURCE_TEXT 256

struct checkpoint_source {
    struct kv_snapshot_source way;
    struct kv *kv;                     /* open to read */
    struct checkpoint_look *look;      /* at it; err 0 */
    char text[CHECKPOINT_SOURCE_TEXT]; /* "commit 7 (meta page 1) ...", for people */
};

/* source_out: returned, closed with checkpoint_source_close(). log_generation: of the oldest segment that is there; UINT64_MAX: none.
 * Returns 0, ERR_NOTFOUND (no commit can be read), ERR_NOMEM, ERR_IO. */
enum err checkpoint_source_open(struct checkpoint_source **source_out, const char *dir, uint64_t log_generation,
                                struct errmsg *msg) must_check;
void checkpoint_source_close(struct checkpoint_source *source); /* NULL is fine */

/* Values that cannot be read; where nobody knows how many there were, also pages. */
uint64_t checkpoint_source_lost(const struct checkpoint_source *source);

#endif
