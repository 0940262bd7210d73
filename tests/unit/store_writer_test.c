/* The store writer over a log and a database in memory: what it reads, when it commits, whom it tells, and what a crash leaves.
 *
 * The model for crashes is the definition: the checkpoint is what a new one would be that is given every durable record at once. */
#include "broker/durable/store_writer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/position_list.h"
#include "tests/lib/check_random.h"
#include "tests/lib/sim_fs.h"
#include "tests/lib/sim_kv.h"

#define SHARDS 2
#define SESSIONS 6
#define SESSION_NUMBERS 4096
#define SEGMENT_SIZE 65536
#define BODY_MAX 4096
#define RECORDS_MAX 20000
#define OPS_MAX 4096
#define WALL INT64_C(1760000000000000000)

static const char *log_dir = "log";

struct bench {
    struct sim_fs *sim;
    struct sim_kv *sim_kv;
    struct kv *kv;
    struct log_writer *log;
    struct log_block_pool pools[SHARDS];
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
    } ops[OPS_MAX];
    size_t op_count;
    struct log_place released;
    struct log_end begun; /* with the write under way */
    /* The durable records, by sequence. */
    struct {
        uint8_t *bytes;
        size_t size;
    } records[RECORDS_MAX];
    uint64_t record_count;    /* encoded so far; sequences 1.. */
    uint64_t ended[SESSIONS]; /* how many sessions that stood there */
    bool created[SESSIONS];   /* the one that stands there has its record */
};

/* ---- the writer's surroundings ---- */

static bool bench_post(void *io, actor_id to, const struct op *op)
{
    struct bench *b = io;
    if (b->is_ring_full)
        return false;
    assert_true(b->op_count < OPS_MAX);
    b->ops[b->op_count].to = to;
    b->ops[b->op_count++].op = *op;
    return true;
}

static void bench_on_checkpoint(void *io, struct log_place place)
{
    struct bench *b = io;
    assert_true(log_place_compare(b->released, place) <= 0);
    b->released = place;
    log_writer_set_checkpoint(b->log, place);
}

static struct log_end bench_durable_end(void *io)
{
    struct bench *b = io;
    b->now += b->read_takes_ns;
    return b->mistake_end ? b->begun : log_writer_published_end(b->log);
}

static int64_t bench_clock(void *io)
{
    struct bench *b = io;
    return b->now += b->commit_takes_ns;
}

static const struct store_writer_io bench_io = {
    .post = bench_post, .on_checkpoint = bench_on_checkpoint, .durable_end = bench_durable_end, .clock = bench_clock};

static int64_t bench_wall(void *io)
{
    struct bench *b = io;
    return b->now + b->wall_lead_ns;
}

static const struct store_writer_io bench_io_with_wall = {
    .post = bench_post, .on_checkpoint = bench_on_checkpoint, .durable_end = bench_durable_end, .clock = bench_clock, .wall = bench_wall};

static enum err bench_open(struct bench *b, struct errmsg *msg)
{
    b->kv = sim_kv_open(b->sim_kv);
    enum err err = checkpoint_open(&b->checkpoint, b->kv, 7, msg);
    assert_int_equal(err, ERR_OK);
    struct log_writer_options options = {.fs = sim_fs_fs(b->sim),
                                         .dir = log_dir,
                                         .segment_size = SEGMENT_SIZE,
                                         .log_bytes_max = 12 * SEGMENT_SIZE,
                                         .checkpoint = checkpoint_state(b->checkpoint).cursor.reopen};
    err = log_writer_open(&b->log, &options, NULL, msg);
    if (err)
        return err;
    for (uint16_t i = 0; i < SHARDS; i++)
        assert_int_equal(log_block_pool_init(&b->pools[i], i, 4, BODY_MAX, log_writer_alignment(b->log)), ERR_OK);
    b->begun = log_writer_published_end(b->log);
    err = store_writer_replay(b->checkpoint, options.fs, log_dir, b->options.delta_bytes_max, msg);
    b->released = (struct log_place){0};
    if (!err)
        assert_int_equal(store_writer_new(&b->writer, b->checkpoint, &b->options, b->io, b), ERR_OK);
    return err;
}

static void bench_close(struct bench *b)
{
    store_writer_free(b->writer);
    b->writer = NULL;
    checkpoint_free(b->checkpoint);
    b->checkpoint = NULL;
    if (b->log)
        for (uint16_t i = 0; i < SHARDS; i++)
            log_block_pool_deinit(&b->pools[i]);
    log_writer_close(b->log);
    b->log = NULL;
    kv_close(b->kv);
    b->kv = NULL;
}

static struct bench *bench_make(uint64_t seed)
{
    struct bench *b = calloc(1, sizeof *b);
    b->sim = sim_fs_new(seed, 512);
    b->sim_kv = sim_kv_new(seed);
    b->now = NS_PER_S;
    b->io = &bench_io;
    b->options = (struct store_writer_options){.fs = sim_fs_fs(b->sim),
                                               .log_dir = log_dir,
                                               .interval_ns = NS_PER_S,
                                               .segment_bytes = SEGMENT_SIZE,
                                               .lag_ns_max = 10 * NS_PER_S,
                                               .lag_bytes_max = 5 * SEGMENT_SIZE,
                                               .delta_bytes_max = 1 << 20,
                                               .shard_count = SHARDS};
    return b;
}

static struct bench *bench_new(uint64_t seed)
{
    struct bench *b = bench_make(seed);
    assert_int_equal(bench_open(b, NULL), ERR_OK);
    return b;
}

static void bench_forget_records(struct bench *b, uint64_t from)
{
    for (uint64_t i = from; i <= b->record_count; i++) {
        free(b->records[i].bytes);
        b->records[i].bytes = NULL;
    }
    b->record_count = from - 1;
}

static void bench_free(struct bench *b)
{
    bench_close(b);
    bench_forget_records(b, 1);
    sim_kv_free(b->sim_kv);
    sim_fs_free(b->sim);
    free(b);
}

/* ---- writing ---- */

static void keep_record(struct bench *b, const struct record *rec)
{
    assert_true(b->record_count + 1 < RECORDS_MAX);
    uint64_t sequence = ++b->record_count;
    size_t size = record_size(rec);
    b->records[sequence].bytes = malloc(size);
    b->records[sequence].size = record_encode(b->records[sequence].bytes, rec);
    uint64_t place = (rec->session - 1) % SESSIONS; /* see session_number() */
    if (rec->type == RECORD_SESSION)
        b->created[place] = true;
    if (rec->type == RECORD_SESSION_DELETE) {
        b->created[place] = false;
        b->ended[place]++;
    }
}

/* How far a write goes before something happens. */
enum cut { CUT_BEFORE_WRITE, CUT_BEFORE_FINISH, CUT_NONE };

/* Blocks of one write, taken back into their pools. */
static enum err write_blocks(struct bench *b, struct log_block **blocks, size_t count, enum cut cut)
{
    log_writer_begin(b->log, blocks, count);
    enum err err = cut == CUT_BEFORE_WRITE ? ERR_OK : log_writer_write(b->log, NULL);
    b->begun.position.sequence = b->record_count + 1;
    b->begun.place = blocks[count - 1]->place;
    b->begun.place.offset += blocks[count - 1]->size;
    if (!err && cut == CUT_NONE)
        err = log_writer_finish(b->log, b->now);
    if (cut == CUT_NONE)
        for (size_t i = 0; i < count; i++)
            log_block_pool_put(&b->pools[blocks[i]->shard], blocks[i]);
    return err;
}

static enum err step(struct bench *b, bool flush);

/* One record of a shard as one block, or as many as it takes; written and durable. Returns its sequence. */
static uint64_t put(struct bench *b, uint16_t shard, const struct record *rec)
{
    struct log_block *block;
    if (record_size(rec) <= BODY_MAX) {
        keep_record(b, rec);
        block = log_block_pool_get(&b->pools[shard]);
        assert_int_equal(log_block_append(block, rec), ERR_OK);
        log_block_seal(&b->pools[shard], block);
        assert_int_equal(write_blocks(b, &block, 1, CUT_NONE), ERR_OK);
        return b->record_count;
    }
    struct log_block_group group;
    size_t head_size = record_head_size(rec);
    uint8_t *head = malloc(head_size);
    log_block_group_init(&group, span_of(head, record_encode_head(head, rec)), rec->payload, record_is_state(rec));
    while (!log_block_group_done(&group)) {
        block = log_block_pool_get(&b->pools[shard]);
        log_block_group_next(&group, block);
        log_block_seal(&b->pools[shard], block);
        if (log_block_group_done(&group))
            keep_record(b, rec); /* it counts where it ends */
        assert_int_equal(write_blocks(b, &block, 1, CUT_NONE), ERR_OK);
        if (b->group_pause_ns && !log_block_group_done(&group)) {
            struct record between = {.type = RECORD_ACK, .session = 1, .subject_sequence = b->record_count};
            put(b, (uint16_t)!shard, &between);
            b->now += b->group_pause_ns;
            assert_int_equal(step(b, false), ERR_OK);
            if (b->is_cut_in_group)
                break;
        }
    }
    free(head);
    return b->record_count;
}

static uint64_t put_session(struct bench *b, uint64_t session)
{
    char id[20];
    snprintf(id, sizeof id, "client%u", (unsigned)session);
    struct record rec = {.type = RECORD_SESSION,
                         .session = session,
                         .client_id = span_of_string(id),
                         .received_ns = WALL,
                         .options = 3600 | RECORD_SESSION_CONNECTED | UINT64_C(5) << RECORD_SESSION_PROTOCOL_SHIFT};
    return put(b, 0, &rec);
}

static uint64_t put_publish(struct bench *b, uint16_t shard, uint64_t session, size_t payload_size)
{
    static const uint8_t payload[64 * 1024];
    uint8_t recipients[64];
    struct record_recipient recipient = {.session = session, .qos = 1};
    struct record rec = {.type = RECORD_PUBLISH,
                         .qos = 1,
                         .topic = SPAN_LITERAL("a/b"),
                         .payload = span_of(payload, payload_size),
                         .received_ns = WALL,
                         .session = 99};
    if (session)
        rec.recipients = span_of(recipients, record_recipient_put(recipients, &recipient));
    return put(b, shard, &rec);
}

static void put_retained(struct bench *b, uint16_t shard, uint64_t number, const char *topic, const char *value)
{
    struct record rec = {.type = RECORD_PUBLISH,
                         .retain = true,
                         .topic = span_of_string(topic),
                         .payload = span_of_string(value),
                         .received_ns = WALL,
                         .retained_number = number};
    put(b, shard, &rec);
}

static void put_ack(struct bench *b, uint64_t session, uint64_t sequence)
{
    struct record rec = {.type = RECORD_ACK, .session = session, .subject_sequence = sequence};
    put(b, 1, &rec);
}

/* ---- looking ---- */

static enum err step(struct bench *b, bool flush)
{
    int64_t wait;
    enum err err;
    do
        err = store_writer_step(b->writer, b->now, flush, &wait, NULL);
    while (!err && wait == 0);
    if (!flush && !err)
        assert_true(wait <= b->options.interval_ns);
    return err;
}

static void pass_time(struct bench *b, int64_t ns)
{
    for (int64_t until = b->now + ns; b->now < until;) {
        assert_int_equal(step(b, false), ERR_OK);
        b->now += until - b->now < 100 * NS_PER_MS ? until - b->now : 100 * NS_PER_MS;
    }
    assert_int_equal(step(b, false), ERR_OK);
}

static bool wants(struct bench *b, uint64_t session, uint64_t sequence)
{
    struct kv_txn *txn;
    struct checkpoint_want want;
    assert_int_equal(kv_begin(b->kv, &txn, false), ERR_OK);
    enum err err = checkpoint_find_want(txn, &want, session, sequence);
    assert_true(err == ERR_OK || err == ERR_NOTFOUND);
    kv_abort(txn);
    return err == ERR_OK;
}

static size_t count_keys(struct bench *b, enum kv_tree tree)
{
    struct kv_txn *txn;
    struct span key, value;
    size_t count = 0;
    assert_int_equal(kv_begin(b->kv, &txn, false), ERR_OK);
    for (enum err err = kv_seek(txn, tree, span_of(NULL, 0), &key, &value); !err; err = kv_next(txn, tree, &key, &value))
        count++;
    kv_abort(txn);
    return count;
}

/* How many ops of a type went to `to`; the last in op_out. */
static size_t told(struct bench *b, actor_id to, enum op_type type, struct op *op_out)
{
    size_t count = 0;
    for (size_t i = 0; i < b->op_count; i++) {
        if (b->ops[i].to != to || b->ops[i].op.type != type)
            continue;
        count++;
        if (op_out)
            *op_out = b->ops[i].op;
    }
    return count;
}

/* ---- what it does ---- */

static void commits_at_its_interval_and_tells(void **state)
{
    (void)state;
    struct bench *b = bench_new(1);
    struct op op = {0};
    /* Those who start are told what there is. */
    assert_int_equal(step(b, false), ERR_OK);
    assert_int_equal(told(b, 0, OP_STORE_CHECKPOINT, &op), 1);
    assert_int_equal(op.checkpoint.sequence, 1);
    uint64_t commits = sim_kv_counts(b->sim_kv).commits;
    put_session(b, 1);
    uint64_t sequence = put_publish(b, 0, 1, 100);
    pass_time(b, NS_PER_S / 2);
    assert_false(wants(b, 1, sequence));
    pass_time(b, NS_PER_S);
    assert_true(wants(b, 1, sequence));
    assert_int_equal(sim_kv_counts(b->sim_kv).commits, commits + 1);
    for (actor_id to = 0; to < SHARDS + 1; to++) {
        assert_int_equal(told(b, to == SHARDS ? ACTOR_ROUTE : to, OP_STORE_CHECKPOINT, &op), 2);
        assert_int_equal(op.checkpoint.sequence, sequence + 1);
    }
    assert_int_equal(log_place_compare(b->released, log_writer_durable_end(b->log).place), 0);
    /* Nothing happens: nothing is committed. */
    pass_time(b, 10 * NS_PER_S);
    assert_int_equal(sim_kv_counts(b->sim_kv).commits, commits + 1);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_ns) <= NS_PER_S / 2);
    assert_int_equal(told(b, 0, OP_STORE_ROOM, NULL), 0);
    put_ack(b, 1, sequence);
    pass_time(b, 2 * NS_PER_S);
    assert_false(wants(b, 1, sequence));
    assert_int_equal(checkpoint_state(b->checkpoint).body_count, 0);
    bench_free(b);
}

static void memory_of_commits_goes_when_nothing_comes(void **state)
{
    (void)state;
    struct bench *b = bench_new(1);
    put_session(b, 1);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 40; i++)
            put_publish(b, 0, 1, BODY_MAX / 2);
        pass_time(b, 2 * NS_PER_S);
        assert_int_equal(checkpoint_delta_bytes(b->checkpoint), 0);
        assert_true(checkpoint_spare_bytes(b->checkpoint) > 0); /* the next second's messages go there */
        pass_time(b, 5 * NS_PER_S);
        assert_true(checkpoint_spare_bytes(b->checkpoint) > 0);
        pass_time(b, 10 * NS_PER_S);
        assert_int_equal(checkpoint_spare_bytes(b->checkpoint), 0);
    }
    uint64_t sequence = put_publish(b, 0, 1, 100);
    pass_time(b, 2 * NS_PER_S);
    assert_true(wants(b, 1, sequence));
    bench_free(b);
}

static void commits_sooner_when_the_delta_is_full(void **state)
{
    (void)state;
    struct bench *b = bench_make(1);
    b->options.delta_bytes_max = 20000;
    assert_int_equal(bench_open(b, NULL), ERR_OK);
    assert_int_equal(step(b, false), ERR_OK);
    uint64_t commits = sim_kv_counts(b->sim_kv).commits;
    put_session(b, 1);
    for (int i = 0; i < 60; i++)
        put_publish(b, 0, 1, 1000);
    pass_time(b, NS_PER_S / 2);
    assert_true(sim_kv_counts(b->sim_kv).commits > commits + 1);
    assert_true(checkpoint_delta_bytes(b->checkpoint) < 30000);
    bench_free(b);
}

static void leaves_alone_what_is_not_durable(void **state)
{
    (void)state;
    struct bench *b = bench_new(1);
    put_session(b, 1);
    uint64_t first = put_publish(b, 0, 1, 10);
    /* One more is written, but nobody knows whether it is on disk. */
    uint8_t recipients[64];
    struct record_recipient recipient = {.session = 1, .qos = 1};
    struct record rec = {.type = RECORD_PUBLISH, .topic = SPAN_LITERAL("t")};
    rec.recipients = span_of(recipients, record_recipient_put(recipients, &recipient));
    struct log_block *block = log_block_pool_get(&b->pools[0]);
    assert_int_equal(log_block_append(block, &rec), ERR_OK);
    log_block_seal(&b->pools[0], block);
    assert_int_equal(write_blocks(b, &block, 1, CUT_BEFORE_FINISH), ERR_OK);
    assert_int_equal(step(b, true), ERR_OK);
    assert_true(wants(b, 1, first));
    assert_false(wants(b, 1, first + 1));
    assert_int_equal(checkpoint_state(b->checkpoint).cursor.position.sequence, first + 1);
    /* Now it is; a flush need not wait for the state file. */
    assert_int_equal(log_writer_finish(b->log, 0), ERR_OK);
    log_block_pool_put(&b->pools[0], block);
    assert_int_equal(step(b, true), ERR_OK);
    assert_true(wants(b, 1, first + 1));
    bench_free(b);
}

static void telemetry_alone_is_committed_by_segments(void **state)
{
    (void)state;
    struct bench *b = bench_new(1);
    assert_int_equal(step(b, false), ERR_OK);
    uint64_t commits = sim_kv_counts(b->sim_kv).commits;
    for (int i = 0; i < 10; i++) {
        put_publish(b, 0, 0, 1000);
        pass_time(b, 2 * NS_PER_S);
    }
    assert_int_equal(sim_kv_counts(b->sim_kv).commits, commits);
    while (log_writer_durable_end(b->log).place.generation == b->released.generation)
        put_publish(b, 0, 0, 3000);
    pass_time(b, 2 * NS_PER_S);
    assert_int_equal(sim_kv_counts(b->sim_kv).commits, commits + 1);
    assert_int_equal(b->released.generation, log_writer_durable_end(b->log).place.generation);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->has_room), 1);
    /* The end of a process commits the rest. */
    put_publish(b, 0, 0, 10);
    assert_int_equal(step(b, true), ERR_OK);
    assert_int_equal(checkpoint_state(b->checkpoint).cursor.position.sequence, b->record_count + 1);
    bench_free(b);
}

/* The log's room comes back as the checkpoint goes on, in a log a tenth the size of what goes through it. */
static void the_log_is_used_again_behind_it(void **state)
{
    (void)state;
    struct bench *b = bench_new(1);
    put_session(b, 1);
    for (int i = 0; i < 2500; i++) {
        put_ack(b, 1, put_publish(b, (uint16_t)(i % 2), 1, 2000));
        if (i % 20 == 0) {
            b->now += NS_PER_S;
            assert_int_equal(step(b, false), ERR_OK);
            while (log_writer_prepare(b->log, NULL) == ERR_AGAIN)
                continue;
        }
    }
    struct log_writer_stats stats;
    log_writer_stats(b->log, &stats);
    assert_true(stats.roll_count > 60);
    assert_true(counter_get(&checkpoint_get_stats(b->checkpoint)->never_written) > 1000);
    bench_free(b);
}

/* ---- lag ---- */

static void says_when_it_lags_in_time(void **state)
{
    (void)state;
    struct bench *b = bench_new(1);
    struct op op = {0};
    assert_int_equal(step(b, false), ERR_OK);
    put_session(b, 1);
    for (int s = 0; s < 9; s++) {
        sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_NOSPACE, 0);
        put_publish(b, 0, 1, 100);
        pass_time(b, NS_PER_S);
    }
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->no_space), 1);
    assert_int_equal(told(b, 0, OP_STORE_ROOM, NULL), 0);
    for (int s = 0; s < 2; s++) {
        sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_NOSPACE, 0);
        pass_time(b, NS_PER_S);
    }
    for (actor_id to = 0; to < SHARDS; to++) {
        assert_int_equal(told(b, to, OP_STORE_ROOM, &op), 1);
        assert_false(op.flag);
    }
    assert_int_equal(told(b, ACTOR_ROUTE, OP_STORE_ROOM, NULL), 0);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_ns) > 10 * NS_PER_S);
    sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_OK, 0);
    pass_time(b, 2 * NS_PER_S);
    assert_int_equal(told(b, 1, OP_STORE_ROOM, &op), 2);
    assert_true(op.flag);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->no_space), 0);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_ns) < NS_PER_S);
    bench_free(b);
}

/* It is behind by much and comes after in pieces. There is room again at half of the limit. */
static void says_when_it_lags_in_bytes(void **state)
{
    (void)state;
    struct bench *b = bench_make(1);
    struct op op = {0};
    int64_t wait;
    b->options.delta_bytes_max = 30000;
    assert_int_equal(bench_open(b, NULL), ERR_OK);
    put_session(b, 1);
    assert_int_equal(step(b, false), ERR_OK);
    for (int i = 0; i < 110; i++)
        put_publish(b, 0, 1, 3000);
    b->now += NS_PER_S;
    assert_int_equal(store_writer_step(b->writer, b->now, false, &wait, NULL), ERR_OK);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->has_room), 0);
    assert_int_equal(told(b, 0, OP_STORE_ROOM, &op), 1);
    assert_false(op.flag);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_bytes) > 5 * SEGMENT_SIZE);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_bytes) < 7 * SEGMENT_SIZE);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_ns) < 10 * NS_PER_S);
    unsigned steps = 0;
    for (; told(b, 0, OP_STORE_ROOM, &op) == 1; steps++) {
        assert_true(steps < 100);
        assert_int_equal(store_writer_step(b->writer, b->now, false, &wait, NULL), ERR_OK);
    }
    assert_true(op.flag);
    assert_true(steps > 3);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_bytes) < 5 * SEGMENT_SIZE / 2);
    assert_true(gauge_get(&store_writer_get_stats(b->writer)->lag_bytes) > SEGMENT_SIZE);
    bench_free(b);
}

static void says_when_the_database_is_full(void **state)
{
    (void)state;
    struct bench *b = bench_make(1);
    struct op op = {0};
    uint64_t sequences[60];
    b->options.used_bytes_max = 30000;
    assert_int_equal(bench_open(b, NULL), ERR_OK);
    put_session(b, 1);
    for (int i = 0; i < 20; i++)
        sequences[i] = put_publish(b, 0, 1, 1000);
    pass_time(b, 2 * NS_PER_S);
    assert_int_equal(told(b, 0, OP_STORE_ROOM, NULL), 0);
    for (int i = 20; i < 60; i++)
        sequences[i] = put_publish(b, 0, 1, 1000);
    pass_time(b, 2 * NS_PER_S);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->is_full), 1);
    assert_int_equal(told(b, 0, OP_STORE_ROOM, &op), 1);
    assert_false(op.flag);
    assert_int_equal(checkpoint_state(b->checkpoint).cursor.position.sequence, b->record_count + 1); /* all the same it is committed */
    bench_close(b);
    assert_int_equal(bench_open(b, NULL), ERR_OK);
    pass_time(b, 2 * NS_PER_S);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->has_room), 0); /* another start knows */
    for (int i = 0; i < 60; i++)
        put_ack(b, 1, sequences[i]);
    pass_time(b, 2 * NS_PER_S);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->is_full), 0);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->has_room), 1);
    bench_free(b);
}

static void a_full_delta_without_space_stops_reading(void **state)
{
    (void)state;
    struct bench *b = bench_make(1);
    b->options.delta_bytes_max = b->options.lag_bytes_max = 20000;
    assert_int_equal(bench_open(b, NULL), ERR_OK);
    assert_int_equal(step(b, false), ERR_OK);
    put_session(b, 1);
    for (int s = 0; s < 5; s++) {
        sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_NOSPACE, 0);
        for (int i = 0; i < 20; i++)
            put_publish(b, 0, 1, 1000);
        pass_time(b, NS_PER_S);
    }
    assert_true(counter_get(&checkpoint_get_stats(b->checkpoint)->applied) < 60);
    sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_NOSPACE, 0);
    assert_int_equal(step(b, true), ERR_OK); /* gives up: the next start replays */
    assert_int_equal(checkpoint_state(b->checkpoint).body_count, 0);
    pass_time(b, 4 * NS_PER_S);
    assert_int_equal(checkpoint_state(b->checkpoint).body_count, 100);
    bench_free(b);
}

/* The database is full, and what would make it emptier stands in the log behind what does not fit. */
static void acknowledgements_behind_a_full_delta_make_space(void **state)
{
    (void)state;
    for (int with_restart = 0; with_restart < 2; with_restart++) {
        struct bench *b = bench_make(1);
        uint64_t sequences[40];
        b->options.delta_bytes_max = 20000;
        assert_int_equal(bench_open(b, NULL), ERR_OK);
        put_session(b, 1);
        pass_time(b, 2 * NS_PER_S);
        sim_kv_set_capacity(b->sim_kv, sim_kv_counts(b->sim_kv).used_bytes + 10000);
        for (int i = 0; i < 40; i++)
            sequences[i] = put_publish(b, 0, 1, 1000);
        pass_time(b, NS_PER_S);
        assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->no_space), 1);
        for (int i = 0; i < 40; i++)
            put_ack(b, 1, sequences[i]);
        if (with_restart) {
            bench_close(b);
            assert_int_equal(bench_open(b, NULL), ERR_OK);
        }
        pass_time(b, 3 * NS_PER_S);
        assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->no_space), 0);
        assert_int_equal(checkpoint_state(b->checkpoint).cursor.position.sequence, b->record_count + 1);
        bench_free(b);
    }
}

static void a_failed_commit_is_final(void **state)
{
    (void)state;
    struct bench *b = bench_new(1);
    struct errmsg msg = {{0}};
    int64_t wait;
    assert_int_equal(step(b, false), ERR_OK);
    size_t told_before = told(b, 0, OP_STORE_CHECKPOINT, NULL);
    struct log_place released = b->released;
    put_session(b, 1);
    sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_IO, 0);
    assert_int_equal(step(b, true), ERR_IO);
    b->now += 5 * NS_PER_S;
    assert_int_equal(store_writer_step(b->writer, b->now, false, &wait, &msg), ERR_IO);
    assert_int_equal(gauge_get(&store_writer_get_stats(b->writer)->failed), ERR_IO);
    assert_int_equal(told(b, 0, OP_STORE_CHECKPOINT, NULL), told_before);
    assert_int_equal(log_place_compare(released, b->released), 0);
    bench_free(b);
}

/* What the next start would take for the time away, were it made now. */
static int64_t time_away(const struct bench *b)
{
    struct checkpoint_state state = checkpoint_state(b->checkpoint);
    assert_true(state.wall_ns != 0);
    return b->now + b->wall_lead_ns - state.wall_ns;
}

static void a_clock_that_is_set_is_committed_though_nothing_else_is(void **state)
{
    (void)state;
    struct bench *b = bench_make(1);
    b->io = &bench_io_with_wall;
    b->wall_lead_ns = 1000 * NS_PER_S;
    assert_int_equal(bench_open(b, NULL), ERR_OK);
    assert_int_equal(step(b, false), ERR_OK); /* a new directory's first commit tells the clocks */
    assert_true(time_away(b) < NS_PER_S);
    uint64_t commits = histogram_count(&store_writer_get_stats(b->writer)->commit_ns);
    for (int i = 0; i < 2; i++) {
        pass_time(b, 100 * NS_PER_S);
        assert_int_equal(histogram_count(&store_writer_get_stats(b->writer)->commit_ns), commits + (uint64_t)i);
        b->wall_lead_ns += i == 0 ? 3600 * NS_PER_S : -7200 * NS_PER_S;
        pass_time(b, NS_PER_S);
        assert_true(time_away(b) >= 0 && time_away(b) <= NS_PER_S);
    }
    b->wall_lead_ns += 3600 * NS_PER_S;
    assert_int_equal(step(b, true), ERR_OK); /* set at the very end */
    assert_true(time_away(b) >= 0 && time_away(b) < NS_PER_S);
    struct checkpoint_state before = checkpoint_state(b->checkpoint);
    bench_close(b);
    assert_int_equal(bench_open(b, NULL), ERR_OK); /* and read back: nothing to commit */
    assert_int_equal(checkpoint_state(b->checkpoint).wall_ns, before.wall_ns);
    assert_int_equal(step(b, false), ERR_OK);
    assert_int_equal(checkpoint_state(b->checkpoint).wall_ns, before.wall_ns);
    bench_free(b);
}

static void a_long_look_at_the_log_is_no_step_of_the_wall_clock(void **state)
{
    (void)state;
    struct bench *b = bench_make(1);
    b->io = &bench_io_with_wall;
    b->wall_lead_ns = 1000 * NS_PER_S;
    assert_int_equal(bench_open(b, NULL), ERR_OK);
    assert_int_equal(step(b, false), ERR_OK);
    uint64_t commits = histogram_count(&store_writer_get_stats(b->writer)->commit_ns);
    b->read_takes_ns = 400 * NS_PER_MS;
    pass_time(b, 10 * NS_PER_S);
    assert_int_equal(histogram_count(&store_writer_get_stats(b->writer)->commit_ns), commits);
    bench_free(b);
}

static void an_op_waits_for_a_full_ring(void **state)
{
    (void)state;
    struct bench *b = bench_new(1);
    struct op op = {0};
    b->is_ring_full = true;
    put_session(b, 1);
    assert_int_equal(step(b, false), ERR_OK);
    assert_int_equal(step(b, true), ERR_OK);
    assert_int_equal(b->op_count, 0);
    int64_t wait;
    assert_int_equal(store_writer_step(b->writer, b->now, false, &wait, NULL), ERR_OK);
    assert_true(wait <= NS_PER_MS);
    b->is_ring_full = false;
    assert_int_equal(step(b, false), ERR_OK);
    assert_int_equal(told(b, 1, OP_STORE_CHECKPOINT, &op), 2);
    assert_int_equal(op.checkpoint.sequence, 2);
    bench_free(b);
}

/* ---- what shards say ---- */

static void say_passed(struct bench *b, actor_id shard, uint64_t number, uint64_t block)
{
    struct op op = {.type = OP_STORE_PASSED, .from = shard, .passed = {.number = number, .block = block}};
    store_writer_on_op(b->writer, &op);
}

static void removals_are_forgotten_behind_all_shards(void **state)
{
    (void)state;
    struct bench *b = bench_new(1);
    put_retained(b, 0, 1, "t", "x"); /* block 1 of shard 0 */
    put_retained(b, 1, 2, "t", "");  /* block 1 of shard 1: removed */
    assert_int_equal(step(b, true), ERR_OK);
    assert_int_equal(count_keys(b, KV_RETAINED), 1);
    assert_int_equal(checkpoint_state(b->checkpoint).retained_number_max, 2);
    say_passed(b, 0, 10, 1);
    pass_time(b, 3 * NS_PER_S);
    assert_int_equal(count_keys(b, KV_RETAINED), 1); /* shard 1 may have an older one */
    say_passed(b, 1, 10, 2);
    say_passed(b, 1, 11, 3); /* waits behind the other */
    pass_time(b, 3 * NS_PER_S);
    assert_int_equal(count_keys(b, KV_RETAINED), 1); /* its block 2 is not there yet */
    put_publish(b, 1, 0, 10);                        /* telemetry counts, too */
    pass_time(b, 3 * NS_PER_S);
    assert_int_equal(count_keys(b, KV_RETAINED), 0);
    bench_free(b);
}

static void a_busy_shard_passes_in_the_end(void **state)
{
    (void)state;
    struct bench *b = bench_new(1);
    put_retained(b, 1, 1, "t", "");
    say_passed(b, 0, 100, 0); /* it has no block at all */
    for (uint64_t block = 2; block < 12; block++) {
        say_passed(b, 1, block, block); /* always one ahead of what is durable */
        pass_time(b, 2 * NS_PER_S);
        put_publish(b, 1, 0, 10);
    }
    assert_int_equal(count_keys(b, KV_RETAINED), 0);
    bench_free(b);
}

static void runs_are_kept_and_dropped(void **state)
{
    (void)state;
    struct bench *b = bench_new(1);
    uint64_t sequences[CHECKPOINT_RUN];
    uint32_t count;
    struct kv_txn *txn;
    put_session(b, 1);
    struct store_run *run = calloc(1, sizeof *run);
    for (run->count = 0; run->count < 3; run->count++)
        run->sequences[run->count] = put_publish(b, 0, 1, 10);
    uint64_t first = run->sequences[0];
    assert_int_equal(step(b, true), ERR_OK);
    struct op op = {.type = OP_STORE_RUN, .run = {.session_number = 1, .run = run}};
    store_writer_on_op(b->writer, &op);
    pass_time(b, 2 * NS_PER_S);
    assert_int_equal(kv_begin(b->kv, &txn, false), ERR_OK);
    assert_int_equal(checkpoint_find_run(txn, sequences, &count, 1, 0), ERR_OK);
    assert_int_equal(count, 3);
    assert_int_equal(sequences[0], first);
    kv_abort(txn);
    op = (struct op){.type = OP_STORE_RUN_DROP, .run = {.session_number = 1, .first = first}};
    store_writer_on_op(b->writer, &op);
    pass_time(b, 2 * NS_PER_S);
    assert_int_equal(count_keys(b, KV_RUNS), 0);
    bench_free(b);
}

/* Each shard is told how many of its runs are committed, and not before they are: it forgets what they hold. */
static void committed_runs_are_told_to_who_posted_them(void **state)
{
    (void)state;
    struct bench *b = bench_new(2);
    struct op told_op = {0};
    put_session(b, 1);
    uint64_t sequence = put_publish(b, 0, 1, 10);
    assert_int_equal(step(b, true), ERR_OK);
    b->op_count = 0;
    for (uint64_t i = 0; i < 3; i++) {
        struct store_run *run = calloc(1, sizeof *run);
        assert_non_null(run);
        run->count = 1;
        run->sequences[0] = sequence;
        store_writer_on_op(b->writer, &(struct op){.type = OP_STORE_RUN, .from = i > 0, .run = {.session_number = 1, .run = run}});
    }
    sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_NOSPACE, 0);
    assert_int_equal(step(b, false), ERR_OK);
    for (actor_id shard = 0; shard < 2; shard++)
        assert_true(told(b, shard, OP_STORE_CHECKPOINT, &told_op) == 0 || told_op.checkpoint.runs == 0);
    pass_time(b, 5 * NS_PER_S);
    for (actor_id shard = 0; shard < 2; shard++) {
        assert_true(told(b, shard, OP_STORE_CHECKPOINT, &told_op) > 0);
        assert_int_equal(told_op.checkpoint.runs, shard == 0 ? 1 : 2);
    }
    bench_free(b);
}

/* ---- replay ---- */

static void a_log_that_lacks_the_beginning_is_a_gap(void **state)
{
    (void)state;
    struct bench *b = bench_new(1);
    struct errmsg msg = {{0}};
    /* Without a checkpoint the log was used again: that is what a lost database looks like. */
    put_session(b, 1);
    for (int i = 0; i < 400; i++) {
        put_publish(b, 0, 1, 3000);
        assert_int_equal(step(b, true), ERR_OK);
        while (log_writer_prepare(b->log, NULL) == ERR_AGAIN)
            continue;
    }
    bench_close(b);
    sim_kv_free(b->sim_kv);
    b->sim_kv = sim_kv_new(2);
    assert_int_equal(bench_open(b, &msg), ERR_GAP);
    assert_non_null(strstr(msg.text, "there is no checkpoint"));
    bench_free(b);
}

static void a_checkpoint_ahead_of_the_log_is_refused(void **state)
{
    (void)state;
    struct bench *b = bench_new(1);
    struct errmsg msg = {{0}};
    put_session(b, 1);
    put_publish(b, 0, 1, 3000);
    assert_int_equal(step(b, true), ERR_OK);
    bench_close(b);
    sim_fs_free(b->sim); /* another log under the same checkpoint */
    b->sim = sim_fs_new(2, 512);
    b->options.fs = sim_fs_fs(b->sim);
    assert_true(bench_open(b, &msg) != ERR_OK);
    bench_free(b);
}

/* ---- crashes ---- */

/* All that a checkpoint holds, as text that does not depend on the order of what has none. */
struct dump {
    char *text;
    size_t size, capacity;
    bool sessions[SESSION_NUMBERS]; /* seen */
    struct {
        uint64_t session, sequence;
    } bodies[RECORDS_MAX];
    size_t body_count;
};

static void __attribute__((format(printf, 2, 3))) dump_line(struct dump *dump, const char *format, ...)
{
    va_list list;
    if (dump->size + 512 > dump->capacity) {
        dump->capacity = 2 * dump->capacity + 4096;
        dump->text = realloc(dump->text, dump->capacity);
    }
    va_start(list, format);
    dump->size += (size_t)vsnprintf(dump->text + dump->size, 512, format, list);
    va_end(list);
}

static uint64_t hash_bytes(struct span bytes)
{
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < bytes.size; i++)
        hash = (hash ^ bytes.data[i]) * 1099511628211u;
    return hash;
}

static uint64_t hash_records(struct span records)
{
    uint64_t sum = 0;
    struct span one;
    while (record_next(&one, &records) == ERR_OK)
        sum += hash_bytes(one);
    return sum;
}

static enum err dump_session(void *arg, const struct checkpoint_session *session)
{
    struct dump *dump = arg;
    uint64_t ids = 0;
    for (uint32_t i = 0; i < session->inbound_count; i++)
        ids += (uint64_t)session->inbound_ids[i] * session->inbound_ids[i] + 1;
    assert_true(session->number < SESSION_NUMBERS);
    dump->sessions[session->number] = true;
    dump_line(dump, "session %u %.*s expiry %u connected %d since %lld protocol %u subscriptions %llx will %llx inbound %u:%llx sent",
              (unsigned)session->number, (int)session->client_id.size, (const char *)session->client_id.data, session->expiry_interval_s,
              session->was_connected, (long long)session->since_wall_ns, session->protocol,
              (unsigned long long)hash_records(session->subscriptions), (unsigned long long)hash_records(session->will),
              session->inbound_count, (unsigned long long)ids);
    for (uint32_t i = 0; i < session->sent_count; i++)
        dump_line(dump, " %llu/%u/%d", (unsigned long long)session->sent[i].sequence, session->sent[i].packet_id,
                  session->sent[i].is_received);
    dump_line(dump, "\n");
    return ERR_OK;
}

static enum err dump_runs(void *arg, uint64_t session, uint64_t last_sequence)
{
    (void)arg;
    (void)session;
    (void)last_sequence;
    return ERR_OK;
}

static enum err dump_want(void *arg, uint64_t session, uint64_t sequence, const struct checkpoint_want *want, uint32_t cost, bool is_in_run)
{
    struct dump *dump = arg;
    assert_false(is_in_run);
    if (!dump->sessions[session])
        return ERR_NOTFOUND;
    dump_line(dump, "want %llu %llu qos %u cost %u\n", (unsigned long long)session, (unsigned long long)sequence, want->qos, cost);
    dump->bodies[dump->body_count].session = session;
    dump->bodies[dump->body_count++].sequence = sequence;
    return ERR_OK;
}

static enum err dump_retained(void *arg, struct span topic, uint64_t number, uint64_t sequence, uint32_t cost, int64_t expiry)
{
    struct dump *dump = arg;
    dump_line(dump, "retained %016llx number %llu %llu cost %u expiry %lld\n", (unsigned long long)hash_bytes(topic),
              (unsigned long long)number, (unsigned long long)sequence, cost, (long long)expiry);
    dump->bodies[dump->body_count].session = 0;
    dump->bodies[dump->body_count++].sequence = sequence;
    return ERR_OK;
}

static void dump_corrupt(void *arg, enum kv_tree tree, struct span key)
{
    (void)arg;
    (void)key;
    fail_msg("damaged value in tree %d", (int)tree);
}

static struct dump *dump_new(struct kv *kv)
{
    struct dump *dump = calloc(1, sizeof *dump);
    struct checkpoint *checkpoint;
    struct checkpoint_loader loader = {.on_session = dump_session,
                                       .on_runs = dump_runs,
                                       .on_want = dump_want,
                                       .on_retained = dump_retained,
                                       .on_corrupt = dump_corrupt,
                                       .arg = dump};
    assert_int_equal(checkpoint_open(&checkpoint, kv, 7, NULL), ERR_OK);
    dump_line(dump, "position %llu, retained to %llu\n", (unsigned long long)checkpoint_state(checkpoint).cursor.position.sequence,
              (unsigned long long)checkpoint_state(checkpoint).retained_number_max);
    assert_int_equal(checkpoint_load(checkpoint, &loader, NULL), ERR_OK);
    checkpoint_free(checkpoint);
    struct kv_txn *txn;
    assert_int_equal(kv_begin(kv, &txn, false), ERR_OK);
    for (size_t i = 0; i < dump->body_count; i++) {
        struct record rec;
        enum err err = checkpoint_find_body(txn, &rec, dump->bodies[i].sequence);
        dump_line(dump, "body %llu: %d %llx\n", (unsigned long long)dump->bodies[i].sequence, err,
                  err ? 0 : (unsigned long long)(hash_bytes(rec.topic) ^ hash_bytes(rec.payload) ^ (uint64_t)rec.qos));
    }
    kv_abort(txn);
    return dump;
}

static void dump_free(struct dump *dump)
{
    free(dump->text);
    free(dump);
}

/* What the checkpoint must be: all records up to `end` applied at once. */
static struct dump *dump_of_records(struct bench *b, uint64_t end)
{
    struct sim_kv *sim = sim_kv_new(1);
    struct kv *kv = sim_kv_open(sim);
    struct checkpoint *checkpoint;
    assert_int_equal(checkpoint_open(&checkpoint, kv, 7, NULL), ERR_OK);
    for (uint64_t i = 1; i < end; i++) {
        struct record rec;
        assert_int_equal(record_decode(&rec, span_of(b->records[i].bytes, b->records[i].size)), ERR_OK);
        assert_int_equal(checkpoint_apply(checkpoint, &rec, i), ERR_OK);
    }
    struct log_cursor_value cursor = {.broker_id = 1, .position = {1, end}, .place = {1, 4096}, .reopen = {1, 4096}};
    assert_int_equal(checkpoint_commit(checkpoint, &cursor, NULL), ERR_OK);
    checkpoint_free(checkpoint);
    struct dump *dump = dump_new(kv);
    kv_close(kv);
    sim_kv_free(sim);
    return dump;
}

/* A number is never used again. */
static uint64_t session_number(const struct bench *b, uint64_t place) { return 1 + place + SESSIONS * b->ended[place]; }

/* A random record about few sessions, topics and identifiers, so that they meet. */
static struct record random_record(struct check_random *random, const struct bench *b, uint8_t scratch[512])
{
    static uint8_t payload[12000];
    static const char *topics[] = {"a", "a/b", "c", "d/e/f"};
    uint64_t recent = b->record_count > 30 ? b->record_count - check_random_below(random, 30) : 1 + check_random_below(random, 30);
    uint64_t place = check_random_below(random, SESSIONS);
    struct record rec = {.session = session_number(b, place), .received_ns = WALL + (int64_t)b->record_count};
    rec.topic = span_of_string(topics[check_random_below(random, 4)]);
    /* Nothing is said of a session before it is there. */
    switch (b->created[place] ? check_random_below(random, 16) : 0) {
    case 0:
    case 1:
        rec.type = RECORD_SESSION;
        rec.topic = span_of(NULL, 0);
        rec.client_id = span_of_string("somebody");
        rec.options = 100 | UINT64_C(4) << RECORD_SESSION_PROTOCOL_SHIFT | (check_random_below(random, 2) ? RECORD_SESSION_CONNECTED : 0);
        return rec;
    case 2:
        rec.type = check_random_below(random, 5) ? RECORD_WILL : RECORD_SESSION_DELETE;
        if (rec.type == RECORD_SESSION_DELETE)
            rec.topic = span_of(NULL, 0);
        return rec;
    case 3:
        rec.type = check_random_below(random, 3) ? RECORD_SUBSCRIPTION : RECORD_UNSUBSCRIBE;
        rec.options = check_random_below(random, 3);
        return rec;
    case 4:
    case 5:
    case 6:
    case 7:
        rec.topic = span_of(NULL, 0);
        rec.type = RECORD_ACK;
        rec.subject_sequence = recent;
        return rec;
    case 8: {
        uint64_t last = 0;
        rec.topic = span_of(NULL, 0);
        rec.type = RECORD_DROP;
        size_t used = position_list_put(scratch, &last, recent);
        used += position_list_put(scratch + used, &last, recent + 2);
        rec.positions = span_of(scratch, used);
        return rec;
    }
    case 9:
        rec.topic = span_of(NULL, 0);
        rec.type = RECORD_RELEASED;
        rec.packet_id = (uint16_t)(1 + check_random_below(random, 5));
        return rec;
    case 10: /* telemetry */
        rec.type = RECORD_PUBLISH;
        rec.payload = span_of(payload, check_random_below(random, 3000));
        return rec;
    default:
        break;
    }
    rec.type = RECORD_PUBLISH;
    rec.qos = (uint8_t)check_random_below(random, 3);
    rec.packet_id = rec.qos == 2 ? (uint16_t)(1 + check_random_below(random, 5)) : 0;
    rec.payload = span_of(payload, check_random_below(random, check_random_below(random, 20) ? 600 : sizeof payload));
    if (check_random_below(random, 4) == 0) {
        rec.retain = true;
        rec.retained_number = (b->record_count ^ 3) + 1; /* not in the order of the log */
        if (check_random_below(random, 3) == 0)
            rec.payload.size = 0;
    }
    size_t used = 0;
    for (uint64_t i = 0; i < SESSIONS; i++) {
        struct record_recipient recipient = {.session = session_number(b, i), .qos = (uint8_t)check_random_below(random, 3)};
        if (b->created[i] && check_random_below(random, 2))
            used += record_recipient_put(scratch + used, &recipient);
    }
    rec.recipients = span_of(scratch, used);
    return rec;
}

/* A write of one or two blocks, one per shard, that a crash may cut. False: cut. */
static bool random_write(struct bench *b, struct check_random *random, enum cut cut)
{
    struct log_block *blocks[SHARDS];
    uint8_t scratch[512];
    size_t count = 1 + check_random_below(random, SHARDS);
    for (uint16_t i = 0; i < count; i++) {
        blocks[i] = log_block_pool_get(&b->pools[i]);
        for (uint64_t left = 1 + check_random_below(random, 5); left; left--) {
            struct record rec = random_record(random, b, scratch);
            enum err err = log_block_append(blocks[i], &rec);
            if (err == ERR_OK)
                keep_record(b, &rec);
            else if (blocks[i]->record_count == 0)
                left++; /* too large: another */
            else
                break;
        }
        log_block_seal(&b->pools[i], blocks[i]);
    }
    enum err err = write_blocks(b, blocks, count, cut);
    if (cut != CUT_NONE)
        for (uint16_t i = 0; i < count; i++)
            log_block_pool_put(&b->pools[i], blocks[i]);
    assert_true(err == ERR_OK || err == ERR_NOSPACE);
    return cut == CUT_NONE;
}

/* A large record, perhaps with commits between its blocks. */
static void put_large(struct bench *b, struct check_random *random)
{
    uint8_t scratch[512];
    struct record rec;
    int tries = 0;
    do {
        if (++tries > 1000) /* there is no session yet */
            return;
        rec = random_record(random, b, scratch);
    } while (rec.type != RECORD_PUBLISH || record_size(&rec) <= BODY_MAX);
    b->group_pause_ns = (int64_t)check_random_below(random, 3) * NS_PER_S;
    put(b, (uint16_t)check_random_below(random, SHARDS), &rec);
    b->group_pause_ns = 0;
}

static void random_life(struct bench *b, struct check_random *random, uint64_t steps)
{
    for (uint64_t i = 0; i < steps; i++) {
        if (log_writer_room(b->log, LOG_ROOM_PUBLISH) < 2 * SEGMENT_SIZE) {
            assert_int_equal(step(b, true), ERR_OK);
            while (log_writer_prepare(b->log, NULL) == ERR_AGAIN)
                continue;
        }
        if (check_random_below(random, 10) == 0) {
            put_large(b, random);
        } else {
            random_write(b, random, CUT_NONE);
        }
        b->now += (int64_t)check_random_below(random, 400) * NS_PER_MS;
        if (check_random_below(random, 20) == 0)
            sim_kv_fail(b->sim_kv, check_random_below(random, 2) ? SIM_KV_COMMIT : SIM_KV_PUT, ERR_NOSPACE, 0);
        assert_int_equal(step(b, false), ERR_OK);
        while (check_random_below(random, 3) == 0 && log_writer_prepare(b->log, NULL) == ERR_AGAIN)
            continue;
    }
}

/* The lines of one that the other has not. */
static void print_difference(const char *is, const char *should)
{
    const char *texts[] = {is, should};
    for (int i = 0; i < 2; i++)
        for (const char *line = texts[i]; *line; line = strchr(line, '\n') + 1) {
            size_t size = (size_t)(strchr(line, '\n') + 1 - line);
            bool found = false;
            for (const char *other = texts[!i]; !found && *other; other = strchr(other, '\n') + 1)
                found = strncmp(line, other, size) == 0;
            if (!found)
                print_error("%s: %.*s", i == 0 ? "is only" : "should be", (int)size, line);
        }
}

/* Of what the log lost nobody knows. */
static void forget_sessions(struct bench *b)
{
    for (uint64_t place = 0; place < SESSIONS; place++) {
        b->created[place] = false;
        for (uint64_t i = 1; i <= b->record_count; i++) {
            struct record rec;
            assert_int_equal(record_decode(&rec, span_of(b->records[i].bytes, b->records[i].size)), ERR_OK);
            b->created[place] = b->created[place] || (rec.type == RECORD_SESSION && rec.session == session_number(b, place));
        }
    }
}

/* Die, come back. Returns what opening said; on ERR_OK all is compared with the model. */
static enum err crash_and_compare(struct bench *b, struct check_random *random)
{
    sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_OK, 0);
    sim_kv_fail(b->sim_kv, SIM_KV_PUT, ERR_OK, 0);
    if (check_random_below(random, 3))
        sim_fs_crash(b->sim);
    else
        sim_fs_kill(b->sim);
    sim_kv_crash(b->sim_kv);
    bench_close(b);
    enum err err = bench_open(b, NULL);
    if (err)
        return err;
    uint64_t end = log_writer_durable_end(b->log).position.sequence;
    assert_true(end <= b->record_count + 1);
    bench_forget_records(b, end);
    forget_sessions(b);
    bench_close(b);
    b->kv = sim_kv_open(b->sim_kv);
    struct dump *is = dump_new(b->kv), *should = dump_of_records(b, end);
    bool equal = strcmp(is->text, should->text) == 0;
    if (!equal && !b->mistake_end)
        print_difference(is->text, should->text);
    dump_free(is);
    dump_free(should);
    kv_close(b->kv);
    b->kv = NULL;
    if (!equal)
        return ERR_INVALID;
    return bench_open(b, NULL);
}

static void what_a_crash_leaves_is_what_the_log_says(void **state)
{
    (void)state;
    const char *seeds = getenv("SEEDS");
    uint64_t first = check_random_seed(1), count = seeds ? strtoull(seeds, NULL, 10) : 15;
    for (uint64_t seed = first; seed < first + count; seed++) {
        struct check_random random;
        check_random_init(&random, seed);
        struct bench *b = bench_make(seed);
        b->options.delta_bytes_max = 2000 + check_random_below(&random, 20000);
        assert_int_equal(bench_open(b, NULL), ERR_OK);
        for (int life = 0; life < 6; life++) {
            random_life(b, &random, 1 + check_random_below(&random, 60));
            uint64_t fate = check_random_below(&random, 5);
            if (fate < 2) {
                random_write(b, &random, fate ? CUT_BEFORE_WRITE : CUT_BEFORE_FINISH);
                assert_int_equal(step(b, check_random_below(&random, 2)), ERR_OK);
            } else if (fate == 2) { /* in the middle of a commit */
                random_write(b, &random, CUT_NONE);
                sim_kv_fail(b->sim_kv, SIM_KV_COMMIT, ERR_IO, 0);
                enum err err = step(b, true);
                assert_true(err == ERR_OK || err == ERR_IO);
            } else if (fate == 3) { /* between the blocks of a large record */
                b->is_cut_in_group = true;
                put_large(b, &random);
                b->is_cut_in_group = false;
            }
            if (crash_and_compare(b, &random) != ERR_OK)
                fail_msg("seed %llu, life %d", (unsigned long long)seed, life);
        }
        bench_free(b);
    }
}

/* The test above can fail: a writer that applies what is not durable is found out. */
static void applied_before_durable_is_found(void **state)
{
    (void)state;
    unsigned found = 0;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct check_random random;
        check_random_init(&random, seed);
        struct bench *b = bench_new(seed);
        random_life(b, &random, 10);
        assert_int_equal(step(b, true), ERR_OK);
        b->mistake_end = 1;
        sim_fs_hold(b->sim, true);
        random_write(b, &random, CUT_BEFORE_FINISH);
        if (step(b, true) == ERR_OK)
            found += crash_and_compare(b, &random) != ERR_OK;
        sim_fs_hold(b->sim, false);
        bench_free(b);
    }
    assert_true(found > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commits_at_its_interval_and_tells),
        cmocka_unit_test(memory_of_commits_goes_when_nothing_comes),
        cmocka_unit_test(commits_sooner_when_the_delta_is_full),
        cmocka_unit_test(leaves_alone_what_is_not_durable),
        cmocka_unit_test(telemetry_alone_is_committed_by_segments),
        cmocka_unit_test(the_log_is_used_again_behind_it),
        cmocka_unit_test(says_when_it_lags_in_time),
        cmocka_unit_test(says_when_it_lags_in_bytes),
        cmocka_unit_test(says_when_the_database_is_full),
        cmocka_unit_test(a_full_delta_without_space_stops_reading),
        cmocka_unit_test(acknowledgements_behind_a_full_delta_make_space),
        cmocka_unit_test(a_failed_commit_is_final),
        cmocka_unit_test(a_clock_that_is_set_is_committed_though_nothing_else_is),
        cmocka_unit_test(a_long_look_at_the_log_is_no_step_of_the_wall_clock),
        cmocka_unit_test(an_op_waits_for_a_full_ring),
        cmocka_unit_test(removals_are_forgotten_behind_all_shards),
        cmocka_unit_test(a_busy_shard_passes_in_the_end),
        cmocka_unit_test(runs_are_kept_and_dropped),
        cmocka_unit_test(committed_runs_are_told_to_who_posted_them),
        cmocka_unit_test(a_log_that_lacks_the_beginning_is_a_gap),
        cmocka_unit_test(a_checkpoint_ahead_of_the_log_is_refused),
        cmocka_unit_test(what_a_crash_leaves_is_what_the_log_says),
        cmocka_unit_test(applied_before_durable_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
