/* A database in memory for tests and the simulator: broker/durable/kv.h without a disk, deterministic, that fails, fills up, forgets and
 * rots as it is told.
 *
 *     struct sim_kv *sim = sim_kv_new(seed);
 *     struct kv *kv = sim_kv_open(sim);        // the broker's; it begins, commits, closes as with any other
 *     sim_kv_crash(sim);                       // the process is dead; what was committed stays
 *     kv = sim_kv_open(sim);                   // the next broker on the same contents
 *     sim_kv_free(sim);
 *
 * What it keeps to: a commit that returned 0 survives every crash; one that returned ERR_IO has survived or not (sim_kv_set_fate, by
 * default a random draw at the crash or reopening), is not seen by this handle, and no write transaction begins until there is a new one;
 * one that returned ERR_NOSPACE never happened. Read transactions see what was committed when they began.
 *
 * It is stricter than LMDB where the contract allows: spans of a write transaction are freed at its next call and those of a read
 * transaction at its end, so that the address sanitizer finds who holds on to them; a second write transaction is a CHECK.
 *
 * Trees are treaps whose nodes are shared by all versions that have them and copied when one version changes them; the shape depends on the
 * keys alone. One thread. */
#ifndef TIDEGATE_TESTS_LIB_SIM_KV_H
#define TIDEGATE_TESTS_LIB_SIM_KV_H

#include "broker/durable/kv.h"

struct sim_kv;

struct sim_kv *sim_kv_new(uint64_t seed);
/* Handles and transactions that a crash left behind go too; a handle that is still open is closed. NULL is fine. */
void sim_kv_free(struct sim_kv *sim);

/* A handle on the contents. One at a time; ended by kv_close() or sim_kv_crash(). */
struct kv *sim_kv_open(struct sim_kv *sim);
/* The process ends here, between two calls: the open handle and its transactions are dead. The pointers stay good for kv_abort() and
 * kv_close(), for who cleans up after the dead; any other call on them returns ERR_CLOSED. */
void sim_kv_crash(struct sim_kv *sim);

enum sim_kv_call { SIM_KV_BEGIN_READ, SIM_KV_BEGIN_WRITE, SIM_KV_READ, SIM_KV_PUT, SIM_KV_DEL, SIM_KV_COMMIT, SIM_KV_CALL_COUNT };

/* Let one call fail with `err`, after `skip` more that do not. READ stands for get, seek, next and floor. One fault per kind of call is
 * waiting at most; err 0 takes it back. */
void sim_kv_fail(struct sim_kv *sim, enum sim_kv_call call, enum err err, uint64_t skip);
/* What becomes of commits that fail with another error than ERR_NOSPACE or ERR_NOMEM (those never happened). */
enum sim_kv_fate { SIM_KV_RANDOM, SIM_KV_LOST, SIM_KV_SURVIVED };
void sim_kv_set_fate(struct sim_kv *sim, enum sim_kv_fate fate);

/* Bytes of keys, values and their frame; a put that needs more gets ERR_NOSPACE. 0: no bound (the default). */
void sim_kv_set_capacity(struct sim_kv *sim, uint64_t bytes);

/* Change one byte of the stored value (its CRC is its last 4) in every version that shares it. false: no such key. */
bool sim_kv_flip(struct sim_kv *sim, enum kv_tree tree, struct span key, size_t byte_index);

struct sim_kv_counts {
    uint64_t commits, failed_commits, crashes;
    uint64_t puts, dels; /* whether committed or not */
    uint64_t no_space;   /* puts and commits that found none */
    uint64_t used_bytes; /* committed */
};
struct sim_kv_counts sim_kv_counts(const struct sim_kv *sim);

#endif
