/* Cursors: one holder, what they hold, what counts when a sync fails. */
#include "common/log_cursor.h"
#include "tests/lib/log_bench.h"

static void test_second_sink_is_refused(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    struct log_cursor first, second;
    assert_int_equal(log_cursor_open(&first, b.fs, b.dir, "sink", NULL), ERR_NOTFOUND);
    assert_int_equal(log_writer_ensure_cursor(b.writer, "sink", NULL), ERR_OK);
    assert_int_equal(log_writer_ensure_cursor(b.writer, "sink", NULL), ERR_OK);
    assert_int_equal(log_writer_ensure_cursor(b.writer, "../x", NULL), ERR_INVALID);
    assert_int_equal(log_cursor_open(&first, b.fs, b.dir, "sink", NULL), ERR_OK);
    assert_int_equal(log_cursor_open(&second, b.fs, b.dir, "sink", NULL), ERR_LOCKED);
    log_cursor_close(&first);
    assert_int_equal(log_cursor_open(&second, b.fs, b.dir, "sink", NULL), ERR_OK);
    log_cursor_close(&second);
    log_bench_stop(&b);
}

static void test_cursor_holds_segments_and_room_falls(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    assert_int_equal(log_writer_ensure_cursor(b.writer, "sink", NULL), ERR_OK);
    uint64_t records = 0;
    for (; log_writer_room(b.writer, LOG_ROOM_PUBLISH) > LOG_BENCH_BODY_MAX; records++) {
        log_bench_prepare(&b);
        assert_int_equal(log_bench_put(&b, 4000), ERR_OK);
        assert_true(records < 1000);
    }
    /* The last tenth is for the others. */
    uint64_t tenth = 8 * LOG_BENCH_SEGMENT_SIZE / 10;
    assert_true(log_writer_room(b.writer, LOG_ROOM_CONTROL) >= tenth);
    assert_true(log_writer_room(b.writer, LOG_ROOM_CONTROL) <= tenth + LOG_BENCH_BODY_MAX + 4096);
    /* It is never exceeded: the last segment is refused, and nothing is lost by that. */
    enum err err;
    while ((err = log_bench_put(&b, 4000)) == ERR_OK)
        records++;
    assert_int_equal(err, ERR_NOSPACE);
    assert_int_equal(log_writer_failed(b.writer), ERR_OK);
    /* The block that did not fit is still under way: room appears as the cursor moves, and the write goes on. */
    struct log_cursor cursor;
    struct log_cursor_value value;
    struct log_reader *reader = log_bench_read(&b, NULL);
    log_bench_expect(reader, 1, records);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_cursor(reader, &value);
    assert_int_equal(log_cursor_open(&cursor, b.fs, b.dir, "sink", NULL), ERR_OK);
    assert_int_equal(log_cursor_store(&cursor, &value), ERR_OK);
    log_bench_prepare(&b);
    assert_int_equal(log_writer_write(b.writer, &b.msg), ERR_OK);
    struct log_writer_stats stats;
    log_writer_stats(b.writer, &stats);
    assert_true(stats.recycled_count >= 1);
    log_cursor_close(&cursor);
    log_reader_close(reader);
    log_bench_stop(&b);
}

/* A sync that failed has lost what it should have synced, though it can still be read: nothing may be let go by it. */
static void test_cursor_whose_sync_failed_lets_nothing_go(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    struct log_cursor cursor;
    struct log_cursor_value first, value;
    assert_int_equal(log_writer_ensure_cursor(b.writer, "sink", NULL), ERR_OK);
    assert_int_equal(log_bench_put(&b, 10), ERR_OK);
    assert_int_equal(log_cursor_open(&cursor, b.fs, b.dir, "sink", NULL), ERR_OK);
    first = cursor.value;
    struct log_end end = log_writer_durable_end(b.writer);
    struct log_cursor_value ahead = {log_writer_broker_id(b.writer), end.position, end.place, end.place};
    sim_fs_fail(b.sim, SIM_FS_SYNC, 1, ERR_IO, false);
    assert_int_equal(log_cursor_store(&cursor, &ahead), ERR_IO);
    log_cursor_close(&cursor);
    assert_int_equal(log_cursor_read(&value, b.fs, b.dir, "sink"), ERR_OK);
    assert_int_equal(value.position.sequence, 2);
    assert_int_equal(log_cursor_read_durable(&value, b.fs, b.dir, "sink"), ERR_OK);
    assert_int_equal(value.position.sequence, first.position.sequence);
    /* The next holder goes on from the newest value, and it is durable from then on. */
    assert_int_equal(log_cursor_open(&cursor, b.fs, b.dir, "sink", NULL), ERR_OK);
    assert_int_equal(cursor.value.position.sequence, 2);
    log_cursor_close(&cursor);
    assert_int_equal(log_cursor_read_durable(&value, b.fs, b.dir, "sink"), ERR_OK);
    assert_int_equal(value.position.sequence, 2);
    sim_fs_crash(b.sim);
    assert_int_equal(log_cursor_read(&value, b.fs, b.dir, "sink"), ERR_OK);
    assert_int_equal(value.position.sequence, 2);
    log_bench_stop(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_second_sink_is_refused),
        cmocka_unit_test(test_cursor_holds_segments_and_room_falls),
        cmocka_unit_test(test_cursor_whose_sync_failed_lets_nothing_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
