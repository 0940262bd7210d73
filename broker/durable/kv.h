/* The seam to the checkpoint's database: ordered trees of keys and values under transactions.
 *
 * The checkpoint needs seven trees, one writer and snapshots for readers. In production they are LMDB (kv_lmdb.h); in tests and in the
 * simulator they are memory that forgets, fails and fills up as told (tests/lib/sim_kv.h). Everything that reads or writes a tree goes
 * through the functions below, which put a CRC-32C over tree, key and value behind each value and check it at every read: LMDB 0.9 has no
 * checksums of its own.
 *
 * Invariants: one write transaction at a time; a read transaction sees what was committed before it began and nothing else; what
 * kv_commit() returned 0 for survives a crash, what it did not return 0 for may or may not. After ERR_NOSPACE the transaction is undone and
 * may be tried again; after ERR_IO nobody knows what is on disk: the database is not written again until a restart.
 *
 * Keys: 1..KV_KEY_MAX bytes, in memcmp order; numbers in them big endian (kv_key_u64). Values: 0..KV_VALUE_MAX bytes. Spans that come out
 * are borrowed: of a read transaction until it ends, of a write transaction until its next call (which may take them as its key).
 * Threads: a write transaction and all its calls on one thread; a read transaction on one thread at a time. */
#ifndef TIDEGATE_BROKER_DURABLE_KV_H
#define TIDEGATE_BROKER_DURABLE_KV_H

#include <stdbool.h>
#include <stdint.h>

#include "common/bytes.h"
#include "common/err.h"

#define KV_KEY_MAX 64
#define KV_VALUE_MAX ((size_t)1 << 30)

/* docs/formats.md has keys and values. */
enum kv_tree {
    KV_META,       /* name -> what describes the whole: format, identity, position applied */
    KV_SESSIONS,   /* session number -> the shortest list of records that makes the session */
    KV_RECIPIENTS, /* sequence, first session number -> a row of messages, each with sessions that still want it, ascending */
    KV_BODIES,     /* sequence -> a row of messages as records without recipients */
    KV_HOLDERS,    /* sequence -> how many chunks (and the retained tree) still hold the body; absent: one */
    KV_RUNS,       /* session number, first sequence -> positions of older messages of a long queue */
    KV_RETAINED,   /* hash of the topic -> topic, retained number, sequence; or a removal */
    KV_TREE_COUNT,
};

struct kv_txn;
struct kv;

struct kv_stats {
    uint64_t used_bytes; /* of pages in use */
    uint64_t file_bytes; /* of the file, free pages included */
    uint64_t map_bytes;  /* the most that it may become */
    uint64_t entries[KV_TREE_COUNT];
};

/* What an implementation does; everybody else uses the functions below. Values that come out are with the 4 bytes of CRC behind them, as
 * put was given them; keys that go in were checked. begin gives a zeroed transaction, whose first member the caller fills. next is not
 * called after a put or del in that tree (kv.c seeks anew). Whatever commit returns, the transaction is gone. floor may leave the place
 * anywhere when it finds nothing. */
struct kv_ops {
    enum err (*begin)(struct kv *kv, struct kv_txn **txn_out, bool is_write);
    enum err (*commit)(struct kv_txn *txn);
    void (*abort)(struct kv_txn *txn);
    enum err (*get)(struct kv_txn *txn, enum kv_tree tree, struct span key, struct span *value_out);
    enum err (*put)(struct kv_txn *txn, enum kv_tree tree, struct span key, struct span value, const uint8_t crc[4]);
    enum err (*del)(struct kv_txn *txn, enum kv_tree tree, struct span key);
    enum err (*seek)(struct kv_txn *txn, enum kv_tree tree, struct span key, struct span *key_out, struct span *value_out);
    enum err (*next)(struct kv_txn *txn, enum kv_tree tree, struct span *key_out, struct span *value_out);
    enum err (*floor)(struct kv_txn *txn, enum kv_tree tree, struct span key, struct span *key_out, struct span *value_out);
    enum err (*stats)(struct kv *kv, struct kv_stats *stats_out);
    void (*close)(struct kv *kv);
};

/* Implementations embed these as their first members. */
struct kv {
    const struct kv_ops *ops;
    const char *name; /* for messages, the file; NULL: "checkpoint" */
};
struct kv_txn {
    struct kv *kv;
    bool is_write;
    enum err failed; /* a put or del failed so: nothing more goes in, and commit undoes */
    /* Where the walks stand. The key is kept for write transactions only, where a put or del may move everything (is_stale). */
    struct kv_place {
        bool is_set, is_stale;
        uint8_t key_size;
        uint8_t key[KV_KEY_MAX];
        /* Read transactions: the value whose CRC was looked at last. Nothing changes under them, so it is not looked at again: values of
         * several messages are read for one after the other. */
        struct span checked;
    } places[KV_TREE_COUNT];
};

/* Returns 0, ERR_NOMEM, ERR_NOSPACE, ERR_FULL (too many readers), ERR_IO (also: for writing after a write that failed so), ERR_PERMISSION
 * (opened read only). */
enum err kv_begin(struct kv *kv, struct kv_txn **txn_out, bool is_write) must_check;
/* Ends the transaction, whatever it returns: 0 = durable; ERR_NOSPACE, ERR_NOMEM (undone, try again later), ERR_IO, ERR_CORRUPT (final). If
 * a put or del failed, it is undone and the error of that returned. */
enum err kv_commit(struct kv_txn *txn) must_check;
/* Undo, or end a read transaction. NULL is fine. */
void kv_abort(struct kv_txn *txn);

/* Returns 0, ERR_NOTFOUND, ERR_CORRUPT (the value is damaged), ERR_IO. */
enum err kv_get(struct kv_txn *txn, enum kv_tree tree, struct span key, struct span *value_out) must_check;
/* Set, in place of what was there. `value` is not borrowed from this transaction. An error is the end of the transaction: abort or commit,
 * which both undo it. Returns 0, ERR_NOSPACE, ERR_NOMEM, ERR_CORRUPT, ERR_IO. */
enum err kv_put(struct kv_txn *txn, enum kv_tree tree, struct span key, struct span value) must_check;
/* Returns 0 (also when there was none), otherwise as kv_put(). */
enum err kv_del(struct kv_txn *txn, enum kv_tree tree, struct span key) must_check;

/* Walks. A transaction has one place in each tree; kv_seek sets it to the first key at or after `key` (an empty key: the first of all),
 * kv_next goes on, kv_floor sets it to the last key at or before `key`. A put or del in that tree in between is allowed; kv_next then goes
 * on behind the key it stood at. Returns 0, ERR_NOTFOUND (no such key: the walk has ended, and kv_next says so again), ERR_CORRUPT: the
 * value is damaged, *key_out names it, *value_out is empty, and kv_next goes on behind it (an empty *key_out: the tree itself is damaged
 * there, and the walk has ended); ERR_IO. */
enum err kv_seek(struct kv_txn *txn, enum kv_tree tree, struct span key, struct span *key_out, struct span *value_out) must_check;
enum err kv_next(struct kv_txn *txn, enum kv_tree tree, struct span *key_out, struct span *value_out) must_check;
enum err kv_floor(struct kv_txn *txn, enum kv_tree tree, struct span key, struct span *key_out, struct span *value_out) must_check;

enum err kv_get_stats(struct kv *kv, struct kv_stats *stats_out) must_check;
/* No transaction is open. NULL is fine. */
void kv_close(struct kv *kv);

/* Where it is, for messages. Lives as long as the database. */
static inline const char *kv_name(const struct kv *kv) { return kv->name ? kv->name : "checkpoint"; }

/* Does the CRC behind a stored value hold, in this tree under this key? For who finds values without knowing where they belong. */
bool kv_value_is_whole(enum kv_tree tree, struct span key, struct span stored);

/* "sessions", ... for messages. Static storage. */
const char *kv_tree_name(enum kv_tree tree);

/* A key in hexadecimal digits, for messages; "-" for an empty one. */
#define KV_KEY_TEXT_SIZE (2 * KV_KEY_MAX + 1)
void kv_key_text(char text_out[KV_KEY_TEXT_SIZE], struct span key);

/* A key of one or two numbers, big endian, in the caller's 16 bytes. */
static inline struct span kv_key_u64(uint8_t key_out[8], uint64_t a)
{
    for (int i = 0; i < 8; i++)
        key_out[i] = (uint8_t)(a >> (56 - 8 * i));
    return span_of(key_out, 8);
}
static inline struct span kv_key_u64_u64(uint8_t key_out[16], uint64_t a, uint64_t b)
{
    kv_key_u64(key_out, a);
    kv_key_u64(key_out + 8, b);
    return span_of(key_out, 16);
}
static inline uint64_t kv_key_read_u64(const uint8_t *key)
{
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value = value << 8 | key[i];
    return value;
}

#endif
