#include "broker/session/subscription_list.h"

#include <stdlib.h>

#include "common/check.h"
#include "common/hash.h"

#define HEAD_SIZE 2u        /* bytes of a text's size */
#define NONE UINT32_MAX     /* no offset */
#define SIZE_MASK 0xffffffu /* of the list's size fields, which hold every size there is */

/* Open addressing, at most three quarters full; a cell is an offset + 1, 0 = free. */
struct subscription_index {
    uint64_t hash_key;
    uint32_t cell_count; /* power of two */
    uint32_t gap_size;   /* bytes of removed texts */
    uint32_t cells[];
};

static struct span text_at(const struct subscription_list *list, uint32_t offset)
{
    return span_of(list->bytes + offset + HEAD_SIZE, load_le16(list->bytes + offset));
}

static uint32_t home_of(const struct subscription_index *index, struct span filter)
{
    return (uint32_t)hash_span(filter, index->hash_key) & (index->cell_count - 1);
}

bool subscription_list_next(const struct subscription_list *list, uint32_t *offset, struct span *filter_out)
{
    while (list && *offset < list->size) {
        *filter_out = text_at(list, *offset);
        *offset += HEAD_SIZE + (uint32_t)filter_out->size;
        if (filter_out->data[0] != 0)
            return true;
    }
    return false;
}

void subscription_list_free(struct subscription_list *list)
{
    if (!list)
        return;
    free(list->index);
    free(list);
}

/* The cell of a filter, or the free one where it would stand. */
static uint32_t index_find(const struct subscription_list *list, struct span filter)
{
    const struct subscription_index *index = list->index;
    uint32_t at = home_of(index, filter);
    while (index->cells[at] && !span_equal(text_at(list, index->cells[at] - 1), filter))
        at = (at + 1) & (index->cell_count - 1);
    return at;
}

/* Its offset or NONE. */
static uint32_t find(const struct subscription_list *list, struct span filter)
{
    if (list && list->index)
        return list->index->cells[index_find(list, filter)] - 1; /* a free cell: 0 - 1 is NONE */
    struct span other;
    for (uint32_t offset = 0, start = 0; subscription_list_next(list, &offset, &other); start = offset)
        if (span_equal(other, filter))
            return start;
    return NONE;
}

bool subscription_list_has(const struct subscription_list *list, struct span filter) { return find(list, filter) != NONE; }

/* Close the gaps; offsets change. */
static void squeeze(struct subscription_list *list)
{
    uint32_t kept = 0;
    struct span filter;
    for (uint32_t offset = 0; subscription_list_next(list, &offset, &filter);) {
        uint32_t size = HEAD_SIZE + (uint32_t)filter.size;
        memmove(list->bytes + kept, list->bytes + offset - size, size);
        kept += size;
    }
    list->size = kept & SIZE_MASK;
}

/* A new table of the list's filters, without gaps; none when they are few or memory is short. */
static void index_rebuild(struct subscription_list *list, uint64_t hash_key)
{
    squeeze(list);
    free(list->index);
    list->index = NULL;
    if (list->count < SUBSCRIPTION_INDEX_MIN)
        return;
    uint32_t cell_count = SUBSCRIPTION_INDEX_MIN;
    while (cell_count < list->count * 2)
        cell_count *= 2;
    struct subscription_index *index = calloc(1, sizeof *index + cell_count * sizeof index->cells[0]);
    if (!index)
        return;
    index->hash_key = hash_key;
    index->cell_count = cell_count;
    list->index = index;
    struct span filter;
    for (uint32_t offset = 0, start = 0; subscription_list_next(list, &offset, &filter); start = offset)
        index->cells[index_find(list, filter)] = start + 1;
}

enum err subscription_list_add(struct subscription_list **place, struct span filter, uint64_t hash_key)
{
    CHECK(filter.size > 0);
    CHECK(filter.size <= UINT16_MAX);
    CHECK(filter.data[0] != 0);
    struct subscription_list *list = *place;
    if (subscription_list_has(list, filter))
        return ERR_OK;
    uint32_t need = (list ? list->size : 0) + HEAD_SIZE + (uint32_t)filter.size;
    if (list && (list->count >= SUBSCRIPTION_LIST_FILTERS_MAX || need > SUBSCRIPTION_LIST_BYTES_MAX))
        return ERR_FULL;
    if (!list || list->capacity < need) {
        /* The first filter gets exactly its room: most devices have one. */
        uint32_t capacity = list ? need + need / 2 : need;
        struct subscription_list *grown = realloc(list, sizeof *list + capacity);
        if (!grown)
            return ERR_NOMEM;
        if (!list)
            *grown = (struct subscription_list){0};
        grown->capacity = capacity & SIZE_MASK;
        *place = list = grown;
    }
    uint32_t offset = list->size;
    store_le16(list->bytes + offset, (uint16_t)filter.size);
    memcpy(list->bytes + offset + HEAD_SIZE, filter.data, filter.size);
    list->size = need & SIZE_MASK;
    list->count++;
    if (list->index && list->count * 4 <= list->index->cell_count * 3)
        list->index->cells[index_find(list, filter)] = offset + 1;
    else if (list->index || (list->count & (SUBSCRIPTION_INDEX_MIN - 1)) == 0)
        index_rebuild(list, hash_key); /* the first time, larger, or tried again now and then */
    return ERR_OK;
}

/* Backward shift: what probed over the hole moves into it, so that no search ends early. */
static void index_remove(struct subscription_list *list, uint32_t hole)
{
    struct subscription_index *index = list->index;
    uint32_t mask = index->cell_count - 1;
    for (uint32_t at = (hole + 1) & mask; index->cells[at]; at = (at + 1) & mask) {
        uint32_t distance_home = (at - home_of(index, text_at(list, index->cells[at] - 1))) & mask;
        if (distance_home >= ((at - hole) & mask)) {
            index->cells[hole] = index->cells[at];
            hole = at;
        }
    }
    index->cells[hole] = 0;
}

bool subscription_list_remove(struct subscription_list **place, struct span filter)
{
    struct subscription_list *list = *place;
    uint32_t offset = find(list, filter);
    if (offset == NONE)
        return false;
    uint32_t size = HEAD_SIZE + (uint32_t)filter.size;
    if (list->index)
        index_remove(list, index_find(list, filter));
    list->bytes[offset + HEAD_SIZE] = 0;
    list->count--;
    if (list->count == 0) {
        subscription_list_free(list);
        *place = NULL;
    } else if (!list->index) {
        squeeze(list);
    } else if ((list->index->gap_size += size) > list->size / 2) {
        index_rebuild(list, list->index->hash_key);
    }
    return true;
}
