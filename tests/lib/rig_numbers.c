#include "tests/lib/rig_numbers.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "common/position_list.h"

void publish_number(struct rig_client *client, const char *topic, unsigned number, uint8_t qos, uint16_t packet_id)
{
    char payload[16];
    snprintf(payload, sizeof payload, "%u", number);
    rig_publish(client, topic, payload, qos, packet_id);
}

unsigned number_of(const struct packet *packet)
{
    char text[16] = "", *end;
    size_t size = packet->publish.payload.size;
    assert_in_range(size, 1, sizeof text - 1);
    memcpy(text, packet->publish.payload.data, size);
    unsigned number = (unsigned)strtoul(text, &end, 10);
    assert_ptr_equal(end, text + size);
    return number;
}

void publish_range(struct rig *rig, struct rig_client *pub, const char *topic, unsigned first, unsigned last)
{
    for (unsigned i = first; i <= last; i++) {
        publish_number(pub, topic, i, 1, (uint16_t)(i % 60000 + 1));
        rig_settle(rig);
        const struct packet *packet = rig_next(pub);
        assert_non_null(packet);
        assert_int_equal(packet->type, MQTT_PUBACK);
        assert_true(packet->ack.reason < 0x80);
    }
}

unsigned take_all(struct rig *rig, struct rig_client *sub, unsigned next)
{
    for (const struct packet *packet;; rig_settle(rig)) {
        bool is_any = false;
        while ((packet = rig_next(sub)) != NULL) {
            assert_int_equal(packet->type, MQTT_PUBLISH);
            assert_int_equal(number_of(packet), next);
            next++;
            is_any = true;
            rig_send_ack(sub, MQTT_PUBACK, packet->publish.packet_id);
        }
        if (!is_any)
            return next - 1;
    }
}

struct rig_client *away_subscriber(struct rig *rig, const char *id, const char *filter, uint8_t qos)
{
    struct rig_client *sub = rig_connect(rig, id, MQTT_V5, false);
    rig_subscribe(sub, 1, filter, qos);
    rig_break(sub);
    rig_settle(rig);
    return sub;
}

uint64_t named_session(const struct rig *rig)
{
    struct record rec;
    struct record_recipient recipient;
    for (size_t i = rig_record_count(rig); i-- > 0;) {
        rig_record(rig, &rec, i);
        struct span rest = rec.recipients;
        if (rec.type == RECORD_PUBLISH && record_recipient_next(&recipient, &rest) == ERR_OK)
            return recipient.session;
    }
    fail_msg("no record names a session");
    return 0;
}

size_t count_named(const struct rig *rig, enum record_type type)
{
    size_t count = 0;
    struct record rec;
    for (size_t i = 0; i < rig_record_count(rig); i++) {
        rig_record(rig, &rec, i);
        uint64_t sequence = 0;
        for (size_t offset = 0; rec.type == type && position_list_next(rec.positions, &offset, &sequence) == ERR_OK;)
            count++;
    }
    return count;
}

uint64_t queued(struct rig *rig) { return rig_stats(rig, 0)->queued.messages; }
uint64_t in_memory(struct rig *rig) { return rig_stats(rig, 0)->checkpoint_window.messages; }
