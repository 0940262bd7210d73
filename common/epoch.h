/* Deferred reclamation for structures that many threads read and one thread writes: a wrapper over ck_epoch.
 *
 * Readers put a section around a batch of reads; inside it, nothing that was reachable is freed. The single writer unlinks first, then
 * hands the memory to epoch_defer_free(), and calls epoch_poll() now and then; memory goes once every reader that could have seen it has
 * left its section. A reader's section must never cross a wait of its loop: one sleeping reader would hold all reclamation. Retired memory
 * is gathered in batches of EPOCH_BATCH pointers, so a retired block needs no room for a list entry of its own.
 *
 * ThreadSanitizer does not see ck's inline assembly. The wrapper tells it the one relation that ck provides: the end of each section
 * happens before a reclamation that follows. A read outside a section is therefore still reported against the free.
 *
 *   reader thread                                  writer thread
 *   r = epoch_reader_register(epoch);              old = atomic_exchange(&shared, new);
 *   each loop turn:                                epoch_defer_free(epoch, old);
 *       epoch_begin(r); read...; epoch_end(r);     epoch_poll(epoch);            once a turn
 *   epoch_reader_unregister(r);
 */
#ifndef TIDEGATE_COMMON_EPOCH_H
#define TIDEGATE_COMMON_EPOCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EPOCH_BATCH 124 /* pointers of one batch: with its header one KiB */

struct epoch;        /* written by one thread, the writer */
struct epoch_reader; /* of one thread; memory belongs to the epoch and lives as long as it does */

/* Returned; NULL when memory is short. */
struct epoch *epoch_new(void);
/* Frees all that is deferred, and the readers. Thread: writer, after all readers have ended their sections for good. NULL is fine. */
void epoch_free(struct epoch *epoch);

/* A reader for the calling thread; NULL when memory is short. Records of unregistered readers are used again. Thread: any. */
struct epoch_reader *epoch_reader_register(struct epoch *epoch);
/* Thread: the reader's, outside a section. NULL is fine. */
void epoch_reader_unregister(struct epoch_reader *reader);

/* Enter and leave a section (about 50 ns a pair: once a batch of messages, not once a message). May nest. Thread: the reader's. */
void epoch_begin(struct epoch_reader *reader);
void epoch_end(struct epoch_reader *reader);
/* For assertions in what must run inside a section. Thread: the reader's. */
bool epoch_is_active(const struct epoch_reader *reader);

/* free() this later. `block` is taken, came from malloc, and is unreachable for readers that begin from now on. NULL is fine.
 * When memory for the batch is short, waits for the readers and frees at once (they never wait inside a section). Thread: writer. */
void epoch_defer_free(struct epoch *epoch, void *block);

/* Free what no reader can see any more. Cheap with nothing deferred. Never waits. Returns true while something is still deferred: poll
 * again later. Thread: writer. */
bool epoch_poll(struct epoch *epoch);

/* Blocks deferred and not freed yet, for the gauge. Thread: writer. */
size_t epoch_deferred_count(const struct epoch *epoch);

#endif
