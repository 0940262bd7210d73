/* The store thread: it gets the log's next segment ready, so that the log thread never fills zeros.
 *
 * Preparing writes up to 1 MiB to the disk at a time; an answer to a session waits for at most that. Stops when asked and its rings are
 * empty. */
#ifndef TIDEGATE_BROKER_DURABLE_STORE_THREAD_H
#define TIDEGATE_BROKER_DURABLE_STORE_THREAD_H

#include "broker/net/exchange.h"
#include "common/log_writer.h"

struct store_thread;

/* Cells: the store thread. */
struct store_thread_stats {
    struct counter prepare_steps, prepare_errors;
    struct gauge prepare_error; /* enum err of the last step that failed, 0 when it went well */
};

/* writer may be NULL: no persistence. Borrowed for life. Returns 0 or ERR_NOMEM. Thread: main. */
enum err store_thread_start(struct store_thread **thread_out, struct exchange *exchange, struct log_writer *writer) must_check;
/* After all shards have stopped. NULL is fine. */
void store_thread_stop(struct store_thread *thread);
const struct store_thread_stats *store_thread_get_stats(const struct store_thread *thread);

#endif
