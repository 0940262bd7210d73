/* The door: where connections are accepted, prove who they are, are admitted or refused, and go to their home.
 *
 *   accept --plain--> READING --CONNECT complete--> admitted --> home (a ring of the home's loop)
 *      \--tls--> HANDSHAKE <-> COMPUTING (CPU pool) --> READING      \--> DEFERRED until its place in the schedule --> home
 *                                                                     \--> refused: CONNACK 0x9F, 0x97 (3.x: return code 3), closed
 *
 * One thread of its own. Before its home is known a connection is a descriptor read with recv(); what moves is the transport (descriptor
 * and TLS state), the bytes read so far (all of CONNECT and whatever came behind it), the peer's address and the time of accepting. The
 * home is hash(client id); a CONNECT without one goes round robin, and its home gives it an id that belongs there. In the usual case the
 * CONNECT is in the socket when accept returns: then the descriptor never enters this thread's epoll at all.
 *
 * What CONNECT says is judged at home, in one place; here only what keeps it from getting there: another first packet, an impossible frame,
 * a size above the limit, time, rates and counts. Each refusal is counted by reason.
 *
 * Bounds: guests_max connections before home (then accepting pauses: the kernel's backlog holds the rest), guest_bytes_max of incomplete
 * first packets, the CPU pool's queue, connect_timeout for all of it. */
#ifndef TIDEGATE_BROKER_NET_HANDOVER_H
#define TIDEGATE_BROKER_NET_HANDOVER_H

#include "broker/guard/cpu_pool.h"
#include "broker/net/listener.h"
#include "broker/net/loop.h"

struct door;

struct door_config {
    struct listener *listeners;
    size_t listener_count;
    struct loop **loops; /* one a shard */
    uint16_t shard_count;
    uint64_t hash_key;
    struct cpu_pool *pool; /* NULL: no TLS listener */
    int64_t connect_timeout_ns;
    uint32_t guests_max;
    uint64_t guest_bytes_max;
    uint64_t connections_max; /* of all listeners; UINT64_MAX: no limit */
    int fd_end;               /* descriptors from here on are not for connections, but for the broker's own files; 0: no limit */
    uint64_t accept_rate, accept_burst;
    uint64_t connection_rate, connection_burst;
    int64_t defer_max_ns; /* how long admission may hold a CONNECT back; 0: what is not on time is refused */
    bool log_connections;
};

/* Cells: the door's thread. */
struct door_stats {
    struct queue_stats guests;   /* accepted, not yet at home; bytes: of their first packets */
    struct queue_stats deferred; /* of these, those that wait for their place in the schedule */
    struct counter accept_pauses;
    struct histogram arrival_ns; /* from accept to handed over */
};

/* Returns 0 or an error with msg. The listeners are open. Thread: main. */
enum err door_new(struct door **door_out, const struct door_config *config, struct errmsg *msg) must_check;
enum err door_start(struct door *door) must_check;
/* Stop accepting, close the listening sockets, refuse the guests, end the thread. The pool may still run; it is drained by this. */
void door_stop(struct door *door);
/* After the pool has gone. */
void door_free(struct door *door);

const struct door_stats *door_get_stats(const struct door *door);
/* Process-wide buckets, for the metrics. Thread: any. */
const struct admission_bucket *door_accepts(const struct door *door);
const struct admission_bucket *door_connects(const struct door *door);

#endif
