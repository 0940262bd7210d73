#include "broker/core/refused_values.h"

#include <stdlib.h>
#include <string.h>

#include "common/check.h"

void refused_values_deinit(struct refused_values *refused)
{
    free(refused->values);
    *refused = (struct refused_values){0};
}

void refused_values_add(struct refused_values *refused, const struct refused_value *value)
{
    CHECK(refused->first == refused->end || refused->values[refused->end - 1].ticket < value->ticket);
    if (refused->end == refused->capacity && refused->first > refused->capacity / 2) {
        memmove(refused->values, refused->values + refused->first, (refused->end - refused->first) * sizeof *refused->values);
        refused->end -= refused->first;
        refused->first = 0;
    }
    if (refused->end == refused->capacity) {
        refused->capacity = refused->capacity ? refused->capacity * 2 : 16;
        refused->values = realloc(refused->values, refused->capacity * sizeof *refused->values);
        CHECK_MSG(refused->values, "out of memory for retained values that were refused");
    }
    refused->values[refused->end++] = *value;
}

/* Mostly the newest is meant. */
void refused_values_on_logged(struct refused_values *refused, uint64_t number, uint64_t block)
{
    for (uint32_t at = refused->end; at > refused->first; at--) {
        if (refused->values[at - 1].number != number)
            continue;
        refused->values[at - 1].wait_block = block;
        return;
    }
}

/* Index of the first value whose ticket is not below. */
static uint32_t find(const struct refused_values *refused, uint64_t ticket)
{
    uint32_t low = refused->first, high = refused->end;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (refused->values[middle].ticket < ticket)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct refused_value *get(const struct refused_values *refused, uint64_t ticket)
{
    uint32_t at = find(refused, ticket);
    return at < refused->end && refused->values[at].ticket == ticket ? &refused->values[at] : NULL;
}

void refused_values_on_answered(struct refused_values *refused, uint64_t ticket, int64_t now_mono_ns)
{
    struct refused_value *value = get(refused, ticket);
    if (value)
        value->last_put_ns = now_mono_ns;
}

bool refused_values_has(const struct refused_values *refused, uint64_t ticket) { return get(refused, ticket) != NULL; }

const struct refused_value *refused_values_reach(struct refused_values *refused, uint64_t ticket, int64_t put_ns)
{
    while (refused->first < refused->end && refused->values[refused->first].last_put_ns < put_ns)
        refused->first++;
    if (refused->first == refused->end)
        refused->first = refused->end = 0;
    return get(refused, ticket);
}
