/* A segment: an immutable file of chunks of one partition, ordered by device and time, with an index and a footer.
 *
 * A flush writes one of level 0 that covers one flush number; a compaction writes one that covers the flush numbers of its inputs. The file
 * is written aside (NAME.tmp), synced, renamed, and the directory synced: a file under its final name is whole. Every part has a CRC-32C
 * (header, each chunk, index, footer), so a damaged byte is found, reported with file and offset, and the intact rest is
 * still served. The byte table is in docs/formats.md.
 *
 * Ownership: a segment or writer belongs to whoever opened it. Reading (segment_find, segment_read_chunk, cursors) uses pread and shared
 * immutable memory only: an open segment may be read by any number of threads; close it when none does. All file work goes through
 * common/file.h and blocks. */
#ifndef TIDEGATE_SINK_STORE_SEGMENT_H
#define TIDEGATE_SINK_STORE_SEGMENT_H

#include "common/err.h"
#include "sink/store/chunk.h"
#include "sink/store/merge.h"

struct fs;
struct segment;
struct segment_writer;

/* How far the stream of one broker had been stored when the segment was written. */
struct segment_source {
    uint64_t broker_id;
    uint32_t epoch;
    uint64_t sequence;
};

#define SEGMENT_SOURCES_MAX 4096

/* What the header says. The ranges of time and the counts are filled in by the writer. */
struct segment_info {
    uint32_t partition_count;
    uint32_t partition_index;
    uint64_t flush_first, flush_last; /* flush numbers, inclusive; the greater wins in a merge */
    uint32_t level;                   /* 0: a flush; n: the highest level of the inputs + 1 */
    int64_t window_ns;                /* start of the time partition that the segment belongs to; free for the owner */
    int64_t time_ns_min, time_ns_max;
    uint64_t row_count, point_count;
    uint64_t chunk_count, device_count;
    uint64_t size; /* of the file in bytes */
    size_t source_count;
    const struct segment_source *sources; /* borrowed: by segment_writer_open from the caller, afterwards from the segment */
};

/* Begin a segment at directory/name. info: borrowed until return.
 * Returns 0, ERR_IO, ERR_NOSPACE, ERR_NOMEM, ERR_INVALID, ERR_TOOLARGE, ERR_EXISTS (there is a file `name` already). */
must_check enum err segment_writer_open(struct segment_writer **writer_out, struct fs *fs, const char *directory, const char *name,
                                        const struct segment_info *info, enum column_effort effort, struct errmsg *msg);

/* Append rows of a device as one chunk (1..CHUNK_ROWS_MAX rows). Devices must come in order of their id, and the rows of a device in order
 * of time. Returns 0, ERR_INVALID (order), ERR_IO, ERR_NOSPACE, ERR_NOMEM; after an error only segment_writer_abort is allowed. */
must_check enum err segment_writer_add(struct segment_writer *writer, struct span device, const struct rows *rows, struct errmsg *msg);

/* Append all that `merge` yields for `device`. */
must_check enum err segment_writer_add_merge(struct segment_writer *writer, struct span device, struct merge *merge, struct errmsg *msg);

/* Write index and footer, sync, rename, sync the directory, and free the writer (also on error: the .tmp is then removed).
 * info_out: may be NULL; its sources are not filled in. A segment without chunks is allowed. */
must_check enum err segment_writer_finish(struct segment_writer *writer, struct segment_info *info_out, struct errmsg *msg);

/* Give up: remove the .tmp and free. NULL is allowed. */
void segment_writer_abort(struct segment_writer *writer);

/* Open a segment: reads and checks header, footer and index.
 * Returns 0, ERR_NOTFOUND, ERR_IO, ERR_CORRUPT (msg: file and offset), ERR_VERSION, ERR_NOMEM. */
must_check enum err segment_open(struct segment **segment_out, struct fs *fs, const char *directory, const char *name, struct errmsg *msg);
void segment_close(struct segment *seg);

const struct segment_info *segment_get_info(const struct segment *seg);
const char *segment_path(const struct segment *seg);

/* A chunk's entry in the index. */
struct segment_chunk {
    uint64_t offset;
    uint32_t size;
    uint32_t row_count;
    int64_t time_ns_min, time_ns_max;
    uint32_t device_index;
    uint32_t column_count;
    uint64_t index_at; /* where its columns stand in the index: segment_chunk_stats */
};

/* Devices, 0..device_count-1 in order of their id. */
struct span segment_device(const struct segment *seg, size_t device_index);
/* Index of a device, or -1. */
ptrdiff_t segment_find_device(const struct segment *seg, struct span device);

/* The chunks of `device` that overlap [from_ns, to_ns]: first_out points at *count_out consecutive entries, borrowed from the segment.
 * Chunks of one device do not overlap and are ordered by time. count 0 when there are none. */
void segment_find(const struct segment *seg, const struct segment_chunk **first_out, size_t *count_out, struct span device, int64_t from_ns,
                  int64_t to_ns);

/* Statistics of metric `name` in a chunk, from the index alone. Returns false when the chunk does not have it. */
bool segment_chunk_stats(const struct segment *seg, const struct segment_chunk *chunk, struct span name, struct chunk_stats *stats_out);

/* Call `on_column` for each column of a chunk, ordered by name; name and stats are borrowed during the call. */
void segment_chunk_columns(const struct segment *seg, const struct segment_chunk *chunk, void *context,
                           void (*on_column)(void *context, struct span name, const struct chunk_stats *stats));

/* Read and open one chunk. buffer_out: malloc'd bytes that the view borrows; the caller frees them after chunk_close.
 * Returns 0, ERR_IO, ERR_CORRUPT (msg: file and offset), ERR_VERSION, ERR_NOMEM. */
must_check enum err segment_read_chunk(const struct segment *seg, struct chunk_view *view_out, uint8_t **buffer_out,
                                       const struct segment_chunk *chunk, struct errmsg *msg);

/* Rows of one device from a segment as a source of merge, rank = flush_last. */
struct segment_cursor {
    struct merge_source source;
    const struct segment *seg;
    const struct segment_chunk *chunk;
    size_t chunk_count;
    int64_t from_ns, to_ns;
    const struct span *names; /* ordered; only these columns are decoded; NULL: all */
    size_t name_count;
    bool skip_corrupt;      /* serve the intact rest: count and go on */
    uint64_t corrupt_count; /* chunks skipped */
    struct errmsg msg;      /* of the last error or the last chunk skipped */
    struct segment_cursor_state *state;
};

/* names: borrowed while the cursor lives. With names, rows without any of them are still yielded (their columns are absent). */
void segment_cursor_init(struct segment_cursor *cursor, const struct segment *seg, struct span device, int64_t from_ns, int64_t to_ns,
                         const struct span *names, size_t name_count, bool skip_corrupt);

/* Begin again with another device, keeping the working memory: for whoever walks over many devices. */
void segment_cursor_rewind(struct segment_cursor *cursor, struct span device);

/* Free the working memory; merge_free does it through source.close. */
void segment_cursor_deinit(struct segment_cursor *cursor);

/* What segment_verify found. */
struct segment_report {
    uint64_t chunk_count; /* chunks looked at */
    uint64_t row_count, point_count;
    uint64_t corrupt_count; /* chunks that do not hold */
    uint64_t first_corrupt_offset;
};

/* Read everything, decode every column, and compare it with the index.
 * Returns 0 (all holds), ERR_CORRUPT (report and msg say what), ERR_IO, ERR_NOMEM. report_out may be NULL. */
must_check enum err segment_verify(const struct segment *seg, struct segment_report *report_out, struct errmsg *msg);

#endif
