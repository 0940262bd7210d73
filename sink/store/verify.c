#include "sink/store/verify.h"

#include <stdlib.h>
#include <string.h>

#include "sink/store/manifest.h"
#include "sink/store/segment.h"

#define NAMES_MAX 4096

/* Numbers that are names of entries. */
struct numbers {
    uint32_t values[NAMES_MAX];
    size_t count;
};

static void numbers_on_name(void *context, const char *name)
{
    struct numbers *numbers = context;
    char *end;
    unsigned long value = strtoul(name, &end, 10);
    if (name[0] >= '0' && name[0] <= '9' && *end == 0 && value <= UINT32_MAX && numbers->count < NAMES_MAX)
        numbers->values[numbers->count++] = (uint32_t)value;
}

static void problem(struct verify_report *report, FILE *out, const char *dir, const char *what, const char *detail)
{
    report->problems++;
    fprintf(out, "%s: %s: %s\n", dir, what, detail);
}

static enum err verify_segment(struct verify_report *report, struct fs *fs, const char *dir, const struct manifest_segment *entry,
                               FILE *out)
{
    char name[MANIFEST_SEGMENT_NAME_SIZE];
    struct errmsg msg = {""};
    struct segment *seg;
    struct segment_report found = {0};
    manifest_segment_name(name, entry);
    enum err err = segment_open(&seg, fs, dir, name, &msg);
    if (err == ERR_NOTFOUND)
        return err;
    if (!err) {
        err = segment_verify(seg, &found, &msg);
        if (!err && (segment_get_info(seg)->row_count != entry->row_count || segment_get_info(seg)->point_count != entry->point_count))
            err = err_set(&msg, ERR_CORRUPT, "counts differ from the manifest's");
        segment_close(seg);
    }
    report->segments++;
    report->chunks += found.chunk_count;
    report->rows += found.row_count;
    report->points += found.point_count;
    report->bytes += entry->size;
    if (err)
        problem(report, out, dir, name, msg.text[0] ? msg.text : err_text(err));
    return ERR_OK;
}

/* One look at a partition. ERR_AGAIN when a segment vanished, which a running compaction does. */
static enum err verify_once(struct verify_report *report, struct fs *fs, const char *dir, uint32_t count, uint32_t index, bool is_last,
                            FILE *out)
{
    struct manifest manifest;
    struct manifest_report slots;
    struct errmsg msg = {""};
    enum err err = manifest_load(&manifest, &slots, fs, dir, count, index, &msg);
    if (err) {
        problem(report, out, dir, "manifest", msg.text[0] ? msg.text : err_text(err));
        return ERR_OK;
    }
    report->partitions++;
    if (slots.corrupt_count > 0)
        problem(report, out, dir, "manifest", "one of the two does not hold");
    for (size_t i = 0; i < manifest.segment_count && !err; i++) {
        err = verify_segment(report, fs, dir, &manifest.segments[i], out);
        if (err == ERR_NOTFOUND && is_last) {
            char name[MANIFEST_SEGMENT_NAME_SIZE];
            manifest_segment_name(name, &manifest.segments[i]);
            problem(report, out, dir, name, "missing");
            err = ERR_OK;
        }
    }
    manifest_deinit(&manifest);
    return err == ERR_NOTFOUND ? ERR_AGAIN : err;
}

static void verify_partition(struct verify_report *report, struct fs *fs, const char *dir, uint32_t count, uint32_t index, FILE *out)
{
    for (int attempt = 0; attempt < 3; attempt++) {
        struct verify_report before = *report;
        if (verify_once(report, fs, dir, count, index, attempt == 2, out) != ERR_AGAIN)
            return;
        *report = before;
    }
}

enum err verify_data_directory(struct verify_report *report_out, struct fs *fs, const char *data_directory, FILE *out)
{
    char root[FILE_PATH_MAX], path[FILE_PATH_MAX + 32];
    *report_out = (struct verify_report){0};
    struct numbers *counts = calloc(2, sizeof *counts);
    if (!counts)
        return ERR_NOMEM;
    struct numbers *indexes = counts + 1;
    enum err err = file_path(root, data_directory, "partitions");
    if (!err)
        err = fs_list(fs, root, counts, numbers_on_name);
    for (size_t c = 0; c < counts->count && !err; c++) {
        snprintf(path, sizeof path, "%s/%u", root, counts->values[c]);
        indexes->count = 0;
        err = fs_list(fs, path, indexes, numbers_on_name);
        for (size_t i = 0; i < indexes->count && !err; i++) {
            snprintf(path, sizeof path, "%s/%u/%u", root, counts->values[c], indexes->values[i]);
            verify_partition(report_out, fs, path, counts->values[c], indexes->values[i], out);
        }
    }
    free(counts);
    return err ? err : report_out->problems ? ERR_CORRUPT : ERR_OK;
}
