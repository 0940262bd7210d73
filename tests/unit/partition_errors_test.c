/* A partition whose disk is full, fails, or was tampered with; and what compaction costs. Single cases beside the model of
 * partition_test.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/check.h"
#include "common/logger.h"
#include "sink/source/partition.h"
#include "tests/lib/sim_fs.h"

#define DIRECTORY "p"
#define BROKER 7

struct fixture {
    struct sim_fs *sim;
    struct series *series;
    struct payload_decoder *decoder;
    struct partition *part;
    uint64_t sequence; /* of the last record */
    struct errmsg msg;
};

static enum err part_open(struct fixture *f)
{
    const struct partition_options options = {.fs = sim_fs_fs(f->sim),
                                              .directory = DIRECTORY,
                                              .partition_count = 1,
                                              .head_size_max = 1 << 20,
                                              .quarantine_size_max = 64 << 10,
                                              .series = f->series,
                                              .decoder = f->decoder};
    return partition_open(&f->part, &options, &f->msg);
}

static int setup(void **state)
{
    static const struct series_limits limits = {INT64_MAX, INT64_MAX, INT64_MAX};
    static const struct payload_rules rules = {.time_names = {{(const uint8_t *)"ts", 2}}, .time_name_count = 1, .time_unit = EVENT_TIME_S};
    struct fixture *f = calloc(1, sizeof *f);
    f->sim = sim_fs_new(1, 512);
    f->series = series_new(&limits, 1);
    f->decoder = payload_new(&rules);
    CHECK(part_open(f) == ERR_OK);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    partition_close(f->part);
    payload_free(f->decoder);
    series_free(f->series);
    sim_fs_free(f->sim);
    free(f);
    return 0;
}

static struct log_cursor_value read_position(const struct fixture *f)
{
    struct log_place place = {1, 4096 + f->sequence * 512};
    return (struct log_cursor_value){.broker_id = BROKER, .position = {1, f->sequence + 1}, .place = place, .reopen = place};
}

static void add(struct fixture *f, const char *payload)
{
    struct record rec = {.type = RECORD_PUBLISH,
                         .device = SPAN_LITERAL("d"),
                         .topic = SPAN_LITERAL("t"),
                         .payload = span_of_string(payload),
                         .codec = RECORD_CODEC_JSON,
                         .received_ns = 1};
    assert_int_equal(partition_add_record(f->part, &rec, (struct partition_record_id){BROKER, {1, ++f->sequence}}, 1), ERR_OK);
}

static void add_row(struct fixture *f, int time_s)
{
    char payload[64];
    snprintf(payload, sizeof payload, "{\"ts\":%d,\"v\":%d}", time_s, time_s);
    add(f, payload);
}

static enum err flush(struct fixture *f)
{
    const struct log_cursor_value read = read_position(f);
    return partition_flush(f->part, &read, &f->msg);
}

static const struct compactor_options pairs = {.fan_in = {2, 2, 2}};

static size_t segment_count(const struct fixture *f) { return (size_t)gauge_get(&partition_get_gauges(f->part)->segments); }

static void a_full_disk_is_waited_out(void **state)
{
    struct fixture *f = *state;
    add_row(f, 1);
    sim_fs_set_free(f->sim, 0);
    assert_int_equal(flush(f), ERR_NOSPACE);
    add_row(f, 2); /* goes on meanwhile */
    assert_false(partition_is_failed(f->part));
    assert_int_equal(partition_committed(f->part).position.sequence, 0);
    sim_fs_set_free(f->sim, UINT64_MAX);
    assert_int_equal(flush(f), ERR_OK); /* what was sealed */
    assert_int_equal(partition_committed(f->part).position.sequence, 2);
    assert_int_equal(flush(f), ERR_OK); /* the rest */
    assert_int_equal(partition_committed(f->part).position.sequence, 3);
    assert_true(partition_is_empty(f->part));
}

/* Entries that are written between two flushes: their position waits for them as well. */
static void a_quarantine_that_cannot_be_written_fails_the_partition(void **state)
{
    struct fixture *f = *state;
    add(f, "no json");
    assert_true(quarantine_take(partition_quarantine(f->part)));
    sim_fs_fail(f->sim, SIM_FS_WRITE, 1, ERR_IO, false);
    assert_int_equal(partition_quarantine_write(f->part, &f->msg), ERR_IO);
    assert_true(partition_is_failed(f->part));
    const struct log_cursor_value read = read_position(f);
    assert_int_equal(partition_position(f->part, &read).position.sequence, 0); /* pinned */
    assert_int_equal(flush(f), ERR_CLOSED);
}

static void a_taken_quarantine_goes_with_the_next_flush(void **state)
{
    struct fixture *f = *state;
    add(f, "no json");
    assert_true(quarantine_take(partition_quarantine(f->part)));
    add_row(f, 1);
    assert_int_equal(flush(f), ERR_OK);
    assert_true(partition_is_empty(f->part));
    assert_int_equal(partition_committed(f->part).position.sequence, 3);
}

static void after_a_final_error_nothing_is_written(void **state)
{
    struct fixture *f = *state;
    add_row(f, 1);
    sim_fs_fail(f->sim, SIM_FS_SYNC, 1, ERR_IO, false);
    assert_int_equal(flush(f), ERR_IO);
    uint64_t writes = sim_fs_op_count(f->sim, SIM_FS_WRITE);
    assert_int_equal(flush(f), ERR_CLOSED);
    assert_int_equal(sim_fs_op_count(f->sim, SIM_FS_WRITE), writes);
}

static void segments_without_a_manifest_are_not_thrown_away(void **state)
{
    struct fixture *f = *state;
    static const char segment[] = DIRECTORY "/0000000000000001-0000000000000001-00.seg";
    add_row(f, 1);
    assert_int_equal(flush(f), ERR_OK);
    partition_close(f->part);
    f->part = NULL;
    assert_int_equal(fs_unlink(sim_fs_fs(f->sim), DIRECTORY "/manifest.0"), ERR_OK);
    assert_int_equal(fs_unlink(sim_fs_fs(f->sim), DIRECTORY "/manifest.1"), ERR_OK);
    assert_int_equal(part_open(f), ERR_CORRUPT);
    assert_non_null(strstr(f->msg.text, "1 segments, but neither manifest.0 nor manifest.1"));
    assert_true(sim_fs_exists(f->sim, segment));
}

static void compaction_comes_back_after_a_full_disk(void **state)
{
    struct fixture *f = *state;
    static const char merged[] = DIRECTORY "/0000000000000001-0000000000000002-01.seg";
    for (int i = 1; i <= 2; i++) {
        add_row(f, i);
        assert_int_equal(flush(f), ERR_OK);
    }
    struct partition_compaction *compaction = partition_compact_begin(f->part, &pairs);
    assert_non_null(compaction);
    assert_int_equal(partition_compact_write(compaction, &f->msg), ERR_OK);
    sim_fs_fail(f->sim, SIM_FS_WRITE, 2, ERR_NOSPACE, false); /* one manifest names the new segment, the other does not */
    assert_int_equal(partition_compact_commit(compaction, &f->msg), ERR_NOSPACE);
    partition_compact_abort(compaction);
    assert_true(sim_fs_exists(f->sim, merged));
    assert_null(partition_compact_begin(f->part, &pairs)); /* it could write over the file of the same name */
    add_row(f, 3);
    assert_int_equal(flush(f), ERR_OK);
    assert_false(sim_fs_exists(f->sim, merged));
    compaction = partition_compact_begin(f->part, &pairs);
    assert_non_null(compaction);
    assert_int_equal(partition_compact_write(compaction, &f->msg), ERR_OK);
    assert_int_equal(partition_compact_commit(compaction, &f->msg), ERR_OK);
    partition_compact_publish(compaction);
    assert_int_equal(segment_count(f), 1);
}

/* Without time windows too: each merge lifts its rows by one level, and there are three. */
static void no_row_is_written_more_than_four_times(void **state)
{
    struct fixture *f = *state;
    uint64_t written = 0, flushed = 0;
    for (int i = 0; i < 100; i++) {
        add_row(f, i);
        assert_int_equal(flush(f), ERR_OK);
        written++;
        flushed++;
        struct partition_compaction *compaction;
        while ((compaction = partition_compact_begin(f->part, &pairs))) {
            uint64_t before = (uint64_t)gauge_get(&partition_get_gauges(f->part)->segment_points);
            size_t segments = segment_count(f);
            assert_int_equal(partition_compact_write(compaction, &f->msg), ERR_OK);
            assert_int_equal(partition_compact_commit(compaction, &f->msg), ERR_OK);
            partition_compact_publish(compaction);
            assert_true(segment_count(f) < segments);
            assert_int_equal(gauge_get(&partition_get_gauges(f->part)->segment_points), before);
        }
    }
    written += counter_get(&partition_get_stats(f->part)->compacted_points);
    assert_true(written <= 4 * flushed);
    assert_true(written >= 3 * flushed);             /* the bound is met, not idle */
    assert_int_equal(segment_count(f), 100 / 8 + 1); /* 12 of level 3, and 4 flushes in one of level 2 */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_full_disk_is_waited_out, setup, teardown),
        cmocka_unit_test_setup_teardown(a_quarantine_that_cannot_be_written_fails_the_partition, setup, teardown),
        cmocka_unit_test_setup_teardown(a_taken_quarantine_goes_with_the_next_flush, setup, teardown),
        cmocka_unit_test_setup_teardown(after_a_final_error_nothing_is_written, setup, teardown),
        cmocka_unit_test_setup_teardown(segments_without_a_manifest_are_not_thrown_away, setup, teardown),
        cmocka_unit_test_setup_teardown(compaction_comes_back_after_a_full_disk, setup, teardown),
        cmocka_unit_test_setup_teardown(no_row_is_written_more_than_four_times, setup, teardown),
    };
    logger_set_threshold(LOGGER_OFF);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
