/* Retained values in the checkpoint. */
#include <stdio.h>
#include <string.h>

#include "common/hash.h"
#include "tests/lib/checkpoint_bench.h"

/* The rows of bodies and of retained values. */
#define ASSERT_ENTRIES(b, bodies, retained)                                                                                                \
    do {                                                                                                                                   \
        assert_int_equal(bench_entries((b), KV_BODIES), (bodies));                                                                         \
        assert_int_equal(bench_entries((b), KV_RETAINED), (retained));                                                                     \
    } while (0)

static void the_greater_number_is_retained_whatever_comes_first(void **state)
{
    struct bench *b = (struct bench *)*state;
    for (int committed = 0; committed < 2; committed++) {
        uint64_t base = committed ? 100 : 0;
        bench_retain(b, "t", "new", base + 5);
        uint64_t kept = b->sequence;
        if (committed)
            bench_commit(b);
        bench_retain(b, "t", "old", base + 4);
        char expected[100];
        snprintf(expected, sizeof expected, "retained t number %d of %d cost 4 expiry 0\n", (int)base + 5, (int)kept);
        bench_assert_loads(b, NULL, expected);
        assert_int_equal(bench_entries(b, KV_BODIES), 1);
        assert_int_equal(checkpoint_state(b->checkpoint).retained_number_max, base + 5);
    }
}

static void a_will_that_is_owed_goes_to_a_session_of_its_own(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_session(b, 7, true);
    bench_apply(b, (struct record){.type = RECORD_WILL, .session = 7, .topic = S("gone"), .payload = S("x"), .qos = 1});
    bench_commit(b);
    bench_session(b, 9, false);
    bench_apply(b, (struct record){.type = RECORD_WILL, .session = 9, .will_session = 7, .topic = S("gone"), .payload = S("x"), .qos = 1});
    bench_apply(b, (struct record){.type = RECORD_WILL, .session = 7, .topic = S("next"), .payload = S("x"), .qos = 1});
    bench_assert_loads(b, NULL,
                       "session 7 client expiry 60 connected 5000 v5 will next\n"
                       "session 9 client expiry 60 away 5000 v5 will gone\n");
    bench_apply(b,
                (struct record){.type = RECORD_PUBLISH, .will_session = 9, .session = 7, .topic = S("gone"), .payload = S("x"), .qos = 1});
    bench_apply(b, (struct record){.type = RECORD_SESSION_DELETE, .session = 9});
    bench_assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 will next\n");
}

static void expire(struct bench *b, const char *topic, uint64_t number)
{
    OK(checkpoint_expire_retained(b->checkpoint, span_of_string(topic), number));
}

/* Its removal is remembered as one that was published; who wants the message still gets it. */
static void an_expired_value_is_removed(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_retain(b, "t", "short", 5);
    bench_retain(b, "u", "long", 6);
    bench_commit(b);
    expire(b, "t", 4);
    expire(b, "none", 5);
    expire(b, "u", 5); /* replaced meanwhile */
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_BODIES), 2);
    expire(b, "t", 5);
    expire(b, "t", 5);
    bench_commit(b);
    ASSERT_ENTRIES(b, 1, 2);
    bench_retain(b, "t", "older", 3);
    checkpoint_forget_removals(b->checkpoint, 7);
    bench_commit(b);
    assert_int_equal(counter_get(&checkpoint_get_stats(b->checkpoint)->expired), 1);
    ASSERT_ENTRIES(b, 1, 1);
    bench_assert_loads(b, NULL, "retained u number 6 of 2 cost 5 expiry 0\n");
}

static void a_removal_is_remembered_until_nothing_older_can_come(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_retain(b, "t", "first", 1);
    bench_commit(b);
    bench_retain(b, "t", "", 7);
    bench_commit(b);
    ASSERT_ENTRIES(b, 0, 1);
    bench_retain(b, "t", "late", 6);
    checkpoint_forget_removals(b->checkpoint, 7);
    bench_commit(b);
    ASSERT_ENTRIES(b, 0, 1);
    checkpoint_forget_removals(b->checkpoint, 8);
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_RETAINED), 0);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_count, 0);
    bench_retain(b, "t", "", 9); /* of nothing */
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_RETAINED), 1);
    bench_assert_loads(b, NULL, "");
    assert_int_equal(bench_entries(b, KV_RETAINED), 0);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_number_max, 9);
}

static void a_message_that_is_queued_and_retained_has_two_holders(void **state)
{
    struct bench *b = (struct bench *)*state;
    static struct bench_recipients to;
    for (uint64_t way = 0; way < 4; way++) {
        uint64_t one = 1;
        struct record rec = bench_publish_to(&to, &one, 1);
        rec.retained_number = 10 * way + 1;
        uint64_t sequence = bench_apply(b, rec);
        if (way & 1)
            bench_commit(b);
        if (way & 2)
            bench_ack(b, 1, sequence);
        else
            bench_retain(b, "a/b", "", 10 * way + 2);
        bench_commit(b);
        assert_int_equal(bench_entries(b, KV_BODIES), 1);
        assert_int_equal(bench_entries(b, KV_HOLDERS), 0);
        if (way & 2)
            bench_retain(b, "a/b", "", 10 * way + 2);
        else
            bench_ack(b, 1, sequence);
        bench_commit(b);
        assert_int_equal(bench_entries(b, KV_BODIES), 0);
    }
}

static void an_expired_value_goes_when_the_load_refuses_it(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_apply(b, (struct record){.type = RECORD_PUBLISH, .topic = S("t"), .payload = S("p"), .retained_number = 1, .expiry_ns = 77});
    bench_assert_loads(b, NULL, "retained t number 1 of 1 cost 2 expiry 77\n");
    bench_crash(b);
    struct bench_loaded loaded = {.refuse_retained = true};
    OK(bench_try_load(b, &loaded));
    ASSERT_ENTRIES(b, 0, 0);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_count, 0);
}

/* Without space for it the value stays, and is counted until another takes its place. */
static void an_expired_value_that_cannot_go_is_counted(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_apply(b, (struct record){.type = RECORD_PUBLISH, .topic = S("t"), .payload = S("p"), .retained_number = 1, .expiry_ns = 77});
    bench_commit(b);
    bench_crash(b);
    sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_NOSPACE, 0);
    struct bench_loaded loaded = {.refuse_retained = true};
    OK(bench_try_load(b, &loaded));
    assert_int_equal(bench_entries(b, KV_RETAINED), 1);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_count, 1);
    bench_apply(b, (struct record){.type = RECORD_PUBLISH, .topic = S("t"), .payload = S("q"), .retained_number = 2});
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_BODIES), 1);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_count, 1);
}

/* A value of another topic under the keys of `topic`, as if their hashes were the same. */
static void put_other(struct bench *b, const char *topic, uint64_t slot, const char *other, uint64_t sequence)
{
    uint8_t key[16], value[64] = {0};
    struct kv_txn *txn;
    store_le64(value, 1);
    store_le64(value + 8, sequence);
    memcpy(value + 32, other, strlen(other));
    OK(kv_begin(b->kv, &txn, true));
    OK(kv_put(txn, KV_RETAINED, bench_retained_key(key, topic, slot), span_of(value, 32 + strlen(other))));
    static const uint8_t body[] = {0x00, 0x0b, 0x00, 0x00, 0x00, 0x01, 0x41, 0x01, 0x74, 0x49, 0x01, 0x78};
    OK(kv_put(txn, KV_BODIES, kv_key_u64(key, sequence), span_of(body, sizeof body)));
    OK(kv_commit(txn));
}

static void topics_whose_hashes_collide_stand_beside_each_other(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t key[16];
    bench_commit(b);
    b->sequence = 10;
    put_other(b, "t", 0, "o1", 1);
    put_other(b, "t", 1, "o2", 2);
    bench_retain(b, "t", "first", 1);
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_RETAINED), 3);
    struct kv_txn *txn;
    OK(kv_begin(b->kv, &txn, true)); /* a gap before it */
    OK(kv_del(txn, KV_RETAINED, bench_retained_key(key, "t", 0)));
    OK(kv_del(txn, KV_BODIES, kv_key_u64(key, 1)));
    OK(kv_commit(txn));
    bench_retain(b, "t", "second", 2);
    bench_commit(b);
    ASSERT_ENTRIES(b, 2, 2);
    bench_retain(b, "t", "", 3);
    checkpoint_forget_removals(b->checkpoint, 4);
    bench_commit(b);
    ASSERT_ENTRIES(b, 1, 1);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, bench_setup, bench_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(the_greater_number_is_retained_whatever_comes_first),
        CASE(an_expired_value_is_removed),
        CASE(a_will_that_is_owed_goes_to_a_session_of_its_own),
        CASE(a_removal_is_remembered_until_nothing_older_can_come),
        CASE(a_message_that_is_queued_and_retained_has_two_holders),
        CASE(an_expired_value_goes_when_the_load_refuses_it),
        CASE(an_expired_value_that_cannot_go_is_counted),
        CASE(topics_whose_hashes_collide_stand_beside_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
