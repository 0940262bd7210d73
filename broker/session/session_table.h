/* All sessions of a shard: by client id, and by number.
 *
 * Two hash tables with their links in the sessions, which grow and shrink by one bucket at a time (linear hashing), so that no insertion
 * stalls a loop. Memory beside a session: 16 bytes while they grow, up to 32 after they have shrunk. Both are keyed, so that a peer cannot
 * aim at one bucket, neither by its client id nor by when it connects. Pure; owner: the shard. */
#ifndef TIDEGATE_BROKER_SESSION_SESSION_TABLE_H
#define TIDEGATE_BROKER_SESSION_SESSION_TABLE_H

#include "broker/session/session.h"

#define SESSION_TABLE_PAGE 1024 /* buckets of a page, power of two */

/* One of the two tables; private to session_table.c. */
struct session_buckets {
    struct session **(*link)(struct session *sess); /* where this table's link stands in a session */
    uint32_t (*hash)(const struct session *sess, uint64_t hash_key);
    uint64_t hash_key;
    struct session ***pages;
    uint32_t page_count;
    uint32_t count; /* in use: level + split */
    uint32_t level; /* power of two */
    uint32_t split; /* buckets below this one are split already */
};

struct session_table {
    struct session_buckets by_client_id, by_number;
    uint32_t count; /* sessions */
};

enum err session_table_init(struct session_table *table, uint64_t hash_key) must_check;
/* So many sessions are about to come into a table that has had none: its buckets are made at once, where growing would visit each session
 * again to split its bucket. A hint: with too few, or where memory is short, it grows as ever. */
void session_table_reserve(struct session_table *table, uint32_t count);
/* Frees the sessions that are still in. */
void session_table_deinit(struct session_table *table);

/* NULL when there is none. */
struct session *session_table_find(const struct session_table *table, struct span client_id);
/* The same by number: NULL when that session is gone, or at home elsewhere. */
struct session *session_table_find_number(const struct session_table *table, uint64_t number);
/* A hint that it will be asked for: step 0 fetches its bucket towards the CPU, step 1, when that is there, what the bucket begins with. */
void session_table_fetch(const struct session_table *table, uint64_t number, int step);
/* For whoever looks at all of them, a bucket at a time: the first of a bucket below session_table_bucket_count(), the others by
 * next_by_number. What comes and goes meanwhile may be passed over, or seen twice. */
static inline uint32_t session_table_bucket_count(const struct session_table *table) { return table->by_number.count; }
struct session *session_table_bucket(const struct session_table *table, uint32_t index);
/* A new session, zeroed but for its names; there is none of that client id, which has 1..65535 bytes, nor was there ever one of that
 * number. NULL when memory is short. */
struct session *session_table_add(struct session_table *table, struct span client_id, uint64_t number);
/* Take it out and free it with all it owns. */
void session_table_remove(struct session_table *table, struct session *sess);

#endif
