/* One life of the broker: shards, the route actor, the log thread and the store, as actors that meet over bounded rings.
 *
 * Each ring is FIFO and bounded; which ring is served next is drawn. The log thread's write has two steps, so that a crash may fall between
 * the write and its completion. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "broker/actor/msg.h"
#include "broker/core/delivery.h"
#include "broker/core/shard_stats.h"
#include "broker/durable/log_room.h"
#include "broker/route/retained.h"
#include "broker/route/route_stats.h"
#include "broker/route/topic_tree.h"
#include "common/check.h"
#include "tests/sim/sim_broker.h"

unsigned sim_node_of(actor_id id)
{
    switch (id) {
    case ACTOR_ROUTE:
        return NODE_ROUTE;
    case ACTOR_LOG:
        return NODE_LOG;
    case ACTOR_STORE:
        return NODE_STORE;
    case ACTOR_READER:
        return NODE_READER;
    default:
        CHECK(id < SIM_SHARDS_MAX);
        return id;
    }
}

struct sim_ring *sim_ring_of(struct sim_broker *broker, unsigned from, unsigned to) { return &broker->rings[from * NODE_COUNT + to]; }

bool sim_ring_push(struct sim_broker *broker, unsigned from, unsigned to, const struct op *op, bool reserve)
{
    struct sim_ring *ring = sim_ring_of(broker, from, to);
    uint32_t capacity = broker->sim->config.ring_capacity;
    if (ring->count >= (reserve ? capacity : capacity - capacity / 4))
        return false;
    ring->ops[(ring->first + ring->count++) % SIM_RING_CAPACITY_MAX] = *op;
    broker->sim->progress++;
    return true;
}

struct op sim_ring_pop(struct sim_ring *ring)
{
    struct op op = ring->ops[ring->first];
    ring->first = (ring->first + 1) % SIM_RING_CAPACITY_MAX;
    ring->count--;
    return op;
}

bool sim_ring_is_starved(const struct sim_broker *broker, unsigned from, unsigned to)
{
    return broker->sim->starved == from * NODE_COUNT + to;
}

unsigned sim_broker_ring_from_shard(struct sim *sim)
{
    unsigned from = (unsigned)sim_below(sim, sim->config.shard_count);
    return from * NODE_COUNT + (sim->config.starves_route || sim_chance(sim, 2, 3) ? NODE_ROUTE : NODE_LOG);
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
    /* Nothing else ends a connection that has said DISCONNECT, is heard, keeps within its quota, has nothing refused, and whose log works.
     */
    if (conn->client && conn->client->closing && conn->client->will && !conn->client->has_keep_alive && !sim->broker->log_failed &&
        !(sim->config.is_bounded && sim->config.queue_policy == QUEUE_REFUSE) &&
        (conn->client->version < MQTT_V5 || conn->client->flow_count <= sim->broker->listener.receive_maximum))
        sim->ledger.messages[conn->client->will - 1].cancelled = true;
    conn->core = NULL;
    conn->broker_open = false;
    sim->progress++;
}

static bool on_post(void *io, actor_id to, const struct op *op, bool reserve)
{
    struct sim *sim = io;
    return sim_ring_push(sim->broker, sim_node_of(op->from), sim_node_of(to), op, reserve);
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
    return sim_ring_push(broker, NODE_ROUTE, sim_node_of(to), op, true);
}

/* --- life
 * --------------------------------------------------------------------------------------------------------------------------------- */

static void set_config(struct sim *sim, struct sim_broker *broker, struct shard_config *config, uint16_t index)
{
    const struct sim_config *drawn = &sim->config;
    *config = (struct shard_config){
        .index = index,
        .shard_count = sim->shard_count,
        .hash_key = broker->hash_key,
        .limits = {.session_queue_messages_max = drawn->queue_messages_max,
                   .session_queue_bytes_max = drawn->queue_bytes_max,
                   .queue_age_max_ns = drawn->queue_age_max_ns,
                   .queue_policy = drawn->queue_policy,
                   .inflight_max = drawn->inflight_max,
                   .outbox_bytes_max = 1 << 20,
                   .outboxes_bytes_max = 1 << 24,
                   .record_bytes_max = RECORD_SIZE_MAX,
                   .partial_bytes_max = 1 << 20,
                   .connect_timeout_ms = 10000,
                   .session_expiry_max_s = drawn->expiry_max_s,
                   .sessions_max = 1000,
                   .wills_per_s = drawn->wills_per_s,
                   .will_restart_grace_ms = drawn->grace_ms,
                   .publishes_per_turn_max = 4,
                   .queue_qos0_messages = drawn->queue_qos0,
                   .allow_zero_length_clientid = true,
                   .receive_maximum_strict = true},
        .listeners = &broker->listener,
        .listener_count = 1,
        .rules = drawn->persistence ? &broker->rules : NULL,
        .tiers = &broker->tiers,
        .queue_totals = &broker->totals,
        .retained_counter = &broker->retained_counter,
        .retained = route_actor_retained(broker->route),
        .steady_offset_ns = broker->steady_offset_ns,
        .epoch = drawn->persistence ? log_writer_epoch(broker->writer) : 0,
        .persistence = drawn->persistence,
    };
}

static struct shard *make_shard(struct sim *sim, struct sim_broker *broker, uint16_t index)
{
    struct shard_config config;
    struct log_block_pool *pool = sim->config.persistence ? &broker->pools[index] : NULL;
    set_config(sim, broker, &config, index);
    if (pool) {
        enum err err =
            log_block_pool_init(pool, index, sim->config.block_count, sim->config.block_body, log_writer_alignment(broker->writer));
        CHECK(err == ERR_OK);
        broker->pool_open[index] = true;
    }
    return shard_new(&config, broker->tree, pool, &shard_io, sim);
}

static void make_actors(struct sim *sim, struct sim_broker *broker)
{
    struct route_limits limits = {.retained_messages_max = sim->config.retained_max,
                                  .retained_bytes_max = 1 << 20,
                                  .retained_on_disk = sim->config.persistence,
                                  .retained_cache_bytes_max = sim_below(sim, 4096),
                                  .tree_bytes_max = 1 << 30,
                                  .scan_slice = 2};
    broker->steady_offset_ns = sim->wall - sim->mono;
    if (sim->config.persistence) {
        struct checkpoint_state state = checkpoint_state(broker->durable.checkpoint);
        broker->retained_counter = state.retained_number_max;
        broker->steady_offset_ns = recovery_steady_ns(&state, sim->wall) - sim->mono;
    }
    broker->route_io.post = route_post;
    broker->tree = topic_tree_new(broker->hash_key);
    CHECK(broker->tree);
    broker->route =
        route_actor_new(broker->tree, &broker->retained_counter, broker->hash_key, sim->shard_count, &limits, &broker->route_io, broker);
    CHECK(broker->route);
    for (uint16_t i = 0; i < sim->shard_count; i++) {
        broker->shards[i] = make_shard(sim, broker, i);
        CHECK(broker->shards[i]);
    }
}

bool sim_topic_is_memory(const struct sim *sim, enum sim_kind kind, uint8_t device)
{
    return !sim->config.persistence || (sim->config.has_memory_tier && (kind == SIM_COMMAND ? device == 0 : device == 1));
}

static void set_tables(struct sim *sim, struct sim_broker *broker)
{
    enum err err = rule_table_add(&broker->rules, "fleet/{device}/telemetry", false, 1, NULL);
    CHECK(err == ERR_OK);
    broker->rules.partition_count = sim->config.partition_count;
    if (!sim->config.has_memory_tier)
        return;
    err = tier_table_add(&broker->tiers, "cmd/dev0 memory", 1, NULL);
    CHECK(err == ERR_OK);
    err = tier_table_add(&broker->tiers, "fleet/dev1/# memory", 2, NULL);
    CHECK(err == ERR_OK);
}

bool sim_broker_start(struct sim *sim)
{
    struct sim_broker *broker = calloc(1, sizeof *broker);
    CHECK(broker);
    broker->sim = sim;
    broker->room_said = true;
    broker->hash_key = sim->seed * 0x9e3779b97f4a7c15 + sim->incarnation;
    /* A start may find a lower bound, or a higher one. */
    if (sim->incarnation > 0 && sim->config.totals_messages_max != UINT32_MAX && sim_chance(sim, 1, 2))
        sim->config.totals_messages_max = (uint32_t)(5 + sim_below(sim, 50));
    broker->totals.messages_max = sim->config.totals_messages_max;
    broker->totals.bytes_max = UINT64_MAX;
    broker->listener = (struct shard_listener){.allow_anonymous = true,
                                               .max_packet_size = 1 << 20,
                                               .receive_maximum = 6,
                                               .topic_alias_maximum = 4,
                                               .max_qos = 2,
                                               .retain_available = true};
    set_tables(sim, broker);
    broker->rings = calloc(SIM_RINGS, sizeof *broker->rings);
    CHECK(broker->rings);
    sim->broker = broker;
    sim->incarnation++;
    sim->shard_count = (uint16_t)(1 + sim_below(sim, sim->config.shard_count));
    if (sim->incarnation > 1 && !sim->calm && sim->config.wall_faults && sim_chance(sim, 1, 4)) {
        int64_t step_ns = (int64_t)sim_below(sim, 2 * NS_PER_HOUR) - NS_PER_HOUR;
        sim->wall += step_ns;
        sim->wall_ahead += step_ns > 0 ? step_ns : 0;
    }
    bool is_open = !sim->config.persistence || sim_store_open(broker);
    if (is_open)
        make_actors(sim, broker);
    if (is_open && (!sim->config.persistence || sim_store_load(broker)))
        return true;
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
    case OP_STORE_EXPIRED:
        free(op->expired);
        return;
    case OP_STORE_RUN:
        free(op->run.run);
        return;
    case OP_STORE_READ:
    case OP_STORE_READ_DONE:
        store_read_free(op->read);
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
            for (struct sim_ring *ring = sim_ring_of(broker, from, to); ring->count;) {
                struct op op = sim_ring_pop(ring);
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
    sim_ledger_on_broker_end(sim);
    sim_broker_count_drops(sim, sim->drops);
    sim_fs_kill_process(sim->fs, 1);
    return_blocks(broker);
    for (uint16_t i = 0; i < sim->shard_count; i++) {
        if (broker->shards[i])
            shard_free(broker->shards[i]);
        if (broker->pool_open[i])
            log_block_pool_deinit(&broker->pools[i]);
    }
    route_actor_free(broker->route);
    topic_tree_free(broker->tree);
    sim_store_close(broker);
    rule_table_deinit(&broker->rules);
    tier_table_deinit(&broker->tiers);
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
    for (uint16_t i = 0; i < broker->sim->shard_count; i++)
        sim_ring_push(broker, NODE_LOG, i, &(struct op){.type = OP_LOG_FAILED, .from = ACTOR_LOG}, true);
}

static void log_say_room(struct sim_broker *broker)
{
    const struct sim_config *config = &broker->sim->config;
    uint64_t block_bytes = align_up(LOG_BLOCK_HEADER_SIZE + config->block_body, config->alignment);
    uint64_t margin = log_room_margin(broker->sim->shard_count, config->block_count, block_bytes, SIM_LOG_BYTES(config));
    bool room = log_room_is_there(log_writer_room(broker->writer, LOG_ROOM_PUBLISH), margin, broker->room_said);
    if (room == broker->room_said)
        return;
    for (uint16_t i = 0; i < broker->sim->shard_count; i++)
        if (sim_ring_of(broker, NODE_LOG, i)->count >= broker->sim->config.ring_capacity)
            return; /* another time */
    for (uint16_t i = 0; i < broker->sim->shard_count; i++)
        sim_ring_push(broker, NODE_LOG, i, &(struct op){.type = OP_LOG_ROOM, .flag = room, .from = ACTOR_LOG}, true);
    broker->room_said = room;
}

/* Notices to the shards; false while a ring is full. The blocks go back with them. */
static bool log_notify(struct sim_broker *broker)
{
    struct sim *sim = broker->sim;
    for (uint16_t i = 0; i < sim->shard_count; i++)
        if (sim_ring_of(broker, NODE_LOG, i)->count >= sim->config.ring_capacity)
            return false;
    for (uint16_t i = 0; i < sim->shard_count; i++) {
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
            sim_ring_push(broker, NODE_LOG, i, &op, true);
    }
    memmove(broker->collected, broker->collected + broker->writing,
            (broker->collected_count - broker->writing) * sizeof *broker->collected);
    broker->collected_count -= broker->writing;
    broker->writing = 0;
    broker->stage = LOG_IDLE;
    return true;
}

static bool log_collect(struct sim_broker *broker)
{
    size_t before = broker->collected_count;
    for (uint16_t i = 0; i < broker->sim->shard_count; i++)
        for (struct sim_ring *ring = sim_ring_of(broker, i, NODE_LOG);
             ring->count && !sim_ring_is_starved(broker, i, NODE_LOG) &&
             broker->collected_count < sizeof broker->collected / sizeof *broker->collected && !sim_chance(broker->sim, 1, 8);)
            broker->collected[broker->collected_count++] = sim_ring_pop(ring).block;
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
    if (!broker->writer || broker->log_failed)
        return false;
    log_say_room(broker);
    switch (broker->stage) {
    case LOG_IDLE:
        if (!log_collect(broker) && broker->collected_count == 0)
            return log_idle(broker);
        broker->writing = broker->collected_count < SIM_BATCH_MAX ? broker->collected_count : SIM_BATCH_MAX;
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

/* The route actor's side of its rings. */
static bool serve_route(struct sim_broker *broker)
{
    struct sim *sim = broker->sim;
    bool served = false;
    for (unsigned from = 0; from < NODE_COUNT; from++) {
        struct sim_ring *ring = sim_ring_of(broker, from, NODE_ROUTE);
        for (uint64_t count = ring->count && !sim_ring_is_starved(broker, from, NODE_ROUTE) ? 1 + sim_below(sim, ring->count) : 0; count;
             count--) {
            struct op op = sim_ring_pop(ring);
            route_actor_on_op(broker->route, &op);
            served = true;
        }
    }
    uint64_t before = sim->progress;
    route_actor_work(broker->route, sim->mono + broker->steady_offset_ns);
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
    actor_id home = packet_peek_client_id(&client_id, &frame, conn->up.bytes) ? shard_home(broker->hash_key, sim->shard_count, client_id)
                                                                              : (actor_id)sim_below(sim, sim->shard_count);
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
        struct sim_ring *ring = sim_ring_of(broker, from, index);
        for (uint64_t count = ring->count && !sim_ring_is_starved(broker, from, index) ? sim_below(sim, ring->count + 1) : 0; count;
             count--) {
            struct op op = sim_ring_pop(ring);
            if (op.type == OP_STORE_ROOM)
                broker->no_room_step[index] = op.flag ? 0 : sim->step;
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

static bool serve_node(struct sim_broker *broker, unsigned node)
{
    switch (node) {
    case NODE_LOG:
        return (broker->sim->calm || sim_chance(broker->sim, 1, broker->sim->config.log_rest)) && log_step(broker);
    case NODE_ROUTE:
        return serve_route(broker);
    case NODE_STORE:
        return sim_store_serve(broker);
    case NODE_READER:
        return sim_store_serve_reader(broker);
    default:
        return node < broker->sim->shard_count && serve_shard(broker, node);
    }
}

/* Nothing is on its way to the log, nor waits for room in it. */
static bool is_all_durable(struct sim_broker *broker)
{
    if (!broker->writer || broker->log_failed || broker->collected_count)
        return false;
    for (uint16_t i = 0; i < broker->sim->shard_count; i++) {
        const struct shard_stats *stats = shard_get_stats(broker->shards[i]);
        if (stats->late_records.messages || stats->gate.messages || gauge_get(&stats->backlog))
            return false;
    }
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
    bool served = serve_node(broker, (unsigned)sim_below(sim, NODE_COUNT));
    sim_conn_reap(sim);
    if (!served || !rings_are_empty(broker))
        return served;
    sim_broker_check_books(sim);
    if (is_all_durable(broker))
        sim_ledger_on_all_durable(sim);
    return true;
}

bool sim_broker_is_log_full(const struct sim *sim)
{
    const struct sim_broker *broker = sim->broker;
    /* What was under way when publishers were told may fill it to the end, if that is more than the margin of a small log. */
    uint64_t under_way = 0;
    for (size_t i = 0; i < broker->collected_count; i++)
        under_way += broker->collected[i]->size;
    return !broker->room_said && log_writer_room(broker->writer, LOG_ROOM_CONTROL) > under_way + sim->config.segment_size / 16;
}

bool sim_broker_is_told_to_wait(const struct sim *sim, const struct sim_conn *conn, uint64_t sent_step)
{
    uint64_t since = sim->broker->no_room_step[shard_index(sim->broker, conn->shard)];
    return since != 0 && sent_step > since;
}

bool sim_broker_failed(struct sim *sim) { return sim->broker->log_failed || sim->broker->store_failed; }

bool sim_broker_is_quiet(struct sim *sim)
{
    struct sim_broker *broker = sim->broker;
    if (!rings_are_empty(broker) || !sim_store_is_quiet(broker))
        return false;
    for (struct sim_conn *conn = sim->conns; conn; conn = conn->next)
        if (conn->up.size || conn->down.size || conn->wants_writable)
            return false;
    return broker->collected_count == 0 && !broker->log_failed;
}

bool sim_broker_is_drained(struct sim *sim)
{
    for (uint16_t i = 0; i < sim->shard_count; i++) {
        const struct shard_stats *stats = shard_get_stats(sim->broker->shards[i]);
        if (stats->queued.messages || gauge_get(&stats->inflight) || stats->late_records.messages)
            return false;
    }
    return true;
}

bool sim_broker_has_scanned(struct sim *sim)
{
    uint64_t scans = route_actor_stats(sim->broker->route)->scans.messages;
    for (uint16_t i = 0; i < sim->shard_count; i++)
        scans += shard_get_stats(sim->broker->shards[i])->parked_copies.messages;
    return scans == 0;
}

/* Whether bounds explain a drop of a message with QoS 1 or 2, or nothing does: memory is not short here, and nothing rots. */
void sim_broker_count_drops(const struct sim *sim, uint64_t drops[2])
{
    for (uint16_t i = 0; i < sim->shard_count && sim->broker->shards[i]; i++) {
        const struct shard_stats *stats = shard_get_stats(sim->broker->shards[i]);
        drops[0] += counter_get(&stats->dropped_queue_full) + counter_get(&stats->dropped_queue_bytes) +
                    counter_get(&stats->dropped_total_messages) + counter_get(&stats->dropped_queue_age);
        drops[1] += counter_get(&stats->dropped_no_memory) + counter_get(&stats->dropped_corrupt) + counter_get(&stats->dropped_too_large) +
                    counter_get(&stats->dropped_total_bytes);
    }
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
    for (uint16_t i = 0; i < sim->shard_count; i++) {
        const struct shard_stats *stats = shard_get_stats(broker->shards[i]);
        printf("  shard %u: %" PRIu64 " queued, %" PRIi64 " in flight, %" PRIu64 " records late, %" PRIu64 " in the gate\n", i,
               stats->queued.messages, gauge_get(&stats->inflight), stats->late_records.messages, stats->gate.messages);
    }
    if (broker->writer)
        printf("  log: stage %d, %zu blocks collected, room %" PRIu64 " (others %" PRIu64 "), said %d\n", broker->stage,
               broker->collected_count, log_writer_room(broker->writer, LOG_ROOM_PUBLISH),
               log_writer_room(broker->writer, LOG_ROOM_CONTROL), broker->room_said);
}

/* What all queues hold together is what was taken for them, and of what they owe nothing is left. Over the bound is at most what a start
 * found and who had it could not pay for: one message of each. */
void sim_broker_check_totals(struct sim *sim)
{
    uint64_t waiting = 0, max = sim->config.totals_messages_max, taken = atomic_load(&sim->broker->totals.messages);
    for (uint16_t i = 0; i < sim->shard_count; i++)
        waiting += shard_get_stats(sim->broker->shards[i])->queued.messages;
    if (waiting != taken)
        sim_found(sim, "%" PRIu64 " messages wait, and %" PRIu64 " are counted in all queues together", waiting, taken);
    if (sim->config.queue_policy == QUEUE_DROP_OLDEST && waiting > max + sim->config.client_count)
        sim_found(sim, "%" PRIu64 " messages wait in all queues together, which may hold %" PRIu64, waiting, max);
}

void sim_broker_check_books(struct sim *sim)
{
    struct errmsg msg = {""};
    const struct shard_stats *stats[SIM_SHARDS_MAX];
    bool is_waiting = false; /* for room in a ring */
    for (uint16_t i = 0; i < sim->shard_count; i++) {
        stats[i] = shard_get_stats(sim->broker->shards[i]);
        is_waiting |= gauge_get(&stats[i]->backlog) > 0;
    }
    if (!shard_stats_check(stats, sim->shard_count, &msg))
        sim_found(sim, "the books do not balance: %s", msg.text);
    struct retained_stats retained;
    retained_get_stats(route_actor_retained(sim->broker->route), &retained);
    if (retained.reserved_messages && !is_waiting)
        sim_found(sim, "%" PRIu64 " retained messages are reserved for, and none is on its way", retained.reserved_messages);
}
