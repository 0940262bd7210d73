/* The filters of one session, as sent: so that its end, and each UNSUBSCRIBE, can name what may be in the topic tree.
 *
 * The texts stand one after the other in one block, behind 16 bits of size each; a session with a filter or two, which nearly all are,
 * costs the block and nothing else. From SUBSCRIPTION_INDEX_MIN filters on a hash table finds them, because a client may send thousands of
 * filters in one packet and the loop must not stand still for their square. A removed text stays as a gap (its first byte becomes 0, which
 * no filter has) until gaps are half of the block. Without memory for the table the search is linear, nothing worse.
 *
 * Bounds: SUBSCRIPTION_LIST_FILTERS_MAX and SUBSCRIPTION_LIST_BYTES_MAX; past them the filter is refused. Pure; owner: the session's
 * shard. */
#ifndef TIDEGATE_BROKER_SESSION_SUBSCRIPTION_LIST_H
#define TIDEGATE_BROKER_SESSION_SUBSCRIPTION_LIST_H

#include <stdbool.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/err.h"

#define SUBSCRIPTION_LIST_FILTERS_MAX 16384
#define SUBSCRIPTION_LIST_BYTES_MAX (4u << 20)
#define SUBSCRIPTION_INDEX_MIN 32

struct subscription_index;

/* NULL = no filters. */
struct subscription_list {
    struct subscription_index *index;  /* NULL = search in order */
    uint64_t count : 16;               /* filters */
    uint64_t size : 24, capacity : 24; /* bytes in use, gaps included; allocated */
    uint8_t bytes[];
};
_Static_assert(sizeof(struct subscription_list) == 16, "with one filter of 30 bytes: 48, one size class of the allocator");
_Static_assert(SUBSCRIPTION_LIST_FILTERS_MAX < 1 << 16 && SUBSCRIPTION_LIST_BYTES_MAX < 1 << 23,
               "what the fields hold; capacity is at most half more");

/* Remember a filter (1..65535 bytes, no 0 in front); fine when it is there. hash_key: the peer must not know it; the same at every call.
 * Returns 0, ERR_FULL (a bound), ERR_NOMEM. */
enum err subscription_list_add(struct subscription_list **list, struct span filter, uint64_t hash_key) must_check;
/* Returns whether it was there; frees the list with its last filter. */
bool subscription_list_remove(struct subscription_list **list, struct span filter);
bool subscription_list_has(const struct subscription_list *list, struct span filter);
/* Walk: *offset starts at 0; false at the end. The list must not change meanwhile. */
bool subscription_list_next(const struct subscription_list *list, uint32_t *offset, struct span *filter_out);
/* NULL is fine. */
void subscription_list_free(struct subscription_list *list);

#endif
