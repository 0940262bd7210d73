/* Fixed headers and variable byte integers: where a packet begins, what it is called, where it ends.
 *
 *   byte 0     type << 4 | flags
 *   byte 1..4  remaining length, variable byte integer: 7 bits a byte, least significant first, fewest bytes [MQTT-1.5.5-1]
 *
 * A packet's size always means all of it, fixed header included: this is what Maximum Packet Size counts [MQTT-3.1.2-24] [MQTT-3.2.2-15].
 * Flags and versions are packet_decode()'s business. Thread: any. Pure.
 *
 *   struct frame frame;
 *   switch (frame_parse(&frame, data, size, size_max)) {
 *   case FRAME_MORE: wait for more bytes (frame.size says how many in all, once it is known)
 *   case FRAME_BAD:  close with frame.bad.reason
 *   case FRAME_OK:   packet_decode(&packet, version, MQTT_FROM_CLIENT, &frame, data); data += frame.size; ...
 */
#ifndef TIDEGATE_BROKER_MQTT_FRAME_H
#define TIDEGATE_BROKER_MQTT_FRAME_H

#include <stddef.h>
#include <stdint.h>

#include "broker/mqtt/mqtt_spec.h"

#define MQTT_VARINT_SIZE_MAX 4
#define MQTT_VARINT_MAX 268435455u
#define FRAME_HEADER_SIZE_MAX (1 + MQTT_VARINT_SIZE_MAX)
/* The largest packet the format can express: 256 MiB + 4. A limit at or above it is no limit. */
#define FRAME_SIZE_MAX (FRAME_HEADER_SIZE_MAX + MQTT_VARINT_MAX)

enum frame_result {
    FRAME_OK,   /* the whole packet is in [data, data + out->size) */
    FRAME_MORE, /* not all of it is there yet */
    FRAME_BAD,  /* out->bad says why; the connection cannot be used any more */
};

struct frame {
    enum mqtt_packet_type type;
    uint8_t flags;           /* low four bits of the first byte */
    uint8_t header_size;     /* 2..5 once known, else 0 */
    uint32_t remaining_size; /* bytes after the header */
    uint32_t size;           /* header_size + remaining_size; 0 while the header is incomplete */
    struct mqtt_verdict bad; /* set with FRAME_BAD only */
};

/* Look at the packet that begins at data[0].
 * data, size        borrowed; any number of bytes, 0 included; never read past.
 * packet_size_max   of the whole packet in bytes; judged as soon as the header is there, before the body is.
 * FRAME_BAD         type 0; remaining length longer than 4 bytes or not in its shortest form (0x81); too large (0x95; type and sizes are
 * set). FRAME_MORE        with the header complete: type, flags and sizes are set, so that the caller can reserve room. */
enum frame_result frame_parse(struct frame *out, const uint8_t *data, size_t size, uint32_t packet_size_max);

/* Read a variable byte integer from [at, end). Returns the bytes used (1..4), 0 when cut short, longer than 4 bytes or not minimal. */
size_t mqtt_varint_get(uint32_t *value_out, const uint8_t *at, const uint8_t *end);

/* Bytes that `value` (<= MQTT_VARINT_MAX) takes. */
static inline size_t mqtt_varint_size(uint32_t value) { return value < 0x80 ? 1 : value < 0x4000 ? 2 : value < 0x200000 ? 3 : 4; }

/* Write `value` (<= MQTT_VARINT_MAX) at `at`; returns the bytes used. */
static inline size_t mqtt_varint_put(uint8_t *at, uint32_t value)
{
    size_t size = 0;
    while (value >= 0x80) {
        at[size++] = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    at[size++] = (uint8_t)value;
    return size;
}

/* Size of a whole packet from its remaining length (<= MQTT_VARINT_MAX). */
static inline uint32_t frame_size(uint32_t remaining_size) { return 1 + (uint32_t)mqtt_varint_size(remaining_size) + remaining_size; }

/* Write a fixed header; returns its size. at: room for FRAME_HEADER_SIZE_MAX. */
static inline size_t frame_put(uint8_t *at, enum mqtt_packet_type type, unsigned flags, uint32_t remaining_size)
{
    at[0] = (uint8_t)((unsigned)type << 4 | flags);
    return 1 + mqtt_varint_put(at + 1, remaining_size);
}

#endif
