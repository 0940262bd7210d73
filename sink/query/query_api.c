#include "sink/query/query_api.h"

#include <stdlib.h>

#include "common/murmur2.h"
#include "sink/decode/event_time.h"
#include "sink/query/engine.h"

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
    if (!options_parse_int(limit, span_of_string(text)) || *limit < 1) {
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

static bool parse_query(struct query_api *api, const struct http_request *request, struct http_response *response, struct query_state *state)
{
    const char *device = http_request_query(request, "device");
    int64_t limit = ROW_LIMIT_DEFAULT;
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

/* Every partition that the device ever belonged to, one for each partition count, the newest last (LOG.md 30). */
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

static enum err run_query(struct query_api *api, const struct http_request *request, struct query_state *state, struct buf *out)
{
    struct query_result result;
    enum err err = take_views(api, state);
    if (!err)
        err = find_columns(request, state);
    for (size_t i = 0; i < state->view_count && !err; i++)
        err = partition_view_sources(state->views[i], state->columns.sorted, state->columns.count, state, add_source);
    if (!err)
        err = query_run(out, &result, &state->query, &state->columns, &state->meta, state->sources, state->source_count, corrupt_count, state);
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
    enum err err = run_query(api, request, &state, http_response_body(response));
    if (err)
        http_response_error(response, err == ERR_TOOLARGE ? 400 : 500, "%s", err_text(err));
    state_deinit(&state);
}

/* Devices in order of their names, each once, with room for `capacity` of them. */
struct device_list {
    struct device_entry {
        struct span name; /* owned */
        int64_t newest_ns;
    } *entries;
    size_t count, capacity;
    struct span prefix, after;
    bool is_cut;
};

static enum err device_add(void *context, struct span name, int64_t newest_ns)
{
    struct device_list *list = context;
    if (name.size < list->prefix.size || (list->prefix.size > 0 && memcmp(name.data, list->prefix.data, list->prefix.size) != 0))
        return ERR_OK;
    if (list->after.size > 0 && rows_name_compare(name, list->after) <= 0)
        return ERR_OK;
    size_t low = 0, high = list->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = rows_name_compare(list->entries[middle].name, name);
        if (order == 0) {
            if (newest_ns > list->entries[middle].newest_ns)
                list->entries[middle].newest_ns = newest_ns;
            return ERR_OK;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == list->capacity) {
        list->is_cut = true;
        return ERR_OK;
    }
    uint8_t *text = malloc(name.size + 1);
    if (!text)
        return ERR_NOMEM;
    memcpy(text, name.data, name.size);
    if (list->count == list->capacity) {
        free((void *)(uintptr_t)list->entries[--list->count].name.data);
        list->is_cut = true;
    }
    memmove(list->entries + low + 1, list->entries + low, (list->count - low) * sizeof *list->entries);
    list->entries[low] = (struct device_entry){span_of(text, name.size), newest_ns};
    list->count++;
    return ERR_OK;
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
    struct device_list list = {.capacity = (size_t)limit, .prefix = span_of_string(prefix ? prefix : ""), .after = span_of_string(after ? after : "")};
    list.entries = calloc(list.capacity + 1, sizeof *list.entries);
    enum err err = list.entries ? ERR_OK : ERR_NOMEM;
    for (size_t i = 0; i < count && !err; i++) {
        if (!partitions[i].part)
            continue;
        pthread_mutex_lock(&partitions[i].state);
        err = partition_devices(partitions[i].part, &list, device_add);
        pthread_mutex_unlock(&partitions[i].state);
    }
    if (err)
        http_response_error(response, 500, "%s", err_text(err));
    else
        put_devices(http_response_body(response), &list);
    for (size_t i = 0; i < list.count; i++)
        free((void *)(uintptr_t)list.entries[i].name.data);
    free(list.entries);
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
    {"GET", "/api/v1/query", false, on_query, NULL},     {"GET", "/api/v1/devices", false, on_devices, NULL},
    {"POST", "/api/v1/flush", false, on_flush, NULL},    {"GET", "/metrics", false, on_metrics, NULL},
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
    *api_out = api;
    return ERR_OK;
}

void query_api_free(struct query_api *api)
{
    if (!api)
        return;
    http_server_free(api->server);
    free(api);
}

uint16_t query_api_port(const struct query_api *api)
{
    return http_server_port(api->server);
}
