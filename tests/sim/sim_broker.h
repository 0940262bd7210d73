/* Inside of one life of the broker: what sim_broker.c (shards, route, log) and sim_store.c (store and its reader) share. */
#ifndef TIDEGATE_TESTS_SIM_SIM_BROKER_H
#define TIDEGATE_TESTS_SIM_SIM_BROKER_H

#include "broker/core/shard.h"
#include "broker/durable/store_reader.h"
#include "broker/durable/store_writer.h"
#include "broker/guard/tier.h"
#include "broker/ops/recovery.h"
#include "broker/route/route_actor.h"
#include "broker/session/queue.h"
#include "broker/session/queue_totals.h"
#include "broker/telemetry/rule.h"
#include "common/log_writer.h"
#include "tests/sim/sim.h"

#define SIM_LOG_DIR "log"
#define SIM_RING_CAPACITY_MAX 64
#define SIM_BATCH_MAX 32

/* Actors as small numbers, for the table of rings: shards first. */
#define NODE_ROUTE SIM_SHARDS_MAX
#define NODE_LOG (SIM_SHARDS_MAX + 1)
#define NODE_STORE (SIM_SHARDS_MAX + 2)
#define NODE_READER (SIM_SHARDS_MAX + 3)
#define NODE_COUNT SIM_NODES

struct sim_ring {
    struct op ops[SIM_RING_CAPACITY_MAX];
    uint32_t first, count;
};

struct sim_broker {
    struct sim *sim;
    uint64_t hash_key;
    int64_t steady_offset_ns; /* the broker's own time less mono */
    struct topic_tree *tree;
    struct rule_table rules;
    struct tier_table tiers;
    struct shard *shards[SIM_SHARDS_MAX];
    struct log_block_pool pools[SIM_SHARDS_MAX];
    bool pool_open[SIM_SHARDS_MAX];
    struct route_actor *route;
    struct durable durable;    /* all NULL without persistence */
    struct log_writer *writer; /* of durable */
    struct store_writer *store;
    struct store_reader *reader;
    struct sim_ring *rings; /* [from][to] of node numbers */
    struct shard_listener listener;
    struct queue_totals totals;
    _Atomic uint64_t retained_counter;
    struct log_block *collected[SIM_BATCH_MAX * 4];
    size_t collected_count;
    size_t writing;                                                /* blocks of the batch that is under way: the first ones of collected */
    enum { LOG_IDLE, LOG_BEGUN, LOG_WRITTEN, LOG_FINISHED } stage; /* BEGUN: the disk was full, to be written again */
    uint64_t no_room_step[SIM_SHARDS_MAX];                         /* when a shard heard that the checkpoint has no room; 0: it has */
    bool room_said;                                                /* what the shards were told last */
    bool log_failed, store_failed;
    bool has_leftovers; /* the load found no space to remove what belongs to nobody: the next start does */
    int64_t store_next_mono;
    struct route_io route_io;
    struct store_writer_io store_io;
    struct store_reader_io reader_io;
};

unsigned sim_node_of(actor_id id);
struct sim_ring *sim_ring_of(struct sim_broker *broker, unsigned from, unsigned to);
bool sim_ring_push(struct sim_broker *broker, unsigned from, unsigned to, const struct op *op, bool reserve);
struct op sim_ring_pop(struct sim_ring *ring);
bool sim_ring_is_starved(const struct sim_broker *broker, unsigned from, unsigned to);

/* sim_store.c. Opens checkpoint and log; false: it could not, tried again later. */
bool sim_store_open(struct sim_broker *broker);
bool sim_store_load(struct sim_broker *broker); /* the checkpoint into shards, tree and route actor; and the store's actors begin */
void sim_store_close(struct sim_broker *broker);
bool sim_store_serve(struct sim_broker *broker);
bool sim_store_serve_reader(struct sim_broker *broker);
bool sim_store_is_quiet(struct sim_broker *broker);

#endif
