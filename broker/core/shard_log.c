#include "broker/core/shard_log.h"

#include <stdlib.h>

#include "broker/core/publish_job.h"
#include "broker/core/shard_state.h"
#include "common/check.h"

#define STARVED_SIZE 512u /* bytes left in the last block */

void shard_log_init(struct shard_log *log, struct log_block_pool *pool) { *log = (struct shard_log){.pool = pool, .has_room = true}; }

void shard_log_deinit(struct shard_log *log)
{
    if (log->block)
        log_block_pool_put(log->pool, log->block);
    if (log->large)
        publish_job_free(log->large);
    free(log->large_head);
    *log = (struct shard_log){0};
}

/* Blocks that PUBLISH leaves to the others. */
static uint32_t control_blocks(const struct log_block_pool *pool) { return pool->block_count_max < 4 ? 0 : 1 + pool->block_count_max / 16; }

bool shard_log_has_room(const struct shard_log *log, size_t size)
{
    if (!log->has_room || log->is_failed)
        return false;
    if (shard_log_is_large(log, size))
        return log->large == NULL;
    if (log->block && log->pool->body_max - log->block->body_size >= size)
        return true;
    return log->pool->used_count + control_blocks(log->pool) < log->pool->block_count_max;
}

bool shard_log_has_control_room(const struct shard_log *log, size_t size)
{
    if (!log->pool)
        return true;
    if (log->is_failed)
        return false;
    uint32_t free_count = log->pool->block_count_max - log->pool->used_count;
    if (!shard_log_is_large(log, size))
        return free_count > 0 || (log->block && log->pool->body_max - log->block->body_size >= size);
    return log->large == NULL && size / log->pool->body_max + 1 <= free_count;
}

size_t shard_log_control_max(const struct shard_log *log)
{
    uint32_t blocks = log->pool->block_count_max / 2;
    return (size_t)log->pool->body_max * (blocks > 0 ? blocks : 1);
}

bool shard_log_is_starved(const struct shard_log *log)
{
    return log->pool && log->pool->used_count == log->pool->block_count_max &&
           (!log->block || log->pool->body_max - log->block->body_size < STARVED_SIZE);
}

size_t shard_log_size(const struct shard_log *log, const struct record *rec)
{
    size_t bound = record_size_bound(rec);
    return log->block && log->pool->body_max - log->block->body_size >= bound ? bound : record_size(rec);
}

/* Seal a block and hand it to the log actor. */
static void hand_over(struct shard *shard, struct log_block *block, uint32_t connection_count)
{
    log_block_seal(shard->log.pool, block);
    counter_inc(&shard->stats.log_blocks);
    shard_post(shard, ACTOR_LOG,
               &(struct op){.type = OP_LOG_BLOCK, .from = shard->config.index, .count = connection_count, .block = block});
}

static void seal_filling(struct shard *shard)
{
    struct log_block *block = shard->log.block;
    if (!block)
        return;
    shard->log.block = NULL;
    if (block->body_size > 0)
        hand_over(shard, block, shard->log.connection_count);
    else
        log_block_pool_put(shard->log.pool, block);
    shard->log.connection_count = 0;
    shard->log.ack_end = 0;
}

/* Room for `size` bytes in the block being filled, or in a fresh one. NULL: memory is short; the pool had a place, the machine had none. */
static uint8_t *reserve(struct shard *shard, size_t size)
{
    struct shard_log *log = &shard->log;
    CHECK(!shard_log_is_large(log, size));
    uint8_t *at = log->block ? log_block_reserve(log->block, size) : NULL;
    if (at)
        return at;
    struct log_block *fresh = log_block_pool_get(log->pool);
    if (!fresh)
        return NULL;
    seal_filling(shard);
    log->block = fresh;
    at = log_block_reserve(fresh, size);
    CHECK(at);
    return at;
}

/* A record of the session stands there. */
static void commit(struct shard *shard, size_t used, uint64_t session, bool is_state)
{
    struct shard_log *log = &shard->log;
    log_block_commit(log->block, used, is_state);
    if (log->connection_count == 0 || log->session_last != session) {
        log->session_last = session;
        log->connection_count++;
    }
    counter_inc(&shard->stats.log_records);
    counter_add(&shard->stats.log_record_bytes, used);
}

uint64_t shard_log_append(struct shard *shard, const struct record *rec, size_t size)
{
    uint8_t *at = reserve(shard, size);
    if (!at)
        return 0;
    size_t used = record_encode(at, rec);
    CHECK(used <= size);
    commit(shard, used, rec->session, record_is_state(rec));
    return shard_log_filling(&shard->log);
}

/* The newest record is an ACK of this session, and has room. */
static bool grow_ack(struct shard *shard, uint64_t session, uint64_t sequence)
{
    struct shard_log *log = &shard->log;
    if (log->ack_end == 0 || log->ack_end != log->block->body_size || log->session_last != session)
        return false;
    const uint8_t *end = log_block_reserve(log->block, VARINT_SIZE_MAX);
    size_t used = end ? record_ack_grow(log->block->memory + LOG_BLOCK_HEADER_SIZE + log->ack_at, &log->ack_last, sequence) : 0;
    log_block_grow(log->block, used);
    log->ack_end += (uint32_t)used;
    counter_add(&shard->stats.log_record_bytes, used);
    return used > 0;
}

uint64_t shard_log_ack(struct shard *shard, uint64_t session, uint64_t sequence)
{
    struct shard_log *log = &shard->log;
    if (!log->pool)
        return 0;
    if (!grow_ack(shard, session, sequence)) {
        uint8_t *at = reserve(shard, RECORD_ACK_SIZE_MAX);
        CHECK_MSG(at, "out of memory for a log block");
        size_t used = record_ack_begin(at, &log->ack_last, session, sequence);
        log->ack_at = log->block->body_size;
        commit(shard, used, session, true);
        log->ack_end = log->block->body_size;
    }
    return shard_log_filling(log);
}

/* All its blocks in one go: shard_log_control_max() bounds them. */
static uint64_t control_large(struct shard *shard, const struct record *rec)
{
    struct shard_log *log = &shard->log;
    CHECK(!log->large);
    seal_filling(shard);
    uint8_t *head = malloc(record_head_size(rec));
    CHECK_MSG(head, "out of memory for a record of %zu bytes", record_size(rec));
    struct log_block_group group;
    log_block_group_init(&group, span_of(head, record_encode_head(head, rec)), rec->payload, record_is_state(rec));
    while (!log_block_group_done(&group)) {
        struct log_block *block = log_block_pool_get(log->pool);
        CHECK_MSG(block, "out of memory for a log block");
        log_block_group_next(&group, block);
        hand_over(shard, block, 1);
    }
    free(head);
    counter_inc(&shard->stats.log_records);
    counter_add(&shard->stats.log_record_bytes, record_size(rec));
    return log->pool->sealed_count;
}

uint64_t shard_log_control(struct shard *shard, const struct record *rec)
{
    if (!shard->log.pool)
        return 0;
    size_t size = shard_log_size(&shard->log, rec);
    if (shard_log_is_large(&shard->log, size))
        return control_large(shard, rec);
    uint64_t wait_block = shard_log_append(shard, rec, size);
    CHECK_MSG(wait_block != 0, "out of memory for a log block");
    return wait_block;
}

enum err shard_log_begin_large(struct shard *shard, const struct record *rec, struct publish_job *job)
{
    struct shard_log *log = &shard->log;
    CHECK(!log->large);
    size_t head_size = record_head_size(rec);
    log->large_head = malloc(head_size);
    if (!log->large_head)
        return ERR_NOMEM;
    size_t used = record_encode_head(log->large_head, rec);
    CHECK(used == head_size);
    log->large = job;
    log_block_group_init(&log->group, span_of(log->large_head, head_size), msg_payload(job->msg), record_is_state(rec));
    counter_inc(&shard->stats.log_records);
    counter_add(&shard->stats.log_record_bytes, head_size + job->msg->payload_size);
    return ERR_OK;
}

/* Up to LOG_GROUP_TURN_MAX bytes of the large record, as far as the pool has blocks. Returns its job when that was all, else NULL. */
static struct publish_job *large_step(struct shard *shard)
{
    struct shard_log *log = &shard->log;
    for (size_t copied = 0; copied < LOG_GROUP_TURN_MAX && !log_block_group_done(&log->group);) {
        struct log_block *block = log_block_pool_get(log->pool);
        if (!block)
            return NULL;
        copied += log_block_group_next(&log->group, block);
        hand_over(shard, block, 1);
    }
    if (!log_block_group_done(&log->group)) {
        shard->is_work_left = true;
        return NULL;
    }
    struct publish_job *job = log->large;
    log->large = NULL;
    free(log->large_head);
    log->large_head = NULL;
    return job;
}

struct publish_job *shard_log_turn_end(struct shard *shard)
{
    if (!shard->log.pool)
        return NULL;
    seal_filling(shard); /* first: its records were told their block's number */
    return shard->log.large && !shard->log.is_failed ? large_step(shard) : NULL;
}

void shard_log_on_durable(struct shard *shard, const struct op *op)
{
    struct shard_log *log = &shard->log;
    CHECK(op->durable.durable_blocks >= log->durable_blocks);
    CHECK(op->durable.durable_blocks <= log->pool->sealed_count);
    log->durable_blocks = op->durable.durable_blocks;
    for (struct log_block *block = op->durable.blocks, *next; block; block = next) {
        next = block->next;
        ack_gate_set_sequence(&shard->gate, block->shard_block, block->first.sequence);
        log_block_pool_put(log->pool, block);
    }
    ack_gate_set_durable(&shard->gate, log->durable_blocks);
}

bool shard_log_is_quiet(const struct shard_log *log)
{
    if (!log->pool)
        return true;
    return !log->block && !log->large && (log->is_failed || log->durable_blocks == log->pool->sealed_count);
}
