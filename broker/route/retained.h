/* The retained values: topic -> newest retained message, or where it is on disk; with scans by filter that run in slices.
 *
 * Every retained PUBLISH carries a number from one process-wide counter. The store keeps the greater number of a topic, so two shards whose
 * messages arrive here in another order than they were numbered leave the same value behind everywhere. A removal (empty payload) keeps
 * its number in a tombstone until retained_forget_before() says that nothing older can still arrive.
 *
 * Topics stand in a hash set for the point operations and in one ordered index, in which `/` sorts before every other byte: the topics
 * below a prefix are neighbours. A scan seeks from match to match and so visits the matching part only; between slices it remembers nothing
 * but the last topic, so any change in between is harmless: each topic that is there during the whole scan is delivered exactly once, a
 * topic that comes or goes meanwhile at most once, with the value it has at that moment.
 *
 * A value is held as a message or, when the store was made with the callback `sequence`, only until the message can be read from disk:
 * retained_on_checkpoint() says how far that is, and retained_let_go() then keeps the sequence alone. Who waits for that is a list in order
 * of arrival, so nothing is searched. What a scan had to read may be given back by retained_offer(): the newest such messages stay, up to
 * cache_bytes_max, so that equal scans soon after read nothing.
 *
 * Messages are opaque: the store holds one reference to each, through the callbacks given at creation.
 *
 * Bounds are on messages and on bytes (as the caller counts a message's bytes, wherever they are), and are kept by reservations: who
 * publishes reserves room before anything is done about the message, and hands the reservation over with it; so a value that arrives here
 * is never refused. A reservation is for a new topic, or for what a value is larger than the one it replaces; far from the bounds, where
 * nobody is to be refused, the topic is not looked up and everything is reserved as for a new one. What was reserved too much is free again
 * when the value is in. The bounds hold exactly, but for values of topics whose value goes or
 * shrinks while they are on their way.
 *
 * Memory, measured with jemalloc over a million topics of 33 bytes in random order (tests/bench/retained_bench.c): 84 bytes and the topic
 * for a value, on disk or not, and 33 bytes more while a message waits to be let go or is kept after a read.
 *
 * Pure; one writer (the route thread). What is said to be for any thread may be called inside a section of the epoch given at creation.
 * Callbacks may not call back into the store. */
#ifndef TIDEGATE_BROKER_ROUTE_RETAINED_H
#define TIDEGATE_BROKER_ROUTE_RETAINED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/bytes.h"

#define RETAINED_NO_EXPIRY INT64_MAX

struct epoch;
struct retained;
struct retained_scan;

struct retained_limits {
    uint64_t messages_max;    /* live messages; and as many tombstones, or RETAINED_TOMBSTONES_MIN */
    uint64_t bytes_max;       /* sum of `bytes` of the live messages, in memory or on disk */
    uint64_t cache_bytes_max; /* of messages that were read from disk and are kept for the next scan */
};

#define RETAINED_TOMBSTONES_MIN 1024 /* they go within seconds: removals need not wait for each other when few messages are allowed */

/* Room for one value. */
struct retained_reservation {
    bool is_message; /* for a topic without a value */
    uint32_t bytes;
};

struct retained_callbacks {
    void (*ref)(void *msg);
    void (*unref)(void *msg);
    /* Where the message is in the log: its name on disk; 0 = not known yet. NULL: messages stay in memory for ever. */
    uint64_t (*sequence)(const void *msg);
};

enum retained_result {
    RETAINED_STORED,     /* it is the topic's value now */
    RETAINED_REMOVED,    /* the topic has no value now (tombstone kept) */
    RETAINED_SUPERSEDED, /* a greater number was there: nothing changed; for the publisher this is success */
    RETAINED_NOMEM,      /* memory is short, nothing changed */
};

/* What a topic holds. Borrowed; valid until the store changes. */
struct retained_value {
    struct span topic;
    void *msg;         /* take a ref to keep it; NULL = on disk */
    uint64_t sequence; /* on disk: its name there; else 0 */
    uint64_t number;
    int64_t expiry_wall_ns; /* RETAINED_NO_EXPIRY = never */
    uint32_t bytes;
};

/* hash_key: 64 random bits. limits and callbacks are copied. epoch: borrowed for life; NULL: nobody but this thread asks. Returned; NULL
 * when memory is short. */
struct retained *retained_new(uint64_t hash_key, const struct retained_limits *limits, const struct retained_callbacks *callbacks,
                              struct epoch *epoch);
/* Drops every reference. No scan may be open. NULL is fine. */
void retained_free(struct retained *store);
/* Room for a value of this topic that counts for `bytes`. False: a bound would be exceeded, and nothing is reserved. A value that is no
 * larger than the one it replaces always finds room. Thread: any. */
bool retained_reserve(struct retained *store, struct retained_reservation *reserved_out, struct span topic, uint32_t bytes);
/* The value does not come after all. Thread: any. */
void retained_unreserve(struct retained *store, const struct retained_reservation *reserved);
/* Whether a removal of this topic may come: one of an unknown topic has to wait while tombstones are at their bound, until shards have
 * answered (a second or two). Thread: any. */
bool retained_may_remove(const struct retained *store, struct span topic);

/* Set the topic's value. msg: shared (ref), the store takes a reference of its own. topic 1..65535 bytes. number > 0.
 * bytes: what the message counts for. reserved: ends here, whatever comes of it. */
enum retained_result retained_put(struct retained *store, struct span topic, uint64_t number, void *msg, uint32_t bytes,
                                  int64_t expiry_wall_ns, const struct retained_reservation *reserved);
/* Remove the topic's value, and remember the number. */
enum retained_result retained_remove(struct retained *store, struct span topic, uint64_t number);
/* At start: a value that is on disk. Bounds are not asked: what was accepted once stays. Returns RETAINED_STORED, RETAINED_SUPERSEDED or
 * RETAINED_NOMEM. */
enum retained_result retained_restore(struct retained *store, struct span topic, uint64_t number, uint64_t sequence, uint32_t bytes,
                                      int64_t expiry_wall_ns);
/* No put or removal with a number below this one will come any more: forget such tombstones. */
void retained_forget_before(struct retained *store, uint64_t number);

/* The value of one topic, if there is one that is not expired at `now`. */
bool retained_find(struct retained *store, struct retained_value *value_out, struct span topic, int64_t now_wall_ns);

/* Look at up to `budget` topics for expired values, going round; they become tombstones. One that waits to be let go stays until then:
 * who keeps values on disk could not yet be told to remove it. on_expired: NULL = nobody is told; the value is borrowed. Returns how many
 * were dropped. */
typedef void (*retained_expired_fn)(void *arg, const struct retained_value *value);
size_t retained_sweep(struct retained *store, int64_t now_wall_ns, size_t budget, retained_expired_fn on_expired, void *arg);

/* Every sequence below this one can be read from disk from now on. Never falls. */
void retained_on_checkpoint(struct retained *store, uint64_t sequence);
/* Let go of messages that the checkpoint has: looks at up to `budget` of those that wait, oldest first, and stops at the first whose
 * sequence is not below the checkpoint (messages whose sequence is not known yet are passed over once a checkpoint). True: there may be
 * more, call again. */
bool retained_let_go(struct retained *store, size_t budget);
/* A message read from disk: kept if the topic's value is still that number, and on disk. msg: shared (ref). */
void retained_offer(struct retained *store, struct span topic, uint64_t number, void *msg);
/* The message that has waited longest to be let go (about: one whose sequence came late moves back); NULL = none waits. Borrowed. */
const void *retained_window_oldest(const struct retained *store);

/* Scan of a filter (well formed, 1..65535 bytes; copied). Returned, ended with retained_scan_end(); NULL when memory is short. */
struct retained_scan *retained_scan_begin(struct retained *store, struct span filter);
/* Visit up to `budget` topics (looked at, matching or not; at least 1). True: there is more, call again; false: all delivered.
 * visit returns false to stop the slice behind this value (it was delivered): the next step goes on after it. */
bool retained_scan_step(struct retained_scan *scan, int64_t now_wall_ns, size_t budget,
                        bool (*visit)(void *arg, const struct retained_value *value), void *arg);
void retained_scan_end(struct retained_scan *scan);

struct retained_stats {
    uint64_t messages;          /* live */
    uint64_t bytes;             /* of the live messages, as counted by the caller */
    uint64_t reserved_messages; /* on their way */
    uint64_t tombstones;
    uint64_t index_bytes;     /* what the store itself allocated */
    uint64_t window_messages; /* in memory until the checkpoint has them; 0 in a store that never lets go */
    uint64_t window_bytes;
    uint64_t cache_messages; /* on disk, and kept */
    uint64_t cache_bytes;
    uint64_t expired; /* counters since creation */
};
void retained_get_stats(const struct retained *store, struct retained_stats *stats_out);

#endif
