/* Sessions in the checkpoint. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/checkpoint_bench.h"

#define OWED RECORD_SUBSCRIPTION_OWED

static void a_subscription_is_owed_values_until_they_are_given(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_session(b, 7, true);
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("a"), .options = 1 | OWED});
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("b"), .options = 1 | OWED});
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("c"), .options = 1});
    bench_commit(b);
    bench_apply(
        b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("a"), .options = 2 | 1 << 4}); /* nothing more: owed */
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("b"), .options = 2});  /* all anew: none there */
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("c"), .options = 2 | 2 << 4});
    bench_assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sub a=68719476754 sub b=2 sub c=34\n");
    bench_apply(b, (struct record){.type = RECORD_UNSUBSCRIBE, .session = 7, .topic = S("a")});
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("a"), .options = 2 | 1 << 4});
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("d"), .options = 2 | OWED});
    bench_commit(b);
    bench_apply(b, (struct record){.type = RECORD_RETAINED_GIVEN, .session = 8});
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("e"), .options = 2 | OWED});
    bench_assert_loads(b, NULL,
                       "session 7 client expiry 60 connected 5000 v5 sub a=18 sub b=2 sub c=34 sub d=68719476738 sub e=68719476738\n");
    bench_apply(b, (struct record){.type = RECORD_RETAINED_GIVEN, .session = 7});
    bench_assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sub a=18 sub b=2 sub c=34 sub d=2 sub e=2\n");
}

static void a_session_comes_back_as_it_was(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_session(b, 7, true);
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("a/#"), .options = 1});
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("b"), .options = 2});
    bench_commit(b);
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("a/#"), .options = 0x102});
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("c"), .options = 0});
    bench_apply(b, (struct record){.type = RECORD_UNSUBSCRIBE, .session = 7, .topic = S("b")});
    bench_apply(b, (struct record){.type = RECORD_WILL, .session = 7, .topic = S("gone"), .payload = S("x"), .qos = 1});
    bench_apply(b, (struct record){.type = RECORD_PUBLISH, .qos = 2, .session = 7, .packet_id = 9, .topic = S("t"), .payload = S("p")});
    bench_apply(b, (struct record){.type = RECORD_PUBLISH, .qos = 2, .session = 7, .packet_id = 3, .topic = S("t"), .payload = S("p")});
    bench_apply(b, (struct record){.type = RECORD_PUBLISH, .qos = 2, .session = 8, .packet_id = 3, .topic = S("t"), .payload = S("p")});
    bench_apply(b, (struct record){.type = RECORD_RELEASED, .session = 7, .packet_id = 9});
    uint64_t sequence = bench_publish(b, 7, 1);
    bench_apply(b, (struct record){.type = RECORD_SENT, .session = 7, .packet_id = 5, .subject_sequence = sequence});
    bench_assert_loads(b, NULL,
                       "session 7 client expiry 60 connected 5000 v5 sub a/#=258 sub c=0 will gone in 3 sent 5:12\n"
                       "want 7 of 12 qos 1 cost 8\n");
    bench_apply(b, (struct record){.type = RECORD_RECEIVED, .session = 7, .packet_id = 5, .subject_sequence = sequence});
    bench_assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sub a/#=258 sub c=0 will gone in 3 received 5:12\n");
    assert_int_equal(bench_entries(b, KV_BODIES), 0);
    bench_apply(b, (struct record){.type = RECORD_ACK, .session = 7, .packet_id = 5, .subject_sequence = sequence});
    bench_session(b, 7, false);
    bench_assert_loads(b, NULL, "session 7 client expiry 60 away 5000 v5 sub a/#=258 sub c=0 will gone in 3\n");
    bench_session(b, 7, true); /* resumed: no will until it says so */
    bench_assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sub a/#=258 sub c=0 in 3\n");
}

static void a_will_goes_when_it_is_published_or_discarded(void **state)
{
    struct bench *b = (struct bench *)*state;
    for (int way = 0; way < 2; way++) {
        bench_session(b, 7, true);
        bench_apply(b, (struct record){.type = RECORD_WILL, .session = 7, .topic = S("gone"), .payload = S("x")});
        bench_assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 will gone\n");
        if (way == 0)
            bench_apply(b, (struct record){.type = RECORD_WILL_DELETE, .session = 7});
        else
            bench_apply(b, (struct record){.type = RECORD_PUBLISH, .session = 7, .will_session = 7, .topic = S("gone"), .payload = S("x")});
        bench_assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5\n");
    }
}

/* Its size makes a commit due, so a will that goes must not make it huge. */
static void the_delta_shrinks_with_what_goes(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_session(b, 7, false);
    size_t before = checkpoint_delta_bytes(b->checkpoint);
    bench_apply(b, (struct record){.type = RECORD_WILL, .session = 7, .topic = S("will"), .payload = S("a last word")});
    assert_true(checkpoint_delta_bytes(b->checkpoint) > before);
    bench_apply(b, (struct record){.type = RECORD_WILL_DELETE, .session = 7});
    assert_int_equal(checkpoint_delta_bytes(b->checkpoint), before);
    bench_apply(b, (struct record){.type = RECORD_SESSION, .session = 7, .client_id = S("client")}); /* a shorter one */
    assert_true(checkpoint_delta_bytes(b->checkpoint) < before);
}

static void a_session_value_is_written_only_when_it_differs(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_session(b, 7, true);
    bench_commit(b);
    uint64_t puts = sim_kv_counts(b->sim).puts;
    bench_session(b, 7, true);
    bench_apply(b, (struct record){.type = RECORD_PUBLISH, .qos = 2, .session = 7, .packet_id = 9, .topic = S("t"), .payload = S("p")});
    bench_apply(b, (struct record){.type = RECORD_RELEASED, .session = 7, .packet_id = 9});
    bench_commit(b);
    assert_int_equal(sim_kv_counts(b->sim).puts, puts + 1); /* the position */
    assert_int_equal(checkpoint_state(b->checkpoint).session_count, 1);
}

static void thousands_of_filters_of_one_session(void **state)
{
    struct bench *b = (struct bench *)*state;
    char filter[40];
    bench_session(b, 7, true);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < 20000; i++) {
            snprintf(filter, sizeof filter, "plant/%d/+", i);
            bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S(filter), .options = 1});
        }
        bench_commit(b);
        for (int i = 1; i < 20000; i++) {
            snprintf(filter, sizeof filter, "plant/%d/+", i);
            bench_apply(b, (struct record){.type = RECORD_UNSUBSCRIBE, .session = 7, .topic = S(filter)});
        }
    }
    bench_assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sub plant/0/+=1\n");
}

static void names_of_the_greatest_length_are_kept(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t *name = (uint8_t *)malloc(65535);
    memset(name, 'n', 65535);
    struct span longest = span_of(name, 65535);
    bench_apply(b, (struct record){.type = RECORD_SESSION, .session = 7, .client_id = longest});
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = longest, .options = 1});
    bench_apply(b, (struct record){.type = RECORD_PUBLISH, .topic = longest, .payload = S("p"), .retained_number = 1});
    bench_commit(b);
    name[65534] = 'm';
    bench_apply(b, (struct record){.type = RECORD_PUBLISH, .topic = longest, .payload = S("p"), .retained_number = 2});
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_RETAINED), 2);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_count, 2);
    free(name);
}

static void many_identifiers_of_outgoing_qos_2_keep_their_order(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_session(b, 7, true);
    for (uint16_t id = 1; id <= 200; id++)
        bench_apply(b, (struct record){.type = RECORD_SENT, .session = 7, .packet_id = id, .subject_sequence = id});
    bench_commit(b);
    for (uint16_t id = 1; id <= 200; id++)
        if (id % 50 != 0)
            bench_apply(b, (struct record){.type = RECORD_ACK, .session = 7, .packet_id = id, .subject_sequence = id});
    bench_apply(b, (struct record){.type = RECORD_SENT, .session = 7, .packet_id = 50, .subject_sequence = 7000});
    bench_apply(b, (struct record){.type = RECORD_RECEIVED, .session = 7, .packet_id = 150, .subject_sequence = 150});
    bench_assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sent 100:100 received 150:150 sent 200:200 sent 50:7000\n");
}

static void an_identifier_is_in_use_also_for_a_message_without_a_name(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_session(b, 7, true);
    bench_apply(b, (struct record){.type = RECORD_SENT, .session = 7, .packet_id = 1});
    bench_apply(b, (struct record){.type = RECORD_SENT, .session = 7, .packet_id = 2});
    bench_commit(b);
    bench_apply(b, (struct record){.type = RECORD_RECEIVED, .session = 7, .packet_id = 2});
    bench_assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 sent 1:0 received 2:0\n");
    bench_apply(b, (struct record){.type = RECORD_ACK, .session = 7, .packet_id = 1});
    bench_assert_loads(b, NULL, "session 7 client expiry 60 connected 5000 v5 received 2:0\n");
}

static void a_session_that_ended_takes_its_runs_along(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t sequences[64];
    bench_session(b, 1, false);
    bench_session(b, 2, false);
    for (int i = 0; i < 64; i++)
        sequences[i] = bench_publish(b, 1, i % 2 ? 1 : 2);
    bench_commit(b);
    OK(checkpoint_put_run(b->checkpoint, 1, sequences, 32));
    OK(checkpoint_put_run(b->checkpoint, 1, sequences + 32, 32));
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_RUNS), 2);
    bench_apply(b, (struct record){.type = RECORD_SESSION_DELETE, .session = 1});
    uint64_t late = bench_publish(b, 1, 2); /* was matched before the end */
    assert_int_equal(STAT(b, dropped_deleted), 1);
    bench_commit(b);
    assert_false(checkpoint_has_more(b->checkpoint));
    assert_int_equal(bench_entries(b, KV_RUNS), 0);
    assert_int_equal(bench_entries(b, KV_SESSIONS), 1);
    assert_int_equal(bench_entries(b, KV_BODIES), 33);
    assert_int_equal(bench_find_want(b, 1, late), ERR_NOTFOUND);
    OK(bench_find_want(b, 2, late));
    /* A run that was on its way. */
    OK(checkpoint_put_run(b->checkpoint, 1, sequences, 2));
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_RUNS), 0);
}

static void a_long_queue_goes_over_several_commits_or_with_the_load(void **state)
{
    struct bench *b = (struct bench *)*state;
    enum { COUNT = 2 * CHECKPOINT_JOB_WANTS + 64 };
    uint64_t *sequences = (uint64_t *)malloc(COUNT * sizeof *sequences);
    for (int way = 0; way < 2; way++) {
        bench_session(b, 1, false);
        for (int i = 0; i < COUNT; i++)
            sequences[i] = bench_publish(b, 1, 1);
        bench_commit(b);
        for (int i = 0; i < COUNT; i += 32)
            OK(checkpoint_put_run(b->checkpoint, 1, sequences + i, 32));
        bench_commit(b);
        bench_apply(b, (struct record){.type = RECORD_SESSION_DELETE, .session = 1});
        bench_commit(b);
        assert_true(checkpoint_has_more(b->checkpoint));
        assert_int_equal(bench_entries(b, KV_BODIES), COUNT - CHECKPOINT_JOB_WANTS);
        if (way == 0) {
            bench_commit(b);
            bench_commit(b);
            assert_false(checkpoint_has_more(b->checkpoint));
        } else {
            bench_assert_loads(b, NOBODY, "");
        }
        assert_int_equal(bench_entries(b, KV_BODIES), 0);
        assert_int_equal(bench_entries(b, KV_RUNS), 0);
        assert_int_equal(bench_entries(b, KV_RECIPIENTS), 0);
        bench_crash(b);
        for (enum kv_tree tree = KV_SESSIONS; tree < KV_TREE_COUNT; tree++)
            assert_int_equal(bench_entries(b, tree), 0);
        bench_close(b); /* numbers are never used again: a database of its own for the other way */
        sim_kv_free(b->sim);
        b->sim = sim_kv_new(8);
        b->sequence = 0;
        bench_open(b);
    }
    free(sequences);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, bench_setup, bench_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(a_subscription_is_owed_values_until_they_are_given),
        CASE(a_session_comes_back_as_it_was),
        CASE(a_will_goes_when_it_is_published_or_discarded),
        CASE(the_delta_shrinks_with_what_goes),
        CASE(a_session_value_is_written_only_when_it_differs),
        CASE(thousands_of_filters_of_one_session),
        CASE(names_of_the_greatest_length_are_kept),
        CASE(many_identifiers_of_outgoing_qos_2_keep_their_order),
        CASE(an_identifier_is_in_use_also_for_a_message_without_a_name),
        CASE(a_session_that_ended_takes_its_runs_along),
        CASE(a_long_queue_goes_over_several_commits_or_with_the_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
