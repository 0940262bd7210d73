/* The load: what it says, puts right and leaves out; commits and loads without space or readers' slots; values as documented. */
#include <stdlib.h>

#include "broker/durable/checkpoint_row.h"
#include "tests/lib/checkpoint_bench.h"

static void the_load_says_which_wants_stand_in_a_run(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_session(b, 1, false);
    uint64_t s[8];
    for (int i = 0; i < 8; i++)
        s[i] = bench_publish(b, 1, 1); /* 2..9 */
    bench_commit(b);
    OK(checkpoint_put_run(b->checkpoint, 1, (uint64_t[]){s[0], s[1]}, 2));
    OK(checkpoint_put_run(b->checkpoint, 1, (uint64_t[]){s[2], s[4]}, 2));
    OK(checkpoint_put_run(b->checkpoint, 1, (uint64_t[]){s[5]}, 1));
    bench_ack(b, 1, s[0]);
    bench_ack(b, 1, s[1]); /* consumed, and the crash comes before it is dropped */
    bench_ack(b, 1, s[5]);
    bench_assert_loads(b, NULL,
                       "session 1 client expiry 60 away 5000 v5\nruns 1 to 7\nwant 1 of 4 qos 1 cost 8 run\nwant 1 of 5 qos 1 cost 8\n"
                       "want 1 of 6 qos 1 cost 8 run\nwant 1 of 8 qos 1 cost 8\nwant 1 of 9 qos 1 cost 8\n");
    assert_int_equal(bench_entries(b, KV_RUNS), 1);
    struct kv_txn *txn;
    uint64_t found[CHECKPOINT_RUN];
    uint32_t count;
    OK(kv_begin(b->kv, &txn, false));
    OK(checkpoint_find_run(txn, found, &count, 1, 0));
    assert_int_equal(count, 2);
    assert_int_equal(found[1], s[4]);
    assert_int_equal(checkpoint_find_run(txn, found, &count, 1, s[2] + 1), ERR_NOTFOUND);
    assert_int_equal(checkpoint_find_run(txn, found, &count, 0, 0), ERR_NOTFOUND);
    kv_abort(txn);
    OK(checkpoint_drop_run(b->checkpoint, 1, s[2]));
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_RUNS), 0);
}

static void what_nobody_is_there_for_is_removed(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_session(b, 2, false);
    for (int i = 0; i < 20000; i++)
        bench_publish(b, 1, i == 9999 ? 2 : 1);
    bench_commit(b);
    bench_assert_loads(b, (const uint64_t[]){2, 0}, "session 2 client expiry 60 away 5000 v5\nwant 2 of 10001 qos 1 cost 8\n");
    assert_int_equal(bench_entries(b, KV_BODIES), 1);
    assert_int_equal(bench_entries(b, KV_RECIPIENTS), 1);
}

static void bodies_and_counts_that_damage_left_behind_are_put_right(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t key[16], two[4] = {2};
    bench_publish(b, 1, 1);
    uint64_t wide = bench_publish(b, 1, 300), lost = bench_publish(b, 500, CHECKPOINT_ROW_WANTS + 1);
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_BODIES), 3);
    struct kv_txn *txn;
    OK(kv_begin(b->kv, &txn, true));
    OK(kv_del(txn, KV_RECIPIENTS, kv_key_u64_u64(key, lost, 500)));
    OK(kv_put(txn, KV_HOLDERS, kv_key_u64(key, lost), span_of(two, 4)));
    OK(kv_put(txn, KV_HOLDERS, kv_key_u64(key, 1), span_of(two, 4)));
    OK(kv_del(txn, KV_HOLDERS, kv_key_u64(key, wide)));
    OK(kv_commit(txn));
    bench_crash(b);
    struct bench_loaded *loaded = (struct bench_loaded *)calloc(1, sizeof *loaded);
    loaded->known = (const uint64_t[]){1, 0};
    OK(bench_try_load(b, loaded));
    assert_string_equal(loaded->text, "want 1 of 1 qos 1 cost 8\nwant 1 of 2 qos 1 cost 8\n");
    free(loaded);
    assert_int_equal(bench_entries(b, KV_BODIES), 2);
    assert_int_equal(bench_entries(b, KV_HOLDERS), 0);
    bench_ack(b, 1, 1);
    bench_ack(b, 1, wide);
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_BODIES), 0);
}

static void damaged_values_are_left_out_and_told(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint8_t key[16];
    bench_session(b, 1, false);
    bench_session(b, 2, false);
    uint64_t s1 = bench_publish(b, 1, 2);
    uint64_t s2 = bench_publish(b, 2, 1);
    bench_retain(b, "t", "p", 1);
    bench_retain(b, "u", "p", 2);
    bench_commit(b);
    OK(checkpoint_put_run(b->checkpoint, 2, &s1, 1));
    OK(checkpoint_put_run(b->checkpoint, 2, &s2, 1));
    bench_commit(b);
    assert_true(sim_kv_flip(b->sim, KV_SESSIONS, kv_key_u64(key, 1), 0));
    assert_true(sim_kv_flip(b->sim, KV_RUNS, kv_key_u64_u64(key, 2, s1), 0));
    assert_true(sim_kv_flip(b->sim, KV_RETAINED, bench_retained_key(key, "t", 0), 0));
    bench_crash(b);
    struct bench_loaded loaded = {.known = (const uint64_t[]){2, 0}};
    OK(bench_try_load(b, &loaded));
    assert_string_equal(loaded.text, "session 2 client expiry 60 away 5000 v5\nruns 2 to 4\nwant 2 of 3 qos 1 cost 8\n"
                                     "want 2 of 4 qos 1 cost 8 run\nretained u number 2 of 6 cost 2 expiry 0\n");
    assert_int_equal(loaded.corrupt, 3);
    assert_int_equal(STAT(b, corrupt), 3);
    assert_true(sim_kv_flip(b->sim, KV_RECIPIENTS, kv_key_u64_u64(key, s1, 1), 0)); /* the row of both */
    bench_crash(b);
    struct bench_loaded again = {.known = (const uint64_t[]){2, 0}};
    OK(bench_try_load(b, &again));
    assert_int_equal(again.corrupt, 3); /* session, retained value, chunk */
    assert_int_equal(bench_entries(b, KV_BODIES), 4);
    bench_session(b, 1, true); /* is made anew */
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 1, .topic = S("f"), .options = 1});
    bench_retain(b, "t", "q", 3);
    bench_ack(b, 2, s2);
    bench_commit(b);
    assert_int_equal(bench_find_want(b, 2, s2), ERR_CORRUPT);
}

static void a_callback_that_fails_ends_the_load(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_session(b, 1, false);
    bench_publish(b, 1, 1);
    bench_commit(b);
    for (uint64_t skip = 0; skip < 6; skip++) {
        sim_kv_fail(b->sim, SIM_KV_READ, ERR_IO, skip);
        struct bench_loaded loaded = {0};
        assert_int_equal(bench_try_load(b, &loaded), ERR_IO);
    }
    sim_kv_fail(b->sim, SIM_KV_READ, ERR_OK, 0);
    struct bench_loaded loaded = {0};
    OK(bench_try_load(b, &loaded));
}

static void a_commit_without_space_keeps_the_delta(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_session(b, 1, false);
    uint64_t sequence = bench_publish(b, 1, 300);
    for (int way = 0; way < 3; way++) {
        if (way == 0)
            sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_NOSPACE, 0);
        else if (way == 1)
            sim_kv_fail(b->sim, SIM_KV_PUT, ERR_NOSPACE, 2);
        else
            sim_kv_set_capacity(b->sim, 100);
        assert_int_equal(bench_try_commit(b), ERR_NOSPACE);
        assert_int_equal(checkpoint_state(b->checkpoint).broker_id, 0);
        assert_true(checkpoint_delta_bytes(b->checkpoint) > 0);
    }
    assert_int_equal(STAT(b, commit_retries), 3);
    sim_kv_set_capacity(b->sim, 0);
    bench_apply(b, (struct record){.type = RECORD_SESSION_DELETE, .session = 1});
    sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_NOSPACE, 0);
    assert_int_equal(bench_try_commit(b), ERR_NOSPACE);
    bench_commit(b);
    OK(bench_find_want(b, 300, sequence));
    assert_int_equal(bench_entries(b, KV_SESSIONS), 0);
    sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_IO, 0);
    assert_int_equal(bench_try_commit(b), ERR_IO);
}

/* What a session left that ended in this very delta is found again by each try: it goes ahead, and is no reason to try for ever. */
static void removals_that_are_found_again_do_not_count(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t sequences[3];
    bench_session(b, 1, false);
    for (int i = 0; i < 3; i++)
        sequences[i] = bench_publish(b, 1, 1);
    bench_commit(b);
    OK(checkpoint_put_run(b->checkpoint, 1, sequences, 3));
    bench_commit(b);
    bench_apply(b, (struct record){.type = RECORD_SESSION_DELETE, .session = 1});
    for (int i = 0; i < 3; i++) {
        sim_kv_fail(b->sim, SIM_KV_COMMIT, ERR_NOSPACE, 0);
        assert_int_equal(bench_try_commit(b), ERR_NOSPACE);
    }
    assert_int_equal(STAT(b, removal_commits), 0);
    bench_commit(b);
    bench_assert_loads(b, NULL, "");
}

/* What the delta removes goes ahead of what does not fit; a crash then replays both from the position before. */
static void removals_go_ahead_of_what_does_not_fit(void **state)
{
    struct bench *b = (struct bench *)*state;
    uint64_t sequences[40];
    bench_session(b, 1, false);
    for (int i = 0; i < 40; i++)
        sequences[i] = bench_publish(b, 1, 1);
    bench_commit(b);
    uint64_t before = checkpoint_state(b->checkpoint).cursor.position.sequence, used = sim_kv_counts(b->sim).used_bytes;
    sim_kv_set_capacity(b->sim, used + 1000);
    for (int i = 0; i < 30; i++)
        bench_apply(b, (struct record){.type = RECORD_ACK, .session = 1, .subject_sequence = sequences[i]});
    size_t delta = checkpoint_delta_bytes(b->checkpoint);
    sim_kv_fail(b->sim, SIM_KV_PUT, ERR_NOSPACE, 0); /* of the position: all of it is undone */
    assert_int_equal(bench_try_commit(b), ERR_NOSPACE);
    assert_int_equal(STAT(b, removal_commits), 1);
    assert_int_equal(bench_entries(b, KV_BODIES), 10);
    assert_true(checkpoint_delta_bytes(b->checkpoint) < delta);
    assert_true(sim_kv_counts(b->sim).used_bytes < used);
    assert_int_equal(checkpoint_state(b->checkpoint).cursor.position.sequence, before);
    assert_int_equal(bench_find_want(b, 1, sequences[0]), ERR_NOTFOUND);
    OK(bench_find_want(b, 1, sequences[30]));
    bench_commit(b);
    assert_int_equal(bench_entries(b, KV_BODIES), 10);
    assert_true(checkpoint_state(b->checkpoint).cursor.position.sequence > before);
}

/* Other processes have all the slots of readers: the one writer goes on without. */
static void a_writer_needs_no_slot_of_a_reader(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_session(b, 1, false);
    bench_commit(b);
    sim_kv_fail(b->sim, SIM_KV_BEGIN_READ, ERR_FULL, 0);
    uint64_t sequence = bench_publish(b, 1, 300);
    bench_apply(b, (struct record){.type = RECORD_SESSION, .session = 1, .client_id = SPAN_LITERAL("x")});
    sim_kv_fail(b->sim, SIM_KV_BEGIN_READ, ERR_FULL, 0);
    bench_commit(b);
    sim_kv_fail(b->sim, SIM_KV_BEGIN_READ, ERR_OK, 0);
    OK(bench_find_want(b, 300, sequence));
}

/* Nor does a start, whichever of its slices finds none. */
static void a_load_needs_no_slot_of_a_reader(void **state)
{
    struct bench *b = (struct bench *)*state;
    bench_session(b, 1, false);
    (void)bench_publish(b, 1, 300);
    bench_commit(b);
    for (uint64_t skip = 0; skip < 12; skip++) {
        bench_crash(b);
        struct bench_loaded loaded = {0};
        sim_kv_fail(b->sim, SIM_KV_BEGIN_READ, ERR_FULL, skip);
        OK(bench_try_load(b, &loaded));
        sim_kv_fail(b->sim, SIM_KV_BEGIN_READ, ERR_OK, 0);
    }
}

static void assert_value(struct bench *b, enum kv_tree tree, struct span key, const uint8_t *expected, size_t size)
{
    struct kv_txn *txn;
    struct span value;
    OK(kv_begin(b->kv, &txn, false));
    OK(kv_get(txn, tree, key, &value));
    assert_int_equal(value.size, size);
    assert_memory_equal(value.data, expected, size);
    kv_abort(txn);
}

static void values_are_as_in_the_example_of_the_formats_document(void **state)
{
    struct bench *b = (struct bench *)*state;
    static const uint8_t session_value[] = {0x13, 0x00, 0x00, 0x00, 0x03, 0x02, 0xd0, 0x0f, 0x0e, 0xbc, 0x80, 0x80, 0x80, 0x90,
                                            0xa0, 0x01, 0x43, 0x01, 0x63, 0x0c, 0x00, 0x00, 0x00, 0x05, 0x0e, 0x01, 0x41, 0x03,
                                            0x61, 0x2f, 0x23, 0x09, 0x00, 0x00, 0x00, 0x0b, 0x04, 0x05, 0x0d, 0x2a};
    static const uint8_t chunk[] = {0x00, 0x05, 0x09, 0x07, 0x02, 0x01, 0x00, 0x09, 0x01, 0x00, 0x01, 0x05};
    static const uint8_t body[] = {0x00, 0x15, 0x00, 0x00, 0x00, 0x01, 0x01, 0x06, 0x02, 0xd0, 0x0f,
                                   0x05, 0x03, 0x41, 0x03, 0x61, 0x2f, 0x62, 0x49, 0x02, 0x68, 0x69};
    static const uint8_t holders[] = {0x02, 0x00, 0x00, 0x00};
    static const uint8_t run[] = {0x54, 0x02};
    static struct bench_recipients to;
    uint8_t key[16], five = 5;
    bench_apply(b, (struct record){.type = RECORD_SESSION,
                                   .session = 7,
                                   .client_id = S("c"),
                                   .received_ns = 1000,
                                   .options = 60 | RECORD_SESSION_CONNECTED | UINT64_C(5) << RECORD_SESSION_PROTOCOL_SHIFT});
    bench_apply(b, (struct record){.type = RECORD_SESSION, .session = 9});
    bench_apply(b, (struct record){.type = RECORD_SUBSCRIPTION, .session = 7, .topic = S("a/#"), .options = 1});
    to.size = 0;
    struct record_recipient seven = {.session = 7, .qos = 2, .options = 1}, nine = {.session = 9, .qos = 1, .ids = span_of(&five, 1)};
    to.size = record_recipient_put(to.bytes, &seven);
    to.size += record_recipient_put(to.bytes + to.size, &nine);
    b->sequence = 41;
    bench_apply(b, (struct record){.type = RECORD_PUBLISH,
                                   .qos = 2,
                                   .retain = true,
                                   .received_ns = 1000,
                                   .retained_number = 3,
                                   .topic = S("a/b"),
                                   .payload = S("hi"),
                                   .client_id = S("publisher"),
                                   .recipients = span_of(to.bytes, to.size)});
    bench_apply(b, (struct record){.type = RECORD_SENT, .session = 7, .packet_id = 5, .subject_sequence = 42});
    OK(checkpoint_put_run(b->checkpoint, 9, (const uint64_t[]){42, 43}, 2));
    bench_commit(b);
    assert_value(b, KV_SESSIONS, kv_key_u64(key, 7), session_value, sizeof session_value);
    assert_value(b, KV_RECIPIENTS, kv_key_u64_u64(key, 42, 7), chunk, sizeof chunk);
    assert_value(b, KV_BODIES, kv_key_u64(key, 42), body, sizeof body);
    assert_value(b, KV_HOLDERS, kv_key_u64(key, 42), holders, sizeof holders);
    assert_value(b, KV_RUNS, kv_key_u64_u64(key, 9, 42), run, sizeof run);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, bench_setup, bench_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(the_load_says_which_wants_stand_in_a_run),
        CASE(what_nobody_is_there_for_is_removed),
        CASE(bodies_and_counts_that_damage_left_behind_are_put_right),
        CASE(damaged_values_are_left_out_and_told),
        CASE(a_callback_that_fails_ends_the_load),
        CASE(a_commit_without_space_keeps_the_delta),
        CASE(removals_that_are_found_again_do_not_count),
        CASE(removals_go_ahead_of_what_does_not_fit),
        CASE(a_writer_needs_no_slot_of_a_reader),
        CASE(a_load_needs_no_slot_of_a_reader),
        CASE(values_are_as_in_the_example_of_the_formats_document),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
