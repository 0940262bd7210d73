#include "broker/core/shard_config.h"

#include "common/hash.h"

actor_id shard_home(uint64_t hash_key, uint16_t shard_count, struct span client_id)
{
    return (actor_id)hash_to_index(hash_span(client_id, hash_key), shard_count);
}
