#include "broker/session/queue_packed.h"

#include <stdlib.h>

#include "broker/session/position_pack.h"
#include "common/check.h"

/* Varints: next; max, as the difference to it; count; misses; how many the front has, are late, and the tail has. Then the front and the
 * late ones, packed from `next`, and the tail, packed from `max`: mostly they are not far from those. */
struct queue_packed {
    uint16_t size; /* bytes */
    uint8_t bytes[];
};

#define LISTS 3
#define NUMBERS (4 + LISTS)
#define SIZE_MAX_PACKED (NUMBERS * VARINT_SIZE_MAX + LISTS * POSITION_PACK_SIZE_MAX(0) + QUEUE_PACKED_MAX * 8)

void queue_lists_free(struct queue_lists *lists)
{
    position_list_free(lists->front);
    position_list_free(lists->tail);
    late_list_free(lists->late);
    *lists = (struct queue_lists){0};
}

struct sequences {
    uint32_t count;
    uint64_t of[QUEUE_PACKED_MAX];
};

static void add(void *arg, uint64_t sequence)
{
    struct sequences *all = arg;
    all->of[all->count++] = sequence;
}

static void add_list(struct sequences *all, const struct position_list *list)
{
    struct span bytes = position_list_bytes(list);
    uint64_t sequence = 0;
    for (size_t offset = 0; position_list_next(bytes, &offset, &sequence) == ERR_OK;)
        add(all, sequence);
}

/* More than can be packed. By the counts alone: a queue may have many, and is asked to pack again and again. */
static bool is_long(const struct queue_lists *lists)
{
    uint32_t count = position_list_count(lists->front) + position_list_count(lists->tail);
    return count > QUEUE_PACKED_MAX || late_list_is_longer(lists->late, QUEUE_PACKED_MAX - count);
}

struct queue_packed *queue_packed_new(const struct queue_runs *runs, const struct queue_lists *lists)
{
    if (is_long(lists))
        return NULL;
    struct sequences all = {0};
    uint32_t ends[LISTS];
    add_list(&all, lists->front);
    ends[0] = all.count;
    late_list_each(lists->late, add, &all);
    ends[1] = all.count;
    add_list(&all, lists->tail);
    ends[2] = all.count;
    uint8_t bytes[SIZE_MAX_PACKED];
    const uint64_t numbers[NUMBERS] = {
        runs->next,       zigzag_encode((int64_t)(runs->max - runs->next)), runs->count, runs->misses, ends[0], ends[1] - ends[0],
        ends[2] - ends[1]};
    size_t size = 0;
    for (uint32_t i = 0; i < NUMBERS; i++)
        size += varint_put(bytes + size, numbers[i]);
    size += position_pack(bytes + size, runs->next, all.of, ends[0]);
    size += position_pack(bytes + size, runs->next, all.of + ends[0], ends[1] - ends[0]);
    size += position_pack(bytes + size, runs->max, all.of + ends[1], ends[2] - ends[1]);
    struct queue_packed *packed = malloc(offsetof(struct queue_packed, bytes) + size);
    if (!packed)
        return NULL;
    packed->size = (uint16_t)size;
    memcpy(packed->bytes, bytes, size);
    return packed;
}

struct parts {
    struct queue_runs runs;
    struct position_unpack front, late, tail;
};

/* A pack off the beginning. */
static struct position_unpack take(struct span *rest, uint64_t base, uint64_t count)
{
    struct position_unpack unpack = position_unpack_of(*rest, base, (uint32_t)count);
    *rest = span_of(rest->data + unpack.size, rest->size - unpack.size);
    return unpack;
}

static struct parts parts_of(const struct queue_packed *packed)
{
    uint64_t numbers[NUMBERS];
    struct span rest = span_of(packed->bytes, packed->size);
    for (uint32_t i = 0; i < NUMBERS; i++) {
        size_t used = varint_get(&numbers[i], rest.data, rest.data + rest.size);
        CHECK(used > 0);
        rest = span_of(rest.data + used, rest.size - used);
    }
    struct parts parts = {.runs = {.next = numbers[0],
                                   .max = numbers[0] + (uint64_t)zigzag_decode(numbers[1]),
                                   .count = (uint32_t)numbers[2],
                                   .misses = (uint16_t)numbers[3]}};
    parts.front = take(&rest, parts.runs.next, numbers[4]);
    parts.late = take(&rest, parts.runs.next, numbers[5]);
    parts.tail = take(&rest, parts.runs.max, numbers[6]);
    return parts;
}

struct queue_runs queue_packed_runs(const struct queue_packed *packed) { return parts_of(packed).runs; }
bool queue_packed_has_front(const struct queue_packed *packed) { return parts_of(packed).front.left > 0; }
bool queue_packed_has_tail(const struct queue_packed *packed) { return parts_of(packed).tail.left > 0; }

static void read_all(struct sequences *all, struct position_unpack unpack)
{
    uint64_t sequence;
    for (all->count = 0; position_unpack_next(&unpack, &sequence);)
        add(all, sequence);
}

bool queue_packed_open(const struct queue_packed *packed, struct queue_lists *lists_out)
{
    struct parts parts = parts_of(packed);
    struct sequences all;
    *lists_out = (struct queue_lists){0};
    read_all(&all, parts.front);
    bool is_ok = position_list_push_all(&lists_out->front, all.of, all.count) == ERR_OK;
    read_all(&all, parts.late);
    for (uint32_t at = 0, count; is_ok && at < all.count; at += count) {
        count = all.count - at < LATE_ADD_MAX ? all.count - at : LATE_ADD_MAX;
        is_ok = late_list_add(&lists_out->late, all.of + at, count);
    }
    read_all(&all, parts.tail);
    is_ok = is_ok && position_list_push_all(&lists_out->tail, all.of, all.count) == ERR_OK;
    if (!is_ok)
        queue_lists_free(lists_out);
    return is_ok;
}

void queue_packed_each(const struct queue_packed *packed, void (*visit)(void *arg, uint64_t sequence), void *arg)
{
    struct parts parts = parts_of(packed);
    uint64_t sequence;
    while (position_unpack_next(&parts.front, &sequence))
        visit(arg, sequence);
    while (position_unpack_next(&parts.late, &sequence))
        visit(arg, sequence);
    while (position_unpack_next(&parts.tail, &sequence))
        visit(arg, sequence);
}

uint64_t queue_packed_first(const struct queue_packed *packed)
{
    struct parts parts = parts_of(packed);
    uint64_t sequence;
    if (position_unpack_next(&parts.front, &sequence) || position_unpack_next(&parts.tail, &sequence))
        return sequence;
    return 0;
}
