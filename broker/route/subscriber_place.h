/* Who subscribed to one filter: one word, which the writer replaces as a whole and any thread reads inside a section of the writer's epoch.
 *
 *   nobody | one subscriber | a block of 2..32 | a fan-out
 *
 * A fan-out is a directory of blocks, by the top bits of the hash of the subscriber's identity (extendible hashing). A block is replaced as
 * a whole. When one is split, its upper half is published before its lower half: a reader goes upwards and steps over as many places as the
 * block that it read covers, so it reads the old block alone, or the new lower half and then (acquire) the new upper one; nobody appears
 * twice. Blocks are merged only into a new directory, for the same reason.
 *
 * Rejected: one linked list of subscribers (a cache miss each). */
#ifndef TIDEGATE_BROKER_ROUTE_SUBSCRIBER_PLACE_H
#define TIDEGATE_BROKER_ROUTE_SUBSCRIBER_PLACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "broker/route/epoch_memory.h"
#include "broker/route/subscriber.h"
#include "common/err.h"

#define PLACE_NONE ((uintptr_t)0) /* nobody */

typedef _Atomic(uintptr_t) subscriber_place;

/* Add, or replace. Returns 0, ERR_NOMEM (nothing changed). Thread: writer. */
enum err place_put(struct epoch_memory *memory, subscriber_place *place, bool *was_there_out, const struct subscriber *sub) must_check;
/* Whether it was there. Never fails. Thread: writer. */
bool place_remove(struct epoch_memory *memory, subscriber_place *place, const struct subscriber *id);
/* NULL: it is not there. Thread: any, inside a section. */
const struct subscriber *place_find(subscriber_place *place, const struct subscriber *id);
/* All that `word`, a place read with acquire, stands for, into the list; it is not PLACE_NONE. False: memory is short. Thread: any, inside
 * a section. */
bool place_collect(uintptr_t word, struct match_list *list);
/* Thread: writer, no readers left. */
void place_free(subscriber_place *place);

/* Thread: writer. */
static inline bool place_is_empty(subscriber_place *place) { return atomic_load_explicit(place, memory_order_relaxed) == PLACE_NONE; }

#endif
