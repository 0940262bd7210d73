#include "broker/core/client.h"

#include <stdio.h>
#include <stdlib.h>

#include "broker/core/deliver.h"
#include "broker/core/publish.h"
#include "broker/core/scan.h"
#include "broker/core/session_life.h"
#include "broker/core/session_log.h"
#include "broker/core/shard_log.h"
#include "broker/core/shard_state.h"
#include "broker/core/subscribe.h"
#include "broker/guard/tier.h"
#include "common/check.h"

#define PARTIAL_FIRST 256u
#define PARTIAL_SMALL 4096u                              /* bytes that a connection may keep though others have used the budget up */
#define FAIR_PAUSE_BYTES ((size_t)128 << 10)             /* unhandled bytes from which a connection that had its turn is not read */
#define KEEP_ALIVE_MS(seconds) ((int64_t)(seconds)*1500) /* one and a half times [MQTT-3.1.2-22] */
#define ASSIGNED_PREFIX "auto-"
#define ASSIGNED_SIZE (sizeof ASSIGNED_PREFIX - 1 + 16)

struct client_partial {
    size_t start, size, capacity; /* bytes[start, size) are to be handled */
    uint8_t bytes[];
};

static const struct shard_listener *listener_of(const struct shard *shard, const struct client *client)
{
    return &shard->config.listeners[client->listener];
}

/* Rounded up: a keep-alive is never short. */
static void hear(const struct shard *shard, struct client *client)
{
    client->heard_tick = (uint32_t)((shard->now_ms + CLIENT_TICK_MS - 1) / CLIENT_TICK_MS);
}

/* --- life --------------------------------------------------------------------------------------------------------------------------- */

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
    hear(shard, client);
    list_push_back(&shard->connecting, &client->work);
    int64_t deadline_ms = origin->accepted_mono_ns / 1000000 + shard->config.limits.connect_timeout_ms;
    timer_wheel_add(&shard->client_timers, &client->timer, (uint64_t)(deadline_ms > 0 ? deadline_ms : 0));
    counter_inc(&shard->stats.connections_opened);
    gauge_add(&shard->stats.connections, 1);
    return client;
}

static void partial_free(struct shard *shard, struct client *client)
{
    if (!client->partial)
        return;
    gauge_add(&shard->stats.partial_bytes, -(int64_t)client->partial->capacity);
    free(client->partial);
    client->partial = NULL;
}

static struct client_extra *extra_get(struct client *client)
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
    partial_free(shard, client);
    extra_free(client);
    if (client->is_paused)
        gauge_add(&shard->stats.paused, -1);
    gauge_add(&shard->stats.connections, -1);
    free(client);
}

/* The connection is over for us: the session is told, the client freed. */
static void detach(struct shard *shard, struct client *client, bool say_will)
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

static void close_socket(struct shard *shard, struct client *client)
{
    client_flush(shard, client);
    shard->io->close(shard->io_arg, client->conn, SHARD_CLOSE_LINGER_MS);
}

/* A connection that ends without CONNACK or after a refusing one. */
static enum client_step drop_connecting(struct shard *shard, struct client *client, struct counter *cell)
{
    CHECK(client->state == CLIENT_CONNECTING);
    counter_inc(cell);
    close_socket(shard, client);
    detach(shard, client, false);
    return CLIENT_GONE;
}

void client_close(struct shard *shard, struct client *client, enum mqtt_reason reason, struct counter *cell)
{
    if (client->state == CLIENT_CONNECTING) {
        drop_connecting(shard, client, cell);
        return;
    }
    counter_inc(cell);
    if (client->is_doomed)
        outbox_clear(&client->outbox, &shard->outboxes); /* its last packet may be cut short */
    if (client->version == MQTT_V5 && client->state == CLIENT_CONNECTED && reason != MQTT_REASON_SUCCESS) {
        struct packet packet = {.type = MQTT_DISCONNECT, .disconnect = {.reason = reason}};
        client_send(shard, client, &packet);
    }
    close_socket(shard, client);
    detach(shard, client, !shard->is_draining);
}

void client_on_closed(struct shard *shard, struct client *client)
{
    counter_inc(client->state == CLIENT_CONNECTING ? &shard->stats.refused_gone : &shard->stats.closed_network);
    detach(shard, client, !shard->is_draining);
}

/* --- out ---------------------------------------------------------------------------------------------------------------------------- */

/* Reading stops while packets cannot be handled or the other direction is clogged. */
static void update_reading(struct shard *shard, struct client *client)
{
    bool pause = shard->is_draining || client->is_choked || client->block == BLOCK_ROOM || client->block == BLOCK_QUOTA ||
                 client->block == BLOCK_LARGE || client->block == BLOCK_SESSION;
    if (client->block == BLOCK_FAIR && client->partial && client->partial->size - client->partial->start > FAIR_PAUSE_BYTES)
        pause = true;
    if (pause == client->is_paused)
        return;
    client->is_paused = pause;
    hear(shard, client); /* its keep-alive clock stood still */
    gauge_add(&shard->stats.paused, pause ? 1 : -1);
    if (pause)
        counter_inc(&shard->stats.publish_paused);
    shard->io->read_pause(shard->io_arg, client->conn, pause);
}

void client_stop_reading(struct shard *shard, struct client *client) { update_reading(shard, client); }

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
            hear(shard, client); /* it takes what we have: all that we can know of one that we do not read */
        counter_add(&shard->stats.sent_bytes, (uint64_t)taken);
        outbox_consume(&client->outbox, &shard->outboxes, (size_t)taken);
        client->is_waiting_writable = (size_t)taken < total;
    }
    count_outbox(shard, client);
    uint64_t bytes_max = shard->config.limits.outbox_bytes_max;
    client->is_choked = client->is_choked ? client->outbox.bytes > bytes_max / 2 : client->outbox.bytes > bytes_max;
    update_reading(shard, client);
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

/* --- CONNECT ------------------------------------------------------------------------------------------------------------------------ */

static enum client_step refuse_connect(struct shard *shard, struct client *client, enum mqtt_version version, enum mqtt_reason reason,
                                       struct counter *cell)
{
    client->version = (uint8_t)version;
    struct packet packet = {.type = MQTT_CONNACK, .connack = {.reason = reason}};
    client_send(shard, client, &packet); /* nothing where the version has no fitting code [MQTT-3.2.2-6 of 3.1.1] */
    return drop_connecting(shard, client, cell);
}

static bool is_keep_alive_above(const struct shard_listener *listener, uint16_t keep_alive_s)
{
    return listener->max_keepalive_s > 0 && (keep_alive_s == 0 || keep_alive_s > listener->max_keepalive_s);
}

/* Everything about a CONNECT that needs no session. Returns SUCCESS or the reason of the refusal, its counter in *cell_out. */
static enum mqtt_reason judge_connect(struct shard *shard, const struct client *client, const struct packet_connect *connect,
                                      struct counter **cell_out)
{
    const struct shard_listener *listener = listener_of(shard, client);
    struct shard_stats *stats = &shard->stats;
    *cell_out = &stats->refused_will;
    if (connect->has_will && connect->will_qos > listener->max_qos)
        return MQTT_REASON_QOS_NOT_SUPPORTED; /* [MQTT-3.2.2-12] */
    if (connect->has_will && connect->will_retain && !listener->retain_available)
        return MQTT_REASON_RETAIN_NOT_SUPPORTED; /* [MQTT-3.2.2-13] */
    *cell_out = &stats->refused_keep_alive;
    if (connect->version < MQTT_V5 && is_keep_alive_above(listener, connect->keep_alive_s))
        return MQTT_REASON_CLIENT_IDENTIFIER_NOT_VALID; /* as mosquitto has it: these versions cannot be told another */
    *cell_out = &stats->refused_auth_method;
    if (connect->properties.present & MQTT_PROPERTY_BIT(AUTHENTICATION_METHOD))
        return MQTT_REASON_BAD_AUTHENTICATION_METHOD; /* [MQTT-4.12.0-1] */
    *cell_out = &stats->refused_client_id;
    if (connect->client_id.size == 0 &&
        (!shard->config.limits.allow_zero_length_clientid || (connect->version < MQTT_V5 && !connect->clean_start)))
        return MQTT_REASON_CLIENT_IDENTIFIER_NOT_VALID; /* [MQTT-3.1.3-8] */
    *cell_out = &stats->refused_not_authorized;
    if (!listener->allow_anonymous)
        return MQTT_REASON_NOT_AUTHORIZED;
    *cell_out = &stats->refused_shutdown;
    if (shard->is_draining)
        return MQTT_REASON_SERVER_UNAVAILABLE;
    return MQTT_REASON_SUCCESS;
}

/* An id of our making, at home in this shard and not in use [MQTT-3.1.3-6]. */
static struct span assign_client_id(struct shard *shard, char text[ASSIGNED_SIZE + 1])
{
    struct span id;
    do {
        snprintf(text, ASSIGNED_SIZE + 1, ASSIGNED_PREFIX "%016llx", (unsigned long long)shard->io->random(shard->io_arg));
        id = span_of(text, ASSIGNED_SIZE);
    } while (shard_home(shard->config.hash_key, shard->config.shard_count, id) != shard->config.index ||
             session_table_find(&shard->sessions, id));
    return id;
}

/* The session that this CONNECT continues: an older connection is closed first [MQTT-3.1.4-3]; NULL when a new one is due.
 * has_ended_out: the log was told that one ended, and CONNACK has to wait for it. */
static struct session *take_over(struct shard *shard, bool *has_ended_out, const struct packet_connect *connect, struct span client_id)
{
    struct session *sess = session_table_find(&shard->sessions, client_id);
    if (sess && sess->client) {
        client_close(shard, sess->client, MQTT_REASON_SESSION_TAKEN_OVER, &shard->stats.closed_taken_over);
        sess = session_table_find(&shard->sessions, client_id); /* it may have ended with its connection */
    }
    /* One that was connected when the broker stopped is back, whatever becomes of its session. */
    if (sess && sess->rare && sess->rare->will && sess->rare->will->is_restored)
        session_forget_will(shard, sess);
    /* One that is over is still there when it waits for its will to be said, as after a restart. */
    if (sess && (connect->clean_start || !session_is_persistent(sess) || sess->expiry_at_ms <= shard->now_ms)) {
        *has_ended_out = sess->is_logged;
        session_end(shard, sess); /* [MQTT-3.1.2-4] */
        sess = NULL;
    }
    return sess;
}

static uint32_t expiry_in_force(const struct shard *shard, uint32_t asked_s)
{
    uint32_t max_s = shard->config.limits.session_expiry_max_s;
    return asked_s < max_s ? asked_s : max_s;
}

static uint32_t expiry_asked(const struct packet_connect *connect)
{
    if (connect->version < MQTT_V5)
        return connect->clean_start ? 0 : SESSION_NEVER_EXPIRES;
    return connect->properties.present & MQTT_PROPERTY_BIT(SESSION_EXPIRY_INTERVAL) ? connect->properties.session_expiry_interval_s : 0;
}

/* What the client may want to know; only what differs from the defaults. */
static void connack_properties(const struct shard *shard, const struct client *client, struct mqtt_properties *props,
                               const struct packet_connect *connect, struct span assigned_id)
{
    const struct shard_listener *listener = listener_of(shard, client);
#define SAY(name, field, value) (props->field = (value), props->present |= MQTT_PROPERTY_BIT(name))
    if (client->session->expiry_interval_s != expiry_asked(connect))
        SAY(SESSION_EXPIRY_INTERVAL, session_expiry_interval_s, client->session->expiry_interval_s);
    if (listener->receive_maximum != UINT16_MAX)
        SAY(RECEIVE_MAXIMUM, receive_maximum, listener->receive_maximum);
    if (listener->max_qos < 2)
        SAY(MAXIMUM_QOS, maximum_qos, listener->max_qos); /* [MQTT-3.2.2-9] */
    if (!listener->retain_available)
        SAY(RETAIN_AVAILABLE, retain_available, 0);
    if (listener->max_packet_size < FRAME_SIZE_MAX)
        SAY(MAXIMUM_PACKET_SIZE, maximum_packet_size, listener->max_packet_size);
    if (assigned_id.size > 0)
        SAY(ASSIGNED_CLIENT_IDENTIFIER, assigned_client_identifier, assigned_id); /* [MQTT-3.1.3-7] */
    if (listener->topic_alias_maximum > 0)
        SAY(TOPIC_ALIAS_MAXIMUM, topic_alias_maximum, listener->topic_alias_maximum);
    if (client->keep_alive_s != connect->keep_alive_s)
        SAY(SERVER_KEEP_ALIVE, server_keep_alive_s, client->keep_alive_s);
    SAY(SHARED_SUBSCRIPTION_AVAILABLE, shared_subscription_available, 0);
#undef SAY
}

/* User property `tidegate-report-durability`, whatever its value; a client that wants no problem information gets no user properties
 * outside PUBLISH, CONNACK and DISCONNECT [MQTT-3.1.2-29]. */
static bool wants_durability(const struct mqtt_properties *props)
{
    if ((props->present & MQTT_PROPERTY_BIT(REQUEST_PROBLEM_INFORMATION)) && props->request_problem_information == 0)
        return false;
    struct span rest = props->present & MQTT_PROPERTY_BIT(USER_PROPERTY) ? props->raw : (struct span){0, 0}, name, value;
    while (properties_next_user_property(&rest, &name, &value))
        if (span_equal(name, SPAN_LITERAL("tidegate-report-durability")))
            return true;
    return false;
}

/* What of the connection comes from CONNECT. */
static void apply_connect(struct shard *shard, struct client *client, const struct packet_connect *connect)
{
    const struct shard_listener *listener = listener_of(shard, client);
    const struct mqtt_properties *props = &connect->properties;
    client->version = (uint8_t)connect->version;
    client->receive_max = props->present & MQTT_PROPERTY_BIT(RECEIVE_MAXIMUM) ? props->receive_maximum : UINT16_MAX;
    client->send_quota = client->receive_max;
    client->packet_size_max = props->present & MQTT_PROPERTY_BIT(MAXIMUM_PACKET_SIZE) ? props->maximum_packet_size : UINT32_MAX;
    client->reports_durability = client->version == MQTT_V5 && wants_durability(props);
    client->is_strict = client->version == MQTT_V5 && shard->config.limits.receive_maximum_strict;
    client->keep_alive_s =
        is_keep_alive_above(listener, connect->keep_alive_s) ? listener->max_keepalive_s : connect->keep_alive_s; /* [MQTT-3.2.2-22] */
}

static void start_keep_alive(struct shard *shard, struct client *client)
{
    timer_wheel_remove(&shard->client_timers, &client->timer);
    hear(shard, client);
    if (client->keep_alive_s > 0)
        timer_wheel_add(&shard->client_timers, &client->timer, (uint64_t)(shard->now_ms + KEEP_ALIVE_MS(client->keep_alive_s)));
}

static bool keep_user_name(const struct shard *shard, struct client *client, const struct packet_connect *connect)
{
    if (!shard->wants_user_name || !connect->has_user_name)
        return true;
    uint8_t *copy = extra_get(client) ? malloc(connect->user_name.size + 1) : NULL;
    if (!copy)
        return false;
    memcpy(copy, connect->user_name.data, connect->user_name.size);
    client->extra->user_name = span_of(copy, connect->user_name.size);
    return true;
}

/* Make session and client one. False: memory is short. */
static bool attach(struct shard *shard, struct client *client, struct session *sess, const struct packet_connect *connect)
{
    if (!session_unfold_filter(sess) || !inflight_unpack(&sess->inflight))
        return false;
    struct session_rare *rare = connect->has_will ? session_rare_get(sess) : NULL;
    if (connect->has_will) {
        struct will *will = rare ? will_new(connect, session_client_id(sess), sess->number) : NULL;
        if (!will)
            return false;
        rare->will = will;
    }
    timer_wheel_remove(&shard->session_timers, &sess->timer);
    sess->expiry_interval_s = expiry_in_force(shard, expiry_asked(connect));
    sess->is_named |= session_is_persistent(sess);
    sess->connection++;
    sess->client = client;
    client->session = sess;
    client->state = CLIENT_CONNECTED;
    client_move(&shard->idle, client);
    inflight_restart(&sess->inflight);
    if (sess->rare)
        inbound_ids_uncount(&sess->rare->inbound);
    gauge_add(&shard->stats.connected, 1);
    return true;
}

/* The client may have its CONNACK. */
static void begin_connected(struct shard *shard, struct client *client)
{
    client->state = CLIENT_CONNECTED;
    start_keep_alive(shard, client);
    deliver_pump(shard, client); /* [MQTT-4.4.0-1] */
}

void client_on_session_durable(struct shard *shard, struct client *client, struct span connack)
{
    CHECK(client->state == CLIENT_WAITING);
    client_send_bytes(shard, client, connack);
    client_wake(shard, client);
    begin_connected(shard, client);
}

/* CONNACK at once, or when the log has what CONNECT did. has_ended: the log was told that another session ended for this one.
 * False: there is nothing that we could say to this client. */
static bool send_connack(struct shard *shard, struct client *client, const struct packet *packet, bool has_ended)
{
    struct session *sess = client->session;
    uint32_t size = packet_encode_size(packet, (enum mqtt_version)client->version, client->packet_size_max);
    uint8_t *bytes = size > 0 ? malloc(size) : NULL;
    if (!bytes)
        return false;
    struct span connack = span_of(bytes, packet_encode(bytes, packet, (enum mqtt_version)client->version, client->packet_size_max));
    bool has_will = sess->rare && sess->rare->will;
    if (shard->log.pool && (sess->is_logged || has_will || session_is_persistent(sess))) {
        sess->is_logged = true;
        session_log_state(shard, sess, client->version);
        if (has_will)
            session_log_will(shard, sess->rare->will);
    }
    if (sess->is_logged || has_ended || session_log_is_ending(shard)) {
        struct client_ref ref = client_ref_of(client);
        client->state = CLIENT_WAITING;
        timer_wheel_remove(&shard->client_timers, &client->timer);
        session_log_answer(shard, GATE_CONNACK, &ref, connack);
        client_set_block(shard, client, BLOCK_SESSION);
    } else {
        client_send_bytes(shard, client, connack);
        begin_connected(shard, client);
    }
    free(bytes);
    return true;
}

/* Its record would never find room, and keep all that is late behind it: properties make a will as large as a packet. */
static bool is_will_too_large(const struct shard *shard, const struct packet_connect *connect, struct span client_id)
{
    if (!shard->log.pool || !connect->has_will)
        return false;
    struct record rec = {.type = RECORD_WILL,
                         .session = UINT64_MAX,
                         .client_id = client_id,
                         .user_name = connect->has_user_name ? connect->user_name : (struct span){0, 0},
                         .will_session = UINT64_MAX, /* session_log_owe_will() */
                         .topic = connect->will_topic,
                         .payload = connect->will_payload,
                         .properties = connect->will_properties.raw,
                         .options = UINT64_MAX,
                         .expiry_ns = INT64_MAX};
    return record_size(&rec) > shard_log_control_max(&shard->log);
}

/* What the log cannot take now, or never again, is not begun. Returns SUCCESS or the reason, its counter in *cell_out. */
static enum mqtt_reason judge_log(struct shard *shard, struct counter **cell_out, const struct packet_connect *connect,
                                  struct span client_id)
{
    bool is_failed = shard->log.is_failed;
    *cell_out = &shard->stats.refused_will;
    if (is_will_too_large(shard, connect, client_id))
        return connect->version == MQTT_V5 ? MQTT_REASON_QUOTA_EXCEEDED : MQTT_REASON_SERVER_UNAVAILABLE;
    bool is_full = session_log_is_full(shard) || (connect->has_will && session_wills_are_full(shard));
    if (!is_failed && !is_full)
        return MQTT_REASON_SUCCESS;
    if (expiry_asked(connect) == 0 && !connect->has_will && !session_table_find(&shard->sessions, client_id))
        return MQTT_REASON_SUCCESS;
    *cell_out = is_failed ? &shard->stats.refused_log_failed : &shard->stats.refused_log_full;
    return is_failed ? MQTT_REASON_SERVER_UNAVAILABLE : MQTT_REASON_SERVER_BUSY;
}

static enum client_step on_connect(struct shard *shard, struct client *client, const struct packet_connect *connect)
{
    struct counter *cell;
    enum mqtt_reason reason = judge_connect(shard, client, connect, &cell);
    if (reason != MQTT_REASON_SUCCESS)
        return refuse_connect(shard, client, connect->version, reason, cell);
    char assigned_text[ASSIGNED_SIZE + 1];
    struct span assigned_id = connect->client_id.size == 0 ? assign_client_id(shard, assigned_text) : (struct span){0, 0};
    struct span client_id = connect->client_id.size == 0 ? assigned_id : connect->client_id;

    reason = judge_log(shard, &cell, connect, client_id);
    if (reason != MQTT_REASON_SUCCESS)
        return refuse_connect(shard, client, connect->version, reason, cell);
    bool has_ended = false;
    struct session *sess = take_over(shard, &has_ended, connect, client_id);
    bool is_resumed = sess != NULL;
    if (!sess && shard->sessions.count >= shard->config.limits.sessions_max)
        return refuse_connect(shard, client, connect->version,
                              connect->version == MQTT_V5 ? MQTT_REASON_QUOTA_EXCEEDED : MQTT_REASON_SERVER_UNAVAILABLE,
                              &shard->stats.refused_full);
    if (sess)
        session_forget_will(shard, sess); /* [MQTT-3.1.3-9] */
    else
        sess = session_table_add(&shard->sessions, client_id, shard_draw_session_number(shard));
    if (sess && !is_resumed)
        gauge_add(&shard->stats.sessions, 1);
    if (!sess || !keep_user_name(shard, client, connect) || !attach(shard, client, sess, connect)) {
        if (sess && !is_resumed)
            session_end(shard, sess);
        return refuse_connect(shard, client, connect->version, MQTT_REASON_SERVER_UNAVAILABLE, &shard->stats.refused_no_memory);
    }
    apply_connect(shard, client, connect);
    counter_inc(&shard->stats.connects_accepted);
    counter_add(&shard->stats.sessions_resumed, is_resumed);

    struct packet packet = {.type = MQTT_CONNACK, .connack = {.session_present = is_resumed}};
    if (client->version == MQTT_V5)
        connack_properties(shard, client, &packet.connack.properties, connect, assigned_id);
    if (!send_connack(shard, client, &packet, has_ended)) {
        client_close(shard, client, MQTT_REASON_SUCCESS, &shard->stats.closed_protocol_error);
        return CLIENT_GONE;
    }
    return CLIENT_NEXT;
}

/* --- packets ------------------------------------------------------------------------------------------------------------------------ */

static enum client_step protocol_error(struct shard *shard, struct client *client, enum mqtt_reason reason)
{
    struct shard_stats *stats = &shard->stats;
    client_close(shard, client, reason, reason == MQTT_REASON_MALFORMED_PACKET ? &stats->closed_malformed : &stats->closed_protocol_error);
    return CLIENT_GONE;
}

static enum client_step on_disconnect(struct shard *shard, struct client *client, const struct packet_disconnect *packet)
{
    struct session *sess = client->session;
    if (packet->properties.present & MQTT_PROPERTY_BIT(SESSION_EXPIRY_INTERVAL)) {
        uint32_t asked_s = packet->properties.session_expiry_interval_s;
        if (sess->expiry_interval_s == 0 && asked_s > 0)
            return protocol_error(shard, client, MQTT_REASON_PROTOCOL_ERROR);
        sess->expiry_interval_s = expiry_in_force(shard, asked_s);
    }
    bool says_goodbye = client->version < MQTT_V5 || packet->reason == MQTT_REASON_NORMAL_DISCONNECTION;
    counter_inc(says_goodbye ? &shard->stats.closed_disconnect : &shard->stats.closed_disconnect_with_will);
    close_socket(shard, client);
    detach(shard, client, !says_goodbye); /* [MQTT-3.14.4-3] */
    return CLIENT_GONE;
}

/* The topic of a PUBLISH: named, or by an alias of this connection. Remembers a new alias; harmless when the packet comes again. */
static enum client_step resolve_alias(struct shard *shard, struct client *client, struct packet_publish *packet)
{
    if (!(packet->properties.present & MQTT_PROPERTY_BIT(TOPIC_ALIAS)))
        return CLIENT_NEXT;
    uint16_t alias = packet->properties.topic_alias, max = listener_of(shard, client)->topic_alias_maximum;
    if (alias == 0 || alias > max)
        return protocol_error(shard, client, MQTT_REASON_TOPIC_ALIAS_INVALID); /* [MQTT-3.2.2-17] [MQTT-3.3.2-8] */
    struct client_extra *extra = extra_get(client);
    if (extra && !extra->topics) {
        extra->topics = calloc(max, sizeof(struct client_alias *));
        extra->topic_count = extra->topics ? max : 0;
    }
    if (!extra || !extra->topics)
        return protocol_error(shard, client, MQTT_REASON_QUOTA_EXCEEDED);
    struct client_alias **place = &extra->topics[alias - 1];
    if (packet->topic.size == 0) {
        if (!*place)
            return protocol_error(shard, client, MQTT_REASON_PROTOCOL_ERROR);
        packet->topic = span_of((*place)->topic, (*place)->size);
        return CLIENT_NEXT;
    }
    if (*place && span_equal(span_of((*place)->topic, (*place)->size), packet->topic))
        return CLIENT_NEXT;
    struct client_alias *fresh = malloc(sizeof *fresh + packet->topic.size);
    if (!fresh)
        return protocol_error(shard, client, MQTT_REASON_QUOTA_EXCEEDED);
    fresh->size = (uint32_t)packet->topic.size;
    memcpy(fresh->topic, packet->topic.data, packet->topic.size);
    free(*place);
    *place = fresh;
    return CLIENT_NEXT;
}

static enum client_step on_publish(struct shard *shard, struct client *client, struct packet_publish *packet, size_t packet_size)
{
    const struct shard_listener *listener = listener_of(shard, client);
    if (packet->qos > listener->max_qos)
        return protocol_error(shard, client, MQTT_REASON_QOS_NOT_SUPPORTED); /* [MQTT-3.2.2-11] */
    if (packet->retain && !listener->retain_available)
        return protocol_error(shard, client, MQTT_REASON_RETAIN_NOT_SUPPORTED); /* [MQTT-3.2.2-14] */
    enum client_step step = resolve_alias(shard, client, packet);
    return step == CLIENT_NEXT ? publish_on_packet(shard, client, packet, packet_size) : step;
}

static enum client_step on_pingreq(struct shard *shard, struct client *client)
{
    client_send(shard, client, &(struct packet){.type = MQTT_PINGRESP});
    return CLIENT_NEXT;
}

static enum client_step handle_connecting(struct shard *shard, struct client *client, const struct frame *frame, const uint8_t *data)
{
    struct packet packet;
    if (frame->type != MQTT_CONNECT)
        return drop_connecting(shard, client, &shard->stats.refused_not_connect); /* [MQTT-3.1.0-1] */
    packet.connect.version = MQTT_V5;
    struct mqtt_verdict verdict = packet_decode(&packet, MQTT_V5, MQTT_FROM_CLIENT, frame, data);
    if (verdict.judgement == MQTT_BAD) {
        bool is_version = verdict.reason == MQTT_REASON_UNSUPPORTED_PROTOCOL_VERSION;
        return refuse_connect(shard, client, packet.connect.version, verdict.reason,
                              is_version ? &shard->stats.refused_version : &shard->stats.refused_malformed);
    }
    return on_connect(shard, client, &packet.connect);
}

static enum client_step handle_packet(struct shard *shard, struct client *client, const struct frame *frame, const uint8_t *data)
{
    if (client->state == CLIENT_CONNECTING)
        return handle_connecting(shard, client, frame, data);
    if (frame->type == MQTT_CONNECT)
        return protocol_error(shard, client, MQTT_REASON_PROTOCOL_ERROR); /* [MQTT-3.1.0-2] */
    struct packet packet;
    struct mqtt_verdict verdict = packet_decode(&packet, (enum mqtt_version)client->version, MQTT_FROM_CLIENT, frame, data);
    if (verdict.judgement == MQTT_BAD)
        return protocol_error(shard, client, verdict.reason); /* [MQTT-4.13.1-1] */
    switch (packet.type) {
    case MQTT_PUBLISH:
        return on_publish(shard, client, &packet.publish, frame->size);
    case MQTT_PUBACK:
        return deliver_on_puback(shard, client, packet.ack.packet_id);
    case MQTT_PUBREC:
        return deliver_on_pubrec(shard, client, packet.ack.packet_id, packet.ack.reason);
    case MQTT_PUBREL:
        return publish_on_pubrel(shard, client, packet.ack.packet_id);
    case MQTT_PUBCOMP:
        return deliver_on_pubcomp(shard, client, packet.ack.packet_id);
    case MQTT_SUBSCRIBE:
        return subscribe_on_subscribe(shard, client, &packet.subscribe);
    case MQTT_UNSUBSCRIBE:
        return subscribe_on_unsubscribe(shard, client, &packet.unsubscribe);
    case MQTT_PINGREQ:
        return on_pingreq(shard, client);
    case MQTT_DISCONNECT:
        return on_disconnect(shard, client, &packet.disconnect);
    case MQTT_AUTH: /* no method in CONNECT: an error [MQTT-4.12.0-7] */
    case MQTT_WILL:
    case MQTT_CONNECT:
    case MQTT_CONNACK:
    case MQTT_SUBACK:
    case MQTT_UNSUBACK:
    case MQTT_PINGRESP:
        break;
    }
    return protocol_error(shard, client, MQTT_REASON_PROTOCOL_ERROR);
}

/* Handle complete packets from data[0]; *used_out bytes are done. */
static enum client_step handle_bytes(struct shard *shard, struct client *client, size_t *used_out, const uint8_t *data, size_t size)
{
    *used_out = 0;
    while (*used_out < size) {
        struct frame frame;
        switch (frame_parse(&frame, data + *used_out, size - *used_out, listener_of(shard, client)->max_packet_size)) {
        case FRAME_MORE:
            return CLIENT_NEXT;
        case FRAME_BAD:
            if (client->state == CLIENT_CONNECTING)
                return drop_connecting(shard, client, &shard->stats.refused_malformed);
            return protocol_error(shard, client, frame.bad.reason);
        case FRAME_OK:
            break;
        }
        enum client_step step = handle_packet(shard, client, &frame, data + *used_out);
        if (step == CLIENT_OVER) {
            client_close(shard, client, shard->over.reason, shard->over.cell);
            return CLIENT_GONE;
        }
        if (step != CLIENT_NEXT)
            return step;
        *used_out += frame.size;
        counter_inc(&shard->stats.received_packets);
        if (client->block != BLOCK_NONE)
            return CLIENT_BLOCKED;
    }
    return CLIENT_NEXT;
}

/* --- in ----------------------------------------------------------------------------------------------------------------------------- */

/* Keep bytes for later. False: the client is gone, because the budget or the memory is used up. */
static bool partial_append(struct shard *shard, struct client *client, const uint8_t *data, size_t size)
{
    struct client_partial *partial = client->partial;
    if (partial && partial->start > 0 && partial->capacity - partial->size < size) {
        memmove(partial->bytes, partial->bytes + partial->start, partial->size - partial->start);
        partial->size -= partial->start;
        partial->start = 0;
    }
    size_t used = partial ? partial->size : 0;
    if (!partial || partial->capacity - used < size) {
        size_t capacity = PARTIAL_FIRST;
        while (capacity < used + size)
            capacity *= 2;
        size_t before = partial ? partial->capacity : 0;
        uint64_t total = (uint64_t)gauge_get(&shard->stats.partial_bytes) + capacity - before;
        /* A few connections that begin large packets and stall must not close those whose small one is cut in two. */
        bool may_grow = capacity <= PARTIAL_SMALL || total <= shard->config.limits.partial_bytes_max;
        struct client_partial *grown = may_grow ? realloc(partial, sizeof *grown + capacity) : NULL;
        if (!grown) {
            client_close(shard, client, MQTT_REASON_QUOTA_EXCEEDED,
                         client->state == CLIENT_CONNECTING ? &shard->stats.refused_no_memory : &shard->stats.closed_no_memory);
            return false;
        }
        if (!partial)
            grown->start = grown->size = 0;
        grown->capacity = capacity;
        client->partial = partial = grown;
        gauge_set(&shard->stats.partial_bytes, (int64_t)total);
    }
    memcpy(partial->bytes + partial->size, data, size);
    partial->size += size;
    return true;
}

static void handle_partial(struct shard *shard, struct client *client)
{
    struct client_partial *partial = client->partial;
    if (partial) {
        size_t used;
        if (handle_bytes(shard, client, &used, partial->bytes + partial->start, partial->size - partial->start) == CLIENT_GONE)
            return;
        partial->start += used;
        if (partial->start == partial->size)
            partial_free(shard, client);
    }
    update_reading(shard, client);
}

void client_on_bytes(struct shard *shard, struct client *client, const uint8_t *data, size_t size)
{
    counter_add(&shard->stats.received_bytes, size);
    hear(shard, client);
    if (client->partial || client->block != BLOCK_NONE || shard->is_draining) {
        if (!partial_append(shard, client, data, size))
            return;
        if (client->block == BLOCK_NONE && !shard->is_draining)
            handle_partial(shard, client);
        else
            update_reading(shard, client);
        return;
    }
    size_t used;
    if (handle_bytes(shard, client, &used, data, size) == CLIENT_GONE)
        return;
    if (used < size && !partial_append(shard, client, data + used, size - used))
        return;
    update_reading(shard, client);
}

void client_resume(struct shard *shard, struct client *client)
{
    CHECK(client->block != BLOCK_NONE);
    client->block = BLOCK_NONE;
    client_move(&shard->idle, client);
    handle_partial(shard, client);
}

void client_on_timer(struct shard *shard, struct client *client)
{
    if (client->state == CLIENT_CONNECTING) {
        drop_connecting(shard, client, &shard->stats.refused_timeout);
        return;
    }
    if (client->is_paused && !client->is_choked)
        hear(shard, client); /* we do not listen: LOG 7. One that takes nothing is not alive, though. */
    int64_t deadline_ms = (int64_t)client->heard_tick * CLIENT_TICK_MS + KEEP_ALIVE_MS(client->keep_alive_s);
    if (shard->now_ms < deadline_ms)
        timer_wheel_add(&shard->client_timers, &client->timer, (uint64_t)deadline_ms);
    else
        client_close(shard, client, MQTT_REASON_KEEP_ALIVE_TIMEOUT, &shard->stats.closed_keep_alive);
}
