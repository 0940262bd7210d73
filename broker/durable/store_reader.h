/* The store reader: finds in the checkpoint what homes and the route actor gave out of their memory.
 *
 * Asked by OP_STORE_READ with a block of positions, it answers the same block by OP_STORE_READ_DONE, filled. One read transaction serves
 * one request, and one request brings at most STORE_READ_BYTES of bodies (but at least one), so none lives long (LOG 16). Askers ask only
 * for positions below the checkpoint that the store has announced: a transaction begun later sees them, or they are gone for good.
 * Pure over kv.h; owner: the reader thread (or the simulator). */
#ifndef TIDEGATE_BROKER_DURABLE_STORE_READER_H
#define TIDEGATE_BROKER_DURABLE_STORE_READER_H

#include "broker/core/ops.h"
#include "broker/durable/kv.h"
#include "common/metrics.h"

#define STORE_READ_BYTES ((size_t)1 << 20)
#define STORE_READ_MAX 32 /* positions of one request */

enum store_read_kind {
    STORE_READ_QUEUE, /* the messages of these positions, as `session` wants them */
    STORE_READ_RUN,   /* the session's first run at or after `run` of which it still wants anything: those positions, and the messages as
                         far as STORE_READ_BYTES goes.
                         A damaged run has count 0 and `run` set: its messages cannot be found any more before the next start */
    STORE_READ_BODIES /* the messages alone: retained values */
};

enum store_item_state {
    STORE_ITEM_ASKED,   /* not looked at: STORE_READ_BYTES was used up, ask again */
    STORE_ITEM_FOUND,   /* msg is set, unless only the cost was asked for */
    STORE_ITEM_GONE,    /* nobody wants it any more, or it was never there */
    STORE_ITEM_CORRUPT, /* damaged: counted and reported with its key */
    /* Never an answer; set by the asker: */
    STORE_ITEM_KNOWN,         /* it has or had the message elsewhere */
    STORE_ITEM_OVER_MESSAGES, /* it has to go, */
    STORE_ITEM_OVER_BYTES,    /* by that bound of the session's queue */
};

struct store_read_item {
    uint64_t sequence;
    struct msg *msg; /* taken by who gets the answer; sequence and everything else set */
    uint32_t *ids;   /* subscription identifiers, own block (free), NULL when there are none */
    uint32_t id_count;
    uint8_t qos;     /* as the session wants it */
    uint8_t options; /* struct record_recipient */
    uint8_t state;   /* enum store_item_state */
    uint32_t cost;   /* msg_cost() of what is found; likewise of what is damaged, 0 where that is not known. Not of STORE_READ_BODIES */
};

/* Allocated and freed by the asker. */
struct store_read {
    uint64_t session; /* or the asker's own ticket for STORE_READ_BODIES */
    uint64_t ticket;  /* the asker's, untouched */
    uint64_t run;     /* STORE_READ_RUN: from here; out: where the run found begins, 0 = there is none */
    uint32_t count;   /* items; of STORE_READ_RUN out */
    uint8_t kind;     /* enum store_read_kind */
    bool costs_only;  /* no messages: the asker lets them go */
    struct store_read_item items[STORE_READ_MAX];
};

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

/* Drop an answer that nobody wants: messages, identifiers, block. NULL is fine. */
void store_read_free(struct store_read *read);

#endif
