/* Single-producer single-consumer ring of fixed-size ops, passed by value, and the protocol by which a sleeping consumer is woken once.
 *
 * One thread pushes, one thread pops; neither ever waits. An op is copied in and out (memcpy of op_size bytes), so there is no node, no
 * allocation and no ownership beyond what the op itself says. Order is FIFO. The bound is the capacity given at init, all of it usable.
 *
 * Why not ck_ring: it carries pointers, so every op would need a cell from somewhere and a way back; its inline assembly and stand-alone
 * fences are opaque to ThreadSanitizer, which then reports correct hand-offs and, once silenced, misses wrong ones. C11 acquire and release
 * on two indices compile to plain loads and stores on x86 and to ldar/stlr on aarch64, keep a copy of the other side's index so that the
 * usual push or pop touches no foreign cache line, and are understood by ThreadSanitizer without any annotation.
 *
 *   1. The producer alone writes `tail`, after the slot; the consumer reads `tail` (acquire) before the slot. So an op is seen whole.
 *   2. The consumer alone writes `head`, after it has copied the slot; the producer reads `head` (acquire) before it writes the slot again.
 *   3. Indices count up for ever in 64 bits and are masked on use: full is tail - head == capacity, and there is no wrap to reason about.
 *
 * A reserve for control traffic is the caller's policy: look at ring_free_count() before pushing what may not use the last slots.
 *
 * Sleep and wake, with one `ring_waker` for all the rings that one consumer drains:
 *
 *   consumer                                      producer
 *   drain all rings                               ring_try_push(...), as many as the batch has
 *   ring_waker_sleep(&waker)                      if (ring_waker_wake_needed(&waker))
 *   if any ring is not empty                          uv_async_send / write to the eventfd
 *       ring_waker_awake(&waker), drain again
 *   else block; on return ring_waker_awake(&waker)
 *
 * Both sides do a read-modify-write on the same word, and those are totally ordered: if the producer's comes second, it reads "asleep" and
 * wakes; if it comes first, the consumer's synchronizes with it, so the recheck sees the push. No fence is involved. Only the producer
 * whose exchange took the "asleep" away sends, so N producers cause one wake. A spurious wake is harmless. */
#ifndef TIDEGATE_COMMON_RING_H
#define TIDEGATE_COMMON_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/err.h"

#define RING_CACHE_LINE 64

struct ring {
    _Alignas(RING_CACHE_LINE) _Atomic uint64_t tail; /* next to write; producer */
    uint64_t head_seen;                              /* producer's copy of head */
    _Alignas(RING_CACHE_LINE) _Atomic uint64_t head; /* next to read; consumer */
    uint64_t tail_seen;                              /* consumer's copy of tail */
    _Alignas(RING_CACHE_LINE) uint8_t *slots;        /* set at init, then read only */
    uint64_t mask;
    size_t op_size;
};

/* capacity  ops, a power of two, 2..2^30.   op_size  bytes, >= 1. Allocates capacity * op_size bytes. Returns 0 or ERR_NOMEM.
 * Thread: before the two ends are given out. */
enum err ring_init(struct ring *ring, size_t capacity, size_t op_size) must_check;
/* Frees the slots; what ops still in it own is lost, so drain first. Thread: after both ends have stopped. */
void ring_deinit(struct ring *ring);

static inline size_t ring_capacity(const struct ring *ring) { return (size_t)ring->mask + 1; }

/* Slots a push may use now; may be more a moment later, never less. Thread: producer. */
static inline size_t ring_free_count(struct ring *ring)
{
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    ring->head_seen = atomic_load_explicit(&ring->head, memory_order_acquire);
    return ring_capacity(ring) - (size_t)(tail - ring->head_seen);
}

/* Ops in the ring: exact for the consumer as a lower bound, for the producer as an upper bound, for anybody else a gauge. Thread: any. */
static inline size_t ring_count(const struct ring *ring)
{
    uint64_t head = atomic_load_explicit(&((struct ring *)(uintptr_t)ring)->head, memory_order_acquire);
    uint64_t tail = atomic_load_explicit(&((struct ring *)(uintptr_t)ring)->tail, memory_order_acquire);
    return (size_t)(tail - head);
}

/* Copy one op in. False: full, nothing was taken. Thread: producer. Does not allocate, does not block. */
static inline bool ring_try_push(struct ring *ring, const void *op)
{
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    if (tail - ring->head_seen > ring->mask) {
        ring->head_seen = atomic_load_explicit(&ring->head, memory_order_acquire);
        if (tail - ring->head_seen > ring->mask)
            return false;
    }
    memcpy(ring->slots + (size_t)(tail & ring->mask) * ring->op_size, op, ring->op_size);
    atomic_store_explicit(&ring->tail, tail + 1, memory_order_release);
    return true;
}

/* Copy the oldest op out. False: empty. Thread: consumer. */
static inline bool ring_try_pop(struct ring *ring, void *op_out)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    if (head == ring->tail_seen) {
        ring->tail_seen = atomic_load_explicit(&ring->tail, memory_order_acquire);
        if (head == ring->tail_seen)
            return false;
    }
    memcpy(op_out, ring->slots + (size_t)(head & ring->mask) * ring->op_size, ring->op_size);
    atomic_store_explicit(&ring->head, head + 1, memory_order_release);
    return true;
}

/* Copy up to `count_max` oldest ops out, one release of the slots for all. Returns how many. Thread: consumer. */
static inline size_t ring_pop_batch(struct ring *ring, void *ops_out, size_t count_max)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    if (ring->tail_seen - head < count_max)
        ring->tail_seen = atomic_load_explicit(&ring->tail, memory_order_acquire);
    size_t count = (size_t)(ring->tail_seen - head) < count_max ? (size_t)(ring->tail_seen - head) : count_max;
    if (count == 0)
        return 0;
    size_t index = (size_t)(head & ring->mask);
    size_t until_wrap = ring_capacity(ring) - index;
    size_t first = count < until_wrap ? count : until_wrap;
    memcpy(ops_out, ring->slots + index * ring->op_size, first * ring->op_size);
    memcpy((uint8_t *)ops_out + first * ring->op_size, ring->slots, (count - first) * ring->op_size);
    atomic_store_explicit(&ring->head, head + count, memory_order_release);
    return count;
}

/* Of one consumer, shared by all producers into its rings. Zero-initialised = awake. */
struct ring_waker {
    _Alignas(RING_CACHE_LINE) _Atomic uint32_t asleep;
};

static inline void ring_waker_init(struct ring_waker *waker) { atomic_init(&waker->asleep, 0); }

/* "I am about to block": from here on a producer wakes me. Recheck every ring after this call, before blocking. Thread: consumer. */
static inline void ring_waker_sleep(struct ring_waker *waker) { (void)atomic_exchange_explicit(&waker->asleep, 1, memory_order_acq_rel); }

/* "I am running": no wake needed. Thread: consumer. */
static inline void ring_waker_awake(struct ring_waker *waker) { (void)atomic_exchange_explicit(&waker->asleep, 0, memory_order_acq_rel); }

/* After the pushes of one batch: true when the caller must send the consumer's wake (true is given to one producer only).
 * Thread: any producer. Costs one locked instruction; once a batch, not once an op. */
static inline bool ring_waker_wake_needed(struct ring_waker *waker)
{
    return atomic_exchange_explicit(&waker->asleep, 0, memory_order_acq_rel) != 0;
}

#endif
