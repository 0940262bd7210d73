/* The thread of the store reader: answers what homes and the route actor ask of the checkpoint, one read transaction a request.
 *
 * Apart from the store thread, so that nobody waits for a commit. A damaged value is logged with its tree and key. Stops when asked and its
 * rings are empty. */
#ifndef TIDEGATE_BROKER_DURABLE_READER_THREAD_H
#define TIDEGATE_BROKER_DURABLE_READER_THREAD_H

#include "broker/actor/exchange.h"
#include "broker/durable/store_reader.h"

struct reader_thread;

/* kv borrowed for life. Returns 0 or ERR_NOMEM. Thread: main. */
enum err reader_thread_start(struct reader_thread **thread_out, struct exchange *exchange, struct kv *kv) must_check;
/* After all shards and the route thread have stopped. NULL is fine. */
void reader_thread_stop(struct reader_thread *thread);
/* Cells: the reader thread. */
struct store_reader_stats *reader_thread_get_stats(struct reader_thread *thread);

#endif
