/* A whole broker core in one thread: shards, route actor, a checkpoint and a log that are memory, joined by queues, with test clients.
 *
 * Protocol scenarios run as plain function calls: a client's packets go into its home shard, rig_settle() turns everything until nothing
 * moves, and what came out is taken with rig_next(). Each settled state has balanced books (shard_stats_check, CHECKed). Options make it
 * awkward: small rings, writes of one byte, deliveries between actors in random portions, a log that holds back or is full.
 *
 *     struct rig *rig = rig_new(&(struct rig_options){.shard_count = 3});
 *     struct rig_client *a = rig_connect(rig, "a", MQTT_V5, true);             CONNECT, settled, CONNACK taken and checked
 *     rig_subscribe(a, 1, "x/#", 1);
 *     rig_publish(a, "x/y", "hello", 1, 7);
 *     rig_settle(rig);
 *     const struct packet *packet = rig_next(a);                               NULL = nothing there
 *     rig_free(rig);
 */
#ifndef TIDEGATE_TESTS_LIB_SHARD_RIG_H
#define TIDEGATE_TESTS_LIB_SHARD_RIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/core/shard.h"
#include "broker/core/shard_stats.h"
#include "broker/mqtt/packet.h"
#include "common/bytes.h"
#include "common/record.h"

/* Zero means the default in the comment. */
struct rig_options {
    uint16_t shard_count;           /* 1 */
    bool no_persistence;            /* no log */
    const char *rules;              /* one telemetry rule per line; NULL = "t/{device}/#" */
    const char *tiers;              /* one `FILTER memory|log` per line; NULL = none */
    size_t ring_size;               /* ops; 4096 */
    uint32_t block_count;           /* of a shard's pool; 16 */
    uint32_t body_max;              /* of a block; LOG_BLOCK_BODY_MAX */
    uint64_t delay_seed;            /* not 0: rings hand over random portions */
    uint64_t retained_max;          /* messages; 1000 */
    uint64_t tree_bytes_max;        /* 1 GiB */
    struct shard_limits limits;     /* members that are 0 get defaults; see rig_new */
    struct shard_listener listener; /* likewise */
    bool is_anonymous_refused;
    bool is_retain_refused;
    bool is_zero_id_refused;
    bool has_store; /* a checkpoint, moved on by rig_checkpoint(); without it nothing leaves the memory */
    struct queue_totals *queue_totals;
};

struct checkpoint_session; /* broker/durable/checkpoint.h */
struct memory_store;       /* tests/lib/memory_store.h */
struct queue_totals;
struct rig_client;
struct rig;

struct rig *rig_new(const struct rig_options *options);
void rig_free(struct rig *rig);
/* The broker stops with everything durable, the checkpoint has that and what it was told before its last commit, and another begins: other
 * shards, another hash key, the next epoch. The log goes on, clocks too; connections are gone and must not be used. Nothing is restored
 * yet. */
void rig_restart(struct rig *rig, uint16_t shard_count);
/* Sessions, their subscriptions and, with has_store, what they want, as after checkpoint_load(); before anything else. */
void rig_restore(struct rig *rig, const struct checkpoint_session *sessions, size_t count);
/* Restoring takes so long from now on. */
void rig_restore_end(struct rig *rig, int64_t ms);

/* Turn everything until nothing moves any more; then the books are checked. */
void rig_settle(struct rig *rig);
/* One turn of every shard, one step of every actor, nothing more. */
void rig_step(struct rig *rig);
/* Let time pass, settling on the way whenever a shard asks to be called. */
void rig_advance(struct rig *rig, int64_t ms);
int64_t rig_mono_ns(const struct rig *rig);
int64_t rig_wall_ns(const struct rig *rig);
/* Somebody sets the wall clock, by so many seconds. */
void rig_step_wall(struct rig *rig, int64_t s);

/* The log: whether it answers (default), whether it says it has room, whether it has failed. */
void rig_log_hold(struct rig *rig, bool hold);
void rig_log_room(struct rig *rig, bool has_room);
void rig_log_fail(struct rig *rig);
/* Whether the route actor takes what is sent to it (default). */
void rig_route_hold(struct rig *rig, bool hold);
/* Whether the checkpoint says that it keeps up. */
void rig_store_room(struct rig *rig, bool has_room);
/* What a shard said last about the retained numbers that it has logged (OP_STORE_PASSED). */
void rig_passed(const struct rig *rig, uint64_t *number_out, uint64_t *block_out, actor_id shard);
/* Own blocks of a shard that are durable. */
uint64_t rig_durable_blocks(const struct rig *rig, actor_id shard);
/* Copies that went from shard to shard with a record's sequence; that it is the right record's is CHECKed. */
uint64_t rig_named_copies(const struct rig *rig);
/* The retained message that was set or cleared last; borrowed until the next settle. */
const struct msg *rig_last_retained(const struct rig *rig);
/* All subscribers of an exact filter: their queues are full and they refuse more, or no longer. */
void rig_set_full(struct rig *rig, const char *filter, bool is_full);
/* With has_store: what is durable comes into the checkpoint, which says so to the shards; settled. */
void rig_checkpoint(struct rig *rig);
struct memory_store *rig_store(struct rig *rig);
/* The reader looks at so many items of a request (0 = all), and whether it answers. */
void rig_read_max(struct rig *rig, uint32_t items);
void rig_reader_hold(struct rig *rig, bool hold);
/* Records written, in the order of the log, so record `index` has the sequence index + 1; durable or not. Borrowed until the next settle.
 */
size_t rig_record_count(const struct rig *rig);
void rig_record(const struct rig *rig, struct record *rec_out, size_t index);
/* Those that are a PUBLISH. Returns the sequence. */
size_t rig_published_count(const struct rig *rig);
uint64_t rig_published(const struct rig *rig, struct record *rec_out, size_t index);

uint64_t rig_sum(const struct rig *rig, size_t counter_offset);
#define RIG_COUNTER(rig, field) rig_sum((rig), offsetof(struct shard_stats, field))
struct shard_stats *rig_stats(struct rig *rig, actor_id shard);
struct shard *rig_shard(struct rig *rig, actor_id shard);
actor_id rig_home(const struct rig *rig, const char *client_id);
bool rig_drain(struct rig *rig, bool force);

/* A network connection to a client id's home ("" = shard 0), nothing sent. */
struct rig_client *rig_open(struct rig *rig, const char *client_id);
/* What the broker's packets are read as; MQTT 5 until then. */
void rig_set_version(struct rig_client *client, enum mqtt_version version);
/* CONNECT with defaults to be changed before it is sent. */
struct packet rig_connect_packet(const char *client_id, enum mqtt_version version, bool clean_start);
/* Open, CONNECT, settle, take CONNACK, which must be a success. keep-alive 0; in v5 with clean_start false the session never expires. */
struct rig_client *rig_connect(struct rig *rig, const char *client_id, enum mqtt_version version, bool clean_start);
/* The same with a packet; CONNACK is left to be taken. */
struct rig_client *rig_connect_with(struct rig *rig, const struct packet *connect);

void rig_send_bytes(struct rig_client *client, const void *data, size_t size);
void rig_send(struct rig_client *client, const struct packet *packet);
void rig_publish(struct rig_client *client, const char *topic, const char *payload, uint8_t qos, uint16_t packet_id);
void rig_publish_retained(struct rig_client *client, const char *topic, const char *payload, uint8_t qos, uint16_t packet_id);
void rig_send_ack(struct rig_client *client, enum mqtt_packet_type type, uint16_t packet_id);
/* SUBSCRIBE with an options byte and an identifier (0 = none); not settled. */
void rig_send_subscribe(struct rig_client *client, uint16_t packet_id, const char *filter, uint8_t options, uint32_t subscription_id);
void rig_send_unsubscribe(struct rig_client *client, uint16_t packet_id, const char *filter);
/* SUBSCRIBE at a QoS, settle, take the SUBACK, which must grant it. */
void rig_subscribe(struct rig_client *client, uint16_t packet_id, const char *filter, uint8_t qos);
/* The network connection breaks. */
void rig_break(struct rig_client *client);

/* The next packet that came out, NULL when none is complete. Borrowed until the next call for this client. */
const struct packet *rig_next(struct rig_client *client);
/* Everything that came out and was not taken by rig_next(), as bytes. */
struct span rig_output(const struct rig_client *client);
/* The broker has closed it. */
bool rig_is_closed(const struct rig_client *client);
bool rig_is_paused(const struct rig_client *client);
/* How many bytes one write takes (default: all), 0 = the socket is full. */
void rig_write_max(struct rig_client *client, size_t bytes);

#endif
