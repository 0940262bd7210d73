/* The bytes lie at first .. size of one block. Taking the first off writes the second anew, as the difference to 0, so that it ends where
 * it ended: the sum of two numbers never takes more bytes than both (varint_size(a + b) <= varint_size(a) + varint_size(b), also with
 * zigzag), so nothing is moved. What that leaves free in front is taken back when the list would have to grow. */
#include "common/position_list.h"

#include "common/check.h"

#include <stdlib.h>

#define BLOCK_MIN 32u

/* How much is allocated follows from `size` (block_size), which saves a field in millions of short lists. */
struct position_list {
    uint64_t last; /* the newest */
    uint32_t count;
    uint32_t first, size; /* bytes */
    uint8_t bytes[];
};

/* Bytes of the block of a list of `size` bytes: in steps of 16, or of a quarter of the power of two below, as allocators have them. Where
 * bytes were taken back in front, the block is larger than this says. */
static size_t block_size(uint32_t size)
{
    size_t whole = offsetof(struct position_list, bytes) + size, step = 16;
    while (whole > 8 * step)
        step *= 2;
    return whole <= BLOCK_MIN ? BLOCK_MIN : (whole + step - 1) / step * step;
}

size_t position_list_put(uint8_t *at, uint64_t *last, uint64_t sequence)
{
    uint64_t difference = sequence - *last; /* modulo 2^64: any two numbers have one */
    *last = sequence;
    return varint_put(at, zigzag_encode((int64_t)difference));
}

enum err position_list_next(struct span bytes, size_t *offset, uint64_t *sequence)
{
    if (*offset >= bytes.size)
        return ERR_AGAIN;
    uint64_t difference;
    size_t used = varint_get(&difference, bytes.data + *offset, bytes.data + bytes.size);
    if (used == 0)
        return ERR_CORRUPT;
    *offset += used;
    *sequence += (uint64_t)zigzag_decode(difference);
    return ERR_OK;
}

/* Room for `size` more bytes at the end. */
static enum err make_room(struct position_list **place, uint32_t size)
{
    struct position_list *list = *place;
    if (list && block_size(list->size + size) == block_size(list->size))
        return ERR_OK;
    uint32_t used = list ? list->size - list->first : 0;
    if (list && list->first >= size && list->first >= used / 4) {
        memmove(list->bytes, list->bytes + list->first, used);
        list->first = 0;
        list->size = used;
        return ERR_OK;
    }
    if (list && list->size > UINT32_MAX / 2)
        return ERR_NOMEM;
    struct position_list *grown = (struct position_list *)realloc(list, block_size((list ? list->size : 0) + size));
    if (!grown)
        return ERR_NOMEM;
    if (!list)
        *grown = (struct position_list){0};
    *place = grown;
    return ERR_OK;
}

enum err position_list_push_all(struct position_list **list, const uint64_t *sequences, uint32_t count)
{
    uint8_t encoded[VARINT_SIZE_MAX];
    uint64_t last = position_list_last(*list), total = 0;
    for (uint32_t i = 0; i < count; i++)
        total += position_list_put(encoded, &last, sequences[i]);
    if (count == 0)
        return ERR_OK;
    if (total > UINT32_MAX / 4)
        return ERR_NOMEM;
    enum err err = make_room(list, (uint32_t)total);
    if (err)
        return err;
    for (uint32_t i = 0; i < count; i++) {
        size_t size = position_list_put(encoded, &(*list)->last, sequences[i]);
        memcpy((*list)->bytes + (*list)->size, encoded, size);
        (*list)->size += (uint32_t)size;
    }
    (*list)->count += count;
    return ERR_OK;
}

enum err position_list_push(struct position_list **list, uint64_t sequence) { return position_list_push_all(list, &sequence, 1); }

uint64_t position_list_last(const struct position_list *list) { return list ? list->last : 0; }

bool position_list_first(const struct position_list *list, uint64_t *sequence_out)
{
    size_t offset = 0;
    *sequence_out = 0;
    return position_list_next(position_list_bytes(list), &offset, sequence_out) == ERR_OK;
}

void position_list_drop(struct position_list **place, uint32_t count)
{
    struct position_list *list = *place;
    CHECK(count <= position_list_count(list));
    if (count == 0)
        return;
    if ((list->count -= count) == 0) {
        free(list);
        *place = NULL;
        return;
    }
    struct span bytes = position_list_bytes(list);
    size_t offset = 0;
    uint64_t first = 0; /* of those that stay */
    for (uint32_t i = 0; i <= count; i++) {
        enum err err = position_list_next(bytes, &offset, &first);
        CHECK(err == ERR_OK);
    }
    uint8_t encoded[VARINT_SIZE_MAX];
    uint64_t zero = 0;
    size_t size = position_list_put(encoded, &zero, first);
    CHECK(size <= offset);
    list->first += (uint32_t)(offset - size);
    memcpy(list->bytes + list->first, encoded, size);
}

bool position_list_pop(struct position_list **place, uint64_t *sequence_out)
{
    if (!position_list_first(*place, sequence_out))
        return false;
    position_list_drop(place, 1);
    return true;
}

void position_list_trim(struct position_list **place)
{
    struct position_list *list = *place;
    uint32_t used = list ? list->size - list->first : 0;
    if (!list || block_size(list->size) <= 2 * block_size(used))
        return;
    memmove(list->bytes, list->bytes + list->first, used);
    list->first = 0;
    list->size = used;
    struct position_list *shrunk = (struct position_list *)realloc(list, block_size(used));
    if (shrunk)
        *place = shrunk;
}

uint32_t position_list_count(const struct position_list *list) { return list ? list->count : 0; }

struct span position_list_bytes(const struct position_list *list)
{
    return list ? span_of(list->bytes + list->first, list->size - list->first) : span_of(NULL, 0);
}

void position_list_free(struct position_list *list) { free(list); }
