#include "broker/ops/admin_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/core/shard_stats.h"
#include "broker/durable/checkpoint.h"
#include "broker/durable/reader_thread.h"
#include "broker/durable/store_reader.h"
#include "broker/route/route_stats.h"
#include "common/check.h"
#include "common/data_dir.h"
#include "common/http.h"
#include "common/logger.h"

#define ADMIN_STUCK_NS (20 * NS_PER_S) /* an idle loop turns every 10 s */

struct admin_api {
    struct admin_sources sources;
    struct metrics_registry *registry;
    struct http_server *server;
};

/* ---- metrics ---- */

static double read_atomic_u64(void *arg) { return (double)atomic_load_explicit((_Atomic uint64_t *)arg, memory_order_relaxed); }
static double read_atomic_i64(void *arg) { return (double)atomic_load_explicit((_Atomic int64_t *)arg, memory_order_relaxed); }
static double read_seconds(void *gauge_ns) { return (double)gauge_get(gauge_ns) / (double)NS_PER_S; }
static double read_tls_resumed(void *arg) { return (double)tls_server_resumed(arg); }

static void register_loops(struct admin_api *admin)
{
    struct metrics_registry *registry = admin->registry;
    for (uint16_t i = 0; i < admin->sources.shard_count; i++) {
        struct loop *loop = admin->sources.loops[i];
        char shard[8];
        (void)snprintf(shard, sizeof shard, "%u", i);
        shard_stats_register(shard_get_stats(loop->shard), registry);
        struct loop_stats *stats = &loop->stats;
        metrics_register_gauge(registry, &stats->connections,
                               METRIC("tidegate_loop_connections", "Connections at home on this loop.", {"shard", shard}));
        metrics_register_gauge(
            registry, &stats->lingering,
            METRIC("tidegate_lingering_connections", "Connections closed by us whose last bytes are still on their way."));
        metrics_register_counter(registry, &stats->arrived, METRIC("tidegate_loop_arrived_connections_total", "Connections taken home."));
        metrics_register_counter(registry, &stats->closed, METRIC("tidegate_loop_closed_connections_total", "Connections closed at home."));
        metrics_register_counter(registry, &stats->bytes_received,
                                 METRIC("tidegate_socket_received_bytes_total", "Bytes read from sockets, after decryption."));
        metrics_register_counter(registry, &stats->bytes_sent,
                                 METRIC("tidegate_socket_sent_bytes_total", "Bytes given to sockets, before encryption."));
        metrics_register_counter(registry, &stats->write_blocked,
                                 METRIC("tidegate_socket_full_total", "Writes that a socket did not take whole."));
        metrics_register_counter(registry, &stats->turns, METRIC("tidegate_loop_turns_total", "Turns of the event loops."));
        metrics_register_histogram(registry, &stats->turn_wall_ns, METRICS_NANOSECONDS,
                                   METRIC("tidegate_loop_turn_seconds", "Time of one turn by the clock."));
        metrics_register_histogram(registry, &stats->turn_cpu_ns, METRICS_NANOSECONDS,
                                   METRIC("tidegate_loop_turn_cpu_seconds", "CPU time of one turn; every 16th is measured."));
        metrics_register_histogram(registry, &stats->lag_ns, METRICS_NANOSECONDS,
                                   METRIC("tidegate_loop_lag_seconds", "How late timers of the event loops fire."));
        metrics_register_queue(registry, "shard_ring", exchange_stats(admin->sources.exchange, i));
        metrics_register_counter(
            registry, exchange_refused(admin->sources.exchange, i),
            METRIC("tidegate_ring_full_total", "Posts that found the ring to another thread full.", {"from", "shard"}));
    }
}

static void register_threads(struct admin_api *admin)
{
    const struct admin_sources *sources = &admin->sources;
    struct metrics_registry *registry = admin->registry;
    static const struct {
        actor_id actor;
        const char *queue, *name;
    } threads[] = {{ACTOR_ROUTE, "route_ring", "route"}, {ACTOR_STORE, "store_ring", "store"}, {ACTOR_LOG, "log_ring", "log"}};
    for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++) {
        metrics_register_queue(registry, threads[i].queue, exchange_stats(sources->exchange, threads[i].actor));
        metrics_register_counter(
            registry, exchange_refused(sources->exchange, threads[i].actor),
            METRIC("tidegate_ring_full_total", "Posts that found the ring to another thread full.", {"from", threads[i].name}));
    }
    struct route_stats *route = route_thread_stats(sources->route);
    metrics_register_queue(registry, "retained_scans", &route->scans);
    metrics_register_counter(registry, &route->requests, METRIC("tidegate_route_requests_total", "Requests to the route thread."));
#define RETAINED(field, result)                                                                                                            \
    metrics_register_counter(registry, &route->field,                                                                                      \
                             METRIC("tidegate_retained_updates_total", "Retained PUBLISHes by what they did.", {"result", result}))
    RETAINED(retained_set, "set");
    RETAINED(retained_removed, "removed");
    RETAINED(retained_superseded, "superseded");
#undef RETAINED
    metrics_register_counter(registry, &route->retained_expired,
                             METRIC("tidegate_retained_expired_total", "Retained values that were removed because they had expired."));
    metrics_register_counter(registry, &route->tree_refused,
                             METRIC("tidegate_tree_refused_filters_total", "Filters refused because of max_subscription_bytes."));
    metrics_register_counter(registry, &route->retained_sent,
                             METRIC("tidegate_retained_sent_total", "Retained values sent to new subscriptions."));
    metrics_register_queue(registry, "retained_reads", &route->retained_reads);
    metrics_register_queue(registry, "retained_window", &route->retained_window);
    metrics_register_counter(registry, &route->retained_read,
                             METRIC("tidegate_retained_reads_total", "Retained values that subscriptions had read from disk."));
    metrics_register_counter(registry, &route->retained_read_gone,
                             METRIC("tidegate_retained_unread_total", "Of these, left out, by reason.", {"reason", "gone"}));
    metrics_register_counter(registry, &route->retained_read_corrupt,
                             METRIC("tidegate_retained_unread_total", "Of these, left out, by reason.", {"reason", "corrupt"}));
    metrics_register_counter(
        registry, &route->retained_stale,
        METRIC("tidegate_retained_stale_total", "Retained values not sent, because newer ones came while they waited."));
    metrics_register_gauge(registry, &route->retained_cached_bytes,
                           METRIC("tidegate_retained_cached_bytes", "Retained messages read from disk and kept for equal subscriptions."));
    metrics_register_gauge(registry, &route->retained_messages, METRIC("tidegate_retained_messages", "Retained messages."));
    metrics_register_gauge(registry, &route->retained_bytes, METRIC("tidegate_retained_bytes", "Bytes of the retained messages."));
    metrics_register_gauge(registry, &route->retained_index_bytes,
                           METRIC("tidegate_retained_index_bytes", "Memory of the index of retained topics."));
    metrics_register_gauge(registry, &route->retained_tombstones,
                           METRIC("tidegate_retained_tombstones", "Removals that are still remembered."));
    metrics_register_gauge(registry, &route->subscriptions, METRIC("tidegate_subscriptions", "Subscriptions."));
    metrics_register_gauge(registry, &route->exact_filters, METRIC("tidegate_filters", "Distinct filters.", {"kind", "exact"}));
    metrics_register_gauge(registry, &route->wildcard_filters, METRIC("tidegate_filters", "Distinct filters.", {"kind", "wildcard"}));
    metrics_register_gauge(registry, &route->trie_nodes, METRIC("tidegate_topic_tree_nodes", "Nodes of the tree of wildcard filters."));
    metrics_register_gauge(registry, &route->tree_bytes, METRIC("tidegate_topic_tree_bytes", "Memory of the topic tree."));
}

#define KV_STAT_MAP(X)                                                                                                                     \
    X(used_bytes, "tidegate_checkpoint_used_bytes", "Bytes of the checkpoint's database that are in use.")                                 \
    X(file_bytes, "tidegate_checkpoint_file_bytes", "Bytes of the checkpoint's database on disk, free pages included.")                    \
    X(map_bytes, "tidegate_checkpoint_limit_bytes", "Most that the checkpoint's database may become.")

#define X(field, name, help)                                                                                                               \
    static double read_kv_##field(void *arg)                                                                                               \
    {                                                                                                                                      \
        struct kv_stats stats;                                                                                                             \
        return kv_get_stats(arg, &stats) == ERR_OK ? (double)stats.field : -1;                                                             \
    }
KV_STAT_MAP(X)
#undef X

static void register_checkpoint(struct metrics_registry *registry, const struct checkpoint_stats *stats)
{
    metrics_register_queue(registry, "checkpoint_delta", &stats->delta);
    metrics_register_counter(registry, &stats->applied, METRIC("tidegate_checkpoint_records_total", "Records applied to the checkpoint."));
    metrics_register_counter(registry, &stats->applied_puts,
                             METRIC("tidegate_checkpoint_messages_total",
                                    "Messages with absent or slow recipients, by what became of them.", {"event", "applied"}));
    metrics_register_counter(registry, &stats->never_written,
                             METRIC("tidegate_checkpoint_messages_total",
                                    "Messages with absent or slow recipients, by what became of them.", {"event", "never_written"}));
    metrics_register_counter(registry, &stats->applied_acks,
                             METRIC("tidegate_checkpoint_acks_total", "Acknowledgements and drops applied to the checkpoint."));
    metrics_register_counter(
        registry, &stats->removal_commits,
        METRIC("tidegate_checkpoint_removal_commits_total", "Commits of removals alone, because the rest found no space."));
    metrics_register_counter(
        registry, &stats->expired,
        METRIC("tidegate_checkpoint_retained_expired_total", "Expired retained values that the checkpoint was told to remove."));
    metrics_register_counter(registry, &stats->dropped_deleted,
                             METRIC("tidegate_checkpoint_session_gone_total", "Copies whose session had been deleted."));
    metrics_register_counter(registry, &stats->commits, METRIC("tidegate_checkpoint_commits_total", "Commits of the checkpoint."));
    metrics_register_counter(registry, &stats->commit_retries,
                             METRIC("tidegate_checkpoint_commit_retries_total", "Commits that found no space and were tried again."));
    metrics_register_counter(registry, &stats->written_bytes,
                             METRIC("tidegate_checkpoint_written_bytes_total", "Bytes of keys and values given to the database."));
    metrics_register_counter(registry, &stats->corrupt,
                             METRIC("tidegate_checkpoint_damaged_values_total", "Values whose checksum was wrong: left out."));
}

static void register_store(struct admin_api *admin)
{
    const struct admin_sources *sources = &admin->sources;
    struct metrics_registry *registry = admin->registry;
    if (!sources->store)
        return;
    const struct store_thread_stats *prepare = store_thread_get_stats(sources->store);
    metrics_register_counter(registry, &prepare->prepare_steps,
                             METRIC("tidegate_log_prepare_steps_total", "Steps of getting log segments ready."));
    metrics_register_counter(registry, &prepare->prepare_errors, METRIC("tidegate_log_prepare_errors_total", "Steps of it that failed."));
    register_checkpoint(registry, checkpoint_get_stats(sources->checkpoint));
    const struct store_writer_stats *writer = store_thread_writer_stats(sources->store);
    metrics_register_gauge(registry, &writer->lag_bytes,
                           METRIC("tidegate_checkpoint_lag_bytes", "Bytes of log between the durable end and the checkpoint."));
    metrics_register_gauge_fn(
        registry, read_seconds, (void *)(uintptr_t)&writer->lag_ns,
        METRIC("tidegate_checkpoint_lag_seconds", "Since when there is something durable that the checkpoint has not."));
    metrics_register_gauge(registry, &writer->has_room, METRIC("tidegate_checkpoint_has_room", "1: the checkpoint keeps up with the log."));
    metrics_register_gauge(registry, &writer->is_full,
                           METRIC("tidegate_checkpoint_full", "1: the checkpoint's database has reached checkpoint_max_size."));
    metrics_register_gauge(registry, &writer->no_space, METRIC("tidegate_checkpoint_no_space", "1: the last commit found no space."));
    metrics_register_counter(registry, &writer->refused,
                             METRIC("tidegate_checkpoint_refused_records_total", "Records that no broker writes: passed over."));
    metrics_register_histogram(registry, &writer->commit_ns, METRICS_NANOSECONDS,
                               METRIC("tidegate_checkpoint_commit_seconds", "One commit of the checkpoint."));
#define X(field, name, help) metrics_register_gauge_fn(registry, read_kv_##field, sources->kv, METRIC(name, help));
    KV_STAT_MAP(X)
#undef X
    const struct store_reader_stats *reader = reader_thread_get_stats(sources->reader);
    metrics_register_queue(registry, "store_reads", &reader->waiting);
    metrics_register_counter(registry, &reader->requests, METRIC("tidegate_store_reads_total", "Requests to the checkpoint's reader."));
    metrics_register_counter(registry, &reader->messages,
                             METRIC("tidegate_store_read_messages_total", "Messages read back, by what was found.", {"found", "yes"}));
    metrics_register_counter(registry, &reader->gone,
                             METRIC("tidegate_store_read_messages_total", "Messages read back, by what was found.", {"found", "gone"}));
    metrics_register_counter(registry, &reader->corrupt,
                             METRIC("tidegate_store_read_messages_total", "Messages read back, by what was found.", {"found", "damaged"}));
    metrics_register_counter(registry, &reader->bytes, METRIC("tidegate_store_read_bytes_total", "Bytes of messages read back."));
}

/* One field of log_writer_stats, read under the writer's own rules. */
#define LOG_STAT_MAP(X)                                                                                                                    \
    X(write_count, counter, "tidegate_log_writes_total", "Writes of blocks to the log.")                                                   \
    X(block_count, counter, "tidegate_log_blocks_total", "Blocks written to the log.")                                                     \
    X(record_count, counter, "tidegate_log_records_total", "Records written to the log.")                                                  \
    X(byte_count, counter, "tidegate_log_written_bytes_total", "Bytes written to the log, with headers and padding.")                      \
    X(raw_byte_count, counter, "tidegate_log_raw_bytes_total", "Bytes of records before compression.")                                     \
    X(roll_count, counter, "tidegate_log_segments_begun_total", "Segments begun.")                                                         \
    X(roll_unprepared_count, counter, "tidegate_log_segments_unprepared_total", "Segments the log thread had to make itself.")             \
    X(recycled_count, counter, "tidegate_log_segments_recycled_total", "Segments used again.")                                             \
    X(used_bytes, gauge, "tidegate_log_used_bytes", "Bytes of the log that the checkpoint or a cursor still needs, configured or not.")    \
    X(limit_bytes, gauge, "tidegate_log_limit_bytes", "Bytes the log may use.")                                                            \
    X(free_bytes, gauge, "tidegate_log_disk_free_bytes", "Free bytes of the log's disk, as last looked.")                                  \
    X(segment_count, gauge, "tidegate_log_segments", "Segments of the log.")                                                               \
    X(direct, gauge, "tidegate_log_direct_io", "1: direct I/O is in use.")

#define X(field, kind, name, help)                                                                                                         \
    static double read_log_##field(void *arg)                                                                                              \
    {                                                                                                                                      \
        struct log_writer_stats stats;                                                                                                     \
        log_writer_stats(arg, &stats);                                                                                                     \
        return (double)stats.field;                                                                                                        \
    }
LOG_STAT_MAP(X)
#undef X

static void register_log(struct admin_api *admin)
{
    struct metrics_registry *registry = admin->registry;
    struct log_writer *writer = admin->sources.writer;
    if (!writer)
        return;
#define X(field, kind, name, help) metrics_register_##kind##_fn(registry, read_log_##field, writer, METRIC(name, help));
    LOG_STAT_MAP(X)
#undef X
    const struct log_thread_stats *log = log_thread_get_stats(admin->sources.log);
    metrics_register_histogram(registry, &log->commit_ns, METRICS_NANOSECONDS,
                               METRIC("tidegate_log_commit_seconds", "One write of the log, until it is durable."));
    metrics_register_histogram(registry, &log->wait_ns, METRICS_NANOSECONDS,
                               METRIC("tidegate_log_wait_seconds", "From a block's being found by the log thread until it is durable."));
    metrics_register_histogram(registry, &log->batch, METRICS_COUNT, METRIC("tidegate_log_batch_blocks", "Blocks in one write."));
    metrics_register_queue(registry, "log_pending", &log->pending);
    metrics_register_counter(registry, &log->spaced, METRIC("tidegate_log_spaced_writes_total", "Writes held back for company."));
    metrics_register_counter(registry, &log->no_space,
                             METRIC("tidegate_log_no_space_total", "Writes that found no space and were tried again."));
    metrics_register_gauge(
        registry, &log->waits_for_space,
        METRIC("tidegate_log_waits_for_space", "1: a write waits until the disk has space; nothing durable is acknowledged."));
    metrics_register_gauge(registry, &log->has_room, METRIC("tidegate_log_has_room", "1: the log takes messages."));
    metrics_register_gauge(registry, &log->failed, METRIC("tidegate_log_failed", "1: the log has failed for good."));
    metrics_register_gauge(registry, &log->raised, METRIC("tidegate_log_thread_raised", "1: the log thread runs at a raised priority."));
}

static void register_bucket(struct metrics_registry *registry, const struct admission_bucket *bucket, const char *event, const char *scope)
{
    struct admission_bucket *cells = (struct admission_bucket *)(uintptr_t)bucket;
    const struct {
        _Atomic uint64_t *cell;
        const char *verdict;
    } verdicts[] = {{&cells->admitted, "admit"}, {&cells->deferred, "defer"}, {&cells->rejected, "reject"}};
    for (size_t i = 0; i < sizeof verdicts / sizeof verdicts[0]; i++)
        metrics_register_counter_fn(registry, read_atomic_u64, verdicts[i].cell,
                                    METRIC("tidegate_admission_total", "Verdicts of admission.", {"event", event}, {"scope", scope},
                                           {"verdict", verdicts[i].verdict}));
}

static void register_door(struct admin_api *admin)
{
    const struct admin_sources *sources = &admin->sources;
    struct metrics_registry *registry = admin->registry;
    for (size_t i = 0; i < sources->listener_count; i++) {
        struct listener *listener = &sources->listeners[i];
        char scope[24];
        (void)snprintf(scope, sizeof scope, "%zu", i);
        metrics_register_gauge_fn(
            registry, read_atomic_i64, &listener->connections,
            METRIC("tidegate_listener_connections", "Connections of a listener that are at home.", {"listener", scope}));
        metrics_register_counter(registry, &listener->accepted,
                                 METRIC("tidegate_accepted_connections_total", "Connections accepted.", {"listener", scope}));
        metrics_register_counter(
            registry, &listener->handed_over,
            METRIC("tidegate_handed_over_connections_total", "Connections handed over to their home.", {"listener", scope}));
        metrics_register_counter(registry, &listener->accept_errors,
                                 METRIC("tidegate_accept_errors_total", "Errors of accept().", {"listener", scope}));
        for (int reason = 0; reason < LISTENER_REFUSAL_COUNT; reason++)
            metrics_register_counter(registry, &listener->refused[reason],
                                     METRIC("tidegate_door_refused_connections_total", "Connections that ended before they were at home.",
                                            {"listener", scope}, {"reason", listener_refusal_name((enum listener_refusal)reason)}));
        register_bucket(registry, &listener->accepts, "accept", scope);
        register_bucket(registry, &listener->connects, "connect", scope);
        if (listener->tls)
            metrics_register_counter_fn(registry, read_tls_resumed, listener->tls,
                                        METRIC("tidegate_tls_resumed_total", "Handshakes that resumed by ticket.", {"listener", scope}));
    }
    register_bucket(registry, door_accepts(sources->door), "accept", "process");
    register_bucket(registry, door_connects(sources->door), "connect", "process");
    const struct door_stats *door = door_get_stats(sources->door);
    metrics_register_queue(registry, "connecting", &door->guests);
    metrics_register_queue(registry, "deferred_connects", &door->deferred);
    metrics_register_counter(registry, &door->accept_pauses, METRIC("tidegate_accept_pauses_total", "Times accepting was paused."));
    metrics_register_histogram(registry, &door->arrival_ns, METRICS_NANOSECONDS,
                               METRIC("tidegate_handover_seconds", "From accepting a connection to handing it over."));
    if (!sources->pool)
        return;
    const struct cpu_pool_stats *pool = cpu_pool_get_stats(sources->pool);
    metrics_register_queue(registry, "cpu_pool", &pool->queue);
    metrics_register_counter(registry, &pool->done, METRIC("tidegate_cpu_pool_jobs_total", "Jobs of the CPU pool.", {"result", "done"}));
    metrics_register_counter(registry, &pool->expired,
                             METRIC("tidegate_cpu_pool_jobs_total", "Jobs of the CPU pool.", {"result", "expired"}));
    metrics_register_counter(registry, &pool->refused,
                             METRIC("tidegate_cpu_pool_jobs_total", "Jobs of the CPU pool.", {"result", "refused"}));
    metrics_register_histogram(registry, &pool->wait_ns, METRICS_NANOSECONDS,
                               METRIC("tidegate_cpu_pool_wait_seconds", "Wait of jobs for a thread."));
    metrics_register_histogram(registry, &pool->run_ns, METRICS_NANOSECONDS,
                               METRIC("tidegate_cpu_pool_run_seconds", "Time of jobs on a thread."));
}

static void on_metrics(void *arg, const struct http_request *request, struct http_response *response)
{
    (void)request;
    struct admin_api *admin = arg;
    mono_ns now = clock_mono();
    exchange_refresh_stats(admin->sources.exchange, now);
    http_response_type(response, METRICS_CONTENT_TYPE);
    metrics_scrape(admin->registry, http_response_body(response), now);
}

/* ---- health ---- */

struct health {
    struct buf *out;
    bool is_first, is_failed;
};

/* failed: not fit to serve; otherwise a warning. */
static void health_say(struct health *health, bool failed, const char *name, const char *text)
{
    char line[512];
    (void)snprintf(line, sizeof line, "%s{\"severity\":\"%s\",\"check\":\"%s\",\"text\":\"%s\"}", health->is_first ? "" : ",",
                   failed ? "failed" : "warning", name, text);
    buf_put_string(health->out, line);
    health->is_first = false;
    health->is_failed = health->is_failed || failed;
}

static void health_check_log(struct health *health, const struct admin_sources *sources)
{
    if (!sources->log)
        return;
    const struct log_thread_stats *log = log_thread_get_stats(sources->log);
    if (gauge_get(&log->failed))
        health_say(health, true, "log",
                   "a write to the log failed; nothing is acknowledged; the broker ends: mend the disk, then start it again");
    else if (gauge_get(&log->waits_for_space))
        health_say(health, true, "log_space",
                   "a write to the log finds no space on the disk; nothing durable is acknowledged until there is some");
    else if (!gauge_get(&log->has_room))
        health_say(health, true, "log_full",
                   "the log takes no messages: its readers are behind, or the disk is nearly full; publishers of durable messages wait");
    uint64_t free_bytes, total_bytes;
    if (data_dir_free_space(sources->config->persistence_location, &free_bytes, &total_bytes) == ERR_OK &&
        free_bytes < 2 * (uint64_t)sources->config->log_free_disk_floor)
        health_say(health, free_bytes < (uint64_t)sources->config->log_free_disk_floor, "disk",
                   "little free space in persistence_location");
    const struct store_writer_stats *store = store_thread_writer_stats(sources->store);
    if (gauge_get(&store->failed))
        health_say(health, true, "checkpoint", "the checkpoint has failed; the broker ends: mend the disk, then start it again");
    else if (gauge_get(&store->no_space))
        health_say(health, false, "checkpoint_space", "the checkpoint finds no space: the log grows until there is some");
    else if (gauge_get(&store->is_full))
        health_say(health, false, "checkpoint_full",
                   "checkpoint_max_size is reached: publishers to absent subscribers wait until queues are drained");
    else if (!gauge_get(&store->has_room))
        health_say(health, false, "checkpoint_lag", "the checkpoint is far behind the log: publishers to absent subscribers wait");
    if (counter_get(&checkpoint_get_stats(sources->checkpoint)->corrupt) + counter_get(&reader_thread_get_stats(sources->reader)->corrupt) >
        0)
        health_say(
            health, false, "checkpoint_damage",
            "values of the checkpoint are damaged and left out, the log names them: `tidegate-broker repair` says what they concern");
    if (gauge_get(&store_thread_get_stats(sources->store)->prepare_error) != ERR_OK)
        health_say(health, false, "log_prepare", err_text((enum err)gauge_get(&store_thread_get_stats(sources->store)->prepare_error)));
}

static void on_health(void *arg, const struct http_request *request, struct http_response *response)
{
    (void)request;
    struct admin_api *admin = arg;
    const struct admin_sources *sources = &admin->sources;
    struct buf *body = http_response_body(response);
    struct health health = {.out = body, .is_first = true};
    buf_put_string(body, "{\"problems\":[");
    health_check_log(&health, sources);
    mono_ns now = clock_mono();
    for (uint16_t i = 0; i < sources->shard_count; i++) {
        if (now - atomic_load_explicit(&sources->loops[i]->seen_ns, memory_order_relaxed) > ADMIN_STUCK_NS)
            health_say(&health, true, "loop", "an event loop has not turned for 20 s");
    }
    if (atomic_load_explicit(sources->is_draining, memory_order_relaxed))
        health_say(&health, true, "draining", "shutting down");
    buf_put_string(body, health.is_failed  ? "],\"status\":\"failed\"}\n"
                         : health.is_first ? "],\"status\":\"ok\"}\n"
                                           : "],\"status\":\"degraded\"}\n");
    http_response_status(response, health.is_failed ? 503 : 200);
}

/* ---- life ---- */

static const struct http_route routes[] = {
    {"GET", "/metrics", false, on_metrics, NULL},
    {"GET", "/healthz", false, on_health, NULL},
};

enum err admin_api_new(struct admin_api **admin_out, const struct admin_sources *sources, struct errmsg *msg)
{
    struct admin_api *admin = calloc(1, sizeof *admin);
    if (!admin)
        return err_set(msg, ERR_NOMEM, "admin: %s", err_text(ERR_NOMEM));
    admin->sources = *sources;
    admin->registry = metrics_registry_new();
    if (!admin->registry) {
        free(admin);
        return err_set(msg, ERR_NOMEM, "admin: %s", err_text(ERR_NOMEM));
    }
    metrics_register_process(admin->registry);
    register_loops(admin);
    register_threads(admin);
    register_store(admin);
    register_log(admin);
    register_door(admin);
    if (sources->config->http_enabled) {
        struct http_config config = {
            .address = sources->config->http_address, .port = sources->config->http_port, .thread_name = "admin", .arg = admin};
        enum err err = http_server_new(&admin->server, &config, routes, sizeof routes / sizeof routes[0], msg);
        if (err != ERR_OK) {
            admin_api_free(admin);
            return err;
        }
    }
    *admin_out = admin;
    return ERR_OK;
}

void admin_api_free(struct admin_api *admin)
{
    if (!admin)
        return;
    http_server_free(admin->server);
    metrics_registry_free(admin->registry);
    free(admin);
}

uint16_t admin_api_port(const struct admin_api *admin) { return admin->server ? http_server_port(admin->server) : 0; }
