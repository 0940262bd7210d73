#include "broker/durable/checkpoint_internal.h"
#include "broker/durable/checkpoint_session.h"

#include "common/hash.h"
#include "common/position_list.h"

/* The row of RECIPIENTS in which the want stands if it stands anywhere, up to the message. */
static enum err find_wants(struct kv_txn *txn, struct checkpoint_wants *wants_out, uint64_t session, uint64_t sequence)
{
    uint8_t bytes[16];
    struct span key, value;
    enum err err = kv_floor(txn, KV_RECIPIENTS, kv_key_u64_u64(bytes, sequence, session), &key, &value);
    if (err)
        return err;
    if (key.size != 16)
        return ERR_CORRUPT;
    struct checkpoint_row row = checkpoint_row_read(key, value);
    while ((err = checkpoint_row_next_wants(&row, wants_out)) == ERR_OK && wants_out->sequence < sequence)
        ;
    return err == ERR_AGAIN || (!err && wants_out->sequence != sequence) ? ERR_NOTFOUND : err;
}

enum err checkpoint_find_want(struct kv_txn *txn, struct checkpoint_want *want_out, uint64_t session, uint64_t sequence)
{
    struct checkpoint_wants wants;
    enum err err = find_wants(txn, &wants, session, sequence);
    if (err)
        return err;
    struct record_recipient recipient;
    while ((err = record_recipient_next(&recipient, &wants.recipients)) == ERR_OK && recipient.session < session)
        ;
    if (err == ERR_AGAIN || (!err && recipient.session != session))
        return ERR_NOTFOUND;
    if (err)
        return err;
    *want_out = (struct checkpoint_want){
        .qos = recipient.qos, .options = recipient.options, .cost = checkpoint_cost(wants.content_bytes), .ids = recipient.ids};
    return ERR_OK;
}

enum err checkpoint_find_body(struct kv_txn *txn, struct record *rec_out, uint64_t sequence)
{
    uint8_t bytes[8];
    struct span key, value, body;
    enum err err = kv_floor(txn, KV_BODIES, kv_key_u64(bytes, sequence), &key, &value);
    if (err)
        return err;
    if (key.size != 8)
        return ERR_CORRUPT;
    struct checkpoint_row row = checkpoint_row_read(key, value);
    while ((err = checkpoint_row_next_body(&row, &body)) == ERR_OK && row.sequence < sequence)
        ;
    if (err == ERR_AGAIN || (!err && row.sequence != sequence))
        return ERR_NOTFOUND;
    if (!err)
        err = record_decode(rec_out, body);
    return err || rec_out->type != RECORD_PUBLISH ? ERR_CORRUPT : ERR_OK;
}

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

enum err checkpoint_find_run(struct kv_txn *txn, uint64_t sequences_out[CHECKPOINT_RUN], uint32_t *count_out, uint64_t session,
                             uint64_t from)
{
    uint8_t bytes[16];
    struct span key, value;
    *count_out = 0;
    enum err err = kv_seek(txn, KV_RUNS, kv_key_u64_u64(bytes, session, from), &key, &value);
    if (key.size == 16 && kv_key_read_u64(key.data) != session)
        return ERR_NOTFOUND;
    if (!err && key.size != 16)
        return ERR_CORRUPT;
    return err ? err : checkpoint_run_decode(sequences_out, count_out, kv_key_read_u64(key.data + 8), value);
}

/* --- retained ------------------------------------------------------------------------------------------------------------------------ */

/* The last bits are free: they number the topics of one hash. */
struct delta_topic_hash checkpoint_topic_hash(const struct checkpoint *checkpoint, struct span topic)
{
    XXH128_hash_t hash = XXH3_128bits_withSeed(topic.data, topic.size, checkpoint->random);
    return (struct delta_topic_hash){hash.high64, hash.low64 & ~(uint64_t)(CHECKPOINT_RETAINED_SLOTS - 1)};
}

struct span checkpoint_retained_key(uint8_t key_out[16], struct delta_topic_hash at) { return kv_key_u64_u64(key_out, at.high, at.low); }

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
enum err checkpoint_find_retained(struct kv_txn *txn, struct checkpoint_retained *retained_out, struct delta_topic_hash *at_out,
                                  struct delta_topic_hash hash, struct span topic, struct counter *corrupt)
{
    uint8_t bytes[16];
    struct span key, value;
    bool is_taken[CHECKPOINT_RETAINED_SLOTS] = {false};
    enum err err = kv_seek(txn, KV_RETAINED, checkpoint_retained_key(bytes, hash), &key, &value);
    while (key.size == 16) {
        struct delta_topic_hash at = {kv_key_read_u64(key.data), kv_key_read_u64(key.data + 8)};
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
            *at_out = (struct delta_topic_hash){hash.high, hash.low + slot};
            return ERR_NOTFOUND;
        }
    }
    return ERR_FULL;
}

/* --- structure ----------------------------------------------------------------------------------------------------------------------- */

enum err checkpoint_check_wants(struct span key, struct span value, uint64_t sequence, uint64_t session)
{
    struct checkpoint_row row = checkpoint_row_read(key, value);
    struct checkpoint_wants wants;
    uint64_t first = kv_key_read_u64(key.data + 8);
    enum err err;
    while ((err = checkpoint_row_next_wants(&row, &wants)) == ERR_OK) {
        struct record_recipient recipient;
        while ((err = record_recipient_next(&recipient, &wants.recipients)) == ERR_OK) {
            if (recipient.session == 0 || wants.sequence < sequence || (wants.sequence == sequence && recipient.session <= session) ||
                (wants.sequence == kv_key_read_u64(key.data) && recipient.session < first))
                return ERR_CORRUPT;
            sequence = wants.sequence;
            session = recipient.session;
        }
        if (err != ERR_AGAIN)
            return err;
    }
    return err == ERR_AGAIN ? ERR_OK : err;
}

static enum err check_bodies(struct span key, struct span value)
{
    struct checkpoint_row row = checkpoint_row_read(key, value);
    struct span body;
    struct record rec;
    enum err err;
    while ((err = checkpoint_row_next_body(&row, &body)) == ERR_OK)
        if (record_decode(&rec, body) != ERR_OK || rec.type != RECORD_PUBLISH)
            return ERR_CORRUPT;
    return err == ERR_AGAIN ? ERR_OK : err;
}

enum err checkpoint_check_entry(enum kv_tree tree, struct span key, struct span value)
{
    uint64_t sequences[CHECKPOINT_RUN];
    uint32_t count;
    struct session_value session;
    struct checkpoint_retained retained;
    struct checkpoint_state state;
    struct age_marks ages;
    size_t key_size = tree == KV_RECIPIENTS || tree == KV_RUNS || tree == KV_RETAINED ? 16 : 8;
    if (tree != KV_META && key.size != key_size)
        return ERR_CORRUPT;
    switch (tree) {
    case KV_SESSIONS:
        return session_value_decode(&session, value);
    case KV_RECIPIENTS:
        return checkpoint_check_wants(key, value, 0, 0);
    case KV_BODIES:
        return check_bodies(key, value);
    case KV_HOLDERS:
        return value.size == 4 && load_le32(value.data) > 1 ? ERR_OK : ERR_CORRUPT;
    case KV_RUNS:
        return checkpoint_run_decode(sequences, &count, kv_key_read_u64(key.data + 8), value);
    case KV_RETAINED:
        return checkpoint_retained_decode(&retained, value);
    case KV_META:
        if (span_equal(key, CHECKPOINT_KEY_AGES))
            return age_marks_decode(&ages, value);
        return span_equal(key, CHECKPOINT_KEY_STATE) ? checkpoint_state_decode(&state, value) : ERR_OK;
    case KV_TREE_COUNT:
        break;
    }
    return ERR_CORRUPT;
}

/* --- state --------------------------------------------------------------------------------------------------------------------------- */

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
