/* Life of the checkpoint, and records into the delta. What a record needs to know of the database (the session it changes, the retained
 * value it replaces) is looked up once in each delta, in a read transaction of its own that ends at once; only the commit changes the
 * database, so what was found stays true until then. */
#include "broker/durable/checkpoint_internal.h"

#include "common/check.h"
#include "common/position_list.h"

#include <stdlib.h>

/* To look something up. Other processes (a backup, an administrator's tools) may hold all slots of readers; a write transaction that
 * changes nothing needs none, and there is no other writer. */
enum err checkpoint_begin_look(struct checkpoint *checkpoint, struct kv_txn **txn_out)
{
    enum err err = kv_begin(checkpoint->kv, txn_out, false);
    return err == ERR_FULL ? kv_begin(checkpoint->kv, txn_out, true) : err;
}

/* --- life ---------------------------------------------------------------------------------------------------------------------------- */

/* A database without a format must be one without anything. */
static enum err open_new(struct checkpoint *checkpoint, struct errmsg *msg)
{
    struct kv_stats stats;
    enum err err = kv_get_stats(checkpoint->kv, &stats);
    if (err)
        return err_set(msg, err, "%s: %s", kv_name(checkpoint->kv), err_text(err));
    for (int tree = 0; tree < KV_TREE_COUNT; tree++)
        if (stats.entries[tree] > 0)
            return err_set(msg, ERR_CORRUPT, "%s: %s without a format", kv_name(checkpoint->kv), kv_tree_name((enum kv_tree)tree));
    checkpoint->is_new = true;
    return ERR_OK;
}

static enum err open_stored(struct checkpoint *checkpoint, struct kv_txn *txn, struct span format, struct errmsg *msg)
{
    if (format.size < 4)
        return err_set(msg, ERR_CORRUPT, "%s: its format says nothing", kv_name(checkpoint->kv));
    uint32_t number = load_le32(format.data);
    if (number != 0 && number != CHECKPOINT_FORMAT)
        return err_set(
            msg, ERR_VERSION,
            number > CHECKPOINT_FORMAT
                ? "%s: format %u, and this program knows %u: use the newer program"
                : "%s: format %u, from before the first release, and this program knows %u alone: let subscribers drain it with the "
                  "program that wrote it, or begin with another persistence_location",
            kv_name(checkpoint->kv), number, CHECKPOINT_FORMAT);
    if (number == 0 || format.size != CHECKPOINT_FORMAT_SIZE)
        return err_set(msg, ERR_CORRUPT, "%s: its format is none", kv_name(checkpoint->kv));
    checkpoint->random = load_le64(format.data + 8);
    struct span state;
    enum err err = kv_get(txn, KV_META, CHECKPOINT_KEY_STATE, &state);
    if (!err)
        err = checkpoint_state_decode(&checkpoint->state, state);
    if (err == ERR_NOTFOUND)
        err = ERR_CORRUPT;
    if (err)
        return err_set(msg, err, "%s: its position: %s", kv_name(checkpoint->kv), err_text(err));
    struct span ages;
    if (kv_get(txn, KV_META, CHECKPOINT_KEY_AGES, &ages) != ERR_OK || age_marks_decode(&checkpoint->ages, ages) != ERR_OK)
        checkpoint->ages = (struct age_marks){0}; /* none, or damaged: what is there is as old as from now on */
    return ERR_OK;
}

static enum err open_kv(struct checkpoint *checkpoint, struct errmsg *msg)
{
    struct kv_txn *txn;
    enum err err = checkpoint_begin_look(checkpoint, &txn);
    if (err)
        return err_set(msg, err, "%s: %s", kv_name(checkpoint->kv), err_text(err));
    struct span format;
    err = kv_get(txn, KV_META, CHECKPOINT_KEY_FORMAT, &format);
    if (!err)
        err = open_stored(checkpoint, txn, format, msg);
    else if (err != ERR_NOTFOUND)
        err = err_set(msg, err, "%s: its format: %s", kv_name(checkpoint->kv), err_text(err));
    else
        checkpoint->is_new = true;
    kv_abort(txn);
    return checkpoint->is_new ? open_new(checkpoint, msg) : err;
}

enum err checkpoint_open(struct checkpoint **checkpoint_out, struct kv *kv, uint64_t random, struct errmsg *msg)
{
    struct checkpoint *checkpoint = (struct checkpoint *)calloc(1, sizeof *checkpoint);
    if (!checkpoint)
        return err_set(msg, ERR_NOMEM, "%s: %s", kv_name(kv), err_text(ERR_NOMEM));
    checkpoint->kv = kv;
    checkpoint->random = random;
    buf_init(&checkpoint->scratch, KV_VALUE_MAX);
    checkpoint_row_init(&checkpoint->wants_row);
    checkpoint_row_init(&checkpoint->body_row);
    enum err err = open_kv(checkpoint, msg);
    if (err) {
        checkpoint_free(checkpoint);
        return err;
    }
    uint64_t next = checkpoint->state.cursor.position.sequence;
    checkpoint->applied = next > 0 ? next - 1 : 0;
    checkpoint->retained_number_max = checkpoint->state.retained_number_max;
    *checkpoint_out = checkpoint;
    return ERR_OK;
}

void checkpoint_free(struct checkpoint *checkpoint)
{
    if (!checkpoint)
        return;
    delta_free(&checkpoint->delta);
    buf_deinit(&checkpoint->scratch);
    checkpoint_row_deinit(&checkpoint->wants_row);
    checkpoint_row_deinit(&checkpoint->body_row);
    free(checkpoint->released);
    free(checkpoint->removals);
    free(checkpoint->jobs);
    free(checkpoint->wants);
    free(checkpoint);
}

struct checkpoint_state checkpoint_state(const struct checkpoint *checkpoint) { return checkpoint->state; }
struct checkpoint_stats *checkpoint_get_stats(struct checkpoint *checkpoint) { return &checkpoint->stats; }
void checkpoint_set_time(struct checkpoint *checkpoint, int64_t now_mono_ns) { checkpoint->now_ns = now_mono_ns; }

void checkpoint_set_clocks(struct checkpoint *checkpoint, int64_t now_steady_ns, int64_t now_wall_ns)
{
    checkpoint->state.steady_ns = now_steady_ns;
    checkpoint->state.wall_ns = now_wall_ns;
    checkpoint->are_clocks_told = true;
}

void checkpoint_set_age_max(struct checkpoint *checkpoint, int64_t age_max_ns) { checkpoint->age_max_ns = age_max_ns; }

uint64_t checkpoint_aged(struct checkpoint *checkpoint, int64_t now_steady_ns)
{
    return checkpoint->age_max_ns > 0 ? age_marks_reach(&checkpoint->ages, now_steady_ns - checkpoint->age_max_ns) : 0;
}
size_t checkpoint_delta_bytes(const struct checkpoint *checkpoint) { return checkpoint->delta.bytes; }
void checkpoint_trim(struct checkpoint *checkpoint) { delta_trim(&checkpoint->delta); }
size_t checkpoint_spare_bytes(const struct checkpoint *checkpoint) { return delta_spare_bytes(&checkpoint->delta); }

/* Not while others hold all slots of readers. */
enum err checkpoint_used_bytes(const struct checkpoint *checkpoint, uint64_t *used_bytes_out)
{
    struct kv_stats stats;
    enum err err = kv_get_stats(checkpoint->kv, &stats);
    *used_bytes_out = err ? 0 : stats.used_bytes;
    return err;
}

bool checkpoint_has_more(const struct checkpoint *checkpoint) { return checkpoint->job_count > 0; }
void checkpoint_forget_removals(struct checkpoint *checkpoint, uint64_t retained_number)
{
    if (checkpoint->forget_below < retained_number)
        checkpoint->forget_below = retained_number;
}

static void refresh_stats(struct checkpoint *checkpoint, bool was_empty)
{
    if (was_empty)
        checkpoint->oldest_ns = checkpoint->now_ns;
    queue_stats_set(&checkpoint->stats.delta, delta_message_count(&checkpoint->delta), checkpoint->delta.bytes, checkpoint->oldest_ns);
}

/* --- sessions ------------------------------------------------------------------------------------------------------------------------ */

/* The session as the delta has it, loaded if it was not. */
static enum err touch_session(struct checkpoint *checkpoint, struct stored_session **session_out, uint64_t number)
{
    struct delta *delta = &checkpoint->delta;
    *session_out = delta_find_session(delta, number);
    if (*session_out)
        return ERR_OK;
    struct kv_txn *txn;
    enum err err = checkpoint_begin_look(checkpoint, &txn);
    if (err)
        return err;
    uint8_t key[8];
    struct span value;
    struct stored_session *session = NULL;
    err = kv_get(txn, KV_SESSIONS, kv_key_u64(key, number), &value);
    if (!err || err == ERR_NOTFOUND || err == ERR_CORRUPT) {
        enum err added = delta_add_session(delta, &session, number);
        if (added)
            err = added;
        else if (!err)
            err = stored_session_load(session, value);
    }
    kv_abort(txn);
    if (session && err == ERR_CORRUPT) {
        /* It goes on without what the value said; a record SESSION makes it anew. */
        counter_inc(&checkpoint->stats.corrupt);
        session->is_stored = true;
        err = ERR_OK;
    }
    if (!session || (err && err != ERR_NOTFOUND))
        return err;
    delta_count_session(delta, session, 0);
    *session_out = session;
    return ERR_OK;
}

static enum err change_session(struct stored_session *session, const struct record *rec)
{
    switch ((enum record_type)rec->type) {
    case RECORD_SESSION:
        return session->is_deleted ? ERR_OK : stored_session_set(session, rec);
    case RECORD_SUBSCRIPTION:
        return stored_session_subscribe(session, rec);
    case RECORD_UNSUBSCRIBE:
        return stored_session_unsubscribe(session, rec->topic);
    case RECORD_WILL:
        return stored_session_set_will(session, rec);
    case RECORD_WILL_DELETE:
        return session->will ? stored_session_set_will(session, NULL) : ERR_OK;
    case RECORD_PUBLISH: /* its identifier */
        return stored_session_open(session, rec->packet_id);
    case RECORD_RELEASED:
        stored_session_release(session, rec->packet_id);
        return ERR_OK;
    case RECORD_SENT:
        return stored_session_sent(session, rec->subject_sequence, rec->packet_id);
    case RECORD_RECEIVED:
        stored_session_received(session, rec->packet_id);
        return ERR_OK;
    case RECORD_ACK:
        stored_session_complete(session, rec->packet_id);
        return ERR_OK;
    case RECORD_RETAINED_GIVEN:
        return stored_session_set_given(session);
    case RECORD_PARTITIONS:
    case RECORD_SESSION_DELETE:
    case RECORD_DROP:
    case RECORD_BEGUN:
    case RECORD_DEVICE:
    case RECORD_TYPE_MUST_UNDERSTAND:
        break;
    }
    UNREACHABLE();
}

/* What the record does to session `number`. */
static enum err apply_session(struct checkpoint *checkpoint, uint64_t number, const struct record *rec)
{
    struct stored_session *session;
    enum err err = touch_session(checkpoint, &session, number);
    if (err || (!session->exists && rec->type != RECORD_SESSION))
        return err;
    size_t before = session->bytes;
    err = change_session(session, rec);
    delta_count_session(&checkpoint->delta, session, before);
    return err;
}

static enum err apply_delete(struct checkpoint *checkpoint, const struct record *rec)
{
    struct stored_session *session;
    enum err err = touch_session(checkpoint, &session, rec->session);
    if (err || session->is_deleted)
        return err;
    size_t before = session->bytes;
    stored_session_delete(session);
    delta_count_session(&checkpoint->delta, session, before);
    checkpoint->delta.deleted_count++;
    return ERR_OK;
}

/* --- wants --------------------------------------------------------------------------------------------------------------------------- */

static enum err end_want(struct checkpoint *checkpoint, uint64_t sequence, uint64_t session)
{
    counter_inc(&checkpoint->stats.applied_acks);
    if (sequence < checkpoint->state.cursor.position.sequence)
        return delta_put_ack(&checkpoint->delta, sequence, session);
    if (delta_end_want(&checkpoint->delta, sequence, session))
        counter_inc(&checkpoint->stats.never_written);
    return ERR_OK;
}

/* ACK, DROP, RECEIVED: the messages that they name. */
static enum err end_wants(struct checkpoint *checkpoint, const struct record *rec)
{
    enum err err = rec->subject_sequence ? end_want(checkpoint, rec->subject_sequence, rec->session) : ERR_OK;
    size_t offset = 0;
    uint64_t sequence = 0;
    while (!err && position_list_next(rec->positions, &offset, &sequence) == ERR_OK)
        err = end_want(checkpoint, sequence, rec->session);
    return err;
}

static int compare_wants(const void *a, const void *b)
{
    const struct delta_want *x = (const struct delta_want *)a, *y = (const struct delta_want *)b;
    if (x->session != y->session)
        return x->session < y->session ? -1 : 1;
    return (x->at > y->at) - (x->at < y->at);
}

static uint8_t want_qos(const struct record *rec, const struct delta_want *want)
{
    struct record_recipient recipient = {0};
    struct span rest = span_of(rec->recipients.data + want->at, want->size);
    enum err err = record_recipient_next(&recipient, &rest);
    CHECK(err == ERR_OK);
    return recipient.qos;
}

/* Ascending, each session once: at the greatest QoS, of equals the first. */
static uint32_t sort_wants(const struct record *rec, struct delta_want *wants, uint32_t count, bool is_sorted)
{
    if (is_sorted)
        return count;
    qsort(wants, count, sizeof *wants, compare_wants);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (kept == 0 || wants[kept - 1].session != wants[i].session)
            wants[kept++] = wants[i];
        else if (want_qos(rec, &wants[i]) > want_qos(rec, &wants[kept - 1]))
            wants[kept - 1] = wants[i];
    }
    return kept;
}

/* The recipients of a PUBLISH into checkpoint->wants, in the record's order. */
static enum err read_wants(struct checkpoint *checkpoint, const struct record *rec, uint32_t *count_out, bool *is_sorted_out)
{
    struct span rest = rec->recipients;
    struct record_recipient recipient;
    size_t count = 0;
    enum err err;
    *is_sorted_out = true;
    for (size_t at = 0; (err = record_recipient_next(&recipient, &rest)) == ERR_OK; at = rec->recipients.size - rest.size) {
        struct span ids = recipient.ids;
        uint32_t id;
        while ((err = record_id_next(&id, &ids)) == ERR_OK)
            ;
        if (err != ERR_AGAIN || recipient.session == 0)
            return ERR_CORRUPT;
        err = delta_grow((void **)&checkpoint->wants, &checkpoint->want_capacity, count, sizeof *checkpoint->wants);
        if (err)
            return err;
        *is_sorted_out = *is_sorted_out && (count == 0 || checkpoint->wants[count - 1].session < recipient.session);
        size_t size = rec->recipients.size - rest.size - at;
        checkpoint->wants[count++] = (struct delta_want){recipient.session, (uint32_t)at, (uint32_t)size};
    }
    *count_out = (uint32_t)count;
    return err == ERR_AGAIN ? ERR_OK : err;
}

/* Sessions that have ended by what is in this delta get nothing. */
static uint32_t drop_deleted(struct checkpoint *checkpoint, uint32_t count)
{
    if (checkpoint->delta.deleted_count == 0)
        return count;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct stored_session *session = delta_find_session(&checkpoint->delta, checkpoint->wants[i].session);
        if (!session || !session->is_deleted)
            checkpoint->wants[kept++] = checkpoint->wants[i];
    }
    counter_add(&checkpoint->stats.dropped_deleted, count - kept);
    return kept;
}

/* --- retained ------------------------------------------------------------------------------------------------------------------------ */

/* The topic as the delta has it, looked up if it was not. */
static enum err touch_retained(struct checkpoint *checkpoint, struct delta_retained **retained_out, struct span topic)
{
    struct topic_hash hash = checkpoint_topic_hash(checkpoint->random, topic);
    *retained_out = delta_find_retained(&checkpoint->delta, hash, topic);
    if (*retained_out)
        return ERR_OK;
    struct kv_txn *txn;
    enum err err = checkpoint_begin_look(checkpoint, &txn);
    if (err)
        return err;
    struct checkpoint_retained stored;
    struct topic_hash at;
    err = checkpoint_find_retained(txn, &stored, &at, hash, topic, &checkpoint->stats.corrupt);
    kv_abort(txn);
    if (err && err != ERR_NOTFOUND && err != ERR_FULL)
        return err;
    bool is_stored = !err;
    err = delta_add_retained(&checkpoint->delta, retained_out, hash, topic);
    if (!err && is_stored) {
        struct delta_retained *retained = *retained_out;
        retained->is_stored = true;
        retained->at = at;
        retained->number = stored.number;
        retained->sequence = retained->stored_sequence = stored.sequence;
    }
    return err;
}

/* *is_retained_out: the message is the topic's value now. */
static enum err apply_retained(struct checkpoint *checkpoint, const struct record *rec, uint64_t sequence, bool *is_retained_out)
{
    *is_retained_out = false;
    struct delta_retained *retained;
    enum err err = touch_retained(checkpoint, &retained, rec->topic);
    if (err)
        return err;
    if (checkpoint->retained_number_max < rec->retained_number)
        checkpoint->retained_number_max = rec->retained_number;
    if (rec->retained_number <= retained->number)
        return ERR_OK; /* LOG 12 */
    if (retained->sequence != 0 && retained->is_changed)
        delta_end_retained(&checkpoint->delta, retained->sequence);
    *is_retained_out = rec->payload.size > 0;
    retained->number = rec->retained_number;
    retained->sequence = *is_retained_out ? sequence : 0;
    retained->expiry_ns = rec->expiry_ns;
    retained->content_bytes = (uint32_t)(rec->topic.size + rec->properties.size + rec->payload.size);
    retained->is_changed = true;
    return ERR_OK;
}

/* --- records ------------------------------------------------------------------------------------------------------------------------- */

static struct record body_of(const struct record *rec)
{
    struct record body = {
        .type = RECORD_PUBLISH,
        .qos = rec->qos,
        .retain = rec->retain,
        .topic = rec->topic,
        .payload = rec->payload,
        .properties = rec->properties,
        .received_ns = rec->received_ns,
        .expiry_ns = rec->expiry_ns,
        .retained_number = rec->retained_number,
        .options = rec->options,
        .session = rec->session,
        .has_correlation = rec->has_correlation,
    };
    memcpy(body.correlation, rec->correlation, sizeof body.correlation);
    return body;
}

/* Whether body_of() would leave out nothing but client id, rule, device and recipients. */
static bool is_body(const struct record *rec)
{
    return !rec->dup && rec->packet_id == 0 && rec->will_session == 0 && rec->rule_index == 0 && rec->partition == 0 &&
           rec->partition_count == 0 && rec->codec == 0 && rec->shared_groups.size == 0 && rec->subject_epoch == 0 &&
           rec->subject_sequence == 0 && rec->positions.size == 0 && rec->user_name.size == 0;
}

/* bytes: of which rec was decoded, or none. */
static enum err put_message(struct checkpoint *checkpoint, const struct record *rec, struct span bytes, uint64_t sequence,
                            uint32_t want_count, bool is_retained)
{
    struct record body_rec;
    struct delta_body body = {0};
    struct span fields;
    if (bytes.size > 0 && is_body(rec) && record_find_parties(&fields, bytes, rec)) {
        const uint8_t *behind = fields.data + fields.size, *end = bytes.data + bytes.size;
        body.parts[0] = span_of(bytes.data, (size_t)(fields.data - bytes.data));
        body.parts[1] = span_of(behind, (size_t)(end - behind));
    } else {
        body_rec = body_of(rec);
        body.rec = &body_rec;
    }
    counter_inc(&checkpoint->stats.applied_puts);
    return delta_put_message(&checkpoint->delta, sequence, rec, &body, checkpoint->wants, want_count, is_retained);
}

/* A removal in the place of that value. One that was replaced meanwhile is gone already: *is_removed_out tells. */
static enum err end_retained(struct checkpoint *checkpoint, struct span topic, uint64_t number, bool *is_removed_out)
{
    struct delta_retained *retained;
    enum err err = touch_retained(checkpoint, &retained, topic);
    *is_removed_out = !err && retained->number == number && retained->sequence != 0;
    if (!*is_removed_out)
        return err;
    if (retained->is_changed)
        delta_end_retained(&checkpoint->delta, retained->sequence);
    retained->sequence = 0;
    retained->is_changed = true;
    return ERR_OK;
}

static enum err apply_publish(struct checkpoint *checkpoint, const struct record *rec, struct span bytes, uint64_t sequence)
{
    uint32_t want_count;
    bool is_sorted, is_retained = false;
    enum err err = read_wants(checkpoint, rec, &want_count, &is_sorted);
    if (!err && rec->retained_number != 0)
        err = apply_retained(checkpoint, rec, sequence, &is_retained);
    if (err)
        return err;
    want_count = drop_deleted(checkpoint, sort_wants(rec, checkpoint->wants, want_count, is_sorted));
    if (want_count > 0 || is_retained)
        err = put_message(checkpoint, rec, bytes, sequence, want_count, is_retained);
    if (!err && rec->qos == 2 && rec->packet_id != 0 && rec->session != 0)
        err = apply_session(checkpoint, rec->session, rec);
    if (!err && rec->will_session != 0)
        err = apply_session(checkpoint, rec->will_session, &(struct record){.type = RECORD_WILL_DELETE});
    return err;
}

static bool are_positions_valid(struct span positions)
{
    size_t offset = 0;
    uint64_t sequence = 0;
    enum err err;
    while ((err = position_list_next(positions, &offset, &sequence)) == ERR_OK)
        ;
    return err == ERR_AGAIN;
}

/* Whether a broker writes such. Recipients are looked at when they are read. */
static bool is_valid(const struct record *rec)
{
    switch ((enum record_type)rec->type) {
    case RECORD_PUBLISH:
        return rec->topic.size > 0 && rec->topic.size <= UINT16_MAX;
    case RECORD_SUBSCRIPTION:
    case RECORD_UNSUBSCRIBE:
    case RECORD_WILL:
        return rec->session != 0 && rec->topic.size > 0 && rec->topic.size <= UINT16_MAX;
    case RECORD_SESSION:
    case RECORD_SESSION_DELETE:
    case RECORD_WILL_DELETE:
    case RECORD_RETAINED_GIVEN:
        return rec->session != 0;
    case RECORD_ACK:
    case RECORD_DROP:
        return rec->session != 0 && are_positions_valid(rec->positions);
    case RECORD_SENT: /* a message without a name, a retained one that was not durable yet: the identifier is in use all the same */
        return rec->session != 0 && rec->packet_id != 0;
    case RECORD_RECEIVED:
        return rec->session != 0 && rec->packet_id != 0 && are_positions_valid(rec->positions);
    case RECORD_RELEASED:
        return rec->session != 0 && rec->packet_id != 0;
    case RECORD_PARTITIONS:
    case RECORD_BEGUN:
    case RECORD_DEVICE:
    case RECORD_TYPE_MUST_UNDERSTAND:
        return true;
    }
    return true;
}

static enum err apply(struct checkpoint *checkpoint, const struct record *rec, struct span bytes, uint64_t sequence)
{
    enum err err = ERR_OK;
    switch ((enum record_type)rec->type) {
    case RECORD_PUBLISH:
        return apply_publish(checkpoint, rec, bytes, sequence);
    case RECORD_SESSION_DELETE:
        return apply_delete(checkpoint, rec);
    case RECORD_SESSION:
    case RECORD_SUBSCRIPTION:
    case RECORD_UNSUBSCRIBE:
    case RECORD_WILL_DELETE:
    case RECORD_RELEASED:
    case RECORD_SENT:
    case RECORD_RETAINED_GIVEN:
        return apply_session(checkpoint, rec->session, rec);
    case RECORD_WILL:
        err = apply_session(checkpoint, rec->session, rec);
        if (!err && rec->will_session != 0)
            err = apply_session(checkpoint, rec->will_session, &(struct record){.type = RECORD_WILL_DELETE});
        return err;
    case RECORD_ACK:
    case RECORD_RECEIVED:
        if (rec->packet_id != 0)
            err = apply_session(checkpoint, rec->session, rec);
        return err ? err : end_wants(checkpoint, rec);
    case RECORD_DROP:
        return end_wants(checkpoint, rec);
    case RECORD_PARTITIONS:
    case RECORD_BEGUN:
    case RECORD_DEVICE:
    case RECORD_TYPE_MUST_UNDERSTAND:
        return ERR_OK;
    }
    return ERR_OK; /* of a later version, that may be passed over */
}

enum err checkpoint_apply(struct checkpoint *checkpoint, const struct record *rec, uint64_t sequence)
{
    return checkpoint_apply_encoded(checkpoint, rec, span_of(NULL, 0), sequence);
}

enum err checkpoint_apply_encoded(struct checkpoint *checkpoint, const struct record *rec, struct span bytes, uint64_t sequence)
{
    if (sequence <= checkpoint->applied)
        return ERR_OK;
    if (!is_valid(rec))
        return ERR_CORRUPT;
    if (rec->type == RECORD_PUBLISH && rec->received_ns > checkpoint->received_max_ns)
        checkpoint->received_max_ns = rec->received_ns;
    bool was_empty = delta_is_empty(&checkpoint->delta);
    enum err err = apply(checkpoint, rec, bytes, sequence);
    if (err)
        return err;
    checkpoint->applied = sequence;
    counter_inc(&checkpoint->stats.applied);
    refresh_stats(checkpoint, was_empty);
    return ERR_OK;
}

/* --- runs ---------------------------------------------------------------------------------------------------------------------------- */

/* Without a copy of it in the delta. */
static enum err does_session_exist(struct checkpoint *checkpoint, uint64_t number, bool *exists_out)
{
    const struct stored_session *session = delta_find_session(&checkpoint->delta, number);
    if (session) {
        *exists_out = session->exists;
        return ERR_OK;
    }
    *exists_out = number == checkpoint->run_session;
    if (*exists_out)
        return ERR_OK;
    struct kv_txn *txn;
    enum err err = checkpoint_begin_look(checkpoint, &txn);
    if (err)
        return err;
    uint8_t key[8];
    struct span value;
    err = kv_get(txn, KV_SESSIONS, kv_key_u64(key, number), &value);
    kv_abort(txn);
    *exists_out = err != ERR_NOTFOUND;
    checkpoint->run_session = !err ? number : 0; /* a long queue is many runs */
    return err == ERR_NOTFOUND || err == ERR_CORRUPT ? ERR_OK : err;
}

enum err checkpoint_put_run(struct checkpoint *checkpoint, uint64_t session, const uint64_t *sequences, uint32_t count)
{
    CHECK(count >= 1);
    CHECK(count <= CHECKPOINT_RUN);
    bool exists, was_empty = delta_is_empty(&checkpoint->delta);
    enum err err = does_session_exist(checkpoint, session, &exists);
    if (err)
        return err;
    uint8_t positions[CHECKPOINT_RUN * VARINT_SIZE_MAX];
    size_t size = 0;
    uint64_t last = 0;
    for (uint32_t i = 0; i < count; i++) {
        CHECK(sequences[i] > last);
        if (exists)
            size += position_list_put(positions + size, &last, sequences[i]);
        else
            err = end_want(checkpoint, sequences[i], session);
        if (err)
            return err;
    }
    if (exists)
        err = delta_put_run(&checkpoint->delta, session, sequences[0], span_of(positions, size));
    refresh_stats(checkpoint, was_empty);
    return err;
}

enum err checkpoint_drop_run(struct checkpoint *checkpoint, uint64_t session, uint64_t first_sequence)
{
    bool was_empty = delta_is_empty(&checkpoint->delta);
    enum err err = delta_put_run(&checkpoint->delta, session, first_sequence, span_of(NULL, 0));
    refresh_stats(checkpoint, was_empty);
    return err;
}

/* --- expiry -------------------------------------------------------------------------------------------------------------------------- */

enum err checkpoint_expire_retained(struct checkpoint *checkpoint, struct span topic, uint64_t number)
{
    bool is_removed, was_empty = delta_is_empty(&checkpoint->delta);
    enum err err = end_retained(checkpoint, topic, number, &is_removed);
    if (!err && is_removed)
        counter_inc(&checkpoint->stats.expired);
    refresh_stats(checkpoint, was_empty);
    return err;
}
