#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/metrics.h"

static struct buf scrape(struct metrics_registry *registry, mono_ns now)
{
    struct buf out;
    buf_init(&out, 1 << 20);
    metrics_scrape(registry, &out, now);
    assert_int_equal(out.err, 0);
    return out;
}

static void assert_has_line(struct buf *out, const char *line)
{
    const char *text = buf_string(out);
    size_t size = strlen(line);
    for (const char *at = text; (at = strstr(at, line)); at++)
        if ((at == text || at[-1] == '\n') && at[size] == '\n')
            return;
    fail_msg("the line\n%s\nis not in\n%s", line, text);
}

static double read_seven(void *arg)
{
    (void)arg;
    return 7.5;
}

static void cells_of_one_series_are_summed(void **state)
{
    (void)state;
    struct metrics_registry *registry = metrics_registry_new();
    struct counter a = {0}, b = {0}, c = {0};
    struct gauge gauge = {0};
    double value;
    const struct metric *dropped = METRIC("tidegate_dropped_total", "Dropped, by reason.", {"reason", "ring_full"}, {"class", "qos0"});
    metrics_register_counter(registry, &a, dropped);
    /* the same labels in another order */
    metrics_register_counter(registry, &b,
                             METRIC("tidegate_dropped_total", "Dropped, by reason.", {"class", "qos0"}, {"reason", "ring_full"}));
    metrics_register_counter(registry, &c,
                             METRIC("tidegate_dropped_total", "Dropped, by reason.", {"class", "qos0"}, {"reason", "a\"b\\c\nd\xff"}));
    metrics_register_gauge(registry, &gauge, METRIC("tidegate_sessions", "Sessions now."));
    metrics_register_gauge_fn(registry, read_seven, NULL, METRIC("tidegate_seven", "A computed value."));
    counter_add(&a, 5);
    counter_inc(&b);
    counter_add_shared(&c, 2);
    gauge_add(&gauge, 10);
    gauge_add(&gauge, -12);
    struct buf out = scrape(registry, 0);
    assert_has_line(&out, "# HELP tidegate_dropped_total Dropped, by reason.");
    assert_has_line(&out, "# TYPE tidegate_dropped_total counter");
    assert_has_line(&out, "tidegate_dropped_total{class=\"qos0\",reason=\"ring_full\"} 6");
    assert_has_line(&out, "tidegate_dropped_total{class=\"qos0\",reason=\"a\\\"b\\\\c\\nd\xef\xbf\xbd\"} 2");
    assert_has_line(&out, "tidegate_sessions -2");
    assert_has_line(&out, "tidegate_seven 7.5");
    assert_int_equal(metrics_read(registry, &value, dropped), 0);
    assert_true(value == 6);
    assert_int_equal(metrics_read(registry, &value, METRIC("tidegate_dropped_total", "", {"class", "qos1"})), ERR_NOTFOUND);
    buf_deinit(&out);
    /* a counter that goes leaves its value, a gauge does not */
    metrics_unregister(registry, &a);
    metrics_unregister(registry, &gauge);
    counter_inc(&b);
    out = scrape(registry, 0);
    assert_has_line(&out, "tidegate_dropped_total{class=\"qos0\",reason=\"ring_full\"} 7");
    assert_null(strstr(buf_string(&out), "tidegate_sessions -2"));
    buf_deinit(&out);
    metrics_registry_free(registry);
}

static void a_queue_has_its_triplet(void **state)
{
    (void)state;
    struct metrics_registry *registry = metrics_registry_new();
    struct queue_stats first = {0}, second = {0};
    metrics_register_queue(registry, "outbox", &first);
    metrics_register_queue(registry, "outbox", &second);
    queue_stats_push(&first, 100, 5 * NS_PER_S);
    queue_stats_push(&first, 50, 6 * NS_PER_S);
    queue_stats_push(&second, 7, 4 * NS_PER_S);
    struct buf out = scrape(registry, 10 * NS_PER_S);
    assert_has_line(&out, "tidegate_queue_messages{queue=\"outbox\"} 3");
    assert_has_line(&out, "tidegate_queue_bytes{queue=\"outbox\"} 157");
    assert_has_line(&out, "tidegate_queue_oldest_seconds{queue=\"outbox\"} 6");
    buf_deinit(&out);
    queue_stats_pop(&second, 7, 0);
    queue_stats_pop(&first, 100, 6 * NS_PER_S);
    out = scrape(registry, 10 * NS_PER_S);
    assert_has_line(&out, "tidegate_queue_messages{queue=\"outbox\"} 1");
    assert_has_line(&out, "tidegate_queue_oldest_seconds{queue=\"outbox\"} 4");
    buf_deinit(&out);
    queue_stats_pop(&first, 50, 0);
    out = scrape(registry, 10 * NS_PER_S);
    assert_has_line(&out, "tidegate_queue_bytes{queue=\"outbox\"} 0");
    assert_has_line(&out, "tidegate_queue_oldest_seconds{queue=\"outbox\"} 0");
    buf_deinit(&out);
    metrics_registry_free(registry);
}

static void histograms_are_exported_in_seconds(void **state)
{
    (void)state;
    struct metrics_registry *registry = metrics_registry_new();
    struct histogram *a = malloc(sizeof *a), *b = malloc(sizeof *b);
    histogram_init(a);
    histogram_init(b);
    metrics_register_histogram(registry, a, METRICS_NANOSECONDS, METRIC("tidegate_ack_seconds", "Time to PUBACK.", {"qos", "1"}));
    metrics_register_histogram(registry, b, METRICS_NANOSECONDS, METRIC("tidegate_ack_seconds", "Time to PUBACK.", {"qos", "1"}));
    histogram_record(a, 3 * NS_PER_MS);
    histogram_record(b, 3 * NS_PER_MS);
    histogram_record(b, 300 * NS_PER_S);
    for (int round = 0; round < 2; round++) {
        struct buf out = scrape(registry, 0);
        assert_has_line(&out, "# TYPE tidegate_ack_seconds histogram");
        assert_has_line(&out, "tidegate_ack_seconds_bucket{qos=\"1\",le=\"0.002\"} 0");
        assert_has_line(&out, "tidegate_ack_seconds_bucket{qos=\"1\",le=\"0.005\"} 2");
        assert_has_line(&out, "tidegate_ack_seconds_bucket{qos=\"1\",le=\"100\"} 2");
        assert_has_line(&out, "tidegate_ack_seconds_bucket{qos=\"1\",le=\"+Inf\"} 3");
        assert_has_line(&out, "tidegate_ack_seconds_sum{qos=\"1\"} 300.006000000");
        assert_has_line(&out, "tidegate_ack_seconds_count{qos=\"1\"} 3");
        buf_deinit(&out);
        metrics_unregister(registry, b); /* its values stay in the second round */
    }
    metrics_registry_free(registry);
    free(a);
    free(b);
}

/* The judge that operators use; skipped with a message where it is not installed. */
static void promtool_accepts_it(void **state)
{
    (void)state;
    struct metrics_registry *registry = metrics_registry_new();
    struct counter counter = {3};
    struct queue_stats stats = {1, 2, 3};
    struct histogram *latency = malloc(sizeof *latency), *sizes = malloc(sizeof *sizes);
    histogram_init(latency);
    histogram_init(sizes);
    histogram_record(latency, 12345678);
    histogram_record(sizes, 200);
    pthread_setname_np(pthread_self(), "odd\"name");
    metrics_register_process(registry);
    metrics_register_counter(registry, &counter,
                             METRIC("tidegate_publishes_total", "Accepted PUBLISH packets.", {"qos", "1"}, {"note", "a\"\\\n"}));
    metrics_register_queue(registry, "log", &stats);
    metrics_register_histogram(registry, latency, METRICS_NANOSECONDS, METRIC("tidegate_commit_seconds", "Commit time."));
    metrics_register_histogram(registry, sizes, METRICS_BYTES, METRIC("tidegate_payload_bytes", "Payload sizes."));
    struct buf out = scrape(registry, clock_mono());
    assert_has_line(&out, "tidegate_payload_bytes_bucket{le=\"256\"} 1");
    assert_non_null(strstr(buf_string(&out), "\nprocess_resident_memory_bytes "));
    assert_non_null(strstr(buf_string(&out), "\ntidegate_thread_cpu_seconds_total{thread=\"odd\\\"name\"} "));
    assert_null(strstr(buf_string(&out), "NaN"));
    if (system("command -v promtool >/dev/null 2>&1") != 0) {
        print_message("promtool is not installed: its check is skipped\n");
    } else {
        FILE *judge = popen("promtool check metrics", "w");
        assert_non_null(judge);
        assert_int_equal(fwrite(out.data, 1, out.size, judge), out.size);
        assert_int_equal(pclose(judge), 0);
    }
    buf_deinit(&out);
    metrics_registry_free(registry);
    free(latency);
    free(sizes);
}

struct worker {
    struct counter counter;
    struct queue_stats stats;
};

static void *count_up(void *arg)
{
    struct worker *worker = arg;
    for (int i = 0; i < 100000; i++) {
        counter_inc(&worker->counter);
        queue_stats_set(&worker->stats, (uint64_t)i, 1, i);
    }
    return NULL;
}

static void scraping_runs_beside_the_owners(void **state)
{
    (void)state;
    struct metrics_registry *registry = metrics_registry_new();
    struct worker workers[2] = {0};
    pthread_t threads[2];
    double value = 0, before = 0;
    const struct metric *metric = METRIC("tidegate_work_total", "Work.");
    for (int i = 0; i < 2; i++) {
        metrics_register_counter(registry, &workers[i].counter, metric);
        metrics_register_queue(registry, "work", &workers[i].stats);
        assert_int_equal(pthread_create(&threads[i], NULL, count_up, &workers[i]), 0);
    }
    while (value < 200000) {
        assert_int_equal(metrics_read(registry, &value, metric), 0);
        assert_true(value >= before);
        before = value;
        struct buf out = scrape(registry, 0);
        buf_deinit(&out);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    metrics_registry_free(registry);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cells_of_one_series_are_summed),     cmocka_unit_test(a_queue_has_its_triplet),
        cmocka_unit_test(histograms_are_exported_in_seconds), cmocka_unit_test(promtool_accepts_it),
        cmocka_unit_test(scraping_runs_beside_the_owners),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
