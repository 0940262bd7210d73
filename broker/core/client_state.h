/* What a connection is, what is sent to it, and what stops its packets. It knows nothing of what packets mean: that stands above it.
 *
 * Why its packets stay unprocessed:
 *
 *   BLOCK_FAIR   it had its publishes of this turn                               next turn
 *   BLOCK_ROOM   log, gate or a ring has no room for its PUBLISH                 when there is room again
 *   BLOCK_QUOTA  it has receive_maximum unanswered PUBLISHes, not strict         when the gate releases one (a PUBREC is an answer: the
 *                                                                                PUBREL may stand behind what is not read)
 *   BLOCK_LARGE  its large record is on its way into blocks                      when its last block is sealed
 *   BLOCK_SESSION  it is WAITING                                                 when its session is durable
 *
 * Nothing in the sending direction ever closes a client while its packets are handled: shortage of memory marks it `is_doomed`, and the end
 * of the turn closes it. Owner: the shard. Pure. */
#ifndef TIDEGATE_BROKER_CORE_CLIENT_STATE_H
#define TIDEGATE_BROKER_CORE_CLIENT_STATE_H

#include "broker/core/ack_gate.h"
#include "broker/core/shard_state.h"
#include "broker/mqtt/packet.h"
#include "broker/session/outbox.h"
#include "broker/session/session.h"
#include "common/list.h"

#define CLIENT_TICK_MS 100
#define CLIENT_KEEP_ALIVE_MS(seconds) ((int64_t)(seconds)*1500) /* one and a half times [MQTT-3.1.2-22] */

enum client_state { CLIENT_CONNECTING, CLIENT_WAITING, CLIENT_CONNECTED };
enum client_block { BLOCK_NONE, BLOCK_FAIR, BLOCK_ROOM, BLOCK_QUOTA, BLOCK_LARGE, BLOCK_SESSION };

/* What became of handling one packet. */
enum client_step {
    CLIENT_NEXT,    /* handled */
    CLIENT_BLOCKED, /* nothing happened; the packet stays, client.block says why */
    CLIENT_OVER,    /* the client is to be closed: shard.over says why */
    CLIENT_GONE,    /* the client has been freed */
};

/* Bytes not handled yet. */
struct client_partial {
    size_t start, size, capacity; /* bytes[start, size) are to be handled */
    uint8_t bytes[];
};

struct client_alias {
    uint32_t size;
    uint8_t topic[];
};

/* What few connections have. */
struct client_extra {
    struct client_alias **topics; /* incoming aliases; alias 1 is [0]; NULL = not set */
    uint16_t topic_count;
    struct span user_name; /* if a rule asks for it; own block */
};

struct client {
    void *conn;
    struct session *session; /* NULL while CONNECTING */
    struct outbox outbox;    /* */
    struct timer_node timer; /* connect timeout, keep-alive */
    struct list_node dirty;  /* in shard.dirty */
    struct list_node work;   /* in shard.connecting, .idle, .ready or .blocked: always in one */
    struct client_partial *partial;
    struct client_extra *extra; /* NULL = none */
    uint32_t packet_size_max;   /* the client's Maximum Packet Size; UINT32_MAX = none */
    uint32_t gate_held;         /* answers of this connection in the gate */
    uint32_t receive_held;      /* QoS > 0 from it that are not answered; of a strict one, QoS 2 until PUBREL */
    uint32_t heard_tick;        /* mono, the last bytes, in CLIENT_TICK_MS */
    uint32_t outbox_counted;    /* bytes of its outbox in the shard's queue statistics */
    uint16_t turn;              /* of `publishes`, low bits */
    uint16_t publishes;         /* handled in that turn; those with many recipients count for several */
    uint16_t listener;          /* index */
    uint16_t keep_alive_s;      /* in force; 0 = none */
    uint16_t receive_max;       /* the client's: how many QoS > 0 may be in flight to it */
    uint16_t send_quota;        /* what is left of it */
    uint8_t version;            /* enum mqtt_version */
    uint8_t state;              /* enum client_state */
    uint8_t block;              /* enum client_block */
    bool is_paused;             /* as the driver was told */
    bool is_choked;             /* its outbox is past the bound: not read until half is gone */
    bool is_waiting_writable;   /* the last write stopped: the driver will tell */
    bool is_doomed;             /* close at the end of the turn */
    bool reports_durability;    /* PUBACK and PUBREC say what they stand for */
    bool is_strict;             /* exceeding the receive maximum closes it: it speaks MQTT 5 and was told */
};

_Static_assert(sizeof(struct client) <= 160, "a connection's memory: one size class of the allocator");

/* Its listener's settings. */
static inline const struct shard_listener *client_listener(const struct shard *shard, const struct client *client)
{
    return &shard->config.listeners[client->listener];
}
/* It is alive now. Rounded up: a keep-alive is never short. */
static inline void client_hear(const struct shard *shard, struct client *client)
{
    client->heard_tick = (uint32_t)((shard->now_ms + CLIENT_TICK_MS - 1) / CLIENT_TICK_MS);
}

/* Packets to the client; queued in its outbox, written at the end of the turn. */
void client_send(struct shard *shard, struct client *client, const struct packet *packet);
void client_send_ack(struct shard *shard, struct client *client, enum mqtt_packet_type type, uint16_t packet_id, enum mqtt_reason reason);
/* An answer that may have to wait for the log or the route actor: its waits, packet_type, packet_id, reason and durability; the rest is
 * filled in here. */
void client_answer(struct shard *shard, struct client *client, struct gate_item *item);
/* It leaves now. */
void client_send_answer(struct shard *shard, struct client *client, const struct gate_item *item);
/* Encoded packets. */
void client_send_bytes(struct shard *shard, struct client *client, struct span bytes);
/* Bytes were put into its outbox. */
void client_mark_dirty(struct shard *shard, struct client *client);
/* Memory for its output has run out: the end of the turn closes it. */
void client_doom(struct shard *shard, struct client *client);

/* Stop handling its packets, and start again with the next turn. Returns CLIENT_BLOCKED, for who leaves the packet as it is. */
enum client_step client_set_block(struct shard *shard, struct client *client, enum client_block block);
void client_wake(struct shard *shard, struct client *client);
/* The packet ends its connection: the verdict of whoever judges it; client.c closes. */
enum client_step client_over(struct shard *shard, enum mqtt_reason reason, struct counter *cell);

/* Into that list of the shard. */
void client_move(struct list_node *list, struct client *client);

/* The user name, if a rule asks for it; else empty. */
struct span client_user_name(const struct client *client);

struct client_ref client_ref_of(const struct client *client);
/* NULL when that connection is gone. */
struct client *client_find(const struct shard *shard, const struct client_ref *ref);

#endif
