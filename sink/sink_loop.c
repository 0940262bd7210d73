#include "sink/sink_loop.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/check.h"
#include "common/data_dir.h"
#include "common/murmur2.h"
#include "sink/source/source_log.h"

#define INGEST_BATCH 512                         /* records between two looks at timers and requests */
#define IDLE_MIN_NS (2 * NS_PER_MS)              /* between two looks at an idle source, doubling ... */
#define IDLE_MAX_NS (20 * NS_PER_MS)             /* ... to the interval in which the broker writes its durable end */
#define OPEN_RETRY_NS (100 * NS_PER_MS)          /* while the broker is not there */
#define SPACE_RETRY_NS (NS_PER_S)                /* while the disk is full */
#define TRACE_WINDOW_NS (60 * NS_PER_S)          /* the slowest record is that of so long */
#define CURSOR_INTERVAL_NS (NS_PER_S)            /* an idle sink moves its cursor at most so often */
#define COMPACT_INTERVAL_NS (NS_PER_S)           /* between two looks for something to merge */
#define COMPACT_RETRY_NS (60 * NS_PER_S)         /* after one failed */
#define QUARANTINE_TAKE_SIZE ((size_t)256 << 10) /* bytes gathered that are worth a write between flushes */
#define CAUGHT_UP_NS (60 * NS_PER_MS)            /* a requested flush waits for the source to be dry so long after it */
#define CAUGHT_UP_MAX_NS (2 * NS_PER_S)          /* or at most so long */

enum source_state { SOURCE_WAITING, SOURCE_READING, SOURCE_GAP, SOURCE_FAILED };

/* One record, as the metrics name it. */
struct trace {
    char correlation[RECORD_CORRELATION_TEXT_SIZE];
    int64_t latency_ns;
    bool is_set;
};

/* A requested flush, for each partition. */
enum request_step { REQUEST_DONE, REQUEST_SEAL, REQUEST_WAIT };

struct loop_stats {
    struct counter records;       /* read from the source, of any type */
    struct counter not_telemetry; /* records that no rule matched, or that are no PUBLISH */
    struct counter bad_records;
    struct counter gap_records; /* gone from the log before they were read, and accepted so */
    struct counter skipped;     /* telemetry of a partition that has failed; read again at the next start */
    struct counter cursor_commits;
    struct counter head_full; /* turns that waited for a flush */
    struct counter commit_failures;
    struct counter compaction_failures;
    struct histogram latency;        /* receive time at the broker to visible here, ns; written by ingest */
    struct histogram commit_latency; /* segment and manifest, ns; written by the flusher */
    struct queue_stats lag;          /* of the source */
};

struct sink_loop {
    struct fs *fs;
    const struct sink_config *config;
    struct metrics_registry *metrics;
    struct series *series;
    struct payload_decoder *decoder;
    struct source *source;

    struct sink_partition *partitions; /* former counts first */
    size_t partition_count;
    struct sink_partition *current;        /* the last config->partitions of them */
    struct queue_stats *head_queues;       /* of each current one */
    struct queue_stats *quarantine_queues; /* the same */
    enum request_step *requests;

    /* Of the ingest thread. */
    struct log_cursor_value cursor; /* as stored at the source */
    struct log_cursor_value start;
    bool is_source_open;
    struct source_item item;
    bool has_item;
    struct trace batch_newest, batch_slowest;
    mono_ns slowest_at; /* when the window of trace_slowest began */
    int64_t last_received_ns;
    uint64_t bytes_read;
    mono_ns dry_at; /* when the source last had nothing */
    mono_ns cursor_at;
    mono_ns request_at;

    pthread_t ingest, flusher, compactor;
    bool has_ingest, has_flusher, has_compactor;

    pthread_mutex_t mutex; /* what follows */
    pthread_cond_t work;   /* for flusher and compactor */
    pthread_cond_t done;   /* for whoever waits for a flush */
    bool is_stopping;      /* ingest ends */
    bool is_flusher_ending;
    uint64_t flush_requested, flush_begun, flush_handled;
    enum source_state source_state;
    struct errmsg source_error;
    struct errmsg damage; /* the first damaged chunk that an answer met */
    struct trace newest, slowest;
    size_t flush_at; /* where the flusher looks on */

    bool is_published;    /* atomic: something was committed since the cursor was last looked at */
    int64_t watermark_ns; /* atomic */
    struct loop_stats stats;
};

static bool is_stopping(struct sink_loop *loop) { return __atomic_load_n(&loop->is_stopping, __ATOMIC_RELAXED); }

static void sleep_ns(int64_t ns)
{
    struct timespec time = {.tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S};
    nanosleep(&time, NULL);
}

static void cond_wait_ns(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t ns)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    int64_t at = until.tv_nsec + ns;
    until.tv_sec += at / NS_PER_S;
    until.tv_nsec = at % NS_PER_S;
    pthread_cond_timedwait(cond, mutex, &until);
}

static void cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void source_state_set(struct sink_loop *loop, enum source_state state, const struct errmsg *msg)
{
    pthread_mutex_lock(&loop->mutex);
    loop->source_state = state;
    loop->source_error = msg ? *msg : (struct errmsg){""};
    pthread_mutex_unlock(&loop->mutex);
}

/* ---- opening ---- */

/* Partition counts that have a directory. */
struct counts {
    uint32_t values[64];
    size_t count;
};

static void counts_on_name(void *context, const char *name)
{
    struct counts *counts = context;
    char *end;
    unsigned long value = strtoul(name, &end, 10);
    if (*end == 0 && value >= 1 && value <= 4096 && counts->count < sizeof counts->values / sizeof counts->values[0])
        counts->values[counts->count++] = (uint32_t)value;
}

static enum err directory_make(struct sink_loop *loop, const char *path, struct errmsg *msg)
{
    enum err err = fs_mkdir(loop->fs, path);
    return err && err != ERR_EXISTS ? err_set(msg, err, "%s: %s", path, err_text(err)) : ERR_OK;
}

static enum err partition_path(struct sink_loop *loop, char *path_out, uint32_t count, uint32_t index, struct errmsg *msg)
{
    int size = snprintf(path_out, FILE_PATH_MAX, "%s/partitions/%u/%u", loop->config->data_directory, count, index);
    return size < 0 || size >= FILE_PATH_MAX ? err_set(msg, ERR_TOOLARGE, "%s: path too long", loop->config->data_directory) : ERR_OK;
}

static enum err open_one(struct sink_loop *loop, struct sink_partition *sp, uint64_t flush_floor, struct errmsg *msg)
{
    char path[FILE_PATH_MAX];
    uint64_t seed;
    struct errmsg why = {""};
    enum err err = partition_path(loop, path, sp->count, sp->index, msg);
    if (!err)
        err = fs_random(loop->fs, &seed, sizeof seed);
    if (err)
        return err;
    struct partition_options options = {.fs = loop->fs,
                                        .directory = path,
                                        .partition_count = sp->count,
                                        .partition_index = sp->index,
                                        .head_size_max = (size_t)(loop->config->head_memory / loop->config->partitions),
                                        .quarantine_size_max = (uint64_t)(loop->config->quarantine_size / loop->config->partitions),
                                        .hash_seed = seed,
                                        .flush_floor = flush_floor,
                                        .series = loop->series,
                                        .decoder = loop->decoder};
    err = partition_open(&sp->part, &options, &why);
    if (err != ERR_CORRUPT && err != ERR_VERSION)
        return err ? err_set(msg, err, "%s", why.text) : ERR_OK;
    /* The others can work; this one pins the log from where it stood, so nothing is lost. */
    sp->err = err;
    sp->error = why;
    sp->part = NULL;
    LOG_ERROR("partition left out", LOG_TEXT("directory", path), LOG_TEXT("detail", why.text));
    return ERR_OK;
}

static enum err open_former(struct sink_loop *loop, const struct counts *counts, uint64_t *flush_floor_out, struct errmsg *msg)
{
    enum err err = ERR_OK;
    size_t at = 0;
    for (size_t c = 0; c < counts->count; c++) {
        for (uint32_t index = 0; index < counts->values[c] && !err; index++) {
            if (counts->values[c] == loop->config->partitions)
                continue;
            struct sink_partition *sp = &loop->partitions[at++];
            sp->count = counts->values[c];
            sp->index = index;
            err = open_one(loop, sp, 0, msg);
            if (!err && sp->part && partition_flush_next(sp->part) > *flush_floor_out)
                *flush_floor_out = partition_flush_next(sp->part);
        }
    }
    return err;
}

static enum err open_all(struct sink_loop *loop, struct errmsg *msg)
{
    char path[FILE_PATH_MAX];
    struct counts counts = {.count = 0};
    uint32_t current_count = (uint32_t)loop->config->partitions;
    snprintf(path, sizeof path, "%s/partitions", loop->config->data_directory);
    enum err err = directory_make(loop, path, msg);
    if (!err)
        err = fs_sync_dir(loop->fs, loop->config->data_directory);
    if (!err)
        err = fs_list(loop->fs, path, &counts, counts_on_name);
    if (err)
        return err_set(msg, err, "%s: %s", path, err_text(err));
    size_t former = 0;
    for (size_t i = 0; i < counts.count; i++)
        former += counts.values[i] == current_count ? 0 : counts.values[i];
    loop->partition_count = former + current_count;
    loop->partitions = calloc(loop->partition_count, sizeof *loop->partitions);
    loop->head_queues = calloc(current_count, sizeof *loop->head_queues);
    loop->quarantine_queues = calloc(current_count, sizeof *loop->quarantine_queues);
    loop->requests = calloc(current_count, sizeof *loop->requests);
    if (!loop->partitions || !loop->head_queues || !loop->quarantine_queues || !loop->requests)
        return ERR_NOMEM;
    for (size_t i = 0; i < loop->partition_count; i++) {
        pthread_mutex_init(&loop->partitions[i].commit, NULL);
        pthread_mutex_init(&loop->partitions[i].state, NULL);
    }
    loop->current = loop->partitions + former;
    uint64_t flush_floor = 0;
    err = open_former(loop, &counts, &flush_floor, msg);
    snprintf(path, sizeof path, "%s/partitions/%u", loop->config->data_directory, current_count);
    if (!err)
        err = directory_make(loop, path, msg);
    for (uint32_t index = 0; index < current_count && !err; index++) {
        struct sink_partition *sp = &loop->current[index];
        sp->count = current_count;
        sp->index = index;
        sp->is_current = true;
        err = open_one(loop, sp, flush_floor, msg);
    }
    if (!err) {
        snprintf(path, sizeof path, "%s/partitions", loop->config->data_directory);
        err = fs_sync_dir(loop->fs, path);
    }
    return err;
}

/* ---- metrics ---- */

static double read_devices(void *arg) { return (double)series_device_count(((struct sink_loop *)arg)->series); }

static double read_series(void *arg) { return (double)series_count(((struct sink_loop *)arg)->series); }

static double read_bytes_per_point(void *arg)
{
    struct sink_loop *loop = arg;
    int64_t bytes = 0, points = 0;
    for (size_t i = 0; i < loop->partition_count; i++) {
        if (!loop->partitions[i].part)
            continue;
        const struct partition_gauges *gauges = partition_get_gauges(loop->partitions[i].part);
        bytes += gauge_get(&gauges->segment_bytes);
        points += gauge_get(&gauges->segment_points);
    }
    return points > 0 ? (double)bytes / (double)points : 0;
}

static double read_partitions_failed(void *arg)
{
    struct sink_loop *loop = arg;
    size_t count = 0;
    for (size_t i = 0; i < loop->partition_count; i++)
        count += !loop->partitions[i].part || partition_is_failed(loop->partitions[i].part);
    return (double)count;
}

static bool trace_read(struct sink_loop *loop, const struct trace *trace, double *value_out, char text_out[METRICS_TEXT_SIZE])
{
    pthread_mutex_lock(&loop->mutex);
    bool is_set = trace->is_set;
    *value_out = (double)trace->latency_ns / NS_PER_S;
    snprintf(text_out, METRICS_TEXT_SIZE, "%s", trace->correlation);
    pthread_mutex_unlock(&loop->mutex);
    return is_set;
}

static bool read_newest(void *arg, double *value_out, char text_out[METRICS_TEXT_SIZE])
{
    return trace_read(arg, &((struct sink_loop *)arg)->newest, value_out, text_out);
}

static bool read_slowest(void *arg, double *value_out, char text_out[METRICS_TEXT_SIZE])
{
    return trace_read(arg, &((struct sink_loop *)arg)->slowest, value_out, text_out);
}

#define COUNTER(cell, name, ...) metrics_register_counter(metrics, &(cell), METRIC("tidegate_sink_" name, __VA_ARGS__))
#define GAUGE(cell, name, ...) metrics_register_gauge(metrics, &(cell), METRIC("tidegate_sink_" name, __VA_ARGS__))

static void register_partition(struct metrics_registry *metrics, const struct partition *part)
{
    const struct partition_stats *stats = partition_get_stats(part);
    const struct partition_gauges *gauges = partition_get_gauges(part);
    COUNTER(stats->records, "telemetry_records_total", "Telemetry records taken, duplicates not counted.");
    COUNTER(stats->duplicates, "duplicate_records_total", "Records dropped because they were stored already, by the mark of their broker.");
    COUNTER(stats->rows, "rows_total", "Rows stored.");
    COUNTER(stats->points, "points_total", "Values stored.");
    COUNTER(stats->rows_without_time, "rows_without_time_total", "Rows stored under the broker's receive time.");
    for (int i = 1; i < REJECT_COUNT; i++)
        COUNTER(stats->quarantined[i], "quarantined_total", "Payloads, rows and metrics that were not stored, by reason.",
                {"reason", reject_label((enum reject)i)});
    COUNTER(stats->quarantine_not_kept, "quarantine_not_kept_total", "Quarantined entries of which no copy was kept, for want of room.");
#define IGNORED "Fields of telemetry that are no metrics, by kind."
    COUNTER(stats->ignored_strings, "ignored_fields_total", IGNORED, {"kind", "string"});
    COUNTER(stats->ignored_nulls, "ignored_fields_total", IGNORED, {"kind", "null"});
    COUNTER(stats->ignored_arrays, "ignored_fields_total", IGNORED, {"kind", "array"});
    COUNTER(stats->ignored_unreadable, "ignored_fields_total", IGNORED, {"kind", "unreadable"});
    COUNTER(stats->ignored_names, "ignored_fields_total", IGNORED, {"kind", "name"});
    COUNTER(stats->overwritten_names, "ignored_fields_total", IGNORED, {"kind", "duplicate"});
    COUNTER(stats->flushes, "flushes_total", "Heads committed.");
    COUNTER(stats->flushed_bytes, "written_bytes_total", "Bytes of segments written, by who wrote them.", {"by", "flush"});
    COUNTER(stats->compacted_bytes, "written_bytes_total", "Bytes of segments written, by who wrote them.", {"by", "compaction"});
    COUNTER(stats->flushed_points, "written_points_total", "Values in segments written, by who wrote them.", {"by", "flush"});
    COUNTER(stats->compacted_points, "written_points_total", "Values in segments written, by who wrote them.", {"by", "compaction"});
    COUNTER(stats->compactions, "compactions_total", "Merges of segments.");
    COUNTER(stats->corrupt_segments, "corrupt_segments_total", "Segments that could not be opened at the start.");
    COUNTER(stats->corrupt_slots, "corrupt_manifests_total", "Manifests that did not hold at the start, while their twin did.");
    COUNTER(stats->orphans_removed, "orphans_removed_total", "Files removed at the start because no manifest names them.");
    GAUGE(gauges->head_rows, "head_rows", "Rows in memory.");
    GAUGE(gauges->head_bytes, "head_bytes", "Memory of the heads.");
    GAUGE(gauges->segments, "segments", "Segments.");
    GAUGE(gauges->segment_bytes, "segment_bytes", "Bytes of all segments.");
    GAUGE(gauges->segment_points, "segment_points", "Values in all segments; overwritten ones count until they are merged.");
}

static void register_loop(struct sink_loop *loop)
{
    struct metrics_registry *metrics = loop->metrics;
    struct loop_stats *stats = &loop->stats;
    COUNTER(stats->records, "records_total", "Records read from the source, of any type.");
    COUNTER(stats->not_telemetry, "other_records_total", "Records read that are not telemetry.");
    COUNTER(stats->bad_records, "bad_records_total", "Records that could not be decoded.");
    COUNTER(stats->skipped, "skipped_records_total", "Telemetry of a failed partition, to be read again at the next start.");
    COUNTER(stats->gap_records, "gap_records_total", "Records that were gone from the log before they were read, and accepted as lost.");
    COUNTER(stats->cursor_commits, "cursor_commits_total", "Positions given back to the source.");
    COUNTER(stats->head_full, "head_full_total", "Times that reading waited for a flush.");
    COUNTER(stats->commit_failures, "commit_failures_total", "Flushes that failed, the ones tried again included.");
    COUNTER(stats->compaction_failures, "compaction_failures_total", "Merges that failed.");
    metrics_register_histogram(metrics, &stats->latency, METRICS_NANOSECONDS,
                               METRIC("tidegate_sink_publish_to_queryable_seconds", "From receipt at the broker to visible in queries."));
    metrics_register_histogram(metrics, &stats->commit_latency, METRICS_NANOSECONDS,
                               METRIC("tidegate_sink_commit_seconds", "Writing and committing a flushed head."));
#define TRACE                                                                                                                              \
    "From receipt at the broker to visible in queries, of one record by its correlation id: the newest, and the slowest of about a "       \
    "minute."
    metrics_register_trace(metrics, read_newest, loop, "correlation", METRIC("tidegate_sink_record_seconds", TRACE, {"record", "newest"}));
    metrics_register_trace(metrics, read_slowest, loop, "correlation",
                           METRIC("tidegate_sink_record_seconds", TRACE, {"record", "slowest"}));
    metrics_register_gauge_fn(metrics, read_devices, loop, METRIC("tidegate_sink_devices", "Devices known."));
    metrics_register_gauge_fn(metrics, read_series, loop, METRIC("tidegate_sink_series", "Pairs of device and metric known."));
    metrics_register_gauge_fn(metrics, read_bytes_per_point, loop,
                              METRIC("tidegate_sink_bytes_per_point", "Bytes of segments per value in them."));
    metrics_register_gauge_fn(metrics, read_partitions_failed, loop,
                              METRIC("tidegate_sink_partitions_failed", "Partitions that take no records."));
    metrics_register_queue(metrics, "sink_source", &stats->lag);
    for (size_t i = 0; i < loop->partition_count; i++) {
        if (loop->partitions[i].part)
            register_partition(metrics, loop->partitions[i].part);
    }
    for (int64_t i = 0; i < loop->config->partitions; i++) {
        metrics_register_queue(metrics, "sink_head", &loop->head_queues[i]);
        metrics_register_queue(metrics, "sink_quarantine", &loop->quarantine_queues[i]);
    }
}

enum err sink_loop_new(struct sink_loop **loop_out, struct fs *fs, const struct sink_config *config, struct metrics_registry *metrics,
                       struct errmsg *msg)
{
    struct sink_loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return err_set(msg, ERR_NOMEM, "%s", err_text(ERR_NOMEM));
    const struct payload_rules rules = sink_config_payload_rules(config);
    const struct series_limits limits = sink_config_series_limits(config);
    uint64_t seed;
    loop->fs = fs;
    loop->config = config;
    loop->metrics = metrics;
    histogram_init(&loop->stats.latency);
    histogram_init(&loop->stats.commit_latency);
    pthread_mutex_init(&loop->mutex, NULL);
    cond_init(&loop->work);
    cond_init(&loop->done);
    msg->text[0] = 0;
    enum err err = fs_random(fs, &seed, sizeof seed);
    loop->series = series_new(&limits, seed);
    loop->decoder = payload_new(&rules);
    loop->source = source_log_new(fs, config->broker_log);
    if (!err && !(loop->series && loop->decoder && loop->source))
        err = ERR_NOMEM;
    if (!err)
        err = open_all(loop, msg);
    if (err) {
        if (msg->text[0] == 0)
            err_set(msg, err, "%s: %s", config->data_directory, err_text(err));
        sink_loop_free(loop);
        return err;
    }
    if (metrics)
        register_loop(loop);
    *loop_out = loop;
    return ERR_OK;
}

void sink_loop_free(struct sink_loop *loop)
{
    if (!loop)
        return;
    CHECK(!loop->has_ingest);
    for (size_t i = 0; loop->partitions && i < loop->partition_count; i++) {
        partition_close(loop->partitions[i].part);
        pthread_mutex_destroy(&loop->partitions[i].commit);
        pthread_mutex_destroy(&loop->partitions[i].state);
    }
    free(loop->partitions);
    free(loop->head_queues);
    free(loop->quarantine_queues);
    free(loop->requests);
    source_free(loop->source);
    payload_free(loop->decoder);
    series_free(loop->series);
    pthread_mutex_destroy(&loop->mutex);
    pthread_cond_destroy(&loop->work);
    pthread_cond_destroy(&loop->done);
    free(loop);
}

/* ---- ingest ---- */

/* Where to begin: the least of what the partitions want, each the later of its manifest and the cursor (LOG 25). */
static void start_find(struct sink_loop *loop)
{
    loop->start = loop->cursor;
    bool is_first = true;
    for (int64_t i = 0; i < loop->config->partitions; i++) {
        if (!loop->current[i].part) {
            loop->start = loop->cursor;
            return;
        }
        pthread_mutex_lock(&loop->current[i].state); /* the compactor may be at work already */
        struct log_cursor_value committed = partition_committed(loop->current[i].part);
        pthread_mutex_unlock(&loop->current[i].state);
        struct log_cursor_value wanted = partition_later(&committed, &loop->cursor);
        if (is_first || log_cursor_compare(&wanted, &loop->start) < 0)
            loop->start = wanted;
        is_first = false;
    }
}

static enum err ingest_open(struct sink_loop *loop, struct errmsg *msg)
{
    enum err err = source_open(loop->source, &loop->cursor, msg);
    if (err)
        return err;
    start_find(loop);
    err = source_start(loop->source, &loop->start, msg);
    if (err)
        return err;
    loop->is_source_open = true;
    LOG_INFO("reading the broker's log", LOG_TEXT("log", loop->config->broker_log), LOG_HEX("broker", loop->start.broker_id),
             LOG_U64("epoch", loop->start.position.epoch), LOG_U64("sequence", loop->start.position.sequence));
    source_state_set(loop, SOURCE_READING, NULL);
    return ERR_OK;
}

static void watermark_set(struct sink_loop *loop, int64_t wall)
{
    if (wall > __atomic_load_n(&loop->watermark_ns, __ATOMIC_RELAXED))
        __atomic_store_n(&loop->watermark_ns, wall, __ATOMIC_RELAXED);
}

/* A record is stored: what the metrics and the log lines tell of it. */
static void item_trace(struct sink_loop *loop, const struct record *rec)
{
    struct trace trace = {.latency_ns = clock_wall() - rec->received_ns, .is_set = true};
    if (trace.latency_ns < 0)
        trace.latency_ns = 0;
    histogram_record(&loop->stats.latency, (uint64_t)trace.latency_ns);
    record_correlation_text(trace.correlation, rec);
    if (!loop->batch_slowest.is_set || trace.latency_ns > loop->batch_slowest.latency_ns)
        loop->batch_slowest = trace;
    loop->batch_newest = trace;
    LOG_DEBUG("record stored", LOG_STR("device", rec->device), LOG_STR("topic", rec->topic), LOG_TEXT("correlation", trace.correlation),
              LOG_U64("epoch", loop->item.position.epoch), LOG_U64("sequence", loop->item.position.sequence),
              LOG_DURATION("latency", trace.latency_ns));
}

static void traces_publish(struct sink_loop *loop, mono_ns now)
{
    if (!loop->batch_newest.is_set)
        return;
    pthread_mutex_lock(&loop->mutex);
    bool is_over = now - loop->slowest_at >= TRACE_WINDOW_NS;
    loop->newest = loop->batch_newest;
    if (!loop->slowest.is_set || is_over || loop->batch_slowest.latency_ns > loop->slowest.latency_ns)
        loop->slowest = loop->batch_slowest;
    pthread_mutex_unlock(&loop->mutex);
    if (is_over)
        loop->slowest_at = now;
    loop->batch_newest.is_set = loop->batch_slowest.is_set = false;
}

/* Returns 0 when the item is done with, ERR_FULL when it must come again after a flush, ERR_VERSION when reading cannot go on. */
static enum err item_handle(struct sink_loop *loop)
{
    struct record rec;
    enum err err = record_decode(&rec, loop->item.bytes);
    if (err == ERR_VERSION)
        return err;
    if (err) {
        counter_inc(&loop->stats.bad_records);
        LOG_ERROR("a record of the log cannot be decoded", LOG_U64("epoch", loop->item.position.epoch),
                  LOG_U64("sequence", loop->item.position.sequence), LOG_ERR("error", err));
        return ERR_OK;
    }
    if (rec.type != RECORD_PUBLISH || (rec.partition_count == 0 && rec.codec == RECORD_CODEC_NONE)) {
        counter_inc(&loop->stats.not_telemetry);
        return ERR_OK;
    }
    struct sink_partition *sp = &loop->current[murmur2_partition(rec.device, (uint32_t)loop->config->partitions)];
    if (!sp->part) {
        counter_inc(&loop->stats.skipped);
        return ERR_OK;
    }
    const struct partition_record_id id = {loop->item.broker_id, loop->item.position};
    pthread_mutex_lock(&sp->state);
    err = partition_add_record(sp->part, &rec, id, clock_wall());
    pthread_mutex_unlock(&sp->state);
    if (err == ERR_FULL || err == ERR_NOMEM)
        return ERR_FULL;
    if (err) {
        counter_inc(&loop->stats.skipped);
        return ERR_OK;
    }
    item_trace(loop, &rec);
    loop->last_received_ns = rec.received_ns;
    return ERR_OK;
}

/* Up to INGEST_BATCH records. Returns 0 when there may be more at once, ERR_AGAIN when the source is dry, ERR_FULL, or what ended the
 * source. */
static enum err ingest_batch(struct sink_loop *loop, struct errmsg *msg)
{
    for (int i = 0; i < INGEST_BATCH; i++) {
        if (!loop->has_item) {
            enum err err = source_next(loop->source, &loop->item, msg);
            if (err)
                return err;
            loop->has_item = true;
            loop->bytes_read += loop->item.bytes.size;
            counter_inc(&loop->stats.records);
        }
        enum err err = item_handle(loop);
        if (err == ERR_VERSION)
            return err_set(msg, err, "record %u/%" PRIu64 " is of a type that this version does not know", loop->item.position.epoch,
                           loop->item.position.sequence);
        if (err)
            return err;
        loop->has_item = false;
    }
    return ERR_OK;
}

static void flusher_wake(struct sink_loop *loop, struct sink_partition *sp)
{
    pthread_mutex_lock(&loop->mutex);
    sp->is_flush_wanted = true;
    pthread_cond_broadcast(&loop->work);
    pthread_mutex_unlock(&loop->mutex);
}

/* One partition's turn: keep its age, seal when it is time, hand it to the flusher. */
static void partition_turn(struct sink_loop *loop, size_t index, const struct log_cursor_value *read, mono_ns now, bool is_full)
{
    struct sink_partition *sp = &loop->current[index];
    struct partition *part = sp->part;
    size_t share = (size_t)(loop->config->head_memory / loop->config->partitions);
    bool is_sealed = false;
    if (!part)
        return;
    pthread_mutex_lock(&sp->state);
    if (partition_is_failed(part) || partition_is_empty(part))
        loop->requests[index] = REQUEST_DONE;
    if (loop->requests[index] == REQUEST_WAIT && !partition_is_flushing(part))
        loop->requests[index] = REQUEST_DONE;
    if (partition_is_empty(part))
        sp->dirty_since = 0;
    else if (sp->dirty_since == 0)
        sp->dirty_since = now;
    const struct quarantine *quarantine = partition_quarantine(part);
    uint64_t quarantined = quarantine->gathered_count + quarantine->taken_count;
    sp->quarantine_since = quarantined == 0 ? 0 : sp->quarantine_since ? sp->quarantine_since : now;
    queue_stats_set(&loop->quarantine_queues[index], quarantined, quarantine->gathered.size + quarantine->taken.size, sp->quarantine_since);
    size_t bytes = partition_head_bytes(part);
    bool is_time = sp->dirty_since != 0 && now - sp->dirty_since >= loop->config->flush_interval;
    if ((is_time || is_full || bytes >= share / 2 || loop->requests[index] == REQUEST_SEAL) && partition_seal(part, read)) {
        is_sealed = true;
        sp->dirty_since = 0;
        if (loop->requests[index] == REQUEST_SEAL)
            loop->requests[index] = REQUEST_WAIT;
    } else if (!partition_is_flushing(part) && partition_quarantine(part)->gathered.size >= QUARANTINE_TAKE_SIZE) {
        is_sealed = quarantine_take(partition_quarantine(part));
    }
    partition_refresh_gauges(part);
    const struct partition_gauges *gauges = partition_get_gauges(part);
    queue_stats_set(&loop->head_queues[index], (uint64_t)gauges->head_rows.value, (uint64_t)gauges->head_bytes.value,
                    sp->dirty_since ? sp->dirty_since : now);
    pthread_mutex_unlock(&sp->state);
    if (is_sealed)
        flusher_wake(loop, sp);
}

/* Give back to the source what every partition has committed. */
static void cursor_advance(struct sink_loop *loop)
{
    struct log_cursor_value read, least;
    struct errmsg msg;
    source_position(loop->source, &read);
    least = read;
    for (int64_t i = 0; i < loop->config->partitions; i++) {
        struct sink_partition *sp = &loop->current[i];
        struct log_cursor_value position = loop->start;
        if (sp->part) {
            pthread_mutex_lock(&sp->state);
            position = partition_position(sp->part, &read);
            pthread_mutex_unlock(&sp->state);
            position = partition_later(&position, &loop->start);
        }
        if (log_cursor_compare(&position, &least) < 0)
            least = position;
    }
    if (least.position.sequence == 0 || log_cursor_compare(&least, &loop->cursor) <= 0)
        return;
    enum err err = source_commit(loop->source, &least, &msg);
    if (err) {
        LOG_ERROR("cannot store the cursor", LOG_TEXT("detail", msg.text));
        source_state_set(loop, SOURCE_FAILED, &msg);
        return;
    }
    loop->cursor = least;
    counter_inc(&loop->stats.cursor_commits);
}

/* A requested flush: begins when the source has been dry for a moment, so that what was acknowledged before the request is in it. */
static void requests_turn(struct sink_loop *loop, mono_ns now)
{
    pthread_mutex_lock(&loop->mutex);
    uint64_t requested = loop->flush_requested, begun = loop->flush_begun, handled = loop->flush_handled;
    pthread_mutex_unlock(&loop->mutex);
    if (begun > handled) {
        for (int64_t i = 0; i < loop->config->partitions; i++) {
            if (loop->requests[i] != REQUEST_DONE && loop->current[i].part)
                return;
        }
        cursor_advance(loop);
        pthread_mutex_lock(&loop->mutex);
        loop->flush_handled = begun;
        pthread_cond_broadcast(&loop->done);
        pthread_mutex_unlock(&loop->mutex);
        loop->request_at = 0;
        return;
    }
    if (requested == begun)
        return;
    if (loop->request_at == 0)
        loop->request_at = now;
    if (loop->dry_at - loop->request_at < CAUGHT_UP_NS && now - loop->request_at < CAUGHT_UP_MAX_NS)
        return;
    for (int64_t i = 0; i < loop->config->partitions; i++)
        loop->requests[i] = REQUEST_SEAL;
    pthread_mutex_lock(&loop->mutex);
    loop->flush_begun = requested;
    pthread_mutex_unlock(&loop->mutex);
}

static void lag_refresh(struct sink_loop *loop, mono_ns now)
{
    uint64_t lag = source_lag(loop->source), records = counter_get(&loop->stats.records);
    int64_t age = lag > 0 && loop->last_received_ns > 0 ? clock_wall() - loop->last_received_ns : 0;
    queue_stats_set(&loop->stats.lag, lag, records > 0 ? lag * (loop->bytes_read / records) : 0, now - (age > 0 ? age : 0));
}

/* What the turn's batch met; true when the loop should sleep. */
static bool batch_result(struct sink_loop *loop, enum err err, const struct errmsg *msg, mono_ns now)
{
    if (!err) {
        watermark_set(loop, loop->last_received_ns);
        return false;
    }
    if (err == ERR_AGAIN) {
        loop->dry_at = now;
        watermark_set(loop, clock_wall() - IDLE_MAX_NS * 2);
        return true;
    }
    if (err == ERR_FULL) {
        counter_inc(&loop->stats.head_full);
        return true;
    }
    if (err == ERR_NOMEM) { /* the source stands where it stood */
        LOG_WARNING("reading waits for memory", LOG_TEXT("detail", msg->text));
        return true;
    }
    if (err == ERR_GAP) {
        struct source_gap gap = source_get_gap(loop->source);
        struct errmsg text;
        err_set(&text, err, "records %" PRIu64 " to %" PRIu64 " of the broker's log are gone and were not read", gap.from, gap.to - 1);
        LOG_ERROR("a range of the log is gone", LOG_U64("from_sequence", gap.from), LOG_U64("to_sequence", gap.to - 1),
                  LOG_BOOL("accepted", loop->config->accept_gap));
        if (loop->config->accept_gap) {
            source_accept_gap(loop->source);
            counter_add(&loop->stats.gap_records, gap.to - gap.from);
            return false;
        }
        LOG_ERROR("reading stops; start with --accept-gap to go on behind the gap");
        source_state_set(loop, SOURCE_GAP, &text);
        return true;
    }
    LOG_ERROR("reading stops", LOG_ERR("error", err), LOG_TEXT("detail", msg->text));
    source_state_set(loop, SOURCE_FAILED, msg);
    return true;
}

static void loop_turn(struct sink_loop *loop, int64_t *idle_ns)
{
    struct errmsg msg = {""};
    struct log_cursor_value read;
    bool is_idle = true, is_full = false;
    mono_ns now = clock_mono();
    if (loop->source_state == SOURCE_READING) {
        enum err err = ingest_batch(loop, &msg);
        is_idle = batch_result(loop, err, &msg, now);
        is_full = err == ERR_FULL;
        traces_publish(loop, now);
    }
    source_position(loop->source, &read);
    for (int64_t i = 0; i < loop->config->partitions; i++)
        partition_turn(loop, (size_t)i, &read, now, is_full);
    requests_turn(loop, now);
    lag_refresh(loop, now);
    if (__atomic_exchange_n(&loop->is_published, false, __ATOMIC_ACQUIRE) || now - loop->cursor_at >= CURSOR_INTERVAL_NS) {
        cursor_advance(loop);
        loop->cursor_at = now;
    }
    if (!is_idle) {
        *idle_ns = IDLE_MIN_NS;
        return;
    }
    sleep_ns(is_full ? IDLE_MIN_NS : *idle_ns);
    *idle_ns = *idle_ns * 2 < IDLE_MAX_NS ? *idle_ns * 2 : IDLE_MAX_NS;
}

static void *ingest_main(void *arg)
{
    struct sink_loop *loop = arg;
    struct errmsg msg, said = {""};
    int64_t idle_ns = IDLE_MIN_NS;
    pthread_setname_np(pthread_self(), "sink-ingest");
    while (loop->source_state == SOURCE_WAITING && !is_stopping(loop)) {
        enum err err = ingest_open(loop, &msg);
        if (!err)
            break;
        if (strcmp(msg.text, said.text) != 0)
            LOG_NOTICE("waiting for the broker's log", LOG_TEXT("detail", msg.text));
        said = msg;
        bool is_waiting = err == ERR_AGAIN || err == ERR_LOCKED;
        source_state_set(loop, is_waiting ? SOURCE_WAITING : SOURCE_FAILED, &msg);
        /* Nothing is read before the source is open: a flush has nothing to do. */
        pthread_mutex_lock(&loop->mutex);
        loop->flush_begun = loop->flush_handled = loop->flush_requested;
        pthread_cond_broadcast(&loop->done);
        pthread_mutex_unlock(&loop->mutex);
        sleep_ns(OPEN_RETRY_NS);
    }
    while (!is_stopping(loop))
        loop_turn(loop, &idle_ns);
    return NULL;
}

/* ---- flusher ---- */

/* Whose turn it is: in turn, so that one on a full disk does not hold up the others. NULL: nobody's now; *wait_ns_out is how long until the
 * next retry, 0: nobody waits for one. */
static struct sink_partition *flusher_next(struct sink_loop *loop, int64_t *wait_ns_out)
{
    size_t count = (size_t)loop->config->partitions;
    mono_ns now = clock_mono();
    *wait_ns_out = 0;
    for (size_t n = 0; n < count; n++) {
        struct sink_partition *sp = &loop->current[(loop->flush_at + n) % count];
        if (!sp->is_flush_wanted)
            continue;
        if (!sp->is_retried || sp->retry_at <= now) {
            loop->flush_at = (size_t)(sp - loop->current) + 1;
            return sp;
        }
        if (*wait_ns_out == 0 || sp->retry_at - now < *wait_ns_out)
            *wait_ns_out = sp->retry_at - now;
    }
    return NULL;
}

/* Everything that was sealed or taken. */
static enum err flush_run(struct sink_partition *sp, struct errmsg *msg)
{
    struct partition *part = sp->part;
    pthread_mutex_lock(&sp->commit);
    pthread_mutex_lock(&sp->state);
    bool is_flush = partition_is_flushing(part);
    pthread_mutex_unlock(&sp->state);
    enum err err = is_flush ? partition_flush_write(part, msg) : partition_quarantine_write(part, msg);
    if (!err && is_flush)
        err = partition_flush_commit(part, msg);
    if (!err) {
        pthread_mutex_lock(&sp->state);
        if (is_flush)
            partition_flush_publish(part);
        else
            quarantine_done(partition_quarantine(part));
        pthread_mutex_unlock(&sp->state);
    }
    pthread_mutex_unlock(&sp->commit);
    return err;
}

static void flush_result(struct sink_loop *loop, struct sink_partition *sp, enum err err, const struct errmsg *msg)
{
    bool is_retried = !partition_is_failed(sp->part) && err != ERR_OK;
    if (err) {
        counter_inc(&loop->stats.commit_failures);
        LOG_ERROR("flush failed", LOG_TEXT("directory", partition_directory(sp->part)), LOG_ERR("error", err),
                  LOG_TEXT("detail", msg->text), LOG_BOOL("retried", is_retried));
    }
    pthread_mutex_lock(&loop->mutex);
    sp->is_flush_wanted |= is_retried;
    sp->is_retried = is_retried;
    sp->retry_at = clock_mono() + SPACE_RETRY_NS;
    if (err != ERR_CLOSED) { /* then the first reason stands */
        sp->err = err;
        sp->error = *msg;
    }
    pthread_mutex_unlock(&loop->mutex);
    __atomic_store_n(&loop->is_published, true, __ATOMIC_RELEASE);
}

static void *flusher_main(void *arg)
{
    struct sink_loop *loop = arg;
    pthread_setname_np(pthread_self(), "sink-flush");
    pthread_mutex_lock(&loop->mutex);
    while (!loop->is_flusher_ending) {
        int64_t wait_ns;
        struct sink_partition *sp = flusher_next(loop, &wait_ns);
        if (!sp && wait_ns > 0)
            cond_wait_ns(&loop->work, &loop->mutex, wait_ns);
        else if (!sp)
            pthread_cond_wait(&loop->work, &loop->mutex);
        if (!sp)
            continue;
        sp->is_flush_wanted = false;
        pthread_mutex_unlock(&loop->mutex);
        struct errmsg msg = {""};
        mono_ns begin = clock_mono();
        enum err err = flush_run(sp, &msg);
        histogram_record(&loop->stats.commit_latency, (uint64_t)(clock_mono() - begin));
        flush_result(loop, sp, err, &msg);
        pthread_mutex_lock(&loop->mutex);
    }
    pthread_mutex_unlock(&loop->mutex);
    return NULL;
}

/* ---- compactor ---- */

/* One merge of one partition. Returns true when there may be more to do. */
static bool compact_one(struct sink_loop *loop, struct sink_partition *sp, const struct compactor_options *options, bool *failed_out)
{
    struct errmsg msg = {""};
    pthread_mutex_lock(&sp->commit);
    pthread_mutex_lock(&sp->state);
    struct partition_compaction *compaction = partition_compact_begin(sp->part, options);
    pthread_mutex_unlock(&sp->state);
    pthread_mutex_unlock(&sp->commit);
    if (!compaction)
        return false;
    enum err err = partition_compact_write(compaction, &msg);
    pthread_mutex_lock(&sp->commit);
    if (!err)
        err = partition_compact_commit(compaction, &msg);
    pthread_mutex_lock(&sp->state);
    if (err)
        partition_compact_abort(compaction);
    else
        partition_compact_publish(compaction);
    pthread_mutex_unlock(&sp->state);
    pthread_mutex_unlock(&sp->commit);
    if (err) {
        counter_inc(&loop->stats.compaction_failures);
        if (partition_is_failed(sp->part)) {
            pthread_mutex_lock(&loop->mutex);
            sp->err = err;
            sp->error = msg;
            pthread_mutex_unlock(&loop->mutex);
        }
        LOG_ERROR("compaction failed", LOG_TEXT("directory", partition_directory(sp->part)), LOG_ERR("error", err),
                  LOG_TEXT("detail", msg.text));
    }
    *failed_out = err != ERR_OK;
    return !err;
}

static void *compactor_main(void *arg)
{
    struct sink_loop *loop = arg;
    struct compactor_options options = {.output_size_max = 0};
    mono_ns *retry_at = calloc(loop->partition_count, sizeof *retry_at);
    pthread_setname_np(pthread_self(), "sink-compact");
    if (!retry_at)
        return NULL;
    if (setpriority(PRIO_PROCESS, (id_t)gettid(), 10) != 0)
        LOG_NOTICE("the compactor runs at normal priority");
    for (size_t i = 0; i < COMPACTOR_LEVEL_MAX; i++)
        options.fan_in[i] = (size_t)loop->config->compaction_fan_in;
    while (!is_stopping(loop)) {
        bool is_busy = false;
        for (size_t i = 0; i < loop->partition_count && !is_stopping(loop); i++) {
            bool failed = false;
            if (!loop->partitions[i].part || clock_mono() < retry_at[i])
                continue;
            is_busy |= compact_one(loop, &loop->partitions[i], &options, &failed);
            if (failed)
                retry_at[i] = clock_mono() + COMPACT_RETRY_NS;
        }
        for (int64_t slept = 0; !is_busy && slept < COMPACT_INTERVAL_NS && !is_stopping(loop); slept += 50 * NS_PER_MS)
            sleep_ns(50 * NS_PER_MS);
    }
    free(retry_at);
    return NULL;
}

/* ---- life ---- */

static enum err thread_start(pthread_t *thread, bool *has, void *(*main_function)(void *), struct sink_loop *loop, struct errmsg *msg)
{
    int error = pthread_create(thread, NULL, main_function, loop);
    *has = error == 0;
    return error ? err_set(msg, ERR_NOMEM, "cannot start a thread: %s", strerror(error)) : ERR_OK;
}

enum err sink_loop_start(struct sink_loop *loop, struct errmsg *msg)
{
    /* The first look here, so that a second sink is told and ends. */
    enum err err = ingest_open(loop, msg);
    if (err && err != ERR_AGAIN)
        return err;
    err = thread_start(&loop->flusher, &loop->has_flusher, flusher_main, loop, msg);
    if (!err)
        err = thread_start(&loop->ingest, &loop->has_ingest, ingest_main, loop, msg);
    if (!err && loop->config->compaction)
        err = thread_start(&loop->compactor, &loop->has_compactor, compactor_main, loop, msg);
    return err;
}

/* Whether something is left to be written; sealed then, unless an earlier seal has to go first. */
static bool final_seal(struct sink_partition *sp, const struct log_cursor_value *read)
{
    pthread_mutex_lock(&sp->state);
    bool is_left = !partition_is_failed(sp->part) && !partition_is_empty(sp->part);
    if (is_left && !partition_is_flushing(sp->part) && !partition_quarantine(sp->part)->is_writing)
        is_left = partition_seal(sp->part, read);
    pthread_mutex_unlock(&sp->state);
    return is_left;
}

/* Our threads are gone: what is left of a flush, then the rest. Queries still run, so the locks are needed as ever. */
static enum err final_flush(struct sink_loop *loop, struct sink_partition *sp, const struct log_cursor_value *read)
{
    enum err err = sp->err;
    for (int i = 0; i < 2 && final_seal(sp, read); i++) {
        struct errmsg msg = {""};
        err = flush_run(sp, &msg);
        flush_result(loop, sp, err, &msg);
    }
    return err;
}

enum err sink_loop_stop(struct sink_loop *loop)
{
    pthread_mutex_lock(&loop->mutex);
    __atomic_store_n(&loop->is_stopping, true, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&loop->done);
    pthread_mutex_unlock(&loop->mutex);
    if (loop->has_ingest)
        pthread_join(loop->ingest, NULL);
    if (loop->has_compactor)
        pthread_join(loop->compactor, NULL);
    loop->has_ingest = loop->has_compactor = false;
    if (loop->has_flusher) {
        pthread_mutex_lock(&loop->mutex);
        loop->is_flusher_ending = true;
        pthread_cond_broadcast(&loop->work);
        pthread_mutex_unlock(&loop->mutex);
        pthread_join(loop->flusher, NULL);
    }
    loop->has_flusher = false;
    enum err err = ERR_OK;
    struct log_cursor_value read;
    source_position(loop->source, &read);
    for (int64_t i = 0; i < loop->config->partitions; i++) {
        enum err part_err = loop->current[i].part ? final_flush(loop, &loop->current[i], &read) : ERR_OK;
        err = err ? err : part_err;
    }
    if (loop->is_source_open)
        cursor_advance(loop);
    return err;
}

/* ---- questions ---- */

struct sink_partition *sink_loop_partitions(struct sink_loop *loop, size_t *count_out)
{
    *count_out = loop->partition_count;
    return loop->partitions;
}

int64_t sink_loop_watermark(const struct sink_loop *loop) { return __atomic_load_n(&loop->watermark_ns, __ATOMIC_RELAXED); }

enum err sink_loop_flush(struct sink_loop *loop, int64_t timeout_ns)
{
    mono_ns until = clock_mono() + timeout_ns;
    pthread_mutex_lock(&loop->mutex);
    uint64_t request = ++loop->flush_requested;
    while (loop->flush_handled < request && !loop->is_stopping && clock_mono() < until)
        cond_wait_ns(&loop->done, &loop->mutex, 50 * NS_PER_MS);
    enum err err = loop->flush_handled >= request ? ERR_OK : loop->is_stopping ? ERR_CLOSED : ERR_AGAIN;
    pthread_mutex_unlock(&loop->mutex);
    return err;
}

struct health {
    struct buf *out;
    enum sink_health worst;
    size_t count;
};

static void problem(struct health *health, enum sink_health health_is, const char *what, const char *detail)
{
    buf_put_string(health->out, health->count++ ? "," : "");
    buf_put_string(health->out, "{\"what\":");
    buf_put_json_string(health->out, span_of_string(what));
    buf_put_string(health->out, ",\"detail\":");
    buf_put_json_string(health->out, span_of_string(detail));
    buf_put_string(health->out, "}");
    if (health_is > health->worst)
        health->worst = health_is;
}

static void health_partitions(struct sink_loop *loop, struct health *health)
{
    uint64_t corrupt_segments = 0, corrupt_slots = 0;
    for (size_t i = 0; i < loop->partition_count; i++) {
        struct sink_partition *sp = &loop->partitions[i];
        char what[64];
        snprintf(what, sizeof what, "partition %u of %u", sp->index, sp->count);
        if (!sp->part || partition_is_failed(sp->part))
            problem(health, SINK_FAILED, what, sp->error.text);
        else if (sp->is_retried)
            problem(health, SINK_DEGRADED, what, sp->error.text);
        if (sp->part) {
            corrupt_segments += counter_get(&partition_get_stats(sp->part)->corrupt_segments);
            corrupt_slots += counter_get(&partition_get_stats(sp->part)->corrupt_slots);
        }
    }
    char detail[96];
    if (corrupt_segments > 0) {
        snprintf(detail, sizeof detail, "%" PRIu64 " could not be opened and are left out of answers", corrupt_segments);
        problem(health, SINK_FAILED, "segments", detail);
    }
    if (loop->damage.text[0] != '\0')
        problem(health, SINK_FAILED, "chunks", loop->damage.text);
    if (corrupt_slots > 0) {
        snprintf(detail, sizeof detail, "%" PRIu64 " did not hold at the start; their twins did, and they were rewritten", corrupt_slots);
        problem(health, SINK_DEGRADED, "manifests", detail);
    }
}

static uint64_t quarantined_count(struct sink_loop *loop)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < loop->partition_count; i++) {
        for (int reason = 1; loop->partitions[i].part && reason < REJECT_COUNT; reason++)
            sum += counter_get(&partition_get_stats(loop->partitions[i].part)->quarantined[reason]);
    }
    return sum;
}

void sink_loop_note_damage(struct sink_loop *loop, const char *text)
{
    LOG_ERROR("a damaged chunk is left out of an answer", LOG_TEXT("detail", text));
    pthread_mutex_lock(&loop->mutex);
    if (loop->damage.text[0] == '\0')
        err_set(&loop->damage, ERR_CORRUPT, "left out of answers: %s", text);
    pthread_mutex_unlock(&loop->mutex);
}

enum sink_health sink_loop_health(struct sink_loop *loop, struct buf *out)
{
    static const char *const states[] = {"waiting", "reading", "gap", "failed"};
    static const char *const names[] = {"ok", "degraded", "failed"};
    struct buf problems;
    struct health health = {.out = &problems};
    char watermark[CLOCK_TEXT_SIZE];
    buf_init(&problems, 1 << 20);
    pthread_mutex_lock(&loop->mutex);
    enum source_state state = loop->source_state;
    if (state == SOURCE_WAITING)
        problem(&health, SINK_DEGRADED, "source", loop->source_error.text);
    else if (state != SOURCE_READING)
        problem(&health, SINK_FAILED, "source", loop->source_error.text);
    health_partitions(loop, &health);
    pthread_mutex_unlock(&loop->mutex);
    clock_format(watermark, sink_loop_watermark(loop), 3);
    buf_printf(out,
               "{\"status\":\"%s\",\"source\":{\"state\":\"%s\",\"lag_records\":%" PRIu64 "},\"watermark\":\"%s\",\"partitions\":%" PRId64
               ",\"quarantined\":%" PRIu64 ",\"problems\":[",
               names[health.worst], states[state], source_lag(loop->source), watermark, loop->config->partitions, quarantined_count(loop));
    buf_put_span(out, buf_span(&problems));
    buf_put_string(out, "]}\n");
    buf_deinit(&problems);
    return health.worst;
}
