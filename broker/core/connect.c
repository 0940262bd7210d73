#include "broker/core/connect.h"

#include <stdio.h>
#include <stdlib.h>

#include "broker/core/client_life.h"
#include "broker/core/deliver.h"
#include "broker/core/session_life.h"
#include "broker/core/session_log.h"
#include "broker/core/shard_log.h"
#include "broker/core/shard_state.h"
#include "broker/session/will.h"
#include "common/check.h"

#define ASSIGNED_PREFIX "auto-"
#define ASSIGNED_SIZE (sizeof ASSIGNED_PREFIX - 1 + 16)

enum client_step connect_refuse(struct shard *shard, struct client *client, enum mqtt_version version, enum mqtt_reason reason,
                                struct counter *cell)
{
    client->version = (uint8_t)version;
    struct packet packet = {.type = MQTT_CONNACK, .connack = {.reason = reason}};
    client_send(shard, client, &packet); /* nothing where the version has no fitting code [MQTT-3.2.2-6 of 3.1.1] */
    return client_drop_connecting(shard, client, cell);
}

static bool is_keep_alive_above(const struct shard_listener *listener, uint16_t keep_alive_s)
{
    return listener->max_keepalive_s > 0 && (keep_alive_s == 0 || keep_alive_s > listener->max_keepalive_s);
}

/* Everything about a CONNECT that needs no session. Returns SUCCESS or the reason of the refusal, its counter in *cell_out. */
static enum mqtt_reason judge_connect(struct shard *shard, const struct client *client, const struct packet_connect *connect,
                                      struct counter **cell_out)
{
    const struct shard_listener *listener = client_listener(shard, client);
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

uint32_t connect_expiry_in_force(const struct shard *shard, uint32_t asked_s)
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
    const struct shard_listener *listener = client_listener(shard, client);
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
    const struct shard_listener *listener = client_listener(shard, client);
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
    client_hear(shard, client);
    if (client->keep_alive_s > 0)
        timer_wheel_add(&shard->client_timers, &client->timer, (uint64_t)(shard->now_ms + CLIENT_KEEP_ALIVE_MS(client->keep_alive_s)));
}

static bool keep_user_name(const struct shard *shard, struct client *client, const struct packet_connect *connect)
{
    if (!shard->wants_user_name || !connect->has_user_name)
        return true;
    uint8_t *copy = client_extra_get(client) ? malloc(connect->user_name.size + 1) : NULL;
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
    sess->expiry_interval_s = connect_expiry_in_force(shard, expiry_asked(connect));
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

void connect_on_durable(struct shard *shard, struct client *client, struct span connack)
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

enum client_step connect_on_packet(struct shard *shard, struct client *client, const struct packet_connect *connect)
{
    struct counter *cell;
    enum mqtt_reason reason = judge_connect(shard, client, connect, &cell);
    if (reason != MQTT_REASON_SUCCESS)
        return connect_refuse(shard, client, connect->version, reason, cell);
    char assigned_text[ASSIGNED_SIZE + 1];
    struct span assigned_id = connect->client_id.size == 0 ? assign_client_id(shard, assigned_text) : (struct span){0, 0};
    struct span client_id = connect->client_id.size == 0 ? assigned_id : connect->client_id;

    reason = judge_log(shard, &cell, connect, client_id);
    if (reason != MQTT_REASON_SUCCESS)
        return connect_refuse(shard, client, connect->version, reason, cell);
    bool has_ended = false;
    struct session *sess = take_over(shard, &has_ended, connect, client_id);
    bool is_resumed = sess != NULL;
    if (!sess && shard->sessions.count >= shard->config.limits.sessions_max)
        return connect_refuse(shard, client, connect->version,
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
        return connect_refuse(shard, client, connect->version, MQTT_REASON_SERVER_UNAVAILABLE, &shard->stats.refused_no_memory);
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
