/* A checkpoint that is memory: what the durable log said about messages and who still wants them, and the reader's answers from it.
 *
 * memory_store_apply() takes records in the order of the log; what they say is seen by reads at once, as a store far ahead would have it.
 * Runs are seen after memory_store_commit(), as in the checkpoint, where they come with the next commit. Everything is searched in order:
 * for tests of a few thousand messages. What no home may do is CHECKed: a run that overlaps another, an acknowledgement of what was not
 * wanted, a request above the checkpoint. */
#ifndef TIDEGATE_TESTS_LIB_MEMORY_STORE_H
#define TIDEGATE_TESTS_LIB_MEMORY_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "broker/actor/ops.h"
#include "broker/durable/store_reader.h"
#include "common/record.h"

struct memory_store;

struct memory_store *memory_store_new(void);
void memory_store_free(struct memory_store *store);
void memory_store_apply(struct memory_store *store, const struct record *rec, uint64_t sequence);
/* OP_STORE_RUN (taken), OP_STORE_RUN_DROP; others are passed over. */
void memory_store_on_op(struct memory_store *store, const struct op *op);
/* Returns the checkpoint's position: one above the last record applied. */
uint64_t memory_store_commit(struct memory_store *store);
/* The process ends here: what was said of runs since the last commit is lost. */
void memory_store_crash(struct memory_store *store);
/* Fill the answer; at most `items_max` messages (0 = any number) are looked at, as if the budget of bytes were used up. */
void memory_store_read(struct memory_store *store, struct store_read *read, uint32_t items_max);

/* What the checkpoint holds. */
bool memory_store_wants(const struct memory_store *store, uint64_t session, uint64_t sequence);
size_t memory_store_want_count(const struct memory_store *store, uint64_t session);
size_t memory_store_run_count(const struct memory_store *store, uint64_t session);  /* committed and not dropped */
size_t memory_store_sent_count(const struct memory_store *store, uint64_t session); /* outgoing QoS 2 */
/* The message is damaged from now on. */
void memory_store_damage(struct memory_store *store, uint64_t sequence);
/* For a start from it: visits the wants of a session in ascending order, with the cost and whether a run has it. */
typedef void (*memory_store_want_fn)(void *arg, uint64_t sequence, uint8_t qos, uint32_t cost, bool is_in_run);
void memory_store_each_want(const struct memory_store *store, uint64_t session, memory_store_want_fn visit, void *arg);
uint64_t memory_store_run_last(const struct memory_store *store, uint64_t session);

#endif
