#include "tests/lib/rig_clients.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "tests/lib/rig_expect.h"

struct rig_client *v5(struct rig *rig, const char *id) { return rig_connect(rig, id, MQTT_V5, true); }
struct rig_client *v5_stay(struct rig *rig, const char *id) { return rig_connect(rig, id, MQTT_V5, false); }

struct rig_client *subscriber(struct rig *rig, const char *id, bool stays, const char *filter, uint8_t qos)
{
    struct rig_client *client = stays ? v5_stay(rig, id) : v5(rig, id);
    rig_subscribe(client, 1, filter, qos);
    return client;
}

struct rig_client *rejoin(struct rig *rig, const char *id)
{
    struct packet connect = rig_connect_packet(id, MQTT_V5, false);
    return rig_connect_with(rig, &connect);
}

struct rig_client *come_back(struct rig *rig, const char *id)
{
    struct rig_client *client = rejoin(rig, id);
    expect_connack(client, true, 0);
    return client;
}

void send_disconnect(struct rig_client *client, enum mqtt_reason reason)
{
    rig_send(client, &(struct packet){.type = MQTT_DISCONNECT, .disconnect = {.reason = reason}});
}

void leave(struct rig *rig, struct rig_client *client)
{
    send_disconnect(client, MQTT_REASON_NORMAL_DISCONNECTION);
    rig_settle(rig);
    assert_true(rig_is_closed(client));
}

struct packet publish_packet(const char *topic, const char *payload, uint8_t qos, uint16_t packet_id)
{
    return (struct packet){
        .type = MQTT_PUBLISH,
        .publish = {.topic = span_of_string(topic), .payload = span_of_string(payload), .qos = qos, .packet_id = packet_id}};
}

struct packet will_packet(const char *id, uint32_t delay_s, uint32_t expiry_s)
{
    struct packet connect = rig_connect_packet(id, MQTT_V5, false);
    connect.connect.properties.session_expiry_interval_s = expiry_s;
    connect.connect.has_will = true;
    connect.connect.will_topic = span_of_string("w");
    connect.connect.will_payload = span_of_string("gone");
    connect.connect.will_qos = 1;
    if (delay_s)
        connect.connect.will_properties.will_delay_interval_s = delay_s,
        connect.connect.will_properties.present |= MQTT_PROPERTY_BIT(WILL_DELAY_INTERVAL);
    return connect;
}

size_t last_record(const struct rig *rig, struct record *last_out, uint64_t *sequence_out, enum record_type type)
{
    size_t count = 0;
    for (size_t i = 0; i < rig_record_count(rig); i++) {
        struct record rec;
        rig_record(rig, &rec, i);
        if (rec.type != type)
            continue;
        count++;
        *last_out = rec;
        if (sequence_out)
            *sequence_out = i + 1;
    }
    return count;
}

size_t count_records(const struct rig *rig, enum record_type type)
{
    struct record last;
    return last_record(rig, &last, NULL, type);
}
