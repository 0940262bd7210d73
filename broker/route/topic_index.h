/* Topics in order, so that those below a prefix are neighbours: by bytes, but '/' is below all others.
 *
 * So everything below "a/b" ("a/b/...") follows "a/b" at once, before "a/b!" or "a/b0", and the first key that is not of that subtree is
 * the lower bound of "a/b" followed by the second lowest byte, which is 0. (No MQTT topic contains a 0 byte, but nothing here depends on
 * it.)
 *
 * Entries are the caller's: the index holds pointers, in blocks of up to 128 under one array of blocks. A topic is found by two binary
 * searches, and an insertion moves at most one block's pointers (and, once in some sixty insertions, the array behind a new block: 8 bytes
 * for every ninety topics).
 *
 * Rejected: a trie with iterators (every removal would have to find and repair the iterators that stand on it); a snapshot per scan.
 *
 * Pure; one thread. */
#ifndef TIDEGATE_BROKER_ROUTE_TOPIC_INDEX_H
#define TIDEGATE_BROKER_ROUTE_TOPIC_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"

struct topic_block;

/* The topic of an entry; it never changes while the entry is here. */
typedef struct span (*topic_index_topic_fn)(const void *entry);

struct topic_index {
    struct topic_block **blocks;
    size_t block_count, block_capacity;
    topic_index_topic_fn topic_of;
};

/* Where an entry is, or, behind all of them, nothing. A change makes it approximate; topic_index_at() takes it all the same. */
struct topic_place {
    size_t block;
    uint32_t entry;
};

/* < 0, 0, > 0: the order. */
int topic_index_compare(struct span a, struct span b);

void topic_index_init(struct topic_index *index, topic_index_topic_fn topic_of);
void topic_index_deinit(struct topic_index *index); /* entries are not touched */

/* Its topic must not be there. False: memory is short. */
bool topic_index_insert(struct topic_index *index, void *entry);
/* It must be there. */
void topic_index_remove(struct topic_index *index, const void *entry);

/* The first place whose topic is not below `key`. */
struct topic_place topic_index_seek(const struct topic_index *index, struct span key);
struct topic_place topic_index_next(const struct topic_index *index, struct topic_place at);
/* NULL: it is behind the last. */
void *topic_index_at(const struct topic_index *index, struct topic_place at);

/* What it allocated. */
size_t topic_index_bytes(const struct topic_index *index);

#endif
