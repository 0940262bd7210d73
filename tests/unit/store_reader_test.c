/* The store reader over a checkpoint in memory. */
#include "broker/durable/store_reader.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "broker/actor/msg.h"
#include "broker/durable/checkpoint.h"
#include "common/clock.h"
#include "tests/lib/sim_kv.h"

#define WALL INT64_C(1760000000000000000)

struct bench {
    struct sim_kv *sim;
    struct kv *kv;
    struct checkpoint *checkpoint;
    struct store_reader *reader;
    uint64_t next; /* sequence */
    bool is_ring_full;
    struct store_read *answer;
    actor_id answered;
    int answers;
    int corrupt;
    enum kv_tree corrupt_tree;
};

static bool bench_post(void *io, actor_id to, const struct op *op)
{
    struct bench *b = io;
    if (b->is_ring_full)
        return false;
    assert_int_equal(op->type, OP_STORE_READ_DONE);
    b->answer = op->read;
    b->answered = to;
    b->answers++;
    return true;
}

static void bench_on_corrupt(void *io, enum kv_tree tree, struct span key)
{
    struct bench *b = io;
    assert_true(key.size == 8 || key.size == 16);
    b->corrupt++;
    b->corrupt_tree = tree;
}

static const struct store_reader_io bench_io = {.post = bench_post, .on_corrupt = bench_on_corrupt};

static struct bench *bench_new(void)
{
    struct bench *b = calloc(1, sizeof *b);
    b->sim = sim_kv_new(1);
    b->kv = sim_kv_open(b->sim);
    b->next = 1;
    assert_int_equal(checkpoint_open(&b->checkpoint, b->kv, 1, NULL), ERR_OK);
    b->reader = store_reader_new(b->kv, &bench_io, b);
    assert_non_null(b->reader);
    return b;
}

static void bench_free(struct bench *b)
{
    store_reader_free(b->reader);
    checkpoint_free(b->checkpoint);
    kv_close(b->kv);
    sim_kv_free(b->sim);
    free(b);
}

static uint64_t apply(struct bench *b, const struct record *rec)
{
    assert_int_equal(checkpoint_apply(b->checkpoint, rec, b->next), ERR_OK);
    return b->next++;
}

static void commit(struct bench *b)
{
    struct log_cursor_value cursor = {.broker_id = 1, .position = {1, b->next}, .place = {1, 4096}, .reopen = {1, 4096}};
    assert_int_equal(checkpoint_commit(b->checkpoint, &cursor, NULL), ERR_OK);
}

static void apply_session(struct bench *b, uint64_t session)
{
    struct record rec = {.type = RECORD_SESSION, .session = session, .client_id = SPAN_LITERAL("c"), .received_ns = WALL};
    rec.options = 100 | UINT64_C(5) << RECORD_SESSION_PROTOCOL_SHIFT;
    apply(b, &rec);
}

static uint64_t apply_publish(struct bench *b, uint64_t session, struct span payload)
{
    uint8_t recipients[64], ids[] = {5, 0x80 | 44, 2}; /* 5 and 300 */
    struct record_recipient recipient = {.session = session, .qos = 1, .options = 0x08, .ids = span_of(ids, sizeof ids)};
    struct record rec = {.type = RECORD_PUBLISH,
                         .qos = 2,
                         .retain = true,
                         .topic = SPAN_LITERAL("a/b"),
                         .properties = SPAN_LITERAL("\x01\x01"),
                         .payload = payload,
                         .received_ns = WALL + 7,
                         .expiry_ns = WALL + 1000,
                         .retained_number = b->next,
                         .has_correlation = true,
                         .correlation = "0123456789abcde",
                         .session = 77};
    rec.recipients = span_of(recipients, session ? record_recipient_put(recipients, &recipient) : 0);
    return apply(b, &rec);
}

static struct store_read *request(enum store_read_kind kind, uint64_t session, const uint64_t *sequences, uint32_t count)
{
    struct store_read *read = calloc(1, sizeof *read);
    read->kind = kind;
    read->session = session;
    read->ticket = 4711;
    read->count = count;
    for (uint32_t i = 0; i < count; i++)
        read->items[i] = (struct store_read_item){.sequence = sequences[i], .state = STORE_ITEM_ASKED};
    return read;
}

/* The same block comes back. */
static struct store_read *ask(struct bench *b, struct store_read *read)
{
    int before = b->answers;
    store_reader_on_op(b->reader, &(struct op){.type = OP_STORE_READ, .from = 1, .read = read});
    assert_int_equal(store_reader_get_stats(b->reader)->waiting.messages, 1);
    assert_int_equal(store_reader_work(b->reader), INT64_MAX);
    assert_int_equal(store_reader_get_stats(b->reader)->waiting.messages, 0);
    assert_int_equal(b->answers, before + 1);
    assert_ptr_equal(b->answer, read);
    assert_int_equal(b->answered, 1);
    assert_int_equal(read->ticket, 4711);
    return read;
}

static void says_what_messages_cost_without_reading_them(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    apply_session(b, 1);
    uint64_t sequence = apply_publish(b, 1, SPAN_LITERAL("hello")), other = apply_publish(b, 2, SPAN_LITERAL("not mine"));
    commit(b);
    const uint64_t asked[] = {sequence, other};
    uint32_t cost = 0;
    for (int costs_only = 0; costs_only < 2; costs_only++) {
        struct store_read *read = request(STORE_READ_QUEUE, 1, asked, 2);
        read->costs_only = costs_only;
        read = ask(b, read);
        assert_int_equal(read->items[0].state, STORE_ITEM_FOUND);
        assert_int_equal(read->items[1].state, STORE_ITEM_GONE);
        assert_int_equal(read->items[1].cost, 0);
        if (!costs_only)
            cost = (uint32_t)msg_cost(read->items[0].msg);
        else
            assert_null(read->items[0].msg);
        assert_int_equal(read->items[0].cost, cost);
        store_read_free(read);
    }
    bench_free(b);
}

static void gives_messages_as_the_session_wants_them(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    apply_session(b, 1);
    uint64_t sequence = apply_publish(b, 1, SPAN_LITERAL("hello")), other = apply_publish(b, 2, SPAN_LITERAL("not mine"));
    commit(b);
    const uint64_t asked[] = {sequence, other, 999};
    struct store_read *read = ask(b, request(STORE_READ_QUEUE, 1, asked, 3));
    const struct store_read_item *item = &read->items[0];
    assert_int_equal(item->state, STORE_ITEM_FOUND);
    assert_int_equal(item->qos, 1);
    assert_int_equal(item->options, 0x08);
    assert_int_equal(item->id_count, 2);
    assert_int_equal(item->ids[0], 5);
    assert_int_equal(item->ids[1], 300);
    const struct msg *msg = item->msg;
    assert_int_equal(msg->sequence, sequence);
    assert_true(span_equal(msg_topic(msg), SPAN_LITERAL("a/b")));
    assert_true(span_equal(msg_properties(msg), SPAN_LITERAL("\x01\x01")));
    assert_true(span_equal(msg_payload(msg), SPAN_LITERAL("hello")));
    assert_int_equal(msg->qos, 2);
    assert_true(msg->retain);
    assert_int_equal(msg->publisher, 77);
    assert_int_equal(msg->retained_number, sequence);
    assert_int_equal(msg->receive_wall_ns, WALL + 7);
    assert_int_equal(msg->expiry_wall_ns, WALL + 1000);
    assert_memory_equal(msg->correlation_id, "0123456789abcde", 16);
    assert_int_equal(read->items[1].state, STORE_ITEM_GONE);
    assert_int_equal(read->items[2].state, STORE_ITEM_GONE);
    assert_null(read->items[1].msg);
    assert_int_equal(counter_get(&store_reader_get_stats(b->reader)->gone), 2);
    assert_int_equal(b->corrupt, 0);
    store_read_free(read);
    bench_free(b);
}

static void what_is_not_committed_is_gone(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    apply_session(b, 1);
    uint64_t sequence = apply_publish(b, 1, SPAN_LITERAL("x"));
    struct store_read *read = ask(b, request(STORE_READ_QUEUE, 1, &sequence, 1));
    assert_int_equal(read->items[0].state, STORE_ITEM_GONE);
    store_read_free(read);
    commit(b);
    read = ask(b, request(STORE_READ_QUEUE, 1, &sequence, 1));
    assert_int_equal(read->items[0].state, STORE_ITEM_FOUND);
    store_read_free(read);
    struct record ack = {.type = RECORD_ACK, .session = 1, .subject_sequence = sequence};
    apply(b, &ack);
    commit(b);
    /* The session does not want it any more; the retained value is still there. */
    read = ask(b, request(STORE_READ_QUEUE, 1, &sequence, 1));
    assert_int_equal(read->items[0].state, STORE_ITEM_GONE);
    store_read_free(read);
    read = ask(b, request(STORE_READ_BODIES, 0, &sequence, 1));
    assert_int_equal(read->items[0].state, STORE_ITEM_FOUND);
    assert_true(span_equal(msg_payload(read->items[0].msg), SPAN_LITERAL("x")));
    assert_int_equal(read->items[0].id_count, 0);
    store_read_free(read);
    bench_free(b);
}

/* Large ones come over several requests, each at least one. */
static void bytes_of_a_request_are_bounded(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    uint8_t *payload = calloc(1, 3 * STORE_READ_BYTES);
    uint64_t asked[6];
    const size_t sizes[6] = {STORE_READ_BYTES / 2, 1000, STORE_READ_BYTES / 3, STORE_READ_BYTES / 3, 3 * STORE_READ_BYTES, 5};
    const uint32_t found[] = {3, 4, 5, 6}; /* after each request */
    apply_session(b, 1);
    for (int i = 0; i < 6; i++)
        asked[i] = apply_publish(b, 1, span_of(payload, sizes[i]));
    commit(b);
    struct store_read *read = request(STORE_READ_QUEUE, 1, asked, 6);
    for (int round = 0; round < 4; round++) {
        ask(b, read);
        for (uint32_t i = 0; i < 6; i++)
            assert_int_equal(read->items[i].state, i < found[round] ? STORE_ITEM_FOUND : STORE_ITEM_ASKED);
    }
    for (int i = 0; i < 6; i++)
        assert_int_equal(msg_payload(read->items[i].msg).size, sizes[i]);
    store_read_free(read);
    free(payload);
    bench_free(b);
}

static void reads_runs_one_after_the_other(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    uint64_t asked[5];
    apply_session(b, 1);
    for (int i = 0; i < 5; i++)
        asked[i] = apply_publish(b, 1, SPAN_LITERAL("x"));
    commit(b);
    assert_int_equal(checkpoint_put_run(b->checkpoint, 1, asked, 3), ERR_OK);
    assert_int_equal(checkpoint_put_run(b->checkpoint, 1, asked + 3, 2), ERR_OK);
    struct record ack = {.type = RECORD_ACK, .session = 1, .subject_sequence = asked[1]};
    apply(b, &ack);
    commit(b);
    struct store_read *read = ask(b, request(STORE_READ_RUN, 1, NULL, 0));
    assert_int_equal(read->run, asked[0]);
    assert_int_equal(read->count, 2); /* what is done with has no place in the asker's counts */
    assert_int_equal(read->items[0].state, STORE_ITEM_FOUND);
    assert_int_equal(read->items[1].state, STORE_ITEM_FOUND);
    assert_int_equal(read->items[1].sequence, asked[2]);
    store_read_free(read);
    for (int i = 0; i < 3; i += 2) {
        ack.subject_sequence = asked[i];
        apply(b, &ack);
    }
    commit(b);
    read = ask(b, request(STORE_READ_RUN, 1, NULL, 0)); /* nothing of the first is wanted any more */
    assert_int_equal(read->run, asked[3]);
    assert_int_equal(read->count, 2);
    store_read_free(read);
    read = request(STORE_READ_RUN, 1, NULL, 0);
    read->run = asked[0] + 1;
    ask(b, read);
    assert_int_equal(read->run, asked[3]);
    assert_int_equal(read->count, 2);
    store_read_free(read);
    read = request(STORE_READ_RUN, 1, NULL, 0);
    read->run = asked[3] + 1;
    ask(b, read);
    assert_int_equal(read->run, 0);
    assert_int_equal(read->count, 0);
    store_read_free(read);
    bench_free(b);
}

static void damage_is_told_and_left_out(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    uint8_t key[16];
    uint64_t asked[4];
    struct span at, value;
    struct kv_txn *txn;
    apply_session(b, 1);
    for (int i = 0; i < 4; i++) { /* each in rows of its own */
        asked[i] = apply_publish(b, 1, SPAN_LITERAL("payload"));
        commit(b);
    }
    assert_int_equal(checkpoint_put_run(b->checkpoint, 1, asked, 4), ERR_OK);
    commit(b);
    assert_true(sim_kv_flip(b->sim, KV_BODIES, kv_key_u64(key, asked[1]), 5));
    assert_int_equal(kv_begin(b->kv, &txn, false), ERR_OK);
    assert_int_equal(kv_seek(txn, KV_RECIPIENTS, kv_key_u64(key, asked[2]), &at, &value), ERR_OK);
    assert_int_equal(kv_key_read_u64(at.data), asked[2]);
    memcpy(key, at.data, at.size);
    size_t key_size = at.size;
    kv_abort(txn);
    assert_true(sim_kv_flip(b->sim, KV_RECIPIENTS, span_of(key, key_size), 1));
    struct store_read *read = ask(b, request(STORE_READ_QUEUE, 1, asked, 4));
    const uint8_t expected[] = {STORE_ITEM_FOUND, STORE_ITEM_CORRUPT, STORE_ITEM_CORRUPT, STORE_ITEM_FOUND};
    for (int i = 0; i < 4; i++)
        assert_int_equal(read->items[i].state, expected[i]);
    assert_int_equal(b->corrupt, 2);
    assert_int_equal(b->corrupt_tree, KV_RECIPIENTS);
    assert_int_equal(counter_get(&store_reader_get_stats(b->reader)->corrupt), 2);
    store_read_free(read);
    /* A run that is damaged says where it is, so that one can go on behind it. */
    assert_true(sim_kv_flip(b->sim, KV_RUNS, kv_key_u64_u64(key, 1, asked[0]), 0));
    read = ask(b, request(STORE_READ_RUN, 1, NULL, 0));
    assert_int_equal(read->run, asked[0]);
    assert_int_equal(read->count, 0);
    assert_int_equal(b->corrupt_tree, KV_RUNS);
    read->run++;
    ask(b, read);
    assert_int_equal(read->run, 0);
    store_read_free(read);
    bench_free(b);
}

/* A body that is missing although a session wants it is damage. */
static void a_body_that_is_missing_is_damage(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    uint8_t key[8];
    struct kv_txn *txn;
    apply_session(b, 1);
    uint64_t sequence = apply_publish(b, 1, SPAN_LITERAL("payload"));
    commit(b);
    assert_int_equal(kv_begin(b->kv, &txn, true), ERR_OK);
    assert_int_equal(kv_del(txn, KV_BODIES, kv_key_u64(key, sequence)), ERR_OK);
    assert_int_equal(kv_commit(txn), ERR_OK);
    struct store_read *read = ask(b, request(STORE_READ_QUEUE, 1, &sequence, 1));
    assert_int_equal(read->items[0].state, STORE_ITEM_CORRUPT);
    assert_null(read->items[0].ids);
    store_read_free(read);
    read = ask(b, request(STORE_READ_BODIES, 1, &sequence, 1));
    assert_int_equal(read->items[0].state, STORE_ITEM_GONE);
    store_read_free(read);
    bench_free(b);
}

static void requests_wait_for_database_and_ring(void **state)
{
    (void)state;
    struct bench *b = bench_new();
    apply_session(b, 1);
    uint64_t sequence = apply_publish(b, 1, SPAN_LITERAL("x"));
    commit(b);
    struct store_read *first = request(STORE_READ_QUEUE, 1, &sequence, 1), *second = request(STORE_READ_BODIES, 1, &sequence, 1);
    store_reader_set_time(b->reader, 5);
    store_reader_on_op(b->reader, &(struct op){.type = OP_STORE_READ, .from = ACTOR_ROUTE, .read = first});
    store_reader_on_op(b->reader, &(struct op){.type = OP_STORE_READ, .from = 2, .read = second});
    sim_kv_fail(b->sim, SIM_KV_BEGIN_READ, ERR_NOMEM, 0);
    int64_t wait = store_reader_work(b->reader);
    assert_true(wait > 0 && wait < NS_PER_S);
    assert_int_equal(store_reader_get_stats(b->reader)->waiting.messages, 2);
    assert_int_equal(store_reader_get_stats(b->reader)->waiting.oldest_ns, 5);
    sim_kv_fail(b->sim, SIM_KV_READ, ERR_IO, 0);
    wait = store_reader_work(b->reader);
    assert_true(wait > 0 && wait < NS_PER_S);
    assert_int_equal(first->items[0].state, STORE_ITEM_ASKED);
    b->is_ring_full = true;
    assert_int_equal(store_reader_work(b->reader), 0); /* one at a time */
    wait = store_reader_work(b->reader);
    assert_true(wait > 0 && wait <= 10 * NS_PER_MS);
    assert_int_equal(b->answers, 0);
    b->is_ring_full = false;
    assert_int_equal(store_reader_work(b->reader), INT64_MAX);
    assert_int_equal(b->answers, 2);
    assert_int_equal(first->items[0].state, STORE_ITEM_FOUND);
    assert_int_equal(second->items[0].state, STORE_ITEM_FOUND);
    store_read_free(first);
    store_read_free(second);
    /* What nobody fetched goes with the reader. */
    store_reader_on_op(b->reader, &(struct op){.type = OP_STORE_READ, .from = 2, .read = request(STORE_READ_QUEUE, 1, &sequence, 1)});
    store_reader_on_op(b->reader, &(struct op){.type = OP_STORE_READ, .from = 2, .read = request(STORE_READ_QUEUE, 1, &sequence, 1)});
    b->is_ring_full = true;
    assert_int_equal(store_reader_work(b->reader), 0);
    bench_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_messages_as_the_session_wants_them),
        cmocka_unit_test(says_what_messages_cost_without_reading_them),
        cmocka_unit_test(what_is_not_committed_is_gone),
        cmocka_unit_test(bytes_of_a_request_are_bounded),
        cmocka_unit_test(reads_runs_one_after_the_other),
        cmocka_unit_test(damage_is_told_and_left_out),
        cmocka_unit_test(a_body_that_is_missing_is_damage),
        cmocka_unit_test(requests_wait_for_database_and_ring),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
