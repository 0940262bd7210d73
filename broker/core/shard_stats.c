#include "broker/core/shard_stats.h"

#include <inttypes.h>
#include <stdio.h>

void shard_stats_register(const struct shard_stats *stats, struct metrics_registry *registry)
{
#define REGISTER(field, name, help, label, value)                                                                                          \
    metrics_register_counter(registry, &stats->field, METRIC(name, help, {label[0] ? label : NULL, value}));
#define X(field, ...) REGISTER(field, __VA_ARGS__)
    SHARD_COUNTER_MAP(X)
#undef X
#define X(field, name, help) metrics_register_gauge(registry, &stats->field, METRIC(name, help, {NULL, NULL}));
    SHARD_GAUGE_MAP(X)
#undef X
#define X(field, name) metrics_register_queue(registry, name, &stats->field);
    SHARD_QUEUE_MAP(X)
#undef X
    metrics_register_histogram(registry, &stats->gate_hold_ns, METRICS_NANOSECONDS,
                               METRIC("tidegate_ack_hold_seconds", "How long the gate held an acknowledgement."));
}

static uint64_t dropped(const struct shard_stats *stats)
{
    uint64_t sum = 0;
#define X(field, ...) sum += counter_get(&stats->field);
    SHARD_DROP_MAP(X)
#undef X
    return sum;
}

static uint64_t telemetry_refused(const struct shard_stats *stats)
{
    uint64_t sum = 0;
#define X(field, ...) sum += counter_get(&stats->field);
    SHARD_TELEMETRY_REFUSED_MAP(X)
#undef X
    return sum;
}

bool shard_stats_check(const struct shard_stats *const *all, size_t count, struct errmsg *msg)
{
    uint64_t routed = 0, restored = 0, sent = 0, acked = 0, gone = 0, matched = 0, logged = 0, refused = 0;
    int64_t inflight = 0, queued = 0, held = 0, on_rings = 0, logging = 0;
    for (size_t i = 0; i < count; i++) {
        const struct shard_stats *stats = all[i];
        routed += counter_get(&stats->copies_routed);
        restored += counter_get(&stats->copies_restored);
        sent += counter_get(&stats->copies_sent_qos0);
        acked += counter_get(&stats->copies_acked);
        gone += dropped(stats);
        inflight += gauge_get(&stats->inflight);
        queued += (int64_t)stats->queued.messages;
        held += gauge_get(&stats->copies_held);
        on_rings += (int64_t)counter_get(&stats->copies_posted) - (int64_t)counter_get(&stats->copies_received);
        matched += counter_get(&stats->telemetry_matched);
        logged += counter_get(&stats->telemetry_logged);
        refused += telemetry_refused(stats);
        logging += gauge_get(&stats->telemetry_logging);
    }
    bool copies_hold = (int64_t)(routed + restored) == (int64_t)(sent + acked + gone) + inflight + queued + held + on_rings;
    bool telemetry_holds = (int64_t)matched == (int64_t)(logged + refused) + logging;
    if (!copies_hold || !telemetry_holds)
        err_set(msg, ERR_INVALID,
                "copies: routed %" PRIu64 " + restored %" PRIu64 " = sent %" PRIu64 " + acked %" PRIu64 " + inflight %" PRId64
                " + queued %" PRId64 " + held %" PRId64 " + rings %" PRId64 " + dropped %" PRIu64 "; telemetry: %" PRIu64 " = %" PRIu64
                " + %" PRIu64 " + %" PRId64,
                routed, restored, sent, acked, inflight, queued, held, on_rings, gone, matched, logged, refused, logging);
    return copies_hold && telemetry_holds;
}
