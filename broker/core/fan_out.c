#include "broker/core/fan_out.h"

#include <stdlib.h>

#include "broker/core/recipient.h"
#include "broker/core/shard_state.h"
#include "broker/session/queue_totals.h"
#include "common/hash.h"

#define NOT_FIRST 0x80000000u /* in next_same: the match belongs to a session seen before */

static bool same_session(const struct subscriber *a, const struct subscriber *b) { return a->number == b->number; }

static bool is_own_no_local(const struct subscriber *sub, uint64_t publisher)
{
    return (sub->options & SUBSCRIBER_NO_LOCAL) && sub->number == publisher;
}

/* Chain the matches of one session together: next_same[first] -> ... O(matches). */
static bool merge(struct publish_scratch *scratch)
{
    size_t count = scratch->list.count;
    if (count == 0)
        return true;
    if (scratch->next_capacity < count) {
        uint32_t *grown = realloc(scratch->next_same, count * 2 * sizeof *grown);
        if (!grown)
            return false;
        scratch->next_same = grown;
        scratch->next_capacity = count * 2;
    }
    memset(scratch->next_same, 0, count * sizeof *scratch->next_same);
    if (count == 1)
        return true;
    size_t cell_count = 16;
    while (cell_count < count * 2)
        cell_count *= 2;
    if (scratch->cell_capacity < cell_count) {
        uint32_t *grown = realloc(scratch->cells, cell_count * sizeof *grown);
        if (!grown)
            return false;
        scratch->cells = grown;
        scratch->cell_capacity = cell_count;
    }
    memset(scratch->cells, 0, cell_count * sizeof *scratch->cells);
    for (uint32_t i = 0; i < count; i++) {
        const struct subscriber *sub = &scratch->list.matches[i];
        size_t at = hash_u64(sub->number, 0) & (cell_count - 1);
        while (scratch->cells[at] && !same_session(&scratch->list.matches[scratch->cells[at] - 1], sub))
            at = (at + 1) & (cell_count - 1);
        if (!scratch->cells[at]) {
            scratch->cells[at] = i + 1;
            continue;
        }
        uint32_t first = scratch->cells[at] - 1;
        scratch->next_same[i] = NOT_FIRST | (scratch->next_same[first] & ~NOT_FIRST);
        scratch->next_same[first] = (scratch->next_same[first] & NOT_FIRST) | (i + 1);
    }
    return true;
}

/* LOG 1: the record names who gets it from the durable side. False: memory is short. */
static bool put_record_recipient(struct publish_scratch *scratch, const struct recipient *recipient, uint8_t options)
{
    uint8_t *at =
        publish_bytes_reserve(&scratch->record_recipients, RECORD_RECIPIENT_SIZE_MAX + 2 * (size_t)recipient->id_count * VARINT_SIZE_MAX);
    if (!at)
        return false;
    uint8_t *ids = at + RECORD_RECIPIENT_SIZE_MAX + (size_t)recipient->id_count * VARINT_SIZE_MAX;
    size_t ids_size = 0;
    for (uint32_t i = 0; i < recipient->id_count; i++)
        ids_size += varint_put(ids + ids_size, recipient->ids[i]);
    struct record_recipient logged = {
        .session = recipient->number,
        .qos = recipient->qos,
        .options = options & (SUBSCRIBER_NO_LOCAL | SUBSCRIBER_RETAIN_AS_PUBLISHED),
        .ids = span_of(ids, ids_size),
    };
    scratch->record_recipients.size += record_recipient_put(at, &logged);
    return true;
}

/* All queues together are full, and who needs them is refused. */
static bool are_queues_full(const struct shard *shard)
{
    const struct queue_totals *totals = shard->config.queue_totals;
    return totals && shard->config.limits.queue_policy == QUEUE_REFUSE && queue_totals_are_full(totals);
}

/* Its session is full, and who publishes is to be told so (LOG 13). At QoS 0, and by a will, there is nobody to tell. */
static void refuse_recipient(struct publish_scratch *scratch, uint8_t qos, bool is_will)
{
    scratch->refused_count++;
    if (qos > 0 && !is_will)
        scratch->is_refused = true;
}

/* Put the recipient made of the chain that begins at match `first` where it belongs. False: memory is short. */
static bool put_recipient(struct shard *shard, const struct msg_source *source, bool is_will, uint32_t first, bool is_merged)
{
    struct publish_scratch *scratch = &shard->scratch;
    const struct subscriber *matches = scratch->list.matches;
    const struct subscriber *sub = &matches[first];
    uint8_t granted = 0, options = 0;
    uint32_t id_count = 0, part_count = 0;
    for (uint32_t next = first + 1; next; next = is_merged ? scratch->next_same[next - 1] & ~NOT_FIRST : 0) {
        const struct subscriber *part = &matches[next - 1];
        if (is_own_no_local(part, source->publisher))
            continue; /* [MQTT-3.8.3-3] */
        part_count++;
        granted = part->qos > granted ? part->qos : granted; /* [MQTT-3.3.4-2] */
        options |= part->options;
        id_count += part->subscription_id != 0;
    }
    if (part_count == 0)
        return true;
    uint8_t qos = granted < source->qos ? granted : source->qos;
    bool is_persistent = (options & SUBSCRIBER_PERSISTENT) != 0;
    bool may_wait = is_persistent && (qos > 0 || shard->config.limits.queue_qos0_messages);
    if ((options & SUBSCRIBER_FULL) || (may_wait && are_queues_full(shard))) {
        refuse_recipient(scratch, qos, is_will);
        return true;
    }
    /* LOG 9. Without a record it still keeps its place behind what waits. A will that was said and is not durable would be said again. */
    bool is_held = shard->log.pool && (is_persistent || source->qos == 2 || is_will);
    struct publish_bytes *bytes = is_held ? &scratch->held : &scratch->now;
    size_t size = recipient_size(id_count);
    struct recipient *recipient = (struct recipient *)(void *)publish_bytes_reserve(bytes, size);
    if (!recipient)
        return false;
    *recipient = (struct recipient){
        .number = sub->number,
        .shard = sub->shard,
        .qos = qos,
        .retain = source->retain && (options & SUBSCRIBER_RETAIN_AS_PUBLISHED),
    };
    for (uint32_t next = first + 1; next; next = is_merged ? scratch->next_same[next - 1] & ~NOT_FIRST : 0) {
        const struct subscriber *part = &matches[next - 1];
        if (part->subscription_id != 0 && !is_own_no_local(part, source->publisher))
            recipient->ids[recipient->id_count++] = part->subscription_id; /* [MQTT-3.3.4-4] */
    }
    bytes->size += size;
    *(is_held ? &scratch->held_count : &scratch->now_count) += 1;
    recipient->is_named = is_held && may_wait;
    return !recipient->is_named || put_record_recipient(scratch, recipient, options);
}

bool fan_out_find(struct shard *shard, const struct msg_source *source, bool is_will)
{
    struct publish_scratch *scratch = &shard->scratch;
    scratch->now.size = scratch->held.size = scratch->record_recipients.size = 0;
    scratch->now_count = scratch->held_count = scratch->refused_count = 0;
    scratch->is_refused = false;
    if (topic_tree_match(shard->tree, shard->reader, source->topic, &scratch->list))
        return false;
    bool is_merged = !shard->config.limits.allow_duplicate_messages;
    if (is_merged && !merge(scratch))
        return false;
    for (uint32_t i = 0; i < scratch->list.count; i++) {
        if (scratch->list.matches[i].options & SUBSCRIBER_GROUP)
            continue;
        if (is_merged && (scratch->next_same[i] & NOT_FIRST))
            continue;
        if (!put_recipient(shard, source, is_will, i, is_merged))
            return false;
    }
    return true;
}
