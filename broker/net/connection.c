#include "broker/net/connection.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "common/check.h"

#define CONNECTION_MAGIC 0x434f4e4eu
#define CONNECTION_LAST_READS 16         /* reads of what a reset connection still holds */
#define CONNECTION_LINGER_DISCARD_MAX 64 /* reads thrown away for one event of a lingering connection */

static void connection_on_poll(uv_poll_t *poll, int status, int events);

static struct connection *connection_of(uv_poll_t *poll)
{
    struct connection *conn = poll->data;
    CHECK(conn->magic == CONNECTION_MAGIC);
    return conn;
}

static void connection_on_poll_closed(uv_handle_t *handle)
{
    struct connection *conn = handle->data;
    CHECK(conn->magic == CONNECTION_MAGIC);
    CHECK(conn->state == CONNECTION_DEAD);
    conn->magic = 0;
    free(conn);
}

/* Set what the poll handle waits for; a change costs system calls, no change nothing. */
static void connection_wait_for(struct connection *conn, int events)
{
    if (conn->events == events)
        return;
    conn->events = (uint8_t)events;
    if (events == 0)
        (void)uv_poll_stop(&conn->poll);
    else
        CHECK(uv_poll_start(&conn->poll, events, connection_on_poll) == 0);
}

static int connection_events_wanted(const struct connection *conn)
{
    bool wants_write = conn->blocked || transport_pending(&conn->transport) > 0;
    return (conn->paused ? 0 : UV_READABLE) | (wants_write ? UV_WRITABLE : 0);
}

static void connection_move(struct connection *conn, enum connection_state state, struct list_node *list)
{
    list_remove(&conn->node);
    conn->state = (uint8_t)state;
    list_push_back(list, &conn->node);
}

/* The end: the descriptor is closed now, the memory goes when libuv has let go of the handle. */
static void connection_kill(struct connection *conn)
{
    struct loop *loop = conn->loop;
    if (conn->state == CONNECTION_LINGER)
        gauge_set(&loop->stats.lingering, (int64_t)--loop->lingering_count);
    else
        gauge_set(&loop->stats.connections, (int64_t)--loop->connection_count);
    list_remove(&conn->node);
    conn->state = CONNECTION_DEAD;
    counter_inc(&loop->stats.closed);
    atomic_fetch_sub_explicit(&conn->listener->connections, 1, memory_order_relaxed);
    uv_close((uv_handle_t *)&conn->poll, connection_on_poll_closed);
    transport_free(&conn->transport);
}

/* The peer has gone: the shard hears it, then the connection ends. */
static void connection_lost(struct connection *conn, const char *reason)
{
    struct client *client = conn->client;
    conn->client = NULL;
    shard_on_closed(conn->loop->shard, client, reason);
    connection_kill(conn);
}

/* One read. False when the connection ended or changed its state. */
static bool connection_read(struct connection *conn, size_t size_max)
{
    struct loop *loop = conn->loop;
    ssize_t got = transport_read(&conn->transport, loop->read_buffer, size_max, &loop->scratch);
    if (got > 0) {
        counter_add(&loop->stats.bytes_received, (uint64_t)got);
        shard_on_bytes(loop->shard, conn->client, loop->read_buffer, (size_t)got);
        return conn->state == CONNECTION_OPEN;
    }
    if (got == TRANSPORT_EOF)
        connection_lost(conn, "closed by the client without DISCONNECT");
    else if (got == TRANSPORT_BROKEN)
        connection_lost(conn, "connection reset");
    return false;
}

static size_t connection_read_size(const struct connection *conn) { return conn->transport.impl ? LOOP_READ_SIZE : TRANSPORT_CIPHER_SIZE; }

/* Reset: what arrived before may still be read. */
static void connection_on_error(struct connection *conn)
{
    conn->events = 0; /* libuv has stopped the handle */
    for (int i = 0; i < CONNECTION_LAST_READS; i++) {
        if (!connection_read(conn, connection_read_size(conn)))
            break;
    }
    if (conn->state == CONNECTION_OPEN)
        connection_lost(conn, "connection reset");
}

static void connection_on_writable(struct connection *conn)
{
    int flushed = transport_flush(&conn->transport);
    if (flushed == TRANSPORT_BROKEN) {
        connection_lost(conn, "write failed");
        return;
    }
    if (flushed == TRANSPORT_AGAIN || !conn->blocked)
        return;
    conn->blocked = false;
    shard_on_writable(conn->loop->shard, conn->client);
}

static void connection_on_linger(struct connection *conn, int status)
{
    struct loop *loop = conn->loop;
    if (status < 0 || transport_flush(&conn->transport) == TRANSPORT_BROKEN) {
        connection_kill(conn);
        return;
    }
    if (!conn->shutdown_sent && transport_pending(&conn->transport) == 0) {
        transport_shutdown(&conn->transport);
        conn->shutdown_sent = true;
    }
    for (int i = 0; i < CONNECTION_LINGER_DISCARD_MAX; i++) {
        ssize_t got = recv(conn->transport.fd, loop->read_buffer, LOOP_READ_SIZE, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) {
            connection_kill(conn);
            return;
        }
        if (got < 0)
            break;
    }
    connection_wait_for(conn, UV_READABLE | (transport_pending(&conn->transport) > 0 ? UV_WRITABLE : 0));
}

static void connection_on_poll(uv_poll_t *poll, int status, int events)
{
    struct connection *conn = connection_of(poll);
    conn->loop->enter_turn(conn->loop);
    if (conn->state == CONNECTION_LINGER) {
        if (status < 0)
            conn->events = 0;
        connection_on_linger(conn, status);
        return;
    }
    if (conn->state != CONNECTION_OPEN)
        return;
    if (status < 0) {
        connection_on_error(conn);
        return;
    }
    if (events & UV_WRITABLE)
        connection_on_writable(conn);
    if (conn->state == CONNECTION_OPEN && (events & UV_READABLE) && !conn->paused)
        (void)connection_read(conn, connection_read_size(conn));
    if (conn->state == CONNECTION_OPEN)
        connection_wait_for(conn, connection_events_wanted(conn));
}

void connection_open(struct loop *loop, struct arrival *arrival)
{
    struct connection *conn = calloc(1, sizeof *conn);
    if (!conn || uv_poll_init(&loop->uv, &conn->poll, arrival->transport.fd) != 0) {
        atomic_fetch_sub_explicit(&arrival->listener->connections, 1, memory_order_relaxed);
        transport_free(&arrival->transport);
        free(conn);
        free(arrival);
        return;
    }
    conn->magic = CONNECTION_MAGIC;
    conn->state = CONNECTION_OPEN;
    conn->transport = arrival->transport;
    conn->loop = loop;
    conn->listener = arrival->listener;
    conn->poll.data = conn;
    list_push_back(&loop->connections, &conn->node);
    gauge_set(&loop->stats.connections, (int64_t)++loop->connection_count);
    counter_inc(&loop->stats.arrived);
    counter_add(&loop->stats.bytes_received, arrival->size);

    struct client_origin origin = {
        .peer = span_of_string(arrival->peer),
        .listener_index = arrival->listener->index,
        .accepted_mono_ns = arrival->accepted_ns,
    };
    conn->client = shard_open(loop->shard, conn, &origin);
    if (!conn->client) {
        connection_kill(conn);
    } else {
        shard_on_bytes(loop->shard, conn->client, arrival->bytes, arrival->size);
        if (conn->state == CONNECTION_OPEN)
            connection_wait_for(conn, connection_events_wanted(conn));
    }
    free(arrival);
}

ssize_t connection_write(struct connection *conn, const struct iovec *iov, int iov_count)
{
    CHECK(conn->magic == CONNECTION_MAGIC);
    if (conn->state != CONNECTION_OPEN)
        return TRANSPORT_BROKEN;
    struct loop *loop = conn->loop;
    size_t total = 0;
    for (int i = 0; i < iov_count; i++)
        total += iov[i].iov_len;
    ssize_t taken = transport_write(&conn->transport, iov, iov_count, &loop->scratch);
    if (taken < 0) {
        connection_wait_for(conn, 0);
        connection_move(conn, CONNECTION_BROKEN, &loop->broken);
        loop->must_turn = true;
        return -1;
    }
    counter_add(&loop->stats.bytes_sent, (uint64_t)taken);
    if ((size_t)taken < total) {
        conn->blocked = true;
        counter_inc(&loop->stats.write_blocked);
    }
    if (conn->blocked || transport_pending(&conn->transport) > 0)
        connection_wait_for(conn, conn->events | UV_WRITABLE);
    return taken;
}

void connection_read_pause(struct connection *conn, bool paused)
{
    CHECK(conn->magic == CONNECTION_MAGIC);
    conn->paused = paused;
    /* Pausing is done at the next event; going on again only if that came to pass. */
    if (!paused && conn->state == CONNECTION_OPEN && !(conn->events & UV_READABLE))
        connection_wait_for(conn, conn->events | UV_READABLE);
}

void connection_close(struct connection *conn, uint32_t linger_ms)
{
    CHECK(conn->magic == CONNECTION_MAGIC);
    struct loop *loop = conn->loop;
    conn->client = NULL;
    if (conn->state == CONNECTION_BROKEN || linger_ms == 0) {
        connection_kill(conn);
        return;
    }
    connection_move(conn, CONNECTION_LINGER, &loop->lingering);
    gauge_set(&loop->stats.connections, (int64_t)--loop->connection_count);
    gauge_set(&loop->stats.lingering, (int64_t)++loop->lingering_count);
    conn->linger_until_ns = clock_mono() + linger_ms * NS_PER_MS;
    conn->blocked = false;
    connection_on_linger(conn, 0);
}

void connection_sweep_broken(struct loop *loop)
{
    for (struct list_node *node; (node = list_first(&loop->broken)) != NULL;)
        connection_lost(LIST_ENTRY(node, struct connection, node), "write failed");
}

mono_ns connection_sweep_lingering(struct loop *loop, mono_ns now)
{
    /* All linger for the same time, so the list is in the order of their ends: a storm of refused clients is not walked each turn. */
    for (struct list_node *node; (node = list_first(&loop->lingering)) != NULL;) {
        struct connection *conn = LIST_ENTRY(node, struct connection, node);
        if (conn->linger_until_ns > now)
            return conn->linger_until_ns;
        connection_kill(conn);
    }
    return INT64_MAX;
}

void connection_drop_all(struct loop *loop)
{
    struct list_node *lists[] = {&loop->connections, &loop->lingering, &loop->broken};
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        for (struct list_node *node; (node = list_first(lists[i])) != NULL;)
            connection_kill(LIST_ENTRY(node, struct connection, node));
    }
}
