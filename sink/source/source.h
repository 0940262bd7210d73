/* Where records come from: the interface between the sink's loop and the broker's log (source_log.c) or, later, Kafka.
 *
 *     while ((err = source_open(source, &cursor, &msg)) == ERR_AGAIN) ...   the broker is not there yet: wait, try again
 *     source_start(source, &from, &msg);                                   where the partitions want to go on
 *     while (!(err = source_next(source, &item, &msg))) ...                ERR_AGAIN: nothing new
 *     source_position(source, &read);  ... partitions commit ...  source_commit(source, &committed, &msg);
 *
 * An item counts as read when the next one is asked for: source_position() is the position behind the last item but one while an item is
 * being worked on, so a partition that could take only half of it commits a position before it. Thread: one, except source_lag. */
#ifndef TIDEGATE_SINK_SOURCE_SOURCE_H
#define TIDEGATE_SINK_SOURCE_SOURCE_H

#include "common/log_cursor.h"

struct source_item {
    struct span bytes; /* an encoded record, borrowed until the next source_next() */
    uint64_t broker_id;
    struct log_position position;
};

struct source_gap {
    uint64_t from, to; /* sequences [from, to) that are gone */
};

struct source;

struct source_ops {
    enum err (*open)(struct source *source, struct log_cursor_value *cursor_out, struct errmsg *msg);
    enum err (*start)(struct source *source, const struct log_cursor_value *from, struct errmsg *msg);
    enum err (*next)(struct source *source, struct source_item *item_out, struct errmsg *msg);
    void (*position)(const struct source *source, struct log_cursor_value *position_out);
    enum err (*commit)(struct source *source, const struct log_cursor_value *position, struct errmsg *msg);
    struct source_gap (*gap)(const struct source *source);
    void (*accept_gap)(struct source *source);
    uint64_t (*lag)(const struct source *source);
    void (*free)(struct source *source);
};

/* Implementations embed it as their first member. */
struct source {
    const struct source_ops *ops;
};

/* Take hold of the source and read the position that it holds for us. ERR_AGAIN: not there yet (msg says what is missing); ERR_LOCKED:
 * another sink has it; anything else is final. */
static inline must_check enum err source_open(struct source *source, struct log_cursor_value *cursor_out, struct errmsg *msg)
{
    return source->ops->open(source, cursor_out, msg);
}
/* Begin to read at `from`, once. */
static inline must_check enum err source_start(struct source *source, const struct log_cursor_value *from, struct errmsg *msg)
{
    return source->ops->start(source, from, msg);
}
/* The next item. ERR_AGAIN: none now. ERR_GAP: records are gone, see source_gap; after source_accept_gap it goes on. ERR_NOMEM:
 * again later. Anything else is final. */
static inline must_check enum err source_next(struct source *source, struct source_item *item_out, struct errmsg *msg)
{
    return source->ops->next(source, item_out, msg);
}
static inline void source_position(const struct source *source, struct log_cursor_value *position_out)
{
    source->ops->position(source, position_out);
}
/* Everything before `position` is stored: the source may forget it. Durable on return. */
static inline must_check enum err source_commit(struct source *source, const struct log_cursor_value *position, struct errmsg *msg)
{
    return source->ops->commit(source, position, msg);
}
static inline struct source_gap source_get_gap(const struct source *source) { return source->ops->gap(source); }
static inline void source_accept_gap(struct source *source) { source->ops->accept_gap(source); }
/* Records that are durable at the source and not yet read. */
static inline uint64_t source_lag(const struct source *source) { return source->ops->lag(source); }
static inline void source_free(struct source *source)
{
    if (source)
        source->ops->free(source);
}

#endif
