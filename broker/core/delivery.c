#include "broker/core/delivery.h"

#include <stdlib.h>

#include "broker/core/deliver.h"
#include "broker/core/owed.h"
#include "broker/core/recipient.h"
#include "broker/core/scan.h"
#include "broker/core/shard_state.h"
#include "broker/core/waiting.h"
#include "common/check.h"

void delivery_free(struct delivery *delivery)
{
    if (!delivery)
        return;
    for (uint32_t at = 0; at < delivery->size;) {
        struct delivery_entry entry;
        memcpy(&entry, delivery->bytes + at, sizeof entry);
        msg_unref(entry.msg);
        at += (uint32_t)align_up(sizeof entry + entry.size, 8);
    }
    free(delivery);
}

static void batch_post(struct shard *shard, actor_id to)
{
    struct delivery *delivery = shard->batches[to];
    if (!delivery)
        return;
    shard->batches[to] = NULL;
    counter_add(&shard->stats.copies_posted, delivery->copies);
    shard_post(shard, to, &(struct op){.type = OP_DELIVER, .from = shard->config.index, .count = delivery->copies, .delivery = delivery});
}

void delivery_post_batches(struct shard *shard)
{
    for (actor_id to = 0; to < shard->config.shard_count; to++)
        batch_post(shard, to);
}

/* The batch to a shard with room for `size` more bytes, NULL when memory is short. */
static struct delivery *batch_reserve(struct shard *shard, actor_id to, size_t size)
{
    struct delivery *delivery = shard->batches[to];
    if (delivery && delivery->size >= DELIVERY_SIZE_POST) {
        batch_post(shard, to);
        delivery = NULL;
    }
    size_t need = (delivery ? delivery->size : 0) + size;
    if (delivery && delivery->capacity >= need)
        return delivery;
    size_t capacity = delivery ? delivery->capacity : DELIVERY_SIZE_FIRST;
    while (capacity < need)
        capacity *= 2;
    struct delivery *grown = realloc(delivery, sizeof *grown + capacity);
    if (!grown)
        return NULL;
    if (!delivery)
        *grown = (struct delivery){0};
    grown->capacity = (uint32_t)capacity;
    shard->batches[to] = grown;
    return grown;
}

static bool batch_add(struct shard *shard, struct msg *msg, const struct recipient *recipient)
{
    size_t size = recipient_size(recipient->id_count);
    struct delivery *delivery = batch_reserve(shard, recipient->shard, sizeof(struct delivery_entry) + size + 16);
    if (!delivery)
        return false;
    struct delivery_entry *entry = (struct delivery_entry *)(void *)(delivery->bytes + delivery->last_entry);
    if (delivery->copies == 0 || entry->msg != msg) {
        delivery->last_entry = delivery->size;
        entry = (struct delivery_entry *)(void *)(delivery->bytes + delivery->last_entry);
        *entry = (struct delivery_entry){.msg = msg_ref(msg)};
    }
    memcpy((uint8_t *)(entry + 1) + entry->size, recipient, size);
    entry->size += (uint32_t)size;
    entry->count++;
    delivery->size = delivery->last_entry + (uint32_t)align_up(sizeof *entry + entry->size, 8);
    delivery->copies++;
    return true;
}

static void deliver_home(struct shard *shard, struct msg *msg, const struct recipient *recipient)
{
    struct session *sess = session_table_find_number(&shard->sessions, recipient->number);
    if (!sess) {
        counter_inc(&shard->stats.dropped_session_gone);
        /* It was logged between the match and the end of the session: nobody else can say that nobody wants it. */
        if (recipient->is_named)
            waiting_log_drop(shard, recipient->number, msg_sequence(msg), SHARD_dropped_session_gone);
        return;
    }
    if (recipient->is_copy || recipient->is_behind) {
        if (!owed_on_released(shard, sess, msg, recipient))
            return;
    } else if (owed_hold_live(shard, sess, msg, recipient)) {
        return;
    }
    CHECK(!recipient->is_named || msg_sequence(msg) != 0);
    deliver_to_session(shard, sess, msg, recipient->qos, recipient->retain, recipient->is_named, recipient->ids, recipient->id_count);
    if (recipient->is_copy)
        scan_pace(shard, sess);
}

static void deliver_recipient(struct shard *shard, struct msg *msg, const struct recipient *recipient)
{
    if (recipient->shard == shard->config.index)
        deliver_home(shard, msg, recipient);
    else if (recipient->qos == 0 && !shard->config.limits.queue_qos0_messages && op_backlog_waits(&shard->backlog, recipient->shard))
        counter_inc(&shard->stats.dropped_ring_full);
    else if (!batch_add(shard, msg, recipient)) {
        counter_inc(&shard->stats.dropped_no_memory);
        if (recipient->is_named)
            waiting_log_drop(shard, recipient->number, msg_sequence(msg), SHARD_dropped_no_memory);
    }
}

void delivery_give(struct shard *shard, struct msg *msg, struct span recipients)
{
    for (size_t at = 0; at < recipients.size;) {
        const struct recipient *recipient = (const struct recipient *)(const void *)(recipients.data + at);
        deliver_recipient(shard, msg, recipient);
        at += recipient_size(recipient->id_count);
    }
}

void delivery_on_batch(struct shard *shard, struct delivery *delivery)
{
    counter_add(&shard->stats.copies_received, delivery->copies);
    for (uint32_t at = 0; at < delivery->size;) {
        const struct delivery_entry *entry = (const struct delivery_entry *)(const void *)(delivery->bytes + at);
        const uint8_t *recipients = (const uint8_t *)(entry + 1);
        for (uint32_t offset = 0; offset < entry->size;) {
            const struct recipient *recipient = (const struct recipient *)(const void *)(recipients + offset);
            deliver_home(shard, entry->msg, recipient);
            offset += (uint32_t)recipient_size(recipient->id_count);
        }
        at += (uint32_t)align_up(sizeof *entry + entry->size, 8);
    }
    delivery_free(delivery);
}
