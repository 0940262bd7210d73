/* One life of the broker: shards, the route actor and the log thread, as actors that meet over bounded rings.
 *
 * Each ring is FIFO and bounded; which ring is served next is drawn. The log thread's write has two steps, so that a crash may fall between
 * the write and its completion. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "broker/core/deliver.h"
#include "broker/core/msg.h"
#include "broker/core/route_actor.h"
#include "broker/core/shard.h"
#include "broker/core/shard_stats.h"
#include "broker/route/topic_tree.h"
#include "broker/telemetry/rule.h"
#include "common/check.h"
#include "common/log_writer.h"
#include "tests/sim/sim.h"

#define SIM_LOG_DIR "log"
#define RING_CAPACITY_MAX 64
#define BATCH_MAX 32
#define ROOM_LOW(config) ((config)->segment_size / 3) /* bytes of log room below which publishers are told to wait */

struct sim_ring {
    struct op ops[RING_CAPACITY_MAX];
    uint32_t first, count;
};

struct sim_broker {
    struct sim *sim;
    struct topic_tree *tree;
    struct rule_table rules;
    struct shard *shards[SIM_SHARDS_MAX];
    struct log_block_pool pools[SIM_SHARDS_MAX];
    bool pool_open[SIM_SHARDS_MAX];
    struct route_actor *route;
    struct log_writer *writer;
    struct sim_ring *rings; /* [from][to] of node numbers */
    struct shard_listener listener;
    _Atomic uint64_t retained_counter;
    struct log_block *collected[BATCH_MAX * 4];
    size_t collected_count;
    size_t writing;                                                /* blocks of the batch that is under way: the first ones of collected */
    enum { LOG_IDLE, LOG_BEGUN, LOG_WRITTEN, LOG_FINISHED } stage; /* BEGUN: the disk was full, to be written again */
    bool room_said;                                                /* what the shards were told last */
    bool log_failed;
    struct route_io route_io;
};

/* Shards, route, log, store: small numbers for the ring table. */
#define NODE_ROUTE SIM_SHARDS_MAX
#define NODE_LOG (SIM_SHARDS_MAX + 1)
#define NODE_STORE (SIM_SHARDS_MAX + 2)
#define NODE_COUNT SIM_NODES

static unsigned node_of(actor_id id)
{
    if (id == ACTOR_ROUTE)
        return NODE_ROUTE;
    if (id == ACTOR_LOG)
        return NODE_LOG;
    if (id == ACTOR_STORE)
        return NODE_STORE;
    CHECK(id < SIM_SHARDS_MAX);
    return id;
}

static struct sim_ring *ring_of(struct sim_broker *broker, unsigned from, unsigned to) { return &broker->rings[from * NODE_COUNT + to]; }

static bool ring_push(struct sim_broker *broker, unsigned from, unsigned to, const struct op *op, bool reserve)
{
    struct sim_ring *ring = ring_of(broker, from, to);
    uint32_t capacity = broker->sim->config.ring_capacity;
    if (ring->count >= (reserve ? capacity : capacity - capacity / 4))
        return false;
    ring->ops[(ring->first + ring->count++) % RING_CAPACITY_MAX] = *op;
    broker->sim->progress++;
    return true;
}

static struct op ring_pop(struct sim_ring *ring)
{
    struct op op = ring->ops[ring->first];
    ring->first = (ring->first + 1) % RING_CAPACITY_MAX;
    ring->count--;
    return op;
}

/* --- what a shard asks of its surroundings
 * ------------------------------------------------------------------------------------------------ */

static ssize_t on_write(void *io, void *arg, const struct iovec *iov, int iov_count)
{
    struct sim *sim = io;
    struct sim_conn *conn = arg;
    ssize_t taken = 0;
    if (conn->broken || (!conn->client && !conn->ghost))
        return -1;
    for (int i = 0; i < iov_count; i++) {
        size_t room = conn->down.size < conn->room ? conn->room - conn->down.size : 0;
        size_t size = iov[i].iov_len < room ? iov[i].iov_len : room;
        if (!conn->ghost)
            sim_pipe_put(&conn->down, iov[i].iov_base, size);
        taken += (ssize_t)size;
        if (size < iov[i].iov_len) {
            conn->wants_writable = true;
            break;
        }
    }
    sim->progress++;
    return taken;
}

static void on_read_pause(void *io, void *arg, bool paused)
{
    (void)io;
    struct sim_conn *conn = arg;
    conn->paused = paused;
}

static void on_close(void *io, void *arg, uint32_t linger_ms)
{
    struct sim *sim = io;
    struct sim_conn *conn = arg;
    (void)linger_ms;
    /* Nothing else ends a connection that has said DISCONNECT, is heard, keeps within its quota, and whose log works. */
    if (conn->client && conn->client->closing && conn->client->will && !conn->client->has_keep_alive && !sim->broker->log_failed &&
        (conn->client->version < MQTT_V5 || conn->client->flow_count <= sim->broker->listener.receive_maximum))
        sim->ledger.messages[conn->client->will - 1].cancelled = true;
    conn->core = NULL;
    conn->broker_open = false;
    sim->progress++;
}

static bool on_post(void *io, actor_id to, const struct op *op, bool reserve)
{
    struct sim *sim = io;
    return ring_push(sim->broker, node_of(op->from), node_of(to), op, reserve);
}

static uint64_t on_random(void *io)
{
    struct sim *sim = io;
    return check_random_next(&sim->random);
}

static const struct shard_io shard_io = {
    .write = on_write, .read_pause = on_read_pause, .close = on_close, .post = on_post, .random = on_random};

static bool route_post(void *io, actor_id to, const struct op *op)
{
    struct sim_broker *broker = io;
    return ring_push(broker, NODE_ROUTE, node_of(to), op, true);
}

/* --- life
 * --------------------------------------------------------------------------------------------------------------------------------- */

static bool open_log(struct sim *sim, struct sim_broker *broker)
{
    struct errmsg msg = {""};
    struct log_recovery recovery;
    struct log_writer_options options = {
        .fs = sim_fs_fs(sim->fs),
        .dir = SIM_LOG_DIR,
        .segment_size = sim->config.segment_size,
        .log_bytes_max = 4 * (uint64_t)sim->config.segment_size,
        .alignment = sim->config.alignment,
        .wall_ns = sim->wall,
    };
    sim_fs_set_process(sim->fs, 1);
    /* A start whose first sync fails, a start, a power loss: what the second accepted must be there. */
    if (!sim->calm && sim->config.disk_faults && sim->config.power_faults && sim_chance(sim, 1, 4)) {
        sim_fs_fail(sim->fs, SIM_FS_SYNC, 1, ERR_IO, false);
        sim->power_loss_step = sim->step + 1 + sim_below(sim, 300);
    }
    enum err err = log_writer_open(&broker->writer, &options, &recovery, &msg);
    if (!err)
        err = log_writer_ensure_cursor(broker->writer, "sink", &msg);
    if (err && sim->calm)
        sim_found(sim, "the broker does not start on a healthy disk: %s: %s", err_text(err), msg.text);
    if (err == ERR_CORRUPT || err == ERR_VERSION)
        sim_found(sim, "the log is taken for damaged, and only crashes happened: %s: %s", err_text(err), msg.text);
    sim_trace(sim, "the log opens: %s %s", err_text(err), msg.text);
    return err == ERR_OK;
}

static void set_config(struct sim *sim, struct sim_broker *broker, struct shard_config *config, uint16_t index)
{
    *config = (struct shard_config){
        .index = index,
        .shard_count = sim->config.shard_count,
        .hash_key = sim->seed * 0x9e3779b97f4a7c15,
        .limits = {.session_queue_messages_max = 100000,
                   .session_queue_bytes_max = 1 << 30,
                   .inflight_max = 5,
                   .outbox_bytes_max = 1 << 20,
                   .outboxes_bytes_max = 1 << 24,
                   .record_bytes_max = RECORD_SIZE_MAX,
                   .partial_bytes_max = 1 << 20,
                   .connect_timeout_ms = 10000,
                   .session_expiry_max_s = UINT32_MAX,
                   .sessions_max = 1000,
                   .publishes_per_turn_max = 4,
                   .allow_zero_length_clientid = true,
                   .receive_maximum_strict = true},
        .listeners = &broker->listener,
        .listener_count = 1,
        .rules = &broker->rules,
        .retained_counter = &broker->retained_counter,
        .epoch = log_writer_epoch(broker->writer),
        .persistence = true,
    };
}

static bool make_actors(struct sim *sim, struct sim_broker *broker)
{
    struct route_limits limits = {.retained_messages_max = 1000, .retained_bytes_max = 1 << 20, .tree_bytes_max = 1 << 30, .scan_slice = 2};
    broker->route_io.post = route_post;
    broker->tree = topic_tree_new(sim->seed);
    CHECK(broker->tree);
    broker->route =
        route_actor_new(broker->tree, &broker->retained_counter, sim->seed, sim->config.shard_count, &limits, &broker->route_io, broker);
    CHECK(broker->route);
    for (uint16_t i = 0; i < sim->config.shard_count; i++) {
        struct shard_config config;
        set_config(sim, broker, &config, i);
        enum err err = log_block_pool_init(&broker->pools[i], i, sim->config.block_count, sim->config.block_body,
                                           log_writer_alignment(broker->writer));
        CHECK(err == ERR_OK);
        broker->pool_open[i] = true;
        broker->shards[i] = shard_new(&config, broker->tree, &broker->pools[i], &shard_io, sim);
        CHECK(broker->shards[i]);
    }
    return true;
}

bool sim_broker_start(struct sim *sim)
{
    struct sim_broker *broker = calloc(1, sizeof *broker);
    CHECK(broker);
    broker->sim = sim;
    broker->room_said = true;
    broker->listener = (struct shard_listener){.allow_anonymous = true,
                                               .max_packet_size = 1 << 20,
                                               .receive_maximum = 6,
                                               .topic_alias_maximum = 4,
                                               .max_qos = 2,
                                               .retain_available = true};
    broker->rules.partition_count = sim->config.partition_count;
    enum err err = rule_table_add(&broker->rules, "fleet/{device}/telemetry", false, 1, NULL);
    CHECK(err == ERR_OK);
    broker->rings = calloc(SIM_RINGS, sizeof *broker->rings);
    CHECK(broker->rings);
    sim->broker = broker;
    sim->incarnation++;
    if (open_log(sim, broker))
        return make_actors(sim, broker);
    sim_broker_die(sim, false);
    return false;
}

/* What a ring held when the process died: memory only, but the simulator itself goes on. */
static void drop_op(const struct op *op)
{
    switch ((int)op->type) {
    case OP_DELIVER:
        delivery_free(op->delivery);
        return;
    case OP_ROUTE_REQUEST:
    case OP_ROUTE_REPLY:
        route_request_free(op->request);
        return;
    case OP_ROUTE_RETAIN:
    case OP_ROUTE_RETAINED:
        msg_unref(op->retain.msg);
        return;
    case OP_RETAINED_VALUE:
        msg_unref(op->retained.msg);
        return;
    default:
        return;
    }
}

/* All blocks go back to their pools, wherever they are. */
static void return_blocks(struct sim_broker *broker)
{
    for (size_t i = 0; i < broker->collected_count; i++)
        log_block_pool_put(&broker->pools[broker->collected[i]->shard], broker->collected[i]);
    for (unsigned from = 0; from < NODE_COUNT; from++)
        for (unsigned to = 0; to < NODE_COUNT; to++)
            for (struct sim_ring *ring = ring_of(broker, from, to); ring->count;) {
                struct op op = ring_pop(ring);
                if (op.type == OP_LOG_BLOCK)
                    log_block_pool_put(&broker->pools[from], op.block);
                for (struct log_block *block = op.type == OP_LOG_DURABLE ? op.durable.blocks : NULL, *next; block; block = next) {
                    next = block->next;
                    log_block_pool_put(&broker->pools[to], block);
                }
                drop_op(&op);
            }
}

void sim_broker_die(struct sim *sim, bool power)
{
    struct sim_broker *broker = sim->broker;
    (void)power;
    for (struct sim_conn *conn = sim->conns; conn; conn = conn->next) {
        sim_conn_reset(sim, conn);
        conn->broker_open = false;
        conn->core = NULL;
    }
    sim_fs_kill_process(sim->fs, 1);
    return_blocks(broker);
    for (uint16_t i = 0; i < sim->config.shard_count; i++) {
        if (broker->shards[i])
            shard_free(broker->shards[i]);
        if (broker->pool_open[i])
            log_block_pool_deinit(&broker->pools[i]);
    }
    route_actor_free(broker->route);
    topic_tree_free(broker->tree);
    if (broker->writer)
        log_writer_close(broker->writer);
    rule_table_deinit(&broker->rules);
    free(broker->rings);
    free(broker);
    sim->broker = NULL;
    sim_conn_reap(sim);
}

/* --- the log thread
 * ----------------------------------------------------------------------------------------------------------------------- */

static void log_fail(struct sim_broker *broker, const char *what)
{
    broker->log_failed = true;
    sim_trace(broker->sim, "the log fails: %s", what);
    for (uint16_t i = 0; i < broker->sim->config.shard_count; i++)
        ring_push(broker, NODE_LOG, i, &(struct op){.type = OP_LOG_FAILED, .from = ACTOR_LOG}, true);
}

static void log_say_room(struct sim_broker *broker)
{
    bool room = log_writer_room(broker->writer, LOG_ROOM_PUBLISH) > ROOM_LOW(&broker->sim->config);
    if (room == broker->room_said)
        return;
    for (uint16_t i = 0; i < broker->sim->config.shard_count; i++)
        if (ring_of(broker, NODE_LOG, i)->count >= broker->sim->config.ring_capacity)
            return; /* another time */
    for (uint16_t i = 0; i < broker->sim->config.shard_count; i++)
        ring_push(broker, NODE_LOG, i, &(struct op){.type = OP_LOG_ROOM, .flag = room, .from = ACTOR_LOG}, true);
    broker->room_said = room;
}

/* Notices to the shards; false while a ring is full. The blocks go back with them. */
static bool log_notify(struct sim_broker *broker)
{
    struct sim *sim = broker->sim;
    for (uint16_t i = 0; i < sim->config.shard_count; i++)
        if (ring_of(broker, NODE_LOG, i)->count >= sim->config.ring_capacity)
            return false;
    for (uint16_t i = 0; i < sim->config.shard_count; i++) {
        struct op op = {
            .type = OP_LOG_DURABLE, .from = ACTOR_LOG, .durable = {.durable_blocks = log_writer_durable_blocks(broker->writer, i)}};
        for (size_t k = broker->writing; k-- > 0;) {
            struct log_block *block = broker->collected[k];
            if (block->shard != i)
                continue;
            block->next = op.durable.blocks;
            op.durable.blocks = block;
            op.durable.first_sequence = block->first.sequence;
        }
        if (op.durable.blocks)
            ring_push(broker, NODE_LOG, i, &op, true);
    }
    memmove(broker->collected, broker->collected + broker->writing,
            (broker->collected_count - broker->writing) * sizeof *broker->collected);
    broker->collected_count -= broker->writing;
    broker->writing = 0;
    broker->stage = LOG_IDLE;
    return true;
}

static bool is_starved(const struct sim_broker *broker, unsigned from, unsigned to)
{
    return broker->sim->starved == from * NODE_COUNT + to;
}

static bool log_collect(struct sim_broker *broker)
{
    size_t before = broker->collected_count;
    for (uint16_t i = 0; i < broker->sim->config.shard_count; i++)
        for (struct sim_ring *ring = ring_of(broker, i, NODE_LOG);
             ring->count && !is_starved(broker, i, NODE_LOG) &&
             broker->collected_count < sizeof broker->collected / sizeof *broker->collected && !sim_chance(broker->sim, 1, 8);)
            broker->collected[broker->collected_count++] = ring_pop(ring).block;
    return broker->collected_count > before;
}

static bool log_write(struct sim_broker *broker)
{
    struct errmsg msg = {""};
    sim_fs_hold(broker->sim->fs, true);
    enum err err = log_writer_write(broker->writer, &msg);
    sim_fs_hold(broker->sim->fs, false);
    if (err == ERR_NOSPACE) {
        err = log_writer_prepare(broker->writer, &msg);
        return err == ERR_AGAIN; /* nothing is lost: again when there is space */
    }
    if (err)
        log_fail(broker, msg.text);
    else
        broker->stage = LOG_WRITTEN;
    broker->sim->progress++;
    return true;
}

static bool log_idle(struct sim_broker *broker)
{
    struct errmsg msg = {""};
    int64_t wait_ns = 0;
    enum err prepared = log_writer_prepare(broker->writer, &msg);
    enum err idle = log_writer_idle(broker->writer, &wait_ns, broker->sim->mono);
    if ((prepared && prepared != ERR_AGAIN && prepared != ERR_NOSPACE) || idle) {
        log_fail(broker, msg.text);
        return true;
    }
    return prepared == ERR_AGAIN || wait_ns > 0;
}

/* One step of the log thread. False when it has nothing to do. */
static bool log_step(struct sim_broker *broker)
{
    struct sim *sim = broker->sim;
    sim_fs_set_process(sim->fs, 1);
    if (broker->log_failed)
        return false;
    log_say_room(broker);
    switch (broker->stage) {
    case LOG_IDLE:
        if (!log_collect(broker) && broker->collected_count == 0)
            return log_idle(broker);
        broker->writing = broker->collected_count < BATCH_MAX ? broker->collected_count : BATCH_MAX;
        if (sim_chance(sim, 1, 2))
            broker->writing = 1 + sim_below(sim, broker->writing);
        for (uint64_t bytes = broker->collected[0]->size, i = 1; i < broker->writing; i++) {
            bytes += broker->collected[i]->size;
            if (bytes > log_writer_batch_bytes_max(broker->writer))
                broker->writing = i;
        }
        log_writer_begin(broker->writer, broker->collected, broker->writing);
        broker->stage = LOG_BEGUN;
        return log_write(broker);
    case LOG_BEGUN:
        return log_write(broker);
    case LOG_WRITTEN:
        sim_fs_complete(sim->fs);
        if (log_writer_finish(broker->writer, sim->mono))
            log_fail(broker, "finish");
        else
            broker->stage = LOG_FINISHED;
        return true;
    case LOG_FINISHED:
        return log_notify(broker);
    }
    UNREACHABLE();
}

/* --- one thing that happens
 * --------------------------------------------------------------------------------------------------------------- */

static struct shard *shard_begin(struct sim_broker *broker, unsigned index)
{
    shard_turn_begin(broker->shards[index], broker->sim->mono, broker->sim->wall);
    return broker->shards[index];
}

/* The route actor's and the store's side of their rings. */
static bool serve_actor(struct sim_broker *broker, unsigned node)
{
    struct sim *sim = broker->sim;
    bool served = false;
    for (uint16_t i = 0; i < sim->config.shard_count; i++) {
        struct sim_ring *ring = ring_of(broker, i, node);
        for (uint64_t count = ring->count && !is_starved(broker, i, node) ? 1 + sim_below(sim, ring->count) : 0; count; count--) {
            struct op op = ring_pop(ring);
            if (node == NODE_ROUTE)
                route_actor_on_op(broker->route, &op);
            else
                CHECK(op.type == OP_STORE_PASSED); /* no checkpoint is announced: nothing is let go, nothing read */
            served = true;
        }
    }
    uint64_t before = sim->progress;
    if (node == NODE_ROUTE)
        route_actor_work(broker->route, sim->wall);
    return served || sim->progress != before;
}

/* A connection whose home is not known: as soon as its CONNECT is whole it is given to the shard of its client id. */
static bool hand_over(struct sim_broker *broker, struct sim_conn *conn)
{
    struct sim *sim = broker->sim;
    struct frame frame;
    struct span client_id;
    enum frame_result result = frame_parse(&frame, conn->up.bytes, conn->up.size, broker->listener.max_packet_size);
    if (result == FRAME_BAD)
        conn->broker_open = false;
    if (result != FRAME_OK)
        return false;
    actor_id home = packet_peek_client_id(&client_id, &frame, conn->up.bytes)
                        ? shard_home(sim->seed * 0x9e3779b97f4a7c15, sim->config.shard_count, client_id)
                        : (actor_id)sim_below(sim, sim->config.shard_count);
    struct client_origin origin = {.peer = SPAN_LITERAL("127.0.0.1:1"), .accepted_mono_ns = sim->mono};
    struct shard *shard = shard_begin(broker, home);
    conn->shard = shard;
    conn->core = shard_open(shard, conn, &origin);
    CHECK(conn->core);
    shard_turn_end(shard);
    return true;
}

static unsigned shard_index(const struct sim_broker *broker, const struct shard *shard)
{
    for (unsigned i = 0; i < SIM_SHARDS_MAX; i++)
        if (broker->shards[i] == shard)
            return i;
    UNREACHABLE();
}

/* One socket's events within a turn of its shard. */
static bool serve_conn(struct sim *sim, struct sim_conn *conn)
{
    bool served = false;
    if (conn->core && conn->wants_writable && conn->down.size < conn->room && !conn->broken) {
        conn->wants_writable = false;
        shard_on_writable(conn->shard, conn->core);
        served = true;
    }
    if (conn->core && !conn->paused && conn->up.size) {
        size_t size = sim_chance(sim, 1, 2) ? conn->up.size : 1 + sim_below(sim, conn->up.size);
        struct sim_pipe taken = {0};
        sim_pipe_put(&taken, conn->up.bytes, size);
        sim_pipe_drop(&conn->up, size);
        shard_on_bytes(conn->shard, conn->core, taken.bytes, size);
        free(taken.bytes);
        served = true;
    }
    if (conn->core && conn->broken && (!conn->up.size || sim_chance(sim, 1, 2))) {
        struct client *core = conn->core;
        conn->core = NULL;
        conn->broker_open = false;
        shard_on_closed(conn->shard, core, "reset");
        served = true;
    }
    return served;
}

/* A turn of one shard: some ops of each ring, some sockets, its timers. */
static bool serve_shard(struct sim_broker *broker, unsigned index)
{
    struct sim *sim = broker->sim;
    bool served = shard_next_turn_ns(broker->shards[index]) <= sim->mono;
    struct shard *shard = shard_begin(broker, index);
    for (unsigned from = 0; from < NODE_COUNT; from++) {
        struct sim_ring *ring = ring_of(broker, from, index);
        for (uint64_t count = ring->count && !is_starved(broker, from, index) ? sim_below(sim, ring->count + 1) : 0; count; count--) {
            struct op op = ring_pop(ring);
            shard_on_op(shard, &op);
            served = true;
        }
    }
    for (struct sim_conn *conn = sim->conns; conn; conn = conn->next)
        if (conn->broker_open && conn->core && conn->shard == shard && sim_chance(sim, 2, 3))
            served |= serve_conn(sim, conn);
    shard_turn_end(shard);
    CHECK(shard_index(broker, shard) == index);
    if (served)
        sim->progress++;
    return served;
}

static bool rings_are_empty(const struct sim_broker *broker)
{
    for (unsigned i = 0; i < SIM_RINGS; i++)
        if (broker->rings[i].count)
            return false;
    return true;
}

bool sim_broker_step(struct sim *sim)
{
    struct sim_broker *broker = sim->broker;
    for (struct sim_conn *conn = sim->conns; conn; conn = conn->next) {
        if (conn->broker_open && !conn->core && !conn->shard && !conn->broken && sim_chance(sim, 1, 2) && hand_over(broker, conn))
            return true;
        if (conn->broker_open && !conn->core && conn->broken)
            conn->broker_open = false;
    }
    unsigned node = (unsigned)sim_below(sim, NODE_COUNT);
    bool served = node == NODE_LOG                           ? log_step(broker)
                  : node == NODE_ROUTE || node == NODE_STORE ? serve_actor(broker, node)
                  : node < sim->config.shard_count           ? serve_shard(broker, node)
                                                             : false;
    sim_conn_reap(sim);
    if (served && rings_are_empty(broker))
        sim_broker_check_books(sim);
    return served;
}

bool sim_broker_failed(struct sim *sim) { return sim->broker->log_failed; }

bool sim_broker_is_quiet(struct sim *sim)
{
    struct sim_broker *broker = sim->broker;
    if (!rings_are_empty(broker))
        return false;
    for (struct sim_conn *conn = sim->conns; conn; conn = conn->next)
        if (conn->up.size || conn->down.size || conn->wants_writable)
            return false;
    return broker->collected_count == 0 && !broker->log_failed;
}

void sim_broker_describe(struct sim *sim)
{
    const struct sim_broker *broker = sim->broker;
    for (unsigned from = 0; from < NODE_COUNT; from++)
        for (unsigned to = 0; to < NODE_COUNT; to++)
            if (broker->rings[from * NODE_COUNT + to].count)
                printf("  ring %u -> %u: %u ops, the first of type %d\n", from, to, broker->rings[from * NODE_COUNT + to].count,
                       broker->rings[from * NODE_COUNT + to].ops[broker->rings[from * NODE_COUNT + to].first].type);
    for (const struct sim_conn *conn = sim->conns; conn; conn = conn->next)
        if (conn->up.size || conn->down.size || conn->paused)
            printf("  %s: %zu bytes up, %zu down%s%s\n", conn->client ? conn->client->id : "(gone)", conn->up.size, conn->down.size,
                   conn->paused ? ", not read" : "", conn->core ? "" : ", not at home");
    printf("  log: stage %d, %zu blocks collected, room %lu, said %d\n", broker->stage, broker->collected_count,
           (unsigned long)log_writer_room(broker->writer, LOG_ROOM_PUBLISH), broker->room_said);
}

void sim_broker_check_books(struct sim *sim)
{
    struct errmsg msg = {""};
    const struct shard_stats *stats[SIM_SHARDS_MAX];
    for (uint16_t i = 0; i < sim->config.shard_count; i++)
        stats[i] = shard_get_stats(sim->broker->shards[i]);
    if (!shard_stats_check(stats, sim->config.shard_count, &msg))
        sim_found(sim, "the books do not balance: %s", msg.text);
}
