#include "broker/mqtt/frame.h"

enum frame_result frame_parse(struct frame *out, const uint8_t *data, size_t size, uint32_t packet_size_max)
{
    *out = (struct frame){0};
    if (size == 0)
        return FRAME_MORE;
    out->type = data[0] >> 4;
    out->flags = data[0] & 0xf;
    if (out->type == 0) {
        out->bad = mqtt_bad(MQTT_REASON_MALFORMED_PACKET, "packet type 0 is reserved");
        return FRAME_BAD;
    }
    uint32_t remaining_size = 0;
    for (unsigned i = 1; i <= MQTT_VARINT_SIZE_MAX; i++) {
        if (i >= size)
            return FRAME_MORE;
        remaining_size |= (uint32_t)(data[i] & 0x7f) << (7 * (i - 1));
        if (data[i] & 0x80)
            continue;
        if (data[i] == 0 && i > 1) {
            out->bad = mqtt_bad(MQTT_REASON_MALFORMED_PACKET, "remaining length not in its shortest form [MQTT-1.5.5-1]");
            return FRAME_BAD;
        }
        out->header_size = (uint8_t)(1 + i);
        out->remaining_size = remaining_size;
        out->size = 1 + i + remaining_size;
        if (out->size > packet_size_max) {
            out->bad = mqtt_bad(MQTT_REASON_PACKET_TOO_LARGE, "packet larger than the maximum packet size [MQTT-3.2.2-15]");
            return FRAME_BAD;
        }
        return size >= out->size ? FRAME_OK : FRAME_MORE;
    }
    out->bad = mqtt_bad(MQTT_REASON_MALFORMED_PACKET, "remaining length longer than four bytes");
    return FRAME_BAD;
}

size_t mqtt_varint_get(uint32_t *value_out, const uint8_t *at, const uint8_t *end)
{
    uint32_t value = 0;
    for (unsigned i = 0; i < MQTT_VARINT_SIZE_MAX && (size_t)(end - at) > i; i++) {
        value |= (uint32_t)(at[i] & 0x7f) << (7 * i);
        if (at[i] & 0x80)
            continue;
        if (at[i] == 0 && i > 0)
            return 0; /* [MQTT-1.5.5-1] */
        *value_out = value;
        return i + 1;
    }
    return 0;
}
