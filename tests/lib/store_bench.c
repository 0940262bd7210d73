#include "tests/lib/store_bench.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/clock.h"

static const char *log_dir = "log";

static bool bench_post(void *io, actor_id to, const struct op *op)
{
    struct store_bench *b = io;
    if (b->is_ring_full)
        return false;
    assert_true(b->op_count < STORE_BENCH_OPS_MAX);
    b->ops[b->op_count].to = to;
    b->ops[b->op_count++].op = *op;
    return true;
}

static void bench_on_checkpoint(void *io, struct log_place place)
{
    struct store_bench *b = io;
    assert_true(log_place_compare(b->released, place) <= 0);
    b->released = place;
    log_writer_set_checkpoint(b->log, place);
}

static struct log_end bench_durable_end(void *io)
{
    struct store_bench *b = io;
    b->now += b->read_takes_ns;
    return b->mistake_end ? b->begun : log_writer_published_end(b->log);
}

static int64_t bench_clock(void *io)
{
    struct store_bench *b = io;
    return b->now += b->commit_takes_ns;
}

static const struct store_writer_io bench_io = {
    .post = bench_post, .on_checkpoint = bench_on_checkpoint, .durable_end = bench_durable_end, .clock = bench_clock};

static int64_t bench_wall(void *io)
{
    struct store_bench *b = io;
    return b->now + b->wall_lead_ns;
}

const struct store_writer_io store_bench_io_with_wall = {
    .post = bench_post, .on_checkpoint = bench_on_checkpoint, .durable_end = bench_durable_end, .clock = bench_clock, .wall = bench_wall};

enum err store_bench_open(struct store_bench *b, struct errmsg *msg)
{
    b->kv = sim_kv_open(b->sim_kv);
    enum err err = checkpoint_open(&b->checkpoint, b->kv, 7, msg);
    assert_int_equal(err, ERR_OK);
    struct log_writer_options options = {.fs = sim_fs_fs(b->sim),
                                         .dir = log_dir,
                                         .segment_size = STORE_BENCH_SEGMENT_SIZE,
                                         .log_bytes_max = 12 * STORE_BENCH_SEGMENT_SIZE,
                                         .checkpoint = checkpoint_state(b->checkpoint).cursor.reopen};
    err = log_writer_open(&b->log, &options, NULL, msg);
    if (err)
        return err;
    for (uint16_t i = 0; i < STORE_BENCH_SHARDS; i++)
        assert_int_equal(log_block_pool_init(&b->pools[i], i, 4, STORE_BENCH_BODY_MAX, log_writer_alignment(b->log)), ERR_OK);
    b->begun = log_writer_published_end(b->log);
    err = store_writer_replay(b->checkpoint, options.fs, log_dir, b->options.delta_bytes_max, msg);
    b->released = (struct log_place){0};
    if (!err)
        assert_int_equal(store_writer_new(&b->writer, b->checkpoint, &b->options, b->io, b), ERR_OK);
    return err;
}

void store_bench_close(struct store_bench *b)
{
    store_writer_free(b->writer);
    b->writer = NULL;
    checkpoint_free(b->checkpoint);
    b->checkpoint = NULL;
    if (b->log)
        for (uint16_t i = 0; i < STORE_BENCH_SHARDS; i++)
            log_block_pool_deinit(&b->pools[i]);
    log_writer_close(b->log);
    b->log = NULL;
    kv_close(b->kv);
    b->kv = NULL;
}

struct store_bench *store_bench_make(uint64_t seed)
{
    struct store_bench *b = calloc(1, sizeof *b);
    b->sim = sim_fs_new(seed, 512);
    b->sim_kv = sim_kv_new(seed);
    b->now = NS_PER_S;
    b->io = &bench_io;
    b->options = (struct store_writer_options){.fs = sim_fs_fs(b->sim),
                                               .log_dir = log_dir,
                                               .interval_ns = NS_PER_S,
                                               .segment_bytes = STORE_BENCH_SEGMENT_SIZE,
                                               .lag_ns_max = 10 * NS_PER_S,
                                               .lag_bytes_max = 5 * STORE_BENCH_SEGMENT_SIZE,
                                               .delta_bytes_max = 1 << 20,
                                               .shard_count = STORE_BENCH_SHARDS};
    return b;
}

struct store_bench *store_bench_new(uint64_t seed)
{
    struct store_bench *b = store_bench_make(seed);
    assert_int_equal(store_bench_open(b, NULL), ERR_OK);
    return b;
}

void store_bench_forget_records(struct store_bench *b, uint64_t from)
{
    for (uint64_t i = from; i <= b->record_count; i++) {
        free(b->records[i].bytes);
        b->records[i].bytes = NULL;
    }
    b->record_count = from - 1;
}

void store_bench_free(struct store_bench *b)
{
    store_bench_close(b);
    store_bench_forget_records(b, 1);
    sim_kv_free(b->sim_kv);
    sim_fs_free(b->sim);
    free(b);
}

uint64_t store_bench_session(const struct store_bench *b, uint64_t place) { return 1 + place + STORE_BENCH_SESSIONS * b->ended[place]; }

void store_bench_keep(struct store_bench *b, const struct record *rec)
{
    assert_true(b->record_count + 1 < STORE_BENCH_RECORDS_MAX);
    uint64_t sequence = ++b->record_count;
    size_t size = record_size(rec);
    b->records[sequence].bytes = malloc(size);
    b->records[sequence].size = record_encode(b->records[sequence].bytes, rec);
    uint64_t place = (rec->session - 1) % STORE_BENCH_SESSIONS; /* see store_bench_session() */
    if (rec->type == RECORD_SESSION)
        b->created[place] = true;
    if (rec->type == RECORD_SESSION_DELETE) {
        b->created[place] = false;
        b->ended[place]++;
    }
}

enum err store_bench_write(struct store_bench *b, struct log_block **blocks, size_t count, enum store_cut cut)
{
    log_writer_begin(b->log, blocks, count);
    enum err err = cut == STORE_CUT_BEFORE_WRITE ? ERR_OK : log_writer_write(b->log, NULL);
    b->begun.position.sequence = b->record_count + 1;
    b->begun.place = blocks[count - 1]->place;
    b->begun.place.offset += blocks[count - 1]->size;
    if (!err && cut == STORE_CUT_NONE)
        err = log_writer_finish(b->log, b->now);
    if (cut == STORE_CUT_NONE)
        for (size_t i = 0; i < count; i++)
            log_block_pool_put(&b->pools[blocks[i]->shard], blocks[i]);
    return err;
}

uint64_t store_bench_put(struct store_bench *b, uint16_t shard, const struct record *rec)
{
    struct log_block *block;
    if (record_size(rec) <= STORE_BENCH_BODY_MAX) {
        store_bench_keep(b, rec);
        block = log_block_pool_get(&b->pools[shard]);
        assert_int_equal(log_block_append(block, rec), ERR_OK);
        log_block_seal(&b->pools[shard], block);
        assert_int_equal(store_bench_write(b, &block, 1, STORE_CUT_NONE), ERR_OK);
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
            store_bench_keep(b, rec); /* it counts where it ends */
        assert_int_equal(store_bench_write(b, &block, 1, STORE_CUT_NONE), ERR_OK);
        if (b->group_pause_ns && !log_block_group_done(&group)) {
            struct record between = {.type = RECORD_ACK, .session = 1, .subject_sequence = b->record_count};
            store_bench_put(b, (uint16_t)!shard, &between);
            b->now += b->group_pause_ns;
            assert_int_equal(store_bench_step(b, false), ERR_OK);
            if (b->is_cut_in_group)
                break;
        }
    }
    free(head);
    return b->record_count;
}

uint64_t store_bench_put_session(struct store_bench *b, uint64_t session)
{
    char id[20];
    snprintf(id, sizeof id, "client%u", (unsigned)session);
    struct record rec = {.type = RECORD_SESSION,
                         .session = session,
                         .client_id = span_of_string(id),
                         .received_ns = STORE_BENCH_WALL,
                         .options = 3600 | RECORD_SESSION_CONNECTED | UINT64_C(5) << RECORD_SESSION_PROTOCOL_SHIFT};
    return store_bench_put(b, 0, &rec);
}

uint64_t store_bench_put_publish(struct store_bench *b, uint16_t shard, uint64_t session, size_t payload_size)
{
    static const uint8_t payload[64 * 1024];
    uint8_t recipients[64];
    struct record_recipient recipient = {.session = session, .qos = 1};
    struct record rec = {.type = RECORD_PUBLISH,
                         .qos = 1,
                         .topic = SPAN_LITERAL("a/b"),
                         .payload = span_of(payload, payload_size),
                         .received_ns = STORE_BENCH_WALL,
                         .session = 99};
    if (session)
        rec.recipients = span_of(recipients, record_recipient_put(recipients, &recipient));
    return store_bench_put(b, shard, &rec);
}

void store_bench_put_retained(struct store_bench *b, uint16_t shard, uint64_t number, const char *topic, const char *value)
{
    struct record rec = {.type = RECORD_PUBLISH,
                         .retain = true,
                         .topic = span_of_string(topic),
                         .payload = span_of_string(value),
                         .received_ns = STORE_BENCH_WALL,
                         .retained_number = number};
    store_bench_put(b, shard, &rec);
}

void store_bench_put_ack(struct store_bench *b, uint64_t session, uint64_t sequence)
{
    struct record rec = {.type = RECORD_ACK, .session = session, .subject_sequence = sequence};
    store_bench_put(b, 1, &rec);
}

enum err store_bench_step(struct store_bench *b, bool flush)
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

void store_bench_pass_time(struct store_bench *b, int64_t ns)
{
    for (int64_t until = b->now + ns; b->now < until;) {
        assert_int_equal(store_bench_step(b, false), ERR_OK);
        b->now += until - b->now < 100 * NS_PER_MS ? until - b->now : 100 * NS_PER_MS;
    }
    assert_int_equal(store_bench_step(b, false), ERR_OK);
}

bool store_bench_wants(struct store_bench *b, uint64_t session, uint64_t sequence)
{
    struct kv_txn *txn;
    struct checkpoint_want want;
    assert_int_equal(kv_begin(b->kv, &txn, false), ERR_OK);
    enum err err = checkpoint_find_want(txn, &want, session, sequence);
    assert_true(err == ERR_OK || err == ERR_NOTFOUND);
    kv_abort(txn);
    return err == ERR_OK;
}

size_t store_bench_count_keys(struct store_bench *b, enum kv_tree tree)
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

size_t store_bench_told(struct store_bench *b, actor_id to, enum op_type type, struct op *op_out)
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
