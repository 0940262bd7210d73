#include "sink/source/partition.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/check.h"
#include "common/logger.h"

/* Metrics of one row handed to the head; payload rows are bounded by JSON_FIELDS_MAX, so this only grows. */
struct metric_scratch {
    struct head_metric *metrics;
    size_t capacity;
};

enum flush_step { FLUSH_SEALED, FLUSH_WRITTEN, FLUSH_COMMITTED };

struct flush {
    bool is_under_way;    /* [state] */
    enum flush_step step; /* [commit], while under way */
    struct head *sealed;  /* NULL: only the position and the quarantine */
    uint64_t number;
    uint64_t arrival_next;
    struct log_cursor_value position;
    struct manifest marks;       /* only its marks */
    struct manifest next;        /* what is being committed */
    struct segment_ref *segment; /* the new one, NULL when there were no rows */
};

struct partition {
    struct fs *fs;
    char directory[FILE_PATH_MAX];
    struct file *lock;
    struct series *series;
    struct payload_decoder *decoder;
    struct manifest committed;
    struct segment_ref **refs; /* of committed.segments, the same index; NULL: could not be opened */
    struct manifest live;      /* only marks and arrival_next: what is in the head already */
    struct head *head;
    int64_t oldest_ns; /* receive time of the oldest record in the head; INT64_MAX: none */
    struct flush flush;
    struct quarantine quarantine;
    struct metric_scratch scratch;
    struct partition_record_id resume_id; /* a record that met a full head goes on at this row */
    size_t resume_row;
    unsigned compaction_count;         /* under way */
    struct manifest_segment undecided; /* output of a compaction whose commit failed: one of the manifests may name it, so its file stays
                                          and no other begins until both are written again [commit + state] */
    bool has_undecided;
    uint64_t generation; /* of the last attempt to store a manifest */
    bool is_failed;
    struct partition_stats stats;
    struct partition_gauges gauges;
};

struct partition_compaction {
    struct partition *part;
    struct segment_ref **inputs;
    size_t input_count;
    struct manifest_segment output;
    struct manifest next;
    struct segment_ref *segment;
    bool is_written;
    bool is_commit_tried;
};

/* ---- opening ---- */

static enum err directory_make(struct partition *part, struct errmsg *msg)
{
    enum err err = fs_mkdir(part->fs, part->directory);
    if (err && err != ERR_EXISTS)
        return err_set(msg, err, "%s: %s", part->directory, err_text(err));
    char parent[FILE_PATH_MAX];
    snprintf(parent, sizeof parent, "%s", part->directory);
    char *slash = strrchr(parent, '/');
    if (slash && slash != parent)
        *slash = 0;
    else
        snprintf(parent, sizeof parent, slash ? "/" : ".");
    err = fs_sync_dir(part->fs, parent);
    return err ? err_set(msg, err, "%s: %s", parent, err_text(err)) : ERR_OK;
}

static enum err lock_take(struct partition *part, struct errmsg *msg)
{
    char path[FILE_PATH_MAX];
    enum err err = file_path(path, part->directory, "lock");
    if (!err)
        err = fs_open(part->fs, &part->lock, path, FILE_READ | FILE_WRITE | FILE_CREATE);
    if (!err)
        err = file_lock(part->lock);
    return err ? err_set(msg, err, "%s: %s", path, err_text(err)) : ERR_OK;
}

/* Names to remove, gathered while listing, because the listing must not change the directory. */
struct orphans {
    const struct manifest *manifest;
    char (*names)[MANIFEST_SEGMENT_NAME_SIZE + 8];
    size_t count;
    bool no_memory;
};

static bool ends_with(const char *name, const char *end)
{
    size_t size = strlen(name), end_size = strlen(end);
    return size >= end_size && strcmp(name + size - end_size, end) == 0;
}

static void orphans_on_name(void *context, const char *name)
{
    struct orphans *orphans = context;
    bool is_segment = ends_with(name, ".seg");
    if (!is_segment && !ends_with(name, ".tmp"))
        return;
    for (size_t i = 0; is_segment && i < orphans->manifest->segment_count; i++) {
        char known[MANIFEST_SEGMENT_NAME_SIZE];
        manifest_segment_name(known, &orphans->manifest->segments[i]);
        if (strcmp(known, name) == 0)
            return;
    }
    if (strlen(name) >= sizeof orphans->names[0])
        return; /* none of ours */
    void *names = realloc(orphans->names, (orphans->count + 1) * sizeof orphans->names[0]);
    if (!names) {
        orphans->no_memory = true;
        return;
    }
    orphans->names = names;
    strcpy(orphans->names[orphans->count++], name);
}

static void segments_on_name(void *context, const char *name)
{
    size_t *count = context;
    *count += ends_with(name, ".seg");
}

/* A manifest is committed before the first segment is written: segments without one mean that it was removed, and must not go as orphans.
 */
static enum err segments_check_none(struct partition *part, struct errmsg *msg)
{
    size_t count = 0;
    enum err err = fs_list(part->fs, part->directory, &count, segments_on_name);
    if (!err && count > 0)
        return err_set(msg, ERR_CORRUPT, "%s: %zu segments, but neither manifest.0 nor manifest.1", part->directory, count);
    return err ? err_set(msg, err, "%s: %s", part->directory, err_text(err)) : ERR_OK;
}

/* What a crash left behind: files aside, segments whose commit never came, inputs of compactions. They must go before their names are used
 * again. */
static enum err orphans_remove(struct partition *part, struct errmsg *msg)
{
    struct orphans orphans = {.manifest = &part->committed};
    enum err err = fs_list(part->fs, part->directory, &orphans, orphans_on_name);
    if (!err && orphans.no_memory)
        err = ERR_NOMEM;
    for (size_t i = 0; i < orphans.count && !err; i++) {
        char path[FILE_PATH_MAX];
        err = file_path(path, part->directory, orphans.names[i]);
        if (!err)
            err = fs_unlink(part->fs, path);
        LOG_NOTICE("removed a file that is in no manifest", LOG_TEXT("file", path));
        counter_inc(&part->stats.orphans_removed);
    }
    if (!err && orphans.count > 0)
        err = fs_sync_dir(part->fs, part->directory);
    free(orphans.names);
    return err ? err_set(msg, err, "%s: %s", part->directory, err_text(err)) : ERR_OK;
}

/* Tells the guard the columns of a device's chunk. */
struct series_call {
    struct series *series;
    struct span device;
    enum err err;
};

static void series_call_on_column(void *context, struct span name, const struct chunk_stats *stats)
{
    struct series_call *call = context;
    (void)stats;
    if (!call->err)
        call->err = series_note(call->series, call->device, name);
}

/* Tell the guard which series are stored. */
static enum err segment_note_series(struct series *series, const struct segment *seg)
{
    const struct segment_info *info = segment_get_info(seg);
    struct series_call call = {.series = series};
    for (size_t d = 0; d < info->device_count && !call.err; d++) {
        const struct segment_chunk *chunk;
        size_t count;
        call.device = segment_device(seg, d);
        segment_find(seg, &chunk, &count, call.device, INT64_MIN, INT64_MAX);
        for (size_t c = 0; c < count && !call.err; c++)
            segment_chunk_columns(seg, &chunk[c], &call, series_call_on_column);
    }
    return call.err;
}

static enum err segments_open(struct partition *part, struct errmsg *msg)
{
    part->refs = calloc(part->committed.segment_count + 1, sizeof(struct segment_ref *));
    if (!part->refs)
        return ERR_NOMEM;
    for (size_t i = 0; i < part->committed.segment_count; i++) {
        struct errmsg why = {""};
        enum err err = segment_ref_open(&part->refs[i], part->fs, part->directory, &part->committed.segments[i], &why);
        if (!err)
            err = segment_note_series(part->series, part->refs[i]->seg);
        if (err == ERR_NOMEM)
            return err_set(msg, err, "%s: %s", part->directory, err_text(err));
        if (err) {
            char name[MANIFEST_SEGMENT_NAME_SIZE];
            manifest_segment_name(name, &part->committed.segments[i]);
            counter_inc(&part->stats.corrupt_segments);
            LOG_ERROR("segment left out", LOG_TEXT("directory", part->directory), LOG_TEXT("file", name), LOG_ERR("error", err),
                      LOG_TEXT("detail", why.text));
        }
    }
    return ERR_OK;
}

/* Take a new generation for an attempt to store, so that a second attempt is told from the first. */
static enum err store(struct partition *part, struct manifest *manifest, struct errmsg *msg)
{
    manifest->generation = ++part->generation;
    return manifest_store(manifest, part->fs, part->directory, msg);
}

static enum err manifest_begin(struct partition *part, const struct partition_options *options, struct errmsg *msg)
{
    struct manifest_report report;
    enum err err =
        manifest_load(&part->committed, &report, part->fs, part->directory, options->partition_count, options->partition_index, msg);
    if (!err && report.is_new)
        err = segments_check_none(part, msg);
    if (err)
        return err;
    if (report.corrupt_count > 0) {
        counter_add(&part->stats.corrupt_slots, report.corrupt_count);
        LOG_ERROR("a manifest does not hold, the other one is used", LOG_TEXT("directory", part->directory));
    }
    part->generation = part->committed.generation;
    part->committed.fence++;
    if (part->committed.flush_next < options->flush_floor)
        part->committed.flush_next = options->flush_floor;
    part->live.arrival_next = part->committed.arrival_next;
    for (size_t i = 0; i < part->committed.mark_count; i++) {
        err = manifest_raise_mark(&part->live, part->committed.marks[i].broker_id, part->committed.marks[i].position);
        if (err)
            return err_set(msg, err, "%s: %s", part->directory, err_text(err));
    }
    return store(part, &part->committed, msg);
}

void partition_refresh_gauges(struct partition *part)
{
    struct head_stats stats;
    head_get_stats(part->head, &stats);
    size_t rows = stats.row_count;
    if (part->flush.sealed) {
        head_get_stats(part->flush.sealed, &stats);
        rows += stats.row_count;
    }
    gauge_set(&part->gauges.head_bytes, (int64_t)head_bytes(part->head));
    gauge_set(&part->gauges.head_rows, (int64_t)rows);
}

static void segment_gauges_refresh(struct partition *part)
{
    uint64_t size = 0, points = 0;
    for (size_t i = 0; i < part->committed.segment_count; i++) {
        size += part->committed.segments[i].size;
        points += part->committed.segments[i].point_count;
    }
    gauge_set(&part->gauges.segments, (int64_t)part->committed.segment_count);
    gauge_set(&part->gauges.segment_bytes, (int64_t)size);
    gauge_set(&part->gauges.segment_points, (int64_t)points);
}

enum err partition_open(struct partition **partition_out, const struct partition_options *options, struct errmsg *msg)
{
    struct partition *part = calloc(1, sizeof *part);
    if (!part || strlen(options->directory) >= sizeof part->directory) {
        free(part);
        return err_set(msg, part ? ERR_TOOLARGE : ERR_NOMEM, "%s: cannot be opened", options->directory);
    }
    strcpy(part->directory, options->directory);
    part->fs = options->fs;
    part->series = options->series;
    part->decoder = options->decoder;
    part->oldest_ns = INT64_MAX;
    manifest_init(&part->committed, options->partition_count, options->partition_index);
    manifest_init(&part->live, options->partition_count, options->partition_index);
    part->head = head_new(options->head_size_max, options->hash_seed);
    enum err err = part->head ? ERR_OK : err_set(msg, ERR_NOMEM, "%s: %s", part->directory, err_text(ERR_NOMEM));
    if (!err)
        err = directory_make(part, msg);
    if (!err)
        err = lock_take(part, msg);
    if (!err)
        err = quarantine_init(&part->quarantine, part->fs, part->directory, options->quarantine_size_max);
    if (!err)
        err = manifest_begin(part, options, msg);
    if (!err)
        err = orphans_remove(part, msg);
    if (!err)
        err = segments_open(part, msg);
    if (err) {
        partition_close(part);
        return err;
    }
    partition_refresh_gauges(part);
    segment_gauges_refresh(part);
    *partition_out = part;
    return ERR_OK;
}

static void flush_clear(struct partition *part)
{
    if (part->flush.sealed)
        head_unseal_free(part->head, part->flush.sealed);
    segment_ref_unref(part->flush.segment);
    manifest_deinit(&part->flush.marks);
    manifest_deinit(&part->flush.next);
    part->flush = (struct flush){.is_under_way = false};
}

void partition_close(struct partition *part)
{
    if (!part)
        return;
    CHECK(part->compaction_count == 0);
    if (part->head)
        flush_clear(part);
    head_free(part->head);
    for (size_t i = 0; part->refs && i < part->committed.segment_count; i++)
        segment_ref_unref(part->refs[i]);
    free(part->refs);
    manifest_deinit(&part->committed);
    manifest_deinit(&part->live);
    quarantine_deinit(&part->quarantine);
    file_close(part->lock);
    free(part->scratch.metrics);
    free(part);
}

const char *partition_directory(const struct partition *part) { return part->directory; }

const struct partition_stats *partition_get_stats(const struct partition *part) { return &part->stats; }

const struct partition_gauges *partition_get_gauges(const struct partition *part) { return &part->gauges; }

struct quarantine *partition_quarantine(struct partition *part) { return &part->quarantine; }

uint64_t partition_flush_next(const struct partition *part) { return part->committed.flush_next; }

bool partition_is_failed(const struct partition *part) { return __atomic_load_n(&part->is_failed, __ATOMIC_RELAXED); }

static enum err fail(struct partition *part, enum err err)
{
    if (err && err != ERR_NOSPACE && err != ERR_NOMEM)
        __atomic_store_n(&part->is_failed, true, __ATOMIC_RELAXED);
    return err;
}

/* ---- positions ---- */

struct log_cursor_value partition_later(const struct log_cursor_value *a, const struct log_cursor_value *b)
{
    if (a->position.sequence == 0 || (b->position.sequence != 0 && a->broker_id != b->broker_id))
        return *b;
    return log_cursor_compare(a, b) > 0 ? *a : *b;
}

bool partition_is_empty(const struct partition *part)
{
    return !part->flush.is_under_way && part->oldest_ns == INT64_MAX && quarantine_is_empty(&part->quarantine) &&
           part->resume_id.position.sequence == 0;
}

struct log_cursor_value partition_committed(const struct partition *part) { return part->committed.position; }

struct log_cursor_value partition_position(const struct partition *part, const struct log_cursor_value *read)
{
    return partition_is_empty(part) && !partition_is_failed(part) ? *read : part->committed.position;
}

/* ---- records ---- */

static void reject_add(struct partition *part, enum reject reject, const struct record *rec, struct partition_record_id id, int64_t row)
{
    counter_inc(&part->stats.quarantined[reject]);
    if (!quarantine_add(&part->quarantine, reject, rec, id.broker_id, id.position, row))
        counter_inc(&part->stats.quarantine_not_kept);
    char correlation[RECORD_CORRELATION_TEXT_SIZE];
    record_correlation_text(correlation, rec);
    LOG_WARNING("not stored, kept in quarantine", LOG_TEXT("reason", reject_label(reject)), LOG_STR("device", rec->device),
                LOG_STR("topic", rec->topic), LOG_TEXT("correlation", correlation), LOG_U64("epoch", id.position.epoch),
                LOG_U64("sequence", id.position.sequence));
}

static void ignored_add(struct partition *part, const struct payload_ignored *ignored)
{
    counter_add(&part->stats.ignored_strings, ignored->strings);
    counter_add(&part->stats.ignored_nulls, ignored->nulls);
    counter_add(&part->stats.ignored_arrays, ignored->arrays);
    counter_add(&part->stats.ignored_unreadable, ignored->unreadable);
    counter_add(&part->stats.ignored_names, ignored->names);
    counter_add(&part->stats.overwritten_names, ignored->duplicates);
}

static enum reject device_check(struct span device)
{
    return device.size >= 1 && device.size <= ROWS_NAME_SIZE_MAX ? REJECT_NONE : REJECT_NO_DEVICE;
}

static bool scratch_reserve(struct metric_scratch *scratch, size_t count)
{
    if (scratch->capacity >= count)
        return true;
    struct head_metric *metrics = realloc(scratch->metrics, count * 2 * sizeof *metrics);
    if (!metrics)
        return false;
    scratch->metrics = metrics;
    scratch->capacity = count * 2;
    return true;
}

/* The metrics of a row that the guard lets in; *reject_out is the reason of the first that it does not. */
static size_t row_admit(struct partition *part, enum reject *reject_out, const struct record *rec, const struct payload_row *row,
                        const struct payload_point *points, int64_t now_ns)
{
    struct series_device device;
    size_t count = 0;
    *reject_out = series_admit_device(part->series, &device, rec->device);
    for (size_t i = 0; i < row->point_count && (*reject_out != REJECT_DEVICE_CAP); i++) {
        enum reject reject = series_admit_metric(part->series, &device, points[i].metric, now_ns);
        if (reject == REJECT_NONE)
            part->scratch.metrics[count++] = (struct head_metric){.name = points[i].metric, .value = points[i].value};
        else if (*reject_out == REJECT_NONE || reject == REJECT_NO_MEMORY)
            *reject_out = reject;
        if (reject == REJECT_NO_MEMORY)
            break;
    }
    return count;
}

/* A full head refuses; when there is nothing in it to flush, the row is larger than the bound and will never fit. */
static bool row_never_fits(const struct partition *part, enum err err)
{
    struct head_stats stats;
    if (err == ERR_INVALID)
        return true;
    if (err != ERR_FULL || part->flush.is_under_way)
        return false;
    head_get_stats(part->head, &stats);
    return stats.row_count == 0;
}

static enum err row_add(struct partition *part, const struct record *rec, struct partition_record_id id, size_t row_index,
                        const struct payload_row *row, const struct payload_point *points, int64_t now_ns)
{
    if (row->reject != REJECT_NONE) {
        reject_add(part, row->reject, rec, id, (int64_t)row_index);
        return ERR_OK;
    }
    if (!scratch_reserve(&part->scratch, row->point_count))
        return ERR_NOMEM;
    enum reject reject;
    size_t count = row_admit(part, &reject, rec, row, points, now_ns);
    if (reject == REJECT_NO_MEMORY)
        return ERR_NOMEM; /* the whole row again, when there is memory */
    if (count > 0) {
        enum err err = head_add_row(part->head, rec->device, row->time_ns, part->scratch.metrics, count, part->live.arrival_next);
        if (err && row_never_fits(part, err)) {
            reject = REJECT_TOO_LARGE;
            count = 0;
        } else if (err) {
            return err;
        }
    }
    if (count > 0) {
        if (rec->received_ns < part->oldest_ns)
            part->oldest_ns = rec->received_ns == INT64_MAX ? INT64_MAX - 1 : rec->received_ns;
        counter_inc(&part->stats.rows);
        counter_add(&part->stats.points, count);
        if (!row->own_time)
            counter_inc(&part->stats.rows_without_time);
    }
    if (reject != REJECT_NONE)
        reject_add(part, reject, rec, id, (int64_t)row_index);
    return ERR_OK;
}

/* Rows from where a full head stopped the last attempt. */
static enum err rows_add(struct partition *part, const struct record *rec, struct partition_record_id id, const struct payload_batch *batch,
                         int64_t now_ns)
{
    size_t row = 0;
    if (part->resume_id.broker_id == id.broker_id && log_position_compare(part->resume_id.position, id.position) == 0)
        row = part->resume_row;
    for (; row < batch->row_count; row++) {
        enum err err = row_add(part, rec, id, row, &batch->rows[row], batch->points + batch->rows[row].point_first, now_ns);
        if (err) {
            part->resume_id = id;
            part->resume_row = row;
            return err;
        }
    }
    part->resume_id = (struct partition_record_id){0};
    part->resume_row = 0;
    return ERR_OK;
}

static enum err payload_add(struct partition *part, const struct record *rec, struct partition_record_id id, int64_t now_ns)
{
    struct payload_batch batch;
    struct payload_ignored ignored = {0};
    enum reject reject = device_check(rec->device);
    bool is_resumed = part->resume_id.position.sequence != 0;
    if (reject == REJECT_NONE && rec->codec != RECORD_CODEC_JSON)
        reject = REJECT_CODEC;
    if (reject == REJECT_NONE)
        reject = payload_decode(part->decoder, &batch, &ignored, rec->payload, rec->received_ns);
    if (reject == REJECT_NO_MEMORY)
        return ERR_NOMEM;
    if (!is_resumed)
        ignored_add(part, &ignored);
    if (reject == REJECT_NONE)
        return rows_add(part, rec, id, &batch, now_ns);
    reject_add(part, reject, rec, id, -1);
    return ERR_OK;
}

enum err partition_add_record(struct partition *part, const struct record *rec, struct partition_record_id id, int64_t now_ns)
{
    if (partition_is_failed(part))
        return ERR_CLOSED;
    const struct manifest_mark *mark = manifest_find_mark(&part->live, id.broker_id);
    if (mark && log_position_compare(id.position, mark->position) <= 0) {
        counter_inc(&part->stats.duplicates);
        return ERR_OK;
    }
    if (!mark) {
        /* Room for the mark before anything is stored. */
        enum err err = manifest_raise_mark(&part->live, id.broker_id, (struct log_position){0, 0});
        if (err)
            return err == ERR_NOMEM ? err : fail(part, ERR_CLOSED);
    }
    enum err err = payload_add(part, rec, id, now_ns);
    if (err)
        return err;
    part->live.arrival_next++;
    counter_inc(&part->stats.records);
    err = manifest_raise_mark(&part->live, id.broker_id, id.position);
    CHECK(err == ERR_OK); /* the mark is there */
    return ERR_OK;
}

size_t partition_head_bytes(const struct partition *part)
{
    struct head_stats stats;
    head_get_stats(part->head, &stats);
    return stats.bytes;
}

int64_t partition_oldest_ns(const struct partition *part) { return part->oldest_ns; }

/* ---- flush ---- */

bool partition_is_flushing(const struct partition *part) { return part->flush.is_under_way; }

bool partition_seal(struct partition *part, const struct log_cursor_value *read)
{
    struct flush *flush = &part->flush;
    if (flush->is_under_way || part->quarantine.is_writing || partition_is_failed(part) || partition_is_empty(part))
        return false;
    struct head_stats stats;
    head_get_stats(part->head, &stats);
    if (manifest_copy(&flush->marks, &part->live))
        return false;
    if (stats.row_count > 0 && !(flush->sealed = head_seal(part->head))) {
        manifest_deinit(&flush->marks);
        return false;
    }
    quarantine_take(&part->quarantine);
    flush->number = part->committed.flush_next;
    flush->arrival_next = part->live.arrival_next;
    /* A record that met a full head is in the head in part: the position stays before it, and its rows come again after a crash. */
    flush->position = *read;
    flush->step = FLUSH_SEALED;
    flush->is_under_way = true;
    part->oldest_ns = INT64_MAX;
    partition_refresh_gauges(part);
    return true;
}

static enum err sealed_write_devices(struct flush *flush, struct segment_writer *writer, struct errmsg *msg)
{
    size_t count;
    enum err err = ERR_OK;
    const struct head_device **devices = head_devices_sorted(flush->sealed, &count);
    if (!devices)
        return ERR_NOMEM;
    for (size_t i = 0; i < count && !err; i++) {
        struct head_cursor cursor;
        head_cursor_init(&cursor, devices[i], INT64_MIN, INT64_MAX, flush->number);
        struct merge_source *source = &cursor.source;
        struct merge *merge = merge_new(&source, 1, CHUNK_ROWS_FLUSH);
        err = merge ? segment_writer_add_merge(writer, head_device_id(devices[i]), merge, msg) : ERR_NOMEM;
        merge_free(merge);
    }
    free(devices);
    return err;
}

static enum err sealed_write(struct partition *part, struct errmsg *msg)
{
    struct flush *flush = &part->flush;
    struct manifest_segment entry = {.flush_first = flush->number, .flush_last = flush->number};
    char name[MANIFEST_SEGMENT_NAME_SIZE];
    struct segment_writer *writer;
    struct segment_source *sources = calloc(flush->marks.mark_count + 1, sizeof *sources);
    if (!sources)
        return ERR_NOMEM;
    for (size_t i = 0; i < flush->marks.mark_count; i++) {
        const struct manifest_mark *mark = &flush->marks.marks[i];
        sources[i] = (struct segment_source){mark->broker_id, mark->position.epoch, mark->position.sequence};
    }
    struct segment_info info = {.partition_count = part->committed.partition_count,
                                .partition_index = part->committed.partition_index,
                                .flush_first = flush->number,
                                .flush_last = flush->number,
                                .source_count = flush->marks.mark_count,
                                .sources = sources};
    manifest_segment_name(name, &entry);
    enum err err = segment_writer_open(&writer, part->fs, part->directory, name, &info, COLUMN_FAST, msg);
    free(sources);
    if (err)
        return err;
    err = sealed_write_devices(flush, writer, msg);
    if (err) {
        segment_writer_abort(writer);
        return err;
    }
    err = segment_writer_finish(writer, &info, msg);
    if (err)
        return err;
    entry.time_ns_min = info.time_ns_min;
    entry.time_ns_max = info.time_ns_max;
    entry.size = info.size;
    entry.row_count = info.row_count;
    entry.point_count = info.point_count;
    /* Read back before it is committed: what cannot be read must not move the position. */
    return segment_ref_open(&flush->segment, part->fs, part->directory, &entry, msg);
}

/* After an error that is final nobody knows what is on disk: nothing more is written. */
static enum err check_alive(const struct partition *part, struct errmsg *msg)
{
    return partition_is_failed(part) ? err_set(msg, ERR_CLOSED, "%s: has failed", part->directory) : ERR_OK;
}

enum err partition_flush_write(struct partition *part, struct errmsg *msg)
{
    struct flush *flush = &part->flush;
    enum err err = check_alive(part, msg);
    if (err)
        return err;
    if (!flush->is_under_way || flush->step != FLUSH_SEALED)
        return ERR_OK;
    err = quarantine_write(&part->quarantine, msg);
    if (!err && flush->sealed && !flush->segment)
        err = sealed_write(part, msg);
    if (err)
        return fail(part, err);
    flush->step = FLUSH_WRITTEN;
    return ERR_OK;
}

enum err partition_quarantine_write(struct partition *part, struct errmsg *msg)
{
    enum err err = check_alive(part, msg);
    return err ? err : fail(part, quarantine_write(&part->quarantine, msg));
}

enum err partition_flush_commit(struct partition *part, struct errmsg *msg)
{
    struct flush *flush = &part->flush;
    enum err err = check_alive(part, msg);
    if (err)
        return err;
    if (!flush->is_under_way || flush->step != FLUSH_WRITTEN)
        return ERR_OK;
    manifest_deinit(&flush->next);
    err = manifest_copy(&flush->next, &part->committed);
    for (size_t i = 0; i < flush->marks.mark_count && !err; i++)
        err = manifest_raise_mark(&flush->next, flush->marks.marks[i].broker_id, flush->marks.marks[i].position);
    if (!err && flush->segment)
        err = manifest_add_segment(&flush->next, &flush->segment->entry);
    if (!err) {
        flush->next.flush_next = flush->number + (flush->segment != NULL);
        flush->next.arrival_next = flush->arrival_next;
        flush->next.position = flush->position;
        if (part->committed.began.position.sequence == 0)
            flush->next.began = flush->position;
        err = store(part, &flush->next, msg);
    }
    if (err)
        return fail(part, err);
    flush->step = FLUSH_COMMITTED;
    return ERR_OK;
}

/* Put `next` in the place of the committed manifest; the references follow: those of segments that stay, and `added`, which is taken. */
static void manifest_swap(struct partition *part, struct manifest *next, struct segment_ref *added)
{
    struct segment_ref **refs = calloc(next->segment_count + 1, sizeof(struct segment_ref *));
    CHECK(refs); /* a few bytes a segment; without them nothing could be served */
    size_t old = 0;
    for (size_t i = 0; i < next->segment_count; i++) {
        const struct manifest_segment *entry = &next->segments[i];
        if (added && added->entry.flush_first == entry->flush_first && added->entry.level == entry->level) {
            refs[i] = added;
            continue;
        }
        /* Both are in order of flush_first; what is passed over has been replaced. */
        for (; part->committed.segments[old].flush_first < entry->flush_first; old++)
            segment_ref_unref(part->refs[old]);
        CHECK(part->committed.segments[old].flush_first == entry->flush_first);
        refs[i] = part->refs[old++];
    }
    for (; old < part->committed.segment_count; old++)
        segment_ref_unref(part->refs[old]);
    free(part->refs);
    part->refs = refs;
    manifest_deinit(&part->committed);
    part->committed = *next;
    next->marks = NULL;
    next->segments = NULL;
    segment_gauges_refresh(part);
}

/* Remove the file of a segment that no manifest names. What stays goes at the next start. */
static void segment_unlink(const struct partition *part, const struct manifest_segment *entry)
{
    char name[MANIFEST_SEGMENT_NAME_SIZE], path[FILE_PATH_MAX];
    manifest_segment_name(name, entry);
    if (!file_path(path, part->directory, name) && fs_unlink(part->fs, path))
        LOG_NOTICE("could not remove a segment that is not needed", LOG_TEXT("file", path));
}

void partition_flush_publish(struct partition *part)
{
    struct flush *flush = &part->flush;
    if (!flush->is_under_way || flush->step != FLUSH_COMMITTED)
        return;
    counter_inc(&part->stats.flushes);
    if (flush->segment) {
        counter_add(&part->stats.flushed_bytes, flush->segment->entry.size);
        counter_add(&part->stats.flushed_points, flush->segment->entry.point_count);
    }
    manifest_swap(part, &flush->next, flush->segment);
    flush->segment = NULL;
    if (part->has_undecided) /* both manifests are written anew, without it */
        segment_unlink(part, &part->undecided);
    part->has_undecided = false;
    quarantine_done(&part->quarantine);
    flush_clear(part);
    partition_refresh_gauges(part);
}

enum err partition_flush(struct partition *part, const struct log_cursor_value *read, struct errmsg *msg)
{
    enum err err = ERR_OK;
    if (!part->flush.is_under_way && part->quarantine.is_writing) { /* taken between flushes, and not written yet */
        err = partition_quarantine_write(part, msg);
        if (err)
            return err;
        quarantine_done(&part->quarantine);
    }
    if (!part->flush.is_under_way)
        partition_seal(part, read);
    err = partition_flush_write(part, msg);
    if (!err)
        err = partition_flush_commit(part, msg);
    if (!err)
        partition_flush_publish(part);
    return err;
}

/* ---- compaction ---- */

struct partition_compaction *partition_compact_begin(struct partition *part, const struct compactor_options *options)
{
    size_t count = part->committed.segment_count;
    if (count < 2 || part->compaction_count > 0 || part->has_undecided || partition_is_failed(part))
        return NULL;
    struct partition_compaction *compaction = calloc(1, sizeof *compaction);
    struct compactor_input *inputs = calloc(count, sizeof *inputs);
    if (compaction)
        compaction->inputs = calloc(count, sizeof(struct segment_ref *));
    struct compactor_plan plan = {0};
    if (!compaction || !inputs || !compaction->inputs)
        goto out;
    for (size_t i = 0; i < count; i++) {
        const struct manifest_segment *entry = &part->committed.segments[i];
        if (!part->refs[i])
            goto out; /* a merge across a damaged segment would change which write is the last */
        inputs[i] = (struct compactor_input){.flush_first = entry->flush_first,
                                             .flush_last = entry->flush_last,
                                             .level = entry->level,
                                             .window_ns = entry->window_ns,
                                             .size = entry->size};
    }
    plan = compactor_plan(inputs, count, options);
    for (size_t i = 0; i < plan.count; i++) {
        for (size_t s = 0; s < count; s++) {
            if (part->committed.segments[s].flush_first == inputs[plan.first + i].flush_first)
                compaction->inputs[compaction->input_count++] = segment_ref_ref(part->refs[s]);
        }
    }
    CHECK(compaction->input_count == plan.count);
out:
    if (plan.count > 0) {
        compaction->part = part;
        compaction->output = (struct manifest_segment){.flush_first = inputs[plan.first].flush_first,
                                                       .flush_last = inputs[plan.first + plan.count - 1].flush_last,
                                                       .level = plan.level,
                                                       .window_ns = inputs[plan.first].window_ns};
        part->compaction_count++;
    } else if (compaction) {
        free(compaction->inputs);
        free(compaction);
        compaction = NULL;
    }
    free(inputs);
    return compaction;
}

enum err partition_compact_write(struct partition_compaction *compaction, struct errmsg *msg)
{
    struct partition *part = compaction->part;
    char name[MANIFEST_SEGMENT_NAME_SIZE];
    struct segment_info info;
    struct segment **inputs = calloc(compaction->input_count, sizeof(struct segment *));
    if (!inputs)
        return ERR_NOMEM;
    for (size_t i = 0; i < compaction->input_count; i++)
        inputs[i] = compaction->inputs[i]->seg;
    manifest_segment_name(name, &compaction->output);
    enum err err = compactor_merge(inputs, compaction->input_count, part->fs, part->directory, name, compaction->output.level, &info, msg);
    free(inputs);
    if (err)
        return err;
    compaction->is_written = true;
    compaction->output.time_ns_min = info.time_ns_min;
    compaction->output.time_ns_max = info.time_ns_max;
    compaction->output.size = info.size;
    compaction->output.row_count = info.row_count;
    compaction->output.point_count = info.point_count;
    return segment_ref_open(&compaction->segment, part->fs, part->directory, &compaction->output, msg);
}

enum err partition_compact_commit(struct partition_compaction *compaction, struct errmsg *msg)
{
    struct partition *part = compaction->part;
    enum err err = check_alive(part, msg);
    if (err)
        return err;
    manifest_deinit(&compaction->next);
    err = manifest_copy(&compaction->next, &part->committed);
    if (err)
        return err;
    for (size_t i = 0; i < compaction->input_count; i++) {
        bool removed = manifest_remove_segment(&compaction->next, &compaction->inputs[i]->entry);
        CHECK(removed);
    }
    err = manifest_add_segment(&compaction->next, &compaction->output);
    if (err)
        return err;
    compaction->is_commit_tried = true;
    return fail(part, store(part, &compaction->next, msg));
}

static void compaction_free(struct partition_compaction *compaction)
{
    CHECK(compaction->part->compaction_count > 0);
    compaction->part->compaction_count--;
    for (size_t i = 0; i < compaction->input_count; i++)
        segment_ref_unref(compaction->inputs[i]);
    segment_ref_unref(compaction->segment);
    manifest_deinit(&compaction->next);
    free(compaction->inputs);
    free(compaction);
}

void partition_compact_publish(struct partition_compaction *compaction)
{
    struct partition *part = compaction->part;
    for (size_t i = 0; i < compaction->input_count; i++)
        segment_ref_doom(compaction->inputs[i]);
    counter_inc(&part->stats.compactions);
    counter_add(&part->stats.compacted_bytes, compaction->output.size);
    counter_add(&part->stats.compacted_points, compaction->output.point_count);
    manifest_swap(part, &compaction->next, compaction->segment);
    compaction->segment = NULL;
    compaction_free(compaction);
}

void partition_compact_abort(struct partition_compaction *compaction)
{
    if (compaction->is_commit_tried) {
        compaction->part->undecided = compaction->output;
        compaction->part->has_undecided = true;
    } else if (compaction->segment) {
        segment_ref_doom(compaction->segment);
    } else if (compaction->is_written) {
        segment_unlink(compaction->part, &compaction->output);
    }
    compaction_free(compaction);
}

/* ---- queries ---- */

struct partition_view *partition_view_take(const struct partition *part, struct span device, int64_t from_ns, int64_t to_ns)
{
    const struct head *heads[2] = {part->flush.sealed, part->head};
    uint64_t ranks[2] = {part->flush.number, part->committed.flush_next + part->flush.is_under_way};
    size_t count = 0;
    struct segment_ref **refs = partition_hold_segments(part, &count);
    if (!refs)
        return NULL;
    struct partition_view *view = partition_view_new(heads, ranks, 2, refs, count, device, from_ns, to_ns);
    for (size_t i = 0; i < count; i++)
        segment_ref_unref(refs[i]);
    free(refs);
    return view;
}

struct segment_ref **partition_hold_segments(const struct partition *part, size_t *count_out)
{
    struct segment_ref **refs = calloc(part->committed.segment_count + 1, sizeof(struct segment_ref *));
    *count_out = 0;
    for (size_t i = 0; refs && i < part->committed.segment_count; i++) {
        if (part->refs[i])
            refs[(*count_out)++] = segment_ref_ref(part->refs[i]);
    }
    return refs;
}

enum err partition_head_devices(const struct partition *part, void *context,
                                enum err (*on_device)(void *context, struct span device, int64_t newest_ns))
{
    enum err err = head_each_device(part->head, context, on_device);
    if (!err && part->flush.sealed)
        err = head_each_device(part->flush.sealed, context, on_device);
    return err;
}
