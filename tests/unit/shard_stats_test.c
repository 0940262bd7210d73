/* The books: balanced ones pass, each missing copy is found, and every cell can be registered. */
#include "broker/core/shard_stats.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include <string.h>

static void balanced_books_pass(void **state)
{
    (void)state;
    struct shard_stats a = {0}, b = {0};
    const struct shard_stats *all[] = {&a, &b};
    struct errmsg msg;
    assert_true(shard_stats_check(all, 2, &msg));
    counter_add(&a.copies_routed, 10);
    assert_false(shard_stats_check(all, 2, &msg));
    assert_non_null(strstr(msg.text, "routed 10"));
    counter_add(&a.copies_sent_qos0, 1);
    counter_add(&a.copies_acked, 2);
    gauge_set(&a.inflight, 1);
    queue_stats_push(&b.queued, 100, 1);
    gauge_set(&a.copies_held, 1);
    counter_add(&a.copies_posted, 3);
    counter_add(&b.copies_received, 1);
    counter_add(&b.dropped_expired, 1);
    assert_false(shard_stats_check(all, 2, &msg));
    counter_add(&a.dropped_ring_full, 1);
    assert_true(shard_stats_check(all, 2, &msg));
    counter_add(&a.telemetry_matched, 3);
    counter_add(&a.telemetry_logged, 1);
    counter_add(&a.telemetry_refused_no_device, 1);
    assert_false(shard_stats_check(all, 2, &msg));
    gauge_set(&a.telemetry_logging, 1);
    assert_true(shard_stats_check(all, 2, &msg));
}

static void every_cell_is_registered(void **state)
{
    (void)state;
    struct metrics_registry *registry = metrics_registry_new();
    struct shard_stats a = {0}, b = {0};
    shard_stats_register(&a, registry);
    shard_stats_register(&b, registry); /* shards add up */
    counter_add(&a.dropped_queue_full, 2);
    counter_add(&b.dropped_queue_full, 3);
    double value = 0;
    assert_int_equal(metrics_read(registry, &value, METRIC("tidegate_dropped_copies_total", "", {"reason", "queue_full"})), 0);
    assert_true(value == 5);
    struct buf text;
    buf_init(&text, 1 << 20);
    metrics_scrape(registry, &text, 0);
    assert_int_equal(text.err, 0);
    assert_non_null(strstr(buf_string(&text), "tidegate_queue_messages{queue=\"ack_gate\"} 0"));
    buf_deinit(&text);
    metrics_registry_free(registry);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(balanced_books_pass), cmocka_unit_test(every_cell_is_registered)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
