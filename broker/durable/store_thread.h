/* The thread that keeps the checkpoint behind the log (store_writer.h). Between its steps it gets the log's next segment ready, so that the
 * log thread never fills zeros.
 *
 * A step reads and applies at most a few MiB of log, preparing writes up to 1 MiB; an op waits for those and for a commit. Stops when asked
 * and its rings are empty, after bringing the checkpoint to the durable end: the log thread has stopped before. */
#ifndef TIDEGATE_BROKER_DURABLE_STORE_THREAD_H
#define TIDEGATE_BROKER_DURABLE_STORE_THREAD_H

#include "broker/actor/exchange.h"
#include "broker/durable/store_writer.h"
#include "common/log_writer.h"

struct store_thread;

struct store_thread_config {
    struct checkpoint *checkpoint; /* borrowed for life; replayed and loaded */
    struct store_writer_options options;
    void (*on_failed)(void *arg); /* called once, on the store thread: the checkpoint has failed for good */
    void *on_failed_arg;
};

/* Cells: the store thread. */
struct store_thread_stats {
    struct counter prepare_steps, prepare_errors;
    struct gauge prepare_error; /* enum err of the last step that failed, 0 when it went well */
};

/* writer may be NULL: no persistence; otherwise borrowed for life. config may be NULL: no checkpoint. Returns 0 or ERR_NOMEM. Thread: main.
 */
enum err store_thread_start(struct store_thread **thread_out, struct exchange *exchange, struct log_writer *writer,
                            const struct store_thread_config *config) must_check;
/* After all shards and the log thread have stopped. NULL is fine. */
void store_thread_stop(struct store_thread *thread);
const struct store_thread_stats *store_thread_get_stats(const struct store_thread *thread);
/* NULL without a checkpoint. */
struct store_writer_stats *store_thread_writer_stats(struct store_thread *thread);

#endif
