/* A shard's end of the log: the block being filled, and the large record on its way.
 *
 * Records of a turn go into one block (more when they do not fit); the end of the turn seals it and hands it to the log actor. What a
 * record waits for is the number of its block in the shard's own count. Blocks are handed over in the order of sealing, and the block being
 * filled is sealed before any block of a large record, so the number given at the append is the number it gets.
 *
 * A record larger than a block's body becomes a group of blocks, at most LOG_GROUP_TURN_MAX bytes a turn; one at a time (a shard has one
 * group open at most). Bounds: the pool. Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_SHARD_LOG_H
#define TIDEGATE_BROKER_CORE_SHARD_LOG_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/core/shard_state.h"
#include "common/err.h"
#include "common/log_block.h"

void shard_log_init(struct shard_log *log, struct log_block_pool *pool);
void shard_log_deinit(struct shard_log *log);

/* Whether a record of `size` bytes can be appended now. */
bool shard_log_has_room(const struct shard_log *log, size_t size);
static inline bool shard_log_is_large(const struct shard_log *log, size_t size) { return size > log->pool->body_max; }
/* Hardly a record fits in before blocks come back. */
bool shard_log_is_starved(const struct shard_log *log);
/* Room for a record: record_size(), or what costs less to know and the block being filled has in any case. */
size_t shard_log_size(const struct shard_log *log, const struct record *rec);
/* Append; shard_log_has_room(shard_log_size()) said yes, it is not large. Returns the block's number: what it waits for. */
uint64_t shard_log_append(struct shard *shard, const struct record *rec, size_t size);
/* Records that are no PUBLISH (sessions, subscriptions, acknowledgements): they go on when PUBLISH has to wait (LOG 7), so a few blocks of
 * the pool and the last tenth of the log are theirs. size: record_size(). Always true without persistence. */
bool shard_log_has_control_room(const struct shard_log *log, size_t size);
/* A larger one would need more than half of the pool at a time: nobody makes it. With persistence. */
size_t shard_log_control_max(const struct shard_log *log);
/* Append one; there is room. Returns the block to wait for, 0 without persistence. One larger than a body becomes a group of blocks at
 * once. Memory shortage is fatal here: what the record says has happened already. */
uint64_t shard_log_control(struct shard *shard, const struct record *rec);
/* ACK: the session is done with the message. One behind the other of one session is one record. Room and return as above. */
uint64_t shard_log_ack(struct shard *shard, uint64_t session, uint64_t sequence);
/* Begin a large record; none is open. The job is taken, msg and all; shard_log_turn_end() gives it back. ERR_NOMEM: not taken.
 */
enum err shard_log_begin_large(struct shard *shard, const struct record *rec, struct publish_job *job) must_check;
/* The place of the record appended last among the records of its block, from 0. A large record is the one record of its last block. */
static inline uint32_t shard_log_last_index(const struct shard_log *log) { return log->block->record_count - 1; }
/* The newest block that has something in it: with it everything logged so far is durable. 0 without persistence. */
static inline uint64_t shard_log_newest(const struct shard_log *log)
{
    return log->pool ? log->pool->sealed_count + (log->block && log->block->body_size > 0) : 0;
}
/* The number of the block being filled (or the next one). */
static inline uint64_t shard_log_filling(const struct shard_log *log) { return log->pool ? log->pool->sealed_count + 1 : 0; }

/* End of the turn: seal and hand over what was logged, go on with the large record. Returns its job when it is complete, with the block
 * sealed last; else NULL. */
struct publish_job *shard_log_turn_end(struct shard *shard);
void shard_log_on_durable(struct shard *shard, const struct op *op);
/* Nothing logged that is not durable. */
bool shard_log_is_quiet(const struct shard_log *log);

#endif
