/* A set of entries that carry their own hash: one writer, any number of concurrent readers, growing in slices.
 *
 * Extendible hashing: the top bits of an entry's hash pick a slice out of a directory; a slice is an open-addressed table of 8 to
 * SET_SLICE_SLOTS_MAX words. A full slice is doubled, and one of the largest size is split in two, so the most that an insertion ever
 * moves is one slice (some ten microseconds), however large the set; the directory, 8 bytes a slice, doubles now and then. A slot is one
 * word: pointer in the low 48 bits, 16 bits of the hash above, so a probe that misses touches the slice only.
 *
 * Readers never wait or retry. What they rely on:
 *   1. A slot is published with release and read with acquire; an entry does not change while it is in the set, except through its own
 *      atomic members.
 *   2. An entry is stored at the first reusable slot of its probe sequence and never moves inside a slice. A deleted slot is marked, and
 *      becomes empty only when the slot behind it is empty, so a probe that stops at an empty slot has missed nothing that was in the
 *      set during the whole lookup.
 *   3. Growing or splitting builds new slices, publishes them in the directory, and retires the old one: a reader in the old one sees
 *      the set as it was when its section began or later.
 *   4. Memory that readers may be looking at goes through `epoch`; without one (epoch NULL: the set is used by one thread) it is freed
 *      at once. Entries belong to the caller, who retires them in the same way after set_remove().
 *
 * Rejected: ck_hs, which grows in one step (half a second for a million entries, on the thread that answers SUBACK), lets readers retry
 * meanwhile, and is opaque to ThreadSanitizer. Memory: about 15 bytes an entry beside the entry (load between 3/8 and 3/4). Slices of a set
 * that shrinks shrink with it; the directory goes back when the set is empty.
 *
 * Hashes must be well spread in all 64 bits and keyed per process where a peer chooses the key. */
#ifndef TIDEGATE_COMMON_SET_H
#define TIDEGATE_COMMON_SET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct epoch;

/* First member (or any) of the caller's entry; allocated with malloc alignment. */
struct set_entry {
    uint64_t hash; /* set before set_put, constant while in the set */
};

#define SET_SLICE_SLOTS_MAX 512

struct set_slice {
    uint32_t depth;            /* how many top bits of the hash all its entries share */
    uint32_t mask;             /* slots - 1 */
    uint32_t count;            /* entries; writer only */
    uint32_t used;             /* entries and deletion marks; writer only */
    _Atomic(uint64_t) slots[]; /* 0 empty, 1 deleted, else tag << 48 | pointer */
};

struct set_directory {
    uint32_t depth; /* slices[hash >> (64 - depth)] */
    _Atomic(struct set_slice *) slices[];
};

struct set {
    _Atomic(struct set_directory *) directory;
    struct epoch *epoch; /* borrowed; NULL = one thread only */
    size_t count;        /* writer only */
    size_t bytes;        /* of directory and slices, without what is deferred; writer only */
};

/* Returns 0 or ERR_NOMEM. */
enum err set_init(struct set *set, struct epoch *epoch) must_check;
/* Frees the tables at once, not the entries. Thread: writer, no readers left. */
void set_deinit(struct set *set);

/* Add an entry whose key is not in the set (find it first). Returns 0 or ERR_NOMEM (nothing changed). Thread: writer. */
enum err set_put(struct set *set, struct set_entry *entry) must_check;
/* Take out an entry that is in the set; the caller retires its memory. Never fails. Thread: writer. */
void set_remove(struct set *set, struct set_entry *entry);

/* Call visit for every entry, in no order; the set must not change meanwhile. Thread: writer. */
void set_each(struct set *set, void (*visit)(struct set_entry *entry, void *arg), void *arg);

#define SET_POINTER_MASK ((UINT64_C(1) << 48) - 1)
#define SET_DELETED UINT64_C(1)

static inline uint64_t set_tag(uint64_t hash) { return (hash << 16) & ~SET_POINTER_MASK; }

/* The entry with this hash for which equal(entry, key) holds, or NULL. Inlined, so that `equal` is no indirect call.
 * Thread: any, inside a section of the set's epoch; the writer needs none. */
__attribute__((always_inline)) static inline struct set_entry *
set_find(const struct set *set, uint64_t hash, bool (*equal)(const struct set_entry *entry, const void *key), const void *key)
{
    struct set *shared = (struct set *)(uintptr_t)set;
    struct set_directory *directory = atomic_load_explicit(&shared->directory, memory_order_acquire);
    size_t index = directory->depth == 0 ? 0 : (size_t)(hash >> (64 - directory->depth));
    struct set_slice *slice = atomic_load_explicit(&directory->slices[index], memory_order_acquire);
    uint64_t tag = set_tag(hash);
    for (uint32_t i = (uint32_t)hash & slice->mask;; i = (i + 1) & slice->mask) {
        uint64_t slot = atomic_load_explicit(&slice->slots[i], memory_order_acquire);
        if (slot == 0)
            return NULL;
        if (((slot ^ tag) & ~SET_POINTER_MASK) != 0 || slot == SET_DELETED)
            continue;
        struct set_entry *entry = (struct set_entry *)(uintptr_t)(slot & SET_POINTER_MASK);
        if (entry->hash == hash && equal(entry, key))
            return entry;
    }
}

#endif
