#include "broker/core/shard.h"

#include <stdlib.h>

#include "broker/core/client.h"
#include "broker/core/client_life.h"
#include "broker/core/deliver.h"
#include "broker/core/delivery.h"
#include "broker/core/gate_release.h"
#include "broker/core/owed.h"
#include "broker/core/publish.h"
#include "broker/core/publish_job.h"
#include "broker/core/read_back.h"
#include "broker/core/scan.h"
#include "broker/core/session_life.h"
#include "broker/core/session_log.h"
#include "broker/core/shard_log.h"
#include "broker/core/shard_state.h"
#include "broker/core/subscribe.h"
#include "broker/core/waiting.h"
#include "broker/route/route_actor.h"
#include "broker/telemetry/rule.h"
#include "common/check.h"
#include "common/hash.h"

#define DROP_RECORD_SIZE ((size_t)4096) /* more than a DROP record takes */

static bool rules_want_user_name(const struct rule_table *rules)
{
    for (unsigned i = 0; rules && i < rules->count; i++)
        if (rules->rules[i].device_source == RULE_DEVICE_USER_NAME)
            return true;
    return false;
}

struct shard *shard_new(const struct shard_config *config, struct topic_tree *tree, struct log_block_pool *pool, const struct shard_io *io,
                        void *io_arg)
{
    CHECK(config->index < config->shard_count);
    CHECK(config->shard_count <= ACTOR_SHARDS_MAX);
    CHECK(config->retained_counter);
    CHECK(config->retained);
    CHECK(config->persistence == (pool != NULL));
    CHECK(config->epoch <= SESSION_NUMBER_EPOCH_MAX);
    struct shard *shard = calloc(1, sizeof *shard);
    if (!shard)
        return NULL;
    *shard = (struct shard){.config = *config, .tree = tree, .io = io, .io_arg = io_arg, .request_id = SESSION_TICK_START};
    shard->reader = topic_tree_reader_register(tree);
    if (!shard->reader || session_table_init(&shard->sessions, hash_u64(config->hash_key, 1))) {
        epoch_reader_unregister(shard->reader);
        free(shard);
        return NULL;
    }
    histogram_init(&shard->stats.gate_hold_ns);
    shard_log_init(&shard->log, pool);
    shard->has_store_room = true;
    waiting_init(shard);
    ack_gate_init(&shard->gate, &shard->stats.gate);
    op_backlog_init(&shard->backlog);
    scans_init(&shard->scans);
    owed_init(&shard->owed);
    publish_scratch_init(&shard->scratch);
    list_init(&shard->connecting);
    list_init(&shard->idle);
    list_init(&shard->ready);
    list_init(&shard->blocked);
    list_init(&shard->dirty);
    shard->wants_user_name = rules_want_user_name(config->rules);
    shard->random_state[0] = io->random(io_arg) | 1;
    shard->random_state[1] = io->random(io_arg);
    shard->correlation_base = shard_random(shard);
    return shard;
}

/* Ops that found a full ring and will never be posted: their contents are ours. */
static void drop_op(const struct op *op)
{
    if (op->type == OP_DELIVER)
        delivery_free(op->delivery);
    else if (op->type == OP_ROUTE_REQUEST)
        route_request_free(op->request);
    else if (op->type == OP_ROUTE_RETAIN)
        msg_unref(op->retain.msg);
    else if (op->type == OP_STORE_RUN)
        free(op->run.run);
    else if (op->type == OP_STORE_READ)
        store_read_free(op->read);
}

/* Blocks that were sealed and found the ring full go back to the pool: what is in them was never acknowledged. */
static void drop_blocks(struct shard *shard)
{
    struct op_lane *lane = &shard->backlog.lanes[ACTOR_LOG];
    for (; lane->count; lane->count--, shard->backlog.count--)
        log_block_pool_put(shard->log.pool, lane->ops[lane->first++ & (lane->capacity - 1)].block);
}

void shard_free(struct shard *shard)
{
    if (!shard)
        return;
    if (shard->in_turn)
        epoch_end(shard->reader);
    struct list_node *lists[] = {&shard->connecting, &shard->idle, &shard->ready, &shard->blocked};
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++)
        while (!list_is_empty(lists[i]))
            client_free(shard, LIST_ENTRY(list_first(lists[i]), struct client, work));
    while (shard->wills_first) {
        struct will *will = shard->wills_first;
        shard->wills_first = will->next;
        will_free(will);
    }
    for (actor_id to = 0; to < ACTOR_SHARDS_MAX; to++)
        delivery_free(shard->batches[to]);
    ack_gate_deinit(&shard->gate);
    drop_blocks(shard);
    op_backlog_deinit(&shard->backlog, drop_op);
    shard_log_deinit(&shard->log);
    session_table_deinit(&shard->sessions);
    session_log_deinit(&shard->session_log);
    free(shard->restored);
    waiting_deinit(&shard->waiting);
    owed_deinit(&shard->owed);
    publish_scratch_deinit(&shard->scratch);
    outbox_pool_deinit(&shard->outboxes);
    epoch_reader_unregister(shard->reader);
    free(shard);
}

struct shard_stats *shard_get_stats(struct shard *shard) { return &shard->stats; }

/* --- the turn ----------------------------------------------------------------------------------------------------------------------- */

void shard_turn_begin(struct shard *shard, int64_t now_mono_ns, int64_t now_wall_ns)
{
    CHECK(!shard->in_turn);
    CHECK(now_mono_ns >= shard->now_mono_ns);
    if (shard->turn == 0) {
        timer_wheel_init(&shard->client_timers, (uint64_t)(now_mono_ns / 1000000));
        timer_wheel_init(&shard->session_timers, (uint64_t)(now_mono_ns / 1000000));
    }
    shard->in_turn = true;
    shard->turn++;
    shard->now_mono_ns = now_mono_ns;
    shard->now_wall_ns = now_wall_ns;
    shard->now_steady_ns = now_mono_ns + shard->config.steady_offset_ns;
    shard->now_ms = now_mono_ns / 1000000;
    shard->is_work_left = false;
    counter_inc(&shard->stats.turns);
    epoch_begin(shard->reader);
    if (shard->backlog.count > 0)
        shard->is_room_news |= shard_post_backlog(shard);
}

struct client *shard_open(struct shard *shard, void *conn, const struct client_origin *origin)
{
    CHECK(shard->in_turn);
    return client_new(shard, conn, origin);
}

void shard_on_bytes(struct shard *shard, struct client *client, const uint8_t *data, size_t size)
{
    CHECK(shard->in_turn);
    if (size > 0)
        client_on_bytes(shard, client, data, size);
}

void shard_on_writable(struct shard *shard, struct client *client)
{
    CHECK(shard->in_turn);
    client_on_writable(shard, client);
}

void shard_on_closed(struct shard *shard, struct client *client, const char *reason)
{
    CHECK(shard->in_turn);
    (void)reason; /* the driver logs it with the peer, which it knows */
    client_on_closed(shard, client);
}

static void on_retained(struct shard *shard, const struct op *op)
{
    CHECK(op->retain.hold == shard->gate.retained_answered + 1);
    ack_gate_set_retained(&shard->gate, op->retain.hold);
}

/* Numbers are drawn and posted in one step, so everything below the next one is on its way before this answer. */
static void on_ask(struct shard *shard, uint32_t round)
{
    uint64_t next = atomic_load_explicit(shard->config.retained_counter, memory_order_relaxed) + 1;
    shard_post(shard, ACTOR_ROUTE,
               &(struct op){.type = OP_ROUTE_PASS, .from = shard->config.index, .count = round, .retain = {.hold = next}});
    publish_say_passed(shard, next);
}

void shard_on_op(struct shard *shard, const struct op *op)
{
    CHECK(shard->in_turn);
    switch ((enum op_type)op->type) {
    case OP_DELIVER:
        delivery_on_batch(shard, op->delivery);
        return;
    case OP_ROUTE_REPLY:
        shard->is_room_news = true;
        subscribe_on_reply(shard, op->request);
        return;
    case OP_ROUTE_RETAINED:
        shard->is_room_news = true;
        on_retained(shard, op);
        return;
    case OP_RETAINED_VALUE:
        owed_on_op(shard, op);
        return;
    case OP_RETAINED_END:
        shard->is_room_news = true;
        owed_on_op(shard, op);
        return;
    case OP_ROUTE_ASK:
        on_ask(shard, op->count);
        return;
    case OP_LOG_DURABLE:
        shard->is_room_news = true;
        shard_log_on_durable(shard, op);
        deliver_retry_stuck(shard);
        return;
    case OP_LOG_FAILED:
        shard->is_room_news = shard->log.is_failed = true;
        return;
    case OP_LOG_ROOM:
        shard->log.has_room = op->flag;
        shard->is_room_news |= op->flag;
        return;
    case OP_STORE_CHECKPOINT:
        waiting_on_checkpoint(shard, op->checkpoint.sequence, op->checkpoint.runs, op->checkpoint.aged);
        return;
    case OP_STORE_READ_DONE:
        read_back_on_answer(shard, op->read);
        return;
    case OP_STORE_ROOM:
        shard->has_store_room = op->flag;
        shard->is_room_news |= op->flag;
        return;
    case OP_NONE:
    case OP_ROUTE_REQUEST:
    case OP_ROUTE_RETAIN:
    case OP_ROUTE_PASS:
    case OP_RETAINED_MORE:
    case OP_LOG_BLOCK:
    case OP_STORE_RUN:
    case OP_STORE_RUN_DROP:
    case OP_STORE_EXPIRED:
    case OP_STORE_PASSED:
    case OP_STORE_READ:
        break;
    }
    UNREACHABLE();
}

/* Connections whose turn was over: each of those there now once. */
static void resume_ready(struct shard *shard)
{
    struct list_node taken;
    list_init(&taken);
    list_splice_back(&taken, &shard->ready);
    while (!list_is_empty(&taken))
        client_resume(shard, LIST_ENTRY(list_first(&taken), struct client, work));
}

/* Connections that found no room: when there may be some, as many as the log has blocks for; now and then all of them, because not all wait
 * for the log. */
static void resume_blocked(struct shard *shard)
{
    bool is_time = shard->now_mono_ns >= shard->room_tried_ns + SHARD_ROOM_RETRY_NS;
    if (list_is_empty(&shard->blocked) || !(is_time || shard->is_room_news) || !shard_has_room(shard))
        return;
    shard->is_room_news = false;
    if (is_time)
        shard->room_tried_ns = shard->now_mono_ns;
    struct list_node taken;
    list_init(&taken);
    list_splice_back(&taken, &shard->blocked);
    for (; !list_is_empty(&taken) && (is_time || !shard_log_is_starved(&shard->log)); counter_inc(&shard->stats.blocked_retries))
        client_resume(shard, LIST_ENTRY(list_first(&taken), struct client, work));
    list_splice_back(&taken, &shard->blocked); /* those who waited longer first */
    list_splice_back(&shard->blocked, &taken);
}

static void on_client_timer(struct timer_node *node, void *shard) { client_on_timer(shard, LIST_ENTRY(node, struct client, timer)); }
static void on_session_timer(struct timer_node *node, void *shard) { session_on_timer(shard, LIST_ENTRY(node, struct session, timer)); }

/* One vectored write for each connection that was given something; those that memory ran out for are closed. Where the outbox was at its
 * bound and the socket took it, messages in the queue can follow: nothing else would come to send them. */
static void write_all(struct shard *shard)
{
    for (struct list_node *node; (node = list_pop_front(&shard->dirty)) != NULL;) {
        struct client *client = LIST_ENTRY(node, struct client, dirty);
        if (client->is_doomed) {
            client_close(shard, client, MQTT_REASON_SERVER_BUSY, &shard->stats.closed_no_memory);
            continue;
        }
        client_flush(shard, client);
        if (client->state == CLIENT_CONNECTED && !client->is_waiting_writable &&
            (queue_first(&client->session->queue) || inflight_next_unsent(&client->session->inflight)))
            deliver_pump(shard, client);
    }
}

static void refresh_gauges(struct shard *shard)
{
    uint64_t held = shard->gate.copies + (shard->log.large ? shard->log.large->held_count : 0);
    for (actor_id to = 0; to < shard->config.shard_count; to++)
        held += shard->batches[to] ? shard->batches[to]->copies : 0;
    gauge_set(&shard->stats.copies_held, (int64_t)held);
    gauge_set(&shard->stats.backlog, (int64_t)shard->backlog.count);
}

void shard_turn_end(struct shard *shard)
{
    CHECK(shard->in_turn);
    uint64_t now_ms = (uint64_t)shard->now_ms;
    owed_turn(shard); /* a few, before publishers take what room there is */
    if (!shard->is_draining) {
        if (!list_is_empty(&shard->ready)) {
            shard->turn++; /* a new allowance of publishes */
            resume_ready(shard);
        }
        resume_blocked(shard);
    }
    if (timer_wheel_advance(&shard->client_timers, now_ms, SHARD_TIMERS_PER_TURN, on_client_timer, shard))
        shard->is_work_left = true;
    if (timer_wheel_advance(&shard->session_timers, now_ms, SHARD_TIMERS_PER_TURN, on_session_timer, shard))
        shard->is_work_left = true;
    session_retry_wills(shard);

    session_log_flush(shard);
    session_log_away_step(shard);
    shard->is_work_left |= waiting_turn_end(shard);
    struct publish_job *logged = shard_log_turn_end(shard);
    if (logged)
        publish_on_logged(shard, logged, shard->log.pool->sealed_count);
    uint64_t held_before = shard->gate.stats->messages;
    if (ack_gate_release(&shard->gate, SHARD_RELEASES_PER_TURN, gate_release_item, shard))
        shard->is_work_left = true;
    shard->is_room_news |= shard->gate.stats->messages < held_before;
    shard->is_work_left |= owed_may_go_on(shard);
    delivery_post_batches(shard);
    write_all(shard);
    delivery_post_batches(shard); /* closing may have said wills */
    refresh_gauges(shard);
    if ((!list_is_empty(&shard->ready) && !shard->is_draining) || shard->log.block)
        shard->is_work_left = true;
    if (shard->waiting.drop_count > 0 && shard_log_has_control_room(&shard->log, DROP_RECORD_SIZE))
        shard->is_work_left = true;
    if (shard->is_room_news && !list_is_empty(&shard->blocked) && shard_has_room(shard) && !shard->is_draining)
        shard->is_work_left = true;
    shard->in_turn = false;
    epoch_end(shard->reader);
}

int64_t shard_next_turn_ns(const struct shard *shard)
{
    if (shard->is_work_left || shard->turn == 0)
        return shard->now_mono_ns;
    uint64_t client_ms = timer_wheel_next_ms(&shard->client_timers), session_ms = timer_wheel_next_ms(&shard->session_timers);
    uint64_t next_ms = client_ms < session_ms ? client_ms : session_ms;
    int64_t next_ns = next_ms >= (uint64_t)(INT64_MAX / 1000000) ? INT64_MAX : (int64_t)next_ms * 1000000;
    bool is_waiting =
        shard->backlog.count > 0 || shard->wills_first || shard->log.large || shard->session_log.first || shard->restored_count > 0;
    if (next_ns > waiting_next_look_ns(shard))
        next_ns = waiting_next_look_ns(shard);
    if (is_waiting && next_ns > shard->now_mono_ns + SHARD_RETRY_NS)
        next_ns = shard->now_mono_ns + SHARD_RETRY_NS;
    if (!list_is_empty(&shard->blocked) && next_ns > shard->now_mono_ns + SHARD_ROOM_RETRY_NS)
        next_ns = shard->now_mono_ns + SHARD_ROOM_RETRY_NS;
    return next_ns > shard->now_mono_ns ? next_ns : shard->now_mono_ns;
}

/* --- the end ------------------------------------------------------------------------------------------------------------------------ */

/* Those that nothing is held for go; after the first turn the lists are short. */
static void drain_list(struct shard *shard, struct list_node *list, bool force)
{
    LIST_EACH_SAFE(node, following, list)
    {
        struct client *client = LIST_ENTRY(node, struct client, work);
        if (force || (client->gate_held == 0 && client->block != BLOCK_LARGE))
            client_close(shard, client, MQTT_REASON_SERVER_SHUTTING_DOWN, &shard->stats.closed_shutdown);
        else
            client_update_reading(shard, client); /* or what it sends meanwhile would be waited for, too, and so on */
    }
}

bool shard_drain(struct shard *shard, bool force)
{
    CHECK(shard->in_turn);
    shard->is_draining = true;
    while (!list_is_empty(&shard->connecting))
        client_close(shard, LIST_ENTRY(list_first(&shard->connecting), struct client, work), MQTT_REASON_SUCCESS,
                     &shard->stats.refused_shutdown);
    drain_list(shard, &shard->idle, force);
    drain_list(shard, &shard->ready, force);
    drain_list(shard, &shard->blocked, force);
    return gauge_get(&shard->stats.connections) == 0 && shard_log_is_quiet(&shard->log) && shard->backlog.count == 0 &&
           (force || !shard->session_log.first) && (force || ack_gate_is_empty(&shard->gate));
}
