/* What the writer promises, on a file system in memory and on the real one. Random histories are log_model_test.c's. */
#include "common/log_writer.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/log_cursor.h"
#include "common/log_state.h"
#include "tests/lib/log_bench.h"

static void test_written_is_read(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    struct log_reader *reader = log_bench_read(&b, NULL);
    log_bench_expect_end(reader, ERR_AGAIN);
    for (int i = 0; i < 100; i++)
        assert_int_equal(log_bench_put(&b, 1500), ERR_OK); /* over several segments */
    log_bench_expect(reader, 1, 100);
    log_bench_expect_end(reader, ERR_AGAIN);
    assert_int_equal(log_writer_durable_blocks(b.writer, 0), 100);
    assert_int_equal(log_writer_durable_end(b.writer).position.sequence, 101);
    struct log_writer_stats stats;
    log_writer_stats(b.writer, &stats);
    assert_int_equal(stats.record_count, 100);
    assert_true(stats.roll_count >= 2);
    log_reader_close(reader);
    log_bench_stop(&b);
}

static void test_restart_goes_on_with_sequences_and_a_new_epoch(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    uint64_t broker_id = log_writer_broker_id(b.writer);
    assert_int_equal(log_bench_put(&b, 10), ERR_OK);
    log_bench_close(&b);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    assert_true(log_writer_broker_id(b.writer) == broker_id);
    assert_int_equal(log_writer_epoch(b.writer), 2);
    assert_int_equal(b.recovery.record_count, 1);
    assert_int_equal(b.recovery.torn_bytes, 0);
    assert_int_equal(log_bench_put(&b, 10), ERR_OK);
    struct log_reader *reader = log_bench_read(&b, NULL);
    struct log_reader_item item;
    assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
    assert_int_equal(item.position.epoch, 1);
    assert_int_equal(item.position.sequence, 1);
    assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
    assert_int_equal(item.position.epoch, 2);
    assert_int_equal(item.position.sequence, 2);
    assert_true(item.broker_id == broker_id);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    log_bench_stop(&b);
}

struct contents {
    struct log_bench *b;
    unsigned files;
    uint64_t bytes;
};

static void add_contents(void *context, const char *name)
{
    struct contents *contents = (struct contents *)context;
    char path[64];
    const uint8_t *data;
    uint64_t size;
    snprintf(path, sizeof path, "log/%s", name);
    assert_int_equal(sim_fs_contents(contents->b->sim, path, &data, &size), ERR_OK);
    contents->files++;
    contents->bytes += size;
}

static struct contents contents_of(struct log_bench *b)
{
    struct contents contents = {.b = b};
    assert_int_equal(fs_list(b->fs, b->dir, &contents, add_contents), ERR_OK);
    return contents;
}

/* A unit that is restarted for hours because its port is taken, with a cursor that holds the log: starts that write nothing leave nothing,
 * however they end, and each counts the epoch up all the same. A reader that was there before goes on. */
static void test_starts_that_write_nothing_leave_nothing(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    assert_int_equal(log_writer_ensure_cursor(b.writer, "sink", &b.msg), ERR_OK);
    for (int i = 0; i < 60; i++)
        assert_int_equal(log_bench_put(&b, 3000), ERR_OK);
    struct log_reader *reader = log_bench_read(&b, NULL);
    log_bench_expect(reader, 1, 60);
    uint64_t records = 60;
    struct contents first = {0};
    for (int i = 0; i < 50; i++) {
        if (i % 3 == 0) {
            log_bench_close(&b);
        } else { /* which the reader does not survive here */
            i % 3 == 1 ? sim_fs_kill(b.sim) : sim_fs_crash(b.sim);
            log_bench_close(&b);
            log_reader_close(reader);
            reader = log_bench_read(&b, NULL);
            log_bench_expect(reader, 1, records);
        }
        assert_int_equal(log_bench_open(&b), ERR_OK);
        assert_int_equal(b.recovery.end.position.sequence, records + 1);
        assert_int_equal(log_writer_epoch(b.writer), i + 2);
        log_bench_expect_end(reader, ERR_AGAIN);
        log_bench_prepare(&b);
        struct contents now = contents_of(&b);
        if (i == 0)
            first = now;
        assert_int_equal(now.files, first.files);
        assert_int_equal(now.bytes, first.bytes);
    }
    assert_int_equal(log_bench_put(&b, 3000), ERR_OK);
    struct log_reader_item item;
    assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
    assert_int_equal(item.position.sequence, 61);
    assert_int_equal(item.position.epoch, 51);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    log_bench_close(&b);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    assert_int_equal(b.recovery.end.position.sequence, 62);
    log_bench_stop(&b);
}

/* It has no segment yet that could be found missing, and what it will write is not to be lost for that. */
static void test_its_file_is_missed_before_it_writes(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    assert_int_equal(log_bench_put(&b, 10), ERR_OK);
    log_bench_close(&b);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    assert_int_equal(fs_unlink(b.fs, "log/0000000000000002.seg"), ERR_OK);
    assert_int_equal(log_writer_prepare(b.writer, &b.msg), ERR_IO);
    assert_non_null(strstr(b.msg.text, "0000000000000002.seg"));
    assert_int_equal(log_bench_put(&b, 10), ERR_IO);
    log_bench_stop(&b);
}

static void test_second_broker_is_refused(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start(), second = b;
    assert_int_equal(log_bench_open(&second), ERR_LOCKED);
    log_bench_stop(&b);
}

static void test_failed_write_is_final(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    assert_int_equal(log_bench_put(&b, 10), ERR_OK);
    sim_fs_fail(b.sim, SIM_FS_WRITE, 1, ERR_IO, false);
    assert_int_equal(log_bench_put(&b, 10), ERR_IO);
    assert_int_equal(log_bench_put(&b, 10), ERR_IO);
    assert_int_equal(log_writer_failed(b.writer), ERR_IO);
    assert_int_equal(log_writer_prepare(b.writer, NULL), ERR_IO);
    assert_int_equal(log_writer_room(b.writer, LOG_ROOM_PUBLISH), 0);
    assert_int_equal(log_writer_room(b.writer, LOG_ROOM_CONTROL), 0);
    assert_int_equal(log_writer_durable_end(b.writer).position.sequence, 2);
    log_bench_stop(&b);
}

/* The room that there is said to be for the others can be written, wherever segments end: also behind starts, which close them early. */
static void test_last_tenth_is_there(void **state)
{
    (void)state;
    for (int starts = 0; starts < 6; starts++) {
        struct log_bench b = log_bench_start();
        assert_int_equal(log_writer_ensure_cursor(b.writer, "sink", NULL), ERR_OK);
        for (int i = 0; i < starts; i++) {
            for (int k = 0; k <= 3 * i; k++)
                assert_int_equal(log_bench_put(&b, 3000), ERR_OK);
            log_bench_close(&b);
            assert_int_equal(log_bench_open(&b), ERR_OK);
        }
        while (log_writer_room(b.writer, LOG_ROOM_PUBLISH) > LOG_BENCH_BODY_MAX) {
            log_bench_prepare(&b);
            assert_int_equal(log_bench_put(&b, 4000), ERR_OK);
        }
        uint64_t room = log_writer_room(b.writer, LOG_ROOM_CONTROL);
        assert_true(room >= 8 * LOG_BENCH_SEGMENT_SIZE / 10 - 4096);
        for (uint64_t bytes = 0; bytes + 2 * 4096 < room; bytes += 1024) {
            log_bench_prepare(&b);
            assert_int_equal(log_bench_put(&b, 600), ERR_OK);
        }
        log_bench_stop(&b);
    }
}

static void test_free_disk_floor(void **state)
{
    (void)state;
    struct log_bench b = log_bench_make(1);
    struct log_writer_options options = {.fs = b.fs,
                                         .dir = b.dir,
                                         .segment_size = LOG_BENCH_SEGMENT_SIZE,
                                         .log_bytes_max = 8 * LOG_BENCH_SEGMENT_SIZE,
                                         .free_bytes_min = 4 * LOG_BENCH_SEGMENT_SIZE};
    sim_fs_set_free(b.sim, 20 * LOG_BENCH_SEGMENT_SIZE);
    assert_int_equal(log_writer_open(&b.writer, &options, NULL, &b.msg), ERR_OK);
    assert_true(log_writer_room(b.writer, LOG_ROOM_PUBLISH) > 5 * LOG_BENCH_SEGMENT_SIZE);
    sim_fs_set_free(b.sim, 3 * LOG_BENCH_SEGMENT_SIZE);
    assert_int_not_equal(log_writer_prepare(b.writer, NULL), ERR_IO);
    /* What is already on disk may be used; no more than that. */
    assert_true(log_writer_room(b.writer, LOG_ROOM_PUBLISH) <= LOG_BENCH_SEGMENT_SIZE);
    assert_true(log_writer_room(b.writer, LOG_ROOM_CONTROL) > LOG_BENCH_SEGMENT_SIZE);
    sim_fs_set_free(b.sim, 100);
    assert_int_equal(log_writer_prepare(b.writer, NULL), ERR_NOSPACE);
    assert_int_equal(log_writer_failed(b.writer), ERR_OK);
    log_writer_close(b.writer);
    sim_fs_free(b.sim);
}

static void test_state_is_written_at_most_every_20_ms(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    struct log_state file;
    struct log_state_value value;
    int64_t wait_ns;
    assert_int_equal(log_state_open(&file, b.fs, b.dir, false), ERR_OK);
    struct log_block *block;
    const int64_t times[] = {1000000000, 1005000000, 1010000000};
    for (int i = 0; i < 3; i++) {
        block = log_bench_block(&b, 10);
        log_writer_begin(b.writer, &block, 1);
        assert_int_equal(log_writer_write(b.writer, NULL), ERR_OK);
        assert_int_equal(log_state_read(&file, &value), ERR_OK);
        assert_int_equal(value.end.position.sequence, i == 0 ? 1 : 2); /* never before finish, then not at once */
        assert_int_equal(log_writer_finish(b.writer, times[i]), ERR_OK);
        log_block_pool_put(&b.pool, block);
    }
    assert_int_equal(log_writer_idle(b.writer, &wait_ns, 1015000000), ERR_OK);
    assert_int_equal(wait_ns, 5000000);
    assert_int_equal(log_writer_idle(b.writer, &wait_ns, 1020000000), ERR_OK);
    assert_int_equal(wait_ns, 0);
    assert_int_equal(log_state_read(&file, &value), ERR_OK);
    assert_int_equal(value.end.position.sequence, 4);
    log_state_close(&file);
    log_bench_stop(&b);
}

static void test_bad_options_are_refused(void **state)
{
    (void)state;
    struct sim_fs *sim = sim_fs_new(1, 512);
    struct log_writer *writer;
    struct errmsg msg;
    struct log_writer_options options = {.fs = sim_fs_fs(sim), .dir = "log", .segment_size = 1024};
    assert_int_equal(log_writer_open(&writer, &options, NULL, &msg), ERR_INVALID);
    options.segment_size = LOG_BENCH_SEGMENT_SIZE;
    options.log_bytes_max = LOG_BENCH_SEGMENT_SIZE;
    assert_int_equal(log_writer_open(&writer, &options, NULL, &msg), ERR_INVALID);
    options.log_bytes_max = 0;
    options.alignment = 1000;
    assert_int_equal(log_writer_open(&writer, &options, NULL, &msg), ERR_INVALID);
    options.alignment = 0;
    options.dir = "no/such/place";
    assert_int_equal(log_writer_open(&writer, &options, NULL, &msg), ERR_NOTFOUND);
    sim_fs_free(sim);
}

/* On the real file system, with the preparing thread and a reader beside the writer. */
struct real {
    struct log_bench *b;
    atomic_bool stop;
    uint64_t count;
};

static void *real_prepare(void *context)
{
    struct real *real = (struct real *)context;
    while (!atomic_load(&real->stop)) {
        enum err err = log_writer_prepare(real->b->writer, NULL);
        (void)log_writer_room(real->b->writer, LOG_ROOM_PUBLISH);
        if (err == ERR_OK)
            usleep(1000);
    }
    return NULL;
}

static void *real_read(void *context)
{
    struct real *real = (struct real *)context;
    struct log_reader *reader;
    struct log_cursor cursor;
    struct log_cursor_value value;
    struct log_reader_item item;
    if (log_cursor_open(&cursor, fs_posix(), real->b->dir, "sink", NULL) != ERR_OK)
        return NULL;
    if (log_reader_open(&reader, fs_posix(), real->b->dir, &cursor.value, NULL) != ERR_OK)
        return NULL;
    for (;;) {
        bool last = atomic_load(&real->stop);
        enum err err = log_reader_next(reader, &item, NULL);
        if (err == ERR_OK && item.position.sequence == real->count + 1)
            real->count++;
        else if (err != ERR_AGAIN || last)
            break;
        if (err == ERR_AGAIN || real->count % 200 == 0) {
            log_reader_cursor(reader, &value);
            if (log_cursor_store(&cursor, &value) != ERR_OK)
                break;
        }
    }
    log_reader_close(reader);
    log_cursor_close(&cursor);
    return NULL;
}

static void remove_name(void *context, const char *name)
{
    char path[FILE_PATH_MAX];
    if (file_path(path, (const char *)context, name) == ERR_OK)
        unlink(path);
}

static void test_real_disk_with_threads(void **state)
{
    (void)state;
    char dir[] = "/tmp/tidegate-log-test-XXXXXX";
    assert_non_null(mkdtemp(dir));
    struct log_bench b = {.fs = fs_posix(), .dir = dir, .next_id = 1};
    assert_int_equal(log_bench_open(&b), ERR_OK);
    assert_int_equal(log_writer_ensure_cursor(b.writer, "sink", NULL), ERR_OK);
    struct real real = {.b = &b};
    pthread_t preparer, reader;
    pthread_create(&preparer, NULL, real_prepare, &real);
    pthread_create(&reader, NULL, real_read, &real);
    uint64_t count = 0;
    while (count < 400) {
        if (log_writer_room(b.writer, LOG_ROOM_PUBLISH) < 2 * LOG_BENCH_SEGMENT_SIZE) {
            usleep(200);
            continue;
        }
        enum err err = log_bench_put(&b, 3000);
        while (err == ERR_NOSPACE) { /* the cursor was not yet seen to move */
            usleep(1000);
            err = log_writer_write(b.writer, NULL);
            if (!err)
                err = log_writer_finish(b.writer, (int64_t)b.next_id * 1000000000);
        }
        assert_int_equal(err, ERR_OK);
        count++;
    }
    int64_t wait_ns;
    assert_int_equal(log_writer_idle(b.writer, &wait_ns, INT64_MAX), ERR_OK);
    atomic_store(&real.stop, true);
    pthread_join(preparer, NULL);
    pthread_join(reader, NULL);
    assert_int_equal(real.count, count);
    log_bench_close(&b);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    assert_int_equal(b.recovery.end.position.sequence, count + 1);
    log_bench_close(&b);
    assert_int_equal(fs_list(fs_posix(), dir, dir, remove_name), ERR_OK);
    assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_written_is_read),
        cmocka_unit_test(test_restart_goes_on_with_sequences_and_a_new_epoch),
        cmocka_unit_test(test_starts_that_write_nothing_leave_nothing),
        cmocka_unit_test(test_its_file_is_missed_before_it_writes),
        cmocka_unit_test(test_second_broker_is_refused),
        cmocka_unit_test(test_failed_write_is_final),
        cmocka_unit_test(test_last_tenth_is_there),
        cmocka_unit_test(test_free_disk_floor),
        cmocka_unit_test(test_state_is_written_at_most_every_20_ms),
        cmocka_unit_test(test_bad_options_are_refused),
        cmocka_unit_test(test_real_disk_with_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
