#include "common/buf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/check.h"
#include "common/utf8.h"

#define BUF_CAPACITY_MIN 256

void buf_init(struct buf *buf, size_t size_max) { *buf = (struct buf){.size_max = size_max}; }

void buf_deinit(struct buf *buf)
{
    free(buf->data);
    *buf = (struct buf){.size_max = buf->size_max};
}

void buf_clear(struct buf *buf)
{
    buf->size = 0;
    buf->err = ERR_OK;
}

/* Capacity for `size` more bytes, and for a NUL behind them that buf_string() and vsnprintf() may write. */
static bool buf_make_room(struct buf *buf, size_t size)
{
    if (buf->err)
        return false;
    if (size > buf->size_max - buf->size) {
        buf->err = ERR_TOOLARGE;
        return false;
    }
    size_t needed = buf->size + size + 1;
    if (needed <= buf->capacity)
        return true;
    size_t capacity = buf->capacity + buf->capacity / 2;
    if (capacity < needed)
        capacity = needed;
    if (capacity < BUF_CAPACITY_MIN)
        capacity = BUF_CAPACITY_MIN;
    uint8_t *data = realloc(buf->data, capacity);
    if (!data) {
        buf->err = ERR_NOMEM;
        return false;
    }
    buf->data = data;
    buf->capacity = capacity;
    return true;
}

uint8_t *buf_reserve(struct buf *buf, size_t size) { return buf_make_room(buf, size) ? buf->data + buf->size : NULL; }

void buf_commit(struct buf *buf, size_t size)
{
    CHECK(size == 0 || size < buf->capacity - buf->size);
    buf->size += size;
}

void buf_put(struct buf *buf, const void *data, size_t size)
{
    if (size == 0 || !buf_make_room(buf, size))
        return;
    memcpy(buf->data + buf->size, data, size);
    buf->size += size;
}

void buf_put_span(struct buf *buf, struct span span) { buf_put(buf, span.data, span.size); }
void buf_put_string(struct buf *buf, const char *text) { buf_put(buf, text, strlen(text)); }
void buf_put_byte(struct buf *buf, uint8_t byte) { buf_put(buf, &byte, 1); }

void buf_printf(struct buf *buf, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    buf_vprintf(buf, format, args);
    va_end(args);
}

void buf_vprintf(struct buf *buf, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    size_t room = buf->capacity - buf->size; /* most texts fit where they go, and are formatted once */
    int size = vsnprintf(room ? (char *)buf->data + buf->size : NULL, room, format, args);
    CHECK(size >= 0);
    bool fitted = (size_t)size < room;
    if (buf_make_room(buf, (size_t)size)) {
        if (!fitted)
            vsnprintf((char *)buf->data + buf->size, (size_t)size + 1, format, again);
        buf->size += (size_t)size;
    }
    va_end(again);
}

void buf_put_json_escaped(struct buf *buf, struct span text)
{
    size_t offset = 0;
    while (offset < text.size) {
        /* what needs no escape goes in one piece */
        size_t plain = offset;
        while (plain < text.size && text.data[plain] >= 0x20 && text.data[plain] < 0x7f && text.data[plain] != '"' &&
               text.data[plain] != '\\')
            plain++;
        buf_put(buf, text.data + offset, plain - offset);
        offset = plain;
        if (offset == text.size)
            return;
        uint32_t code_point;
        size_t used = utf8_decode(&code_point, text.data + offset, text.size - offset);
        if (used == 0) {
            buf_put(buf, "\xef\xbf\xbd", 3);
            used = 1;
        } else if (code_point == '"' || code_point == '\\') {
            buf_put_byte(buf, '\\');
            buf_put_byte(buf, (uint8_t)code_point);
        } else if (code_point == '\n') {
            buf_put(buf, "\\n", 2);
        } else if (code_point == '\t') {
            buf_put(buf, "\\t", 2);
        } else if (code_point == '\r') {
            buf_put(buf, "\\r", 2);
        } else if (code_point < 0x20 || (code_point >= 0x7f && code_point < 0xa0) || code_point == 0x2028 || code_point == 0x2029) {
            buf_printf(buf, "\\u%04x", code_point);
        } else {
            buf_put(buf, text.data + offset, used);
        }
        offset += used;
    }
}

void buf_put_json_string(struct buf *buf, struct span text)
{
    buf_put_byte(buf, '"');
    buf_put_json_escaped(buf, text);
    buf_put_byte(buf, '"');
}

void buf_consume(struct buf *buf, size_t size)
{
    CHECK(size <= buf->size);
    if (size == 0)
        return;
    memmove(buf->data, buf->data + size, buf->size - size);
    buf->size -= size;
}

const char *buf_string(struct buf *buf)
{
    if (!buf->data && !buf_make_room(buf, 0))
        return "";
    CHECK(buf->data);
    buf->data[buf->size] = '\0';
    return (const char *)buf->data;
}
