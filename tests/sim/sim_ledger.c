/* What clients were promised, and whether it was kept.
 *
 * A message's payload is {"ts":T,"v":ID} or {"v":ID}: the value is its index in the ledger. One device is published by one or two clients;
 * a device's times rise, and now and then a message repeats the time of the one before it by the same client, so that the later one must
 * win. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "broker/session/queue.h"
#include "common/check.h"
#include "tests/sim/sim.h"

#define TS_BASE_MS INT64_C(1700000000000)

void sim_device_name(char *out, size_t size, uint8_t device) { snprintf(out, size, "dev%u", device); }

struct sim_message *sim_ledger_new(struct sim *sim, uint8_t client, uint8_t device, uint8_t qos, enum sim_kind kind)
{
    struct sim_ledger *ledger = &sim->ledger;
    if (ledger->count == SIM_MESSAGES_MAX)
        return NULL;
    struct sim_message *message = &ledger->messages[ledger->count];
    *message = (struct sim_message){.id = ledger->count, .kind = kind, .qos = qos, .client = client, .device = device};
    message->own_time = kind == SIM_TELEMETRY && !sim_chance(sim, 1, 8);
    ledger->count++;
    if (!message->own_time)
        return message;
    const struct sim_message *before = NULL;
    for (uint32_t i = message->id; i-- > 0 && !before;)
        if (ledger->messages[i].device == device && ledger->messages[i].own_time)
            before = &ledger->messages[i];
    bool again = before && before->client == client && before->qos > 0 && before->qos == qos && sim_chance(sim, 1, 6);
    message->ts_ms = again ? before->ts_ms : TS_BASE_MS + ++ledger->next_ts_ms[device] * 1000;
    return message;
}

/* Published once at most, when its connection ends without DISCONNECT. */
struct sim_message *sim_ledger_new_will(struct sim *sim, uint8_t client, uint8_t device, uint8_t qos)
{
    struct sim_message *will = sim_ledger_new(sim, client, device, qos, SIM_COMMAND);
    if (will && sim_chance(sim, 1, 2))
        will->kind = SIM_TELEMETRY;
    if (will) {
        will->will = true;
        will->attempts = 1;
    }
    return will;
}

size_t sim_ledger_topic(const struct sim_message *message, char *out, size_t size)
{
    int used = snprintf(out, size, message->kind == SIM_TELEMETRY ? "fleet/dev%u/telemetry" : "cmd/dev%u", message->device);
    CHECK(used > 0 && (size_t)used < size);
    return (size_t)used;
}

size_t sim_ledger_payload(const struct sim_message *message, char *out, size_t size)
{
    int blanks = (int)message->padding;
    if (message->clears)
        return 0;
    int used = message->own_time ? snprintf(out, size, "{\"ts\":%" PRId64 ",\"v\":%u%*s}", message->ts_ms, message->id, blanks, "")
                                 : snprintf(out, size, "{\"v\":%u%*s}", message->id, blanks, "");
    CHECK(used > 0 && (size_t)used < size);
    return (size_t)used;
}

bool sim_ledger_parse(uint32_t *id_out, struct span payload)
{
    static const char mark[] = "\"v\":";
    const char *at = memmem(payload.data, payload.size, mark, sizeof mark - 1);
    if (!at)
        return false;
    *id_out = (uint32_t)strtoul(at + sizeof mark - 1, NULL, 10);
    return true;
}

/* It was matched between its sending and now: who was subscribed all the time is to receive it. */
static void note_owed(struct sim *sim, const struct sim_message *message)
{
    if (message->qos == 0 || message->expiry_s || message->clears)
        return;
    for (uint32_t i = 0; i < sim->config.client_count; i++) {
        struct sim_client *client = &sim->clients[i];
        const struct sim_subscription *subscription = &client->subscriptions[message->kind];
        if (client->subscribe_qos > 0 && subscription->state == SUB_YES && subscription->since_step < message->first_sent_step)
            client->owed[message->id] = 1;
    }
}

static struct sim_retained *retained_of(struct sim *sim, const struct sim_message *message)
{
    return &sim->ledger.retained[message->device][message->kind];
}

void sim_ledger_on_sent(struct sim *sim, struct sim_message *message)
{
    if (message->first_sent_step == 0)
        message->first_sent_step = sim->step;
    if (message->retain)
        retained_of(sim, message)->written_step = sim->step;
}

void sim_ledger_on_refused(struct sim *sim, uint32_t id)
{
    struct sim_message *message = &sim->ledger.messages[id];
    message->is_refused = true;
    for (uint32_t i = 0; i < sim->config.client_count; i++)
        if (message->attempts == 1 && sim->clients[i].seen[id])
            sim_found(sim, "message %u is refused, and %s has received it", id, sim->clients[i].id);
    if (message->retain)
        retained_of(sim, message)->written_step = sim->step;
}

void sim_ledger_on_acked(struct sim *sim, uint32_t id)
{
    struct sim_message *message = &sim->ledger.messages[id];
    if (message->retain)
        retained_of(sim, message)->written_step = sim->step;
    if (!message->acked) {
        message->acked_step = sim->step;
        message->acked_life = sim->incarnation;
    }
    if (!message->acked)
        note_owed(sim, message);
    message->acked = true;
    message->is_lasting |= !sim_topic_is_memory(sim, message->kind, message->device);
    sim->progress++;
}

void sim_ledger_on_will_due(struct sim *sim, uint32_t id, uint64_t connect_step, bool is_lasting)
{
    sim->ledger.messages[id].due_step = connect_step;
    sim->ledger.messages[id].is_due_lasting = is_lasting;
}

void sim_ledger_on_all_durable(struct sim *sim)
{
    for (uint32_t id = 0; id < sim->ledger.count; id++) {
        struct sim_message *message = &sim->ledger.messages[id];
        /* A large one may still be on its way into blocks. */
        message->is_lasting |= message->acked && message->acked_life == sim->incarnation && message->padding == 0;
        message->is_cancel_lasting |= message->cancelled;
    }
}

/* The broker's process is dead: what nobody promised to keep is not owed any more. */
void sim_ledger_on_broker_end(struct sim *sim)
{
    for (uint32_t id = 0; id < sim->ledger.count; id++) {
        struct sim_message *message = &sim->ledger.messages[id];
        message->cancelled = message->is_cancel_lasting;
        if (!message->is_due_lasting)
            message->due_step = 0;
        if (message->retain && !message->is_lasting)
            retained_of(sim, message)->written_step = sim->step;
        for (uint32_t i = 0; i < sim->config.client_count && !message->is_lasting; i++)
            sim->clients[i].owed[id] = 0;
    }
}

void sim_ledger_forgive(struct sim_client *client) { memset(client->owed, 0, SIM_MESSAGES_MAX); }

/* What is refused for a subscriber's sake, and the refusal lost with the connection, comes again behind what was not. */
static bool has_order(const struct sim *sim, const struct sim_message *message)
{
    /* Its publisher may not hear of it, and then it comes again behind later ones. */
    bool may_be_refused = (sim->config.is_bounded && sim->config.queue_policy == QUEUE_REFUSE) ||
                          (message->retain && sim->config.retained_max != SIM_RETAINED_MAX);
    return !message->will && !message->unordered && !may_be_refused;
}

/* A delivery that the subscriber counts as new (QoS 2: its packet id was not open). */
void sim_ledger_on_delivered(struct sim *sim, struct sim_client *subscriber, uint32_t id, uint8_t qos, bool dup)
{
    struct sim_ledger *ledger = &sim->ledger;
    if (id >= ledger->count)
        sim_found(sim, "%s received message %u, which nobody published", subscriber->id, id);
    struct sim_message *message = &ledger->messages[id];
    sim->progress++;
    if (message->is_refused && message->attempts == 1)
        sim_found(sim, "%s received message %u, which was refused", subscriber->id, id);
    if (message->cancelled)
        sim_found(sim, "%s received will %u, and its client had said DISCONNECT", subscriber->id, id);
    if (!dup && subscriber->fresh[id] < UINT8_MAX && ++subscriber->fresh[id] > message->attempts)
        sim_found(sim, "%s received message %u %u times without DUP, and it was published %u times", subscriber->id, id,
                  subscriber->fresh[id], message->attempts);
    if (message->kind == SIM_TELEMETRY && message->qos > 0 && (subscriber->is_persistent || message->qos == 2))
        message->given = true;
    const struct sim_subscription *subscription = &subscriber->subscriptions[message->kind];
    if (subscription->state == SUB_NONE && !message->will && message->first_sent_step > subscription->since_step)
        sim_found(sim, "%s received message %u, and was not subscribed since step %" PRIu64, subscriber->id, id, subscription->since_step);
    bool first = subscriber->seen[id] == 0;
    if (first)
        sim_promised(sim, message->will);
    if (subscriber->seen[id] < UINT8_MAX)
        subscriber->seen[id]++;
    /* Once for each flow that the publisher had to begin. */
    if (qos == 2 && message->qos == 2 && subscriber->seen[id] > message->flow + 1)
        sim_found(sim, "%s received message %u (QoS 2) %u times, from %u flows", subscriber->id, id, subscriber->seen[id],
                  message->flow + 1);
    if (qos == 0 && dup)
        sim_found(sim, "%s received message %u with QoS 0 and DUP", subscriber->id, id);
    /* Order of what was published in order, once, at one QoS: resent flows may come later, what is new may not come before what was older.
     */
    if (!has_order(sim, message))
        return;
    struct sim_newest *newest =
        &subscriber->order[((message->client * SIM_DEVICES_MAX + message->device) * 3u + qos) * SIM_KINDS + message->kind];
    if (!first || message->qos != qos || message->attempts != 1)
        return;
    /* What was dropped for newer ones in the last moments of a life is there again in the next: the drop was not durable. */
    bool may_be_back = sim->config.is_bounded && sim->config.queue_policy == QUEUE_DROP_OLDEST && newest->life != sim->incarnation;
    if (newest->message > id + 1 && !may_be_back)
        sim_found(sim, "%s received message %u after %u: order of (client %u, device %u, QoS %u) is lost", subscriber->id, id,
                  newest->message - 1, message->client, message->device, qos);
    if (newest->message < id + 1)
        *newest = (struct sim_newest){id + 1, sim->incarnation};
}

bool sim_ledger_is_kept(const struct sim *sim, const struct sim_message *message)
{
    bool is_told = !message->will && sim->clients[message->client].version == MQTT_V5;
    return message->retain && (is_told || message->clears || sim->config.retained_max == SIM_RETAINED_MAX);
}

static bool is_superseded(const struct sim *sim, const struct sim_message *value, const struct sim_message *by, uint64_t before)
{
    if (!sim_ledger_is_kept(sim, by) || by->kind != value->kind || by->device != value->device || !by->acked || by->acked_step >= before ||
        !(by->is_lasting || by->acked_life == sim->incarnation))
        return false;
    bool is_in_order = by->client == value->client && by->attempts == 1 && value->attempts == 1;
    return is_in_order || (value->acked && value->acked_step < by->first_sent_step);
}

/* While nobody writes it, a retained topic has one value: whoever asks, in this life of the broker or the next. */
static void check_agreed(struct sim *sim, const struct sim_client *subscriber, const struct sim_message *message, uint64_t asked_step)
{
    struct sim_retained *retained = retained_of(sim, message);
    if (retained->written_step >= asked_step)
        return;
    for (uint32_t id = 0; id < sim->ledger.count; id++) {
        const struct sim_message *other = &sim->ledger.messages[id];
        bool is_over = other->acked || (other->is_refused && other->attempts == 1);
        if (other->retain && other->device == message->device && other->kind == message->kind && other->first_sent_step && !is_over)
            return; /* it may come to be in force at any time */
    }
    if (retained->value && retained->read_step == retained->written_step && retained->value != message->id + 1)
        sim_found(sim, "%s received the retained message %u, and %u was read before, and nobody wrote since step %" PRIu64, subscriber->id,
                  message->id, retained->value - 1, retained->written_step);
    retained->value = message->id + 1;
    retained->read_step = retained->written_step;
}

/* A retained value: of all that was acknowledged before the subscription, it must be the newest. */
void sim_ledger_on_retained(struct sim *sim, struct sim_client *subscriber, uint32_t id, uint64_t asked_step)
{
    const struct sim_message *message = &sim->ledger.messages[id];
    sim->progress++;
    if (!message->retain)
        sim_found(sim, "%s received message %u as a retained one, and it was published without", subscriber->id, id);
    check_agreed(sim, subscriber, message, asked_step);
    for (uint32_t newer = id + 1; newer < sim->ledger.count; newer++)
        if (is_superseded(sim, message, &sim->ledger.messages[newer], asked_step))
            sim_found(sim, "%s received the retained message %u, and %u was acknowledged before it subscribed", subscriber->id, id, newer);
}

/* The sink has read a record of this message from the log. */
void sim_ledger_on_record(struct sim *sim, uint32_t id, bool replayed)
{
    struct sim_ledger *ledger = &sim->ledger;
    if (id >= ledger->count)
        sim_found(sim, "the log holds message %u, which nobody published", id);
    struct sim_message *message = &ledger->messages[id];
    if (message->cancelled)
        sim_found(sim, "will %u is in the log, and its client had said DISCONNECT", id);
    if (replayed || ledger->logged[id])
        return;
    ledger->logged[id] = 1;
    if (!has_order(sim, message))
        return;
    uint32_t *newest = &ledger->logged_order[message->client][message->device];
    if (message->attempts == 1 && *newest > id + 1)
        sim_found(sim, "message %u is in the log for the first time behind %u: order of (client %u, device %u) is lost", id, *newest - 1,
                  message->client, message->device);
    if (message->qos > 0 && *newest < id + 1)
        *newest = id + 1;
}

/* --- the end ----------------------------------------------------------------------------------------------------------------------------
 */

struct found_row {
    int64_t ts_ns;
    uint32_t id;
};

struct found_rows {
    struct sim *sim;
    uint8_t device;
    struct found_row *rows;
    size_t count;
};

static void on_row(void *context, int64_t ts_ns, double value)
{
    struct found_rows *found = context;
    struct sim *sim = found->sim;
    if (value < 0 || value != floor(value) || value >= sim->ledger.count)
        sim_found(sim, "device %u has the value %g at %" PRId64 ", which nobody published", found->device, value, ts_ns);
    const struct sim_message *message = &sim->ledger.messages[(uint32_t)value];
    if (message->device != found->device)
        sim_found(sim, "device %u has message %u of device %u", found->device, message->id, message->device);
    if (message->own_time && message->ts_ms * 1000000 != ts_ns)
        sim_found(sim, "message %u is stored at %" PRId64 " instead of its own time", message->id, ts_ns);
    if (found->count && found->rows[found->count - 1].ts_ns >= ts_ns)
        sim_found(sim, "device %u: rows do not rise in time, or one time is there twice", found->device);
    found->rows = realloc(found->rows, (found->count + 1) * sizeof *found->rows);
    found->rows[found->count++] = (struct found_row){ts_ns, message->id};
}

static uint32_t count_rows(const struct found_rows *found, uint32_t id)
{
    uint32_t count = 0;
    for (size_t i = 0; i < found->count; i++)
        count += found->rows[i].id == id;
    return count;
}

static const struct found_row *row_at(const struct found_rows *found, int64_t ts_ns)
{
    for (size_t i = 0; i < found->count; i++)
        if (found->rows[i].ts_ns == ts_ns)
            return &found->rows[i];
    return NULL;
}

/* One acknowledged message against the rows of its device. */
static void check_message(struct sim *sim, const struct found_rows *found, const struct sim_message *message)
{
    bool is_promised = message->acked && (message->is_lasting || message->acked_life == sim->incarnation);
    const char *promise = is_promised ? "acknowledged" : message->given ? "given to a persistent session" : NULL;
    if (!message->own_time) {
        uint32_t count = count_rows(found, message->id);
        if (promise && count == 0)
            sim_found(sim, "message %u (no time of its own) was %s and is not in the sink", message->id, promise);
        if (count > message->attempts)
            sim_found(sim, "message %u was sent %u times and is in the sink %u times", message->id, message->attempts, count);
        return;
    }
    if (!promise)
        return;
    const struct found_row *row = row_at(found, message->ts_ms * 1000000);
    if (!row)
        sim_found(sim, "message %u was %s (step %" PRIu64 ") and is not in the sink", message->id, promise, message->acked_step);
    if (!is_promised)
        return;
    const struct sim_message *there = &sim->ledger.messages[row->id];
    if (there->ts_ms != message->ts_ms || there->id < message->id)
        sim_found(sim, "message %u was acknowledged after %u for the same time, and the sink has the older value", message->id, there->id);
}

/* Whether the retained value of a message's topic may be gone, though it was acknowledged: it expires, or something came that clears. */
static bool may_be_cleared(const struct sim *sim, const struct sim_message *message)
{
    for (uint32_t id = 0; id < sim->ledger.count; id++) {
        const struct sim_message *other = &sim->ledger.messages[id];
        if (!other->retain || other->device != message->device || other->kind != message->kind)
            continue;
        if (other->expiry_s || (other->clears && (other->client != message->client || other->attempts > 1 || message->attempts > 1 ||
                                                  other->id > message->id)))
            return true;
    }
    return false;
}

static void check_retained(struct sim *sim, const struct sim_client *subscriber, const struct sim_message *message)
{
    const struct sim_subscription *subscription = &subscriber->subscriptions[message->kind];
    if (!sim_ledger_is_kept(sim, message) || message->clears || !message->acked || message->acked_step >= subscription->sent_step)
        return;
    if (!message->is_lasting && message->acked_life != sim->incarnation)
        return;
    if ((message->qos == 0 || subscriber->subscribe_qos == 0) && subscriber->lost_step > subscription->sent_step)
        return; /* a copy with QoS 0 goes with the connection, and nobody asks again */
    if (!subscriber->heard[message->device][message->kind] && !may_be_cleared(sim, message) && sim->drops[0] == 0)
        sim_found(sim, "%s subscribed after retained message %u was acknowledged, and received nothing of that topic", subscriber->id,
                  message->id);
}

/* Bounds explain what is missing, in this life of the broker or another. */
static bool has_dropped(const struct sim *sim)
{
    uint64_t drops[2] = {sim->drops[0]};
    sim_broker_count_drops(sim, drops);
    return drops[0] > 0;
}

/* A retained value that comes with QoS 0 may be lost with its connection. */
static bool may_come_with_qos_0(const struct sim *sim, const struct sim_client *subscriber, const struct sim_message *message)
{
    bool may = subscriber->subscribe_qos == 0;
    for (uint32_t id = 0; id < sim->ledger.count && !may; id++) {
        const struct sim_message *other = &sim->ledger.messages[id];
        may = other->retain && other->qos == 0 && other->device == message->device && other->kind == message->kind;
    }
    return may;
}

/* Everybody who was granted a subscription has got, in this session, something of each topic that had a value by then, however often the
 * broker died meanwhile. */
void sim_ledger_check_owed(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->config.client_count && !has_dropped(sim); i++) {
        const struct sim_client *subscriber = &sim->clients[i];
        for (uint32_t id = 0; id < sim->ledger.count && !subscriber->is_gone; id++) {
            const struct sim_message *message = &sim->ledger.messages[id];
            if (subscriber->subscriptions[message->kind].state == SUB_YES && message->retain &&
                !may_come_with_qos_0(sim, subscriber, message))
                check_retained(sim, subscriber, message);
        }
    }
}

static void check_subscriber(struct sim *sim, const struct sim_client *subscriber, uint64_t *missing)
{
    for (uint32_t id = 0; id < sim->ledger.count; id++) {
        const struct sim_message *message = &sim->ledger.messages[id];
        if (subscriber->subscriptions[message->kind].state == SUB_YES)
            check_retained(sim, subscriber, message);
        if (!subscriber->owed[id] || subscriber->seen[id])
            continue;
        if (sim->drops[0] == 0)
            sim_found(sim, "message %u was acknowledged (step %" PRIu64 "), and %s, subscribed since step %" PRIu64 ", never received it",
                      id, message->acked_step, subscriber->id, subscriber->subscriptions[message->kind].since_step);
        ++*missing;
    }
}

/* A will, for those who were subscribed all the time since before its CONNECT was sent. */
static void check_will(struct sim *sim, const struct sim_message *will, uint64_t connect_step, const char *why)
{
    for (uint32_t i = 0; i < sim->config.client_count && will->qos > 0; i++) {
        const struct sim_client *subscriber = &sim->clients[i];
        const struct sim_subscription *subscription = &subscriber->subscriptions[will->kind];
        if (!subscriber->is_gone && subscriber->subscribe_qos > 0 && subscription->state == SUB_YES &&
            subscription->since_step < connect_step && !subscriber->seen[will->id])
            sim_found(sim, "client%u was lost %s, and %s never received its will %u", will->client, why, subscriber->id, will->id);
    }
}

void sim_ledger_check_wills(struct sim *sim)
{
    /* Under that policy a will passes by those whose queues are full. */
    if (has_dropped(sim) || (sim->config.is_bounded && sim->config.queue_policy == QUEUE_REFUSE))
        return;
    for (uint32_t i = 0; i < sim->config.client_count; i++) {
        const struct sim_client *client = &sim->clients[i];
        if (client->is_gone && client->will_pending)
            check_will(sim, &sim->ledger.messages[client->will_pending - 1], client->will_step, "and did not come back");
    }
    for (uint32_t id = 0; id < sim->ledger.count; id++)
        if (sim->ledger.messages[id].due_step)
            check_will(sim, &sim->ledger.messages[id], sim->ledger.messages[id].due_step, "and came back behind that");
}

void sim_ledger_check_end(struct sim *sim)
{
    for (uint8_t device = 0; sim->config.persistence && device < sim->config.device_count; device++) {
        struct found_rows found = {.sim = sim, .device = device};
        sim_sink_read_device(sim, device, &found, on_row);
        for (uint32_t id = 0; id < sim->ledger.count; id++)
            if (sim->ledger.messages[id].device == device && sim->ledger.messages[id].kind == SIM_TELEMETRY)
                check_message(sim, &found, &sim->ledger.messages[id]);
        free(found.rows);
    }
    sim_broker_count_drops(sim, sim->drops);
    if (sim->drops[1])
        sim_found(sim, "%" PRIu64 " messages were dropped for reasons that there are none of", sim->drops[1]);
    if (sim->drops[0] && !sim->config.is_bounded)
        sim_found(sim, "%" PRIu64 " messages were dropped for bounds that are far away", sim->drops[0]);
    uint64_t missing = 0;
    for (uint32_t i = 0; i < sim->config.client_count; i++) {
        if (sim->clients[i].subscribes && !sim->clients[i].is_gone)
            check_subscriber(sim, &sim->clients[i], &missing);
    }
    if (missing > sim->drops[0])
        sim_found(sim, "%" PRIu64 " messages are missing, and %" PRIu64 " were counted as dropped", missing, sim->drops[0]);
}
