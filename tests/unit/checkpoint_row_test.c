/* Rows of several messages: what ends goes, what is damaged is one row. */
#include <stdlib.h>

#include "broker/durable/checkpoint_row.h"
#include "tests/lib/check_random.h"
#include "tests/lib/checkpoint_bench.h"

#define R_MESSAGES 600
#define R_SESSIONS 6

struct row_message {
    size_t size; /* of its payload */
    bool wants[R_SESSIONS];
};

static uint8_t row_payload(uint64_t sequence, size_t at) { return (uint8_t)(sequence * 31 + at); }

static uint64_t publish_sized(struct bench *b, struct check_random *random, struct row_message *message)
{
    static struct bench_recipients to;
    static uint8_t payload[20000];
    to.size = 0;
    message->size = check_random_chance(random, 1, 8) ? check_random_below(random, sizeof payload) : check_random_below(random, 700);
    for (uint64_t i = 0; i < R_SESSIONS; i++) {
        message->wants[i] = i == 0 || check_random_chance(random, 1, 4);
        if (message->wants[i])
            bench_recipients_add(&to, i + 1, 1, span_of(NULL, 0));
    }
    for (size_t i = 0; i < message->size; i++)
        payload[i] = row_payload(b->sequence + 1, i);
    return bench_apply(b, (struct record){.type = RECORD_PUBLISH,
                                          .topic = S("t"),
                                          .payload = span_of(payload, message->size),
                                          .recipients = span_of(to.bytes, to.size)});
}

static uint64_t check_messages(struct bench *b, const struct row_message *messages, uint64_t count)
{
    struct kv_txn *txn;
    uint64_t wanted = 0;
    OK(kv_begin(b->kv, &txn, false));
    for (uint64_t sequence = 1; sequence <= count; sequence++) {
        struct checkpoint_want want;
        struct record rec;
        bool is_wanted = false;
        for (uint64_t i = 0; i < R_SESSIONS; i++) {
            assert_int_equal(checkpoint_find_want(txn, &want, i + 1, sequence), messages[sequence].wants[i] ? ERR_OK : ERR_NOTFOUND);
            is_wanted = is_wanted || messages[sequence].wants[i];
        }
        assert_int_equal(checkpoint_find_body(txn, &rec, sequence), is_wanted ? ERR_OK : ERR_NOTFOUND);
        wanted += is_wanted;
        if (!is_wanted)
            continue;
        assert_int_equal(rec.payload.size, messages[sequence].size);
        for (size_t i = 0; i < rec.payload.size; i++)
            assert_int_equal(rec.payload.data[i], row_payload(sequence, i));
    }
    kv_abort(txn);
    return wanted;
}

/* Small and large, acknowledged in any order, all at once and one by one. */
static void rows_give_up_what_ended_and_keep_the_rest(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct check_random random;
    check_random_init(&random, check_random_seed(5));
    struct row_message *messages = (struct row_message *)calloc(R_MESSAGES + 1, sizeof *messages);
    uint64_t count = 0, sequence = 0;
    while (count < R_MESSAGES) {
        for (uint64_t i = check_random_below(&random, 200); i > 0 && count < R_MESSAGES; i--) {
            count = publish_sized(b, &random, &messages[b->sequence + 1]);
            if (b->sequence == R_MESSAGES)
                break;
        }
        bench_commit(b);
        assert_int_equal(check_messages(b, messages, count), bench_entries(b, KV_BODIES));
    }
    assert_in_range(bench_rows(b, KV_RECIPIENTS), R_MESSAGES / CHECKPOINT_ROW_WANTS, R_MESSAGES / 8);
    assert_in_range(bench_rows(b, KV_BODIES), R_MESSAGES / 16, R_MESSAGES / 2);
    for (int round = 0; bench_entries(b, KV_BODIES) > 0; round++) {
        uint32_t share = 1 + (uint32_t)check_random_below(&random, 20);
        for (sequence = 1; sequence <= R_MESSAGES; sequence++) {
            for (uint64_t i = 0; i < R_SESSIONS; i++) {
                if (!check_random_chance(&random, 1, share) && round < 30)
                    continue;
                bench_ack(b, i + 1, sequence); /* whether it wants it or not */
                messages[sequence].wants[i] = false;
            }
        }
        bench_commit(b);
        uint64_t wanted = check_messages(b, messages, R_MESSAGES);
        assert_int_equal(wanted, bench_entries(b, KV_BODIES));
        assert_int_equal(wanted, checkpoint_state(b->checkpoint).body_count);
    }
    assert_int_equal(bench_rows(b, KV_RECIPIENTS), 0);
    assert_int_equal(bench_rows(b, KV_BODIES), 0);
    free(messages);
}

/* A damaged row takes those along that stand in it, and nobody else; it stays where it is. */
static void a_damaged_row_of_bodies_is_one_row(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t key[8];
    uint64_t first = bench_publish(b, 1, 1);
    bench_publish(b, 1, 1);
    bench_commit(b);
    uint64_t other = bench_publish(b, 1, 1);
    bench_commit(b);
    assert_int_equal(bench_rows(b, KV_BODIES), 2);
    assert_true(sim_kv_flip(b->sim, KV_BODIES, kv_key_u64(key, first), 5));
    struct kv_txn *txn;
    struct record rec;
    OK(kv_begin(b->kv, &txn, false));
    assert_int_equal(checkpoint_find_body(txn, &rec, first), ERR_CORRUPT);
    assert_int_equal(checkpoint_find_body(txn, &rec, first + 1), ERR_CORRUPT);
    OK(checkpoint_find_body(txn, &rec, other));
    kv_abort(txn);
    for (uint64_t sequence = first; sequence <= other; sequence++)
        bench_ack(b, 1, sequence);
    bench_commit(b);
    assert_int_equal(STAT(b, corrupt), 2);
    assert_int_equal(bench_rows(b, KV_RECIPIENTS), 0);
    assert_int_equal(bench_rows(b, KV_BODIES), 1);
    bench_crash(b);
    struct bench_loaded loaded = {0};
    OK(bench_try_load(b, &loaded));
    assert_int_equal(bench_rows(b, KV_BODIES), 1);
    assert_int_equal(checkpoint_state(b->checkpoint).body_count, 0);
}

/* The last wants of a message end in a row that others have wants in, too; damage elsewhere makes the load look at every body. */
static void a_body_is_kept_for_wants_in_any_of_its_rows(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t key[16];
    uint64_t wanted = bench_publish(b, 1, CHECKPOINT_CHUNK + 4);
    bench_publish(b, 1000, 1);
    bench_commit(b);
    uint64_t damaged = bench_publish(b, 1, 1);
    bench_publish(b, 1, 1);
    bench_commit(b);
    assert_int_equal(bench_rows(b, KV_RECIPIENTS), 3);
    for (uint64_t i = 1; i <= 4; i++)
        bench_ack(b, CHECKPOINT_CHUNK + i, wanted);
    bench_commit(b);
    assert_int_equal(bench_rows(b, KV_RECIPIENTS), 3);
    bench_crash(b);
    assert_true(sim_kv_flip(b->sim, KV_RECIPIENTS, kv_key_u64_u64(key, damaged, 1), 1));
    struct bench_loaded loaded = {.known = (const uint64_t[]){1, 1000, 0}};
    OK(bench_try_load(b, &loaded));
    assert_int_equal(loaded.corrupt, 1);
    struct kv_txn *txn;
    struct record rec;
    OK(kv_begin(b->kv, &txn, false));
    OK(checkpoint_find_body(txn, &rec, wanted));
    kv_abort(txn);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, bench_setup, bench_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(rows_give_up_what_ended_and_keep_the_rest),
        CASE(a_damaged_row_of_bodies_is_one_row),
        CASE(a_body_is_kept_for_wants_in_any_of_its_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
