/* A segment that several hold: the partition that lists it, queries that read it, a compaction that merges it.
 *
 * It is closed when the last reference goes, and its file removed then if it was doomed (a compaction took its place). Unlinking is not
 * made durable here: a name that comes back after a crash is in no manifest and is removed at the next start. Thread: any; the count is
 * atomic. */
#ifndef TIDEGATE_SINK_STORE_SEGMENT_REF_H
#define TIDEGATE_SINK_STORE_SEGMENT_REF_H

#include "common/file.h"
#include "sink/store/manifest.h"
#include "sink/store/segment.h"

struct segment_ref {
    struct segment *seg;
    struct manifest_segment entry;
    struct fs *fs;
    unsigned ref_count;
    bool is_doomed;
    char path[];
};

/* Open `entry`'s file in `dir` with one reference. Same errors as segment_open. */
must_check enum err segment_ref_open(struct segment_ref **ref_out, struct fs *fs, const char *dir, const struct manifest_segment *entry,
                                     struct errmsg *msg);
struct segment_ref *segment_ref_ref(struct segment_ref *ref);
/* NULL is allowed. */
void segment_ref_unref(struct segment_ref *ref);
/* Remove the file with the last reference. */
void segment_ref_doom(struct segment_ref *ref);

#endif
