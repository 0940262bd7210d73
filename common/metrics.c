/* Registry: an array of families (one name, type, help), each with an array of series (one set of labels), each with an array of cells that
 * are summed. Families are kept in name order and series in label order, so that two scrapes of one state are equal byte for byte.
 * Registering is rare; everything is found by walking. Text goes to the caller's buffer directly.
 *
 * Names and cells are read under the registry's mutex; the cells themselves are written meanwhile by their owners. */
#include "common/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "common/check.h"
#include "common/logger.h"
#include "common/proc.h"
#include "common/utf8.h"

#define PROCESS_THREAD_COUNT_MAX 256

enum family_type { FAMILY_COUNTER, FAMILY_GAUGE, FAMILY_HISTOGRAM };
enum cell_type {
    CELL_COUNTER,
    CELL_GAUGE,
    CELL_READ,
    CELL_TRACE,
    CELL_HISTOGRAM,
    CELL_QUEUE_MESSAGES,
    CELL_QUEUE_BYTES,
    CELL_QUEUE_OLDEST
};

struct cell {
    enum cell_type type;
    const void *from; /* the counter, gauge, histogram or queue_stats; of a callback: its argument */
    metrics_read_fn read;
    metrics_trace_fn trace;
    const char *label_name; /* of a trace */
};

struct series {
    char *labels; /* as printed between the braces, "" for none */
    struct cell *cells;
    size_t cell_count;
    double retired;                   /* what unregistered counters had reached */
    struct histogram *retired_values; /* the same of histograms; NULL while there was none */
};

struct family {
    char *name;
    char *help;
    enum family_type type;
    enum metrics_unit unit; /* of a histogram */
    struct series *series;
    size_t series_count;
};

struct metrics_registry {
    pthread_mutex_t lock;
    struct family *families;
    size_t family_count;
};

struct metrics_registry *metrics_registry_new(void)
{
    struct metrics_registry *registry = calloc(1, sizeof *registry);
    if (registry)
        pthread_mutex_init(&registry->lock, NULL);
    return registry;
}

void metrics_registry_free(struct metrics_registry *registry)
{
    if (!registry)
        return;
    for (size_t f = 0; f < registry->family_count; f++) {
        struct family *family = &registry->families[f];
        for (size_t s = 0; s < family->series_count; s++) {
            free(family->series[s].labels);
            free(family->series[s].cells);
            free(family->series[s].retired_values);
        }
        free(family->series);
        free(family->name);
        free(family->help);
    }
    free(registry->families);
    pthread_mutex_destroy(&registry->lock);
    free(registry);
}

/* ---- names -------------------------------------------------------------------------------------------------------------------------- */

static bool is_name(const char *name, bool is_label)
{
    if (!*name || (*name >= '0' && *name <= '9'))
        return false;
    for (; *name; name++) {
        bool is_letter = (*name >= 'a' && *name <= 'z') || (*name >= 'A' && *name <= 'Z') || *name == '_';
        if (!is_letter && !(*name >= '0' && *name <= '9') && !(*name == ':' && !is_label))
            return false;
    }
    return true;
}

static bool ends_with(const char *text, const char *end)
{
    size_t text_size = strlen(text);
    size_t end_size = strlen(end);
    return text_size >= end_size && strcmp(text + text_size - end_size, end) == 0;
}

/* Backslash, newline and, in label values, the quote are escaped; the format is UTF-8, so other bytes are replaced. */
static void put_escaped(struct buf *out, const char *text, bool is_label)
{
    size_t size = strlen(text);
    for (size_t offset = 0; offset < size;) {
        uint32_t code_point;
        size_t used = utf8_decode(&code_point, (const uint8_t *)text + offset, size - offset);
        if (used == 0)
            buf_put_string(out, "\xef\xbf\xbd");
        else if (code_point == '\\')
            buf_put_string(out, "\\\\");
        else if (code_point == '\n')
            buf_put_string(out, "\\n");
        else if (code_point == '"' && is_label)
            buf_put_string(out, "\\\"");
        else
            buf_put(out, text + offset, used);
        offset += used ? used : 1;
    }
}

static char *take_string(struct buf *buf)
{
    char *text = strdup(buf_string(buf));
    CHECK(buf->err == ERR_OK);
    CHECK(text != NULL);
    buf_deinit(buf);
    return text;
}

/* `a="x",b="y"` in label order, so that two registrations meet whatever order they name them in. */
static char *labels_text(const struct metric *metric)
{
    const struct metric_label *sorted[METRIC_LABEL_COUNT_MAX];
    size_t label_count = 0;
    for (const struct metric_label *label = metric->labels; label->name; label++) {
        CHECK(label_count < METRIC_LABEL_COUNT_MAX);
        CHECK_MSG(is_name(label->name, true), "label %s", label->name);
        CHECK_MSG(label->value != NULL, "label %s", label->name);
        size_t at = label_count++;
        for (; at > 0 && strcmp(sorted[at - 1]->name, label->name) > 0; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = label;
    }
    struct buf text;
    buf_init(&text, 1 << 20);
    for (size_t i = 0; i < label_count; i++) {
        buf_printf(&text, "%s%s=\"", i ? "," : "", sorted[i]->name);
        put_escaped(&text, sorted[i]->value, true);
        buf_put_byte(&text, '"');
    }
    return take_string(&text);
}

/* ---- registering ------------------------------------------------------------------------------------------------------------------- */

static void *grow(void *array, size_t count, size_t element_size)
{
    void *grown = reallocarray(array, count + 1, element_size);
    CHECK_MSG(grown != NULL, "out of memory while registering metrics");
    return grown;
}

static struct family *find_family(struct metrics_registry *registry, const char *name)
{
    for (size_t i = 0; i < registry->family_count; i++)
        if (strcmp(registry->families[i].name, name) == 0)
            return &registry->families[i];
    return NULL;
}

static struct family *get_family(struct metrics_registry *registry, enum family_type type, enum metrics_unit unit,
                                 const struct metric *metric)
{
    struct family *family = find_family(registry, metric->name);
    if (family) {
        CHECK_MSG(family->type == type && family->unit == unit, "%s is registered with another type or unit", metric->name);
        CHECK_MSG(strcmp(family->help, metric->help) == 0, "%s is registered with another help", metric->name);
        return family;
    }
    CHECK_MSG(is_name(metric->name, false), "%s is no metric name", metric->name);
    CHECK_MSG((type == FAMILY_COUNTER) == ends_with(metric->name, "_total"), "%s: counters end in _total, others do not", metric->name);
    CHECK_MSG(metric->help && metric->help[0], "%s has no help", metric->name);
    registry->families = grow(registry->families, registry->family_count, sizeof *registry->families);
    size_t at = registry->family_count++;
    for (; at > 0 && strcmp(registry->families[at - 1].name, metric->name) > 0; at--)
        registry->families[at] = registry->families[at - 1];
    family = &registry->families[at];
    *family = (struct family){.name = strdup(metric->name), .help = strdup(metric->help), .type = type, .unit = unit};
    CHECK(family->name != NULL);
    CHECK(family->help != NULL);
    return family;
}

static struct series *find_series(struct family *family, const char *labels)
{
    for (size_t i = 0; i < family->series_count; i++)
        if (strcmp(family->series[i].labels, labels) == 0)
            return &family->series[i];
    return NULL;
}

static struct series *get_series(struct family *family, const struct metric *metric)
{
    char *labels = labels_text(metric);
    struct series *series = find_series(family, labels);
    if (series) {
        free(labels);
        return series;
    }
    family->series = grow(family->series, family->series_count, sizeof *family->series);
    size_t at = family->series_count++;
    for (; at > 0 && strcmp(family->series[at - 1].labels, labels) > 0; at--)
        family->series[at] = family->series[at - 1];
    family->series[at] = (struct series){.labels = labels};
    return &family->series[at];
}

static void register_cell(struct metrics_registry *registry, enum family_type type, enum metrics_unit unit, struct cell cell,
                          const struct metric *metric)
{
    pthread_mutex_lock(&registry->lock);
    struct series *series = get_series(get_family(registry, type, unit, metric), metric);
    series->cells = grow(series->cells, series->cell_count, sizeof *series->cells);
    series->cells[series->cell_count++] = cell;
    pthread_mutex_unlock(&registry->lock);
}

void metrics_register_counter(struct metrics_registry *registry, const struct counter *cell, const struct metric *metric)
{
    register_cell(registry, FAMILY_COUNTER, METRICS_COUNT, (struct cell){.type = CELL_COUNTER, .from = cell}, metric);
}

void metrics_register_gauge(struct metrics_registry *registry, const struct gauge *cell, const struct metric *metric)
{
    register_cell(registry, FAMILY_GAUGE, METRICS_COUNT, (struct cell){.type = CELL_GAUGE, .from = cell}, metric);
}

void metrics_register_gauge_fn(struct metrics_registry *registry, metrics_read_fn read, void *arg, const struct metric *metric)
{
    register_cell(registry, FAMILY_GAUGE, METRICS_COUNT, (struct cell){.type = CELL_READ, .from = arg, .read = read}, metric);
}

void metrics_register_counter_fn(struct metrics_registry *registry, metrics_read_fn read, void *arg, const struct metric *metric)
{
    register_cell(registry, FAMILY_COUNTER, METRICS_COUNT, (struct cell){.type = CELL_READ, .from = arg, .read = read}, metric);
}

void metrics_register_trace(struct metrics_registry *registry, metrics_trace_fn read, void *arg, const char *label_name,
                            const struct metric *metric)
{
    CHECK_MSG(is_name(label_name, true), "label %s", label_name);
    register_cell(registry, FAMILY_GAUGE, METRICS_COUNT,
                  (struct cell){.type = CELL_TRACE, .from = arg, .trace = read, .label_name = label_name}, metric);
}

void metrics_register_histogram(struct metrics_registry *registry, const struct histogram *cell, enum metrics_unit unit,
                                const struct metric *metric)
{
    register_cell(registry, FAMILY_HISTOGRAM, unit, (struct cell){.type = CELL_HISTOGRAM, .from = cell}, metric);
}

void metrics_register_queue(struct metrics_registry *registry, const char *queue_name, const struct queue_stats *stats)
{
    register_cell(registry, FAMILY_GAUGE, METRICS_COUNT, (struct cell){.type = CELL_QUEUE_MESSAGES, .from = stats},
                  METRIC("tidegate_queue_messages", "Messages waiting in a queue.", {"queue", queue_name}));
    register_cell(registry, FAMILY_GAUGE, METRICS_COUNT, (struct cell){.type = CELL_QUEUE_BYTES, .from = stats},
                  METRIC("tidegate_queue_bytes", "Bytes of the messages waiting in a queue.", {"queue", queue_name}));
    register_cell(registry, FAMILY_GAUGE, METRICS_COUNT, (struct cell){.type = CELL_QUEUE_OLDEST, .from = stats},
                  METRIC("tidegate_queue_oldest_seconds", "Age of the oldest message waiting in a queue, 0 when it is empty.",
                         {"queue", queue_name}));
}

static double cell_value(const struct cell *cell, mono_ns now);

/* Keep what a counter or a histogram had reached: a series that falls looks like a restart to Prometheus. */
static void retire_cell(struct family *family, struct series *series, const struct cell *cell)
{
    if (family->type == FAMILY_COUNTER)
        series->retired += cell_value(cell, 0);
    if (family->type != FAMILY_HISTOGRAM)
        return;
    if (!series->retired_values) {
        series->retired_values = malloc(sizeof *series->retired_values);
        CHECK(series->retired_values != NULL);
        histogram_init(series->retired_values);
    }
    histogram_merge(series->retired_values, cell->from);
}

static void unregister_from_series(struct family *family, struct series *series, const void *cell_or_arg)
{
    size_t kept = 0;
    for (size_t i = 0; i < series->cell_count; i++) {
        if (series->cells[i].from == cell_or_arg)
            retire_cell(family, series, &series->cells[i]);
        else
            series->cells[kept++] = series->cells[i];
    }
    series->cell_count = kept;
}

void metrics_unregister(struct metrics_registry *registry, const void *cell_or_arg)
{
    pthread_mutex_lock(&registry->lock);
    for (size_t f = 0; f < registry->family_count; f++)
        for (size_t s = 0; s < registry->families[f].series_count; s++)
            unregister_from_series(&registry->families[f], &registry->families[f].series[s], cell_or_arg);
    pthread_mutex_unlock(&registry->lock);
}

/* ---- scraping ----------------------------------------------------------------------------------------------------------------------- */

static double cell_value(const struct cell *cell, mono_ns now)
{
    const struct queue_stats *stats = cell->from;
    switch (cell->type) {
    case CELL_COUNTER:
        return (double)counter_get(cell->from);
    case CELL_GAUGE:
        return (double)gauge_get(cell->from);
    case CELL_READ:
        return cell->read((void *)(uintptr_t)cell->from);
    case CELL_TRACE: {
        double value;
        char text[METRICS_TEXT_SIZE];
        return cell->trace((void *)(uintptr_t)cell->from, &value, text) ? value : 0;
    }
    case CELL_HISTOGRAM:
        return (double)histogram_count(cell->from);
    case CELL_QUEUE_MESSAGES:
        return (double)__atomic_load_n(&stats->messages, __ATOMIC_RELAXED);
    case CELL_QUEUE_BYTES:
        return (double)__atomic_load_n(&stats->bytes, __ATOMIC_RELAXED);
    case CELL_QUEUE_OLDEST: {
        mono_ns oldest_ns = __atomic_load_n(&stats->oldest_ns, __ATOMIC_RELAXED);
        if (__atomic_load_n(&stats->messages, __ATOMIC_RELAXED) == 0 || oldest_ns >= now)
            return 0;
        return (double)(now - oldest_ns) / (double)NS_PER_S;
    }
    }
    UNREACHABLE();
}

/* The sum over the cells; of ages the greatest. */
static double series_value(const struct family *family, const struct series *series, mono_ns now)
{
    double value = series->retired;
    if (family->type == FAMILY_HISTOGRAM && series->retired_values)
        value = (double)histogram_count(series->retired_values);
    for (size_t i = 0; i < series->cell_count; i++) {
        double part = cell_value(&series->cells[i], now);
        if (series->cells[i].type != CELL_QUEUE_OLDEST)
            value += part;
        else if (part > value)
            value = part;
    }
    return value;
}

/* Integers exactly, others with all the digits that they have. */
static void put_value(struct buf *out, double value)
{
    if (isnan(value))
        buf_put_string(out, "NaN");
    else if (isinf(value))
        buf_put_string(out, value > 0 ? "+Inf" : "-Inf");
    else if (value == floor(value) && fabs(value) < 9007199254740992.0)
        buf_printf(out, "%.0f", value);
    else
        buf_printf(out, "%.12g", value);
}

static void put_series_name(struct buf *out, const char *name, const char *suffix, const char *labels, const char *le)
{
    buf_printf(out, "%s%s", name, suffix);
    if (labels[0] || le)
        buf_printf(out, "{%s%s%s%s%s}", labels, labels[0] && le ? "," : "", le ? "le=\"" : "", le ? le : "", le ? "\"" : "");
    buf_put_byte(out, ' ');
}

/* Upper edges of the exported buckets. Histogram cells are 3 % wide, so a count at a decimal edge is exact to 3 % of the edge. */
static const struct {
    uint64_t value;
    const char *text;
} second_edges[] = {
    {10000, "0.00001"},  {20000, "0.00002"},  {50000, "0.00005"},  {100000, "0.0001"},    {200000, "0.0002"}, {500000, "0.0005"},
    {1000000, "0.001"},  {2000000, "0.002"},  {5000000, "0.005"},  {10000000, "0.01"},    {20000000, "0.02"}, {50000000, "0.05"},
    {100000000, "0.1"},  {200000000, "0.2"},  {500000000, "0.5"},  {1000000000, "1"},     {2000000000, "2"},  {5000000000, "5"},
    {10000000000, "10"}, {20000000000, "20"}, {50000000000, "50"}, {100000000000, "100"},
};
#define SECOND_EDGE_COUNT (sizeof second_edges / sizeof second_edges[0])
#define PLAIN_EDGE_COUNT 16 /* 4^0 .. 4^15 */

static void put_histogram(struct buf *out, const struct family *family, const char *labels, const struct histogram *values)
{
    /* `values` is our own merged copy; its count is the sum of the cells that were read, so the buckets never pass it. */
    char text[32];
    size_t edge_count = family->unit == METRICS_NANOSECONDS ? SECOND_EDGE_COUNT : PLAIN_EDGE_COUNT;
    for (size_t i = 0; i < edge_count; i++) {
        uint64_t edge = family->unit == METRICS_NANOSECONDS ? second_edges[i].value : UINT64_C(1) << (2 * i);
        if (family->unit == METRICS_NANOSECONDS)
            snprintf(text, sizeof text, "%s", second_edges[i].text);
        else
            snprintf(text, sizeof text, "%" PRIu64, edge);
        put_series_name(out, family->name, "_bucket", labels, text);
        buf_printf(out, "%" PRIu64 "\n", histogram_count_at_most(values, edge));
    }
    put_series_name(out, family->name, "_bucket", labels, "+Inf");
    buf_printf(out, "%" PRIu64 "\n", histogram_count(values));
    put_series_name(out, family->name, "_sum", labels, NULL);
    if (family->unit == METRICS_NANOSECONDS)
        buf_printf(out, "%.9f\n", (double)histogram_sum(values) / (double)NS_PER_S);
    else
        buf_printf(out, "%" PRIu64 "\n", histogram_sum(values));
    put_series_name(out, family->name, "_count", labels, NULL);
    buf_printf(out, "%" PRIu64 "\n", histogram_count(values));
}

static void put_histogram_series(struct buf *out, const struct family *family, const struct series *series)
{
    struct histogram *values = malloc(sizeof *values);
    if (!values) {
        out->err = ERR_NOMEM;
        return;
    }
    histogram_init(values);
    if (series->retired_values)
        histogram_merge(values, series->retired_values);
    for (size_t i = 0; i < series->cell_count; i++)
        histogram_merge(values, series->cells[i].from);
    put_histogram(out, family, series->labels, values);
    free(values);
}

static void put_trace(struct buf *out, const struct family *family, const struct series *series, const struct cell *cell)
{
    double value;
    char text[METRICS_TEXT_SIZE] = "";
    if (!cell->trace((void *)(uintptr_t)cell->from, &value, text))
        return;
    buf_printf(out, "%s{%s%s%s=\"", family->name, series->labels, series->labels[0] ? "," : "", cell->label_name);
    put_escaped(out, text, true);
    buf_put_string(out, "\"} ");
    put_value(out, value);
    buf_put_byte(out, '\n');
}

static void put_family(struct buf *out, const struct family *family, mono_ns now)
{
    static const char *const type_names[] = {"counter", "gauge", "histogram"};
    buf_printf(out, "# HELP %s ", family->name);
    put_escaped(out, family->help, false);
    buf_printf(out, "\n# TYPE %s %s\n", family->name, type_names[family->type]);
    for (size_t i = 0; i < family->series_count; i++) {
        const struct series *series = &family->series[i];
        if (family->type == FAMILY_HISTOGRAM) {
            put_histogram_series(out, family, series);
            continue;
        }
        /* a gauge without owner says nothing; a counter keeps what it had */
        if (family->type == FAMILY_GAUGE && series->cell_count == 0)
            continue;
        if (series->cell_count > 0 && series->cells[0].type == CELL_TRACE) {
            put_trace(out, family, series, &series->cells[0]);
            continue;
        }
        put_series_name(out, family->name, "", series->labels, NULL);
        put_value(out, series_value(family, series, now));
        buf_put_byte(out, '\n');
    }
}

static void put_threads(struct buf *out);

void metrics_scrape(struct metrics_registry *registry, struct buf *out, mono_ns now)
{
    pthread_mutex_lock(&registry->lock);
    for (size_t i = 0; i < registry->family_count; i++)
        put_family(out, &registry->families[i], now);
    bool with_process = find_family(registry, "process_cpu_seconds_total") != NULL;
    pthread_mutex_unlock(&registry->lock);
    if (with_process)
        put_threads(out);
}

enum err metrics_read(struct metrics_registry *registry, double *value_out, const struct metric *metric)
{
    char *labels = labels_text(metric);
    enum err err = ERR_NOTFOUND;
    pthread_mutex_lock(&registry->lock);
    struct family *family = find_family(registry, metric->name);
    struct series *series = family ? find_series(family, labels) : NULL;
    if (series) {
        *value_out = series_value(family, series, clock_mono());
        err = ERR_OK;
    }
    pthread_mutex_unlock(&registry->lock);
    free(labels);
    return err;
}

/* ---- the process -------------------------------------------------------------------------------------------------------------------- */

static double read_cpu(void *arg)
{
    (void)arg;
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0)
        return 0;
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static struct proc_memory read_memory(void)
{
    struct proc_memory memory = {0};
    if (proc_read_memory(0, &memory))
        memory = (struct proc_memory){0};
    return memory;
}

static double read_resident(void *arg)
{
    (void)arg;
    return (double)read_memory().resident_bytes;
}

static double read_anonymous(void *arg)
{
    (void)arg;
    return (double)read_memory().anonymous_bytes;
}

static double read_virtual(void *arg)
{
    (void)arg;
    return (double)read_memory().virtual_bytes;
}

static double read_open_fds(void *arg)
{
    (void)arg;
    uint64_t fd_count;
    return proc_read_fd_count(0, &fd_count) ? NAN : (double)fd_count;
}

static double read_max_fds(void *arg)
{
    (void)arg;
    struct rlimit limit;
    return getrlimit(RLIMIT_NOFILE, &limit) != 0 ? NAN : limit.rlim_cur == RLIM_INFINITY ? INFINITY : (double)limit.rlim_cur;
}

static double read_start_time(void *arg)
{
    (void)arg;
    static int64_t start_time; /* asked once: the answer wanders with the wall clock otherwise; guarded by the registry's lock */
    if (start_time == 0 && proc_read_start_time(0, &start_time))
        return NAN;
    return (double)start_time / (double)NS_PER_S;
}

static double read_log_written(void *arg)
{
    (void)arg;
    return (double)logger_stats().written;
}

static double read_log_suppressed(void *arg)
{
    (void)arg;
    return (double)logger_stats().suppressed;
}

static double read_log_lost(void *arg)
{
    (void)arg;
    return (double)logger_stats().lost;
}

void metrics_register_process(struct metrics_registry *registry)
{
    static const char lines_help[] = "Lines of the program's log, by what became of them.";
    metrics_register_counter_fn(registry, read_cpu, NULL, METRIC("process_cpu_seconds_total", "User and system CPU time of the process."));
    metrics_register_gauge_fn(registry, read_resident, NULL, METRIC("process_resident_memory_bytes", "Resident memory."));
    metrics_register_gauge_fn(registry, read_virtual, NULL, METRIC("process_virtual_memory_bytes", "Virtual memory."));
    metrics_register_gauge_fn(
        registry, read_anonymous, NULL,
        METRIC("tidegate_process_anonymous_memory_bytes", "Resident anonymous memory: what the program allocated and touched."));
    metrics_register_gauge_fn(registry, read_open_fds, NULL, METRIC("process_open_fds", "Open file descriptors."));
    metrics_register_gauge_fn(registry, read_max_fds, NULL, METRIC("process_max_fds", "Limit of open file descriptors."));
    metrics_register_gauge_fn(registry, read_start_time, NULL,
                              METRIC("process_start_time_seconds", "Start of the process, seconds since 1970."));
    metrics_register_counter_fn(registry, read_log_written, NULL, METRIC("tidegate_log_lines_total", lines_help, {"outcome", "written"}));
    metrics_register_counter_fn(registry, read_log_suppressed, NULL,
                                METRIC("tidegate_log_lines_total", lines_help, {"outcome", "suppressed"}));
    metrics_register_counter_fn(registry, read_log_lost, NULL, METRIC("tidegate_log_lines_total", lines_help, {"outcome", "lost"}));
}

static int compare_threads(const void *a, const void *b)
{
    return strcmp(((const struct proc_thread *)a)->name, ((const struct proc_thread *)b)->name);
}

/* CPU seconds by thread name, threads of one name summed. Threads come and go with their names, so they are no registered cells. */
static void put_threads(struct buf *out)
{
    size_t thread_count = 0;
    struct proc_thread *threads = calloc(PROCESS_THREAD_COUNT_MAX, sizeof *threads);
    if (!threads || proc_read_threads(0, threads, PROCESS_THREAD_COUNT_MAX, &thread_count))
        thread_count = 0;
    if (thread_count > 0) {
        qsort(threads, thread_count, sizeof *threads, compare_threads);
        buf_put_string(out, "# HELP tidegate_thread_cpu_seconds_total CPU time of the running threads, by name.\n"
                            "# TYPE tidegate_thread_cpu_seconds_total counter\n");
    }
    for (size_t i = 0; i < thread_count;) {
        const char *name = threads[i].name;
        int64_t cpu_ns = 0;
        for (; i < thread_count && strcmp(threads[i].name, name) == 0; i++)
            cpu_ns += threads[i].cpu_ns;
        buf_put_string(out, "tidegate_thread_cpu_seconds_total{thread=\"");
        put_escaped(out, name, true);
        buf_put_string(out, "\"} ");
        put_value(out, (double)cpu_ns / (double)NS_PER_S);
        buf_put_byte(out, '\n');
    }
    free(threads);
}
