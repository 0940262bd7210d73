/* Bytes that wait for one socket, in order.
 *
 * A list of pieces: small packets are copied one behind the other into buffers of OUTBOX_BUFFER_SIZE, payloads above OUTBOX_COPY_MAX are
 * pieces that refer to their message. The driver's write takes what outbox_iovecs() shows and outbox_consume() forgets it; a write may stop
 * at any byte, and each byte is looked at a constant number of times however small the writes are. Pieces come from a pool of the shard
 * and go back to it, so nothing is allocated while idle, and next to nothing in a running shard.
 *
 * Bound: none here; the shard reads outbox.bytes and drops QoS 0 or stops reading (shard_limits.outbox_bytes_max). Pure; owner: the shard.
 *
 *     uint8_t *at = outbox_reserve(&outbox, &pool, 5);   if (!at) memory is short;
 *     outbox_commit(&outbox, packet_put_ack(at, ...)); */
#ifndef TIDEGATE_BROKER_SESSION_OUTBOX_H
#define TIDEGATE_BROKER_SESSION_OUTBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "broker/actor/msg.h"

#define OUTBOX_BUFFER_SIZE 4048 /* bytes; with its header and malloc's about a page */
#define OUTBOX_COPY_MAX 1024    /* bytes; a larger payload goes by reference */
#define OUTBOX_POOL_MAX 256     /* pieces of either kind kept for use again */

struct outbox_piece;

struct outbox_pool {
    struct outbox_piece *buffers, *refs; /* free lists */
    uint32_t buffer_count, ref_count;
};

/* Zero-initialised is empty. */
struct outbox {
    struct outbox_piece *first, *last;
    uint64_t bytes;
};

void outbox_pool_deinit(struct outbox_pool *pool);

/* Give everything back. */
void outbox_clear(struct outbox *outbox, struct outbox_pool *pool);
static inline bool outbox_is_empty(const struct outbox *outbox) { return outbox->bytes == 0; }

/* `size` contiguous bytes at the end, to be written and then committed (with the size used, at most `size`) before anything else is asked
 * for. NULL when memory is short: nothing changed. */
uint8_t *outbox_reserve(struct outbox *outbox, struct outbox_pool *pool, size_t size);
void outbox_commit(struct outbox *outbox, size_t size);
/* A copy of the bytes. */
bool outbox_put(struct outbox *outbox, struct outbox_pool *pool, const void *data, size_t size);
/* The message's payload: copied or by reference (shared). False when memory is short. */
bool outbox_put_payload(struct outbox *outbox, struct outbox_pool *pool, struct msg *msg);
/* The first bytes as at most `count_max` pieces; returns how many. Borrowed until the next change. */
int outbox_iovecs(const struct outbox *outbox, struct iovec *iov_out, int count_max);
/* Forget the first `size` bytes, at most outbox->bytes. */
void outbox_consume(struct outbox *outbox, struct outbox_pool *pool, size_t size);

#endif
