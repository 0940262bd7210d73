/* A short ascending or nearly ascending list of log sequences in few bytes: the difference to the one before, zigzag, as a varint.
 *
 * The newest messages of an offline session are remembered by it (a byte or two each), runs in the checkpoint and DROP records are written
 * in it. One allocation that grows by a quarter; nothing is allocated while it is empty. Pure; one owner. Encoded form: the bytes alone;
 * the first difference is to 0. Reading never runs past the end, whatever the bytes are. */
#ifndef TIDEGATE_COMMON_POSITION_LIST_H
#define TIDEGATE_COMMON_POSITION_LIST_H

#include <stdbool.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/err.h"

/* NULL = empty. */
struct position_list;

/* Add at the end. ERR_NOMEM leaves the list as it was. */
enum err position_list_push(struct position_list **list, uint64_t sequence) must_check;
/* Add these at the end, all or, with ERR_NOMEM, none. */
enum err position_list_push_all(struct position_list **list, const uint64_t *sequences, uint32_t count) must_check;
/* The one pushed last, 0 when empty. */
uint64_t position_list_last(const struct position_list *list);
/* Take the first off; false when empty. Frees the list with its last. */
bool position_list_pop(struct position_list **list, uint64_t *sequence_out);
/* Take the first `count` off, which are there. */
void position_list_drop(struct position_list **list, uint32_t count);
bool position_list_first(const struct position_list *list, uint64_t *sequence_out);
/* Give back what a list that was much longer holds: more than twice what it needs. */
void position_list_trim(struct position_list **list);
uint32_t position_list_count(const struct position_list *list);
/* The encoded bytes, borrowed until the next change. */
struct span position_list_bytes(const struct position_list *list);
void position_list_free(struct position_list *list); /* NULL is fine */

/* The encoded form elsewhere: *offset 0 and *sequence 0 at first. Returns 0, ERR_AGAIN at the end, ERR_CORRUPT. */
enum err position_list_next(struct span bytes, size_t *offset, uint64_t *sequence) must_check;
/* Append to bytes of one's own (room for 10): returns the bytes used; *last is the one before (0 at first), and is set. */
size_t position_list_put(uint8_t *at, uint64_t *last, uint64_t sequence);

#endif
