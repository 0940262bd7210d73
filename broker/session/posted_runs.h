/* Runs of one queue that the store may not have committed, oldest first: it can find none of them yet, so their sequences are kept, a byte
 * or two each (session/queue.h says why). Each was posted as the n-th of its shard. Pure; owner: the queue. */
#ifndef TIDEGATE_BROKER_SESSION_POSTED_RUNS_H
#define TIDEGATE_BROKER_SESSION_POSTED_RUNS_H

#include <stdbool.h>
#include <stdint.h>

#include "broker/actor/ops.h"
#include "broker/actor/store_read.h"

struct posted_runs; /* NULL = none */

/* One more (ascending, above those that there are), the `number`th. False: memory is short; then none is left at all. */
bool posted_runs_add(struct posted_runs **place, const struct store_run *run, uint64_t number);
/* The first of them: its sequences, 1..STORE_RUN_MAX. Returns how many. Frees them with the last. */
uint32_t posted_runs_take(struct posted_runs **place, struct store_read_item *items_out);
/* Messages in them. */
uint32_t posted_runs_count(const struct posted_runs *posted);
/* The first sequence; UINT64_MAX when there are none. */
uint64_t posted_runs_first(const struct posted_runs *posted);
/* The number of the first that was added since there were none, and that of the last. posted: not NULL. */
uint64_t posted_runs_began(const struct posted_runs *posted);
uint64_t posted_runs_ended(const struct posted_runs *posted);
void posted_runs_free(struct posted_runs *posted); /* NULL is fine */

#endif
