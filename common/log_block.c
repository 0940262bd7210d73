#include "common/log_block.h"

#include "common/check.h"
#include "common/crc32c.h"

#include <lz4.h>
#include <stdlib.h>

#define LOG_BLOCK_MAGIC 0x4b424754u /* "TGBK" */
#define LOG_BLOCK_VERSION 1

_Static_assert(LOG_BLOCK_SIZE_MAX % 4096 == 0, "a whole block is written directly");
_Static_assert(RECORD_SIZE_MAX <= UINT32_MAX, "sizes of records and groups are 32 bits");

/* The pool */

enum err log_block_pool_init(struct log_block_pool *pool, uint16_t shard, uint32_t block_count_max, uint32_t body_max, uint32_t alignment)
{
    CHECK(block_count_max > 0);
    CHECK(body_max > 0 && body_max <= LOG_BLOCK_BODY_MAX);
    CHECK(shard < LOG_SHARD_MAX);
    CHECK(alignment >= 512 && alignment <= 4096 && (alignment & (alignment - 1)) == 0);
    memset(pool, 0, sizeof *pool);
    pool->shard = shard;
    pool->block_count_max = block_count_max;
    pool->body_max = body_max;
    pool->alignment = alignment;
    pool->blocks = (struct log_block *)calloc(block_count_max, sizeof *pool->blocks);
    pool->scratch = (uint8_t *)aligned_alloc(4096, LOG_BLOCK_SIZE_MAX);
    pool->lz4 = malloc((size_t)LZ4_sizeofState());
    if (!pool->blocks || !pool->scratch || !pool->lz4) {
        log_block_pool_deinit(pool);
        return ERR_NOMEM;
    }
    for (uint32_t i = block_count_max; i-- > 0;) {
        pool->blocks[i].next = pool->free;
        pool->free = &pool->blocks[i];
    }
    return ERR_OK;
}

void log_block_pool_deinit(struct log_block_pool *pool)
{
    CHECK(pool->used_count == 0);
    for (uint32_t i = 0; pool->blocks && i < pool->block_count_max; i++)
        free(pool->blocks[i].memory);
    free(pool->blocks);
    free(pool->scratch);
    free(pool->lz4);
    memset(pool, 0, sizeof *pool);
}

struct log_block *log_block_pool_get(struct log_block_pool *pool)
{
    struct log_block *block = pool->free;
    if (!block)
        return NULL;
    uint8_t *memory = block->memory ? block->memory : (uint8_t *)aligned_alloc(4096, LOG_BLOCK_SIZE_MAX);
    if (!memory)
        return NULL;
    pool->free = block->next;
    pool->used_count++;
    memset(block, 0, sizeof *block);
    block->memory = pool->scratch; /* raw bytes go where others just were, in the cache; of the rest only what is stored is ever touched */
    pool->scratch = memory;
    block->body_max = pool->body_max;
    block->shard = pool->shard;
    return block;
}

void log_block_pool_put(struct log_block_pool *pool, struct log_block *block)
{
    CHECK(block >= pool->blocks && block < pool->blocks + pool->block_count_max);
    CHECK(pool->used_count > 0);
    pool->used_count--;
    block->next = pool->free;
    pool->free = block;
}

/* Filling */

uint8_t *log_block_reserve(struct log_block *block, size_t size)
{
    CHECK(!block->sealed);
    CHECK(!(block->flags & LOG_BLOCK_GROUP));
    if (size > block->body_max - block->body_size)
        return NULL;
    return block->memory + LOG_BLOCK_HEADER_SIZE + block->body_size;
}

void log_block_commit(struct log_block *block, size_t size, bool is_state)
{
    CHECK(size >= RECORD_SIZE_MIN);
    CHECK(size <= block->body_max - block->body_size);
    DCHECK(load_le32(block->memory + LOG_BLOCK_HEADER_SIZE + block->body_size) == size);
    block->body_size += (uint32_t)size;
    block->record_count++;
    if (is_state)
        block->flags |= LOG_BLOCK_STATE;
}

void log_block_grow(struct log_block *block, size_t size)
{
    CHECK(block->record_count > 0);
    CHECK(size <= block->body_max - block->body_size);
    block->body_size += (uint32_t)size;
}

enum err log_block_append(struct log_block *block, const struct record *rec)
{
    size_t size = record_size(rec);
    uint8_t *at = log_block_reserve(block, size);
    if (!at)
        return size > block->body_max ? ERR_TOOLARGE : ERR_FULL;
    log_block_commit(block, record_encode(at, rec), record_is_state(rec));
    return ERR_OK;
}

/* Compress into the scratch and swap, if the block then takes fewer sectors. */
static void log_block_seal_compress(struct log_block_pool *pool, struct log_block *block)
{
    size_t raw_total = align_up(LOG_BLOCK_HEADER_SIZE + block->body_size, pool->alignment);
    size_t most = raw_total - pool->alignment; /* one alignment unit less, or it is not worth a reader's time */
    if (most <= LOG_BLOCK_HEADER_SIZE)
        return;
    int stored = LZ4_compress_fast_extState(pool->lz4, (const char *)block->memory + LOG_BLOCK_HEADER_SIZE,
                                            (char *)pool->scratch + LOG_BLOCK_HEADER_SIZE, (int)block->body_size,
                                            (int)(most - LOG_BLOCK_HEADER_SIZE), 1);
    if (stored <= 0)
        return;
    uint8_t *raw = block->memory;
    block->memory = pool->scratch;
    pool->scratch = raw;
    block->body_size = (uint32_t)stored;
    block->flags |= LOG_BLOCK_LZ4;
}

void log_block_seal(struct log_block_pool *pool, struct log_block *block)
{
    CHECK(!block->sealed);
    CHECK(block->body_size > 0);
    CHECK(block->shard == pool->shard);
    block->raw_size = block->body_size;
    if (block->body_size >= LOG_BLOCK_LZ4_MIN && !(block->flags & LOG_BLOCK_GROUP))
        log_block_seal_compress(pool, block);
    block->size = (uint32_t)align_up(LOG_BLOCK_HEADER_SIZE + block->body_size, pool->alignment);
    uint8_t *body = block->memory + LOG_BLOCK_HEADER_SIZE;
    memset(body + block->body_size, 0, block->size - LOG_BLOCK_HEADER_SIZE - block->body_size);
    block->body_crc = crc32c(0, body, block->body_size);
    block->shard_block = ++pool->sealed_count;
    block->sealed = true;
}

/* Groups */

void log_block_group_init(struct log_block_group *group, struct span head, struct span payload, bool is_state)
{
    CHECK(head.size + payload.size <= RECORD_SIZE_MAX);
    CHECK(head.size >= RECORD_SIZE_MIN);
    CHECK(load_le32(head.data) == head.size + payload.size);
    group->head = head;
    group->payload = payload;
    group->offset = 0;
    group->is_state = is_state;
}

bool log_block_group_done(const struct log_block_group *group) { return group->offset == group->head.size + group->payload.size; }

size_t log_block_group_next(struct log_block_group *group, struct log_block *block)
{
    size_t whole = group->head.size + group->payload.size;
    size_t part = whole - group->offset;
    uint8_t *at = block->memory + LOG_BLOCK_HEADER_SIZE;
    CHECK(part > 0);
    CHECK(whole > block->body_max); /* what fits is no group: its only block would be first and last */
    CHECK(block->body_size == 0);
    if (part > block->body_max)
        part = block->body_max;
    size_t from_head = group->offset < group->head.size ? group->head.size - group->offset : 0;
    if (from_head > part)
        from_head = part;
    if (from_head)
        memcpy(at, group->head.data + group->offset, from_head);
    if (part > from_head)
        memcpy(at + from_head, group->payload.data + (group->offset + from_head - group->head.size), part - from_head);
    block->flags |= group->offset == 0              ? LOG_BLOCK_GROUP_FIRST
                    : group->offset + part == whole ? LOG_BLOCK_GROUP_LAST
                                                    : LOG_BLOCK_GROUP_MIDDLE;
    if (group->is_state)
        block->flags |= LOG_BLOCK_STATE;
    block->body_size = (uint32_t)part;
    block->record_count = block->flags & LOG_BLOCK_GROUP_LAST ? 1 : 0;
    block->group_offset = (uint32_t)group->offset;
    block->group_size = (uint32_t)whole;
    group->offset += part;
    return part;
}

/* The header (docs/formats.md has the table) */

void log_block_header_encode(uint8_t *at, const struct log_block_header *header)
{
    store_le32(at, LOG_BLOCK_MAGIC);
    store_le16(at + 8, LOG_BLOCK_VERSION);
    store_le16(at + 10, header->flags);
    store_le32(at + 12, header->epoch);
    store_le64(at + 16, header->broker_id);
    store_le64(at + 24, header->generation);
    store_le64(at + 32, header->offset);
    store_le64(at + 40, header->start);
    store_le64(at + 48, header->sequence);
    store_le64(at + 56, header->shard_block);
    store_le16(at + 64, header->shard);
    store_le16(at + 66, 0);
    store_le32(at + 68, header->record_count);
    store_le32(at + 72, header->stored_size);
    store_le32(at + 76, header->raw_size);
    store_le32(at + 80, header->body_crc);
    store_le32(at + 84, header->size);
    store_le32(at + 88, header->group_offset);
    store_le32(at + 92, header->group_size);
    store_le64(at + 96, header->durable_before.place.generation);
    store_le64(at + 104, header->durable_before.place.offset);
    store_le64(at + 112, header->durable_before.position.sequence);
    store_le32(at + 120, header->durable_before.position.epoch);
    store_le32(at + 124, 0);
    store_le32(at + 4, crc32c(0, at + 8, LOG_BLOCK_HEADER_SIZE - 8));
}

/* Can a block with this header exist? */
static bool log_block_header_possible(const struct log_block_header *header)
{
    uint16_t group = header->flags & LOG_BLOCK_GROUP;
    if (header->flags & ~(LOG_BLOCK_LZ4 | LOG_BLOCK_GROUP | LOG_BLOCK_STATE) || header->shard >= LOG_SHARD_MAX)
        return false;
    if (header->stored_size == 0 || header->raw_size == 0 || header->raw_size > LOG_BLOCK_BODY_MAX ||
        header->stored_size > header->raw_size)
        return false;
    if (header->size < LOG_BLOCK_HEADER_SIZE + header->stored_size || header->size > LOG_BLOCK_SIZE_MAX || header->size % 512)
        return false;
    if (header->size - LOG_BLOCK_HEADER_SIZE - header->stored_size >= 4096)
        return false;
    if (!(header->flags & LOG_BLOCK_LZ4) && header->stored_size != header->raw_size)
        return false;
    if (header->generation == 0 || header->epoch == 0 || header->sequence == 0 || header->shard_block == 0)
        return false;
    if (!group)
        return header->record_count > 0 && header->record_count <= header->raw_size / RECORD_SIZE_MIN && header->group_size == 0 &&
               header->group_offset == 0;
    if (header->flags & LOG_BLOCK_LZ4 || group & (group - 1) || header->group_size > RECORD_SIZE_MAX)
        return false;
    if (header->group_offset > header->group_size || header->raw_size > header->group_size - header->group_offset)
        return false;
    bool begins = header->group_offset == 0, ends = header->group_size - header->group_offset == header->raw_size;
    return begins == (group == LOG_BLOCK_GROUP_FIRST) && ends == (group == LOG_BLOCK_GROUP_LAST) &&
           header->record_count == (group == LOG_BLOCK_GROUP_LAST ? 1 : 0);
}

enum err log_block_header_decode(struct log_block_header *header_out, const uint8_t *at, size_t size)
{
    if (size < LOG_BLOCK_HEADER_SIZE)
        return ERR_AGAIN;
    if (load_le32(at) != LOG_BLOCK_MAGIC || load_le32(at + 4) != crc32c(0, at + 8, LOG_BLOCK_HEADER_SIZE - 8))
        return ERR_CORRUPT;
    if (load_le16(at + 8) != LOG_BLOCK_VERSION)
        return ERR_VERSION;
    struct log_block_header *header = header_out;
    header->flags = load_le16(at + 10);
    header->epoch = load_le32(at + 12);
    header->broker_id = load_le64(at + 16);
    header->generation = load_le64(at + 24);
    header->offset = load_le64(at + 32);
    header->start = load_le64(at + 40);
    header->sequence = load_le64(at + 48);
    header->shard_block = load_le64(at + 56);
    header->shard = load_le16(at + 64);
    header->record_count = load_le32(at + 68);
    header->stored_size = load_le32(at + 72);
    header->raw_size = load_le32(at + 76);
    header->body_crc = load_le32(at + 80);
    header->size = load_le32(at + 84);
    header->group_offset = load_le32(at + 88);
    header->group_size = load_le32(at + 92);
    header->durable_before.place.generation = load_le64(at + 96);
    header->durable_before.place.offset = load_le64(at + 104);
    header->durable_before.position.sequence = load_le64(at + 112);
    header->durable_before.position.epoch = load_le32(at + 120);
    return log_block_header_possible(header) ? ERR_OK : ERR_CORRUPT;
}

/* The view */

enum err log_block_view_parse_header(struct log_block_view *view_out, const uint8_t *at, size_t size)
{
    enum err err = log_block_header_decode(&view_out->header, at, size);
    view_out->stored = view_out->body = view_out->rest = span_of(NULL, 0);
    view_out->given_count = 0;
    if (err)
        return err;
    return size < view_out->header.size ? ERR_AGAIN : ERR_OK;
}

enum err log_block_view_parse(struct log_block_view *view_out, const uint8_t *at, size_t size)
{
    enum err err = log_block_view_parse_header(view_out, at, size);
    if (err)
        return err;
    view_out->stored = span_of(at + LOG_BLOCK_HEADER_SIZE, view_out->header.stored_size);
    return crc32c(0, view_out->stored.data, view_out->stored.size) == view_out->header.body_crc ? ERR_OK : ERR_CORRUPT;
}

enum err log_block_view_unpack(struct log_block_view *view, uint8_t *scratch)
{
    view->body = view->stored;
    if (view->header.flags & LOG_BLOCK_LZ4) {
        int raw = LZ4_decompress_safe((const char *)view->stored.data, (char *)scratch, (int)view->stored.size, (int)view->header.raw_size);
        if (raw < 0 || (uint32_t)raw != view->header.raw_size)
            return ERR_CORRUPT;
        view->body = span_of(scratch, (size_t)raw);
    }
    view->rest = view->body;
    view->given_count = 0;
    return ERR_OK;
}

enum err log_block_view_next(struct log_block_view *view, struct span *record_out, uint64_t *sequence_out)
{
    if (view->given_count == view->header.record_count)
        return view->rest.size ? ERR_CORRUPT : ERR_AGAIN;
    enum err err = record_next(record_out, &view->rest);
    if (err)
        return ERR_CORRUPT;
    *sequence_out = view->header.sequence + view->given_count++;
    return ERR_OK;
}
