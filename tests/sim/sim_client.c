/* A client of the simulator: publishes telemetry at all QoS, subscribes, keeps its part of QoS 1 and 2 exactly, comes back after a loss and
 * sends again what was not acknowledged. */
#include <stdio.h>
#include <stdlib.h>

#include "common/check.h"
#include "tests/sim/sim.h"

void sim_client_init(struct sim *sim, uint8_t index)
{
    struct sim_client *client = &sim->clients[index];
    *client = (struct sim_client){.sim = sim, .index = index, .next_packet_id = 1};
    snprintf(client->id, sizeof client->id, "client%u", index);
    client->version = sim_chance(sim, 1, 2) ? MQTT_V5 : MQTT_V311;
    client->clean = sim_chance(sim, 1, 3);
    client->publishes = index == 0 || sim_chance(sim, 3, 4);
    client->subscribes = !client->publishes || sim_chance(sim, 1, 3);
    client->subscribe_qos = (uint8_t)sim_below(sim, 3);
    client->seen = calloc(SIM_MESSAGES_MAX, sizeof *client->seen);
    client->fresh = calloc(SIM_MESSAGES_MAX, sizeof *client->fresh);
    client->order = calloc(SIM_CLIENTS_MAX * SIM_DEVICES_MAX * 3 * SIM_KINDS, sizeof *client->order);
    CHECK(client->seen);
    CHECK(client->fresh);
    CHECK(client->order);
}

void sim_client_deinit(struct sim_client *client)
{
    free(client->seen);
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
    struct sim_message *will =
        sim_chance(sim, 1, 2)
            ? sim_ledger_new_will(sim, client->index, (uint8_t)sim_below(sim, sim->config.device_count), (uint8_t)sim_below(sim, 3))
            : NULL;
    if (!will)
        return;
    client->will = will->id + 1;
    connect->has_will = true;
    connect->will_qos = will->qos;
    connect->will_topic = span_of(texts[0], sim_ledger_topic(will, texts[0], 128));
    connect->will_payload = span_of(texts[1], sim_ledger_payload(will, texts[1], 128));
    if (client->version == MQTT_V5 && sim_chance(sim, 1, 2)) {
        connect->will_properties.will_delay_interval_s = (uint32_t)(1 + sim_below(sim, 10));
        connect->will_properties.present |= MQTT_PROPERTY_BIT(WILL_DELAY_INTERVAL);
    }
}

static void connect_broker(struct sim *sim, struct sim_client *client)
{
    char will_texts[2][128];
    struct packet packet = {.type = MQTT_CONNECT};
    client->conn = sim_conn_open(sim, client);
    client->input.size = 0;
    client->closing = client->online = false;
    packet.connect.version = client->version;
    packet.connect.clean_start = client->clean;
    client->has_keep_alive = sim_chance(sim, 1, 3);
    packet.connect.keep_alive_s = client->has_keep_alive ? 5 : 0;
    add_will(sim, client, &packet.connect, will_texts);
    packet.connect.client_id = span_of_string(client->id);
    if (client->version == MQTT_V5 && !client->clean) {
        packet.connect.properties.session_expiry_interval_s = UINT32_MAX;
        packet.connect.properties.present |= MQTT_PROPERTY_BIT(SESSION_EXPIRY_INTERVAL);
    }
    send_packet(client, &packet);
    sim_trace(sim, "%s connects%s, will %d", client->id, client->clean ? " clean" : "", (int)client->will - 1);
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
    if (message->first_sent_step == 0)
        message->first_sent_step = sim->step;
    sim_trace(sim, "%s publishes message %u, QoS %u, id %u%s", client->id, message->id, message->qos, packet_id, dup ? ", again" : "");
}

static void begin_flow(struct sim *sim, struct sim_client *client, struct sim_flow *flow)
{
    struct sim_message *message = &sim->ledger.messages[flow->message];
    flow->packet_id = take_packet_id(client);
    flow->sent = true;
    flow->incarnation = sim->incarnation;
    message->attempts++;
    send_publish(sim, client, message, flow->packet_id, false);
}

static void publish_new(struct sim *sim, struct sim_client *client)
{
    uint8_t device = (uint8_t)sim_below(sim, sim->config.device_count);
    /* A device belongs to one client but the last, which everyone may publish for. */
    if (device + 1u < sim->config.device_count)
        device = (uint8_t)(client->index % sim->config.device_count);
    struct sim_message *message =
        sim_ledger_new(sim, client->index, device, (uint8_t)sim_below(sim, 3), sim_chance(sim, 1, 6) ? SIM_COMMAND : SIM_TELEMETRY);
    if (!message)
        return;
    message->retain = message->qos > 0 && sim_chance(sim, 1, 4);
    if (message->kind == SIM_COMMAND && client->version == MQTT_V5 && sim_chance(sim, 1, 2))
        message->expiry_s = (uint32_t)(1 + sim_below(sim, 20));
    if (sim_chance(sim, 1, 15))
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

static void subscribe(struct sim *sim, struct sim_client *client)
{
    uint8_t payload[64];
    struct packet packet = {.type = MQTT_SUBSCRIBE};
    packet.subscribe.packet_id = 30;
    packet.subscribe.filter_count = 2;
    size_t size = packet_put_subscription(payload, SPAN_LITERAL("fleet/+/telemetry"), client->subscribe_qos);
    size += packet_put_subscription(payload + size, SPAN_LITERAL("cmd/#"), client->subscribe_qos);
    packet.subscribe.filters = span_of(payload, size);
    send_packet(client, &packet);
    client->subscribe_sent = true;
    if (client->subscribe_sent_step == 0)
        client->subscribe_sent_step = sim->step;
    sim_trace(sim, "%s subscribes with QoS %u", client->id, client->subscribe_qos);
}

void sim_client_act(struct sim *sim, struct sim_client *client)
{
    if (!client->conn) {
        if (sim->broker)
            connect_broker(sim, client);
        return;
    }
    if (!client->online || client->closing)
        return;
    if (client->subscribes && !client->subscribe_sent) {
        subscribe(sim, client);
        return;
    }
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
    if (!sim->calm && client->publishes && client->flow_count < SIM_FLOWS_MAX && client->flow_count < client->receive_maximum)
        publish_new(sim, client);
}

/* The session is there: PUBLISH again with DUP, PUBREL again; or it is not: what was not acknowledged begins anew. */
static void resume_flows(struct sim *sim, struct sim_client *client, bool present)
{
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
            bool forgotten = flow->incarnation != sim->incarnation;
            message->attempts += message->qos == 1 || forgotten;
            message->flow += forgotten;
            flow->incarnation = sim->incarnation;
            send_publish(sim, client, message, flow->packet_id, true);
        } else {
            message->flow++;
            begin_flow(sim, client, flow);
        }
    }
}

static void on_connack(struct sim *sim, struct sim_client *client, const struct packet_connack *connack)
{
    if (connack->reason != 0) {
        sim_trace(sim, "%s is refused: 0x%02x", client->id, connack->reason);
        return;
    }
    if (client->online)
        sim_found(sim, "%s received a second CONNACK", client->id);
    if (connack->session_present && client->clean)
        sim_found(sim, "%s: session present after a clean start", client->id);
    client->online = true;
    client->receive_maximum = client->version == MQTT_V5 && (connack->properties.present & MQTT_PROPERTY_BIT(RECEIVE_MAXIMUM))
                                  ? connack->properties.receive_maximum
                                  : SIM_FLOWS_MAX;
    if (!connack->session_present) {
        for (uint32_t id = 0; id < sim->ledger.count; id++)
            sim->ledger.messages[id].unordered |= sim->ledger.messages[id].client == client->index && sim->ledger.messages[id].padding;
        client->session_number++;
        client->session_life = sim->incarnation;
        client->subscribed = client->subscribe_sent = false;
        client->subscribe_sent_step = 0;
        memset(client->inbound, 0, sizeof client->inbound);
        memset(client->heard, 0, sizeof client->heard);
    } else {
        client->subscribe_sent = client->subscribed;
    }
    sim_conn_check_taken_over(sim, client);
    sim_trace(sim, "%s is online, session %s", client->id, connack->session_present ? "present" : "new");
    resume_flows(sim, client, connack->session_present);
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
        sim_ledger_on_retained(sim, client, id);
    else
        sim_ledger_on_delivered(sim, client, id, publish->qos, publish->dup);
}

static void on_publish(struct sim *sim, struct sim_client *client, const struct packet_publish *publish)
{
    uint32_t id;
    if (!sim_ledger_parse(&id, publish->payload))
        sim_found(sim, "%s received a payload that nobody published", client->id);
    sim_trace(sim, "%s receives message %u, QoS %u, id %u%s", client->id, id, publish->qos, publish->packet_id,
              publish->dup ? ", DUP" : "");
    if (publish->qos == 2) {
        uint8_t *byte = &client->inbound[publish->packet_id / 8], bit = (uint8_t)(1u << publish->packet_id % 8);
        bool open = *byte & bit;
        /* A broker that lost its sessions may say "present" of one whose CONNACK was lost on the way. */
        if (open && !publish->dup && client->session_life == sim->incarnation)
            sim_found(sim, "%s received message %u with id %u, which is in use", client->id, id, publish->packet_id);
        *byte |= bit;
        if (!open)
            on_new_publish(sim, client, publish, id);
        send_ack(client, MQTT_PUBREC, publish->packet_id);
        return;
    }
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
        client->inbound[ack->packet_id / 8] &= (uint8_t) ~(1u << ack->packet_id % 8);
        send_ack(client, MQTT_PUBCOMP, ack->packet_id);
        return;
    }
    if (type == MQTT_PUBCOMP) {
        flow_end(client, flow_get(sim, client, ack->packet_id, "PUBCOMP"));
        return;
    }
    struct sim_flow *flow = flow_get(sim, client, ack->packet_id, type == MQTT_PUBACK ? "PUBACK" : "PUBREC");
    uint8_t qos = type == MQTT_PUBACK ? 1 : 2;
    if (sim->ledger.messages[flow->message].qos != qos)
        sim_found(sim, "%s: the acknowledgement of id %u is of the wrong kind", client->id, ack->packet_id);
    if (ack->reason >= 0x80) {
        flow_end(client, flow); /* refused: no promise was made */
        return;
    }
    check_ack_order(sim, client, flow, qos);
    sim_ledger_on_acked(sim, flow->message);
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
        client->subscribed = packet->suback.codes.data[0] < 0x80 && packet->suback.codes.data[1] < 0x80;
        client->subscribed_step = sim->step;
        client->subscribed_incarnation = sim->incarnation;
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
    client->online = client->closing = false;
    client->input.size = 0;
}

bool sim_client_is_done(struct sim *sim, const struct sim_client *client)
{
    (void)sim;
    return client->online && client->flow_count == 0 && (!client->subscribes || client->subscribed);
}
