/* A log on a file system in memory, or on another: what tests of the log's parts write to it and read from it. Its writer owns one shard.
 */
#ifndef TIDEGATE_TESTS_LIB_LOG_BENCH_H
#define TIDEGATE_TESTS_LIB_LOG_BENCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/log_reader.h"
#include "common/log_writer.h"
#include "tests/lib/sim_fs.h"

#define LOG_BENCH_SEGMENT_SIZE 65536
#define LOG_BENCH_BODY_MAX 8192

struct log_bench {
    struct sim_fs *sim; /* NULL: another file system */
    struct fs *fs;
    const char *dir;
    struct log_writer *writer; /* NULL: not open */
    struct log_block_pool pool;
    struct log_recovery recovery;
    struct errmsg msg;
    uint64_t next_id; /* the session of the next record */
};

/* Not open yet. */
struct log_bench log_bench_make(uint64_t seed);
struct log_bench log_bench_start(void);
void log_bench_stop(struct log_bench *b);
enum err log_bench_open(struct log_bench *b);
void log_bench_close(struct log_bench *b);

/* A block with one record of about `payload_size` bytes; the session is its id. */
struct log_block *log_bench_block(struct log_bench *b, size_t payload_size);
/* Begun, written and finished, which must go well; the block goes back into its pool. */
void log_bench_write(struct log_bench *b, struct log_block_pool *pool, struct log_block *block, int64_t now);
/* log_bench_block(), written and finished as far as it goes. */
enum err log_bench_put(struct log_bench *b, size_t payload_size);
/* All segments that the writer wants beforehand. */
void log_bench_prepare(struct log_bench *b);

struct log_reader *log_bench_read(struct log_bench *b, const struct log_cursor_value *from);
/* Read `count` records whose sequences begin at `first`; id == sequence in these tests. */
void log_bench_expect(struct log_reader *reader, uint64_t first, uint64_t count);
void log_bench_expect_end(struct log_reader *reader, enum err expected);

#endif
