/* A copy of an LMDB database that can be stopped.
 *
 * LMDB copies in one long call, which cannot be asked to end. So it copies into a pipe, in a thread of its own, and who reads the pipe may
 * stop reading. */
#ifndef TIDEGATE_BROKER_DURABLE_KV_LMDB_PIPE_H
#define TIDEGATE_BROKER_DURABLE_KV_LMDB_PIPE_H

#include <stdbool.h>

struct MDB_env; /* of lmdb.h */

/* The database without its free pages, into fd from its place on; not synced. It is one read transaction.
 * is_stopped  asked after each megabyte, NULL: never.
 * Returns 0, ECANCELED (stopped), an errno value or a return code of LMDB. Thread: any; it waits for the copy. */
int kv_lmdb_pipe_copy(struct MDB_env *env, int fd, bool (*is_stopped)(void));

#endif
