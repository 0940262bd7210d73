/* The sink at work: the threads around the partitions.
 *
 *   ingest      source -> partitions' heads; decides on flushes; gives the position back to the source. The only writer of the heads.
 *   flusher     writes sealed heads as segments and commits the manifests.
 *   compactor   merges segments, one at a time, at low priority.
 *   http        (query_api.h) reads views of partitions.
 *
 * Each partition has two mutexes, `commit` before `state` (partition.h says which call needs which). A record is visible to queries when
 * partition_add_record has returned. The source is told a position only after every partition has committed it, or holds nothing before it.
 *
 * What is full: a head at its bound stops reading until the flusher has caught up; the broker's log is the buffer. A partition that has
 * failed takes no records and pins the position; the others go on; /healthz says so. */
#ifndef TIDEGATE_SINK_SINK_LOOP_H
#define TIDEGATE_SINK_SINK_LOOP_H

#include <pthread.h>

#include "common/metrics.h"
#include "sink/sink_options.h"
#include "sink/source/partition.h"
#include "sink/source/source.h"

struct sink_loop;

/* One partition with its locks. `is_current`: of the partition count in use; others are of former counts and only answer queries. */
struct sink_partition {
    struct partition *part; /* NULL: did not open; see error */
    pthread_mutex_t commit;
    pthread_mutex_t state;
    uint32_t count, index;
    bool is_current;
    mono_ns dirty_since;      /* ingest only; 0: empty */
    mono_ns quarantine_since; /* the same, of the quarantine's memory */
    /* Under sink_loop's mutex: */
    bool is_flush_wanted;
    bool is_retried;     /* the last flush met a full disk, or no memory, and is tried again ... */
    mono_ns retry_at;    /* ... not before */
    enum err err;        /* of the last flush, or why it did not open */
    struct errmsg error; /* the same in words */
};

/* Open all partitions below config->data_directory (made when missing) and prepare; starts no thread.
 * fs, config, metrics: borrowed for its life. Returns 0, or why a partition of the current count is not there. */
must_check enum err sink_loop_new(struct sink_loop **loop_out, struct fs *fs, const struct sink_config *config,
                                  struct metrics_registry *metrics, struct errmsg *msg);
/* Start the threads. */
must_check enum err sink_loop_start(struct sink_loop *loop, struct errmsg *msg);
/* Stop reading, flush everything, commit, end the threads. Returns 0, or the error because of which something was not committed (it is read
 * again at the next start). */
enum err sink_loop_stop(struct sink_loop *loop);
void sink_loop_free(struct sink_loop *loop);

/* All partitions, ordered by the time of their count (the newest last). Constant after start. Thread: any. */
struct sink_partition *sink_loop_partitions(struct sink_loop *loop, size_t *count_out);
/* The receive time (wall) before which every record is in. Thread: any. */
int64_t sink_loop_watermark(const struct sink_loop *loop);
/* Flush what has been read so far, commit, and give the position back. Waits at most timeout_ns; ERR_AGAIN past it. Thread: any but the
 * loop's. */
enum err sink_loop_flush(struct sink_loop *loop, int64_t timeout_ns);

/* An answer left out a damaged chunk: log it, and keep the first for sink_loop_health. text: file, offset and what is wrong. Thread: any.
 */
void sink_loop_note_damage(struct sink_loop *loop, const char *text);

enum sink_health { SINK_OK, SINK_DEGRADED, SINK_FAILED };
/* Append a JSON object that says what is wrong. Thread: any. */
enum sink_health sink_loop_health(struct sink_loop *loop, struct buf *out);

#endif
