/* The checkpoint: any records may be applied and any bytes may stand in its trees; nothing breaks, and what one load gave, the next gives
 * again.
 *
 * First byte even: records one after the other are applied, each at the next sequence; a byte before each says whether a commit, a run or a
 * crash comes first. Odd: entries are put into the trees as if they had been written so (their checksum is right), then everything is
 * loaded and a few records are applied on top. */
#include "broker/durable/checkpoint.h"
#include "common/check.h"
#include "tests/lib/sim_kv.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SESSIONS 16 /* numbers that wants are taken for */

struct input {
    const uint8_t *at, *end;
};

static uint8_t take_byte(struct input *in) { return in->at < in->end ? *in->at++ : 0; }

static struct span take(struct input *in, size_t size)
{
    size_t left = (size_t)(in->end - in->at);
    struct span taken = span_of(in->at, size < left ? size : left);
    in->at += taken.size;
    return taken;
}

struct bench {
    struct sim_kv *sim;
    struct kv *kv;
    struct checkpoint *checkpoint;
    uint64_t sequence;
    uint64_t sessions, wants, retained; /* of the last load */
};

static enum err open_bench(struct bench *b)
{
    struct errmsg msg;
    b->kv = sim_kv_open(b->sim);
    return checkpoint_open(&b->checkpoint, b->kv, 1, &msg);
}

static void close_bench(struct bench *b)
{
    checkpoint_free(b->checkpoint);
    b->checkpoint = NULL;
    kv_close(b->kv);
}

static void commit(struct bench *b)
{
    struct errmsg msg;
    struct log_cursor_value cursor = {.broker_id = 5, .position = {1, b->sequence + 1}, .place = {1, 512}, .reopen = {1, 512}};
    CHECK(checkpoint_commit(b->checkpoint, &cursor, &msg) == ERR_OK);
}

static void apply(struct bench *b, const struct record *rec)
{
    enum err err = checkpoint_apply(b->checkpoint, rec, ++b->sequence);
    CHECK(err == ERR_OK || err == ERR_CORRUPT);
}

/* --- load ---------------------------------------------------------------------------------------------------------------------------- */

static enum err on_session(void *arg, const struct checkpoint_session *session)
{
    struct bench *b = (struct bench *)arg;
    struct span rest = session->subscriptions, bytes;
    struct record rec;
    while (record_next(&bytes, &rest) == ERR_OK)
        CHECK(record_decode(&rec, bytes) == ERR_OK);
    CHECK(rest.size == 0);
    CHECK(session->will.size == 0 || record_decode(&rec, session->will) == ERR_OK);
    for (uint32_t i = 0; i < session->inbound_count; i++)
        CHECK(session->inbound_ids[i] != 0);
    for (uint32_t i = 0; i < session->sent_count; i++)
        CHECK(session->sent[i].packet_id != 0);
    b->sessions++;
    return ERR_OK;
}

static enum err on_runs(void *arg, uint64_t session, uint64_t last_sequence)
{
    (void)arg;
    CHECK(session != 0);
    CHECK(last_sequence != 0);
    return ERR_OK;
}

static enum err on_want(void *arg, uint64_t session, uint64_t sequence, const struct checkpoint_want *want, uint32_t cost, bool is_in_run)
{
    struct bench *b = (struct bench *)arg;
    (void)is_in_run;
    CHECK(want->qos <= 2);
    CHECK(sequence != 0);
    CHECK(cost > 0);
    b->wants += session < SESSIONS;
    return session < SESSIONS ? ERR_OK : ERR_NOTFOUND;
}

static enum err on_retained(void *arg, struct span topic, uint64_t number, uint64_t sequence, uint32_t cost, int64_t expiry_wall_ns)
{
    struct bench *b = (struct bench *)arg;
    (void)number;
    (void)cost;
    CHECK(topic.size >= 1);
    CHECK(sequence != 0);
    b->retained += expiry_wall_ns >= 0;
    return expiry_wall_ns >= 0 ? ERR_OK : ERR_NOTFOUND;
}

static void on_corrupt(void *arg, enum kv_tree tree, struct span key)
{
    (void)arg;
    (void)tree;
    CHECK(key.size >= 1);
}

static void load(struct bench *b)
{
    struct errmsg msg;
    struct checkpoint_loader loader = {on_session, on_runs, on_want, on_retained, on_corrupt, b, NULL};
    b->sessions = b->wants = b->retained = 0;
    CHECK(checkpoint_load(b->checkpoint, &loader, &msg) == ERR_OK);
}

/* The same twice, and the second has nothing left to remove. */
static void load_twice(struct bench *b)
{
    load(b);
    uint64_t sessions = b->sessions, wants = b->wants, retained = b->retained;
    close_bench(b);
    if (open_bench(b) != ERR_OK)
        return;
    struct sim_kv_counts before = sim_kv_counts(b->sim);
    load(b);
    struct sim_kv_counts after = sim_kv_counts(b->sim);
    CHECK(sessions == b->sessions);
    CHECK(wants == b->wants);
    CHECK(retained == b->retained);
    CHECK(before.puts == after.puts);
}

static void read_some(struct bench *b)
{
    struct kv_txn *txn;
    struct checkpoint_want want;
    struct record rec;
    uint64_t run[CHECKPOINT_RUN];
    uint32_t count;
    CHECK(kv_begin(b->kv, &txn, false) == ERR_OK);
    for (uint64_t sequence = 0; sequence < 8; sequence++) {
        for (uint64_t session = 0; session < 8; session++) {
            enum err err = checkpoint_find_want(txn, &want, session, sequence);
            CHECK(err == ERR_OK || err == ERR_NOTFOUND || err == ERR_CORRUPT);
            err = checkpoint_find_run(txn, run, &count, session, sequence);
            CHECK(err || (count >= 1 && count <= CHECKPOINT_RUN));
        }
        enum err err = checkpoint_find_body(txn, &rec, sequence);
        CHECK(err == ERR_OK || err == ERR_NOTFOUND || err == ERR_CORRUPT);
    }
    kv_abort(txn);
}

/* --- inputs -------------------------------------------------------------------------------------------------------------------------- */

static void try_records(struct bench *b, struct input *in)
{
    while (in->at < in->end) {
        uint8_t what = take_byte(in);
        if (what & 1)
            commit(b);
        if (what & 2) {
            uint64_t sequences[] = {1 + (what >> 4), 3 + (what >> 4)};
            CHECK(checkpoint_put_run(b->checkpoint, 1 + (what >> 6), sequences, 2) == ERR_OK);
        }
        if (what & 4)
            CHECK(checkpoint_drop_run(b->checkpoint, 1 + (what >> 6), 1 + (what >> 4)) == ERR_OK);
        if (what & 8)
            checkpoint_forget_removals(b->checkpoint, what);
        struct span rest = span_of(in->at, (size_t)(in->end - in->at)), bytes;
        struct record rec;
        if (record_next(&bytes, &rest) != ERR_OK)
            continue;
        in->at = rest.data;
        if (record_decode(&rec, bytes) == ERR_OK)
            apply(b, &rec);
    }
}

/* tree (bit 7: any key follows, with its size), one or two small numbers, size, value. */
static void try_values(struct bench *b, struct input *in)
{
    struct kv_txn *txn;
    b->sequence = 100;
    commit(b);
    CHECK(kv_begin(b->kv, &txn, true) == ERR_OK);
    while (in->at < in->end) {
        uint8_t what = take_byte(in), bytes[16];
        enum kv_tree tree = (enum kv_tree)((what & 0x7f) % KV_TREE_COUNT);
        bool is_double = tree == KV_RECIPIENTS || tree == KV_RUNS || tree == KV_RETAINED;
        uint64_t a = take_byte(in), c = is_double ? take_byte(in) : 0;
        struct span key = is_double ? kv_key_u64_u64(bytes, a, c) : kv_key_u64(bytes, a);
        if (what & 0x80)
            key = take(in, 1 + (size_t)a % KV_KEY_MAX);
        size_t low = take_byte(in), value_size = low | (size_t)take_byte(in) << 8;
        struct span value = take(in, value_size);
        if (key.size > 0)
            CHECK(kv_put(txn, tree, key, value) == ERR_OK);
    }
    CHECK(kv_commit(txn) == ERR_OK);
    close_bench(b);
}

static void change_some(struct bench *b)
{
    b->sequence = checkpoint_state(b->checkpoint).cursor.position.sequence;
    if (b->sequence > UINT64_MAX / 2)
        return;
    for (uint64_t session = 1; session < 6; session++) {
        for (uint64_t sequence = 1; sequence < 6; sequence++)
            apply(b, &(struct record){.type = RECORD_ACK, .session = session, .subject_sequence = sequence, .packet_id = 1});
        apply(b, &(struct record){.type = RECORD_SUBSCRIPTION, .session = session, .topic = SPAN_LITERAL("f"), .options = 1});
    }
    apply(b, &(struct record){.type = RECORD_SESSION_DELETE, .session = 2});
    apply(b, &(struct record){.type = RECORD_PUBLISH, .topic = SPAN_LITERAL("t"), .payload = SPAN_LITERAL("p"), .retained_number = 9});
    commit(b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, data + size};
    struct bench b = {.sim = sim_kv_new(1)};
    CHECK(open_bench(&b) == ERR_OK);
    if (take_byte(&in) & 1) {
        try_values(&b, &in);
        if (open_bench(&b) == ERR_OK) {
            load_twice(&b);
            if (b.checkpoint) {
                change_some(&b);
                read_some(&b);
            }
        }
    } else {
        try_records(&b, &in);
        commit(&b);
        read_some(&b);
    }
    close_bench(&b);
    if (open_bench(&b) == ERR_OK)
        load_twice(&b);
    close_bench(&b);
    sim_kv_free(b.sim);
    return 0;
}
