/* log_writer.c with its neighbours (slots, identity, state, cursor, recovery, reader): one case per promise, on a file system in memory and
 * on the real one. Random histories are log_model_test.c's. */
#include "common/log_writer.h"

#include "common/bytes.h"
#include "common/log_cursor.h"
#include "common/log_reader.h"
#include "common/log_segment.h"
#include "common/log_state.h"
#include "tests/lib/sim_fs.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#define SEGMENT_SIZE 65536
#define BODY_MAX 8192

struct bench {
    struct sim_fs *sim;
    struct fs *fs;
    const char *dir;
    struct log_writer *writer;
    struct log_block_pool pool;
    struct log_recovery recovery;
    struct errmsg msg;
    uint64_t next_id;
};

static enum err open_log(struct bench *b)
{
    struct log_writer_options options = {.fs = b->fs, .dir = b->dir, .segment_size = SEGMENT_SIZE, .log_bytes_max = 8 * SEGMENT_SIZE};
    enum err err = log_writer_open(&b->writer, &options, &b->recovery, &b->msg);
    if (!err)
        assert_int_equal(log_block_pool_init(&b->pool, 0, 8, BODY_MAX, log_writer_alignment(b->writer)), ERR_OK);
    else
        b->writer = NULL;
    return err;
}

static void close_log(struct bench *b)
{
    if (!b->writer)
        return;
    log_writer_close(b->writer);
    log_block_pool_deinit(&b->pool);
    b->writer = NULL;
}

static struct bench start(void)
{
    struct bench b = {.sim = sim_fs_new(1, 512), .dir = "log", .next_id = 1};
    b.fs = sim_fs_fs(b.sim);
    assert_int_equal(open_log(&b), ERR_OK);
    return b;
}

static void stop(struct bench *b)
{
    close_log(b);
    sim_fs_free(b->sim);
}

/* A block with one record of about `payload_size` bytes; the session is its id. */
static struct log_block *one_block(struct bench *b, size_t payload_size)
{
    static uint8_t payload[BODY_MAX];
    for (size_t i = 0; i < payload_size; i++)
        payload[i] = (uint8_t)(i * 2654435761u >> 13);
    struct record rec = {.type = RECORD_PUBLISH, .session = b->next_id++, .payload = span_of(payload, payload_size)};
    struct log_block *block = log_block_pool_get(&b->pool);
    assert_int_equal(log_block_append(block, &rec), ERR_OK);
    log_block_seal(&b->pool, block);
    return block;
}

static enum err put(struct bench *b, size_t payload_size)
{
    struct log_block *block = one_block(b, payload_size);
    log_writer_begin(b->writer, &block, 1);
    enum err err = log_writer_write(b->writer, &b->msg);
    if (!err)
        err = log_writer_finish(b->writer, (int64_t)b->next_id * 1000000000);
    log_block_pool_put(&b->pool, block);
    return err;
}

static struct log_reader *reader_at(struct bench *b, const struct log_cursor_value *from)
{
    struct log_reader *reader;
    assert_int_equal(log_reader_open(&reader, b->fs, b->dir, from, NULL), ERR_OK);
    return reader;
}

/* Read `count` records whose sequences begin at `first`; id == sequence in these tests. */
static void expect(struct log_reader *reader, uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        struct log_reader_item item;
        struct record rec;
        assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
        assert_int_equal(item.position.sequence, first + i);
        assert_int_equal(record_decode(&rec, item.bytes), ERR_OK);
        assert_int_equal(rec.session, first + i);
    }
}

static void expect_end(struct log_reader *reader, enum err expected)
{
    struct log_reader_item item;
    assert_int_equal(log_reader_next(reader, &item, NULL), expected);
}

static void prepare_all(struct bench *b)
{
    while (log_writer_prepare(b->writer, NULL) == ERR_AGAIN)
        ;
}

static void test_written_is_read(void **state)
{
    (void)state;
    struct bench b = start();
    struct log_reader *reader = reader_at(&b, NULL);
    expect_end(reader, ERR_AGAIN);
    for (int i = 0; i < 100; i++)
        assert_int_equal(put(&b, 1500), ERR_OK); /* over several segments */
    expect(reader, 1, 100);
    expect_end(reader, ERR_AGAIN);
    assert_int_equal(log_writer_durable_blocks(b.writer, 0), 100);
    assert_int_equal(log_writer_durable_end(b.writer).position.sequence, 101);
    struct log_writer_stats stats;
    log_writer_stats(b.writer, &stats);
    assert_int_equal(stats.record_count, 100);
    assert_true(stats.roll_count >= 2);
    log_reader_close(reader);
    stop(&b);
}

static void test_restart_goes_on_with_sequences_and_a_new_epoch(void **state)
{
    (void)state;
    struct bench b = start();
    uint64_t broker_id = log_writer_broker_id(b.writer);
    assert_int_equal(put(&b, 10), ERR_OK);
    close_log(&b);
    assert_int_equal(open_log(&b), ERR_OK);
    assert_true(log_writer_broker_id(b.writer) == broker_id);
    assert_int_equal(log_writer_epoch(b.writer), 2);
    assert_int_equal(b.recovery.record_count, 1);
    assert_int_equal(b.recovery.torn_bytes, 0);
    assert_int_equal(put(&b, 10), ERR_OK);
    struct log_reader *reader = reader_at(&b, NULL);
    struct log_reader_item item;
    assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
    assert_int_equal(item.position.epoch, 1);
    assert_int_equal(item.position.sequence, 1);
    assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
    assert_int_equal(item.position.epoch, 2);
    assert_int_equal(item.position.sequence, 2);
    assert_true(item.broker_id == broker_id);
    expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    stop(&b);
}

struct contents {
    struct bench *b;
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

static struct contents contents_of(struct bench *b)
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
    struct bench b = start();
    assert_int_equal(log_writer_ensure_cursor(b.writer, "sink", &b.msg), ERR_OK);
    for (int i = 0; i < 60; i++)
        assert_int_equal(put(&b, 3000), ERR_OK);
    struct log_reader *reader = reader_at(&b, NULL);
    expect(reader, 1, 60);
    uint64_t records = 60;
    struct contents first = {0};
    for (int i = 0; i < 50; i++) {
        if (i % 3 == 0) {
            close_log(&b);
        } else { /* which the reader does not survive here */
            i % 3 == 1 ? sim_fs_kill(b.sim) : sim_fs_crash(b.sim);
            close_log(&b);
            log_reader_close(reader);
            reader = reader_at(&b, NULL);
            expect(reader, 1, records);
        }
        assert_int_equal(open_log(&b), ERR_OK);
        assert_int_equal(b.recovery.end.position.sequence, records + 1);
        assert_int_equal(log_writer_epoch(b.writer), i + 2);
        expect_end(reader, ERR_AGAIN);
        prepare_all(&b);
        struct contents now = contents_of(&b);
        if (i == 0)
            first = now;
        assert_int_equal(now.files, first.files);
        assert_int_equal(now.bytes, first.bytes);
    }
    assert_int_equal(put(&b, 3000), ERR_OK);
    struct log_reader_item item;
    assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
    assert_int_equal(item.position.sequence, 61);
    assert_int_equal(item.position.epoch, 51);
    expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    close_log(&b);
    assert_int_equal(open_log(&b), ERR_OK);
    assert_int_equal(b.recovery.end.position.sequence, 62);
    stop(&b);
}

/* What stood behind the end of a torn write is not read as the log, however many starts write nothing before one does. */
static void test_a_torn_tail_stays_void_over_starts(void **state)
{
    (void)state;
    struct bench b = start();
    assert_int_equal(put(&b, 10), ERR_OK);
    struct log_block *blocks[3] = {one_block(&b, 900), one_block(&b, 900), one_block(&b, 900)};
    log_writer_begin(b.writer, blocks, 3);
    struct log_place first = blocks[0]->place;
    assert_int_equal(log_writer_write(b.writer, NULL), ERR_OK);
    for (int i = 0; i < 3; i++)
        log_block_pool_put(&b.pool, blocks[i]);
    sim_fs_kill(b.sim);
    close_log(&b);
    uint8_t zeros[512] = {0};
    assert_int_equal(sim_fs_overwrite(b.sim, "log/0000000000000001.seg", first.offset, zeros, sizeof zeros), ERR_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(open_log(&b), ERR_OK);
        assert_int_equal(b.recovery.end.position.sequence, 2);
        assert_int_equal(b.recovery.end.place.offset, first.offset);
        sim_fs_kill(b.sim);
        close_log(&b);
    }
    assert_int_equal(open_log(&b), ERR_OK);
    b.next_id = 2;
    assert_int_equal(put(&b, 10), ERR_OK);
    struct log_reader *reader = reader_at(&b, NULL);
    expect(reader, 1, 2);
    expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    stop(&b);
}

/* It has no segment yet that could be found missing, and what it will write is not to be lost for that. */
static void test_its_file_is_missed_before_it_writes(void **state)
{
    (void)state;
    struct bench b = start();
    assert_int_equal(put(&b, 10), ERR_OK);
    close_log(&b);
    assert_int_equal(open_log(&b), ERR_OK);
    assert_int_equal(fs_unlink(b.fs, "log/0000000000000002.seg"), ERR_OK);
    assert_int_equal(log_writer_prepare(b.writer, &b.msg), ERR_IO);
    assert_non_null(strstr(b.msg.text, "0000000000000002.seg"));
    assert_int_equal(put(&b, 10), ERR_IO);
    stop(&b);
}

static void test_second_broker_is_refused(void **state)
{
    (void)state;
    struct bench b = start(), second = b;
    assert_int_equal(open_log(&second), ERR_LOCKED);
    stop(&b);
}

static void test_second_sink_is_refused(void **state)
{
    (void)state;
    struct bench b = start();
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
    stop(&b);
}

static void test_failed_write_is_final(void **state)
{
    (void)state;
    struct bench b = start();
    assert_int_equal(put(&b, 10), ERR_OK);
    sim_fs_fail(b.sim, SIM_FS_WRITE, 1, ERR_IO, false);
    assert_int_equal(put(&b, 10), ERR_IO);
    assert_int_equal(put(&b, 10), ERR_IO);
    assert_int_equal(log_writer_failed(b.writer), ERR_IO);
    assert_int_equal(log_writer_prepare(b.writer, NULL), ERR_IO);
    assert_int_equal(log_writer_room(b.writer, LOG_ROOM_PUBLISH), 0);
    assert_int_equal(log_writer_room(b.writer, LOG_ROOM_CONTROL), 0);
    assert_int_equal(log_writer_durable_end(b.writer).position.sequence, 2);
    stop(&b);
}

static void test_cursor_holds_segments_and_room_falls(void **state)
{
    (void)state;
    struct bench b = start();
    assert_int_equal(log_writer_ensure_cursor(b.writer, "sink", NULL), ERR_OK);
    uint64_t records = 0;
    for (; log_writer_room(b.writer, LOG_ROOM_PUBLISH) > BODY_MAX; records++) {
        prepare_all(&b);
        assert_int_equal(put(&b, 4000), ERR_OK);
        assert_true(records < 1000);
    }
    /* The last tenth is for the others. */
    uint64_t tenth = 8 * SEGMENT_SIZE / 10;
    assert_true(log_writer_room(b.writer, LOG_ROOM_CONTROL) >= tenth);
    assert_true(log_writer_room(b.writer, LOG_ROOM_CONTROL) <= tenth + BODY_MAX + 4096);
    /* It is never exceeded: the last segment is refused, and nothing is lost by that. */
    enum err err;
    while ((err = put(&b, 4000)) == ERR_OK)
        records++;
    assert_int_equal(err, ERR_NOSPACE);
    assert_int_equal(log_writer_failed(b.writer), ERR_OK);
    /* The block that did not fit is still under way: room appears as the cursor moves, and the write goes on. */
    struct log_cursor cursor;
    struct log_cursor_value value;
    struct log_reader *reader = reader_at(&b, NULL);
    expect(reader, 1, records);
    expect_end(reader, ERR_AGAIN);
    log_reader_cursor(reader, &value);
    assert_int_equal(log_cursor_open(&cursor, b.fs, b.dir, "sink", NULL), ERR_OK);
    assert_int_equal(log_cursor_store(&cursor, &value), ERR_OK);
    prepare_all(&b);
    assert_int_equal(log_writer_write(b.writer, &b.msg), ERR_OK);
    struct log_writer_stats stats;
    log_writer_stats(b.writer, &stats);
    assert_true(stats.recycled_count >= 1);
    log_cursor_close(&cursor);
    log_reader_close(reader);
    stop(&b);
}

/* The room that there is said to be for the others can be written, wherever segments end: also behind starts, which close them early. */
static void test_last_tenth_is_there(void **state)
{
    (void)state;
    for (int starts = 0; starts < 6; starts++) {
        struct bench b = start();
        assert_int_equal(log_writer_ensure_cursor(b.writer, "sink", NULL), ERR_OK);
        for (int i = 0; i < starts; i++) {
            for (int k = 0; k <= 3 * i; k++)
                assert_int_equal(put(&b, 3000), ERR_OK);
            close_log(&b);
            assert_int_equal(open_log(&b), ERR_OK);
        }
        while (log_writer_room(b.writer, LOG_ROOM_PUBLISH) > BODY_MAX) {
            prepare_all(&b);
            assert_int_equal(put(&b, 4000), ERR_OK);
        }
        uint64_t room = log_writer_room(b.writer, LOG_ROOM_CONTROL);
        assert_true(room >= 8 * SEGMENT_SIZE / 10 - 4096);
        for (uint64_t bytes = 0; bytes + 2 * 4096 < room; bytes += 1024) {
            prepare_all(&b);
            assert_int_equal(put(&b, 600), ERR_OK);
        }
        stop(&b);
    }
}

static void test_free_disk_floor(void **state)
{
    (void)state;
    struct bench b = {.sim = sim_fs_new(1, 512), .dir = "log", .next_id = 1};
    b.fs = sim_fs_fs(b.sim);
    struct log_writer_options options = {
        .fs = b.fs, .dir = b.dir, .segment_size = SEGMENT_SIZE, .log_bytes_max = 8 * SEGMENT_SIZE, .free_bytes_min = 4 * SEGMENT_SIZE};
    sim_fs_set_free(b.sim, 20 * SEGMENT_SIZE);
    assert_int_equal(log_writer_open(&b.writer, &options, NULL, &b.msg), ERR_OK);
    assert_true(log_writer_room(b.writer, LOG_ROOM_PUBLISH) > 5 * SEGMENT_SIZE);
    sim_fs_set_free(b.sim, 3 * SEGMENT_SIZE);
    assert_int_not_equal(log_writer_prepare(b.writer, NULL), ERR_IO);
    /* What is already on disk may be used; no more than that. */
    assert_true(log_writer_room(b.writer, LOG_ROOM_PUBLISH) <= SEGMENT_SIZE);
    assert_true(log_writer_room(b.writer, LOG_ROOM_CONTROL) > SEGMENT_SIZE);
    sim_fs_set_free(b.sim, 100);
    assert_int_equal(log_writer_prepare(b.writer, NULL), ERR_NOSPACE);
    assert_int_equal(log_writer_failed(b.writer), ERR_OK);
    log_writer_close(b.writer);
    sim_fs_free(b.sim);
}

static void test_torn_tail_is_normal(void **state)
{
    (void)state;
    struct bench b = start();
    assert_int_equal(put(&b, 10), ERR_OK);
    /* Two blocks in one write, of which only the second reaches the disk. */
    struct log_block *blocks[2] = {one_block(&b, 900), one_block(&b, 900)};
    log_writer_begin(b.writer, blocks, 2);
    struct log_place first = blocks[0]->place;
    assert_int_equal(log_writer_write(b.writer, NULL), ERR_OK);
    log_block_pool_put(&b.pool, blocks[0]);
    log_block_pool_put(&b.pool, blocks[1]);
    sim_fs_kill(b.sim);
    close_log(&b);
    uint8_t zeros[512] = {0};
    assert_int_equal(sim_fs_overwrite(b.sim, "log/0000000000000001.seg", first.offset, zeros, sizeof zeros), ERR_OK);
    assert_int_equal(open_log(&b), ERR_OK);
    assert_int_equal(b.recovery.end.position.sequence, 2);
    assert_int_equal(b.recovery.end.place.offset, first.offset);
    assert_true(b.recovery.torn_bytes >= 1024);
    assert_false(b.recovery.corrupt);
    b.next_id = 2;
    assert_int_equal(put(&b, 10), ERR_OK);
    struct log_reader *reader = reader_at(&b, NULL);
    expect(reader, 1, 2);
    expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    stop(&b);
}

static void damage_and_expect(bool state_too)
{
    struct bench b = start();
    for (int i = 0; i < 5; i++)
        assert_int_equal(put(&b, 900), ERR_OK);
    sim_fs_kill(b.sim);
    close_log(&b);
    if (state_too) { /* the blocks alone must prove it */
        uint8_t zeros[512] = {0};
        assert_int_equal(sim_fs_overwrite(b.sim, "log/state", 0, zeros, sizeof zeros), ERR_OK);
        assert_int_equal(sim_fs_overwrite(b.sim, "log/state", 4096, zeros, sizeof zeros), ERR_OK);
    }
    struct log_reader *reader = reader_at(&b, NULL);
    if (!state_too)
        expect(reader, 1, 2);
    assert_int_equal(sim_fs_flip_bit(b.sim, "log/0000000000000001.seg", 8 * (4096 + 2 * 1536 + 200)), ERR_OK);
    assert_int_equal(open_log(&b), ERR_CORRUPT);
    assert_true(b.recovery.corrupt);
    assert_int_equal(b.recovery.corrupt_place.generation, 1);
    assert_true(strstr(b.msg.text, "0000000000000001.seg"));
    assert_int_equal(b.recovery.end.place.offset, b.recovery.corrupt_place.offset);
    if (state_too)
        assert_non_null(strstr(b.recovery.proof_by, "block"));
    else
        assert_string_equal(b.recovery.proof_by, "state");
    log_reader_close(reader);
    reader = reader_at(&b, NULL);
    if (!state_too) {
        uint64_t readable = b.recovery.end.position.sequence - 1;
        expect(reader, 1, readable);
        expect_end(reader, ERR_CORRUPT);
        expect_end(reader, ERR_CORRUPT);
    }
    log_reader_close(reader);
    stop(&b);
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
    struct bench b = start();
    assert_int_equal(put(&b, 100), ERR_OK);
    struct log_end end = log_writer_durable_end(b.writer);
    struct log_cursor_value value = {.position = end.position, .place = end.place, .reopen = end.place};
    assert_int_equal(log_cursor_create(b.fs, b.dir, "sink", &value), ERR_OK);
    close_log(&b);
    uint8_t zeros[512] = {0};
    sim_fs_overwrite(b.sim, "log/state", 0, zeros, sizeof zeros);
    sim_fs_overwrite(b.sim, "log/state", 4096, zeros, sizeof zeros);
    sim_fs_overwrite(b.sim, "log/0000000000000001.seg", 4096, zeros, sizeof zeros);
    assert_int_equal(open_log(&b), ERR_CORRUPT);
    assert_string_equal(b.recovery.proof_by, "cursor.sink");
    stop(&b);
}

static void test_lost_identity_with_a_log_is_refused(void **state)
{
    (void)state;
    struct bench b = start();
    close_log(&b);
    assert_int_equal(fs_unlink(b.fs, "log/identity"), ERR_OK);
    assert_int_equal(open_log(&b), ERR_CORRUPT);
    assert_string_equal(b.msg.text, "log/identity: missing beside a log that has records; see `tidegate-broker repair`");
    stop(&b);
}

/* The segment that `repair` writes: sequences and generations are left out between the end and it. Written over one that is prepared. */
static void write_repair(struct bench *b, uint64_t generation, uint64_t sequence, struct log_place end, uint64_t broker_id)
{
    static uint8_t bytes[LOG_SEGMENT_HEADER_SIZE];
    struct log_segment_header header = {.broker_id = broker_id,
                                        .generation = generation,
                                        .epoch = b->recovery.epoch_max + 2, /* above the start that followed */
                                        .alignment = 512,
                                        .start = 77,
                                        .first_sequence = sequence,
                                        .predecessor = end,
                                        .is_repair = true};
    char name[LOG_SEGMENT_NAME_SIZE], path[FILE_PATH_MAX];
    struct file *file;
    log_segment_header_encode(bytes, &header);
    log_segment_name(name, generation);
    assert_int_equal(file_path(path, b->dir, name), ERR_OK);
    assert_int_equal(fs_open(b->fs, &file, path, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE), ERR_OK);
    assert_int_equal(file_pwrite(file, bytes, sizeof bytes, 0), ERR_OK);
    assert_int_equal(file_sync(file), ERR_OK);
    file_close(file);
    assert_int_equal(fs_sync_dir(b->fs, b->dir), ERR_OK);
}

static void expect_repair(struct log_reader *reader, uint64_t from, uint64_t to)
{
    expect_end(reader, ERR_GAP);
    assert_int_equal(log_reader_gap(reader).from, from);
    assert_int_equal(log_reader_gap(reader).to, to);
    assert_true(log_reader_gap(reader).is_repair);
    expect_end(reader, ERR_GAP);
    log_reader_accept_gap(reader);
}

/* Two starts, the second's segments given up: readers before the cut, within what was cut, and at its very end. */
static void test_a_repair_leaves_out_what_was_given_up(void **state)
{
    (void)state;
    struct bench b = start();
    uint64_t broker_id = log_writer_broker_id(b.writer);
    assert_int_equal(log_writer_ensure_cursor(b.writer, "keep", NULL), ERR_OK);
    for (int i = 0; i < 10; i++)
        assert_int_equal(put(&b, 1500), ERR_OK);
    struct log_end cut = log_writer_durable_end(b.writer);
    struct log_cursor_value in_cut = {
        .broker_id = broker_id, .position = {1, 11}, .place = {cut.place.generation, cut.place.offset + 4096}, .reopen = cut.place};
    close_log(&b);
    assert_int_equal(open_log(&b), ERR_OK);
    for (int i = 0; i < 10; i++)
        assert_int_equal(put(&b, 1500), ERR_OK);
    struct log_end lost = log_writer_durable_end(b.writer);
    struct log_cursor_value gone = {.broker_id = broker_id, .position = {2, 18}, .place = lost.place, .reopen = lost.place};
    assert_int_equal(log_cursor_create(b.fs, b.dir, "sink", &gone), ERR_OK);
    close_log(&b);
    write_repair(&b, lost.place.generation + 2, 1000, cut.place, broker_id);
    for (uint64_t generation = cut.place.generation + 1; generation <= lost.place.generation + 1; generation++) {
        char path[64];
        snprintf(path, sizeof path, "log/%016llx.seg", (unsigned long long)generation);
        assert_true(fs_unlink(b.fs, path) == ERR_OK || generation > lost.place.generation);
    }
    b.next_id = 1000;
    assert_int_equal(open_log(&b), ERR_OK); /* neither the state nor the cursor in what is gone is proof of anything now */
    assert_int_equal(b.recovery.end.position.sequence, 1000);
    assert_int_equal(b.recovery.oldest.sequence, 1);
    assert_int_equal(log_writer_epoch(b.writer), 4);
    for (int i = 0; i < 60; i++)
        assert_int_equal(put(&b, 1500), ERR_OK);
    close_log(&b);
    assert_int_equal(open_log(&b), ERR_OK); /* and it is a log like any other */
    assert_int_equal(b.recovery.end.position.sequence, 1060);

    struct log_reader *reader = reader_at(&b, NULL);
    expect(reader, 1, 10);
    expect_repair(reader, 11, 1000);
    expect(reader, 1000, 60);
    expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    struct log_cursor_value at_end = in_cut;
    at_end.place = cut.place;
    const struct log_cursor_value *from[] = {&at_end, &in_cut, &gone};
    for (size_t i = 0; i < 3; i++) {
        reader = reader_at(&b, from[i]);
        expect_repair(reader, from[i]->position.sequence, 1000);
        expect(reader, 1000, 60);
        log_reader_close(reader);
    }
    /* Who stood above all of it misses nothing. */
    struct log_cursor_value above = gone;
    above.position.sequence = 1000;
    reader = reader_at(&b, &above);
    expect(reader, 1000, 60);
    log_reader_close(reader);
    stop(&b);
}

/* Nothing is left but the repair segment. */
static void test_a_log_may_begin_with_a_repair(void **state)
{
    (void)state;
    struct bench b = start();
    close_log(&b);
    assert_int_equal(fs_unlink(b.fs, "log/0000000000000001.seg"), ERR_OK);
    write_repair(&b, 9, 500, (struct log_place){0, 0}, 5);
    b.next_id = 500;
    assert_int_equal(open_log(&b), ERR_OK);
    assert_int_equal(put(&b, 100), ERR_OK);
    struct log_cursor_value from = {.broker_id = 5, .position = {1, 100}, .place = {3, 8192}, .reopen = {3, 8192}};
    struct log_reader *reader = reader_at(&b, &from);
    expect_repair(reader, 100, 500);
    expect(reader, 500, 1);
    log_reader_close(reader);
    stop(&b);
}

/* A restored log goes on under a new id; a reader at its end knows under which before there is a record, or it could not be told from one
 * that reads the log which the backup was taken from. */
static void test_a_restored_log_goes_on_under_a_new_id(void **state)
{
    (void)state;
    struct bench b = start();
    struct log_cursor_value value;
    struct log_identity identity;
    assert_int_equal(put(&b, 100), ERR_OK);
    close_log(&b);
    assert_int_equal(log_identity_read(&identity, b.fs, b.dir), ERR_OK);
    uint64_t old = identity.broker_id;
    identity.broker_id = old + 1;
    assert_int_equal(log_identity_store(&identity, b.fs, b.dir, &b.msg), ERR_OK);
    assert_int_equal(open_log(&b), ERR_OK);
    assert_true(log_writer_broker_id(b.writer) == old + 1);
    assert_int_equal(log_writer_epoch(b.writer), 2);
    struct log_reader *reader = reader_at(&b, NULL);
    struct log_reader_item item;
    assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
    assert_true(item.broker_id == old);
    log_reader_cursor(reader, &value);
    assert_true(value.broker_id == old);
    expect_end(reader, ERR_AGAIN);
    log_reader_cursor(reader, &value);
    assert_true(value.broker_id == old + 1);
    assert_int_equal(put(&b, 100), ERR_OK);
    assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
    assert_true(item.broker_id == old + 1);
    assert_int_equal(item.position.sequence, 2);
    log_reader_close(reader);
    stop(&b);
}

/* Whichever file cannot be opened at the start: the message names that one. */
static void test_unreadable_segment_is_named(void **state)
{
    (void)state;
    struct bench b = start();
    bool is_named[2] = {false, false};
    assert_int_equal(put(&b, 900), ERR_OK);
    close_log(&b);
    assert_int_equal(open_log(&b), ERR_OK);
    assert_int_equal(put(&b, 900), ERR_OK);
    close_log(&b);
    for (uint64_t nth = 1; nth <= 20; nth++) {
        b.msg.text[0] = '\0';
        sim_fs_fail(b.sim, SIM_FS_OPEN, nth, ERR_PERMISSION, false);
        if (open_log(&b) == ERR_PERMISSION) {
            is_named[0] |= strncmp(b.msg.text, "log/0000000000000001.seg: permission denied", 43) == 0;
            is_named[1] |= strncmp(b.msg.text, "log/0000000000000002.seg: permission denied", 43) == 0;
            assert_null(strstr(b.msg.text, "0000000000000000"));
        }
        close_log(&b);
    }
    assert_true(is_named[0]);
    assert_true(is_named[1]);
    sim_fs_fail(b.sim, SIM_FS_OPEN, 0, ERR_OK, false);
    stop(&b);
}

static void test_reader_states_a_gap(void **state)
{
    (void)state;
    struct bench b = start(); /* no cursor: nothing is held */
    struct log_reader *slow = reader_at(&b, NULL);
    assert_int_equal(put(&b, 4000), ERR_OK);
    expect(slow, 1, 1);
    for (int i = 0; i < 300; i++) {
        prepare_all(&b);
        assert_int_equal(put(&b, 4000), ERR_OK);
    }
    expect_end(slow, ERR_GAP);
    struct log_reader_gap gap = log_reader_gap(slow);
    assert_int_equal(gap.from, 2);
    assert_true(gap.to > 2 && gap.to <= 301);
    expect_end(slow, ERR_GAP);
    log_reader_accept_gap(slow);
    expect(slow, gap.to, 301 - gap.to + 1);
    expect_end(slow, ERR_AGAIN);
    log_reader_close(slow);
    stop(&b);
}

/* One block of a group, begun, written and finished. */
static void put_group_part(struct bench *b, struct log_block_group *group)
{
    struct log_block *block = log_block_pool_get(&b->pool);
    log_block_group_next(group, block);
    log_block_seal(&b->pool, block);
    log_writer_begin(b->writer, &block, 1);
    assert_int_equal(log_writer_write(b->writer, NULL), ERR_OK);
    assert_int_equal(log_writer_finish(b->writer, (int64_t)b->next_id++ * 1000000000), ERR_OK);
    log_block_pool_put(&b->pool, block);
}

static void test_group_with_others_between_and_reopened_from_its_first_block(void **state)
{
    (void)state;
    struct bench b = start();
    static uint8_t payload[3 * BODY_MAX], bytes[4 * BODY_MAX];
    struct record rec = {.type = RECORD_PUBLISH, .session = 2, .payload = span_of(payload, sizeof payload)};
    size_t size = record_encode(bytes, &rec);
    struct log_block_group group;
    log_block_group_init(&group, span_of(bytes, size - sizeof payload), rec.payload, false);
    struct log_reader *reader = reader_at(&b, NULL);
    put_group_part(&b, &group);
    b.next_id = 1;
    assert_int_equal(put(&b, 50), ERR_OK); /* sequence 1, although it began later */
    b.next_id = 100;
    put_group_part(&b, &group);
    expect(reader, 1, 1);
    expect_end(reader, ERR_AGAIN);
    struct log_cursor_value value;
    log_reader_cursor(reader, &value);
    assert_int_equal(value.position.sequence, 2);
    assert_int_equal(value.reopen.offset, LOG_SEGMENT_HEADER_SIZE);
    assert_true(log_place_compare(value.reopen, value.place) < 0);
    log_reader_close(reader);
    while (!log_block_group_done(&group))
        put_group_part(&b, &group);
    reader = reader_at(&b, &value);
    expect(reader, 2, 1);
    expect_end(reader, ERR_AGAIN);
    log_reader_cursor(reader, &value);
    assert_int_equal(log_place_compare(value.reopen, value.place), 0);
    log_reader_close(reader);
    stop(&b);
}

/* The position is still there, what stands before it for the sake of a group is not: that one record is missing, and no other. */
static void test_reused_before_the_position_loses_the_open_group_only(void **state)
{
    (void)state;
    struct bench b = start(); /* no cursor: nothing is held */
    static uint8_t payload[2 * BODY_MAX], bytes[3 * BODY_MAX];
    struct record rec = {.type = RECORD_PUBLISH, .payload = span_of(payload, sizeof payload)};
    size_t size = record_encode(bytes, &rec);
    struct log_block_group group;
    struct log_cursor_value value;
    log_block_group_init(&group, span_of(bytes, size - sizeof payload), rec.payload, false);
    put_group_part(&b, &group);
    b.next_id = 1;
    struct log_reader *reader = reader_at(&b, NULL);
    for (uint64_t i = 1; i <= 40; i++) {
        assert_int_equal(put(&b, 4000), ERR_OK);
        expect(reader, i, 1);
    }
    log_reader_cursor(reader, &value);
    log_reader_close(reader);
    assert_int_equal(value.reopen.generation, 1);
    assert_true(value.place.generation > 2);
    while (sim_fs_exists(b.sim, "log/0000000000000001.seg")) {
        prepare_all(&b);
        assert_int_equal(put(&b, 4000), ERR_OK);
    }
    uint64_t missing = b.next_id;
    while (!log_block_group_done(&group))
        put_group_part(&b, &group);
    b.next_id = missing + 1;
    assert_int_equal(put(&b, 10), ERR_OK);
    reader = reader_at(&b, &value);
    expect(reader, 41, missing - 41);
    expect_end(reader, ERR_GAP);
    assert_int_equal(log_reader_gap(reader).from, missing);
    assert_int_equal(log_reader_gap(reader).to, missing + 1);
    log_reader_accept_gap(reader);
    expect(reader, missing + 1, 1);
    expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    stop(&b);
}

static void test_group_without_its_last_block_is_void(void **state)
{
    (void)state;
    struct bench b = start();
    static uint8_t payload[3 * BODY_MAX], bytes[4 * BODY_MAX];
    struct record rec = {.type = RECORD_PUBLISH, .session = 2, .payload = span_of(payload, sizeof payload)};
    size_t size = record_encode(bytes, &rec);
    struct log_block_group group;
    log_block_group_init(&group, span_of(bytes, size - sizeof payload), rec.payload, false);
    put_group_part(&b, &group);
    put_group_part(&b, &group);
    sim_fs_crash(b.sim);
    close_log(&b);
    assert_int_equal(open_log(&b), ERR_OK);
    assert_int_equal(b.recovery.void_group_count, 1);
    assert_int_equal(b.recovery.end.position.sequence, 1);
    b.next_id = 1;
    assert_int_equal(put(&b, 50), ERR_OK);
    struct log_reader *reader = reader_at(&b, NULL);
    struct log_reader_stats stats;
    expect(reader, 1, 1);
    expect_end(reader, ERR_AGAIN);
    log_reader_stats(reader, &stats);
    assert_int_equal(stats.void_group_count, 1);
    log_reader_close(reader);
    stop(&b);
}

/* One block with one record that is state, or not. */
static void put_marked(struct bench *b, bool is_state, size_t payload_size)
{
    static const uint8_t payload[BODY_MAX];
    struct record rec = {.type = RECORD_PUBLISH, .session = b->next_id++, .payload = span_of(payload, payload_size)};
    rec.retained_number = is_state;
    struct log_block *block = log_block_pool_get(&b->pool);
    assert_int_equal(log_block_append(block, &rec), ERR_OK);
    log_block_seal(&b->pool, block);
    log_writer_begin(b->writer, &block, 1);
    assert_int_equal(log_writer_write(b->writer, NULL), ERR_OK);
    assert_int_equal(log_writer_finish(b->writer, (int64_t)b->next_id * 1000000000), ERR_OK);
    log_block_pool_put(&b->pool, block);
}

static void put_group_marked(struct bench *b, bool is_state)
{
    static uint8_t payload[2 * BODY_MAX], bytes[3 * BODY_MAX];
    struct record rec = {.type = RECORD_PUBLISH, .session = b->next_id, .payload = span_of(payload, sizeof payload)};
    struct log_block_group group;
    uint64_t id = b->next_id;
    log_block_group_init(&group, span_of(bytes, record_encode(bytes, &rec) - sizeof payload), rec.payload, is_state);
    while (!log_block_group_done(&group))
        put_group_part(b, &group);
    b->next_id = id + 1;
}

/* The first block of a large record that is state, made void by one that is not, which is left open. */
static void put_part_of_void_group(struct bench *b, struct log_block_pool *pool)
{
    static uint8_t payload[2 * BODY_MAX], bytes[3 * BODY_MAX];
    struct record rec = {.type = RECORD_PUBLISH, .payload = span_of(payload, sizeof payload)};
    size_t head_size = record_encode(bytes, &rec) - sizeof payload;
    for (int i = 0; i < 2; i++) {
        struct log_block_group group;
        struct log_block *block = log_block_pool_get(pool);
        log_block_group_init(&group, span_of(bytes, head_size), rec.payload, i == 0);
        log_block_group_next(&group, block);
        log_block_seal(pool, block);
        log_writer_begin(b->writer, &block, 1);
        assert_int_equal(log_writer_write(b->writer, NULL), ERR_OK);
        assert_int_equal(log_writer_finish(b->writer, (int64_t)b->next_id * 1000000000 + (i + 1) * LOG_STATE_INTERVAL_NS), ERR_OK);
        log_block_pool_put(pool, block);
    }
}

static void test_blocks_without_state_are_passed_over(void **state)
{
    (void)state;
    struct bench b = start();
    struct log_reader_stats stats;
    struct log_cursor_value value;
    struct log_reader *reader = reader_at(&b, NULL);
    log_reader_pass_over_stateless(reader);
    for (uint64_t id = 1; id <= 60; id++) {
        if (id % 20 == 7)
            put_group_marked(&b, id == 27);
        else
            put_marked(&b, id % 3 == 0, 1000);
    }
    for (uint64_t id = 1; id <= 60; id++) {
        if (id == 27 || (id % 3 == 0 && id % 20 != 7))
            expect(reader, id, 1);
    }
    put_marked(&b, false, 100);
    struct log_block_pool other;
    assert_int_equal(log_block_pool_init(&other, 1, 1, BODY_MAX, 512), ERR_OK);
    put_part_of_void_group(&b, &other);
    expect_end(reader, ERR_AGAIN);
    log_reader_cursor(reader, &value);
    assert_int_equal(value.position.sequence, 62); /* behind what was passed over, too */
    assert_int_equal(log_place_compare(value.place, log_writer_durable_end(b.writer).place), 0);
    assert_int_equal(log_place_compare(value.place, value.reopen), 0); /* a group passed over is not open */
    assert_int_equal(log_reader_passed_blocks(reader, 0, 1), log_writer_durable_blocks(b.writer, 0));
    assert_int_equal(log_reader_passed_blocks(reader, 1, 1), other.sealed_count);
    assert_int_equal(log_reader_passed_blocks(reader, 2, 1), 0);
    log_block_pool_deinit(&other);
    assert_int_equal(log_reader_passed_blocks(reader, 0, 2), 0);
    log_reader_stats(reader, &stats);
    assert_true(stats.passed_count > 40);
    assert_int_equal(stats.record_count, 20);
    /* The next start counts its blocks from one again. */
    close_log(&b);
    assert_int_equal(open_log(&b), ERR_OK);
    put_marked(&b, true, 10);
    put_marked(&b, false, 10);
    struct log_reader_item item;
    assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
    assert_int_equal(item.position.epoch, 2);
    assert_int_equal(item.position.sequence, 62);
    assert_int_equal(item.shard, 0);
    assert_int_equal(item.shard_block, 1);
    assert_int_equal(log_reader_passed_blocks(reader, 0, 2), 1);
    assert_int_equal(log_reader_passed_blocks(reader, 1, 2), 0);
    expect_end(reader, ERR_AGAIN);
    assert_int_equal(log_reader_passed_blocks(reader, 0, 2), 2);
    assert_int_equal(log_reader_passed_blocks(reader, 0, 1), 0);
    log_reader_cursor(reader, &value);
    assert_int_equal(value.position.epoch, 2);
    log_reader_close(reader);
    stop(&b);
}

/* One call passes over so much and no more. */
static void test_passing_over_is_bounded(void **state)
{
    (void)state;
    struct bench b = {.sim = sim_fs_new(1, 512), .dir = "log", .next_id = 1};
    b.fs = sim_fs_fs(b.sim);
    struct log_writer_options options = {.fs = b.fs, .dir = b.dir, .segment_size = 8 << 20, .log_bytes_max = 64 << 20};
    assert_int_equal(log_writer_open(&b.writer, &options, NULL, &b.msg), ERR_OK);
    assert_int_equal(log_block_pool_init(&b.pool, 0, 8, BODY_MAX, log_writer_alignment(b.writer)), ERR_OK);
    uint64_t bytes = 0;
    uint8_t noise[4000];
    while (bytes <= LOG_READER_PASS_BYTES) {
        for (size_t i = 0; i < sizeof noise; i++)
            noise[i] = (uint8_t)sim_fs_draw(b.sim);
        struct record rec = {.type = RECORD_PUBLISH, .session = b.next_id++, .payload = span_of(noise, sizeof noise)};
        struct log_block *block = log_block_pool_get(&b.pool);
        assert_int_equal(log_block_append(block, &rec), ERR_OK);
        log_block_seal(&b.pool, block);
        bytes += block->size;
        log_writer_begin(b.writer, &block, 1);
        assert_int_equal(log_writer_write(b.writer, NULL), ERR_OK);
        assert_int_equal(log_writer_finish(b.writer, 0), ERR_OK);
        log_block_pool_put(&b.pool, block);
    }
    put_marked(&b, true, 10);
    struct log_reader *reader = reader_at(&b, NULL);
    struct log_reader_item item;
    log_reader_pass_over_stateless(reader);
    log_reader_tell_end(reader, log_writer_published_end(b.writer));
    assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
    assert_int_equal(item.bytes.size, 0);
    struct log_cursor_value value;
    log_reader_cursor(reader, &value);
    assert_true(value.position.sequence > 1); /* may be stored */
    expect(reader, b.next_id - 1, 1);
    expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    stop(&b);
}

/* A reader in the writer's process need not wait for the state file, which is up to 20 ms behind. */
static void test_reader_is_told_the_end(void **state)
{
    (void)state;
    struct bench b = start();
    struct log_reader *reader = reader_at(&b, NULL);
    for (int i = 0; i < 2; i++) {
        struct log_block *block = one_block(&b, 10);
        log_writer_begin(b.writer, &block, 1);
        assert_int_equal(log_writer_write(b.writer, NULL), ERR_OK);
        assert_int_equal(log_writer_published_end(b.writer).position.sequence, 1 + i); /* never before finish */
        assert_int_equal(log_writer_finish(b.writer, 1000000000), ERR_OK);
        log_block_pool_put(&b.pool, block);
    }
    expect(reader, 1, 1);
    expect_end(reader, ERR_AGAIN);
    log_reader_tell_end(reader, log_writer_published_end(b.writer));
    expect(reader, 2, 1);
    expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    stop(&b);
}

/* What recovery accepted can be read at once: the state is written before log_writer_open() returns. */
static void test_recovered_is_read_without_a_write(void **state)
{
    (void)state;
    struct bench b = start();
    for (int i = 0; i < 5; i++)
        assert_int_equal(put(&b, 100), ERR_OK);
    struct log_block *block = one_block(&b, 10); /* durable, and nobody was told */
    log_writer_begin(b.writer, &block, 1);
    assert_int_equal(log_writer_write(b.writer, NULL), ERR_OK);
    sim_fs_kill(b.sim);
    log_block_pool_put(&b.pool, block);
    close_log(&b);
    assert_int_equal(open_log(&b), ERR_OK);
    struct log_reader *reader = reader_at(&b, NULL);
    expect(reader, 1, 6);
    expect_end(reader, ERR_AGAIN);
    assert_int_equal(log_reader_durable_end(reader).position.sequence, log_writer_published_end(b.writer).position.sequence);
    log_reader_close(reader);
    stop(&b);
}

static void test_state_is_written_at_most_every_20_ms(void **state)
{
    (void)state;
    struct bench b = start();
    struct log_state file;
    struct log_state_value value;
    int64_t wait_ns;
    assert_int_equal(log_state_open(&file, b.fs, b.dir, false), ERR_OK);
    struct log_block *block;
    const int64_t times[] = {1000000000, 1005000000, 1010000000};
    for (int i = 0; i < 3; i++) {
        block = one_block(&b, 10);
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
    stop(&b);
}

static void test_slots_fall_back_to_the_value_before(void **state)
{
    (void)state;
    struct sim_fs *sim = sim_fs_new(3, 512);
    struct log_slots slots;
    uint64_t value = 0;
    assert_int_equal(log_slots_open(&slots, sim_fs_fs(sim), "f", 42, FILE_READ | FILE_WRITE | FILE_CREATE), ERR_OK);
    assert_int_equal(log_slots_read(&slots, &value, sizeof value), ERR_NOTFOUND);
    for (uint64_t i = 1; i <= 7; i++)
        assert_int_equal(log_slots_write(&slots, &i, sizeof i), ERR_OK);
    assert_int_equal(log_slots_read(&slots, &value, sizeof value), ERR_OK);
    assert_int_equal(value, 7);
    assert_int_equal(sim_fs_flip_bit(sim, "f", 8 * (4096 + 30)), ERR_OK); /* odd numbers are in the second slot */
    assert_int_equal(log_slots_read(&slots, &value, sizeof value), ERR_OK);
    assert_int_equal(value, 6);
    value = 8;
    assert_int_equal(log_slots_write(&slots, &value, sizeof value), ERR_OK);
    assert_int_equal(log_slots_read(&slots, &value, sizeof value), ERR_OK);
    assert_int_equal(value, 8);
    assert_int_equal(sim_fs_flip_bit(sim, "f", 8 * (4096 + 30)), ERR_OK);
    assert_int_equal(sim_fs_flip_bit(sim, "f", 8 * 100), ERR_OK);
    assert_int_equal(log_slots_read(&slots, &value, sizeof value), ERR_CORRUPT);
    log_slots_close(&slots);
    sim_fs_free(sim);
}

/* A sync that failed has lost what it should have synced, though it can still be read: nothing may be let go by it. */
static void test_cursor_whose_sync_failed_lets_nothing_go(void **state)
{
    (void)state;
    struct bench b = start();
    struct log_cursor cursor;
    struct log_cursor_value first, value;
    assert_int_equal(log_writer_ensure_cursor(b.writer, "sink", NULL), ERR_OK);
    assert_int_equal(put(&b, 10), ERR_OK);
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
    stop(&b);
}

/* Whether the block of a write that was under way when its broker was killed is there, after a start that failed, a start and a power loss.
 */
static bool torn_write_is_kept(uint64_t seed)
{
    struct bench b = {.sim = sim_fs_new(seed, 512), .dir = "log", .next_id = 1};
    b.fs = sim_fs_fs(b.sim);
    assert_int_equal(open_log(&b), ERR_OK);
    struct log_block *block = one_block(&b, 10);
    sim_fs_hold(b.sim, true);
    log_writer_begin(b.writer, &block, 1);
    assert_int_equal(log_writer_write(b.writer, NULL), ERR_OK);
    sim_fs_hold(b.sim, false);
    log_block_pool_put(&b.pool, block);
    sim_fs_kill(b.sim);
    close_log(&b);
    sim_fs_fail(b.sim, SIM_FS_SYNC, 1, ERR_IO, false);
    assert_int_equal(open_log(&b), ERR_IO);
    assert_int_equal(open_log(&b), ERR_OK);
    uint64_t sequence = b.recovery.end.position.sequence;
    sim_fs_crash(b.sim);
    close_log(&b);
    assert_int_equal(open_log(&b), ERR_OK);
    struct log_reader *reader = reader_at(&b, NULL);
    expect(reader, 1, sequence - 1);
    expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    stop(&b);
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

static void test_bad_options_are_refused(void **state)
{
    (void)state;
    struct sim_fs *sim = sim_fs_new(1, 512);
    struct log_writer *writer;
    struct errmsg msg;
    struct log_writer_options options = {.fs = sim_fs_fs(sim), .dir = "log", .segment_size = 1024};
    assert_int_equal(log_writer_open(&writer, &options, NULL, &msg), ERR_INVALID);
    options.segment_size = SEGMENT_SIZE;
    options.log_bytes_max = SEGMENT_SIZE;
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
    struct bench *b;
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
    struct bench b = {.fs = fs_posix(), .dir = dir, .next_id = 1};
    assert_int_equal(open_log(&b), ERR_OK);
    assert_int_equal(log_writer_ensure_cursor(b.writer, "sink", NULL), ERR_OK);
    struct real real = {.b = &b};
    pthread_t preparer, reader;
    pthread_create(&preparer, NULL, real_prepare, &real);
    pthread_create(&reader, NULL, real_read, &real);
    uint64_t count = 0;
    while (count < 400) {
        if (log_writer_room(b.writer, LOG_ROOM_PUBLISH) < 2 * SEGMENT_SIZE) {
            usleep(200);
            continue;
        }
        enum err err = put(&b, 3000);
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
    close_log(&b);
    assert_int_equal(open_log(&b), ERR_OK);
    assert_int_equal(b.recovery.end.position.sequence, count + 1);
    close_log(&b);
    assert_int_equal(fs_list(fs_posix(), dir, dir, remove_name), ERR_OK);
    assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_written_is_read),
        cmocka_unit_test(test_restart_goes_on_with_sequences_and_a_new_epoch),
        cmocka_unit_test(test_starts_that_write_nothing_leave_nothing),
        cmocka_unit_test(test_a_torn_tail_stays_void_over_starts),
        cmocka_unit_test(test_its_file_is_missed_before_it_writes),
        cmocka_unit_test(test_second_broker_is_refused),
        cmocka_unit_test(test_second_sink_is_refused),
        cmocka_unit_test(test_failed_write_is_final),
        cmocka_unit_test(test_cursor_holds_segments_and_room_falls),
        cmocka_unit_test(test_last_tenth_is_there),
        cmocka_unit_test(test_free_disk_floor),
        cmocka_unit_test(test_torn_tail_is_normal),
        cmocka_unit_test(test_hole_before_the_durable_end_is_corruption),
        cmocka_unit_test(test_cursor_past_the_hole_is_corruption),
        cmocka_unit_test(test_lost_identity_with_a_log_is_refused),
        cmocka_unit_test(test_a_repair_leaves_out_what_was_given_up),
        cmocka_unit_test(test_a_log_may_begin_with_a_repair),
        cmocka_unit_test(test_a_restored_log_goes_on_under_a_new_id),
        cmocka_unit_test(test_unreadable_segment_is_named),
        cmocka_unit_test(test_reader_states_a_gap),
        cmocka_unit_test(test_group_with_others_between_and_reopened_from_its_first_block),
        cmocka_unit_test(test_group_without_its_last_block_is_void),
        cmocka_unit_test(test_reused_before_the_position_loses_the_open_group_only),
        cmocka_unit_test(test_blocks_without_state_are_passed_over),
        cmocka_unit_test(test_passing_over_is_bounded),
        cmocka_unit_test(test_reader_is_told_the_end),
        cmocka_unit_test(test_recovered_is_read_without_a_write),
        cmocka_unit_test(test_state_is_written_at_most_every_20_ms),
        cmocka_unit_test(test_slots_fall_back_to_the_value_before),
        cmocka_unit_test(test_cursor_whose_sync_failed_lets_nothing_go),
        cmocka_unit_test(test_recovery_makes_durable_what_it_accepts),
        cmocka_unit_test(test_bad_options_are_refused),
        cmocka_unit_test(test_real_disk_with_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
