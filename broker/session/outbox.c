#include "broker/session/outbox.h"

#include <stdlib.h>

#include "common/check.h"

struct outbox_piece {
    struct outbox_piece *next;
    const uint8_t *data; /* own bytes or the message's */
    size_t start, end;   /* what is to be written */
    size_t capacity;     /* of bytes[]; 0 for a reference */
    struct msg *msg;     /* shared (ref) or NULL */
    uint8_t bytes[];
};

static struct outbox_piece *piece_new(struct outbox_pool *pool, size_t capacity)
{
    struct outbox_piece *piece = NULL;
    if (capacity == OUTBOX_BUFFER_SIZE && pool->buffers) {
        piece = pool->buffers;
        pool->buffers = piece->next;
        pool->buffer_count--;
    } else if (capacity == 0 && pool->refs) {
        piece = pool->refs;
        pool->refs = piece->next;
        pool->ref_count--;
    } else {
        piece = malloc(sizeof *piece + capacity);
    }
    if (!piece)
        return NULL;
    *piece = (struct outbox_piece){.data = piece->bytes, .capacity = capacity};
    return piece;
}

static void piece_free(struct outbox_pool *pool, struct outbox_piece *piece)
{
    msg_unref(piece->msg);
    if (piece->capacity == OUTBOX_BUFFER_SIZE && pool->buffer_count < OUTBOX_POOL_MAX) {
        piece->next = pool->buffers;
        pool->buffers = piece;
        pool->buffer_count++;
    } else if (piece->capacity == 0 && pool->ref_count < OUTBOX_POOL_MAX) {
        piece->next = pool->refs;
        pool->refs = piece;
        pool->ref_count++;
    } else {
        free(piece);
    }
}

static void free_list(struct outbox_piece *piece)
{
    while (piece) {
        struct outbox_piece *next = piece->next;
        free(piece);
        piece = next;
    }
}

void outbox_pool_deinit(struct outbox_pool *pool)
{
    free_list(pool->buffers);
    free_list(pool->refs);
    *pool = (struct outbox_pool){0};
}

void outbox_clear(struct outbox *outbox, struct outbox_pool *pool)
{
    while (outbox->first) {
        struct outbox_piece *piece = outbox->first;
        outbox->first = piece->next;
        piece_free(pool, piece);
    }
    *outbox = (struct outbox){0};
}

static void append(struct outbox *outbox, struct outbox_piece *piece)
{
    if (outbox->last)
        outbox->last->next = piece;
    else
        outbox->first = piece;
    outbox->last = piece;
}

uint8_t *outbox_reserve(struct outbox *outbox, struct outbox_pool *pool, size_t size)
{
    struct outbox_piece *last = outbox->last;
    if (!last || last->capacity - last->end < size || last->capacity == 0) {
        last = piece_new(pool, size <= OUTBOX_BUFFER_SIZE ? OUTBOX_BUFFER_SIZE : size);
        if (!last)
            return NULL;
        append(outbox, last);
    }
    return last->bytes + last->end;
}

void outbox_commit(struct outbox *outbox, size_t size)
{
    struct outbox_piece *last = outbox->last;
    CHECK(last->capacity - last->end >= size);
    last->end += size;
    outbox->bytes += size;
}

bool outbox_put(struct outbox *outbox, struct outbox_pool *pool, const void *data, size_t size)
{
    if (size == 0)
        return true;
    uint8_t *room = outbox_reserve(outbox, pool, size);
    if (!room)
        return false;
    memcpy(room, data, size);
    outbox_commit(outbox, size);
    return true;
}

bool outbox_put_payload(struct outbox *outbox, struct outbox_pool *pool, struct msg *msg)
{
    struct span payload = msg_payload(msg);
    if (payload.size <= OUTBOX_COPY_MAX)
        return outbox_put(outbox, pool, payload.data, payload.size);
    struct outbox_piece *piece = piece_new(pool, 0);
    if (!piece)
        return false;
    piece->data = payload.data;
    piece->end = payload.size;
    piece->msg = msg_ref(msg);
    append(outbox, piece);
    outbox->bytes += payload.size;
    return true;
}

int outbox_iovecs(const struct outbox *outbox, struct iovec *iov_out, int count_max)
{
    int count = 0;
    for (const struct outbox_piece *piece = outbox->first; piece && count < count_max; piece = piece->next) {
        if (piece->start == piece->end)
            continue; /* reserved and not written to */
        /* writev's iovec has no const; nobody writes through it. */
        iov_out[count].iov_base = (void *)(uintptr_t)(piece->data + piece->start);
        iov_out[count].iov_len = piece->end - piece->start;
        count++;
    }
    return count;
}

void outbox_consume(struct outbox *outbox, struct outbox_pool *pool, size_t size)
{
    CHECK(size <= outbox->bytes);
    outbox->bytes -= size;
    while (outbox->first) {
        struct outbox_piece *piece = outbox->first;
        size_t there = piece->end - piece->start;
        if (there > size) {
            piece->start += size;
            return;
        }
        size -= there;
        outbox->first = piece->next;
        if (!outbox->first)
            outbox->last = NULL;
        piece_free(pool, piece);
        if (size == 0 && outbox->bytes > 0)
            return;
    }
    CHECK(size == 0);
}
