/* Log sequences, ascending, of which many may stand aside for long: those of a queue that came too late for its runs (session/queue.h).
 *
 * Most are added at the end, some a little before it; all are taken from the beginning. A chain of pieces, each a position list of at most
 * LATE_PIECE, so that adding copies one piece, found from the end: it costs the same however many there are. A byte or two for each; there
 * are never more than the queue has messages, and its bound is theirs. Pure; owner: the queue. */
#ifndef TIDEGATE_BROKER_SESSION_LATE_LIST_H
#define TIDEGATE_BROKER_SESSION_LATE_LIST_H

#include <stdbool.h>
#include <stdint.h>

#define LATE_PIECE 256  /* sequences in one piece */
#define LATE_ADD_MAX 32 /* sequences in one call */

struct late_list; /* NULL = empty */

/* Put these (ascending, 1..LATE_ADD_MAX, none of them there) to their places. False: memory is short, nothing changed. */
bool late_list_add(struct late_list **list, const uint64_t *sequences, uint32_t count);
/* The first; false when it is empty. */
bool late_list_first(const struct late_list *list, uint64_t *sequence_out);
/* Take the first off; false when it is empty. Frees the list with its last. */
bool late_list_pop(struct late_list **list, uint64_t *sequence_out);
/* More than so many? Looks no further than it must. */
bool late_list_is_longer(const struct late_list *list, uint32_t than);
void late_list_each(const struct late_list *list, void (*visit)(void *arg, uint64_t sequence), void *arg);
void late_list_free(struct late_list *list); /* NULL is fine */

#endif
