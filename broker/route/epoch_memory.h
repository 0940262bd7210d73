/* Memory of a structure that one thread changes and others read meanwhile: counted, and freed when no reader can be looking at it. Owned by
 * the writer. */
#ifndef TIDEGATE_BROKER_ROUTE_EPOCH_MEMORY_H
#define TIDEGATE_BROKER_ROUTE_EPOCH_MEMORY_H

#include <stddef.h>
#include <stdlib.h>

#include "common/epoch.h"

struct epoch_memory {
    struct epoch *epoch;
    size_t bytes; /* allocated and not retired */
};

/* NULL when memory is short. */
static inline void *epoch_memory_alloc(struct epoch_memory *memory, size_t size)
{
    void *block = malloc(size);
    if (block != NULL)
        memory->bytes += size;
    return block;
}

/* Free what was never published. NULL is fine. */
static inline void epoch_memory_discard(struct epoch_memory *memory, void *block, size_t size)
{
    if (block != NULL)
        memory->bytes -= size;
    free(block);
}

static inline void epoch_memory_retire(struct epoch_memory *memory, void *block, size_t size)
{
    memory->bytes -= size;
    epoch_defer_free(memory->epoch, block);
}

#endif
