#include "broker/durable/checkpoint_internal.h"
#include "broker/durable/checkpoint_session.h"

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
