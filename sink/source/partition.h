/* A partition: one directory with its own head, segments, dedup marks, manifest and lock; the unit in which data and position are committed
 * together.
 *
 *     records ─▶ partition_add_record ─▶ head ─seal▶ sealed head ─flush_write▶ segment ─flush_commit▶ manifest ─flush_publish▶ segments
 *
 * Invariants: the manifest's position is never ahead of the data in the manifest's segments; a record at or below its broker's mark changes
 * nothing; a query sees each row from the moment partition_add_record returns, at every step of a flush and of a compaction.
 *
 * There is no thread, clock or system call in here (files go through common/file.h, time is an argument), so the simulator drives the same
 * code in one thread. Who uses several threads keeps to two locks of its own per partition: state    partition_add_record, partition_seal,
 * *_publish, partition_view_take, and the questions marked [state] commit   partition_flush_write, *_commit, partition_compact_begin,
 * *_publish (with `state` inside): one at a time partition_compact_write needs neither. The order is commit before state.
 *
 * Flush, in steps that the caller may put between other work and threads:
 *     if (partition_seal(part, &read_cursor))            [state]
 *         partition_flush_write(part, &msg);              [commit]   the segment, and the quarantine
 *         partition_flush_commit(part, &msg);             [commit]   the manifest: segments and position in one step
 *         partition_flush_publish(part);                  [commit + state]
 * or all of it with partition_flush() in one thread. After ERR_NOSPACE or ERR_NOMEM the same step may be tried again; any other error is
 * final: the partition takes no more records and its position stands, until a restart replays from there.
 *
 * Directory: lock, manifest.0, manifest.1, FIRST-LAST-LEVEL.seg, quarantine/. */
#ifndef TIDEGATE_SINK_SOURCE_PARTITION_H
#define TIDEGATE_SINK_SOURCE_PARTITION_H

#include "common/metrics.h"
#include "common/record.h"
#include "sink/decode/payload.h"
#include "sink/source/partition_view.h"
#include "sink/source/quarantine.h"
#include "sink/store/compactor.h"
#include "sink/store/head.h"
#include "sink/store/manifest.h"
#include "sink/store/segment_ref.h"
#include "sink/store/series.h"

struct partition;

struct partition_options {
    struct fs *fs;
    const char *directory; /* made when missing (its parent exists) */
    uint32_t partition_count;
    uint32_t partition_index;
    size_t head_size_max;         /* bytes of memory, sealed head included */
    uint64_t quarantine_size_max; /* bytes of files */
    uint64_t hash_seed;
    uint64_t flush_floor;            /* flush numbers begin at least here (LOG 30: the newest partition count wins) */
    struct series *series;           /* borrowed, shared with the other partitions of the thread */
    struct payload_decoder *decoder; /* the same */
};

/* What happened since opening. Cells: one writer (add: the thread that adds; flush and compaction: the one that commits). */
struct partition_stats {
    struct counter records;    /* telemetry records taken, the duplicates not counted */
    struct counter duplicates; /* dropped by the mark */
    struct counter rows;
    struct counter points;
    struct counter rows_without_time;         /* of these, rows that got the receive time */
    struct counter quarantined[REJECT_COUNT]; /* rows or whole payloads, by reason; refused metrics count one each */
    struct counter quarantine_not_kept;
    struct counter ignored_strings, ignored_nulls, ignored_arrays, ignored_unreadable, ignored_names, overwritten_names;
    struct counter flushes;
    struct counter flushed_bytes;
    struct counter flushed_points;
    struct counter compactions;
    struct counter compacted_bytes;
    struct counter compacted_points;
    struct counter corrupt_segments; /* that could not be opened at start */
    struct counter corrupt_slots;    /* manifests that did not hold at start */
    struct counter orphans_removed;
};

/* Open: lock, load the manifest, count the fence up and commit it, remove what the manifest does not name, open the segments, tell the
 * guard their series. Returns 0; ERR_LOCKED (another process has it), ERR_CORRUPT (no whole manifest), ERR_VERSION, ERR_NOSPACE,
 * ERR_PERMISSION, ERR_NOMEM, ERR_IO. A segment that does not open is reported in the log, counted and left out; the rest is served. */
must_check enum err partition_open(struct partition **partition_out, const struct partition_options *options, struct errmsg *msg);
/* Close without flushing; what is in the head is read again from the source. NULL is allowed. No view or compaction may be alive. */
void partition_close(struct partition *part);

const char *partition_directory(const struct partition *part);
/* The number that the next flush will have. [state] */
uint64_t partition_flush_next(const struct partition *part);
const struct partition_stats *partition_get_stats(const struct partition *part);
/* Numbers that a scraper reads from any thread, refreshed by the writer. */
struct partition_gauges {
    struct gauge head_bytes, head_rows; /* sealed included */
    struct gauge segments, segment_bytes, segment_points;
};
const struct partition_gauges *partition_get_gauges(const struct partition *part);
void partition_refresh_gauges(struct partition *part); /* [state]; after a batch of records */

/* The position that is safe to give back to the source: the committed one, or `read` (the next record wanted) when nothing is uncommitted
 * here, because an empty partition must not hold the log (LOG 25). [state] */
struct log_cursor_value partition_position(const struct partition *part, const struct log_cursor_value *read);
/* The committed one alone: where replay begins. position.sequence 0: none yet. */
struct log_cursor_value partition_committed(const struct partition *part);
/* The later of two values; `b` when they are of different brokers' logs. A sequence of 0 is before everything. */
struct log_cursor_value partition_later(const struct log_cursor_value *a, const struct log_cursor_value *b);

/* Whether records may be added: false after an error that is final. Thread: any. */
bool partition_is_failed(const struct partition *part);

/* Take one telemetry record of this partition.
 * rec, id   borrowed; `id` is broker id and position of the record.
 * now_ns    wall time, for the guard's rate.
 * Returns 0 (stored, quarantined, or dropped as a duplicate); ERR_FULL (head at its bound: flush, then call again with the same record);
 * ERR_CLOSED (the partition has failed); ERR_NOMEM (as ERR_FULL). [state] */
struct partition_record_id {
    uint64_t broker_id;
    struct log_position position;
};
must_check enum err partition_add_record(struct partition *part, const struct record *rec, struct partition_record_id id, int64_t now_ns);

/* Begin a flush: head and quarantine so far, with `read` as the position they reach. False when there is nothing to flush or the last
 * flush is not published. [state] */
bool partition_seal(struct partition *part, const struct log_cursor_value *read);
bool partition_is_flushing(const struct partition *part); /* [state] */
bool partition_is_empty(const struct partition *part);    /* nothing uncommitted. [state] */
/* Bytes of the head that is being filled, and when its oldest row came in (wall receive time; INT64_MAX when empty). [state] */
size_t partition_head_bytes(const struct partition *part);
int64_t partition_oldest_ns(const struct partition *part);

must_check enum err partition_flush_write(struct partition *part, struct errmsg *msg);
must_check enum err partition_flush_commit(struct partition *part, struct errmsg *msg);
void partition_flush_publish(struct partition *part);

/* All steps at once, for one thread. Returns 0 also when there was nothing to do. */
must_check enum err partition_flush(struct partition *part, const struct log_cursor_value *read, struct errmsg *msg);

/* Quarantined entries between flushes: when many have gathered, quarantine_take() them [state], write them [commit], quarantine_done()
 * [state]. The write's errors are those of a flush: after ERR_NOSPACE and ERR_NOMEM it may be tried again, any other is the end of the
 * partition. */
struct quarantine *partition_quarantine(struct partition *part);
must_check enum err partition_quarantine_write(struct partition *part, struct errmsg *msg);

/* A compaction under way: its inputs are held. */
struct partition_compaction;

/* Decide on the next merge. Returns NULL when there is none. [commit + state] */
struct partition_compaction *partition_compact_begin(struct partition *part, const struct compactor_options *options);
/* Merge into a new file. Blocks long. Returns 0, ERR_CORRUPT (an input is damaged: nothing is lost, the inputs stay), ERR_NOSPACE, ERR_IO.
 */
must_check enum err partition_compact_write(struct partition_compaction *compaction, struct errmsg *msg);
/* Swap in the manifest. After an error abort it. [commit, held until it is published] */
must_check enum err partition_compact_commit(struct partition_compaction *compaction, struct errmsg *msg);
/* Make it visible, let the inputs go (their files vanish when their last reader is done), free. [commit + state] */
void partition_compact_publish(struct partition_compaction *compaction);
/* Give up instead; removes the file. [state] */
void partition_compact_abort(struct partition_compaction *compaction);

/* A view of one device (partition_view.h). NULL without memory. [state]; the result is the caller's and needs no lock. */
struct partition_view *partition_view_take(const struct partition *part, struct span device, int64_t from_ns, int64_t to_ns);

/* Call `on_device` for each device of the heads, in no order, twice when it is in the sealed one too; name borrowed during the call.
 * [state] */
must_check enum err partition_head_devices(const struct partition *part, void *context,
                                           enum err (*on_device)(void *context, struct span device, int64_t newest_ns));

/* Reference every segment, for work without the lock; the caller unrefs each and frees the array. NULL without memory. [state] */
struct segment_ref **partition_hold_segments(const struct partition *part, size_t *count_out);

#endif
