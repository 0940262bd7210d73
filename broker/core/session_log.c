#include "broker/core/session_log.h"

#include <stdlib.h>

#include "broker/core/publish_job.h"
#include "broker/core/shard_log.h"
#include "broker/core/shard_state.h"
#include "common/check.h"
#include "common/clock.h"
#include "common/position_list.h"

#define DROP_BYTES_MAX 32768u /* of positions in one DROP record: about half a block */

/* A record that found no room, or an answer behind such. */
struct late_item {
    struct late_item *next;
    struct client_ref client;
    size_t size;
    bool is_record;
    uint8_t kind; /* of an answer: enum gate_kind */
    uint8_t bytes[];
};

void session_log_deinit(struct session_log *log)
{
    while (log->first) {
        struct late_item *item = log->first;
        log->first = item->next;
        free(item);
    }
    *log = (struct session_log){0};
}

/* Memory shortage is fatal: what the record says has happened already. */
static struct late_item *late_add(struct shard *shard, size_t size)
{
    struct late_item *item = malloc(sizeof *item + size);
    CHECK_MSG(item, "out of memory for what the log has no room for");
    *item = (struct late_item){.size = size};
    struct session_log *log = &shard->session_log;
    if (log->first)
        log->last->next = item;
    else
        log->first = item;
    log->last = item;
    queue_stats_push(&shard->stats.late_records, size, shard->now_mono_ns);
    return item;
}

bool session_log_is_full(const struct shard *shard)
{
    const struct queue_stats *late = &shard->stats.late_records;
    return late->bytes + late->messages * sizeof(struct late_item) > SESSION_LOG_LATE_MAX;
}

static bool is_end(const struct record *rec)
{
    uint64_t lives = rec->options & (RECORD_SESSION_EXPIRY_MASK | RECORD_SESSION_CONNECTED);
    return rec->type == RECORD_SESSION_DELETE || (rec->type == RECORD_SESSION && lives == 0);
}

static void log_now(struct shard *shard, const struct record *rec)
{
    uint64_t block = shard_log_control(shard, rec);
    if (is_end(rec))
        shard->session_log.end_block = block;
}

bool session_log_is_ending(const struct shard *shard)
{
    return shard->session_log.first || shard->session_log.end_block > shard->gate.durable_blocks;
}

static bool is_will_on_its_way(const struct shard *shard) { return shard->log.large && shard->log.large->is_will; }

void session_log_put(struct shard *shard, const struct record *rec)
{
    if (!shard->log.pool)
        return;
    size_t size = record_size(rec);
    /* Not before a will whose record is on its way: with what is said of its session the will would be gone, and its record torn. */
    if (!shard->session_log.first && !is_will_on_its_way(shard) && shard_log_has_control_room(&shard->log, size)) {
        log_now(shard, rec);
        return;
    }
    struct late_item *item = late_add(shard, size);
    item->is_record = true;
    size_t used = record_encode(item->bytes, rec);
    CHECK(used == size);
}

static void hold_answer(struct shard *shard, enum gate_kind kind, const struct client_ref *client, struct span bytes)
{
    struct gate_item item = {
        .wait_block = shard_log_newest(&shard->log),
        .since_mono_ns = shard->now_mono_ns,
        .client = *client,
        .extra_size = (uint32_t)bytes.size,
        .kind = (uint8_t)kind,
    };
    ack_gate_put(&shard->gate, &item, bytes, shard_log_filling(&shard->log));
}

void session_log_answer(struct shard *shard, enum gate_kind kind, const struct client_ref *client, struct span bytes)
{
    if (!shard->session_log.first) {
        hold_answer(shard, kind, client, bytes);
        return;
    }
    struct late_item *item = late_add(shard, bytes.size);
    item->client = *client;
    item->kind = (uint8_t)kind;
    memcpy(item->bytes, bytes.data, bytes.size);
}

void session_log_flush(struct shard *shard)
{
    struct session_log *log = &shard->session_log;
    for (struct late_item *item; (item = log->first) != NULL;) {
        struct span bytes = span_of(item->bytes, item->size);
        if (item->is_record) {
            if (is_will_on_its_way(shard) || !shard_log_has_control_room(&shard->log, item->size))
                break;
            struct record rec;
            enum err err = record_decode(&rec, bytes);
            CHECK(err == ERR_OK);
            log_now(shard, &rec);
        } else {
            hold_answer(shard, (enum gate_kind)item->kind, &item->client, bytes);
        }
        log->first = item->next;
        queue_stats_pop(&shard->stats.late_records, item->size, shard->stats.late_records.oldest_ns);
        free(item);
    }
    if (!log->first)
        log->last = NULL;
}

void session_log_state(struct shard *shard, const struct session *sess, uint8_t protocol)
{
    struct record rec = {
        .type = RECORD_SESSION,
        .session = sess->number,
        .client_id = session_client_id(sess),
        .received_ns = shard->now_steady_ns,
        .options = (uint64_t)sess->expiry_interval_s | (sess->client ? RECORD_SESSION_CONNECTED : 0) |
                   (uint64_t)protocol << RECORD_SESSION_PROTOCOL_SHIFT,
    };
    session_log_put(shard, &rec);
}

void session_log_will(struct shard *shard, const struct will *will)
{
    struct record rec = {
        .type = RECORD_WILL,
        .session = will->logged_as,
        .will_session = will->logged_as != will->publisher ? will->publisher : 0,
        .client_id = will->client_id,
        .user_name = will->user_name,
        .topic = will->topic,
        .payload = will->payload,
        .properties = will->properties,
        .qos = will->qos,
        .retain = will->retain,
        .expiry_ns = will->has_expiry ? (int64_t)will->expiry_interval_s * NS_PER_S : 0,
        .options = will->delay_s | (will->has_expiry ? RECORD_WILL_HAS_EXPIRY : 0),
    };
    session_log_put(shard, &rec);
}

void session_log_will_delete(struct shard *shard, uint64_t number)
{
    session_log_put(shard, &(struct record){.type = RECORD_WILL_DELETE, .session = number});
}

/* Its client id is one that no client can have: U+0000 is in no text of MQTT [MQTT-1.5.4-2]. Between the two records a crash leaves a
 * session without a will, which expires as well, and the will where it was. */
void session_log_owe_will(struct shard *shard, struct will *will)
{
    will->logged_as = shard_draw_session_number(shard);
    will->ends_session = true;
    uint8_t client_id[16] = {0, 'w', 'i', 'l', 'l', ' ', 'o', 'f'};
    store_le64(client_id + 8, will->logged_as);
    session_log_put(shard, &(struct record){.type = RECORD_SESSION,
                                            .session = will->logged_as,
                                            .client_id = span_of(client_id, sizeof client_id),
                                            .received_ns = shard->now_steady_ns});
    session_log_will(shard, will);
}

void session_log_delete(struct shard *shard, uint64_t number)
{
    session_log_put(shard, &(struct record){.type = RECORD_SESSION_DELETE, .session = number});
}

static void session_log_over(struct shard *shard, const struct will *will)
{
    if (will->logged_as != will->publisher)
        return; /* made as one that is over */
    session_log_put(
        shard, &(struct record){
                   .type = RECORD_SESSION, .session = will->publisher, .client_id = will->client_id, .received_ns = shard->now_steady_ns});
}

void session_log_away_later(struct shard *shard, const struct session *sess)
{
    if (shard->restored_count == shard->restored_capacity) {
        uint32_t capacity = shard->restored_capacity ? shard->restored_capacity * 2 : 64;
        uint64_t *grown = realloc(shard->restored, capacity * sizeof *grown);
        if (!grown)
            return; /* it stays as connected in the log: another start begins its clock anew */
        shard->restored = grown;
        shard->restored_capacity = capacity;
    }
    shard->restored[shard->restored_count++] = sess->number;
}

/* A few each turn: a million of them take the log some seconds, beside everything else. */
void session_log_away_step(struct shard *shard)
{
    for (uint32_t i = 0;
         i < SHARD_RESTORED_PER_TURN && shard->restored_count > 0 && !shard->session_log.first && shard->waiting.drop_count == 0; i++) {
        const struct session *sess = session_table_find_number(&shard->sessions, shard->restored[--shard->restored_count]);
        if (sess && sess->connection == 0) /* otherwise the log knows better */
            session_log_state(shard, sess, 0);
    }
    if (shard->restored_count > 0)
        return;
    free(shard->restored);
    shard->restored = NULL;
    shard->restored_capacity = 0;
}

/* Positions of a session that ends, a record full at a time. */
struct drop_slice {
    struct shard *shard;
    uint64_t number, last;
    size_t size;
    uint8_t bytes[DROP_BYTES_MAX];
};

static void drop_slice_log(struct drop_slice *slice)
{
    if (slice->size > 0)
        session_log_put(slice->shard, &(struct record){.type = RECORD_DROP,
                                                       .session = slice->number,
                                                       .options = SHARD_dropped_session_ended,
                                                       .positions = span_of(slice->bytes, slice->size)});
    slice->size = 0;
    slice->last = 0;
}

static void drop_slice_add(void *arg, uint64_t sequence)
{
    struct drop_slice *slice = arg;
    if (sizeof slice->bytes - slice->size < VARINT_SIZE_MAX)
        drop_slice_log(slice);
    slice->size += position_list_put(slice->bytes + slice->size, &slice->last, sequence);
}

void session_log_end(struct shard *shard, const struct session *sess, const struct will *will)
{
    if (will)
        session_log_over(shard, will);
    else
        session_log_delete(shard, sess->number);
    struct drop_slice slice = {.shard = shard, .number = sess->number};
    queue_each_position(&sess->queue, drop_slice_add, &slice);
    inflight_each_position(&sess->inflight, drop_slice_add, &slice);
    drop_slice_log(&slice);
}

void session_log_subscription(struct shard *shard, uint64_t number, struct span filter, uint8_t options, uint32_t subscription_id,
                              bool is_owed)
{
    session_log_put(shard,
                    &(struct record){.type = RECORD_SUBSCRIPTION,
                                     .session = number,
                                     .topic = filter,
                                     .options = options | (uint64_t)subscription_id << 8 | (is_owed ? RECORD_SUBSCRIPTION_OWED : 0)});
}

void session_log_unsubscribe(struct shard *shard, uint64_t number, struct span filter)
{
    session_log_put(shard, &(struct record){.type = RECORD_UNSUBSCRIBE, .session = number, .topic = filter});
}
