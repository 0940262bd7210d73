/* Deferred reclamation over ck_epoch; see epoch.h.
 *
 * ck_epoch gives each deferred object an entry of its own (16 bytes, in the object). Here one entry stands for a batch of plain pointers:
 * the open batch collects them, and is handed to ck when it is full or at the next poll. A batch that waits a little longer than its first
 * pointer had to is harmless; reclamation is never early. */
#include "common/epoch.h"

#include <ck_epoch.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "common/check.h"

#if defined(__SANITIZE_THREAD__)
#define EPOCH_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define EPOCH_TSAN 1
#endif
#endif

#ifdef EPOCH_TSAN
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define EPOCH_RELEASE(address) __tsan_release(address)
#define EPOCH_ACQUIRE(address) __tsan_acquire(address)
#else
#define EPOCH_RELEASE(address) ((void)(address))
#define EPOCH_ACQUIRE(address) ((void)(address))
#endif

struct epoch_batch {
    ck_epoch_entry_t entry; /* first: ck gives it back to the callback */
    struct epoch *epoch;
    size_t count;
    void *blocks[EPOCH_BATCH];
};
_Static_assert(sizeof(struct epoch_batch) == 1024, "a batch fills its size class");

struct epoch_reader {
    ck_epoch_record_t record; /* first: ck_epoch_recycle gives records back */
    struct epoch *epoch;
    struct epoch_reader *next; /* all readers ever made, for epoch_free */
};

struct epoch {
    ck_epoch_t ck;
    struct epoch_reader *writer;            /* the writer's own record: never in a section, carries what is deferred */
    _Atomic(struct epoch_reader *) readers; /* stack, pushed by any thread, popped by epoch_free only */
    struct epoch_batch *open;               /* may be NULL */
    struct epoch_batch *spare;              /* one freed batch, kept for the next */
    size_t deferred;                        /* blocks in the open batch and with ck */
};

struct epoch *epoch_new(void)
{
    struct epoch *epoch = calloc(1, sizeof *epoch);
    if (epoch == NULL)
        return NULL;
    ck_epoch_init(&epoch->ck);
    epoch->writer = epoch_reader_register(epoch);
    if (epoch->writer == NULL) {
        free(epoch);
        return NULL;
    }
    return epoch;
}

/* Called by ck when no reader can see the batch's blocks any more. Thread: writer. */
static void epoch_free_batch(ck_epoch_entry_t *entry)
{
    struct epoch_batch *batch = (struct epoch_batch *)entry;
    struct epoch *epoch = batch->epoch;
    EPOCH_ACQUIRE(epoch);
    for (size_t i = 0; i < batch->count; i++)
        free(batch->blocks[i]);
    epoch->deferred -= batch->count;
    if (epoch->spare == NULL)
        epoch->spare = batch;
    else
        free(batch);
}

static void epoch_close_batch(struct epoch *epoch)
{
    struct epoch_batch *batch = epoch->open;
    if (batch == NULL || batch->count == 0)
        return;
    epoch->open = NULL;
    ck_epoch_call(&epoch->writer->record, &batch->entry, epoch_free_batch);
}

void epoch_free(struct epoch *epoch)
{
    if (epoch == NULL)
        return;
    for (struct epoch_reader *reader = atomic_load(&epoch->readers); reader != NULL; reader = reader->next)
        CHECK(!epoch_is_active(reader));
    epoch_close_batch(epoch);
    ck_epoch_reclaim(&epoch->writer->record);
    CHECK(epoch->deferred == 0);
    free(epoch->open);
    free(epoch->spare);
    for (struct epoch_reader *reader = atomic_load(&epoch->readers), *next; reader != NULL; reader = next) {
        next = reader->next;
        free(reader);
    }
    free(epoch);
}

struct epoch_reader *epoch_reader_register(struct epoch *epoch)
{
    struct epoch_reader *reader = (struct epoch_reader *)(void *)ck_epoch_recycle(&epoch->ck, NULL);
    if (reader != NULL)
        return reader;
    size_t size = (sizeof *reader + CK_MD_CACHELINE - 1) / CK_MD_CACHELINE * CK_MD_CACHELINE;
    reader = aligned_alloc(CK_MD_CACHELINE, size);
    if (reader == NULL)
        return NULL;
    reader->epoch = epoch;
    ck_epoch_register(&epoch->ck, &reader->record, NULL);
    reader->next = atomic_load_explicit(&epoch->readers, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&epoch->readers, &reader->next, reader, memory_order_acq_rel, memory_order_relaxed)) {
    }
    return reader;
}

void epoch_reader_unregister(struct epoch_reader *reader)
{
    if (reader == NULL)
        return;
    CHECK(!epoch_is_active(reader));
    ck_epoch_unregister(&reader->record);
}

void epoch_begin(struct epoch_reader *reader) { ck_epoch_begin(&reader->record, NULL); }

void epoch_end(struct epoch_reader *reader)
{
    DCHECK(epoch_is_active(reader));
    EPOCH_RELEASE(reader->epoch);
    ck_epoch_end(&reader->record, NULL);
}

bool epoch_is_active(const struct epoch_reader *reader) { return reader->record.active > 0; }

void epoch_defer_free(struct epoch *epoch, void *block)
{
    if (block == NULL)
        return;
    if (epoch->open == NULL) {
        epoch->open = epoch->spare != NULL ? epoch->spare : malloc(sizeof *epoch->open);
        epoch->spare = NULL;
        if (epoch->open == NULL) {
            ck_epoch_synchronize(&epoch->writer->record);
            EPOCH_ACQUIRE(epoch);
            free(block);
            return;
        }
        epoch->open->epoch = epoch;
        epoch->open->count = 0;
    }
    epoch->open->blocks[epoch->open->count++] = block;
    epoch->deferred++;
    if (epoch->open->count == EPOCH_BATCH)
        epoch_close_batch(epoch);
}

bool epoch_poll(struct epoch *epoch)
{
    if (epoch->deferred == 0)
        return false;
    epoch_close_batch(epoch);
    (void)ck_epoch_poll(&epoch->writer->record);
    return epoch->deferred > 0;
}

size_t epoch_deferred_count(const struct epoch *epoch) { return epoch->deferred; }
