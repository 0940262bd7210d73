/* Any bytes as a packet: whatever is accepted must survive being encoded and decoded again, and its encoding must be a fixed point.
 * Input: byte 0 chooses version and sender; the rest is the packet. */
#include <stdlib.h>

#include "broker/mqtt/packet.h"
#include "common/check.h"
#include "tests/lib/packet_equal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_filters(const struct packet *packet)
{
    uint32_t count = 0;
    if (packet->type == MQTT_SUBSCRIBE) {
        struct span rest = packet->subscribe.filters;
        struct packet_subscription sub;
        while (packet_subscribe_next(&rest, &sub))
            count++;
        CHECK(count == packet->subscribe.filter_count);
    }
    if (packet->type == MQTT_UNSUBSCRIBE) {
        struct span rest = packet->unsubscribe.filters;
        struct span filter;
        while (packet_unsubscribe_next(&rest, &filter))
            count++;
        CHECK(count == packet->unsubscribe.filter_count);
    }
}

static void check_again(const struct packet *packet, enum mqtt_version version, enum mqtt_sender sender)
{
    uint32_t size = packet_encode_size(packet, version, UINT32_MAX);
    CHECK(size != 0);
    uint8_t *bytes = malloc(size);
    CHECK(bytes);
    CHECK(packet_encode(bytes, packet, version, UINT32_MAX) == size);
    struct frame frame;
    CHECK(frame_parse(&frame, bytes, size, FRAME_SIZE_MAX) == FRAME_OK);
    CHECK(frame.size == size);
    struct packet back;
    CHECK(packet_decode(&back, version, sender, &frame, bytes).judgement == MQTT_OK);
    CHECK(packet_differ(packet, &back) == NULL);
    uint8_t *again = malloc(size);
    CHECK(again);
    CHECK(packet_encode(again, &back, version, UINT32_MAX) == size);
    CHECK(memcmp(bytes, again, size) == 0);
    free(again);
    free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    static const enum mqtt_version versions[] = {MQTT_V31, MQTT_V311, MQTT_V5, MQTT_V5};
    enum mqtt_version version = versions[data[0] & 3];
    enum mqtt_sender sender = data[0] & 4 ? MQTT_FROM_SERVER : MQTT_FROM_CLIENT;
    data++;
    size--;
    struct frame frame;
    enum frame_result result = frame_parse(&frame, data, size, 1 << 20);
    CHECK((result == FRAME_BAD) == (frame.bad.judgement == MQTT_BAD));
    if (result != FRAME_OK)
        return 0;
    CHECK(frame.size <= size);
    struct packet packet;
    struct mqtt_verdict verdict = packet_decode(&packet, version, sender, &frame, data);
    CHECK((verdict.judgement == MQTT_BAD) == (verdict.text != NULL));
    struct span client_id;
    bool peeked = packet_peek_client_id(&client_id, &frame, data);
    if (verdict.judgement == MQTT_BAD)
        return 0;
    if (packet.type == MQTT_CONNECT) {
        CHECK(peeked);
        CHECK(span_equal(client_id, packet.connect.client_id));
        version = packet.connect.version;
    }
    check_filters(&packet);
    check_again(&packet, version, sender);
    return 0;
}
