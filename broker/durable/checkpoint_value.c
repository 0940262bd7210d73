#include "broker/durable/checkpoint_value.h"

#include "common/hash.h"
#include "common/position_list.h"

enum err checkpoint_run_decode(uint64_t sequences_out[CHECKPOINT_RUN], uint32_t *count_out, uint64_t first, struct span value)
{
    size_t offset = 0;
    uint64_t sequence = 0;
    uint32_t count = 0;
    enum err err;
    while ((err = position_list_next(value, &offset, &sequence)) == ERR_OK) {
        if (count == CHECKPOINT_RUN || (count > 0 ? sequence <= sequences_out[count - 1] : sequence != first))
            return ERR_CORRUPT;
        sequences_out[count++] = sequence;
    }
    *count_out = count;
    return err == ERR_AGAIN && count > 0 ? ERR_OK : ERR_CORRUPT;
}

/* The last bits are free: they number the topics of one hash. */
struct topic_hash checkpoint_topic_hash(uint64_t random, struct span topic)
{
    XXH128_hash_t hash = XXH3_128bits_withSeed(topic.data, topic.size, random);
    return (struct topic_hash){hash.high64, hash.low64 & ~(uint64_t)(CHECKPOINT_RETAINED_SLOTS - 1)};
}

struct span checkpoint_retained_key(uint8_t key_out[16], struct topic_hash at) { return kv_key_u64_u64(key_out, at.high, at.low); }

enum err checkpoint_retained_decode(struct checkpoint_retained *retained_out, struct span value)
{
    if (value.size <= CHECKPOINT_RETAINED_HEAD || value.size > CHECKPOINT_RETAINED_HEAD + UINT16_MAX)
        return ERR_CORRUPT;
    retained_out->number = load_le64(value.data);
    retained_out->sequence = load_le64(value.data + 8);
    retained_out->expiry_ns = (int64_t)load_le64(value.data + 16);
    retained_out->content_bytes = load_le32(value.data + 24);
    retained_out->topic = span_of(value.data + CHECKPOINT_RETAINED_HEAD, value.size - CHECKPOINT_RETAINED_HEAD);
    return retained_out->content_bytes <= RECORD_SIZE_MAX && load_le32(value.data + 28) == 0 ? ERR_OK : ERR_CORRUPT;
}

/* All keys of the hash are looked at, for one that was deleted leaves a gap before those behind it. */
enum err checkpoint_find_retained(struct kv_txn *txn, struct checkpoint_retained *retained_out, struct topic_hash *at_out,
                                  struct topic_hash hash, struct span topic, struct counter *corrupt)
{
    uint8_t bytes[16];
    struct span key, value;
    bool is_taken[CHECKPOINT_RETAINED_SLOTS] = {false};
    enum err err = kv_seek(txn, KV_RETAINED, checkpoint_retained_key(bytes, hash), &key, &value);
    while (key.size == 16) {
        struct topic_hash at = {kv_key_read_u64(key.data), kv_key_read_u64(key.data + 8)};
        if (at.high != hash.high || at.low - hash.low >= CHECKPOINT_RETAINED_SLOTS)
            break;
        if (!err)
            err = checkpoint_retained_decode(retained_out, value);
        if (!err && span_equal(retained_out->topic, topic)) {
            *at_out = at;
            return ERR_OK;
        }
        if (err == ERR_CORRUPT)
            counter_inc(corrupt);
        is_taken[at.low - hash.low] = true;
        err = kv_next(txn, KV_RETAINED, &key, &value);
    }
    if (err && err != ERR_NOTFOUND && key.size == 0)
        return err;
    for (uint64_t slot = 0; slot < CHECKPOINT_RETAINED_SLOTS; slot++) {
        if (!is_taken[slot]) {
            *at_out = (struct topic_hash){hash.high, hash.low + slot};
            return ERR_NOTFOUND;
        }
    }
    return ERR_FULL;
}

static uint8_t *put_u64(uint8_t *at, uint64_t value)
{
    store_le64(at, value);
    return at + 8;
}

void checkpoint_state_encode(uint8_t value_out[CHECKPOINT_STATE_SIZE], const struct checkpoint_state *state)
{
    const struct log_cursor_value *cursor = &state->cursor;
    store_le32(value_out, cursor->position.epoch);
    uint8_t *at = put_u64(value_out + 4, state->broker_id);
    at = put_u64(at, cursor->position.sequence);
    at = put_u64(at, cursor->place.generation);
    at = put_u64(at, cursor->place.offset);
    at = put_u64(at, cursor->reopen.generation);
    at = put_u64(at, cursor->reopen.offset);
    at = put_u64(at, state->retained_number_max);
    at = put_u64(at, state->session_count);
    at = put_u64(at, state->retained_count);
    at = put_u64(at, (uint64_t)state->steady_ns);
    at = put_u64(at, (uint64_t)state->wall_ns);
    put_u64(at, state->body_count);
}

enum err checkpoint_state_decode(struct checkpoint_state *state_out, struct span value)
{
    if (value.size != CHECKPOINT_STATE_SIZE)
        return ERR_CORRUPT;
    uint64_t numbers[12];
    for (size_t i = 0; i < 12; i++)
        numbers[i] = load_le64(value.data + 4 + 8 * i);
    *state_out = (struct checkpoint_state){
        .broker_id = numbers[0],
        .cursor = {.broker_id = numbers[0],
                   .position = {load_le32(value.data), numbers[1]},
                   .place = {numbers[2], numbers[3]},
                   .reopen = {numbers[4], numbers[5]}},
        .retained_number_max = numbers[6],
        .session_count = numbers[7],
        .retained_count = numbers[8],
        .steady_ns = (int64_t)numbers[9],
        .wall_ns = (int64_t)numbers[10],
        .body_count = numbers[11],
    };
    return ERR_OK;
}
