/* The checkpoint's database in LMDB: one environment in a directory of its own, one named tree for each of enum kv_tree.
 *
 * The map is reserved sparse at its full size and never resized while running, so readers never see it move; the file grows as pages are
 * used. Pages that a commit freed are used again as soon as no older read transaction is left, therefore none outlives a slice of work.
 * Commits are synced (no MDB_NOSYNC, no MDB_WRITEMAP): what LMDB promises is then that after a crash the newest or the one before is whole.
 * ENOSPC and a full map are ERR_NOSPACE; a failed sync or write is ERR_IO. Threads: as kv.h says; readers are not bound to threads. */
#ifndef TIDEGATE_BROKER_DURABLE_KV_LMDB_H
#define TIDEGATE_BROKER_DURABLE_KV_LMDB_H

#include "broker/durable/kv.h"

struct kv_lmdb_options {
    const char *dir;    /* made when missing, its parent must exist */
    uint64_t map_bytes; /* address space and most that the file may become; rounded up to 4096 */
    bool read_only;     /* for backup, repair and check: another process may be writing */
    unsigned reader_max;
};

/* kv_out returned, closed with kv_close(). Returns 0, ERR_NOTFOUND (read only and not there), ERR_VERSION, ERR_CORRUPT (not an LMDB file,
 * or its meta pages are damaged), ERR_PERMISSION, ERR_NOSPACE, ERR_NOMEM, ERR_IO; msg names the directory. Thread: main. */
enum err kv_lmdb_open(struct kv **kv_out, const struct kv_lmdb_options *options, struct errmsg *msg) must_check;

/* A consistent copy of the whole database into `dir` (which exists and is empty), while it is used, without free pages, synced. */
enum err kv_lmdb_copy(struct kv *kv, const char *dir, struct errmsg *msg) must_check;

#endif
