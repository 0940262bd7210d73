/* What a reader gives: gaps, repairs, records of several blocks, what it passes over, and where the end is. */
#include "common/log_reader.h"

#include <stdio.h>

#include "common/log_cursor.h"
#include "common/log_segment.h"
#include "common/log_state.h"
#include "tests/lib/log_bench.h"

/* The segment that `repair` writes: sequences and generations are left out between the end and it. Written over one that is prepared. */
static void write_repair(struct log_bench *b, uint64_t generation, uint64_t sequence, struct log_place end, uint64_t broker_id)
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
    log_bench_expect_end(reader, ERR_GAP);
    assert_int_equal(log_reader_gap(reader).from, from);
    assert_int_equal(log_reader_gap(reader).to, to);
    assert_true(log_reader_gap(reader).is_repair);
    log_bench_expect_end(reader, ERR_GAP);
    log_reader_accept_gap(reader);
}

/* Two starts, the second's segments given up: readers before the cut, within what was cut, and at its very end. */
static void test_a_repair_leaves_out_what_was_given_up(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    uint64_t broker_id = log_writer_broker_id(b.writer);
    assert_int_equal(log_writer_ensure_cursor(b.writer, "keep", NULL), ERR_OK);
    for (int i = 0; i < 10; i++)
        assert_int_equal(log_bench_put(&b, 1500), ERR_OK);
    struct log_end cut = log_writer_durable_end(b.writer);
    struct log_cursor_value in_cut = {
        .broker_id = broker_id, .position = {1, 11}, .place = {cut.place.generation, cut.place.offset + 4096}, .reopen = cut.place};
    log_bench_close(&b);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    for (int i = 0; i < 10; i++)
        assert_int_equal(log_bench_put(&b, 1500), ERR_OK);
    struct log_end lost = log_writer_durable_end(b.writer);
    struct log_cursor_value gone = {.broker_id = broker_id, .position = {2, 18}, .place = lost.place, .reopen = lost.place};
    assert_int_equal(log_cursor_create(b.fs, b.dir, "sink", &gone), ERR_OK);
    log_bench_close(&b);
    write_repair(&b, lost.place.generation + 2, 1000, cut.place, broker_id);
    for (uint64_t generation = cut.place.generation + 1; generation <= lost.place.generation + 1; generation++) {
        char path[64];
        snprintf(path, sizeof path, "log/%016llx.seg", (unsigned long long)generation);
        assert_true(fs_unlink(b.fs, path) == ERR_OK || generation > lost.place.generation);
    }
    b.next_id = 1000;
    assert_int_equal(log_bench_open(&b), ERR_OK); /* neither the state nor the cursor in what is gone is proof of anything now */
    assert_int_equal(b.recovery.end.position.sequence, 1000);
    assert_int_equal(b.recovery.oldest.sequence, 1);
    assert_int_equal(log_writer_epoch(b.writer), 4);
    for (int i = 0; i < 60; i++)
        assert_int_equal(log_bench_put(&b, 1500), ERR_OK);
    log_bench_close(&b);
    assert_int_equal(log_bench_open(&b), ERR_OK); /* and it is a log like any other */
    assert_int_equal(b.recovery.end.position.sequence, 1060);

    struct log_reader *reader = log_bench_read(&b, NULL);
    log_bench_expect(reader, 1, 10);
    expect_repair(reader, 11, 1000);
    log_bench_expect(reader, 1000, 60);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    struct log_cursor_value at_end = in_cut;
    at_end.place = cut.place;
    const struct log_cursor_value *from[] = {&at_end, &in_cut, &gone};
    for (size_t i = 0; i < 3; i++) {
        reader = log_bench_read(&b, from[i]);
        expect_repair(reader, from[i]->position.sequence, 1000);
        log_bench_expect(reader, 1000, 60);
        log_reader_close(reader);
    }
    /* Who stood above all of it misses nothing. */
    struct log_cursor_value above = gone;
    above.position.sequence = 1000;
    reader = log_bench_read(&b, &above);
    log_bench_expect(reader, 1000, 60);
    log_reader_close(reader);
    log_bench_stop(&b);
}

/* Nothing is left but the repair segment. */
static void test_a_log_may_begin_with_a_repair(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    log_bench_close(&b);
    assert_int_equal(fs_unlink(b.fs, "log/0000000000000001.seg"), ERR_OK);
    write_repair(&b, 9, 500, (struct log_place){0, 0}, 5);
    b.next_id = 500;
    assert_int_equal(log_bench_open(&b), ERR_OK);
    assert_int_equal(log_bench_put(&b, 100), ERR_OK);
    struct log_cursor_value from = {.broker_id = 5, .position = {1, 100}, .place = {3, 8192}, .reopen = {3, 8192}};
    struct log_reader *reader = log_bench_read(&b, &from);
    expect_repair(reader, 100, 500);
    log_bench_expect(reader, 500, 1);
    log_reader_close(reader);
    log_bench_stop(&b);
}

static void test_reader_states_a_gap(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start(); /* no cursor: nothing is held */
    struct log_reader *slow = log_bench_read(&b, NULL);
    assert_int_equal(log_bench_put(&b, 4000), ERR_OK);
    log_bench_expect(slow, 1, 1);
    for (int i = 0; i < 300; i++) {
        log_bench_prepare(&b);
        assert_int_equal(log_bench_put(&b, 4000), ERR_OK);
    }
    log_bench_expect_end(slow, ERR_GAP);
    struct log_reader_gap gap = log_reader_gap(slow);
    assert_int_equal(gap.from, 2);
    assert_true(gap.to > 2 && gap.to <= 301);
    log_bench_expect_end(slow, ERR_GAP);
    log_reader_accept_gap(slow);
    log_bench_expect(slow, gap.to, 301 - gap.to + 1);
    log_bench_expect_end(slow, ERR_AGAIN);
    log_reader_close(slow);
    log_bench_stop(&b);
}

/* A record of several blocks; one at a time. */
static void begin_large(struct log_block_group *group, uint64_t session, size_t payload_size, bool is_state)
{
    static uint8_t payload[3 * LOG_BENCH_BODY_MAX], head[LOG_BENCH_BODY_MAX];
    assert_true(payload_size <= sizeof payload);
    struct record rec = {.type = RECORD_PUBLISH, .session = session, .payload = span_of(payload, payload_size)};
    log_block_group_init(group, span_of(head, record_encode_head(head, &rec)), rec.payload, is_state);
}

/* One block of a group, begun, written and finished. */
static void put_group_part(struct log_bench *b, struct log_block_group *group)
{
    struct log_block *block = log_block_pool_get(&b->pool);
    log_block_group_next(group, block);
    log_block_seal(&b->pool, block);
    log_bench_write(b, &b->pool, block, (int64_t)b->next_id++ * 1000000000);
}

static void test_group_with_others_between_and_reopened_from_its_first_block(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    struct log_block_group group;
    begin_large(&group, 2, 3 * LOG_BENCH_BODY_MAX, false);
    struct log_reader *reader = log_bench_read(&b, NULL);
    put_group_part(&b, &group);
    b.next_id = 1;
    assert_int_equal(log_bench_put(&b, 50), ERR_OK); /* sequence 1, although it began later */
    b.next_id = 100;
    put_group_part(&b, &group);
    log_bench_expect(reader, 1, 1);
    log_bench_expect_end(reader, ERR_AGAIN);
    struct log_cursor_value value;
    log_reader_cursor(reader, &value);
    assert_int_equal(value.position.sequence, 2);
    assert_int_equal(value.reopen.offset, LOG_SEGMENT_HEADER_SIZE);
    assert_true(log_place_compare(value.reopen, value.place) < 0);
    log_reader_close(reader);
    while (!log_block_group_done(&group))
        put_group_part(&b, &group);
    reader = log_bench_read(&b, &value);
    log_bench_expect(reader, 2, 1);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_cursor(reader, &value);
    assert_int_equal(log_place_compare(value.reopen, value.place), 0);
    log_reader_close(reader);
    log_bench_stop(&b);
}

/* The position is still there, what stands before it for the sake of a group is not: that one record is missing, and no other. */
static void test_reused_before_the_position_loses_the_open_group_only(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start(); /* no cursor: nothing is held */
    struct log_block_group group;
    struct log_cursor_value value;
    begin_large(&group, 0, 2 * LOG_BENCH_BODY_MAX, false);
    put_group_part(&b, &group);
    b.next_id = 1;
    struct log_reader *reader = log_bench_read(&b, NULL);
    for (uint64_t i = 1; i <= 40; i++) {
        assert_int_equal(log_bench_put(&b, 4000), ERR_OK);
        log_bench_expect(reader, i, 1);
    }
    log_reader_cursor(reader, &value);
    log_reader_close(reader);
    assert_int_equal(value.reopen.generation, 1);
    assert_true(value.place.generation > 2);
    while (sim_fs_exists(b.sim, "log/0000000000000001.seg")) {
        log_bench_prepare(&b);
        assert_int_equal(log_bench_put(&b, 4000), ERR_OK);
    }
    uint64_t missing = b.next_id;
    while (!log_block_group_done(&group))
        put_group_part(&b, &group);
    b.next_id = missing + 1;
    assert_int_equal(log_bench_put(&b, 10), ERR_OK);
    reader = log_bench_read(&b, &value);
    log_bench_expect(reader, 41, missing - 41);
    log_bench_expect_end(reader, ERR_GAP);
    assert_int_equal(log_reader_gap(reader).from, missing);
    assert_int_equal(log_reader_gap(reader).to, missing + 1);
    log_reader_accept_gap(reader);
    log_bench_expect(reader, missing + 1, 1);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    log_bench_stop(&b);
}

static void test_group_without_its_last_block_is_void(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    struct log_block_group group;
    begin_large(&group, 2, 3 * LOG_BENCH_BODY_MAX, false);
    put_group_part(&b, &group);
    put_group_part(&b, &group);
    sim_fs_crash(b.sim);
    log_bench_close(&b);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    assert_int_equal(b.recovery.void_group_count, 1);
    assert_int_equal(b.recovery.end.position.sequence, 1);
    b.next_id = 1;
    assert_int_equal(log_bench_put(&b, 50), ERR_OK);
    struct log_reader *reader = log_bench_read(&b, NULL);
    struct log_reader_stats stats;
    log_bench_expect(reader, 1, 1);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_stats(reader, &stats);
    assert_int_equal(stats.void_group_count, 1);
    log_reader_close(reader);
    log_bench_stop(&b);
}

/* One block with one record that is state, or not. */
static void put_marked(struct log_bench *b, bool is_state, size_t payload_size)
{
    static const uint8_t payload[LOG_BENCH_BODY_MAX];
    struct record rec = {.type = RECORD_PUBLISH, .session = b->next_id++, .payload = span_of(payload, payload_size)};
    rec.retained_number = is_state;
    struct log_block *block = log_block_pool_get(&b->pool);
    assert_int_equal(log_block_append(block, &rec), ERR_OK);
    log_block_seal(&b->pool, block);
    log_bench_write(b, &b->pool, block, (int64_t)b->next_id * 1000000000);
}

static void put_group_marked(struct log_bench *b, bool is_state)
{
    struct log_block_group group;
    uint64_t id = b->next_id;
    begin_large(&group, id, 2 * LOG_BENCH_BODY_MAX, is_state);
    while (!log_block_group_done(&group))
        put_group_part(b, &group);
    b->next_id = id + 1;
}

/* The first block of a large record that is state, made void by one that is not, which is left open. */
static void put_part_of_void_group(struct log_bench *b, struct log_block_pool *pool)
{
    for (int i = 0; i < 2; i++) {
        struct log_block_group group;
        struct log_block *block = log_block_pool_get(pool);
        begin_large(&group, 0, 2 * LOG_BENCH_BODY_MAX, i == 0);
        log_block_group_next(&group, block);
        log_block_seal(pool, block);
        log_bench_write(b, pool, block, (int64_t)b->next_id * 1000000000 + (i + 1) * LOG_STATE_INTERVAL_NS);
    }
}

static void test_blocks_without_state_are_passed_over(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    struct log_reader_stats stats;
    struct log_cursor_value value;
    struct log_reader *reader = log_bench_read(&b, NULL);
    log_reader_pass_over_stateless(reader);
    for (uint64_t id = 1; id <= 60; id++) {
        if (id % 20 == 7)
            put_group_marked(&b, id == 27);
        else
            put_marked(&b, id % 3 == 0, 1000);
    }
    for (uint64_t id = 1; id <= 60; id++) {
        if (id == 27 || (id % 3 == 0 && id % 20 != 7))
            log_bench_expect(reader, id, 1);
    }
    put_marked(&b, false, 100);
    struct log_block_pool other;
    assert_int_equal(log_block_pool_init(&other, 1, 1, LOG_BENCH_BODY_MAX, 512), ERR_OK);
    put_part_of_void_group(&b, &other);
    log_bench_expect_end(reader, ERR_AGAIN);
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
    log_bench_close(&b);
    assert_int_equal(log_bench_open(&b), ERR_OK);
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
    log_bench_expect_end(reader, ERR_AGAIN);
    assert_int_equal(log_reader_passed_blocks(reader, 0, 2), 2);
    assert_int_equal(log_reader_passed_blocks(reader, 0, 1), 0);
    log_reader_cursor(reader, &value);
    assert_int_equal(value.position.epoch, 2);
    log_reader_close(reader);
    log_bench_stop(&b);
}

/* One call passes over so much and no more. */
static void test_passing_over_is_bounded(void **state)
{
    (void)state;
    struct log_bench b = log_bench_make(1);
    struct log_writer_options options = {.fs = b.fs, .dir = b.dir, .segment_size = 8 << 20, .log_bytes_max = 64 << 20};
    assert_int_equal(log_writer_open(&b.writer, &options, NULL, &b.msg), ERR_OK);
    assert_int_equal(log_block_pool_init(&b.pool, 0, 8, LOG_BENCH_BODY_MAX, log_writer_alignment(b.writer)), ERR_OK);
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
        log_bench_write(&b, &b.pool, block, 0);
    }
    put_marked(&b, true, 10);
    struct log_reader *reader = log_bench_read(&b, NULL);
    struct log_reader_item item;
    log_reader_pass_over_stateless(reader);
    log_reader_tell_end(reader, log_writer_published_end(b.writer));
    assert_int_equal(log_reader_next(reader, &item, NULL), ERR_OK);
    assert_int_equal(item.bytes.size, 0);
    struct log_cursor_value value;
    log_reader_cursor(reader, &value);
    assert_true(value.position.sequence > 1); /* may be stored */
    log_bench_expect(reader, b.next_id - 1, 1);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    log_bench_stop(&b);
}

/* A reader in the writer's process need not wait for the state file, which is up to 20 ms behind. */
static void test_reader_is_told_the_end(void **state)
{
    (void)state;
    struct log_bench b = log_bench_start();
    struct log_reader *reader = log_bench_read(&b, NULL);
    for (int i = 0; i < 2; i++) {
        struct log_block *block = log_bench_block(&b, 10);
        log_writer_begin(b.writer, &block, 1);
        assert_int_equal(log_writer_write(b.writer, NULL), ERR_OK);
        assert_int_equal(log_writer_published_end(b.writer).position.sequence, 1 + i); /* never before finish */
        assert_int_equal(log_writer_finish(b.writer, 1000000000), ERR_OK);
        log_block_pool_put(&b.pool, block);
    }
    log_bench_expect(reader, 1, 1);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_tell_end(reader, log_writer_published_end(b.writer));
    log_bench_expect(reader, 2, 1);
    log_bench_expect_end(reader, ERR_AGAIN);
    log_reader_close(reader);
    log_bench_stop(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_repair_leaves_out_what_was_given_up),
        cmocka_unit_test(test_a_log_may_begin_with_a_repair),
        cmocka_unit_test(test_reader_states_a_gap),
        cmocka_unit_test(test_group_with_others_between_and_reopened_from_its_first_block),
        cmocka_unit_test(test_group_without_its_last_block_is_void),
        cmocka_unit_test(test_reused_before_the_position_loses_the_open_group_only),
        cmocka_unit_test(test_blocks_without_state_are_passed_over),
        cmocka_unit_test(test_passing_over_is_bounded),
        cmocka_unit_test(test_reader_is_told_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
