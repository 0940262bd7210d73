/* The manifest of a partition: which segments are its data, and up to which position of the source they reach, in one atomic step.
 *
 * Two files, manifest.0 and manifest.1, hold the same content after each commit; a commit writes one after the other (aside, synced,
 * renamed, directory synced), so at every instant at least one is whole, and after a commit either alone is enough. A reader takes the
 * valid one with the greater generation. The fence number counts the openings of the partition; whoever finds a greater one than its own
 * has lost the partition and commits nothing more (LOG 31). The byte table is in docs/formats.md under "Sink store".
 *
 * manifest_store and manifest_load do file work through common/file.h and block; the rest is pure. Owner: the partition; committing is one
 * thread at a time. */
#ifndef TIDEGATE_SINK_STORE_MANIFEST_H
#define TIDEGATE_SINK_STORE_MANIFEST_H

#include "common/buf.h"
#include "common/file.h"
#include "common/log_cursor.h"

#define MANIFEST_MARKS_MAX 4096 /* broker ids; each is a data directory that once fed this partition */
#define MANIFEST_SEGMENTS_MAX (1U << 20)
#define MANIFEST_SIZE_MAX ((size_t)128 << 20)
#define MANIFEST_SEGMENT_NAME_SIZE 48

/* The highest record of one broker that is in the partition (LOG 28). */
struct manifest_mark {
    uint64_t broker_id;
    struct log_position position;
};

struct manifest_segment {
    uint64_t flush_first, flush_last;
    uint32_t level;
    int64_t window_ns;
    int64_t time_ns_min, time_ns_max;
    uint64_t size; /* bytes of the file */
    uint64_t row_count, point_count;
};

struct manifest {
    uint64_t generation; /* counts commits */
    uint64_t fence;      /* counts openings */
    uint32_t partition_count;
    uint32_t partition_index;
    uint64_t flush_next;              /* number of the next flush; greater than every segment's */
    uint64_t arrival_next;            /* number of the next record that comes in */
    struct log_cursor_value position; /* the next record wanted; place.generation 0: from the oldest */
    struct log_cursor_value began;    /* where this partition count began (LOG 30) */
    struct manifest_mark *marks;      /* owned */
    size_t mark_count;
    struct manifest_segment *segments; /* owned; ordered by flush_first */
    size_t segment_count;
};

/* What manifest_load saw beside the manifest. */
struct manifest_report {
    bool is_new;            /* there was none */
    unsigned corrupt_count; /* slots that do not hold; the other was used */
};

/* Zero, no marks, no segments. */
void manifest_init(struct manifest *manifest, uint32_t partition_count, uint32_t partition_index);
void manifest_deinit(struct manifest *manifest);

/* Deep copy into an uninitialised `out`. Returns 0 or ERR_NOMEM. */
must_check enum err manifest_copy(struct manifest *out, const struct manifest *manifest);

/* The file name of a segment: its flush numbers and level in hexadecimal. */
void manifest_segment_name(char name_out[MANIFEST_SEGMENT_NAME_SIZE], const struct manifest_segment *segment);

/* Put `segment` in its place by flush_first. Returns 0 or ERR_NOMEM. */
must_check enum err manifest_add_segment(struct manifest *manifest, const struct manifest_segment *segment);
/* Remove the segment with this range and level; false when it is not there. */
bool manifest_remove_segment(struct manifest *manifest, const struct manifest_segment *segment);

/* The mark of a broker, NULL when none of its records came. */
struct manifest_mark *manifest_find_mark(const struct manifest *manifest, uint64_t broker_id);
/* Raise it; ERR_FULL past MANIFEST_MARKS_MAX, ERR_NOMEM. */
must_check enum err manifest_raise_mark(struct manifest *manifest, uint64_t broker_id, struct log_position position);

/* Append the encoded form. Failures stay in out->err. */
void manifest_encode(struct buf *out, const struct manifest *manifest);
/* Decode into an uninitialised `out`. Returns 0, ERR_CORRUPT, ERR_VERSION, ERR_NOMEM; nothing to deinit on error. */
must_check enum err manifest_decode(struct manifest *out, struct span bytes);

/* Read the valid one with the greater generation into an uninitialised `out`; a new one when there is none.
 * Returns 0; ERR_CORRUPT when there are files but none is valid, or when they are another partition's; ERR_VERSION, ERR_IO, ERR_NOMEM. */
must_check enum err manifest_load(struct manifest *out, struct manifest_report *report_out, struct fs *fs, const char *dir,
                                  uint32_t partition_count, uint32_t partition_index, struct errmsg *msg);

/* Write both files; `manifest->generation` must be greater than any written. Durable on return of 0.
 * Returns ERR_LOCKED when a file with a greater fence is there (somebody else owns the partition); ERR_NOSPACE and ERR_NOMEM leave the
 * manifest of before or this one, and may be tried again with a greater generation; ERR_IO is final. */
must_check enum err manifest_store(const struct manifest *manifest, struct fs *fs, const char *dir, struct errmsg *msg);

#endif
