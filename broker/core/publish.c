#include "broker/core/publish.h"

#include <stdlib.h>

#include "broker/core/delivery.h"
#include "broker/core/fan_out.h"
#include "broker/core/inbound.h"
#include "broker/core/recipient.h"
#include "broker/core/session_log.h"
#include "broker/core/shard_log.h"
#include "broker/core/shard_state.h"
#include "broker/guard/tier.h"
#include "broker/route/retained.h"
#include "broker/telemetry/rule.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/murmur2.h"

#define COPIES_PER_PUBLISH 16 /* so many copies of a message count as one more message of the turn's allowance */

/* One message as it comes, from a packet or a will. */
struct publish_from {
    struct msg_source source; /* its time of receipt is publish()'s */
    struct span client_id, user_name;
    struct client *client; /* NULL for a will */
    uint64_t will_session; /* whose will it is in the log */
    uint16_t packet_id;
    bool is_will;
    bool dup;
};

/* The same on its way in. Whoever makes one sets `from` as a whole; publish() sets each of the others before anybody reads it. Clearing
 * them for that would cost as much as all of making it. */
struct publish_in {
    struct publish_from from;
    const struct rule *rule; /* telemetry: rule and device */
    struct span device;
    bool is_logged_telemetry;
    bool is_state; /* the checkpoint needs its record */
    bool is_kept;  /* it sets or removes its topic's retained value */
    struct retained_reservation reserved;
    uint64_t retained_number;
    uint8_t correlation[RECORD_CORRELATION_SIZE];
};

enum publish_outcome { PUBLISH_DONE, PUBLISH_NO_ROOM, PUBLISH_REFUSED };

/* Why not, if PUBLISH_REFUSED. */
struct publish_refusal {
    enum mqtt_reason reason;
    struct counter *cell;
};

static bool wants_record(const struct publish_in *in) { return in->is_logged_telemetry || in->is_state; }

/* --- what needs a record ------------------------------------------------------------------------------------------------------------ */

static void count_telemetry(struct shard *shard, struct counter *refused)
{
    counter_inc(&shard->stats.telemetry_matched);
    counter_inc(refused ? refused : &shard->stats.telemetry_logged);
}

/* How large its record will be, or a little more. */
static size_t record_size_about(const struct shard *shard, const struct publish_in *in)
{
    return RECORD_OVERHEAD_MAX + in->from.source.topic.size + in->from.source.properties.size + in->from.source.payload.size +
           in->from.client_id.size + (in->rule ? in->device.size + in->rule->name_size : 0) + shard->scratch.record_recipients.size;
}

/* What the rules say; sets rule, device and is_logged_telemetry. DONE: go on. */
static enum publish_outcome judge_telemetry(struct shard *shard, struct publish_in *in, struct publish_refusal *refusal_out)
{
    struct shard_stats *stats = &shard->stats;
    in->rule = NULL;
    in->is_logged_telemetry = false;
    if (!shard->config.rules)
        return PUBLISH_DONE;
    struct rule_subject subject = {.topic = in->from.source.topic, .client_id = in->from.client_id, .user_name = in->from.user_name};
    enum rule_verdict verdict = rule_table_match(shard->config.rules, &in->rule, &in->device, &subject);
    if (verdict == RULE_NONE) {
        in->rule = NULL;
        return PUBLISH_DONE;
    }
    if (verdict == RULE_SKIPPED) {
        in->rule = NULL;
        count_telemetry(shard, &stats->telemetry_refused_skipped);
        return PUBLISH_DONE;
    }
    if (verdict == RULE_REFUSE) {
        count_telemetry(shard, &stats->telemetry_refused_no_device);
        *refusal_out = (struct publish_refusal){MQTT_REASON_IMPLEMENTATION_SPECIFIC_ERROR, &stats->publish_refused_no_device};
        return PUBLISH_REFUSED;
    }
    if (in->from.source.qos > in->rule->max_qos) {
        count_telemetry(shard, &stats->telemetry_refused_qos);
        *refusal_out = (struct publish_refusal){MQTT_REASON_IMPLEMENTATION_SPECIFIC_ERROR, &stats->publish_refused_qos};
        return PUBLISH_REFUSED;
    }
    if (!shard->log.pool) {
        count_telemetry(shard, &stats->telemetry_refused_no_log);
        return PUBLISH_DONE;
    }
    if (shard->log.is_failed) {
        count_telemetry(shard, &stats->telemetry_refused_log_failed);
        *refusal_out = (struct publish_refusal){MQTT_REASON_IMPLEMENTATION_SPECIFIC_ERROR, &stats->publish_refused_log_failed};
        return in->from.source.qos > 0 ? PUBLISH_REFUSED : PUBLISH_DONE;
    }
    size_t size = record_size_about(shard, in);
    if (size > shard->config.limits.record_bytes_max) {
        count_telemetry(shard, &stats->telemetry_refused_too_large);
        *refusal_out = (struct publish_refusal){MQTT_REASON_QUOTA_EXCEEDED, &stats->publish_refused_too_large};
        return PUBLISH_REFUSED;
    }
    if (shard_log_has_room(&shard->log, size)) {
        in->is_logged_telemetry = true;
        return PUBLISH_DONE;
    }
    if (in->from.source.qos > 0 || in->from.is_will)
        return PUBLISH_NO_ROOM;
    count_telemetry(shard, &stats->telemetry_refused_log_full); /* QoS 0 is shed first */
    return PUBLISH_DONE;
}

/* It is state: is there room for its record, in the log and in what the checkpoint may lag behind? DONE: go on. */
static enum publish_outcome admit_state(struct shard *shard, struct publish_in *in, struct publish_refusal *refusal_out)
{
    struct shard_stats *stats = &shard->stats;
    if (shard->log.is_failed) {
        *refusal_out = (struct publish_refusal){MQTT_REASON_IMPLEMENTATION_SPECIFIC_ERROR, &stats->publish_refused_log_failed};
        return PUBLISH_REFUSED;
    }
    size_t size = record_size_about(shard, in);
    if (size > shard->config.limits.record_bytes_max) {
        *refusal_out = (struct publish_refusal){MQTT_REASON_QUOTA_EXCEEDED, &stats->publish_refused_too_large};
        return PUBLISH_REFUSED;
    }
    in->is_state = true;
    if (shard->has_store_room && shard_log_has_room(&shard->log, size))
        return PUBLISH_DONE;
    if (in->from.source.qos > 0 || in->from.is_will)
        return PUBLISH_NO_ROOM;
    *refusal_out = (struct publish_refusal){MQTT_REASON_QUOTA_EXCEEDED, &stats->publish_refused_log_full};
    return PUBLISH_REFUSED;
}

/* Is there room for its retained value? Asked before anything is done, so that who is refused can try again without anybody getting it
 * twice. A PUBLISH that cannot be refused (QoS 0, a will, an older client, which could only be closed, each time) goes to its subscribers
 * and is not kept. A removal waits until it can be remembered. DONE: go on; what is reserved ends with the value or by give_back(). */
static enum publish_outcome judge_retained(struct shard *shard, struct publish_in *in, struct publish_refusal *refusal_out)
{
    struct retained *retained = shard->config.retained;
    const struct msg_source *source = &in->from.source;
    in->reserved = (struct retained_reservation){0};
    in->is_kept = source->retain;
    if (!source->retain)
        return PUBLISH_DONE;
    if (source->payload.size == 0)
        return retained_may_remove(retained, source->topic) ? PUBLISH_DONE : PUBLISH_NO_ROOM;
    in->is_kept = retained_reserve(retained, &in->reserved, source->topic, (uint32_t)msg_source_cost(source));
    if (in->is_kept || source->qos == 0 || !in->from.client || in->from.client->version < MQTT_V5)
        return PUBLISH_DONE;
    counter_inc(&shard->stats.retained_refused);
    *refusal_out = (struct publish_refusal){MQTT_REASON_QUOTA_EXCEEDED, &shard->stats.publish_refused_retained_full};
    return PUBLISH_REFUSED;
}

/* It does not come to its value after all. */
static void give_back(struct shard *shard, struct publish_in *in)
{
    if (in->is_kept)
        retained_unreserve(shard->config.retained, &in->reserved);
}

/* Whether it is state by itself, whoever gets it. */
static bool is_state_anyway(const struct shard *shard, const struct publish_in *in)
{
    return shard->log.pool &&
           (in->is_kept || in->from.is_will || (in->from.source.qos == 2 && session_is_persistent(in->from.client->session)));
}

/* Its record, in the scratch: what a PUBLISH never has stays zero there. */
static const struct record *record_of(struct shard *shard, const struct publish_in *in)
{
    const struct msg_source *source = &in->from.source;
    struct record *rec = &shard->scratch.record;
    rec->type = RECORD_PUBLISH;
    rec->qos = source->qos;
    rec->retain = source->retain;
    rec->dup = in->from.dup;
    rec->topic = source->topic;
    rec->payload = source->payload;
    rec->properties = source->properties;
    rec->received_ns = source->receive_wall_ns;
    rec->expiry_ns = source->expiry_wall_ns == MSG_NO_EXPIRY ? 0 : source->expiry_wall_ns;
    rec->packet_id = source->qos == 2 && in->from.client && session_is_persistent(in->from.client->session) ? in->from.packet_id : 0;
    rec->retained_number = in->retained_number;
    rec->will_session = in->from.will_session;
    rec->has_correlation = true;
    memcpy(rec->correlation, in->correlation, sizeof rec->correlation);
    rec->client_id = in->from.client_id;
    rec->session = source->publisher;
    rec->recipients = span_of(shard->scratch.record_recipients.data, shard->scratch.record_recipients.size);
    const struct rule_table *rules = shard->config.rules;
    bool is_telemetry = in->is_logged_telemetry;
    rec->rule = is_telemetry ? span_of(in->rule->name, in->rule->name_size) : (struct span){0};
    rec->rule_index = is_telemetry ? (uint32_t)(in->rule - rules->rules) : 0;
    rec->device = is_telemetry ? in->device : (struct span){0};
    rec->partition = is_telemetry ? murmur2_partition(in->device, rules->partition_count) : 0;
    rec->partition_count = is_telemetry ? rules->partition_count : 0;
    rec->codec = is_telemetry ? RECORD_CODEC_JSON : RECORD_CODEC_NONE;
    return rec;
}

/* --- the way through ---------------------------------------------------------------------------------------------------------------- */

/* What waits for a record, or for nothing, into the gate. With a record the message gets its sequence there; a retained one needs it even
 * if nobody is held, because the route actor keeps the message until the checkpoint has it. msg: taken. */
static void give_held(struct shard *shard, struct msg *msg, struct span held, uint32_t held_count, uint64_t wait_block,
                      uint32_t record_index)
{
    bool is_name_wanted = wait_block != 0 && msg->retained_number != 0 && msg->payload_size > 0;
    bool is_done = held_count == 0 && !is_name_wanted;
    if (!is_done && wait_block == 0 && ack_gate_is_empty(&shard->gate)) {
        delivery_give(shard, msg, held);
        is_done = true;
    } else if (!is_done && wait_block == 0 && msg->qos == 0 && !ack_gate_has_room(&shard->gate, held.size + msg_cost(msg))) {
        counter_add(&shard->stats.dropped_gate_full, held_count); /* the log stands still */
        is_done = true;
    }
    if (is_done) {
        msg_unref(msg);
        return;
    }
    CHECK(wait_block == 0 || wait_block > shard->gate.durable_blocks); /* nobody was told its sequence */
    struct gate_item item = {
        .wait_block = wait_block,
        .since_mono_ns = shard->now_mono_ns,
        .msg = msg,
        .extra_size = (uint32_t)held.size,
        .record_index = record_index,
        .copy_count = held_count,
        .kind = GATE_DELIVERY,
    };
    ack_gate_put(&shard->gate, &item, held, shard_log_filling(&shard->log));
}

/* The number is drawn before the tree is asked, in one order with everything: a subscription that the route actor adds and then finds no
 * number outstanding is in the tree for every later PUBLISH (route_actor.c). */
static uint64_t draw_retained_number(struct shard *shard)
{
    return atomic_fetch_add_explicit(shard->config.retained_counter, 1, memory_order_seq_cst) + 1;
}

/* A number that was drawn for nothing: the route actor counts them. */
static void post_retain_void(struct shard *shard)
{
    shard_post(shard, ACTOR_ROUTE, &(struct op){.type = OP_ROUTE_RETAIN, .from = shard->config.index});
}

static void post_retain(struct shard *shard, struct msg *msg, const struct retained_reservation *reserved)
{
    shard->retained_asked++;
    shard_post(shard, ACTOR_ROUTE,
               &(struct op){.type = OP_ROUTE_RETAIN,
                            .flag = reserved->is_message,
                            .from = shard->config.index,
                            .count = reserved->bytes,
                            .retain = {.msg = msg_ref(msg), .hold = shard->retained_asked}});
}

/* A job that outlives the packet: a large record goes into blocks turn by turn. Takes the scratch's held recipients. NULL: no memory. */
static struct publish_job *job_new(struct shard *shard, const struct publish_in *in, struct msg *msg)
{
    struct publish_job *job = malloc(sizeof *job);
    if (!job)
        return NULL;
    *job = (struct publish_job){
        .msg = msg,
        .held = shard->scratch.held,
        .held_count = shard->scratch.held_count,
        .packet_id = in->from.packet_id,
        .qos = in->from.client ? in->from.source.qos : 0,
        .is_will = in->from.is_will,
        .is_telemetry = in->is_logged_telemetry,
    };
    if (in->from.client)
        job->client = client_ref_of(in->from.client);
    shard->scratch.held = (struct publish_bytes){0};
    return job;
}

struct publish_done {
    uint64_t wait_block, wait_retained;
    uint32_t record_index;
    uint8_t durability; /* enum durability of the answer */
    bool is_matched;    /* somebody or some rule wanted it */
    bool is_large;      /* the answer follows by publish_on_logged() */
};

/* Its record, into the block or as a large one; the message becomes the job's with that. False: no room. */
static bool log_publish(struct shard *shard, const struct publish_in *in, struct msg *msg, struct publish_done *done)
{
    const struct record *rec = record_of(shard, in);
    size_t size = shard_log_size(&shard->log, rec);
    if (!shard_log_has_room(&shard->log, size))
        return false;
    if (!shard_log_is_large(&shard->log, size)) {
        done->wait_block = shard_log_append(shard, rec, size);
        if (done->wait_block == 0)
            return false;
        done->record_index = shard_log_last_index(&shard->log);
        if (in->is_logged_telemetry)
            count_telemetry(shard, NULL);
        return true;
    }
    CHECK(msg);
    struct publish_job *job = job_new(shard, in, msg);
    done->is_large = job && shard_log_begin_large(shard, rec, job) == ERR_OK;
    if (!done->is_large && job) {
        shard->scratch.held = job->held; /* give back what it took */
        free(job);
    }
    if (done->is_large && in->is_logged_telemetry)
        counter_inc(&shard->stats.telemetry_matched), gauge_add(&shard->stats.telemetry_logging, 1);
    return done->is_large;
}

/* Who gets it, and whether there is room for what follows from that. A number that was drawn is the caller's to give up. */
static enum publish_outcome route(struct shard *shard, struct publish_in *in, struct publish_refusal *refusal_out)
{
    struct publish_scratch *scratch = &shard->scratch;
    *refusal_out = (struct publish_refusal){MQTT_REASON_QUOTA_EXCEEDED, &shard->stats.publish_refused_quota};
    enum publish_outcome outcome = PUBLISH_DONE;
    if (!fan_out_find(shard, &in->from.source, in->from.is_will)) {
        if (in->is_logged_telemetry)
            count_telemetry(shard, &shard->stats.telemetry_refused_no_memory);
        return PUBLISH_REFUSED;
    }
    if (scratch->is_refused) {
        refusal_out->cell = &shard->stats.publish_refused_subscriber_full;
        if (in->is_logged_telemetry)
            count_telemetry(shard, &shard->stats.telemetry_refused_subscriber_full);
        return PUBLISH_REFUSED;
    }
    if (scratch->record_recipients.size > 0)
        outcome = admit_state(shard, in, refusal_out);
    if (outcome == PUBLISH_REFUSED && in->is_logged_telemetry)
        count_telemetry(shard, &shard->stats.telemetry_refused_log_full);
    return outcome;
}

/* The one copy of it that all its recipients share. NULL: memory is short. */
static struct msg *copy_of(const struct publish_in *in)
{
    struct msg *msg = msg_new(&in->from.source);
    if (!msg)
        return NULL;
    memcpy(msg->correlation_id, in->correlation, sizeof msg->correlation_id);
    msg->retained_number = in->retained_number;
    return msg;
}

/* Somebody gets it, or a large record takes its payload block by block. */
static bool is_copy_wanted(const struct shard *shard, const struct publish_in *in)
{
    return shard->scratch.now_count + shard->scratch.held_count > 0 || in->is_kept ||
           (wants_record(in) && shard_log_is_large(&shard->log, record_size_about(shard, in)));
}

/* The copy, if one is wanted, and the record. */
static enum publish_outcome keep(struct shard *shard, struct publish_in *in, struct msg **msg_out, struct publish_done *done,
                                 struct publish_refusal *refusal_out)
{
    *refusal_out = (struct publish_refusal){MQTT_REASON_QUOTA_EXCEEDED, &shard->stats.publish_refused_quota};
    shard_correlation_id(shard, in->correlation);
    struct msg *msg = NULL;
    if (is_copy_wanted(shard, in) && !(msg = copy_of(in))) {
        if (in->is_logged_telemetry)
            count_telemetry(shard, &shard->stats.telemetry_refused_no_memory);
        return PUBLISH_REFUSED;
    }
    *msg_out = msg;
    if (!wants_record(in) || log_publish(shard, in, msg, done))
        return PUBLISH_DONE;
    bool may_wait = in->from.source.qos > 0 || in->from.is_will;
    if (in->is_logged_telemetry && !may_wait)
        count_telemetry(shard, &shard->stats.telemetry_refused_log_full);
    if (!in->is_state && !may_wait)
        return PUBLISH_DONE;
    msg_unref(msg);
    refusal_out->cell = &shard->stats.publish_refused_log_full;
    return may_wait ? PUBLISH_NO_ROOM : PUBLISH_REFUSED;
}

/* Of the answer to a message with a record. */
static uint8_t durability_of(const struct shard *shard, const struct publish_in *in)
{
    if (!shard->config.tiers || in->from.source.qos == 0)
        return DURABILITY_LOG;
    const struct tier_line *line = tier_table_match(shard->config.tiers, in->from.source.topic);
    return line ? line->durability : DURABILITY_LOG;
}

/* Everything between judging and answering. On NO_ROOM nothing has happened; on REFUSED the refusal is set. */
static enum publish_outcome publish(struct shard *shard, struct publish_in *in, struct publish_done *done,
                                    struct publish_refusal *refusal_out)
{
    struct publish_scratch *scratch = &shard->scratch;
    scratch->record_recipients.size = 0;
    in->is_state = false;
    enum publish_outcome outcome = judge_retained(shard, in, refusal_out);
    if (outcome == PUBLISH_DONE)
        outcome = judge_telemetry(shard, in, refusal_out);
    if (outcome == PUBLISH_DONE && is_state_anyway(shard, in)) {
        outcome = admit_state(shard, in, refusal_out);
        if (outcome == PUBLISH_REFUSED && in->is_logged_telemetry)
            count_telemetry(shard, &shard->stats.telemetry_refused_log_full);
    }
    if (outcome != PUBLISH_DONE) {
        give_back(shard, in);
        return outcome;
    }
    in->from.source.receive_wall_ns = shard_receive_time(shard);
    in->from.source.receive_steady_s = (uint32_t)(shard->now_steady_ns / NS_PER_S);
    in->retained_number = in->is_kept ? draw_retained_number(shard) : 0;
    struct msg *msg = NULL;
    *done = (struct publish_done){.durability = DURABILITY_NONE};
    outcome = route(shard, in, refusal_out);
    if (outcome == PUBLISH_DONE)
        outcome = keep(shard, in, &msg, done, refusal_out);
    if (outcome != PUBLISH_DONE) {
        give_back(shard, in);
        if (in->retained_number)
            post_retain_void(shard);
        return outcome;
    }
    done->is_matched = scratch->list.count > 0 || in->rule;
    if (done->wait_block || done->is_large)
        done->durability = durability_of(shard, in);
    counter_add(&shard->stats.copies_routed, scratch->now_count + scratch->held_count + scratch->refused_count);
    counter_add(&shard->stats.dropped_queue_refuse, scratch->refused_count);
    counter_add(&shard->stats.retained_refused, in->from.source.retain && !in->is_kept);
    if (in->is_kept) {
        post_retain(shard, msg, &in->reserved);
        done->wait_retained = shard->retained_asked;
    }
    if (scratch->now_count > 0)
        delivery_give(shard, msg, span_of(scratch->now.data, scratch->now.size));
    if (msg && !done->is_large) /* a large one is the job's */
        give_held(shard, msg, span_of(scratch->held.data, scratch->held.size), scratch->held_count, done->wait_block, done->record_index);
    if (!done->is_matched)
        counter_inc(&shard->stats.publish_unmatched);
    return PUBLISH_DONE;
}

void publish_say_passed(struct shard *shard, uint64_t number)
{
    if (!shard->log.pool)
        return;
    if (shard->log.large) {
        shard->passed_number = number; /* it may be one of them, and its block has no number yet */
        return;
    }
    shard_post(shard, ACTOR_STORE,
               &(struct op){.type = OP_STORE_PASSED,
                            .from = shard->config.index,
                            .passed = {.number = number, .block = shard_log_newest(&shard->log)}});
}

static int64_t expiry_of(const struct shard *shard, bool has_expiry, uint32_t interval_s)
{
    return has_expiry ? shard->now_steady_ns + (int64_t)interval_s * NS_PER_S : MSG_NO_EXPIRY;
}

/* A PUBLISH that we do not take: QoS 0 is dropped, v5 is told, older versions can only be closed [MQTT-3.3.5-2 of 3.1.1]. */
static enum client_step refuse(struct shard *shard, struct client *client, const struct packet_publish *packet, enum mqtt_reason reason,
                               struct counter *cell)
{
    counter_inc(cell);
    if (packet->qos == 0)
        return CLIENT_NEXT;
    if (client->version < MQTT_V5)
        return client_over(shard, MQTT_REASON_SUCCESS, &shard->stats.closed_refused_publish);
    client->receive_held++; /* until the answer leaves */
    struct gate_item item = inbound_answer(packet->qos, packet->packet_id, reason);
    client_answer(shard, client, &item);
    return CLIENT_NEXT;
}

static bool is_turn_used_up(const struct shard *shard, struct client *client)
{
    if (client->turn != (uint16_t)shard->turn) {
        client->turn = (uint16_t)shard->turn;
        client->publishes = 0;
    }
    return client->publishes == UINT16_MAX || client->publishes >= shard->config.limits.publishes_per_turn_max;
}

/* Gate, rings and log of this shard, before anything is done about the packet. */
static bool has_room_for(const struct shard *shard, const struct session *sess, const struct packet_publish *packet, size_t packet_size)
{
    /* The session's large record, begun on an earlier connection, is not complete: it keeps its place before this one (LOG 6). */
    const struct publish_job *large = shard->log.large;
    if (large && !large->is_will && large->client.number == sess->number)
        return false;
    if (packet->retain && shard->backlog.count > 0)
        return false;
    /* What is late goes first: PUBLISHes would take each block that comes back (LOG 7). */
    return packet->qos == 0 || (!shard->session_log.first && shard_has_room(shard) && ack_gate_has_room(&shard->gate, packet_size));
}

/* It has as many unanswered as it may. */
static enum client_step exceed_quota(struct shard *shard, struct client *client)
{
    if (!client->is_strict)
        return client_set_block(shard, client, BLOCK_QUOTA);
    return client_over(shard, MQTT_REASON_RECEIVE_MAXIMUM_EXCEEDED, &shard->stats.closed_protocol_error); /* [MQTT-3.3.4-7] */
}

static void count_handled(struct shard *shard, struct client *client, uint8_t qos, uint32_t copies)
{
    uint32_t cost = client->publishes + 1u + copies / COPIES_PER_PUBLISH;
    client->publishes = (uint16_t)(cost < UINT16_MAX ? cost : UINT16_MAX);
    counter_inc(qos == 0 ? &shard->stats.received_qos0 : qos == 1 ? &shard->stats.received_qos1 : &shard->stats.received_qos2);
}

/* The answer to a PUBLISH that was taken, if it has one and its wait is known. */
static void answer_taken(struct shard *shard, struct client *client, const struct packet_publish *packet, const struct publish_done *done)
{
    enum mqtt_reason reason = done->is_matched ? MQTT_REASON_SUCCESS : MQTT_REASON_NO_MATCHING_SUBSCRIBERS;
    client->receive_held += packet->qos > 0;
    if (done->is_large) {
        shard->log.large->reason = (uint8_t)reason;
        shard->log.large->wait_retained = done->wait_retained;
        shard->log.large->durability = done->durability;
        /* The packet is handled, but nothing behind it is until the record is complete, at QoS 0 neither (LOG 6). */
        client_set_block(shard, client, BLOCK_LARGE);
        return;
    }
    if (packet->qos == 0)
        return;
    struct gate_item item = inbound_answer(packet->qos, packet->packet_id, reason);
    inbound_set_waits(&item, done->wait_block, done->wait_retained, done->durability);
    if (packet->qos == 2)
        inbound_keep_waits(inbound_ids_find(&client->session->rare->inbound, packet->packet_id), &item);
    client_answer(shard, client, &item);
}

static struct publish_from from_packet(const struct shard *shard, struct client *client, const struct packet_publish *packet,
                                       struct span properties)
{
    return (struct publish_from){
        .source = {.topic = packet->topic,
                   .properties = properties,
                   .payload = packet->payload,
                   .qos = packet->qos,
                   .retain = packet->retain,
                   .publisher = client->session->number,
                   .expiry_wall_ns = expiry_of(shard, packet->properties.present & MQTT_PROPERTY_BIT(MESSAGE_EXPIRY_INTERVAL),
                                               packet->properties.message_expiry_interval_s)},
        .client_id = session_client_id(client->session),
        .user_name = client_user_name(client),
        .client = client,
        .packet_id = packet->packet_id,
        .dup = packet->dup,
    };
}

enum client_step publish_on_packet(struct shard *shard, struct client *client, const struct packet_publish *packet, size_t packet_size)
{
    struct session *sess = client->session;
    const struct shard_listener *listener = &shard->config.listeners[client->listener];
    if (is_turn_used_up(shard, client))
        return client_set_block(shard, client, BLOCK_FAIR);
    if (packet->qos > 0) {
        struct inbound_id *id = packet->qos == 2 && sess->rare ? inbound_ids_find(&sess->rare->inbound, packet->packet_id) : NULL;
        if (id)
            return inbound_repeat(shard, client, packet, id);
        if (client->receive_held >= listener->receive_maximum)
            return exceed_quota(shard, client);
    }
    if (!has_room_for(shard, sess, packet, packet_size))
        return client_set_block(shard, client, BLOCK_ROOM);

    /* The identifier is remembered before the record is made: afterwards there is no way back. */
    if (packet->qos == 2 && !inbound_open(sess, packet->packet_id))
        return refuse(shard, client, packet, MQTT_REASON_QUOTA_EXCEEDED, &shard->stats.publish_refused_quota);

    uint8_t stack[1024];
    size_t properties_size = properties_forwardable_size(packet->properties.raw);
    uint8_t *properties = properties_size <= sizeof stack ? stack : publish_bytes_reserve(&shard->scratch.properties, properties_size);
    struct publish_in in;
    struct publish_done done;
    struct publish_refusal refusal = {MQTT_REASON_QUOTA_EXCEEDED, &shard->stats.publish_refused_quota};
    enum publish_outcome outcome = PUBLISH_REFUSED;
    if (properties) {
        in.from = from_packet(shard, client, packet, span_of(properties, properties_forwardable_put(properties, packet->properties.raw)));
        outcome = publish(shard, &in, &done, &refusal);
    }
    if (outcome == PUBLISH_NO_ROOM) {
        if (packet->qos == 2)
            inbound_close(sess, packet->packet_id);
        return client_set_block(shard, client, BLOCK_ROOM);
    }
    count_handled(shard, client, packet->qos, outcome == PUBLISH_DONE ? shard->scratch.now_count + shard->scratch.held_count : 0);
    if (outcome == PUBLISH_REFUSED) {
        if (packet->qos == 2)
            inbound_close(sess, packet->packet_id); /* [MQTT-4.3.3-9] */
        return refuse(shard, client, packet, refusal.reason, refusal.cell);
    }
    answer_taken(shard, client, packet, &done);
    return CLIENT_NEXT;
}

void publish_on_logged(struct shard *shard, struct publish_job *job, uint64_t wait_block)
{
    if (job->is_telemetry)
        counter_inc(&shard->stats.telemetry_logged), gauge_add(&shard->stats.telemetry_logging, -1);
    shard->is_room_news = true; /* for another large one, and for who repeats or releases this one's identifier */
    give_held(shard, msg_ref(job->msg), span_of(job->held.data, job->held.size), job->held_count, wait_block, 0);
    struct gate_item item = inbound_answer(job->qos, job->packet_id, (enum mqtt_reason)job->reason);
    inbound_set_waits(&item, wait_block, job->wait_retained, job->durability);
    struct session *sess = job->qos > 0 ? session_table_find_number(&shard->sessions, job->client.number) : NULL;
    if (sess && job->qos == 2 && sess->rare) {
        struct inbound_id *id = inbound_ids_find(&sess->rare->inbound, job->packet_id);
        if (id && id->wait_block == INBOUND_WAIT_UNKNOWN)
            inbound_keep_waits(id, &item);
    }
    struct client *client = job->is_will ? NULL : client_find(shard, &job->client);
    if (client && job->qos > 0)
        client_answer(shard, client, &item);
    if (client)
        client_wake(shard, client);
    publish_job_free(job);
    if (shard->passed_number) {
        publish_say_passed(shard, shard->passed_number);
        shard->passed_number = 0;
    }
}

bool publish_will(struct shard *shard, const struct will *will)
{
    if (!shard_has_room(shard))
        return false;
    struct publish_in in;
    in.from = (struct publish_from){
        .source = {.topic = will->topic,
                   .properties = will->properties,
                   .payload = will->payload,
                   .qos = will->qos,
                   .retain = will->retain,
                   .publisher = will->publisher,
                   .expiry_wall_ns = expiry_of(shard, will->has_expiry, will->expiry_interval_s)},
        .client_id = will->client_id,
        .user_name = will->user_name,
        .is_will = true,
        .will_session = will->logged_as,
    };
    struct publish_done done;
    struct publish_refusal refusal;
    enum publish_outcome outcome = publish(shard, &in, &done, &refusal);
    if (outcome == PUBLISH_NO_ROOM)
        return false;
    counter_inc(outcome == PUBLISH_DONE ? &shard->stats.wills_published : &shard->stats.wills_failed);
    if (outcome == PUBLISH_REFUSED) /* there is no record of its own that says so: the next start would try it again */
        session_log_will_delete(shard, will->logged_as);
    return true;
}
