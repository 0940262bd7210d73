/* The store actor: keeps what of a session's queue is not resident at its home.
 *
 * In this stage the store is memory; the interface is the one that a durable store answers, asynchronously and over rings: a session's home
 * appends (OP_STORE_PUT), asks for the oldest n (OP_STORE_LOAD, answered by OP_STORE_LOADED) and forgets (OP_STORE_FORGET). Per session the
 * ops keep their order. Pure; owner: the store thread (or the simulator). */
#ifndef TIDEGATE_BROKER_CORE_STORE_ACTOR_H
#define TIDEGATE_BROKER_CORE_STORE_ACTOR_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/core/ops.h"

struct store_item {
    struct msg *msg; /* shared (ref) */
    uint32_t meta;
};

/* Answer to OP_STORE_LOAD, oldest first. One allocation. */
struct store_page {
    uint64_t session_number;
    uint32_t count;
    struct store_item items[];
};

struct store_io {
    bool (*post)(void *io, actor_id to, const struct op *op); /* false: ring full, kept and tried again in the next step */
};

struct store_actor;
struct store_stats; /* broker/core/store_stats.h: the queue triplet of stored messages */

struct store_actor *store_actor_new(const struct store_io *io, void *io_arg);
void store_actor_free(struct store_actor *actor);
struct store_stats *store_actor_stats(struct store_actor *actor);
/* The present time (mono), for the age of the queue in the statistics; before the ops of a step. */
void store_actor_set_time(struct store_actor *actor, int64_t now_mono_ns);
void store_actor_on_op(struct store_actor *actor, const struct op *op);
/* Postings that found a full ring. Returns in how many ns it wants to be called again at the latest; INT64_MAX = only when ops arrive. */
int64_t store_actor_work(struct store_actor *actor);

#endif
