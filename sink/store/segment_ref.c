#include "sink/store/segment_ref.h"

#include <stdlib.h>

#include "common/check.h"

enum err segment_ref_open(struct segment_ref **ref_out, struct fs *fs, const char *dir, const struct manifest_segment *entry,
                          struct errmsg *msg)
{
    char name[MANIFEST_SEGMENT_NAME_SIZE], path[FILE_PATH_MAX];
    struct segment *seg;
    manifest_segment_name(name, entry);
    enum err err = file_path(path, dir, name);
    if (!err)
        err = segment_open(&seg, fs, dir, name, msg);
    if (err)
        return err;
    size_t path_size = strlen(path) + 1;
    struct segment_ref *ref = malloc(sizeof *ref + path_size);
    if (!ref) {
        segment_close(seg);
        return ERR_NOMEM;
    }
    *ref = (struct segment_ref){.seg = seg, .entry = *entry, .fs = fs, .ref_count = 1};
    memcpy(ref->path, path, path_size);
    *ref_out = ref;
    return ERR_OK;
}

struct segment_ref *segment_ref_ref(struct segment_ref *ref)
{
    unsigned before = __atomic_fetch_add(&ref->ref_count, 1, __ATOMIC_RELAXED);
    CHECK(before > 0);
    return ref;
}

void segment_ref_unref(struct segment_ref *ref)
{
    if (!ref)
        return;
    /* Release: what this holder did with the segment is done before whoever drops the last reference closes it; acquire: that one sees it.
     */
    unsigned before = __atomic_fetch_sub(&ref->ref_count, 1, __ATOMIC_ACQ_REL);
    CHECK(before > 0);
    if (before > 1)
        return;
    segment_close(ref->seg);
    if (__atomic_load_n(&ref->is_doomed, __ATOMIC_RELAXED)) {
        enum err err = fs_unlink(ref->fs, ref->path);
        (void)err; /* what stays is in no manifest and goes at the next start */
    }
    free(ref);
}

void segment_ref_doom(struct segment_ref *ref) { __atomic_store_n(&ref->is_doomed, true, __ATOMIC_RELAXED); }
