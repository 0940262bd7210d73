#include "sink/store/compactor.h"

#include <stdlib.h>

#include "common/check.h"

#define FAN_IN_DEFAULT 16

size_t compactor_rows_of_level(uint32_t level) { return level <= 1 ? CHUNK_ROWS_FLUSH : CHUNK_ROWS_MAX; }

/* ---- plan ---- */

static int compare_inputs(const void *a, const void *b)
{
    const struct compactor_input *x = a, *y = b;
    if (x->window_ns != y->window_ns)
        return x->window_ns < y->window_ns ? -1 : 1;
    return (x->flush_first > y->flush_first) - (x->flush_first < y->flush_first);
}

static size_t fan_in(const struct compactor_options *options, uint32_t level)
{
    size_t wanted = options ? options->fan_in[level] : 0;
    return wanted == 0 ? FAN_IN_DEFAULT : wanted < 2 ? 2 : wanted;
}

static bool cheaper(const struct compactor_plan *plan, uint64_t size, const struct compactor_plan *best, uint64_t best_size)
{
    if (best->count == 0)
        return true;
    return plan->level != best->level ? plan->level < best->level : size < best_size;
}

/* The longest run from `from` on of segments of one level and window whose sum of sizes is allowed. */
static size_t run_length(const struct compactor_input *inputs, size_t count, size_t from, uint64_t size_max, uint64_t *size_out)
{
    size_t end = from;
    uint64_t size = 0;
    while (end < count && inputs[end].window_ns == inputs[from].window_ns && inputs[end].level == inputs[from].level &&
           (size_max == 0 || size + inputs[end].size <= size_max))
        size += inputs[end++].size;
    *size_out = size;
    return end - from;
}

/* A window that is closed: its run of neighbours below the highest level, whatever their levels are. */
static size_t closed_run_length(const struct compactor_input *inputs, size_t count, size_t from, uint64_t size_max, uint64_t *size_out)
{
    size_t end = from;
    uint64_t size = 0;
    while (end < count && inputs[end].window_ns == inputs[from].window_ns && inputs[end].window_closed &&
           inputs[end].level < COMPACTOR_LEVEL_MAX && (size_max == 0 || size + inputs[end].size <= size_max))
        size += inputs[end++].size;
    *size_out = size;
    return end - from;
}

struct compactor_plan compactor_plan(struct compactor_input *inputs, size_t count, const struct compactor_options *options)
{
    uint64_t size_max = options ? options->output_size_max : 0, best_size = 0, size;
    struct compactor_plan best = {0};
    qsort(inputs, count, sizeof *inputs, compare_inputs);
    for (size_t at = 0; at < count;) {
        uint32_t level = inputs[at].level;
        struct compactor_plan plan = {0};
        if (level < COMPACTOR_LEVEL_MAX && inputs[at].window_closed) {
            size_t run = closed_run_length(inputs, count, at, size_max, &size);
            plan = (struct compactor_plan){run, at, COMPACTOR_LEVEL_MAX};
            at += run ? run : 1;
            /* One segment alone is rewritten only from level 0, whose chunks are short. */
            if (run == 0 || (run == 1 && level > 0))
                continue;
        } else {
            size_t run = run_length(inputs, count, at, size_max, &size);
            size_t wanted = level < COMPACTOR_LEVEL_MAX ? fan_in(options, level) : SIZE_MAX;
            plan = (struct compactor_plan){run, at, level + 1};
            at += run ? run : 1;
            if (run < wanted)
                continue;
        }
        if (cheaper(&plan, size, &best, best_size)) {
            best = plan;
            best_size = size;
        }
    }
    return best;
}

/* ---- merge ---- */

struct merge_job {
    struct segment *const *inputs;
    size_t count;
    struct segment_cursor *cursors;
    struct merge_source **sources;
    size_t *device_at; /* next device of each input */
    struct segment_source *brokers;
    size_t broker_count;
};

/* How far each broker's stream has come: the greatest of all inputs. */
static void collect_brokers(struct merge_job *job)
{
    for (size_t i = 0; i < job->count; i++) {
        const struct segment_info *info = segment_get_info(job->inputs[i]);
        for (size_t k = 0; k < info->source_count; k++) {
            const struct segment_source *source = &info->sources[k];
            size_t b = 0;
            while (b < job->broker_count && job->brokers[b].broker_id != source->broker_id)
                b++;
            if (b == job->broker_count)
                job->brokers[job->broker_count++] = *source;
            else if (source->epoch > job->brokers[b].epoch ||
                     (source->epoch == job->brokers[b].epoch && source->sequence > job->brokers[b].sequence))
                job->brokers[b] = *source;
        }
    }
}

static enum err job_info(const struct merge_job *job, struct segment_info *info_out, uint32_t level, struct errmsg *msg)
{
    const struct segment_info *first = segment_get_info(job->inputs[0]);
    *info_out = (struct segment_info){
        .partition_count = first->partition_count,
        .partition_index = first->partition_index,
        .flush_first = first->flush_first,
        .flush_last = first->flush_last,
        .window_ns = first->window_ns,
    };
    for (size_t i = 0; i < job->count; i++) {
        const struct segment_info *info = segment_get_info(job->inputs[i]);
        if (info->partition_count != first->partition_count || info->partition_index != first->partition_index ||
            info->window_ns != first->window_ns)
            return err_set(msg, ERR_INVALID, "%s: not of the partition or window of %s", segment_path(job->inputs[i]),
                           segment_path(job->inputs[0]));
        for (size_t k = 0; k < i; k++) {
            const struct segment_info *other = segment_get_info(job->inputs[k]);
            if (info->flush_first <= other->flush_last && other->flush_first <= info->flush_last)
                return err_set(msg, ERR_INVALID, "%s: flush numbers overlap those of %s", segment_path(job->inputs[i]),
                               segment_path(job->inputs[k]));
        }
        info_out->flush_first = info->flush_first < info_out->flush_first ? info->flush_first : info_out->flush_first;
        info_out->flush_last = info->flush_last > info_out->flush_last ? info->flush_last : info_out->flush_last;
    }
    info_out->level = level;
    info_out->source_count = job->broker_count;
    info_out->sources = job->brokers;
    return ERR_OK;
}

/* The least device id that is next in any input. Returns false at the end of all. */
static bool job_next_device(const struct merge_job *job, struct span *device_out)
{
    bool any = false;
    for (size_t i = 0; i < job->count; i++) {
        if (job->device_at[i] >= segment_get_info(job->inputs[i])->device_count)
            continue;
        struct span device = segment_device(job->inputs[i], job->device_at[i]);
        if (!any || span_compare(device, *device_out) < 0)
            *device_out = device;
        any = true;
    }
    return any;
}

static enum err job_merge_device(struct merge_job *job, struct segment_writer *writer, struct span device, size_t row_count_max,
                                 struct errmsg *msg)
{
    for (size_t i = 0; i < job->count; i++) {
        job->sources[i] = NULL;
        if (job->device_at[i] >= segment_get_info(job->inputs[i])->device_count ||
            !span_equal(segment_device(job->inputs[i], job->device_at[i]), device))
            continue;
        job->device_at[i]++;
        segment_cursor_rewind(&job->cursors[i], device);
        job->sources[i] = &job->cursors[i].source;
    }
    struct merge *merge = merge_new(job->sources, job->count, row_count_max);
    if (!merge)
        return err_set(msg, ERR_NOMEM, "out of memory");
    enum err err = segment_writer_add_merge(writer, device, merge, msg);
    for (size_t i = 0; i < job->count && msg && err; i++)
        if (job->sources[i] && job->cursors[i].msg.text[0])
            *msg = job->cursors[i].msg; /* the input knows better where */
    merge_free(merge);
    return err;
}

static enum err job_run(struct merge_job *job, struct fs *fs, const char *directory, const char *name, uint32_t level,
                        struct segment_info *info_out, struct errmsg *msg)
{
    struct segment_info info;
    enum err err = job_info(job, &info, level, msg);
    if (err)
        return err;
    struct segment_writer *writer;
    err = segment_writer_open(&writer, fs, directory, name, &info, COLUMN_DENSE, msg);
    if (err)
        return err;
    struct span device;
    while (!err && job_next_device(job, &device))
        err = job_merge_device(job, writer, device, compactor_rows_of_level(info.level), msg);
    if (err) {
        segment_writer_abort(writer);
        return err;
    }
    return segment_writer_finish(writer, info_out, msg);
}

enum err compactor_merge(struct segment *const *inputs, size_t count, struct fs *fs, const char *directory, const char *name,
                         uint32_t level, struct segment_info *info_out, struct errmsg *msg)
{
    CHECK(count > 0);
    CHECK(level >= 1);
    CHECK(level <= COMPACTOR_LEVEL_MAX);
    size_t broker_room = 1;
    for (size_t i = 0; i < count; i++)
        broker_room += segment_get_info(inputs[i])->source_count;
    struct merge_job job = {
        .inputs = inputs,
        .count = count,
        .cursors = calloc(count, sizeof *job.cursors),
        .sources = calloc(count, sizeof(struct merge_source *)),
        .device_at = calloc(count, sizeof *job.device_at),
        .brokers = calloc(broker_room, sizeof *job.brokers),
    };
    enum err err = err_set(msg, ERR_NOMEM, "%s/%s: out of memory", directory, name);
    if (job.cursors && job.sources && job.device_at && job.brokers) {
        for (size_t i = 0; i < count; i++) {
            segment_cursor_init(&job.cursors[i], inputs[i], (struct span){0}, INT64_MIN, INT64_MAX, NULL, 0, false);
            job.cursors[i].source.close = NULL; /* the working memory is kept from device to device */
        }
        collect_brokers(&job);
        err = job_run(&job, fs, directory, name, level, info_out, msg);
        for (size_t i = 0; i < count; i++)
            segment_cursor_deinit(&job.cursors[i]);
    }
    free(job.cursors);
    free(job.sources);
    free(job.device_at);
    free(job.brokers);
    return err;
}
