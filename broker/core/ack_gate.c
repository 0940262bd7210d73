#include "broker/core/ack_gate.h"

#include <stdlib.h>

#include "common/check.h"

#define CHUNK_SIZE ((size_t)65536 - 64)
#define BLOCKS_FIRST 16 /* a power of two */

struct gate_chunk {
    struct gate_chunk *next;
    size_t start, end, capacity;
    _Alignas(8) uint8_t bytes[];
};

static struct gate_chunk *chunk_new(struct ack_gate *gate, size_t size)
{
    struct gate_chunk *chunk = gate->spare;
    if (chunk && chunk->capacity >= size) {
        gate->spare = NULL;
    } else {
        size_t capacity = size > CHUNK_SIZE ? size : CHUNK_SIZE;
        chunk = malloc(sizeof *chunk + capacity);
        CHECK_MSG(chunk, "out of memory for what the log has taken");
        chunk->capacity = capacity;
    }
    chunk->next = NULL;
    chunk->start = chunk->end = 0;
    return chunk;
}

static void chunk_free(struct ack_gate *gate, struct gate_chunk *chunk)
{
    if (!gate->spare && chunk->capacity == CHUNK_SIZE)
        gate->spare = chunk;
    else
        free(chunk);
}

void ack_gate_init(struct ack_gate *gate, struct queue_stats *stats) { *gate = (struct ack_gate){.stats = stats}; }

static size_t item_size(const struct gate_item *item) { return align_up(sizeof *item + item->extra_size, 8); }
static size_t item_cost(const struct gate_item *item) { return item_size(item) + (item->msg ? msg_cost(item->msg) : 0); }

void ack_gate_deinit(struct ack_gate *gate)
{
    for (struct gate_chunk *chunk = gate->first, *next; chunk; chunk = next) {
        next = chunk->next;
        while (chunk->start < chunk->end) {
            const struct gate_item *item = (const struct gate_item *)(const void *)(chunk->bytes + chunk->start);
            msg_unref(item->msg);
            chunk->start += item_size(item);
        }
        free(chunk);
    }
    free(gate->spare);
    free(gate->blocks);
    *gate = (struct ack_gate){0};
}

static struct gate_block *block_at(const struct ack_gate *gate, uint32_t index)
{
    return &gate->blocks[(gate->block_first + index) & (gate->block_capacity - 1)];
}

/* Deliveries come in the order of their blocks, so only the newest can be the one. */
static void note_block(struct ack_gate *gate, uint64_t block)
{
    uint64_t newest = gate->block_count ? block_at(gate, gate->block_count - 1)->block : 0;
    if (newest == block)
        return;
    CHECK(block > newest);
    if (gate->block_count == gate->block_capacity) {
        uint32_t capacity = gate->block_capacity ? gate->block_capacity * 2 : BLOCKS_FIRST;
        struct gate_block *grown = malloc(capacity * sizeof *grown);
        CHECK_MSG(grown, "out of memory for what the log has taken");
        for (uint32_t i = 0; i < gate->block_count; i++)
            grown[i] = *block_at(gate, i);
        free(gate->blocks);
        gate->blocks = grown;
        gate->block_first = 0;
        gate->block_capacity = capacity;
    }
    gate->block_count++;
    *block_at(gate, gate->block_count - 1) = (struct gate_block){.block = block};
}

void ack_gate_set_sequence(struct ack_gate *gate, uint64_t block, uint64_t first_sequence)
{
    CHECK(first_sequence > 0);
    if (gate->block_known == gate->block_count)
        return;
    struct gate_block *awaited = block_at(gate, gate->block_known);
    CHECK(awaited->block >= block);
    if (awaited->block != block)
        return;
    awaited->first_sequence = first_sequence;
    gate->block_known++;
}

/* The message's name in the checkpoint; entries of blocks whose deliveries have all left go. */
static void name_message(struct ack_gate *gate, const struct gate_item *item)
{
    while (block_at(gate, 0)->block < item->wait_block) {
        CHECK(gate->block_known > 1);
        gate->block_first++;
        gate->block_count--;
        gate->block_known--;
    }
    const struct gate_block *block = block_at(gate, 0);
    CHECK(gate->block_known > 0);
    CHECK(block->block == item->wait_block);
    CHECK(msg_sequence(item->msg) == 0); /* nobody else sets it */
    atomic_store_explicit(&item->msg->sequence, block->first_sequence + item->record_index, memory_order_relaxed);
}

static bool is_next_of_run(const struct gate_item *newest, const struct gate_item *item)
{
    return item->kind == GATE_ACK && item->packet_id == newest->packet_id + newest->more_count + 1 &&
           item->client.number == newest->client.number && item->client.connection == newest->client.connection &&
           item->wait_block == newest->wait_block && item->wait_retained == 0 && newest->wait_retained == 0 &&
           item->packet_type == newest->packet_type && item->reason == newest->reason && item->durability == newest->durability &&
           item->since_mono_ns == newest->since_mono_ns;
}

void ack_gate_put(struct ack_gate *gate, const struct gate_item *item, struct span extra, uint64_t block_filling)
{
    CHECK(item->wait_block <= block_filling);
    if (gate->newest_answer && is_next_of_run(gate->newest_answer, item)) {
        gate->newest_answer->more_count++;
        queue_stats_push(gate->stats, 0, item->since_mono_ns);
        return;
    }
    CHECK(item->extra_size == extra.size);
    CHECK((item->kind == GATE_DELIVERY) == (item->msg != NULL));
    size_t size = item_size(item);
    if (!gate->last || gate->last->capacity - gate->last->end < size) {
        struct gate_chunk *chunk = chunk_new(gate, size);
        if (gate->last)
            gate->last->next = chunk;
        else
            gate->first = chunk;
        gate->last = chunk;
    }
    uint8_t *at = gate->last->bytes + gate->last->end;
    memcpy(at, item, sizeof *item);
    if (item->kind == GATE_ACK)
        gate->newest_answer = (struct gate_item *)(void *)at;
    if (extra.size)
        memcpy(at + sizeof *item, extra.data, extra.size);
    gate->last->end += size;
    if (item->kind == GATE_DELIVERY && item->wait_block)
        note_block(gate, item->wait_block);
    gate->copies += item->copy_count;
    queue_stats_push(gate->stats, item_cost(item), item->since_mono_ns);
}

void ack_gate_set_durable(struct ack_gate *gate, uint64_t durable_blocks)
{
    CHECK(durable_blocks >= gate->durable_blocks);
    gate->durable_blocks = durable_blocks;
}

void ack_gate_set_retained(struct ack_gate *gate, uint64_t retained_answered)
{
    CHECK(retained_answered >= gate->retained_answered);
    gate->retained_answered = retained_answered;
}

static struct gate_item *first_item(const struct ack_gate *gate)
{
    struct gate_chunk *chunk = gate->first;
    return chunk && chunk->start < chunk->end ? (struct gate_item *)(void *)(chunk->bytes + chunk->start) : NULL;
}

/* The message behind this item has been out of the caches since it was put: begin to fetch it while this one is let out. */
static void fetch_next(const struct gate_chunk *chunk, size_t size)
{
    const struct gate_item *next = (const struct gate_item *)(const void *)(chunk->bytes + chunk->start + size);
    if (chunk->start + size == chunk->end || !next->msg)
        return;
    __builtin_prefetch(next->msg, 1);
    __builtin_prefetch((const uint8_t *)next->msg + 64);
    __builtin_prefetch((const uint8_t *)next->msg + 128);
}

bool ack_gate_release(struct ack_gate *gate, size_t budget, gate_release_fn release, void *arg)
{
    for (struct gate_item *item; (item = first_item(gate)) != NULL;) {
        if (!ack_gate_is_open(gate, item->wait_block, item->wait_retained))
            return false;
        if (budget == 0)
            return true;
        CHECK(item->wait_block <= gate->durable_blocks);
        struct gate_chunk *chunk = gate->first;
        uint64_t puts_before = gate->stats->messages;
        size_t cost = item_cost(item), size = item_size(item), count = 1u + item->more_count;
        fetch_next(chunk, size);
        if (item == gate->newest_answer)
            gate->newest_answer = NULL; /* what is put from here on stands behind it */
        if (item->kind == GATE_DELIVERY && item->wait_block)
            name_message(gate, item);
        uint32_t copies = item->copy_count;
        release(arg, item, span_of(item + 1, item->extra_size));
        CHECK(gate->stats->messages >= puts_before); /* what left may have put something, behind all */
        chunk->start += size;
        gate->copies -= copies;
        if (chunk->start == chunk->end) {
            gate->first = chunk->next;
            if (!gate->first)
                gate->last = NULL;
            chunk_free(gate, chunk);
        }
        const struct gate_item *next = first_item(gate);
        queue_stats_set(gate->stats, gate->stats->messages - count, gate->stats->bytes - cost, next ? next->since_mono_ns : 0);
        budget -= count < budget ? count : budget;
    }
    return false;
}
