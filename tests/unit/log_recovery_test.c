/* What a start makes of the log it finds: a torn tail, damage, lost files, another identity. Random histories are log_model_test.c's. */
#include "common/log_cursor.h"
#include "common/log_identity.h"
#include "tests/lib/log_bench.h"

/* A sector of the disk. */
static void clear(struct log_bench *b, const char *path, uint64_t offset)
{
    static const uint8_t zeros[512];
    assert_int_equal(sim_fs_overwrite(b->sim, path, offset, zeros, sizeof zeros), ERR_OK);
}

static void test_torn_tail_is_normal(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    assert_int_equal(log_bench_put(&b, 10), ERR_OK);
    /* Two blocks in one write, of which only the second reaches the disk. */
    struct log_block *blocks[2] = {log_bench_block(&b, 900), log_bench_block(&b, 900)};
    log_writer_begin(b.writer, blocks, 2);
    struct log_place first = blocks[0]->place;
    assert_int_equal(log_writer_write(b.writer, NULL), ERR_OK);
    log_block_pool_put(&b.pool, blocks[0]);
    log_block_pool_put(&b.pool, blocks[1]);
    sim_fs_kill(b.sim);
    log_bench_close(&b);
    clear(&b, "log/0000000000000001.seg", first.offset);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    assert_int_equal(b.recovery.end.position.sequence, 2);
    assert_int_equal(b.recovery.end.place.offset, first.offset);
    assert_true(b.recovery.torn_bytes >= 1024);
    assert_false(b.recovery.corrupt);
    b.next_id = 2;
    assert_int_equal(log_bench_put(&b, 10), ERR_OK);
    struct log_reader *reader = log_bench_read(&b, NULL);
    log_bench_expect(reader, 1, 2);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    log_bench_stop(&b);
}

/* What stood behind the end of a torn write is not read as the log, however many starts write nothing before one does. */
static void test_a_torn_tail_stays_void_over_starts(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    assert_int_equal(log_bench_put(&b, 10), ERR_OK);
    struct log_block *blocks[3] = {log_bench_block(&b, 900), log_bench_block(&b, 900), log_bench_block(&b, 900)};
    log_writer_begin(b.writer, blocks, 3);
    struct log_place first = blocks[0]->place;
    assert_int_equal(log_writer_write(b.writer, NULL), ERR_OK);
    for (int i = 0; i < 3; i++)
        log_block_pool_put(&b.pool, blocks[i]);
    sim_fs_kill(b.sim);
    log_bench_close(&b);
    clear(&b, "log/0000000000000001.seg", first.offset);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(log_bench_open(&b), ERR_OK);
        assert_int_equal(b.recovery.end.position.sequence, 2);
        assert_int_equal(b.recovery.end.place.offset, first.offset);
        sim_fs_kill(b.sim);
        log_bench_close(&b);
    }
    assert_int_equal(log_bench_open(&b), ERR_OK);
    b.next_id = 2;
    assert_int_equal(log_bench_put(&b, 10), ERR_OK);
    struct log_reader *reader = log_bench_read(&b, NULL);
    log_bench_expect(reader, 1, 2);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    log_bench_stop(&b);
}

static void damage_and_expect(bool state_too)
{
    struct log_bench b = log_bench_start();
    for (int i = 0; i < 5; i++)
        assert_int_equal(log_bench_put(&b, 900), ERR_OK);
    sim_fs_kill(b.sim);
    log_bench_close(&b);
    if (state_too) { /* the blocks alone must prove it */
        clear(&b, "log/state", 0);
        clear(&b, "log/state", 4096);
    }
    struct log_reader *reader = log_bench_read(&b, NULL);
    if (!state_too)
        log_bench_expect(reader, 1, 2);
    assert_int_equal(sim_fs_flip_bit(b.sim, "log/0000000000000001.seg", 8 * (4096 + 2 * 1536 + 200)), ERR_OK);
    assert_int_equal(log_bench_open(&b), ERR_CORRUPT);
    assert_true(b.recovery.corrupt);
    assert_int_equal(b.recovery.corrupt_place.generation, 1);
    assert_true(strstr(b.msg.text, "0000000000000001.seg"));
    assert_int_equal(b.recovery.end.place.offset, b.recovery.corrupt_place.offset);
    if (state_too)
        assert_non_null(strstr(b.recovery.proof_by, "block"));
    else
        assert_string_equal(b.recovery.proof_by, "state");
    log_reader_close(reader);
    reader = log_bench_read(&b, NULL);
    if (!state_too) {
        uint64_t readable = b.recovery.end.position.sequence - 1;
        log_bench_expect(reader, 1, readable);
        log_bench_expect_end(reader, ERR_CORRUPT);
        log_bench_expect_end(reader, ERR_CORRUPT);
    }
    log_reader_close(reader);
    log_bench_stop(&b);
}

static void test_hole_before_the_durable_end_is_corruption(void **state)
{
    (void)state;
    damage_and_expect(false);
    damage_and_expect(true);
}

static void test_cursor_past_the_hole_is_corruption(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    assert_int_equal(log_bench_put(&b, 100), ERR_OK);
    struct log_end end = log_writer_durable_end(b.writer);
    struct log_cursor_value value = {.position = end.position, .place = end.place, .reopen = end.place};
    assert_int_equal(log_cursor_create(b.fs, b.dir, "sink", &value), ERR_OK);
    log_bench_close(&b);
    clear(&b, "log/state", 0);
    clear(&b, "log/state", 4096);
    clear(&b, "log/0000000000000001.seg", 4096);
    assert_int_equal(log_bench_open(&b), ERR_CORRUPT);
    assert_string_equal(b.recovery.proof_by, "cursor.sink");
    log_bench_stop(&b);
}

static void test_lost_identity_with_a_log_is_refused(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    log_bench_close(&b);
    assert_int_equal(fs_unlink(b.fs, "log/identity"), ERR_OK);
    assert_int_equal(log_bench_open(&b), ERR_CORRUPT);
    assert_string_equal(b.msg.text, "log/identity: missing beside a log that has records; see `tidegate-broker repair`");
    log_bench_stop(&b);
}

/* A restored log goes on under a new id; a reader at its end knows under which before there is a record, or it could not be told from one
 * that reads the log which the backup was taken from. */
static void test_a_restored_log_goes_on_under_a_new_id(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    struct log_cursor_value value;
    struct log_identity identity;
    assert_int_equal(log_bench_put(&b, 100), ERR_OK);
    log_bench_close(&b);
    assert_int_equal(log_identity_read(&identity, b.fs, b.dir), ERR_OK);
    uint64_t old = identity.broker_id;
    identity.broker_id = old + 1;
    assert_int_equal(log_identity_store(&identity, b.fs, b.dir, &b.msg), ERR_OK);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    assert_true(log_writer_broker_id(b.writer) == old + 1);
    assert_int_equal(log_writer_epoch(b.writer), 2);
    struct log_reader *reader = log_bench_read(&b, NULL);
    struct log_reader_item item;
    assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
    assert_true(item.broker_id == old);
    log_reader_cursor(reader, &value);
    assert_true(value.broker_id == old);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_cursor(reader, &value);
    assert_true(value.broker_id == old + 1);
    assert_int_equal(log_bench_put(&b, 100), ERR_OK);
    assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
    assert_true(item.broker_id == old + 1);
    assert_int_equal(item.position.sequence, 2);
    log_reader_close(reader);
    log_bench_stop(&b);
}

/* Whichever file cannot be opened at the start: the message names that one. */
static void test_unreadable_segment_is_named(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    bool is_named[2] = {false, false};
    assert_int_equal(log_bench_put(&b, 900), ERR_OK);
    log_bench_close(&b);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    assert_int_equal(log_bench_put(&b, 900), ERR_OK);
    log_bench_close(&b);
    for (uint64_t nth = 1; nth <= 20; nth++) {
        b.msg.text[0] = '\0';
        sim_fs_fail(b.sim, SIM_FS_OPEN, nth, ERR_PERMISSION, false);
        if (log_bench_open(&b) == ERR_PERMISSION) {
            is_named[0] |= strncmp(b.msg.text, "log/0000000000000001.seg: permission denied", 43) == 0;
            is_named[1] |= strncmp(b.msg.text, "log/0000000000000002.seg: permission denied", 43) == 0;
            assert_null(strstr(b.msg.text, "0000000000000000"));
        }
        log_bench_close(&b);
    }
    assert_true(is_named[0]);
    assert_true(is_named[1]);
    sim_fs_fail(b.sim, SIM_FS_OPEN, 0, ERR_OK, false);
    log_bench_stop(&b);
}

/* What recovery accepted can be read at once: the state is written before log_writer_open() returns. */
static void test_recovered_is_read_without_a_write(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    for (int i = 0; i < 5; i++)
        assert_int_equal(log_bench_put(&b, 100), ERR_OK);
    struct log_block *block = log_bench_block(&b, 10); /* durable, and nobody was told */
    log_writer_begin(b.writer, &block, 1);
    assert_int_equal(log_writer_write(b.writer, NULL), ERR_OK);
    sim_fs_kill(b.sim);
    log_block_pool_put(&b.pool, block);
    log_bench_close(&b);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    struct log_reader *reader = log_bench_read(&b, NULL);
    log_bench_expect(reader, 1, 6);
    log_bench_expect_end(reader, ERR_AGAIN);
    assert_int_equal(log_reader_durable_end(reader).position.sequence, log_writer_published_end(b.writer).position.sequence);
    log_reader_close(reader);
    log_bench_stop(&b);
}

/* Whether the block of a write that was under way when its broker was killed is there, after a start that failed, a start and a power loss.
 */
static bool torn_write_is_kept(uint64_t seed)
{
    struct log_bench b = log_bench_make(seed);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    struct log_block *block = log_bench_block(&b, 10);
    sim_fs_hold(b.sim, true);
    log_writer_begin(b.writer, &block, 1);
    assert_int_equal(log_writer_write(b.writer, NULL), ERR_OK);
    sim_fs_hold(b.sim, false);
    log_block_pool_put(&b.pool, block);
    sim_fs_kill(b.sim);
    log_bench_close(&b);
    sim_fs_fail(b.sim, SIM_FS_SYNC, 1, ERR_IO, false);
    assert_int_equal(log_bench_open(&b), ERR_IO);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    uint64_t sequence = b.recovery.end.position.sequence;
    sim_fs_crash(b.sim);
    log_bench_close(&b);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    struct log_reader *reader = log_bench_read(&b, NULL);
    log_bench_expect(reader, 1, sequence - 1);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    log_bench_stop(&b);
    return sequence == 2;
}

static void test_recovery_makes_durable_what_it_accepts(void **state)
{
    (void)state;
    unsigned kept = 0;
    for (uint64_t seed = 1; seed <= 16; seed++)
        kept += torn_write_is_kept(seed);
    assert_in_range(kept, 1, 15); /* both happened */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_torn_tail_stays_void_over_starts),
        cmocka_unit_test(test_torn_tail_is_normal),
        cmocka_unit_test(test_hole_before_the_durable_end_is_corruption),
        cmocka_unit_test(test_cursor_past_the_hole_is_corruption),
        cmocka_unit_test(test_lost_identity_with_a_log_is_refused),
        cmocka_unit_test(test_a_restored_log_goes_on_under_a_new_id),
        cmocka_unit_test(test_unreadable_segment_is_named),
        cmocka_unit_test(test_recovered_is_read_without_a_write),
        cmocka_unit_test(test_recovery_makes_durable_what_it_accepts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
