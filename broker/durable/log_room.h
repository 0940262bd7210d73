/* When publishers are told that the log takes no more PUBLISH records, and when that it does again. Bytes are of the log, as
 * log_writer_room() counts them. For the log thread and for who stands for it in tests. Pure. */
#ifndef TIDEGATE_BROKER_DURABLE_LOG_ROOM_H
#define TIDEGATE_BROKER_DURABLE_LOG_ROOM_H

#include <stdbool.h>
#include <stdint.h>

/* What may be under way when publishers are told: all blocks of all shards; of a small log, an eighth of it. */
static inline uint64_t log_room_margin(uint16_t shard_count, uint64_t blocks_per_shard, uint64_t block_bytes_max, uint64_t log_bytes_max)
{
    uint64_t blocks = shard_count * blocks_per_shard * block_bytes_max, share = log_bytes_max / 8;
    return blocks < share ? blocks : share;
}

/* Again only when twice the margin is free, so that it does not flutter. */
static inline bool log_room_is_there(uint64_t room, uint64_t margin, bool was_there) { return room > (was_there ? margin : 2 * margin); }

#endif
