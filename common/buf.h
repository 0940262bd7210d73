/* Growable byte buffer with a bound and a sticky failure: build a text or a body with many small puts and look at the outcome once.
 *
 * A put that would pass `size_max`, or that finds no memory, writes nothing, sets `err`, and so do all later ones: what is in the buffer is
 * a prefix that ends between two puts. A buffer that was never put to holds no memory. Owned by one thread.
 *
 *     struct buf body;
 *     buf_init(&body, 1 << 20);
 *     buf_printf(&body, "%d rows\n", rows);
 *     if (body.err) ...
 *     buf_deinit(&body); */
#ifndef TIDEGATE_COMMON_BUF_H
#define TIDEGATE_COMMON_BUF_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/err.h"

struct buf {
    uint8_t *data;
    size_t size;
    size_t capacity;
    size_t size_max; /* bytes; the bound */
    enum err err;    /* 0, ERR_TOOLARGE or ERR_NOMEM; sticky until buf_clear() */
};

/* An empty buffer that may grow to `size_max` bytes. */
void buf_init(struct buf *buf, size_t size_max);
/* Free the bytes; the struct may be initialised again. */
void buf_deinit(struct buf *buf);
/* Empty it and forget a failure; keeps the memory. */
void buf_clear(struct buf *buf);

/* Append. `data` is borrowed and does not point into the buffer. Failures go to buf->err. */
void buf_put(struct buf *buf, const void *data, size_t size);
void buf_put_span(struct buf *buf, struct span span);
void buf_put_string(struct buf *buf, const char *text);
void buf_put_byte(struct buf *buf, uint8_t byte);
void buf_printf(struct buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buf_vprintf(struct buf *buf, const char *format, va_list args) __attribute__((format(printf, 2, 0)));

/* Append the content of a JSON string (without the quotes): '"', '\\' and controls escaped; bytes that are no valid UTF-8 become U+FFFD, so
 * that the output is always valid JSON, whatever the peer sent. */
void buf_put_json_escaped(struct buf *buf, struct span text);
/* The same with the quotes around it. */
void buf_put_json_string(struct buf *buf, struct span text);

/* Make room for `size` more bytes and return where they go, NULL on failure (buf->err set); the size counts only after buf_commit(). */
uint8_t *buf_reserve(struct buf *buf, size_t size);
/* `size` bytes, at most what was reserved, were written at the end. */
void buf_commit(struct buf *buf, size_t size);

/* Drop `size` bytes, at most buf->size, from the front. Moves what is left. */
void buf_consume(struct buf *buf, size_t size);

/* What is in it; borrowed until the next change. */
static inline struct span buf_span(const struct buf *buf) { return span_of(buf->data, buf->size); }
/* What is in it as a C string: puts a NUL behind the content, which is not counted. Never NULL ("" on failure). Borrowed until the next
 * change. */
const char *buf_string(struct buf *buf);

#endif
