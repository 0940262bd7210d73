/* Chunks, segments and the compactor on a file system in memory: round trips, every flipped bit, every failed operation, crashes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/check.h"
#include "common/file.h"
#include "sink/store/compactor.h"
#include "tests/lib/sim_fs.h"
#include "tests/lib/store_model.h"

#define DIRECTORY "p0"

static struct store_model *model;

static struct sim_fs *new_sim(void)
{
    struct sim_fs *sim = sim_fs_new(3, 512);
    CHECK(fs_mkdir(sim_fs_fs(sim), DIRECTORY) == ERR_OK);
    return sim;
}

/* Write a head as a segment, as a flush does. */
static enum err flush(struct fs *fs, const struct head *head, const char *name, uint64_t number, size_t chunk_rows, struct errmsg *msg)
{
    const struct segment_source sources[] = {{7, 1, number * 100}, {9 + number, 2, 5}};
    struct segment_info info = {
        .partition_count = 4, .partition_index = 1, .flush_first = number, .flush_last = number, .source_count = 2, .sources = sources};
    struct segment_writer *writer;
    enum err err = segment_writer_open(&writer, fs, DIRECTORY, name, &info, COLUMN_FAST, msg);
    if (err)
        return err;
    size_t count;
    const struct head_device **devices = head_devices_sorted(head, &count);
    for (size_t i = 0; i < count && !err; i++) {
        struct head_cursor cursor;
        head_cursor_init(&cursor, devices[i], INT64_MIN, INT64_MAX, 0);
        struct merge_source *source = &cursor.source;
        struct merge *merge = merge_new(&source, 1, chunk_rows);
        err = segment_writer_add_merge(writer, head_device_id(devices[i]), merge, msg);
        merge_free(merge);
    }
    free(devices);
    if (err) {
        segment_writer_abort(writer);
        return err;
    }
    return segment_writer_finish(writer, NULL, msg);
}

static void add_rows(struct check_random *random, struct head *head, size_t row_count, size_t from, size_t range)
{
    for (uint64_t step = 0; step < row_count; step++) {
        size_t d = check_random_below(random, MODEL_DEVICES), t = from + check_random_below(random, range);
        struct head_metric metrics[MODEL_METRICS];
        size_t count = store_model_row(random, metrics);
        assert_int_equal(head_add_row(head, store_model_device(d), store_model_time(t), metrics, count, step + 1), ERR_OK);
        store_model_write(model, d, t, metrics, count);
    }
}

static struct merge *merge_of_segments(struct segment_cursor *cursors, struct segment *const *segs, size_t count, size_t device,
                                       size_t from, size_t to)
{
    struct merge_source *sources[16];
    for (size_t i = 0; i < count; i++) {
        segment_cursor_init(&cursors[i], segs[i], store_model_device(device), store_model_time(from), store_model_time(to), NULL, 0, false);
        sources[i] = &cursors[i].source;
    }
    return merge_new(sources, count, 777);
}

static void check_segments(struct check_random *random, struct segment *const *segs, size_t count)
{
    struct segment_cursor cursors[16];
    for (size_t d = 0; d < MODEL_DEVICES; d++) {
        size_t from = check_random_below(random, MODEL_TIMES), to = from + check_random_below(random, MODEL_TIMES - from);
        assert_true(store_model_equals(model, d, 0, MODEL_TIMES - 1, merge_of_segments(cursors, segs, count, d, 0, MODEL_TIMES - 1)));
        assert_true(store_model_equals(model, d, from, to, merge_of_segments(cursors, segs, count, d, from, to)));
    }
}

static void test_chunk_keeps_its_rules(void **state)
{
    (void)state;
    static double values[CHUNK_ROWS_MAX];
    static int64_t times[CHUNK_ROWS_MAX];
    for (size_t i = 0; i < CHUNK_ROWS_MAX; i++) {
        values[i] = (double)(i % 10) / 4;
        times[i] = (int64_t)i * 1000;
    }
    values[3] = NAN;
    struct chunk_encoder *enc = chunk_encoder_new();
    struct rows_column columns[] = {{SPAN_LITERAL("a"), values, NULL}, {SPAN_LITERAL("ab"), values, NULL}};
    struct rows rows = {.row_count = CHUNK_ROWS_MAX, .times_ns = times, .column_count = 2, .columns = columns};
    struct span bytes;
    assert_int_equal(chunk_encode(enc, &bytes, SPAN_LITERAL("dev"), &rows, COLUMN_FAST), ERR_OK);
    struct chunk_view view;
    assert_int_equal(chunk_open(&view, bytes), ERR_OK);
    assert_int_equal(view.row_count, CHUNK_ROWS_MAX);
    assert_int_equal(view.columns[0].stats.count, CHUNK_ROWS_MAX);
    assert_true(view.columns[0].stats.min == 0 && view.columns[0].stats.max == 2.25);
    assert_null(chunk_find_column(&view, SPAN_LITERAL("b")));
    assert_ptr_equal(chunk_find_column(&view, SPAN_LITERAL("ab")), &view.columns[1]);
    chunk_close(&view);

    rows.row_count = 0;
    assert_int_equal(chunk_encode(enc, &bytes, SPAN_LITERAL("dev"), &rows, COLUMN_FAST), ERR_INVALID);
    rows.row_count = 10;
    assert_int_equal(chunk_encode(enc, &bytes, (struct span){0}, &rows, COLUMN_FAST), ERR_INVALID);
    times[5] = times[4];
    assert_int_equal(chunk_encode(enc, &bytes, SPAN_LITERAL("dev"), &rows, COLUMN_FAST), ERR_INVALID);
    times[5]++;
    columns[1].name = SPAN_LITERAL("a");
    assert_int_equal(chunk_encode(enc, &bytes, SPAN_LITERAL("dev"), &rows, COLUMN_FAST), ERR_INVALID);
    chunk_encoder_free(enc);
}

static void test_segment_gives_back_the_head(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(31));
    memset(model, 0, sizeof *model);
    struct sim_fs *sim = new_sim();
    struct fs *fs = sim_fs_fs(sim);
    struct head *head = head_new((size_t)1 << 30, 5);
    struct errmsg msg = {{0}};
    add_rows(&random, head, 9000, 0, MODEL_TIMES);
    assert_int_equal(flush(fs, head, "1.seg", 1, 256, &msg), ERR_OK);
    assert_int_equal(flush(fs, head, "1.seg", 1, 256, &msg), ERR_EXISTS);
    head_free(head);
    sim_fs_crash(sim); /* a finished segment is durable */

    struct segment *seg;
    assert_int_equal(segment_open(&seg, fs, DIRECTORY, "1.seg", &msg), ERR_OK);
    const struct segment_info *info = segment_get_info(seg);
    assert_int_equal(info->device_count, MODEL_DEVICES);
    assert_int_equal(info->point_count, store_model_point_count(model));
    assert_int_equal(info->partition_count, 4);
    assert_int_equal(info->source_count, 2);
    assert_int_equal(info->sources[0].sequence, 100);
    check_segments(&random, &seg, 1);

    struct segment_report report;
    assert_int_equal(segment_verify(seg, &report, &msg), ERR_OK);
    assert_int_equal(report.chunk_count, info->chunk_count);
    assert_int_equal(report.point_count, info->point_count);

    /* Statistics of the index against the model. */
    const struct segment_chunk *chunks;
    size_t count, points = 0;
    segment_find(seg, &chunks, &count, store_model_device(1), INT64_MIN, INT64_MAX);
    assert_true(count > 1);
    for (size_t i = 0; i < count; i++) {
        struct chunk_stats stats;
        if (segment_chunk_stats(seg, &chunks[i], store_model_metric(2), &stats))
            points += stats.count;
    }
    size_t expected = 0;
    for (size_t t = 0; t < MODEL_TIMES; t++)
        expected += model->has[1][t][2];
    assert_int_equal(points, expected);
    segment_find(seg, &chunks, &count, SPAN_LITERAL("nobody"), INT64_MIN, INT64_MAX);
    assert_int_equal(count, 0);
    segment_close(seg);
    assert_int_equal(segment_open(&seg, fs, DIRECTORY, "2.seg", &msg), ERR_NOTFOUND);
    sim_fs_free(sim);
}

static void test_columns_can_be_chosen(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(32));
    memset(model, 0, sizeof *model);
    struct sim_fs *sim = new_sim();
    struct head *head = head_new((size_t)1 << 30, 5);
    struct errmsg msg = {{0}};
    add_rows(&random, head, 500, 0, 300);
    assert_int_equal(flush(sim_fs_fs(sim), head, "1.seg", 1, 100, &msg), ERR_OK);
    head_free(head);
    struct segment *seg;
    assert_int_equal(segment_open(&seg, sim_fs_fs(sim), DIRECTORY, "1.seg", &msg), ERR_OK);
    struct segment_cursor cursor;
    struct span name = store_model_metric(0);
    segment_cursor_init(&cursor, seg, store_model_device(0), INT64_MIN, INT64_MAX, &name, 1, false);
    size_t points = 0, row_count = 0, expected = 0;
    for (;;) {
        struct rows rows;
        assert_int_equal(cursor.source.next(&cursor.source, &rows), ERR_OK);
        if (rows.row_count == 0)
            break;
        row_count += rows.row_count;
        assert_true(rows.column_count <= 1);
        for (size_t row = 0; rows.column_count && row < rows.row_count; row++)
            points += rows_has(&rows.columns[0], row);
    }
    for (size_t t = 0; t < MODEL_TIMES; t++)
        expected += model->has[0][t][0];
    assert_int_equal(points, expected);
    assert_int_equal(row_count, store_model_row_count(model, 0, 0, MODEL_TIMES - 1));
    segment_cursor_deinit(&cursor);
    segment_close(seg);
    sim_fs_free(sim);
}

static void test_every_flipped_bit_is_found(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(33));
    memset(model, 0, sizeof *model);
    struct sim_fs *sim = new_sim();
    struct fs *fs = sim_fs_fs(sim);
    struct head *head = head_new((size_t)1 << 30, 5);
    struct errmsg msg = {{0}};
    add_rows(&random, head, 60, 0, 40);
    assert_int_equal(flush(fs, head, "1.seg", 1, 8, &msg), ERR_OK);
    head_free(head);
    struct file *file;
    uint64_t size;
    size_t got;
    assert_int_equal(fs_open(fs, &file, DIRECTORY "/1.seg", FILE_READ | FILE_WRITE), ERR_OK);
    assert_int_equal(file_size(file, &size), ERR_OK);
    uint8_t *bytes = malloc(size);
    assert_int_equal(file_pread(file, &got, bytes, size, 0), ERR_OK);
    size_t still_served = 0;
    for (uint64_t bit = 0; bit < size * 8; bit++) {
        uint8_t flipped = (uint8_t)(bytes[bit / 8] ^ 1u << (bit % 8));
        assert_int_equal(file_pwrite(file, &flipped, 1, bit / 8), ERR_OK);
        struct segment *seg;
        memset(&msg, 0, sizeof msg);
        enum err err = segment_open(&seg, fs, DIRECTORY, "1.seg", &msg);
        if (err == ERR_OK) {
            /* Index and header hold: the damage is in a chunk, and only that chunk is lost. */
            struct segment_report report;
            err = segment_verify(seg, &report, &msg);
            assert_int_equal(report.corrupt_count, 1);
            assert_true(report.first_corrupt_offset <= bit / 8);
            still_served += report.chunk_count == segment_get_info(seg)->chunk_count;
            segment_close(seg);
        }
        if (err != ERR_CORRUPT && err != ERR_VERSION)
            fail_msg("bit %llu of byte %llu of %llu: %s", (unsigned long long)bit % 8, (unsigned long long)bit / 8,
                     (unsigned long long)size, err_text(err));
        assert_non_null(strstr(msg.text, DIRECTORY "/1.seg"));
        assert_int_equal(file_pwrite(file, &bytes[bit / 8], 1, bit / 8), ERR_OK);
    }
    assert_true(still_served > 0);
    for (uint64_t cut = 0; cut < size; cut++) {
        struct segment *seg;
        assert_int_equal(file_truncate(file, 0), ERR_OK);
        if (cut)
            assert_int_equal(file_pwrite(file, bytes, cut, 0), ERR_OK);
        assert_int_equal(segment_open(&seg, fs, DIRECTORY, "1.seg", &msg), ERR_CORRUPT);
    }
    free(bytes);
    file_close(file);
    sim_fs_free(sim);
}

static void test_damaged_chunk_is_skipped_and_counted(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(34));
    memset(model, 0, sizeof *model);
    struct sim_fs *sim = new_sim();
    struct fs *fs = sim_fs_fs(sim);
    struct head *head = head_new((size_t)1 << 30, 5);
    struct errmsg msg = {{0}};
    add_rows(&random, head, 600, 0, 400);
    assert_int_equal(flush(fs, head, "1.seg", 1, 50, &msg), ERR_OK);
    head_free(head);
    struct segment *seg;
    assert_int_equal(segment_open(&seg, fs, DIRECTORY, "1.seg", &msg), ERR_OK);
    const struct segment_chunk *chunks;
    size_t count;
    segment_find(seg, &chunks, &count, store_model_device(2), INT64_MIN, INT64_MAX);
    assert_true(count >= 3);
    struct file *file;
    assert_int_equal(fs_open(fs, &file, DIRECTORY "/1.seg", FILE_READ | FILE_WRITE), ERR_OK);
    assert_int_equal(file_pwrite(file, "XX", 2, chunks[1].offset + chunks[1].size / 2), ERR_OK);
    file_close(file);

    struct segment_cursor cursor;
    struct rows rows;
    segment_cursor_init(&cursor, seg, store_model_device(2), INT64_MIN, INT64_MAX, NULL, 0, true);
    size_t row_count = 0;
    do {
        assert_int_equal(cursor.source.next(&cursor.source, &rows), ERR_OK);
        row_count += rows.row_count;
    } while (rows.row_count);
    assert_int_equal(cursor.corrupt_count, 1);
    assert_int_equal(row_count, store_model_row_count(model, 2, 0, MODEL_TIMES - 1) - chunks[1].row_count);
    assert_non_null(strstr(cursor.msg.text, "1.seg: offset"));
    segment_cursor_deinit(&cursor);

    /* Compaction refuses: it would make the loss permanent. */
    assert_int_equal(compactor_merge(&seg, 1, fs, DIRECTORY, "2.seg", 1, NULL, &msg), ERR_CORRUPT);
    struct segment *none;
    assert_int_equal(segment_open(&none, fs, DIRECTORY, "2.seg", &msg), ERR_NOTFOUND);
    segment_close(seg);
    sim_fs_free(sim);
}

static void test_any_failed_operation_leaves_no_segment_or_a_whole_one(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(35));
    memset(model, 0, sizeof *model);
    struct head *head = head_new((size_t)1 << 30, 5);
    add_rows(&random, head, 300, 0, 200);
    size_t failed = 0, whole = 0;
    for (uint64_t nth = 1; nth < 40; nth++) {
        struct sim_fs *sim = new_sim();
        struct fs *fs = sim_fs_fs(sim);
        struct errmsg msg = {{0}};
        sim_fs_fail(sim, SIM_FS_OPEN | SIM_FS_WRITE | SIM_FS_SYNC | SIM_FS_RENAME, nth, ERR_IO, false);
        enum err err = flush(fs, head, "1.seg", 1, 50, &msg);
        sim_fs_fail(sim, SIM_FS_ANY, 0, ERR_IO, false);
        assert_true(err == ERR_OK || err == ERR_IO);
        sim_fs_crash(sim);
        struct segment *seg;
        enum err opened = segment_open(&seg, fs, DIRECTORY, "1.seg", &msg);
        if (opened == ERR_OK) {
            assert_int_equal(segment_verify(seg, NULL, &msg), ERR_OK);
            check_segments(&random, &seg, 1);
            segment_close(seg);
            whole++;
        } else {
            assert_int_equal(opened, ERR_NOTFOUND);
            assert_int_not_equal(err, ERR_OK);
            failed++;
        }
        sim_fs_free(sim);
    }
    assert_true(failed > 0);
    assert_true(whole > 0);
    head_free(head);
}

static void test_compaction_keeps_every_row_and_the_last_write(void **state)
{
    (void)state;
    struct check_random random;
    check_random_init(&random, check_random_seed(36));
    memset(model, 0, sizeof *model);
    struct sim_fs *sim = new_sim();
    struct fs *fs = sim_fs_fs(sim);
    struct segment *segs[8], *merged, *merged_again;
    struct errmsg msg = {{0}};
    for (uint64_t i = 0; i < 8; i++) {
        struct head *head = head_new((size_t)1 << 30, 5);
        char name[16];
        snprintf(name, sizeof name, "%d.seg", (int)i + 1);
        add_rows(&random, head, 1500, i * 250, 1000);
        assert_int_equal(flush(fs, head, name, i + 1, 100, &msg), ERR_OK);
        head_free(head);
        assert_int_equal(segment_open(&segs[i], fs, DIRECTORY, name, &msg), ERR_OK);
    }
    check_segments(&random, segs, 8);
    struct segment_info info;
    assert_int_equal(compactor_merge(segs, 5, fs, DIRECTORY, "1-5.seg", 1, &info, &msg), ERR_OK);
    assert_int_equal(info.flush_first, 1);
    assert_int_equal(info.flush_last, 5);
    assert_int_equal(info.level, 1);
    assert_int_equal(segment_open(&merged, fs, DIRECTORY, "1-5.seg", &msg), ERR_OK);
    assert_int_equal(segment_get_info(merged)->source_count, 6);
    assert_int_equal(segment_get_info(merged)->sources[0].sequence, 500);
    struct segment *mixed[] = {merged, segs[5], segs[6], segs[7]};
    check_segments(&random, mixed, 4);
    assert_int_equal(compactor_merge(mixed, 4, fs, DIRECTORY, "1-8.seg", 3, &info, &msg), ERR_OK);
    assert_int_equal(segment_open(&merged_again, fs, DIRECTORY, "1-8.seg", &msg), ERR_OK);
    assert_int_equal(segment_verify(merged_again, NULL, &msg), ERR_OK);
    assert_int_equal(segment_get_info(merged_again)->point_count, store_model_point_count(model));
    check_segments(&random, &merged_again, 1);
    struct segment *overlapping[] = {merged, segs[4]};
    assert_int_equal(compactor_merge(overlapping, 2, fs, DIRECTORY, "x.seg", 2, NULL, &msg), ERR_INVALID);
    segment_close(merged);
    segment_close(merged_again);
    for (size_t i = 0; i < 8; i++)
        segment_close(segs[i]);
    sim_fs_free(sim);
}

/* Feed flushes to the plan, apply what it says, and add up what is written. */
static void test_plan_writes_nothing_more_than_four_times(void **state)
{
    (void)state;
    static struct compactor_input inputs[5000];
    static uint32_t writes[4000];
    size_t count = 0;
    uint64_t written = 0, flushed = 0;
    for (uint64_t number = 0; number < 4000; number++) {
        inputs[count++] = (struct compactor_input){.flush_first = number, .flush_last = number, .size = 100};
        written += 100;
        flushed += 100;
        writes[number] = 1;
        bool last = number == 3999;
        for (size_t i = 0; last && i < count; i++)
            inputs[i].window_closed = true;
        for (;;) {
            struct compactor_plan plan = compactor_plan(inputs, count, NULL);
            if (plan.count == 0)
                break;
            struct compactor_input *run = &inputs[plan.first];
            assert_true(plan.level >= 1 && plan.level <= COMPACTOR_LEVEL_MAX);
            uint64_t size = 0;
            for (size_t i = 0; i < plan.count; i++) {
                assert_true(run[i].level < plan.level);
                if (i > 0)
                    assert_int_equal(run[i].flush_first, run[i - 1].flush_last + 1); /* neighbours */
                size += run[i].size;
            }
            for (uint64_t f = run[0].flush_first; f <= run[plan.count - 1].flush_last; f++)
                assert_true(++writes[f] <= 4);
            written += size;
            run[0].flush_last = run[plan.count - 1].flush_last;
            run[0].level = plan.level;
            run[0].size = size;
            memmove(run + 1, run + plan.count, (count - plan.first - plan.count) * sizeof *run);
            count -= plan.count - 1;
        }
        assert_true(last || count <= 3 * 16 + 1);
    }
    assert_true(written <= 4 * flushed);
    assert_true(count <= 2);
}

static void test_plan_keeps_windows_and_sizes_apart(void **state)
{
    (void)state;
    struct compactor_input inputs[40];
    for (size_t i = 0; i < 40; i++)
        inputs[i] = (struct compactor_input){.flush_first = i, .flush_last = i, .window_ns = (int64_t)(i % 4), .size = 10};
    struct compactor_plan plan = compactor_plan(inputs, 40, NULL);
    assert_int_equal(plan.count, 0); /* ten each: too few */
    const struct compactor_options options = {.fan_in = {5, 5, 5}, .output_size_max = 70};
    plan = compactor_plan(inputs, 40, &options);
    assert_int_equal(plan.count, 7);
    for (size_t i = plan.first; i < plan.first + plan.count; i++)
        assert_int_equal(inputs[i].window_ns, inputs[plan.first].window_ns);
}

int main(void)
{
    model = malloc(sizeof *model);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunk_keeps_its_rules),
        cmocka_unit_test(test_segment_gives_back_the_head),
        cmocka_unit_test(test_columns_can_be_chosen),
        cmocka_unit_test(test_every_flipped_bit_is_found),
        cmocka_unit_test(test_damaged_chunk_is_skipped_and_counted),
        cmocka_unit_test(test_any_failed_operation_leaves_no_segment_or_a_whole_one),
        cmocka_unit_test(test_compaction_keeps_every_row_and_the_last_write),
        cmocka_unit_test(test_plan_writes_nothing_more_than_four_times),
        cmocka_unit_test(test_plan_keeps_windows_and_sizes_apart),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(model);
    return failed;
}
