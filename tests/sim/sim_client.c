/* A client of the simulator: publishes telemetry at all QoS, subscribes and gives subscriptions up, keeps its part of QoS 1 and 2 exactly,
 * comes back after a loss, at once or much later, and sends again what was not acknowledged.
 *
 * It knows what it may believe: after a CONNACK its session is there until it expires, whatever happens to the broker; what is subscribed,
 * it is told by SUBACK; and when it cannot know whether the session it finds is the one it left, it begins anew. */
#include <stdio.h>
#include <stdlib.h>

#include "broker/session/queue.h"
#include "common/check.h"
#include "common/clock.h"
#include "tests/sim/sim.h"

void sim_client_init(struct sim *sim, uint8_t index)
{
    struct sim_client *client = &sim->clients[index];
    *client = (struct sim_client){.sim = sim, .index = index, .next_packet_id = 1};
    snprintf(client->id, sizeof client->id, "client%u", index);
    client->version = sim_chance(sim, 1, 2) || sim->config.is_v5 ? MQTT_V5 : MQTT_V311;
    client->clean = sim_chance(sim, 1, 3) && !sim->config.keeps_sessions;
    client->publishes = index == 0 || sim_chance(sim, 3, 4);
    client->subscribes = !client->publishes || sim_chance(sim, 1, 3);
    if (sim->config.has_watchers)
        client->subscribes = !(client->publishes = index < 2);
    client->subscribe_qos = (uint8_t)sim_below(sim, 3);
    client->is_steady = sim->config.has_steady && index == sim->config.client_count - 1u;
    if (client->is_steady) {
        client->subscribes = true;
        client->clean = false;
        client->subscribe_qos = client->subscribe_qos == 0 ? 2 : client->subscribe_qos;
    }
    client->expiry_s = client->clean ? 0 : UINT32_MAX;
    if (client->version == MQTT_V5 && !client->clean && !client->is_steady && sim_chance(sim, 1, 4))
        client->expiry_s = (uint32_t)(1 + sim_below(sim, 60));
    if (client->expiry_s > sim->config.expiry_max_s)
        client->expiry_s = sim->config.expiry_max_s;
    for (size_t kind = 0; kind < SIM_KINDS; kind++)
        client->subscriptions[kind].is_wanted = client->subscribes;
    client->owed = calloc(SIM_MESSAGES_MAX, sizeof *client->owed);
    CHECK(client->owed);
    client->inbound = calloc(UINT16_MAX + 1, sizeof *client->inbound);
    CHECK(client->inbound);
    client->seen = calloc(SIM_MESSAGES_MAX, sizeof *client->seen);
    client->fresh = calloc(SIM_MESSAGES_MAX, sizeof *client->fresh);
    client->asked_steps = calloc(SIM_ASKED_MAX, sizeof *client->asked_steps);
    CHECK(client->asked_steps);
    client->order = calloc(SIM_CLIENTS_MAX * SIM_DEVICES_MAX * 3 * SIM_KINDS, sizeof *client->order);
    CHECK(client->seen);
    CHECK(client->fresh);
    CHECK(client->order);
}

void sim_client_deinit(struct sim_client *client)
{
    free(client->seen);
    free(client->owed);
    free(client->inbound);
    free(client->asked_steps);
    free(client->fresh);
    free(client->order);
    free(client->input.bytes);
}

static void send_packet(struct sim_client *client, const struct packet *packet)
{
    static uint8_t bytes[SIM_PACKET_MAX];
    uint32_t size = packet_encode_size(packet, client->version, UINT32_MAX);
    CHECK(size > 0);
    CHECK(size <= sizeof bytes);
    packet_encode(bytes, packet, client->version, UINT32_MAX);
    sim_pipe_put(&client->conn->up, bytes, size);
}

static void send_ack(struct sim_client *client, enum mqtt_packet_type type, uint16_t packet_id)
{
    struct packet packet = {.type = type, .ack = {.packet_id = packet_id}};
    send_packet(client, &packet);
}

/* texts: room for topic and payload. */
static void add_will(struct sim *sim, struct sim_client *client, struct packet_connect *connect, char texts[2][128])
{
    client->will = 0;
    client->is_will_delayed = false;
    struct sim_message *will =
        sim_chance(sim, 1, sim->config.will_one_in)
            ? sim_ledger_new_will(sim, client->index, (uint8_t)sim_below(sim, sim->config.device_count), (uint8_t)sim_below(sim, 3))
            : NULL;
    if (!will)
        return;
    client->will = will->id + 1;
    client->will_step = sim->step;
    connect->has_will = true;
    connect->will_qos = will->qos;
    connect->will_topic = span_of(texts[0], sim_ledger_topic(will, texts[0], 128));
    connect->will_payload = span_of(texts[1], sim_ledger_payload(will, texts[1], 128));
    if (client->version == MQTT_V5 && sim_chance(sim, 1, 2)) {
        client->is_will_delayed = true;
        connect->will_properties.will_delay_interval_s = (uint32_t)(1 + sim_below(sim, 10));
        connect->will_properties.present |= MQTT_PROPERTY_BIT(WILL_DELAY_INTERVAL);
    }
}

/* Whether the session of the next connection outlives it. */
static bool is_kept(const struct sim_client *client)
{
    return client->version == MQTT_V5 ? client->expiry_s > 0 && !client->wants_short : !client->wants_clean;
}

static void connect_broker(struct sim *sim, struct sim_client *client)
{
    char will_texts[2][128];
    struct packet packet = {.type = MQTT_CONNECT};
    client->conn = sim_conn_open(sim, client);
    client->input.size = 0;
    client->closing = client->online = false;
    packet.connect.version = client->version;
    client->wants_clean |= client->clean || (!sim->calm && !client->is_steady && sim_chance(sim, 1, sim->config.clean_one_in));
    packet.connect.clean_start = client->wants_clean;
    client->wants_short = client->wants_clean && !sim->calm && sim_chance(sim, 1, sim->config.short_one_in);
    client->will_pending = 0;
    client->has_keep_alive = sim_chance(sim, 1, 3);
    packet.connect.keep_alive_s = client->has_keep_alive ? 5 : 0;
    add_will(sim, client, &packet.connect, will_texts);
    packet.connect.client_id = span_of_string(client->id);
    if (client->version == MQTT_V5 && !client->clean && !client->wants_short) {
        packet.connect.properties.session_expiry_interval_s = client->expiry_s;
        packet.connect.properties.present |= MQTT_PROPERTY_BIT(SESSION_EXPIRY_INTERVAL);
    }
    client->may_find_session = client->may_have_session;
    client->may_have_session |= is_kept(client);
    send_packet(client, &packet);
    sim_trace(sim, "%s connects%s, will %d", client->id, client->wants_clean ? " clean" : "", (int)client->will - 1);
}

static bool packet_id_is_free(const struct sim_client *client, uint16_t packet_id)
{
    for (size_t i = 0; i < client->flow_count; i++)
        if (client->flows[i].sent && client->flows[i].packet_id == packet_id)
            return false;
    return packet_id != 0;
}

/* Few identifiers, so that they are used again soon. */
static uint16_t take_packet_id(struct sim_client *client)
{
    do
        client->next_packet_id = (uint16_t)(client->next_packet_id % 20 + 1);
    while (!packet_id_is_free(client, client->next_packet_id));
    return client->next_packet_id;
}

static void send_publish(struct sim *sim, struct sim_client *client, struct sim_message *message, uint16_t packet_id, bool dup)
{
    static char payload[SIM_PADDING_MAX + 128];
    char topic[64];
    struct packet packet = {.type = MQTT_PUBLISH};
    packet.publish.qos = message->qos;
    packet.publish.dup = dup;
    packet.publish.packet_id = packet_id;
    packet.publish.retain = message->retain;
    packet.publish.topic = span_of(topic, sim_ledger_topic(message, topic, sizeof topic));
    if (message->expiry_s && client->version == MQTT_V5) {
        packet.publish.properties.message_expiry_interval_s = message->expiry_s;
        packet.publish.properties.present |= MQTT_PROPERTY_BIT(MESSAGE_EXPIRY_INTERVAL);
    }
    packet.publish.payload = span_of(payload, sim_ledger_payload(message, payload, sizeof payload));
    send_packet(client, &packet);
    sim_ledger_on_sent(sim, message);
    sim_trace(sim, "%s publishes message %u, QoS %u, id %u%s", client->id, message->id, message->qos, packet_id, dup ? ", again" : "");
}

static void begin_flow(struct sim *sim, struct sim_client *client, struct sim_flow *flow)
{
    struct sim_message *message = &sim->ledger.messages[flow->message];
    flow->packet_id = take_packet_id(client);
    flow->sent = true;
    flow->incarnation = sim->incarnation;
    flow->was_kept = client->is_persistent && sim->config.persistence;
    message->attempts++;
    send_publish(sim, client, message, flow->packet_id, false);
}

static void publish_new(struct sim *sim, struct sim_client *client)
{
    uint8_t device = (uint8_t)sim_below(sim, sim->config.device_count);
    /* A device belongs to one client but the last, which everyone may publish for. */
    if (device + 1u < sim->config.device_count && !sim->config.shares_devices)
        device = (uint8_t)(client->index % sim->config.device_count);
    struct sim_message *message = sim_ledger_new(sim, client->index, device, (uint8_t)sim_below(sim, 3),
                                                 sim_chance(sim, 1, sim->config.command_one_in) ? SIM_COMMAND : SIM_TELEMETRY);
    if (!message)
        return;
    message->retain = message->qos > 0 && sim_chance(sim, 1, sim->config.retain_one_in);
    message->clears = message->retain && message->kind == SIM_COMMAND && sim_chance(sim, 1, 3);
    if (message->kind == SIM_COMMAND && client->version == MQTT_V5 && sim_chance(sim, 1, 2))
        message->expiry_s = (uint32_t)(1 + sim_below(sim, 20));
    if (!message->clears && sim_chance(sim, 1, sim->config.large_one_in))
        message->padding = (uint32_t)sim_below(sim, sim->config.padding_max);
    if (message->qos == 0) {
        message->attempts++;
        send_publish(sim, client, message, 0, false);
        return;
    }
    struct sim_flow *flow = &client->flows[client->flow_count++];
    *flow = (struct sim_flow){.message = message->id};
    begin_flow(sim, client, flow);
}

static const struct span filters[SIM_KINDS] = {
    [SIM_TELEMETRY] = {(const uint8_t *)"fleet/+/telemetry", 17},
    [SIM_COMMAND] = {(const uint8_t *)"cmd/#", 5},
};

#define SUBSCRIBE_ID 30 /* + bits of the kinds: packet identifiers that say what is asked */
#define UNSUBSCRIBE_ID 40

/* mask: bits of kinds. */
static void subscribe(struct sim *sim, struct sim_client *client, unsigned mask)
{
    uint8_t payload[64];
    size_t size = 0;
    struct packet packet = {.type = MQTT_SUBSCRIBE};
    packet.subscribe.packet_id = (uint16_t)(SUBSCRIBE_ID + mask);
    if (client->version == MQTT_V5 && client->asked_count + 1 < SIM_ASKED_MAX) {
        client->asked_steps[++client->asked_count] = sim->step;
        packet.subscribe.properties.subscription_identifier = client->asked_count;
        packet.subscribe.properties.present |= MQTT_PROPERTY_BIT(SUBSCRIPTION_IDENTIFIER);
    }
    for (unsigned kind = 0; kind < SIM_KINDS; kind++) {
        struct sim_subscription *subscription = &client->subscriptions[kind];
        if (!(mask & 1u << kind))
            continue;
        packet.subscribe.filter_count++;
        size += packet_put_subscription(payload + size, filters[kind], client->subscribe_qos);
        if (subscription->state == SUB_NONE || subscription->sent_step == 0)
            subscription->sent_step = sim->step;
        if (subscription->oldest_step == 0)
            subscription->oldest_step = sim->step;
        if (subscription->state != SUB_YES)
            subscription->state = SUB_ASKED;
        subscription->is_pending = true;
    }
    packet.subscribe.filters = span_of(payload, size);
    send_packet(client, &packet);
    sim_trace(sim, "%s subscribes with QoS %u, %u", client->id, client->subscribe_qos, mask);
}

static void unsubscribe(struct sim *sim, struct sim_client *client, unsigned kind)
{
    uint8_t payload[64];
    struct packet packet = {.type = MQTT_UNSUBSCRIBE};
    packet.unsubscribe.packet_id = (uint16_t)(UNSUBSCRIBE_ID + kind);
    packet.unsubscribe.filter_count = 1;
    packet.unsubscribe.filters = span_of(payload, packet_put_unsubscription(payload, filters[kind]));
    send_packet(client, &packet);
    client->subscriptions[kind].state = SUB_LEAVING;
    client->subscriptions[kind].is_pending = true;
    sim_trace(sim, "%s unsubscribes, %u", client->id, kind);
}

/* What is to be changed, and not asked for on this connection yet. True: a packet was sent. */
static bool act_on_subscriptions(struct sim *sim, struct sim_client *client)
{
    unsigned mask = 0;
    for (unsigned kind = 0; kind < SIM_KINDS; kind++) {
        const struct sim_subscription *subscription = &client->subscriptions[kind];
        if (subscription->is_pending)
            continue;
        if (subscription->is_wanted && subscription->state != SUB_YES)
            mask |= 1u << kind;
        if (!subscription->is_wanted && subscription->state != SUB_NONE) {
            unsubscribe(sim, client, kind);
            return true;
        }
    }
    if (mask == 0)
        return false;
    subscribe(sim, client, mask);
    return true;
}

static void on_suback(struct sim *sim, struct sim_client *client, const struct packet_suback *suback)
{
    unsigned mask = (unsigned)(suback->packet_id - SUBSCRIBE_ID), i = 0;
    if (mask == 0 || mask >= 1u << SIM_KINDS)
        sim_found(sim, "%s received a SUBACK for id %u, which is not in use", client->id, suback->packet_id);
    for (unsigned kind = 0; kind < SIM_KINDS; kind++) {
        struct sim_subscription *subscription = &client->subscriptions[kind];
        if (!(mask & 1u << kind))
            continue;
        subscription->is_pending = false;
        if (suback->codes.data[i++] >= 0x80 || subscription->state == SUB_YES)
            continue;
        subscription->state = SUB_YES;
        subscription->since_step = sim->step;
    }
    sim_promised(sim, true);
}

static void on_unsuback(struct sim *sim, struct sim_client *client, uint16_t packet_id)
{
    unsigned kind = (unsigned)(packet_id - UNSUBSCRIBE_ID);
    if (kind >= SIM_KINDS)
        sim_found(sim, "%s received an UNSUBACK for id %u, which is not in use", client->id, packet_id);
    struct sim_subscription *subscription = &client->subscriptions[kind];
    subscription->is_pending = false;
    subscription->state = SUB_NONE;
    subscription->since_step = sim->step;
    subscription->sent_step = 0;
    sim_promised(sim, true);
}

void sim_client_subscribe_again(struct sim *sim, struct sim_client *client)
{
    for (unsigned kind = 0; kind < SIM_KINDS; kind++) {
        client->subscriptions[kind].is_wanted = true;
        client->subscriptions[kind].sent_step = client->subscriptions[kind].oldest_step = 0;
        client->subscriptions[kind].state = SUB_ASKED; /* again if the answer is lost */
    }
    memset(client->heard, 0, sizeof client->heard);
    subscribe(sim, client, (1u << SIM_KINDS) - 1);
}

bool sim_client_is_subscribed(const struct sim_client *client)
{
    for (unsigned kind = 0; kind < SIM_KINDS; kind++) {
        const struct sim_subscription *subscription = &client->subscriptions[kind];
        if (subscription->is_pending || (subscription->is_wanted ? subscription->state != SUB_YES : subscription->state != SUB_NONE))
            return false;
    }
    return true;
}

static void publish_some(struct sim *sim, struct sim_client *client)
{
    for (uint64_t count = 1 + sim_below(sim, sim->config.burst);
         count > 0 && client->flow_count < SIM_FLOWS_MAX && client->flow_count < client->receive_maximum; count--)
        publish_new(sim, client);
}

/* The session is there: PUBLISH again with DUP, PUBREL again; or it is not: what was not acknowledged begins anew. */
static void resume_flows(struct sim *sim, struct sim_client *client)
{
    bool present = client->resumes & RESUMES_PRESENT, is_doubtful = client->resumes & RESUMES_DOUBTFUL;
    client->resumes = 0;
    size_t kept = 0;
    for (size_t i = 0; i < client->flow_count; i++) {
        struct sim_flow flow = client->flows[i];
        if (!present && flow.received)
            continue; /* PUBREC came: the broker owns it, and has forgotten the identifier */
        client->flows[kept++] = flow;
    }
    client->flow_count = kept;
    if (!present)
        for (size_t i = 0; i < kept; i++)
            client->flows[i].sent = false;
    for (size_t i = 0; i < kept; i++) {
        struct sim_flow *flow = &client->flows[i];
        struct sim_message *message = &sim->ledger.messages[flow->message];
        if (flow->received) {
            send_ack(client, MQTT_PUBREL, flow->packet_id);
        } else if (present) {
            /* To the broker it may be a new message: always at QoS 1, and at QoS 2 when its memory of the identifier died with it. */
            bool forgotten = is_doubtful || (flow->incarnation != sim->incarnation && !flow->was_kept);
            message->attempts += message->qos == 1 || forgotten;
            message->flow += forgotten;
            flow->incarnation = sim->incarnation;
            flow->was_kept = client->is_persistent && sim->config.persistence;
            send_publish(sim, client, message, flow->packet_id, true);
        } else {
            message->flow++;
            begin_flow(sim, client, flow);
        }
    }
}

void sim_client_act(struct sim *sim, struct sim_client *client)
{
    if (client->is_gone)
        return;
    if (!client->conn) {
        if (sim->broker && (sim->calm || sim->step >= client->away_until))
            connect_broker(sim, client);
        return;
    }
    if (!client->online && sim->config.give_up_one_in && !sim->calm && client->conn->core && client->conn->up.size == 0 &&
        sim_chance(sim, 1, sim->config.give_up_one_in)) {
        sim_trace(sim, "%s does not wait for CONNACK", client->id);
        sim_conn_reset(sim, client->conn);
        client->away_until = sim->step; /* and comes again at once */
        return;
    }
    if (!client->online || client->closing)
        return;
    if (client->resumes) {
        if (sim_chance(sim, 1, 50))
            resume_flows(sim, client);
        return;
    }
    if (act_on_subscriptions(sim, client))
        return;
    if (!sim->calm && sim_chance(sim, 1, 60)) {
        struct packet packet = {.type = MQTT_DISCONNECT};
        client->closing = true;
        send_packet(client, &packet);
        sim_trace(sim, "%s says DISCONNECT", client->id);
        return;
    }
    if (sim_chance(sim, 1, 10)) {
        struct packet packet = {.type = MQTT_PINGREQ};
        send_packet(client, &packet);
        return;
    }
    if (!sim->calm && client->subscribes && !client->is_steady && sim_chance(sim, 1, sim->config.change_one_in)) {
        struct sim_subscription *subscription = &client->subscriptions[sim_below(sim, SIM_KINDS)];
        subscription->is_wanted = !subscription->is_wanted;
        return;
    }
    if (!sim->calm && client->publishes && sim->step < sim->config.quiet_step)
        publish_some(sim, client);
}

/* Whether the session of the last CONNACK may have ended by now: nobody promised one, or it may have expired. The broker's clock for one
 * that is away is the wall clock over a restart. */
static bool may_session_be_gone(const struct sim *sim, const struct sim_client *client)
{
    if (!client->is_session_promised || client->wants_clean || (!sim->config.persistence && client->will_life != sim->incarnation))
        return true;
    int64_t away_ns = sim->mono - client->seen_online_mono + sim->wall_ahead - client->seen_online_ahead;
    return client->expiry_s != UINT32_MAX && away_ns >= (int64_t)client->expiry_s * NS_PER_S;
}

/* Nothing of what an earlier session was promised holds. is_present: there was one, which the client does not know. */
static void begin_session(struct sim *sim, struct sim_client *client, bool is_present)
{
    for (uint32_t id = 0; id < sim->ledger.count; id++)
        sim->ledger.messages[id].unordered |= sim->ledger.messages[id].client == client->index && sim->ledger.messages[id].padding;
    client->session_number++;
    client->session_life = is_present ? 0 : sim->incarnation;
    for (unsigned kind = 0; kind < SIM_KINDS; kind++) {
        struct sim_subscription *subscription = &client->subscriptions[kind];
        subscription->state = is_present ? SUB_ASKED : SUB_NONE;
        subscription->sent_step = subscription->since_step = is_present ? 1 : sim->step;
        subscription->oldest_step = is_present;
    }
    if (!is_present)
        memset(client->inbound, 0, (UINT16_MAX + 1) * sizeof *client->inbound);
    memset(client->heard, 0, sizeof client->heard);
    sim_ledger_forgive(client);
}

/* The connection before this one ended in the same life of the broker, which has seen that: its will is said, whoever comes back. What is
 * durable before CONNACK is so in the next life, too. */
static void note_will_due(struct sim *sim, struct sim_client *client)
{
    if (client->will_due && client->will_due_life == sim->incarnation)
        sim_ledger_on_will_due(sim, client->will_due - 1, client->will_due_step, client->is_persistent && sim->config.persistence);
    client->will_due = 0;
}

static void on_connack(struct sim *sim, struct sim_client *client, const struct packet_connack *connack)
{
    if (connack->reason != 0) {
        sim_trace(sim, "%s is refused: 0x%02x", client->id, connack->reason);
        return;
    }
    if (client->online)
        sim_found(sim, "%s received a second CONNACK", client->id);
    if (connack->session_present && client->wants_clean)
        sim_found(sim, "%s: session present after a clean start", client->id);
    if (connack->session_present && !client->may_find_session)
        sim_found(sim, "%s: session present, and the last one ended with its connection", client->id);
    bool may_be_gone = may_session_be_gone(sim, client);
    if (!connack->session_present && !client->wants_clean && !may_be_gone)
        sim_found(sim, "%s had a session that has not expired, and it is gone", client->id);
    bool is_same = connack->session_present && !may_be_gone;
    client->online = true;
    client->is_persistent = client->is_session_promised = client->may_have_session = is_kept(client);
    note_will_due(sim, client);
    client->will_life = sim->incarnation;
    sim_promised(sim, !client->is_persistent);
    client->wants_clean = false;
    client->receive_maximum = client->version == MQTT_V5 && (connack->properties.present & MQTT_PROPERTY_BIT(RECEIVE_MAXIMUM))
                                  ? connack->properties.receive_maximum
                                  : SIM_FLOWS_MAX;
    if (!is_same)
        begin_session(sim, client, connack->session_present);
    for (unsigned kind = 0; kind < SIM_KINDS; kind++)
        client->subscriptions[kind].is_pending = false;
    sim_conn_check_taken_over(sim, client);
    sim_trace(sim, "%s is online, session %s", client->id, is_same ? "present" : connack->session_present ? "perhaps another" : "new");
    /* Flows that were not resumed on the connection before are still in doubt if they were then. */
    client->resumes =
        RESUMES | (is_same ? client->resumes & RESUMES_DOUBTFUL : RESUMES_DOUBTFUL) | (connack->session_present ? RESUMES_PRESENT : 0);
    /* One that is closed because somebody's queue is full gives its own a chance. */
    if (!sim->calm || sim->config.queue_policy != QUEUE_REFUSE || client->version == MQTT_V5)
        resume_flows(sim, client);
}

/* When the retained values were asked for that this one is of. What was asked for before UNSUBSCRIBE may still come [MQTT-3.10.4-3]: only a
 * subscription identifier tells the one from the other. */
static uint64_t asked_step(const struct sim *sim, const struct sim_client *client, const struct packet_publish *publish,
                           const struct sim_subscription *subscription)
{
    const struct mqtt_properties *props = &publish->properties;
    if (client->version == MQTT_V5 && (props->present & MQTT_PROPERTY_BIT(SUBSCRIPTION_IDENTIFIER)) &&
        props->subscription_identifier < SIM_ASKED_MAX)
        return client->asked_steps[props->subscription_identifier];
    return client->subscribe_qos == 0 && !sim->config.queue_qos0 ? subscription->sent_step : subscription->oldest_step;
}

/* A message that the client counts as new. */
static void on_new_publish(struct sim *sim, struct sim_client *client, const struct packet_publish *publish, uint32_t id)
{
    char topic[64];
    if (id >= sim->ledger.count)
        sim_found(sim, "%s received message %u, which nobody published", client->id, id);
    const struct sim_message *message = &sim->ledger.messages[id];
    if (!span_equal(publish->topic, span_of(topic, sim_ledger_topic(message, topic, sizeof topic))))
        sim_found(sim, "%s received message %u under another topic", client->id, id);
    if (publish->qos > message->qos || publish->qos > client->subscribe_qos)
        sim_found(sim, "%s received message %u with QoS %u", client->id, id, publish->qos);
    if (message->expiry_s && !publish->dup && publish->properties.present & MQTT_PROPERTY_BIT(MESSAGE_EXPIRY_INTERVAL) &&
        publish->properties.message_expiry_interval_s == 0)
        sim_found(sim, "%s received message %u, which had expired", client->id, id);
    client->heard[message->device][message->kind] = true;
    if (publish->retain)
        sim_ledger_on_retained(sim, client, id, asked_step(sim, client, publish, &client->subscriptions[message->kind]));
    else
        sim_ledger_on_delivered(sim, client, id, publish->qos, publish->dup);
}

static void on_publish(struct sim *sim, struct sim_client *client, const struct packet_publish *publish)
{
    uint32_t id = SIM_NOBODY; /* of what clears a retained value, which has no payload to say it */
    if (publish->payload.size == 0 && publish->retain)
        sim_found(sim, "%s received a retained value without payload", client->id);
    if (publish->payload.size > 0 && !sim_ledger_parse(&id, publish->payload))
        sim_found(sim, "%s received a payload that nobody published", client->id);
    sim_trace(sim, "%s receives message %d, QoS %u, id %u%s", client->id, (int)id, publish->qos, publish->packet_id,
              publish->dup ? ", DUP" : "");
    if (publish->qos == 2) {
        uint32_t *open = &client->inbound[publish->packet_id], is = id == SIM_NOBODY ? SIM_NOBODY : id + 1;
        /* A broker that loses its sessions, or one that began this one behind a CONNACK which was lost, may use it for something else. */
        bool is_known = client->session_life != 0 && (client->session_life == sim->incarnation || sim->config.persistence);
        if (is_known && *open && (!publish->dup || *open != is))
            sim_found(sim, "%s received message %d%s with id %u, which is in use for %d", client->id, (int)id, publish->dup ? ", DUP," : "",
                      publish->packet_id, (int)*open - 1);
        bool is_new = *open != is || (!is_known && !publish->dup);
        *open = is;
        if (is_new && id != SIM_NOBODY)
            on_new_publish(sim, client, publish, id);
        send_ack(client, MQTT_PUBREC, publish->packet_id);
        return;
    }
    if (id != SIM_NOBODY)
        on_new_publish(sim, client, publish, id);
    if (publish->qos == 1)
        send_ack(client, MQTT_PUBACK, publish->packet_id);
}

static struct sim_flow *flow_get(struct sim *sim, struct sim_client *client, uint16_t packet_id, const char *what)
{
    for (size_t i = 0; i < client->flow_count; i++)
        if (client->flows[i].sent && client->flows[i].packet_id == packet_id)
            return &client->flows[i];
    sim_found(sim, "%s received a %s for id %u, which is not in use", client->id, what, packet_id);
}

static void flow_end(struct sim_client *client, struct sim_flow *flow)
{
    size_t index = (size_t)(flow - client->flows);
    memmove(flow, flow + 1, (client->flow_count - index - 1) * sizeof *flow);
    client->flow_count--;
}

/* Acknowledgements of one kind come in the order of the PUBLISH packets [MQTT-4.6.0-2] [MQTT-4.6.0-3]. */
static void check_ack_order(struct sim *sim, struct sim_client *client, const struct sim_flow *flow, uint8_t qos)
{
    for (const struct sim_flow *before = client->flows; before < flow; before++)
        if (sim->ledger.messages[before->message].qos == qos && !before->received)
            sim_found(sim, "%s: QoS %u acknowledgement of id %u came before that of id %u", client->id, qos, flow->packet_id,
                      before->packet_id);
}

static void on_ack(struct sim *sim, struct sim_client *client, enum mqtt_packet_type type, const struct packet_ack *ack)
{
    sim->progress++;
    if (type == MQTT_PUBREL) {
        sim_trace(sim, "%s: PUBREL of id %u", client->id, ack->packet_id);
        client->inbound[ack->packet_id] = 0;
        sim_promised(sim, false);
        send_ack(client, MQTT_PUBCOMP, ack->packet_id);
        return;
    }
    if (type == MQTT_PUBCOMP) {
        flow_end(client, flow_get(sim, client, ack->packet_id, "PUBCOMP"));
        sim_promised(sim, false);
        return;
    }
    struct sim_flow *flow = flow_get(sim, client, ack->packet_id, type == MQTT_PUBACK ? "PUBACK" : "PUBREC");
    uint8_t qos = type == MQTT_PUBACK ? 1 : 2;
    if (sim->ledger.messages[flow->message].qos != qos)
        sim_found(sim, "%s: the acknowledgement of id %u is of the wrong kind", client->id, ack->packet_id);
    if (ack->reason >= 0x80) {
        sim_ledger_on_refused(sim, flow->message);
        flow_end(client, flow);
        return;
    }
    check_ack_order(sim, client, flow, qos);
    const struct sim_message *message = &sim->ledger.messages[flow->message];
    if (sim_ledger_is_kept(sim, message) && message->attempts == 1 &&
        sim_broker_is_told_to_wait(sim, client->conn, message->first_sent_step))
        sim_found(sim, "%s: retained message %u is acknowledged, and the checkpoint lags too far behind since before it was sent",
                  client->id, flow->message);
    sim_ledger_on_acked(sim, flow->message);
    sim_promised(sim, message->retain);
    sim_trace(sim, "%s: message %u is acknowledged", client->id, flow->message);
    if (type == MQTT_PUBACK) {
        flow_end(client, flow);
        return;
    }
    flow->received = true;
    send_ack(client, MQTT_PUBREL, ack->packet_id);
}

static void on_packet(struct sim *sim, struct sim_client *client, const struct packet *packet)
{
    client->packets++;
    if (!client->online && packet->type != MQTT_CONNACK)
        sim_found(sim, "%s received packet type %d before CONNACK", client->id, packet->type);
    switch ((int)packet->type) {
    case MQTT_CONNACK:
        on_connack(sim, client, &packet->connack);
        return;
    case MQTT_PUBLISH:
        on_publish(sim, client, &packet->publish);
        return;
    case MQTT_PUBACK:
    case MQTT_PUBREC:
    case MQTT_PUBREL:
    case MQTT_PUBCOMP:
        on_ack(sim, client, packet->type, &packet->ack);
        return;
    case MQTT_SUBACK:
        on_suback(sim, client, &packet->suback);
        return;
    case MQTT_UNSUBACK:
        on_unsuback(sim, client, packet->suback.packet_id);
        return;
    default:
        return; /* PINGRESP, DISCONNECT: the end of the connection follows */
    }
}

/* Decode what is complete. A reset may come out of a packet: the connection is looked at again each time. */
static void read_packets(struct sim *sim, struct sim_client *client)
{
    while (client->conn) {
        struct frame frame;
        struct packet packet;
        enum frame_result result = frame_parse(&frame, client->input.bytes, client->input.size, FRAME_SIZE_MAX);
        if (result == FRAME_MORE)
            return;
        if (result == FRAME_BAD)
            sim_found(sim, "%s received a frame that is malformed", client->id);
        struct mqtt_verdict verdict = packet_decode(&packet, client->version, MQTT_FROM_SERVER, &frame, client->input.bytes);
        if (verdict.judgement != MQTT_OK)
            sim_found(sim, "%s received a packet that is malformed: %s", client->id, verdict.text);
        on_packet(sim, client, &packet);
        if (client->conn)
            sim_pipe_drop(&client->input, frame.size);
    }
}

void sim_client_read(struct sim *sim, struct sim_client *client)
{
    struct sim_conn *conn = client->conn;
    size_t size = sim_chance(sim, 1, 2) ? conn->down.size : 1 + sim_below(sim, conn->down.size);
    sim_pipe_put(&client->input, conn->down.bytes, size);
    sim_pipe_drop(&conn->down, size);
    read_packets(sim, client);
}

void sim_client_lost(struct sim *sim, struct sim_client *client)
{
    sim_trace(sim, "%s lost its connection", client->id);
    client->lost_step = sim->step;
    client->will_pending = client->online && !client->closing ? client->will : 0;
    if (client->will_pending && !client->is_will_delayed) {
        client->will_due = client->will_pending;
        client->will_due_step = client->will_step;
        client->will_due_life = client->will_life;
    }
    client->online = client->closing = false;
    client->input.size = 0;
    if (!sim->calm && (client->is_persistent || sim->config.all_go_away) && sim_chance(sim, 1, sim->config.away_one_in))
        client->away_until = sim->step + sim_below(sim, sim->config.away_steps);
}

void sim_client_go(struct sim *sim, struct sim_client *client)
{
    sim_trace(sim, "%s is gone for good", client->id);
    client->is_gone = true;
    if (client->conn)
        sim_conn_reset(sim, client->conn);
    if (client->will_pending && !sim->config.persistence && client->will_life != sim->incarnation)
        client->will_pending = 0;
}

void sim_clients_note_online(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->config.client_count; i++) {
        struct sim_client *client = &sim->clients[i];
        if (!client->conn || !client->online || !client->conn->core || client->conn->broken)
            continue;
        client->seen_online_mono = sim->mono;
        client->seen_online_ahead = sim->wall_ahead_known;
    }
}

bool sim_client_is_done(struct sim *sim, const struct sim_client *client)
{
    (void)sim;
    return client->is_gone || (client->online && client->flow_count == 0 && sim_client_is_subscribed(client));
}
