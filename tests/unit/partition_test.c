/* A partition on a file system that forgets, beside a slow obvious model: the last write of each (device, metric, time).
 *
 * Records come one by one, flushes and compactions go step by step in any order that the locks allow, and the machine loses power, the
 * process is killed or the disk fails at any of them. After each reopening the test reads again from where the partition says, as the
 * sink's loop does, and the source has forgotten what was given back to it. Checked:
 *   - every answer, before and after a crash, is the model's: nothing lost, nothing twice, nothing from the future of the position;
 *   - at a reopening the stored rows are at least those of the records before the committed position;
 *   - what went to the quarantine before the position is in its file;
 *   - damage to one manifest loses nothing.
 * One seed makes one run; it is printed when it fails. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/check.h"
#include "common/logger.h"
#include "sink/source/partition.h"
#include "tests/lib/check_random.h"
#include "tests/lib/sim_fs.h"
#include "tests/lib/store_model.h"

#define DIRECTORY "p"
#define BROKER 77
#define RECORDS_MAX 4000
#define TIMES 200 /* of the model's: small, so that rows are overwritten often */
#define QUARANTINE_MAX (1 << 20)

/* A record of the source, before it is made into JSON. */
struct source_record {
    bool is_ours;  /* of this partition */
    bool is_other; /* no telemetry at all: goes to the quarantine */
    bool has_time;
    size_t device, time_index;
    struct head_metric metrics[MODEL_METRICS];
    size_t metric_count;
};

struct world {
    struct check_random random;
    struct sim_fs *sim;
    struct series *series;
    struct payload_decoder *decoder;
    struct partition *part;
    struct partition_compaction *compaction;
    bool is_compaction_written;
    struct source_record *records; /* by sequence - 1 */
    uint64_t record_count;
    uint64_t read_next;             /* sequence of the next record to be read */
    uint64_t pending_full;          /* a record that met a full head: its sequence, or 0 */
    struct log_cursor_value cursor; /* what the source was given back */
    struct store_model *model;      /* of records below read_next */
};

static struct log_cursor_value value_at(uint64_t sequence)
{
    return (struct log_cursor_value){
        .broker_id = BROKER, .position = {1, sequence}, .place = {1, sequence * 512}, .reopen = {1, sequence * 512}};
}

static uint64_t below(struct world *world, uint64_t bound) { return check_random_below(&world->random, bound); }

static void record_make(struct world *world, struct source_record *rec)
{
    memset(rec, 0, sizeof *rec);
    rec->is_ours = below(world, 8) != 0;
    rec->is_other = below(world, 12) == 0;
    rec->has_time = below(world, 4) != 0;
    rec->device = below(world, MODEL_DEVICES);
    rec->time_index = below(world, TIMES);
    for (size_t i = 0; i < MODEL_METRICS; i++) {
        if (below(world, 2) || (i + 1 == MODEL_METRICS && rec->metric_count == 0))
            rec->metrics[rec->metric_count++] = (struct head_metric){
                .name = store_model_metric(i), .value = (double)check_random_between(&world->random, -5000, 5000) / 16};
    }
}

/* The record as the broker logs it; payload is a buffer of the caller. */
static struct record record_encode_payload(const struct source_record *source, char *payload, size_t payload_size)
{
    size_t used = 0;
    if (source->is_other) {
        used = (size_t)snprintf(payload, payload_size, "aaaaaaaa");
    } else {
        used = (size_t)snprintf(payload, payload_size, "{");
        for (size_t i = 0; i < source->metric_count; i++)
            used += (size_t)snprintf(payload + used, payload_size - used, "\"%.*s\":%.17g,", (int)source->metrics[i].name.size,
                                     (const char *)source->metrics[i].name.data, source->metrics[i].value);
        if (source->has_time)
            used += (size_t)snprintf(payload + used, payload_size - used, "\"ts\":%lld}", (long long)store_model_time(source->time_index));
        else
            used += (size_t)snprintf(payload + used, payload_size - used, "\"note\":\"x\"}");
    }
    return (struct record){.type = RECORD_PUBLISH,
                           .topic = SPAN_LITERAL("fleet/x/telemetry"),
                           .device = store_model_device(source->device),
                           .payload = span_of(payload, used),
                           .codec = RECORD_CODEC_JSON,
                           .partition_count = 1,
                           .received_ns = store_model_time(source->time_index)};
}

static void model_apply(struct store_model *model, const struct source_record *rec)
{
    if (rec->is_ours && !rec->is_other)
        store_model_write(model, rec->device, rec->time_index, rec->metrics, rec->metric_count);
}

static void part_open(struct world *world)
{
    static const struct series_limits limits = {INT64_MAX, INT64_MAX, INT64_MAX};
    struct errmsg msg = {""};
    series_free(world->series);
    world->series = series_new(&limits, 5);
    const struct partition_options options = {.fs = sim_fs_fs(world->sim),
                                              .directory = DIRECTORY,
                                              .partition_count = 1,
                                              .head_size_max = 64 << 10,
                                              .quarantine_size_max = QUARANTINE_MAX,
                                              .series = world->series,
                                              .decoder = world->decoder};
    enum err err = partition_open(&world->part, &options, &msg);
    CHECK_MSG(err == ERR_OK, "%s", msg.text);
}

static enum err count_source(void *context, struct merge_source *source)
{
    struct merge_source ***at = context;
    *(*at)++ = source;
    return ERR_OK;
}

/* What a query for a device gives, as a merge. The view stays until *view_out is freed. */
static struct merge *query(struct world *world, struct partition_view **view_out, struct merge_source **sources, size_t device)
{
    struct merge_source **at = sources;
    *view_out = partition_view_take(world->part, store_model_device(device), INT64_MIN, INT64_MAX);
    CHECK(*view_out);
    CHECK(partition_view_sources(*view_out, NULL, 0, &at, count_source) == ERR_OK);
    return merge_new(sources, (size_t)(at - sources), 1 + below(world, 100));
}

static void check_equals(struct world *world)
{
    struct merge_source *sources[4096];
    sim_fs_fail(world->sim, SIM_FS_ANY, 0, ERR_IO, false); /* a query whose reads fail says so; that is not at stake here */
    for (size_t d = 0; d < MODEL_DEVICES; d++) {
        struct partition_view *view;
        CHECK(store_model_equals(world->model, d, 0, TIMES - 1, query(world, &view, sources, d)));
        CHECK(partition_view_corrupt_count(view) == 0);
        partition_view_free(view);
    }
}

/* Every rejected record before `sequence` has its line. */
static void check_quarantine(struct world *world, uint64_t sequence)
{
    const uint8_t *data;
    uint64_t size;
    char *seen = calloc(1, world->record_count + 1);
    if (!sim_fs_contents(world->sim, DIRECTORY "/quarantine/current.jsonl", &data, &size)) {
        char *text = calloc(1, size + 1);
        for (uint64_t i = 0; i < size; i++)
            text[i] = data[i] ? (char)data[i] : ' '; /* a torn write leaves holes */
        for (const char *at = text; (at = strstr(at, "\"sequence\":")) != NULL;) {
            at += strlen("\"sequence\":");
            seen[strtoull(at, NULL, 10)] = 1;
        }
        free(text);
    }
    for (uint64_t s = 1; s < sequence; s++)
        CHECK_MSG(!world->records[s - 1].is_ours || !world->records[s - 1].is_other || seen[s], "record %llu is nowhere",
                  (unsigned long long)s);
    free(seen);
}

static void compaction_drop(struct world *world)
{
    if (world->compaction)
        partition_compact_abort(world->compaction);
    world->compaction = NULL;
}

/* Open after an end of whatever kind, and go on where the partition says. */
static void reopen(struct world *world)
{
    compaction_drop(world);
    partition_close(world->part);
    sim_fs_fail(world->sim, SIM_FS_ANY, 0, ERR_IO, false);
    part_open(world);
    struct log_cursor_value committed = partition_committed(world->part);
    struct log_cursor_value next = partition_later(&committed, &world->cursor);
    CHECK(next.position.sequence == 0 || next.position.sequence <= world->read_next);
    /* What it holds must be at least what came before the position; reading on makes it equal again. */
    world->read_next = next.position.sequence ? next.position.sequence : 1;
    CHECK(world->read_next >= world->cursor.position.sequence); /* the source has forgotten what is before */
    world->pending_full = 0;
    check_quarantine(world, world->read_next);
    memset(world->model, 0, sizeof *world->model);
    for (uint64_t s = 1; s < world->read_next; s++)
        model_apply(world->model, &world->records[s - 1]);
    check_equals(world);
}

static void step_read(struct world *world)
{
    if (world->read_next > world->record_count) {
        if (world->record_count == RECORDS_MAX)
            return;
        record_make(world, &world->records[world->record_count++]);
    }
    const struct source_record *source = &world->records[world->read_next - 1];
    char payload[1024];
    struct record rec = record_encode_payload(source, payload, sizeof payload);
    if (source->is_ours) {
        enum err err = partition_add_record(world->part, &rec, (struct partition_record_id){BROKER, {1, world->read_next}}, 0);
        if (err == ERR_FULL || err == ERR_CLOSED)
            return;
        CHECK(err == ERR_OK);
    }
    model_apply(world->model, source);
    world->read_next++;
}

static void step_flush(struct world *world)
{
    struct errmsg msg;
    struct log_cursor_value read = value_at(world->read_next);
    switch (below(world, 4)) {
    case 0:
        partition_seal(world->part, &read);
        return;
    case 1:
        if (partition_flush_write(world->part, &msg) && !partition_is_failed(world->part))
            return;
        return;
    case 2:
        if (partition_flush_commit(world->part, &msg))
            return;
        partition_flush_publish(world->part);
        return;
    default:
        if (partition_flush(world->part, &read, &msg))
            return;
    }
}

static void step_compact(struct world *world)
{
    static const struct compactor_options options = {.fan_in = {3, 3, 3}};
    struct errmsg msg;
    if (!world->compaction) {
        world->compaction = partition_compact_begin(world->part, &options);
        world->is_compaction_written = false;
        return;
    }
    if (!world->is_compaction_written) {
        if (partition_compact_write(world->compaction, &msg))
            compaction_drop(world);
        else
            world->is_compaction_written = true;
        return;
    }
    if (partition_compact_commit(world->compaction, &msg)) {
        compaction_drop(world);
        return;
    }
    partition_compact_publish(world->compaction);
    world->compaction = NULL;
}

static void step_give_back(struct world *world)
{
    struct log_cursor_value read = value_at(world->read_next);
    struct log_cursor_value position = partition_position(world->part, &read);
    if (position.position.sequence > world->cursor.position.sequence)
        world->cursor = position;
}

static void step_end(struct world *world)
{
    switch (below(world, 4)) {
    case 0:
        sim_fs_kill(world->sim);
        break;
    case 1: {
        /* An orderly end: everything is flushed, nothing is read twice. */
        struct errmsg msg;
        struct log_cursor_value read = value_at(world->read_next);
        if (partition_flush(world->part, &read, &msg) == ERR_OK && partition_flush(world->part, &read, &msg) == ERR_OK &&
            !partition_is_failed(world->part)) {
            reopen(world);
            CHECK(partition_is_empty(world->part));
            return;
        }
        break;
    }
    default:
        sim_fs_crash(world->sim);
        break;
    }
    reopen(world);
}

static void step_fail(struct world *world)
{
    static const unsigned ops[] = {SIM_FS_WRITE, SIM_FS_SYNC, SIM_FS_RENAME, SIM_FS_OPEN, SIM_FS_ANY};
    bool is_space = below(world, 2);
    sim_fs_fail(world->sim, is_space ? SIM_FS_WRITE : ops[below(world, 5)], 1 + below(world, 12), is_space ? ERR_NOSPACE : ERR_IO, false);
}

static void damage_one_manifest(struct world *world)
{
    const char *path = below(world, 2) ? DIRECTORY "/manifest.0" : DIRECTORY "/manifest.1";
    const uint8_t *data;
    uint64_t size;
    if (partition_is_failed(world->part) || sim_fs_contents(world->sim, path, &data, &size) || size == 0)
        return;
    sim_fs_kill(world->sim);
    CHECK(sim_fs_flip_bit(world->sim, path, below(world, size * 8)) == ERR_OK);
    reopen(world);
    CHECK(counter_get(&partition_get_stats(world->part)->corrupt_slots) <= 1);
}

static void run(uint64_t seed)
{
    static const char *const names[] = {"ts"};
    struct payload_rules rules = {.time_names = {span_of_string(names[0])}, .time_name_count = 1};
    struct world world = {.read_next = 1, .compaction = NULL};
    check_random_init(&world.random, seed);
    world.sim = sim_fs_new(seed, 512);
    world.decoder = payload_new(&rules);
    world.records = calloc(RECORDS_MAX, sizeof *world.records);
    world.model = calloc(1, sizeof *world.model);
    part_open(&world);
    for (int step = 0; step < 1500; step++) {
        uint64_t what = below(&world, 1000);
        if (what < 700)
            step_read(&world);
        else if (what < 850)
            step_flush(&world);
        else if (what < 900)
            step_compact(&world);
        else if (what < 960)
            step_give_back(&world);
        else if (what < 975)
            check_equals(&world);
        else if (what < 985)
            step_fail(&world);
        else if (what < 997)
            step_end(&world);
        else
            damage_one_manifest(&world);
    }
    sim_fs_crash(world.sim);
    reopen(&world);
    compaction_drop(&world);
    partition_close(world.part);
    sim_fs_free(world.sim);
    series_free(world.series);
    payload_free(world.decoder);
    free(world.records);
    free(world.model);
}

static void test_model(void **state)
{
    (void)state;
    const char *one = getenv("SEED"), *many = getenv("SEEDS");
    uint64_t first = one ? strtoull(one, NULL, 10) : 1, count = one ? 1 : many ? strtoull(many, NULL, 10) : 40;
    for (uint64_t seed = first; seed < first + count; seed++) {
        fprintf(stderr, "\rseed %llu ", (unsigned long long)seed);
        run(seed);
    }
    fprintf(stderr, "\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_model)};
    logger_set_threshold(LOGGER_OFF);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
