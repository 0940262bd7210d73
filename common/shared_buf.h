/* Immutable bytes with an atomic reference count, count and payload in one allocation: copied once when they come in, then only referenced.
 *
 * Whoever makes one may write `data` until it hands the first reference to somebody else; after that nobody writes. The last unref frees,
 * on whatever thread that happens. A reference is *shared (ref)*: each holder unrefs once. */
#ifndef TIDEGATE_COMMON_SHARED_BUF_H
#define TIDEGATE_COMMON_SHARED_BUF_H

#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"

struct shared_buf {
    uint32_t ref_count; /* atomic */
    uint32_t size;      /* bytes in data */
    uint8_t data[];
};

#define SHARED_BUF_SIZE_MAX UINT32_MAX

/* Room for `size` bytes, contents not set, one reference. NULL without memory or past SHARED_BUF_SIZE_MAX. Thread: any. */
struct shared_buf *shared_buf_new(size_t size);
/* The same with a copy of `bytes`. */
struct shared_buf *shared_buf_new_copy(struct span bytes);
/* One more reference (count > 0 already); returns `shared`. Thread: any holder. */
struct shared_buf *shared_buf_ref(struct shared_buf *shared);
/* `count` more references at once: a fan-out pays one atomic operation. */
void shared_buf_ref_many(struct shared_buf *shared, uint32_t count);
/* Give one reference back; the last one frees. NULL is allowed. Thread: any holder. */
void shared_buf_unref(struct shared_buf *shared);
/* References held now; exact only for a sole holder. */
uint32_t shared_buf_ref_count(const struct shared_buf *shared);

static inline struct span shared_buf_span(const struct shared_buf *shared) { return span_of(shared->data, shared->size); }

#endif
