/* The broker's log directory as a source (direct mode): log_reader under the lock of `cursor.sink`.
 *
 * The sink may be started before the broker: open answers ERR_AGAIN until the directory and its identity are there. The cursor is the
 * broker's to make (before it reuses any segment); one that is still missing SOURCE_LOG_CURSOR_WAIT opens after the identity appeared is
 * made here, at the oldest record. Thread: see source.h. */
#ifndef TIDEGATE_SINK_SOURCE_SOURCE_LOG_H
#define TIDEGATE_SINK_SOURCE_SOURCE_LOG_H

#include "sink/source/source.h"

#define SOURCE_LOG_CURSOR "sink"
#define SOURCE_LOG_CURSOR_WAIT 20

/* dir: the log directory, copied. NULL without memory. */
struct source *source_log_new(struct fs *fs, const char *dir);

#endif
