#include "common/shared_buf.h"

#include <stdlib.h>
#include <string.h>

#include "common/check.h"

struct shared_buf *shared_buf_new(size_t size)
{
    if (size > SHARED_BUF_SIZE_MAX)
        return NULL;
    struct shared_buf *shared = malloc(sizeof *shared + size);
    if (!shared)
        return NULL;
    shared->ref_count = 1;
    shared->size = (uint32_t)size;
    return shared;
}

struct shared_buf *shared_buf_new_copy(struct span bytes)
{
    struct shared_buf *shared = shared_buf_new(bytes.size);
    if (shared && bytes.size > 0)
        memcpy(shared->data, bytes.data, bytes.size);
    return shared;
}

struct shared_buf *shared_buf_ref(struct shared_buf *shared)
{
    shared_buf_ref_many(shared, 1);
    return shared;
}

/* Relaxed is enough: whoever adds a reference holds one, which it got by a synchronised hand-over. */
void shared_buf_ref_many(struct shared_buf *shared, uint32_t count)
{
    uint32_t before = __atomic_fetch_add(&shared->ref_count, count, __ATOMIC_RELAXED);
    CHECK(before > 0);
    CHECK(before + count >= before);
}

/* Release, so that each holder's reads come before the free; acquire for the one that frees. One acq_rel operation instead of a fence,
 * which ThreadSanitizer does not understand. */
void shared_buf_unref(struct shared_buf *shared)
{
    if (!shared)
        return;
    uint32_t before = __atomic_fetch_sub(&shared->ref_count, 1, __ATOMIC_ACQ_REL);
    CHECK(before > 0);
    if (before == 1)
        free(shared);
}

uint32_t shared_buf_ref_count(const struct shared_buf *shared) { return __atomic_load_n(&shared->ref_count, __ATOMIC_ACQUIRE); }
