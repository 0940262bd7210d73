#include "broker/core/publish_scratch.h"

#include <stdlib.h>

uint8_t *publish_bytes_reserve(struct publish_bytes *bytes, size_t size)
{
    if (bytes->capacity - bytes->size < size) {
        size_t capacity = bytes->capacity ? bytes->capacity : 1024;
        while (capacity - bytes->size < size)
            capacity *= 2;
        uint8_t *grown = realloc(bytes->data, capacity);
        if (!grown)
            return NULL;
        bytes->data = grown;
        bytes->capacity = capacity;
    }
    return bytes->data + bytes->size;
}

void publish_scratch_init(struct publish_scratch *scratch)
{
    *scratch = (struct publish_scratch){0};
    match_list_init(&scratch->list);
}

void publish_scratch_deinit(struct publish_scratch *scratch)
{
    match_list_deinit(&scratch->list);
    free(scratch->cells);
    free(scratch->next_same);
    free(scratch->now.data);
    free(scratch->held.data);
    free(scratch->record_recipients.data);
    free(scratch->properties.data);
    *scratch = (struct publish_scratch){0};
}
