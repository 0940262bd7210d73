/* A connection at home: one uv_poll_t, one transport, one client of the shard.
 *
 *   OPEN    --shard closes-->  LINGER  --peer's end, deadline-->  DEAD
 *   OPEN    --end, reset-->    (shard_on_closed)  DEAD
 *   OPEN    --a write fails--> BROKEN  --next turn: shard_on_closed-->  DEAD
 *
 * A poll handle rather than a uv_tcp_t: it is 90 bytes smaller, plain and TLS connections read and write alike through their transport,
 * and the shard's vectored write goes to the socket with nothing kept for it. In the steady state a message costs one recv and one send;
 * the set of events changes only when a socket is full or reading is paused, and pausing is lazy: a pause that ends before the next event
 * costs nothing.
 *
 * LINGER: what the shard wrote last (a DISCONNECT or CONNACK with the reason) would be lost if the descriptor were closed with unread
 * input, because the kernel then resets the connection. So our direction is ended first, and input is thrown away until the peer ends too
 * or the time is over.
 *
 * Owner: the loop. */
#ifndef TIDEGATE_BROKER_NET_CONNECTION_H
#define TIDEGATE_BROKER_NET_CONNECTION_H

#include "broker/net/loop_state.h"

enum connection_state { CONNECTION_OPEN, CONNECTION_BROKEN, CONNECTION_LINGER, CONNECTION_DEAD };

struct connection {
    uint32_t magic;
    uint8_t state;      /* enum connection_state */
    uint8_t events;     /* what the poll handle waits for */
    bool paused;        /* the shard wants no bytes now */
    bool blocked;       /* a write was short: tell the shard when the socket takes more */
    bool shutdown_sent; /* our direction is ended */
    struct transport transport;
    struct loop *loop;
    struct listener *listener;
    union {
        struct client *client; /* OPEN, BROKEN */
        mono_ns linger_until_ns;
    };
    struct list_node node; /* in the list of its state */
    uv_poll_t poll;
};

/* Take an arrival in: its client is opened in the shard and given the bytes. The arrival is freed. Within a turn. */
void connection_open(struct loop *loop, struct arrival *arrival);

/* The shard's io; see shard.h. */
ssize_t connection_write(struct connection *conn, const struct iovec *iov, int iov_count);
void connection_read_pause(struct connection *conn, bool paused);
void connection_close(struct connection *conn, uint32_t linger_ms);

/* Tell the shard of connections whose writes failed. Once a turn. */
void connection_sweep_broken(struct loop *loop);
/* Close those whose linger time is over; returns when to look again. */
mono_ns connection_sweep_lingering(struct loop *loop, mono_ns now);
/* Close everything without telling the shard, which is drained. */
void connection_drop_all(struct loop *loop);

#endif
