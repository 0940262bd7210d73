/* Any stream of records against a model that is nothing but arrays, with commits, failures and crashes in between. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/actor/msg.h"
#include "common/position_list.h"
#include "tests/lib/check_random.h"
#include "tests/lib/checkpoint_bench.h"

/* --- any stream against a model ------------------------------------------------------------------------------------------------------- */

#define M_SESSIONS 40
#define M_MESSAGES 3000
#define M_TOPICS 5
#define M_FILTERS 5
#define M_IDS 6
#define M_RUNS 40

struct m_session {
    bool exists, is_connected;
    uint32_t expiry;
    int64_t since;
    int filters[M_FILTERS]; /* options + 1; 0: not subscribed */
    int will;               /* 0: none */
    bool inbound[M_IDS];
    struct checkpoint_sent sent[M_IDS];
    int sent_count;
    struct m_run {
        uint64_t positions[CHECKPOINT_RUN];
        uint32_t count;
    } runs[M_RUNS];
    int run_count;
};

struct m_message {
    uint64_t sequence;
    int topic;
    uint32_t payload_size;
    uint64_t ids_seed;         /* for m_ids() */
    uint8_t wants[M_SESSIONS]; /* qos + 1; 0: no (more) */
};

struct m_record {
    struct span bytes; /* own block */
    uint64_t sequence;
};

struct world {
    struct bench b;
    struct check_random random;
    struct m_session sessions[M_SESSIONS];
    int session_count; /* made so far */
    struct m_message messages[M_MESSAGES];
    int message_count;
    struct {
        uint64_t number, sequence; /* sequence 0: none */
    } retained[M_TOPICS];
    uint64_t number, late[3]; /* retained numbers: the last, and those drawn that are still on their way */
    struct m_record *log;
    size_t log_count;
    uint64_t committed; /* the position */
    /* of the load that is being checked */
    bool seen_session[M_SESSIONS], seen_runs[M_SESSIONS];
    uint8_t seen_want[M_MESSAGES][M_SESSIONS];
    int seen_retained;
    struct m_run stored_runs[M_SESSIONS * M_RUNS];
    int stored_owner[M_SESSIONS * M_RUNS], stored_run_count;
};

static uint64_t draw(struct world *w, uint64_t below) { return check_random_below(&w->random, below); }
static uint64_t m_number(int i) { return 1000 + 3 * (uint64_t)i; }
static int m_index(uint64_t number) { return number >= 1000 && (number - 1000) % 3 == 0 ? (int)((number - 1000) / 3) : -1; }
static const char *m_topic(int i) { return &"aaaa\0b/b\0cc\0d/d/d\0e"[(const int[]){0, 5, 9, 12, 18}[i]]; }
/* Some have subscription identifiers. */
static struct span m_ids(uint64_t seed, int i, uint8_t ids_out[VARINT_SIZE_MAX])
{
    uint64_t id = (seed + (uint64_t)i) % 500;
    return span_of(ids_out, id % 3 == 0 ? varint_put(ids_out, 1 + id) : 0);
}

/* Into the log, and applied. */
static uint64_t emit(struct world *w, const struct record *rec)
{
    struct bench *b = &w->b;
    b->sequence += draw(w, 4) ? 1 : 1 + draw(w, 5); /* telemetry between */
    uint8_t *bytes = (uint8_t *)malloc(record_size(rec));
    w->log = (struct m_record *)realloc(w->log, (w->log_count + 1) * sizeof *w->log);
    w->log[w->log_count++] = (struct m_record){span_of(bytes, record_encode(bytes, rec)), b->sequence};
    struct record decoded;
    struct span encoded = w->log[w->log_count - 1].bytes;
    OK(record_decode(&decoded, encoded));
    OK(checkpoint_apply_encoded(b->checkpoint, &decoded, draw(w, 2) ? encoded : span_of(NULL, 0), b->sequence));
    return b->sequence;
}

static int pick_session(struct world *w)
{
    for (int tries = 0; tries < 10 && w->session_count > 0; tries++) {
        int i = (int)draw(w, (uint64_t)w->session_count);
        if (w->sessions[i].exists)
            return i;
    }
    return -1;
}

static void m_session_record(struct world *w)
{
    int i = pick_session(w);
    if ((i < 0 || draw(w, 3) == 0) && w->session_count < M_SESSIONS)
        i = w->session_count++;
    if (i < 0)
        return;
    struct m_session *sess = &w->sessions[i];
    sess->exists = true;
    sess->is_connected = draw(w, 2);
    sess->expiry = (uint32_t)draw(w, 1000);
    sess->since = (int64_t)draw(w, 1000000);
    if (sess->is_connected)
        sess->will = 0;
    char name[20];
    snprintf(name, sizeof name, "client-%d", i);
    emit(w, &(struct record){.type = RECORD_SESSION,
                             .session = m_number(i),
                             .client_id = S(name),
                             .received_ns = sess->since,
                             .options = sess->expiry | (sess->is_connected ? RECORD_SESSION_CONNECTED : 0) |
                                        UINT64_C(4) << RECORD_SESSION_PROTOCOL_SHIFT});
}

static struct m_message *m_find(struct world *w, uint64_t sequence)
{
    for (int i = 0; i < w->message_count; i++)
        if (w->messages[i].sequence == sequence)
            return &w->messages[i];
    return NULL;
}

static bool m_is_in_run(const struct m_session *sess, uint64_t sequence)
{
    for (int r = 0; r < sess->run_count; r++)
        for (uint32_t k = 0; k < sess->runs[r].count; k++)
            if (sess->runs[r].positions[k] == sequence)
                return true;
    return false;
}

/* Names what is in no run, as a home does; or forgets to. */
static void m_delete_record(struct world *w)
{
    int i = pick_session(w);
    if (i < 0)
        return;
    struct m_session *sess = &w->sessions[i];
    uint8_t positions[M_MESSAGES * VARINT_SIZE_MAX];
    size_t size = 0;
    uint64_t last = 0;
    bool is_named = draw(w, 4) != 0;
    for (int m = 0; m < w->message_count; m++) {
        if (w->messages[m].wants[i] && is_named && !m_is_in_run(sess, w->messages[m].sequence))
            size += position_list_put(positions + size, &last, w->messages[m].sequence);
        w->messages[m].wants[i] = 0;
    }
    if (size > 0)
        emit(w, &(struct record){.type = RECORD_DROP, .session = m_number(i), .positions = span_of(positions, size)});
    emit(w, &(struct record){.type = RECORD_SESSION_DELETE, .session = m_number(i)});
    memset(sess, 0, sizeof *sess);
}

/* A number of its own for each; some come late. */
static uint64_t draw_number(struct world *w)
{
    uint64_t number = ++w->number;
    uint64_t *late = &w->late[draw(w, 3)];
    if (draw(w, 2)) {
        uint64_t other = *late;
        *late = number;
        number = other ? other : ++w->number;
    }
    return number;
}

static void m_publish_record(struct world *w)
{
    static struct bench_recipients to;
    if (w->message_count == M_MESSAGES)
        return;
    struct m_message *message = &w->messages[w->message_count];
    *message = (struct m_message){.topic = (int)draw(w, M_TOPICS), .payload_size = draw(w, 5) ? 1 + (uint32_t)draw(w, 300) : 0};
    uint8_t payload[301];
    memset(payload, 'p', sizeof payload);
    struct record rec = {.type = RECORD_PUBLISH, .qos = (uint8_t)draw(w, 3), .topic = S(m_topic(message->topic))};
    rec.payload = span_of(payload, message->payload_size);
    to.size = 0;
    uint64_t density = draw(w, 10);
    message->ids_seed = draw(w, 500);
    for (int i = w->session_count - 1; i >= 0; i--) {
        if (draw(w, 10) >= density)
            continue;
        uint8_t ids[VARINT_SIZE_MAX], qos = (uint8_t)draw(w, 3);
        rec.recipients = bench_recipients_add(&to, m_number(i), qos, m_ids(message->ids_seed, i, ids));
        if (w->sessions[i].exists)
            message->wants[i] = (uint8_t)(qos + 1);
    }
    if (draw(w, 3) == 0)
        rec.retained_number = draw_number(w);
    int publisher = draw(w, 2) ? pick_session(w) : -1;
    if (publisher >= 0) {
        rec.session = m_number(publisher);
        if (rec.qos == 2) {
            rec.packet_id = (uint16_t)(1 + draw(w, M_IDS));
            w->sessions[publisher].inbound[rec.packet_id - 1] = true;
        }
        if (draw(w, 4) == 0) {
            rec.will_session = rec.session;
            w->sessions[publisher].will = 0;
        }
    }
    message->sequence = emit(w, &rec);
    w->message_count++;
    if (rec.retained_number > w->retained[message->topic].number) {
        w->retained[message->topic].number = rec.retained_number;
        w->retained[message->topic].sequence = rec.payload.size ? message->sequence : 0;
    }
}

/* The subscriptions, the will, the identifiers. */
static void m_change_record(struct world *w)
{
    int i = pick_session(w), k = (int)draw(w, M_FILTERS), id = (int)draw(w, M_IDS);
    if (i < 0)
        return;
    struct m_session *sess = &w->sessions[i];
    struct record rec = {.session = m_number(i), .packet_id = (uint16_t)(id + 1)};
    char filter[10];
    snprintf(filter, sizeof filter, "f/%d", k);
    switch (draw(w, 5)) {
    case 0:
        rec = (struct record){.type = RECORD_SUBSCRIPTION, .session = rec.session, .topic = S(filter), .options = draw(w, 100)};
        sess->filters[k] = (int)rec.options + 1;
        break;
    case 1:
        rec = (struct record){.type = RECORD_UNSUBSCRIBE, .session = rec.session, .topic = S(filter)};
        sess->filters[k] = 0;
        break;
    case 2:
        sess->will = 1 + (int)draw(w, 100);
        rec = (struct record){.type = RECORD_WILL, .session = rec.session, .topic = S("w"), .options = (uint64_t)sess->will};
        break;
    case 3:
        sess->will = 0;
        rec = (struct record){.type = RECORD_WILL_DELETE, .session = rec.session};
        break;
    default:
        rec.type = RECORD_RELEASED;
        sess->inbound[id] = false;
        break;
    }
    emit(w, &rec);
}

static void m_forget_sent(struct m_session *sess, uint16_t packet_id)
{
    int kept = 0;
    for (int s = 0; s < sess->sent_count; s++)
        if (sess->sent[s].packet_id != packet_id)
            sess->sent[kept++] = sess->sent[s];
    sess->sent_count = kept;
}

/* What a session does with its messages. */
static void m_answer_record(struct world *w)
{
    int i = pick_session(w);
    if (i < 0 || w->message_count == 0)
        return;
    struct m_session *sess = &w->sessions[i];
    struct m_message *message = &w->messages[draw(w, 3) ? w->message_count - 1 - (int)draw(w, 1 + (uint64_t)w->message_count / 8)
                                                        : (int)draw(w, (uint64_t)w->message_count)];
    struct record rec = {.session = m_number(i), .subject_sequence = message->sequence};
    int s = sess->sent_count > 0 ? (int)draw(w, (uint64_t)sess->sent_count) : -1;
    uint64_t what = draw(w, 10);
    if (what < 2 && message->wants[i]) {
        rec.type = RECORD_SENT;
        rec.packet_id = (uint16_t)(1 + draw(w, M_IDS));
        m_forget_sent(sess, rec.packet_id);
        sess->sent[sess->sent_count++] = (struct checkpoint_sent){message->sequence, rec.packet_id, false};
    } else if (what < 4 && s >= 0) {
        rec.type = what == 2 ? RECORD_RECEIVED : RECORD_ACK;
        rec.packet_id = sess->sent[s].packet_id;
        rec.subject_sequence = sess->sent[s].sequence;
        struct m_message *sent = m_find(w, rec.subject_sequence);
        sent->wants[i] = 0;
        if (what == 2)
            sess->sent[s].is_received = true;
        else
            m_forget_sent(sess, rec.packet_id);
    } else {
        rec.type = what < 9 ? RECORD_ACK : RECORD_DROP;
        message->wants[i] = 0;
        uint8_t positions[4 * VARINT_SIZE_MAX];
        size_t size = 0;
        uint64_t last = 0;
        for (int m = 0; rec.type == RECORD_DROP && m < 4 && m < w->message_count; m++) {
            struct m_message *other = &w->messages[draw(w, (uint64_t)w->message_count)];
            other->wants[i] = 0;
            size += position_list_put(positions + size, &last, other->sequence);
        }
        rec.positions = span_of(positions, size);
        emit(w, &rec);
        return;
    }
    emit(w, &rec);
}

/* What is committed and in no run goes into one; or one is consumed. */
static void m_run(struct world *w)
{
    int i = pick_session(w);
    if (i < 0)
        return;
    struct m_session *sess = &w->sessions[i];
    if (sess->run_count > 0 && draw(w, 3) == 0) {
        OK(checkpoint_drop_run(w->b.checkpoint, m_number(i), sess->runs[0].positions[0]));
        memmove(sess->runs, sess->runs + 1, (size_t)--sess->run_count * sizeof *sess->runs);
        return;
    }
    struct m_run run = {.count = 0};
    const struct m_run *last = sess->run_count > 0 ? &sess->runs[sess->run_count - 1] : NULL;
    uint32_t most = draw(w, 3) ? 1 + (uint32_t)draw(w, 4) : CHECKPOINT_RUN;
    for (int m = 0; m < w->message_count && run.count < most; m++) {
        uint64_t sequence = w->messages[m].sequence;
        if (w->messages[m].wants[i] && sequence < w->committed && (!last || sequence > last->positions[last->count - 1]))
            run.positions[run.count++] = sequence;
    }
    if (run.count == 0 || sess->run_count == M_RUNS)
        return;
    OK(checkpoint_put_run(w->b.checkpoint, m_number(i), run.positions, run.count));
    sess->runs[sess->run_count++] = run;
}

static void m_forget(struct world *w)
{
    uint64_t least = w->number + 1;
    for (size_t i = 0; i < 3; i++)
        if (w->late[i] && w->late[i] < least)
            least = w->late[i];
    checkpoint_forget_removals(w->b.checkpoint, least);
}

/* --- the load against the model ------------------------------------------------------------------------------------------------------- */

static enum err check_session(void *arg, const struct checkpoint_session *stored)
{
    struct world *w = (struct world *)arg;
    int i = m_index(stored->number);
    assert_in_range(i, 0, w->session_count - 1);
    const struct m_session *sess = &w->sessions[i];
    assert_true(sess->exists);
    assert_false(w->seen_session[i]);
    w->seen_session[i] = true;
    char name[20];
    snprintf(name, sizeof name, "client-%d", i);
    assert_true(span_equal(stored->client_id, S(name)));
    assert_int_equal(stored->expiry_interval_s, sess->expiry);
    assert_int_equal(stored->was_connected, sess->is_connected);
    assert_true(stored->since_wall_ns == sess->since);
    assert_int_equal(stored->protocol, 4);
    struct span rest = stored->subscriptions, bytes;
    struct record rec;
    int subscriptions = 0;
    while (record_next(&bytes, &rest) == ERR_OK) {
        OK(record_decode(&rec, bytes));
        assert_int_equal(sess->filters[rec.topic.data[2] - '0'], (int)rec.options + 1);
        subscriptions++;
    }
    for (int k = 0; k < M_FILTERS; k++)
        subscriptions -= sess->filters[k] != 0;
    assert_int_equal(subscriptions, 0);
    assert_int_equal(stored->will.size > 0, sess->will != 0);
    if (sess->will) {
        OK(record_decode(&rec, stored->will));
        assert_int_equal(rec.options, sess->will);
    }
    uint32_t inbound = 0;
    for (int id = 0; id < M_IDS; id++)
        if (sess->inbound[id])
            assert_int_equal(stored->inbound_ids[inbound++], id + 1);
    assert_int_equal(stored->inbound_count, inbound);
    assert_int_equal(stored->sent_count, sess->sent_count);
    for (int s = 0; s < sess->sent_count; s++) {
        assert_true(stored->sent[s].sequence == sess->sent[s].sequence);
        assert_int_equal(stored->sent[s].packet_id, sess->sent[s].packet_id);
        assert_int_equal(stored->sent[s].is_received, sess->sent[s].is_received);
    }
    return ERR_OK;
}

static enum err check_runs(void *arg, uint64_t number, uint64_t last)
{
    struct world *w = (struct world *)arg;
    int i = m_index(number);
    assert_true(w->sessions[i].exists);
    assert_false(w->seen_runs[i]);
    w->seen_runs[i] = true;
    uint64_t expected = 0;
    for (int r = 0; r < w->stored_run_count; r++)
        if (w->stored_owner[r] == i)
            expected = w->stored_runs[r].positions[w->stored_runs[r].count - 1];
    assert_true(expected == last);
    return ERR_OK;
}

static enum err check_want(void *arg, uint64_t number, uint64_t sequence, const struct checkpoint_want *want, uint32_t cost, bool is_in_run)
{
    struct world *w = (struct world *)arg;
    int i = m_index(number);
    struct m_message *message = m_find(w, sequence);
    assert_non_null(message);
    if (!w->sessions[i].exists)
        return ERR_NOTFOUND;
    assert_int_equal(message->wants[i], want->qos + 1);
    assert_int_equal(want->options, 8);
    uint8_t ids[VARINT_SIZE_MAX];
    assert_true(span_equal(want->ids, m_ids(message->ids_seed, i, ids)));
    assert_int_equal(cost, sizeof(struct msg) + strlen(m_topic(message->topic)) + message->payload_size);
    uint8_t *seen = &w->seen_want[message - w->messages][i];
    assert_int_equal(*seen, 0);
    *seen = 1;
    bool expected = false;
    for (int r = 0; r < w->stored_run_count; r++)
        for (uint32_t k = 0; w->stored_owner[r] == i && k < w->stored_runs[r].count; k++)
            expected = expected || w->stored_runs[r].positions[k] == sequence;
    assert_int_equal(is_in_run, expected);
    return ERR_OK;
}

static enum err check_retained(void *arg, struct span topic, uint64_t number, uint64_t sequence, uint32_t cost, int64_t expiry)
{
    struct world *w = (struct world *)arg;
    const struct m_message *message = m_find(w, sequence);
    assert_non_null(message);
    assert_true(span_equal(topic, S(m_topic(message->topic))));
    assert_true(w->retained[message->topic].number == number);
    assert_true(w->retained[message->topic].sequence == sequence);
    assert_int_equal(cost, sizeof(struct msg) + topic.size + message->payload_size);
    assert_int_equal(expiry, 0);
    w->seen_retained++;
    return ERR_OK;
}

static void check_corrupt(void *arg, enum kv_tree tree, struct span key)
{
    (void)arg;
    (void)key;
    fail_msg("damage in %s", kv_tree_name(tree));
}

/* What runs the database has, of sessions that are there. */
static void read_runs(struct world *w)
{
    struct kv_txn *txn;
    struct span key, value;
    OK(kv_begin(w->b.kv, &txn, false));
    w->stored_run_count = 0;
    enum err err = kv_seek(txn, KV_RUNS, span_of(NULL, 0), &key, &value);
    for (; err == ERR_OK; err = kv_next(txn, KV_RUNS, &key, &value)) {
        int i = m_index(kv_key_read_u64(key.data));
        struct m_run *run = &w->stored_runs[w->stored_run_count];
        *run = (struct m_run){.count = 0};
        size_t offset = 0;
        uint64_t sequence = 0;
        while (position_list_next(value, &offset, &sequence) == ERR_OK)
            run->positions[run->count++] = sequence;
        assert_int_equal(run->positions[0], kv_key_read_u64(key.data + 8));
        if (w->sessions[i].exists)
            w->stored_owner[w->stored_run_count++] = i;
    }
    kv_abort(txn);
}

static bool m_is_wanted(const struct world *w, const struct m_message *message, int i)
{
    return w->sessions[i].exists && message->wants[i];
}

/* Homes go on with the runs that the load left in the database: those that have a want. */
static void adopt_runs(struct world *w)
{
    for (int i = 0; i < w->session_count; i++)
        w->sessions[i].run_count = 0;
    int kept = 0;
    for (int r = 0; r < w->stored_run_count; r++) {
        int i = w->stored_owner[r];
        bool is_wanted = false;
        for (uint32_t k = 0; k < w->stored_runs[r].count; k++)
            is_wanted = is_wanted || m_is_wanted(w, m_find(w, w->stored_runs[r].positions[k]), i);
        if (!is_wanted)
            continue;
        assert_true(w->sessions[i].run_count < M_RUNS);
        w->sessions[i].runs[w->sessions[i].run_count++] = w->stored_runs[r];
        kept++;
    }
    assert_int_equal(bench_entries(&w->b, KV_RUNS), kept);
}

static void check_counts(struct world *w)
{
    uint64_t bodies = 0, holders = 0, chunks = 0, sessions = 0, values = 0;
    for (int m = 0; m < w->message_count; m++) {
        bool is_wanted = false;
        for (int i = 0; i < w->session_count; i++) {
            is_wanted = is_wanted || m_is_wanted(w, &w->messages[m], i);
            assert_int_equal(w->seen_want[m][i], m_is_wanted(w, &w->messages[m], i));
        }
        bool is_retained = w->retained[w->messages[m].topic].sequence == w->messages[m].sequence;
        bodies += is_wanted || is_retained;
        holders += is_wanted && is_retained;
        chunks += is_wanted;
    }
    for (int i = 0; i < w->session_count; i++) {
        assert_int_equal(w->seen_session[i], w->sessions[i].exists);
        sessions += w->sessions[i].exists;
    }
    for (int t = 0; t < M_TOPICS; t++)
        values += w->retained[t].sequence != 0;
    assert_int_equal(w->seen_retained, values);
    assert_int_equal(bench_entries(&w->b, KV_BODIES), bodies);
    assert_int_equal(bench_entries(&w->b, KV_HOLDERS), holders);
    assert_int_equal(bench_entries(&w->b, KV_RECIPIENTS), chunks);
    assert_int_equal(bench_entries(&w->b, KV_SESSIONS), sessions);
    assert_int_equal(bench_entries(&w->b, KV_RETAINED), values);
    assert_int_equal(checkpoint_state(w->b.checkpoint).session_count, sessions);
    assert_int_equal(checkpoint_state(w->b.checkpoint).retained_count, values);
    assert_int_equal(checkpoint_state(w->b.checkpoint).body_count, bodies);
}

static void check_load(struct world *w)
{
    struct checkpoint_loader loader = {check_session, check_runs, check_want, check_retained, check_corrupt, w, NULL};
    memset(w->seen_session, 0, sizeof w->seen_session);
    memset(w->seen_runs, 0, sizeof w->seen_runs);
    memset(w->seen_want, 0, sizeof w->seen_want);
    w->seen_retained = 0;
    read_runs(w);
    OK(checkpoint_load(w->b.checkpoint, &loader, &w->b.msg));
    check_counts(w);
    adopt_runs(w);
}

/* What readers find below the position: all that is wanted, with its body, and nothing that is done. */
static void check_reads(struct world *w)
{
    struct kv_txn *txn;
    OK(kv_begin(w->b.kv, &txn, false));
    for (int tries = 0; tries < 50 && w->message_count > 0; tries++) {
        const struct m_message *message = &w->messages[draw(w, (uint64_t)w->message_count)];
        int i = (int)draw(w, M_SESSIONS);
        if (i >= w->session_count || !w->sessions[i].exists || message->sequence >= w->committed)
            continue;
        struct checkpoint_want want;
        enum err err = checkpoint_find_want(txn, &want, m_number(i), message->sequence);
        assert_int_equal(err, message->wants[i] ? ERR_OK : ERR_NOTFOUND);
        if (err)
            continue;
        assert_int_equal(want.qos + 1, message->wants[i]);
        struct record rec;
        OK(checkpoint_find_body(txn, &rec, message->sequence));
        assert_true(span_equal(rec.topic, S(m_topic(message->topic))));
        assert_int_equal(rec.payload.size, message->payload_size);
    }
    kv_abort(txn);
}

static void m_commit(struct world *w)
{
    enum err err = ERR_NOSPACE;
    uint64_t what = draw(w, 12);
    if (what == 0)
        sim_kv_fail(w->b.sim, SIM_KV_COMMIT, ERR_NOSPACE, 0);
    else if (what == 1)
        sim_kv_fail(w->b.sim, SIM_KV_PUT, ERR_NOSPACE, draw(w, 40));
    else if (what == 2)
        sim_kv_set_capacity(w->b.sim, 1 + sim_kv_counts(w->b.sim).used_bytes + draw(w, 2000));
    for (int tries = 0; err == ERR_NOSPACE && tries < 3; tries++) {
        err = bench_try_commit(&w->b);
        if (tries > 0 || err == ERR_OK)
            sim_kv_set_capacity(w->b.sim, 0);
    }
    sim_kv_fail(w->b.sim, SIM_KV_PUT, ERR_OK, 0);
    OK(err);
    w->committed = w->b.sequence + 1;
    check_reads(w);
}

/* The process is dead; the next replays the log, commits and loads. */
static void m_crash(struct world *w)
{
    if (draw(w, 3) == 0) { /* in the middle of a commit */
        sim_kv_fail(w->b.sim, SIM_KV_COMMIT, ERR_IO, 0);
        assert_int_equal(bench_try_commit(&w->b), ERR_IO);
    }
    bench_crash(&w->b);
    for (size_t i = 0; i < w->log_count; i++) {
        struct record rec;
        OK(record_decode(&rec, w->log[i].bytes));
        OK(checkpoint_apply(w->b.checkpoint, &rec, w->log[i].sequence)); /* those below the position too */
        if (draw(w, 200) == 0) {
            struct log_cursor_value cursor = bench_cursor_at(w->log[i].sequence + 1);
            if (cursor.position.sequence > checkpoint_state(w->b.checkpoint).cursor.position.sequence)
                OK(checkpoint_commit(w->b.checkpoint, &cursor, &w->b.msg));
        }
    }
    OK(bench_try_commit(&w->b));
    w->committed = w->b.sequence + 1;
    memset(w->late, 0, sizeof w->late); /* nobody is left to send them */
    check_load(w);
    if (draw(w, 4) == 0) { /* a second start finds nothing to do */
        struct sim_kv_counts before = sim_kv_counts(w->b.sim);
        bench_crash(&w->b);
        check_load(w);
        struct sim_kv_counts after = sim_kv_counts(w->b.sim);
        assert_int_equal(after.puts, before.puts);
        assert_int_equal(after.dels, before.dels);
    }
}

static void m_step(struct world *w)
{
    uint64_t what = draw(w, 1000);
    if (what < 60)
        m_session_record(w);
    else if (what < 72)
        m_delete_record(w);
    else if (what < 300)
        m_publish_record(w);
    else if (what < 420)
        m_change_record(w);
    else if (what < 850)
        m_answer_record(w);
    else if (what < 920)
        m_run(w);
    else if (what < 940)
        m_forget(w);
    else if (what < 990)
        m_commit(w);
    else
        m_crash(w);
}

static void any_stream_of_records_comes_back_after_any_crash(void **state)
{
    (void)state;
    uint64_t seed = check_random_seed(11);
    for (uint64_t round = 0; round < 40; round++) {
        struct world *w = (struct world *)calloc(1, sizeof *w);
        check_random_init(&w->random, seed + round);
        w->b.sim = sim_kv_new(seed + round);
        bench_open(&w->b);
        for (int step = 0; step < 1500; step++)
            m_step(w);
        m_crash(w);
        bench_close(&w->b);
        sim_kv_free(w->b.sim);
        for (size_t i = 0; i < w->log_count; i++)
            free((void *)(uintptr_t)w->log[i].bytes.data);
        free(w->log);
        free(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_stream_of_records_comes_back_after_any_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
