#include "broker/actor/op_backlog.h"

#include <stdlib.h>

#include "common/check.h"

#define LANE_CAPACITY_FIRST 64  /* doubled when full; a power of two */
#define LANE_CAPACITY_KEEP 4096 /* more is given back when the lane is empty: a start may post a million */

void op_backlog_init(struct op_backlog *backlog) { *backlog = (struct op_backlog){0}; }

void op_backlog_deinit(struct op_backlog *backlog, void (*drop)(const struct op *op))
{
    for (size_t to = 0; to < ACTOR_COUNT; to++) {
        struct op_lane *lane = &backlog->lanes[to];
        CHECK(drop || lane->count == 0);
        for (; lane->count; lane->count--, lane->first++)
            drop(&lane->ops[lane->first & (lane->capacity - 1)]);
        free(lane->ops);
    }
    op_backlog_init(backlog);
}

static void lane_push(struct op_lane *lane, const struct op *op)
{
    if (lane->count == lane->capacity) {
        size_t capacity = lane->capacity ? lane->capacity * 2 : LANE_CAPACITY_FIRST;
        struct op *grown = malloc(capacity * sizeof *grown);
        CHECK_MSG(grown, "out of memory with %zu ops waiting for a ring", lane->count); /* a promise stands in each: none may be lost */
        for (size_t i = 0; i < lane->count; i++)
            grown[i] = lane->ops[(lane->first + i) & (lane->capacity - 1)];
        free(lane->ops);
        *lane = (struct op_lane){.ops = grown, .count = lane->count, .capacity = capacity};
    }
    lane->ops[(lane->first + lane->count++) & (lane->capacity - 1)] = *op;
}

void op_backlog_post(struct op_backlog *backlog, op_post_fn post, void *io, actor_id to, const struct op *op)
{
    struct op_lane *lane = &backlog->lanes[to];
    if (lane->count == 0 && post(io, to, op))
        return;
    lane_push(lane, op);
    backlog->count++;
}

bool op_backlog_flush(struct op_backlog *backlog, op_post_fn post, void *io)
{
    for (size_t to = 0; to < ACTOR_COUNT && backlog->count; to++) {
        struct op_lane *lane = &backlog->lanes[to];
        while (lane->count && post(io, (actor_id)to, &lane->ops[lane->first & (lane->capacity - 1)])) {
            lane->first = (lane->first + 1) & (lane->capacity - 1);
            lane->count--;
            backlog->count--;
        }
        if (lane->count == 0 && lane->capacity > LANE_CAPACITY_KEEP) {
            free(lane->ops);
            *lane = (struct op_lane){0};
        }
    }
    return backlog->count == 0;
}
