/* What a life of the broker inherits and leaves: log and database, opened and brought together by recovery; and the two actors of the
 * store, its writer and its reader.
 *
 * The database is in memory (tests/lib/sim_kv.h). A commit that fails for space is tried again; any other failure is the end of this life,
 * and nobody knows then whether the commit is there. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "broker/durable/checkpoint_row.h"
#include "common/check.h"
#include "common/clock.h"
#include "tests/sim/sim_broker.h"

/* --- start -------------------------------------------------------------------------------------------------------------------------- */

static enum err open_kv(void *arg, struct kv **kv_out, struct errmsg *msg)
{
    (void)msg;
    struct sim_broker *broker = arg;
    *kv_out = sim_kv_open(broker->sim->kv);
    return ERR_OK;
}

static void judge_start(struct sim *sim, enum err err, const struct errmsg *msg, const char *what)
{
    sim_trace(sim, "%s: %s %s", what, err_text(err), msg->text);
    if (err && sim->calm)
        sim_found(sim, "the broker does not start on healthy disks: %s: %s: %s", what, err_text(err), msg->text);
    if (err == ERR_CORRUPT || err == ERR_VERSION || err == ERR_GAP)
        sim_found(sim, "%s: taken for damaged, and only crashes happened: %s: %s", what, err_text(err), msg->text);
}

bool sim_store_open(struct sim_broker *broker)
{
    struct sim *sim = broker->sim;
    struct errmsg msg = {""};
    struct recovery_options options = {
        .fs = sim_fs_fs(sim->fs),
        .data_dir = ".",
        .open_kv = open_kv,
        .open_kv_arg = broker,
        .delta_bytes_max = sim->config.delta_bytes,
        .log = {.fs = sim_fs_fs(sim->fs),
                .dir = SIM_LOG_DIR,
                .segment_size = sim->config.segment_size,
                .log_bytes_max = SIM_LOG_BYTES(&sim->config),
                .alignment = sim->config.alignment,
                .wall_ns = sim->wall},
        .random = sim->seed,
        .queue_age_max_ns = sim->config.queue_age_max_ns,
    };
    sim_fs_set_process(sim->fs, 1);
    /* A start whose first sync fails, a start, a power loss: what the second accepted must be there. */
    if (!sim->calm && sim->config.disk_faults && sim->config.power_faults && sim_chance(sim, 1, 4)) {
        sim_fs_fail(sim->fs, SIM_FS_SYNC, 1, ERR_IO, false);
        sim->power_loss_step = sim->step + 1 + sim_below(sim, 300);
    }
    enum err err = recovery_open(&broker->durable, &options, &msg);
    if (!err) {
        broker->writer = broker->durable.writer;
        err = log_writer_ensure_cursor(broker->writer, "sink", &msg);
    }
    judge_start(sim, err, &msg, "log and checkpoint open");
    if (err == ERR_NOSPACE && sim_chance(sim, 1, 20)) /* somebody makes room: each start leaves a file in the log */
        sim_kv_set_capacity(sim->kv, 0);
    return err == ERR_OK;
}

static bool on_post(void *io, actor_id to, const struct op *op) { return sim_ring_push(io, NODE_STORE, sim_node_of(to), op, true); }
static bool on_reader_post(void *io, actor_id to, const struct op *op) { return sim_ring_push(io, NODE_READER, sim_node_of(to), op, true); }
static void on_checkpoint(void *io, struct log_place place)
{
    struct sim_broker *broker = io;
    log_writer_set_checkpoint(broker->writer, place);
    broker->sim->wall_ahead_known = broker->sim->wall_ahead;
}
static struct log_end on_durable_end(void *io)
{
    struct sim_broker *broker = io;
    return log_writer_published_end(broker->writer);
}
static int64_t on_wall(void *io)
{
    const struct sim_broker *broker = io;
    return broker->sim->wall;
}
static void on_corrupt(void *io, enum kv_tree tree, struct span key)
{
    struct sim_broker *broker = io;
    sim_found(broker->sim, "the reader met a damaged value (%s, a key of %zu bytes), and nothing rots here", kv_tree_name(tree), key.size);
}

bool sim_store_load(struct sim_broker *broker)
{
    struct sim *sim = broker->sim;
    struct errmsg msg = {""};
    struct recovery_loaded loaded = {0};
    struct recovery_target target = {
        .shards = broker->shards,
        .shard_count = sim->shard_count,
        .hash_key = broker->hash_key,
        .tree = broker->tree,
        .route = broker->route,
        .now_mono_ns = sim->mono,
        .now_wall_ns = sim->wall,
        .now_steady_ns = sim->mono + broker->steady_offset_ns,
    };
    uint64_t no_space = sim_kv_counts(sim->kv).no_space;
    enum err err = recovery_load(&loaded, &broker->durable, &target, &msg);
    broker->has_leftovers = sim_kv_counts(sim->kv).no_space > no_space;
    judge_start(sim, err, &msg, "the checkpoint is loaded");
    if (err)
        return false;
    sim_trace(sim, "%" PRIu64 " sessions, %" PRIu64 " subscriptions, %" PRIu64 " messages, %" PRIu64 " retained", loaded.sessions,
              loaded.subscriptions, loaded.messages, loaded.retained);
    if (loaded.corrupt)
        sim_found(sim, "%" PRIu64 " values of the checkpoint are damaged, and nothing rots here", loaded.corrupt);
    struct store_writer_options options = {
        .fs = sim_fs_fs(sim->fs),
        .log_dir = SIM_LOG_DIR,
        .interval_ns = sim->config.checkpoint_ns,
        .segment_bytes = sim->config.segment_size,
        .lag_ns_max = sim->config.lag_ns,
        .lag_bytes_max = sim->config.lag_bytes,
        .delta_bytes_max = sim->config.delta_bytes,
        .shard_count = sim->shard_count,
        .steady_offset_ns = broker->steady_offset_ns,
    };
    broker->store_io = (struct store_writer_io){.post = on_post,
                                                .on_checkpoint = on_checkpoint,
                                                .durable_end = sim->config.store_asks_file ? NULL : on_durable_end,
                                                .wall = on_wall};
    broker->reader_io = (struct store_reader_io){.post = on_reader_post, .on_corrupt = on_corrupt};
    err = store_writer_new(&broker->store, broker->durable.checkpoint, &options, &broker->store_io, broker);
    CHECK(err == ERR_OK);
    broker->reader = store_reader_new(broker->durable.kv, &broker->reader_io, broker);
    CHECK(broker->reader);
    return true;
}

void sim_store_close(struct sim_broker *broker)
{
    if (!broker->sim->config.persistence)
        return;
    sim_kv_crash(broker->sim->kv);
    store_writer_free(broker->store);
    store_reader_free(broker->reader);
    recovery_close(&broker->durable);
}

/* --- actors ------------------------------------------------------------------------------------------------------------------------- */

static bool take_ops(struct sim_broker *broker, unsigned node, void (*take)(struct sim_broker *broker, const struct op *op))
{
    bool served = false;
    for (unsigned from = 0; from < NODE_COUNT; from++) {
        struct sim_ring *ring = sim_ring_of(broker, from, node);
        for (uint64_t count = ring->count && !sim_ring_is_starved(broker, from, node) ? 1 + sim_below(broker->sim, ring->count) : 0; count;
             count--) {
            struct op op = sim_ring_pop(ring);
            take(broker, &op);
            served = true;
        }
    }
    return served;
}

static void take_store(struct sim_broker *broker, const struct op *op) { store_writer_on_op(broker->store, op); }
static void take_reader(struct sim_broker *broker, const struct op *op) { store_reader_on_op(broker->reader, op); }

static void store_step(struct sim_broker *broker, bool flush, int64_t *wait_ns_out)
{
    struct sim *sim = broker->sim;
    struct errmsg msg = {""};
    sim_fs_set_process(sim->fs, 1);
    enum err err = store_writer_step(broker->store, sim->mono, flush, wait_ns_out, &msg);
    if (counter_get(&store_writer_get_stats(broker->store)->refused))
        sim_found(sim, "the store has passed over a record that no broker writes");
    if (!err)
        return;
    sim_trace(sim, "the store fails: %s %s", err_text(err), msg.text);
    if (err != ERR_IO)
        sim_found(sim, "the store fails: %s: %s", err_text(err), msg.text);
    broker->store_failed = true;
}

bool sim_store_serve(struct sim_broker *broker)
{
    struct sim *sim = broker->sim;
    if (!broker->store || broker->store_failed)
        return false;
    bool served = take_ops(broker, NODE_STORE, take_store);
    uint64_t before = sim->progress;
    if (broker->store_next_mono <= sim->mono || sim_chance(sim, 1, 8)) {
        int64_t wait_ns = 0;
        store_step(broker, false, &wait_ns);
        broker->store_next_mono = wait_ns > INT64_MAX - sim->mono ? INT64_MAX : sim->mono + wait_ns;
    }
    return served || sim->progress != before;
}

bool sim_store_serve_reader(struct sim_broker *broker)
{
    struct sim *sim = broker->sim;
    if (!broker->reader)
        return false;
    bool served = take_ops(broker, NODE_READER, take_reader);
    uint64_t before = sim->progress;
    if (sim_chance(sim, 2, 3))
        store_reader_work(broker->reader);
    return served || sim->progress != before;
}

bool sim_store_is_quiet(struct sim_broker *broker)
{
    return !broker->store || (!broker->store_failed && store_reader_get_stats(broker->reader)->waiting.messages == 0);
}

/* --- what goes wrong ---------------------------------------------------------------------------------------------------------------- */

void sim_store_fault(struct sim *sim)
{
    if (!sim->config.store_faults)
        return;
    uint64_t kind = sim_below(sim, 6);
    if (kind == 0)
        sim_kv_fail(sim->kv, SIM_KV_COMMIT, ERR_IO, sim_below(sim, 4));
    else if (kind == 1)
        sim_kv_fail(sim->kv, SIM_KV_COMMIT, ERR_NOSPACE, sim_below(sim, 4));
    else if (kind == 2)
        sim_kv_fail(sim->kv, SIM_KV_PUT, ERR_NOSPACE, sim_below(sim, 20));
    else if (kind == 3)
        sim_kv_set_capacity(sim->kv, sim_kv_counts(sim->kv).used_bytes + 1 + sim_below(sim, 4000));
    else
        sim_kv_set_capacity(sim->kv, 0);
}

/* --- at rest ------------------------------------------------------------------------------------------------------------------------ */

bool sim_broker_has_leftovers(const struct sim *sim) { return sim->broker->has_leftovers; }

/* Who wants what, for a finding. */
static void describe_wants(struct sim *sim)
{
    struct kv_txn *txn;
    struct span key, value;
    CHECK(kv_begin(sim->broker->durable.kv, &txn, false) == ERR_OK);
    for (enum err err = kv_seek(txn, KV_RECIPIENTS, (struct span){0}, &key, &value); !err;
         err = kv_next(txn, KV_RECIPIENTS, &key, &value)) {
        struct checkpoint_row row = checkpoint_row_read(key, value);
        struct checkpoint_wants wants;
        while (checkpoint_row_next_wants(&row, &wants) == ERR_OK) {
            struct record_recipient recipient;
            while (record_recipient_next(&recipient, &wants.recipients) == ERR_OK)
                printf("session %" PRIu64 " wants message %" PRIu64 " of the log\n", recipient.session, wants.sequence);
        }
    }
    kv_abort(txn);
}

void sim_broker_check_store(struct sim *sim)
{
    struct sim_broker *broker = sim->broker;
    struct kv_stats stats;
    if (!sim->config.persistence)
        return;
    for (int i = 0; i < 100; i++) {
        int64_t wait_ns = 0;
        store_step(broker, true, &wait_ns);
        if (broker->store_failed)
            sim_found(sim, "the store fails at rest");
        if (wait_ns != 0 && !checkpoint_has_more(broker->durable.checkpoint))
            break;
    }
    enum err err = kv_get_stats(broker->durable.kv, &stats);
    CHECK(err == ERR_OK);
    uint64_t retained = checkpoint_state(broker->durable.checkpoint).retained_count;
    if (stats.entries[KV_RECIPIENTS])
        describe_wants(sim), sim_found(sim, "all clients have all messages, and the checkpoint has %" PRIu64 " that somebody wants",
                                       stats.entries[KV_RECIPIENTS]);
    uint64_t bodies = checkpoint_state(broker->durable.checkpoint).body_count;
    if (bodies > retained || stats.entries[KV_BODIES] > bodies)
        sim_found(sim, "the checkpoint has %" PRIu64 " messages in %" PRIu64 " rows for %" PRIu64 " retained values", bodies,
                  stats.entries[KV_BODIES], retained);
    if (stats.entries[KV_HOLDERS])
        sim_found(sim, "the checkpoint counts %" PRIu64 " holders of messages that one holds", stats.entries[KV_HOLDERS]);
}
