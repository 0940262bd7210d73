#include "broker/session/queue.h"

#include <stdlib.h>

#include "common/check.h"

#define CAPACITY_FIRST 4

static struct queue_item *at(const struct queue *queue, unsigned index)
{
    return &queue->items[(queue->first + index) & (queue->capacity - 1u)];
}

static bool grow(struct queue *queue)
{
    unsigned capacity = queue->capacity ? queue->capacity * 2u : CAPACITY_FIRST;
    CHECK(capacity <= QUEUE_RESIDENT_MAX);
    struct queue_item *items = malloc(capacity * sizeof *items);
    if (!items)
        return false;
    for (unsigned i = 0; i < queue->resident; i++)
        items[i] = *at(queue, i);
    free(queue->items);
    queue->items = items;
    queue->capacity = (uint8_t)capacity;
    queue->first = 0;
    return true;
}

static bool put(struct queue *queue, struct msg *msg, uint32_t meta)
{
    if (queue->resident == queue->capacity && !grow(queue))
        return false;
    queue->resident++;
    *at(queue, queue->resident - 1u) = (struct queue_item){.msg = msg, .meta = meta};
    return true;
}

void queue_deinit(struct queue *queue)
{
    for (unsigned i = 0; i < queue->resident; i++)
        msg_unref(at(queue, i)->msg);
    free(queue->items);
    *queue = (struct queue){0};
}

enum queue_result queue_push(struct queue *queue, struct msg *msg, uint32_t meta, const struct queue_limits *limits, bool is_online)
{
    size_t cost = msg_cost(msg);
    if (queue_count(queue) >= limits->messages_max)
        return QUEUE_FULL_MESSAGES;
    if (queue->bytes + cost > limits->bytes_max)
        return QUEUE_FULL_BYTES;
    unsigned window = is_online ? QUEUE_RESIDENT_MAX : QUEUE_RESIDENT_OFFLINE_MAX;
    enum queue_result result = QUEUE_TO_STORE;
    if (queue->stored == 0 && queue->resident < window) {
        if (!put(queue, msg, meta))
            return QUEUE_NOMEM;
        msg_ref(msg);
        result = QUEUE_RESIDENT;
    } else {
        queue->stored++;
    }
    queue->bytes += cost;
    return result;
}

struct queue_item *queue_first(struct queue *queue) { return queue->resident ? at(queue, 0) : NULL; }

struct queue_item queue_pop(struct queue *queue)
{
    CHECK(queue->resident > 0);
    struct queue_item item = *at(queue, 0);
    queue->first = (uint8_t)((queue->first + 1u) & (queue->capacity - 1u));
    queue->resident--;
    CHECK(queue->bytes >= msg_cost(item.msg));
    queue->bytes -= msg_cost(item.msg);
    if (queue->resident == 0) {
        free(queue->items);
        queue->items = NULL;
        queue->capacity = queue->first = 0;
    }
    return item;
}

uint32_t queue_load_count(const struct queue *queue)
{
    if (queue->is_loading || queue->stored == 0 || queue->resident > QUEUE_RESIDENT_MAX / 2)
        return 0;
    uint32_t room = QUEUE_RESIDENT_MAX - queue->resident;
    return room < queue->stored ? room : queue->stored;
}

bool queue_on_loaded(struct queue *queue, uint32_t *dropped_out, struct store_page *page)
{
    CHECK(queue->is_loading);
    CHECK(page->count <= queue->stored);
    CHECK(page->count + queue->resident <= QUEUE_RESIDENT_MAX);
    queue->is_loading = false;
    queue->stored -= page->count;
    uint32_t dropped = 0;
    for (uint32_t i = 0; i < page->count; i++) {
        if (put(queue, page->items[i].msg, page->items[i].meta))
            continue;
        queue->bytes -= msg_cost(page->items[i].msg);
        msg_unref(page->items[i].msg);
        dropped++;
    }
    free(page);
    *dropped_out = dropped;
    return dropped == 0;
}
