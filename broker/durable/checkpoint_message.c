/* Messages and wants in the database: the delta's messages into rows, wants that ended out of them, and bodies that nobody holds any more
 * away. Sequences only grow, so rows are put at the end of their trees; what ends is taken in the order of the keys, each row once. Who let
 * a body go is noted first and done at the end of the transaction, because wants, retained values and ended sessions come one after the
 * other and speak of the same rows. */
#include "broker/durable/checkpoint_internal.h"
#include "broker/durable/checkpoint_write.h"

#include "common/check.h"

#include <stdlib.h>

#define MESSAGES_AHEAD 4                 /* messages fetched ahead of the one that is written */
#define MESSAGE_FETCH_SIZE ((size_t)320) /* of each: all of most */

/* --- messages ------------------------------------------------------------------------------------------------------------------------ */

static enum err flush_row(struct checkpoint_write *write, enum kv_tree tree, struct checkpoint_row_out *row)
{
    if (row->buf.err || checkpoint_row_is_empty(row))
        return row->buf.err;
    enum err err = checkpoint_write_put(write, tree, span_of(row->key, tree == KV_BODIES ? 8 : 16), buf_span(&row->buf));
    buf_clear(&row->buf);
    row->wants = 0;
    return err;
}

static enum err put_body(struct checkpoint_write *write, uint64_t sequence, const struct delta_message *message)
{
    struct checkpoint_row_out *row = &write->checkpoint->body_row;
    struct span body = delta_message_body(message);
    enum err err = ERR_OK;
    if (row->buf.size + VARINT_SIZE_MAX + body.size > CHECKPOINT_ROW_BYTES)
        err = flush_row(write, KV_BODIES, row);
    if (err)
        return err;
    write->bodies_put++;
    if (VARINT_SIZE_MAX + body.size > CHECKPOINT_ROW_BYTES) {
        uint8_t key[8];
        return checkpoint_write_put(write, KV_BODIES, kv_key_u64(key, sequence), delta_message_row(message));
    }
    if (checkpoint_row_is_empty(row))
        checkpoint_row_begin(row, sequence, 0);
    checkpoint_row_put_body(row, sequence, body);
    return row->buf.err;
}

/* One chunk: what is left of wants[*at..), *at behind it. */
static enum err put_chunk(struct checkpoint_row_out *row, uint64_t sequence, const struct delta_message *message, uint32_t *at)
{
    struct span recipients = delta_message_recipients(message);
    uint64_t first = 0;
    size_t size = 0;
    uint32_t count = 0, end = *at;
    for (; end < message->want_count && count < CHECKPOINT_CHUNK; end++) {
        if (message->wants[end].at == DELTA_WANT_DONE)
            continue;
        if (count++ == 0)
            first = message->wants[end].session;
        size += message->wants[end].size;
    }
    if (checkpoint_row_is_empty(row))
        checkpoint_row_begin(row, sequence, first);
    checkpoint_row_put_wants(row, sequence, message->content_bytes, size);
    for (; *at < end; ++*at)
        if (message->wants[*at].at != DELTA_WANT_DONE)
            buf_put(&row->buf, recipients.data + message->wants[*at].at, message->wants[*at].size);
    row->wants += count;
    return row->buf.err;
}

static enum err put_wants(struct checkpoint_write *write, uint64_t sequence, const struct delta_message *message, uint32_t *holders)
{
    struct checkpoint_row_out *row = &write->checkpoint->wants_row;
    enum err err = ERR_OK;
    if (row->wants + message->outstanding > CHECKPOINT_ROW_WANTS)
        err = flush_row(write, KV_RECIPIENTS, row);
    uint32_t left = message->outstanding;
    for (uint32_t at = 0; !err && left > 0; ++*holders) {
        err = put_chunk(row, sequence, message, &at);
        left -= left < CHECKPOINT_CHUNK ? left : CHECKPOINT_CHUNK;
        if (!err && row->wants >= CHECKPOINT_ROW_WANTS)
            err = flush_row(write, KV_RECIPIENTS, row);
    }
    return err;
}

static enum err put_message(struct checkpoint_write *write, uint64_t sequence, const struct delta_message *message)
{
    uint32_t holders = message->is_retained ? 1 : 0;
    enum err err = put_body(write, sequence, message);
    if (!err && message->outstanding > 0)
        err = put_wants(write, sequence, message, &holders);
    return err || holders <= 1 ? err : checkpoint_write_holders(write, sequence, holders);
}

enum err checkpoint_write_messages(struct checkpoint_write *write)
{
    struct checkpoint *checkpoint = write->checkpoint;
    const struct delta *delta = &checkpoint->delta;
    enum err err = ERR_OK;
    buf_clear(&checkpoint->wants_row.buf); /* what a transaction that failed left */
    buf_clear(&checkpoint->body_row.buf);
    checkpoint->wants_row.wants = 0;
    for (size_t i = 0; !err && i < delta->message_count; i++) {
        /* A second's messages are more than the caches hold. (Here: a function that does nothing else is left out by the compiler.) */
        const char *next = i + MESSAGES_AHEAD < delta->message_count ? (const char *)delta->messages[i + MESSAGES_AHEAD].message : NULL;
        for (size_t at = 0; next && at < MESSAGE_FETCH_SIZE; at += 64) /* a line */
            __builtin_prefetch(next + at);
        if (delta->messages[i].message)
            err = put_message(write, delta->messages[i].sequence, delta->messages[i].message);
    }
    if (!err)
        err = flush_row(write, KV_BODIES, &checkpoint->body_row);
    return err ? err : flush_row(write, KV_RECIPIENTS, &checkpoint->wants_row);
}

/* --- wants that ended ---------------------------------------------------------------------------------------------------------------- */

/* Acks of a transaction, in the order of sequence and session, and how far they are done. */
struct acks {
    const struct delta_ack *items;
    size_t at, count;
};

static int compare_acks(const void *a, const void *b)
{
    const struct delta_ack *x = (const struct delta_ack *)a, *y = (const struct delta_ack *)b;
    if (x->sequence != y->sequence)
        return x->sequence < y->sequence ? -1 : 1;
    return (x->session > y->session) - (x->session < y->session);
}

/* Those of the recipients that have not ended, into `kept`. Acks of sessions behind the last stay: another row may have them. */
static enum err reduce_wants(struct buf *kept, const struct checkpoint_wants *wants, struct acks *acks)
{
    struct record_recipient recipient;
    struct span rest = wants->recipients;
    enum err err;
    buf_clear(kept);
    for (const uint8_t *begin = rest.data; (err = record_recipient_next(&recipient, &rest)) == ERR_OK; begin = rest.data) {
        bool is_ended = false;
        for (; acks->at < acks->count && acks->items[acks->at].sequence == wants->sequence; acks->at++) {
            if (acks->items[acks->at].session > recipient.session)
                break;
            is_ended = is_ended || acks->items[acks->at].session == recipient.session;
        }
        if (!is_ended)
            buf_put(kept, begin, (size_t)(rest.data - begin));
    }
    return err == ERR_AGAIN ? kept->err : err;
}

/* The row without what ended, into checkpoint->wants_row. *is_changed_out: there was something. */
static enum err reduce_row(struct checkpoint_write *write, struct span key, struct span value, struct acks *acks, bool *is_changed_out)
{
    struct checkpoint_row_out *out = &write->checkpoint->wants_row;
    struct buf *kept = &write->checkpoint->scratch;
    struct checkpoint_row row = checkpoint_row_read(key, value);
    struct checkpoint_wants wants;
    enum err err;
    *is_changed_out = false;
    checkpoint_row_begin(out, kv_key_read_u64(key.data), kv_key_read_u64(key.data + 8));
    while ((err = checkpoint_row_next_wants(&row, &wants)) == ERR_OK) {
        while (acks->at < acks->count && acks->items[acks->at].sequence < wants.sequence)
            acks->at++; /* of a message that is not there: rows do not overlap */
        struct span recipients = wants.recipients;
        if (acks->at < acks->count && acks->items[acks->at].sequence == wants.sequence) {
            err = reduce_wants(kept, &wants, acks);
            if (err)
                return err;
            recipients = buf_span(kept);
        }
        *is_changed_out = *is_changed_out || recipients.size < wants.recipients.size;
        if (recipients.size == 0) {
            err = checkpoint_write_release(write, wants.sequence);
            if (err)
                return err;
            continue;
        }
        checkpoint_row_put_wants(out, wants.sequence, wants.content_bytes, recipients.size);
        buf_put_span(&out->buf, recipients);
    }
    return err == ERR_AGAIN ? out->buf.err : err;
}

/* The row in which the next ack's want is, if it is in any: all that ended in it. acks->at goes on by at least one. */
static enum err write_row_acks(struct checkpoint_write *write, struct acks *acks)
{
    uint8_t bytes[16];
    struct span key, value;
    struct checkpoint_row_out *out = &write->checkpoint->wants_row;
    size_t first = acks->at, released_count = write->checkpoint->released_count;
    bool is_changed = false;
    enum err err =
        kv_floor(write->txn, KV_RECIPIENTS, kv_key_u64_u64(bytes, acks->items[first].sequence, acks->items[first].session), &key, &value);
    if (err == ERR_NOTFOUND) {
        acks->at++;
        return ERR_OK;
    }
    if (!err)
        err = key.size == 16 ? reduce_row(write, key, value, acks, &is_changed) : ERR_CORRUPT;
    if (acks->at == first)
        acks->at++; /* it would be in this row, and is not */
    if (err == ERR_CORRUPT && key.size > 0) {
        counter_inc(&write->checkpoint->stats.corrupt);
        write->checkpoint->released_count = released_count;
        acks->at = first + 1;
        return ERR_OK;
    }
    if (err || !is_changed)
        return err;
    return checkpoint_row_is_empty(out) ? kv_del(write->txn, KV_RECIPIENTS, span_of(out->key, 16))
                                        : checkpoint_write_put(write, KV_RECIPIENTS, span_of(out->key, 16), buf_span(&out->buf));
}

enum err checkpoint_write_acks(struct checkpoint_write *write, struct delta_ack *items, size_t count)
{
    struct acks acks = {.items = items, .count = count};
    enum err err = ERR_OK;
    bool is_sorted = true;
    for (size_t i = 1; i < count && is_sorted; i++)
        is_sorted = compare_acks(&items[i - 1], &items[i]) <= 0;
    if (!is_sorted)
        qsort(items, count, sizeof *items, compare_acks);
    while (!err && acks.at < count)
        err = write_row_acks(write, &acks);
    return err;
}

/* --- bodies that are let go ---------------------------------------------------------------------------------------------------------- */

enum err checkpoint_write_release(struct checkpoint_write *write, uint64_t sequence)
{
    struct checkpoint *checkpoint = write->checkpoint;
    enum err err = delta_grow((void **)&checkpoint->released, &checkpoint->released_capacity, checkpoint->released_count,
                              sizeof *checkpoint->released);
    if (!err)
        checkpoint->released[checkpoint->released_count++] = sequence;
    return err;
}

/* `count` of those who hold the message do not any more. */
static enum err release(struct checkpoint_write *write, uint64_t sequence, uint32_t count, bool *is_free_out)
{
    uint8_t key[8];
    struct span value;
    *is_free_out = false;
    enum err err = write->has_holders ? kv_get(write->txn, KV_HOLDERS, kv_key_u64(key, sequence), &value) : ERR_NOTFOUND;
    if (err == ERR_CORRUPT || (!err && value.size != 4)) {
        /* Nobody knows who holds it: it stays, and the next load counts them. */
        counter_inc(&write->checkpoint->stats.corrupt);
        return ERR_OK;
    }
    if (err && err != ERR_NOTFOUND)
        return err;
    bool is_counted = !err;
    uint32_t holders = is_counted ? load_le32(value.data) : 1;
    if (count < holders)
        return checkpoint_write_holders(write, sequence, holders - count);
    *is_free_out = true;
    return is_counted ? checkpoint_write_holders(write, sequence, 0) : ERR_OK;
}

/* checkpoint->released becomes the messages that nobody holds, ascending. */
static enum err keep_free(struct checkpoint_write *write)
{
    uint64_t *released = write->checkpoint->released;
    size_t count = write->checkpoint->released_count, kept = 0;
    bool is_sorted = true;
    for (size_t i = 1; i < count && is_sorted; i++)
        is_sorted = released[i - 1] <= released[i];
    if (!is_sorted)
        qsort(released, count, sizeof *released, compare_u64);
    for (size_t i = 0, end; i < count; i = end) {
        bool is_free;
        for (end = i + 1; end < count && released[end] == released[i]; end++)
            ;
        enum err err = release(write, released[i], (uint32_t)(end - i), &is_free);
        if (err)
            return err;
        if (is_free)
            released[kept++] = released[i];
    }
    write->checkpoint->released_count = kept;
    return ERR_OK;
}

/* The row in which the body of released[*at] is, without it and what else goes. *at goes on by at least one. */
static enum err write_row_frees(struct checkpoint_write *write, size_t *at)
{
    const struct checkpoint *checkpoint = write->checkpoint;
    struct checkpoint_row_out *out = &write->checkpoint->body_row;
    uint8_t bytes[8];
    struct span key, value, record;
    size_t first = *at, count = checkpoint->released_count;
    uint64_t freed = 0;
    enum err err = kv_floor(write->txn, KV_BODIES, kv_key_u64(bytes, checkpoint->released[first]), &key, &value);
    if (err == ERR_NOTFOUND || (err == ERR_CORRUPT && key.size > 0) || (!err && key.size != 8)) {
        counter_add(&write->checkpoint->stats.corrupt, err != ERR_NOTFOUND);
        ++*at;
        return ERR_OK;
    }
    if (err)
        return err;
    struct checkpoint_row row = checkpoint_row_read(key, value);
    checkpoint_row_begin(out, kv_key_read_u64(key.data), 0);
    while ((err = checkpoint_row_next_body(&row, &record)) == ERR_OK) {
        while (*at < count && checkpoint->released[*at] < row.sequence)
            ++*at;
        if (*at < count && checkpoint->released[*at] == row.sequence)
            freed++;
        else
            checkpoint_row_put_body(out, row.sequence, record);
    }
    if (err == ERR_CORRUPT) {
        counter_inc(&write->checkpoint->stats.corrupt);
        *at = first + 1;
        return ERR_OK;
    }
    while (*at < count && (*at == first || checkpoint->released[*at] <= row.sequence))
        ++*at;
    if (freed == 0)
        return ERR_OK;
    if (out->buf.err)
        return out->buf.err;
    write->bodies_freed += freed;
    return checkpoint_row_is_empty(out) ? kv_del(write->txn, KV_BODIES, span_of(out->key, 8))
                                        : checkpoint_write_put(write, KV_BODIES, span_of(out->key, 8), buf_span(&out->buf));
}

enum err checkpoint_write_releases(struct checkpoint_write *write)
{
    enum err err = keep_free(write);
    for (size_t at = 0; !err && at < write->checkpoint->released_count;)
        err = write_row_frees(write, &at);
    write->checkpoint->released_count = 0;
    return err;
}
