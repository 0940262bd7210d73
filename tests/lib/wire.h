/* Bytes written down so that a packet can be read: a small notation for tests.
 *
 *   82 | 0001 p( 0b 05 ) s'a/b' 01        SUBSCRIBE, identifier 1, subscription identifier 5, filter "a/b" with options 1
 *
 *   hex digits   bytes, two digits each; blanks anywhere between
 *   'text'       its bytes
 *   s'text'      a string: two bytes of length, then its bytes
 *   |            remaining length of everything after it, as a variable byte integer
 *   p( ... )     a property block: its length as a variable byte integer, then what stands inside
 *   *N           the byte before, N times in all (decimal)
 *
 * Aborts on a mistake in the notation: it is the test's own. Header only. Thread: any. */
#ifndef TIDEGATE_TESTS_LIB_WIRE_H
#define TIDEGATE_TESTS_LIB_WIRE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static inline int wire_hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Insert the size of out[from..size) before it; returns the new size. */
static inline size_t wire_prefix_size(uint8_t *out, size_t from, size_t size)
{
    uint8_t prefix[4];
    size_t prefix_size = 0;
    size_t value = size - from;
    do {
        prefix[prefix_size] = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        value >>= 7;
        prefix_size++;
    } while (value != 0);
    memmove(out + from + prefix_size, out + from, size - from);
    memcpy(out + from, prefix, prefix_size);
    return size + prefix_size;
}

/* Turn notation into bytes; out has room for whatever it says. Returns the size. */
static inline size_t wire_bytes(uint8_t *out, const char *notation)
{
    size_t size = 0;
    size_t packet_from = SIZE_MAX;
    size_t block_from = SIZE_MAX;
    const char *at = notation;
    while (*at) {
        if (*at == ' ') {
            at++;
        } else if (*at == '|') {
            packet_from = size;
            at++;
        } else if (at[0] == 'p' && at[1] == '(') {
            block_from = size;
            at += 2;
        } else if (*at == ')') {
            if (block_from == SIZE_MAX)
                abort();
            size = wire_prefix_size(out, block_from, size);
            block_from = SIZE_MAX;
            at++;
        } else if (*at == '*') {
            char *end;
            unsigned long times = strtoul(at + 1, &end, 10);
            for (unsigned long i = 1; i < times; i++, size++)
                out[size] = out[size - 1];
            at = end;
        } else if (*at == '\'' || (at[0] == 's' && at[1] == '\'')) {
            const char *begin = *at == 's' ? at + 2 : at + 1;
            const char *end = strchr(begin, '\'');
            if (!end)
                abort();
            size_t text_size = (size_t)(end - begin);
            if (*at == 's') {
                out[size++] = (uint8_t)(text_size >> 8);
                out[size++] = (uint8_t)text_size;
            }
            memcpy(out + size, begin, text_size);
            size += text_size;
            at = end + 1;
        } else {
            int high = wire_hex_digit(at[0]);
            int low = high < 0 ? -1 : wire_hex_digit(at[1]);
            if (low < 0)
                abort();
            out[size++] = (uint8_t)(high << 4 | low);
            at += 2;
        }
    }
    return packet_from == SIZE_MAX ? size : wire_prefix_size(out, packet_from, size);
}

#endif
