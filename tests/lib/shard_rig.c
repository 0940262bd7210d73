#include "tests/lib/shard_rig.h"

#include <stdio.h>
#include <stdlib.h>

#include "broker/actor/msg.h"
#include "broker/core/delivery.h"
#include "broker/core/recipient.h"
#include "broker/core/request.h"
#include "broker/core/shard_restore.h"
#include "broker/durable/age_marks.h"
#include "broker/guard/tier.h"
#include "broker/route/retained.h"
#include "broker/route/route_actor.h"
#include "broker/route/topic_tree.h"
#include "broker/telemetry/rule.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/log_block.h"
#include "tests/lib/check_random.h"
#include "tests/lib/memory_store.h"

#define HASH_KEY 0x7469646567617465u
#define SETTLE_STEPS_MAX 100000
#define WALL_START_NS (INT64_C(1700000000) * 1000000000)
#define MONO_START_NS (INT64_C(1000) * 1000000000)

struct fifo {
    struct op *ops;
    size_t first, count, capacity;
};

struct rig_client {
    struct rig_client *next;
    struct rig *rig;
    actor_id shard;
    struct client *client; /* NULL before it is opened and after it is gone */
    enum mqtt_version version;
    bool is_closed, is_broken, is_paused, is_blocked_writing;
    size_t write_max;
    uint8_t *in; /* to be handed to the shard */
    size_t in_size;
    uint8_t *out; /* from the shard */
    size_t out_size, out_taken;
    uint8_t *taken; /* bytes of the last rig_next() */
    struct packet packet;
};

struct rig_record {
    uint8_t *bytes;
    size_t size;
    bool is_durable;
};

struct rig {
    struct rig_options options;
    uint16_t shard_count;
    int64_t mono_ns, wall_ns;
    int64_t steady_offset_ns; /* of the present start: its own time begins as the wall clock says then */
    uint64_t hash_key;
    uint32_t epoch;
    struct topic_tree *tree;
    struct shard *shards[ACTOR_SHARDS_MAX];
    struct log_block_pool pools[ACTOR_SHARDS_MAX];
    struct rig_port {
        struct rig *rig;
        actor_id self;
    } ports[ACTOR_COUNT];
    struct route_actor *route;
    struct memory_store *store; /* NULL = nothing is let go */
    size_t applied_count;       /* records that the store has */
    struct age_marks ages;
    uint32_t read_max;
    bool is_reader_held;
    struct rule_table rules;
    struct tier_table tiers;
    bool is_route_held;
    struct {
        uint64_t number, block;
    } passed[ACTOR_SHARDS_MAX];
    uint64_t runs[ACTOR_SHARDS_MAX]; /* that came from each since the start */
    uint64_t named_copies;
    struct msg *last_retained;
    _Atomic uint64_t retained_counter;
    struct fifo *rings[ACTOR_COUNT][ACTOR_COUNT]; /* [from][to] */
    struct rig_client *clients;
    struct check_random random;
    struct log_block *logged[ACTOR_SHARDS_MAX]; /* given to the log and not answered, oldest first */
    uint64_t durable[ACTOR_SHARDS_MAX];
    uint8_t *groups[ACTOR_SHARDS_MAX];
    struct rig_record *records;
    size_t record_count, record_capacity;
    bool is_log_held;
    uint64_t moves; /* counts whatever happened, to see when nothing does */
};

/* --- rings -------------------------------------------------------------------------------------------------------------------------- */

static bool ring_post(struct rig *rig, actor_id from, actor_id to, const struct op *op)
{
    CHECK(op->from == from);
    struct fifo *ring = rig->rings[from][to];
    if (!ring)
        ring = rig->rings[from][to] = calloc(1, sizeof *ring);
    CHECK(ring);
    if (ring->count >= rig->options.ring_size)
        return false;
    if (ring->first + ring->count == ring->capacity) {
        if (ring->count)
            memmove(ring->ops, ring->ops + ring->first, ring->count * sizeof *ring->ops);
        ring->first = 0;
        if (ring->count * 2 >= ring->capacity) {
            ring->capacity = ring->capacity ? ring->capacity * 2 : 16;
            ring->ops = realloc(ring->ops, ring->capacity * sizeof *ring->ops);
            CHECK(ring->ops);
        }
    }
    ring->ops[ring->first + ring->count++] = *op;
    rig->moves++;
    return true;
}

static bool shard_io_post(void *io, actor_id to, const struct op *op, bool reserve)
{
    (void)reserve;
    struct rig_port *port = io;
    return ring_post(port->rig, port->self, to, op);
}

static bool actor_io_post(void *io, actor_id to, const struct op *op)
{
    struct rig_port *port = io;
    return ring_post(port->rig, port->self, to, op);
}

static bool ring_take(struct rig *rig, actor_id from, actor_id to, struct op *op_out)
{
    struct fifo *ring = rig->rings[from][to];
    if (!ring || ring->count == 0)
        return false;
    *op_out = ring->ops[ring->first++];
    ring->count--;
    rig->moves++;
    return true;
}

/* How many of a ring's ops its receiver gets now. */
static size_t portion(struct rig *rig, actor_id from, actor_id to)
{
    size_t count = rig->rings[from][to] ? rig->rings[from][to]->count : 0;
    if (rig->options.delay_seed == 0 || count == 0)
        return count;
    return check_random_below(&rig->random, count + 1);
}

/* --- the driver's side of a shard --------------------------------------------------------------------------------------------------- */

static ssize_t io_write(void *io, void *conn, const struct iovec *iov, int iov_count)
{
    (void)io;
    struct rig_client *client = conn;
    CHECK(!client->is_closed);
    size_t room = client->write_max, taken = 0;
    for (int i = 0; i < iov_count && taken < room; i++) {
        CHECK(iov[i].iov_len > 0);
        size_t size = iov[i].iov_len < room - taken ? iov[i].iov_len : room - taken;
        client->out = realloc(client->out, client->out_size + size);
        CHECK(client->out);
        memcpy(client->out + client->out_size, iov[i].iov_base, size);
        client->out_size += size;
        taken += size;
    }
    size_t total = 0;
    for (int i = 0; i < iov_count; i++)
        total += iov[i].iov_len;
    client->is_blocked_writing = taken < total;
    client->rig->moves += taken > 0;
    return (ssize_t)taken;
}

static void io_read_pause(void *io, void *conn, bool paused)
{
    (void)io;
    ((struct rig_client *)conn)->is_paused = paused;
}

static void io_close(void *io, void *conn, uint32_t linger_ms)
{
    (void)io;
    (void)linger_ms;
    struct rig_client *client = conn;
    CHECK(!client->is_closed);
    client->is_closed = true;
    client->client = NULL;
    client->rig->moves++;
}

static uint64_t io_random(void *io) { return check_random_next(&((struct rig_port *)io)->rig->random); }

static const struct shard_io shard_io = {
    .write = io_write, .read_pause = io_read_pause, .close = io_close, .post = shard_io_post, .random = io_random};
static const struct route_io route_io = {.post = actor_io_post};

/* --- set-up ------------------------------------------------------------------------------------------------------------------------- */

static void fill_options(struct rig_options *options)
{
#define DEFAULT(member, value) ((options->member) = (options->member) ? (options->member) : (value))
    DEFAULT(shard_count, 1);
    DEFAULT(rules, "t/{device}/#");
    DEFAULT(ring_size, 4096);
    DEFAULT(block_count, 16);
    DEFAULT(body_max, LOG_BLOCK_BODY_MAX);
    DEFAULT(retained_max, 1000);
    DEFAULT(tree_bytes_max, 1 << 30);
    DEFAULT(limits.session_queue_messages_max, 1000);
    DEFAULT(limits.session_queue_bytes_max, 1 << 24);
    DEFAULT(limits.inflight_max, 20);
    DEFAULT(limits.outbox_bytes_max, 1 << 20);
    DEFAULT(limits.outboxes_bytes_max, 64 << 20);
    DEFAULT(limits.partial_bytes_max, 64 << 20);
    DEFAULT(limits.record_bytes_max, RECORD_SIZE_MAX);
    DEFAULT(limits.connect_timeout_ms, 10000);
    DEFAULT(limits.session_expiry_max_s, UINT32_MAX);
    DEFAULT(limits.sessions_max, 1000000);
    DEFAULT(limits.publishes_per_turn_max, 100);
    options->limits.allow_zero_length_clientid = !options->is_zero_id_refused;
    options->listener.allow_anonymous = !options->is_anonymous_refused;
    options->listener.retain_available = !options->is_retain_refused;
    DEFAULT(listener.max_packet_size, FRAME_SIZE_MAX);
    DEFAULT(listener.receive_maximum, UINT16_MAX);
    DEFAULT(listener.topic_alias_maximum, 10);
    DEFAULT(listener.max_qos, 2);
#undef DEFAULT
}

static void add_rules(struct rig *rig)
{
    char text[512];
    struct errmsg msg;
    rig->rules.partition_count = 16;
    CHECK((size_t)snprintf(text, sizeof text, "%s", rig->options.rules) < sizeof text);
    char *rest = text;
    for (char *line; (line = strsep(&rest, "\n")) != NULL;)
        if (*line)
            CHECK_MSG(rule_table_add(&rig->rules, line, false, 1, &msg) == ERR_OK, "%s", msg.text);
}

static void add_tiers(struct rig *rig)
{
    char text[512];
    struct errmsg msg;
    CHECK((size_t)snprintf(text, sizeof text, "%s", rig->options.tiers ? rig->options.tiers : "") < sizeof text);
    char *rest = text;
    for (char *line; (line = strsep(&rest, "\n")) != NULL;)
        if (*line)
            CHECK_MSG(tier_table_add(&rig->tiers, line, 1, &msg) == ERR_OK, "%s", msg.text);
}

/* The actors, as at a start. */
static void start(struct rig *rig)
{
    rig->epoch++;
    memset(rig->runs, 0, sizeof rig->runs);
    rig->hash_key = HASH_KEY + rig->epoch;
    rig->tree = topic_tree_new(rig->hash_key);
    CHECK(rig->tree);
    struct route_limits route_limits = {.retained_messages_max = rig->options.retained_max,
                                        .retained_bytes_max = 1 << 30,
                                        .tree_bytes_max = rig->options.tree_bytes_max,
                                        .scan_slice = 4};
    rig->route = route_actor_new(rig->tree, &rig->retained_counter, rig->hash_key, rig->shard_count, &route_limits, &route_io,
                                 &rig->ports[ACTOR_ROUTE]);
    CHECK(rig->route);
    rig->steady_offset_ns = rig->wall_ns - rig->mono_ns;
    for (actor_id index = 0; index < rig->shard_count; index++) {
        struct shard_config config = {.index = index,
                                      .shard_count = rig->shard_count,
                                      .hash_key = rig->hash_key,
                                      .limits = rig->options.limits,
                                      .listeners = &rig->options.listener,
                                      .listener_count = 1,
                                      .rules = &rig->rules,
                                      .tiers = &rig->tiers,
                                      .queue_totals = rig->options.queue_totals,
                                      .retained_counter = &rig->retained_counter,
                                      .retained = route_actor_retained(rig->route),
                                      .steady_offset_ns = rig->steady_offset_ns,
                                      .epoch = rig->options.no_persistence ? 0 : rig->epoch,
                                      .persistence = !rig->options.no_persistence};
        CHECK(log_block_pool_init(&rig->pools[index], index, rig->options.block_count, rig->options.body_max, 512) == ERR_OK);
        rig->shards[index] = shard_new(&config, rig->tree, config.persistence ? &rig->pools[index] : NULL, &shard_io, &rig->ports[index]);
        CHECK(rig->shards[index]);
    }
}

struct rig *rig_new(const struct rig_options *options)
{
    struct rig *rig = calloc(1, sizeof *rig);
    CHECK(rig);
    rig->options = *options;
    fill_options(&rig->options);
    rig->shard_count = rig->options.shard_count;
    rig->mono_ns = MONO_START_NS;
    rig->wall_ns = WALL_START_NS;
    check_random_init(&rig->random, rig->options.delay_seed + 1);
    add_rules(rig);
    add_tiers(rig);
    for (actor_id actor = 0; actor < ACTOR_COUNT; actor++)
        rig->ports[actor] = (struct rig_port){.rig = rig, .self = actor};
    rig->store = rig->options.has_store ? memory_store_new() : NULL;
    start(rig);
    return rig;
}

static void drop_op(struct rig *rig, actor_id to, const struct op *op)
{
    switch ((enum op_type)op->type) {
    case OP_DELIVER:
        delivery_free(op->delivery);
        break;
    case OP_ROUTE_REQUEST:
    case OP_ROUTE_REPLY:
        route_request_free(op->request);
        break;
    case OP_ROUTE_RETAIN:
    case OP_ROUTE_RETAINED:
        msg_unref(op->retain.msg);
        break;
    case OP_RETAINED_VALUE:
        msg_unref(op->retained.msg);
        break;
    case OP_LOG_BLOCK:
        log_block_pool_put(&rig->pools[op->from], op->block);
        break;
    case OP_LOG_DURABLE:
        for (struct log_block *block = op->durable.blocks, *next; block; block = next) {
            next = block->next;
            log_block_pool_put(&rig->pools[to], block);
        }
        break;
    case OP_STORE_RUN:
        free(op->run.run);
        break;
    case OP_STORE_EXPIRED:
        free(op->expired);
        break;
    case OP_STORE_READ:
    case OP_STORE_READ_DONE:
        store_read_free(op->read);
        break;
    case OP_NONE:
    case OP_RETAINED_END:
    case OP_ROUTE_ASK:
    case OP_ROUTE_PASS:
    case OP_RETAINED_MORE:
    case OP_LOG_FAILED:
    case OP_LOG_ROOM:
    case OP_STORE_CHECKPOINT:
    case OP_STORE_ROOM:
    case OP_STORE_RUN_DROP:
    case OP_STORE_PASSED:
        break;
    }
}

static void client_destroy(struct rig_client *client)
{
    free(client->in);
    free(client->out);
    free(client->taken);
    free(client);
}

/* The actors, the rings and the connections go; what is written stays. */
static void stop(struct rig *rig)
{
    struct op op;
    for (actor_id from = 0; from < ACTOR_COUNT; from++)
        for (actor_id to = 0; to < ACTOR_COUNT; to++) {
            while (ring_take(rig, from, to, &op))
                drop_op(rig, to, &op);
            if (rig->rings[from][to])
                free(rig->rings[from][to]->ops);
            free(rig->rings[from][to]);
            rig->rings[from][to] = NULL;
        }
    for (actor_id index = 0; index < rig->shard_count; index++) {
        for (struct log_block *block = rig->logged[index], *next; block; block = next) {
            next = block->next;
            log_block_pool_put(&rig->pools[index], block);
        }
        rig->logged[index] = NULL;
        rig->durable[index] = 0;
        rig->passed[index].number = rig->passed[index].block = 0;
        shard_free(rig->shards[index]);
        free(rig->groups[index]);
        rig->groups[index] = NULL;
    }
    route_actor_free(rig->route);
    topic_tree_free(rig->tree);
    for (actor_id index = 0; index < rig->shard_count; index++)
        log_block_pool_deinit(&rig->pools[index]);
    msg_unref(rig->last_retained);
    rig->last_retained = NULL;
    while (rig->clients) {
        struct rig_client *client = rig->clients;
        rig->clients = client->next;
        client_destroy(client);
    }
}

void rig_free(struct rig *rig)
{
    stop(rig);
    memory_store_free(rig->store);
    rule_table_deinit(&rig->rules);
    tier_table_deinit(&rig->tiers);
    for (size_t i = 0; i < rig->record_count; i++)
        free(rig->records[i].bytes);
    free(rig->records);
    free(rig);
}

static uint64_t apply_durable(struct rig *rig);

void rig_restart(struct rig *rig, uint16_t shard_count)
{
    CHECK(!rig->is_log_held);
    rig_settle(rig);
    stop(rig);
    if (rig->store) {
        memory_store_crash(rig->store);
        apply_durable(rig);
    }
    rig->shard_count = shard_count;
    start(rig);
}

struct restored {
    struct rig *rig;
    const struct checkpoint_session *session;
};

static void restore_want(void *arg, uint64_t sequence, uint8_t qos, uint32_t cost, bool is_in_run)
{
    const struct restored *restored = arg;
    struct rig *rig = restored->rig;
    struct shard *shard = rig->shards[shard_home(rig->hash_key, rig->shard_count, restored->session->client_id)];
    uint64_t run_last = memory_store_run_last(rig->store, restored->session->number);
    CHECK(shard_restore_want(shard, restored->session->number, sequence, qos, cost, is_in_run, run_last) == ERR_OK);
}

void rig_restore(struct rig *rig, const struct checkpoint_session *sessions, size_t count)
{
    for (actor_id index = 0; index < rig->shard_count; index++)
        shard_turn_begin(rig->shards[index], rig->mono_ns, rig->wall_ns);
    for (size_t i = 0; i < count; i++) {
        actor_id home = shard_home(rig->hash_key, rig->shard_count, sessions[i].client_id);
        CHECK(shard_restore_session(rig->shards[home], &sessions[i]) == ERR_OK);
        struct span rest = sessions[i].subscriptions, bytes;
        while (record_next(&bytes, &rest) == ERR_OK) {
            struct record rec;
            CHECK(record_decode(&rec, bytes) == ERR_OK);
            struct subscriber sub = request_subscriber(sessions[i].number, home, rec.options);
            CHECK(topic_tree_add(rig->tree, NULL, rec.topic, &sub) == ERR_OK);
        }
        shard_restore_filters_done(rig->shards[home], sessions[i].number);
    }
    for (size_t i = 0; i < count && rig->store; i++)
        memory_store_each_want(rig->store, sessions[i].number, restore_want, &(struct restored){rig, &sessions[i]});
    for (actor_id index = 0; index < rig->shard_count; index++)
        shard_turn_end(rig->shards[index]);
    rig_settle(rig);
}

void rig_restore_end(struct rig *rig, int64_t ms)
{
    for (uint16_t i = 0; i < rig->shard_count; i++)
        shard_restore_end(rig->shards[i], rig->mono_ns + ms * NS_PER_MS);
}

/* --- the log ------------------------------------------------------------------------------------------------------------------------ */

static void keep_record(struct rig *rig, const void *bytes, size_t size)
{
    if (rig->record_count == rig->record_capacity) {
        rig->record_capacity = rig->record_capacity ? rig->record_capacity * 2 : 64;
        rig->records = realloc(rig->records, rig->record_capacity * sizeof *rig->records);
        CHECK(rig->records);
    }
    struct rig_record *record = &rig->records[rig->record_count++];
    record->size = size;
    record->is_durable = false;
    record->bytes = malloc(size);
    CHECK(record->bytes);
    memcpy(record->bytes, bytes, size);
}

/* Read a block as the sink would. */
static void read_block(struct rig *rig, actor_id shard, struct log_block *block)
{
    struct log_block_header header = {.flags = block->flags,
                                      .shard = block->shard,
                                      .epoch = 1,
                                      .broker_id = 1,
                                      .generation = 1,
                                      .offset = LOG_BLOCK_SIZE_MAX,
                                      .start = 1,
                                      .sequence = block->first.sequence,
                                      .shard_block = block->shard_block,
                                      .record_count = block->record_count,
                                      .stored_size = block->body_size,
                                      .raw_size = block->raw_size,
                                      .body_crc = block->body_crc,
                                      .size = block->size,
                                      .group_offset = block->group_offset,
                                      .group_size = block->group_size,
                                      .durable_before = {{1, 1}, {1, LOG_BLOCK_SIZE_MAX}}};
    log_block_header_encode(block->memory, &header);
    struct log_block_view view;
    static uint8_t scratch[LOG_BLOCK_BODY_MAX];
    CHECK(log_block_view_parse(&view, block->memory, block->size) == ERR_OK);
    CHECK(log_block_view_unpack(&view, scratch) == ERR_OK);
    if (block->flags & LOG_BLOCK_GROUP) {
        if (block->flags & LOG_BLOCK_GROUP_FIRST) {
            CHECK(!rig->groups[shard]);
            rig->groups[shard] = malloc(block->group_size);
        }
        CHECK(rig->groups[shard]);
        CHECK(block->group_offset + view.body.size <= block->group_size);
        memcpy(rig->groups[shard] + block->group_offset, view.body.data, view.body.size);
        if (block->flags & LOG_BLOCK_GROUP_LAST) {
            keep_record(rig, rig->groups[shard], block->group_size);
            free(rig->groups[shard]);
            rig->groups[shard] = NULL;
        }
        return;
    }
    struct span record;
    uint64_t sequence;
    while (log_block_view_next(&view, &record, &sequence) == ERR_OK)
        keep_record(rig, record.data, record.size);
}

static void log_step(struct rig *rig, actor_id shard)
{
    struct op op;
    struct log_block **tail = &rig->logged[shard];
    while (*tail)
        tail = &(*tail)->next;
    for (size_t left = portion(rig, shard, ACTOR_LOG); left > 0 && ring_take(rig, shard, ACTOR_LOG, &op); left--) {
        CHECK(op.type == OP_LOG_BLOCK);
        CHECK(op.block->sealed);
        op.block->first = (struct log_position){1, rig->record_count + 1};
        read_block(rig, shard, op.block);
        op.block->next = NULL;
        *tail = op.block;
        tail = &op.block->next;
    }
    if (rig->is_log_held || !rig->logged[shard])
        return;
    uint64_t durable = rig->durable[shard];
    for (struct log_block *block = rig->logged[shard]; block; block = block->next) {
        CHECK(block->shard_block == durable + 1);
        durable = block->shard_block;
        uint32_t count = !(block->flags & LOG_BLOCK_GROUP) ? block->record_count : block->flags & LOG_BLOCK_GROUP_LAST ? 1 : 0;
        for (uint32_t i = 0; i < count; i++)
            rig->records[block->first.sequence - 1 + i].is_durable = true;
    }
    op = (struct op){.type = OP_LOG_DURABLE, .from = ACTOR_LOG, .durable = {.durable_blocks = durable, .blocks = rig->logged[shard]}};
    if (ring_post(rig, ACTOR_LOG, shard, &op)) {
        rig->logged[shard] = NULL;
        rig->durable[shard] = durable;
    }
}

void rig_log_hold(struct rig *rig, bool hold) { rig->is_log_held = hold; }

static void tell_all(struct rig *rig, enum op_type type, bool flag)
{
    for (actor_id shard = 0; shard < rig->shard_count; shard++)
        CHECK(ring_post(rig, ACTOR_LOG, shard, &(struct op){.type = type, .from = ACTOR_LOG, .flag = flag}));
}
void rig_log_room(struct rig *rig, bool has_room) { tell_all(rig, OP_LOG_ROOM, has_room); }
void rig_log_fail(struct rig *rig) { tell_all(rig, OP_LOG_FAILED, true); }

void rig_route_hold(struct rig *rig, bool hold) { rig->is_route_held = hold; }

void rig_store_room(struct rig *rig, bool has_room)
{
    for (actor_id shard = 0; shard < rig->shard_count; shard++)
        CHECK(ring_post(rig, ACTOR_STORE, shard, &(struct op){.type = OP_STORE_ROOM, .from = ACTOR_STORE, .flag = has_room}));
}

void rig_passed(const struct rig *rig, uint64_t *number_out, uint64_t *block_out, actor_id shard)
{
    *number_out = rig->passed[shard].number;
    *block_out = rig->passed[shard].block;
}

uint64_t rig_durable_blocks(const struct rig *rig, actor_id shard) { return rig->durable[shard]; }
uint64_t rig_named_copies(const struct rig *rig) { return rig->named_copies; }
const struct msg *rig_last_retained(const struct rig *rig) { return rig->last_retained; }

void rig_set_full(struct rig *rig, const char *filter, bool is_full)
{
    struct match_list list;
    match_list_init(&list);
    CHECK(topic_tree_match(rig->tree, NULL, span_of_string(filter), &list) == ERR_OK);
    for (size_t i = 0; i < list.count; i++) {
        struct subscriber sub;
        if (!topic_tree_get(rig->tree, &sub, span_of_string(filter), list.matches[i].number))
            continue;
        sub.options = (uint8_t)(is_full ? sub.options | SUBSCRIBER_FULL : sub.options & ~SUBSCRIBER_FULL);
        CHECK(topic_tree_add(rig->tree, NULL, span_of_string(filter), &sub) == ERR_OK);
    }
    match_list_deinit(&list);
}

size_t rig_record_count(const struct rig *rig) { return rig->record_count; }
void rig_record(const struct rig *rig, struct record *rec_out, size_t index)
{
    CHECK(index < rig->record_count);
    CHECK(record_decode(rec_out, span_of(rig->records[index].bytes, rig->records[index].size)) == ERR_OK);
}

static uint64_t apply_durable(struct rig *rig)
{
    for (; rig->applied_count < rig->record_count && rig->records[rig->applied_count].is_durable; rig->applied_count++) {
        struct record rec;
        rig_record(rig, &rec, rig->applied_count);
        memory_store_apply(rig->store, &rec, rig->applied_count + 1);
    }
    return memory_store_commit(rig->store);
}

void rig_checkpoint(struct rig *rig)
{
    uint64_t sequence = apply_durable(rig);
    int64_t age_max_ns = rig->options.limits.queue_age_max_ns, steady_ns = rig->mono_ns + rig->steady_offset_ns;
    struct op op = {.type = OP_STORE_CHECKPOINT, .from = ACTOR_STORE, .checkpoint = {.sequence = sequence}};
    if (age_max_ns > 0) {
        age_marks_add(&rig->ages, sequence, steady_ns, age_max_ns);
        op.checkpoint.aged = age_marks_reach(&rig->ages, steady_ns - age_max_ns);
    }
    for (actor_id shard = 0; shard < rig->shard_count; shard++) {
        op.checkpoint.runs = rig->runs[shard];
        CHECK(ring_post(rig, ACTOR_STORE, shard, &op));
    }
    rig_settle(rig);
}

struct memory_store *rig_store(struct rig *rig) { return rig->store; }
void rig_read_max(struct rig *rig, uint32_t items) { rig->read_max = items; }
void rig_reader_hold(struct rig *rig, bool hold) { rig->is_reader_held = hold; }

static uint8_t type_of(const struct rig *rig, size_t index)
{
    struct record rec;
    rig_record(rig, &rec, index);
    return rec.type;
}

size_t rig_published_count(const struct rig *rig)
{
    size_t count = 0;
    for (size_t i = 0; i < rig->record_count; i++)
        count += type_of(rig, i) == RECORD_PUBLISH;
    return count;
}

uint64_t rig_published(const struct rig *rig, struct record *rec_out, size_t index)
{
    size_t at = 0;
    for (size_t left = index;; at++) {
        CHECK(at < rig->record_count);
        if (type_of(rig, at) == RECORD_PUBLISH && left-- == 0)
            break;
    }
    rig_record(rig, rec_out, at);
    return at + 1;
}

/* --- turning ------------------------------------------------------------------------------------------------------------------------ */

static void feed_client(struct rig *rig, struct rig_client *client)
{
    if (client->is_closed)
        return;
    if (!client->client) {
        client->client = shard_open(rig->shards[client->shard], client,
                                    &(struct client_origin){.peer = SPAN_LITERAL("127.0.0.1:1"), .accepted_mono_ns = rig->mono_ns});
        CHECK(client->client);
        rig->moves++;
    }
    if (client->is_blocked_writing && client->write_max > 0) {
        client->is_blocked_writing = false;
        rig->moves++;
        shard_on_writable(rig->shards[client->shard], client->client);
    }
    if (client->client && client->in_size > 0 && !client->is_paused) {
        uint8_t *bytes = client->in;
        size_t size = client->in_size;
        client->in = NULL;
        client->in_size = 0;
        rig->moves++;
        shard_on_bytes(rig->shards[client->shard], client->client, bytes, size);
        free(bytes);
    }
    if (client->client && client->is_broken) {
        struct client *gone = client->client;
        client->client = NULL;
        client->is_closed = true;
        rig->moves++;
        shard_on_closed(rig->shards[client->shard], gone, "broken");
    }
}

/* A message that comes from another shard with a sequence: it is the one of that record. */
static void check_names(struct rig *rig, const struct delivery *delivery)
{
    for (uint32_t at = 0; at < delivery->size;) {
        const struct delivery_entry *entry = (const struct delivery_entry *)(const void *)(delivery->bytes + at);
        uint64_t sequence = atomic_load(&entry->msg->sequence);
        if (sequence > 0) {
            struct record rec;
            rig_record(rig, &rec, sequence - 1);
            CHECK(rec.type == RECORD_PUBLISH);
            CHECK(rec.received_ns == entry->msg->receive_wall_ns);
            CHECK(span_equal(rec.topic, msg_topic(entry->msg)));
            CHECK(span_equal(rec.payload, msg_payload(entry->msg)));
            rig->named_copies += entry->count;
        }
        at += (uint32_t)align_up(sizeof *entry + entry->size, 8);
    }
}

/* One op for the route actor. */
static void route_take(struct rig *rig, const struct op *op)
{
    if (op->type == OP_ROUTE_RETAIN && op->retain.msg) {
        msg_unref(rig->last_retained);
        rig->last_retained = msg_ref(op->retain.msg);
    }
    route_actor_on_op(rig->route, op);
}

static void store_take(struct rig *rig, const struct op *op)
{
    if (op->type != OP_STORE_PASSED) {
        CHECK(rig->store);
        rig->runs[op->from] += op->type == OP_STORE_RUN;
        memory_store_on_op(rig->store, op);
        return;
    }
    CHECK(op->passed.number >= rig->passed[op->from].number);
    rig->passed[op->from].number = op->passed.number;
    rig->passed[op->from].block = op->passed.block;
}

static void reader_take(struct rig *rig, const struct op *op)
{
    CHECK(op->type == OP_STORE_READ);
    CHECK(rig->store);
    memory_store_read(rig->store, op->read, rig->read_max);
    CHECK(ring_post(rig, ACTOR_READER, op->from, &(struct op){.type = OP_STORE_READ_DONE, .from = ACTOR_READER, .read = op->read}));
}

static void shard_step(struct rig *rig, actor_id index)
{
    struct shard *shard = rig->shards[index];
    struct op op;
    shard_turn_begin(shard, rig->mono_ns, rig->wall_ns);
    for (actor_id from = 0; from < ACTOR_COUNT; from++)
        for (size_t left = portion(rig, from, index); left > 0 && ring_take(rig, from, index, &op); left--) {
            if (op.type == OP_DELIVER)
                check_names(rig, op.delivery);
            shard_on_op(shard, &op);
        }
    for (struct rig_client *client = rig->clients; client; client = client->next)
        if (client->shard == index)
            feed_client(rig, client);
    shard_turn_end(shard);
    rig->moves += shard_next_turn_ns(shard) <= rig->mono_ns;
}

void rig_step(struct rig *rig)
{
    struct op op;
    for (actor_id index = 0; index < rig->shard_count; index++)
        shard_step(rig, index);
    for (actor_id index = 0; index < rig->shard_count; index++) {
        for (size_t left = rig->is_route_held ? 0 : portion(rig, index, ACTOR_ROUTE); left > 0 && ring_take(rig, index, ACTOR_ROUTE, &op);
             left--)
            route_take(rig, &op);
        for (size_t left = portion(rig, index, ACTOR_STORE); left > 0 && ring_take(rig, index, ACTOR_STORE, &op); left--)
            store_take(rig, &op);
        for (size_t left = rig->is_reader_held ? 0 : portion(rig, index, ACTOR_READER);
             left > 0 && ring_take(rig, index, ACTOR_READER, &op); left--)
            reader_take(rig, &op);
        log_step(rig, index);
    }
    rig->moves += route_actor_work(rig->route, rig->mono_ns + rig->steady_offset_ns) == 0;
}

static bool is_anything_on_a_ring(const struct rig *rig)
{
    for (actor_id from = 0; from < ACTOR_COUNT; from++)
        for (actor_id to = 0; to < ACTOR_COUNT; to++)
            if (rig->rings[from][to] && rig->rings[from][to]->count > 0 && !(rig->is_route_held && to == ACTOR_ROUTE) &&
                !(rig->is_reader_held && to == ACTOR_READER))
                return true;
    return false;
}

static void check_books(const struct rig *rig)
{
    const struct shard_stats *all[ACTOR_SHARDS_MAX];
    struct errmsg msg;
    for (actor_id index = 0; index < rig->shard_count; index++)
        all[index] = shard_get_stats(rig->shards[index]);
    CHECK_MSG(shard_stats_check(all, rig->shard_count, &msg), "%s", msg.text);
}

void rig_settle(struct rig *rig)
{
    uint64_t before;
    int steps = 0;
    do {
        before = rig->moves;
        rig_step(rig);
        check_books(rig);
        CHECK_MSG(++steps < SETTLE_STEPS_MAX, "the rig does not come to rest");
    } while (rig->moves != before || is_anything_on_a_ring(rig));
    struct retained_stats retained;
    retained_get_stats(route_actor_retained(rig->route), &retained);
    CHECK(rig->is_route_held || retained.reserved_messages == 0);
}

void rig_advance(struct rig *rig, int64_t ms)
{
    int64_t end_ns = rig->mono_ns + ms * 1000000;
    rig_settle(rig);
    while (rig->mono_ns < end_ns) {
        int64_t next_ns = end_ns;
        for (actor_id index = 0; index < rig->shard_count; index++) {
            int64_t due_ns = shard_next_turn_ns(rig->shards[index]);
            next_ns = due_ns < next_ns ? due_ns : next_ns;
        }
        if (next_ns <= rig->mono_ns)
            next_ns = rig->mono_ns + 1000000;
        rig->wall_ns += next_ns - rig->mono_ns;
        rig->mono_ns = next_ns;
        rig_settle(rig);
    }
}

int64_t rig_mono_ns(const struct rig *rig) { return rig->mono_ns; }
int64_t rig_wall_ns(const struct rig *rig) { return rig->wall_ns; }
void rig_step_wall(struct rig *rig, int64_t s) { rig->wall_ns += s * NS_PER_S; }
struct shard *rig_shard(struct rig *rig, actor_id shard) { return rig->shards[shard]; }

struct shard_stats *rig_stats(struct rig *rig, actor_id shard) { return shard_get_stats(rig->shards[shard]); }

uint64_t rig_sum(const struct rig *rig, size_t counter_offset)
{
    uint64_t sum = 0;
    for (actor_id index = 0; index < rig->shard_count; index++)
        sum += counter_get((const struct counter *)(const void *)((const uint8_t *)shard_get_stats(rig->shards[index]) + counter_offset));
    return sum;
}

actor_id rig_home(const struct rig *rig, const char *client_id)
{
    return shard_home(rig->hash_key, rig->shard_count, span_of_string(client_id));
}

bool rig_drain(struct rig *rig, bool force)
{
    bool is_done = true;
    for (actor_id index = 0; index < rig->shard_count; index++) {
        shard_turn_begin(rig->shards[index], rig->mono_ns, rig->wall_ns);
        is_done &= shard_drain(rig->shards[index], force);
        shard_turn_end(rig->shards[index]);
    }
    return is_done;
}

/* --- clients ------------------------------------------------------------------------------------------------------------------------ */

struct rig_client *rig_open(struct rig *rig, const char *client_id)
{
    struct rig_client *client = calloc(1, sizeof *client);
    CHECK(client);
    client->rig = rig;
    client->shard = *client_id ? rig_home(rig, client_id) : 0;
    client->version = MQTT_V5;
    client->write_max = SIZE_MAX / 2;
    struct rig_client **tail = &rig->clients;
    while (*tail)
        tail = &(*tail)->next;
    *tail = client;
    return client;
}

void rig_set_version(struct rig_client *client, enum mqtt_version version) { client->version = version; }

struct packet rig_connect_packet(const char *client_id, enum mqtt_version version, bool clean_start)
{
    struct packet packet = {.type = MQTT_CONNECT,
                            .connect = {.version = version, .clean_start = clean_start, .client_id = span_of_string(client_id)}};
    if (version == MQTT_V5 && !clean_start) {
        packet.connect.properties.session_expiry_interval_s = UINT32_MAX;
        packet.connect.properties.present = MQTT_PROPERTY_BIT(SESSION_EXPIRY_INTERVAL);
    }
    return packet;
}

struct rig_client *rig_connect_with(struct rig *rig, const struct packet *connect)
{
    char client_id[256] = "";
    struct span id = connect->connect.client_id;
    CHECK(id.size < sizeof client_id);
    if (id.size)
        memcpy(client_id, id.data, id.size);
    struct rig_client *client = rig_open(rig, client_id);
    client->version = connect->connect.version;
    rig_send(client, connect);
    rig_settle(rig);
    return client;
}

struct rig_client *rig_connect(struct rig *rig, const char *client_id, enum mqtt_version version, bool clean_start)
{
    struct packet connect = rig_connect_packet(client_id, version, clean_start);
    struct rig_client *client = rig_connect_with(rig, &connect);
    const struct packet *packet = rig_next(client);
    CHECK(packet);
    CHECK(packet->type == MQTT_CONNACK);
    CHECK(packet->connack.reason == MQTT_REASON_SUCCESS);
    return client;
}

void rig_send_bytes(struct rig_client *client, const void *data, size_t size)
{
    if (size == 0)
        return;
    client->in = realloc(client->in, client->in_size + size);
    CHECK(client->in);
    memcpy(client->in + client->in_size, data, size);
    client->in_size += size;
}

void rig_send(struct rig_client *client, const struct packet *packet)
{
    uint32_t size = packet_encode_size(packet, client->version, UINT32_MAX);
    CHECK(size > 0);
    uint8_t *bytes = malloc(size);
    CHECK(bytes);
    packet_encode(bytes, packet, client->version, UINT32_MAX);
    rig_send_bytes(client, bytes, size);
    free(bytes);
}

static void publish(struct rig_client *client, const char *topic, const char *payload, uint8_t qos, uint16_t packet_id, bool retain)
{
    struct packet packet = {
        .type = MQTT_PUBLISH,
        .publish = {
            .topic = span_of_string(topic), .payload = span_of_string(payload), .qos = qos, .packet_id = packet_id, .retain = retain}};
    rig_send(client, &packet);
}
void rig_publish(struct rig_client *client, const char *topic, const char *payload, uint8_t qos, uint16_t packet_id)
{
    publish(client, topic, payload, qos, packet_id, false);
}
void rig_publish_retained(struct rig_client *client, const char *topic, const char *payload, uint8_t qos, uint16_t packet_id)
{
    publish(client, topic, payload, qos, packet_id, true);
}

void rig_send_ack(struct rig_client *client, enum mqtt_packet_type type, uint16_t packet_id)
{
    rig_send(client, &(struct packet){.type = type, .ack = {.packet_id = packet_id}});
}

void rig_send_subscribe(struct rig_client *client, uint16_t packet_id, const char *filter, uint8_t options, uint32_t subscription_id)
{
    uint8_t filters[1024];
    CHECK(strlen(filter) < sizeof filters - 3);
    size_t size = packet_put_subscription(filters, span_of_string(filter), options);
    struct packet packet = {.type = MQTT_SUBSCRIBE,
                            .subscribe = {.packet_id = packet_id, .filter_count = 1, .filters = span_of(filters, size)}};
    if (subscription_id) {
        packet.subscribe.properties.subscription_identifier = subscription_id;
        packet.subscribe.properties.present = MQTT_PROPERTY_BIT(SUBSCRIPTION_IDENTIFIER);
        packet.subscribe.properties.subscription_identifier_count = 1;
    }
    rig_send(client, &packet);
}

void rig_send_unsubscribe(struct rig_client *client, uint16_t packet_id, const char *filter)
{
    uint8_t filters[1024];
    CHECK(strlen(filter) < sizeof filters - 2);
    size_t size = packet_put_unsubscription(filters, span_of_string(filter));
    rig_send(client, &(struct packet){.type = MQTT_UNSUBSCRIBE,
                                      .unsubscribe = {.packet_id = packet_id, .filter_count = 1, .filters = span_of(filters, size)}});
}

void rig_subscribe(struct rig_client *client, uint16_t packet_id, const char *filter, uint8_t qos)
{
    rig_send_subscribe(client, packet_id, filter, qos, 0);
    rig_settle(client->rig);
    const struct packet *packet = rig_next(client);
    CHECK(packet);
    CHECK(packet->type == MQTT_SUBACK);
    CHECK(packet->suback.packet_id == packet_id);
    CHECK(packet->suback.codes.size == 1);
    CHECK(packet->suback.codes.data[0] == qos);
}

void rig_break(struct rig_client *client) { client->is_broken = true; }

struct span rig_output(const struct rig_client *client)
{
    return span_of(client->out + client->out_taken, client->out_size - client->out_taken);
}

const struct packet *rig_next(struct rig_client *client)
{
    struct span output = rig_output(client);
    struct frame frame;
    if (frame_parse(&frame, output.data, output.size, FRAME_SIZE_MAX) != FRAME_OK)
        return NULL;
    free(client->taken);
    client->taken = malloc(frame.size);
    CHECK(client->taken);
    memcpy(client->taken, output.data, frame.size);
    client->out_taken += frame.size;
    struct mqtt_verdict verdict = packet_decode(&client->packet, client->version, MQTT_FROM_SERVER, &frame, client->taken);
    CHECK_MSG(verdict.judgement == MQTT_OK, "the broker sent what no client may accept: %s", verdict.text);
    return &client->packet;
}

bool rig_is_closed(const struct rig_client *client) { return client->is_closed; }
bool rig_is_paused(const struct rig_client *client) { return client->is_paused; }
void rig_write_max(struct rig_client *client, size_t bytes) { client->write_max = bytes; }
