#include "broker/session/inbound_ids.h"

#include <stdlib.h>

#include "common/check.h"

#define CAPACITY_FIRST 8u

static uint32_t home_of(const struct inbound_ids *ids, uint16_t packet_id)
{
    return ((uint32_t)packet_id * 2654435769u >> 8) & (ids->capacity - 1);
}

void inbound_ids_deinit(struct inbound_ids *ids)
{
    free(ids->cells);
    *ids = (struct inbound_ids){0};
}

struct inbound_id *inbound_ids_find(const struct inbound_ids *ids, uint16_t packet_id)
{
    CHECK(packet_id != 0);
    if (ids->count == 0)
        return NULL;
    for (uint32_t at = home_of(ids, packet_id);; at = (at + 1) & (ids->capacity - 1)) {
        if (ids->cells[at].packet_id == packet_id)
            return &ids->cells[at];
        if (ids->cells[at].packet_id == 0)
            return NULL;
    }
}

static void put(struct inbound_ids *ids, struct inbound_id id)
{
    uint32_t at = home_of(ids, id.packet_id);
    while (ids->cells[at].packet_id != 0)
        at = (at + 1) & (ids->capacity - 1);
    ids->cells[at] = id;
}

static enum err grow(struct inbound_ids *ids)
{
    struct inbound_ids larger = {.capacity = ids->capacity ? ids->capacity * 2 : CAPACITY_FIRST, .count = ids->count};
    larger.cells = calloc(larger.capacity, sizeof *larger.cells);
    if (!larger.cells)
        return ERR_NOMEM;
    for (uint32_t i = 0; i < ids->capacity; i++)
        if (ids->cells[i].packet_id != 0)
            put(&larger, ids->cells[i]);
    free(ids->cells);
    *ids = larger;
    return ERR_OK;
}

enum err inbound_ids_add(struct inbound_ids *ids, uint16_t packet_id, uint64_t wait_block)
{
    DCHECK(inbound_ids_find(ids, packet_id) == NULL);
    if ((ids->count + 1) * 4 > ids->capacity * 3) {
        enum err err = grow(ids);
        if (err)
            return err;
    }
    put(ids, (struct inbound_id){.wait_block = wait_block, .packet_id = packet_id, .is_counted = true});
    ids->count++;
    return ERR_OK;
}

void inbound_ids_remove(struct inbound_ids *ids, uint16_t packet_id)
{
    struct inbound_id *found = inbound_ids_find(ids, packet_id);
    if (!found)
        return;
    if (--ids->count == 0) {
        inbound_ids_deinit(ids);
        return;
    }
    /* Backward shift: what probed over the hole moves into it, so that no search ends early. */
    uint32_t mask = ids->capacity - 1, hole = (uint32_t)(found - ids->cells);
    for (uint32_t at = (hole + 1) & mask; ids->cells[at].packet_id != 0; at = (at + 1) & mask) {
        uint32_t distance_home = (at - home_of(ids, ids->cells[at].packet_id)) & mask;
        if (distance_home >= ((at - hole) & mask)) {
            ids->cells[hole] = ids->cells[at];
            hole = at;
        }
    }
    ids->cells[hole] = (struct inbound_id){0};
}

void inbound_ids_uncount(struct inbound_ids *ids)
{
    for (uint32_t i = 0; i < ids->capacity; i++)
        ids->cells[i].is_counted = false;
}
