/* The whole log beside a slow obvious model: an array of what was written, by sequence.
 *
 * Three shards write small and large records through the writer onto a file system that forgets; the broker is killed, loses power or meets
 * a failing disk at any step; a reader in another process follows, stops and comes back at its cursor. Checked all the time:
 *   - what was reported durable is there after every crash, in the same order, under the same (epoch, sequence);
 *   - beyond that, recovery accepts a prefix of what was under way, nothing else, and never calls a torn tail corruption;
 *   - the reader gives out each durable record once per position, with its contents, and nothing past the durable end;
 *   - a bit that flips anywhere never changes a record that is given out.
 * One seed makes one run; it is printed when it fails. SEED=n runs one, SEEDS=n that many. */
#include "common/bytes.h"
#include "common/check.h"
#include "common/log_cursor.h"
#include "common/log_reader.h"
#include "common/log_recovery.h"
#include "common/log_writer.h"
#include "tests/lib/sim_fs.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define SHARDS 3
#define POOL_BLOCKS 24
#define BODY_MAX 8192
#define SEGMENT_SIZE (64 * 1024)
#define LOG_BYTES (10 * SEGMENT_SIZE)
#define RECORDS_MAX 200000
#define BLOCK_RECORDS_MAX 512
#define QUEUE_MAX (SHARDS * POOL_BLOCKS)

static const char *dir = "log";

struct model_record {
    uint64_t id;
    uint32_t epoch;
};

struct queued {
    struct log_block *block;
    int shard;
    int count;
    uint64_t ids[BLOCK_RECORDS_MAX];
};

struct shard {
    struct log_block_pool pool;
    struct queued *open; /* block being filled */
    struct log_block_group group;
    uint8_t *group_bytes;
    uint64_t group_id;
};

struct world {
    uint64_t seed;
    struct sim_fs *sim;
    struct log_writer *writer;
    struct log_reader *reader;
    struct log_cursor cursor;
    bool cursor_open;
    struct shard shards[SHARDS];
    struct queued *queue[QUEUE_MAX];
    size_t queue_count;
    struct log_block *batch[QUEUE_MAX];
    size_t batch_count;
    struct model_record *records; /* by sequence */
    uint64_t durable;             /* exclusive, as reported by finish */
    uint64_t begun;               /* exclusive, given to begin */
    uint64_t next_id;
    uint64_t read; /* next sequence the reader must give out */
    int64_t now_ns;
    uint64_t epoch_before;
    uint64_t restarts, torn, groups, gaps;
};

static uint64_t draw(struct world *w, uint64_t below) { return sim_fs_draw(w->sim) % below; }

#define ENSURE(w, cond)                                                                                                                    \
    do {                                                                                                                                   \
        if (!(cond)) {                                                                                                                     \
            print_error("seed %llu: %s:%d: %s\n", (unsigned long long)(w)->seed, __FILE__, __LINE__, #cond);                               \
            fail();                                                                                                                        \
        }                                                                                                                                  \
    } while (0)

/* A record whose payload tells its id in every byte. */
static size_t make_record(uint8_t *at, uint64_t id, size_t payload_size)
{
    static uint8_t payload[256 * 1024];
    uint64_t x = id * 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < payload_size; i++) {
        if (id & 1)
            payload[i] = (uint8_t)(id + i / 32); /* compresses */
        else
            payload[i] = (uint8_t)((x = x * 6364136223846793005u + 1442695040888963407u) >> 56);
    }
    struct record rec = {.type = RECORD_PUBLISH, .qos = 1, .session = id, .topic = SPAN_LITERAL("fleet/car/telemetry")};
    rec.payload = span_of(payload, payload_size);
    rec.retained_number = payload_size;
    size_t size = record_size(&rec);
    if (at)
        CHECK(record_encode(at, &rec) == size);
    return size;
}

static void check_record(struct world *w, struct span bytes, uint64_t id)
{
    static uint8_t expected[300 * 1024];
    struct record rec;
    ENSURE(w, record_decode(&rec, bytes) == ERR_OK);
    ENSURE(w, rec.session == id);
    size_t size = make_record(expected, id, (size_t)rec.retained_number);
    ENSURE(w, size == bytes.size && memcmp(expected, bytes.data, size) == 0);
}

/* Shards */

static void enqueue(struct world *w, struct shard *shard)
{
    struct queued *item = shard->open;
    shard->open = NULL;
    if (!item)
        return;
    if (item->block->body_size == 0) {
        log_block_pool_put(&shard->pool, item->block);
        free(item);
        return;
    }
    log_block_seal(&shard->pool, item->block);
    w->queue[w->queue_count++] = item;
}

static bool open_block(struct world *w, struct shard *shard)
{
    struct log_block *block = log_block_pool_get(&shard->pool);
    if (!block)
        return false;
    shard->open = (struct queued *)calloc(1, sizeof *shard->open);
    shard->open->block = block;
    shard->open->shard = (int)(shard - w->shards);
    return true;
}

static void shard_small(struct world *w, struct shard *shard)
{
    size_t payload = draw(w, 8) ? draw(w, 200) : draw(w, BODY_MAX - 100);
    uint64_t id = w->next_id;
    size_t size = make_record(NULL, id, payload);
    if (!shard->open && !open_block(w, shard))
        return;
    uint8_t *at = shard->open->count < BLOCK_RECORDS_MAX ? log_block_reserve(shard->open->block, size) : NULL;
    if (!at) {
        enqueue(w, shard);
        if (!open_block(w, shard))
            return;
        at = log_block_reserve(shard->open->block, size);
    }
    make_record(at, id, payload);
    log_block_commit(shard->open->block, size, true);
    shard->open->ids[shard->open->count++] = id;
    w->next_id++;
}

/* One part of a large record; begins one when none is open. */
static void shard_large(struct world *w, struct shard *shard)
{
    if (!shard->group_bytes) {
        size_t payload = BODY_MAX + draw(w, 4 * BODY_MAX);
        shard->group_id = w->next_id++;
        size_t size = make_record(NULL, shard->group_id, payload);
        shard->group_bytes = (uint8_t *)malloc(size);
        make_record(shard->group_bytes, shard->group_id, payload);
        size_t head = size - payload;
        log_block_group_init(&shard->group, span_of(shard->group_bytes, head), span_of(shard->group_bytes + head, payload), true);
    }
    enqueue(w, shard);
    if (!open_block(w, shard))
        return;
    log_block_group_next(&shard->group, shard->open->block);
    if (log_block_group_done(&shard->group)) {
        shard->open->ids[shard->open->count++] = shard->group_id;
        free(shard->group_bytes);
        shard->group_bytes = NULL;
        w->groups++;
    }
    enqueue(w, shard);
}

static void start_shards(struct world *w)
{
    for (int i = 0; i < SHARDS; i++) {
        struct shard *shard = &w->shards[i];
        enum err err = log_block_pool_init(&shard->pool, (uint16_t)i, POOL_BLOCKS, BODY_MAX, log_writer_alignment(w->writer));
        ENSURE(w, err == ERR_OK);
    }
}

static void drop_queued(struct world *w, struct queued *item)
{
    log_block_pool_put(&w->shards[item->shard].pool, item->block);
    free(item);
}

static void stop_shards(struct world *w)
{
    for (size_t i = 0; i < w->queue_count; i++)
        drop_queued(w, w->queue[i]);
    w->queue_count = 0;
    for (int i = 0; i < SHARDS; i++) {
        struct shard *shard = &w->shards[i];
        if (shard->open)
            drop_queued(w, shard->open);
        shard->open = NULL;
        free(shard->group_bytes);
        shard->group_bytes = NULL;
        log_block_pool_deinit(&shard->pool);
    }
}

/* The broker's life */

/* A start that does not come to its end: the disk fails at some operation, and perhaps the power goes then, which is returned. A sync that
 * failed is always followed by that: what it should have saved looks well until the next loss of power, and no program can know. */
static bool start_and_fail(struct world *w, const struct log_writer_options *options)
{
    struct errmsg msg = {{0}};
    sim_fs_set_process(w->sim, 1);
    bool power = draw(w, 3);
    sim_fs_fail(w->sim, power ? SIM_FS_ANY : SIM_FS_ANY & ~SIM_FS_SYNC, 1 + draw(w, 90), ERR_IO, true);
    enum err err = log_writer_open(&w->writer, options, NULL, &msg);
    sim_fs_fail(w->sim, 0, 0, ERR_OK, false);
    sim_fs_set_process(w->sim, 0);
    if (err != ERR_OK && err != ERR_IO)
        print_error("seed %llu: failing open: %s\n", (unsigned long long)w->seed, msg.text);
    ENSURE(w, err == ERR_OK || err == ERR_IO);
    if (power)
        sim_fs_crash(w->sim);
    else
        sim_fs_kill_process(w->sim, 1);
    if (!err)
        log_writer_close(w->writer);
    w->writer = NULL;
    return power;
}

static void stop_reader(struct world *w);

static void start_broker(struct world *w)
{
    struct log_writer_options options = {.fs = sim_fs_fs(w->sim), .dir = dir, .segment_size = SEGMENT_SIZE, .log_bytes_max = LOG_BYTES};
    struct log_recovery recovery;
    struct errmsg msg = {{0}};
    while (draw(w, 3) == 0) {
        if (start_and_fail(w, &options))
            stop_reader(w);
    }
    sim_fs_set_process(w->sim, 1);
    enum err err = log_writer_open(&w->writer, &options, &recovery, &msg);
    if (err)
        print_error("seed %llu: open: %s\n", (unsigned long long)w->seed, msg.text);
    ENSURE(w, err == ERR_OK);
    uint64_t end = recovery.end.position.sequence;
    ENSURE(w, end >= w->durable);
    ENSURE(w, end <= w->begun);
    ENSURE(w, log_writer_epoch(w->writer) > w->epoch_before);
    w->epoch_before = log_writer_epoch(w->writer);
    w->durable = w->begun = end;
    w->torn += recovery.torn_bytes != 0;
    ENSURE(w, log_writer_durable_end(w->writer).position.sequence == end);
    ENSURE(w, log_writer_ensure_cursor(w->writer, "sink", NULL) == ERR_OK);
    sim_fs_set_process(w->sim, 0);
    start_shards(w);
    w->restarts++;
}

static void stop_broker(struct world *w)
{
    sim_fs_hold(w->sim, false);
    log_writer_close(w->writer);
    w->writer = NULL;
    stop_shards(w);
}

static void stop_reader(struct world *w)
{
    log_reader_close(w->reader);
    w->reader = NULL;
    if (w->cursor_open)
        log_cursor_close(&w->cursor);
    w->cursor_open = false;
}

enum stop { STOP_CLEAN, STOP_KILL, STOP_POWER };

static void restart_broker(struct world *w, enum stop stop)
{
    if (stop == STOP_KILL)
        sim_fs_kill_process(w->sim, 1);
    if (stop == STOP_POWER) {
        sim_fs_crash(w->sim);
        stop_reader(w);
    }
    sim_fs_fail(w->sim, 0, 0, ERR_OK, false);
    stop_broker(w);
    start_broker(w);
}

static void crash_somehow(struct world *w)
{
    if (draw(w, 2)) {
        restart_broker(w, STOP_POWER);
        return;
    }
    restart_broker(w, STOP_KILL);
    if (draw(w, 2)) /* what the restart found may not be lost any more */
        restart_broker(w, STOP_POWER);
}

/* The reader's life */

static bool open_reader(struct world *w)
{
    struct errmsg msg;
    if (w->reader)
        return true;
    sim_fs_set_process(w->sim, 2);
    enum err err = log_cursor_open(&w->cursor, sim_fs_fs(w->sim), dir, "sink", &msg);
    if (!err) {
        w->cursor_open = true;
        w->read = w->cursor.value.position.sequence;
        err = log_reader_open(&w->reader, sim_fs_fs(w->sim), dir, &w->cursor.value, &msg);
    }
    sim_fs_set_process(w->sim, 0);
    if (err)
        print_error("seed %llu: reader: %s\n", (unsigned long long)w->seed, msg.text);
    ENSURE(w, err == ERR_OK);
    ENSURE(w, w->read <= w->durable);
    return true;
}

static enum err read_some(struct world *w, uint64_t count)
{
    struct log_reader_item item;
    struct errmsg msg = {{0}};
    enum err err = ERR_OK;
    open_reader(w);
    while (count-- > 0) {
        sim_fs_set_process(w->sim, 2);
        err = log_reader_next(w->reader, &item, &msg);
        sim_fs_set_process(w->sim, 0);
        if (err)
            break;
        ENSURE(w, item.position.sequence == w->read);
        ENSURE(w, item.position.sequence < w->durable);
        ENSURE(w, item.position.epoch == w->records[w->read].epoch);
        check_record(w, item.bytes, w->records[w->read].id);
        w->read++;
    }
    if (err && err != ERR_AGAIN)
        print_error("seed %llu: read: %s: %s\n", (unsigned long long)w->seed, err_text(err), msg.text);
    return err;
}

static void store_cursor(struct world *w)
{
    struct log_cursor_value value;
    if (!w->reader)
        return;
    log_reader_cursor(w->reader, &value);
    ENSURE(w, value.position.sequence == w->read);
    ENSURE(w, log_cursor_store(&w->cursor, &value) == ERR_OK);
}

/* Steps */

static void prepare(struct world *w, uint64_t times)
{
    while (times-- > 0) {
        sim_fs_set_process(w->sim, 1);
        enum err err = log_writer_prepare(w->writer, NULL);
        sim_fs_set_process(w->sim, 0);
        if (err == ERR_OK)
            break;
        ENSURE(w, err == ERR_AGAIN || err == ERR_IO);
        if (err == ERR_IO) {
            ENSURE(w, log_writer_failed(w->writer) != ERR_OK);
            break;
        }
    }
}

static void begin(struct world *w)
{
    size_t count = w->queue_count;
    for (size_t i = 0; i < count; i++)
        w->batch[i] = w->queue[i]->block;
    w->batch_count = count;
    log_writer_begin(w->writer, w->batch, count);
    if (log_writer_failed(w->writer))
        return;
    for (size_t i = 0; i < count; i++) {
        struct queued *item = w->queue[i];
        ENSURE(w, item->block->first.sequence == w->begun);
        for (int k = 0; k < item->count; k++)
            w->records[w->begun++] = (struct model_record){item->ids[k], log_writer_epoch(w->writer)};
    }
}

static void finish(struct world *w)
{
    size_t count = w->batch_count;
    w->now_ns += (int64_t)draw(w, 30000000);
    ENSURE(w, log_writer_finish(w->writer, w->now_ns) == ERR_OK || log_writer_failed(w->writer));
    w->durable = w->begun;
    ENSURE(w, log_writer_durable_end(w->writer).position.sequence == w->durable);
    for (size_t i = 0; i < count; i++) {
        struct queued *item = w->queue[i];
        ENSURE(w, log_writer_durable_blocks(w->writer, (uint16_t)item->shard) >= item->block->shard_block);
        drop_queued(w, item);
    }
    memmove(w->queue, w->queue + count, (w->queue_count - count) * sizeof *w->queue);
    w->queue_count -= count;
}

/* One turn of the log thread, which may end at any of its steps. Returns false when the broker was restarted. */
static bool commit(struct world *w, bool peaceful)
{
    if (w->queue_count == 0)
        return true;
    uint64_t mishap = peaceful ? UINT64_MAX : draw(w, 60);
    if (mishap == 0)
        return crash_somehow(w), false;
    if (mishap == 1)
        sim_fs_fail(w->sim, SIM_FS_WRITE | SIM_FS_SYNC, 1 + draw(w, 4), ERR_IO, draw(w, 2));
    begin(w);
    if (mishap == 2)
        return crash_somehow(w), false;
    if (mishap == 3)
        sim_fs_hold(w->sim, true);
    sim_fs_set_process(w->sim, 1);
    enum err err = log_writer_failed(w->writer) ? ERR_IO : log_writer_write(w->writer, NULL);
    for (int tries = 0; err == ERR_NOSPACE && tries < 50; tries++) { /* the sink must come on first */
        ENSURE(w, !sim_fs_has_held(w->sim) || mishap == 3);
        read_some(w, UINT64_MAX);
        store_cursor(w);
        prepare(w, 100);
        sim_fs_set_process(w->sim, 1);
        err = log_writer_write(w->writer, NULL);
    }
    sim_fs_set_process(w->sim, 0);
    if (err == ERR_IO) {
        ENSURE(w, mishap == 1 || log_writer_failed(w->writer));
        ENSURE(w, log_writer_room(w->writer, LOG_ROOM_CONTROL) == 0);
        return restart_broker(w, (enum stop)draw(w, 3)), false;
    }
    ENSURE(w, err == ERR_OK);
    if (mishap == 3) { /* under way: the reader must not see it */
        ENSURE(w, read_some(w, UINT64_MAX) == ERR_AGAIN);
        if (draw(w, 2))
            return crash_somehow(w), false;
        sim_fs_complete(w->sim);
        sim_fs_hold(w->sim, false);
    }
    if (mishap == 4)
        return crash_somehow(w), false;
    finish(w);
    if (mishap == 1) {
        sim_fs_fail(w->sim, 0, 0, ERR_OK, false);
        if (log_writer_failed(w->writer))
            return restart_broker(w, (enum stop)draw(w, 3)), false;
    }
    return true;
}

static void idle(struct world *w)
{
    int64_t wait_ns;
    w->now_ns += 1000000000;
    ENSURE(w, log_writer_idle(w->writer, &wait_ns, w->now_ns) == ERR_OK);
    ENSURE(w, wait_ns == 0);
}

static void step(struct world *w)
{
    uint64_t what = draw(w, 100);
    bool room = log_writer_room(w->writer, LOG_ROOM_PUBLISH) > 4 * SEGMENT_SIZE / 2;
    if (what < 60 && room && w->queue_count < QUEUE_MAX - 8 && w->begun < RECORDS_MAX - 20000) {
        struct shard *shard = &w->shards[draw(w, SHARDS)];
        if (shard->group_bytes || draw(w, 40) == 0)
            shard_large(w, shard);
        for (uint64_t i = draw(w, 20); i > 0 && w->queue_count < QUEUE_MAX - 4; i--)
            shard_small(w, shard);
    } else if (what < 80) {
        for (int i = 0; i < SHARDS; i++)
            enqueue(w, &w->shards[i]);
        commit(w, false);
    } else if (what < 88) {
        enum err err = read_some(w, 1 + draw(w, 300));
        ENSURE(w, err == ERR_OK || err == ERR_AGAIN);
        if (draw(w, 2))
            store_cursor(w);
    } else if (what < 96) {
        prepare(w, draw(w, 4));
    } else if (what < 98) {
        if (draw(w, 3) == 0)
            sim_fs_kill_process(w->sim, 2);
        stop_reader(w);
    } else if (what == 98 && draw(w, 4) == 0) {
        restart_broker(w, (enum stop)draw(w, 3));
        if (draw(w, 2))
            restart_broker(w, STOP_POWER);
    } else {
        idle(w);
    }
}

/* All that is queued goes to disk, all that is durable is read. */
static void settle(struct world *w)
{
    for (int i = 0; i < SHARDS; i++)
        enqueue(w, &w->shards[i]);
    ENSURE(w, commit(w, true));
    idle(w);
    ENSURE(w, read_some(w, UINT64_MAX) == ERR_AGAIN);
    ENSURE(w, w->read == w->durable);
}

/* A bit anywhere in the log flips: whatever is given out afterwards is right, and recovery is not fooled. */
static void flip(struct world *w)
{
    char path[64];
    struct log_reader *reader;
    struct log_reader_item item;
    struct log_recovery recovery;
    const uint8_t *data;
    uint64_t size, generation = log_writer_durable_end(w->writer).place.generation;
    uint64_t durable = w->durable;
    generation -= draw(w, generation < 3 ? generation : 3);
    snprintf(path, sizeof path, "log/%016llx.seg", (unsigned long long)generation);
    stop_reader(w);
    stop_broker(w);
    if (sim_fs_contents(w->sim, path, &data, &size) == ERR_OK)
        ENSURE(w, sim_fs_flip_bit(w->sim, path, draw(w, size * 8)) == ERR_OK);
    ENSURE(w, log_reader_open(&reader, sim_fs_fs(w->sim), dir, NULL, NULL) == ERR_OK);
    uint64_t last = 0;
    enum err err;
    for (;;) {
        err = log_reader_next(reader, &item, NULL);
        if (err == ERR_GAP) {
            log_reader_accept_gap(reader);
            continue;
        }
        if (err)
            break;
        ENSURE(w, item.position.sequence > last);
        last = item.position.sequence;
        ENSURE(w, last < durable);
        ENSURE(w, item.position.epoch == w->records[last].epoch);
        check_record(w, item.bytes, w->records[last].id);
    }
    ENSURE(w, err == ERR_AGAIN || err == ERR_CORRUPT || err == ERR_VERSION);
    ENSURE(w, err != ERR_AGAIN || last == durable - 1 || durable == 1 || last == 0);
    log_reader_close(reader);
    struct log_recovery_options options = {.from = {1, 0}};
    enum err recovered = log_recovery_run(&recovery, sim_fs_fs(w->sim), dir, &options, NULL);
    if (recovered == ERR_OK)
        ENSURE(w, recovery.end.position.sequence == durable);
    else
        ENSURE(w, recovered == ERR_CORRUPT || recovered == ERR_VERSION);
}

static void run_seed(uint64_t seed)
{
    struct world *w = (struct world *)calloc(1, sizeof *w);
    w->seed = seed;
    w->sim = sim_fs_new(seed, seed % 3 ? 512 : 4096);
    w->records = (struct model_record *)calloc(RECORDS_MAX, sizeof *w->records);
    w->durable = w->begun = 1;
    sim_fs_refuse_direct(w->sim, seed % 5 == 0);
    start_broker(w);
    uint64_t steps = 200 + draw(w, 800);
    for (uint64_t i = 0; i < steps; i++)
        step(w);
    settle(w);
    restart_broker(w, STOP_POWER);
    settle(w);
    bool broken = draw(w, 2);
    if (broken) {
        flip(w);
    } else {
        stop_reader(w);
        stop_broker(w);
    }
    if (getenv("VERBOSE"))
        printf("seed %llu: %llu records, %llu starts, %llu torn, %llu groups\n", (unsigned long long)seed, (unsigned long long)w->durable,
               (unsigned long long)w->restarts, (unsigned long long)w->torn, (unsigned long long)w->groups);
    sim_fs_free(w->sim);
    free(w->records);
    free(w);
}

static void test_random_runs(void **state)
{
    (void)state;
    const char *seed = getenv("SEED"), *seeds = getenv("SEEDS");
    if (seed) {
        run_seed(strtoull(seed, NULL, 10));
        return;
    }
    uint64_t count = seeds ? strtoull(seeds, NULL, 10) : 60;
    for (uint64_t i = 1; i <= count; i++)
        run_seed(i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_runs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
