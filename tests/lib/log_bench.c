#include "tests/lib/log_bench.h"

struct log_bench log_bench_make(uint64_t seed)
{
    struct log_bench b = {.sim = sim_fs_new(seed, 512), .dir = "log", .next_id = 1};
    b.fs = sim_fs_fs(b.sim);
    return b;
}

enum err log_bench_open(struct log_bench *b)
{
    struct log_writer_options options = {
        .fs = b->fs, .dir = b->dir, .segment_size = LOG_BENCH_SEGMENT_SIZE, .log_bytes_max = 8 * LOG_BENCH_SEGMENT_SIZE};
    enum err err = log_writer_open(&b->writer, &options, &b->recovery, &b->msg);
    if (!err)
        assert_int_equal(log_block_pool_init(&b->pool, 0, 8, LOG_BENCH_BODY_MAX, log_writer_alignment(b->writer)), ERR_OK);
    else
        b->writer = NULL;
    return err;
}

void log_bench_close(struct log_bench *b)
{
    if (!b->writer)
        return;
    log_writer_close(b->writer);
    log_block_pool_deinit(&b->pool);
    b->writer = NULL;
}

struct log_bench log_bench_start(void)
{
    struct log_bench b = log_bench_make(1);
    assert_int_equal(log_bench_open(&b), ERR_OK);
    return b;
}

void log_bench_stop(struct log_bench *b)
{
    log_bench_close(b);
    sim_fs_free(b->sim);
}

struct log_block *log_bench_block(struct log_bench *b, size_t payload_size)
{
    static uint8_t payload[LOG_BENCH_BODY_MAX];
    for (size_t i = 0; i < payload_size; i++)
        payload[i] = (uint8_t)(i * 2654435761u >> 13);
    struct record rec = {.type = RECORD_PUBLISH, .session = b->next_id++, .payload = span_of(payload, payload_size)};
    struct log_block *block = log_block_pool_get(&b->pool);
    assert_int_equal(log_block_append(block, &rec), ERR_OK);
    log_block_seal(&b->pool, block);
    return block;
}

void log_bench_write(struct log_bench *b, struct log_block_pool *pool, struct log_block *block, int64_t now)
{
    log_writer_begin(b->writer, &block, 1);
    assert_int_equal(log_writer_write(b->writer, NULL), ERR_OK);
    assert_int_equal(log_writer_finish(b->writer, now), ERR_OK);
    log_block_pool_put(pool, block);
}

enum err log_bench_put(struct log_bench *b, size_t payload_size)
{
    struct log_block *block = log_bench_block(b, payload_size);
    log_writer_begin(b->writer, &block, 1);
    enum err err = log_writer_write(b->writer, &b->msg);
    if (!err)
        err = log_writer_finish(b->writer, (int64_t)b->next_id * 1000000000);
    log_block_pool_put(&b->pool, block);
    return err;
}

void log_bench_prepare(struct log_bench *b)
{
    while (log_writer_prepare(b->writer, NULL) == ERR_AGAIN)
        ;
}

struct log_reader *log_bench_read(struct log_bench *b, const struct log_cursor_value *from)
{
    struct log_reader *reader;
    assert_int_equal(log_reader_open(&reader, b->fs, b->dir, from, NULL), ERR_OK);
    return reader;
}

void log_bench_expect(struct log_reader *reader, uint64_t first, uint64_t count)
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

void log_bench_expect_end(struct log_reader *reader, enum err expected)
{
    struct log_reader_item item;
    assert_int_equal(log_reader_next(reader, &item, NULL), expected);
}
