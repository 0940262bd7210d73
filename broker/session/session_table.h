/* All sessions of a shard: by client id, and by (slot, generation).
 *
 * By client id: a hash table that grows and shrinks by one bucket at a time (linear hashing), so that no insertion stalls a loop, with the
 * links in the sessions. By slot: an array of pointers in pages that never move; a slot that is used again has a new generation, so that
 * whoever holds the old one finds nothing. Memory beside a session: about 24 bytes. Pure; owner: the shard. */
#ifndef TIDEGATE_BROKER_SESSION_SESSION_TABLE_H
#define TIDEGATE_BROKER_SESSION_SESSION_TABLE_H

#include "broker/session/session.h"

#define SESSION_TABLE_PAGE 1024 /* slots or buckets of a page, power of two */

struct session_slot {
    struct session *sess; /* NULL = free */
    uint32_t generation;  /* of the present or the last one; 0 = never used */
    uint32_t next_free;
};

struct session_table {
    uint64_t hash_key;
    struct session ***buckets; /* pages */
    uint32_t bucket_page_count;
    uint32_t bucket_count;       /* in use: level + split */
    uint32_t level;              /* power of two */
    uint32_t split;              /* buckets below this one are split already */
    struct session_slot **slots; /* pages */
    uint32_t slot_page_count, slot_page_capacity;
    uint32_t slot_count; /* ever used */
    uint32_t first_free; /* list; UINT32_MAX = none */
    uint32_t count;      /* sessions */
};

enum err session_table_init(struct session_table *table, uint64_t hash_key) must_check;
/* Frees the sessions that are still in. */
void session_table_deinit(struct session_table *table);

/* NULL when there is none. */
struct session *session_table_find(const struct session_table *table, struct span client_id);
/* The session of a slot, NULL when it is gone. */
struct session *session_table_find_slot(const struct session_table *table, uint32_t slot, uint32_t generation);
/* The present session of a slot (0..slot_count-1) or NULL, for walking over all. */
struct session *session_table_at(const struct session_table *table, uint32_t slot);
/* A new session, zeroed but for its names; there is none of that client id, which has 1..65535 bytes. NULL when memory is short. */
struct session *session_table_add(struct session_table *table, struct span client_id);
/* Take it out and free it with all it owns. */
void session_table_remove(struct session_table *table, struct session *sess);

#endif
