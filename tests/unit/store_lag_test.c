/* A checkpoint that lags, that has no space, whose commits fail or whose clock is set: what the store writer says and does. */
#include "common/clock.h"
#include "tests/lib/store_bench.h"

static void says_when_it_lags_in_time(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(1);
    struct op op = {0};
    assert_int_equal(store_bench_step(b, false), ERR_OK);
    store_bench_put_session(b, 1);
    for (int s = 0; s < 9; s++) {
        sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_NOSPACE, 0);
        store_bench_put_publish(b, 0, 1, 100);
        store_bench_pass_time(b, NS_PER_S);
    }
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->no_space), 1);
    assert_int_equal(store_bench_told(b, 0, OP_STORE_ROOM, NULL), 0);
    for (int s = 0; s < 2; s++) {
        sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_NOSPACE, 0);
        store_bench_pass_time(b, NS_PER_S);
    }
    for (actor_id to = 0; to < STORE_BENCH_SHARDS; to++) {
        assert_int_equal(store_bench_told(b, to, OP_STORE_ROOM, &op), 1);
        assert_false(op.flag);
    }
    assert_int_equal(store_bench_told(b, ACTOR_ROUTE, OP_STORE_ROOM, NULL), 0);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_ns) > 10 * NS_PER_S);
    sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_OK, 0);
    store_bench_pass_time(b, 2 * NS_PER_S);
    assert_int_equal(store_bench_told(b, 1, OP_STORE_ROOM, &op), 2);
    assert_true(op.flag);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->no_space), 0);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_ns) < NS_PER_S);
    store_bench_free(b);
}

/* It is behind by much and comes after in pieces. There is room again at half of the limit. */
static void says_when_it_lags_in_bytes(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_make(1);
    struct op op = {0};
    int64_t wait;
    b->options.delta_bytes_max = 30000;
    assert_int_equal(store_bench_open(b, NULL), ERR_OK);
    store_bench_put_session(b, 1);
    assert_int_equal(store_bench_step(b, false), ERR_OK);
    for (int i = 0; i < 110; i++)
        store_bench_put_publish(b, 0, 1, 3000);
    b->now += NS_PER_S;
    assert_int_equal(store_writer_step(b->writer, b->now, false, &wait, NULL), ERR_OK);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->has_room), 0);
    assert_int_equal(store_bench_told(b, 0, OP_STORE_ROOM, &op), 1);
    assert_false(op.flag);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_bytes) > 5 * STORE_BENCH_SEGMENT_SIZE);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_bytes) < 7 * STORE_BENCH_SEGMENT_SIZE);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_ns) < 10 * NS_PER_S);
    unsigned steps = 0;
    for (; store_bench_told(b, 0, OP_STORE_ROOM, &op) == 1; steps++) {
        assert_true(steps < 100);
        assert_int_equal(store_writer_step(b->writer, b->now, false, &wait, NULL), ERR_OK);
    }
    assert_true(op.flag);
    assert_true(steps > 3);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_bytes) < 5 * STORE_BENCH_SEGMENT_SIZE / 2);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_bytes) > STORE_BENCH_SEGMENT_SIZE);
    store_bench_free(b);
}

static void says_when_the_database_is_full(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_make(1);
    struct op op = {0};
    uint64_t sequences[60];
    b->options.used_bytes_max = 30000;
    assert_int_equal(store_bench_open(b, NULL), ERR_OK);
    store_bench_put_session(b, 1);
    for (int i = 0; i < 20; i++)
        sequences[i] = store_bench_put_publish(b, 0, 1, 1000);
    store_bench_pass_time(b, 2 * NS_PER_S);
    assert_int_equal(store_bench_told(b, 0, OP_STORE_ROOM, NULL), 0);
    for (int i = 20; i < 60; i++)
        sequences[i] = store_bench_put_publish(b, 0, 1, 1000);
    store_bench_pass_time(b, 2 * NS_PER_S);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->is_full), 1);
    assert_int_equal(store_bench_told(b, 0, OP_STORE_ROOM, &op), 1);
    assert_false(op.flag);
    assert_int_equal(checkpoint_state(b->checkpoint).cursor.position.sequence, b->record_count + 1); /* all the same it is committed */
    store_bench_close(b);
    assert_int_equal(store_bench_open(b, NULL), ERR_OK);
    store_bench_pass_time(b, 2 * NS_PER_S);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->has_room), 0); /* another start knows */
    for (int i = 0; i < 60; i++)
        store_bench_put_ack(b, 1, sequences[i]);
    store_bench_pass_time(b, 2 * NS_PER_S);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->is_full), 0);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->has_room), 1);
    store_bench_free(b);
}

static void a_full_delta_without_space_stops_reading(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_make(1);
    b->options.delta_bytes_max = b->options.lag_bytes_max = 20000;
    assert_int_equal(store_bench_open(b, NULL), ERR_OK);
    assert_int_equal(store_bench_step(b, false), ERR_OK);
    store_bench_put_session(b, 1);
    for (int s = 0; s < 5; s++) {
        sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_NOSPACE, 0);
        for (int i = 0; i < 20; i++)
            store_bench_put_publish(b, 0, 1, 1000);
        store_bench_pass_time(b, NS_PER_S);
    }
    assert_true(counter_get(&checkpoint_get_stats(b->checkpoint)->applied) < 60);
    sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_NOSPACE, 0);
    assert_int_equal(store_bench_step(b, true), ERR_OK); /* gives up: the next start replays */
    assert_int_equal(checkpoint_state(b->checkpoint).body_count, 0);
    store_bench_pass_time(b, 4 * NS_PER_S);
    assert_int_equal(checkpoint_state(b->checkpoint).body_count, 100);
    store_bench_free(b);
}

/* The database is full, and what would make it emptier stands in the log behind what does not fit. */
static void acknowledgements_behind_a_full_delta_make_space(void **state)
{
    (void)state;
    for (int with_restart = 0; with_restart < 2; with_restart++) {
        struct store_bench *b = store_bench_make(1);
        uint64_t sequences[40];
        b->options.delta_bytes_max = 20000;
        assert_int_equal(store_bench_open(b, NULL), ERR_OK);
        store_bench_put_session(b, 1);
        store_bench_pass_time(b, 2 * NS_PER_S);
        sim_kv_set_capacity(b->sim_kv, sim_kv_counts(b->sim_kv).used_bytes + 10000);
        for (int i = 0; i < 40; i++)
            sequences[i] = store_bench_put_publish(b, 0, 1, 1000);
        store_bench_pass_time(b, NS_PER_S);
        assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->no_space), 1);
        for (int i = 0; i < 40; i++)
            store_bench_put_ack(b, 1, sequences[i]);
        if (with_restart) {
            store_bench_close(b);
            assert_int_equal(store_bench_open(b, NULL), ERR_OK);
        }
        store_bench_pass_time(b, 3 * NS_PER_S);
        assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->no_space), 0);
        assert_int_equal(checkpoint_state(b->checkpoint).cursor.position.sequence, b->record_count + 1);
        store_bench_free(b);
    }
}

static void a_failed_commit_is_final(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(1);
    struct errmsg msg = {{0}};
    int64_t wait;
    assert_int_equal(store_bench_step(b, false), ERR_OK);
    size_t told_before = store_bench_told(b, 0, OP_STORE_CHECKPOINT, NULL);
    struct log_place released = b->released;
    store_bench_put_session(b, 1);
    sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_IO, 0);
    assert_int_equal(store_bench_step(b, true), ERR_IO);
    b->now += 5 * NS_PER_S;
    assert_int_equal(store_writer_step(b->writer, b->now, false, &wait, &msg), ERR_IO);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->failed), ERR_IO);
    assert_int_equal(store_bench_told(b, 0, OP_STORE_CHECKPOINT, NULL), told_before);
    assert_int_equal(log_place_compare(released, b->released), 0);
    store_bench_free(b);
}

/* What the next start would take for the time away, were it made now. */
static int64_t time_away(const struct store_bench *b)
{
    struct checkpoint_state state = checkpoint_state(b->checkpoint);
    assert_true(state.wall_ns != 0);
    return b->now + b->wall_lead_ns - state.wall_ns;
}

static void a_clock_that_is_set_is_committed_though_nothing_else_is(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_make(1);
    b->io = &store_bench_io_with_wall;
    b->wall_lead_ns = 1000 * NS_PER_S;
    assert_int_equal(store_bench_open(b, NULL), ERR_OK);
    assert_int_equal(store_bench_step(b, false), ERR_OK); /* a new directory's first commit tells the clocks */
    assert_true(time_away(b) < NS_PER_S);
    uint64_t commits = histogram_count(&store_writer_get_stats(b->writer)->commit_ns);
    for (int i = 0; i < 2; i++) {
        store_bench_pass_time(b, 100 * NS_PER_S);
        assert_int_equal(histogram_count(&store_writer_get_stats(b->writer)->commit_ns), commits + (uint64_t)i);
        b->wall_lead_ns += i == 0 ? 3600 * NS_PER_S : -7200 * NS_PER_S;
        store_bench_pass_time(b, NS_PER_S);
        assert_true(time_away(b) >= 0 && time_away(b) <= NS_PER_S);
    }
    b->wall_lead_ns += 3600 * NS_PER_S;
    assert_int_equal(store_bench_step(b, true), ERR_OK); /* set at the very end */
    assert_true(time_away(b) >= 0 && time_away(b) < NS_PER_S);
    struct checkpoint_state before = checkpoint_state(b->checkpoint);
    store_bench_close(b);
    assert_int_equal(store_bench_open(b, NULL), ERR_OK); /* and read back: nothing to commit */
    assert_int_equal(checkpoint_state(b->checkpoint).wall_ns, before.wall_ns);
    assert_int_equal(store_bench_step(b, false), ERR_OK);
    assert_int_equal(checkpoint_state(b->checkpoint).wall_ns, before.wall_ns);
    store_bench_free(b);
}

static void a_long_look_at_the_log_is_no_step_of_the_wall_clock(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_make(1);
    b->io = &store_bench_io_with_wall;
    b->wall_lead_ns = 1000 * NS_PER_S;
    assert_int_equal(store_bench_open(b, NULL), ERR_OK);
    assert_int_equal(store_bench_step(b, false), ERR_OK);
    uint64_t commits = histogram_count(&store_writer_get_stats(b->writer)->commit_ns);
    b->read_takes_ns = 400 * NS_PER_MS;
    store_bench_pass_time(b, 10 * NS_PER_S);
    assert_int_equal(histogram_count(&store_writer_get_stats(b->writer)->commit_ns), commits);
    store_bench_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_when_it_lags_in_time),
        cmocka_unit_test(says_when_it_lags_in_bytes),
        cmocka_unit_test(says_when_the_database_is_full),
        cmocka_unit_test(a_full_delta_without_space_stops_reading),
        cmocka_unit_test(acknowledgements_behind_a_full_delta_make_space),
        cmocka_unit_test(a_failed_commit_is_final),
        cmocka_unit_test(a_clock_that_is_set_is_committed_though_nothing_else_is),
        cmocka_unit_test(a_long_look_at_the_log_is_no_step_of_the_wall_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
