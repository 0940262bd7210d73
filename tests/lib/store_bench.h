/* The store writer over a log and a database in memory: what tests of it write, and what they look at. */
#ifndef TIDEGATE_TESTS_LIB_STORE_BENCH_H
#define TIDEGATE_TESTS_LIB_STORE_BENCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "broker/durable/store_writer.h"
#include "tests/lib/sim_fs.h"
#include "tests/lib/sim_kv.h"

#define STORE_BENCH_SHARDS 2
#define STORE_BENCH_SESSIONS 6
#define STORE_BENCH_SEGMENT_SIZE 65536
#define STORE_BENCH_BODY_MAX 4096
#define STORE_BENCH_RECORDS_MAX 20000
#define STORE_BENCH_OPS_MAX 4096
#define STORE_BENCH_WALL INT64_C(1760000000000000000)

struct store_bench {
    struct sim_fs *sim;
    struct sim_kv *sim_kv;
    struct kv *kv;
    struct log_writer *log;
    struct log_block_pool pools[STORE_BENCH_SHARDS];
    struct checkpoint *checkpoint;
    struct store_writer *writer;
    struct store_writer_options options;
    const struct store_writer_io *io;
    int64_t wall_lead_ns; /* wall clock less now */
    int64_t now;
    int64_t commit_takes_ns; /* what the clock says of each look */
    int64_t read_takes_ns;   /* of each look at the log */
    uint64_t mistake_end;    /* 0, or tell an end that is not durable: every how many looks */
    int64_t group_pause_ns;  /* between the blocks of a large record, with a step and a small record of the other shard */
    bool is_cut_in_group;    /* the large record is left there */
    bool is_ring_full;
    struct {
        actor_id to;
        struct op op;
    } ops[STORE_BENCH_OPS_MAX];
    size_t op_count;
    struct log_place released;
    struct log_end begun; /* with the write under way */
    /* The durable records, by sequence. */
    struct {
        uint8_t *bytes;
        size_t size;
    } records[STORE_BENCH_RECORDS_MAX];
    uint64_t record_count;                /* encoded so far; sequences 1.. */
    uint64_t ended[STORE_BENCH_SESSIONS]; /* how many sessions that stood there */
    bool created[STORE_BENCH_SESSIONS];   /* the one that stands there has its record */
};

/* How far a write goes before something happens. */
enum store_cut { STORE_CUT_BEFORE_WRITE, STORE_CUT_BEFORE_FINISH, STORE_CUT_NONE };

/* `io` for a writer that is asked for the wall clock as well: to be set before the bench opens. */
extern const struct store_writer_io store_bench_io_with_wall;

/* Open; or made, for options of one's own, and to be opened. */
struct store_bench *store_bench_new(uint64_t seed);
struct store_bench *store_bench_make(uint64_t seed);
enum err store_bench_open(struct store_bench *b, struct errmsg *msg);
void store_bench_close(struct store_bench *b);
void store_bench_free(struct store_bench *b);

/* The number of the session that stands in a place now: the next one to stand there has another. */
uint64_t store_bench_session(const struct store_bench *b, uint64_t place);
/* Remember a record as the next durable one; forget those from a sequence on. */
void store_bench_keep(struct store_bench *b, const struct record *rec);
void store_bench_forget_records(struct store_bench *b, uint64_t from);
/* Blocks of one write, taken back into their pools. */
enum err store_bench_write(struct store_bench *b, struct log_block **blocks, size_t count, enum store_cut cut);
/* One record of a shard as one block, or as many as it takes; written and durable. Returns its sequence. */
uint64_t store_bench_put(struct store_bench *b, uint16_t shard, const struct record *rec);
uint64_t store_bench_put_session(struct store_bench *b, uint64_t session);
/* To a session, or to nobody (0). */
uint64_t store_bench_put_publish(struct store_bench *b, uint16_t shard, uint64_t session, size_t payload_size);
void store_bench_put_retained(struct store_bench *b, uint16_t shard, uint64_t number, const char *topic, const char *value);
void store_bench_put_ack(struct store_bench *b, uint64_t session, uint64_t sequence);

/* Steps of the writer until it would wait, now; or over a time, every 100 ms. */
enum err store_bench_step(struct store_bench *b, bool flush);
void store_bench_pass_time(struct store_bench *b, int64_t ns);
/* What is committed: whether a session wants a message, and how much a tree has. */
bool store_bench_wants(struct store_bench *b, uint64_t session, uint64_t sequence);
size_t store_bench_count_keys(struct store_bench *b, enum kv_tree tree);
/* How many ops of a type went to `to`; the last in op_out. */
size_t store_bench_told(struct store_bench *b, actor_id to, enum op_type type, struct op *op_out);

#endif
