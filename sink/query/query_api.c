#include "sink/query/query_api.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/murmur2.h"
#include "common/option_value.h"
#include "sink/decode/event_time.h"
#include "sink/query/engine.h"
#include "sink/query/query_client.h"

#define ROW_LIMIT_DEFAULT 10000
#define DEVICE_LIMIT_DEFAULT 1000
#define DEVICE_LIMIT_MAX 100000
#define FLUSH_TIMEOUT_NS (30 * NS_PER_S)
#define THREAD_COUNT 4 /* a long answer must not hold up a scrape */

struct query_api {
    struct sink_loop *loop;
    const struct sink_config *config;
    struct metrics_registry *metrics;
    struct http_server *server;
    struct counter corrupt_chunks; /* left out of answers, however often asked for */
};

/* What one query holds. */
struct query_state {
    struct query query;
    struct query_columns columns;
    struct query_meta meta;
    struct partition_view **views;
    size_t view_count;
    struct merge_source **sources;
    size_t source_count, source_capacity;
};

static bool parse_time(const struct http_request *request, struct http_response *response, const char *name, int64_t *time_ns)
{
    const char *text = http_request_query(request, name);
    if (!text || text[0] == 0)
        return true;
    if (!clock_parse_relative(time_ns, span_of_string(text), clock_wall()))
        return true;
    http_response_error(response, 400, "%s: not a time (expected RFC 3339, seconds to nanoseconds since 1970, or relative like -1h)", name);
    return false;
}

static bool parse_limit(const struct http_request *request, struct http_response *response, int64_t *limit, int64_t limit_max)
{
    const char *text = http_request_query(request, "limit");
    if (!text)
        return true;
    if (!option_parse_int(limit, span_of_string(text)) || *limit < 1) {
        http_response_error(response, 400, "limit: not a positive integer");
        return false;
    }
    if (*limit > limit_max)
        *limit = limit_max;
    return true;
}

static bool parse_format(const struct http_request *request, struct http_response *response, enum query_format *format_out)
{
    const char *text = http_request_query(request, "format");
    *format_out = QUERY_JSON;
    if (!text || strcmp(text, "json") == 0)
        return true;
    *format_out = QUERY_CSV;
    if (strcmp(text, "csv") == 0)
        return true;
    *format_out = QUERY_TABLE;
    if (strcmp(text, "table") == 0)
        return true;
    http_response_error(response, 400, "format: json, csv or table");
    return false;
}

/* A misspelt `from` would otherwise answer with everything. */
static bool parse_names(const struct http_request *request, struct http_response *response)
{
    static const char *const known[] = {"device", "metric", "from", "to", "limit", "format"};
    const char *unknown = http_request_unknown_query(request, known, sizeof known / sizeof *known);
    if (unknown) {
        http_response_error(response, 400, "%.64s: unknown; known are device, metric, from, to, limit and format", unknown);
        return false;
    }
    if (http_request_query_at(request, "device", 1)) {
        http_response_error(response, 400, "device: given twice");
        return false;
    }
    return true;
}

static bool parse_query(struct query_api *api, const struct http_request *request, struct http_response *response,
                        struct query_state *state)
{
    const char *device = http_request_query(request, "device");
    int64_t limit = ROW_LIMIT_DEFAULT;
    if (!parse_names(request, response))
        return false;
    if (!device || device[0] == 0) {
        http_response_error(response, 400, "device: missing");
        return false;
    }
    state->query = (struct query){.device = span_of_string(device), .from_ns = INT64_MIN, .to_ns = INT64_MAX};
    if (limit > api->config->query_row_limit)
        limit = api->config->query_row_limit;
    if (!parse_time(request, response, "from", &state->query.from_ns) || !parse_time(request, response, "to", &state->query.to_ns) ||
        !parse_limit(request, response, &limit, api->config->query_row_limit) || !parse_format(request, response, &state->query.format))
        return false;
    if (state->query.from_ns > state->query.to_ns) {
        http_response_error(response, 400, "from is later than to");
        return false;
    }
    state->query.row_limit = (size_t)limit;
    return true;
}

static void state_deinit(struct query_state *state)
{
    for (size_t i = 0; i < state->view_count; i++)
        partition_view_free(state->views[i]);
    free(state->views);
    free(state->sources);
    query_columns_deinit(&state->columns);
}

/* Every partition that the device ever belonged to, one for each partition count, the newest last (LOG 30). */
static enum err take_views(struct query_api *api, struct query_state *state)
{
    size_t count;
    struct sink_partition *partitions = sink_loop_partitions(api->loop, &count);
    state->views = calloc(count + 1, sizeof(struct partition_view *));
    if (!state->views)
        return ERR_NOMEM;
    state->meta.watermark_ns = sink_loop_watermark(api->loop);
    for (size_t i = 0; i < count; i++) {
        struct sink_partition *sp = &partitions[i];
        if (!sp->part || murmur2_partition(state->query.device, sp->count) != sp->index)
            continue;
        pthread_mutex_lock(&sp->state);
        struct partition_view *view = partition_view_take(sp->part, state->query.device, state->query.from_ns, state->query.to_ns);
        pthread_mutex_unlock(&sp->state);
        if (!view)
            return ERR_NOMEM;
        state->views[state->view_count++] = view;
        int64_t newest;
        if (partition_view_newest(view, &newest) && (!state->meta.has_newest || newest > state->meta.newest_ns)) {
            state->meta.has_newest = true;
            state->meta.newest_ns = newest;
        }
    }
    return ERR_OK;
}

static enum err find_columns(const struct http_request *request, struct query_state *state)
{
    enum err err = ERR_OK;
    const char *name = http_request_query_at(request, "metric", 0);
    if (!name) {
        for (size_t i = 0; i < state->view_count && !err; i++)
            err = partition_view_names(state->views[i], &state->columns, query_columns_add);
        query_columns_sort(&state->columns);
        return err;
    }
    for (size_t i = 0; name && !err; name = http_request_query_at(request, "metric", ++i))
        err = query_columns_add(&state->columns, span_of_string(name));
    return err;
}

static enum err add_source(void *context, struct merge_source *source)
{
    struct query_state *state = context;
    if (state->source_count == state->source_capacity) {
        size_t capacity = state->source_capacity ? state->source_capacity * 2 : 64;
        struct merge_source **sources = realloc(state->sources, capacity * sizeof(struct merge_source *));
        if (!sources)
            return ERR_NOMEM;
        state->sources = sources;
        state->source_capacity = capacity;
    }
    state->sources[state->source_count++] = source;
    return ERR_OK;
}

static uint64_t corrupt_count(void *context)
{
    const struct query_state *state = context;
    uint64_t count = 0;
    for (size_t i = 0; i < state->view_count; i++)
        count += partition_view_corrupt_count(state->views[i]);
    return count;
}

/* One damaged chunk of each partition that had any: where it is. */
static void note_damage(struct query_api *api, const struct query_state *state)
{
    for (size_t i = 0; i < state->view_count; i++) {
        const char *text = partition_view_corrupt_text(state->views[i]);
        if (text)
            sink_loop_note_damage(api->loop, text);
    }
}

static enum err run_query(struct query_api *api, const struct http_request *request, struct query_state *state,
                          struct query_result *result_out, struct buf *out)
{
    enum err err = take_views(api, state);
    if (!err)
        err = find_columns(request, state);
    for (size_t i = 0; i < state->view_count && !err; i++)
        err = partition_view_sources(state->views[i], state->columns.sorted, state->columns.count, state, add_source);
    if (!err)
        err = query_run(out, result_out, &state->query, &state->columns, &state->meta, state->sources, state->source_count, corrupt_count,
                        state);
    return err;
}

static void on_query(void *arg, const struct http_request *request, struct http_response *response)
{
    static const char *const types[] = {
        [QUERY_JSON] = "application/json", [QUERY_CSV] = "text/csv; charset=utf-8", [QUERY_TABLE] = "text/plain; charset=utf-8"};
    struct query_api *api = arg;
    struct query_state state = {.view_count = 0};
    if (!parse_query(api, request, response, &state))
        return;
    http_response_type(response, types[state.query.format]);
    struct query_result result = {.is_truncated = false};
    enum err err = run_query(api, request, &state, &result, http_response_body(response));
    if (err == ERR_TOOLARGE)
        http_response_error(response, 400, "too many columns for one answer (at most %d): name metrics", QUERY_COLUMNS_MAX);
    else if (err)
        http_response_error(response, 500, "%s", err_text(err));
    if (!err && result.is_truncated) {
        char next[24];
        snprintf(next, sizeof next, "%" PRId64, result.next_ns);
        http_response_header(response, QUERY_NEXT_HEADER, next); /* CSV has no other place for it */
    }
    counter_add_shared(&api->corrupt_chunks, corrupt_count(&state));
    note_damage(api, &state);
    state_deinit(&state);
}

struct device_entry {
    struct span name; /* owned */
    int64_t newest_ns;
};

/* Devices in order of their names, each once, with room for `capacity` of them. */
struct device_list {
    struct device_entry *entries;
    size_t count, capacity;
    struct span prefix, after;
    bool is_cut;
};

/* Devices of one head or segment, in order; false at the end. */
struct device_stream {
    bool (*next)(struct device_stream *stream, struct span *name_out, int64_t *newest_ns_out);
};

static bool device_is_wanted(const struct device_list *list, struct span name)
{
    bool has_prefix =
        name.size >= list->prefix.size && (list->prefix.size == 0 || memcmp(name.data, list->prefix.data, list->prefix.size) == 0);
    return has_prefix && (list->after.size == 0 || span_compare(name, list->after) > 0);
}

static bool entry_set(struct device_entry *entry, struct span name, int64_t newest_ns)
{
    uint8_t *text = malloc(name.size + 1);
    if (!text)
        return false;
    memcpy(text, name.data, name.size);
    *entry = (struct device_entry){span_of(text, name.size), newest_ns};
    return true;
}

/* Free the array, and of its names those from `from` on. */
static void entries_free(struct device_entry *entries, size_t from, size_t count)
{
    for (size_t i = from; i < count; i++)
        free((void *)(uintptr_t)entries[i].name.data);
    free(entries);
}

/* One pass over both: the cost of a list does not depend on where its devices come from. */
static enum err list_merge(struct device_list *list, struct device_stream *stream)
{
    struct device_entry *merged = calloc(list->capacity + 1, sizeof *merged);
    size_t count = 0, old = 0;
    struct span name;
    int64_t newest_ns;
    enum err err = merged ? ERR_OK : ERR_NOMEM;
    bool has = !err && stream->next(stream, &name, &newest_ns);
    while (!err && (old < list->count || has)) {
        if (count == list->capacity) {
            list->is_cut = true;
            break;
        }
        int order = !has ? -1 : old == list->count ? 1 : span_compare(list->entries[old].name, name);
        if (order <= 0)
            merged[count] = list->entries[old++];
        else if (!entry_set(&merged[count], name, newest_ns))
            err = ERR_NOMEM;
        if (!err && order >= 0) {
            if (newest_ns > merged[count].newest_ns)
                merged[count].newest_ns = newest_ns;
            has = stream->next(stream, &name, &newest_ns);
        }
        count += !err;
    }
    if (!merged)
        return err;
    entries_free(list->entries, old, list->count);
    list->entries = merged;
    list->count = count;
    return err;
}

/* Of a segment. */
struct segment_stream {
    struct device_stream stream; /* first */
    const struct device_list *list;
    const struct segment *seg;
    size_t at;
};

static bool segment_stream_next(struct device_stream *stream, struct span *name_out, int64_t *newest_ns_out)
{
    struct segment_stream *from = (struct segment_stream *)stream;
    size_t count = segment_get_info(from->seg)->device_count, chunk_count = 0;
    while (from->at < count) {
        const struct segment_chunk *chunks;
        *name_out = segment_device(from->seg, from->at++);
        if (!device_is_wanted(from->list, *name_out))
            continue;
        segment_find(from->seg, &chunks, &chunk_count, *name_out, INT64_MIN, INT64_MAX);
        if (chunk_count == 0)
            continue;
        *newest_ns_out = chunks[chunk_count - 1].time_ns_max;
        return true;
    }
    return false;
}

/* Of the heads of a partition: copied under its lock, put in order after it. */
struct head_stream {
    struct device_stream stream; /* first */
    const struct device_list *list;
    struct device_entry *entries;
    size_t count, capacity, at;
};

static enum err head_stream_add(void *context, struct span name, int64_t newest_ns)
{
    struct head_stream *to = context;
    if (!device_is_wanted(to->list, name))
        return ERR_OK;
    if (to->count == to->capacity) {
        size_t capacity = to->capacity ? to->capacity * 2 : 256;
        struct device_entry *entries = realloc(to->entries, capacity * sizeof *entries);
        if (!entries)
            return ERR_NOMEM;
        to->entries = entries;
        to->capacity = capacity;
    }
    if (!entry_set(&to->entries[to->count], name, newest_ns))
        return ERR_NOMEM;
    to->count++;
    return ERR_OK;
}

static int compare_entries(const void *a, const void *b)
{
    return span_compare(((const struct device_entry *)a)->name, ((const struct device_entry *)b)->name);
}

static bool head_stream_next(struct device_stream *stream, struct span *name_out, int64_t *newest_ns_out)
{
    struct head_stream *from = (struct head_stream *)stream;
    if (from->at == from->count)
        return false;
    const struct device_entry *entry = &from->entries[from->at++];
    *name_out = entry->name;
    *newest_ns_out = entry->newest_ns;
    for (; from->at < from->count && span_equal(from->entries[from->at].name, entry->name); from->at++) { /* head and sealed head */
        if (from->entries[from->at].newest_ns > *newest_ns_out)
            *newest_ns_out = from->entries[from->at].newest_ns;
    }
    return true;
}

static enum err list_add_partition(struct device_list *list, struct sink_partition *sp)
{
    struct head_stream heads = {.stream = {head_stream_next}, .list = list};
    size_t count = 0;
    pthread_mutex_lock(&sp->state);
    enum err err = partition_head_devices(sp->part, &heads, head_stream_add);
    struct segment_ref **refs = partition_hold_segments(sp->part, &count);
    pthread_mutex_unlock(&sp->state);
    if (!refs)
        err = ERR_NOMEM;
    if (!err && heads.count > 0) {
        qsort(heads.entries, heads.count, sizeof *heads.entries, compare_entries);
        err = list_merge(list, &heads.stream);
    }
    for (size_t i = 0; i < count; i++) {
        /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): without refs the count is 0 */
        struct segment_stream segment = {.stream = {segment_stream_next}, .list = list, .seg = refs[i]->seg};
        if (!err)
            err = list_merge(list, &segment.stream);
        segment_ref_unref(refs[i]);
    }
    free(refs);
    entries_free(heads.entries, 0, heads.count);
    return err;
}

static void put_devices(struct buf *out, const struct device_list *list)
{
    buf_put_string(out, "{\"devices\":[");
    for (size_t i = 0; i < list->count; i++) {
        char text[CLOCK_TEXT_SIZE];
        event_time_format(text, list->entries[i].newest_ns);
        buf_put_string(out, i ? ",\n{\"device\":" : "\n{\"device\":");
        buf_put_json_string(out, list->entries[i].name);
        buf_printf(out, ",\"newest\":\"%s\",\"newest_ns\":%lld}", text, (long long)list->entries[i].newest_ns);
    }
    buf_printf(out, "],\"truncated\":%s}\n", list->is_cut ? "true" : "false");
}

static void on_devices(void *arg, const struct http_request *request, struct http_response *response)
{
    struct query_api *api = arg;
    const char *prefix = http_request_query(request, "prefix"), *after = http_request_query(request, "after");
    int64_t limit = DEVICE_LIMIT_DEFAULT;
    if (!parse_limit(request, response, &limit, DEVICE_LIMIT_MAX))
        return;
    size_t count;
    struct sink_partition *partitions = sink_loop_partitions(api->loop, &count);
    struct device_list list = {
        .capacity = (size_t)limit, .prefix = span_of_string(prefix ? prefix : ""), .after = span_of_string(after ? after : "")};
    enum err err = ERR_OK;
    for (size_t i = 0; i < count && !err; i++)
        err = partitions[i].part ? list_add_partition(&list, &partitions[i]) : ERR_OK;
    if (err)
        http_response_error(response, 500, "%s", err_text(err));
    else
        put_devices(http_response_body(response), &list);
    entries_free(list.entries, 0, list.count);
}

static void on_flush(void *arg, const struct http_request *request, struct http_response *response)
{
    struct query_api *api = arg;
    (void)request;
    enum err err = sink_loop_flush(api->loop, FLUSH_TIMEOUT_NS);
    if (err)
        http_response_error(response, 503, "not flushed: %s", err_text(err));
    else
        buf_put_string(http_response_body(response), "{\"status\":\"flushed\"}\n");
}

static void on_metrics(void *arg, const struct http_request *request, struct http_response *response)
{
    struct query_api *api = arg;
    (void)request;
    http_response_type(response, METRICS_CONTENT_TYPE);
    metrics_scrape(api->metrics, http_response_body(response), clock_mono());
}

static void on_health(void *arg, const struct http_request *request, struct http_response *response)
{
    struct query_api *api = arg;
    (void)request;
    if (sink_loop_health(api->loop, http_response_body(response)) == SINK_FAILED)
        http_response_status(response, 503);
}

static const struct http_route routes[] = {
    {"GET", "/api/v1/query", false, on_query, NULL},  {"GET", "/api/v1/devices", false, on_devices, NULL},
    {"POST", "/api/v1/flush", false, on_flush, NULL}, {"GET", "/metrics", false, on_metrics, NULL},
    {"GET", "/healthz", false, on_health, NULL},
};

enum err query_api_new(struct query_api **api_out, struct sink_loop *loop, const struct sink_config *config,
                       struct metrics_registry *metrics, struct errmsg *msg)
{
    struct query_api *api = calloc(1, sizeof *api);
    if (!api)
        return err_set(msg, ERR_NOMEM, "%s", err_text(ERR_NOMEM));
    *api = (struct query_api){.loop = loop, .config = config, .metrics = metrics};
    const struct http_config http = {.address = config->http_address,
                                     .port = (uint16_t)config->http_port,
                                     .thread_count = THREAD_COUNT,
                                     .thread_name = "sink-http",
                                     .timeout_s = 60,
                                     .arg = api};
    enum err err = http_server_new(&api->server, &http, routes, sizeof routes / sizeof routes[0], msg);
    if (err) {
        free(api);
        return err;
    }
    if (metrics)
        metrics_register_counter(
            metrics, &api->corrupt_chunks,
            METRIC("tidegate_sink_corrupt_chunks_total", "Damaged chunks left out of answers, counted in each answer."));
    *api_out = api;
    return ERR_OK;
}

void query_api_free(struct query_api *api)
{
    if (!api)
        return;
    http_server_free(api->server);
    if (api->metrics)
        metrics_unregister(api->metrics, &api->corrupt_chunks);
    free(api);
}

uint16_t query_api_port(const struct query_api *api) { return http_server_port(api->server); }
