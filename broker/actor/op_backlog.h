/* Ops that found a full ring: kept in order per receiver until there is room.
 *
 * Once one op to a receiver waits here, all later ones to it queue behind, so the order of a ring is kept. What may pile up is bounded by
 * its owner: a shard stops reading sockets, the route actor stops scanning, the store answers only what was asked. Pure. One owner. */
#ifndef TIDEGATE_BROKER_ACTOR_OP_BACKLOG_H
#define TIDEGATE_BROKER_ACTOR_OP_BACKLOG_H

#include <stdbool.h>
#include <stddef.h>

#include "broker/actor/ops.h"

struct op_lane {
    struct op *ops;
    size_t first, count, capacity;
};

struct op_backlog {
    struct op_lane lanes[ACTOR_COUNT];
    size_t count; /* over all lanes */
};

/* The ring of `to`: false when it is full and nothing was taken. */
typedef bool (*op_post_fn)(void *io, actor_id to, const struct op *op);

void op_backlog_init(struct op_backlog *backlog);
/* Give each waiting op, which its receiver can no longer take, to `drop` (NULL: there are none by construction), and free the memory. */
void op_backlog_deinit(struct op_backlog *backlog, void (*drop)(const struct op *op));

/* Post now if nothing to the same receiver waits and the ring has room, else keep it. */
void op_backlog_post(struct op_backlog *backlog, op_post_fn post, void *io, actor_id to, const struct op *op);
/* Post what waits as far as the rings take it. True when nothing waits any more. */
bool op_backlog_flush(struct op_backlog *backlog, op_post_fn post, void *io);
static inline bool op_backlog_waits(const struct op_backlog *backlog, actor_id to) { return backlog->lanes[to].count > 0; }

#endif
