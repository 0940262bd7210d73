/* Metrics: cells that their owner writes without a lock, and a registry that a scraper turns into Prometheus text.
 *
 * A cell (counter, gauge, queue_stats, histogram) lives in its owner's struct and has one writer thread, which changes it by plain load and
 * relaxed store: a counter costs what an integer costs. The scraper reads with relaxed loads. Several threads register a cell each under
 * one name and the same labels; the scrape shows their sum.
 *
 *     struct counter dropped;                                       // one a shard, zeroed
 *     metrics_register_counter(registry, &dropped, METRIC("tidegate_dropped_messages_total", "Copies dropped, by reason.", {"reason",
 * "ring_full"})); counter_add(&dropped, 1);
 *
 * Names follow Prometheus: counters end in _total, units are base units (seconds, bytes), a name has one type and one help. A violation is
 * a bug (CHECK). Label values may be any bytes; they are escaped. Names, helps and labels are copied. A registered cell must outlive the
 * registry or be taken out with metrics_unregister() (a counter's last value stays in the sum, so that the series never falls). The
 * registry's lock is taken for registering and scraping only. Callbacks run under it, on the scraper's thread, and must not register. */
#ifndef TIDEGATE_COMMON_METRICS_H
#define TIDEGATE_COMMON_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/clock.h"
#include "common/err.h"
#include "common/histogram.h"

struct counter {
    uint64_t value;
};
struct gauge {
    int64_t value;
};

/* Thread: the cell's only writer. */
static inline void counter_add(struct counter *counter, uint64_t count)
{
    __atomic_store_n(&counter->value, counter->value + count, __ATOMIC_RELAXED);
}
static inline void counter_inc(struct counter *counter) { counter_add(counter, 1); }
static inline void gauge_set(struct gauge *gauge, int64_t value) { __atomic_store_n(&gauge->value, value, __ATOMIC_RELAXED); }
static inline void gauge_add(struct gauge *gauge, int64_t difference) { gauge_set(gauge, gauge->value + difference); }

/* Thread: any. */
static inline uint64_t counter_get(const struct counter *counter) { return __atomic_load_n(&counter->value, __ATOMIC_RELAXED); }
static inline int64_t gauge_get(const struct gauge *gauge) { return __atomic_load_n(&gauge->value, __ATOMIC_RELAXED); }

/* For the rare cell with several writers (slow paths only). Thread: any; do not mix with counter_add() on one cell. */
static inline void counter_add_shared(struct counter *counter, uint64_t count)
{
    __atomic_fetch_add(&counter->value, count, __ATOMIC_RELAXED);
}
static inline void gauge_add_shared(struct gauge *gauge, int64_t difference)
{
    __atomic_fetch_add(&gauge->value, difference, __ATOMIC_RELAXED);
}

/* What every queue tells: how many, how large, since when. `oldest_ns` is the clock_mono() of the head's arrival and means nothing while
 * messages is 0. Same threads as a cell: one writer. */
struct queue_stats {
    uint64_t messages;
    uint64_t bytes;
    mono_ns oldest_ns;
};

/* Set all three. Thread: the only writer. */
static inline void queue_stats_set(struct queue_stats *stats, uint64_t messages, uint64_t bytes, mono_ns oldest_ns)
{
    __atomic_store_n(&stats->oldest_ns, oldest_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&stats->bytes, bytes, __ATOMIC_RELAXED);
    __atomic_store_n(&stats->messages, messages, __ATOMIC_RELAXED);
}
/* One message in; the caller keeps oldest_ns right when the queue was empty: `now` is used then. */
static inline void queue_stats_push(struct queue_stats *stats, uint64_t bytes, mono_ns now)
{
    queue_stats_set(stats, stats->messages + 1, stats->bytes + bytes, stats->messages == 0 ? now : stats->oldest_ns);
}
/* One message out; `oldest_ns` is the arrival of the one that is now the head (ignored when none is left). */
static inline void queue_stats_pop(struct queue_stats *stats, uint64_t bytes, mono_ns oldest_ns)
{
    queue_stats_set(stats, stats->messages - 1, stats->bytes - bytes, oldest_ns);
}

#define METRIC_LABEL_COUNT_MAX 4

struct metric_label {
    const char *name;
    const char *value;
};

/* What a series is called. Labels end at the first NULL name. All borrowed. */
struct metric {
    const char *name;
    const char *help;
    struct metric_label labels[METRIC_LABEL_COUNT_MAX + 1];
};

/* METRIC("name", "help", {"label", "value"}, ...): a struct metric for the register functions. */
#define METRIC(name_, help_, ...) (&(const struct metric){(name_), (help_), {__VA_ARGS__}})

struct metrics_registry;

/* Heap object; NULL without memory. Thread of all below: any. */
struct metrics_registry *metrics_registry_new(void);
void metrics_registry_free(struct metrics_registry *registry);

/* Register a cell (borrowed) or a callback under a name. Running out of memory here is at start-up and is fatal (CHECK). */
void metrics_register_counter(struct metrics_registry *registry, const struct counter *cell, const struct metric *metric);
void metrics_register_gauge(struct metrics_registry *registry, const struct gauge *cell, const struct metric *metric);

/* A value computed at the scrape. Counters' callbacks must never fall. */
typedef double (*metrics_read_fn)(void *arg);
void metrics_register_gauge_fn(struct metrics_registry *registry, metrics_read_fn read, void *arg, const struct metric *metric);
void metrics_register_counter_fn(struct metrics_registry *registry, metrics_read_fn read, void *arg, const struct metric *metric);

/* A gauge of one thing at a time, which one of its labels names (a correlation id, say): at each scrape `read` writes that label's value
 * into `text_out` and the gauge's into `value_out`; false: nothing to show now. label_name is borrowed, labels of `metric` are added to it.
 * Every value of the label is a new series to Prometheus: for what changes a few times a minute as it sees it, not for each message. */
#define METRICS_TEXT_SIZE 64
typedef bool (*metrics_trace_fn)(void *arg, double *value_out, char text_out[METRICS_TEXT_SIZE]);
void metrics_register_trace(struct metrics_registry *registry, metrics_trace_fn read, void *arg, const char *label_name,
                            const struct metric *metric);

/* What a histogram's values are: nanoseconds (exported as seconds, buckets 10 us .. 100 s in steps 1-2-5), bytes or plain counts (powers of
 * four). */
enum metrics_unit { METRICS_NANOSECONDS, METRICS_BYTES, METRICS_COUNT };
void metrics_register_histogram(struct metrics_registry *registry, const struct histogram *cell, enum metrics_unit unit,
                                const struct metric *metric);

/* The triplet of a queue: tidegate_queue_messages{queue="name"}, tidegate_queue_bytes{...}, tidegate_queue_oldest_seconds{...}.
 * Several under one name: sums, and the age of the oldest of all. */
void metrics_register_queue(struct metrics_registry *registry, const char *queue_name, const struct queue_stats *stats);

/* Take out all that was registered with this cell, stats or callback argument. */
void metrics_unregister(struct metrics_registry *registry, const void *cell_or_arg);

/* process_* metrics (CPU, resident and virtual memory, descriptors, start time), anonymous memory, CPU seconds per thread name, log lines.
 * Linux. */
void metrics_register_process(struct metrics_registry *registry);

/* Append everything as Prometheus text (version 0.0.4), families and series in a stable order. `now` ages the queues. Thread: any. */
void metrics_scrape(struct metrics_registry *registry, struct buf *out, mono_ns now);

/* The current value of one series as the scrape would show it (histograms: their count); for /api, $SYS and tests.
 * `labels` is like in METRIC. Returns 0 or ERR_NOTFOUND. */
enum err metrics_read(struct metrics_registry *registry, double *value_out, const struct metric *metric) must_check;

#define METRICS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"

#endif
