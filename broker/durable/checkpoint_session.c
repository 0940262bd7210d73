#include "broker/durable/checkpoint_session.h"

#include "common/check.h"
#include "common/hash.h"

#include <stdlib.h>

#define FILTER_HASH_SEED 0x7469646567617465u /* the table is rebuilt with each delta: nobody can wait for collisions in it */
#define SLOTS_MIN 16u
#define SENT_IDS_FROM 64u /* outgoing QoS 2 from which on sent_ids pays */
#define SENT_IDS_WORDS 1024u

struct owned_record {
    struct owned_record *next;
    uint8_t bytes[];
};

/* --- value --------------------------------------------------------------------------------------------------------------------------- */

/* Where a record stands in a value; the order of the numbers is the order in the value. */
enum part { PART_HEAD, PART_WILL, PART_SUBSCRIPTIONS, PART_INBOUND, PART_SENT, PART_NONE };

static enum part part_of(const struct record *rec)
{
    switch (rec->type) {
    case RECORD_SESSION:
        return PART_HEAD;
    case RECORD_WILL:
        return PART_WILL;
    case RECORD_SUBSCRIPTION:
        return rec->topic.size ? PART_SUBSCRIPTIONS : PART_NONE;
    case RECORD_PUBLISH:
        return rec->packet_id ? PART_INBOUND : PART_NONE;
    case RECORD_SENT:
    case RECORD_RECEIVED:
        return rec->packet_id ? PART_SENT : PART_NONE;
    default:
        return PART_NONE;
    }
}

/* `part` grows by `record`, which follows it at once in the value. */
static void extend(struct span *part, struct span record, uint32_t *count)
{
    *part = part->size ? span_of(part->data, part->size + record.size) : record;
    ++*count;
}

enum err session_value_decode(struct session_value *value_out, struct span bytes)
{
    *value_out = (struct session_value){0};
    enum part last = PART_NONE;
    struct span record;
    uint32_t will_count = 0;
    enum err err;
    while ((err = record_next(&record, &bytes)) == ERR_OK) {
        struct record rec;
        if (record_decode(&rec, record) != ERR_OK)
            return ERR_CORRUPT;
        enum part part = part_of(&rec);
        bool is_first = last == PART_NONE;
        if (part == PART_NONE || is_first != (part == PART_HEAD) || (!is_first && part < last))
            return ERR_CORRUPT;
        last = part;
        if (part == PART_HEAD)
            value_out->head = rec;
        else if (part == PART_WILL)
            extend(&value_out->will, record, &will_count);
        else if (part == PART_SUBSCRIPTIONS)
            extend(&value_out->subscriptions, record, &value_out->subscription_count);
        else if (part == PART_INBOUND)
            extend(&value_out->inbound, record, &value_out->inbound_count);
        else
            extend(&value_out->sent, record, &value_out->sent_count);
    }
    return err == ERR_AGAIN && last != PART_NONE && will_count <= 1 ? ERR_OK : ERR_CORRUPT;
}

/* The next record of bytes that session_value_decode() has seen. */
static bool next_record(struct record *rec_out, struct span *bytes)
{
    struct span record;
    return record_next(&record, bytes) == ERR_OK && record_decode(rec_out, record) == ERR_OK;
}

bool session_value_next_inbound(struct span *inbound, uint16_t *packet_id_out)
{
    struct record rec;
    if (!next_record(&rec, inbound))
        return false;
    *packet_id_out = rec.packet_id;
    return true;
}

bool session_value_next_sent(struct span *sent, struct checkpoint_sent *sent_out)
{
    struct record rec;
    if (!next_record(&rec, sent))
        return false;
    *sent_out = (struct checkpoint_sent){rec.subject_sequence, rec.packet_id, rec.type == RECORD_RECEIVED};
    return true;
}

/* --- life ---------------------------------------------------------------------------------------------------------------------------- */

static void free_subscriptions(struct stored_session *session)
{
    free(session->loaded);
    free(session->subs);
    free(session->slots);
    while (session->owned) {
        struct owned_record *next = session->owned->next;
        free(session->owned);
        session->owned = next;
    }
}

void stored_session_clear(struct stored_session *session)
{
    free(session->head);
    free(session->will);
    free_subscriptions(session);
    free(session->inbound);
    free(session->sent);
    free(session->sent_ids);
    *session = (struct stored_session){
        .next = session->next,
        .later = session->later,
        .number = session->number,
        .is_stored = session->is_stored,
        .is_changed = session->is_changed,
        .is_deleted = session->is_deleted,
    };
}

/* The record in a block of its own; NULL: no memory. */
static uint8_t *encode(const struct record *rec, uint32_t *size_out)
{
    size_t size = record_size(rec);
    uint8_t *bytes = (uint8_t *)malloc(size);
    if (bytes)
        *size_out = (uint32_t)record_encode(bytes, rec);
    return bytes;
}

/* Room for `count` items. */
static enum err reserve(struct stored_session *session, void **items, uint32_t *capacity, uint32_t count, size_t item_size)
{
    if (count <= *capacity)
        return ERR_OK;
    uint32_t wanted = *capacity ? *capacity * 2 : 4;
    if (wanted < count)
        wanted = count;
    void *grown = realloc(*items, wanted * item_size);
    if (!grown)
        return ERR_NOMEM;
    session->bytes += (wanted - *capacity) * item_size;
    *items = grown;
    *capacity = wanted;
    return ERR_OK;
}

static enum err load_parts(struct stored_session *session, struct session_value *value)
{
    if (value->will.size) {
        session->will = (uint8_t *)malloc(value->will.size);
        if (!session->will)
            return ERR_NOMEM;
        memcpy(session->will, value->will.data, value->will.size);
        session->will_size = (uint32_t)value->will.size;
    }
    if (value->subscriptions.size) {
        session->loaded = (uint8_t *)malloc(value->subscriptions.size);
        if (!session->loaded)
            return ERR_NOMEM;
        memcpy(session->loaded, value->subscriptions.data, value->subscriptions.size);
        session->subscriptions = span_of(session->loaded, value->subscriptions.size);
    }
    session->bytes += value->will.size + value->subscriptions.size;
    uint16_t packet_id;
    enum err err = ERR_OK;
    while (!err && session_value_next_inbound(&value->inbound, &packet_id))
        err = stored_session_open(session, packet_id);
    struct checkpoint_sent sent;
    while (!err && session_value_next_sent(&value->sent, &sent)) {
        err = stored_session_sent(session, sent.sequence, sent.packet_id);
        if (!err && sent.is_received)
            stored_session_received(session, sent.packet_id);
    }
    return err;
}

enum err stored_session_load(struct stored_session *session, struct span bytes)
{
    struct session_value value;
    enum err err = session_value_decode(&value, bytes);
    session->is_stored = true;
    if (!err)
        err = stored_session_set(session, &value.head);
    if (!err)
        err = load_parts(session, &value);
    session->is_changed = false;
    if (err)
        stored_session_clear(session);
    return err;
}

enum err stored_session_set(struct stored_session *session, const struct record *rec)
{
    struct record head = {.type = RECORD_SESSION, .client_id = rec->client_id, .received_ns = rec->received_ns, .options = rec->options};
    uint32_t size;
    uint8_t *bytes = encode(&head, &size);
    if (!bytes)
        return ERR_NOMEM;
    session->bytes = session->bytes - session->head_size + size;
    free(session->head);
    session->head = bytes;
    session->head_size = size;
    session->exists = session->is_changed = true;
    return rec->options & RECORD_SESSION_CONNECTED ? stored_session_set_will(session, NULL) : ERR_OK;
}

enum err stored_session_set_will(struct stored_session *session, const struct record *rec)
{
    uint32_t size = 0;
    uint8_t *bytes = NULL;
    if (rec) {
        struct record will = *rec;
        will.session = 0;
        bytes = encode(&will, &size);
        if (!bytes)
            return ERR_NOMEM;
    }
    session->bytes = session->bytes - session->will_size + size;
    free(session->will);
    session->will = bytes;
    session->will_size = size;
    session->is_changed = true;
    return ERR_OK;
}

void stored_session_delete(struct stored_session *session)
{
    stored_session_clear(session);
    session->is_changed = session->is_deleted = true;
}

/* --- subscriptions ------------------------------------------------------------------------------------------------------------------- */

/* The filter's slot: its own, or the empty one where it belongs. */
static uint32_t *find_slot(const struct stored_session *session, uint64_t hash, struct span filter)
{
    uint32_t mask = session->slot_count - 1;
    for (uint32_t at = (uint32_t)hash & mask;; at = (at + 1) & mask) {
        uint32_t *slot = &session->slots[at];
        if (*slot == 0)
            return slot;
        const struct stored_subscription *sub = &session->subs[*slot - 1];
        if (sub->hash == hash && span_equal(sub->filter, filter))
            return slot;
    }
}

/* Slots for at least `count` subscriptions. */
static enum err make_slots(struct stored_session *session, uint32_t count)
{
    uint32_t wanted = session->slot_count ? session->slot_count : SLOTS_MIN;
    while (wanted / 2 < count)
        wanted *= 2;
    if (wanted == session->slot_count)
        return ERR_OK;
    uint32_t *slots = (uint32_t *)calloc(wanted, sizeof *slots);
    if (!slots)
        return ERR_NOMEM;
    session->bytes += (wanted - session->slot_count) * sizeof *slots;
    free(session->slots);
    session->slots = slots;
    session->slot_count = wanted;
    for (uint32_t i = 0; i < session->sub_count; i++)
        *find_slot(session, session->subs[i].hash, session->subs[i].filter) = i + 1;
    return ERR_OK;
}

/* The record is the filter's from now on, in place of the one before; an empty record ends it. */
static enum err put_subscription(struct stored_session *session, struct span filter, struct span record)
{
    uint64_t hash = hash_span(filter, FILTER_HASH_SEED);
    uint32_t *slot = find_slot(session, hash, filter);
    if (*slot) {
        struct stored_subscription *sub = &session->subs[*slot - 1];
        sub->record = record;
        if (record.size)
            sub->filter = filter;
        return ERR_OK;
    }
    if (!record.size)
        return ERR_OK;
    enum err err = make_slots(session, session->sub_count + 1);
    if (!err)
        err = reserve(session, (void **)&session->subs, &session->sub_capacity, session->sub_count + 1, sizeof *session->subs);
    if (err)
        return err;
    session->subs[session->sub_count++] = (struct stored_subscription){hash, filter, record};
    *find_slot(session, hash, filter) = session->sub_count;
    return ERR_OK;
}

/* The table, if there is none yet. */
static enum err make_table(struct stored_session *session)
{
    if (session->slots)
        return ERR_OK;
    enum err err = make_slots(session, 1);
    struct span rest = session->subscriptions, record;
    while (!err && record_next(&record, &rest) == ERR_OK) {
        struct record rec;
        if (record_decode(&rec, record) == ERR_OK)
            err = put_subscription(session, rec.topic, record);
    }
    if (err) {
        session->bytes -= session->slot_count * sizeof *session->slots;
        free(session->slots);
        session->slots = NULL;
        session->slot_count = session->sub_count = 0;
    }
    return err;
}

static enum err put_options(struct stored_session *session, struct span filter, uint64_t options)
{
    struct record kept = {.type = RECORD_SUBSCRIPTION, .topic = filter, .options = options};
    size_t size = record_size(&kept);
    struct owned_record *owned = (struct owned_record *)malloc(sizeof *owned + size);
    if (!owned)
        return ERR_NOMEM;
    record_encode(owned->bytes, &kept);
    enum err err = record_decode(&kept, span_of(owned->bytes, size)); /* its topic lies in the block now */
    CHECK(err == ERR_OK);
    err = put_subscription(session, kept.topic, span_of(owned->bytes, size));
    if (err) {
        free(owned);
        return err;
    }
    owned->next = session->owned;
    session->owned = owned;
    session->bytes += sizeof *owned + size;
    session->is_changed = true;
    return ERR_OK;
}

/* Options of the subscription in a slot; 0: there is none any more. */
static uint64_t options_in(const struct stored_subscription *sub)
{
    struct record rec;
    return sub->record.size && record_decode(&rec, sub->record) == ERR_OK ? rec.options : 0;
}

enum err stored_session_subscribe(struct stored_session *session, const struct record *rec)
{
    enum err err = make_table(session);
    if (err)
        return err;
    uint64_t options = rec->options;
    if (options & RECORD_SUBSCRIPTION_RETAIN_HANDLING) { /* it asks for nothing, or for nothing more: what was owed is owed */
        uint32_t slot = *find_slot(session, hash_span(rec->topic, FILTER_HASH_SEED), rec->topic);
        options |= slot ? options_in(&session->subs[slot - 1]) & RECORD_SUBSCRIPTION_OWED : 0;
    }
    return put_options(session, rec->topic, options);
}

enum err stored_session_set_given(struct stored_session *session)
{
    enum err err = make_table(session);
    for (uint32_t i = 0; !err && i < session->sub_count; i++) {
        uint64_t options = options_in(&session->subs[i]);
        if (options & RECORD_SUBSCRIPTION_OWED)
            err = put_options(session, session->subs[i].filter, options & ~RECORD_SUBSCRIPTION_OWED);
    }
    return err;
}

enum err stored_session_unsubscribe(struct stored_session *session, struct span filter)
{
    enum err err = make_table(session);
    if (!err)
        err = put_subscription(session, filter, span_of(NULL, 0));
    if (!err)
        session->is_changed = true;
    return err;
}

/* --- QoS 2 --------------------------------------------------------------------------------------------------------------------------- */

/* Index of the first identifier that is not less. */
static uint32_t find_inbound(const struct stored_session *session, uint16_t packet_id)
{
    uint32_t low = 0, high = session->inbound_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (session->inbound[middle] < packet_id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

enum err stored_session_open(struct stored_session *session, uint16_t packet_id)
{
    uint32_t at = find_inbound(session, packet_id);
    if (at < session->inbound_count && session->inbound[at] == packet_id)
        return ERR_OK;
    enum err err =
        reserve(session, (void **)&session->inbound, &session->inbound_capacity, session->inbound_count + 1, sizeof *session->inbound);
    if (err)
        return err;
    memmove(session->inbound + at + 1, session->inbound + at, (session->inbound_count - at) * sizeof *session->inbound);
    session->inbound[at] = packet_id;
    session->inbound_count++;
    session->is_changed = true;
    return ERR_OK;
}

void stored_session_release(struct stored_session *session, uint16_t packet_id)
{
    uint32_t at = find_inbound(session, packet_id);
    if (at == session->inbound_count || session->inbound[at] != packet_id)
        return;
    session->inbound_count--;
    memmove(session->inbound + at, session->inbound + at + 1, (session->inbound_count - at) * sizeof *session->inbound);
    session->is_changed = true;
}

static void mark_sent(struct stored_session *session, uint16_t packet_id, bool is_there)
{
    uint64_t bit = UINT64_C(1) << packet_id % 64;
    if (session->sent_ids && is_there)
        session->sent_ids[packet_id / 64] |= bit;
    else if (session->sent_ids)
        session->sent_ids[packet_id / 64] &= ~bit;
}

/* Mostly the oldest is meant. sent_end: none. */
static uint32_t find_sent(const struct stored_session *session, uint16_t packet_id)
{
    uint32_t at = session->sent_first;
    if (session->sent_ids && !(session->sent_ids[packet_id / 64] >> packet_id % 64 & 1))
        return session->sent_end;
    while (at < session->sent_end && session->sent[at].packet_id != packet_id)
        at++;
    return at;
}

void stored_session_complete(struct stored_session *session, uint16_t packet_id)
{
    uint32_t at = find_sent(session, packet_id);
    if (at == session->sent_end)
        return;
    memmove(session->sent + session->sent_first + 1, session->sent + session->sent_first,
            (at - session->sent_first) * sizeof *session->sent);
    session->sent_first++;
    mark_sent(session, packet_id, false);
    session->is_changed = true;
}

/* Room for one more in `sent`. */
static enum err reserve_sent(struct stored_session *session)
{
    uint32_t count = session->sent_end - session->sent_first;
    if (session->sent_end == session->sent_capacity && session->sent_first > session->sent_end / 2) {
        memmove(session->sent, session->sent + session->sent_first, count * sizeof *session->sent);
        session->sent_first = 0;
        session->sent_end = count;
    }
    if (count >= SENT_IDS_FROM && !session->sent_ids) {
        session->sent_ids = (uint64_t *)calloc(SENT_IDS_WORDS, sizeof *session->sent_ids);
        if (!session->sent_ids)
            return ERR_NOMEM;
        session->bytes += SENT_IDS_WORDS * sizeof *session->sent_ids;
        for (uint32_t i = session->sent_first; i < session->sent_end; i++)
            mark_sent(session, session->sent[i].packet_id, true);
    }
    return reserve(session, (void **)&session->sent, &session->sent_capacity, session->sent_end + 1, sizeof *session->sent);
}

enum err stored_session_sent(struct stored_session *session, uint64_t sequence, uint16_t packet_id)
{
    enum err err = reserve_sent(session);
    if (err)
        return err;
    stored_session_complete(session, packet_id);
    session->sent[session->sent_end++] = (struct checkpoint_sent){sequence, packet_id, false};
    mark_sent(session, packet_id, true);
    session->is_changed = true;
    return ERR_OK;
}

void stored_session_received(struct stored_session *session, uint16_t packet_id)
{
    uint32_t at = find_sent(session, packet_id);
    if (at == session->sent_end)
        return;
    session->sent[at].is_received = true;
    session->is_changed = true;
}

/* --- encoding ------------------------------------------------------------------------------------------------------------------------ */

static void put_record(struct buf *buf, const struct record *rec)
{
    size_t size = record_size(rec);
    uint8_t *at = buf_reserve(buf, size);
    if (at)
        buf_commit(buf, record_encode(at, rec));
}

void stored_session_encode(const struct stored_session *session, struct buf *buf)
{
    buf_put(buf, session->head, session->head_size);
    if (session->will)
        buf_put(buf, session->will, session->will_size);
    if (session->slots) {
        for (uint32_t i = 0; i < session->sub_count; i++)
            if (session->subs[i].record.size)
                buf_put_span(buf, session->subs[i].record);
    } else if (session->subscriptions.size) {
        buf_put_span(buf, session->subscriptions);
    }
    for (uint32_t i = 0; i < session->inbound_count; i++)
        put_record(buf, &(struct record){.type = RECORD_PUBLISH, .qos = 2, .packet_id = session->inbound[i]});
    for (uint32_t i = session->sent_first; i < session->sent_end; i++) {
        const struct checkpoint_sent *sent = &session->sent[i];
        put_record(buf, &(struct record){.type = sent->is_received ? RECORD_RECEIVED : RECORD_SENT,
                                         .packet_id = sent->packet_id,
                                         .subject_sequence = sent->sequence});
    }
}
