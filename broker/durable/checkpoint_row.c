#include "broker/durable/checkpoint_row.h"

#include "common/check.h"

/* --- reading ------------------------------------------------------------------------------------------------------------------------- */

struct checkpoint_row checkpoint_row_read(struct span key, struct span value)
{
    return (struct checkpoint_row){.sequence = kv_key_read_u64(key.data), .rest = value};
}

static bool take_number(struct span *rest, uint64_t *number_out)
{
    size_t used = varint_get(number_out, rest->data, rest->data + rest->size);
    *rest = span_of(rest->data + used, rest->size - used);
    return used > 0;
}

/* The sequence of the next entry: behind the one before, of the first at or behind the one in the key. */
static enum err next_sequence(struct checkpoint_row *row)
{
    uint64_t step;
    if (row->rest.size == 0)
        return row->is_begun ? ERR_AGAIN : ERR_CORRUPT;
    if (!take_number(&row->rest, &step) || step > UINT64_MAX - row->sequence || (step == 0 && row->is_begun))
        return ERR_CORRUPT;
    row->sequence += step;
    row->is_begun = true;
    return row->sequence != 0 ? ERR_OK : ERR_CORRUPT;
}

enum err checkpoint_row_next_wants(struct checkpoint_row *row, struct checkpoint_wants *wants_out)
{
    uint64_t content_bytes, size;
    enum err err = next_sequence(row);
    if (err)
        return err;
    if (!take_number(&row->rest, &content_bytes) || content_bytes > RECORD_SIZE_MAX || !take_number(&row->rest, &size) || size == 0 ||
        size > row->rest.size)
        return ERR_CORRUPT;
    *wants_out = (struct checkpoint_wants){row->sequence, (uint32_t)content_bytes, span_of(row->rest.data, (size_t)size)};
    row->rest = span_of(row->rest.data + size, row->rest.size - (size_t)size);
    return ERR_OK;
}

enum err checkpoint_row_next_body(struct checkpoint_row *row, struct span *record_out)
{
    enum err err = next_sequence(row);
    if (err)
        return err;
    return record_next(record_out, &row->rest) == ERR_OK ? ERR_OK : ERR_CORRUPT;
}

/* --- building ------------------------------------------------------------------------------------------------------------------------ */

void checkpoint_row_init(struct checkpoint_row_out *row)
{
    *row = (struct checkpoint_row_out){0};
    buf_init(&row->buf, KV_VALUE_MAX);
}

void checkpoint_row_deinit(struct checkpoint_row_out *row) { buf_deinit(&row->buf); }

void checkpoint_row_begin(struct checkpoint_row_out *row, uint64_t sequence, uint64_t session)
{
    buf_clear(&row->buf);
    row->last = sequence;
    row->wants = 0;
    kv_key_u64_u64(row->key, sequence, session);
}

static uint8_t *put_step(struct checkpoint_row_out *row, uint8_t *at, uint64_t sequence)
{
    CHECK(sequence >= row->last);
    at += varint_put(at, sequence - row->last);
    row->last = sequence;
    return at;
}

void checkpoint_row_put_wants(struct checkpoint_row_out *row, uint64_t sequence, uint32_t content_bytes, size_t size)
{
    uint8_t *begin = buf_reserve(&row->buf, 3 * VARINT_SIZE_MAX + size), *at = begin;
    if (!begin)
        return;
    at = put_step(row, at, sequence);
    at += varint_put(at, content_bytes);
    at += varint_put(at, size);
    buf_commit(&row->buf, (size_t)(at - begin));
}

void checkpoint_row_put_body(struct checkpoint_row_out *row, uint64_t sequence, struct span record)
{
    uint8_t *begin = buf_reserve(&row->buf, VARINT_SIZE_MAX + record.size), *at = begin;
    if (!begin)
        return;
    at = put_step(row, at, sequence);
    memcpy(at, record.data, record.size);
    buf_commit(&row->buf, (size_t)(at - begin) + record.size);
}
