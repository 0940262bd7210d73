/* The writer's side of the set: growing, splitting, deleting. Why readers may look on at any moment is said in set.h. */
#include "common/set.h"

#include <stdlib.h>

#include "common/check.h"
#include "common/epoch.h"

#define SET_SLICE_SLOTS_MIN 8u
/* A directory has at most one place for so many entries; where hashes collide more than that, slices grow beyond their usual largest size
 * instead of doubling the directory without end. (Well spread hashes come to 70 entries a place or more.) */
#define SET_ENTRIES_PER_PLACE_MIN 16u
#define SET_DIRECTORY_DEPTH_MAX 28u

static size_t set_slice_size(uint32_t slots) { return sizeof(struct set_slice) + (size_t)slots * sizeof(uint64_t); }
static size_t set_directory_size(uint32_t depth)
{
    return sizeof(struct set_directory) + ((size_t)1 << depth) * sizeof(struct set_slice *);
}

/* Slots for `count` entries with room to grow: load at most a half. */
static uint32_t set_slots_wanted(uint32_t count)
{
    uint32_t slots = SET_SLICE_SLOTS_MIN;
    while (slots / 2 < count)
        slots *= 2;
    return slots;
}

static struct set_slice *set_slice_new(uint32_t depth, uint32_t slots)
{
    struct set_slice *slice = calloc(1, set_slice_size(slots));
    if (slice == NULL)
        return NULL;
    slice->depth = depth;
    slice->mask = slots - 1;
    return slice;
}

static void set_retire(struct set *set, void *block, size_t size)
{
    set->bytes -= size;
    if (set->epoch != NULL)
        epoch_defer_free(set->epoch, block);
    else
        free(block);
}

static void set_retire_slice(struct set *set, struct set_slice *slice) { set_retire(set, slice, set_slice_size(slice->mask + 1)); }

static struct set_directory *set_directory_of(const struct set *set)
{
    return atomic_load_explicit(&((struct set *)(uintptr_t)set)->directory, memory_order_relaxed);
}

static size_t set_index(const struct set_directory *directory, uint64_t hash)
{
    return directory->depth == 0 ? 0 : (size_t)(hash >> (64 - directory->depth));
}

static struct set_slice *set_slice_at(struct set_directory *directory, size_t index)
{
    return atomic_load_explicit(&directory->slices[index], memory_order_relaxed);
}

static uint64_t set_slot_at(struct set_slice *slice, uint32_t index)
{
    return atomic_load_explicit(&slice->slots[index], memory_order_relaxed);
}

static struct set_entry *set_slot_entry(uint64_t slot)
{
    return slot <= SET_DELETED ? NULL : (struct set_entry *)(uintptr_t)(slot & SET_POINTER_MASK);
}

/* A directory of one empty slice. */
static struct set_directory *set_directory_new(size_t *bytes_out)
{
    struct set_directory *directory = calloc(1, set_directory_size(0));
    struct set_slice *slice = set_slice_new(0, SET_SLICE_SLOTS_MIN);
    if (directory == NULL || slice == NULL) {
        free(directory);
        free(slice);
        return NULL;
    }
    atomic_init(&directory->slices[0], slice);
    *bytes_out = set_directory_size(0) + set_slice_size(SET_SLICE_SLOTS_MIN);
    return directory;
}

enum err set_init(struct set *set, struct epoch *epoch)
{
    size_t bytes = 0;
    struct set_directory *directory = set_directory_new(&bytes);
    if (directory == NULL)
        return ERR_NOMEM;
    atomic_init(&set->directory, directory);
    set->epoch = epoch;
    set->count = 0;
    set->bytes = bytes;
    return ERR_OK;
}

/* Call visit for each slice once: those that share fewer bits than the directory has stand in it several times, side by side. */
static void set_each_slice(struct set *set, void (*visit)(struct set *set, struct set_slice *slice))
{
    struct set_directory *directory = set_directory_of(set);
    for (size_t i = 0; i < (size_t)1 << directory->depth;) {
        struct set_slice *slice = set_slice_at(directory, i);
        i += (size_t)1 << (directory->depth - slice->depth);
        visit(set, slice);
    }
}

void set_deinit(struct set *set)
{
    set->epoch = NULL; /* from here on free at once */
    set_each_slice(set, set_retire_slice);
    free(set_directory_of(set));
    atomic_store_explicit(&set->directory, NULL, memory_order_relaxed);
    set->count = 0;
    set->bytes = 0;
}

static void set_slice_insert(struct set_slice *slice, struct set_entry *entry)
{
    uint64_t pointer = (uint64_t)(uintptr_t)entry;
    CHECK((pointer & ~SET_POINTER_MASK) == 0);
    CHECK(pointer > SET_DELETED);
    uint32_t i = (uint32_t)entry->hash & slice->mask;
    while (set_slot_at(slice, i) > SET_DELETED)
        i = (i + 1) & slice->mask;
    if (set_slot_at(slice, i) == 0)
        slice->used++;
    slice->count++;
    atomic_store_explicit(&slice->slots[i], set_tag(entry->hash) | pointer, memory_order_release);
}

/* Publish `slice` in all places of the directory that its hash bits cover; `hash` is of any entry of it. */
static void set_publish(struct set_directory *directory, struct set_slice *slice, uint64_t hash)
{
    size_t span = (size_t)1 << (directory->depth - slice->depth);
    size_t first = set_index(directory, hash) & ~(span - 1);
    for (size_t i = 0; i < span; i++)
        atomic_store_explicit(&directory->slices[first + i], slice, memory_order_release);
}

/* Replace a slice by one with `slots` slots and no deletion marks. */
static enum err set_rebuild(struct set *set, struct set_slice *old, uint64_t hash, uint32_t slots)
{
    struct set_slice *slice = set_slice_new(old->depth, slots);
    if (slice == NULL)
        return ERR_NOMEM;
    for (uint32_t i = 0; i <= old->mask; i++) {
        struct set_entry *entry = set_slot_entry(set_slot_at(old, i));
        if (entry != NULL)
            set_slice_insert(slice, entry);
    }
    set->bytes += set_slice_size(slots);
    set_publish(set_directory_of(set), slice, hash);
    /* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): the directory has the new slice */
    set_retire_slice(set, old);
    return ERR_OK;
}

static enum err set_double_directory(struct set *set)
{
    struct set_directory *old = set_directory_of(set);
    struct set_directory *directory = malloc(set_directory_size(old->depth + 1));
    if (directory == NULL)
        return ERR_NOMEM;
    directory->depth = old->depth + 1;
    for (size_t i = 0; i < (size_t)1 << directory->depth; i++)
        atomic_init(&directory->slices[i], set_slice_at(old, i / 2));
    set->bytes += set_directory_size(directory->depth);
    atomic_store_explicit(&set->directory, directory, memory_order_release);
    set_retire(set, old, set_directory_size(old->depth));
    return ERR_OK;
}

/* Replace a slice by two that share one more bit each. */
static enum err set_split(struct set *set, struct set_slice *old, uint64_t hash)
{
    if (old->depth == set_directory_of(set)->depth && set_double_directory(set) != ERR_OK)
        return ERR_NOMEM;
    uint64_t bit = UINT64_C(1) << (63 - old->depth);
    uint32_t counts[2] = {0, 0};
    for (uint32_t i = 0; i <= old->mask; i++) {
        struct set_entry *entry = set_slot_entry(set_slot_at(old, i));
        if (entry != NULL)
            counts[(entry->hash & bit) != 0]++;
    }
    struct set_slice *halves[2];
    for (int half = 0; half < 2; half++)
        halves[half] = set_slice_new(old->depth + 1, set_slots_wanted(counts[half] + 1));
    if (halves[0] == NULL || halves[1] == NULL) {
        free(halves[0]);
        free(halves[1]);
        return ERR_NOMEM;
    }
    for (uint32_t i = 0; i <= old->mask; i++) {
        struct set_entry *entry = set_slot_entry(set_slot_at(old, i));
        if (entry != NULL)
            set_slice_insert(halves[(entry->hash & bit) != 0], entry);
    }
    for (int half = 0; half < 2; half++) {
        set->bytes += set_slice_size(halves[half]->mask + 1);
        set_publish(set_directory_of(set), halves[half], half == 0 ? hash & ~bit : hash | bit);
    }
    set_retire_slice(set, old);
    return ERR_OK;
}

static bool set_may_split(const struct set *set, const struct set_slice *slice)
{
    uint32_t depth = set_directory_of(set)->depth;
    if (slice->depth < depth)
        return true;
    return depth < SET_DIRECTORY_DEPTH_MAX && set->count >> depth >= SET_ENTRIES_PER_PLACE_MIN;
}

enum err set_put(struct set *set, struct set_entry *entry)
{
    for (;;) {
        struct set_directory *directory = set_directory_of(set);
        struct set_slice *slice = set_slice_at(directory, set_index(directory, entry->hash));
        uint32_t slots = slice->mask + 1;
        if (slice->used + 1 <= slots / 4 * 3) {
            set_slice_insert(slice, entry);
            set->count++;
            return ERR_OK;
        }
        uint32_t wanted = set_slots_wanted(slice->count + 1);
        bool in_place = wanted <= SET_SLICE_SLOTS_MAX || !set_may_split(set, slice);
        enum err err = in_place ? set_rebuild(set, slice, entry->hash, wanted) : set_split(set, slice, entry->hash);
        if (err != ERR_OK)
            return err;
    }
}

/* The set is empty: back to one small slice, unless memory is short even for that. */
static void set_reset(struct set *set)
{
    struct set_directory *old = set_directory_of(set);
    size_t bytes = 0;
    struct set_directory *directory = set_directory_new(&bytes);
    if (directory == NULL)
        return;
    set_each_slice(set, set_retire_slice);
    set->bytes += bytes;
    atomic_store_explicit(&set->directory, directory, memory_order_release);
    set_retire(set, old, set_directory_size(old->depth));
}

void set_remove(struct set *set, struct set_entry *entry)
{
    struct set_directory *directory = set_directory_of(set);
    struct set_slice *slice = set_slice_at(directory, set_index(directory, entry->hash));
    uint64_t word = set_tag(entry->hash) | (uint64_t)(uintptr_t)entry;
    uint32_t i = (uint32_t)entry->hash & slice->mask;
    while (set_slot_at(slice, i) != word) {
        CHECK(set_slot_at(slice, i) != 0);
        i = (i + 1) & slice->mask;
    }
    atomic_store_explicit(&slice->slots[i], SET_DELETED, memory_order_release);
    slice->count--;
    set->count--;
    /* Marks in front of an empty slot are of no use to any probe. */
    if (set_slot_at(slice, (i + 1) & slice->mask) == 0) {
        for (; set_slot_at(slice, i) == SET_DELETED; i = (i - 1) & slice->mask) {
            atomic_store_explicit(&slice->slots[i], 0, memory_order_release);
            slice->used--;
        }
    }
    if (set->count == 0 && directory->depth > 0)
        set_reset(set);
    else if (slice->mask + 1 > SET_SLICE_SLOTS_MIN && slice->count < (slice->mask + 1) / 8)
        (void)set_rebuild(set, slice, entry->hash, set_slots_wanted(slice->count + 1)); /* short of memory: stay large */
}

void set_each(struct set *set, void (*visit)(struct set_entry *entry, void *arg), void *arg)
{
    struct set_directory *directory = set_directory_of(set);
    for (size_t i = 0; i < (size_t)1 << directory->depth;) {
        struct set_slice *slice = set_slice_at(directory, i);
        i += (size_t)1 << (directory->depth - slice->depth);
        for (uint32_t j = 0; j <= slice->mask; j++) {
            struct set_entry *entry = set_slot_entry(set_slot_at(slice, j));
            if (entry != NULL)
                visit(entry, arg);
        }
    }
}
