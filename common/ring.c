/* Set-up of rings; the essay and the hot paths are in ring.h. */
#include "common/ring.h"

#include <stdlib.h>

#include "common/check.h"

enum err ring_init(struct ring *ring, size_t capacity, size_t op_size)
{
    CHECK(capacity >= 2);
    CHECK(capacity <= (size_t)1 << 30);
    CHECK((capacity & (capacity - 1)) == 0);
    CHECK(op_size > 0);
    CHECK(op_size <= SIZE_MAX / capacity);
    ring->slots = calloc(capacity, op_size);
    if (ring->slots == NULL)
        return ERR_NOMEM;
    atomic_init(&ring->tail, 0);
    atomic_init(&ring->head, 0);
    ring->head_seen = 0;
    ring->tail_seen = 0;
    ring->mask = capacity - 1;
    ring->op_size = op_size;
    return ERR_OK;
}

void ring_deinit(struct ring *ring)
{
    free(ring->slots);
    ring->slots = NULL;
}
