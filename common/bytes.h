/* Spans of bytes, and fixed-width integers in both byte orders at any alignment.
 *
 * MQTT is big-endian, our files are little-endian; the names say which. Nothing here allocates or owns; a span is borrowed from whoever
 * made it. Thread: any. Pure. */
#ifndef TIDEGATE_COMMON_BYTES_H
#define TIDEGATE_COMMON_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* `size` bytes at `data`; data may be NULL only when size is 0. */
struct span {
    const uint8_t *data;
    size_t size;
};

#define SPAN_LITERAL(text) ((struct span){(const uint8_t *)(text), sizeof(text) - 1})

static inline struct span span_of(const void *data, size_t size) { return (struct span){(const uint8_t *)data, size}; }
static inline struct span span_of_string(const char *text) { return span_of(text, strlen(text)); }

static inline bool span_equal(struct span a, struct span b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

/* < 0, 0, > 0: the order of memcmp(), the shorter one first when the other begins with it. */
static inline int span_compare(struct span a, struct span b)
{
    size_t size = a.size < b.size ? a.size : b.size;
    int order = size > 0 ? memcmp(a.data, b.data, size) : 0;
    return order ? order : (a.size > b.size) - (a.size < b.size);
}

/* memcpy() for what is mostly 8 to 32 bytes, as names and topics are: a call costs more than they do. */
static inline void bytes_copy_short(uint8_t *to, const uint8_t *from, size_t size)
{
    if (size >= 16 && size <= 32) {
        memcpy(to, from, 16);
        memcpy(to + size - 16, from + size - 16, 16); /* may overlap the first */
    } else if (size >= 8 && size < 16) {
        memcpy(to, from, 8);
        memcpy(to + size - 8, from + size - 8, 8);
    } else {
        memcpy(to, from, size);
    }
}

static inline uint16_t load_le16(const void *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? __builtin_bswap16(value) : value;
}
static inline uint32_t load_le32(const void *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? __builtin_bswap32(value) : value;
}
static inline uint64_t load_le64(const void *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? __builtin_bswap64(value) : value;
}
static inline void store_le16(void *at, uint16_t value)
{
    if (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__)
        value = __builtin_bswap16(value);
    memcpy(at, &value, sizeof value);
}
static inline void store_le32(void *at, uint32_t value)
{
    if (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__)
        value = __builtin_bswap32(value);
    memcpy(at, &value, sizeof value);
}
static inline void store_le64(void *at, uint64_t value)
{
    if (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__)
        value = __builtin_bswap64(value);
    memcpy(at, &value, sizeof value);
}
static inline uint16_t load_be16(const void *at) { return __builtin_bswap16(load_le16(at)); }
static inline uint32_t load_be32(const void *at) { return __builtin_bswap32(load_le32(at)); }
static inline uint64_t load_be64(const void *at) { return __builtin_bswap64(load_le64(at)); }
static inline void store_be16(void *at, uint16_t value) { store_le16(at, __builtin_bswap16(value)); }
static inline void store_be32(void *at, uint32_t value) { store_le32(at, __builtin_bswap32(value)); }
static inline void store_be64(void *at, uint64_t value) { store_le64(at, __builtin_bswap64(value)); }

/* LEB128, the variable-length integer of our own files (MQTT has one of its own): 7 bits a byte, least significant first, 1 to 10 bytes. */
#define VARINT_SIZE_MAX 10

/* Write `value` at `at` (room for VARINT_SIZE_MAX); returns the bytes used. */
static inline size_t varint_put(uint8_t *at, uint64_t value)
{
    size_t size = 0;
    while (value >= 0x80) {
        at[size++] = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    at[size++] = (uint8_t)value;
    return size;
}

/* Read a varint from [at, end). Returns the bytes used, 0 when it is cut short or longer than 64 bits. */
static inline size_t varint_get(uint64_t *value_out, const uint8_t *at, const uint8_t *end)
{
    uint64_t value = 0;
    if (at < end && *at < 0x80) { /* most are one byte */
        *value_out = *at;
        return 1;
    }
    for (size_t i = 0; i < VARINT_SIZE_MAX && at + i < end; i++) {
        if (i == VARINT_SIZE_MAX - 1 && at[i] > 1)
            return 0;
        value |= (uint64_t)(at[i] & 0x7f) << (7 * i);
        if (!(at[i] & 0x80)) {
            *value_out = value;
            return i + 1;
        }
    }
    return 0;
}

static inline uint64_t zigzag_encode(int64_t value) { return ((uint64_t)value << 1) ^ (uint64_t)(value >> 63); }
static inline int64_t zigzag_decode(uint64_t value) { return (int64_t)(value >> 1) ^ -(int64_t)(value & 1); }

/* For qsort() and bsearch(): ascending. */
static inline int compare_u64(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

static inline size_t align_up(size_t value, size_t alignment) { return (value + alignment - 1) & ~(alignment - 1); }

#endif
