#include "broker/route/topic_index.h"

#include <stdlib.h>
#include <string.h>

#include "common/check.h"

#define BLOCK_ENTRIES_MAX 128u

struct topic_block {
    uint32_t count; /* > 0 */
    void *entries[BLOCK_ENTRIES_MAX];
};

/* The rank of a byte: '/' first. */
static int rank(uint8_t byte) { return byte == '/' ? 0 : byte < '/' ? byte + 1 : byte; }

int topic_index_compare(struct span a, struct span b)
{
    size_t size = a.size < b.size ? a.size : b.size, i = 0;
    while (i + 8 <= size && load_le64(a.data + i) == load_le64(b.data + i))
        i += 8;
    for (; i < size; i++)
        if (a.data[i] != b.data[i])
            return rank(a.data[i]) - rank(b.data[i]);
    return a.size < b.size ? -1 : a.size > b.size;
}

void topic_index_init(struct topic_index *index, topic_index_topic_fn topic_of) { *index = (struct topic_index){.topic_of = topic_of}; }

void topic_index_deinit(struct topic_index *index)
{
    for (size_t i = 0; i < index->block_count; i++)
        free(index->blocks[i]);
    free(index->blocks);
    *index = (struct topic_index){0};
}

struct topic_place topic_index_seek(const struct topic_index *index, struct span key)
{
    size_t low = 0, high = index->block_count; /* blocks before `low` begin at or below key */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (topic_index_compare(index->topic_of(index->blocks[middle]->entries[0]), key) <= 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return (struct topic_place){0, 0};
    const struct topic_block *block = index->blocks[low - 1];
    uint32_t first = 0, end = block->count;
    while (first < end) {
        uint32_t middle = first + (end - first) / 2;
        if (topic_index_compare(index->topic_of(block->entries[middle]), key) < 0)
            first = middle + 1;
        else
            end = middle;
    }
    return first == block->count ? (struct topic_place){low, 0} : (struct topic_place){low - 1, first};
}

/* The end of a block is the beginning of the next. */
static struct topic_place settled(const struct topic_index *index, struct topic_place at)
{
    if (at.block < index->block_count && at.entry >= index->blocks[at.block]->count)
        return (struct topic_place){at.block + 1, 0};
    return at;
}

struct topic_place topic_index_next(const struct topic_index *index, struct topic_place at)
{
    at = settled(index, at);
    at.entry++;
    return settled(index, at);
}

void *topic_index_at(const struct topic_index *index, struct topic_place at)
{
    at = settled(index, at);
    return at.block < index->block_count ? index->blocks[at.block]->entries[at.entry] : NULL;
}

/* A new empty block at `at` of the array. NULL when memory is short. */
static struct topic_block *insert_block(struct topic_index *index, size_t at)
{
    if (index->block_count == index->block_capacity) {
        size_t capacity = index->block_capacity == 0 ? 16 : index->block_capacity * 2;
        struct topic_block **blocks = realloc(index->blocks, capacity * sizeof(struct topic_block *));
        if (blocks == NULL)
            return NULL;
        index->blocks = blocks;
        index->block_capacity = capacity;
    }
    struct topic_block *block = malloc(sizeof *block);
    if (block == NULL)
        return NULL;
    block->count = 0;
    memmove(index->blocks + at + 1, index->blocks + at, (index->block_count - at) * sizeof(struct topic_block *));
    index->blocks[at] = block;
    index->block_count++;
    return block;
}

static void remove_block(struct topic_index *index, size_t at)
{
    free(index->blocks[at]);
    index->block_count--;
    memmove(index->blocks + at, index->blocks + at + 1, (index->block_count - at) * sizeof(struct topic_block *));
}

bool topic_index_insert(struct topic_index *index, void *entry)
{
    struct topic_place at = topic_index_seek(index, index->topic_of(entry));
    /* The end of a block and the beginning of the next are the same place; prefer the former. */
    if (at.entry == 0 && at.block > 0)
        at = (struct topic_place){at.block - 1, index->blocks[at.block - 1]->count};
    if (index->block_count == 0 && insert_block(index, 0) == NULL)
        return false;
    struct topic_block *block = index->blocks[at.block];
    if (block->count == BLOCK_ENTRIES_MAX) {
        struct topic_block *upper = insert_block(index, at.block + 1);
        if (upper == NULL)
            return false;
        /* Topics that come in order fill their blocks: nothing moves when the new one is the last of all. */
        bool is_last = at.entry == block->count && at.block + 2 == index->block_count;
        uint32_t keep = is_last ? block->count : block->count / 2;
        upper->count = block->count - keep;
        memcpy(upper->entries, block->entries + keep, upper->count * sizeof upper->entries[0]);
        block->count = keep;
        if (at.entry > keep || is_last) {
            at.entry -= keep;
            block = upper;
        }
    }
    memmove(block->entries + at.entry + 1, block->entries + at.entry, (block->count - at.entry) * sizeof block->entries[0]);
    block->entries[at.entry] = entry;
    block->count++;
    return true;
}

void topic_index_remove(struct topic_index *index, const void *entry)
{
    struct topic_place at = topic_index_seek(index, index->topic_of(entry));
    CHECK(topic_index_at(index, at) == entry);
    struct topic_block *block = index->blocks[at.block];
    block->count--;
    memmove(block->entries + at.entry, block->entries + at.entry + 1, (block->count - at.entry) * sizeof block->entries[0]);
    if (block->count == 0) {
        remove_block(index, at.block);
        return;
    }
    /* Two neighbours that together are half a block become one. */
    size_t low = at.block + 1 < index->block_count ? at.block : at.block - 1;
    if (index->block_count < 2 || index->blocks[low]->count + index->blocks[low + 1]->count > BLOCK_ENTRIES_MAX / 2)
        return;
    struct topic_block *into = index->blocks[low], *from = index->blocks[low + 1];
    memcpy(into->entries + into->count, from->entries, from->count * sizeof from->entries[0]);
    into->count += from->count;
    remove_block(index, low + 1);
}

size_t topic_index_bytes(const struct topic_index *index)
{
    return index->block_count * sizeof(struct topic_block) + index->block_capacity * sizeof(struct topic_block *);
}
