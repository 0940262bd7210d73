/* What the store writer reads, when it commits and whom it tells. Lag and space: store_lag_test.c; crashes: store_crash_test.c. */
#include <stdlib.h>

#include "common/clock.h"
#include "common/position_list.h"
#include "tests/lib/store_bench.h"

static void commits_at_its_interval_and_tells(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(1);
    struct op op = {0};
    /* Those who start are told what there is. */
    assert_int_equal(store_bench_step(b, false), ERR_OK);
    assert_int_equal(store_bench_told(b, 0, OP_STORE_CHECKPOINT, &op), 1);
    assert_int_equal(op.checkpoint.sequence, 1);
    uint64_t commits = sim_kv_counts(b->sim_kv).commits;
    store_bench_put_session(b, 1);
    uint64_t sequence = store_bench_put_publish(b, 0, 1, 100);
    store_bench_pass_time(b, NS_PER_S / 2);
    assert_false(store_bench_wants(b, 1, sequence));
    store_bench_pass_time(b, NS_PER_S);
    assert_true(store_bench_wants(b, 1, sequence));
    assert_int_equal(sim_kv_counts(b->sim_kv).commits, commits + 1);
    for (actor_id to = 0; to < STORE_BENCH_SHARDS + 1; to++) {
        assert_int_equal(store_bench_told(b, to == STORE_BENCH_SHARDS ? ACTOR_ROUTE : to, OP_STORE_CHECKPOINT, &op), 2);
        assert_int_equal(op.checkpoint.sequence, sequence + 1);
    }
    assert_int_equal(log_place_compare(b->released, log_writer_durable_end(b->log).place), 0);
    /* Nothing happens: nothing is committed. */
    store_bench_pass_time(b, 10 * NS_PER_S);
    assert_int_equal(sim_kv_counts(b->sim_kv).commits, commits + 1);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_ns) <= NS_PER_S / 2);
    assert_int_equal(store_bench_told(b, 0, OP_STORE_ROOM, NULL), 0);
    store_bench_put_ack(b, 1, sequence);
    store_bench_pass_time(b, 2 * NS_PER_S);
    assert_false(store_bench_wants(b, 1, sequence));
    assert_int_equal(checkpoint_state(b->checkpoint).body_count, 0);
    store_bench_free(b);
}

static void memory_of_commits_goes_when_nothing_comes(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(1);
    store_bench_put_session(b, 1);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 40; i++)
            store_bench_put_publish(b, 0, 1, STORE_BENCH_BODY_MAX / 2);
        store_bench_pass_time(b, 2 * NS_PER_S);
        assert_int_equal(checkpoint_delta_bytes(b->checkpoint), 0);
        assert_true(checkpoint_spare_bytes(b->checkpoint) > 0); /* the next second's messages go there */
        store_bench_pass_time(b, 5 * NS_PER_S);
        assert_true(checkpoint_spare_bytes(b->checkpoint) > 0);
        store_bench_pass_time(b, 10 * NS_PER_S);
        assert_int_equal(checkpoint_spare_bytes(b->checkpoint), 0);
    }
    uint64_t sequence = store_bench_put_publish(b, 0, 1, 100);
    store_bench_pass_time(b, 2 * NS_PER_S);
    assert_true(store_bench_wants(b, 1, sequence));
    store_bench_free(b);
}

static void commits_sooner_when_the_delta_is_full(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_make(1);
    b->options.delta_bytes_max = 20000;
    assert_int_equal(store_bench_open(b, NULL), ERR_OK);
    assert_int_equal(store_bench_step(b, false), ERR_OK);
    uint64_t commits = sim_kv_counts(b->sim_kv).commits;
    store_bench_put_session(b, 1);
    for (int i = 0; i < 60; i++)
        store_bench_put_publish(b, 0, 1, 1000);
    store_bench_pass_time(b, NS_PER_S / 2);
    assert_true(sim_kv_counts(b->sim_kv).commits > commits + 1);
    assert_true(checkpoint_delta_bytes(b->checkpoint) < 30000);
    store_bench_free(b);
}

static void leaves_alone_what_is_not_durable(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(1);
    store_bench_put_session(b, 1);
    uint64_t first = store_bench_put_publish(b, 0, 1, 10);
    /* One more is written, but nobody knows whether it is on disk. */
    uint8_t recipients[64];
    struct record_recipient recipient = {.session = 1, .qos = 1};
    struct record rec = {.type = RECORD_PUBLISH, .topic = SPAN_LITERAL("t")};
    rec.recipients = span_of(recipients, record_recipient_put(recipients, &recipient));
    struct log_block *block = log_block_pool_get(&b->pools[0]);
    assert_int_equal(log_block_append(block, &rec), ERR_OK);
    log_block_seal(&b->pools[0], block);
    assert_int_equal(store_bench_write(b, &block, 1, STORE_CUT_BEFORE_FINISH), ERR_OK);
    assert_int_equal(store_bench_step(b, true), ERR_OK);
    assert_true(store_bench_wants(b, 1, first));
    assert_false(store_bench_wants(b, 1, first + 1));
    assert_int_equal(checkpoint_state(b->checkpoint).cursor.position.sequence, first + 1);
    /* Now it is; a flush need not wait for the state file. */
    assert_int_equal(log_writer_finish(b->log, 0), ERR_OK);
    log_block_pool_put(&b->pools[0], block);
    assert_int_equal(store_bench_step(b, true), ERR_OK);
    assert_true(store_bench_wants(b, 1, first + 1));
    store_bench_free(b);
}

static void telemetry_alone_is_committed_by_segments(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(1);
    assert_int_equal(store_bench_step(b, false), ERR_OK);
    uint64_t commits = sim_kv_counts(b->sim_kv).commits;
    for (int i = 0; i < 10; i++) {
        store_bench_put_publish(b, 0, 0, 1000);
        store_bench_pass_time(b, 2 * NS_PER_S);
    }
    assert_int_equal(sim_kv_counts(b->sim_kv).commits, commits);
    while (log_writer_durable_end(b->log).place.generation == b->released.generation)
        store_bench_put_publish(b, 0, 0, 3000);
    store_bench_pass_time(b, 2 * NS_PER_S);
    assert_int_equal(sim_kv_counts(b->sim_kv).commits, commits + 1);
    assert_int_equal(b->released.generation, log_writer_durable_end(b->log).place.generation);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->has_room), 1);
    /* The end of a process commits the rest. */
    store_bench_put_publish(b, 0, 0, 10);
    assert_int_equal(store_bench_step(b, true), ERR_OK);
    assert_int_equal(checkpoint_state(b->checkpoint).cursor.position.sequence, b->record_count + 1);
    store_bench_free(b);
}

/* The log's room comes back as the checkpoint goes on, in a log a tenth the size of what goes through it. */
static void the_log_is_used_again_behind_it(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(1);
    store_bench_put_session(b, 1);
    for (int i = 0; i < 2500; i++) {
        store_bench_put_ack(b, 1, store_bench_put_publish(b, (uint16_t)(i % 2), 1, 2000));
        if (i % 20 == 0) {
            b->now += NS_PER_S;
            assert_int_equal(store_bench_step(b, false), ERR_OK);
            while (log_writer_prepare(b->log, NULL) == ERR_AGAIN)
                continue;
        }
    }
    struct log_writer_stats stats;
    log_writer_stats(b->log, &stats);
    assert_true(stats.roll_count > 60);
    assert_true(counter_get(&checkpoint_get_stats(b->checkpoint)->never_written) > 1000);
    store_bench_free(b);
}

static void an_op_waits_for_a_full_ring(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(1);
    struct op op = {0};
    b->is_ring_full = true;
    store_bench_put_session(b, 1);
    assert_int_equal(store_bench_step(b, false), ERR_OK);
    assert_int_equal(store_bench_step(b, true), ERR_OK);
    assert_int_equal(b->op_count, 0);
    int64_t wait;
    assert_int_equal(store_writer_step(b->writer, b->now, false, &wait, NULL), ERR_OK);
    assert_true(wait <= NS_PER_MS);
    b->is_ring_full = false;
    assert_int_equal(store_bench_step(b, false), ERR_OK);
    assert_int_equal(store_bench_told(b, 1, OP_STORE_CHECKPOINT, &op), 2);
    assert_int_equal(op.checkpoint.sequence, 2);
    store_bench_free(b);
}

/* ---- what shards say ---- */

static void say_passed(struct store_bench *b, actor_id shard, uint64_t number, uint64_t block)
{
    struct op op = {.type = OP_STORE_PASSED, .from = shard, .passed = {.number = number, .block = block}};
    store_writer_on_op(b->writer, &op);
}

static void removals_are_forgotten_behind_all_shards(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(1);
    store_bench_put_retained(b, 0, 1, "t", "x"); /* block 1 of shard 0 */
    store_bench_put_retained(b, 1, 2, "t", "");  /* block 1 of shard 1: removed */
    assert_int_equal(store_bench_step(b, true), ERR_OK);
    assert_int_equal(store_bench_count_keys(b, KV_RETAINED), 1);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_number_max, 2);
    say_passed(b, 0, 10, 1);
    store_bench_pass_time(b, 3 * NS_PER_S);
    assert_int_equal(store_bench_count_keys(b, KV_RETAINED), 1); /* shard 1 may have an older one */
    say_passed(b, 1, 10, 2);
    say_passed(b, 1, 11, 3); /* waits behind the other */
    store_bench_pass_time(b, 3 * NS_PER_S);
    assert_int_equal(store_bench_count_keys(b, KV_RETAINED), 1); /* its block 2 is not there yet */
    store_bench_put_publish(b, 1, 0, 10);                        /* telemetry counts, too */
    store_bench_pass_time(b, 3 * NS_PER_S);
    assert_int_equal(store_bench_count_keys(b, KV_RETAINED), 0);
    store_bench_free(b);
}

static void a_busy_shard_passes_in_the_end(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(1);
    store_bench_put_retained(b, 1, 1, "t", "");
    say_passed(b, 0, 100, 0); /* it has no block at all */
    for (uint64_t block = 2; block < 12; block++) {
        say_passed(b, 1, block, block); /* always one ahead of what is durable */
        store_bench_pass_time(b, 2 * NS_PER_S);
        store_bench_put_publish(b, 1, 0, 10);
    }
    assert_int_equal(store_bench_count_keys(b, KV_RETAINED), 0);
    store_bench_free(b);
}

static void runs_are_kept_and_dropped(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(1);
    uint64_t sequences[CHECKPOINT_RUN];
    uint32_t count;
    struct kv_txn *txn;
    store_bench_put_session(b, 1);
    struct store_run *run = calloc(1, sizeof *run);
    for (run->count = 0; run->count < 3; run->count++)
        run->sequences[run->count] = store_bench_put_publish(b, 0, 1, 10);
    uint64_t first = run->sequences[0];
    assert_int_equal(store_bench_step(b, true), ERR_OK);
    struct op op = {.type = OP_STORE_RUN, .run = {.session_number = 1, .run = run}};
    store_writer_on_op(b->writer, &op);
    store_bench_pass_time(b, 2 * NS_PER_S);
    assert_int_equal(kv_begin(b->kv, &txn, false), ERR_OK);
    assert_int_equal(checkpoint_find_run(txn, sequences, &count, 1, 0), ERR_OK);
    assert_int_equal(count, 3);
    assert_int_equal(sequences[0], first);
    kv_abort(txn);
    op = (struct op){.type = OP_STORE_RUN_DROP, .run = {.session_number = 1, .first = first}};
    store_writer_on_op(b->writer, &op);
    store_bench_pass_time(b, 2 * NS_PER_S);
    assert_int_equal(store_bench_count_keys(b, KV_RUNS), 0);
    store_bench_free(b);
}

/* Each shard is told how many of its runs are committed, and not before they are: it forgets what they hold. */
static void committed_runs_are_told_to_who_posted_them(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(2);
    struct op told_op = {0};
    store_bench_put_session(b, 1);
    uint64_t sequence = store_bench_put_publish(b, 0, 1, 10);
    assert_int_equal(store_bench_step(b, true), ERR_OK);
    b->op_count = 0;
    for (uint64_t i = 0; i < 3; i++) {
        struct store_run *run = calloc(1, sizeof *run);
        assert_non_null(run);
        run->count = 1;
        run->sequences[0] = sequence;
        store_writer_on_op(b->writer, &(struct op){.type = OP_STORE_RUN, .from = i > 0, .run = {.session_number = 1, .run = run}});
    }
    sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_NOSPACE, 0);
    assert_int_equal(store_bench_step(b, false), ERR_OK);
    for (actor_id shard = 0; shard < 2; shard++)
        assert_true(store_bench_told(b, shard, OP_STORE_CHECKPOINT, &told_op) == 0 || told_op.checkpoint.runs == 0);
    store_bench_pass_time(b, 5 * NS_PER_S);
    for (actor_id shard = 0; shard < 2; shard++) {
        assert_true(store_bench_told(b, shard, OP_STORE_CHECKPOINT, &told_op) > 0);
        assert_int_equal(told_op.checkpoint.runs, shard == 0 ? 1 : 2);
    }
    store_bench_free(b);
}

/* ---- replay ---- */

static void a_log_that_lacks_the_beginning_is_a_gap(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(1);
    struct errmsg msg = {{0}};
    /* Without a checkpoint the log was used again: that is what a lost database looks like. */
    store_bench_put_session(b, 1);
    for (int i = 0; i < 400; i++) {
        store_bench_put_publish(b, 0, 1, 3000);
        assert_int_equal(store_bench_step(b, true), ERR_OK);
        while (log_writer_prepare(b->log, NULL) == ERR_AGAIN)
            continue;
    }
    store_bench_close(b);
    sim_kv_free(b->sim_kv);
    b->sim_kv = sim_kv_new(2);
    assert_int_equal(store_bench_open(b, &msg), ERR_GAP);
    assert_non_null(strstr(msg.text, "there is no checkpoint"));
    store_bench_free(b);
}

static void a_checkpoint_ahead_of_the_log_is_refused(void **state)
{
    (void)state;
    struct store_bench *b = store_bench_new(1);
    struct errmsg msg = {{0}};
    store_bench_put_session(b, 1);
    store_bench_put_publish(b, 0, 1, 3000);
    assert_int_equal(store_bench_step(b, true), ERR_OK);
    store_bench_close(b);
    sim_fs_free(b->sim); /* another log under the same checkpoint */
    b->sim = sim_fs_new(2, 512);
    b->options.fs = sim_fs_fs(b->sim);
    assert_true(store_bench_open(b, &msg) != ERR_OK);
    store_bench_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commits_at_its_interval_and_tells),
        cmocka_unit_test(memory_of_commits_goes_when_nothing_comes),
        cmocka_unit_test(commits_sooner_when_the_delta_is_full),
        cmocka_unit_test(leaves_alone_what_is_not_durable),
        cmocka_unit_test(telemetry_alone_is_committed_by_segments),
        cmocka_unit_test(the_log_is_used_again_behind_it),
        cmocka_unit_test(an_op_waits_for_a_full_ring),
        cmocka_unit_test(removals_are_forgotten_behind_all_shards),
        cmocka_unit_test(a_busy_shard_passes_in_the_end),
        cmocka_unit_test(runs_are_kept_and_dropped),
        cmocka_unit_test(committed_runs_are_told_to_who_posted_them),
        cmocka_unit_test(a_log_that_lacks_the_beginning_is_a_gap),
        cmocka_unit_test(a_checkpoint_ahead_of_the_log_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
