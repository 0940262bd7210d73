/* The database as a checkpoint: its format and position; messages and who wants them. */
#include "tests/lib/check_random.h"
#include "tests/lib/checkpoint_bench.h"

static void a_new_database_gets_format_and_position_with_the_first_commit(void **state)
{
    struct bench *b = (struct bench *)*state;
    assert_int_equal(checkpoint_state(b->checkpoint).broker_id, 0);
    assert_int_equal(bench_entries(b, KV_META), 0);
    b->sequence = 41;
    bench_commit(b);
    bench_crash(b);
    struct checkpoint_state at = checkpoint_state(b->checkpoint);
    struct log_cursor_value cursor = bench_cursor_at(42);
    assert_true(at.broker_id == BENCH_BROKER);
    assert_int_equal(log_cursor_compare(&at.cursor, &cursor), 0);
    assert_int_equal(at.cursor.position.epoch, 3);
    assert_int_equal(at.cursor.place.offset, 42 * 512);
    assert_int_equal(at.cursor.reopen.generation, 4);
}

static void another_format_is_refused_and_one_without_position_is_corrupt(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t format[16] = {0};
    struct checkpoint *other;
    struct kv_txn *txn;
    for (uint8_t number = 0; number <= CHECKPOINT_FORMAT + 1; number++) {
        format[0] = number;
        OK(kv_begin(b->kv, &txn, true));
        OK(kv_put(txn, KV_META, S("format"), span_of(format, 16)));
        OK(kv_commit(txn));
        assert_int_equal(checkpoint_open(&other, b->kv, 1, &b->msg),
                         number == 0 || number == CHECKPOINT_FORMAT ? ERR_CORRUPT : ERR_VERSION);
    }
}

static void values_without_a_format_are_corrupt(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct checkpoint *other;
    struct kv_txn *txn;
    OK(kv_begin(b->kv, &txn, true));
    OK(kv_put(txn, KV_BODIES, S("12345678"), S("x")));
    OK(kv_commit(txn));
    assert_int_equal(checkpoint_open(&other, b->kv, 1, &b->msg), ERR_CORRUPT);
}

static void what_all_acknowledge_within_a_delta_is_never_written(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t sequence = bench_publish(b, 10, 1000);
    for (uint64_t number = 1009; number >= 10; number--)
        bench_ack(b, number, sequence);
    assert_int_equal(STAT(b, never_written), 1);
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_BODIES), 0);
    assert_int_equal(bench_entries(b, KV_RECIPIENTS), 0);
    assert_int_equal(checkpoint_delta_bytes(b->checkpoint), 0);
}

/* Messages of an online subscriber come and go between two commits: they take the room of a few, however many they are. */
static void what_comes_and_goes_takes_no_room(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t kept = bench_publish(b, 1, 1), before = 0;
    for (int i = 0; i < 20000; i++) {
        uint64_t sequence = bench_publish(b, 1, 1);
        if (before)
            bench_ack(b, 1, before);
        before = sequence;
        assert_true(checkpoint_delta_bytes(b->checkpoint) < (size_t)400 << 10);
    }
    assert_int_equal(STAT(b, never_written), 19999);
    bench_commit(b);
    OK(bench_find_want(b, 1, kept));
    OK(bench_find_want(b, 1, before));
    assert_int_equal(bench_entries(b, KV_BODIES), 2);
}

static void a_body_stays_as_long_as_somebody_wants_it(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t sequence = bench_publish(b, 1, 600); /* three chunks */
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_RECIPIENTS), 3);
    assert_int_equal(bench_entries(b, KV_HOLDERS), 1);
    for (uint64_t number = 1; number <= 600; number++) {
        bench_ack(b, number, sequence);
        if (number % 50 == 0 || number > 597)
            bench_commit(b);
        if (number % 50 == 0) {
            assert_int_equal(bench_find_want(b, number, sequence), ERR_NOTFOUND);
            assert_int_equal(bench_find_want(b, number + 1, sequence), number < 600 ? ERR_OK : ERR_NOTFOUND);
        }
        assert_int_equal(bench_entries(b, KV_BODIES), number < 600);
    }
    assert_int_equal(bench_entries(b, KV_RECIPIENTS), 0);
    assert_int_equal(bench_entries(b, KV_HOLDERS), 0);
}

static void wants_end_in_any_order_over_several_chunks(void **state)
{
    struct bench *b = (struct bench *)*state;
    struct check_random random;
    check_random_init(&random, check_random_seed(3));
    for (int round = 0; round < 30; round++) {
        uint64_t order[1200], first = (uint64_t)round * 5000 + 1;
        size_t count = 1 + check_random_below(&random, 1200);
        bool is_retained = check_random_chance(&random, 1, 2);
        for (size_t i = 0; i < count; i++)
            order[i] = first + 2 * i;
        static struct bench_recipients to;
        check_random_shuffle(&random, order, count, sizeof *order);
        struct record rec = bench_publish_to(&to, order, count);
        rec.retained_number = is_retained ? (uint64_t)round + 1 : 0;
        uint64_t sequence = bench_apply(b, rec);
        check_random_shuffle(&random, order, count, sizeof *order);
        for (size_t i = 0; i < count; i++) {
            bench_ack(b, order[i], sequence);
            bench_ack(b, order[i] + 1, sequence); /* nobody */
            if (check_random_chance(&random, 1, 40)) {
                bench_commit(b);
                for (size_t k = 0; k < count; k += 1 + count / 50)
                    assert_int_equal(bench_find_want(b, order[k], sequence), k <= i ? ERR_NOTFOUND : ERR_OK);
            }
        }
        bench_commit(b);
        assert_int_equal(bench_entries(b, KV_RECIPIENTS), 0);
        assert_int_equal(bench_entries(b, KV_BODIES), is_retained);
        assert_int_equal(bench_entries(b, KV_HOLDERS), 0);
        if (is_retained)
            bench_retain(b, "a/b", "", (uint64_t)round + 1000000);
        checkpoint_forget_removals(b->checkpoint, UINT64_MAX);
        bench_commit(b);
        assert_int_equal(bench_entries(b, KV_BODIES), 0);
        assert_int_equal(bench_entries(b, KV_RETAINED), 0);
        struct checkpoint_state at = checkpoint_state(b->checkpoint);
        assert_int_equal(at.retained_count, 0);
        /* Numbers of retained values go on with the next round: what is stored of them is gone. */
    }
}

static void a_session_that_comes_twice_wants_it_once_at_the_greater_qos(void **state)
{
    struct bench *b = (struct bench *)*state;
    static struct bench_recipients to;
    uint8_t five = 5;
    to.size = 0;
    bench_recipients_add(&to, 8, 1, span_of(NULL, 0));
    bench_recipients_add(&to, 7, 0, span_of(NULL, 0));
    struct span all = bench_recipients_add(&to, 7, 2, span_of(&five, 1));
    uint64_t sequence =
        bench_apply(b, (struct record){.type = RECORD_PUBLISH, .qos = 2, .topic = S("t"), .payload = S("p"), .recipients = all});
    bench_commit(b);
    struct kv_txn *txn;
    struct checkpoint_want want;
    OK(kv_begin(b->kv, &txn, false));
    OK(checkpoint_find_want(txn, &want, 7, sequence));
    assert_int_equal(want.qos, 2);
    assert_int_equal(want.options, 8);
    assert_true(span_equal(want.ids, span_of(&five, 1)));
    struct record rec;
    OK(checkpoint_find_body(txn, &rec, sequence));
    assert_true(span_equal(rec.payload, S("p")));
    assert_int_equal(rec.recipients.size, 0);
    assert_int_equal(checkpoint_find_body(txn, &rec, sequence + 1), ERR_NOTFOUND);
    kv_abort(txn);
    bench_ack(b, 7, sequence);
    bench_commit(b);
    assert_int_equal(bench_find_want(b, 7, sequence), ERR_NOTFOUND);
    assert_int_equal(bench_find_want(b, 8, sequence), ERR_OK);
}

static void a_record_below_the_position_changes_nothing(void **state)
{
    struct bench *b = (struct bench *)*state;
    static struct bench_recipients to;
    uint64_t one = 1;
    struct record rec = bench_publish_to(&to, &one, 1);
    b->sequence = 100;
    bench_commit(b);
    OK(checkpoint_apply(b->checkpoint, &rec, 100));
    assert_int_equal(STAT(b, applied), 0);
    OK(checkpoint_apply(b->checkpoint, &rec, 101));
    OK(checkpoint_apply(b->checkpoint, &rec, 101));
    assert_int_equal(STAT(b, applied), 1);
}

static void records_that_no_broker_writes_change_nothing(void **state)
{
    struct bench *b = (struct bench *)*state;
    static const uint8_t half[] = {0x80};
    static const uint8_t nobody[] = {0, 1, 0, 0};
    struct record bad[] = {
        {.type = RECORD_PUBLISH, .recipients = span_of(half, 1), .topic = S("t"), .retained_number = 4, .payload = S("p")},
        {.type = RECORD_PUBLISH, .recipients = span_of(nobody, 4), .topic = S("t")},
        {.type = RECORD_PUBLISH, .retained_number = 4, .payload = S("p")},
        {.type = RECORD_SESSION},
        {.type = RECORD_SUBSCRIPTION, .session = 1},
        {.type = RECORD_DROP, .session = 1, .positions = span_of(half, 1)},
        {.type = RECORD_SENT, .session = 1, .subject_sequence = 1},
        {.type = RECORD_RELEASED, .session = 1},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(checkpoint_apply(b->checkpoint, &bad[i], 10 + i), ERR_CORRUPT);
    b->sequence = 100;
    bench_assert_loads(b, NULL, "");
}

static void unknown_types_are_passed_over(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_apply(b, (struct record){.type = 99, .session = 1});
    bench_apply(b, (struct record){.type = RECORD_DEVICE, .session = 1});
    bench_assert_loads(b, NULL, "");
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, bench_setup, bench_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_new_database_gets_format_and_position_with_the_first_commit),
        CASE(another_format_is_refused_and_one_without_position_is_corrupt),
        CASE(values_without_a_format_are_corrupt),
        CASE(what_all_acknowledge_within_a_delta_is_never_written),
        CASE(what_comes_and_goes_takes_no_room),
        CASE(a_body_stays_as_long_as_somebody_wants_it),
        CASE(wants_end_in_any_order_over_several_chunks),
        CASE(a_session_that_comes_twice_wants_it_once_at_the_greater_qos),
        CASE(a_record_below_the_position_changes_nothing),
        CASE(records_that_no_broker_writes_change_nothing),
        CASE(unknown_types_are_passed_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
