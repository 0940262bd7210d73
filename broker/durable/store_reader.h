/* The store reader: finds in the checkpoint what homes and the route actor gave out of their memory.
 *
 * Asked by OP_STORE_READ with a block of positions, it answers the same block by OP_STORE_READ_DONE, filled. One read transaction serves
 * one request, and one request brings at most STORE_READ_BYTES of bodies (but at least one), so none lives long (LOG 16). Askers ask only
 * for positions below the checkpoint that the store has announced: a transaction begun later sees them, or they are gone for good.
 * Pure over kv.h; owner: the reader thread (or the simulator). */
#ifndef TIDEGATE_BROKER_DURABLE_STORE_READER_H
#define TIDEGATE_BROKER_DURABLE_STORE_READER_H

#include "broker/actor/ops.h"
#include "broker/actor/store_read.h"
#include "broker/durable/kv.h"
#include "common/metrics.h"

#define STORE_READ_BYTES ((size_t)1 << 20)
/* Cells: the reader. */
struct store_reader_stats {
    struct counter requests, messages, bytes, gone, corrupt;
    struct queue_stats waiting; /* requests taken and not answered */
};

struct store_reader_io {
    bool (*post)(void *io, actor_id to, const struct op *op); /* false: ring full, kept and tried again */
    /* A damaged value was met, borrowed key. May be NULL. Of KV_RECIPIENTS the key is (sequence, session asked for), not the chunk's own.
     */
    void (*on_corrupt)(void *io, enum kv_tree tree, struct span key);
};

struct store_reader;
struct store_reader *store_reader_new(struct kv *kv, const struct store_reader_io *io, void *io_arg);
void store_reader_free(struct store_reader *reader);
/* The present time (mono), for the age of what waits; before the ops of a step. */
void store_reader_set_time(struct store_reader *reader, int64_t now_mono_ns);
/* OP_STORE_READ: taken, done in store_reader_work(). */
void store_reader_on_op(struct store_reader *reader, const struct op *op);
/* Answers one request, and posts what found a full ring. Memory that is short, or a database that cannot be read now, leaves a request
 * waiting. Returns in how many ns it wants to be called again (0: more requests wait); INT64_MAX = only when ops arrive. */
int64_t store_reader_work(struct store_reader *reader);
struct store_reader_stats *store_reader_get_stats(struct store_reader *reader);

#endif
