/* One life of the sink: a source over the broker's log, the partitions, and the flushes and compactions between them, step by step. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/check.h"
#include "common/murmur2.h"
#include "sink/source/partition.h"
#include "sink/source/source_log.h"
#include "tests/sim/sim.h"

#define SIM_LOG_DIR "log"
#define SIM_SINK_DIR "sink"
#define HEAD_BYTES 400000

enum flush_stage { FLUSH_NONE, FLUSH_SEALED, FLUSH_WRITTEN, FLUSH_COMMITTED };

struct sim_sink {
    struct source *source;
    struct series *series;
    struct payload_decoder *decoder;
    struct partition *partitions[SIM_PARTITIONS_MAX];
    enum flush_stage stages[SIM_PARTITIONS_MAX];
    uint64_t newest[SIM_PARTITIONS_MAX]; /* per partition: record added last in this life */
    uint64_t opened[SIM_PARTITIONS_MAX]; /* per partition: the next record wanted, as its manifest said at the start of this life */
    struct source_item item;             /* found a full head: again after a flush */
    bool has_item;
    bool started; /* the source is open and reads */
    bool failed;
    struct log_cursor_value start, cursor; /* where this life began to read, and what was given back last */
};

/* Over lives, of one run: per partition and position committed, whether the record at that position was in the head when it was sealed. */
#define SEALED_MAX 4096
#define SEALED_WITHOUT 1
#define SEALED_WITH 2
#define SEALED_BOTH 3
static uint8_t sealed[SIM_PARTITIONS_MAX][SEALED_MAX];
static uint64_t newest_ever; /* over lives, of one run: what is at or below it is a replay */

static bool fail(struct sim *sim, enum err err, const struct errmsg *msg, const char *what)
{
    /* A full or failing disk ends a life; damage does not come from crashes. */
    if (err == ERR_CORRUPT || err == ERR_VERSION || err == ERR_GAP)
        sim_found(sim, "sink: %s: %s: %s", what, err_text(err), msg->text);
    if (sim->calm && err != ERR_AGAIN)
        sim_found(sim, "sink: %s on a healthy disk: %s: %s", what, err_text(err), msg->text);
    sim_trace(sim, "sink: %s: %s: %s", what, err_text(err), msg->text);
    sim->sink->failed = true;
    return false;
}

static struct payload_rules rules(void)
{
    return (struct payload_rules){.time_names = {SPAN_LITERAL("ts")}, .time_name_count = 1, .time_unit = EVENT_TIME_AUTO};
}

static bool open_partitions(struct sim *sim)
{
    struct sim_sink *sink = sim->sink;
    struct errmsg msg = {""};
    char directory[64];
    for (uint32_t i = 0; i < sim->config.partition_count; i++) {
        snprintf(directory, sizeof directory, SIM_SINK_DIR "/%u", i);
        struct partition_options options = {
            .fs = sim_fs_fs(sim->fs),
            .directory = directory,
            .partition_count = sim->config.partition_count,
            .partition_index = i,
            .head_size_max = HEAD_BYTES,
            .quarantine_size_max = 1 << 20,
            .hash_seed = sim->seed,
            .series = sink->series,
            .decoder = sink->decoder,
        };
        enum err err = partition_open(&sink->partitions[i], &options, &msg);
        if (err)
            return fail(sim, err, &msg, "a partition does not open");
        sink->opened[i] = partition_committed(sink->partitions[i]).position.sequence;
    }
    return true;
}

bool sim_sink_start(struct sim *sim)
{
    struct sim_sink *sink = sim->sink = calloc(1, sizeof *sink);
    CHECK(sink);
    if (sim->step == 0) {
        newest_ever = 0;
        memset(sealed, 0, sizeof sealed);
    }
    struct series_limits limits = {INT64_MAX, INT64_MAX, INT64_MAX};
    struct payload_rules payload_rules = rules();
    sim_fs_set_process(sim->fs, 2);
    sink->series = series_new(&limits, sim->seed);
    sink->decoder = payload_new(&payload_rules);
    CHECK(sink->series);
    CHECK(sink->decoder);
    enum err err = fs_mkdir(sim_fs_fs(sim->fs), SIM_SINK_DIR);
    if ((err && err != ERR_EXISTS) || !open_partitions(sim)) {
        sim_sink_die(sim);
        return false;
    }
    sink->source = source_log_new(sim_fs_fs(sim->fs), SIM_LOG_DIR);
    CHECK(sink->source);
    return true;
}

void sim_sink_die(struct sim *sim)
{
    struct sim_sink *sink = sim->sink;
    sim_fs_kill_process(sim->fs, 2);
    for (uint32_t i = 0; i < sim->config.partition_count; i++)
        partition_close(sink->partitions[i]);
    source_free(sink->source);
    series_free(sink->series);
    payload_free(sink->decoder);
    free(sink);
    sim->sink = NULL;
}

/* The least position over the partitions, each with what it has committed or what the cursor says, whichever is later (LOG 25). */
static struct log_cursor_value start_position(const struct sim *sim, const struct log_cursor_value *cursor)
{
    struct log_cursor_value least = {0};
    for (uint32_t i = 0; i < sim->config.partition_count; i++) {
        struct log_cursor_value committed = partition_committed(sim->sink->partitions[i]);
        struct log_cursor_value from = partition_later(&committed, cursor);
        if (i == 0 || log_cursor_compare(&from, &least) < 0)
            least = from;
    }
    return least;
}

static bool start_source(struct sim *sim)
{
    struct errmsg msg = {""};
    struct log_cursor_value cursor;
    enum err err = source_open(sim->sink->source, &cursor, &msg);
    if (err == ERR_AGAIN)
        return false;
    if (!err) {
        struct log_cursor_value from = start_position(sim, &cursor);
        sim_trace(sim, "sink: starts at %lu (segment %lu, offset %lu), cursor at %lu (segment %lu, offset %lu)",
                  (unsigned long)from.position.sequence, (unsigned long)from.place.generation, (unsigned long)from.place.offset,
                  (unsigned long)cursor.position.sequence, (unsigned long)cursor.place.generation, (unsigned long)cursor.place.offset);
        sim->sink->start = from;
        sim->sink->cursor = cursor;
        err = source_start(sim->sink->source, &from, &msg);
    }
    if (err)
        return fail(sim, err, &msg, "the source does not open");
    sim->sink->started = true;
    return true;
}

static void note_record(struct sim *sim, const struct record *rec, uint64_t sequence)
{
    uint32_t id;
    if (!sim_ledger_parse(&id, rec->payload))
        sim_found(sim, "the log holds a payload that nobody published");
    sim_ledger_on_record(sim, id, sequence <= newest_ever);
    if (sequence > newest_ever)
        newest_ever = sequence;
    sim_trace(sim, "sink: record %lu is message %u, received at %" PRId64, (unsigned long)sequence, id, rec->received_ns);
}

/* What the partition had committed when this life began is a duplicate, and nothing else is (LOG 28). */
static void check_mark(struct sim *sim, uint32_t index, uint64_t duplicates_before)
{
    struct sim_sink *sink = sim->sink;
    bool is_duplicate = counter_get(&partition_get_stats(sink->partitions[index])->duplicates) > duplicates_before;
    uint64_t sequence = sink->item.position.sequence;
    uint64_t wanted = sink->opened[index];
    /* A position is that of the record in hand: whether this one was in the head at the seal, we have noted. */
    uint8_t noted = wanted < SEALED_MAX ? sealed[index][wanted] : SEALED_BOTH;
    bool is_known = wanted && (sequence != wanted || (noted && noted != SEALED_BOTH)); /* 0: sealed with the oldest record in hand */
    sink->newest[index] = sequence;
    if (is_known && is_duplicate != (sequence < wanted || (sequence == wanted && noted == SEALED_WITH)))
        sim_found(sim, "record %lu is %s as a duplicate, and partition %u had committed up to %lu", (unsigned long)sequence,
                  is_duplicate ? "dropped" : "not dropped", index, (unsigned long)sink->opened[index]);
}

/* Take one record. False when there is none, or its partition must be flushed first. */
static bool read_record(struct sim *sim)
{
    struct sim_sink *sink = sim->sink;
    struct errmsg msg = {""};
    struct record rec;
    if (!sink->has_item) {
        enum err err = source_next(sink->source, &sink->item, &msg);
        if (err == ERR_AGAIN)
            return false;
        if (err)
            return fail(sim, err, &msg, "reading");
        sink->has_item = true;
    }
    enum err err = record_decode(&rec, sink->item.bytes);
    if (err)
        sim_found(sim, "record %lu does not decode", (unsigned long)sink->item.position.sequence);
    if (rec.type == RECORD_PUBLISH && rec.partition_count) {
        if (rec.partition_count != sim->config.partition_count || rec.partition != murmur2_partition(rec.device, rec.partition_count))
            sim_found(sim, "record %lu is in the wrong partition", (unsigned long)sink->item.position.sequence);
        struct partition_record_id id = {sink->item.broker_id, sink->item.position};
        uint64_t duplicates = counter_get(&partition_get_stats(sink->partitions[rec.partition])->duplicates);
        err = partition_add_record(sink->partitions[rec.partition], &rec, id, sim->wall);
        if (err == ERR_FULL)
            return false;
        if (err)
            return fail(sim, err, &msg, "adding a record");
        check_mark(sim, rec.partition, duplicates);
        note_record(sim, &rec, sink->item.position.sequence);
    }
    sink->has_item = false;
    return true;
}

/* The next step of a partition's flush. A full disk is tried again; anything else ends this life. */
static bool step_flush(struct sim *sim, uint32_t index)
{
    struct sim_sink *sink = sim->sink;
    struct partition *part = sink->partitions[index];
    struct errmsg msg = {""};
    struct log_cursor_value read;
    enum err err = ERR_OK;
    switch (sink->stages[index]) {
    case FLUSH_NONE:
        source_position(sink->source, &read);
        if (!partition_seal(part, &read))
            return false;
        if (read.position.sequence < SEALED_MAX)
            sealed[index][read.position.sequence] |= sink->newest[index] == read.position.sequence ? SEALED_WITH : SEALED_WITHOUT;
        sink->stages[index] = FLUSH_SEALED;
        return true;
    case FLUSH_SEALED:
        err = partition_flush_write(part, &msg);
        break;
    case FLUSH_WRITTEN:
        err = partition_flush_commit(part, &msg);
        break;
    case FLUSH_COMMITTED:
        partition_flush_publish(part);
        sink->stages[index] = FLUSH_NONE;
        return true;
    }
    if (err == ERR_NOSPACE && !sim->calm)
        return false;
    if (err)
        return fail(sim, err, &msg, "a flush");
    sink->stages[index]++;
    return true;
}

/* Where the cursor may stand. */
static struct log_cursor_value least_position(const struct sim_sink *sink, uint32_t partition_count)
{
    struct log_cursor_value read, least;
    source_position(sink->source, &read);
    least = read;
    for (uint32_t i = 0; i < partition_count; i++) {
        struct log_cursor_value position = partition_position(sink->partitions[i], &read);
        position = partition_later(&position, &sink->start);
        if (log_cursor_compare(&position, &least) < 0)
            least = position;
    }
    return least;
}

static bool commit_source(struct sim *sim)
{
    struct sim_sink *sink = sim->sink;
    struct errmsg msg = {""};
    struct log_cursor_value least = least_position(sink, sim->config.partition_count);
    if (least.position.sequence == 0 || log_cursor_compare(&least, &sink->cursor) <= 0)
        return false;
    sink->cursor = least;
    /* What a sync loses can be read until the power goes. */
    if (!sim->calm && sim->config.disk_faults && sim->config.power_faults && sim_chance(sim, 1, 4)) {
        sim_fs_fail(sim->fs, SIM_FS_SYNC, 1, ERR_IO, false);
        sim->power_loss_step = sim->step + 1 + sim_below(sim, 300);
    }
    enum err err = source_commit(sink->source, &least, &msg);
    return err ? fail(sim, err, &msg, "the cursor") : true;
}

static bool compact(struct sim *sim, uint32_t index)
{
    struct errmsg msg = {""};
    struct compactor_options options = {.fan_in = {2, 2}};
    if (sim->sink->stages[index] != FLUSH_NONE)
        return false;
    struct partition_compaction *compaction = partition_compact_begin(sim->sink->partitions[index], &options);
    if (!compaction)
        return false;
    enum err err = partition_compact_write(compaction, &msg);
    if (!err)
        err = partition_compact_commit(compaction, &msg);
    if (!err) {
        partition_compact_publish(compaction);
        return true;
    }
    partition_compact_abort(compaction);
    return err == ERR_NOSPACE && !sim->calm ? false : fail(sim, err, &msg, "a compaction");
}

bool sim_sink_step(struct sim *sim)
{
    struct sim_sink *sink = sim->sink;
    uint32_t index = (uint32_t)sim_below(sim, sim->config.partition_count);
    sim_fs_set_process(sim->fs, 2);
    if (sink->failed)
        return false;
    if (!sink->started)
        return start_source(sim);
    uint64_t what = sim_below(sim, 20);
    bool moved = what < 12                                                     ? read_record(sim)
                 : what < 16 && (sink->stages[index] || sim_chance(sim, 1, 6)) ? step_flush(sim, index)
                 : what == 16 && sim_chance(sim, 1, 4)                         ? commit_source(sim)
                 : what == 17 && sim_chance(sim, 1, 6)                         ? compact(sim, index)
                                                                               : false;
    if (moved)
        sim->progress++;
    if (sink->has_item && !sink->failed)
        step_flush(sim, index);
    return moved;
}

bool sim_sink_failed(struct sim *sim) { return sim->sink->failed; }

/* All that it has read is where it belongs, and the log knows. */
static bool is_settled(const struct sim_sink *sink, uint32_t partition_count)
{
    for (uint32_t i = 0; i < partition_count; i++)
        if (sink->stages[i] != FLUSH_NONE || !partition_is_empty(sink->partitions[i]))
            return false;
    struct log_cursor_value least = least_position(sink, partition_count);
    return least.position.sequence == 0 || log_cursor_compare(&least, &sink->cursor) <= 0;
}

bool sim_sink_is_quiet(struct sim *sim)
{
    struct sim_sink *sink = sim->sink;
    return sink->started && is_settled(sink, sim->config.partition_count) && !sink->has_item && !sink->failed &&
           source_lag(sink->source) == 0 && !read_record(sim);
}

/* --- reading back
 * ------------------------------------------------------------------------------------------------------------------------- */

struct collector {
    struct merge_source *sources[4096];
    size_t count;
};

static enum err collect_source(void *context, struct merge_source *source)
{
    struct collector *collector = context;
    CHECK(collector->count < sizeof collector->sources / sizeof *collector->sources);
    collector->sources[collector->count++] = source;
    return ERR_OK;
}

void sim_sink_read_device(struct sim *sim, uint8_t device, void *context, void (*on_row)(void *context, int64_t ts_ns, double value))
{
    char name[16];
    struct rows rows;
    static struct collector collector;
    collector.count = 0;
    sim_device_name(name, sizeof name, device);
    struct span id = span_of_string(name);
    const struct partition *part = sim->sink->partitions[murmur2_partition(id, sim->config.partition_count)];
    struct partition_view *view = partition_view_take(part, id, INT64_MIN, INT64_MAX);
    CHECK(view);
    enum err err = partition_view_sources(view, NULL, 0, &collector, collect_source);
    CHECK(err == ERR_OK);
    struct merge *merge = merge_new(collector.sources, collector.count, 1024);
    CHECK(merge);
    while ((err = merge_next(merge, &rows)) == ERR_OK && rows.row_count) {
        if (rows.column_count != 1 || !span_equal(rows.columns[0].name, SPAN_LITERAL("v")))
            sim_found(sim, "device %u has other columns than v", device);
        for (size_t i = 0; i < rows.row_count; i++)
            on_row(context, rows.times_ns[i], rows.columns[0].values[i]);
    }
    if (err)
        sim_found(sim, "reading device %u: %s", device, err_text(err));
    merge_free(merge);
    partition_view_free(view);
}
