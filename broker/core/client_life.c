#include "broker/core/client_life.h"

#include <stdlib.h>

#include "broker/core/deliver.h"
#include "broker/core/scan.h"
#include "broker/core/session_life.h"
#include "broker/core/shard_state.h"
#include "common/check.h"

#define FAIR_PAUSE_BYTES ((size_t)128 << 10) /* unhandled bytes from which a connection that had its turn is not read */

struct client *client_new(struct shard *shard, void *conn, const struct client_origin *origin)
{
    CHECK(origin->listener_index < shard->config.listener_count);
    struct client *client = calloc(1, sizeof *client);
    if (!client)
        return NULL;
    client->conn = conn;
    client->listener = origin->listener_index;
    client->packet_size_max = UINT32_MAX;
    client->state = CLIENT_CONNECTING;
    client_hear(shard, client);
    list_push_back(&shard->connecting, &client->work);
    int64_t deadline_ms = origin->accepted_mono_ns / 1000000 + shard->config.limits.connect_timeout_ms;
    timer_wheel_add(&shard->client_timers, &client->timer, (uint64_t)(deadline_ms > 0 ? deadline_ms : 0));
    counter_inc(&shard->stats.connections_opened);
    gauge_add(&shard->stats.connections, 1);
    return client;
}

void client_partial_free(struct shard *shard, struct client *client)
{
    if (!client->partial)
        return;
    gauge_add(&shard->stats.partial_bytes, -(int64_t)client->partial->capacity);
    free(client->partial);
    client->partial = NULL;
}

struct client_extra *client_extra_get(struct client *client)
{
    if (!client->extra)
        client->extra = calloc(1, sizeof *client->extra);
    return client->extra;
}

static void extra_free(struct client *client)
{
    struct client_extra *extra = client->extra;
    if (!extra)
        return;
    for (unsigned i = 0; i < extra->topic_count; i++)
        free(extra->topics[i]);
    free(extra->topics);
    free((void *)(uintptr_t)extra->user_name.data);
    free(extra);
    client->extra = NULL;
}

/* Bring the outbox's share of the queue statistics up to date. */
static void count_outbox(struct shard *shard, struct client *client)
{
    uint32_t bytes = client->outbox.bytes < UINT32_MAX ? (uint32_t)client->outbox.bytes : UINT32_MAX;
    if (bytes == client->outbox_counted)
        return;
    struct queue_stats *stats = &shard->stats.outbox;
    uint64_t messages = stats->messages + (client->outbox_counted == 0) - (bytes == 0);
    queue_stats_set(stats, messages, stats->bytes + bytes - client->outbox_counted,
                    stats->messages ? stats->oldest_ns : shard->now_mono_ns);
    client->outbox_counted = bytes;
}

void client_free(struct shard *shard, struct client *client)
{
    timer_wheel_remove(&shard->client_timers, &client->timer);
    list_remove(&client->work);
    if (list_node_is_linked(&client->dirty))
        list_remove(&client->dirty);
    outbox_clear(&client->outbox, &shard->outboxes);
    count_outbox(shard, client);
    client_partial_free(shard, client);
    extra_free(client);
    if (client->is_paused)
        gauge_add(&shard->stats.paused, -1);
    gauge_add(&shard->stats.connections, -1);
    free(client);
}

/* The connection is over for us: the session is told, the client freed. */
void client_detach(struct shard *shard, struct client *client, bool say_will)
{
    struct session *sess = client->session;
    if (sess) {
        CHECK(sess->client == client);
        sess->client = NULL;
        gauge_add(&shard->stats.connected, -1);
    }
    uint8_t protocol = client->version;
    client_free(shard, client);
    if (sess)
        session_on_disconnected(shard, sess, say_will, protocol);
}

void client_close_socket(struct shard *shard, struct client *client)
{
    client_flush(shard, client);
    shard->io->close(shard->io_arg, client->conn, SHARD_CLOSE_LINGER_MS);
}

enum client_step client_drop_connecting(struct shard *shard, struct client *client, struct counter *cell)
{
    CHECK(client->state == CLIENT_CONNECTING);
    counter_inc(cell);
    client_close_socket(shard, client);
    client_detach(shard, client, false);
    return CLIENT_GONE;
}

void client_close(struct shard *shard, struct client *client, enum mqtt_reason reason, struct counter *cell)
{
    if (client->state == CLIENT_CONNECTING) {
        client_drop_connecting(shard, client, cell);
        return;
    }
    counter_inc(cell);
    if (client->is_doomed)
        outbox_clear(&client->outbox, &shard->outboxes); /* its last packet may be cut short */
    if (client->version == MQTT_V5 && client->state == CLIENT_CONNECTED && reason != MQTT_REASON_SUCCESS) {
        struct packet packet = {.type = MQTT_DISCONNECT, .disconnect = {.reason = reason}};
        client_send(shard, client, &packet);
    }
    client_close_socket(shard, client);
    client_detach(shard, client, !shard->is_draining);
}

void client_on_closed(struct shard *shard, struct client *client)
{
    counter_inc(client->state == CLIENT_CONNECTING ? &shard->stats.refused_gone : &shard->stats.closed_network);
    client_detach(shard, client, !shard->is_draining);
}

void client_update_reading(struct shard *shard, struct client *client)
{
    bool pause = shard->is_draining || client->is_choked || client->block == BLOCK_ROOM || client->block == BLOCK_QUOTA ||
                 client->block == BLOCK_LARGE || client->block == BLOCK_SESSION;
    if (client->block == BLOCK_FAIR && client->partial && client->partial->size - client->partial->start > FAIR_PAUSE_BYTES)
        pause = true;
    if (pause == client->is_paused)
        return;
    client->is_paused = pause;
    client_hear(shard, client); /* its keep-alive clock stood still */
    gauge_add(&shard->stats.paused, pause ? 1 : -1);
    if (pause)
        counter_inc(&shard->stats.publish_paused);
    shard->io->read_pause(shard->io_arg, client->conn, pause);
}

void client_flush(struct shard *shard, struct client *client)
{
    while (!outbox_is_empty(&client->outbox) && !client->is_waiting_writable) {
        struct iovec iov[SHARD_IOVECS_MAX];
        int count = outbox_iovecs(&client->outbox, iov, SHARD_IOVECS_MAX);
        size_t total = 0;
        for (int i = 0; i < count; i++)
            total += iov[i].iov_len;
        ssize_t taken = shard->io->write(shard->io_arg, client->conn, iov, count);
        if (taken < 0) {
            client->is_waiting_writable = true; /* broken: shard_on_closed follows */
            outbox_clear(&client->outbox, &shard->outboxes);
            break;
        }
        CHECK((size_t)taken <= total);
        if (client->is_choked && taken > 0)
            client_hear(shard, client); /* it takes what we have: all that we can know of one that we do not read */
        counter_add(&shard->stats.sent_bytes, (uint64_t)taken);
        outbox_consume(&client->outbox, &shard->outboxes, (size_t)taken);
        client->is_waiting_writable = (size_t)taken < total;
    }
    count_outbox(shard, client);
    uint64_t bytes_max = shard->config.limits.outbox_bytes_max;
    client->is_choked = client->is_choked ? client->outbox.bytes > bytes_max / 2 : client->outbox.bytes > bytes_max;
    client_update_reading(shard, client);
    if (client->session)
        scan_pace(shard, client->session);
}

void client_on_writable(struct shard *shard, struct client *client)
{
    client->is_waiting_writable = false;
    client_mark_dirty(shard, client);
    if (client->outbox.bytes == 0)
        return;
    uint64_t before = client->outbox.bytes;
    client_flush(shard, client);
    /* Messages may have waited for the socket. */
    if (client->state == CLIENT_CONNECTED && client->outbox.bytes < before)
        deliver_pump(shard, client);
}
