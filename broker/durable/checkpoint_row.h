/* Rows of the checkpoint: what it keeps of messages, several messages under one key. Internal to the checkpoint and its repair.
 *
 * Messages come by the thousand and go by the thousand, in the order of their sequences. A row of the database for each would cost more in
 * the tree (search, page, checksum) than in bytes, so those that came one after the other share one: who wants them up to
 * CHECKPOINT_ROW_WANTS wants a row (RECIPIENTS), their bodies up to a page (BODIES). A message with more wants, or a larger body, has rows
 * of its own. A row is written once and then only gets smaller; its key names the first that it had, and stays.
 *
 *     value: entry ...
 *     entry of RECIPIENTS: sequence (varint: less that of the entry before; the first: less that in the key), bytes of topic, properties
 *                          and payload together (varint), size of the recipients (varint), recipients
 *     entry of BODIES:     sequence (likewise), record
 *
 * No two rows overlap in (sequence, session), or sequence, so what is looked for stands in the last row whose key is not behind it, if it
 * stands anywhere. Values come from a disk: reading checks everything but the recipients. Pure. */
#ifndef TIDEGATE_BROKER_DURABLE_CHECKPOINT_ROW_H
#define TIDEGATE_BROKER_DURABLE_CHECKPOINT_ROW_H

#include "broker/durable/kv.h"
#include "common/buf.h"
#include "common/record.h"

#define CHECKPOINT_ROW_WANTS 32   /* of several messages in one row: what an acknowledgement rewrites at most */
#define CHECKPOINT_ROW_BYTES 4076 /* of bodies in one row: with its checksum it fills one page of LMDB */

/* --- reading ------------------------------------------------------------------------------------------------------------------------- */

struct checkpoint_row {
    uint64_t sequence; /* of the entry read last */
    struct span rest;
    bool is_begun;
};

/* One message, and those that want it and stand in this row. */
struct checkpoint_wants {
    uint64_t sequence;
    uint32_t content_bytes;
    struct span recipients; /* not looked at, but there are some */
};

/* `key`: of the row, of at least 8 bytes. Spans borrowed as long as entries are read. */
struct checkpoint_row checkpoint_row_read(struct span key, struct span value);
/* The next entry. Returns 0, ERR_AGAIN (there is no more; the first time there is one), ERR_CORRUPT. */
enum err checkpoint_row_next_wants(struct checkpoint_row *row, struct checkpoint_wants *wants_out) must_check;
/* Its sequence is row->sequence; the record is whole, and not decoded. */
enum err checkpoint_row_next_body(struct checkpoint_row *row, struct span *record_out) must_check;

/* --- building ------------------------------------------------------------------------------------------------------------------------ */

struct checkpoint_row_out {
    struct buf buf; /* the value so far; look at buf.err */
    uint64_t last;  /* sequence of the last entry */
    uint32_t wants; /* recipients in it, counted by the caller */
    uint8_t key[16];
};

void checkpoint_row_init(struct checkpoint_row_out *row);
void checkpoint_row_deinit(struct checkpoint_row_out *row);
/* An empty row with this key; of BODIES only the first 8 bytes of it are used. */
void checkpoint_row_begin(struct checkpoint_row_out *row, uint64_t sequence, uint64_t session);
static inline bool checkpoint_row_is_empty(const struct checkpoint_row_out *row) { return row->buf.size == 0; }
/* The beginning of an entry, behind which the caller puts `size` bytes of recipients. */
void checkpoint_row_put_wants(struct checkpoint_row_out *row, uint64_t sequence, uint32_t content_bytes, size_t size);
void checkpoint_row_put_body(struct checkpoint_row_out *row, uint64_t sequence, struct span record);

#endif
